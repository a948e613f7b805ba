"""Directions that tell two classes of samples apart, one per site.

With the rows x⁺ of one class and x⁻ of the other, μ their means and Σ the covariance within the classes:

    difference   v ∝ μ⁺ - μ⁻
    mass-mean    v ∝ Σ⁻¹ (μ⁺ - μ⁻)                 Σ shrunk towards its mean variance: (1-s) Σ + s tr(Σ)/d I
    logistic     v ∝ w of argmin_w mean log(1 + exp(∓(w·x + c))) + penalty/2 ‖w‖²       (x in units of its spread)
    pca          v = first principal axis, about zero, of the differences x⁺_i - x⁻_i of pairs

Each v has length one and points to the positive class. `difference` is the one to steer along, `mass-mean` and
`logistic` read best: they discount directions in which the samples vary anyway.

Source: Marks and Tegmark 2023 (mass-mean), Zou et al. 2023 (principal axis of contrasts).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from plexus.data._padding import padded
from plexus.errors import DtypeError, RangeError, ShapeError, SiteError, UnknownNameError, UnsupportedError
from plexus.probe._record import record
from plexus.probe._softmax import fit_softmax
from plexus.units import Neurons, Recording, Site
from plexus.units._memory import to_memory

__all__ = ["Directions", "contrast", "directions", "token_batches"]

How = Literal["difference", "mass-mean", "logistic", "pca"]


@dataclass(frozen=True, eq=False)
class Directions(Mapping[Site, Tensor]):
    """One direction per site: a mapping of sites to vectors `[unit]`, to be used as `basis=` of an edit or to steer.

    Attributes:
        vectors: per site the direction, of length one; moved to main memory, as recordings are.
        gap: per site how far apart the means of the two classes lie along it.
        threshold: per site the coordinate above which a sample counts as positive.
        how: the way they were found.
        model: fingerprint of the model, if known.

    Examples:
        >>> site = Site("0")
        >>> up = Directions({site: torch.tensor([0.6, 0.8])}, {site: 2.0}, {site: 1.0}, "difference")
        >>> up[site], len(up)
        (tensor([0.6000, 0.8000]), 1)
    """

    vectors: Mapping[Site, Tensor]
    gap: Mapping[Site, float]
    threshold: Mapping[Site, float]
    how: str
    model: str | None = None

    def __post_init__(self) -> None:
        to_memory(self, "vectors")

    def __getitem__(self, site: Site) -> Tensor:
        if site not in self.vectors:
            raise SiteError("there is no direction for this site", given=str(site))
        return self.vectors[site]

    def __iter__(self) -> Iterator[Site]:
        return iter(self.vectors)

    def __len__(self) -> int:
        return len(self.vectors)

    @property
    def neurons(self) -> Neurons:
        """All units of the sites, which is what a direction reaches."""
        return Neurons({site: torch.ones(len(v), dtype=torch.bool) for site, v in self.vectors.items()}, self.model)

    def at(self, *sites: Site) -> Directions:
        """The directions of some of the sites.

        Raises:
            SiteError: there is none for a site.
        """
        return Directions(
            {site: self[site] for site in sites},
            {site: self.gap[site] for site in sites},
            {site: self.threshold[site] for site in sites},
            self.how,
            self.model,
        )

    def project(self, recording: Recording) -> dict[Site, Tensor]:
        """The coordinate of each row of a recording along the direction of its site, `[row]`."""
        return {site: recording[site].float() @ vector for site, vector in self.vectors.items()}

    def accuracy(self, recording: Recording, labels: Tensor | None = None) -> dict[Site, float]:
        """Share of samples that lie on the right side of the threshold, per site.

        Args:
            recording: one row per sample.
            labels: true for the positive ones, `[sample]`; None: those of the recording.
        """
        return {
            site: float(((x @ self.vectors[site].double() > self.threshold[site]) == shown).double().mean())
            for site in self
            for x, shown in [_rows(recording, site, labels)]
        }

    def random_like(self, generator: torch.Generator) -> Directions:
        """Directions drawn evenly from the sphere, with the same gaps and thresholds: the control for a steering."""
        drawn = {}
        for site, vector in self.vectors.items():
            draw = torch.randn(vector.shape, generator=generator, device=generator.device).to(vector)
            drawn[site] = draw / draw.norm()
        return Directions(drawn, self.gap, self.threshold, "random", self.model)

    def __repr__(self) -> str:
        return f"Directions by {self.how} at {len(self)} site{'s' * (len(self) != 1)}"


def directions(
    recording: Recording,
    against: Recording | Tensor | None = None,
    *,
    how: How = "difference",
    shrinkage: float = 0.01,
    penalty: float = 0.01,
) -> Directions:
    """Directions that tell the positive samples of a recording from the negative ones.

    Args:
        recording: one row per sample (`pool="last"`, for instance); labelled, or the positive samples alone.
        against: labels `[sample]`, true for the positive ones; or the recording of the negative samples. None: the
            labels of the recording.
        how: "difference", "mass-mean", "logistic" or "pca". With "pca" the i-th positive and the i-th negative sample
            are a pair.
        shrinkage: of the covariance of "mass-mean", in [0, 1].
        penalty: of "logistic".

    Raises:
        ShapeError: several rows per sample, a class without samples, labels or pairs that do not line up.
        RangeError: the classes do not differ at a site, or a covariance that cannot be inverted without shrinkage.
        UnsupportedError: units that are vectors.

    Examples:
        >>> from plexus.units import Table
        >>> site = Site("0")
        >>> rows = torch.tensor([[0.0, 1.0], [2.0, 1.0], [0.0, 5.0], [2.0, 5.0]])
        >>> record = Recording({site: rows}, {site: Table([0, 1, 2, 3])}, labels=torch.tensor([0, 0, 1, 1]))
        >>> found = directions(record)
        >>> found[site], found.gap[site], found.threshold[site], found.accuracy(record)[site]
        (tensor([0., 1.]), 4.0, 3.0, 1.0)
    """
    if how not in get_args(How):
        raise UnknownNameError.among("way to find directions", str(how), get_args(How))
    if not 0 <= shrinkage <= 1:
        raise RangeError("shrinkage lies in [0, 1]", given=shrinkage)
    if not isinstance(recording, Recording):
        raise DtypeError("directions are found in a recording", given=type(recording).__name__)
    if isinstance(against, Recording):
        _same_model(recording, against)
    vectors: dict[Site, Tensor] = {}
    gap: dict[Site, float] = {}
    threshold: dict[Site, float] = {}
    for site in recording.sites:
        positive, negative = classes(recording, against, site)
        middle = None
        if how == "logistic":
            vector, middle = _logistic(positive, negative, penalty)
        elif how == "pca":
            vector = _axis(site, positive, negative)
        else:
            vector = positive.mean(0) - negative.mean(0)
            if how == "mass-mean":
                vector = _whitened(site, vector, positive, negative, shrinkage)
        length = vector.norm()
        if not bool(length > 0) or not bool(length.isfinite()):
            raise RangeError("the two classes do not differ at a site, so there is no direction", given=str(site))
        vector = vector / length
        high, low = float(positive.mean(0) @ vector), float(negative.mean(0) @ vector)
        vectors[site], gap[site] = vector.float(), high - low
        threshold[site] = (high + low) / 2 if middle is None else middle / float(length)
    return Directions(vectors, gap, threshold, how, recording.model)


def contrast(
    model: nn.Module,
    tokenizer: Any,
    positive: Sequence[str],
    negative: Sequence[str],
    at: Site | Iterable[Site],
    *,
    how: How = "difference",
    pool: Literal["last", "mean"] = "last",
    batch: int = 16,
    **options: Any,
) -> Directions:
    """Directions between two sets of prompts, read at their last token (or over all their tokens).

    Args:
        model, tokenizer: a language model and what makes `input_ids` of texts.
        positive, negative: the prompts; with `how="pca"` the i-th of each are a pair.
        at: the sites, e.g. `sites.residual(model)`.
        how: as in `directions`.
        pool: "last" token, or the "mean" of all.
        batch: prompts per pass.
        **options: of `directions`.

    Examples:
        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> from plexus.probe._language import Letters
        >>> from plexus.units import sites
        >>> model = GPT2LMHeadModel(GPT2Config(vocab_size=128, n_embd=16, n_layer=2, n_head=2))
        >>> contrast(model, Letters(), ["yes yes", "yes"], ["no", "no no"], sites.residual(model))
        Directions by difference at 2 sites
    """
    yes, no = (
        record(model, token_batches(tokenizer, texts, batch=batch, device=device_of(model)), at, pool=pool)
        for texts in (positive, negative)
    )
    return directions(yes, no, how=how, **options)


def token_batches(
    tokenizer: Any,
    texts: Sequence[str],
    *,
    batch: int = 16,
    longest: int | None = None,
    device: torch.device | str | None = None,
    side: Literal["left", "right"] = "right",
) -> list[dict[str, Tensor]]:
    """Texts as batches of `input_ids` and `attention_mask`, in order, to be recorded.

    Padding on the right leaves every token at its own position, so that each text is read as if it were alone; to
    generate, pad on the left, which adds `position_ids`.

    Args:
        tokenizer: gives `input_ids` for texts; it needs no padding token.
        texts: in the order of the samples.
        batch: texts per batch.
        longest: tokens after which a text is cut off.
        device: where the tensors shall lie.
        side: where padding goes.

    Raises:
        ShapeError: no texts, or one without a token.
        DtypeError: a single text where several are meant.

    Examples:
        >>> from plexus.probe._language import Letters
        >>> token_batches(Letters(), ["ab", "c"])[0]["attention_mask"]
        tensor([[1, 1],
                [1, 0]])
    """
    if isinstance(texts, str):
        raise DtypeError("texts come as a list", given="one str", expected="[text]")
    rows = [list(tokens)[:longest] for tokens in tokenizer(list(texts))["input_ids"]] if len(texts) else []
    if not rows or not all(rows):
        raise ShapeError("there is no text, or one without a token", given=f"{len(rows)} texts")
    if batch < 1:
        raise RangeError("a batch holds at least one text", given=batch)
    pad = getattr(tokenizer, "pad_token_id", None) or 0
    parts = (padded(rows[start : start + batch], pad, side) for start in range(0, len(rows), batch))
    return [{name: values.to(device) for name, values in part.items()} for part in parts]


def device_of(model: nn.Module) -> torch.device:
    """Where the first parameter of a model lies."""
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


def classes(recording: Recording, against: Recording | Tensor | None, site: Site) -> tuple[Tensor, Tensor]:
    """The positive and the negative rows of a site, float64 `[sample, unit]`."""
    if isinstance(against, Recording):
        everyone = torch.ones(recording.samples, dtype=torch.bool)
        positive = _rows(recording, site, everyone)[0]
        negative = _rows(against, site, torch.zeros(against.samples, dtype=torch.bool))[0]
    else:
        rows, shown = _rows(recording, site, against)
        positive, negative = rows[shown], rows[~shown]
    if not len(positive) or not len(negative):
        raise ShapeError("a class has no samples", given=f"{len(positive)} positive, {len(negative)} negative")
    if positive.shape[1] != negative.shape[1]:
        raise ShapeError("the two recordings differ in units", given=(positive.shape[1], negative.shape[1]))
    return positive, negative


def _rows(recording: Recording, site: Site, labels: Tensor | None) -> tuple[Tensor, Tensor]:
    """The rows of a site in float64, one per sample, and which of them are positive."""
    values, table = recording[site], recording.table[site]
    if values.dim() != 2:
        raise UnsupportedError(
            f"units of site {site} are vectors",
            mend="name its numbers as units, e.g. axes='b t u' in place of 'b t (u:4 f)'",
        )
    if len(table.sample.unique()) != len(table):
        raise ShapeError(
            f"there are several rows per sample at site {site}",
            given=f"{len(table)} rows of {recording.samples} samples",
            mend="record(..., pool='last'), or recording.pool('mean')",
        )
    given = recording.labels if labels is None else labels
    if not isinstance(given, Tensor):
        raise ShapeError(
            "directions need one label per sample", mend="pass labels, true for the positive samples, or two recordings"
        )
    if given.dim() != 1 or len(given) != recording.samples:
        raise ShapeError("there is one label per sample", given=tuple(given.shape), expected=(recording.samples,))
    if not set(given.unique().tolist()) <= {0, 1}:
        raise RangeError("labels are true or false", given=given.unique().tolist()[:6], expected="0 and 1")
    return values.double(), given.cpu().bool()[table.sample]


def _whitened(site: Site, difference: Tensor, positive: Tensor, negative: Tensor, shrinkage: float) -> Tensor:
    rest = torch.cat([positive - positive.mean(0), negative - negative.mean(0)])
    covariance = rest.T @ rest / len(rest)
    size = len(covariance)
    shrunk = (1 - shrinkage) * covariance + shrinkage * covariance.trace() / size * torch.eye(size).to(covariance)
    if int(torch.linalg.matrix_rank(shrunk, hermitian=True)) < size:
        raise RangeError(
            "the covariance within the classes cannot be inverted",
            given=f"{len(rest)} samples of {size} units at {site}, shrinkage {shrinkage}",
            mend="more samples, or a larger shrinkage",
        )
    out: Tensor = torch.linalg.solve(shrunk, difference)
    return out


def _logistic(positive: Tensor, negative: Tensor, penalty: float) -> tuple[Tensor, float]:
    """Weights and the value of w·x at which both classes are as likely."""
    x = torch.cat([positive, negative])
    y = torch.cat([torch.ones(len(positive)), torch.zeros(len(negative))]).long()
    center = x.mean(0)
    spread = (x - center).square().mean().sqrt().clamp(min=1e-300)
    weight, bias = fit_softmax((x - center) / spread, y, 2, 2 * penalty)  # two rows share one penalty
    along = (weight[1] - weight[0]) / spread
    return along, float(along @ center - (bias[1] - bias[0]))


def _axis(site: Site, positive: Tensor, negative: Tensor) -> Tensor:
    if len(positive) != len(negative):
        raise ShapeError(
            f"pairs need as many positive as negative samples at {site}", given=(len(positive), len(negative))
        )
    pairs = positive - negative
    axis: Tensor = torch.linalg.svd(pairs, full_matrices=False).Vh[0]
    return -axis if float((pairs @ axis).sum()) < 0 else axis


def _same_model(one: Recording, other: Recording) -> None:
    if one.model is not None and other.model is not None and one.model != other.model:
        raise UnsupportedError("the two recordings are of two models", given=other.model, expected=one.model)
