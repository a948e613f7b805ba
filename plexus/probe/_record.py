"""Recording what units do while a model runs, without changing the model.

The model runs in evaluation mode without gradients; values are copied the moment they exist; training flags, buffers,
tensors kept as attributes and the random state are put back, after errors too. Padding is dropped by the mask of the
site's own stream of tokens.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from plexus.errors import (
    DtypeError,
    RangeError,
    ShapeError,
    SiteError,
    UnknownNameError,
    UnsupportedError,
)
from plexus.probe._batches import Forward, each_batch, labels_in, refuse_nan, run, sample_counts
from plexus.probe._collect import POSITIONS, Collector, Positions
from plexus.probe._progress import length, tracked
from plexus.probe._quiet import quiet, state_kept
from plexus.probe._sizes import count_of
from plexus.probe._store import Store
from plexus.probe._taps import Ending, Look, PassEnded, Slope
from plexus.units import Recording, Site, Table, attach, fingerprint
from plexus.units._recording import Labels, check_labels
from plexus.units._rows import How

BUDGET = 2 * 2**30

Loss = Callable[[Any, Any], Tensor]


def record(
    model: nn.Module,
    batches: Any,
    at: Site | Iterable[Site],
    *,
    pool: How | None = None,
    by: Sequence[str] = ("sample",),
    positions: Positions = "all",
    labels: Labels | None = None,
    grad: Loss | None = None,
    forward: Forward | None = None,
    generate: Mapping[str, Any] | bool | None = None,
    before_batch: Callable[[nn.Module], object] | None = None,
    stop_early: bool = False,
    budget: int | None = BUDGET,
    spill: str | os.PathLike[str] | None = None,
    nonfinite: Literal["refuse", "keep"] = "refuse",
    progress: bool | None = None,
) -> Recording:
    """Run a model over batches and record the values of units.

    Args:
        model: any module; it is as before when this returns.
        batches: one tensor, one mapping (passed by keyword), or an iterable of batches: tensors, mappings, or tuples of
            which the model gets as many leading elements as its `forward` requires and one more tensor is its labels.
        at: the site or sites.
        pool: reduce the rows of each sample at once ("last", "first", "mean", "sum", "max", "min"); None keeps all.
        by: columns of the table that pooling keeps apart.
        positions: which tokens to keep: all, the prompt's, the generated ones, or the last real one of each pass.
        labels: `[sample, …]` for all samples, or several by name.
        grad: a loss `(output, batch) -> scalar`; its gradients at the sites are recorded instead of the values.
        forward: how to run the model on a batch, `(model, batch) -> output`, where a plain call is not it.
        generate: run `model.generate` with these arguments (`True`: with none) token by token.
        before_batch: called with the model before each batch. Every batch starts from the buffers and tensor attributes
            that the model has now; this is for networks that keep state elsewhere.
        stop_early: end each pass after its last site, so that what lies behind is not computed. The first batch runs
            whole and shows how often each site is visited: only for models that do so equally often in every batch.
        budget: bytes of rows held in memory; beyond it, rows go to disk. None: no limit.
        spill: a new folder for the rows; they then go there from the start, and stay. Without it rows over the budget
            go to a temporary folder that lives as long as the recording.
        nonfinite: "refuse" raises on NaN and infinity, "keep" records them.
        progress: show a progress line (`None`: on a terminal, when it takes longer). What will not fit into the budget
            is said on stderr when the first batch has shown its size, unless this is False; `estimate` says it before.

    Returns:
        A `Recording`; `record.labels` are the labels given, or those that came with the batches.

    Raises:
        ShapeError: no batches, an empty one, one of a shape that the model does not take, labels that do not match the
            samples, sites that disagree on samples.
        RangeError: NaN in a batch, NaN or infinity at a site.
        SiteError: no site, or one that the model does not have; `SiteNotReached` for one that it never came by.
        DeviceError, DtypeError: the batch lies elsewhere or is of another dtype than the model.
        UnsupportedError: gradients of generation; `stop_early` with either of them, which need the whole pass.

    Examples:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> hidden = Site("1", "b u")
        >>> rec = record(model, torch.randn(16, 4), hidden)
        >>> rec[hidden].shape
        torch.Size([16, 8])
        >>> slope = record(model, torch.randn(16, 4), hidden, grad=lambda output, batch: output[:, 0].sum())
        >>> torch.equal(slope[hidden][0], model[2].weight[0])
        True
    """
    options = Options(
        sites=_sites(at),
        pool=pool,
        by=tuple(by),
        positions=positions,
        grad=grad,
        forward=forward,
        generate=_generation(model, generate, grad),
        before_batch=before_batch,
        ending=_ending(stop_early, grad, generate),
        finite=_finite(nonfinite),
    )
    if budget is not None and (isinstance(budget, bool) or not isinstance(budget, int) or budget < 1):
        raise RangeError("the budget is a number of bytes", given=budget, expected="a positive int, or None")
    limit = None if labels is None else _count(labels)
    store = Store(options.sites, pool, fingerprint(model), budget, spill)
    samples, seen = 0, []
    with store, quiet(model, grad=grad is not None), _Session(model, options) as session:
        for number, batch in enumerate(tracked(each_batch(batches), "recording", length(batches), progress)):
            values, table, count = session.run(batch, number, samples)
            store.add(values, table)
            if number == 0 and progress is not False:
                store.foresee(count_of(batches))
            seen.append(labels_in(model, batch, count) if labels is None else None)
            samples += count
            if limit is not None and samples > limit:
                check_labels(labels, samples)
        found = [label for label in seen if label is not None]
        if labels is None and seen and len(found) == len(seen):
            labels = torch.cat(found)
        checked = check_labels(labels, samples)
    with torch.inference_mode(False):
        return store.close(samples, checked)


def stream(
    model: nn.Module,
    batches: Any,
    at: Site | Iterable[Site],
    *,
    pool: How | None = None,
    by: Sequence[str] = ("sample",),
    positions: Positions = "all",
    labels: Labels | None = None,
    grad: Loss | None = None,
    forward: Forward | None = None,
    generate: Mapping[str, Any] | bool | None = None,
    before_batch: Callable[[nn.Module], object] | None = None,
    stop_early: bool = False,
    nonfinite: Literal["refuse", "keep"] = "refuse",
) -> Iterator[Recording]:
    """Like `record`, one `Recording` per batch, so that only one batch is held; the scores take it in place of one.

    Between two batches the model is as before. `labels` are those of all samples; each piece carries its own.

    Raises:
        As `record`; labels left over at the end are refused too.

    Examples:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU())
        >>> pieces = stream(model, [torch.randn(3, 4), torch.randn(2, 4)], Site("1", "b u"))
        >>> [piece.samples for piece in pieces]
        [3, 2]
    """
    options = Options(
        sites=_sites(at),
        pool=pool,
        by=tuple(by),
        positions=positions,
        grad=grad,
        forward=forward,
        generate=_generation(model, generate, grad),
        before_batch=before_batch,
        ending=_ending(stop_early, grad, generate),
        finite=_finite(nonfinite),
    )
    limit, model_name = None if labels is None else _count(labels), fingerprint(model)

    def pieces() -> Iterator[Recording]:
        samples = 0
        for number, batch in enumerate(each_batch(batches)):
            with quiet(model, grad=grad is not None), _Session(model, options) as session:
                values, table, count = session.run(batch, number, 0)
            if limit is not None and samples + count > limit:
                check_labels(labels, samples + count)
            mine = labels_in(model, batch, count) if labels is None else _slice(labels, samples, samples + count)
            samples += count
            yield Recording(values, table, samples=count, labels=mine, model=model_name, pooled=pool)
        check_labels(labels, samples)

    return pieces()


@dataclass(frozen=True)
class Options:
    """What to record and how, checked once."""

    sites: tuple[Site, ...]
    pool: str | None
    by: tuple[str, ...]
    positions: Positions
    grad: Loss | None
    forward: Forward | None
    generate: Mapping[str, Any] | None
    before_batch: Callable[[nn.Module], object] | None
    ending: Ending | None
    finite: bool

    def __post_init__(self) -> None:
        if self.positions not in POSITIONS:
            raise UnknownNameError.among("choice of positions", str(self.positions), POSITIONS)
        self.collector()

    def collector(self) -> Collector:
        return Collector(self.sites, self.pool, self.by, self.finite)


class _Session:
    """Operations attached to a model, and the batches that run through it."""

    def __init__(self, model: nn.Module, options: Options) -> None:
        self.model, self.options = model, options
        self.collector = options.collector()
        self.slopes = [] if options.grad is None else [Slope(site, options.positions) for site in options.sites]
        looks: list[Look] = []
        if options.grad is None:
            looks = [Look(site, options.positions, self.collector, options.ending) for site in options.sites]
        self.attached = attach(model, [*self.slopes, *looks])

    def __enter__(self) -> _Session:
        self.attached.__enter__()
        return self

    def __exit__(self, *error: Any) -> bool | None:
        return self.attached.__exit__(*error)

    def run(self, batch: Any, number: int, first: int) -> tuple[dict[Site, Tensor], dict[Site, Table], int]:
        """Rows of one batch, its samples numbered from `first`, and their count."""
        options = self.options
        self.collector.begin()
        if options.ending is not None:
            options.ending.begin()
        if options.finite:
            refuse_nan(batch, number)
        with state_kept(self.model):  # no batch finds what another one left
            if options.before_batch is not None:
                options.before_batch(self.model)
            output = None
            with contextlib.suppress(PassEnded):
                output = run(self.model, batch, options.forward, options.generate)
            if options.grad is not None:
                self._differentiate(options.grad(output, batch))
        values, table, count = self.collector.finish(first)
        possible = sample_counts(batch)
        if count is None:
            count = max(possible or {0})  # no site was reached in this batch; whether that is an error is said on exit
        elif possible is not None and count != 1 and count not in possible and options.forward is None:
            site = next(iter(values))
            raise ShapeError(
                f"{site} shows {count} samples, and batch {number} does not have that many",
                given=f"sizes of its first dimensions: {sorted(possible)}",
                mend="if time was folded into the batch, name both axes, for example axes='(t:10 b) u'",
            )
        return values, table, count

    def _differentiate(self, loss: Any) -> None:
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            given = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
            raise ShapeError("grad is a loss that gives one number", given=given, expected="a tensor with one element")
        taken = [visit for slope in self.slopes for visit in slope.taken()]
        inputs = [value for _, value, _, _ in taken]
        if not loss.requires_grad:
            slopes: Sequence[Tensor | None] = [None] * len(inputs)
        else:
            slopes = torch.autograd.grad(loss.reshape(()), inputs, allow_unused=True) if inputs else []
        for (site, value, visit, rows), slope in zip(taken, slopes, strict=True):
            self.collector.add(site, torch.zeros_like(value) if slope is None else slope, visit, rows)


def _sites(at: Site | Iterable[Site]) -> tuple[Site, ...]:
    if isinstance(at, Site):
        return (at,)
    if isinstance(at, str) or not isinstance(at, Iterable):
        raise DtypeError(
            "a place to record is a site",
            given=repr(at),
            expected="Site",
            mend="px.sites(model, 'a pattern') finds sites",
        )
    sites = tuple(dict.fromkeys(at))
    for site in sites:
        if not isinstance(site, Site):
            raise DtypeError("a place to record is a site", given=repr(site), expected="Site")
    if not sites:
        raise SiteError("there is no site to record", mend="px.sites(model, 'a pattern') finds sites")
    return sites


def _generation(
    model: nn.Module, generate: Mapping[str, Any] | bool | None, grad: Loss | None
) -> Mapping[str, Any] | None:
    if generate is None or generate is False:
        return None
    if grad is not None:
        raise UnsupportedError(
            "generation has no gradient, because tokens are drawn", mend="record a plain forward pass"
        )
    if not callable(getattr(model, "generate", None)):
        raise UnsupportedError("this model does not generate", given=type(model).__name__, mend="leave out generate=")
    return {} if generate is True else dict(generate)


def _ending(stop_early: bool, grad: Loss | None, generate: Mapping[str, Any] | bool | None) -> Ending | None:
    if not stop_early:
        return None
    if grad is not None or generate:
        whole = "gradients of the loss" if grad is not None else "generation"
        raise UnsupportedError(f"{whole} need the whole pass", given="stop_early=True", mend="leave out stop_early")
    return Ending()


def _finite(nonfinite: str) -> bool:
    if nonfinite not in ("refuse", "keep"):
        raise UnknownNameError.among("choice of `nonfinite`", str(nonfinite), ("refuse", "keep"))
    return nonfinite == "refuse"


def _count(labels: Labels) -> int | None:
    first = next(iter(labels.values()), None) if isinstance(labels, Mapping) else labels
    return length(first)


def _slice(labels: Labels, start: int, stop: int) -> Labels:
    if isinstance(labels, Mapping):
        return {name: torch.as_tensor(value)[start:stop] for name, value in labels.items()}
    return torch.as_tensor(labels)[start:stop]
