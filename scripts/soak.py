"""Render many clips while faults are injected, run the command again after each, and account for every clip.

    python scripts/soak.py --clips 2000 --json soak.json

The clips come in lots, a prompt folder each. In every lot some images are bad (cut short, empty, no picture,
a folder, a header of 3,600 megapixels), and the runs meet a blank prompt, a full disk, SIGKILL, SIGTERM, and
in every fourth lot a killed rank of two. At last nothing is disturbed. Then every clip must be there, whole,
or be recorded as failed with the reason that was made for it; no file is torn, none left over. Exit code 1
where that is not so.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import struct
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]

from examine import (  # noqa: E402
    EDG,
    ROOT,
    children,
    examine,
    kill,
    leave_on_sigterm,
    run,
    start,
    write_prompts,
    write_result,
)

FULL = 4096  # bytes: no clip, no record and no contact sheet fits
BAD_EVERY = 8  # of so many images one is bad; in a small lot, one of each kind


# ---- what is wrong -----------------------------------------------------------------------------------------


def cut(image: Path) -> None:
    image.write_bytes(image.read_bytes()[:200])


def folder_instead(image: Path) -> None:
    image.unlink()
    image.mkdir()


def huge(image: Path) -> None:
    """A PNG whose header claims 60000x60000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0))
    image.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IEND", b""))


BAD: dict[str, Callable[[Path], object]] = {  # part of the reason that must be recorded -> how it comes about
    "truncated": cut,
    "is empty (0 bytes)": lambda image: image.write_bytes(b""),
    "not a supported image format": lambda image: image.write_text("<html>not found</html>"),
    "is not a file": folder_instead,
    "is too large": huge,
}


