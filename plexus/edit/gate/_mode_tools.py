"""What a mode does, neuron by neuron, and how it becomes a plain smaller network.

on-rate        share of values whose gate is open, the mean of 1[a > τ]
contribution   mean |γ s a| · ‖outgoing weights‖
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from plexus.edit._bake import bake
from plexus.edit._verbs import scale
from plexus.edit.gate._modes import NeuronModes, settings_of
from plexus.edit.prune._remove import Removed, outgoing, remove
from plexus.errors import RangeError, UnsupportedError
from plexus.probe._batches import Forward, each_batch, run
from plexus.probe._collect import layout
from plexus.probe._quiet import quiet
from plexus.units import Neurons, Scores, Site, Visit, fingerprint

__all__ = ["ModeReport", "Pruned", "active_neurons", "merge_gain", "mode_report", "prune_off_neurons"]


@dataclass(frozen=True)
class ModeReport:
    """What `mode_report` found; each is a `Scores` with one number per unit.

    Attributes:
        name: of the mode.
        on_rate: share of samples (and tokens, places, steps) at which the hard gate is open and the value is not 0; of
            a spiking neuron the share of steps with a spike.
        base_on_rate: the share at which the value is not 0 in the base network.
        gain: γ, 1 where a mode has none.
        threshold: τ, minus infinity where a mode has none.
        contribution: mean absolute value after gate and gain, times the norm of the outgoing weights.
        weighted: sites whose outgoing weights were found; elsewhere the contribution is without them.
    """

    name: str
    on_rate: Scores
    base_on_rate: Scores
    gain: Scores
    threshold: Scores
    contribution: Scores
    weighted: tuple[Site, ...]

    @property
    def off(self) -> Neurons:
        """Neurons that were never on."""
        return _where(self.on_rate, {site: rate == 0 for site, rate in self.on_rate.values.items()})

    def changed(self, tolerance: float = 0.05) -> Neurons:
        """Neurons whose on-rate, or whose gain, differs from the base network's by more than the tolerance."""
        masks = {
            site: ((rate - self.base_on_rate[site]).abs() > tolerance) | ((self.gain[site] - 1).abs() > tolerance)
            for site, rate in self.on_rate.values.items()
        }
        return _where(self.on_rate, masks)

    def __repr__(self) -> str:
        units = sum(self.on_rate.sizes.values())
        rate, base = (torch.cat(list(s.values.values())).mean() for s in (self.on_rate, self.base_on_rate))
        lines = [f"mode {self.name!r}: {units} neurons, on {rate:.1%} of the time (base network: {base:.1%})"]
        lines += [f"  {len(self.off)} never on, {len(self.changed())} changed"]
        for site, gain in list(self.gain.values.items())[:12]:
            on = self.on_rate[site].mean()
            lines.append(f"  {site}: on {on:.1%}, gain {gain.min():.2f} … {gain.median():.2f} … {gain.max():.2f}")
        return "\n".join(lines)


class Pruned(NamedTuple):
    """What `prune_off_neurons` gives: the modes on the smaller network, and what was removed."""

    modes: NeuronModes
    removed: Removed


def mode_report(
    modes: NeuronModes, batches: Any, name: str | None = None, *, forward: Forward | None = None
) -> ModeReport:
    """Run a mode with hard gates over batches and say what each neuron does in it.

    Args:
        modes: left as they are.
        batches: as for `probe.record`; padding does not count.
        name: the mode; None is the active one.
        forward: how to run the model on a batch, where a plain call is not it.

    Raises:
        UnknownNameError: there is no such mode. RangeError: none is active.

    Examples:
        >>> base = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).requires_grad_(False)
        >>> modes = NeuronModes(base)
        >>> mode = modes.add("quiet")
        >>> with torch.no_grad():
        ...     mode.thresholds[0][:3] = 1e9
        >>> report = mode_report(modes, torch.rand(20, 4))
        >>> {0, 1, 2} <= {unit for _, unit in report.off}
        True
    """
    name = _chosen(modes, name)
    within, outside = _Tally(), _Tally()
    before = modes.active, modes.gates
    try:
        modes.gates = "auto"
        for tally, active in ((within, name), (outside, None)):
            modes.active = active
            with quiet(modes), modes.on(tally) as base:
                for batch in each_batch(batches):
                    run(base, batch, forward, None)
    finally:
        modes.active, modes.gates = before
    mode, mark = modes[name], fingerprint(modes.base)
    weights = {site: outgoing(modes.base, site, modes.sizes[site]) for site in modes.sites}
    sent = {site: within.mean(site, "sent") for site in modes.sites}
    sent = {site: value if (w := weights[site]) is None else value * w for site, value in sent.items()}

    def scores(values: Mapping[Site, Tensor], what: str) -> Scores:
        return Scores(values, None, what, mark)

    sizes = modes.sizes
    gains = list(mode.gains) or [torch.ones(sizes[site]) for site in modes.sites]
    taus = list(mode.thresholds) or [torch.full((sizes[site],), -torch.inf) for site in modes.sites]
    return ModeReport(
        name,
        scores({site: within.mean(site, "on") for site in modes.sites}, "on-rate"),
        scores({site: outside.mean(site, "on") for site in modes.sites}, "on-rate of the base network"),
        scores(dict(zip(modes.sites, gains, strict=True)), "gain"),
        scores(dict(zip(modes.sites, taus, strict=True)), "threshold"),
        scores(sent, "contribution"),
        tuple(site for site in modes.sites if weights[site] is not None),
    )


