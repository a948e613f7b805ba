"""How often units are active under each of several conditions: languages, tasks, speakers, styles.

    p[k, u] = active rows / rows                         of condition k, for unit u
    q[k, u] = p[k, u] / Σ_j p[j, u]                       1/K for a unit that is never active
    H[u]    = -Σ_k q ln q / ln K                          in [0, 1]; 0: one condition only
    s[u]    = H[u] - λ max_k p[k, u] / c,   c = (1/K) Σ_{k=1..K} 1/k

A small s is a unit that is uneven over the conditions and strongly active in one; at λ = 0 the evenness alone counts,
which also finds units that are hardly ever active.

Sources: Tang et al. 2024 (activation-probability entropy), Zhang et al. 2026 (magnitude term). The constant c is that
of the second paper's published code.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from plexus.errors import DtypeError, RangeError, ShapeError, UnsupportedError
from plexus.probe.scores._source import Features, Piece, Reading, Source
from plexus.units import Scores, Site, Table
from plexus.units._memory import to_memory
from plexus.units._recording import Labels

Tokens = Tensor | Callable[[Table], Tensor]


@dataclass(frozen=True, eq=False)
class ActivationCounts:
    """In how many rows units were active, by condition. Counts of the same units add up and are subtracted.

    Attributes:
        conditions: names; `("",)` where there was one nameless condition.
        active: per site the rows in which a unit was active, int64 `[condition, unit]`.
        rows: per site the rows counted, int64 `[condition]`.
        model: fingerprint of the model, if known.

    Examples:
        >>> hidden = Site("act", "b u")
        >>> active = torch.tensor([[3, 1], [0, 2]])
        >>> one = ActivationCounts(("en", "de"), {hidden: active}, {hidden: torch.tensor([4, 2])})
        >>> (one + one).probability["en"][hidden]
        tensor([0.7500, 0.2500], dtype=torch.float64)
    """

    conditions: tuple[str, ...]
    active: Mapping[Site, Tensor]
    rows: Mapping[Site, Tensor]
    model: str | None = None

    def __post_init__(self) -> None:
        to_memory(self, "active", "rows")

    @property
    def probability(self) -> Scores:
        """Share of the rows in which each unit was active, `[condition, unit]`.

        Raises:
            RangeError: a condition has no row.
        """
        for site, rows in self.rows.items():
            empty = [name for name, count in zip(self.conditions, rows.tolist(), strict=True) if count == 0]
            if empty:
                raise RangeError(
                    "a condition has no row to count",
                    given=f"{', '.join(empty[:6]) or 'all'} at {site}",
                    mend="look at the labels and at tokens=",
                )
        values = {site: active.double() / self.rows[site][:, None] for site, active in self.active.items()}
        return self._scores(values, "activation probability")

    def per(self, amounts: Mapping[str, float]) -> Scores:
        """Active rows per unit of another amount of each condition, for instance per word where tokens are cut finely.

        Args:
            amounts: of each condition, positive.

        Raises:
            RangeError: an amount is missing or not positive.
        """
        wrong = [name for name in self.conditions if not amounts.get(name, 0) > 0]
        if wrong:
            raise RangeError("a condition needs a positive amount", given=", ".join(wrong[:6]))
        scale = torch.tensor([float(amounts[name]) for name in self.conditions], dtype=torch.float64)
        return self._scores({site: a.double() / scale[:, None] for site, a in self.active.items()}, "activations per")

    def __add__(self, other: ActivationCounts) -> ActivationCounts:
        return self._with(other, 1)

    def __sub__(self, other: ActivationCounts) -> ActivationCounts:
        """Counts of part of the rows taken out, for instance those of the prompts alone.

        Raises:
            RangeError: the other counts are no part of these.
        """
        return self._with(other, -1)

    def _with(self, other: ActivationCounts, sign: int) -> ActivationCounts:
        if not isinstance(other, ActivationCounts):
            raise DtypeError("counts go with counts", given=type(other).__name__)
        if self.conditions != other.conditions or self.active.keys() != other.active.keys():
            raise ShapeError("these counts are of other conditions or sites", given=", ".join(other.conditions))
        if self.model is not None and other.model is not None and self.model != other.model:
            raise UnsupportedError("counts of two models do not mix", given=other.model, expected=self.model)
        active = {site: mine + sign * other.active[site] for site, mine in self.active.items()}
        rows = {site: mine + sign * other.rows[site] for site, mine in self.rows.items()}
        for site, left in active.items():
            if bool((left < 0).any()) or bool((left > rows[site][:, None]).any()):
                raise RangeError("counts were subtracted that are no part of these", given=str(site))
        return ActivationCounts(self.conditions, active, rows, self.model or other.model)

    def _scores(self, values: dict[Site, Tensor], name: str) -> Scores:
        if self.conditions == ("",):
            return Scores({site: value[0] for site, value in values.items()}, None, name, self.model)
        return Scores(values, self.conditions, name, self.model)


def count_activations(
    record: Source,
    labels: Labels | None = None,
    *,
    names: Sequence[str] | None = None,
    threshold: float = 0.0,
    tokens: Tokens | None = None,
    features: Features = None,
) -> ActivationCounts:
    """Count the rows in which each unit is above a threshold, by condition, in one pass.

    Args:
        record: a `Recording` or a stream of them; read once.
        labels: the condition of each sample, as in `mean`; those of the recordings where left out, if they have any.
        names: of the conditions.
        threshold: a unit is active above it. For a gated unit record the gate: SiLU(g) > 0 exactly where g > 0.
        tokens: which rows count: bool `[sample, position]`, positions as the model counts them, or a function of the
            table of rows (its samples counted from the start of the stream) that gives a bool per row.
        features: how a unit that holds several features becomes one number ("norm", "mean").

    Raises:
        ShapeError: labels or `tokens` that do not match the samples, or a mask that does not reach all positions.
        RangeError: the threshold or a value is NaN.

    Examples:
        >>> from plexus.units import Recording
        >>> hidden = Site("act", "b t u")
        >>> values = torch.tensor([[1.0, -1.0], [2.0, 3.0], [-1.0, 0.5]])
        >>> rec = Recording({hidden: values}, {hidden: Table([0, 0, 1], [0, 1, 0])})
        >>> count_activations(rec, torch.tensor([0, 1]), names=("en", "de")).active[hidden]
        tensor([[2, 1],
                [0, 1]])
        >>> answers = torch.tensor([[False, True], [True, False]])
        >>> count_activations(rec, torch.tensor([0, 1]), names=("en", "de"), tokens=answers).rows[hidden]
        tensor([1, 1])
    """
    if not threshold == threshold:
        raise RangeError("a threshold is a number", given=threshold)
    tokens = tokens.cpu() if isinstance(tokens, Tensor) else tokens
    reading = Reading(record, labels, features, names, required=None)
    active: dict[Site, Tensor] = {}
    rows: dict[Site, Tensor] = {}
    conditions: tuple[str, ...] = ()
    for piece in reading.pieces():
        counts = torch.ones(len(piece.values), dtype=torch.bool) if tokens is None else _chosen(piece, tokens)
        if bool(piece.values[counts].isnan().any()):
            raise RangeError(f"NaN at {piece.site} is neither active nor silent")
        on = (piece.values > threshold) & counts[:, None]
        shown = piece.shown or {"": torch.ones_like(counts)}
        conditions = tuple(shown)
        members = torch.stack(list(shown.values())).double()
        here = (members @ on.double()).long(), (members @ counts.double()).long()
        if piece.site in active:
            here = here[0] + active[piece.site], here[1] + rows[piece.site]
        active[piece.site], rows[piece.site] = here
    if isinstance(tokens, Tensor) and len(tokens) < reading.samples:
        raise ShapeError("the mask of tokens has too few samples", given=len(tokens), expected=reading.samples)
    return ActivationCounts(conditions, active, rows, reading.model)


def condition_entropy(probability: Scores, magnitude: float = 0.0) -> Scores:
    """How evenly each unit is active over the conditions, less λ times how strongly it is at most: low is selective.

    Args:
        probability: `[condition, unit]`, from `ActivationCounts`.
        magnitude: λ, not negative; 0 is the plain entropy.

    Raises:
        ShapeError: fewer than two conditions.
        RangeError: λ is negative, or a probability is negative or NaN.

    Examples:
        >>> hidden = Site("act", "b u")
        >>> p = Scores({hidden: torch.tensor([[0.5, 0.5, 0.0], [0.5, 0.0, 0.0]])}, ("en", "de"))
        >>> condition_entropy(p)[hidden]
        tensor([1., 0., 1.])
    """
    conditions = probability.concepts or ()
    if len(conditions) < 2:
        raise ShapeError("an entropy over conditions needs two of them", given=f"{len(conditions)} conditions")
    if not magnitude >= 0:
        raise RangeError("the weight of the magnitude is not negative", given=magnitude)
    constant = sum(1 / k for k in range(1, len(conditions) + 1)) / len(conditions)
    values = {}
    for site, p in probability.values.items():
        if bool((p < 0).any()) or bool(p.isnan().any()):
            raise RangeError("a probability is negative or NaN", given=str(site))
        total = p.sum(0)
        q = torch.where(total > 0, p / total.clamp(min=torch.finfo(p.dtype).tiny), 1 / len(conditions))
        entropy = 0.0 + torch.special.entr(q).sum(0) / torch.log(torch.tensor(float(len(conditions)), dtype=p.dtype))
        values[site] = entropy.clamp(0, 1) - magnitude * p.amax(0) / constant
    name = "condition entropy" if magnitude == 0 else f"condition entropy - {magnitude:.3g} × magnitude"
    return Scores(values, None, name, probability.model)


def _chosen(piece: Piece, tokens: Tokens) -> Tensor:
    table = piece.table
    sample = table.sample + piece.first
    if callable(tokens):
        chosen = tokens(Table(sample, table.position, table.call, table.step))
        if not isinstance(chosen, Tensor) or chosen.dtype != torch.bool or chosen.shape != sample.shape:
            raise ShapeError("tokens gives a bool for each row", expected=f"a bool tensor [{len(sample)}]")
        return chosen.cpu()
    if not isinstance(tokens, Tensor) or tokens.dtype != torch.bool or tokens.dim() != 2:
        given = (tuple(tokens.shape), tokens.dtype) if isinstance(tokens, Tensor) else type(tokens).__name__
        raise ShapeError("a mask of tokens", given=given, expected="bool [sample, position]")
    if len(sample) and (int(sample.max()) >= len(tokens) or int(table.position.max()) >= tokens.shape[1]):
        raise ShapeError(
            "the mask of tokens does not reach all rows",
            given=tuple(tokens.shape),
            expected=f"at least ({int(sample.max()) + 1}, {int(table.position.max()) + 1})",
        )
    return tokens[sample, table.position]
