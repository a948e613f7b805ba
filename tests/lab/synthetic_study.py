"""A study for the tests of the runner: it waits, raises, returns NaN or kills its own process where it is told to."""

from __future__ import annotations

import os
import random
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from plexus.lab import Arm, Outcome, Paper, Study, Tuning, interval, study


@dataclass(frozen=True)
class Config:
    """Seeds given as -1 mean never."""

    effect: float = 0.0
    wait: float = 0.0
    raises: int = -1
    nan: int = -1
    dies: int = -1
    dies_once: int = -1
    marks: str = ""
    tuned: tuple[int, ...] = (0,)


@study
class Synthetic(Study):
    """A synthetic study."""

    paper = Paper("Synthetic", "A. Author", 2020)
    claim = "The method adds one."
    refuted_by = "A difference below a half."
    fidelity = "B"
    scale_line = "No paper."
    data = ("random numbers",)
    Config = Config
    scales = {"smoke": {}, "full": {}}  # noqa: RUF012
    arms = (Arm("method", role="method", effect=1.0), Arm("ablated", role="ablation"))
    checks = (
        interval("finite", lambda arms: arms["ablated"]["score"], role="sanity", at_most=100.0),
        interval("large effect", lambda arms: arms["method"]["score"] + 5, role="control", at_least=1.0),
        interval(
            "difference",
            lambda arms: arms["method"]["score"] - arms["ablated"]["score"],
            role="mechanism",
            at_least=0.5,
            primary=True,
        ),
    )

    def prepare(self, config, seed):
        self._mark(config, f"prepare-{seed}")
        return {"weight": torch.randn(4), "list": [seed]}

    def tune(self, config):
        self._mark(config, "tune")
        return Tuning({"method": {"tuned": (1, 2)}}, {"method": 3, "ablated": 3}, "three settings each")

    def run(self, config, prepared, seed):
        self._mark(config, f"begin-{config.effect:g}-{seed}")
        assert prepared["list"] == [seed], "another arm changed what was prepared"
        prepared["list"].append("changed")
        prepared["weight"].zero_()
        deadline = time.monotonic() + config.wait
        while time.monotonic() < deadline:
            time.sleep(0.02)
        if seed == config.raises and config.effect:
            raise ValueError("told to raise")
        if seed == config.dies and config.effect:
            os.kill(os.getpid(), signal.SIGKILL)
        if seed == config.dies_once and not Path(config.marks, "died").exists():
            Path(config.marks, "died").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        noise = random.random() + np.random.rand() + torch.rand(()).item()  # noqa: NPY002 — the global one, on purpose
        score = config.effect + 0.01 * noise
        self._mark(config, f"end-{config.effect:g}-{seed}")
        print("noise on stdout")
        return Outcome(
            {
                "score": float("nan") if seed == config.nan and config.effect else score,
                "tuned": float(sum(config.tuned)),
            },
            {"noise": np.array([noise])},
        )

    @staticmethod
    def _mark(config, name):
        if config.marks:
            with open(Path(config.marks, name), "a") as file:
                file.write("x")
