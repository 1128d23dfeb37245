"""The folder layout that VBench and VBench-I2V read: OUT/videos/{prompt}-{i}.mp4."""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from edg.core.errors import SomeFailedError, require
from edg.core.files import atomic_path, lock_folder, remove_leftovers, write_json
from edg.core.log import log
from edg.runner.outputs import ClipFile, find_clips

NAMES = "names.json"
LONGEST = 255 - len("-999.mp4")  # bytes of a file name


def safe_prompt(prompt: str) -> str:
    """The prompt as a file name. VBench looks for it verbatim, so only what no file system takes is replaced,
    and then a hash keeps different prompts apart."""
    name = re.sub(r"[/\x00-\x1f\x7f\ud800-\udfff]", " ", prompt)
    name = name.encode()[:LONGEST].decode(errors="ignore")
    if name == prompt:
        return name
    mark = f" {hashlib.sha256(prompt.encode(errors='replace')).hexdigest()[:8]}"
    return name.encode()[: LONGEST - len(mark)].decode(errors="ignore") + mark


def export(folder: Path, out: Path) -> None:
    """Copy the clips of a folder to OUT/videos. Raises EdgError (see `copy_clips`)."""
    find_clips(folder)  # before anything is made
    with lock_folder(out):
        remove_leftovers(out / "videos")
        log(f"{copy_clips(find_clips(folder), out)} clips in {out / 'videos'}")


def copy_clips(found: Sequence[ClipFile], out: Path) -> int:
    """Copy the clips to OUT/videos and write OUT/names.json; returns how many. i counts a prompt's clips in
    the order of their names.

    Raises UsageError when other files lie in OUT/videos, where VBench would take them for clips,
    SomeFailedError (at the end) for clips without prompt or that are no .mp4."""
    counts: dict[str, int] = {}
    clips: dict[str, ClipFile] = {}
    failed: dict[str, str] = {}
    for clip in found:
        if not clip.prompt or clip.path.suffix.lower() != ".mp4":
            failed[clip.path.name] = "is not an .mp4" if clip.prompt else "has no record with a prompt"
            continue
        prompt = safe_prompt(clip.prompt)
        clips[f"{prompt}-{counts.setdefault(prompt, 0)}.mp4"] = clip
        counts[prompt] += 1
    folder = out / "videos"
    others = sorted(p.name for p in folder.iterdir() if p.name not in clips) if folder.exists() else []
    given = f"{folder} holds {others[0]!r}, which VBench would score" if others else ""
    require(not others, given, fix="choose another folder")
    for name, clip in clips.items():
        with atomic_path(folder / name) as temporary:
            shutil.copyfile(clip.path, temporary)
    entries = {
        name: {
            "clip": str(clip.path), "prompt": clip.prompt, "seed": clip.seed,
            "image": clip.record.get("image"),
        }
        for name, clip in clips.items()
    }  # fmt: skip
    write_json(out / NAMES, entries)
    if failed:
        first = " ".join(next(iter(failed.items())))
        given = f"{len(failed)} of {len(found)} clips were not exported, first: {first}"
        raise SomeFailedError(given, failed=failed)
    return len(clips)
