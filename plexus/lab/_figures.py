"""Small static figures of the report, drawn as SVG by hand: colours, marks, and a strip per check and per arm.

All colours are CSS variables; `style` gives the rules, and a file of its own also defines the colours, light and dark.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

_LIGHT = {
    "ink": "#1b1f24",
    "muted": "#59626d",
    "paper": "#ffffff",
    "grid": "#dde2e8",
    "line": "#8a939e",
    "good": "#e8f1fa",
    "holds": "#0f4c81",
    "part": "#4389cc",
    "fails": "#b8480c",
    "undecided": "#8a6100",
    "untested": "#68717c",
    "sham": "#9aa3ad",
}
_DARK = {
    "ink": "#e8ecf1",
    "muted": "#a3adb8",
    "paper": "#14181d",
    "grid": "#2c333c",
    "line": "#6b7682",
    "good": "#182a3b",
    "holds": "#6db3f2",
    "part": "#a8d1f7",
    "fails": "#ff9355",
    "undecided": "#e6c04d",
    "untested": "#98a2ad",
    "sham": "#66707b",
}
COLOURS = {"light": _LIGHT, "dark": _DARK}
"""Theme → name of a colour → its value."""

VERDICT_KEY = {
    "holds here": "holds",
    "reproduced": "holds",
    "holds in part": "part",
    "does not hold here": "fails",
    "undecided": "undecided",
    "not tested": "untested",
}
"""Verdict word → the name of its colour."""


FILL = {"holds in part": " half", "undecided": " hollow", "not tested": " hollow"}
"""Verdict word → class of its mark: full, half and empty can be told apart without colour."""


def style(*, standalone: bool) -> str:
    """The rules of all figures; a standalone file also defines the colours, light and dark."""
    rules = [
        "text{font-family:system-ui,-apple-system,'Segoe UI',Roboto,sans-serif;font-size:12px;fill:var(--ink)}",
        "text.quiet{fill:var(--muted)}text.axis{font-weight:600}",
        "text.name{font-weight:600;paint-order:stroke;stroke:var(--paper);stroke-width:3px;stroke-linejoin:round}",
        ".back{fill:var(--paper)}.good{fill:var(--good)}.grid{stroke:var(--grid);fill:none}",
        ".bar{stroke:var(--ink);stroke-width:1.5;stroke-dasharray:5 3;fill:none}",
        ".zero{stroke:var(--line);fill:none}.sham{fill:var(--sham);opacity:.75}",
        ".seed{fill:var(--c,var(--muted));fill-opacity:.5}.mean{stroke:var(--c,var(--ink));stroke-width:3;fill:none}",
        ".span{stroke:var(--c,var(--ink));stroke-width:2;fill:none}.whisker{stroke:var(--c);stroke-width:1.5;opacity:.55}",
        ".mark{fill:var(--c);stroke:var(--paper);stroke-width:1.5}.mark.hollow{fill:var(--paper);stroke:var(--c);"
        "stroke-width:2}.mark.half{fill-opacity:.3;stroke:var(--c);stroke-width:2}",
    ]
    scoped = "".join(_scope(rule) for rule in rules)
    scoped += "".join(f".c-{name}{{--c:var(--{name})}}" for name in sorted(set(VERDICT_KEY.values())))
    if not standalone:
        return scoped
    light, dark = variables("light"), variables("dark")
    return f"svg.pf{{{light}}}@media (prefers-color-scheme:dark){{svg.pf{{{dark}}}}}{scoped}"


def _scope(rules: str) -> str:
    return "".join(f".pf {rule}}}" for rule in rules.split("}") if rule)


def variables(theme: str) -> str:
    """The colours of a theme, `light` or `dark`, as declarations of CSS variables."""
    return ";".join(f"--{name}:{value}" for name, value in COLOURS[theme].items())


def compact(value: float) -> str:
    """A coordinate in as few letters as do."""
    return f"{value:.1f}".rstrip("0").rstrip(".") if value else "0"


def mark(fidelity: str, x: float, y: float, size: float, extra: str = "") -> str:
    """The shape of a fidelity around a point: A a circle, B a square, C a triangle."""
    if fidelity == "A":
        return f'<circle class="mark{extra}" cx="{compact(x)}" cy="{compact(y)}" r="{compact(size)}"/>'
    if fidelity == "B":
        side = size * 0.89
        return (
            f'<rect class="mark{extra}" x="{compact(x - side)}" y="{compact(y - side)}" '
            f'width="{compact(2 * side)}" height="{compact(2 * side)}" rx="1.5"/>'
        )
    reach = size * 1.2
    points = [(x, y - reach), (x + reach * 0.95, y + reach * 0.7), (x - reach * 0.95, y + reach * 0.7)]
    return f'<polygon class="mark{extra}" points="{" ".join(f"{compact(a)},{compact(b)}" for a, b in points)}"/>'


@dataclass(frozen=True)
class Strip:
    """Numbers of all seeds on one line, with their mean, interval and bar.

    Attributes:
        values: `(seed, number)` pairs.
        mean, low, high: of the seeds, or None when there is none.
        good: the good side `(from, to)`, either end None for open; None when there is no bar.
        colour: a name of `VERDICT_KEY`'s colours.
        words: read aloud by a screen reader.
    """

    values: tuple[tuple[int, float], ...]
    mean: float | None = None
    low: float | None = None
    high: float | None = None
    good: tuple[float | None, float | None] | None = None
    colour: str = "untested"
    words: str = ""


def extent(strips: Sequence[Strip]) -> tuple[float, float]:
    """One axis that shows all numbers, intervals and bars of some strips."""
    numbers = [value for s in strips for _, value in s.values]
    numbers += [value for s in strips for value in (s.mean, s.low, s.high, *(s.good or ())) if value is not None]
    finite = [value for value in numbers if math.isfinite(value)]
    if not finite:
        return 0.0, 1.0
    low, high = min(finite), max(finite)
    if high - low < 1e-12 * max(abs(low), abs(high), 1e-300):
        pad = abs(low) * 0.1 or 1.0
    else:
        pad = 0.08 * (high - low)
    return low - pad, high + pad


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers inside `[low, high]`, about `count` of them.

    Examples:
        >>> ticks(0.0, 10.0)
        [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]
    """
    raw = (high - low) / count
    if not raw > 0 or not math.isfinite(raw):
        return [low]
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw)
    first = math.ceil(low / step - 1e-9)
    return [round(step * i, 12) + 0.0 for i in range(first, math.floor(high / step + 1e-9) + 1)]


