"""From a network with few levels of activation to spiking neurons that count those levels.

    a = s round(clip(x / s, 0, L - 1))                 an activation of L levels, step size s learned
    θ = s (L - 1),  v[0] = θ / 2                       the neuron that stands for it

A neuron driven by the constant current x spikes at such times that θ Σ z[t] is (L - 1) a after L - 1 steps, and
θ Σ z[t] / T tends to clip(x, 0, θ), of which a is the rounded value. Spikes are 0 or 1 (and -1, a spike taken back), so
θ goes into the weights of the layer that reads them.

Sources: Esser et al. 2020 (the learned step size and its gradient); Li, Jones & Furber 2022 (conversion of few levels,
spikes that are taken back); Bu et al. 2022 (the initial potential of half the threshold).
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from plexus.errors import RangeError, ShapeError, UnsupportedError
from plexus.nn._places import device_of
from plexus.nn._sequential import Sequential
from plexus.nn.neurons._signed_if import SignedIF
from plexus.units._evaluating import evaluating

__all__ = ["QuantisedReLU", "convert_quantised", "quantise_activations"]


class _Round(torch.autograd.Function):
    """Rounding, with the gradient of the identity."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return torch.round(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        return tangent


class QuantisedReLU(nn.Module):
    """A rectifier with few levels and a learned step: s · round(clip(x / s, 0, levels - 1)).

    The gradient of the step size is that of learned step size quantisation, scaled by 1 / sqrt(numbers · (levels - 1)).

    Args:
        levels: number of levels, zero among them; 2 bits are 4.
        step: the first step size; `initialise_` sets it from data.

    Raises:
        RangeError: fewer than two levels, or a step that is not positive.

    Examples:
        >>> relu = QuantisedReLU(levels=4, step=0.5)
        >>> relu(torch.tensor([-1.0, 0.3, 0.8, 9.0])).tolist()
        [0.0, 0.5, 1.0, 1.5]
    """

    def __init__(self, levels: int = 4, step: float = 1.0) -> None:
        super().__init__()
        if levels < 2:
            raise RangeError("an activation needs at least two levels", given=levels)
        if not step > 0:
            raise RangeError("the step size must be positive", given=step)
        self.levels = levels
        self.log_step = nn.Parameter(torch.tensor(float(step)).log())  # by its logarithm it stays positive

    @property
    def step(self) -> Tensor:
        """The step size s."""
        return self.log_step.exp()

    @torch.no_grad()
    def initialise_(self, x: Tensor) -> None:
        """Set the step from what reaches the layer: 2 <|x|> / sqrt(levels - 1)."""
        size = 2 * x.abs().mean() / (self.levels - 1) ** 0.5
        self.log_step.copy_(size.clamp(min=1e-8).log())

    def forward(self, x: Tensor) -> Tensor:
        step = self.step
        scale = (x[0].numel() * (self.levels - 1)) ** -0.5 if len(x) else 1.0
        step = step.detach() * (1 - scale) + step * scale  # the value of s, its gradient scaled
        levels: Tensor = _Round.apply((x / step).clamp(0, self.levels - 1))  # type: ignore[no-untyped-call]
        return levels * step

    def extra_repr(self) -> str:
        """What `print(layer)` shows."""
        return f"levels={self.levels}, step={self.step.item():.3g}"


def quantise_activations(model: nn.Module, levels: int = 4, *, batch: Tensor | None = None) -> nn.Module:
    """A copy of a model with every `nn.ReLU` (and `ReLU6`) replaced by a `QuantisedReLU`; train it on to adapt.

    Args:
        model: any module.
        levels: of each activation.
        batch: an input from which the step sizes are set, layer after layer.

    Raises:
        UnsupportedError: the model has no rectifier that is a module.

    Examples:
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> quantise_activations(net, levels=4, batch=torch.rand(16, 4))[1].levels
        4
    """
    model = copy.deepcopy(model)
    places = [(name, m) for name, m in model.named_modules() if isinstance(m, nn.ReLU | nn.ReLU6)]
    if not places:
        raise UnsupportedError(
            "the model has no rectifier to quantise", mend="use nn.ReLU modules, not functions, for its activations"
        )
    made = {id(old): QuantisedReLU(levels).to(device_of(model)) for _, old in places}
    for name, old in places:
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, made[id(old)])
    if batch is not None:
        hooks = [new.register_forward_pre_hook(lambda m, inputs: m.initialise_(inputs[0])) for new in made.values()]
        try:
            with evaluating(model), torch.no_grad():
                model(batch)
        finally:
            for hook in hooks:
                hook.remove()
    return model


