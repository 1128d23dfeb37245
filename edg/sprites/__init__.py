"""A small world of moving coloured shapes with exactly known motion, and the small model trained on it."""

from pathlib import Path

WEIGHTS = Path(__file__).with_name("weights")  # base.safetensors and tuned.safetensors, spec "sprites"
