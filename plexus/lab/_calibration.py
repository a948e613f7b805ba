"""Calibration: how often the lab calls an effect where there is none, and misses one that is there.

The studies of `_planted` go through the same store, workers, statistics and verdicts as every other study. What is
expected of a word: for a sham, and for an effect that is exactly the bar, nothing but `undecided`, save for the five in
a hundred that a 95 % interval misses by construction; `holds here` for an effect well above the bar, `does not hold
here` for one well below it. Each study asks both questions, of rivals that are drawn apart; both answers are counted.
"""

from __future__ import annotations

import datetime
from collections import Counter
from collections.abc import Sequence
from typing import Any

from plexus.lab._catalogue import Entry, Source
from plexus.lab._crew import Crew
from plexus.lab._frozen import head
from plexus.lab._ledger import CALIBRATION, VERSION, Row, plain
from plexus.lab._machine import versions
from plexus.lab._planted import __file__ as planted_file
from plexus.lab._planted import studies
from plexus.lab._progress import Progress, Silent
from plexus.lab._row import judge_run
from plexus.lab._runner import run_study
from plexus.lab._store import Store
from plexus.lab._verdict import QUESTIONS

EXPECTED = {
    "sham": "undecided",
    "planted above": "holds here",
    "planted below": "does not hold here",
    "planted between": "undecided",
}


class _Counted:
    """One bar for all studies of the calibration."""

    def __init__(self, progress: Progress, studies: int) -> None:
        self._progress, self._done, self._broken = progress, 0, 0
        progress.begin("calibration", studies, 0)

    def begin(self, study: str, total: int, found: int) -> None:
        self._done += 1

    def update(self, study: str, done: int, broken: int, doing: str) -> None:
        self._progress.update("calibration", self._done, self._broken, study)

    def say(self, line: str) -> None:
        self._progress.say(line)


def calibrate(
    *,
    seeds: Sequence[int] = tuple(range(10)),
    each: int | None = None,
    jobs: int | None = None,
    store: Store | None = None,
    progress: Progress | None = None,
) -> Row:
    """Run the studies of known truth, and count what the lab called them.

    Args:
        seeds: the seeds of every study.
        each: only so many studies of each kind.
        jobs: worker processes.
        store: where finished trials lie.
        progress: who is told.

    Returns:
        The calibration as `ledger/calibration.json` holds it.
    """
    store = store or Store()
    chosen: list[Any] = [cls for cls in studies() if each is None or int(cls.name.rpartition("-")[2]) < each]
    counted = _Counted(progress or Silent(), len(chosen))
    source = Source("plexus.lab._planted", str(planted_file))
    results = []
    with Crew() as crew:
        for cls in chosen:
            entry = Entry(cls.name, cls.family, cls.__doc__ or "", cls.claim, cls.fidelity, source)
            run = run_study(entry, seeds=seeds, jobs=jobs, store=store, progress=counted, crew=crew)
            verdicts = judge_run(run).verdicts
            words = {question: verdicts[question].word for question in QUESTIONS}
            results.append(
                {
                    "name": cls.name,
                    "kind": cls.kind,
                    "truth": cls.truth,
                    "question_words": words,
                    "distances": {question: verdicts[question].distance for question in QUESTIONS},
                    "as_expected": {question: word == EXPECTED[cls.kind] for question, word in words.items()},
                }
            )
    counts = {
        kind: dict(Counter(w for item in results if item["kind"] == kind for w in item["question_words"].values()))
        for kind in EXPECTED
    }
    row: Row = plain(
        {
            "kind": CALIBRATION,
            "version": VERSION,
            "studies": results,
            "counts": counts,
            "seeds": len(seeds),
            "measured": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "commit": head(str(planted_file)),
            "versions": versions(),
        }
    )
    return row
