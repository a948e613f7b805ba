"""Diagonal Fisher information: how much the loss cares about each single parameter.

    sample:  I_i = 1/n  Σ_k (∂ℓ_k / ∂θ_i)²            exact, one gradient per example
    batch:   I_i = 1/B  Σ_b (∂ mean_{k∈b} ℓ_k / ∂θ_i)²    square of the batch-mean gradient

The two differ by more than scale: within a batch gradients that agree add up and gradients that disagree cancel, so
the second depends on the size and the order of the batches.

    labels="data":      ℓ_k = -log p(y_k | x_k)                       the empirical Fisher
    labels="model":     y drawn once from p(· | x_k)                  an unbiased draw of the true Fisher
    labels="expected":  Σ_y p(y | x_k) (∂ log p(y | x_k) / ∂θ_i)²     the true Fisher, one backward pass per class

Source: Kirkpatrick et al. 2017 (importance), Kunstner et al. 2019 (empirical against true Fisher), Foster et al. 2024
(squared batch means).
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from plexus.errors import RangeError, ShapeError, UnknownNameError, UnsupportedError
from plexus.probe._sizes import announce
from plexus.probe.scores._batch import IGNORED, Batch, Forward, cross_entropy, predict
from plexus.probe.scores._importances import Importances
from plexus.units._evaluating import differentiable, evaluating

Loss = Literal["ce", "norm"] | Callable[[Any, Any], Tensor]
Mode = Literal["sample", "batch"]
Labels = Literal["data", "model", "expected"]
ParameterFilter = Callable[[str], bool] | Sequence[str] | str | None

_CHUNK_ENTRIES = 2**24


def diagonal_fisher(
    model: nn.Module,
    batches: Iterable[Any],
    loss: Loss = "ce",
    mode: Mode = "sample",
    labels: Labels = "data",
    *,
    params: ParameterFilter = None,
    forward: Forward | None = None,
    sample_dim: int = 0,
    power: Literal[1, 2] = 2,
    temperature: float = 1.0,
    chunk: int | None = None,
    generator: torch.Generator | None = None,
    dtype: torch.dtype = torch.float32,
) -> Importances:
    """Diagonal of the Fisher information, streamed over batches in eval mode; the model is left as it was.

    Args:
        model: any module. What its forward returns are the logits `[batch, …, class]` (or has `.logits`); give
            `forward` otherwise. Frozen parameters (`requires_grad=False`) are left out, tied ones counted once.
        batches: each is `(x, y)`, `x` alone where no label is needed, or a mapping of keyword arguments in the Hugging
            Face style. A causal language model without `labels` learns its own `input_ids`, shifted and masked.
        loss: `ce` (cross-entropy; per example the mean over its labelled tokens, label -100 is ignored), `norm`
            (squared norm of the output, needs no labels) or `loss(output, y) -> scalar`, a mean over its examples.
        mode: `sample` (exact squares per example) or `batch` (square of the batch-mean gradient; batches count alike).
        labels: `data`, `model` (drawn, uses `generator`) or `expected` (exact; `sample` mode, logits `[batch, class]`).
        params: which parameters: a glob, several, or a predicate on the name.
        forward: `forward(model, x) -> logits`, for models that return a state or more than one output.
        sample_dim: the dimension of `x` that counts examples (1 for time-first input).
        power: 1 averages |gradient| in place of its square, as label-free dampening does with `loss="norm"`.
        temperature: divides the logits; above 1 it revives the gradients of confidently fitted examples.
        chunk: examples per vectorised gradient (default: from the number of parameters). Where `torch.func` cannot
            follow the model, examples are taken one by one, with the same result.
        dtype: of the sums and of what is returned.

    Returns:
        Parameter name → tensor of the parameter's shape, with the number of samples and the settings beside it.

    Raises:
        RangeError: no batch, or a loss or gradient that is not finite. ShapeError: labels do not match the samples.
        UnsupportedError: no gradient reaches a parameter, or no labels where the loss needs them.

    Examples:
        >>> model = nn.Linear(3, 2)
        >>> x, y = torch.randn(8, 3), torch.tensor([0, 1] * 4)
        >>> importances = diagonal_fisher(model, [(x, y)])
        >>> importances["weight"].shape, importances.samples
        (torch.Size([2, 3]), 8)
    """
    for kind, given, known in (("mode", mode, ("sample", "batch")), ("labels", labels, ("data", "model", "expected"))):
        if given not in known:
            raise UnknownNameError.among(kind, given, known)
    if not callable(loss) and loss not in ("ce", "norm"):
        raise UnknownNameError.among("loss", loss, ("ce", "norm"))
    if labels != "data" and loss != "ce":
        raise UnsupportedError("labels from the model need the cross-entropy", given=loss, mend='use loss="ce"')
    if labels == "expected" and mode == "batch":
        raise UnsupportedError("an expectation over labels is taken per example", mend='use mode="sample"')
    if not temperature > 0:
        raise RangeError("the temperature is not positive", given=temperature)
    if chunk is not None and chunk < 1:
        raise RangeError("a chunk holds at least one example", given=chunk)

    named = select_parameters(model, params)
    away = [name for name, value in named if value.is_meta]
    if away:
        raise UnsupportedError(
            "importances need the weights in memory, and these are offloaded",
            given=f"{len(away)} of {len(named)} parameters, {away[0]} for instance",
            mend="load the model without offloading, or choose others with params=",
        )
    measure = _Measure(model, loss, forward, temperature)
    announce("importances of the parameters", dtype.itemsize * sum(value.numel() for _, value in named))
    sums = {name: torch.zeros_like(value, dtype=dtype, memory_format=torch.contiguous_format) for name, value in named}
    names, values = [name for name, _ in named], [value for _, value in named]
    examples = _PerExample(measure, dict(named), sample_dim, chunk, power, sums)
    n_samples = n_batches = 0
    unreached: set[str] = set()
    with evaluating(model), differentiable(model), torch.enable_grad():
        for raw in batches:
            batch = Batch.of(raw)
            size = batch.size(sample_dim)
            if size == 0:
                continue
            if labels == "model":
                batch = replace(batch, drawn=_draw(measure, batch, generator))
            elif labels == "expected":
                batch = replace(batch, drawn=_any_label(measure, batch))
            if mode == "batch" or n_batches == 0:
                probe = batch if mode == "batch" else batch.slice(0, 1, sample_dim)
                value = measure(probe)
                _finite(value, n_batches)
                if not value.requires_grad:
                    raise UnsupportedError("the loss does not depend on any of the chosen parameters", given=names[:5])
                gradients = torch.autograd.grad(value, values, allow_unused=True)
                if n_batches == 0:
                    unreached = {name for name, g in zip(names, gradients, strict=True) if g is None}
                if mode == "batch":
                    for name, gradient in zip(names, gradients, strict=True):
                        if gradient is not None:
                            sums[name] += gradient.to(dtype).abs() if power == 1 else gradient.to(dtype).square()
            if mode == "sample":
                if labels == "expected":
                    _expected(measure, batch, examples, size)
                else:
                    examples.add(batch, size)
            n_samples, n_batches = n_samples + size, n_batches + 1
    if n_samples == 0:
        raise RangeError("there is no example to measure importances on", given=f"{n_batches} batches")
    count = n_samples if mode == "sample" else n_batches
    for name, total in sums.items():
        total /= count
        if not bool(torch.isfinite(total).all()):
            raise RangeError(f"the gradient of {name!r} is not finite", mend="look for NaN in the inputs and weights")
    silent = sorted(name for name in unreached if not bool(sums[name].any()))
    if silent:
        raise UnsupportedError(
            "no gradient reaches some parameters",
            given=", ".join(silent[:5]) + (" …" if len(silent) > 5 else ""),
            mend="leave them out with params=, or give a loss that uses them",
        )
    about = loss if isinstance(loss, str) else getattr(loss, "__name__", type(loss).__name__)
    return Importances(sums, samples=n_samples, batches=n_batches, mode=mode, loss=about, labels=labels, power=power)


def select_parameters(model: nn.Module, params: ParameterFilter = None) -> list[tuple[str, nn.Parameter]]:
    """Trainable parameters under their names, tied ones once, those that `params` lets through."""
    named = [(name, value) for name, value in model.named_parameters() if value.requires_grad]
    if params is not None:
        if callable(params):
            keep: Callable[[str], bool] = params
        else:
            patterns = [params] if isinstance(params, str) else list(params)
            for pattern in patterns:
                if not any(fnmatch.fnmatchcase(name, pattern) for name, _ in named):
                    raise UnknownNameError.among("parameter", pattern, [name for name, _ in named])

            def keep(name: str) -> bool:
                return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)

        named = [(name, value) for name, value in named if keep(name)]
    if not named:
        raise RangeError("no parameter is left to measure", mend="check requires_grad and params=")
    return named


class _Measure(nn.Module):
    """The scalar that is differentiated, as a module, so that `functional_call` can swap the parameters."""

    def __init__(self, model: nn.Module, loss: Loss, forward: Forward | None, temperature: float) -> None:
        super().__init__()
        self.model = model
        self.loss, self.run, self.temperature = loss, forward, temperature

    def logits(self, batch: Batch) -> Tensor:
        return predict(self.model, batch, self.run)[0] / self.temperature

    def forward(self, batch: Batch) -> Tensor:
        if callable(self.loss):
            inputs: Any = {**batch.tensors, **batch.constants} if batch.keyed else batch.tensors["x"]
            if self.run is not None:
                output = self.run(self.model, inputs)
            else:
                output = self.model(**inputs) if batch.keyed else self.model(inputs)
            value = self.loss(output, batch.targets)
            if value.ndim:
                raise ShapeError("the loss is not a scalar", given=tuple(value.shape), mend="return a mean")
            return value
        logits, targets = predict(self.model, batch, self.run)
        if self.loss == "norm":
            return logits.flatten(1).square().sum(1).mean()
        targets = targets if batch.drawn is None else batch.drawn
        if targets is None:
            raise UnsupportedError(
                "the cross-entropy needs labels", mend='give (x, y) batches, labels="model" or loss="norm"'
            )
        return cross_entropy(logits / self.temperature, targets)


class _PerExample:
    """Adds the powers of single examples' gradients to running sums: vectorised, or one by one where that fails."""

    def __init__(
        self,
        measure: _Measure,
        params: dict[str, nn.Parameter],
        sample_dim: int,
        chunk: int | None,
        power: int,
        sums: dict[str, Tensor],
    ) -> None:
        self.measure, self.params, self.dim, self.power, self.sums = measure, params, sample_dim, power, sums
        entries = sum(value.numel() for value in params.values())
        self.chunk = chunk or max(1, min(256, _CHUNK_ENTRIES // entries))
        self.vectorised = self.chunk > 1
        self.examples = 0

    def add(self, batch: Batch, size: int, weights: Tensor | None = None) -> None:
        for start in range(0, size, self.chunk):
            length = min(self.chunk, size - start)
            part = batch.slice(start, length, self.dim)
            share = None if weights is None else weights.narrow(0, start, length)
            found = self._vectorised(part) if self.vectorised else None
            if found is None:
                self._one_by_one(part, length, share)
                continue
            losses, gradients = found
            _finite(losses, self.examples)
            for name, gradient in gradients.items():
                powers = gradient.to(self.sums[name].dtype)
                powers = powers.abs() if self.power == 1 else powers.square()
                if share is not None:
                    powers = powers * share.to(powers).reshape(-1, *[1] * (powers.ndim - 1))
                self.sums[name] += powers.sum(0)
            self.examples += length

    def _vectorised(self, part: Batch) -> tuple[Tensor, dict[str, Tensor]] | None:
        along = 0 if part.keyed else self.dim

        def single(params: dict[str, Tensor], tensors: dict[str, Tensor], others: dict[str, Tensor]) -> Tensor:
            one = replace(
                part,
                tensors={key: value.unsqueeze(along) for key, value in tensors.items()},
                targets=others["targets"].unsqueeze(0) if "targets" in others else None,
                drawn=others["drawn"].unsqueeze(0) if "drawn" in others else None,
            )
            value: Tensor = torch.func.functional_call(self.measure, params, (one,))
            return value

        params = {f"model.{name}": value.detach() for name, value in self.params.items()}
        others = {key: value for key, value in (("targets", part.targets), ("drawn", part.drawn)) if value is not None}
        try:
            gradients, losses = torch.func.vmap(torch.func.grad_and_value(single), in_dims=(None, along, 0))(
                params, part.tensors, others
            )
        except Exception:
            # Data-dependent branches, random operators, custom kernels: the loop gives the same numbers, or the error.
            self.vectorised = False
            return None
        return losses, {name.removeprefix("model."): gradient for name, gradient in gradients.items()}

    def _one_by_one(self, part: Batch, length: int, weights: Tensor | None) -> None:
        names, values = list(self.params), list(self.params.values())
        for index in range(length):
            loss = self.measure(part.slice(index, 1, self.dim))
            _finite(loss, self.examples)
            gradients = torch.autograd.grad(loss, values, allow_unused=True)
            for name, gradient in zip(names, gradients, strict=True):
                if gradient is not None:
                    powers = gradient.to(self.sums[name].dtype)
                    powers = powers.abs() if self.power == 1 else powers.square()
                    self.sums[name] += powers if weights is None else powers * float(weights[index])
            self.examples += 1


def _draw(measure: _Measure, batch: Batch, generator: torch.Generator | None) -> Tensor:
    with torch.no_grad():
        logits = measure.logits(batch)
    weights = logits.float().softmax(-1).reshape(-1, logits.shape[-1])
    if generator is not None:  # drawn where the generator is: equal labels wherever the model lies
        weights = weights.to(generator.device)
    drawn = torch.multinomial(weights, 1, generator=generator).reshape(logits.shape[:-1]).to(logits.device)
    with torch.no_grad():
        targets = predict(measure.model, batch, measure.run)[1]
    return drawn if targets is None or targets.shape != drawn.shape else drawn.masked_fill(targets == IGNORED, IGNORED)


def _any_label(measure: _Measure, batch: Batch) -> Tensor:
    with torch.no_grad():
        return measure.logits(batch).argmax(-1)


def _expected(measure: _Measure, batch: Batch, examples: _PerExample, size: int) -> None:
    with torch.no_grad():
        logits = measure.logits(batch)
    if logits.ndim != 2:
        raise UnsupportedError(
            "the exact expectation over labels needs logits [batch, class]",
            given=tuple(logits.shape),
            mend='draw the labels with labels="model"',
        )
    weights = logits.softmax(-1)
    for label in range(logits.shape[1]):
        drawn = torch.full((size,), label, dtype=torch.int64, device=logits.device)
        examples.add(replace(batch, drawn=drawn), size, weights[:, label])


def _finite(loss: Tensor, position: int) -> None:
    if not bool(torch.isfinite(loss).all()):
        raise RangeError(
            "the loss is not finite",
            given=f"near batch or example {position}",
            mend="look for NaN in inputs and weights",
        )
