"""Recognise a file by its first bytes, with a clear error for what is mistaken for a checkpoint."""

from __future__ import annotations

from edg.core.errors import BadFileError
from edg.weights.tensors import InputFile

ARCHIVES = {
    b"\x1f\x8b": "gzip", b"\xfd7zXZ\x00": "xz", b"\x28\xb5\x2f\xfd": "zstd", b"BZh": "bzip2",
    b"7z\xbc\xaf": "7z",
}  # fmt: skip
OTHERS = {
    b"GGUF": "a GGUF file", b"\x89HDF": "an HDF5 file", b"\x93NUMPY": "a NumPy array",
    b"\x89PNG": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image", b"%PDF": "a PDF document",
}  # fmt: skip
EXPECTED = "a checkpoint (.ckpt, .pt, .pth or .safetensors)"


def sniff(file: InputFile) -> str:
    """'zip', 'legacy' or 'safetensors'. Raises BadFileError naming what the file is and what to do."""
    path = file.path
    if not file.size:
        raise BadFileError(f"{path} is empty (0 bytes)", expected=EXPECTED, fix="download it again")
    head = file.read(0, min(file.size, 512))
    for magic, name in ARCHIVES.items():
        if head.startswith(magic):
            raise BadFileError(f"{path} is {name}-compressed", expected=EXPECTED, fix="unpack it first")
    for magic, name in OTHERS.items():
        if head.startswith(magic):
            raise BadFileError(f"{path} is {name}", expected=EXPECTED)
    if head.startswith(b"version https://git-lfs"):
        raise BadFileError(
            f"{path} is a git-lfs pointer, not the file itself", expected=EXPECTED, fix="run `git lfs pull`"
        )
    if head.startswith(b"PK\x03\x04"):
        return "zip"
    if head.startswith(b"PK\x05\x06"):
        raise BadFileError(f"{path} is a zip archive with nothing in it", expected=EXPECTED)
    if len(head) > 8 and head[8:9] == b"{":
        return "safetensors"
    if head[:1] == b"\x80" and head[1:2] in b"\x01\x02\x03\x04\x05":
        return "legacy"
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if text.startswith(b"<"):
        raise BadFileError(
            f"{path} is a web page (HTML), not a checkpoint",
            expected=EXPECTED,
            fix="download the file itself",
        )
    if text.startswith((b"{", b"[")):
        raise BadFileError(f"{path} is a JSON text", expected=EXPECTED)
    raise BadFileError(
        f"{path} is not a file of a known kind ({file.size} bytes, begins with {head[:8]!r})",
        expected=EXPECTED,
        fix="if it was downloaded, download it again",
    )
