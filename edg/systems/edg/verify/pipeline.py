"""Group `pipeline`: two-model inference end to end, by the functions that `edg sample` calls."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from edg.core.video import fit_image
from edg.networks.latent_video.load import build
from edg.networks.latent_video.published_yaml import from_published
from edg.systems.base import Request
from edg.systems.edg.clip_state import ClipState, condition_batch, decode
from edg.systems.edg.condition import Noise
from edg.systems.edg.generate import denoise_all
from edg.systems.edg.options import SamplingOptions
from edg.systems.edg.parameter_sets import ParameterSets
from edg.verify import rules
from edg.verify.cases import Case

SETS = ("dyn", "con")


def run(case: Case) -> dict[str, Tensor]:
    """Condition, denoise with dyn, then con (t > T is dyn), decode with con; draws follow the input rule."""
    config = case.config
    spec = from_published({"model": {"params": config["model"]}}, clip=config["clip"])
    weights = {name: rule_weights(spec, case.raw[f"{name}_seed"]) for name in SETS}
    sets = ParameterSets(spec, weights, device=case.device, dtype=case.dtype, resident=True)
    options = released_options(config)
    clip = make_clip(case, spec, options)

    out: dict[str, Tensor] = {}
    for index, name in enumerate(SETS):
        conditions = condition_batch(sets.network(index), index, [clip], options)
        out[f"{name}.cond.context"] = conditions["full"].context_BLD
        out[f"{name}.c_concat"] = conditions["full"].concat_BCTHW
        if "null" in conditions:
            out[f"{name}.uncond.context"] = conditions["null"].context_BLD
    kept = replace(options, con_prompt="prompt")
    out["con.cond.context_with_prompt"] = condition_batch(sets.network(1), 1, [clip], kept)[
        "full"
    ].context_BLD

    denoise_all(sets, [clip], options)
    out["latent"] = clip.x_1CTHW
    out["video"] = decode(sets.network(1), clip, options)
    return out


def rule_weights(spec, seed: int) -> dict[str, Tensor]:
    """A complete checkpoint by the weight rule; schedule buffers keep their computed values."""
    network = build(spec)
    buffers = network.schedule_buffers()
    return {
        name: buffers[name] if name in buffers else rules.weight(seed, name, tuple(tensor.shape))
        for name, tensor in network.state_dict().items()
    }


def released_options(config: dict) -> SamplingOptions:
    return SamplingOptions(
        steps=config["S"],
        eta=config["eta"],
        spacing=config.get("timestep_spacing", "uniform_trailing"),
        guidance_scale=config["cfg_scale"],
        guidance_rescale=config["guidance_rescale"],
        start=config["M"],
        switch_at=(config["T"],),
        frame_stride=config["frame_stride"],
        text_input=config["text_input"],
        loop=config["loop"],
        interp=config.get("interp", False),
        perframe_ae=config["model"].get("perframe_ae", False),
    ).as_released()


def make_clip(case: Case, spec, options: SamplingOptions) -> ClipState:
    image = case.input("image").numpy()
    height, width = image.shape[:2]
    request = Request("case", case.config["prompt"], 0, spec.frames, height, width, options)
    noise = rule_noise(case)
    factor = spec.latent_factor
    x = noise("x_T", shape=(1, spec.unet.out_channels, spec.frames, height // factor, width // factor))
    pixels = fit_image(image, height, width)[None]
    return ClipState(request, pixels.to(case.device), noise, x.to(case.device))


def rule_noise(case: Case) -> Noise:
    """Draws by the input rule under the reference's names: x_T, noise_{k}, posterior.{set}.{frame}."""

    def noise(kind: str, *what, shape) -> Tensor:
        if kind == "posterior":
            name = f"posterior.{SETS[int(str(what[0]).removeprefix('set'))]}.{what[1]}"
        else:
            name = kind if kind == "x_T" else f"noise_{what[0]}"
        return rules.input_tensor(case.input_seed, name, tuple(shape))

    return noise
