"""Files that are there completely or not at all."""

import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import nullcontext

import pytest

from edg.core import files, hashing
from edg.core.atomic_file import AtomicFile, write_atomically
from edg.core.errors import BadFileError, MachineError
from edg.core.files import atomic_path, lock_folder, read_json, remove_leftovers, write_json
from edg.core.hashing import sha256_file


def test_success_replaces_and_leaves_no_trace(tmp_path):
    write_json(tmp_path / "a.json", {"ü": 1})
    write_json(tmp_path / "a.json", {"ü": 2})
    assert read_json(tmp_path / "a.json") == {"ü": 2}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_failure_keeps_the_old_file(tmp_path, error):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(error), atomic_path(path) as temporary:
        temporary.write_text("new")
        raise error
    assert path.read_text() == "old" and len(list(tmp_path.iterdir())) == 1


def test_a_disk_without_room(tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(MachineError):
            write_json(tmp_path / "a.json", "x" * 5000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.iterdir())


def test_unwritable(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(MachineError):
        files.ensure_writable(tmp_path / "file" / "sub")


def test_torn_json(tmp_path):
    (tmp_path / "a.json").write_text('{"a": ')
    with pytest.raises(BadFileError):
        read_json(tmp_path / "a.json")


def test_hashes(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert sha256_file(tmp_path / "a", block=2) == known
    assert hashing.hash_value({"a": 1, "b": [2]}) == hashing.hash_value({"b": (2,), "a": 1})


def test_a_file_without_an_end_is_not_hashed_for_ever():
    with pytest.raises(BadFileError):
        sha256_file("/proc/self/pagemap")


def test_a_file_that_grows_while_it_is_hashed_is_refused(tmp_path, monkeypatch):
    (tmp_path / "a").write_bytes(b"1234567890")
    told = os.stat(tmp_path / "a")
    (tmp_path / "a").write_bytes(b"1234567890" * 9)
    monkeypatch.setattr(os, "fstat", lambda handle: told)
    with pytest.raises(BadFileError, match="10 bytes"):
        sha256_file(tmp_path / "a", block=4)


def test_cached_hash_follows_the_file(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "a").write_bytes(b"abc")
    first = hashing.cached_sha256(tmp_path / "a")
    assert list((tmp_path / "cache/edg/sha256").iterdir()) and hashing.cached_sha256(tmp_path / "a") == first
    (tmp_path / "a").write_bytes(b"abcd")
    assert hashing.cached_sha256(tmp_path / "a") == sha256_file(tmp_path / "a") != first


def test_leftovers_of_dead_processes_only(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    host = files._host()
    for pid in (dead.pid, os.getppid()):
        (tmp_path / f"{files.TEMPORARY}-{host}-{pid}-ab.mp4").write_bytes(b"x")
    assert remove_leftovers(tmp_path) == 1
    assert [str(os.getppid()) in p.name for p in tmp_path.iterdir()] == [True]


def test_lock(tmp_path):
    here = f"locked by pid {os.getpid()} on host"
    with lock_folder(tmp_path), pytest.raises(MachineError, match=here), lock_folder(tmp_path, 0):
        pass
    with lock_folder(tmp_path):
        pass


def test_a_file_that_changes_while_it_is_hashed_is_not_remembered(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path, honest = tmp_path / "a", sha256_file
    path.write_bytes(b"abc")

    def replaced_meanwhile(name):
        digest = honest(name)
        (tmp_path / "b").write_bytes(b"abd")
        os.replace(tmp_path / "b", name)
        return digest

    monkeypatch.setattr(hashing, "sha256_file", replaced_meanwhile)
    hashing.cached_sha256(path)
    monkeypatch.setattr(hashing, "sha256_file", honest)
    assert hashing.cached_sha256(path) == honest(path)


# ---- the disk ----------------------------------------------------------------------------------------------


@pytest.fixture
def disk(monkeypatch):
    """What is flushed and renamed, in order: ("fsync", path), ("replace", from, to)."""
    done, replace = [], os.replace

    def fsync(handle):
        done.append(("fsync", os.readlink(f"/proc/self/fd/{handle}")))

    def rename(source, target):
        done.append(("replace", str(source), str(target)))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", fsync), monkeypatch.setattr(os, "replace", rename)
    return done


def test_a_file_is_on_the_disk_before_it_has_its_name_and_the_name_after(tmp_path, disk):
    with atomic_path(tmp_path / "a.json") as temporary:
        temporary.write_text("{}")
    file, folder = str(temporary), str(tmp_path)
    assert disk == [("fsync", file), ("replace", file, f"{folder}/a.json"), ("fsync", folder)]


def test_so_is_a_folder(tmp_path, disk):
    (tmp_path / "clip").mkdir()
    with files.atomic_folder(tmp_path / "clip") as temporary:
        (temporary / "0.png").write_text("x")
    new, folder = str(temporary), str(tmp_path)
    former = str(temporary.with_suffix(files.FORMER))
    assert disk == [
        ("fsync", f"{new}/0.png"),
        ("fsync", new),
        ("replace", f"{folder}/clip", f"{former}/clip"),
        ("replace", new, f"{folder}/clip"),
        ("fsync", folder),
    ]


def test_so_is_a_file_of_tensors(tmp_path, disk):
    file = AtomicFile(tmp_path / "a.pt")
    file.write(0, b"abc")
    temporary, folder = str(file.temporary), str(tmp_path)
    file.commit(3)
    assert disk == [("fsync", temporary), ("replace", temporary, f"{folder}/a.pt"), ("fsync", folder)]


# ---- who else writes ---------------------------------------------------------------------------------------


def died():
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_leftovers_of_every_writer_go_when_the_folder_is_held(tmp_path):
    pid, host = died(), files._host()
    gone = [f"{files.TEMPORARY}-{host}-{pid}-ab.json", f".x.pt.edg-tmp.{pid}", f".{'9' * 64}.edg-tmp.{pid}"]
    ours = f"{files.TEMPORARY}-{host}-{os.getpid()}-ab.mp4"
    stays = [f"{files.TEMPORARY}-{host}-{os.getppid()}-ab.json", ".held.pt.edg-tmp.1", ours]
    stays += [".x.pt.edg-tmp.", ".x.pt.edg-tmp.1b", "x.pt.edg-tmp.1", "clip.mp4"]
    for name in (*gone, *stays):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / f".folder.edg-tmp.{pid}").mkdir()
    (tmp_path / f".link.edg-tmp.{pid}").symlink_to(tmp_path / "clip.mp4")
    stays += [f".folder.edg-tmp.{pid}", f".link.edg-tmp.{pid}", files.LOCK]
    with open(tmp_path / ".held.pt.edg-tmp.1", "rb") as held:
        files.lock(held.fileno())
        with lock_folder(tmp_path):
            assert sorted(os.listdir(tmp_path)) == sorted(stays)
    os.utime(tmp_path / ours, (1, 1))  # of a former process with our number
    assert remove_leftovers(tmp_path) == 2, "it, and what nobody holds any more"


def test_leftovers_of_an_export_go_with_the_next_file_of_another_name(tmp_path):
    (tmp_path / f".a.pt.edg-tmp.{died()}").write_bytes(b"half")
    write_atomically(tmp_path / "b.pt", b"whole")
    assert os.listdir(tmp_path) == ["b.pt"]


def test_leftovers_in_the_cache_of_hashes_go(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = tmp_path / "edg/sha256"
    folder.mkdir(parents=True)
    (folder / f"{files.TEMPORARY}-{files._host()}-{died()}-ab").write_bytes(b"half")
    (tmp_path / "a").write_bytes(b"abc")
    hashing.cached_sha256(tmp_path / "a")
    (note,) = folder.iterdir()
    assert note.read_text() == sha256_file(tmp_path / "a")


def test_a_holder_on_its_way_out_is_waited_for(tmp_path, monkeypatch):
    lines = []
    monkeypatch.setattr(files, "log", lines.append)
    with lock_folder(tmp_path):
        began = time.monotonic()
        with pytest.raises(MachineError), lock_folder(tmp_path, 0.5):
            pass
        assert time.monotonic() - began >= 0.5 and len(lines) == 1 and str(os.getpid()) in lines[0]
        writing = AtomicFile(tmp_path / "a.pt")
        threading.Timer(0.5, writing.abort).start()
        write_atomically(tmp_path / "a.pt", b"next")
        assert (tmp_path / "a.pt").read_bytes() == b"next"


def test_a_signal_ends_the_waiting(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "log", lambda line: signal.raise_signal(signal.SIGINT))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored behind `&` in a script
    try:
        with lock_folder(tmp_path), pytest.raises(KeyboardInterrupt), files.stopping.postponed():
            lock_folder(tmp_path, 60).__enter__()
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("what", ["nothing", "others", "removed", "made again", "lock removed", "lock taken"])
def test_a_folder_that_is_not_what_was_locked(tmp_path, what):
    folder = tmp_path / "out"
    with lock_folder(folder) as check:
        if what == "others":
            (folder / "a").write_text("a")
            (folder / "a").unlink()
        if what in ("removed", "made again"):
            shutil.rmtree(folder)
        if what == "made again":
            folder.mkdir()
            (folder / files.LOCK).write_text("of another")
        if what.startswith("lock"):
            (folder / files.LOCK).unlink()
        if what == "lock taken":
            (folder / files.LOCK).write_text("of another")
        with nullcontext() if what in ("nothing", "others") else pytest.raises(MachineError):
            check()
