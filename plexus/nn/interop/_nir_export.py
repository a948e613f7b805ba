"""To NIR: a network as a graph of the equations that its layers discretise.

NIR neurons are differential equations, times in seconds. With α our decay per step and κ the factor of the input:

    LIF        τ = τ_mem / 1000,  R = κ / (1 - α),  v_leak = rest,  v_threshold, v_reset        hard reset
    IF         R = 1000 κ / dt                                                                   τ_mem = ∞
    CubaLIF    as LIF, and w_in = k / (1 - ρ)                                                    exponential synapse
    LI, I      as LIF and IF without a threshold;  an exponential synapse is an LI with R = 1 / (1 - ρ)
    Delay      steps · dt / 1000

so that a reader who takes steps of the same length by the same scheme gets our numbers back. The scheme (dt,
exponential or Euler) and the raw parameters are kept as metadata of the nodes; whoever ignores them still reads the
same equations. What NIR has no words for (a soft reset, a refractory time, adaptation …) is refused, the layer named.

Source: Pedersen et al., Neuromorphic intermediate representation (2024).
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from plexus.errors import PlexusError, ShapeError, UnsupportedError, require
from plexus.nn._sequential import Sequential
from plexus.nn.interop._graph import GraphNetwork
from plexus.nn.interop._modules import Delay, Scale
from plexus.nn.neurons import CUBA, LIF, LeakyIntegrator, Recurrent, RecurrentLIF
from plexus.nn.synapses import DelayedLinear, ExponentialSynapse

__all__ = ["save_nir", "to_nir"]

Shape = tuple[int, ...]


def to_nir(model: nn.Module, example: Tensor | None = None) -> Any:
    """The NIR graph of a network (a `nir.NIRGraph`; extra `interop`).

    Args:
        model: a `Sequential` or `GraphNetwork` of ours, or one layer. Dropout is left out, as in evaluation.
        example: an input `[time, batch, …]` of any length; needed where sizes do not follow from a first linear layer
            (convolutions).

    Raises:
        UnsupportedError: NIR cannot express a layer; the error names it and the reason.
        ShapeError: the size of the input is not known.

    Examples:
        >>> net = Sequential(nn.Linear(3, 4), LIF(4, reset="hard"))
        >>> graph = to_nir(net)
        >>> sorted(type(node).__name__ for node in graph.nodes.values())
        ['Affine', 'Input', 'LIF', 'Output']
    """
    return _Export(model, example).graph()


def save_nir(model: nn.Module, path: str | os.PathLike[str], example: Tensor | None = None) -> None:
    """Write the NIR graph of a network to a file (HDF5), whole or not at all; see `to_nir`.

    Raises:
        PlexusError: the folder cannot be written.
    """
    nir = require("nir", "interop", purpose="NIR files")
    graph = to_nir(model, example)
    path = Path(path)
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".nir")
    except OSError as error:
        raise PlexusError(f"{path.parent} cannot be written", given=str(error), mend="choose another folder") from error
    os.close(handle)
    try:
        nir.write(temporary, graph)
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)


class _Export:
    """Walks through a network and collects nodes and edges."""

    def __init__(self, model: nn.Module, example: Tensor | None) -> None:
        self.nir = require("nir", "interop", purpose="NIR graphs")
        self.nodes: dict[str, Any] = {}
        self.edges: list[tuple[str, str]] = []
        self.model = model
        self.shapes: dict[nn.Module, Shape] = {}
        self.example = example
        if example is not None:
            if example.dim() < 3 or 0 in example.shape[:2]:
                raise ShapeError("the example has no time and batch", given=tuple(example.shape))
            self._measure(model, example)

    def _measure(self, model: nn.Module, example: Tensor) -> None:
        """The shape of one sample at the input of every layer."""

        def note(module: nn.Module, args: tuple[Any, ...]) -> None:
            x = args[0]
            folded = getattr(module, "_plexus_fold", None) is not None
            self.shapes.setdefault(module, tuple(x.shape[1:] if folded else x.shape[2:]))

        hooks = [module.register_forward_pre_hook(note) for module in model.modules()]
        training = model.training
        try:
            model.eval()
            with torch.no_grad():
                model(example[:1, :1])
        finally:
            model.train(training)
            for hook in hooks:
                hook.remove()

    def graph(self) -> Any:
        model = self.model
        if isinstance(model, GraphNetwork):
            size = self._input_shape(next(model[b] for a, b in model.edges if a == "input"), "input")
            self._whole_graph(model, size)
        else:
            layers = list(model.named_children()) if isinstance(model, Sequential) else [("layer", model)]
            if not layers:
                raise UnsupportedError("there is no layer to export")
            shape = self._input_shape(layers[0][1], layers[0][0])
            self.nodes["input"] = self.nir.Input({"input": np.array(shape)})
            sources: Sequence[str] = ["input"]
            for name, layer in layers:
                sources, shape = self.add(name, layer, sources, shape)
            self.nodes["output"] = self.nir.Output({"output": np.array(shape)})
            self.edges += [(source, "output") for source in sources]
        return self.nir.NIRGraph(self.nodes, self.edges)

    def _whole_graph(self, model: GraphNetwork, shape: Shape) -> None:
        self.nodes["input"] = self.nir.Input({"input": np.array(shape)})
        ends: dict[str, Sequence[str]] = {"input": ["input"]}
        begins: dict[str, Sequence[str]] = {}
        shapes = {"input": shape}
        for name in (n for group in model.order for n in group):
            before = len(self.edges)
            given = next((shapes[s] for s, t in model.edges if t == name and s in shapes), None)
            known = self.shapes.get(model[name], given)
            if known is None:
                known = self._input_shape(model[name], name)
            ends[name], shapes[name] = self.add(name, model[name], ["\0"], known)
            begins[name] = [t for s, t in self.edges[before:] if s == "\0"]
            self.edges = [(s, t) for s, t in self.edges if s != "\0"]
        last = next(s for s, t in model.edges if t == "output")
        self.nodes["output"] = self.nir.Output({"output": np.array(shapes[last])})
        begins["output"] = ["output"]
        self.edges += [(a, b) for s, t in model.edges for a in ends[s] for b in begins[t]]

    def _input_shape(self, layer: nn.Module, name: str) -> Shape:
        if layer in self.shapes:
            return self.shapes[layer]
        if isinstance(layer, nn.Linear):
            return (layer.in_features,)
        if isinstance(layer, DelayedLinear):
            return (layer.n_in,)
        if hasattr(layer, "units"):
            return tuple(layer.units)  # type: ignore[arg-type]
        raise ShapeError(
            f"the size of the input of layer {name} is not known", mend="give an example: to_nir(model, x[:, :1])"
        )

    def add(self, name: str, layer: nn.Module, sources: Sequence[str], shape: Shape) -> tuple[Sequence[str], Shape]:
        """Add a layer behind some nodes; the nodes whose sum is its output, and the shape of that."""
        for kind, export in _EXPORTS:
            if type(layer) is kind or (kind in _OPEN and isinstance(layer, kind)):
                ends, out = export(self, name, layer, sources, shape)
                return ends, out
        if isinstance(layer, Sequential | nn.Sequential):
            for inner, part in layer.named_children():
                sources, shape = self.add(f"{name}.{inner}", part, sources, shape)
            return sources, shape
        raise refusal(name, layer, "NIR has no node for it")

    def node(self, name: str, node: Any, sources: Sequence[str]) -> None:
        self.nodes[name] = node
        self.edges += [(source, name) for source in sources]


def refusal(name: str, layer: nn.Module, why: str, mend: str | None = None) -> UnsupportedError:
    """The error that names what cannot be exported, and why."""
    return UnsupportedError(f"layer {name} ({type(layer).__name__}) cannot be written to NIR: {why}", mend=mend)


def _array(value: Tensor | float, shape: Shape) -> np.ndarray[Any, Any]:
    tensor = torch.as_tensor(value, dtype=torch.float64).detach().cpu()
    return tensor.expand(shape).numpy().copy()


def _numpy(value: Tensor) -> np.ndarray[Any, Any]:
    return value.detach().cpu().numpy().copy()


def _passed(export: _Export, name: str, layer: nn.Module, sources: Sequence[str], shape: Shape) -> Any:
    return sources, shape


def _linear(export: _Export, name: str, layer: nn.Linear, sources: Sequence[str], shape: Shape) -> Any:
    if shape != (layer.in_features,):
        raise refusal(name, layer, f"NIR's linear maps take one dimension of units, here {shape}", "flatten first")
    weight = _numpy(layer.weight)
    if layer.bias is None:
        node = export.nir.Linear(weight)
    else:
        node = export.nir.Affine(weight, _numpy(layer.bias))
    export.node(name, node, sources)
    return [name], (layer.out_features,)


def _conv(dims: int) -> Callable[..., Any]:
    def add(export: _Export, name: str, layer: Any, sources: Sequence[str], shape: Shape) -> Any:
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


def _pool(export: _Export, name: str, layer: nn.AvgPool2d, sources: Sequence[str], shape: Shape) -> Any:
    if layer.ceil_mode or layer.divisor_override is not None or (layer.padding and not layer.count_include_pad):
        raise refusal(name, layer, "its rounding or its divisor is not in NIR")
    pair = [np.array(v if isinstance(v, tuple) else (v, v)) for v in (layer.kernel_size, layer.stride, layer.padding)]
    export.node(name, export.nir.AvgPool2d(*pair), sources)
    return [name], tuple(layer(torch.zeros(1, *shape)).shape[1:])


def _flatten(export: _Export, name: str, layer: nn.Flatten, sources: Sequence[str], shape: Shape) -> Any:
    if layer.start_dim != 1 or layer.end_dim != -1:
        raise refusal(name, layer, "only all dimensions of a sample can be flattened")
    node = export.nir.Flatten({"input": np.array(shape)}, start_dim=0, end_dim=-1)
    export.node(name, node, sources)
    return [name], (math.prod(shape),)


def _scale(export: _Export, name: str, layer: Scale, sources: Sequence[str], shape: Shape) -> Any:
    export.node(name, export.nir.Scale(_numpy(layer.scale.expand(shape))), sources)
    return [name], shape


def _delay(export: _Export, name: str, layer: Delay, sources: Sequence[str], shape: Shape) -> Any:
    dt = _step(export.model)
    export.node(name, export.nir.Delay(_array(layer.steps.double() * dt / 1000, shape)), sources)
    return [name], shape


def _delayed(export: _Export, name: str, layer: DelayedLinear, sources: Sequence[str], shape: Shape) -> Any:
    """A node Delay and a linear map for each delay that occurs; their sum is the layer."""
    if not layer.is_hard:
        raise refusal(
            name, layer, "its delays are still spread over several steps", "layer.round_().hard(True) leaves one each"
        )
    dt = _step(export.model)
    ends: list[str] = []
    steps = layer.delays.detach().round().long()
    for delay in sorted(set(steps.flatten().tolist())):
        weight = _numpy(torch.where(steps == delay, layer.weight, 0.0))
        here, before = f"{name}.weight{delay}", sources
        if delay:
            export.node(f"{name}.delay{delay}", export.nir.Delay(_array(delay * dt / 1000, shape)), sources)
            before = [f"{name}.delay{delay}"]
        first = not ends and layer.bias is not None
        node = export.nir.Affine(weight, _numpy(layer.bias)) if first else export.nir.Linear(weight)  # type: ignore[arg-type]
        export.node(here, node, before)
        ends.append(here)
    return ends, (layer.n_out,)


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
    for option, words in (("delayed_reset", "a reset one step later"), ("inclusive", "spikes at the threshold itself")):
        if getattr(layer, option, False):
            raise refusal(name, layer, words)


def _lif(export: _Export, name: str, layer: LIF, sources: Sequence[str], shape: Shape) -> Any:
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


def _cuba(export: _Export, name: str, layer: CUBA, sources: Sequence[str], shape: Shape) -> Any:
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


def _leaky(export: _Export, name: str, layer: LeakyIntegrator, sources: Sequence[str], shape: Shape) -> Any:
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


def _exponential(export: _Export, name: str, layer: ExponentialSynapse, sources: Sequence[str], shape: Shape) -> Any:
    tau = layer.tau.detach().double()
    r = _array(1 / (1 - torch.exp(-layer.dt / tau)), shape)
    node = export.nir.LI(tau=_array(tau / 1000, shape), r=r, v_leak=_array(0.0, shape))
    node.metadata["log_tau_mem"] = np.atleast_1d(_numpy(layer.log_tau))
    node.metadata["dt_ms"] = np.array([float(layer.dt)])
    export.node(name, node, sources)
    return [name], shape


def _recurrent(export: _Export, name: str, layer: Recurrent, sources: Sequence[str], shape: Shape) -> Any:
    if len(shape) != 1:
        raise refusal(name, layer, "recurrent weights over several dimensions of units")
    ends, shape = export.add(name, layer.neuron, sources, shape)
    _back(export, name, layer.matrix())
    return ends, shape


def _recurrent_lif(export: _Export, name: str, layer: RecurrentLIF, sources: Sequence[str], shape: Shape) -> Any:
    _lif(export, name, layer, sources, shape)
    _back(export, name, layer.weight if layer.mask is None else layer.weight * layer.mask)
    return [name], shape


def _back(export: _Export, name: str, weight: Tensor) -> None:
    export.node(f"{name}.recurrent", export.nir.Linear(_numpy(weight)), [name])
    export.edges.append((f"{name}.recurrent", name))


_EXPORTS: list[tuple[type[nn.Module], Callable[..., Any]]] = [
    (RecurrentLIF, _recurrent_lif),
    (Recurrent, _recurrent),
    (LIF, _lif),
    (CUBA, _cuba),
    (LeakyIntegrator, _leaky),
    (ExponentialSynapse, _exponential),
    (DelayedLinear, _delayed),
    (Delay, _delay),
    (Scale, _scale),
    (nn.Linear, _linear),
    (nn.Conv1d, _conv(1)),
    (nn.Conv2d, _conv(2)),
    (nn.AvgPool2d, _pool),
    (nn.Flatten, _flatten),
    (nn.Identity, _passed),
    (nn.Dropout, _passed),
    (nn.Dropout2d, _passed),
]
_OPEN: tuple[type[nn.Module], ...] = (LIF, nn.Linear)  # subclasses compute the same: IF, PLIF
