"""The demo's uploads: their size and their sum are bounded, and they stay in the demo's own folder."""

import io
import os
import shutil
import struct
import threading
import zlib
from pathlib import Path

import pytest
from PIL import Image

from edg.core.errors import BadFileError
from edg.core.video import MAX_PIXELS
from edg.demo.jobs import MAX_BYTES, DemoBackend, DemoModel, DemoRequest

ROOT = Path(__file__).parents[2]
PICTURE = ROOT / "prompts/sprites/05-red-circle.png"
PAGE = "http://127.0.0.1:7860"
OWN = {"Origin": PAGE}
UPLOAD = "/gradio_api/upload"


def files(folder):
    return {path for path in folder.rglob("*") if path.is_file()}


def put(backend, name="x.png"):
    with open(PICTURE, "rb") as file:
        return backend.uploads.put(name, file)


def size(backend):
    return sum(path.lstat().st_size for path in files(backend.folder))


@pytest.mark.parametrize(
    "name",
    [
        "../../../x.png", "/etc/cron.d/x.png", "..", "a\nb\x1b[31m.png", "x" * 300 + ".png",
        "😀" * 80 + ".png",
        "<img src=x onerror=alert(1)>.png", "C:\\x.png", "%2e%2e%2fx.png", ".hidden", "con",
    ],
)  # fmt: skip
def test_names_of_uploads_stay_in_the_folder(client, backend, home, name):
    before, data = files(home), PICTURE.read_bytes() + name.encode()
    answer = client.post(UPLOAD, files={"files": (name, data, "image/png")}, headers=OWN)
    new = files(home) - before
    assert all(path.resolve().is_relative_to(backend.folder.resolve()) for path in new), new
    assert set(home.iterdir()) == {backend.folder, home / "secret.png"}
    if answer.status_code == 200:
        (path,) = map(Path, answer.json())
        assert new == {path} and path.read_bytes() == data
        backend.check_image(path)
    else:
        assert 400 <= answer.status_code < 500, answer.text


def test_a_file_that_is_too_large_is_not_kept(client, backend):
    before = files(backend.folder)
    answer = client.post(UPLOAD, files={"files": ("x.png", bytes(MAX_BYTES + 1), "image/png")}, headers=OWN)
    assert answer.status_code == 413 and files(backend.folder) == before


def test_the_sum_of_uploads_is_bounded(client, backend, monkeypatch):
    """A page that is left open to many fills no disk."""
    monkeypatch.setattr("edg.demo.uploads.MAX_KEPT", size(backend) + 350_000)

    def code(number):
        upload = {"files": (f"{number}.png", bytes([number]) * 100_000, "image/png")}
        return client.post(UPLOAD, files=upload, headers=OWN).status_code

    assert [code(number) for number in range(6)] == [200] * 3 + [507] * 3
    monkeypatch.undo()
    assert code(6) == 200, "what was refused takes no room"
    monkeypatch.setattr("edg.demo.uploads.MAX_FILES", len(files(backend.folder)) + 2)
    assert [code(number) for number in range(4)] == [200] * 2 + [507] * 2


def test_many_files_in_one_request(client, backend):
    """Each within bounds, together not; and a body that does not tell its length."""
    before = files(backend.folder)
    two = [("files", (f"{i}.png", bytes(MAX_BYTES * 2 // 3), "image/png")) for i in range(2)]
    assert client.post(UPLOAD, files=two, headers=OWN).status_code == 413
    assert client.post(UPLOAD, content=iter([b"x"]), headers=OWN).status_code == 413
    assert files(backend.folder) == before


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
def test_what_gradio_offers_and_the_page_does_not_use(client, backend, path):
    before = files(backend.folder)
    video = {"video": ("x.mp4", b"x", "video/mp4")}
    assert client.post(f"/gradio_api/{path}", files=video, headers=OWN).status_code in (404, 405)
    assert files(backend.folder) == before


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


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width, height, *chunks):
    """A PNG of one black line a row, or of none."""
    head = chunk(b"IHDR", struct.pack(">2I5B", width, height, 8, 2, 0, 0, 0))
    return b"".join([b"\x89PNG\r\n\x1a\n", head, *chunks, chunk(b"IEND", b"")])


def text_bomb():
    pixels = chunk(b"IDAT", zlib.compress((b"\0" + bytes(24)) * 8))
    return png(8, 8, pixels, chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(200_000_000), 9)))


def cut():
    file = io.BytesIO()
    Image.effect_noise((64, 64), 80).save(file, "JPEG")
    return file.getvalue()[:900]


@pytest.mark.parametrize(
    "data",
    [
        lambda: png(60_000, 60_000, chunk(b"IDAT", b"")),
        lambda: png(8000, MAX_PIXELS // 8000 + 1, chunk(b"IDAT", b"")),
        text_bomb,
        lambda: b"<html><script>alert(1)</script></html>",
        lambda: b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        lambda: b"",
        cut,
    ],
    ids=["60000x60000", "one row too many", "text bomb", "page", "vector", "empty", "cut"],
)
def test_uploads_that_are_no_image(backend, data):
    """By their name, without the folder; the pixels are counted before they are decoded."""
    path = backend.uploads.put("x.png", io.BytesIO(data()))
    with pytest.raises(BadFileError) as error:
        backend.check_image(path)
    assert "x.png" in error.value.given and str(backend.folder) not in str(error.value)


@pytest.mark.parametrize("how", ["elsewhere", "dots", "link", "folder", "pipe", "file"])
def test_a_request_for_another_file_is_refused(backend, tmp_path, how):
    """What the page sends is not believed: nothing but what was uploaded, wherever it lies."""
    outside = tmp_path / "private.png"
    shutil.copy(PICTURE, outside)
    path = backend.folder / f"{how}.png"
    {
        "elsewhere": lambda: None,
        "dots": lambda: None,
        "link": lambda: path.symlink_to(outside),
        "folder": path.mkdir,
        "pipe": lambda: os.mkfifo(path),
        "file": lambda: shutil.copy(PICTURE, path),
    }[how]()
    path = {"elsewhere": outside, "dots": backend.folder / "../private.png"}.get(how, path)
    (*_, last) = backend.generate(DemoRequest(path, "", 1), threading.Event())
    assert last.error and last.result is None


@pytest.mark.parametrize("how", ["link", "folder", "pipe", "gone"])
def test_an_upload_that_is_something_else_meanwhile(backend, tmp_path, how):
    outside = tmp_path / "private.png"
    shutil.copy(PICTURE, outside)
    path = put(backend)
    path.unlink()
    {
        "link": lambda: path.symlink_to(outside),
        "folder": path.mkdir,
        "pipe": lambda: os.mkfifo(path),
        "gone": lambda: None,
    }[how]()
    with pytest.raises(BadFileError):
        backend.check_image(path)
    assert not backend.uploads.is_shown(str(path))


def test_the_folder_goes_with_the_demo(tmp_path):
    with DemoBackend(DemoModel("fake", {})) as backend:
        shutil.copy(PICTURE, backend.folder)
        assert oct(backend.folder.stat().st_mode & 0o777) == "0o700", "nobody else on this machine reads it"
    assert not backend.folder.exists()
