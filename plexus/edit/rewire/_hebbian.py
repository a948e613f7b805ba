"""Do the units at the two ends of a connection fire together?

    cosine     C_oi = Σ_s a_o a_i / (|a_o| |a_i|)                            over samples s (batch, time, places)
    centred    the same of a - mean(a): Pearson's correlation

The uncentred cosine of rectified units is never negative and large for units of high mean, so growing by it makes hubs
(see `degrees`). The sums Σ a_o a_i, Σ a², Σ a and the count are what is averaged over batches, exponentially.

Source: Konstantaropoulos, Smirnakis & Papadopouli 2025 (uncentred, latest batch).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from plexus.errors import PlexusError, ShapeError, UnsupportedError
from plexus.units import Site
from plexus.units._axes import default_axes, known_axes
from plexus.units._pass import Visit
from plexus.units._paths import walk

__all__ = ["CoActivity", "Listener", "activity_site", "hebbian_scores"]

_TINY = 1e-8


@dataclass
class CoActivity:
    """Sums over samples from which both scores follow."""

    products: Tensor  # Σ a_o a_i    [out, in]
    squares_out: Tensor  # Σ a_o²    [out]
    squares_in: Tensor
    sums_out: Tensor  # Σ a_o        [out]
    sums_in: Tensor
    count: float

    @classmethod
    def of(cls, pre: Tensor, post: Tensor) -> CoActivity:
        """From activities `[sample, in]` and `[sample, out]`."""
        if pre.dim() != 2 or post.dim() != 2 or len(pre) != len(post) or not len(pre):
            given = f"{tuple(pre.shape)} and {tuple(post.shape)}"
            raise ShapeError("activities do not line up", given=given, expected="[sample, in] and [sample, out]")
        pre, post = pre.float(), post.float()
        return cls(post.T @ pre, post.square().sum(0), pre.square().sum(0), post.sum(0), pre.sum(0), float(len(pre)))

    def averaged(self, before: CoActivity | None, keep: float) -> CoActivity:
        """`keep` times what was known before, and these."""
        if before is None or not keep:
            return self
        parts = [keep * old + new for old, new in zip(vars(before).values(), vars(self).values(), strict=True)]
        return CoActivity(*parts)

    def scores(self, centered: bool) -> tuple[Tensor, Tensor]:
        """Scores `[out, in]`, and which of them mean something: both units were active (centred: varied)."""
        products, out, into = self.products, self.squares_out, self.squares_in
        if centered:
            products = products - self.sums_out[:, None] * self.sums_in / self.count
            spread_out, spread_in = out - self.sums_out**2 / self.count, into - self.sums_in**2 / self.count
            # what is left of a constant activity is rounding
            out = torch.where(spread_out > 1e-6 * out, spread_out, torch.zeros_like(out))
            into = torch.where(spread_in > 1e-6 * into, spread_in, torch.zeros_like(into))
        alive = (out > 0)[:, None] & (into > 0)
        score = products / (out.sqrt()[:, None] * into.sqrt() + _TINY)
        return torch.where(alive, score, torch.zeros_like(score)), alive


def hebbian_scores(pre: Tensor, post: Tensor, *, centered: bool = False) -> Tensor:
    """How much the units of two layers are active together, `[out, in]`; 0 for a unit that is silent.

    Args:
        pre: activities `[sample, in]`, samples being batch and time.
        post: activities `[sample, out]`, after the nonlinearity.
        centered: Pearson's correlation instead of the cosine; 0 for a unit that is constant.

    Raises:
        ShapeError: the activities do not line up.

    Examples:
        >>> pre = torch.tensor([[1.0, 0.0], [1.0, 2.0]])
        >>> hebbian_scores(pre, pre)
        tensor([[1.0000, 0.7071],
                [0.7071, 1.0000]])
        >>> hebbian_scores(pre, -pre, centered=True)[1].round(decimals=3).tolist()
        [0.0, -1.0]
    """
    return CoActivity.of(pre, post).scores(centered)[0]


class Listener:
    """Keeps what passes a site during training passes, until it is taken; an operation of the hook engine."""

    records = True

    def __init__(self, site: Site, model: nn.Module) -> None:
        self.site, self.model = site, model
        self.awake = True
        self._kept: list[Tensor] = []

    def __call__(self, values: Tensor, visit: Visit) -> None:
        if self.awake and self.model.training and torch.is_grad_enabled():
            self._kept.append(values.detach().clone())

    def take(self) -> list[Tensor]:
        """What passed since the last call."""
        kept, self._kept = self._kept, []
        return kept


def activity_site(model: nn.Module, path: str) -> Site:
    """Where the activity of the units that a layer feeds is read: the activation or neurons that follow it.

    In a Sequential, past norms and dropout; elsewhere, or where another layer comes first, the layer's own output.

    Examples:
        >>> activity_site(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2)), "0").path
        '2'
    """
    named = dict(walk(model))
    parent_name, _, own = path.rpartition(".")
    parent = named.get(parent_name)
    if isinstance(parent, nn.Sequential) and path:
        names = list(parent._modules)
        for name in names[names.index(own) + 1 :]:
            module = parent._modules[name]
            where = f"{parent_name}.{name}" if parent_name else name
            if _is_active(module):
                return Site(where, default_axes(named, where), where="readout")
            if not isinstance(module, nn.Identity | nn.Dropout | nn.modules.batchnorm._BatchNorm | nn.LayerNorm):
                break
    return Site(path, default_axes(named, path))


def _is_active(module: nn.Module | None) -> bool:
    ours = hasattr(module, "port") and isinstance(getattr(module, "axes", None), str)
    return ours or type(module).__module__ == "torch.nn.modules.activation"


def coactivity(layer: nn.Module, pre: list[Tensor], post: list[Tensor], name: str) -> CoActivity:
    """Sums of one layer from what was heard before and behind it, values `[*rows, unit]`.

    The weights of a kernel see the picture at as many places as there are outputs; each is an input of its own.

    Raises:
        PlexusError: nothing was heard. ShapeError: the two sides do not line up.
    """
    if not pre or not post:
        raise PlexusError(
            f"Hebbian rewiring of {name!r} has heard no activity",
            mend="train inside `with sparse:`, with the model in training mode",
        )
    if isinstance(layer, nn.Conv2d):
        before = torch.cat([_patches(layer, values) for values in pre])
    elif isinstance(layer, nn.Conv1d | nn.Conv3d):
        raise UnsupportedError(f"Hebbian rewiring of {name!r}: only flat and 2-d layers", given=type(layer).__name__)
    else:
        before = torch.cat([values.flatten(0, -2) for values in pre])
    after = torch.cat([values.flatten(0, -2) for values in post])
    if len(before) != len(after):
        raise ShapeError(
            f"activities before and behind {name!r} do not line up",
            given=f"{len(before)} and {len(after)} samples",
            mend="name the site of its activity: activities={name: Site(…)}",
        )
    return CoActivity.of(before, after)


def _patches(layer: nn.Conv2d, values: Tensor) -> Tensor:
    """What each kernel weight saw, `[sample and place, in · ky · kx]`, of values `[…, y, x, channel]`."""
    if layer.groups != 1 or isinstance(layer.padding, str) or layer.padding_mode != "zeros":
        raise UnsupportedError("Hebbian rewiring of a convolution in groups, or padded by name or otherwise than by 0")
    frames = values.flatten(0, -4).permute(0, 3, 1, 2)
    columns = nn.functional.unfold(frames, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
    return columns.transpose(1, 2).flatten(0, 1)


def input_site(model: nn.Module, path: str) -> Site:
    """The input of a layer, with its axes."""
    named = dict(walk(model))
    axes = known_axes(named[path])
    return Site(path, axes if axes is not None else default_axes(named, path, "input"), at="input")
