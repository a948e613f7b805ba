"""What dampening must beat: other ways to forget, each of the form `method(model, forget, retain, …)`, in place.

    retrain           start over on the retained data: the oracle
    fine_tune         go on training on the retained data
    gradient_ascent   climb the loss of the forget set
    relabel           train on the forget set with random wrong labels, among retained batches (amnesiac unlearning)
    bad_teacher       imitate a random network on the forget set and the original on the retained data
    noise_impair      UNSIR: learn noise that maximises the loss of the forgotten classes, train on it, then repair
    random_dampening  as many dampened entries with the same factors, at random places: the null

Source: Graves et al. 2021 (amnesiac); Chundawat et al. 2023 (bad teacher); Tarun et al. 2023 (UNSIR).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from itertools import cycle
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plexus.errors import RangeError, UnknownNameError, UnsupportedError
from plexus.learn.unlearning._batches import reusable
from plexus.learn.unlearning._dampening import DampeningReport, restore
from plexus.learn.unlearning._train import Objective, descend
from plexus.probe.scores._batch import IGNORED, Batch, Forward, cross_entropy, predict
from plexus.units._evaluating import evaluating


def _optimizer(model: nn.Module, lr: float) -> torch.optim.Optimizer:
    if not lr > 0:
        raise RangeError("the learning rate is not positive", given=lr)
    return torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=lr)


def reinitialise(model: nn.Module, *, seed: int) -> nn.Module:
    """Give every module its initial parameters and buffers again, in place, drawn with this seed.

    Raises:
        UnsupportedError: a module owns parameters and has no `reset_parameters`.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for name, module in model.named_modules():
            reset = getattr(module, "reset_parameters", None)
            if callable(reset):
                reset()
            elif next(module.parameters(recurse=False), None) is not None:
                raise UnsupportedError(
                    f"cannot tell how {name or 'the model'} is initialised",
                    given=type(module).__name__,
                    mend="give it reset_parameters(), or pass a new model",
                )
    return model


def retrain(
    model: nn.Module,
    forget: Iterable[Any] | None,
    retain: Iterable[Any],
    *,
    epochs: int,
    lr: float = 1e-3,
    seed: int = 0,
    forward: Forward | None = None,
) -> nn.Module:
    """Forget everything, learn the retained data anew. The forget set is not used."""
    reinitialise(model, seed=seed)
    return descend(model, reusable(retain, "retain"), optimizer=_optimizer(model, lr), epochs=epochs, forward=forward)


def fine_tune(
    model: nn.Module,
    forget: Iterable[Any] | None,
    retain: Iterable[Any],
    *,
    epochs: int = 1,
    lr: float = 1e-3,
    forward: Forward | None = None,
) -> nn.Module:
    """Go on training on the retained data. The forget set is not used.

    Examples:
        >>> model, batch = nn.Linear(2, 2), (torch.randn(4, 2), torch.tensor([0, 1, 0, 1]))
        >>> fine_tune(model, None, [batch], epochs=2) is model
        True
    """
    return descend(model, reusable(retain, "retain"), optimizer=_optimizer(model, lr), epochs=epochs, forward=forward)


def gradient_ascent(
    model: nn.Module,
    forget: Iterable[Any],
    retain: Iterable[Any] | None = None,
    *,
    epochs: int = 1,
    lr: float = 1e-4,
    clip: float | None = 1.0,
    forward: Forward | None = None,
) -> nn.Module:
    """Climb the loss of the forget set. Retained batches, where given, are descended in turn with it."""

    def ascend(model: nn.Module, batch: Batch) -> Tensor:
        return -_supervised(model, batch, forward)

    optimizer = _optimizer(model, lr)
    away = reusable(forget, "forget")
    if retain is None:
        return descend(model, away, optimizer=optimizer, epochs=epochs, objective=ascend, clip=clip)
    kept = cycle_of(reusable(retain, "retain"))
    for _ in range(epochs):
        for batch in away:
            descend(model, [batch], optimizer=optimizer, objective=ascend, clip=clip)
            descend(model, [next(kept)], optimizer=optimizer, forward=forward, clip=clip)
    return model


