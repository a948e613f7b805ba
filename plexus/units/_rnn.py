"""Editing torch's recurrent layers inside their loop, exactly.

With an emission h' = g ⊙ h + a that all recurrent targets see instead of h,

    W h'[t-1] + b = (W diag g) h[t-1] + (b + W a)

so `nn.RNN` and `nn.LSTM` run with changed weights and give h; the output is h' = port(h). The first step sees the
initial state as it was given and runs with the weights as they are. `nn.GRU` also carries h itself into the next step,
which the weights do not reach, so there only g = 0 (a constant) is exact.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from plexus.errors import UnsupportedError
from plexus.units._port import Port

__all__ = ["check_rnn", "ported_forward"]

State = tuple[Tensor, ...]


class _Packed(NamedTuple):
    """Sequences sorted by length, their rows laid out step by step, as in `PackedSequence`."""

    data: Tensor
    sizes: Tensor


def check_rnn(module: nn.RNNBase, port: Port) -> None:
    """Raise `UnsupportedError` if the port has no exact meaning in this layer's weights."""
    reason = None
    if port.low is not None or port.high is not None:
        reason = "limits are no linear map"
    elif isinstance(module, nn.GRU):
        gain = torch.ones(()) if port.gain is None else port.gain
        bias = torch.zeros(()) if port.bias is None else port.bias
        if bool(((gain != 0) & ((gain != 1) | (bias.to(gain) != 0))).any()):
            reason = "a GRU carries its units from step to step past its weights, so only a constant is exact"
    if reason is not None:
        raise UnsupportedError(
            f"this edit cannot act inside the loop of a torch {type(module).__name__}: {reason}",
            mend="where='readout' in the site edits what the layer gives out and leaves its loop alone",
        )


def ported_forward(module: nn.RNNBase, port: Port) -> Callable[..., Any]:
    """A `forward` for the layer in which the units of its last layer are ported."""

    def forward(input: Tensor | PackedSequence, hx: Any = None) -> Any:
        lone = isinstance(input, Tensor) and input.dim() == 2
        packed, restore, batch = _pack(module, input)
        state = _initial(module, packed, hx, input, batch, lone)
        out, final = _stack(module, port, packed, state)
        states = tuple(_unsort(value, input) for value in final)
        if lone:
            states = tuple(value.squeeze(1) for value in states)
        return restore(out), states if isinstance(module, nn.LSTM) else states[0]

    return forward


def _pack(module: nn.RNNBase, input: Tensor | PackedSequence) -> tuple[_Packed, Callable[[Tensor], Any], int]:
    if isinstance(input, PackedSequence):
        packed = _Packed(input.data, input.batch_sizes)

        def repack(data: Tensor) -> PackedSequence:
            return PackedSequence(data, input.batch_sizes, input.sorted_indices, input.unsorted_indices)

        return packed, repack, int(input.batch_sizes[0])
    lone = input.dim() == 2
    swap = module.batch_first and not lone
    x = input.unsqueeze(1) if lone else input.transpose(0, 1) if swap else input
    steps, batch = x.shape[:2]

    def unpack(data: Tensor) -> Tensor:
        out = data.reshape(steps, batch, -1)
        return out.squeeze(1) if lone else out.transpose(0, 1) if swap else out

    return _Packed(x.reshape(steps * batch, -1), torch.full((steps,), batch)), unpack, batch


def _initial(module: nn.RNNBase, packed: _Packed, hx: Any, input: Any, batch: int, lone: bool) -> State:
    directions = 2 if module.bidirectional else 1
    if hx is None:
        wide = [module.proj_size or module.hidden_size]
        wide += [module.hidden_size] if isinstance(module, nn.LSTM) else []
        return tuple(packed.data.new_zeros(module.num_layers * directions, batch, width) for width in wide)
    state = tuple(hx) if isinstance(module, nn.LSTM) else (hx,)
    state = tuple(value.unsqueeze(1) for value in state) if lone else state
    if isinstance(input, PackedSequence) and input.sorted_indices is not None:
        state = tuple(value.index_select(1, input.sorted_indices) for value in state)
    return state


def _unsort(value: Tensor, input: Any) -> Tensor:
    if isinstance(input, PackedSequence) and input.unsorted_indices is not None:
        return value.index_select(1, input.unsorted_indices)
    return value


