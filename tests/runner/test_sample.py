"""The runner with a fake system: what is finished, what is made again, what fails, who may write."""

import dataclasses
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from fakes import FakeSystem, job, run

from edg.core.errors import MachineError, SomeFailedError, UsageError
from edg.core.files import LOCK, read_json
from edg.core.video import read_frames, read_image
from edg.runner.clip_folder import first_difference

ROOT = Path(__file__).parents[2]


def go(plan, **system):
    fake = FakeSystem(**system)
    return run(plan, fake, lambda: "model"), fake.log


def frames(plan):
    return {r.id: read_frames(plan.video(r)) for r in plan.requests}


def same(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[key], b[key]) for key in a)


def test_makes_everything_once(tmp_path):
    plan = job(tmp_path)
    summary, log = go(plan)
    assert (summary.made, summary.skipped) == (3, 0)
    record = read_json(plan.record(plan.requests[1]))
    assert record["status"] == "done" and record["settings"]["prompt"] == "prompt 1"
    assert record["video_frames"] == 4 and len(record["settings"]["image_sha256"]) == 64
    assert sorted(p.name for p in plan.outdir.iterdir() if not p.name.startswith(".")) == sorted(
        [f"{r.id}.{kind}" for r in plan.requests for kind in ("mp4", "json")] + ["contact_sheet.png"]
    )
    summary, log = go(plan)
    assert (summary.made, summary.skipped, log) == (0, 3, [])


def test_a_record_names_both_images(tmp_path):
    plan = job(tmp_path)
    first, second, _ = plan.requests
    plan.requests[0] = dataclasses.replace(first, last_image=second.image)
    go(plan)
    record = read_json(plan.record(first))
    assert (record["image"], record["last_image"]) == (str(first.image), str(second.image))
    assert "last_image" not in read_json(plan.record(second))


def test_the_model_is_not_loaded_when_nothing_is_left(tmp_path):
    go(job(tmp_path))
    run(job(tmp_path), FakeSystem(), lambda: pytest.fail("loaded"))


def test_chunks_do_not_change_frames(tmp_path):
    plans = [job(tmp_path / str(chunk), count=5, chunk=chunk) for chunk in (1, 2, 8)]
    logs = [go(plan)[1] for plan in plans]
    assert [len(log) for log in logs] == [5, 3, 1]
    assert same(frames(plans[0]), frames(plans[1])) and same(frames(plans[0]), frames(plans[2]))


@pytest.mark.parametrize("damage", ["empty", "cut", "gone", "record cut", "record gone", "other video"])
def test_half_written_is_made_again(tmp_path, damage):
    plan = job(tmp_path)
    go(plan)
    before, victim = frames(plan), plan.requests[1]
    video, record = plan.video(victim), plan.record(victim)
    {
        "empty": lambda: video.write_bytes(b""),
        "cut": lambda: video.write_bytes(video.read_bytes()[:300]),
        "gone": video.unlink,
        "record cut": lambda: record.write_text(record.read_text()[:50]),
        "record gone": record.unlink,
        "other video": lambda: video.write_bytes(plan.video(plan.requests[0]).read_bytes()),
    }[damage]()
    _, log = go(plan)
    assert log == [[victim.id]] and same(before, frames(plan))


def test_other_settings_are_an_error_and_overwrite_redoes(tmp_path):
    go(job(tmp_path))
    with pytest.raises(UsageError, match=r"0000-x_sample0.mp4 .*seed.*--overwrite"):
        go(job(tmp_path, seed=2))
    other = dataclasses.replace(job(tmp_path), shared={"options": {"eta": 0.5}})
    with pytest.raises(UsageError, match=r"options\.eta"):
        go(other)
    _, log = go(dataclasses.replace(other, overwrite=True))
    assert len(log[0]) == 3
    assert go(other)[1] == []


def test_a_changed_image_is_another_setting(tmp_path):
    plan = job(tmp_path)
    go(plan)
    from edg.core.video import write_image

    write_image(plan.requests[2].image, np.full((8, 8, 3), 77, np.uint8))
    with pytest.raises(UsageError, match="image_sha256"):
        go(plan)


