"""Sets of units that know their universe.

A set holds one boolean mask per site, so the number of units of each site is part of it and complement is defined:

    a | b    a & b    a - b    a ^ b    ~a    a <= b    len(a)    (site, index) in a

The laws of Boolean algebra hold among sets over the same sites, which is what one recording gives. Sets over different
sites of one model may be joined; what else is done with a complement there first has to say its universe (`over`).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from plexus.errors import DtypeError, FormatError, RangeError, ShapeError, SiteError
from plexus.units._draws import random_order
from plexus.units._files import read_json, unwrap, wrap, write_json
from plexus.units._paths import unwrap as inside
from plexus.units._paths import walk
from plexus.units._rows import counted
from plexus.units._site import Site

KIND, VERSION = "neurons", 1


def fingerprint(model: nn.Module) -> str:
    """A short name for the build of a model: names and classes of its modules, names and shapes of its parameters.

    Training the model does not change it, nor do the wrappers of torch.compile, data parallelism and PEFT; another
    architecture or width does.

    Examples:
        >>> fingerprint(torch.nn.Linear(2, 3)) == fingerprint(torch.nn.Linear(2, 3))
        True
        >>> fingerprint(torch.nn.Linear(2, 3)) == fingerprint(torch.nn.Linear(2, 4))
        False
    """
    digest = hashlib.sha256()
    for path, module in walk(model):
        digest.update(f"|{path}:{type(module).__qualname__}".encode())
        for name, value in module._parameters.items():
            if value is not None:
                shape = "lazy" if nn.parameter.is_lazy(value) else tuple(value.shape)
                digest.update(f"|{name}:{shape}".encode())
    return f"{type(inside(model)).__name__}-{digest.hexdigest()[:16]}"


class Neurons:
    """A set of units of one model.

    Args:
        masks: for each site a boolean `[unit]`, true for the members. The masks are copied.
        model: fingerprint of the model that the sites belong to (`None`: not known, mixes with any).

    Raises:
        DtypeError: if a mask is not a boolean tensor.
        ShapeError: if a mask is not one-dimensional or has no units.

    Examples:
        >>> hidden = Site("fc1", "b u")
        >>> a = Neurons({hidden: torch.tensor([True, False, True, False])})
        >>> b = Neurons.of({hidden: 4}, {hidden: [0, 1]})
        >>> sorted(index for _, index in a | b), len(~a), (hidden, 3) in a
        ([0, 1, 2], 2, False)
        >>> ~(a | b) == ~a & ~b
        True
    """

    __slots__ = ("_masks", "_model", "_open")

    def __init__(self, masks: Mapping[Site, Tensor], model: str | None = None) -> None:
        self._masks = {site: _mask(site, mask) for site, mask in masks.items()}
        self._model = model
        self._open = False  # true of a complement: what lies outside its sites is then in doubt

    @classmethod
    def of(
        cls, sizes: Mapping[Site, int], units: Mapping[Site, Iterable[int]] | None = None, model: str | None = None
    ) -> Neurons:
        """The set with the given `units` (indices per site; none by default) over sites with the given `sizes`.

        Raises:
            SiteError: if `units` names a site that `sizes` lacks.
            RangeError: if an index lies outside its site.
        """
        masks = {site: torch.zeros(size, dtype=torch.bool) for site, size in sizes.items()}
        for site, indices in (units or {}).items():
            if site not in masks:
                raise SiteError("units were given for a site whose size is not known", given=str(site))
            for index in indices:
                if not 0 <= int(index) < sizes[site]:
                    raise RangeError(f"site {site} has no unit {index}", expected=f"0 to {sizes[site] - 1}")
                masks[site][int(index)] = True
        return cls(masks, model)

    @property
    def sites(self) -> tuple[Site, ...]:
        """The sites of the universe, also those without a member."""
        return tuple(self._masks)

    @property
    def sizes(self) -> dict[Site, int]:
        """The universe: the number of units of each site."""
        return {site: len(mask) for site, mask in self._masks.items()}

    @property
    def counts(self) -> dict[Site, int]:
        """The number of members at each site."""
        return {site: int(mask.sum()) for site, mask in self._masks.items()}

    @property
    def model(self) -> str | None:
        """Fingerprint of the model, if known."""
        return self._model

    def mask(self, site: Site) -> Tensor:
        """A copy of the boolean mask `[unit]` of one site."""
        return self._at(site).clone()

    def indices(self, site: Site) -> Tensor:
        """The members at one site, int64, ascending."""
        return self._at(site).nonzero().squeeze(1)

    def at(self, *sites: Site) -> Neurons:
        """The same set seen over some of its sites only."""
        return self._like({site: self._at(site) for site in sites})

    def over(self, universe: Neurons | Mapping[Site, int]) -> Neurons:
        """The same members over a larger universe (sizes of sites, or another set's); the new sites hold no member.

        Raises:
            ShapeError: if a shared site has another size there.
            SiteError: if the universe lacks a site of this set.
        """
        sizes = universe.sizes if isinstance(universe, Neurons) else dict(universe)
        if isinstance(universe, Neurons):
            self._same_model(universe)
        missing = [str(site) for site in self._masks if site not in sizes]
        if missing:
            raise SiteError("the larger universe lacks sites of this set", given=", ".join(missing))
        self._same_sizes(sizes)
        return Neurons(
            {site: self._masks.get(site, torch.zeros(n, dtype=torch.bool)) for site, n in sizes.items()}, self._model
        )

    def random_like(self, generator: torch.Generator, *, exclude: Neurons | bool = False) -> Neurons:
        """As many units of each site, drawn at random without replacement.

        Args:
            generator: where the draw comes from.
            exclude: `True` draws outside this very set, a set of neurons draws outside that one.

        Raises:
            DtypeError: if `generator` is not a `torch.Generator`.
            RangeError: if a site has too few other units.

        Examples:
            >>> a = Neurons.of({Site("fc1", "b u"): 10}, {Site("fc1", "b u"): [1, 2, 3]})
            >>> other = a.random_like(torch.Generator().manual_seed(0), exclude=True)
            >>> len(other), len(other & a)
            (3, 0)
        """
        if not isinstance(generator, torch.Generator):
            raise DtypeError("a draw needs a torch.Generator", given=type(generator).__name__)
        banned = self if exclude is True else exclude
        if isinstance(banned, Neurons):
            self._same_model(banned)
            self._same_sizes(banned.sizes)
        drawn: dict[Site, Tensor] = {}
        for site, mask in self._masks.items():
            count = int(mask.sum())
            allowed = torch.ones_like(mask)
            if isinstance(banned, Neurons) and site in banned._masks:
                allowed = ~banned._masks[site]
            pool = allowed.nonzero().squeeze(1)
            if count > len(pool):
                raise RangeError(
                    f"too few units at {site} to draw a matched random set",
                    given=f"{count} to draw, {len(pool)} of {len(mask)} allowed",
                    mend="choose fewer units, or draw without excluding",
                )
            order = random_order(len(pool), generator)
            drawn[site] = torch.zeros_like(mask)
            drawn[site][pool[order[:count]]] = True
        return Neurons(drawn, self._model)

    def to_json(self) -> dict[str, Any]:
        """A JSON object with a header; `from_json` reads it back."""
        entries = [
            {"site": site.to_json(), "size": len(mask), "units": self.indices(site).tolist()}
            for site, mask in self._masks.items()
        ]
        return wrap(KIND, VERSION, {"model": self._model, "complement": self._open, "sites": entries})

    @classmethod
    def from_json(cls, document: Mapping[str, Any] | str) -> Neurons:
        """The set in a JSON object, or in the text of one.

        Raises:
            FormatError: if it is truncated, of another version or not a set of neurons.
        """
        return cls._from_body(unwrap(document, KIND, VERSION))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the set as a JSON file.

        Raises:
            UnwritableError: if the place cannot be written.
        """
        write_json(path, KIND, VERSION, self.to_json()["body"])

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Neurons:
        """Read a set that `save` wrote.

        Raises:
            FormatError: if the file is truncated, of another version or not a set of neurons.
        """
        return cls._from_body(read_json(path, KIND, VERSION))

    @classmethod
    def _from_body(cls, body: Any) -> Neurons:
        try:
            sizes = {Site.from_json(entry["site"]): int(entry["size"]) for entry in body["sites"]}
            units = {Site.from_json(entry["site"]): entry["units"] for entry in body["sites"]}
            neurons = cls.of(sizes, units, body["model"])
            neurons._open = bool(body["complement"])
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise FormatError("this set of neurons is damaged", given=f"{type(error).__name__}: {error}") from error
        return neurons

    def __or__(self, other: Neurons) -> Neurons:
        return self._combine(other, torch.logical_or, joins=True)

    def __and__(self, other: Neurons) -> Neurons:
        return self._combine(other, torch.logical_and)

    def __sub__(self, other: Neurons) -> Neurons:
        return self._combine(other, lambda a, b: a & ~b)

    def __xor__(self, other: Neurons) -> Neurons:
        return self._combine(other, torch.logical_xor)

    def __invert__(self) -> Neurons:
        result = self._like({site: ~mask for site, mask in self._masks.items()})
        result._open = not self._open
        return result

    def __le__(self, other: Neurons) -> bool:
        if not isinstance(other, Neurons):
            return NotImplemented
        return len(self - other) == 0

    def __ge__(self, other: Neurons) -> bool:
        if not isinstance(other, Neurons):
            return NotImplemented
        return other <= self

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Neurons):
            return NotImplemented
        return (
            (self._model is None or other._model is None or self._model == other._model)
            and self._masks.keys() == other._masks.keys()
            and all(torch.equal(mask, other._masks[site]) for site, mask in self._masks.items())
        )

    def __hash__(self) -> int:
        return hash(frozenset((site, bytes(mask.tolist())) for site, mask in self._masks.items()))

    def __len__(self) -> int:
        return sum(self.counts.values())

    def __contains__(self, unit: object) -> bool:
        if not (isinstance(unit, tuple) and len(unit) == 2):
            raise DtypeError("membership is asked of one unit", given=unit, expected="(site, index)")
        site, index = unit
        mask = self._masks.get(site)
        return mask is not None and 0 <= index < len(mask) and bool(mask[index])

    def __iter__(self) -> Iterator[tuple[Site, int]]:
        for site in self._masks:
            for index in self.indices(site).tolist():
                yield site, index

    def __repr__(self) -> str:
        units, sites = counted(sum(self.sizes.values()), "unit"), counted(len(self._masks), "site")
        lines = [f"Neurons: {len(self)} of {units} at {sites}"]
        filled = {site: count for site, count in self.counts.items() if count}
        for site, count in list(filled.items())[:12]:
            chosen = ", ".join(map(str, self.indices(site)[:8].tolist())) + (", …" if count > 8 else "")
            lines.append(f"  {site}: {count} of {len(self._masks[site])} ({chosen})")
        if len(filled) > 12:
            lines.append(f"  … and {len(filled) - 12} sites more")
        return "\n".join(lines)

    def _at(self, site: Site) -> Tensor:
        if site not in self._masks:
            raise SiteError(
                "this set does not cover the site",
                given=str(site),
                expected=", ".join(map(str, list(self._masks)[:8])) or "a set with sites",
            )
        return self._masks[site]

    def _like(self, masks: Mapping[Site, Tensor]) -> Neurons:
        result = Neurons(masks, self._model)
        result._open = self._open
        return result

    def _combine(
        self, other: Neurons, operation: Callable[[Tensor, Tensor], Tensor], *, joins: bool = False
    ) -> Neurons:
        if not isinstance(other, Neurons):
            return NotImplemented
        self._same_model(other)
        self._same_sizes(other.sizes)
        alike = self._masks.keys() == other._masks.keys()
        if not alike and not joins and (self._open or other._open):
            raise SiteError(
                "a complement is taken within its own sites, and these two sets have different ones",
                given=f"{len(self._masks)} sites and {len(other._masks)} sites",
                mend="extend the set before taking the complement: ~a.over(b)",
            )
        sizes = {**self.sizes, **other.sizes}
        empty = {site: torch.zeros(n, dtype=torch.bool) for site, n in sizes.items()}
        masks = {s: operation(self._masks.get(s, none), other._masks.get(s, none)) for s, none in empty.items()}
        result = Neurons(masks, self._model if self._model is not None else other._model)
        result._open = alike and bool(operation(torch.tensor(self._open), torch.tensor(other._open)))
        return result

    def _same_model(self, other: Neurons) -> None:
        if self._model is not None and other._model is not None and self._model != other._model:
            raise SiteError(
                "sets of units of different models do not mix",
                given=f"{self._model} and {other._model}",
                mend="choose both sets on one model",
            )

    def _same_sizes(self, sizes: Mapping[Site, int]) -> None:
        for site, mask in self._masks.items():
            if sizes.get(site, len(mask)) != len(mask):
                raise ShapeError(
                    f"the two sets disagree on the size of {site}, so they are of different models",
                    given=f"{len(mask)} units and {sizes[site]} units",
                )


def _mask(site: Site, mask: Tensor) -> Tensor:
    if not isinstance(site, Site):
        raise DtypeError("the keys of masks are sites", given=type(site).__name__, expected="Site")
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        given = str(mask.dtype) if isinstance(mask, Tensor) else type(mask).__name__
        raise DtypeError(
            f"the mask of {site} is not boolean", given=given, expected="a bool tensor [unit]", mend="Neurons.of(...)"
        )
    if mask.dim() != 1 or len(mask) == 0:
        raise ShapeError(
            f"the mask of {site} has the wrong shape", given=tuple(mask.shape), expected="[unit], not empty"
        )
    return mask.detach().cpu().clone()
