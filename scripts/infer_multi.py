"""The sampler by its released name and flags: `torchrun --nproc_per_node=N scripts/infer_multi.py ...`.

The same as `edg sample`; runs without torchrun as well, on CPU and on CUDA.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from edg.cli.main import entry  # noqa: E402

if __name__ == "__main__":
    entry(["sample", *sys.argv[1:]], program=Path(__file__).name)
