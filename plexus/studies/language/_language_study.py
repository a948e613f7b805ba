"""What the studies of language units share: settings, arms, how an arm finds units, how an arm aligns, figures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from plexus.errors import require
from plexus.explain import StageProfile, condition_change, stage_profile
from plexus.lab import Arm, Outcome, Results, Study, interval
from plexus.lab._study import BySeed, Quantity
from plexus.lab.models import recall
from plexus.lab.models._rows import rows_of
from plexus.probe import scores
from plexus.probe.scores import ConditionUnits
from plexus.studies.language._alignment import Alignment, Pair, aligned
from plexus.studies.language._language_bench import (
    Answers,
    Bench,
    answers,
    dominance,
    first,
    in_order,
    probabilities,
    rivals,
    silenced,
    silenced_at_random,
)
from plexus.studies.language._planted_units import found, known_open, planted
from plexus.units import Neurons, Scores

T = TypeVar("T")

FINDERS = (
    Arm("method", how="method", role="method", note="specific units, λ found by the search"),
    Arm("with related", how="related", role="method", note="specific and related units"),
    Arm("λ = 0", how="plain", role="ablation", note="plain entropy, as many specific units of each language"),
    Arm("λ = 0, any", how="any", role="ablation", note="plain entropy, as many units that serve each language (LAPE)"),
    Arm("λ ≤ 0.2", how="published", role="ablation", note="the published range of the search, its own units"),
    Arm("random", how="random", role="null", note="as many units of the same layers, a mean over draws"),
    Arm("difference", how="difference", note="largest difference of means, as many units"),
    Arm("precision", how="precision", note="largest average precision, as many units"),
    Arm("taylor", how="taylor", role="reference", note="largest first-order rise of the own loss, as many units"),
)
ALIGNERS = (
    Arm("aligned", how="aligned", role="method", note="preferences between answers (DPO)"),
    Arm("with imitation", how="aligned", imitation=1.0, note="DPO, and the better answers imitated"),
    Arm("imitation alone", how="aligned", preference=0.0, imitation=1.0, note="SFT on the better answers"),
    Arm("shuffled", how="shuffled", role="null", note="better and worse drawn by a coin"),
    Arm("further", how="aligned", preference=0.0, role="null", note="as many steps on the old texts"),
)


def of(arm: str, metric: str) -> Quantity:
    """One metric of one arm."""
    return lambda seed: seed[arm][metric]


def above_ablation_and_null(seed: BySeed) -> float:
    """D of the method, above the larger of 1.1 times that of λ = 0 and five times that of random units."""
    bars = 1.1 * seed["λ = 0"]["dominance"], 5 * seed["random"]["dominance"]
    return seed["method"]["dominance"] - max(bars)


def above_rivals(seed: BySeed) -> float:
    """D of the method, above the larger of its rivals'."""
    return seed["method"]["dominance"] - max(seed[name]["dominance"] for name in ("difference", "precision"))


def gained(names: tuple[str, ...], arm: str = "aligned") -> Quantity:
    """Points of accuracy that languages gained, their mean."""
    return lambda seed: sum(seed[arm][f"gain_{name}"] for name in names) / len(names)


ASKED_OF_ALL = (
    interval(
        "chosen units that a thousand times the largest λ would choose too, where the search ends there, %",
        of("method", "saturated"),
        role="sanity",
        at_least=95.0,
    ),
    interval(
        "planted units that are found as those of their language, %",
        of("method", "planted_found"),
        role="control",
        at_least=80.0,
    ),
    interval(
        "D by first-order effect, above five times random units",
        lambda seed: seed["taylor"]["dominance"] - 5 * seed["random"]["dominance"],
        role="control",
        at_least=0.0,
    ),
    interval(
        "D (nats per word): silencing a language's units hurts it more than others",
        of("method", "dominance"),
        role="mechanism",
        at_least=0.0,
    ),
    interval(
        "D (nats per word), above 1.1 × that of λ = 0 and 5 × that of random units",
        above_ablation_and_null,
        role="mechanism",
        primary=True,
        at_least=0.0,
    ),
    interval(
        "specific share of the first and last layer, above the middle's, points",
        of("method", "ends_above_middle"),
        role="mechanism",
        at_least=0.0,
    ),
    interval(
        "D (nats per word), above the larger of units by difference of means and by average precision",
        above_rivals,
        role="advantage",
        primary=True,
        at_least=0.0,
    ),
)
"""What is asked whatever the languages: the search, known units, the dominance of the units found, the advantage."""

