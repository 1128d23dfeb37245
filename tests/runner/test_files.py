"""Several formats of a clip: what counts as finished, what is kept, what is completed without the model."""

import dataclasses

import numpy as np
import pytest
from fakes import FakeSystem, job, run

from edg.core.errors import SomeFailedError, UsageError
from edg.core.files import read_json, write_json
from edg.core.formats import clip_sha256, read_clip, read_tags
from edg.core.hashing import hash_value


def go(plan, **system):
    fake = FakeSystem(**system)
    return run(plan, fake, lambda: "model"), fake.log


def names(plan):
    return {p.name for p in plan.outdir.iterdir() if not p.name.startswith(".")} - {"contact_sheet.png"}


def files_of(plan, index=0):
    return read_json(plan.record(plan.requests[index]))["files"]


ID = "0000-x_sample0"


def test_a_record_names_every_file_and_every_file_its_settings(tmp_path):
    plan = job(tmp_path, count=1, formats=("gif", "png", "mp4", "webp", "mov"))
    go(plan)
    files = files_of(plan)
    assert list(files) == [f"{ID}.gif", ID, f"{ID}.mp4", f"{ID}.webp", f"{ID}.mov"]
    assert names(plan) == {*files, f"{ID}.json"}
    record = read_json(plan.record(plan.requests[0]))
    assert record["video"] == f"{ID}.gif" and record["video_sha256"] == files[f"{ID}.gif"]
    for name, sha256 in files.items():
        assert clip_sha256(plan.outdir / name) == sha256
        tags = read_tags(plan.outdir / name)
        assert (tags["prompt"], tags["seed"], tags["software"].split()[0]) == ("prompt 0", "1", "edg")
        assert tags["recipe_sha256"] == hash_value(None) and '"eta": 1.0' in tags["comment"]
    assert go(plan)[1] == []


def test_a_further_format_is_made_again_from_the_same_seed_and_the_first_is_kept(tmp_path):
    plan = job(tmp_path)
    go(plan)
    before = files_of(plan)
    more = dataclasses.replace(plan, formats=("gif",))
    assert len(go(more)[1][0]) == 3
    assert files_of(plan) == {**before, f"{ID}.gif": clip_sha256(plan.outdir / f"{ID}.gif")}
    both = dataclasses.replace(plan, formats=("mp4", "gif"))
    assert go(both)[1] == go(plan)[1] == go(more)[1] == []


def test_png_frames_give_further_formats_without_the_model(tmp_path):
    go(job(tmp_path, formats=("png",)))
    more = job(tmp_path, formats=("mp4", "webp"))
    run(more, FakeSystem(), lambda: pytest.fail("loaded"))
    whole = job(tmp_path / "whole", formats=("mp4", "webp"))
    go(whole)
    for request in more.requests:
        assert more.video(request).read_bytes() == whole.video(request).read_bytes()
    assert set(files_of(more)) == {f"{ID}.mp4", f"{ID}.webp", ID}
    frames = read_clip(more.outdir / ID)
    assert np.array_equal(frames, read_clip(more.outdir / f"{ID}.webp"))


def test_a_damaged_format_alone_is_made_again(tmp_path):
    plan = job(tmp_path, formats=("mp4", "gif"))
    go(plan)
    (plan.outdir / "0001-x_sample0.gif").write_bytes(b"GIF89a")
    (plan.outdir / "0002-x_sample0.gif").unlink()
    assert go(plan)[1] == [["0001-x_sample0", "0002-x_sample0"]] and go(plan)[1] == []


def test_another_format_does_not_hide_other_settings(tmp_path):
    go(job(tmp_path))
    other = job(tmp_path, seed=2, formats=("gif",))
    with pytest.raises(UsageError, match=r"0000-x_sample0.mp4 .*\(seed: 1 then, 2 now\).*--overwrite"):
        go(other)
    go(dataclasses.replace(other, overwrite=True))
    assert not list(other.outdir.glob("*.mp4")) and set(files_of(other)) == {f"{ID}.gif"}


def test_a_failure_leaves_the_formats_that_were_finished(tmp_path):
    go(job(tmp_path))
    more = job(tmp_path, formats=("gif",))
    with pytest.raises(SomeFailedError):
        go(more, fail=[ID])
    assert more.outdir.joinpath(f"{ID}.mp4").exists() and go(job(tmp_path))[1] == []
    odd = job(tmp_path / "odd", count=1, formats=("gif", "mp4"))
    request = dataclasses.replace(odd.requests[0], width=15)
    with pytest.raises(SomeFailedError, match="even width"):
        go(dataclasses.replace(odd, requests=[request]))
    assert names(odd) == {f"{ID}.json"}


def test_records_from_before_there_were_formats_count(tmp_path):
    plan = job(tmp_path, count=1)
    go(plan)
    record = read_json(plan.record(plan.requests[0]))
    del record["files"]
    write_json(plan.record(plan.requests[0]), record)
    assert go(plan)[1] == []


def test_the_last_image_is_a_setting_where_there_is_one(tmp_path):
    plan = job(tmp_path, count=2)
    first, second = plan.requests
    with_last = dataclasses.replace(first, last_image=second.image)
    assert "last_image_sha256" not in plan.settings(first)
    assert plan.settings(with_last)["last_image_sha256"] == plan.settings(second)["image_sha256"]
    (tmp_path / "none.png").write_bytes(b"x")
    broken = dataclasses.replace(
        plan, requests=[dataclasses.replace(first, last_image=tmp_path / "none.png")]
    )
    with pytest.raises(SomeFailedError, match="none.png"):
        go(broken)
