"""Modes: thresholds and gains on a frozen network."""

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import plexus.nn as pn
from plexus import edit, probe
from plexus.edit.gate import (
    NeuronModes,
    active_neurons,
    gumbel_gate,
    hard_gate,
    merge_gain,
    mode_report,
    prune_off_neurons,
    sigmoid_gate,
    top_k_gate,
)
from plexus.errors import RangeError, ShapeError, SiteError, UnknownNameError, UnsupportedError
from plexus.units import Neurons, Site, sites

FAMILIES = ("gpt2", "llama", "neox", "phi3")


def mlp(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3)
    ).requires_grad_(False)


def cnn() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.Conv2d(5, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)
    ).requires_grad_(False)


def spiking() -> pn.Sequential:
    torch.manual_seed(0)
    return pn.Sequential(nn.Linear(4, 6), pn.LIF(6, threshold=0.5), nn.Linear(6, 3)).requires_grad_(False)


def disturbed(modes: NeuronModes, name: str = "task", seed: int = 1) -> NeuronModes:
    """A mode with random numbers."""
    mode, generator = modes.add(name), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tau in mode.thresholds:
            tau.add_(torch.rand(tau.shape, generator=generator) * 0.5)
        for gain in mode.gains:
            gain.mul_(0.5 + torch.rand(gain.shape, generator=generator))
    return modes.eval()


def batch() -> Tensor:
    return torch.randn(12, 4, generator=torch.Generator().manual_seed(2))


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "mlp": (mlp, batch),
    "cnn": (cnn, lambda: torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(2))),
    "spiking": (spiking, lambda: 3 * torch.rand(9, 5, 4, generator=torch.Generator().manual_seed(2))),
}


def out(answer: Any) -> Tensor:
    return answer if isinstance(answer, Tensor) else answer[0]


def make(kind: str, **settings: Any) -> tuple[NeuronModes, Tensor]:
    build, data = MODELS[kind]
    base = build()
    example = data() if kind == "cnn" else None
    return NeuronModes(base, example=example, **settings), data()


def test_the_equation_of_the_gate_soft_hard_and_straight_through() -> None:
    site = Site("0", "b u")
    base = nn.Sequential(nn.Identity(), nn.Identity())
    modes = NeuronModes(base, site, sizes={site: 3}, temperature=0.2)
    mode = modes.add("m")
    with torch.no_grad():
        mode.thresholds[0].copy_(torch.tensor([-1.0, 0.1, 0.5]))
        mode.gains[0].copy_(torch.tensor([2.0, -1.0, 3.0]))
    a = torch.tensor([[0.3, 0.05, 0.6], [-2.0, 1.0, 0.5]])
    tau, gamma = mode.thresholds[0], mode.gains[0]
    soft = gamma * torch.sigmoid((a - tau) / 0.2) * a
    torch.testing.assert_close(modes.train()(a), soft)
    hard = gamma * torch.tensor([[1.0, 0, 1], [0, 1, 0]]) * a
    torch.testing.assert_close(modes.eval()(a), hard)
    torch.testing.assert_close(modes.soften()(a), soft)
    modes.harden().train()
    torch.testing.assert_close(modes(a), hard)
    slopes = [torch.autograd.grad(f().sum(), tau)[0] for f in (lambda: modes(a), lambda: soft)]
    torch.testing.assert_close(*slopes)


@pytest.mark.parametrize("kind", MODELS)
def test_a_mode_that_does_nothing_is_the_base_exactly(kind: str) -> None:
    modes, x = make(kind)
    expected = out(modes.base(x))
    mode = modes.add("idle")
    with torch.no_grad():
        for tau in mode.thresholds:
            tau.fill_(0.0 if kind == "spiking" else -torch.inf)
    for state in (modes.train(), modes.eval()):
        assert torch.equal(out(state(x)), expected)


@pytest.mark.parametrize("kind", MODELS)
def test_the_base_is_not_touched_by_training_and_comes_back(kind: str) -> None:
    modes, x = make(kind)
    before = {name: tensor.clone() for name, tensor in modes.base.state_dict().items()}
    plain = out(modes.base(x))
    modes.add("task")
    parameters = modes.train_parameters("task")
    assert {id(p) for p in parameters} == {id(p) for p in modes.parameters() if p.requires_grad}
    optimizer = torch.optim.Adam(parameters, lr=0.05)
    for _ in range(3):
        optimizer.zero_grad()
        out(modes(x)).square().mean().backward()
        assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in parameters)
        optimizer.step()
    assert all(torch.equal(before[name], tensor) for name, tensor in modes.base.state_dict().items())
    assert not modes.base.training
    assert not torch.equal(out(modes.eval()(x)), plain)
    assert torch.equal(out(modes.activate(None)(x)), plain)
    assert torch.equal(out(modes.base(x)), plain)
    assert not any("threshold" in vars(module) for module in modes.base.modules() if isinstance(module, pn.LIF))


