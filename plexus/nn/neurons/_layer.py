"""What all layers of neurons have in common: units, numbers that stay in range, checks of the input, and the port."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, Literal, TypedDict

import torch
from torch import Tensor, nn

from plexus.errors import DeviceError, DtypeError, RangeError, ShapeError, UnknownNameError, UnsupportedError
from plexus.kernels import SURROGATES, Surrogate
from plexus.kernels._neuron import BackendName, Neuron, Recurrence
from plexus.nn._places import number_of

__all__ = ["Between", "Common", "NeuronLayer", "Positive", "decay_of", "in_millivolt", "positive"]

Slope = Surrogate | str | Callable[[Tensor], Tensor]
_AXES = {1: "t b u", 2: "t b u x", 3: "t b u y x", 4: "t b u z y x"}
_MILLIVOLT = 10.0  # width of the usual surrogates on a membrane in mV, where 1 would be the threshold of a plain one


class Common(TypedDict, total=False):
    """Keyword arguments that every spiking layer takes; `LIF` says what they mean."""

    dt: float
    refractory: float
    detach_reset: bool
    surrogate: Slope
    smooth: bool
    learn: Iterable[str]


class Positive:
    """A number kept by its logarithm, so that no step of learning makes it negative: reads `log_<name>`."""

    def __init__(self, meaning: str) -> None:
        self.__doc__ = meaning

    def __set_name__(self, owner: type, name: str) -> None:
        self.name, self.raw = name, f"log_{name}"

    def __get__(self, layer: Any, owner: type | None = None) -> Any:
        return self if layer is None else getattr(layer, self.raw).exp()

    def __set__(self, layer: Any, value: Any) -> None:
        raise AttributeError(f"{self.name} follows from {self.raw}: change that, or build another layer")

    def raw_of(self, layer: Any, value: Tensor) -> Tensor:
        """What is kept."""
        return value.log()


class Between(Positive):
    """A number kept within (0, ceiling) by a sigmoid: reads `logit_<name>`."""

    def __init__(self, ceiling: Callable[[Any], float], meaning: str) -> None:
        super().__init__(meaning)
        self.ceiling = ceiling

    def __set_name__(self, owner: type, name: str) -> None:
        self.name, self.raw = name, f"logit_{name}"

    def __get__(self, layer: Any, owner: type | None = None) -> Any:
        return self if layer is None else self.ceiling(layer) * getattr(layer, self.raw).sigmoid()

    def raw_of(self, layer: Any, value: Tensor) -> Tensor:
        """What is kept."""
        return torch.logit(value / self.ceiling(layer))


class NeuronLayer(nn.Module):
    """A layer of units with a loop of their own. Not public: the layers that derive from it are.

    A layer gives its model and state as `neuron`, names what may be learnt in `learnable`, keeps its numbers by
    `_number`, and calls `_loop`.
    """

    neuron: ClassVar[Neuron[Any]]
    activity: ClassVar[str] = "spiking"  # what `probe.health` takes the output for
    biophysical: ClassVar[bool] = False  # potentials in mV, so that an input cannot be compared with a threshold
    learnable: ClassVar[tuple[str, ...]] = ()
    resets: ClassVar[tuple[str, ...]] = ("soft", "hard", "none")
    shown: ClassVar[tuple[str, ...]] = ()
    axes = "t b u"
    backend: BackendName = "auto"

    def __init__(
        self,
        units: int | Sequence[int],
        *,
        dt: float = 1.0,
        reset: str | None = None,
        refractory: float = 0.0,
        detach_reset: bool = False,
        surrogate: Slope = "arctan",
        smooth: bool = False,
        learn: Iterable[str] = (),
    ) -> None:
        super().__init__()
        self.units = (units,) if isinstance(units, int) else tuple(units)
        if not self.units or any(size < 1 for size in self.units):
            raise ShapeError("a layer needs at least one unit", given=units, expected="positive sizes")
        if len(self.units) not in _AXES:
            raise ShapeError("units have too many dimensions", given=self.units, expected="one to four sizes")
        self.axes = _AXES[len(self.units)]
        self.sizes = self.units  # of what a unit remembers; a dendrite has its branches besides
        if reset is not None and reset not in self.resets:
            raise UnknownNameError.among("reset", reset, self.resets)
        positive("dt", dt)
        if refractory < 0:
            raise RangeError("the refractory time is negative", given=refractory, expected="ms >= 0")
        if smooth and refractory:
            raise UnsupportedError("a smooth spike has no moment from which to be refractory", mend="use refractory=0")
        self.dt, self.refractory, self.detach_reset, self.smooth = dt, refractory, detach_reset, smooth
        self.reset: Any = reset
        self.surrogate = Surrogate(surrogate) if isinstance(surrogate, str) else surrogate
        self.learn = tuple(learn)
        for name in self.learn:
            if name not in self.learnable:
                raise UnknownNameError.among(f"learnable number of {type(self).__name__}", name, self.learnable)

    def _number(self, name: str, value: float | Tensor) -> None:
        """Keep a number: one, or one per unit; a parameter if it is learnt, else a buffer."""
        tensor = number_of(self, value)
        try:
            tensor.expand(self.sizes)
        except RuntimeError as error:
            raise ShapeError(
                f"{name} does not fit the units", given=tuple(tensor.shape), expected=f"one number or {self.sizes}"
            ) from error
        kept = getattr(type(self), name, None)
        key = name
        if isinstance(kept, Positive):
            key, tensor = kept.raw, kept.raw_of(self, tensor)
        if name in self.learn:
            setattr(self, key, nn.Parameter(tensor))
        else:
            self.register_buffer(key, tensor)

    def _is_on(self, name: str) -> bool:
        """Whether a number is learnt or not all 0, so that the equations need it."""
        value: Tensor = getattr(self, name)
        return name in self.learn or bool((value != 0).any())

    def _start(self) -> Mapping[str, Tensor | float]:
        """The values of the state at rest that are not 0."""
        return {}

    def initial_state(self, batch: int, *, dtype: torch.dtype | None = None) -> Any:
        """The state at rest, each tensor `[batch, unit…]`."""
        like = next(iter(self.buffers()), None)
        like = next(self.parameters()) if like is None else like
        zeros = torch.zeros(batch, *self.sizes, dtype=dtype or like.dtype, device=like.device)
        start = self._start()
        names = self.neuron.dynamics.memory
        return self.neuron.state(*(zeros + torch.as_tensor(start.get(n, 0.0)).detach().to(zeros) for n in names))

    def _loop(
        self,
        inputs: Tensor | Sequence[Tensor],
        state: Any,
        numbers: Mapping[str, Tensor | float],
        options: Mapping[str, Any] | None = None,
        constants: Sequence[float] = (),
        dt: float | None = None,
        recurrent: Recurrence = None,
    ) -> tuple[Tensor, Any]:
        """The loop: numbers by the model's names; reset, refractory time and port are those of the layer.

        `recurrent` is a weight through which the units drive one another (see `Recurrent`, which owns one).
        """
        d = self.neuron.dynamics
        chosen = dict(options or {})
        steps = round(self.refractory / (dt or self.dt))
        own = {"reset": self.reset, "detach": self.detach_reset, "refractory": steps > 0}
        chosen.update({name: value for name, value in own.items() if name in d.options})
        if "period" in d.constants:
            constants = (steps, *constants)
        return self.neuron(
            inputs,
            state,
            numbers,
            options=chosen,
            constants=constants,
            start=self._start(),
            surrogate=self.surrogate,
            smooth=self.smooth,
            port=getattr(self, "port", None),
            recurrent=recurrent,
            backend=self.backend,
        )

    def _check(self, x: Tensor, units: tuple[int, ...] | None = None) -> None:
        """Refuse an input that is not `[time, batch, unit…]`, with what was probably meant."""
        units = self.units if units is None else units
        expected = f"[time, batch, {', '.join(map(str, units))}]"
        if not isinstance(x, Tensor):
            raise DtypeError("the input is not a tensor", given=type(x).__name__, expected=expected)
        if tuple(x.shape[2:]) != units:
            mend = None
            if tuple(x.shape[1:]) == units:
                mend = "for one step of a batch give x.unsqueeze(0), for one sample over time x.unsqueeze(1)"
            elif x.dim() == len(units) + 2 and sorted(x.shape[1:]) == sorted((x.shape[1], *units)):
                mend = "units come last"
            elif x.dim() == 3 and units[0] in x.shape:
                at = list(x.shape).index(units[0])
                mend = f"units come last; here they seem to be dimension {at}: permute the input"
            raise ShapeError("the input does not fit the layer", given=tuple(x.shape), expected=expected, mend=mend)
        if x.shape[1] == 0:
            raise ShapeError("the batch is empty", given=tuple(x.shape), expected=expected)
        if not x.is_floating_point():
            raise DtypeError("the input is not floating point", given=x.dtype, mend="convert it, e.g. x.float()")
        for number in (*self.parameters(recurse=False), *self.buffers(recurse=False)):
            if x.device != number.device:
                raise DeviceError(
                    "the input lies on another device than the layer", given=x.device, expected=number.device
                )
            break

    def _pair(
        self, x: Tensor | tuple[Tensor, Tensor], split: Callable[[Tensor], tuple[Tensor, Tensor]]
    ) -> tuple[Tensor, Tensor]:
        """The two inputs of a layer that takes a pair, or one tensor that `split` makes into two."""
        if not (isinstance(x, tuple | list) and all(isinstance(part, Tensor) for part in x)):
            one: Any = x
            self._check(one)
            return split(one)
        if len(x) != 2:
            raise ShapeError("the layer takes two inputs", given=len(x), expected="a pair, or one tensor")
        for part in x:
            self._check(part)
        return x[0], x[1]

    def extra_repr(self) -> str:
        """What `print(layer)` shows."""
        parts = ["×".join(map(str, self.units))]
        for name in self.shown:
            value: Tensor = getattr(self, name).detach()
            low, high = value.min().item(), value.max().item()
            unit = " ms" if name.startswith("tau") else ""
            parts.append(f"{name}={low:g}{unit}" if low == high else f"{name}={low:g}…{high:g}{unit}")
        parts += [f"reset={self.reset!r}"] if self.reset is not None else []
        parts += [f"learn={self.learn}"] if self.learn else []
        return ", ".join(parts)


def decay_of(dt: float, tau: Tensor) -> Tensor:
    """exp(-dt/τ)."""
    return torch.exp(-dt / tau)


def in_millivolt(surrogate: Slope) -> Slope:
    """A surrogate given by its name, made as wide on a membrane in mV as it is on one whose threshold is 1."""
    if not isinstance(surrogate, str) or surrogate not in SURROGATES:
        return surrogate
    return Surrogate(surrogate, width=_MILLIVOLT * SURROGATES[surrogate].width, height=1 / _MILLIVOLT)


def positive(name: str, value: float | Tensor, *, zero: bool = False, unit: Literal["ms", ""] = "ms") -> None:
    """Refuse a number that is not positive (or, with `zero`, is negative)."""
    number = torch.as_tensor(value)
    if not bool(((number >= 0) if zero else (number > 0)).all()):
        sign = ">= 0" if zero else "> 0"
        raise RangeError(
            f"{name} must be {'zero or more' if zero else 'positive'}", given=value, expected=f"{unit} {sign}".strip()
        )
