"""Gain control on the layers of any network: one gain per unit or channel, adapted to a stream, undone exactly.

    g_i(p) = (C_ii + γ) / ((1 + α) C_ii + γ),   C_ii = E_p[x_i²]    optimum of a unit for a stream p, W = 0
    x_i → h_i x_i,   h_i = g_i(p) / g_i(p_reference)                 what is applied; 1 in the reference context
    γ = gamma · mean_i C_ii(p_reference)                             per layer, so that the settings have no units

The network as trained is taken to be right for its reference stream, so its gains there are 1 and it computes what it
computed before; a unit that a new stream drives harder is turned down, one that it drives less is turned up.

With an objective of your own, `objective(model, batch) -> loss`, the gains h are fitted by gradient instead, under a
pull `gamma · mean (h - 1)²`; the weights of the model get no gradient and stay as they are.

The gains attach through the library's one hook engine, as an edit of the layer's output. No weight is touched: a
parametrization would make scaled copies, which differ in the last bits and break tied weights. Other edits and
recorders see the gained values in their turn, units of recurrent layers are gained inside their loop, detaching leaves
nothing behind.
"""

from __future__ import annotations

import contextlib
import fnmatch
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Literal

import torch
from torch import Tensor, nn

from plexus.errors import RangeError, SiteError, UnknownNameError, UnsupportedError
from plexus.learn.homeostasis._gain_control import GainControl
from plexus.nn._places import device_of
from plexus.units._engine import attach
from plexus.units._evaluating import evaluating
from plexus.units._pass import Visit
from plexus.units._port import Port
from plexus.units._site import Site

Objective = Callable[[nn.Module, Any], Tensor]
Forward = Callable[[nn.Module, Any], Any]

_AXES = {nn.Linear: "b ... u", nn.Conv1d: "b u x", nn.Conv2d: "b u y x", nn.Conv3d: "b u z y x"}


class _Gain:
    """The edit: multiplies the values of a site by the gains of its layer.

    A recurrent layer is given the gains once, as a port of its loop, so there the tensor is made at the start and
    changed in place; elsewhere None is exactly 1.
    """

    records = False

    def __init__(self, site: Site, model: nn.Module) -> None:
        self.site = site
        module = model.get_submodule(site.path)
        self.units = getattr(module, "hidden_size", None) or getattr(module, "units", None)
        self.gain: Tensor | None = None
        self.in_loop = False
        self.device = device_of(model)

    def __call__(self, values: Tensor, visit: Visit) -> Tensor | None:
        if self.gain is None:
            return None
        gain = self.gain.to(device=values.device, dtype=values.dtype)
        return values * (gain[:, None] if values.dim() == len(visit.rows) + 2 else gain)

    def port(self) -> Port:
        """The same inside the loop of a recurrent layer."""
        if not isinstance(self.units, int):
            raise UnsupportedError(
                f"the number of units of {self.site.path!r} is not known before it runs",
                mend="where='readout' in the site puts the gains on what the layer gives out",
            )
        self.in_loop = True
        self.gain = torch.ones(self.units, device=self.device)
        return Port(gain=self.gain)

    @torch.no_grad()
    def set(self, value: Tensor | None) -> None:
        """Change the gains; None is 1."""
        if self.gain is not None and (value is not None or self.in_loop):
            self.gain.requires_grad_(False).copy_(torch.ones_like(self.gain) if value is None else value)
        else:
            self.gain = None if value is None else value.detach().clone()


class _Observer:
    """The recorder: takes the mean square of each unit into a callback, padded tokens left out."""

    records = True

    def __init__(self, site: Site, take: Callable[[Site, Tensor], None]) -> None:
        self.site, self.take = site, take

    def __call__(self, values: Tensor, visit: Visit) -> None:
        if visit.recomputing:
            return
        values, lead = values.detach().float(), len(visit.rows)
        mask = visit.run.mask
        if values.dim() == lead + 2:  # units of several features: their norm stands for them
            values = values.square().mean(-1).sqrt()
        if mask is not None and values.shape[:2] == mask.shape and visit.rows[:1] == ("b",):
            values = values[mask.to(values.device)]
        self.take(self.site, values.reshape(-1, values.shape[-1]))


