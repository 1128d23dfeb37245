"""Fixtures that several folders of tests share: a browser, two small checkpoints, the command line."""

import os
import shutil
import signal
import sys
from collections import Counter
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault(
    "OMP_WAIT_POLICY", "PASSIVE"
)  # before torch: threads of several workers share the cores

import pytest  # noqa: E402
import torch  # noqa: E402

from edg.cli.main import main  # noqa: E402

sys.path.insert(0, str(Path(__file__).parent / "helpers"))  # modules that tests import by their names

UNET = "model.diffusion_model."
SHAPES = {
    f"{UNET}time_embed.0.weight": (8, 4),
    f"{UNET}input_blocks.1.0.temopral_conv.conv1.2.weight": (4, 4, 3, 1, 1),
    f"{UNET}input_blocks.1.2.norm.weight": (4,),
    f"{UNET}out.2.bias": (4,),
    "first_stage_model.quant_conv.weight": (8, 8, 1, 1),
}
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


@pytest.fixture(autouse=True)
def own_threads():
    """Give the next test the number of threads that this one found: commands set it for their process."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def own_signals():
    """Give the next test the handlers that this one found; fail one that leaves the watcher of a process
    behind, which would end this one after a later signal."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
    assert signal.set_wakeup_fd(-1) == -1


@pytest.fixture(scope="session")
def browser():
    """A headless Chromium."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        pytest.fail("browser tests need playwright: pip install -e '.[tests]'")
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.fail("browser tests need Chromium: apt-get install chromium")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield chromium
        chromium.close()


def pytest_addoption(parser):
    parser.addoption("--rewrite-golden", action="store_true", help="write tests/golden/*.txt anew")


def pytest_collection_modifyitems(config, items):
    """In several processes, files with the most slow tests come first: none is left to one process alone."""
    if config.getoption("loadscopereorder", None) is False:
        slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
        items.sort(key=lambda item: -slow[item.path])


class Pair(NamedTuple):
    """base.ckpt and tuned.ckpt, both {"state_dict": {name: float32 tensor}}."""

    base: Path
    tuned: Path


def make_state(seed):
    """name -> tensor: the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


@pytest.fixture
def state():
    """The tensors of `tiny.base`."""
    return make_state(0)


@pytest.fixture
def tiny(tmp_path, state):
    """Two checkpoints of one model in `tmp_path`, as torch.save writes them."""
    pair = Pair(tmp_path / "base.ckpt", tmp_path / "tuned.ckpt")
    moved = make_state(1)
    torch.save({"state_dict": state}, pair.base)
    torch.save({"state_dict": {name: t + 0.1 * moved[name] for name, t in state.items()}}, pair.tuned)
    return pair


@pytest.fixture
def command(capsys):
    """command(argv) -> (exit code, stderr) of `edg ARGV`; command.out is what it printed.

    A mistake must be told in exactly one line; a defect of ours is raised, with its traceback."""

    def run(argv):
        capsys.readouterr()
        code = main(list(map(str, argv)))
        run.out, err = capsys.readouterr()
        errors = [line for line in err.splitlines() if line.startswith("edg: error: ")]
        assert len(errors) == (code != 0), (code, err)
        return code, err

    run.out = ""
    return run


@pytest.fixture
def fake_network(monkeypatch):
    """edg sample without its network: noise that follows from picture, seed and id."""
    from sampling import noise, without_network

    without_network(monkeypatch, noise)
