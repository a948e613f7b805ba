"""What a local learning rule is: a change of weights from what the two sides of the synapses did."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

__all__ = ["Rule", "Signals"]


@dataclass(frozen=True)
class Signals:
    """What a rule may look at, over one step or many, time first; None where the rule did not ask for it.

    Examples:
        >>> Signals(torch.zeros(5, 2, 3), torch.zeros(5, 2, 4)).membrane is None
        True
    """

    pre: Tensor  # what arrives at the synapses         [time, batch, pre]
    post: Tensor  # what the neurons emit               [time, batch, post]
    membrane: Tensor | None = None  # their potential after each step    [time, batch, post]


@runtime_checkable
class Rule(Protocol):
    """A local rule: `state = rule.init(batch, pre, post)`, `delta, state = rule.step(weight, signals, None, state)`.

    The rule is a function of its arguments: it keeps what it remembers in the state that it returns, and a stretch of
    time may be handed over whole or in pieces. `Plastic` applies the changes and keeps the bounds.

    Attributes:
        needs: which of the `Signals` it reads.
        sign: what multiplies a change before it is added to the weight; -1 for a rule that returns a gradient.
        reduction: how the samples of a batch share one change, `"mean"` or `"sum"`.
        acts: `"step"` if a change takes effect at the next step, `"sequence"` if after the whole sequence.

    Examples:
        >>> from plexus.learn.plasticity import PairSTDP
        >>> isinstance(PairSTDP(), Rule)
        True
    """

    needs: ClassVar[tuple[str, ...]]
    sign: ClassVar[int]
    reduction: Literal["mean", "sum"]
    acts: Literal["step", "sequence"]

    def init(self, batch: int, pre: int, post: int, *, dtype: torch.dtype | None = None) -> Any:
        """What the rule remembers before the first step, batch first in each tensor."""
        ...

    def step(
        self,
        weight: Tensor,
        signals: Signals,
        modulator: Tensor | None,
        state: Any,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Any]:
        """The change of the weight `[post, pre]` and the new state; modulator: None, a number, or `[batch]`."""
        ...
