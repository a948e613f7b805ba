"""Heterogeneous delays without space: a layer that finds motifs of spikes over channels.

    evidence[t, b] = Σ_{a, δ} w[b, a, δ] A[t - δ, a] + β_b          δ = 1 … K steps

Spikes of a motif that are delayed by the right amounts arrive together; every delay of every pair has a weight of its
own. Source: Grimaldi & Perrinet 2023, section 2.1.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from plexus.data import EventStream
from plexus.errors import RangeError, ShapeError
from plexus.nn._delayed_synapses import DelayedSynapses, EventDriven, PastEvents

__all__ = ["HeterogeneousDelayLayer"]


class HeterogeneousDelayLayer(DelayedSynapses):
    """`evidence, state = HeterogeneousDelayLayer(100, 8, max_delay=20)(spikes)`; spikes `[time, batch, channel]`.

    Evidence `[time, batch, target]` are log odds of a motif's presence, to be trained with binary cross-entropy.

    Args:
        n_in: number of channels.
        n_out: number of target neurons.
        max_delay: longest delay in steps; there is one weight for each of 1 … max_delay.
        init: standard deviation of a target's summed weights at the start.
        dt: length of a step in ms.
        generator: draws the weights.

    Raises:
        RangeError: a size is below 1.
        ShapeError: an input does not fit.

    Examples:
        >>> layer = HeterogeneousDelayLayer(3, 1, max_delay=4)
        >>> motif = torch.zeros(1, 3, 4)
        >>> motif[0, [0, 1, 2], [2, 0, 1]] = 1.0                          # 0, then 2, then 1: delays 3, 1, 2
        >>> _ = layer.load_state_dict({"weight": motif, "bias": torch.zeros(1)}, strict=False)
        >>> spikes = torch.zeros(6, 1, 3)
        >>> spikes[1, 0, 0] = spikes[2, 0, 2] = spikes[3, 0, 1] = 1.0
        >>> layer(spikes)[0].flatten().tolist()                               # all arrive at step 4
        [0.0, 0.0, 0.0, 0.0, 3.0, 0.0]
    """

    axes = "t b u"

    def __init__(
        self,
        n_in: int,
        n_out: int,
        max_delay: int,
        *,
        init: float = 0.1,
        dt: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if min(n_in, n_out, max_delay) < 1:
            raise RangeError("sizes and the longest delay must be at least 1", given=(n_in, n_out, max_delay))
        self.n_in, self.n_out = n_in, n_out
        self._declare((n_out, n_in, max_delay), torch.ones(max_delay, dtype=torch.bool), init, dt, generator)

    def initial_state(self, batch: int, *, dtype: torch.dtype | None = None) -> PastEvents:
        """Silence so far, `[batch, delay, channel]`."""
        return PastEvents(self.weight.new_zeros(batch, self.delays, self.n_in, dtype=dtype))

    def forward(self, x: Tensor, state: PastEvents | None = None) -> tuple[Tensor, PastEvents]:
        """Log odds `[time, batch, target]` of the spikes x, and the steps to remember."""
        seen, past = self._window(x, state, (self.n_in,))
        if not len(x):
            return x.new_zeros(0, x.shape[1], self.n_out), PastEvents(past)
        out = functional.conv1d(seen.permute(1, 2, 0), self.effective.flip(2))
        return out.permute(2, 0, 1) + self.bias, PastEvents(past)

    def event_forward(self, stream: EventStream, steps: int | None = None) -> EventDriven:
        """The evidence `[time, target]` of one stream by visiting only the synapses that are there.

        Raises:
            ShapeError: the stream's addresses are not the layer's channels.
        """
        if stream.shape != (self.n_in,):
            raise ShapeError("the stream does not fit", given=stream.shape, expected=(self.n_in,))
        if steps is None:
            steps = int(stream.steps(self.dt)[-1]) + 1 if len(stream) else 0
        evidence, operations = self._arrivals(stream, steps, (1, 1), (0, 0))
        return EventDriven(evidence.flatten(1) + self.bias.detach().cpu(), operations)

    def extra_repr(self) -> str:
        """What `print(layer)` shows."""
        return f"{self.n_in}, {self.n_out}, max_delay={self.delays}, {self.count} synapses"
