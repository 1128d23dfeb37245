"""Model specs as frozen dataclasses: every number in which two checkpoints could differ is a field here.

The published values are in `presets.py`; the published YAML files are read by `published_yaml.py`. A
dataclass that cannot be built (widths that do not divide, an option that is not implemented) raises
UsageError at once.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from edg.core.config import later
from edg.core.errors import UsageError, require
from edg.diffusion.schedule_spec import ScheduleSpec

if TYPE_CHECKING:
    from edg.data.transforms import ClipSettings

GROUPS = 32  # every GroupNorm of this family
MIN_FRAMES, MAX_FRAMES = 8, 64


@dataclass(frozen=True)
class MotionSpec:
    """Motion modules (AnimateDiff, Guo et al. 2023): a temporal transformer with a table of positions behind
    every layer of an image model.

    heads: at every width. max_frames: positions in the table, the longest clip. in_middle: one in the middle
    block too.
    """

    heads: int
    max_frames: int
    in_middle: bool


@dataclass(frozen=True)
class UNetSpec:
    """The denoiser. Names are the published constructor's where it has one.

    num_heads: counts only if num_head_channels is -1.
    text_tokens: the first context tokens, which are text.
    image_tokens: per frame.
    init_heads: of the first temporal attention.
    temporal_selfatt_only: False puts a `cc_projection` of adapter_width + inner columns in every temporal
        transformer.
    fs_condition: embed the frame rate or stride; default_fs where none is given.
    motion: of motion modules, None without any.
    """

    in_channels: int
    out_channels: int
    model_channels: int
    channel_mult: tuple[int, ...]
    num_res_blocks: int
    attention_resolutions: tuple[int, ...]
    num_heads: int
    num_head_channels: int
    transformer_depth: int
    context_dim: int
    text_tokens: int
    image_tokens: int
    temporal_length: int | None
    dropout: float
    use_linear: bool
    conv_resample: bool
    resblock_updown: bool
    use_scale_shift_norm: bool
    temporal_conv: bool
    tempspatial_aware: bool
    temporal_attention: bool
    addition_attention: bool
    init_heads: int
    temporal_selfatt_only: bool
    adapter_width: int
    use_relative_position: bool
    use_causal_attention: bool
    image_cross_attention: bool
    image_cross_attention_scale_learnable: bool
    fs_condition: bool
    default_fs: int
    motion: MotionSpec | None = later(None)

    def __post_init__(self) -> None:
        widths = [self.model_channels, *(self.model_channels * m for m in self.channel_mult)]
        require(all(w % GROUPS == 0 for w in widths), f"UNet widths {widths}", f"multiples of {GROUPS}")
        require(len(self.channel_mult) > 0, "an empty channel_mult", "one factor per level")
        fixed = self.num_head_channels > 0
        require(fixed or self.num_heads > 0, "neither num_heads nor num_head_channels", "one of them")
        require(
            fixed or not self.addition_attention,
            "addition_attention with num_heads only",
            "num_head_channels",
        )
        for level, mult in enumerate(self.channel_mult):
            width = self.model_channels * mult
            unit = self.num_head_channels if fixed else self.num_heads
            last = level == len(self.channel_mult) - 1  # the middle block always attends
            used = 2**level in self.attention_resolutions or last
            require(
                not used or width % unit == 0,
                f"width {width} at level {level}",
                f"a multiple of {unit} (heads)",
            )
        lengthy = self.use_relative_position or self.use_causal_attention
        require(
            not lengthy or self.temporal_length is not None,
            "relative positions or a causal mask without temporal_length",
            "temporal_length, in frames",
        )

    def heads(self, width: int) -> tuple[int, int]:
        """(number of heads, channels per head) of the attention at `width` channels."""
        if self.num_head_channels > 0:
            return width // self.num_head_channels, self.num_head_channels
        return self.num_heads, width // self.num_heads

    @property
    def size_multiple(self) -> int:
        """Height and width of the latent are multiples of this, so that skip connections fit."""
        return 2 ** (len(self.channel_mult) - 1)


@dataclass(frozen=True)
class VAESpec:
    """KL autoencoder. attn_resolutions are compared with `resolution` halved per level, not with the real
    input."""

    in_channels: int
    out_channels: int
    ch: int
    ch_mult: tuple[int, ...]
    num_res_blocks: int
    attn_resolutions: tuple[int, ...]
    resolution: int
    z_channels: int
    embed_dim: int
    dropout: float

    def __post_init__(self) -> None:
        require(len(self.ch_mult) > 0, "an empty ch_mult", "one factor per level")
        widths = [self.ch, *(self.ch * m for m in self.ch_mult)]
        require(
            all(w % GROUPS == 0 for w in widths), f"autoencoder widths {widths}", f"multiples of {GROUPS}"
        )

    @property
    def factor(self) -> int:
        """Pixels per latent cell, along one side."""
        return 2 ** (len(self.ch_mult) - 1)


@dataclass(frozen=True)
class ClipVisionSpec:
    """CLIP image tower. image_size: pixels the image is resized to. head_width: channels per head."""

    image_size: int
    patch_size: int
    width: int
    layers: int
    head_width: int
    mlp_ratio: float


@dataclass(frozen=True)
class ClipTextSpec:
    """CLIP text tower. context_length: tokens per prompt, padding included."""

    context_length: int
    vocab_size: int
    width: int
    heads: int
    layers: int
    mlp_ratio: float


@dataclass(frozen=True)
class ClipModelSpec:
    """One CLIP. Each tower keeps some of the other's parameters in its checkpoint, so both halves are
    described. quick_gelu: x sigmoid(1.702 x), as OpenAI's models have it."""

    embed_dim: int
    vision: ClipVisionSpec
    text: ClipTextSpec
    quick_gelu: bool = later(False)


