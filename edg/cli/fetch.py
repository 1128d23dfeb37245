"""`edg fetch`: the published files, downloaded (resumably) to where run.sh looks for them."""

from __future__ import annotations

import argparse
import os
import shutil
import threading
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from edg.core.errors import BadFileError, EdgError, MachineError, UsageError, nearest
from edg.core.files import checkpoints
from edg.systems import all_systems
from edg.systems.base import RemoteFile

PATIENCE = 2.5  # seconds to find out that there is no network


def published() -> dict[str, RemoteFile]:
    """The published files of all systems by name."""
    return {
        name: file
        for system in all_systems()
        if system.files is not None
        for name, file in system.part("files").items()
    }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("names", nargs="+", metavar="NAME", help=", ".join(published()))
    parser.add_argument("--dry-run", action="store_true", help="only print what would be downloaded")


def fetch(args: argparse.Namespace) -> int:
    """Run `edg fetch`. Raises UsageError for an unknown name, MachineError without a network or room."""
    for name in args.names:
        if name not in published():
            raise UsageError(
                f"no download is called {name!r}",
                expected=", ".join(published()),
                fix=nearest(name, published()),
            )
    sources = []
    for source in (published()[name] for name in dict.fromkeys(args.names)):
        if is_complete(source):
            print(f"{source.repo}/{source.file}: already complete ({source.path})")
        else:
            sources.append(source)
    if not sources:
        return 0
    need_network(sources)
    sizes = [remaining_bytes(source) for source in sources]
    for source, size in zip(sources, sizes, strict=True):
        print(f"{source.repo}/{source.file} -> {source.path}: {describe(size)}")
    print(f"to download: {sum(sizes) / 1e9:.2f} GB into {checkpoints()}", flush=True)
    need_room(sum(sizes))
    if not args.dry_run:
        for source, size in zip(sources, sizes, strict=True):
            if size:
                _download(source)
    return 0


def is_complete(source: RemoteFile) -> bool:
    """True if the file is there and opens: its directory and all that it names. Needs no network."""
    from edg.weights.store import open_weights

    try:
        open_weights(source.path)
    except BadFileError:
        return False
    return True


def describe(size: int) -> str:
    if not size:
        return "already complete"
    return f"{size / 1e9:.2f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"


def need_network(sources: Sequence[RemoteFile]) -> None:
    """Raise MachineError, which tells where `sources` come from and belong, when the hub does not answer soon
    (its own client tries for 20 seconds and more)."""
    endpoint = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON"):
        raise _offline(endpoint, "HF_HUB_OFFLINE is set", sources)
    answer: list[str] = []
    asking = threading.Thread(target=lambda: answer.append(_ask(endpoint)), daemon=True)
    asking.start()
    asking.join(PATIENCE)
    if not answer or answer[0]:
        raise _offline(endpoint, answer[0] if answer else f"no answer in {PATIENCE} seconds", sources)


def _ask(endpoint: str) -> str:
    """Why `endpoint` cannot be reached, "" when it can."""
    try:
        request = urllib.request.Request(endpoint, method="HEAD", headers={"User-Agent": "edg"})
        urllib.request.urlopen(request, timeout=PATIENCE).close()
    except urllib.error.HTTPError:
        return ""  # it answered
    except (OSError, ValueError) as error:
        return str(getattr(error, "reason", error))
    return ""


def _offline(endpoint: str, reason: str, sources: Sequence[RemoteFile]) -> MachineError:
    places = ", ".join(f"{endpoint}/{source.repo}: {source.file} to {source.path}" for source in sources)
    return MachineError(
        f"cannot reach {endpoint} ({reason})",
        fix=f"download the files on a machine with network access and copy them ({places})",
    )


def remaining_bytes(source: RemoteFile) -> int:
    """Bytes of a file that are left to download. Raises MachineError when the hub refuses."""
    from huggingface_hub import hf_hub_download

    try:
        plan = hf_hub_download(source.repo, source.file, local_dir=source.path.parent, dry_run=True)
    except Exception as error:  # the hub's client has many kinds
        raise _refused(source, error) from error
    return (plan.file_size or 0) if plan.will_download else 0


def _download(source: RemoteFile) -> None:
    from huggingface_hub import hf_hub_download

    try:
        source.path.parent.mkdir(parents=True, exist_ok=True)
        hf_hub_download(source.repo, source.file, local_dir=source.path.parent)
    except Exception as error:
        raise _refused(source, error) from error
    print(f"complete: {source.path}", flush=True)


def _refused(source: RemoteFile, error: Exception) -> EdgError:
    reason = next(iter(str(error).splitlines()), type(error).__name__)
    return MachineError(
        f"cannot fetch {source.repo}/{source.file}: {reason}", fix="run the same command again to resume"
    )


def need_room(size: int) -> None:
    """Raise MachineError when the disk under CKPT_PATH has no room for `size` bytes."""
    free = free_bytes(checkpoints())
    if size > free:
        raise MachineError(
            f"{size / 1e9:.1f} GB to download and {free / 1e9:.1f} GB free under {checkpoints()}",
            fix="set CKPT_PATH to a folder on a larger disk",
        )


def free_bytes(folder: Path) -> int:
    """Free bytes on the disk that `folder` is or would be on."""
    folder = folder.resolve()
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def present() -> dict[str, Path]:
    """Published files that are under CKPT_PATH, by name."""
    return {name: source.path for name, source in published().items() if source.path.exists()}
