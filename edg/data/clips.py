"""Training clips out of video files, any of which may be broken.

A clip is a function of (seed, epoch, index). A video that cannot be read is listed, and replaced by another.

    videos = read_videos(root, csv)                                      sources.py
    dataset = ClipDataset(videos, ClipSettings(16, 320, 512), seed)      readers.py, transforms.py
    DataLoader(KeyedDataset(dataset), batch_sampler=ResumableBatchSampler(...), ...)      batches.py
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from edg.core.errors import BadFileError, UsageError
from edg.core.files import machine_error, write_text
from edg.core.hashing import hash_value, sha256_file, stamp
from edg.core.log import warn
from edg.core.seeding import generator
from edg.data.batches import Key, Sample
from edg.data.captions import nearby
from edg.data.readers import Backend, Reader, read_frames_at
from edg.data.sources import CaptionedVideo, read_csv, read_tree, read_videos
from edg.data.transforms import ClipSettings, FrameChoice, choose_frames, fit_clip, rate_condition

__all__ = [
    "CaptionedVideo",
    "ClipDataset",
    "ClipSettings",
    "SkippedVideos",
    "read_csv",
    "read_tree",
    "read_videos",
]


class SkippedVideos:
    """List of the videos that could not be used: path -> reason, each once.

    file: a .jsonl shared by the workers of a run (and by its resumed runs); a bad video is appended as a line
    unless it is there already (two processes may write it twice, `entries` has it once). None: the list is
    this process's alone. Raises MachineError when the file cannot be written.
    """

    def __init__(self, file: str | Path | None = None):
        self.file = None if file is None else Path(file)
        self._own: dict[str, str] = {}

    def __contains__(self, path: str | Path) -> bool:
        """True if this process met it; videos that others or earlier runs met are tried again."""
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
                torn = file.read(1) not in (b"", b"\n")  # half a line, from a process that was killed
                line = json.dumps({"path": path, "reason": reason}) + "\n"
                file.write(("\n" + line if torn else line).encode())
        except OSError as error:
            raise machine_error(error, self.file) or error from error

    def forget(self, paths: Sequence[str]) -> None:
        """Remove videos that can be used now."""
        left = {path: reason for path, reason in self.entries().items() if path not in paths}
        if self.file is not None and len(left) < len(self.entries()):
            lines = [json.dumps({"path": path, "reason": reason}) + "\n" for path, reason in left.items()]
            write_text(self.file, "".join(lines))

    def entries(self) -> dict[str, str]:
        """All entries, path -> reason, of every process that shares the file."""
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
      caption   str
      path      str, of the video that was read
      fps       int, the condition (frames per second or stride, see ClipSettings.condition)
      fps_true  float, frames per second of the clip, unrounded
      stride    int, distance of its frames in the video
      start     int, its first frame in the video
      reader    "decord" or "pyav"
      source    with `digests`: size, times and hash of the file at the moment it was read
    A video that cannot be read, is too short or has trouble goes to `skipped` and another one, drawn from
    (seed, epoch, index, attempt), takes its place; after `tries` of them BadFileError names the first.
    reader: see open_video.
    """

    def __init__(
        self,
        videos: Sequence[CaptionedVideo],
        clip: ClipSettings,
        seed: int,
        skipped: SkippedVideos | None = None,
        tries: int = 20,
        reader: Backend = "auto",
        digests: bool = False,
    ):
        if not videos:
            raise UsageError("there are no videos to train on")
        self.videos, self.clip, self.seed = videos, clip, seed
        self.skipped = SkippedVideos() if skipped is None else skipped
        self.tries, self.reader, self.digests = tries, reader, digests
        self._warned: set[str] = set()

    def __len__(self) -> int:
        return len(self.videos)

    def __getitem__(self, key: Key | tuple[int, int]) -> Sample:
        epoch, index = key[:2]
        reasons = []
        for attempt in range(self.tries):
            video = self.videos[index if attempt == 0 else self._other(epoch, index, attempt)]
            try:
                return self._clip(video, epoch, index, attempt)
            except BadFileError as error:
                near = "" if video.trouble or video.path.exists() else nearby(video.path)
                reason = f"{error}; {near} exists" if near else str(error)
                self.skipped.add(video.path, reason)
                reasons.append(f"{video.path.name}: {reason}")
        raise BadFileError(
            f"{len(reasons)} videos in a row cannot be used, first {'; '.join(dict.fromkeys(reasons[:3]))}",
            fix="see the list of skipped videos" + (f", {self.skipped.file}" if self.skipped.file else ""),
        )

    def _warn(self, warnings: Sequence[str]) -> None:
        """Log the warnings about a video, each once in this process."""
        for warning in warnings:
            if warning not in self._warned:
                self._warned.add(warning)
                warn(warning)

    def _other(self, epoch: int, index: int, attempt: int) -> int:
        draws = generator(self.seed, "replacement", epoch, index, attempt)
        return int(torch.randint(len(self.videos), (1,), generator=draws))

    def usable(self, epoch: int, index: int) -> bool:
        """True if the clip's own video, which was replaced by another one before, can be read now."""
        try:
            self._clip(self.videos[index], epoch, index, 0)
        except BadFileError:
            return False
        return True

    def fingerprint(self) -> dict[str, str]:
        """Hashes of the videos' names, captions and sizes, and of their times; no video is opened."""
        content, times = [], []
        for video in self.videos:
            state = stamp(video.path)
            content.append([video.path.name, video.caption, state[0][2] if state else None])
            times.append(state[0][3] if state else None)
        return {"content": hash_value(content), "times": hash_value(times)}

    def _clip(self, video: CaptionedVideo, epoch: int, index: int, attempt: int) -> Sample:
        if video.path in self.skipped:
            raise BadFileError(self.skipped.reason(video.path))
        if video.trouble:
            raise BadFileError(video.trouble)

        def choose(reader: Reader) -> FrameChoice:
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


def source_of(path: Path) -> dict[str, int | str]:
    """Size, times and SHA-256 of a file. Raises BadFileError."""
    return {**state_of(path), "sha256": sha256_file(path)}


def state_of(path: Path) -> dict[str, int]:
    """Size and times of a file, {} if it cannot be read."""
    found = stamp(path)
    return dict(zip(("size", "mtime_ns", "ctime_ns"), found[0][2:], strict=True)) if found else {}


def is_same(path: Path, source: Mapping[str, object]) -> bool:
    """True if a file is the one that `source_of` described: by size and times, else by its hash. A file that
    is gone counts as the same."""
    now = state_of(path)
    if not now or all(now[name] == source.get(name) for name in now):
        return True
    return now["size"] == source.get("size") and sha256_file(path) == source.get("sha256")
