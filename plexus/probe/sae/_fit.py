"""Training a sparse autoencoder on what units do, or several at once."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from plexus.errors import DtypeError, RangeError, ShapeError
from plexus.probe._progress import tracked
from plexus.probe.sae._autoencoder import Activation, Design, Normalise, SparseAutoencoder, normalise, start_weights
from plexus.probe.sae._checkpoint import Interruption, restore, store
from plexus.probe.sae._feed import Feed, Held, Source, feed_of, site_of, split
from plexus.probe.sae._trainer import Keep, Reduction, Revive, Settings, Trainer, Watch
from plexus.units import Recording, Site

__all__ = ["Fit", "fit", "fit_many"]


@dataclass(frozen=True)
class Fit:
    """A trained autoencoder and how training went.

    Attributes:
        autoencoder: with the weights kept.
        curve: measures `[look]` on the rows held out (without such: on rows trained on): `step`, `loss`, `error` (mean
            square), `penalty`, `l0`, `fvu`, `effective_features`, `alive`.
        steps: after how many steps training stopped.

    Examples:
        >>> rows = torch.randn(256, 4, generator=torch.Generator().manual_seed(0))
        >>> done = fit(rows, features=8, l1=0.01, steps=20, every=10, generator=torch.Generator().manual_seed(0))
        >>> done.steps, done.curve["step"].tolist()
        (20, [10, 20])
    """

    autoencoder: SparseAutoencoder
    curve: Mapping[str, Tensor]
    steps: int


def fit(
    source: Source,
    *,
    features: int,
    steps: int,
    generator: torch.Generator,
    site: Site | None = None,
    activation: Activation = "relu",
    k: int | None = None,
    l1: float = 0.0,
    l0: float = 0.0,
    l1_reduction: Reduction = "mean",
    tied: bool = False,
    decoder_bias: bool = True,
    pre_bias: bool = True,
    unit_norm: bool = True,
    normalise: Normalise = "rms",
    batch: int = 256,
    rate: float = 1e-3,
    warmup: int = 0,
    decay: float = 0.0,
    revive: Revive | None = None,
    dead_after: int = 10_000,
    auxiliary: float = 1 / 32,
    resample_every: int = 2500,
    held_out: float | int = 0,
    every: int = 100,
    watch: Watch = "loss",
    patience: int | None = None,
    tolerance: float = 0.0,
    keep: Keep | None = None,
    buffer: int = 16_384,
    checkpoint: str | os.PathLike[str] | None = None,
    save_every: float = 60.0,
    device: torch.device | str = "cpu",
    width: float = 0.2,
    progress: bool | None = None,
) -> Fit:
    """Train a sparse autoencoder on the rows of one site.

    Args:
        source: rows `[row, unit]`, a `Recording`, a stream of recordings (`probe.stream`), or a function that opens
            such a stream, which is then read as often as the steps need. Tokens, places of a convolution's map and
            pooled spike rates are rows as they were recorded; the vectors of heads are laid side by side.
        features: size of the dictionary.
        steps: how many steps at most; a stream that is read once may end before.
        generator: draws weights, held-out rows and the order of rows; the same one gives the same autoencoder.
        site: which, where several were recorded.
        activation: "relu", "top-k", "batch-top-k" or "jump-relu" (thresholds learn through a rectangle of `width`).
        k: active features of a row, for the top-k kinds.
        l1: weight of the mean |z|; l0: weight of the number of active features, "jump-relu" only.
        l1_reduction: whether both are averaged over features ("mean": weaker, the larger the dictionary) or summed.
        tied: the encoder is the decoder transposed.
        decoder_bias: whether there is one. pre_bias: whether it is taken off the input first.
        unit_norm: keep each decoder direction at norm 1.
        normalise: scale the input; "rms" divides by the root mean square of the first rows, so that penalties mean
            the same everywhere. Losses are those of scaled rows.
        batch: rows of a step. rate: of Adam.
        warmup: steps over which the penalties grow to their weight. decay: last share of the steps over which the rate
            falls to zero.
        revive: what is done about features that were not active for `dead_after` rows: the "auxiliary" loss (with
            weight `auxiliary`; not for "relu"), or "resample" every `resample_every` steps.
        held_out: rows never trained on, a share or a number (of a stream: its first ones, a number).
        every: steps between two looks at how training goes.
        watch: what is judged at each look: "loss" (stop when it has not improved for `patience` looks) or "features"
            (stop when the effective number of features has stayed within `tolerance`, a share, for as long).
        patience: in looks; None trains to the end.
        keep: weights of the "best" loss or of the "last" step (default: best where patience watches the loss).
        buffer: rows of a stream that are mixed with each other.
        checkpoint: a file; written every `save_every` seconds and on Ctrl-C, and training goes on from it if it is
            there (the stream, opened anew, must give the same rows).
        device: where to train.
        progress: show a progress line (`None`: on a terminal, when it takes longer).

    Raises:
        RangeError, ShapeError, DtypeError, UnknownNameError: the rows or the settings have no meaning together.
        UnsupportedError: the checkpoint is of a training with other settings.

    Examples:
        >>> draw = torch.Generator().manual_seed(0)
        >>> rows = torch.randn(512, 4, generator=draw).relu()
        >>> done = fit(rows, features=16, activation="top-k", k=2, steps=200, generator=draw)
        >>> done.autoencoder
        SparseAutoencoder(4 units, 16 features, top-k, k=2, unit_norm)
    """
    _check_generator(generator)
    if activation == "gated":
        raise RangeError("a gated autoencoder can be read from a file, and is not trained here", given=activation)
    settings = Settings(
        steps, batch, rate, l1, l0, l1_reduction, warmup, decay, revive, dead_after, auxiliary, resample_every, every,
        watch, patience, tolerance, _kept(keep, watch, patience),
    )  # fmt: skip
    feed = feed_of(source, site, batch=batch, buffer=buffer, held_out=held_out, generator=generator)
    design = Design(
        feed.first.shape[-1], features, activation, k, tied, decoder_bias, pre_bias and decoder_bias, unit_norm,
        normalise, width,
    )  # fmt: skip
    found = _train(feed, design, settings, generator, torch.device(device), checkpoint, save_every, progress)[0]
    if isinstance(source, Recording):
        found.autoencoder.site = site_of(source, site)
        found.autoencoder.metadata["model"] = source.model
    elif site is not None:
        found.autoencoder.site = site
    return found


def fit_many(
    rows: Tensor,
    *,
    features: int,
    steps: int,
    generator: torch.Generator,
    l1: float | Sequence[float] = 0.0,
    held_out: float | int = 0,
    **settings: Any,
) -> list[Fit]:
    """Train one autoencoder for each of several sets of rows at once, as batched products.

    Args:
        rows: `[member, row, unit]`; every member sees its rows in the same order.
        features, steps, generator, held_out: as in `fit`.
        l1: one weight, or one per member.
        **settings: further arguments of `fit`, but those of streams and checkpoints.

    Returns:
        One `Fit` per member, each as it would be alone (up to rounding, and to the weights that are drawn first).

    Examples:
        >>> draw = torch.Generator().manual_seed(0)
        >>> both = fit_many(torch.randn(2, 128, 3, generator=draw), features=6, steps=5, l1=(0.1, 0.2), generator=draw)
        >>> [one.autoencoder.features for one in both]
        [6, 6]
    """
    _check_generator(generator)
    if not isinstance(rows, Tensor) or rows.dim() != 3 or 0 in rows.shape:
        given = tuple(rows.shape) if isinstance(rows, Tensor) else type(rows).__name__
        raise ShapeError("several sets of rows lie in one tensor", given=given, expected="[member, row, unit]")
    if not bool(rows.isfinite().all()):
        raise RangeError("the rows hold NaN or infinity")
    ofdesign = ("activation", "k", "tied", "decoder_bias", "pre_bias", "unit_norm", "normalise", "width")
    built = {name: settings.pop(name) for name in ofdesign if name in settings}
    built.setdefault("normalise", "rms")
    built["pre_bias"] = built.get("pre_bias", True) and built.get("decoder_bias", True)
    design = Design(rows.shape[-1], features, **built)
    device, progress = torch.device(settings.pop("device", "cpu")), settings.pop("progress", None)
    keep, watch, patience = settings.pop("keep", None), settings.get("watch", "loss"), settings.get("patience")
    weights = float(l1) if isinstance(l1, int | float) else tuple(map(float, l1))
    if isinstance(weights, tuple) and len(weights) != len(rows):
        raise ShapeError("l1 is one weight, or one per member", given=len(weights), expected=len(rows))
    chosen = Settings(steps, l1=weights, keep=_kept(keep, watch, patience), **settings)
    train, back = split(torch.arange(rows.shape[1]), held_out, generator)
    kept_back = rows[:, back].float() if len(back) else None
    feed = Held((rows[:, train] if len(back) else rows).float(), chosen.batch, generator, kept_back)
    return _train(feed, design, chosen, generator, device, None, 0.0, progress)


def _train(
    feed: Feed,
    design: Design,
    settings: Settings,
    generator: torch.Generator,
    device: torch.device,
    checkpoint: str | os.PathLike[str] | None,
    save_every: float,
    progress: bool | None,
) -> list[Fit]:
    first = feed.first.to(device)
    scale = torch.ones(len(first), 1, 1, device=device)
    if design.normalise == "rms":
        scale = first.square().mean((-1, -2), keepdim=True).sqrt()
        if bool((scale == 0).any()):
            raise RangeError("all rows are zero, so they have no scale", mend="record where the units are active")
    weights = {n: v.to(device) for n, v in start_weights(design, generator, len(first)).items()}
    if design.decoder_bias:
        weights["decoder_bias"] = normalise(design, scale, first)[0].mean(1)
    trainer = Trainer(design, settings, weights, generator)
    looked_at = first[:, :4096] if feed.kept_back is None else feed.kept_back.to(device)
    looked_at, _ = normalise(design, scale, looked_at)
    if checkpoint is not None:
        restore(checkpoint, trainer, feed)
    saved, running, scales = time.monotonic(), not bool(trainer.done.all()), scale
    with Interruption.noted(checkpoint is not None) as interruption:
        for _ in tracked(range(trainer.steps, settings.steps), "training autoencoders", settings.steps, progress):
            rows = feed.draw() if running else None
            if rows is None and running and not trainer.steps:
                raise ShapeError(
                    "the stream ended before it gave one batch of rows",
                    given=f"{first.shape[1]} rows",
                    expected=f"batch={settings.batch} or more",
                    mend="make batch smaller, or pass a function that opens the stream, which is then read again",
                )
            if rows is None:
                break
            trainer.step(normalise(design, scales, rows.to(device))[0])
            if trainer.steps % settings.every == 0:
                running = trainer.look(looked_at)
                # a checkpoint holds all members
                stay = trainer.shed() if checkpoint is None else None
                if stay is not None:
                    feed.narrow(stay)
                    scales, looked_at = scales[stay.to(device)], looked_at[stay.to(device)]
            if checkpoint is not None and (interruption.asked or time.monotonic() - saved > save_every):
                store(checkpoint, trainer, feed)
                saved = time.monotonic()
            if interruption.asked:
                raise KeyboardInterrupt
    if running and (not trainer.curve or int(trainer.curve["step"][-1][0]) != trainer.steps):
        trainer.look(looked_at)
    if checkpoint is not None:
        store(checkpoint, trainer, feed)
    stopped = trainer.steps_of.clamp_max(trainer.steps)
    return [_member(trainer, scale, member, int(stopped[member])) for member in range(len(first))]


def _member(trainer: Trainer, scale: Tensor, member: int, steps: int) -> Fit:
    sae = SparseAutoencoder.of(trainer.design, {name: value[member] for name, value in trainer.kept.items()})
    sae = sae.to(scale.device)
    sae.scale.copy_(scale[member].squeeze())
    sae.limit.copy_(trainer.kept_limit[member].squeeze())
    curve = {name: torch.stack([value[member] for value in values]) for name, values in trainer.curve.items()}
    return Fit(sae, {name: value[curve["step"] <= steps] for name, value in curve.items()}, steps)


def _kept(keep: Keep | None, watch: Watch, patience: int | None) -> Keep:
    return keep if keep is not None else "best" if watch == "loss" and patience is not None else "last"


def _check_generator(generator: object) -> None:
    if not isinstance(generator, torch.Generator):
        raise DtypeError("training draws from a torch.Generator", given=type(generator).__name__)
