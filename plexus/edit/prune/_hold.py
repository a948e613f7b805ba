"""Whether an architecture can hold the smaller model: built again from the changed configuration, its shapes must fit.

Only then will a file of the model load again. The new build also says what numbers the modules keep about themselves.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import nn

from plexus.edit._checkpoint import built, in_a_line
from plexus.edit.prune._cuts import Cuts, layer_kind, width_in
from plexus.edit.prune._transformer import is_down
from plexus.errors import UnsupportedError
from plexus.units import Site

__all__ = ["Widths", "fit"]

_HIDDEN = ("intermediate_size", "n_inner", "ffn_dim", "d_ff", "ffn_hidden_size", "hidden_dim", "encoder_ffn_dim")
_HEADS = ("num_attention_heads", "num_heads", "n_head", "n_heads", "encoder_attention_heads")
_KEYS = ("num_key_value_heads",)


class Widths(NamedTuple):
    """What the layers have left; one number for all, since a configuration holds one."""

    hidden: int | None = None
    heads: int | None = None
    keys: int | None = None
    features: int | None = None


def fit(
    model: nn.Module, prefix: str, cuts: Cuts, widths: Widths, left: Mapping[Site, tuple[int, ...]]
) -> dict[str, tuple[Any, Any]]:
    """Change the cuts so that the modules are as the configuration will say; returns what changes in it.

    Args:
        model: the Hugging Face model.
        prefix: its name with a dot behind, as the cuts have it.
        cuts: what is removed; gains the attributes of modules.
        widths: what is left.
        left: the same by site: one number for hidden units, three for heads.

    Raises:
        UnsupportedError: the architecture cannot hold the widths.
    """
    held: Any = model
    old = held.config
    first = "the configuration does not say"
    for explicit in (False, True) if widths.heads is not None else (False,):
        try:
            new, changed = _configured(old, widths, explicit)
            fresh = built(model, new)
        except UnsupportedError:
            raise
        except Exception as error:  # the configuration or the model refuses the numbers, in its own words
            raise _cannot(model, f"it says: {in_a_line(error)}") from error
        wrong = _misfits(model, prefix, cuts, fresh) or _strangers(model, prefix, fresh, left, changed)
        if not wrong:
            _attributes(model, prefix, cuts, built(model, copy.deepcopy(old)), fresh)
            _keep_config(cuts, prefix, old, changed)
            return changed
        first = wrong
    raise _cannot(model, first)


def _configured(old: Any, widths: Widths, explicit: bool) -> tuple[Any, dict[str, tuple[Any, Any]]]:
    """A copy of the configuration with the new widths, and what changed."""
    new = copy.deepcopy(old)
    text = new.get_text_config() if hasattr(new, "get_text_config") else new
    changed: dict[str, tuple[Any, Any]] = {}
    for names, value in ((_HIDDEN, widths.hidden), (_HEADS, widths.heads), (_KEYS, widths.keys)):
        name = next((name for name in names if hasattr(text, name)), None)
        if value is None or (names is _KEYS and name is None):
            continue
        if name is None:
            raise UnsupportedError("the configuration holds no such width", given=type(old).__name__)
        if getattr(text, name) != value:
            changed[name] = (getattr(text, name), value)
    if explicit and getattr(text, "head_dim", None) != widths.features:
        changed["head_dim"] = (getattr(text, "head_dim", None), widths.features)
    for name, (_, value) in changed.items():
        setattr(text, name, value)
    for check in ("validate", "validate_architecture"):
        if callable(getattr(text, check, None)):
            getattr(text, check)()
    return new, changed


def _misfits(model: nn.Module, prefix: str, cuts: Cuts, fresh: nn.Module) -> str:
    """Which tensors would not have the shapes that the configuration asks for."""
    wanted = _shapes(fresh)
    wrong = []
    for path, module in model.named_modules():
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            full = f"{path}.{name}" if path else name
            if tensor is None or full not in wanted:
                continue
            have = cuts.shape(prefix + path if path else prefix.rstrip("."), name, tensor)
            if have != wanted[full]:
                wrong.append(f"{full} would be {have}, the configuration asks for {wanted[full]}")
    return "; ".join(wrong[:2]) + (f"; and {len(wrong) - 2} more" if len(wrong) > 2 else "")


def _strangers(
    model: nn.Module,
    prefix: str,
    fresh: nn.Module,
    left: Mapping[Site, tuple[int, ...]],
    changed: Mapping[str, tuple[Any, Any]],
) -> str:
    """Which layers that the configuration does not build, put in by hand, would not be as wide as it says."""
    named, known = dict(model.named_modules()), {path for path, _ in fresh.named_modules()}
    own = {site.path.removeprefix(prefix): width for site, width in left.items()}
    was, will = next((change for name, change in changed.items() if name in _HIDDEN), (None, None))
    for path, module in named.items():
        if path in known or layer_kind(module) is None:
            continue
        had = width_in(module)
        if len(own.get(path, ())) == 3:
            return f"{path} is part of an attention that the configuration does not build"
        if path in own and had != was:
            return f"{path} was {had} wide and the configuration says {was}, so it is not about this layer"
        if path not in own and had == was and is_down(named, path):
            return f"{path} would stay {had} wide and the configuration says {will}"
    return ""


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    tensors = (*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False))
    return {name: tuple(tensor.shape) for name, tensor in tensors}


def _attributes(model: nn.Module, prefix: str, cuts: Cuts, before: nn.Module, after: nn.Module) -> None:
    """The numbers that modules keep about themselves change as those of the two builds differ."""
    present = dict(model.named_modules())
    builds = dict(before.named_modules())
    for path, module in after.named_modules():
        if path not in builds or path not in present:
            continue
        for name, value in vars(module).items():
            was = vars(builds[path]).get(name)
            if name.startswith("_") or type(value) not in (int, float) or value == was:
                continue
            if type(value) is float:
                raise _cannot(model, f"{path}.{name} would change from {was} to {value}")
            cuts.attributes[prefix + path if path else prefix.rstrip("."), name] = value


def _keep_config(cuts: Cuts, prefix: str, config: Any, changed: Mapping[str, tuple[Any, Any]]) -> None:
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    for name, (_, value) in changed.items():
        cuts.config.append((text, name, value))


def _cannot(model: nn.Module, reason: str) -> UnsupportedError:
    return UnsupportedError(
        f"{type(model).__name__} cannot hold the smaller model, so a file of it would not load again",
        given=reason,
        mend="remove as many of every layer: prune.equal_width, prune.whole_groups; or silence the units with an edit",
    )
