"""Processes: killed, interrupted, beside each other, one of several ranks gone."""

import fcntl
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))
import torture  # noqa: E402
from fakes import FakeSystem, job, run  # noqa: E402
from runs import ROOT, clips, edg, given_of, leftovers, prompt_folder, sampling, spawn  # noqa: E402

from edg.core.dist import World  # noqa: E402
from edg.core.errors import MachineError, SomeFailedError  # noqa: E402
from edg.core.files import LOCK, _host, lock_folder, read_json, remove_leftovers  # noqa: E402
from edg.runner import prepare  # noqa: E402
from edg.training.lightning import _cut_log, read_log  # noqa: E402


@pytest.mark.slow
def test_c77_sigkill_while_merging(tmp_path):
    """The long form: python scripts/torture.py merge --kills 50."""
    assert torture.main(["merge", "--kills", "3", "--size", "16", "--json", str(tmp_path / "told")]) == 0
    told = read_json(tmp_path / "told")
    assert told["kills"] == 3 and told["rounds"] >= 1 and told["files_checked"] > 0


def test_c77_torn_and_lost_files_are_seen(tmp_path):
    """The kill loop itself: what it is there to find, it finds."""
    work = torture.Work(lambda *_: None, lambda *_: [sys.executable, "-c", ""], (".json",), 0)
    subject = torture.Torture(work, tmp_path, 0)
    subject.out.mkdir()
    subject.expected = {}
    (subject.out / "a.json").write_text("{}")
    subject._look(killed=True)
    assert subject.tally.bad == 0 and subject.known
    (subject.out / "a.json").write_text('{"torn": ')
    (subject.out / ".edg-tmp-x").write_text("")
    (subject.out / "b.json").write_text("1")
    subject._look(killed=False)
    tally = subject.tally
    assert (tally.torn, tally.lost, tally.leftovers, tally.different) == (1, 1, 1, 1)


@pytest.mark.slow
@pytest.mark.timeout(1500)  # rounds until two were killed; some end before they can be
def test_c78_sigkill_while_sampling(tmp_path):
    """The long form: python scripts/torture.py sample --kills 50."""
    assert torture.main(["sample", "--kills", "2", "--size", "3", "--json", str(tmp_path / "told")]) == 0
    assert read_json(tmp_path / "told")["kills"] == 2


@pytest.mark.slow
@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_c79_signals_end_cleanly(tmp_path, capsys, number, code):
    folder = prompt_folder(tmp_path / "in", *["a red circle moves left"] * 3)
    argv = sampling(folder, tmp_path / "out", "--chunk", 1, "--ddim_steps", 30)
    process = spawn(*argv)
    while process.poll() is None and not clips(tmp_path / "out"):
        time.sleep(0.01)
    process.send_signal(number)
    told = process.communicate(timeout=120)[1]
    assert process.returncode == code, told
    assert "Traceback" not in told
    before = clips(tmp_path / "out")
    assert 0 < len(before) < 3 and not leftovers(tmp_path / "out")
    assert all(read_json(path) for path in (tmp_path / "out").rglob("*.json"))
    assert edg(capsys, *argv)[0] == 0
    assert len(after := clips(tmp_path / "out")) == 3 and before.items() <= after.items()


def test_c80_torn_last_line_is_ignored(tmp_path, capsys, fake_network):
    """A record that is torn makes its clip anew; a torn line of a training log is cut off."""
    argv = sampling(prompt_folder(tmp_path / "in", *["a red circle moves left"] * 2), tmp_path / "out")
    assert edg(capsys, *argv)[0] == 0
    before, record = clips(tmp_path / "out"), next((tmp_path / "out").rglob("0001*.json"))
    other = next((tmp_path / "out").rglob("0000*.mp4"))
    finished = other.stat().st_mtime_ns
    record.write_text(record.read_text()[:100])
    assert edg(capsys, *argv)[0] == 0 and clips(tmp_path / "out") == before
    assert read_json(record)["status"] == "done" and other.stat().st_mtime_ns == finished
    log = tmp_path / "log.jsonl"
    log.write_text('{"step": 1, "loss": 0.5}\n{"step": 2, "lo')
    assert read_log(log) == [{"step": 1, "loss": 0.5}]
    _cut_log(log, 1)
    assert log.read_text() == '{"step": 1, "loss": 0.5}\n'


HOLDER = """
import sys, time
from pathlib import Path
from edg.core.files import lock_folder
with lock_folder(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(300)
"""


