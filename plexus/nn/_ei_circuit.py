"""The circuit of an E-I layer; its equations stand in `_excitatory_inhibitory`."""

from __future__ import annotations

import math
import warnings
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from plexus.errors import PlexusError, RangeError, UnsupportedError
from plexus.nn._constraints import Constraint, NonNegative
from plexus.units._draws import drawn_

__all__ = ["EICurrents", "EILayer", "EIStatistics", "SilentInputWarning"]

_POSITIVE = ("weight_ee", "weight_ie", "weight_ei", "gain_i", "gain_e")
_FALLBACK_RATE = 0.2  # spikes per step that are assumed of a silent or constant input


class SilentInputWarning(UserWarning):
    """An E-I layer was initialised from an input that is silent or does not vary, and assumed a firing rate instead."""


class EICurrents(NamedTuple):
    """What flows in an E-I layer, each of the shape of its output."""

    excitation: Tensor
    """I_EE."""
    inhibition: Tensor
    """W_EI I_IE, what is subtracted."""
    shunting: Tensor
    """I_sh, what is divided by, before zeros are replaced; 1 where nothing is divided."""
    integrated: Tensor
    """I, what the layer puts out."""


class EIStatistics(NamedTuple):
    """What E-I Init took from a batch, and what it set."""

    mean: float
    """E[x]."""
    variance: float
    """V."""
    mean_square: float
    """E[x²]."""
    scale: float
    """The mean of the excitatory weights."""
    gain_i: float
    """g_I."""
    assumed: bool
    """Whether the input was silent or constant, and the statistics are those of spikes at a rate of 0.2."""


