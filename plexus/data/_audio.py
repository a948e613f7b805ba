"""Spoken digits as sound, and sound as a picture over time: the log-mel spectrogram.

    m(f) = 2595 log10(1 + f / 700)                            mel scale, f in Hz
    S[t, b] = log(ε + Σ_f H[b, f] |STFT[t, f]|²)              H[b]: triangle between its neighbours' centres, height 1

Sources: Jackson et al., Free Spoken Digit Dataset (2016 on, CC BY-SA 4.0); O'Shaughnessy 1987 for the mel scale in
this form; Davis & Mermelstein 1980 for the triangles.
"""

from __future__ import annotations

import math
import os
import wave
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from plexus.data._images import data_folder
from plexus.errors import DtypeError, FormatError, RangeError, ShapeError

__all__ = ["SpokenDigits", "log_mel", "mel_filters", "spoken_digits"]

_SOURCE = "https://github.com/Jakobovski/free-spoken-digit-dataset"


@dataclass(frozen=True)
class SpokenDigits:
    """Recordings of spoken digits, one entry each.

    Attributes:
        audio: one tensor `[sample]` per recording, float32 in [-1, 1].
        labels: the digit, `[recording]`, int64.
        speakers: the name of the speaker of each recording.
        index: which of a speaker's recordings of a digit it is, `[recording]`; 0 to 4 are the customary test part.
        rate: samples per second.
    """

    audio: tuple[Tensor, ...]
    labels: Tensor
    speakers: tuple[str, ...]
    index: Tensor
    rate: int = 8000

    def __post_init__(self) -> None:
        counts = len(self.audio), len(self.labels), len(self.speakers), len(self.index)
        if len(set(counts)) != 1:
            raise ShapeError(
                "recordings, labels, speakers and indices do not match", given=counts, expected="one of each"
            )

    def __len__(self) -> int:
        return len(self.audio)

    def __getitem__(self, chosen: Tensor | Sequence[int]) -> SpokenDigits:
        """Some of the recordings, by a boolean mask or by their places."""
        places = torch.as_tensor(chosen, device="cpu")
        places = places.nonzero().squeeze(1) if places.dtype == torch.bool else places.long()
        return replace(
            self,
            audio=tuple(self.audio[i] for i in places.tolist()),
            labels=self.labels[places],
            speakers=tuple(self.speakers[i] for i in places.tolist()),
            index=self.index[places],
        )

    def split(self) -> tuple[SpokenDigits, SpokenDigits]:
        """The customary training part (index 5 on) and test part (index 0 to 4)."""
        return self[self.index >= 5], self[self.index < 5]


def spoken_digits(root: str | os.PathLike[str] | None = None) -> SpokenDigits:
    """The Free Spoken Digit Dataset: 3,000 recordings of six speakers at 8 kHz.

    Args:
        root: the folder of data sets (default: the environment's `PLEXUS_DATA`). It holds `fsdd.npz` (arrays `audio`,
            `offsets`, `labels`, `speakers`, `index`), or the data set's own folder `recordings` with its files
            `{digit}_{speaker}_{index}.wav`, directly or under `free-spoken-digit-dataset`.

    Raises:
        FormatError: the data is not there, or a file of it cannot be read; nothing is ever unpickled.
    """
    folder = data_folder(root)
    if folder is not None:
        packed = folder / "fsdd.npz"
        if packed.is_file():
            return _from_arrays(packed)
        for recordings in (folder / "recordings", folder / "free-spoken-digit-dataset" / "recordings"):
            if recordings.is_dir():
                return _from_waves(recordings)
    raise FormatError(
        "the spoken digits are not here",
        given=str(folder) if folder else "no folder",
        mend=f"point PLEXUS_DATA (or root=) at a folder that holds a checkout of {_SOURCE}",
    )


def _from_arrays(path: Path) -> SpokenDigits:
    try:
        with np.load(path, allow_pickle=False) as file:
            found = {name: file[name] for name in ("audio", "offsets", "labels", "speakers", "index")}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise FormatError("the spoken digits cannot be read", given=str(path), mend="fetch the file again") from error
    offsets, count = found["offsets"].astype(np.int64), len(found["labels"])
    if len(offsets) != count + 1 or (np.diff(offsets) <= 0).any() or offsets[-1] != len(found["audio"]):
        raise FormatError("the offsets of the spoken digits do not fit their audio", given=str(path))
    audio = torch.from_numpy(found["audio"].astype(np.float32) / 32768.0)
    return SpokenDigits(
        tuple(audio[a:b] for a, b in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)),
        torch.from_numpy(found["labels"].astype(np.int64)),
        tuple(map(str, found["speakers"])),
        torch.from_numpy(found["index"].astype(np.int64)),
    )


