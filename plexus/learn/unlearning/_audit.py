"""Has it really been forgotten? Attacks on membership, distance to a model that never saw the data, time to relearn.

    entropy attack   H_k = -Σ_y p(y|x_k) ln p(y|x_k);  a logistic rule separates members from non-members by H, and the
                     rate is the share of the forget set that it calls members
    likelihood ratio φ_k = ln p(y_k|x_k) - ln (1 - p(y_k|x_k));  reference models that never saw x_k give N(μ_k, σ_k);
                     score  Φ((φ_k - μ_k) / σ_k), near 1 for what the model still knows too well
    distance         mean KL, total variation and agreement of two models' predictions
    forgetting score ZRF = 1 - mean JS(model, incompetent model)

Source: Foster et al. 2024 and Chundawat et al. 2023 (entropy attack, ZRF); Carlini et al. 2022 (offline ratio).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from plexus.errors import RangeError, ShapeError, require
from plexus.learn.unlearning._batches import accuracy, outputs, reusable
from plexus.learn.unlearning._train import descend
from plexus.probe.scores._batch import Forward


def prediction_entropy(model: nn.Module, batches: Iterable[Any], forward: Forward | None = None) -> Tensor:
    """Entropy of the predicted distribution of every labelled position, in nats, `[row]`."""
    logits, _ = outputs(model, batches, forward)
    log_p = logits.log_softmax(-1)
    return -(log_p.exp() * log_p).sum(-1)


def membership_rate(
    model: nn.Module,
    members: Iterable[Any],
    outsiders: Iterable[Any],
    forget: Iterable[Any],
    forward: Forward | None = None,
) -> float:
    """Share of the forget set that an attacker who sees only entropies calls training data, in [0, 1].

    The attacker fits a class-balanced logistic regression on retained samples (members) and unseen ones (outsiders).
    Needs scikit-learn (extra `lab`).

    Examples:
        >>> sure, unsure = 9 * torch.eye(2), torch.zeros(2, 2)
        >>> y = torch.tensor([0, 1])
        >>> membership_rate(nn.Identity(), [(sure, y)], [(unsure, y)], [(sure, y)])
        1.0
    """
    linear = require("sklearn.linear_model", "lab", purpose="the membership attack")
    known, unknown, asked = (prediction_entropy(model, part, forward) for part in (members, outsiders, forget))
    features = torch.cat([known, unknown]).cpu().numpy().reshape(-1, 1)
    labels = [1] * len(known) + [0] * len(unknown)
    attacker = linear.LogisticRegression(class_weight="balanced").fit(features, labels)
    return float(attacker.predict(asked.cpu().numpy().reshape(-1, 1)).mean())


def confidence(model: nn.Module, batches: Iterable[Any], forward: Forward | None = None) -> Tensor:
    """ln p - ln (1 - p) of the labelled class, `[row]`, computed without cancellation."""
    logits, targets = outputs(model, batches, forward)
    logits = logits.double()
    right = logits.gather(1, targets[:, None]).squeeze(1)
    others = logits.scatter(1, targets[:, None], -math.inf).logsumexp(1)
    difference: Tensor = right - others
    return difference


def likelihood_ratio(observed: Tensor, references: Tensor) -> Tensor:
    """Offline likelihood-ratio score of each sample, in [0, 1]: about 1/2 for a sample never seen, near 1 for a member.

    Args:
        observed: `confidence` of the model under audit, `[sample]`.
        references: `confidence` of at least two models trained without these samples, `[model, sample]`. The spread is
            shared by all samples, so that a few models are enough.

    Examples:
        >>> likelihood_ratio(torch.tensor([0.0, 50.0]), torch.tensor([[-1.0, 1.0], [1.0, -1.0]])).tolist()
        [0.5, 1.0]
    """
    if references.ndim != 2 or references.shape[1:] != observed.shape:
        raise ShapeError(
            "reference confidences do not match", given=tuple(references.shape), expected=f"[model, {len(observed)}]"
        )
    if len(references) < 2:
        raise RangeError("a spread needs at least two reference models", given=len(references))
    spread = references.var(0, unbiased=True).mean().sqrt().clamp(min=1e-12)
    score: Tensor = torch.special.ndtr((observed - references.mean(0)) / spread)
    return score


def auc(positive: Tensor, negative: Tensor) -> float:
    """Chance that a positive score exceeds a negative one, ties counted half.

    Examples:
        >>> auc(torch.tensor([2.0, 3.0]), torch.tensor([1.0, 2.0]))
        0.875
    """
    if not len(positive) or not len(negative):
        raise RangeError("an AUC needs scores of both kinds", given=(len(positive), len(negative)))
    difference = positive[:, None] - negative[None, :]
    return float((difference > 0).double().mean() + 0.5 * (difference == 0).double().mean())


def likelihood_ratio_auc(
    model: nn.Module,
    references: Iterable[nn.Module],
    members: Iterable[Any],
    outsiders: Iterable[Any],
    forward: Forward | None = None,
) -> float:
    """How well `likelihood_ratio` tells members from outsiders, as an area under the curve: 1/2 tells nothing.

    Args:
        model: the model under audit.
        references: at least two models that saw neither part.
        members: batches that the model was trained on (or that it was made to forget).
        outsiders: batches that it was not.

    Examples:
        >>> blind = [nn.Linear(2, 2) for _ in range(2)]
        >>> x, y = 9 * torch.eye(2), torch.tensor([0, 1])
        >>> likelihood_ratio_auc(nn.Identity(), blind, [(x, y)], [(-x, y)])
        1.0
    """
    models = list(references)
    scores = []
    for part in (reusable(members, "member"), reusable(outsiders, "outsider")):
        blind = torch.stack([confidence(one, part, forward) for one in models]) if models else torch.empty(0, 0)
        scores.append(likelihood_ratio(confidence(model, part, forward), blind))
    return auc(*scores)


@dataclass(frozen=True)
class Distance:
    """How far two models' predictions lie apart.

    Attributes:
        kl: mean KL divergence from the reference to the model, in nats.
        tv: mean total variation distance, in [0, 1].
        js: mean Jensen-Shannon divergence, in nats.
        agreement: share of equal arg-max.
    """

    kl: float
    tv: float
    js: float
    agreement: float


def prediction_distance(
    model: nn.Module, reference: nn.Module, batches: Iterable[Any], forward: Forward | None = None
) -> Distance:
    """Distance of a model's predictions to those of a reference (a retrained model, say).

    Examples:
        >>> model = nn.Linear(2, 3)
        >>> prediction_distance(model, model, [(torch.randn(4, 2), torch.zeros(4, dtype=torch.long))]).agreement
        1.0
    """
    again = reusable(batches, "test")
    log_q, log_p = (outputs(one, again, forward)[0].log_softmax(-1) for one in (model, reference))
    q, p = log_q.exp(), log_p.exp()
    log_m = torch.logaddexp(log_p, log_q) - math.log(2)
    js = 0.5 * (p * (log_p - log_m) + q * (log_q - log_m)).sum(-1)
    return Distance(
        kl=float((p * (log_p - log_q)).sum(-1).mean()),
        tv=float(0.5 * (p - q).abs().sum(-1).mean()),
        js=float(js.mean()),
        agreement=float((q.argmax(-1) == p.argmax(-1)).float().mean()),
    )


def zero_retrain_forgetting(
    model: nn.Module, incompetent: nn.Module, forget: Iterable[Any], forward: Forward | None = None
) -> float:
    """ZRF: 1 - mean Jensen-Shannon divergence to a model that knows nothing; 1 means it behaves as at random."""
    return 1.0 - prediction_distance(model, incompetent, forget, forward).js


def relearn_steps(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    target: float = 0.9,
    lr: float = 1e-3,
    limit: int = 100,
    forward: Forward | None = None,
) -> int:
    """Optimiser steps (Adam) on the forgotten batches until a copy of the model reaches the target accuracy on them.

    `limit + 1` when it does not. The model itself is not changed.
    """
    if not 0 < target <= 1:
        raise RangeError("the target accuracy is not a share", given=target, expected="(0, 1]")
    again = reusable(batches, "forget")
    student = copy.deepcopy(model)
    optimizer = torch.optim.Adam([p for p in student.parameters() if p.requires_grad], lr=lr)
    for step in range(limit + 1):
        if accuracy(student, again, forward) >= target:
            return step
        descend(student, [list(again)[step % len(list(again))]], optimizer=optimizer, forward=forward)
    return limit + 1


@dataclass(frozen=True)
class Audit:
    """What remains of the forget set in a model. `print(audit)` shows it.

    Attributes:
        forget, retain: accuracy on both, in [0, 1].
        membership: `membership_rate`.
        distance: to the retrained model on the forget set, where one was given.
        relearn: steps to relearn.
    """

    forget: float
    retain: float
    membership: float
    relearn: int
    distance: Distance | None = None

    def __str__(self) -> str:
        lines = [
            f"accuracy     forget {100 * self.forget:.1f} %, retain {100 * self.retain:.1f} %",
            f"membership   {100 * self.membership:.1f} % of the forget set taken for training data",
            f"relearning   {self.relearn} steps",
        ]
        if self.distance is not None:
            lines.append(f"to retrained TV {self.distance.tv:.3f}, agreement {100 * self.distance.agreement:.1f} %")
        return "\n".join(lines)


def audit(
    model: nn.Module,
    *,
    forget: Iterable[Any],
    retain: Iterable[Any],
    test: Iterable[Any],
    retrained: nn.Module | None = None,
    target: float = 0.9,
    lr: float = 1e-3,
    forward: Forward | None = None,
) -> Audit:
    """All measures at once.

    Args:
        forget, retain: batches of the samples that were forgotten, and of training samples that were kept.
        test: batches that no model has seen.
        retrained: a model trained without the forget set.
        target, lr: of `relearn_steps`.
    """
    parts: Sequence[Any] = [reusable(forget, "forget"), reusable(retain, "retain"), reusable(test, "test")]
    forgotten, kept, unseen = parts
    return Audit(
        forget=accuracy(model, forgotten, forward),
        retain=accuracy(model, kept, forward),
        membership=membership_rate(model, kept, unseen, forgotten, forward),
        relearn=relearn_steps(model, forgotten, target=target, lr=lr, forward=forward),
        distance=None if retrained is None else prediction_distance(model, retrained, forgotten, forward),
    )
