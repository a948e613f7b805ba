"""First-order effect of a unit on a loss: its value times the gradient of the loss at it.

    gradient × activation   Σ_f a ∂L/∂a                               of a row, averaged over rows
    Taylor                  |Σ_t Σ_f a ∂L/∂a|  or  (Σ_t Σ_f a ∂L/∂a)²   of a sample, averaged over samples

f are the features of a unit, t the rows of a sample. To first order Σ_t Σ_f a ∂L/∂a is how much the loss falls when the
unit is set to zero; the Taylor criteria say how much it changes, whichever way.

Source: Shrikumar et al. 2016 (gradient × input), Molchanov et al. 2017 (absolute), 2019 (squared).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

from torch import Tensor

from plexus.errors import ShapeError, UnknownNameError
from plexus.probe.scores._moments import mean
from plexus.probe.scores._source import Source, recordings
from plexus.units import Recording, Scores, Site
from plexus.units._recording import Labels


def gradient_times_activation(
    record: Source,
    gradients: Source,
    labels: Labels | None = None,
    *,
    names: Sequence[str] | None = None,
    absolute: bool = False,
) -> Scores:
    """Value times gradient of each unit, averaged over rows; with labels, over the rows of each concept.

    Args:
        record: values, from `record` or `stream`.
        gradients: gradients of a loss at the same sites on the same batches, from `record(…, grad=loss)`.
        labels: as in `mean`.
        names: of the classes or concepts.
        absolute: take absolute products, so that rows of opposite sign do not cancel.

    Raises:
        ShapeError: if the two do not hold the same sites and rows, or were pooled before the product.

    Examples:
        >>> from plexus import probe
        >>> from torch import nn, ones
        >>> model = nn.Sequential(nn.Linear(2, 3), nn.Identity(), nn.Linear(3, 1))
        >>> x, site = ones(5, 2), Site("1", "b u")
        >>> slope = probe.record(model, x, site, grad=lambda output, batch: output.sum())
        >>> scores = gradient_times_activation(probe.record(model, x, site), slope)
        >>> bool(abs(scores[site].sum() + model[2].bias.item() - model(x).mean()) < 1e-6)  # exact where all is linear
        True
    """
    products = _products(record, gradients, absolute)
    scores = mean(products, labels, names=names)
    return Scores(scores.values, scores.concepts, "gradient × activation", scores.model)


def taylor(
    record: Source,
    gradients: Source,
    labels: Labels | None = None,
    *,
    names: Sequence[str] | None = None,
    order: Literal["absolute", "squared"] = "absolute",
) -> Scores:
    """How much a loss changes, to first order, without a unit: per sample, averaged over samples.

    Args:
        record: values, from `record` or `stream`.
        gradients: gradients of a loss at the same sites on the same batches, from `record(…, grad=loss)`. A sample's
            gradient should not depend on how many others are in its batch: give a loss that sums over samples.
        labels: as in `mean`.
        names: of the classes or concepts.
        order: absolute change (Molchanov et al. 2017), or squared (2019).

    Raises:
        ShapeError: if the two do not hold the same sites and rows, or were pooled before the product.
        UnknownNameError: another order.

    Examples:
        >>> from plexus.units import Table
        >>> import torch
        >>> site, rows = Site("1", "b t u"), Table([0, 0, 1])
        >>> values = Recording({site: torch.tensor([[1.0], [2.0], [3.0]])}, {site: rows})
        >>> slopes = Recording({site: torch.tensor([[1.0], [-1.0], [2.0]])}, {site: rows})
        >>> taylor(values, slopes)[site], taylor(values, slopes, order="squared")[site]  # of |-1| and |6|, of 1 and 36
        (tensor([3.5000], dtype=torch.float64), tensor([18.5000], dtype=torch.float64))
    """
    if order not in ("absolute", "squared"):
        raise UnknownNameError.among("order", str(order), ("absolute", "squared"))
    sums = (product.pool("sum") for product in _products(record, gradients, absolute=False))
    changes = (
        Recording(
            {site: part[site].abs() if order == "absolute" else part[site].square() for site in part.sites},
            dict(part.table),
            samples=part.samples,
            labels=part.labels,
            model=part.model,
        )
        for part in sums
    )
    scores = mean(changes, labels, names=names)
    return Scores(scores.values, scores.concepts, f"{order} Taylor", scores.model)


def _products(record: Source, gradients: Source, absolute: bool) -> Iterator[Recording]:
    pairs: Iterable[tuple[Recording, Recording]] = zip(recordings(record), recordings(gradients), strict=True)
    try:
        for values, slopes in pairs:
            if values.sites != slopes.sites:
                raise ShapeError("values and gradients are of different sites", given=f"{values.sites}, {slopes.sites}")
            for part in (values, slopes):
                if part.pooled is not None:
                    raise ShapeError("values and gradients are multiplied row by row", given=f"pooled: {part.pooled}")
            yield Recording(
                {site: _product(site, values, slopes, absolute) for site in values.sites},
                dict(values.table),
                samples=values.samples,
                labels=values.labels,
                model=values.model,
            )
    except ValueError as error:
        if isinstance(error, ShapeError):
            raise
        raise ShapeError("values and gradients differ in the number of batches") from error


def _product(site: Site, values: Recording, slopes: Recording, absolute: bool) -> Tensor:
    if values.table[site] != slopes.table[site] or values[site].shape != slopes[site].shape:
        raise ShapeError(
            f"values and gradients of {site} are of different rows",
            given=f"{tuple(values[site].shape)} and {tuple(slopes[site].shape)}",
            mend="record both on the same batches, with the same positions",
        )
    product = values[site].double() * slopes[site].double()
    if product.dim() == 3:
        product = product.sum(-1)
    return product.abs() if absolute else product
