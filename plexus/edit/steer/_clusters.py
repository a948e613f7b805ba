"""Several directions per site, and a probe that chooses among them for each sample or token.

    δ_p = h⁺_p - h⁻_p                      contrast of pair p
    clusters of δ (k-means, each unit in units of its spread); the mean contrast of cluster k: length_k · B_k
    q(k | h) = softmax(W (h - mean h) / std h + c)_k      trained to name the cluster of a pair from the state h_p

At run time h + s B_k with k = argmax q(k | h). `refined` moves a probe by gradient steps on states whose best cluster
is known by then, which is how it learns while it is used.

Source: Sharma and Raman 2025 (arXiv 2506.18887); clustering, probe and step as they describe them, numbers ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn.functional import layer_norm

from plexus.edit._edit import Edit
from plexus.edit._numbers import Given
from plexus.edit._verbs import make, verb
from plexus.errors import DtypeError, RangeError, ShapeError, SiteError, UnknownNameError, require
from plexus.probe._collect import Positions
from plexus.probe._directions import classes
from plexus.probe._softmax import fit_softmax
from plexus.units import Neurons, Recording, Site
from plexus.units._memory import to_memory

__all__ = ["ClusteredDirections", "choose"]

Per = Literal["token", "sample"]
By = Literal["length", "own", "norm"]


@dataclass(frozen=True, eq=False)
class ClusteredDirections:
    """Directions of clusters and the probe that chooses among them, per site. Made by `ClusteredDirections.fit`.

    Its tensors are moved to main memory, as recordings are.

    Attributes:
        directions: of length one, `[cluster, unit]`.
        lengths: of the mean contrast of each cluster, `[cluster]`.
        weight: of the probe, `[cluster, unit]`.
        bias: of the probe, `[cluster]`.
        clusters: which cluster each pair that was fitted belongs to, `[pair]`.
        model: fingerprint of the model, if known.
    """

    directions: Mapping[Site, Tensor]
    lengths: Mapping[Site, Tensor]
    weight: Mapping[Site, Tensor]
    bias: Mapping[Site, Tensor]
    clusters: Mapping[Site, Tensor]
    model: str | None = None

    def __post_init__(self) -> None:
        to_memory(self, "directions", "lengths", "weight", "bias", "clusters")

    @classmethod
    def fit(
        cls,
        positive: Recording,
        negative: Recording,
        clusters: int,
        generator: torch.Generator,
        *,
        states: Recording | None = None,
        penalty: float = 0.01,
    ) -> ClusteredDirections:
        """Cluster the contrasts of pairs and train the probe.

        Args:
            positive, negative: one row per sample; the i-th of each are a pair.
            clusters: how many; fewer than pairs.
            generator: for the starts of k-means.
            states: what the probe will see when it has to choose, one row per pair (the end of the prompt, say); None:
                the negative samples.
            penalty: of the probe.

        Raises:
            ShapeError: recordings of different numbers of samples.
            RangeError: fewer than one cluster, more than pairs, or a cluster whose mean contrast is zero.

        Examples:
            >>> from plexus.units import Table
            >>> site, rows = Site("0"), torch.eye(4).repeat(3, 1)
            >>> no = Recording({site: rows}, {site: Table(range(12))})
            >>> yes = Recording({site: rows + torch.where(rows[:, :1] > 0, 1.0, -1.0)}, {site: Table(range(12))})
            >>> found = ClusteredDirections.fit(yes, no, 2, torch.Generator().manual_seed(0))
            >>> found.accuracy(no, found.clusters)[site]
            1.0
        """
        if not isinstance(generator, torch.Generator):
            raise DtypeError("the starts of k-means need a torch.Generator", given=type(generator).__name__)
        cluster = require("sklearn.cluster", "lab", purpose="clusters of contrasts")
        out: dict[str, dict[Site, Tensor]] = {
            name: {} for name in ("directions", "lengths", "weight", "bias", "clusters")
        }
        for site in positive.sites:
            high, low = classes(positive, negative, site)
            if len(high) != len(low):
                raise ShapeError("contrasts need pairs", given=f"{len(high)} positive, {len(low)} negative samples")
            if not 1 <= clusters <= len(high):
                raise RangeError("there are as many clusters as pairs at most", given=clusters, expected=len(high))
            read = low if states is None else classes(states, negative, site)[0]
            if len(read) != len(high):
                raise ShapeError("there is one state per pair", given=len(read), expected=len(high))
            contrasts = high - low
            spread = contrasts.std(0, correction=0)
            scaled = contrasts / torch.where(spread > 0, spread, torch.ones_like(spread))
            seed = int(torch.randint(2**31, (), generator=generator, device=generator.device))
            found = cluster.KMeans(clusters, n_init=10, random_state=seed).fit(scaled.numpy())
            which = torch.from_numpy(found.labels_).long()
            means = torch.stack([contrasts[which == k].mean(0) for k in range(clusters)])
            lengths = means.norm(dim=1)
            if not bool((lengths > 0).all()) or not bool(lengths.isfinite().all()):
                raise RangeError(
                    "a cluster of contrasts has a mean of zero, or is empty", given=str(site), mend="fewer clusters"
                )
            weight, bias = fit_softmax(_normed(read), which, clusters, penalty)
            out["directions"][site] = (means / lengths[:, None]).float()
            out["lengths"][site], out["clusters"][site] = lengths.float(), which
            out["weight"][site], out["bias"][site] = weight.float(), bias.float()
        return cls(**out, model=positive.model)

    @property
    def neurons(self) -> Neurons:
        """All units of the sites."""
        return ~Neurons.of({site: rows.shape[1] for site, rows in self.directions.items()}, model=self.model)

    def choice(self, states: Recording) -> dict[Site, Tensor]:
        """The cluster that the probe of each site chooses for each row, `[row]`."""
        return {site: self._logits(site, states[site]).argmax(-1) for site in self.directions}

    def accuracy(self, states: Recording, clusters: Mapping[Site, Tensor]) -> dict[Site, float]:
        """Share of the rows for which the probe chooses the given cluster, per site."""
        choice = self.choice(states)
        return {site: float((choice[site] == clusters[site].cpu()).double().mean()) for site in choice}

    def refined(
        self, states: Recording, clusters: Mapping[Site, Tensor], *, rate: float = 0.1, steps: int = 1
    ) -> ClusteredDirections:
        """The same directions with probes moved by gradient steps on the cross-entropy of these states.

        Args:
            states: one row per state.
            clusters: which cluster was best for each, `[row]` per site.
            rate: of a step.
            steps: how many.

        Raises:
            ShapeError: rows and clusters do not line up.
            RangeError: a cluster that there is not.
        """
        weights, biases = dict(self.weight), dict(self.bias)
        for site, rows in self.directions.items():
            if site not in clusters:
                raise SiteError("no clusters were given for a site", given=str(site))
            x, y = _normed(states[site].float()), clusters[site].cpu()
            if len(x) != len(y) or not len(y):
                raise ShapeError("there is one cluster per state", given=len(y), expected=len(x))
            if int(y.min()) < 0 or int(y.max()) >= len(rows):
                raise RangeError("there is no such cluster", given=int(y.max()), expected=f"0 to {len(rows) - 1}")
            one_hot = torch.nn.functional.one_hot(y, len(rows)).float()
            weight, bias = weights[site], biases[site]
            for _ in range(steps):
                error = ((x @ weight.T + bias).softmax(-1) - one_hot) / len(x)
                weight, bias = weight - rate * error.T @ x, bias - rate * error.sum(0)
            weights[site], biases[site] = weight, bias
        return replace(self, weight=weights, bias=biases)

    def _logits(self, site: Site, values: Tensor) -> Tensor:
        return _normed(values.float()) @ self.weight[site].T + self.bias[site]

    def __repr__(self) -> str:
        counts = sorted({len(rows) for rows in self.directions.values()})
        return f"ClusteredDirections: {', '.join(map(str, counts))} clusters at {len(self.directions)} sites"


@verb
def choose(
    clustered: ClusteredDirections,
    strength: Given,
    *,
    by: By = "length",
    per: Per = "sample",
    positions: Positions = "all",
) -> Edit:
    """Add to the values the direction that the probe of each site chooses.

    Args:
        clustered: directions and probes.
        strength: one number, or one per site.
        by: what it counts in: "length" as it is, "own", the length of the chosen cluster's mean contrast, or "norm",
            the length of the values at each token.
        per: "sample": the choice is made at the last token of the prompt and kept while the sample generates (in a pass
            of the model alone, the whole input is the prompt); "token": anew at each.
        positions: as in `steer.add`.

    Examples:
        >>> from torch import nn
        >>> from plexus.edit import steer
        >>> site, eye = Site("0"), torch.eye(2)
        >>> two = ClusteredDirections({site: eye}, {site: torch.ones(2)}, {site: eye}, {site: torch.zeros(2)}, {})
        >>> with steer.choose(nn.Sequential(nn.Identity()), two, 5.0, per="token") as engine:
        ...     engine.model(torch.tensor([[0.0, 1.0], [1.0, 0.0]]))
        tensor([[0., 6.],
                [6., 0.]])
    """
    if not isinstance(clustered, ClusteredDirections):
        raise DtypeError("a choice is among clustered directions", given=type(clustered).__name__)
    for kind, given, known in (("measure of strength", by, get_args(By)), ("scope of a choice", per, get_args(Per))):
        if given not in known:
            raise UnknownNameError.among(kind, str(given), known)
    amounts: dict[Site, Tensor] = {}
    for site, rows in clustered.directions.items():
        each = strength[site] if isinstance(strength, Mapping) else strength
        amount = torch.as_tensor(each, dtype=torch.float32, device=rows.device).expand(len(rows))
        amounts[site] = amount * clustered.lengths[site] if by == "own" else amount.clone()
    numbers: dict[str, Given] = {"share" if by == "norm" else "amount": amounts}
    numbers |= {"weight": clustered.weight, "bias": clustered.bias}
    name: Literal["choose per token", "choose per sample"] = (
        "choose per token" if per == "token" else "choose per sample"
    )
    return make(name, clustered.neurons, numbers, positions, clustered.directions, independent=False)


def _normed(values: Tensor) -> Tensor:
    return layer_norm(values, values.shape[-1:])
