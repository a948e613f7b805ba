"""The one hook engine: everything that reads or changes the inside of a model attaches here.

Nothing is written on the model. While operations are attached, `torch.nn.Module.__call__` looks up whether the called
module belongs to a model with operations, and if so runs them around the module's own call. So a copy of the model made
inside the `with` is a copy without edits, saving it saves nothing foreign, and leaving the `with` leaves no trace.

The rules: edits apply in the order entered, and recorders see the result, whatever order they are left in; a call is
counted within one pass of the model; edits are computed in float32 or wider and cast back; a unit of a recurrent
layer is edited inside its loop unless its site says `where="readout"`.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Iterator, Sequence
from functools import reduce

from torch import nn

from plexus.errors import SiteError, SiteNotReached, UnsupportedError
from plexus.units._dispatch import Engine, Entry, LoopOperation, Operation, entries_of, running
from plexus.units._paths import find_module, has_loop, read_only, refuse_out_of_reach, walk
from plexus.units._port import Port
from plexus.units._rnn import check_rnn
from plexus.units._routing import is_routed, refuse_fused

__all__ = ["Engine", "LoopOperation", "Operation", "attach"]

_lock = threading.RLock()
_order = itertools.count()


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

    Examples:
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
    refuse_out_of_reach(model)
    with _lock:
        engine = next((engine for engine in running if engine.model is model), None) or Engine(model)
        engine.check_thread()
        refuse_fused(dict(walk(model)), {operation.site.path for operation in operations})
        entries = [_entry(engine, operation) for operation in operations]
        _check_loops(entries)
        for entry in entries:
            if is_routed(entry.operation.site):
                entry.expert = engine.routes.watch(model, entry.operation.site)
        if not engine.users:
            engine.install()
        engine.users += 1
        engine.entries.extend(entries)
        for entry in entries:
            entries_of.setdefault(entry.module, []).append(entry)
    begun, unsent = engine.passes, set[Entry]()
    try:
        yield engine
    finally:
        with _lock:
            unsent.update(e for e in entries if e.expert is not None and engine.routes.reached(e.expert))
            for entry in entries:
                if entry.expert is not None:
                    engine.routes.unwatch(entry.expert)
                engine.entries.remove(entry)
                entries_of[entry.module].remove(entry)
                if not entries_of[entry.module]:
                    del entries_of[entry.module]
            engine.users -= 1
            if not engine.users:
                engine.uninstall()
    engine.memory.check_finished({entry for entry in entries if entry.edits})
    if all_reached and engine.passes > begun:
        # an expert that no token was sent to is no fault
        _check_reached([entry for entry in entries if entry not in unsent])


def _entry(engine: Engine, operation: Operation) -> Entry:
    site = operation.site
    module = find_module(engine.model, site.path)
    port = None
    if not operation.records:
        reason = read_only(module, site)
        if reason is not None:
            raise SiteError(f"the value at site {site.path!r} cannot be edited: {reason}", given=str(site))
        if site.where == "loop" and site.at == "output" and site.leaf in (None, 0) and has_loop(module):
            port = _port(operation, module)
    return Entry(next(_order), engine, operation, module, port)


def _port(operation: Operation, module: nn.Module) -> Port:
    site = operation.site
    if not isinstance(operation, LoopOperation) or site.part is not None or site.has_features:
        raise UnsupportedError(
            f"this edit cannot act inside the loop of {site.path!r}",
            mend="where='readout' in the site edits what the layer gives out and leaves its loop alone",
        )
    return operation.port()


def _check_loops(entries: Sequence[Entry]) -> None:
    """What acts on the loop of one of torch's recurrent layers must be exact there, all edits together."""
    for module in dict.fromkeys(entry.module for entry in entries if entry.port is not None):
        if isinstance(module, nn.RNNBase):
            together = [*entries_of.get(module, ()), *(entry for entry in entries if entry.module is module)]
            ports = [entry.port for entry in together if entry.port is not None]
            check_rnn(module, reduce(Port.then, ports))


def _check_reached(entries: Sequence[Entry]) -> None:
    missed = [entry for entry in entries if not entry.reached]
    if not missed:
        return
    called = max(entry.calls for entry in missed)
    if called:
        why = f"a pass calls the module {called} time(s), and `call` counts from 0"
    else:
        why = "its own call never happens: a fused path, its weights used directly, or not the place you meant"
    raise SiteNotReached(
        "the model ran and never came by some sites",
        given=", ".join(sorted({str(entry.operation.site) for entry in missed})[:6]),
        mend=why,
    )
