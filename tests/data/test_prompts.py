"""Prompt folders: what pairs, what does not, and what the error says."""

import time

import pytest
from PIL import Image

from edg.core.errors import UsageError
from edg.core.video import read_image
from edg.data.prompts import passed_over, read_folder, read_prompt_folder, read_prompts, safe_stem


def folder(path, images, text="one\ntwo\nthree\n", name="prompts.txt"):
    for image in images:
        (path / image).write_bytes(b"x")
    if text is not None:
        data = text if isinstance(text, bytes) else text.encode()
        (path / name).write_bytes(data)
    return path


def pairs(path):
    return {pair.image.name: pair.prompt for pair in read_folder(path)}


def test_by_order_is_natural(tmp_path):
    path = folder(tmp_path, ["b10.png", "b2.png", "B1.JPG"])
    assert pairs(path) == {"B1.JPG": "one", "b2.png": "two", "b10.png": "three"}


@pytest.mark.parametrize("first", [0, 1])
def test_by_number(tmp_path, first):
    names = [f"{first + 2:02d}-a.png", f"{first:02d}-z.jpeg", f"{first + 1:02d}.webp"]
    assert [p.image.name for p in read_folder(folder(tmp_path, names))] == [names[1], names[2], names[0]]


def test_numbers_that_are_not_lines_fall_back_to_order(tmp_path):
    path = folder(tmp_path, ["2019-a.png", "1998-b.png", "2024.png"])
    assert pairs(path) == {"1998-b.png": "one", "2019-a.png": "two", "2024.png": "three"}


@pytest.mark.parametrize(
    "images, named",
    [
        (["1.png", "2.png"], "'three'"),
        (["1.png", "2.png", "3.png", "4.png"], "4.png"),
        (["a.png", "b.png"], "'three'"),
        (["a.png", "b.png", "c.png", "d.png"], "d.png"),
        ([], "image"),
    ],
)
def test_images_and_prompts_that_do_not_pair(tmp_path, images, named):
    with pytest.raises(UsageError) as error:
        read_folder(folder(tmp_path, images))
    assert named in error.value.given


def test_no_text_or_two(tmp_path):
    folder(tmp_path, ["a.png"], text=None)
    with pytest.raises(UsageError):
        read_folder(tmp_path)
    folder(tmp_path, [], name="x.txt"), folder(tmp_path, [], name="y.txt")
    with pytest.raises(UsageError) as error:
        read_folder(tmp_path)
    assert "x.txt, y.txt" in error.value.given


def test_text_per_image(tmp_path):
    folder(tmp_path, ["cat.png"], "a cat", "cat.txt")
    folder(tmp_path, ["dog.JPG"], "a dog", "dog.txt")
    assert pairs(tmp_path) == {"cat.png": "a cat", "dog.JPG": "a dog"}


def test_same_stem_twice_stays_two(tmp_path):
    names = [p.name for p in read_folder(folder(tmp_path, ["a.png", "a.jpg", "A.png"]))]
    assert len({name.casefold() for name in names}) == 3


@pytest.mark.parametrize(
    "data",
    [
        b"one\r\ntwo\r\n",
        b"\xef\xbb\xbfone\ntwo",
        "one\ntwo\n\n".encode("utf-16"),
        b"one\rtwo",
        b"  one \n two\n",
    ],
)
def test_encodings_and_line_ends(tmp_path, data):
    (tmp_path / "p.txt").write_bytes(data)
    assert read_prompts(tmp_path / "p.txt") == ["one", "two"]


@pytest.mark.parametrize(
    "data, line",
    [
        (b"one\n\ntwo\n", "line 2 "),
        (b"one\ntw\xff\n", "line 2 "),
        (b"", ""),
        ("one\ntwo".encode("utf-16-le"), "line 1 "),
    ],
)
def test_bad_text_names_its_line(tmp_path, data, line):
    (tmp_path / "p.txt").write_bytes(data)
    with pytest.raises(UsageError) as error:
        read_prompts(tmp_path / "p.txt")
    assert line in error.value.given


@pytest.mark.parametrize(
    "stem, same",
    [
        ("a boat", True),
        ("ünï-😀", True),
        ("..", True),
        ("-rf", True),
        ("a/b", False),
        ("x" * 300, False),
        ("a\nb", False),
    ],
)
def test_safe_stems(stem, same):
    safe = safe_stem(stem)
    assert (safe == stem) == same
    assert "/" not in safe and "\n" not in safe and len(safe.encode()) <= 170


