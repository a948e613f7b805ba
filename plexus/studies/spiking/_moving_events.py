"""Movies of the study `hd-snn`, how its models learn from them, and a rival that knows what it is looking for."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from plexus.data import (
    event_frames,
    natural_image,
    oriented_noise,
    random_gaze,
    saccade_movie,
    velocities,
    whiten,
)
from plexus.nn import DelayedConv

IMAGES = ("china", "flower")
PARTS = {"train": (0, 320), "validation": (320, 448), "test": (448, 640)}
"""Columns of each photograph that each part of the data sees."""

BUSY = 0.05
"""Least number of events per pixel and step of a movie that shows something."""


def generator(seed: int, stream: int) -> torch.Generator:
    return torch.Generator().manual_seed(1_000 * seed + stream)


@dataclass
class Movies:
    """Events `[time, movie, 2, y, x]`, label and steps since the last change `[time, movie]`."""

    events: Tensor
    label: Tensor
    age: Tensor

    def first(self, count: int) -> Movies:
        return Movies(self.events[:, :count], self.label[:, :count], self.age[:, :count])


def region(name: str, part: str, fallback: torch.Generator) -> Tensor:
    """The part of a photograph, whitened on its own, so that no pixel of another part touches it."""
    start, stop = PARTS[part]
    return whiten(natural_image(name, generator=fallback)[:, start:stop]).float()


def upright_and_turned(image: Tensor) -> list[Tensor]:
    """The image by quarter turns: two photographs alone favour the orientations of their buildings and petals."""
    return [image.rot90(turns) for turns in range(4)]


def piece(image: Tensor, side: int, draw: torch.Generator) -> Tensor:
    """A square of the image, as large as fits."""
    height, width = (min(side, n) for n in image.shape)
    top = int(torch.randint(image.shape[0] - height + 1, (), generator=draw))
    left = int(torch.randint(image.shape[1] - width + 1, (), generator=draw))
    return image[top : top + height, left : left + width]


def span(velocity: Tensor) -> Tensor:
    """How far a walk reaches along y and x."""
    walk = velocity.cumsum(0)
    return walk.amax(0) - walk.amin(0)


def natural_movies(config: Any, part: str, count: int, seed: int) -> Movies:
    """`count` movies of gaze walking over one part of the photographs; blank skies and long walks are drawn again."""
    draw = generator(seed, 1 + list(PARTS).index(part))
    images = [turned for name in IMAGES for turned in upright_and_turned(region(name, part, draw))]
    choices = velocities(config.directions, config.speeds)
    gazes, movies = [], []
    while len(movies) < count:
        gaze = random_gaze(config.steps, choices, mean_segment=config.segment, generator=draw)
        image = images[len(movies) % len(images)]
        tile = piece(image, config.tile, draw)
        if bool((span(gaze.velocity) + config.size > torch.tensor(tile.shape)).any()):
            continue
        seen = saccade_movie(tile, gaze.velocity, (config.size, config.size), generator=draw)
        events = event_frames(seen, config.threshold)
        if float(events.sum(1).mean()) >= BUSY:
            gazes.append(gaze)
            movies.append(events)
    events = torch.stack(movies, 1)
    return Movies(events, torch.stack([g.label for g in gazes], 1), torch.stack([g.age for g in gazes], 1))


def texture_movies(config: Any, across: str, count: int, seed: int) -> Movies:
    """Textures of one orientation moving steadily: they vary along the motion, across it, or at random to it."""
    draw = generator(seed, 10)
    choices = velocities(config.directions, config.speeds)
    side = max(128, config.size + math.ceil(config.steps * max(config.speeds)) + 1)
    frames, labels = [], []
    for n in range(count):
        label = n % len(choices)
        y, x = choices[label].tolist()
        angle = math.atan2(y, x)
        if across == "blind":  # brightness varies across the motion alone: the stripes slide along themselves
            angle += math.pi / 2
        elif across == "random":
            angle = math.pi * float(torch.rand((), generator=draw))
        texture = oriented_noise(side, side, angle, generator=draw).float()
        velocity = choices[label].expand(config.steps, 2)
        frames.append(saccade_movie(texture, velocity, (config.size, config.size), generator=draw))
        labels.append(torch.full((config.steps,), label))
    label = torch.stack(labels, 1)
    age = torch.arange(config.steps).unsqueeze(1).expand_as(label)
    return Movies(event_frames(torch.stack(frames, 1), config.threshold), label, age)


def loss(logits: Tensor, label: Tensor) -> Tensor:
    """Binary cross-entropy of every class at every place; logits `[place, class]`."""
    return functional.binary_cross_entropy_with_logits(logits, functional.one_hot(label, logits.shape[1]).to(logits))


def descend(model: DelayedConv | SmallCNN, config: Any, movies: Movies, draw: torch.Generator) -> None:
    """Adam with a cosine schedule; every step sees new places of all movies, at times after the first window."""
    optimiser = torch.optim.Adam(model.parameters(), config.rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, config.iterations)
    extent = config.size - config.kernel + 1
    high = (config.steps - config.window, movies.events.shape[1], extent, extent)
    for _ in range(config.iterations):
        places = torch.stack([torch.randint(n, (config.places,), generator=draw) for n in high], 1)
        places[:, 0] += config.window
        optimiser.zero_grad()
        loss(model.at(movies.events, places), movies.label[places[:, 0], places[:, 1]]).backward()
        optimiser.step()
        schedule.step()


def train_layer(config: Any, movies: Movies, seed: int) -> DelayedConv:
    """One layer of delays and what it learnt."""
    draw = generator(seed, 20)
    classes = config.directions * len(config.speeds)
    layer = DelayedConv(
        2, classes, config.delays, config.kernel, polarity_max=config.polarity_max, init=config.init, generator=draw
    )
    descend(layer, config, movies, draw)
    return layer.eval().requires_grad_(False)


class SmallCNN(nn.Module):
    """Two space-time convolutions with a ReLU between them, seeing what one `DelayedConv` sees."""

    def __init__(self, classes: int, hidden: int, delays: int, kernel: int, draw: torch.Generator) -> None:
        super().__init__()
        first = (delays // 2 + 1, kernel // 2 + 1, kernel // 2 + 1)
        # the second reads every other place of the first, up to the border of the window
        second = (delays - first[0] + 1, (kernel - first[1]) // 2 + 1, (kernel - first[2]) // 2 + 1)
        self.window, self.reach = (delays, kernel, kernel), delays
        self.first, self.second = nn.Conv3d(2, hidden, first), nn.Conv3d(hidden, classes, second)
        for layer in (self.first, self.second):
            nn.init.normal_(layer.weight, std=math.sqrt(2 / layer.weight[0].numel()), generator=draw)
        nn.init.zeros_(self.first.bias)
        nn.init.constant_(self.second.bias, -math.log(max(classes - 1, 1)))

    def forward(self, events: Tensor) -> Tensor:
        """Log odds `[time, batch, class, y, x]`; the last frame is not seen and the first ones are padded, as there."""
        seen = functional.pad(events.permute(1, 2, 0, 3, 4), (0, 0, 0, 0, self.reach, 0))[:, :, :-1]
        hidden = functional.conv3d(seen, self.first.weight, self.first.bias).relu()
        out = functional.conv3d(hidden, self.second.weight, self.second.bias, dilation=(1, 2, 2))
        return out.permute(2, 0, 1, 3, 4)

    def at(self, events: Tensor, places: Tensor) -> Tensor:
        """Log odds `[place, class]` at rows t, b, y, x of the output, t after the first window."""
        t, b, y, x = places.unbind(1)
        axes = [torch.arange(n) for n in self.window]
        when, row, column = (start.view(-1, 1) + axis for start, axis in zip((t - self.reach, y, x), axes, strict=True))
        patches = events[
            when[:, :, None, None], b.view(-1, 1, 1, 1), :, row[:, None, :, None], column[:, None, None, :]
        ].movedim(4, 1)
        hidden = functional.conv3d(patches, self.first.weight, self.first.bias, stride=(1, 2, 2)).relu()
        return functional.conv3d(hidden, self.second.weight, self.second.bias).flatten(1)


def train_cnn(config: Any, movies: Movies, seed: int) -> SmallCNN:
    draw = generator(seed, 21)
    model = SmallCNN(config.directions * len(config.speeds), config.hidden, config.delays, config.kernel, draw)
    descend(model, config, movies, draw)
    return model.eval().requires_grad_(False)


def correlator(config: Any, events: Tensor) -> Tensor:
    """A bank of Reichardt detectors that are told the velocities: evidence `[time, movie, class]`.

    score_v[t] = Σ over lags d and the last frames s, mean over x of  S[s, x] S[s - d, x + v d],   S = ON - OFF.
    Nothing is learnt; the number of lags and of frames is tuned. It sees the frames that a layer of delays sees.
    """
    signed = events[:, :, 1] - events[:, :, 0]
    steps, movies, height, width = signed.shape
    choices = velocities(config.directions, config.speeds)
    score = torch.zeros(steps, movies, len(choices))
    for index, velocity in enumerate(choices.tolist()):
        for lag in range(1, config.lags + 1):
            dy, dx = (round(v * lag) for v in velocity)
            now = signed[lag:, :, max(0, -dy) : height - max(0, dy), max(0, -dx) : width - max(0, dx)]
            then = signed[:-lag, :, max(0, dy) : height - max(0, -dy), max(0, dx) : width - max(0, -dx)]
            score[lag:, :, index] += (now * then).mean((2, 3))
    causal = functional.pad(score, (0, 0, 0, 0, config.frames, 0))[:-1]  # up to t - 1
    return causal.unfold(0, config.frames, 1).mean(3)
