"""An event camera looking at moving pictures.

    r ← r + L[t] - L[t-1]                      residual of each pixel, L its brightness (a logarithm for a real camera)
    ON event where r > θ,  OFF event where r < -θ
    r ← r - θ for ON,  r + θ for OFF           what the event did not account for stays

    movie[t, i, j] = image(y[t] + i, x[t] + j),   (y, x)[t] = (y, x)[0] + Σ_{s <= t} velocity[s]

Between pixels the image is the one band-limited function through them (a shift of its phase in Fourier space), periodic
at its borders. Gaze moves in segments of constant velocity whose lengths are Poisson distributed.

Source: Grimaldi & Perrinet 2023, section "Generating realistic event-based motion"; Lichtsteiner et al. 2008 for the
sensor. Brightness in units of the threshold's, velocity in pixels per step, times in ms.
"""

from __future__ import annotations

import math
import warnings
from typing import NamedTuple

import torch
from torch import Tensor

from plexus.data._event_stream import EventStream
from plexus.errors import MissingExtraError, RangeError, ShapeError, UnknownNameError, require

__all__ = [
    "Gaze",
    "event_frames",
    "natural_image",
    "oriented_noise",
    "random_gaze",
    "saccade_movie",
    "simulate_events",
    "velocities",
    "whiten",
]


def event_frames(
    frames: Tensor, threshold: float = 1.0, *, spread: float = 0.0, generator: torch.Generator | None = None
) -> Tensor:
    """Events of a movie, densely: 1 where a pixel had one in that step, polarity 1 is ON, 0 is OFF.

    Args:
        frames: brightness, `[time, batch…, y, x]`.
        threshold: change of brightness that makes an event.
        spread: standard deviation of the pixels' thresholds around it, as a share (each pixel of a sensor has its own).
        generator: draws them; needed when spread is not 0.

    Returns:
        `[time, batch…, polarity, y, x]`. Nothing happens at the first step, which sets the reference.

    Raises:
        RangeError: the threshold is not positive, brightness is not finite, or a spread comes without a generator.

    Examples:
        >>> movie = torch.tensor([0.0, 1.5, 1.5, -0.6]).view(4, 1, 1)
        >>> on_minus_off = event_frames(movie, threshold=1.0).diff(dim=1)
        >>> on_minus_off.flatten().tolist()
        [0.0, 1.0, 0.0, -1.0]
    """
    if frames.dim() < 3:
        raise ShapeError("a movie is needed", given=tuple(frames.shape), expected="[time, batch…, y, x]")
    if not threshold > 0 or spread < 0:
        raise RangeError("the threshold must be positive and its spread not negative", given=(threshold, spread))
    if not bool(torch.isfinite(frames).all()):
        raise RangeError("the movie holds NaN or infinity")
    level: Tensor | float = threshold
    if spread:
        if generator is None:
            raise RangeError("a spread of thresholds is drawn", mend="pass generator=torch.Generator().manual_seed(…)")
        own = torch.randn(frames.shape[-2:], generator=generator, dtype=torch.float64, device=generator.device).to(
            frames
        )
        level = threshold * (1 + spread * own).clamp(min=0.1)  # a pixel without a threshold would never fall silent
    residual = torch.zeros_like(frames[0]) if len(frames) else frames.new_zeros(frames.shape[1:])
    out = frames.new_zeros(*frames.shape[:-2], 2, *frames.shape[-2:])
    for t in range(1, len(frames)):
        residual = residual + (frames[t] - frames[t - 1])
        on, off = (residual > level).to(frames.dtype), (residual < -level).to(frames.dtype)
        residual = residual - level * (on - off)
        out[t, ..., 0, :, :], out[t, ..., 1, :, :] = off, on
    return out


