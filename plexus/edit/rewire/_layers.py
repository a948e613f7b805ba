"""Which layers of a model can be rewired, and their masks.

Masks are shown as `[out, in, …]` whatever way round a layer keeps its weight (GPT-2's `Conv1D` keeps `[in, out]`).
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from plexus.errors import UnknownNameError, UnsupportedError
from plexus.nn import fan_in_, mask_parameter_, unmask_parameter_
from plexus.nn.synapses import Convolution, Dense, Wiring
from plexus.units._exact import why_not_exact
from plexus.units._paths import unwrap, walk

__all__ = ["initialise_", "mask_", "maskable", "masks", "oriented", "shape_of", "unmask_", "wirings"]

_KINDS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, Dense, Convolution)


def maskable(model: nn.Module, at: str | Iterable[str] = "*", *, exclude: Iterable[str] = ()) -> dict[str, nn.Module]:
    """The layers whose connections can be masked: linear and convolutional ones, by name, in the order of the model.

    Biases, norms and embeddings are never masked. A layer with an adapter (PEFT) keeps its name, and it is the weight
    below the adapter that is masked; the adapter's own layers are found by a pattern that fits no other layer.

    Args:
        model: any module.
        at: names or patterns (shell wildcards) of the layers.
        exclude: names or patterns of layers to leave out.

    Raises:
        UnknownNameError: a pattern matches nothing.
        UnsupportedError: a weight is shared by two modules, made by a parametrization, quantised or offloaded.

    Examples:
        >>> list(maskable(nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2))))
        ['0', '3']
    """
    known, adapters = _known(model)
    wanted = [at] if isinstance(at, str) else list(at)
    unwanted = list(exclude)
    fits: dict[str, set[str]] = {}
    for pattern in [*wanted, *unwanted]:
        named = (_fitting(names, pattern) for names in (known, adapters))
        fits[pattern] = next((names for names in named if names), set())
        if not fits[pattern]:
            raise UnknownNameError.among("layer with connections that can be masked,", pattern, known)
    chosen = set().union(*map(fits.__getitem__, wanted)) - set().union(*map(fits.__getitem__, unwanted))
    found = {name: module for name, module in (known | adapters).items() if name in chosen}
    for name, module in found.items():
        reason = why_not_exact(module)
        if reason is not None:
            raise UnsupportedError(f"connections of {name!r} cannot be masked: {reason}", mend=f"exclude {name!r}")
        owners = sum(module.weight is p for m in unwrap(model).modules() for p in m._parameters.values())
        if owners > 1:
            raise UnsupportedError(f"the weight of {name!r} is shared with another module", mend=f"exclude {name!r}")
    return found


def _fitting(names: Iterable[str], pattern: str) -> set[str]:
    return {name for name in names if fnmatch.fnmatchcase(name, pattern)}


def _known(model: nn.Module) -> tuple[dict[str, nn.Module], dict[str, nn.Module]]:
    """The layers of a model that have connections, by the names of their sites; and those of adapters around them."""
    known: dict[str, nn.Module] = {}
    adapters: dict[str, nn.Module] = {}
    adapted: set[str] = set()  # the names of layers with an adapter; a module comes before what is in it
    for name, module in walk(model):
        if type(module).__module__.startswith("peft.") and "base_layer" in module._modules:
            adapted.add(name)
        if _is_maskable(module) and module not in known.values() and module not in adapters.values():
            own, beside = _own_name(name, adapted)
            (adapters if beside else known)[own] = module
    return known, adapters


def _own_name(name: str, adapted: set[str]) -> tuple[str, bool]:
    """A name without what adapters put into it, and whether it is that of an adapter's own layer."""
    parts, own = name.split("."), []
    for place, part in enumerate(parts):
        if ".".join(parts[:place]) in adapted:
            if part != "base_layer":
                return name, True
            continue
        own.append(part)
    return ".".join(own), False


def _is_maskable(module: nn.Module) -> bool:
    return isinstance(module, _KINDS) or is_transposed(module)


def is_transposed(module: nn.Module) -> bool:
    """Whether a layer keeps its weight as `[in, out]`: GPT-2's `Conv1D`."""
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf")


def oriented(module: nn.Module, tensor: Tensor) -> Tensor:
    """A tensor of the weight's shape as `[out, in, …]`, or back; a view."""
    return tensor.T if is_transposed(module) else tensor