def test_gradients_of_thresholds_and_gains() -> None:
    base = mlp().double()
    modes = NeuronModes(base)
    mode, x = disturbed(modes)["task"].double(), batch().double()
    names = [name for name, _ in mode.named_parameters()]

    def answer(*values: Tensor) -> Tensor:
        return torch.func.functional_call(
            modes.train(), {f"modes.task.{n}": v for n, v in zip(names, values, strict=True)}, (x,)
        )

    assert torch.autograd.gradcheck(answer, [p.detach().clone().requires_grad_() for p in mode.parameters()])


def test_two_modes_do_not_disturb_each_other_and_lie_in_one_file_each() -> None:
    modes, x = make("mlp")
    first = disturbed(modes, "one", 1)(x)
    second = disturbed(modes, "two", 2)(x)
    assert not torch.equal(first, second)
    assert torch.equal(modes.activate("one")(x), first)
    file = io.BytesIO()
    torch.save(modes["one"].state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    assert sum(value.numel() for value in state.values() if isinstance(value, Tensor)) == 2 * (8 + 6) + 1
    fresh = NeuronModes(mlp())
    fresh.add("again").load_state_dict(state)
    assert torch.equal(fresh.eval()(x), first)
    other = NeuronModes(
        nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3)).requires_grad_(False)
    )
    with pytest.raises(UnsupportedError, match="another model"):
        other.add("again").load_state_dict(state)


@pytest.mark.parametrize("kind", MODELS)
def test_copies_and_whole_files(kind: str) -> None:
    modes, x = make(kind)
    expected = out(disturbed(modes)(x))
    with modes.on():
        twin = copy.deepcopy(modes)
        bare = copy.deepcopy(modes.base)
    assert torch.equal(out(twin(x)), expected)
    assert torch.equal(out(bare(x)), out(modes.activate(None)(x)))
    fresh, _ = make(kind)
    fresh.add("task")
    fresh.load_state_dict(twin.state_dict())
    assert torch.equal(out(fresh.eval()(x)), expected)


def test_switching_inside_one_with() -> None:
    modes, x = make("mlp")
    first, second = disturbed(modes, "one", 1)(x), disturbed(modes, "two", 2)(x)
    plain = modes.activate(None)(x)
    with modes.on() as base:
        for name, expected in (("two", second), (None, plain), ("one", first)):
            assert torch.equal(modes.activate(name)(x), expected)
            assert torch.equal(base(x), expected)
        with torch.no_grad():
            modes["one"].gains[0].mul_(2)
        assert not torch.equal(base(x), first)
        with pytest.raises(UnsupportedError, match="act already"):
            mode_report(modes, x)


def test_edits_and_recorders_meet_the_modes() -> None:
    modes, x = make("mlp")
    expected = disturbed(modes)(x)
    site = modes.sites[0]
    with modes.on() as base:
        record = probe.record(base, x, site)
        assert torch.equal(base(x), expected)
        with edit.scale(base, Neurons.of({site: 8}, {site: [0]}), 0.0):
            assert not torch.equal(base(x), expected)
    tau, gamma = modes["task"].thresholds[0], modes["task"].gains[0]
    a = torch.relu(modes.base[0](x))
    torch.testing.assert_close(record[site], (a * (a > tau) * gamma).detach())


def test_interpolation() -> None:
    modes, x = make("mlp")
    first, second = disturbed(modes, "one", 1)(x), disturbed(modes, "two", 2)(x)
    with torch.no_grad():
        modes["one"].thresholds[0][0] = modes["two"].thresholds[0][0] = -torch.inf
    first, second = modes.activate("one")(x), modes.activate("two")(x)
    modes.interpolate("one", "two", 0.0, "start")
    assert torch.equal(modes(x), first)
    modes.interpolate("one", "two", 1.0, "end")
    assert torch.equal(modes(x), second)
    middle = modes.interpolate("one", "two", 0.25, "between")
    torch.testing.assert_close(middle.gains[0], 0.75 * modes["one"].gains[0] + 0.25 * modes["two"].gains[0])
    assert middle.thresholds[0][0] == -torch.inf


