"""A site names the dimensions of a tensor; its view shows the tensor unit by unit, and goes back to the same tensor."""

from collections import OrderedDict
from dataclasses import dataclass
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from plexus.errors import FormatError, SiteError
from plexus.units import Site
from plexus.units._leaf import find, find_input


@pytest.mark.parametrize(
    ("axes", "part", "shape", "rows", "values"),
    [
        ("b u", None, (2, 3), ("b",), (2, 3)),
        ("b ... u", None, (2, 3), ("b",), (2, 3)),
        ("b ... u", None, (2, 5, 3), ("b", "t"), (2, 5, 3)),
        ("b ... u", None, (2, 5, 6, 3), ("b", "x0", "x1"), (2, 5, 6, 3)),
        ("t b ... u", None, (4, 2, 3), ("t", "b"), (4, 2, 3)),
        ("t b ... u", None, (4, 2, 5, 3), ("t", "b", "x0"), (4, 2, 5, 3)),
        ("b u y x", None, (2, 3, 4, 5), ("b", "y", "x"), (2, 4, 5, 3)),
        ("b u ...", None, (2, 3, 4), ("b", "t"), (2, 4, 3)),
        ("b t (u:4 f)", None, (2, 5, 12), ("b", "t"), (2, 5, 4, 3)),
        ("b t (f u:4)", None, (2, 5, 12), ("b", "t"), (2, 5, 4, 3)),
        ("b t u", (2, 5), (2, 5, 12), ("b", "t"), (2, 5, 3)),
        ("b t (u:2 f)", (4, 10), (2, 5, 12), ("b", "t"), (2, 5, 2, 3)),
        ("b t (u:2 part:3 f)", (1, 2), (2, 5, 12), ("b", "t"), (2, 5, 2, 2)),
        ("b t (u:2 part:3 f)", (1, 3), (2, 5, 12), ("b", "t"), (2, 5, 2, 4)),
        ("b t (part:2 u)", (1, 2), (2, 5, 12), ("b", "t"), (2, 5, 6)),
        ("(t:3 b) u", None, (6, 4), ("t", "b"), (3, 2, 4)),
        ("(t:3 b) u y x", None, (6, 4, 2, 2), ("t", "b", "y", "x"), (3, 2, 2, 2, 4)),
    ],
)
def test_view_names_rows_and_goes_back(
    axes: str, part: tuple[int, int] | None, shape: tuple[int, ...], rows: tuple[str, ...], values: tuple[int, ...]
) -> None:
    x = torch.randn(shape)
    view = Site("m", axes, part=part).view(x)
    assert view.rows == rows
    assert tuple(view.values.shape) == values
    assert torch.equal(view.back(view.values), x)
    # what the site leaves out stays, what it holds is replaced
    back = view.back(torch.full_like(view.values, 7.0))
    assert int((back == 7).sum()) == view.values.numel()
    assert torch.equal(back[back != 7], x[back != 7])
    assert Site("m", axes, part=part).units(x) == values[len(rows)]


def test_queries_of_a_projection_that_interleaves_them_per_head() -> None:
    heads, width = 3, 2
    fused = torch.randn(2, 4, heads * 3 * width)
    query, key, value = fused.view(2, 4, heads, 3 * width).chunk(3, dim=-1)  # as GPT-NeoX takes it apart
    for index, expected in enumerate((query, key, value)):
        site = Site("qkv", f"b t (u:{heads} part:3 f)", part=(index, index + 1))
        assert torch.equal(site.view(fused).values, expected)


def test_queries_of_a_projection_that_stacks_them() -> None:
    heads, width = 3, 2
    fused = torch.randn(2, 4, 3 * heads * width)
    _, key, _ = fused.split(heads * width, dim=-1)  # as GPT-2 takes it apart
    site = Site("c_attn", f"b t (u:{heads} f)", part=(heads * width, 2 * heads * width))
    assert torch.equal(site.view(fused).values, key.view(2, 4, heads, width))


def test_time_folded_into_the_batch_unfolds() -> None:
    x = torch.randn(5, 2, 3, 4, 4)
    site = Site("conv", "b u y x").unfolded(5)
    view = site.view(x.flatten(0, 1))
    assert view.rows == ("t", "b", "y", "x")
    assert torch.equal(view.values, x.movedim(2, -1))
    assert Site("lif", "t b u").unfolded(5) == Site("lif", "t b u")


@settings(deadline=None, max_examples=50)
@given(st.permutations(["b", "t", "u", "y"]), st.lists(st.integers(1, 3), min_size=4, max_size=4))
def test_any_order_of_axes_goes_back(names: list[str], shape: list[int]) -> None:
    x = torch.randn(shape)
    values, rows, back = Site("m", " ".join(names)).view(x)
    assert rows == tuple(name for name in names if name != "u")
    assert torch.equal(values, x.movedim(names.index("u"), -1))
    assert torch.equal(back(values), x)


def test_gradients_flow_through_view_and_back() -> None:
    x = torch.randn(2, 12, requires_grad=True)
    view = Site("m", "b (u:2 part:3 f)", part=(0, 1)).view(x)
    view.back(view.values * 2).sum().backward()
    expected = torch.ones(2, 2, 3, 2)
    expected[:, :, 0] = 2
    assert torch.equal(x.grad, expected.flatten(1))


