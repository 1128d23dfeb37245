"""The tiny model of the reference, and the small model of the tests of networks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from small_model import inputs, spec, weights  # noqa: F401

from edg.networks.latent_video.published_yaml import from_published

TESTS = Path(__file__).parents[1]
REFERENCE = TESTS / "reference"


@pytest.fixture(scope="session")
def pipe_spec():
    """The tiny model of the reference's case of the whole pipeline."""
    cases = json.loads((REFERENCE / "index.json").read_text())["cases"]
    config = next(case["config"] for case in cases if case["name"] == "pipe_open")
    return from_published({"model": {"params": config["model"]}}, clip=config["clip"])
