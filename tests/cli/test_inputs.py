"""Paths, names and numbers that cannot be right, given by flag, by YAML and by setting: told, not traced."""

import argparse
import os
from pathlib import Path

import numpy as np
import pytest

from edg.cli.main import COMMANDS, main, parser_of
from edg.core.arguments import PATHS

ROOT = Path(__file__).parents[2]
BASE = ROOT / "edg/sprites/weights/base.safetensors"
TRAIN = f"""
spec: sprites
seed: 3
init: {BASE}
adapter: identity
out: out
data: {{kind: sprites, split: tuned, count: 8}}
train: {{steps: 1, batch: 1, lr: 1.0e-3}}
"""
SWEEP = """
out: out
options: {config: sprites, recipe: edg_temporal_conv, T: 300, ddim_steps: 2}
grid: {seed: [1]}
"""
# What takes text and is no file: everything else that a flag takes has a type, a path's or a number's.
WORDS = {
    "device", "dtype", "size", "format", "negative_prompt", "strength", "columns", "stride", "compute",
    "metrics", "sha256",
    "trust_sha256", "feature_range", "feature_options", "stages", "overrides", "settings",
    "only", "missing", "host", "names", "table", "ckpt_path", "module", "local_rank",
}  # fmt: skip


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", COMMANDS)
def test_what_a_flag_takes_is_a_path_a_number_or_a_known_word(name):
    for action in parser_of(name)._actions:
        if action.nargs == 0 or action.choices is not None or isinstance(action, argparse._HelpAction):
            continue
        assert action.type is not None or action.dest in WORDS, f"edg {name}: {action.dest}"
        if any(word in f"{action.dest} {action.metavar}".lower() for word in ("file", "dir", "path", "yaml")):
            assert action.type in PATHS or action.dest == "ckpt_path", f"edg {name}: {action.dest}"


@pytest.mark.parametrize(
    "kind, changes",
    [
        (TRAIN, ['name="a\\0b"']),
        (TRAIN, ['out="a\\0b"']),
        (TRAIN, ['init="a\\0b"']),
        (TRAIN, ['samples={every: 1, prompt_dir: "p\\0q"}']),
        (TRAIN, ['data={kind: videos, root: ., csv: "v\\0w"}']),
        (TRAIN, ['data={kind: videos, root: "v\\0w"}']),
        (TRAIN, ['data={kind: cache, path: "v\\0w"}']),
        (TRAIN, ["data={kind: cache, path: ''}"]),
        (TRAIN, ["out="]),
        (TRAIN, ["out=" + "x" * 300]),
        (TRAIN, ["init=~nobody-of-that-name/x"]),
        *(
            (TRAIN, [f"name={name}"])
            for name in ("../outside", "/tmp/outside", '""', "..", "a/b", "a\\b", ".a")
        ),
        *(
            (TRAIN, [f"train.{key}=1000000000000"])
            for key in ("steps", "batch", "accumulate", "workers", "keep")
        ),
        *((TRAIN, [f"train.{key}=.inf"]) for key in ("lr", "grad_clip", "weight_decay")),
        (TRAIN, ["train.lr=1e12"]),
        *(
            (TRAIN, [f"objective.{key}=.inf"])
            for key in ("timestep_shift", "offset_noise", "time_noise.a", "time_noise.beta_m")
        ),
        (TRAIN, ["data.count=1000000000000"]),
        (TRAIN, ["samples.count=1000000000000"]),
        (TRAIN, ["lora={rank: 1000000000000}"]),
        (TRAIN, ["data={kind: videos, root: ., frames: 1000000000000}"]),
        (SWEEP, ['out="a\\0b"']),
        (SWEEP, ["out=[a]"]),
        (SWEEP, ['options.prompt_dir="p\\0q"']),
        (SWEEP, ['options.sets=["a\\0b=c"]']),
        (SWEEP, ["options.bs=1000000000000"]),
        (SWEEP, ["options.chunk=1000000000000"]),
        (SWEEP, ["options.n_samples=1000000000000"]),
        (SWEEP, ["grid.ddim_steps=[1000000000000]"]),
        (SWEEP, ["grid.fps=[.inf]"]),
    ],
)
def test_settings_that_cannot_be(command, here, kind, changes):
    (here / "a.yaml").write_text(kind)
    (here / "some.mp4").write_bytes(b"x")
    code, err = command(["train" if kind is TRAIN else "sweep", "a.yaml", *changes])
    assert code in (2, 3) and len(err) < 3000
    assert {path.name for path in here.iterdir()} <= {"a.yaml", "some.mp4", "out"}
    assert not list(here.rglob("*.safetensors"))


