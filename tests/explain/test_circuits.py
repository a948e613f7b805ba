"""Patching many places in one pass is patching them one by one; paths, attributions and circuits have closed forms."""

import itertools
import json

import pytest
import torch
from torch import nn

from plexus import edit, probe
from plexus.errors import FormatError, RangeError, ShapeError, SiteError, UnknownNameError, UnsupportedError
from plexus.explain import circuits
from plexus.explain.circuits import (
    Circuit,
    Place,
    activation_patching,
    attribution_patching,
    compare_circuits,
    faithfulness,
    held,
    logit_difference,
    open_attention,
    path_patching,
)
from plexus.units import Neurons, Recording, Site, fingerprint, sites
from tests.families import tiny

RIGHT, WRONG = torch.tensor([5, 7, 9]), torch.tensor([6, 8, 4])
METRIC = logit_difference(RIGHT, WRONG)


def pairs(length=5):
    generator = torch.Generator().manual_seed(2)
    ids = [torch.randint(3, 30, (3, length), generator=generator) for _ in range(2)]
    return {"input_ids": ids[0]}, {"input_ids": ids[1]}


def measured(model, batch):
    with torch.no_grad():
        return METRIC(model(**batch), torch.arange(3)).double()


def one_by_one(model, source, base, places):
    """The reference: a loop over places with the verb `patch`."""
    out = []
    for place in places:
        site = place.site
        record = probe.record(model, source, site)
        units = Neurons.of(
            {site: record.sizes[site]}, {site: range(record.sizes[site]) if place.unit is None else [place.unit]}
        )
        keep = torch.ones(len(record.table[site]), dtype=torch.bool)
        if place.position is not None:
            keep = record.table[site].position == place.position
        rows = {
            (int(s), int(p)): (int(s), int(p))
            for s, p in zip(record.table[site].sample[keep], record.table[site].position[keep], strict=True)
        }
        with edit.patch(model, units, record, rows=rows):
            out.append(measured(model, base))
    return torch.stack(out)


