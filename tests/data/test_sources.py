"""csv and folders to lists of videos."""

import os
import threading
from pathlib import Path

import pytest

from edg.core.errors import BadFileError, UsageError
from edg.data.captions import caption_remarks, file_remarks, require_captions
from edg.data.clips import CaptionedVideo, read_csv, read_tree, read_videos


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
        CaptionedVideo(tmp_path / "data" / expected, 'A cat, "asleep"')
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
    assert read_csv(table) == [CaptionedVideo(tmp_path / path, caption)]


@pytest.mark.parametrize(
    "text, columns, error, given, fix",
    [
        ("a,b\n1,2", "auto", UsageError, "a, b", ""),
        ("videoid,name\n1,2", "dynamicrafter", UsageError, "'page_dir'", ""),
        ("videoid,name\n1,2", "{videid}.mp4", UsageError, "'videid'", "'videoid'"),
        ("videoid,name\n1,2", "cli", UsageError, "'cli'", "'cil'"),
        ("videoid,name\n ,y", "auto", BadFileError, "list.csv", ""),
        ("videoid,name\n", "auto", BadFileError, "list.csv", ""),
        ("", "auto", UsageError, "list.csv", ""),
        ("videoid,name\n1,\x00\n", "auto", None, "", ""),
    ],
)
def test_csv_that_does_not_fit(tmp_path, text, columns, error, given, fix):
    table = write(tmp_path / "list.csv", text)
    if error is None:
        assert len(read_csv(table, None, columns)) == 1
        return
    with pytest.raises(error) as raised:
        read_csv(table, None, columns)
    assert given in raised.value.given and fix in raised.value.fix


def test_csv_that_cannot_be_read(tmp_path):
    with pytest.raises(BadFileError):
        read_csv(tmp_path / "none.csv")
    (tmp_path / "latin.csv").write_bytes("path,name\na.mp4,Müller".encode("latin-1"))
    with pytest.raises(BadFileError):
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
    with pytest.raises(BadFileError):
        read_tree(tmp_path / "none")
    with pytest.raises(UsageError):
        read_tree(tmp_path)
    write(tmp_path / "a.mp4", "")
    assert read_tree(tmp_path) == [CaptionedVideo(tmp_path / "a.mp4", "")]
    with pytest.raises(BadFileError):
        read_videos(tmp_path, captions=True)
    with pytest.raises(UsageError):
        read_videos(None)


GOOD = [("clip1.mp4", "a red box"), ("clip2.mp4", "a green box; it moves, left")]


HEADERS = ("path,caption", "Path,Caption", "file_name,text", "video,Prompt", "File Path,Description")
ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be")


@pytest.mark.parametrize(
    "header, separator, encoding, ending",
    [
        *((header, separator, "utf-8", "\n") for header in HEADERS for separator in ",;\t|"),
        *(("path,caption", ";", encoding, end) for encoding in ENCODINGS for end in ("\n", "\r\n", "\r")),
    ],
)
def test_csv_as_programs_write_it(tmp_path, header, separator, encoding, ending):
    import csv

    file = tmp_path / "list.csv"
    with file.open("w", encoding=encoding, newline="") as out:
        writer = csv.writer(out, delimiter=separator, lineterminator=ending)
        writer.writerows([header.split(","), *GOOD])
    assert [(v.path.name, v.caption, v.note) for v in read_csv(file)] == [(*row, "") for row in GOOD]


