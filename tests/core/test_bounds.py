"""Small files that ask for much: memory, time, other files, other hosts. None gets it."""

import errno
import json
import os
import pickle
import socket
import struct
import threading
import time
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch

from edg.core import atomic_file, formats, video
from edg.core.config import read_yaml
from edg.core.errors import BadFileError, MachineError, UsageError
from edg.core.files import (
    FORMER,
    LOCK,
    TEMPORARY,
    atomic_folder,
    lock_folder,
    read_json,
    read_small,
    remove_leftovers,
)
from edg.core.video import open_container, read_clip, write_video
from edg.weights.readers.legacy import MAGIC
from edg.weights.store import open_weights
from edg.weights.writers import write_safetensors

FRAMES = np.zeros((3, 16, 16, 3), np.uint8)
SPRITES = Path(__file__).parents[2] / "configs/train/sprites.yaml"
IN_NO_TIME = 5  # seconds of this process


@pytest.fixture(autouse=True)
def quick():
    began = time.process_time()
    yield
    assert time.process_time() - began < 2 * IN_NO_TIME


# ---- YAML --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    ['a: "\\u0024{oc.env:SECRET}"', 'a: "\\x24{oc.env:SECRET}"', 'a: "$\\\n  {oc.env:SECRET}"',
     "a: ${${b}:SECRET}\nb: oc.env", "a: [x, {b: '${oc.env:SECRET}'}]", "a: ${oc.decode:'${b}'}\nb: 1",
     'b: &b {x: "\\u0024{oc.env:SECRET}"}\na: {<<: *b}', "a${oc.env:SECRET}: 1"]
)  # fmt: skip
def test_no_spelling_reads_the_environment(tmp_path, monkeypatch, text):
    monkeypatch.setenv("SECRET", "hunter2")
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(UsageError) as caught:
        read_yaml(tmp_path / "x.yaml")
    assert "hunter2" not in str(caught.value)


BOMBS = {
    "texts": "a0: xxxxxxxxxxxxxxxx\n" + "".join(f"a{i}: ${{a{i - 1}}}${{a{i - 1}}}\n" for i in range(1, 34)),
    "lists": "a0: [1, 1]\n" + "".join(f"a{i}:\n" + f"- ${{a{i - 1}}}\n" * 10 for i in range(1, 9)),
    "tables": "a0: {x: 1}\n"
    + "".join(f"a{i}: {{x: '${{a{i - 1}}}', y: '${{a{i - 1}}}'}}\n" for i in range(1, 30)),
    "neighbours": "t:\n  a0: xxxxxxxxxxxxxxxx\n"
    + "".join(f"  a{i}: ${{.a{i - 1}}}${{.a{i - 1}}}\n" for i in range(1, 34)),
    "merged": "t: &t\n  a0: xxxxxxxxxxxxxxxx\n"
    + "".join(f"  a{i}: ${{u.a{i - 1}}}${{u.a{i - 1}}}\n" for i in range(1, 34))
    + "u: {<<: *t}\n",
    "items": "a: [xxxxxxxxxxxxxxxx,"
    + ",".join(f"'${{a[{i - 1}]}}${{a.{i - 1}}}'" for i in range(1, 34))
    + "]",
}


@pytest.mark.parametrize("case", BOMBS)
def test_names_of_names_stop_at_four_megabytes(tmp_path, case):
    (tmp_path / "x.yaml").write_text(BOMBS[case])
    with pytest.raises(UsageError):
        read_yaml(tmp_path / "x.yaml")


@pytest.mark.parametrize(
    "text",
    ['true: ${oc.env:HOME}\n"true": x', "0x1: 2\n1: 3", 'a: !!pairs ["${oc.env:HOME}": 1]',
     "a: !!omap [b: 1]", "1: a\n'1': b", "? [a, b]\n: 1"]
)  # fmt: skip
def test_two_keys_of_one_name_and_keys_that_become_values(tmp_path, text):
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(UsageError):
        read_yaml(tmp_path / "x.yaml")


def test_an_override_reads_nothing_from_outside_in_any_spelling(tmp_path):
    (tmp_path / "x.yaml").write_text("a: 1")
    with pytest.raises(UsageError):
        read_yaml(tmp_path / "x.yaml", ['a="\\x24{oc.env:HOME}"'])


