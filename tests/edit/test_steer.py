"""Steering verbs against their equations, on vectors and under `generate`."""

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from plexus import edit, probe
from plexus.edit import steer
from plexus.errors import DtypeError, RangeError, ShapeError, SiteError, UnknownNameError
from plexus.probe._language import Letters
from plexus.units import Neurons, Recording, Site, Table, attach, sites

SITE = Site("0")
IDENTITY = nn.Sequential(nn.Identity())
MODES: tuple[Any, ...] = ("relative", "absolute", "adaptive")


def under(action: edit.Edit, x: Tensor) -> Tensor:
    with action.on(IDENTITY):
        return IDENTITY(x)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@given(st.integers(0, 10_000), st.floats(-720, 720), st.sampled_from(MODES), st.integers(2, 40))
@settings(max_examples=60, deadline=None)
def test_rotations_keep_the_length_and_what_is_outside_the_plane(seed: int, angle: float, mode: Any, size: int) -> None:
    x, plane = normal(7, size, seed=seed), steer.plane(normal(2, size, seed=seed + 1))
    y = under(steer.rotate({SITE: plane}, angle, mode=mode), x)
    torch.testing.assert_close(y.norm(dim=1), x.norm(dim=1), rtol=1e-5, atol=1e-5)
    outside = torch.eye(size) - plane.T @ plane
    torch.testing.assert_close(y @ outside, x @ outside, atol=1e-4, rtol=0)
    coarse = under(steer.rotate({SITE: plane}, angle, mode=mode), x.bfloat16())
    assert coarse.dtype == torch.bfloat16
    torch.testing.assert_close(coarse.float().norm(dim=1), x.bfloat16().float().norm(dim=1), rtol=1e-2, atol=1e-3)


@given(st.floats(-360, 360), st.floats(-360, 360))
@settings(max_examples=30, deadline=None)
def test_relative_rotations_are_a_group(one: float, two: float) -> None:
    x, plane = normal(5, 6), normal(2, 6, seed=1)
    twice = steer.rotate({SITE: plane}, one).then(steer.rotate({SITE: plane}, two))
    torch.testing.assert_close(under(twice, x), under(steer.rotate({SITE: plane}, one + two), x), atol=1e-4, rtol=0)
    back = steer.rotate({SITE: plane}, one).then(steer.rotate({SITE: plane}, -one))
    torch.testing.assert_close(under(back, x), x, atol=1e-5, rtol=0)


def test_rotation_is_the_matrix_of_the_plane() -> None:
    x, angle = normal(4, 6), math.radians(40)
    b1, b2 = steer.plane(normal(2, 6, seed=1))
    inside = torch.outer(b1, b1) + torch.outer(b2, b2)
    turn = math.cos(angle) * inside + math.sin(angle) * (torch.outer(b2, b1) - torch.outer(b1, b2))
    by_matrix = x - x @ inside.T + x @ turn.T
    torch.testing.assert_close(under(steer.rotate({SITE: torch.stack([b1, b2])}, 40), x), by_matrix)


def test_absolute_and_adaptive_rotations_turn_to_an_angle() -> None:
    x, plane = normal(50, 6), steer.plane(normal(2, 6, seed=1))
    y = under(steer.rotate({SITE: plane}, 70, mode="absolute"), x)
    along = y @ plane.T
    torch.testing.assert_close(torch.atan2(along[:, 1], along[:, 0]).rad2deg(), torch.full((50,), 70.0))
    for threshold in (0.0, 0.8):
        some = under(steer.rotate({SITE: plane}, 70, mode="adaptive", threshold=threshold), x)
        pointing = (x @ plane[0] > threshold)[:, None]
        torch.testing.assert_close(some, torch.where(pointing, y, x))


def test_adding_counts_in_lengths_gaps_and_norms() -> None:
    x = normal(30, 5)
    record = Recording({SITE: x}, {SITE: Table(range(30))}, labels=torch.arange(30) % 2)
    found = probe.directions(record)
    moved = under(steer.add(found, 1.0, by="gap"), x[::2])
    torch.testing.assert_close(moved.mean(0), x[1::2].mean(0))
    torch.testing.assert_close(under(steer.add({SITE: 9 * found[SITE]}, 2.0), x), x + 2 * found[SITE])
    relative = under(steer.add(found, 0.3, by="norm"), x)
    torch.testing.assert_close(relative, x + 0.3 * x.norm(dim=1, keepdim=True) * found[SITE])


def test_what_is_taken_out_is_gone_and_scaling_units_is_edit_scale() -> None:
    x, pair = normal(9, 5), normal(2, 5, seed=1)
    once = under(steer.ablate({SITE: pair}), x)
    torch.testing.assert_close(once @ pair.T, torch.zeros(9, 2), atol=1e-5, rtol=0)
    torch.testing.assert_close(under(steer.ablate({SITE: pair}), once), once)
    torch.testing.assert_close(under(steer.scale({SITE: pair[0]}, 0.0), x), under(steer.ablate({SITE: pair[0]}), x))
    units = Neurons.of({SITE: 5}, {SITE: [1, 2]})
    assert torch.equal(under(steer.scale(units, 0.5), x), under(edit.scale(units, 0.5), x))


