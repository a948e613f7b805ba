"""Recordings: pooling against plain loops, dense arrays, labels, files, shards on disk."""

import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from plexus.errors import DtypeError, FormatError, RangeError, ShapeError, SiteError, UnknownNameError
from plexus.units import Recording, Table, UnwritableError
from plexus.units._rows import HOW, Pool
from plexus.units._shards import ShardWriter
from plexus.units._site import Site

A, B = Site("a", "b t u"), Site("b", "b t (u:2 f)")


@st.composite
def rows(draw):
    n = draw(st.integers(1, 20))
    columns = [draw(st.lists(st.integers(0, 3), min_size=n, max_size=n)) for _ in range(4)]
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    return torch.randn(n, 3, generator=generator, dtype=torch.float64), Table(*columns)


def by_hand(values, table, how, by):
    groups = {}
    for i in range(len(values)):
        groups.setdefault(tuple(int(getattr(table, name)[i]) for name in by), []).append(i)
    out = []
    for _, members in sorted(groups.items()):
        place = {i: (int(table.step[i]), int(table.position[i]), int(table.call[i])) for i in members}
        if how == "last":
            out.append(values[max(members, key=lambda i: (place[i], -i))])
        elif how == "first":
            out.append(values[min(members, key=lambda i: (place[i], i))])
        else:
            block = values[members]
            out.append({"mean": block.mean(0), "sum": block.sum(0), "max": block.amax(0), "min": block.amin(0)}[how])
    return torch.stack(out)


@settings(deadline=None)
@given(rows(), st.sampled_from(HOW), st.sampled_from([("sample",), ("sample", "call")]), st.integers(0, 20))
def test_pooling_agrees_with_a_plain_loop_however_it_is_fed(data, how, by, cut):
    values, table = data
    expected = by_hand(values, table, how, by)
    record = Recording({A: values}, {A: table})
    torch.testing.assert_close(record.pool(how, by)[A], expected)
    pool = Pool(how, by)
    for piece in (slice(0, cut), slice(cut, None)):
        pool.add(values[piece], table[piece])
    torch.testing.assert_close(pool.result()[0], expected)
    pooled = record.pool(how, by).table[A]
    assert sorted(pooled.sample.tolist()) == pooled.sample.tolist()


def test_pooling_of_features_and_of_half_precision():
    values = torch.tensor([[[1.0], [2.0]], [[3.0], [4.0]]], dtype=torch.bfloat16)
    record = Recording({B: values}, {B: Table([0, 0], [0, 1])})
    assert record.pool("mean")[B].dtype == torch.float32
    assert record.pool("mean")[B].tolist() == [[[2.0], [3.0]]]
    assert record.pool("last")[B].dtype == torch.bfloat16
    # 4096 rows of 1.001 in bfloat16 would stop growing at 256 if they were summed in bfloat16
    many = Recording({A: torch.ones(4096, 1, dtype=torch.bfloat16)}, {A: Table([0] * 4096)})
    assert many.pool("sum")[A].item() == 4096
    with pytest.raises(UnknownNameError, match="did you mean 'mean'"):
        record.pool("meen")
    with pytest.raises(UnknownNameError):
        record.pool("mean", by=("batch",))


def test_dense_sorts_by_position():
    table = Table(sample=[1, 0, 1, 0], position=[0, 5, 3, 2])
    record = Recording({A: torch.tensor([[1.0], [2.0], [3.0], [4.0]])}, {A: table})
    assert record.dense(A).squeeze(-1).tolist() == [[4.0, 2.0], [1.0, 3.0]]


def test_dense_refuses_ragged_rows_or_pads_them():
    record = Recording({A: torch.tensor([[1.0], [2.0], [3.0]])}, {A: Table([0, 0, 2], [0, 1, 0])}, samples=3)
    with pytest.raises(ShapeError, match="different numbers of rows"):
        record.dense(A)
    values, mask = record.dense(A, pad=-9.0)
    assert values.squeeze(-1).tolist() == [[1.0, 2.0], [-9.0, -9.0], [3.0, -9.0]]
    assert mask.tolist() == [[True, True], [False, False], [True, False]]


