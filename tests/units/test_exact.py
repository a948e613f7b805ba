"""Which weights an edit may write into, and what is said of the others."""

import pytest
import torch
from torch import nn

from plexus import edit
from plexus.errors import DtypeError, UnsupportedError
from plexus.units import Neurons, Site, exact_weights


class Experts(nn.Module):
    """All experts of a mixture in one tensor."""

    def __init__(self):
        super().__init__()
        self.down_proj = nn.Parameter(torch.randn(4, 6, 8))


def eight_bit():
    bnb = pytest.importorskip("bitsandbytes")
    layer = bnb.nn.Linear8bitLt(64, 64, has_fp16_weights=False)
    layer.load_state_dict(nn.Linear(64, 64).state_dict())
    return layer.to("cpu")


def four_bit():
    bnb = pytest.importorskip("bitsandbytes")
    layer = bnb.nn.Linear4bit(64, 64)
    layer.load_state_dict(nn.Linear(64, 64).state_dict())
    return layer.to("cpu")


def adapted():
    peft = pytest.importorskip("peft")
    net = nn.Sequential(nn.Linear(64, 64))
    return peft.get_peft_model(net, peft.LoraConfig(target_modules=["0"], r=2)).base_model.model[0]


def test_plain_weights_are_given_back():
    for layer, name in (
        (nn.Linear(3, 2), "weight"),
        (nn.Linear(3, 2), "bias"),
        (nn.Conv1d(2, 3, 4), "weight"),  # three dimensions, and no mixture of experts
        (nn.LSTM(2, 3), "weight_hh_l0"),
        (nn.Linear(3, 2).bfloat16(), "weight"),
    ):
        assert exact_weights(layer, name, model=nn.Sequential(layer)) is getattr(layer, name)


@pytest.mark.parametrize(
    ("make", "name", "reason"),
    [
        (eight_bit, "weight", r"quantised \(Int8Params, int8\)"),
        (four_bit, "weight", r"quantised \(Params4bit, uint8\)"),
        (adapted, "weight", "merge that first"),
        (Experts, "down_proj", "all experts in one tensor"),
        (lambda: nn.Linear(3, 2, device="meta"), "weight", "offloaded"),
        (lambda: nn.LazyLinear(2), "weight", "no shape yet"),
        (lambda: nn.utils.parametrizations.weight_norm(nn.Linear(3, 2)), "weight", "computed from other parameters"),
        (nn.ReLU, "weight", "has no weight"),
        (lambda: nn.Linear(3, 2, bias=False), "bias", "has no bias"),
    ],
)
def test_others_are_refused_with_the_reason(make, name, reason):
    with pytest.raises(UnsupportedError, match=reason):
        exact_weights(make(), name)


def test_integers_and_narrow_floats_are_refused():
    layer = nn.Linear(3, 2)
    layer.weight = nn.Parameter(torch.zeros(2, 3, dtype=torch.int8), requires_grad=False)
    with pytest.raises(UnsupportedError, match="stored as int8"):
        exact_weights(layer)
    layer.weight = nn.Parameter(torch.zeros(2, 3).to(torch.float8_e4m3fn), requires_grad=False)
    with pytest.raises(UnsupportedError, match="stored as float8_e4m3fn"):
        exact_weights(layer)


def test_tied_weights_are_refused_where_the_model_is_known():
    first, second = nn.Linear(3, 3), nn.Linear(3, 3)
    second.weight = first.weight
    assert exact_weights(first) is first.weight
    with pytest.raises(UnsupportedError, match=r"several places \(0\.weight, 1\.weight\)"):
        exact_weights(first, model=nn.Sequential(first, second))


def test_the_purpose_is_named_and_only_modules_are_taken():
    with pytest.raises(UnsupportedError, match="pruning is not exact on this ReLU"):
        exact_weights(nn.ReLU(), purpose="pruning")
    with pytest.raises(DtypeError):
        exact_weights(torch.zeros(2))  # type: ignore[arg-type]


@pytest.mark.parametrize("make", [eight_bit, four_bit, adapted])
@pytest.mark.parametrize("side", ["input", "output"])
def test_baking_refuses_them_and_changes_nothing(make, side):
    net = nn.Sequential(make())
    before = {name: value.clone() for name, value in net.state_dict().items() if isinstance(value, torch.Tensor)}
    site = Site("0", at=side)
    with pytest.raises(UnsupportedError, match=r"quantised|merge that first"):
        edit.bake(net, edit.scale(Neurons.of({site: 64}, {site: [1]}), 0.0))
    after = net.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