@dataclass(frozen=True)
class TextSpec:
    """Text encoder. layer: "last" runs all blocks, "penultimate" all but the last; both end with ln_final.
    pad: a prompt is filled up with zeros, or with the end token as CLIP-L's tokenizer in transformers does.
    """

    clip: ClipModelSpec
    layer: Literal["last", "penultimate"]
    pad: Literal["zero", "end"] = later("zero")


@dataclass(frozen=True)
class ImageSpec:
    """The image tower; its output is all tokens after the last block."""

    clip: ClipModelSpec


@dataclass(frozen=True)
class ResamplerSpec:
    """Image tokens -> num_queries context tokens per frame (or for all frames, where video_length is
    None)."""

    dim: int
    depth: int
    dim_head: int
    heads: int
    num_queries: int
    embedding_dim: int
    output_dim: int
    ff_mult: float
    video_length: int | None


@dataclass(frozen=True)
class AdapterSpec:
    """Text -> one vector per frame: num_queries learned queries (width) attend to the text (context_dim)."""

    num_queries: int
    width: int
    context_dim: int
    heads: int
    dim_head: int


@dataclass(frozen=True)
class ModelSpec:
    """A whole model: parts, schedule, and the size and length of clips that it was trained for.

    image, resampler: None in a text-to-video model.
    adapter_design: of the text adapter, if there is one (`adapter`).
    fps_condition_type: meaning of the fs input, "fps" (frames per second) or "fs" (frame stride).
    perframe_ae: whether the autoencoder takes one frame at a time.
    height, width: pixels.
    frames: length of a clip; image tokens belong to frames.
    towers_seed: seed that text and image towers are drawn from instead of being stored, or None.
    """

    name: str
    unet: UNetSpec
    vae: VAESpec
    text: TextSpec
    image: ImageSpec | None
    resampler: ResamplerSpec | None
    adapter_design: AdapterSpec
    schedule: ScheduleSpec
    parameterization: Literal["v", "eps"]
    scale_factor: float
    fps_condition_type: Literal["fps", "fs"]
    perframe_ae: bool
    height: int
    width: int
    frames: int
    towers_seed: int | None

    def __post_init__(self) -> None:
        unet, text = self.unet, self.text.clip.text
        z = self.vae.embed_dim
        require(unet.out_channels == z, f"UNet output of {unet.out_channels} channels", f"the latent's {z}")
        latents = 1 if self.image is None else 2  # the noise's and the image's
        require(
            unet.in_channels == latents * z,
            f"UNet input of {unet.in_channels} channels",
            f"{latents} x the latent's {z}",
        )
        require(
            text.width == unet.context_dim, f"text of width {text.width}", f"context_dim {unet.context_dim}"
        )
        require(
            text.context_length == unet.text_tokens,
            f"{text.context_length} text tokens per prompt",
            f"the UNet's text_tokens {unet.text_tokens}",
        )
        self._check_image_tokens()
        design = self.adapter_design
        require(
            (design.width, design.context_dim) == (unet.adapter_width, text.width),
            f"adapter of widths {design.width}, {design.context_dim}",
            f"{unet.adapter_width}, {text.width}",
        )
        unit = self.size_multiple
        require(
            self.height % unit == 0 and self.width % unit == 0,
            f"size {self.height}x{self.width}",
            f"multiples of {unit}",
        )

    def _check_image_tokens(self) -> None:
        image, resampler, unet = self.image, self.resampler, self.unet
        if image is None or resampler is None:
            both = image is resampler and not unet.image_cross_attention
            require(
                both, "only some of image tower, resampler and image cross-attention", "all of them or none"
            )
            return
        vision = image.clip.vision.width
        require(
            vision == resampler.embedding_dim, f"image tokens of width {vision}", f"{resampler.embedding_dim}"
        )
        require(
            resampler.output_dim == unet.context_dim,
            f"resampler output of width {resampler.output_dim}",
            f"context_dim {unet.context_dim}",
        )

    @property
    def adapter(self) -> AdapterSpec | None:
        """The text-to-temporal adapter, None where the model has none."""
        return None if self.unet.temporal_selfatt_only else self.adapter_design

    @property
    def latent_channels(self) -> int:
        return self.vae.embed_dim

    @property
    def latent_factor(self) -> int:
        """Pixels per latent cell, along one side."""
        return self.vae.factor

    @property
    def size_multiple(self) -> int:
        """Height and width in pixels are multiples of this (64 for the published models)."""
        return self.vae.factor * self.unet.size_multiple

    @property
    def fps(self) -> float:
        """Frames per second of the written clips."""
        return 8

    def check_size(self, height: int, width: int) -> None:
        """Raise UsageError, with the nearest that fits, for a size in pixels that the model cannot make."""
        unit = self.size_multiple
        for name, size in (("height", height), ("width", width)):
            if size < unit or size % unit:
                below = max(unit, size // unit * unit)
                choices = f"{below} or {below + unit}" if size > unit else f"{unit}"
                raise UsageError(
                    f"--{name} {size}", expected=f"a multiple of {unit} for {self.name}, such as {choices}"
                )

    def check_frames(self, frames: int) -> None:
        """Raise UsageError for a number of frames that the model cannot make."""
        require(
            frames == self.frames or MIN_FRAMES <= frames <= MAX_FRAMES,
            f"--video_length {frames}",
            f"{MIN_FRAMES} to {MAX_FRAMES}; {self.name} was made for {self.frames}",
        )

    def clip_settings(
        self, frames: int | None = None, height: int | None = None, width: int | None = None, **more: object
    ) -> ClipSettings:
        """Settings of training clips for this model, its own size where none is given; `more` are further
        fields. Raises UsageError for a size that it cannot have."""
        from edg.data.transforms import ClipSettings

        height = self.height if height is None else height
        width = self.width if width is None else width
        unit = self.size_multiple
        good = height > 0 and width > 0 and height % unit == 0 and width % unit == 0
        require(good, f"clips of {height}x{width}", f"multiples of {unit} for {self.name}")
        frames = self.frames if frames is None else frames
        return ClipSettings(frames, height, width, condition=self.fps_condition_type, **more)

    def with_adapter(self, on: bool = True) -> ModelSpec:
        """This model with the text adapter (or without)."""
        return replace(self, unet=replace(self.unet, temporal_selfatt_only=not on))
