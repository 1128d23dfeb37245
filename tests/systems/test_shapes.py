"""Sizes, lengths and ends of a clip: images of another shape, other frame counts, a last image of its own."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from edg.core.errors import UsageError
from edg.core.video import write_image
from edg.networks.latent_video.presets import DYNAMICRAFTER_512
from edg.systems.base import Request
from edg.systems.edg.clip_state import clip_noise, condition_batch, start
from edg.systems.edg.condition import conditions, image_latent
from edg.systems.edg.generate import generate
from edg.systems.edg.options import SamplingOptions
from edg.systems.edg.parameter_sets import ParameterSets
from edg.systems.edg.sampling_schedule import check

OPTIONS = SamplingOptions(steps=2, guidance_scale=1.0, switch_at=(), perframe_ae=True)


@pytest.fixture(scope="module")
def sets(spec, weights):
    return ParameterSets(spec, {"one": weights})


@pytest.fixture
def images(tmp_path):
    """Two pictures twice as wide as high: left half red, right half green; and blue all over."""
    picture = np.zeros((16, 32, 3), np.uint8)
    picture[:, :16, 0] = picture[:, 16:, 1] = 255
    write_image(tmp_path / "a.png", picture)
    write_image(tmp_path / "b.png", np.full((16, 32, 3), (0, 0, 255), np.uint8))
    return tmp_path / "a.png", tmp_path / "b.png"


def ask(image, last=None, frames=8, height=32, width=32, name="0000-a_sample0", **options):
    return Request(name, "a red ball", 1, frames, height, width, replace(OPTIONS, **options), image, last)


def concat_of(sets, *requests):
    batch = [start(sets, request) for request in requests]
    condition_batch(sets.network(0), 0, batch, requests[0].options)
    return [clip.concat_1CTHW[0] for clip in batch]


def mode_of(sets, path, request):
    """The picture's latent without a draw."""
    clip = start(sets, replace(request, image=path, last_image=None))
    return sets.spec.scale_factor * sets.network(0).encode_frames(clip.image_13HW).mode()[0]


def test_interp_puts_each_image_on_its_end_and_nothing_between(sets, images):
    first, last = images
    request = ask(first, last, interp=True, image_latent="mode")
    (concat,) = concat_of(sets, request)
    assert torch.allclose(concat[:, 0], mode_of(sets, first, request), atol=1e-6)
    assert torch.allclose(concat[:, -1], mode_of(sets, last, request), atol=1e-6)
    assert not torch.allclose(concat[:, 0], concat[:, -1], atol=0.01)
    assert not concat[:, 1:-1].any()


def test_one_image_stands_for_both_ends(sets, images):
    (alone,) = concat_of(sets, ask(images[0], interp=True))
    (twice,) = concat_of(sets, ask(images[0], images[0], interp=True))
    assert torch.equal(alone, twice) and not torch.equal(alone[:, 0], alone[:, -1])  # each end its own draw
    (loop,) = concat_of(sets, ask(images[0], loop=True))
    assert torch.equal(alone, loop)


def test_the_last_image_counts_for_interp_alone(sets, images):
    plain, given = concat_of(sets, ask(images[0]))[0], concat_of(sets, ask(images[0], images[1]))[0]
    assert torch.equal(plain, given)


def test_a_batch_may_have_last_images_in_part(sets, images):
    both = ask(images[0], images[1], interp=True), ask(images[0], name="0001-a_sample0", interp=True)
    together = concat_of(sets, *both)
    for concat, request in zip(together, both, strict=True):
        assert torch.allclose(concat, concat_of(sets, request)[0], atol=1e-5)


@pytest.mark.slow
def test_interpolation_gives_a_clip_that_the_last_image_changes(sets, images):
    one, other = (
        next(generate(sets, [ask(images[0], last, interp=True)])).frames for last in (None, images[1])
    )
    assert one.shape == other.shape == (8, 32, 32, 3) and not np.array_equal(one, other)