def test_dense_refuses_two_rows_for_one_place():
    record = Recording({A: torch.tensor([[1.0], [2.0]])}, {A: Table([0, 0], call=[0, 1])})
    with pytest.raises(ShapeError, match="call=0"):
        record.dense(A)
    assert record.where(call=1).dense(A).tolist() == [[[2.0]]]
    assert record.where(call=[0, 1])[A].shape == (2, 1)
    with pytest.raises(UnknownNameError, match="column"):
        record.where(layer=1)


def test_labels_stay_with_their_samples():
    values = {A: torch.zeros(4, 1)}
    table = {A: Table([0, 0, 1, 1], [0, 1, 0, 1])}
    record = Recording(values, table, labels=torch.tensor([5, 6]))
    assert record.pool("mean").labels.tolist() == [5, 6]
    assert record.with_labels({"x": [0, 1]}).labels["x"].tolist() == [0, 1]
    for labels in (torch.zeros(3), torch.zeros(4), torch.tensor(1), [1]):
        with pytest.raises(ShapeError, match="do not match"):
            Recording(values, table, labels=labels)
        with pytest.raises(ShapeError, match="do not match"):
            record.with_labels({"x": labels})
    with pytest.raises(DtypeError):
        record.with_labels(["a", "b"])


def test_bad_recordings():
    with pytest.raises(SiteError, match="no table"):
        Recording({A: torch.zeros(2, 1)}, {})
    with pytest.raises(ShapeError, match="differ in rows"):
        Recording({A: torch.zeros(2, 1)}, {A: Table([0])})
    with pytest.raises(ShapeError, match="no units"):
        Recording({A: torch.zeros(2, 0)}, {A: Table([0, 1])})
    with pytest.raises(ShapeError, match=r"\[row, unit"):
        Recording({A: torch.zeros(2)}, {A: Table([0, 1])})
    with pytest.raises(RangeError, match="negative sample"):  # it would get the label of the last one
        Recording({A: torch.zeros(2, 1)}, {A: Table([0, -1])}, labels=[0, 1])
    with pytest.raises(ShapeError, match="more samples"):
        Recording({A: torch.zeros(2, 1)}, {A: Table([0, 1])}, samples=1)
    with pytest.raises(DtypeError):
        Recording({A: [[1.0]]}, {A: Table([0])})
    with pytest.raises(DtypeError):
        Table(torch.zeros(2))
    with pytest.raises(ShapeError):
        Table([0, 1], [0])
    with pytest.raises(UnknownNameError):
        Table.of({"sample": [0], "positions": [0]})
    record = Recording({A: torch.zeros(2, 1)}, {A: {"sample": [0, 1]}})
    with pytest.raises(SiteError, match="there is no recorded site"):
        record[B]
    with pytest.raises(SiteError):
        record.at(B)


def example(labels=None):
    return Recording(
        {A: torch.randn(4, 3), B: torch.randn(2, 2, 5, dtype=torch.float64).bfloat16()},
        {A: Table([0, 0, 1, 1], [0, 1, 0, 1]), B: Table([0, 1])},
        labels=labels,
        model="net-1",
        samples=2,
    )


@pytest.mark.parametrize("labels", [None, torch.tensor([1, 0]), {"x": torch.tensor([1.0, 0.0]), "y": torch.eye(2)}])
def test_files(tmp_path, labels):
    record = example(labels)
    record.save(tmp_path / "r")
    back = Recording.load(tmp_path / "r")
    assert back.sites == record.sites
    assert (back.samples, back.model, back.pooled) == (2, "net-1", None)
    for site in record.sites:
        assert torch.equal(back[site], record[site])
        assert back.table[site] == record.table[site]
    if isinstance(labels, dict):
        assert {name: value.tolist() for name, value in back.labels.items()} == {"x": [1, 0], "y": [[1, 0], [0, 1]]}
    else:
        assert (back.labels is None) == (labels is None)
    assert back.pool("max").pooled == "max"
    raw = (tmp_path / "r").read_bytes()
    (tmp_path / "cut").write_bytes(raw[:-1])
    with pytest.raises(FormatError):
        Recording.load(tmp_path / "cut")


