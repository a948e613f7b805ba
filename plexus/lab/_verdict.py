"""From the seeds' numbers to five words.

Each check turns one number per seed into `True` (on the good side), `False` (on the bad side) or `None` (undecided):

    interval    the 95 % t interval lies wholly on the good side | wholly on the bad side | spans the bar
    wins        the bar is met in at least ⌈k m / n⌉ of the m seeds | in fewer
    equivalent  the interval lies wholly within center ± margin | wholly outside | neither
    exact       every seed lies within center ± margin | one does not

A question is answered by its primary check; the further ones are Holm-corrected among themselves and can only turn
`holds here` into `holds in part`. `does not hold here` needs a positive control that succeeds in the same testbed. A
sanity check that fails, or a trial that broke, leaves every question undecided, and the reason says so.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from plexus.lab._statistics import Floats, binomial_tail, holm, sign_flip, t_interval, t_p_values, t_reach
from plexus.lab._study import BySeed, Check, Question, Study

Word = Literal["holds here", "holds in part", "does not hold here", "undecided", "not tested"]

QUESTIONS: tuple[Question, ...] = ("mechanism", "advantage")
ALPHA = 0.05
PASSED = {1: True, 0: None, -1: False}
"""What `decide` says of a check, as the ledger writes it."""


@dataclass(frozen=True)
class Judgement:
    """One check, judged. `passed` is None where the numbers do not decide; fields are those of the ledger's checks."""

    check: Check
    values: tuple[float | None, ...]
    passed: bool | None
    mean: float | None = None
    interval: tuple[float, float] | None = None
    p: float | None = None
    p_interval: float | None = None
    p_holm: float | None = None
    distance: float | None = None
    distance_unit: str = "bar"
    note: str = ""

    @property
    def word(self) -> str:
        return "undecided" if self.passed is None else "holds" if self.passed else "fails"

    def to_json(self) -> dict[str, Any]:
        """The check as the ledger writes it."""
        check = self.check
        return {
            "name": check.name,
            "kind": check.kind,
            "role": check.role,
            "primary": check.primary,
            "unit": check.unit,
            "bar": describe_bar(check),
            "passed": self.passed,
            "verdict": self.word,
            "values": list(self.values),
            "mean": self.mean,
            "interval": None if self.interval is None else list(self.interval),
            "p": self.p,
            "p_interval": self.p_interval,
            "p_holm": self.p_holm,
            "distance": self.distance,
            "distance_unit": self.distance_unit,
            "note": self.note,
        }


@dataclass(frozen=True)
class Verdict:
    """The answer to one question: a word, why, and the primary check's name, distance to its bar and p."""

    word: Word
    reason: str = ""
    check: str | None = None
    distance: float | None = None
    p: float | None = None

    def to_json(self) -> dict[str, Any]:
        """The verdict as the ledger writes it."""
        return dict(vars(self))


@dataclass(frozen=True)
class Judged:
    """All checks and both questions of a study."""

    checks: tuple[Judgement, ...]
    verdicts: Mapping[Question, Verdict]
    state: Literal["measured", "broken"]


def describe_bar(check: Check) -> dict[str, Any]:
    """The bar as numbers, and in words under `text`.

    Examples:
        >>> from plexus.lab import interval
        >>> describe_bar(interval("gap", lambda arms: 0.0, role="mechanism", at_least=0.1, unit="accuracy"))["text"]
        'at least 0.1 accuracy'
    """
    unit = f" {check.unit}" if check.unit else ""
    if check.kind in ("equivalent", "exact"):
        return {"center": check.center, "margin": check.margin, "text": f"{check.center:g} ± {check.margin:g}{unit}"}
    side, value = ("at_least", check.at_least) if check.at_least is not None else ("at_most", check.at_most)
    bar: dict[str, Any] = {side: value, "text": f"{side.replace('_', ' ')} {value:g}{unit}"}
    if check.kind == "wins":
        bar |= {"k": check.k, "n": check.n, "text": f"{bar['text']} in {check.k} of {check.n} seeds"}
    return bar