@pytest.mark.parametrize("family", ["llama", "gpt2", "neox"])
@pytest.mark.parametrize("direction", ["denoise", "noise"])
def test_a_map_in_few_passes_is_the_map_made_one_by_one(family, direction):
    model, _ = tiny(family)
    clean, corrupted = pairs()
    source, base = (clean, corrupted) if direction == "denoise" else (corrupted, clean)
    at = sites.residual(model)
    found = activation_patching(model, clean, corrupted, at, METRIC, direction=direction, rows=7)
    assert [place.position for place in found.places] == list(range(5)) * len(at)
    expected = one_by_one(model, source, base, found.places)
    torch.testing.assert_close(found.effects + found.base, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.base, measured(model, base), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(found.total, measured(model, source) - measured(model, base), atol=1e-5, rtol=1e-5)
    # the last token of the last block is all that the logits read
    torch.testing.assert_close(found.effects[-1], found.total, atol=1e-5, rtol=1e-5)
    assert found[found.places[-1]] == pytest.approx(1, abs=1e-5)
    assert found.grid().shape == (len(at), 5)
    # and what comes after it in causal order restores nothing
    assert found.grid()[-1, :-1].abs().max() < 1e-6


def test_heads_neurons_and_named_positions():
    model, _ = tiny("llama")
    clean, corrupted = pairs()
    heads = sites.heads(model)
    found = activation_patching(model, clean, corrupted, heads, METRIC, per="unit", positions="all")
    assert len(found.places) == 8
    torch.testing.assert_close(
        found.effects + found.base, one_by_one(model, clean, corrupted, found.places), atol=1e-5, rtol=1e-5
    )
    assert found.scores().sizes == dict.fromkeys(heads, 4)
    hidden = sites.mlp(model)[0]
    chosen = Neurons.of({hidden: 32}, {hidden: [3, 30]})
    some = activation_patching(model, clean, corrupted, hidden, METRIC, per="unit", units=chosen, positions=[-1])
    assert [(p.unit, p.position) for p in some.places] == [(3, -1), (30, -1)]
    last = [p._replace(position=4) for p in some.places]
    torch.testing.assert_close(
        some.effects + some.base, one_by_one(model, clean, corrupted, last), atol=1e-5, rtol=1e-5
    )
    # positions by name differ from pair to pair
    where = torch.tensor([0, 3, 4])
    named = activation_patching(model, clean, corrupted, hidden, METRIC, positions={"subject": where, "last": -1})
    grid = activation_patching(model, clean, corrupted, hidden, METRIC)
    torch.testing.assert_close(named.effects[0], grid.effects[where, torch.arange(3)], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(named.effects[1], grid.effects[4], atol=1e-6, rtol=1e-5)
    assert named.positions == ("subject", "last")


def test_the_number_of_passes_is_that_of_the_rows_and_nothing_stays_behind():
    model, _ = tiny("gpt2")
    clean, corrupted = pairs()
    calls = []
    handle = model.register_forward_hook(lambda *_: calls.append(1))
    model.train()
    expected = {name: value.clone() for name, value in model.state_dict().items()}
    activation_patching(model, clean, corrupted, sites.residual(model), METRIC, control=False, rows=1000)
    assert len(calls) == 4  # clean, corrupted, a trial without the first block, and the whole map
    handle.remove()
    assert model.training
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("family", ["llama", "gpt2", "neox"])
def test_blocks_before_a_patch_are_not_run_again(family):
    model, _ = tiny(family)
    clean, corrupted = pairs()
    at = sites.residual(model)
    first, second = (model.get_submodule(site.path) for site in at)
    calls = {first: 0, second: 0}

    def count(block, *_):
        calls[block] += 1

    handles = [block.register_forward_hook(count) for block in calls]
    found = activation_patching(model, clean, corrupted, at, METRIC, control=False, rows=15)
    for handle in handles:
        handle.remove()
    assert calls == {first: 3, second: 5}  # clean, corrupted, own map; the second also in the trial and the first's map
    expected = one_by_one(model, clean, corrupted, found.places)
    torch.testing.assert_close(found.effects + found.base, expected, atol=1e-5, rtol=1e-5)


class Block(nn.Module):
    def __init__(self, shared, reads):
        super().__init__()
        self.norm, self.one, self.two = nn.LayerNorm(4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.shared, self.reads = shared, reads

    def forward(self, x):
        left = self.shared["x"].mean((1, 2), keepdim=True) if self.reads else 0.0
        self.shared["x"] = x
        return x + self.two(torch.tanh(self.one(self.norm(x)) + left))


class Stack(nn.Module):
    """Two blocks in a stack, of which the second may read what the first one left behind."""

    def __init__(self, reads):
        super().__init__()
        shared = {}
        self.layers = nn.ModuleList([Block(shared, False), Block(shared, reads)])
        self.out = nn.Linear(4, 30)

    def forward(self, x):
        for block in self.layers:
            x = block(x)
        return self.out(x)


@pytest.mark.parametrize("reads", [False, True])
def test_blocks_that_read_what_an_earlier_one_left_behind_are_found_out(reads):
    torch.manual_seed(0)
    model, (clean, corrupted) = Stack(reads), torch.randn(2, 3, 5, 4)
    at = [Site(f"layers.{i}", "b t u") for i in range(2)]
    ran = []
    handle = model.layers[0].register_forward_hook(lambda *_: ran.append(1))
    found = activation_patching(model, clean, corrupted, at, METRIC, control=False, rows=15)
    handle.remove()
    assert len(ran) == (4 if reads else 3)  # the map of the second block needs the first only where it reads
    whole = activation_patching(
        model, clean, corrupted, at, METRIC, control=False, forward=lambda model, batch: model(batch)
    )
    torch.testing.assert_close(found.effects, whole.effects, atol=1e-5, rtol=1e-5)


def test_within_an_edit_every_block_runs():
    model, _ = tiny("llama")
    clean, corrupted = pairs()
    at = sites.residual(model)
    seen = probe.record(model, clean, sites.mlp(model))
    chosen = Neurons.of(seen.sizes, {site: range(4) for site in seen.sizes})
    with edit.scale(model, chosen, 0.0):
        found = activation_patching(model, clean, corrupted, at, METRIC, control=False)
        expected = one_by_one(model, clean, corrupted, found.places)
    torch.testing.assert_close(found.effects + found.base, expected, atol=1e-5, rtol=1e-5)


def test_the_control_takes_the_values_of_another_pair():
    model, _ = tiny("llama")
    clean, corrupted = pairs()
    at = sites.residual(model)[:1]
    found = activation_patching(model, clean, corrupted, at, METRIC)
    turned = {"input_ids": clean["input_ids"].roll(-1, 0)}
    expected = one_by_one(model, turned, corrupted, found.places) - found.base
    torch.testing.assert_close(found.controls, expected, atol=1e-5, rtol=1e-5)
    assert "another pair" in str(found)
    # a patch of a run into itself changes nothing
    none = activation_patching(model, clean, clean, at, METRIC, control=False)
    assert none.effects.abs().max() < 1e-6
    with pytest.raises(RangeError, match="do not differ"):
        none.normalised  # noqa: B018
    one = {"input_ids": clean["input_ids"][:1]}
    with pytest.raises(RangeError, match="another pair"):
        activation_patching(model, one, one, at, METRIC)


def test_values_move_between_models_of_one_build_only():
    model, _ = tiny("llama")
    other, _ = tiny("llama")
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.1)
    clean, corrupted = pairs()
    at = sites.residual(model)
    found = activation_patching(
        model, clean, corrupted, at[0], METRIC, source_model=other, positions=[2], control=False
    )
    record = probe.record(other, clean, at[0])
    with edit.patch(
        model,
        ~Neurons.of({at[0]: 16}),
        Recording({at[0]: record[at[0]]}, record.table),
        rows={(i, 2): (i, 2) for i in range(3)},
    ):
        expected = measured(model, corrupted)
    torch.testing.assert_close((found.effects + found.base)[0], expected, atol=1e-5, rtol=1e-5)
    narrow, _ = tiny("gpt2")
    with pytest.raises(UnsupportedError, match="one build"):
        activation_patching(model, clean, corrupted, at, METRIC, source_model=narrow)


def test_the_last_token_of_each_pair_is_read_where_padding_is_on_the_right():
    logits = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0))
    right, wrong, last = torch.tensor([1, 2]), torch.tensor([0, 4]), torch.tensor([3, 1])
    pair = torch.tensor([1, 0, 1])
    found = logit_difference(right, wrong, last)(logits, pair)
    wanted = [logits[row, last[p], right[p]] - logits[row, last[p], wrong[p]] for row, p in enumerate(pair.tolist())]
    torch.testing.assert_close(found, torch.stack(wanted))
    with pytest.raises(ShapeError, match="one per pair"):
        logit_difference(right, wrong, torch.tensor([1, 2, 3]))


