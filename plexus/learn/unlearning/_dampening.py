"""Selective synaptic dampening: forget samples by shrinking the weights that matter most to them alone.

    S   = { i : I_F,i > α I_D,i }                 selection
    β_i = min(λ I_D,i / I_F,i, 1)                 dampening
    θ_i ← β_i θ_i   for i in S

I_D is the diagonal Fisher of all training data, measured once and kept; I_F that of the samples to forget. With exact
per-example squares  n I_D = m I_F + (n - m) I_R ≥ m I_F  for m of n samples, hence I_F / I_D ≤ n/m: no α beyond n/m
selects anything. Squared batch means have no such bound.

Automatic strength:  `percentile`: α is the p-th percentile of I_F / I_D with p = 100 - ln(1 + 100 m/n);  `budget`: the
smallest α (the strongest dampening) whose rise of the loss on a retained probe stays within a tolerance.

Source: Foster, Schoepf & Brintrup 2024 (arXiv 2308.07707); Schoepf, Foster & Brintrup 2024 (percentile).
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from plexus.errors import RangeError, ShapeError, UnknownNameError, UnsupportedError
from plexus.learn.unlearning._batches import mean_loss, reusable
from plexus.probe.scores._batch import Forward
from plexus.probe.scores._fisher import Loss, ParameterFilter, diagonal_fisher, select_parameters
from plexus.probe.scores._importances import Importances

Auto = Literal["percentile", "budget"]
_BINS = 10


@dataclass(frozen=True)
class DampeningReport:
    """What a dampening changed. `print(report)` shows it per layer.

    Attributes:
        alpha, lam: the strength that was used.
        selected: parameter name → number of dampened entries. total: parameter name → number of entries.
        betas: parameter name → factors of the dampened entries, `[selected]`.
        seconds: wall time of importances, choice of strength and dampening.
        loss_before, loss_after: on the probe, where one was given.
        evaluations: how many strengths were tried.
    """

    alpha: float
    lam: float
    selected: Mapping[str, int]
    total: Mapping[str, int]
    betas: Mapping[str, Tensor] = field(repr=False)
    seconds: float = 0.0
    loss_before: float | None = None
    loss_after: float | None = None
    evaluations: int = 0

    @property
    def count(self) -> int:
        """Number of dampened entries over all parameters."""
        return sum(self.selected.values())

    @property
    def fraction(self) -> float:
        """Share of dampened entries over all parameters."""
        return self.count / max(1, sum(self.total.values()))

    def histogram(self, bins: int = _BINS) -> tuple[Tensor, Tensor]:
        """Counts `[bins]` of the factors β in equal bins of [0, 1], and the `[bins + 1]` edges."""
        values = torch.cat([beta.float().cpu().flatten() for beta in self.betas.values()] or [torch.empty(0)])
        return torch.histc(values, bins, 0.0, 1.0).long(), torch.linspace(0, 1, bins + 1)

    def __str__(self) -> str:
        width = max([len(name) for name in self.total] + [5])
        lines = [
            f"dampened {self.count:,} of {sum(self.total.values()):,} entries ({100 * self.fraction:.2f} %) "
            f"with alpha={self.alpha:.4g}, lam={self.lam:g} in {self.seconds:.2f} s",
            f"{'layer':<{width}}  {'selected':>9}  {'share':>7}  {'mean beta':>9}",
        ]
        for name, total in self.total.items():
            chosen = self.selected[name]
            mean = f"{float(self.betas[name].float().mean()):9.3f}" if chosen else f"{'-':>9}"
            lines.append(f"{name:<{width}}  {chosen:>9,}  {100 * chosen / max(1, total):6.2f}%  {mean}")
        counts, edges = self.histogram()
        tallest = max(1, int(counts.max()))
        for index, count in enumerate(counts.tolist()):
            bar = "#" * math.ceil(30 * count / tallest)
            lines.append(f"beta {edges[index]:.1f}-{edges[index + 1]:.1f}  {count:>9,}  {bar}".rstrip())
        if self.loss_before is not None and self.loss_after is not None:
            lines.append(f"loss on the probe: {self.loss_before:.4f} before, {self.loss_after:.4f} after")
        return "\n".join(lines)


class SelectiveSynapticDampening:
    """Forgets samples without training: `fit` on the importances of all training data, `forget`, and `undo` if wanted.

    Args:
        alpha: how many times more an entry must matter for the forget set than for all data to be dampened. Ignored
            when `auto` is given.
        lam: strength of the dampening; smaller is stronger.
        auto: `percentile` or `budget` (needs a retained probe) choose alpha by themselves.
        params: which parameters may be dampened: a glob, several, or a predicate on the name.
        tolerance: for `budget`, how much the loss on the probe may rise, in nats.
        steps: for `budget`, how many strengths are tried.

    Examples:
        >>> from plexus.probe.scores import diagonal_fisher
        >>> _ = torch.manual_seed(0)
        >>> model, x = nn.Linear(4, 2), torch.randn(20, 4)
        >>> y = (x[:, 0] > 0).long()
        >>> ssd = SelectiveSynapticDampening(alpha=1.2).fit(diagonal_fisher(model, [(x, y)]))
        >>> before = model.weight.clone()
        >>> report = ssd.forget(model, [(x[y == 1], y[y == 1])])
        >>> report.count > 0, bool((model.weight != before).any())
        (True, True)
        >>> ssd.undo()
        >>> bool((model.weight == before).all())
        True
    """

    def __init__(
        self,
        alpha: float = 10.0,
        lam: float = 1.0,
        auto: Auto | None = None,
        params: ParameterFilter = None,
        *,
        tolerance: float = 0.05,
        steps: int = 8,
    ) -> None:
        for name, number in (("alpha", alpha), ("lam", lam), ("tolerance", tolerance)):
            if not (isinstance(number, (int, float)) and math.isfinite(number) and number > 0):
                raise RangeError(f"{name} is not a positive number", given=number)
        if auto not in (None, "percentile", "budget"):
            raise UnknownNameError.among("automatic strength", str(auto), ("percentile", "budget"))
        if steps < 1:
            raise RangeError("at least one strength must be tried", given=steps)
        self.alpha, self.lam, self.auto, self.params = float(alpha), float(lam), auto, params
        self.tolerance, self.steps = tolerance, steps
        self.importances: Importances | None = None
        self._log: list[list[tuple[Tensor, Tensor, Tensor]]] = []

    def fit(self, importances: Mapping[str, Tensor]) -> SelectiveSynapticDampening:
        """Keep the importances of all training data (`diagonal_fisher`, or `Importances.load`); returns itself.

        A plain mapping is taken as squared batch means of the cross-entropy over an unknown number of samples.

        Raises:
            RangeError: empty, negative or not finite.
        """
        if not importances:
            raise RangeError("there are no importances", mend="measure them with plexus.probe.scores.diagonal_fisher")
        for name, value in importances.items():
            if not bool(torch.isfinite(value).all()) or bool((value < 0).any()):
                raise RangeError(f"the importances of {name!r} are negative or not finite")
        known = importances if isinstance(importances, Importances) else Importances(importances, mode="batch")
        self.importances = known
        return self

    def forget(
        self,
        model: nn.Module,
        forget: Iterable[Any],
        *,
        probe: Iterable[Any] | None = None,
        loss: Loss | None = None,
        forward: Forward | None = None,
        sample_dim: int = 0,
        generator: torch.Generator | None = None,
    ) -> DampeningReport:
        """Measure the importances of the forget set as those of all data were, and dampen the model in place.

        Args:
            model: the trained module.
            forget: batches of the samples to forget, part of the data behind the importances. In `batch` mode use
                batches of the same size as then.
            probe: a few retained batches; needed by `auto="budget"`, reported otherwise.
            loss: the loss behind the importances, where it is not one of the named ones.
            forward, sample_dim, generator: as for `diagonal_fisher`.

        Raises:
            RangeError: no sample to forget, as many as there are in all, alpha beyond the bound, values not finite.
            UnknownNameError, ShapeError: the importances are of another model.

        Warns:
            UserWarning: nothing was selected.
        """
        start = time.perf_counter()
        reference = self.importances
        if reference is None:
            raise UnsupportedError("there are no importances of all training data", mend="call fit(importances) first")
        if self.auto == "budget" and probe is None:
            raise UnsupportedError('auto="budget" needs a few retained batches', mend="pass probe=")
        named = self._matched(model, reference)
        chosen_loss = loss if loss is not None else reference.loss
        if isinstance(chosen_loss, str) and chosen_loss not in ("ce", "norm"):
            raise UnsupportedError("the importances are of a loss of your own", given=chosen_loss, mend="pass loss=")
        names = set(named)
        target = diagonal_fisher(
            model,
            reusable(forget, "forget"),
            chosen_loss,  # type: ignore[arg-type]
            reference.mode,  # type: ignore[arg-type]
            reference.labels,  # type: ignore[arg-type]
            params=lambda name: name in names,
            forward=forward,
            sample_dim=sample_dim,
            power=reference.power,  # type: ignore[arg-type]
            generator=generator,
        )
        share = self._share(reference, target)
        alpha, evaluations = self.alpha, 0
        retained = None if probe is None else reusable(probe, "probe")
        before = None if retained is None else mean_loss(model, retained, forward)
        pairs = {name: (reference[name].to(target[name]), target[name]) for name in named}
        if self.auto == "percentile":
            if share is None:
                raise UnsupportedError(
                    "the percentile needs the number of training samples", mend="fit importances that carry it"
                )
            alpha = max(_percentile(pairs, 100.0 - math.log1p(100.0 * share)), torch.finfo(torch.float32).tiny)
        elif self.auto == "budget":
            assert retained is not None
            assert before is not None
            alpha, evaluations = self._largest(model, named, pairs, retained, before, forward)
        elif share is not None and reference.mode == "sample" and reference.labels != "model" and alpha * share >= 1:
            raise RangeError(
                "no entry can be selected at this alpha: with per-example importances I_F / I_D is at most n/m, "
                "because the forget set is part of all data",
                given=f"alpha={alpha:g}",
                expected=f"alpha < {1 / share:.4g} ({target.samples} of {reference.samples} samples)",
                mend='lower alpha, use auto="percentile" or "budget", or importances of mode="batch"',
            )
        log, betas = _dampen(named, pairs, alpha, self.lam)
        self._log.append(log)
        report = DampeningReport(
            alpha=alpha,
            lam=self.lam,
            selected={name: beta.numel() for name, beta in betas.items()},
            total={name: parameter.numel() for name, parameter in named.items()},
            betas=betas,
            loss_before=before,
            loss_after=None if retained is None else mean_loss(model, retained, forward),
            evaluations=evaluations,
            seconds=time.perf_counter() - start,
        )
        if not report.count:
            warnings.warn(
                f"nothing was selected at alpha={alpha:.4g}: no entry matters that much more for the forget set; "
                'lower alpha or use auto="percentile"',
                stacklevel=2,
            )
        return report

    def undo(self) -> None:
        """Take the last `forget` back, bit for bit.

        Raises:
            UnsupportedError: there is nothing to take back.
        """
        if not self._log:
            raise UnsupportedError("there is nothing to undo", mend="undo takes back one forget each time")
        restore(self._log.pop())

    def _matched(self, model: nn.Module, reference: Importances) -> dict[str, nn.Parameter]:
        named = dict(select_parameters(model, self.params))
        for name, parameter in named.items():
            if name not in reference:
                raise UnknownNameError.among("stored importance", name, reference)
            if reference[name].shape != parameter.shape:
                raise ShapeError(
                    f"the importances of {name!r} are of another model",
                    given=tuple(reference[name].shape),
                    expected=tuple(parameter.shape),
                )
            if not bool(torch.isfinite(parameter).all()):
                raise RangeError(f"the parameter {name!r} is not finite")
        if self.params is None:
            for name in reference:
                if name not in named:
                    raise UnknownNameError.among("trainable parameter", name, named)
        return named

    def _share(self, reference: Importances, target: Importances) -> float | None:
        """m/n, or None where n is not known."""
        if not reference.samples:
            return None
        if target.samples >= reference.samples:
            raise RangeError(
                "the forget set is all of the training data",
                given=f"{target.samples} samples to forget of {reference.samples}",
                expected="a part of them",
                mend="train a new model to forget everything",
            )
        return target.samples / reference.samples

    def _largest(
        self,
        model: nn.Module,
        named: Mapping[str, nn.Parameter],
        pairs: Mapping[str, tuple[Tensor, Tensor]],
        probe: Iterable[Any],
        before: float,
        forward: Forward | None,
    ) -> tuple[float, int]:
        """Bisection on log alpha between lam (below it nothing changes) and the largest ratio (nothing selected)."""
        ratios = {name: target / reference for name, (reference, target) in pairs.items()}
        original = {name: parameter.detach().clone() for name, parameter in named.items()}
        highest = _percentile(pairs, 100.0)
        low, high = math.log(self.lam), math.log(max(highest, self.lam))
        try:
            for step in range(self.steps):
                middle = low if step == 0 else (low + high) / 2
                with torch.no_grad():
                    for name, parameter in named.items():
                        ratio = ratios[name]
                        beta = torch.where(ratio > math.exp(middle), (self.lam / ratio).clamp(max=1.0), 1.0)
                        parameter.copy_(original[name] * beta)
                if mean_loss(model, probe, forward) - before <= self.tolerance:
                    high = middle
                    if step == 0:
                        return math.exp(low), 1
                else:
                    low = middle
        finally:
            with torch.no_grad():
                for name, parameter in named.items():
                    parameter.copy_(original[name])
        return math.exp(high), self.steps


def restore(log: Iterable[tuple[Tensor, Tensor, Tensor]]) -> None:
    """Put back `(parameter, mask, values)`."""
    with torch.no_grad():
        for parameter, mask, values in log:
            parameter[mask] = values


@torch.no_grad()
def _dampen(
    named: Mapping[str, nn.Parameter], pairs: Mapping[str, tuple[Tensor, Tensor]], alpha: float, lam: float
) -> tuple[list[tuple[Tensor, Tensor, Tensor]], dict[str, Tensor]]:
    """Apply, dividing only where something is selected; returns what restores it and the factors."""
    log: list[tuple[Tensor, Tensor, Tensor]] = []
    betas: dict[str, Tensor] = {}
    for name, parameter in named.items():
        reference, target = pairs[name]
        mask = target > alpha * reference
        beta = (lam * reference[mask] / target[mask]).clamp(max=1.0)
        values = parameter[mask].clone()
        log.append((parameter, mask, values))
        betas[name] = beta
        parameter[mask] = torch.where(beta == 0, torch.zeros_like(values), (values * beta).to(values.dtype))
    return log, betas


def _percentile(pairs: Mapping[str, tuple[Tensor, Tensor]], percent: float) -> float:
    """Percentile of I_F / I_D over all entries where the ratio is defined and finite."""
    ratios = []
    for reference, target in pairs.values():
        defined = reference > 0
        ratios.append((target[defined] / reference[defined]).flatten().cpu())
    values = torch.cat(ratios)
    values = values[torch.isfinite(values)]
    if not len(values):
        return 0.0
    rank = max(1, min(len(values), math.ceil(percent / 100.0 * len(values))))
    return float(values.kthvalue(rank).values)
