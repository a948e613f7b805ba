"""From NIR: a graph of differential equations as a network that takes steps.

A chain becomes a `Sequential`, a neuron whose output comes back through one linear map a `Recurrent` layer, linear maps
behind delay nodes that meet again a `DelayedLinear`; what is left over a `GraphNetwork`. With α the decay per step,
exp(-dt/τ) or 1 - dt/τ, the input of a neuron is weighed by R (1 - α): by 1 - α (`scale_input`) for R = 1, by 1 where
that is what R says, and else by a `Scale` before it.

Source: Pedersen et al., Neuromorphic intermediate representation (2024).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from plexus.errors import FormatError, RangeError, UnsupportedError, require
from plexus.nn._sequential import Sequential
from plexus.nn.interop._graph import GraphNetwork
from plexus.nn.interop._modules import Delay, Scale
from plexus.nn.interop._nir_weights import conv, linear, raw, scalar, tensor
from plexus.nn.neurons import CUBA, IF, LIF, LeakyIntegrator, Recurrent
from plexus.nn.synapses import DelayedLinear, ExponentialSynapse

__all__ = ["from_nir", "load_nir"]

Discretisation = Literal["exponential", "euler"]


def load_nir(path: str | os.PathLike[str], **options: Any) -> nn.Module:
    """Read a NIR file and build its network; see `from_nir`.

    Raises:
        FormatError: the file is not there or is no NIR graph.

    Examples:
        >>> load_nir("nowhere.nir")  # doctest: +IGNORE_EXCEPTION_DETAIL
        Traceback (most recent call last):
        plexus.errors.FormatError: there is no such file
    """
    nir = require("nir", "interop", purpose="NIR files")
    if not Path(path).is_file():
        raise FormatError("there is no such file", given=str(path))
    try:
        graph = nir.read(path)
    except (OSError, KeyError, ValueError, AssertionError, TypeError) as error:
        raise FormatError("the file is no NIR graph", given=f"{path}: {error}") from error
    return from_nir(graph, **options)


def from_nir(
    graph: Any,
    *,
    dt: float | None = None,
    discretisation: Discretisation | None = None,
    surrogate: Any = "arctan",
) -> nn.Module:
    """The network of a NIR graph (extra `interop`): `Sequential` where it is a chain, else `GraphNetwork`.

    Args:
        graph: a `nir.NIRGraph`.
        dt: length of a step, ms. By default that which the graph was written with, where it says so, else 1.
        discretisation: `"exponential"` or `"euler"`; by default that of the writer, else exponential.
        surrogate: of the spiking layers, which NIR does not know of.

    Raises:
        UnsupportedError: a node that none of our layers computes, or a time constant too short for Euler steps.
        RangeError: a delay is not a whole number of steps.

    Examples:
        >>> from plexus.nn.interop import to_nir
        >>> net = Sequential(nn.Linear(3, 4), LIF(4, reset="hard"))
        >>> again = from_nir(to_nir(net))
        >>> x = torch.rand(9, 2, 3)
        >>> torch.equal(net(x)[0], again(x)[0])
        True
    """
    return _Import(graph, dt, discretisation, surrogate).network()


class _Import:
    """Turns nodes into layers, then folds loops and delays into layers of ours."""

    def __init__(self, graph: Any, dt: float | None, discretisation: Discretisation | None, surrogate: Any) -> None:
        self.nir = require("nir", "interop", purpose="NIR graphs")
        if dt is not None and not dt > 0:
            raise RangeError("the length of a step must be positive", given=dt, expected="ms > 0")
        if not isinstance(graph, self.nir.NIRGraph):
            raise FormatError("this is no NIR graph", given=type(graph).__name__, expected="nir.NIRGraph")
        self.dt, self.discretisation, self.surrogate = dt, discretisation, surrogate
        nodes, edges = _flat(self.nir, graph)
        self.layers: dict[str, list[nn.Module]] = {}
        ends: dict[str, str] = {}
        for kind, what in ((self.nir.Input, "input"), (self.nir.Output, "output")):
            found = [name for name, node in nodes.items() if isinstance(node, kind)]
            if len(found) != 1:
                raise UnsupportedError(f"the graph does not have one {what}", given=found, expected="one")
        for name, node in nodes.items():
            if isinstance(node, self.nir.Input | self.nir.Output):
                ends[name] = "input" if isinstance(node, self.nir.Input) else "output"
            else:
                self.layers[name] = self._layers(name, node)
        self.edges = list(dict.fromkeys((ends.get(a, a), ends.get(b, b)) for a, b in edges))

    def network(self) -> nn.Module:
        self._fold_recurrence()
        self._fold_delays()
        chain = self._chain()
        if chain is not None:
            return Sequential(*(layer for name in chain for layer in self.layers[name]))
        single = {name: found[0] if len(found) == 1 else Sequential(*found) for name, found in self.layers.items()}
        return GraphNetwork(single, self.edges)

    def _after(self, name: str) -> list[str]:
        return [b for a, b in self.edges if a == name]

    def _before(self, name: str) -> list[str]:
        return [a for a, b in self.edges if b == name]

    def _chain(self) -> list[str] | None:
        found: list[str] = []
        at = "input"
        while True:
            after = self._after(at)
            if len(after) != 1 or len(self._before(after[0])) != 1:
                return None
            at = after[0]
            if at == "output":
                return found if len(found) == len(self.layers) else None
            if at in found:
                return None
            found.append(at)

    def _fold_recurrence(self) -> None:
        for name in list(self.layers):
            found = self.layers[name]
            if not (len(found) == 1 and isinstance(found[0], nn.Linear) and found[0].bias is None):
                continue
            before, after = self._before(name), self._after(name)
            if before != after or len(before) != 1 or before[0] not in self.layers:
                continue
            *scale, neuron = self.layers[before[0]]
            if isinstance(neuron, Recurrent) or not isinstance(neuron, LIF | CUBA):
                continue
            weight = found[0].weight.detach().clone()
            if scale:  # what comes back is weighed by it, too
                weight = scale[0].scale.unsqueeze(1) * weight
            autapses = bool((weight.diagonal() != 0).any())
            self.layers[before[0]] = [*scale, Recurrent(neuron, weight=weight, autapses=autapses)]
            del self.layers[name]
            self.edges = [edge for edge in self.edges if name not in edge]

    def _fold_delays(self) -> None:
        """Linear maps from one source, some behind a delay, whose outputs are summed at the same places."""
        groups: dict[tuple[str, tuple[str, ...]], list[tuple[str, str | None]]] = {}
        for name, found in self.layers.items():
            if len(found) != 1 or not isinstance(found[0], nn.Linear) or len(self._before(name)) != 1:
                continue
            (source,) = self._before(name)
            line: Any = self.layers.get(source, [None])[0]
            uniform = isinstance(line, Delay) and len(self.layers[source]) == 1
            if uniform and len(set(line.steps.tolist())) == 1 and self._after(source) == [name]:
                if len(self._before(source)) != 1:
                    continue
                key, late = (self._before(source)[0], tuple(self._after(name))), source
            else:
                key, late = (source, tuple(self._after(name))), None
            groups.setdefault(key, []).append((name, late))
        for (source, targets), members in groups.items():
            if any(late for _, late in members):
                self._fold(source, targets, members)

    def _fold(self, source: str, targets: tuple[str, ...], members: list[tuple[str, str | None]]) -> None:
        maps: list[Any] = [self.layers[name][0] for name, _ in members]
        lines: list[Any] = [None if late is None else self.layers[late][0] for _, late in members]
        steps = [0 if line is None else int(line.steps.flatten()[0]) for line in lines]
        occupied = torch.stack([m.weight.detach() != 0 for m in maps])
        biases = [m.bias for m in maps if m.bias is not None]
        if bool((occupied.sum(0) > 1).any()) or len(biases) > 1 or max(steps) < 1:
            return
        layer = DelayedLinear(maps[0].in_features, maps[0].out_features, max(steps), bias=bool(biases))
        with torch.no_grad():
            layer.weight.copy_(torch.stack([m.weight for m in maps]).sum(0))
            layer.delay.copy_((occupied * torch.tensor(steps).view(-1, 1, 1)).sum(0))
            if biases:
                assert layer.bias is not None
                layer.bias.copy_(biases[0])
        name = members[0][0].rpartition(".weight")[0] or members[0][0]
        for member in members:
            for gone in filter(None, member):
                del self.layers[gone]
                self.edges = [edge for edge in self.edges if gone not in edge]
        self.layers[name] = [layer.hard(True)]
        self.edges += [(source, name), *((name, target) for target in targets)]

    # ------------------------------------------------------------ nodes

    def _layers(self, name: str, node: Any) -> list[nn.Module]:
        nir = self.nir
        if isinstance(node, nir.Affine | nir.Linear):
            return [linear(node)]
        if isinstance(node, nir.Conv1d | nir.Conv2d):
            return [conv(node, nn.Conv1d if isinstance(node, nir.Conv1d) else nn.Conv2d)]
        if isinstance(node, nir.AvgPool2d | nir.SumPool2d):
            sizes = [[int(v) for v in np.atleast_1d(s)] for s in (node.kernel_size, node.stride, node.padding)]
            size, stride, padding = ((s[0], s[-1]) for s in sizes)
            summed = isinstance(node, nir.SumPool2d)
            return [nn.AvgPool2d(size, stride, padding, divisor_override=1 if summed else None)]
        if isinstance(node, nir.Flatten):
            start, end = int(node.start_dim), int(node.end_dim)
            return [nn.Flatten(start + 1, end + 1 if end >= 0 else end)]
        if isinstance(node, nir.Scale):
            return [Scale(tensor(node.scale))]
        if isinstance(node, nir.Delay):
            return [self._delay(name, node)]
        neurons = {
            nir.LIF: self._lif,
            nir.IF: self._if,
            nir.CubaLIF: self._cuba,
            nir.LI: self._li,
            nir.I: self._integrator,
            nir.CubaLI: self._cuba_li,
        }
        if type(node) in neurons:
            return neurons[type(node)](name, node)
        raise UnsupportedError(f"node {name} of the graph is a {type(node).__name__}, which no layer of ours computes")

    def _dt(self, node: Any) -> float:
        written = node.metadata.get("dt_ms") if node.metadata else None
        return self.dt if self.dt is not None else 1.0 if written is None else float(np.ravel(written)[0])

    def _scheme(self, node: Any) -> Discretisation:
        written = node.metadata.get("euler") if node.metadata else None
        euler = written is not None and bool(np.ravel(written)[0])
        return self.discretisation or ("euler" if euler else "exponential")

    def _delay(self, name: str, node: Any) -> nn.Module:
        steps = np.atleast_1d(node.delay) * 1000 / (self.dt or _written_dt(self) or 1.0)
        if not np.allclose(steps, np.round(steps), atol=1e-4):
            raise RangeError(
                f"the delays of node {name} are no whole numbers of steps", given=steps, mend="choose another dt"
            )
        return Delay(torch.from_numpy(np.round(steps)))

    def _decay(self, name: str, node: Any, tau: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """α per step of a time constant in s."""
        dt = self._dt(node) / 1000
        if self._scheme(node) == "exponential":
            return np.exp(-dt / tau)
        if (tau <= dt).any():
            raise UnsupportedError(
                f"node {name} has a time constant too short for Euler steps",
                given=f"{tau.min() * 1000:g} ms",
                mend="a smaller dt, or discretisation='exponential'",
            )
        return np.asarray(1 - dt / tau)

    def _input(self, factor: np.ndarray[Any, Any], scaled: np.ndarray[Any, Any]) -> tuple[list[nn.Module], bool]:
        """What weighs the input: a `Scale` where need be, and whether the neuron scales by 1 - α itself."""
        if np.allclose(factor, 1.0, rtol=1e-5):
            return [], False
        if np.allclose(factor, scaled, rtol=1e-5):
            return [], True
        return [Scale(tensor(factor))], False

    def _spiking(self, node: Any) -> dict[str, Any]:
        threshold, reset = tensor(node.v_threshold), tensor(node.v_reset)
        return {
            "threshold": scalar(threshold),
            "reset": "hard",
            "reset_value": scalar(reset),
            "surrogate": self.surrogate,
            "dt": self._dt(node),
        }

    def _lif(self, name: str, node: Any) -> list[nn.Module]:
        alpha = self._decay(name, node, node.tau)
        scale, scaled = self._input(node.r * (1 - alpha), 1 - alpha)
        layer = LIF(
            node.tau.shape,
            scalar(tensor(node.tau * 1000)),
            discretisation=self._scheme(node),
            scale_input=scaled,
            rest=scalar(tensor(node.v_leak)),
            **self._spiking(node),
        )
        raw(layer, node, "log_tau_mem")
        return [*scale, layer]

    def _if(self, name: str, node: Any) -> list[nn.Module]:
        scale, _ = self._input(node.r * self._dt(node) / 1000, np.full_like(node.r, np.nan))
        return [*scale, IF(node.r.shape, **self._spiking(node))]

    def _cuba(self, name: str, node: Any) -> list[nn.Module]:
        self._only_exponential(name, node)
        alpha, rho = self._decay(name, node, node.tau_mem), self._decay(name, node, node.tau_syn)
        k, kappa = node.w_in * (1 - rho), node.r * (1 - alpha)
        # both factors are linear on the way to the membrane, so what does not fit goes before the synapse
        norm = "none" if np.allclose(k, 1.0, rtol=1e-5) else "area" if np.allclose(node.w_in, 1.0, rtol=1e-5) else None
        scaled = bool(np.allclose(node.r, 1.0, rtol=1e-5))
        left = (k if norm is None else np.ones_like(k)) * (1.0 if scaled else kappa)
        scale: list[nn.Module] = [] if np.allclose(left, 1.0, rtol=1e-5) else [Scale(tensor(left))]
        layer = CUBA(
            node.tau_mem.shape,
            scalar(tensor(node.tau_mem * 1000)),
            scalar(tensor(node.tau_syn * 1000)),
            norm=norm or "none",  # type: ignore[arg-type]
            scale_input=scaled,
            rest=scalar(tensor(node.v_leak)),
            **self._spiking(node),
        )
        raw(layer, node, "log_tau_mem")
        raw(layer, node, "log_tau_syn")
        return [*scale, layer]

    def _only_exponential(self, name: str, node: Any) -> None:
        if self._scheme(node) != "exponential":
            raise UnsupportedError(
                f"node {name} ({type(node).__name__}) has exponential steps only in our layers",
                mend='discretisation="exponential", or a smaller dt, where both agree',
            )

    def _li(self, name: str, node: Any) -> list[nn.Module]:
        self._only_exponential(name, node)
        alpha = self._decay(name, node, node.tau)
        scale, scaled = self._input(node.r * (1 - alpha), 1 - alpha)
        tau, rest = scalar(tensor(node.tau * 1000)), scalar(tensor(node.v_leak))
        layer = LeakyIntegrator(node.tau.shape, tau, dt=self._dt(node), scale_input=scaled, rest=rest)
        raw(layer, node, "log_tau_mem")
        return [*scale, layer]

    def _integrator(self, name: str, node: Any) -> list[nn.Module]:
        scale, _ = self._input(node.r * self._dt(node) / 1000, np.full_like(node.r, np.nan))
        return [*scale, LeakyIntegrator(node.r.shape, float("inf"), dt=self._dt(node))]

    def _cuba_li(self, name: str, node: Any) -> list[nn.Module]:
        self._only_exponential(name, node)
        alpha, rho = self._decay(name, node, node.tau_mem), self._decay(name, node, node.tau_syn)
        left = node.w_in * (1 - rho) * node.r * (1 - alpha)
        dt, shape = self._dt(node), node.tau_mem.shape
        synapse = ExponentialSynapse(shape, scalar(tensor(node.tau_syn * 1000)), dt=dt)
        tau, rest = scalar(tensor(node.tau_mem * 1000)), scalar(tensor(node.v_leak))
        scale: list[nn.Module] = [] if np.allclose(left, 1.0, rtol=1e-5) else [Scale(tensor(left))]
        return [*scale, synapse, LeakyIntegrator(shape, tau, dt=dt, rest=rest)]


def _written_dt(reader: _Import) -> float | None:
    """The length of a step that the neurons of the graph were written with."""
    found = {float(m.dt) for layers in reader.layers.values() for m in layers if hasattr(m, "dt")}  # type: ignore[arg-type]
    return found.pop() if len(found) == 1 else None


def _flat(nir: Any, graph: Any, prefix: str = "") -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """Nodes and edges of a graph with the graphs inside it opened."""
    nodes: dict[str, Any] = {}
    edges = [(prefix + a, prefix + b) for a, b in graph.edges]
    for name, node in graph.nodes.items():
        full = prefix + name
        if not isinstance(node, nir.NIRGraph):
            nodes[full] = node
            continue
        inner, within = _flat(nir, node, full + ".")
        into = [n for n, part in inner.items() if isinstance(part, nir.Input)]
        out = [n for n, part in inner.items() if isinstance(part, nir.Output)]
        begins = [b for a, b in within if a in into]
        finals = [a for a, b in within if b in out]
        nodes |= {n: part for n, part in inner.items() if n not in into and n not in out}
        opened = []
        for a, b in edges:
            opened += [(x, y) for x in (finals if a == full else [a]) for y in (begins if b == full else [b])]
        edges = opened + [(a, b) for a, b in within if a not in into and b not in out]
    delays_last = sorted(nodes.items(), key=lambda item: isinstance(item[1], nir.Delay))
    return dict(delays_last), edges  # delays are read last, when the length of a step is known
