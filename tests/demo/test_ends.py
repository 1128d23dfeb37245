"""A running demo: fifty clients at once, and its end whatever it is doing."""

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
PICTURE = ROOT / "prompts/sprites/05-red-circle.png"
API = "/gradio_api"
CLIENTS = 50
SECRET = b"hunter2"
# `edg demo` with a model that takes no step to its end, an image that is looked at for ever, and a path at
# which the loop of the server hangs.
HANGING = """
import sys, time
import numpy as np
from types import SimpleNamespace
import edg.cli.demo
from edg.demo import guard
from edg.demo.jobs import DemoBackend, DemoModel

def hang(*args, **how):
    print("hangs", flush=True)
    time.sleep(600)

def animate(image, prompt, **how):
    if prompt == "hang":
        hang()
    settings = {"fps": 8, "crf": 10, "prompt": prompt, "seed": 1}
    frames = np.zeros((2, 16, 16, 3), np.uint8)
    return SimpleNamespace(frames=frames, record={"id": "x", "settings": settings})

check = DemoBackend.check_image

def check_image(self, path):
    check(self, path)
    if path.name == "hang.png":
        hang()

DemoBackend.check_image = check_image
real = guard.Guard.check_route

def check_route(self, scope):
    hang() if scope["path"] == "/hang" else real(self, scope)

guard.Guard.check_route = check_route
edg.cli.demo.demo_model = lambda args: DemoModel("fake", {"edg": animate})
from edg.cli.main import entry
entry(["demo", "--port", "0"])
"""
LOADING = HANGING.replace("edg.cli.demo.demo_model = lambda", "edg.cli.demo.demo_model = hang; _ = lambda")


def start(home, *command):
    """(process, port) of a demo whose folder lies in `home`."""
    environment = os.environ | {"TMPDIR": str(home), "PYTHONPATH": str(ROOT), "CKPT_PATH": str(home / "none")}
    with open(home / "stderr", "wb") as log:
        process = subprocess.Popen(
            [sys.executable, *command], cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=log
        )
    port = int(re.search(rb"http://127\.0\.0\.1:(\d+)", process.stdout.readline())[1])
    return process, port


def ask(port, method, path, body=None, **headers):
    """(status, body) of a request of the page itself."""
    own = {"Origin": f"http://127.0.0.1:{port}"}
    line = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    line.request(method, API + path if not path.startswith("//") else path[1:], body, own | headers)
    answer = line.getresponse()
    try:
        return answer.status, answer.read()
    finally:
        line.close()


def form(name, data):
    head = f'--x\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'
    return head.encode() + data + b"\r\n--x--\r\n", {"Content-Type": "multipart/form-data; boundary=x"}


def upload(port, name="x.png", more=b""):
    body, headers = form(name, PICTURE.read_bytes() + more)
    status, answer = ask(port, "POST", "/upload", body, **headers)
    assert status == 200
    return json.loads(answer)[0]


def events(port):
    """api_name -> id."""
    found = json.loads(ask(port, "GET", "//config")[1])["dependencies"]
    return {event["api_name"]: event["id"] for event in found}


def send(port, event, data, session):
    body = json.dumps({"fn_index": event, "data": data, "session_hash": session})
    return ask(port, "POST", "/queue/join", body)


def image(path):
    return {"path": path, "meta": {"_type": "gradio.FileData"}}


@pytest.fixture
def hanging(tmp_path):
    process, port = start(tmp_path, "-c", HANGING)
    yield process, port, tmp_path
    process.kill()
    process.communicate()


def hangs(process):
    assert process.stdout.readline() == b"hangs\n"


def ended(process):
    """(exit code, seconds that it took)"""
    began = time.monotonic()
    process.wait(30)
    return process.returncode, time.monotonic() - began


