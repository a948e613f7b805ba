"""Recordings from a folder, and the log-mel spectrogram."""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np
import pytest
import torch

from plexus.data import SpokenDigits, log_mel, mel_filters, shakespeare, spoken_digits
from plexus.errors import DtypeError, FormatError, RangeError, ShapeError

SOUNDS = {
    (d, s, i): np.arange(40 + 10 * d + i, dtype=np.int16) * 100 for d in (0, 7) for s in ("ann", "bo_b") for i in (0, 5)
}


def write_waves(folder: Path, rate: int = 8000) -> None:
    folder.mkdir(parents=True)
    for (digit, speaker, index), sound in SOUNDS.items():
        with wave.open(str(folder / f"{digit}_{speaker}_{index}.wav"), "wb") as file:
            file.setparams((1, 2, rate, 0, "NONE", ""))
            file.writeframes(sound.tobytes())


def write_arrays(path: Path) -> dict[str, np.ndarray]:
    keys = sorted(SOUNDS)
    arrays = {
        "audio": np.concatenate([SOUNDS[k] for k in keys]),
        "offsets": np.cumsum([0, *(len(SOUNDS[k]) for k in keys)]),
        "labels": np.array([k[0] for k in keys], np.uint8),
        "speakers": np.array([k[1] for k in keys]),
        "index": np.array([k[2] for k in keys], np.uint8),
    }
    np.savez(path, **arrays)
    return arrays


def test_waves_and_arrays_hold_the_same(tmp_path: Path) -> None:
    write_waves(tmp_path / "a" / "recordings")
    write_waves(tmp_path / "b" / "free-spoken-digit-dataset" / "recordings")
    (tmp_path / "c").mkdir()
    write_arrays(tmp_path / "c" / "fsdd.npz")
    sets = [spoken_digits(tmp_path / name) for name in "abc"]
    for found in sets:
        assert len(found) == len(SOUNDS)
        for audio, label, speaker, index in zip(found.audio, found.labels, found.speakers, found.index, strict=True):
            sound = SOUNDS[int(label), speaker, int(index)]
            assert audio.dtype == torch.float32
            assert torch.equal((audio * 32768).to(torch.int16), torch.from_numpy(sound))


def test_the_customary_parts_do_not_overlap(tmp_path: Path) -> None:
    write_waves(tmp_path / "recordings")
    train, test = spoken_digits(tmp_path).split()
    assert set(train.index.tolist()) == {5}
    assert set(test.index.tolist()) == {0}
    assert len(train) + len(test) == len(SOUNDS)
    assert isinstance(train[[0, 1]], SpokenDigits)


def test_missing_foreign_and_broken_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PLEXUS_DATA", raising=False)
    for load in (spoken_digits, shakespeare):
        with pytest.raises(FormatError, match="PLEXUS_DATA"):
            load()
        with pytest.raises(FormatError, match="PLEXUS_DATA"):
            load(tmp_path)
    write_waves(tmp_path / "fast" / "recordings", rate=16000)
    with pytest.raises(FormatError, match="8 kHz"):
        spoken_digits(tmp_path / "fast")
    (tmp_path / "odd" / "recordings").mkdir(parents=True)
    with pytest.raises(FormatError, match="no recordings"):
        spoken_digits(tmp_path / "odd")
    (tmp_path / "odd" / "recordings" / "noise.wav").write_bytes(b"RIFF")
    with pytest.raises(FormatError, match="another name"):
        spoken_digits(tmp_path / "odd")
    arrays = write_arrays(tmp_path / "fsdd.npz")
    whole = (tmp_path / "fsdd.npz").read_bytes()
    (tmp_path / "fsdd.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(FormatError, match="cannot be read"):
        spoken_digits(tmp_path)
    np.savez(tmp_path / "fsdd.npz", **(arrays | {"offsets": arrays["offsets"][:-1]}))
    with pytest.raises(FormatError, match="offsets"):
        spoken_digits(tmp_path)
    np.savez(tmp_path / "fsdd.npz", **(arrays | {"speakers": np.array([object()] * len(arrays["labels"]))}))
    with pytest.raises(FormatError, match="cannot be read"):
        spoken_digits(tmp_path)


def test_text_is_read(tmp_path: Path) -> None:
    (tmp_path / "tinyshakespeare.txt").write_text("First Citizen:\n", encoding="utf-8")
    assert shakespeare(tmp_path) == "First Citizen:\n"


@pytest.mark.parametrize("hertz", [300, 700, 1500, 3000])
def test_a_tone_lies_in_the_band_of_its_frequency(hertz: int) -> None:
    tone = torch.sin(2 * torch.pi * hertz * torch.arange(4000) / 8000)
    bands = 24
    loudest = int(log_mel(tone, bands=bands, low=0.0).mean(0).argmax())
    mel = np.linspace(0, 2595 * np.log10(1 + 4000 / 700), bands + 2)[loudest + 1]
    centre = 700 * (10 ** (mel / 2595) - 1)
    assert abs(2595 * np.log10((1 + hertz / 700) / (1 + centre / 700))) <= mel / (loudest + 1)  # within a band


def test_twice_as_loud_is_four_times_the_power() -> None:
    sound = torch.randn(4000, generator=torch.Generator().manual_seed(0))
    difference = log_mel(2 * sound, floor=0.0) - log_mel(sound, floor=0.0)
    torch.testing.assert_close(difference, torch.full_like(difference, np.log(4.0)), atol=1e-4, rtol=0)


def test_triangles_of_neighbours_sum_to_one() -> None:
    filters = mel_filters(20, 513, 8000)
    inner = filters.sum(0)[20:450]
    torch.testing.assert_close(inner, torch.ones_like(inner), atol=1e-5, rtol=0)


def test_frames_and_bad_input() -> None:
    assert log_mel(torch.zeros(10)).shape == (1, 40)
    assert log_mel(torch.zeros(200)).shape == (1, 40)
    assert log_mel(torch.zeros(280)).shape == (2, 40)
    with pytest.raises(DtypeError):
        log_mel(torch.zeros(100, dtype=torch.int16))
    with pytest.raises(ShapeError):
        log_mel(torch.zeros(2, 100))
    with pytest.raises(RangeError, match="NaN"):
        log_mel(torch.tensor([0.0, float("nan")]))
    with pytest.raises(RangeError):
        log_mel(torch.zeros(100), high=5000.0)
