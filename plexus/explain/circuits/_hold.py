"""Clamps that stay on during training: what a network learns when some of its units are held.

An edit acts whenever the model runs, so it acts in training too: the gradient flows through what the edit lets pass (a
unit that is scaled by a passes a times its gradient, a unit that is clamped none), and optimizer steps change the
weights below it as they stand. `held` is the same without a `with`, for training loops that switch clamps on and off.

Source: Singh et al. 2024 (clamping activations through training to see what a circuit's emergence needs).
"""

from __future__ import annotations

import contextlib
from types import TracebackType

from torch import nn

from plexus.edit import Edit
from plexus.errors import UnsupportedError
from plexus.explain._measure import check_edit, check_model


class Held:
    """An edit that acts on a model until `release()`, or until the `with` is left."""

    def __init__(self, model: nn.Module, edit: Edit) -> None:
        self.edit = edit
        self._stack = contextlib.ExitStack()
        self._stack.enter_context(edit.on(model))
        self._active = True

    @property
    def active(self) -> bool:
        """Whether the edit still acts."""
        return self._active

    def release(self) -> None:
        """Stop; the model is as training has made it.

        Raises:
            UnsupportedError: if it was released before.
            SiteNotReached: if the model ran meanwhile and never came by a site.
        """
        if not self._active:
            raise UnsupportedError("this clamp was released already")
        self._active = False
        self._stack.close()

    def __enter__(self) -> Held:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._active:
            self._active = False
            self._stack.__exit__(kind, error, trace)


def held(model: nn.Module, edit: Edit) -> Held:
    """Hold units of a model at what an edit says, through passes, gradients and optimizer steps, until released.

    Args:
        model: any module.
        edit: a value, `edit.clamp(chosen, 0.0)`; of learnt numbers the gradient flows into them.

    Raises:
        As `edit.on(model)`.

    Examples:
        >>> import torch
        >>> from plexus import edit
        >>> from plexus.units import Neurons, Site
        >>> model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
        >>> site = Site("0", "b u")
        >>> clamp = held(model, edit.clamp(Neurons.of({site: 3}, {site: [1]}), 0.0))
        >>> before, optimizer = model[0].weight.detach().clone(), torch.optim.SGD(model.parameters(), lr=0.1)
        >>> for _ in range(3):
        ...     optimizer.zero_grad()
        ...     model(torch.ones(4, 2)).square().sum().backward()
        ...     optimizer.step()
        >>> clamp.release()
        >>> (model[0].weight != before).any(1).tolist()
        [True, False, True]
    """
    check_model(model)
    check_edit(edit, "held(model, edit.clamp(chosen, 0.0))")
    return Held(model, edit)
