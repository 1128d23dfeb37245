"""Model specs by name, from a YAML file of ours, or from a published one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edg.core import config
from edg.core.errors import UsageError, nearest
from edg.core.written import plain
from edg.networks.latent_video.presets import PRESETS
from edg.networks.latent_video.published_yaml import from_published
from edg.networks.latent_video.spec import ModelSpec

LARGEST = 1 << 20  # channels, heads, tokens, pixels, timesteps


def load_spec(name: str | Path) -> ModelSpec:
    """A known model by name (`dynamicrafter-512`, `sprites`, ...) or a YAML file: ours, or one in the
    published layout.

    Raises UsageError for an unknown name or key, BadFileError for a file that cannot be read.
    """
    known = _published(str(name)) or str(name).replace("_", "-")
    if known in PRESETS:
        return PRESETS[known]
    if Path(name).suffix not in (".yaml", ".yml"):
        names = ", ".join(PRESETS)
        raise UsageError(
            f"no model is called {str(name)!r}", expected=f"{names} or a .yaml", fix=nearest(known, PRESETS)
        )
    values = config.read_yaml(name)
    values.pop("system", None)
    if isinstance(values.get("model"), Mapping):
        spec = from_published(plain(values), name=Path(name).stem)
    else:
        spec = config.build(ModelSpec, values, str(name))
    _need_reasonable(config.to_dict(spec), str(name))
    return spec


def _published(name: str) -> str:
    """The model of a published configuration file that is not there, so that the release's command line works
    without it."""
    match = re.fullmatch(r"inference_(256|512|1024)_v1\.0\.ya?ml", Path(name).name)
    return f"dynamicrafter-{match[1]}" if match and not Path(name).exists() else ""


def _need_reasonable(value: Any, where: str) -> None:
    """Raise UsageError for a size that no network has, before anything is allocated."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if key != "towers_seed":
                _need_reasonable(inner, f"{where}.{key}")
    elif isinstance(value, list):
        for inner in value:
            _need_reasonable(inner, where)
    elif isinstance(value, int) and value > LARGEST:
        raise UsageError(f"{where} is {value}", expected=f"at most {LARGEST:,}")
