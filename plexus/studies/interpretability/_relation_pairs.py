"""What two relations share, and which relation gains when another's units fall silent."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from itertools import permutations
from typing import NamedTuple

import torch
from torch import Tensor

from plexus.data.corpora import FactWorld
from plexus.explain import EffectMatrix, overlap_matrix
from plexus.studies.interpretability._relations import Config, Prepared, Questions, chosen, ranked, to_choose_on
from plexus.studies.interpretability._silenced import Silencing, asked
from plexus.units import Neurons


class Mantel(NamedTuple):
    """A correlation of two tables over pairs, beside that of all orders of the rows and columns of one of them.

    Attributes:
        r: correlation over the pairs.
        p: share of the orders, the given one included, with at least this correlation.
        bar: 95th percentile of the correlations of the orders.
    """

    r: float
    p: float
    bar: float


def mantel(one: Tensor, other: Tensor) -> Mantel:
    """Mantel's test with every order of up to nine rows; r 0 and p 1 where a table is constant over the pairs."""
    places = torch.triu_indices(len(one), len(one), 1)
    orders = torch.tensor(list(permutations(range(len(one)))))  # the first leaves all in place
    here = one.double()[tuple(places)]
    there = other.double()[orders[:, places[0]], orders[:, places[1]]]
    here, there = here - here.mean(), there - there.mean(1, keepdim=True)
    size = float(here.norm() * there[0].norm())
    if size < 1e-12:
        return Mantel(0.0, 1.0, 0.0)
    found = there @ here / size
    return Mantel(float(found[0]), float((found >= found[0] - 1e-9).double().mean()), float(found.quantile(0.95)))


def common(sets: Sequence[set[str]]) -> Tensor:
    """Common members over all members of both, for all pairs of sets."""
    return torch.tensor([[len(a & b) / max(1, len(a | b)) for b in sets] for a in sets], dtype=torch.float64)


def entities(world: FactWorld, names: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Common subjects, and common answers, of all pairs of relations."""
    parts = [[(subject, answer) for (name, subject), answer in world.facts.items() if name == one] for one in names]
    return common([{s for s, _ in facts} for facts in parts]), common([{a for _, a in facts} for facts in parts])


def shares(world: FactWorld, units: Mapping[str, Neurons], nats: EffectMatrix) -> dict[str, float]:
    """Versatility: units that relations have in common, beside common entities, chance and what they lose."""
    overlap = overlap_matrix(units)
    pairs = tuple(overlap.pairs)
    subjects, answers = (table[pairs] for table in entities(world, overlap.names))
    found = mantel(entities(world, overlap.names)[0], overlap.jaccard)
    both = (nats.change + nats.change.T) / 2

    def times(which: Tensor) -> float:
        return float(overlap.shared[pairs][which].sum() / overlap.expected[pairs][which].sum().clamp(min=1e-9))

    return {
        "overlap by chance": times(subjects >= 0),
        "overlap by chance, common subjects": times(subjects > 0),
        "overlap by chance, other subjects": times(subjects == 0),
        "common subjects": float(subjects.mean()),
        "common answers": float(answers.mean()),
        "entities and units": found.r,
        "entities and units, p": found.p,
        "entities and units, beyond": found.r - found.bar,
        "overlap and loss": ranks(overlap.shared[pairs], -both[pairs]),
    }


class Gains(NamedTuple):
    """Pairs (units of one relation, facts of another) that gain, as a share of all pairs.

    Attributes:
        any: at one share of units or more.
        each: at each share of units.
        unmatched: as `any`, without the comparison with random sets.
    """

    any: float
    each: list[float]
    unmatched: float


def gains(matrices: Sequence[EffectMatrix], clusters: Tensor) -> Gains:
    """Count the pairs that gain, one matrix for each share of units.

    A pair gains where the bootstrap interval of its change over facts lies above zero, at 95 % for all shares together
    (Bonferroni), and its change has p ≤ 0.05 by its rank among all random sets of that share. Items of one cluster are
    drawn together.
    """
    level, apart = 1 - 0.05 / len(matrices), ~torch.eye(len(matrices[0].groups), dtype=torch.bool)
    above, beyond = [], []
    for matrix in matrices:
        above.append(matrix.interval(level=level, resamples=2000, clusters=clusters)[0] > 0)
        random = matrix.controls.flatten(0, 1)
        beyond.append((1 + (random[:, None] >= matrix.change).sum(0)) / (1 + len(random)) <= 0.05)
    some = torch.stack(above)
    both = some & torch.stack(beyond)
    return Gains(
        float(both.any(0)[apart].double().mean()),
        [float(one[apart].double().mean()) for one in both],
        float(some.any(0)[apart].double().mean()),
    )


def early_doses(config: Config, prepared: Prepared, test: Questions, seed: int) -> list[dict[str, EffectMatrix]]:
    """What silencing does to the model that knows a part of the facts, all facts asked, at each share of units."""
    plain = dataclasses.replace(config, details=False)
    found = ranked(plain, prepared.early, to_choose_on(prepared), test, seed)
    silencing, every = Silencing(prepared.early, test.batches), torch.ones(len(test.items), dtype=torch.bool)
    at = (dataclasses.replace(plain, share=share) for share in config.doses)
    return [asked(one, silencing, test, chosen(one, found, seed), seed, keep=every) for one in at]


def ranks(one: Tensor, other: Tensor) -> float:
    """Rank correlation; 0 where a side is constant."""
    from scipy.stats import spearmanr

    if float(one.std()) == 0 or float(other.std()) == 0:
        return 0.0
    return float(spearmanr(one.numpy(), other.numpy()).statistic)
