"""How much of the past a state still tells: linear decodability of the symbol k steps ago.

    ŷ[t, k] = W_k s[t] + b_k,    y[t, k] = one-hot of the symbol at t - k,    R²(k) = 1 - Σ (y - ŷ)² / Σ (y - ȳ)²

s is everything the model carries from step to step. Fitted by ridge regression on some sequences, λ chosen on others,
measured on the rest.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from plexus.errors import RangeError, ShapeError, UnsupportedError
from plexus.probe._quiet import quiet
from plexus.probe._ridge import held_out_errors, ridge_factors

__all__ = ["MemoryProbe", "memory_probe"]


class MemoryProbe(NamedTuple):
    """What `memory_probe` found, each `[lag]`."""

    lags: Tensor  # steps back
    r2: Tensor  # share of the variance of the one-hot symbols that the state tells, on unseen sequences
    accuracy: Tensor  # share of symbols named rightly
    chance: float  # share of the commonest symbol


def memory_probe(
    model: Any,
    symbols: Tensor,
    lags: Iterable[int] = (1, 2, 5, 10, 20, 40),
    *,
    inputs: Tensor | None = None,
    washout: int = 0,
    lambdas: Iterable[float] = (1e-2, 1.0, 1e2),
) -> MemoryProbe:
    """R² of the symbol at each lag, read linearly from the state of a recurrent model.

    Args:
        model: `out, state = model(inputs, state)`, time first; the state may be any nest of tensors, batch first.
        symbols: `[time, batch]`, int64. Sequences should be independent: 60 % fit, 20 % choose λ, 20 % test.
        lags: steps back; 0 is the symbol that just went in.
        inputs: what the model is given, `[time, batch, …]`; None: the symbols.
        washout: steps at the start that are not used.
        lambdas: penalties to choose from.

    Raises:
        ShapeError: the symbols are not `[time, batch]`, inputs do not line up, or there are fewer than five sequences.
        RangeError: a lag is negative or no step reaches so far back.
        UnsupportedError: the model carries no state.

    Examples:
        >>> from plexus.nn import LIF
        >>> symbols = torch.randint(2, (30, 20), generator=torch.Generator().manual_seed(0))
        >>> found = memory_probe(LIF(1, tau_mem=1.0, reset="none"), symbols, (0, 9), inputs=symbols[..., None].float())
        >>> found.r2[0] > 0.5 > found.r2[1]
        tensor(True)
    """
    if symbols.dim() != 2 or symbols.is_floating_point() or symbols.shape[1] < 5:
        raise ShapeError(
            "the symbols", given=(tuple(symbols.shape), symbols.dtype), expected="int64 [time, batch], five sequences"
        )
    x = symbols if inputs is None else inputs
    if x.shape[:2] != symbols.shape:
        raise ShapeError("inputs and symbols do not line up", given=tuple(x.shape), expected=(*symbols.shape, "…"))
    chosen = tuple(lags)
    first = max((washout, *chosen))
    if not chosen or min(chosen) < 0 or first >= len(symbols):
        raise RangeError("lags", given=chosen, expected=f"0 … {len(symbols) - 1}")
    states = _states(model, x)[first:]  # [time, batch, feature]
    batch = symbols.shape[1]
    parts = (slice(0, batch * 3 // 5), slice(batch * 3 // 5, batch * 4 // 5), slice(batch * 4 // 5, batch))
    fit, choose, test = (states[:, part].reshape(-1, states.shape[-1]) for part in parts)
    path = np.sort(np.array(list(lambdas), dtype=np.float64))
    codes = torch.nn.functional.one_hot(symbols.cpu()).double().numpy()
    r2, accuracy = [], []
    for lag in chosen:
        past = codes[first - lag : len(codes) - lag]
        y_fit, y_choose, y_test = (past[:, part].reshape(-1, past.shape[-1]) for part in parts)
        factors = ridge_factors(fit, y_fit, smallest=float(path[0]))
        best = path[held_out_errors(factors, path, choose, y_choose).mean(1).argmin()]
        weights, intercept = factors.coefficients(float(best))
        guess = test @ weights + intercept
        r2.append(1 - np.square(y_test - guess).sum() / max(np.square(y_test - y_fit.mean(0)).sum(), 1e-300))
        accuracy.append((guess.argmax(1) == y_test.argmax(1)).mean())
    chance = float(codes.reshape(-1, codes.shape[-1]).mean(0).max())
    return MemoryProbe(torch.tensor(chosen), torch.tensor(np.array(r2)), torch.tensor(np.array(accuracy)), chance)


def _states(model: Any, x: Tensor) -> np.ndarray[Any, Any]:
    """What the model carries after each step, `[time, batch, feature]`."""
    rows, state = [], None
    with quiet(model):
        for now in x.split(1):
            _, state = model(now, state)
            leaves = [part for part in tree_leaves(state) if isinstance(part, Tensor) and part.is_floating_point()]
            if not leaves:
                raise UnsupportedError("the model carries no state", given=type(model).__name__)
            rows.append(torch.cat([part.flatten(1).cpu().double() for part in leaves], 1))
    found: np.ndarray[Any, Any] = torch.stack(rows).numpy()
    return found
