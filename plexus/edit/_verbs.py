"""The verbs of editing. Each stands in two forms:

with edit.scale(model, chosen, 0.0): ...      acts on the model until the `with` is left
cut = edit.scale(chosen, 0.0)                 a value: use it with `cut.on(model)`, save it, compare it
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any, ParamSpec, Protocol, cast, overload

import torch
from torch import Tensor, nn

from plexus.edit._edit import Edit
from plexus.edit._numbers import Given, in_memory, read_numbers
from plexus.edit._rows import Place, sources
from plexus.edit._step import Name, Step
from plexus.errors import DtypeError, RangeError, ShapeError, SiteError, UnknownNameError
from plexus.probe._collect import POSITIONS, Positions
from plexus.units import Engine, Neurons, Recording, Site

__all__ = ["Verb", "add", "clamp", "make", "patch", "replace", "scale", "verb"]

P = ParamSpec("P")
Basis = Tensor | Mapping[Site, Tensor]


class Verb(Protocol[P]):
    """A verb in its two forms."""

    @overload
    def __call__(self, model: nn.Module, /, *args: P.args, **kwargs: P.kwargs) -> AbstractContextManager[Engine]: ...
    @overload
    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Edit: ...


def verb(make: Callable[P, Edit]) -> Verb[P]:
    """Give a function that makes an edit its second form, in which the model comes first."""

    @functools.wraps(make)
    def either(*args: Any, **kwargs: Any) -> Any:
        if args and isinstance(args[0], nn.Module):
            return make(*args[1:], **kwargs).on(args[0])
        return make(*args, **kwargs)

    return cast(Verb[P], either)


@verb
def scale(neurons: Neurons, factor: Given, *, positions: Positions = "all", basis: Basis | None = None) -> Edit:
    """Multiply the values of units by a factor; 0 silences them, whatever they were.

    Args:
        neurons: the units.
        factor: one number, a tensor with one per unit of the site or per chosen unit, or either per site.
        positions: "all" tokens, those of the "prompt", the "generated" ones, or the "last" real one of each pass.
        basis: directions `[unit]` or `[direction, unit]` (per site) along which to scale instead of per unit.

    Returns:
        The edit; with a model as the first argument, a context in which it acts on that model.

    Raises:
        ShapeError, RangeError, DtypeError: the numbers do not fit the units, or hold a NaN or infinity.

    Examples:
        >>> import torch
        >>> from plexus import edit
        >>> model = nn.Sequential(nn.Identity())
        >>> first = Neurons.of({Site("0"): 2}, {Site("0"): [0]})
        >>> with edit.scale(model, first, 0.5):
        ...     model(torch.ones(1, 2))
        tensor([[0.5000, 1.0000]])
    """
    return make("scale", neurons, {"factor": factor}, positions, basis)


@verb
def clamp(
    neurons: Neurons,
    value: Given | None = None,
    *,
    low: Given | None = None,
    high: Given | None = None,
    positions: Positions = "all",
    basis: Basis | None = None,
) -> Edit:
    """Hold the values of units at `value`, or inside `[low, high]`.

    Args:
        neurons: the units.
        value: what they are set to; one number, one per unit, or either per site.
        low: lower limit, instead of a value.
        high: upper limit, instead of a value.
        positions: as in `scale`.
        basis: as in `scale`; the coordinates along the directions are held.

    Raises:
        RangeError: neither a value nor a limit, both, or a lower limit above the upper one.

    Examples:
        >>> import torch
        >>> from plexus import edit
        >>> model = nn.Sequential(nn.Identity())
        >>> units = Neurons.of({Site("0"): 3}, {Site("0"): [0, 1]})
        >>> with edit.clamp(model, units, low=0.0, high=1.0):
        ...     model(torch.tensor([[-2.0, 0.5, 7.0]]))
        tensor([[0.0000, 0.5000, 7.0000]])
    """
    limits = {name: given for name, given in (("low", low), ("high", high)) if given is not None}
    if (value is None) == (not limits):
        raise RangeError("clamp takes a value, or limits", given=f"value={value!r}, low={low!r}, high={high!r}")
    return make("clamp", neurons, limits if value is None else {"value": value}, positions, basis)


@verb
def replace(neurons: Neurons, values: Given, *, positions: Positions = "all") -> Edit:
    """Replace the values of units by given ones, for instance by their means over a data set.

    Args:
        neurons: the units.
        values: one number per unit of the site or per chosen unit (a vector each where units have features), or a
            mapping of such per site.
        positions: as in `scale`.

    Examples:
        >>> import torch
        >>> from plexus import edit
        >>> model = nn.Sequential(nn.Identity())
        >>> units = Neurons.of({Site("0"): 3}, {Site("0"): [0, 2]})
        >>> with edit.replace(model, units, torch.tensor([5.0, 6.0])):
        ...     model(torch.zeros(1, 3))
        tensor([[5., 0., 6.]])
    """
    return make("replace", neurons, {"value": values}, positions, None)


@verb
def add(neurons: Neurons, amount: Given, *, positions: Positions = "all", basis: Basis | None = None) -> Edit:
    """Add to the values of units, or along directions.

    Args:
        neurons: the units.
        amount: one number, one per unit or per chosen unit, or either per site; with a basis, how far to go along each
            direction.
        positions: as in `scale`.
        basis: directions `[unit]` or `[direction, unit]`, per site; they reach the chosen units only.

    Examples:
        >>> import torch
        >>> from plexus import edit
        >>> model = nn.Sequential(nn.Identity())
        >>> units = ~Neurons.of({Site("0"): 2})
        >>> with edit.add(model, units, 2.0, basis=torch.tensor([0.6, 0.8])):
        ...     model(torch.zeros(1, 2))
        tensor([[1.2000, 1.6000]])
    """
    return make("add", neurons, {"amount": amount}, positions, basis)


@verb
def patch(neurons: Neurons, recording: Recording, *, rows: Mapping[Place, Place] | None = None) -> Edit:
    """Put values from a recording in the place of those of this run.

    Args:
        neurons: the units.
        recording: holds all sites of the units.
        rows: for each target its source: samples (`{0: 1}`: sample 1 of the recording goes to sample 0 of the batch, at
            the same positions), or places (`{(0, 5): (1, 3)}`: sample and position). None: every row to its own place.
            Targets count samples within the batch that runs. Pooled rows, which have no position, go to every position.

    Raises:
        SiteError: the recording lacks a site or a source; on leaving, if the model ran and no target was met.
        ShapeError: two rows would go to one place.

    Examples:
        >>> import torch
        >>> from plexus import edit
        >>> from plexus.units import Table
        >>> model, site = nn.Sequential(nn.Identity()), Site("0")
        >>> record = Recording({site: torch.tensor([[1.0, 2.0], [3.0, 4.0]])}, {site: Table([0, 1])})
        >>> with edit.patch(model, Neurons.of({site: 2}, {site: [1]}), record, rows={0: 1}):
        ...     model(torch.zeros(2, 2))
        tensor([[0., 4.],
                [0., 0.]])
    """
    _check_neurons(neurons)
    if not isinstance(recording, Recording):
        raise DtypeError("a patch takes its values from a recording", given=type(recording).__name__)
    chosen = [site for site, count in neurons.counts.items() if count]
    return Edit((Step("patch", neurons, source=sources(recording, chosen, rows)),))


def make(
    name: Name,
    neurons: Neurons,
    numbers: Mapping[str, Given],
    positions: Positions,
    basis: Basis | None,
    *,
    independent: bool = True,
) -> Edit:
    """The edit of one operation, with its units, numbers, positions and directions checked."""
    _check_neurons(neurons)
    if positions not in POSITIONS:
        raise UnknownNameError.among("choice of positions", str(positions), POSITIONS)
    directions = None if basis is None else _directions(neurons, basis, independent)
    sizes = None if directions is None else {site: len(rows) for site, rows in directions.items()}
    read = {
        key: read_numbers(key, value, neurons, finite=key not in ("low", "high"), directions=sizes)
        for key, value in numbers.items()
    }
    if "low" in read and "high" in read:
        for site in read["low"].values:
            mask = neurons.mask(site)
            ends = [read[end].of(site, mask).detach().cpu() for end in ("low", "high")]
            wide = max(end.dim() for end in ends)  # one may be of units, the other of their features
            low, high = (end.reshape(*end.shape, *[1] * (wide - end.dim())) if end.dim() else end for end in ends)
            if bool(((low > high)[mask] if wide else low > high).any()):
                raise RangeError("the lower limit lies above the upper one", given=str(site))
    return Edit((Step(name, neurons, read, positions, directions),))


def _check_neurons(neurons: object) -> None:
    if not isinstance(neurons, Neurons):
        raise DtypeError(
            "an edit needs a set of units", given=type(neurons).__name__, expected="Neurons, e.g. scores.top(10)"
        )


def _directions(neurons: Neurons, basis: Basis, independent: bool) -> dict[Site, Tensor]:
    out = {}
    for site, count in neurons.counts.items():
        if not count:
            continue
        if isinstance(basis, Mapping) and site not in basis:
            raise SiteError("no directions were given for a site", given=str(site))
        rows = torch.as_tensor(basis[site] if isinstance(basis, Mapping) else basis)
        rows = rows[None] if rows.dim() == 1 else rows
        if rows.dim() != 2 or rows.shape[1] != neurons.sizes[site]:
            raise ShapeError(
                f"the directions do not fit site {site}",
                given=tuple(rows.shape),
                expected=f"[direction, {neurons.sizes[site]}]",
            )
        rows = in_memory(rows if rows.is_floating_point() else rows.float())
        if not bool(rows.isfinite().all()):
            raise RangeError("a direction holds a NaN or an infinite number", given=str(site))
        reached = rows.detach().cpu().double() * neurons.mask(site)
        if independent and int(torch.linalg.matrix_rank(reached)) < len(rows):
            raise RangeError(
                f"the directions at site {site} depend on each other, or one is zero on the chosen units",
                mend="pass independent directions, e.g. an orthonormal basis",
            )
        out[site] = rows
    return out
