"""Weights without some of their singular directions, for as long as wanted.

    W' = Σ f_i s_i u_i v_iᵀ = W + Σ (f_i - 1) s_i u_i v_iᵀ

Only the directions with f_i ≠ 1 are added, so those that stay are not touched by rounding in float32. The relative
change is √(Σ ((f_i - 1) s_i)² / Σ s_i²).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from plexus.edit.svd._directions import Directions, directions
from plexus.edit.svd._held import Held, check_editable, hold, matrix_of
from plexus.edit.svd._scores import By, direction_scores, shift
from plexus.errors import RangeError, ShapeError, UnsupportedError

__all__ = ["WeightEdit", "eigenshift", "scale"]


class WeightEdit:
    """An edit of one layer's weights that can be taken back to the bit.

    Made by `scale` and `eigenshift`. Acts between `apply` and `revert`, or inside a `with`; edits of the same layer add
    up and may end in any order. What else was done to these weights meanwhile is undone with it, and a copy of the
    model made meanwhile keeps the edited weights, because they are the model's own.

    Attributes:
        directions: the singular directions of the layer.
        chosen: those that the edit scales, `[k]`, best first.
        factors: by what, `[k]`.
        signs: which end of each chosen direction the concept pushes, +1 or -1, `[k]`.
        relative_change: ‖W' - W‖ / ‖W‖.

    Examples:
        >>> layer = nn.Linear(3, 4)
        >>> before = layer.weight.clone()
        >>> with scale(layer, [0], 0.0) as change:
        ...     left = torch.linalg.svdvals(layer.weight)
        >>> bool(left[2] < 1e-6), torch.equal(layer.weight, before)
        (True, True)
        >>> change
        WeightEdit of (model): 1 of 3 directions, relative change 0...
    """

    def __init__(
        self, model: nn.Module, found: Directions, chosen: Tensor, factors: Tensor, signs: Tensor, *, untie: bool
    ) -> None:
        self.directions, self.chosen, self.factors, self.signs = found, chosen, factors, signs
        self._model, self._untie = model, untie
        self._held: Held | None = None
        self._key = object()
        lost = (factors - 1).double().cpu() * found.s.double().cpu()[chosen]
        self.relative_change = float(lost.norm() / found.s.double().cpu().norm())

    @property
    def applied(self) -> bool:
        """Whether the edit acts now."""
        return self._held is not None

    def apply(self) -> WeightEdit:
        """Change the weights until `revert`.

        Raises:
            UnsupportedError: the edit acts already, or the weights cannot be edited.
        """
        if self._held is not None:
            raise UnsupportedError("this edit acts already", mend="revert it first, or make another one")
        held = hold(self._model, self.directions.path, untie=self._untie)
        weights = (self.factors - 1).to(self.directions.s) * self.directions.s[self.chosen]
        held.take(self._key, (self.directions.u[:, self.chosen] * weights, self.directions.vh[self.chosen]))
        self._held = held
        return self

    def revert(self) -> None:
        """Give the weights back as they were, bit by bit, but for other edits that still act.

        Raises:
            UnsupportedError: the edit does not act.
        """
        if self._held is None:
            raise UnsupportedError("this edit does not act, so there is nothing to take back", mend="apply it first")
        held, self._held = self._held, None
        held.drop(self._key)

    def __enter__(self) -> WeightEdit:
        return self.apply()

    def __exit__(self, *error: object) -> None:
        if self._held is not None:
            self.revert()

    def top_outputs(self, k: int = 10, tokenizer: Any = None) -> list[list[tuple[int | str, float]]]:
        """For each chosen direction the outputs that it raises most at the end that the concept pushes, with u_i there.

        Args:
            k: how many.
            tokenizer: names outputs by its `convert_ids_to_tokens`; None leaves their numbers.
        """
        answer: list[list[tuple[int | str, float]]] = []
        for direction, sign in zip(self.chosen.tolist(), self.signs.tolist(), strict=True):
            top = self.directions.top_outputs(direction, k, sign=sign)
            names: list[Any] = [place for place, _ in top]
            names = names if tokenizer is None else tokenizer.convert_ids_to_tokens(names)
            answer.append(list(zip(names, (value for _, value in top), strict=True)))
        return answer

    def __repr__(self) -> str:
        where, state = self.directions.path or "(model)", ", acting" if self.applied else ""
        count = f"{len(self.chosen)} of {len(self.directions)} directions"
        return f"WeightEdit of {where}: {count}, relative change {self.relative_change:.3g}{state}"


def scale(
    model: nn.Module,
    chosen: Sequence[int] | Tensor,
    factor: float | Sequence[float] | Tensor,
    *,
    path: str | None = None,
    found: Directions | None = None,
    untie: bool = False,
) -> WeightEdit:
    """Scale singular values of a layer's weights; 0 takes a direction out.

    Args:
        model: any module; nothing is changed before `apply` or a `with`.
        chosen: the directions, from 0, the largest.
        factor: one number, or one per chosen direction.
        path: the layer, as in `directions`; None is the output layer.
        found: its directions, if they are there already.
        untie: where the weights are tied, let the layer have a copy of its own while the edit lasts.

    Raises:
        RangeError: no direction, all of them, one that there is not or that comes twice; a factor that is not finite.
        ShapeError: as many factors as directions are expected.
        UnsupportedError: tied weights without `untie`; a layer without a matrix of plain floats; directions of other
            weights.

    Examples:
        >>> layer = nn.Linear(3, 4)
        >>> values = torch.linalg.svdvals(layer.weight)
        >>> with scale(layer, [0, 1], [1.0, 0.5]):
        ...     halved = torch.linalg.svdvals(layer.weight)
        >>> torch.allclose(halved.sort().values, (values * torch.tensor([1.0, 0.5, 1.0])).sort().values)
        True
    """
    found = directions(model, path) if found is None else found
    check_editable(model, found.path, untie=untie)
    places = torch.as_tensor(chosen).reshape(-1)
    if len(places) and (places.is_floating_point() or places.dtype == torch.bool):
        raise ShapeError("directions are chosen by their numbers", given=str(places.dtype), expected="integers")
    _check_count(len(places), found)
    places = places.long().cpu()
    if int(places.min()) < 0 or int(places.max()) >= len(found) or len(places.unique()) < len(places):
        raise RangeError(
            "directions are counted from 0, each once", given=places.tolist()[:8], expected=f"< {len(found)}"
        )
    factors = torch.as_tensor(factor, dtype=torch.float64).cpu()
    if factors.dim() > 1 or (factors.dim() == 1 and len(factors) != len(places)):
        raise ShapeError("factors and directions differ in number", given=tuple(factors.shape), expected=len(places))
    if not bool(factors.isfinite().all()):
        raise RangeError("a factor is not finite", given=factor)
    _check_fresh(model, found, places)
    # without a concept, the end where the direction writes most sharply
    skew = (found.u[:, places].double() ** 3).sum(0).cpu()
    signs = torch.where(skew < 0, -1.0, 1.0)
    return WeightEdit(model, found, places, factors.expand(len(places)).clone(), signs, untie=untie)


def eigenshift(
    model: nn.Module,
    present: Tensor,
    absent: Tensor,
    k: int,
    factor: float = 0.0,
    *,
    by: By = "margin",
    outputs: Sequence[int] | Tensor | None = None,
    path: str | None = None,
    found: Directions | None = None,
    untie: bool = False,
) -> WeightEdit:
    """Shrink the singular directions of the output layer on which states load when a concept is about to be put out.

    Args:
        model: any module; nothing is changed before `apply` or a `with`.
        present: what the layer read when it was about to put out the concept, `[row, in]`, at least 30 rows.
        absent: what it read otherwise, `[row, in]`, at least 30 rows.
        k: how many directions, fewer than there are.
        factor: what their singular values are multiplied by.
        by: how directions are ranked, see `direction_scores`.
        outputs: for `by="margin"` and `"push"`, the outputs of the concept.
        path: the layer; None is the output layer.
        found: its directions, if they are there already.
        untie: where the weights are tied, let the layer have a copy of its own while the edit lasts.

    Raises:
        As `scale` and `direction_scores`.

    Source: Shaik et al. 2025 (arXiv 2509.16660), which ranks `by="signed"`.

    Examples:
        >>> head = nn.Linear(3, 4, bias=False)
        >>> states = torch.randn(60, 3, generator=torch.Generator().manual_seed(0))
        >>> push = head.weight[2].detach()
        >>> with eigenshift(head, states + push, states, 1, outputs=[2]) as change:
        ...     change.applied
        True
    """
    found = directions(model, path) if found is None else found
    if isinstance(k, bool) or not isinstance(k, int):
        raise RangeError("k counts directions", given=repr(k), expected=f"an int from 1 to {len(found) - 1}")
    _check_count(k, found)
    scores = direction_scores(found, present, absent, by=by, outputs=outputs)
    chosen = scores.argsort(descending=True, stable=True)[:k].cpu()
    edit = scale(model, chosen, factor, found=found, untie=untie)
    moved, _ = shift(found, present, absent)
    edit.signs = torch.where(moved.cpu()[chosen] < 0, -1.0, 1.0)
    return edit


def _check_count(k: int, found: Directions) -> None:
    if not 1 <= k < len(found):
        raise RangeError(
            "some of the directions are scaled, neither none nor all",
            given=k,
            expected=f"1 to {len(found) - 1}",
            mend="a factor for all is another scale of the layer; use fewer directions",
        )


def _check_fresh(model: nn.Module, found: Directions, chosen: Tensor) -> None:
    """W v_i = s_i u_i holds of the layer's own directions, and of no others."""
    matrix = matrix_of(model, found.path)
    fits = matrix.shape == (len(found.u), found.vh.shape[1])
    if fits:
        off = matrix @ found.vh[chosen].to(matrix).T - (found.u * found.s)[:, chosen].to(matrix)
        fits = float(off.norm()) <= 1e-3 * float(found.s.max()) * len(chosen) ** 0.5
    if not fits:
        raise UnsupportedError(
            f"these are not the directions of {found.path!r} as it is now",
            mend="make them anew: edit.svd.directions(model, path)",
        )
