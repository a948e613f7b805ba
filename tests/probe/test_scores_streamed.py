"""Scores read a stream piece by piece, whatever its length; sizes are said before something large starts."""

import weakref

import pytest
import torch
from torch import nn

from plexus import probe
from plexus.errors import DtypeError, UnknownNameError
from plexus.probe import scores
from plexus.probe.scores import _information, _source
from plexus.units import Recording, Site, Table, _recording

A, B = Site("a", "b u"), Site("b", "b u")
ROWS, UNITS, PIECES = 40, 16, 12


class Watched:
    """A stream of recordings that knows how many of the earlier ones are still alive."""

    def __init__(self):
        self.alive, self.most = [], 0

    def __iter__(self):
        generator = torch.Generator().manual_seed(0)
        for _ in range(PIECES):
            self.most = max(self.most, sum(one() is not None for one in self.alive))
            values = {site: torch.randn(ROWS, UNITS, generator=generator) for site in (A, B)}
            self.alive += [weakref.ref(value) for value in values.values()]
            record = Recording(values, {site: Table(range(ROWS)) for site in values})
            del values
            yield record
            del record


LABELS = torch.arange(ROWS * PIECES) % 3
NAMES = ("x", "y", "z")
STREAMED = {
    "mean": lambda stream: scores.mean(stream, LABELS, names=NAMES),
    "variance": lambda stream: scores.variance(stream),
    "d'": lambda stream: scores.dprime(stream, LABELS, names=NAMES),
    "dead": lambda stream: scores.dead(stream),
    "saturated": lambda stream: scores.saturated(stream),
    "information": lambda stream: scores.mutual_information(stream, LABELS, names=NAMES),
    "counts": lambda stream: scores.count_activations(stream, LABELS, names=NAMES).probability,
    "massive": lambda stream: scores.massive_activations(stream, magnitude=2.5, ratio=2.0).shares,
    "gradient × activation": lambda stream: scores.gradient_times_activation(stream, iter(Watched())),
    "taylor": lambda stream: scores.taylor(stream, iter(Watched()), order="squared"),
    "average precision": lambda stream: scores.average_precision(stream, LABELS, names=NAMES, budget=3 * ROWS * 8),
    "auroc": lambda stream: scores.auroc(stream, LABELS, names=NAMES, budget=3 * ROWS * 8),
}


def whole():
    parts = list(Watched())
    values = {site: torch.cat([part[site] for part in parts]) for site in (A, B)}
    return Recording(values, {site: Table(range(ROWS * PIECES)) for site in values})


@pytest.mark.parametrize("name", STREAMED)
def test_no_more_than_one_batch_is_held_and_the_numbers_are_those_of_the_whole(name):
    stream = Watched()
    found = STREAMED[name](stream)
    assert stream.most <= 2  # the two sites of the batch that was just read
    if name not in ("gradient × activation", "taylor"):
        expected = STREAMED[name](whole())
        for site in (A, B):
            torch.testing.assert_close(found[site], expected[site])


@pytest.mark.parametrize("score", [scores.auroc, scores.average_precision])
@pytest.mark.parametrize("budget", [1, 500, 8 * ROWS * PIECES * 5, None])
def test_ranking_beyond_the_budget_goes_through_shards_and_blocks(score, budget, tmp_path, capsys):
    options = {} if budget is None else {"budget": budget}
    expected = score(whole(), LABELS, names=NAMES)
    for source in (Watched(), whole(), spilled(tmp_path / "rows")):
        found = score(source, LABELS, names=NAMES, **options)
        assert found.concepts == NAMES
        for site in (A, B):
            assert torch.equal(found[site], expected[site])
    said = capsys.readouterr().err
    assert ("more than its budget" in said) == (budget is not None)


def spilled(folder):
    model = nn.ModuleDict({"a": nn.Identity(), "b": nn.Identity()})
    parts = list(Watched())
    batches = [{"x": part[A], "y": part[B]} for part in parts]
    record = probe.record(
        model, batches, [A, B], forward=lambda m, batch: (m["a"](batch["x"]), m["b"](batch["y"])), spill=folder
    )
    assert record.folder is not None
    return record


