"""The astrocytes' loop and the leaky sum: fused against eager, gradients, splitting, transforms, bad input."""

import pytest
import torch
from torch.func import grad as func_grad

from plexus.errors import DtypeError, ShapeError
from plexus.kernels import astrocyte_loop, decaying_sum
from plexus.kernels._surrogate import SURROGATES, Surrogate
from plexus.units import Port


def arguments(gain, bias, dtype=torch.float64, steps=7, batch=3, units=4, seed=0):
    g = torch.Generator().manual_seed(seed)

    def noise(*shape):
        return torch.randn(*shape, generator=g, dtype=dtype)

    return {
        "drive": noise(steps, batch, units),
        "current": 1.5 * noise(steps, batch, units),
        "v": noise(batch, units),
        "a": noise(batch, units),
        "z": (noise(batch, units) > 0).to(dtype),
        "mixed": noise(units, units * (gain + bias)),
        "keep": noise(units).sigmoid(),
        "listen": noise(units),
        "decay": noise(units).sigmoid(),
        "threshold": torch.ones(units, dtype=dtype),
    }


PORTS = {
    "none": {},
    "units": {"port": Port(gain=torch.tensor([0.0, 1.0, 0.5, 1.0]), bias=torch.tensor(0.25), high=torch.tensor(1.0))},
    "calcium": {"calcium_port": Port(gain=torch.tensor([1.0, 0.0, -1.0, 2.0]), low=torch.tensor(-0.5))},
}


@pytest.mark.parametrize("ports", PORTS)
@pytest.mark.parametrize(("gain", "bias"), [(True, True), (True, False), (False, True)])
def test_the_fused_loop_is_the_eager_one_with_its_gradients(gain, bias, ports):
    found = []
    for backend in ("auto", "eager"):
        values = {k: x.clone().requires_grad_(k != "threshold") for k, x in arguments(gain, bias).items()}
        out = astrocyte_loop(**values, gain=gain, bias=bias, backend=backend, **PORTS[ports])
        weights = [torch.linspace(-1, 1, part.numel(), dtype=part.dtype).view_as(part) for part in out]
        sum((w * part).sum() for w, part in zip(weights, out, strict=True)).backward()
        found.append([*out, *(x.grad for x in values.values() if x.grad is not None)])
    assert len(found[0]) == 12
    assert found[0][0].sum() > 3  # units do spike, or the comparison says little
    for fused, eager in zip(*found, strict=True):
        torch.testing.assert_close(fused, eager, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("name", sorted(SURROGATES))
def test_every_surrogate_gives_the_eager_gradient(name):
    found = []
    for backend in ("auto", "eager"):
        values = arguments(True, True)
        values["current"].requires_grad_()
        out = astrocyte_loop(**values, surrogate=Surrogate(name, width=0.4, height=0.7), backend=backend)
        found.append(torch.autograd.grad(out.spikes[3:].sum(), values["current"])[0])
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_sequence_in_pieces_is_the_sequence_whole(dtype):
    values = arguments(True, True, dtype, steps=9)
    whole = astrocyte_loop(**values)
    first = astrocyte_loop(**(values | {k: values[k][:4] for k in ("drive", "current")}))
    rest = {k: values[k][4:] for k in ("drive", "current")}
    state = {"v": first.v, "a": first.calcium[-1], "z": first.spikes[-1]}
    second = astrocyte_loop(**(values | rest | state))
    assert torch.equal(torch.cat([first.spikes, second.spikes]), whole.spikes)
    assert torch.equal(torch.cat([first.calcium, second.calcium]), whole.calcium)
    assert torch.equal(second.v, whole.v)


def test_transforms_and_second_derivatives_follow_the_reference():
    values = arguments(True, True)
    others = {k: x for k, x in values.items() if k != "current"}

    def loss(current, backend="auto"):
        return astrocyte_loop(current=current, **others, backend=backend).v.square().sum()

    current = values["current"].requires_grad_()
    (plain,) = torch.autograd.grad(loss(current), current, create_graph=True)
    torch.testing.assert_close(func_grad(loss)(current), plain)
    (reference,) = torch.autograd.grad(loss(current, "eager"), current, create_graph=True)
    second, expected = (torch.autograd.grad(g.square().sum(), current)[0] for g in (plain, reference))
    torch.testing.assert_close(second, expected)


def test_torch_checks_the_operator():
    values = arguments(True, True, steps=3)
    from plexus.kernels._astrocyte import _loop, _rows

    tensors = [x.requires_grad_(k != "threshold") for k, x in values.items()]
    ports = torch.cat([_rows(None, 4, values["drive"])] * 2)
    torch.library.opcheck(
        _loop, (tensors, ports, [0.3, 1.0], "11,arctan"), test_utils=("test_schema", "test_faketensor")
    )


def test_no_steps_leave_the_state_alone():
    values = arguments(True, True, steps=0)
    out = astrocyte_loop(**values)
    assert out.spikes.shape == (0, 3, 4)
    assert torch.equal(out.v, values["v"])


def test_what_does_not_fit_is_refused():
    values = arguments(True, True)
    with pytest.raises(ShapeError, match="parts of the loop"):
        astrocyte_loop(**(values | {"v": values["v"][:1]}))
    with pytest.raises(ShapeError, match="mixing matrix"):
        astrocyte_loop(**values, bias=False)


def test_a_leaky_sum_is_a_matrix_of_powers():
    g = torch.Generator().manual_seed(1)
    x, decay = torch.randn(6, 2, 3, generator=g, dtype=torch.float64), torch.rand(3, generator=g, dtype=torch.float64)
    start = torch.randn(2, 3, generator=g, dtype=torch.float64)
    lag = torch.arange(6)[:, None] - torch.arange(6)
    powers = torch.where(lag[..., None] >= 0, decay ** lag.clamp(min=0)[..., None], 0.0)  # [time, time, unit]
    expected = torch.einsum("tsu,sbu->tbu", powers, x) + decay ** torch.arange(1, 7)[:, None, None] * start
    sums, last = decaying_sum(x, start, decay=decay)
    torch.testing.assert_close(sums, expected)
    torch.testing.assert_close(last, expected[-1])
    leaves = [part.requires_grad_() for part in (x, start, decay)]
    assert torch.autograd.gradcheck(lambda x, s, d: decaying_sum(x, s, decay=d), leaves)


def test_bad_input_of_a_leaky_sum_is_refused():
    with pytest.raises(ShapeError, match="too few dimensions"):
        decaying_sum(torch.zeros(3, 2), decay=0.5)
    with pytest.raises(ShapeError, match="state does not fit"):
        decaying_sum(torch.zeros(3, 2, 1), torch.zeros(1, 1), decay=0.5)
    with pytest.raises(DtypeError, match="floating point"):
        decaying_sum(torch.zeros(3, 2, 1, dtype=torch.long), decay=0.5)
