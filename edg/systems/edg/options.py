"""How a clip is sampled: the release's settings by the field's names, and its defects as named options."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from edg.core.errors import UsageError
from edg.diffusion.guidance import guidance_weights

LATER = {"later": True}  # a record names it only where it is not the default: older records are without it


@dataclass(frozen=True)
class SamplingOptions:
    """Everything of a run that is neither a request's own (prompt, image, seed, size) nor in the weights.

    switch_at: timesteps at which the next set takes over, falling: set k acts while t > switch_at[k].
    crop, pad: what becomes of an image of another shape (see `fit_image`); interp: a request's last image is
    that of the last frame (its first one where it has none); loop: the first image is.
    blend: "hard" swaps at switch_at, "soft" weights dyn by t/1000 and con by 1 - t/1000 at every step.
    start: M, sampling starts at timestep M-1. frame_stride: the fps (or stride) condition; None: default.
    Approximations, off by default (docs/speed.md): solvers "dpmpp" and "unipc" are deterministic, eta does
    not count; guidance_interval: (LO, HI), guided while LO <= t <= HI alone; reuse: N, the deep levels of the
    network run at every N-th step.
    """

    steps: int = 50
    eta: float = 1.0
    spacing: Literal["uniform", "uniform_trailing", "quad"] = "uniform_trailing"
    guidance_scale: float = 7.5
    guidance_rescale: float = 0.7
    image_guidance_scale: float | None = None  # cfg_img: image guidance when multiple_cond_cfg is on
    negative_prompt: str = ""
    start: int = 1000
    switch_at: tuple[int, ...] = (500,)
    blend: Literal["hard", "soft"] = "hard"
    frame_stride: int | None = None
    text_input: bool = True
    loop: bool = False
    interp: bool = False
    crop: bool = False
    perframe_ae: bool = False
    analytic_init: str | None = None  # path of a file with Expectation_X0 and Tr_Cov_d
    analytic_init_sha256: str | None = field(default=None, metadata=LATER)  # that it must have
    con_prompt: Literal["prompt", "empty"] = "prompt"
    image_latent: Literal["mode", "shared_sample", "sample_per_set"] = "shared_sample"
    timesteps: Literal["clean", "released"] = "clean"
    solver: Literal["ddim", "dpmpp", "unipc"] = field(default="ddim", metadata=LATER)
    guidance_interval: tuple[int, int] | None = field(default=None, metadata=LATER)
    reuse: int = field(default=1, metadata=LATER)
    pad: bool = field(default=False, metadata=LATER)

    @property
    def guidance_weights(self) -> dict[str, float]:
        """The conditions that guidance needs and what each counts, see `diffusion/guidance.py`."""
        return guidance_weights(self.guidance_scale, self.image_guidance_scale)

    @property
    def guided(self) -> bool:
        """Whether more than the fully told prediction is needed (it is not where all scales are 1)."""
        return len(self.guidance_weights) > 1

    def released(self) -> SamplingOptions:
        """The published behaviour in one word (`--released`)."""
        return replace(self, con_prompt="empty", image_latent="sample_per_set", timesteps="released")

    def check(self) -> None:
        """Raise UsageError for the first setting out of its range."""

        def need(ok: bool, given: str, expected: str) -> None:
            if not ok:
                raise UsageError(given, expected=expected)

        need(1 <= self.start <= 1000, f"M is {self.start}", "1 <= M <= 1000")
        need(self.steps >= 1, f"{self.steps} steps", "at least 1")
        need(self.start >= self.steps, f"M {self.start} is below the {self.steps} steps", "M >= steps")
        for t in self.switch_at:
            need(0 <= t <= 1000, f"T is {t}", "0 <= T <= 1000")
        falling = all(a > b for a, b in zip(self.switch_at, self.switch_at[1:], strict=False))
        need(falling, f"switch timesteps {self.switch_at}", "falling values")
        need(0 <= self.eta <= 1000, f"eta is {self.eta}", "eta >= 0, at most 1000")
        low, high = self.guidance_interval or (0, 1000)
        need(0 <= low <= high <= 1000, f"guidance interval {low} {high}", "0 <= LO <= HI <= 1000")
        need(not (self.crop and self.pad), "crop and pad", "one of them")
        need(not (self.loop and self.interp), "loop and interp", "one of them")
        need(1 <= self.reuse <= 1000, f"reuse is {self.reuse}", "at least 1 (1: nothing is reused)")
        scale = self.guidance_scale
        need(abs(scale) <= 10_000, f"guidance scale is {scale}", "a finite number, at most 10,000")
        need(
            0 <= self.guidance_rescale <= 1, f"guidance rescale is {self.guidance_rescale}", "a value in 0..1"
        )
