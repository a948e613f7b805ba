"""Sequence tasks: delayed recall, NARMA, two chaotic systems, and a stream of scanned handwriting.

    recall          y_k[t] = u[t-k],  k = 1 … K,  u ~ U(-1, 1)
    NARMA of order n (Atiya & Parlos 2000), u ~ U(0, 0.5)
        y[t] = 0.3 y[t-1] + 0.05 y[t-1] Σ_{i=1..n} y[t-i] + 1.5 u[t-n] u[t-1] + 0.1
    Mackey–Glass    dx/dt = β x(t-τ) / (1 + x(t-τ)^n) - γ x,   β = 0.2, γ = 0.1, n = 10   (Mackey & Glass 1977)
    Lorenz          dx/dt = σ(y - x),  dy/dt = x(ρ - z) - y,  dz/dt = xy - bz,  σ = 10, ρ = 28, b = 8/3   (Lorenz 1963)

Every task is a `Series` with inputs `u` and targets `y`, time first; randomness comes from the generator alone. Series
are float64: forecasts of chaos are about digits far behind the point.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from plexus.data._images import digits
from plexus.errors import RangeError, ShapeError


@dataclass(frozen=True)
class Series:
    """A task over time.

    Attributes:
        u: input, `[time, batch, feature]`.
        y: target of each step, `[time, batch, target]`; NaN where a step has none (before the first delay has passed).
        name: of the task.
    """

    u: Tensor
    y: Tensor
    name: str = ""

    def __post_init__(self) -> None:
        if self.u.dim() != 3 or self.y.dim() != 3 or self.u.shape[:2] != self.y.shape[:2]:
            raise ShapeError(
                "inputs and targets do not line up in time and batch",
                given=(tuple(self.u.shape), tuple(self.y.shape)),
                expected="[time, batch, feature] and [time, batch, target]",
            )

    def __len__(self) -> int:
        return len(self.u)

    def __getitem__(self, steps: slice) -> Series:
        return Series(self.u[steps], self.y[steps], self.name)


def _uniform(low: float, high: float, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(shape, generator=generator, dtype=torch.float64)


def _positive(**numbers: float) -> None:
    for name, number in numbers.items():
        if not number > 0:
            raise RangeError(f"{name} must be positive", given=number)


def recall(length: int, delays: int, *, generator: torch.Generator, batch: int = 1) -> Series:
    """Linear memory: white noise in [-1, 1] and its `delays` past values, `y[t, b, k-1] = u[t-k, b, 0]`.

    Examples:
        >>> task = recall(5, 2, generator=torch.Generator().manual_seed(0))
        >>> bool(task.y[4, 0, 1] == task.u[2, 0, 0])
        True
    """
    _positive(length=length, delays=delays, batch=batch)
    u = _uniform(-1, 1, (length, batch, 1), generator)
    y = torch.full((length, batch, delays), torch.nan, dtype=u.dtype)
    for k in range(1, min(delays, length - 1) + 1):
        y[k:, :, k - 1] = u[:-k, :, 0]
    return Series(u, y, "recall")


def narma(length: int, order: int = 10, *, generator: torch.Generator, batch: int = 1) -> Series:
    """NARMA of an order: from `u[t]` and the past predict `y[t+1]`, the next value of the system that `u` drives.

    The recursion escapes to infinity for rare inputs; such an input is drawn again.

    Raises:
        RangeError: sizes are not positive, or the order is so high that hardly any input stays bounded.

    Examples:
        >>> narma(100, generator=torch.Generator().manual_seed(0)).y.shape
        torch.Size([100, 1, 1])
    """
    _positive(length=length, order=order, batch=batch)
    warm = 2 * order
    inputs, outputs = [], []
    for _ in range(batch):
        for _attempt in range(100):
            u = _uniform(0, 0.5, (warm + length + 1,), generator)
            y = np.zeros(len(u))
            _compiled("_narma")(u.numpy(), order, y)
            if np.all(np.abs(y) < 2):
                break
        else:
            raise RangeError("hardly any input keeps this NARMA system bounded", given=order, expected="at most 10")
        inputs.append(u[warm:-1])
        outputs.append(torch.from_numpy(y)[warm + 1 :])
    return Series(torch.stack(inputs, 1).unsqueeze(-1), torch.stack(outputs, 1).unsqueeze(-1), f"narma{order}")


def mackey_glass(
    length: int,
    tau: float = 17.0,
    *,
    generator: torch.Generator,
    batch: int = 1,
    sample: float = 1.0,
    dt: float = 0.1,
    transient: float = 500.0,
) -> Series:
    """One-step forecast of the Mackey–Glass equation, standardised to zero mean and unit variance.

    Integrated by fourth-order Runge–Kutta with the delayed value interpolated linearly; the history before the start
    is a constant drawn from U(0.8, 1.4).

    Args:
        length: number of samples.
        tau: delay, a multiple of `dt`.
        sample: time between samples, a multiple of `dt`.
        dt: step of integration.
        transient: time thrown away.

    Examples:
        >>> task = mackey_glass(200, generator=torch.Generator().manual_seed(0))
        >>> bool((task.u[1:] == task.y[:-1]).all())
        True
    """
    _positive(length=length, tau=tau, batch=batch, sample=sample, dt=dt)
    start = _uniform(0.8, 1.4, (batch,), generator)
    raw = _mackey_glass_raw(length + 1, tau, start.numpy(), sample, dt, transient)
    return _forecast(torch.from_numpy(raw).unsqueeze(-1), f"mackey-glass-{tau:g}")


def _mackey_glass_raw(length: int, tau: float, start: Any, sample: float, dt: float, transient: float) -> Any:
    """The series as it is, `[time, batch]`."""
    lag, every, skip = round(tau / dt), round(sample / dt), round(transient / dt)
    for name, ratio, whole in (("tau", tau / dt, lag), ("sample", sample / dt, every)):
        if whole < 1 or abs(ratio - whole) > 1e-6:
            raise RangeError(f"{name} must be a multiple of dt", given=f"{ratio:g} dt")
    columns = []
    for first in start:
        x = np.full(lag + skip + every * length + 1, float(first))
        _compiled("_mackey_glass")(x, lag, dt)
        columns.append(x[lag + skip :: every][:length])
    return np.stack(columns, 1)


def lorenz(
    length: int,
    *,
    generator: torch.Generator,
    batch: int = 1,
    sample: float = 0.02,
    substeps: int = 4,
    transient: float = 20.0,
) -> Series:
    """One-step forecast of the Lorenz system: three features, each of zero mean and unit variance.

    Integrated by fourth-order Runge–Kutta with step `sample / substeps`. The largest Lyapunov exponent is 0.906 per
    unit of time (`LORENZ_EXPONENT`), so one Lyapunov time is about 1.10 / `sample` samples.

    Examples:
        >>> lorenz(50, generator=torch.Generator().manual_seed(0)).u.shape
        torch.Size([50, 1, 3])
    """
    _positive(length=length, batch=batch, sample=sample, substeps=substeps)
    start = _uniform(-5, 5, (batch, 3), generator).numpy() + np.array([0.0, 0.0, 25.0])
    skip = round(transient / sample)
    raw = np.empty((skip + length + 1, batch, 3))
    _compiled("_lorenz")(start, sample / substeps, substeps, raw)
    return _forecast(torch.from_numpy(raw[skip:]), "lorenz")


LORENZ_EXPONENT = 0.9056
"""Largest Lyapunov exponent of the Lorenz system at its usual parameters, per unit of time (Sprott 2003)."""


def scanned_digits(length: int | None = None, *, start: int = 0) -> Series:
    """Handwriting as a stream: scikit-learn's digits scanned column after column; predict the next column.

    A real recording of eight channels (ink in eight rows) and 14,376 steps. Its time axis is the scan across the page
    and not a clock: within an image neighbouring columns depend on each other, every eighth step a new and unrelated
    image begins. Values are in [0, 1]. Needs scikit-learn (extra `lab`).

    Args:
        length: number of steps (default: all). start: the first step.

    Raises:
        RangeError: the stream is shorter than `start + length`.

    Examples:
        >>> scanned_digits(100).u.shape
        torch.Size([100, 1, 8])
    """
    columns = digits().x.squeeze(1).transpose(1, 2).reshape(-1, 1, 8).double()
    steps = len(columns) - 1 - start if length is None else length
    if start < 0 or steps < 1 or start + steps + 1 > len(columns):
        raise RangeError("the stream of digits is not that long", given=(start, steps), expected=f"{len(columns) - 1}")
    part = columns[start : start + steps + 1]
    return Series(part[:-1], part[1:], "scanned-digits")


def _forecast(raw: Tensor, name: str) -> Series:
    """One-step forecast of a standardised series `[time, batch, feature]`."""
    x = (raw - raw.mean((0, 1))) / raw.std((0, 1), correction=0)
    return Series(x[:-1], x[1:], name)


# ---------------------------------------------------------------- recursions, plain Python that Numba compiles


def _narma(u, order, y):  # type: ignore[no-untyped-def]
    for t in range(order, len(u)):
        total = 0.0
        for i in range(1, order + 1):
            total += y[t - i]
        y[t] = 0.3 * y[t - 1] + 0.05 * y[t - 1] * total + 1.5 * u[t - order] * u[t - 1] + 0.1
        if not abs(y[t]) < 10:
            y[t:] = np.inf
            return


def _mackey_glass(x, lag, dt):  # type: ignore[no-untyped-def]
    for t in range(lag, len(x) - 1):
        now, after = x[t - lag], x[t - lag + 1]
        half = (now + after) / 2
        pull_now, pull_half = 0.2 * now / (1 + now**10), 0.2 * half / (1 + half**10)
        pull_after = 0.2 * after / (1 + after**10)
        k1 = pull_now - 0.1 * x[t]
        k2 = pull_half - 0.1 * (x[t] + dt / 2 * k1)
        k3 = pull_half - 0.1 * (x[t] + dt / 2 * k2)
        k4 = pull_after - 0.1 * (x[t] + dt * k3)
        x[t + 1] = x[t] + dt / 6 * (k1 + 2 * k2 + 2 * k3 + k4)


def _lorenz(start, dt, substeps, out):  # type: ignore[no-untyped-def]
    k = np.zeros((5, 3))
    weights = (0.0, 0.5, 0.5, 1.0)
    for b in range(start.shape[0]):
        s = start[b].copy()
        for t in range(out.shape[0]):
            out[t, b] = s
            for _ in range(substeps):
                for stage in range(4):
                    p = s + dt * weights[stage] * k[stage]
                    k[stage + 1, 0] = 10 * (p[1] - p[0])
                    k[stage + 1, 1] = p[0] * (28 - p[2]) - p[1]
                    k[stage + 1, 2] = p[0] * p[1] - 8 / 3 * p[2]
                s = s + dt / 6 * (k[1] + 2 * k[2] + 2 * k[3] + k[4])


@functools.cache
def _compiled(name: str) -> Any:
    import numba

    return numba.njit(cache=True)(globals()[name])
