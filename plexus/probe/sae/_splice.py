"""An autoencoder inside its model: reconstructions in the place of activations, edits of features, what that costs.

    splice       x' = x̂(z)
    with an edit of features   x' = x + x̂(z') - x̂(z): what the autoencoder does not explain stays as it is
    recovered    (L_zero - L_sae) / (L_zero - L_clean): 1 where the model does not notice, 0 where the reconstruction
                 is worth no more than zeros; the same against the mean over rows, which is harder to beat

Everything attaches through the one hook engine.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from plexus.errors import DtypeError, RangeError, ShapeError, SiteError, UnknownNameError
from plexus.probe._batches import Forward, each_batch, run
from plexus.probe._collect import POSITIONS, Positions, layout
from plexus.probe._quiet import quiet, state_kept
from plexus.probe._record import stream
from plexus.probe.sae._autoencoder import SparseAutoencoder
from plexus.probe.sae._feed import Source, _matrix, site_of
from plexus.units import Engine, Recording, Site, Visit, attach

__all__ = ["LossRecovered", "encoded", "loss_recovered", "splice"]

Loss = Callable[[Any, Any], Tensor]


class FeatureOperation(Protocol):
    """What changes activity `[*rows, feature]`: the action of an edit."""

    site: Site

    def __call__(self, values: Tensor, visit: Visit) -> Tensor | None: ...


class FeatureStep(Protocol):
    def actions(self) -> list[Any]: ...


class FeatureEdit(Protocol):
    """An `Edit` of units at the autoencoder's `feature_site`."""

    @property
    def steps(self) -> tuple[FeatureStep, ...]: ...


class _Put:
    """Rows replaced by what a function makes of them."""

    records = False

    def __init__(self, site: Site, make: Callable[[Tensor, Visit], Tensor], positions: Positions) -> None:
        self.site, self.make, self.positions, self.rows = site, make, positions, 0

    def __call__(self, values: Tensor, visit: Visit) -> Tensor:
        lead = len(visit.rows)
        place = layout(values.shape[:lead], visit, self.positions)
        new = self.make(values.flatten(lead), visit).reshape(values.shape)
        if place.keep is None:
            self.rows += len(place.sample)
            return new
        self.rows += int(place.keep.sum())
        here = place.keep.reshape(values.shape[:lead]).to(values.device)
        return torch.where(here.reshape(*here.shape, *(1 for _ in values.shape[lead:])), new, values)


@contextlib.contextmanager
def splice(
    model: nn.Module,
    autoencoder: SparseAutoencoder,
    *,
    at: Site | None = None,
    edit: FeatureEdit | None = None,
    positions: Positions = "all",
) -> Iterator[Engine]:
    """Let a model run on what an autoencoder makes of one site, until the `with` is left.

    Args:
        model: any module; nothing is written on it.
        autoencoder: its reconstruction takes the place of the values; padding is left alone.
        at: where (default: where it was trained).
        edit: an edit of features (`edit.scale(chosen, 0.0)`, units at `autoencoder.feature_site`). With it the error
            of the reconstruction is kept, so that only the edit acts.
        positions: "all" tokens, those of the "prompt", the "generated" ones, or the "last" real one of each pass.

    Raises:
        SiteError: no site is known, the edit is of other units, or the model never came by.
        ShapeError: the site has another size than the autoencoder.

    Examples:
        >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
        >>> sae = SparseAutoencoder(3, 6)
        >>> with splice(model, sae, at=Site("1", "b u")):
        ...     y = model(torch.ones(4, 2))
        >>> torch.equal(y, model[2](sae(model[:2](torch.ones(4, 2)))))
        True
    """
    if positions not in POSITIONS:
        raise UnknownNameError.among("choice of positions", str(positions), POSITIONS)
    operations: list[FeatureOperation] = []
    if edit is not None:
        operations = [action for step in edit.steps for action in step.actions()]
        foreign = {str(action.site) for action in operations if action.site != autoencoder.feature_site}
        if foreign:
            raise SiteError(
                "the edit is not one of this autoencoder's features",
                given=", ".join(sorted(foreign)),
                expected=str(autoencoder.feature_site),
            )

    def make(rows: Tensor, visit: Visit) -> Tensor:
        _same_device(autoencoder, rows)
        z = autoencoder.encode(rows)
        if edit is None:
            return autoencoder.reconstruct(rows, z)
        changed = z
        for operation in operations:
            new = operation(changed, visit)
            changed = changed if new is None else new
        # equal activity gives equal reconstructions, bit for bit, so that an edit of nothing changes nothing
        return rows + (autoencoder.reconstruct(rows, changed) - autoencoder.reconstruct(rows, z))

    with attach(model, [_Put(_place(autoencoder, at), make, positions)]) as engine:
        yield engine


@dataclass(frozen=True)
class LossRecovered:
    """Mean losses of a model, as it is and with one site replaced.

    Attributes:
        clean: nothing replaced.
        spliced: the reconstruction in place.
        zero: zeros in place.
        mean: the mean over rows in place.

    Examples:
        >>> found = LossRecovered(clean=1.0, spliced=1.5, zero=3.0, mean=2.0)
        >>> found.recovered, found.recovered_from_mean
        (0.75, 0.5)
    """

    clean: float
    spliced: float
    zero: float
    mean: float

    @property
    def recovered(self) -> float:
        """Share of what zeros cost that the reconstruction wins back."""
        return _share(self.clean, self.spliced, self.zero)

    @property
    def recovered_from_mean(self) -> float:
        """Share of what the mean costs that the reconstruction wins back; negative where it is worse than the mean."""
        return _share(self.clean, self.spliced, self.mean)


