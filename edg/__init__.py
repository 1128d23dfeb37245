"""edg: extrapolating and decoupling image-to-video models."""

__version__ = "0.1.0"
