"""A demo without a model in this process, and its page behind a client that follows no rules of browsers."""

from pathlib import Path

import pytest
from starlette.testclient import TestClient

from edg.demo.jobs import DemoBackend, DemoModel
from edg.demo.process import gradio_environment

PICTURE = Path(__file__).parents[2] / "prompts/sprites/05-red-circle.png"
PAGE = "http://127.0.0.1:7860"
SECRET = b"hunter2"


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """The folder in which the demo makes its own; beside it lies a file of its user."""
    home = tmp_path_factory.mktemp("demo")
    (home / "secret.png").write_bytes(PICTURE.read_bytes() + SECRET)
    return home


@pytest.fixture(scope="module")
def backend(home):
    def animate(*args, **how):
        pytest.fail("nothing is to be made")

    model = DemoModel("fake", {"edg": animate}, examples=[(str(PICTURE), "a red circle moves left")])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tempfile.tempdir", str(home))
        with DemoBackend(model) as backend:
            for name, value in gradio_environment(backend.folder).items():
                patch.setenv(name, value)
            yield backend


@pytest.fixture(scope="module")
def client(backend):
    from edg.demo.server import app

    with TestClient(app(backend, "127.0.0.1"), base_url=PAGE) as client:
        yield client
