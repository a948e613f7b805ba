"""Which checkpointed part of a model is running, and what happened in it the first time.

A checkpointed part runs twice: in forward, and again inside backward. An edit must do the same thing both times, so
what it was told the first time is kept per part and replayed; and it must still be there the second time, so a part
whose backward is still to come when an edit is left is an error.
"""

from __future__ import annotations

import inspect
import sys
import weakref
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import CheckpointFunction

from plexus.errors import UnsupportedError
from plexus.units._pass import Pass

__all__ = ["Memory", "current_region", "in_backward"]


def in_backward() -> bool:
    """Whether autograd is running backward in this thread."""
    return bool(torch._C._current_graph_task_id() != -1)


def current_region() -> Any | None:
    """The innermost checkpointed part that runs now: an object that lives as long as its graph does; None outside."""
    hooks = torch._C._autograd._top_saved_tensors_default_hooks(True)
    if hooks is not None:
        frame = _frame_of(hooks[0])
        if frame is not None:
            return frame
    if not torch.is_grad_enabled() or in_backward():
        return _reentrant_region()
    return None


def _frame_of(pack: Any) -> Any | None:
    """The record of the part, from the hook by which the checkpoint without reentry replaces saved tensors."""
    if getattr(pack, "__module__", None) != "torch.utils.checkpoint":
        return None
    pack = inspect.unwrap(pack)
    cells = dict(zip(pack.__code__.co_freevars, pack.__closure__ or (), strict=True))
    if "frame" in cells:
        return cells["frame"].cell_contents
    return cells["target_frame_ref"].cell_contents() if "target_frame_ref" in cells else None


_REENTRANT = (CheckpointFunction.forward.__code__, CheckpointFunction.backward.__code__)


def _reentrant_region() -> Any | None:
    """The node of the graph, from the frame of the checkpoint with reentry."""
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code in _REENTRANT:
            return frame.f_locals["ctx"]
        if frame.f_back is None:
            return None
        frame = frame.f_back
    return None


class _Region:
    def __init__(self, owner: Any) -> None:
        self.owner = weakref.ref(owner)
        self.visits: list[tuple[nn.Module, int, Pass]] = []
        self.edits: set[object] = set()
        self.backward: int = -1
        self.cursor = 0

    @property
    def pending(self) -> bool:
        """Whether backward may still run this part again."""
        owner = self.owner()
        if owner is None:
            return False
        if hasattr(owner, "weak_holders"):
            return any(holder() is not None for holder in owner.weak_holders)
        try:
            return owner.saved_tensors is not None
        except RuntimeError:  # freed by a backward that has run
            return False


class Memory:
    """What operations were told in checkpointed parts, for one model."""

    def __init__(self) -> None:
        self._regions: dict[int, _Region] = {}

    def remember(self, region: Any, module: nn.Module, call: int, run: Pass, edits: set[object]) -> None:
        """Note the first run of a module in a checkpointed part, and the edits that act there."""
        key = id(region)
        known = self._regions.get(key)
        if known is None or known.owner() is not region:
            known = self._regions[key] = _Region(region)
            weakref.finalize(region, self._forget, key, weakref.ref(known))
        known.visits.append((module, call, run))
        known.edits |= edits

    def replay(self, region: Any | None, module: nn.Module) -> tuple[int, Pass] | None:
        """What was noted in the first run, in the same order; None when the part is not known."""
        known = self._regions.get(id(region)) if region is not None else None
        if known is None or known.owner() is not region:
            return None
        task = torch._C._current_graph_task_id()
        if task != known.backward:
            known.backward, known.cursor = task, 0
        if known.cursor >= len(known.visits) or known.visits[known.cursor][0] is not module:
            raise UnsupportedError(
                "a checkpointed part of the model ran differently in backward than in forward",
                mend="edit without gradient checkpointing",
            )
        known.cursor += 1
        return known.visits[known.cursor - 1][1:]

    def check_finished(self, edits: set[object]) -> None:
        """Raise `UnsupportedError` if a part in which one of these edits acted may still be run again by backward."""
        if any(region.pending and region.edits & edits for region in list(self._regions.values())):
            raise UnsupportedError(
                "a checkpointed part of the model was edited and its backward has not run yet; it would run that part "
                "again without the edit and give a wrong gradient",
                mend="call backward inside the `with`, or drop the output there, or do without checkpointing",
            )

    def _forget(self, key: int, known: weakref.ref[_Region]) -> None:
        if self._regions.get(key) is known():
            self._regions.pop(key, None)
