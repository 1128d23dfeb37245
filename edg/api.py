"""The Python interface: `load(model).animate(image, prompt)` makes the same clip as `edg sample`.

Every option of `edg sample` can be given by name, to `load` for all clips or to `animate` for one.
"""

from __future__ import annotations

import base64
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from edg import systems
from edg.core.colour import to_rgb
from edg.core.dist import World
from edg.core.errors import EdgError, UsageError, require
from edg.core.formats import FORMATS, write_clip
from edg.core.log import warn
from edg.core.options import names
from edg.core.paths import file_stem, user_path
from edg.core.video import write_image
from edg.data.prompts import Pair
from edg.runner.clip_folder import record_of, warnings_of, with_contents
from edg.runner.config import PARTS, SampleConfig, completed
from edg.runner.outputs import tags
from edg.runner.prepare import check_bases, identified, prepare
from edg.runner.progress import Meter
from edg.runner.sample import Show, Watcher
from edg.systems.base import System

FOLDERS = (
    "prompt_dir", "follow_links", "savedir", "n_samples", "format", "preview", "overwrite", "chunk", "bs",
)  # fmt: skip
LOST_IN_PNG = {"gamma", "chromaticity"}  # Pillow keeps a profile, but not these
PNG_MODES = ("1", "L", "LA", "I;16", "P", "RGB", "RGBA")
SMALL = 1_000_000  # pixels of a clip that a notebook shows exactly
SHOWN = 192  # pixels that a small clip is enlarged to, there


def load(model: str = systems.DEFAULT_MODEL, **how: Any) -> Model:
    """A model by name or YAML file; its weights are read when the first clip is made.

    how: any option of `edg sample`, such as device, dtype, steps, guidance, or the files of the parameters
    (those of the default model come with the package). Raises EdgError.
    """
    return Model(model, how)


class Model:
    """The model that `load` returns. It keeps one network in memory, and uses it again for the next clip if
    the parameters are the same."""

    def __init__(self, name: str | None, options: Mapping[str, Any], kept: dict[str, Any] | None = None):
        """name: None for the model that the weights tell. kept: of another model, whose network makes room
        for this one's and the other way round."""
        self.name, self.options = name, dict(options)
        self._kept: dict[str, Any] = {} if kept is None else kept
        self._images = tempfile.TemporaryDirectory(prefix="edg-")
        self._config({})  # a misspelt option is an error now

    def __repr__(self) -> str:
        return f"Model({self.name!r}, {', '.join(f'{k}={v!r}' for k, v in self.options.items())})"

    @property
    def _system(self) -> System:
        return systems.of(self.options.get("system"), self.name)

    def _config(self, options: Mapping[str, Any]) -> SampleConfig:
        """The settings of a clip with these options over the model's. Raises UsageError."""
        system = self._system
        own, clip = (_by_field(system, {"config": self.name, **self.options}), _by_field(system, options))
        return SampleConfig.from_values(completed(self.name, {**own, **clip}, own))

    def animate(
        self,
        image: Any = None,
        prompt: str = "",
        *,
        last: Any = None,
        id: str | None = None,
        progress: Callable[..., None] | None = None,
        watch: Show | None = None,
        **options: Any,
    ) -> Video:
        """A clip of an image: a path, a PIL image or uint8 (H, W, 3). last: the image of the last frame.

        options: motion and hold (0..1), T, seed, steps, guidance, frames, size, fit, loop, and the others of
        `edg sample`. id: the clip's name there, on which its noise depends (`0000-NAME_sample0` for an image
        of that name). progress: called with (phase, done, total, request=, share=) at every step instead of a
        line on stderr; an exception from it stops the clip. watch: called a few times with (request, label,
        frames), the clip as predicted so far. Raises EdgError.
        """
        implied = {} if last is None else self._system.implied.get("last_image", {})
        config = self._config({**options, **implied})
        require(
            isinstance(prompt, str), f"a prompt that is {type(prompt).__name__}", "text, which may be empty"
        )
        first = None if image is None else self._path(image, "image")
        pair = Pair(0, prompt, first, None if last is None else self._path(last, "last"))
        job = prepare(config, World(), [pair], note=lambda text: None)
        if id is not None:
            job.requests[0] = replace(job.requests[0], id=file_stem(id, "id"))
        request = with_contents(job.requests[0])
        check_bases(job.parameters)
        identities, origins = identified(job.parameters)
        meter = Meter(quiet=progress is not None)
        meter.loading()
        try:
            network = job.load(identities, self._kept)
            meter.begin(0, [request.id])
            (result,) = job.system.part("generate")(network, [request], Watcher(progress or meter, watch))
        finally:
            meter.close()
        if result.frames is None:
            raise EdgError(result.error)
        folder = job.folder(identities, World(), origins)
        record = record_of(folder, request, "done", folder.settings(request))
        record |= {"command": ["edg", "sample", *config.arguments()]}
        record |= {"warnings": warnings_of(result), "info": dict(result.info)}
        for warning in record["warnings"] if progress is None else ():
            warn(warning)
        return Video(result.frames, record)

    def _path(self, image: Any, name: str) -> Path:
        """The image as a file. Raises UsageError for what is no image."""
        if isinstance(image, str | Path):
            return Path(user_path(image, name))
        if not isinstance(image, np.ndarray):
            if not hasattr(image, "convert"):
                given = f"an image that is {type(image).__name__}"
                raise UsageError(given, expected="a path, a PIL image or an array")
            from PIL import ImageOps

            path = Path(self._images.name) / f"{name}.png"
            image = ImageOps.exif_transpose(image)
            kept = image.mode in PNG_MODES and not LOST_IN_PNG & image.info.keys()
            (image if kept else to_rgb(image)).save(path)  # the rest: `read_image`
            return path
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
            raise UsageError(f"an image of {image.dtype} {image.shape}", expected="uint8 (height, width, 3)")
        write_image(path := Path(self._images.name) / f"{name}.png", image)
        return path


