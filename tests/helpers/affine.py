"""Clips of a smooth texture under a known affine motion: p -> A (p - c) + c + b a frame, c the centre."""

import cv2
import numpy as np


def texture(rng, size):
    """float32 (size, size, 3) in 0..255, noise on three scales."""
    noise = rng.standard_normal((size, size, 3)).astype(np.float32)
    layers = sum(cv2.GaussianBlur(noise, (0, 0), scale) * scale for scale in (1.5, 3, 6))
    return (layers - layers.min()) / (layers.max() - layers.min()) * 255


def clip(matrix=((1, 0), (0, 1)), shift=(0, 0), size=128, frames=5, seed=0):
    """(uint8 frames (T, H, W, 3), true flow (H, W, 2) in px/frame, the same for every pair)."""
    picture, centre = texture(np.random.default_rng(seed), 3 * size), size / 2 - 0.5
    y, x = np.mgrid[:size, :size]
    places = np.stack([x - centre, y - centre], axis=-1)
    step, total, moved, drawn = np.asarray(matrix, float), np.eye(2), np.zeros(2), []
    for _ in range(frames):
        source = ((places - moved) @ np.linalg.inv(total).T + 1.5 * size - 0.5).astype(np.float32)
        drawn.append(cv2.remap(picture, source[..., 0], source[..., 1], cv2.INTER_CUBIC))
        total, moved = step @ total, step @ moved + shift
    flow = places @ (step - np.eye(2)).T + np.asarray(shift, float)
    return np.clip(np.round(np.stack(drawn)), 0, 255).astype(np.uint8), flow


def turn(degrees):
    """Positive: from x to y, which on a picture is clockwise."""
    angle = np.deg2rad(degrees)
    return ((np.cos(angle), -np.sin(angle)), (np.sin(angle), np.cos(angle)))


def zoom(factor):
    return ((factor, 0), (0, factor))
