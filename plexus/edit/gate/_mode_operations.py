"""What the hook engine runs for a mode, and the sites a mode has by default."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from plexus.errors import RangeError, ShapeError, SiteError
from plexus.units import Site, SiteList, Visit, sites
from plexus.units._paths import find_module, has_loop, walk

__all__ = ["Gate", "Raise", "Tally", "default_sites", "is_spiking", "sizes_of"]

Tally = Callable[[Site, Tensor, Tensor, Tensor, Visit], None]


class Gating(Protocol):
    """What the operations ask of their modes."""

    sites: tuple[Site, ...]
    sizes: dict[Site, int]

    def numbers(self, place: int) -> tuple[Tensor | None, Tensor | None]:
        """Threshold and gain of the active mode at a site."""
        ...

    def gate(self, values: Tensor, tau: Tensor, vectors: bool) -> Tensor:
        """The gate of values."""
        ...


class Gate:
    """The gate and the gain of one site."""

    records = False

    def __init__(self, modes: Gating, place: int, site: Site, tally: Tally | None, raised: Raise | None = None) -> None:
        self.modes, self.place, self.site, self.tally, self.raised = modes, place, site, tally, raised

    def __call__(self, values: Tensor, visit: Visit) -> Tensor | None:
        if self.raised is not None:
            self.raised.lower()
        name, lead = self.modes.sites[self.place], len(visit.rows)
        units = int(values.shape[lead])
        if units != self.modes.sizes[name]:
            raise ShapeError(
                f"the modes were made for a site {self.site.path!r} of another size",
                given=f"{units} units in the model",
                expected=f"{self.modes.sizes[name]} units",
            )
        tau, gamma = self.modes.numbers(self.place)
        if self.raised is not None:  # it has moved the layer's own threshold
            tau = None
        vectors = values.dim() > lead + 1
        out, gate = values, torch.ones_like(values[..., 0] if vectors else values)
        if tau is not None:
            gate = self.modes.gate(values, tau.to(values), vectors)
            spread = gate[..., None] if vectors else gate
            # what is shut is 0 even where the value is infinite; only that is masked, for the gradient of the gate
            shut = (spread == 0) & ~torch.isfinite(values)
            out = torch.where(shut, torch.zeros_like(values), values) * spread
        if gamma is not None:
            scaled = gamma.to(values)
            out = out * (scaled[:, None] if vectors else scaled)
        if self.tally is not None:
            self.tally(name, values, gate, out, visit)
        return out


class Raise:
    """Moves the thresholds of a spiking layer for the length of its own call.

    The moved threshold lies over the layer's own as a plain attribute, so neither a copy of the model made between
    calls nor its state dict has it.
    """

    records = False

    def __init__(self, modes: Gating, place: int, site: Site, layer: nn.Module) -> None:
        self.modes, self.place, self.layer = modes, place, layer
        self.site = replace(site, at="input", leaf=None)

    def __call__(self, values: Tensor, visit: Visit) -> None:
        self.lower()
        tau, _ = self.modes.numbers(self.place)
        if tau is None:
            return
        own: Any = self.layer.threshold
        moved = own + tau.to(own)
        if not bool((moved > 0).all()):
            raise RangeError(
                f"a mode moves thresholds of {self.site.path!r} to or below 0",
                given=float(moved.detach().min()),
                mend="clamp its thresholds after each step",
            )
        vars(self.layer)["threshold"] = moved

    def lower(self) -> None:
        """The layer's own threshold again."""
        vars(self.layer).pop("threshold", None)


def default_sites(model: nn.Module) -> SiteList:
    """Neurons of spiking layers, else hidden units of MLPs, else outputs of activation modules."""
    for find in (sites.spiking, sites.mlp):
        try:
            return find(model)
        except SiteError:
            continue
    names = [n for n, m in walk(model) if n and type(m).__module__ == "torch.nn.modules.activation"]
    if not names:
        raise SiteError(
            "no neurons were recognised in this model",
            given=type(model).__name__,
            mend="name them: NeuronModes(model, sites(model, '*.act'))",
        )
    found = SiteList([])
    for name in names:
        found = found + sites(model, name)
    return found


def sizes_of(base: nn.Module, found: SiteList, example: Any) -> dict[Site, int]:
    """How many units each site holds."""
    known = {site: found._known(site).units for site in found}
    unknown = [site for site, units in known.items() if units is None]
    if unknown and example is not None:
        known.update(sites.measure(base, example, unknown))
    elif unknown:
        raise SiteError(
            "the number of units is not known without running the model",
            given=", ".join(map(str, unknown[:3])),
            mend="pass an input of the model: NeuronModes(model, at, example=x)",
        )
    return {site: int(units) for site, units in known.items() if units is not None}


def is_spiking(base: nn.Module, site: Site) -> bool:
    """Whether the units of a site are neurons with a threshold of their own."""
    layer = find_module(base, site.path)
    ours = has_loop(layer) and not isinstance(layer, nn.RNNBase)
    return ours and site.at == "output" and site.where == "loop"
