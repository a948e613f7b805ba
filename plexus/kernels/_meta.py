"""The meta neuron's loop over time; its equations stand in `_meta_model`."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from plexus.errors import RangeError, UnknownNameError
from plexus.kernels._meta_model import META_DYNAMICS
from plexus.kernels._neuron import BackendName, Neuron, Slope
from plexus.units._draws import uniform
from plexus.units._port import Port

__all__ = ["MetaState", "logistic_noise", "meta"]


class MetaState(NamedTuple):
    """What a meta neuron remembers."""

    v: Tensor  # membrane potential                 [batch, unit…]
    u: Tensor  # recovery                           [batch, unit…]
    z: Tensor  # what it last emitted               [batch, unit…]


_neuron = Neuron(META_DYNAMICS, MetaState)


def meta(
    x: Tensor,
    state: MetaState | None = None,
    *,
    decay: Tensor | float,
    threshold: Tensor | float = 1.0,
    gain: Tensor | float = 1.0,
    reset_value: Tensor | float = 0.0,
    order: Literal[1, 2] = 2,
    form: Literal["linear", "quadratic"] = "linear",
    recovery: Tensor | float = 0.1,
    coupling: Tensor | float = 0.2,
    jump: Tensor | float = 0.1,
    temperature: Tensor | float = 0.1,
    noise: Tensor | None = None,
    limit: float = 4.0,
    detach_reset: bool = False,
    surrogate: Slope = "arctan",
    smooth: bool = False,
    port: Port | None = None,
    backend: BackendName = "auto",
) -> tuple[Tensor, MetaState]:
    """Meta neurons over time: `spikes, state = meta(current, decay=0.9)`.

        m[t] = λ v[t-1] + R x[t] - u[t-1]                 w[t] = u[t-1] + a (b m[t] - u[t-1])
        z[t] = port(H(m[t] - θ))     or, with noise,      z[t] = port(H(m[t] - θ - Δ noise[t]))
        v[t] = (1 - z[t]) m[t] + z[t] v_r                 u[t] = w[t] + d z[t]

    Args:
        x: input current `[time, batch, unit…]`.
        state: where to start, each tensor `[batch, unit…]`; None starts at zero.
        decay: λ, factor of the potential per step; a number or a tensor that broadcasts to `[unit…]`, like all numbers.
        threshold: θ. gain: R. reset_value: v_r, where a spike puts the potential.
        order: 1 leaves the recovery out.
        form: `"quadratic"` has the membrane m = clip(v + (1 - λ)(v² - v + R x - u), ±limit).
        recovery: a, the share of the way to b·m that the recovery goes per step.
        coupling: b. jump: d, what a spike adds to the recovery.
        temperature: Δ, width of the band around the threshold in which a spike is a matter of chance.
        noise: logistic noise like x (see `logistic_noise`), which makes each spike a draw with probability
            σ((m - θ)/Δ), whose derivative is the spike's; None: spikes follow the threshold alone.
        limit: bound of the potential in the quadratic form.
        detach_reset: let no gradient flow through the reset.
        surrogate: a `Surrogate`, its name, or a function u -> dz/du; unused with noise.
        smooth: emit the surrogate's integral, or with noise the probability, so that all derivatives are true ones.
        port: gain and clamp of what each unit emits.
        backend: `"fused"` raises where the fused loop cannot run, `"eager"` asks for the reference.

    Returns:
        Spikes of the shape of x, and the state after the last step.

    Raises:
        ShapeError, DtypeError, DeviceError: inputs, state or numbers do not fit one another.
        RangeError: the limit is not positive. UnknownNameError: another order or form.
        UnsupportedError: `backend="fused"` and there is no fused loop for this call.

    Examples:
        >>> spikes, state = meta(torch.full((9, 1, 1), 0.6), decay=0.9, jump=0.5)
        >>> spikes.flatten().nonzero().flatten().tolist()       # the first spike's recovery holds back the second
        [1, 8]
    """
    if order not in (1, 2):
        raise UnknownNameError.among("order of the meta neuron", str(order), ("1", "2"))
    if form not in ("linear", "quadratic"):
        raise UnknownNameError.among("form of the meta neuron", form, ("linear", "quadratic"))
    if not limit > 0:
        raise RangeError("the bound of the potential is not positive", given=limit, expected="a number > 0")
    numbers = {
        "decay": decay,
        "gain": gain,
        "threshold": threshold,
        "reset": reset_value,
        "temperature": temperature,
        "recovery": recovery,
        "coupling": coupling,
        "jump": jump,
    }
    options = {
        "second": order == 2,
        "quadratic": form == "quadratic",
        "stochastic": noise is not None,
        "detach": detach_reset,
    }
    still = x.new_zeros((1,) * x.dim()).expand(x.shape) if noise is None else noise
    return _neuron(
        (x, still),
        state,
        numbers,
        options=options,
        constants=(limit,),
        surrogate=surrogate,
        smooth=smooth,
        port=port,
        backend=backend,
    )


def logistic_noise(like: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Logistic noise of the shape, dtype and device of a tensor; a threshold with it is crossed with probability σ(·).

    Drawn element after element, so that a sequence drawn in pieces is the sequence drawn whole.

    Examples:
        >>> noise = logistic_noise(torch.empty(10_000), torch.Generator().manual_seed(0))
        >>> abs((noise < 1.0).float().mean().item() - torch.sigmoid(torch.tensor(1.0)).item()) < 0.01
        True
    """
    # in float32 the tails end at ±17; half precision would have hardly any
    dtype = torch.promote_types(like.dtype, torch.float32)
    drawn = uniform(like.shape, dtype=dtype, device=like.device, generator=generator)
    return torch.logit(drawn, eps=torch.finfo(dtype).eps / 4).to(like.dtype)