class GainAttachment:
    """Gains on the layers of a model, until `detach()`; made by `attach_gain_control`.

    Attributes:
        model: the model. controls: site → the `GainControl` that holds its running statistics and optimum.
    """

    def __init__(
        self,
        model: nn.Module,
        sites: Sequence[Site],
        objective: Literal["coding"] | Objective,
        alpha: float,
        gamma: float,
        memory: float,
        forward: Forward | None,
    ) -> None:
        self.model, self.objective, self.forward = model, objective, forward
        self.alpha, self.gamma, self.memory = alpha, gamma, memory
        self.controls: dict[Site, GainControl] = {}
        self._gains = {site: _Gain(site, model) for site in sites}
        self._reference: dict[Site, dict[str, Tensor]] = {}
        self._stack = contextlib.ExitStack()
        self._stack.enter_context(attach(model, list(self._gains.values())))
        self.attached = True

    @property
    def gains(self) -> dict[Site, Tensor]:
        """What each layer is multiplied by, `[unit]`; empty until the layer's size was seen."""
        out = {}
        for site, control in self.controls.items():
            applied = self._gains[site].gain
            out[site] = torch.ones_like(control.gain) if applied is None else applied.detach().clone()
        return out

    def calibrate(self, batches: Iterable[Any]) -> None:
        """Take a stream as the reference: there all gains are 1."""
        self._require_coding()
        self.reset()
        for site, (moment, rows) in self._observe(batches).items():
            mean = float(moment.mean())
            if not mean > 0:
                raise RangeError(f"the layer at {site.path!r} is silent in the reference stream", given=mean)
            control = GainControl(
                len(moment), alpha=self.alpha, gamma=self.gamma * mean, memory=self.memory, recurrent=False
            ).to(moment.device)
            control.solve_moment(moment)
            control.moment.copy_(moment)
            control.seen.fill_(rows)
            self.controls[site] = control
            self._reference[site] = {name: value.clone() for name, value in control.state_dict().items()}

    def adapt(self, batches: Iterable[Any], *, steps: int = 200, rate: float = 0.05) -> dict[Site, Tensor]:
        """Set the gains for a new stream and return them.

        With the coding objective: one pass over `batches` measures the stream with all gains at 1, then the optimum
        is set in closed form, so the result depends on the stream alone, and the reference stream gives exactly 1.
        With an objective of your own: `steps` steps of Adam at `rate` on the gains, cycling through `batches`.

        Raises:
            RangeError: no batches, not calibrated, or a loss that is not finite.
        """
        if callable(self.objective):
            return self._fit(list(batches), self.objective, steps, rate)
        self._require_calibrated()
        self.reset()
        for site, (moment, _) in self._observe(batches).items():
            self.controls[site].solve_moment(moment)
            self._apply(site)
        return self.gains

    def step(self, batch: Any) -> dict[Site, Tensor]:
        """Adapt online: run one batch with the present gains, update the running statistics, set their optimum."""
        self._require_coding()
        self._require_calibrated()
        seen: dict[Site, list[Tensor]] = {}
        self._run([batch], lambda site, values: seen.setdefault(site, []).append(values))
        for site, rows in seen.items():
            control, gain = self.controls[site], self._gains[site].gain
            drive = torch.cat(rows)
            control.observe(drive if gain is None else drive / gain)
            control.solve_moment()
            self._apply(site)
        return self.gains

    def reset(self) -> None:
        """All gains back to 1, as in the reference stream; running statistics start again from it."""
        for site, gain in self._gains.items():
            gain.set(None)
            if site in self._reference:
                self.controls[site].load_state_dict(self._reference[site])

    def detach(self) -> None:
        """Take the gains off; the model computes what it computed before, bit for bit. Doing it twice is harmless."""
        self.__exit__(None, None, None)

    def __enter__(self) -> GainAttachment:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.attached = False
        self._stack.__exit__(kind, value, trace)

    def __repr__(self) -> str:
        state = "attached" if self.attached else "detached"
        return f"GainAttachment({state}: {', '.join(str(site) for site in self._gains)})"

    def _apply(self, site: Site) -> None:
        applied = self.controls[site].gain.detach() / self._reference[site]["gain"]
        self._gains[site].set(None if bool((applied == 1).all()) else applied)

    def _observe(self, batches: Iterable[Any]) -> dict[Site, tuple[Tensor, int]]:
        """E[x²] per unit over a stream, `[unit]`, and the number of rows; summed in float64."""
        sums: dict[Site, Tensor] = {}
        rows: dict[Site, int] = {}

        def take(site: Site, values: Tensor) -> None:
            total = values.double().square().sum(0)
            sums[site] = sums[site] + total if site in sums else total
            rows[site] = rows.get(site, 0) + len(values)

        self._run(batches, take)
        if not sums:
            raise RangeError("there are no batches to adapt to")
        for site, total in sums.items():
            if not bool(torch.isfinite(total).all()):
                raise RangeError(f"the layer at {site.path!r} gives NaN or infinity on this stream")
        return {site: ((total / rows[site]).float(), rows[site]) for site, total in sums.items()}

    def _run(self, batches: Iterable[Any], take: Callable[[Site, Tensor], None]) -> None:
        self._require_attached()
        observers = [_Observer(site, take) for site in self._gains]
        with evaluating(self.model), attach(self.model, observers), torch.no_grad():
            for batch in batches:
                _call(self.model, batch, self.forward)

    def _fit(self, batches: list[Any], objective: Objective, steps: int, rate: float) -> dict[Site, Tensor]:
        self._require_attached()
        if not batches:
            raise RangeError("there are no batches to adapt to")
        if not (steps >= 1 and rate > 0):
            raise RangeError("steps and rate are positive", given=(steps, rate))
        self.reset()
        for site, (moment, _) in self._observe(batches[:1]).items():
            self.controls[site] = GainControl(len(moment), recurrent=False).to(moment.device)
        free: dict[Site, Tensor] = {}
        for site, control in self.controls.items():
            self._gains[site].set(torch.ones_like(control.gain))
            gain = self._gains[site].gain
            assert gain is not None
            free[site] = gain.requires_grad_()
        optimizer = torch.optim.Adam(list(free.values()), lr=rate)
        try:
            with torch.enable_grad():
                for index in range(steps):
                    pull = torch.stack([(gain - 1).square().mean() for gain in free.values()]).sum()
                    loss = objective(self.model, batches[index % len(batches)]) + self.gamma * pull
                    if not bool(torch.isfinite(loss)):
                        raise RangeError("the objective is NaN or infinite", given=f"step {index}")
                    # gradients of the gains alone: those of the model's parameters stay as they were
                    slopes = torch.autograd.grad(loss, list(free.values()), allow_unused=True)
                    for gain, slope in zip(free.values(), slopes, strict=True):
                        gain.grad = slope
                    optimizer.step()
                    with torch.no_grad():
                        for gain in free.values():
                            gain.clamp_min_(0)
        except BaseException:
            self.reset()
            raise
        for site, gain in free.items():
            self.controls[site].gain.copy_(gain.requires_grad_(False))
        return self.gains

    def _require_attached(self) -> None:
        if not self.attached:
            raise UnsupportedError("these gains were detached", mend="attach again with attach_gain_control")

    def _require_coding(self) -> None:
        if callable(self.objective):
            raise UnsupportedError("an objective of your own has no running form", mend="use adapt(batches)")

    def _require_calibrated(self) -> None:
        if not self._reference:
            raise RangeError(
                "the gains have no reference stream yet",
                mend="pass reference=batches to attach_gain_control, or call calibrate(batches)",
            )