@pytest.mark.parametrize(
    "text, there, expected",
    [
        ("videoid,name\nclip1.mp4,x", ["clip1.mp4"], "clip1.mp4"),
        ("videoid,name\nclip1.mp4,x", ["clip1.mp4.mp4", "clip1.mp4"], "clip1.mp4.mp4"),
        ("videoid,page_dir,name\nclip1.MOV,p,x", ["p/clip1.MOV"], "p/clip1.MOV"),
        ("VideoID,Name\n007,x", ["007.mp4"], "007.mp4"),
        ("id,caption\n007,x", ["007.mp4"], "007.mp4"),
        ("id,path,caption\n1,sub/a.mp4,x", [], "sub/a.mp4"),
        ("path,caption\nsub\\clip1.mp4,x", ["sub/clip1.mp4"], "sub/clip1.mp4"),
        ("page_dir,videoid,name\na\\b,c,x", ["videos/a/b/c.mp4"], "videos/a/b/c.mp4"),
        ("Datei;caption\na.mp4;x", [], "a.mp4"),
        ("contentUrl,Name,caption\nhttps://h/b.mp4,a.mp4,x", [], "a.mp4"),
        ("path,name,caption,text\na.mp4, ,,x", [], "a.mp4"),
        ("sep=;\npath;caption\na.mp4;x", [], "a.mp4"),
        ("\n\npath,caption\na.mp4,x", [], "a.mp4"),
        ("path,caption\n\u00fc.mp4,x", ["u\u0308.mp4"], "u\u0308.mp4"),
        ("path,caption\nu\u0308.mp4,x", ["\u00fc.mp4"], "\u00fc.mp4"),
        ('path,caption\na.mp4,"x"\n', [], "a.mp4"),
        ("vid,caption\na,x", [], "a.mp4"),
        ("path,caption\nsub/a.b,x", ["sub/a.b.webm", "sub/a.mp4"], "sub/a.b.webm"),
        ("path,caption\na,x", ["a", "a.mp4"], "a"),
        ("path,name,caption\nsub/a.mp4,a,x", [], "sub/a.mp4"),
        ("path,name,caption\nsub/a.mp4,sub/a.mp4,x", [], "sub/a.mp4"),
        ("path,name,caption\na.mp4,x,y", [], "a.mp4"),
    ],
)  # fmt: skip
def test_names_of_columns_and_files(tmp_path, text, there, expected):
    for name in there:
        write(tmp_path / name, "")
    assert read_csv(write(tmp_path / "list.csv", text)) == [CaptionedVideo(tmp_path / expected, "x")]


@pytest.mark.parametrize(
    "name, text",
    [
        ("l.jsonl", '{"file_name": "a.mp4", "text": "x"}\n\n{"text": null, "file_name": "b.mp4", "n": 1}\n'),
        ("l.json", '[{"path": "a.mp4", "caption": ["x", "y"]}, {"path": "b.mp4", "caption": {}}]'),
        ("l.json", '{"a.mp4": "x", "b.mp4": ""}'),
        ("l.json", '{"n": [1], "videos": [{"path": "a.mp4", "text": "x"}, {"path": "b.mp4", "text": NaN}]}'),
    ],
)
def test_json(tmp_path, name, text):
    assert read_csv(write(tmp_path / name, text)) == [
        CaptionedVideo(tmp_path / "a.mp4", "x"),
        CaptionedVideo(tmp_path / "b.mp4", ""),
    ]


