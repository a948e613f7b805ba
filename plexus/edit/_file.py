"""Edits as files: safetensors with a JSON header, never pickled."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, get_args

from torch import Tensor

from plexus.edit._edit import Edit
from plexus.edit._numbers import Numbers
from plexus.edit._rows import Source
from plexus.edit._step import NAMES, Step
from plexus.errors import DtypeError, FormatError
from plexus.probe._collect import Positions
from plexus.units import Neurons, Site
from plexus.units._files import read_tensors, write_tensors

__all__ = ["load", "save"]

KIND, VERSION = "edit", 1
_SOURCE = ("values", "sample", "position", "call")
_NUMBERS: dict[str, tuple[set[str], ...]] = {
    "scale": ({"factor"},),
    "clamp": ({"value"}, {"low"}, {"high"}, {"low", "high"}),
    "replace": ({"value"},),
    "add": ({"amount"}, {"share"}),
    "patch": (set(),),
    "rotate": ({"angle"},),
    "turn": ({"angle"}, {"angle", "threshold"}),
    "choose per token": ({"amount", "weight", "bias"}, {"share", "weight", "bias"}),
    "choose per sample": ({"amount", "weight", "bias"}, {"share", "weight", "bias"}),
}
_ALONG = {"rotate", "turn", "choose per token", "choose per sample"}  # these need directions


def save(edit: Edit, path: str | os.PathLike[str]) -> Path:
    """Write an edit as one safetensors file: units, operation, numbers, fingerprint of the model it was made for.

    Raises:
        UnwritableError: the place cannot be written; nothing is left half-written.

    Examples:
        >>> import tempfile
        >>> from plexus import edit
        >>> cut = edit.scale(Neurons.of({Site("0"): 2}, {Site("0"): [1]}), 0.0)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     edit.load(edit.save(cut, f"{folder}/cut.safetensors"))
        Edit: scale 1 unit at 1 site
    """
    if not isinstance(edit, Edit):
        raise DtypeError("only an edit is saved as one", given=type(edit).__name__)
    tensors: dict[str, Tensor] = {}
    steps = []
    for index, step in enumerate(edit.steps):
        sites = list(step.neurons.sites)
        numbers = {}
        for name, number in step.numbers.items():
            numbers[name] = number.compact
            for site, value in number.values.items():
                tensors[f"{index}/{name}/{sites.index(site)}"] = value
        for site, rows in (step.basis or {}).items():
            tensors[f"{index}/basis/{sites.index(site)}"] = rows
        for site, source in (step.source or {}).items():
            for name in _SOURCE:
                tensors[f"{index}/source.{name}/{sites.index(site)}"] = getattr(source, name)
        steps.append(
            {
                "operation": step.name,
                "positions": step.positions,
                "neurons": step.neurons.to_json(),
                "numbers": numbers,
                "basis": step.basis is not None,
            }
        )
    return write_tensors(path, KIND, VERSION, {"model": edit.model, "steps": steps}, tensors)


def load(path: str | os.PathLike[str]) -> Edit:
    """Read an edit that `save` wrote. The model that it is then used on must have the fingerprint noted in it.

    Raises:
        FormatError: the file is truncated, of another version, or not an edit.
        UnknownNameError: there is no such file.
    """
    body, tensors = read_tensors(path, KIND, VERSION)
    try:
        steps = tuple(_step(index, entry, tensors) for index, entry in enumerate(body["steps"]))
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise FormatError("this edit is damaged", given=f"{path}: {type(error).__name__}: {error}") from error
    if not steps:
        raise FormatError("this edit has no operation", given=path)
    return Edit(steps)


def _step(index: int, entry: Any, tensors: dict[str, Tensor]) -> Step:
    if entry["operation"] not in NAMES or entry["positions"] not in get_args(Positions):
        raise FormatError("this edit does what is not known here", given=f"{entry['operation']}, {entry['positions']}")
    neurons = Neurons.from_json(entry["neurons"])
    sites = neurons.sites

    def at(name: str) -> dict[Site, Tensor]:
        found = {}
        for key, value in tensors.items():
            number, kind, place = key.split("/")
            if (number, kind) == (str(index), name):
                found[sites[int(place)]] = value
        chosen = {site for site, count in neurons.counts.items() if count}
        if set(found) != chosen:
            raise FormatError("this edit lacks numbers for some of its units", given=name)
        return found

    numbers = {name: Numbers(at(name), bool(compact)) for name, compact in entry["numbers"].items()}
    source = None
    if entry["operation"] == "patch":
        columns = {name: at(f"source.{name}") for name in _SOURCE}
        source = {site: Source(*(columns[name][site] for name in _SOURCE)) for site in columns["values"]}
    basis = at("basis") if entry["basis"] else None
    step = Step(entry["operation"], neurons, numbers, entry["positions"], basis, source)
    if not _fits(step):
        raise FormatError("the numbers of this edit do not fit its units", given=repr(Edit((step,))))
    return step


def _fits(step: Step) -> bool:
    """Whether the numbers are those that the operation takes, as many as there are units."""
    sizes, counts = step.neurons.sizes, step.neurons.counts
    directions = {site: len(rows) for site, rows in (step.basis or {}).items()}
    whole = all(
        rows.dim() == 2 and rows.shape[1] == sizes[site] and bool(rows.isfinite().all())
        for site, rows in (step.basis or {}).items()
    )
    for number in step.numbers.values():
        for site, value in number.values.items():
            units = counts[site] if number.compact else directions.get(site, sizes[site])
            whole &= value.dim() == 0 or (value.dim() < 3 and len(value) == units)
            whole &= value.is_floating_point() and not bool(value.isnan().any())
    for site, source in (step.source or {}).items():
        columns = source.sample, source.position, source.call
        whole &= source.values.dim() in (2, 3) and source.values.shape[1] == sizes[site]
        whole &= all(column.dim() == 1 and len(column) == len(source.values) for column in columns)
        whole &= not any(column.is_floating_point() for column in columns) and not bool((source.sample < 0).any())
    whole &= step.basis is not None or not (step.name in _ALONG or "share" in step.numbers)
    whole &= step.name not in ("rotate", "turn") or all(count == 2 for count in directions.values())
    return whole and set(step.numbers) in _NUMBERS[step.name]
