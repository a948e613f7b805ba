"""From the dotted name of a site to its module, through the wrappers that others put around models."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from plexus.errors import DtypeError, UnknownNameError, UnsupportedError
from plexus.units._site import Site

__all__ = ["find_module", "has_loop", "read_only", "refuse_out_of_reach", "unwrap", "walk"]


def unwrap(module: nn.Module) -> nn.Module:
    """The module inside torch.compile's, data parallelism's and PEFT's wrappers.

    Raises:
        DtypeError: it is no module.
    """
    if not isinstance(module, nn.Module):
        raise DtypeError("a model is a torch module", given=type(module).__name__, expected="torch.nn.Module")
    while True:
        inner = _inner(module)
        if inner is None:
            return module
        module = inner


def walk(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Every module under each of its names; a wrapper does not show, and what it wraps takes its name."""
    model = unwrap(model)
    yield "", model
    for name, child in model._modules.items():
        if child is not None:
            for rest, module in walk(child):
                yield f"{name}.{rest}" if rest else name, module


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
        known = dict(walk(model))
    if path in known:
        return known[path]
    raise UnknownNameError.among("module", path, [name for name in known if name])


def refuse_out_of_reach(model: nn.Module) -> None:
    """Raise `UnsupportedError` if the model or a part of it runs as code or copies that operations do not reach."""
    for name, module in model.named_modules():
        if isinstance(module, nn.DataParallel) and len(module.device_ids) > 1:
            raise UnsupportedError(
                "the model runs as copies on several devices, and copies carry no edits",
                mend="use the model inside, `model.module`",
            )
        wrapped = "_orig_mod" in module._modules
        if wrapped or module._compiled_call_impl is not None or hasattr(module.forward, "_torchdynamo_orig_callable"):
            where = f"the part {name!r} of the model" if name else "the model"
            raise UnsupportedError(
                f"{where} is compiled, and compiled code ignores what is attached to it",
                mend="use the model as it was before torch.compile (`model._orig_mod`), and compile after editing",
            )


def read_only(module: nn.Module, site: Site) -> str | None:
    """Why the value at a site is not used by the model and so cannot be edited; None if it can."""
    first = site.leaf in (None, 0) or (isinstance(site.leaf, str) and not site.leaf[:1].isdigit())
    if site.at == "output" and not first:
        foreign = type(module).__module__.startswith("transformers.") and "Attention" in type(module).__name__
        if foreign or isinstance(module, nn.MultiheadAttention):
            return "attention weights are returned for show, after they were used"
    return None


def has_loop(module: nn.Module) -> bool:
    """Whether the units of a layer are read by its own next step, so that editing them means editing its loop."""
    ours = hasattr(module, "port") and isinstance(getattr(module, "axes", None), str)
    return ours or isinstance(module, nn.RNNBase)


def _inner(module: nn.Module) -> nn.Module | None:
    children = module._modules
    if "_orig_mod" in children:
        return children["_orig_mod"]
    home = type(module).__module__
    if "module" in children and (len(children) == 1 or home.startswith(("torch.nn.parallel", "torch.distributed"))):
        parallel = home.startswith(("torch.nn.parallel", "torch.distributed", "torch.optim.swa_utils", "accelerate"))
        return children["module"] if parallel else None
    if home.startswith("peft.") and "base_model" in children:
        base = children["base_model"]
        return base._modules.get("model", base) if base is not None else None
    return None
