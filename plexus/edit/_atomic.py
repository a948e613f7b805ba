"""Single coordinates scaled by how consistently they move towards right answers.

    x_i ← x_i + α β_i x_i       on the k coordinates with the largest |β|, at every token

The push is in proportion to what the coordinate holds already: a positive β amplifies it, a negative one shrinks it
and, beyond α |β| = 1, turns it over. At the input of a linear layer this scales columns of its weights, at its output
rows, so `edit.bake` folds it in exactly.
"""

from __future__ import annotations

import warnings

from plexus.edit._edit import Edit
from plexus.edit._verbs import scale, verb
from plexus.errors import DtypeError, RangeError, ShapeError
from plexus.probe._collect import Positions
from plexus.units import Neurons, Scores

__all__ = ["atomic_steering"]


@verb
def atomic_steering(
    beta: Scores,
    k: int,
    strength: float,
    *,
    among: Neurons | None = None,
    limit: float | None = None,
    positions: Positions = "all",
) -> Edit:
    """Scale the k coordinates whose sign is most consistent, each by 1 + strength · β.

    Args:
        beta: signed, in [-1, 1], `probe.scores.sign_consistency(…).beta` for instance; ranked by their size over all
            sites.
        k: how many coordinates.
        strength: α; the papers' settings lie between 1 and 100.
        among: choose among these alone, `sign_consistency(…).significant()` for instance. Where there are fewer than
            k, those are taken, with a warning.
        limit: largest relative change α |β|; larger ones are cut to it, with a warning that says how many.
        positions: as in `edit.scale`.

    Returns:
        The edit; with a model as the first argument, a context in which it acts on that model.

    Raises:
        RangeError: k is not between 1 and the number of coordinates, a β beyond [-1, 1], a limit that is not positive,
            nothing left to choose among.
        ShapeError: several concepts.

    Source: Feng et al. 2026 (arXiv 2602.04428).

    Examples:
        >>> import torch
        >>> from plexus import edit
        >>> from plexus.units import Site
        >>> model = torch.nn.Sequential(torch.nn.Identity())
        >>> beta = Scores({Site("0"): torch.tensor([0.5, -0.75, 1.0])})
        >>> with edit.atomic_steering(model, beta, 2, 2.0):
        ...     model(torch.ones(1, 3))
        tensor([[ 1.0000, -0.5000,  3.0000]])
    """
    if not isinstance(beta, Scores):
        raise DtypeError("coordinates are steered by their scores", given=type(beta).__name__, expected="Scores")
    if beta.concepts is not None:
        raise ShapeError("coordinates are steered by one number each", given=f"{len(beta.concepts)} concepts")
    total = sum(beta.sizes.values())
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= total:
        raise RangeError("k counts coordinates", given=repr(k), expected=f"an int from 1 to {total}")
    if any(bool((values.abs() > 1).any()) for values in beta.values.values()):
        raise RangeError("a consistency lies in [-1, 1]", mend="probe.scores.sign_consistency(right, wrong).beta")
    if limit is not None and not limit > 0:
        raise RangeError("a limit of the relative change is positive", given=limit)
    ranked = beta
    if among is not None:
        masks = {site: among.mask(site) for site in beta.sites}
        ranked = Scores({s: v.masked_fill(~masks[s], 0.0) for s, v in beta.values.items()}, None, beta.name, beta.model)
        allowed = sum(int(mask.sum()) for mask in masks.values())
        if not allowed:
            raise RangeError("there is nothing to choose among", given=f"{len(among)} units, none at these sites")
        if allowed < k:
            warnings.warn(f"atomic_steering: only {allowed} of {k} coordinates are among those allowed", stacklevel=3)
            k = allowed
    chosen = ranked.top(k, by="abs")
    change = {site: strength * values for site, values in beta.values.items()}
    if limit is not None:
        over = sum(int((change[site].abs() > limit)[chosen.mask(site)].sum()) for site in beta.sites)
        if over:
            warnings.warn(f"atomic_steering: {over} of {k} relative changes were cut to {limit:g}", stacklevel=3)
        change = {site: values.clamp(-limit, limit) for site, values in change.items()}
    # one number per chosen coordinate, so that they go along when the edit is moved to random ones
    return scale(chosen, {site: 1 + values[chosen.mask(site)] for site, values in change.items()}, positions=positions)
