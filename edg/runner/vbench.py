"""The folder layout that VBench and VBench-I2V read: OUT/videos/{prompt}-{i}.mp4."""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from edg.core.errors import SomeFailedError, UsageError
from edg.core.files import atomic_path, write_json
from edg.runner.outputs import ClipFile

NAMES = "names.json"
LONGEST = 255 - len("-999.mp4")  # bytes that a file system takes


def safe_prompt(prompt: str) -> str:
    """The prompt as a file's name: VBench looks for it verbatim, so only what no file system takes is
    changed, and then a hash keeps different prompts apart."""
    name = re.sub(r"[/\x00-\x1f\x7f\ud800-\udfff]", " ", prompt)
    name = name.encode()[:LONGEST].decode(errors="ignore")
    if name == prompt:
        return name
    mark = f" {hashlib.sha256(prompt.encode(errors='replace')).hexdigest()[:8]}"
    return name.encode()[: LONGEST - len(mark)].decode(errors="ignore") + mark


def export(found: Sequence[ClipFile], out: Path) -> dict[str, str]:
    """Copy the clips to OUT/videos and write OUT/names.json; returns exported name -> clip. i counts a
    prompt's clips in the order of their names.

    Raises UsageError when other files lie in OUT/videos, where VBench would take them for clips,
    SomeFailedError (at the end) for clips without prompt or that are no .mp4."""
    counts: dict[str, int] = {}
    named: dict[str, ClipFile] = {}
    failed: dict[str, str] = {}
    for clip in found:
        if not clip.prompt or clip.path.suffix.lower() != ".mp4":
            failed[clip.path.name] = "is no .mp4" if clip.prompt else "has no record with a prompt"
            continue
        prompt = safe_prompt(clip.prompt)
        named[f"{prompt}-{counts.setdefault(prompt, 0)}.mp4"] = clip
        counts[prompt] += 1
    folder = out / "videos"
    strangers = sorted(p.name for p in folder.iterdir() if p.name not in named) if folder.exists() else []
    if strangers:
        raise UsageError(
            f"{folder} holds {strangers[0]!r}, which VBench would score", fix="choose another folder"
        )
    for name, clip in named.items():
        with atomic_path(folder / name) as temporary:
            shutil.copyfile(clip.path, temporary)
    entries = {
        name: {
            "clip": str(clip.path),
            "prompt": clip.prompt,
            "seed": clip.seed,
            "image": clip.record.get("image"),
        }
        for name, clip in named.items()
    }
    write_json(out / NAMES, entries)
    if failed:
        first = " ".join(next(iter(failed.items())))
        told = f"{len(failed)} of {len(found)} clips were not exported, first: {first}"
        raise SomeFailedError(told, failed=failed)
    return {name: str(clip.path) for name, clip in named.items()}