FARTHER = 1000
"""By how much the largest λ is multiplied to see whether a wider search would choose other units."""


@dataclass(frozen=True)
class Config:
    """Settings, with the defaults of the controlled study at full scale.

    Attributes:
        layers, hidden, heads, intermediate, steps, batch, rate: of the language model and its training.
        texts: sentences to train on; questions are as many, where there are any.
        mixture: shares of the languages, in per cent.
        entities: of each pool of the world.
        facts: share of the facts that each language but the first is told.
        prompts, new: questions or beginnings of texts per language that the model goes on with, and words it adds.
        on: the words in which units are looked for: "whole" (prompts with the model's own continuation), "own" (the
            continuation alone), "sentences" (the continuation of a bench's beginnings of sentences).
        tests: texts per language on which losses are measured.
        share, percentile, limit, tolerance: of `condition_units`, whose search is geometric.
        planted: gates per language that are planted as a positive control.
        draws: random sets in the place of every set of units.
        align_steps, align_batch, align_rate, preference, imitation, beta: of alignment, see `Alignment`.
        how: what the arm does.
    """

    layers: int = 3
    hidden: int = 64
    heads: int = 4
    intermediate: int = 384
    steps: int = 320
    batch: int = 64
    rate: float = 5e-3
    texts: int = 6000
    mixture: tuple[int, ...] = (60, 12, 12, 12, 4)
    entities: int = 16
    facts: float = 0.25
    prompts: int = 160
    new: int = 1
    on: str = "whole"
    tests: int = 40
    share: float = 0.06
    percentile: float = 0.95
    limit: float = 32.0
    tolerance: float = 2e-2
    planted: int = 4
    draws: int = 12
    align_steps: int = 60
    align_batch: int = 24
    align_rate: float = 1e-3
    preference: float = 1.0
    imitation: float = 0.0
    beta: float = 0.1
    how: str = "method"


@dataclass(frozen=True, eq=False)
class Prepared:
    """What the arms share.

    Attributes:
        bench: the model and its data.
        related: two languages that are related.
        pairs: preferences to learn.
        replay: texts of the first training that go on being learnt.
        questions: by language, to measure alignment with: items or pairs of which none was learnt.
        kept: what several arms need, computed by the first of them.
    """

    bench: Bench
    related: tuple[str, str]
    pairs: Sequence[Pair]
    replay: Sequence[str]
    questions: Mapping[str, Sequence[Any]]
    kept: dict[Any, Any] = field(default_factory=dict)

    def once(self, what: Any, make: Callable[[], T]) -> T:
        """What `make` gives, made once."""
        if what not in self.kept:
            self.kept[what] = make()
        found: T = self.kept[what]
        return found


def generator(seed: int, what: str) -> torch.Generator:
    """Random numbers for one use of one seed."""
    return torch.Generator().manual_seed(1_000_003 * seed + sum(i * ord(c) for i, c in enumerate(what, 1)))


