"""Readouts against scikit-learn, the normal equations and batch solutions; scikit-learn's own checks; bad input."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from plexus.errors import PlexusError, RangeError, ShapeError, UnknownNameError
from plexus.learn.readout import RecursiveReadout, RidgeReadout

sklearn_checks = pytest.importorskip("sklearn.utils.estimator_checks")

PANDAS_ONLY = {"check_regressor_data_not_an_array"}
"""Checks that scikit-learn itself skips where pandas is missing."""
ARRAY_API = {"check_array_api_input"}
"""Needs SCIPY_ARRAY_API in the environment; the readouts compute in NumPy and do not claim the array API."""


@pytest.mark.filterwarnings("ignore:Estimator .* does not inherit:UserWarning")
@pytest.mark.parametrize("estimator", [RidgeReadout(), RidgeReadout(1e-3, per_target=True), RecursiveReadout(1e-3)])
def test_scikit_learns_estimator_checks(estimator) -> None:  # type: ignore[no-untyped-def]
    results = sklearn_checks.check_estimator(estimator, on_fail=None, on_skip=None)
    assert {r["check_name"] for r in results if r["status"] == "failed"} == set()
    assert {r["check_name"] for r in results if r["status"] == "skipped"} <= PANDAS_ONLY | ARRAY_API
    assert sum(r["status"] == "passed" for r in results) >= 45


def problem(seed: int, rows: int, features: int, targets: int):  # type: ignore[no-untyped-def]
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, features)) * rng.uniform(0.1, 5, features) + rng.normal(size=features)
    return x, rng.normal(size=(rows, targets)) + x[:, :1]


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    rows=st.integers(2, 60),
    features=st.integers(1, 20),
    targets=st.integers(1, 3),
    penalty=st.floats(1e-4, 1e3),
    intercept=st.booleans(),
)
def test_ridge_equals_the_normal_equations(seed, rows, features, targets, penalty, intercept):  # type: ignore[no-untyped-def]
    x, y = problem(seed, rows, features, targets)
    ours = RidgeReadout(penalty, fit_intercept=intercept).fit(x, y)
    xm, ym = (x.mean(0), y.mean(0)) if intercept else (np.zeros(features), np.zeros(targets))
    gram = (x - xm).T @ (x - xm) + penalty * np.eye(features)
    wanted = np.linalg.solve(gram, (x - xm).T @ (y - ym))
    np.testing.assert_allclose(ours.predict(x), (x - xm) @ wanted + ym, rtol=1e-6, atol=1e-7)


def test_ridge_equals_scikit_learns() -> None:
    from sklearn.linear_model import Ridge

    x, y = problem(0, 300, 40, 3)
    for penalty in (1e-6, 1e-2, 10.0):
        ours, theirs = RidgeReadout(penalty).fit(x, y), Ridge(alpha=penalty, solver="svd").fit(x, y)
        np.testing.assert_allclose(ours.coef_, theirs.coef_, rtol=1e-7, atol=1e-9)
        np.testing.assert_allclose(ours.intercept_, theirs.intercept_, rtol=1e-7, atol=1e-9)
        assert ours.score(x, y) == pytest.approx(theirs.score(x, y))


def test_penalty_zero_is_least_squares_of_least_norm() -> None:
    x, y = problem(1, 30, 10, 2)
    x = np.concatenate([x, x[:, :3]], 1)  # collinear
    weights = np.linalg.lstsq(x - x.mean(0), y - y.mean(0), rcond=None)[0]
    np.testing.assert_allclose(RidgeReadout(0.0).fit(x, y).coef_.T, weights, atol=1e-9)


def test_both_decompositions_agree() -> None:
    """Many rows use eigenvectors, few rows singular values: repeating rows n times equals dividing the penalty by n."""
    x, y = problem(2, 30, 20, 2)
    few = RidgeReadout(1e-2).fit(x, y)
    many = RidgeReadout(1e-2 * 8).fit(np.tile(x, (8, 1)), np.tile(y, (8, 1)))
    np.testing.assert_allclose(few.coef_, many.coef_, rtol=1e-8)


def test_the_limit_of_a_large_penalty_is_the_mean() -> None:
    x, y = problem(3, 50, 5, 2)
    np.testing.assert_allclose(RidgeReadout(1e14).fit(x, y).predict(x), np.tile(y.mean(0), (50, 1)), atol=1e-8)


def test_the_path_chooses_what_is_best_on_held_out_rows() -> None:
    x, y = problem(4, 80, 60, 2)
    path = (1e-3, 1.0, 1e3)
    ours = RidgeReadout(path, holdout=0.25).fit(x, y)
    errors = np.array([((RidgeReadout(p).fit(x[:60], y[:60]).predict(x[60:]) - y[60:]) ** 2).mean(0) for p in path])
    np.testing.assert_allclose(ours.path_errors_, errors, rtol=1e-7)
    best = path[(errors / y.var(0)).mean(1).argmin()]
    assert ours.lambda_ == best
    np.testing.assert_allclose(ours.coef_, RidgeReadout(best).fit(x, y).coef_)
    each = RidgeReadout(path, holdout=0.25, per_target=True).fit(x, y)
    np.testing.assert_array_equal(each.lambda_, np.array(path)[errors.argmin(0)])
    for target, penalty in enumerate(each.lambda_):
        np.testing.assert_allclose(each.coef_[target], RidgeReadout(penalty).fit(x, y[:, target]).coef_)


def test_order_of_the_path_does_not_matter() -> None:
    x, y = problem(5, 60, 30, 1)
    assert RidgeReadout((1.0, 1e-3, 10.0)).fit(x, y).lambda_ == RidgeReadout((10.0, 1.0, 1e-3)).fit(x, y).lambda_


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), penalty=st.floats(1e-2, 10), cut=st.integers(1, 29))
def test_recursive_equals_ridge_on_all_rows(seed: int, penalty: float, cut: int) -> None:
    x, y = problem(seed, 30, 6, 2)
    online = RecursiveReadout(penalty, fit_intercept=False).partial_fit(x[:cut], y[:cut]).partial_fit(x[cut:], y[cut:])
    batch = RidgeReadout(penalty, fit_intercept=False).fit(x, y)
    np.testing.assert_allclose(online.coef_, batch.coef_, rtol=1e-5, atol=1e-6)


def test_forgetting_weights_rows_by_age() -> None:
    x, y = problem(6, 40, 4, 1)
    phi, penalty = 0.9, 0.5
    online = RecursiveReadout(penalty, forgetting=phi, fit_intercept=False).fit(x, y)
    root = phi ** (np.arange(39, -1, -1) / 2)
    gram = (x * root[:, None]).T @ (x * root[:, None]) + penalty * phi**40 * np.eye(4)
    wanted = np.linalg.solve(gram, (x * root[:, None] ** 2).T @ y)
    np.testing.assert_allclose(online.coef_[0], wanted[:, 0], rtol=1e-6)


def test_fit_forgets_earlier_fits() -> None:
    x, y = problem(7, 30, 3, 1)
    assert np.array_equal(RecursiveReadout().fit(x + 1, y).fit(x, y).coef_, RecursiveReadout().fit(x, y).coef_)


def test_tensors_go_in_and_come_out() -> None:
    x, y = problem(8, 50, 4, 2)
    fitted = RidgeReadout(1e-3).fit(torch.from_numpy(x), torch.from_numpy(y))
    weight, bias = fitted.tensors()
    torch.testing.assert_close(torch.from_numpy(x) @ weight.T + bias, torch.from_numpy(fitted.predict(x)))


def test_works_without_scikit_learn() -> None:
    code = (
        "import sys; sys.modules['sklearn'] = None\n"
        "import numpy as np\n"
        "from plexus.learn.readout import RidgeReadout\n"
        "r = RidgeReadout().fit(np.arange(20.0)[:, None], np.arange(20.0))\n"
        "assert abs(r.predict([[30.0]])[0] - 30) < 1e-3\n"
        "try: RidgeReadout().predict([[1.0]])\n"
        "except ValueError as error: assert 'not fitted' in str(error)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("error", "call"),
    [
        (RangeError, lambda x, y: RidgeReadout(-1.0).fit(x, y)),
        (RangeError, lambda x, y: RidgeReadout([]).fit(x, y)),
        (RangeError, lambda x, y: RidgeReadout([1.0, float("nan")]).fit(x, y)),
        (RangeError, lambda x, y: RidgeReadout(holdout=1.0).fit(x, y)),
        (RangeError, lambda x, y: RidgeReadout().fit(x * np.nan, y)),
        (RangeError, lambda x, y: RidgeReadout().fit(x, y * np.inf)),
        (RangeError, lambda x, y: RidgeReadout().fit(x[:1], y[:1])),
        (RangeError, lambda x, y: RidgeReadout().predict(x)),
        (ShapeError, lambda x, y: RidgeReadout().fit(x, y[:-1])),
        (ShapeError, lambda x, y: RidgeReadout().fit(x[None], y)),
        (ShapeError, lambda x, y: RidgeReadout().fit(x[:, :0], y)),
        (ShapeError, lambda x, y: RidgeReadout().fit(x, y).predict(x[:, :2])),
        (RangeError, lambda x, y: RecursiveReadout(0.0).fit(x, y)),
        (RangeError, lambda x, y: RecursiveReadout(forgetting=1.1).fit(x, y)),
        (ShapeError, lambda x, y: RecursiveReadout().fit(x, y).partial_fit(x, np.hstack([y, y]))),
        (UnknownNameError, lambda x, y: RidgeReadout().set_params(lambdaz=1)),
    ],
)
def test_bad_input(error, call) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(error) as caught:
        call(*problem(0, 20, 3, 1))
    assert isinstance(caught.value, PlexusError)


def test_held_out_errors_are_those_that_fit_chooses_by() -> None:
    x, y = problem(9, 80, 30, 2)
    readout = RidgeReadout((1e-3, 1.0, 1e3))
    errors = readout.held_out_errors(x, y)
    assert not hasattr(readout, "coef_")
    assert np.array_equal(errors, readout.fit(x, y).path_errors_)
