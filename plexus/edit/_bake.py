"""An edit written into the weights, where that is exactly the same function.

An affine edit x' = g ⊙ x + a of what a linear layer reads, or of what it puts out, is another linear layer:

    reads      W x' + b = (W diag g) x + (b + W a)
    puts out   (W x + b)' = (diag g W) x + (g ⊙ b + a)

An edit along directions is affine too where it takes their coordinates z to A z + c: x' = M x + Bᵀ c with
M = 1 + Bᵀ (A - 1) (B⁺)ᵀ, and diag g becomes M.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from plexus.edit._edit import Edit
from plexus.edit._layers import (
    CONVOLUTIONS,
    TRANSPOSED,
    by_input,
    by_output,
    from_input,
    from_output,
    inputs,
    layout,
    outputs,
)
from plexus.edit._new_bias import plan_biases
from plexus.edit._step import Step
from plexus.edit._trial import why_other
from plexus.errors import DtypeError, RangeError, UnsupportedError
from plexus.units import Site
from plexus.units._exact import why_not_exact
from plexus.units._paths import find_module, has_loop, refuse_out_of_reach

__all__ = ["Baked", "bake"]

_AFFINE = ("scale", "add", "replace", "clamp", "rotate")
_NORMS = (nn.LayerNorm, nn.GroupNorm, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@dataclass(frozen=True)
class Baked:
    """What `bake` changed, and how exactly.

    Attributes:
        parameters: names of the parameters that changed.
        error: largest rounding of a changed weight, relative to the largest weight beside it; 0 is exact.
        dtype: the coarsest dtype among them.
    """

    parameters: tuple[str, ...]
    error: float
    dtype: torch.dtype

    def __repr__(self) -> str:
        if not self.parameters:
            return "nothing to bake: the edit changes nothing"
        how = "exactly" if self.error == 0 else f"to a relative {self.error:.0e}"
        return f"baked into {', '.join(self.parameters)} {how} ({str(self.dtype).removeprefix('torch.')})"


class _Change(NamedTuple):
    """A parameter and what it becomes, in float32 or wider."""

    name: str
    parameter: nn.Parameter
    value: Tensor
    new_in: nn.Module | None = None  # the layer that gets the parameter


class _Task(NamedTuple):
    """The edit of one site as a change of one layer: of what it reads, or of what it puts out.

    `distance` counts the modules that the values pass, as they are, before the layer reads them.
    """

    site: Site
    module: nn.Module
    reads: bool
    distance: int
    gain: Tensor
    bias: Tensor


def bake(model: nn.Module, edit: Edit, *, new_bias: bool = False, anyway: bool = False) -> Baked:
    """Write an edit into the weights of a model, for good: afterwards the model does what it did under the edit.

    Possible for `scale`, `add`, `replace` and `clamp` to a value, at the input or output of a linear layer, a
    convolution, GPT-2's transposed linear layer, an embedding or a norm, and at a module whose output goes straight
    into one of these in a `Sequential`. Along directions the same, and `rotate`, at a linear layer or an embedding.
    All that cannot be exact is refused before anything is changed; each layer is also run with its new weights beside
    the edited one, on random numbers, since a layer may compute something else with its weights than its kind does.

    Args:
        model: changed in place.
        edit: made by the verbs of this room.
        new_bias: give a layer that has no bias one, to hold a constant. A Hugging Face model then says so in its
            configuration, so that it is saved and read with it; refused where its configuration cannot say so.
        anyway: also on a model of another fingerprint than the edit was made for.

    Raises:
        UnsupportedError: weights are tied, shared or computed from others; something nonlinear lies between; the edit
            is a limit, a patch, inside a loop, or for some tokens or calls only; a direction crosses the groups of a
            convolution; a new bias would be lost on reading the checkpoint.
        RangeError: the edit has no unit.

    Examples:
        >>> from plexus import edit
        >>> from plexus.units import Neurons
        >>> model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> edit.bake(model, edit.scale(Neurons.of({Site("2", at="input"): 4}, {Site("2", at="input"): [1]}), 0.0))
        baked into 2.weight exactly (float32)
        >>> model[2].weight[:, 1]
        tensor([0., 0.], grad_fn=<SelectBackward0>)
    """
    if not isinstance(edit, Edit):
        raise DtypeError("only an edit is baked", given=type(edit).__name__)
    edit._check_model(model, anyway)
    refuse_out_of_reach(model)
    pending: dict[str, _Change] = {}
    tasks = [_task(model, action.site, *_affine(step, action.site)) for step in edit.steps for action in step.actions()]
    if not tasks:
        raise RangeError("there are no units to bake", given=repr(edit))
    # W g(f(x)) takes in g before f: what happens last to the values that a layer reads is written first
    reads = sorted((task for task in tasks if task.reads), key=lambda task: -task.distance)
    puts = [task for task in tasks if not task.reads]
    for task in [*reversed(reads), *puts]:
        weights = _Weights(model, task.module, task.site, pending, new_bias)
        for change in (_read if task.reads else _put_out)(weights, task.gain, task.bias):
            pending[change.name] = change
    plan = plan_biases(model, [change.new_in for change in pending.values() if change.new_in is not None])
    for layer, reason in plan.refused.items():
        raise _refusal(next(task.site for task in tasks if task.module is layer), reason)
    _check_function(pending, reads, puts)
    error = 0.0
    with torch.no_grad():
        for change in pending.values():
            rounded = change.value.to(change.parameter.dtype)
            scale = change.value.abs().max().clamp(min=torch.finfo(change.value.dtype).tiny)
            error = max(error, float((rounded.to(change.value.dtype) - change.value).abs().max() / scale))
            change.parameter.copy_(rounded)
            if change.new_in is not None:
                change.new_in.bias = change.parameter
    plan.declare()
    dtypes = {change.parameter.dtype for change in pending.values()}
    coarsest = max(dtypes, key=lambda dtype: torch.finfo(dtype).eps, default=torch.float32)
    return Baked(tuple(pending), error, coarsest)


def _affine(step: Step, site: Site) -> tuple[Tensor, Tensor]:
    """The edit of a site as gain and offset, `[unit]` or `[unit, feature]`, one and zero outside the set."""
    mask = step.neurons.mask(site)
    numbers = {name: number.of(site, mask).detach().cpu().double() for name, number in step.numbers.items()}
    reason = None
    if step.name == "patch":
        reason = "a patch differs from sample to sample"
    elif "low" in numbers or "high" in numbers:
        reason = "limits are not linear"
    elif step.positions != "all":
        reason = "it acts on some tokens only"
    elif "share" in numbers or "threshold" in numbers or step.name not in _AFFINE:
        reason = "it is not linear in the values"
    elif site.call is not None:
        reason = "it acts at one call of several"
    if reason is not None:
        raise _refusal(site, reason)
    if step.basis is not None:
        return _along(step, numbers, step.basis[site].detach().cpu().double() * mask)
    given = next(iter(numbers.values()))
    shape = given.shape if given.dim() else mask.shape
    chosen = mask.reshape(-1, *(1 for _ in shape[1:]))
    gain, bias = torch.ones(shape, dtype=torch.float64), torch.zeros(shape, dtype=torch.float64)
    if step.name == "scale":
        gain = torch.where(chosen, given, gain)
    elif step.name == "add":
        bias = torch.where(chosen, given, bias)
    else:
        gain, bias = torch.where(chosen, 0.0, gain), torch.where(chosen, given, bias)
    return gain, bias


def _along(step: Step, numbers: Mapping[str, Tensor], basis: Tensor) -> tuple[Tensor, Tensor]:
    """The edit along directions as a matrix `[unit, unit]` (or a gain of one) and an offset `[unit]`."""
    size, given = len(basis), next(iter(numbers.values()))
    spread = given.expand(size) if step.name != "rotate" else given
    if step.name == "add":
        return torch.ones(basis.shape[1], dtype=torch.float64), spread @ basis
    if step.name == "rotate":
        cos, sin = given.deg2rad().cos(), given.deg2rad().sin()
        inner, constant = torch.stack([torch.stack([cos, -sin]), torch.stack([sin, cos])]), torch.zeros(2).double()
    elif step.name == "scale":
        inner, constant = spread.diag(), torch.zeros(size).double()
    else:
        inner, constant = torch.zeros(size, size).double(), spread
    change = basis.T @ (inner - torch.eye(size).double()) @ torch.linalg.pinv(basis).T
    return torch.eye(basis.shape[1]).double() + change, constant @ basis


def _task(model: nn.Module, site: Site, gain: Tensor, bias: Tensor) -> _Task:
    """Which layer takes the edit of a site into its weights, and with which numbers."""
    module, reads, distance = find_module(model, site.path), site.at == "input", 0
    if site.leaf not in (None, 0):
        raise _refusal(site, "it is one of several tensors of a module")
    if not reads and site.where == "loop" and has_loop(module):
        raise _refusal(site, "it acts inside the layer's loop")
    _check_weights(model, module, site)
    if not reads and layout(module) is None and not isinstance(module, (*_NORMS, nn.RMSNorm)):
        module, distance = _reader(model, module, site)
        reads = True
        _check_weights(model, module, site)
    if reads and (layout(module) is None or isinstance(module, nn.Embedding)):
        raise _refusal(site, f"a {type(module).__name__} is no linear layer")
    if getattr(module, "weight", None) is None:
        raise _refusal(site, f"the {type(module).__name__} has no weights")
    return _Task(site, module, reads, distance, *_flat(site, gain, bias, (inputs if reads else outputs)(module)))


def _check_function(pending: Mapping[str, _Change], reads: Sequence[_Task], puts: Sequence[_Task]) -> None:
    """Each layer with its new weights is run beside the edited one, before anything is written."""
    last = {task.module: task for task in (*reads, *puts)}
    for module, task in last.items():
        new = {
            change.name.rpartition(".")[2]: change.value
            for change in pending.values()
            if change.new_in is module or any(change.parameter is own for own in module._parameters.values())
        }
        edits = [[(one.gain, one.bias) for one in side if one.module is module] for side in (reads, puts)]
        reason = why_other(module, new, *edits)
        if reason:
            raise _refusal(task.site, reason)


def _check_weights(model: nn.Module, module: nn.Module, site: Site) -> None:
    """A layer whose weights cannot be edited exactly is refused before anybody asks for their shape."""
    reason = None if getattr(module, "weight", None) is None else why_not_exact(module, model=model)
    if reason is not None:
        raise _refusal(site, reason)


class _Weights:
    """The parameters of one layer, checked to belong to it alone, with the changes that earlier steps ask for."""

    def __init__(
        self, model: nn.Module, module: nn.Module, site: Site, pending: dict[str, _Change], new_bias: bool
    ) -> None:
        self.model, self.module, self.site, self.pending, self.new_bias = model, module, site, pending, new_bias

    @property
    def has_bias(self) -> bool:
        """Whether the layer has a bias, or is about to get one."""
        return getattr(self.module, "bias", None) is not None or self._new_bias_name() in self.pending

    def _new_bias_name(self) -> str:
        return f"{self.get('weight')[0].rpartition('.')[0]}.bias".lstrip(".")

    def bias(self, offset: Tensor) -> tuple[str, nn.Parameter, Tensor, nn.Module | None]:
        """As `get("bias")`, and the layer if it has none and gets one to hold `offset` `[unit]`."""
        if getattr(self.module, "bias", None) is not None:
            return *self.get("bias"), None
        name, (_, weight, _) = self._new_bias_name(), self.get("weight")
        if not self.new_bias:
            raise _refusal(self.site, "the layer has no bias to hold the constant", mend="bake(..., new_bias=True)")
        known = self.pending.get(name)
        if known is not None:
            return name, known.parameter, known.value, self.module
        new = nn.Parameter(weight.new_zeros(offset.shape), requires_grad=weight.requires_grad)
        return name, new, torch.zeros_like(offset), self.module

    def get(self, name: str) -> tuple[str, nn.Parameter, Tensor]:
        """The full name, the parameter and its value so far."""
        reason = why_not_exact(self.module, name, model=self.model)
        if reason is not None:
            raise _refusal(self.site, reason)
        parameter = self.module._parameters[name]
        assert parameter is not None
        full = next(full for full, other in self.model.named_parameters() if other is parameter)
        known = self.pending.get(full)
        wide = torch.promote_types(parameter.dtype, torch.float64)
        return full, parameter, parameter.detach().to(wide) if known is None else known.value


def _read(weights: _Weights, gain: Tensor, bias: Tensor) -> list[_Change]:
    module, site = weights.module, weights.site
    name, parameter, weight = weights.get("weight")
    gain, bias = gain.to(weight), bias.to(weight)
    matrix = by_input(module, weight)  # [out, in, …] of each group
    groups = matrix.shape[0]
    if gain.dim() == 2:
        changed = torch.einsum("goi...,gij->goj...", matrix, _by_group(site, gain, groups))
    else:
        columns = gain.reshape(groups, 1, -1, *(1 for _ in matrix.shape[3:]))
        changed = torch.where(columns == 0, torch.zeros_like(matrix), matrix * columns)
    changes = [_Change(name, parameter, from_input(module, changed, weight.shape))] if bool((gain != 1).any()) else []
    if bool((bias != 0).any()):
        if isinstance(module, TRANSPOSED) or (isinstance(module, CONVOLUTIONS) and not _unpadded(module)):
            raise _refusal(site, "a constant does not reach into the padding of a convolution")
        shift = (matrix * bias.reshape(groups, 1, -1, *(1 for _ in matrix.shape[3:]))).flatten(2).sum(2).reshape(-1)
        name, parameter, offset, new_in = weights.bias(shift)
        changes.append(_Change(name, parameter, offset + shift, new_in))
    return changes


def _put_out(weights: _Weights, gain: Tensor, bias: Tensor) -> list[_Change]:
    module, site = weights.module, weights.site
    name, parameter, weight = weights.get("weight")
    gain, bias = gain.to(weight), bias.to(weight)
    if gain.dim() == 2 and layout(module) is None:
        raise _refusal(site, f"a {type(module).__name__} scales each unit by itself")
    rows = by_output(module, weight)  # [out, …]
    if gain.dim() == 2:
        groups = int(getattr(module, "groups", 1))
        blocks = _by_group(site, gain, groups)
        changed = torch.einsum("gij,gj...->gi...", blocks, rows.unflatten(0, (groups, -1))).flatten(0, 1)
    else:
        changed = rows * gain.reshape(-1, *(1 for _ in rows.shape[1:]))
    if isinstance(module, nn.Embedding):
        return [_Change(name, parameter, from_output(module, changed + bias[:, None], weight.shape))]
    changes = [_Change(name, parameter, from_output(module, changed, weight.shape))] if bool((gain != 1).any()) else []
    if weights.has_bias or bool((bias != 0).any()):
        name, parameter, offset, new_in = weights.bias(bias)
        turned = gain @ offset if gain.dim() == 2 else offset * gain
        changes.append(_Change(name, parameter, turned + bias, new_in))
    return changes


def _by_group(site: Site, gain: Tensor, groups: int) -> Tensor:
    """A matrix over units as `[group, unit, unit]` over those of each group, which alone share a layer's weights."""
    size = len(gain) // groups
    within = gain.reshape(groups, size, groups, size).diagonal(dim1=0, dim2=2).movedim(-1, 0)
    crossing = gain - torch.block_diag(*within)
    if bool((crossing.abs() > 1e-12 * gain.abs().max()).any()):  # less is the rounding of a pseudoinverse
        raise _refusal(site, "a direction crosses the groups of a convolution")
    return within


