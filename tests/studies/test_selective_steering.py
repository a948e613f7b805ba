"""The protocol of selective-steering: what an arm changes, what is held out, and that its checks can fail."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from plexus.studies.steering._dials import dials, length_error, places, published_error
from plexus.studies.steering._refusals import Config, Requests, measure, prepared, steered
from plexus.studies.steering.selective_steering import SelectiveSteering

SMOKE: Config = SelectiveSteering.configure("smoke")


@pytest.fixture(scope="module")
def requests() -> Requests:
    return prepared(SMOKE, 0)


def arm(name: str) -> Config:
    return replace(SMOKE, **SelectiveSteering.arm(name).overrides)


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


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
    assert places(arm("relative everywhere"), requests, generator()) == every
    assert places(arm("first half"), requests, generator()) == every[: len(every) // 2]
    half = places(arm("random half"), requests, generator())
    assert len(half) == len(every) // 2
    assert set(half) < set(every)
    chosen = requests.plane.discriminative_sites()
    assert places(arm("selective"), requests, generator()) == chosen
    assert len(places(arm("widest"), requests, generator())) == max(1, len(chosen))
    for name in ("angular", "adaptive", "relative everywhere", "addition"):
        assert len(dials(arm(name), requests, generator())) == SMOKE.settings  # equal effort
    assert [edit for _, edit in dials(arm("none"), requests, generator())] == [None]


def test_a_full_turn_at_zero_changes_nothing_and_addition_goes_away_from_refusal(requests: Requests) -> None:
    angle, edit = dials(arm("relative everywhere"), requests, generator())[0]
    assert angle == 0
    plain, turned = steered(requests, None), steered(requests, edit)
    assert turned[0] == plain[0]
    assert turned[1] == pytest.approx(plain[1], rel=1e-4)
    strength, _ = dials(arm("addition"), requests, generator())[-1]
    assert strength == -SMOKE.reach


def test_lengths_are_kept_by_rotations_and_not_by_a_plane_that_leans(requests: Requests) -> None:
    for name in ("relative everywhere", "angular", "adaptive"):
        _, edit = dials(arm(name), requests, generator())[1]
        assert edit is not None
        assert length_error(requests, edit, torch.float32) < 1e-5
        assert length_error(requests, edit, torch.bfloat16) < 1e-2
    _, push = dials(arm("addition"), requests, generator())[-1]
    assert push is not None
    assert length_error(requests, push, torch.float32) > 1e-2
    assert published_error(requests, 0.0) < 1e-12
    assert published_error(requests, 17.0) > 1e-3


def test_the_model_is_as_it_was_after_an_arm(requests: Requests) -> None:
    before = {name: value.clone() for name, value in requests.model.state_dict().items()}
    SelectiveSteering().run(arm("relative everywhere"), requests, 0)
    assert all(torch.equal(before[name], value) for name, value in requests.model.state_dict().items())


def test_every_check_can_fail() -> None:
    keys = (
        "bypass", "capability", "refused", "over", "prefilled", "score", "perplexity", "worst perplexity", "jump",
        "base", "published error", "skewed error", "length error", "coarse length error", "generated bypass",
        "generated capability", "opened bypass", "opened capability",
    )  # fmt: skip
    good: dict[str, dict[str, float]] = {a.name: dict.fromkeys(keys, 50.0) for a in SelectiveSteering.arms}
    bad = {name: dict(metrics) for name, metrics in good.items()}
    for name in good:
        best = name == "selective"
        good[name] |= {"score": 90.0 if best else 20.0, "bypass": 90.0 if best else 5.0, "capability": 99.0}
        bad[name] |= {"score": 20.0 if best else 90.0, "bypass": 5.0 if best else 90.0}
        good[name] |= {"worst perplexity": 1.0 if best else 3.0, "jump": 5.0}
        bad[name] |= {"worst perplexity": 9.0 if best else 1.0, "capability": 40.0 if best else 99.0}
    for check in SelectiveSteering.checks:
        if check.role in ("mechanism", "advantage"):
            assert check.quantity(good) != check.quantity(bad), check.name
