"""Load weights into a model: built on the meta device, filled tensor by tensor, strictly.

`weights` is any mapping name -> tensor; one with `.info(name).shape` is checked without being read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import numpy as np
import torch
from torch import Tensor

from edg.core.errors import BadFileError
from edg.core.process import stopping
from edg.core.seeding import derive
from edg.networks.latent_video.adapter import make_identity
from edg.networks.latent_video.identify import guess
from edg.networks.latent_video.keys import is_adapter
from edg.networks.latent_video.model import LatentVideoModel
from edg.networks.latent_video.spec import ModelSpec
from edg.networks.latent_video.vae import HALVES

Weights = Mapping[str, Tensor]
TOWERS = ("cond_stage_model.", "embedder.")


def build(spec: ModelSpec, device: torch.device | str = "meta") -> LatentVideoModel:
    """The model of a spec, in eval mode: without storage on "meta", else with freshly drawn parameters
    (towers from towers_seed where the spec has one)."""
    with torch.device(device):
        model = LatentVideoModel(spec)
    if spec.towers_seed is not None and torch.device(device).type != "meta":
        rebuild_towers(model)
    return model.eval()


def load_model(
    spec: ModelSpec, weights: Weights, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> LatentVideoModel:
    """A model with the parameters of `weights` in `dtype` on `device`, in eval mode, without gradients.

    Memory: the model and one tensor. Raises BadFileError when names or shapes are not the spec's, or a file
    was altered since it was opened.
    """
    model = build(spec)
    check(model, weights)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
        parameter.requires_grad_(False)
    model.to_empty(device=device)
    _fill(model, weights)
    return model


def assign(model: LatentVideoModel, weights: Weights) -> None:
    """Put another parameter set into the storage that the model has. Nothing is changed when the set does not
    fit.

    Raises BadFileError as load_model does; a file that fails while it is read leaves the model half-filled.
    """
    check(model, weights)
    _fill(model, weights)


@torch.no_grad()
def _fill(model: LatentVideoModel, weights: Weights) -> None:
    stored, targets = canonical(weights), model.state_dict()
    drawn = model.spec.towers_seed is not None and not any(name.startswith(TOWERS) for name in stored)
    if drawn and not model.towers_are_random:
        rebuild_towers(model)
    model.towers_are_random = drawn
    computed = model.schedule_buffers()
    for name, actual in stored.items():
        if name in computed and (
            weights[actual].dtype in HALVES or is_bare_scale(model, name, weights, actual)
        ):
            continue  # a schedule cannot be kept in 16 bits; the spec's own takes its place below
        stopping.check()
        _read(weights, actual, targets[name])
        computed.pop(name, None)
    for name, value in computed.items():
        targets[name].copy_(value)
    if model.spec.adapter is not None and not any(map(is_adapter, stored)):
        set_adapter_to_identity(model)
    check_bytes(weights)


@torch.no_grad()
def fill_strictly(
    targets: Mapping[str, Tensor], sources: Mapping[str, Callable[[], Tensor]], given: str, model: str
) -> None:
    """Copy into every target the tensor that its source reads. A convolution of one cell and a linear layer
    are the same matrix. Raises BadFileError for missing or unknown names and other shapes."""
    if strange := sorted(targets.keys() ^ sources.keys()):
        missing = len(targets.keys() - sources.keys())
        raise BadFileError(
            f"{given} does not fit {model}: {missing} tensors missing, {len(strange) - missing} unexpected",
            expected=f"its {len(targets)} tensors",
            fix=f"the first one is {strange[0]}",
        )
    for name, target in targets.items():
        stored = sources[name]()
        ndim = min(stored.ndim, target.ndim)
        if stored.shape[:ndim] != target.shape[:ndim] or stored.numel() != target.numel():
            raise BadFileError(
                f"{given}: {name} has the shape {tuple(stored.shape)}", expected=f"{tuple(target.shape)}"
            )
        target.copy_(stored.view_as(target))


def check_bytes(weights: Weights) -> None:
    """Raise BadFileError when a file of a parameter set was altered since it was opened: what was hashed then
    is not what was read."""
    for file in getattr(weights, "files", ()):
        file.check_bytes()


def _read(weights: Weights, name: str, target: Tensor) -> None:
    """Read a tensor into `target`, converted to its dtype; straight from the file where `weights` can do
    that."""
    if hasattr(weights, "read_into") and target.device.type == "cpu":
        weights.read_into(name, 0, target.view(-1))
    else:
        target.copy_(weights[name])


def set_adapter_to_identity(model: LatentVideoModel) -> None:
    """Make the model compute as without adapter, to the last bit."""
    for module in model.modules():
        if hasattr(module, "cc_projection"):
            make_identity(module.cc_projection)
    for parameter in (model.queries, *model.qformer.parameters()):
        parameter.zero_()


@torch.no_grad()
def rebuild_towers(model: LatentVideoModel) -> None:
    """Fill the text and image towers from spec.towers_seed, each tensor from its own generator (seed,
    name)."""
    for name, target in model.state_dict().items():
        if name.startswith(TOWERS):
            stopping.check()
            target.copy_(tower_tensor(model.spec.towers_seed, name, tuple(target.shape)))


def tower_tensor(seed: int, name: str, shape: tuple[int, ...]) -> Tensor:
    """One tensor of a random tower: norms 1 and 0, embeddings N(0, 0.02^2), other weights N(0, 1 / fan
    in)."""
    leaf = name.rsplit(".", 1)[-1]
    if leaf.endswith("bias"):
        return torch.zeros(shape)
    if len(shape) < 2 and leaf == "weight":
        return torch.ones(shape)
    random = np.random.RandomState(derive(seed, "tower", name) % 2**32)  # a stream numpy has frozen for good
    drawn = torch.from_numpy(random.standard_normal(shape).astype(np.float32))
    if "embedding" in name or len(shape) < 2:
        return 0.02 * drawn
    fan_in = shape[0] if leaf in ("proj", "text_projection") else drawn[0].numel()
    return drawn / fan_in**0.5


def canonical(names: Iterable[str]) -> dict[str, str]:
    """Name in the model -> name in the file: `framestride_embed` is an old name, `model_ema.*` is not
    used."""
    return {
        name.replace("framestride_embed", "fps_embedding"): name
        for name in names
        if not name.startswith("model_ema.")
    }


def check(model: LatentVideoModel, weights: Weights) -> None:
    """Raise BadFileError, with counts, first names and a guess, unless `weights` has exactly the model's
    names and shapes. Not required: an adapter (all of it or none), schedule buffers, towers that have a
    seed."""
    stored = canonical(weights)
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    missing = [n for n in expected if n not in stored and not may_lack(model, n, stored)]
    surplus = [n for n in stored if n not in expected]
    misshapen = []
    for name in stored.keys() & expected.keys():
        shape = shape_of(weights, stored[name])
        if shape != expected[name] and not is_bare_scale(model, name, weights, stored[name]):
            misshapen.append(f"{name} is {shape} instead of {expected[name]}")
    if not (missing or surplus or misshapen):
        return
    problems = [
        f"{len(found)} {what} ({', '.join(sorted(found)[:2])}{', ...' if len(found) > 2 else ''})"
        for what, found in (("missing", missing), ("unexpected", surplus), ("of another shape", misshapen))
        if found
    ]
    given = getattr(weights, "path", "the parameter set")
    raise BadFileError(
        f"{given} does not fit {model.spec.name}: {'; '.join(problems)}",
        expected=f"its {len(expected)} tensors",
        fix=guess(weights),
    )


def is_bare_scale(model: LatentVideoModel, name: str, weights: Weights, actual: str) -> bool:
    """True for a `scale_arr` of one value per timestep (VideoCrafter1-1024), which the spec's begins with."""
    return name == "scale_arr" and shape_of(weights, actual) == (model.spec.schedule.timesteps,)


def may_lack(model: LatentVideoModel, name: str, stored: Mapping[str, str]) -> bool:
    """True if a parameter set is complete without `name`."""
    optional: list[Callable[[str], bool]] = [is_adapter]
    if model.spec.towers_seed is not None:
        optional += [lambda n: n.startswith(TOWERS)]
    if name in model.buffer_names:
        return True
    return any(kind(name) and not any(map(kind, stored)) for kind in optional)


def shape_of(weights: Weights, name: str) -> tuple[int, ...]:
    info = getattr(weights, "info", None)
    return tuple(info(name).shape if info else weights[name].shape)


def has_adapter(weights: Weights) -> bool:
    return any(map(is_adapter, weights))


def with_adapter_of(spec: ModelSpec, sets: Iterable[Weights]) -> ModelSpec:
    """The spec, with the text adapter if any of the parameter sets holds one."""
    return spec.with_adapter() if any(map(has_adapter, sets)) else spec