def test_it_ends_whatever_its_threads_do(hanging):
    """A step without end, an event that hangs, an upload that stays away, a tab that listens; two signals."""
    process, port, home = hanging
    known = events(port)
    assert send(port, known["check"], [image(upload(port, "hang.png"))], "looker")[0] == 200
    hangs(process)
    wanted = [None, image(upload(port)), "hang", 1, False]
    assert send(port, known["generate"], wanted, "maker")[0] == 200
    hangs(process)
    lines = [socket.create_connection(("127.0.0.1", port)) for _ in range(3)]
    head = f"Host: 127.0.0.1:{port}\r\nOrigin: http://127.0.0.1:{port}\r\n"
    lines[0].sendall(f"GET {API}/queue/data?session_hash=maker HTTP/1.1\r\n{head}\r\n".encode())
    lines[1].sendall(f"GET {API}/heartbeat/maker HTTP/1.1\r\n{head}\r\n".encode())
    half = f"{head}Content-Type: multipart/form-data; boundary=x\r\nContent-Length: 5000000\r\n\r\n--x"
    lines[2].sendall(f"POST {API}/upload HTTP/1.1\r\n{half}".encode())
    assert all(line.recv(9) == b"HTTP/1.1 " for line in lines[:2])
    process.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    process.send_signal(signal.SIGTERM)
    code, seconds = ended(process)
    assert code == 143 and seconds < 4.7
    assert not list(home.glob("edg-*"))
    for line in lines:
        line.close()


def test_it_ends_while_the_server_hangs(hanging):
    process, port, home = hanging
    line = http.client.HTTPConnection("127.0.0.1", port)
    line.request("GET", "/hang")
    hangs(process)
    process.send_signal(signal.SIGINT)
    code, seconds = ended(process)
    assert code == 130 and seconds < 5
    assert not list(home.glob("edg-*"))
    line.close()


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_it_ends_where_nothing_hangs(hanging, number, code):
    process, port, home = hanging
    assert ask(port, "GET", "//config")[0] == 200
    process.send_signal(number)
    assert ended(process)[0] == code
    assert not list(home.glob("edg-*"))


@pytest.mark.parametrize("signals", [1, 3])
def test_it_ends_while_it_starts(tmp_path, signals):
    environment = os.environ | {"TMPDIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", LOADING]
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE) as process:
        hangs(process)
        assert list(tmp_path.glob("edg-*"))
        for _ in range(signals):
            process.send_signal(signal.SIGTERM)
            time.sleep(0.1)
        code, seconds = ended(process)
    assert code == 143 and seconds < 5
    assert not list(tmp_path.glob("edg-*"))


def visitor(port, known, secret, number):
    """Act as one of fifty: the page, an upload, its check and a clip; and the files that it must not get."""
    session = f"visitor{number}"
    assert ask(port, "GET", "//")[0] == 200
    path = upload(port, f"{number}.png", bytes([number]))
    assert send(port, known["check"], [image(str(secret))], session)[0] == 403
    for name, data in [
        ("check", [image(path)]),
        ("generate", [None, image(path), f"{number}", 1, False]),
    ]:
        assert send(port, known[name], data, session)[0] == 200
        answer = ask(port, "GET", f"/queue/data?session_hash={session}")[1]
        assert b'"process_completed"' in answer and b'"success":true' in answer and SECRET not in answer
    made = re.findall(rb'"path":"([^"]*\.mp4)"', answer)
    assert made, answer[-2000:]
    assert ask(port, "GET", f"/file={made[-1].decode()}")[1][4:8] == b"ftyp"
    status, answer = ask(port, "GET", f"/file={secret}")
    assert status == 403 and SECRET not in answer
    return path


def test_fifty_clients_at_once(tmp_path):
    """Each gets its clip in its turn; a folder that a killed demo left is gone, one that runs has its own."""
    secret = tmp_path / "secret.png"
    secret.write_bytes(PICTURE.read_bytes() + SECRET)
    left = subprocess.run(
        [sys.executable, "-c", "import os; from edg.demo.uploads import Uploads; print(Uploads().folder, "
         "flush=True); os.kill(os.getpid(), 9)"],
        env=os.environ | {"TMPDIR": str(tmp_path), "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
    ).stdout.strip()  # fmt: skip
    assert Path(left).is_dir()
    process, port = start(tmp_path, "-c", HANGING)
    try:
        assert not Path(left).exists() and len(list(tmp_path.glob("edg-demo-*"))) == 1
        known = events(port)
        with ThreadPoolExecutor(CLIENTS) as pool:
            paths = list(pool.map(lambda number: visitor(port, known, secret, number), range(CLIENTS)))
        assert len(set(paths)) == CLIENTS
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)
    assert process.returncode == 143 and not list(tmp_path.glob("edg-*"))
    assert b"Traceback" not in (tmp_path / "stderr").read_bytes()
