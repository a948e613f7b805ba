"""Where the calls of modules meet the operations that are attached to them.

`torch.nn.Module.__call__` goes through `_call` while anything is attached. A module that belongs to no model with
operations passes straight through.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import reduce
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from plexus.errors import DtypeError, ShapeError, UnsupportedError
from plexus.units._checkpoint import Memory, current_region, in_backward
from plexus.units._leaf import find, find_input
from plexus.units._pass import Generation, Pass, Visit, open_pass, opens_stream, stream_of
from plexus.units._patches import Patch, compiled_runs_eagerly, fast_path_off, generation_of
from plexus.units._port import Port
from plexus.units._rnn import check_rnn, ported_forward
from plexus.units._routing import Routes
from plexus.units._site import Site

__all__ = [
    "Around",
    "Engine",
    "Entry",
    "LoopOperation",
    "Operation",
    "around_calls",
    "entries_of",
    "is_attached",
    "running",
]

Around = Callable[[Callable[[], Any]], Any]
"""Gets a call of a module, as a function without arguments, and gives what the call shall give."""


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
    """An edit that can also act inside the loop of a recurrent layer."""

    def port(self) -> Port:
        """The edit as a port of the layer's units; raises `UnsupportedError` if it is none."""
        ...


class Entry:
    """One operation on one module; `order` is its place among everything that was ever attached."""

    def __init__(
        self,
        order: int,
        engine: Engine,
        operation: Operation,
        module: nn.Module,
        port: Port | None,
        expert: nn.Module | None = None,
    ) -> None:
        self.order, self.engine, self.operation, self.module, self.port = order, engine, operation, module, port
        self.expert = expert  # whose rows the site sees, in a mixture of experts
        self.reached = False
        self.calls = 0  # the most calls of the module that one pass has had

    @property
    def edits(self) -> bool:
        return not self.operation.records

    def acts_at(self, call: int) -> bool:
        """Note a call of the module, and say whether the operation happens at it."""
        self.calls = max(self.calls, call + 1)
        acts = self.operation.site.call in (None, call)
        self.reached |= acts
        return acts


