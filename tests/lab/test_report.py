"""The report holds what the ledger holds, opens without a network, and is safe whatever a row says."""

from __future__ import annotations

import copy
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plexus.errors import PlexusError
from plexus.lab._figures import COLOURS, Strip, extent, strip, style, ticks
from plexus.lab._ledger import synthetic_calibration, synthetic_row, write_json, write_row
from plexus.lab._report import write_report
from plexus.lab._report_here import here_views
from plexus.lab._report_map import Dot, claims_map
from plexus.lab._report_rows import Ledger, distances, dots, header, load, overall, summary
from plexus.lab._report_words import mean_half, number

VOID = {"meta", "link", "br", "hr", "img", "input"}
HOSTILE = """<script>alert("x")</script><img src=x onerror=alert(1)> ' " & </details> {{ 7*7 }}"""


class Page(HTMLParser):
    """Reads a page strictly: every element that opens must close, in order."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.stack: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.scripts: dict[str, str] = {}
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), f"<{tag}> has an attribute twice: {names}"
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.stack, f"</{tag}> closes nothing"
        assert self.stack.pop() == tag, f"</{tag}> closes another element at {self.getpos()}"

    def handle_data(self, data: str) -> None:
        if self.stack and self.stack[-1] == "script":
            name = self.tags[-1][1].get("id") or f"script {len(self.scripts)}"
            self.scripts[name] = self.scripts.get(name, "") + data
        elif not self.stack or self.stack[-1] != "style":
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    @property
    def held(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.scripts["ledger-data"])
        return found


@pytest.fixture
def rows() -> list[dict[str, Any]]:
    """Five rows that between them say every word, with a trial that broke."""
    made = [
        synthetic_row("alpha", mechanism="holds here", advantage="holds here", fidelity="A"),
        synthetic_row("beta", mechanism="holds in part", advantage="does not hold here", fidelity="B"),
        synthetic_row("gamma", mechanism="undecided", advantage="not tested", fidelity="C"),
        synthetic_row("delta", mechanism="does not hold here", advantage="undecided", seeds=4),
        synthetic_row("epsilon", mechanism="not tested", advantage="not tested", seeds=1),
    ]
    broken = made[1]
    broken["broken"] = [{"arm": "method", "seed": 103, "error": "ValueError: NaN", "traceback": "Traceback: line 7"}]
    broken["arms"][0]["metrics"]["accuracy"][3] = None
    for check in broken["checks"]:
        check["values"][3] = None
    return made


def page_of(tmp_path: Path, rows: list[dict[str, Any]], calibration: bool = True) -> Page:
    for row in rows:
        write_row(tmp_path / "ledger", row)
    if calibration:
        write_json(tmp_path / "ledger" / "calibration.json", synthetic_calibration())
    out = write_report(tmp_path / "ledger", tmp_path / "out" / "report.html")
    return Page(out.read_text(encoding="utf-8"))


def test_page_is_well_formed_and_has_a_place_for_every_study(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    page = page_of(tmp_path, rows)
    assert page.stack == []
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    targets = {attrs["href"] for tag, attrs in page.tags if tag == "a" and (attrs.get("href") or "").startswith("#")}
    assert targets >= {f"#study-{row['slug']}" for row in rows}
    assert {target[1:] for target in targets if target} <= set(ids)
    labelled = {attrs["aria-labelledby"] for _, attrs in page.tags if "aria-labelledby" in attrs}
    assert labelled <= set(ids)


def test_a_dot_leads_inside_its_row_so_that_a_browser_opens_it_without_a_script(
    tmp_path: Path, rows: list[dict[str, Any]]
) -> None:
    page_of(tmp_path, rows)
    text = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    for row in rows:
        (inside,) = re.findall(rf'<details class="study" data-slug="{row["slug"]}".*?</details>', text, re.DOTALL)
        head, _, body = inside.partition("</summary>")
        assert f'id="study-{row["slug"]}"' in body
        assert "id=" not in head


def test_page_asks_nothing_of_the_network(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    page = page_of(tmp_path, rows)
    for tag, attrs in page.tags:
        loads = {
            name: value or "" for name, value in attrs.items() if name in ("src", "srcset", "data", "action", "poster")
        }
        if tag in ("link", "use", "image"):
            loads["href"] = attrs.get("href") or ""
        assert all(value.startswith(("data:", "#")) for value in loads.values()), (tag, attrs)
    text = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    styles = "".join(re.findall(r"<style[^>]*>(.*?)</style>", text, re.S))
    assert styles
    assert "url(" not in styles
    assert "@import" not in styles
    policy = next(attrs["content"] for _, attrs in page.tags if attrs.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    assert "http" not in policy


def test_embedded_rows_are_the_ledgers(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    page = page_of(tmp_path, rows)
    written = [json.loads((tmp_path / "ledger" / f"{row['slug']}.json").read_text()) for row in rows]
    assert page.held["rows"] == sorted(written, key=lambda row: (row["family"], row["slug"]))
    assert page.held["calibration"] == json.loads((tmp_path / "ledger" / "calibration.json").read_text())


def test_every_seeds_number_can_be_read_without_a_script(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    row = rows[0]
    generator = np.random.default_rng(7)
    for arm in row["arms"]:
        for name, values in arm["metrics"].items():
            arm["metrics"][name] = [round(float(x), 4) for x in generator.uniform(0.1, 0.9, len(values))]
    page = page_of(tmp_path, [row])
    for arm in row["arms"]:
        for values in arm["metrics"].values():
            assert all(number(value, 6) in page.text for value in values)
    for check in row["checks"]:
        for seed, value in zip(row["seeds"], check["values"], strict=True):
            assert f"seed {seed}: {value:.5g}" in page.text


@pytest.mark.parametrize("field", ["claim", "refuted_by", "scale_line", "command", "machine", "title"])
def test_a_hostile_row_stays_text(tmp_path: Path, field: str) -> None:
    honest = page_of(tmp_path / "honest", [synthetic_row("alpha")])
    row = synthetic_row("alpha")
    row[field] = HOSTILE
    page = page_of(tmp_path / "hostile", [row])
    assert [tag for tag, _ in page.tags] == [tag for tag, _ in honest.tags]
    assert page.held["rows"][0][field] == HOSTILE
    if field != "title":  # the title is only searched in
        assert " ".join(HOSTILE.split()) in page.text


def test_hostile_names_deep_inside_a_row_stay_text(tmp_path: Path) -> None:
    honest = page_of(tmp_path / "honest", [synthetic_row("alpha", fidelity="C")])
    row = synthetic_row("alpha", fidelity="C")
    row["paper"] |= {"title": HOSTILE, "authors": HOSTILE, "code": "javascript:alert(1)"}
    row["deviations"], row["data"] = [HOSTILE], [HOSTILE]
    row["inferred"], row["versions"], row["settings"] = {HOSTILE: HOSTILE}, {HOSTILE: "1"}, {HOSTILE: HOSTILE}
    row["shares"] = {HOSTILE: row["shares"]["effect"]}
    row["tuning"]["note"] = HOSTILE
    row["figures"][0]["title"] = HOSTILE
    for check in row["checks"]:
        check["name"] = check["note"] = check["bar"]["text"] = HOSTILE
    for question in row["verdicts"].values():
        question |= {"check": HOSTILE, "reason": HOSTILE}
    for arm in row["arms"]:
        arm["note"] = HOSTILE
        arm["metrics"] = {HOSTILE: arm["metrics"]["accuracy"], "seconds of work": arm["metrics"]["seconds of work"]}
    page = page_of(tmp_path / "hostile", [row])
    assert [tag for tag, _ in page.tags] == [tag for tag, _ in honest.tags]
    assert not [attrs for _, attrs in page.tags if any(name.startswith("on") for name in attrs)]
    assert not [attrs for _, attrs in page.tags if (attrs.get("href") or "").startswith("javascript")]


def test_an_empty_ledger_says_so(tmp_path: Path) -> None:
    out = write_report(tmp_path / "nothing", tmp_path / "report.html")
    page = Page(out.read_text(encoding="utf-8"))
    assert page.stack == []
    assert "The ledger is empty" in page.text
    assert "No calibration" in page.text
    assert out.stat().st_size < 200_000


def test_parts_that_are_missing_are_named(tmp_path: Path) -> None:
    row = synthetic_row("alpha")
    row |= {
        "checks": [],
        "arms": [],
        "figures": [],
        "frozen": None,
        "confirming": False,
        "clean": False,
        "scale": "smoke",
    }
    row["tuning"], row["seeds"], row["deviations"], row["commit"] = None, [], [], None
    row["verdicts"] = {name: {"word": "not tested", "reason": "", "check": None, "distance": None, "p": None}
                       for name in ("mechanism", "advantage")}  # fmt: skip
    text = page_of(tmp_path, [row]).text
    for words in (
        "no check",
        "no arm",
        "not frozen",
        "not the confirming seeds",
        "uncommitted",
        "smoke scale",
        "no commit",
    ):
        assert words in text, words


def test_an_older_row_and_a_broken_trial_are_told(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    old = rows[0] | {"measured": "2020-02-03", "commit": "a" * 40}
    text = page_of(tmp_path, [old, *rows[1:]]).text
    assert "From an older run: measured 2020-02-03 at aaaaaaaaaa" in text
    assert "method, seed 103: ValueError: NaN" in text
    assert "Traceback: line 7" in text


def test_a_file_that_is_no_row_is_named_and_the_others_are_shown(tmp_path: Path) -> None:
    write_row(tmp_path / "ledger", synthetic_row("alpha"))
    (tmp_path / "ledger" / "cut.json").write_text('{"kind": "plexus led')
    (tmp_path / "ledger" / "moved.json").write_text((tmp_path / "ledger" / "alpha.json").read_text())
    text = page_of(tmp_path, []).text
    assert "cut.json could not be read" in text
    assert "moved.json could not be read" in text
    assert [row["slug"] for row in load(tmp_path / "ledger").rows] == ["alpha"]


@pytest.mark.parametrize("case", ["a file where a folder should be", "a folder where the page should be"])
def test_an_unwritable_place_is_a_clear_error_and_leaves_nothing(tmp_path: Path, case: str) -> None:
    if "file" in case:
        (tmp_path / "file").write_text("mine")
        out = tmp_path / "file" / "report.html"
    else:
        out = tmp_path / "report.html"
        out.mkdir()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(PlexusError, match="cannot be written") as raised:
        write_report(tmp_path / "ledger", out)
    assert isinstance(raised.value, OSError)
    assert "to mend" in str(raised.value)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_failed_page_leaves_the_old_one(tmp_path: Path) -> None:
    out = write_report(tmp_path / "ledger", tmp_path / "report.html")
    before = out.read_bytes()
    row = synthetic_row("alpha")
    row["checks"][0]["bar"] = {}
    row["checks"][0]["values"] = ["not a number"]
    write_row(tmp_path / "ledger", row)
    with pytest.raises((TypeError, ValueError)):
        write_report(tmp_path / "ledger", out)
    assert out.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_the_page_stays_small(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    page_of(tmp_path, rows)
    assert (tmp_path / "out" / "report.html").stat().st_size < 3_000_000


def test_header_counts_with_false_discoveries_controlled() -> None:
    rows = [synthetic_row(f"s{i}", mechanism="holds here", advantage="not tested") for i in range(10)]
    for i, row in enumerate(rows):
        row["verdicts"]["mechanism"]["p"] = 0.04 if i == 0 else 0.9
        row["verdicts"]["advantage"]["p"] = None
    assert header(rows)["mechanism"]["holds"] == 0  # one of ten at p = 0.04 is what chance gives
    assert header(rows[:1])["mechanism"]["holds"] == 1
    for row in rows:
        row["verdicts"]["mechanism"]["p"] = 0.04
    assert header(rows)["mechanism"] == {"holds": 10, "tested": 10, "words": {"holds here": 10}}
    assert header(rows)["advantage"]["tested"] == 0


def test_distances_agree_with_the_checks_own() -> None:
    for word in ("holds here", "undecided", "does not hold here"):
        check = synthetic_row("alpha", mechanism=word)["checks"][2]
        low, middle, high = distances(check) or (0.0, 0.0, 0.0)
        assert middle == pytest.approx(check["distance"])
        assert (low + high) / 2 == pytest.approx(middle)  # a t interval is symmetric about its mean
        assert (high - low) / 2 == pytest.approx(0.02 / 0.05)


def test_distance_from_a_tolerance_is_largest_at_its_centre() -> None:
    check = {"kind": "equivalent", "bar": {"center": 1.0, "margin": 0.5}, "mean": 1.0, "interval": [0.9, 1.25],
             "distance": 1.0, "distance_unit": "margin"}  # fmt: skip
    low, middle, high = distances(check) or (0.0, 0.0, 0.0)
    assert (low, middle, high) == pytest.approx((0.5, 1.0, 1.0))


def test_shams_are_grey_dots_and_studies_are_links(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    for row in rows:
        write_row(tmp_path, row)
    write_json(tmp_path / "calibration.json", synthetic_calibration())
    marks = dots(load(tmp_path))
    assert sum(mark.sham for mark in marks) == len(synthetic_calibration()["studies"])
    svg = claims_map(marks)
    assert svg.count('class="sham"') == len(synthetic_calibration()["studies"])
    assert svg.count("<a class=") == len(rows)
    for fidelity, shape in (("A", "circle"), ("B", "rect"), ("C", "polygon")):
        assert f'<{shape} class="mark' in claims_map([Dot("x", "x", (0, 0, 0), (0, 0, 0), fidelity)])


def place(x: float, y: float) -> tuple[float, float]:
    found = re.search(r'<circle class="mark[^>]*cx="([\d.-]+)" cy="([\d.-]+)"',
                      claims_map([Dot("x", "x", (x, x, x), (y, y, y), "A")]))  # fmt: skip
    assert found
    return float(found[1]), float(found[2])


@settings(max_examples=40, deadline=None)
@given(st.floats(-1e9, 1e9), st.floats(-1e9, 1e9))
def test_map_keeps_order_and_stays_inside(first: float, second: float) -> None:
    low, high = sorted((first, second))
    (x0, y0), (x1, y1) = place(low, low), place(high, high)
    assert x0 <= x1
    assert y0 >= y1  # up is better
    assert all(0 <= x <= 860 for x in (x0, x1))
    assert all(0 <= y <= 500 for y in (y0, y1))


def test_words_of_both_questions_give_one_colour() -> None:
    assert overall(["holds here", "holds here"]) == "holds here"
    assert overall(["holds here", "does not hold here"]) == "holds in part"
    assert overall(["undecided", "does not hold here"]) == "undecided"
    assert overall(["not tested", "not tested"]) == "not tested"


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=12), st.one_of(st.none(), st.floats(-1e6, 1e6)))
def test_a_strip_draws_every_seed_inside_its_width(values: list[float], bar: float | None) -> None:
    svg = strip(Strip(tuple(enumerate(values)), good=None if bar is None else (bar, None)))
    Page(svg)
    places = [float(x) for x in re.findall(r'<circle class="seed" cx="([\d.]+)%"', svg)]
    assert len(places) == len(values)
    assert all(0 <= x <= 100 for x in places)
    assert sorted(range(len(values)), key=values.__getitem__) == sorted(
        range(len(values)), key=lambda i: (places[i], values[i])
    )


@settings(max_examples=60, deadline=None)
@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6))
def test_ticks_are_inside_and_evenly_spread(low: float, width: float) -> None:
    found = ticks(low, low + width)
    assert 1 <= len(found) <= 6
    steps = np.diff(found)
    assert np.allclose(steps, steps[:1])
    assert all(low - 1e-6 * width <= tick <= low + width * (1 + 1e-6) for tick in found)


def test_an_axis_shows_the_bar_too() -> None:
    low, high = extent([Strip(((0, 1.0), (1, 2.0)), good=(5.0, None))])
    assert low < 1.0
    assert high > 5.0


def test_mean_and_half_interval_against_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    values = [0.31, 0.35, 0.29, 0.40, 0.33]
    mean, low, high = summary([*values, None])
    reach = stats.t.ppf(0.975, 4) * np.std(values, ddof=1) / math.sqrt(5)
    assert mean == pytest.approx(np.mean(values))
    assert (low, high) == pytest.approx((mean - reach, mean + reach))
    assert mean_half(mean, low, high) == (f"{mean:.3f}", f"{reach:.3f}")
    assert summary([None, 1.0])[1:] == (None, None)


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_colours_have_the_contrast_of_wcag_aa(theme: str) -> None:
    colours = COLOURS[theme]

    def contrast(first: str, second: str) -> float:
        high, low = sorted((luminance(colours[first]), luminance(colours[second])), reverse=True)
        return (high + 0.05) / (low + 0.05)

    for text in ("ink", "muted", "holds", "fails", "undecided", "untested"):
        assert contrast(text, "paper") >= 4.5, text
    assert contrast("ink", "good") >= 4.5
    assert contrast("muted", "good") >= 4.5
    assert contrast("part", "paper") >= 3.0  # a mark and a border, never text
    assert contrast("line", "paper") >= 3.0


def test_a_standalone_figure_brings_its_colours_light_and_dark() -> None:
    rules = style(standalone=True)
    assert all(value in rules for theme in COLOURS.values() for value in theme.values())
    assert "prefers-color-scheme:dark" in rules
    used = set(re.findall(r"var\(--([a-z]+)", rules)) - {"c"}
    assert used <= set(COLOURS["light"])
    assert set(COLOURS["light"]) == set(COLOURS["dark"])


def test_rows_are_not_changed_by_looking_at_them(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    before = copy.deepcopy(rows)
    page_of(tmp_path, rows)
    assert rows == before


@pytest.mark.parametrize(
    ("then", "now", "seeds", "said"),
    [
        ("holds here", "holds here", 3, "as in the ledger"),
        ("holds here", "undecided", 3, "less sure, on fewer seeds"),
        ("holds here", "holds in part", 3, "less sure, on fewer seeds"),
        ("holds here", "undecided", 10, "another answer"),
        ("does not hold here", "holds in part", 3, "another answer"),
        ("holds here", "does not hold here", 3, "another answer"),
    ],
)
def test_a_run_here_is_compared_with_the_ledger(then: str, now: str, seeds: int, said: str) -> None:
    here = synthetic_row("one", mechanism=now, seeds=seeds)
    view = here_views(Ledger((synthetic_row("one", mechanism=then),), None, (), (here,)))["one"]
    assert view["questions"][0]["agrees"] == said
    assert view["seeds"].startswith(f"{seeds} seeds, 100 to ")
    alone = here_views(Ledger((), None, (), (here,)))["one"]
    assert alone["questions"][0]["then"] is None
