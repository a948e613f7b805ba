"""Which token each row is that a mixture of experts sends to an expert.

A router hands an expert some rows `[row, feature]` of the tokens `[batch, time, feature]` that its block was called
with. The rows are exact copies, so they are found again among the block's tokens by their bits: a hash of each row
leads to the candidates, and a comparison of all bits decides. Equal tokens are told apart by their order; they are
routed alike, so nothing else could.

Axes say that a dimension holds routed rows by the name `r`: `"r u"`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from plexus.errors import ShapeError, SiteError, UnsupportedError
from plexus.units._exact import fused_experts
from plexus.units._leaf import find_input
from plexus.units._paths import find_module, walk
from plexus.units._site import Site

__all__ = ["ROUTED", "Routed", "Routes", "expert_around", "is_routed", "refuse_fused"]

ROUTED = "r u"
_INTEGER = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class Routed(NamedTuple):
    """The tokens that rows are.

    Attributes:
        token: for each row its place among the tokens of the block, `[row]`, int64 on the CPU; time runs fastest.
        batch: sequences that the block was called with.
        time: tokens of each, or None where the block was called with rows only.
    """

    token: Tensor
    batch: int
    time: int | None


class _Watch(NamedTuple):
    """One expert, and the modules whose tokens may be its rows, the likelier first."""

    expert: nn.Module
    sources: tuple[nn.Module, ...]


class Routes:
    """What the experts of one model were sent in the pass that runs."""

    def __init__(self) -> None:
        self._watches: dict[nn.Module, _Watch] = {}
        self._users: Counter[nn.Module] = Counter()
        self._sources: Counter[nn.Module] = Counter()
        self._tokens: dict[nn.Module, Tensor] = {}
        self._rows: dict[nn.Module, Routed] = {}
        self._called: set[nn.Module] = set()

    def __bool__(self) -> bool:
        return bool(self._watches)

    def watch(self, model: nn.Module, site: Site) -> nn.Module:
        """Begin to follow the rows at a site; the answer is what `unwatch` takes."""
        watch = _watch(model, site)
        self._watches[watch.expert] = watch
        self._users[watch.expert] += 1
        self._sources.update(watch.sources)
        return watch.expert

    def unwatch(self, expert: nn.Module) -> None:
        """Stop following an expert's rows, and forget them."""
        self._sources.subtract(self._watches[expert].sources)
        self._users[expert] -= 1
        if not self._users[expert]:
            del self._watches[expert], self._users[expert]
            self._rows.pop(expert, None)
        for source in [source for source, users in self._sources.items() if users <= 0]:
            del self._sources[source]
            self._tokens.pop(source, None)
            self._called.discard(source)

    def reached(self, expert: nn.Module) -> bool:
        """Whether the block of an expert was ever called."""
        return any(source in self._called for source in self._watches[expert].sources)

    def clear(self) -> None:
        """A pass is over: its tokens are let go."""
        self._tokens.clear()
        self._rows.clear()

    def before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A module is about to be called, its inputs not edited yet: an expert's rows are found among the tokens."""
        watch = self._watches.get(module)
        if watch is not None:
            if not any(source in self._tokens for source in watch.sources):  # called by itself, or again in backward
                self._rows.pop(module, None)
                return
            rows, _ = find_input(module, args, kwargs, None, type(module).__name__)
            self._rows[module] = _found(rows, [self._tokens.get(source) for source in watch.sources])

    def tokens(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A module is about to be called with edited inputs: a block's tokens are kept."""
        if self._sources.get(module, 0) > 0:
            tokens, _ = find_input(module, args, kwargs, None, type(module).__name__)
            if isinstance(tokens, Tensor) and tokens.dim() >= 2:
                self._tokens[module] = tokens.detach()
                self._called.add(module)

    def of(self, expert: nn.Module, rows: int, path: str) -> Routed:
        """The tokens of the rows that pass a module of an expert."""
        routed = self._rows.get(expert)
        if routed is None or len(routed.token) != rows:
            raise ShapeError(
                f"the module {path!r} does not see the rows that its expert was sent",
                given=f"{rows} rows",
                expected="a call within the block of the expert" if routed is None else f"{len(routed.token)} rows",
                mend="run the whole block, or say what its dimensions mean with axes=",
            )
        return routed


def is_routed(site: Site) -> bool:
    """Whether a site's axes name routed rows.

    Examples:
        >>> is_routed(Site("experts.0.down", ROUTED)), is_routed(Site("down"))
        (True, False)
    """
    return "r" in site.axes.replace("(", " ").replace(")", " ").split()


def expert_around(named: Mapping[str, nn.Module], path: str) -> tuple[str, str] | None:
    """The paths of the list of experts and of the expert that a module belongs to, or None outside of experts."""
    parts = path.split(".")
    for depth in range(1, len(parts)):
        container = named.get(".".join(parts[:depth]))
        if isinstance(container, nn.ModuleList | nn.ModuleDict) and parts[depth - 1].lower().endswith("experts"):
            return ".".join(parts[:depth]), ".".join(parts[: depth + 1])
    return None


def refuse_fused(named: Mapping[str, nn.Module], paths: Iterable[str]) -> None:
    """Raise `UnsupportedError` for modules inside fused experts: their rows are of all experts, in no order told."""
    for path in paths:
        parts = path.split(".")
        for depth in range(1, len(parts)):
            holder = named.get(".".join(parts[:depth]))
            if holder is not None and fused_experts(holder):
                raise UnsupportedError(
                    f"units of single experts cannot be reached at {path!r}: {type(holder).__name__} holds the weights "
                    "of all experts in one tensor and computes with slices of it",
                    mend="use the whole mixture (its block's output), the router, or shared experts; or a model whose "
                    "experts are a list of modules",
                )


def _watch(model: nn.Module, site: Site) -> _Watch:
    named = dict(walk(model))
    around = expert_around(named, site.path)
    if around is not None:
        container, expert = around
        outer = container.rpartition(".")[0]
        return _Watch(find_module(model, expert), (find_module(model, outer), find_module(model, container)))
    if not site.path:
        raise SiteError("routed rows need a module inside a block", given=str(site))
    return _Watch(find_module(model, site.path), (find_module(model, site.path.rpartition(".")[0]),))


def _found(rows: Any, sources: list[Tensor | None]) -> Routed:
    known = [source for source in sources if source is not None]
    if not isinstance(rows, Tensor) or rows.dim() != 2:
        shape = tuple(rows.shape) if isinstance(rows, Tensor) else type(rows).__name__
        raise ShapeError("an expert was not called with rows", given=shape, expected="[row, feature]")
    for source in known:
        token = _match(rows.detach(), source.reshape(-1, source.shape[-1]))
        if token is not None:
            lead = known[0].shape[:-1]  # the block sees the sequences, its list of experts perhaps only their tokens
            if lead.numel() == source.shape[:-1].numel() and len(lead) == 2:
                return Routed(token, int(lead[0]), int(lead[1]))
            return Routed(token, int(source.shape[:-1].numel()), None)
    raise UnsupportedError(
        "the rows that an expert was sent are not among the tokens of its block, so nobody can tell whose they are",
        given=f"{len(rows)} rows of {rows.shape[-1]} numbers",
        mend="record the output of the whole mixture instead",
    )


def _match(rows: Tensor, tokens: Tensor) -> Tensor | None:
    """For each row the token that it is a copy of, on the CPU; None if one is a copy of none."""
    if rows.shape[1] != tokens.shape[1]:
        return None
    if not len(rows):
        return torch.zeros(0, dtype=torch.int64)
    tokens = tokens.to(rows.dtype)
    bits = _INTEGER[rows.element_size()]
    mine, theirs = rows.contiguous().view(bits), tokens.contiguous().view(bits)
    keys, all_keys = _hashes(mine), _hashes(theirs)
    order, all_order = keys.argsort(stable=True), all_keys.argsort(stable=True)
    ordered, all_ordered = keys[order], all_keys[all_order]
    # the n-th row of a value is the n-th token of that value; tokens sent twice begin again
    first = torch.searchsorted(all_ordered, ordered)
    count = torch.searchsorted(all_ordered, ordered, right=True) - first
    if bool((count == 0).any()):
        return None
    nth = torch.arange(len(ordered), device=rows.device) - torch.searchsorted(ordered, ordered)
    place = first + nth % count
    token = torch.empty_like(order)
    token[order] = all_order[place]
    if not torch.equal(theirs[token], mine):
        return None
    return token.cpu()


def _hashes(bits: Tensor) -> Tensor:
    """One whole number per row that equal rows share, `[row]`."""
    generator = torch.Generator().manual_seed(0x5EED)
    factors = torch.randint(-(2**62), 2**62, (bits.shape[1],), generator=generator).to(bits.device) | 1
    return (bits.long() * factors).sum(1)
