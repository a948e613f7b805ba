"""The claims map: each study a dot, advantage against mechanism, drawn as SVG by hand.

A dot's place is its signed distance `d` from the bar, on the good side positive, in units of the bar (see
`plexus.lab._ledger`: of the margin, or of half the interval where the bar is 0), drawn at

    u = sign(d) log2(1 + |d|)          1, 3 and 7 bars beyond the bar lie one step apart
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from plexus.lab._figures import FILL, VERDICT_KEY, compact, mark, style

REACH = 4.4
"""Steps from the bar to the edge of the map; what lies beyond is drawn on the edge, with an arrow."""


def _steps(distance: float) -> float:
    if math.isnan(distance):
        return 0.0
    if math.isinf(distance):
        return math.copysign(REACH, distance)
    return max(-REACH, min(REACH, math.copysign(math.log2(1.0 + abs(distance)), distance)))


Box = tuple[float, float, float, float]
"""Left, top, right, bottom."""

PLACES = (
    (13, -8, "start"),
    (-13, -8, "end"),
    (13, 16, "start"),
    (-13, 16, "end"),
    (0, -16, "middle"),
    (0, 24, "middle"),
)
"""Where a dot's name may stand, best first: offset and anchor."""


@dataclass(frozen=True)
class Dot:
    """A study or a sham on the map; `x` is mechanism, `y` advantage: distances `(low, mean, high)`, or None."""

    slug: str
    label: str
    x: tuple[float, float, float] | None
    y: tuple[float, float, float] | None
    fidelity: str = "B"
    verdict: str = "undecided"
    tip: str = ""
    sham: bool = False


class _Map:
    """The frame of a claims map: where a value lies on the page."""

    def __init__(self, width: int, height: int, gutter_x: bool, gutter_y: bool, narrow: bool) -> None:
        self.width, self.height, self.narrow = width, height, narrow
        self.left, self.right, self.top = (46 if narrow else 58), width - 14, 14
        self.bottom = height - 52
        self.gutter_x = self.left + 34 if gutter_x else None
        self.gutter_y = self.bottom - 30 if gutter_y else None
        self.inner_left = self.left + (64 if gutter_x else 0)
        self.inner_bottom = self.bottom - (56 if gutter_y else 0)

    def x(self, value: float) -> float:
        pad = 14
        share = (_steps(value) + REACH) / (2 * REACH)
        return self.inner_left + pad + share * (self.right - self.inner_left - 2 * pad)

    def y(self, value: float) -> float:
        pad = 14
        share = (_steps(value) + REACH) / (2 * REACH)
        return self.inner_bottom - pad - share * (self.inner_bottom - self.top - 2 * pad)


TICKS = (-15, -7, -3, -1, 0, 1, 3, 7, 15)


def claims_map(
    dots: Sequence[Dot],
    *,
    width: int = 760,
    height: int = 470,
    link: str = "#study-{}",
    name: str = "map",
    standalone: bool = False,
) -> str:
    """The claims map as one SVG: advantage against mechanism in units of the bar, each study a dot.

    Args:
        dots: studies and shams, drawn in this order (shams below).
        width, height: of the drawing; below 500 px wide the words in the corners are left out.
        link: where a dot leads, with `{}` for the slug; empty for none.
        name: prefix of the ids, so that two maps fit on one page.
        standalone: define the colours inside, for a file of its own.

    Examples:
        >>> svg = claims_map([Dot("ssd", "ssd", (0.5, 1.0, 1.5), (-0.1, 0.2, 0.5), verdict="holds in part")])
        >>> svg.startswith("<svg") and "ssd" in svg
        True
    """
    narrow = width < 500
    studies, shams = [dot for dot in dots if not dot.sham], [dot for dot in dots if dot.sham]
    frame = _Map(width, height, any(d.x is None for d in dots), any(d.y is None for d in dots), narrow)
    words = f"Claims map: {len(studies)} studies, advantage over the best simple baseline against mechanism."
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" class="pf map" viewBox="0 0 {width} {height}" '
        f'role="group" aria-labelledby="{name}-title">',
        f"<style>{style(standalone=True)}</style>" if standalone else "",
        f'<title id="{name}-title">{escape(words)}</title>',
        f'<rect class="back" width="{width}" height="{height}"/>',
        _axes(frame),
    ]
    parts += [_sham(frame, dot) for dot in shams]
    places = [_place(frame, dot) for dot in studies]
    taken: list[Box] = [(x - 9, y - 9, x + 9, y + 9) for x, y in places]
    grey: list[Box] = [(x - 3, y - 3, x + 3, y + 3) for x, y in (_place(frame, dot) for dot in shams)]
    parts += [_dot(frame, dot, place, taken, grey, link) for dot, place in zip(studies, places, strict=True)]
    if not studies:
        parts.append(
            f'<text class="quiet" x="{width / 2}" y="{height / 2 - 20}" text-anchor="middle">'
            "no study in the ledger yet</text>"
        )
    return "".join(parts) + "</svg>"


