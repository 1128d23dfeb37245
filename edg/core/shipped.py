"""Files that come with the package: `configs/` and `prompts/`, beside it in a clone, inside it in a wheel."""

from __future__ import annotations

from itertools import takewhile
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]
CHECKOUT = PACKAGE.parent


def shipped(*parts: str) -> Path:
    """The path of a shipped file or folder: `shipped("configs", "merge")`."""
    inside = PACKAGE.joinpath(*parts)
    return inside if inside.exists() else CHECKOUT.joinpath(*parts)


def shipped_settings(*parts: str) -> dict[str, str]:
    """name -> first sentence of its comment, of every YAML file in a shipped folder, sorted."""
    found = {}
    for path in sorted(shipped(*parts).glob("*.yaml")):
        lines = path.read_text(encoding="utf-8").splitlines()
        comment = " ".join(line[1:].strip() for line in takewhile(lambda line: line[:2] == "# ", lines))
        found[path.stem] = comment.partition(". ")[0].rstrip(".") + "."
    return found


def listing(*parts: str) -> str:
    """The same as text, a line each."""
    found = shipped_settings(*parts)
    width = max(map(len, found), default=0)
    return "\n".join(f"{name:{width}}  {sentence}" for name, sentence in found.items())
