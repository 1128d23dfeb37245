"""Other settings than the recorded ones: folders in the reference's format, by a second implementation.

The second implementation is numpy in float64, straight from the words of the index (`math`), sharing no code
with `edg.diffusion`. So `edg verify` is shown to follow the meaning of a case, not the recorded numbers.
"""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from edg.cli import verify
from edg.verify import cases, rules

GROUPS = verify.known_groups()
CONFIG = {
    "linear_start": 0.00085,
    "linear_end": 0.012,
    "timesteps": 1000,
    "rescale_betas_zero_snr": True,
    "parameterization": "v",
    "use_dynamic_rescale": True,
    "base_scale": 0.7,
}
PLAIN = {"linear_start": 0.00085, "linear_end": 0.012, "timesteps": 1000}  # parameterization eps
SETTINGS = {
    "S": 10,
    "eta": 1.0,
    "cfg_scale": 7.5,
    "guidance_rescale": 0.7,
    "M": 1000,
    "T": 500,
    "timestep_spacing": "uniform_trailing",
}


def buffers(config):
    n = config["timesteps"]
    betas = np.linspace(config["linear_start"] ** 0.5, config["linear_end"] ** 0.5, n) ** 2
    abar = np.cumprod(1 - betas)
    if config.get("rescale_betas_zero_snr"):
        s = np.sqrt(abar)
        abar = ((s - s[-1]) * s[0] / (s[0] - s[-1])) ** 2
    scale = np.ones(n)
    if config.get("use_dynamic_rescale"):
        turn, base = config.get("turning_step", 400), config.get("base_scale", 0.7)
        scale = np.concatenate([np.linspace(1, base, turn), np.full(n, base)])
    return abar.astype(np.float32).astype(np.float64), scale.astype(np.float32).astype(np.float64)


