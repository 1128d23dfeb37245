"""The small checkpoints of the tests of weights."""

import importlib.util
from pathlib import Path

_path = Path(__file__).parents[1] / "weights" / "conftest.py"
_spec = importlib.util.spec_from_file_location("small_checkpoints", _path)
_module = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_module)
base, tuned, adapted, files = _module.base, _module.tuned, _module.adapted, _module.files
