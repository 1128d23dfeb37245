"""Files that are there completely or not at all."""

import os
import resource
import subprocess
import sys

import pytest

from edg.core import records
from edg.core.errors import BadFileError, MachineError
from edg.core.records import atomic_path, lock_folder, read_json, remove_leftovers, sha256_file, write_json


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
        with pytest.raises(MachineError, match="no room left"):
            write_json(tmp_path / "a.json", "x" * 5000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.iterdir())


def test_unwritable(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(MachineError, match="cannot write"):
        records.ensure_writable(tmp_path / "file" / "sub")


def test_torn_json(tmp_path):
    (tmp_path / "a.json").write_text('{"a": ')
    with pytest.raises(BadFileError):
        read_json(tmp_path / "a.json")


def test_hashes(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert sha256_file(tmp_path / "a", block=2) == known
    assert records.hash_value({"a": 1, "b": [2]}) == records.hash_value({"b": (2,), "a": 1})


def test_a_file_without_an_end_is_not_hashed_for_ever():
    with pytest.raises(BadFileError, match="grows while it is read"):
        sha256_file("/proc/self/pagemap")


def test_a_file_that_grows_while_it_is_hashed_is_refused(tmp_path, monkeypatch):
    (tmp_path / "a").write_bytes(b"1234567890")
    told = os.stat(tmp_path / "a")
    (tmp_path / "a").write_bytes(b"1234567890" * 9)
    monkeypatch.setattr(os, "fstat", lambda handle: told)
    with pytest.raises(BadFileError, match="grows while it is read.*its 10 bytes"):
        sha256_file(tmp_path / "a", block=4)


def test_cached_hash_follows_the_file(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "a").write_bytes(b"abc")
    first = records.cached_sha256(tmp_path / "a")
    assert list((tmp_path / "cache/edg/sha256").iterdir()) and records.cached_sha256(tmp_path / "a") == first
    (tmp_path / "a").write_bytes(b"abcd")
    assert records.cached_sha256(tmp_path / "a") == sha256_file(tmp_path / "a") != first


def test_leftovers_of_dead_processes_only(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    host = records._host()
    for pid in (dead.pid, os.getppid()):
        (tmp_path / f"{records.TEMPORARY}-{host}-{pid}-ab.mp4").write_bytes(b"x")
    assert remove_leftovers(tmp_path) == 1
    assert [str(os.getppid()) in p.name for p in tmp_path.iterdir()] == [True]


def test_lock(tmp_path):
    here = f"locked by pid {os.getpid()} on host"
    with lock_folder(tmp_path), pytest.raises(MachineError, match=here), lock_folder(tmp_path):
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

    monkeypatch.setattr(records, "sha256_file", replaced_meanwhile)
    records.cached_sha256(path)
    monkeypatch.setattr(records, "sha256_file", honest)
    assert records.cached_sha256(path) == honest(path)
