"""The one hook engine: everything that reads or changes the inside of a model attaches here.

Nothing is written on the model. While operations are attached, `torch.nn.Module.__call__` looks up whether the called
module belongs to a model with operations, and if so runs them around the module's own call; every other module passes
straight through. So a copy of the model made inside the `with` is a copy without edits, saving it saves nothing
foreign, and leaving the `with` leaves no trace.

The rules: edits apply in the order entered, and recorders see the result, whatever order they are left in; a call is
counted within one pass of the model; edits are computed in float32 or wider and cast back; a unit of a recurrent
layer is edited inside its loop unless its site says `where="readout"`.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from plexus.errors import DtypeError, ShapeError, SiteError, SiteNotReached, UnsupportedError
from plexus.units._leaf import find, find_input
from plexus.units._pass import Generation, Pass, Visit, open_pass, stream_of
from plexus.units._patches import Patch, fast_path_off, generation_of
from plexus.units._paths import find_module, read_only, refuse_compiled
from plexus.units._port import Port
from plexus.units._site import Site

__all__ = ["Engine", "LoopOperation", "Operation", "attach"]


class Operation(Protocol):
    """Something that happens at a site: a recorder (`records` is true) or an edit.

    Called with the values `[*rows, unit(, feature)]` and the visit. A recorder's answer is ignored; it must copy what
    it keeps. An edit answers with the new values, or None for no change.
    """

    @property
    def site(self) -> Site: ...

    @property
    def records(self) -> bool: ...

    def __call__(self, values: Tensor, visit: Visit) -> Tensor | None: ...


@runtime_checkable
class LoopOperation(Protocol):
    """An edit that can also act inside the loop of a recurrent layer, as a port."""

    def port(self, units: int) -> Port:
        """The edit of a layer of so many units as a port; raises `UnsupportedError` if it is none."""
        ...


class _Entry:
    """One operation on one module; `order` is its place among everything attached."""

    __slots__ = ("engine", "in_loop", "module", "operation", "order", "reached", "seen")

    def __init__(self, order: int, engine: Engine, operation: Operation, module: nn.Module, in_loop: bool) -> None:
        self.order, self.engine, self.operation, self.module = order, engine, operation, module
        self.in_loop, self.reached, self.seen = in_loop, False, 0


_state_lock = threading.RLock()
_order = itertools.count()
_engines_of: dict[int, list[Engine]] = {}  # id of a module -> the engines of the models it belongs to
_entries_of: dict[tuple[int, str], list[_Entry]] = {}  # (id of a module, side) -> what happens there, in order
_engines: list[Engine] = []


class Engine:
    """All operations of one model; what `attach` yields.

    Attributes:
        model: the model.
        passes: how many passes have begun since the engine came to life.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.passes = 0
        self.thread = threading.get_ident()
        self.entries: list[_Entry] = []
        self.members = list(dict.fromkeys(model.modules()))
        self.generation: Generation | None = None
        self.streams: list[Pass] = []
        self.calls: dict[int, int] = {}
        self.active: list[tuple[int, int]] = []
        self._patches = [Patch(owner, "generate", _generate) for owner in _generators(self.members)]

    def install(self) -> None:
        for module in self.members:
            _engines_of.setdefault(id(module), []).append(self)
        for patch in self._patches:
            patch.enter()

    def uninstall(self) -> None:
        for module in self.members:
            engines = _engines_of[id(module)]
            engines.remove(self)
            if not engines:
                del _engines_of[id(module)]
        for patch in self._patches:
            patch.leave()

    def check_thread(self) -> None:
        if threading.get_ident() != self.thread and not _in_backward():
            raise UnsupportedError(
                "this model has edits or recorders that belong to another thread",
                mend="run it in that thread, or give this one its own copy: copy.deepcopy(model) has no edits",
            )

    def enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Note that a module is being called; says whether the call opened a stream of tokens."""
        if not self.streams:
            self.calls.clear()
            self.streams.append(open_pass(self.passes, module, args, kwargs, self.generation))
            self.passes += 1
            return True
        stream = stream_of(self.streams[-1], module, args, kwargs, self.generation)
        if stream is not None:
            self.streams.append(stream)
        return stream is not None


@contextlib.contextmanager
def attach(model: nn.Module, operations: Sequence[Operation], *, all_reached: bool = True) -> Iterator[Engine]:
    """Let operations happen at their sites whenever the model runs, until the `with` is left.

    Args:
        model: any module; refused when compiled.
        operations: recorders and edits, in the order in which the edits shall apply.
        all_reached: whether it is an error when the model runs and never comes by a site.

    Raises:
        SiteError: a site is not in the model, or its value cannot be edited.
        SiteNotReached: on leaving, when the model ran and never came by a site.
        UnsupportedError: the model is compiled, used by another thread, or an edit has no exact meaning there.

    Example:
        >>> import torch
        >>> from plexus.units import Site
        >>> class Double:
        ...     site, records = Site("0"), False
        ...     def __call__(self, values, visit):
        ...         return 2 * values
        >>> model = torch.nn.Sequential(torch.nn.Identity())
        >>> with attach(model, [Double()]):
        ...     model(torch.ones(1, 2))
        tensor([[2., 2.]])
        >>> model(torch.ones(1, 2))
        tensor([[1., 1.]])
    """
    operations = list(operations)
    refuse_compiled(model)
    with _state_lock:
        engine = _engine_for(model)
        entries = [_entry(engine, operation) for operation in operations]
        first = not engine.entries
        if first:
            if not _engines:
                _call_patch.enter()
                fast_path_off.enter()
            _engines.append(engine)
            engine.install()
        engine.entries.extend(entries)
        for entry in entries:
            _entries_of.setdefault((id(entry.module), entry.operation.site.at), []).append(entry)
    begun = engine.passes
    try:
        yield engine
    finally:
        with _state_lock:
            for entry in entries:
                key = id(entry.module), entry.operation.site.at
                _entries_of[key].remove(entry)
                if not _entries_of[key]:
                    del _entries_of[key]
                engine.entries.remove(entry)
            if not engine.entries and engine in _engines:
                engine.uninstall()
                _engines.remove(engine)
                if not _engines:
                    _call_patch.leave()
                    fast_path_off.leave()
    if all_reached and engine.passes > begun:
        _check_reached(entries)


def _engine_for(model: nn.Module) -> Engine:
    for engine in _engines:
        if engine.model is model:
            engine.check_thread()
            return engine
    return Engine(model)


def _entry(engine: Engine, operation: Operation) -> _Entry:
    site = operation.site
    module = find_module(engine.model, site.path)
    if not operation.records:
        reason = read_only(module, site)
        if reason is not None:
            raise SiteError(f"the value at site {site.path!r} cannot be edited: {reason}", given=str(site))
    in_loop = not operation.records and site.where == "loop" and site.at == "output" and _has_loop(module)
    if in_loop and not isinstance(operation, LoopOperation):
        raise UnsupportedError(
            f"this edit cannot act inside the loop of {site.path!r}",
            mend="where='readout' in the site edits the layer's output instead",
        )
    return _Entry(next(_order), engine, operation, module, in_loop)


def _has_loop(module: nn.Module) -> bool:
    return hasattr(module, "port") or isinstance(module, nn.RNNBase)


def _check_reached(entries: Sequence[_Entry]) -> None:
    missed = [entry for entry in entries if not entry.reached]
    if not missed:
        return
    called = [entry for entry in missed if entry.seen]
    names = ", ".join(sorted({str(entry.operation.site) for entry in missed})[:6])
    if called:
        why = f"the module ran {called[0].seen} time(s) in a pass; calls count from 0"
    else:
        why = "the module's own call never happened: a fused path, its weights used directly, or the wrong place"
    raise SiteNotReached("the model ran but never came by some sites", given=names, mend=why)


def _in_backward() -> bool:
    return bool(torch._C._current_graph_task_id() != -1)


def _generators(modules: Sequence[nn.Module]) -> list[type]:
    """The classes whose `generate` the model may run."""
    owners: dict[type, None] = {}
    for module in modules:
        if callable(getattr(type(module), "generate", None)):
            owners[next(kind for kind in type(module).__mro__ if "generate" in vars(kind))] = None
    return list(owners)


def _generate(original: Callable[..., Any], self: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """`generate` of a model that may be attached: tells its engines how many samples and prompt tokens it was given."""
    engines = [engine for engine in _engines_of.get(id(self), ()) if engine.generation is None]
    for engine in engines:
        engine.check_thread()
        engine.generation = generation_of(self, args, kwargs)
    try:
        return original(self, *args, **kwargs)
    finally:
        for engine in engines:
            engine.generation = None


def _call(original: Callable[..., Any], self: nn.Module, *args: Any, **kwargs: Any) -> Any:
    engines = _engines_of.get(id(self))
    if engines is None:
        return original(self, *args, **kwargs)
    return _visit(original, self, tuple(engines), args, kwargs)


_call_patch = Patch(nn.Module, "__call__", _call)


def _visit(
    original: Callable[..., Any],
    module: nn.Module,
    engines: Sequence[Engine],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    for engine in engines:
        engine.check_thread()
    opened = [(engine, engine.enter(module, args, kwargs)) for engine in engines]
    calls = {}
    try:
        for engine in engines:
            calls[engine] = engine.calls.get(id(module), 0)
            engine.calls[id(module)] = calls[engine] + 1
        for entry in _sorted_entries(module, "input"):
            tensor, put = find_input(module, args, kwargs, entry.operation.site.leaf, entry.operation.site.path)
            new = _operate(entry, tensor, calls[entry.engine])
            args, kwargs = (args, kwargs) if new is None else put(new)
        out = original(module, *args, **kwargs)
        for entry in _sorted_entries(module, "output"):
            tensor, put = find(out, entry.operation.site.leaf, entry.operation.site.path)
            new = _operate(entry, tensor, calls[entry.engine])
            out = out if new is None else put(new)
        return out
    finally:
        for engine, did_open in opened:
            if did_open:
                engine.streams.pop()


def _sorted_entries(module: nn.Module, side: str) -> list[_Entry]:
    entries = _entries_of.get((id(module), side), ())
    return sorted(entries, key=lambda entry: (entry.operation.records, entry.order))


def _operate(entry: _Entry, found: Tensor | PackedSequence, call: int) -> Tensor | PackedSequence | None:
    """Run one operation on one tensor; None when it changed nothing."""
    site = entry.operation.site
    entry.seen = max(entry.seen, call + 1)
    if site.call is not None and site.call != call:
        return None
    entry.reached = True
    run = entry.engine.streams[-1]
    if isinstance(found, PackedSequence):
        tensor, lengths = pad_packed_sequence(found, batch_first=not site.axes.startswith("t"))
        steps = torch.arange(int(lengths.max()))
        run = replace(run, mask=(steps < lengths[:, None]).to(tensor.device))
    else:
        tensor = found
    values, rows, back = site.view(tensor)
    visit = Visit(site, rows, call, run, _in_backward())
    if entry.operation.records:
        entry.operation(values, visit)
        return None
    if not tensor.is_floating_point():
        raise DtypeError(f"site {site.path!r} holds whole numbers, which cannot be edited", given=tensor.dtype)
    new = entry.operation(values.to(torch.promote_types(values.dtype, torch.float32)), visit)
    if new is None:
        return None
    if new.shape != values.shape:
        raise ShapeError(
            f"the edit at site {site.path!r} changed the shape", given=tuple(new.shape), expected=tuple(values.shape)
        )
    edited = back(new.to(tensor.dtype))
    if isinstance(found, PackedSequence):
        return _pack_like(edited, lengths, found, batch_first=not site.axes.startswith("t"))
    return edited


def _pack_like(padded: Tensor, lengths: Tensor, like: PackedSequence, *, batch_first: bool) -> PackedSequence:
    order = like.sorted_indices
    if order is not None:
        padded = padded.index_select(0 if batch_first else 1, order)
        lengths = lengths[order.cpu()]
    packed = pack_padded_sequence(padded, lengths, batch_first=batch_first)
    return PackedSequence(packed.data, like.batch_sizes, like.sorted_indices, like.unsorted_indices)
