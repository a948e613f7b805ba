"""E-I layers: the circuit against its equations, the start against its statistics, the gradient against autograd."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from plexus.errors import PlexusError, RangeError, ShapeError, UnsupportedError
from plexus.nn import (
    LIF,
    EIConv2d,
    EILinear,
    Sequential,
    SilentInputWarning,
    initialise_ei,
    parametrize_,
    project_after_step,
    to_ei,
)


def draw(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def spikes(*shape: int, rate: float = 0.3, seed: int = 1, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return (torch.rand(*shape, generator=draw(seed), dtype=dtype) < rate).to(dtype)


def shaken(layer, seed: int = 5):
    """All parameters away from where they start, so that no factor of one hides a mistake."""
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(torch.rand(parameter.shape, generator=draw(seed), dtype=parameter.dtype) * 0.1 + 0.01)
    return layer


def by_hand(layer: EILinear, x: torch.Tensor) -> torch.Tensor:
    """The equations, one sample and one cell at a time."""
    rows = []
    layer = copy.deepcopy(layer).requires_grad_(False)
    for sample in x:
        excitation = [float(w @ sample) for w in layer.weight_ee]
        inhibitory = [float(w @ sample) for w in layer.weight_ie]
        cells = []
        for i in range(layer.out_features):
            shares = [float(w) for w in layer.weight_ei[i]]
            balanced = excitation[i] - sum(s * r for s, r in zip(shares, inhibitory, strict=True))
            if layer.output:
                cells.append(balanced)
                continue
            gains = [float(g) for g in layer.gain_i]
            shunting = sum(s * g * r for s, g, r in zip(shares, gains, inhibitory, strict=True))
            cells.append(float(layer.gain_e[i]) * balanced / shunting + float(layer.bias[i]))
        rows.append(cells)
    return torch.tensor(rows, dtype=x.dtype)


@pytest.mark.parametrize("output", [False, True])
def test_the_circuit_is_its_equations(output: bool) -> None:
    layer = EILinear(12, 8, output=output, dtype=torch.float64, generator=draw())
    x = spikes(6, 12, rate=0.6)
    layer.init_from(x)
    shaken(layer)
    torch.testing.assert_close(layer(x), by_hand(layer, x))


def test_each_ablation_takes_out_its_term_alone() -> None:
    x = spikes(6, 12, rate=0.6)
    full, without_subtraction, without_division = (
        shaken(EILinear(12, 8, dtype=torch.float64, generator=draw(), **parts))
        for parts in ({}, {"subtractive": False}, {"divisive": False})
    )
    for layer in (without_subtraction, without_division, full):
        layer.initialised.fill_(True)
        for name, parameter in layer.named_parameters():
            with torch.no_grad():
                parameter.copy_(getattr(full, name))
    now = full.currents(x)
    gain, bias = full.gain_e, full.bias
    torch.testing.assert_close(without_subtraction(x), gain * now.excitation / now.shunting + bias)
    torch.testing.assert_close(without_division(x), gain * (now.excitation - now.inhibition) + bias)


def test_a_convolution_over_one_place_is_the_dense_layer() -> None:
    dense, image = (
        EILinear(12, 8, dtype=torch.float64, generator=draw()),
        EIConv2d(3, 8, 2, dtype=torch.float64, generator=draw()),
    )
    x = spikes(50, 12, rate=0.5)
    first, second = dense.init_from(x), image.init_from(x.view(50, 3, 2, 2))
    assert first == pytest.approx(second)
    torch.testing.assert_close(image(x.view(50, 3, 2, 2)).flatten(1), dense(x))


def test_a_convolution_sees_every_place_as_a_dense_layer_sees_its_patch() -> None:
    image = EIConv2d(2, 8, 3, stride=2, padding=1, dilation=1, dtype=torch.float64, generator=draw())
    x = spikes(5, 2, 7, 7, rate=0.7)
    image.init_from(x)
    shaken(image)
    dense = EILinear(18, 8, dtype=torch.float64)
    dense.initialised.fill_(True)
    with torch.no_grad():
        for name, parameter in dense.named_parameters():
            parameter.copy_(getattr(image, name).reshape(parameter.shape))
    patches = nn.functional.unfold(x, 3, stride=2, padding=1).transpose(1, 2)
    expected = dense(patches).transpose(1, 2).reshape(5, 8, 4, 4)
    torch.testing.assert_close(image(x), expected)


@pytest.mark.parametrize("rate", [0.1, 0.3, 0.7])
def test_init_sets_the_weights_to_the_scale_of_the_batch(rate: float) -> None:
    """For independent spikes at rate p: V = p (1 - p), E[x] = E[x²] = p."""
    layer = EILinear(400, 300, dtype=torch.float64, generator=draw())
    layer.init_from(spikes(4000, 400, rate=rate))
    scale = math.sqrt((1 - rate) / (400 * (2 - rate)))
    for weight in (layer.weight_ee, layer.weight_ie):
        assert float(weight.detach().mean()) == pytest.approx(scale, rel=0.02)  # an exponential's mean is its deviation
        assert float(weight.detach().std()) == pytest.approx(scale, rel=0.02)
    torch.testing.assert_close(layer.weight_ei, torch.full_like(layer.weight_ei, 1 / 75))
    expected = math.sqrt((2 * rate - rate**2) / 400) / rate
    assert layer.gain_i.tolist() == pytest.approx([expected] * 75, rel=0.01)


def test_after_init_the_current_has_mean_zero_and_variance_one_through_many_layers() -> None:
    """A layer's mean deviates by what the draws of its two populations do: about sqrt(1/n_E + 1/n_I)."""
    width, depth = 120, 8
    layers: list[nn.Module] = []
    for _ in range(depth):
        layers += [EILinear(width, width, generator=draw(len(layers))), LIF(width, tau_mem=2.0, discretisation="euler")]
    net = Sequential(*layers)
    x = torch.rand(4, 100, width, generator=draw(9))
    initialise_ei(net, x)
    means: list[float] = []
    for layer in layers:
        now = layer(x) if isinstance(layer, EILinear) else layer(x)[0]
        if isinstance(layer, EILinear):
            assert 0.7 < float(now.detach().std()) < 1.4
            means.append(float(now.detach().mean()))
        x = now.detach()
    bound = math.sqrt(1 / width + 4 / width)
    assert max(abs(mean) for mean in means) < 4 * bound
    assert abs(sum(means) / depth) < 4 * bound / math.sqrt(depth)


