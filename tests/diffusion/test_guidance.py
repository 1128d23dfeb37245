"""Guidance with counting fake networks and numpy."""

import numpy as np
import pytest
import torch

from edg.diffusion.guidance import guidance_weights, guided, in_interval, rescale_noise, side_by_side


class Constant:
    """A network that returns the same tensor and counts its calls."""

    def __init__(self, seed, dtype=torch.float64):
        generator = torch.Generator().manual_seed(seed)
        self.value = torch.randn(2, 4, 3, 2, 2, dtype=torch.float64, generator=generator).to(dtype)
        self.calls = 0

    def __call__(self, x, t_B):
        self.calls += 1
        return self.value


X, T = torch.zeros(2, 4, 3, 2, 2, dtype=torch.float64), torch.tensor([5, 6])


def by_numpy(guided, cond, amount):
    guided, cond = guided.numpy(), cond.numpy()
    std = [np.std(a.reshape(2, -1), axis=1, ddof=1).reshape(2, 1, 1, 1, 1) for a in (cond, guided)]
    return torch.from_numpy(amount * guided * std[0] / std[1] + (1 - amount) * guided)


def by_conditions(networks, s, s_img=None, rescale=0.0):
    """Guidance over those of the named networks that count."""
    weights = guidance_weights(s, s_img)
    denoise = side_by_side(*(networks[name] for name in weights))
    return guided(denoise, list(weights.values()), rescale)


def test_classifier_free_matches_numpy():
    full, null = Constant(0), Constant(1)
    v = null.value + 7.5 * (full.value - null.value)
    networks = {"full": full, "null": null}
    torch.testing.assert_close(by_conditions(networks, 7.5)(X, T), v)
    torch.testing.assert_close(by_conditions(networks, 7.5, None, 0.7)(X, T), by_numpy(v, full.value, 0.7))


def test_rescale_one_restores_the_contrast_of_every_sample():
    v, cond = 5 * Constant(0).value, Constant(1).value
    out = rescale_noise(v, cond, 1.0)
    torch.testing.assert_close(out.flatten(1).std(1), cond.flatten(1).std(1))
    assert rescale_noise(v, cond, 0.0) is v


def test_scale_one_is_the_fully_told_network_itself():
    full = Constant(0)
    assert guidance_weights(1.0) == guidance_weights(1, 1) == {"full": 1.0}
    assert torch.equal(guided(side_by_side(full), [1.0], 0.7)(X, T), full.value)


def test_half_precision_networks_are_combined_in_the_dtype_of_x():
    networks = {"full": Constant(0, torch.bfloat16), "null": Constant(1, torch.bfloat16)}
    assert by_conditions(networks, 7.5, None, 0.7)(X.float(), T).dtype == torch.float32


def test_one_call_serves_all_conditions():
    calls = []

    def network(x, t_B):
        calls.append((len(x), t_B.tolist()))
        return (x.repeat(3, 1, 1, 1, 1) + torch.arange(6.0).reshape(6, 1, 1, 1, 1)).unflatten(0, (3, 2))

    out = guided(network, [2.0, 3.0, -4.0])(X, T)
    assert calls == [(2, [5, 6])]
    assert out[:, 0, 0, 0, 0].tolist() == [2 * 0 + 3 * 2 - 4 * 4, 2 * 1 + 3 * 3 - 4 * 5]


@pytest.mark.parametrize(("s", "s_img"), [(7.5, 1.5), (1.0, 2.0), (3.0, 1.0), (4.0, 4.0), (0.0, 2.0)])
def test_image_guidance_formula(s, s_img):
    full, image, null = Constant(0), Constant(1), Constant(2)
    v = null.value + s_img * (image.value - null.value) + s * (full.value - image.value)
    networks = {"full": full, "image": image, "null": null}
    torch.testing.assert_close(by_conditions(networks, s, s_img)(X, T), v)
    torch.testing.assert_close(by_conditions(networks, s, s_img, 0.7)(X, T), by_numpy(v, full.value, 0.7))


def test_conditions_that_count_nothing_are_not_asked():
    assert guidance_weights(4.0, 4.0) == guidance_weights(4.0) == {"full": 4.0, "null": -3.0}
    assert guidance_weights(4.0, 1.0) == {"full": 4.0, "image": -3.0}  # guidance of the text alone
    assert guidance_weights(0.0, 2.0) == {"full": 0.0, "image": 2.0, "null": -1.0}  # rescaled against full


def test_outside_its_interval_the_fully_told_network_is_asked_alone():
    both, alone = Constant(0), Constant(1)
    limited = in_interval(both, alone, 200, 700)
    for t, expected in ((701, alone), (700, both), (450, both), (200, both), (199, alone)):
        assert torch.equal(limited(X, torch.tensor([t, t])), expected.value)
    assert (both.calls, alone.calls) == (3, 2)
    mixed = limited(X, torch.tensor([999, 450]))
    assert torch.equal(mixed[0], alone.value[0]) and torch.equal(mixed[1], both.value[1])


def test_a_step_before_the_first_counts_as_the_first():
    """The released schedule can visit t = -1; the interval is judged at 0."""
    both, alone = Constant(0), Constant(1)
    assert torch.equal(in_interval(both, alone, 0, 700)(X, torch.tensor([-1, -1])), both.value)
    assert torch.equal(in_interval(both, alone, 1, 700)(X, torch.tensor([-1, 0])), alone.value)
    mixed = in_interval(both, alone, 0, 700)(X, torch.tensor([-1, 701]))
    assert torch.equal(mixed[0], both.value[0]) and torch.equal(mixed[1], alone.value[1])