def active_neurons(modes: NeuronModes, batch: Any, *, forward: Forward | None = None) -> dict[Site, Tensor]:
    """Which neurons are on for each input, in the active mode with hard gates: bool `[*rows, unit]` per site.

    Examples:
        >>> base = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).requires_grad_(False)
        >>> modes = NeuronModes(base)
        >>> _ = modes.add("task")
        >>> on = active_neurons(modes, torch.rand(3, 4))
        >>> [tuple(mask.shape) for mask in on.values()]
        [(3, 8)]
    """
    _chosen(modes, None)
    found: dict[Site, list[Tensor]] = {site: [] for site in modes.sites}

    def note(site: Site, values: Tensor, gate: Tensor, sent: Tensor, visit: Visit) -> None:
        found[site].append(_on(values, gate).cpu())

    gates = modes.gates
    try:
        modes.gates = "auto"
        with quiet(modes), modes.on(note) as base:
            run(base, batch, forward, None)
    finally:
        modes.gates = gates
    return {site: masks[0] if len(masks) == 1 else torch.stack(masks) for site, masks in found.items()}


def merge_gain(modes: NeuronModes, name: str | None = None) -> nn.Module:
    """A copy of the base network with the gains of a mode in the weights that read the neurons.

    With hard gates it answers as the mode does: the gate compares values before the gain, so that the gain can go into
    the next layer.

    Returns:
        Modes with the thresholds alone on the new base network; where the mode has no thresholds the network itself.

    Raises:
        UnsupportedError: something nonlinear stands between the neurons and the layer that reads them.

    Examples:
        >>> base = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).requires_grad_(False)
        >>> modes = NeuronModes(base, threshold=False)
        >>> mode = modes.add("loud")
        >>> with torch.no_grad():
        ...     _ = mode.gains[0].uniform_(0.5, 2.0)
        >>> x, plain = torch.rand(3, 4), merge_gain(modes)
        >>> torch.allclose(plain(x), modes.eval()(x), atol=1e-6)
        True
    """
    name = _chosen(modes, name)
    mode, base = modes[name], copy.deepcopy(modes.base)
    for place, site in enumerate(modes.sites):
        if not len(mode.gains):
            break
        gain = mode.gains[place].detach()
        if modes.gain_range is not None:
            gain = gain.clamp(*modes.gain_range)
        where = replace(site, where="readout") if modes._spiking[site] else site
        bake(base, scale(~Neurons.of({where: len(gain)}), gain))
    if not len(mode.thresholds):
        return base
    settings = {**settings_of(modes), "gain": False, "gain_range": None}
    return _with(base, modes, modes.sites, {name: (list(mode.thresholds), [], mode.temperature)}, settings)