def attach_gain_control(
    model: nn.Module,
    layers: str | Site | Iterable[str | Site],
    *,
    reference: Iterable[Any] | None = None,
    objective: Literal["coding"] | Objective = "coding",
    alpha: float = 1.0,
    gamma: float = 1.0,
    memory: float = 1000.0,
    forward: Forward | None = None,
) -> GainAttachment:
    """Put adaptive gains on layers of any model; weights stay frozen and `detach()` is exact.

    Args:
        model: any module, Hugging Face ones too.
        layers: names of `nn.Linear` or `nn.Conv*` modules (glob patterns allowed), one gain per output feature or
            channel; or `Site`s, for any other place.
        reference: batches of the stream that the model was made for, where all gains are 1; or call `calibrate` later.
        objective: `coding` (fidelity, activity and homeostasis; needs no labels), or `objective(model, batch)`
            returning a scalar loss.
        alpha: price of activity. gamma: pull towards 1, relative to the layer's mean square in the reference stream.
        memory: rows that the running statistics of `step` remember.
        forward: how to run the model on a batch, `forward(model, batch)` (default: a mapping as keywords, the first of
            a tuple or list, anything else as it is).

    Returns:
        A `GainAttachment`, which is also a context manager.

    Raises:
        UnknownNameError: no layer of that name. SiteError: the layer is of another type and needs a `Site`.
        RangeError: alpha or gamma negative.

    Examples:
        >>> torch.manual_seed(0)  # doctest: +ELLIPSIS
        <torch._C.Generator object at ...>
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> usual, unusual = torch.randn(64, 4), torch.randn(64, 4) * torch.tensor([4.0, 1.0, 1.0, 1.0])
        >>> before = model(unusual)
        >>> with attach_gain_control(model, "0", reference=[usual]) as control:
        ...     _ = control.adapt([unusual])
        ...     adapted = model(unusual)
        >>> torch.equal(adapted, before), torch.equal(model(unusual), before)
        (False, True)
    """
    if not (alpha >= 0 and gamma >= 0):
        raise RangeError("alpha and gamma must not be negative", given=(alpha, gamma))
    if objective != "coding" and not callable(objective):
        raise UnknownNameError.among("objective", str(objective), ("coding",))
    sites = _sites(model, layers)
    attachment = GainAttachment(model, sites, objective, alpha, gamma, memory, forward)
    try:
        if reference is not None:
            attachment.calibrate(reference)
    except BaseException:
        attachment.detach()
        raise
    return attachment