def test_c81_two_runs_in_one_folder(tmp_path, capsys, monkeypatch, fake_network):
    """The second waits a little and leaves, naming the holder; a dead holder's lock is taken over."""
    monkeypatch.setattr(prepare, "LOCK_TIMEOUT", 0.3)
    out = tmp_path / "out/1000"
    out.mkdir(parents=True)
    argv = sampling(prompt_folder(tmp_path / "in", "a red circle moves left"), out.parent)
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, out],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
    )
    try:
        assert holder.stdout.readline() == b"held\n"
        (out / f".edg-tmp-00000000-{holder.pid}-ab.mp4").write_bytes(b"being written")
        code, told = edg(capsys, *argv)
        assert code == 4 and str(holder.pid) in given_of(told)
        assert not clips(out) and leftovers(out), "nothing of the living is touched"
    finally:
        holder.kill(), holder.wait()
    assert (out / LOCK).read_text().startswith(f"pid {holder.pid}"), "a stale lock"
    assert edg(capsys, *argv)[0] == 0 and len(clips(out)) == 1


def test_c81_two_merges_in_one_folder(tmp_path, capsys, monkeypatch):
    from edg.sprites import WEIGHTS

    monkeypatch.setattr("edg.core.atomic_file.LOCK_TIMEOUT", 0.3)

    (tmp_path / "out").mkdir()
    argv = ["merge", "edg", "--base", WEIGHTS / "base.safetensors", "--tuned", WEIGHTS / "tuned.safetensors"]
    argv += ["--missing", "identity", "--out", tmp_path / "out", "--quiet"]
    with open(tmp_path / "out/.dyn.safetensors.edg-tmp.1", "wb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        code, told = edg(capsys, *argv)
    assert code == 4 and "dyn.safetensors" in given_of(told)
    code, told = edg(capsys, *argv)
    assert code == 0 and not leftovers(tmp_path), told


RANKS = """
import os, signal, sys, time
from datetime import timedelta
from pathlib import Path
sys.path[:0] = [{paths}]
from fakes import FakeSystem, job, run
from edg.cli.main import guard
from edg.core.dist import world
folder, how, first = Path(sys.argv[1]), sys.argv[2], os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0"
class Fragile(FakeSystem):
    def generate(self, model, requests, *more):
        for number, result in enumerate(super().generate(model, requests, *more)):
            if number and os.environ["RANK"] == "1" and first:
                if how == "raise":
                    raise RuntimeError("a defect")
                if how == "kill":
                    os.kill(os.getpid(), signal.SIGKILL)
                if how == "hang":
                    time.sleep(300)
            yield result
def go():
    with world("cpu", timedelta(seconds=4 if how == "hang" else 600)) as here:
        run(job(folder, count=4, patience=20), Fragile(), lambda: None, here)
    return 0
sys.exit(guard(go, debug="--debug" in sys.argv))
"""


def ranks(folder, how, *torchrun):
    """Two ranks under torchrun, the second of which comes to grief after its first clip: (code, stderr)."""
    folder.mkdir(exist_ok=True)
    script = folder / "ranks.py"
    script.write_text(RANKS.format(paths=", ".join(repr(str(p)) for p in (ROOT / "tests/helpers", ROOT))))
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", *torchrun]
    process = spawn(script, folder, how, launcher=launcher)
    told = process.communicate(timeout=500)[1]
    return process.returncode, told


def made(folder):
    return [path.exists() for path in map(job(folder, 4).video, job(folder, 4).requests)]


@pytest.mark.slow
def test_c82_rank_killed_and_restarted(tmp_path):
    code, told = ranks(tmp_path / "a", "kill", "--max-restarts=1")
    assert code == 0, told
    assert made(tmp_path / "a") == [True] * 4 and "0003-x_sample0" in told
    run(job(tmp_path / "whole", 4), FakeSystem(), lambda: None)
    assert clips(tmp_path / "a") == clips(tmp_path / "whole") and not leftovers(tmp_path)


@pytest.mark.slow
def test_c82_rank_raises(tmp_path):
    code, told = ranks(tmp_path / "a", "raise")
    assert code != 0 and "a defect" in told
    assert made(tmp_path / "a")[2], "the clip that it had finished stays"
    remove_leftovers(tmp_path / "a/out")
    summary = run(job(tmp_path / "a", 4), FakeSystem(), lambda: None)
    assert summary.skipped >= 1 and made(tmp_path / "a") == [True] * 4 and not leftovers(tmp_path)


@pytest.mark.slow
def test_c82_rank_hangs(tmp_path):
    """Who waits for it gives up after its patience (24 hours in a command, 4 seconds here), and torchrun ends
    them all."""
    began = time.monotonic()
    code, told = ranks(tmp_path / "a", "hang")
    assert code != 0, told
    assert time.monotonic() - began < 280 and made(tmp_path / "a")[:3] == [True] * 3


class Second(World):
    """Rank 1 of 2, whose peer has said what is to be made."""

    def broadcast(self, value=None):
        return [0, 1], 0

    def gather(self, value):
        return [(1, {}), value]


def test_c83_only_rank_0_writes_what_is_shared(tmp_path):
    plan = job(tmp_path, 2)
    plan.outdir.mkdir()
    run(plan, FakeSystem(), lambda: None, Second(1, 2))
    names = {path.name for path in plan.outdir.iterdir()}
    assert names == {"0001-x_sample0.mp4", "0001-x_sample0.json"}, "its clip, no lock and no contact sheet"


def test_c83_port_in_use(tmp_path, capsys, monkeypatch):
    argv = sampling(prompt_folder(tmp_path / "in", "a red circle moves left"), tmp_path / "out")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(taken.getsockname()[1])}
        for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", **place}.items():
            monkeypatch.setenv(name, value)
        code, told = edg(capsys, *argv)
    assert code == 4 and f"127.0.0.1:{place['MASTER_PORT']}" in given_of(told)


