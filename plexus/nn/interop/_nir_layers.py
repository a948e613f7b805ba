"""To NIR, layer by layer: the nodes that each kind of layer becomes; the equations stand in `_nir_export`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from plexus.errors import ShapeError, UnsupportedError
from plexus.nn.interop._modules import Delay, Scale
from plexus.nn.neurons import CUBA, IF, LIF, PLIF, LeakyIntegrator, Recurrent, RecurrentLIF
from plexus.nn.synapses import (
    Convolution,
    DelayedConv2d,
    DelayedLinear,
    Dense,
    ExponentialSynapse,
    GapJunctions,
    Lateral,
    Sparse,
)

if TYPE_CHECKING:
    from plexus.nn.interop._nir_export import Export

__all__ = ["EXPORTS", "Shape", "refusal"]

Shape = tuple[int, ...]


def refusal(name: str, layer: nn.Module, why: str, mend: str | None = None) -> UnsupportedError:
    """The error that names what cannot be exported, and why."""
    return UnsupportedError(f"layer {name} ({type(layer).__name__}) cannot be written to NIR: {why}", mend=mend)


def _array(value: Tensor | float, shape: Shape) -> np.ndarray[Any, Any]:
    tensor = torch.as_tensor(value, dtype=torch.float64).detach().cpu()
    return tensor.expand(shape).numpy().copy()


def _numpy(value: Tensor) -> np.ndarray[Any, Any]:
    return value.detach().cpu().numpy().copy()


def _passed(export: Export, name: str, layer: nn.Module, sources: Sequence[str], shape: Shape) -> Any:
    return sources, shape


def _linear(export: Export, name: str, layer: nn.Linear, sources: Sequence[str], shape: Shape) -> Any:
    return _map(export, name, layer, layer.weight, layer.bias, sources, shape)


def _dense(export: Export, name: str, layer: Dense, sources: Sequence[str], shape: Shape) -> Any:
    weight = layer.weight if layer.mask is None else layer.weight * layer.mask
    return _map(export, name, layer, weight, layer.bias, sources, shape)


def _sparse(export: Export, name: str, layer: Sparse, sources: Sequence[str], shape: Shape) -> Any:
    return _map(export, name, layer, layer.matrix(), None, sources, shape)


def _lateral(export: Export, name: str, layer: Lateral, sources: Sequence[str], shape: Shape) -> Any:
    return _map(export, name, layer, layer.weight, None, sources, shape)


def _gap(export: Export, name: str, layer: GapJunctions, sources: Sequence[str], shape: Shape) -> Any:
    """Σ_j g_ij (v_j - v_i): the conductances, less their sums on the diagonal."""
    g = layer.conductance
    return _map(export, name, layer, g - torch.diag(g.sum(1)), None, sources, shape)


def _map(
    export: Export,
    name: str,
    layer: nn.Module,
    weight: Tensor,
    bias: Tensor | None,
    sources: Sequence[str],
    shape: Shape,
) -> Any:
    """A linear map of one dimension of units."""
    if len(shape) != 1:
        raise refusal(name, layer, f"NIR's linear maps take one dimension of units, here {shape}", "flatten first")
    if shape[0] != weight.shape[1]:
        raise ShapeError(f"layer {name} does not fit what comes before it", given=shape, expected=(weight.shape[1],))
    rows = _numpy(weight)
    export.node(name, export.nir.Linear(rows) if bias is None else export.nir.Affine(rows, _numpy(bias)), sources)
    return [name], (weight.shape[0],)


def _conv(dims: int) -> Callable[..., Any]:
    def add(export: Export, name: str, layer: Any, sources: Sequence[str], shape: Shape) -> Any:
        if layer.padding_mode != "zeros":
            raise refusal(name, layer, f"padding by {layer.padding_mode!r} is not in NIR")
        if len(shape) != dims + 1:
            raise refusal(name, layer, f"the shape of its input is not known to be [channel, …], but {shape}")
        bias = np.zeros(layer.out_channels, np.float32) if layer.bias is None else _numpy(layer.bias)
        options = [layer.stride, layer.padding, layer.dilation]
        if dims == 1:
            options = [v if isinstance(v, str) else v[0] for v in options]
        stride, padding, dilation = options
        kind = export.nir.Conv1d if dims == 1 else export.nir.Conv2d
        size: Any = shape[1] if dims == 1 else tuple(shape[1:])
        node = kind(size, _numpy(layer.weight), stride, padding, dilation, layer.groups, bias)
        node.metadata["bias"] = np.array([layer.bias is not None])
        export.node(name, node, sources)
        with torch.no_grad():
            out = layer(layer.weight.new_zeros(1, *shape)).shape[1:]
        return [name], tuple(out)

    return add


def _pool(export: Export, name: str, layer: nn.AvgPool2d, sources: Sequence[str], shape: Shape) -> Any:
    summed = layer.divisor_override == 1
    padded = any(np.ravel(layer.padding))
    if layer.ceil_mode or (not summed and (layer.divisor_override or (padded and not layer.count_include_pad))):
        raise refusal(name, layer, "its rounding or its divisor is not in NIR")
    pair = [np.array(v if isinstance(v, tuple) else (v, v)) for v in (layer.kernel_size, layer.stride, layer.padding)]
    export.node(name, (export.nir.SumPool2d if summed else export.nir.AvgPool2d)(*pair), sources)
    return [name], tuple(layer(torch.zeros(1, *shape)).shape[1:])


def _flatten(export: Export, name: str, layer: nn.Flatten, sources: Sequence[str], shape: Shape) -> Any:
    if layer.start_dim != 1 or layer.end_dim != -1:
        raise refusal(name, layer, "only all dimensions of a sample can be flattened")
    node = export.nir.Flatten({"input": np.array(shape)}, start_dim=0, end_dim=-1)
    export.node(name, node, sources)
    return [name], (math.prod(shape),)


def _scale(export: Export, name: str, layer: Scale, sources: Sequence[str], shape: Shape) -> Any:
    export.node(name, export.nir.Scale(_numpy(layer.scale.expand(shape))), sources)
    return [name], shape


def _delay(export: Export, name: str, layer: Delay, sources: Sequence[str], shape: Shape) -> Any:
    dt = _step(export.model)
    export.node(name, export.nir.Delay(_array(layer.steps.double() * dt / 1000, shape)), sources)
    return [name], shape


def _delayed(
    export: Export, name: str, layer: DelayedLinear | DelayedConv2d, sources: Sequence[str], shape: Shape
) -> Any:
    """A node Delay and a linear map or convolution for each delay that occurs; their sum is the layer."""
    if not layer.is_hard:
        raise refusal(
            name, layer, "its delays are still spread over several steps", "layer.round_().hard(True) leaves one each"
        )
    dt = _step(export.model)
    ends: list[str] = []
    out: Shape = ()
    steps = layer.delays.detach().round().long()
    for delay in sorted(set(steps.flatten().tolist())):
        weight = torch.where(steps == delay, layer.weight, 0.0)
        here, before = f"{name}.weight{delay}", sources
        if delay:
            export.node(f"{name}.delay{delay}", export.nir.Delay(_array(delay * dt / 1000, shape)), sources)
            before = [f"{name}.delay{delay}"]
        if isinstance(layer, DelayedConv2d):
            convolution = nn.Conv2d(
                layer.n_in, layer.n_out, layer.kernel_size, layer.stride, layer.padding, bias=False, dtype=weight.dtype
            )
            convolution.weight = nn.Parameter(weight.detach().cpu().view_as(convolution.weight))
            _, out = _conv(2)(export, here, convolution, before, shape)
        else:
            _, out = _map(export, here, layer, weight, None if ends else layer.bias, before, shape)
        ends.append(here)
    return ends, out


def _step(model: nn.Module) -> float:
    """The length of a step in ms that all layers of a network share."""
    steps: list[Any] = [getattr(m, "dt", None) for m in model.modules()]
    found = {float(dt) for dt in steps if isinstance(dt, float | int)}
    if len(found) > 1:
        raise UnsupportedError("the layers disagree on the length of a step", given=sorted(found), expected="one dt")
    return found.pop() if found else 1.0


def _refuse_spikes(name: str, layer: Any) -> None:
    """Refuse what changes when a neuron spikes and NIR has no words for."""
    if layer.reset != "hard":
        raise refusal(
            name,
            layer,
            f"a {layer.reset!r} reset; NIR's neurons go to a reset value",
            'train with reset="hard", or set layer.reset = "hard" if the difference does not matter to you',
        )
    if layer.refractory:
        raise refusal(name, layer, f"a refractory time of {layer.refractory} ms")
    options = {
        "delayed_reset": "a reset one step later",
        "inclusive": "spikes at the threshold itself",
        "smooth": "smooth numbers in place of spikes",
    }
    for option, words in options.items():
        if getattr(layer, option, False):
            raise refusal(name, layer, words)


def _lif(export: Export, name: str, layer: LIF, sources: Sequence[str], shape: Shape) -> Any:
    _refuse_spikes(name, layer)
    decay = layer.decay.detach().double()
    gain = layer.gain * (1 - decay if layer.scale_input else torch.ones_like(decay))
    numbers = {"v_threshold": layer.threshold, "v_reset": layer.reset_value}
    arrays = {key: _array(value, shape) for key, value in numbers.items()}
    tau = layer.tau_mem.detach().double()
    if bool(torch.isinf(tau).all()):
        if layer.scale_input:
            raise refusal(name, layer, "without a leak an input scaled by 1 - α is nothing")
        if bool((layer.rest != 0).any()):
            raise refusal(name, layer, "a neuron without a leak has no rest in NIR")
        node = export.nir.IF(r=_array(gain * (1000.0 / layer.dt), shape), **arrays)
    else:
        if bool(torch.isinf(tau).any()):
            raise refusal(name, layer, "some of its units leak and some do not", "split the layer")
        r = _array(gain / (1 - decay), shape)
        node = export.nir.LIF(tau=_array(tau / 1000, shape), r=r, v_leak=_array(layer.rest, shape), **arrays)
    _keep(node, layer, ("log_tau_mem",))
    node.metadata["euler"] = np.array([layer.discretisation == "euler"])
    export.node(name, node, sources)
    return [name], shape


def _keep(node: Any, layer: Any, raw: Sequence[str]) -> None:
    """What a reader of ours needs to take the very same steps; other readers may ignore it. NIR files keep arrays."""
    node.metadata["dt_ms"] = np.array([float(layer.dt)])
    for name in raw:
        if hasattr(layer, name):
            node.metadata[name] = np.atleast_1d(_numpy(getattr(layer, name)))


def _cuba(export: Export, name: str, layer: CUBA, sources: Sequence[str], shape: Shape) -> Any:
    _refuse_spikes(name, layer)
    if layer.rises:
        raise refusal(name, layer, "a synaptic current that rises over time; NIR's CubaLIF jumps", "tau_rise=None")
    alpha = torch.exp(-layer.dt / layer.tau_mem.detach().double())
    rho = torch.exp(-layer.dt / layer.tau_syn.detach().double())
    kappa = 1 - alpha if layer.scale_input else torch.ones_like(alpha)
    k = 1 - rho if layer.norm == "area" else torch.ones_like(rho)
    node = export.nir.CubaLIF(
        tau_syn=_array(layer.tau_syn.detach().double() / 1000, shape),
        tau_mem=_array(layer.tau_mem.detach().double() / 1000, shape),
        r=_array(kappa / (1 - alpha), shape),
        v_leak=_array(layer.rest, shape),
        v_threshold=_array(layer.threshold, shape),
        v_reset=_array(layer.reset_value, shape),
        w_in=_array(k / (1 - rho), shape),
    )
    _keep(node, layer, ("log_tau_mem", "log_tau_syn"))
    node.metadata["euler"] = np.array([False])
    export.node(name, node, sources)
    return [name], shape


def _leaky(export: Export, name: str, layer: LeakyIntegrator, sources: Sequence[str], shape: Shape) -> Any:
    tau = layer.tau_mem.detach().double()
    if bool(torch.isinf(tau).all()):
        node = export.nir.I(r=_array(1000.0 / layer.dt, shape))
    else:
        alpha = torch.exp(-layer.dt / tau)
        kappa = 1 - alpha if layer.scale_input else torch.ones_like(alpha)
        r = _array(kappa / (1 - alpha), shape)
        node = export.nir.LI(tau=_array(tau / 1000, shape), r=r, v_leak=_array(layer.rest, shape))
    _keep(node, layer, ("log_tau_mem",))
    export.node(name, node, sources)
    return [name], shape


def _exponential(export: Export, name: str, layer: ExponentialSynapse, sources: Sequence[str], shape: Shape) -> Any:
    tau = layer.tau.detach().double()
    r = _array(1 / (1 - torch.exp(-layer.dt / tau)), shape)
    node = export.nir.LI(tau=_array(tau / 1000, shape), r=r, v_leak=_array(0.0, shape))
    node.metadata["log_tau_mem"] = np.atleast_1d(_numpy(layer.log_tau))
    node.metadata["dt_ms"] = np.array([float(layer.dt)])
    export.node(name, node, sources)
    return [name], shape


def _recurrent(export: Export, name: str, layer: Recurrent, sources: Sequence[str], shape: Shape) -> Any:
    if len(shape) != 1:
        raise refusal(name, layer, "recurrent weights over several dimensions of units")
    ends, shape = export.add(name, layer.neuron, sources, shape)
    _back(export, name, layer.matrix())
    return ends, shape


def _recurrent_lif(export: Export, name: str, layer: RecurrentLIF, sources: Sequence[str], shape: Shape) -> Any:
    _lif(export, name, layer, sources, shape)
    _back(export, name, layer.weight if layer.mask is None else layer.weight * layer.mask)
    return [name], shape


def _back(export: Export, name: str, weight: Tensor) -> None:
    export.node(f"{name}.recurrent", export.nir.Linear(_numpy(weight)), [name])
    export.edges.append((f"{name}.recurrent", name))


# the very class, not those derived from it: a subclass may compute something else
EXPORTS: dict[type[nn.Module], Callable[..., Any]] = {
    RecurrentLIF: _recurrent_lif,
    Recurrent: _recurrent,
    LIF: _lif,
    IF: _lif,
    PLIF: _lif,
    CUBA: _cuba,
    LeakyIntegrator: _leaky,
    ExponentialSynapse: _exponential,
    DelayedLinear: _delayed,
    DelayedConv2d: _delayed,
    Dense: _dense,
    Sparse: _sparse,
    Lateral: _lateral,
    GapJunctions: _gap,
    Delay: _delay,
    Scale: _scale,
    nn.Linear: _linear,
    nn.Conv1d: _conv(1),
    nn.Conv2d: _conv(2),
    Convolution: _conv(2),
    nn.AvgPool2d: _pool,
    nn.Flatten: _flatten,
    nn.Identity: _passed,
    nn.Dropout: _passed,
    nn.Dropout1d: _passed,
    nn.Dropout2d: _passed,
}
