"""Scores that do not hang on one group of samples, one wording for instance.

s_u = min_g  score_u(all samples but those of group g)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from plexus.errors import DtypeError, ShapeError
from plexus.units import Recording, Scores
from plexus.units._recording import Labels


def leave_one_out(
    score: Callable[..., Scores],
    record: Recording,
    labels: Labels,
    groups: Tensor | Sequence[int],
    *,
    names: Sequence[str] | None = None,
) -> Scores:
    """The lowest score of each unit when one group of samples after the other is left out.

    A unit that answers to one word of one wording scores high as long as that wording is there, and low without it.

    Args:
        score: `average_precision`, `auroc`, `dprime` or another with the same arguments.
        record: what units did.
        labels: as `score` takes them.
        groups: group of each sample, `[sample]`, whole numbers; at least two different ones.
        names: of the classes or concepts.

    Raises:
        ShapeError: groups that are not one per sample, or only one group.
        DtypeError: a stream, which can be read only once.

    Examples:
        >>> from plexus.probe.scores import average_precision
        >>> from plexus.units import Recording, Site, Table
        >>> site, wording = Site("fc1", "b u"), [0, 0, 1, 1]
        >>> values = torch.tensor([[9.0, 2.0], [0.0, 0.0], [1.0, 2.0], [1.0, 0.0]])  # unit 0 knows wording 0 alone
        >>> record = Recording({site: values}, {site: Table([0, 1, 2, 3])})
        >>> average_precision(record, [1, 0, 1, 0])[site]
        tensor([0.8333, 1.0000], dtype=torch.float64)
        >>> leave_one_out(average_precision, record, [1, 0, 1, 0], wording)[site]
        tensor([0.5000, 1.0000], dtype=torch.float64)
    """
    if not isinstance(record, Recording):
        raise DtypeError("groups are left out of a recording", given=type(record).__name__, expected="Recording")
    group = torch.as_tensor(groups).cpu()
    if group.shape != (record.samples,):
        raise ShapeError("groups are one per sample", given=tuple(group.shape), expected=f"[{record.samples}]")
    kinds = group.unique()
    if len(kinds) < 2:
        raise ShapeError("one group cannot be left out of itself", given="1 group", expected="at least two")
    parts = []
    for kind in kinds:
        kept = (group != kind).nonzero().squeeze(1).tolist()
        parts.append(score(record.where(sample=kept), labels, names=names))
    lowest = {site: torch.stack([part[site] for part in parts]).amin(0) for site in record.sites}
    return Scores(lowest, parts[0].concepts, f"{parts[0].name}, one group left out", record.model)
