"""One tensor out of whatever a module takes or returns, and the same structure with another tensor in its place."""

from __future__ import annotations

import copy
import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from plexus.errors import SiteError

__all__ = ["Found", "find", "find_input"]

Found = tuple[Any, Callable[[Any], Any]]


def find(value: Any, leaf: int | str | None, path: str) -> Found:
    """The tensor (or `PackedSequence`) that `leaf` names in `value`, and a function that puts another in its place.

    `leaf` is an index, a key or field name, or several joined by dots (`"1.0"`); None is the first tensor, depth first.
    Tuples, NamedTuples, lists, mappings, dataclasses and the outputs of transformers keep their type.

    Raises:
        SiteError: there is no such leaf, or it is no tensor.
    """
    keys = _keys(leaf)
    found = _first(value) if keys is None else _pick(value, keys)
    if found is None:
        raise SiteError(
            f"the module {path!r} has no such tensor",
            given=f"leaf={leaf!r} in {_describe(value)}",
            mend="choose the tensor with leaf=, e.g. leaf=0 or leaf='last_hidden_state'",
        )
    return found


def find_input(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], leaf: int | str | None, path: str
) -> Found:
    """Like `find`, in the arguments of a call; named by position or by keyword, however they were passed.

    The function that comes back gives the new `(args, kwargs)`.
    """
    keys = _keys(leaf)
    if keys is None:
        order: list[int | str] = [*range(len(args)), *kwargs]
        picked = next(((key, found) for key in order if (found := _first(_argument(args, kwargs, key)))), None)
        if picked is None:
            raise SiteError(f"the module {path!r} was called without a tensor", given=_describe((args, kwargs)))
        key, (tensor, rebuild) = picked
    else:
        passed = _passed_as(module, args, kwargs, keys[0])
        if passed is None:
            raise SiteError(
                f"the module {path!r} was called without the argument {keys[0]!r}",
                given=f"{len(args)} positional, keywords {', '.join(kwargs) or 'none'}",
            )
        key = passed
        tensor, rebuild = find(_argument(args, kwargs, key), ".".join(map(str, keys[1:])) or None, path)

    def put(new: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        changed = rebuild(new)
        if isinstance(key, int):
            return (*args[:key], changed, *args[key + 1 :]), kwargs
        return args, {**kwargs, key: changed}

    return tensor, put


def _keys(leaf: int | str | None) -> list[int | str] | None:
    if leaf is None:
        return None
    if isinstance(leaf, int):
        return [leaf]
    return [int(key) if key.isdigit() else key for key in leaf.split(".")]


def _argument(args: tuple[Any, ...], kwargs: dict[str, Any], key: int | str) -> Any:
    return args[key] if isinstance(key, int) else kwargs[key]


def _passed_as(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], key: int | str) -> int | str | None:
    if isinstance(key, int) and key < len(args):
        return key
    if isinstance(key, str) and key in kwargs:
        return key
    names = list(inspect.signature(module.forward).parameters)
    if isinstance(key, str):
        return names.index(key) if key in names and names.index(key) < len(args) else None
    return names[key] if key < len(names) and names[key] in kwargs else None


def _first(value: Any) -> Found | None:
    if isinstance(value, Tensor | PackedSequence):
        return value, lambda new: new
    for key in _children(value):
        found = _first(_child(value, key))
        if found is not None:
            return found[0], _putter(value, key, found[1])
    return None


def _pick(value: Any, keys: Sequence[int | str]) -> Found | None:
    if not keys:
        return _first(value) if isinstance(value, Tensor | PackedSequence) else None
    if isinstance(value, Tensor | PackedSequence):
        # a module that returns a bare tensor has it as its leaf 0
        return (value, lambda new: new) if list(keys) == [0] else None
    children = _children(value)
    key = keys[0]
    if key not in children and isinstance(key, int) and -len(children) <= key < len(children):
        key = children[key]
    if key not in children and not (isinstance(key, str) and hasattr(value, key)):
        return None
    found = _pick(_child(value, key), keys[1:])
    return None if found is None else (found[0], _putter(value, key, found[1]))


def _children(value: Any) -> list[Any]:
    if isinstance(value, Mapping):
        return list(value)
    if isinstance(value, tuple | list):
        return list(range(len(value)))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [field.name for field in dataclasses.fields(value)]
    return []


def _child(value: Any, key: Any) -> Any:
    if isinstance(value, Mapping) and key in value:
        return value[key]
    return getattr(value, key) if isinstance(key, str) else value[key]


def _putter(value: Any, key: Any, inner: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda new: _put(value, key, inner(new))


def _put(value: Any, key: Any, new: Any) -> Any:
    if isinstance(value, Mapping):
        if type(value) is not dict and dataclasses.is_dataclass(value):  # the outputs of transformers
            return type(value)(**{**value, key: new})
        changed: Any = copy.copy(value)
        changed[key] = new
        return changed
    if hasattr(value, "_replace"):
        return value._replace(**{key if isinstance(key, str) else value._fields[key]: new})
    if isinstance(value, tuple | list):
        items = list(value)
        if isinstance(key, str):  # torch's named results
            key = next(index for index, item in enumerate(items) if item is getattr(value, key))
        items[key] = new
        return type(value)(items)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.replace(value, **{key: new})
    changed = copy.copy(value)
    setattr(changed, key, new)
    return changed


def _describe(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor {tuple(value.shape)}"
    keys = _children(value)
    inside = ", ".join(f"{key}: {type(_child(value, key)).__name__}" for key in keys[:8])
    return f"{type(value).__name__}({inside}{', …' if len(keys) > 8 else ''})"