def relabel(
    model: nn.Module,
    forget: Iterable[Any],
    retain: Iterable[Any],
    *,
    epochs: int = 1,
    lr: float = 1e-3,
    generator: torch.Generator | None = None,
    forward: Forward | None = None,
) -> nn.Module:
    """Train on the forget set under random other labels, its batches spread evenly among the retained ones."""

    def wrong(model: nn.Module, batch: Batch) -> Tensor:
        logits, targets = predict(model, batch, forward)
        if targets is None:
            raise UnsupportedError("these batches carry no labels")
        classes = logits.shape[-1]
        drawn = None if generator is None else generator.device
        shift = torch.randint(1, classes, targets.shape, generator=generator, device=drawn).to(targets.device)
        other = (targets.clamp(min=0) + shift) % classes
        return cross_entropy(logits, other.masked_fill(targets == IGNORED, IGNORED))

    return _interleaved(model, forget, retain, epochs=epochs, lr=lr, on_forget=wrong, on_retain=None, forward=forward)


def bad_teacher(
    model: nn.Module,
    forget: Iterable[Any],
    retain: Iterable[Any],
    *,
    epochs: int = 1,
    lr: float = 1e-3,
    temperature: float = 1.0,
    seed: int = 0,
    forward: Forward | None = None,
) -> nn.Module:
    """Imitate a freshly initialised network on the forget set, and the original network on the retained data."""
    competent = copy.deepcopy(model)
    incompetent = reinitialise(copy.deepcopy(model), seed=seed)

    def imitate(teacher: nn.Module) -> Objective:
        def objective(model: nn.Module, batch: Batch) -> Tensor:
            with torch.no_grad(), evaluating(teacher):
                wanted = predict(teacher, batch, forward)[0] / temperature
            found = predict(model, batch, forward)[0] / temperature
            return F.kl_div(
                found.log_softmax(-1).flatten(0, -2),
                wanted.log_softmax(-1).flatten(0, -2),
                log_target=True,
                reduction="batchmean",
            )

        return objective

    return _interleaved(
        model,
        forget,
        retain,
        epochs=epochs,
        lr=lr,
        on_forget=imitate(incompetent),
        on_retain=imitate(competent),
        forward=forward,
    )


def noise_impair(
    model: nn.Module,
    forget: Iterable[Any],
    retain: Iterable[Any],
    *,
    lr: float = 1e-2,
    repair_lr: float = 1e-3,
    noise_steps: int = 20,
    noise_lr: float = 0.1,
    penalty: float = 0.1,
    generator: torch.Generator | None = None,
    forward: Forward | None = None,
) -> nn.Module:
    """UNSIR: noise in place of the forget samples, tuned to maximise their loss; one pass on it and the retained data
    (impair), one pass on the retained data alone (repair). Inputs must be of floating point."""
    noisy = []
    for raw in reusable(forget, "forget"):
        batch = Batch.of(raw)
        if batch.keyed or batch.targets is None or not batch.tensors["x"].is_floating_point():
            raise UnsupportedError("noise stands in for (x, y) batches with inputs of floating point")
        x = batch.tensors["x"]
        drawn = None if generator is None else generator.device
        noise = torch.randn(x.shape, generator=generator, device=drawn).to(x).requires_grad_()
        climb = torch.optim.Adam([noise], lr=noise_lr)
        with evaluating(model):
            for _ in range(noise_steps):
                shown = Batch({"x": noise}, {}, batch.targets, False)
                loss = penalty * noise.square().mean() - _supervised(model, shown, forward)
                (noise.grad,) = torch.autograd.grad(loss, [noise])
                climb.step()
        noisy.append((noise.detach(), batch.targets))
    _interleaved(model, noisy, retain, epochs=1, lr=lr, on_forget=None, on_retain=None, forward=forward)
    return fine_tune(model, None, retain, epochs=1, lr=repair_lr, forward=forward)