def loss_recovered(
    model: nn.Module,
    batches: Any,
    autoencoder: SparseAutoencoder,
    *,
    at: Site | None = None,
    loss: Loss | None = None,
    forward: Forward | None = None,
) -> LossRecovered:
    """How much worse a model becomes on the reconstruction, against zero and mean ablation of the same site.

    Args:
        model: any module; it is as before when this returns.
        batches: as in `record`, but they are gone through twice, so no iterator.
        autoencoder: whose reconstruction is judged.
        at: where (default: where it was trained).
        loss: `(output, batch) -> scalar`, a mean over the batch; default: the output's own `loss`, as Hugging Face
            models give it when the batch holds labels. Batches count by their rows at the site.
        forward: how to run the model on a batch, where a plain call is not it.

    Raises:
        DtypeError: `batches` can be gone through only once.
        ShapeError: the loss is not one number, or the model gives none.

    Examples:
        >>> model, site = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)), Site("1", "b u")
        >>> x = torch.randn(8, 2, generator=torch.Generator().manual_seed(0))
        >>> found = loss_recovered(model, x, SparseAutoencoder(3, 6), at=site, loss=lambda y, batch: y.square().mean())
        >>> found.clean == float(model(x).square().mean())
        True
    """
    if isinstance(batches, Iterator):
        raise DtypeError("batches are gone through twice", given=type(batches).__name__, mend="pass a list")
    site = _place(autoencoder, at)
    total, count = torch.zeros(autoencoder.units, dtype=torch.float64), 0
    for piece in stream(model, batches, site, forward=forward):
        rows = _matrix(piece[site], str(site))
        total, count = total + rows.double().sum(0), count + len(rows)
    mean = (total / count).to(autoencoder.decoder.device, torch.float32)

    def reconstruct(rows: Tensor, visit: Visit) -> Tensor:
        _same_device(autoencoder, rows)
        new: Tensor = autoencoder(rows)
        return new

    ways: dict[str, Callable[[Tensor, Visit], Tensor]] = {
        "clean": lambda rows, visit: rows,
        "spliced": reconstruct,
        "zero": lambda rows, visit: torch.zeros_like(rows),
        "mean": lambda rows, visit: mean.to(rows).expand_as(rows),
    }
    sums, weight = dict.fromkeys(ways, 0.0), 0
    with quiet(model):
        for batch in each_batch(batches):
            for name, way in ways.items():
                put = _Put(site, way, "all")
                with state_kept(model), attach(model, [put]):
                    value = _loss(run(model, batch, forward, None), batch, loss)
                sums[name] += value * put.rows
            weight += put.rows
    return LossRecovered(**{name: value / weight for name, value in sums.items()})


def encoded(source: Source, autoencoder: SparseAutoencoder, *, site: Site | None = None) -> Any:
    """A recording of units as a recording of features, at `autoencoder.feature_site`: what the scores read.

    Args:
        source: a `Recording`, or a stream of them (then a stream is given back).
        autoencoder: of the recorded site.
        site: which, where several were recorded (default: the autoencoder's own, if it was recorded).

    Examples:
        >>> from plexus.probe import record, scores
        >>> model, site = nn.Sequential(nn.Linear(2, 3), nn.ReLU()), Site("1", "b u")
        >>> labels = torch.tensor([0, 1] * 8)
        >>> rec = record(model, torch.randn(16, 2), site, labels=labels)
        >>> features = encoded(rec, SparseAutoencoder(3, 6))
        >>> features
        Recording: 16 samples at 1 site; labelled
          sae (output) [b ... u]: 16 rows × 6 units, float32, 384 B
        >>> len(scores.auroc(features).top(2))
        2
    """
    if isinstance(source, Recording):
        place = site if site is not None or autoencoder.site not in source.sites else autoencoder.site
        place = site_of(source, place)
        with torch.no_grad():
            parts = [
                (autoencoder.encode(_matrix(values, str(place)).to(autoencoder.decoder.device)).cpu(), table)
                for values, table in source.chunks(place)
            ]
        here = autoencoder.feature_site
        table = parts[0][1].cat([rows for _, rows in parts])
        return Recording(
            {here: torch.cat([z for z, _ in parts])},
            {here: table},
            samples=source.samples,
            labels=source.labels,
            model=source.model,
            pooled=source.pooled,
        )
    if callable(source):
        return encoded(source(), autoencoder, site=site)
    if isinstance(source, Tensor) or not isinstance(source, Iterable):
        raise DtypeError("features are read off recordings", given=type(source).__name__, expected="Recording")
    return (encoded(record, autoencoder, site=site) for record in source)


def _place(autoencoder: SparseAutoencoder, at: Site | None) -> Site:
    site = at if at is not None else autoencoder.site
    if site is None:
        raise SiteError("where the autoencoder belongs is not known", mend="pass at=, a site of the model")
    return site


def _same_device(autoencoder: SparseAutoencoder, rows: Tensor) -> None:
    if autoencoder.decoder.device != rows.device:
        autoencoder.to(rows.device)


def _loss(output: Any, batch: Any, loss: Loss | None) -> float:
    value = getattr(output, "loss", None) if loss is None else loss(output, batch)
    if not isinstance(value, Tensor) or value.numel() != 1:
        given = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise ShapeError(
            "the loss is one number", given=given, mend="pass loss=, or labels in the batch of a Hugging Face model"
        )
    if not bool(value.isfinite()):
        raise RangeError("the loss is not finite", given=float(value))
    return float(value)


def _share(clean: float, spliced: float, ablated: float) -> float:
    if ablated == clean:
        raise RangeError("the ablation costs nothing, so there is nothing to recover", given=f"loss {clean:.6g}")
    return (ablated - spliced) / (ablated - clean)
