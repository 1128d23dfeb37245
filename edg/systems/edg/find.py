"""The one way to a spec: a known name, a YAML file of ours, or a published one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from edg.core import config
from edg.core.errors import UsageError, nearest
from edg.systems.edg.presets import PRESETS
from edg.systems.edg.released import from_published
from edg.systems.edg.spec import ModelSpec


def load_spec(name: str | Path) -> ModelSpec:
    """A known model by name (`dynamicrafter-512`, `sprites`, ...) or a YAML file: ours, or one in the
    published layout.

    Raises UsageError for an unknown name or key, BadFileError for a file that cannot be read.
    """
    known = str(name).replace("_", "-")
    if known in PRESETS:
        return PRESETS[known]
    if Path(name).suffix not in (".yaml", ".yml"):
        names = ", ".join(PRESETS)
        raise UsageError(
            f"no model is called {str(name)!r}", expected=f"{names} or a .yaml", fix=nearest(known, PRESETS)
        )
    values = config.read_yaml(name)
    if isinstance(values.get("model"), Mapping):
        return from_published(values, name=Path(name).stem)
    return config.build(ModelSpec, values, str(name))