def test_a_direction_belongs_to_the_model_it_was_found_in(tiny: Callable[..., Any]) -> None:
    model, _ = tiny("gpt2")
    found = probe.contrast(model, Letters(), ["\x05\x06"], ["\x07"], sites.residual(model))
    other, inputs = tiny("llama")
    with pytest.raises(edit._edit.UnsupportedError, match="another model"), steer.add(found, 1.0).on(other):
        other(**inputs)


def test_random_directions_keep_lengths_and_angles_and_favour_none() -> None:
    other, generator = Site("1"), torch.Generator().manual_seed(0)
    basis = normal(2, 6)
    units = Neurons.of({SITE: 6, other: 6}, {SITE: [0, 1, 4, 5], other: [0, 1, 4, 5]})
    both = edit.scale(units, 0.0, basis={SITE: basis, other: basis})
    inside = basis * units.mask(SITE)
    draws = []
    for _ in range(400):
        (step,) = both.redirected(generator).steps
        assert step.basis is not None
        assert torch.equal(step.basis[SITE], step.basis[other])
        torch.testing.assert_close(step.basis[SITE] @ step.basis[SITE].T, inside @ inside.T)
        assert not bool(step.basis[SITE][:, [2, 3]].any())
        draws.append(step.basis[SITE][0])
    spread = torch.stack(draws)[:, [0, 1, 4, 5]] / inside[0].norm()
    torch.testing.assert_close(spread.mean(0), torch.zeros(4), atol=0.1, rtol=0)
    torch.testing.assert_close(spread.T @ spread / 400, torch.eye(4) / 4, atol=0.06, rtol=0)


def test_what_steering_refuses() -> None:
    flat = {SITE: torch.ones(3)}
    with pytest.raises(RangeError, match="zero"):
        steer.add({SITE: torch.zeros(3)}, 1.0)
    with pytest.raises(ShapeError, match="one direction"):
        steer.add({SITE: torch.eye(3)}, 1.0)
    with pytest.raises(DtypeError, match="gap"):
        steer.add(flat, 1.0, by="gap")
    with pytest.raises(UnknownNameError):
        steer.add(flat, 1.0, by="size")  # type: ignore[arg-type]
    with pytest.raises(RangeError, match="parallel"):
        steer.rotate({SITE: torch.ones(2, 3)}, 5)
    with pytest.raises(ShapeError, match="two vectors"):
        steer.rotate(flat, 5)
    with pytest.raises(RangeError, match="finite"):
        steer.rotate({SITE: torch.eye(3)[:2]}, math.nan)
    with pytest.raises(UnknownNameError):
        steer.rotate({SITE: torch.eye(3)[:2]}, 5, mode="sideways")  # type: ignore[arg-type]
    with pytest.raises(DtypeError, match="per site"):
        steer.ablate(torch.ones(3))  # type: ignore[arg-type]
    with pytest.raises(SiteError):
        steer.ablate({})


def every_operation(site: Site, size: int) -> dict[str, edit.Edit]:
    direction, pair = normal(size, seed=2), normal(2, size, seed=3)
    clustered = steer.ClusteredDirections(
        {site: nn.functional.normalize(normal(3, size, seed=4))}, {site: torch.tensor([1.0, 2.0, 3.0])},
        {site: normal(3, size, seed=5)}, {site: torch.zeros(3)}, {},
    )  # fmt: skip
    return {
        "add": steer.add({site: direction}, 2.0),
        "share": steer.add({site: direction}, 0.4, by="norm"),
        "ablate": steer.ablate({site: pair}),
        "relative": steer.rotate({site: pair}, 65),
        "absolute": steer.rotate({site: pair}, 65, mode="absolute"),
        "adaptive": steer.rotate({site: pair}, 65, mode="adaptive", threshold=0.1),
        "per token": steer.choose(clustered, 1.5, by="own", per="token"),
        "per sample": steer.choose(clustered, 0.5, by="norm", positions="generated"),
    }


@pytest.mark.parametrize("name", every_operation(SITE, 4))
def test_every_steering_is_a_file(name: str, tmp_path: Any, tiny: Callable[..., Any]) -> None:
    model, inputs = tiny("llama")
    action = every_operation(sites.residual(model)[0], 16)[name]
    again = edit.load(edit.save(action.for_model(model), tmp_path / "steering.safetensors"))
    assert repr(again) == repr(action)
    out = []
    for one in (action, again):
        with one.on(model), torch.no_grad():
            out.append(model.generate(**inputs, max_new_tokens=4, do_sample=False, output_logits=True,
                                      return_dict_in_generate=True).logits)  # fmt: skip
    assert all(torch.equal(a, b) for a, b in zip(*out, strict=True))