class Engine:
    """All operations of one model; what `attach` yields.

    Attributes:
        model: the model.
        passes: how many passes have begun since the engine came to life.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.passes = 0
        self.entries: list[Entry] = []
        self.users = 0  # how many `with` hold it
        self.generation: Generation | None = None
        self.memory = Memory()
        self.routes = Routes()
        self._thread = threading.get_ident()
        self._members = list(model.modules())
        self._streams: list[Pass] = []
        self._calls: dict[nn.Module, int] = {}
        self._patches = [Patch(nn.Module, "__call__", _call), *_generators(self._members)]

    def install(self) -> None:
        """Begin to see the calls of the model's modules."""
        running.append(self)
        for module in self._members:
            _engines_of.setdefault(module, []).append(self)
        for patch in self._patches:
            patch.enter()
        fast_path_off.enter()
        compiled_runs_eagerly.enter()

    def uninstall(self) -> None:
        """Stop seeing them; nothing of the engine stays behind."""
        running.remove(self)
        for module in self._members:
            _engines_of[module].remove(self)
            if not _engines_of[module]:
                del _engines_of[module]
        for patch in self._patches:
            patch.leave()
        fast_path_off.leave()
        compiled_runs_eagerly.leave()

    def check_thread(self) -> None:
        """Raise `UnsupportedError` in any thread but the one that attached, autograd's own excepted."""
        if threading.get_ident() != self._thread and not in_backward():
            raise UnsupportedError(
                "this model has edits or recorders that belong to another thread",
                mend="run it in that thread, or give this one its own copy: copy.deepcopy(model) has no edits",
            )

    def opens(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Note a call of a module; true if it begins a pass, or a stream of tokens inside one, which `closes` ends."""
        self.check_thread()
        if self._streams:
            if not opens_stream(module):
                return False
            opened = stream_of(self._streams[-1], module, args, kwargs, self.generation)
        elif in_backward():  # a checkpointed part runs again; what it was told is replayed
            return False
        else:
            self._calls.clear()
            opened = open_pass(self.passes, module, args, kwargs, self.generation)
            self.passes += 1
        if opened is None:
            return False
        self._streams.append(opened)
        return True

    def closes(self) -> None:
        """End what the last call that opened something began."""
        self._streams.pop()
        if not self._streams:
            self.routes.clear()

    def visit(self, module: nn.Module, edits: set[object]) -> tuple[int, Pass]:
        """The count of this call in its pass, and the pass as the module's stream sees it."""
        region = current_region()
        if in_backward():
            known = self.memory.replay(region, module)
            if known is None and edits:
                raise UnsupportedError(
                    "an edited part of the model runs inside backward in a way that cannot be followed",
                    mend="edit without nested or custom gradient checkpointing",
                )
            return known or (0, Pass(-1))
        call = self._calls.get(module, 0)
        self._calls[module] = call + 1
        if region is not None:
            self.memory.remember(region, module, call, self._streams[-1], edits)
        return call, self._streams[-1]


running: list[Engine] = []
entries_of: dict[nn.Module, list[Entry]] = {}
_engines_of: dict[nn.Module, list[Engine]] = {}
_around_calls: dict[nn.Module, Around] = {}


def is_attached(model: nn.Module) -> bool:
    """Whether operations are attached to a model now."""
    return any(engine.entries for engine in running if engine.model is model)


@contextlib.contextmanager
def around_calls(functions: Mapping[nn.Module, Around]) -> Iterator[None]:
    """Hand every call of these modules, of a model with operations, to a function that may run it or not.

    Operations within a module that is not run do not happen.
    """
    before = {module: _around_calls.get(module) for module in functions}
    _around_calls.update(functions)
    try:
        yield
    finally:
        for module, function in before.items():
            if function is None:
                del _around_calls[module]
            else:
                _around_calls[module] = function


def _call(original: Callable[..., Any], self: nn.Module, *args: Any, **kwargs: Any) -> Any:
    engines = _engines_of.get(self)
    if engines is None:
        return original(self, *args, **kwargs)
    around = _around_calls.get(self)
    if around is not None:
        return around(lambda: _seen(original, self, engines, args, kwargs))
    return _seen(original, self, engines, args, kwargs)


def _seen(
    original: Callable[..., Any], self: nn.Module, engines: list[Engine], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """A call that the engines of its module see."""
    opened: list[Engine] = []
    try:
        opened.extend(engine for engine in tuple(engines) if engine.opens(self, args, kwargs))
        for engine in engines:
            if engine.routes:
                engine.routes.before(self, args, kwargs)
        entries = entries_of.get(self)
        if entries is None:
            _keep_tokens(engines, self, args, kwargs)
            return original(self, *args, **kwargs)
        # edits in the order entered, then recorders
        entries = sorted(entries, key=lambda entry: (not entry.edits, entry.order))
        return _around(original, self, entries, args, kwargs)
    finally:
        for engine in opened:
            engine.closes()


def _around(
    original: Callable[..., Any],
    module: nn.Module,
    entries: Sequence[Entry],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    visits: dict[Engine, tuple[int, Pass]] = {}
    for engine in dict.fromkeys(entry.engine for entry in entries):
        edits: set[object] = {entry for entry in entries if entry.edits and entry.engine is engine}
        visits[engine] = engine.visit(module, edits)
    active = [entry for entry in entries if entry.acts_at(visits[entry.engine][0])]
    for entry in active:
        if entry.operation.site.at == "input":
            tensor, put = find_input(module, args, kwargs, entry.operation.site.leaf, entry.operation.site.path)
            new = _operate(entry, tensor, *visits[entry.engine])
            args, kwargs = (args, kwargs) if new is None else put(new)
    _keep_tokens(_engines_of[module], module, args, kwargs)
    with _ported(module, [entry.port for entry in active if entry.port is not None]):
        out = original(module, *args, **kwargs)
    for entry in active:
        if entry.operation.site.at == "output" and entry.port is None:
            tensor, put = find(out, entry.operation.site.leaf, entry.operation.site.path)
            new = _operate(entry, tensor, *visits[entry.engine])
            out = out if new is None else put(new)
    return out


def _keep_tokens(engines: Sequence[Engine], module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Keep what a block of experts is called with, for the rows that its experts will be sent."""
    for engine in engines:
        if engine.routes:
            engine.routes.tokens(module, args, kwargs)


@contextlib.contextmanager
def _ported(module: nn.Module, ports: Sequence[Port]) -> Iterator[None]:
    """Hand the ports to the layer's loop for the length of one call, so that no copy of the layer carries them."""
    if not ports:
        yield
        return
    own = vars(module)
    name = "forward" if isinstance(module, nn.RNNBase) else "port"
    absent = name not in own
    before = own.get(name)
    port = reduce(Port.then, ports, Port() if name == "forward" else getattr(module, name) or Port())
    if isinstance(module, nn.RNNBase):
        check_rnn(module, port)
        own[name] = ported_forward(module, port)
    else:
        own[name] = port
    try:
        yield
    finally:
        if absent:
            del own[name]
        else:
            own[name] = before


def _operate(entry: Entry, found: Tensor | PackedSequence, call: int, run: Pass) -> Tensor | PackedSequence | None:
    """Run one operation on one tensor; None when it changed nothing."""
    site = entry.operation.site
    if not isinstance(found, PackedSequence):
        return _operate_on(entry, found, call, run)
    batch_first = not site.axes.startswith("t")
    padded, lengths = pad_packed_sequence(found, batch_first=batch_first)
    real = (torch.arange(int(lengths.max())) < lengths[:, None]).to(padded.device)
    new = _operate_on(entry, padded, call, replace(run, mask=real))
    if new is None:
        return None
    if found.sorted_indices is not None:
        new = new.index_select(0 if batch_first else 1, found.sorted_indices)
        lengths = lengths[found.sorted_indices.cpu()]
    data = pack_padded_sequence(new, lengths, batch_first=batch_first).data
    return PackedSequence(data, found.batch_sizes, found.sorted_indices, found.unsorted_indices)


def _operate_on(entry: Entry, tensor: Tensor, call: int, run: Pass) -> Tensor | None:
    operation, site = entry.operation, entry.operation.site
    fold = vars(entry.module).get("_plexus_fold")  # (time, batch), while a layer runs with time folded into the batch
    seen = site if fold is None else site.unfolded(fold[0])
    values, rows, back = _with_tokens(seen, tensor, run).view(tensor)
    routed = None
    if entry.expert is not None:
        routed = entry.engine.routes.of(entry.expert, values.shape[rows.index("r")], site.path)
    visit = Visit(site, rows, call, run, in_backward(), routed)
    if operation.records:
        operation(values, visit)
        return None
    if not tensor.is_floating_point():
        raise DtypeError(f"site {site.path!r} holds whole numbers, which cannot be edited", given=tensor.dtype)
    new = operation(values.to(torch.promote_types(values.dtype, torch.float32)), visit)
    if new is None:
        return None
    if new.shape != values.shape:
        raise ShapeError(
            f"the edit at site {site.path!r} changed the shape", given=tuple(new.shape), expected=tuple(values.shape)
        )
    return back(new.to(tensor.dtype))


def _with_tokens(site: Site, tensor: Tensor, run: Pass) -> Site:
    """The site as rows `[b · t, unit]` show it, for modules that are called with all tokens of a batch in one row.

    So do shared experts and some MLPs: a site that leaves open what lies between samples and units has tokens there.
    """
    if tensor.dim() != 2 or run.positions is None or len(tensor) != run.positions.numel():
        return site
    return site.with_tokens(run.positions.shape[1])


def _generate(original: Callable[..., Any], self: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """`generate` of a model: tells its engines how many samples and prompt tokens it was given."""
    engines = [engine for engine in _engines_of.get(self, ()) if engine.generation is None]
    for engine in engines:
        engine.check_thread()
        engine.generation = generation_of(self, args, kwargs)
    try:
        return original(self, *args, **kwargs)
    finally:
        for engine in engines:
            engine.generation = None


def _generators(modules: Sequence[nn.Module]) -> list[Patch]:
    """A patch for each class whose `generate` the model may run."""
    owners: dict[type, None] = {}
    for module in modules:
        if callable(getattr(type(module), "generate", None)):
            owners[next(kind for kind in type(module).__mro__ if "generate" in vars(kind))] = None
    return [Patch(owner, "generate", _generate) for owner in owners]
