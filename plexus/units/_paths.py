"""From the dotted name of a site to its module, through the wrappers that others put around models."""

from __future__ import annotations

import re
from collections.abc import Iterator

from torch import nn

from plexus.errors import UnknownNameError, UnsupportedError
from plexus.units._site import Site

__all__ = ["find_module", "plain_name", "read_only", "refuse_compiled", "walk"]

_WRAPPERS = re.compile(r"(?<![^.])(?:_orig_mod|module|base_model\.model|base_layer|_fsdp_wrapped_module)(?:\.|$)")


def plain_name(model: nn.Module, name: str) -> str:
    """The dotted name without the parts that torch.compile, data parallelism and PEFT put in."""
    if name in _own_names(model):
        return name
    return _strip(model, name)


def walk(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Every module under each of its names, wrapper prefixes left out; a wrapper's inside takes the wrapper's name."""
    seen: dict[str, nn.Module] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        seen[_strip(model, name)] = module
    yield from seen.items()


def find_module(model: nn.Module, path: str) -> nn.Module:
    """The module at a path, as written or with wrappers seen through.

    Raises:
        UnknownNameError: there is none; with the nearest names that exist.
    """
    if path == "":
        return model
    try:
        return model.get_submodule(path)
    except AttributeError:
        pass
    known = dict(walk(model))
    if path in known:
        return known[path]
    raise UnknownNameError.among("module", path, [name for name in known if name])


def refuse_compiled(model: nn.Module) -> None:
    """Raise `UnsupportedError` if the model or a part of it runs as compiled code, which would ignore operations."""
    for name, module in model.named_modules():
        wrapped = "_orig_mod" in module._modules
        forward = module.forward
        if wrapped or module._compiled_call_impl is not None or hasattr(forward, "_torchdynamo_orig_callable"):
            where = f"the part {name!r} of the model" if name else "the model"
            raise UnsupportedError(
                f"{where} is compiled, and compiled code ignores what is attached to it",
                mend="use the model before torch.compile (`model._orig_mod`), and compile after editing",
            )


def read_only(model: nn.Module, module: nn.Module, site: Site) -> str | None:
    """Why the value at a site is not used by the model and so cannot be edited; None if it can."""
    first = site.leaf in (None, 0) or (isinstance(site.leaf, str) and not site.leaf[:1].isdigit())
    if site.at == "output" and not first:
        if isinstance(module, nn.MultiheadAttention):
            return "attention weights are returned for show, after they were used"
        if type(module).__module__.startswith("transformers.") and "Attention" in type(module).__name__:
            return "attention weights are returned for show, after they were used"
    return None


def _own_names(model: nn.Module) -> set[str]:
    return {name for name, _ in model.named_modules(remove_duplicate=False)}


def _strip(model: nn.Module, name: str) -> str:
    return _WRAPPERS.sub("", name).rstrip(".")