@pytest.mark.parametrize("divisive", [True, False])
@pytest.mark.parametrize("rate", [0.1, 0.3, 0.6])
def test_the_variance_after_init_is_what_the_draw_of_independent_inputs_makes_it(divisive: bool, rate: float) -> None:
    """E[I²] = E[x²] / (E[x²] + V) (1 + 1/n_I): the variance of I_bal = Σ_j (W_ij - mean of n_I others) x_j, over V."""
    layer = EILinear(400, 2000, divisive=divisive, dtype=torch.float64, generator=draw())
    x = spikes(300, 400, rate=rate)
    layer.init_from(x)
    expected = rate / (rate + rate * (1 - rate)) * (1 + 1 / 500)
    assert float(layer(x).detach().square().mean()) == pytest.approx(expected, rel=0.1)


def test_init_is_sequential_and_the_first_training_batch_does_the_same() -> None:
    def make() -> Sequential:
        return Sequential(
            EILinear(30, 40, generator=draw(1)), LIF(40), EILinear(40, 10, output=True, generator=draw(2))
        )

    x = torch.rand(5, 20, 30, generator=draw())
    called, lazy = make(), make()
    found = initialise_ei(called, x)
    out = lazy(x)[0]
    torch.testing.assert_close(called(x)[0], out)
    hidden = called[1](called[0](x))[0]
    assert found["2"].mean == pytest.approx(float(hidden.mean()))
    assert called.training
    before = copy.deepcopy(called.state_dict())
    assert initialise_ei(called, x) == {}  # what is initialised stays
    assert all(torch.equal(value, before[name]) for name, value in called.state_dict().items())
    again = initialise_ei(called, x, generator=draw(7))
    assert set(again) == {"0", "2"}
    assert not torch.equal(called[0].weight_ee, before["0.weight_ee"])


def test_a_silent_layer_assumes_a_rate_and_says_so() -> None:
    net = Sequential(EILinear(20, 16), LIF(16, threshold=1e9), EILinear(16, 8))
    with pytest.warns(SilentInputWarning, match="layer 2"):
        found = initialise_ei(net, torch.rand(3, 10, 20))
    assert not found["0"].assumed
    assert found["2"].assumed
    assert found["2"].mean == 0.2
    assert all(bool(torch.isfinite(p).all()) for p in net.parameters())
    assert float(net[2].weight_ee.detach().mean()) > 0
    assert torch.equal(net(torch.rand(3, 10, 20))[0], torch.zeros(3, 10, 8))  # no inhibition: the bias alone
    with pytest.warns(SilentInputWarning):
        EILinear(5, 4)(torch.full((3, 5), 0.5))  # one image three times does not vary either


