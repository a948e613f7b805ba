"""Whether two models are two checkpoints of one.

The same build (layers, widths, names) is needed for any comparison here. That unit 7 of one is unit 7 of the other
needs more: training goes on from the same weights. Two networks trained apart have no such correspondence, whatever
their shapes.
"""

from __future__ import annotations

from torch import nn

from plexus.errors import DtypeError, UnsupportedError
from plexus.units import fingerprint
from plexus.units._paths import walk


def check_build(base: nn.Module, tuned: nn.Module) -> None:
    """Raise `UnsupportedError`, with what differs, unless both models have the same layers and shapes."""
    for model in (base, tuned):
        if not isinstance(model, nn.Module):
            raise DtypeError("checkpoints are torch modules", given=type(model).__name__)
    if fingerprint(base) == fingerprint(tuned):
        return
    one, two = _shapes(base), _shapes(tuned)
    differing = [name for name in one if name in two and one[name] != two[name]]
    missing = [name for name in [*one, *two] if name not in one or name not in two]
    if differing:
        given = f"{differing[0]}: {one[differing[0]]} and {two[differing[0]]}"
    elif missing:
        given = f"{len(missing)} parameters are in one of them only, {missing[0]!r} among them"
    else:
        given = f"{fingerprint(base)} and {fingerprint(tuned)}"
    raise UnsupportedError(
        "these are no two checkpoints of one model",
        given=given,
        expected="the same layers and shapes",
        mend="merge adapters into the weights first; other models are compared by what they represent, not by units",
    )


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {
        f"{path}.{name}" if path else name: tuple(value.shape)
        for path, module in walk(model)
        for name, value in module._parameters.items()
        if value is not None
    }