def _from_waves(folder: Path) -> SpokenDigits:
    audio, labels, speakers, index = [], [], [], []
    for path in sorted(folder.glob("*.wav")):
        digit, _, rest = path.stem.partition("_")
        speaker, _, number = rest.rpartition("_")
        if not (digit.isdigit() and number.isdigit() and speaker):
            raise FormatError("a recording has another name", given=path.name, expected="{digit}_{speaker}_{index}.wav")
        try:
            with wave.open(str(path), "rb") as file:
                kind = file.getframerate(), file.getnchannels(), file.getsampwidth()
                raw = file.readframes(file.getnframes())
        except (OSError, EOFError, wave.Error) as error:
            raise FormatError("a recording cannot be read", given=str(path), mend="fetch the file again") from error
        if kind != (8000, 1, 2):
            raise FormatError(f"{path.name} has another format", given=kind, expected="8 kHz, one channel, 16 bit")
        audio.append(torch.from_numpy(np.frombuffer(raw, "<i2").astype(np.float32) / 32768.0))
        labels.append(int(digit))
        speakers.append(speaker)
        index.append(int(number))
    if not audio:
        raise FormatError("the folder holds no recordings", given=str(folder), expected="{digit}_{speaker}_{index}.wav")
    return SpokenDigits(tuple(audio), torch.tensor(labels), tuple(speakers), torch.tensor(index))


def mel_filters(bands: int, bins: int, rate: float, *, low: float = 0.0, high: float | None = None) -> Tensor:
    """Triangles that sum the power of a spectrum into mel bands, `[band, bin]`.

    Args:
        bands: number of bands.
        bins: bins of the spectrum, from 0 Hz to half the rate.
        rate: samples per second.
        low, high: edges of the lowest and highest band in Hz; `high` is half the rate by default.

    Raises:
        RangeError: the edges are not 0 <= low < high <= rate / 2, or there is no band or bin.

    Examples:
        >>> filters = mel_filters(3, 129, 8000)
        >>> filters.shape, bool((filters.amax(1) > 0.9).all())
        (torch.Size([3, 129]), True)
    """
    high = rate / 2 if high is None else high
    if not 0 <= low < high <= rate / 2:
        raise RangeError("the edges of the bands are out of range", given=(low, high), expected=f"0 to {rate / 2:g} Hz")
    if bands < 1 or bins < 2:
        raise RangeError("there is nothing to sum", given=f"{bands} bands, {bins} bins")
    ends = [2595.0 * math.log10(1.0 + f / 700.0) for f in (low, high)]
    mel = torch.linspace(ends[0], ends[1], bands + 2, dtype=torch.float64)
    edges = 700.0 * (10.0 ** (mel / 2595.0) - 1.0)
    frequency = torch.linspace(0, rate / 2, bins, dtype=torch.float64)
    rise = (frequency - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    fall = (edges[2:, None] - frequency) / (edges[2:] - edges[1:-1])[:, None]
    return torch.minimum(rise, fall).clamp(min=0).float()


def log_mel(
    audio: Tensor,
    rate: float = 8000,
    *,
    bands: int = 40,
    frame: float = 25.0,
    hop: float = 10.0,
    low: float = 20.0,
    high: float | None = None,
    floor: float = 1e-6,
) -> Tensor:
    """Log-mel spectrogram `[time, band]` of a recording.

    Args:
        audio: `[sample]`, floating point.
        rate: samples per second.
        bands: number of mel bands.
        frame, hop: length of a frame (Hann window) and the distance between frames, ms. Frames lie wholly within the
            recording; one that is shorter than a frame is padded with silence to one.
        low, high: edges of the bands, Hz.
        floor: power that is added before the logarithm.

    Raises:
        ShapeError, DtypeError, RangeError: the audio is not one floating point series, is empty, holds NaN; or a number
            is out of range.

    Examples:
        >>> tone = torch.sin(2 * torch.pi * 1000 * torch.arange(8000) / 8000)
        >>> picture = log_mel(tone, bands=20)
        >>> picture.shape
        torch.Size([98, 20])
        >>> int(picture.mean(0).argmax())                  # the band around 1000 Hz
        9
    """
    if not isinstance(audio, Tensor) or not audio.is_floating_point():
        given = audio.dtype if isinstance(audio, Tensor) else type(audio).__name__
        raise DtypeError("audio is a floating point tensor", given=given, mend="scale it: x.float() / 32768")
    if audio.dim() != 1 or not len(audio):
        raise ShapeError("audio is one series", given=tuple(audio.shape), expected="[sample]")
    if not bool(torch.isfinite(audio).all()):
        raise RangeError("the audio holds NaN or infinity")
    length, step = round(frame * rate / 1000), round(hop * rate / 1000)
    if length < 2 or step < 1:
        raise RangeError(
            "a frame is shorter than two samples, or frames do not move", given=(frame, hop), expected="ms"
        )
    if len(audio) < length:
        audio = torch.nn.functional.pad(audio, (0, length - len(audio)))
    size = 1 << (length - 1).bit_length()
    frames = audio.unfold(0, length, step) * torch.hann_window(length, dtype=audio.dtype, device=audio.device)
    power = torch.fft.rfft(frames, size).abs().square()
    filters = mel_filters(bands, size // 2 + 1, rate, low=low, high=high).to(audio)
    spectrogram: Tensor = (power @ filters.T + floor).log()
    return spectrogram
