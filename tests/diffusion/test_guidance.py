"""Guidance with counting fake networks and numpy."""

import numpy as np
import pytest
import torch

from edg.diffusion.guidance import classifier_free, image_guidance, rescale_noise


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


def test_classifier_free_matches_numpy():
    cond, uncond = Constant(0), Constant(1)
    guided = uncond.value + 7.5 * (cond.value - uncond.value)
    torch.testing.assert_close(classifier_free(cond, uncond, 7.5)(X, T), guided)
    torch.testing.assert_close(
        classifier_free(cond, uncond, 7.5, 0.7)(X, T), by_numpy(guided, cond.value, 0.7)
    )


def test_rescale_one_restores_the_contrast_of_every_sample():
    guided, cond = 5 * Constant(0).value, Constant(1).value
    out = rescale_noise(guided, cond, 1.0)
    torch.testing.assert_close(out.flatten(1).std(1), cond.flatten(1).std(1))
    assert rescale_noise(guided, cond, 0.0) is guided


def test_scale_one_is_the_conditional_network_itself():
    cond, uncond = Constant(0), Constant(1)
    assert classifier_free(cond, uncond, 1.0, 0.7) is cond
    assert classifier_free(cond, None, 1, 0.7) is cond
    with pytest.raises(ValueError, match="unconditional"):
        classifier_free(cond, None, 2.0)


def test_half_precision_networks_are_combined_in_the_dtype_of_x():
    out = classifier_free(Constant(0, torch.bfloat16), Constant(1, torch.bfloat16), 7.5, 0.7)(X.float(), T)
    assert out.dtype == torch.float32


@pytest.mark.parametrize(("s", "s_img"), [(7.5, 1.5), (1.0, 2.0), (3.0, 1.0), (4.0, 4.0), (0.0, 2.0)])
def test_image_guidance_formula(s, s_img):
    full, image, null = Constant(0), Constant(1), Constant(2)
    v = null.value + s_img * (image.value - null.value) + s * (full.value - image.value)
    torch.testing.assert_close(image_guidance(full, image, null, s, s_img, 0.0)(X, T), v)
    rescaled = image_guidance(full, image, null, s, s_img, 0.7)(X, T)
    torch.testing.assert_close(rescaled, by_numpy(v, full.value, 0.7))


def test_image_guidance_calls_only_what_counts():
    full, image, null = Constant(0), Constant(1), Constant(2)
    assert image_guidance(full, image, null, 1, 1, 0.7) is full
    image_guidance(full, image, null, 4.0, 4.0)(X, T)  # plain guidance against `null`
    assert (full.calls, image.calls, null.calls) == (1, 0, 1)
    image_guidance(full, image, null, 4.0, 1.0)(X, T)  # guidance of the text alone
    assert (full.calls, image.calls, null.calls) == (2, 1, 1)