@pytest.mark.parametrize("family", FAMILIES)
def test_transformers(family: str, tiny: Callable[..., Any]) -> None:
    model, inputs = tiny(family)
    modes = NeuronModes(model.requires_grad_(False), gate_on="magnitude")
    plain = modes.base(**inputs).logits
    disturbed(modes)
    answer = modes(**inputs).logits
    assert not torch.allclose(answer, plain)
    ids = inputs["input_ids"]
    mask = torch.ones_like(ids)
    mask[0, :2] = 0
    with modes.on() as base:
        tokens = base.generate(input_ids=ids, attention_mask=mask, max_new_tokens=4, do_sample=False, eos_token_id=None)
        for step in range(6, 10):
            logits = base(input_ids=tokens[1:, :step]).logits
            assert torch.equal(logits[:, -1].argmax(-1), tokens[1:, step])
    merged = merge_gain(modes)
    torch.testing.assert_close(merged(**inputs).logits, answer, rtol=1e-4, atol=1e-4)
    assert torch.equal(modes.activate(None)(**inputs).logits, plain)


@pytest.mark.parametrize("kind", ["mlp", "spiking"])
def test_merged_gains_answer_as_the_mode_does(kind: str) -> None:
    modes, x = make(kind, gain_range=(0.0, 1.2))
    expected, plain = out(disturbed(modes)(x)), modes.base.state_dict()
    merged = merge_gain(modes, "task")
    torch.testing.assert_close(out(merged(x)), expected)
    assert not merged.gain
    assert merged.base is not modes.base
    assert all(torch.equal(plain[name], tensor) for name, tensor in modes.base.state_dict().items())
    alone = disturbed(NeuronModes(MODELS[kind][0](), threshold=False))
    assert not isinstance(merge_gain(alone), NeuronModes)
    torch.testing.assert_close(out(merge_gain(alone)(x)), out(alone(x)))


@pytest.mark.parametrize("kind", MODELS)
def test_pruned_modes_answer_as_before_on_the_batches(kind: str) -> None:
    modes, x = make(kind)
    mode = disturbed(modes)["task"]
    with torch.no_grad():
        for tau in mode.thresholds:
            tau[[0, 2]] = 1e9
    expected = out(modes(x))
    smaller, removed = prune_off_neurons(modes, x)
    torch.testing.assert_close(out(smaller(x)), expected)
    for site, (before, after) in removed.sizes.items():
        assert after <= before - 2
        assert smaller.sizes[site] == after
    assert removed.parameters[1] == sum(p.numel() for p in smaller.base.parameters()) < removed.parameters[0]


def test_pruning_a_transformer_takes_equal_widths(tiny: Callable[..., Any]) -> None:
    model, inputs = tiny("llama")
    modes = NeuronModes(model.requires_grad_(False), gate_on="magnitude")
    mode = modes.add("task")
    with torch.no_grad():
        mode.thresholds[0][[3, 4, 9]] = 1e9
        mode.thresholds[1][[1, 2]] = 1e9
    modes.eval()
    with pytest.raises(UnsupportedError, match="one number of hidden units"):
        prune_off_neurons(modes, inputs)
    smaller, removed = prune_off_neurons(modes, inputs, equal_width=True)
    torch.testing.assert_close(smaller(**inputs).logits, modes(**inputs).logits)
    assert removed.config["intermediate_size"] == (32, 30)


def test_a_neuron_stays_where_all_are_off() -> None:
    modes, x = make("mlp")
    mode = modes.add("dark")
    with torch.no_grad():
        mode.thresholds[1].fill_(1e9)
    smaller, removed = prune_off_neurons(modes.eval(), x)
    torch.testing.assert_close(smaller(x), modes(x))
    assert removed.sizes[modes.sites[1]] == (6, 1)


def test_the_report_counts_what_the_network_computes() -> None:
    modes, x = make("mlp")
    disturbed(modes)
    tau, gamma = (group[0].detach() for group in (modes["task"].thresholds, modes["task"].gains))
    report = mode_report(modes.train(), [x[:5], x[5:]])
    site = modes.sites[0]
    a = torch.relu(modes.base[0](x))
    on = (a > tau) & (a > 0)
    torch.testing.assert_close(report.on_rate[site], on.double().mean(0))
    torch.testing.assert_close(report.base_on_rate[site], (a > 0).double().mean(0))
    sent = (gamma * a * (a > tau)).abs().double().mean(0)
    torch.testing.assert_close(report.contribution[site], sent * modes.base[3].weight.double().norm(dim=0))
    assert report.weighted == modes.sites
    assert torch.equal(report.off.mask(site), ~on.any(0))
    far = (gamma - 1).abs() > 0.2
    assert bool((report.changed(0.2).mask(site) >= far).all())
    assert modes.training
    assert torch.equal(active_neurons(modes, x)[site], on)