def random_dampening(
    model: nn.Module,
    report: DampeningReport,
    *,
    within: Literal["layer", "model"] = "layer",
    generator: torch.Generator | None = None,
) -> Callable[[], None]:
    """Dampen as many entries as a report names, with the same factors, at random places; returns what takes it back.

    Args:
        within: `layer` keeps each parameter's count and factors; `model` draws the places from all of its parameters.

    Examples:
        >>> from plexus.learn.unlearning import DampeningReport
        >>> model = nn.Linear(10, 10)
        >>> before = model.weight.clone()
        >>> report = DampeningReport(1.0, 1.0, {"weight": 7}, {"weight": 100}, {"weight": torch.zeros(7)})
        >>> undo = random_dampening(model, report)
        >>> int((model.weight == 0).sum())
        7
        >>> undo()
        >>> bool((model.weight == before).all())
        True
    """
    if within not in ("layer", "model"):
        raise UnknownNameError.among("place for random dampening", within, ("layer", "model"))
    named = dict(model.named_parameters())
    for name in report.total:
        if name not in named:
            raise UnknownNameError.among("parameter", name, named)
    if within == "layer":
        factors = {
            name: _scattered(beta, report.total[name], generator) for name, beta in report.betas.items() if beta.numel()
        }
    else:
        betas = torch.cat([beta.cpu() for beta in report.betas.values()])
        everything = _scattered(betas, sum(report.total.values()), generator)
        factors = dict(zip(report.total, everything.split(list(report.total.values())), strict=True))
    log = []
    with torch.no_grad():
        for name, factor in factors.items():
            parameter = named[name]
            scale = factor.reshape(parameter.shape).to(parameter.device)
            mask = ~torch.isnan(scale)
            values = parameter[mask].clone()
            log.append((parameter, mask, values))
            parameter[mask] = (values * scale[mask]).to(values.dtype)
    return lambda: restore(log)


def shuffled(importances: dict[str, Tensor], *, generator: torch.Generator | None = None) -> dict[str, Tensor]:
    """The same importances at random places within each parameter: an ablation of where they lie."""
    mixed = {
        name: value.flatten()[torch.randperm(value.numel(), generator=generator).to(value.device)].view_as(value)
        for name, value in importances.items()
    }
    result = copy.copy(importances)
    result.update(mixed)
    return result


def cycle_of(batches: Iterable[Any]) -> Iterator[Any]:
    """Batches without end; a new pass shuffles anew where the batches do."""
    for source in cycle([batches]):
        yield from source


def _supervised(model: nn.Module, batch: Batch, forward: Forward | None) -> Tensor:
    logits, targets = predict(model, batch, forward)
    if targets is None:
        raise UnsupportedError("these batches carry no labels")
    return cross_entropy(logits, targets)


def _scattered(betas: Tensor, total: int, generator: torch.Generator | None) -> Tensor:
    """`[total]`: the factors at random places, NaN elsewhere."""
    if betas.numel() > total:
        raise RangeError("more dampened entries than there are", given=betas.numel(), expected=total)
    drawn = None if generator is None else generator.device
    places = torch.randperm(total, generator=generator, device=drawn).cpu()[: betas.numel()]
    factor = torch.full((total,), torch.nan)
    factor[places] = betas.flatten().float().cpu()
    return factor


def _interleaved(
    model: nn.Module,
    forget: Iterable[Any],
    retain: Iterable[Any],
    *,
    epochs: int,
    lr: float,
    on_forget: Objective | None,
    on_retain: Objective | None,
    forward: Forward | None,
) -> nn.Module:
    """Epochs over both sets, the forget batches spread evenly among the retained ones."""
    optimizer = _optimizer(model, lr)
    away, kept = reusable(forget, "forget"), reusable(retain, "retain")
    for _ in range(epochs):
        ours, theirs = list(away), list(kept)
        due = [(index + 0.5) / len(ours) for index in range(len(ours))]
        position = 0
        for index, batch in enumerate(theirs):
            descend(model, [batch], optimizer=optimizer, objective=on_retain, forward=forward)
            while position < len(ours) and (due[position] <= (index + 1) / len(theirs) or index + 1 == len(theirs)):
                descend(model, [ours[position]], optimizer=optimizer, objective=on_forget, forward=forward)
                position += 1
    return model
