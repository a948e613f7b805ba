"""The units that an atlas looks at where none are named: values behind the nonlinearities of a model.

What a layer puts out before its nonlinearity is no response: a unit that is negative on every sample is silent, however
its value varies. Where a layer hands its output, through norms and pools, to a nonlinearity and to nothing else, the
site is the first place behind the nonlinearity where a module begins or ends. One small pass tells: every call of a
function of torch is noted with the tensors that it reads and makes.
"""

from __future__ import annotations

import math
import re
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from plexus.errors import SiteError
from plexus.probe._batches import run
from plexus.probe._quiet import quiet
from plexus.units import Site, sites
from plexus.units._paths import walk
from plexus.units._routing import is_routed

_NONLINEAR = re.compile(
    r"relu6?|leaky_relu|prelu|rrelu|elu|celu|selu|gelu|silu|mish|tanh|sigmoid|log_?sigmoid|soft(plus|sign|shrink)"
    r"|hard(tanh|swish|sigmoid|shrink)|tanhshrink|threshold|clamp(_min|_max)?|clip"
)
_NORM = re.compile(r"(batch|group|instance|layer|rms|local_response)_norm")
_KEEPS = re.compile(
    r"(adaptive_)?(max|avg|lp)_pool[123]d(_with_indices)?|(feature_)?(alpha_)?dropout[123]?d?|contiguous"
)
_FLATTENS = ("flatten", "reshape", "view")


class _Call(NamedTuple):
    """A function that ran."""

    name: str
    reads: list[Tensor]
    makes: list[Tensor]


class _Door(NamedTuple):
    """A tensor that enters or leaves a module; `when` is how many functions had run, `call` the call of the module."""

    path: str
    at: Literal["input", "output"]
    value: Tensor
    when: int
    call: int


