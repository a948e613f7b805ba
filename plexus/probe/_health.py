"""Is this network alive? Silent and saturated units, rates, and how far the gradient reaches.

rate       share of rows in which a unit is active (for spikes: spikes per step)
gradient   sqrt(mean over samples of Σ (∂L/∂a)²), over the units of a layer; also for each step of time
drive      mean input of a spiking layer, in thresholds
potential  the highest potential that the input alone would give, in thresholds:
           v[t] = rest + α (v[t-1] - rest) + κ x[t],   without spikes
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from plexus.errors import PlexusError, ShapeError
from plexus.probe._advice import advise
from plexus.probe._batches import Forward, each_batch, refuse_nan, run, wanted
from plexus.probe._layers import Kind, Layer, layers, membrane_of, threshold_of
from plexus.probe._quiet import quiet
from plexus.probe._taps import Slope, Taken
from plexus.units import Neurons, Site, attach, fingerprint
from plexus.units._paths import refuse_out_of_reach

Differentiated = tuple[Taken, Tensor | None]

_SATURATED = 0.95  # share of rows at the limit that makes a unit saturated
_MARGIN = 0.01  # of the range: what counts as at the limit


@dataclass(frozen=True)
class LayerHealth:
    """What one layer did on the batch.

    Attributes:
        name: path of the module, with the call where it was used more than once.
        site: where it was read.
        kind: "spiking", "rectified", "bounded", "smooth" or "linear".
        units: how many.
        rate: mean share of rows in which a unit is active; for spikes, spikes per step.
        hertz: the rate in Hz, for spiking layers that know their `dt` in ms.
        silent: boolean `[unit]`, never active on the batch.
        saturated: boolean `[unit]`, at a limit nearly always.
        gradient: norm of the gradient of the loss at the layer; None without a loss that reaches anything.
        gradient_over_time: the norm at each step or position, `[time]`, for layers with a time axis; of a layer that
            keeps a state at its input, so that it shows how far back in time the gradient reaches.
        drive: mean input over the threshold, for spiking layers.
        potential: highest potential over the threshold that the input alone would give.
        finite: whether all values were finite.

    Examples:
        >>> layer = health(nn.Sequential(nn.Linear(2, 3), nn.ReLU()), torch.randn(8, 2))["1"]
        >>> layer.kind, layer.units, layer.finite
        ('rectified', 3, True)
    """

    name: str
    site: Site
    kind: Kind
    units: int
    rate: float
    hertz: float | None
    silent: Tensor
    saturated: Tensor
    gradient: float | None
    gradient_over_time: Tensor | None
    drive: float | None
    potential: float | None
    finite: bool


@dataclass(frozen=True)
class Health:
    """What `health` found; printing it gives a report.

    Attributes:
        layers: one entry per layer, in the order of the network's modules.
        advice: findings in words, the most serious first; empty if there is nothing to say.
        loss: the loss whose gradient was measured.
        model: fingerprint of the network.
        unread: modules whose axes could not be told, and modules that did not run.

    Examples:
        >>> report = health(nn.Sequential(nn.Linear(2, 3), nn.ReLU()), torch.randn(8, 2))
        >>> [layer.name for layer in report.layers], sum(report.silent.sizes.values())
        (['1'], 3)
    """

    layers: tuple[LayerHealth, ...]
    advice: tuple[str, ...]
    loss: float | None
    model: str
    unread: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether there is nothing to say."""
        return not self.advice

    @property
    def silent(self) -> Neurons:
        """The units that were never active."""
        return Neurons({layer.site: layer.silent for layer in self.layers}, self.model)

    @property
    def saturated(self) -> Neurons:
        """The units that were nearly always at a limit."""
        return Neurons({layer.site: layer.saturated for layer in self.layers}, self.model)

    def __getitem__(self, name: str) -> LayerHealth:
        """The layer of this name."""
        for layer in self.layers:
            if layer.name == name:
                return layer
        raise KeyError(name)

    def __str__(self) -> str:
        head = ("layer", "kind", "units", "rate", "silent", "saturated", "gradient", "first/last step")
        rows = [head, *(_row(layer) for layer in self.layers)]
        wide = [max(len(row[i]) for row in rows) for i in range(len(head))]
        lines = []
        for row in rows:
            cells = [
                cell.ljust(w) if i < 2 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, wide, strict=True))
            ]
            lines.append("  ".join(cells).rstrip())
        lines.append("")
        if self.loss is not None:
            lines.append(f"loss {self.loss:.4g}")
        lines += [f"• {text}" for text in self.advice] or ["nothing to complain about on this batch"]
        if self.unread:
            lines.append(f"not read: {', '.join(self.unread)}")
        return "\n".join(lines)

    __repr__ = __str__


