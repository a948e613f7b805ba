"""Finding the units of each language, silencing them, and what every language loses."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from plexus import edit, probe
from plexus.data._padding import padded
from plexus.explain import effect_matrix
from plexus.probe import scores
from plexus.probe.scores import ConditionUnits
from plexus.units import Neurons, Recording, Scores, Site, Table, fingerprint, sites

GATES = "*.mlp.act_fn"
"""The activated gates of a gated MLP: after SiLU, before the product with what passes them."""


@dataclass(frozen=True, eq=False)
class Bench:
    """A language model and its data, by language.

    Attributes:
        model: a causal language model whose MLPs are gated.
        tokenizer: its own, padding on the left.
        prompts: questions, or beginnings of texts, that the model goes on with.
        validation: texts on which rivals may look at losses.
        tests: texts whose loss is measured.
        sentences: texts of another kind, whose loss is measured beside; none where left out.
        begun: beginnings of such texts, that the model goes on with.
        mute: words that the model does not say when its own words are counted.
    """

    model: Any
    tokenizer: Any
    prompts: Mapping[str, Sequence[str]]
    validation: Mapping[str, Sequence[str]]
    tests: Mapping[str, Sequence[str]]
    sentences: Mapping[str, Sequence[str]] = field(default_factory=dict)
    begun: Mapping[str, Sequence[str]] = field(default_factory=dict)
    mute: tuple[str, ...] = ()

    @property
    def languages(self) -> tuple[str, ...]:
        """Names."""
        return tuple(self.prompts)


@dataclass(frozen=True, eq=False)
class Answers:
    """What a model said after its prompts, as tokens.

    Attributes:
        batches: one per language, `input_ids` and `attention_mask` and `position_ids`, `[sample, token]`.
        prompt: tokens of each sample's prompt, over all languages in order, `[sample]`.
        labels: language of each sample, `[sample]`.
        whole: count the words of the prompt, too.
    """

    batches: list[dict[str, Tensor]]
    prompt: Tensor
    labels: Tensor
    whole: bool = False

    def said(self, table: Table) -> Tensor:
        """Which rows of a recording count: words that the model said itself, or all words."""
        return table.position >= (1 if self.whole else self.prompt[table.sample])  # a text begins by a mark


def answers(
    bench: Bench, new: int, seed: int, *, prompts: Mapping[str, Sequence[str]] | None = None, whole: bool = False
) -> Answers:
    """The model's own continuations of its prompts, drawn from its distribution, as long in every language."""
    batches, prompt, labels = [], [], []
    special = [bench.tokenizer.pad_token_id, bench.tokenizer.eos_token_id, bench.tokenizer.unk_token_id]
    special += bench.tokenizer.convert_tokens_to_ids(list(bench.mute))
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        for number, language in enumerate(bench.languages):
            given = bench.tokenizer(list((prompts or bench.prompts)[language]), padding=True, return_tensors="pt")
            with torch.no_grad():
                went = bench.model.generate(
                    **given, max_new_tokens=new, min_new_tokens=new, do_sample=True, top_k=0, suppress_tokens=special
                )
            mask = torch.cat([given["attention_mask"], torch.ones(len(went), new, dtype=torch.int64)], 1)
            places = (mask.cumsum(1) - 1).clamp(min=0)
            batches.append({"input_ids": went, "attention_mask": mask, "position_ids": places})
            prompt.append(given["attention_mask"].sum(1))
            labels.append(torch.full((len(went),), number))
    return Answers(batches, torch.cat(prompt), torch.cat(labels), whole)


def probabilities(bench: Bench, spoken: Answers) -> Scores:
    """How often each gate is open in the words that count, by language."""
    stream = probe.stream(bench.model, spoken.batches, sites(bench.model, GATES))
    counts = scores.count_activations(stream, spoken.labels, names=bench.languages, tokens=spoken.said)
    return counts.probability


def recorded(bench: Bench, spoken: Answers) -> tuple[Recording, Tensor]:
    """Gates in the words that count, a sample per word, and the language of each."""
    whole = probe.record(bench.model, spoken.batches, sites(bench.model, GATES), labels=spoken.labels)
    values, language = {}, torch.zeros(0)
    for site in whole.sites:
        keep = spoken.said(whole.table[site])
        values[site] = whole[site][keep]
        language = spoken.labels[whole.table[site].sample[keep]]
    rows = Table(range(len(language)))
    return Recording(values, dict.fromkeys(values, rows), labels=language, model=whole.model), language


def in_order(units: ConditionUnits, probability: Scores, *, alone: bool = False) -> Scores:
    """For each language its units first: those that serve it (it alone) by their score, then the others."""
    uneven = scores.condition_entropy(probability, units.magnitude)
    most = max(float(value.abs().max()) for value in uneven.values.values())
    values = {}
    for site, serves in units.serves.items():
        mine = serves & (serves.sum(0) == 1) if alone else serves
        values[site] = mine.double() * 3 * (1 + most) - uneven[site]
    return Scores(values, units.conditions, "entropy among what serves", probability.model)


def rivals() -> dict[str, Callable[[Bench, Answers, Scores], Scores]]:
    """Other ways to order units for each language, by name."""
    return {"difference": _difference, "precision": _precision, "taylor": _taylor}


