"""What is switched in torch while operations are attached, and switched back afterwards."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from plexus.units._pass import Generation

__all__ = ["CompiledRunsEagerly", "FastPathOff", "Patch", "compiled_runs_eagerly", "fast_path_off", "generation_of"]


class Patch:
    """A method of a class that goes through `around(original, self, *args, **kwargs)` while entered.

    Entered and left any number of times; only the first and the last count. Should somebody else have wrapped the
    method in the meantime, leaving puts nothing back: ours stays in the chain and passes through.
    """

    _shared: dict[tuple[type, str], Patch] = {}  # noqa: RUF012
    around: Callable[..., Any]

    def __new__(cls, owner: type, name: str, around: Callable[..., Any]) -> Patch:
        if (owner, name) not in cls._shared:
            patch = super().__new__(cls)
            patch.owner, patch.name, patch.around, patch.depth, patch.mine = owner, name, around, 0, None
            cls._shared[owner, name] = patch
        return cls._shared[owner, name]

    owner: type
    name: str
    depth: int
    mine: Callable[..., Any] | None

    def enter(self) -> None:
        self.depth += 1
        original = vars(self.owner)[self.name]
        if self.depth > 1 or original is self.mine:
            return

        @functools.wraps(original)
        def wrapper(module: Any, *args: Any, **kwargs: Any) -> Any:
            if not self.depth or wrapper is not self.mine:  # of several in a chain the last one put in acts
                return original(module, *args, **kwargs)
            return self.around(original, module, *args, **kwargs)

        self.mine, self._original = wrapper, original
        setattr(self.owner, self.name, wrapper)

    def leave(self) -> None:
        self.depth -= 1
        if not self.depth and vars(self.owner)[self.name] is self.mine:
            setattr(self.owner, self.name, self._original)
            self.mine = None


class FastPathOff:
    """Torch's fused attention path, which calls no modules, is off while entered."""

    def __init__(self) -> None:
        self.depth = 0
        self.before = True

    def enter(self) -> None:
        if not self.depth:
            self.before = torch.backends.mha.get_fastpath_enabled()
            torch.backends.mha.set_fastpath_enabled(False)
        self.depth += 1

    def leave(self) -> None:
        self.depth -= 1
        if not self.depth:
            torch.backends.mha.set_fastpath_enabled(self.before)


fast_path_off = FastPathOff()


class CompiledRunsEagerly:
    """Compiled code, which calls no modules either, runs as the Python it was made from while entered.

    The compiler is an import of more than a second, so it is left alone until something else loads it.
    """

    def __init__(self) -> None:
        self.depth = 0
        self.stance: Any = None
        self.compile: Callable[..., Any] | None = None

    def enter(self) -> None:
        self.depth += 1
        if self.depth == 1 and "torch._dynamo" in sys.modules:
            self._force()
        elif self.depth == 1:
            original = self.compile = torch.compile

            @functools.wraps(original)
            def compile(*args: Any, **kwargs: Any) -> Any:
                compiled = original(*args, **kwargs)
                if self.depth and self.stance is None:
                    self._force()
                return compiled

            self._mine = torch.compile = compile

    def leave(self) -> None:
        self.depth -= 1
        if self.depth:
            return
        if self.stance is not None:
            self.stance.__exit__(None, None, None)
            self.stance = None
        if self.compile is not None:
            if torch.compile is self._mine:
                torch.compile = self.compile
            self.compile = None

    def _force(self) -> None:
        self.stance = torch.compiler.set_stance("force_eager")
        self.stance.__enter__()


compiled_runs_eagerly = CompiledRunsEagerly()


def generation_of(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Generation:
    """How many samples and prompt tokens a call of `generate` was given."""
    two_streams = bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))
    given = [args[0] if args else None, *(kwargs.get(name) for name in ("inputs", "input_ids", "inputs_embeds"))]
    source = next((value for value in given if isinstance(value, Tensor)), None)
    if source is None:
        source = next((value for value in kwargs.values() if isinstance(value, Tensor) and value.dim() > 1), None)
    samples = None if source is None else int(source.shape[0])
    prompt: Tensor | None = source
    if two_streams:
        prompt = kwargs.get("decoder_input_ids")
        return Generation(samples, 1 if prompt is None else int(prompt.shape[1]), True)
    return Generation(samples, None if prompt is None or prompt.dim() < 2 else int(prompt.shape[1]))
