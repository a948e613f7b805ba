"""Everything that two checkpoints can be compared in, as one report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from plexus.errors import ShapeError, require
from plexus.explain.circuits._places import Metric
from plexus.explain.diff._patches import PatchDiff, patch_maps
from plexus.explain.diff._probes import ProbeDiff, probes
from plexus.explain.diff._recordings import RecordingDiff, recordings
from plexus.explain.diff._weights import WeightDiff, weights
from plexus.probe import record
from plexus.probe._batches import each_batch
from plexus.probe._directions import How
from plexus.units import Recording, Site, Table
from plexus.units._rows import How as Pool

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


@dataclass(frozen=True)
class DiffReport:
    """Two checkpoints of one model; printing it gives tables.

    Attributes:
        weights: how far the weights moved.
        recordings: how alike the units are in what they do.
        probes: whether a concept's direction transfers; None without labels.
        patches: whether knowledge sits at the same places; None without pairs.
    """

    weights: WeightDiff
    recordings: RecordingDiff
    probes: ProbeDiff | None
    patches: PatchDiff | None

    def figure(self) -> Figure:
        """Weights per layer, likeness per site, transfer of probes and the maps, as one plotly figure.

        Raises:
            MissingExtraError: if plotly is not installed.
        """
        go: Any = require("plotly.graph_objects", "lab", purpose="figures")
        subplots: Any = require("plotly.subplots", "lab", purpose="figures")
        titles = ["relative change of the weights", "likeness of what units do"]
        titles += ["probes, fitted → tested"] * (self.probes is not None)
        titles += ["patch map: base", "patch map: tuned"] * (self.patches is not None)
        figure = subplots.make_subplots(rows=1, cols=len(titles), subplot_titles=titles)
        layers = self.weights.layers
        figure.add_trace(
            go.Bar(x=[m.name for m in layers], y=[m.relative for m in layers], name="‖ΔW‖ / ‖W‖"), row=1, col=1
        )
        names = [site.path for site in self.recordings.cka]
        for label, values in (
            ("CKA", self.recordings.cka),
            ("CKA, shifted rows", self.recordings.cka_control),
            ("median r of units", self.recordings.median),
        ):
            figure.add_trace(
                go.Scatter(x=names, y=list(values.values()), name=label, mode="lines+markers"), row=1, col=2
            )
        column = 3
        if self.probes is not None:
            for label, (i, j) in (("own", (1, 1)), ("transferred", (0, 1))):
                y = [float(table[i, j]) for table in self.probes.accuracy.values()]
                x = [site.path for site in self.probes.accuracy]
                figure.add_trace(go.Scatter(x=x, y=y, name=f"probe, {label}", mode="lines+markers"), row=1, col=column)
            y = [float(control.mean()) for control in self.probes.controls.values()]
            x = [site.path for site in self.probes.controls]
            figure.add_trace(go.Scatter(x=x, y=y, name="random directions", mode="lines"), row=1, col=column)
            column += 1
        if self.patches is not None:
            for found in (self.patches.base, self.patches.tuned):
                heat = found.figure().data[0]
                figure.add_trace(
                    go.Heatmap(z=heat.z, x=heat.x, y=heat.y, zmin=-1, zmax=1, colorscale="RdBu", showscale=False),
                    row=1,
                    col=column,
                )
                column += 1
        return figure

    def to_json(self) -> dict[str, Any]:
        """Plain numbers, for a file or a report."""
        return {
            name: None if getattr(self, name) is None else getattr(self, name).to_json()
            for name in ("weights", "recordings", "probes", "patches")
        }

    def __str__(self) -> str:
        parts = [str(self.weights), str(self.recordings)]
        parts += [str(part) for part in (self.probes, self.patches) if part is not None]
        return "\n\n".join(parts)


def checkpoints(
    base: nn.Module,
    tuned: nn.Module,
    batches: Any,
    at: Site | Sequence[Site],
    *,
    labels: Tensor | None = None,
    pairs: tuple[Any, Any, Metric] | None = None,
    pool: Pool | None = None,
    how: How = "difference",
    least: float = 0.5,
    seed: int = 0,
) -> DiffReport:
    """Compare two checkpoints of one model in weights, recordings, probes and patch maps.

    Args:
        base, tuned: the model before and after.
        batches: inputs on which both are recorded.
        at: the sites, for instance `px.sites.residual(model)`.
        labels: true or false, `[sample]`, of what a probe is to tell at the last row of each sample; every other sample
            trains the probes and the rest tests them, class by class.
        pairs: clean inputs, corrupted inputs and a metric, for the patch maps.
        pool: reduce the rows of each sample before the units are compared; None compares all rows.
        how: how probes are found, see `probe.directions`.
        least: see `RecordingDiff.least`.
        seed: of the controls.

    Raises:
        UnsupportedError: the two are not of one build.
        ShapeError: labels that are not one per sample, or a class with fewer than two samples.

    Examples:
        >>> import copy
        >>> base = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2, bias=False))
        >>> tuned = copy.deepcopy(base)
        >>> with torch.no_grad():
        ...     _ = tuned[2].weight.mul_(1.1)
        >>> print(checkpoints(base, tuned, torch.randn(40, 3), Site("1", "b u")).weights)
        layer    weights  relative change    cosine
        0             20           0.0000   1.00000
        2             10           0.1000   1.00000
    """
    moved = weights(base, tuned)
    kept = list(each_batch(batches))
    sites = [at] if isinstance(at, Site) else list(at)
    alike = recordings(base, tuned, kept, sites, pool=pool, least=least)
    probed = None
    if labels is not None:
        flags = torch.as_tensor(labels).cpu().bool()
        both = [record(model, kept, sites, pool="last", labels=flags) for model in (base, tuned)]
        train, test = _halves(flags)
        probed = probes(
            (_samples(both[0], train), _samples(both[1], train)),
            (_samples(both[0], test), _samples(both[1], test)),
            how=how,
            seed=seed,
        )
    patched = None if pairs is None else patch_maps(base, tuned, pairs[0], pairs[1], sites, pairs[2])
    return DiffReport(moved, alike, probed, patched)


def _halves(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Every other sample of each class, and the rest."""
    if labels.dim() != 1:
        raise ShapeError("labels are one per sample", given=tuple(labels.shape))
    train = torch.zeros(len(labels), dtype=torch.bool)
    for value in (True, False):
        mine = (labels == value).nonzero().squeeze(1)
        if len(mine) < 2:
            raise ShapeError("a probe needs samples to train and to test on", given=f"{len(mine)} of a class")
        train[mine[::2]] = True
    return train, ~train


def _samples(recording: Recording, keep: Tensor) -> Recording:
    """The samples kept of a pooled recording, numbered anew."""
    values, table, labels = {}, {}, recording.labels
    assert isinstance(labels, Tensor)
    for site in recording.sites:
        mine = keep[recording.table[site].sample]
        values[site] = recording[site][mine]
        table[site] = Table(torch.arange(int(mine.sum())))
    return Recording(values, table, labels=labels[keep], model=recording.model, pooled=recording.pooled)