@pytest.mark.parametrize(
    "text", ["a: " + "${" * 100_000, "a: '" + "${a" * 80_000 + "'", "a: ${" + " " * 200_000]
)
def test_names_that_never_end(tmp_path, text):
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(UsageError):
        read_yaml(tmp_path / "x.yaml")


def test_names_of_lists_of_lists_stop_at_ten_thousand_values(tmp_path):
    lines = ["a0:", *["- {}"] * 900]
    for level in (1, 2):
        lines += [f"a{level}:", *[f"- ${{a{level - 1}}}"] * 20]
    (tmp_path / "x.yaml").write_text("\n".join(lines))
    with pytest.raises(UsageError):
        read_yaml(tmp_path / "x.yaml")


def test_a_value_that_stands_for_itself(tmp_path):
    (tmp_path / "x.yaml").write_text("a: ${b}\nb: x${a}")
    with pytest.raises(UsageError):
        read_yaml(tmp_path / "x.yaml")


def test_names_that_are_honest_are_followed(tmp_path):
    text = "all: ${sub}\nbeyond: ${all.name}\nroot: out\n"
    text += "sub: {name: '${root}/x', twice: '${.name} ${sub.name}', up: '${..root}'}\n"
    (tmp_path / "x.yaml").write_text(
        text + "items: [1, '${root}']\nlast: ${items[1]} ${items.0}\nnew: ${given}"
    )
    found = read_yaml(tmp_path / "x.yaml", ["given=7"])
    assert found["sub"] == {"name": "out/x", "twice": "out/x out/x", "up": "out"}
    assert found["beyond"] == "out/x" and found["all"] == found["sub"]
    assert found["last"] == "out 1" and found["new"] == 7
    with pytest.raises(UsageError, match=r"\$\{given\}"):
        read_yaml(tmp_path / "x.yaml")


# ---- pipes, devices, links ---------------------------------------------------------------------------------


@pytest.fixture(params=["pipe", "endless", "large"])
def no_file(request, tmp_path):
    """make(name): something there that is no small file."""

    def make(name):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if request.param == "pipe":
            os.mkfifo(path)
        elif request.param == "endless":
            path.symlink_to("/dev/zero")
        else:
            with open(path, "wb") as file:
                file.truncate(1 << 30)
        return path

    return make


def test_what_is_read_whole_is_a_small_file(no_file, command):
    for read in (
        read_small,
        read_json,
        read_yaml,
        lambda path: open_weights(path.rename(f"{path}.index.json")),
    ):
        with pytest.raises(BadFileError):
            read(no_file(f"x{time.monotonic_ns()}"))
    assert command(["sample", "--config", no_file("c.yaml")])[0] == 3
    assert command(["train", no_file("t.yaml")])[0] == 3


def test_a_record_that_is_no_file_is_none(no_file, tmp_path, command):
    write_video(tmp_path / "run/a.mp4", np.arange(16 * 16 * 9, dtype=np.uint8).reshape(3, 16, 16, 3), 8)
    no_file("run/a.json")
    code, err = command(["score", tmp_path / "run", "--metrics", "motion_degree"])
    assert code == 0, err


def test_a_webp_that_is_a_pipe_is_no_clip(tmp_path):
    os.mkfifo(tmp_path / "a.webp")
    assert not formats.is_clip(tmp_path / "a.webp")


def test_the_lock_follows_no_link_and_waits_for_no_pipe(tmp_path):
    victim = tmp_path / "bashrc"
    victim.write_text("precious")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / LOCK).symlink_to(victim)
    with pytest.raises(MachineError), lock_folder(tmp_path / "a"):
        pass
    assert victim.read_text() == "precious"
    for name, make in (("b", os.mkfifo), ("c", lambda path: os.link(victim, path))):
        (tmp_path / name).mkdir()
        make(tmp_path / name / LOCK)
        with pytest.raises(MachineError), lock_folder(tmp_path / name):
            pass
    assert victim.read_text() == "precious"


# ---- checkpoints -------------------------------------------------------------------------------------------


def legacy(*parts):
    whole = [MAGIC, 1001, {"little_endian": True}, {}, []]
    return b"".join(part or pickle.dumps(value, 2) for part, value in zip(parts, whole, strict=True))


