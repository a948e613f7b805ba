"""Heterogeneous delays in space: one layer of spiking neurons that detects how things move.

    B⁺[t, c, y, x] = Σ_{p, δ, v, u} K[c, p, δ, v, u] A[t - δ, p, y + v, x + u]           δ = 1 … K steps: causal
    B  = max(B⁺, B⁻),    B⁻ is B⁺ of the events with their polarities swapped              a complex cell
    P(c | t, y, x) = sigmoid(B + β_c)

Without the maximum the mean of B over positions is Σ K · mean A whatever moves: it knows nothing of motion. All
positions share the kernel K, so learning is time- and space-invariant logistic regression on every synapse's weight.

Source: Grimaldi & Perrinet 2023, sections 2.2-2.4.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from plexus.data import EventStream
from plexus.errors import RangeError, ShapeError, UnknownNameError
from plexus.nn._delayed_synapses import DelayedSynapses, EventDriven, PastEvents

__all__ = ["DelayedConv", "rate_threshold", "winner_spikes"]


class DelayedConv(DelayedSynapses):
    """`evidence, state = DelayedConv(2, 8, delays=11, kernel=9)(events)`; events `[time, batch, polarity, y, x]`.

    Evidence `[time, batch, class, y', x']` are log odds, bias included; `spikes[t]` first counts at t + 1. Class is
    the unit that edits address.

    Args:
        polarities: number of input polarities (or channels).
        classes: number of target neurons at each place.
        delays: longest delay K in steps; there is one weight for each of 1 … K.
        kernel: height and width of the window, or one number for both.
        mask: `"disk"` keeps synapses within a circle, so that no direction is favoured; `"cone"` within a circle that
            grows with the delay up to that one, as what is slower than a limit does; None keeps the whole window.
        polarity_max: take the larger of the evidence and that of swapped polarities.
        padding: `"valid"`: only places whose window lies inside; `"same"`: all places, silence around.
        init: standard deviation of a target's summed weights at the start.
        dt: length of a step in ms.
        generator: draws the weights.

    Raises:
        RangeError: a size is below 1, or the polarities to swap are not two.
        ShapeError: an input does not fit.

    Examples:
        >>> layer = DelayedConv(2, 4, delays=5, kernel=3, generator=torch.Generator().manual_seed(0))
        >>> evidence, state = layer(torch.zeros(10, 1, 2, 8, 8))
        >>> evidence.shape, state.past.shape
        (torch.Size([10, 1, 4, 6, 6]), torch.Size([1, 5, 2, 8, 8]))
        >>> layer.prune_(0.9), layer.count                       # of 2·4 disks of 5 synapses at 5 delays
        (20, 20)
    """

    axes = "t b u y x"

    def __init__(
        self,
        polarities: int,
        classes: int,
        delays: int,
        kernel: int | tuple[int, int],
        *,
        mask: Literal["disk", "cone"] | None = "disk",
        polarity_max: bool = True,
        padding: Literal["valid", "same"] = "valid",
        init: float = 0.1,
        dt: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if mask not in ("disk", "cone", None):
            raise UnknownNameError.among("mask", str(mask), ("disk", "cone"))
        if padding not in ("valid", "same"):
            raise UnknownNameError.among("padding", padding, ("valid", "same"))
        if polarity_max and polarities != 2:
            raise RangeError(
                "only two polarities can be swapped", given=polarities, expected="2, or polarity_max=False"
            )
        self.kernel: tuple[int, int] = (kernel, kernel) if isinstance(kernel, int) else (kernel[0], kernel[1])
        if min(delays, *self.kernel) < 1:
            raise RangeError("delays and kernel must be at least 1", given=(delays, *self.kernel))
        if padding == "same" and not all(n % 2 for n in self.kernel):
            raise RangeError("a window needs a centre for padding='same'", given=self.kernel, expected="odd sizes")
        self.polarities, self.classes = polarities, classes
        self.polarity_max, self.padding = polarity_max, padding
        # random weights: with B⁺ = B⁻ everywhere the maximum would teach both polarities the same, for ever
        place = _window_mask(delays, *self.kernel, mask)
        self._declare((classes, polarities, delays, *self.kernel), place, init, dt, generator)

    def initial_state(self, batch: int, *, dtype: torch.dtype | None = None) -> PastEvents:
        """Silence so far, `[batch, delay, polarity, 1, 1]`: it stands for frames of any size."""
        return PastEvents(self.weight.new_zeros(batch, self.delays, self.polarities, 1, 1, dtype=dtype))

    def forward(self, x: Tensor, state: PastEvents | None = None) -> tuple[Tensor, PastEvents]:
        """Log odds `[time, batch, class, y', x']` of the events x, and the frames to remember."""
        seen, past = self._seen(x, state)
        if not len(x):
            height, width = (seen.shape[n + 3] - self.kernel[n] + 1 for n in range(2))
            return x.new_zeros(0, x.shape[1], self.classes, height, width), PastEvents(past)
        weight = self.effective.flip(2)  # the oldest frame comes first
        if self.polarity_max:
            weight = torch.cat([weight, weight.flip(1)])
        out = functional.conv3d(seen.permute(1, 2, 0, 3, 4), weight)
        if self.polarity_max:
            out = torch.maximum(*out.chunk(2, dim=1))
        return out.permute(2, 0, 1, 3, 4) + self.bias.view(-1, 1, 1), PastEvents(past)

    def at(self, x: Tensor, places: Tensor) -> Tensor:
        """Log odds at chosen places only: `forward(x)[0][t, b, :, y, x]`, `[place, class]`.

        A few thousand places drawn anew for each step of learning are a sample of the whole loss at a fraction of its
        cost, and less alike than the neighbours within a few movies.

        Args:
            x: events `[time, batch, polarity, y, x]`.
            places: `[place, 4]`, int64: t, b, y, x of the output.

        Raises:
            RangeError: a place lies outside the output.

        Examples:
            >>> layer = DelayedConv(2, 4, delays=5, kernel=3, generator=torch.Generator().manual_seed(0))
            >>> x = (torch.arange(10 * 2 * 64) % 3 == 0).float().view(10, 1, 2, 8, 8)
            >>> whole = layer(x)[0]
            >>> bool(torch.allclose(layer.at(x, torch.tensor([[7, 0, 2, 3]]))[0], whole[7, 0, :, 2, 3], atol=1e-6))
            True
        """
        self._fits(x, (self.polarities, None, None))
        x = self._padded(x)
        steps, batch, _, height, width = x.shape
        size = (steps, batch, height - self.kernel[0] + 1, width - self.kernel[1] + 1)
        places = places.to(x.device)
        limit = torch.tensor(size, device=x.device)
        if places.dim() != 2 or places.shape[1] != 4:
            raise ShapeError("places are rows of t, b, y, x", given=tuple(places.shape), expected="[place, 4]")
        if bool(((places < 0) | (places >= limit)).any()):
            raise RangeError("a place lies outside the output", expected=f"below {size}")
        t, b, y, column = places.unbind(1)
        delay, v, u = self.mask.flatten(0, 1).any(0).nonzero().unbind(1)
        frame = self.polarities * height * width
        within = (v * width + u) - (delay + 1) * batch * frame
        offset = (torch.arange(self.polarities, device=x.device) * height * width).unsqueeze(1) + within
        first = (t * batch + b) * frame + y * width + column
        patches = x.reshape(-1).take((first.view(-1, 1, 1) + offset).clamp(min=0))
        before = t.unsqueeze(1) <= delay  # reaches back to before the first frame
        if bool(before.any()):
            patches = torch.where(before.unsqueeze(1), 0.0, patches)
        weight = self.effective[:, :, delay, v, u]
        if self.polarity_max:
            weight = torch.cat([weight, weight.flip(1)])
        out = patches.flatten(1) @ weight.flatten(1).T
        return (torch.maximum(*out.chunk(2, dim=1)) if self.polarity_max else out) + self.bias

    def event_forward(self, stream: EventStream, steps: int | None = None) -> EventDriven:
        """The evidence of one stream by visiting, for each event, only the synapses that are there.

        Equal to `forward` of the stream's counts up to rounding. Runs on the CPU and carries no gradient.

        Args:
            stream: addresses (polarity, y, x).
            steps: length of the result; None ends with the step of the last event.

        Raises:
            ShapeError: the stream's polarities are not the layer's, or its frames are smaller than the window.
        """
        if len(stream.shape) != 3 or stream.shape[0] != self.polarities:
            raise ShapeError("the stream does not fit", given=stream.shape, expected=f"({self.polarities}, y, x)")
        pad = self._pad
        height, width = (stream.shape[n + 1] + 2 * pad[n] - self.kernel[n] + 1 for n in range(2))
        if min(height, width) < 1:
            raise ShapeError("frames are smaller than the window", given=stream.shape[1:], expected=self.kernel)
        if steps is None:
            steps = int(stream.steps(self.dt)[-1]) + 1 if len(stream) else 0
        evidence, operations = self._arrivals(stream, steps, (height, width), pad)
        if self.polarity_max:
            swapped, more = self._arrivals(stream.flip(0), steps, (height, width), pad)
            evidence, operations = torch.maximum(evidence, swapped), operations + more
        return EventDriven(evidence + self.bias.detach().cpu().view(-1, 1, 1), operations)

    @property
    def _pad(self) -> tuple[int, int]:
        return (self.kernel[0] // 2, self.kernel[1] // 2) if self.padding == "same" else (0, 0)

    def _seen(self, x: Tensor, state: PastEvents | None) -> tuple[Tensor, Tensor]:
        seen, past = self._window(x, state, (self.polarities, None, None))
        return self._padded(seen), past

    def _padded(self, x: Tensor) -> Tensor:
        y, column = self._pad
        padded = functional.pad(x, (column, column, y, y)) if self.padding == "same" else x
        if padded.shape[3] < self.kernel[0] or padded.shape[4] < self.kernel[1]:
            raise ShapeError("frames are smaller than the window", given=tuple(x.shape[3:]), expected=self.kernel)
        return padded

    def extra_repr(self) -> str:
        """What `print(layer)` shows."""
        return (
            f"{self.polarities}, {self.classes}, delays={self.delays}, kernel={self.kernel}, "
            f"polarity_max={self.polarity_max}, {self.count} synapses"
        )


def _window_mask(delays: int, height: int, width: int, kind: str | None) -> Tensor:
    """Where synapses may be, `[delay, height, width]`."""
    y = torch.arange(height) - (height - 1) / 2
    x = torch.arange(width) - (width - 1) / 2
    # distance from the centre in units of that of the outermost row or column
    half_height, half_width = max((height - 1) / 2, 0.5), max((width - 1) / 2, 0.5)
    distance = ((y / half_height).square().unsqueeze(1) + (x / half_width).square()).sqrt()
    reach = torch.ones(delays, 1, 1)
    if kind == "cone":
        nearest = float(distance.min())
        reach = nearest + (1 - nearest) * torch.arange(1, delays + 1).view(-1, 1, 1) / delays
    return (distance <= reach + 1e-6) if kind else torch.ones(delays, height, width, dtype=torch.bool)


def winner_spikes(evidence: Tensor, threshold: Tensor | float, *, dim: int = 2) -> Tensor:
    """Spikes of the class with the most evidence, where that exceeds the threshold; 0/1 of the evidence's shape.

    Args:
        evidence: `[time, batch, class, …]`.
        threshold: a number, or one per class.
        dim: dimension of the classes.

    Examples:
        >>> winner_spikes(torch.tensor([[[0.2, 0.9, 0.1]], [[0.2, 0.3, 0.1]]]), 0.5).tolist()
        [[[0.0, 1.0, 0.0]], [[0.0, 0.0, 0.0]]]
    """
    best = evidence.argmax(dim, keepdim=True)
    if isinstance(threshold, Tensor) and threshold.dim():
        threshold = threshold.to(evidence.device).view(-1, *(1,) * (evidence.dim() - dim % evidence.dim() - 1))
    fired = torch.zeros_like(evidence).scatter_(dim, best, 1.0)
    return fired * (evidence > threshold).to(evidence.dtype)


def rate_threshold(evidence: Tensor, rate: float = 1.0, *, dt: float = 1.0, dim: int = 2) -> float:
    """The threshold at which winners fire `rate` spikes per second and neuron on average, over this evidence.

    Raises:
        RangeError: the rate is not positive, or more than the winners can fire (1000 / dt / classes).

    Examples:
        >>> evidence = torch.rand(1000, 1, 4, 10, generator=torch.Generator().manual_seed(0))
        >>> spikes = winner_spikes(evidence, rate_threshold(evidence, rate=5.0))
        >>> round(spikes.mean().item() * 1000, 2)                # per second, steps of 1 ms
        5.0
    """
    best = evidence.amax(dim).flatten()
    fired = evidence.shape[dim] * rate * dt / 1000  # share of places and steps with a spike
    if not 0 < fired <= 1:
        raise RangeError("winners cannot fire at this rate", given=rate, expected=f"up to {rate / fired:g} Hz")
    spikes = max(math.floor(fired * len(best) + 0.5), 1)
    if spikes == len(best):
        return -math.inf
    return float(best.topk(spikes + 1).values[-1])  # all above this one