def test_left_padding_is_the_same_as_no_padding():
    model, _ = tiny("llama")
    clean, corrupted = pairs()
    at = sites.residual(model)

    def padded(batch):
        ids = torch.cat([torch.zeros(3, 2, dtype=torch.long), batch["input_ids"]], 1)
        mask = (torch.arange(7) >= 2).long().expand(3, 7)
        return {"input_ids": ids, "attention_mask": mask, "position_ids": (mask.cumsum(1) - 1).clamp(min=0)}

    plain = activation_patching(model, clean, corrupted, at, METRIC, positions=[-1, -3], control=False)
    more = activation_patching(model, padded(clean), padded(corrupted), at, METRIC, positions=[-1, -3], control=False)
    torch.testing.assert_close(plain.effects, more.effects, atol=1e-5, rtol=1e-4)
    other = padded(corrupted)
    other["attention_mask"] = other["attention_mask"].clone()
    other["attention_mask"][0, 2] = 0
    with pytest.raises(ShapeError, match="padded differently"):
        activation_patching(model, padded(clean), other, at, METRIC)


def test_time_first_networks_images_and_attention_patterns_are_patched_row_by_row():
    conv = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(27, 1))
    images = torch.rand(2, 2, 1, 5, 5)
    site = Site("1", "b u y x")
    found = activation_patching(conv, *images, site, lambda y, _: y[:, 0], per="unit", positions="all")
    with torch.no_grad():
        a, b = (conv[:2](x) for x in images)
        for unit in range(3):
            mixed = b.clone()
            mixed[:, unit] = a[:, unit]
            torch.testing.assert_close(
                (found.effects[unit] + found.base).float(), conv[2:](mixed)[:, 0], atol=1e-6, rtol=1e-5
            )

    model, _ = tiny("gpt2")
    clean, corrupted = pairs()
    with open_attention(model) as attention:
        pattern = activation_patching(model, clean, corrupted, attention.patterns, METRIC, per="unit", positions="all")
        expected = one_by_one(model, clean, corrupted, pattern.places)
    torch.testing.assert_close(pattern.effects + pattern.base, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"direction": "denoising"}, UnknownNameError),
        ({"per": "head"}, UnknownNameError),
        ({"positions": [9]}, RangeError),
        ({"positions": "last"}, UnknownNameError),
        ({"positions": {"subject": torch.tensor([1, 2])}}, ShapeError),
        ({"metric": lambda out, pair: out.logits.sum()}, ShapeError),
        ({"metric": lambda out, pair: torch.full_like(pair, torch.nan, dtype=torch.float)}, RangeError),
        ({"at": []}, SiteError),
        ({"corrupted": {"input_ids": torch.ones(3, 6, dtype=torch.long)}}, ShapeError),
        ({"corrupted": {"tokens": torch.ones(3, 5, dtype=torch.long)}}, ShapeError),
        ({"rows": 0}, RangeError),
    ],
)
def test_bad_input_is_refused(change, error):
    model, _ = tiny("gpt2")
    clean, corrupted = pairs()
    given = {"clean": clean, "corrupted": corrupted, "at": sites.residual(model), "metric": METRIC, **change}
    with pytest.raises(error):
        activation_patching(
            model, given.pop("clean"), given.pop("corrupted"), given.pop("at"), given.pop("metric"), **given
        )


