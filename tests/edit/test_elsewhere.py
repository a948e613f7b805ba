"""Edits on another device than the CPU: a model and all that is handed in lie there, results are those of the CPU."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from plexus import edit
from plexus.edit import gate, prune, rewire, steer, svd
from plexus.errors import UnsupportedError
from plexus.nn import LIF, Sequential
from plexus.units import Neurons, Recording, Scores, Site, Table, sites

HIDDEN = Site("1", "b u")
ALL = Neurons.of({HIDDEN: 6}, {HIDDEN: range(6)})
TWO = Neurons.of({HIDDEN: 6}, {HIDDEN: [1, 4]})
Put = Callable[[Tensor], Tensor]


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Identity(), nn.Linear(6, 3)).eval()


def numbers(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(len(shape)))


X = numbers(5, 4) - 0.5


def near(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found.detach().cpu(), wanted.detach(), rtol=1e-4, atol=1e-5)


def clustered(put: Put) -> steer.ClusteredDirections:
    parts = (torch.eye(6)[:2], torch.tensor([1.0, 2.0]), torch.eye(6)[2:4], torch.tensor([0.1, 0.0]))
    return steer.ClusteredDirections(*({HIDDEN: put(part)} for part in parts), {HIDDEN: put(torch.tensor([0, 1]))})


def recorded(put: Put) -> Recording:
    return Recording({HIDDEN: put(numbers(5, 6))}, {HIDDEN: Table(range(5))})


EDITS: dict[str, Callable[[Put], edit.Edit]] = {
    "scale": lambda put: edit.scale(TWO, put(torch.tensor([0.5, -1.0]))),
    "clamp": lambda put: edit.clamp(TWO, low=put(torch.zeros(6)), high=torch.full((6,), 0.2)),
    "replace": lambda put: edit.replace(TWO, {HIDDEN: put(torch.tensor([3.0, 4.0]))}),
    "add": lambda put: edit.add(TWO, put(torch.arange(6))),
    "along": lambda put: edit.add(TWO, put(torch.tensor([2.0, 1.0])), basis=put(numbers(2, 6))),
    "scale along": lambda put: edit.scale(ALL, 0.5, basis={HIDDEN: put(numbers(6))}),
    "steer": lambda put: steer.add({HIDDEN: put(numbers(6))}, put(torch.tensor(2.0))),
    "share": lambda put: steer.add({HIDDEN: put(numbers(6))}, 0.5, by="norm"),
    "ablate": lambda put: steer.ablate({HIDDEN: put(numbers(6))}),
    "rotate": lambda put: steer.rotate({HIDDEN: put(numbers(2, 6))}, put(torch.tensor(30.0))),
    "turn": lambda put: steer.rotate({HIDDEN: put(numbers(2, 6))}, 30.0, mode="adaptive"),
    "choose": lambda put: steer.choose(clustered(put), put(torch.tensor(2.0)), by="own", per="token"),
    "patch": lambda put: edit.patch(TWO, recorded(put), rows={0: 1, 3: 2}),
    "unit scaling": lambda put: edit.unit_scaling(Scores({HIDDEN: put(numbers(6) / 2 + 0.4)})),
}


@pytest.mark.parametrize("name", EDITS)
def test_edits_act_where_the_model_is_and_are_kept_in_main_memory(name: str, elsewhere: torch.device, tmp_path) -> None:
    plain, given = EDITS[name](lambda t: t), EDITS[name](lambda t: t.to(elsewhere))
    there, x = net().to(elsewhere), X.to(elsewhere)
    with plain.on(model := net()):
        wanted = model(X)
    for made in (plain, given, edit.load(edit.save(given, tmp_path / "edit.safetensors"))):
        with made.on(there):
            near(there(x), wanted)
    for step in given.steps:
        held = [*(v for n in step.numbers.values() for v in n.values.values()), *(step.basis or {}).values()]
        assert all(value.device.type == "cpu" for value in held)


@pytest.mark.parametrize("name", ["scale", "replace", "add", "along", "scale along", "steer", "ablate", "rotate"])
def test_edits_are_written_into_weights_that_lie_elsewhere(name: str, elsewhere: torch.device) -> None:
    there, made = net().to(elsewhere), EDITS[name](lambda t: t.to(elsewhere))
    edit.bake(there, made)
    with EDITS[name](lambda t: t).on(model := net()):
        near(there(X.to(elsewhere)), model(X))


def learn(device: torch.device) -> tuple[Tensor, Tensor]:
    """Numbers and directions learned while one edit acts: amounts and basis after three steps."""
    model, x = net().to(device), X.to(device)
    amount = nn.Parameter(torch.zeros(2).to(device))
    basis = nn.Parameter(numbers(2, 6).to(device))
    optimizer = torch.optim.SGD([amount, basis], lr=0.1)
    pushed = edit.add(TWO, amount)
    for _ in range(3):
        along = edit.add(TWO, 1.0, basis=basis)
        with pushed.on(model), along.on(model):
            loss = (model(x) - 1).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return amount, basis


def test_what_an_edit_learns_stays_where_it_is_learned(elsewhere: torch.device) -> None:
    for found, wanted in zip(learn(elsewhere), learn(torch.device("cpu")), strict=True):
        assert found.device.type == elsewhere.type
        near(found, wanted)
    amount, basis = (nn.Parameter(t.to(elsewhere)) for t in (torch.tensor([1.0, 2.0]), numbers(6)))
    there, made = net().to(elsewhere), edit.add(TWO, amount).then(edit.scale(TWO, 0.5, basis=basis))
    other = edit.Edit(made.steps[1:]).redirected(torch.Generator().manual_seed(0))
    with other.on(there), torch.no_grad():
        assert there(X.to(elsewhere)).isfinite().all()
    edit.bake(there, made)
    with edit.add(TWO, torch.tensor([1.0, 2.0])).then(edit.scale(TWO, 0.5, basis=numbers(6))).on(model := net()):
        near(there(X.to(elsewhere)), model(X))


def test_a_recurrent_unit_is_edited_inside_its_loop(elsewhere: torch.device) -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 6), LIF(6)), numbers(7, 5, 4) * 4
    there = copy.deepcopy(model).to(elsewhere)
    (site,) = sites.spiking(model)
    units = Neurons.of({site: 6}, {site: [0, 2]})
    given = edit.scale(units, nn.Parameter(torch.tensor([0.0, 0.5]).to(elsewhere)))
    with edit.scale(units, torch.tensor([0.0, 0.5])).on(model), given.on(there):
        near(there(x.to(elsewhere))[0], model(x)[0])


def test_clusters_are_judged_and_refined(elsewhere: torch.device) -> None:
    here, given = clustered(lambda t: t), clustered(lambda t: t.to(elsewhere))
    states, best = recorded(lambda t: t), torch.tensor([0, 1, 0, 1, 1])
    told = {HIDDEN: best.to(elsewhere)}
    assert given.accuracy(states, told) == here.accuracy(states, {HIDDEN: best})
    near(given.refined(states, told).weight[HIDDEN], here.refined(states, {HIDDEN: best}).weight[HIDDEN])


def test_a_control_vector_is_written_and_read(tiny, elsewhere: torch.device, tmp_path) -> None:
    pytest.importorskip("gguf")
    model, _ = tiny("gpt2")
    site, vector = sites.residual(model)[1], numbers(16)
    there = model.to(elsewhere)
    given = steer.add({site: vector.to(elsewhere)}, nn.Parameter(torch.tensor(3.0).to(elsewhere)))
    back = steer.read_gguf(steer.write_gguf(given, tmp_path / "push.gguf", there), there)
    near(back.steps[0].numbers["amount"].values[site], 3 * vector / vector.norm())


def test_singular_directions_are_found_and_scaled(elsewhere: torch.device) -> None:
    model, there = net(), net().to(elsewhere)
    states = numbers(40, 6)
    present, absent = states + torch.eye(6)[0], states
    given = svd.direction_scores(svd.directions(there), *(s.to(elsewhere) for s in (present, absent)), outputs=[1])
    near(given, svd.direction_scores(svd.directions(model), present, absent, outputs=torch.tensor([1])))
    before = there[2].weight.clone()
    for edited, put in ((model, lambda t: t), (there, lambda t: t.to(elsewhere))):
        svd.eigenshift(edited, put(present), put(absent), 1, outputs=put(torch.tensor([1]))).apply()
    near(there[2].weight, model[2].weight)
    with svd.scale(there, torch.tensor([0]).to(elsewhere), torch.tensor([0.5]).to(elsewhere)):
        pass
    assert not torch.equal(there[2].weight, before)


def test_units_are_removed(elsewhere: torch.device) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Sigmoid(), nn.Linear(6, 3)).eval()
    there, site = copy.deepcopy(model).to(elsewhere), Site("3", "b u", at="input")
    units = Neurons.of({site: 6}, {site: [1, 4]})
    for edited in (model, there):
        prune.remove(edited, units)
    near(there(X.to(elsewhere)), model(X))


def test_gates_and_modes(elsewhere: torch.device) -> None:
    logits = numbers(3, 4)
    noise = [gate.gumbel_gate(x, generator=torch.Generator().manual_seed(0)) for x in (logits, logits.to(elsewhere))]
    assert noise[1].device.type == elsewhere.type
    near(noise[1], noise[0])
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).requires_grad_(False)
    answers, reports = [], []
    for device in (torch.device("cpu"), elsewhere):
        modes, x = gate.NeuronModes(copy.deepcopy(base).to(device)), X.to(device)
        mode = modes.add("task")
        optimizer = torch.optim.SGD(modes.train_parameters("task"), lr=0.1)
        with torch.no_grad():
            mode.thresholds[0][:2] = 1e9
        for _ in range(2):
            optimizer.zero_grad()
            modes(x).square().mean().backward()
            optimizer.step()
        modes.eval()
        assert all(on.device.type == "cpu" for on in gate.active_neurons(modes, x).values())
        reports.append(gate.mode_report(modes, x))
        answers.append([modes(x), gate.merge_gain(modes).eval()(x), gate.prune_off_neurons(modes, x).modes(x)])
    for found, wanted in zip(answers[1], answers[0], strict=True):
        near(found, wanted)
    for name in ("on_rate", "gain", "threshold", "contribution"):
        for site, wanted in getattr(reports[0], name).values.items():
            near(getattr(reports[1], name)[site], wanted)


def test_modes_of_a_recurrent_network_are_trained(elsewhere: torch.device) -> None:
    gradients = []
    for device in (torch.device("cpu"), elsewhere):
        torch.manual_seed(0)
        base = nn.LSTM(4, 6).requires_grad_(False).to(device)
        x = numbers(7, 5, 4).to(device)
        modes = gate.NeuronModes(base, Site("", "t b u", leaf=0, where="readout"), example=x)
        modes.add("task")
        parameters = modes.train_parameters("task")
        modes(x)[0].square().mean().backward()
        gradients.append([parameter.grad.cpu() for parameter in parameters])
    for found, wanted in zip(gradients[1], gradients[0], strict=True):
        near(found, wanted)


@pytest.mark.parametrize("kind", ["softmax", "stability"])
def test_early_exit(kind: Any, elsewhere: torch.device) -> None:
    torch.manual_seed(0)
    model, x, y = Sequential(nn.Linear(4, 16), LIF(16), nn.Linear(16, 3)), numbers(6, 20, 4) * 4, torch.arange(20) % 3
    there = copy.deepcopy(model).to(elsewhere)
    here = gate.EarlyExit(model, 6, kind=kind).calibrate(x, y)
    for labels in (y, y.to(elsewhere)):
        given = gate.EarlyExit(there, 6, kind=kind).calibrate(x.to(elsewhere), labels)
        assert given.threshold == pytest.approx(here.threshold, rel=1e-4)
        near(given(x.to(elsewhere)).logits, here(x).logits)
        decided = given.decide(given.trace(x.to(elsewhere)))
        near(decided.steps, here.decide(here.trace(x)).steps)


def wired(device: torch.device, **rules: Any) -> tuple[nn.Module, rewire.SparseTraining]:
    """A masked model after three changes of its connections, the last from a state that was kept on the CPU."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    wiring = rewire.group_wiring(model, 2, p_inter=0.5, exclude=["2"], generator=torch.Generator().manual_seed(0))
    model = rewire.mask_(model.to(device), wiring)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    options = {"every": 1, "fraction": 0.2, "average": 0.5, **rules}
    x, y = numbers(16, 8).to(device), (torch.arange(16) % 2).to(device)

    def steps(sparse: rewire.SparseTraining, count: int) -> None:
        for _ in range(count):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
            sparse.step()

    with rewire.SparseTraining(model, optimizer, **options) as sparse:
        steps(sparse, 2)
        state = sparse.state_dict()
    state["gradients"] = {name: part.cpu() for name, part in state["gradients"].items()}
    for parts in state["joint"].values():
        parts.update({name: part.cpu() for name, part in parts.items() if isinstance(part, Tensor)})
    with rewire.SparseTraining(model, optimizer, **options) as sparse:
        sparse.load_state_dict(state)
        steps(sparse, 1)
    return model, sparse


