"""Files that come with the package: `configs/` and `prompts/`, beside it in a clone, inside it in a wheel."""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]
CHECKOUT = PACKAGE.parent


def shipped(*parts: str) -> Path:
    """The path of a shipped file or folder: `shipped("configs", "merge")`."""
    inside = PACKAGE.joinpath(*parts)
    return inside if inside.exists() else CHECKOUT.joinpath(*parts)