def test_failures_do_not_stop_the_others(tmp_path):
    plan = job(tmp_path, count=4)
    plan.requests[0].image.write_bytes(b"not an image")
    with pytest.raises(SomeFailedError) as failed:
        go(plan, fail=["0002-x_sample0"])
    assert set(failed.value.failed) == {"0000-x_sample0", "0002-x_sample0"}
    assert read_json(plan.record(plan.requests[2]))["error"] == "the latent is not finite"
    assert read_json(plan.record(plan.requests[0]))["status"] == "failed"
    assert not plan.video(plan.requests[2]).exists() and plan.video(plan.requests[3]).exists()
    with pytest.raises(SomeFailedError) as failed:
        go(plan)
    assert set(failed.value.failed) == {"0000-x_sample0"}


def test_a_failure_does_not_destroy_a_finished_clip(tmp_path):
    plan = job(tmp_path)
    go(plan)
    before = frames(plan)
    other = dataclasses.replace(plan, shared={"options": {"eta": 0.5}}, overwrite=True)
    with pytest.raises(SomeFailedError):
        go(other, fail=[request.id for request in plan.requests])
    assert same(before, frames(plan)) and go(plan)[1] == []


def test_an_interrupted_run_continues(tmp_path):
    whole, cut = job(tmp_path / "a", count=5), job(tmp_path / "b", count=5)
    go(whole)
    with pytest.raises(KeyboardInterrupt):
        go(cut, boom_after=2)
    assert go(cut)[1] == [[r.id for r in cut.requests[2:]]]
    assert same(frames(whole), frames(cut))


def test_a_locked_folder_names_its_holder(tmp_path):
    plan = job(tmp_path)
    plan.outdir.mkdir(parents=True)
    with open(plan.outdir / LOCK, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(f"pid {os.getpid()} on host here"), file.flush()
        with pytest.raises(MachineError, match=f"{os.getpid()}"):
            go(plan)
        began = time.monotonic()
        with pytest.raises(MachineError):
            go(dataclasses.replace(plan, patience=0.5))
        assert time.monotonic() - began >= 0.5
    go(plan)


def test_an_output_that_is_a_file(tmp_path):
    (tmp_path / "out").write_text("x")
    with pytest.raises(MachineError, match="out"):
        go(job(tmp_path))


def test_first_difference():
    assert first_difference({"a": {"b": [1, 2]}}, {"a": {"b": (1, 2)}}) == ""
    assert first_difference({"a": 1}, {"b": 1}) == "b: nothing then, 1 now"
    assert first_difference({"a": 1, "b": 2}, {"a": 1}) == "b: 2 then, nothing now"


PROGRAM = """
import sys, time
from pathlib import Path
sys.path[:0] = [{tests!r}, {root!r}]
from fakes import FakeSystem, job, run
from edg.core.dist import world
from edg.core.process import die_with_parent
class Slow(FakeSystem):
    def generate(self, *args):
        for result in super().generate(*args):
            time.sleep({pause})
            yield result
if "TORCHELASTIC_RUN_ID" in __import__("os").environ:
    die_with_parent()
with world("cpu") as here:
    run(job(Path({folder!r}), count={count}, chunk=2), Slow(fail={fail!r}), lambda: None, here)
"""


def start(folder, *, ranks=1, count=5, pause=0.0, fail=()):
    text = PROGRAM.format(
        tests=str(ROOT / "tests/helpers"),
        root=str(ROOT),
        folder=str(folder),
        count=count,
        pause=pause,
        fail=fail,
    )
    script = folder / "program.py"
    folder.mkdir(parents=True, exist_ok=True)
    script.write_text(text)
    launcher = (
        ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"] if ranks > 1 else []
    )
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, *launcher, str(script)], env=env, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.slow
def test_killed_at_any_moment(tmp_path):
    whole, cut = job(tmp_path / "a", count=5), job(tmp_path / "b", count=5)
    go(whole)
    process = start(tmp_path / "b", pause=0.5)
    while not cut.record(cut.requests[0]).exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    (cut.outdir / f".edg-tmp-{'0' * 8}-1-x.mp4").write_bytes(b"of another host, kept for a day")
    _, log = go(cut)
    assert 0 < sum(map(len, log)) < 5 and same(frames(whole), frames(cut))