def prune_off_neurons(
    modes: NeuronModes,
    batches: Any,
    name: str | None = None,
    *,
    equal_width: bool = False,
    forward: Forward | None = None,
) -> Pruned:
    """Remove the neurons that a mode never has on, for good, from a copy of the base network.

    On the batches the smaller network with its mode answers as the mode does.

    Args:
        modes: left as they are.
        batches: on which neurons have to be off.
        name: the mode; None is the active one.
        equal_width: take as many off at every site, as architectures with one width for all layers need; those with the
            lowest index.
        forward: how to run the model on a batch, where a plain call is not it.

    Raises:
        UnsupportedError: the neurons cannot be removed exactly; see `prune.remove`.

    Examples:
        >>> base = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).requires_grad_(False)
        >>> modes = NeuronModes(base)
        >>> mode = modes.add("quiet")
        >>> with torch.no_grad():
        ...     mode.thresholds[0][:3] = 1e9
        >>> smaller, removed = prune_off_neurons(modes, torch.rand(20, 4))
        >>> smaller.base[0].out_features <= 5
        True
    """
    name = _chosen(modes, name)
    if any(site.has_features for site in modes.sites):
        raise UnsupportedError("heads of a mode are not removed", mend="prune.remove(base, heads) before making modes")
    off = mode_report(modes, batches, name, forward=forward).off
    masks = {site: off.mask(site) for site in off.sites}
    for mask in masks.values():
        mask[0] &= not bool(mask.all())  # one neuron has to stay, and one that is off changes nothing
    if equal_width:
        least = min(int(mask.sum()) for mask in masks.values())
        masks = {site: mask & (mask.cumsum(0) <= least) for site, mask in masks.items()}
    base, gone = copy.deepcopy(modes.base), Neurons(masks)
    parameters = sum(p.numel() for p in base.parameters())
    removed = remove(base, gone) if len(gone) else Removed({}, (parameters, parameters))
    mode = modes[name]
    kept = [~masks[site] for site in modes.sites]
    taus = [tau[keep.to(tau.device)] for tau, keep in zip(mode.thresholds, kept, strict=len(mode.thresholds) > 0)]
    gains = [gain[keep.to(gain.device)] for gain, keep in zip(mode.gains, kept, strict=len(mode.gains) > 0)]
    return Pruned(
        _with(base, modes, modes.sites, {name: (taus, gains, mode.temperature)}, settings_of(modes), masks), removed
    )


def _with(
    base: nn.Module,
    modes: NeuronModes,
    at: tuple[Site, ...],
    states: Mapping[str, tuple[list[Any], list[Any], float]],
    settings: Mapping[str, Any],
    gone: Mapping[Site, Tensor] | None = None,
) -> NeuronModes:
    """Modes like others on a changed copy of their base network."""
    sizes = {site: modes.sizes[site] - (0 if gone is None else int(gone[site].sum())) for site in at}
    new = NeuronModes(base, at, sizes=sizes, allow_trainable=True, **settings)
    for name, (taus, gains, temperature) in states.items():
        mode = new.add(name)
        with torch.no_grad():
            for target, value in zip((*mode.thresholds, *mode.gains), (*taus, *gains), strict=True):
                target.copy_(value)
        mode.temperature = temperature
    new.gates = modes.gates
    return new.train(modes.training)


class _Tally:
    """Sums over all firings of the sites, padding left out."""

    def __init__(self) -> None:
        self.sums: dict[tuple[Site, str], Tensor] = {}
        self.rows: dict[Site, int] = {}

    def __call__(self, site: Site, values: Tensor, gate: Tensor, sent: Tensor, visit: Visit) -> None:
        lead = len(visit.rows)
        keep = layout(values.shape[:lead], visit, "all").keep
        spread = sent.norm(dim=-1) if sent.dim() > lead + 1 else sent.abs()
        for what, number in (("on", _on(values, gate)), ("sent", spread)):
            flat = number.double().reshape(-1, number.shape[-1])
            flat = flat if keep is None else flat[keep.to(flat.device)]
            rows = len(flat)
            self.sums[site, what] = self.sums.get((site, what), torch.zeros(flat.shape[1])) + flat.sum(0).cpu()
        self.rows[site] = self.rows.get(site, 0) + rows

    def mean(self, site: Site, what: str) -> Tensor:
        """The mean over rows, `[unit]`."""
        return self.sums[site, what] / max(self.rows[site], 1)


def _on(values: Tensor, gate: Tensor) -> Tensor:
    """Which units take part: the gate is open, and there is something to let through."""
    alive = values != 0
    return (gate > 0) & (alive.any(-1) if values.dim() > gate.dim() else alive)


def _chosen(modes: NeuronModes, name: str | None) -> str:
    name = modes.active if name is None else name
    if name is None:
        raise RangeError("no mode is active", mend="modes.activate(name), or pass name=")
    modes[name]
    return name


def _where(scores: Scores, masks: Mapping[Site, Tensor]) -> Neurons:
    return Neurons(masks, scores.model)
