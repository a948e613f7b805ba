"""Echo-state reservoirs: a fixed random recurrent network of rate units, read out by a linear model.

    x[t] = (1 - a) x[t-1] + a f(W e[t-1] + W_in u[t] + b),    e[t] = port(x[t])   (e = x where no edit is active)

With Dale's law every unit is excitatory or inhibitory: W = E - I with E, I ≥ 0 and one sign per column. Of N units a
share f_I is inhibitory, each pair is connected with probability p, no unit projects to itself, and with k = pN

    E_ij = g U(0, 2) / sqrt(k (1 - f_I)),
    I_ij = c U(0, 2),   c such that the mean row sum of I is (1 - β) times the mean row sum of E.

β is the global balance: 0 balances excitation and inhibition, β > 0 lets excitation dominate, β < 0 over-inhibits.
Without Dale's law the weights are g U(-√3, √3) / sqrt(k), whose spectral radius is about g; `spectral_radius` sets it
exactly.

Sources: Jaeger 2001 (echo states); Srinivasan, Plenz & Girvan 2025, arXiv 2504.12480 (Dale's law, global balance; their
scaling of the entries is not published, the one above is ours). Rates are dimensionless, one step has no unit.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from plexus.errors import DtypeError, RangeError, ShapeError
from plexus.kernels._memory import empty
from plexus.kernels._reservoir import activation_function, activation_slope, plain, reservoir
from plexus.units._port import Port


class EchoStateState(NamedTuple):
    """What an `EchoState` carries from one call to the next."""

    x: Tensor
    """Rates before the port, `[batch, unit]`."""


class EchoState(nn.Module):
    """A reservoir: `states, state = EchoState(1, 200)(u)`; u `[time, batch, feature]`, states `[time, batch, unit]`.

    All weights are buffers: nothing here is trained by gradient descent, though gradients pass through.

    Args:
        in_features: size of the input.
        units: number of units N.
        inhibitory: share f_I of inhibitory units, in (0, 1); used with Dale's law.
        density: connection probability p, in (0, 1].
        balance: global balance β, at most 1; used with Dale's law.
        gain: g, the strength of the recurrent weights.
        input_scale: input weights are uniform in ± this.
        bias_scale: biases are uniform in ± this.
        leak: share a of the new value in each step, in (0, 1].
        activation: `sigmoid`, `tanh`, `relu` or `identity`.
        dale: one sign per column.
        spectral_radius: rescale W to this spectral radius.
        generator: source of the random weights.
        dtype: of the weights (default: torch's default dtype).

    Raises:
        RangeError: a number lies outside its range. ShapeError, DtypeError: see `forward`.

    Examples:
        >>> generator = torch.Generator().manual_seed(0)
        >>> reservoir = EchoState(1, 50, generator=generator)
        >>> u = torch.rand(100, 2, 1, generator=generator)
        >>> states, state = reservoir(u)
        >>> states.shape, state.x.shape
        (torch.Size([100, 2, 50]), torch.Size([2, 50]))
        >>> again, _ = reservoir(u[60:], reservoir(u[:60])[1])  # in two pieces: the same
        >>> torch.allclose(again, states[60:])
        True
    """

    axes = "t b u"
    port: Port | None = None
    weight: Tensor
    mask: Tensor
    signs: Tensor
    input_weight: Tensor
    bias: Tensor

    def __init__(
        self,
        in_features: int,
        units: int,
        *,
        inhibitory: float = 0.5,
        density: float = 0.1,
        balance: float = 0.0,
        gain: float = 2.0,
        input_scale: float = 0.3,
        bias_scale: float = 0.0,
        leak: float = 1.0,
        activation: str = "sigmoid",
        dale: bool = True,
        spectral_radius: float | None = None,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        for name, size in (("in_features", in_features), ("units", units)):
            if not isinstance(size, int) or size < 1:
                raise RangeError(f"a reservoir needs {name} of at least 1", given=size)
        for name, share, inside in (
            ("inhibitory", inhibitory, 0 < inhibitory < 1),
            ("density", density, 0 < density <= 1),
            ("balance", balance, balance <= 1),
            ("gain", gain, gain >= 0),
        ):
            if not inside:
                raise RangeError(f"{name} lies outside its range", given=share)
        dtype = torch.get_default_dtype() if dtype is None else dtype

        def uniform(*shape: int) -> Tensor:
            return torch.rand(*shape, generator=generator, dtype=torch.float64)

        mask = (uniform(units, units) < density) & ~torch.eye(units, dtype=torch.bool)
        fan_in = max(density * units, 1.0)
        if dale:
            first_inhibitory = units - max(1, min(units - 1, round(inhibitory * units))) if units > 1 else 1
            signs = torch.where(torch.arange(units) < first_inhibitory, 1.0, -1.0).double()
            magnitude = 2 * uniform(units, units) * mask
            excitation = gain * magnitude * (signs > 0) / (fan_in * (1 - inhibitory)) ** 0.5
            inhibition = magnitude * (signs < 0)
            total = inhibition.sum()
            scale = (1 - balance) * excitation.sum() / total if total > 0 else total
            weight = excitation - scale * inhibition
        else:
            signs = torch.zeros(units, dtype=torch.float64)
            weight = gain * (3 / fan_in) ** 0.5 * (2 * uniform(units, units) - 1) * mask
        if spectral_radius is not None:
            weight = scale_to_radius(weight, spectral_radius)
        self._set(
            weight.to(dtype),
            input_scale * (2 * uniform(units, in_features) - 1).to(dtype),
            bias_scale * (2 * uniform(units) - 1).to(dtype),
            signs.to(dtype),
            mask,
            leak,
            activation,
        )

    @classmethod
    def from_weights(
        cls,
        weight: Tensor,
        input_weight: Tensor,
        bias: Tensor | None = None,
        *,
        leak: float = 1.0,
        activation: str = "sigmoid",
        dale: bool = True,
    ) -> EchoState:
        """A reservoir of given weights.

        Args:
            weight: `[unit (to), unit (from)]`. input_weight: `[unit, feature]`. bias: `[unit]`, default zero.

        Raises:
            RangeError: with `dale`, a column holds both signs. ShapeError: the sizes do not fit.

        Examples:
            >>> EchoState.from_weights(torch.eye(3) * 0.5, torch.ones(3, 1), activation="tanh").units
            3
        """
        units = weight.shape[0]
        if weight.dim() != 2 or weight.shape != (units, units) or input_weight.dim() != 2 or len(input_weight) != units:
            raise ShapeError(
                "the weights of a reservoir do not fit",
                given=(tuple(weight.shape), tuple(input_weight.shape)),
                expected="weight [unit, unit] and input_weight [unit, feature]",
            )
        if bias is not None and bias.shape != (units,):
            raise ShapeError("the bias does not fit the units", given=tuple(bias.shape), expected=(units,))
        made = cls.__new__(cls)
        nn.Module.__init__(made)
        signs = dale_signs(weight) if dale else torch.zeros(units)
        bias = weight.new_zeros(units) if bias is None else bias
        mask = weight != 0
        made._set(weight.clone(), input_weight.to(weight), bias.to(weight), signs.to(weight), mask, leak, activation)
        return made

    def _set(
        self,
        weight: Tensor,
        input_weight: Tensor,
        bias: Tensor,
        signs: Tensor,
        mask: Tensor,
        leak: float,
        activation: str,
    ) -> None:
        if not 0 < leak <= 1:
            raise RangeError("the leak of a reservoir lies in (0, 1]", given=leak)
        activation_function(activation)
        self.units, self.in_features = input_weight.shape
        self.leak, self.activation = leak, activation
        self.register_buffer("weight", weight)
        self.register_buffer("input_weight", input_weight)
        self.register_buffer("bias", bias)
        self.register_buffer("signs", signs)
        self.register_buffer("mask", mask)

    @property
    def dale(self) -> bool:
        """Whether every unit has one sign."""
        return bool((self.signs != 0).any())

    def initial_state(self, batch: int = 1) -> EchoStateState:
        """Rest: all rates zero, `[batch, unit]`."""
        return EchoStateState(self.weight.new_zeros(batch, self.units))

    def drive(self, u: Tensor) -> Tensor:
        """`W_in u + b`, `[time, batch, unit]`, from `u` `[time, batch, feature]`.

        Raises:
            ShapeError: `u` is not time-first with `in_features` features. DtypeError: another dtype than the weights'.
        """
        if u.dim() != 3 or u.shape[2] != self.in_features:
            raise ShapeError(
                "the input of a reservoir is time-first",
                given=tuple(u.shape),
                expected=f"[time, batch, {self.in_features}]",
                mend="u.unsqueeze(1) for one sequence [time, feature]; u.transpose(0, 1) for [batch, time, feature]",
            )
        if u.shape[1] == 0:
            raise ShapeError("the batch is empty", given=tuple(u.shape))
        if u.dtype != self.weight.dtype:
            raise DtypeError(
                "input and weights differ in dtype",
                given=u.dtype,
                expected=self.weight.dtype,
                mend=f"u.to({self.weight.dtype}) or reservoir.to({u.dtype})",
            )
        if u.device.type != "cpu" or not plain(u, self.input_weight, self.bias):
            return nn.functional.linear(u, self.input_weight, self.bias)
        drive = empty((u.shape[0] * u.shape[1], self.units), u)
        return torch.addmm(self.bias, u.reshape(-1, self.in_features), self.input_weight.T, out=drive).reshape(
            u.shape[0], u.shape[1], self.units
        )

    def forward(self, u: Tensor, state: EchoStateState | None = None) -> tuple[Tensor, EchoStateState]:
        """Rates `[time, batch, unit]` and the state after the last step.

        Raises:
            ShapeError: the input is not time-first or the state is of another batch. DtypeError: dtypes differ.
            RangeError: the state is not finite, before or after the run (the input held NaN, or the network diverged).
        """
        drive = self.drive(u)
        start = self.initial_state(u.shape[1]).x if state is None else state[0]
        if state is not None and not bool(torch.isfinite(start).all()):
            raise RangeError("the state of the reservoir holds NaN or infinity", mend="start from state=None")
        rates, final = reservoir(drive, self.weight, start, leak=self.leak, activation=self.activation, port=self.port)
        if not bool(torch.isfinite(final).all()):
            raise RangeError(
                "the state of the reservoir became NaN or infinite",
                mend="look for NaN in the input, or lower the gain of an unbounded activation",
            )
        return rates, EchoStateState(final)

    def jacobian(self, u: Tensor, state: EchoStateState) -> Tensor:
        """dx[t]/dx[t-1] at one step without edits, `(1 - a) 1 + a diag(f'(z)) W`, `[batch, unit, unit]`.

        Args:
            u: the step's input, `[batch, feature]`. state: before the step.

        Examples:
            >>> r = EchoState.from_weights(torch.tensor([[0.5]]), torch.ones(1, 1), activation="identity", leak=0.5)
            >>> r.jacobian(torch.zeros(1, 1), r.initial_state(1))
            tensor([[[0.7500]]])
        """
        z = self.drive(u.unsqueeze(0))[0] + state.x @ self.weight.T
        slope = activation_slope(self.activation, z).unsqueeze(-1)
        identity = torch.eye(self.units, dtype=z.dtype, device=z.device)
        return (1 - self.leak) * identity + self.leak * slope * self.weight

    def free_run(
        self, output_weight: Tensor, output_bias: Tensor, state: EchoStateState, steps: int
    ) -> tuple[Tensor, EchoStateState]:
        """Let the reservoir generate: its own linear read-out of step t is its input of step t + 1.

        Since u[t] = V e[t-1] + c, the loop closes exactly into the weight W + W_in V and the bias b + W_in c.

        Args:
            output_weight: V, `[in_features, unit]`. output_bias: c, `[in_features]`.
            state: where to start. steps: how many inputs to generate.

        Returns:
            The generated inputs `[steps, batch, in_features]`, and the state after them.

        Examples:
            >>> r = EchoState.from_weights(torch.zeros(1, 1), torch.ones(1, 1), activation="identity", dale=False)
            >>> r.free_run(torch.tensor([[0.5]]), torch.zeros(1), EchoStateState(torch.ones(1, 1)), 3)[0].flatten()
            tensor([0.5000, 0.2500, 0.1250])
        """
        if output_weight.shape != (self.in_features, self.units) or output_bias.shape != (self.in_features,):
            raise ShapeError(
                "the read-out does not generate the input",
                given=(tuple(output_weight.shape), tuple(output_bias.shape)),
                expected=f"[{self.in_features}, {self.units}] and [{self.in_features}]",
            )
        drive = (self.bias + self.input_weight @ output_bias).expand(steps, len(state.x), self.units)
        weight = self.weight + self.input_weight @ output_weight
        rates, final = reservoir(
            drive.contiguous(), weight, state.x, leak=self.leak, activation=self.activation, port=self.port
        )
        first = state.x if self.port is None else self.port.apply(state.x)
        before = torch.cat([first.unsqueeze(0), rates])[:steps]
        return nn.functional.linear(before, output_weight, output_bias), EchoStateState(final)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.units}, activation={self.activation!r}, leak={self.leak}, dale={self.dale}"


def dale_signs(weight: Tensor) -> Tensor:
    """The sign of each source unit (column), `[unit]`: +1, -1, or 0 where the column is empty.

    Raises:
        RangeError: a column holds both signs, so its unit is neither excitatory nor inhibitory.

    Examples:
        >>> dale_signs(torch.tensor([[0.0, -1.0], [2.0, 0.0]]))
        tensor([ 1., -1.])
    """
    positive, negative = (weight > 0).any(0), (weight < 0).any(0)
    mixed = (positive & negative).nonzero().flatten().tolist()
    if mixed:
        raise RangeError(
            "columns of the weight hold both signs, against Dale's law",
            given=f"{len(mixed)} units, the first are {mixed[:5]}",
            expected="one sign per column (source unit)",
            mend="pass dale=False, or separate the unit into an excitatory and an inhibitory one",
        )
    return positive.to(weight.dtype) - negative.to(weight.dtype)


def scale_to_radius(weight: Tensor, radius: float) -> Tensor:
    """The weight, scaled to a spectral radius.

    Raises:
        RangeError: the radius is negative, or the weight's own is zero so that no factor helps.

    Examples:
        >>> scale_to_radius(torch.diag(torch.tensor([1.0, 4.0])), 2.0).diagonal()
        tensor([0.5000, 2.0000])
    """
    if radius < 0:
        raise RangeError("a spectral radius is not negative", given=radius)
    own = float(torch.linalg.eigvals(weight).abs().max())
    if own == 0:
        raise RangeError("the weight has spectral radius zero and cannot be scaled", mend="raise the density")
    return weight * (radius / own)