def test_c82_patience_is_a_day():
    from edg.core.dist import GROUP_TIMEOUT

    assert timedelta(hours=1) <= GROUP_TIMEOUT <= timedelta(days=1)


# ---- folders that go away, locks and leftovers -------------------------------------------------------------


class Meddled(FakeSystem):
    """After the second clip somebody else does something."""

    def __init__(self, meddle):
        super().__init__()
        self.meddle = meddle

    def generate(self, *args, **more):
        for number, result in enumerate(super().generate(*args, **more)):
            if number == 2:
                self.meddle()
            yield result


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("count", [3, 4])
def test_a_savedir_that_is_removed_ends_the_run(tmp_path, again, count):
    """Nothing is put into a folder of that name that is not locked."""
    plan = job(tmp_path, count)

    def meddle():
        shutil.rmtree(plan.outdir)
        if again:
            plan.outdir.mkdir()

    with pytest.raises(MachineError):
        run(plan, Meddled(meddle), lambda: None)
    assert plan.outdir.exists() == again and not (again and list(plan.outdir.iterdir()))
    assert run(plan, FakeSystem(), lambda: None).made == count


def test_a_folder_that_is_removed_after_the_last_clip_too(tmp_path):
    plan = job(tmp_path, 2)

    class Late(FakeSystem):
        def generate(self, *args, **more):
            yield from super().generate(*args, **more)
            shutil.rmtree(plan.outdir)

    with pytest.raises(MachineError):
        run(plan, Late(), lambda: None)


def test_clips_that_are_removed_meanwhile_are_reported(tmp_path):
    plan = job(tmp_path, 4)
    run(replace(plan, requests=plan.requests[:1]), FakeSystem(), lambda: None)
    first, second = plan.requests[0], plan.requests[1]

    def meddle():
        plan.video(first).unlink()
        plan.record(second).unlink()

    with pytest.raises(SomeFailedError) as left:
        run(plan, Meddled(meddle), lambda: None)
    assert set(left.value.failed) == {first.id, second.id}
    summary = run(plan, FakeSystem(), lambda: None)
    assert (summary.made, summary.skipped) == (2, 2)


def died():
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@pytest.fixture(scope="module")
def sampled(tmp_path_factory):
    """A folder of four clips, with records."""
    plan = job(tmp_path_factory.mktemp("sampled"), 2)
    run(plan, FakeSystem(), lambda: None)
    return plan.outdir


