"""What a user sees while clips are made: on a terminal, in a log, with several ranks."""

import io
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from fakes import job  # noqa: E402

from edg.core.log import log  # noqa: E402
from edg.runner import progress  # noqa: E402
from edg.runner.progress import WIPE, Meter, clock, fitted  # noqa: E402

ROOT = Path(__file__).parents[2]


class Screen(io.StringIO):
    def __init__(self, terminal):
        super().__init__()
        self.terminal = terminal

    def isatty(self):
        return self.terminal

    def fileno(self):
        raise OSError


@pytest.fixture
def clockwork(monkeypatch):
    """Time that passes when told to, in seconds."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def screen(monkeypatch, terminal):
    out = Screen(terminal)
    monkeypatch.setattr(sys, "stderr", out)
    monkeypatch.setenv("TERM", "xterm")
    return out


def drive(meter, clockwork, requests, chunk=2, steps=4, pace=10.0):
    """Two phases for each chunk, as a system tells them."""
    for start in range(0, len(requests), chunk):
        together = requests[start : start + chunk]
        meter.begin(start, [request.id for request in together])
        calls = [
            (phase, step, r) for phase in ("dyn", "con") for r in together for step in range(1, steps + 1)
        ]
        for count, (phase, step, request) in enumerate(calls, 1):
            clockwork[0] += pace
            meter(phase, step, steps, request=request, share=count / len(calls))


def test_a_log_has_a_plain_line_now_and_then(tmp_path, monkeypatch, clockwork):
    out = screen(monkeypatch, terminal=False)
    requests = job(tmp_path, count=4).requests
    drive(Meter(clips=4, every=50), clockwork, requests)
    lines = out.getvalue().splitlines()
    assert lines[0] == "  16 %, 4:30 left, clip 2/4, dyn 1/4, prompt 1"
    assert lines[-1] == "  94 %, 0:20 left, clip 4/4, con 2/4, prompt 3"
    assert len(lines) == 6 and "\x1b" not in out.getvalue()


def test_a_terminal_has_one_line_that_is_drawn_again(tmp_path, monkeypatch, clockwork):
    out = screen(monkeypatch, terminal=True)
    requests = job(tmp_path, count=2).requests
    monkeypatch.setattr(progress, "_columns", lambda: 90)
    meter = Meter(clips=2, rank=0, size=3)
    meter.loading()
    drive(meter, clockwork, requests, steps=2)
    log("made x")
    meter.close()
    drawings = out.getvalue().split(WIPE)[1:]
    assert drawings[0] == "loading the parameter sets"
    line = "[##########..........] 50 %, 0:40 left, rank 0 of 3, clip 2/2, dyn 2/2, prompt 1"
    assert drawings[4] == line
    assert all("\n" not in text and len(text) < 90 or text == "made x\n" for text in drawings[:-1])
    assert drawings[-1] == ""


def test_other_ranks_are_quiet_and_say_who_they_are(tmp_path, monkeypatch, clockwork):
    out = screen(monkeypatch, terminal=True)
    drive(Meter(quiet=True, clips=2), clockwork, job(tmp_path, count=2).requests)
    assert out.getvalue() == ""
    monkeypatch.setenv("WORLD_SIZE", "2"), monkeypatch.setenv("RANK", "1")
    log("made x")
    assert out.getvalue() == f"{WIPE}[rank 1] made x\n"


def test_a_dumb_terminal_is_a_log(tmp_path, monkeypatch, clockwork):
    out = screen(monkeypatch, terminal=True)
    monkeypatch.setenv("TERM", "dumb")
    drive(Meter(clips=2, every=1), clockwork, job(tmp_path, count=2).requests)
    assert "\x1b" not in out.getvalue() and out.getvalue().startswith("  6 %, ")


def test_clock():
    assert [clock(s) for s in (0, 5, 83, 3723)] == ["0:00", "0:05", "1:23", "1:02:03"]


def test_a_line_fits():
    assert fitted("a red circle", 12) == "a red circle" and fitted("a red circle", 8) == "a red..."
    assert fitted("圆圆圆圆", 8) == "圆圆圆圆" and fitted("a\nb\x1b[31m", 9) == "ab[31m"


def test_a_real_terminal(tmp_path):
    """No drawing is broken by a line: each screen line is either whole or wiped."""
    code = f"""
import sys; sys.path[:0] = [{str(ROOT)!r}, {str(Path(__file__).parent)!r}]
from pathlib import Path
from fakes import FakeSystem, job, run
import edg.runner.progress as progress
progress.DRAWN = 0
class Telling(FakeSystem):
    def generate(self, model, requests, observer=None):
        for i, request in enumerate(requests):
            for step in range(3):
                observer.step("dyn", step + 1, 3, request, (3 * i + step + 1) / 3 / len(requests))
        yield from super().generate(model, requests)
run(job(Path({str(tmp_path)!r}), count=3, chunk=2), Telling(), lambda: None)
"""
    master, slave = pty.openpty()
    env = {**os.environ, "TERM": "xterm"}
    process = subprocess.Popen([sys.executable, "-c", code], stderr=slave, env=env)
    os.close(slave)
    text = b""
    while True:
        try:
            part = os.read(master, 65536)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        text += part
    assert process.wait() == 0
    shown = [line.split(WIPE)[-1].strip() for line in text.decode().split("\r\n")]
    assert [line.split()[0] for line in shown if line] == ["made", "made", "made", "3"]
    assert "clip 3/3, dyn 3/3, prompt 2" in text.decode()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux has a device that is always full")
def test_a_log_on_a_full_disk_stops_nothing():
    code = (
        "from edg.runner.progress import Meter, log; log('x'); Meter().loading(); log('y'); print('went on')"
    )
    with open("/dev/full", "w") as full:
        run = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=full, text=True)
    assert (run.returncode, run.stdout) == (0, "went on\n")