def health(
    network: nn.Module,
    batch: Any,
    *,
    loss: Callable[[Any, Any], Tensor] | None = None,
    forward: Forward | None = None,
) -> Health:
    """Run one batch through a network and say how its layers are: silent and saturated units, rates, gradients.

    The network is as before when this returns; it runs in evaluation mode.

    Args:
        network: any module; neurons with a state, recurrent layers and activations are its layers, and where it has
            none as modules, its weight layers.
        batch: a tensor, a mapping, or a tuple of input and labels.
        loss: `(output, batch) -> scalar`. By default the output's own `.loss`, else the cross-entropy with the labels
            of the batch (of the output averaged over time, where it has time), else the mean of the squared output.
        forward: how to run the network, `(network, batch) -> output`, where a plain call is not it.

    Raises:
        ShapeError: an empty batch, one of a shape that the network does not take, labels that do not match its
            samples, or a loss that is not one number.
        RangeError: NaN in the batch.
        UnsupportedError: the network is compiled.
        PlexusError: the network has nothing that can be read as a layer.

    Examples:
        >>> _ = torch.manual_seed(0)
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> with torch.no_grad():
        ...     _ = net[0].bias.fill_(-100.0)
        >>> report = health(net, torch.randn(16, 4))
        >>> print(report.advice[0].splitlines()[0])  # doctest: +ELLIPSIS
        layer 1 is silent: none of its 8 units is ever above 0 on this batch...
    """
    mark = fingerprint(network)
    refuse_out_of_reach(network)
    batch = next(each_batch([batch]))
    refuse_nan(batch)
    found, unread = layers(network)
    taps = {layer: Slope(layer.site) for layer in found}
    inner = {layer: Slope(Site(layer.site.path, layer.site.axes, at="input")) for layer in found if layer.loops}
    with quiet(network, grad=True), attach(network, [*inner.values(), *taps.values()], all_reached=False):
        output = run(network, batch, forward, None)
        taken = {layer: tap.taken() for layer, tap in taps.items()}
        number = _loss(network, output, batch, loss, _counted_beside_time(taken.values()))
        entered = {layer: tap.taken() for layer, tap in inner.items()}
        held = [*taken.values(), *entered.values()]
        slopes = _slopes(number, [visit.value for visits in held for visit in visits])
    pairs = {layer: [(visit, next(slopes)) for visit in visits] for layer, visits in taken.items()}
    inputs = {layer: [(visit, next(slopes)) for visit in visits] for layer, visits in entered.items()}
    read: list[LayerHealth] = []
    for layer in found:
        visits = pairs[layer]
        calls = sorted({visit.visit.call for visit, _ in visits})
        if not visits:
            unread.append(layer.site.path)
        for call in calls:
            name = (layer.site.path or type(layer.module).__name__) + (f" (call {call})" if len(calls) > 1 else "")
            mine, own = ([p for p in side if p[0].visit.call == call] for side in (visits, inputs.get(layer, [])))
            site = replace(layer.site, call=call) if len(calls) > 1 else layer.site
            read.append(_examine(layer, name, site, mine, own))
    if not read:
        raise PlexusError(
            "nothing in this network could be read as a layer of units",
            given=type(network).__name__,
            mend="check that its layers are modules that run in the forward pass",
        )
    value = None if number is None else float(number.detach())
    return Health(tuple(read), tuple(advise(read, value)), value, mark, tuple(unread))