def spilled(folder, pieces, close=True):
    writer = ShardWriter(folder, [A, B], "net-1", None)
    for values, table in pieces:
        writer.append({A: values}, {A: table})
    if close:
        writer.close(4, torch.arange(4))
    return writer


@settings(deadline=None, max_examples=20)
@given(rows(), st.sampled_from(HOW), st.integers(1, 20))
def test_a_spilled_recording_is_the_same_recording(tmp_path_factory, data, how, cut):
    values, table = data
    whole = Recording({A: values}, {A: table}, samples=4)
    folder = tmp_path_factory.mktemp("spill") / "r"
    spilled(folder, [(values[s], table[s]) for s in (slice(0, cut), slice(cut, None))])
    back = Recording.load(folder)
    assert back.complete
    assert back.sites == (A,)
    assert back.sizes == {A: 3}
    assert torch.equal(back[A], values)
    assert back.table[A] == table
    torch.testing.assert_close(back.pool(how)[A], whole.pool(how)[A])
    assert back.labels.tolist() == [0, 1, 2, 3]
    assert len(list(back.chunks(A))) == (2 if cut < len(values) else 1)


def test_an_unfinished_folder_opens_with_what_is_there(tmp_path):
    spilled(tmp_path / "r", [(torch.ones(2, 3), Table([0, 1])), (torch.zeros(1, 3), Table([2]))], close=False)
    (tmp_path / "r" / ".shard-000002.safetensors.xyz.part").write_bytes(b"half")
    with pytest.warns(UserWarning, match="did not finish: 2 shards"):
        record = Recording.load(tmp_path / "r")
    assert not record.complete
    assert record.samples == 3
    assert record[A].shape == (3, 3)
    assert "not finished" in repr(record)


def test_damaged_folders_are_refused(tmp_path):
    pieces = [(torch.ones(2, 3), Table([0, 1])), (torch.zeros(1, 3), Table([2]))]
    for name, damage in {
        "missing shard": lambda f: (f / "shard-000000.safetensors").unlink(),
        "cut shard": lambda f: (f / "shard-000001.safetensors").write_bytes(b"x" * 40),
        "no header": lambda f: (f / "header.json").unlink(),
        "cut header": lambda f: (f / "header.json").write_text("{"),
        "cut ending": lambda f: (f / "complete.json").write_text("{"),
    }.items():
        spilled(tmp_path / name, pieces)
        damage(tmp_path / name)
        with pytest.raises(FormatError):
            Recording.load(tmp_path / name)


def test_a_spill_takes_an_empty_folder_only(tmp_path):
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "mine.txt").write_text("keep")
    with pytest.raises(UnwritableError, match="not empty"):
        spilled(tmp_path / "r", [])
    assert [entry.name for entry in (tmp_path / "r").iterdir()] == ["mine.txt"]
    (tmp_path / "file").write_text("")
    with pytest.raises(UnwritableError):
        spilled(tmp_path / "file", [])


def test_printing_says_what_is_held(tmp_path):
    text = repr(example({"capital": torch.zeros(2)}))
    assert "2 samples at 2 sites; labels: capital" in text
    assert "4 rows × 3 units, float32, 2 positions, 48 B" in text
    assert "2 rows × 2 units of 5 features, bfloat16" in text
    spilled(tmp_path / "r", [(torch.ones(2, 3), Table([0, 1]))])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "2 rows × 3 units, float32, 24 B" in repr(Recording.load(tmp_path / "r"))
