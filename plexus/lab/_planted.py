"""Studies whose truth is known, by which the lab itself is judged.

    sham             two arms that are copies of each other, or labels that are shuffled: there is nothing to find
    planted above    an effect well above the bar: to be found
    planted below    an effect well below the bar, with a control that succeeds: to be called absent
    planted between  an effect that is exactly the bar: whatever is claimed is claimed by chance

A seed's score is `effect + noise`, the noise drawn anew for every study, arm and seed.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from plexus.lab._study import Arm, BySeed, Check, Outcome, Paper, Study, interval, study

NOISE = 0.1
BAR = 0.1
EACH = 20

KINDS: dict[str, float] = {"sham": 0.0, "planted above": 3 * BAR, "planted below": -BAR, "planted between": BAR}
"""Kind → the true difference between the arms. The bar is 0.1 (0 for shams), the noise of a difference √2 NOISE."""


@dataclass(frozen=True)
class PlantedConfig:
    """Settings of a planted study: the arm's true score, and whether labels are shuffled."""

    score: float = 0.0
    shuffled: bool = False
    stream: int = 0


def _scores(config: PlantedConfig, name: str, seed: int) -> float:
    digest = hashlib.sha256(f"{name} {config.stream} {seed}".encode()).digest()
    generator = np.random.default_rng(int.from_bytes(digest[:8], "big"))
    if not config.shuffled:
        return config.score + NOISE * float(generator.standard_normal())
    # two classes told apart by a nearest-mean classifier that was trained on shuffled labels
    labels = np.repeat([0, 1], 50)
    points = generator.standard_normal((100, 4)) + 0.5 * labels[:, None]
    wrong = generator.permutation(labels)
    means = np.stack([points[wrong == label].mean(axis=0) for label in (0, 1)])
    guesses = ((points[:, None] - means) ** 2).sum(axis=2).argmin(axis=1)
    return float((guesses == generator.permutation(labels)).mean() - 0.5)


class _Planted(Study):
    """A study whose answer is known."""

    paper: ClassVar[Paper] = Paper("Calibration of the lab", "Plexus", 2026)
    claim: ClassVar[str] = "Arm a scores higher than the others by the bar."
    refuted_by: ClassVar[str] = "An interval of the difference that lies below the bar."
    fidelity = "A"
    scale_line: ClassVar[str] = "No paper stands behind it."
    data: ClassVar[tuple[str, ...]] = ("random numbers",)
    Config: ClassVar[type] = PlantedConfig
    kind: ClassVar[str] = ""
    truth: ClassVar[float] = 0.0

    def run(self, config: Any, prepared: Any, seed: int) -> Outcome:
        return Outcome({"score": _scores(config, self.name, seed)})


def _difference(arms: BySeed) -> float:
    return arms["a"]["score"] - arms["b"]["score"]


def _rival(arms: BySeed) -> float:
    return arms["a"]["score"] - arms["c"]["score"]


def _control(arms: BySeed) -> float:
    return arms["control"]["score"] - arms["b"]["score"]


def _make(kind: str, number: int) -> type[Study]:
    truth = KINDS[kind]
    shuffled = kind == "sham" and number % 2 == 1
    arms = (
        Arm("a", role="method", score=truth, stream=1, shuffled=shuffled),
        Arm("b", role="ablation", score=0.0, stream=2, shuffled=shuffled),
        Arm("c", role="baseline", score=0.0, stream=3, shuffled=shuffled),
        Arm("control", role="reference", score=1.0, stream=4),
    )
    bar = 0.0 if kind == "sham" else BAR
    checks: tuple[Check, ...] = (
        interval("a known large effect", _control, role="control", at_least=0.5),
        interval("a beats b", _difference, role="mechanism", at_least=bar, primary=True),
        interval("a beats c", _rival, role="advantage", at_least=bar, primary=True),
    )
    body = {
        "__module__": __name__,
        "__doc__": f"A study of the lab itself: {kind}.",
        "name": f"{kind.replace(' ', '-')}-{number}",
        "family": "calibration",
        "arms": arms,
        "checks": checks,
        "kind": kind,
        "truth": truth,
    }
    return study(type(f"Planted{kind.title().replace(' ', '')}{number}", (_Planted,), body))


def studies() -> list[type[Study]]:
    """All studies of known truth, by kind."""
    return list(_STUDIES)


_STUDIES = tuple(_make(kind, number) for kind in KINDS for number in range(EACH))
