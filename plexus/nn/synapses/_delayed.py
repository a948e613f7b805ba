"""Layers whose every synapse has a weight and a delay of its own, both learnt.

    I_i[t] = Σ_j Σ_n K_ij(n) x_j[t - n] + b_i            K as in `_delay_kernel`, n = 0 … max_delay steps

The published code pads a recording with T_d - 1 silent steps before it and (T_d - 1) // 2 after it, where T_d =
max_delay + 1, so that late spikes still reach the read-out. Here the steps before are the layer's state, silent at
rest, and the steps after are silent steps of the input: `torch.nn.functional.pad(x, (0, 0, 0, 0, 0, max_delay // 2))`.

Source: Hammouamri, Khalfaoui-Hassani & Masquelier 2024 (arXiv 2306.17670). Delays in steps.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from plexus.errors import DeviceError, DtypeError, RangeError, ShapeError
from plexus.nn.synapses._delay_kernel import Bump, DelayKernel, DelayState

__all__ = ["DelayState", "DelayedConv2d", "DelayedLinear"]


class DelayedLinear(DelayKernel):
    """`current, state = DelayedLinear(80, 64, max_delay=12)(spikes)`; spikes `[time, batch, n_in]`.

    Goes before any layer over time. In a loop (current of its own spikes), give it one step at a time, with its state:
    the step's spikes count for delay 0, so within the loop that is one step.

    Args:
        n_in, n_out: number of sources and of targets.
        max_delay: the largest delay in steps, at least 1 (T_d - 1 in the paper).
        learn: whether delays are learnt; without, they stay where they were drawn.
        kernel: the bump, `"gaussian"` or `"triangle"`.
        sigma: its width in steps; by default (max_delay + 1) // 2, where annealing starts. See `DelayAnneal`.
        bias: whether targets have a bias.
        straight_through: round the delays forwards and learn them by the slope of the bump.
        generator: source of the weights (uniform, He et al. 2015) and delays (uniform in [0, max_delay]).

    Attributes:
        weight, delay: parameters `[n_out, n_in]`. `delays` is `delay` within its range, which
        `plexus.nn.project_` restores after a step of learning.

    Raises:
        RangeError: `max_delay` is below 1, or `sigma` is negative, or zero while Gaussian delays are learnt.
        ShapeError: there is no source or target, or the input is not `[time, batch, n_in]`.

    Examples:
        >>> layer = DelayedLinear(1, 1, max_delay=3, learn=False).hard(True)
        >>> with torch.no_grad():
        ...     _ = layer.weight.fill_(2.0), layer.delay.fill_(1.75)
        >>> current, state = layer(torch.tensor([1.0, 0, 0, 0]).reshape(4, 1, 1))
        >>> current.flatten().tolist(), layer.delays
        ([0.0, 0.0, 2.0, 0.0], tensor([[1.7500]]))
        >>> layer.round_().delays
        tensor([[2.]])
    """

    axes = "t b u"

    def __init__(
        self,
        n_in: int,
        n_out: int,
        max_delay: int,
        *,
        learn: bool = True,
        kernel: Bump = "gaussian",
        sigma: float | None = None,
        bias: bool = False,
        straight_through: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(
            n_in,
            n_out,
            max_delay,
            learn=learn,
            kernel=kernel,
            sigma=sigma,
            straight_through=straight_through,
            generator=generator,
        )
        self.n_in, self.n_out = n_in, n_out
        self.bias = nn.Parameter(torch.zeros(n_out)) if bias else None

    def initial_state(self, batch: int, *, dtype: torch.dtype | None = None) -> DelayState:
        """Silence before the first step."""
        return DelayState(self.weight.new_zeros(batch, self.max_delay, self.n_in, dtype=dtype or self.weight.dtype))

    def forward(self, x: Tensor, state: DelayState | None = None) -> tuple[Tensor, DelayState]:
        """Currents `[time, batch, n_out]`, and the last inputs."""
        check_input(x, self.weight, (self.n_in,))
        rows, after = with_past(x, state, self.initial_state(x.shape[1], dtype=x.dtype))
        current = self.current(rows)
        return current if self.bias is None else current + self.bias, after

    def extra_repr(self) -> str:
        """What `print(layer)` shows."""
        return f"{self.n_in}, {self.n_out}, max_delay={self.max_delay}, {_shown(self)}, bias={self.bias is not None}"


class DelayedConv2d(DelayKernel):
    """`current, state = DelayedConv2d(2, 8, 3, max_delay=6)(frames)`; frames `[time, batch, channel, y, x]`.

    A convolution over space in which each of the `kernel_size`² synapses of a pair of channels has its own delay.

    Args:
        n_in, n_out: number of channels.
        kernel_size: side of the square patch.
        max_delay: the largest delay in steps, at least 1.
        stride, padding: as for `torch.nn.Conv2d`.
        learn, kernel, sigma, straight_through, generator: as for `DelayedLinear`.

    Attributes:
        weight, delay: parameters `[n_out, n_in · kernel_size²]`.

    Raises:
        RangeError: `max_delay`, a size or `sigma` is out of range. ShapeError: the input does not fit.

    Examples:
        >>> current, state = DelayedConv2d(2, 8, 3, max_delay=6, padding=1)(torch.rand(5, 4, 2, 9, 9))
        >>> current.shape, state.past.shape
        (torch.Size([5, 4, 8, 9, 9]), torch.Size([4, 6, 2, 9, 9]))
    """

    axes = "t b u y x"

    def __init__(
        self,
        n_in: int,
        n_out: int,
        kernel_size: int,
        max_delay: int,
        *,
        stride: int = 1,
        padding: int = 0,
        learn: bool = True,
        kernel: Bump = "gaussian",
        sigma: float | None = None,
        straight_through: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        if kernel_size < 1 or stride < 1 or padding < 0:
            raise RangeError("a size is out of range", given=(kernel_size, stride, padding), expected=">= (1, 1, 0)")
        super().__init__(
            n_in * kernel_size**2,
            n_out,
            max_delay,
            learn=learn,
            kernel=kernel,
            sigma=sigma,
            straight_through=straight_through,
            generator=generator,
        )
        self.n_in, self.n_out = n_in, n_out
        self.kernel_size, self.stride, self.padding = kernel_size, stride, padding

    def forward(self, x: Tensor, state: DelayState | None = None) -> tuple[Tensor, DelayState]:
        """Currents `[time, batch, n_out, y, x]`, and the last inputs."""
        check_input(x, self.weight, (self.n_in, None, None))
        silence = DelayState(x.new_zeros(x.shape[1], self.max_delay, *x.shape[2:]))
        rows, after = with_past(x, state, silence)
        patches = nn.functional.unfold(
            rows.flatten(0, 1), self.kernel_size, padding=self.padding, stride=self.stride
        )  # [row · batch, source, place]
        places = patches.shape[2]
        by_place = patches.transpose(1, 2).reshape(rows.shape[0], -1, patches.shape[1])
        current = self.current(by_place).unflatten(1, (x.shape[1], places)).transpose(2, 3)
        height = (x.shape[3] + 2 * self.padding - self.kernel_size) // self.stride + 1
        return current.unflatten(3, (height, -1)), after

    def initial_state(self, batch: int, *, dtype: torch.dtype | None = None) -> None:
        """None, as rest: the size of the frames is known only with the first input."""

    def extra_repr(self) -> str:
        """What `print(layer)` shows."""
        size = f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}"
        return f"{self.n_in}, {self.n_out}, {size}, max_delay={self.max_delay}, {_shown(self)}"


def _shown(layer: DelayKernel) -> str:
    if layer.is_hard:
        return "hard"
    return f"{'learnt' if layer.learn else 'fixed'}, {layer.kernel} σ={layer.sigma:g}"


def check_input(x: Tensor, weight: Tensor, units: tuple[int | None, ...]) -> None:
    """Refuse an input that is not `[time, batch, unit…]`."""
    shown = ", ".join("·" if size is None else str(size) for size in units)
    if not isinstance(x, Tensor):
        raise DtypeError("the input is not a tensor", given=type(x).__name__, expected=f"[time, batch, {shown}]")
    fits = x.dim() == 2 + len(units) and all(a in (None, b) for a, b in zip(units, x.shape[2:], strict=True))
    if not fits:
        mend = None
        if x.dim() == 1 + len(units):
            mend = "for one step of a batch give x.unsqueeze(0), for one sample over time x.unsqueeze(1)"
        raise ShapeError(
            "the input does not fit the layer", given=tuple(x.shape), expected=f"[time, batch, {shown}]", mend=mend
        )
    if not x.is_floating_point():
        raise DtypeError("the input is not floating point", given=x.dtype, mend="convert it, e.g. x.float()")
    if x.device != weight.device:
        raise DeviceError("the input lies on another device than the layer", given=x.device, expected=weight.device)


def with_past(x: Tensor, state: DelayState | None, silence: DelayState) -> tuple[Tensor, DelayState]:
    """The input `[past + time, batch, …]` with the steps before it, and the state after it."""
    past = silence.past if state is None else state.past
    if past.shape != silence.past.shape:
        raise ShapeError(
            "the state does not fit the input", given=tuple(past.shape), expected=tuple(silence.past.shape)
        )
    if past.dtype != x.dtype:
        raise DtypeError("state and input have different dtypes", given=(past.dtype, x.dtype))
    rows = torch.cat([past.transpose(0, 1), x])
    return rows, DelayState(rows[rows.shape[0] - past.shape[1] :].transpose(0, 1).contiguous())
