"""Settings given as text, `--set width=64`, typed by the study's `Config`; and JSON brought back to its types."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any, Literal, Union

from plexus.errors import RangeError, UnknownNameError


def field_types(config: type) -> dict[str, Any]:
    """Field name → type of a `Config`."""
    hints = typing.get_type_hints(config)
    return {field.name: hints.get(field.name, Any) for field in dataclasses.fields(config)}


def parse_settings(config: type, items: Iterable[str], *, study: str = "") -> dict[str, Any]:
    """`["width=64", "method=none"]` as overrides of a `Config`.

    Raises:
        UnknownNameError: the `Config` has no such field.
        RangeError: an item is not of the form name=value, or its value not of the field's type.

    Examples:
        >>> @dataclasses.dataclass
        ... class Config:
        ...     width: int = 8
        ...     rates: tuple[float, ...] = (0.1,)
        >>> parse_settings(Config, ["width=64", "rates=0.1,0.2"])
        {'width': 64, 'rates': (0.1, 0.2)}
    """
    known = field_types(config)
    parsed = {}
    for item in items:
        name, equals, text = item.partition("=")
        name = name.strip().replace("-", "_")
        if not equals:
            raise RangeError("a setting is given as name=value", given=item, expected="--set name=value")
        if name not in known:
            raise UnknownNameError.among(f"setting of {study}" if study else "setting", name, known)
        try:
            parsed[name] = _parse(text.strip(), known[name])
        except (ValueError, TypeError) as error:
            raise RangeError(
                f"the setting {name!r} has another type", given=text, expected=_say(known[name])
            ) from error
    return parsed


def _say(kind: Any) -> str:
    return kind.__name__ if isinstance(kind, type) else str(kind).replace("typing.", "")


def _parse(text: str, kind: Any) -> Any:
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (Union, types.UnionType):
        if type(None) in inner and text.lower() == "none":
            return None
        for option in inner:
            if option is not type(None):
                try:
                    return _parse(text, option)
                except (ValueError, TypeError):
                    continue
        raise ValueError(text)
    if origin is Literal:
        for option in inner:
            if str(option) == text:
                return option
        raise ValueError(text)
    if kind is tuple or origin in (tuple, list):
        parts = [part.strip() for part in text.strip("()[]").split(",") if part.strip()]
        if origin is tuple and not (len(inner) == 2 and inner[1] is Ellipsis):
            values = [_parse(part, each) for part, each in zip(parts, inner, strict=True)]
        else:
            values = [_parse(part, inner[0] if inner else str) for part in parts]
        return values if origin is list else tuple(values)
    if kind is bool:
        return _BOOLS[text.lower()] if text.lower() in _BOOLS else _refuse(text)
    if kind is int:
        return int(text)
    if kind is float:
        return float(text)
    if kind is str or kind is Any:
        return text
    raise TypeError(kind)


_BOOLS = {word: i < 4 for i, word in enumerate(["true", "yes", "1", "on", "false", "no", "0", "off"])}


def _refuse(text: str) -> Any:
    raise ValueError(text)


def from_json(config: type, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Overrides that went through JSON: lists become tuples again where the field's type or default is a tuple."""
    defaults = {field.name: field.default for field in dataclasses.fields(config)}
    known = field_types(config)

    def back(name: str, value: Any) -> Any:
        if isinstance(value, list) and (
            typing.get_origin(known.get(name)) is tuple or isinstance(defaults.get(name), tuple)
        ):
            return _tuples(value)
        return value

    return {name: back(name, value) for name, value in overrides.items()}


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value
