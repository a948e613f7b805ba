"""Who can take what: every neuron, synapse and recurrence of ours against NIR and the tools that read it.

The table is made by trying: each layer is written to NIR, and the nodes it became are compared with those that a tool's
reader takes (which tests against the installed tools confirm).
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from plexus.errors import FormatError, PlexusError, UnsupportedError, require
from plexus.nn._sequential import Sequential

__all__ = ["READERS", "exchange_table"]

READERS: dict[str, frozenset[str]] = {
    "snnTorch": frozenset({"Affine", "Linear", "Conv2d", "AvgPool2d", "SumPool2d", "LIF"}),
    "Norse": frozenset({"Affine", "Linear", "Conv2d", "SumPool2d", "IF", "LIF", "CubaLIF"}),
}
"""Which nodes of NIR, as our layers write them, the importer of a tool builds (versions 1.0 and 1.1)."""

LOOPS = frozenset({"Norse"})
"""Tools that run a graph in which a neuron's output comes back to it."""

FROM_WEIGHTS: dict[str, str] = {"LIF": "snnTorch, SpikingJelly", "IF": "SpikingJelly", "CUBA": "snnTorch"}
"""Layers that `from_snntorch` and `from_spikingjelly` make."""


def _examples() -> dict[str, Callable[[], nn.Module]]:
    """One layer of each kind, as an exporter would meet it: neurons reset to a value, delays are rounded."""
    from plexus.nn import neurons as n
    from plexus.nn import synapses as s

    coupled = torch.ones(4, 4, dtype=torch.bool)
    found: dict[str, Callable[[], nn.Module]] = {
        "ALIF": lambda: n.ALIF(4, reset="hard"),
        "AdEx": lambda: n.AdEx(4),
        "AstrocyteModulated": lambda: n.with_astrocytes(n.LIF(4, reset="hard")),
        "AstrocyteUnit": lambda: n.AstrocyteUnit(4),
        "Astrocytes": lambda: n.Astrocytes(4),
        "BalancedResonate": lambda: n.BalancedResonate(4),
        "COBA": lambda: n.COBA(4),
        "CUBA": lambda: n.CUBA(4, reset="hard"),
        "Dendrite": lambda: n.Dendrite(4),
        "ELM": lambda: n.ELM(4, 4),
        "ELMLayer": lambda: n.ELMLayer(4, 4),
        "IF": lambda: n.IF(4, reset="hard"),
        "Izhikevich": lambda: n.Izhikevich(4),
        "LIF": lambda: n.LIF(4, reset="hard"),
        "LeakyIntegrator": lambda: n.LeakyIntegrator(4),
        "MetaNeuron": lambda: n.MetaNeuron(4),
        "PLIF": lambda: n.PLIF(4),
        "Recurrent(LIF)": lambda: n.Recurrent(n.LIF(4, reset="hard")),
        "Recurrent(CUBA)": lambda: n.Recurrent(n.CUBA(4, reset="hard")),
        "RecurrentLIF": lambda: n.RecurrentLIF(4, reset="hard"),
        "ResonateAndFire": lambda: n.ResonateAndFire(4),
        "SignedIF": lambda: n.SignedIF(4),
        "TwoCompartment": lambda: n.TwoCompartment(4),
        "AlphaSynapse": lambda: s.AlphaSynapse(4),
        "Conductance": lambda: s.Conductance(0.0),
        "Convolution": lambda: s.Convolution(2, 3, 3),
        "DelayedConv2d": lambda: s.DelayedConv2d(2, 3, 3, max_delay=3).round_().hard(True),
        "DelayedLinear": lambda: s.DelayedLinear(4, 3, max_delay=3).round_().hard(True),
        "Dense": lambda: s.Dense(4, 3),
        "DoubleExponentialSynapse": lambda: s.DoubleExponentialSynapse(4),
        "ExponentialSynapse": lambda: s.ExponentialSynapse(4),
        "GapJunctions": lambda: s.GapJunctions(coupled),
        "HeterogeneousDelays": lambda: s.HeterogeneousDelays(4, 3, max_delay=3),
        "Lateral": lambda: s.Lateral(s.ring_distance(4)),
        "ShortTermPlasticity": lambda: s.ShortTermPlasticity(4),
        "Sparse": lambda: s.Sparse(coupled),
    }
    kinds = {name for room in (n, s) for name in dir(room) if _is_layer(getattr(room, name))}
    missing = kinds - {name.partition("(")[0] for name in found}
    if missing:
        raise PlexusError("the table of exchange formats has no example", given=sorted(missing), mend="add one")
    return found


def _is_layer(kind: object) -> bool:
    return isinstance(kind, type) and issubclass(kind, nn.Module)


def exchange_table() -> list[dict[str, str]]:
    """One row per layer: `layer`, `NIR` (its nodes, or why not), one column per reader, and whose weights become it.

    Raises:
        MissingExtraError: the package nir is not installed (extra `interop`).

    Examples:
        >>> rows = {row["layer"]: row for row in exchange_table()}
        >>> rows["LIF"]["NIR"], rows["LIF"]["Norse"]
        ('LIF', 'yes')
    """
    from plexus.nn.interop._nir_export import to_nir

    require("nir", "interop", purpose="the table of exchange formats")
    rows = []
    for name, make in _examples().items():
        row = {"layer": name}
        frames = torch.zeros(1, 1, 2, 6, 6) if "Conv" in name else None
        try:
            graph = to_nir(Sequential(make()), frames)
            nodes = {type(node).__name__ for node in graph.nodes.values()} - {"Input", "Output"}
            row["NIR"] = ", ".join(sorted(nodes))
            loops = any((b, a) in graph.edges for a, b in graph.edges)
            for reader, takes in READERS.items():
                row[reader] = "yes" if nodes <= takes and not (loops and reader not in LOOPS) else "no"
        except UnsupportedError as error:
            row["NIR"] = f"no: {error.what.partition('cannot be written to NIR: ')[2]}"
            row |= dict.fromkeys(READERS, "no")
        row["from weights of"] = FROM_WEIGHTS.get(name, "")
        rows.append(row)
    return rows


def markdown() -> str:
    """The table as the documentation shows it."""
    rows = exchange_table()
    head = list(rows[0])
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    lines += ["| " + " | ".join(row[key] for key in head) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def write(page: Path) -> None:
    """Put the table of today between the two markers of a page."""
    before, begin, rest = page.read_text().partition("<!-- table -->\n")
    _, end, after = rest.partition("<!-- end of table -->")
    if not (begin and end):
        raise FormatError(f"{page} has no place for the table", expected="<!-- table --> … <!-- end of table -->")
    page.write_text(before + begin + "\n" + markdown() + "\n" + end + after)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