def test_a_spilled_recording_is_read_block_by_block(tmp_path, monkeypatch):
    record = spilled(tmp_path / "rows")
    widths = []
    inside = _source._in_blocks

    def watched(*args):
        for piece in inside(*args):
            widths.append(piece.values.shape[1])
            yield piece

    monkeypatch.setattr(_source, "_in_blocks", watched)
    scores.auroc(record, LABELS, names=NAMES, budget=5 * 8 * ROWS * PIECES)
    assert widths == [5, 5, 5, 1, 5, 5, 5, 1]


def test_an_estimate_is_what_a_recording_then_is(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(9, 32), nn.Linear(32, 8))
    batches = [torch.randint(0, 9, (4, 6)) for _ in range(10)]
    at = [Site("0", "b t u"), Site("1", "b t u")]
    found = probe.estimate(model, batches, at, budget=4000)
    record = probe.record(model, batches, at)
    size = sum(record[site].nbytes + 32 * len(record.table[site]) for site in at)
    assert (found.rows, found.units, found.bytes, found.batches) == (2 * 240, 40, size, 10)
    assert found.disk == size
    assert found.batch_bytes == size // 10
    assert found.memory <= 4000 + found.batch_bytes
    assert "on disk" in str(found)
    roomy = probe.estimate(model, batches, at)
    assert (roomy.disk, roomy.memory) == (0, size)
    assert "in memory" in str(roomy)
    pooled = probe.estimate(model, batches, at, pool="mean")
    assert pooled.rows == 2 * 40
    kept = probe.record(model, batches, at, budget=4000, progress=False)
    assert kept.folder is not None
    one = probe.estimate(model, batches[0], at[0])
    assert one.batches == 1
    with pytest.raises(DtypeError, match="uses up"):
        probe.estimate(model, iter(batches), at)

    class Endless:
        def __iter__(self):
            return iter(batches)

    unknown = probe.estimate(model, Endless(), at)
    assert unknown.batches is None
    assert "not known" in str(unknown)


def test_estimates_of_scores_are_their_sizes(monkeypatch, capsys):
    estimate = probe.Estimate(None, 480, 32, 76800, 6400, 76800, 0)
    counts = []
    real = _information.bytes_needed
    monkeypatch.setattr(_information, "bytes_needed", lambda *args: counts.append(real(*args)) or 2**31)
    scores.mutual_information(whole(), LABELS, names=NAMES)
    assert sum(counts) == estimate.score("histogram", concepts=3)
    assert "about 2 GiB in memory" in capsys.readouterr().err
    assert estimate.score("ranking") == 76800
    with pytest.raises(UnknownNameError):
        estimate.score("median")


def test_a_recording_over_its_budget_says_so_when_it_starts(capsys):
    model, site = nn.Sequential(nn.Linear(4, 8)), Site("0", "b u")
    batches = [torch.randn(10, 4) for _ in range(8)]
    size = 8 * 10 * (8 * 4 + 32)
    for options, says in (({"budget": 2000}, True), ({}, False), ({"budget": 2000, "progress": False}, False)):
        record = probe.record(model, batches, site, **options)
        said = capsys.readouterr().err
        assert (f"needs about {_recording._bytes(size)} on disk" in said) == says
        assert (record.folder is not None) == ("budget" in options)


@pytest.mark.parametrize("source", ["recording", "stream"])
def test_quantiles_do_not_depend_on_the_budget(source):
    values = torch.randn(50, 6, generator=torch.Generator().manual_seed(0))
    site, labels = Site("a", "b u"), torch.arange(50) % 2

    def given():
        if source == "recording":
            return Recording({site: values}, {site: Table(range(50))})
        return iter([Recording({site: part}, {site: Table(range(len(part)))}) for part in values.split(20)])

    for which in (None, labels):
        roomy = scores.quantile(given(), 0.3, which, names=None if which is None else ("x", "y"))
        tight = scores.quantile(given(), 0.3, which, names=None if which is None else ("x", "y"), budget=900)
        assert torch.equal(tight.values[site], roomy.values[site])
        assert roomy.values[site].shape[-1] == 6