class EILayer(nn.Module):
    """What the dense and the convolutional layer share: parameters, initialisation, the circuit behind the weights."""

    initialised: Tensor
    gain_i: nn.Parameter | None
    gain_e: nn.Parameter | None
    bias: nn.Parameter | None

    def __init__(
        self,
        fan_in: int,
        weight_shape: tuple[int, ...],
        units: int,
        ratio: int,
        output: bool,
        subtractive: bool,
        divisive: bool,
        replace_zeros: bool,
        scale_gradient: bool,
        generator: torch.Generator | None,
        factory: dict[str, Any],
    ) -> None:
        super().__init__()
        if ratio < 1 or ratio > units:
            raise RangeError(
                "the ratio leaves no inhibitory cell",
                given=f"ratio {ratio} for {units} excitatory cells",
                expected=f"1 to {units} excitatory cells for each inhibitory one",
            )
        self.fan_in, self.units, self.ratio, self.inhibitory_units = fan_in, units, ratio, units // ratio
        self.output, self.subtractive, self.divisive = output, subtractive, divisive and not output
        self.replace_zeros, self.scale_gradient = replace_zeros, scale_gradient
        self.weight_ee = nn.Parameter(torch.empty(units, *weight_shape, **factory))
        self.weight_ie = nn.Parameter(torch.empty(self.inhibitory_units, *weight_shape, **factory))
        self.weight_ei = nn.Parameter(torch.empty(units, self.inhibitory_units, **factory))
        for name, size in (("gain_i", self.inhibitory_units), ("gain_e", units), ("bias", units)):
            missing = output or (name == "gain_i" and not divisive)
            self.register_parameter(name, None if missing else nn.Parameter(torch.empty(size, **factory)))
        self.register_buffer("initialised", torch.zeros((), dtype=torch.bool, device=factory["device"]))
        self.reset_parameters(generator)

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw the excitatory weights anew, with mean 1 until a batch gives them their scale."""
        self._own()
        for weight in (self.weight_ee, self.weight_ie):
            drawn_(weight, lambda t: t.exponential_(generator=generator), generator)
        self.weight_ei.fill_(1 / self.inhibitory_units)
        for parameter, value in ((self.gain_i, 1.0), (self.gain_e, 1.0), (self.bias, 0.0)):
            if parameter is not None:
                parameter.fill_(value)
        self.initialised.fill_(False)

    @torch.no_grad()
    def init_from(self, x: Tensor) -> EIStatistics:
        """E-I Init from a batch of what enters this layer; draws nothing, it scales what was drawn before.

        Where the input is silent or does not vary over the batch, its statistics say nothing, and those of spikes at a
        rate of 0.2 are assumed, with a `SilentInputWarning`.

        Raises:
            PlexusError: the layer is initialised already; `reset_parameters` draws it anew.
            RangeError: the input is negative somewhere, or not finite.
        """
        if bool(self.initialised):
            raise PlexusError("the layer is initialised already", mend="call reset_parameters(generator) to start anew")
        self._own()
        rows = self._rows(x)
        if not bool(torch.isfinite(rows).all()):
            raise RangeError("the input holds NaN or infinity")
        if bool((rows < 0).any()):
            raise _negative(rows)
        mean, square = float(rows.mean()), float(rows.square().mean())
        variance = float(rows.var(0).mean()) if len(rows) > 1 else 0.0
        assumed = not (mean > 0 and variance > 0)
        if assumed:
            mean = square = _FALLBACK_RATE
            variance = _FALLBACK_RATE * (1 - _FALLBACK_RATE)
        scale = math.sqrt(variance / (self.fan_in * (square + variance)))
        gain = math.sqrt((square + variance) / self.fan_in) / mean
        self.weight_ee.mul_(scale)
        self.weight_ie.mul_(scale)
        if self.gain_i is not None:
            self.gain_i.fill_(gain)
        elif self.gain_e is not None:
            self.gain_e.fill_(1 / math.sqrt(variance))
        self.initialised.fill_(True)
        return EIStatistics(mean, variance, square, scale, gain, assumed)

    def constraints(self) -> dict[str, Constraint]:
        """Weights and gains are >= 0; the bias is free."""
        return {name: NonNegative() for name in _POSITIVE if getattr(self, name) is not None}

    def forward(self, x: Tensor) -> Tensor:
        """The integrated current of x. The first batch in training mode initialises the layer.

        Raises:
            RangeError: the input is negative somewhere.
            PlexusError: the layer is not initialised and not in training mode.
        """
        if not torch.compiler.is_compiling():
            self._ready(x)
        return self._circuit(x).integrated

    def currents(self, x: Tensor) -> EICurrents:
        """All currents of the circuit for x."""
        self._ready(x)
        return self._circuit(x)

    def _ready(self, x: Tensor) -> None:
        self._check(x)
        if torch._C._functorch.peek_interpreter_stack() is not None:
            return  # under torch.func transforms values cannot be looked at
        if not bool(self.initialised):
            if not self.training:
                raise PlexusError(
                    "an E-I layer is used before it was initialised",
                    given="a layer in evaluation mode that has seen no batch",
                    mend="call plexus.nn.initialise_ei(model, batch), or run one batch in training mode",
                )
            if self.init_from(x.detach()).assumed:
                warn_silent(self)
        elif bool((x.detach() < 0).any()):
            raise _negative(x)

    def _circuit(self, x: Tensor) -> EICurrents:
        to_excitatory, to_inhibitory = self._drive(x)
        weight = _scaled_gradient(self.weight_ei, 1 / self.fan_in) if self.scale_gradient else self.weight_ei
        inhibition = self._mix(weight, to_inhibitory)
        current = to_excitatory - inhibition if self.subtractive else to_excitatory
        if self.gain_i is None:
            shunting = torch.ones_like(current)
        else:
            shunting = self._mix(weight, self._spread(self.gain_i) * to_inhibitory)
            current = current / (self._replaced(shunting) if self.replace_zeros else shunting)
        if self.gain_e is not None and self.bias is not None:
            current = self._spread(self.gain_e) * current + self._spread(self.bias)
        return EICurrents(to_excitatory, inhibition, shunting, current)

    def _replaced(self, shunting: Tensor) -> Tensor:
        """Zeros become the smallest other value of their sample, straight through for the gradient.

        A sample that meets no inhibition at all is divided by infinity: the bias alone is left of it.
        """
        zero = shunting == 0
        visible = not torch.compiler.is_compiling() and torch._C._functorch.peek_interpreter_stack() is None
        if visible and not bool(zero.any()):
            return shunting
        others = shunting.detach().masked_fill(zero, math.inf)
        smallest = others.amin(self._sample_dims, keepdim=True)
        return shunting + torch.where(zero, smallest, torch.zeros_like(others))

    def _own(self) -> None:
        if "weight_ee" not in self._parameters:
            raise UnsupportedError(
                "the weights of this layer are parametrized, and only free ones can be initialised",
                mend="call initialise_ei(model, batch) before parametrize_(model)",
            )

    _sample_dims: tuple[int, ...] = (-1,)

    def _drive(self, x: Tensor) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def _mix(self, weight: Tensor, inhibitory: Tensor) -> Tensor:
        raise NotImplementedError

    def _spread(self, values: Tensor) -> Tensor:
        raise NotImplementedError

    def _rows(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def _check(self, x: Tensor) -> None:
        raise NotImplementedError

    def _shown(self) -> str:
        parts = [f"{self.inhibitory_units} inhibitory"]
        parts += ["output"] if self.output else []
        parts += [f"{n}=False" for n in ("subtractive", "replace_zeros", "scale_gradient") if not getattr(self, n)]
        parts += ["divisive=False"] if not self.divisive and not self.output else []
        return ", ".join(parts)


def warn_silent(layer: nn.Module, name: str = "") -> None:
    """Warn that a layer was initialised from an input that says nothing."""
    warnings.warn(
        f"{f'layer {name}' if name else type(layer).__name__} was initialised from an input that is silent or "
        f"constant: the statistics of spikes at a rate of {_FALLBACK_RATE} were assumed. Give a larger batch, or check "
        "that the layer before it fires",
        SilentInputWarning,
        stacklevel=2,
    )


def _scaled_gradient(weight: Tensor, factor: float) -> Tensor:
    """The same values, with a gradient multiplied by a factor; without a hook, which copies of a module would lose."""
    fixed = weight.detach()
    return fixed + factor * (weight - fixed)


def _negative(x: Tensor) -> RangeError:
    return RangeError(
        "the input of an E-I layer is negative somewhere",
        given=f"a least value of {x.min().item():.3g}",
        expected="numbers >= 0: spikes, rates, or pixels in [0, 1] that are not standardised",
        mend="put a neuron or a rectifier in front, or leave out the standardisation of the data",
    )
