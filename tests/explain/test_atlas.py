"""The atlas: effects of single units in one pass, detectors told from actors by construction, pages that agree."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import plexus as px
from plexus.data.corpora import fact_world, word_tokenizer
from plexus.errors import DtypeError, FormatError, PlexusError, RangeError, ShapeError, SiteError
from plexus.explain import atlas, sweep, unit_effects
from plexus.explain.atlas._build import _page
from plexus.explain.atlas._choice import attribution, choose
from plexus.explain.atlas._pages import short_names
from plexus.lab._atlas import find_subject, read_texts
from plexus.lab.models import recall
from plexus.units import Site

HIDDEN = Site("1", "b ... u")
HELD = Site("hidden", "b u")


def small() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)).eval()


def logsum(output: Tensor, batch: object) -> Tensor:
    return output.logsumexp(1)


def test_effects_equal_those_of_one_edit_at_a_time() -> None:
    model, x = small(), torch.randn(4, 5)
    found = unit_effects(model, [x], HIDDEN, logsum, rows=9)[HIDDEN]  # two cells share a pass, the last stands alone
    before = model(x).logsumexp(1)
    for unit in range(7):
        with px.edit.scale(model, px.units.Neurons.of({HIDDEN: 7}, {HIDDEN: [unit]}), 0.0):
            assert torch.allclose(found[unit], (model(x).logsumexp(1) - before).double(), atol=1e-6)


def test_a_factor_of_one_changes_nothing_and_the_model_is_left_alone() -> None:
    model, x = small(), torch.randn(3, 5)
    model.train()
    (cells, output), *rest = list(sweep(model, x, HIDDEN, [(0, 1.0), (6, 1.0)]))
    assert not rest
    assert [cell.unit for cell in cells] == [0, 6]
    assert torch.allclose(output, model(x).repeat(2, 1), atol=1e-6)
    assert model.training


@pytest.mark.parametrize("name", ["llama", "gpt2", "neox", "phi3"])
def test_language_models_by_their_architecture(tiny, name: str) -> None:
    model, _ = tiny(name)
    site = px.sites.mlp(model)[0]
    ids = torch.randint(3, 20, (3, 4))
    batch = {"input_ids": ids, "attention_mask": torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1], [0, 1, 1, 1]])}

    def last(output: object, _: object) -> Tensor:
        return output.logits[:, -1, 5]  # type: ignore[attr-defined]

    units = px.sites.measure(model, batch, [site])[site]
    found = unit_effects(model, [batch], site, last)[site]
    with torch.no_grad(), px.edit.scale(model, px.units.Neurons.of({site: units}, {site: [units - 1]}), 0.0):
        under = model(**batch).logits[:, -1, 5]
    with torch.no_grad():
        before = model(**batch).logits[:, -1, 5]
    assert torch.allclose(found[units - 1], (under - before).double(), atol=1e-5)


@pytest.mark.parametrize(
    ("cells", "error"), [([(9, 0.0)], RangeError), ([(-1, 0.0)], RangeError), ([(0, float("nan"))], RangeError)]
)
def test_cells_that_cannot_be(cells: list[tuple[int, float]], error: type[PlexusError]) -> None:
    with pytest.raises(error):
        list(sweep(small(), torch.randn(2, 5), HIDDEN, cells))


def test_other_bad_input_of_a_sweep() -> None:
    with pytest.raises(DtypeError):
        list(sweep(small(), [torch.zeros(2, 5)], HIDDEN, [(0, 0.0)]))
    with pytest.raises(ShapeError):
        list(sweep(small(), {"a": torch.zeros(2, 5), "b": torch.zeros(3, 5)}, HIDDEN, [(0, 0.0)]))
    with pytest.raises(ShapeError, match="one number per row"):
        unit_effects(small(), [torch.zeros(2, 5)], HIDDEN, lambda out, _: out)


class Planted(nn.Module):
    """Unit 0 shows class 0 and drives its logit; unit 1 shows class 1 and nobody reads it; unit 2 is constant."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.out = nn.Identity(), nn.Linear(24, 2, bias=False)
        with torch.no_grad():
            self.out.weight.zero_()
            self.out.weight[0, 0] = self.out.weight[1, 2] = 1.0

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.hidden(x.flatten(1)))