def _axes(frame: _Map) -> str:
    bar_x, bar_y = frame.x(0.0), frame.y(0.0)
    parts = [
        f'<rect class="good" x="{compact(bar_x)}" y="{frame.top}" width="{compact(frame.right - bar_x)}" '
        f'height="{compact(bar_y - frame.top)}"/>',
        f'<rect class="grid" x="{frame.left}" y="{frame.top}" width="{frame.right - frame.left}" '
        f'height="{frame.bottom - frame.top}"/>',
    ]
    for tick in TICKS:
        kind = "bar" if tick == 0 else "grid"
        word = "bar" if tick == 0 else f"{tick:+d}".replace("-", "−")
        x, y = compact(frame.x(tick)), compact(frame.y(tick))
        parts.append(f'<path class="{kind}" d="M{x} {frame.top}V{compact(frame.inner_bottom)}"/>')
        parts.append(f'<path class="{kind}" d="M{compact(frame.inner_left)} {y}H{frame.right}"/>')
        parts.append(f'<text class="quiet" x="{x}" y="{frame.bottom + 16}" text-anchor="middle">{word}</text>')
        parts.append(f'<text class="quiet" x="{frame.left - 6}" y="{y}" dy=".35em" text-anchor="end">{word}</text>')
    middle_x, middle_y = (frame.inner_left + frame.right) / 2, (frame.top + frame.inner_bottom) / 2
    across = "mechanism: beats its own ablation →" if frame.narrow else "mechanism: beats its own ablation and null →"
    parts.append(
        f'<text class="axis" x="{compact(middle_x)}" y="{frame.height - 14}" text-anchor="middle">{across}</text>'
        f'<text class="axis" transform="translate(13 {compact(middle_y)}) rotate(-90)" text-anchor="middle">'
        "advantage: beats the best simple baseline →</text>"
    )
    if frame.gutter_x is not None:
        parts.append(f'<path class="grid" d="M{frame.inner_left} {frame.top}V{frame.bottom}"/>')
        parts.append(
            f'<text class="quiet" x="{frame.gutter_x}" y="{frame.bottom + 16}" text-anchor="middle">not tested</text>'
        )
    if frame.gutter_y is not None:
        parts.append(f'<path class="grid" d="M{frame.left} {frame.inner_bottom}H{frame.right}"/>')
        parts.append(
            f'<text class="quiet" x="{frame.right - 6}" y="{frame.bottom - 6}" text-anchor="end">'
            "advantage not tested</text>"
        )
    if not frame.narrow:
        inset = 8
        corners = (
            (frame.right - inset, frame.top + 18, "end", "works, and beats the baseline"),
            (frame.right - inset, frame.inner_bottom - inset, "end", "works, but a simple baseline does as well"),
            (frame.inner_left + inset, frame.top + 18, "start", "wins, but not by its mechanism"),
            (frame.inner_left + inset, frame.inner_bottom - inset, "start", "neither"),
        )
        parts += [
            f'<text class="quiet" x="{compact(x)}" y="{compact(y)}" text-anchor="{anchor}">{word}</text>'
            for x, y, anchor, word in corners
        ]
    return "".join(parts)


def _place(frame: _Map, dot: Dot) -> tuple[float, float]:
    x = frame.x(dot.x[1]) if dot.x is not None else float(frame.gutter_x or 0)
    y = frame.y(dot.y[1]) if dot.y is not None else float(frame.gutter_y or 0)
    return x, y


def _sham(frame: _Map, dot: Dot) -> str:
    x, y = _place(frame, dot)
    tip = escape(dot.tip or dot.label, quote=True)
    return (
        f'<g class="sham-dot" data-tip="{tip}"><circle class="sham" cx="{compact(x)}" cy="{compact(y)}" r="3.5">'
        f"<title>{tip}</title></circle></g>"
    )


def _dot(frame: _Map, dot: Dot, place: tuple[float, float], taken: list[Box], shams: Sequence[Box], link: str) -> str:
    x, y = place
    whiskers = ""
    if dot.x is not None:
        whiskers += (
            f'<path class="whisker" d="M{compact(frame.x(dot.x[0]))} {compact(y)}H{compact(frame.x(dot.x[2]))}"/>'
        )
    if dot.y is not None:
        whiskers += (
            f'<path class="whisker" d="M{compact(x)} {compact(frame.y(dot.y[0]))}V{compact(frame.y(dot.y[2]))}"/>'
        )
    label = _label(frame, dot, x, y, taken, shams)
    tip = escape(dot.tip or dot.label, quote=True)
    body = (
        f"<title>{tip}</title>{whiskers}{mark(dot.fidelity, x, y, 8, FILL.get(dot.verdict, ''))}{label}"
        f'<circle cx="{compact(x)}" cy="{compact(y)}" r="15" fill="transparent"/>'
    )
    colour = VERDICT_KEY.get(dot.verdict, "untested")
    if link:
        target = escape(link.format(dot.slug), quote=True)
        return f'<a class="dot c-{colour}" href="{target}" data-tip="{tip}" aria-label="{tip}">{body}</a>'
    return f'<g class="dot c-{colour}">{body}</g>'


def _label(frame: _Map, dot: Dot, x: float, y: float, taken: list[Box], shams: Sequence[Box]) -> str:
    """The name beside the dot where it covers nothing, else where only shams; none where there is no room."""
    size = 7.6 * len(dot.label)
    free: list[tuple[int, Box, str]] = []
    for dx, dy, anchor in PLACES:
        start = x + dx - (size if anchor == "end" else size / 2 if anchor == "middle" else 0)
        box = (start, y + dy - 11, start + size, y + dy + 4)
        inside = box[0] >= frame.left and box[2] <= frame.right and box[1] >= frame.top and box[3] <= frame.bottom
        if inside and not any(_overlap(box, other) for other in taken):
            place = f'x="{compact(x + dx)}" y="{compact(y + dy)}" text-anchor="{anchor}"'
            free.append((sum(_overlap(box, other) for other in shams), box, place))
    if not free:
        return ""
    _, box, place = min(free, key=lambda item: item[0])
    taken.append(box)
    return f'<text class="name" {place}>{escape(dot.label)}</text>'


def _overlap(first: Box, second: Box) -> bool:
    return first[0] < second[2] and second[0] < first[2] and first[1] < second[3] and second[1] < first[3]
