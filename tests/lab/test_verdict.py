"""Five words: what the numbers must look like for each."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from plexus.errors import DtypeError, RangeError, UnknownNameError
from plexus.lab import Arm, Outcome, Paper, Study, equivalent, exact, interval, study, wins
from plexus.lab._ledger import synthetic_row
from plexus.lab._row import differences, header_counts
from plexus.lab._verdict import describe_bar, judge, judge_check, wins_needed


def value(name):
    return lambda arms: arms["a"][name]


def seeds(**metrics):
    """Per-seed metrics of arm a, from lists of equal length."""
    count = len(next(iter(metrics.values())))
    return [{"a": {name: values[i] for name, values in metrics.items()}} for i in range(count)]


def around(mean, spread=0.01, n=10):
    return [mean + spread * (1 if i % 2 else -1) for i in range(n)]


def check(values, build=interval, **keywords):
    keywords = {"role": "mechanism", **keywords}
    return judge_check(build("x", value("x"), **keywords), seeds(x=values))


@dataclass(frozen=True)
class Config:
    n: int = 0


def make(*checks):
    body = {
        "__doc__": "A study.",
        "__module__": "a.verdict_of",
        "paper": Paper("P", "A", 2020),
        "claim": "c",
        "refuted_by": "r",
        "fidelity": "B",
        "scale_line": "s",
        "data": ("d",),
        "Config": Config,
        "arms": (Arm("a"),),
        "checks": checks,
    }
    return study(type("Made", (Study,), body))


PRIMARY = interval("primary", value("x"), role="mechanism", at_least=0.5, primary=True)
CONTROL = interval("control", value("c"), role="control", at_least=0.5)
SANITY = interval("sanity", value("s"), role="sanity", at_least=0.5)


def verdict(checks, broken=(), **metrics):
    return judge(make(*checks), seeds(**metrics), broken).verdicts["mechanism"]


@pytest.mark.parametrize(("mean", "passed"), [(1.0, True), (0.0, False), (0.5, None)])
def test_interval_against_a_lower_bar(mean, passed):
    assert check(around(mean), at_least=0.5).passed is passed


@pytest.mark.parametrize(("mean", "passed"), [(1.0, False), (0.0, True), (0.5, None)])
def test_interval_against_an_upper_bar(mean, passed):
    assert check(around(mean), at_most=0.5).passed is passed


def test_one_seed_decides_nothing():
    judged = check([9.0], at_least=0.5)
    assert judged.passed is None
    assert judged.interval is None
    assert "one seed" in judged.note


def test_no_spread_at_the_bar_is_on_the_good_side():
    assert check([0.5] * 4, at_least=0.5).passed is True
    assert check([0.4999] * 4, at_least=0.5).passed is False


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=10), st.floats(-2, 2).filter(lambda b: abs(b) > 1e-3))
def test_upper_and_lower_bars_mirror(values, bar):
    lower = check(values, at_least=bar)
    upper = check([-x for x in values], at_most=-bar)
    assert lower.passed is upper.passed
    assert lower.distance == pytest.approx(upper.distance)


@pytest.mark.parametrize(
    ("won", "of", "passed"), [(8, 10, True), (7, 10, False), (4, 5, True), (3, 5, False), (3, 3, True), (2, 3, False)]
)
def test_wins_keep_their_share_at_other_numbers_of_seeds(won, of, passed):
    values = [1.0] * won + [0.0] * (of - won)
    assert check(values, build=lambda n, q, **k: wins(n, q, 8, 10, at_least=0.5, **k)).passed is passed


@given(st.integers(1, 20), st.integers(1, 20), st.integers(1, 40))
def test_wins_needed_rounds_up(k, n, m):
    k = min(k, n)
    needed = wins_needed(wins("w", value("x"), k, n, role="mechanism", at_least=0), m)
    assert needed == math.ceil(round(k * m / n, 9))
    assert 1 <= needed <= m


@pytest.mark.parametrize(("mean", "passed"), [(0.0, True), (0.1, None), (0.5, False), (-0.5, False)])
def test_equivalence(mean, passed):
    assert check(around(mean, 0.03), build=equivalent, margin=0.1).passed is passed


def test_exact_asks_every_seed():
    assert check([1.0, 1.0 + 1e-7], build=exact, center=1.0, margin=1e-6).passed is True
    assert check([1.0] * 9 + [1.1], build=exact, center=1.0, margin=1e-6).passed is False
    assert check([3.0, 3.0], build=exact, center=3.0, margin=0.0).passed is True


def test_distance_is_in_units_of_the_bar():
    judged = check(around(1.5), at_least=0.5)
    assert (judged.distance, judged.distance_unit) == (pytest.approx(2.0), "bar")
    assert check(around(0.0), at_least=0.5).distance == pytest.approx(-1.0)
    assert check(around(0.25), at_most=0.5).distance == pytest.approx(0.5)
    zero = check(around(0.02), at_least=0.0)
    half = (zero.interval[1] - zero.interval[0]) / 2
    assert (zero.distance, zero.distance_unit) == (pytest.approx(0.02 / half), "interval")
    assert check(around(0.05, 0.0), build=equivalent, margin=0.1).distance == pytest.approx(0.5)


def test_quantities_that_fail_decide_nothing_and_say_why():
    missing = judge_check(interval("x", value("absent"), role="mechanism", at_least=1), seeds(x=[1.0, 2.0]))
    assert missing.passed is None
    assert "KeyError" in missing.note
    assert check([1.0, math.nan], at_least=0).passed is None
    assert judge_check(PRIMARY, []).note == "no seed finished"


def test_holds_here():
    assert verdict([PRIMARY], x=around(1.0)).word == "holds here"
    assert verdict([PRIMARY, CONTROL, SANITY], x=around(1.0), c=around(1.0), s=around(1.0)).word == "holds here"


def test_undecided_when_the_interval_spans_the_bar():
    answer = verdict([PRIMARY, CONTROL], x=around(0.5), c=around(1.0))
    assert (answer.word, answer.reason) == ("undecided", "the interval spans the bar")


def test_does_not_hold_here_needs_a_control_that_succeeds():
    assert verdict([PRIMARY, CONTROL], x=around(0.0), c=around(1.0)).word == "does not hold here"
    without = verdict([PRIMARY], x=around(0.0))
    assert without.word == "undecided"
    assert "no positive control" in without.reason
    failing = verdict([PRIMARY, CONTROL], x=around(0.0), c=around(0.0))
    assert failing.word == "undecided"
    assert "'control' does not succeed" in failing.reason


def test_a_further_check_that_fails_leaves_it_in_part():
    further = interval("further", value("y"), role="mechanism", at_least=0.5)
    answer = verdict([PRIMARY, further], x=around(1.0), y=around(0.0))
    assert answer.word == "holds in part"
    assert "'further' fails" in answer.reason
    assert verdict([PRIMARY, further], x=around(1.0), y=around(1.0)).word == "holds here"
    assert (
        verdict([PRIMARY, further, CONTROL], x=around(0.0), y=around(1.0), c=around(1.0)).word == "does not hold here"
    )


def test_further_checks_are_holm_corrected_and_the_primary_is_not():
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 1, 10)
    noise = (noise - noise.mean()) / noise.std(ddof=1)
    barely = 0.5 + 2.4 * 1 / math.sqrt(10) + noise  # p of about 0.04: one test passes, eight do not
    alone = judge(make(PRIMARY), seeds(x=barely))
    assert alone.verdicts["mechanism"].word == "holds here"
    assert 0.03 < alone.checks[0].p_interval < 0.05
    further = [interval(f"further {i}", value("x"), role="mechanism", at_least=0.5) for i in range(8)]
    many = judge(make(PRIMARY, *further), seeds(x=barely))
    assert many.checks[0].passed is True
    assert many.checks[0].p_holm is None
    assert [item.passed for item in many.checks[1:]] == [None] * 8
    assert many.checks[1].p_holm == pytest.approx(min(1.0, 8 * many.checks[1].p_interval))
    assert many.verdicts["mechanism"].word == "holds in part"


def test_a_failing_sanity_check_breaks_the_study():
    judged = judge(make(PRIMARY, SANITY), seeds(x=around(1.0), s=around(0.0)))
    assert judged.state == "broken"
    assert judged.verdicts["mechanism"].word == "undecided"
    assert "'sanity' failed" in judged.verdicts["mechanism"].reason


def test_an_undecided_sanity_check_leaves_it_undecided_but_breaks_nothing():
    judged = judge(make(PRIMARY, SANITY), seeds(x=around(1.0), s=around(0.5)))
    assert judged.state == "measured"
    assert judged.verdicts["mechanism"].word == "undecided"
    assert "'sanity' is undecided" in judged.verdicts["mechanism"].reason


def test_broken_trials_leave_it_undecided():
    judged = judge(make(PRIMARY), seeds(x=around(1.0)), ["a, seed 3: ValueError"])
    assert judged.state == "broken"
    assert judged.verdicts["mechanism"].reason == "1 trial broke: a, seed 3: ValueError"
    assert judged.verdicts["advantage"].word == "not tested"


def test_questions_are_answered_apart():
    advantage = interval("advantage", value("y"), role="advantage", at_least=0.5, primary=True)
    answers = judge(make(PRIMARY, advantage, CONTROL), seeds(x=around(1.0), y=around(0.0), c=around(1.0))).verdicts
    assert answers["mechanism"].word == "holds here"
    assert answers["advantage"].word == "does not hold here"
    assert judge(make(PRIMARY), seeds(x=around(1.0))).verdicts["advantage"].word == "not tested"


def test_bars_in_words():
    assert describe_bar(PRIMARY)["text"] == "at least 0.5"
    assert describe_bar(wins("w", value("x"), 9, 10, role="mechanism", at_most=2, unit="deg"))["text"] == (
        "at most 2 deg in 9 of 10 seeds"
    )
    assert describe_bar(equivalent("e", value("x"), margin=0.1, role="mechanism"))["text"] == "0 ± 0.1"


class Valid(Study):
    """Valid."""

    paper = Paper("P", "A", 2020)
    claim = refuted_by = scale_line = "x"
    fidelity = "B"
    data = ("d",)
    Config = Config
    arms: ClassVar = (Arm("a"),)
    checks: ClassVar = (PRIMARY,)

    def run(self, config, prepared, seed):
        return Outcome({"x": 1.0})


def variant(**attributes):
    return type("Variant", (Valid,), {"__module__": "some.variant", "name": "", "family": "", **attributes})


def test_a_study_is_validated_when_declared():
    assert study(variant()).name == "variant"
    with pytest.raises(RangeError, match="one primary"):
        study(variant(checks=(PRIMARY, PRIMARY)))
    with pytest.raises(RangeError, match="two arms"):
        study(variant(arms=(Arm("a"), Arm("a"))))
    with pytest.raises(UnknownNameError, match="setting"):
        study(variant(arms=(Arm("a", m=1),)))
    with pytest.raises(DtypeError):
        study(int)
    with pytest.raises(RangeError, match="one bar"):
        interval("x", value("x"), role="mechanism")
    with pytest.raises(RangeError, match="k of n"):
        wins("x", value("x"), 11, 10, role="mechanism", at_least=0)


def test_differences_between_rows():
    old, new = synthetic_row(), synthetic_row(mechanism="undecided")
    assert differences(old, old) == []
    (line,) = differences(new, old)
    assert "'holds here'" in line
    assert "'undecided'" in line


def test_the_header_counts_over_all_studies():
    rows = [synthetic_row(str(i)) for i in range(3)] + [synthetic_row("no", mechanism="does not hold here")]
    counts = header_counts(rows)
    assert counts["mechanism"] == {"holds here": 3, "does not hold here": 1}
    assert counts["tests"] == 8
    assert counts["significant"] == 4  # 0.002 · 8 / 4 <= 0.05, and 0.4 stays
