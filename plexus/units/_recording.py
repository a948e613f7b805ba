"""What units did: rows of numbers per site, and a table that says what each row is.

    values[site]   [row, unit] or [row, unit, feature]
    table[site]    sample, position, call, step of each row

`sample` counts inputs over all batches. `position` is the place inside a sample as the model counts it: the token, the
time step of a time-first network, the pixel (row-major). `call` is the n-th use of the module in one pass of the model,
`step` the n-th pass of the model over the same batch (0, unless it generates or is stepped through time).
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from plexus.errors import DtypeError, FormatError, RangeError, ShapeError, SiteError, UnknownNameError
from plexus.units._files import read_tensors, write_tensors
from plexus.units._rows import COLUMNS, How, Pool, Table, counted
from plexus.units._shards import Shards
from plexus.units._site import Site

KIND, VERSION = "recording", 1

Labels = Tensor | Mapping[str, Tensor]


class Recording:
    """Values of units at some sites, row by row, with the table of the rows.

    Args:
        values: per site `[row, unit]` or `[row, unit, feature]`; moved to main memory, as labels are.
        table: per site the `Table` of its rows (or a mapping of its four columns).
        samples: how many samples were seen (default: the largest sample number plus one).
        labels: `[sample, …]`, or a mapping of concept names to such tensors.
        model: fingerprint of the model, if known.

    Raises:
        ShapeError: if values and table differ in rows, or labels and samples in number.

    Examples:
        >>> hidden = Site("fc1", "b t u")
        >>> rows = Table(sample=[0, 0, 1, 1], position=[0, 1, 0, 1])
        >>> record = Recording({hidden: torch.arange(8.0).reshape(4, 2)}, {hidden: rows})
        >>> record.pool("last").values[hidden]
        tensor([[2., 3.],
                [6., 7.]])
        >>> record.dense(hidden).shape
        torch.Size([2, 2, 2])
    """

    def __init__(
        self,
        values: Mapping[Site, Tensor],
        table: Mapping[Site, Table | Mapping[str, object]],
        *,
        samples: int | None = None,
        labels: Labels | None = None,
        model: str | None = None,
        pooled: str | None = None,
    ) -> None:
        self._shards: Shards | None = None
        self._values: dict[Site, Tensor] = {}
        self._table: dict[Site, Table] = {}
        for site, value in values.items():
            if site not in table:
                raise SiteError("these values have no table of rows", given=str(site))
            rows = table[site]
            rows = rows if isinstance(rows, Table) else Table.of(rows)
            self._values[site], self._table[site] = _checked(site, value, rows), rows
            if len(rows) and int(rows.sample.min()) < 0:
                raise RangeError(f"the table of {site} names a negative sample", given=int(rows.sample.min()))
        seen = max((int(rows.sample.max()) + 1 for rows in self._table.values() if len(rows)), default=0)
        if samples is not None and samples < seen:
            raise ShapeError("the table names more samples than there are", given=seen, expected=samples)
        self._samples = seen if samples is None else samples
        self._model, self._pooled = model, pooled
        self._labels = check_labels(labels, self._samples)

    @classmethod
    def _spilled(cls, shards: Shards) -> Recording:
        record = cls({}, {}, samples=shards.samples, labels=shards.labels, model=shards.model, pooled=shards.pooled)
        record._shards = shards
        return record

    @property
    def values(self) -> Mapping[Site, Tensor]:
        """The numbers of each site; of a recording on disk each look-up reads the site's rows."""
        return self._values if self._shards is None else self._shards.values

    @property
    def table(self) -> Mapping[Site, Table]:
        """What each row of each site is."""
        return self._table if self._shards is None else self._shards.table

    @property
    def sites(self) -> tuple[Site, ...]:
        """The sites recorded."""
        return tuple(self.values)

    @property
    def sizes(self) -> dict[Site, int]:
        """The number of units of each site."""
        return {s: v.shape[1] for s, v in self._values.items()} if self._shards is None else self._shards.sizes

    @property
    def samples(self) -> int:
        """The number of samples seen."""
        return self._samples

    @property
    def labels(self) -> Labels | None:
        """`[sample, …]` labels, or several by name."""
        return self._labels

    @property
    def model(self) -> str | None:
        """Fingerprint of the model, if known."""
        return self._model

    @property
    def pooled(self) -> str | None:
        """How rows were pooled, if they were."""
        return self._pooled

    @property
    def complete(self) -> bool:
        """Whether the writer of a recording on disk finished; true of one in memory."""
        return self._shards is None or self._shards.complete

    @property
    def folder(self) -> Path | None:
        """Where a recording on disk lies."""
        return None if self._shards is None else self._shards.folder

    def __getitem__(self, site: Site) -> Tensor:
        """The values of one site, `[row, unit(, feature)]`.

        Raises:
            SiteError: if the site was not recorded.
        """
        self._known(site)
        return self.values[site]

    def chunks(self, site: Site) -> Iterator[tuple[Tensor, Table]]:
        """Values and table of one site piece by piece: shard by shard on disk, whole in memory."""
        self._known(site)
        if self._shards is not None:
            yield from self._shards.chunks(site)
        else:
            yield self._values[site], self._table[site]

    def pool(self, how: How, by: Sequence[str] = ("sample",)) -> Recording:
        """One row per sample: the rows of each sample reduced.

        Args:
            how: "last" and "first" take the row that is last or first in step, position and call; "mean", "sum", "max"
                and "min" reduce each unit by itself (16-bit floats are averaged in float32).
            by: the columns that stay apart, for example `("sample", "call")`.

        Raises:
            UnknownNameError: if `how` or a column is not known.
        """
        values, table = {}, {}
        for site in self.sites:
            pool = Pool(how, by)
            for value, rows in self.chunks(site):
                pool.add(value, rows)
            values[site], table[site] = pool.result()
        return Recording(values, table, samples=self._samples, labels=self._labels, model=self._model, pooled=how)

    def dense(self, site: Site, *, pad: float | None = None) -> Tensor | tuple[Tensor, Tensor]:
        """The rows of a site as `[sample, position, unit(, feature)]`, by position in each sample.

        Args:
            site: which.
            pad: with a number, shorter samples are filled with it at the end, and the answer is `(values, mask)` with
                a boolean mask `[sample, position]`, true where a row stands.

        Raises:
            ShapeError: if the samples have different numbers of rows and no `pad` is given, or if several rows share a
                sample and a position (several calls, steps or beams): choose with `where` or `pool` first.
        """
        self._known(site)
        value, rows = self.values[site], self.table[site]
        order = rows.order(("sample", "position"))
        value, rows = value[order], rows[order]
        same = (rows.sample[1:] == rows.sample[:-1]) & (rows.position[1:] == rows.position[:-1])
        if bool(same.any()):
            first = int(same.nonzero()[0])
            raise ShapeError(
                f"{site} has several rows for one position of one sample, so there is no one dense array",
                given=f"sample {int(rows.sample[first])}, position {int(rows.position[first])}",
                mend="choose first, for example record.where(call=0) or record.where(step=0)",
            )
        counts = torch.bincount(rows.sample, minlength=self._samples)
        longest = int(counts.max()) if len(counts) else 0
        if pad is None and bool((counts != longest).any()):
            raise ShapeError(
                f"the samples of {site} have different numbers of rows",
                given=f"{int(counts.min())} to {longest}",
                mend="give pad=0.0 for a padded array and its mask, or pool",
            )
        place = torch.arange(len(rows)) - (counts.cumsum(0) - counts)[rows.sample]
        out = value.new_full((self._samples, longest, *value.shape[1:]), 0 if pad is None else pad)
        out[rows.sample, place] = value
        if pad is None:
            return out
        return out, torch.arange(longest) < counts[:, None]

    def where(self, **columns: int | Iterable[int]) -> Recording:
        """The rows whose `sample`, `position`, `call` and `step` are among the numbers given.

        Raises:
            UnknownNameError: if a column does not exist.
        """
        for name in columns:
            if name not in COLUMNS:
                raise UnknownNameError.among("column", name, COLUMNS)
        given = {name: value.tolist() if isinstance(value, Tensor) else value for name, value in columns.items()}
        wanted = {
            name: torch.as_tensor([value] if isinstance(value, int) else list(value), dtype=torch.int64)
            for name, value in given.items()
        }
        values, table = {}, {}
        for site in self.sites:
            rows = self.table[site]
            keep = torch.ones(len(rows), dtype=torch.bool)
            for name, numbers in wanted.items():
                keep &= torch.isin(getattr(rows, name), numbers)
            values[site], table[site] = self.values[site][keep], rows[keep]
        return Recording(
            values, table, samples=self._samples, labels=self._labels, model=self._model, pooled=self._pooled
        )

    def at(self, *sites: Site) -> Recording:
        """The recording of some of its sites."""
        for site in sites:
            self._known(site)
        values, table = {site: self.values[site] for site in sites}, {site: self.table[site] for site in sites}
        return Recording(
            values, table, samples=self._samples, labels=self._labels, model=self._model, pooled=self._pooled
        )

    def with_labels(self, labels: Labels) -> Recording:
        """The same recording with other labels, `[sample, …]` or several by name.

        Raises:
            ShapeError: if their number is not the number of samples.
        """
        record = Recording({}, {}, samples=self._samples, labels=labels, model=self._model, pooled=self._pooled)
        record._values, record._table, record._shards = self._values, self._table, self._shards
        return record

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the recording as one safetensors file.

        Raises:
            UnwritableError: if the place cannot be written.
        """
        tensors: dict[str, Tensor] = {}
        for i, site in enumerate(self.sites):
            tensors[f"values.{i}"] = self.values[site]
            tensors.update({f"{name}.{i}": getattr(self.table[site], name) for name in COLUMNS})
        named = self._labels if isinstance(self._labels, Mapping) else {}
        tensors.update({f"label.{i}": value for i, value in enumerate(named.values())})
        if isinstance(self._labels, Tensor):
            tensors["labels"] = self._labels
        body = {
            "sites": [site.to_json() for site in self.sites],
            "samples": self._samples,
            "model": self._model,
            "pooled": self._pooled,
            "concepts": list(named),
        }
        write_tensors(path, KIND, VERSION, body, tensors)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Recording:
        """Read a recording: a file that `save` wrote, or the folder of a spilled one (read lazily).

        The folder of a writer that was killed opens with the rows that it finished, a warning, and `complete` false.

        Raises:
            FormatError: if it is truncated, of another version or not a recording.
        """
        if Path(path).is_dir():
            return cls._spilled(Shards(Path(path)))
        body, tensors = read_tensors(path, KIND, VERSION)
        try:
            sites = [Site.from_json(entry) for entry in body["sites"]]
            labels: Labels | None = tensors.get("labels")
            if body["concepts"]:
                labels = {name: tensors[f"label.{i}"] for i, name in enumerate(body["concepts"])}
            return cls(
                {site: tensors[f"values.{i}"] for i, site in enumerate(sites)},
                {site: Table(*(tensors[f"{name}.{i}"] for name in COLUMNS)) for i, site in enumerate(sites)},
                samples=body["samples"],
                labels=labels,
                model=body["model"],
                pooled=body["pooled"],
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise FormatError("this recording is damaged", given=f"{path}: {type(error).__name__}: {error}") from error

    def __repr__(self) -> str:
        state = [f"{counted(self._samples, 'sample')} at {counted(len(self.sites), 'site')}"]
        if self._pooled:
            state.append(f"pooled: {self._pooled}")
        if isinstance(self._labels, Mapping):
            state.append("labels: " + ", ".join(list(self._labels)[:6]))
        elif self._labels is not None:
            state.append("labelled")
        if self._shards is not None:
            state.append(f"on disk in {self._shards.folder}" + ("" if self.complete else ", not finished"))
        lines = ["Recording: " + "; ".join(state)]
        lines += [f"  {site}: {self._describe(site)}" for site in self.sites[:12]]
        if len(self.sites) > 12:
            lines.append(f"  … and {len(self.sites) - 12} sites more")
        return "\n".join(lines)

    def _describe(self, site: Site) -> str:
        rows = self.table[site]
        if self._shards is None:
            value = self._values[site]
            shape, dtype = tuple(value.shape), str(value.dtype)
        else:
            shape, dtype = self._shards.shape(site)
        features = f" of {shape[2]} features" if len(shape) > 2 else ""
        text = f"{counted(len(rows), 'row')} × {counted(shape[1], 'unit')}{features}, {dtype.removeprefix('torch.')}"
        for name, plural in (("position", "positions"), ("call", "calls"), ("step", "steps")):
            several = int(getattr(rows, name).unique().numel())
            if several > 1:
                text += f", {several} {plural}"
        return text + f", {_bytes(math.prod(shape) * torch.empty((), dtype=getattr(torch, dtype[6:])).element_size())}"

    def _known(self, site: Site) -> None:
        if site not in self.values:
            names = {str(known): known for known in self.sites}
            error = UnknownNameError.among("recorded site", str(site), names)
            raise SiteError(error.what, mend=error.mend)


def check_labels(labels: Labels | None, samples: int) -> Labels | None:
    """Labels as tensors, one entry per sample.

    Raises:
        ShapeError: if the number of labels is not the number of samples.
        DtypeError: if they are no tensor, or a mapping of something else.
    """
    if labels is None:
        return None
    if isinstance(labels, Mapping):
        return {str(name): _label(value, samples, f"labels {str(name)!r}") for name, value in labels.items()}
    return _label(labels, samples, "labels")


def _label(value: object, samples: int, what: str) -> Tensor:
    if not isinstance(value, Tensor):
        try:
            value = torch.as_tensor(value)
        except (TypeError, ValueError, RuntimeError) as error:
            raise DtypeError(f"{what} cannot be read as a tensor", given=type(value).__name__) from error
    if value.dim() == 0 or len(value) != samples:
        raise ShapeError(
            f"{what} do not match the samples",
            given=f"{tuple(value.shape)} labels, {samples} samples",
            mend="give one label per sample, in the order of the batches; networks over time take [time, batch, …]",
        )
    return value.detach().cpu()


def _checked(site: Site, value: Tensor, rows: Table) -> Tensor:
    if not isinstance(value, Tensor):
        raise DtypeError(f"the values of {site} are not a tensor", given=type(value).__name__)
    if value.dim() not in (2, 3):
        raise ShapeError(
            f"the values of {site} have the wrong shape", given=tuple(value.shape), expected="[row, unit(, feature)]"
        )
    if value.shape[1] == 0:
        raise ShapeError(f"site {site} has no units", given=tuple(value.shape))
    if len(value) != len(rows):
        raise ShapeError(f"values and table of {site} differ in rows", given=f"{len(value)} and {len(rows)}")
    return value.cpu()


def _bytes(n: int) -> str:
    size = float(n)
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.3g} {unit}"
        size /= 1024
    return f"{size:.3g} GiB"
