"""The guide on sparse autoencoders runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytest.importorskip("sklearn")
PAGE = Path(__file__).parent.parent / "docs" / "guides" / "sparse-autoencoders.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), flags=re.M | re.S)


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """What the page's code leaves behind."""
    left: dict[str, object] = {"__name__": "__main__"}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("guide"))
        for number, block in enumerate(BLOCKS):
            exec(compile(block, f"{PAGE.name}, block {number + 1}", "exec"), left)
        left["files"] = sorted(path.name for path in Path().iterdir())
    return left


def test_the_features_found_carry_the_concept_and_steer_it(names: dict[str, object]) -> None:
    assert names["without"] < 0.5 * names["before"]  # type: ignore[operator]
    assert names["steered"] > 1.5 * names["before"]  # type: ignore[operator]


def test_the_model_hardly_notices_the_reconstruction(names: dict[str, object]) -> None:
    assert names["cost"].recovered > 0.9  # type: ignore[attr-defined]
    assert names["cost"].recovered_from_mean > 0.8  # type: ignore[attr-defined]


def test_files_are_where_the_page_says(names: dict[str, object]) -> None:
    assert names["files"] == ["digits-hidden", "training.safetensors"]
