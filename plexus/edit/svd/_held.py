"""The weights of one layer while edits hold them: the bits they had, and what is added to them.

    W' = cast(W + Σ L R)      over the edits that hold the layer, in the order in which they took hold

The sum is made again from the kept W whenever an edit takes hold or lets go, so edits may end in any order, and when
the last one lets go the layer has the very bits it had. A tied matrix is given to the layer as a copy of its own for
that time, and the shared one is put back.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn

from plexus.edit._layers import by_output, from_output, layout, uses
from plexus.errors import UnsupportedError
from plexus.units._exact import why_not_exact
from plexus.units._paths import find_module, unwrap, walk

__all__ = ["Held", "Term", "hold", "matrix_of", "output_path", "untie"]

Term = tuple[Tensor, Tensor]
"""What an edit adds to a matrix: `[out, rank]` and `[rank, in]`."""

_held: WeakValueDictionary[int, Held]


class Held:
    """The weights of a layer that at least one edit holds."""

    def __init__(self, model: nn.Module, module: nn.Module, *, tied: bool) -> None:
        self.module, self.tied = module, tied
        self.original: nn.Parameter = module._parameters["weight"]  # type: ignore[assignment]
        self.bits = self.original.detach().clone()
        self.terms: dict[object, Term] = {}
        self._flags = list(_tie_flags(model)) if tied else []
        if tied:
            module._parameters["weight"] = nn.Parameter(self.bits.clone(), self.original.requires_grad)
            for config in self._flags:
                config.tie_word_embeddings = False

    def take(self, key: object, term: Term) -> None:
        """Begin to add a term."""
        self.terms[key] = term
        self._write()

    def drop(self, key: object) -> None:
        """Stop adding it; without terms, the layer is as it was."""
        del self.terms[key]
        if self.terms or not self.tied:
            self._write()
            return
        self.module._parameters["weight"] = self.original
        for config in self._flags:
            config.tie_word_embeddings = True

    def _write(self) -> None:
        parameter: Tensor = self.module._parameters["weight"]  # type: ignore[assignment]
        with torch.no_grad():
            if not self.terms:
                parameter.copy_(self.bits)
                return
            wide = torch.promote_types(self.bits.dtype, torch.float32)
            matrix = by_output(self.module, self.bits.to(wide))
            flat = matrix.flatten(1).clone()
            for left, right in self.terms.values():
                flat += left.to(flat) @ right.to(flat)
            parameter.copy_(from_output(self.module, flat.reshape(matrix.shape), self.bits.shape))


_held = WeakValueDictionary()


def hold(model: nn.Module, path: str, *, untie: bool) -> Held:
    """The weights of the layer at a path, held already or from now on.

    Raises:
        UnsupportedError: they are tied and `untie` is false, shared, or not a plain matrix of floats.
    """
    module = find_module(model, path)
    known = _held.get(id(module))
    if known is not None and known.module is module and known.terms:
        return known
    tied = check_editable(model, path, untie=untie)
    held = _held[id(module)] = Held(model, module, tied=tied)
    return held


def check_editable(model: nn.Module, path: str, *, untie: bool) -> bool:
    """Raise `UnsupportedError` if the weights at a path cannot be edited exactly; says whether they must be untied."""
    module = find_module(model, path)
    matrix_of(model, path)
    names = uses(model, module._parameters["weight"])
    if len(names) < 2 or untie:
        return len(names) > 1
    raise UnsupportedError(
        f"the weights of {path!r} are tied, so editing them edits the other places too",
        given=", ".join(names),
        mend="untie=True gives the layer a copy of its own while the edit lasts; edit.svd.untie(model) for good",
    )


def matrix_of(model: nn.Module, path: str) -> Tensor:
    """The weights of a layer as `[out, in]`, float32 or wider; kernels of a convolution are rows `[out, in · places]`.

    Raises:
        UnsupportedError: the layer has no such matrix, or not as plain floats.
    """
    module = find_module(model, path)
    reason = why_not_exact(module)
    if reason is not None:
        raise _refusal(path, f"of this {type(module).__name__}, {reason}", "load the layer as plain floats")
    if layout(module) is None:
        mend = "name a linear layer, a convolution or an embedding: path="
        raise _refusal(path, f"a {type(module).__name__} has no matrix", mend)
    weight: Tensor = module._parameters["weight"]  # type: ignore[assignment]
    if getattr(module, "groups", 1) != 1:
        raise _refusal(path, "the convolution has groups, each a matrix of its own", "edit a layer without groups")
    wide = torch.promote_types(weight.dtype, torch.float32)
    return by_output(module, weight.detach().to(wide)).flatten(1)


def output_path(model: nn.Module) -> str:
    """The path of the layer that a model ends in: its output embedding, else its last linear layer.

    Raises:
        UnsupportedError: there is none.
    """
    inner: Any = unwrap(model)
    named = dict(walk(model))
    head = inner.get_output_embeddings() if hasattr(inner, "get_output_embeddings") else None
    if head is not None:
        return next(path for path, module in named.items() if module is head)
    linear = [path for path, module in named.items() if layout(module) == "out in" or _transposed_linear(module)]
    if not linear:
        raise UnsupportedError("this model has no linear layer", given=type(inner).__name__, mend="name a layer: path=")
    return linear[-1]


def untie(model: nn.Module, path: str | None = None) -> str:
    """Give a tied layer weights of its own, for good; afterwards it can be edited alone, saved and loaded.

    Args:
        model: changed in place; also its configuration's `tie_word_embeddings`, if it has one.
        path: the layer; None is the output layer.

    Returns:
        The path of the layer.

    Raises:
        UnsupportedError: the layer has no matrix of plain floats.

    Examples:
        >>> model = nn.ModuleDict({"embed": nn.Embedding(5, 3), "head": nn.Linear(3, 5, bias=False)})
        >>> model["head"].weight = model["embed"].weight
        >>> untie(model, "head")
        'head'
        >>> model["head"].weight is model["embed"].weight
        False
    """
    path = output_path(model) if path is None else path
    if check_editable(model, path, untie=True):
        module = find_module(model, path)
        old: Tensor = module._parameters["weight"]  # type: ignore[assignment]
        module._parameters["weight"] = nn.Parameter(old.detach().clone(), old.requires_grad)
        for config in _tie_flags(model):
            config.tie_word_embeddings = False
    return path


def _tie_flags(model: nn.Module) -> Iterator[Any]:
    """The configurations of a model that say its embeddings are tied."""
    config: Any = getattr(unwrap(model), "config", None)
    inner = getattr(config, "get_text_config", lambda: None)()
    seen: list[Any] = []
    for one in (config, inner):
        if getattr(one, "tie_word_embeddings", False) is True and not any(one is other for other in seen):
            seen.append(one)
            yield one


def _transposed_linear(module: nn.Module) -> bool:
    return layout(module) == "in out" and hasattr(module, "nf")


def _refusal(path: str, reason: str, mend: str) -> UnsupportedError:
    return UnsupportedError(f"the weights of {path or 'the model'!r} cannot be edited exactly: {reason}", mend=mend)
