"""Choosing what to remove so that an architecture can hold what is left: as much of every layer."""

from __future__ import annotations

from collections.abc import Mapping

from plexus.errors import RangeError, ShapeError, UnsupportedError
from plexus.units import Neurons, Scores, Site

__all__ = ["equal_width", "whole_groups"]


def equal_width(scores: Scores, k: int | float) -> Neurons:
    """The units of least score, as many at every site, so that all layers stay equally wide.

    Args:
        scores: what speaks for keeping a unit; the sites have one size.
        k: how many of each site (an int), or which share (a float, rounded up); at least one is kept.

    Raises:
        ShapeError: the sites have unequal sizes, so they cannot stay alike.
        RangeError: nothing would be left.

    Examples:
        >>> import torch
        >>> one, two = Site("0.down", at="input"), Site("1.down", at="input")
        >>> scores = Scores({one: torch.tensor([3.0, 1.0, 2.0]), two: torch.tensor([9.0, 8.0, 7.0])})
        >>> equal_width(scores, 1)
        Neurons: 2 of 6 units at 2 sites
          0.down (input) [b ... u]: 1 of 3 (1)
          1.down (input) [b ... u]: 1 of 3 (2)
    """
    chosen = scores.top(k, by="low", per="site")
    if len(set(scores.sizes.values())) > 1:
        raise ShapeError("the sites have unequal sizes", given=_sizes(scores), expected="one size")
    site, count = next(iter(chosen.counts.items()))
    if count >= chosen.sizes[site]:
        raise RangeError("nothing would be left", given=f"{count} of {chosen.sizes[site]}")
    return chosen


def whole_groups(scores: Scores, k: int | float, groups: int | Mapping[Site, int]) -> Neurons:
    """The groups of heads of least score, as many at every site: all query heads that share a key and value.

    Args:
        scores: what speaks for keeping a head; a group counts the sum of its heads.
        k: how many groups of each site (an int), or which share (a float, rounded up).
        groups: how many keys and values there are (`config.num_key_value_heads`), for all sites or per site.

    Raises:
        RangeError: the heads do not come in so many groups, or nothing would be left.
        UnsupportedError: the sites have unequal numbers of heads.

    Examples:
        >>> import torch
        >>> heads = Site("o_proj", "b t (u:4 f)", at="input")
        >>> whole_groups(Scores({heads: torch.tensor([5.0, 4.0, 1.0, 7.0])}), 1, groups=2)
        Neurons: 2 of 4 units at 1 site
          o_proj (input) [b t (u:4 f)]: 2 of 4 (2, 3)
    """
    if len(set(scores.sizes.values())) > 1:
        raise UnsupportedError("the sites have unequal numbers of heads", given=_sizes(scores))
    summed, sizes = {}, {}
    for site, value in scores.values.items():
        count = groups[site] if isinstance(groups, Mapping) else groups
        if count < 1 or value.shape[-1] % count:
            raise RangeError(f"{value.shape[-1]} heads do not come in {count} groups", given=str(site))
        summed[site] = value.unflatten(-1, (count, -1)).sum(-1)
        sizes[site] = value.shape[-1] // count
    chosen = equal_width(Scores(summed, scores.concepts, scores.name, scores.model), k)
    masks = {site: chosen.mask(site).repeat_interleave(sizes[site]) for site in chosen.sites}
    return Neurons(masks, scores.model)


def _sizes(scores: Scores) -> str:
    return ", ".join(f"{site.path}: {size}" for site, size in list(scores.sizes.items())[:4])