def test_the_order_of_storages_is_not_printed(tmp_path):
    """A list that holds itself twice, 26 levels deep, where a name is expected."""
    deep = b"]q\x00" + b"".join(b"0](h%ch%ceq%c" % (i, i, i + 1) for i in range(200))
    (tmp_path / "x.pt").write_bytes(legacy(None, None, None, None, b"\x80\x02" + deep + b"0](h%ce." % 200))
    with pytest.raises(BadFileError):
        open_weights(tmp_path / "x.pt")


def test_five_pickles_share_one_allowance(tmp_path):
    idle = b"N0" * 300_000

    def slow(value):
        made = pickle.dumps(value, 2)
        return made[:2] + idle + made[2:]

    (tmp_path / "x.pt").write_bytes(legacy(*map(slow, [MAGIC, 1001, {"little_endian": True}, {}, []])))
    with pytest.raises(BadFileError):
        open_weights(tmp_path / "x.pt")


def test_a_base_of_a_base_of_a_base(tmp_path):
    """Thirty levels, at each two files that could be the base: each is opened once."""
    size = 0
    for level in range(30, -1, -1):
        base = {"path": f"/nowhere/w{level + 1}.safetensors", "relative": f"r{level + 1}.safetensors"}
        record = {"base": {**base, "sha256": "0" * 64, "bytes": size}, "recipe": {}} if level < 30 else {}
        for name, rest in (("r", ""), ("w", "x" * 7)):
            meta = {"edg": json.dumps(record), "pad": rest}
            write_safetensors(tmp_path / f"{name}{level}.safetensors", {"a": torch.zeros(1)}, meta)
        size += (tmp_path / f"r{level}.safetensors").stat().st_size
    assert open_weights(tmp_path / "r0.safetensors", check_base=False)["a"].item() == 0


def test_bases_without_a_tensor_are_opened_once_too(tmp_path, monkeypatch):
    from edg.weights import store

    opened = []
    monkeypatch.setattr(store, "_open", lambda path, real=store._open: opened.append(path) or real(path))
    for level in range(12, -1, -1):
        base = {"path": f"/nowhere/w{level + 1}.safetensors", "relative": f"r{level + 1}.safetensors"}
        record = {"base": {**base, "sha256": "0" * 64, "bytes": 1}, "recipe": {}} if level < 12 else {}
        for name in "rw":
            write_safetensors(tmp_path / f"{name}{level}.safetensors", {}, {"edg": json.dumps(record)})
    with pytest.raises(BadFileError):
        open_weights(tmp_path / "r0.safetensors", check_base=False)
    assert len(opened) <= 26


def test_a_link_to_itself_is_no_checkpoint(tmp_path, command):
    (tmp_path / "x.safetensors").symlink_to(tmp_path / "x.safetensors")
    assert command(["info", tmp_path / "x.safetensors"])[0] == 3


def test_two_files_that_are_each_others_base(tmp_path):
    for name, other in (("a", "b"), ("b", "a")):
        record = {"base": {"path": f"{other}.safetensors", "sha256": "0" * 64, "bytes": 1}}
        meta = {"edg": json.dumps(record)}
        write_safetensors(tmp_path / f"{name}.safetensors", {"x": torch.zeros(1)}, meta)
    with pytest.raises(BadFileError):
        open_weights(tmp_path / "a.safetensors")


DAMAGED = [
    {"training": {}},
    {"training": {"trainable": 1, "data": 2, "seed": 3, "train": {}}},
    {"recipe": {}},
]


@pytest.mark.parametrize("record", DAMAGED)
def test_a_record_of_another_shape_is_told_as_damaged_or_left_out(tmp_path, command, record):
    meta = {"edg": json.dumps({**record, "inputs": [{"name": "\x1b[2J\x1b]0;owned\x07"}]})}
    write_safetensors(tmp_path / "x.safetensors", {"a": torch.zeros(1)}, meta)
    assert command(["info", tmp_path / "x.safetensors"])[0] == 0
    assert "\x1b" not in command.out and "\x07" not in command.out


@pytest.mark.parametrize("inputs", [5, [{}], [{"name": []}], [{"name": "base"}], None, {"base": 1}])
def test_an_output_with_a_foreign_record_is_made_anew(tmp_path, tiny, command, inputs):
    again = ["merge", "edg", "--base", tiny.base, "--tuned", tiny.tuned, "--out", tmp_path / "out", "--quiet"]
    assert command(again)[0] == 0
    whole = (tmp_path / "out/dyn.safetensors").read_bytes()
    meta = {"edg": json.dumps({"output": "dyn", "recipe": {"inputs": []}, "inputs": inputs})}
    write_safetensors(tmp_path / "out/dyn.safetensors", {"a": torch.zeros(1)}, meta)
    assert command(again)[0] == 0 and (tmp_path / "out/dyn.safetensors").read_bytes() == whole