def _sites(model: nn.Module, layers: str | Site | Iterable[str | Site]) -> list[Site]:
    chosen = [layers] if isinstance(layers, str | Site) else list(layers)
    named = dict(model.named_modules())
    found: dict[Site, None] = {}
    for layer in chosen:
        if isinstance(layer, Site):
            found[layer] = None
            continue
        hits = [layer] if layer in named else [n for n in named if n and fnmatch.fnmatchcase(n, layer)]
        if layer not in named:  # a pattern takes the layers it can, a name must be one
            hits = [name for name in hits if _axes(named[name]) is not None]
        if not hits:
            raise UnknownNameError.among("layer", layer, (n for n, m in named.items() if n and _axes(m)))
        for name in hits:
            axes = _axes(named[name])
            if axes is None:
                raise SiteError(
                    f"{name!r} is no Linear or convolution, so its unit axis is not known",
                    given=type(named[name]).__name__,
                    mend="pass a Site with axes, e.g. Site(name, axes='b t u')",
                )
            found[Site(name, axes=axes)] = None
    if not found:
        raise RangeError("no layers to attach to")
    return list(found)


def _axes(module: nn.Module) -> str | None:
    for kind, axes in _AXES.items():
        if isinstance(module, kind):
            return axes
    # Hugging Face's Conv1D (GPT-2) is a linear layer with a transposed weight
    return "b ... u" if type(module).__name__ == "Conv1D" and hasattr(module, "nf") else None


def _call(model: nn.Module, batch: Any, forward: Forward | None) -> Any:
    if forward is not None:
        return forward(model, batch)
    if isinstance(batch, Mapping):
        return model(**batch)
    return model(batch[0] if isinstance(batch, tuple | list) else batch)