def padded() -> dict[str, Tensor]:
    ids = torch.tensor([[0, 0, 5, 6], [7, 8, 9, 10], [0, 11, 12, 13]])
    return {"input_ids": ids, "attention_mask": (ids != 0).long()}


GENERATION: dict[str, dict[str, Any]] = {
    "greedy": {"do_sample": False},
    "no cache": {"do_sample": False, "use_cache": False},
    "static cache": {"do_sample": False, "cache_implementation": "static"},
    "beams": {"do_sample": False, "num_beams": 3},
    "samples": {"do_sample": True, "num_return_sequences": 2, "top_k": 0},
}


@pytest.mark.parametrize("how", GENERATION)
@pytest.mark.parametrize("family", ["gpt2", "llama", "neox"])
def test_generating_under_steering_is_generating_with_hooks_by_hand(
    how: str, family: str, tiny: Callable[..., Any]
) -> None:
    model, _ = tiny(family)
    site, push = sites.residual(model)[0], 3 * nn.functional.normalize(normal(16), dim=0)
    by_hand = copy.deepcopy(model)
    by_hand.get_submodule(site.path).register_forward_hook(
        lambda module, args, out: (out[0] + push, *out[1:]) if isinstance(out, tuple) else out + push
    )
    options = {**GENERATION[how], "max_new_tokens": 5, "min_new_tokens": 5}
    torch.manual_seed(1)
    with steer.add(model, {site: push}, 3.0):
        out = model.generate(**padded(), **options)
    torch.manual_seed(1)
    assert torch.equal(out, by_hand.generate(**padded(), **options))
    torch.manual_seed(1)
    assert not torch.equal(out, model.generate(**padded(), **options))


class Keep:
    records = True

    def __init__(self, site: Site) -> None:
        self.site, self.seen = site, []

    def __call__(self, values: Tensor, visit: Any) -> None:
        self.seen.append(values.clone())


@pytest.mark.parametrize("how", GENERATION)
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_positions_are_those_of_the_prompt_the_rest_and_the_last(
    how: str, family: str, tiny: Callable[..., Any]
) -> None:
    model, _ = tiny(family)
    site = sites.residual(model)[0]
    mark = ~Neurons.of({site: 16})
    options = {**GENERATION[how], "max_new_tokens": 3, "min_new_tokens": 3}
    touched: dict[str, list[Tensor]] = {}
    for where in ("all", "prompt", "generated", "last"):
        keep = Keep(site)
        with edit.clamp(model, mark, 77.0, positions=where), attach(model, [keep]):  # type: ignore[arg-type]
            model.generate(**padded(), **options)
        touched[where] = [(values == 77).all(-1) for values in keep.seen]
    copies = len(touched["all"][0]) // 3
    real = padded()["attention_mask"].bool().repeat_interleave(copies, 0)
    for step, (every, prompt, generated, last) in enumerate(zip(*touched.values(), strict=True)):
        width = every.shape[1]
        assert bool(every.all())
        whole = step == 0 or options.get("use_cache") is False
        new = torch.zeros(len(real), width).bool() if step == 0 else torch.ones(len(real), width).bool()
        if whole and step:
            new[:, :4] = False
        seen = torch.cat([real, torch.ones(len(real), step).bool()], 1) if whole else new
        assert torch.equal(generated, new)
        assert torch.equal(prompt, seen & ~new)
        final = torch.zeros_like(new)
        final[:, -1] = True
        assert torch.equal(last, final)


def test_strength_within_a_budget_of_perplexity(tiny: Callable[..., Any]) -> None:
    model, _ = tiny("llama")
    texts = ["\x05\x06\x07\x08", "\x09\x0a\x0b"]
    wanted = model.lm_head.weight.detach()[[6, 7, 8, 10, 11]].sum(0)
    up = {sites.residual(model)[1]: -wanted}  # away from the words of the texts
    found = steer.strongest(lambda s: steer.add(up, s), model, Letters(), texts, high=500.0, ratio=1.1, tolerance=1e-3)
    assert found.plain == pytest.approx(probe.perplexity(model, Letters(), texts))
    with found.edit.on(model):
        assert probe.perplexity(model, Letters(), texts) == pytest.approx(found.perplexity)
    assert found.perplexity <= 1.1 * found.plain
    assert found.search.over is not None
    with steer.add(model, up, found.search.over):
        assert probe.perplexity(model, Letters(), texts) > 1.1 * found.plain
    with pytest.raises(RangeError, match="ratio"):
        steer.strongest(lambda s: steer.add(up, s), model, Letters(), texts, high=1.0, ratio=0.5)
