"""An edit as a value: which units, which operation, which numbers."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import reduce

import torch
from torch import Tensor, nn

from plexus.edit._step import Step
from plexus.errors import DtypeError, SiteError, UnsupportedError
from plexus.units import Engine, Neurons, attach, fingerprint

__all__ = ["Edit"]


@dataclass(frozen=True, eq=False)
class Edit:
    """One or several operations on units, to be used on a model, kept in a file, or made again on other units.

    Made by `scale`, `clamp`, `replace`, `add` and `patch`. Printing shows what it does.

    Attributes:
        steps: the operations, in order.

    Examples:
        >>> import torch
        >>> from plexus import edit
        >>> from plexus.units import Neurons, Site
        >>> model = nn.Sequential(nn.Identity())
        >>> second = Neurons.of({Site("0"): 2}, {Site("0"): [1]})
        >>> both = edit.scale(second, 0.0).then(edit.add(second, 3.0))
        >>> both
        Edit: scale 1 unit at 1 site, then add 1 unit at 1 site
        >>> with both.on(model):
        ...     model(torch.ones(1, 2))
        tensor([[1., 3.]])
    """

    steps: tuple[Step, ...]

    @property
    def neurons(self) -> Neurons:
        """All units that the edit changes."""
        return reduce(lambda one, other: one | other, (step.neurons for step in self.steps))

    @property
    def model(self) -> str | None:
        """Fingerprint of the model that the edit was made for, if known."""
        return next((step.neurons.model for step in self.steps if step.neurons.model is not None), None)

    def then(self, following: Edit) -> Edit:
        """This edit followed by another one."""
        if not isinstance(following, Edit):
            raise DtypeError("an edit is followed by an edit", given=type(following).__name__)
        if self.model is not None and following.model is not None and self.model != following.model:
            raise UnsupportedError("edits of two models do not mix", given=following.model, expected=self.model)
        return Edit(self.steps + following.steps)

    def moved(self, to: Neurons | Callable[[Neurons], Neurons]) -> Edit:
        """The same edit on other units, as many at each site.

        Numbers that were given for every unit of a site stay with their units; numbers that were given one per chosen
        unit go along in order.

        Args:
            to: the other units, or what gives them from those of a step (`lambda units: units.random_like(generator)`).

        Raises:
            ShapeError: the numbers of units differ.
            UnsupportedError: the edit acts along directions, which belong to their units.
        """
        place = to if callable(to) else lambda _: to
        return Edit(tuple(step.moved(place(step.neurons)) for step in self.steps))

    def redirected(self, generator: torch.Generator) -> Edit:
        """The same edit along random directions, of the same lengths and angles to each other, within the same units.

        Directions that are the same at several sites stay the same.

        Raises:
            UnsupportedError: a step does not act along directions; `moved` puts it on other units.

        Examples:
            >>> import torch
            >>> from plexus import edit
            >>> from plexus.units import Neurons, Site
            >>> along = edit.scale(~Neurons.of({Site("0"): 4}), 0.0, basis=torch.tensor([3.0, 4.0, 0.0, 0.0]))
            >>> other = along.redirected(torch.Generator().manual_seed(0))
            >>> round(float(other.steps[0].basis[Site("0")].norm()), 4)
            5.0
        """
        if not isinstance(generator, torch.Generator):
            raise DtypeError("a draw needs a torch.Generator", given=type(generator).__name__)
        known: dict[bytes, Tensor] = {}
        return Edit(tuple(step.redirected(generator, known) for step in self.steps))

    @contextlib.contextmanager
    def on(self, model: nn.Module, *, anyway: bool = False) -> Iterator[Engine]:
        """Let the edit act whenever the model runs, until the `with` is left.

        Args:
            model: the model; its weights and buffers are not touched.
            anyway: also on a model of another fingerprint than the edit was made for.

        Raises:
            UnsupportedError: the edit was made for another model, or the model or a site cannot be edited exactly.
            SiteError, SiteNotReached: a site is not in the model, or the model ran and never came by.
        """
        self._check_model(model, anyway)
        actions = [action for step in self.steps for action in step.actions()]
        with attach(model, actions) as engine:
            yield engine
        idle = [action.site for action in actions if action.ran and not action.met]
        if idle:
            raise SiteError(
                "the patch never met one of its rows",
                given=", ".join(map(str, idle[:6])),
                mend="samples count within the batch and positions as the model counts them; name them with rows=",
            )

    def _check_model(self, model: nn.Module, anyway: bool) -> None:
        if not isinstance(model, nn.Module):
            raise DtypeError("an edit acts on a torch module", given=type(model).__name__)
        if self.model is not None and not anyway and fingerprint(model) != self.model:
            raise UnsupportedError(
                "the edit was made for another model",
                given=fingerprint(model),
                expected=self.model,
                mend="edit.on(model, anyway=True) if the sites mean the same there",
            )

    def for_model(self, model: nn.Module) -> Edit:
        """The same edit, noted as made for this model."""
        mark = fingerprint(model)
        return Edit(tuple(replace(step, neurons=_marked(step.neurons, mark)) for step in self.steps))

    def __repr__(self) -> str:
        return "Edit: " + ", then ".join(_words(step) for step in self.steps)


def _marked(neurons: Neurons, mark: str) -> Neurons:
    if neurons.model is not None:
        return neurons
    return Neurons({site: neurons.mask(site) for site in neurons.sites}, mark)


def _words(step: Step) -> str:
    units, sites = len(step.neurons), sum(count > 0 for count in step.neurons.counts.values())
    where = "" if step.positions == "all" else f", {step.positions} tokens"
    how = "" if step.basis is None else " along directions"
    return f"{step.name} {units} unit{'s' * (units != 1)} at {sites} site{'s' * (sites != 1)}{how}{where}"
