"""Time loop of spiking units whose synapses are modulated by astrocytes that hear the units' own spikes.

    a[t] = λ a[t-1] + u[t] + c z[t-1]                     calcium, u: what the inputs add to it
    (p, h)[t] = M port_a(a[t])                            gliotransmission
    J[t] = I[t] (1 + tanh p[t]) + h[t]                    synaptic current, scaled and biased
    m[t] = α v[t-1] + J[t]
    z[t] = port(H(m[t] - θ)),    v[t] = (1 - z[t]) m[t]

Backwards, with δv, δa, δz what later steps ask of v[t], a[t], z[t] and σ the surrogate derivative:

    δm[t] = δv (1 - z) + (δz + ∂z - δv m) port' σ(m - θ)
    δa[t] = λ δa[t+1] + ∂a + port_a' Mᵀ(δm I (1 - tanh² p), δm)

What does not feed back through time (weights, decays, currents) follows from δm and δa over all time at once.
The fused loop runs on the CPU in float32 and float64; elsewhere, under `torch.func` transforms, forward-mode
derivatives and a second derivative the eager reference does.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from plexus.errors import ShapeError
from plexus.kernels._astrocyte_loops import KINDS, compiled
from plexus.kernels._frame import options_from, options_key, out_of_reach, spike_function
from plexus.kernels._lif_model import LIF_DYNAMICS
from plexus.kernels._surrogate import Surrogate
from plexus.units._port import Port

__all__ = ["AstrocyteLoop", "astrocyte_loop"]


class AstrocyteLoop(NamedTuple):
    """What the loop gives back."""

    spikes: Tensor  # what the units emit                 [time, batch, unit]
    calcium: Tensor  # a, before its port                 [time, batch, unit]
    v: Tensor  # membrane after the last step             [batch, unit]


def astrocyte_loop(
    drive: Tensor,
    current: Tensor,
    v: Tensor,
    a: Tensor,
    z: Tensor,
    mixed: Tensor,
    *,
    keep: Tensor,
    listen: Tensor,
    decay: Tensor,
    threshold: Tensor,
    gain: bool = True,
    bias: bool = True,
    surrogate: Surrogate | None = None,
    port: Port | None = None,
    calcium_port: Port | None = None,
    backend: str = "auto",
) -> AstrocyteLoop:
    """Spiking units and the astrocytes that hear them, step by step; the equations stand at the head of the module.

    Args:
        drive: u, what the inputs add to the calcium, `[time, batch, unit]`.
        current: I, the synaptic current, `[time, batch, unit]`.
        v, a, z: membrane, calcium and last spike before the first step, each `[batch, unit]`.
        mixed: Mᵀ `[unit, 2 · unit]`, gain first; `[unit, unit]` with one of `gain` and `bias`.
        keep, listen, decay, threshold: λ, c, α, θ, each `[unit]`.
        gain, bias: whether the astrocytes scale the current, and whether they add to it.
        surrogate: derivative of the spike.
        port: gain and clamp of what the units emit. calcium_port: of the calcium that is read.
        backend: `"auto"`, or `"eager"` for the reference.

    Raises:
        ShapeError: the tensors do not fit each other.

    Examples:
        >>> import torch
        >>> one, rest = torch.ones(1), torch.zeros(1, 1)
        >>> out = astrocyte_loop(
        ...     torch.zeros(4, 1, 1), torch.full((4, 1, 1), 0.6), rest, rest, rest, torch.zeros(1, 2),
        ...     keep=0.9 * one, listen=0.1 * one, decay=one, threshold=one,
        ... )
        >>> out.spikes.flatten().tolist(), round(out.calcium[-1].item(), 3)
        ([0.0, 1.0, 0.0, 1.0], 0.09)
    """
    shape = drive.shape
    units = shape[-1]
    if drive.dim() != 3 or current.shape != shape or any(part.shape != shape[1:] for part in (v, a, z)):
        raise ShapeError(
            "the parts of the loop do not fit each other",
            given=[tuple(part.shape) for part in (drive, current, v, a, z)],
            expected="two of [time, batch, unit], three of [batch, unit]",
        )
    if mixed.shape != (units, units * (gain + bias)) or not (gain or bias):
        raise ShapeError(
            "the mixing matrix does not fit", given=tuple(mixed.shape), expected=(units, units * (gain + bias))
        )
    surrogate = surrogate or Surrogate()
    ports = torch.cat([_rows(port, units, drive), _rows(calcium_port, units, drive)])
    tensors = [drive, current, v, a, z, mixed, keep, listen, decay, threshold]
    options = f"{int(gain)}{int(bias)},{surrogate.name}"
    scale = [float(surrogate.width or 1.0), float(surrogate.height)]
    fused = drive.device.type == "cpu" and drive.dtype in (torch.float32, torch.float64) and backend != "eager"
    if not torch.compiler.is_compiling() and out_of_reach(tensors):
        fused = False
    if not fused or ports.requires_grad or threshold.requires_grad:
        return AstrocyteLoop(*_eager(tensors, ports, scale, options))
    spikes, calcium, _, _, last = _loop(tensors, ports, scale, options)
    return AstrocyteLoop(spikes, calcium, last)


def _rows(port: Port | None, units: int, like: Tensor) -> Tensor:
    return torch.stack(list((port or Port()).dense(units, like)))


def _eager(tensors: list[Tensor], ports: Tensor, scale: list[float], options: str) -> tuple[Tensor, Tensor, Tensor]:
    drive, current, v, a, z, mixed, keep, listen, decay, threshold = tensors
    width, height = scale
    gain, bias, name = options[0] == "1", options[1] == "1", options[3:]
    chosen = options_from(LIF_DYNAMICS, options_key(LIF_DYNAMICS, {"surrogate": name}))
    spike = spike_function(chosen, width, height, None)
    out, calcium, units = [], [], drive.shape[-1]
    for u, j in zip(drive.unbind(0), current.unbind(0), strict=True):
        a = keep * a + u + listen * z
        calcium.append(a)
        heard = _through(a, ports[4:]) @ mixed
        if gain:
            j = j * (1 + heard[..., :units].tanh())
        if bias:
            j = j + heard[..., -units:]
        m = decay * v + j
        z = _through(spike(m - threshold), ports[:4])
        v = (1 - z) * m
        out.append(z)
    if not out:
        return torch.zeros_like(drive), torch.zeros_like(drive), v
    return torch.stack(out), torch.stack(calcium), v


def _through(x: Tensor, port: Tensor) -> Tensor:
    return torch.minimum(torch.maximum(port[0] * x + port[1], port[2]), port[3])


def _numpy(tensors: list[Tensor]) -> list[Any]:
    return [tensor.detach().contiguous().numpy() for tensor in tensors]


@torch.library.custom_op("plexus::astrocyte_loop", mutates_args=())
def _loop(tensors: list[Tensor], ports: Tensor, scale: list[float], options: str) -> list[Tensor]:
    drive, current, v, a, z, mixed, keep, listen, decay, threshold = tensors
    gain, bias = options[0] == "1", options[1] == "1"
    memory = [part.detach().clone(memory_format=torch.contiguous_format) for part in (v, a, z)]
    found = [drive.new_empty(drive.shape) for _ in range(3)]
    gains = drive.new_empty(drive.shape if gain else (1, 1, 1))
    compiled("_forward")(
        *_numpy([drive, current]),
        *_numpy(memory),
        *_numpy([mixed, listen, keep, decay, threshold, ports[:4], ports[4:]]),
        gain,
        bias,
        *(part.numpy() for part in found),
        gains.numpy(),
    )
    spikes, calcium, membrane = found
    return [spikes, calcium, membrane, gains, memory[0]]


@_loop.register_fake
def _(tensors: list[Tensor], ports: Tensor, scale: list[float], options: str) -> list[Tensor]:
    drive, v = tensors[0], tensors[2]
    gains = drive.new_empty(drive.shape if options[0] == "1" else (1, 1, 1))
    return [*(drive.new_empty(drive.shape) for _ in range(3)), gains, v.new_empty(v.shape)]


@torch.library.custom_op("plexus::astrocyte_loop_backward", mutates_args=())
def _loop_back(
    tensors: list[Tensor], ports: Tensor, scale: list[float], options: str, kept: list[Tensor], grads: list[Tensor]
) -> list[Tensor]:
    """`[δm, δa, d_v, d_a, d_z]`: what is asked of each step, and of the state before the first."""
    _, current, _, _, _, mixed, keep, listen, decay, threshold = tensors
    grad, grad_calcium, grad_v = grads
    memory = [grad_v.detach().clone(memory_format=torch.contiguous_format), torch.zeros_like(grad_v).contiguous()]
    memory.append(torch.zeros_like(memory[1]))
    found = [current.new_empty(current.shape) for _ in range(2)]
    compiled("_backward")(
        *_numpy([current, mixed.T, listen, keep, decay, threshold, ports[:4], ports[4:]]),
        options[0] == "1",
        options[1] == "1",
        *_numpy(kept),
        *(current.new_full((1,), number).numpy()[0] for number in scale),
        KINDS.index(options[3:]),
        *_numpy([grad, grad_calcium]),
        *(part.numpy() for part in memory),
        *(part.numpy() for part in found),
    )
    return [*found, *memory]


@_loop_back.register_fake
def _(
    tensors: list[Tensor], ports: Tensor, scale: list[float], options: str, kept: list[Tensor], grads: list[Tensor]
) -> list[Tensor]:
    drive, v = tensors[0], tensors[2]
    return [*(drive.new_empty(drive.shape) for _ in range(2)), *(v.new_empty(v.shape) for _ in range(3))]


def _save(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    tensors, ports, ctx.scale, ctx.options = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors, ports, *output[:4])


def _differentiate(ctx: Any, grads: list[Tensor | None]) -> tuple[Any, ...]:
    *tensors, ports, spikes, calcium, membrane, gains = ctx.saved_tensors
    _, current, v, a, z, *_ = tensors
    asked = [
        torch.zeros_like(like) if g is None else g
        for g, like in zip((grads[0], grads[1], grads[4]), (spikes, calcium, v), strict=True)
    ]
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        return _differentiate_eagerly(ctx, tensors, ports, asked)
    kept = [spikes, calcium, membrane, gains]
    d_m, d_a, *d_memory = _loop_back(tensors, ports, ctx.scale, ctx.options, kept, asked)
    gain, bias = ctx.options[0] == "1", ctx.options[1] == "1"
    heard = [d_m * current * (1 - gains * gains)] if gain else []
    heard += [d_m] if bias else []
    d_mixed = _through(calcium, ports[4:]).flatten(0, 1).T @ torch.cat(heard, -1).flatten(0, 1)
    before_z, before_a = torch.cat([z[None], spikes])[:-1], torch.cat([a[None], calcium])[:-1]
    before_v = torch.cat([v[None], (1 - spikes) * membrane])[:-1]
    over = (0, 1)
    return (
        [
            d_a,
            d_m * (1 + gains) if gain else d_m,
            *d_memory,
            d_mixed,
            (d_a * before_a).sum(over),
            (d_a * before_z).sum(over),
            (d_m * before_v).sum(over),
            None,
        ],
        None,
        None,
        None,
    )


def _differentiate_eagerly(ctx: Any, tensors: list[Tensor], ports: Tensor, asked: list[Tensor]) -> tuple[Any, ...]:
    """Gradients that can be differentiated again."""
    with torch.enable_grad():
        copies = [part.view_as(part) for part in tensors]
        outputs = _eager(copies, ports, ctx.scale, ctx.options)
        pairs = [(out, g) for out, g in zip(outputs, asked, strict=True) if out.requires_grad]
        wanted = [part for part in copies if part.requires_grad]
        found = iter(
            torch.autograd.grad(
                [out for out, _ in pairs], wanted, [g for _, g in pairs], create_graph=True, allow_unused=True
            )
        )
    return [next(found) if part.requires_grad else None for part in copies], None, None, None


_loop.register_autograd(_differentiate, setup_context=_save)
