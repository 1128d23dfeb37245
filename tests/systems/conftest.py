"""The tiny model of the reference, and the small model of the tests of networks."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from edg.networks.latent_video.published_yaml import from_published

TESTS = Path(__file__).parents[1]
REFERENCE = TESTS / "reference"
_file = importlib.util.spec_from_file_location("small_model", TESTS / "networks" / "conftest.py")
_module = importlib.util.module_from_spec(_file)
_file.loader.exec_module(_module)
spec, weights, inputs = _module.spec, _module.weights, _module.inputs


@pytest.fixture(scope="session")
def pipe_spec():
    """The tiny model of the reference's case of the whole pipeline."""
    cases = json.loads((REFERENCE / "index.json").read_text())["cases"]
    config = next(case["config"] for case in cases if case["name"] == "pipe_open")
    return from_published({"model": {"params": config["model"]}}, clip=config["clip"])