@pytest.mark.parametrize(
    "name, text, error, words",
    [
        ("l.csv", 'path,caption\na.mp4,x\nb.mp4,"y\nc.mp4,z\n', BadFileError, ["line 3"]),
        ("l.csv", 'path,caption\na.mp4,"x', BadFileError, ["line 2"]),
        ("l.csv", 'path,caption\na.mp4,"x\nb.mp4,"y"\nc.mp4,z\n', BadFileError, ["line 2"]),
        ("l.csv", 'path,caption\na.mp4,"x\nb.mp4,y"\nc.mp4,z\n', BadFileError, ["line 2"]),
        ("l.csv", 'videoid,name\n1,"x\n2,say ""y"" and "z"\n', BadFileError, ["line 2"]),
        ("l.csv", 'path,caption\na.mp4,"' + "x\n" * 90_000, BadFileError, ["line 2"]),
        ("l.csv", 'path,"caption\na.mp4,x\n', BadFileError, ["line 1"]),
        ("l.csv", "path,captoin\na.mp4,a red box", UsageError, ["captoin", "caption"]),
        ("l.csv", "path,caption_en\na.mp4,a red box", UsageError, ["caption_en"]),
        ("l.csv", "pth,caption\na,a red box", UsageError, ["pth", "path"]),
        ("l.csv", "path,caption,caption\na.mp4,x,y", UsageError, ["caption", "2 times"]),
        ("l.csv", "x" * 100_000 + ",b" * 10_000 + "\na,b", UsageError, ["more"]),
        ("l.csv", "a.mp4,a red box\nb.mp4,y", UsageError, ["a.mp4"]),
        ("l.csv", "path,caption\na.mp4,x\nb.mp4,M\udcfcller", BadFileError, ["line 3", "utf-8"]),
        ("l.xlsx", "PK\x03\x04...", BadFileError, ["Excel"]),
        ("l.jsonl", '{"path": "a.mp4"}\n{"path": \n', BadFileError, ["line 2"]),
        ("l.jsonl", '{"path": "a.mp4"}\n[]\n', BadFileError, ["line 2"]),
        ("l.json", "3", BadFileError, ["no rows"]),
        ("l.json", '{"videos": [{"id": 1}], "sentences": [{"caption": "x"}]}', BadFileError, ["sentences"]),
        ("l.json", "[" * 100_000, BadFileError, ["JSON"]),
    ],
)  # fmt: skip
def test_tables_that_are_refused_with_the_line_or_the_column(tmp_path, name, text, error, words):
    (tmp_path / name).write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(error) as caught:
        read_csv(tmp_path / name)
    line = str(caught.value)
    assert all(word in line for word in words) and "\n" not in line and len(line) < 600, line


def test_newlines_within_quotes_and_more_values_than_columns(tmp_path):
    text = (
        'path,caption,n\na.mp4,"a red box,\nthen, left",1\nb.mp4,red, green,2\nc.mp4,z,3,,\nd.mp4,"x" y,4\n'
    )
    a, b, c, d = read_csv(write(tmp_path / "l.csv", text))
    assert (a.caption, b.caption, c.caption, d.caption) == ("a red box,\nthen, left", "red", "z", "x y")
    assert "line 4" in b.note and "line 6" in d.note and not (a.note or c.note)
    assert any("line 4" in line for line in caption_remarks([a, b, c, d]))


@pytest.mark.parametrize(
    ("row", "caption", "noted"),
    [
        (r'a.mp4,"he said \"hi\", and left"', 'he said "hi", and left', False),
        (r'sub\a.mp4,"say \"hi\""', 'say "hi"', False),
        ('a.mp4,"he said ""hi"", and left"', 'he said "hi", and left', False),
        ('"a.mp4",x\\', "x\\", False),
        ('a.mp4,a 5" screen', 'a 5" screen', False),
        ('a.mp4,"A sign "STOP" there"', 'A sign STOP" there"', True),
        ("a.mp4,\"['one', 'two']\"", "['one', 'two']", True),
        ("a.mp4,[a box] and a [ball]", "[a box] and a [ball]", False),
    ],
)
def test_quotes_within_a_caption(tmp_path, row, caption, noted):
    [video] = read_csv(write(tmp_path / "l.csv", f"path,caption\n{row}\n"))
    assert (video.caption, bool(video.note)) == (caption, noted)


def test_a_column_of_other_names_is_no_caption(tmp_path):
    [video] = read_csv(write(tmp_path / "l.csv", "path,channel_name\na.mp4,Two Words\n"))
    assert video.caption == "" and video.note


def test_a_table_is_read_from_a_pipe(tmp_path):
    os.mkfifo(tmp_path / "l.csv")
    thread = threading.Thread(target=write, args=(tmp_path / "l.csv", "path,caption\na.mp4,x\n"))
    thread.start()
    assert read_csv(tmp_path / "l.csv") == [CaptionedVideo(tmp_path / "a.mp4", "x")]
    thread.join()


def test_what_is_counted_of_a_table(tmp_path):
    write(tmp_path / "a.webm", "")
    text = "path,motion\na.mp4,fast\na.mp4,slow\nb.mp4,\n,x\n"
    videos = read_csv(write(tmp_path / "l.csv", text))
    (without,), (again, gone) = caption_remarks(videos), file_remarks(videos)
    assert "4 of 4" in without and "path, motion" in without
    assert again.startswith("1 of 4") and gone.startswith("3 of the first 3") and "a.webm" in gone
    with pytest.raises(BadFileError):
        require_captions(videos)


