"""Edits of singular directions: right by the algebra, gone to the bit, refused where they cannot be exact."""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from plexus.edit import svd
from plexus.errors import RangeError, ShapeError, UnknownNameError, UnsupportedError

LAYERS: dict[str, Callable[[], nn.Module]] = {
    "wide": lambda: nn.Linear(4, 9),
    "tall": lambda: nn.Linear(9, 4),
    "convolution": lambda: nn.Conv2d(3, 5, 3),
    "transposed convolution": lambda: nn.ConvTranspose1d(5, 4, 3),
    "embedding": lambda: nn.Embedding(7, 4),
}


def conv1d() -> nn.Module:
    from transformers.pytorch_utils import Conv1D

    return Conv1D(9, 4)


def flat(layer: nn.Module) -> Tensor:
    """The weights as a matrix, by another road than the code's."""
    weight = layer.weight.detach()
    if isinstance(layer, nn.Linear):
        return weight
    if isinstance(layer, nn.Conv2d):
        return weight.reshape(len(weight), -1)
    if isinstance(layer, nn.ConvTranspose1d):
        return weight.permute(1, 0, 2).reshape(weight.shape[1], -1)
    return weight.T


def states(rows: int = 40, size: int = 4, shift: float = 0.0, seed: int = 0) -> Tensor:
    return torch.randn(rows, size, generator=torch.Generator().manual_seed(seed)) + shift


@pytest.mark.parametrize("make", [*LAYERS.values(), conv1d], ids=[*LAYERS, "conv1d"])
def test_the_edited_matrix_is_the_algebra_and_the_old_bits_come_back(make: Callable[[], nn.Module]) -> None:
    layer = make()
    matrix, before = flat(layer).clone(), layer.weight.detach().clone()
    parameter = layer.weight
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    factors = torch.ones(len(s))
    factors[[0, 2]] = torch.tensor([0.0, 0.5])
    with svd.scale(layer, [0, 2], [0.0, 0.5], path="") as change:
        torch.testing.assert_close(flat(layer), (u * s * factors) @ vh, atol=1e-5, rtol=1e-5)
        assert change.relative_change == pytest.approx(float((flat(layer) - matrix).norm() / matrix.norm()), rel=1e-4)
        assert change.applied
    assert torch.equal(layer.weight, before)
    assert layer.weight is parameter
    assert not change.applied


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes_come_back_to_the_bit(dtype: torch.dtype) -> None:
    layer = nn.Linear(6, 8).to(dtype)
    before = layer.weight.detach().clone()
    with svd.scale(layer, [0], 0.0):
        assert layer.weight.dtype == dtype
        exact = torch.float64 if dtype == torch.float64 else torch.float32
        top = torch.linalg.svdvals(before.to(exact))
        left = torch.linalg.svdvals(layer.weight.to(exact))
        torch.testing.assert_close(left[:5], top[1:], atol=2e-2, rtol=2e-2)
    assert torch.equal(layer.weight, before)


def test_the_bits_come_back_after_an_error_and_by_hand() -> None:
    layer = nn.Linear(4, 5)
    before = layer.weight.detach().clone()
    edit = svd.scale(layer, [1], 3.0)
    assert torch.equal(layer.weight, before)  # nothing happens before apply
    with pytest.raises(RuntimeError, match="on purpose"), edit:
        raise RuntimeError("on purpose")
    assert torch.equal(layer.weight, before)
    edit.apply()
    with pytest.raises(UnsupportedError, match="acts already"):
        edit.apply()
    edit.revert()
    assert torch.equal(layer.weight, before)
    with pytest.raises(UnsupportedError, match="nothing to take back"):
        edit.revert()


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2), (1, 2, 0)])
@pytest.mark.parametrize("tied", [False, True])
def test_edits_of_one_layer_end_in_any_order(order: tuple[int, ...], tied: bool) -> None:
    model = nn.ModuleDict({"embed": nn.Embedding(6, 4), "head": nn.Linear(4, 6, bias=False)})
    if tied:
        model["head"].weight = model["embed"].weight
    parameter, before = model["head"].weight, model["head"].weight.detach().clone()
    edits = [svd.scale(model, [i], 0.2 * i, path="head", untie=True) for i in range(3)]
    for edit in edits:
        edit.apply()
    for i in order[:2]:
        edits[i].revert()
    last = order[2]
    with svd.scale(copy.deepcopy(model), [0], 1.0, path="head"):
        pass  # a copy has weights of its own and is not in the way
    matrix = model["head"].weight.detach().clone()
    edits[last].revert()
    assert torch.equal(model["head"].weight, before)
    assert model["head"].weight is parameter
    with edits[last]:
        assert torch.equal(model["head"].weight, matrix)
    if tied:
        assert model["head"].weight is model["embed"].weight


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**31), st.lists(st.booleans(), min_size=4, max_size=4))
def test_scores_do_not_hang_on_the_signs_of_the_decomposition(seed: int, flips: list[bool]) -> None:
    layer = nn.Linear(4, 9)
    nn.init.normal_(layer.weight, generator=torch.Generator().manual_seed(seed))
    found = svd.directions(layer, "")
    signs = torch.where(torch.tensor(flips), -1.0, 1.0)
    other = replace(found, u=found.u * signs, vh=found.vh * signs[:, None])
    there, here = states(seed=seed % 1000, shift=0.3), states(seed=seed % 999)
    for by in ("margin", "push", "abs"):
        one = svd.direction_scores(found, there, here, by=by, outputs=[1, 5])
        assert torch.equal(one, svd.direction_scores(other, there, here, by=by, outputs=[1, 5]))
    signed = svd.direction_scores(found, there, here, by="signed")
    assert torch.equal(svd.direction_scores(other, there, here, by="signed"), signed * signs)


