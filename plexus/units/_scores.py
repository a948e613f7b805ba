"""Numbers for units, one or one per concept, and the choice of the highest.

`top(k)` is the one road from numbers to neurons: an int is a count, a float a share (rounded up, so a positive share
always chooses someone), NaN comes last, and equal numbers are taken by index, with a warning where that decides.
"""

from __future__ import annotations

import math
import numbers
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from plexus.errors import DtypeError, FormatError, RangeError, ShapeError, SiteError, UnknownNameError
from plexus.units._files import read_tensors, write_tensors
from plexus.units._neurons import Neurons
from plexus.units._rows import counted
from plexus.units._site import Site

KIND, VERSION = "scores", 1


class Unit(NamedTuple):
    """One unit and its score, as `Scores.ranked` lists them.

    Examples:
        >>> best = Scores({Site("fc1", "b u"): torch.tensor([0.25, 0.75])}).ranked(1)[0]
        >>> best.unit, best.score
        (1, 0.75)
    """

    site: Site
    unit: int
    score: float


class Scores:
    """A number for each unit, `[unit]`, or for each concept and unit, `[concept, unit]`, at each site.

    Args:
        values: per site a real tensor; copied to the CPU.
        concepts: names of the rows, for `[concept, unit]` values; `None` for `[unit]` values.
        name: what the numbers are, for printing.
        model: fingerprint of the model that the sites belong to, if known.

    Raises:
        ShapeError: if a value has the wrong number of dimensions, no units, or other rows than the concepts.
        DtypeError: if a value is not a real tensor.

    Examples:
        >>> hidden = Site("fc1", "b u")
        >>> scores = Scores({hidden: torch.tensor([[0.1, 0.9, 0.5], [0.7, 0.2, 0.1]])}, concepts=("capital", "river"))
        >>> scores["capital"].top(1)
        Neurons: 1 of 3 units at 1 site
          fc1 (output) [b u]: 1 of 3 (1)
        >>> scores["river"].top(0.5, by="low").indices(hidden)
        tensor([1, 2])
    """

    __slots__ = ("_concepts", "_model", "_name", "_values")

    def __init__(
        self,
        values: Mapping[Site, Tensor],
        concepts: Sequence[str] | None = None,
        name: str = "score",
        model: str | None = None,
    ) -> None:
        self._concepts = None if concepts is None else tuple(str(concept) for concept in concepts)
        if self._concepts is not None and len(set(self._concepts)) != len(self._concepts):
            raise ShapeError("two concepts have one name", given=", ".join(self._concepts))
        self._values = {site: self._checked(site, value) for site, value in values.items()}
        self._name, self._model = name, model

    @property
    def values(self) -> dict[Site, Tensor]:
        """The numbers, `[unit]` or `[concept, unit]`, per site."""
        return dict(self._values)

    @property
    def concepts(self) -> tuple[str, ...] | None:
        """Names of the rows of `values`, or `None` where there is one number per unit."""
        return self._concepts

    @property
    def name(self) -> str:
        """What the numbers are."""
        return self._name

    @property
    def model(self) -> str | None:
        """Fingerprint of the model, if known."""
        return self._model

    @property
    def sites(self) -> tuple[Site, ...]:
        """The sites scored."""
        return tuple(self._values)

    @property
    def sizes(self) -> dict[Site, int]:
        """The number of units of each site."""
        return {site: value.shape[-1] for site, value in self._values.items()}

    def __getitem__(self, key: str | Site) -> Any:
        """`scores["capital"]`: the `Scores` of one concept; `scores[site]`: the numbers of one site.

        Raises:
            UnknownNameError: if there is no such concept.
            SiteError: if the site was not scored.
        """
        if isinstance(key, Site):
            if key not in self._values:
                raise SiteError("this site was not scored", given=str(key), expected=", ".join(map(str, self.sites)))
            return self._values[key]
        if self._concepts is None:
            raise UnknownNameError(f"these scores have no concepts, so there is no {key!r}", mend="use them directly")
        if key not in self._concepts:
            raise UnknownNameError.among("concept", str(key), self._concepts)
        row = self._concepts.index(key)
        return Scores({site: v[row] for site, v in self._values.items()}, None, f"{self._name}[{key}]", self._model)

    def items(self) -> Iterator[tuple[str, Scores]]:
        """The concepts, each with its own scores."""
        for concept in self._concepts or ():
            yield concept, self[concept]

    def at(self, *sites: Site) -> Scores:
        """The scores of some of the sites only."""
        return Scores({site: self[site] for site in sites}, self._concepts, self._name, self._model)

    def map(self, function: Callable[[Tensor], Tensor], name: str | None = None) -> Scores:
        """The scores after `function`, which keeps the shape of each value."""
        return Scores(
            {s: function(v) for s, v in self._values.items()}, self._concepts, name or self._name, self._model
        )

    def top(
        self,
        k: int | float,
        by: Literal["value", "abs", "low", "both"] = "value",
        per: Literal["site", "model"] = "model",
    ) -> Neurons:
        """The units with the highest scores.

        Args:
            k: an int is how many, a float in (0, 1] which share, rounded up.
            by: the largest values, the largest absolute values, the lowest values, or half of the largest and half of
                the lowest values (one more of the largest where `k` is odd).
            per: `k` over all sites together, or of each site.

        Raises:
            DtypeError: if `k` is neither an int nor a float (a bool is neither).
            RangeError: if `k` is 0, negative, NaN, a share above 1, or more than there are units.
            ShapeError: if there are several concepts: choose one first, `scores["capital"].top(…)`.
        """
        self._one_number_per_unit("top")
        share = _share(k)
        if by not in ("value", "abs", "low", "both"):
            raise UnknownNameError.among("order", str(by), ("value", "abs", "low", "both"))
        if per not in ("site", "model"):
            raise UnknownNameError.among("choice of `per`", str(per), ("site", "model"))
        groups = [[site] for site in self.sites] if per == "site" else [list(self.sites)]
        masks: dict[Site, Tensor] = {}
        for group in groups:
            scores = torch.cat([self._values[site].double() for site in group]) if group else torch.empty(0)
            where = f"site {group[0]}" if per == "site" else "the model"
            count = math.ceil(share * len(scores)) if isinstance(share, Fraction) else share
            if count > len(scores):
                raise RangeError(f"{where} has too few units", given=f"k={k}", expected=f"at most {len(scores)}")
            chosen = _highest(
                scores, count if by != "both" else count - count // 2, "value" if by == "both" else by, where
            )
            if by == "both" and count > 1:
                rest = (~chosen).nonzero().squeeze(1)
                chosen[rest[_highest(scores[rest], count // 2, "low", where)]] = True
            masks.update(zip(group, chosen.split([len(self._values[site]) for site in group]), strict=True))
        return Neurons(masks, self._model)

    def ranked(self, k: int = 10, by: Literal["value", "abs", "low"] = "value") -> list[Unit]:
        """The `k` first units over all sites (fewer where there are fewer), with their scores, best first."""
        self._one_number_per_unit("ranked")
        units = [(site, index) for site, size in self.sizes.items() for index in range(size)]
        flat = torch.cat([value.double() for value in self._values.values()])
        return [Unit(units[i][0], units[i][1], float(flat[i])) for i in _order(flat, by)[:k].tolist()]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the scores as a safetensors file.

        Raises:
            UnwritableError: if the place cannot be written.
        """
        body = {
            "name": self._name,
            "concepts": self._concepts,
            "model": self._model,
            "sites": [site.to_json() for site in self._values],
        }
        write_tensors(path, KIND, VERSION, body, {f"values.{i}": v for i, v in enumerate(self._values.values())})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Scores:
        """Read scores that `save` wrote.

        Raises:
            FormatError: if the file is truncated, of another version or does not hold scores.
        """
        body, tensors = read_tensors(path, KIND, VERSION)
        try:
            values = {Site.from_json(entry): tensors[f"values.{i}"] for i, entry in enumerate(body["sites"])}
            return cls(values, body["concepts"], body["name"], body["model"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise FormatError("these scores are damaged", given=f"{path}: {type(error).__name__}: {error}") from error

    def __repr__(self) -> str:
        what = (
            f" for {counted(len(self._concepts), 'concept')} ({_some(self._concepts)})"
            if self._concepts is not None
            else ""
        )
        units, sites = counted(sum(self.sizes.values()), "unit"), counted(len(self._values), "site")
        lines = [f"Scores: {self._name}{what}, {units} at {sites}"]
        for site, value in list(self._values.items())[:12]:
            good = value[~value.isnan()].double()
            if good.numel():
                spread = f"{good.min():.3g} … {good.median():.3g} … {good.max():.3g}"
            else:
                spread = "all NaN"
            bad = int(value.isnan().sum())
            lines.append(f"  {site}: {value.shape[-1]} units, {spread}" + (f", {bad} NaN" if bad else ""))
        if len(self._values) > 12:
            lines.append(f"  … and {len(self._values) - 12} sites more")
        return "\n".join(lines)

    def _one_number_per_unit(self, verb: str) -> None:
        if self._concepts is not None:
            raise ShapeError(
                f"{verb} needs one number per unit, and these scores have one per concept",
                given=f"{len(self._concepts)} concepts",
                mend=f"choose one first: scores[{self._concepts[0]!r}].{verb}(...)" if self._concepts else None,
            )

    def _checked(self, site: Site, value: Tensor) -> Tensor:
        if not isinstance(site, Site):
            raise DtypeError("the keys of values are sites", given=type(site).__name__, expected="Site")
        if not isinstance(value, Tensor) or value.is_complex():
            raise DtypeError(f"the scores of {site} are not a real tensor", given=type(value).__name__)
        expected = "[unit]" if self._concepts is None else f"[{len(self._concepts)} concepts, unit]"
        right = value.dim() == (1 if self._concepts is None else 2)
        if not right or value.numel() == 0 or (self._concepts is not None and len(value) != len(self._concepts)):
            raise ShapeError(f"the scores of {site} have the wrong shape", given=tuple(value.shape), expected=expected)
        value = value.detach().cpu()
        return value.clone() if value.is_floating_point() else value.double()


def _share(k: int | float) -> int | Fraction:
    """A count as an int, a share as an exact fraction of what its decimal digits say (0.07 of 100 is 7, not 8)."""
    if isinstance(k, bool) or not isinstance(k, numbers.Real):
        raise DtypeError("k is a count (int) or a share (float)", given=repr(k))
    if isinstance(k, numbers.Integral):
        if k < 1:
            raise RangeError("a count of units is at least 1", given=k)
        return int(k)
    if not 0 < k <= 1:
        mend = f"for {int(k)} units pass the int {int(k)}" if k > 1 and math.isfinite(k) and k == int(k) else None
        raise RangeError("a share of units lies in (0, 1]", given=k, mend=mend)
    return Fraction(repr(float(k)))


def _key(values: Tensor, by: str) -> Tensor:
    """Numbers whose descending order is the order asked for, NaN last."""
    wide = values.double()
    key = {"value": wide, "abs": wide.abs(), "low": -wide}[by]
    return torch.where(key.isnan(), torch.full_like(key, -math.inf), key)


def _order(values: Tensor, by: str) -> Tensor:
    """Indices of `values`, best first; equal ones by index, NaN last."""
    # NaN and the lowest number share a key: sorting by NaN first puts the number before it
    order = torch.argsort(values.isnan().int(), stable=True)
    return order[torch.argsort(_key(values, by)[order], descending=True, stable=True)]


def _highest(values: Tensor, count: int, by: str, where: str) -> Tensor:
    key, order = _key(values, by), _order(values, by)
    chosen = torch.zeros(len(values), dtype=torch.bool)
    chosen[order[:count]] = True
    nans = int(values[chosen].isnan().sum())
    if nans:
        warnings.warn(f"top: {nans} of the {count} units chosen in {where} have no score (NaN)", stacklevel=3)
    if count < len(values):
        last, following = order[count - 1], order[count]
        if key[last] == key[following] and not values[torch.stack([last, following])].isnan().any():
            tied = int(((key == key[last]) & ~values.isnan()).sum())
            warnings.warn(
                f"top: {tied} units of {where} share the score at the cut ({float(values[last]):.4g}); "
                "the ones with the lower index were taken",
                stacklevel=3,
            )
    return chosen


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (", …" if len(names) > 4 else "")
