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

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from plexus.errors import PlexusError, ShapeError, UnsupportedError, require
from plexus.nn._sequential import Sequential
from plexus.nn.interop._graph import GraphNetwork
from plexus.nn.interop._nir_layers import EXPORTS, Shape, refusal
from plexus.nn.synapses import DelayedLinear, Dense, Lateral, Sparse
from plexus.units._evaluating import evaluating

__all__ = ["save_nir", "to_nir"]


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
        >>> from plexus.nn import LIF
        >>> net = Sequential(nn.Linear(3, 4), LIF(4, reset="hard"))
        >>> graph = to_nir(net)
        >>> sorted(type(node).__name__ for node in graph.nodes.values())
        ['Affine', 'Input', 'LIF', 'Output']
    """
    return Export(model, example).graph()


def save_nir(model: nn.Module, path: str | os.PathLike[str], example: Tensor | None = None) -> None:
    """Write the NIR graph of a network to a file (HDF5), whole or not at all; see `to_nir`.

    Raises:
        PlexusError: the folder cannot be written.

    Examples:
        >>> from plexus.nn import LIF
        >>> from plexus.nn.interop import load_nir
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_nir(Sequential(nn.Linear(3, 4), LIF(4, reset="hard")), f"{folder}/net.nir")
        ...     again = load_nir(f"{folder}/net.nir")
        >>> [type(layer).__name__ for layer in again]
        ['Linear', 'LIF']
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


class Export:
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
            whole = model if isinstance(model, Sequential | GraphNetwork) else Sequential(model)  # folds time
            self._measure(whole, example)

    def _measure(self, model: nn.Module, example: Tensor) -> None:
        """The shape of one sample at the input of every layer."""

        def note(module: nn.Module, args: tuple[Any, ...]) -> None:
            if not args:
                return
            x = args[0]
            folded = getattr(module, "_plexus_fold", None) is not None
            self.shapes.setdefault(module, tuple(x.shape[1:] if folded else x.shape[2:]))

        hooks = [module.register_forward_pre_hook(note) for module in model.modules()]
        try:
            with evaluating(model), torch.no_grad():
                model(example[:1, :1])
        finally:
            for hook in hooks:
                hook.remove()

    def graph(self) -> Any:
        model = self.model
        if isinstance(model, GraphNetwork):
            size = self._input_shape(next(model[b] for a, b in model.edges if a == "input"), "input")
            self._whole_graph(model, size)
        else:
            layers = _parts(model) if isinstance(model, Sequential) else [("layer", model)]
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
        if isinstance(layer, DelayedLinear | Dense | Sparse):
            return (layer.n_in,)
        if isinstance(layer, Lateral):
            return (len(layer.weight),)
        units: Any = getattr(layer, "units", None)
        if units is not None:
            return (units,) if isinstance(units, int) else tuple(units)
        if isinstance(layer, nn.Sequential) and len(layer):
            inner, part = _parts(layer)[0]
            return self._input_shape(part, f"{name}.{inner}")
        if _class(layer) not in EXPORTS:
            raise refusal(name, layer, "NIR has no node for it")
        raise ShapeError(
            f"the size of the input of layer {name} is not known", mend="give an example: to_nir(model, x[:, :1])"
        )

    def add(self, name: str, layer: nn.Module, sources: Sequence[str], shape: Shape) -> tuple[Sequence[str], Shape]:
        """Add a layer behind some nodes; the nodes whose sum is its output, and the shape of that."""
        if _class(layer) in EXPORTS:
            ends, out = EXPORTS[_class(layer)](self, name, layer, sources, shape)
            return ends, out
        if isinstance(layer, nn.Sequential):
            for inner, part in _parts(layer):
                sources, shape = self.add(f"{name}.{inner}", part, sources, shape)
            return sources, shape
        raise refusal(name, layer, "NIR has no node for it")

    def node(self, name: str, node: Any, sources: Sequence[str]) -> None:
        self.nodes[name] = node
        self.edges += [(source, name) for source in sources]


def _parts(model: nn.Sequential) -> list[tuple[str, nn.Module]]:
    """The layers in order; `named_children` would leave out a layer's second use."""
    return [(name, part) for name, part in model._modules.items() if part is not None]


def _class(layer: nn.Module) -> type[nn.Module]:
    """The class of a layer; torch derives one for each parametrized layer."""
    kind: type[nn.Module] = type(layer)
    if parametrize.is_parametrized(layer):
        base: Any = kind.__mro__[1]
        kind = base
    return kind
