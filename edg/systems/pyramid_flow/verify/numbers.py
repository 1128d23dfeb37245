"""Groups of Pyramid Flow without a network: schedule, noise, one unit, positions, history."""

from __future__ import annotations

import torch
from torch import Tensor

from edg.diffusion import flow
from edg.systems.pyramid_flow import history
from edg.systems.pyramid_flow.stages import denoise_unit, stages
from edg.verify.cases import Case


def schedule(case: Case) -> dict[str, Tensor]:
    c = case.config
    plan = stages(c["stage_range"], c["num_train_timesteps"], c["shift"], c["gamma"])
    found = {
        "ori_start_sigmas": [s.original_start for s in plan],
        "start_sigmas": [s.start for s in plan],
        "end_sigmas": [s.end for s in plan],
        "timestep_ratios": [s.share for s in plan],
        "jump": [(s.alpha, s.beta) for s in plan[1:]],
    }
    found = {name: torch.tensor(value, dtype=torch.float64) for name, value in found.items()}
    for k, stage in enumerate(plan):
        total = len(stage.timesteps)
        found[f"train_timesteps/stage{k}"] = torch.from_numpy(stage.timesteps)
        found[f"train_ratios/stage{k}"] = 1 - torch.arange(total, dtype=torch.float64) / total
        for n in c["steps"]:
            timesteps, ratios = stage.steps(n)
            found[f"timesteps/stage{k}/n{n}"] = torch.tensor(timesteps, dtype=torch.float64)
            found[f"ratios/stage{k}/n{n}"] = torch.tensor(ratios, dtype=torch.float64)
    missing = set(case.raw["outputs"]) - set(found)
    assert not missing, sorted(missing)
    return {name: tensor for name, tensor in found.items() if name in case.raw["outputs"]}


def noise(case: Case) -> dict[str, Tensor]:
    gamma, x = case.config["gamma"], case.input("low")
    found = {f"pyramid/level{k}": level for k, level in enumerate(flow.pyramid(case.input("x")))}
    found["init_noise/coarse"] = flow.coarse_noise(case.input("init_noise"))
    found["block_noise"] = flow.block_noise(case.input("z"), gamma)
    for k, stage in enumerate(stages(gamma=gamma)[1:]):
        x = flow.stage_jump(x, stage.alpha, stage.beta, case.input(f"z.{k}"), gamma)
        found[f"jump/stage{k + 1}"] = x
    return found


def unit(case: Case) -> dict[str, Tensor]:
    """One latent frame around a stub network whose answers are inputs."""
    c, calls = case.config, []
    scale = c["guidance"] if c["first"] else c["video_guidance"]
    guided = c["guidance"] > 0
    plan = stages()

    def velocity(x: Tensor, t_B: Tensor) -> Tensor:
        rows = torch.cat([x, x]) if guided else x
        v = case.input(f"v.{len(calls)}", rows.shape)
        calls.append((rows, float(t_B[0])))
        if not guided:
            return v
        negative, positive = v.chunk(2)
        return negative + scale * (positive - negative)

    def white(jump: int, x: Tensor) -> Tensor:
        return case.input(f"z.{jump}", flow.double(x).shape)

    found = {
        f"stage{k}": x for k, x in enumerate(denoise_unit(velocity, case.input("x"), plan, c["steps"], white))
    }
    before = sum(c["steps"][:-1])
    found["network_input_last_stage"] = calls[before][0]
    found["network_rows"] = torch.tensor([len(rows) for rows, _ in calls])
    found["timesteps"] = torch.tensor([t for _, t in calls], dtype=torch.float32)
    return found


def position(case: Case) -> dict[str, Tensor]:
    c, dit = case.config, case.config["dit"]
    clips, text = [tuple(clip) for clip in c["clips"]], c["text_tokens"]
    if c["model"] == "mmdit":
        times = history.token_times(clips, text).double()[:, None]
        cos, sin = history.rotary(times, [dit["attention_head_dim"]])
        width = dit["attention_head_dim"] * dit["num_attention_heads"]
        table = history.position_table(dit["pos_embed_max_size"], dit["sample_size"] / history.PATCH, width)
        parts = history.clip_positions(table, clips, dit["interp_condition_pos"])
        found = {f"spatial/clip{k}": part for k, part in enumerate(parts)} | {"ids": times[text:]}
    else:
        ids = history.token_positions(clips)
        everywhere = torch.cat([torch.zeros(text, 3, dtype=torch.float64), ids])
        cos, sin = history.rotary(everywhere, dit["axes_dims_rope"])
        found = {"ids": ids}
    wanted = case.expected["ids"].dtype
    return found | {"ids": found["ids"].to(wanted), "rope_cos": cos, "rope_sin": sin}


def past(case: Case) -> dict[str, Tensor]:
    c, found = case.config, {}
    mask = torch.tensor(c["text_mask"], dtype=torch.bool)
    latents = case.input("latents") if case.has_input("latents") else None
    for stage in range(3):
        clips = history.history_clips(latents, c["units"], stage) if c["units"] else []
        size = (1, c["height"] // 2 ** (2 - stage), c["width"] // 2 ** (2 - stage))
        shapes = [*(tuple(clip.shape[2:]) for clip in clips), size]
        times = history.token_times(shapes, mask.shape[1])
        found |= {f"stage{stage}/clip{k}": clip for k, clip in enumerate(clips)}
        found[f"stage{stage}/time"] = times
        found[f"stage{stage}/mask"] = history.attention_mask(times, mask)
    return found