def strip(data: Strip, *, axis: tuple[float, float] | None = None, scale: bool = True) -> str:
    """A strip as SVG that takes the width it is given: seeds as dots, mean and interval, the bar, the good side shaded.

    Examples:
        >>> "<circle" in strip(Strip(((0, 1.0), (1, 2.0)), mean=1.5, low=1.0, high=2.0, good=(0.5, None)))
        True
    """
    low, high = axis or extent([data])
    middle, height = 20, (54 if scale else 32)

    def at(value: float) -> str:
        return _at(value, low, high)

    parts = [f'<svg class="pf strip c-{data.colour}" width="100%" height="{height}" role="img">']
    parts.append(f"<title>{escape(data.words)}</title>" if data.words else "")
    if data.good is not None:
        start, stop = data.good
        left = at(start) if start is not None else "0%"
        right = at(stop) if stop is not None else "100%"
        span = f"{float(right[:-1]) - float(left[:-1]):.2f}%"
        parts.append(f'<rect class="good" x="{left}" y="2" width="{span}" height="36"/>')
    parts.append(f'<line class="grid" x1="0" x2="100%" y1="{middle}" y2="{middle}"/>')
    edges = [at(edge) for edge in data.good or () if edge is not None]
    parts += [f'<line class="bar" x1="{edge}" x2="{edge}" y1="2" y2="38"/>' for edge in edges]
    for seed, value in data.values:
        if math.isfinite(value):
            parts.append(
                f'<circle class="seed" cx="{at(value)}" cy="{middle + (seed % 3 - 1) * 5}" r="4">'
                f"<title>seed {seed}: {value:.5g}</title></circle>"
            )
    if data.low is not None and data.high is not None:
        parts.append(f'<line class="span" x1="{at(data.low)}" x2="{at(data.high)}" y1="{middle}" y2="{middle}"/>')
    if data.mean is not None:
        parts.append(f'<line class="mean" x1="{at(data.mean)}" x2="{at(data.mean)}" y1="9" y2="31"/>')
    if scale:
        parts.append(_scale(low, high, 38))
    return "".join(parts) + "</svg>"


def _at(value: float, low: float, high: float) -> str:
    share = (value - low) / (high - low)
    return f"{2 + 96 * max(0.0, min(1.0, share)):.2f}%"


def _scale(low: float, high: float, top: int) -> str:
    return "".join(
        f'<line class="zero" x1="{_at(tick, low, high)}" x2="{_at(tick, low, high)}" y1="{top}" y2="{top + 3}"/>'
        f'<text class="quiet" x="{_at(tick, low, high)}" y="{top + 14}" text-anchor="middle">{tick:g}</text>'
        for tick in ticks(low, high)
    )


def scale_line(axis: tuple[float, float]) -> str:
    """The numbers of an axis alone, to stand under strips that share it."""
    return f'<svg class="pf strip" width="100%" height="20" aria-hidden="true">{_scale(*axis, 2)}</svg>'