def test_margins_add_up_to_the_difference_of_mean_logits() -> None:
    layer = nn.Linear(4, 9, bias=False).double()
    there, here = states(50, shift=0.5).double(), states(70, seed=3).double()
    concept = torch.tensor([2, 7])
    others = torch.tensor([0, 1, 3, 4, 5, 6, 8])
    logits = layer(there).mean(0) - layer(here).mean(0)
    scores = svd.direction_scores(svd.directions(layer, ""), there, here, outputs=concept)
    torch.testing.assert_close(scores.sum(), logits[concept].mean() - logits[others].mean())


def test_pushes_add_up_to_the_mean_logits_and_are_what_taking_a_direction_out_loses() -> None:
    layer = nn.Linear(4, 9, bias=False).double()
    there, here = states(50, shift=0.5).double(), states(70, seed=3).double()
    found = svd.directions(layer, "")
    scores = svd.direction_scores(found, there, here, by="push", outputs=[2, 7])

    def margin() -> Tensor:
        logits = layer(there).mean(0)
        return logits[[2, 7]].mean() - logits[[0, 1, 3, 4, 5, 6, 8]].mean()

    torch.testing.assert_close(scores.sum(), margin())
    for direction in range(4):
        before = margin()
        with svd.scale(layer, [direction], 0.25, found=found):
            torch.testing.assert_close(before - margin(), 0.75 * scores[direction])


def test_abs_is_the_two_sample_effect_size() -> None:
    from scipy import stats

    layer = nn.Linear(4, 4, bias=False)
    nn.init.eye_(layer.weight)
    found = replace(svd.directions(layer, ""), u=torch.eye(4), s=torch.ones(4), vh=torch.eye(4))
    there, here = states(50, shift=0.5), states(70, seed=3)
    scores = svd.direction_scores(found, there, here, by="abs")
    t = stats.ttest_ind(there.double(), here.double()).statistic
    torch.testing.assert_close(scores, torch.as_tensor(t).abs() * (1 / 50 + 1 / 70) ** 0.5)


def test_eigenshift_takes_out_the_planted_direction_and_names_its_outputs() -> None:
    generator = torch.Generator().manual_seed(0)
    left, _ = torch.linalg.qr(torch.randn(20, 6, generator=generator))
    right, _ = torch.linalg.qr(torch.randn(6, 6, generator=generator))
    left[:, 4] = 0.0
    left[[3, 11], 4] = torch.tensor([0.8, 0.6])  # what the concept writes
    left, _ = torch.linalg.qr(left.flip(1))
    left = left.flip(1)  # orthonormal again, the planted one kept up to its sign
    strengths = torch.tensor([9.0, 7.0, 6.0, 5.0, 2.0, 1.0])
    head = nn.Linear(6, 20, bias=False)
    with torch.no_grad():
        head.weight.copy_(left * strengths @ right.T)
    push = right[:, 4] * torch.sign(left[3, 4]) * 4  # towards outputs 3 and 11
    here = torch.randn(60, 6, generator=generator)
    for by in ("margin", "abs"):
        change = svd.eigenshift(head, here + push, here, 1, by=by, outputs=[3, 11])
        assert change.chosen.tolist() == [4]
        before = head(push)
        with change:
            torch.testing.assert_close(head(push), torch.zeros(20), atol=1e-4, rtol=0)
            assert not torch.allclose(before, torch.zeros(20), atol=1.0)
        top = change.top_outputs(2)[0]
        assert {place for place, _ in top} == {3, 11}
        assert all(value > 0 for _, value in top)