def _by_field(system: System, options: Mapping[str, Any]) -> dict[str, Any]:
    """Options by field name. Raises UsageError for one that a single clip does not have."""
    kinds = (*PARTS.values(), system.part("options"))
    fields = {name: field for kind in kinds for name, field in names(kind).items()}
    found = {fields.get(name.replace("-", "_"), name): value for name, value in options.items()}
    for name in found:
        require(name not in FOLDERS, f"{name} is not an option of a clip", fix="see edg sample --help")
    return found


@dataclass(frozen=True)
class Video:
    """A clip. frames: uint8 (T, H, W, 3). record: everything needed to make it again, as `edg sample` writes
    it; record["settings"] determines the pixels."""

    frames: np.ndarray
    record: Mapping[str, Any]

    def save(self, path: str | Path, *, fps: float | None = None, crf: int | None = None) -> Path:
        """Write it in the format of the name's extension: .mp4, .mov, .gif, .webp, or without an extension a
        folder of png frames, with the settings inside. Returns the path. Raises UsageError, MachineError."""
        path = Path(user_path(path, "a clip's path"))
        format = path.suffix.lower().removeprefix(".") or "png"
        if not path.name or format not in FORMATS or (format == "png" and path.suffix):
            raise UsageError(
                f"a clip as {str(path)!r}",
                expected="a name that ends in .mp4, .mov, .gif or .webp, or has no extension (png frames)",
            )
        settings = {**self.record["settings"]}
        settings |= {name: value for name, value in (("fps", fps), ("crf", crf)) if value is not None}
        write_clip(path, self.frames, format, fps=settings["fps"], crf=settings["crf"], tags=tags(settings))
        return path

    def __repr__(self) -> str:
        settings, (count, height, width, _) = self.record["settings"], self.frames.shape
        return f"Video({settings['prompt']!r}, {count} frames of {height}x{width}, seed {settings['seed']})"

    def _repr_html_(self) -> str:
        """The clip playing, in a notebook: exactly where it is small, else as mp4."""
        width = self.frames.shape[2]
        enlarged = width * max(1, SHOWN // width)
        style = f'width="{enlarged}" style="image-rendering: {"pixelated" if enlarged > width else "auto"}"'
        exact = self.frames[..., 0].size <= SMALL
        with tempfile.TemporaryDirectory() as folder:
            path = self.save(Path(folder) / ("x.webp" if exact else "x.mp4"))
            data = base64.b64encode(path.read_bytes()).decode()
        if exact:
            return f'<img src="data:image/webp;base64,{data}" {style}>'
        return f'<video src="data:video/mp4;base64,{data}" {style} autoplay loop muted controls></video>'
