"""What may be a batch, and how a model is called with one."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from plexus.errors import DeviceError, DtypeError, PlexusError, RangeError, ShapeError

Forward = Callable[[nn.Module, Any], Any]


def each_batch(batches: Any) -> Iterator[Any]:
    """The batches in `batches`: one tensor, mapping or packed sequence is one batch, other iterables hold batches.

    Raises:
        DtypeError: if it is no batch and cannot be iterated.
        ShapeError: if there is no batch, or one without samples.
    """
    if isinstance(batches, Tensor | np.ndarray | Mapping | PackedSequence):
        batches = [batches]
    elif isinstance(batches, str | bytes) or not isinstance(batches, Iterable):
        raise DtypeError(
            "these are no batches",
            given=type(batches).__name__,
            expected="a tensor, a mapping of tensors, or an iterable of batches (a DataLoader, a list …)",
        )
    count = -1
    for count, batch in enumerate(batches):
        if isinstance(batch, np.ndarray):
            batch = torch.as_tensor(batch)
        first = next(_tensors(batch), None)
        if first is not None and first.numel() == 0:
            raise ShapeError(f"batch {count} is empty", given=tuple(first.shape), expected="at least one sample")
        yield batch
    if count < 0:
        raise ShapeError("there are no batches", mend="an iterator that was used up gives none: pass a list")


def run(model: nn.Module, batch: Any, forward: Forward | None, generate: Mapping[str, Any] | None) -> Any:
    """Call the model with a batch; errors of a wrong device, dtype or shape are said in words.

    A mapping is passed by keyword; of a tuple the first elements that the model's `forward` requires by position.
    """
    _same_device(model, batch)
    try:
        if forward is not None:
            return forward(model, batch)
        call: Callable[..., Any] = model if generate is None else cast(Any, model).generate
        options = generate or {}
        if isinstance(batch, Mapping):
            return call(**batch, **options)
        if isinstance(batch, Tensor | PackedSequence) or not isinstance(batch, tuple | list):
            return call(batch, **options)
        return call(*batch[: wanted(model, batch)], **options)
    except (RuntimeError, ValueError, AssertionError) as error:
        if not isinstance(error, PlexusError):
            _other_dtype(model, batch, error)
            _other_shape(model, batch, error)
        raise


def wanted(model: nn.Module, batch: tuple[Any, ...] | list[Any]) -> int:
    """How many leading elements of a batch are the model's input; the others (labels) are not.

    Raises:
        ShapeError: if the model requires none, and so does not say.
    """
    try:
        parameters = inspect.signature(model.forward).parameters.values()
    except (TypeError, ValueError):
        return len(batch)
    if any(parameter.kind is parameter.VAR_POSITIONAL for parameter in parameters):
        return len(batch)
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    required = sum(p.kind in positional and p.default is p.empty for p in parameters)
    if required == 0 and len(batch) > 1:
        raise ShapeError(
            f"{type(model).__name__} requires no argument by position, so a tuple does not say which is its input",
            given=f"a batch of {len(batch)} elements",
            mend="pass mappings of keyword arguments, or forward=",
        )
    return max(1, min(required, len(batch)))


def refuse_nan(batch: Any, number: int | None = None) -> None:
    """Raise `RangeError` if a batch holds NaN, which thresholds and rectifiers may hide from every site.

    Infinity is let pass: masks are made of it.
    """
    for tensor in _tensors(batch):
        if tensor.is_floating_point() and not tensor.is_meta and bool(tensor.isnan().any()):
            raise RangeError(
                "the batch holds NaN" if number is None else f"batch {number} holds NaN",
                given=f"{int(tensor.isnan().sum())} of {tensor.numel()} numbers of a tensor {tuple(tensor.shape)}",
                mend="drop them or fill them in"
                + ("" if number is None else ", or pass nonfinite='keep' to record what the model makes of them"),
            )


def labels_in(model: nn.Module, batch: Any, samples: int) -> Tensor | None:
    """The labels that a batch carries: its one element beside the input, if that is a tensor with one per sample.

    Targets that count samples along their second dimension, as those of a time-first network do, are no labels.

    Raises:
        ShapeError: their number is not the number of samples.
    """
    if isinstance(batch, PackedSequence) or not isinstance(batch, tuple | list):
        return None
    rest = batch[wanted(model, batch) :]
    if len(rest) != 1 or not isinstance(rest[0], Tensor) or rest[0].dim() == 0:
        return None
    if len(rest[0]) != samples:
        if rest[0].dim() > 1 and rest[0].shape[1] == samples:
            return None
        raise ShapeError(
            "the labels of a batch do not match its samples",
            given=f"{tuple(rest[0].shape)} labels, {samples} samples",
            mend="one label per sample; a network over time takes [time, batch, …], and what is no label goes with "
            "forward= or in a mapping",
        )
    return rest[0].detach().cpu()


def sample_counts(batch: Any) -> set[int] | None:
    """How many samples a batch may hold, as its tensors show: the sizes of their first two dimensions."""
    if isinstance(batch, PackedSequence):
        return {int(batch.batch_sizes[0])}
    sizes = {int(size) for tensor in _tensors(batch) for size in tensor.shape[:2]}
    return sizes or None


def _tensors(batch: Any) -> Iterator[Tensor]:
    if isinstance(batch, Tensor):
        yield batch
    elif isinstance(batch, PackedSequence):
        yield batch.data
    elif isinstance(batch, Mapping):
        for value in batch.values():
            yield from _tensors(value)
    elif isinstance(batch, tuple | list):
        for value in batch:
            yield from _tensors(value)


def _same_device(model: nn.Module, batch: Any) -> None:
    if any(hasattr(module, "_hf_hook") for module in model.modules()):
        return  # accelerate moves the batch to where each part runs
    devices = {parameter.device for parameter in model.parameters()}
    if len(devices) != 1:
        return
    device = devices.pop()
    for tensor in _tensors(batch):
        if tensor.device != device and tensor.dim() > 0:
            raise DeviceError(
                "the batch and the model lie on different devices",
                given=f"batch on {tensor.device}, model on {device}",
                mend=f"move the batch: batch.to({str(device)!r})",
            )


# how torch words it when a layer is given another dtype, or another shape, than it takes
_DTYPE = re.compile(r"dtype|scalar types?\b|Input type|not implemented for '")
_SHAPE = re.compile(
    r"\bshapes?\b|\b(input\d?|kernel|image|padded)[. _]?size|size of (tensor|input|dim)|sizes of tensors|\d-?D\b"
    r"|channels?\b|dimension|normalized_shape|feature number|should contain",
    re.IGNORECASE,
)


def _other_dtype(model: nn.Module, batch: Any, error: Exception) -> None:
    dtypes = {parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()}
    given = {tensor.dtype for tensor in _tensors(batch)}
    if not given or not _DTYPE.search(str(error)):
        return
    batch_has = f"batch {', '.join(sorted(map(str, given)))}"
    if len(dtypes) == 1 and given - dtypes:
        dtype = dtypes.pop()
        raise DtypeError(
            "the batch and the model have different dtypes",
            given=f"{batch_has}, model {dtype}",
            mend=f"convert one: batch.to({dtype})",
        ) from error
    raise DtypeError(
        f"{type(model).__name__} does not take a batch of this dtype",
        given=batch_has,
        expected=str(error).splitlines()[0],
    ) from error


def _other_shape(model: nn.Module, batch: Any, error: Exception) -> None:
    shapes = [str(tuple(tensor.shape)) for tensor in _tensors(batch)]
    if shapes and _SHAPE.search(str(error)):
        raise ShapeError(
            f"{type(model).__name__} does not take a batch of this shape",
            given=", ".join(shapes[:6]),
            expected=str(error).splitlines()[0],
            mend="look at the order and the sizes of the dimensions; networks with a state take [time, batch, unit]",
        ) from error