def convert_quantised(model: nn.Sequential, example: Tensor | None = None, *, signed: bool = True) -> Sequential:
    """The spiking network of a quantised one: every `QuantisedReLU` becomes a layer of `SignedIF` neurons.

    Batch normalisation is folded into the layer before it, dropout is left out. The input is given as a current at
    every step (`nn.encoding.direct`), the output is the read-out current of every step; its mean over T steps
    is near the output of the quantised network, and for many steps tends to that of the network whose activations are
    clipped and not rounded.

    Args:
        model: `nn.Sequential` of linear layers, convolutions, average pooling, `nn.Flatten`, batch normalisation,
            dropout and `QuantisedReLU`; nested `nn.Sequential` are opened.
        example: a batch of inputs, from which the sizes of feature maps follow; not needed without convolutions.
        signed: let a neuron that has fired too often take a spike back.

    Raises:
        UnsupportedError: a layer that does not commute with averaging over time (max pooling, other activations), or
            nothing to convert.
        ShapeError: the number of units does not follow from the layers and no example is given, or no layer reads the
            last spikes.

    Examples:
        >>> net = nn.Sequential(nn.Linear(4, 8), QuantisedReLU(4, 0.5), nn.Linear(8, 2))
        >>> spiking = convert_quantised(net)
        >>> x = torch.rand(3, 4)
        >>> out, state = spiking(x.expand(64, 3, 4))
        >>> bool((out.mean(0) - net(x)).abs().max() < 0.5)
        True
    """
    layers = [copy.deepcopy(layer).eval() for layer in _flat(model)]
    shapes = _shapes(layers, example)
    found: list[nn.Module] = []
    pending: Tensor | None = None  # the threshold of the spikes that the next weights will read
    for name, layer in enumerate(layers):
        if isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d):
            if pending is not None:
                layer.weight.data.mul_(pending)
                pending = None
            found.append(layer)
        elif isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d):
            found[-1:] = [_fold(found[-1] if found else None, layer)]
        elif isinstance(layer, QuantisedReLU):
            pending = layer.step.detach() * (layer.levels - 1)
            found.append(SignedIF(shapes[name], pending, start=0.5, signed=signed))
        elif isinstance(layer, nn.Dropout | nn.Dropout2d | nn.Identity):
            continue
        elif isinstance(layer, nn.Flatten | nn.AvgPool1d | nn.AvgPool2d | nn.AdaptiveAvgPool2d):
            found.append(layer)
        else:
            raise UnsupportedError(
                f"layer {name} ({type(layer).__name__}) has no spiking counterpart here",
                expected="Linear, Conv, AvgPool, Flatten, BatchNorm, Dropout, QuantisedReLU",
                mend="average instead of max pooling, and quantise_activations(model) first",
            )
    if not any(isinstance(layer, SignedIF) for layer in found):
        raise UnsupportedError("there is no QuantisedReLU to convert", mend="quantise_activations(model, levels) first")
    if pending is not None:
        raise ShapeError("the last layer must read the spikes", given="a QuantisedReLU at the end", expected="Linear")
    return Sequential(*found)


def _flat(model: nn.Module) -> list[nn.Module]:
    if isinstance(model, nn.Sequential):
        return [inner for layer in model for inner in _flat(layer)]
    return [model]


def _fold(layer: nn.Module | None, norm: nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d) -> nn.Module:
    if isinstance(layer, nn.Linear):
        return torch.nn.utils.fusion.fuse_linear_bn_eval(layer, norm)
    if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return torch.nn.utils.fusion.fuse_conv_bn_eval(layer, norm)
    raise UnsupportedError("batch normalisation stands after no linear layer or convolution it could be folded into")


@torch.no_grad()
def _shapes(layers: list[nn.Module], example: Tensor | None) -> dict[int, tuple[int, ...]]:
    """The units of every activation: from an example, or from the linear layer before it."""
    shapes: dict[int, tuple[int, ...]] = {}
    units: tuple[int, ...] | None = None
    for place, layer in enumerate(layers):
        if example is not None:
            example = layer(example)
            units = tuple(example.shape[1:])
        elif isinstance(layer, nn.Linear):
            units = (layer.out_features,)
        elif not isinstance(layer, QuantisedReLU | nn.BatchNorm1d | nn.Dropout | nn.Identity):
            units = None
        if isinstance(layer, QuantisedReLU):
            if units is None:
                raise ShapeError(
                    f"the units of layer {place} do not follow from the layers before it",
                    mend="give an example: convert_quantised(model, images[:2])",
                )
            shapes[place] = units
    return shapes