def test_safe_stem_is_nfc_and_different_stems_stay_different():
    assert safe_stem("u\u0308") == "ü"
    assert safe_stem("a/b") != safe_stem("a:b")


def test_ten_thousand_prompts_are_read_quickly(tmp_path):
    folder(tmp_path, [f"{i}.png" for i in range(10_000)], "\n".join(f"prompt {i}" for i in range(10_000)))
    start = time.process_time()
    found = read_folder(tmp_path)
    assert time.process_time() - start < 2
    assert found[2345].prompt == "prompt 2345" and found[2345].image.name == "2345.png"


# ---- other kinds of files ----------------------------------------------------------------------------------


KINDS = ("bmp", "BMP", "dib", "gif", "tif", "tiff", "avif", "jfif", "jpe", "JPG", "webp", "ppm", "apng")


@pytest.mark.parametrize("kind", KINDS)
def test_every_picture_that_can_be_read_is_one(tmp_path, kind):
    path = folder(tmp_path, [f"1.{kind}", "2.png", "3.png"])
    assert pairs(path) == {f"1.{kind}": "one", "2.png": "two", "3.png": "three"}
    assert passed_over(path, read_folder(path)) == ""


@pytest.mark.parametrize("kind", KINDS)
def test_such_a_picture_is_read(tmp_path, kind):
    form = {"dib": "bmp", "tif": "tiff", "jfif": "jpeg", "jpe": "jpeg", "jpg": "jpeg", "apng": "png"}
    name = tmp_path / f"1.{kind}"
    Image.new("RGB", (8, 8), (200, 30, 40)).save(name, format=form.get(kind.lower(), kind.lower()))
    assert abs(read_image(name).astype(int) - (200, 30, 40)).max() <= 6


def test_what_paired_before_pairs_as_it_did(tmp_path):
    path = folder(tmp_path, ["a.png", "b.png", "c.png", "b.gif", "preview.gif", "notes.pdf"])
    assert pairs(path) == {"a.png": "one", "b.png": "two", "c.png": "three"}
    line = passed_over(path, read_folder(path))
    assert all(name in line for name in ("b.gif", "preview.gif", "notes.pdf")) and "\n" not in line


@pytest.mark.parametrize("name", ["1.heic", "1.jxl", "1.svg", "1", "1.pdf"])
def test_what_is_not_read_is_named(tmp_path, name):
    path = folder(tmp_path, [name, "2.png", "3.png"])
    with pytest.raises(UsageError) as caught:
        read_folder(path)
    assert name in caught.value.given
    assert name in passed_over(folder(tmp_path, ["1.png"]), read_folder(path))


def test_what_systems_leave_behind_is_not_seen(tmp_path):
    names = ("Thumbs.db", ".DS_Store", "desktop.ini", "._1.png", ".hidden.txt")
    path = folder(tmp_path, ["1.png", "2.png", "3.png", *names])
    assert len(read_folder(path)) == 3 and passed_over(path, read_folder(path)) == ""


def test_many_names_are_not_all_shown(tmp_path):
    path = folder(tmp_path, ["1.png", "2.png", "3.png", *(f"{'x' * 200}{i}.pdf" for i in range(50))])
    line = passed_over(path, read_folder(path))
    assert "45 more" in line and len(line) < 800


@pytest.mark.parametrize(
    "images, texts",
    [
        (["boat.jpg", "cat.png"], ["boat.TXT", "cat.Txt"]),
        (["boat.JPG", "cat.bmp"], ["boat.txt", "cat.TXT"]),
        (["boat.jpg", "cat.png"], ["boat.jpg.txt", "cat.png.TXT"]),
        (["Boat.jpg", "CAT.png"], ["boat.txt", "cat.txt"]),
        (["bo\u0308at.jpg", "cat.png"], ["b\u00f6at.txt", "cat.txt"]),
        (["b\u00f6at.jpg", "cat.png"], ["bo\u0308at.TXT", "cat.txt"]),
        (["a.jpg", "A.jpg"], ["a.txt", "A.txt"]),
        (["\u00fc.jpg", "u\u0308.jpg"], ["\u00fc.txt", "u\u0308.txt"]),
    ],
)  # fmt: skip
def test_a_text_of_its_name_for_each_image(tmp_path, images, texts):
    for number, (image, text) in enumerate(zip(images, texts, strict=True)):
        (tmp_path / image).touch()
        (tmp_path / text).write_text(f"the {number}")
    assert pairs(tmp_path) == {image: f"the {number}" for number, image in enumerate(images)}


