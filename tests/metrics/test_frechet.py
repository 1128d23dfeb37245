"""Distances of sets against closed forms and another library."""

import numpy as np
import pytest

from edg.core.errors import UsageError
from edg.metrics.frechet import frechet_distance, kernel_distance


def with_moments(rng, n, mean, covariance):
    """n points that have exactly these moments."""
    x = rng.standard_normal((n, len(mean)))
    x -= x.mean(axis=0)
    x = x @ np.linalg.inv(np.linalg.cholesky(np.cov(x, rowvar=False))).T
    return x @ np.linalg.cholesky(covariance).T + mean


def test_frechet_of_commuting_covariances():
    """|m|^2 + sum (sqrt a - sqrt b)^2 over the axes: 25 + (2 - 1)^2 + (3 - 4)^2."""
    rng = np.random.default_rng(0)
    x = with_moments(rng, 50, [0, 0], np.diag([4.0, 9]))
    y = with_moments(rng, 70, [3, 4], np.diag([1.0, 16]))
    assert frechet_distance(x, y) == pytest.approx(27)
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-9)


def test_frechet_of_covariances_that_do_not_commute():
    """For 2x2 the trace of the root of a product is sqrt(trace + 2 sqrt(det))."""
    rng = np.random.default_rng(1)
    a, b = np.array([[2, 1], [1, 3.0]]), np.array([[5, -2], [-2, 1.5]])
    root = np.sqrt(np.trace(a @ b) + 2 * np.sqrt(np.linalg.det(a @ b)))
    x, y = with_moments(rng, 40, [1, 1], a), with_moments(rng, 40, [1, 1], b)
    assert frechet_distance(x, y) == pytest.approx(np.trace(a + b) - 2 * root)


def test_frechet_with_fewer_clips_than_features():
    """Points on a line in 64 dimensions: the same distance as on that line alone."""
    rng = np.random.default_rng(2)
    direction = np.zeros(64)
    direction[:2] = 0.6, 0.8
    x, y = rng.standard_normal(8), 2 * rng.standard_normal(8) + 1
    expected = (x.mean() - y.mean()) ** 2 + (x.std(ddof=1) - y.std(ddof=1)) ** 2
    assert frechet_distance(np.outer(x, direction), np.outer(y, direction)) == pytest.approx(expected)


def test_kernel_distance_by_hand():
    """One dimension, kernel (x y + 1)^3: within {0, 1} it is 1, within {2, 3} 343; across 1, 1, 27, 64."""
    x, y = np.array([[0.0], [1]]), np.array([[2.0], [3]])
    assert kernel_distance(x, y) == pytest.approx(1 + 343 - 2 * (1 + 1 + 27 + 64) / 4)
    assert kernel_distance(x.repeat(4, axis=1), y.repeat(4, axis=1)) == pytest.approx(
        1 + 343 - 2 * (1 + 1 + 27 + 64) / 4
    )


def test_kernel_distance_is_unbiased():
    """Its mean over draws from one distribution is 0, and single draws are below it too."""
    rng = np.random.default_rng(5)
    draws = [kernel_distance(*rng.standard_normal((2, 12, 4))) for _ in range(400)]
    assert abs(np.mean(draws)) < 3 * np.std(draws) / 20 and min(draws) < 0


def test_sets_that_cannot_be_compared():
    with pytest.raises(UsageError, match="2 clips"):
        frechet_distance(np.ones((1, 3)), np.ones((5, 3)))
    with pytest.raises(UsageError):
        kernel_distance(np.ones((4, 3)), np.ones((5, 2)))


@pytest.mark.parametrize("distance", [frechet_distance, kernel_distance])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_features_that_are_not_finite(distance, value):
    x = np.random.default_rng(0).standard_normal((6, 3))
    bad = x.copy()
    bad[2, 1] = value
    for pair in ((bad, x), (x, bad)):
        with pytest.raises(UsageError):
            distance(*pair)