def _difference(bench: Bench, spoken: Answers, probability: Scores) -> Scores:
    record, language = recorded(bench, spoken)
    means = scores.mean(record, language, names=bench.languages)
    rest = {
        site: (value.sum(0, keepdim=True) - value) / (len(value) - 1) for site, value in means.values.items()
    }  # every other language counts alike
    values = {site: value - rest[site] for site, value in means.values.items()}
    return Scores(values, means.concepts, "difference of means", means.model)


def _precision(bench: Bench, spoken: Answers, probability: Scores) -> Scores:
    record, language = recorded(bench, spoken)
    return scores.average_precision(record, language, names=bench.languages)


def _taylor(bench: Bench, spoken: Answers, probability: Scores) -> Scores:
    """How much the loss of a language would rise without a unit, to first order, above that of the others."""
    batches = [dict(_tokens(bench, bench.validation[language])) for language in bench.languages]
    labels = torch.cat([torch.full((len(batch["input_ids"]),), k) for k, batch in enumerate(batches)])
    gates = sites(bench.model, GATES)

    def total(output: Any, batch: Mapping[str, Tensor]) -> Tensor:
        logits, tokens, mask = output.logits[:, :-1].float(), batch["input_ids"][:, 1:], batch["attention_mask"]
        each = torch.nn.functional.cross_entropy(logits.transpose(1, 2), tokens, reduction="none")
        return (each * (mask[:, 1:] * mask[:, :-1])).sum()

    rise = scores.gradient_times_activation(
        probe.stream(bench.model, batches, gates),
        probe.stream(bench.model, batches, gates, grad=total),
        labels,
        names=bench.languages,
    ).map(torch.neg)
    values = {
        site: torch.stack([v[k] - torch.cat([v[:k], v[k + 1 :]]).amax(0) for k in range(len(v))])
        for site, v in rise.values.items()
    }
    return Scores(values, rise.concepts, "first-order rise of the own loss", rise.model)


def first(ordered: Scores, counts: Mapping[str, int]) -> dict[str, Neurons]:
    """As many first units of each language as are asked for; languages without any are left out."""
    return {name: ordered[name].top(count) for name, count in counts.items() if count}


def silenced(bench: Bench, units: Mapping[str, Neurons]) -> Tensor:
    """What every language loses, in nats per token of unseen texts, without the units of each, `[row, column]`.

    Columns are the languages by their tests and, where there are any, again by their sentences; rows are the languages
    that have units.
    """
    loss, groups, columns = _reading(bench)
    before, changes = loss(bench.model)["loss"], []
    for chosen in units.values():
        with edit.scale(chosen, 0.0).on(bench.model):
            change = loss(bench.model)["loss"] - before
        changes.append(torch.stack([change[groups == k].mean() for k in range(len(columns))]))
    return torch.stack(changes)


def silenced_at_random(bench: Bench, units: Mapping[str, Neurons], draws: int, seed: int) -> Tensor:
    """The same without as many units of the same layers, a mean over draws, `[row, column]`."""
    loss, groups, columns = _reading(bench)
    cuts = {language: edit.scale(chosen, 0.0) for language, chosen in units.items()}
    matrix = effect_matrix(bench.model, cuts, loss, groups, columns, n_random=draws, seed=seed, progress=False)
    return matrix["loss"].random


def _reading(bench: Bench) -> tuple[Callable[[Any], dict[str, Tensor]], Tensor, list[str]]:
    """The loss of every token of the tests and sentences, the column of each token, and names of the columns."""
    columns = [(name, bench.tests[name]) for name in bench.languages]
    columns += [(f"{name} sentences", bench.sentences[name]) for name in bench.languages if bench.sentences]
    whole = bench.tokenizer([text for _, texts in columns for text in texts]).input_ids
    tokens = padded(whole, side="right")["input_ids"]
    lengths = torch.tensor([len(ids) - 1 for ids in whole])
    said = torch.arange(tokens.shape[1] - 1) < lengths[:, None]
    number = torch.tensor([k for k, (_, texts) in enumerate(columns) for _ in texts])

    def loss(model: Any) -> dict[str, Tensor]:
        with torch.no_grad():  # the padding is on the right, where causal attention never looks
            logits = model(input_ids=tokens, use_cache=False).logits[:, :-1][said]
        return {"loss": torch.nn.functional.cross_entropy(logits, tokens[:, 1:][said], reduction="none").double()}

    return loss, number.repeat_interleave(lengths), [name for name, _ in columns]


def dominance(change: Tensor, rows: Sequence[str], columns: Sequence[str]) -> float:
    """D: mean loss of the languages without their own units, less that of the others, `[row, column]`."""
    own = torch.tensor([[row == column for column in columns] for row in rows])
    return float(change[own].mean() - change[~own].mean())


def empty(bench: Bench, probability: Scores) -> Neurons:
    """No unit."""
    return Neurons.of(probability.sizes, model=fingerprint(bench.model))


def by_layer(units: ConditionUnits) -> Iterator[Site]:
    """The layers, first to last."""
    yield from sorted(units.serves)


def _tokens(bench: Bench, texts: Sequence[str]) -> Mapping[str, Tensor]:
    given = bench.tokenizer(list(texts), padding=True, return_tensors="pt")
    mask = given["attention_mask"]
    return {
        "input_ids": given["input_ids"],
        "attention_mask": mask,
        "position_ids": (mask.cumsum(1) - 1).clamp(min=0),
    }
