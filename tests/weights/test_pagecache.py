"""Large files leave the page cache behind a merge; nothing else changes."""

import errno
import os

import pytest
import torch

from edg.core import pagecache
from edg.core.errors import MachineError
from edg.merging import merge
from edg.merging.recipe import edg_recipe
from edg.weights import hashing

NAME = "model.diffusion_model.{}"


@pytest.fixture
def recipe(tmp_path):
    paths = [str(tmp_path / f"{name}.ckpt") for name in ("base", "tuned")]
    for seed, path in enumerate(paths):
        generator = torch.Generator().manual_seed(seed)
        tensors = {NAME.format(i): torch.randn(700_001, generator=generator) for i in range(3)}
        torch.save({"state_dict": tensors}, path)
    return edg_recipe(*paths)


@pytest.fixture
def large(monkeypatch):
    """Every file counts as large; ranges forgotten by descriptor."""
    found = []
    forget = pagecache.forget
    for module in (pagecache, hashing):
        monkeypatch.setattr(module, "too_large", lambda size: True)
        monkeypatch.setattr(module, "forget", lambda *a: (found.append(a), forget(*a)))
    monkeypatch.setattr(pagecache, "STEP", 1 << 20)
    return found


@pytest.mark.parametrize("form", ["safetensors", "pt"])
def test_the_bytes_are_the_same(tmp_path, recipe, form, request):
    def made(folder):
        return [m.path.read_bytes() for m in merge.run(recipe, tmp_path / folder, full=True, format=form)]

    kept = made("kept")
    forgotten = request.getfixturevalue("large")
    assert made("passing") == kept
    assert len({fd for fd, _, _ in forgotten}) == 4


def test_what_cannot_be_brought_to_the_disk_is_an_error(tmp_path, recipe, large, monkeypatch):
    def full(fd):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fdatasync", full)
    with pytest.raises(MachineError):
        merge.run(recipe, tmp_path / "out", full=True)
    assert list((tmp_path / "out").iterdir()) == []


def test_small_files_stay():
    assert not pagecache.too_large(1 << 20) and pagecache.too_large(1 << 50)