def front_of(index: Path) -> dict:
    body = (index.parent / "data.js").read_text(encoding="utf-8")
    return json.loads(body[body.index(",") + 1 : body.rindex(")")])


def planted() -> tuple[Planted, atlas.Images]:
    generator = torch.Generator().manual_seed(3)
    labels = torch.arange(80) % 2
    values = 0.05 * torch.rand(80, 24, generator=generator)
    values[:, 0] += 4.0 * (labels == 0)
    values[:, 1] += 4.0 * (labels == 1)
    values[:, 2] = 2.0
    return Planted(), atlas.Images(values.reshape(80, 1, 4, 6), labels, ["zero", "one"])


def test_a_detector_nobody_reads_is_no_actor() -> None:
    model, matter = planted()
    site = HELD
    page = atlas.build(model, matter, site, featured=8).pages[0]
    assert page.concept[:2].tolist() == [0, 1]
    assert page.selectivity[:2].tolist() == [1.0, 1.0]
    assert page.effect[0] > 1
    assert bool(page.acts[0])
    assert page.effect[1] == 0  # a detector that is not read
    assert not page.acts[1]
    assert (page.effect[3:] == 0).all()  # noise that is not read
    assert {exemplar.sample % 2 for exemplar in page.exemplars[0]} == {0}
    curve = {dose.factor: dose for dose in page.doses[0]}
    assert curve[0.0].own == pytest.approx(-float(page.effect[0]), rel=1e-5)  # the map and the slider show one number
    assert curve[1.0].own == pytest.approx(0, abs=1e-6)
    assert curve[0.0].own < 0 < curve[2.0].own  # off hurts the concept, more of it helps


def test_where_a_channel_is_active_is_found() -> None:
    images = torch.zeros(8, 1, 6, 4)
    for sample in range(8):
        images[sample, 0, sample % 6, 3] = 1 + sample
    model = nn.Sequential(nn.Conv2d(1, 1, 1), nn.ReLU(), nn.Flatten(), nn.Linear(24, 2))
    with torch.no_grad():
        model[0].weight.fill_(1.0)  # type: ignore[union-attr, operator]
    page = atlas.build(model, atlas.Images(images, torch.arange(8) % 2), exemplars=2).pages[0]
    best = page.exemplars[0][0]
    assert best.sample == 7
    assert best.place == [3 / 4, 1 / 6, 1 / 4, 1 / 6]


def test_pages_hold_what_was_measured_and_replace_an_older_atlas(tmp_path) -> None:
    model, matter = planted()
    found = atlas.build(model, matter, HELD, featured=2, title="<b>Planted</b>")
    index = atlas.write(found, tmp_path / "pages")
    assert "&lt;b&gt;Planted" in index.read_text(encoding="utf-8")
    front = front_of(index)
    assert front["concepts"] == ["zero", "one"]
    assert front["sites"][0]["effect"][0] == pytest.approx(float(found.pages[0].effect[0]), rel=1e-3)
    assert len(front["sites"][0]["full"]) == 2
    (index.parent / "old.js").write_text("")
    atlas.write(found, tmp_path / "pages")
    assert not (index.parent / "old.js").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["pages"]  # nothing half-written is left


