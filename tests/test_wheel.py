"""A wheel works by itself: recipes, sweeps, prompts and weights of the embedded model are inside."""

import json
import os
import shutil
import site
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
SOURCES = ("edg", "configs", "prompts", "setup.py", "pyproject.toml", "requirements.txt", "README.md")


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    """The interpreter of a new environment that holds the wheel; other packages are those of this one."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in SOURCES:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", str(folder), str(source)]
    subprocess.run(build, check=True, cwd=folder)
    (wheel,) = folder.glob("edg-*.whl")
    environment = folder / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True)
    inside = Path(sysconfig.get_path("purelib", vars={"base": str(environment)}))
    subprocess.run([*pip, "install", "--no-deps", "--target", str(inside), str(wheel)], check=True)
    others = [*site.getsitepackages(), site.getusersitepackages()]
    (inside / "others.pth").write_text("\n".join(path for path in others if os.path.isdir(path)))
    return environment / "bin" / "python"


def run(python, folder, *argv):
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "CKPT_PATH")}
    done = subprocess.run(
        [python, "-P", "-m", "edg", *argv], cwd=folder, env=environment | {"OMP_NUM_THREADS": "1"},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done


def test_the_package_is_that_of_the_wheel(python, tmp_path):
    code = "import edg; print(edg.__file__)"
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    found = subprocess.run(
        [python, "-P", "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert Path(found.stdout.strip()).is_relative_to(python.parents[1])


def test_merge_sample_and_sweep_from_an_empty_folder(python, tmp_path):
    weights = ROOT / "edg/sprites/weights"
    pair = ["--base", weights / "base.safetensors", "--tuned", weights / "tuned.safetensors"]
    run(python, tmp_path, "merge", "edg", *pair, "--out", "merged")
    assert {path.stem for path in tmp_path.glob("merged/*.safetensors")} == {"dyn", "con"}
    few = ["--ddim_steps", "2", "--cfg", "1"]
    run(python, tmp_path, "sample", "--config", "sprites", "--motion", "0.5", "--savedir", "clips", *few)
    records = [json.loads(path.read_text()) for path in tmp_path.glob("clips/1000/*.json")]
    assert len(records) == 8 and all(record["status"] == "done" for record in records)
    assert "point" not in run(python, tmp_path, "sweep", "sprites_motion", "--dry-run").stderr
    small = ["grid.seed=[1]", "options.ddim_steps=2", "out=swept", "grid.dyn.alpha=[0.5]"]
    run(python, tmp_path, "sweep", "sprites_motion", *small)
    assert (tmp_path / "swept/report/index.html").is_file()


def test_an_editable_install_is_found_in_the_folder_that_holds_the_clone(tmp_path):
    """That folder holds one named `edg`, which Python takes for a package without code."""
    clone = tmp_path / "edg"
    clone.mkdir()
    for name in SOURCES:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, clone / name)
    inside, environment = tmp_path / "site", {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "install", "--no-deps"]
    subprocess.run([*pip, "--no-build-isolation", "--target", inside, "-e", clone], check=True)
    code = f"import site; site.addsitedir({str(inside)!r}); import sys; sys.path.insert(0, '')\n"
    code += "from edg import load; import edg; print(edg.__file__)"
    found = subprocess.run(
        [sys.executable, "-S", "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert found.returncode == 0, found.stderr
    assert Path(found.stdout.strip()) == clone / "edg/__init__.py"
