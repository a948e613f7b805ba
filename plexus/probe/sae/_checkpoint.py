"""The state of a training on disk, so that it goes on as if it had never been stopped."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from plexus.errors import FormatError, UnsupportedError
from plexus.probe.sae._feed import Feed
from plexus.probe.sae._trainer import Trainer
from plexus.units._files import read_tensors, write_tensors

__all__ = ["Interruption", "restore", "store"]

KIND, VERSION = "sae-training", 1


class Interruption:
    """Whether someone asked to stop (Ctrl-C); the step that is running is finished first."""

    asked = False

    @classmethod
    @contextlib.contextmanager
    def noted(cls, wanted: bool) -> Iterator[Interruption]:
        """Note Ctrl-C instead of raising it, in the main thread and if `wanted`."""
        note = cls()
        if not wanted or threading.current_thread() is not threading.main_thread():
            yield note
            return

        def take_note(number: int, frame: Any) -> None:
            note.asked = True

        before = signal.signal(signal.SIGINT, take_note)
        try:
            yield note
        finally:
            signal.signal(signal.SIGINT, before)


def store(path: str | os.PathLike[str], trainer: Trainer, feed: Feed) -> None:
    """Write the state of a training, atomically."""
    tensors: dict[str, Tensor] = {f"weight.{name}": value for name, value in trainer.weights.items()}
    tensors |= {f"kept.{name}": value for name, value in trainer.kept.items()}
    for name, parameter in trainer.weights.items():
        for key, value in trainer.optimizer.state[parameter].items():
            tensors[f"optimizer.{name}.{key}"] = value
    tensors |= {f"feed.{name}": value for name, value in feed.state().items()}
    tensors |= {f"curve.{name}": torch.stack(values) for name, values in trainer.curve.items()}
    tensors |= {name: getattr(trainer, name) for name in ("limit", "kept_limit", "idle", "done", "steps_of")}
    tensors["generator"] = trainer.generator.get_state()
    write_tensors(path, KIND, VERSION, {"steps": trainer.steps, "made_for": _made_for(trainer)}, tensors)


def restore(path: str | os.PathLike[str], trainer: Trainer, feed: Feed) -> bool:
    """Bring a training back to where a checkpoint was written; False if there is none.

    Raises:
        UnsupportedError: the checkpoint is of a training with other settings.
        FormatError: it is damaged.
    """
    if not Path(path).exists():
        return False
    body, tensors = read_tensors(path, KIND, VERSION)
    try:
        theirs, ours = body["made_for"], _made_for(trainer)
        if theirs != ours:
            other = {name: value for name, value in theirs.items() if ours.get(name) != value}
            raise UnsupportedError(
                "this checkpoint is of a training with other settings",
                given=other,
                expected={name: ours.get(name) for name in other},
                mend="train with its settings, or choose another checkpoint file",
            )
        trainer.steps = int(body["steps"])
        with torch.no_grad():
            for name, parameter in trainer.weights.items():
                parameter.copy_(tensors[f"weight.{name}"])
                trainer.kept[name].copy_(tensors[f"kept.{name}"])
                keys = [key for key in tensors if key.startswith(f"optimizer.{name}.")]
                # the averages lie in memory as the parameter does: the fused step counts on it
                trainer.optimizer.state[parameter] = {
                    key.rpartition(".")[2]: tensors[key].to(parameter.device)
                    if key.endswith(".step")
                    else torch.empty_like(parameter, requires_grad=False).copy_(tensors[key])
                    for key in keys
                }
        for name in ("limit", "kept_limit", "idle"):
            setattr(trainer, name, tensors[name].to(trainer.limit.device))
        trainer.done, trainer.steps_of = tensors["done"], tensors["steps_of"]
        trainer.curve = {
            name.removeprefix("curve."): list(value) for name, value in tensors.items() if name.startswith("curve.")
        }
        feed.load_state({n.removeprefix("feed."): value for n, value in tensors.items() if n.startswith("feed.")})
        trainer.generator.set_state(tensors["generator"])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        if isinstance(error, UnsupportedError):
            raise
        raise FormatError("this checkpoint is damaged", given=f"{path}: {type(error).__name__}: {error}") from error
    return True


def _made_for(trainer: Trainer) -> dict[str, Any]:
    """Settings, design and members, as JSON gives them back."""
    made = {**asdict(trainer.design), **asdict(trainer.settings), "members": trainer.members}
    out: dict[str, Any] = json.loads(json.dumps(made))
    return out