def shape_of(module: nn.Module) -> tuple[int, ...]:
    """`[out, in, …]` of a layer's weight."""
    weight = module.get_parameter("weight")
    return tuple(oriented(module, weight).shape)


def mask_(
    model: nn.Module,
    wanted: Mapping[str, Tensor | Wiring],
    *,
    initialise: bool = False,
    generator: torch.Generator | None = None,
) -> nn.Module:
    """Say which connections of a model exist, in place; the weights of the others become zero.

    In training, `plexus.nn.project_after_step` or `SparseTraining` keeps them there; gradients of absent weights stay
    visible, so that they can be grown.

    Args:
        model: any module.
        wanted: name of a layer → bool `[out, in]`, or `[out, in, …]` of a convolution; `[out, in]` there switches whole
            kernels. Or a `Wiring`, see `random_wiring`, `group_wiring`, `small_world_wiring`.
        initialise: draw fan-in-aware first weights for what exists (`plexus.nn.fan_in_`).
        generator: source of first weights.

    Returns:
        The model.

    Raises:
        UnknownNameError: there is no such layer. ShapeError: a mask does not fit.
        UnsupportedError: the weight is shared, or its layer masks it by itself.

    Examples:
        >>> model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> model = mask_(model, {"0": torch.eye(4).bool()})
        >>> int((model[0].weight != 0).sum()), list(masks(model))
        (4, ['0'])
    """
    layers = maskable(model, list(wanted))
    for name, given in wanted.items():
        if name not in layers:
            raise UnknownNameError.among("layer with connections that can be masked,", name, layers)
        module = layers[name]
        wiring = given if isinstance(given, Wiring) else Wiring(given)
        mask = wiring.mask
        if mask.dim() == 2 < len(shape_of(module)):
            mask = mask.view(*mask.shape, *[1] * (len(shape_of(module)) - 2)).expand(*mask.shape, *shape_of(module)[2:])
        mask_parameter_(module, "weight", wiring._replace(mask=oriented(module, mask)))
        if initialise:
            _initialise(module, generator)
    return model


def unmask_(model: nn.Module) -> nn.Module:
    """Forget all masks of a model, in place: an ordinary model, with zeros where connections were absent.

    Examples:
        >>> model = mask_(nn.Sequential(nn.Linear(4, 4)), {"0": torch.eye(4).bool()})
        >>> list(unmask_(model).state_dict())
        ['0.weight', '0.bias']
    """
    for module in masked_layers(model).values():
        unmask_parameter_(module, "weight")
    return model


def masked_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The layers that have a mask."""
    known, adapters = _known(model)
    layers = (known | adapters).items()
    return {name: module for name, module in layers if isinstance(module._buffers.get("weight_mask"), Tensor)}


def masks(model: nn.Module) -> dict[str, Tensor]:
    """The masks of a model, by layer, bool `[out, in, …]`; views, so that a later change shows.

    Examples:
        >>> masks(nn.Linear(2, 2))
        {}
    """
    return {name: oriented(module, module.get_buffer("weight_mask")) for name, module in masked_layers(model).items()}


def wirings(model: nn.Module) -> dict[str, Wiring]:
    """Masks and groups of a model, by layer."""
    return {
        name: Wiring(
            oriented(module, module.get_buffer("weight_mask")),
            module._buffers.get("weight_groups_out"),
            module._buffers.get("weight_groups_in"),
        )
        for name, module in masked_layers(model).items()
    }


def initialise_(model: nn.Module, *, generator: torch.Generator | None = None) -> nn.Module:
    """Draw fan-in-aware first weights for every masked layer, in place (`plexus.nn.fan_in_`).

    Examples:
        >>> model = mask_(nn.Sequential(nn.Linear(64, 64)), {"0": torch.eye(64).bool()})
        >>> initialise_(model)[0].weight.abs().max() > 1            # one input has to do the work of 64
        tensor(True)
    """
    for module in masked_layers(model).values():
        _initialise(module, generator)
    return model


def _initialise(module: nn.Module, generator: torch.Generator | None) -> None:
    if is_transposed(module):
        raise UnsupportedError("first weights of a Conv1D are its model's business", mend="pass initialise=False")
    fan_in_(module, generator=generator)
