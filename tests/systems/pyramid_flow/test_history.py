"""History and attention of a latent frame, counted by hand."""

import torch

from edg.systems.pyramid_flow.history import (
    Past,
    attention_mask,
    history_clips,
    past_of,
    token_positions,
    token_times,
)


def test_older_frames_are_coarser():
    assert past_of(0, 2) == []
    assert past_of(1, 2) == [Past(0, 1, 2)]
    assert past_of(5, 2) == [Past(0, 3, 0), Past(3, 1, 1), Past(4, 1, 2)]
    assert past_of(5, 1) == [Past(0, 4, 0), Past(4, 1, 1)]
    assert past_of(5, 0) == [Past(0, 4, 0), Past(4, 1, 0)]
    for unit in range(1, 12):
        for stage in range(3):
            seen = [k for past in past_of(unit, stage) for k in range(past.first, past.first + past.count)]
            assert seen == list(range(unit)), "every frame once, in order"


def test_tokens_of_a_unit_at_full_size():
    """2 full frames, one half, the rest quarter: 2 + 1/4 + (u - 2) / 16 of a frame's tokens."""
    latents = torch.zeros(1, 2, 6, 16, 32)
    clips = [tuple(clip.shape[2:]) for clip in history_clips(latents, 6, 2)] + [(1, 16, 32)]
    whole = 8 * 16
    assert len(token_times(clips, 0)) == 2 * whole + whole // 4 + 4 * whole // 16
    assert token_times(clips, 3)[:3].tolist() == [0, 0, 0] and token_times(clips, 3)[-1] == 6


def test_who_sees_whom():
    times = token_times([(2, 2, 2), (1, 2, 2)], 3)  # one token a frame
    mask = attention_mask(times, torch.tensor([[True, True, False]]))[0, 0]
    text, padded, frames = slice(0, 2), 2, slice(3, 6)
    assert mask[text, text].all() and mask[text, 3].all() and not mask[text, 4:].any(), "text sees frame 0"
    assert mask[padded].tolist() == [False, False, True, False, False, False]
    assert mask[frames, frames].tolist() == torch.ones(3, 3).tril().bool().tolist(), (
        "no frame sees a later one"
    )
    assert mask[frames, text].all() and not mask[frames, padded].any()


def test_places_of_coarser_tokens_lie_between():
    ids = token_positions([(1, 4, 4), (1, 8, 8)])
    assert ids[:4].tolist() == [[0, 0.5, 0.5], [0, 0.5, 2.5], [0, 2.5, 0.5], [0, 2.5, 2.5]]
    assert ids[4:8].tolist() == [[1, 0, 0], [1, 0, 1], [1, 0, 2], [1, 0, 3]]
