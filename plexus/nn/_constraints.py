"""Signs that weights must keep: Dale's law, by projection or by parametrization.

    projection        w ← Π(w) after every step of the optimiser; w ← max(w, 0) prunes to exact zeros that can regrow
    parametrization   w = s · softplus(ρ), learned in ρ; never zero, the gradient of a small weight shrinks with it

A layer declares what it needs in `constraints()`; `constrain` declares it for a parameter of any other module.

Source: Dale's principle as in Song, Yang & Wang 2016 (rectified weights) and Cornford et al. 2021 (projection after
each step).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils.hooks import RemovableHandle

from plexus.errors import PlexusError, RangeError, ShapeError, UnknownNameError, UnsupportedError

__all__ = [
    "Constraint",
    "DaleSigns",
    "Masked",
    "NonNegative",
    "constrain",
    "constrained_parameters",
    "parametrize_",
    "project_",
    "project_after_step",
]

_DECLARED = "_plexus_constraints"
MASKED = "_plexus_masked"  # names of the parameters that have a mask beside them, see `_masks`
_SMALLEST = 1e-6  # what an exact zero becomes under softplus, which has none


class Constraint(nn.Module):
    """A set of allowed weights: `project` returns the nearest allowed one, `forward` maps any number into the set.

    Subclasses say both, and `right_inverse`, which undoes `forward`; torch's parametrizations use the last two.

    Examples:
        >>> isinstance(NonNegative(), Constraint)
        True
    """

    def project(self, weight: Tensor) -> Tensor:
        """The nearest allowed weight."""
        raise NotImplementedError

    def forward(self, raw: Tensor) -> Tensor:
        """An allowed weight for any number."""
        raise NotImplementedError

    def right_inverse(self, weight: Tensor) -> Tensor:
        """A number that `forward` maps to this weight."""
        raise NotImplementedError


class NonNegative(Constraint):
    """Weights >= 0.

    Examples:
        >>> NonNegative().project(torch.tensor([-1.0, 2.0]))
        tensor([0., 2.])
        >>> NonNegative()(NonNegative().right_inverse(torch.tensor([0.5, 2.0])))
        tensor([0.5000, 2.0000])
    """

    def project(self, weight: Tensor) -> Tensor:
        """max(w, 0)."""
        return weight.clamp(min=0)

    def forward(self, raw: Tensor) -> Tensor:
        """softplus(ρ)."""
        return nn.functional.softplus(raw)

    def right_inverse(self, weight: Tensor) -> Tensor:
        """log(exp(w) - 1); an exact zero becomes the smallest weight kept, 1e-6.

        Raises:
            RangeError: a weight is negative.
        """
        if bool((weight < 0).any()):
            raise RangeError(
                "a weight is negative", given=weight.min().item(), expected=">= 0", mend="project it first"
            )
        kept = weight.clamp(min=_SMALLEST)
        return kept + torch.log(-torch.expm1(-kept))


class DaleSigns(Constraint):
    """Weights whose sign is that of the unit they come from: `signs[j] w[i, j] >= 0` (Dale's law).

    Args:
        signs: +1 or -1 for each unit along `dim`.
        dim: the dimension of the weight that holds the units, the last one for `[to, from]`.

    Raises:
        RangeError: a sign is neither +1 nor -1.
        ShapeError: the signs are no vector, or a weight has another number of units.

    Examples:
        >>> DaleSigns(torch.tensor([1.0, -1.0])).project(torch.tensor([[0.5, 0.5], [-0.5, -0.5]]))
        tensor([[ 0.5000,  0.0000],
                [ 0.0000, -0.5000]])
    """

    signs: Tensor

    def __init__(self, signs: Tensor, dim: int = -1) -> None:
        super().__init__()
        if signs.dim() != 1:
            raise ShapeError("signs are one number per unit", given=tuple(signs.shape), expected="[unit]")
        if not bool((signs.abs() == 1).all()):
            raise RangeError("a sign is neither +1 nor -1", given=signs.unique().tolist())
        self.dim = dim
        self.register_buffer("signs", signs.detach().clone())

    def _signs(self, weight: Tensor) -> Tensor:
        if not -weight.dim() <= self.dim < weight.dim() or weight.shape[self.dim] != len(self.signs):
            raise ShapeError(
                "the signs do not fit the weight",
                given=f"{len(self.signs)} signs along dimension {self.dim} of {tuple(weight.shape)}",
            )
        shape = [1] * weight.dim()
        shape[self.dim] = -1
        return self.signs.to(weight).view(shape)

    def project(self, weight: Tensor) -> Tensor:
        """s max(s w, 0)."""
        signs = self._signs(weight)
        return torch.where(signs * weight > 0, weight, torch.zeros_like(weight))

    def forward(self, raw: Tensor) -> Tensor:
        """s softplus(ρ)."""
        return self._signs(raw) * nn.functional.softplus(raw)

    def right_inverse(self, weight: Tensor) -> Tensor:
        """log(exp(s w) - 1); an exact zero becomes the smallest weight kept, 1e-6.

        Raises:
            RangeError: a weight has the other sign.
        """
        return NonNegative().right_inverse(self._signs(weight) * weight)


class Masked(Constraint):
    """Weights that exist, m ⊙ w, within another constraint if there is one.

    Args:
        mask: which weights exist, bool, of the weight's shape; kept as it is, so that changes of it count.
        inner: what those that exist must keep besides.

    Examples:
        >>> Masked(torch.tensor([True, False, True]), NonNegative()).project(torch.tensor([-1.0, 2.0, 3.0]))
        tensor([0., 0., 3.])
    """

    mask: Tensor

    def __init__(self, mask: Tensor, inner: Constraint | None = None) -> None:
        super().__init__()
        self.inner = inner
        self.register_buffer("mask", mask)

    def project(self, weight: Tensor) -> Tensor:
        """Zero where there is no synapse, the nearest allowed weight elsewhere."""
        allowed = weight if self.inner is None else self.inner.project(weight)
        return allowed * self.mask.to(weight)

    def forward(self, raw: Tensor) -> Tensor:
        """m ⊙ f(ρ)."""
        free: Tensor = raw if self.inner is None else self.inner(raw)
        return free * self.mask.to(raw)

    def right_inverse(self, weight: Tensor) -> Tensor:
        """A number that `forward` maps to the weight, where there is a synapse."""
        return weight if self.inner is None else self.inner.right_inverse(weight)


def constrain(module: nn.Module, name: str, constraint: Constraint) -> nn.Module:
    """Declare a constraint on one parameter of any module, so that `project_` and `parametrize_` know of it.

    The values stay as they are until one of the two is called.

    Args:
        module: the module that owns the parameter.
        name: of the parameter, e.g. `"weight"`.
        constraint: what it must keep.

    Returns:
        The module.

    Raises:
        UnknownNameError: the module has no such parameter.

    Examples:
        >>> layer = constrain(nn.Linear(3, 2), "weight", NonNegative())
        >>> project_(layer)
        >>> bool((layer.weight >= 0).all())
        True
    """
    if not isinstance(module._parameters.get(name), nn.Parameter):
        raise UnknownNameError.among("parameter", name, (key for key, _ in module.named_parameters(recurse=False)))
    declared = dict(module.__dict__.get(_DECLARED, {}))
    module.__dict__[_DECLARED] = {**declared, name: constraint}
    return module


def constrained_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter, Constraint]]:
    """Every constrained parameter of a model: its name, itself, and what it must keep.

    A shared parameter comes once; one that is parametrized keeps its constraint by itself and does not come.

    Examples:
        >>> [name for name, _, _ in constrained_parameters(constrain(nn.Linear(3, 2), "weight", NonNegative()))]
        ['weight']
    """
    seen: set[nn.Parameter] = set()
    for prefix, module, name, constraint in _declared(model):
        parameter = module._parameters.get(name)
        if parameter is not None and parameter not in seen:
            seen.add(parameter)
            yield f"{prefix}.{name}" if prefix else name, parameter, constraint


def _declared(model: nn.Module) -> Iterator[tuple[str, nn.Module, str, Constraint]]:
    for prefix, module in model.named_modules():
        own = getattr(module, "constraints", None)
        found: dict[str, Constraint] = dict(own()) if callable(own) else {}
        found |= module.__dict__.get(_DECLARED, {})
        for name in module.__dict__.get(MASKED, ()):
            found[name] = Masked(module.get_buffer(f"{name}_mask"), found.get(name))
        for name, constraint in found.items():
            yield prefix, module, name, constraint


def project_(model: nn.Module) -> None:
    """Move every constrained parameter to the nearest allowed value, in place.

    Raises:
        PlexusError: the model declares no constraint.

    Examples:
        >>> layer = constrain(nn.Linear(3, 2), "weight", NonNegative())
        >>> project_(layer)
        >>> bool((layer.weight >= 0).all())
        True
    """
    _project(_constrained(model))


def project_after_step(optimizer: torch.optim.Optimizer, model: nn.Module) -> RemovableHandle:
    """Project the constrained parameters of a model after each step of its optimiser, and once now.

    With SGD this is projected gradient descent. An adaptive optimiser (Adam) goes on averaging gradients that the
    projection has cut off: it is allowed, and behaves differently.

    Args:
        optimizer: any optimiser of torch. Parameters that are not its own are projected too.
        model: whose constraints hold, those declared by now.

    Returns:
        A handle; `handle.remove()`, or leaving `with handle:`, ends it.

    Raises:
        PlexusError: the model declares no constraint.

    Examples:
        >>> layer = constrain(nn.Linear(3, 2), "weight", NonNegative())
        >>> optimizer = torch.optim.SGD(layer.parameters(), lr=10.0)
        >>> handle = project_after_step(optimizer, layer)
        >>> layer(torch.ones(1, 3)).sum().backward()
        >>> optimizer.step()
        >>> layer.weight.max().item()       # a long step down ends at zero
        0.0
    """
    found = _constrained(model)  # the search through the modules costs more than the projection of small weights
    _project(found)
    return optimizer.register_step_post_hook(lambda *_: _project(found))


def parametrize_(model: nn.Module) -> nn.Module:
    """Replace every constrained parameter by a function of a free one, in place: w = softplus(ρ), or its negative.

    The weights stay what they are, except that exact zeros become 1e-6, and no optimiser can leave the allowed set.
    Make the optimiser after this. Initialise first what has an initialisation of its own (`initialise_ei`).

    Returns:
        The model.

    Raises:
        PlexusError: the model declares no constraint that is not parametrized already.
        RangeError: a weight lies outside what is allowed; `project_` first.
        UnsupportedError: a constrained parameter is shared by two modules.

    Examples:
        >>> layer = constrain(nn.Linear(3, 2), "weight", NonNegative())
        >>> project_(layer)
        >>> layer = parametrize_(layer)
        >>> bool((layer.weight > 0).all()), [name for name, _ in layer.named_parameters()]
        (True, ['bias', 'parametrizations.weight.original'])
    """
    found = [entry for entry in _declared(model) if entry[1]._parameters.get(entry[2]) is not None]
    if not found:
        raise _nothing(model)
    if len({id(module._parameters[name]) for _, module, name, _ in found}) < len(found):
        raise UnsupportedError("a constrained parameter is shared, which a parametrization would undo")
    for _, module, name, constraint in found:
        parametrize.register_parametrization(module, name, constraint)
    return model


def _constrained(model: nn.Module) -> list[tuple[nn.Parameter, Constraint]]:
    found = [(parameter, constraint) for _, parameter, constraint in constrained_parameters(model)]
    if not found:
        raise _nothing(model)
    return found


@torch.no_grad()
def _project(found: list[tuple[nn.Parameter, Constraint]]) -> None:
    for parameter, constraint in found:
        parameter.copy_(constraint.project(parameter))


def _nothing(model: nn.Module) -> PlexusError:
    return PlexusError(
        "nothing in this model is constrained",
        given=type(model).__name__,
        mend="use layers that declare constraints (EILinear, EIConv2d), or constrain(module, name, NonNegative())",
    )
