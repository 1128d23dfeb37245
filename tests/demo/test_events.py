"""Every event of the demo's page with files that nobody uploaded; requests that are not the page's own."""

import json
import os
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import quote

import pytest
from starlette.testclient import TestClient

from edg.core.errors import UsageError
from edg.demo.jobs import DemoBackend, DemoModel, Slider
from edg.demo.uploads import LOCK, Uploads

ROOT = Path(__file__).parents[2]
PICTURE = ROOT / "prompts/sprites/05-red-circle.png"
PAGE = "http://127.0.0.1:7860"
OWN = {"Origin": PAGE}
OPENED = {"Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
API = "/gradio_api"
SECRET = b"hunter2"
META = {"_type": "gradio.FileData"}


@pytest.fixture(scope="module")
def events(client):
    """Every event of the page as its browser has it: {id, targets, inputs, ...}."""
    found = client.get("/config").json()["dependencies"]
    assert {event["api_name"] for event in found} >= {
        "check",
        "example",
        "restore",
        "enqueue",
        "generate",
        "stop",
    }
    return found


def files(folder):
    return {path for path in folder.rglob("*") if path.is_file()}


def upload(client, name="x.png", data=None):
    body = PICTURE.read_bytes() if data is None else data
    answer = client.post(f"{API}/upload", files={"files": (name, body, "image/png")}, headers=OWN)
    assert answer.status_code == 200
    return answer.json()[0]


def strangers(home, backend):
    """Name -> a path that was not uploaded in this run."""
    secret = home / "secret.png"
    link = backend.folder / "link.png"
    if not link.is_symlink():
        link.symlink_to(secret)
        shutil.copy(secret, backend.folder / "left.png")
        os.mkfifo(backend.folder / "pipe.png")
    other = Uploads()
    with open(secret, "rb") as file:
        paths = {"another demo's": other.put("x.png", file)}
    other.close()
    own = f"{backend.folder}/"
    return {name: str(path) for name, path in paths.items()} | {
        "absolute": str(secret),
        "relative": os.path.relpath(secret),
        "dots": f"{own}../secret.png",
        "slashes": f"/{secret}",
        "escaped": str(secret).replace("/", "%2f"),
        "nul": f"{own}x.png\0{secret}",
        "newline": f"{secret}\n",
        "link": str(link),
        "only lies there": f"{own}left.png",
        "pipe": f"{own}pipe.png",
        "lock": f"{own}{LOCK}",
        "folder": str(backend.folder),
        "device": "/dev/zero",
        "descriptor": "/dev/fd/0",
        "process": "/proc/self/environ",
        "root": "/proc/self/root/etc/hostname",
        "home": "~/.bashrc",
        "url": f"{PAGE}{API}/file={secret}",
        "file url": f"file://{secret}",
        "data url": "data:image/png;base64,aHVudGVyMg==",
        "empty": "",
    }


def spellings(path, uploaded):
    """A file in an event, as Gradio or anybody else might read it."""
    yield {"path": path, "meta": META}
    yield {"path": path}
    yield {"path": path, "meta": {"_type": "gradio.Other"}}
    yield {"path": path, "meta": None}
    yield {"path": path, "url": path, "meta": META, "is_stream": True}
    yield {"url": path, "meta": META}
    yield {"path": None, "url": path, "meta": META}
    yield {"path": [path], "meta": META}
    yield [{"path": path, "meta": META}]
    yield [[{"image": {"path": path, "meta": META}, "caption": None}]]
    yield {"value": {"path": path, "meta": META}}
    yield {"__type__": "update", "value": {"path": path, "meta": META}}
    yield {"video": {"path": uploaded, "meta": META}, "image": {"path": path, "meta": META}}


def bodies(event, values):
    """Events with these values in every place."""
    known = {"fn_index": event["id"], "session_hash": "stranger", "trigger_id": None}
    number = max(1, len(event["inputs"]))
    for value in values:
        for place in range(number):
            yield {**known, "data": [None] * place + [value] + [None] * (number - 1 - place)}


def test_no_event_reaches_a_file_that_was_not_uploaded(client, backend, home, events):
    """Asked for over the wire: each event with each path, and each spelling of one; all of them, of the check
    alone."""
    from edg.demo.guard import Refused, checked_event

    uploaded = upload(client)
    paths = strangers(home, backend)
    before = files(home)
    for event in events:
        values = [{"path": path, "meta": META} for path in paths.values()]
        for value in [*values, *spellings(paths["absolute"], uploaded)]:
            body = list(bodies(event, [value]))[-1]
            answer = client.post(f"{API}/queue/join", json=body, headers=OWN)
            assert answer.status_code == 403, body
        for path in paths.values():
            for body in bodies(event, spellings(path, uploaded)):
                with pytest.raises(Refused) as error:
                    checked_event(json.dumps(body).encode(), backend.uploads)
                assert error.value.status == 403
    assert files(home) == before
    for path in paths.values():
        answer = client.get(f"{API}/file={quote(path)}", headers=OWN)
        assert answer.status_code in (403, 404) and SECRET not in answer.content, path


@pytest.mark.parametrize(
    "route", ["run/predict", "run/generate", "api/generate", "call/generate", "call/v2/generate",
              "queue/push", "queue/join/",
              "component_server", "stream/1", "cancel", "reset", "login", "run-history/connect"]
)  # fmt: skip
def test_no_other_route_takes_a_file(client, backend, home, route):
    before = files(home)
    image = {"path": str(home / "secret.png"), "meta": META}
    body = {"data": [None, image, "", 1, False], "fn_index": 4, "session_hash": "stranger",
            "event_id": "1", "image": image, "component_id": 6, "fn_name": "preprocess"}  # fmt: skip
    for sent in (body, body | {"batched": True, "data": [[value] for value in body["data"]]}):
        answer = client.post(f"{API}/{route}", json=sent, headers=OWN)
        assert answer.status_code in (403, 404) and files(home) == before


def messages_of(client, session):
    """The messages that the page gets of its events, until they end."""
    answer = client.get(f"{API}/queue/data", params={"session_hash": session})
    return [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: ")]


def test_what_is_chosen_in_a_gallery_is_a_number(client, backend, home, events):
    """Of what a gallery sends beside it, files too, nothing is read."""
    before = files(home)
    chosen = [event for event in events if event["targets"][0][1] == "select"]
    assert {event["api_name"] for event in chosen} == {"example", "restore"}
    value = {"image": {"path": str(home / "secret.png"), "url": "file:///etc/hostname", "meta": META}}
    for event in chosen:
        known = {"fn_index": event["id"], "data": [None] * len(event["inputs"]), "session_hash": "chooser"}
        for index, code in [(0, 200), (99, 200), (-1, 400), ("0", 400), ([0], 400), (True, 400), (None, 400)]:
            body = known | {"event_data": {"index": index, "value": value}}
            assert client.post(f"{API}/queue/join", json=body, headers=OWN).status_code == code, index
            if code == 200:
                messages = messages_of(client, "chooser")
                assert any(m["msg"] == "process_completed" and m["success"] for m in messages), messages
                assert "secret" not in json.dumps(messages)
    assert files(home) == before


def test_what_was_uploaded_is_looked_at(client, backend, events):
    """The same event with a file of this run: by its path alone, whatever else the browser says of it."""
    look = next(event["id"] for event in events if event["api_name"] == "check")
    good, bad = upload(client), upload(client, "notes.png", b"no image")
    for path, words in [(good, ""), (bad, "notes.png")]:
        image = {"path": path, "url": "file:///etc/hostname", "orig_name": "/etc/x", "meta": {"_type": "x"}}
        body = {"fn_index": look, "data": [image], "session_hash": "looker"}
        assert client.post(f"{API}/queue/join", json=body, headers=OWN).status_code == 200
        (done,) = [m for m in messages_of(client, "looker") if m["msg"] == "process_completed"]
        assert done["success"] and words in done["output"]["data"][1]
        assert bool(done["output"]["data"][1]) is bool(words)
        assert client.get(f"{API}/file={path}").status_code == 200


def test_gradios_own_check_is_on(backend, home, events, capsys):
    """Were there no guard before it, no event would reach a file outside either."""
    import gradio as gr
    from fastapi import FastAPI

    from edg.demo.server import page

    bare = gr.mount_gradio_app(FastAPI(), page(backend, []), path="/")
    before = files(home)
    with TestClient(bare, base_url=PAGE) as client:
        for event in events:
            image = {"path": str(home / "secret.png"), "meta": META}
            body = {"fn_index": event["id"], "data": [image] * len(event["inputs"]), "session_hash": "bare"}
            client.post(f"{API}/queue/join", json=body)
            assert "secret.png" not in json.dumps(
                [m for m in messages_of(client, "bare") if m.get("success")]
            )
    assert files(home) == before and SECRET.decode() not in capsys.readouterr().out


@pytest.mark.parametrize(
    "body",
    ["", "[]", "3", "{", "[" * 90_000, '{"data": 3}', '{"data": [NaN]}', '{"data": [1e999]}', "{}" * 2,
     '{"data": [' + "9" * 5000 + "]}", '{"data": [], "session_hash": "../x"}', '{"data": [], "fn_index": -1}',
     '{"data": [], "fn_index": 1.5}', '{"data": ["\\ud800"]}',
     '{"data": [], "session_hash": {"path": "/etc/hostname"}}']
)  # fmt: skip
def test_what_is_no_event(client, body):
    answer = client.post(f"{API}/queue/join", content=body.encode(), headers=OWN)
    assert answer.status_code in (400, 403)


@pytest.mark.parametrize("seed, dial", [(float("inf"), 0.5), ("x", 0.5), (1, 10**400), (1, {}), (1, None)])
def test_a_field_that_is_no_number(backend, seed, dial):
    from edg.demo.server import Events

    events = Events(SimpleNamespace(model=DemoModel("fake", {}, [Slider("dial", 0, 1, 0.1, 0.5)])), [])
    with pytest.raises(UsageError):
        events.read_request({"path": "x.png"}, "a prompt", seed, False, dial)


def test_an_event_reads_in_one_way(client, home, backend):
    """A name that stands there twice, or other encodings: what is checked is what is passed on."""
    from edg.demo.guard import Refused, checked_event

    path, secret = upload(client), str(home / "secret.png")
    once = '{"data": [{"path": "%s", "path": "%s", "meta": {"_type": "gradio.FileData"}}]}'
    kept = json.loads(checked_event((once % (secret, path)).encode(), backend.uploads))
    assert kept["data"] == [{"path": path, "orig_name": "x.png", "meta": META}]
    for encoding in ("utf-8", "utf-16", "utf-32"):
        with pytest.raises(Refused) as error:
            checked_event((once % (path, secret)).encode(encoding), backend.uploads)
        assert error.value.status == 403


def test_an_event_is_small(client):
    body = {"data": ["x" * 100_000], "fn_index": 0, "session_hash": "large"}
    assert client.post(f"{API}/queue/join", json=body, headers=OWN).status_code == 413
    chunks = iter([b'{"data": [], "fn_index": 3, ', b'"session_hash": "chunks"}'])
    assert client.post(f"{API}/run/predict", content=chunks, headers=OWN).status_code == 413


@pytest.mark.parametrize(
    "headers, own",
    [
        ({"Origin": PAGE}, True),
        ({"Sec-Fetch-Site": "same-origin"}, True),
        ({"Origin": PAGE, "Sec-Fetch-Site": "same-origin"}, True),
        ({}, False),
        ({"Origin": "null"}, False),
        ({"Origin": ""}, False),
        ({"Origin": "http://127.0.0.1"}, False),
        ({"Origin": "http://127.0.0.1:7861"}, False),
        ({"Origin": "http://127.0.0.1:78600"}, False),
        ({"Origin": "https://127.0.0.1:7860"}, False),
        ({"Origin": "http://localhost:7860"}, False),
        ({"Origin": "http://127.0.0.1:7860.evil.example"}, False),
        ({"Origin": "http://evil.example"}, False),
        ({"Origin": f"{PAGE}, http://evil.example"}, False),
        ({"Origin": PAGE, "Sec-Fetch-Site": "cross-site"}, False),
        ({"Origin": "http://evil.example", "Sec-Fetch-Site": "same-origin"}, False),
        ({"Sec-Fetch-Site": "same-site"}, False),
        ({"Sec-Fetch-Site": "cross-site"}, False),
        ({"Sec-Fetch-Site": "none"}, False),
        ({"Host": "evil.example:7860", "Origin": "http://evil.example:7860"}, False),
        ({"Host": "127.0.0.1.evil.example", "Origin": "http://127.0.0.1.evil.example"}, False),
        ({"Host": "127.0.0.1:7860@evil.example", "Origin": PAGE}, False),
        ({"Host": "10.0.0.1:7860", "Origin": "http://10.0.0.1:7860"}, False),
        ({"Host": "localhost:7860", "Origin": "http://localhost:7860"}, True),
    ],
)
def test_what_changes_something_comes_from_the_page(client, home, headers, own):
    """Uploads and events alike; the port may be another one's end of a tunnel, it is the same in both."""
    before = files(home)
    event = {"data": [], "fn_index": 3, "session_hash": "visitor"}
    given = {"files": ("x.png", PICTURE.read_bytes(), "image/png")}
    answers = [
        client.post(f"{API}/run/predict", json=event, headers=headers),
        client.post(f"{API}/upload", files=given, headers=headers),
        client.post(f"{API}/cancel", json={**event, "event_id": "1"}, headers=headers),
    ]
    codes = {answer.status_code for answer in answers}
    assert codes == {200} if own else codes <= {400, 403}, codes
    assert (files(home) == before) is not own
    for method in ("PUT", "PATCH", "DELETE", "OPTIONS"):
        answer = client.request(method, f"{API}/upload", headers=headers)
        assert answer.status_code in (400, 403, 405)
        assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize(
    "path, headers, code",
    [
        ("/", {}, 200),
        ("/", {"Sec-Fetch-Site": "none", **OPENED}, 200),
        ("/", {"Sec-Fetch-Site": "cross-site", **OPENED}, 200),
        ("/config", {"Sec-Fetch-Site": "cross-site", **OPENED}, 403),
        ("/", {"Sec-Fetch-Site": "cross-site", **OPENED, "Sec-Fetch-Dest": "iframe"}, 403),
        ("/", {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}, 403),
        ("/config", {"Origin": "http://evil.example"}, 403),
        ("/config", {"Sec-Fetch-Site": "same-site"}, 403),
        (f"{API}/heartbeat/x", {"Sec-Fetch-Site": "cross-site"}, 403),
        (f"{API}/heartbeat/x", {"Origin": "null"}, 403),
        (f"{API}/queue/data?session_hash=x", {"Sec-Fetch-Site": "cross-site"}, 403),
        (f"{API}/deep_link?session_hash=x", {"Sec-Fetch-Site": "same-origin"}, 404),
        (f"{API}/runs", {}, 404),
        (f"{API}/openapi.json", {}, 404),
        ("/monitoring", {}, 404),
    ],
)  # fmt: skip
def test_what_other_sites_read(client, path, headers, code):
    """A link may lead to the page; nothing else of it is anybody's but its own."""
    assert client.get(path, headers=headers).status_code == code


@pytest.mark.parametrize(
    "host, asked, code",
    [
        ("0.0.0.0", "192.168.1.5:7860", 200),
        ("0.0.0.0", "[fe80::1]:7860", 200),
        ("0.0.0.0", "localhost:7860", 200),
        ("0.0.0.0", "box:7860", 200),
        ("0.0.0.0", "box.local:7860", 200),
        ("0.0.0.0", "named.example:7860", 200),
        ("0.0.0.0", "evil.example:7860", 400),
        ("0.0.0.0", "box.evil.example:7860", 400),
        ("0.0.0.0", "192.168.1.5.evil.example:7860", 400),
        ("0.0.0.0", "1921681.5e1:7860", 400),
        ("127.0.0.2", "127.0.0.2:7860", 200),
        ("127.0.0.2", "192.168.1.5:7860", 400),
        ("127.0.0.1", "box:7860", 400),
    ],
)
def test_names_of_the_page(monkeypatch, host, asked, code):
    """A name that somebody else gives this machine (DNS rebinding) is not the page's; an address is none."""
    from starlette.applications import Starlette
    from starlette.responses import PlainTextResponse
    from starlette.routing import Route

    from edg.demo.guard import Guard, names_of

    monkeypatch.setattr("platform.node", lambda: "Box")
    names, any_address = names_of(host, "" if host.startswith("127.") else "Named.Example")
    page = Starlette(routes=[Route("/", lambda request: PlainTextResponse("page"))])
    guarded = Guard(page, None, names, any_address)
    assert TestClient(guarded).get("/", headers={"Host": asked}).status_code == code


@pytest.mark.parametrize("kind", ["cut", "no form", "two files", "a field", "no boundary", "no name", "text"])
def test_what_is_no_upload(client, home, kind):
    """Nothing is left of it."""
    before, data = files(home), PICTURE.read_bytes()
    form = {"Content-Type": "multipart/form-data; boundary=x"}
    part = b'--x\r\nContent-Disposition: form-data; name="files"; filename="x.png"\r\n\r\n' + data
    sent = {
        "cut": {"content": part, "headers": OWN | form},
        "no form": {"content": data, "headers": OWN},
        "two files": {"files": [("files", ("x.png", data))] * 2, "headers": OWN},
        "a field": {"data": {"files": "/etc/hostname"}, "headers": OWN},
        "no boundary": {"content": part, "headers": OWN | {"Content-Type": "multipart/form-data"}},
        "no name": {"content": b"--x\r\n\r\n\r\n--x--", "headers": OWN | form},
        "text": {"content": b"x" * 1000, "headers": OWN | form},
    }[kind]
    assert client.post(f"{API}/upload", **sent).status_code == 400
    assert files(home) == before


def test_an_upload_that_breaks_off_leaves_nothing(backend, home):
    """Neither a file nor the room that it was promised; nor does one that says less than it is."""
    import anyio
    from starlette.requests import ClientDisconnect

    from edg.demo.guard import Guard, Refused

    guard = Guard(None, backend.uploads, frozenset(), False)
    start = b'--x\r\nContent-Disposition: form-data; name="files"; filename="x.png"\r\n\r\n'
    headers = [(b"content-length", b"3000000"), (b"content-type", b"multipart/form-data; boundary=x")]
    scope = {
        "type": "http",
        "method": "POST",
        "path": f"{API}/upload",
        "query_string": b"",
        "headers": headers,
    }
    for last, error in [
        ({"type": "http.disconnect"}, ClientDisconnect),
        ({"type": "http.request", "body": bytes(1_000_000), "more_body": True}, Refused),
    ]:
        before, messages = files(home), [start, *[bytes(1_000_000)] * 2]

        async def receive(messages=messages, last=last):
            if messages:
                return {"type": "http.request", "body": messages.pop(0), "more_body": True}
            return last

        with pytest.raises(error), ThreadPoolExecutor(1) as other:  # a browser's loop may run in this one
            other.submit(anyio.run, guard.upload, scope, receive).result()
        assert files(home) == before and backend.uploads._coming == 0


def test_a_websocket_is_not_answered(client):
    with pytest.raises(Exception) as error, client.websocket_connect("/", headers=OWN):
        pass
    assert "WebSocketDisconnect" in type(error.value).__name__


# ---- folders of demos that were killed ---------------------------------------------------------------------


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def killed():
    """The folder of a demo that was killed, with an upload."""
    demo = Uploads()
    with open(PICTURE, "rb") as file:
        demo.put("x.png", file)
    os.close(demo._lock)  # as it goes with a process
    return demo.folder


@pytest.mark.slow
def test_a_killed_demo_is_swept_by_the_next(temporary):
    """A running one is not; nor what only has such a name, links, and what is somebody else's."""
    dead, alive, mine = killed(), Uploads(), temporary / "edg-demo-frames"
    mine.mkdir()
    (mine / "00000.png").touch()
    (temporary / "edg-demo-note").touch()
    elsewhere = killed()
    elsewhere = elsewhere.rename(temporary / "elsewhere")
    (temporary / "edg-demo-link").symlink_to(elsewhere)
    odd = [temporary / f"edg-demo-odd{number}" for number in range(3)]
    for folder in odd:
        folder.mkdir()
    (odd[0] / LOCK).symlink_to(elsewhere / LOCK)
    os.mkfifo(odd[1] / LOCK)
    os.link(elsewhere / LOCK, odd[2] / LOCK)
    with DemoBackend(DemoModel("fake", {})) as backend:
        kept = {
            backend.folder,
            alive.folder,
            mine,
            temporary / "edg-demo-note",
            temporary / "edg-demo-link",
            *odd,
            elsewhere,
        }
        assert not dead.exists() and set(temporary.iterdir()) == kept
        assert len(list(elsewhere.rglob("*.png"))) == 1
    alive.close()


def test_what_is_another_users_stays(temporary, monkeypatch):
    from edg.demo.uploads import sweep

    dead, user = killed(), os.geteuid()
    monkeypatch.setattr("os.geteuid", lambda: user + 1)
    sweep()
    assert len(list(dead.rglob("*.png"))) == 1
    monkeypatch.undo()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    sweep()
    assert not dead.exists()


def test_a_demo_that_is_swept_while_it_starts_takes_another_folder(temporary, monkeypatch):
    from edg.demo import uploads

    real, taken = uploads.lock, []

    def late(handle):
        if not taken:
            (folder,) = temporary.iterdir()
            taken.append(folder)
            shutil.rmtree(folder)
        return real(handle)

    monkeypatch.setattr(uploads, "lock", late)
    demo = Uploads()
    assert demo.folder.exists() and demo.folder != taken[0]
    demo.close()
    assert list(temporary.iterdir()) == []


def test_an_upload_goes_after_a_day(temporary, monkeypatch):
    demo = Uploads()
    with open(PICTURE, "rb") as file:
        old, lasting = demo.put("x.png", file), demo.put("y.png", file, lasting=True)
    demo.reserve(1)
    assert demo.is_upload(str(old))
    now = sys.modules["time"].time()
    monkeypatch.setattr("edg.demo.uploads.time.time", lambda: now + 86_401)
    demo.reserve(1)
    assert not old.exists() and not demo.is_upload(str(old)) and demo.is_upload(str(lasting))
    demo.close()
