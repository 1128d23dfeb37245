"""Distances between two sets of clips, by features of a network. All in float64."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from edg.core.errors import require

Features = Float[np.ndarray, "n d"]


def frechet_distance(x: Features, y: Features) -> float:
    """|m1 - m2|^2 + Tr(C1 + C2 - 2 (C1 C2)^(1/2)), with means and covariances (n - 1) of the two sets. The
    trace of the root is the sum of the roots of the eigenvalues of C1^(1/2) C2 C1^(1/2), which is symmetric.
    With video features this is FVD (Unterthiner et al. 2018). Biased: fewer clips give larger distances."""
    x, y = _checked(x, y)
    difference = x.mean(axis=0) - y.mean(axis=0)
    one, other = np.atleast_2d(np.cov(x, rowvar=False)), np.atleast_2d(np.cov(y, rowvar=False))
    values, vectors = np.linalg.eigh(one)
    root = vectors * np.sqrt(values.clip(0)) @ vectors.T
    shared = np.sqrt(np.linalg.eigvalsh(root @ other @ root).clip(0)).sum()
    return float(difference @ difference + np.trace(one) + np.trace(other) - 2 * shared)


def kernel_distance(x: Features, y: Features) -> float:
    """The unbiased squared maximum mean discrepancy (Gretton et al. 2012) with the kernel (x.y / d + 1)^3;
    with video features this is KVD. May be below 0 where the sets do not differ."""
    x, y = _checked(x, y)

    def kernel(a: Features, b: Features) -> np.ndarray:
        return (a @ b.T / a.shape[1] + 1) ** 3

    def within(a: Features) -> float:
        values = kernel(a, a)
        return (values.sum() - np.trace(values)) / (len(a) * (len(a) - 1))

    return float(within(x) + within(y) - 2 * kernel(x, y).mean())


def _checked(x: Features, y: Features) -> tuple[Features, Features]:
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    fit = x.ndim == y.ndim == 2 and x.shape[1] == y.shape[1] and min(len(x), len(y)) >= 2
    expected = "(n, d) with the same d and at least 2 clips"
    require(fit, f"features of shape {x.shape} and {y.shape}", expected)
    finite = np.isfinite(x).all() and np.isfinite(y).all()
    require(finite, "features that are not finite", "finite numbers from the network")
    return x, y
