"""A network given as a graph: nodes that are layers, edges along which signals are summed.

    input of a node at step t = Σ over its incoming edges of what their sources put out at step t

Where edges form a loop, what a neuron in it emitted at step t - 1 comes back at step t. The parts of the graph that lie
in no loop run over all of time at once, those in a loop step by step.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from plexus.errors import ShapeError, UnknownNameError, UnsupportedError
from plexus.nn._sequential import Sequential, Stateful

__all__ = ["GraphNetwork", "GraphState"]


class GraphState(NamedTuple):
    """What a graph remembers: the states of its nodes, and what those in a loop emitted last."""

    nodes: tuple[Any, ...]
    emitted: tuple[Tensor | None, ...]  # [batch, unit…], None before the first step or outside of loops


class GraphNetwork(nn.Module):
    """`out, state = GraphNetwork(nodes, edges)(x)`; x `[time, batch, …]`.

    Args:
        nodes: layers by name. Those with a state follow `out, state = layer(x, state)`, time first; the others see time
            folded into the batch, as in `Sequential`.
        edges: pairs of names, from and to; `"input"` and `"output"` are the ends of the graph.

    Raises:
        UnknownNameError: an edge names no node.
        UnsupportedError: nothing reaches the output, or a loop holds no layer with a state.

    Examples:
        >>> from plexus.nn import LIF
        >>> nodes = {"in": nn.Linear(3, 4), "lif": LIF(4), "back": nn.Linear(4, 4, bias=False)}
        >>> edges = [("input", "in"), ("in", "lif"), ("lif", "back"), ("back", "lif"), ("lif", "output")]
        >>> out, state = GraphNetwork(nodes, edges)(torch.rand(6, 2, 3))
        >>> out.shape
        torch.Size([6, 2, 4])
    """

    def __init__(self, nodes: Mapping[str, nn.Module], edges: Iterable[tuple[str, str]]) -> None:
        super().__init__()
        self.names = tuple(nodes)
        self.edges = tuple(dict.fromkeys((str(a), str(b)) for a, b in edges))
        known = {*self.names, "input", "output"}
        for name in (name for edge in self.edges for name in edge):
            if name not in known:
                raise UnknownNameError.among("node", name, known)
        self.layers = nn.ModuleDict({self._key(name): layer for name, layer in nodes.items()})
        self.order = self._groups()
        if not any(to == "output" for _, to in self.edges):
            raise UnsupportedError("nothing reaches the output of the graph", given=self.edges)
        for group in self.order:
            if self._loops(group) and not any(isinstance(self[name], Stateful) for name in group):
                raise UnsupportedError(
                    "a loop of the graph holds nothing that takes a step of time", given=" → ".join(group)
                )

    @staticmethod
    def _key(name: str) -> str:
        return name.replace(".", "/")

    def __getitem__(self, name: str) -> nn.Module:
        """The layer of a node."""
        return self.layers[self._key(name)]

    def _groups(self) -> list[tuple[str, ...]]:
        """Strongly connected groups of nodes in an order in which signals flow (Tarjan 1972)."""
        after: dict[str, list[str]] = {name: [] for name in self.names}
        for source, target in self.edges:
            if source in after and target in after:
                after[source].append(target)
        index: dict[str, int] = {}
        low: dict[str, int] = {}
        stack: list[str] = []
        found: list[tuple[str, ...]] = []

        def visit(name: str) -> None:
            index[name] = low[name] = len(index)
            stack.append(name)
            for other in after[name]:
                if other not in index:
                    visit(other)
                    low[name] = min(low[name], low[other])
                elif other in stack:
                    low[name] = min(low[name], index[other])
            if low[name] == index[name]:
                at = stack.index(name)
                found.append(tuple(sorted(stack[at:], key=index.__getitem__)))
                del stack[at:]

        for name in self.names:
            if name not in index:
                visit(name)
        return found[::-1]

    def _loops(self, group: tuple[str, ...]) -> bool:
        return len(group) > 1 or (group[0], group[0]) in self.edges

    def initial_state(self, batch: int, *, dtype: torch.dtype | None = None) -> GraphState:
        """The states at rest."""
        layers = [self[name] for name in self.names]
        states = tuple(
            layer.initial_state(batch, dtype=dtype) if isinstance(layer, Stateful) else None for layer in layers
        )
        return GraphState(states, (None,) * len(layers))

    def forward(self, x: Tensor, state: GraphState | None = None) -> tuple[Tensor, GraphState]:
        """The sum of what reaches the output, `[time, batch, …]`, and the states after the last step."""
        if not isinstance(x, Tensor) or x.dim() < 2:
            given = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
            raise ShapeError("the input has no time and batch", given=given, expected="[time, batch, …]")
        nothing: tuple[Any, ...] = (None,) * len(self.names)
        states: dict[str, Any] = dict(zip(self.names, nothing if state is None else state.nodes, strict=True))
        emitted: dict[str, Tensor | None] = dict(
            zip(self.names, nothing if state is None else state.emitted, strict=True)
        )
        signals: dict[str, Tensor] = {"input": x}
        for group in self.order:
            if self._loops(group):
                self._walk(group, signals, states, emitted)
            else:
                arrived = self._arrivals(group[0], signals)
                if arrived is not None:
                    signals[group[0]], states[group[0]] = self._run(group[0], arrived, states[group[0]])
        out = self._arrivals("output", signals)
        if out is None:
            raise UnsupportedError("the input of the graph does not reach its output", given=self.edges)
        return out, GraphState(tuple(states[n] for n in self.names), tuple(emitted[n] for n in self.names))

    def _arrivals(self, name: str, signals: Mapping[str, Tensor]) -> Tensor | None:
        found = [signals[source] for source, target in self.edges if target == name and source in signals]
        return None if not found else found[0] if len(found) == 1 else torch.stack(found).sum(0)

    def _run(self, name: str, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        layer = self[name]
        if isinstance(layer, Stateful):
            out, after = layer(x, state)
            return out, after
        return Sequential(layer)(x)[0], None

    def _walk(
        self,
        group: tuple[str, ...],
        signals: dict[str, Tensor],
        states: dict[str, Any],
        emitted: dict[str, Tensor | None],
    ) -> None:
        """One step after the other; what layers with a state emitted a step ago comes back."""
        outside = {name: self._arrivals(name, signals) for name in group}
        steps = next(s.shape[0] for s in signals.values())
        outputs: dict[str, list[Tensor]] = {name: [] for name in group}
        waiting = [name for name in group if not isinstance(self[name], Stateful)]
        keeping = [name for name in group if isinstance(self[name], Stateful)]
        for t in range(steps):
            here: dict[str, Tensor] = {n: e.unsqueeze(0) for n in keeping if (e := emitted[n]) is not None}
            for name in (*self._settle(waiting), *keeping):
                inside = [here[s] for s, target in self.edges if target == name and s in here and s in group]
                row = outside[name]
                given = [*inside, *([] if row is None else [row[t : t + 1]])]
                if not given:
                    continue
                total = given[0] if len(given) == 1 else torch.stack(given).sum(0)
                out, states[name] = self._run(name, total, states[name])
                outputs[name].append(out)
                if name in waiting:
                    here[name] = out
            for name in keeping:
                if outputs[name]:
                    emitted[name] = outputs[name][-1][0]
        for name, rows in outputs.items():
            if rows:
                missing = steps - len(rows)  # a node that nothing reached in the first steps was silent then
                silent = [torch.zeros_like(rows[0])] * missing
                signals[name] = torch.cat([*silent, *rows])

    def _settle(self, names: list[str]) -> list[str]:
        """Layers without state in the order in which signals pass through them within a step."""
        done: list[str] = []
        left = list(names)
        while left:
            ready = [n for n in left if not any(t == n and s in left for s, t in self.edges)]
            if not ready:
                raise UnsupportedError("a loop of the graph passes through no neuron", given=" → ".join(left))
            done += ready
            left = [n for n in left if n not in ready]
        return done
