"""A place in a model where units live, with its dimensions named.

The axes of a site read from left to right:

    b t u            batch, time, unit: one name per dimension
    b ... u          any number of dimensions between batch and unit
    b u y x          the channels of an image
    b t (u:4 f)      the last dimension holds 4 units of f features each (attention heads)
    b t (u:4 part:3 f)   4 units of 3 parts of f features; the site's `part` picks among the parts
    (t:10 b) u       time folded into the batch
    r u              rows that a mixture of experts sent to one expert; which tokens they are is found out

`u` is the unit axis and stands exactly once; `f` is the feature axis of a unit and stands only beside it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from plexus.errors import FormatError, SiteError

__all__ = ["Site", "View"]

_TOKEN = re.compile(r"\([^()]*\)|\.\.\.|[a-z][a-z0-9_]*|\S")
_FACTOR = re.compile(r"([a-z][a-z0-9_]*)(?::([1-9][0-9]*))?")


class View(NamedTuple):
    """What `Site.view` gives: the values, the names of their leading axes, and the way back."""

    values: Tensor
    rows: tuple[str, ...]
    back: Callable[[Tensor], Tensor]


class _Factor(NamedTuple):
    name: str
    size: int | None


class _Axis(NamedTuple):
    """One dimension of the tensor: the ellipsis, or one or several named factors."""

    factors: tuple[_Factor, ...]

    @property
    def elided(self) -> bool:
        return not self.factors

    @property
    def holds_units(self) -> bool:
        return any(factor.name == "u" for factor in self.factors)


@dataclass(frozen=True, repr=False)
class Site:
    """A place in a model: a module, one side of it, one tensor there, and what its dimensions mean.

    Args:
        path: dotted name of the module, as in `named_modules`.
        axes: names of the tensor's dimensions from left to right, see the head of this module.
        at: the module's output or its input.
        leaf: which tensor of a tuple, NamedTuple or mapping; None is the first tensor.
        call: the n-th call of the module in one pass of the model, from 0; None is every call.
        part: `[start, stop)` along the unit axis before it is folded, or along the factor named `part`.
        where: for a unit of a recurrent layer, whether edits act inside its loop or only on the layer's output.

    Raises:
        SiteError: an argument has no meaning, e.g. axes without a unit.

    Examples:
        >>> import torch
        >>> values, rows, back = Site("conv", axes="b u y x").view(torch.zeros(2, 3, 5, 5))
        >>> tuple(values.shape), rows
        ((2, 5, 5, 3), ('b', 'y', 'x'))
        >>> print(Site("layers.0.down", at="input"))
        layers.0.down (input) [b ... u]
    """

    path: str
    axes: str = "b ... u"
    at: Literal["output", "input"] = "output"
    leaf: int | str | None = None
    call: int | None = None
    part: tuple[int, int] | None = None
    where: Literal["loop", "readout"] = "loop"

    def __post_init__(self) -> None:
        if not isinstance(self.path, str):
            raise SiteError("the path of a site is the dotted name of a module", given=self.path, expected="a str")
        for name, value, known in (
            ("at", self.at, ("output", "input")),
            ("where", self.where, ("loop", "readout")),
        ):
            if value not in known:
                raise SiteError(f"unknown `{name}` of site {self.path!r}", given=value, expected=" or ".join(known))
        if self.leaf is not None and (isinstance(self.leaf, bool) or not isinstance(self.leaf, int | str)):
            raise SiteError(f"the leaf of site {self.path!r} is an index or a name", given=self.leaf)
        if self.call is not None and (isinstance(self.call, bool) or not isinstance(self.call, int) or self.call < 0):
            raise SiteError(f"the call of site {self.path!r} is a count from 0", given=self.call)
        axes = _parse(self.axes)
        if self.part is not None:
            part = tuple(self.part)
            if len(part) != 2 or not all(type(end) is int for end in part) or not 0 <= part[0] < part[1]:
                raise SiteError(
                    f"the part of site {self.path!r} is a range of units", given=self.part, expected="(start, stop)"
                )
            object.__setattr__(self, "part", part)
        elif any(factor.name == "part" for axis in axes for factor in axis.factors):
            raise SiteError(
                f"the axes of site {self.path!r} name parts but the site picks none",
                given=self.axes,
                mend="pass part=(start, stop)",
            )

    def view(self, x: Tensor) -> View:
        """The tensor `x` as `values [*rows, unit]` or `[*rows, unit, feature]`.

        Returns:
            values: a view of `x` where strides allow.
            rows: names of the leading axes; the dimensions of an ellipsis are `t` if there is one, else `x0`, `x1` ….
            back: takes values of the same shape to a tensor shaped like `x`; what the site leaves out is kept from `x`.

        Raises:
            SiteError: the tensor does not have the named dimensions.

        Examples:
            >>> import torch
            >>> x = torch.arange(8.0).view(1, 8)
            >>> Site("qkv", axes="b (u:2 f)", part=(0, 4)).view(x).values
            tensor([[[0., 1.],
                     [2., 3.]]])
        """
        axes = self._expand(x)
        # rows that were folded into one dimension come apart first
        shape: list[int] = []
        rows: list[str] = []
        unit_axis: _Axis | None = None
        unit_dim = 0
        for axis, size in zip(axes, x.shape, strict=True):
            if axis.holds_units:
                unit_axis, unit_dim = axis, len(shape)
                shape.append(size)
            else:
                sizes = self._sizes(axis, size)
                shape.extend(sizes)
                rows.extend(factor.name for factor in axis.factors)
        assert unit_axis is not None
        unfolded = x if len(shape) == x.dim() else x.reshape(shape)
        full = unfolded.movedim(unit_dim, -1)
        names = [factor.name for factor in unit_axis.factors]
        flat = full
        if self.part is not None and "part" not in names:
            self._check_part(full.shape[-1])
            flat = full[..., slice(*self.part)]
        sizes = self._sizes(unit_axis, flat.shape[-1])
        split = flat if len(names) == 1 else flat.unflatten(-1, sizes)
        order = sorted(range(len(names)), key=lambda i: _order(names)[names[i]])
        lead = len(rows)
        inner = split.permute(*range(lead), *(lead + i for i in order))
        values = inner
        if "part" in names:
            assert self.part is not None
            dim = lead + [names[i] for i in order].index("part")
            self._check_part(inner.shape[dim])
            values = inner.narrow(dim, self.part[0], self.part[1] - self.part[0])
            values = values.flatten(dim, dim + 1)

        def back(new: Tensor) -> Tensor:
            if "part" in names and self.part is not None:
                patched = inner.to(new.dtype).clone()
                narrow = patched.narrow(dim, self.part[0], self.part[1] - self.part[0])
                narrow.copy_(new.reshape(narrow.shape))
                new = patched
            inverse = [order.index(i) for i in range(len(names))]
            new = new.permute(*range(lead), *(lead + i for i in inverse))
            new = new if len(names) == 1 else new.flatten(-len(names))
            if self.part is not None and "part" not in names:
                whole = full.to(new.dtype).clone()
                whole[..., slice(*self.part)] = new
                new = whole
            return new.movedim(-1, unit_dim).reshape(x.shape)

        return View(values, tuple(rows), back)

    def with_tokens(self, time: int) -> Site:
        """The same site where samples and their `time` tokens lie in one dimension, time inside; only of open axes.

        Examples:
            >>> Site("shared_expert.up_proj").with_tokens(7).axes, Site("head", "b u").with_tokens(7).axes
            ('(b t:7) u', 'b u')
        """
        words = _TOKEN.findall(self.axes)
        if words[:2] != ["b", "..."] or len(words) != 3:
            return self
        return replace(self, axes=f"(b t:{time}) {words[2]}")

    def unfolded(self, time: int) -> Site:
        """The same site where `time` steps have been folded into the batch, time outside.

        Examples:
            >>> Site("conv", "b u y x").unfolded(10).axes
            '(t:10 b) u y x'
        """
        words = [f"(t:{time} b)" if word == "b" else word for word in _TOKEN.findall(self.axes)]
        named = any(factor.name == "t" for axis in _parse(self.axes) for factor in axis.factors)
        return self if named else replace(self, axes=" ".join(words))

    def units(self, x: Tensor) -> int:
        """How many units the tensor `x` holds at this site.

        Examples:
            >>> import torch
            >>> Site("attention", axes="b t (u:4 f)").units(torch.zeros(2, 3, 32))
            4
        """
        values, rows, _ = self.view(torch.empty(x.shape, device="meta"))
        return int(values.shape[len(rows)])

    @property
    def unit_axis(self) -> str:
        """The part of the axes that holds the units.

        Examples:
            >>> Site("attention", "b t (u:4 f)").unit_axis
            '(u:4 f)'
        """
        words = _TOKEN.findall(self.axes)
        return str(next(word for word, axis in zip(words, _parse(self.axes), strict=True) if axis.holds_units))

    @property
    def has_features(self) -> bool:
        """Whether each unit holds a vector of features instead of one number."""
        return any(factor.name == "f" for axis in _parse(self.axes) for factor in axis.factors)

    def to_json(self) -> dict[str, Any]:
        """A dict of plain values that `from_json` reads back.

        Examples:
            >>> Site.from_json(Site("fc", part=(0, 4)).to_json()) == Site("fc", part=(0, 4))
            True
        """
        out = asdict(self)
        out["part"] = None if self.part is None else list(self.part)
        return out

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Site:
        """The site that `to_json` wrote.

        Raises:
            FormatError: the fields are not those of a site.
        """
        known = {field.name for field in fields(cls)}
        if not isinstance(data, Mapping) or "path" not in data or not set(data) <= known:
            raise FormatError("this is not a site", given=data, expected=f"the fields {', '.join(sorted(known))}")
        given = dict(data)
        if given.get("part") is not None:
            try:
                given["part"] = tuple(given["part"])
            except TypeError:
                raise FormatError("the part of a site is two numbers", given=given["part"]) from None
        return cls(**given)

    def __repr__(self) -> str:
        kept = [f"{f.name}={value!r}" for f in fields(self)[1:] if (value := getattr(self, f.name)) != f.default]
        return f"Site({', '.join([repr(self.path), *kept])})"

    def __str__(self) -> str:
        marks = [f"leaf={self.leaf}" if self.leaf is not None else "", f"call={self.call}" * (self.call is not None)]
        marks += [f"part={self.part[0]}:{self.part[1]}" if self.part is not None else ""]
        marks += ["readout" if self.where == "readout" else ""]
        return " ".join([self.path or "(model)", f"({self.at})", f"[{self.axes}]", *filter(None, marks)])

    def __lt__(self, other: Site) -> bool:
        return self._key() < other._key()

    def _key(self) -> tuple[object, ...]:
        names = tuple((int(part), "") if part.isdigit() else (-1, part) for part in self.path.split("."))
        call = -1 if self.call is None else self.call
        return names, self.at, str(self.leaf), call, self.part or (-1, -1), self.axes, self.where

    def _expand(self, x: Tensor) -> tuple[_Axis, ...]:
        axes = _parse(self.axes)
        gaps = [i for i, axis in enumerate(axes) if axis.elided]
        if gaps:
            missing = x.dim() - len(axes) + 1
            taken = {factor.name for axis in axes for factor in axis.factors}
            names = ["t"] if missing == 1 and "t" not in taken else [f"x{i}" for i in range(missing)]
            middle = tuple(_Axis((_Factor(name, None),)) for name in names)
            axes = axes[: gaps[0]] + middle + axes[gaps[0] + 1 :] if missing >= 0 else axes
        if len(axes) != x.dim():
            raise SiteError(
                f"the tensor at site {self.path!r} does not have the axes of the site",
                given=f"shape {tuple(x.shape)}",
                expected=f"axes '{self.axes}'",
                mend="pass axes=, e.g. sites(model, pattern, axes='b t u'), or 't b u' where time comes first",
            )
        return axes

    def _sizes(self, axis: _Axis, size: int) -> list[int]:
        known = 1
        for factor in axis.factors:
            known *= factor.size or 1
        free = sum(factor.size is None for factor in axis.factors)
        if size % known or (free == 0 and size != known):
            raise SiteError(
                f"a dimension at site {self.path!r} does not split as its axes say",
                given=f"{size} numbers",
                expected=f"'{self.axes}'",
            )
        return [size // known if factor.size is None else factor.size for factor in axis.factors]

    def _check_part(self, size: int) -> None:
        if self.part is not None and self.part[1] > size:
            raise SiteError(
                f"the part of site {self.path!r} ends beyond its axis", given=self.part, expected=f"<= {size}"
            )


def _order(names: list[str]) -> dict[str, int]:
    """Units first, then parts, then features; without features the parts lead, so that they merge into the units."""
    return {"u": 0, "part": 1, "f": 2} if "f" in names else {"part": 0, "u": 1}


@lru_cache(maxsize=1024)
def _parse(text: str) -> tuple[_Axis, ...]:
    def fail(why: str) -> SiteError:
        return SiteError(f"these axes cannot be read: {why}", given=repr(text), expected="e.g. 'b ... u' or 'b u y x'")

    if not isinstance(text, str):
        raise fail("they are no text")
    axes = []
    for token in _TOKEN.findall(text):
        if token == "...":
            axes.append(_Axis(()))
            continue
        factors = []
        for word in token.strip("()").split():
            match = _FACTOR.fullmatch(word)
            if match is None:
                raise fail(f"{word!r} is no name")
            factors.append(_Factor(match[1], int(match[2]) if match[2] else None))
        if not factors:
            raise fail("a group is empty")
        if sum(factor.size is None for factor in factors) > 1:
            raise fail(f"the sizes in {token} are open; give all but one, e.g. (u:4 f)")
        axes.append(_Axis(tuple(factors)))
    names = [factor.name for axis in axes for factor in axis.factors]
    if len(set(names)) != len(names) or sum(axis.elided for axis in axes) > 1:
        raise fail("a name stands twice")
    if "u" not in names:
        raise fail("no axis is the unit axis `u`")
    for axis in axes:
        inner = {factor.name for factor in axis.factors}
        if (axis.holds_units and not inner <= {"u", "f", "part"}) or (not axis.holds_units and inner & {"f", "part"}):
            raise fail("`f` and `part` stand beside `u`, and nothing else does, e.g. (u:4 f)")
    return tuple(axes)
