"""The guide "What did fine-tuning change?" runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("plotly")
PAGE = Path(__file__).parent.parent / "docs" / "guides" / "fine-tuning.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), flags=re.M | re.S)


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """What the page's code leaves behind."""
    folder = tmp_path_factory.mktemp("guide")
    names: dict[str, object] = {"__name__": "__main__"}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("PLEXUS_CACHE", str(folder / "cache"))
        for number, block in enumerate(BLOCKS):
            exec(compile(block, f"{PAGE.name}, block {number + 1}", "exec"), names)
    names["folder"] = folder
    return names


def test_the_report_says_what_the_page_says(ran) -> None:
    report = ran["report"]
    assert report.recordings.related
    assert report.patches.correlation > 0.8
    assert all(word in str(report) for word in ("relative change", "CKA", "random", "patch maps"))
    assert {"diff.html", "judging.json"} <= {path.name for path in ran["folder"].iterdir()}


def test_heads_paths_and_patterns_have_the_shapes_named(ran) -> None:
    assert len(ran["heads"].places) == len(ran["paths"].places) == 8
    assert len(ran["circuit"].nodes) == 3
    pattern = ran["pattern"]
    assert pattern.shape == (len(ran["pairs"]), 4, 9, 9)
    torch.testing.assert_close(pattern.sum(-1), torch.ones(pattern.shape[:-1]), atol=1e-5, rtol=0)
    assert ran["curves"]["true over false"].controls.shape == (20, 3)
