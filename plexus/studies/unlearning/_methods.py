"""What an arm does to a network, and what is measured of it then."""

from __future__ import annotations

import copy
import warnings

import torch
from torch import nn

from plexus.learn import unlearning as un
from plexus.studies.unlearning._requests import Request, batches
from plexus.studies.unlearning._settings import Config


def forget(config: Config, request: Request, model: nn.Module, seed: int) -> dict[str, float]:
    """Apply the arm's method to the model, in place; returns what it tells of itself."""
    generator = torch.Generator().manual_seed(seed)
    away, kept = (batches(config, part, generator) for part in (request.away, request.kept))
    lr, epochs = config.method_lr, config.method_epochs
    match config.method:
        case "original" | "retrained":
            pass
        case "fine-tune":
            un.fine_tune(model, away, kept, epochs=epochs, lr=lr)
        case "ascent" | "ascent-pass":
            un.gradient_ascent(model, away, epochs=epochs, lr=lr)
        case "ascent-descent":
            un.gradient_ascent(model, away, kept, epochs=epochs, lr=lr)
        case "relabel":
            un.relabel(model, away, kept, epochs=epochs, lr=lr, generator=generator)
        case "bad-teacher":
            un.bad_teacher(model, away, kept, epochs=epochs, lr=lr, seed=seed)
        case "noise":
            un.noise_impair(model, away, kept, lr=lr, repair_lr=config.lr, generator=generator)
        case _:
            report = dampen(config, request, model, generator)[1]
            return {"dampened": 100 * report.fraction, "alpha": report.alpha}
    return {}


def dampen(
    config: Config, request: Request, model: nn.Module, generator: torch.Generator
) -> tuple[un.SelectiveSynapticDampening, un.DampeningReport]:
    """Dampen by importance, or as much of it at random."""
    reference = request.known.importances[config.mode]
    if config.method == "shuffled":
        reference = un.shuffled(reference, generator=generator)
    chosen = request.kept[torch.randperm(len(request.kept), generator=generator)[:128]]
    ssd = un.SelectiveSynapticDampening(config.alpha, config.lam, config.auto, tolerance=config.tolerance)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "nothing was selected")
        report = ssd.fit(reference).forget(
            model,
            batches(config, request.away, generator),
            probe=[(chosen.x, chosen.y)] if config.auto == "budget" else None,
        )
    if config.method.startswith("random"):
        ssd.undo()
        un.random_dampening(
            model, report, within="layer" if config.method == "random-layer" else "model", generator=generator
        )
    return ssd, report


def undone(config: Config, request: Request, seed: int) -> tuple[int, int]:
    """Weights that differ in any bit from the original after dampening, and after taking it back."""
    model = copy.deepcopy(request.known.model)
    ssd, _ = dampen(config, request, model, torch.Generator().manual_seed(seed))
    changed = differing(model, request.known.model)
    ssd.undo()
    return changed, differing(model, request.known.model)


def differing(one: nn.Module, other: nn.Module) -> int:
    """The number of weights that differ in any bit."""
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return sum(int((p.view(torch.int32) != q.view(torch.int32)).sum()) for p, q in pairs)


def measure(config: Config, request: Request, model: nn.Module) -> dict[str, float]:
    """Accuracies in per cent, the gap to the retrained network in points, and what an attacker sees."""
    away, kept, asked, unseen = (
        [(part.x, part.y)] for part in (request.away, request.kept, request.asked, request.unseen)
    )
    forgotten, retain, *oracle = (
        100 * un.accuracy(net, part) for net in (model, request.retrained) for part in (asked, unseen)
    )
    found = {"forget": forgotten, "retain": retain, "gap": abs(forgotten - oracle[0]) + abs(retain - oracle[1])}
    if not config.tuning:
        found["loss"], found["retain_loss"] = un.mean_loss(model, asked), un.mean_loss(model, unseen)
        found["membership"] = 100 * un.membership_rate(model, kept, unseen, away)
        found["distance"] = 100 * un.prediction_distance(model, request.retrained, away).tv
        found["relearn"] = float(
            un.relearn_steps(model, batches(config, request.away), lr=1e-3, limit=config.relearn_limit)
        )
        if len(request.shadows) > 1:
            found["lira"] = 100 * un.likelihood_ratio_auc(model, request.shadows, away, unseen)
    return found
