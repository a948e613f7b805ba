"""The networks that the studies of astrocytes compare, all of about one number of parameters."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plexus.errors import UnknownNameError
from plexus.kernels import decaying_sum
from plexus.lab import Paper
from plexus.nn import LIF, AstrocyteUnit, Sequential
from plexus.nn.models import AstroSNN, CharTransformer

PAPER = Paper(
    "Astrocyte-Enabled Advancements in Spiking Neural Networks for Large Language Modeling",
    "Shen, Zhao, Dong, Li, Li, Sun, Zeng",
    2023,
    arxiv="2312.07625",
)
RATES = (1e-3, 3e-3, 1e-2, 3e-2)  # of learning, that tuning chooses from
SPIKING = ("astrocytes", "lif", "ssm")
MEMORY = 150.0  # steps: the longest time constant that every arm is given


class Sizes(Protocol):
    """What a network is built from; the configurations of both studies have these fields."""

    method: str
    width: int
    layers: int
    rank: int
    longest: float
    shortest: float
    use_pre: bool
    use_post: bool
    gain: bool
    bias: bool
    learn_tau: bool
    listen: float
    membrane: float
    chrono: bool
    tied: bool


class DiagonalSSM(nn.Module):
    """A linear state per channel and no spikes: a[t] = λ a[t-1] + (1 - λ) w x[t], out = gelu(C a + D x).

    The slow memory of the astrocytes with nothing else of them; the same time constants, learned as theirs.
    """

    def __init__(self, units: int, longest: float, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.raw_keep = nn.Parameter(torch.linspace(0.0, math.log(longest - 1), units))
        self.weight = nn.Parameter(torch.full((units,), 0.5))
        self.state_map, self.skip = nn.Linear(units, units, bias=False), nn.Linear(units, units, bias=False)
        for part in (self.state_map, self.skip):
            part.weight = nn.Parameter(torch.randn(units, units, generator=generator) / units**0.5)

    def initial_state(self, batch: int, *, dtype: torch.dtype | None = None) -> Tensor:
        return self.raw_keep.new_zeros((batch, len(self.raw_keep)), dtype=dtype)

    def forward(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        a, last = decaying_sum(x * torch.sigmoid(-self.raw_keep) * self.weight, state, decay=self.raw_keep.sigmoid())
        return F.gelu(self.state_map(a) + self.skip(x)), last


class GatedRNN(nn.Module):
    """Torch's LSTM or GRU between embedding and read-out; with `chrono`, gates remember for up to `longest`."""

    def __init__(self, kind: str, symbols: int, width: int, layers: int, *, chrono: bool, longest: float) -> None:
        super().__init__()
        self.embed, self.out = nn.Embedding(symbols, width), nn.Linear(width, symbols)
        self.rnn = {"lstm": nn.LSTM, "gru": nn.GRU}[kind](width, width, layers)
        if chrono:  # Tallec & Ollivier 2018
            with torch.no_grad():
                for layer in range(layers):
                    bias, other = (getattr(self.rnn, f"bias_{side}_l{layer}") for side in ("ih", "hh"))
                    spans = torch.log(1 + torch.rand(width) * (longest - 2))
                    forget = slice(width, 2 * width)
                    bias[forget], other[forget] = spans, 0.0
                    if kind == "lstm":
                        bias[:width], other[:width] = -spans, 0.0

    def forward(self, symbols: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        hidden, state = self.rnn(self.embed(symbols), state)
        return self.out(hidden), state


class Transformer(nn.Module):
    """`CharTransformer`, time first and without a state."""

    def __init__(self, symbols: int, context: int, width: int, layers: int) -> None:
        super().__init__()
        self.inner = CharTransformer(symbols, context=context, width=width, heads=4, layers=layers)

    def forward(self, symbols: Tensor, state: None = None) -> tuple[Tensor, None]:
        return self.inner(symbols.T).transpose(0, 1), None


def parameters(model: nn.Module) -> int:
    """Number of trained numbers."""
    return sum(p.numel() for p in model.parameters())


def build(config: Sizes, symbols: int, context: int, seed: int) -> nn.Module:
    """The network of an arm; rivals are as wide as gives them the parameters of the full unit, or slightly more."""
    make: dict[str, Callable[[int], nn.Module]] = {
        "lstm": lambda w: GatedRNN("lstm", symbols, w, config.layers, chrono=config.chrono, longest=MEMORY),
        "gru": lambda w: GatedRNN("gru", symbols, w, config.layers, chrono=config.chrono, longest=MEMORY),
        "transformer": lambda w: Transformer(symbols, context, 4 * w, config.layers),
    }
    if config.method in SPIKING:
        return _spiking(config, config.method, symbols, seed)
    if config.method not in make:
        raise UnknownNameError.among("method", config.method, (*SPIKING, *make))
    aim = parameters(_spiking(config, "astrocytes", symbols, seed))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        width = next(w for w in range(2, 512) if parameters(make[config.method](w)) >= aim)
        torch.manual_seed(seed)
        return make[config.method](width)


def _spiking(config: Sizes, method: str, symbols: int, seed: int) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)

    def unit(units: int) -> nn.Module:
        if method == "ssm":
            return DiagonalSSM(units, MEMORY, generator)
        if method == "lif":
            synapses = nn.Linear(units, units, bias=False)
            synapses.weight = nn.Parameter(torch.randn(units, units, generator=generator) / units**0.5)
            tau = torch.full((units,), config.membrane)
            return Sequential(synapses, LIF(units, tau_mem=tau, reset="hard", learn=("tau_mem",)))
        return AstrocyteUnit(
            units,
            (config.shortest, config.longest),
            min(config.rank, units) or None,
            use_pre=config.use_pre,
            use_post=config.use_post,
            gain=config.gain,
            bias=config.bias,
            learn_tau=config.learn_tau,
            tau_mem=config.membrane,
            listen=config.listen,
            generator=generator,
        )

    return AstroSNN(
        symbols,
        width=config.width,
        layers=config.layers,
        mix=config.width,
        unit=unit,
        tied=config.tied,
        generator=generator,
    )
