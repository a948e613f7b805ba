"""Who can take what: every neuron, synapse and recurrence of ours against NIR and the tools that read it.

The table is made by trying: each layer is written to NIR, and the nodes it became are compared with those that a tool's
reader takes (which tests against the installed tools confirm).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from plexus.errors import PlexusError, require
from plexus.nn._sequential import Sequential

__all__ = ["READERS", "exchange_table"]

READERS: dict[str, frozenset[str]] = {
    "snnTorch": frozenset({"Affine", "Linear", "Conv2d", "Flatten", "AvgPool2d", "LIF", "CubaLIF"}),
    "Norse": frozenset({"Affine", "Linear", "Conv2d", "Flatten", "SumPool2d", "IF", "LIF", "CubaLIF"}),
}
"""Which nodes of NIR the importer of a tool builds (versions 1.0 and 1.1)."""

FROM_WEIGHTS: dict[str, str] = {"LIF": "snnTorch, SpikingJelly", "IF": "SpikingJelly", "CUBA": "snnTorch"}
"""Layers that `from_snntorch` and `from_spikingjelly` make."""


def _examples() -> dict[str, Callable[[], nn.Module]]:
    """One layer of each kind, as an exporter would meet it; alphabetic order within a group."""
    from plexus.nn import neurons, synapses

    found: dict[str, Callable[[], nn.Module]] = {}
    for name in sorted(dir(neurons)):
        kind = getattr(neurons, name)
        if not (isinstance(kind, type) and issubclass(kind, nn.Module)) or name == "Recurrent":
            continue
        found[name] = lambda kind=kind: _built(kind)  # type: ignore[misc]
    found["Recurrent(LIF)"] = lambda: neurons.Recurrent(neurons.LIF(4, reset="hard"))
    for name in sorted(dir(synapses)):
        kind = getattr(synapses, name)
        if isinstance(kind, type) and issubclass(kind, nn.Module):
            found[name] = lambda kind=kind: _built(kind)  # type: ignore[misc]
    return found


_SPECIAL: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {
    "DelayedLinear": ((4, 3), {"max_delay": 3}),
    "DelayedConv2d": ((2, 3, 3), {"max_delay": 3}),
}


def _built(kind: type[nn.Module]) -> nn.Module:
    if kind.__name__ in _SPECIAL:
        given, options = _SPECIAL[kind.__name__]
        made: Any = kind(*given, **options)
        return made.round_().hard(True) if kind.__name__.startswith("Delayed") else made  # type: ignore[no-any-return]
    for options in ({"reset": "hard"}, {}):
        for sizes in ((4,), (4, 4)):
            try:
                return kind(*sizes, **options)
            except (TypeError, ValueError):
                continue
    raise PlexusError(f"{kind.__name__} cannot be built from a number of units", mend="add it to the table's examples")


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
        try:
            layer = make()
            shape = (4, 6, 6) if "Conv" in name else tuple(getattr(layer, "units", (4,)))
            example = torch.zeros(1, 1, *shape) if "Conv" not in name else torch.zeros(1, 1, 2, 6, 6)
            graph = to_nir(Sequential(layer), example)
            nodes = {type(node).__name__ for node in graph.nodes.values()} - {"Input", "Output"}
            row["NIR"] = ", ".join(sorted(nodes))
            loops = any((b, a) in graph.edges for a, b in graph.edges)
            for reader, takes in READERS.items():
                row[reader] = "no" if loops or not nodes <= takes else "yes"
        except PlexusError as error:
            reason = error.what.partition("cannot be written to NIR: ")[2] or error.what
            row["NIR"] = f"no: {reason}"
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