@pytest.mark.parametrize(
    "axes", ["", "b t", "b u u", "b ... t ... u", "b (u f)", "b (t:2 u)", "b f u", "b [u]", "b ()", "b (u:0 f)", 3]
)
def test_axes_without_meaning_are_refused(axes: str) -> None:
    with pytest.raises(SiteError):
        Site("m", axes)


@pytest.mark.parametrize(
    "fields",
    [
        {"at": "weights"},
        {"where": "middle"},
        {"leaf": 1.5},
        {"leaf": True},
        {"call": -1},
        {"call": True},
        {"part": (3, 3)},
        {"part": (-1, 3)},
        {"part": (1,)},
        {"axes": "b (u:2 part:3 f)"},
    ],
)
def test_fields_without_meaning_are_refused(fields: dict[str, object]) -> None:
    with pytest.raises(SiteError):
        Site("m", **fields)


@pytest.mark.parametrize(
    ("site", "shape"),
    [
        (Site("m", "b u"), (2, 3, 4)),
        (Site("m", "b t ... u"), (2, 4)),
        (Site("m", "b (u:4 f)"), (2, 6)),
        (Site("m", "(t:4 b) u"), (6, 2)),
        (Site("m", part=(2, 9)), (2, 6)),
        (Site("m", "b (u:2 part:3 f)", part=(2, 4)), (2, 12)),
    ],
)
def test_a_tensor_of_another_shape_is_an_error_that_shows_both(site: Site, shape: tuple[int, ...]) -> None:
    with pytest.raises(SiteError, match="'m'"):
        site.view(torch.zeros(shape))


def test_sites_are_hashable_sortable_and_survive_json() -> None:
    sites = [Site("h.10.fc"), Site("h.2.fc"), Site("h.2.fc", at="input", part=(0, 2)), Site("h.2.fc", call=1)]
    assert [site.path for site in sorted(sites)] == ["h.2.fc", "h.2.fc", "h.2.fc", "h.10.fc"]
    assert {Site.from_json(site.to_json()) for site in sites} == set(sites)
    assert len({str(site) for site in sites}) == len(sites)
    for damaged in ({}, {"path": "a", "color": 1}, {"path": "a", "part": 3}, [1]):
        with pytest.raises(FormatError):
            Site.from_json(damaged)


class Pair(NamedTuple):
    first: Tensor
    second: Tensor


@dataclass
class Record:
    name: str
    value: Tensor


def _output_of_transformers() -> object:
    from transformers.modeling_outputs import BaseModelOutput

    return BaseModelOutput(last_hidden_state=torch.zeros(2), hidden_states=(torch.ones(2), torch.zeros(2)))


@pytest.mark.parametrize(
    ("value", "leaf"),
    [
        (torch.zeros(2), None),
        (torch.zeros(2), 0),
        ((torch.zeros(2), torch.ones(2)), 1),
        (("text", torch.zeros(2)), None),
        ([torch.zeros(2), None], 0),
        (Pair(torch.zeros(2), torch.ones(2)), 1),
        (Pair(torch.zeros(2), torch.ones(2)), "second"),
        ({"x": torch.zeros(2), "y": 3}, "x"),
        (OrderedDict(a=1, b=torch.zeros(2)), None),
        (Record("r", torch.zeros(2)), "value"),
        ((torch.zeros(2), (torch.ones(2), torch.zeros(2))), "1.0"),
        (torch.randn(3, 2).max(0), "values"),
        (_output_of_transformers(), "last_hidden_state"),
        (_output_of_transformers(), "hidden_states.1"),
    ],
)
def test_a_leaf_is_found_and_put_back_into_the_same_type(value: object, leaf: int | str | None) -> None:
    tensor, put = find(value, leaf, "m")
    assert isinstance(tensor, Tensor)
    new = put(torch.full((2,), 5.0))
    assert type(new) is type(value)
    assert torch.equal(find(new, leaf, "m")[0], torch.full((2,), 5.0))
    assert torch.equal(find(value, leaf, "m")[0], tensor)  # the original is left alone


@pytest.mark.parametrize(
    ("value", "leaf"), [((), None), ((torch.zeros(1),), 3), ({"a": torch.zeros(1)}, "b"), (3, None)]
)
def test_a_leaf_that_is_not_there_is_an_error(value: object, leaf: int | str | None) -> None:
    with pytest.raises(SiteError, match="no such tensor"):
        find(value, leaf, "m")


class Two(nn.Module):
    def forward(self, scale: float, x: Tensor, *, y: Tensor) -> Tensor:
        return scale * x + y


@pytest.mark.parametrize("leaf", ["x", 1, "y", None])
def test_an_argument_is_found_however_it_is_passed(leaf: int | str | None) -> None:
    x, y, new = torch.zeros(2), torch.ones(2), torch.full((2,), 9.0)
    for args, kwargs in (((2.0, x), {"y": y}), ((2.0,), {"x": x, "y": y}), ((), {"scale": 2.0, "x": x, "y": y})):
        tensor, put = find_input(Two(), args, kwargs, leaf, "m")
        assert tensor is (y if leaf == "y" else x)
        new_args, new_kwargs = put(new)
        changed = Two()(*new_args, **new_kwargs)
        assert torch.equal(changed, 2 * x + new if leaf == "y" else 2 * new + y)


def test_an_argument_that_was_not_passed_is_an_error() -> None:
    with pytest.raises(SiteError, match="without the argument 'z'"):
        find_input(Two(), (2.0, torch.zeros(1)), {}, "z", "m")
    with pytest.raises(SiteError, match="without a tensor"):
        find_input(Two(), (2.0,), {}, None, "m")
