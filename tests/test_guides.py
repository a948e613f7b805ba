"""The guide "A spiking network in ten minutes" runs as it stands, on a stand-in for its recordings."""

from __future__ import annotations

import re
import wave
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("nir")
pytest.importorskip("plotly")
PAGE = Path(__file__).parent.parent / "docs" / "guides" / "spiking-in-ten-minutes.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), flags=re.M | re.S)


def recordings(folder: Path) -> None:
    """Chirps in the data set's own files: each digit rises or falls between two pitches of its own."""
    folder.mkdir()
    draw = np.random.default_rng(0)
    for digit in range(10):
        for number in (0, 1, 5, 6, 7, 8):
            samples = int(draw.integers(2400, 4800))
            low, high = 250 + 150 * (digit % 5), 1500 + 300 * (digit % 5)
            ends = (low, high) if digit < 5 else (high, low)
            pitch = np.linspace(*ends, samples) * draw.uniform(0.97, 1.03)
            sound = 0.5 * np.sin(2 * np.pi * np.cumsum(pitch) / 8000) + 0.01 * draw.standard_normal(samples)
            with wave.open(str(folder / f"{digit}_ada_{number}.wav"), "wb") as file:
                file.setparams((1, 2, 8000, samples, "NONE", ""))
                file.writeframes((32767 * sound.clip(-1, 1)).astype("<i2").tobytes())


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, object], Path]:
    """What the page's code leaves behind; only the first block, its settings, is another."""
    folder = tmp_path_factory.mktemp("guide")
    recordings(folder / "recordings")
    names: dict[str, object] = {"__name__": "__main__"}
    assert re.fullmatch(r"hidden, epochs = \d+, \d+ +# settings: .*\n", BLOCKS[0])
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("PLEXUS_DATA", str(folder))
        for number, block in enumerate(["hidden, epochs = 32, 60", *BLOCKS[1:]]):
            exec(compile(block, f"{PAGE.name}, block {number + 1}", "exec"), names)
    return names, folder


def test_the_network_learns_and_keeps_what_it_learnt_when_rounded(ran: tuple[dict[str, object], Path]) -> None:
    names, _ = ran
    net, accuracy = names["net"], names["accuracy"]
    assert accuracy(net) > 0.5  # type: ignore[operator]  # chance is 0.1
    for layer in (net[0], net[2]):  # type: ignore[index]
        assert layer.is_hard
        assert (layer.delays == layer.delays.round()).all()
        assert 0 <= layer.delays.min() <= layer.delays.max() <= 12


def test_what_comes_back_from_the_file_is_the_network(ran: tuple[dict[str, object], Path]) -> None:
    names, folder = ran
    x = names["x_test"]
    assert (names["again"](x)[0] == names["net"](x)[0]).all()  # type: ignore[operator]
    assert {"digits.nir", "raster.html", "delays.html"} <= {path.name for path in folder.iterdir()}


def test_the_pictures_of_the_page_are_there_and_small() -> None:
    pictures = re.findall(r"!\[.*?\]\((.*?)\)", PAGE.read_text())
    assert pictures
    for picture in pictures:
        assert 0 < (PAGE.parent / picture).stat().st_size < 150_000
