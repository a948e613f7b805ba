"""A circuit as a value: places, how much each counts, and how they act on each other.

Jaccard      |A ∩ B| / |A ∪ B|            of nodes, and of edges
by chance    hypergeometric: of N places, two circuits of a and b nodes share a b / N on average
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from plexus.errors import DtypeError, FormatError, RangeError, ShapeError, SiteError, UnsupportedError
from plexus.explain.circuits._places import PatchMap, Place
from plexus.units import Neurons, Site
from plexus.units._files import read_json, unwrap, wrap, write_json
from plexus.units._rows import counted

KIND, VERSION = "circuit", 1
Edge = tuple[Place, Place]


@dataclass(frozen=True)
class Circuit:
    """Places of a model with their scores, and edges between them with theirs.

    Attributes:
        nodes: place → score.
        edges: (sender, receiver) → score.
        name: what it is the circuit of.
        model: fingerprint of the model, if known.

    Raises:
        SiteError: an edge ends at a place that is no node.
        RangeError: a score is NaN or infinite.

    Examples:
        >>> first, second = Place(Site("h.0", "b t u"), None, 1), Place(Site("h.1", "b t u"), None, 2)
        >>> circuit = Circuit({first: 0.5, second: 1.0}, {(first, second): 0.4}, "greater than")
        >>> circuit == Circuit.from_json(circuit.to_json())
        True
        >>> print(circuit)
        greater than: 2 nodes, 1 edge
          h.1 #2  +1.000
          h.0 #1  +0.500
          h.0 #1 → h.1 #2  +0.400
    """

    nodes: Mapping[Place, float]
    edges: Mapping[Edge, float]
    name: str = "circuit"
    model: str | None = None

    def __post_init__(self) -> None:
        for place in self.nodes:
            if not isinstance(place, Place):
                raise DtypeError("the nodes of a circuit are places", given=type(place).__name__)
        for edge in self.edges:
            for end in edge:
                if end not in self.nodes:
                    raise SiteError("an edge ends at a place that is no node of the circuit", given=str(end))
        for what, score in [*self.nodes.items(), *self.edges.items()]:
            if not float("-inf") < float(score) < float("inf"):
                raise RangeError("a score of a circuit is finite", given=f"{what}: {score}")
        object.__setattr__(self, "nodes", {place: float(score) for place, score in self.nodes.items()})
        object.__setattr__(self, "edges", {edge: float(score) for edge, score in self.edges.items()})

    @classmethod
    def of(cls, found: PatchMap, k: int | None = None, *, least: float | None = None, name: str = "circuit") -> Circuit:
        """The places of a map with the largest effects: the `k` first, or those of at least `least` in size.

        Raises:
            RangeError: neither or both are given, k is not positive, or no place is left.
        """
        if (k is None) == (least is None):
            raise RangeError("a circuit takes its k first places, or those above a bar", given=f"k={k}, least={least}")
        if k is not None and (isinstance(k, bool) or not isinstance(k, int) or k < 1):
            raise RangeError("a number of places", given=k, expected="an int, 1 or more")
        ranked = found.top(len(found.places) if k is None else k)
        nodes = {place: effect for place, effect in ranked if least is None or abs(effect) >= least}
        if not nodes:
            raise RangeError("no place has that much of an effect", given=f"least={least}")
        return cls(nodes, {}, name, found.model)

    def with_edges(self, receiver: Place, paths: PatchMap, *, least: float = 0.0) -> Circuit:
        """The same circuit with the direct paths of a map from its nodes into one of them.

        Args:
            receiver: the node that the paths go into.
            paths: from `path_patching` with that receiver; senders that are no nodes are left out.
            least: the smallest absolute effect that counts.
        """
        found = {
            (place, receiver): effect
            for place, effect in zip(paths.places, paths.normalised.tolist(), strict=True)
            if place in self.nodes and place != receiver and abs(effect) >= least
        }
        return Circuit(self.nodes, {**self.edges, **found}, self.name, self.model)

    @property
    def sites(self) -> tuple[Site, ...]:
        """The sites of its nodes."""
        return tuple(dict.fromkeys(place.site for place in self.nodes))

    def neurons(self, universe: Neurons | Mapping[Site, int]) -> Neurons:
        """The units of the circuit over a universe; a node without a unit stands for all units of its site.

        Raises:
            UnsupportedError: a node holds at one position only, which a set of units cannot say.
            SiteError: the universe lacks a site.
        """
        sizes = universe.sizes if isinstance(universe, Neurons) else dict(universe)
        units: dict[Site, set[int]] = {}
        for place in self.nodes:
            if place.position is not None:
                raise UnsupportedError(
                    "a node at one position is no set of units",
                    given=str(place),
                    mend="patch with positions='all' for units; or give the map to `faithfulness` as its universe",
                )
            if place.site not in sizes:
                raise SiteError("the universe lacks a site of the circuit", given=str(place.site))
            units.setdefault(place.site, set()).update(range(sizes[place.site]) if place.unit is None else [place.unit])
        return Neurons.of(sizes, units, self.model)

    def to_json(self) -> dict[str, Any]:
        """A JSON object with a header; `from_json` reads it back."""
        return wrap(KIND, VERSION, self._body())

    @classmethod
    def from_json(cls, document: Mapping[str, Any] | str) -> Circuit:
        """The circuit in a JSON object, or in the text of one.

        Raises:
            FormatError: if it is truncated, of another version or not a circuit.
        """
        return cls._from_body(unwrap(document, KIND, VERSION))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the circuit as a JSON file."""
        write_json(path, KIND, VERSION, self._body())

    @classmethod
    def load(cls, path: str | Path) -> Circuit:
        """Read a circuit that `save` wrote.

        Raises:
            FormatError: if the file is truncated, of another version or not a circuit.
        """
        return cls._from_body(read_json(path, KIND, VERSION))

    def _body(self) -> dict[str, Any]:
        index = {place: i for i, place in enumerate(self.nodes)}
        return {
            "name": self.name,
            "model": self.model,
            "nodes": [{**place.to_json(), "score": score} for place, score in self.nodes.items()],
            "edges": [[index[a], index[b], score] for (a, b), score in self.edges.items()],
        }

    @classmethod
    def _from_body(cls, body: Any) -> Circuit:
        try:
            places = [Place.from_json(entry) for entry in body["nodes"]]
            nodes = {place: float(entry["score"]) for place, entry in zip(places, body["nodes"], strict=True)}
            edges = {(places[a], places[b]): float(score) for a, b, score in body["edges"]}
            return cls(nodes, edges, body["name"], body["model"])
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            raise FormatError("this circuit is damaged", given=f"{type(error).__name__}: {error}") from error

    def __str__(self) -> str:
        lines = [f"{self.name}: {counted(len(self.nodes), 'node')}, {counted(len(self.edges), 'edge')}"]
        for place, score in sorted(self.nodes.items(), key=lambda item: -abs(item[1]))[:20]:
            lines.append(f"  {place}  {score:+.3f}")
        for (sender, receiver), score in sorted(self.edges.items(), key=lambda item: -abs(item[1]))[:20]:
            lines.append(f"  {sender} → {receiver}  {score:+.3f}")
        return "\n".join(lines)


