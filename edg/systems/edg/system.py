"""EDG on DynamiCrafter's latent video UNet (Tian et al., CVPR 2025), described for the registry."""

from __future__ import annotations

from edg.systems.base import Command, Inputs, System

HERE = "edg.systems.edg"

SYSTEM = System(
    name="edg",
    title="extrapolated and decoupled image-to-video models",
    inputs=Inputs(image="required", last_image="optional"),
    specs="edg.networks.latent_video.presets:PRESETS",
    read_spec="edg.networks.latent_video.models:load_spec",
    options=f"{HERE}.options:SamplingOptions",
    select=f"{HERE}.selection:select",
    check_options=f"{HERE}.selection:check_options",
    check=f"{HERE}.sampling_schedule:check",
    load=f"{HERE}.parameter_sets:load_sets",
    generate=f"{HERE}.generate:generate",
    identify="edg.networks.latent_video.identify:identify",
    estimate=f"{HERE}.memory:estimate",
    plan_options=f"{HERE}.selection:plan_options",
    files=f"{HERE}.files:FILES",
    train=f"{HERE}.training.run",
    train_config=f"{HERE}.training.config:TrainingConfig",
    embed=f"{HERE}.clip_embedder:load_towers",
    verify=f"{HERE}.verify:GROUPS",
    prompts=f"{HERE}.files:prompt_folder",
    demo=f"{HERE}.demo:DEMOS",
    implied={"last_image": {"interp": True}, "auto_size": {"fit": "crop"}},
    dotted="strength",
    defaults=f"{HERE}.files:load_defaults",
    subfolder=f"{HERE}.options:subfolder",
    commands={
        "encode": Command(
            "videos -> a folder of latents and tokens, so that training need not run the frozen networks",
            f"{HERE}.training.encode_flags:add_encode_arguments",
            f"{HERE}.training.encode_flags:run_encode",
        ),
        "analytic-init": Command(
            "videos -> a file of the initial noise, for sampling from M < 1000",
            f"{HERE}.training.encode_flags:add_analytic_arguments",
            f"{HERE}.training.encode_flags:run_analytic_init",
            "run one process, or first `torchrun ... -m edg encode`, and give its folder as --data",
        ),
    },
)
