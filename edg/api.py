"""From Python: `load(model).animate(image, prompt)` is a clip, the same that `edg sample` makes.

Whatever `edg sample` takes as a flag can be given by its name, to `load` for all clips or to `animate` for
one.
"""

from __future__ import annotations

import base64
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from edg.cli.main import parser_of
from edg.core.colour import to_rgb
from edg.core.dist import World
from edg.core.errors import EdgError, UsageError, nearest
from edg.core.formats import FORMATS, write_clip
from edg.core.log import warn
from edg.core.paths import file_stem, user_path
from edg.core.video import write_image
from edg.data.prompts import Pair
from edg.runner.outputs import tags
from edg.runner.prepare import check_bases, identified, prepare, preview_decoder
from edg.runner.progress import Meter
from edg.runner.sample import record_of, warnings_of, with_bytes
from edg.systems.base import Progress, Watch

FLAGS = {
    "steps": "ddim_steps", "guidance": "unconditional_guidance_scale", "frames": "video_length",
    "spec": "config", "dyn": "dynamic_path", "con": "consistency_path",
}  # fmt: skip
#: What run.sh makes of the embedded model: docs/sprites.md found it best.
SPRITES = {"recipe": "edg_temporal_conv", "T": 300, "guidance": 1.0}
DIALS = ("motion", "hold")
RECIPES = ("recipe", "T")  # what a dial chooses where nobody else did
FOLDERS = (
    "prompt_dir", "follow_links", "savedir", "n_samples", "format", "preview", "overwrite", "chunk", "bs",
)  # fmt: skip
LOST_IN_PNG = {"gamma", "chromaticity"}  # Pillow keeps a profile, but not these
PNG_MODES = ("1", "L", "LA", "I;16", "P", "RGB", "RGBA")
SMALL = 1_000_000  # pixels of a clip that a notebook shows exactly
SHOWN = 192  # pixels that a small clip is enlarged to, there


def load(model: str = "sprites", **how: Any) -> Model:
    """A model by name or YAML file; its weights are read when the first clip is made.

    how: dyn=PATH and con=PATH, or base=PATH, tuned=PATH and recipe=NAME (`sprites` has all of these), device,
    dtype, and any flag of `edg sample`. Raises EdgError.
    """
    return Model(model, how, defaults=SPRITES if model == "sprites" and not _files(how) else {})


def _files(how: Mapping[str, Any]) -> bool:
    return any(name in how for name in ("dyn", "con", "sets", "dynamic_path", "consistency_path", "recipe"))


class Model:
    """What `load` gives. One network is in memory, kept from clip to clip while the parameter sets stay."""

    def __init__(
        self,
        name: str | None,
        flags: Mapping[str, Any],
        kept: dict[str, Any] | None = None,
        defaults: Mapping[str, Any] = MappingProxyType({}),
    ):
        """name: None where the weights tell it. kept: of another model, whose network makes room for this
        one's and the other way round. defaults: flags where none are given; a dial takes their place."""
        self.name, self.flags = name, {**defaults, **flags}
        self._chosen_by_dials = [name for name in RECIPES if name not in flags]
        self._kept: dict[str, Any] = {} if kept is None else kept
        self._images = tempfile.TemporaryDirectory(prefix="edg-")
        _arguments({"spec": name, **self.flags})  # a misspelt flag is told now

    def __repr__(self) -> str:
        return f"Model({self.name!r}, {', '.join(f'{k}={v!r}' for k, v in self.flags.items())})"

    def animate(
        self,
        image: Any,
        prompt: str = "",
        *,
        last: Any = None,
        id: str | None = None,
        progress: Progress | None = None,
        watch: Watch | None = None,
        **flags: Any,
    ) -> Video:
        """A clip of an image: a path, a PIL image or uint8 (H, W, 3). last: that of the last frame.

        flags: motion and hold (0..1), T, seed, steps, guidance, frames, size, fit, loop, and the others of
        `edg sample`. id: the clip's name there, of which its noise is drawn (`0000-NAME_sample0` for an image
        of that name). progress: told of every step instead of a line on stderr; what it raises ends the clip
        there. watch: told a few times what the clip will look like. Raises EdgError.
        """
        if any(flags.get(word) is not None for word in DIALS):
            own = {name: v for name, v in self.flags.items() if name not in self._chosen_by_dials}
        else:
            own = self.flags
        interp = {} if last is None else {"interp": True}
        args, command = _arguments({"spec": self.name, **own, **flags, **interp})
        if not isinstance(prompt, str):
            raise UsageError(
                f"a prompt that is {type(prompt).__name__}", expected="a text, which may be empty"
            )
        first, last = self._path(image, "image"), None if last is None else self._path(last, "last")
        ready = prepare(args, World(), [Pair(0, prompt, first, last)], aloud=False)
        if id is not None:
            ready.requests[0] = replace(ready.requests[0], id=file_stem(id, "id"))
        request = with_bytes(ready.requests[0])
        check_bases(ready.sets)
        identities, origins = identified(ready.sets)
        meter = Meter(quiet=progress is not None)
        meter.loading()
        try:
            network = ready.load(identities, self._kept, aloud=False)
            meter.begin(0, [request.id])
            shown = {"watch": watch, "preview_decoder": preview_decoder(args)} if watch else {}
            result = next(iter(ready.system.generate(network, [request], progress or meter, **shown)))
        finally:
            meter.close()
        if result.frames is None:
            raise EdgError(result.error)
        job = ready.run(identities, World(), origins)
        record = record_of(job, request, "done", job.settings(request)) | {"command": command}
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
            raise UsageError(f"an array of {image.dtype} {image.shape}", expected="uint8 (height, width, 3)")
        write_image(path := Path(self._images.name) / f"{name}.png", image)
        return path


def _arguments(flags: Mapping[str, Any]) -> tuple[Any, list[str]]:
    """(parsed flags of `edg sample`, the command line). None stands for the default, as if not given."""
    parser = parser_of("sample")
    known = {action.dest: action for action in parser._actions if action.dest not in FOLDERS}
    command = []
    for name, value in flags.items():
        dest = FLAGS.get(name, name)
        if dest not in known:
            names = [*known, *FLAGS]
            near = nearest(name, names)
            raise UsageError(f"{name} is no flag of a clip", fix=near or "see edg sample --help")
        if value is None or (value is False and known[dest].nargs == 0):
            continue
        if isinstance(value, list | tuple):
            command += [f"--{dest}", *map(str, value)]
        else:
            text = str(int(value)) if isinstance(value, bool) else str(value)
            command.append(f"--{dest}" if known[dest].nargs == 0 else f"--{dest}={text}")
    return parser.parse_args(command), ["edg", "sample", *command]


@dataclass(frozen=True)
class Video:
    """A clip. frames: uint8 (T, H, W, 3). record: everything needed to make it again, as `edg sample` writes
    it; record["settings"] decides the pixels."""

    frames: np.ndarray
    record: Mapping[str, Any]

    def save(self, path: str | Path, *, fps: float | None = None, crf: int | None = None) -> Path:
        """Write it as the name says: .mp4, .mov, .gif, .webp, or without an ending a folder of png frames;
        the settings go inside. Returns the path. Raises UsageError, MachineError."""
        path = Path(user_path(path, "a clip's path"))
        format = path.suffix.lower().removeprefix(".") or "png"
        if not path.name or format not in FORMATS or (format == "png" and path.suffix):
            raise UsageError(
                f"a clip as {str(path)!r}",
                expected="a name that ends in .mp4, .mov, .gif or .webp, or in nothing (png frames)",
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
