"""Finding sites: by name, and by what they are in the usual families of models.

The hidden units of an MLP are the *input of the down-projection*, whatever stands before it; a head is a slice of the
input of the attention's output projection. Families are recognised by names and shapes of layers, not by class.
"""

from __future__ import annotations

import contextlib
import fnmatch
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple, SupportsIndex, overload

import torch
from torch import Tensor, nn

from plexus.errors import DtypeError, ShapeError, SiteError, UnknownNameError
from plexus.units._axes import default_axes, known_axes
from plexus.units._engine import attach
from plexus.units._evaluating import evaluating
from plexus.units._exact import fused_experts
from plexus.units._families import (
    heads_into,
    is_block_stack,
    is_down_projection,
    linear_size,
    output_size,
    projections_to,
    stream_width,
)
from plexus.units._pass import Visit
from plexus.units._paths import unwrap, walk
from plexus.units._routing import refuse_fused
from plexus.units._site import Site

__all__ = ["Finder", "SiteList", "sites"]


class Found(NamedTuple):
    """What is known of a site before the model runs."""

    units: int | None
    what: str


class SiteList(list[Site]):
    """Sites in the order of the model. Printing shows each with its size and what a unit is there."""

    def __init__(self, found: Iterable[Site] | Mapping[Site, Found]) -> None:
        super().__init__(found)
        self._found: dict[Site, Found] = dict(found) if isinstance(found, Mapping) else {}

    @overload
    def __getitem__(self, index: SupportsIndex) -> Site: ...
    @overload
    def __getitem__(self, index: slice) -> SiteList: ...
    def __getitem__(self, index: SupportsIndex | slice) -> Site | SiteList:
        if isinstance(index, slice):
            return SiteList({site: self._known(site) for site in super().__getitem__(index)})
        return super().__getitem__(index)

    def __add__(self, other: Any) -> SiteList:  # type: ignore[override]
        extra = other._found if isinstance(other, SiteList) else {}
        return SiteList({site: extra.get(site) or self._known(site) for site in [*self, *other]})

    def _known(self, site: Site) -> Found:
        return self._found.get(site, Found(None, "unit"))

    def __repr__(self) -> str:
        if not self:
            return "no sites"
        known = [self._known(site) for site in self]
        cells = [("site", "units", "a unit is")]
        cells += [(str(s), "?" if k.units is None else str(k.units), k.what) for s, k in zip(self, known, strict=True)]
        wide = [max(len(row[i]) for row in cells) for i in range(2)]
        lines = [f"{site:<{wide[0]}}  {count:>{wide[1]}}  {what}" for site, count, what in cells]
        if len(lines) > 25:
            lines[13:-12] = [f"… {len(lines) - 25} more"]
        return "\n".join(lines)