@pytest.mark.parametrize(
    "argv",
    [
        ["sample", "--savedir", ""],
        ["sample", "--prompt_dir", "~nobody-of-that-name"],
        ["sample", "--bs", "1000000000000"],
        ["sample", "--height", "1000000000000", "--config", "sprites", "--sets", f"a={BASE}"],
        ["merge", "edg", "--base", "x" * 300, "--tuned", "y"],
        ["merge", "edg", "--input", "a=" + "x" * 300],
        ["info", ""],
        ["score", "x", "--feature-size", "1000000000000"],
        [
            "encode",
            "--spec",
            "sprites",
            "--weights",
            "w",
            "--data",
            "d",
            "--out",
            "o",
            "--workers",
            "1000000000000",
        ],
        ["encode", "--spec", "sprites", "--weights", "w", "--data", "d", "--out", "o", "--frames", "0"],
        [
            "encode",
            "--spec",
            "sprites",
            "--weights",
            str(BASE),
            "--data",
            "d",
            "--out",
            "o",
            "--stride",
            "9" * 5000,
        ],
        ["analytic-init", "--spec", "sprites", "--data", "d", "--out", "o", "--count", "1000000000000"],
        ["train", "x" * 1_000_000],
        ["sample", "--" + "x" * 1_000_000],
        ["x" * 1_000_000],
        ["sweep", "x" * 200_000 + ".yaml"],
    ],
    ids=lambda argv: " ".join(argv)[:40],
)
def test_flags_that_cannot_be(command, argv):
    code, err = command(argv)
    assert code in (2, 3) and len(err) < 9000


def test_home_is_found_by_every_way(command, here, monkeypatch):
    home = here / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    (home / "a.yaml").write_text(SWEEP.replace("out: out", "out: ~/points"))
    assert command(["sweep", "~/a.yaml", "--dry-run"])[0] == 0
    assert f"--savedir {home}/points/" in command.out
    assert command(["sweep", "~/a.yaml", "--dry-run", "out=./~"])[0] == 0
    assert f"--savedir {here}/~/" in command.out
    (home / "con.pt").write_bytes(b"no checkpoint")
    for argv in (["info", "~/con.pt"], ["export", "~/con.pt", "x.pt"]):
        code, err = command(argv)
        assert code == 3 and str(home / "con.pt") in err
    monkeypatch.setenv("CKPT_PATH", "~/ckpt")
    from edg.core.files import checkpoints

    assert checkpoints() == home / "ckpt"
    assert not any("~" in path.name for path in here.rglob("*"))


def test_texts_of_a_grid_stay_texts(command, here):
    (here / "a.yaml").write_text(SWEEP)
    changes = [
        "grid={negative_prompt: [on, 1_0, 007], loop: [yes], seed: [1_0]}",
        "options.prompt_dir=2024_06_01",
    ]
    assert command(["sweep", "a.yaml", "--dry-run", *changes])[0] == 0
    lines = command.out.splitlines()
    assert [line.partition(":")[0] for line in lines] == [
        f"negative_prompt={text}_loop=True_seed=10" for text in ("on", "1_0", "007")
    ]
    assert "--prompt_dir=2024_06_01" in lines[0] and "--loop=1" in lines[0] and "--seed=10" in lines[0]


@pytest.mark.parametrize("name", COMMANDS)
def test_a_working_directory_that_is_gone(command, here, name):
    folder = here / "gone"
    folder.mkdir()
    os.chdir(folder)
    folder.rmdir()
    try:
        assert command([name])[0] == 4
        assert main(["--version"]) == 0
    finally:
        os.chdir(here)


def test_python_takes_the_same_paths(here, monkeypatch):
    from edg.api import Model, Video
    from edg.core.errors import UsageError

    monkeypatch.setenv("HOME", str(here))
    model = Model("sprites", {"base": "~/base.ckpt", "tuned": "x"})
    assert model._path("~/a.png", "image") == here / "a.png"
    for wrong in ("", "a\0b", "~nobody-of-that-name", "x" * 300):
        with pytest.raises(UsageError):
            model._path(wrong, "image")
        with pytest.raises(UsageError):
            Model("sprites", {"base": wrong})
    settings = {"prompt": "", "seed": 1, "fps": 8, "crf": 10}
    clip = Video(np.zeros((2, 16, 16, 3), np.uint8), {"settings": settings})
    assert clip.save("~/a.gif") == here / "a.gif" and (here / "a.gif").is_file()
    with pytest.raises(UsageError):
        clip.save("a\0.gif")


@pytest.mark.parametrize(
    "line", ["frames: 8", "  model_channels: 32", "      vocab_size: 49408", "  timesteps: 1000"]
)
@pytest.mark.parametrize("number", [10**12, 10**30])
def test_a_model_of_impossible_size(line, number):
    from edg.core.config import to_yaml
    from edg.core.errors import UsageError
    from edg.networks.latent_video.models import load_spec
    from edg.networks.latent_video.presets import PRESETS

    text = to_yaml(PRESETS["sprites"])
    Path("m.yaml").write_text(text)
    assert load_spec("m.yaml") == PRESETS["sprites"] and f"\n{line}\n" in text
    Path("m.yaml").write_text(text.replace(f"\n{line}\n", f"\n{line.partition(':')[0]}: {number}\n"))
    with pytest.raises(UsageError):
        load_spec("m.yaml")
