"""Whether a direction that means something in one checkpoint means it in the other.

A probe is fitted on each of the two models and tested on both, on samples that no probe has seen:

                     tested on base   on tuned
    fitted on base        a₀₀            a₀₁         forward transfer
    fitted on tuned       a₁₀            a₁₁

Beside it stand the cosine of the two directions, and as the control the accuracies of random directions, each with the
best threshold and sign that the training samples give it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from plexus.errors import DtypeError, RangeError, ShapeError, UnsupportedError
from plexus.explain.controls._null import Null, null
from plexus.probe import Directions, directions
from plexus.probe._directions import How
from plexus.units import Recording, Site


@dataclass(frozen=True)
class ProbeDiff:
    """Probes of two checkpoints on each other.

    Attributes:
        base, tuned: the directions found in each.
        accuracy: per site `[fitted on, tested on]`, base first.
        cosine: per site, between the two directions.
        controls: per site, accuracies of random directions on the tuned model, `[control]`.
    """

    base: Directions
    tuned: Directions
    accuracy: dict[Site, Tensor]
    cosine: dict[Site, float]
    controls: dict[Site, Tensor]

    def transfer(self, site: Site) -> float:
        """Accuracy that a probe of the base loses on the tuned model, against the tuned model's own."""
        return float(self.accuracy[site][1, 1] - self.accuracy[site][0, 1])

    def null(self, site: Site) -> Null:
        """Where the forward transfer stands among random directions."""
        return null(float(self.accuracy[site][0, 1]), self.controls[site])

    def to_json(self) -> dict[str, Any]:
        """Plain numbers, for a file or a report."""
        return {
            "sites": [
                {
                    "site": site.to_json(),
                    "accuracy": self.accuracy[site].tolist(),
                    "cosine": self.cosine[site],
                    "controls": self.controls[site].tolist(),
                }
                for site in self.accuracy
            ]
        }

    def __str__(self) -> str:
        wide = max(len(str(site)) for site in self.accuracy)
        lines = [f"{'site':<{wide}}  base→base  base→tuned  tuned→base  tuned→tuned  random  cosine"]
        for site, table in self.accuracy.items():
            cells = [f"{value:.3f}" for value in table.flatten().tolist()]
            random = f"{float(self.controls[site].mean()):.3f}"
            lines.append(
                f"{site!s:<{wide}}  {cells[0]:>9}  {cells[1]:>10}  {cells[2]:>10}  {cells[3]:>11}  {random:>6}  "
                f"{self.cosine[site]:+.3f}"
            )
        return "\n".join(lines)


def probes(
    train: tuple[Recording, Recording],
    test: tuple[Recording, Recording],
    *,
    how: How = "difference",
    n_random: int = 100,
    seed: int = 0,
    **options: Any,
) -> ProbeDiff:
    """Fit a probe on each of two checkpoints, and test both on both.

    Args:
        train: recordings of the base and of the tuned model on the same labelled samples, one row per sample.
        test: the same on other samples.
        how: how the directions are found, see `probe.directions`.
        n_random: random directions.
        seed: of their draw.
        **options: of `probe.directions`.

    Raises:
        DtypeError: not two recordings each.
        ShapeError: recordings without labels, or of different samples.
        RangeError: no control.

    Examples:
        >>> from plexus.units import Table
        >>> site, y = Site("0"), torch.tensor([0, 1] * 20)
        >>> x = torch.randn(40, 6, generator=torch.Generator().manual_seed(0)) + 4 * y[:, None] * torch.eye(6)[2]
        >>> one = Recording({site: x}, {site: Table(range(40))}, labels=y)
        >>> found = probes((one, one), (one, one))
        >>> bool(found.accuracy[site].min() > 0.9), round(found.cosine[site], 4), found.transfer(site)
        (True, 1.0, 0.0)
    """
    for pair in (train, test):
        if len(pair) != 2 or not all(isinstance(record, Recording) for record in pair):
            raise DtypeError("probes are fitted on two recordings, of base and of tuned", given=type(pair).__name__)
        one, two = (record.labels for record in pair)
        if not isinstance(one, Tensor) or not isinstance(two, Tensor) or not torch.equal(one, two):
            raise ShapeError(
                "both checkpoints are recorded on the same labelled samples", mend="pass labels= to record"
            )
        if pair[0].model is not None and pair[0].model != pair[1].model:
            raise UnsupportedError(
                "these are no two checkpoints of one model", given=f"{pair[0].model} and {pair[1].model}"
            )
    if n_random < 1:
        raise RangeError("a probe is reported beside its control", given=f"n_random={n_random}")
    found = [directions(record, how=how, **options) for record in train]
    sites = train[0].sites
    tables = [[probe.accuracy(record) for record in test] for probe in found]
    accuracy = {site: torch.tensor([[cell[site] for cell in row] for row in tables]) for site in sites}
    cosine = {site: float(found[0][site].double() @ found[1][site].double()) for site in sites}
    generator = torch.Generator().manual_seed(seed)
    controls = {site: _random(train[1], test[1], site, n_random, generator) for site in sites}
    return ProbeDiff(found[0], found[1], accuracy, cosine, controls)


def _random(train: Recording, test: Recording, site: Site, n: int, generator: torch.Generator) -> Tensor:
    """Accuracies of random directions, each with the threshold halfway between the classes of the training samples."""
    x, y = train[site].double(), _labels(train)[train.table[site].sample]
    x2, y2 = test[site].double(), _labels(test)[test.table[site].sample]
    draw = torch.randn(x.shape[1], n, generator=generator, dtype=torch.float64)
    along, along2 = x @ draw, x2 @ draw
    high, low = along[y].mean(0), along[~y].mean(0)
    above = along2 > (high + low) / 2
    right = (above == y2[:, None]).double().mean(0)
    return torch.where(high >= low, right, 1 - right)


def _labels(record: Recording) -> Tensor:
    assert isinstance(record.labels, Tensor)
    return record.labels.bool()
