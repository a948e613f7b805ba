"""How much of a verdict is the luck of its seeds: verdicts of seeds drawn again from those that were run.

A mean close to its bar, or one seed in ten that falls out of line, makes a verdict a draw: other seeds say another word
and nobody erred. So the seeds of a row are drawn again with replacement, as many as there were and the same for every
check, and all checks and both questions are judged on every draw (the bootstrap: Efron 1979). The share of draws with
the row's own word tells how often a rerun on new seeds may be expected to agree. Few seeds know little of their own
spread, so the share is rather too high for them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from plexus.lab._statistics import Floats
from plexus.lab._study import BySeed, Check
from plexus.lab._verdict import PASSED, QUESTIONS, Judgement, answer, decide

DRAWS = 400
FEWEST = 5


def redrawn(row: Mapping[str, Any], draws: int = DRAWS) -> dict[str, dict[str, float]]:
    """For each question, the share of draws that say each word, the most frequent first.

    Empty where nothing can be drawn: fewer than five seeds, a broken trial, a check without numbers.

    Examples:
        >>> from plexus.lab._ledger import synthetic_row
        >>> redrawn(synthetic_row("a"))["mechanism"]
        {'holds here': 1.0}
    """
    checks = [_check(check) for check in row["checks"]]
    values = [check["values"] for check in row["checks"]]
    seeds = len(row["seeds"])
    if not checks or row["broken"] or seeds < FEWEST or any(None in numbers for numbers in values):
        return {}
    table: Floats = np.array(values, dtype=np.float64)
    drawn = table[:, np.random.default_rng(0).integers(seeds, size=(draws, seeds))]  # [check, draw, seed]
    sides, levels = zip(*(decide(check, numbers) for check, numbers in zip(checks, drawn, strict=True)), strict=True)
    counts: dict[str, Counter[str]] = {question: Counter() for question in QUESTIONS}
    for draw in range(draws):
        judged = [
            Judgement(
                check,
                (),
                PASSED[int(side[draw])],
                p_interval=None if np.isnan(level[draw]) else float(level[draw]),
            )
            for check, side, level in zip(checks, sides, levels, strict=True)
        ]
        for question, verdict in answer(judged)[1].items():
            counts[question][verdict.word] += 1
    return {question: {word: n / draws for word, n in found.most_common()} for question, found in counts.items()}


def redrawn_words(row: Mapping[str, Any]) -> dict[str, str]:
    """One sentence on `redrawn` for each question; without those not asked, or where nothing can be drawn.

    Examples:
        >>> from plexus.lab._ledger import synthetic_row
        >>> redrawn_words(synthetic_row("a"))["mechanism"]
        'Of 400 redraws of these seeds 100 % say the same.'
    """
    sentences = {}
    for question, found in redrawn(row).items():
        word = row["verdicts"][question]["word"]
        if word != "not tested":
            others = "".join(
                f", {100 * share:.0f} % “{other}”" for other, share in found.items() if other != word and share >= 0.005
            )
            same = f"{100 * found.get(word, 0.0):.0f} %"
            sentences[question] = f"Of {DRAWS} redraws of these seeds {same} say the same{others}."
    return sentences


def _check(told: Mapping[str, Any]) -> Check:
    bar = {name: value for name, value in told["bar"].items() if name != "text"}
    return Check(told["name"], _no_quantity, told["kind"], told["role"], bool(told["primary"]), **bar)


def _no_quantity(arms: BySeed) -> float:
    raise NotImplementedError("the numbers of a row's check are in the row")
