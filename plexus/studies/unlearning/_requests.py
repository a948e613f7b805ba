"""The four requests to forget: their data, the network that knows them, and the one that never saw them.

Test items are drawn again for every seed, with replacement, from images and text that no training sees; the asked ones
and the others by themselves, so that neither part can be empty. While tuning, training data are held out instead.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from plexus.data import ALPHABET, Labelled, descriptions, digits, encode, idx_images, windows
from plexus.errors import require
from plexus.learn import unlearning as un
from plexus.nn.models import CharTransformer, SmallCNN
from plexus.probe.scores import Importances, diagonal_fisher
from plexus.studies.unlearning._settings import Config

MODES: tuple[Literal["batch", "sample"], ...] = ("batch", "sample")


@dataclass
class Known:
    """A network that learned everything, its importances by mode, and the processor time that these took."""

    model: nn.Module
    importances: dict[str, Importances]
    seconds: dict[str, float]


@dataclass
class Request:
    """What to forget, out of what, and the networks that know it and that never saw it.

    Attributes:
        kept, away: training samples to keep and to forget.
        unseen, asked: samples that say how much is kept and how much is forgotten.
        known: the network that learned all of it.
        retrained: the network that learned what is kept, and `seconds`, the processor time that took.
        shadows: further networks of that kind, for the attack.
    """

    kept: Labelled
    away: Labelled
    unseen: Labelled
    asked: Labelled
    known: Known
    retrained: nn.Module
    seconds: float
    shadows: list[nn.Module]


def requests_of(config: Config, seed: int) -> dict[str, Request]:
    """All four, by name."""
    train, test = images(config, seed)
    text, novel, document = texts(config, seed)
    resample = torch.Generator().manual_seed(seed + 500_000)
    known: dict[int, Known] = {}
    requests = {}
    masks = {**image_masks(config, train, test, seed), "document": (document, None)}
    for name, (forget, asked) in masks.items():
        data, unseen = (text, novel) if name == "document" else (train, test)
        if id(data) not in known:
            known[id(data)] = know(config, data, seed)
        kept, away = data[~forget], data[forget]
        retrained, seconds = timed(lambda kept=kept: learn(config, kept, seed + 1_000_000))
        extra = range(config.shadows if name == "random" else 0)
        shadows = [learn(config, kept, seed + (index + 2) * 1_000_000) for index in extra]
        parts = [unseen] if asked is None else [unseen[~asked], unseen[asked]]
        if not config.tuning:
            parts = [drawn_again(part, resample) for part in parts]
        wanted = away if asked is None else parts[1]
        requests[name] = Request(kept, away, parts[0], wanted, known[id(data)], retrained, seconds, shadows)
    return requests


def drawn_again(data: Labelled, generator: torch.Generator) -> Labelled:
    """As many samples, drawn with replacement."""
    return data[torch.randint(len(data), (len(data),), generator=generator)]


def batches(config: Config, data: Labelled, generator: torch.Generator | None = None) -> un.Batches:
    """Shuffled when given a generator."""
    return un.Batches(data.x, data.y, config.batch, generator=generator)


def timed(action: Callable[[], Any]) -> tuple[Any, float]:
    """What an action returns, and the processor time it took, which other processes hardly disturb."""
    start = time.process_time()
    result = action()
    return result, time.process_time() - start


def know(config: Config, data: Labelled, seed: int) -> Known:
    """A network that learned all data, and their importances for it."""
    model = learn(config, data, seed)
    shuffle = torch.Generator().manual_seed(seed)
    found = {
        mode: timed(lambda m=mode: diagonal_fisher(model, batches(config, data, shuffle), mode=m)) for mode in MODES
    }
    return Known(
        model, {mode: pair[0] for mode, pair in found.items()}, {mode: pair[1] for mode, pair in found.items()}
    )


def learn(config: Config, data: Labelled, seed: int) -> nn.Module:
    """A network trained from its initial state: of images, or of text."""
    torch.manual_seed(seed)
    text = data.x.ndim == 2
    size = data.x.shape[-1]
    model = (
        CharTransformer(len(ALPHABET), context=size, width=48, heads=4, layers=1)
        if text
        else SmallCNN(size, 10, pool=2 if size < 20 else 4)
    )
    optimizer = torch.optim.Adam(model.parameters(), config.text_lr if text else config.lr)
    shuffled = un.Batches(data.x, data.y, 32 if text else config.batch, generator=torch.Generator().manual_seed(seed))
    return un.descend(model, shuffled, optimizer=optimizer, epochs=config.text_epochs if text else config.epochs)


def images(config: Config, seed: int) -> tuple[Labelled, Labelled]:
    """Training and test images; while tuning, the test images stay out of it."""
    if config.data == "digits":
        train, test = digits().split(0.75, 0)
    else:
        train, test = idx_images("mnist"), idx_images("mnist", train=False)
    test = test[: config.test]
    if config.train is not None and config.train < len(train):
        train = train.split(config.train / len(train), 0)[0]
    return train.split(0.8, seed) if config.tuning else (train, test)


def image_masks(config: Config, train: Labelled, test: Labelled, seed: int) -> dict[str, tuple[Tensor, Tensor | None]]:
    """Masks over training and test images of what is to be forgotten; None where that is asked on the former alone."""
    label, other = seed % 10, (seed + 1) % 10
    scattered = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed)) < round(
        config.random_share * len(train)
    )
    cluster = require("sklearn.cluster", "lab", purpose="the clusters of a digit")
    ours, ours_test = train.y == other, test.y == other
    halves = cluster.KMeans(2, n_init=4, random_state=seed).fit(train.x[ours].flatten(1).double().numpy())
    part, part_test = ours.clone(), ours_test.clone()
    part[ours] = torch.from_numpy(halves.labels_ == 0)
    part_test[ours_test] = torch.from_numpy(halves.predict(test.x[ours_test].flatten(1).double().numpy()) == 0)
    return {
        "class": (train.y == label, test.y == label),
        "subclass": (part, part_test),
        "random": (scattered, None),
    }


def texts(config: Config, seed: int) -> tuple[Labelled, Labelled, Tensor]:
    """Windows of English with copies of a document of random words in it; unseen windows; a mask of the document's."""
    generator = torch.Generator().manual_seed(seed)
    symbols = encode(descriptions())[: config.text]
    ends = len(symbols) * 4 // 5, len(symbols) * 9 // 10
    known, unseen = (
        (symbols[: ends[0]], symbols[ends[0] : ends[1]]) if config.tuning else (symbols[: ends[1]], symbols[ends[1] :])
    )
    words = torch.randint(2, 28, (30, 6), generator=generator)
    words[:, 5] = 1
    (x, y), (doc_x, doc_y) = windows(known, 32, 16), windows(words.flatten(), 32, 16)
    train = Labelled(torch.cat([*[doc_x] * config.copies, x]), torch.cat([*[doc_y] * config.copies, y]), "text")
    return train, Labelled(*windows(unseen, 32), "text"), torch.arange(len(train)) < config.copies * len(doc_x)