def visited(spacing, s, m):
    if spacing == "uniform":
        return np.array(range(0, m, m // s)) + 1
    if spacing == "quad":
        return np.floor(np.linspace(0, np.sqrt(0.8 * m), s) ** 2).astype(int) + 1
    return np.round(np.arange(m, 0, -m / s)).astype(int)[::-1] - 1


def stub(kind, x, z, t, m):
    if kind == "dyn":
        return 0.3 * x + 0.1 * m + 0.05 * np.sin(t / 100) + 0.2 * m * np.tanh(x) + 0.05 * z
    return -0.2 * x + 0.2 * m + 0.03 * np.cos(t / 50) + 0.1 * m * x - 0.05 * z


def expected(config, settings, given, seed, soft):
    abar, scales = buffers(config)
    ts = visited(settings["timestep_spacing"], settings["S"], settings["M"])
    a, sc = abar[ts], scales[ts]
    a_prev, sc_prev = np.append(abar[0], a[:-1]), np.append(sc[0], sc[:-1])
    sigma = settings["eta"] * np.sqrt((1 - a_prev) / (1 - a) * (1 - a / a_prev))
    w, g = settings["cfg_scale"], settings["guidance_rescale"]
    std = lambda v: v.std(axis=tuple(range(1, v.ndim)), ddof=1, keepdims=True)  # noqa: E731
    x, out = given["x_T"].double().numpy(), {"x_steps": [], "x0_steps": [], "uses_dyn": []}
    for k, i in enumerate(reversed(range(len(ts)))):
        t, use = ts[i], "dyn" if ts[i] > settings["T"] else "con"
        raw = {
            (s, c): stub(
                s,
                x,
                given[f"{s}.c_concat"].double().numpy(),
                t,
                given[f"{s}.{c}.context"].double().numpy().mean((1, 2)).reshape(-1, 1, 1, 1, 1),
            )
            for s in ("dyn", "con")
            for c in ("cond", "uncond")
        }
        if soft:
            w1 = w * t / 1000
            w2 = w - w1
            u, c = ((w1 * raw["dyn", kind] + w2 * raw["con", kind]) / w for kind in ("uncond", "cond"))
            v = u + w1 * (raw["dyn", "cond"] - raw["dyn", "uncond"])
            v = v + w2 * (raw["con", "cond"] - raw["con", "uncond"])
        else:
            u, c = raw[use, "uncond"], raw[use, "cond"]
            v = u + w * (c - u)
        v = c if w == 1 else g * v * std(c) / std(v) + (1 - g) * v
        if config.get("parameterization", "eps") == "v":
            eps, x0 = a[i] ** 0.5 * v + (1 - a[i]) ** 0.5 * x, a[i] ** 0.5 * x - (1 - a[i]) ** 0.5 * v
        else:
            eps, x0 = v, (x - (1 - a[i]) ** 0.5 * v) / a[i] ** 0.5
        x0 = x0 * sc_prev[i] / sc[i]
        noise = rules.input_tensor(seed, f"noise_{k}", x.shape).double().numpy()
        direction = np.sqrt(np.maximum(1 - a_prev[i] - sigma[i] ** 2, 0))
        x = a_prev[i] ** 0.5 * x0 + direction * eps + sigma[i] * noise
        out["x_steps"].append(x)
        out["x0_steps"].append(x0)
        out["uses_dyn"].append(int(use == "dyn"))
    out = {name: torch.from_numpy(np.stack(values)) for name, values in out.items()}
    out = {name: v.float() if v.is_floating_point() else v for name, v in out.items()}
    return {**out, "x_final": out["x_steps"][-1].clone(), "timesteps": torch.from_numpy(ts.copy())}


def write_case(folder, config, settings, seed=11, shape=(1, 4, 3, 5, 6), tokens=(9, 7), soft=False):
    inputs = {"x_T": shape}
    for name in ("dyn", "con"):
        inputs |= {f"{name}.c_concat": shape}
        inputs |= {f"{name}.{kind}.context": (shape[0], *tokens) for kind in ("cond", "uncond")}
    given = {name: rules.input_tensor(seed, name, size) for name, size in inputs.items()}
    with np.errstate(all="ignore"):
        out = expected(config, settings, given, seed, soft)
    save_file({f"out/{name}": tensor.contiguous() for name, tensor in out.items()}, folder / "s.safetensors")
    limits = {
        name: {"atol": 2e-5 * max(1.0, float(v.double().nan_to_num().abs().max()))} for name, v in out.items()
    }
    entry = {
        "name": "s",
        "group": "sampler",
        "file": "s.safetensors",
        "config": config,
        "seed": seed,
        "key_prefix": "",
        "inputs": {n: {"shape": list(s), "source": "input rule", "stored": False} for n, s in inputs.items()},
        "outputs": limits,
        "sampler": settings,
        "math": "BLENDING VARIANT (p_sample_ddim_multi)" if soft else "",
    }
    (folder / "index.json").write_text(json.dumps({"cases": [entry]}))


@pytest.mark.parametrize(
    ("config", "changes"),
    [
        (CONFIG, {"S": 7, "M": 940, "T": 731}),
        (CONFIG, {"S": 20}),  # NaN in the released code, clamped in a reference
        (CONFIG, {"S": 25, "eta": 0.5}),
        (CONFIG, {"S": 1}),
        (CONFIG, {"S": 50, "M": 113, "eta": 0.0}),  # visits -1
        (CONFIG, {"timestep_spacing": "uniform", "S": 8, "M": 940}),
        (CONFIG, {"timestep_spacing": "quad", "S": 30}),  # repeats a timestep
        (CONFIG, {"cfg_scale": 1.0, "T": 999}),
        (CONFIG, {"cfg_scale": 0.0, "guidance_rescale": 1.0}),
        ({**CONFIG, "base_scale": 0.3, "turning_step": 150}, {"S": 12, "guidance_rescale": 0.0}),
        ({**CONFIG, "use_dynamic_rescale": False}, {"S": 9, "eta": 0.3}),
        ({**CONFIG, "rescale_betas_zero_snr": False, "linear_end": 0.02}, {"S": 9}),
        ({**CONFIG, "timesteps": 600}, {"S": 9, "M": 600, "T": 300}),
        (PLAIN, {"S": 15}),
        (PLAIN, {"S": 6, "M": 700, "cfg_scale": 3.0, "timestep_spacing": "uniform"}),
        (PLAIN, {"S": 50, "M": 113, "T": 60, "eta": 0.0}),
    ],
    ids=lambda value: None if "timesteps" in value else "-".join(f"{k}{v}" for k, v in value.items()),
)
@pytest.mark.parametrize("shape", [(1, 4, 3, 5, 6), (2, 2, 1, 3, 4)], ids=["b1", "b2"])
def test_other_settings(tmp_path, config, changes, shape):
    write_case(tmp_path, config, {**SETTINGS, **changes}, shape=shape)
    (verdict,) = cases.run_folder(tmp_path, GROUPS)
    assert verdict.status == "pass", verdict


@pytest.mark.parametrize("changes", [{}, {"S": 17, "M": 940, "eta": 0.2, "cfg_scale": 3.0, "T": 100}])
def test_other_blends(tmp_path, changes):
    write_case(tmp_path, CONFIG, {**SETTINGS, **changes}, soft=True)
    (verdict,) = cases.run_folder(tmp_path, GROUPS)
    assert verdict.status == "pass", verdict


@pytest.mark.parametrize("config", [PLAIN, {**CONFIG, "base_scale": 0.3, "turning_step": 77}])
def test_other_tables(tmp_path, config):
    """DDIM tables of other step counts, starts and etas, the released -1 and its NaN included."""
    abar, scales = buffers(config)
    out = {}
    for spacing, s, m in [("uniform", 7, 820), ("uniform_trailing", 50, 113), ("quad", 33, 640)]:
        ts, where = visited(spacing, s, m), f"{spacing}/S{s}/M{m}"
        a, sc = abar[ts], scales[ts]
        a_prev = np.append(abar[0], a[:-1])
        out |= {f"{where}/timesteps": ts, f"{where}/alphas": a, f"{where}/alphas_prev": a_prev}
        out |= {f"{where}/scale_arr": sc, f"{where}/scale_arr_prev": np.append(sc[0], sc[:-1])}
        for eta in (0.0, 0.5, 1.0):
            with np.errstate(all="ignore"):
                sigma = eta * np.sqrt((1 - a_prev) / (1 - a) * (1 - a / a_prev))
            out[f"{where}/eta{eta:g}/sigmas"] = sigma
    assert any(np.isnan(values).any() for values in out.values())
    tensors = {f"out/{name}": torch.from_numpy(np.ascontiguousarray(values)) for name, values in out.items()}
    save_file(tensors, tmp_path / "d.safetensors")
    limits = {name: {"atol": 2e-6} for name in out}
    entry = {"name": "d", "group": "schedule", "file": "d.safetensors", "config": config, "outputs": limits}
    (tmp_path / "index.json").write_text(json.dumps({"cases": [entry]}))
    (verdict,) = cases.run_folder(tmp_path, GROUPS)
    assert verdict.status == "pass", verdict
