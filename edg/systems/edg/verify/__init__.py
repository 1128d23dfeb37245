"""Groups of reference cases of this system: name -> case -> outputs."""

from edg.systems.edg.verify import networks, pipeline, samplers, schedules
from edg.verify.cases import Case, Group

# Outputs of whole runs: guidance multiplies the difference of two passes by its scale, rounding included.
GUIDED_OUTPUTS = frozenset({"x_final", "x_steps", "x0_steps", "latent", "video"})


def guidance_factor(case: Case, output: str) -> float:
    """The factor by which guidance amplifies the rounding of 16 bits in an output; stubs do not round."""
    stubs = case.group == "sampler" and "unet_config_dyn" not in case.raw
    scale = case.raw.get("sampler", case.config).get("cfg_scale", 1.0)
    return max(1.0, abs(scale)) if output in GUIDED_OUTPUTS and not stubs else 1.0


GROUPS: dict[str, Group] = {
    "schedule": Group(schedules.schedule, exact=True),
    "analytic": Group(schedules.analytic, exact=True),
    "sampler": Group(samplers.sampler, amplification=guidance_factor),
    "unet": Group(networks.unet),
    "unet_full": Group(networks.unet_full),
    "vae": Group(networks.vae),
    "adapter": Group(networks.adapter),
    "resampler": Group(networks.resampler),
    "text_encoder": Group(networks.text_encoder),
    "image_encoder": Group(networks.image_encoder),
    "keys": Group(networks.keys, exact=True),
    "pipeline": Group(pipeline.run, amplification=guidance_factor),
}
