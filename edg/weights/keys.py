"""Names of tensors: bringing them to the published form, and telling from a name what a tensor belongs to.

Published form: `model.diffusion_model.*`, `first_stage_model.*`, `cond_stage_model.model.*`,
`embedder.model.*`, `image_proj_model.*`, schedule buffers without a dot, and for the text adapter
`queries`, `qformer.*`, `*.cc_projection.{weight,bias}`.
"""

from __future__ import annotations

import fnmatch
import re
from collections import Counter
from collections.abc import Iterable, Mapping

ROOTS = {
    "model.diffusion_model.": "unet",
    "first_stage_model.": "vae",
    "cond_stage_model.": "text",
    "embedder.": "image",
    "image_proj_model.": "image_proj",
}
WRAPPERS = ("_forward_module.", "module.", "_orig_mod.")
BUFFERS = frozenset(
    [
        "betas",
        "alphas_cumprod",
        "alphas_cumprod_prev",
        "sqrt_alphas_cumprod",
        "sqrt_one_minus_alphas_cumprod",
        "log_one_minus_alphas_cumprod",
        "sqrt_recip_alphas_cumprod",
        "sqrt_recipm1_alphas_cumprod",
        "posterior_variance",
        "posterior_log_variance_clipped",
        "posterior_mean_coef1",
        "posterior_mean_coef2",
        "scale_arr",
        "scale_factor",
    ]
)
KINDS = {
    "temporal": "temporal transformers of the blocks (with their adapter projections)",
    "spatial": "spatial transformers",
    "resblock": "residual blocks, with the temporal convolutions inside them",
    "temporal_conv": "the temporal convolutions alone",
    "init_attn": "the temporal transformer after the first convolution",
    "in": "first convolution",
    "out": "last normalisation and convolution",
    "resample": "down- and upsampling convolutions",
    "time": "time and frame-rate embeddings",
    "image_proj": "image projector",
    "adapter": "text adapter: queries, qformer, cc_projection",
    "unet": "all of the denoising network",
    "vae": "autoencoder",
    "text": "text tower",
    "image": "image tower",
    "buffer": "schedule buffers",
}
BLOCK = re.compile(
    r"model\.diffusion_model\.(input_blocks|middle_block|output_blocks)\.(?:(\d+)\.)?(\d+)\.(.*)$"
)


def normalise(names: Iterable[str]) -> tuple[dict[str, str], list[str]]:
    """(published name -> name in the file, notes): wrapper prefixes off, EMA copies out, old keys renamed.

    Raises ValueError when two names become one."""
    names, notes = list(names), []
    ema = [n for n in names if n.startswith("model_ema.")]
    if ema and len(ema) < len(names):
        names = [n for n in names if not n.startswith("model_ema.")]
        notes.append(f"{len(ema)} EMA keys ignored")
    prefix = wrapper_prefix(names)
    if prefix:
        notes.append(f"prefix {prefix!r} removed from every name")
    result, renamed = {}, 0
    for name in names:
        short = name[len(prefix) :]
        fixed = short.replace("framestride_embed", "fps_embedding")
        renamed += fixed != short
        if fixed in result:
            raise ValueError(f"{result[fixed]!r} and {name!r} both mean {fixed!r}")
        result[fixed] = name
    if renamed:
        notes.append(f"{renamed} keys renamed from framestride_embed to fps_embedding")
    return result, notes


def wrapper_prefix(names: list[str]) -> str:
    """What all names carry in front of the published form: found from the data, '' when there is nothing."""
    for root in (root for root in ROOTS if root != "embedder."):
        for name in names:
            at = name.find(f".{root}") + 1
            if (
                at
                and not any(name.startswith(r) for r in ROOTS)
                and all(n.startswith(name[:at]) for n in names)
            ):
                return name[:at]
    prefix = ""
    while True:
        inner = [n[len(prefix) :] for n in names]
        step = next((w for w in WRAPPERS if inner and all(n.startswith(w) for n in inner)), "")
        if not step:
            return prefix
        prefix += step


def is_adapter(name: str) -> bool:
    """Whether a tensor belongs to the text-to-temporal adapter."""
    return name == "queries" or name.startswith("qformer.") or ".cc_projection." in name


def component(name: str) -> str:
    """unet, vae, text, image, image_proj, adapter, buffers or other."""
    if is_adapter(name):
        return "adapter"
    if name in BUFFERS:
        return "buffers"
    return next((kind for root, kind in ROOTS.items() if name.startswith(root)), "other")


def kinds(name: str) -> frozenset[str]:
    """All module kinds (KINDS) a tensor belongs to; empty for foreign names."""
    part = component(name)
    found = {{"buffers": "buffer"}.get(part, part)} - {"other"}
    if name.startswith("model.diffusion_model."):
        found |= {"unet"} | _unet_kinds(name)
    return frozenset(found)


def _unet_kinds(name: str) -> set[str]:
    inner = name.removeprefix("model.diffusion_model.")
    top = inner.split(".", 1)[0]
    if top in ("init_attn", "out"):
        return {top}
    if top in ("time_embed", "fps_embedding", "label_emb"):
        return {"time"}
    match = BLOCK.match(name)
    if not match:
        return set()
    section, block, index, rest = match.groups()
    if section == "input_blocks" and block == "0":
        return {"in"}
    if rest.startswith(("op.", "conv.")):
        return {"resample"}
    if re.match(r"(in_layers|out_layers|emb_layers|skip_connection|temopral_conv|h_upd|x_upd)\b", rest):
        return {"resblock", "temporal_conv"} if rest.startswith("temopral_conv") else {"resblock"}
    if ".cc_projection." in f".{rest}":
        return {"temporal"}
    return {"spatial"} if index == "1" else {"temporal"}


def matches(name: str, where: Iterable[str]) -> bool:
    """Whether a tensor is meant by any of `where`: module kinds (KINDS) or name patterns (`*.bias`)."""
    own = kinds(name)
    return any(w in own or fnmatch.fnmatchcase(name, w) for w in where)


def parameter_counts(sizes: Mapping[str, int]) -> dict[str, int]:
    """Number of elements per component, largest first; sizes: name -> number of elements."""
    total = Counter()
    for name, numel in sizes.items():
        total[component(name)] += numel
    return dict(total.most_common())


def prefix_hint(ours: Iterable[str], theirs: Iterable[str]) -> str:
    """'did you mean ...' when the names of two sets differ only by a prefix, '' otherwise."""
    by_end = {}
    for name in theirs:
        by_end.setdefault(name.rsplit(".", 2)[-1], []).append(name)
    found = Counter()
    for name in list(ours)[:50]:
        for other in by_end.get(name.rsplit(".", 2)[-1], ())[:2000]:
            if other.endswith(f".{name}"):
                found[f"the second has the prefix {other[: -len(name)]!r}"] += 1
            elif name.endswith(f".{other}"):
                found[f"the first has the prefix {name[: -len(other)]!r}"] += 1
    best = found.most_common(1)
    return f"did you mean the same names? {best[0][0]}" if best else ""