def _unpadded(module: nn.Module) -> bool:
    padding = getattr(module, "padding", 0)
    if isinstance(padding, str):
        return padding == "valid"
    return all(size == 0 for size in (padding if isinstance(padding, Sequence) else (padding,)))


def _reader(model: nn.Module, module: nn.Module, site: Site) -> tuple[nn.Module, int]:
    """The linear layer that reads what a module of a Sequential puts out, and how many modules on it stands."""
    parent = find_module(model, site.path.rpartition(".")[0])
    following = []
    if isinstance(parent, nn.Sequential) and site.path:
        names = list(parent._modules)
        following = [parent._modules[name] for name in names[names.index(site.path.rpartition(".")[2]) + 1 :]]
    distance, reader = next(
        ((count, layer) for count, layer in enumerate(following, 1) if not isinstance(layer, nn.Identity)), (0, None)
    )
    if reader is None or layout(reader) is None or isinstance(reader, nn.Embedding):
        raise _refusal(site, f"what a {type(module).__name__} puts out does not go straight into a linear layer")
    return reader, distance


def _flat(site: Site, gain: Tensor, bias: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Gain and offset of each number that the layer reads or puts out, `[size]`."""
    index = torch.arange(size)
    place = Site(site.path, site.unit_axis, part=site.part)
    slots, _, _ = place.view(index)
    if slots.shape[: bias.dim()] != bias.shape:
        raise _refusal(site, f"its {tuple(bias.shape)} numbers are not the layer's {size}")
    flat_gain, flat_bias = torch.ones(size, dtype=gain.dtype), torch.zeros(size, dtype=gain.dtype)
    if gain.dim() > bias.dim():  # a matrix over the units
        if slots.dim() > 1:
            raise _refusal(site, "its units are vectors, which have no common directions")
        flat_gain = torch.eye(size, dtype=gain.dtype)
        flat_gain[slots[:, None], slots] = gain
        flat_bias[slots] = bias
        return flat_gain, flat_bias
    features = slots.shape[gain.dim() :]
    flat_gain[slots.reshape(-1)] = gain.reshape(*gain.shape, *(1 for _ in features)).expand(slots.shape).reshape(-1)
    flat_bias[slots.reshape(-1)] = bias.reshape(*gain.shape, *(1 for _ in features)).expand(slots.shape).reshape(-1)
    return flat_gain, flat_bias


def _refusal(
    site: Site, reason: str, mend: str = "keep it as an edit: edit.save, and `with edit.on(model)`"
) -> UnsupportedError:
    return UnsupportedError(f"the edit at site {site} cannot be baked: {reason}", mend=mend)
