"""Disks: full before the start, full in the middle, read-only, paths that are something else."""

import errno
import json
import os
import subprocess
import time
from pathlib import Path

import pytest
import torch
from runs import PICTURES, clips, edg, given_of, largest_file, leftovers, prompt_folder, sampling

from edg.weights.store import Weights
from edg.weights.writers import write_pt


@pytest.fixture
def pair(tmp_path):
    """--base and --tuned of two checkpoints of 1 MB."""
    draw, flags = torch.Generator().manual_seed(0), []
    for name in ("base", "tuned"):
        write_pt(
            tmp_path / f"{name}.pt", {"model.diffusion_model.a.weight": torch.randn(512, 512, generator=draw)}
        )
        flags += [f"--{name}", tmp_path / f"{name}.pt"]
    return flags


def test_c73_disk_full_before_start(tmp_path, capsys, pair, monkeypatch):
    monkeypatch.setattr(Weights, "__getitem__", lambda *_: pytest.fail("read before the disk was asked"))
    with largest_file(500_000):
        code, told = edg(capsys, "merge", "edg", *pair, "--out", tmp_path / "merged", "--full", "--quiet")
    assert code == 4
    assert not list((tmp_path / "merged").iterdir())
    monkeypatch.undo()
    folder = prompt_folder(tmp_path / "in", "a red circle moves left")
    with largest_file(0):
        code, told = edg(capsys, *sampling(folder, tmp_path / "out"))
    assert code == 4
    assert [p.name for p in (tmp_path / "out/1000").iterdir()] == [], "not even a lock"


def test_c73_disk_full_on_a_small_tmpfs(tmp_path, capsys, pair):
    disk = mounted(tmp_path / "disk", "size=1M")
    try:
        code, told = edg(capsys, "merge", "edg", *pair, "--out", disk / "merged", "--full", "--quiet")
        assert code == 4 and str(disk) in given_of(told) and not (disk / "merged").exists()
    finally:
        subprocess.run(["umount", disk], check=True)


def test_c74_disk_full_mid_video(tmp_path, capsys, fake_network):
    """One clip is too large for the disk: it fails and is named, the others are made, later it is too."""
    folder = prompt_folder(tmp_path / "in", *["a red circle moves left"] * 4)
    argv = ("--crf", "0")  # files larger than the records
    assert edg(capsys, *sampling(folder, tmp_path / "whole", *argv))[0] == 0
    whole = clips(tmp_path / "whole")
    sizes = sorted(map(len, whole.values()))
    victim = max(whole, key=lambda name: len(whole[name]))
    out = tmp_path / "out"
    with largest_file((sizes[-1] + sizes[-2]) // 2):
        code, told = edg(capsys, *sampling(folder, out, *argv))
    assert code == 5 and Path(victim).stem in given_of(told)
    assert clips(out) == {name: data for name, data in whole.items() if name != victim}
    assert json.loads((out / "1000" / victim).with_suffix(".json").read_text())["status"] == "failed"
    assert not leftovers(out)
    assert edg(capsys, *sampling(folder, out, *argv))[0] == 0 and clips(out) == whole


def mounted(folder, options):
    """A tmpfs at `folder`; only root may mount, and not in every container."""
    folder.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "edg-test", folder], capture_output=True, text=True
    )
    if made.returncode:
        pytest.skip(f"no tmpfs here: {made.stderr.strip()}")
    return folder


def test_c75_read_only_output(tmp_path, capsys, pair):
    folder = prompt_folder(tmp_path / "in", "a red circle moves left")
    if os.geteuid():
        disk = tmp_path / "disk"
        disk.mkdir(0o555)
    else:
        disk = mounted(tmp_path / "disk", "ro")
    try:
        for argv in (sampling(folder, disk / "out"), ["merge", "edg", *pair, "--out", disk / "out"]):
            code, told = edg(capsys, *argv)
            assert code == 4 and str(disk) in given_of(told)
    finally:
        if not os.geteuid():
            subprocess.run(["umount", disk], check=True)


def test_c76_output_path_is_something_else(tmp_path, capsys, pair, fake_network):
    folder = prompt_folder(tmp_path / "in", "a red circle moves left")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    for name in ("file", "dangling"):
        code, told = edg(capsys, *sampling(folder, tmp_path / name))
        assert code == 4 and str(tmp_path / name) in given_of(told), told
        code, told = edg(capsys, "merge", "edg", *pair, "--out", tmp_path / name, "--quiet")
        assert code == (2 if name == "file" else 4), told
    assert (tmp_path / "file").read_text() == "mine" and not (tmp_path / "nowhere").exists()
    out = tmp_path / "out/1000"
    out.mkdir(parents=True)
    (out / "0000-0_sample0.mp4").symlink_to(tmp_path / "elsewhere")
    (out / "0000-0_sample0.json").symlink_to(tmp_path / "file")
    assert edg(capsys, *sampling(folder, out.parent))[0] == 0
    assert not (out / "0000-0_sample0.mp4").is_symlink() and not (tmp_path / "elsewhere").exists()
    assert (tmp_path / "file").read_text() == "mine", "a link is replaced, not followed"


def test_c94_home_unwritable_and_temporary_folder_elsewhere(
    tmp_path, capsys, pair, monkeypatch, fake_network
):
    """No rename crosses file systems: every temporary file lies beside what it becomes."""
    honest = os.replace

    def one_disk_a_folder(source, target):
        if Path(source).parent != Path(target).parent:
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        honest(source, target)

    monkeypatch.setattr(os, "replace", one_disk_a_folder)
    monkeypatch.setattr(os, "rename", one_disk_a_folder)
    monkeypatch.setenv("HOME", "/proc/nobody")
    monkeypatch.setenv("TMPDIR", "/proc/nobody")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    folder = prompt_folder(tmp_path / "in", "a red circle moves left")
    assert edg(capsys, *sampling(folder, tmp_path / "out", "--format", "mp4,png,gif"))[0] == 0
    assert edg(capsys, "merge", "edg", *pair, "--out", tmp_path / "merged", "--full", "--quiet")[0] == 0
    assert not leftovers(tmp_path) and len(clips(tmp_path)) == 1


def test_c96_clock_skew_and_runs_of_one_second(tmp_path, capsys, monkeypatch, fake_network):
    """No name is made of the time, and a clock that was set back makes no file look foreign or finished."""
    first, second = (prompt_folder(tmp_path / name, "a red circle moves left") for name in ("in", "in2"))
    (second / "0.png").write_bytes(PICTURES[1].read_bytes())
    monkeypatch.setattr(time, "time", lambda: 1e9)
    monkeypatch.setattr(time, "strftime", lambda *_: "2001-09-09T01:46:40+0000")
    assert edg(capsys, *sampling(first, tmp_path / "a"))[0] == 0
    assert edg(capsys, *sampling(second, tmp_path / "b"))[0] == 0
    one, other = clips(tmp_path / "a"), clips(tmp_path / "b")
    assert one.keys() == other.keys() and one != other
    for path in (tmp_path / "a").rglob("*"):
        os.utime(path, (4e9, 4e9))  # made in the future
    code, told = edg(capsys, *sampling(first, tmp_path / "a"))
    assert code == 0 and clips(tmp_path / "a") == one
    code, told = edg(capsys, *sampling(second, tmp_path / "a"))
    assert code == 2 and "image_sha256" in given_of(told) and clips(tmp_path / "a") == one