class Lot:
    """A prompt folder with `count` prompts, some of whose images are bad, and the command that renders it."""

    def __init__(self, folder: Path, count: int, draw: random.Random, ranks: bool):
        self.inputs, self.out, self.log = folder / "in", folder / "out", folder / "log"
        self.draw, self.count, self.ranks, self.faults = draw, count, ranks, Counter()
        images = write_prompts(self.inputs, count)
        victims = draw.sample(range(count), max(count // BAD_EVERY, min(count, len(BAD))))
        self.bad = {index: list(BAD)[n % len(BAD)] for n, index in enumerate(victims)}
        for index, reason in self.bad.items():
            BAD[reason](images[index])
        how = "--config sprites --ddim_steps 2 --unconditional_guidance_scale 1 --threads 1 --device cpu"
        tuned = f"tuned={ROOT}/edg/sprites/weights/tuned.safetensors"
        self.flags = [*how.split(), "--bs", "8", "--chunk", "8", "--sets", tuned]
        self.flags += ["--prompt_dir", str(self.inputs), "--savedir", str(self.out)]

    def go(self, *expected: int, **how) -> None:
        """Run the command; SystemExit when it ends in another way than expected."""
        code = run([*EDG, "sample", *self.flags], self.log, **how)
        self._need(code in expected, f"exit code {code}, not {expected}")

    def _need(self, ok: bool, what: str) -> None:
        if not ok:
            raise SystemExit(f"{what}:\n{self.log.read_text(errors='replace')[-3000:]}")

    def blank_prompt(self) -> None:
        """A blank line is refused with its number; then it is filled in."""
        file = self.inputs / "prompts.txt"
        lines = file.read_text().splitlines()
        file.write_text("\n".join(["", *lines[1:]]) + "\n")
        self.go(2)
        self._need("line 1 of" in self.log.read_text(), "the blank line was not named")
        file.write_text("\n".join(lines) + "\n")
        self.faults["blank prompt"] += 1

    def full_disk(self) -> None:
        self.go(5, largest_file=FULL)
        self._need("no room left" in self.log.read_text(), "the full disk was not named")
        self.faults["disk full"] += 1

    def signalled(self, number: int) -> None:
        """SIGKILL or SIGTERM at some moment after the first clip, or at the end of a run that was quicker."""
        process, there = start([*EDG, "sample", *self.flags], self.log), len(self._clips())
        goal = there + self.draw.randint(1, max(1, (self.count - there) // 2))
        while process.poll() is None and len(self._clips()) < goal:
            time.sleep(0.02)
        code = kill(process, number)
        self._need(code in (-9, 143, 5), f"exit code {code} after signal {number}")
        self.faults[signal.Signals(number).name] += code != 5

    def killed_rank(self) -> None:
        """Two ranks under torchrun, one is killed after the next clip, torchrun begins anew by itself."""
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
        command = [*launch, "--max-restarts=1", f"{ROOT}/scripts/infer_multi.py", *self.flags]
        process, there = start(command, self.log), len(self._clips())
        while process.poll() is None and len(self._clips()) <= there:
            time.sleep(0.02)
        for rank in children(process.pid)[:1]:
            os.kill(rank, signal.SIGKILL)
            self.faults["killed rank"] += 1
        self._need(process.wait() == 1, "torchrun did not report that clips failed")
        self._need(len(self._clips()) == self.count - len(self.bad), "the restarted ranks left clips out")

    def _clips(self) -> list[Path]:
        return list(self.out.rglob("[!.]*.mp4"))

    def render(self) -> None:
        """Everything that goes wrong, and at last a run in peace."""
        self.blank_prompt()
        self.full_disk()
        self.signalled(signal.SIGKILL)
        if self.ranks:
            self.signalled(signal.SIGTERM)
            self.killed_rank()
        self.go(5 if self.bad else 0)

    def account(self) -> dict:
        """Every clip: made, failed for its reason, or unaccounted for; what else is in the folder."""
        from edg.core.errors import EdgError
        from edg.core.files import read_json

        state, failed, made, unaccounted = examine(self.out), Counter(), 0, []
        for index in range(self.count):
            stem, reason = f"1000/{index:04d}-{index:04d}_sample0", self.bad.get(index)
            try:
                record = read_json(self.out / f"{stem}.json")
            except EdgError:
                record = {}
            whole = f"{stem}.mp4" in state.whole
            if not reason and record.get("status") == "done" and whole and record["video_frames"] == 8:
                made += 1
            elif reason and record.get("status") == "failed" and reason in record["error"] and not whole:
                failed[reason] += 1
            else:
                unaccounted.append(f"{stem}: {record.get('status')}, {record.get('error')}")
        for line in (*unaccounted, *state.torn, *state.leftovers):
            print(f"  {line}")
        return {
            "made": made, "failed": failed, "faults": self.faults, "unaccounted": len(unaccounted),
            "torn": len(state.torn), "leftovers": len(state.leftovers),
        }  # fmt: skip


def soak(clips: int, size: int, seed: int) -> dict:
    """Render `clips` clips in lots of `size`; returns the figures."""
    began, draw, total = time.monotonic(), random.Random(seed), {}
    for number, at in enumerate(range(0, clips, size)):
        with tempfile.TemporaryDirectory(prefix="edg-soak-") as folder:
            lot = Lot(Path(folder), min(size, clips - at), draw, ranks=number % 4 == 1)
            lot.render()
            found = lot.account()
        for key, value in found.items():
            total[key] = total[key] + value if key in total else value
        print(
            f"{at + lot.count} of {clips} clips: {found['made']} made in this lot, {dict(lot.faults)}",
            flush=True,
        )
    return {"clips": clips, **total, "seed": seed, "seconds": round(time.monotonic() - began, 1)}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--clips", type=int, default=2000)
    parser.add_argument("--lot", type=int, default=250, help="clips in a prompt folder (250)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the faults (0)")
    parser.add_argument("--json", metavar="FILE", help="also write the figures to this file")
    args = parser.parse_args(argv)
    found = soak(args.clips, args.lot, args.seed)
    for key, value in found.items():
        print(f"{key:<14} {dict(value) if isinstance(value, Counter) else value}")
    write_result(args.json, found)
    return int(bool(found["unaccounted"] or found["torn"] or found["leftovers"]))


if __name__ == "__main__":
    leave_on_sigterm()
    sys.exit(main())
