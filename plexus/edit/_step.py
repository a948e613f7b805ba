"""What one edit does to the values of the units it names.

    scale     y = factor · x                      0 gives 0 even where x is infinite
    clamp     y = value, or y = min(max(x, low), high)
    replace   y = value, one number (or vector of features) per unit
    add       y = x + amount
    patch     y = what another run had in the same place, or in the place named

With a basis B `[direction, unit]` the same happens to the coordinates z = x B⁺ along its directions, and the rest of
the values stays: y = x + (z' - z) B. Units outside the set are out of reach of the directions. Only with a basis:

    add       z' = z + share · ‖x‖                a share of the length of the values instead of an amount
    rotate    z' = R(angle) z                     in the plane of two orthonormal directions; ‖y‖ = ‖x‖
    turn      z' = ‖z‖ (cos angle, sin angle)     to an angle of that plane (where z₁ > threshold, if there is one)
    choose    y = x + amount_k B_k                k = argmax of the probe W (x - mean x) / std x + c, at each token or,
                                                  per sample, at the last token of its prompt
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn.functional import layer_norm

from plexus.edit._numbers import Numbers
from plexus.edit._rows import Source
from plexus.errors import ShapeError, SiteError, UnsupportedError
from plexus.probe._collect import Positions, layout
from plexus.units import Neurons, Port, Site, Visit

__all__ = ["NAMES", "Action", "Name", "Step"]

Name = Literal["scale", "clamp", "replace", "add", "patch", "rotate", "turn", "choose per token", "choose per sample"]
NAMES: tuple[Name, ...] = get_args(Name)


@dataclass(frozen=True, eq=False)
class Step:
    """One operation on one set of units.

    Attributes:
        name: the operation.
        neurons: the units.
        numbers: its numbers by their names (`factor`, `value`, `low`, `high`, `amount`, `share`, `angle` in degrees …).
        positions: at which tokens it happens.
        basis: per site the directions `[direction, unit]` along which it happens, or None.
        source: per site the rows that `patch` puts in, or None.
    """

    name: Name
    neurons: Neurons
    numbers: Mapping[str, Numbers] = field(default_factory=dict)
    positions: Positions = "all"
    basis: Mapping[Site, Tensor] | None = None
    source: Mapping[Site, Source] | None = None

    def actions(self) -> list[Action]:
        """One operation per site that has units in the set."""
        return [Action(self, site) for site in self.neurons.sites if self.neurons.counts[site]]

    def moved(self, neurons: Neurons) -> Step:
        """The same step on other units, as many at each site; numbers given one per chosen unit go along in order."""
        if neurons.counts != self.neurons.counts:
            raise ShapeError(
                "an edit moves to as many units at each site",
                given={str(site): count for site, count in neurons.counts.items()},
                expected={str(site): count for site, count in self.neurons.counts.items()},
            )
        if self.basis is not None:
            raise UnsupportedError("an edit along directions belongs to its units and does not move")
        return replace(self, neurons=neurons)

    def redirected(self, generator: torch.Generator, known: dict[bytes, Tensor]) -> Step:
        """The same step along random directions with the lengths and angles of these; equal ones stay equal.

        Args:
            generator: where they come from.
            known: directions that were drawn already, by those that they stand for.
        """
        if self.basis is None:
            raise UnsupportedError("this step does not act along directions", given=self.name)
        drawn = {}
        for site, rows in self.basis.items():
            mask = self.neurons.mask(site)
            own = rows.detach().double().cpu()[:, mask]
            key = own.numpy().tobytes()
            if key not in known:
                inner = torch.linalg.qr(own.T).R
                draw = torch.randn(own.shape[1], len(inner), generator=generator, device=generator.device)
                frame, signs = torch.linalg.qr(draw.cpu().double())
                known[key] = (frame * signs.diagonal().sign() @ inner).T  # the signs make the frame evenly drawn
            drawn[site] = torch.zeros_like(rows)
            drawn[site][:, mask] = known[key].to(rows)
        return replace(self, basis=drawn)


class Action:
    """A step at one site: what the hook engine runs."""

    records = False

    def __init__(self, step: Step, site: Site) -> None:
        self.step, self.site = step, site
        self.ran = self.met = False
        self._mask = step.neurons.mask(site)
        self._basis: Tensor | None = None
        if step.basis is not None:
            self._basis = step.basis[site] * self._mask.to(step.basis[site].device)
        self._kept: dict[tuple[torch.device, torch.dtype], dict[str, Tensor]] = {}
        self._choice: Tensor | None = None  # per row of the batch, since its prompt was read

    def __call__(self, values: Tensor, visit: Visit) -> Tensor | None:
        lead = len(visit.rows)
        self._check_size(int(values.shape[lead]))
        numbers = self._numbers(values)
        mask = numbers["mask"]
        if self._basis is not None:
            if values.dim() != lead + 1:
                raise UnsupportedError(f"units of site {self.site.path!r} are vectors, which have no common directions")
            new = self._act_along(values, numbers, visit)
            mask = torch.ones_like(mask)
        elif self.step.source is not None:
            new, here = self.step.source[self.site].put(values, visit)
            self.ran, self.met = True, self.met or bool(here.any())
            mask = mask & here.reshape(*here.shape, *(1 for _ in mask.shape))
        else:
            new = self._act(values, numbers)
        if self.step.positions != "all":
            here = self._here(values, visit)
            mask = mask & here.reshape(*here.shape, *(1 for _ in mask.shape))
        return torch.where(mask, new, values)

    def port(self) -> Port:
        """The step as a port of a recurrent layer's units."""
        numbers = {name: number.of(self.site, self._mask) for name, number in self.step.numbers.items()}
        if self.step.name == "patch" or self._basis is not None or self.step.positions != "all":
            kind = "patch" if self.step.name == "patch" else "edit along directions or at chosen positions"
            raise UnsupportedError(
                f"a {kind} cannot act inside the loop of {self.site.path!r}",
                mend="where='readout' in the site edits what the layer gives out and leaves its loop alone",
            )
        if self.step.name == "scale":
            return Port.on(self._mask, gain=numbers["factor"])
        if self.step.name == "add":
            return Port.on(self._mask, bias=numbers["amount"])
        if "value" in numbers:
            return Port.on(self._mask, gain=0.0, bias=numbers["value"])
        return Port.on(self._mask, low=numbers.get("low"), high=numbers.get("high"))

    def _act_along(self, values: Tensor, numbers: Mapping[str, Tensor], visit: Visit) -> Tensor:
        """The values after what happens along directions."""
        back, name = numbers["basis"], self.step.name
        if name in ("choose per token", "choose per sample"):
            each = numbers.get("amount", numbers.get("share"))
            assert each is not None
            push = (each[:, None] * back)[self._chosen(values, numbers, visit)]
            return values + (push * values.norm(dim=-1, keepdim=True) if "share" in numbers else push)
        along = values @ numbers["inverse"]
        if name == "add" and "share" in numbers:
            change = numbers["share"] * values.norm(dim=-1, keepdim=True).expand_as(along)
        elif name in ("rotate", "turn"):
            turned = _turned(along, numbers["angle"], absolute=name == "turn")
            change = turned - along
            if "threshold" in numbers:
                change = torch.where(along[..., :1] > numbers["threshold"], change, 0.0)
        else:
            change = self._act(along, numbers) - along
        out: Tensor = values + change @ back
        return out

    def _chosen(self, values: Tensor, numbers: Mapping[str, Tensor], visit: Visit) -> Tensor:
        """Which direction the probe chooses, `[*rows]`."""
        logits = layer_norm(values, values.shape[-1:]) @ numbers["weight"].T + numbers["bias"]
        choice = logits.argmax(-1)
        if self.step.name == "choose per token" or "t" not in visit.rows:
            return choice
        if visit.rows not in (("b", "t"), ("t", "b")):
            raise SiteError(
                f"a choice per sample needs one row per token at site {self.site.path!r}", given=f"axes {visit.rows}"
            )
        batch, time = (visit.rows.index(name) for name in ("b", "t"))
        prompt = layout(choice.shape, visit, "prompt").keep
        read = torch.ones(choice.shape, dtype=torch.bool) if prompt is None else prompt.reshape(choice.shape)
        if batch:
            choice, read = choice.T, read.T
        if bool(read.any()):
            steps = torch.where(read, torch.arange(read.shape[1]), -1).amax(1).clamp(min=0).to(choice.device)
            self._choice = choice.gather(1, steps[:, None]).squeeze(1)
        elif self._choice is None or len(self._choice) != len(choice):
            raise UnsupportedError(
                f"a choice per sample at site {self.site.path!r} is made while the prompt is read, and it was not",
                mend="run generate inside the `with` from its start, or choose per token",
            )
        assert self._choice is not None
        return self._choice.unsqueeze(time).expand(values.shape[:-1])

    def _act(self, x: Tensor, numbers: Mapping[str, Tensor]) -> Tensor:
        if self.step.name == "scale":
            factor = numbers["factor"]
            # only what is not finite is masked, so that the factor keeps its gradient at zero
            return factor * torch.where((factor == 0) & ~torch.isfinite(x), torch.zeros_like(x), x)
        if self.step.name == "add":
            return x + numbers["amount"]
        if "value" in numbers:
            return numbers["value"].expand_as(x)
        low, high = numbers.get("low"), numbers.get("high")
        x = x if low is None else torch.maximum(x, low)
        return x if high is None else torch.minimum(x, high)

    def _numbers(self, values: Tensor) -> dict[str, Tensor]:
        """The mask and the numbers on the device and in the dtype of the values; `[unit]` or `[unit, feature]`."""
        key = values.device, values.dtype
        if key not in self._kept:
            units_last = self._basis is not None or values.dim() == 0 or not self.site.has_features
            kept = {name: n.of(self.site, self._mask).to(*key) for name, n in self.step.numbers.items()}
            if not units_last:
                kept = {name: n if n.dim() != 1 else n[:, None] for name, n in kept.items()}
            kept["mask"] = self._mask.to(values.device) if units_last else self._mask.to(values.device)[:, None]
            if self._basis is not None:
                kept["basis"] = self._basis.to(*key)
                kept["inverse"] = torch.linalg.pinv(self._basis.double()).to(*key)
            if any(number.requires_grad for number in kept.values()):
                return kept  # numbers that are being learned belong to this pass alone
            self._kept[key] = kept
        return self._kept[key]

    def _check_size(self, units: int) -> None:
        if units != len(self._mask):
            raise ShapeError(
                f"the edit was made for a site {self.site.path!r} of another size",
                given=f"{units} units in the model",
                expected=f"{len(self._mask)} units",
            )

    def _here(self, values: Tensor, visit: Visit) -> Tensor:
        if "t" not in visit.rows and visit.routed is None:
            raise SiteError(
                f"positions={self.step.positions!r} needs tokens, and site {self.site.path!r} has none",
                given=f"axes {', '.join(visit.rows)}",
            )
        lead = values.shape[: len(visit.rows)]
        keep = layout(lead, visit, self.step.positions).keep
        here = torch.ones(lead, dtype=torch.bool) if keep is None else keep.reshape(lead)
        return here.to(values.device)


def _turned(along: Tensor, degrees: Tensor, *, absolute: bool) -> Tensor:
    """Coordinates `[*rows, 2]` of a plane turned by an angle, or to an angle."""
    angle = degrees.double().deg2rad()
    cos, sin = angle.cos().to(along.dtype), angle.sin().to(along.dtype)
    if absolute:
        length: Tensor = along.norm(dim=-1, keepdim=True)
        return length * torch.stack([cos, sin], -1)
    a, b = along[..., 0], along[..., 1]
    return torch.stack([a * cos - b * sin, a * sin + b * cos], -1)