def simulate_events(
    frames: Tensor,
    threshold: float = 1.0,
    *,
    dt: float = 1.0,
    spread: float = 0.0,
    generator: torch.Generator | None = None,
) -> EventStream:
    """The `EventStream` of one movie `[time, y, x]`, address (polarity, y, x); see `event_frames`.

    Examples:
        >>> movie = torch.zeros(3, 2, 2)
        >>> movie[1:, 0, 1] = 2.5
        >>> stream = simulate_events(movie)
        >>> stream.t.tolist(), stream.address.tolist()          # the second event catches up
        ([1.0, 2.0], [[1, 0, 1], [1, 0, 1]])
    """
    if frames.dim() != 3:
        raise ShapeError("one movie is needed", given=tuple(frames.shape), expected="[time, y, x]")
    return EventStream.from_dense(event_frames(frames, threshold, spread=spread, generator=generator), dt)


class Gaze(NamedTuple):
    """A walk of the gaze in segments of constant velocity.

    Attributes:
        velocity: pixels per step, `[time, 2]`, (y, x).
        label: index of the velocity of each step, `[time]`, int64.
        age: steps since the velocity last changed, `[time]`, int64.
    """

    velocity: Tensor
    label: Tensor
    age: Tensor


def velocities(directions: int, speeds: tuple[float, ...] = (1.0,)) -> Tensor:
    """Evenly spaced directions times speeds: `[directions · speeds, 2]`, (y, x), the first one to the right.

    Examples:
        >>> velocities(4)[0].tolist()
        [0.0, 1.0]
    """
    if directions < 1 or not speeds or min(speeds) <= 0:
        raise RangeError("directions and speeds must be positive", given=(directions, speeds))
    angle = torch.arange(directions, dtype=torch.float64) * (2 * math.pi / directions)
    unit = torch.stack([angle.sin(), angle.cos()], 1)
    return torch.cat([speed * unit for speed in speeds])


def random_gaze(steps: int, choices: Tensor, *, mean_segment: float = 24.0, generator: torch.Generator) -> Gaze:
    """A walk of `steps` steps through velocities drawn evenly from `choices` `[class, 2]`.

    Lengths of segments are Poisson distributed with mean `mean_segment` steps, those of zero steps left out.

    Examples:
        >>> gaze = random_gaze(100, velocities(8), generator=torch.Generator().manual_seed(0))
        >>> gaze.velocity.shape, bool((gaze.age[1:] <= gaze.age[:-1] + 1).all())
        (torch.Size([100, 2]), True)
    """
    if steps < 1 or not mean_segment > 0:
        raise RangeError("steps and the mean length of a segment must be positive", given=(steps, mean_segment))
    label, age = torch.empty(steps, dtype=torch.int64), torch.empty(steps, dtype=torch.int64)
    at = 0
    while at < steps:
        length = int(torch.poisson(torch.tensor(float(mean_segment)), generator=generator))
        stop = min(at + length, steps)
        label[at:stop] = int(torch.randint(len(choices), (), generator=generator))
        age[at:stop] = torch.arange(stop - at)
        at = stop
    return Gaze(choices[label], label, age)


