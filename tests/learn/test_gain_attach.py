"""Gains on the layers of foreign models: exact undo, the closed form per channel, and company with other edits."""

import copy

import pytest
import torch
from torch import nn

from plexus.errors import RangeError, SiteError, SiteNotReached, UnknownNameError, UnsupportedError
from plexus.learn.homeostasis import attach_gain_control
from plexus.nn import RecurrentRate
from plexus.units._engine import attach
from plexus.units._site import Site


def mlp() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))


def cnn() -> nn.Sequential:
    torch.manual_seed(2)
    return nn.Sequential(nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 36, 5))


USUAL = torch.randn(64, 4, generator=torch.Generator().manual_seed(3))
UNUSUAL = USUAL * torch.tensor([2.0, 0.1, 0.1, 3.0])


def test_gains_follow_the_closed_form_and_multiply_the_layer():
    model = mlp()
    a, b = model[0](USUAL).square().mean(0), model[0](UNUSUAL).square().mean(0)
    gamma = 0.5 * a.mean()
    expected = ((b + gamma) / (3 * b + gamma)) / ((a + gamma) / (3 * a + gamma))
    with attach_gain_control(model, "0", reference=USUAL.split(10), alpha=2.0, gamma=0.5) as control:
        (gain,) = control.adapt(UNUSUAL.split(7)).values()
        torch.testing.assert_close(gain, expected.detach(), rtol=1e-5, atol=1e-6)
        after = model(UNUSUAL)
    torch.testing.assert_close(after, model[2](torch.relu(gain * model[0](UNUSUAL))))
    assert gain[a < b].max() < 1 < gain[a > b].min()


def test_channels_of_a_convolution_get_one_gain_each():
    model, x = cnn().eval(), torch.rand(10, 1, 8, 8)
    drive = model[0](3 * x)
    with attach_gain_control(model, "0", reference=[x]) as control:
        (gain,) = control.adapt([3 * x]).values()
        assert gain.shape == (6,)
        torch.testing.assert_close(model(3 * x), model[1:](drive * gain[:, None, None]))


@pytest.mark.parametrize("build", [mlp, cnn])
def test_attaching_adapting_and_detaching_change_nothing_at_all(build):
    model = build().train()
    x = torch.rand(6, 1, 8, 8) if build is cnn else USUAL
    state = copy.deepcopy(model.state_dict())
    eval_model = copy.deepcopy(model).eval()
    before = eval_model(2 * x)
    control = attach_gain_control(model, "*", reference=[x])
    model.eval()
    assert torch.equal(model(2 * x), before)  # at the reference every gain is 1
    model.train()
    control.adapt([2 * x])
    assert model.training
    assert all(module.training for module in model.modules())
    model.eval()
    assert not torch.equal(model(2 * x), before)
    control.adapt([x])  # back in the reference stream
    assert torch.equal(model(2 * x), before)
    control.adapt([2 * x])
    control.detach()
    control.detach()
    assert torch.equal(model(2 * x), before)
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert list(model.state_dict()) == list(state)
    with pytest.raises(UnsupportedError, match="detached"):
        control.adapt([x])


def test_two_layers_adapt_to_the_stream_alone_not_to_history():
    model = mlp()
    with attach_gain_control(model, ["0", "2"], reference=[USUAL]) as control:
        first = control.adapt([UNUSUAL])
        control.adapt([10 * USUAL])
        again = control.adapt([UNUSUAL])
    assert all(torch.equal(first[site], again[site]) for site in first)


def test_online_steps_reach_the_gains_of_the_stream():
    model = mlp()
    with attach_gain_control(model, "0", reference=[USUAL], memory=200.0) as control:
        (target,) = control.adapt([UNUSUAL]).values()
        control.reset()
        distances = []
        for _ in range(40):
            (gain,) = control.step(UNUSUAL).values()
            distances.append(float((gain - target).abs().max()))
    assert distances[0] > 0.02  # the reference is not forgotten at once
    assert distances[-1] < 1e-3


