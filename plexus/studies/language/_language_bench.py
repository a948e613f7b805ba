"""Finding the units of each language, silencing them, and what every language loses."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from plexus import edit, probe
from plexus.explain import EffectMatrix, effect_matrix
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
        prompts: beginnings of texts that the model goes on with.
        validation: texts on which rivals may look at losses.
        tests: texts whose loss is measured.
        mute: words that the model does not say when its own words are counted.
    """

    model: Any
    tokenizer: Any
    prompts: Mapping[str, Sequence[str]]
    validation: Mapping[str, Sequence[str]]
    tests: Mapping[str, Sequence[str]]
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
    """

    batches: list[dict[str, Tensor]]
    prompt: Tensor
    labels: Tensor

    def said(self, table: Table) -> Tensor:
        """Which rows of a recording are tokens that the model said itself."""
        return table.position >= self.prompt[table.sample]


def answers(bench: Bench, new: int, seed: int) -> Answers:
    """The model's own continuations of the prompts, drawn from its distribution, as long in every language."""
    batches, prompt, labels = [], [], []
    special = [bench.tokenizer.pad_token_id, bench.tokenizer.eos_token_id, bench.tokenizer.unk_token_id]
    special += bench.tokenizer.convert_tokens_to_ids(list(bench.mute))
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        for number, language in enumerate(bench.languages):
            given = bench.tokenizer(list(bench.prompts[language]), padding=True, return_tensors="pt")
            with torch.no_grad():
                whole = bench.model.generate(
                    **given, max_new_tokens=new, min_new_tokens=new, do_sample=True, top_k=0, suppress_tokens=special
                )
            mask = torch.cat([given["attention_mask"], torch.ones(len(whole), new, dtype=torch.int64)], 1)
            places = (mask.cumsum(1) - 1).clamp(min=0)
            batches.append({"input_ids": whole, "attention_mask": mask, "position_ids": places})
            prompt.append(given["attention_mask"].sum(1))
            labels.append(torch.full((len(whole),), number))
    return Answers(batches, torch.cat(prompt), torch.cat(labels))


def probabilities(bench: Bench, spoken: Answers) -> Scores:
    """How often each gate is open in the model's own words, by language."""
    stream = probe.stream(bench.model, spoken.batches, sites(bench.model, GATES))
    counts = scores.count_activations(stream, spoken.labels, names=bench.languages, tokens=spoken.said)
    return counts.probability


def recorded(bench: Bench, spoken: Answers) -> tuple[Recording, Tensor]:
    """Gates in the model's own words, a sample per word, and the language of each."""
    whole = probe.record(bench.model, spoken.batches, sites(bench.model, GATES), labels=spoken.labels)
    values, language = {}, torch.zeros(0)
    for site in whole.sites:
        keep = spoken.said(whole.table[site])
        values[site] = whole[site][keep]
        language = spoken.labels[whole.table[site].sample[keep]]
    rows = Table(range(len(language)))
    return Recording(values, dict.fromkeys(values, rows), labels=language, model=whole.model), language


def in_order(units: ConditionUnits, probability: Scores) -> Scores:
    """For each language its units first: those that serve it by how uneven they are, then the others."""
    uneven = scores.condition_entropy(probability, units.magnitude)
    values = {site: units.serves[site].double() * 10 - uneven[site] for site in uneven.sites}
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


def silenced(bench: Bench, units: Mapping[str, Neurons], draws: int, seed: int) -> EffectMatrix:
    """What every language loses, in nats per token of unseen texts, without the units of each."""
    texts = [text for language in bench.languages for text in bench.tests[language]]
    lengths = [len(ids) - 1 for ids in bench.tokenizer(texts).input_ids]
    number = [k for k, language in enumerate(bench.languages) for _ in bench.tests[language]]
    groups = torch.tensor(number).repeat_interleave(torch.tensor(lengths))

    def loss(model: Any) -> dict[str, Tensor]:
        return {"loss": torch.cat(probe.surprisal(model, bench.tokenizer, texts, batch=256)).double()}

    cuts = {language: edit.scale(chosen, 0.0) for language, chosen in units.items() if len(chosen)}
    return effect_matrix(bench.model, cuts, loss, groups, bench.languages, n_random=draws, seed=seed, progress=False)[
        "loss"
    ]


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