def _slopes(loss: Tensor | None, values: list[Tensor]) -> Any:
    if loss is None or not loss.requires_grad or not values:
        return iter([None] * len(values))
    return iter(torch.autograd.grad(loss, values, allow_unused=True))


def _counted_beside_time(taken: Iterable[list[Taken]]) -> set[int]:
    """How many samples the layers saw that know time and samples apart."""
    return {visit.rows.samples for visits in taken for visit in visits if {"t", "b"} <= set(visit.visit.rows)}


def _loss(
    network: nn.Module, output: Any, batch: Any, loss: Callable[[Any, Any], Tensor] | None, samples: set[int]
) -> Tensor | None:
    if loss is not None:
        number = loss(output, batch)
        if not isinstance(number, Tensor) or number.numel() != 1:
            given = tuple(number.shape) if isinstance(number, Tensor) else type(number).__name__
            raise ShapeError("a loss is one number", given=given, expected="a tensor with one element")
        return number.reshape(())
    own = getattr(output, "loss", None)
    if isinstance(own, Tensor) and own.numel() == 1:
        return own.reshape(())
    first = getattr(output, "logits", None)
    first = first if isinstance(first, Tensor) else _first_tensor(output)
    if first is None or not first.is_floating_point():
        return None
    labels = _classes(network, batch)
    if labels is None or first.dim() not in (2, 3):
        return first.float().square().mean()
    possible = {len(first)} if first.dim() == 2 else samples or set(first.shape[:2])
    if len(labels) not in possible:
        raise ShapeError(
            "the labels of the batch do not match its samples",
            given=f"{len(labels)} labels, {' or '.join(map(str, sorted(possible)))} samples",
            mend="one label per sample; a network over time takes [time, batch, …]",
        )
    logits = first if first.dim() == 2 else first.mean(0 if len(labels) == first.shape[1] else 1)
    if len(logits) == len(labels) and int(labels.max()) < logits.shape[1] and int(labels.min()) >= 0:
        return nn.functional.cross_entropy(logits.float(), labels.to(logits.device).long())
    return first.float().square().mean()


def _classes(network: nn.Module, batch: Any) -> Tensor | None:
    """The one element of the batch beside its input, if it can be the classes of its samples."""
    rest = batch[wanted(network, batch) :] if isinstance(batch, tuple | list) else ()
    if len(rest) != 1 or not isinstance(rest[0], Tensor) or rest[0].dim() != 1 or rest[0].is_floating_point():
        return None
    return rest[0].detach()


def _first_tensor(output: Any) -> Tensor | None:
    if isinstance(output, Tensor):
        return output
    parts = output.values() if isinstance(output, Mapping) else output if isinstance(output, tuple | list) else ()
    return next((tensor for part in parts if (tensor := _first_tensor(part)) is not None), None)


def _examine(
    layer: Layer, name: str, site: Site, visits: list[Differentiated], inputs: list[Differentiated]
) -> LayerHealth:
    values = torch.cat([_rows(visit.value.detach(), visit.visit.rows) for visit, _ in visits]).double()
    active = values.abs() > 0 if layer.kind == "linear" else values > 0
    if layer.kind == "bounded" and layer.limits is not None and layer.limits[0] < 0:
        active = values.abs() > 1e-3
    rate = values.abs().mean() if layer.kind == "spiking" else active.double().mean()
    saturated = torch.zeros(values.shape[1], dtype=torch.bool)
    if layer.limits is not None:
        low, high = layer.limits
        margin = _MARGIN * (high - low)
        edge = values >= high - margin
        if low < 0 or isinstance(layer.module, nn.Sigmoid | nn.Hardsigmoid):
            edge |= values <= low + margin
        saturated = edge.double().mean(0) >= _SATURATED
    dt = getattr(layer.module, "dt", None)
    gradient, over_time = _gradients(visits)
    if inputs:  # what reaches the input of a loop at a step came through all later ones
        over_time = _gradients(inputs)[1]
    drive, potential = _drive(layer, [visit for visit, _ in inputs])
    return LayerHealth(
        name=name,
        site=site,
        kind=layer.kind,
        units=values.shape[1],
        rate=float(rate),
        hertz=1000 * float(rate) / dt if layer.kind == "spiking" and isinstance(dt, int | float) and dt > 0 else None,
        silent=~active.any(0),
        saturated=saturated,
        gradient=gradient,
        gradient_over_time=over_time,
        drive=drive,
        potential=potential,
        finite=bool(values.isfinite().all()),
    )