def test_zeros_are_replaced_by_the_smallest_other_value_of_the_same_sample() -> None:
    layer = EILinear(6, 4, ratio=2, dtype=torch.float64, generator=draw())
    x = spikes(5, 6, rate=0.6)
    x[1] = 0
    layer.init_from(x)
    with torch.no_grad():
        layer.weight_ei.copy_(torch.rand(4, 2, generator=draw(3)))
        layer.weight_ei[2] = 0
        layer.bias.fill_(0.25)
    now = layer.currents(x)
    balanced = now.excitation - now.inhibition
    others = now.shunting[0][[0, 1, 3]]
    torch.testing.assert_close(now.integrated[0, 2], balanced[0, 2] / others.min() + 0.25)
    torch.testing.assert_close(now.integrated[0, 0], balanced[0, 0] / now.shunting[0, 0] + 0.25)
    assert now.integrated[1].tolist() == [0.25] * 4
    # straight through: the gradient is that of a division by the replacement
    now.integrated[0, 2].backward()
    slope = -balanced[0, 2] / others.min() ** 2
    inhibitory = layer.weight_ie @ x[0]
    expected = (slope * layer.gain_i * inhibitory - inhibitory / others.min()) / layer.fan_in
    torch.testing.assert_close(layer.weight_ei.grad[2], expected.detach())
    assert all(bool(torch.isfinite(p.grad).all()) for p in layer.parameters())


def test_without_replacement_a_silent_sample_is_no_number() -> None:
    layer = EILinear(6, 4, replace_zeros=False)
    x = torch.rand(5, 6)
    layer(x)
    x[1] = 0
    assert bool(layer(x)[1].isnan().all())
    assert bool(layer(x)[0].isfinite().all())


def test_the_gradient_of_the_mixing_weights_is_scaled_and_no_other() -> None:
    x = spikes(20, 12, rate=0.6)
    gradients = []
    for scaled in (True, False):
        layer = EILinear(12, 8, scale_gradient=scaled, dtype=torch.float64, generator=draw())
        layer.init_from(x)
        copied = copy.deepcopy(shaken(layer))  # a hook would be lost here
        copied(x).square().sum().backward()
        gradients.append({name: p.grad for name, p in copied.named_parameters()})
    for name, gradient in gradients[1].items():
        torch.testing.assert_close(gradients[0][name], gradient / 12 if name == "weight_ei" else gradient)


def test_gradients_are_those_of_finite_differences() -> None:
    x = spikes(4, 5, rate=0.7)
    layer = EILinear(5, 4, ratio=2, scale_gradient=False, dtype=torch.float64, generator=draw())
    layer.init_from(x)
    shaken(layer)
    names, values = zip(*[(n, p.detach().clone().requires_grad_()) for n, p in layer.named_parameters()], strict=True)

    def run(x: torch.Tensor, *parameters: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(layer, dict(zip(names, parameters, strict=True)), (x,))

    assert torch.autograd.gradcheck(run, ((x + 0.1).requires_grad_(), *values))


def test_per_sample_gradients_add_up_to_the_gradient() -> None:
    x = spikes(6, 5, rate=0.7)
    layer = EILinear(5, 4, dtype=torch.float64, generator=draw())
    layer.init_from(x)
    parameters = {name: p.detach() for name, p in layer.named_parameters()}

    def loss(parameters, sample):
        return torch.func.functional_call(layer, parameters, (sample.unsqueeze(0),)).square().sum()

    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, x)
    layer(x).square().sum().backward()
    for name, p in layer.named_parameters():
        torch.testing.assert_close(each[name].sum(0), p.grad)


def test_a_compiled_layer_computes_the_same() -> None:
    layer = EILinear(6, 4, generator=draw())
    x = torch.rand(5, 6, generator=draw(1))
    x[1] = 0
    layer.init_from(x)
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), layer(x))


@settings(max_examples=20, deadline=None)
@given(scale=st.floats(0.1, 50), seed=st.integers(0, 1000))
def test_division_makes_the_current_independent_of_contrast(scale: float, seed: int) -> None:
    layer = EILinear(10, 8, dtype=torch.float64, generator=draw(seed))
    x = torch.rand(20, 10, generator=draw(seed + 1), dtype=torch.float64)
    layer.init_from(x)
    torch.testing.assert_close(layer(scale * x), layer(x))


def test_signs_are_kept_through_training_and_the_bias_is_free() -> None:
    net = Sequential(EILinear(10, 12, generator=draw()), LIF(12), EILinear(12, 4, output=True, generator=draw()))
    x = torch.rand(4, 16, 10, generator=draw())
    initialise_ei(net, x)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5, momentum=0.9)
    project_after_step(optimizer, net)
    for _ in range(20):
        optimizer.zero_grad()
        net(x)[0].mean(0).square().sum().add(net[0].bias.sum()).backward()
        optimizer.step()
        assert all(bool((p >= 0).all()) for name, p in net.named_parameters() if "bias" not in name)
    assert bool((net[0].bias < 0).any())


