"""Training with few connections that move: every so many steps the weakest go and as many grow elsewhere.

    K = floor(ζ(t) · edges of a layer),      ζ(t) = ζ_0 (1 + cos(π t / t_end)) / 2   until t_end, none after it
    prune K edges: the smallest |w|, any, or those whose ends fire together least
    grow  K edges: where the gradient is largest, anywhere, or where the ends fire together most

The number of connections never changes. Grown weights begin at zero, with the optimiser's moments cleared; what was
just pruned does not grow back in the same step. A layer prunes fewer than K where fewer can be exchanged.

Sources: Mocanu et al. 2018 (SET: magnitude, random), Evci et al. 2020 (RigL: magnitude, gradient), Konstantaropoulos,
Smirnakis & Papadopouli 2025 (Hebbian). Moments and the ban on immediate return are ours.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple, Self

import torch
from torch import Tensor, nn

from plexus.edit.rewire._choose import at_random, largest, put
from plexus.edit.rewire._hebbian import CoActivity, Listener, activity_site, coactivity, input_site
from plexus.edit.rewire._layers import is_transposed, masked_layers, oriented
from plexus.edit.rewire._measures import densities, density
from plexus.errors import PlexusError, RangeError, UnknownNameError, UnsupportedError
from plexus.nn import project_after_step
from plexus.units import Site
from plexus.units._engine import attach

__all__ = ["Rewired", "SparseTraining"]

Prune = Literal["magnitude-layer", "random", "hebbian"]
Grow = Literal["gradient", "random", "hebbian"]
PRUNERS = ("magnitude-layer", "random", "hebbian")
GROWERS = ("gradient", "random", "hebbian")


class Rewired(NamedTuple):
    """One change of the connections."""

    step: int  # of the optimiser, from 1
    fraction: float  # ζ
    exchanged: dict[str, int]  # connections pruned, and as many grown, by layer


class SparseTraining:
    """Prune and regrow the connections of a masked model while it trains.

        mask_(model, random_wiring(model, 0.1), initialise=True)
        optimizer = torch.optim.Adam(model.parameters())
        with SparseTraining(model, optimizer, every=100, until=7500) as sparse:
            for x, y in batches:
                optimizer.zero_grad()
                loss(model(x), y).backward()
                optimizer.step()
                sparse.step()

    From its making until `close` (or the end of the `with`) absent weights stay at zero and out of the optimiser's
    moments. Hebbian rules listen to the model inside the `with`. Works with automatic mixed precision: a step that the
    gradient scaler skips is skipped here.

    Args:
        model: with masks (`mask_`).
        optimizer: of its parameters.
        every: steps of the optimiser between two changes.
        fraction: ζ_0, share of a layer's connections that is exchanged.
        until: t_end, step of the last change; ζ falls to zero there. None: constant ζ and no end, as published.
        prune, grow: a rule, or a mapping of rules to shares, applied in turn.
        average: α in [0, 1), how much of the gradients and joint activities of earlier batches is kept; 0 is the latest
            batch alone.
        centered: Pearson's correlation instead of the cosine.
        respect_groups: grow within groups only; all layers need groups.
        keep_inputs: never prune the last (strongest) connection into a unit.
        activities: name of a layer → site of the activity of the units that it feeds, where it is not the activation
            that follows it in a Sequential.
        exclude: layers whose connections stay.
        generator: source of ties and of random rules.

    Attributes:
        history: one `Rewired` per change.

    Raises:
        PlexusError: nothing is masked; a step before any step of the optimiser; Hebbian rules that heard nothing.
        RangeError: a number is out of range. UnknownNameError: another rule, or another layer.

    Examples:
        >>> from plexus.edit.rewire import mask_, random_wiring
        >>> model = nn.Sequential(nn.Linear(20, 20), nn.ReLU(), nn.Linear(20, 2))
        >>> model = mask_(model, random_wiring(model, 0.2, exclude=["2"]), initialise=True)
        >>> optimizer = torch.optim.Adam(model.parameters())
        >>> with SparseTraining(model, optimizer, every=1, fraction=0.1) as sparse:
        ...     model(torch.rand(8, 20)).square().mean().backward()
        ...     optimizer.step()
        ...     sparse.step()
        Rewired(step=1, fraction=0.1, exchanged={'0': 8})
        >>> sparse.density()
        0.2
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        every: int = 100,
        fraction: float = 0.1,
        until: int | None = None,
        prune: Prune | Mapping[Prune, float] = "magnitude-layer",
        grow: Grow | Mapping[Grow, float] = "gradient",
        average: float = 0.0,
        centered: bool = False,
        respect_groups: bool = False,
        keep_inputs: bool = True,
        activities: Mapping[str, Site] | None = None,
        exclude: Iterable[str] = (),
        generator: torch.Generator | None = None,
    ) -> None:
        layers = masked_layers(model)
        if not layers:
            raise PlexusError("no layer of this model has a mask", mend="plexus.edit.rewire.mask_(model, …)")
        if every < 1 or not 0 <= fraction <= 1 or not 0 <= average < 1 or (until is not None and until < 1):
            given = {"every": every, "fraction": fraction, "until": until, "average": average}
            raise RangeError("a setting is out of range", given=given, expected="every, until >= 1; shares in [0, 1]")
        self.model, self.optimizer = model, optimizer
        self.every, self.fraction, self.until = every, fraction, until
        self.prune, self.grow = _shares("prune", prune, PRUNERS), _shares("grow", grow, GROWERS)
        self.average, self.centered = average, centered
        self.respect_groups, self.keep_inputs = respect_groups, keep_inputs
        self.history: list[Rewired] = []
        self.generator = generator if generator is not None else torch.Generator().manual_seed(0)
        left = set(exclude)
        for name in (*left, *(activities or {})):
            if name not in layers:
                raise UnknownNameError.among("masked layer", name, layers)
        self._all = layers
        self._layers = {name: layer for name, layer in layers.items() if name not in left}
        self._sites = dict(activities or {})
        self._support = {name: _support(name, layer, respect_groups) for name, layer in self._layers.items()}
        self._t, self._stepped = 0, False
        self._gradients: dict[str, Tensor] = {}
        self._joint: dict[str, CoActivity] = {}
        self._listeners: dict[str, tuple[Listener, Listener]] = {}
        self._attached = contextlib.ExitStack()
        self._hooks = [optimizer.register_step_pre_hook(self._before_step), project_after_step(optimizer, model)]
        for layer in layers.values():
            self._clear(layer, ~layer.get_buffer("weight_mask"))

    @property
    def hebbian(self) -> bool:
        """Whether a rule reads activities."""
        return "hebbian" in self.prune or "hebbian" in self.grow

    def __enter__(self) -> Self:
        if self.hebbian and not self._listeners:
            for name in self._layers:
                behind = self._sites.get(name) or activity_site(self.model, name)
                self._listeners[name] = (
                    Listener(input_site(self.model, name), self.model),
                    Listener(behind, self.model),
                )
            operations = [listener for pair in self._listeners.values() for listener in pair]
            self._attached.enter_context(attach(self.model, operations, all_reached=False))
            self._wake()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop listening and projecting; masks stay."""
        self._attached.close()
        self._listeners.clear()
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    def drop_fraction(self, step: int) -> float:
        """ζ at a step of the optimiser."""
        if self.until is None:
            return self.fraction
        return self.fraction * (1 + math.cos(math.pi * min(step, self.until) / self.until)) / 2

    def due(self, step: int) -> bool:
        """Whether connections change after that step of the optimiser."""
        return step % self.every == 0 and (self.until is None or step <= self.until)

    def density(self) -> float:
        """The share of weights that exist, over the masked layers."""
        return density(self.model)

    def layer_densities(self) -> dict[str, float]:
        """The share of weights that exist, by layer."""
        return densities(self.model)

    def step(self) -> Rewired | None:
        """To be called after each step of the optimiser; what changed, or None where nothing was due."""
        if not self._stepped:
            if not self._t:
                raise PlexusError(
                    "rewiring follows a step of the optimiser, and there was none",
                    mend="loss.backward(); optimizer.step(); sparse.step()",
                )
            self._hear(forget=True)
            return None  # a gradient scaler skipped the step
        self._stepped = False
        self._t += 1
        self._hear()
        change = None
        if self.due(self._t):
            fraction = self.drop_fraction(self._t)
            counts = {name: self._rewire(name, layer, fraction) for name, layer in self._layers.items()}
            change = Rewired(self._t, fraction, counts)
            self.history.append(change)
            if not self.average:
                self._gradients.clear()
                self._joint.clear()
        self._wake()
        return change

    def _near(self, step: int) -> bool:
        """Whether a batch at this step still counts at the next change."""
        reach = 1 if not self.average else math.ceil(math.log(0.01) / math.log(self.average))
        following = -(-step // self.every) * self.every
        return following - step < reach and self.due(following)

    def _wake(self) -> None:
        for pair in self._listeners.values():
            for listener in pair:
                listener.awake = self._near(self._t + 1)

    def _hear(self, forget: bool = False) -> None:
        for name, (before, behind) in self._listeners.items():
            pre, post = before.take(), behind.take()
            if not forget and before.awake and (pre or post):
                found = coactivity(self._layers[name], pre, post, name)
                self._joint[name] = found.averaged(self._joint.get(name), self.average)

    @torch.no_grad()
    def _before_step(self, *_: object) -> None:
        """Keep the gradients of absent weights for growth, and the optimiser's moments free of them."""
        self._stepped = True
        keep = "gradient" in self.grow and self._near(self._t + 1)
        for name, layer in self._all.items():
            gradient = layer.get_parameter("weight").grad
            if gradient is None:
                continue
            if keep and name in self._layers:
                seen = gradient.float()
                before = self._gradients.get(name)
                self._gradients[name] = (
                    seen.clone() if before is None or not self.average else self.average * before + seen
                )
            gradient.mul_(layer.get_buffer("weight_mask"))

    @torch.no_grad()
    def _rewire(self, name: str, layer: nn.Module, fraction: float) -> int:
        weight, mask = layer.get_parameter("weight").detach(), layer.get_buffer("weight_mask")
        edges = int(mask.sum())
        support = self._support[name]
        free = ~mask if support is None else ~mask & support
        k = min(math.floor(fraction * edges), int(free.sum()))
        removable = mask & ~_strongest(layer, weight, mask) if self.keep_inputs else mask.clone()
        pruned: list[Tensor] = []
        for rule, count in _counts(self.prune, k):
            among = removable & self._joint_scores(name, layer)[1] if rule == "hebbian" else removable
            if rule == "magnitude-layer":
                chosen = largest(-weight.abs().float(), among, count, self.generator)
            elif rule == "random":
                chosen = at_random(among, count, self.generator)
            else:
                chosen = largest(-self._joint_scores(name, layer)[0], among, count, self.generator)
            put(removable, chosen, False)
            pruned.append(chosen)
        gone = torch.cat(pruned) if pruned else mask.new_zeros(0, dtype=torch.long)
        grown: list[Tensor] = []
        for rule, count in _counts(self.grow, len(gone)):
            if rule == "random":
                chosen = at_random(free, count, self.generator)
            else:
                score = self._gradient(name) if rule == "gradient" else self._joint_scores(name, layer)[0]
                chosen = largest(score, free, count, self.generator)
            put(free, chosen, False)
            grown.append(chosen)
        come = torch.cat(grown) if grown else gone[:0]
        put(mask, gone, False)
        put(mask, come, True)
        changed = torch.zeros_like(mask)
        put(changed, torch.cat([gone, come]), True)
        weight[changed] = 0
        self._clear(layer, changed)
        return len(gone)

    def _gradient(self, name: str) -> Tensor:
        if name not in self._gradients:
            raise PlexusError(
                f"growth by gradient: {name!r} has no gradient", mend="call backward before optimizer.step()"
            )
        return self._gradients[name].abs()

    def _joint_scores(self, name: str, layer: nn.Module) -> tuple[Tensor, Tensor]:
        """Scores and whether both ends are active, of the weight's shape."""
        if name not in self._joint:
            coactivity(layer, [], [], name)
        shape = oriented(layer, layer.get_parameter("weight")).shape
        score, alive = (part.view(shape) for part in self._joint[name].scores(self.centered))
        return oriented(layer, score), oriented(layer, alive)

    @torch.no_grad()
    def _clear(self, layer: nn.Module, where: Tensor) -> None:
        """Take the optimiser's moments of these weights back to their beginning."""
        weight = layer.get_parameter("weight")
        for value in self.optimizer.state.get(weight, {}).values():
            if isinstance(value, Tensor) and value.shape == weight.shape:
                value[where] = 0

    def state_dict(self) -> dict[str, Any]:
        """Where the schedule, the averages and the random numbers are; masks are in the model's own `state_dict`."""
        joint = {name: vars(found) for name, found in self._joint.items()}
        return {
            "step": self._t,
            "gradients": dict(self._gradients),
            "joint": {name: dict(parts) for name, parts in joint.items()},
            "generator": self.generator.get_state(),
            "history": [tuple(change) for change in self.history],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        self._t, self._stepped = int(state["step"]), False
        device = {name: layer.get_parameter("weight").device for name, layer in self._all.items()}
        gradients, joint = (
            {name: kept for name, kept in state[key].items() if name in device} for key in ("gradients", "joint")
        )
        self._gradients = {name: gradient.to(device[name]) for name, gradient in gradients.items()}
        self._joint = {name: CoActivity(**_lying(parts, device[name])) for name, parts in joint.items()}
        self.generator.set_state(state["generator"].cpu())
        self.history = [Rewired(*change) for change in state["history"]]
        self._wake()


def _lying(parts: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    return {name: part.to(device) if isinstance(part, Tensor) else part for name, part in parts.items()}


def _shares(kind: str, rules: str | Mapping[Any, float], known: tuple[str, ...]) -> dict[str, float]:
    shares = {rules: 1.0} if isinstance(rules, str) else dict(rules)
    for name in shares:
        if name not in known:
            raise UnknownNameError.among(f"rule to {kind}", name, known)
    if not shares or min(shares.values()) < 0 or not math.isclose(sum(shares.values()), 1, abs_tol=1e-6):
        raise RangeError(f"the shares of rules to {kind} sum to one", given=shares)
    return shares


def _counts(shares: Mapping[str, float], k: int) -> list[tuple[str, int]]:
    """How many of k each rule takes, in order; rounding never loses one."""
    edges, total = [0], 0.0
    for share in shares.values():
        total += share
        edges.append(round(total * k))
    return [(rule, b - a) for rule, a, b in zip(shares, edges[:-1], edges[1:], strict=True)]


def _strongest(layer: nn.Module, weight: Tensor, mask: Tensor) -> Tensor:
    """The largest weight into each unit that has one, of the weight's shape."""
    size = oriented(layer, weight.abs().masked_fill(~mask, -1.0)).flatten(1)
    best = torch.zeros_like(size, dtype=torch.bool).scatter_(1, size.argmax(1, keepdim=True), True)
    found = oriented(layer, best.view(oriented(layer, weight).shape))
    return found & mask


def _support(name: str, layer: nn.Module, respect_groups: bool) -> Tensor | None:
    if not respect_groups:
        return None
    out, into = layer._buffers.get("weight_groups_out"), layer._buffers.get("weight_groups_in")
    if out is None or into is None:
        raise UnsupportedError(f"the layer {name!r} has no groups to respect", mend="mask it with a group_wiring")
    same = out[:, None] == into
    if is_transposed(layer):
        return same.T
    weight = layer.get_parameter("weight")
    return same.view(*same.shape, *[1] * (weight.dim() - 2)).expand_as(weight)