@pytest.mark.slow
def test_a_killed_torchrun_lets_go_of_the_folder(tmp_path):
    cut = job(tmp_path, count=5, patience=20)
    process = start(tmp_path, ranks=2, pause=1.0)
    while not cut.record(cut.requests[0]).exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    go(cut)
    assert len(frames(cut)) == 5


@pytest.mark.slow
def test_work_ends_with_a_killed_shell(tmp_path):
    note = tmp_path / "pid"
    work = f"import os, time; open({str(note)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    shell = subprocess.Popen(
        ["bash", "-c", '"$0" -m edg.core.process $$ "$0" -c "$1"; true', sys.executable, work], cwd=ROOT
    )
    while not (note.exists() and note.read_text()):
        time.sleep(0.02)
    shell.kill(), shell.wait()
    for _ in range(200):
        status = Path(f"/proc/{note.read_text()}/stat")
        if not status.exists() or status.read_text().split()[2] == "Z":
            return
        time.sleep(0.05)
    pytest.fail("it lives on")


@pytest.mark.slow
def test_more_ranks_give_the_same_frames(tmp_path):
    whole, parts = job(tmp_path / "a", count=3), job(tmp_path / "b", count=3)
    go(whole)
    process = start(tmp_path / "b", ranks=2, count=3)
    assert process.wait(120) == 0, process.stderr.read()
    assert same(frames(whole), frames(parts)) and (parts.outdir / "contact_sheet.png").exists()
    assert json.loads(parts.record(parts.requests[0]).read_text())["status"] == "done"


@pytest.mark.slow
def test_a_rank_with_failures_makes_the_whole_fail_after_all_are_done(tmp_path):
    parts = job(tmp_path, count=3)
    process = start(tmp_path, ranks=2, count=3, fail=("0002-x_sample0",))
    assert process.wait(120) != 0
    assert [parts.video(r).exists() for r in parts.requests] == [True, True, False]
    assert (parts.outdir / "contact_sheet.png").exists()


def test_previews_grow_while_a_clip_is_made_and_change_nothing_else(tmp_path):
    class Telling(FakeSystem):
        def generate(self, model, requests, observer=None):
            sizes = []
            for moment in ("t = 999", "t = 499") if observer.wants_preview else ():
                observer.preview(requests[0], moment, np.zeros((4, 2, 2, 3), np.uint8))
                sizes.append(read_image(sheet).shape[0])
            assert sizes == sorted(set(sizes))
            return super().generate(model, requests, observer)

    plain, plan = job(tmp_path / "plain", count=1), job(tmp_path, count=1, preview=True)
    sheet = plan.outdir / "0000-x_sample0.preview.png"
    run(plain, Telling(), lambda: "model")
    run(plan, Telling(), lambda: "model")
    assert sheet.exists() and not list(plain.outdir.glob("*.preview.png"))
    assert same(frames(plan), frames(plain))
    records = [read_json(p.record(p.requests[0]))["settings_hash"] for p in (plan, plain)]
    assert records[0] == records[1]


def test_settings_in_the_form_of_an_earlier_record_count_as_the_same(tmp_path):
    """`former` gives them in that form, or nothing where they are not the same."""
    run(job(tmp_path), FakeSystem(), object)
    now = {"options": {"eta": 1.0}, "sets": {"dyn": {"numbers_sha256": "0"}}}
    asked = []

    def former(record):
        asked.append(record["id"])
        return {"options": {"eta": 1.0}}

    other = dataclasses.replace(job(tmp_path), shared={"options": {"eta": "as of today"}})
    summary = run(dataclasses.replace(other, former=former), FakeSystem(), object)
    assert (summary.made, summary.skipped, len(asked)) == (0, 3, 3)
    with pytest.raises(UsageError):
        run(dataclasses.replace(other, former=lambda record: {"options": {"eta": 3.0}}), FakeSystem(), object)
    with pytest.raises(UsageError):
        run(other, FakeSystem(), object)
    with pytest.raises(UsageError):
        run(dataclasses.replace(other, shared=now), FakeSystem(), object)
