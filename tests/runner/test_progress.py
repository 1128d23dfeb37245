"""What a user sees while clips are made: on a terminal, in a log, with several ranks."""

import io
import os
import pty
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from fakes import job

from edg.core.log import WIPE, handler, log, warn
from edg.runner import progress
from edg.runner.progress import Meter, byte_progress, format_duration

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
    """Time in seconds that the test sets."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def screen(monkeypatch, terminal):
    out = Screen(terminal)
    monkeypatch.setattr(sys, "stderr", out)
    monkeypatch.setenv("TERM", "xterm")
    return out


def drive(meter, clockwork, requests, chunk=2, steps=4, pace=10.0):
    """Two phases for each chunk, as a system reports them."""
    for start in range(0, len(requests), chunk):
        together = requests[start : start + chunk]
        meter.begin(start, [request.id for request in together])
        calls = [
            (phase, step, r) for phase in ("one", "two") for r in together for step in range(1, steps + 1)
        ]
        for count, (phase, step, request) in enumerate(calls, 1):
            clockwork[0] += pace
            meter(phase, step, steps, request=request, share=count / len(calls))


def numbers(line):
    """(percent, seconds left, clip, step) of a line."""
    found = re.search(r"(\d+) %, (\d+):(\d+) left, .*clip (\d+)/\d+, \w+ (\d+)/", line)
    percent, minutes, seconds, clip, step = map(int, found.groups())
    return percent, 60 * minutes + seconds, clip, step


def test_a_log_has_a_plain_line_now_and_then(tmp_path, monkeypatch, clockwork):
    out = screen(monkeypatch, terminal=False)
    drive(Meter(clips=4, every=50), clockwork, job(tmp_path, count=4).requests)
    lines = out.getvalue().splitlines()
    assert numbers(lines[0]) == (16, 270, 2, 1) and numbers(lines[-1]) == (94, 20, 4, 2)
    assert lines[0].endswith("prompt 1")
    assert len(lines) == 6 and "\x1b" not in out.getvalue() and "\r" not in out.getvalue()


def test_a_terminal_has_one_line_that_is_drawn_again(tmp_path, monkeypatch, clockwork):
    out = screen(monkeypatch, terminal=True)
    monkeypatch.setattr(progress, "_columns", lambda: 90)
    meter = Meter(clips=2, rank=0, size=3)
    meter.loading()
    drive(meter, clockwork, job(tmp_path, count=2).requests, steps=2)
    before = meter.bar.n
    log("made x")
    assert out.getvalue().count("\n") == 1 and f"{WIPE}made x\n" in out.getvalue()
    drawn = out.getvalue().split("\n")[1]
    assert numbers(drawn) == (100, 0, 2, 2) and before == 1 and "rank 0 of 3" in drawn
    meter.close()
    assert not out.getvalue().split("\r")[-1] and handler.bar is None
    assert all(len(text.rstrip()) <= 90 for text in re.split(r"[\r\n]", out.getvalue()))


def test_lines_of_other_ranks_and_warnings(tmp_path, monkeypatch, clockwork):
    out = screen(monkeypatch, terminal=True)
    drive(Meter(quiet=True, clips=2), clockwork, job(tmp_path, count=2).requests)
    assert out.getvalue() == ""
    monkeypatch.setenv("WORLD_SIZE", "2"), monkeypatch.setenv("RANK", "1")
    log("made x\x1b[31m")
    warn("y")
    assert out.getvalue() == f"{WIPE}[rank 1] made x\\x1b[31m\n{WIPE}[rank 1] warning: y\n"


def test_a_dumb_terminal_is_a_log(tmp_path, monkeypatch, clockwork):
    out = screen(monkeypatch, terminal=True)
    monkeypatch.setenv("TERM", "dumb")
    drive(Meter(clips=2, every=1), clockwork, job(tmp_path, count=2).requests)
    assert "\x1b" not in out.getvalue() and numbers(out.getvalue().splitlines()[0])[0] == 6
    assert byte_progress("merging") is None


def test_bytes_are_counted(monkeypatch):
    out = screen(monkeypatch, terminal=True)
    show = byte_progress("merging")
    bar = handler.bar
    show(250, 1000)
    assert (bar.n, bar.total) == (250, 1000)
    show(1000, 1000)
    assert (bar.n, handler.bar) == (1000, None) and not out.getvalue().split("\r")[-1]


def test_durations():
    assert [format_duration(s) for s in (0, 83, 3723)] == ["00:00", "01:23", "1:02:03"]


def test_control_characters_of_prompts_are_not_drawn(monkeypatch):
    out = screen(monkeypatch, terminal=True)
    meter = Meter()
    meter._draw(0.5, "a\x1b[31mb")
    meter.close()
    assert "\x1b[31m" not in out.getvalue() and "\\x1b[31m" in out.getvalue()


def test_a_bar_starts_no_thread(monkeypatch):
    screen(monkeypatch, terminal=True)
    before = threading.active_count()
    meter = Meter()
    meter.loading()
    assert meter.bar is not None and threading.active_count() == before
    meter.close()


@pytest.mark.slow
def test_a_real_terminal(tmp_path):
    """No bar is left beside a line: what follows a bar clears it."""
    code = f"""
import sys; sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests/helpers")!r}]
from pathlib import Path
from fakes import FakeSystem, job, run
import edg.runner.progress as progress
progress.DRAWN = 0
class Reporting(FakeSystem):
    def generate(self, model, requests, observer):
        for i, request in enumerate(requests):
            for step in range(3):
                observer.step("dyn", step + 1, 3, request, (3 * i + step + 1) / 3 / len(requests))
        yield from super().generate(model, requests)
run(job(Path({str(tmp_path)!r}), count=3, chunk=2), Reporting(), lambda: None)
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
    lines = [line.split("\r")[-1].removeprefix("\x1b[K") for line in text.decode().split("\r\n")]
    assert [line.split()[0] for line in lines if line] == ["made", "made", "made", "3"]
    assert "clip 3/3, dyn 3/3, prompt 2" in text.decode()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux has a device that is always full")
@pytest.mark.slow
def test_a_log_on_a_full_disk_stops_nothing():
    code = (
        "from edg.core.log import log; from edg.runner.progress import Meter; log('x'); m = Meter();"
        "m.loading(); m._draw(0.5, 'z'); log('y'); m.close(); print('went on')"
    )
    with open("/dev/full", "w") as full:
        run = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=full, text=True)
    assert (run.returncode, run.stdout) == (0, "went on\n")
