"""The guide "Find a concept's neurons and switch them off" runs as it stands, and shows what it says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytest.importorskip("transformers")
PAGE = Path(__file__).parent.parent / "docs" / "guides" / "find-a-concept.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), flags=re.M | re.S)


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """What the page's code leaves behind."""
    found: dict = {"__name__": "__main__"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PLEXUS_CACHE", str(tmp_path_factory.mktemp("cache")))
        for number, block in enumerate(BLOCKS, 1):
            exec(compile(block, f"{PAGE.name}, block {number}", "exec"), found)
    return found


def test_the_concept_suffers_more_than_others_and_than_from_random_units(names: dict) -> None:
    fathers, others = names["effects"]["fathers"], names["effects"]["others"]
    assert fathers.change < others.change
    assert fathers.change < fathers.controls.median()


def test_no_name_is_in_both_halves(names: dict) -> None:
    assert not {item.subject for item in names["found_on"]} & {item.subject for item in names["tested_on"]}


def test_the_dose_curve_starts_at_the_edit_and_passes_through_the_model_as_it_is(names: dict) -> None:
    curve = names["curve"]["fathers"]
    assert curve.change[0] == pytest.approx(names["effects"]["fathers"].change, abs=1e-6)
    assert curve.change[curve.doses == 1.0].item() == pytest.approx(0, abs=1e-6)
