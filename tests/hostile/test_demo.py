"""The demo's uploads: their size and their sum are bounded, and they stay in the demo's own folder."""

import os
import shutil
import sys
import threading
from pathlib import Path

import pytest
from PIL import Image
from starlette.testclient import TestClient

sys.path.insert(0, str(Path(__file__).parent))
from sampling import RED, save  # noqa: E402
from test_images import broken  # noqa: E402

from edg.cli.demo import environment  # noqa: E402
from edg.core.errors import BadFileError  # noqa: E402
from edg.demo.jobs import MAX_BYTES, Studio, Wish  # noqa: E402

ROOT = Path(__file__).parents[2]
PAGE = "http://127.0.0.1"
UPLOAD = "/gradio_api/upload"
PICTURE = ROOT / "prompts/sprites/05-red-circle.png"


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Where the demo makes its folder."""
    return tmp_path_factory.mktemp("demo")


@pytest.fixture(scope="module")
def studio(home):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tempfile.tempdir", str(home))
        with Studio("fake", {"edg": lambda *args, **how: pytest.fail("nothing is to be made")}) as studio:
            for name, value in environment(studio.folder).items():
                patch.setenv(name, value)
            yield studio


@pytest.fixture(scope="module")
def client(studio):
    """A browser of the demo's page that follows no rules."""
    from edg.demo.server import app

    with TestClient(app(studio, "127.0.0.1"), base_url=PAGE, headers={"Origin": PAGE}) as client:
        yield client


def files(folder):
    return {path for path in folder.rglob("*") if path.is_file()}


def put(studio, name="x.png"):
    with open(PICTURE, "rb") as file:
        return studio.uploads.put(name, file)


def size(studio):
    return sum(path.lstat().st_size for path in files(studio.folder))


@pytest.mark.parametrize(
    "name",
    [
        "../../../x.png", "/etc/cron.d/x.png", "..", "a\nb\x1b[31m.png", "x" * 300 + ".png",
        "😀" * 80 + ".png",
        "<img src=x onerror=alert(1)>.png", "C:\\x.png", "%2e%2e%2fx.png", ".hidden", "con",
    ],
)  # fmt: skip
def test_names_of_uploads_stay_in_the_folder(client, studio, home, name):
    before, data = files(home), PICTURE.read_bytes() + name.encode()
    answer = client.post(UPLOAD, files={"files": (name, data, "image/png")})
    new = files(home) - before
    assert all(path.resolve().is_relative_to(studio.folder.resolve()) for path in new), new
    assert list(home.iterdir()) == [studio.folder]
    if answer.status_code == 200:
        (path,) = map(Path, answer.json())
        assert new == {path} and path.read_bytes() == data
        studio.check_image(path)
    else:
        assert 400 <= answer.status_code < 500, answer.text


def test_a_file_that_is_too_large_is_not_kept(client, studio):
    before = files(studio.folder)
    answer = client.post(UPLOAD, files={"files": ("x.png", bytes(MAX_BYTES + 1), "image/png")})
    assert answer.status_code == 413 and files(studio.folder) == before


def test_the_sum_of_uploads_is_bounded(client, studio, monkeypatch):
    """A page that is left open to many fills no disk."""
    monkeypatch.setattr("edg.demo.uploads.MAX_KEPT", size(studio) + 350_000)

    def code(number):
        upload = {"files": (f"{number}.png", bytes([number]) * 100_000, "image/png")}
        return client.post(UPLOAD, files=upload).status_code

    assert [code(number) for number in range(6)] == [200] * 3 + [507] * 3
    monkeypatch.undo()
    assert code(6) == 200, "what was refused takes no room"
    monkeypatch.setattr("edg.demo.uploads.MAX_FILES", len(files(studio.folder)) + 2)
    assert [code(number) for number in range(4)] == [200] * 2 + [507] * 2


def test_many_files_in_one_request(client, studio):
    """Each within bounds, together not; and a body that does not tell its length."""
    before = files(studio.folder)
    two = [("files", (f"{i}.png", bytes(MAX_BYTES * 2 // 3), "image/png")) for i in range(2)]
    assert client.post(UPLOAD, files=two).status_code == 413
    assert client.post(UPLOAD, content=iter([b"x"])).status_code == 413
    assert files(studio.folder) == before


@pytest.mark.parametrize(
    "path",
    [
        "process_recording",
        "vibe-edit",
        "vibe-code",
        "component_server",
        "stream/1",
        "proxy=http://a.example/",
    ],
)
def test_what_gradio_offers_and_the_page_does_not_use(client, studio, path):
    before = files(studio.folder)
    video = {"video": ("x.mp4", b"x", "video/mp4")}
    assert client.post(f"/gradio_api/{path}", files=video).status_code in (404, 405)
    assert files(studio.folder) == before


@pytest.mark.parametrize(
    "path",
    [
        "/etc/hostname",
        str(ROOT / "README.md"),
        str(ROOT / "pyproject.toml"),
        "../../etc/hostname",
        str(PICTURE),
    ],
)
def test_no_other_file_is_served(client, path):
    for way in ("file=", "file/"):
        assert client.get(f"/gradio_api/{way}{path}").status_code in (403, 404)


@pytest.mark.parametrize(
    "kind", ["60000x60000", "one row too many", "text bomb", "page", "vector", "empty", "cut"]
)
def test_uploads_that_are_no_image_to_be_had(studio, tmp_path, kind):
    """By their name, without the folder; the pixels are counted before they are there."""
    broken(tmp_path / "x.png", kind)
    with open(tmp_path / "x.png", "rb") as file:
        path = studio.uploads.put("x.png", file)
    with pytest.raises(BadFileError) as error:
        studio.check_image(path)
    assert "x.png" in str(error.value) and str(studio.folder) not in str(error.value)


@pytest.mark.parametrize("how", ["elsewhere", "dots", "link", "folder", "pipe", "file"])
def test_a_wish_for_another_file_is_refused(studio, tmp_path, how):
    """What the page sends is not believed: nothing but what was uploaded, wherever it lies."""
    outside = save(tmp_path / "private.png", Image.new("RGB", (8, 8), RED))
    path = studio.folder / f"{how}.png"
    {
        "elsewhere": lambda: None,
        "dots": lambda: None,
        "link": lambda: path.symlink_to(outside),
        "folder": path.mkdir,
        "pipe": lambda: os.mkfifo(path),
        "file": lambda: shutil.copy(PICTURE, path),
    }[how]()
    path = {"elsewhere": outside, "dots": studio.folder / "../private.png"}.get(how, path)
    (*_, last) = studio.make(Wish(path, "", 1, 1), threading.Event())
    assert last.error and last.made is None


@pytest.mark.parametrize("how", ["link", "folder", "pipe", "gone"])
def test_an_upload_that_is_something_else_meanwhile(studio, tmp_path, how):
    outside = save(tmp_path / "private.png", Image.new("RGB", (8, 8), RED))
    path = put(studio)
    path.unlink()
    {
        "link": lambda: path.symlink_to(outside),
        "folder": path.mkdir,
        "pipe": lambda: os.mkfifo(path),
        "gone": lambda: None,
    }[how]()
    with pytest.raises(BadFileError):
        studio.check_image(path)
    assert not studio.uploads.is_shown(str(path))


def test_the_folder_goes_with_the_demo(tmp_path):
    with Studio("fake", {}) as studio:
        shutil.copy(PICTURE, studio.folder)
        assert oct(studio.folder.stat().st_mode & 0o777) == "0o700", "nobody else on this machine reads it"
    assert not studio.folder.exists()