class _Trace(TorchFunctionMode):
    """Notes the functions that run and the tensors that pass the doors of modules."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[_Call] = []
        self.doors: list[_Door] = []
        self.counts: Counter[str] = Counter()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        made = _tensors(out)
        if made:
            name = getattr(func, "__name__", "").strip("_")
            self.calls.append(_Call(name, _tensors((args, kwargs)), made))
        return out

    def run(self, model: nn.Module, batch: Any) -> None:
        """One pass of the model."""
        named = {id(module): (path, module) for path, module in reversed(list(walk(model))) if path}
        handles = []
        for path, module in named.values():
            handles.append(module.register_forward_pre_hook(self._enters(path)))
            handles.append(module.register_forward_hook(self._leaves(path)))
        try:
            with quiet(model), self:
                run(model, batch, None, None)
        finally:
            for handle in handles:
                handle.remove()

    def _enters(self, path: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            self.counts[path] += 1
            if args and isinstance(args[0], Tensor):
                self.doors.append(_Door(path, "input", args[0], len(self.calls), self.counts[path] - 1))

        return hook

    def _leaves(self, path: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], out: Any) -> None:
            if isinstance(out, Tensor):
                self.doors.append(_Door(path, "output", out, len(self.calls), self.counts[path] - 1))

        return hook

    def readers(self, value: Tensor, when: int) -> list[int]:
        """The functions that read a tensor from then on, until one overwrites it in place."""
        found = []
        for number in range(when, len(self.calls)):
            call = self.calls[number]
            if any(tensor is value for tensor in call.reads):
                found.append(number)
                if any(tensor is value for tensor in call.makes):
                    break
        return found

    def door(self, value: Tensor, when: int) -> _Door | None:
        """Where a tensor leaves a module, else where it enters the only one that reads it."""
        here = [door for door in self.doors if door.value is value and door.when >= when]
        for door in here:
            if door.at == "output" and door.when == when:
                return door
        readers = self.readers(value, when)
        into = [door for door in here if door.at == "input" and len(readers) == 1 and door.when <= readers[0]]
        return into[-1] if into else None


def default_sites(model: nn.Module, batch: Any) -> dict[Site, str]:
    """Hidden units of a language model's MLPs, or those of all convolutions and linear layers but the last, with names.

    The latter are taken behind their nonlinearity where they have one. Experts of a mixture are left out: they see
    only some samples.

    Args:
        model: what the atlas is of.
        batch: a few samples.

    Returns:
        Site to the name of the layer whose units they are.

    Raises:
        SiteError: the model has none.
    """
    if hasattr(model, "config") and hasattr(model, "generate"):
        return {site: site.path for site in _unrouted(list(sites.mlp(model)))}
    kinds = (nn.Conv1d, nn.Conv2d, nn.Linear)
    names = [name for name, module in walk(model) if isinstance(module, kinds)]
    layers = _unrouted([site for name in names[:-1] for site in sites(model, name)])
    trace = _Trace()
    if layers:
        trace.run(model, batch)
    behind = {site: _behind(trace, site) for site in layers if trace.counts[site.path]}
    if not behind:
        raise SiteError(
            "no hidden convolution or linear layer was found", given=type(model).__name__, mend="name the sites: at="
        )
    before = [site.path for site, place in behind.items() if place is None]
    if before:
        warnings.warn(
            f"no module begins or ends behind the nonlinearity of {', '.join(before)}, so the atlas shows the values "
            "before it; make the nonlinearity a module (torch.nn.ReLU) to show those behind it",
            stacklevel=3,
        )
    return {site if place is None else place: site.path for site, place in behind.items()}


def refuse_routed(at: Sequence[Site]) -> None:
    """Raise `SiteError` for sites of experts, which see only the rows that were sent to them."""
    routed = [site for site in at if is_routed(site)]
    if routed:
        raise SiteError(
            "units of single experts cannot be shown: an expert sees only the tokens that were sent to it, so it has "
            "no axis of samples",
            given=", ".join(map(str, routed[:3])) + (" …" if len(routed) > 3 else ""),
            mend="take the output of the whole mixture, at=Site('model.layers.0.mlp', 'b t u'), or at=sites.residual("
            "model)",
        )


def _unrouted(found: list[Site]) -> list[Site]:
    kept = [site for site in found if not is_routed(site)]
    if not kept:
        refuse_routed(found)
    if len(kept) < len(found):
        first = next(site.path for site in found if is_routed(site))
        warnings.warn(
            f"the hidden units of routed experts ({first} and {len(found) - len(kept) - 1} others) are not in this "
            "atlas: an expert sees only the tokens that were sent to it; at=Site('model.layers.0.mlp', 'b t u') takes "
            "the output of a whole mixture",
            stacklevel=4,
        )
    return kept


def _behind(trace: _Trace, site: Site) -> Site | None:
    """The place behind a layer's nonlinearity; the site itself without one, None where no module begins or ends."""
    out = [door for door in trace.doors if door.path == site.path and door.at == "output"]
    if len(out) != 1:  # shared weights: several nonlinearities
        return site
    value, when, passed = out[0].value, out[0].when, False
    axes = site.axes
    while True:
        if passed:
            door = trace.door(value, when)
            if door is not None:
                call = door.call if trace.counts[door.path] > 1 else None
                return replace(site, path=door.path, at=door.at, axes=axes, call=call)
        readers = trace.readers(value, when)
        if len(readers) != 1:
            return None if passed else site
        call_of = trace.calls[readers[0]]
        name, made = call_of.name, call_of.makes[0]
        if not passed and _NONLINEAR.fullmatch(name):
            passed = True
        elif passed and name in _FLATTENS and axes.startswith("b u ") and _flat(value, made):
            axes = f"b (u:{value.shape[1]} f)"
        elif not (_KEEPS.fullmatch(name) or (not passed and _NORM.fullmatch(name))):
            return None if passed else site
        value, when = made, readers[0] + 1


def _flat(value: Tensor, made: Tensor) -> bool:
    return made.shape == (len(value), math.prod(value.shape[1:]))


def _tensors(value: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]
