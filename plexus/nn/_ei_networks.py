"""Whole networks of E-I layers: initialised from one batch, or made from a network with batch normalisation."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from plexus.errors import PlexusError, UnsupportedError
from plexus.nn._ei_circuit import EILayer, EIStatistics, warn_silent
from plexus.nn._excitatory_inhibitory import EIConv2d, EILinear
from plexus.nn._sequential import Sequential, Stateful
from plexus.units._evaluating import evaluating

__all__ = ["initialise_ei", "to_ei"]

_NORMS = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm)
_CARRY_SIGN = (  # what keeps an input >= 0 as it is
    nn.Flatten, nn.Unflatten, nn.Identity, nn.Dropout, nn.Dropout2d,
    nn.AvgPool1d, nn.AvgPool2d, nn.MaxPool1d, nn.MaxPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d,
)  # fmt: skip
_NOT_NEGATIVE = (nn.ReLU, nn.ReLU6, nn.Sigmoid, nn.Hardsigmoid, nn.Softplus)


def initialise_ei(model: nn.Module, batch: Any, *, generator: torch.Generator | None = None) -> dict[str, EIStatistics]:
    """E-I Init of every `EILinear` and `EIConv2d` of a model, one after the other as a batch runs through.

    Each layer is scaled before it runs, so that the next one sees what an initialised layer puts out. The model runs in
    evaluation mode, without gradients; its training flags are put back. Without this call, the first batch in training
    mode does the same.

    Args:
        model: any module that holds E-I layers.
        batch: its input, e.g. `[time, batch, …]` for a `Sequential`; a tuple is several inputs. At least some hundred
            rows, from the training data: the statistics are those of this one batch.
        generator: draw all layers anew. Without one, layers that are initialised already stay as they are.

    Returns:
        What each layer that was initialised took from the batch, by name. Layers whose input is silent or constant
        assume spikes at a rate of 0.2 (`assumed`), with a `SilentInputWarning`.

    Raises:
        PlexusError: the model has no E-I layer, or the batch did not reach one.
        RangeError: a layer's input is negative somewhere.
        UnsupportedError: a layer is parametrized.

    Examples:
        >>> from plexus.nn import LIF
        >>> draw = torch.Generator().manual_seed(0)
        >>> net = Sequential(EILinear(20, 40, generator=draw), LIF(40), EILinear(40, 10, output=True, generator=draw))
        >>> found = initialise_ei(net, torch.rand(4, 64, 20, generator=draw))
        >>> sorted(found), found["0"].assumed
        (['0', '2'], False)
    """
    layers = {name: module for name, module in model.named_modules() if isinstance(module, EILayer)}
    if not layers:
        raise PlexusError("the model has no E-I layer", given=type(model).__name__, mend="make one with to_ei(model)")
    if generator is not None:
        for layer in layers.values():
            layer.reset_parameters(generator)
    found: dict[str, EIStatistics] = {}
    waiting = {name: layer for name, layer in layers.items() if not bool(layer.initialised)}

    def initialising(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hook(layer: nn.Module, inputs: tuple[Any, ...]) -> None:
            assert isinstance(layer, EILayer)
            if name in found:
                return
            layer._check(inputs[0])
            found[name] = layer.init_from(inputs[0])
            if found[name].assumed:
                warn_silent(layer, name)

        return hook

    handles = [layer.register_forward_pre_hook(initialising(name)) for name, layer in waiting.items()]
    try:
        with evaluating(model), torch.no_grad():
            model(*batch) if isinstance(batch, tuple) else model(batch)
    finally:
        for handle in handles:
            handle.remove()
    missed = [name for name in waiting if name not in found]
    if missed:
        raise PlexusError("the batch did not reach every E-I layer", given=", ".join(missed))
    return found


def to_ei(model: nn.Sequential, *, ratio: int = 4, generator: torch.Generator | None = None) -> nn.Sequential:
    """A copy of a network in which E-I layers stand for its weight layers and their batch normalisation.

    Every `Linear` becomes an `EILinear` and every `Conv2d` an `EIConv2d`, each together with the normalisation right
    behind it; a weight layer at the end becomes an output layer. Neurons, rectifiers, pooling and the rest are copied.
    The weights are new: a balanced circuit does not compute what the old layer did. Sequentials inside are entered.

    Args:
        model: a `plexus.nn.Sequential` or `torch.nn.Sequential`, spiking or of rectified units.
        ratio: excitatory cells per inhibitory one, lowered where a layer has fewer units.
        generator: for the draw of the weights.

    Returns:
        A network of the same type, not initialised yet; the layers keep their names.

    Raises:
        UnsupportedError: a layer can be negative where an E-I layer needs numbers >= 0, a normalisation stands alone, a
            convolution is grouped or transposed, or a module of another kind holds weights.

    Examples:
        >>> from plexus.nn import LIF
        >>> net = Sequential(nn.Linear(20, 40), nn.BatchNorm1d(40), LIF(40), nn.Linear(40, 10))
        >>> print(to_ei(net))
        Sequential(
          (0): EILinear(20, 40, 10 inhibitory)
          (2): LIF(40, tau_mem=10 ms, reset='soft')
          (3): EILinear(40, 10, 2 inhibitory, output)
        )
    """
    if not isinstance(model, nn.Sequential):
        raise UnsupportedError(
            "only a Sequential says in which order its layers run",
            given=type(model).__name__,
            expected="plexus.nn.Sequential or torch.nn.Sequential",
            mend="build the network from EILinear and EIConv2d",
        )
    flat = list(_flat(model, ""))
    weights = [i for i, (_, layer) in enumerate(flat) if isinstance(layer, nn.Linear | nn.Conv2d)]
    if not weights:
        raise UnsupportedError("there is no weight layer to rewrite", given=f"{len(flat)} layers")
    last = weights[-1]
    ends = all(isinstance(layer, (*_CARRY_SIGN, *_NORMS)) for _, layer in flat[last + 1 :])
    new: dict[str, nn.Module | None] = {}
    signed = ""  # the layer that made what comes in possibly negative
    for i, (name, layer) in enumerate(flat):
        if isinstance(layer, nn.Linear | nn.Conv2d):
            if signed:
                raise UnsupportedError(
                    f"layer {name} would get negative numbers from layer {signed}, and an E-I layer takes none",
                    mend="put a neuron or a rectifier between them",
                )
            new[name] = _circuit(name, layer, ratio, ends and i == last, generator)
            signed = name
        elif isinstance(layer, _NORMS):
            if i == 0 or not isinstance(flat[i - 1][1], nn.Linear | nn.Conv2d):
                raise UnsupportedError(f"normalisation {name} does not stand right behind a weight layer")
            new[name] = None
        else:
            if any(isinstance(m, (nn.Linear, nn.modules.conv._ConvNd, *_NORMS)) for m in layer.modules()):
                raise UnsupportedError(
                    f"layer {name} ({type(layer).__name__}) holds weights or a normalisation that cannot be rewritten",
                    mend="take it apart into a Sequential",
                )
            new[name] = copy.deepcopy(layer)
            if isinstance(layer, (*_NOT_NEGATIVE, Stateful)):
                signed = ""
            elif not isinstance(layer, _CARRY_SIGN):
                signed = name
    return _rebuilt(model, "", new)


def _flat(model: nn.Sequential, prefix: str) -> Iterator[tuple[str, nn.Module]]:
    """The layers in their order, those of Sequentials inside under their full names."""
    for name, layer in model._modules.items():  # named_children would skip a layer that stands there twice
        assert layer is not None
        if isinstance(layer, nn.Sequential):
            yield from _flat(layer, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", layer


def _rebuilt(model: nn.Sequential, prefix: str, new: dict[str, nn.Module | None]) -> nn.Sequential:
    made = Sequential() if isinstance(model, Sequential) else nn.Sequential()
    for name, layer in model._modules.items():
        if isinstance(layer, nn.Sequential):
            made.add_module(name, _rebuilt(layer, f"{prefix}{name}.", new))
        elif (replaced := new[f"{prefix}{name}"]) is not None:
            made.add_module(name, replaced)
    return made.train(model.training)


def _circuit(
    name: str, layer: nn.Linear | nn.Conv2d, ratio: int, output: bool, generator: torch.Generator | None
) -> nn.Module:
    like: dict[str, Any] = {
        "ratio": min(ratio, layer.weight.shape[0]),
        "output": output,
        "generator": generator,
        "device": layer.weight.device,
        "dtype": layer.weight.dtype,
    }
    if isinstance(layer, nn.Linear):
        return EILinear(layer.in_features, layer.out_features, **like)
    if layer.groups != 1 or layer.padding_mode != "zeros" or isinstance(layer.padding, str):
        raise UnsupportedError(
            f"convolution {name} cannot be rewritten", expected="one group, and a number of zeros as padding"
        )
    return EIConv2d(
        layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, layer.padding, layer.dilation, **like
    )