def test_own_objective_is_lowered_by_gains_alone():
    model = mlp()
    target = torch.randn(64, 3, generator=torch.Generator().manual_seed(5))

    def objective(network, batch):
        return (network(batch[0]) - batch[1]).square().mean()

    state = copy.deepcopy(model.state_dict())
    start = objective(model, (UNUSUAL, target)).item()
    with attach_gain_control(model, "0", objective=objective, gamma=0.0) as control:
        (gain,) = control.adapt([(UNUSUAL, target)], steps=150).values()
        end = objective(model, (UNUSUAL, target)).item()
        assert (gain >= 0).all()
        assert not torch.equal(gain, torch.ones(8))
        with pytest.raises(UnsupportedError, match="running form"):
            control.step(UNUSUAL)
    assert end < 0.9 * start
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_a_failing_objective_leaves_gains_of_one():
    model = mlp()
    before = model(USUAL)
    with attach_gain_control(model, "0", objective=lambda m, b: m(b).sum() * torch.nan) as control:
        with pytest.raises(RangeError, match="NaN"):
            control.adapt([USUAL])
        assert torch.equal(model(USUAL), before)


class _Spy:
    records = True

    def __init__(self, site):
        self.site, self.values = site, None

    def __call__(self, values, visit):
        self.values = values.clone()


class _Double:
    records = False

    def __init__(self, site):
        self.site = site

    def __call__(self, values, visit):
        return 2 * values


def test_recorders_see_the_gained_values_and_other_edits_stack():
    model, site = mlp(), Site("0")
    spy = _Spy(site)
    raw = model[0](UNUSUAL)
    with attach(model, [spy]), attach_gain_control(model, site, reference=[USUAL]) as control:
        (gain,) = control.adapt([UNUSUAL]).values()
        with attach(model, [_Double(site)]):
            model(UNUSUAL)
    torch.testing.assert_close(spy.values, 2 * gain * raw)


def test_gradients_flow_through_the_gains_into_the_model():
    model = mlp()
    with attach_gain_control(model, "0", reference=[USUAL]) as control:
        (gain,) = control.adapt([UNUSUAL]).values()
        model(UNUSUAL).sum().backward()
    expected = mlp()
    expected[2](torch.relu(gain * expected[0](UNUSUAL))).sum().backward()
    torch.testing.assert_close(model[0].weight.grad, expected[0].weight.grad)


def test_units_of_a_recurrent_layer_are_gained_inside_its_loop():
    """The gained network equals one whose recurrent weights and output carry the gains."""
    weight = 0.5 * torch.randn(5, 5, generator=torch.Generator().manual_seed(1)) / 5**0.5
    net = RecurrentRate(weight)
    x = torch.rand(30, 2, 5, generator=torch.Generator().manual_seed(2))
    usual, unusual = [x], [x * torch.tensor([4.0, 1.0, 1.0, 1.0, 0.2])]
    site = Site("", axes="t b u", leaf=0)
    before = net(x)[0]
    with attach_gain_control(net, site, reference=usual) as control:
        assert torch.equal(net(x)[0], before)
        (gain,) = control.adapt(unusual).values()
        out, _ = net(x)
        (again,) = control.adapt(usual).values()
        assert torch.equal(again, torch.ones(5))
        assert torch.equal(net(x)[0], before)
    folded, _ = RecurrentRate(weight * gain)(x)
    torch.testing.assert_close(out, gain * folded)
    assert not torch.allclose(out, gain * before)
    assert torch.equal(net(x)[0], before)


def test_own_objective_reaches_the_loop_of_a_recurrent_layer():
    net = RecurrentRate(0.1 * torch.ones(3, 3))
    drive = torch.ones(20, 1, 3)
    target = torch.tensor([1.0, 0.5, 0.25])
    site = Site("", axes="t b u")
    with attach_gain_control(net, site, objective=lambda m, b: (m(b)[0][-1] - target).square().sum(), gamma=0.0) as c:
        c.adapt([drive], steps=400)
        torch.testing.assert_close(net(drive)[0][-1, 0], target, rtol=1e-2, atol=1e-2)


