"""The sentences of each command: its help and its answers to typical mistakes, compared with golden files.

pytest tests/test_golden.py --rewrite-golden       # then read the difference
"""

import re
import sys
from pathlib import Path

import numpy as np
import pytest

from edg.cli.main import COMMANDS, main
from edg.core.video import write_image
from edg.sprites import WEIGHTS

ROOT = Path(__file__).parents[1]
GOLDEN = Path(__file__).parent / "golden"
BASE, TUNED = WEIGHTS / "base.safetensors", WEIGHTS / "tuned.safetensors"
SPRITES = f"--config sprites --sets base={BASE} --device cpu"
PAIR = f"--dynamic_path {BASE} --consistency_path {TUNED} --prompt_dir prompts --savedir out --device cpu"
ENCODE = f"--spec sprites --weights {BASE} --data nowhere --out out"
# Command -> what is typed after it, beside --help; the files that are named are those of `folder`.
TYPED = {
    "edg": ["", "smaple", "sample --no-such-flag"],
    "sample": [
        f"sample {SPRITES} --prompt_dir prompts --savedir out --ddim_steps 2",
        f"sample {SPRITES} --prompt_dir prompts --savedir out --ddim_steps 2",
        f"sample {SPRITES} --prompt_dir prompts --savedir out --ddim_steps 3",
        f"sample {SPRITES} --prompt_dir broken --savedir broken-out",
        f"sample {SPRITES} --prompt_dir nowhere",
        f"sample {SPRITES} --ddim_step 3",
        f"sample {SPRITES} --ddim_steps 0",
        f"sample {SPRITES} --height 33",
        f"sample {SPRITES} --frames 7",
        f"sample {SPRITES} --fps nan",
        f"sample {SPRITES} --format mp4,giff",
        f"sample {SPRITES} --dtype fp8",
        f"sample {SPRITES} --loop --interp",
        f"sample {SPRITES} --size auto --height 32",
        f"sample {SPRITES} --cfg_img 3 --multiple_cond_cfg 0",
        f"sample {PAIR} --T 1001",
        f"sample {PAIR} --M 1",
        f"sample {PAIR} --T 3 --switch_at 700",
        f"sample {PAIR} --motion 0.5",
        "sample --config dynamicrafter-51",
        "sample --system egd",
        "sample --motion 1.5",
        "sample --hold 0.5 --T 300",
        "sample --recipe edgg",
        "sample --strength dyn.alhpa=1",
        "sample --sets a=none.pt --config sprites",
    ],
    "merge": [
        "merge tise",
        "merge edg",
        f"merge edg --base {BASE} --tuned none.pt --out out",
        f"merge edg --base {BASE} --tuned page.ckpt --out out",
        "merge key.yaml",
        "merge alpha.yaml",
        "merge code.yaml",
    ],
    "sweep": ["sweep", "sweep none.yaml", "sweep sweep.yaml", "sweep key.yaml"],
    "train": [
        "train",
        "train none.yaml",
        f"train {ROOT}/configs/train/sprites.yaml train.stepss=3",
        f"train {ROOT}/configs/train/sprites.yaml train.lr=.inf",
    ],
    "info": ["info", "info none.pt", "info page.ckpt", "info empty.ckpt", "info pointer.ckpt"],
    "report": ["report", "report nowhere", "report nothing"],
    "export": ["export", "export page.ckpt out.safetensors"],
    "score": ["score", "score nothing", "score . --metrics motion_degre"],
    "fetch": ["fetch cil512"],
    "doctor": [
        "doctor --plan sprites --device foo",
        "doctor --plan dynamicrafter-512 --device cpu --height 300",
    ],
    "verify": ["verify nowhere"],
    "encode": ["encode", f"encode {ENCODE}", f"encode {ENCODE} --frames 0"],
    "analytic-init": ["analytic-init", "analytic-init --spec sprites --data nowhere --out out.pt"],
    "completion": ["completion", "completion tcsh"],
    "demo": ["demo --port 99999999"],
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working directory, with good and broken inputs."""
    for name in ("prompts", "broken"):
        for index in range(2):
            write_image(tmp_path / name / f"{index}.png", np.full((8, 8, 3), 60 * index + 40, np.uint8))
        (tmp_path / name / "prompts.txt").write_text("a red circle moves left\na blue square moves up\n")
    (tmp_path / "broken/0.png").write_bytes(b"no picture")
    (tmp_path / "nothing").mkdir()
    (tmp_path / "empty.ckpt").touch()
    (tmp_path / "page.ckpt").write_text("<!DOCTYPE html>\n<html><body>Not found</body></html>")
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 10400000000\n"
    (tmp_path / "pointer.ckpt").write_text(pointer)
    inputs = f"inputs: {{base: {BASE}, tuned: {TUNED}}}\n"
    (tmp_path / "key.yaml").write_text(inputs + "outputz: {}\n")
    (tmp_path / "alpha.yaml").write_text(inputs + "outputs: {x: [{op: dynamic, alfa: 1}]}\n")
    (tmp_path / "code.yaml").write_text("!!python/object/apply:os.system ['touch x']\n")
    (tmp_path / "sweep.yaml").write_text("out: x\ngrid: {seed: [1]}\noptions: {confg: sprites}\n")
    monkeypatch.chdir(tmp_path)
    for name, value in {"COLUMNS": "100", "NO_COLOR": "1", "CKPT_PATH": str(tmp_path / "ckpt")}.items():
        monkeypatch.setenv(name, value)
    return tmp_path


def answer(capsys, typed):
    """What is typed, the exit code, and all that is printed."""
    capsys.readouterr()
    try:
        code = main(typed.split())
    except SystemExit as left:
        code = left.code
    text = "".join(capsys.readouterr())
    return f"$ edg {typed}\n[{code}]\n{text.rstrip()}\n"


def normal(text, folder):
    """The same on any machine and at any time."""
    for place, name in ((folder, "TMP"), (ROOT, "REPO"), (Path.home(), "HOME")):
        text = text.replace(str(place), name)
    text = re.sub(r"\b[0-9a-f]{12,64}\b", "HASH", text)
    text = re.sub(r"\b\d+(\.\d+)?( ?s\b| seconds?| GB| ?it/s| ?s/it)", r"N\2", text)
    return "".join(line.rstrip() + "\n" for line in text.splitlines())


def test_every_command_is_looked_at():
    assert TYPED.keys() == COMMANDS.keys() | {"edg"}
    assert {path.stem for path in GOLDEN.glob("*.txt")} == TYPED.keys()


@pytest.mark.skipif(sys.version_info >= (3, 13), reason="argparse lays out its help otherwise")
@pytest.mark.parametrize("name", TYPED)
def test_the_sentences_of_a_command(name, capsys, folder, fake_network, request):
    help_of = "--help" if name == "edg" else f"{name} --help"
    found = normal("\n".join(answer(capsys, typed) for typed in (help_of, *TYPED[name])), folder)
    path = GOLDEN / f"{name}.txt"
    if request.config.getoption("rewrite_golden"):
        path.write_text(found, encoding="utf-8")
    assert found == path.read_text(encoding="utf-8")
