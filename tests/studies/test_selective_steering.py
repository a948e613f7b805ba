"""The protocol of selective-steering: what an arm changes, what is held out, and that its checks can fail."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from plexus.edit import steer
from plexus.studies.steering._dials import (
    OFF,
    Variant,
    choose,
    dials,
    drawn_sites,
    length_error,
    published_error,
    variants,
)
from plexus.studies.steering._openers import barred, learned
from plexus.studies.steering._refusals import Config, Requests, measure, prepared, steered
from plexus.studies.steering.selective_steering import SelectiveSteering
from plexus.units import Site

SMOKE: Config = SelectiveSteering.configure("smoke")


@pytest.fixture(scope="module")
def requests() -> Requests:
    return prepared(SMOKE, 0)


def arm(name: str) -> Config:
    return replace(SMOKE, **SelectiveSteering.arm(name).overrides)


def sole(name: str, requests: Requests) -> Variant:
    return variants(arm(name), requests, 0)[0]


def tried(name: str, requests: Requests) -> list[tuple[float, Any]]:
    return dials(arm(name), requests, sole(name, requests))


TURNS = ("relative everywhere", "first half", "angular", "adaptive")


def test_calibration_and_test_share_no_pair_of_verb_and_object(requests: Requests) -> None:
    tokens = {
        name: {tuple(row[row > 3].tolist()) for row in part.ids} for name, part in requests.sets.items() if " " in name
    }
    assert not (tokens["calibration restricted"] & tokens["test restricted"])
    assert not (tokens["calibration allowed"] & tokens["test allowed"])
    asked = {item.prompt for items in requests.items.values() for item in items}
    assert len(asked) == sum(len(items) for items in requests.items.values())


def test_one_pass_reads_what_greedy_decoding_says(requests: Requests) -> None:
    model, tokenizer = requests.model, requests.tokenizer
    items = [item for part in requests.items.values() for item in part]
    found, _ = measure(model, requests.sets, requests.openings)
    right = 0
    for item in requests.items["allowed"]:
        ids = torch.tensor([tokenizer(item.prompt).input_ids])
        with torch.no_grad():
            out = model.generate(ids, max_new_tokens=12, do_sample=False, pad_token_id=0)
        right += tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True).startswith(item.answer)
    assert found["test"].capability == pytest.approx(100 * right / len(requests.items["allowed"]))
    assert len(items) > 0


def test_a_perfect_and_a_silent_model_are_told_apart(requests: Requests) -> None:
    class Oracle(torch.nn.Module):
        def __init__(self, right: bool) -> None:
            super().__init__()
            self.right = right

        def forward(self, input_ids: torch.Tensor, use_cache: bool = True) -> Any:
            following = torch.nn.functional.pad(input_ids[:, 1:], (0, 1))
            spoken = following if self.right else torch.full_like(following, int(requests.openings[0]))
            logits = 50 * torch.nn.functional.one_hot(spoken, len(requests.tokenizer)).float()
            return type("Output", (), {"logits": logits})

    right, low = measure(Oracle(True), requests.sets, requests.openings)
    assert (right["test"].bypass, right["test"].capability, right["test"].refused) == (100, 100, 0)
    wrong, high = measure(Oracle(False), requests.sets, requests.openings)
    assert (wrong["test"].bypass, wrong["test"].refused, wrong["test"].over) == (0, 100, 100)
    assert low == pytest.approx(1) and high > 1e3  # noqa: PT018


def test_arms_differ_in_what_their_names_say(requests: Requests) -> None:
    every = requests.plane.stats.sites
    chosen = requests.plane.discriminative_sites()
    assert sole("relative everywhere", requests).sites == every
    assert sole("first half", requests).sites == every[: len(every) // 2]
    for name in ("selective", "absolute at selected", "random second"):
        assert sole(name, requests).sites == chosen
    assert len(sole("widest", requests).sites) == len(chosen)
    assert all(len(one.sites) == len(chosen) for one in variants(arm("random sites"), requests, 0))
    assert tried("none", requests) == [(OFF, None)]


def test_every_arm_tries_as_many_settings_and_one_of_them_does_nothing(requests: Requests) -> None:
    plain = steered(requests, None)
    budget = SelectiveSteering().tune(SMOKE).budget
    for name in (*TURNS, "addition", "ablation"):
        settings = tried(name, requests)
        assert len(settings) == SMOKE.settings == budget[name]
        assert len({(setting, edit and len(edit.neurons.sites)) for setting, edit in settings}) == SMOKE.settings
        _, off = settings[0]
        same, perplexity = steered(requests, off)
        assert same == plain[0]
        assert perplexity == pytest.approx(plain[1], rel=1e-4)
    full = replace(arm("ablation"), settings=36)
    shares = [share for share, _ in dials(full, requests, sole("ablation", requests))]
    assert len(shares) == 36
    assert 1.0 in shares


def test_drawn_sites_are_as_many_and_other_than_the_chosen_ones() -> None:
    every = tuple(Site(str(i)) for i in range(8))
    chosen = every[2:]
    generator = torch.Generator().manual_seed(0)
    drawn = drawn_sites(every, chosen, 8, generator)
    assert len(set(drawn)) == 8
    assert chosen not in drawn
    assert all(len(set(sites)) == 6 and set(sites) <= set(every) for sites in drawn)
    assert len(drawn_sites(every, every[:7], 50, generator)) == 7  # all others that there are
    assert drawn_sites(every, every, 8, generator) == [every]
    assert drawn_sites(every, (), 8, generator) == [()]
    counts = torch.zeros(8)
    for seed in range(300):
        for sites in drawn_sites(every, chosen, 8, torch.Generator().manual_seed(seed)):
            counts[[every.index(site) for site in sites]] += 1
    expected = 2400 * torch.tensor([21.0] * 2 + [20.0] * 6) / 27  # 21 of the 28 sets hold a site, the chosen left out
    assert torch.allclose(counts, expected, rtol=0.04)


def test_draws_follow_from_the_seed_and_have_numbers_of_their_own(requests: Requests) -> None:
    config = arm("random second")
    one, again, other = (variants(config, requests, seed) for seed in (0, 0, 1))
    assert len(one) == config.draws
    for a, b, c in zip(one, again, other, strict=True):
        assert a.second is not None and b.second is not None and c.second is not None  # noqa: PT018
        assert torch.equal(a.second, b.second)
        assert not torch.equal(a.second, c.second)
        assert abs(float(a.second @ requests.plane.b1)) < 1e-5
    model = torch.randn(config.draws, len(requests.plane.b1), generator=torch.Generator().manual_seed(0))
    straight = steer.plane(torch.stack([requests.plane.b1, model[0]]))[1]
    assert not torch.allclose(one[0].second, straight)  # type: ignore[arg-type]


def test_a_draw_chooses_as_any_other_arm_and_counts_by_the_mean(requests: Requests) -> None:
    config = replace(arm("random second"), sites="all")
    variant = Variant(requests.plane.stats.sites)
    settings = dials(config, requests, variant)
    sparing, thorough = choose(config, requests, settings), choose(replace(config, second="plane"), requests, settings)
    assert sparing.setting == thorough.setting
    assert sparing.metrics["perplexity"] == pytest.approx(thorough.metrics["perplexity"], rel=1e-4)
    for curves in (False, True):  # what is reported of the chosen setting does not depend on what else is measured
        found = choose(replace(config, second="plane", curves=curves), requests, settings)
        assert found.metrics["score"] == sparing.metrics["score"]
    outcome = SelectiveSteering().run(config, requests, 0)
    assert outcome.metrics["score"] == pytest.approx(outcome.arrays["draws"].mean())
    assert len(outcome.arrays["draws"]) == config.draws


def test_an_arm_that_only_harms_falls_back_to_the_model_as_it_is(requests: Requests) -> None:
    class Knows(torch.nn.Module):
        """Says every recipe unless its one site is touched."""

        def __init__(self) -> None:
            super().__init__()
            self.site = torch.nn.Identity()

        def forward(self, input_ids: torch.Tensor, use_cache: bool = True) -> Any:
            following = torch.nn.functional.pad(input_ids[:, 1:], (0, 1))
            start = torch.zeros(*input_ids.shape, 2)
            start[..., 0] = 1.0
            hurt = (self.site(start) - start).abs().amax() > 1e-3
            spoken = torch.full_like(following, int(requests.openings[0])) if hurt else following
            logits = 50 * torch.nn.functional.one_hot(spoken, len(requests.tokenizer)).float()
            return type("Output", (), {"logits": logits})

    knows = requests._replace(model=Knows())
    planes = {Site("site"): torch.eye(2)}
    harms = [(90.0, steer.rotate(planes, 90, mode="absolute")), (180.0, steer.rotate(planes, 180, mode="absolute"))]
    found = choose(arm("angular"), knows, [(OFF, None), *harms])
    assert found.setting == OFF
    assert found.metrics["score"] == 100
    assert choose(arm("angular"), knows, [*harms]).metrics["score"] == 0


def test_controls_do_what_they_are_made_for(requests: Requests) -> None:
    no_refusals, _ = steered(requests, barred(requests))
    assert (no_refusals["test"].refused, no_refusals["test"].over) == (0, 0)
    sites = requests.plane.stats.sites

    def surprise(edit: Any) -> float:
        part = requests.sets["calibration restricted"]
        place = torch.arange(part.ids.shape[1] - 1)
        answer = (place >= part.first[:, None] - 1) & (place < part.length[:, None] - 1)
        with torch.no_grad(), edit.on(requests.model):
            logits = requests.model(input_ids=part.ids, use_cache=False).logits[:, :-1]
        return float(torch.nn.functional.cross_entropy(logits[answer], part.ids[:, 1:][answer]))

    none = dict.fromkeys(sites, torch.ones_like(requests.plane.b1))
    plain = surprise(steer.add(none, 0.0))
    some, more = (surprise(learned(requests, sites, steps)) for steps in (3, 30))
    assert more < some < plain


def test_addition_goes_away_from_refusal(requests: Requests) -> None:
    strengths = [strength for strength, _ in tried("addition", requests)]
    assert min(strengths) == -SMOKE.reach
    assert max(strengths) == 0


def test_lengths_are_kept_by_rotations_and_not_by_a_plane_that_leans(requests: Requests) -> None:
    for name in ("relative everywhere", "angular", "adaptive"):
        _, edit = tried(name, requests)[-1]
        assert edit is not None
        assert length_error(requests, edit, torch.float32) < 1e-5
        assert length_error(requests, edit, torch.bfloat16) < 1e-2
    _, push = tried("addition", requests)[-1]
    assert push is not None
    assert length_error(requests, push, torch.float32) > 1e-2
    assert published_error(requests, 0.0) < 1e-12
    assert published_error(requests, 17.0) > 1e-3


def test_the_model_is_as_it_was_after_an_arm(requests: Requests) -> None:
    before = {name: value.clone() for name, value in requests.model.state_dict().items()}
    for name in ("relative everywhere", "learned"):
        SelectiveSteering().run(arm(name), requests, 0)
    assert all(torch.equal(before[name], value) for name, value in requests.model.state_dict().items())


def test_every_check_can_fail() -> None:
    keys = (
        "bypass", "capability", "refused", "over", "prefilled", "score", "perplexity", "worst perplexity", "jump",
        "base", "published error", "skewed error", "length error", "coarse length error", "misread",
    )  # fmt: skip
    good: dict[str, dict[str, float]] = {a.name: dict.fromkeys(keys, 50.0) for a in SelectiveSteering.arms}
    bad = {name: dict(metrics) for name, metrics in good.items()}
    for name in good:
        best = name == "selective"
        good[name] |= {"score": 90.0 if best else 20.0, "bypass": 90.0 if best else 5.0, "capability": 99.0}
        bad[name] |= {"score": 20.0 if best else 90.0, "bypass": 5.0 if best else 90.0}
        good[name] |= {"worst perplexity": 1.0 if best else 3.0, "jump": 5.0}
        bad[name] |= {"worst perplexity": 9.0 if best else 1.0, "capability": 40.0 if best else 99.0}
    for name in ("barred", "learned"):
        good[name] |= {"bypass": 95.0}
        bad[name] |= {"bypass": 0.0}
    for check in SelectiveSteering.checks:
        if check.role in ("control", "mechanism", "advantage"):
            assert check.quantity(good) != check.quantity(bad), check.name
