"""A layer whose synapses learn by a local rule: synapse, neuron, rule, and the loop and the bounds around them."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from plexus.errors import RangeError, UnsupportedError
from plexus.learn.plasticity._homeostatic_threshold import HomeostaticThreshold
from plexus.learn.plasticity._rule import Rule, Signals

__all__ = ["Plastic", "PlasticState"]


class PlasticState(NamedTuple):
    """What a plastic layer remembers."""

    neuron: Any  # the state of its neurons
    rule: Any  # what its rule remembers


class Plastic(nn.Module):
    """`spikes, state = layer(x)` runs it, `layer.learn(x)` runs it and lets the rule change the weights.

    Args:
        synapse: the layer whose `weight` `[post, pre]` learns.
        neuron: neurons with a state, which the synapses drive.
        rule: a local rule.
        low: least weight. high: greatest weight.
        homeostasis: moves the neurons' thresholds after each sequence that is learned.

    Raises:
        RangeError: the bounds are crossed.
        UnsupportedError: the rule asks for a signal that there is none of, or the neuron has no state.

    Examples:
        >>> from plexus.nn import LIF
        >>> from plexus.learn.plasticity import PairSTDP
        >>> layer = Plastic(nn.Linear(3, 2, bias=False), LIF(2), PairSTDP(), low=0.0, high=1.0)
        >>> spikes, state = layer.learn(torch.ones(10, 4, 3))
        >>> spikes.shape, bool((layer.synapse.weight >= 0).all())
        (torch.Size([10, 4, 2]), True)
    """

    axes = "t b u"

    def __init__(
        self,
        synapse: nn.Linear,
        neuron: nn.Module,
        rule: Rule,
        *,
        low: float = -torch.inf,
        high: float = torch.inf,
        homeostasis: HomeostaticThreshold | None = None,
    ) -> None:
        super().__init__()
        if not low < high:
            raise RangeError("the bounds of the weights are crossed", given=(low, high), expected="low < high")
        unknown = set(rule.needs) - {"pre", "post", "membrane"}
        if unknown:
            raise UnsupportedError(f"{type(rule).__name__} needs signals that there are none of", given=sorted(unknown))
        if not hasattr(neuron, "initial_state"):
            raise UnsupportedError(f"{type(neuron).__name__} has no state", mend="use a neuron layer, e.g. LIF")
        self.synapse, self.neuron, self.rule = synapse, neuron, rule
        self.low, self.high, self.homeostasis = low, high, homeostasis

    def initial_state(self, batch: int, *, dtype: torch.dtype | None = None) -> PlasticState:
        """Neurons and rule at rest."""
        post, pre = self.synapse.weight.shape
        neuron: Any = self.neuron
        dtype = dtype or self.synapse.weight.dtype
        traces, device = self.rule.init(batch, pre, post, dtype=dtype), self.synapse.weight.device
        rule = tree_map(lambda part: part.to(device) if isinstance(part, Tensor) else part, traces)
        return PlasticState(neuron.initial_state(batch, dtype=dtype), rule)

    def forward(self, x: Tensor, state: PlasticState | None = None) -> tuple[Tensor, PlasticState]:
        """Spikes `[time, batch, post]` of the inputs `[time, batch, pre]`; nothing is learned."""
        state = state or self.initial_state(x.shape[1], dtype=x.dtype)
        spikes, neuron = self.neuron(self.synapse(x), state.neuron)
        return spikes, PlasticState(neuron, state.rule)

    @torch.no_grad()
    def learn(
        self,
        x: Tensor,
        state: PlasticState | None = None,
        *,
        modulator: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, PlasticState]:
        """Run the inputs `[time, batch, pre]` and learn from them; spikes and state as of `forward`.

        A rule that acts at every step sees its own changes at work in the next; one that acts per sequence sees the
        weights of the start throughout. modulator: the third factor, a number or one per sample.
        """
        neuron, rule = state or self.initial_state(x.shape[1], dtype=x.dtype)
        steps = self.rule.acts == "step" or "membrane" in self.rule.needs
        outputs, potentials = [], []
        for piece in x.split(1) if steps else [x]:
            spikes, neuron = self.neuron(self.synapse(piece), neuron)
            outputs.append(spikes)
            if "membrane" in self.rule.needs:
                potentials.append(neuron.v.unsqueeze(0))
            if self.rule.acts == "step":
                rule = self._change(Signals(piece, spikes, *potentials[-1:]), modulator, rule, generator)
        spikes = torch.cat(outputs) if outputs else x.new_zeros(0, x.shape[1], self.synapse.out_features)
        if self.rule.acts == "sequence" and len(x):
            membrane = torch.cat(potentials) if potentials else None
            rule = self._change(Signals(x, spikes, membrane), modulator, rule, generator)
        if self.homeostasis is not None and len(x):
            self.homeostasis.update(self.neuron, spikes)
        return spikes, PlasticState(neuron, rule)

    def _change(self, signals: Signals, modulator: Tensor | None, state: Any, generator: torch.Generator | None) -> Any:
        weight = self.synapse.weight
        delta, state = self.rule.step(weight, signals, modulator, state, generator)
        weight.add_(self.rule.sign * delta).clamp_(self.low, self.high)
        return state
