"""A second device without a GPU: tensors that say they lie on `meta` and hold their numbers in main memory.

What torch refuses across devices is refused here too: operands on both, an index from the second device into a tensor
in main memory, a generator of the CPU for a tensor there, `numpy()` of one. So a test finds a tensor that was made
where the model is not. `conftest.py` offers it as the fixture `elsewhere`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

SECOND = torch.device("meta")
ops = torch.ops.aten
ACROSS = {ops.copy_.default, ops._to_copy.default, ops.is_same_size.default}
INDEXED = {
    ops.index.Tensor, ops._unsafe_index.Tensor, ops.index_put.default, ops.index_put_.default,
    ops._index_put_impl_.default,
}  # fmt: skip


class Second(torch.Tensor):
    """A tensor of the second device; `held` has its numbers."""

    held: torch.Tensor
    is_cpu = property(lambda self: False)
    is_meta = property(lambda self: False)  # meta tensors have no numbers; these do
    is_cuda = property(lambda self: True)

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> Second:
        return torch.Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            layout=held.layout,
            device=SECOND,
            requires_grad=held.requires_grad,
        )

    def __init__(self, held: torch.Tensor) -> None:
        self.held = held

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        return across(func, args, kwargs or {})

    @property
    def data(self) -> torch.Tensor:
        return self.detach()

    @data.setter
    def data(self, other: torch.Tensor) -> None:
        if not isinstance(other, Second) or (other.shape, other.dtype) != (self.shape, self.dtype):
            raise NotImplementedError("data of another shape, dtype or device")
        self.held = other.held.detach().requires_grad_(self.held.requires_grad)

    def numpy(self, *, force: bool = False) -> Any:
        if not force:
            raise TypeError("can't convert a tensor of the second device to numpy: use Tensor.cpu() first")
        return self.held.numpy(force=True)

    def __array__(self, *args: Any) -> Any:
        return self.numpy()

    def tolist(self) -> Any:
        return self.held.tolist()

    def __reduce_ex__(self, protocol: Any) -> Any:
        return Second, (self.held,)

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f"Second({self.held})"


def across(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run one operator on the numbers; refuse what lies apart; the result lies where the operands do, or as told."""
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    second = any(isinstance(t, Second) for t in tensors)
    told = kwargs.get("device")
    if second and func not in ACROSS:
        compared = tensors
        if func in INDEXED:
            compared = [t for t in tree_leaves((args[0], args[2:])) if isinstance(t, torch.Tensor)]
            if not isinstance(args[0], Second) and any(isinstance(t, Second) for t in tree_leaves(args[1])):
                raise RuntimeError("indices should be either on cpu or on the same device as the indexed tensor (cpu)")
        # a number without dimensions may come from main memory to operands elsewhere, as torch has it
        if any(isinstance(t, Second) for t in compared) and any(
            t.dim() and not isinstance(t, Second) for t in compared
        ):
            raise RuntimeError(f"Expected all tensors to be on the same device, but found two: {func}")
    there = second if told is None else torch.device(told).type == SECOND.type
    generator = kwargs.get("generator")
    if there and generator is not None and generator.device.type == "cpu":
        raise RuntimeError("Expected a generator of the second device but found 'cpu'")
    if func is ops.copy_.default:
        there = isinstance(args[0], Second)
    plain = tree_map(lambda x: x.held if isinstance(x, Second) else x, (args, kwargs))
    if told is not None:
        plain[1]["device"] = torch.device("cpu")
    out = func(*plain[0], **plain[1])
    known = {id(t.held): t for t in tensors if isinstance(t, Second)}  # an operator in place gives its operand back

    def placed(x: Any) -> Any:
        if not there or not isinstance(x, torch.Tensor) or isinstance(x, Second):
            return x
        return known[id(x)] if id(x) in known else Second(x)

    return tree_map(placed, out)


class _Mode(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        return across(func, args, kwargs or {})


MADE = [(torch, "tensor"), (torch, "as_tensor"), (torch, "asarray"), (torch.Tensor, "new_tensor")]


def _told(make: Any) -> Any:
    """`torch.tensor` and the like, which make their tensor before any operator is called that could say where."""
    beside = make is torch.Tensor.new_tensor

    def told(*args: Any, **kwargs: Any) -> Any:
        device = kwargs.get("device") or (args[0].device if beside else None)
        if device is None or torch.device(device).type != SECOND.type or isinstance(args[-1], Second):
            return make(*args, **kwargs)
        learnt = kwargs.pop("requires_grad", False)
        return make(*args, **{**kwargs, "device": "cpu"}).to(SECOND).requires_grad_(learnt)

    return told


@contextmanager
def second_device() -> Iterator[torch.device]:
    """Inside, `tensor.to(device)`, `module.to(device)` and factories with `device=` reach the second device."""
    before = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)  # else `module.double()` changes the shell alone
    try:
        with _Mode(), ExitStack() as stack:
            for owner, name in MADE:
                stack.enter_context(patch.object(owner, name, _told(getattr(owner, name))))
            yield SECOND
    finally:
        torch.__future__.set_swap_module_params_on_conversion(before)
