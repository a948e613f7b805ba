"""How excitation and inhibition stand in a network of E-I layers.

balance    |mean I_bal| / std I_bal,  I_bal = I_EE - W_EI I_IE       0: inhibition cancels the mean excitation
gain       std (I - b) / std I_bal                                   what division and the gain of E cells amount to
rate       share of rows in which a unit of the layer behind is active (for spikes: spikes per step)
zeros      share of the weights that must be >= 0 and are exactly 0, which projection prunes to

Means and deviations are over rows, steps, places and units of one layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from plexus.errors import PlexusError
from plexus.nn._constraints import constrained_parameters
from plexus.nn._ei_circuit import EILayer
from plexus.probe._layers import layers
from plexus.probe._quiet import quiet

__all__ = ["EIBalance", "ei_balance"]


@dataclass(frozen=True)
class EIBalance:
    """One E-I layer on one batch.

    Attributes:
        balance: |mean| over standard deviation of the balanced current, without division; NaN where it does not vary.
        gain: factor from the balanced current to what the layer puts out; 1 for an output layer.
        mean: of what the layer puts out.
        std: its standard deviation.
        rate: of the neurons or rectifiers that follow; None if none do.
        zeros: share of the constrained weights that are exactly 0.
        negative: share of them that break their constraint, which only happens without a projection.

    Examples:
        >>> EIBalance(0.1, 2.0, 0.0, 1.0, 0.2, 0.0, 0.0).gain
        2.0
    """

    balance: float
    gain: float
    mean: float
    std: float
    rate: float | None
    zeros: float
    negative: float


def ei_balance(model: nn.Module, x: Any) -> dict[str, EIBalance]:
    """Balance, gain and firing rate of every E-I layer of a model on a batch, by the layer's name.

    The model runs in evaluation mode and is as before when this returns. A layer that is used several times gives what
    it did on its last call.

    Args:
        model: any module that holds `EILinear` or `EIConv2d`, initialised.
        x: its input; a tuple is several inputs.

    Raises:
        PlexusError: the model has no E-I layer, or one of them is not initialised.

    Examples:
        >>> from plexus.nn import EILinear, LIF, Sequential, initialise_ei
        >>> draw = torch.Generator().manual_seed(0)
        >>> net = Sequential(EILinear(50, 400, generator=draw), LIF(400), EILinear(400, 10, output=True))
        >>> x = torch.rand(4, 64, 50, generator=draw)
        >>> _ = initialise_ei(net, x)
        >>> first = ei_balance(net, x)["0"]
        >>> first.balance < 0.3, 0.7 < first.std < 1.4, 0 < first.rate < 1, first.zeros
        (True, True, True, 0.0)
    """
    circuits = {module: name for name, module in model.named_modules() if isinstance(module, EILayer)}
    if not circuits:
        raise PlexusError("the model has no E-I layer", given=type(model).__name__, mend="make one with to_ei(model)")
    entered: dict[EILayer, Tensor] = {}
    rates: dict[EILayer, float] = {}
    open_layer: list[EILayer] = []

    def enter(layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        assert isinstance(layer, EILayer)
        entered[layer] = inputs[0]
        open_layer[:] = [layer]

    def follow(_: nn.Module, __: tuple[Any, ...], out: Any) -> None:
        if open_layer:  # only the first layer of units behind a circuit is its own
            value = out[0] if isinstance(out, tuple) else out
            rates[open_layer.pop()] = float((value > 0).to(torch.float64).mean())

    active = [layer.module for layer in layers(model)[0] if not isinstance(layer.module, EILayer)]
    handles = [layer.register_forward_pre_hook(enter) for layer in circuits]
    handles += [module.register_forward_hook(follow) for module in active]
    try:
        with quiet(model):
            model(*x) if isinstance(x, tuple) else model(x)
            return {
                name: _measure(layer, entered[layer], rates.get(layer))
                for layer, name in circuits.items()
                if layer in entered
            }
    finally:
        for handle in handles:
            handle.remove()


def _measure(layer: EILayer, x: Tensor, rate: float | None) -> EIBalance:
    currents = layer.currents(x)
    balanced = currents.excitation - currents.inhibition
    out = currents.integrated
    driven = out if layer.bias is None else out - layer._spread(layer.bias)
    weights = [(parameter, constraint) for _, parameter, constraint in constrained_parameters(layer)]
    return EIBalance(
        balance=float(balanced.mean().abs() / balanced.std()),
        gain=float(driven.std() / balanced.std()),
        mean=float(out.mean()),
        std=float(out.std()),
        rate=rate,
        zeros=_share([parameter == 0 for parameter, _ in weights]),
        negative=_share([parameter != constraint.project(parameter) for parameter, constraint in weights]),
    )


def _share(masks: list[Tensor]) -> float:
    count = sum(mask.numel() for mask in masks)
    return sum(int(mask.sum()) for mask in masks) / count if count else 0.0
