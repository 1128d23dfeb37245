"""Copy a reference folder without the inputs that its input rule can recompute: `python
scripts/copy_reference.py SRC DST`.

Expected outputs and inputs without a rule are copied bit for bit; index.json gets the new sizes and hashes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
from pathlib import Path

import torch

from edg.verify import cases, rules


def slim(case: dict, source: Path, target: Path) -> None:
    """Write the case's file without the inputs that follow the rule, after checking that they do."""
    from safetensors.torch import save_file

    tensors = cases.read_tensors(source / case["file"])
    seed = case.get("input_seed", case.get("seed"))
    for name, entry in (case.get("inputs") or {}).items():
        stored = tensors.get(f"in/{name}")
        if entry["source"] == "input rule" and stored is not None:
            if not torch.equal(rules.input_tensor(seed, name, entry["shape"]), stored):
                raise SystemExit(f"{case['name']}: input {name} does not follow the input rule")
            del tensors[f"in/{name}"]
            entry["stored"] = False
    save_file(tensors, target / case["file"])
    blob = (target / case["file"]).read_bytes()
    case["bytes"], case["sha256"] = len(blob), hashlib.sha256(blob).hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    arguments = parser.parse_args()
    arguments.target.mkdir(parents=True, exist_ok=True)
    index = json.loads((arguments.source / "index.json").read_text())
    for case in index["cases"]:
        if case["file"].endswith(".safetensors"):
            slim(case, arguments.source, arguments.target)
        else:
            shutil.copyfile(arguments.source / case["file"], arguments.target / case["file"])
    (arguments.target / "index.json").write_text(json.dumps(index, indent=1) + "\n")


if __name__ == "__main__":
    main()