class Finder:
    """Finds sites in a model; `sites` is the one instance.

    Called with a pattern, it gives a site for every module whose name matches (shell wildcards, `*` also crosses dots).
    What only holds other modules and has no axes of its own, as the whole of a CNN, is left out where others match.
    Names are those of `named_modules` with the wrappers of torch.compile, data parallelism and PEFT left out; a module
    with several names is found under each.

    Args:
        model: any module.
        pattern: e.g. `"encoder.*.fc1"`.
        **fields: fields of `Site` other than the path; axes default to what the module is known to put out.

    Raises:
        UnknownNameError: nothing matches; with the nearest names.
        SiteError: the axes cannot be told.

    Examples:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> sites(model, "1")
        site                  units  a unit is
        1 (output) [b ... u]      ?  output of ReLU
    """

    def __call__(self, model: nn.Module, pattern: str, **fields: Any) -> SiteList:
        if not isinstance(pattern, str):
            raise DtypeError("a pattern of names is a text", given=repr(pattern), expected="e.g. 'encoder.*.fc1'")
        named = dict(walk(model))
        hits = [(name, module) for name, module in named.items() if fnmatch.fnmatchcase(name, pattern)]
        if not hits:
            names = [name for name in named if name]
            stars = {re.sub(r"\b\d+\b", "*", name) for name in names}
            raise UnknownNameError.among("module that matches", pattern, [*names, *stars])
        found: dict[Site, Found] = {}
        unclear: list[SiteError] = []
        for name, module in hits:
            try:
                site = _site(named, name, **fields)
            except SiteError as error:
                if "axes" in fields or not module._modules:
                    raise
                unclear.append(error)
                continue
            side = fields.get("at", "output")
            found[site] = Found(
                output_size(module) if site.at == "output" else None, f"{side} of {type(module).__name__}"
            )
        if not found:
            raise unclear[0]
        return SiteList(found)

    def mlp(self, model: nn.Module) -> SiteList:
        """The hidden units of every MLP: the input of its down-projection.

        Knows multilayer perceptrons in a `Sequential` or with numbered layers (`fc1`, `fc2`, …), torch's transformer
        layers and the usual families of transformers.

        Each expert of a mixture is an MLP of its own where experts are modules; where all are one fused tensor they
        are left out with a warning.

        Raises:
            SiteError: no MLP was recognised.
            UnsupportedError: every MLP is a mixture of fused experts.

        Examples:
            >>> sites.mlp(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)))
            site                 units  a unit is
            2 (input) [b ... u]      8  hidden unit of an MLP
        """
        named = dict(walk(model))
        down = [name for name in named if is_down_projection(named, name)]
        fused = [name for name, module in named.items() if fused_experts(module)]
        if fused and not down:
            refuse_fused(named, [f"{fused[0]}.*"])
        if fused:
            warnings.warn(
                f"the hidden units of routed experts are not among these sites: {fused[0]} and others hold the weights "
                "of all experts in one tensor",
                stacklevel=2,
            )
        if not down:
            raise SiteError(
                "no MLP was recognised in this model",
                given=type(unwrap(model)).__name__,
                mend="name the down-projections: sites(model, '*.down', at='input')",
            )
        found = {}
        for name in down:
            site = _site(named, name, at="input")
            size = linear_size(named[name])
            found[site] = Found(size and size[0], "hidden unit of an MLP")
        return SiteList(found)

    def projections(self, model: nn.Module) -> SiteList:
        """The outputs of all projections of every MLP: gate, up and down, before any activation.

        Those of gate and up are what the hidden units of `mlp` are made of; those of down are directions of the
        residual stream. Gate and up of a fused projection are one site, the gate first.

        Raises:
            SiteError: no MLP was recognised.

        Examples:
            >>> sites.projections(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)))
            site                  units  a unit is
            0 (output) [b ... u]      8  output of a projection into an MLP
            2 (output) [b ... u]      2  output of a projection out of an MLP
        """
        named = dict(walk(model))
        found: dict[Site, Found] = {}
        for hidden in self.mlp(model):
            for name in (*projections_to(named, hidden.path), hidden.path):
                size, way = linear_size(named[name]), "out of" if name == hidden.path else "into"
                found.setdefault(_site(named, name), Found(size and size[1], f"output of a projection {way} an MLP"))
        return SiteList(found)

    def heads(self, model: nn.Module) -> SiteList:
        """The heads of every attention layer: slices of the input of its output projection, `[..., head, feature]`.

        Raises:
            SiteError: no attention was recognised, or only torch's `MultiheadAttention`, whose heads never leave one
                fused call.

        Examples:
            >>> from transformers import GPT2Config, GPT2Model
            >>> model = GPT2Model(GPT2Config(n_embd=16, n_layer=1, n_head=4))
            >>> print(sites.heads(model)[0])
            h.0.attn.c_proj (input) [b ... (u:4 f)]
        """
        named = dict(walk(model))
        found = {}
        for name, module in named.items():
            count, size = heads_into(named, name), linear_size(module)
            if count is not None and size is not None:
                axes = default_axes(named, name).rsplit("u", 1)[0] + f"(u:{count} f)"
                features = size[0] // count
                found[Site(name, axes, at="input")] = Found(count, f"attention head of {features} features")
        if not found:
            fused = any(isinstance(module, nn.MultiheadAttention) for module in named.values())
            raise SiteError(
                "no attention heads were recognised in this model",
                given=type(unwrap(model)).__name__,
                mend="torch's MultiheadAttention never shows its heads; use another attention"
                if fused
                else "name the output projections: sites(model, '*.out', at='input', axes='b t (u:4 f)')",
            )
        return SiteList(found)

    def residual(self, model: nn.Module) -> SiteList:
        """The residual stream after every block of a transformer: the output of each member of its stack of blocks.

        Raises:
            SiteError: no stack of blocks was recognised.
        """
        named = dict(walk(model))
        stacks = [
            name for name, module in named.items() if isinstance(module, nn.ModuleList) and is_block_stack(module)
        ]
        outer = [name for name in stacks if not any(name.startswith(f"{other}.") for other in stacks)]
        found = {}
        for stack in outer:
            for name, module in named.items():
                if name.rpartition(".")[0] == stack and name != stack:
                    found[_site(named, name)] = Found(stream_width(module), "direction of the residual stream")
        if not found:
            raise SiteError(
                "no stack of residual blocks was recognised in this model",
                given=type(unwrap(model)).__name__,
                mend="name the blocks: sites(model, 'layers.*', axes='b t u')",
            )
        return SiteList(found)

    def norms(self, model: nn.Module) -> SiteList:
        """The outputs of the norms of every block of a transformer: what its attention and its MLP read.

        Norms within attention (of queries and keys) and the one after the last block are left out.

        Raises:
            SiteError: no stack of blocks was recognised, or its blocks have no norms.

        Examples:
            >>> from transformers import GPT2Config, GPT2Model
            >>> print([site.path for site in sites.norms(GPT2Model(GPT2Config(n_embd=16, n_layer=1, n_head=4)))])
            ['h.0.ln_1', 'h.0.ln_2']
        """
        blocks = [site.path for site in self.residual(model)]
        found = {}
        for name, module in walk(model):
            block = name.rpartition(".")[0]
            if block in blocks and "norm" in type(module).__name__.lower():
                site = Site(name, next(other.axes for other in self.residual(model) if other.path == block))
                found[site] = Found(
                    output_size(module) or stream_width(module), f"feature after {type(module).__name__}"
                )
        if not found:
            raise SiteError("the blocks of this model have no norms", given=type(unwrap(model)).__name__)
        return SiteList(found)

    def spiking(self, model: nn.Module) -> SiteList:
        """The neurons of every layer that edits reach inside its loop: our own neuron layers with a port.

        Raises:
            SiteError: the model has none.
        """
        named = dict(walk(model))
        found: dict[Site, Found] = {}
        layers: list[str] = []
        for name, module in named.items():
            within = any(name.startswith(f"{outer}.") for outer in layers)  # one set of units, wrapped
            if hasattr(module, "port") and isinstance(getattr(module, "axes", None), str) and not within:
                layers.append(name)
                site = _site(named, name)
                found[site] = Found(
                    output_size(module) if site.at == "output" else None, f"neuron of {type(module).__name__}"
                )
        if not found:
            raise SiteError("this model has no neuron layers of ours", given=type(unwrap(model)).__name__)
        return SiteList(found)

    def measure(self, model: nn.Module, example: Any, at: Iterable[Site] | None = None) -> dict[Site, int]:
        """How many units each site holds, by running one example without leaving a trace on the model.

        Args:
            model: any module.
            example: a tensor, or a tuple or mapping of the model's arguments.
            at: the sites; None is the output of every module that the example reaches and whose axes are known.

        Raises:
            SiteNotReached: the example did not come by a site of `at`.

        Examples:
            >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU())
            >>> sites.measure(model, torch.zeros(1, 4), at=[Site("1")])
            {Site('1'): 8}
        """
        named = dict(walk(model))
        asked = (
            list(at)
            if at is not None
            else [_site(named, name) for name, module in named.items() if known_axes(module) is not None]
        )
        probes = [_Ruler(site) for site in asked]
        with _untouched(model), torch.no_grad(), attach(model, probes, all_reached=at is not None):
            _run(model, example)
        return {probe.site: probe.units for probe in probes if probe.units is not None}


class _Ruler:
    """Notes how many units pass by."""

    records = True

    def __init__(self, site: Site) -> None:
        self.site = site
        self.units: int | None = None

    def __call__(self, values: Tensor, visit: Visit) -> None:
        units = int(values.shape[len(visit.rows)])
        if self.units is not None and self.units != units:
            raise ShapeError(
                f"the number of units at site {self.site.path!r} changes from call to call",
                given=f"{self.units}, then {units}",
                mend="choose one call of the module with call=",
            )
        self.units = units


def _site(named: Mapping[str, nn.Module], name: str, **fields: Any) -> Site:
    if "axes" not in fields:
        fields["axes"] = default_axes(named, name, fields.get("at", "output"))
    return Site(name, **fields)


def _run(model: nn.Module, example: Any) -> None:
    if isinstance(example, Mapping):
        model(**example)
    elif isinstance(example, tuple | list):
        model(*example)
    else:
        model(example)


@contextlib.contextmanager
def _untouched(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; afterwards training flags, buffers and the random state are what they were."""
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    devices = sorted({buffer.device.index or 0 for buffer in model.parameters() if buffer.device.type == "cuda"})
    try:
        with torch.random.fork_rng(devices), evaluating(model):
            yield
    finally:
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)


sites = Finder()
