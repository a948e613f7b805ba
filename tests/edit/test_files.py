"""An edit comes back from its file as it was; a file that is not one is refused."""

import pickle
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from plexus import edit
from plexus.edit import Edit
from plexus.errors import FormatError, PlexusError, UnknownNameError, UnsupportedError
from plexus.units import Neurons, Recording, Site, Table, fingerprint

HIDDEN = Site("1")


def model() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2))


def units(*indices: int) -> Neurons:
    return Neurons.of({HIDDEN: 5, Site("2"): 2}, {HIDDEN: indices}, fingerprint(model()))


def edits() -> dict[str, Edit]:
    record = Recording({HIDDEN: torch.randn(3, 5)}, {HIDDEN: Table([0, 1, 2])})
    return {
        "scale": edit.scale(units(1, 2), 0.25),
        "per unit": edit.scale(units(1, 2), torch.randn(5)),
        "per chosen": edit.replace(units(1, 2), torch.randn(2).double()),
        "limits": edit.clamp(units(0), low=-0.1, high=float("inf")),
        "directions": edit.add(units(0, 1, 2), 1.0, basis=torch.randn(2, 5)),
        "tokens": edit.scale(units(1), 0.0, positions="all").then(edit.clamp(units(3), 1.0)),
        "patch": edit.patch(units(1, 4), record, rows={0: 2, 1: 0}),
    }


@pytest.mark.parametrize("name", edits())
def test_round_trip(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    value, net, x = edits()[name], model(), torch.randn(2, 3)
    back = edit.load(edit.save(value, tmp_path / "edit.safetensors"))
    assert repr(back) == repr(value)
    assert back.neurons == value.neurons
    assert back.model == value.model == fingerprint(net)
    with value.on(net):
        expected = net(x)
    with back.on(net):
        assert torch.equal(net(x), expected)
    with pytest.raises(UnsupportedError, match="another model"), back.on(nn.Sequential(nn.Linear(3, 5), nn.Tanh())):
        pass


def test_numbers_given_per_chosen_unit_move_after_loading(tmp_path: Path) -> None:
    value = edit.load(edit.save(edit.replace(units(1, 2), torch.tensor([5.0, 6.0])), tmp_path / "e.safetensors"))
    net, x = nn.Sequential(nn.Identity(), nn.Identity(), nn.Identity()), torch.zeros(1, 5)
    with value.moved(units(0, 4)).on(net, anyway=True):
        assert net(x).tolist() == [[5.0, 0.0, 0.0, 0.0, 6.0]]


def test_files_that_are_none_are_refused(tmp_path: Path) -> None:
    good = edit.save(edits()["per unit"], tmp_path / "good.safetensors")
    data = good.read_bytes()
    damaged = {
        "truncated": data[: len(data) - 7],
        "cut in the header": data[:40],
        "empty": b"",
        "pickle": pickle.dumps({"a": 1}),
        "another version": data.replace(b'\\"version\\": 1', b'\\"version\\": 7', 1),
        "another operation": data.replace(b"scale", b"twist", 1),
    }
    for name, content in damaged.items():
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(FormatError):
            edit.load(path)
    save_file({"x": torch.zeros(2)}, tmp_path / "foreign.safetensors")
    with pytest.raises(FormatError, match="not ours"):
        edit.load(tmp_path / "foreign.safetensors")
    units(1).save(tmp_path / "units.json")
    with pytest.raises(FormatError):
        edit.load(tmp_path / "units.json")
    with pytest.raises(UnknownNameError):
        edit.load(tmp_path / "nothing.safetensors")


@pytest.mark.parametrize("change", ["short", "NaN", "another rank", "whole numbers", "missing"])
def test_numbers_that_do_not_fit_are_refused(change: str, tmp_path: Path) -> None:
    for name, value in edits().items():
        with safe_open(edit.save(value, tmp_path / "good"), "pt") as file:
            metadata, tensors = file.metadata(), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        for key, tensor in tensors.items():
            damaged = {
                "short": lambda t: t[:-1] if t.dim() else torch.zeros(7),
                "NaN": lambda t: torch.full_like(t, torch.nan) if t.is_floating_point() else t.double(),
                "another rank": lambda t: t[None, None, None],
                "whole numbers": lambda t: t.long() if t.is_floating_point() else t.float(),
                "missing": lambda t: None,
            }[change](tensor)
            if key.endswith(("source.values/0", "basis/0")) and change in ("NaN", "whole numbers", "short"):
                continue  # recorded values may be of any kind, and fewer directions are an edit too
            others = {k: t for k, t in tensors.items() if k != key}
            save_file(others if damaged is None else {**others, key: damaged.clone()}, tmp_path / "bad", metadata)
            with pytest.raises(FormatError):
                edit.load(tmp_path / "bad")
            assert len(edit.load(tmp_path / "good").steps) == len(value.steps), name


def test_a_place_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    with pytest.raises(PlexusError):
        edit.save(edits()["scale"], blocked / "edit.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