def wins_needed(check: Check, seeds: int) -> int:
    """In how many of `seeds` seeds the bar must be met: the same share, rounded up."""
    return -(-check.k * seeds // check.n)


def judge_check(check: Check, by_seed: Sequence[BySeed]) -> Judgement:
    """Judge one check on the seeds in which every arm finished."""
    values: list[float] = []
    for metrics in by_seed:
        try:
            values.append(float(check.quantity(metrics)))
        except Exception as error:  # a study's own function; whatever it raises makes this check undecidable
            why = f"its quantity could not be computed: {type(error).__name__}: {error}"
            return Judgement(check, (None,) * len(by_seed), None, note=why)
    shown = tuple(value if math.isfinite(value) else None for value in values)
    if not values:
        return Judgement(check, shown, None, note="no seed finished")
    if None in shown:
        return Judgement(check, shown, None, note="its quantity is not a finite number in every seed")
    array = np.array(values)
    mean, low, high = t_interval(array)
    side, level = decide(check, array)
    base = Judgement(
        check,
        shown,
        PASSED[int(side)],
        mean=mean,
        interval=None if math.isinf(low) else (low, high),
        p_interval=None if math.isnan(level) else float(level),
        note="one seed gives no interval" if math.isinf(low) and check.kind in ("interval", "equivalent") else "",
    )
    if check.kind in ("exact", "equivalent"):
        far = np.abs(array - check.center).max() if check.kind == "exact" else abs(mean - check.center)
        p = None if check.kind == "exact" else sign_flip(values, float(_edge(check, np.array(mean))))
        return replace(base, p=p, distance=_ratio(check.margin - far, check.margin), distance_unit="margin")
    bar = check.at_least if check.at_least is not None else check.at_most
    assert bar is not None
    sign = 1.0 if check.at_least is not None else -1.0
    if check.kind == "wins":
        won, share = int((sign * (array - bar) >= 0).sum()), check.k / check.n
        return replace(
            base,
            p=binomial_tail(won, array.size),
            distance=(won / array.size - share) / share,
            note=f"met in {won} of {array.size} seeds, {wins_needed(check, array.size)} needed",
        )
    unit, name = (abs(bar), "bar") if bar != 0 else ((high - low) / 2, "interval")
    return replace(base, p=sign_flip(values, bar), distance=_ratio(sign * (mean - bar), unit), distance_unit=name)


def decide(check: Check, values: Floats) -> tuple[Floats, Floats]:
    """On which side of its bar a check lies, for many sets of seeds at once.

    Args:
        check: the bar.
        values: `[…, seed]`, finite.

    Returns:
        `[…]`, 1 on the good side, -1 on the bad, 0 where the interval decides neither; and the level at which the
        interval touches the bar, NaN for checks that have no interval.
    """
    seeds = values.shape[-1]
    if check.kind in ("exact", "wins"):
        if check.kind == "exact":
            good = np.abs(values - check.center).max(-1) <= check.margin
        else:
            bottom, top = _good_range(check)
            good = ((bottom <= values) & (values <= top)).sum(-1) >= wins_needed(check, seeds)
        return np.where(good, 1.0, -1.0), np.full(good.shape, np.nan)
    means, reach = t_reach(values)
    low, high, (bottom, top) = means - reach, means + reach, _good_range(check)
    good, bad = (bottom <= low) & (high <= top), (high < bottom) | (low > top)
    level = np.where((reach == 0.0) & good, 0.0, t_p_values(values, _edge(check, means)))
    return np.where(good, 1.0, np.where(bad, -1.0, 0.0)), level


def _good_range(check: Check) -> tuple[float, float]:
    if check.kind == "equivalent":
        return check.center - check.margin, check.center + check.margin
    return (
        -math.inf if check.at_least is None else check.at_least,
        math.inf if check.at_most is None else check.at_most,
    )


def _edge(check: Check, means: Floats) -> Floats:
    """The end of the good range that a mean is closer to."""
    bottom, top = _good_range(check)
    if check.kind == "equivalent":
        return np.where(means > check.center, top, bottom)
    return np.broadcast_to(top if math.isinf(bottom) else bottom, means.shape)


def _ratio(difference: float, unit: float) -> float | None:
    if math.isinf(unit):
        return None
    if unit == 0.0:
        return 0.0 if difference == 0.0 else None
    return float(difference / unit)


def judge(study: type[Study], by_seed: Sequence[BySeed], broken: Sequence[str] = ()) -> Judged:
    """Judge all checks of a study and answer both questions.

    Args:
        study: the study, for its checks.
        by_seed: metrics of every arm, one entry per seed in which all arms finished.
        broken: one line per trial that broke.

    Examples:
        >>> from plexus.lab._planted import studies
        >>> planted = next(study for study in studies() if study.kind == "planted above")
        >>> seeds = [{arm: {"score": score + 0.01 * seed} for arm, score in
        ...           {"a": 0.3, "b": 0.0, "c": 0.0, "control": 1.0}.items()} for seed in range(10)]
        >>> judge(planted, seeds).verdicts["mechanism"].word
        'holds here'
    """
    judgements, verdicts, sane = answer([judge_check(check, by_seed) for check in study.checks], broken)
    return Judged(tuple(judgements), verdicts, "measured" if sane and not broken else "broken")


def answer(
    judgements: Sequence[Judgement], broken: Sequence[str] = ()
) -> tuple[list[Judgement], dict[Question, Verdict], bool]:
    """From judged checks to both answers: the checks corrected, the verdicts, and whether no sanity check failed."""
    judgements = list(judgements)
    for question in QUESTIONS:
        _correct(judgements, question)
    trouble = _trouble(judgements, broken)
    verdicts: dict[Question, Verdict] = {}
    for question in QUESTIONS:
        verdict = _answer(judgements, question)
        if trouble and verdict.word != "not tested":
            verdict = replace(verdict, word="undecided", reason=trouble)
        verdicts[question] = verdict
    sane = all(j.passed is not False for j in judgements if j.check.role == "sanity")
    return judgements, verdicts, sane


def _trouble(judgements: Sequence[Judgement], broken: Sequence[str]) -> str:
    if broken:
        return f"{len(broken)} trial{'s' if len(broken) > 1 else ''} broke: {broken[0]}"
    sanity = [judgement for judgement in judgements if judgement.check.role == "sanity"]
    for judgement in sanity:
        if judgement.passed is False:
            return f"the sanity check {judgement.check.name!r} failed, so the study is broken"
    for judgement in sanity:
        if judgement.passed is None:
            why = f" ({judgement.note})" if judgement.note else ""
            return f"the sanity check {judgement.check.name!r} is undecided{why}"
    return ""


def _correct(judgements: list[Judgement], question: Question) -> None:
    """Holm-correct the further checks of one question, in place."""
    further = [
        i
        for i, j in enumerate(judgements)
        if j.check.role == question and not j.check.primary and j.p_interval is not None
    ]
    adjusted = holm([judgements[i].p_interval or 0.0 for i in further])
    for i, p in zip(further, adjusted, strict=True):
        judgement = judgements[i]
        passed = judgement.passed if p <= ALPHA else None
        judgements[i] = replace(judgement, p_holm=float(p), passed=passed)


def _answer(judgements: Sequence[Judgement], question: Question) -> Verdict:
    asked = [j for j in judgements if j.check.role == question]
    if not asked:
        return Verdict("not tested", f"the study has no check of its {question}")
    primary = next(j for j in asked if j.check.primary)
    further = [j for j in asked if not j.check.primary]
    word: Word
    if primary.passed is None:
        word, reason = "undecided", primary.note or "the interval spans the bar"
    elif primary.passed:
        lacking = [
            f"{j.check.name!r} {j.word if j.passed is None else 'fails'}" for j in further if j.passed is not True
        ]
        word, reason = ("holds in part", "but " + ", ".join(lacking)) if lacking else ("holds here", "")
    else:
        controls = [j for j in judgements if j.check.role == "control"]
        missing = [j.check.name for j in controls if j.passed is not True]
        if controls and not missing:
            word, reason = "does not hold here", f"while the control {controls[0].check.name!r} succeeds"
        else:
            why = (
                f"the control {missing[0]!r} does not succeed either"
                if missing
                else "the study has no positive control"
            )
            word, reason = "undecided", f"{primary.check.name!r} fails, but {why}"
    return Verdict(word, reason, primary.check.name, primary.distance, primary.p)