# ---- captions beside videos --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "video, files, caption, noted",
    [
        ("a.mp4", {"a.TXT": "x"}, "x", False),
        ("a.mp4", {"a.Txt": "x"}, "x", False),
        ("a.mp4", {"a.caption": "x"}, "x", False),
        ("a.mp4", {"a.Caption": "x"}, "x", False),
        ("a.mp4", {"a.mp4.txt": "x"}, "x", False),
        ("a.MP4", {"a.mp4.TXT": "x"}, "x", False),
        ("a.MOV", {"A.txt": "x"}, "x", False),
        ("a.mp4", {"a.JSON": '{"text": "x"}'}, "x", False),
        ("\u00fc.mp4", {"u\u0308.txt": "x"}, "x", False),
        ("u\u0308.mp4", {"\u00fc.TXT": "x"}, "x", False),
        ("u\u0308.mp4", {"\u00fc.mp4.caption": "x"}, "x", False),
        ("a.b.mp4", {"a.b.txt": "x", "a.txt": "y"}, "x", False),
        ("a.mp4", {"a.txt": "x", "a.caption": "y", "a.json": "{}"}, "x", True),
        ("a.mp4", {"a.json": '{"text": "x"}', "a.mp4.txt": "y"}, "x", True),
        ("a.mp4", {"a.txt": "x", "A.txt": "y", "a.TXT": "z"}, "x", True),
        ("a.mp4", {"a.json": '{"Caption": ["x", "y"]}'}, "x", False),
        ("a.mp4", {"a.txt": " \n", "a.caption": "x"}, "x", True),
        ("a.mp4", {"a.json": '{"title": "t"}', "a.mp4.txt": "x"}, "x", True),
        ("a.mp4", {"a.txt": "", "a.json": "{"}, "", True),
        ("a.mp4", {"b.txt": "x"}, "", False),
        ("a.mp4", {"a_caption.txt": "x"}, "", False),
    ],
)  # fmt: skip
def test_caption_files(tmp_path, video, files, caption, noted):
    for name, text in {video: "", **files}.items():
        write(tmp_path / name, text)
    assert read_tree(tmp_path) == [found := CaptionedVideo(tmp_path / video, caption)] and not found.trouble
    assert bool(read_tree(tmp_path)[0].note) == noted


def test_a_caption_belongs_to_the_closest_video(tmp_path):
    for name in ("a.mp4", "A.mp4", "b.mp4", "b.mov"):
        write(tmp_path / name, "")
    write(tmp_path / "A.txt", "large")
    write(tmp_path / "b.txt", "both")
    captions = {video.path.name: video.caption for video in read_tree(tmp_path)}
    assert captions == {"a.mp4": "", "A.mp4": "large", "b.mp4": "both", "b.mov": "both"}


@pytest.mark.parametrize("data", ["\ufeffein Ü".encode(), "ein Ü\r\n".encode("utf-16")])
def test_caption_encodings(tmp_path, data):
    write(tmp_path / "a.mp4", "")
    (tmp_path / "a.TXT").write_bytes(data)
    assert read_tree(tmp_path) == [CaptionedVideo(tmp_path / "a.mp4", "ein Ü")]
    (tmp_path / "a.TXT").write_bytes("ein".encode("utf-16-le"))
    assert read_tree(tmp_path)[0].trouble


def test_what_lies_unread_beside_a_video_is_named(tmp_path):
    for name in ("a.mp4", "a.srt", "a_caption.txt", "metadata.csv", "b.png"):
        write(tmp_path / name, "x")
    (line,) = caption_remarks(read_tree(tmp_path))
    assert line.startswith("1 of 1") and "b.png" not in line
    assert all(name in line for name in ("a.srt", "a_caption.txt", "metadata.csv"))


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
