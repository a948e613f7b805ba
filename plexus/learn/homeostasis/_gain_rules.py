"""Simple rules for gains, the baselines of gain control.

    uniform    g_i = c g0_i,   c = (g0·b) / (g0·H g0)     the best common factor, H and b of `GainControl`
    divisive   g_i = g0_i (m_i / m'_i)^p                  each unit by its own mean drive, before over now

Source: divisive normalisation by a unit's own recent drive, in the spirit of Carandini & Heeger 2012.
"""

from __future__ import annotations

from torch import Tensor

from plexus.errors import RangeError, ShapeError
from plexus.learn.homeostasis._gain_control import GainControl


def divisive_gain(usual: Tensor, now: Tensor, *, power: float = 1.0, floor: float = 1e-3) -> Tensor:
    """Factors `[unit]` that undo a share of the change of each unit's mean drive.

    Args:
        usual, now: mean drive in the usual and in the present stream, `[unit]`, not negative.
        power: 1 restores the usual mean of each unit's gained drive, 0 does nothing.
        floor: added to both means, so that silent units keep a finite gain.

    Examples:
        >>> import torch
        >>> divisive_gain(torch.tensor([1.0, 1.0]), torch.tensor([4.0, 1.0]), power=0.5, floor=0.0)
        tensor([0.5000, 1.0000])
    """
    if usual.shape != now.shape:
        raise ShapeError("the means do not match", given=(tuple(usual.shape), tuple(now.shape)))
    if bool((usual < 0).any()) or bool((now < 0).any()):
        raise RangeError("mean drives are not negative", mend="pass means of rectified drives or of magnitudes")
    return ((usual + floor) / (now + floor)) ** power


def uniform_gain(
    control: GainControl, drive: Tensor, gain: Tensor, weight: Tensor | None = None, prob: Tensor | None = None
) -> Tensor:
    """The gains `gain` `[unit]` times the common factor that is best for the loss of `control` in a context.

    Examples:
        >>> import torch
        >>> control = GainControl(2, alpha=1.0, gamma=0.0).double()
        >>> uniform_gain(control, torch.ones(1, 2).double(), torch.ones(2).double())   # (1 + 1) / (2 + 2)
        tensor([0.5000, 0.5000], dtype=torch.float64)
    """
    losses = [control.loss(drive, gain=c * gain, weight=weight, prob=prob) for c in (-1.0, 0.0, 1.0)]
    low, middle, high = (float(loss.detach()) for loss in losses)  # a parabola in the common factor
    return gain * ((low - high) / (2 * (low + high - 2 * middle)))
