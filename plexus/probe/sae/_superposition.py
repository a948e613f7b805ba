"""How many features a layer really represents, against how many units it has: superposition as lossy compression.

A sparse autoencoder is trained on the layer's rows; F is the effective number of its features in use, ψ = F / units.
ψ > 1: features share units and must interfere; ψ ≤ 1: no superposition can be measured.

Absolute F depends on the autoencoder (penalty, dictionary, length of training), and FVU does not reveal a poor one:
compare numbers of one protocol, and look whether F has settled in the size of the dictionary (`plateau`).

Source: Bereska et al. 2025, "Superposition as Lossy Compression".
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from plexus.errors import RangeError
from plexus.probe._record import stream
from plexus.probe.geometry import participation_ratio
from plexus.probe.sae._autoencoder import SparseAutoencoder
from plexus.probe.sae._feed import Source, feed_of, split
from plexus.probe.sae._fit import fit
from plexus.probe.sae._measures import quality
from plexus.units import Recording, Site

__all__ = ["PROTOCOL", "SuperpositionProbe", "SuperpositionReport", "superposition"]

PROTOCOL: Mapping[str, Any] = {
    "tied": True,
    "unit_norm": False,
    "decoder_bias": False,
    "activation": "relu",
    "l1": 0.1,
    "l1_reduction": "mean",
    "batch": 128,
    "rate": 1e-3,
    "steps": 6000,
    "every": 250,
    "watch": "features",
    "patience": 4,
    "tolerance": 0.02,
}
"""The published autoencoder: tied, one bias, mean |z|; trained until F has settled, as the loss settles too early."""

_POOR = 0.5  # FVU above which F means nothing
_SETTLED = 0.1  # change of F over the last three looks at training above which it has not settled
_ROWS = 10  # rows per unit below which F means nothing


@dataclass(frozen=True)
class SuperpositionReport:
    """What `superposition` measured of one site.

    Attributes:
        effective_features: F.
        units: N.
        fvu: share of variance unexplained, on rows that the autoencoder did not see (unless `in_sample`).
        l0: mean number of active features of a row.
        alive: features active at least once, of `dictionary`.
        dictionary: D.
        participation: participation ratio of the units, which cannot exceed N.
        plateau: |F(2D) - F(D)| / F(D); None if it was not asked for.
        steps: of training.
        warnings: what makes the number doubtful.
        autoencoder: the autoencoder behind it.

    Examples:
        >>> draw = torch.Generator().manual_seed(0)
        >>> rows = torch.randn(256, 4, generator=draw)
        >>> report = superposition(rows, steps=50, generator=draw)
        >>> report.ratio == report.effective_features / 4
        True
    """

    effective_features: float
    units: int
    fvu: float
    l0: float
    alive: int
    dictionary: int
    participation: float
    plateau: float | None
    steps: int
    warnings: tuple[str, ...] = ()
    autoencoder: SparseAutoencoder | None = field(default=None, repr=False, compare=False)

    @property
    def ratio(self) -> float:
        """ψ = F / N."""
        return self.effective_features / self.units

    @property
    def dead_fraction(self) -> float:
        """Share of the dictionary that was never active."""
        return 1.0 - self.alive / self.dictionary

    def __str__(self) -> str:
        lines = [
            f"effective features {self.effective_features:.3g} in {self.units} units: ψ = {self.ratio:.3g}"
            + (" (superposition)" if self.ratio > 1 else ""),
            f"participation ratio {self.participation:.3g}, L0 {self.l0:.3g}, "
            f"{self.alive} of {self.dictionary} features alive, FVU {self.fvu:.3g}",
        ]
        lines += [] if self.plateau is None else [f"twice the dictionary changes F by {100 * self.plateau:.0f} %"]
        return "\n".join([*lines, *(f"• {text}" for text in self.warnings)])


def superposition(
    source: Source | nn.Module,
    batches: Any = None,
    at: Site | None = None,
    *,
    generator: torch.Generator,
    expansion: int = 4,
    in_sample: bool = False,
    plateau: bool = False,
    **settings: Any,
) -> SuperpositionReport:
    """The effective number of features at one site, and the superposition ratio.

    Args:
        source: a model, with `batches` and `at` as in `record`; or rows, a recording or a function that opens a stream.
        batches: what the model runs on. at: the site; for a spiking layer record its rates (`pool="mean"`) and pass the
            recording.
        generator: draws weights and orders; the same one gives the same number.
        expansion: D / N, the size of the dictionary.
        in_sample: measure on the rows trained on, as the published code does, instead of a tenth held out.
        plateau: train a dictionary twice the size too.
        **settings: of `fit`, in the place of those of `PROTOCOL`.

    Raises:
        RangeError: the dictionary is smaller than the layer, or every feature is dead.

    Warns:
        UserWarning: the number means little: too few rows for the units, a poor reconstruction, training that has not
            settled. The report repeats it.
    """
    if isinstance(source, nn.Module):
        if at is None or batches is None:
            raise RangeError("a model is measured at a site, on batches", mend="superposition(model, batches, site, …)")
        source = torch.cat([_site_rows(piece, at) for piece in stream(source, batches, at)])
    if isinstance(expansion, bool) or not expansion >= 1:
        raise RangeError("a dictionary smaller than the layer cannot count its features", given=f"{expansion} x units")
    feed = feed_of(source, at, batch=1, buffer=2**20, held_out=0, generator=torch.Generator().manual_seed(0))
    rows = feed.first[0]
    units, doubts = rows.shape[1], []
    if len(rows) < _ROWS * units:
        doubts.append(f"{len(rows)} rows for {units} units: F grows with the rows until there are many more")
    train, back = split(torch.arange(len(rows)), 0 if in_sample else 0.1, generator)
    judged = rows if in_sample else rows[back]
    chosen = {**PROTOCOL, **settings, "features": expansion * units, "generator": generator}
    done = fit(rows[train], **chosen)
    found = quality(done.autoencoder, judged)
    if not found.alive:
        raise RangeError("every feature is dead: the penalty is too strong", given=f"l1={chosen['l1']}")
    if found.fvu > _POOR:
        doubts.append(f"FVU {found.fvu:.2f}: the autoencoder explains too little for F to mean anything")
    recent = done.curve["effective_features"][-3:]
    moved = float((recent.max() - recent.min()) / recent.mean())
    if len(recent) < 3:
        doubts.append(
            f"training was looked at {len(recent)} time(s): too few to tell whether F has settled, train longer"
        )
    elif moved > _SETTLED:
        doubts.append(
            f"F moved by {100 * moved:.0f} % over the last looks at training: it has not settled, train longer"
        )
    wider = None
    if plateau:
        other = fit(rows[train], **{**chosen, "features": 2 * expansion * units})
        wider = abs(quality(other.autoencoder, judged).effective_features / found.effective_features - 1.0)
        if wider > 0.2:
            doubts.append(f"F changes by {100 * wider:.0f} % with twice the dictionary: it has not settled")
    for doubt in doubts:
        warnings.warn(doubt, stacklevel=2)
    return SuperpositionReport(
        found.effective_features,
        units,
        found.fvu,
        found.l0,
        found.alive,
        expansion * units,
        participation_ratio(rows),
        wider,
        done.steps,
        tuple(doubts),
        done.autoencoder,
    )


class SuperpositionProbe:
    """Measures the superposition of a layer now and then during training: `probe(step)` in the training loop.

    Args:
        model: being trained; it is as before after each measurement, and so is the random state.
        batches: what it runs on, the same each time.
        at: the site.
        every: steps between two measurements.
        seed: of the autoencoders: each is drawn and trained alike, so that F changes by the model alone.
        **settings: of `superposition`.

    Attributes:
        reports: measurements by step.

    Examples:
        >>> model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1))
        >>> probe = SuperpositionProbe(model, torch.randn(128, 3), Site("1", "b u"), every=10, seed=0, steps=20)
        >>> for step in range(11):
        ...     _ = probe(step)
        >>> sorted(probe.reports)
        [0, 10]
    """

    def __init__(self, model: nn.Module, batches: Any, at: Site, *, every: int = 1, seed: int, **settings: Any) -> None:
        if every < 1:
            raise RangeError("`every` is a count of steps", given=every, expected="at least 1")
        self.model, self.batches, self.at, self.every, self.seed = model, batches, at, every, seed
        self.settings = settings
        self.reports: dict[int, SuperpositionReport] = {}

    def __call__(self, step: int) -> SuperpositionReport | None:
        """Measure if it is time."""
        if step % self.every:
            return None
        generator = torch.Generator().manual_seed(self.seed)
        with torch.enable_grad():
            report = superposition(self.model, self.batches, self.at, generator=generator, **self.settings)
        self.reports[step] = report
        return report

    def series(self, name: str = "ratio") -> Tensor:
        """One number of each report over the steps, `[measurement, 2]`: step and number."""
        pairs = [(step, float(getattr(report, name))) for step, report in sorted(self.reports.items())]
        return torch.tensor(pairs, dtype=torch.float64).reshape(-1, 2)


def _site_rows(piece: Recording, at: Site) -> Tensor:
    return piece[at].flatten(1).float()
