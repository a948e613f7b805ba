"""Running one trial: the same random state, threads and copies, whoever runs it.

The global generators of Python, NumPy and torch are forked and seeded around a study's code, with one stream for
`prepare`, one for `tune` and one for `run`; the arms of a seed begin `run` in the same state, so that they differ by
their settings alone.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import operator
import random
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import numpy as np
import torch

from plexus.errors import DtypeError, RangeError
from plexus.lab._study import Outcome, Study, Tuning

Phase = Literal["prepare", "tune", "run"]


def _state(phase: Phase, seed: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{phase} {seed}".encode()).digest()[:4], "big")


@contextlib.contextmanager
def forked(phase: Phase, seed: int) -> Iterator[None]:
    """Seed the global generators, run on one thread, and put everything back afterwards."""
    number = _state(phase, seed)
    python, numpys = random.getstate(), np.random.get_state()  # noqa: NPY002 — foreign code draws from it
    threads, dtype = torch.get_num_threads(), torch.get_default_dtype()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        try:
            random.seed(number)
            np.random.seed(number)  # noqa: NPY002
            torch.manual_seed(number)
            torch.set_num_threads(1)
            with torch.enable_grad():
                yield
        finally:
            random.setstate(python)
            np.random.set_state(numpys)  # noqa: NPY002
            torch.set_num_threads(threads)
            torch.set_default_dtype(dtype)


def check_seed(seed: Any) -> int:
    """The seed as a plain int.

    Raises `DtypeError` if it is not an integer, `RangeError` if it is negative.

    Examples:
        >>> check_seed(np.int64(3))
        3
    """
    try:
        if isinstance(seed, (bool, np.bool_)):
            raise TypeError
        number = operator.index(seed)
    except TypeError:
        raise DtypeError("a seed is an integer", given=repr(seed), expected="0, 1, 2, …") from None
    if number < 0:
        raise RangeError("a seed is not negative", given=number, expected="0, 1, 2, …")
    return number


def check_outcome(outcome: Any) -> Outcome:
    """The outcome, if it is one and its metrics are finite numbers."""
    if not isinstance(outcome, Outcome):
        raise DtypeError("`run` returned no Outcome", given=type(outcome).__name__, expected="Outcome(metrics, arrays)")
    for name, value in outcome.metrics.items():
        if not math.isfinite(float(value)):
            raise RangeError(f"the metric {name!r} is {float(value)}")
    return outcome


def run_prepare(study: type[Study], config: Any, seed: int) -> Any:
    """`prepare`, seeded."""
    with forked("prepare", seed):
        return study().prepare(config, seed)


def run_trial(study: type[Study], config: Any, prepared: Any, seed: int) -> Outcome:
    """`run`, seeded, with its outcome checked."""
    with forked("run", seed):
        return check_outcome(study().run(config, prepared, seed))


def run_tune(study: type[Study], config: Any) -> Tuning:
    """`tune`, seeded; refuses arms and settings that the study does not have."""
    with forked("tune", 0):
        tuning = study().tune(config)
    if not isinstance(tuning, Tuning):
        raise DtypeError("`tune` returned no Tuning", given=type(tuning).__name__, expected="Tuning(chosen, budget)")
    for arm in (*tuning.chosen, *tuning.budget):
        study.arm(arm)
    for arm, chosen in tuning.chosen.items():
        study.configure("full", study.arm(arm).overrides, chosen)
    return tuning


def try_out(
    study: type[Study],
    arm: str,
    *,
    seed: int = 0,
    scale: str = "smoke",
    tuned: Mapping[str, Any] | None = None,
    **settings: Any,
) -> Outcome:
    """Run one trial here and now, without store or workers: for building a study.

    Examples:
        >>> from plexus.lab._planted import studies
        >>> outcome = try_out(studies()[0], "a", seed=1)
        >>> sorted(outcome.metrics)
        ['score']
    """
    seed, chosen = check_seed(seed), study.arm(arm)
    prepared = run_prepare(study, study.configure(scale, settings), seed)
    return run_trial(study, study.configure(scale, settings, chosen.overrides, tuned or {}), prepared, seed)
