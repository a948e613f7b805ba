"""The digits of `adaptive_gain_control`: a frozen recurrent autoencoder, the streams it adapts to and is judged on.

The settings (`config`) are that study's `Config`.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from plexus.data import Labelled, digits
from plexus.learn.homeostasis import GainControl, divisive_gain
from plexus.nn import RecurrentAutoencoder, RecurrentRate


class Stream:
    """Images as drive of the frozen network, with the probabilities of a stream in which one class is common."""

    def __init__(self, model: RecurrentAutoencoder, images: Labelled, common: int, share: float) -> None:
        x = images.x.flatten(1).double()
        rare = images.y != common
        self.drive, self.target = model.drive(x), x - model.centre
        self.biased = torch.where(rare, (1 - share) / rare.sum(), share / (~rare).sum()).double()


class DigitBench:
    """A frozen autoencoder; it adapts to part of the training images and is judged on others."""

    def __init__(self, config: Any, model: RecurrentAutoencoder, seed: int, *, validate: bool = False) -> None:
        self.config, self.model, self.seed, self.net = config, model, seed, model.net
        train, test = digits().split(0.6, seed)
        train = train[torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))]
        seen, unseen = train[: config.digit_images], train[config.digit_images :] if validate else test
        self.adapt, self.judge = (Stream(model, images, seed % 10, config.adapter) for images in (seen, unseen))
        self.usual = self.adapt.drive.mean(0)
        self.one = torch.ones(config.digit_units, dtype=torch.float64)
        self.budgets = [config.digit_budget * self.activity(stream, self.one) for stream in (self.adapt, self.judge)]

    def rates(self, stream: Stream, gain: Tensor, net: RecurrentRate | None = None) -> Tensor:
        return (net or self.net).steady_state(stream.drive, gain=gain, tol=1e-8)

    def activity(self, stream: Stream, gain: Tensor) -> float:
        return float(stream.biased @ self.rates(stream, gain).square().sum(1))

    def gains(self, rule: str) -> Tensor:
        """What a rule makes of the adapting stream, before the scale that equal activity asks for."""
        config, stream, n = self.config, self.adapt, self.config.digit_units
        if rule in ("gains", "shuffled"):
            control = GainControl(n, alpha=config.digit_alpha, gamma=config.digit_gamma).double()
            readout = {"reader": self.model.decode, "target": stream.target, "tol": 1e-7, "state_tol": 1e-7}
            gain = control.fit(self.net, stream.drive, stream.biased, **readout)
            order = torch.randperm(n, generator=torch.Generator().manual_seed(self.seed))
            return gain[order] if rule == "shuffled" else gain
        if rule == "local":
            control = GainControl(n, alpha=config.strength, gamma=float(stream.drive.square().mean())).double()
            return control.solve(stream.drive, None, stream.biased)
        if rule == "divisive":
            return divisive_gain(self.usual, stream.biased @ stream.drive, power=config.strength)
        return self.one

    def retrained(self, parts: str) -> tuple[RecurrentRate, Tensor]:
        """Recurrent weights, and with `all` the decoder too, trained on the adapting stream at equal activity."""
        generator, stream = torch.Generator().manual_seed(self.seed), self.adapt
        weight = torch.nn.Parameter(self.net.weight.clone())
        decode = self.model.decode.clone().requires_grad_(parts == "all")
        net = RecurrentRate(weight, activation=torch.relu)
        optimizer = torch.optim.Adam(
            [weight, decode] if parts == "all" else [weight], lr=1e-3 if parts != "all" else 3e-3
        )
        for _ in range(self.config.digit_steps):
            index = torch.multinomial(stream.biased, 128, replacement=True, generator=generator)
            rates = net.steady_state(stream.drive[index], tol=1e-3)
            rates = rates * (self.budgets[0] / rates.square().sum(1).mean()).sqrt()
            optimizer.zero_grad()
            (stream.target[index] - rates @ decode.T).square().sum(1).mean().backward()
            optimizer.step()
        return RecurrentRate(weight.detach(), activation=torch.relu), decode.detach()

    def judged(self, gain: Tensor, net: RecurrentRate | None = None, decode: Tensor | None = None) -> dict[str, float]:
        """Error on unseen images at equal activity: a rectified network's rates scale with its gains."""
        prob, rates = self.judge.biased, self.rates(self.judge, gain, net)
        rates = rates * math.sqrt(self.budgets[1] / float(prob @ rates.square().sum(1)))
        error = (self.judge.target - rates @ (self.model.decode if decode is None else decode).T).square().sum(1)
        mean = prob @ rates
        return {
            "error": float(prob @ error),
            "activity": float(prob @ rates.square().sum(1)),
            "rate_cv": float(mean.std() / mean.mean()),
        }
