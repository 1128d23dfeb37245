"""History of a latent frame: older frames at coarser levels, their positions, and the attention mask."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from edg.diffusion.flow import Video, pyramid
from edg.diffusion.flow import resized as resized_table
from edg.diffusion.positions import angles, waves

Clip = tuple[int, int, int]  # frames, rows, columns in latent pixels
PATCH = 2


@dataclass(frozen=True)
class Past:
    """Frames first .. first + count - 1 of what is done, at a level of the pyramid, 0 the coarsest."""

    first: int
    count: int
    level: int


def past_of(unit: int, stage: int) -> list[Past]:
    """The history of latent frame `unit` at a stage, the oldest first: one level coarser for every frame
    back, all that is left as one clip at the coarsest level."""
    if unit == 0:
        return []
    found, back, level = [Past(unit - 1, 1, stage)], 1, stage
    while back < unit:
        level = max(level - 1, 0)
        if level == 0:
            break
        back += 1
        found.append(Past(unit - back, 1, level))
    if level == 0 and back < unit:
        found.append(Past(0, unit - back, 0))
    return found[::-1]


def history_clips(latents: Video, unit: int, stage: int) -> list[Video]:
    """The latents of `past_of`, taken from clean ones."""
    levels = pyramid(latents)
    return [levels[p.level][:, :, p.first : p.first + p.count] for p in past_of(unit, stage)]


def token_times(clips: Sequence[Clip], text_tokens: int) -> Int[Tensor, " tokens"]:
    """Frame number of every token, the text's first, which is 0; frames are counted over the clips in
    order."""
    times, frame = [torch.zeros(text_tokens, dtype=torch.long)], 0
    for frames, rows, columns in clips:
        per_frame = rows // PATCH * (columns // PATCH)
        times.append((frame + torch.arange(frames)).repeat_interleave(per_frame))
        frame += frames
    return torch.cat(times)


def attention_mask(
    times: Int[Tensor, " tokens"], text_mask: Bool[Tensor, "b text"]
) -> Bool[Tensor, "b 1 tokens tokens"]:
    """True where a query may see a key: both valid or both not, and the key's frame is no later. Padded text
    is not valid and sees padded text alone."""
    batch, text = text_mask.shape
    rest = torch.ones(batch, len(times) - text, dtype=torch.bool, device=text_mask.device)
    valid = torch.cat([text_mask.bool(), rest], dim=1)
    same = valid[:, :, None] == valid[:, None, :]
    return (same & (times[:, None] >= times[None, :]))[:, None]


# ---- positions ---------------------------------------------------------------------------------------------


def token_positions(clips: Sequence[Clip]) -> Float[Tensor, "tokens 3"]:
    """(frame, row, column) of every image token, in tokens of the last clip: a coarser clip's lie between."""
    _, rows, columns = clips[-1]
    found, frame = [], 0
    for frames, high, wide in clips:
        t = frame + torch.arange(frames, dtype=torch.float64)
        y, x = (_centres(n // PATCH, whole // PATCH) for n, whole in ((high, rows), (wide, columns)))
        found.append(torch.stack(torch.meshgrid(t, y, x, indexing="ij"), dim=-1).reshape(-1, 3))
        frame += frames
    return torch.cat(found)


def _centres(count: int, whole: int) -> Float[Tensor, " n"]:
    """Where `count` places lie in `whole` ones: (j + 1/2) whole / count - 1/2."""
    return (torch.arange(count, dtype=torch.float64) + 0.5) * (whole / count) - 0.5


def rotary(
    positions: Float[Tensor, "tokens axes"], widths: Sequence[int]
) -> tuple[Float[Tensor, "tokens half"], Float[Tensor, "tokens half"]]:
    """(cos, sin) of p x 10000^(-2 k / width), the axes one after the other, computed in float64."""
    whole = torch.cat([angles(positions[:, k], width) for k, width in enumerate(widths)], dim=-1)
    return whole.cos().float(), whole.sin().float()


def position_table(size: int, base: float, width: int) -> Float[Tensor, "size size width"]:
    """Sine table of size x size places at i / (size / base): half of the channels by column, half by row,
    each sines, then cosines."""
    place = torch.arange(size, dtype=torch.float64) / (size / base)
    half = waves(place, width // 2).float()
    columns, rows = half[None].expand(size, -1, -1), half[:, None].expand(-1, size, -1)
    return torch.cat([columns, rows], dim=-1)


def clip_positions(
    table: Float[Tensor, "size size width"], clips: Sequence[Clip], resized: bool = True
) -> list[Float[Tensor, "1 tokens width"]]:
    """The table's part for every clip. resized: an older clip takes the last one's centre crop at its own
    size; else the centre crop of its own size."""
    _, rows, columns = clips[-1]
    whole, found = _crop(table, rows // PATCH, columns // PATCH), []
    for _, high, wide in clips:
        grid = (high // PATCH, wide // PATCH)
        part = resized_table(whole, *grid) if resized else _crop(table, *grid)
        found.append(part.reshape(1, -1, table.shape[-1]))
    return found


def _crop(table: Tensor, rows: int, columns: int) -> Tensor:
    top, left = (len(table) - rows) // 2, (len(table) - columns) // 2
    return table[top : top + rows, left : left + columns]
