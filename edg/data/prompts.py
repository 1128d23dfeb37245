"""Prompt folders: images and their prompts, paired before anything else happens.

Two layouts:
- one `.txt` with a prompt per line. Images are paired by name when their names begin with the line's number
  (`3.png`, `03-boat.jpg` belong to line 3; counted from 0 when an image 0 exists, else from 1), otherwise in
  natural order (2 before 10), and only when there are as many images as prompts;
- one `.txt` per image, of the same name (`boat.jpg`, `boat.txt`; also `boat.TXT` and `boat.jpg.txt`).

jpg, png and webp are images wherever they lie; bmp, gif, tiff, avif and the like are too, unless the folder
pairs without them. Files that are neither images nor prompts are listed by `passed_over`.

With two images to a prompt (first and last frame) the two have one name and two endings (`boat_frame1.png`
and `boat_frame3.png`, `boat_01` and `boat_02`, `boat_first` and `boat_last`); the layouts are the same, by
the names without their endings.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from edg.core.errors import BadFileError, UsageError
from edg.core.files import read_small
from edg.data.captions import EQUALITIES, is_video
from edg.data.captions import SUFFIXES as VIDEOS

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
MORE_SUFFIXES = (
    ".jfif", ".jpe", ".bmp", ".dib", ".gif", ".tif", ".tiff", ".avif", ".apng", ".ppm", ".pgm", ".pnm",
)  # fmt: skip
# Files that operating systems leave in folders.
SYSTEM_FILES = ("thumbs.db", "ehthumbs.db", "@eadir", "desktop.ini", "icon\r", "__macosx")
STEM_BYTES = 160
_NUMBER = re.compile(r"(\d+)(?![\d])")
_ENDING = re.compile(r"(?:[ _-]*(?:frame|image|img)?[ _-]*\d+|[ _-]+(?:first|last|a|b))$", re.IGNORECASE)
_UNSAFE = re.compile(r'[\x00-\x1f\x7f-\x9f/\\:*?"<>|\u2028-\u202e\u2066-\u2069\ud800-\udfff]')


@dataclass(frozen=True)
class Pair:
    """A prompt and its files, the index-th of its folder. image, last_image: pictures of the first and last
    frame; video: a reference clip; text: the file of the prompt where there is neither."""

    index: int
    prompt: str
    image: Path | None = None
    last_image: Path | None = None
    video: Path | None = None
    text: Path | None = None

    @property
    def name(self) -> str:
        """`0003-boat`: unique in the folder, safe as the stem of a file."""
        named = self.image or self.video or self.text
        return f"{self.index:04d}-{safe_stem(named.stem if named is not None else 'prompt')}"


def read_prompt_folder(
    folder: str | Path,
    image: str = "required",
    last_image: str = "no",
    video: str = "no",
    follow: bool = False,
) -> list[Pair]:
    """The prompts of a folder with the files that are "required", "optional" or of no use ("no") beside each.

    Videos (`NN.mp4`) are paired as images are. Where nothing is required and nothing lies there, each line of
    a text file is a request. See `read_folder`. Raises UsageError, BadFileError.
    """
    folder = Path(folder)
    entries = _list(folder)
    lies_there = {"image": bool(_images(entries)), "video": any(is_video(path.name) for path in entries)}
    wanted = {
        name: need == "required" or (need == "optional" and lies_there[name])
        for name, need in (("image", image), ("video", video))
    }
    pairs = _read_images(folder, last_image, follow) if wanted["image"] else []
    if wanted["video"]:
        videos = _read_videos(folder, follow)
        if not pairs:
            return videos
        return [replace(pair, video=other.video) for pair, other in zip(pairs, videos, strict=True)]
    return pairs or _read_texts(folder, follow)


def _read_images(folder: Path, last_image: str, follow: bool) -> list[Pair]:
    if last_image == "optional":
        with suppress(UsageError):
            return read_folder(folder, ends=True, follow=follow)
    return read_folder(folder, ends=last_image == "required", follow=follow)


def _images(entries: Sequence[Path]) -> list[Path]:
    return [path for path in entries if path.suffix.lower() in SUFFIXES + MORE_SUFFIXES]


def _texts(entries: Sequence[Path]) -> list[Path]:
    return [path for path in entries if path.suffix.lower() == ".txt"]


def _read_videos(folder: Path, follow: bool) -> list[Pair]:
    """Reference clips and their prompts, paired as images are."""
    entries = _list(folder)
    videos = [path for path in entries if is_video(path.name)]
    if not videos:
        raise UsageError(f"no video in {folder}", expected=f"files ending in {', '.join(VIDEOS)}")
    pairs = _read_pairs(folder, videos, _texts(entries), False, follow)
    return [replace(pair, image=None, video=pair.image) for pair in pairs]


def _read_texts(folder: Path, follow: bool) -> list[Pair]:
    """Prompts without files, in the order of the text files and their lines."""
    texts = _texts(_list(folder))
    for path in () if follow else texts:
        _require_inside(path, folder)
    if not texts:
        raise UsageError(f"no prompt in {folder}", expected="a .txt with one prompt per line")
    lines = [(text, prompt) for text in texts for prompt in read_prompts(text)]
    return [Pair(index, prompt, text=text) for index, (text, prompt) in enumerate(lines)]


def read_folder(folder: str | Path, ends: bool = False, follow: bool = False) -> list[Pair]:
    """Read the pairs of a prompt folder, in order.

    ends: two images to a prompt, of the first and last frame (or one for both). follow: links may lead out of
    the folder. Raises UsageError if images and prompts do not pair, BadFileError.
    """
    folder = Path(folder)
    entries = _list(folder)
    texts = _texts(entries)
    usual = [path for path in entries if path.suffix.lower() in SUFFIXES]
    images = _images(entries)
    if len(usual) < len(images):
        with suppress(UsageError):
            return _read_pairs(folder, usual, texts, ends, follow)
    try:
        return _read_pairs(folder, images, texts, ends, follow)
    except UsageError as error:
        if not (others := [path for path in entries if path not in {*images, *texts}]):
            raise
        raise UsageError(
            f"{error.given} (passed over: {_names(others)})", expected=error.expected, fix=error.fix
        ) from error


def passed_over(folder: str | Path, pairs: Sequence[Pair]) -> str:
    """Name the files of a prompt folder that are in none of its pairs, "" if there are none."""
    files = [path for pair in pairs for path in (pair.image, pair.last_image, pair.video)]
    used = {path.name for path in files if path is not None}
    others = [path for path in _list(Path(folder)) if path.name not in used and path.suffix.lower() != ".txt"]
    return f"passed over in {folder}: {_names(others)}" if others else ""


def _names(paths: Sequence[Path], most: int = 5) -> str:
    more = f" and {len(paths) - most} more" if len(paths) > most else ""
    return ", ".join(_short_name(path) for path in paths[:most]) + more


def _short_name(path: Path, length: int = 80) -> str:
    return path.name if len(path.name) <= length else path.name[: length - 3] + "..."


def _read_pairs(
    folder: Path, images: Sequence[Path], texts: Sequence[Path], ends: bool, follow: bool
) -> list[Pair]:
    for path in () if follow else (*images, *texts):
        _require_inside(path, folder)
    if not images:
        raise UsageError(f"no image in {folder}", expected=f"files ending in {', '.join(SUFFIXES)}")
    lasts = _last_images(images, folder) if ends else {}
    seconds = set(lasts.values())
    firsts = [image for image in images if image not in seconds]
    if alone := _text_per_image(firsts, texts, _without_ending if lasts else None):
        return [Pair(i, _read_single(alone[i]), image, lasts.get(image)) for i, image in enumerate(firsts)]
    if len(texts) != 1:
        names = ", ".join(path.name for path in texts[:10]) or "none"
        raise UsageError(
            f"{len(texts)} prompt files in {folder} ({names})",
            expected="exactly one .txt with one prompt per line, or one .txt per image",
        )
    prompts = read_prompts(texts[0])
    try:
        pairs = _pair(prompts, firsts, folder)
    except UsageError as error:
        if not lasts:
            raise
        raise UsageError(
            error.given.replace(" images in ", " pairs of images in "),
            expected="a first and a last image for each prompt",
            fix="name them by line (01_frame1.png, 01_frame2.png, 02_frame1.png, ...)",
        ) from error
    return [Pair(i, prompt, image, lasts.get(image)) for i, (prompt, image) in enumerate(pairs)]


def _last_images(images: Sequence[Path], folder: Path) -> dict[Path, Path]:
    """Map first images to last ones: by their names without endings if two share each, none if all names
    differ, else (as published) two by two in natural order. Raises UsageError."""
    groups: dict[str, list[Path]] = {}
    for image in images:
        groups.setdefault(_without_ending(image), []).append(image)
    sizes = {len(group) for group in groups.values()}
    if sizes == {1}:
        return {}
    if sizes != {2} and len(images) % 2:
        raise UsageError(
            f"{len(images)} images in {folder}",
            expected="a first and a last image for each prompt",
            fix="name them boat_frame1.png, boat_frame2.png",
        )
    pairs = groups.values() if sizes == {2} else zip(images[::2], images[1::2], strict=True)
    return dict(map(tuple, pairs))


def _without_ending(image: Path) -> str:
    return _ENDING.sub("", image.stem)


def _list(folder: Path) -> list[Path]:
    """Entries of a folder in natural order, without hidden files and SYSTEM_FILES."""
    try:
        entries = [
            p for p in folder.iterdir() if not p.name.startswith(".") and p.name.lower() not in SYSTEM_FILES
        ]
    except (OSError, ValueError) as error:  # a NUL in the name
        reason = getattr(error, "strerror", error)
        raise BadFileError(f"cannot read the prompt folder {folder}: {reason}") from error
    return sorted(entries, key=natural_key)


def leads_out(path: Path, folder: Path) -> bool:
    """True if a path is a link to something outside the folder."""
    try:
        return path.is_symlink() and not path.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError):  # a link to itself leads nowhere: it fails when it is read
        return False


def _require_inside(path: Path, folder: Path) -> None:
    if leads_out(path, folder):
        raise UsageError(
            f"{path.name} in {folder} links to {path.resolve()}",
            expected="files of the folder itself",
            fix="give --follow_links if you trust the folder",
        )


def natural_key(path: Path) -> tuple:
    """Sort key with digits as numbers, then the name itself, so that the order is total."""
    parts = re.split(r"(\d+)", unicodedata.normalize("NFC", path.name))
    return tuple((int(p), "") if p.isdecimal() else (-1, p.casefold()) for p in parts), path.name


def _text_per_image(
    images: Sequence[Path], texts: Sequence[Path], stem: Callable[[Path], str] | None
) -> list[Path] | None:
    """The text of each image if every image has one of its name and no text is left, else None.

    Names are compared strictly first, then without case. stem: the name of an image, by default its stem or
    its whole name.
    """
    if len(texts) != len(images):
        return None
    ways = [stem] if stem else [lambda image: image.stem, lambda image: image.name]
    for way in ways:
        for like in EQUALITIES:
            names = [like(way(image)) for image in images]
            by_name = {like(text.stem): text for text in texts}
            if len(texts) == len(by_name) and set(names) == by_name.keys():
                return [by_name[name] for name in names]
    return None


def _read_single(path: Path) -> str:
    prompts = read_prompts(path)
    if len(prompts) != 1:
        raise UsageError(
            f"{path} holds {len(prompts)} prompts", expected="one line, the prompt of the image of that name"
        )
    return prompts[0]


# ---- text --------------------------------------------------------------------------------------------------


def read_prompts(path: str | Path) -> list[str]:
    """Read the prompts of a text file, one per line: UTF-8 or (with its mark) UTF-16, any line ends.

    Blank lines at the end are ignored; one elsewhere would shift the pairing: UsageError with its number.
    """
    text = _decode(Path(path))
    lines = [line.strip() for line in re.split(r"\r\n|\n|\r", text)]
    while lines and not lines[-1]:
        lines.pop()
    if not lines:
        raise UsageError(f"{path} holds no prompt", expected="one prompt per line")
    for number, line in enumerate(lines, 1):
        if not line:
            raise UsageError(
                f"line {number} of {path} is blank",
                expected="a prompt",
                fix="remove the line, or write a prompt into it",
            )
        if "\x00" in line:
            raise UsageError(f"line {number} of {path} holds a NUL character", expected="text in UTF-8")
    return [unicodedata.normalize("NFC", line) for line in lines]


def _decode(path: Path) -> str:
    data = read_small(path)
    encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        number = data[: error.start].count(b"\n") + 1
        raise UsageError(
            f"line {number} of {path} is not valid {encoding[:6].rstrip('-').upper()}",
            expected="a text file in UTF-8",
            fix="save it as UTF-8",
        ) from error


# ---- pairing -----------------------------------------------------------------------------------------------


def _pair(prompts: Sequence[str], images: Sequence[Path], folder: Path) -> list[tuple[str, Path]]:
    by_line = _by_number(images, len(prompts))
    if by_line is None:
        if len(prompts) != len(images):
            raise _unpaired(prompts, images, min(len(prompts), len(images)), folder)
        return list(zip(prompts, images, strict=True))
    for line in range(len(prompts)):
        if line not in by_line:
            raise _mismatch(
                f"prompt {line + 1} ({_short(prompts[line])}) has no image", prompts, images, folder
            )
    surplus = [image for line, image in sorted(by_line.items()) if line >= len(prompts)]
    if surplus:
        raise _mismatch(f"image {surplus[0].name} has no prompt", prompts, images, folder)
    return [(prompt, by_line[line]) for line, prompt in enumerate(prompts)]


def _by_number(images: Sequence[Path], count: int) -> dict[int, Path] | None:
    """Map lines (from 0) to images if every image's name begins with a number and these fit the lines.

    They fit if they have no gap or hit every line; else they mean something else (years, say): None.
    """
    found = [_NUMBER.match(image.stem) for image in images]
    numbers = [int(match[1]) for match in found if match]
    if len(set(numbers)) != len(images):
        return None
    first = 0 if 0 in numbers else 1
    lines = {number - first: image for number, image in zip(numbers, images, strict=True)}
    unbroken = sorted(lines) == list(range(len(lines)))
    return lines if unbroken or all(line in lines for line in range(count)) else None


def _unpaired(prompts: Sequence[str], images: Sequence[Path], first: int, folder: Path) -> UsageError:
    if len(images) > len(prompts):
        return _mismatch(f"image {images[first].name} has no prompt", prompts, images, folder)
    return _mismatch(f"prompt {first + 1} ({_short(prompts[first])}) has no image", prompts, images, folder)


def _mismatch(what: str, prompts: Sequence[str], images: Sequence[Path], folder: Path) -> UsageError:
    return UsageError(
        f"{what}: {len(prompts)} prompts and {len(images)} images in {folder}",
        expected="one image per prompt",
        fix="name the images by line (01.png, 02.png, ...) or make the numbers equal",
    )


def _short(prompt: str, length: int = 40) -> str:
    return repr(prompt if len(prompt) <= length else prompt[: length - 3] + "...")


# ---- names -------------------------------------------------------------------------------------------------


def safe_stem(stem: str) -> str:
    """Make a stem that every file system takes: NFC, unsafe characters replaced, at most 160 bytes.

    A stem that had to change ends in a short hash of the original, so that different stems stay different.
    """
    plain = unicodedata.normalize("NFC", stem)
    clean = _UNSAFE.sub("_", plain).strip()
    if len(clean.encode()) > STEM_BYTES:
        clean = clean.encode()[: STEM_BYTES - 9].decode(errors="ignore")
    if clean == plain:
        return clean
    digest = hashlib.blake2b(plain.encode(errors="surrogatepass"), digest_size=4).hexdigest()
    return f"{clean}-{digest}"
