"""Verdicts of redrawn seeds: sure where they ought to be, a draw where they ought to be, and the judge's own rules."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from plexus.lab import equivalent, exact, interval, wins
from plexus.lab._ledger import synthetic_row
from plexus.lab._row import differences
from plexus.lab._stability import redrawn, redrawn_words
from plexus.lab._verdict import decide, describe_bar, judge_check

numbers = st.lists(st.sampled_from([-1.0, 0.0, 0.1, 0.5, 1.0, 2.0]), min_size=5, max_size=12)


def first(arms: Any) -> float:
    return float(arms["a"]["x"])


CHECKS = [
    interval("at least", first, role="mechanism", at_least=0.5),
    interval("at most", first, role="mechanism", at_most=0.5),
    wins("wins", first, 8, 10, role="mechanism", at_least=0.5),
    wins("low wins", first, 8, 10, role="mechanism", at_most=0.5),
    equivalent("equivalent", first, role="mechanism", center=0.2, margin=0.4),
    exact("exact", first, role="mechanism", center=0.5, margin=0.5),
]


def row_of(check: Any, values: list[float]) -> dict[str, Any]:
    """A row whose only check is this one, primary, of the mechanism."""
    row = dict(synthetic_row("a"))
    told = {"name": check.name, "kind": check.kind, "role": "mechanism", "primary": True, "bar": describe_bar(check)}
    row["checks"] = [{**told, "values": values}]
    row["seeds"] = list(range(len(values)))
    return row


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.name)
@given(sets=st.lists(numbers, min_size=1, max_size=4).filter(lambda sets: len({len(s) for s in sets}) == 1))
def test_many_sets_of_seeds_are_judged_as_one_by_one(check: Any, sets: list[list[float]]) -> None:
    sides, levels = decide(check, np.array(sets))
    for side, level, values in zip(sides, levels, sets, strict=True):
        judged = judge_check(check, [{"a": {"x": value}} for value in values])
        assert {1: True, 0: None, -1: False}[int(side)] is judged.passed
        assert (judged.p_interval is None and np.isnan(level)) or judged.p_interval == level


def test_far_from_its_bar_every_draw_says_the_same() -> None:
    row = row_of(CHECKS[0], [0.9, 1.0, 1.1, 1.0, 0.95])
    assert redrawn(row)["mechanism"] == {"holds here": 1.0}


def test_one_seed_out_of_line_makes_the_word_a_draw() -> None:
    """It is left out of (9/10)^10 = 35 % of the draws, which then hold; where it is drawn once, nothing is decided."""
    row = row_of(interval("cut", first, role="mechanism", at_least=60.0), [82.0, 84.0, 83.0, 85.0, 82.0] * 2)
    row["checks"][0]["values"][3] = 0.0
    shares = redrawn(row)["mechanism"]
    assert shares["holds here"] == pytest.approx(0.9**10, abs=0.07)
    assert shares["undecided"] == pytest.approx(1 - 0.9**10, abs=0.07)


def test_on_its_bar_hardly_any_draw_decides() -> None:
    values = np.random.default_rng(3).normal(size=40)
    row = row_of(CHECKS[0], list(0.5 + (values - values.mean())))
    assert redrawn(row)["mechanism"]["undecided"] > 0.85


@pytest.mark.parametrize("spoil", ["few", "missing", "broken", "no checks"])
def test_nothing_is_said_where_nothing_can_be_drawn(spoil: str) -> None:
    row = row_of(CHECKS[0], [1.0] * 4 if spoil == "few" else [1.0] * 6)
    if spoil == "missing":
        row["checks"][0]["values"][2] = None
    if spoil == "broken":
        row["broken"] = [{"arm": "a", "seed": 0, "error": "E"}]
    if spoil == "no checks":
        row["checks"] = []
    assert redrawn(row) == {}
    assert redrawn_words(row) == {}


def test_a_difference_says_how_often_the_ledgers_own_seeds_would_say_so() -> None:
    old = row_of(CHECKS[0], [0.9, 1.0, 1.1, 1.0, 0.95])
    verdict = {**old["verdicts"]["mechanism"], "word": "undecided", "reason": "why"}
    new = {**old, "verdicts": {**old["verdicts"], "mechanism": verdict}}
    (line,) = differences(new, old)
    assert line.endswith("this run 'undecided' (why); redraws of the ledger's seeds say so in 0 %")
