"""Masks that let weights regrow, wirings, and training that rewires."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import networkx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import plexus as px
from plexus.edit import rewire
from plexus.edit.rewire._choose import largest
from plexus.edit.rewire._hebbian import activity_site
from plexus.errors import PlexusError, RangeError, ShapeError, UnknownNameError, UnsupportedError
from plexus.nn.synapses import Dense, Wiring, group_connectivity, random_connectivity, small_world_between


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def perceptron(density: float = 0.3) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 3))
    wiring = rewire.random_wiring(model, density, exclude=["4"], generator=seeded())
    rewire.mask_(model, wiring, initialise=True, generator=seeded(1))
    return model


X, Y = torch.randn(64, 20, generator=seeded(5)), torch.randint(0, 3, (64,), generator=seeded(6))


def train(model: nn.Module, optimizer: torch.optim.Optimizer, sparse: rewire.SparseTraining | None, steps: int) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(X), Y).backward()
        optimizer.step()
        if sparse is not None:
            sparse.step()


# masks


def test_absent_weights_keep_the_gradient_they_would_have() -> None:
    model = perceptron()
    dense = copy.deepcopy(model)
    rewire.unmask_(dense)
    for net in (model, dense):
        nn.functional.cross_entropy(net(X), Y).backward()
    absent = ~model[0].weight_mask
    assert torch.equal(model[0].weight.grad, dense[0].weight.grad)
    assert model[0].weight.grad[absent].abs().max() > 0
    assert not model[0].weight[absent].any()


def test_masks_survive_copies_files_and_devices() -> None:
    model = perceptron()
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        other[0].weight_mask[0, 0] ^= True
        with torch.no_grad():
            other[0].weight.fill_(1.0)
        px.nn.project_(other)
        assert torch.equal(other[0].weight != 0, other[0].weight_mask)  # the copy obeys its own mask
        assert other[0].weight_mask[0, 0] != model[0].weight_mask[0, 0]
    fresh = perceptron(0.5)
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh[0].weight_mask, model[0].weight_mask)
    assert torch.equal(fresh(X), model(X))
    moved = model.to(torch.bfloat16)
    px.nn.project_(moved)
    assert moved[0].weight_mask.dtype == torch.bool


def test_signs_and_masks_hold_together() -> None:
    layer = Dense(6, 4, signs=torch.tensor([1.0, 1, 1, -1, -1, -1]), generator=seeded())
    model = nn.Sequential(layer)
    rewire.mask_(model, {"0": torch.rand(4, 6, generator=seeded()) < 0.5})
    with torch.no_grad():
        layer.weight.normal_(generator=seeded(3))
    px.nn.project_(model)
    assert not layer.weight[~layer.weight_mask].any()
    assert (layer.weight[:, :3] >= 0).all()
    assert (layer.weight[:, 3:] <= 0).all()


def test_fan_in_keeps_the_variance_whatever_the_number_of_inputs() -> None:
    mask = torch.zeros(2000, 300, dtype=torch.bool)
    mask[:1000, :3] = True
    mask[1000:] = True
    layer = px.nn.MaskedLinear(mask, bias=False, generator=seeded())
    out = layer(torch.randn(400, 300, generator=seeded(1)))
    few, many = out[:, :1000].var().item(), out[:, 1000:].var().item()
    assert few == pytest.approx(2.0, rel=0.1)
    assert many == pytest.approx(2.0, rel=0.1)


def test_a_convolution_is_masked_by_weight_or_by_kernel() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3))
    rewire.mask_(model, {"0": torch.eye(4, 3).bool()})
    assert int(model[0].weight_mask.sum()) == 3 * 9
    full = torch.rand(4, 3, 3, 3, generator=seeded()) < 0.5
    rewire.mask_(model, {"0": full})
    assert torch.equal(rewire.masks(model)["0"], full)


def test_hugging_face_layers_are_masked_the_right_way_round(tiny: Callable) -> None:
    for family, pattern in (("gpt2", "*.mlp.c_fc"), ("llama", "*.mlp.up_proj"), ("neox", "*dense_h_to_4h")):
        model, inputs = tiny(family)
        layers = rewire.maskable(model, pattern)
        wiring = rewire.random_wiring(model, 0.5, pattern, generator=seeded())
        assert all(w.mask.shape == (32, 16) for w in wiring.values())
        rewire.mask_(model, wiring)
        unit = next(iter(wiring.values())).mask[0]
        layer = next(iter(layers.values()))
        row = layer.weight[:, 0] if family == "gpt2" else layer.weight[0]
        assert torch.equal(row != 0, unit)
        assert model(**inputs).logits.isfinite().all()
        with pytest.raises(UnsupportedError, match="shared"):
            rewire.maskable(_tied(model))


def _tied(model: nn.Module) -> nn.Module:
    return nn.ModuleDict({"a": (layer := nn.Linear(2, 2)), "b": _same_weight(layer)})


def _same_weight(layer: nn.Linear) -> nn.Linear:
    other = nn.Linear(2, 2)
    other.weight = layer.weight
    return other


def test_refused_masks() -> None:
    model = perceptron()
    with pytest.raises(UnknownNameError):
        rewire.mask_(model, {"1": torch.ones(2, 2)})
    with pytest.raises(ShapeError):
        rewire.mask_(model, {"0": torch.ones(2, 2)})
    with pytest.raises(UnsupportedError, match="mask of its own"):
        rewire.mask_(nn.Sequential(Dense(3, 3, mask=torch.eye(3).bool())), {"0": torch.eye(3).bool()})
    with pytest.raises(RangeError, match="without any input"):
        px.nn.MaskedLinear(torch.zeros(3, 3).bool())
    with pytest.raises(PlexusError, match="mask"):
        rewire.density(nn.Linear(2, 2))
    with pytest.raises(PlexusError, match="groups"), rewire.intra_only(model):
        pass


# wirings


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 6), st.integers(1, 8), st.integers(1, 8), st.floats(0.2, 1), st.floats(0, 1),
    st.sampled_from(["index", "random", "interleaved"]), st.integers(0, 99),
)  # fmt: skip
def test_groups_have_exactly_the_expected_number_of_weights(
    groups: int, size_in: int, size_out: int, p: float, q: float, scheme: str, seed: int
) -> None:
    n_in, n_out = groups * size_in, groups * size_out
    try:
        wiring = group_connectivity(n_in, n_out, groups, p, q, scheme, generator=seeded(seed))  # type: ignore[arg-type]
    except RangeError:
        return  # too sparse for every output to hear something
    same = wiring.groups_out[:, None] == wiring.groups_in
    assert int((wiring.mask & same).sum()) == round(p * int(same.sum()))
    assert int((wiring.mask & ~same).sum()) == round(q * int((~same).sum()))
    assert wiring.groups_in.bincount().tolist() == [size_in] * groups
    assert wiring.mask.any(1).all()


def test_the_default_density_is_that_of_the_formula() -> None:
    wiring = group_connectivity(512, 512, 8, generator=seeded())
    assert wiring.density == pytest.approx(1 / 8 + 0.15 * 7 / 8, rel=1e-4)
    drawn = group_connectivity(512, 512, 8, exact=False, generator=seeded())
    assert drawn.density == pytest.approx(1 / 8 + 0.15 * 7 / 8, rel=0.02)
    assert drawn.density != wiring.density


def test_mixing_reaches_every_group_and_index_never_leaves_its_own() -> None:
    model = nn.Sequential(*(nn.Linear(16, 16, bias=False) for _ in range(2)))
    reach = {}
    for scheme in ("index", "mixer"):
        wiring = rewire.group_wiring(model, 4, p_inter=0.0, scheme=scheme)  # type: ignore[arg-type]
        reach[scheme] = (wiring["1"].mask.float() @ wiring["0"].mask.float()) > 0
    assert reach["mixer"].all()
    assert reach["index"].sum() == 16 * 4


def test_erk_shares_out_exactly() -> None:
    shapes = {"conv": (16, 3, 3, 3), "wide": (300, 784), "thin": (10, 100)}
    for density in (0.02, 0.1, 0.5, 0.9, 1.0):
        found = rewire.erk_densities(shapes, density)
        sizes = {name: torch.Size(shape).numel() for name, shape in shapes.items()}
        assert sum(found[n] * sizes[n] for n in shapes) == pytest.approx(density * sum(sizes.values()))
        assert max(found.values()) <= 1
    low = rewire.erk_densities(shapes, 0.01)  # nothing is full: proportional to (sum of dimensions) / (product)
    assert low["wide"] / low["thin"] == pytest.approx((1084 / 235200) / (110 / 1000))


def test_a_small_world_goes_from_local_to_random() -> None:
    local = small_world_between(60, 30, 7, 0.0)
    assert (local.mask.sum(1) == 7).all()
    away = (torch.arange(30)[:, None] * 2 - torch.arange(60)).abs()
    assert torch.minimum(away, 60 - away)[local.mask].max() <= 4
    mixed = small_world_between(60, 30, 7, 1.0, generator=seeded()).mask
    assert (mixed.sum(1) == 7).all()
    assert (mixed & local.mask).float().sum() / local.mask.sum() < 0.3


def test_wirings_refuse_what_cannot_be() -> None:
    with pytest.raises(ShapeError):
        group_connectivity(10, 16, 8)
    with pytest.raises(RangeError):
        group_connectivity(16, 16, 8, 1.5)
    with pytest.raises(RangeError, match="without any input"):
        group_connectivity(16, 16, 8, 0.0, 0.0)
    with pytest.raises(UnknownNameError):
        group_connectivity(16, 16, 8, scheme="other")  # type: ignore[arg-type]
    for density in (0.0, 1.2):
        with pytest.raises(RangeError):
            random_connectivity(4, 4, density)
    with pytest.raises(RangeError):
        small_world_between(4, 4, 5)
    with pytest.raises(RangeError):
        rewire.erk_densities({}, 0.5)


# measures


def test_modularity_equals_networkx_on_a_symmetric_graph() -> None:
    g = seeded()
    upper = torch.triu(torch.rand(30, 30, generator=g) < 0.2, 1)
    mask = upper | upper.T
    groups = torch.randint(0, 4, (30,), generator=g)
    graph = networkx.from_numpy_array(mask.numpy().astype(int))
    parts = [{int(i) for i in (groups == k).nonzero()} for k in range(4)]
    assert rewire.modularity(mask, groups, groups) == pytest.approx(networkx.community.modularity(graph, parts))


def test_modularity_of_blocks_and_of_chance() -> None:
    assert rewire.modularity(group_connectivity(64, 32, 8, p_inter=0.0)) == pytest.approx(1 - 1 / 8)
    groups = group_connectivity(512, 512, 8)
    chance = rewire.modularity(random_connectivity(512, 512, 0.2).mask, groups.groups_out, groups.groups_in)
    assert abs(chance) < 0.01
    with pytest.raises(ShapeError):
        rewire.modularity(random_connectivity(4, 4, 0.5))


def test_degrees_count_both_ends() -> None:
    mask = torch.rand(7, 9, generator=seeded()) < 0.4
    found = rewire.degrees(mask)
    assert int(found.inputs.sum()) == int(found.outputs.sum()) == int(mask.sum())


def test_intra_only_leaves_no_trace_also_after_an_error() -> None:
    model = nn.Sequential(nn.Linear(16, 16), nn.Conv2d(8, 8, 3))
    rewire.mask_(model, rewire.group_wiring(model, 4, p_inter=0.5), initialise=True)
    before = copy.deepcopy(model.state_dict())
    seen = []

    def fail() -> None:
        with rewire.intra_only(model):
            seen.append(int((model[0].weight != 0).sum()))
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert seen == [16 * 4]
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


# rewiring


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from([0.0, 0.0, 1.0, 2.0]), min_size=1, max_size=40), st.integers(0, 40), st.integers(0, 9))
def test_exactly_k_are_chosen_whatever_the_ties(scores: list[float], k: int, seed: int) -> None:
    score = torch.tensor(scores)
    among = torch.rand(len(scores), generator=seeded(seed)) < 0.7
    chosen = largest(score, among, k, seeded(seed))
    assert len(chosen.unique()) == len(chosen) == min(k, int(among.sum()))
    assert among[chosen].all()
    left = among.clone()
    left[chosen] = False
    if left.any() and len(chosen):
        assert score[chosen].min() >= score[left].max()


def test_ties_are_broken_at_random() -> None:
    picks = {int(largest(torch.zeros(5), torch.ones(5).bool(), 1, seeded(s))) for s in range(60)}
    assert picks == set(range(5))


RULES = [
    ("magnitude-layer", "gradient"),
    ("magnitude-layer", "random"),
    ("random", "hebbian"),
    ("hebbian", "hebbian"),
    ({"magnitude-layer": 1 / 3, "random": 1 / 3, "hebbian": 1 / 3}, {"gradient": 0.5, "hebbian": 0.5}),
]


@pytest.mark.parametrize(("prune", "grow"), RULES)
@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW])
def test_the_number_of_connections_never_changes(prune, grow, kind) -> None:  # type: ignore[no-untyped-def]
    model = perceptron()
    edges = {name: int(mask.sum()) for name, mask in rewire.masks(model).items()}
    start = {name: mask.clone() for name, mask in rewire.masks(model).items()}
    settings = {"momentum": 0.9} if kind is torch.optim.SGD else {"weight_decay": 0.1}
    optimizer = kind(model.parameters(), lr=0.01, **settings)
    with rewire.SparseTraining(
        model, optimizer, every=3, fraction=0.2, prune=prune, grow=grow, generator=seeded()
    ) as sparse:
        for _ in range(12):
            train(model, optimizer, sparse, 1)
            for name, mask in rewire.masks(model).items():
                assert int(mask.sum()) == edges[name]
                weight = model.get_parameter(f"{name}.weight")
                assert not weight[~mask].any()
                for value in optimizer.state[weight].values():
                    if value.shape == weight.shape:
                        assert not value[~mask].any()  # nothing waits there to come back
    assert len(sparse.history) == 4
    assert all(change.exchanged["0"] == int(0.2 * edges["0"]) for change in sparse.history if prune != "hebbian")
    assert min(rewire.edge_turnover(start, rewire.masks(model)).values()) > 0.1


def test_growth_follows_the_dense_gradient_and_pruning_the_magnitude() -> None:
    model = perceptron()
    before, weight = model[0].weight_mask.clone(), model[0].weight
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    nn.functional.cross_entropy(model(X), Y).backward()
    gradient = weight.grad.clone()
    sparse = rewire.SparseTraining(model, optimizer, every=1, fraction=0.25, keep_inputs=False)
    optimizer.step()
    after_step = weight.detach().clone()
    change = sparse.step()
    assert change is not None
    k = int(0.25 * int(before.sum()))
    assert change.exchanged["0"] == k
    gone, come = before & ~model[0].weight_mask, ~before & model[0].weight_mask
    assert torch.equal(after_step.abs()[gone].sort().values, after_step.abs()[before].sort().values[:k])
    wanted = gradient.abs()[~before].sort(descending=True).values[:k]
    assert torch.equal(gradient.abs()[come].sort(descending=True).values, wanted)
    assert not weight[come].any()
    train(model, optimizer, None, 1)
    assert (weight[come] != 0).any()  # what grew learns
    assert not weight[~model[0].weight_mask].any()
    sparse.close()


def test_hebbian_growth_joins_what_fires_together() -> None:
    model = nn.Sequential(nn.Linear(4, 3, bias=False), nn.ReLU())
    rewire.mask_(model, {"0": torch.tensor([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]]).bool()})
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(3, 4))
    a, b, c = torch.rand(3, 200, generator=seeded()).gt(0.5).float()
    x = torch.stack([a, b, c, a], 1)  # input 3 is always with input 0, so with unit 0
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    options = {"every": 1, "fraction": 0.34, "grow": "hebbian", "prune": "random", "keep_inputs": False}
    for centered in (False, True):
        copied = copy.deepcopy(model)
        optimizer = torch.optim.SGD(copied.parameters(), lr=0.0)
        with rewire.SparseTraining(copied, optimizer, centered=centered, **options) as sparse:
            copied(x).sum().backward()
            optimizer.step()
            sparse.step()
        assert copied[0].weight_mask[0, 3]


def test_silent_units_are_not_cut_off_by_hebbian_pruning() -> None:
    model = perceptron(0.5)
    with torch.no_grad():
        model[0].weight[:8] = 0
        model[0].bias[:8] = -1  # these never fire
    kept = model[0].weight_mask[:8].clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with rewire.SparseTraining(model, optimizer, every=1, fraction=0.5, prune="hebbian", grow="random") as sparse:
        train(model, optimizer, sparse, 1)
    assert torch.equal(model[0].weight_mask[:8] & kept, kept)


def test_scores_are_the_cosine_and_the_correlation() -> None:
    pre, post = torch.randn(50, 4, generator=seeded()).relu(), torch.randn(50, 3, generator=seeded(1)).relu()
    cosine = nn.functional.cosine_similarity(post.T[:, None], pre.T[None], dim=-1)
    torch.testing.assert_close(rewire.hebbian_scores(pre, post), cosine)
    both = torch.corrcoef(torch.cat([post, pre], 1).T)[:3, 3:]
    torch.testing.assert_close(rewire.hebbian_scores(pre, post, centered=True), both, atol=1e-5, rtol=1e-4)
    silent = post.clone()
    silent[:, 0], silent[:, 1] = 0, 7.0
    assert not rewire.hebbian_scores(pre, silent)[0].any()
    assert not rewire.hebbian_scores(pre, silent, centered=True)[:2].any()
    with pytest.raises(ShapeError):
        rewire.hebbian_scores(pre, post[1:])


def test_joint_activity_is_averaged_over_batches() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.ReLU())
    rewire.mask_(model, {"0": torch.tensor([[1, 1, 0], [0, 1, 1]]).bool()})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    batches = [torch.rand(5, 3, generator=seeded(s)) for s in range(3)]
    with rewire.SparseTraining(model, optimizer, every=3, fraction=0.0, grow="hebbian", average=0.5) as sparse:
        for x in batches:
            model(x).sum().backward()
            optimizer.step()
            sparse.step()
            with torch.no_grad():
                model(x * 100)  # without gradients: nobody listens
            model.eval()(x * 100)
            model.train()
    wanted = sum(0.5 ** (2 - i) * (model(x).detach().T @ x) for i, x in enumerate(batches))
    torch.testing.assert_close(sparse._joint["0"].products, wanted)


def test_a_convolution_correlates_each_weight_with_what_it_saw() -> None:
    model = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1, stride=2), nn.ReLU())
    rewire.mask_(model, {"0": torch.rand(3, 2, 3, 3, generator=seeded()) < 0.5})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    x = torch.rand(4, 2, 8, 8, generator=seeded(2))
    with rewire.SparseTraining(model, optimizer, every=2, grow="hebbian") as sparse:
        sparse._t = 1
        sparse._wake()
        model(x).sum().backward()
        optimizer.step()
        sparse._hear()
        score = sparse._joint_scores("0", model[0])[0]
    padded, out = nn.functional.pad(x, (1, 1, 1, 1)), model(x).detach()
    seen = padded[:, 1, 2 : 2 + 8 : 2, 0:8:2]  # input channel 1 as the weight at row 2, column 0 sees it
    wanted = nn.functional.cosine_similarity(out[:, 0].flatten(), seen.flatten(), dim=0)
    assert float(score[0, 1, 2, 0]) == pytest.approx(float(wanted), abs=1e-5)


def test_spiking_layers_take_the_same_masks_and_rules() -> None:
    torch.manual_seed(0)
    net = px.nn.Sequential(nn.Linear(20, 16), px.nn.LIF(16, threshold=0.3), nn.Linear(16, 3))
    rewire.mask_(net, rewire.group_wiring(net, 4, exclude=["2"]), initialise=True, generator=seeded())
    assert activity_site(net, "0").path == "1"
    edges = int(net[0].weight_mask.sum())
    start = net[0].weight_mask.clone()
    optimizer = torch.optim.Adam(net.parameters())
    spikes = (torch.rand(10, 8, 20, generator=seeded()) < 0.5).float()
    with rewire.SparseTraining(net, optimizer, every=2, grow="hebbian", prune="hebbian", fraction=0.2) as sparse:
        for _ in range(6):
            optimizer.zero_grad()
            net(spikes)[0].sum(0).square().mean().backward()
            optimizer.step()
            sparse.step()
    assert int(net[0].weight_mask.sum()) == edges
    assert not torch.equal(net[0].weight_mask, start)


def test_growth_stays_in_groups_when_asked() -> None:
    model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3))
    wiring = rewire.group_wiring(model, 4, 0.5, 0.1, exclude=["2"], generator=seeded())
    rewire.mask_(model, wiring, initialise=True)
    same = wiring["0"].groups_out[:, None] == wiring["0"].groups_in
    outside = int((model[0].weight_mask & ~same).sum())
    optimizer = torch.optim.Adam(model.parameters())
    x = torch.randn(32, 16, generator=seeded(2))
    with rewire.SparseTraining(
        model, optimizer, every=1, fraction=0.3, grow="random", prune="random", respect_groups=True
    ) as sparse:
        for _ in range(10):
            model(x).square().mean().backward()
            optimizer.step()
            sparse.step()
    assert int((model[0].weight_mask & ~same).sum()) < outside
    with pytest.raises(UnsupportedError, match="groups"):
        rewire.SparseTraining(perceptron(), torch.optim.SGD(model.parameters()), respect_groups=True)


def test_the_schedule_falls_to_nothing_and_ends() -> None:
    model = perceptron()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    sparse = rewire.SparseTraining(model, optimizer, every=5, fraction=0.4, until=20)
    assert [sparse.due(t) for t in (4, 5, 20, 25)] == [False, True, True, False]
    assert sparse.drop_fraction(0) == pytest.approx(0.4)
    assert sparse.drop_fraction(10) == pytest.approx(0.2)
    assert sparse.drop_fraction(20) == pytest.approx(0.0)
    train(model, optimizer, sparse, 30)
    assert [change.step for change in sparse.history] == [5, 10, 15, 20]
    sparse.close()


def test_going_on_from_a_file_equals_going_on() -> None:
    def start() -> tuple[nn.Module, torch.optim.Optimizer, rewire.SparseTraining]:
        model = perceptron()
        optimizer = torch.optim.Adam(model.parameters())
        rules = {"prune": "magnitude-layer", "grow": {"gradient": 0.5, "random": 0.5}}
        return model, optimizer, rewire.SparseTraining(model, optimizer, every=3, average=0.5, **rules)

    one, one_optimizer, one_sparse = start()
    train(one, one_optimizer, one_sparse, 5)
    two, two_optimizer, two_sparse = start()
    saved = copy.deepcopy((one.state_dict(), one_optimizer.state_dict(), one_sparse.state_dict()))
    two.load_state_dict(saved[0])
    two_optimizer.load_state_dict(saved[1])
    two_sparse.load_state_dict(saved[2])
    train(one, one_optimizer, one_sparse, 8)
    train(two, two_optimizer, two_sparse, 8)
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))


def test_a_step_that_the_gradient_scaler_skips_changes_nothing() -> None:
    model = perceptron()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    sparse = rewire.SparseTraining(model, optimizer, every=1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        nn.functional.cross_entropy(model(X), Y).backward()
    optimizer.step()
    assert sparse.step() is not None
    before = model[0].weight_mask.clone()
    assert sparse.step() is None
    assert torch.equal(model[0].weight_mask, before)


def test_every_unit_keeps_an_input() -> None:
    model = perceptron(0.12)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with rewire.SparseTraining(model, optimizer, every=1, fraction=0.9, prune="random", grow="random") as sparse:
        for _ in range(20):
            train(model, optimizer, sparse, 1)
            assert model[0].weight_mask.any(1).all()


def test_training_refuses_what_it_cannot_do() -> None:
    model = perceptron()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with pytest.raises(PlexusError, match="mask"):
        rewire.SparseTraining(nn.Linear(2, 2), optimizer)
    with pytest.raises(UnknownNameError):
        rewire.SparseTraining(model, optimizer, prune="weakest")  # type: ignore[arg-type]
    with pytest.raises(RangeError):
        rewire.SparseTraining(model, optimizer, fraction=1.5)
    with pytest.raises(RangeError, match="sum to one"):
        rewire.SparseTraining(model, optimizer, grow={"random": 0.5})
    with pytest.raises(PlexusError, match="follows a step"):
        rewire.SparseTraining(model, optimizer).step()
    sparse = rewire.SparseTraining(model, optimizer, every=1, grow="hebbian")
    with pytest.raises(PlexusError, match="no activity"):
        train(model, optimizer, sparse, 1)


# execution


@pytest.mark.parametrize("scheme", ["index", "random", "interleaved"])
@pytest.mark.parametrize("layout", ["rows", "grouped"])
def test_sparse_layers_compute_the_same(scheme: str, layout: str) -> None:
    wiring = group_connectivity(24, 16, 4, 0.9, 0.2, scheme, generator=seeded())  # type: ignore[arg-type]
    model = nn.Sequential(px.nn.MaskedLinear(wiring, generator=seeded()), nn.ReLU())
    fast = rewire.sparse_forward(model, at_least=0.0, layout=layout)  # type: ignore[arg-type]
    x = torch.randn(3, 5, 24, generator=seeded(1)).requires_grad_()
    torch.testing.assert_close(fast(x), model(x))
    grads = [torch.autograd.grad(net(x).square().sum(), x)[0] for net in (fast, model)]
    torch.testing.assert_close(*grads, atol=1e-5, rtol=1e-5)
    back = rewire.densify(fast)
    assert torch.equal(back[0].weight, model[0].weight)
    assert torch.equal(back[0].weight_mask, wiring.mask)
    assert torch.equal(back[0].weight_groups_in, wiring.groups_in)
    again = copy.deepcopy(fast)
    again.load_state_dict(fast.state_dict())
    assert torch.equal(again(x), fast(x))


def test_conversion_leaves_the_model_alone_and_takes_only_what_is_sparse(tiny: Callable) -> None:
    model, inputs = tiny("gpt2")
    wanted = model(**inputs).logits
    with pytest.raises(PlexusError, match="that many zeros"):
        rewire.sparse_forward(model)
    rewire.mask_(model, rewire.random_wiring(model, 0.2, "*.mlp.*", generator=seeded()))
    masked = model(**inputs).logits
    fast = rewire.sparse_forward(model)
    assert isinstance(fast.transformer.h[0].mlp.c_fc, rewire.SparseLinear)
    torch.testing.assert_close(fast(**inputs).logits, masked, atol=1e-4, rtol=1e-4)
    assert torch.equal(model(**inputs).logits, masked)
    assert not torch.allclose(wanted, masked)
    torch.testing.assert_close(rewire.densify(fast)(**inputs).logits, masked, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("kind", "options", "size"),
    [
        (nn.Conv1d, {"stride": 2, "padding": 1}, (21,)),
        (nn.Conv2d, {"padding": 1}, (9, 11)),
        (nn.Conv2d, {"stride": (2, 1), "dilation": 2, "groups": 2, "bias": False}, (10, 9)),
        (nn.Conv2d, {"padding": "same", "dilation": 2}, (8, 7)),
        (nn.Conv2d, {"padding": (1, 2), "padding_mode": "circular"}, (8, 7)),
        (nn.Conv3d, {"padding": 1, "padding_mode": "replicate", "stride": 2}, (5, 6, 4)),
    ],
)
def test_sparse_convolutions_compute_the_same_and_come_back(kind: type, options: dict, size: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(kind(4, 6, 3, **options), nn.ReLU())
    rewire.mask_(model, rewire.random_wiring(model, 0.25, generator=seeded()))
    fast = rewire.sparse_forward(model)
    assert isinstance(fast[0], rewire.SparseConv)
    x = torch.randn(3, 4, *size, generator=seeded(1)).requires_grad_()
    torch.testing.assert_close(fast(x), model(x), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(fast(x[0]), model(x[0]), atol=1e-5, rtol=1e-5)  # without samples
    grads = [torch.autograd.grad(net(x).square().sum(), x)[0] for net in (fast, model)]
    torch.testing.assert_close(*grads, atol=1e-4, rtol=1e-4)
    back = rewire.densify(fast)
    assert type(back[0]) is kind
    assert torch.equal(back[0].weight, model[0].weight)
    assert torch.equal(back[0].weight_mask, model[0].weight_mask)
    assert torch.equal(back(x), model(x))
    again = copy.deepcopy(fast)
    again.load_state_dict(fast.state_dict())
    assert torch.equal(again(x), fast(x))
    (site,) = px.sites(fast, "0")
    seen = px.probe.record(fast, x.detach(), site)[site]  # a row per place, a column per channel
    torch.testing.assert_close(seen, model[0](x).detach().movedim(1, -1).reshape(-1, 6), atol=1e-5, rtol=1e-5)


def test_a_convolution_of_ones_own_stays_dense() -> None:
    class Doubled(nn.Conv2d):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(x)

    model = nn.Sequential(Doubled(2, 4, 3), nn.Conv2d(4, 4, 3))
    rewire.mask_(model, rewire.random_wiring(model, 0.25, generator=seeded()))
    fast, x = rewire.sparse_forward(model), torch.rand(2, 2, 8, 8)
    assert type(fast[0]) is Doubled
    assert repr(fast[1]).startswith("SparseConv(4, 4, kernel_size=(3, 3), stride=(1, 1), ")
    torch.testing.assert_close(fast(x), model(x), atol=1e-5, rtol=1e-5)
    with pytest.raises(ShapeError, match="does not fit the layer"):
        fast[1](x)


def test_half_precision_is_computed_wide_and_cast_back() -> None:
    model = nn.Sequential(nn.Linear(64, 32)).to(torch.bfloat16)
    rewire.mask_(model, rewire.random_wiring(model, 0.2, generator=seeded()))
    x = torch.randn(4, 64, generator=seeded(1), dtype=torch.bfloat16)
    out = rewire.sparse_forward(model)(x)
    assert out.dtype == torch.bfloat16
    exact = nn.functional.linear(x.float(), model[0].weight.float(), model[0].bias.float())
    torch.testing.assert_close(out, exact.to(torch.bfloat16))


def test_execution_refuses_what_it_cannot_do() -> None:
    wiring = Wiring(torch.ones(4, 6).bool(), torch.tensor([0, 0, 0, 1]), torch.tensor([0, 0, 0, 1, 1, 1]))
    with pytest.raises(ShapeError, match="size"):
        rewire.GroupedLinear(torch.ones(4, 6), wiring)
    with pytest.raises(ShapeError, match="no groups"):
        rewire.GroupedLinear(torch.ones(4, 6), Wiring(wiring.mask))
    with pytest.raises(ShapeError):
        rewire.SparseLinear(torch.ones(4, 6))(torch.ones(2, 5))
    with pytest.raises(ShapeError, match="no convolution"):
        rewire.SparseConv(torch.ones(4, 6))
    with pytest.raises(ShapeError, match="mask does not fit"):
        rewire.SparseConv(torch.ones(4, 6, 3), torch.ones(4, 6))
    with pytest.raises(RangeError):
        rewire.sparse_forward(perceptron(), at_least=2)
    with pytest.raises(UnknownNameError):
        rewire.sparse_forward(perceptron(), layout="columns")  # type: ignore[arg-type]
    with pytest.raises(PlexusError, match="no sparse layer"):
        rewire.densify(nn.Linear(2, 2))
