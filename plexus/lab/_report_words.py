"""Numbers, bars, settings and durations in words."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


def number(value: Any, digits: int = 3) -> str:
    """A number in as many digits as a reader wants; a dash where there is none.

    Examples:
        >>> number(0.123456), number(12345.6), number(None), number(2.0), number(0.00001234)
        ('0.123', '12,346', '–', '2', '1.23e-05')
    """
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    magnitude = abs(float(value))
    if 10 ** (digits - 1) <= magnitude < 1e9:
        return f"{float(value):,.{0 if digits < 5 else 2}f}".replace("-", "−")
    text = f"{float(value):.{digits}g}"
    return text if "e" in text else text.replace("-", "−")


def like(value: float | None, low: float | None, high: float | None) -> str:
    """A number to the second digit of half the interval beside it, so that it can be told from the interval's ends.

    Examples:
        >>> like(98.59, 97.2, 99.98), like(20.4, None, None), like(-0.0001, -0.1, 0.1)
        ('98.6', '20.4', '0.00')
    """
    half = 0.0 if low is None or high is None else (high - low) / 2
    if value is None or not 1e-6 < half < 1e6 or abs(value) >= 1e9:
        return number(value)
    text = f"{value:,.{max(0, 1 - math.floor(math.log10(half)))}f}"
    return text.replace("-", "−" if any(digit in text for digit in "123456789") else "")


def mean_half(mean: float | None, low: float | None, high: float | None) -> tuple[str, str]:
    """A mean and half its interval, both to the second digit of the half.

    Examples:
        >>> mean_half(20.428, 19.04, 21.816), mean_half(0.5, 0.5, 0.5), mean_half(3.14159, None, None)
        (('20.4', '1.4'), ('0.5', '0'), ('3.14', ''))
    """
    if low is None or high is None:
        return number(mean), ""
    return like(mean, low, high), like((high - low) / 2, low, high)


def interval_words(low: float | None, high: float | None) -> str:
    """`[low, high]` in words, empty where there is no interval.

    Examples:
        >>> interval_words(97.2, 99.98), interval_words(None, None)
        ('[97.2, 100.0]', '')
    """
    return "" if low is None or high is None else f"[{like(low, low, high)}, {like(high, low, high)}]"


def p_words(p: Any) -> str:
    """A p value as papers print it."""
    return "" if p is None else "p < 0.001" if p < 0.001 else f"p = {p:.2g}"


def bar_words(check: Mapping[str, Any]) -> str:
    """A check's bar in words."""
    bar = check["bar"]
    if bar.get("text"):
        return str(bar["text"])
    unit = f" {check['unit']}" if check.get("unit") else ""
    if "at_least" in bar:
        words = f"at least {number(bar['at_least'])}{unit}"
    elif "at_most" in bar:
        words = f"at most {number(bar['at_most'])}{unit}"
    else:
        words = f"{number(bar.get('center', 0.0))} ± {number(bar.get('margin'))}{unit}"
    return f"{words} in {bar['k']} of {bar['n']} seeds" if bar.get("k") else words


def settings_words(settings: Mapping[str, Any] | None) -> str:
    """Settings as `name = value` pairs."""
    return ", ".join(
        f"{name} = {number(v, 6) if isinstance(v, float) else v or repr(v)}" for name, v in (settings or {}).items()
    )


def short(commit: str | None) -> str:
    """The first ten digits of a commit."""
    return commit[:10] if commit else "no commit"


def duration(seconds: float | None) -> str:
    """A duration in words.

    Examples:
        >>> duration(65.0), duration(4.25), duration(None)
        ('1 min 5 s', '4.2 s', 'unknown')
    """
    if seconds is None:
        return "unknown"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
