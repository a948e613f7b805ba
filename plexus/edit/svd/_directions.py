"""A weight matrix as a sum of directions.

    W = Σ s_i u_i v_iᵀ      u_i [out], v_i [in], s_i ≥ 0

A layer answers h with Σ s_i u_i (v_iᵀ h): it reads the coordinate v_iᵀ h and writes u_i. (u_i, v_i) and
(-u_i, -v_i) are the same decomposition; nothing that follows may depend on which of the two a routine returned.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from plexus.edit.svd._held import matrix_of, output_path
from plexus.errors import RangeError, ShapeError

__all__ = ["Directions", "directions"]


@dataclass(frozen=True, eq=False)
class Directions:
    """The singular directions of one layer's weights, largest first.

    Attributes:
        path: the layer.
        u: what each direction writes, `[out, direction]`.
        s: singular values, `[direction]`.
        vh: what each direction reads, `[direction, in]`.

    Examples:
        >>> layer = nn.Linear(3, 5)
        >>> _ = nn.init.eye_(layer.weight)
        >>> found = directions(layer, "")
        >>> found
        Directions of (model): 3 of a 5 × 3 matrix, s from 1 to 1
        >>> found.coordinates(torch.randn(7, 3)).shape
        torch.Size([7, 3])
    """

    path: str
    u: Tensor
    s: Tensor
    vh: Tensor

    def __len__(self) -> int:
        return len(self.s)

    def coordinates(self, states: Tensor) -> Tensor:
        """The coordinates v_iᵀ h of states `[row, in]`, as `[row, direction]`.

        Raises:
            ShapeError: the states have not as many units as the layer reads.
        """
        if states.dim() != 2 or states.shape[1] != self.vh.shape[1]:
            raise ShapeError(
                "these states are not what the layer reads",
                given=tuple(states.shape),
                expected=f"[row, {self.vh.shape[1]}]",
            )
        return states.to(self.vh) @ self.vh.T

    def top_outputs(self, direction: int, k: int = 10, *, sign: float = 1.0) -> list[tuple[int, float]]:
        """The outputs (of a language model: tokens) that a direction raises most, with u_i there.

        Args:
            direction: which.
            k: how many.
            sign: -1 for the outputs that it lowers most: a direction has two ends.
        """
        if not 0 <= direction < len(self):
            raise RangeError("there is no such direction", given=direction, expected=f"0 to {len(self) - 1}")
        values, places = (self.u[:, direction] * sign).topk(min(k, len(self.u)))
        return list(zip(places.tolist(), values.tolist(), strict=True))

    def __repr__(self) -> str:
        size = f"{len(self.u)} × {self.vh.shape[1]}"
        spread = f"s from {float(self.s.max()):.3g} to {float(self.s.min()):.3g}"
        return f"Directions of {self.path or '(model)'}: {len(self)} of a {size} matrix, {spread}"


def directions(model: nn.Module, path: str | None = None) -> Directions:
    """The singular directions of a layer's weights.

    Args:
        model: any module.
        path: a linear layer (GPT-2's transposed one too), an embedding, or a convolution, whose kernels are rows
            `[out, in · places]`; None is the output layer of the model.

    Raises:
        UnsupportedError: the layer has no such matrix, or not as plain floats (quantised, parametrized, offloaded).
        RangeError: the weights hold NaN or infinity.

    Examples:
        >>> layer = nn.Linear(4, 6)
        >>> found = directions(layer, "")
        >>> torch.allclose(found.u * found.s @ found.vh, layer.weight, atol=1e-6)
        True
    """
    path = output_path(model) if path is None else path
    matrix = matrix_of(model, path)
    if not bool(matrix.isfinite().all()):
        raise RangeError("a matrix with NaN or infinity has no singular directions", given=path)
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    return Directions(path, u, s, vh)
