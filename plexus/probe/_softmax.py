"""Softmax regression: a linear probe for classes.

    minimise   mean_i -log softmax(W x_i + b)[y_i] + penalty/2 · ‖W‖²         the bias is not penalised

Strictly convex in W for a positive penalty; solved by L-BFGS in float64.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from scipy import optimize
from torch import Tensor

from plexus.errors import RangeError, ShapeError

__all__ = ["fit_softmax"]


def fit_softmax(x: Tensor, y: Tensor, classes: int, penalty: float) -> tuple[Tensor, Tensor]:
    """Weights `[class, feature]` and biases `[class]` (of mean zero), float64, from rows `x` `[row, feature]`.

    Raises:
        ShapeError: rows and classes do not line up.
        RangeError: a class without a name, or a penalty that is not positive.

    Examples:
        >>> x = torch.tensor([[-2.0], [-1.0], [1.0], [2.0]])
        >>> weight, bias = fit_softmax(x, torch.tensor([0, 0, 1, 1]), 2, 0.1)
        >>> (x.double() @ weight.T + bias).argmax(-1).tolist()
        [0, 0, 1, 1]
    """
    if x.dim() != 2 or y.dim() != 1 or len(x) != len(y) or not len(x):
        raise ShapeError("a probe needs rows and their classes", given=(tuple(x.shape), tuple(y.shape)))
    if int(y.min()) < 0 or int(y.max()) >= classes:
        raise RangeError("a row has a class that there is not", given=int(y.max()), expected=f"0 to {classes - 1}")
    if not penalty > 0:
        raise RangeError("the penalty of a probe is positive", given=penalty)
    rows, one_hot = x.detach().double().cpu().numpy(), np.eye(classes)[y.cpu().numpy()]
    features = rows.shape[1]

    def objective(flat: Any) -> Any:
        weight, bias = flat[: classes * features].reshape(classes, features), flat[classes * features :]
        logits = rows @ weight.T + bias
        logits -= logits.max(1, keepdims=True)
        log_sum = np.log(np.exp(logits).sum(1))
        error = (np.exp(logits - log_sum[:, None]) - one_hot) / len(rows)
        value = (log_sum - (logits * one_hot).sum(1)).mean() + penalty / 2 * (weight**2).sum()
        return value, np.concatenate([(error.T @ rows + penalty * weight).reshape(-1), error.sum(0)])

    options = {"maxiter": 2000, "ftol": 1e-13, "gtol": 1e-8}
    found = optimize.minimize(
        objective, np.zeros(classes * (features + 1)), jac=True, method="L-BFGS-B", options=options
    )
    weight, bias = found.x[: classes * features].reshape(classes, features), found.x[classes * features :]
    return torch.from_numpy(weight.copy()), torch.from_numpy(bias - bias.mean())