@pytest.mark.parametrize("name", ["prompts.TXT", "Prompts.Txt", "x.tXt"])
def test_prompts_in_capitals(tmp_path, name):
    assert len(read_folder(folder(tmp_path, ["1.png", "2.png", "3.png"], name=name))) == 3


# ---- two images to a prompt --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "names, firsts, lasts",
    [
        (["a_frame1", "a_frame3", "b_img1", "b_img3"], ["a_frame1", "b_img1"], ["a_frame3", "b_img3"]),
        (["02_last", "02_first", "01_first", "01_last"], ["01_first", "02_first"], ["01_last", "02_last"]),
        (["x_01", "x_02", "y-a", "y-b"], ["x_01", "y-a"], ["x_02", "y-b"]),
        (["01", "02", "03", "04"], ["01", "03"], ["02", "04"]),
        (["01_f2", "01_f10", "02_f1", "02_f2"], ["01_f2", "02_f1"], ["01_f10", "02_f2"]),
        (["panda", "toga"], ["panda", "toga"], [None, None]),
    ],
)  # fmt: skip
def test_first_and_last_images(tmp_path, names, firsts, lasts):
    for name in names:
        (tmp_path / f"{name}.png").touch()
    (tmp_path / "p.txt").write_text("one\ntwo\n")
    pairs = read_folder(tmp_path, ends=True)
    assert [pair.prompt for pair in pairs] == ["one", "two"]
    assert [pair.image.stem for pair in pairs] == firsts
    assert [pair.last_image and pair.last_image.stem for pair in pairs] == lasts


def test_a_text_for_each_pair(tmp_path):
    for name in ("boat_first.png", "boat_last.png", "cat_1.png", "cat_2.png"):
        (tmp_path / name).touch()
    for name in ("boat", "cat"):
        (tmp_path / f"{name}.txt").write_text(f"the {name}")
    pairs = read_folder(tmp_path, ends=True)
    assert [(pair.prompt, pair.last_image.name) for pair in pairs] == [
        ("the boat", "boat_last.png"),
        ("the cat", "cat_2.png"),
    ]


def test_pairs_that_do_not_pair(tmp_path):
    for name in ("a_1.png", "a_2.png", "b_1.png"):
        (tmp_path / name).touch()
    (tmp_path / "p.txt").write_text("one\ntwo\n")
    with pytest.raises(UsageError) as error:
        read_folder(tmp_path, ends=True)
    assert "3 images" in error.value.given
    (tmp_path / "b_2.png").touch()
    (tmp_path / "p.txt").write_text("one\ntwo\nthree\n")
    with pytest.raises(UsageError) as error:
        read_folder(tmp_path, ends=True)
    assert "'three'" in error.value.given


# ---- prompts without images, and with videos ---------------------------------------------------------------


def test_lines_without_images(tmp_path):
    (tmp_path / "b.txt").write_text("third\n")
    (tmp_path / "a.txt").write_text("first\nsecond\n")
    pairs = read_prompt_folder(tmp_path, image="no")
    assert [(pair.name, pair.prompt) for pair in pairs] == [
        ("0000-a", "first"), ("0001-a", "second"), ("0002-b", "third"),
    ]  # fmt: skip
    assert all(pair.image is pair.video is None for pair in pairs)
    assert read_prompt_folder(tmp_path, image="optional") == pairs
    with pytest.raises(UsageError):
        read_prompt_folder(tmp_path)


def test_optional_images_are_read_where_they_are(tmp_path):
    path = folder(tmp_path, ["1.png"], "one\n")
    assert [pair.image.name for pair in read_prompt_folder(path, image="optional")] == ["1.png"]
    assert read_prompt_folder(path, image="no")[0].image is None


def test_videos_are_paired_as_images_are(tmp_path):
    for name in ("2.mp4", "1.MOV"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "p.txt").write_text("first\nsecond\n")
    pairs = read_prompt_folder(tmp_path, image="no", video="required")
    assert [(pair.prompt, pair.video.name, pair.image) for pair in pairs] == [
        ("first", "1.MOV", None), ("second", "2.mp4", None),
    ]  # fmt: skip
    assert passed_over(tmp_path, pairs) == ""
    (tmp_path / "2.mp4").unlink()
    with pytest.raises(UsageError):
        read_prompt_folder(tmp_path, video="required")


def test_no_prompt_at_all(tmp_path):
    for wants in ({"image": "no"}, {"video": "required"}):
        with pytest.raises(UsageError) as caught:
            read_prompt_folder(tmp_path, **wants)
        assert str(tmp_path) in caught.value.given
