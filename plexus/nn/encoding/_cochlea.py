"""A cochlea: sound to the spikes of auditory nerve fibres, one channel per place along the basilar membrane.

    h_c(t) ∝ t³ exp(-2π b_c t) cos(2π f_c t),   b_c = 1.019 ERB(f_c)        gammatone filter of order 4
    ERB(f) = 24.7 (4.37 f / 1000 + 1) Hz,   centres f_c evenly spaced on the scale 21.4 log₁₀(4.37 f / 1000 + 1)
    r = max(h_c * audio, 0)^κ                                               hair cell: rectifies and compresses
    x[i] = gain · mean of r over the samples of step i                      its drive, one value per dt
    z = LIF(x)                                                              nerve fibre: leaky integrate and fire

The filter is a cascade of four complex one-pole filters, so that it runs sample by sample with four numbers of memory
per channel, and a recording in pieces gives bit for bit what it gives whole.

Sources: Patterson et al. 1992 (gammatone), Glasberg & Moore 1990 (ERB), Slaney 1993 (its poles), Cramer et al. 2022 for
the chain from basilar membrane to spikes. Frequencies in Hz, times in ms, audio in [-1, 1].
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from scipy.signal import lfilter
from torch import Tensor, nn

from plexus.errors import DtypeError, RangeError, ShapeError
from plexus.kernels import LIFState, lif

__all__ = ["Cochlea", "CochleaState", "erb_centres"]

_ORDER = 4


class CochleaState(NamedTuple):
    """What a cochlea remembers.

    Attributes:
        filters: p y[n-1] of the four stages, `[batch, channel, stage, 2]`, real and imaginary, float64.
        v: potential of each fibre, `[batch, channel]`.
        z: its last spike, `[batch, channel]`.
        r: steps for which it is still refractory, `[batch, channel]`.
    """

    filters: Tensor
    v: Tensor
    z: Tensor
    r: Tensor


def erb_centres(channels: int, low: float, high: float) -> Tensor:
    """Centre frequencies, evenly spaced on the scale of equivalent rectangular bandwidths, `[channel]`, in Hz.

    Raises `RangeError` unless there is a channel and 0 < low < high.

    Examples:
        >>> erb_centres(3, 100.0, 3000.0).round().tolist()
        [100.0, 802.0, 3000.0]
    """
    if channels < 1 or not 0 < low < high:
        raise RangeError("centres need a channel and 0 < low < high", given=(channels, low, high))
    first, last = (21.4 * math.log10(0.00437 * f + 1) for f in (low, high))
    rate = torch.linspace(first, last, channels, dtype=torch.float64)
    return (10 ** (rate / 21.4) - 1) / 0.00437


class Cochlea(nn.Module):
    """`spikes, state = Cochlea(40)(audio)`: audio `[sample, batch]` to spikes `[time, batch, channel]`, a step per dt.

    Nothing in it is learnt and no gradient flows through it. A recording may be given in pieces of whole steps. With
    the default gain, speech at a usual level makes fibres fire at some 40 Hz; quiet recordings want more. The
    filters run on the CPU wherever the audio lies, the fibres run where it lies.

    Args:
        channels: number of fibres.
        sample_rate: of the audio, in Hz.
        low, high: lowest and highest centre frequency in Hz; None is 0.45 of the sample rate.
        dt: length of a step in ms; a whole number of samples.
        compression: κ, the power of the rectified sound.
        gain: of the drive.
        tau_mem: time constant of the fibres in ms.
        threshold: of the fibres.
        refractory: of the fibres, in ms.

    Raises:
        RangeError: a number is not positive, a frequency lies above half the sample rate, or dt is no whole number of
            samples.
        ShapeError: the audio is not `[sample, batch]` or does not fill whole steps.

    Examples:
        >>> t = torch.arange(1600) / 8000.0
        >>> tone = 0.5 * torch.sin(2 * math.pi * 1000.0 * t).unsqueeze(1)
        >>> cochlea = Cochlea(20, sample_rate=8000.0)
        >>> spikes, _ = cochlea(tone)
        >>> best = cochlea.centres[spikes.sum((0, 1)).argmax()].item()
        >>> spikes.shape, abs(best - 1000) < 100
        (torch.Size([200, 1, 20]), True)
    """

    axes = "t b u"

    def __init__(
        self,
        channels: int,
        *,
        sample_rate: float = 8000.0,
        low: float = 80.0,
        high: float | None = None,
        dt: float = 1.0,
        compression: float = 0.3,
        gain: float = 2.0,
        tau_mem: float = 5.0,
        threshold: float = 1.0,
        refractory: float = 1.0,
    ) -> None:
        super().__init__()
        high = 0.45 * sample_rate if high is None else high
        for name, value in (
            ("sample_rate", sample_rate),
            ("dt", dt),
            ("compression", compression),
            ("gain", gain),
            ("tau_mem", tau_mem),
            ("threshold", threshold),
        ):
            if not value > 0:
                raise RangeError(f"{name} must be positive", given=value, expected="> 0")
        if refractory < 0:
            raise RangeError("the refractory time is negative", given=refractory, expected="ms >= 0")
        if high > sample_rate / 2:
            raise RangeError("no sound is that high", given=f"{high:g} Hz", expected=f"at most {sample_rate / 2:g} Hz")
        self.per_step = round(sample_rate * dt / 1000)
        if self.per_step < 1 or abs(sample_rate * dt / 1000 - self.per_step) > 1e-6:
            raise RangeError("dt is no whole number of samples", given=f"{sample_rate * dt / 1000:g} samples")
        self.channels, self.sample_rate, self.dt = channels, sample_rate, dt
        self.compression, self.gain = compression, gain
        self.tau_mem, self.threshold, self.refractory = tau_mem, threshold, refractory
        self.centres: Tensor
        self.register_buffer("centres", erb_centres(channels, low, high))

    def initial_state(self, batch: int, *, dtype: torch.dtype | None = None) -> CochleaState:
        """Silence so far."""
        device = self.centres.device
        filters = torch.zeros(batch, self.channels, _ORDER, 2, dtype=torch.float64, device=device)
        v = torch.zeros(batch, self.channels, dtype=dtype or torch.get_default_dtype(), device=device)
        return CochleaState(filters, v, torch.zeros_like(v), torch.zeros_like(v))

    def forward(self, x: Tensor, state: CochleaState | None = None) -> tuple[Tensor, CochleaState]:
        """Spikes `[time, batch, channel]` of the audio x `[sample, batch]`."""
        drive, state = self.drive(x, state)
        fibres = LIFState(*(part.to(drive.dtype) for part in state[1:]))
        spikes, after = lif(
            drive,
            fibres,
            decay=math.exp(-self.dt / self.tau_mem),
            threshold=self.threshold,
            refractory=round(self.refractory / self.dt),
        )
        return spikes, CochleaState(state.filters, *after)

    def drive(self, x: Tensor, state: CochleaState | None = None) -> tuple[Tensor, CochleaState]:
        """What the hair cells pass on, `[time, batch, channel]`, and the state with the filters' memory moved on.

        Examples:
            >>> drive, _ = Cochlea(4).drive(torch.zeros(80, 2))
            >>> drive.shape, bool((drive == 0).all())
            (torch.Size([10, 2, 4]), True)
        """
        self._check(x)
        if state is None:
            state = self.initial_state(x.shape[1], dtype=x.dtype)
        if state.filters.shape[:2] != (x.shape[1], self.channels):
            raise ShapeError(
                "the state does not fit the audio",
                given=tuple(state.filters.shape[:2]),
                expected=(x.shape[1], self.channels),
            )
        memory = torch.view_as_complex(state.filters.cpu()).numpy()
        moved, filters = self._gammatone(x.detach().cpu().double().numpy(), memory)
        cells = np.maximum(moved, 0.0) ** self.compression
        steps = cells.reshape(-1, self.per_step, *cells.shape[1:]).mean(1) * self.gain
        after = torch.view_as_real(torch.from_numpy(filters)).to(x.device)
        return torch.from_numpy(steps).to(x.dtype).to(x.device), state._replace(filters=after)

    def _gammatone(
        self, audio: np.ndarray[tuple[int, ...], np.dtype[np.float64]], memory: np.ndarray[tuple[int, ...], np.dtype]
    ) -> tuple[np.ndarray[tuple[int, ...], np.dtype], np.ndarray[tuple[int, ...], np.dtype]]:
        """Displacement `[sample, batch, channel]`, and what each stage carries over `[batch, channel, stage]`."""
        out = np.empty((*audio.shape, self.channels))
        after = np.empty_like(memory)
        for c, centre in enumerate(self.centres.tolist()):
            bandwidth = 1.019 * 24.7 * (0.00437 * centre + 1)
            pole = np.exp(2 * np.pi * complex(-bandwidth, centre) / self.sample_rate)
            y = audio.astype(np.complex128)
            for stage in range(_ORDER):  # y[n] = (1 - |p|) x[n] + p y[n-1]: each stage passes its centre unchanged
                if not len(y):
                    after[:, c, stage] = memory[:, c, stage]
                    continue
                y, carried = lfilter([1 - abs(pole)], [1, -pole], y, axis=0, zi=memory[np.newaxis, :, c, stage])
                after[:, c, stage] = carried[0]
            out[..., c] = 2 * y.real  # half of a real tone's amplitude is in the frequency that passes
        return out, after

    def _check(self, x: Tensor) -> None:
        if not isinstance(x, Tensor) or not x.is_floating_point():
            given = x.dtype if isinstance(x, Tensor) else type(x).__name__
            raise DtypeError("audio is floating point", given=given, expected="[sample, batch] in [-1, 1]")
        if x.dim() != 2:
            mend = "for one recording give audio.unsqueeze(1)" if x.dim() == 1 else None
            raise ShapeError(
                "audio has samples and a batch", given=tuple(x.shape), expected="[sample, batch]", mend=mend
            )
        if len(x) % self.per_step:
            raise ShapeError(
                "the audio does not fill whole steps",
                given=f"{len(x)} samples",
                expected=f"a multiple of {self.per_step}",
                mend=f"cut it, audio[: len(audio) // {self.per_step} * {self.per_step}], or pad it with silence",
            )

    def extra_repr(self) -> str:
        """What `print(layer)` shows."""
        return f"{self.channels}, {self.centres[0]:.0f} to {self.centres[-1]:.0f} Hz, dt={self.dt:g} ms"
