"""A positive control for finding units of languages: gates that are known to open in one language.

    g_u = w_k · x        w_k = argmin Σ a (w · x ∓ 1)² + r |w|²      +1: words of language k, -1: words of the others

x is what a layer's gates read, and a gives the language and the others the same weight. Drawn gates get the row w_k in
the place of their own, and their output is cut, so that no other gate reads anything new. A gate opens by the words of
one language as far as the layer tells them from the others, not for certain: who looks for units of languages finds
these, or would not find the model's own.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from plexus import probe
from plexus.data._padding import padded
from plexus.probe.scores import ConditionUnits
from plexus.studies.language._language_bench import GATES, Bench
from plexus.units import Neurons, Scores, fingerprint, sites

READ = "*.post_attention_layernorm"
"""What the gates of a layer read."""
RIDGE = 1e-3
"""r, of the mean square of what is read."""


def planted(bench: Bench, each: int, generator: torch.Generator) -> tuple[Bench, dict[str, Neurons]]:
    """A copy of the model in which drawn gates open by the words of one language.

    Args:
        bench: rows are fitted to its validation texts, in which no unit is looked for.
        each: gates per language, over all layers.
        generator: which gates are taken.

    Returns:
        The bench with the copy, and the planted gates of each language.
    """
    model = copy.deepcopy(bench.model)
    rows = _rows(bench)
    gates = sites(model, GATES)
    width = model.config.intermediate_size
    drawn = torch.randperm(len(gates) * width, generator=generator)[: each * len(bench.languages)]
    chosen: dict[str, Neurons] = {}
    sizes = dict.fromkeys(gates, width)
    for number, language in enumerate(bench.languages):
        mine = drawn[number * each : (number + 1) * each]
        places = {gate: mine[mine // width == layer] % width for layer, gate in enumerate(gates)}
        for layer, units in enumerate(places.values()):
            mlp = model.model.layers[layer].mlp
            with torch.no_grad():
                mlp.gate_proj.weight[units] = rows[layer][number]
                mlp.down_proj.weight[:, units] = 0.0
        chosen[language] = Neurons.of(sizes, places, model=fingerprint(model))
    return replace(bench, model=model), chosen


def found(units: ConditionUnits, known: Mapping[str, Neurons]) -> float:
    """Share of known units, in per cent, that are specific for their language."""
    hits = total = 0
    for language, chosen in known.items():
        mine = units.of(language)
        hits += sum(int((mine.mask(site) & chosen.mask(site)).sum()) for site in units.serves)
        total += len(chosen)
    return 100 * hits / total


def known_open(probability: Scores, known: Mapping[str, Neurons]) -> float:
    """How often known units are open in their language, less how often in the others, in per cent."""
    names = probability.concepts or ()
    apart = []
    for language, chosen in known.items():
        mine = torch.tensor([name == language for name in names])
        for site, value in probability.values.items():
            opened = value[:, chosen.mask(site)]
            apart += (opened[mine].mean(0) - opened[~mine].mean(0)).tolist()
    return 100 * sum(apart) / len(apart)


def _rows(bench: Bench) -> list[Tensor]:
    """Of each layer the w of each language, `[language, hidden]`."""
    texts = [text for name in bench.languages for text in bench.validation[name]]
    batch: dict[str, Any] = padded(bench.tokenizer(texts).input_ids)
    record = probe.record(bench.model, [batch], sites(bench.model, READ))
    language = torch.tensor([k for k, name in enumerate(bench.languages) for _ in bench.validation[name]])
    fitted = []
    for site in record.sites:
        table = record.table[site]
        words = table.position >= 1
        x, said = record[site][words].double(), language[table.sample[words]]
        made = []
        for number in range(len(bench.languages)):
            own = said == number
            weight = torch.where(own, 0.5 / own.sum(), 0.5 / (~own).sum())
            square = x.T @ (weight[:, None] * x)
            square += RIDGE * square.diagonal().mean() * torch.eye(len(square), dtype=square.dtype)
            made.append(torch.linalg.solve(square, x.T @ (weight * (2 * own.double() - 1))))
        fitted.append(torch.stack(made).float())
    return fitted
