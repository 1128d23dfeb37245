"""Signals that are noted and looked at later, and the end of a process that does not look."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from edg.core import process
from edg.core.hashing import sha256_file
from edg.core.process import Stopping, stopping
from edg.runner.progress import Meter
from edg.weights.hashing import HashFollower


@pytest.fixture
def terminated():
    """SIGTERM raises SystemExit(143) and SIGINT KeyboardInterrupt, as in a command."""

    def handler(number, frame):
        raise SystemExit(143)

    before = {
        signal.SIGTERM: signal.signal(signal.SIGTERM, handler),
        signal.SIGINT: signal.signal(signal.SIGINT, signal.default_int_handler),  # ignored behind `&`
    }
    yield
    for number, former in before.items():
        signal.signal(number, former)


ENDS = {signal.SIGINT: KeyboardInterrupt, signal.SIGTERM: SystemExit}


@pytest.mark.parametrize("number", ENDS)
def test_a_signal_strikes_where_it_is_looked_for(terminated, number):
    ours, passed, former = Stopping(), [], signal.getsignal(number)
    with pytest.raises(ENDS[number]), ours.postponed():
        os.kill(os.getpid(), number)
        passed.append(ours.number)
        ours.check()
        passed.append("never")
    assert passed == [number] and ours.number == 0 and signal.getsignal(number) is former


@pytest.mark.parametrize("number", ENDS)
def test_it_strikes_at_the_end_at_the_latest(terminated, number):
    ours = Stopping()
    with pytest.raises(ENDS[number]), ours.postponed():
        os.kill(os.getpid(), number)


def test_an_error_of_the_work_comes_first(terminated):
    ours = Stopping()
    with pytest.raises(ZeroDivisionError), ours.postponed():
        os.kill(os.getpid(), signal.SIGTERM)
        raise ZeroDivisionError


def test_at_once_and_postponed_in_each_other(terminated):
    ours, passed = Stopping(), []
    with pytest.raises(SystemExit), ours.postponed(), ours.at_once():
        with pytest.raises(SystemExit), ours.postponed():  # a merge, inside of what has one thread
            os.kill(os.getpid(), signal.SIGTERM)
            passed.append("noted")
        ours.number = 0
        os.kill(os.getpid(), signal.SIGTERM)
        passed.append("never")
    assert passed == ["noted"]


def test_only_the_main_thread_raises_and_an_ignored_signal_stays_ignored(terminated):
    ours, raised = Stopping(), []

    def other():
        try:
            ours.check()
        except BaseException as error:
            raised.append(error)

    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with pytest.raises(SystemExit), ours.postponed():
            os.kill(os.getpid(), signal.SIGINT)
            assert ours.number == 0
            os.kill(os.getpid(), signal.SIGTERM)
            thread = threading.Thread(target=other)
            thread.start(), thread.join()
            assert ours.number == signal.SIGTERM and not raised
    finally:
        signal.signal(signal.SIGINT, before)


def test_who_is_unhurried_looks_itself(terminated):
    ours = Stopping()
    with pytest.raises(SystemExit), ours.postponed():
        with ours.unhurried():
            os.kill(os.getpid(), signal.SIGTERM)
            ours.check()
            assert ours.number == signal.SIGTERM
        ours.check()
        pytest.fail("not raised")


@pytest.mark.parametrize("where", ["meter", "hash", "follower"])
def test_loops_look(terminated, tmp_path, where):
    (tmp_path / "a").write_bytes(b"abc")
    with pytest.raises(SystemExit), stopping.postponed():
        os.kill(os.getpid(), signal.SIGTERM)
        if where == "meter":
            Meter(quiet=True)("sample", 1, 2)
        if where == "hash":
            sha256_file(tmp_path / "a")
        if where == "follower":
            idle = HashFollower([])
            idle.join()
            idle.is_alive = lambda: True
            idle.result()
        pytest.fail("not raised")


HANGS = """
import sys, threading, time
from edg.cli import main as cli
from edg.core import process
process.GRACE, process.SECOND, process.TWICE = 1.5, 0.3, 0.2
def command(args):
    print("ready", flush=True)
    with process.stopping.unhurried() if "--unhurried" in sys.argv else cli.nullcontext():
        lock = threading.Lock()
        lock.acquire(), lock.acquire()
cli.hang = command
run = "edg.cli.main:hang"
cli.COMMANDS["doctor"] = cli.Command("", "edg.cli.completion:add_arguments", run, polls_signals=True)
cli.entry(["doctor", "bash", *(["--json"] if "--json" in sys.argv else [])])
"""


@pytest.mark.parametrize("flags, signals, code, most", [
    ([], [signal.SIGTERM], 143, 20),
    (["--json"], [signal.SIGINT], 130, 20),
    (["--unhurried"], [signal.SIGINT, signal.SIGTERM], 130, 20),
])  # fmt: skip
def test_what_hangs_is_ended(flags, signals, code, most):
    """For ever in a lock; unhurried, by a second signal alone."""
    run = subprocess.Popen(
        [sys.executable, "-c", HANGS, *flags], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert run.stdout.readline() == "ready\n", run.communicate()
    began = time.monotonic()
    run.send_signal(signals[0])
    if len(signals) > 1:
        time.sleep(2.5)
        assert run.poll() is None, "it is given its time"
        run.send_signal(signals[1])
    err = run.communicate(timeout=60)[1]
    assert run.returncode == code and time.monotonic() - began < most
    assert err.count("\n") == 1 and (str(code) in err) == bool(flags[:1] == ["--json"])


def test_a_worker_process_keeps_its_signals_for_itself():
    """Forked, it shares the pipe by which a signal is seen; what is sent to it must not end its parent."""
    code = (
        "import os, signal, time; from edg.core.process import stopping\n"
        "signal.signal(signal.SIGTERM, lambda *_: None)\n"
        "from edg.core import process; process.GRACE = 0.2\n"
        "stopping.force(lambda number: None)\n"
        "pid = os.fork()\n"
        "if not pid: os.kill(os.getpid(), signal.SIGTERM); time.sleep(0.1); os._exit(0)\n"
        "os.waitpid(pid, 0); time.sleep(1); print('alive')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "alive\n", done


def test_codes():
    assert process.CODES == {signal.SIGTERM: 143, signal.SIGINT: 130}
