"""edg: extrapolating and decoupling image-to-video models.

from edg import load
video = load("sprites").animate(image, "a red circle moves left")
video.save("x.mp4")
"""

__version__ = "0.1.0"


def load(model: str = "sprites", **how):
    """A model that animates images, see `edg.api.load`."""
    from importlib import import_module

    return import_module("edg.api").load(model, **how)