@pytest.mark.parametrize("family", ["llama", "gpt2", "neox", "phi3"])
def test_heads_of_language_models(family: str, tiny: Callable[..., Any]) -> None:
    model, inputs = tiny(family)
    tied = family == "gpt2"
    if tied:
        with pytest.raises(UnsupportedError, match="tied") as caught:
            svd.eigenshift(model, states(40, 16, 1.0), states(40, 16), 2, outputs=[5])
        assert "untie" in str(caught.value)
    with torch.no_grad():
        before = model(**inputs).logits
        embedded = model.get_input_embeddings().weight.clone()
        with svd.eigenshift(model, states(40, 16, 1.0), states(40, 16), 2, outputs=[5], untie=tied):
            assert not torch.allclose(model(**inputs).logits, before)
            assert torch.equal(model.get_input_embeddings().weight, embedded)
        assert torch.equal(model(**inputs).logits, before)
    same = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert same == tied
    assert model.config.tie_word_embeddings == tied


def test_untied_and_edited_it_is_saved_and_loaded(tmp_path: Any, tiny: Callable[..., Any]) -> None:
    from transformers import GPT2LMHeadModel

    model, inputs = tiny("gpt2")
    before = model(**inputs).logits
    assert svd.untie(model) == "lm_head"
    assert torch.equal(model(**inputs).logits, before)
    svd.scale(model, [0, 1], 0.0).apply()
    after = model(**inputs).logits
    assert not torch.allclose(after, before)
    model.save_pretrained(tmp_path)
    torch.testing.assert_close(GPT2LMHeadModel.from_pretrained(tmp_path).eval()(**inputs).logits, after)


def test_a_classifier_is_edited_at_its_last_linear_layer() -> None:
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.Flatten(), nn.Linear(12, 5), nn.Identity())
    assert svd.directions(net).path == "2"


def test_what_cannot_be_exact_is_refused() -> None:
    linear = nn.Linear(4, 5)
    whole = nn.Linear(4, 5)
    whole.weight = nn.Parameter(torch.zeros(5, 4, dtype=torch.int8), requires_grad=False)
    with pytest.raises(UnsupportedError, match="int8"):
        svd.directions(whole, "")
    with pytest.raises(UnsupportedError, match=r"has no matrix|no weight"):
        svd.directions(nn.Sequential(nn.ReLU()), "0")
    with pytest.raises(UnsupportedError, match="no linear layer"):
        svd.directions(nn.ReLU())
    with pytest.raises(UnsupportedError, match="groups"):
        svd.directions(nn.Conv1d(4, 4, 3, groups=2), "")
    with pytest.raises(UnsupportedError, match="computed"):
        svd.directions(nn.utils.parametrizations.weight_norm(nn.Linear(4, 5)), "")
    with pytest.raises(UnsupportedError, match="offloaded"):
        svd.directions(nn.Linear(4, 5, device="meta"), "")
    found = svd.directions(linear, "")
    with torch.no_grad():
        linear.weight.mul_(2)
    with pytest.raises(UnsupportedError, match="as it is now"):
        svd.scale(linear, [0], 0.0, found=found)
    linear.weight.data[0, 0] = torch.nan
    with pytest.raises(RangeError, match="NaN"):
        svd.directions(linear, "")


def test_bad_requests_are_refused() -> None:
    layer = nn.Linear(4, 5)
    good = states(), states(seed=1)
    for k in (0, 4, 5, True, 1.5):
        with pytest.raises(RangeError):
            svd.eigenshift(layer, *good, k, by="abs")
    with pytest.raises(RangeError, match="too few"):
        svd.eigenshift(layer, states(29), states(), 1, by="abs")
    with pytest.raises(RangeError, match="too few"):
        svd.eigenshift(layer, states(), states(29), 1, by="abs")
    with pytest.raises(RangeError, match="outputs of the concept"):
        svd.eigenshift(layer, *good, 1)
    with pytest.raises(RangeError, match="not the layer's"):
        svd.eigenshift(layer, *good, 1, outputs=[5])
    with pytest.raises(RangeError, match="all of the layer's"):
        svd.eigenshift(layer, *good, 1, outputs=range(5))
    with pytest.raises(RangeError, match="NaN"):
        svd.eigenshift(layer, states() * torch.nan, states(), 1, by="abs")
    with pytest.raises(ShapeError, match="what the layer reads"):
        svd.eigenshift(layer, states(size=3), states(size=3), 1, by="abs")
    with pytest.raises(UnknownNameError):
        svd.eigenshift(layer, *good, 1, by="margins")  # type: ignore[arg-type]
    for chosen in ([], [4], [-1], [1, 1]):
        with pytest.raises(RangeError):
            svd.scale(layer, chosen, 0.0)
    with pytest.raises(ShapeError, match="factors"):
        svd.scale(layer, [0, 1], [0.0, 0.0, 0.0])
    with pytest.raises(RangeError, match="not finite"):
        svd.scale(layer, [0], torch.inf)
