"""The floors of the house, by `ast`: imports go down only, and every third-party guest stays in its rooms."""

import ast
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "edg"
FLOORS = {
    "core": 0, "diffusion": 0, "__init__": 0,
    "weights": 1, "data": 1, "metrics": 1,
    "merging": 2, "sprites": 2,
    "networks": 3, "verify": 3, "training": 3,
    "systems": 4,
    "runner": 5,
    "api": 6, "report": 6,
    "cli": 7, "demo": 7, "__main__": 7,
}  # fmt: skip
# What a room may import from at most, beside its own; the others: any room below, or on the same floor.
ALLOWED = {
    "core": set(),
    "diffusion": set(),
    "weights": {"core"},
    "data": {"core"},
    "metrics": {"core"},
    "merging": {"core", "weights"},
    "sprites": {"core", "diffusion", "weights", "data", "metrics"},
    "networks": {"core", "diffusion", "weights", "data"},
    "verify": {"core", "diffusion", "weights", "merging"},
    "training": {"core", "data"},
    "systems": {
        "core",
        "diffusion",
        "weights",
        "data",
        "merging",
        "metrics",
        "sprites",
        "networks",
        "verify",
        "training",
    },
}
GUESTS = {
    "open_clip": ("networks/latent_video/clip_encoders.py", "networks/latent_video/load.py"),
    "torchvision": ("cli/doctor.py", "metrics/raft.py"),
    "pytorch_lightning": ("training/*.py",),
    "lightning": (),
    "peft": ("systems/*/training/trainable.py",),
    "gradio": ("demo/server.py",),
    "diffusers": ("systems/*/backend.py", "systems/*/backends.py"),
    "safetensors": ("weights/*.py",),
    "av": ("core/video.py", "core/films.py"),
    "imageio": (),
    "tqdm": ("runner/progress.py",),
    "decord": ("data/readers.py",),
    "cv2": ("metrics/*.py",),
    "huggingface_hub": ("cli/fetch.py",),
    "omegaconf": ("core/config.py",),
    "matplotlib": (),
}
FILES = sorted(PACKAGE.rglob("*.py"))


def imports(path):
    """Dotted names of everything a file imports, wherever in the file, type checking included."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room(parts):
    return Path(parts[0]).stem if parts else "__init__"


def home(path):
    return room(path.relative_to(PACKAGE).parts)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_down(path):
    here = home(path)
    assert here in FLOORS, f"{here} is no room of the house"
    for name in imports(path):
        parts = name.split(".")
        if parts[0] != "edg" or len(parts) < 2 or parts[1] not in FLOORS or parts[1] in (here, "__init__"):
            continue
        there = parts[1]
        assert FLOORS[there] <= FLOORS[here], f"{path}: {here} imports {there}, which is above it"
        assert here not in ALLOWED or there in ALLOWED[here], f"{path}: {here} may not import {there}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_systems_do_not_know_each_other(path):
    parts = path.relative_to(PACKAGE).parts
    for name in imports(path):
        target = name.split(".")
        if target[:2] != ["edg", "systems"] or parts[0] != "systems":
            continue
        if len(parts) >= 3:  # a file in systems/<name>/
            assert target[2] in (parts[1], "base"), f"{path} imports {name}"
        else:  # the registry knows systems by their names only
            assert target[2] == "base", f"{path} imports {name}"


def test_generate_does_not_import_train():
    for path in [
        p
        for name in ("generate", "clip_state", "sampling_schedule")
        for p in PACKAGE.glob(f"systems/*/{name}.py")
    ]:
        assert not any(".train" in name for name in imports(path)), path


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_guests_stay_in_their_rooms(path):
    place = path.relative_to(PACKAGE)
    for name in imports(path):
        guest = name.split(".")[0]
        if guest in GUESTS:  # of the whole path: `training/*.py` is not `systems/edg/training/*.py`
            rooms = GUESTS[guest]
            assert any((ROOT / place).match(str(ROOT / where)) for where in rooms), f"{place} imports {guest}"


@pytest.mark.parametrize("path", sorted(PACKAGE.glob("diffusion/*.py")), ids=lambda p: p.name)
def test_diffusion_needs_tensors_only(path):
    known = {"torch", "einops", "numpy", "jaxtyping", "edg", *sys.stdlib_module_names}
    assert {name.split(".")[0] for name in imports(path)} <= known


def test_scripts_are_imported_by_nobody():
    for path in FILES:
        assert not any(name.split(".")[0] == "scripts" for name in imports(path)), path


def test_importing_edg_loads_nothing_heavy():
    code = "import sys, edg, edg.cli.main; print([m for m in ('torch', 'numpy', 'av') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_info_of_a_checkpoint_does_without_torch(tmp_path):
    path = tmp_path / "a.ckpt"
    torch.save({"state_dict": {"a": torch.ones(3), "scale_arr": torch.ones(4)}}, path)
    code = (
        "import sys; from edg.cli.main import main; assert not main(['info', sys.argv[1]]);"
        "print('torch' in sys.modules)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, path], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert run.stdout.splitlines()[-1] == "False"


def test_help_is_quick():
    """By processor time: other tests may run beside this one."""

    def spent():
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime

    best = 9.0
    for _ in range(3):
        before = spent()
        subprocess.run([sys.executable, "-m", "edg", "--help"], cwd=ROOT, capture_output=True, check=True)
        best = min(best, spent() - before)
    assert best < 0.5