def test_answers_of_several_tokens_are_refused():
    with pytest.raises(ShapeError, match="one token"):
        logit_difference(torch.ones(3, 2, dtype=torch.long), torch.ones(3, 2, dtype=torch.long))


# attribution


class Residual(nn.Module):
    """x + f(x), then + g, then + h: three linear branches on one stream."""

    def __init__(self, width=4, nonlinear=False):
        super().__init__()
        torch.manual_seed(0)
        self.f, self.g, self.h = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.act = nn.Tanh() if nonlinear else nn.Identity()
        self.out = nn.Linear(width, 1, bias=False)

    def forward(self, x):
        for branch in (self.f, self.g, self.h):
            x = x + branch(self.act(x))
        return self.out(x)


F, G, H = (Site(name, "b u") for name in "fgh")


def total(y, pair):
    return y[:, 0]


def test_attribution_is_patching_where_the_metric_is_linear_and_its_limit_elsewhere():
    clean, corrupted = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(0))
    model = Residual()
    for per in ("site", "unit"):
        exact = activation_patching(model, clean, corrupted, [F, G], total, per=per, positions="all", control=False)
        approximate = attribution_patching(model, clean, corrupted, [F, G], total, per=per, positions="all")
        assert exact.places == approximate.places
        torch.testing.assert_close(exact.effects, approximate.effects, atol=1e-5, rtol=1e-5)
    # for small differences it is the derivative, for large ones only the integrated form is right
    curved = Residual(nonlinear=True)
    near = clean + 1e-3 * (corrupted - clean)
    exact = activation_patching(curved, clean, near, F, total, positions="all", control=False)
    approximate = attribution_patching(curved, clean, near, F, total, positions="all")
    torch.testing.assert_close(exact.effects, approximate.effects, atol=1e-5, rtol=1e-2)
    far = 5 * corrupted
    exact = activation_patching(curved, clean, far, F, total, positions="all", control=False).effects
    first = attribution_patching(curved, clean, far, F, total, positions="all").effects
    line = attribution_patching(curved, clean, far, F, total, positions="all", steps=64).effects
    assert (first - exact).abs().max() > 0.05
    torch.testing.assert_close(line, exact, atol=2e-3, rtol=1e-2)


