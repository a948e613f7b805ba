"""Explaining a model on another device than the CPU: results lie in main memory and are those of the CPU."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from plexus import edit, explain, probe
from plexus.data.corpora import word_tokenizer
from plexus.explain import atlas, circuits, controls, diff
from plexus.explain.circuits import PatchMap, Place
from plexus.units import Neurons, Scores, Site, sites

HIDDEN = Site("1", "b u")
CPU = torch.device("cpu")


def net(units: int = 30) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, units), nn.ReLU(), nn.Linear(units, 2)).eval()


def numbers(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(len(shape)))


X = numbers(8, 4) - 0.3
CUT = edit.scale(Neurons.of({HIDDEN: 30}, {HIDDEN: [3, 7]}), 0.0)
OTHER = edit.scale(Neurons.of({HIDDEN: 30}, {HIDDEN: [11]}), 0.0)


def same(found: Any, wanted: Any) -> None:
    """Plain numbers of two results, alike but for rounding."""
    if isinstance(wanted, dict):
        assert found.keys() == wanted.keys()
        for name, value in wanted.items():
            same(found[name], value)
    elif isinstance(wanted, list | tuple):
        assert len(found) == len(wanted)
        for one, other in zip(found, wanted, strict=True):
            same(one, other)
    elif isinstance(wanted, Tensor):
        assert found.device.type == "cpu"
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5, equal_nan=True)
    elif isinstance(wanted, float):
        assert found == pytest.approx(wanted, rel=1e-4, abs=1e-5, nan_ok=True)
    else:
        assert found == wanted


def compared(model: nn.Module, device: torch.device) -> Any:
    suite = {"first": lambda m: m(X.to(device))[:, 0].mean(), "noise": lambda m: m(torch.rand(8, 4).to(device)).mean()}
    return explain.compare(model, CUT, suite, n_random=5).to_json()


def dosed(model: nn.Module, device: torch.device) -> Any:
    found = controls.dose_curve(
        model,
        lambda a: edit.add(~Neurons.of({HIDDEN: 30}), a, basis=numbers(30).to(device)),
        [0.0, 1.0, 2.0],
        {"y": lambda m: m(X.to(device)).sum()},
        n_random=3,
    )
    return found["y"].to_json()


def dissociated(model: nn.Module, device: torch.device) -> Any:
    tasks = {"a": lambda m: m(X.to(device))[:, 0], "b": lambda m: m(X.to(device))[:, 1]}
    return controls.double_dissociation(model, {"a": CUT, "b": OTHER}, tasks, n_random=3).to_json()


def matrix(model: nn.Module, device: torch.device) -> Any:
    groups, keep = torch.arange(8) % 2, torch.arange(8) < 7
    found = explain.effect_matrix(
        model,
        {"0": CUT, "1": OTHER},
        lambda m: {"y": m(X.to(device))[:, 0]},
        groups.to(device),
        keep=keep.to(device),
        n_random=2,
    )["y"]
    low, high = found.interval(resamples=20, clusters=(torch.arange(8) // 2).to(device))
    return found.to_json(), low, high


def one_by_one(model: nn.Module, device: torch.device) -> Any:
    return explain.unit_effects(model, [X.to(device)], HIDDEN, lambda out, batch: out.sum(1) - batch.sum(1))


def patched(model: nn.Module, device: torch.device) -> Any:
    pairs = (X[:4].to(device), X[4:].to(device))
    metric = circuits.logit_difference(*(torch.tensor(a).to(device) for a in ([0, 1, 0, 1], [1, 0, 1, 0])))
    found = circuits.activation_patching(model, *pairs, HIDDEN, metric, per="unit", positions="all")
    slopes = circuits.attribution_patching(model, *pairs, HIDDEN, metric, per="unit", positions="all")
    paths = circuits.path_patching(model, *pairs, HIDDEN, None, metric, freeze=[])
    whole = circuits.faithfulness(model, CUT.neurons, *pairs, metric, ~Neurons.of({HIDDEN: 30}), n_random=2)
    return [m.to_json() for m in (found, slopes, paths)], whole.faithfulness, whole.completeness, whole.controls


def differing(model: nn.Module, device: torch.device) -> Any:
    tuned = copy.deepcopy(model)
    with torch.no_grad():
        tuned[0].weight.mul_(torch.linspace(0.5, 1.5, 30)[:, None].to(device))
    pairs = (X[:4].to(device), X[4:].to(device), lambda y, pair: y[:, 0])
    labels = (torch.arange(8) % 2).to(device)
    at = [Site("0", "b u"), HIDDEN]
    found = diff.checkpoints(model, tuned, X.to(device), at, labels=labels, pairs=pairs)
    return [part.to_json() for part in (found.weights, found.recordings, found.probes, found.patches) if part]


def shown(model: nn.Module, device: torch.device) -> Any:
    x, y = numbers(24, 1, 2, 2), torch.arange(24) % 2
    flat = nn.Sequential(nn.Flatten(), *model)
    places = {} if device == CPU else {"images": x.to(device), "labels": y.to(device), "shown": x.to(device)}
    found = []
    for given in ({"images": x, "labels": y}, places or {"images": x, "labels": y}):
        made = atlas.build(flat, atlas.Images(**given), featured=2, exemplars=2)
        page = made.pages[0]
        doses = [[(d.own, d.others, d.right) for d in curve] for curve in page.doses.values()]
        found.append((made.accuracy, page.selectivity, page.effect, page.by_concept, doses))
    return found


@pytest.mark.parametrize(
    "of", [compared, dosed, dissociated, matrix, one_by_one, patched, differing, shown], ids=lambda of: of.__name__
)
def test_a_model_elsewhere(of: Callable[[nn.Module, torch.device], Any], elsewhere: torch.device) -> None:
    same(of(net().to(elsewhere), elsewhere), of(net(), CPU))


def test_measures_that_draw_see_the_same_numbers_each_time(elsewhere: torch.device) -> None:
    model = nn.Sequential(*net(), nn.Dropout(0.5)).to(elsewhere).train()
    x, nothing = X.to(elsewhere), edit.scale(CUT.neurons, 1.0)
    found = explain.compare(model, nothing, {"y": lambda m: m(x).sum()}, n_random=3)["y"]
    assert found.change == 0.0
    assert not found.controls.any()


def test_results_made_by_hand(elsewhere: torch.device) -> None:
    def put(values: Any) -> Tensor:
        return torch.tensor(values).to(elsewhere)

    effects = put([-0.1, 0.0, -0.2])
    assert controls.null(-0.5, effects).p == explain.Effect("y", 0.9, 0.4, effects).p == 0.25
    curve = controls.DoseCurve("y", 1.0, put([0.0, 1.0, 2.0]), put([0.0, 1.0, 2.0]), put([[0.0, 0.1, 0.1]]))
    assert (curve.monotonicity, curve.outside) == (1.0, (1.0, 2.0))
    matrix = explain.EffectMatrix(
        "y", ("a", "b"), ("a", "b"), put([[-1.0, -0.5, 0.0], [0.0, 0.0, -1.0]]), put([0, 0, 1]), torch.zeros(2, 3, 2)
    )
    assert (matrix.own, matrix.other, matrix.null("a", "a").p) == (-0.875, 0.0, 0.25)
    profile = explain.StageProfile((HIDDEN, Site("2")), ("specific",), put([[3], [1]]), put([10, 10]))
    assert (profile.share("specific").tolist(), profile.center("specific")) == ([0.3, 0.1], 0.25)
    places = (Place(HIDDEN, 0), Place(HIDDEN, 1))
    found, here = (
        PatchMap(places, put_to([[1.0, 2.0], [3.0, 1.0]]), put_to([2.0, 4.0]), put_to([0.0, 0.0]), None, "noise")
        for put_to in (put, torch.tensor)
    )
    same(found.to_json(), here.to_json())
    assert diff.map_correlation(found, here) == pytest.approx(1.0)
    assert controls.holm(put([0.01, 0.04])).tolist() == pytest.approx([0.02, 0.04])
    assert controls.sign_flip(put([0.3, 0.1, 0.4, 0.2])) == 0.125
    change = diff.indirect_effect(*map(put, ([0.8, 0.6], [-0.7, -0.5], [0.0, 0.0], [0.8, 0.6])))
    assert change.to_true == pytest.approx(1.0)


def test_labels_are_shuffled_where_they_lie(elsewhere: torch.device) -> None:
    labels, group = torch.arange(12), torch.arange(12) % 3
    for within in (None, group):
        moved = None if within is None else within.to(elsewhere)
        wanted = controls.shuffled(labels, torch.Generator().manual_seed(0), within=within)
        found = controls.shuffled(labels.to(elsewhere), torch.Generator().manual_seed(0), within=moved)
        assert found.device.type == elsewhere.type
        assert found.tolist() == wanted.tolist()
    x = numbers(12, 5).double()

    def score(y: Tensor) -> Scores:
        return Scores({HIDDEN: (y.double()[:, None] * x.to(y.device)).sum(0)})

    null, there = (
        controls.label_shuffles(score, y, torch.Generator().manual_seed(0), 9) for y in (labels, labels.to(elsewhere))
    )
    same(there.p_family[HIDDEN], null.p_family[HIDDEN])


def test_a_clamp_holds_through_training(elsewhere: torch.device) -> None:
    weights = []
    for device in (CPU, elsewhere):
        model, x = net().to(device), X.to(device)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with circuits.held(model, edit.clamp(CUT.neurons, 0.0)):
            for _ in range(2):
                optimizer.zero_grad()
                model(x).square().mean().backward()
                optimizer.step()
        weights.append(model[0].weight.detach().cpu())
    same(weights[1], weights[0])


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_language_models(tiny, family: str, elsewhere: torch.device) -> None:
    def of(device: torch.device) -> Any:
        model, inputs = tiny(family)
        model, ids = model.to(device), inputs["input_ids"].to(device)
        chosen = Neurons.of({(site := sites.mlp(model)[1]): 32}, {site: range(8)})
        entropy = explain.entropy_effect(model, edit.scale(chosen, 0.0), {"input_ids": ids}, n_random=2)
        columns = torch.tensor([2, 4]).to(device)
        metric = circuits.logit_difference(ids[:, 0], ids[:, 1], columns)
        pairs = ({"input_ids": ids}, {"input_ids": ids.flip(1)})
        found = circuits.activation_patching(
            model, *pairs, sites.residual(model), metric, positions={"here": columns}, rows=4
        )
        paths = circuits.path_patching(model, *pairs, sites.heads(model)[0], sites.mlp(model)[1], metric)
        with circuits.open_attention(model) as attention:
            record = probe.record(model, {"input_ids": ids}, attention.patterns)
            pattern = circuits.pattern_of(record, attention.patterns[0])
        return (
            entropy.before,
            entropy.total,
            entropy.direct,
            entropy.controls,
            found.to_json(),
            pattern,
            paths.effects,
        )

    same(of(elsewhere), of(CPU))


def test_an_atlas_of_texts(elsewhere: torch.device) -> None:
    transformers = pytest.importorskip("transformers")
    texts, answers = ["x cat", "x big cow", "y dog", "y fox"] * 2, ["sat down", "ran off"] * 4
    tokenizer = word_tokenizer([*texts, *answers])
    config = transformers.GPT2Config(vocab_size=len(tokenizer), n_embd=8, n_layer=1, n_head=2, n_inner=6)

    def of(device: torch.device, said: list[str] | None) -> Any:
        torch.manual_seed(0)
        model = transformers.GPT2LMHeadModel(config).to(device)
        matter = atlas.Texts(tokenizer, texts, [text[0] for text in texts], said)
        found = atlas.build(model, matter, featured=1, exemplars=1)
        return found.accuracy, found.pages[0].selectivity, found.pages[0].by_concept

    for said in (answers, None):
        same(of(elsewhere, said), of(CPU, said))


def test_of_a_larger_model_the_gradient_chooses(elsewhere: torch.device) -> None:
    def of(device: torch.device) -> Any:
        model = nn.Sequential(nn.Flatten(), *net(100)).to(device)
        matter = atlas.Images(numbers(16, 1, 2, 2), torch.arange(16) % 2)
        found = atlas.build(model, matter, units=80, featured=1, exemplars=1)
        return found.pages[0].units, found.pages[0].effect

    same(of(elsewhere), of(CPU))