def _rows(values: Tensor, rows: tuple[str, ...]) -> Tensor:
    """`[row, unit]` on the CPU; of a unit with several features the largest by size."""
    flat = values.flatten(0, len(rows) - 1) if rows else values[None]
    if flat.dim() > 2:
        flat = flat.gather(-1, flat.abs().argmax(-1, keepdim=True)).squeeze(-1)
    return flat.cpu()


def _gradients(visits: list[Differentiated]) -> tuple[float | None, Tensor | None]:
    if all(slope is None for _, slope in visits):
        return None, None
    steps: list[Tensor] = []
    samples = max(visit.rows.samples for visit, _ in visits)
    for visit, slope in visits:
        square = torch.zeros_like(visit.value) if slope is None else slope
        square = square.detach().double().square()
        time = visit.visit.rows.index("t") if "t" in visit.visit.rows else None
        if time is None:
            steps.append(square.sum().reshape(1))
        else:
            steps.append(square.movedim(time, 0).flatten(1).sum(1))
    over_time = (torch.cat(steps) / samples).sqrt().cpu()
    return float(over_time.square().sum().sqrt()), over_time if len(over_time) > 1 else None


def _drive(layer: Layer, inputs: list[Taken]) -> tuple[float | None, float | None]:
    threshold = threshold_of(layer.module)
    if not inputs or threshold is None or layer.kind != "spiking":
        return None, None
    current = torch.cat(
        [_time_first(visit.value.detach().float(), visit.visit.rows) for visit in inputs]
    )  # [time, row, unit]
    limit = float(threshold.float().mean())
    if not current.numel() or limit <= 0:
        return None, None
    drive = float(current.mean()) / limit
    membrane = membrane_of(layer.module)
    if membrane is None or any(number.numel() not in (1, current.shape[-1]) for number in membrane):
        return drive, None
    decay, gain, rest = (number.float().reshape(-1).cpu() for number in membrane)
    v = rest.expand(current.shape[1:])
    highest = -math.inf
    for x in current.cpu():
        v = rest + decay * (v - rest) + gain * x
        highest = max(highest, float(v.max()))
    return drive, highest / limit


def _time_first(values: Tensor, rows: tuple[str, ...]) -> Tensor:
    if "t" in rows:
        values = values.movedim(rows.index("t"), 0)
        return values.reshape(values.shape[0], -1, values.shape[-1])
    return values.reshape(1, -1, values.shape[-1])


def _row(layer: LayerHealth) -> tuple[str, ...]:
    rate = f"{layer.rate:.3g}" + (f" ({layer.hertz:.3g} Hz)" if layer.hertz is not None else "")
    silent, saturated = int(layer.silent.sum()), int(layer.saturated.sum())
    over = layer.gradient_over_time
    ratio = ""
    if over is not None:
        ratio = f"{float(over[0]) / float(over[-1]):.2g}" if float(over[-1]) > 0 else "–"
    gradient = "none" if layer.gradient is None else f"{layer.gradient:.2g}"
    return layer.name, layer.kind, str(layer.units), rate, str(silent), str(saturated), gradient, ratio