def test_an_lstm_is_gained_inside_its_loop_or_on_request_outside():
    torch.manual_seed(0)
    lstm = nn.LSTM(4, 6, batch_first=True)
    x = torch.randn(3, 7, 4)
    before = lstm(x)[0]
    for where in ("loop", "readout"):
        site = Site("", axes="b t u", where=where)
        with attach_gain_control(lstm, site, reference=[x]) as control:
            (gain,) = control.adapt([3 * x]).values()
            out = lstm(x)[0]
        cell = nn.LSTM(4, 6, batch_first=True)
        cell.load_state_dict(lstm.state_dict())
        if where == "loop":
            with torch.no_grad():
                cell.weight_hh_l0.mul_(gain)
        torch.testing.assert_close(out, gain * cell(x)[0])
        assert torch.equal(lstm(x)[0], before)


def test_a_copy_made_while_attached_has_no_gains():
    model = mlp()
    before = model(UNUSUAL)
    with attach_gain_control(model, "0", reference=[USUAL]) as control:
        control.adapt([UNUSUAL])
        twin = copy.deepcopy(model)
    assert torch.equal(twin(UNUSUAL), before)


def test_bfloat16_keeps_its_dtype():
    model = mlp().to(torch.bfloat16)
    with attach_gain_control(model, "0", reference=[USUAL.bfloat16()]) as control:
        control.adapt([UNUSUAL.bfloat16()])
        assert model(USUAL.bfloat16()).dtype == torch.bfloat16


def test_an_exception_inside_is_not_replaced():
    with pytest.raises(ZeroDivisionError), attach_gain_control(mlp(), "0", reference=[USUAL]):
        raise ZeroDivisionError


def test_hugging_face_gpt2_with_padding():
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        n_layer=2, n_head=2, n_embd=16, vocab_size=40, n_positions=16, attn_implementation="eager"
    )
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(config).eval()
    low, high = torch.randint(0, 20, (4, 8)), torch.randint(20, 40, (4, 8))
    before = model(input_ids=high).logits
    with attach_gain_control(model, "*.mlp.c_fc", reference=[{"input_ids": low}]) as control:
        gains = control.adapt([{"input_ids": high}])
        assert [tuple(gain.shape) for gain in gains.values()] == [(64,), (64,)]
        assert not torch.equal(model(input_ids=high).logits, before)
        padded = {
            "input_ids": torch.cat([high, torch.zeros(4, 5, dtype=torch.int64)], 1),
            "attention_mask": torch.cat([torch.ones(4, 8), torch.zeros(4, 5)], 1).long(),
        }
        for site, gain in control.adapt([padded]).items():
            torch.testing.assert_close(gain, gains[site], rtol=1e-4, atol=1e-5)
    assert torch.equal(model(input_ids=high).logits, before)


@pytest.mark.parametrize(
    ("error", "call"),
    [
        (UnknownNameError, lambda: attach_gain_control(mlp(), "fc")),
        (UnknownNameError, lambda: attach_gain_control(mlp(), "0", objective="codin")),
        (SiteError, lambda: attach_gain_control(mlp(), "1")),
        (RangeError, lambda: attach_gain_control(mlp(), [])),
        (RangeError, lambda: attach_gain_control(mlp(), "0", alpha=-1.0)),
        (RangeError, lambda: attach_gain_control(mlp(), "0", reference=[])),
        (RangeError, lambda: attach_gain_control(mlp(), "0", reference=[USUAL * torch.nan])),
        (RangeError, lambda: attach_gain_control(mlp(), "0").adapt([USUAL])),
        (RangeError, lambda: attach_gain_control(mlp(), "0").step(USUAL)),
    ],
)
def test_bad_input(error, call):
    with pytest.raises(error):
        call()


def test_a_layer_that_the_stream_never_reaches_is_an_error():
    class Half(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            return self.used(x)

    with pytest.raises(SiteNotReached):
        attach_gain_control(Half(), "unused", reference=[USUAL])
