"""Modes of a network: two numbers per neuron, a threshold and a gain, learnt while all weights stay.

    a        value of a unit in the base network
    s        σ((a - τ) / T)            soft gate, in training
             1[a > τ]                  hard gate, in evaluation
    y        γ s a                     what goes on from the unit

A network keeps many modes beside each other and switches among them; without one it is the base network. A spiking
layer has its own threshold: there τ is added to it, and γ multiplies what the layer puts out.

Source: Ghasemlou 2026 (there TauGate); related: Liu et al. 2022 (IA³: the gains alone), Ben Zaken et al. 2022 (biases).
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from plexus.edit.gate._gates import hard_gate, sigmoid_gate, straight_through
from plexus.edit.gate._mode_operations import Gate, Raise, Tally, default_sites, is_spiking, sizes_of
from plexus.errors import RangeError, SiteError, UnknownNameError, UnsupportedError
from plexus.units import Site, SiteList, attach, fingerprint
from plexus.units._evaluating import differentiable
from plexus.units._paths import find_module

__all__ = ["Gates", "Mode", "NeuronModes", "settings_of"]

Gates = Literal["auto", "soft", "hard"]


_acting: weakref.WeakSet[nn.Module] = weakref.WeakSet()  # kept apart from the modes, so that a copy does not inherit it


class Mode(nn.Module):
    """The thresholds and gains of one mode; `modes["name"]` is one. Its `state_dict` is a small file of its own.

    Attributes:
        thresholds: τ per site, `[unit]`; empty where a mode has none.
        gains: γ per site, `[unit]`; empty where a mode has none.
        temperature: T of the soft gate.
    """

    def __init__(
        self, sizes: Sequence[int], starts: Sequence[float] | None, gain: bool, temperature: float, made_for: Any
    ) -> None:
        super().__init__()
        taus = [] if starts is None else [torch.full((n,), start) for n, start in zip(sizes, starts, strict=True)]
        self.thresholds = nn.ParameterList([nn.Parameter(tau) for tau in taus])
        self.gains = nn.ParameterList([nn.Parameter(torch.ones(n)) for n in sizes] if gain else [])
        self.register_buffer("_temperature", torch.tensor(0.0))
        self._temperature: Tensor
        self.temperature = temperature
        self._made_for = made_for

    @property
    def temperature(self) -> float:
        """T of the soft gate; set it to anneal."""
        return float(self._temperature)

    @temperature.setter
    def temperature(self, value: float) -> None:
        if not value > 0:
            raise RangeError("the temperature of a gate is positive", given=value, expected="T > 0")
        self._temperature.fill_(value)

    def get_extra_state(self) -> Any:
        """What the mode was made for, so that it is not loaded into another model."""
        return self._made_for

    def set_extra_state(self, state: Any) -> None:
        """Refuse the state of a mode that was made for another model or other sites."""
        if state != self._made_for:
            raise UnsupportedError(
                "this mode was made for another model or other sites",
                given=state["model"],
                expected=self._made_for["model"],
            )

    def extra_repr(self) -> str:
        """The temperature and how many numbers there are."""
        return f"{sum(p.numel() for p in self.parameters())} numbers, temperature={self.temperature:g}"


class NeuronModes(nn.Module):
    """`modes(x)` is the base network in the active mode; `modes.add("name")` makes a mode to train.

    The base network is not touched: weights, buffers and class stay, edits and recorders may be attached to it, and it
    stays in evaluation mode, also while a mode is trained. Gates are soft in training mode and hard in evaluation mode
    unless `harden` or `soften` says otherwise. `modes.on()` lets the active mode act on the base network itself, for
    `generate` and the like.

    Args:
        base: any module, frozen (`requires_grad_(False)`).
        at: sites; None: neurons of spiking layers, else hidden units of MLPs, else outputs of activation modules.
        threshold: whether modes have thresholds.
        gain: whether modes have gains.
        temperature: T of the soft gate.
        gate_on: compare the `"value"` with the threshold or its `"magnitude"` (for GELU and SiLU, whose values may be
            negative; for heads the length of the vector).
        start: initial threshold; None: -2 T, where gates are open at the start (0 for spiking layers).
        gain_range: limits of the gains, or None; the gradient goes through.
        example: an input of the model, where the sites' sizes are not known without running it.
        sizes: the sites' sizes, in place of an example.
        allow_trainable: also take a base with parameters that require gradients.

    Raises:
        SiteError: no sites were found, or their sizes are not known.
        UnsupportedError: the base is not frozen; a spiking layer has no threshold.
        RangeError: T <= 0, or there is nothing to learn.

    Examples:
        >>> _ = torch.manual_seed(0)
        >>> base = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).requires_grad_(False)
        >>> modes = NeuronModes(base)
        >>> _ = modes.add("rotated")
        >>> optimizer = torch.optim.Adam(modes.train_parameters("rotated"), lr=1e-2)
        >>> x, y = torch.randn(16, 4), torch.randint(0, 2, (16,))
        >>> for _ in range(3):
        ...     optimizer.zero_grad()
        ...     nn.functional.cross_entropy(modes(x), y).backward()
        ...     optimizer.step()
        >>> _ = modes.eval().activate(None)
        >>> torch.equal(modes(x), base(x))
        True
    """

    def __init__(
        self,
        base: nn.Module,
        at: Site | Iterable[Site] | None = None,
        *,
        threshold: bool = True,
        gain: bool = True,
        temperature: float = 0.1,
        gate_on: Literal["value", "magnitude"] = "value",
        start: float | None = None,
        gain_range: tuple[float | None, float | None] | None = None,
        example: Any = None,
        sizes: Mapping[Site, int] | None = None,
        allow_trainable: bool = False,
    ) -> None:
        super().__init__()
        if not temperature > 0:
            raise RangeError("the temperature of a gate is positive", given=temperature, expected="T > 0")
        if not threshold and not gain:
            raise RangeError("a mode without thresholds and gains has nothing to learn")
        if gate_on not in ("value", "magnitude"):
            raise UnknownNameError.among("quantity to gate on", str(gate_on), ("value", "magnitude"))
        trainable = [name for name, p in base.named_parameters() if p.requires_grad]
        if trainable and not allow_trainable:
            raise UnsupportedError(
                "the base network of modes is frozen, and this one has parameters that would be trained",
                given=", ".join(trainable[:3]) + (", …" if len(trainable) > 3 else ""),
                mend="NeuronModes(model.requires_grad_(False)), or allow_trainable=True",
            )
        self.base = base
        at = default_sites(base) if at is None else at
        found = at if isinstance(at, SiteList) else SiteList([at] if isinstance(at, Site) else at)
        if not found:
            raise SiteError("modes need a site")
        self.sites = tuple(found)
        self.sizes = dict(sizes) if sizes is not None else sizes_of(base, found, example)
        self.threshold, self.gain, self.temperature, self.gate_on = threshold, gain, temperature, gate_on
        self.start, self.gain_range = start, gain_range
        self.gates: Gates = "auto"
        self.active: str | None = None
        self.modes = nn.ModuleDict()
        self._spiking = {site: is_spiking(base, site) for site in self.sites}
        for site in self.sites:
            if threshold and site.has_features and gate_on == "value":
                raise UnsupportedError(
                    f"units of site {site} are vectors", mend="gate_on='magnitude' compares their lengths"
                )
            layer = find_module(base, site.path)
            if threshold and self._spiking[site] and not isinstance(getattr(layer, "threshold", None), Tensor):
                raise UnsupportedError(f"{type(layer).__name__} at {site.path!r} has no threshold to move")
        self._made_for = {"model": fingerprint(base), "sites": [site.to_json() for site in self.sites]}
        self._opened: list[Tensor] | None = None
        self.base.eval()

    def add(self, name: str) -> Mode:
        """Make a mode that does nothing yet, and activate it.

        Raises:
            UnknownNameError: there is a mode of that name, or the name is empty or has a dot.
        """
        if not name or "." in name or name in self.modes:
            raise UnknownNameError(
                f"a mode cannot be called {name!r}", given=f"modes: {', '.join(self.modes) or 'none'}"
            )
        first = -2 * self.temperature if self.start is None else self.start
        starts = [(self.start or 0.0) if self._spiking[site] else first for site in self.sites]
        mode = Mode(
            [self.sizes[site] for site in self.sites],
            starts if self.threshold else None,
            self.gain,
            self.temperature,
            self._made_for,
        )
        device = next((p.device for p in self.base.parameters()), torch.device("cpu"))
        self.modes[name] = mode.to(device)
        self.active = name
        return mode

    def __getitem__(self, name: str) -> Mode:
        """The mode of that name."""
        if name not in self.modes:
            raise UnknownNameError.among("mode", str(name), self.modes)
        return self.modes[name]  # type: ignore[return-value]

    def __contains__(self, name: str) -> bool:
        return name in self.modes

    def activate(self, name: str | None) -> NeuronModes:
        """Switch to a mode, or to the base network (None); returns self."""
        if name is not None:
            self[name]
        self.active = name
        return self

    def train_parameters(self, name: str) -> list[nn.Parameter]:
        """The thresholds and gains of a mode, to give to an optimiser.

        The mode becomes active and the gates go into training mode; the base network stays in evaluation mode.

        Raises:
            UnknownNameError: there is no such mode.
        """
        self.activate(name).train()
        parameters = list(self[name].parameters())
        for parameter in parameters:
            parameter.requires_grad_(True)
        return parameters

    def harden(self) -> NeuronModes:
        """Hard gates from now on; in training with the gradient of the soft ones (straight-through). Returns self."""
        self.gates = "hard"
        return self

    def soften(self) -> NeuronModes:
        """Soft gates from now on, also in evaluation mode. Returns self."""
        self.gates = "soft"
        return self

    def interpolate(self, first: str, second: str, weight: float, name: str) -> Mode:
        """Make a mode between two: `(1 - weight) · first + weight · second`, thresholds and gains alike.

        Raises:
            UnknownNameError: a mode does not exist, or the new one does.
        """
        one, two = self[first], self[second]
        mode = self.add(name)
        with torch.no_grad():
            for target, a, b in zip(mode.parameters(), one.parameters(), two.parameters(), strict=True):
                target.copy_(torch.where(a == b, a, (1 - weight) * a + weight * b))  # equal infinities stay
        mode.temperature = (1 - weight) * one.temperature + weight * two.temperature
        return mode

    def train(self, mode: bool = True) -> NeuronModes:
        """Soft gates (training) or hard ones; the frozen base stays in evaluation mode."""
        super().train(mode)
        self.base.eval()
        return self

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the base network answers in the active mode."""
        if self.active is None:
            return self.base(*args, **kwargs)
        with self.on():
            return self.base(*args, **kwargs)

    @contextlib.contextmanager
    def on(self, tally: Tally | None = None) -> Iterator[nn.Module]:
        """Let the active mode act on the base network until the `with` is left; gives the base network.

        Attaching costs as much as running a small network, so a training loop is faster inside one `with modes.on()`.
        Modes may be switched inside.

        Args:
            tally: told at every firing of a site: `(site, values, gates, what goes on, visit)`.
        """
        if self in _acting:
            if tally is not None:
                raise UnsupportedError("the modes act already", mend="leave their `with modes.on()` first")
            yield self.base
            return
        operations = [operation for place in range(len(self.sites)) for operation in self._operations(place, tally)]
        _acting.add(self)
        try:
            # the base is in evaluation mode also while gradients go through it
            through = differentiable(self.base) if torch.is_grad_enabled() else contextlib.nullcontext()
            with attach(self.base, operations), through:
                yield self.base
        finally:
            _acting.discard(self)
            for operation in operations:
                if isinstance(operation, Raise):
                    operation.lower()

    @contextlib.contextmanager
    def opened(self) -> Iterator[list[Tensor]]:
        """Inside, each firing of a gate in training leaves its mean, for a penalty: `loss + λ · sum(means)`.

        Examples:
            >>> modes = NeuronModes(nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)).requires_grad_(False))
            >>> _ = modes.add("sparse")
            >>> with modes.opened() as means:
            ...     out = modes(torch.rand(5, 2))
            >>> len(means), means[0].requires_grad
            (1, True)
        """
        self._opened = []
        try:
            yield self._opened
        finally:
            self._opened = None

    def _operations(self, place: int, tally: Tally | None) -> list[Gate | Raise]:
        site = self.sites[place]
        if not self._spiking[site]:
            return [Gate(self, place, site, tally)]
        raised = Raise(self, place, site, find_module(self.base, site.path)) if self.threshold else None
        gate = Gate(self, place, replace(site, where="readout"), tally, raised)
        return [gate] if raised is None else [raised, gate]

    def numbers(self, place: int) -> tuple[Tensor | None, Tensor | None]:
        """Threshold and gain of the active mode at a site, `[unit]`; None where there is none."""
        if self.active is None:
            return None, None
        mode = self[self.active]
        gamma = mode.gains[place] if len(mode.gains) else None
        if gamma is not None and self.gain_range is not None:
            gamma = gamma + (gamma.clamp(*self.gain_range) - gamma).detach()
        return (mode.thresholds[place] if len(mode.thresholds) else None), gamma

    def gate(self, values: Tensor, tau: Tensor, vectors: bool) -> Tensor:
        """The gate of values `[*rows, unit]`, or of vectors `[*rows, unit, feature]`."""
        assert self.active is not None
        measure = values
        if self.gate_on == "magnitude":
            measure = values.norm(dim=-1) if vectors else values.abs()
        if not self.training and self.gates != "soft":
            return hard_gate(measure, tau)
        soft = sigmoid_gate(measure, tau, self[self.active].temperature)
        if self._opened is not None:
            self._opened.append(soft.mean())
        return straight_through(hard_gate(measure, tau), soft) if self.gates == "hard" else soft


def settings_of(modes: NeuronModes) -> dict[str, Any]:
    """The settings with which modes like these are made."""
    names = ("threshold", "gain", "temperature", "gate_on", "start", "gain_range")
    return {name: getattr(modes, name) for name in names}
