"""What can go wrong, in words: what was given, what was expected, how to mend it.

Every error of the library derives from `PlexusError` and from the built-in exception that a caller would expect, so
both `except PlexusError` and `except ValueError` do what they say.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable
from types import ModuleType

__all__ = [
    "DeviceError",
    "DtypeError",
    "FormatError",
    "MissingExtraError",
    "PlexusError",
    "RangeError",
    "ShapeError",
    "SiteError",
    "SiteNotReached",
    "UnknownNameError",
    "UnsupportedError",
    "require",
]


class PlexusError(Exception):
    """Base of all errors of the library.

    Args:
        what: one sentence that says what is wrong.
        given: what the caller passed, if showing it helps.
        expected: what would have been right.
        mend: what to do now.

    Examples:
        >>> print(PlexusError("gain is too short", given=3, expected="4 units", mend="pass one number per unit"))
        gain is too short
          given: 3
          expected: 4 units
          to mend: pass one number per unit
    """

    def __init__(self, what: str, *, given: object = None, expected: object = None, mend: str | None = None) -> None:
        self.what, self.given, self.expected, self.mend = what, given, expected, mend
        parts = (("given", given), ("expected", expected), ("to mend", mend))
        super().__init__("\n".join([what, *(f"  {name}: {value}" for name, value in parts if value is not None)]))

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), self.what, self.given, self.expected, self.mend)


def _rebuild(cls: type[PlexusError], what: str, given: object, expected: object, mend: str | None) -> PlexusError:
    return cls(what, given=given, expected=expected, mend=mend)


class ShapeError(PlexusError, ValueError):
    """A tensor's shape, a length or the order of axes is wrong, or things that belong together do not line up."""


class RangeError(PlexusError, ValueError):
    """A number lies outside its range, or data holds NaN or infinity."""


class DtypeError(PlexusError, TypeError):
    """A value has the wrong type or a tensor the wrong dtype."""


class DeviceError(PlexusError, ValueError):
    """Tensors that must meet lie on different devices."""


class UnknownNameError(PlexusError, ValueError):
    """A name (of a site, study, arm, file entry …) that does not exist; `near` holds the closest that do."""

    near: tuple[str, ...] = ()

    @classmethod
    def among(cls, kind: str, name: str, known: Iterable[str]) -> UnknownNameError:
        """The error for `name`, with the nearest of the `known` names as the hint.

        Examples:
            >>> print(UnknownNameError.among("study", "sdd", ["ssd", "ei-adaptive-reservoir"]))
            there is no study 'sdd'
              to mend: did you mean 'ssd'?
        """
        names = sorted(set(known))
        near = tuple(difflib.get_close_matches(name, names, n=3, cutoff=0.5))
        if near:
            mend = "did you mean " + " or ".join(repr(candidate) for candidate in near) + "?"
        else:
            mend = "known: " + (", ".join(names[:12]) + (" …" if len(names) > 12 else "") if names else "none")
        error = cls(f"there is no {kind} {name!r}", mend=mend)
        error.near = near
        return error


class SiteError(PlexusError, ValueError):
    """A site cannot be found, read or edited in this model."""


class SiteNotReached(SiteError):
    """The model ran but never reached a site that was being recorded or edited."""


class UnsupportedError(PlexusError, TypeError):
    """What was asked for has no exact meaning for this model, so it is refused instead of done nearly."""


class FormatError(PlexusError, ValueError):
    """A file is truncated, of another version, or not one of ours."""


class MissingExtraError(PlexusError, ImportError):
    """An optional package is not installed."""


def require(module: str, extra: str, *, purpose: str | None = None) -> ModuleType:
    """Import an optional package, or raise `MissingExtraError` naming the extra that brings it.

    Examples:
        >>> require("json", extra="lab").__name__
        'json'
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        if error.name is not None and error.name.partition(".")[0] != module.partition(".")[0]:
            raise
        need = f" for {purpose}" if purpose else ""
        raise MissingExtraError(
            f"the package {module.partition('.')[0]!r} is needed{need} and is not installed",
            mend=f"pip install 'plexus-nn[{extra}]'",
        ) from error
