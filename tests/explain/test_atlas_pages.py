"""The pages of an atlas as a browser draws them."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from plexus.data.corpora import word_tokenizer
from plexus.explain import atlas
from plexus.units import Site

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no browser")


def drawn(page: Path, fragment: str = "") -> str:
    """The text of a page after its scripts ran, tags kept."""
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files", "--dump-dom"]
    command = [str(BROWSER), *options, "--virtual-time-budget=4000", page.as_uri() + fragment]
    return subprocess.run(command, capture_output=True, text=True, timeout=90, check=True).stdout


class Two(nn.Module):
    """Two layers of 24 units, of which two say the class; or do so beside a way that says it more loudly."""

    def __init__(self, strength: float, beside: float) -> None:
        super().__init__()
        self.beside = beside
        self.first, self.second, self.out = nn.Identity(), nn.Identity(), nn.Linear(24, 2, bias=False)
        with torch.no_grad():
            self.out.weight.zero_()
            self.out.weight[0, 0] = self.out.weight[1, 1] = strength

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.second(self.first(x.flatten(1)))) + self.beside * x.flatten(1)[:, :2]


def pages(folder: Path, strength: float = 4.0, beside: float = 0.0) -> Path:
    values = 0.05 * torch.rand(80, 24, generator=torch.Generator().manual_seed(3))
    labels = torch.arange(80) % 2
    values[:, 0] += labels == 0
    values[:, 1] += labels == 1
    matter = atlas.Images(values.reshape(80, 1, 4, 6), labels, ["zero", "one"])
    sites = [Site("first", "b u"), Site("second", "b u")]
    return atlas.write(atlas.build(Two(strength, beside), matter, sites, featured=4), folder)


def test_units_keep_their_numbers_where_not_all_were_measured(tmp_path) -> None:
    labels = torch.arange(80) % 2
    values = 0.05 * torch.rand(80, 200, generator=torch.Generator().manual_seed(3))
    values[:, 150] += labels == 0
    values[:, 160] += labels == 1
    net = nn.Sequential(nn.Flatten(), nn.Identity(), nn.Linear(200, 2))
    with torch.no_grad():
        net[2].weight.zero_()
        net[2].weight[0, 150] = net[2].weight[1, 160] = 4.0
    found = atlas.build(
        net, atlas.Images(values.reshape(80, 1, 10, 20), labels), Site("1", "b u"), featured=2, units=80
    )
    index = atlas.write(found, tmp_path / "some")
    front = drawn(index)
    assert "80 of 200 units at 1 sites" in front
    assert "Not all 200 units were switched off" in front
    unit = drawn(index, "#/unit/0/160")
    assert "Unit 160 of" in unit
    assert "It tells its concept apart and is needed for it." in unit
    assert "× 0.5" in unit  # its own dose curve
    control = int(found.pages[0].units[found.pages[0].control][0])
    assert "measured as a control" in drawn(index, f"#/unit/0/{control}")


def test_a_unit_is_needed_only_where_answers_change(tmp_path) -> None:
    assert "It tells its concept apart and is needed for it." in drawn(pages(tmp_path / "strong"), "#/unit/1/0")
    weak = drawn(pages(tmp_path / "weak", 1e-2, 4.0), "#/unit/1/0")
    assert "beyond its band, but is too small to change an answer" in weak
    assert "The share of right answers stays the same" in weak
    assert "hollow: beyond it, but too small to change an answer: 4" in weak  # two in each layer
    assert "chance alone would put about 2.0 there" in weak  # 48 units, one in 24
    assert "Nats measure" in weak
    assert "axis is bent" in weak


@pytest.mark.parametrize(
    ("asked", "unit", "said"),
    [
        ("second #3", "Unit 3 of second", ""),
        ("FIRST 3", "Unit 3 of first", ""),
        ("3", "Click a dot", "Several units have this number; which one: “first #3”, “second #3”?"),
        ("second #99", "Click a dot", "There is no such unit."),
    ],
)
def test_units_are_found_by_site_and_number(tmp_path, asked: str, unit: str, said: str) -> None:
    index = pages(tmp_path / "pages")
    frame = index.parent / "frame.html"
    frame.write_text(
        f"""<iframe id="page" src="index.html"></iframe><script>
        document.getElementById("page").onload = (event) => {{
          const inner = event.target.contentDocument, field = inner.getElementById("find");
          field.value = {asked!r};
          for (const name of ["input", "change"]) field.dispatchEvent(new Event(name));
          setTimeout(() => document.body.append(inner.getElementById("unit").textContent.slice(0, 40),
            "|", inner.getElementById("found").textContent, "|"), 500);
        }};</script>""",
        encoding="utf-8",
    )
    found = drawn(frame)
    assert unit in found
    assert f"|{said}|" in found


def test_an_answer_of_two_tokens_is_right_by_its_first_one(tmp_path) -> None:
    transformers = pytest.importorskip("transformers")
    texts, answers = ["x cat", "x cow", "y dog", "y fox"] * 4, ["sat down", "ran off"] * 8
    tokenizer = word_tokenizer([*texts, *answers])
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=len(tokenizer), n_embd=24, n_layer=1, n_head=2, n_inner=24)
    model = transformers.GPT2LMHeadModel(config)
    matter = atlas.Texts(tokenizer, texts, [text[0] for text in texts], answers)
    optimiser, index = torch.optim.Adam(model.parameters(), 1e-2), torch.arange(16)
    for _ in range(60):
        optimiser.zero_grad()
        (-matter.outcome(model(**matter.batch(index)), index).mean()).backward()
        optimiser.step()
    found = atlas.build(model, matter, featured=24)
    assert found.accuracy == 1
    as_it_is = next(dose for dose in found.pages[0].doses[3] if dose.factor == 1)
    assert as_it_is.right == [True] * len(as_it_is.says)
    page = drawn(atlas.write(found, tmp_path / "pages"), "#/unit/0/3")
    assert re.search(r'class="right">(sat|ran)&nbsp;', page)
    assert "→ sat down" in page
