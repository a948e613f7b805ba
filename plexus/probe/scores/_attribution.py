"""First-order effect of a unit on a loss: its value times the gradient of the loss at it.

    Σ over features of a ∂L/∂a,  averaged over rows

To first order this is how much the loss falls when the unit is set to zero.

Source: Molchanov et al. 2017 (Taylor criterion), Shrikumar et al. 2016 (gradient × input).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from torch import Tensor

from plexus.errors import ShapeError
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
