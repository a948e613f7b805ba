"""Errors carry what was given, what was expected and how to mend it, also across processes."""

import pickle
import sys

import pytest

from plexus import errors


def test_the_message_names_all_three() -> None:
    text = str(errors.ShapeError("wrong", given=(3, 4), expected="[time, batch, unit]", mend="transpose"))
    assert text.splitlines() == ["wrong", "  given: (3, 4)", "  expected: [time, batch, unit]", "  to mend: transpose"]


def test_near_names_are_suggested() -> None:
    error = errors.UnknownNameError.among("site", "layers.0.mpl", ["layers.0.mlp", "layers.1.mlp", "head"])
    assert error.near[0] == "layers.0.mlp"
    assert "did you mean 'layers.0.mlp'" in str(error)


def test_known_names_are_listed_when_none_is_near() -> None:
    assert "known: a, b" in str(errors.UnknownNameError.among("arm", "zzzzzz", ["b", "a"]))


def test_an_error_survives_a_worker_process() -> None:
    error = pickle.loads(pickle.dumps(errors.RangeError("bad", given=1, expected=2, mend="mend")))
    assert isinstance(error, errors.RangeError)
    assert (error.what, error.given, error.expected, error.mend) == ("bad", 1, 2, "mend")


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "plotly", None)
    with pytest.raises(errors.MissingExtraError, match=r"plexus-nn\[lab\]"):
        errors.require("plotly", "lab", purpose="figures")


def test_a_broken_dependency_is_not_reported_as_missing(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "halfway.py").write_text("import a_module_that_is_not_there")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ModuleNotFoundError, match="a_module_that_is_not_there") as caught:
        errors.require("halfway", "lab")
    assert not isinstance(caught.value, errors.MissingExtraError)
