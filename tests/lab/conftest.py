"""Stores of the tests know which modules the synthetic study loads, so that not every test asks a fresh process."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from plexus.lab._catalogue import find
from plexus.lab._crew import Crew
from plexus.lab._store import Store

FILE = Path(__file__).with_name("synthetic_study.py")


@pytest.fixture(scope="session")
def _known_code(tmp_path_factory):
    store = tmp_path_factory.mktemp("known") / "store"
    (entry,) = find(str(FILE))
    Store(store).code(entry.slug, entry.source)
    return store / "code"


@pytest.fixture(scope="module")
def shared(tmp_path_factory, _known_code):
    """A store and a crew for all tests of a module: a worker starts once, and the tests differ by their settings."""
    folder = tmp_path_factory.mktemp("shared") / "store"
    shutil.copytree(_known_code, folder / "code")
    with Crew() as crew:
        yield folder, crew


@pytest.fixture
def store_folder(tmp_path, _known_code):
    """The folder of a store without trials, which knows the modules of the synthetic study."""
    shutil.copytree(_known_code, tmp_path / "store" / "code")
    return tmp_path / "store"