def test_a_warning_about_a_tensor_does_not_reach_the_terminal_raw(tmp_path, capsys):
    from edg.cli.main import main

    name = "model.diffusion_model.\x1b]0;owned\x07.weight"
    for file, value in (("base", 0), ("tuned", np.nan)):
        write_safetensors(tmp_path / f"{file}.safetensors", {name: torch.full((4,), float(value))})
    files = ["--base", tmp_path / "base.safetensors", "--tuned", tmp_path / "tuned.safetensors"]
    main(list(map(str, ["merge", "edg", *files, "--out", tmp_path / "out", "--quiet"])))
    err = capsys.readouterr().err
    assert "NaN" in err and "\\x1b" in err and "\x1b" not in err


# ---- writing -----------------------------------------------------------------------------------------------


def test_a_folder_that_cannot_take_its_place_leaves_the_former(tmp_path, monkeypatch):
    clip, replace = tmp_path / "clip", os.replace
    clip.mkdir()
    (clip / "000.png").write_text("old")

    def fails(source, target):
        if target == clip and source.parent == tmp_path:
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", fails)
    with pytest.raises(KeyboardInterrupt), atomic_folder(clip) as folder:
        (folder / "000.png").write_text("new")
    monkeypatch.undo()
    assert (clip / "000.png").exists() and os.listdir(tmp_path) == ["clip"]


def test_a_link_that_looks_like_a_leftover_is_not_followed(tmp_path):
    """It would bring every file of the folder it leads to over here."""
    home, run = tmp_path / "home", tmp_path / "run"
    home.mkdir()
    run.mkdir()
    (home / "id_rsa").write_text("secret")
    for name in (f"{TEMPORARY}-00000000-1-ab{FORMER}", f"{TEMPORARY}-00000000-1-cd"):
        (run / name).symlink_to(home)
        os.utime(run / name, (0, 0), follow_symlinks=False)
    assert remove_leftovers(run) == 2
    assert os.listdir(home) == ["id_rsa"] and not os.listdir(run)


def test_what_cannot_be_put_back_is_kept(tmp_path, monkeypatch):
    clip = tmp_path / "clip"
    clip.mkdir()
    (clip / "000.png").write_text("old")
    replace = os.replace

    def fails(source, target):
        if target == clip:
            raise OSError(errno.EIO, "input/output error")
        replace(source, target)

    monkeypatch.setattr(os, "replace", fails)
    with pytest.raises(OSError), atomic_folder(clip) as folder:
        (folder / "000.png").write_text("new")
    kept = list(tmp_path.rglob("000.png"))
    assert len(kept) == 1 and kept[0].read_text() == "old"


def test_a_folder_whose_writer_was_killed_between_two_renames_comes_back(tmp_path):
    former = tmp_path / f"{TEMPORARY}-00000000-1-ab{FORMER}"
    (former / "clip").mkdir(parents=True)
    (former / "clip/000.png").write_text("old")
    os.utime(former, (0, 0))
    assert remove_leftovers(tmp_path) == 1
    assert (tmp_path / "clip/000.png").read_text() == "old" and os.listdir(tmp_path) == ["clip"]


@pytest.mark.parametrize("length", [240, 255])
def test_a_name_as_long_as_names_may_be(tmp_path, length):
    path = tmp_path / ("x" * length)
    atomic_file.write_atomically(path, b"whole")
    assert path.read_bytes() == b"whole" and len(os.listdir(tmp_path)) == 1


@pytest.mark.parametrize("times, fails", [(1, False), (99, True)])
def test_who_loses_its_temporary_before_it_is_locked_makes_another(tmp_path, monkeypatch, times, fails):
    """Somebody took it for a leftover; who loses every one ends."""
    swept = []

    def sweep(handle):
        swept.append(handle)
        for path in tmp_path.iterdir() if len(swept) <= times else ():
            path.unlink()

    monkeypatch.setattr(atomic_file, "lock", sweep)
    with pytest.raises(MachineError) if fails else nullcontext():
        atomic_file.write_atomically(tmp_path / "x.pt", b"whole")
    assert [path.name for path in tmp_path.iterdir()] == ([] if fails else ["x.pt"])
    assert len(swept) == (atomic_file.TRIES if fails else 2)