def _stack(module: nn.RNNBase, port: Port, packed: _Packed, state: State) -> tuple[Tensor, State]:
    directions = 2 if module.bidirectional else 1
    below = (module.num_layers - 1) * directions
    finals: list[State] = []
    if below:
        weights = [weight for layer in module.all_weights[:below] for weight in layer]
        lower = tuple(value[:below].contiguous() for value in state)
        data, final = _run(module, packed, lower, weights, module.num_layers - 1, module.dropout)
        data = nn.functional.dropout(data, module.dropout, module.training)
        packed = _Packed(data, packed.sizes)
        finals.append(final)
    wide = torch.promote_types(packed.data.dtype, torch.float32)
    units = (module.proj_size or module.hidden_size) * directions
    dense = port.dense(units, packed.data.new_zeros((), dtype=wide))
    outs = []
    for direction, (gain, bias) in enumerate(
        zip(dense.gain.chunk(directions), dense.bias.chunk(directions), strict=True)
    ):
        start = tuple(value[below + direction : below + direction + 1].contiguous() for value in state)
        order = _reversal(packed) if direction else None
        rows = packed if order is None else _Packed(packed.data[order], packed.sizes)
        emission = Port(gain, bias)
        out, final = _one_direction(module, emission, rows, start, module.all_weights[below + direction])
        outs.append(emission.apply(out if order is None else out[order]))
        finals.append((emission.apply(final[0]), *final[1:]))
    merged = tuple(torch.cat(values) for values in zip(*finals, strict=True))
    return torch.cat(outs, -1), merged


def _one_direction(
    module: nn.RNNBase, port: Port, packed: _Packed, start: State, weights: Sequence[Tensor]
) -> tuple[Tensor, State]:
    """The layer's own h, before the port, and its final state, when all recurrent targets see the ported h."""
    first = int(packed.sizes[0])
    out, state = _run(module, _Packed(packed.data[:first], packed.sizes[:1]), start, weights)
    if len(packed.sizes) == 1:
        return out, state
    # sequences of one step end here; the others go on with changed weights
    going = int(packed.sizes[1])
    onward = tuple(value[:, :going].contiguous() for value in state)
    rest = _Packed(packed.data[first:], packed.sizes[1:])
    more, final = _run(module, rest, onward, _changed(module, port, weights))
    ended = tuple(torch.cat([new, old[:, going:]], 1) for new, old in zip(final, state, strict=True))
    return torch.cat([out, more]), ended


def _changed(module: nn.RNNBase, port: Port, weights: Sequence[Tensor]) -> list[Tensor]:
    assert port.gain is not None
    assert port.bias is not None
    into, recurrent = weights[0], weights[1]
    wide = torch.promote_types(recurrent.dtype, torch.float32)
    gain, bias, full = port.gain.to(wide), port.bias.to(wide), recurrent.to(wide)
    shift = full @ bias
    columns = (full * gain).to(recurrent.dtype)
    zero = recurrent.new_zeros(recurrent.shape[0])
    input_bias, recurrent_bias = (weights[2], weights[3]) if module.bias else (zero, zero)
    changed = [into, columns, input_bias, (recurrent_bias.to(wide) + shift).to(recurrent.dtype)]
    return [*changed, weights[-1]] if module.proj_size else changed


def _run(
    module: nn.RNNBase,
    packed: _Packed,
    state: State,
    weights: Sequence[Tensor],
    layers: int = 1,
    dropout: float = 0.0,
) -> tuple[Tensor, State]:
    runs = state[0].shape[0]  # layers times directions
    biases = len(weights) // runs >= 4
    settings = (list(weights), biases, layers, dropout, module.training, runs == 2 * layers)
    if isinstance(module, nn.LSTM):
        out, *final = torch.lstm(packed.data, packed.sizes, state, *settings)
    elif isinstance(module, nn.GRU):
        out, *final = torch.gru(packed.data, packed.sizes, state[0], *settings)
    else:
        step = torch.rnn_tanh if module.nonlinearity == "tanh" else torch.rnn_relu
        out, *final = step(packed.data, packed.sizes, state[0], *settings)
    return out, tuple(final)


def _reversal(packed: _Packed) -> Tensor:
    """For each row the row that stands in its place when every sequence is read backward."""
    sizes = packed.sizes
    offsets = sizes.cumsum(0) - sizes
    lengths = (sizes[:, None] > torch.arange(int(sizes[0]))).sum(0)
    step = torch.repeat_interleave(torch.arange(len(sizes)), sizes)
    member = torch.cat([torch.arange(int(size)) for size in sizes])
    return (offsets[lengths[member] - 1 - step] + member).to(packed.data.device)
