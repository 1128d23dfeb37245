"""Write a complete checkpoint with weights from the rule of tests/reference; nothing is downloaded.

    python scripts/make_rule_checkpoint.py ckpt/dynamicrafter_512_v1/model.ckpt --seed 11
    python scripts/make_rule_checkpoint.py ckpt/dynamicrafter_cil_512_v1/timenoise.ckpt --seed 12

Names, shapes and size are the published file's (10.4 GB, a few minutes); it makes noise, not videos. It
replaces the real file in tests of reading, merging, loading and memory.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from tqdm import tqdm

from edg.networks.latent_video.load import build
from edg.networks.latent_video.models import load_spec
from edg.verify import rules
from edg.weights.tensors import TensorInfo, raw_bytes
from edg.weights.writers import open_writer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("path", type=Path)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--spec", default="dynamicrafter-512")
    args = parser.parse_args()

    model = build(load_spec(args.spec))
    buffers = model.schedule_buffers()
    plan = {name: TensorInfo(tuple(t.shape), "float32") for name, t in model.state_dict().items()}
    args.path.parent.mkdir(parents=True, exist_ok=True)
    writer = open_writer(args.path, "safetensors" if args.path.suffix == ".safetensors" else "pt", plan)
    for name, info in tqdm(plan.items(), unit=" tensors", mininterval=5):
        tensor = buffers[name] if name in buffers else rules.weight(args.seed, name, info.shape)
        writer.begin(name, info)
        writer.append(raw_bytes(tensor.contiguous()))
        writer.end()
    writer.finish({})


if __name__ == "__main__":
    main()
