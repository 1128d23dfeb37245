"""Networks from files: only trusted programs run, and RAFT under both sets of names."""

import re

import numpy as np
import pytest
import torch

from edg.core.errors import BadFileError, UsageError
from edg.core.hashing import sha256_file
from edg.metrics.networks import Input, Network
from edg.metrics.raft import RENAMED, Raft, torchvision_name


class Means(torch.nn.Module):
    """(1, 3, T, S, S) -> (1, 3), or (T, 3, S, S) -> (T, 3): the colour's mean, times `scale`."""

    def forward(self, x: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
        dims = [2, 3] if x.dim() == 4 else [2, 3, 4]
        return x.mean(dim=dims) * scale


@pytest.fixture
def means(tmp_path):
    torch.jit.script(Means()).save(str(tmp_path / "means.pt"))
    return tmp_path / "means.pt"


@pytest.fixture
def frames():
    colours = np.array([[0, 51, 255], [102, 153, 255]], np.uint8)  # 0, 0.2, 1 and 0.4, 0.6, 1
    return colours[:, None, None] * np.ones((1, 9, 13, 1), np.uint8)


def test_what_a_network_is_fed(means, frames):
    trusted = [sha256_file(means).upper()]
    clip = Network(means, trusted, Input(size=16))(frames)
    assert clip == pytest.approx(np.array([[2 * 0.2 - 1, 2 * 0.4 - 1, 1]]), abs=1e-6)
    fed = Input(16, (0.5, 0.2, 0), (0.5, 1, 2), clips=False, options=(("scale", 10.0),))
    network = Network(means, trusted, fed)
    assert network(frames) == pytest.approx(10 * np.array([[-1, 0, 0.5], [-0.2, 0.4, 0.5]]), abs=1e-5)
    assert network.protocol["sha256"] == sha256_file(means) and network.protocol["options"] == {"scale": 10.0}


def test_a_program_that_nobody_named_does_not_run(means, monkeypatch):
    monkeypatch.setattr(torch.jit, "load", lambda *_, **__: pytest.fail("opened"))
    for trusted in ([], ["0" * 64], [sha256_file(means)[:-1]]):
        with pytest.raises(UsageError, match=f"sha256 {sha256_file(means)}.*--trust-sha256"):
            Network(means, trusted, Input())


def test_files_that_are_no_network(tmp_path, means, frames):
    bad = tmp_path / "bad.pt"
    bad.write_bytes(b"no program")
    with pytest.raises(BadFileError):
        Network(bad, [sha256_file(bad)], Input())
    with pytest.raises(UsageError, match="means.pt"):
        Network(means, [sha256_file(means)], Input(8, options=(("nothing", 1),)))(frames)


# ---- RAFT --------------------------------------------------------------------------------------------------


def original_names():
    """Tensors of raft-things.pth, as its published source lays them out."""
    names = []
    for encoder, normed in (("fnet", False), ("cnet", True)):
        convs = ["conv1", "conv2", "layer2.0.downsample.0", "layer3.0.downsample.0"]
        norms = ["norm1", *(f"layer{k}.0.{place}" for k in (2, 3) for place in ("norm3", "downsample.1"))]
        for block in (f"layer{k}.{i}" for k in (1, 2, 3) for i in (0, 1)):
            convs += [f"{block}.conv1", f"{block}.conv2"]
            norms += [f"{block}.norm1", f"{block}.norm2"]
        names += [f"{encoder}.{conv}.{leaf}" for conv in convs for leaf in ("weight", "bias")]
        leaves = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
        names += [f"{encoder}.{norm}.{leaf}" for norm in norms for leaf in leaves if normed]
    update = ["encoder.convc1", "encoder.convc2", "encoder.convf1", "encoder.convf2", "encoder.conv"]
    update += [f"gru.conv{gate}{k}" for gate in "zrq" for k in (1, 2)]
    update += ["flow_head.conv1", "flow_head.conv2", "mask.0", "mask.2"]
    names += [f"update_block.{part}.{leaf}" for part in update for leaf in ("weight", "bias")]
    return [f"module.{name}" for name in names]


@pytest.mark.slow
def test_raft_with_both_sets_of_names(tmp_path):
    from torchvision.models.optical_flow import raft_large

    torch.manual_seed(0)
    tensors = raft_large(weights=None).state_dict()
    names = {name: torchvision_name(name) for name in original_names()}
    kept = {old: new for old, new in names.items() if ".norm3." not in old}
    assert sorted(kept.values()) == sorted(tensors)
    torch.save(tensors, tmp_path / "torchvision.pth")
    doubled = {name: torch.zeros(3) for name in names if name not in kept}
    torch.save({old: tensors[new] for old, new in kept.items()} | doubled, tmp_path / "things.pth")
    frames = np.random.default_rng(0).integers(0, 256, (2, 124, 130, 3), dtype=np.uint8)
    one, other = (Raft(tmp_path / f"{name}.pth", iterations=1) for name in ("torchvision", "things"))
    flow = one(frames)
    assert flow.shape == (1, 124, 130, 2) and flow.dtype == np.float32 and np.abs(flow).max() > 0
    assert np.array_equal(flow, other(frames))
    padded = one.padded(frames)
    assert padded.shape == (1, 128, 136, 2) and np.array_equal(padded[:, 2:126, 3:133], flow)
    with pytest.raises(UsageError, match="128 px"):
        one(frames[:, :40])


def test_raft_takes_tensors_only(tmp_path):
    bad = tmp_path / "bad.pth"
    torch.save({"w": re.compile("code")}, bad)
    for content in (bad.read_bytes(), b"torn"):
        bad.write_bytes(content)
        with pytest.raises(BadFileError, match="raft-things.pth"):
            Raft(bad)
    torch.save({"a": torch.ones(1)}, bad)
    with pytest.raises(BadFileError):
        Raft(bad)


def test_every_renaming_is_used():
    assert all(any(re.search(p, n) for n in _stages()) for p, _ in RENAMED)


def _stages():
    """Every original name after each renaming."""
    for name in original_names():
        for pattern, replacement in RENAMED:
            yield name
            name = re.sub(pattern, replacement, name)
