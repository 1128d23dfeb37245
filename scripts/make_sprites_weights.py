#!/usr/bin/env python
"""Train the weights that come with the package again: autoencoder, base and tuned model of the sprites world.

    python scripts/make_sprites_weights.py --out edg/sprites/weights

`edg train configs/train/sprites.yaml`, then base and tuned in 16 bits. To resume, run the same command again.
On two idle CPU cores: autoencoder 10 minutes, base an hour, tuned 13 minutes. docs/sprites.md has
the log of the shipped run.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from edg.cli.main import main as edg
from edg.networks import open_weights
from edg.runner.train import read_runs
from edg.weights.store import write_safetensors

SHIPPED = ("base", "tuned")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="configs/train/sprites.yaml")
    parser.add_argument("--out", type=Path, default=Path("edg/sprites/weights"))
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="as for edg train")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    args = parser.parse_args()
    if code := edg(["train", args.config, *args.overrides, "--device", args.device]):
        return code
    for run in read_runs(args.config, args.overrides, list(SHIPPED)):
        ship(run.result, args.out / f"{run.name}.safetensors", run.spec, run.seed)
    return 0


def ship(source: Path, target: Path, spec: str, seed: int) -> None:
    """The complete float32 weights in 16 bits, with the name of their spec."""
    weights = open_weights(source)
    metadata = {"spec": spec, "made_by": "scripts/make_sprites_weights.py", "seed": str(seed)}
    write_safetensors(target, {name: weights[name].half() for name in weights}, metadata)
    print(f"shipped: {target}, {target.stat().st_size / 1e6:.1f} MB", flush=True)


if __name__ == "__main__":
    sys.exit(main())
