"""Adding spoken digits: recordings one after the other, and the sum of what was said.

    x = [sound of d_1; …; sound of d_n],   y = d_1 + … + d_n          each sound `[step, band]`, the digits drawn anew

The sum cannot be read from any one of the recordings, and the first must be remembered until the last has ended. How
long that is in steps is the length of a step: the same sounds in finer steps ask for a longer memory.

Source: Spieler et al. 2024 (arXiv 2306.16922), SHD-Adding, here for any sounds.
"""

from __future__ import annotations

import torch
from torch import Tensor

from plexus.data._audio import SpokenDigits, log_mel
from plexus.errors import RangeError, ShapeError

__all__ = ["digit_adding", "digit_raster"]


def digit_raster(
    digits: SpokenDigits, *, step: float = 40.0, duration: float = 1000.0, bands: int = 40, threshold: float = 0.0
) -> Tensor:
    """Recordings as binary spectrograms of one length, `[recording, time, band]`.

    A band is on in the steps where its log power is above the mean of the recording by `threshold` standard deviations.
    What is longer than `duration` is cut off, what is shorter is followed by silence.

    Args:
        digits: recordings.
        step: length of a step in ms.
        duration: of each recording in ms.
        bands: number of mel bands.
        threshold: in standard deviations of the recording's log power.

    Raises:
        RangeError: a recording would have no step.

    Examples:
        >>> sound = SpokenDigits((torch.randn(4000),), torch.tensor([3]), ("jo",), torch.tensor([0]))
        >>> raster = digit_raster(sound, step=50.0)
        >>> raster.shape, bool(raster[0, 10:].any())
        (torch.Size([1, 20, 40]), False)
    """
    steps = round(duration / step) if step > 0 else 0
    if steps < 1:
        raise RangeError("a recording would have no step", given=(step, duration), expected="0 < step <= duration")
    raster = torch.zeros(len(digits), steps, bands)
    for row, audio in zip(raster, digits.audio, strict=True):
        power = log_mel(audio, digits.rate, bands=bands, frame=max(step, 25.0), hop=step)[:steps]
        level = power.mean() + threshold * power.std(correction=0)
        row[: len(power)] = (power > level).to(row.dtype)
    return raster


def digit_adding(
    sounds: Tensor, labels: Tensor, count: int, *, terms: int = 2, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """`count` sums: inputs `[time, sum, band]` (terms one after the other) and what they add up to, `[sum]`.

    Args:
        sounds: of the digits, `[recording, time, band]`.
        labels: the digit of each, `[recording]`.
        count: number of sums.
        terms: digits per sum.
        generator: draws the recordings, each independently.

    Raises:
        ShapeError: labels do not match sounds. RangeError: count or terms is not positive.

    Examples:
        >>> sounds, labels = torch.eye(3).view(3, 1, 3), torch.arange(3)
        >>> x, y = digit_adding(sounds, labels, 5, generator=torch.Generator().manual_seed(0))
        >>> x.shape, bool((x.argmax(2).sum(0) == y).all())
        (torch.Size([2, 5, 3]), True)
    """
    if sounds.dim() != 3 or len(sounds) != len(labels) or not len(sounds):
        raise ShapeError(
            "sounds and labels do not match",
            given=(tuple(sounds.shape), tuple(labels.shape)),
            expected="[recording, time, band] and [recording]",
        )
    if count < 1 or terms < 1:
        raise RangeError("there is nothing to add", given=(count, terms), expected="at least one sum of one term")
    chosen = torch.randint(len(sounds), (terms, count), generator=generator)
    x = sounds[chosen].transpose(1, 2).flatten(0, 1)
    return x, labels[chosen].sum(0)
