"""A port is a clipped affine map per unit, closed under composition."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from plexus.errors import RangeError, ShapeError
from plexus.units._port import Port

NUMBER = st.sampled_from([-2.0, -0.5, 0.0, 0.25, 1.0, 3.0])


@st.composite
def ports(draw: st.DrawFn) -> Port:
    def field(values: st.SearchStrategy[float]) -> torch.Tensor | None:
        return draw(st.none() | st.lists(values, min_size=3, max_size=3).map(lambda v: torch.tensor(v).double()))

    low, width = field(NUMBER), field(st.sampled_from([0.0, 0.5, 2.0]))
    high = width if low is None or width is None else low + width
    return Port(field(NUMBER), field(NUMBER), low, high)


def by_hand(port: Port, z: list[float]) -> list[float]:
    out = []
    for unit, value in enumerate(z):
        gain = 1.0 if port.gain is None else float(port.gain[unit])
        value = 0.0 if gain == 0 else gain * value
        value += 0.0 if port.bias is None else float(port.bias[unit])
        value = value if port.low is None else max(value, float(port.low[unit]))
        out.append(value if port.high is None else min(value, float(port.high[unit])))
    return out


@settings(deadline=None)
@given(ports(), st.lists(st.floats(-1e3, 1e3) | st.sampled_from([float("inf"), float("-inf")]), min_size=3, max_size=3))
def test_apply_is_the_clipped_affine_map(port: Port, z: list[float]) -> None:
    assert port.apply(torch.tensor(z, dtype=torch.float64)).tolist() == pytest.approx(by_hand(port, z))


@settings(deadline=None)
@given(ports(), ports(), ports(), st.lists(st.floats(-1e3, 1e3), min_size=3, max_size=3))
def test_composition_is_one_after_the_other(a: Port, b: Port, c: Port, z: list[float]) -> None:
    x = torch.tensor(z, dtype=torch.float64)
    expected = c.apply(b.apply(a.apply(x)))
    torch.testing.assert_close(a.then(b).then(c).apply(x), expected)
    torch.testing.assert_close(a.then(b.then(c)).apply(x), expected)


@settings(deadline=None)
@given(ports(), st.lists(st.floats(-1e3, 1e3), min_size=3, max_size=3))
def test_dense_fields_do_the_same(port: Port, z: list[float]) -> None:
    x = torch.tensor(z, dtype=torch.float64)
    gain, bias, low, high = port.dense(3, x)
    torch.testing.assert_close(torch.minimum(torch.maximum(gain * x + bias, low), high), port.apply(x))


def test_a_gain_of_zero_silences_what_is_not_finite_and_keeps_its_gradient() -> None:
    gain = torch.zeros(3, requires_grad=True)
    z = torch.tensor([float("inf"), float("nan"), 5.0])
    out = Port(gain=gain).apply(z)
    assert out.tolist() == [0.0, 0.0, 0.0]
    out.sum().backward()
    assert gain.grad is not None
    assert gain.grad.tolist() == [0.0, 0.0, 5.0]


def test_half_precision_is_computed_in_float32_and_cast_back() -> None:
    z = torch.tensor([1.0, 3.0], dtype=torch.bfloat16)
    out = Port(gain=torch.tensor([1 / 3, 1 / 3])).apply(z)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, (z.float() / 3).bfloat16())


def test_on_acts_on_the_chosen_units_only() -> None:
    mask = torch.tensor([True, False, True])
    port = Port.on(mask, gain=torch.tensor([2.0, 9.0, 3.0]), bias=1, low=0.0)
    assert port.apply(torch.tensor([-4.0, -4.0, 4.0])).tolist() == [0.0, -4.0, 13.0]
    assert Port.on(mask).is_identity


def test_a_port_that_cannot_be_is_refused() -> None:
    with pytest.raises(RangeError, match="lower bound"):
        Port(low=torch.tensor([0.0, 2.0]), high=torch.tensor(1.0))
    with pytest.raises(ShapeError, match="dimensions"):
        Port(gain=torch.ones(2, 2))
    with pytest.raises(ShapeError, match="does not fit"):
        Port(gain=torch.ones(2)).dense(3, torch.zeros(()))