def saccade_movie(
    image: Tensor,
    velocity: Tensor,
    size: tuple[int, int] = (128, 128),
    *,
    start: tuple[float, float] | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """What a window of the image shows while gaze moves: frames `[time, *size]`.

    Gaze moves right, so the picture moves left. Positions between pixels are exact for band-limited images.

    Args:
        image: `[height, width]`.
        velocity: of the gaze in pixels per step, `[time, 2]`, (y, x); the first is that of the step before frame 0.
        size: height and width of the window.
        start: corner of the window before the first step; None draws one, with the generator, from which the walk
            stays inside the image.
        generator: draws the start.

    Raises:
        ShapeError: image, velocity or size do not fit.
        RangeError: the walk leaves the image from this start, or from any; or neither start nor generator is given.

    Examples:
        >>> image = torch.arange(64.0).view(8, 8)
        >>> movie = saccade_movie(image, torch.tensor([[0.0, 0.0], [1.0, 0.0]]), (2, 2), start=(3.0, 4.0))
        >>> movie.round().tolist()
        [[[28.0, 29.0], [36.0, 37.0]], [[36.0, 37.0], [44.0, 45.0]]]
    """
    if image.dim() != 2 or velocity.dim() != 2 or velocity.shape[1] != 2 or not len(velocity):
        raise ShapeError(
            "an image and velocities are needed",
            given=(tuple(image.shape), tuple(velocity.shape)),
            expected="[height, width] and [time, 2]",
        )
    walk = velocity.cpu().double().cumsum(0)
    room = torch.tensor(image.shape, dtype=torch.float64) - torch.tensor(size, dtype=torch.float64)
    low, high = -walk.amin(0), room - walk.amax(0)
    if start is None:
        if generator is None:
            raise RangeError("a start is drawn", mend="pass start=(y, x) or generator=torch.Generator().manual_seed(…)")
        if bool((high < low).any()):
            raise RangeError("the walk is longer than the image", given=walk.tolist()[-1], expected=room.tolist())
        corner = low + (high - low) * torch.rand(2, generator=generator, dtype=torch.float64)
    else:
        corner = torch.tensor(start, dtype=torch.float64)
        if bool((corner < low - 1e-9).any() or (corner > high + 1e-9).any()):
            raise RangeError("the walk leaves the image", given=start, expected=f"{low.tolist()} to {high.tolist()}")
    position = corner + walk
    rows = _interpolation(position[:, 0], size[0], image.shape[0]).to(image)  # [time, y, height]
    columns = _interpolation(position[:, 1], size[1], image.shape[1]).to(image)
    return rows @ image @ columns.transpose(1, 2)


def _interpolation(first: Tensor, size: int, period: int) -> Tensor:
    """Weights `[time, size, period]` that read a periodic band-limited signal at `first + 0 … size - 1`.

    Dirichlet's kernel sin(πz) / (N tan(πz/N)) for even periods N, sin(πz) / (N sin(πz/N)) for odd ones.
    """
    # row i of a frame reads at z = first + i - k, so all rows share the values at N + size - 1 whole distances
    z = first.unsqueeze(1) + torch.arange(size - 1, -period, -1, dtype=torch.float64)
    turn = math.pi * z / period
    slope = torch.tan(turn) if period % 2 == 0 else torch.sin(turn)
    on_pixel = slope.abs() < 1e-12  # the pixel itself, or a whole period away
    weight = torch.sin(math.pi * z) / (period * torch.where(on_pixel, torch.ones_like(slope), slope))
    weight = torch.where(on_pixel, torch.ones_like(weight), weight)
    return weight.unfold(1, period, 1).flip(1)


def natural_image(name: str = "china", *, generator: torch.Generator | None = None) -> Tensor:
    """A photograph that comes with scikit-learn, in grey: `[427, 640]`, values in [0, 1], float64.

    Needs scikit-learn and Pillow (extra `lab`). Without Pillow and with a generator, noise with the spectrum of natural
    images (amplitude 1/f) of the same size takes its place, and a warning says so.

    Raises:
        UnknownNameError: another name than `china` or `flower`.
        MissingExtraError: the image cannot be read and there is no generator to draw noise from.

    Examples:
        >>> natural_image("flower").shape
        torch.Size([427, 640])
    """
    if name not in ("china", "flower"):
        raise UnknownNameError.among("sample image", name, ("china", "flower"))
    try:
        require("PIL", "lab", purpose="photographs")
        datasets = require("sklearn.datasets", "lab", purpose="photographs")
        pixels: Tensor = torch.from_numpy(datasets.load_sample_image(f"{name}.jpg").copy()).double() / 255
    except MissingExtraError:
        if generator is None:
            raise
        warnings.warn(
            f"the photograph {name!r} needs Pillow, which is not installed: 1/f noise takes its place "
            "(pip install 'plexus-nn[lab]')",
            stacklevel=2,
        )
        return _fractal(427, 640, generator)
    grey: Tensor = pixels @ torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64)
    return grey


