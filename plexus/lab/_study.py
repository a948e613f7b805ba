"""What a study is: a claim, arms that differ in named settings, and checks with bars fixed before the run."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, ClassVar, Literal

import numpy as np

from plexus.errors import DtypeError, RangeError, UnknownNameError

Metrics = Mapping[str, float]
"""What one trial measured: metric name → number."""

BySeed = Mapping[str, Metrics]
"""What one seed measured: arm name → metrics."""

Quantity = Callable[[BySeed], float]
"""One number per seed, computed from all arms of that seed, so that a check is paired by construction."""

Question = Literal["mechanism", "advantage"]
Role = Literal["sanity", "control", "mechanism", "advantage"]
Kind = Literal["interval", "wins", "equivalent", "exact"]
ArmRole = Literal["method", "baseline", "ablation", "null", "reference"]
Fidelity = Literal["A", "B", "C"]


@dataclass(frozen=True)
class Paper:
    """Where a method was published."""

    title: str
    authors: str
    year: int
    arxiv: str | None = None
    doi: str | None = None
    venue: str | None = None
    code: str | None = None


@dataclass(frozen=True, init=False)
class Arm:
    """One setting of a study: `Arm("retrained", method="retrain")`.

    Args:
        name: unique within the study.
        role: `method` (what the paper proposes), `baseline` (a rival, tuned with equal effort), `ablation`, `null`
            (should show no effect) or `reference` (an oracle or an untouched model).
        note: one line for the report.
        **overrides: fields of the study's `Config`.
    """

    name: str
    overrides: Mapping[str, Any]
    role: ArmRole = "baseline"
    note: str = ""

    def __init__(self, name: str, /, *, role: ArmRole = "baseline", note: str = "", **overrides: Any) -> None:
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "overrides", MappingProxyType(dict(overrides)))
        object.__setattr__(self, "role", role)
        object.__setattr__(self, "note", note)

    def __reduce__(self) -> tuple[Any, ...]:
        return _arm, (self.name, self.role, self.note, dict(self.overrides))


def _arm(name: str, role: ArmRole, note: str, overrides: dict[str, Any]) -> Arm:
    return Arm(name, role=role, note=note, **overrides)


@dataclass(frozen=True)
class Check:
    """One bar, fixed before the run. Build it with `interval`, `wins`, `equivalent` or `exact`.

    Attributes:
        name: what is measured, in words a reader understands.
        quantity: the number of one seed (paired over the arms).
        kind: how the seeds' numbers are judged.
        role: `sanity` (fails: the study is broken), `control` (a positive control, which "does not hold here" needs),
            `mechanism` or `advantage`.
        primary: one primary check per question; the others are Holm-corrected.
        at_least, at_most: the bar (one of them; `equivalent` and `exact` use `center` and `margin`).
        k, n: `wins` asks for the bar to be met in k of n seeds; with another number of seeds, in the same share.
    """

    name: str
    quantity: Quantity
    kind: Kind
    role: Role
    primary: bool = False
    at_least: float | None = None
    at_most: float | None = None
    center: float = 0.0
    margin: float = 0.0
    k: int = 0
    n: int = 0
    unit: str = ""


def _bar(name: str, at_least: float | None, at_most: float | None) -> None:
    if (at_least is None) == (at_most is None):
        raise RangeError(f"check {name!r} needs one bar", given=(at_least, at_most), expected="at_least or at_most")


def interval(
    name: str,
    quantity: Quantity,
    *,
    role: Role,
    at_least: float | None = None,
    at_most: float | None = None,
    primary: bool = False,
    unit: str = "",
) -> Check:
    """The 95 % t interval of the mean over seeds lies wholly on the good side of the bar."""
    _bar(name, at_least, at_most)
    return Check(name, quantity, "interval", role, primary, at_least, at_most, unit=unit)


def wins(
    name: str,
    quantity: Quantity,
    k: int,
    n: int,
    *,
    role: Role,
    at_least: float | None = None,
    at_most: float | None = None,
    primary: bool = False,
    unit: str = "",
) -> Check:
    """The bar is met in at least k of n seeds (the same share when the number of seeds differs)."""
    _bar(name, at_least, at_most)
    if not 0 < k <= n:
        raise RangeError(f"check {name!r}: k of n", given=(k, n), expected="0 < k <= n")
    return Check(name, quantity, "wins", role, primary, at_least, at_most, k=k, n=n, unit=unit)


def equivalent(
    name: str,
    quantity: Quantity,
    *,
    margin: float,
    role: Role,
    center: float = 0.0,
    primary: bool = False,
    unit: str = "",
) -> Check:
    """The 95 % t interval lies wholly within `center ± margin`."""
    return Check(name, quantity, "equivalent", role, primary, center=center, margin=margin, unit=unit)


def exact(
    name: str,
    quantity: Quantity,
    *,
    margin: float,
    role: Role,
    center: float = 0.0,
    primary: bool = False,
    unit: str = "",
) -> Check:
    """Every seed lies within `center ± margin`."""
    return Check(name, quantity, "exact", role, primary, center=center, margin=margin, unit=unit)


@dataclass
class Outcome:
    """What a trial measured: numbers for the checks, arrays for the figures."""

    metrics: dict[str, float]
    arrays: dict[str, np.ndarray[Any, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Tuning:
    """What tuning chose, and what it cost each arm.

    Attributes:
        chosen: arm name → overrides of the `Config`, applied on top of the arm's own.
        budget: arm name → number of settings tried (the report shows it, so that effort can be compared).
        note: how it was chosen, in one line.
    """

    chosen: Mapping[str, Mapping[str, Any]]
    budget: Mapping[str, int]
    note: str = ""


class Results:
    """All finished trials of one study at one scale, for `Study.figures`: `results["arm"][seed]` is an `Outcome`."""

    def __init__(self, trials: Mapping[str, Mapping[int, Outcome]]) -> None:
        self.trials = trials

    def __getitem__(self, arm: str) -> Mapping[int, Outcome]:
        if arm not in self.trials:
            raise UnknownNameError.among("arm", arm, self.trials)
        return self.trials[arm]

    def metric(self, arm: str, name: str) -> np.ndarray[Any, Any]:
        """One metric of one arm over the seeds, `[seed]`, in the order of the seeds."""
        return np.array([self[arm][seed].metrics[name] for seed in sorted(self[arm])])


class Study:
    """Base of all studies; one per published system, in `studies/<family>/<slug>.py`, decorated with `@study`.

    A subclass declares the attributes below and implements `prepare` and `run`; `tune` and `figures` are optional.
    """

    paper: ClassVar[Paper]
    claim: ClassVar[str]
    """The paper's claim in one sentence."""
    refuted_by: ClassVar[str]
    """What measurement would have refuted the claim."""
    fidelity: ClassVar[Fidelity]
    """A matches the official code · B from published equations · C reconstructed where equations were missing."""
    scale_line: ClassVar[str]
    """How much smaller data, model and training are than the paper's."""
    data: ClassVar[tuple[str, ...]]
    """Names of the data sets used."""
    deviations: ClassVar[tuple[str, ...]] = ()
    """Where this study departs from the paper or its code, and why."""
    inferred: ClassVar[Mapping[str, str]] = {}
    """Fidelity C: constants that the paper does not give → the declared range over which they are varied, in words."""
    shares: ClassVar[Mapping[str, Quantity]] = {}
    """Fidelity C: effect → in what share of that range it holds, one number per seed, from the arms' metrics."""

    Config: ClassVar[type]
    """A frozen dataclass of all settings, with the defaults of the `full` scale."""
    scales: ClassVar[Mapping[str, Mapping[str, Any]]] = {"smoke": {}, "full": {}, "paper": {}}
    """Scale name → overrides of the `Config`."""
    arms: ClassVar[tuple[Arm, ...]]
    checks: ClassVar[tuple[Check, ...]]
    seeds: ClassVar[int] = 10

    name: ClassVar[str] = ""
    """The slug; set by `@study` from the file's name."""
    family: ClassVar[str] = ""

    def prepare(self, config: Any, seed: int) -> Any:
        """What the arms share: data, a trained model. `config` is that of the scale, without any arm's overrides.

        Cached on disk by seed, settings and code; every trial gets its own copy, so an arm may change what it is given.
        """
        return None

    def tune(self, config: Any) -> Tuning:
        """Choose settings per arm on validation data and on seeds of its own (drawn from `TUNING_SEEDS`)."""
        return Tuning({}, {})

    def run(self, config: Any, prepared: Any, seed: int) -> Outcome:
        """One trial: one arm (its overrides are in `config`), one seed."""
        raise NotImplementedError

    def figures(self, results: Results) -> dict[str, Any]:
        """Plotly figures by title, made from finished trials."""
        return {}

    @classmethod
    def arm(cls, name: str) -> Arm:
        """The arm of that name."""
        for arm in cls.arms:
            if arm.name == name:
                return arm
        raise UnknownNameError.among("arm", name, [arm.name for arm in cls.arms])

    @classmethod
    def configure(cls, scale: str, *overrides: Mapping[str, Any]) -> Any:
        """The `Config` at a scale, with overrides applied from left to right."""
        if scale not in cls.scales:
            raise UnknownNameError.among("scale", scale, cls.scales)
        known = {f.name for f in dataclasses.fields(cls.Config)}
        merged: dict[str, Any] = {}
        for layer in (cls.scales[scale], *overrides):
            for key in layer:
                if key not in known:
                    raise UnknownNameError.among(f"setting of {cls.name}", key, known)
            merged.update(layer)
        return cls.Config(**merged)