def commands(folder, sampled):
    """name -> (argv, the folder that it writes to)."""
    clips, sweep = folder / "clips", folder / "sweep.yaml"
    shutil.copytree(sampled, clips)
    options = "{config: sprites, recipe: edg, ddim_steps: 2, T: 300, device: cpu, prompt_dir: none}"
    sweep.write_text(f"out: {folder}/points\noptions: {options}\ngrid: {{seed: [1]}}\n")
    base, videos = ROOT / "edg/sprites/weights/base.safetensors", folder / "videos"
    videos.mkdir()
    for clip in clips.glob("*.mp4"):
        shutil.copyfile(clip, videos / clip.name)
    return {
        "score": (["score", clips, "--metrics", "motion_top5"], clips),
        "vbench": (["score", clips, "--vbench-layout", folder / "v"], folder / "v"),
        "report": (["report", clips, "--out", folder / "page"], folder / "page"),
        "sweep": (["sweep", sweep], folder / "points"),
        "encode": (
            ["encode", "--spec", "sprites", "--weights", base, "--data", videos, "--out", folder / "cache"]
            + ["--frames", "4", "--stride", "1", "--device", "cpu"],
            folder / "cache",
        ),
    }


@pytest.mark.parametrize("name", ["score", "vbench", "report", "sweep", "encode"])
def test_one_rule_for_locks_and_leftovers(tmp_path, capsys, monkeypatch, sampled, name):
    """Who finds the folder held waits, then leaves with 4; who gets it removes what dead processes left."""
    monkeypatch.setattr("edg.core.files.LOCK_TIMEOUT", 0.3)
    argv, folder = commands(tmp_path, sampled)[name]
    folder.mkdir(exist_ok=True)
    old, living = (f".edg-tmp-{_host()}-{pid}-ab.json" for pid in (died(), os.getppid()))
    half = f".x.safetensors.edg-tmp.{died()}"
    for file in (old, living, half):
        (folder / file).write_text("half")
    with lock_folder(folder):
        before = sorted(path for path in folder.rglob("*") if path.name != old)
        code, told = edg(capsys, *argv)
        assert code == 4 and str(os.getpid()) in given_of(told)
        assert sorted(path for path in folder.rglob("*") if path.name != old) == before
    began = edg(capsys, *argv)
    assert began[0] in (0, 5), began  # the sweep's prompts are not there, but its folder was held
    assert leftovers(folder) == [living] and (folder / LOCK).exists()


def test_a_signal_inside_a_pool_waits_until_it_is_let_go(tmp_path, monkeypatch):
    """Out of the handler, in `submit`, it would leave the pool's lock held: the merge would never end."""
    from concurrent.futures import ThreadPoolExecutor

    from edg.merging import merge, recipe
    from edg.networks import family_of
    from edg.sprites import WEIGHTS

    came, submit = [], ThreadPoolExecutor.submit

    def struck(self, *args):
        if len(came) == 2:
            signal.raise_signal(signal.SIGINT)
        future = submit(self, *args)
        came.append(future)
        return future

    monkeypatch.setattr(ThreadPoolExecutor, "submit", struck)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored behind `&` in a script
    plan = recipe.edg_recipe(str(WEIGHTS / "base.safetensors"), str(WEIGHTS / "tuned.safetensors"))
    try:
        with pytest.raises(KeyboardInterrupt):
            merge.run(plan, tmp_path / "out", warn=lambda text: None, family=family_of)
    finally:
        signal.signal(signal.SIGINT, before)
    assert len(came) >= 3 and all(future.done() for future in came)
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_signals_at_random_moments(tmp_path):
    """The long form: python scripts/torture.py merge --signals 200; encode, train and sample as well."""
    path = tmp_path / "told"
    assert torture.main(["merge", "--signals", "4", "--size", "2", "--json", str(path)]) == 0
    told = read_json(path)
    assert told["signals"] == 4 and told["hung"] == 0 and told["ended"] + told["rounds"] >= 4


def test_what_hangs_or_ends_wrongly_is_counted(tmp_path, monkeypatch):
    """The signal loop itself: what it is there to find, it finds."""

    class Nursery:
        codes = iter([None, None, -9, None, 1, None, 143])

        def start(self, argv, log):
            return died()

        def ended(self, seconds):
            return next(self.codes)

    monkeypatch.setattr(os, "kill", lambda *_: None), monkeypatch.setattr(os, "killpg", lambda *_: None)
    work = torture.Work(lambda *_: None, lambda *_: list(torture.EDG), (".json",), 0)
    subject = torture.Signals(work, tmp_path, 0, Nursery())
    subject.duration = 0
    subject.out.mkdir()
    (subject.out / ".edg-tmp-x").write_text("")
    for _ in range(3):
        subject.round(0.5, signal.SIGTERM, None)
    answers = subject.answers
    assert (answers.signals, answers.hung, answers.other_codes, answers.ended) == (3, 1, 1, 1)
    assert answers.leftovers == 3 and answers.bad == 5