@pytest.mark.parametrize("rule", ["gradient", "random", "hebbian"])
def test_connections_move(rule: str, elsewhere: torch.device) -> None:
    prune_by = "hebbian" if rule == "hebbian" else "magnitude-layer"
    (model, here), (there, sparse) = (wired(d, grow=rule, prune=prune_by) for d in (torch.device("cpu"), elsewhere))
    assert [change.exchanged for change in sparse.history] == [change.exchanged for change in here.history]
    before, after = rewire.masks(model), rewire.masks(there)
    near(after["0"], before["0"])
    near(there[0].weight, model[0].weight)
    assert rewire.edge_turnover(before, after) == {"0": 0.0}
    groups = torch.arange(8) % 2
    assert rewire.modularity(after["0"], groups, groups) == pytest.approx(
        rewire.modularity(before["0"], groups, groups)
    )
    assert rewire.densities(there) == rewire.densities(model)
    near(rewire.degrees(after["0"]).inputs, rewire.degrees(before["0"]).inputs)
    with rewire.intra_only(there), rewire.intra_only(model):
        near(there[0].weight, model[0].weight)
    with pytest.raises(UnsupportedError, match="runs on the CPU"):
        rewire.sparse_forward(there, at_least=0.1)
    dense = rewire.densify(rewire.sparse_forward(model, at_least=0.1).to(elsewhere))
    assert {p.device.type for p in dense.parameters()} == {elsewhere.type}
    near(dense[0].weight, model[0].weight)
