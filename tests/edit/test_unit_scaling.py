"""Units scaled by their scores: the published factors, on the units they name."""

import pytest
import torch
from torch import nn

from plexus import edit
from plexus.errors import DtypeError, RangeError, ShapeError, UnknownNameError
from plexus.units import Scores, Site

ONE, TWO = Site("0"), Site("1")
AUROC = Scores({ONE: torch.tensor([0.3, 0.5, 0.6, 1.0]), TWO: torch.tensor([torch.nan, 0.9, 0.45, 0.5])})


def gains(action: edit.Edit) -> list[list[float]]:
    """What each unit of both sites is multiplied by."""
    net = nn.Sequential(nn.Identity(), nn.Identity())
    with action.on(net):
        first = net[0](torch.ones(1, 4))
        second = net[1](torch.ones(1, 4))
    return [[round(value, 6) for value in row.tolist()] for row in (first[0], second[0])]


def test_the_published_factors() -> None:
    assert gains(edit.unit_scaling(AUROC, "aura")) == [[1, 1, 0.8, 0], [1, 0.2, 1, 1]]
    assert gains(edit.unit_scaling(AUROC, "zero")) == [[1, 1, 0, 0], [1, 0, 1, 1]]
    assert gains(edit.unit_scaling(AUROC, "damp", factor=0.25)) == [[1, 1, 0.25, 0.25], [1, 0.25, 1, 1]]
    assert gains(edit.unit_scaling(AUROC, "zero", above=0.7)) == [[1, 1, 1, 0], [1, 0, 1, 1]]
    assert gains(edit.unit_scaling(AUROC, "aura", top=1)) == [[1, 1, 1, 0], [1, 1, 1, 1]]


def test_model_first_is_a_context() -> None:
    net = nn.Sequential(nn.Identity(), nn.Identity())
    with edit.unit_scaling(net, AUROC, "zero"):
        assert net(torch.ones(1, 4)).tolist() == [[1, 0, 0, 0]]
    assert net(torch.ones(1, 4)).tolist() == [[1, 1, 1, 1]]


def test_bad_input() -> None:
    with pytest.raises(RangeError, match="no unit"):
        edit.unit_scaling(AUROC, "zero", above=1.0)
    with pytest.raises(RangeError, match="ROC"):
        edit.unit_scaling(Scores({ONE: torch.tensor([1.5, 0.2])}), "aura")
    with pytest.raises(UnknownNameError):
        edit.unit_scaling(AUROC, "det0")  # type: ignore[arg-type]
    with pytest.raises(ShapeError, match="concept"):
        edit.unit_scaling(Scores({ONE: torch.ones(2, 3)}, ("a", "b")), "zero")
    with pytest.raises(DtypeError):
        edit.unit_scaling({ONE: torch.ones(2)}, "zero")  # type: ignore[arg-type]
