"""What a run of one study has to show: finished trials, broken ones, tuning, the code that ran."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from plexus.lab._catalogue import Entry
from plexus.lab._code import Code
from plexus.lab._store import Finished
from plexus.lab._study import Results, Study, Tuning


@dataclass(frozen=True)
class Broken:
    """A trial that did not finish: its last line, and the whole traceback."""

    arm: str
    seed: int
    error: str
    traceback: str


@dataclass
class Run:
    """What a run of one study has to show."""

    entry: Entry
    study: type[Study]
    scale: str
    seeds: tuple[int, ...]
    overrides: Mapping[str, Any]
    trials: dict[str, dict[int, Finished]] = field(default_factory=dict)
    broken: list[Broken] = field(default_factory=list)
    tuning: Tuning = field(default_factory=lambda: Tuning({}, {}))
    tuning_seconds: float | None = None
    code: Code = field(default_factory=lambda: Code({}, {}))
    ran: int = 0
    found: int = 0
    seconds: float = 0.0

    @property
    def results(self) -> Results:
        """The finished trials, for `Study.figures`."""
        arms = {arm: {seed: done.outcome for seed, done in by.items()} for arm, by in self.trials.items()}
        return Results(arms)

    @property
    def complete_seeds(self) -> list[int]:
        """The seeds in which every arm finished."""
        return [seed for seed in self.seeds if all(seed in self.trials.get(arm.name, {}) for arm in self.study.arms)]

    @property
    def by_seed(self) -> list[dict[str, Mapping[str, float]]]:
        """Metrics of every arm, one entry per complete seed."""
        names = [arm.name for arm in self.study.arms]
        return [{name: self.trials[name][seed].outcome.metrics for name in names} for seed in self.complete_seeds]
