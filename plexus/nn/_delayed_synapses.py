"""Synapses with a weight for every delay: what the layers of heterogeneous delays have in common.

A synapse (source a, target b, weight w, delay δ) turns each event at a into a weighted event (w, t + δ) at b, which
adds up what arrives. Between a source and a target there is one weight for each delay of 1 … K steps, so that learning
the weights chooses the delays.

    evidence[t, b] = Σ_{a, δ} w[b, a, δ] A[t - δ, a]                A: events per step

Source: Grimaldi & Perrinet 2023, eqs. 1-6. Delays in ms where they are shown, in steps of dt where they are counted.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from plexus.data import EventStream
from plexus.errors import DeviceError, DtypeError, RangeError, ShapeError
from plexus.kernels import scatter_events

__all__ = ["DelayedSynapses", "EventDriven", "PastEvents", "SynapseList"]


class PastEvents(NamedTuple):
    """What a layer of delays remembers.

    Attributes:
        past: the inputs of the last steps, oldest first, `[batch, delay, source…]`. At rest spatial dimensions may be
            of size 1: they stand for silence of any size.
    """

    past: Tensor


class SynapseList(NamedTuple):
    """The synapses that are there, one row each.

    Attributes:
        target: index of the target neuron, `[synapse]`.
        address: source and offset, `[synapse, axis]`: (channel) or (polarity, y, x), offsets from the window's corner.
        weight: `[synapse]`.
        delay: in ms, `[synapse]`.
    """

    target: Tensor
    address: Tensor
    weight: Tensor
    delay: Tensor


class EventDriven(NamedTuple):
    """What event-driven evaluation gives.

    Attributes:
        evidence: `[time, target…]`, what `forward` gives for a batch of one.
        operations: number of synaptic operations, one per event and synapse it reached a target through.
    """

    evidence: Tensor
    operations: int


class DelayedSynapses(nn.Module):
    """Base of `DelayedConv` and `HeterogeneousDelayLayer`: weights `[target, source, delay, …]`, mask, pruning."""

    weight: nn.Parameter
    bias: nn.Parameter
    mask: Tensor
    delays: int
    dt: float

    def _declare(
        self, shape: tuple[int, ...], place: Tensor, init: float, dt: float, generator: torch.Generator | None
    ) -> None:
        """Make weights, bias and mask; `place` says at which `[delay, …]` there may be synapses."""
        targets, sources, self.delays = shape[:3]
        if min(shape) < 1:
            raise RangeError("sizes must be at least 1", given=shape, expected="targets, sources, delays, kernel >= 1")
        if not dt > 0 or not init > 0:
            raise RangeError("dt and the scale of the weights must be positive", given=(dt, init))
        self.dt = dt
        self.register_buffer("mask", place.expand(shape).clone())
        fan_in = sources * int(place.sum())
        drawn = torch.randn(shape, generator=generator) * (init / math.sqrt(fan_in))
        self.weight = nn.Parameter(drawn * self.mask)
        # the log odds of one class in all: where nothing arrives, nothing is known
        self.bias = nn.Parameter(torch.full((targets,), -math.log(max(targets - 1, 1))))

    @property
    def effective(self) -> Tensor:
        """Weights of the synapses that are there, 0 elsewhere, `[target, source, delay, …]`."""
        return self.weight * self.mask

    @property
    def count(self) -> int:
        """The number of synapses whose weight is not 0."""
        return int((self.effective != 0).sum())

    def synapses(self, threshold: float = 0.0) -> SynapseList:
        """The synapses of a size above the threshold, those of one source together."""
        weight = self.effective.detach()
        by_source = weight.transpose(0, 1)
        at = (by_source.abs() > threshold).nonzero()
        source, target, delay = at[:, 0], at[:, 1], at[:, 2]
        address = torch.cat([source.unsqueeze(1), at[:, 3:]], 1)
        return SynapseList(target, address, by_source[tuple(at.T)], (delay + 1) * self.dt)

    @torch.no_grad()
    def prune_(self, fraction: float | None = None, *, threshold: float | None = None) -> int:
        """Take the weakest synapses out for good, over all targets together; returns how many are left.

        Args:
            fraction: of the synapses that are there, in [0, 1].
            threshold: or all whose weight is at most so large.

        Raises:
            RangeError: neither or both are given, or one lies outside its range.
        """
        if (fraction is None) == (threshold is None):
            raise RangeError("prune by a fraction or by a threshold", given=(fraction, threshold), expected="one")
        size = torch.where(self.mask, self.weight.abs(), -1.0)
        if threshold is not None:
            if not threshold >= 0:
                raise RangeError("the threshold is negative or NaN", given=threshold, expected=">= 0")
            keep = size > threshold
        else:
            assert fraction is not None
            if not 0 <= fraction <= 1:
                raise RangeError("a fraction lies in [0, 1]", given=fraction)
            present = int(self.mask.sum())
            strongest = size.flatten().topk(present - round(fraction * present)).indices
            keep = torch.zeros_like(self.mask).flatten().index_fill_(0, strongest, True).view_as(self.mask)
        self.mask &= keep
        self.weight.mul_(self.mask)
        return self.count

    @torch.no_grad()
    def shorten_(self, delays: int) -> int:
        """Take all but the `delays` shortest delays out; returns how many synapses are left.

        Raises:
            RangeError: delays is not in 1 … K.
        """
        if not 1 <= delays <= self.delays:
            raise RangeError("there are not that many delays", given=delays, expected=f"1 to {self.delays}")
        self.mask[:, :, delays:] = False
        self.weight.mul_(self.mask)
        return self.count

    def _fits(self, x: Tensor, sources: tuple[int | None, ...]) -> None:
        """Refuse an input that is not `[time, batch, source…]`; None stands for any size."""
        expected = f"[time, batch, {', '.join('any' if n is None else str(n) for n in sources)}]"
        if not isinstance(x, Tensor) or not x.is_floating_point():
            given = x.dtype if isinstance(x, Tensor) else type(x).__name__
            raise DtypeError("events over time are floating point", given=given, expected=expected)
        fits = x.dim() == len(sources) + 2 and all(
            n is None or n == size for n, size in zip(sources, x.shape[2:], strict=True)
        )
        if not fits:
            raise ShapeError("the input does not fit the layer", given=tuple(x.shape), expected=expected)
        if x.device != self.weight.device:
            raise DeviceError("the input lies on another device", given=x.device, expected=self.weight.device)

    def _window(self, x: Tensor, state: PastEvents | None, sources: tuple[int | None, ...]) -> tuple[Tensor, Tensor]:
        """Frames that the outputs see, `[delay + time - 1, batch, source…]`, and the past to go on from."""
        self._fits(x, sources)
        if state is None:
            past = x.new_zeros(self.delays, *x.shape[1:])
        else:
            wanted = (x.shape[1], self.delays, *x.shape[2:])
            try:
                past = state.past.to(x.dtype).expand(wanted).transpose(0, 1)
            except RuntimeError as error:
                raise ShapeError(
                    "the state does not fit the input", given=tuple(state.past.shape), expected=wanted
                ) from error
        whole = torch.cat([past, x])
        return whole[:-1], whole[len(x) :].transpose(0, 1).clone()

    def _arrivals(self, stream: EventStream, steps: int, size: tuple[int, int], pad: tuple[int, int]) -> EventDriven:
        """Visit the synapses of every event; the result is `[time, target, *size]` without bias."""
        weight = self.effective.detach()
        found = SynapseList(*(part.cpu() for part in self.synapses()))
        sources, axes = weight.shape[1], found.address.shape[1]
        spatial = torch.zeros(len(found.target), 2, dtype=torch.int64)
        place = torch.zeros(len(stream), 3, dtype=torch.int64)
        place[:, :axes] = stream.address
        if axes == 3:
            spatial = found.address[:, 1:] - torch.tensor(pad)
        delay = torch.round(found.delay / self.dt).long()
        rows = torch.cat([torch.stack([found.target, delay], 1), spatial], 1)
        starts = torch.searchsorted(found.address[:, 0].contiguous(), torch.arange(sources + 1))
        at = stream.steps(self.dt)
        if len(at) and int(at[0]) < 0:
            raise RangeError("an event lies before time 0", given=f"{float(stream.t[0]):g} ms")
        events = torch.cat([at.unsqueeze(1), place], 1)
        out = weight.new_zeros(steps, weight.shape[0], *size, device="cpu")
        operations = scatter_events(events, rows, found.weight, starts, out)
        return EventDriven(out, operations)
