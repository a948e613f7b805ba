"""Sequence tasks against their definitions, fixed points, and independent integration."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from plexus.data import LORENZ_EXPONENT, Series, digits, lorenz, mackey_glass, narma, recall, scanned_digits
from plexus.data import _tasks as tasks
from plexus.errors import RangeError, ShapeError


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_recall_targets_are_the_past() -> None:
    task = recall(200, 7, generator=generator(), batch=3)
    for k in range(1, 8):
        assert torch.equal(task.y[k:, :, k - 1], task.u[:-k, :, 0])
        assert torch.all(task.y[:k, :, k - 1].isnan())
    assert float(task.u.abs().max()) <= 1


def test_recall_longer_than_the_series() -> None:
    task = recall(3, 5, generator=generator())
    assert task.y.shape == (3, 1, 5)
    assert torch.all(task.y[..., 2:].isnan())


def test_narma_obeys_its_recursion() -> None:
    """The target is checked against the published recursion, written out again."""
    task = narma(300, 10, generator=generator(3), batch=2)
    u, y = task.u[:, :, 0].numpy(), task.y[:, :, 0].numpy()  # y[t] here is the system one step on
    for t in range(10, 300):
        wanted = 0.3 * y[t - 1] + 0.05 * y[t - 1] * y[t - 10 : t].sum(0) + 1.5 * u[t - 9] * u[t] + 0.1
        np.testing.assert_allclose(y[t], wanted, rtol=1e-12)
    assert u.min() >= 0
    assert u.max() <= 0.5


def test_narma_of_order_ten_has_its_known_mean() -> None:
    """The mean is near the fixed point of the averaged recursion, m = 0.3 m + 0.5 m² + 0.19375."""
    m = narma(20_000, generator=generator()).y.mean().item()
    roots = np.roots([0.5, 0.3 - 1, 1.5 * 0.25**2 + 0.1])
    assert m == pytest.approx(float(roots.min()), rel=0.06)


def test_mackey_glass_rests_at_its_fixed_point() -> None:
    """With β = 0.2, γ = 0.1 the history x = 1 is an equilibrium; others settle there when the delay is short."""
    assert np.allclose(tasks._mackey_glass_raw(50, 17.0, np.array([1.0]), 1.0, 0.1, 10.0), 1.0)
    assert np.allclose(tasks._mackey_glass_raw(50, 2.0, np.array([0.5]), 1.0, 0.1, 2000.0), 1.0, atol=1e-6)


def test_mackey_glass_converges_with_the_step() -> None:
    """A step ten times smaller gives the same series before chaos amplifies the difference."""
    coarse = tasks._mackey_glass_raw(60, 17.0, np.array([1.2]), 1.0, 0.1, 0.0)
    fine = tasks._mackey_glass_raw(60, 17.0, np.array([1.2]), 1.0, 0.01, 0.0)
    assert np.abs(coarse - fine).max() < 1e-4


def test_mackey_glass_before_the_delay_has_a_closed_form() -> None:
    """While the delayed value is the constant history h, x(t) = c + (h - c) exp(-γ t) with c = β h / (γ (1 + h¹⁰))."""
    h = 0.9
    x = tasks._mackey_glass_raw(17, 17.0, np.array([h]), 1.0, 0.1, 0.0)[:, 0]
    c = 0.2 * h / (0.1 * (1 + h**10))
    np.testing.assert_allclose(x, c + (h - c) * np.exp(-0.1 * np.arange(17)), rtol=1e-7)


def test_lorenz_follows_an_independent_integrator() -> None:
    start = np.array([[1.0, 2.0, 20.0]])
    raw = np.empty((101, 1, 3))
    tasks._compiled("_lorenz")(start, 0.001, 20, raw)

    def flow(_: float, s: np.ndarray) -> list[float]:
        return [10 * (s[1] - s[0]), s[0] * (28 - s[2]) - s[1], s[0] * s[1] - 8 / 3 * s[2]]

    reference = solve_ivp(flow, (0, 2), start[0], t_eval=np.arange(101) * 0.02, rtol=1e-11, atol=1e-11).y.T
    np.testing.assert_allclose(raw[:, 0], reference, atol=1e-4)


def test_lorenz_separates_at_its_exponent() -> None:
    """Two nearby starts separate by about exp(0.906 t) on average, the published exponent."""
    starts = np.array([[1.0, 2.0, 20.0]]) + np.random.default_rng(0).normal(size=(40, 3))
    warm = np.empty((1001, 40, 3))
    tasks._compiled("_lorenz")(starts, 0.01, 1, warm)
    a, b = np.empty((801, 40, 3)), np.empty((801, 40, 3))
    tasks._compiled("_lorenz")(warm[-1], 0.01, 1, a)
    tasks._compiled("_lorenz")(warm[-1] + 1e-8, 0.01, 1, b)
    logs = np.log(np.linalg.norm(a - b, axis=2)).mean(1)
    assert np.polyfit(np.arange(200, 801) * 0.01, logs[200:], 1)[0] == pytest.approx(LORENZ_EXPONENT, abs=0.15)


@pytest.mark.parametrize("make", [mackey_glass, lorenz])
def test_forecasts_line_up_and_are_standardised(make) -> None:  # type: ignore[no-untyped-def]
    task = make(400, generator=generator(), batch=2)
    assert len(task) == 400
    assert torch.equal(task.u[1:], task.y[:-1])
    assert task.u.mean((0, 1)).abs().max() < 0.02
    assert (task.u.std((0, 1)) - 1).abs().max() < 0.02


@pytest.mark.parametrize(
    "make", [lambda g: recall(50, 3, generator=g), lambda g: narma(50, generator=g), lambda g: lorenz(50, generator=g)]
)
def test_the_generator_decides(make) -> None:  # type: ignore[no-untyped-def]
    assert torch.equal(make(generator(1)).u, make(generator(1)).u)
    assert not torch.equal(make(generator(1)).u, make(generator(2)).u)


def test_scanned_digits_are_the_images_column_by_column() -> None:
    task = scanned_digits()
    assert len(task) == 1797 * 8 - 1
    images = digits().x[:, 0].double()
    assert torch.equal(task.u[8 * 5 + 3, 0], images[5, :, 3])
    assert torch.equal(task.y[8 * 5 + 7, 0], images[6, :, 0])
    assert torch.equal(scanned_digits(20, start=8).u[:8, 0].T, images[1])


def test_slices_keep_inputs_and_targets_together() -> None:
    part = recall(20, 2, generator=generator())[5:9]
    assert len(part) == 4
    assert part.name == "recall"


@pytest.mark.parametrize(
    ("error", "call"),
    [
        (RangeError, lambda: recall(0, 3, generator=generator())),
        (RangeError, lambda: recall(10, 0, generator=generator())),
        (RangeError, lambda: narma(10, -1, generator=generator())),
        (RangeError, lambda: narma(500, 40, generator=generator())),
        (RangeError, lambda: mackey_glass(10, 17.03, generator=generator())),
        (RangeError, lambda: mackey_glass(10, sample=0.25, generator=generator())),
        (RangeError, lambda: lorenz(10, generator=generator(), substeps=0)),
        (RangeError, lambda: scanned_digits(10, start=14_370)),
        (ShapeError, lambda: Series(torch.zeros(3, 1, 1), torch.zeros(4, 1, 1))),
        (ShapeError, lambda: Series(torch.zeros(3, 1), torch.zeros(3, 1))),
    ],
)
def test_bad_input(error, call) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(error):
        call()