def test_a_folder_of_other_files_is_not_touched(tmp_path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    model, matter = planted()
    with pytest.raises(FormatError, match="no atlas"):
        atlas.write(atlas.build(model, matter, HELD, featured=0), tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "mine"


def test_bad_matter() -> None:
    with pytest.raises(ShapeError):
        atlas.Images(torch.zeros(4, 8, 8), torch.zeros(4, dtype=torch.int64))
    with pytest.raises(DtypeError):
        atlas.Images(torch.zeros(4, 1, 8, 8), torch.zeros(4))
    with pytest.raises(ShapeError, match="too few samples"):
        atlas.build(Planted(), atlas.Images(torch.zeros(6, 1, 2, 4), torch.tensor([0, 0, 0, 0, 0, 1])))
    with pytest.raises(SiteError, match="to mend"):
        atlas.build(nn.Flatten(), atlas.Images(torch.zeros(8, 1, 1, 2), torch.arange(8) % 2))


def test_one_concept_is_refused_before_the_model_runs() -> None:
    class Never(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise AssertionError("the model ran")

    with pytest.raises(ShapeError, match="40 samples of 'only'") as caught:
        atlas.build(Never(), atlas.Images(torch.zeros(40, 1, 2, 2), torch.zeros(40, dtype=torch.int64), ["only"]))
    assert caught.value.mend is not None


def test_a_model_that_gives_nan_is_refused_in_words() -> None:
    model, matter = planted()
    with torch.no_grad():
        model.out.weight[1, 5] = float("nan")
    with pytest.raises(RangeError, match="no finite log-probability"):
        atlas.build(model, matter, HELD)


def test_accuracy_is_that_of_the_most_probable_answer() -> None:
    model, matter = planted()
    with torch.no_grad():
        model.out.weight.zero_()  # all answers are as probable, and the first class is taken: half of the samples
    assert atlas.build(model, matter, HELD, featured=0).accuracy == 0.5
    with torch.no_grad():
        model.out.weight[1, 0] = model.out.weight[0, 1] = 1.0
    assert atlas.build(model, matter, HELD, featured=0).accuracy == 0


def test_accuracy_of_a_large_vocabulary_agrees_with_recall() -> None:
    transformers = pytest.importorskip("transformers")
    items = fact_world(2, generator=torch.Generator().manual_seed(0)).items()[:48]
    tokenizer = word_tokenizer(items)
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=20000, hidden_size=8, intermediate_size=4, num_hidden_layers=1, num_attention_heads=2
    )
    model = transformers.LlamaForCausalLM(config).eval()
    half = ["a", "b"] * (len(items) // 2)
    matter = atlas.Texts(tokenizer, [item.prompt for item in items], half, [item.answer for item in items])
    assert atlas.build(model, matter, featured=0).accuracy == recall(model, tokenizer, items).accuracy == 0


@pytest.mark.parametrize("units", [6, 16, 24, 64, 500])
def test_noise_lies_beyond_its_band_as_often_as_the_page_says(units: int) -> None:
    generator = torch.Generator().manual_seed(units)
    matter, held = atlas.Images(torch.zeros(80, 1, 2, 2), torch.arange(80) % 4), torch.arange(80) >= 40
    beyond, repeats = [], max(16, 12000 // units)
    for _ in range(repeats):
        values = torch.rand(80, units, generator=generator)
        concept = torch.randint(4, (units,), generator=generator)
        change = torch.randn(units, 40, generator=generator, dtype=torch.float64) ** 3  # heavy tails
        page = _page(Site("x", "b u"), values, concept, torch.ones(units), change, matter, held)
        beyond.append(page.acts.double().mean())
    shares = torch.stack(beyond)
    assert page.tail == {6: 0, 16: 0, 24: 1 / 24, 64: 1 / 40, 500: 1 / 40}[units]
    assert abs(float(shares.mean()) - page.tail) <= 4 * float(shares.std()) / repeats**0.5


def wide() -> tuple[nn.Sequential, atlas.Images]:
    """Two layers of 150 units and one of 90; units 100 and 7 of the second say the class, the others are noise."""
    torch.manual_seed(0)
    labels = torch.arange(80) % 2
    values = 0.1 * torch.rand(80, 150)
    values[:, 100] += labels == 0
    values[:, 7] += labels == 1
    net = nn.Sequential(nn.Flatten(), nn.Linear(150, 150), nn.Linear(150, 150), nn.Linear(150, 90), nn.Linear(90, 2))
    with torch.no_grad():
        for layer in (net[1], net[2]):
            layer.weight.copy_(torch.eye(150))
            layer.bias.zero_()
        net[4].weight.zero_()
        net[3].weight.mul_(0.01)
        net[3].weight[0, 100] = net[3].weight[1, 7] = 1.0
        net[4].weight[0, 0] = net[4].weight[1, 1] = 3.0
    return net, atlas.Images(values.reshape(80, 1, 10, 15), labels)


def test_of_a_larger_model_the_promising_units_are_measured_and_get_the_same_numbers() -> None:
    net, matter = wide()
    sites = [Site("1", "b u"), Site("2", "b u"), Site("3", "b u")]
    everything = atlas.build(net, matter, sites, featured=0)
    some = atlas.build(net, matter, sites, featured=3, units=270)
    assert everything.total == some.total == 390
    assert 200 < sum(len(page.units) for page in some.pages) <= 270
    assert f" {sum(len(page.units) for page in some.pages)} of 390 units at 3 site(s)" in repr(some)
    whole = {page.site: page for page in everything.pages}
    for page in some.pages:
        units = page.units
        assert int(page.control.sum()) == (40 if len(page.units) < page.size else page.size)
        assert page.tail == 1 / 40
        for name in ("concept", "selectivity", "effect", "others"):
            assert torch.allclose(getattr(page, name), getattr(whole[page.site], name)[units]), name
        assert torch.allclose(page.by_concept, whole[page.site].by_concept[:, units])
        full = whole[page.site].exemplars
        assert [e[0].sample for e in page.exemplars] == [full[unit][0].sample for unit in units.tolist()]
    acting = {(page.site.path, int(page.units[i])) for page in some.pages for i in page.acts.nonzero()}
    assert {(path, unit) for path in ("1", "2") for unit in (100, 7)} <= acting
    assert {unit.unit for unit in some.effect.ranked(6)} <= {100, 7, 0, 1}  # NaN for the others ranks nowhere
    assert int(some.effect[some.pages[0].site].isnan().sum()) == some.pages[0].size - len(some.pages[0].units)


def test_chosen_units_without_effect_lie_beyond_their_controls_as_often_as_the_page_says() -> None:
    generator = torch.Generator().manual_seed(0)
    matter, held = atlas.Images(torch.zeros(80, 1, 2, 2), torch.arange(80) % 2), torch.arange(80) >= 40
    site, beyond = Site("x", "b u"), []
    for _ in range(150):
        values = torch.rand(80, 600, generator=generator)
        score = torch.rand(2, 600, generator=generator)
        chosen = choose({site: score[0]}, {site: score[1]}, {site: values.mean(0)}, 120)[site]
        assert len(chosen.units.unique()) == 120
        concept = torch.randint(2, (120,), generator=generator)
        change = torch.randn(120, 40, generator=generator, dtype=torch.float64) ** 3
        page = _page(site, values[:, chosen.units], concept, torch.ones(120), change, matter, held, chosen.control)
        beyond.append(page.acts.double().mean())
    shares = torch.stack(beyond)
    assert abs(float(shares.mean()) - page.tail) <= 4 * float(shares.std()) / 150**0.5


def test_what_the_gradient_says_is_the_effect_where_all_is_linear() -> None:
    net, matter = wide()
    site = Site("2", "b u")
    samples = torch.arange(40)

    class Plain(atlas.Images):
        def outcome(self, output: Tensor, index: Tensor) -> Tensor:
            return output.gather(1, self.labels[index][:, None]).squeeze(1)

    plain = Plain(matter.images, matter.labels)
    found = attribution(net, plain, samples, [site])[site]
    exact = -unit_effects(
        net, [plain.batch(samples)], site, lambda out, _: plain.outcome(out, samples.repeat(len(out) // 40))
    )[site]
    for concept in (0, 1):
        assert torch.allclose(found[concept], exact[:, plain.labels[samples] == concept].mean(1), atol=1e-5)


def test_too_few_units_for_controls_are_refused() -> None:
    net, matter = wide()
    with pytest.raises(RangeError, match="at least 80"):
        atlas.build(net, matter, units=79)


def test_blocks_before_a_unit_are_not_run_again(tiny) -> None:
    model, _ = tiny("llama")
    site = px.sites.mlp(model)[-1]
    batch = {"input_ids": torch.randint(3, 20, (3, 4))}
    calls = []
    handle = model.model.layers[0].mlp.register_forward_hook(lambda *_: calls.append(1))
    found = unit_effects(model, [batch], site, lambda out, _: out.logits[:, -1, 5], rows=3)[site]
    handle.remove()
    assert len(calls) == 2  # to measure the sites, and once as it is; not once for each unit
    with torch.no_grad():
        before = model(**batch).logits[:, -1, 5]
        for unit in range(len(found)):
            with px.edit.scale(model, px.units.Neurons.of({site: len(found)}, {site: [unit]}), 0.0):
                change = model(**batch).logits[:, -1, 5] - before
            assert torch.allclose(found[unit], change.double(), atol=1e-6)


def test_a_site_of_few_units_has_no_actors_and_says_so(tmp_path) -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.rand(40, 1, 2, 4, generator=generator), torch.arange(40) % 2
    found = atlas.build(nn.Sequential(nn.Flatten(), nn.Linear(8, 2)), atlas.Images(x, y), Site("0", "b u"), featured=0)
    assert not found.pages[0].acts.any()
    assert "8 are at sites of too few units" in repr(found)
    assert front_of(atlas.write(found, tmp_path / "pages"))["sites"][0]["edge"] is None


class Sure(nn.Module):
    """A planted model whose answers come by another way, past its units."""

    def __init__(self, inner: Planted) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) + x.flatten(1)[:, :2]


def test_an_effect_beyond_its_band_may_be_too_small_to_see() -> None:
    model, matter = planted()
    page = atlas.build(model, matter, HELD, featured=0).pages[0]
    assert bool((page.acts & page.visible)[0])
    with torch.no_grad():
        model.out.weight *= 1e-2
    sure, site = Sure(model).eval(), Site("inner.hidden", "b u")
    page = atlas.build(sure, matter, site, featured=0).pages[0]
    assert bool((page.acts & ~page.visible)[0])
    assert page.answers is not None
    kept, without = page.answers.probability[0], page.answers.without[0]
    assert 0 < kept - without < 0.01
    assert page.answers.lost[0] == 0
    own = (matter.labels == 0).nonzero().squeeze(1)[1::2]  # the half that effects are measured on
    with torch.no_grad(), px.edit.scale(sure, px.units.Neurons.of({site: 24}, {site: [0]}), 0.0):
        assert without == pytest.approx(float(sure(matter.images[own]).softmax(1)[:, 0].mean()), abs=1e-6)


def test_names_of_sites_that_differ_stay_apart() -> None:
    paths = [f"model.layers.{i}.mlp.down" for i in range(12)]
    assert len(set(short_names(paths))) == 12
    assert short_names(["a.b", "a.b.c"]) == ["a.b", "a.b.c"]


@pytest.mark.parametrize(
    ("name", "text", "match"),
    [("x.jsonl", "{", "no"), ("x.csv", "text,label\nhello,\n", "row 1"), ("x.tsv", "text\tlabel\n", "empty")],
)
def test_files_of_texts_that_cannot_be_used(tmp_path, name: str, text: str, match: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(FormatError, match=match):
        read_texts(tmp_path / name)


def test_a_checkpoint_and_a_table_of_texts_make_an_atlas(tiny, tmp_path) -> None:
    texts = ["the cat sat", "the cow ran", "a dog sat", "a fox ran"] * 4
    tokenizer = word_tokenizer(texts)
    model, _ = tiny("gpt2")
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    rows = [{"text": text.rsplit(" ", 1)[0], "answer": text.rsplit(" ", 1)[1], "label": text[0]} for text in texts]
    (tmp_path / "texts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    subject = find_subject(str(tmp_path / "model"), tmp_path / "texts.jsonl")
    site = px.sites.mlp(subject.model)[0]
    found = atlas.build(subject.model, subject.matter, site, featured=1, exemplars=2)
    assert found.matter.concepts == ("t", "a")
    index = atlas.write(found, tmp_path / "pages")
    assert "sat" in (index.parent / "samples.js").read_text(encoding="utf-8")
    with pytest.raises(FormatError, match="texts"):
        find_subject(str(tmp_path / "model"))


def test_a_function_of_ones_own(tmp_path) -> None:
    (tmp_path / "mine.py").write_text(
        "import torch\nfrom plexus.explain import atlas\n"
        "def shapes():\n"
        "    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3), torch.nn.Linear(3, 2))\n"
        "    return net, atlas.Images(torch.rand(8, 1, 2, 2), torch.arange(8) % 2)\n"
        "def nothing():\n    return 1\n"
    )
    assert find_subject(f"{tmp_path}/mine.py:shapes").title == "shapes"
    with pytest.raises(FormatError, match="no subject"):
        find_subject(f"{tmp_path}/mine.py:nothing")
    with pytest.raises(PlexusError, match="function"):
        find_subject(f"{tmp_path}/mine.py:shape")


def test_building_leaves_every_module_in_its_own_mode() -> None:
    model, matter = planted()
    model.train()
    model.hidden.eval()  # part of a model may be held in evaluation mode while the rest trains
    atlas.build(model, matter, HELD, featured=0)
    assert [module.training for module in model.modules()] == [True, False, True]
