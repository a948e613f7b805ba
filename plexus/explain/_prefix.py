"""What lies before the first patch of a pass is as in the run without patches, and need not be computed again.

A map over the layers of a transformer costs each cell a whole pass; but the blocks before the patched one see what they
saw without it. Their outputs are kept from one run, row by row, and given instead of calling them: half of all blocks,
on average, are saved. Only where that is known to be exact: one stack of blocks, each called once and in order, whose
outputs have the samples first, on a model that nothing else is attached to; and a trial from every block on must give
the logits that the whole model gives, so that blocks which read what an earlier one left behind are found out.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from plexus.errors import SiteError
from plexus.probe._batches import run
from plexus.units import Site, attach, sites
from plexus.units._dispatch import around_calls, is_attached
from plexus.units._paths import find_module

TRIAL = 2  # samples that a trial runs on
CLOSE = 1e-3  # of the largest logit: how much a trial may differ, as sums over more rows round otherwise


class Prefix:
    """The blocks of a model, and what each gave in a run without patches.

    Args:
        model: any module; one without a single stack of blocks saves nothing.
        batch: what it runs on, tensors with the samples first.
        samples: how many.
    """

    def __init__(self, model: nn.Module, batch: Any, samples: int) -> None:
        self.model, self.batch, self.samples = model, batch, samples
        self.blocks = {} if is_attached(model) or _wants_states(model, batch) else _stack(model)
        self.kept: dict[str, Any] = {}
        self._logits: Tensor | None = None

    def run(self) -> Any:
        """Run the model on the batch and keep what its blocks give; its output."""
        order: list[str] = []

        def keeping(path: str) -> Callable[[Callable[[], Any]], Any]:
            def around(proceed: Callable[[], Any]) -> Any:
                order.append(path)
                self.kept[path] = proceed()
                return self.kept[path]

            return around

        with attach(self.model, []), around_calls({module: keeping(path) for path, module in self.blocks.items()}):
            output = run(self.model, self.batch, None, None)
        self._logits = _logits(output)
        per_sample = all(_has_samples(out, self.samples) for out in self.kept.values())
        if order != list(self.blocks) or not per_sample or self._logits is None:
            self.blocks = {}
        return output

    def before(self, site: Site) -> int:
        """How many blocks lie before a site; 0 where that is not known."""
        for number, path in enumerate(self.blocks):
            if site.path == path or site.path.startswith(f"{path}."):
                return number
        return 0

    def try_out(self, counts: Sequence[int]) -> None:
        """Skip nothing from now on unless the model gives the same without so many of its first blocks."""
        rows = torch.arange(min(TRIAL, self.samples))
        for count in sorted(set(counts) - {0}):
            try:
                with self.skipping(count, rows):
                    found = _logits(run(self.model, taken(self.batch, rows, self.samples), None, None))
            except Exception:  # whatever a block raises that misses an earlier one
                found = None
            if found is None or self._logits is None or not _same(found, self._logits[: len(rows)]):
                self.blocks = {}
                return

    @contextlib.contextmanager
    def skipping(self, count: int, rows: Tensor) -> Iterator[None]:
        """Let the first `count` blocks give what they gave to these samples, `[row]`, instead of running."""
        skipped = list(self.blocks.items())[:count]

        def given(path: str) -> Callable[[Callable[[], Any]], Any]:
            return lambda _: _rows(self.kept[path], rows)

        with attach(self.model, []), around_calls({module: given(path) for path, module in skipped}):
            yield


def taken(batch: Any, index: Tensor, samples: int) -> Any:
    """The rows `index` of a batch of `samples`: of every tensor whose first dimension counts samples."""

    def take(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.index_select(0, index.to(value.device)) if value.dim() and len(value) == samples else value
        if isinstance(value, Mapping):
            return {name: take(inner) for name, inner in value.items()}
        if isinstance(value, tuple | list):
            return type(value)(take(inner) for inner in value)
        return value

    return take(batch)


def _stack(model: nn.Module) -> dict[str, nn.Module]:
    try:
        paths = [site.path for site in sites.residual(model)]
    except SiteError:
        return {}
    if len({path.rpartition(".")[0] for path in paths}) != 1:
        return {}
    return {path: find_module(model, path) for path in paths}


def _wants_states(model: nn.Module, batch: Any) -> bool:
    """Whether the output holds more of the blocks than what comes of them."""
    config = getattr(model, "config", None)
    names = ("output_hidden_states", "output_attentions", "output_router_logits")
    asked = any(batch.get(name) for name in names) if isinstance(batch, Mapping) else False
    return asked or any(getattr(config, name, False) for name in names)


def _logits(output: Any) -> Tensor | None:
    found = output if isinstance(output, Tensor) else getattr(output, "logits", None)
    return found if isinstance(found, Tensor) and found.is_floating_point() else None


def _same(one: Tensor, other: Tensor) -> bool:
    one, other = one.float(), other.float()
    within = CLOSE * float(other.abs().nan_to_num(0, 0, 0).max())
    return one.shape == other.shape and torch.allclose(one, other, rtol=0, atol=within, equal_nan=True)


def _has_samples(out: Any, samples: int) -> bool:
    """Whether a block gave tensors with the samples first, and nothing else."""
    if type(out) is tuple:
        return bool(out) and all(part is None or _has_samples(part, samples) for part in out)
    return isinstance(out, Tensor) and out.dim() > 1 and len(out) == samples


def _rows(out: Any, rows: Tensor) -> Any:
    if isinstance(out, tuple):
        return tuple(None if part is None else _rows(part, rows) for part in out)
    return out.index_select(0, rows.to(out.device))
