"""csv and folders to lists of videos."""

import os
from pathlib import Path

import pytest

from edg.core.errors import BadFileError, UsageError
from edg.data.clips import Video, read_csv, read_tree, read_videos


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


WEBVID = 'videoid,contentUrl,duration,page_dir,name\n007,http://x,PT1S,0_50,"A cat, ""asleep"""\n'


@pytest.mark.parametrize(
    "columns, there, expected",
    [
        ("dynamicrafter", None, "videos/0_50/007.mp4"),
        ("webvid", None, "0_50/007.mp4"),
        ("cil", None, "007.mp4"),
        ("clips/{videoid}.webm", None, "clips/007.webm"),
        ("auto", None, "videos/0_50/007.mp4"),  # nothing there: DynamiCrafter's
        ("auto", "videos/0_50/007.mp4", "videos/0_50/007.mp4"),
        ("auto", "0_50/007.mp4", "0_50/007.mp4"),
        ("auto", "007.mp4", "007.mp4"),
    ],
)
def test_webvid_columns(tmp_path, columns, there, expected):
    table = write(tmp_path / "list.csv", WEBVID)
    if there:
        write(tmp_path / "data" / there, "x")
    assert read_csv(table, tmp_path / "data", columns) == [
        Video(tmp_path / "data" / expected, 'A cat, "asleep"')
    ]


@pytest.mark.parametrize(
    "text, path, caption",
    [
        ("videoid,name\na,x y", "a.mp4", "x y"),
        ("path,caption\nsub/a.mov,x", "sub/a.mov", "x"),
        ("\ufefffile, text\na.mp4, x", "a.mp4", "x"),
        ("video\na.mp4", "a.mp4", ""),
        ("path,name\r\n/abs/a.mp4,\r\n", "/abs/a.mp4", ""),
    ],
)
def test_other_columns(tmp_path, text, path, caption):
    table = write(tmp_path / "list.csv", text)
    assert read_csv(table) == [Video(tmp_path / path, caption)]


@pytest.mark.parametrize(
    "text, columns, error, match",
    [
        ("a,b\n1,2", "auto", UsageError, "columns a, b; expected videoid"),
        ("videoid,name\n1,2", "dynamicrafter", UsageError, "no column 'page_dir'"),
        ("videoid,name\n1,2", "{videid}.mp4", UsageError, "did you mean 'videoid'"),
        ("videoid,name\n1,2", "cli", UsageError, "did you mean 'cil'"),
        ("videoid,name\n ,y", "auto", BadFileError, "lists no video"),
        ("videoid,name\n", "auto", BadFileError, "lists no video"),
        ("", "auto", UsageError, "none"),
        ("videoid,name\n1,\x00\n", "auto", None, ""),
    ],
)
def test_csv_that_does_not_fit(tmp_path, text, columns, error, match):
    table = write(tmp_path / "list.csv", text)
    if error is None:
        assert len(read_csv(table, None, columns)) == 1
        return
    with pytest.raises(error, match=match):
        read_csv(table, None, columns)


def test_csv_that_cannot_be_read(tmp_path):
    with pytest.raises(BadFileError, match="No such file"):
        read_csv(tmp_path / "none.csv")
    (tmp_path / "latin.csv").write_bytes("path,name\na.mp4,Müller".encode("latin-1"))
    with pytest.raises(BadFileError, match="utf-8"):
        read_csv(tmp_path / "latin.csv")


def test_tree(tmp_path):
    for name in ("b.mp4", "a/z.MOV", "a/y.webm", "a/.hidden.mp4", ".git/x.mp4", "c.txt", "d.mkv"):
        write(tmp_path / "t" / name, "")
    write(tmp_path / "t/b.txt", "two\nlines \n")
    write(tmp_path / "t/b.json", "not looked at")
    write(tmp_path / "t/a/z.json", '{"prompt": "from json"}')
    os.symlink(tmp_path / "t", tmp_path / "t/a/loop")
    found = read_tree(tmp_path / "t")
    assert [(v.path.relative_to(tmp_path / "t").as_posix(), v.caption) for v in found] == [
        ("a/y.webm", ""),
        ("a/z.MOV", "from json"),
        ("b.mp4", "two lines"),
        ("d.mkv", ""),
    ]
    assert read_videos(tmp_path / "t") == found


def test_tree_that_does_not_fit(tmp_path):
    with pytest.raises(BadFileError, match="not a folder"):
        read_tree(tmp_path / "none")
    with pytest.raises(UsageError, match="no video in"):
        read_tree(tmp_path)
    write(tmp_path / "a.mp4", "")
    assert read_tree(tmp_path) == [Video(tmp_path / "a.mp4", "")]
    with pytest.raises(BadFileError):
        read_videos(tmp_path, captions=True)
    with pytest.raises(UsageError, match="no videos are named"):
        read_videos(None)


def test_what_is_wrong_with_one_video_is_its_own_trouble(tmp_path):
    table = write(tmp_path / "list.csv", "page_dir,videoid,name\np,1,x\np\n ,2,y\np,3,z,more")
    one, short, empty, long = read_csv(table, columns="webvid")
    assert (one.trouble, long.trouble) == ("", "") and long.caption == "z"
    for line, video in ((3, short), (4, empty)):
        assert video.path == Path(f"{table}, line {line}") and "names no video" in video.trouble
    for name in ("a", "b", "c", "d"):
        write(tmp_path / f"{name}.mp4", "")
    (tmp_path / "a.txt").write_bytes("Müller".encode("latin-1"))
    write(tmp_path / "b.json", '{"title": "x"}')
    write(tmp_path / "c.json", "{")
    a, b, c, d = read_tree(tmp_path)
    assert "cannot read the caption" in a.trouble and "holds no caption" in b.trouble
    assert "cannot read the caption" in c.trouble and not d.trouble
