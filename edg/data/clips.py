"""Training clips out of video files, any of which may be broken: what is read is a function of (seed, epoch,
index), what cannot be read is replaced, counted and listed, never fatal.

    videos = read_videos(root, csv)                               sources.py
    dataset = ClipDataset(videos, ClipSpec(16, 320, 512), seed)   readers.py, transforms.py
    DataLoader(Keyed(dataset), batch_sampler=Order(...), collate_fn=partial(collate, seed=seed))   order.py
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from edg.core.errors import BadFileError, UsageError
from edg.core.files import machine_error, write_text
from edg.core.hashing import hash_value, sha256_file, stamp
from edg.core.log import warn
from edg.core.seeding import generator
from edg.data.batches import Key
from edg.data.captions import nearby
from edg.data.readers import Backend, read_frames_at
from edg.data.sources import Video, read_csv, read_tree, read_videos
from edg.data.transforms import ClipSpec, choose_frames, fit_clip, rate_condition

__all__ = ["ClipDataset", "ClipSpec", "Skipped", "Video", "read_csv", "read_tree", "read_videos"]


class Skipped:
    """The videos that could not be used: path -> reason, each once.

    file: a .jsonl shared by the workers of a run (and by its resumed runs): whoever meets a bad video appends
    one line, unless it is there already (two in the same moment write it twice, entries() tells it once).
    None: kept by this process alone. Raises MachineError when the file cannot be written.
    """

    def __init__(self, file: str | Path | None = None):
        self.file = None if file is None else Path(file)
        self._own: dict[str, str] = {}

    def __contains__(self, path: str | Path) -> bool:
        """Whether this process met it; what others or earlier runs met is tried again."""
        return str(path) in self._own

    def reason(self, path: str | Path) -> str:
        return self._own[str(path)]

    def add(self, path: str | Path, reason: str) -> None:
        path = str(path)
        if path in self._own:
            return
        self._own[path] = reason
        if self.file is None or path in self.entries():
            return
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with self.file.open("ab+") as file:
                file.seek(-1 if file.tell() else 0, 2)
                torn = file.read(1) not in (b"", b"\n")  # half a line, of a process that was killed
                line = json.dumps({"path": path, "reason": reason}) + "\n"
                file.write(("\n" + line if torn else line).encode())
        except OSError as error:
            raise machine_error(error, self.file) or error from error

    def forget(self, paths: Sequence[str]) -> None:
        """Take out what can be used now."""
        left = {path: reason for path, reason in self.entries().items() if path not in paths}
        if self.file is not None and len(left) < len(self.entries()):
            lines = [json.dumps({"path": path, "reason": reason}) + "\n" for path, reason in left.items()]
            write_text(self.file, "".join(lines))

    def entries(self) -> dict[str, str]:
        """path -> reason, of all processes that share the file."""
        if self.file is None:
            return dict(self._own)
        try:
            lines = self.file.read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return {}
        found: dict[str, str] = {}
        for line in lines:
            try:
                entry = json.loads(line)
                found.setdefault(entry["path"], entry["reason"])
            except (ValueError, KeyError, TypeError):  # half a line
                continue
        return found


class ClipDataset(torch.utils.data.Dataset):
    """Clips of videos, one per video and epoch.

    dataset[epoch, index], or dataset[Key]: a dictionary of
      frames    float32 (3, T, H, W) in [-1, 1]
      caption   str                    path      str, of the video it really is
      fps       int, the condition (frames per second or stride, as the ClipSpec says)
      fps_true  float, frames per second of the clip, unrounded
      stride    int                    start     int, its first frame in the video
      reader    "decord" or "pyav"
      source    with `digests`: its file's size, time and hash, those of the moment when it was read
    A video that cannot be read, is too short or has trouble goes to `skipped` and another one, drawn from
    (seed, epoch, index, try), takes its place; after `tries` of them BadFileError names the first.
    reader: see open_video.
    """

    def __init__(
        self,
        videos: Sequence[Video],
        clip: ClipSpec,
        seed: int,
        skipped: Skipped | None = None,
        tries: int = 20,
        reader: Backend = "auto",
        digests: bool = False,
    ):
        if not videos:
            raise UsageError("there is no video to train on")
        self.videos, self.clip, self.seed = videos, clip, seed
        self.skipped = Skipped() if skipped is None else skipped
        self.tries, self.reader, self.digests = tries, reader, digests
        self._warned: set[str] = set()

    def __len__(self) -> int:
        return len(self.videos)

    def __getitem__(self, key: Key | tuple[int, int]) -> dict[str, Any]:
        epoch, index = key[:2]
        reasons = []
        for attempt in range(self.tries):
            video = self.videos[index if attempt == 0 else self._other(epoch, index, attempt)]
            try:
                return self._clip(video, epoch, index, attempt)
            except BadFileError as error:
                near = "" if video.trouble or video.path.exists() else nearby(video.path)
                reason = f"{error}; {near} does exist" if near else str(error)
                self.skipped.add(video.path, reason)
                reasons.append(f"{video.path.name}: {reason}")
        raise BadFileError(
            f"{len(reasons)} videos in a row cannot be used, first {'; '.join(dict.fromkeys(reasons[:3]))}",
            fix="look at the list of skipped videos" + (f" {self.skipped.file}" if self.skipped.file else ""),
        )

    def _warn(self, warnings: Sequence[str]) -> None:
        """Log what is to be known of a video, once in this process."""
        for warning in warnings:
            if warning not in self._warned:
                self._warned.add(warning)
                warn(warning)

    def _other(self, epoch: int, index: int, attempt: int) -> int:
        draws = generator(self.seed, "replacement", epoch, index, attempt)
        return int(torch.randint(len(self.videos), (1,), generator=draws))

    def usable(self, epoch: int, index: int) -> bool:
        """Whether a clip's own video can be read now, which was replaced by another one before."""
        try:
            self._clip(self.videos[index], epoch, index, 0)
        except BadFileError:
            return False
        return True

    def fingerprint(self) -> dict[str, str]:
        """What the data is, by names, captions and sizes, and by the files' times; no video is opened."""
        content, times = [], []
        for video in self.videos:
            state = stamp(video.path)
            content.append([video.path.name, video.caption, state[0][2] if state else None])
            times.append(state[0][3] if state else None)
        return {"content": hash_value(content), "times": hash_value(times)}

    def _clip(self, video: Video, epoch: int, index: int, attempt: int) -> dict[str, Any]:
        if video.path in self.skipped:
            raise BadFileError(self.skipped.reason(video.path))
        if video.trouble:
            raise BadFileError(video.trouble)

        def choose(reader):
            draws = generator(self.seed, "clip", epoch, index, attempt)
            return choose_frames(reader, self.clip, draws)

        before = stamp(video.path)
        reader, frames, chosen = read_frames_at(video.path, choose, self.reader)
        self._warn(reader.warnings)
        source = {"source": source_of(video.path)} if self.digests else {}
        if stamp(video.path) != before:
            raise BadFileError("it was changed while it was read")
        draws = generator(self.seed, "flip", epoch, index, attempt)
        mirror = self.clip.flip and bool(torch.rand(1, generator=draws) < 0.5)
        return {
            "frames": fit_clip(frames, self.clip.height, self.clip.width, mirror),
            "caption": video.caption,
            "path": str(video.path),
            "fps": rate_condition(chosen.fps * chosen.stride, chosen.stride, self.clip),
            "fps_true": chosen.fps,
            "stride": chosen.stride,
            "start": chosen.start,
            "reader": reader.name,
            **source,
        }


def source_of(path: Path) -> dict[str, Any]:
    """Size, times and hash of a file. Raises BadFileError."""
    return {**state_of(path), "sha256": sha256_file(path)}


def state_of(path: Path) -> dict[str, int]:
    """Size and times of a file, {} where it cannot be had."""
    found = stamp(path)
    return dict(zip(("size", "mtime_ns", "ctime_ns"), found[0][2:], strict=True)) if found else {}


def is_same(path: Path, source: Mapping[str, Any]) -> bool:
    """Whether a file is what `source_of` told: by size and times, where these differ by its hash. One that is
    gone cannot be told to be another."""
    now = state_of(path)
    if not now or all(now[name] == source.get(name) for name in now):
        return True
    return now["size"] == source.get("size") and sha256_file(path) == source.get("sha256")