def _radius(height: int, width: int) -> Tensor:
    """Spatial frequency of each coefficient of a real transform, cycles per pixel."""
    fy = torch.fft.fftfreq(height, dtype=torch.float64).unsqueeze(1)
    squared: Tensor = fy.square() + torch.fft.rfftfreq(width, dtype=torch.float64).square()
    return squared.sqrt()


def _fractal(height: int, width: int, generator: torch.Generator) -> Tensor:
    noise = torch.randn(height, width, generator=generator, dtype=torch.float64)
    spectrum = torch.fft.rfft2(noise) / _radius(height, width).clamp(min=1 / max(height, width))
    image: Tensor = torch.fft.irfft2(spectrum, s=(height, width))
    return (image - image.min()) / (image.max() - image.min())


def whiten(image: Tensor, cutoff: float = 0.4) -> Tensor:
    """An image whose spectrum is flat up to a cutoff, with zero mean and unit variance.

    Amplitudes are multiplied by f · exp(-(f / cutoff)⁴), the inverse of a natural image's fall and a low pass
    (Olshausen & Field 1997).

    Args:
        image: `[height, width]`. cutoff: in cycles per pixel.

    Examples:
        >>> white = whiten(natural_image())
        >>> bool(white.mean().abs() < 1e-9), round(white.std(correction=0).item(), 6)
        (True, 1.0)
    """
    if image.dim() != 2:
        raise ShapeError("an image is needed", given=tuple(image.shape), expected="[height, width]")
    if not cutoff > 0:
        raise RangeError("the cutoff must be positive", given=cutoff)
    height, width = image.shape
    f = _radius(height, width).to(image)
    return _standard(torch.fft.irfft2(torch.fft.rfft2(image) * f * torch.exp(-((f / cutoff) ** 4)), s=(height, width)))


def oriented_noise(
    height: int,
    width: int,
    angle: float,
    *,
    frequency: float = 0.125,
    bandwidth: float = 0.5,
    spread: float = 0.1,
    generator: torch.Generator,
) -> Tensor:
    """A random texture of one orientation, a still Motion Cloud: `[height, width]`, zero mean, unit variance.

    The envelope of the spectrum is log-normal in frequency and a von Mises bump in orientation.

    Args:
        height, width: in pixels.
        angle: direction in which brightness varies, in radians from x to y; the stripes run across it.
        frequency: centre, in cycles per pixel.
        bandwidth: standard deviation of the logarithm of frequency.
        spread: standard deviation of orientation in radians, roughly; large values give all orientations.
        generator: draws the phases.

    Source: Sanz-Leon et al. 2012.

    Examples:
        >>> texture = oriented_noise(64, 64, 0.0, spread=0.05, generator=torch.Generator().manual_seed(0))
        >>> along, across = texture.diff(dim=1).std(), texture.diff(dim=0).std()
        >>> bool(along > 3 * across)                     # varies along x
        True
    """
    if min(frequency, bandwidth, spread) <= 0:
        raise RangeError("frequency, bandwidth and spread must be positive", given=(frequency, bandwidth, spread))
    noise = torch.fft.rfft2(torch.randn(height, width, generator=generator, dtype=torch.float64))
    f = _radius(height, width)
    theta = torch.atan2(
        torch.fft.fftfreq(height, dtype=torch.float64).unsqueeze(1), torch.fft.rfftfreq(width, dtype=torch.float64)
    )
    radial = torch.exp(-0.5 * ((f.clamp(min=1e-9) / frequency).log() / bandwidth) ** 2) / f.clamp(min=1e-9)
    # orientation has period π, hence the double angle
    bump = torch.exp((torch.cos(2 * (theta - angle)) - 1) / (4 * spread**2))
    radial[0, 0] = 0.0
    return _standard(torch.fft.irfft2(noise * radial * bump, s=(height, width)))


def _standard(image: Tensor) -> Tensor:
    return (image - image.mean()) / image.std(correction=0)