@dataclass(frozen=True)
class CircuitComparison:
    """How alike two circuits are.

    Attributes:
        nodes: Jaccard index of the nodes.
        edges: Jaccard index of the edges; 1 where neither has any.
        shared: the nodes of both.
        correlation: Pearson's, of the scores of the shared nodes; None for fewer than three.
        p: chance of sharing as many nodes, if both were drawn among the places of the universe; None without one.
    """

    nodes: float
    edges: float
    shared: tuple[Place, ...]
    correlation: float | None
    p: float | None

    def __str__(self) -> str:
        words = [f"nodes {self.nodes:.3f}, edges {self.edges:.3f} in common (Jaccard)"]
        words += (
            [] if self.correlation is None else [f"scores of {len(self.shared)} shared nodes r {self.correlation:.2f}"]
        )
        words += [] if self.p is None else [f"p {self.p:.3g} by chance"]
        return "; ".join(words)


def compare_circuits(
    first: Circuit, second: Circuit, universe: Iterable[Place] | int | None = None
) -> CircuitComparison:
    """Overlap of two circuits in nodes and edges, beside what chance would give.

    Args:
        first: a circuit.
        second: another one.
        universe: the places that either could have chosen among, or their number.

    Raises:
        ShapeError: the universe is smaller than the circuits.
        SiteError: the universe lacks a node of the circuits.

    Examples:
        >>> site = Site("h.0", "b t u")
        >>> one, two = (Circuit({Place(site, None, u): 1.0 for u in units}, {}) for units in ([0, 1], [1, 2]))
        >>> found = compare_circuits(one, two, universe=4)
        >>> round(found.nodes, 3), found.edges, round(found.p, 3)
        (0.333, 1.0, 0.833)
    """
    for circuit in (first, second):
        if not isinstance(circuit, Circuit):
            raise DtypeError("circuits are compared with circuits", given=type(circuit).__name__)
    shared = tuple(place for place in first.nodes if place in second.nodes)
    union = len(first.nodes) + len(second.nodes) - len(shared)
    both = len(first.edges.keys() & second.edges.keys())
    either = len(first.edges.keys() | second.edges.keys())
    correlation = None
    if len(shared) > 2:
        values = torch.tensor([[c.nodes[place] for place in shared] for c in (first, second)], dtype=torch.float64)
        if bool((values.std(1) > 0).all()):
            correlation = float(torch.corrcoef(values)[0, 1])
    p = None
    if universe is not None:
        if isinstance(universe, int):
            size = universe
        else:
            known = set(universe)
            size = len(known)
            stray = next((place for place in (*first.nodes, *second.nodes) if place not in known), None)
            if stray is not None:
                raise SiteError("a node of the circuits is no place of the universe", given=str(stray))
        if size < union:
            raise ShapeError("the universe is smaller than the two circuits", given=size, expected=f"at least {union}")
        from scipy.stats import hypergeom

        p = float(hypergeom.sf(len(shared) - 1, size, len(first.nodes), len(second.nodes)))
    return CircuitComparison(
        len(shared) / union if union else 1.0, both / either if either else 1.0, shared, correlation, p
    )
