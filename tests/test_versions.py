"""The lowest version that may be installed carries the fixes of known holes that our inputs could reach."""

import runpy
from pathlib import Path

import pytest
import setuptools
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
FIXES = [  # package, first good version, what
    ("torch", "2.6.0", "CVE-2025-32434: torch.load(weights_only=True) runs code"),
    ("torch", "2.10.0", "CVE-2026-24747: memory corruption by the weights_only unpickler"),
    ("pillow", "12.1.1", "CVE-2026-25990: writes out of bounds when a PSD image is opened"),
    ("pillow", "12.3.0", "CVE-2026-59199: writes out of bounds in paste and crop"),
    ("pytorch-lightning", "2.6.1", "CVE-2026-31221: load_from_checkpoint unpickles anything"),
    ("pytorch-lightning", "2.6.4", "GHSA-w37p-236h-pfx3: the wheels of 2.6.2 and 2.6.3 steal credentials"),
    ("pytorch-lightning", "2.6.6", "GHSA-qqmf-gpg7-g8gw: load_from_checkpoint runs _instantiator"),
    ("omegaconf", "2.4.0", "aliases: a YAML file of 300 bytes fills the memory"),
    ("opencv-python-headless", "4.8.1.78", "CVE-2023-4863: libwebp writes out of bounds"),
    ("tqdm", "4.66.3", "CVE-2024-34062: its command evaluates arguments"),
    ("gradio", "6.7", "CVE-2026-28414: any file is served (Windows)"),
    ("gradio", "6.15.0", "CVE-2026-48545: cookies of other sites through the proxy"),
    ("gradio", "6.20.0", "CVE-2026-59806: requests to inner addresses through /gradio_api/file="),
]


@pytest.fixture
def lowest(monkeypatch):
    """package -> the lowest version that requirements.txt and the extras of setup.py allow."""
    given = {}
    monkeypatch.setattr(setuptools, "setup", given.update)
    runpy.run_path(str(ROOT / "setup.py"))
    lines = [*given["install_requires"], *given["extras_require"]["tests"]]
    lower = {}
    for need in map(Requirement, lines):
        for item in need.specifier:
            if item.operator == ">=":
                lower[need.name] = Version(item.version)
    return lower


@pytest.mark.parametrize("package, good, what", FIXES, ids=[what.partition(":")[0] for *_, what in FIXES])
def test_lowest_versions_carry_the_fix(lowest, package, good, what):
    assert package in lowest, f"{package} has no lowest version: {what}"
    assert lowest[package] >= Version(good), f"{package} {lowest[package]} is allowed: {what}"
