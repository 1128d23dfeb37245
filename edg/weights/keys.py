"""Names of tensors: bringing them to the published form, and telling from a name what a tensor belongs to.

Published form: `model.diffusion_model.*`, `first_stage_model.*`, `cond_stage_model.model.*`,
`embedder.model.*`, `image_proj_model.*`, schedule buffers without a dot, and for the text adapter
`queries`, `qformer.*`, `*.cc_projection.{weight,bias}`.
"""

from __future__ import annotations

import difflib
import fnmatch
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping

ROOTS = {
    "model.diffusion_model.": "unet",
    "first_stage_model.": "vae",
    "cond_stage_model.": "text",
    "embedder.": "image",
    "image_proj_model.": "image_proj",
}
#: Parts of names that compile, FSDP, activation checkpointing and their kin put between a module and its
#: parameters: taken off wherever they stand.
WRAPPERS = frozenset(
    [
        "_orig_mod",
        "_forward_module",
        "_original_module",
        "_fsdp_wrapped_module",
        "_checkpoint_wrapped_module",
        "_offload_wrapped_module",
        "_fpw_module",
    ]
)
#: Parts that a model may have of its own: taken off inside a name only where a published name remains. Those
#: have neither a part `module` nor one that begins with an underscore.
LIKE_WRAPPERS = re.compile(r"module|_(\w+_)?(mod|module|model|wrapped|flat|fpw|fsdp|ddp|dp)")
LORA = re.compile(
    r"(^|[._])(lora[ab]?|loha|lokr|dora|glora|lycoris|oft|boft|ia3|vera|hada_w[12]|lokr_w[12])([._]|$)",
    re.IGNORECASE,
)
AVERAGED = {"ema", "swa", "avg", "average", "averaged", "averages", "shadow", "polyak", "teacher"}
MAX_COPIES = 16  # of a model in one table; more are none, and would be compared with every name
WORD = re.compile(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+|[A-Z]+")
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
    """(published name -> name in the file, notes): what all names carry in front off, wrappers of training
    frameworks off wherever they stand, EMA copies out, old keys renamed.

    Raises ValueError when two names become one."""
    names, notes = list(names), []
    ema = _averaged(names)
    if 0 < len(ema) < len(names):
        names = [n for n in names if n not in ema]
        notes.append(f"{len(ema)} EMA keys ignored")
    prefix = wrapper_prefix(names)
    if prefix:
        count = sum(name.startswith(prefix) for name in names)
        notes.append(f"prefix {prefix!r} removed from {'every name' if count == len(names) else count}")
    short = {name: name.removeprefix(prefix) for name in names}
    bare = _without_wrappers(short)
    if removed := [part for name in names for part in _parts_less(short[name], bare[name])]:
        count = sum(short[name] != bare[name] for name in names)
        listed = ", ".join(repr(f"{part}.") for part in sorted(set(removed)))
        notes.append(f"{listed} removed from inside {count} names")
    result, renamed = {}, 0
    for name in names:
        fixed = bare[name].replace("framestride_embed", "fps_embedding")
        renamed += fixed != bare[name]
        if fixed in result:
            raise ValueError(f"{result[fixed]!r} and {name!r} both mean {fixed!r}")
        result[fixed] = name
    if renamed:
        notes.append(f"{renamed} keys renamed from framestride_embed to fps_embedding")
    return result, notes


def words(key: object) -> set[str]:
    """The words of a key, in lower case: 'EMACallback' is {'ema', 'callback'}."""
    return {word.lower() for word in WORD.findall(key[:1000])} if isinstance(key, str) else set()


def _averaged(names: list[str]) -> set[str]:
    """The names of averaged copies: those of the release (`model_ema.`), which have no dots, and those that
    say so in front of a published name, where another is there as it was trained."""
    bare = {name: _drop_parts(name, _like_wrapper) for name in names}
    heads = {_head(name) for name in bare.values()} - {None}
    copies = {head for head in heads if words(head) & AVERAGED}
    copies = tuple(copies) if heads - copies and len(copies) <= MAX_COPIES else ()
    return {
        name
        for name, short in bare.items()
        if short.startswith(copies) or (_head(short) is None and "model_ema" in short.split(".")[:-1])
    }


def _head(name: str) -> str | None:
    """What stands in front of the published form of a name, None where that is not in it."""
    places = (f".{name}".find(f".{root}") for root in ROOTS if root != "embedder.")
    return next((name[:at] for at in places if at >= 0), None)


def _without_wrappers(names: Mapping[str, str]) -> dict[str, str]:
    """The names (values) without wrappers: everything like one goes where a published name remains, what is
    one for certain goes in any case."""
    bare = {name: _drop_parts(short, _like_wrapper) for name, short in names.items()}
    prefix = wrapper_prefix(list(bare.values())) if bare != dict(names) else ""  # before the wrappers
    found = {}
    for name, short in names.items():
        found[name] = bare[name].removeprefix(prefix)
        if component(found[name]) == "other":
            found[name] = _drop_parts(short, WRAPPERS.__contains__).removeprefix(prefix)
    return found


def _drop_parts(name: str, is_wrapper: Callable[[str], object]) -> str:
    if "_" not in name and "module" not in name:
        return name
    *modules, last = name.split(".")
    return ".".join([*(part for part in modules if not is_wrapper(part)), last])


def _like_wrapper(part: str) -> bool:
    return part in WRAPPERS or bool(LIKE_WRAPPERS.fullmatch(part))


def _parts_less(long: str, short: str) -> list[str]:
    """The parts of a dotted name that a shorter form of it lacks."""
    return list((Counter(long.split(".")) - Counter(short.split("."))).elements())


def wrapper_prefix(names: list[str]) -> str:
    """What all names of the published form carry in front of it, or wrappers that all names do: found from
    the data, '' when there is nothing."""
    heads = {_head(name) for name in names} - {None}
    prefix = min(heads, key=len, default="")
    if prefix and all(head.startswith(prefix) for head in heads):
        return prefix
    prefix = ""
    while True:
        inner = [n[len(prefix) :] for n in names]
        first = inner[0].split(".")[0] if inner else ""
        if first not in WRAPPERS | {"module"} or not all(n.startswith(f"{first}.") for n in inner):
            return prefix
        prefix += f"{first}."


def is_lora(names: Iterable[str]) -> bool:
    """True for low-rank changes to a model, by whatever trainer: at least half of the names say so."""
    names = list(names)
    return 0 < len(names) <= 2 * sum(bool(LORA.search(name)) for name in names)


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


def near_names(pattern: str, names: Iterable[str]) -> str:
    """'did you mean ...' for a pattern that matches none of the names: the nearest kind that one of them has
    and the nearest parts of names, each with a name that has it. '' when nothing is near."""
    parts: dict[str, str] = {}
    met: set[str] = set()
    for name in names:
        met |= kinds(name)
        for part in name.split("."):
            parts.setdefault(part, name)
    pieces = [piece for piece in re.split(r"[.*?\[\]]+", pattern) if len(piece) > 1 and piece not in parts]
    found = [repr(kind) for piece in pieces for kind in _close(piece, met)]
    found += [f"{part!r} as in {parts[part]!r}" for piece in pieces for part in _close(piece, parts)]
    if not pieces:  # every part is there, but not so together
        found = [repr(name) for name in _close(pattern, dict.fromkeys(parts.values()))]
    return f"did you mean {' or '.join(dict.fromkeys(found))}?" if found else ""


def _close(text: str, known: Iterable[str]) -> list[str]:
    by_small = {one.lower(): one for one in known}
    return [by_small[hit] for hit in difflib.get_close_matches(text.lower(), by_small, n=2, cutoff=0.6)]


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