def test_parametrized_layers_compute_the_same_and_cannot_be_initialised_again() -> None:
    layer = EILinear(10, 8, generator=draw(), dtype=torch.float64)
    x = spikes(30, 10, rate=0.5)
    layer.init_from(x)
    before = layer(x).detach()
    parametrize_(layer)
    torch.testing.assert_close(layer(x).detach(), before, rtol=1e-5, atol=1e-5)
    with pytest.raises(UnsupportedError, match="parametrized"):
        initialise_ei(layer, x, generator=draw())


def test_a_sequence_in_two_pieces_is_the_sequence_whole() -> None:
    net = Sequential(EILinear(10, 8), LIF(8), EILinear(8, 4, output=True))
    x = torch.rand(6, 5, 10)
    initialise_ei(net, x)
    whole, _ = net(x)
    first, state = net(x[:2])
    second, _ = net(x[2:], state)
    torch.testing.assert_close(torch.cat([first, second]), whole)


def test_rewriting_pairs_layers_with_their_normalisation() -> None:
    old = Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), LIF((8, 8, 8)), nn.AvgPool2d(2), nn.Flatten(),
        nn.Sequential(nn.Linear(128, 20), nn.BatchNorm1d(20)), LIF(20), nn.Linear(20, 3),
    )  # fmt: skip
    new = to_ei(old, generator=draw())
    kinds = [type(m).__name__ for m in new.modules() if not isinstance(m, nn.Sequential)]
    kinds = [kind for kind in kinds if kind != "NonNegative"]
    assert kinds == ["EIConv2d", "LIF", "AvgPool2d", "Flatten", "EILinear", "LIF", "EILinear"]
    assert new[-1].output
    assert new[-1].inhibitory_units == 1  # the ratio is lowered to what three classes allow
    assert not new[0].output
    assert new[1] is not old[2]
    assert new(torch.rand(4, 6, 1, 8, 8))[0].shape == (4, 6, 3)


def test_rewriting_serves_rectified_networks_and_trains() -> None:
    rectifier = nn.ReLU()
    new = to_ei(
        nn.Sequential(nn.Linear(8, 32), nn.BatchNorm1d(32), rectifier, nn.Linear(32, 32), rectifier, nn.Linear(32, 2)),
        generator=draw(),
    )
    assert len(new) == 5  # a rectifier that stands there twice stays twice
    x = torch.rand(200, 8, generator=draw(3))
    y = (x[:, 0] > x[:, 1]).long()
    initialise_ei(new, x)
    optimizer = torch.optim.SGD(new.parameters(), lr=0.003, momentum=0.9)
    project_after_step(optimizer, new)
    for _ in range(200):
        optimizer.zero_grad()
        nn.functional.cross_entropy(new(x), y).backward()
        optimizer.step()
    assert float((new(x).argmax(1) == y).float().mean()) > 0.95


@pytest.mark.parametrize(
    ("network", "match"),
    [
        (nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)), "negative numbers from layer 0"),
        (nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2)), "negative numbers from layer 1"),
        (nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 2)), "right behind"),
        (nn.Sequential(nn.Conv2d(4, 4, 3, groups=2)), "cannot be rewritten"),
        (nn.Sequential(nn.Linear(4, 4), nn.TransformerEncoderLayer(4, 1), nn.Linear(4, 2)), "holds weights"),
        (nn.Sequential(nn.ReLU()), "no weight layer"),
        (nn.Linear(2, 2), "only a Sequential"),
    ],
)
def test_what_cannot_be_rewritten_is_refused(network: nn.Module, match: str) -> None:
    with pytest.raises(UnsupportedError, match=match):
        to_ei(network)


def test_bad_input_is_refused() -> None:
    with pytest.raises(RangeError, match="no inhibitory cell"):
        EILinear(4, 3, ratio=4)
    with pytest.raises(ShapeError, match="in_features"):
        EILinear(0, 4)
    with pytest.raises(ShapeError, match="one number or two"):
        EIConv2d(1, 4, (3, 3, 3))
    layer = EILinear(4, 4)
    with pytest.raises(PlexusError, match="before it was initialised"):
        layer.eval()(torch.rand(3, 4))
    layer.train()
    with pytest.raises(RangeError, match="negative"):
        layer(torch.randn(30, 4))
    with pytest.raises(RangeError, match="NaN"):
        layer(torch.full((3, 4), math.nan))
    layer(torch.rand(30, 4))
    with pytest.raises(RangeError, match="negative"):
        layer(torch.randn(30, 4))
    with pytest.raises(ShapeError, match="does not fit"):
        layer(torch.rand(3, 5))
    with pytest.raises(ShapeError, match="2 channels"):
        EIConv2d(2, 4, 3)(torch.rand(3, 1, 8, 8))
    with pytest.raises(PlexusError, match="already"):
        layer.init_from(torch.rand(30, 4))
    with pytest.raises(PlexusError, match="no E-I layer"):
        initialise_ei(nn.Linear(2, 2), torch.rand(3, 2))
