"""Attribution of a loss to units along a path, and how sensitive the output is to them.

    integrated gradients   IG[u] = (a[u] - a0[u]) ∫₀¹ ∂L/∂a[u] (a0 + α (a - a0)) dα
    sensitivity            S[u]  = Σ_o (∂y_o/∂a[u])²

The path of integrated gradients moves all values of one site, in all rows, from the baseline a0 to what they are, while
what lies before the site stays; the integral is a Gauss-Legendre sum. Completeness: Σ IG over rows and units is
L(a) - L(a0). S is the variance of the whole output per variance of independent noise on the unit, to first order; with
random signs v its mean over draws of (∂ v·y/∂a[u])² is S, so that one backward pass serves all units.

Sources: Sundararajan et al. 2017; Dhamdhere et al. 2019 (hidden units); Hutchinson 1990 (the random signs).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from plexus.errors import DtypeError, RangeError, ShapeError, SiteError, UnsupportedError
from plexus.probe._batches import Forward, each_batch, labels_in, run
from plexus.probe._collect import Collector, layout
from plexus.probe._progress import length, tracked
from plexus.probe._quiet import quiet, state_kept
from plexus.probe._record import Loss, _sites
from plexus.probe._sizes import announce
from plexus.probe._taps import Slope, Taken
from plexus.probe.scores._batch import logits_of
from plexus.probe.scores._moments import mean
from plexus.units import Recording, Scores, Site, Visit, attach, fingerprint
from plexus.units._recording import Labels

Baseline = float | Mapping[Site, Tensor]


def integrated_gradients(
    model: nn.Module,
    batches: Any,
    at: Site | Iterable[Site],
    loss: Loss,
    labels: Labels | None = None,
    *,
    names: Sequence[str] | None = None,
    baseline: Baseline = 0.0,
    steps: int = 16,
    absolute: bool = False,
    forward: Forward | None = None,
    progress: bool | None = None,
) -> Scores:
    """Integrated gradients of a loss at units, averaged over rows; with labels, over the rows of each concept.

    Costs `steps` forward and backward passes per batch and site; one batch of one site is held at a time, and what that
    takes is said on stderr when the first batch shows it to be more than a GiB.

    Args:
        model: any module; it is as before when this returns.
        batches: as in `record`.
        at: the site or sites; each has a path of its own.
        loss: `(output, batch) -> scalar`; one that sums over samples, so that batches do not matter.
        labels: as in `mean`.
        names: of the classes or concepts.
        baseline: where the path begins: a number, or per site `[unit]` (or `[unit, feature]`), for instance
            `mean(record).values`.
        steps: points of the Gauss-Legendre rule; n points are exact for a gradient that is a polynomial of degree
            2n - 1 along the path.
        absolute: take absolute attributions of each row, so that rows of opposite sign do not cancel.
        forward: how to run the model on a batch, where a plain call is not it.
        progress: show a progress line.

    Raises:
        RangeError: fewer than one step.
        SiteError: the baseline lacks a site, or a site is met more than once in a pass.
        ShapeError: the loss is no scalar, or the baseline does not fit.

    Examples:
        >>> model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1))
        >>> x, hidden = torch.ones(4, 2), Site("1", "b u")
        >>> found = integrated_gradients(model, x, hidden, lambda y, batch: y.square().sum())
        >>> silent = model[2].bias.square().item()
        >>> bool(abs(found[hidden].sum() - (model(x).square().mean() - silent)) < 1e-5)
        True
    """
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise RangeError("a number of steps", given=steps, expected="an int, 1 or more")
    sites = _sites(at)
    starts = {site: _start(site, baseline) for site in sites}
    nodes, weights = np.polynomial.legendre.leggauss(steps)
    points = [((1 + float(node)) / 2, float(weight) / 2) for node, weight in zip(nodes, weights, strict=True)]
    name, total = fingerprint(model), length(batches)

    def pieces() -> Iterator[Recording]:
        for number, batch in enumerate(tracked(each_batch(batches), "integrating gradients", total, progress)):
            collector = Collector(sites, None, ("sample",), True)
            with quiet(model, grad=True):
                for site in sites:
                    _integrate(model, batch, site, starts[site], points, loss, forward, absolute, collector, not number)
            yield _piece(model, batch, collector, name)

    scores = mean(pieces(), labels, names=names)
    return Scores(scores.values, scores.concepts, "integrated gradients", scores.model)


def sensitivity(
    model: nn.Module,
    batches: Any,
    at: Site | Iterable[Site],
    labels: Labels | None = None,
    *,
    names: Sequence[str] | None = None,
    probes: int | None = 1,
    generator: torch.Generator | None = None,
    output: Callable[[Any], Tensor] | None = None,
    forward: Forward | None = None,
    progress: bool | None = None,
) -> Scores:
    """How much the output of a model moves with a unit: its variance per variance of small noise on the unit.

    Summed over all output numbers that a row of the unit reaches (but none at padding), averaged over rows. One batch
    is held at a time, and what that takes is said on stderr when the first batch shows it to be more than a GiB.

    Args:
        model: any module; it is as before when this returns.
        batches: as in `record`.
        at: the site or sites.
        labels: as in `mean`.
        names: of the classes or concepts.
        probes: random sign vectors per batch, each one backward pass; the result is an unbiased estimate. None: one
            backward pass per output number of a sample, exact; the output's first dimension then counts samples.
        generator: where the signs come from; needed unless `probes` is None.
        output: what of the model's output counts; its logits (or the output itself, if a tensor) by default.
        forward: how to run the model on a batch, where a plain call is not it.
        progress: show a progress line.

    Raises:
        RangeError: fewer than one probe.
        DtypeError: no generator.
        ShapeError: the output has no sample in its first dimension.

    Examples:
        >>> model = nn.Sequential(nn.Identity(), nn.Linear(3, 2))
        >>> found = sensitivity(model, torch.randn(5, 3), Site("0", "b u"), probes=None)
        >>> torch.allclose(found[Site("0", "b u")], model[1].weight.double().square().sum(0))
        True
    """
    if probes is not None and (isinstance(probes, bool) or not isinstance(probes, int) or probes < 1):
        raise RangeError("a number of probes", given=probes, expected="an int, 1 or more, or None for exact")
    if probes is not None and not isinstance(generator, torch.Generator):
        raise DtypeError("random signs need a torch.Generator", given=type(generator).__name__)
    sites, name, total = _sites(at), fingerprint(model), length(batches)

    def pieces() -> Iterator[Recording]:
        for number, batch in enumerate(tracked(each_batch(batches), "sensitivity", total, progress)):
            collector = Collector(sites, None, ("sample",), True)
            slopes = [Slope(site) for site in sites]
            with quiet(model, grad=True), attach(model, slopes), state_kept(model):
                y = (output or logits_of)(run(model, batch, forward, None))
                if not isinstance(y, Tensor) or y.dim() == 0:
                    raise ShapeError("the output holds no samples", given=getattr(y, "shape", type(y).__name__))
                taken = [visit for slope in slopes for visit in slope.taken()]
                inputs = [visit.value for visit in taken]
                y = _real(y, taken)
                if not number:  # values, their gradients and the squares
                    size = 3 * sum(value.nbytes for value in inputs)
                    announce("sensitivity, besides the model's own passes,", size)
                squares = [torch.zeros_like(value) for value in inputs]
                directions = _directions(y, probes, generator)
                for direction in directions:
                    gradients = torch.autograd.grad(y, inputs, direction, retain_graph=True, allow_unused=True)
                    for square, gradient in zip(squares, gradients, strict=True):
                        if gradient is not None:
                            square += gradient.square() / (probes or 1)
                for visit, square in zip(taken, squares, strict=True):
                    collector.add(visit.site, _summed(visit.visit, square), visit.visit, visit.rows)
            yield _piece(model, batch, collector, name)

    scores = mean(pieces(), labels, names=names)
    return Scores(scores.values, scores.concepts, "sensitivity", scores.model)


class _Walk:
    """Puts the values of a site somewhere between the baseline and what they are, and lets a loss be differentiated."""

    records = False

    def __init__(self, site: Site, start: Tensor) -> None:
        self.site, self._start = replace(site, where="readout"), start
        self.share = 1.0
        self.met: list[tuple[Tensor, Tensor, Visit]] = []  # the point, the way to it from the baseline, the visit

    def __call__(self, values: Tensor, visit: Visit) -> Tensor | None:
        if visit.recomputing:
            return None
        if self.met:
            raise SiteError(
                f"site {self.site.path!r} is met more than once in a pass, and its paths would mix",
                mend="choose one call of the module with call=",
            )
        start = self._start.to(values)
        if start.dim() and start.shape != values.shape[len(visit.rows) :][: start.dim()]:
            raise ShapeError(
                f"the baseline does not fit site {self.site.path!r}",
                given=tuple(start.shape),
                expected=tuple(values.shape[len(visit.rows) :]),
            )
        if start.dim() == 1 and values.dim() == len(visit.rows) + 2:
            start = start[:, None]
        way = (values - start).detach()
        point = (start + self.share * way).detach().requires_grad_()
        self.met = [(point, way, visit)]
        return point.clone()


def _integrate(
    model: nn.Module,
    batch: Any,
    site: Site,
    start: Tensor,
    points: Sequence[tuple[float, float]],
    loss: Loss,
    forward: Forward | None,
    absolute: bool,
    collector: Collector,
    first: bool,
) -> None:
    walk, total = _Walk(site, start), None
    with attach(model, [walk]):
        for walk.share, weight in points:
            walk.met = []
            with state_kept(model):
                value = loss(run(model, batch, forward, None), batch)
                if not isinstance(value, Tensor) or value.numel() != 1:
                    given = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
                    raise ShapeError("a loss gives one number", given=given, expected="a tensor with one element")
                if not walk.met:
                    return  # whether that is an error is said on leaving
                point, way, visit = walk.met[0]
                (slope,) = (
                    torch.autograd.grad(value.reshape(()), [point], allow_unused=True)
                    if value.requires_grad
                    else (None,)
                )
            if first and total is None:  # the point, the way, its part of the integral and the sum
                announce(f"integrating gradients at {site}, besides the model's own passes,", 4 * way.nbytes)
            part = torch.zeros_like(way) if slope is None else weight * way * slope
            total = part if total is None else total + part
    assert total is not None
    summed = _summed(visit, total)
    rows = layout(summed.shape[: len(visit.rows)], visit, "all")
    collector.add(site, summed.abs() if absolute else summed, visit, rows)


def _summed(visit: Visit, values: Tensor) -> Tensor:
    """One number per unit: what belongs to the features of a unit adds up."""
    return values.sum(-1) if values.dim() == len(visit.rows) + 2 else values


def _real(y: Tensor, taken: Sequence[Taken]) -> Tensor:
    """The output `[b, t, …]` with zeros at padding, so that nothing is counted there."""
    masks = [mask for mask in (one.visit.run.mask for one in taken) if mask is not None and mask.shape == y.shape[:2]]
    if not masks or y.dim() < 3:
        return y
    return y.masked_fill(~masks[-1].to(y.device).reshape(*y.shape[:2], *[1] * (y.dim() - 2)), 0)


def _directions(y: Tensor, probes: int | None, generator: torch.Generator | None) -> Iterator[Tensor]:
    """What the output is weighed with: random signs, or one output number of every sample after the other."""
    if probes is not None:
        for _ in range(probes):
            signs = torch.randint(0, 2, y.shape, generator=generator, device=generator.device if generator else None)
            yield (2 * signs - 1).to(y)
        return
    for number in range(y[0].numel()):
        direction = torch.zeros_like(y).reshape(len(y), -1)
        direction[:, number] = 1
        yield direction.reshape(y.shape)


def _piece(model: nn.Module, batch: Any, collector: Collector, name: str) -> Recording:
    values, table, count = collector.finish(0)
    if count is None:
        raise UnsupportedError("a batch came by none of the sites")
    return Recording(values, table, samples=count, labels=labels_in(model, batch, count), model=name)


def _start(site: Site, baseline: Baseline) -> Tensor:
    if isinstance(baseline, Mapping):
        if site not in baseline:
            raise SiteError("the baseline lacks a site", given=str(site))
        start = torch.as_tensor(baseline[site])
    else:
        start = torch.tensor(float(baseline), dtype=torch.float64)
    if not bool(start.isfinite().all()):
        raise RangeError("a baseline is finite", given=str(site))
    return start