# ---- videos ------------------------------------------------------------------------------------------------


def test_a_name_is_no_address(tmp_path, monkeypatch):
    """FFmpeg takes what stands before a colon for a protocol."""
    monkeypatch.chdir(tmp_path)
    os.mkdir("run:1")
    write_video("run:1/a.mp4", FRAMES, 8)
    assert read_clip("run:1/a.mp4")[0].shape == FRAMES.shape
    met = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(2)

        def listen():
            try:
                server.accept()[0].close()
                met.append("a visitor")
            except TimeoutError:
                pass

        listening = threading.Thread(target=listen)
        listening.start()
        name = f"tcp:127.0.0.1:{server.getsockname()[1]}.mp4"
        with open(name, "w") as file:
            file.write("x")
        with pytest.raises(BadFileError):
            read_clip(name)
        listening.join()
    assert not met


@pytest.mark.parametrize(
    "text",
    [
        "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\na.mp4\n#EXT-X-ENDLIST\n",
        "ffconcat version 1.0\nfile a.mp4\n",
    ],
)
def test_a_list_of_films_is_no_film(tmp_path, text):
    import av

    write_video(tmp_path / "a.mp4", FRAMES, 8)
    (tmp_path / "list.mp4").write_text(text)
    with pytest.raises(av.FFmpegError):
        open_container(tmp_path / "list.mp4")


def test_a_film_that_fills_the_memory(tmp_path, monkeypatch):
    path = tmp_path / "a.mp4"
    write_video(path, FRAMES, 8)
    formats.write_clip(tmp_path / "a.gif", FRAMES, "gif", fps=8, crf=18, tags={})
    formats.write_clip(tmp_path / "b.webp", FRAMES, "webp", fps=8, crf=18, tags={})
    formats.write_clip(
        tmp_path / "c",
        FRAMES + np.arange(3, dtype=np.uint8)[:, None, None, None],
        "png",
        fps=8,
        crf=18,
        tags={},
    )
    monkeypatch.setattr(video, "MAX_CLIP", 2 * 16 * 16 * 3)
    for clip in (path, tmp_path / "c"):
        with pytest.raises(BadFileError):
            formats.read_clip(clip)
    monkeypatch.setattr(video, "MAX_PIXELS", 200)
    for clip in (path, tmp_path / "a.gif", tmp_path / "b.webp", tmp_path / "c"):
        with pytest.raises(BadFileError):
            formats.read_clip(clip)


# ---- arguments ---------------------------------------------------------------------------------------------


def test_a_grid_of_a_million_million_points(tmp_path, command):
    numbers = ", ".join(map(str, range(100)))
    grid = ", ".join(f"{name}: [{numbers}]" for name in ("seed", "T", "eta", "fps", "crf", "ddim_steps"))
    (tmp_path / "x.yaml").write_text(f"out: x\noptions: {{}}\ngrid: {{{grid}}}")
    code, err = command(["sweep", tmp_path / "x.yaml", "--dry-run"])
    assert code == 2 and "1,000,000,000,000" in err


def test_a_world_without_a_rank(monkeypatch, capsys):
    from edg.cli.main import main

    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["sample", "--no-such-flag"]) == 2
    assert "[rank 0] edg: error: " in capsys.readouterr().err


@pytest.mark.parametrize(
    "argv",
    [
        ["sample", "--config", "sprites", "--recipe", "edg", "--threads", str(10**11)],
        ["train", SPRITES, "--threads", "-1"],
    ],
)
def test_threads_that_no_machine_has(command, argv):
    code, err = command(argv)
    assert code == 2 and "--threads" in err


def test_a_seed_below_zero(tmp_path, command):
    write_video(tmp_path / "a.mp4", FRAMES, 8)
    code, err = command(["score", tmp_path, "--seed", "-1"])
    assert code == 2 and "--seed" in err


def test_an_offset_that_no_file_has(tmp_path):
    with open(tmp_path / "x", "wb") as file:
        file.write(struct.pack("<Q", 0) * 4)
    from edg.weights.tensors import InputFile

    with pytest.raises(BadFileError):
        InputFile(tmp_path / "x").read((1 << 63) - 1, 8)