def test_padding_does_not_count(tiny: Callable[..., Any]) -> None:
    model, inputs = tiny("llama")
    modes = disturbed(NeuronModes(model.requires_grad_(False)))
    ids = inputs["input_ids"]
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    padded = mode_report(modes, {"input_ids": ids[:1], "attention_mask": mask[:1]})
    garbled = ids.clone()
    garbled[0, :3] = 7
    again = mode_report(modes, {"input_ids": garbled[:1], "attention_mask": mask[:1]})
    for site in modes.sites:
        torch.testing.assert_close(padded.on_rate[site], again.on_rate[site])


def test_spiking_thresholds_move_and_gains_scale_what_goes_out() -> None:
    modes, x = make("spiking")
    mode = modes.add("task")
    with torch.no_grad():
        mode.thresholds[0].copy_(torch.linspace(-0.2, 0.5, 6))
        mode.gains[0].copy_(torch.linspace(0.5, 2.0, 6))
    by_hand = copy.deepcopy(modes.base)
    by_hand[1].threshold = by_hand[1].threshold + mode.thresholds[0].detach()
    spikes, _ = by_hand[1](by_hand[0](x))
    expected = by_hand[2](spikes * mode.gains[0].detach())
    torch.testing.assert_close(out(modes.eval()(x)), expected)
    report = mode_report(modes, x)
    torch.testing.assert_close(report.on_rate[modes.sites[0]], spikes.double().mean((0, 1)))
    with torch.no_grad():
        mode.thresholds[0].fill_(-0.6)
    with pytest.raises(RangeError, match="to or below 0"):
        modes(x)
    assert "threshold" not in vars(modes.base[1])


def test_heads_are_gated_by_their_length(tiny: Callable[..., Any]) -> None:
    model, inputs = tiny("llama")
    found = sites.heads(model.requires_grad_(False))
    with pytest.raises(UnsupportedError, match="vectors"):
        NeuronModes(model, found)
    modes = NeuronModes(model, found, gate_on="magnitude")
    mode = modes.add("task")
    with torch.no_grad():
        mode.thresholds[0][1] = 1e9
    chosen = Neurons.of({found[0]: 4}, {found[0]: [1]})
    with edit.scale(model, chosen, 0.0):
        expected = model(**inputs).logits
    torch.testing.assert_close(modes.eval()(**inputs).logits, expected)


def test_a_penalty_on_open_gates_shuts_them() -> None:
    modes, x = make("mlp", temperature=0.3)
    modes.add("sparse")
    optimizer = torch.optim.Adam(modes.train_parameters("sparse"), lr=0.05)
    rates = []
    for _ in range(30):
        with modes.opened() as means:
            modes(x)
        optimizer.zero_grad()
        torch.stack(means).sum().backward()
        optimizer.step()
        rates.append(float(torch.stack(means).detach().sum()))
    assert rates[-1] < 0.5 * rates[0]


def test_gates() -> None:
    a = torch.linspace(-1, 1, 101, dtype=torch.float64)
    torch.testing.assert_close(sigmoid_gate(a, 0.005, 1e-4), hard_gate(a, 0.005))
    generator = torch.Generator().manual_seed(0)
    logits = torch.linspace(-3, 3, 7).expand(20000, 7)
    drawn = gumbel_gate(logits, hard=True, generator=generator).mean(0)
    assert (drawn - logits[0].sigmoid()).abs().max() < 0.015
    assert top_k_gate(torch.zeros(3, 5), 2).sum(-1).tolist() == [2, 2, 2]
    with pytest.raises(RangeError):
        top_k_gate(torch.zeros(3), 4)
    with pytest.raises(RangeError):
        sigmoid_gate(a, 0.0, 0.0)


def test_bad_input() -> None:
    base = mlp()
    with pytest.raises(UnsupportedError, match="frozen"):
        NeuronModes(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)))
    with pytest.raises(RangeError):
        NeuronModes(base, temperature=0.0)
    with pytest.raises(RangeError):
        NeuronModes(base, threshold=False, gain=False)
    with pytest.raises(SiteError):
        NeuronModes(nn.Linear(3, 3).requires_grad_(False))
    with pytest.raises(SiteError, match="example"):
        NeuronModes(cnn())
    modes = NeuronModes(base)
    modes.add("one")
    with pytest.raises(UnknownNameError):
        modes.add("one")
    for wrong in (modes.activate, modes.train_parameters, modes.__getitem__):
        with pytest.raises(UnknownNameError):
            wrong("two")
    with pytest.raises(RangeError):
        modes["one"].temperature = -1.0
    modes.base[0] = nn.Linear(4, 9).requires_grad_(False)
    modes.base[3] = nn.Linear(9, 6).requires_grad_(False)
    with pytest.raises(ShapeError, match="another size"):
        modes(batch())