def test_a_last_image_that_cannot_be_read_is_the_clips_error(sets, images, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"x")
    result = next(generate(sets, [ask(images[0], broken, interp=True)]))
    assert result.frames is None and "broken.png" in result.error


def test_what_becomes_of_an_image_of_another_shape(sets, images):
    def pixels(**options):
        return (start(sets, ask(images[0], **options)).image_13HW[0] + 1) / 2

    red, green, black = (torch.tensor(colour) for colour in ([1.0, 0, 0], [0, 1.0, 0], [0.0, 0, 0]))
    stretched, cut, padded = pixels(), pixels(crop=True), pixels(pad=True)
    for x in (stretched, cut):
        assert torch.allclose(x[:, 2, 2], red) and torch.allclose(x[:, 30, 30], green)
    assert torch.allclose(padded[:, 16, 2], red) and torch.allclose(padded[:, 16, 30], green)
    assert torch.allclose(padded[:, 3, 16], black) and torch.allclose(padded[:, 28, 16], black)
    assert padded.sum(0).gt(0.5).any(1).sum() == 16  # of 32 rows, as the image is twice as wide as high
    with pytest.raises(UsageError, match="crop and pad"):
        replace(OPTIONS, crop=True, pad=True).check()


@pytest.mark.parametrize("height, width", [(32, 48), (48, 32)])
@pytest.mark.slow
def test_lying_and_upright_clips(sets, images, height, width):
    result = next(generate(sets, [ask(images[0], height=height, width=width, crop=True)]))
    assert result.frames.shape == (8, height, width, 3), result.error


@pytest.mark.parametrize("frames", [5, 12, 16])
@pytest.mark.slow
def test_other_lengths(sets, images, frames):
    result = next(generate(sets, [ask(images[0], frames=frames)]))
    assert result.frames.shape == (frames, 32, 32, 3), result.error


@pytest.mark.slow
def test_image_tokens_of_other_lengths_lie_between_those_that_the_model_has(sets):
    network, image = sets.network(0), torch.rand(2, 3, 32, 32) * 2 - 1
    known = network.encode_image(image)
    assert torch.equal(network.encode_image(image, 8), known)
    per = sets.spec.resampler.num_queries
    longer = network.encode_image(image, 15)  # 8 frames and 7 between them
    by_frame, between = known.view(2, 8, per, -1), longer.view(2, 15, per, -1)
    assert torch.allclose(between[:, ::2], by_frame, atol=1e-6)
    assert torch.allclose(between[:, 1::2], (by_frame[:, 1:] + by_frame[:, :-1]) / 2, atol=1e-6)


@pytest.mark.slow
def test_every_branch_of_guidance_has_the_clips_length(sets):
    image, options = torch.zeros(1, 3, 32, 32), replace(OPTIONS, guidance_scale=2.0)
    noise = [clip_noise(ask(None))]
    concat = image_latent(sets.network(0), image, 12, options, noise, "shared")
    for condition in conditions(sets.network(0), ["a"], image, concat, options).values():
        assert condition.context_BLD.shape[1] == 8 + 4 * 12


def test_a_network_that_reaches_no_further_says_so(spec, weights, images):
    reach = replace(spec, unet=replace(spec.unet, use_causal_attention=True))
    check(reach, {"one": weights}, [ask(images[0])])
    with pytest.raises(UsageError, match="9 frames; expected at most 8"):
        check(reach, {"one": weights}, [ask(images[0], frames=9)])


def test_the_nearest_size_of_a_model():
    from edg.runner.prepare import bucket

    sizes = {shape: bucket(DYNAMICRAFTER_512, *shape) for shape in [(1080, 1920), (1920, 1080), (64, 60)]}
    assert list(sizes.values()) == [(320, 512), (512, 320), (512, 320)]
    assert bucket(DYNAMICRAFTER_512, 500, 500) == (320, 512)  # neither is nearer: as it was made