class LanguageStudy(Study):
    """Runs the arms on what `prepare` of a study gives."""

    Config = Config

    def run(self, config: Config, prepared: Prepared, seed: int) -> Outcome:
        spoken, probability = prepared.once(
            ("words", config.on, config.new), lambda: self._words(config, prepared.bench, seed)
        )
        if config.how in ("aligned", "shuffled"):
            return self._aligned(config, prepared, probability, seed)
        return self._silenced(config, prepared, spoken, probability, seed)

    def _words(self, config: Config, bench: Bench, seed: int) -> tuple[Answers, Scores]:
        """The words in which units are looked for, and how often gates are open in them."""
        prompts = bench.begun if config.on == "sentences" else bench.prompts
        spoken = answers(bench, config.new, seed, prompts=prompts, whole=config.on == "whole")
        return spoken, probabilities(bench, spoken)

    def sort(self, config: Config, probability: Scores, **options: Any) -> ConditionUnits:
        """Units sorted by the settings."""
        settings = {"percentile": config.percentile, "limit": config.limit, "tolerance": config.tolerance,
                    "spacing": "geometric", **options}  # fmt: skip
        return scores.condition_units(probability, config.share, **settings)

    def gain(self, prepared: Prepared, model: Any) -> dict[str, float]:
        """How well a model does after alignment, in per cent, by language."""
        tokenizer = prepared.bench.tokenizer
        return {name: 100 * recall(model, tokenizer, items).accuracy for name, items in prepared.questions.items()}

    def extra(self, prepared: Prepared) -> dict[str, float]:
        """Further measures of the model before alignment."""
        return {}

    def _silenced(self, config: Config, prepared: Prepared, spoken: Answers, probability: Scores, seed: int) -> Outcome:
        bench = prepared.bench
        units = self.sort(config, probability)
        own = {name: units.of(name) for name in bench.languages}
        counts = {name: len(chosen) for name, chosen in own.items()}
        chosen = self._chosen(config, bench, units, own, counts, spoken, probability)
        chosen = {name: some for name, some in chosen.items() if len(some)}
        metrics = {f"units_{name}": float(len(chosen.get(name, ()))) for name in bench.languages}
        rows, languages = tuple(chosen), len(bench.languages)
        whole = torch.zeros(0, 2 * languages)
        if chosen and config.how == "random":
            whole = silenced_at_random(bench, chosen, config.draws, seed)
        elif chosen:
            whole = silenced(bench, chosen)
        read, beside = whole[:, :languages], whole[:, languages:]
        own_rows = torch.tensor([[row == name for name in bench.languages] for row in rows], dtype=torch.bool)
        metrics |= {
            "dominance": dominance(read, rows, bench.languages) if rows else 0.0,
            "own": float(read[own_rows].mean()) if rows else 0.0,
            "units": float(sum(len(some) for some in chosen.values())),
            **self._sorted(units, prepared.related),
        }
        if bench.sentences:
            metrics["sentences"] = dominance(beside, rows, bench.languages) if rows else 0.0
        if config.how == "method":
            metrics |= self._controls(config, prepared, units, probability, seed)
        arrays = {
            "change": _filled(read, rows, bench.languages),
            "profile": stage_profile(units).counts.numpy(),
            "layer_units": stage_profile(units).units.numpy(),
        }
        return Outcome(metrics, arrays)

    def _chosen(
        self,
        config: Config,
        bench: Bench,
        units: ConditionUnits,
        own: Mapping[str, Neurons],
        counts: Mapping[str, int],
        spoken: Answers,
        probability: Scores,
    ) -> Mapping[str, Neurons]:
        if config.how in ("method", "random", "elsewhere"):
            return own
        if config.how == "related":
            return {name: units.of(name, related=True) for name in bench.languages}
        if config.how in ("plain", "any"):
            plain = self.sort(config, probability, magnitude=0.0)
            return first(in_order(plain, probability, alone=config.how == "plain"), counts)
        if config.how == "published":
            narrow = self.sort(config, probability, limit=0.2, tolerance=1e-3, spacing="even")
            return {name: narrow.of(name) for name in bench.languages}
        order: Callable[..., Scores] = rivals()[config.how]
        return first(order(bench, spoken, probability), counts)

    def _controls(
        self, config: Config, prepared: Prepared, units: ConditionUnits, probability: Scores, seed: int
    ) -> dict[str, float]:
        """Whether a wider search would choose other units, and whether planted units are found."""
        saturated = 100.0
        if units.magnitude == config.limit:
            farther = self.sort(config, probability, magnitude=FARTHER * config.limit).chosen
            saturated = 100 * len(units.chosen & farther) / len(units.chosen)
        bench, known = planted(prepared.bench, config.planted, generator(seed, "planted"))
        opened = self._words(config, bench, seed)[1]
        return {
            "saturated": saturated,
            "planted_found": found(self.sort(config, opened), known),
            "planted_open": known_open(opened, known),
        }

    def _sorted(self, units: ConditionUnits, related: tuple[str, str]) -> dict[str, float]:
        sets = units.sets()
        pairs = {names: count for names, count in sets.items() if len(names) == 2}
        mine = pairs.get(tuple(name for name in units.conditions if name in related), 0)
        possible = len(units.conditions) * (len(units.conditions) - 1) // 2
        others = (sum(pairs.values()) - mine) / max(possible - 1, 1)
        profile = stage_profile(units)
        specific = profile.share("specific")
        return {
            "magnitude": units.magnitude,
            "evaluations": float(units.evaluations),
            "all_served": float(len(units.chosen & units.agnostic)),
            "pair": float(mine),
            "other_pairs": others,
            "specific": float(len(units.specific)),
            "related": float(len(units.related)),
            "ends_above_middle": 100 * _ends_above_middle(profile, specific),
        }

    def _aligned(self, config: Config, prepared: Prepared, probability: Scores, seed: int) -> Outcome:
        bench = prepared.bench
        before = self.sort(config, probability)
        pairs = list(prepared.pairs)
        if config.how == "shuffled":
            turned = torch.rand(len(pairs), generator=generator(seed, "shuffled")) < 0.5
            pairs = [
                Pair(p.prompt, p.rejected, p.chosen) if turn else p
                for p, turn in zip(pairs, turned.tolist(), strict=True)
            ]
        how = Alignment(
            config.preference, config.imitation, config.beta, config.align_steps, config.align_batch, config.align_rate
        )
        texts = prepared.once("rows", lambda: rows_of(prepared.replay, bench.tokenizer, "text", None))
        model = aligned(bench.model, bench.tokenizer, pairs, texts, how, seed=seed)
        after = self.sort(config, self._words(config, replace(bench, model=model), seed + 7_919)[1])
        change = condition_change(before, after)
        base = prepared.once("base", lambda: self.gain(prepared, bench.model))
        gained = self.gain(prepared, model)
        metrics = {f"base_{name}": value for name, value in base.items()}
        metrics |= prepared.once("extra", lambda: self.extra(prepared))
        metrics |= {f"gain_{name}": value - base[name] for name, value in gained.items()}
        metrics |= {f"change_{kind}": float(number) for kind, number in change.counts.items()}
        metrics["specific_minus_related"] = metrics["change_specific"] - metrics["change_related"]
        metrics |= {f"specific_{name}": float(number) for name, number in change.specific.items()}
        metrics |= {f"related_{name}": float(number) for name, number in change.related.items()}
        layers = (change.after.counts - change.before.counts).numpy()
        return Outcome(metrics, {"layers": layers})

    def figures(self, results: Results) -> dict[str, Any]:
        graph = require("plotly.graph_objects", "lab", purpose="figures")
        made: dict[str, Any] = {}
        names = [name.removeprefix("units_") for name in _first(results, "method").metrics if name.startswith("units_")]
        every = np.ma.masked_invalid(np.stack([one.arrays["change"] for one in results["method"].values()]))
        change = every.mean(0).filled(0.0)  # where no seed has a unit of a language, nothing is lost
        figure = graph.Figure(
            graph.Heatmap(z=change.tolist(), x=names, y=names, colorscale="RdBu_r", zmid=0, texttemplate="%{z:.3f}")
        )
        figure.update_layout(xaxis_title="language that is read", yaxis_title="units of", yaxis_autorange="reversed")
        made["Loss (nats per word) without the specific units of a language"] = figure
        counts = np.mean([one.arrays["profile"] / one.arrays["layer_units"][:, None] for one in
                          results["method"].values()], 0)  # fmt: skip
        bars = [graph.Bar(name=kind, x=list(range(len(counts))), y=counts[:, k].tolist())
                for k, kind in enumerate(("specific", "related"))]  # fmt: skip
        made["Share of a layer's units"] = graph.Figure(
            bars, {"barmode": "stack", "xaxis": {"title": {"text": "layer"}}}
        )
        arms = [arm.name for arm in ALIGNERS if arm.name in results.trials]
        gains = [name for name in _first(results, arms[0]).metrics if name.startswith("gain_")]
        made["Gain by alignment, points"] = graph.Figure(
            [graph.Bar(name=arm, x=[g.removeprefix("gain_") for g in gains],
                       y=[float(results.metric(arm, g).mean()) for g in gains]) for arm in arms]
        )  # fmt: skip
        return made


def _ends_above_middle(profile: StageProfile, share: Tensor) -> float:
    """Share of specific units in the first and last layer, above that in the layers between; 0 without any between."""
    if len(profile.sites) < 3:
        return 0.0
    return float((share[0] + share[-1]) / 2 - share[1:-1].mean())


def _filled(change: Tensor, rows: Sequence[str], names: Sequence[str]) -> np.ndarray[Any, Any]:
    """The matrix with a row of NaN for each language that has no unit."""
    whole = np.full((len(names), len(names)), np.nan)
    for row, values in zip(rows, change, strict=True):
        whole[list(names).index(row)] = values.numpy()
    return whole


def _first(results: Results, arm: str) -> Outcome:
    return next(iter(results[arm].values()))
