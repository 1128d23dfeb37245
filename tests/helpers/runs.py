"""What the cases of disk, processes and runs share: prompt folders, the command here or as a process."""

import os
import resource
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

from edg.cli.main import main
from edg.sprites import WEIGHTS

ROOT = Path(__file__).parents[2]
PICTURES = sorted((ROOT / "prompts" / "sprites").glob("*.png"))
TUNED = WEIGHTS / "tuned.safetensors"
FAST = ["--ddim_steps", "2", "--unconditional_guidance_scale", "1", "--threads", "1", "--device", "cpu"]


def prompt_folder(folder, *prompts):
    """One embedded picture for each prompt."""
    folder.mkdir(parents=True)
    for index, _ in enumerate(prompts):
        shutil.copyfile(PICTURES[index % len(PICTURES)], folder / f"{index}.png")
    (folder / "prompts.txt").write_text("\n".join(prompts), encoding="utf-8")
    return folder


def sampling(folder, out, *flags, sets=(f"tuned={TUNED}",)):
    """Arguments of a quick `edg sample` of one parameter set (other `sets`: NAME=FILE)."""
    where = ["--prompt_dir", str(folder), "--savedir", str(out), "--sets", *map(str, sets)]
    return ["sample", "--config", "sprites", *where, *FAST, *map(str, flags)]


def given_of(err):
    """The first part of the error line of a command: what it was given."""
    return err.rpartition("edg: error: ")[2].partition("\n")[0].partition("; ")[0]


def edg(capsys, *argv):
    """(exit code, what it told on stderr) of `edg ARGV` in this process."""
    capsys.readouterr()
    code = main(list(map(str, argv)))
    return code, capsys.readouterr().err


def spawn(*argv, launcher=(), **environment):
    """`edg ARGV` (or what `launcher` starts) as a process of its own."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **environment}
    command = [sys.executable, *(launcher or ("-m", "edg")), *map(str, argv)]
    return subprocess.Popen(command, cwd=ROOT, env=env, stderr=subprocess.PIPE, text=True)


@contextmanager
def largest_file(size):
    """Every write beyond `size` bytes of a file fails, as it does on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def clips(out):
    """Name -> bytes of the clips in a results folder."""
    return {path.name: path.read_bytes() for path in sorted(Path(out).rglob("[!.]*.mp4"))}


def leftovers(folder):
    return [path.name for path in Path(folder).rglob("*") if "edg-tmp" in path.name]