TUNING_SEEDS = range(900_000, 900_100)
"""Seeds reserved for tuning; no confirming run ever uses them."""

_registry: dict[str, type[Study]] = {}


def study(cls: type[Study]) -> type[Study]:
    """Register a study under the slug of its file name (`adaptive_gain_control.py` → `adaptive-gain-control`)."""
    if not (isinstance(cls, type) and issubclass(cls, Study)):
        raise DtypeError("@study decorates a subclass of Study", given=cls)
    parts = cls.__module__.split(".")
    cls.name = cls.name or parts[-1].strip("_").replace("_", "-")
    cls.family = cls.family or (parts[-2] if len(parts) > 1 else "")
    _validate(cls)
    _registry[cls.name] = cls
    return cls


def _validate(cls: type[Study]) -> None:
    """Refuse a study that could not fail, or that could not be run."""
    for attribute in ("paper", "claim", "refuted_by", "fidelity", "scale_line", "data", "Config", "arms", "checks"):
        if not hasattr(cls, attribute):
            raise RangeError(f"study {cls.name!r} declares no `{attribute}`", mend=f"set {cls.__name__}.{attribute}")
    names = [arm.name for arm in cls.arms]
    if len(set(names)) != len(names):
        raise RangeError(f"study {cls.name!r} has two arms of one name", given=names)
    for question in ("mechanism", "advantage"):
        checks = [check for check in cls.checks if check.role == question]
        if checks and sum(check.primary for check in checks) != 1:
            raise RangeError(
                f"study {cls.name!r}: the question {question!r} needs one primary check",
                given=[check.name for check in checks if check.primary],
            )
    for arm in cls.arms:
        cls.configure("full", arm.overrides)
