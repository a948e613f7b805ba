"""A unit of a recurrent layer is edited inside its loop: against cells stepped one at a time."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from plexus import edit
from plexus.errors import UnsupportedError
from plexus.units import Neurons, Port, Site

STEPS, BATCH, INPUTS, UNITS = 6, 3, 4, 5


def cell(
    rnn: nn.RNNBase, weights: list[Tensor], x: Tensor, h: Tensor, c: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """One step of one layer in one direction, from the formulas of torch's documentation."""
    into, recurrent = weights[0], weights[1]
    gi, gh = x @ into.T, h @ recurrent.T
    if rnn.bias:
        gi, gh = gi + weights[2], gh + weights[3]
    if isinstance(rnn, nn.LSTM):
        i, f, g, o = (gi + gh).chunk(4, -1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        return (h @ weights[-1].T if rnn.proj_size else h), c
    if isinstance(rnn, nn.GRU):
        (ri, zi, ni), (rh, zh, nh) = gi.chunk(3, -1), gh.chunk(3, -1)
        r, z = (ri + rh).sigmoid(), (zi + zh).sigmoid()
        return (1 - z) * (ni + r * nh).tanh() + z * h, None
    total = gi + gh
    return (total.tanh() if rnn.nonlinearity == "tanh" else total.relu()), None


def stepped(
    rnn: nn.RNNBase, x: Tensor, port: Port, h0: Tensor, c0: Tensor | None, lengths: list[int]
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The layer with the port on its last layer's units, each sequence by itself; `x` is time-first."""
    ways = 2 if rnn.bidirectional else 1
    outs, finals_h, finals_c = [], [], []
    for b, length in enumerate(lengths):
        layer_input, last_h, last_c = x[:length, b], [], []
        for layer in range(rnn.num_layers):
            sides = []
            for way in range(ways):
                index = layer * ways + way
                h, c = h0[index, b], None if c0 is None else c0[index, b]
                emitted: list[Any] = [None] * length
                for t in reversed(range(length)) if way else range(length):
                    h, c = cell(rnn, rnn.all_weights[index], layer_input[t], h, c)
                    if layer == rnn.num_layers - 1:
                        h = edited(port, h, way, len(h))
                    emitted[t] = h
                sides.append(torch.stack(emitted))
                last_h.append(h)
                last_c.append(c)
            layer_input = torch.cat(sides, -1)
        outs.append(nn.functional.pad(layer_input, (0, 0, 0, len(x) - length)))
        finals_h.append(torch.stack(last_h))
        finals_c.append(None if c0 is None else torch.stack(last_c))
    final_c = None if c0 is None else torch.stack(finals_c, 1)
    return torch.stack(outs, 1), torch.stack(finals_h, 1), final_c


def edited(port: Port, h: Tensor, way: int, size: int) -> Tensor:
    """The port of one direction's units: those stand behind each other in the layer's output."""

    def mine(field: Tensor | None, rest: float) -> Tensor:
        return torch.full((size,), rest) if field is None else field[way * size : (way + 1) * size]

    return mine(port.gain, 1.0) * h + mine(port.bias, 0.0)


KINDS: dict[str, dict[str, Any]] = {
    "tanh": {"kind": nn.RNN},
    "relu": {"kind": nn.RNN, "nonlinearity": "relu"},
    "lstm": {"kind": nn.LSTM},
    "projected": {"kind": nn.LSTM, "proj_size": 4},
    "deep": {"kind": nn.LSTM, "num_layers": 3},
    "both ways": {"kind": nn.LSTM, "bidirectional": True},
    "deep both ways": {"kind": nn.RNN, "bidirectional": True, "num_layers": 2},
    "no bias": {"kind": nn.LSTM, "bias": False},
    "gru": {"kind": nn.GRU},
    "deep gru both ways": {"kind": nn.GRU, "bidirectional": True, "num_layers": 2},
}


def layer(name: str, **more: Any) -> tuple[nn.RNNBase, Site, int]:
    fields = {**KINDS[name], **more}
    rnn = fields.pop("kind")(INPUTS, UNITS, **fields)
    with torch.no_grad():
        for parameter in rnn.parameters():
            parameter.mul_(2)  # so that the recurrence matters
    units = (rnn.proj_size or rnn.hidden_size) * (2 if rnn.bidirectional else 1)
    return rnn, Site("", "b t u" if rnn.batch_first else "t b u"), units


def state(rnn: nn.RNNBase, zero: bool) -> tuple[Tensor, Tensor | None]:
    count = rnn.num_layers * (2 if rnn.bidirectional else 1)
    make = torch.zeros if zero else torch.randn
    h = make(count, BATCH, rnn.proj_size or rnn.hidden_size)
    return h, make(count, BATCH, rnn.hidden_size) if isinstance(rnn, nn.LSTM) else None


def pieces(result: Any) -> list[Tensor]:
    out, final = result
    return [out, *(final if isinstance(final, tuple) else (final,))]


CONSTANT = {
    "scale to zero": lambda chosen: edit.scale(chosen, 0.0),
    "clamp": lambda chosen: edit.clamp(chosen, 0.7),
    "replace": lambda chosen: edit.replace(chosen, torch.tensor([0.3, -0.9])),
    "clamp after scale": lambda chosen: edit.scale(chosen, 3.0).then(edit.clamp(chosen, -0.2)),
}
AFFINE = {
    "scale": lambda chosen: edit.scale(chosen, torch.tensor([-0.5, 1.5])),
    "add": lambda chosen: edit.add(chosen, 0.4),
    "scale then add": lambda chosen: edit.scale(chosen, 0.5).then(edit.add(chosen, torch.tensor([1.0, -1.0]))),
}
PORTS = {
    "scale to zero": ([0.0, 0.0], [0.0, 0.0]),
    "clamp": ([0.0, 0.0], [0.7, 0.7]),
    "replace": ([0.0, 0.0], [0.3, -0.9]),
    "clamp after scale": ([0.0, 0.0], [-0.2, -0.2]),
    "scale": ([-0.5, 1.5], [0.0, 0.0]),
    "add": ([1.0, 1.0], [0.4, 0.4]),
    "scale then add": ([0.5, 0.5], [1.0, -1.0]),
}


def cases() -> list[tuple[str, str]]:
    return [(k, e) for k in KINDS for e in PORTS if e in CONSTANT or "gru" not in k]


@pytest.mark.parametrize(("kind", "name"), cases())
@pytest.mark.parametrize("zero", [True, False])
def test_the_loop_sees_the_edit(kind: str, name: str, zero: bool) -> None:
    rnn, site, units = layer(kind)
    picked = [1, units - 1]
    chosen = Neurons.of({site: units}, {site: picked})
    gain, bias = torch.ones(units), torch.zeros(units)
    gain[picked], bias[picked] = torch.tensor(PORTS[name][0]), torch.tensor(PORTS[name][1])
    x = torch.randn(STEPS, BATCH, INPUTS)
    h0, c0 = state(rnn, zero)
    expected = stepped(rnn, x, Port(gain, bias), h0, c0, [STEPS] * BATCH)
    given = None if zero else (h0, c0) if c0 is not None else h0
    with ({**CONSTANT, **AFFINE}[name])(chosen).on(rnn):
        result = pieces(rnn(x, given))
    for mine, reference in zip(result, expected, strict=False):
        torch.testing.assert_close(mine, reference, atol=2e-6, rtol=1e-4)
    plain = pieces(rnn(x, given))
    assert not torch.allclose(plain[0], expected[0], atol=1e-3)  # also the units that were not edited change
    assert not torch.allclose(plain[0][1:, :, 0], expected[0][1:, :, 0], atol=1e-4)


@pytest.mark.parametrize("kind", ["lstm", "both ways", "deep gru both ways"])
@pytest.mark.parametrize("sort", [True, False])
def test_packed_sequences(kind: str, sort: bool) -> None:
    rnn, site, units = layer(kind)
    lengths = [6, 3, 1] if sort else [1, 6, 3]
    x = torch.randn(STEPS, BATCH, INPUTS)
    h0, c0 = state(rnn, False)
    chosen = Neurons.of({site: units}, {site: [0]})
    gain, bias = torch.ones(units), torch.zeros(units)
    gain[0], bias[0] = 0.0, 0.5
    packed = pack_padded_sequence(x, torch.tensor(lengths), enforce_sorted=sort)
    with edit.clamp(rnn, chosen, 0.5):
        out, final = rnn(packed, (h0, c0) if c0 is not None else h0)
    padded, sizes = pad_packed_sequence(out)
    expected = stepped(rnn, x, Port(gain, bias), h0, c0, lengths)
    assert sizes.tolist() == lengths
    for mine, reference in zip(pieces((padded, final)), expected, strict=False):
        torch.testing.assert_close(mine, reference, atol=2e-6, rtol=1e-4)


def test_batch_first_and_lone_sequences() -> None:
    rnn, site, units = layer("both ways", batch_first=True)
    chosen = Neurons.of({site: units}, {site: [2, 7]})
    x = torch.randn(BATCH, STEPS, INPUTS)
    gain = torch.ones(units)
    gain[[2, 7]] = 0.5
    h0, c0 = state(rnn, True)
    expected, final, _ = stepped(rnn, x.transpose(0, 1), Port(gain), h0, c0, [STEPS] * BATCH)
    with edit.scale(rnn, chosen, 0.5):
        out, (h, _) = rnn(x)
        lone, (lone_h, _) = rnn(x[0])
    torch.testing.assert_close(out, expected.transpose(0, 1), atol=2e-6, rtol=1e-4)
    torch.testing.assert_close(h, final, atol=2e-6, rtol=1e-4)
    torch.testing.assert_close(lone, out[0])
    torch.testing.assert_close(lone_h, h[:, 0])


def test_a_sequence_run_in_two_halves_is_the_sequence_run_whole() -> None:
    rnn, site, units = layer("deep")
    x = torch.randn(STEPS, BATCH, INPUTS)
    with edit.clamp(rnn, Neurons.of({site: units}, {site: [0, 3]}), 0.9):
        whole, final = rnn(x)
        first, carried = rnn(x[:2])
        second, last = rnn(x[2:], carried)
    torch.testing.assert_close(torch.cat([first, second]), whole)
    torch.testing.assert_close(last, final)


def test_gradients_through_the_loop_are_those_of_the_stepped_cells() -> None:
    rnn, site, units = layer("lstm")
    twin = copy.deepcopy(rnn)
    x = torch.randn(STEPS, BATCH, INPUTS, requires_grad=True)
    y = x.detach().clone().requires_grad_()
    factor = torch.tensor(0.0, requires_grad=True)
    reference = torch.tensor(0.0, requires_grad=True)
    with edit.scale(rnn, Neurons.of({site: units}, {site: [1]}), factor):
        rnn(x)[0].pow(2).sum().backward()
    gain = torch.cat([torch.ones(1), reference[None], torch.ones(units - 2)])
    h0, c0 = torch.zeros(1, BATCH, UNITS), torch.zeros(1, BATCH, UNITS)
    stepped(twin, y, Port(gain), h0, c0, [STEPS] * BATCH)[0].pow(2).sum().backward()
    torch.testing.assert_close(x.grad, y.grad)
    torch.testing.assert_close(factor.grad, reference.grad)
    for mine, other in zip(rnn.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad)


def test_what_has_no_exact_meaning_is_refused_and_the_readout_is_there_by_name() -> None:
    rnn, site, units = layer("lstm")
    gru, _, _ = layer("gru")
    chosen = Neurons.of({site: units}, {site: [1]})
    for model, action in (
        (gru, edit.scale(chosen, 0.5)),
        (gru, edit.add(chosen, 0.5)),
        (rnn, edit.clamp(chosen, low=0.0)),
        (rnn, edit.scale(chosen, 0.5, positions="last")),
        (rnn, edit.scale(chosen, 0.5, basis=torch.ones(units))),
    ):
        with pytest.raises(UnsupportedError, match="readout"), action.on(model):
            pass
    outside = Site("", "t b u", where="readout")
    x = torch.randn(STEPS, BATCH, INPUTS)
    plain, final = gru(x)
    with edit.scale(gru, Neurons.of({outside: units}, {outside: [1]}), 0.5):
        out, same = gru(x)
    half = torch.ones(units)
    half[1] = 0.5
    assert torch.equal(out, plain * half)
    assert torch.equal(same, final)


def test_a_gru_whose_edits_together_are_exact_is_edited() -> None:
    gru, site, units = layer("gru")
    chosen = Neurons.of({site: units}, {site: [1]})
    x = torch.randn(STEPS, BATCH, INPUTS)
    with edit.scale(chosen, 0.5).then(edit.scale(chosen, 0.0)).on(gru):
        out, _ = gru(x)
    gain = torch.ones(units)
    gain[1] = 0
    expected = stepped(gru, x, Port(gain), torch.zeros(1, BATCH, UNITS), None, [STEPS] * BATCH)[0]
    torch.testing.assert_close(out, expected)


def test_dropout_between_layers_still_drops() -> None:
    rnn, site, units = layer("deep", dropout=0.5)
    x = torch.randn(STEPS, BATCH, INPUTS)
    none = Neurons.of({site: units}, {site: [0]})
    with edit.scale(rnn, none, 1.0):
        first, second = rnn(x)[0], rnn(x)[0]
        assert not torch.equal(first, second)
        rnn.eval()
        torch.testing.assert_close(rnn(x)[0], rnn(x)[0])
        inside = rnn(x)[0]
    torch.testing.assert_close(inside, rnn(x)[0])


def test_half_precision() -> None:
    rnn, site, units = layer("lstm")
    x = torch.randn(STEPS, BATCH, INPUTS).bfloat16()
    chosen = Neurons.of({site: units}, {site: [1]})
    with edit.scale(rnn, chosen, 0.5):
        full = rnn(x.float())[0]
    rnn = rnn.bfloat16()
    with edit.scale(rnn, chosen, 0.5):
        out = rnn(x)[0]
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), full, atol=0.05, rtol=0.05)
