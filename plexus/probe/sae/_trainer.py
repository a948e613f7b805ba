"""Training sparse autoencoders, many at once: every tensor has a leading axis of members, every product is batched.

    loss = mean (x̂ - x)² + λ₁ P + λ₀ N + a A
    P = |z_i| ‖d_i‖, averaged ("mean") or summed ("sum") over features, averaged over rows; ‖d_i‖ counts only where the
        decoder's norms are free and its own, or the penalty could be had for nothing
    N = the number of active features, likewise; learns thresholds
    A = ‖ê - e‖² / ‖e - ē‖², the residual e = x - x̂ as the most driven dead features alone would write it

The members share nothing: the sum of their losses has for each member the gradient of its own loss, and Adam acts
number by number. So a member that has stopped can be let go of while the others go on.

Sources: Bricken et al. 2023 (unit norm, resampling), Gao et al. 2024 (auxiliary loss, eq. in their appendix A.2),
Bereska et al. 2025 (mean |z|, tied weights, patience).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from plexus.errors import RangeError, UnknownNameError
from plexus.probe.sae._activations import step_count, top_k
from plexus.probe.sae._autoencoder import Design, decode, encode
from plexus.probe.sae._measures import entropy_count

__all__ = ["Settings", "Trainer"]

Reduction = Literal["mean", "sum"]
Revive = Literal["auxiliary", "resample"]
Watch = Literal["loss", "features"]
Keep = Literal["best", "last"]

_LIMIT_RATE = 0.01  # how fast the stand-in threshold of batch-top-k follows
_EVALUATED = 4096  # rows that a look at the state of training takes in


@dataclass(frozen=True)
class Settings:
    """How to train; `fit` explains the fields."""

    steps: int
    batch: int = 256
    rate: float = 1e-3
    l1: float | tuple[float, ...] = 0.0
    l0: float = 0.0
    l1_reduction: Reduction = "mean"
    warmup: int = 0
    decay: float = 0.0
    revive: Revive | None = None
    dead_after: int = 10_000
    auxiliary: float = 1 / 32
    resample_every: int = 2500
    every: int = 100
    watch: Watch = "loss"
    patience: int | None = None
    tolerance: float = 0.0
    keep: Keep = "last"

    def __post_init__(self) -> None:
        for name, known in (
            ("l1_reduction", ("mean", "sum")),
            ("revive", (None, "auxiliary", "resample")),
            ("watch", ("loss", "features")),
            ("keep", ("best", "last")),
        ):
            if getattr(self, name) not in known:
                raise UnknownNameError.among(f"`{name}`", str(getattr(self, name)), [str(k) for k in known])
        for name in ("steps", "batch", "dead_after", "resample_every", "every"):
            if getattr(self, name) < 1:
                raise RangeError(f"`{name}` is a count", given=getattr(self, name), expected="at least 1")
        weights = self.l1 if isinstance(self.l1, tuple) else (self.l1,)
        for name, value in (("l0", self.l0), ("auxiliary", self.auxiliary), ("tolerance", self.tolerance)):
            if not 0 <= value < math.inf:
                raise RangeError(f"`{name}` is not negative", given=value)
        if not all(0 <= weight < math.inf for weight in weights) or not self.rate > 0 or not 0 <= self.decay <= 1:
            raise RangeError(
                "rates and penalties lie outside their range",
                given=f"l1={self.l1}, rate={self.rate}, decay={self.decay}",
            )
        if self.patience is not None and self.patience < 1:
            raise RangeError("patience is a count of looks", given=self.patience)


class Trainer:
    """Weights `[member, …]` of those still training, their optimiser, and what is known of each member."""

    def __init__(
        self, design: Design, settings: Settings, weights: Mapping[str, Tensor], generator: torch.Generator
    ) -> None:
        if settings.l0 and design.activation != "jump-relu":
            raise RangeError("counting active features teaches thresholds, and there are none", given=design.activation)
        if settings.revive == "auxiliary" and design.activation == "relu":
            raise RangeError(
                "the auxiliary loss revives features that are driven and not chosen, and a rectifier chooses all",
                mend="revive='resample'",
            )
        self.design, self.settings, self.generator = design, settings, generator
        self.weights = {name: nn.Parameter(value.clone()) for name, value in weights.items()}
        decoder = self.weights["decoder"]
        self.members, device = len(decoder), decoder.device
        self.training = torch.arange(self.members)  # which members the weights are of
        self.optimizer = torch.optim.Adam(self.weights.values(), settings.rate, fused=True)
        self.l1 = torch.as_tensor(settings.l1, device=device).expand(self.members)
        self.limit = torch.zeros(self.members, 1, 1, device=device)
        self.idle = torch.zeros(self.members, design.features, device=device)  # rows since each feature was active
        self.kept = {name: value.detach().clone() for name, value in self.weights.items()}
        self.kept_limit = self.limit.clone()
        self.done = torch.zeros(self.members, dtype=torch.bool)
        self.steps_of = torch.full((self.members,), settings.steps)
        self.steps = 0
        self.curve: dict[str, list[Tensor]] = {}

    def step(self, x: Tensor) -> None:
        """One step on normalised rows `[member, row, unit]`."""
        settings, design = self.settings, self.design
        rate = settings.rate * min(1.0, (settings.steps - self.steps) / max(1.0, settings.decay * settings.steps))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        drive, z = encode(design, self.weights, x)
        x_hat = decode(design, self.weights, z)
        loss = (x_hat - x).square().mean((-1, -2)) + self._penalty(drive, z) * self._warm()
        if settings.revive == "auxiliary":
            loss = loss + settings.auxiliary * self._auxiliary(x, x_hat, drive)
        self.optimizer.zero_grad()
        loss.sum().backward()
        decoder = self.weights["decoder"]
        with torch.no_grad():
            if design.unit_norm and not design.tied and decoder.grad is not None:
                # what would only change the norm is taken out, or Adam's averages would fill with it
                decoder.grad -= (decoder.grad * decoder).sum(-1, keepdim=True) * decoder
            self.optimizer.step()
            if design.unit_norm:
                decoder.copy_(nn.functional.normalize(decoder, dim=-1))
            if settings.revive is not None or design.activation == "batch-top-k":
                self._track(z.detach())
        self.steps += 1
        if settings.revive == "resample" and self.steps % settings.resample_every == 0:
            self._resample(x)

    def look(self, x: Tensor) -> bool:
        """Measure on normalised rows, note it on the curve, and say whether any member still learns."""
        found = self.measure(x)
        self.curve.setdefault("step", []).append(torch.full((self.members,), self.steps))
        for name, value in found.items():
            looks = self.curve.setdefault(name, [])
            # those let go of stay where they were
            looks.append(looks[-1].index_copy(0, self.training, value.cpu()) if looks else value.cpu())
        better, stop = self._judge()
        running = ~self.done
        self._keep(running & better if self.settings.keep == "best" else running)
        self.steps_of[running & stop] = self.steps
        self.done |= stop
        return not bool(self.done.all())

    @torch.no_grad()
    def shed(self) -> Tensor | None:
        """Let go of members that have stopped; the positions of those that stay, or None where all do."""
        stay = (~self.done[self.training]).nonzero().squeeze(1)
        if self.settings.revive is not None or len(stay) in (0, len(self.training)):
            return None
        here = stay.to(self.limit.device)
        for name, old in list(self.weights.items()):
            self.weights[name] = new = nn.Parameter(old[here].contiguous())
            state = self.optimizer.state.pop(old, {})
            self.optimizer.state[new] = {
                key: value if key == "step" else value[here].contiguous() for key, value in state.items()
            }
        self.optimizer.param_groups[0]["params"] = list(self.weights.values())
        self.l1, self.limit, self.idle = self.l1[here], self.limit[here], self.idle[here]
        self.training = self.training[stay]
        return stay

    @torch.no_grad()
    def measure(self, x: Tensor) -> dict[str, Tensor]:
        """Loss and what it is made of, `[member]` each."""
        sums: dict[str, Tensor] = {}
        usage = torch.zeros_like(self.idle, dtype=torch.float64)
        active = torch.zeros_like(usage)
        for rows in x.split(_EVALUATED, dim=1):
            drive, z = encode(self.design, self.weights, rows, limit=self.limit)
            share = rows.shape[1] / x.shape[1]
            error = (decode(self.design, self.weights, z) - rows).square().mean((-1, -2))
            parts = {"error": error, "penalty": self._penalty(drive, z), "l0": (z > 0).sum(-1).float().mean(-1)}
            for name, value in parts.items():
                sums[name] = sums.get(name, torch.zeros_like(value)) + share * value
            usage += z.sum(1, dtype=torch.float64)
            active += (z > 0).sum(1)
        variance = (x - x.mean(1, keepdim=True)).square().mean((-1, -2)).clamp_min(1e-30)
        sums["loss"] = sums["error"] + sums["penalty"]
        sums["fvu"] = sums["error"] / variance
        sums["effective_features"] = entropy_count(usage)
        sums["alive"] = (active > 0).sum(-1).double()
        return sums

    def _penalty(self, drive: Tensor, z: Tensor) -> Tensor:
        settings, design = self.settings, self.design
        reduce = torch.mean if settings.l1_reduction == "mean" else torch.sum
        weighted = z
        if not (design.tied or design.unit_norm):
            weighted = z * torch.linalg.vector_norm(self.weights["decoder"], dim=-1).unsqueeze(-2)
        penalty: Tensor = self.l1 * reduce(weighted, -1).mean(-1)
        if settings.l0:
            threshold = self.weights["log_threshold"].exp().unsqueeze(-2)
            penalty = penalty + settings.l0 * reduce(step_count(drive, threshold, design.width), -1).mean(-1)
        return penalty

    def _warm(self) -> float:
        return min(1.0, (self.steps + 1) / self.settings.warmup) if self.settings.warmup else 1.0

    def _auxiliary(self, x: Tensor, x_hat: Tensor, drive: Tensor) -> Tensor:
        dead = (self.idle >= self.settings.dead_after).unsqueeze(-2)
        residual = (x - x_hat).detach()
        only = torch.where(dead, drive, torch.full_like(drive, -torch.inf))
        revived = decode(self.design, self.weights, top_k(only, max(1, self.design.units // 2)), bias=False)
        spread = (residual - residual.mean(-2, keepdim=True)).square().mean((-1, -2)).clamp_min(1e-12)
        return (revived - residual).square().mean((-1, -2)) / spread * dead.any(-1).squeeze(-1)

    def _track(self, z: Tensor) -> None:
        fired = (z > 0).any(-2)
        self.idle = torch.where(fired, torch.zeros_like(self.idle), self.idle + z.shape[-2])
        if self.design.activation == "batch-top-k":
            least = torch.where(z > 0, z, torch.full_like(z, torch.inf)).amin((-1, -2), keepdim=True)
            moved = least if self.steps == 0 else self.limit + _LIMIT_RATE * (least - self.limit)
            self.limit = torch.where(least.isfinite(), moved, self.limit)

    @torch.no_grad()
    def _resample(self, x: Tensor) -> None:
        """Dead features begin anew at rows that are explained badly."""
        weights, design = self.weights, self.design
        _, z = encode(design, weights, x)
        error = (decode(design, weights, z) - x).square().sum(-1)
        for member in range(self.members):
            dead = (self.idle[member] >= self.settings.dead_after).nonzero().squeeze(1)
            odds = error[member].double().cpu().square()
            if not len(dead) or float(odds.sum()) == 0.0:
                continue
            odds = odds.to(self.generator.device)
            drawn = torch.multinomial(odds, len(dead), replacement=True, generator=self.generator)
            rows = x[member, drawn.to(x.device)]
            if design.pre_bias and design.decoder_bias:
                rows = rows - weights["decoder_bias"][member]
            rows = nn.functional.normalize(rows, dim=-1)
            alive = self.idle[member] < self.settings.dead_after
            encoder = weights["decoder"][member] if design.tied else weights["encoder"][member].T
            norms = torch.linalg.vector_norm(encoder[alive], dim=-1)
            scale = 0.2 * float(norms.mean()) if len(norms) else 1.0
            weights["decoder"][member, dead] = rows if design.unit_norm else rows * (scale if design.tied else 1.0)
            if not design.tied:
                weights["encoder"][member][:, dead] = scale * rows.T
            for name in ("encoder_bias", "gate_bias", "magnitude_bias", "magnitude"):
                if name in weights:
                    weights[name][member, dead] = 0.0
            self._forget(member, dead)
            self.idle[member, dead] = 0.0

    def _forget(self, member: int, features: Tensor) -> None:
        """Reset what the optimiser remembers of some features."""
        for name, parameter in self.weights.items():
            for key in ("exp_avg", "exp_avg_sq"):
                memory = self.optimizer.state[parameter][key][member]
                if name == "encoder":
                    memory[:, features] = 0.0
                elif name != "decoder_bias":
                    memory[features] = 0.0

    def _judge(self) -> tuple[Tensor, Tensor]:
        """Which members are better than ever, and which have stopped improving."""
        settings = self.settings
        losses = torch.stack(self.curve["loss"])
        best_before = losses[:-1].amin(0) if len(losses) > 1 else torch.full((self.members,), torch.inf)
        better = losses[-1] < best_before
        stop = torch.zeros(self.members, dtype=torch.bool)
        if settings.patience is None or len(losses) <= settings.patience:
            return better, stop
        if settings.watch == "loss":
            recent, before = losses[-settings.patience :].amin(0), losses[: -settings.patience].amin(0)
            return better, recent >= before * (1 - settings.tolerance)
        recent = torch.stack(self.curve["effective_features"][-settings.patience - 1 :])
        return better, (recent.amax(0) - recent.amin(0)) <= settings.tolerance * recent.mean(0)

    @torch.no_grad()
    def _keep(self, which: Tensor) -> None:
        """Copy the weights of some members aside: the values, not references that later steps would overwrite."""
        device = self.limit.device
        here = which[self.training].nonzero().squeeze(1)
        members, here = self.training[here].to(device), here.to(device)
        for name, value in self.weights.items():
            self.kept[name][members] = value[here]
        self.kept_limit[members] = self.limit[here]
