"""LoRA files: layouts, names, shapes; the reference's numbers are in tests/systems/iv_mixed."""

import pytest
import torch

from edg.core.errors import BadFileError, UsageError
from edg.merging.lora import add_lora, merged_tensors, read_pairs, resolve

MODULES = ("down.0.to_q", "down.0.to_out.0", "down.0.conv", "down.0.proj_in")


def pair(out=6, rank=2, into=4, kernel=()):
    random = torch.Generator().manual_seed(out + rank + into)
    down = torch.randn(rank, into, *kernel, generator=random)
    return down, torch.randn(out, rank, *[1] * len(kernel), generator=random)


def weights():
    shapes = {"to_q": (6, 4), "to_out.0": (6, 4), "conv": (6, 4, 3, 3), "proj_in": (6, 4, 1, 1)}
    return {f"down.0.{name}.weight": torch.ones(shape) for name, shape in shapes.items()}


@pytest.mark.parametrize(
    "names",
    [
        ("lora_unet_down_0_to_q.lora_down.weight", "lora_unet_down_0_to_q.lora_up.weight"),
        ("base_model.model.down.0.to_q.lora_A.weight", "base_model.model.down.0.to_q.lora_B.weight"),
        (
            "base_model.model.down.0.to_q.lora_A.default.weight",
            "base_model.model.down.0.to_q.lora_B.default.weight",
        ),
        ("unet.down.0.to_q.lora_A.weight", "unet.down.0.to_q.lora_B.weight"),
        ("unet.down.0.to_q.lora.down.weight", "unet.down.0.to_q.lora.up.weight"),
        ("down.0.to_q.lora_down.weight", "down.0.to_q.lora_up.weight"),
    ],
)
def test_all_layouts_change_the_same_layer(names):
    down, up = pair()
    found = merged_tensors(weights(), read_pairs(dict(zip(names, (down, up), strict=True)))["unet"], 0.5)
    assert list(found) == ["down.0.to_q.weight"]
    torch.testing.assert_close(found["down.0.to_q.weight"], 1 + 0.5 * up @ down)


def test_alpha_scales_by_the_rank_and_may_be_ignored():
    down, up = pair(rank=4)
    file = {"x.lora_down.weight": down, "x.lora_up.weight": up, "x.alpha": torch.tensor(1.0)}
    (one,) = read_pairs(file)["unet"].values()
    torch.testing.assert_close(one.delta(2.0), 2.0 * 1.0 / 4 * up @ down)
    torch.testing.assert_close(one.delta(2.0, ignore_alpha=True), 2.0 * up @ down)


def test_convolutions_of_one_and_of_nine_cells():
    stored = weights()
    for name, kernel in (("conv", (3, 3)), ("proj_in", (1, 1))):
        down, up = pair(kernel=kernel)
        pairs = read_pairs({f"down.0.{name}.lora_down.weight": down, f"down.0.{name}.lora_up.weight": up})[
            "unet"
        ]
        found = merged_tensors(stored, pairs, 1.0)[f"down.0.{name}.weight"]
        torch.testing.assert_close(found, 1 + torch.einsum("or,rihw->oihw", up[:, :, 0, 0], down))
    down, up = pair()  # a linear pair for a convolution of one cell
    pairs = read_pairs({"down.0.proj_in.lora_down.weight": down, "down.0.proj_in.lora_up.weight": up})["unet"]
    assert merged_tensors(stored, pairs, 1.0)["down.0.proj_in.weight"].shape == (6, 4, 1, 1)


def test_text_and_image_model_are_kept_apart():
    down, up = pair()
    file = {
        f"{start}a.lora_{part}.weight": t
        for start in ("lora_te_", "lora_unet_")
        for part, t in (("down", down), ("up", up))
    }
    assert {name: list(pairs) for name, pairs in read_pairs(file).items()} == {"text": ["a"], "unet": ["a"]}


def test_a_name_with_underscores_is_looked_up():
    assert resolve(["down_0_to_out_0"], MODULES) == {"down_0_to_out_0": "down.0.to_out.0"}
    with pytest.raises(UsageError):
        resolve(["down_0_to_v"], MODULES)


@pytest.mark.parametrize("part", ["lonely", "rank", "strange", "vector"])
def test_files_that_are_none(part):
    down, up = pair()
    file = {
        "lonely": {"a.lora_down.weight": down},
        "rank": {"a.lora_down.weight": down, "a.lora_up.weight": up[:, :1]},
        "strange": {"a.weight": down},
        "vector": {"a.lora_down.weight": down[0], "a.lora_up.weight": up},
    }[part]
    with pytest.raises(BadFileError):
        read_pairs(file)


def test_a_lora_of_another_base_does_not_fit():
    down, up = pair(into=5)
    (one,) = read_pairs({"a.lora_down.weight": down, "a.lora_up.weight": up})["unet"].values()
    with pytest.raises(UsageError):
        add_lora(torch.ones(6, 4), one, 1.0)


def test_sixteen_bits_are_added_in_thirty_two():
    down, up = pair()
    (one,) = read_pairs({"a.lora_down.weight": 1e-3 * down, "a.lora_up.weight": up})["unet"].values()
    found = add_lora(torch.full((6, 4), 4.0, dtype=torch.float16), one, 1.0)
    assert found.dtype == torch.float16
    torch.testing.assert_close(found, (4.0 + 1e-3 * up @ down).half())
