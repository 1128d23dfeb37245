"""Options of a clip: the release's settings by their usual names, and its defects as named options."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

from edg.core.config import PathText
from edg.core.errors import require
from edg.core.options import option

_sampling = partial(option, group="sampling")
_faster = partial(option, group="approximations: faster, but not exact (docs/speed.md)", since=2)
_defect = partial(option, group="defects of the release, as options")
_image = partial(option, group="what to make")
_sets = partial(option, group="model and parameters", pixels=False)
_merging = partial(option, group="or parameter sets merged in memory (docs/dials.md)", pixels=False)


@dataclass(frozen=True)
class SamplingOptions:
    """Options that are neither a request's own (prompt, image, seed, size) nor in the weights.

    switch_at: timesteps at which the next set takes over, decreasing: set k is used while t > switch_at[k].
    crop, pad: how an image of another shape is fitted (see `fit_image`); interp: the last frame is given too
    (the first image where a request has no other); loop: the last frame is the first image.
    blend: "hard" swaps at switch_at, "soft" weights dyn by t/1000 and con by 1 - t/1000 at every step.
    start: M, sampling starts at timestep M-1. frame_stride: the fps (or stride) condition; None: default.
    Approximations, off by default (docs/speed.md): solvers "dpmpp" and "unipc" are deterministic, eta has no
    effect; guidance_interval: (LO, HI), guidance at LO <= t <= HI only; reuse: N, the deep levels of the
    network run at every N-th step.

    The fields with pixels=False choose parameter sets or other fields (`selection.select`); in the options of
    a request they have no effect.
    """

    steps: int = _sampling(50, "sampling steps", flags=("--ddim_steps",), low=1, high=1000)
    eta: float = _sampling(1.0, "eta of DDIM; 0 is deterministic", flags=("--ddim_eta",), low=0, high=1000)
    spacing: Literal["uniform", "uniform_trailing", "quad"] = _sampling(
        "uniform_trailing", "which timesteps are visited", flags=("--timestep_spacing",)
    )
    guidance_scale: float = _sampling(
        7.5, flags=("--unconditional_guidance_scale", "--cfg"), names=("guidance",), low=-10_000, high=10_000
    )
    guidance_rescale: float = _sampling(0.7, "rescaling of the guided prediction, 0..1", low=0, high=1)
    image_guidance_scale: float | None = _sampling(
        None,
        "scale of separate image guidance, which this turns on (default: the text's)",
        flags=("--cfg_img",),
        low=-10_000,
        high=10_000,
    )
    negative_prompt: str = _sampling("", "replaces the empty prompt of guidance", metavar="TEXT", bare="")
    start: int = _sampling(1000, "start at timestep M - 1", flags=("--M",), low=1, high=1000)
    switch_at: tuple[int, ...] = option(
        (500,),
        "decreasing timesteps, one between each two --sets",
        group="model and parameters",
        metavar="T",
        low=0,
        high=1000,
        explicit=True,
    )
    blend: Literal["hard", "soft"] = option(
        "hard", "soft: both sets at every step, weighted by t", group="model and parameters"
    )
    frame_stride: int | None = _sampling(
        None,
        "frames per second, or stride, that the model is conditioned on (default: the model's)",
        low=1,
        high=10_000,
    )
    text_input: bool = _image(True, "use the prompts (on; --no-text_input: images alone)")
    loop: bool = _sampling(False, "use the image for both ends, so that the clip loops")
    interp: bool = _sampling(False, "use two images per prompt, for the first and the last frame")
    crop: bool = option(False, flags=None)
    perframe_ae: bool = _sampling(False, "decode frame by frame (default: the model's)", explicit=True)
    analytic_init: PathText | None = _sampling(
        None,
        "file of the initial noise, published or by edg analytic-init",
        flags=("--analytic_init_path",),
        metavar="FILE",
    )
    analytic_init_sha256: str | None = option(None, flags=None, pixels=False)  # expected of the file
    con_prompt: Literal["prompt", "empty"] = _defect(
        "prompt", "prompt of con under guidance; released: empty"
    )
    image_latent: Literal["mode", "shared_sample", "sample_per_set"] = _defect(
        "shared_sample", "latent of the image; released: sample_per_set"
    )
    timesteps: Literal["clean", "released"] = _defect(
        "clean", "released: as published, which can visit timestep -1"
    )
    solver: Literal["ddim", "dpmpp", "unipc"] = _faster(
        "ddim", "dpmpp: DPM-Solver++(2M), unipc: UniPC-2; deterministic, for few steps"
    )
    guidance_interval: tuple[int, int] | None = _faster(
        None, "guide only at LO <= t <= HI", metavar=("LO", "HI"), low=0, high=1000
    )
    reuse: int = _faster(
        1, "run the deep levels of the network every N-th step", metavar="N", low=1, high=1000
    )
    pad: bool = option(False, flags=None, since=2)

    released: bool = _defect(False, "the published behaviour of all of these", pixels=False)
    multiple_cond_cfg: bool = _sampling(
        False, "guide by image and text separately (off)", pixels=False, explicit=True
    )
    whether_analytic_init: bool = _sampling(False, "start from --analytic_init_path (0)", pixels=False)
    fit: Literal["stretch", "crop", "pad"] | None = _image(
        None,
        "images of another shape: stretch (as released), crop, pad with black (stretch; --size auto: crop)",
        pixels=False,
    )
    img_crop: bool = _image(False, "same as --fit crop, under its released name", pixels=False)
    preview_decoder: PathText | None = option(
        None, "tiny decoder for a --preview at full size: sprites, taesd (`edg fetch taesd`), or a file",
        group="files", metavar="FILE", pixels=False,
    )  # fmt: skip
    dynamic_path: PathText | None = _sets(
        None, "used while t > T ($CKPT_PATH/merge/dyn.pt)", names=("dyn",), metavar="FILE"
    )
    consistency_path: PathText | None = _sets(
        None, "used from T on ($CKPT_PATH/merge/con.pt)", names=("con",), metavar="FILE"
    )
    T: int | None = _sets(None, "the timestep at which con takes over (500)", low=0, high=1000)
    motion: float | None = _merging(
        None, "from the least to the most motion that was measured", metavar="0..1", low=0, high=1
    )
    hold: float | None = _merging(
        None,
        "from the largest to the smallest first-frame error that was measured",
        metavar="0..1",
        low=0,
        high=1,
    )
    base: PathText | None = _merging(None, "the base model (sprites: the embedded one)", metavar="FILE")
    tuned: PathText | None = _merging(
        None, "the fine-tuned model (sprites: the embedded one)", metavar="FILE"
    )
    recipe: PathText | None = _merging(
        None, "a recipe, e.g. of configs/merge (default: that of the dials, else edg)", metavar="NAME|YAML"
    )
    strength: tuple[str, ...] = _merging(
        (), "other strengths in the recipe: dyn.alpha=1.2", metavar="OUTPUT.SETTING=X"
    )
    dials: PathText | None = _merging(None, "the measured curves (configs/dials/MODEL.yaml)", metavar="YAML")

    @property
    def guidance_weights(self) -> dict[str, float]:
        """The conditions that guidance needs and the weight of each, see `diffusion/guidance.py`."""
        from edg.diffusion.guidance import guidance_weights

        return guidance_weights(self.guidance_scale, self.image_guidance_scale)

    @property
    def guided(self) -> bool:
        """True if guidance needs an unconditional pass."""
        return len(self.guidance_weights) > 1

    def as_released(self) -> SamplingOptions:
        """The published behaviour in one word (`--released`)."""
        return replace(self, con_prompt="empty", image_latent="sample_per_set", timesteps="released")

    def check(self) -> None:
        """Raise UsageError for the first setting out of its range."""
        require(1 <= self.start <= 1000, f"M is {self.start}", "1 <= M <= 1000")
        require(self.steps >= 1, f"{self.steps} steps", "at least 1")
        require(self.start >= self.steps, f"--M {self.start} with --ddim_steps {self.steps}", "M >= steps")
        for t in self.switch_at:
            require(0 <= t <= 1000, f"T is {t}", "0 <= T <= 1000")
        falling = all(a > b for a, b in zip(self.switch_at, self.switch_at[1:], strict=False))
        require(falling, f"switch timesteps {self.switch_at}", "decreasing values")
        require(0 <= self.eta <= 1000, f"eta is {self.eta}", "0 <= eta <= 1000")
        low, high = self.guidance_interval or (0, 1000)
        require(0 <= low <= high <= 1000, f"guidance interval {low} {high}", "0 <= LO <= HI <= 1000")
        require(not (self.crop and self.pad), "crop and pad", "one of them")
        require(not (self.loop and self.interp), "--loop with --interp", "one of them")
        require(1 <= self.reuse <= 1000, f"reuse is {self.reuse}", "at least 1 (1: nothing is reused)")
        scale, rescale = self.guidance_scale, self.guidance_rescale
        require(abs(scale) <= 10_000, f"guidance scale is {scale}", "a finite number, at most 10,000")
        require(0 <= rescale <= 1, f"guidance rescale is {rescale}", "a value in 0..1")


def subfolder(options: SamplingOptions) -> str:
    """The folder under --savedir: M, as released."""
    return str(options.start)
