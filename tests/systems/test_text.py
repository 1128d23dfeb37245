"""Prompts and captions that are longer than the text tower reads: what is lost is what open_clip cuts."""

import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from edg import systems
from edg.core.video import write_image
from edg.networks.latent_video.clip_encoders import TextEncoder, cut_remarks, lost_text, open_clip
from edg.networks.latent_video.presets import DYNAMICRAFTER_512, SPRITES
from edg.systems.base import Request
from edg.systems.edg import condition, generate
from edg.systems.edg.clip_embedder import Towers
from edg.systems.edg.options import SamplingOptions
from edg.systems.edg.parameter_sets import ParameterSets

CLIP, SMALL = DYNAMICRAFTER_512.text, SPRITES.text
LONG = "a picture with very many small and colourful details, " * 20 + "a red circle moves left"


@pytest.fixture(scope="module")
def tokenizer():
    return open_clip().tokenizer.SimpleTokenizer()


@pytest.mark.parametrize(
    "prompt, lost",
    [
        ("", ""),
        ("cat " * 74 + "dog", ""),
        ("cat " * 75 + "dog", "dog"),
        ("cat " * 75 + "dog left", "dog left"),
        ("7" * 75, ""),
        ("7" * 76, "7"),
        ("cat " * 75 + "Überflüssig", "überflüssig"),
        ("&amp; " * 75 + "dog", "dog"),
        ("é" * 10, ""),
        ("   \n" * 100 + "dog", ""),
    ],
)
def test_75_tokens_fit_into_77(tokenizer, prompt, lost):
    assert lost_text(prompt, CLIP) == lost
    assert bool(lost) == (len(tokenizer.encode(prompt)) > 75)


@pytest.mark.parametrize("spec, room", [(CLIP, 75), (SMALL, 6)])
@pytest.mark.parametrize(
    "prompt", [LONG, "猫が歩く " * 80, "👍🏽 moves " * 60, "<end_of_text> " * 90, "don't&lt;3" * 70]
)
def test_what_is_read_and_what_is_lost_are_the_prompt(tokenizer, spec, room, prompt):
    tokens, lost = tokenizer.encode(prompt), lost_text(prompt, spec)
    assert lost == tokenizer.decode(tokens[room:]).strip() and lost
    encoder = TextEncoder.__new__(TextEncoder)
    torch.nn.Module.__init__(encoder)
    encoder.spec = spec
    assert encoder.tokenize([prompt])[0, 1:-1].tolist() == tokens[:room]


def test_a_word_of_a_hundred_thousand_letters_takes_no_time(tokenizer):
    letters = "".join(np.random.default_rng(0).choice(list("abcdefghij"), 100_000))
    began = time.process_time()
    assert lost_text(letters, CLIP).endswith(letters[-1000:])
    assert lost_text("red " * 250_000, CLIP).endswith(" red red")
    assert time.process_time() - began < 10


def test_remarks_count_and_show_both_ends_within_bounds():
    (line,) = cut_remarks(["short", LONG, LONG + "s"], CLIP, "captions")
    assert "2 of 3 captions" in line and "77" in line and "moves left" in line and len(line) < 500
    assert cut_remarks(["short"] * 3, CLIP, "captions") == cut_remarks([], CLIP, "captions") == []


@pytest.mark.parametrize(
    "change, lost",
    [
        ({}, {"prompt": "left", "negative_prompt": "bars"}),
        ({"guidance_scale": 1.0}, {"prompt": "left"}),  # the negative prompt is not read then
        ({"text_input": False}, {"negative_prompt": "bars"}),
        ({"negative_prompt": ""}, {"prompt": "left"}),
    ],
)
def test_of_a_clip_only_what_it_is_conditioned_on(change, lost):
    options = replace(SamplingOptions(negative_prompt="grey squares and yellow pillars and bars"), **change)
    prompt = "a small red circle moves slowly left"
    assert condition.lost_texts(SMALL, prompt, options) == lost


@pytest.fixture(scope="module")
def sprites(tmp_path_factory):
    from edg.sprites import WEIGHTS
    from edg.weights.store import open_weights

    image = tmp_path_factory.mktemp("image") / "a.png"
    write_image(image, np.full((32, 32, 3), 90, np.uint8))
    return {"base": open_weights(WEIGHTS / "base.safetensors")}, image


@pytest.mark.slow
def test_the_result_warns_with_the_lost_text(sprites):
    sets, image = sprites
    options = SamplingOptions(steps=1, guidance_scale=1.0, switch_at=(), perframe_ae=True)
    texts = "a red circle moves slowly left", "a red circle moves slowly left and then away"
    requests = [Request(text, text, 1, 8, 32, 32, options, image) for text in texts]
    assert systems.get().part("check")(SPRITES, sets, requests[:1]) == []
    (line,) = systems.get().part("check")(SPRITES, sets, requests)
    assert "1 of 2 prompts" in line and "and then away" in line
    guided = replace(options, guidance_scale=2.0, negative_prompt="grey squares and yellow pillars and bars")
    (line,) = systems.get().part("check")(SPRITES, sets, [replace(requests[0], options=guided)])
    assert "1 of 1 negative prompts" in line and "'bars'" in line
    fits, cut = generate.generate(ParameterSets(SPRITES, sets), requests)
    assert (fits.warnings, fits.info) == ((), {})
    assert cut.info == {"lost_text": {"prompt": "and then away"}}
    assert len(cut.warnings) == 1 and "and then away" in cut.warnings[0]


def test_texts_that_score_embeds():
    towers = Towers.__new__(Towers)
    torch.nn.Module.__init__(towers)
    towers.cond_stage_model = torch.nn.Module()
    towers.cond_stage_model.spec = CLIP
    assert towers.text_remarks(["a cat"]) == [] and len(towers.text_remarks(["a cat", LONG])) == 1