def test_attribution_on_a_language_model_agrees_with_small_patches():
    model, _ = tiny("llama")
    model = model.double()
    clean, corrupted = pairs()
    embedded = model.get_input_embeddings()(clean["input_ids"]).detach()
    other = model.get_input_embeddings()(corrupted["input_ids"]).detach()
    near = {"inputs_embeds": embedded + 1e-4 * (other - embedded)}
    at = [*sites.residual(model), *sites.heads(model)]
    exact = activation_patching(model, {"inputs_embeds": embedded}, near, at, METRIC, control=False)
    approximate = attribution_patching(model, {"inputs_embeds": embedded}, near, at, METRIC)
    # edits compute in float32 and wider
    error = (exact.effects - approximate.effects).norm() / exact.effects.norm()
    assert error < 2e-3


# paths


def test_paths_of_a_linear_network_are_products_of_its_weights():
    model = Residual()
    clean, corrupted = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(1))
    f, g, h, out = (getattr(model, name).weight.detach() for name in ("f", "g", "h", "out"))
    eye = torch.eye(4)
    delta = (corrupted - clean) @ f.T  # how much the branch f differs between the two runs
    into = {name: Site(name, "b u", at="input") for name in "gh"}
    expected = {
        "direct": delta @ out.T,
        "g": delta @ g.T @ (eye + h).T @ out.T,
        "h": delta @ h.T @ out.T,
    }

    def path(receivers):
        found = path_patching(model, clean, corrupted, F, receivers, total, freeze=[F, G, H], per="site")
        return found.effects[0].float()[:, None]

    torch.testing.assert_close(path(None), expected["direct"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(path(into["g"]), expected["g"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(path(into["h"]), expected["h"], atol=1e-5, rtol=1e-5)
    # all paths together are the whole effect, as nothing is nonlinear
    whole = activation_patching(model, clean, corrupted, F, total, direction="noise", positions="all", control=False)
    torch.testing.assert_close(whole.effects[0].float()[:, None], sum(expected.values()), atol=1e-5, rtol=1e-5)
    # two receivers: the path f → g → h is none of the two direct ones
    torch.testing.assert_close(
        path([into["g"], into["h"]]), expected["g"] - delta @ g.T @ h.T @ out.T + expected["h"], atol=1e-5, rtol=1e-5
    )
    # units of a receiver
    half = Neurons.of({into["h"]: 4}, {into["h"]: [0, 1]})
    torch.testing.assert_close(path(half), (delta * torch.tensor([1.0, 1, 0, 0])) @ h.T @ out.T, atol=1e-5, rtol=1e-5)


def test_paths_in_a_transformer():
    model, _ = tiny("llama")
    clean, corrupted = pairs()
    heads, mlps = sites.heads(model), sites.mlp(model)
    # the last block's heads reach the logits directly and through its MLP only
    found = path_patching(model, clean, corrupted, heads[1], None, METRIC, freeze=[*heads])
    free = activation_patching(
        model, clean, corrupted, heads[1], METRIC, direction="noise", per="unit", positions="all", control=False
    )
    torch.testing.assert_close(found.effects, free.effects, atol=1e-5, rtol=1e-4)
    # nothing later can act on something earlier
    early = Site("model.layers.0.self_attn.q_proj", "b t u")
    back = path_patching(model, clean, corrupted, heads[1], early, METRIC)
    assert back.effects.abs().max() < 1e-6
    queries = Site("model.layers.1.self_attn.q_proj", "b t (u:4 f)")
    forth = path_patching(model, clean, corrupted, heads[0], Neurons.of({queries: 4}, {queries: [1]}), METRIC, rows=5)
    assert forth.effects.shape == (4, 3)
    # the control sends what the sender does in the next pair
    assert forth.controls.shape == (4, 3)
    alone = path_patching(
        model,
        {name: value[[0, 0]] for name, value in clean.items()},
        {name: value[[0, 1]] for name, value in corrupted.items()},
        heads[0],
        Neurons.of({queries: 4}, {queries: [1]}),
        lambda output, pair: METRIC(output, torch.zeros_like(pair)),
    )
    torch.testing.assert_close(alone.controls[:, 0], forth.controls[:, 0], atol=1e-5, rtol=1e-4)
    for wrong, error in (({"per": "head"}, UnknownNameError), ({"rows": 0}, RangeError)):
        with pytest.raises(error):
            path_patching(model, clean, corrupted, heads[0], None, METRIC, **wrong)
    one = {name: value[:1] for name, value in clean.items()}
    with pytest.raises(RangeError, match="control=False"):
        path_patching(model, one, one, heads[0], None, METRIC)
    assert forth.effects.abs().max() > 1e-4
    assert len(mlps) == 2


# circuits as objects

A, B = Site("a", "b u"), Site("b", "b u")


def circuit(*units, edges=()):
    nodes = {Place(A, None, unit): 1.0 + unit for unit in units}
    return Circuit(nodes, {(Place(A, None, i), Place(A, None, j)): 0.5 for i, j in edges})


def test_a_circuit_survives_its_file(tmp_path):
    one = Circuit({Place(A, -1, 3): 0.25, Place(B): -1.0}, {(Place(A, -1, 3), Place(B)): 0.1}, "copy", "Model-1")
    one.save(tmp_path / "circuit.json")
    assert Circuit.load(tmp_path / "circuit.json") == one
    assert Circuit.from_json(json.dumps(one.to_json())) == one
    damaged = one.to_json()
    damaged["body"]["edges"] = [[0, 7, 1.0]]
    with pytest.raises(FormatError):
        Circuit.from_json(damaged)
    with pytest.raises(FormatError):
        Circuit.from_json("{}")


def test_overlap_of_circuits_is_jaccards():
    one, two = circuit(0, 1, 2, edges=[(0, 1), (1, 2)]), circuit(1, 2, 3, edges=[(1, 2), (2, 3)])
    found = compare_circuits(one, two, universe=10)
    assert found.nodes == pytest.approx(2 / 4)
    assert found.edges == pytest.approx(1 / 3)
    assert compare_circuits(one, one).nodes == compare_circuits(one, one).edges == 1
    assert compare_circuits(one, one).correlation == pytest.approx(1)
    # the hypergeometric tail, counted out
    ways = [len({0, 1, 2} & set(other)) >= 2 for other in itertools.combinations(range(10), 3)]
    assert found.p == pytest.approx(sum(ways) / len(ways))
    with pytest.raises(ShapeError):
        compare_circuits(one, two, universe=3)
    with pytest.raises(SiteError):
        Circuit({Place(A): 1.0}, {(Place(A), Place(B)): 1.0})


def test_a_circuit_from_a_map_and_its_units():
    model, _ = tiny("llama")
    clean, corrupted = pairs()
    heads = sites.heads(model)
    found = activation_patching(model, clean, corrupted, heads, METRIC, per="unit", positions="all", control=False)
    best = Circuit.of(found, 3)
    assert list(best.nodes) == [place for place, _ in found.top(3)]
    universe = Neurons.of(dict.fromkeys(heads, 4), {site: range(4) for site in heads})
    assert len(best.neurons(universe)) == 3
    receiver = next(iter(best.nodes))
    paths = path_patching(model, clean, corrupted, heads, receiver.site, METRIC)
    assert all(end == receiver for _, end in best.with_edges(receiver, paths).edges)
    with pytest.raises(UnsupportedError, match="one position"):
        Circuit({Place(heads[0], -1): 1.0}, {}).neurons(universe)
    with pytest.raises(RangeError):
        Circuit.of(found, 3, least=0.1)
    assert Circuit.of(found, 3).model == found.model == fingerprint(model)
    with pytest.raises(SiteError, match="no place of the universe"):
        circuits.compare_circuits(best, best, universe=[Place(Site("x"), None, u) for u in range(9)])
    for k in (0, -1, True):
        with pytest.raises(RangeError, match="number of places"):
            Circuit.of(found, k)


def test_faithfulness_of_a_planted_circuit_and_its_control():
    model = nn.Sequential(nn.Identity(), nn.Linear(20, 1, bias=False))
    with torch.no_grad():
        model[1].weight.fill_(0.01)
        model[1].weight[0, [2, 5]] = 1.0
    site = Site("0", "b u")
    universe = Neurons.of({site: 20}, {site: range(20)})
    chosen = Neurons.of({site: 20}, {site: [2, 5]})
    found = faithfulness(model, chosen, torch.ones(3, 20), torch.zeros(3, 20), total, universe, n_random=39, rows=11)
    assert found.faithfulness == pytest.approx(2 / 2.18)
    assert found.completeness == pytest.approx(2 / 2.18)  # linear: what the circuit has, the rest lacks
    assert found.faithfulness_null.p <= 0.05
    assert found.places == (2, 20)
    sham = faithfulness(
        model, Neurons.of({site: 20}, {site: [0, 1]}), torch.ones(3, 20), torch.zeros(3, 20), total, universe
    )
    assert sham.faithfulness_null.p > 0.5
    with pytest.raises(RangeError, match="part of its universe"):
        faithfulness(model, universe, torch.ones(3, 20), torch.zeros(3, 20), total, universe)


def test_faithfulness_of_a_circuit_at_positions():
    """Four tokens of three units; read is unit 1, at a place that differs from pair to pair, and little else."""
    site, where = Site("0", "b t u"), torch.tensor([0, 2, 3])

    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.add_module("0", nn.Identity())

        def forward(self, x, place):
            seen = self.get_submodule("0")(x)
            weight = torch.full(seen.shape, 0.1)
            weight[torch.arange(len(seen)), place, 1] = 1.0
            return (seen * weight).sum((1, 2))

    clean, corrupted = (torch.ones(3, 4, 3), where), (torch.zeros(3, 4, 3), where)
    named = {"subject": where}
    found = activation_patching(
        Reader(), clean, corrupted, site, lambda y, pair: y, per="unit", positions={**named, "first": 0}, control=False
    )
    best = Circuit.of(found, 1)
    assert list(best.nodes) == [Place(site, "subject", 1)]
    universe = [Place(site, "subject", unit) for unit in range(3)]
    alone = faithfulness(Reader(), best, clean, corrupted, lambda y, pair: y, universe, n_random=5, positions=named)
    assert alone.faithfulness == pytest.approx(1 / 1.2)
    assert alone.completeness == pytest.approx(1 / 1.2)
    assert alone.places == (1, 3)
    assert "1 of 3 places" in str(alone)
    every = [Place(site, position, None) for position in range(4)]
    token = faithfulness(Reader(), Circuit({every[2]: 1.0}, {}), clean, corrupted, lambda y, pair: y, every, n_random=5)
    # by hand: of 2.1 in all, the third token has 0.3, and 1.2 in the second pair
    assert token.faithfulness == pytest.approx((0.3 + 1.2 + 0.3) / 3 / 2.1)
    assert token.completeness == pytest.approx(token.faithfulness)  # linear
    units = faithfulness(
        Reader(),
        Neurons.of({site: 3}, {site: [1]}),
        clean,
        corrupted,
        lambda y, pair: y,
        found,
        n_random=5,
        positions={**named, "first": 0},
    )
    assert units.places == (2, 6)  # the unit at both positions
    with pytest.raises(UnknownNameError, match="subject"):
        faithfulness(Reader(), best, clean, corrupted, lambda y, pair: y, universe)
    with pytest.raises(SiteError, match="lacks a node"):
        faithfulness(Reader(), best, clean, corrupted, lambda y, pair: y, every)
    with pytest.raises(RangeError, match="beyond"):
        faithfulness(
            Reader(), best, clean, corrupted, lambda y, pair: y, [*universe, Place(site, "subject", 3)], positions=named
        )


# clamps during training


def test_a_clamp_stays_through_optimizer_steps_and_its_gradient_is_that_of_the_clamped_network():
    model, reference = Residual(nonlinear=True), Residual(nonlinear=True)
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([1.0, 1.0, 0.0, 1.0])

    def by_hand(net, x):
        y = net.f(net.act(x))
        x = x + torch.where(mask.bool(), y, torch.tensor(0.7))
        for branch in (net.g, net.h):
            x = x + branch(net.act(x))
        return net.out(x)

    optimizers = [torch.optim.Adam(net.parameters(), lr=0.05) for net in (model, reference)]
    clamp = held(model, edit.clamp(Neurons.of({F: 4}, {F: [2]}), 0.7))
    for _ in range(5):
        for net, optimizer, run in ((model, optimizers[0], lambda m, x: m(x)), (reference, optimizers[1], by_hand)):
            optimizer.zero_grad()
            run(net, x).square().mean().backward()
            optimizer.step()
    assert clamp.active
    for one, two in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(one, two, atol=1e-6, rtol=1e-5)
    start = Residual(nonlinear=True)
    assert torch.equal(model.f.weight[2], start.f.weight[2])  # no gradient flows into a clamped unit
    assert not torch.equal(model.f.weight[1], start.f.weight[1])
    clamp.release()
    torch.testing.assert_close(model(x), reference(x), atol=1e-6, rtol=1e-5)
    with pytest.raises(UnsupportedError, match="released"):
        clamp.release()


def test_a_scaled_unit_passes_its_share_of_the_gradient():
    model = Residual(nonlinear=True).double()
    x = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)
    factor = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)

    def run(x, factor):
        with held(model, edit.scale(Neurons.of({F: 4}, {F: [0, 1]}), factor)):
            return model(x)

    assert torch.autograd.gradcheck(run, (x, factor))


def test_a_pattern_clamped_during_training_is_the_pattern_of_another_run():
    """Training with one head's pattern held at another run's: only its values learn through it."""
    model, inputs = tiny("llama")
    with open_attention(model) as attention:
        site = attention.patterns[0]
        record = probe.record(model, {"input_ids": inputs["input_ids"].flip(1)}, site)
        every = ~Neurons.of({site: 4})
        with held(model, edit.patch(every, record)):
            model(**inputs, labels=inputs["input_ids"]).loss.backward()
    layer = model.model.layers[0].self_attn
    assert layer.q_proj.weight.grad.abs().max() == layer.k_proj.weight.grad.abs().max() == 0
    assert layer.v_proj.weight.grad.abs().max() > 0
    assert model.model.layers[1].self_attn.q_proj.weight.grad.abs().max() > 0


def test_figures_and_files_of_maps():
    found = circuits.PatchMap(
        (Place(A, 0), Place(A, 1), Place(B, 0)), torch.ones(3, 4), torch.full((4,), 2.0), torch.zeros(4), None, "noise"
    )
    assert found.grid().tolist()[0] == [0.5, 0.5]
    assert torch.isnan(found.grid()[1, 1])
    assert len(found.figure(["a", "b"]).data) == 1
    assert json.loads(json.dumps(found.to_json()))["direction"] == "noise"
    assert (found.p == 0.125).all()
    with pytest.raises(ShapeError, match="single units"):
        found.scores()
    with pytest.raises(UnknownNameError):
        found[Place(B, 1)]
