"""Learning from preferences between answers of a language model.

    ℓ(y | x) = Σ_t log p(y_t | x, y_<t)
    L = -log σ( β [ (ℓ(y⁺) - ℓ_ref(y⁺)) - (ℓ(y⁻) - ℓ_ref(y⁻)) ] )

ℓ_ref is that of the model before training; β says how dearly it is left. At the start L = log 2.

Source: Rafailov et al. 2023, eq. 7.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from plexus.errors import RangeError, ShapeError

__all__ = ["direct_preference", "sequence_log_prob"]


def sequence_log_prob(logits: Tensor, tokens: Tensor, counted: Tensor) -> Tensor:
    """Log-probability of the counted tokens of each row, given all before them, in nats `[row]`.

    Args:
        logits: `[row, token, word]`, of the token after each.
        tokens: `[row, token]`, what was said.
        counted: bool `[row, token]`, which tokens count (an answer's, not a prompt's); the first never does.

    Raises:
        ShapeError: the three do not line up.

    Examples:
        >>> import torch
        >>> sequence_log_prob(torch.zeros(1, 3, 4), torch.tensor([[0, 1, 2]]), torch.tensor([[False, True, True]]))
        tensor([-2.7726])
    """
    if logits.dim() != 3 or logits.shape[:2] != tokens.shape or tokens.shape != counted.shape:
        raise ShapeError(
            "logits, tokens and mask do not line up",
            given=f"{tuple(logits.shape)}, {tuple(tokens.shape)}, {tuple(counted.shape)}",
            expected="[row, token, word], [row, token], [row, token]",
        )
    tokens, counted = tokens.to(logits.device), counted.to(logits.device)
    said = logits[:, :-1].float().log_softmax(-1).gather(2, tokens[:, 1:, None])[..., 0]
    return (said * counted[:, 1:]).sum(1)


def direct_preference(
    chosen: Tensor, rejected: Tensor, chosen_before: Tensor, rejected_before: Tensor, beta: float = 0.1
) -> Tensor:
    """Mean loss of pairs of answers of which the first is preferred (DPO).

    Args:
        chosen: log-probability of the better answer under the model that learns, `[pair]`.
        rejected: of the worse one.
        chosen_before, rejected_before: the same under the model before training; no gradient goes there.
        beta: positive; the larger, the closer the model stays to what it was.

    Raises:
        RangeError: β is not positive.
        ShapeError: other shapes than `[pair]`.

    Examples:
        >>> import torch
        >>> one = torch.tensor([-3.0])
        >>> direct_preference(one, one, one, one)
        tensor(0.6931)
    """
    if not beta > 0:
        raise RangeError("the weight of a preference is positive", given=beta)
    shapes = [tuple(part.shape) for part in (chosen, rejected, chosen_before, rejected_before)]
    if len(set(shapes)) > 1 or chosen.dim() != 1:
        raise ShapeError("pairs of answers do not line up", given=shapes, expected="[pair]")
    rejected, *before = (part.to(chosen.device) for part in (rejected, chosen_before, rejected_before))
    margin = (chosen - before[0].detach()) - (rejected - before[1].detach())
    return -F.logsigmoid(beta * margin).mean()
