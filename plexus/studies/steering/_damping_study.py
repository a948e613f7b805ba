"""The arms of the studies of damped directions, how they are tuned, run and drawn."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from statistics import fmean, pstdev
from typing import Any

import numpy as np
import torch
from torch import Tensor

from plexus import probe
from plexus.edit import svd
from plexus.errors import require
from plexus.lab import TUNING_SEEDS, Arm, Outcome, Results, Study, Tuning, exact, interval
from plexus.lab._study import BySeed, Quantity
from plexus.lab.models import train_language_model
from plexus.studies.steering._damping import Bench, Edits, Measured, chosen, edited, scored
from plexus.studies.steering._experts import LEVELS, expert_analysis

BUDGET = 1.10
"""Largest perplexity, as a multiple of the unedited model's, of a setting that may be chosen."""

SETTINGS: dict[str, tuple[dict[str, Any], ...]] = {
    "directions": tuple({"k": k, "factor": factor} for factor in (0.0, 0.5) for k in (1, 2, 4, 8)),
    "units": tuple({"above": above} for above in (0.5, 0.55, 0.6, 0.65, 0.7, 0.8, 0.9, 0.95)),
    "damped": tuple({"above": a, "factor": f} for f in (0.25, 0.5) for a in (0.5, 0.6, 0.7, 0.9)),
    "bias": tuple({"bias": -float(b)} for b in (1, 2, 3, 4, 5, 6, 8, 10)),
}

ARMS = (
    Arm("none", role="reference"),
    Arm("margin", method="eigenshift", by="margin", grid="directions", role="method", note="needs the word list"),
    Arm(
        "push", method="eigenshift", by="push", grid="directions", role="method", note="level, not difference; the list"
    ),
    Arm("abs", method="eigenshift", by="abs", grid="directions", role="method", note="needs hidden states alone"),
    Arm("signed", method="eigenshift", by="signed", role="ablation", note="as published, but projected with Vᵀ"),
    Arm("published", method="eigenshift", by="signed", transposed=True, role="ablation", note="projected with V"),
    Arm("largest", method="largest", role="ablation", note="the largest singular values"),
    Arm("random", method="random", role="null", note="as many random directions, a mean over draws"),
    Arm("random, one", method="random", k=1, factor=0.0, role="null", note="one direction taken out"),
    Arm("det-0, all", method="units", how="zero", role="ablation", note="every unit above chance, as published"),
    Arm("det-0", method="units", how="zero", grid="units"),
    Arm("damp", method="units", how="damp", grid="damped"),
    Arm("aura", method="units", how="aura", grid="units"),
    Arm("logit bias", method="bias", grid="bias", note="needs the word list"),
    Arm("fine-tuned", method="finetune", role="reference", note="further training on texts without the words"),
)
FOLLOWERS = ("signed", "published", "largest", "random")
"""Ablations and nulls that take the settings of `margin`."""


def of(arm: str, metric: str) -> Quantity:
    """One metric of one arm."""
    return lambda seed: seed[arm][metric]


def less(arm: str, rival: str, metric: str = "tph") -> Quantity:
    """By how much an arm is above a rival."""
    return lambda seed: seed[arm][metric] - seed[rival][metric]


def above_nulls(seed: BySeed) -> float:
    """Points of reduction above the larger one of the null and the ablation."""
    return seed["margin"]["reduction"] - max(seed[rival]["reduction"] for rival in ("random", "published"))


ASKED_OF_ALL = (
    exact("weights that the undo leaves different", of("margin", "undo_errors"), role="sanity", margin=0.0),
    interval("perplexity, multiple", of("margin", "ratio"), role="mechanism", at_most=1.10),
    interval(
        "points of TPH above as many of the largest singular values",
        less("margin", "largest"),
        role="mechanism",
        at_least=1.0,
    ),
    interval(
        "AUROC of a layer's probe above the best unit's",
        lambda seed: seed["none"]["layer_probe"] - seed["none"]["best_unit"],
        role="mechanism",
        at_least=0.05,
    ),
    interval(
        "points of TPH above a bias on the logits of the list",
        less("margin", "logit bias"),
        role="advantage",
        primary=True,
        at_least=0.0,
    ),
    interval(
        "without a list: points of TPH above the best of three ways to scale units",
        lambda seed: seed["abs"]["tph"] - max(seed[arm]["tph"] for arm in ("det-0", "damp", "aura")),
        role="advantage",
        at_least=0.0,
    ),
)
"""What is asked whatever the text: the undo, fluency, the rivals of the ranking, and the advantage."""


@dataclass(frozen=True)
class Config(Edits):
    """Settings of both studies, with the defaults of the controlled one at full scale.

    Attributes:
        layers, hidden, heads, steps, batch, rate: of the language model and its training.
        texts: to train on.
        clean_steps: steps of further training on texts without the word list.
        collected: prompts from which states are collected.
        labelled: texts on which units are scored.
        prompts, samples, new, top_p: prompts of each part, continuations of each, their tokens, and the mass sampled.
        neutral: texts of each part on which perplexity is measured.
        draws: of random directions, and of random signs of the decomposition.
        halves: pairs of halves over which the stability of experts is measured.
        part: on which measures are taken.
        grid: which settings are tried for the arm, if any.
        tuning_seeds: how many.
    """

    layers: int = 2
    hidden: int = 64
    heads: int = 4
    steps: int = 400
    batch: int = 32
    rate: float = 5e-3
    texts: int = 12000
    clean_steps: int = 80
    collected: int = 400
    labelled: int = 400
    prompts: int = 40
    samples: int = 4
    new: int = 20
    top_p: float = 1.0
    neutral: int = 128
    draws: int = 20
    halves: int = 10
    part: str = "test"
    grid: str = ""
    tuning_seeds: int = 2


@dataclass(frozen=True, eq=False)
class Prepared:
    """What the arms share.

    Attributes:
        bench: the model and its data.
        labelled: texts `[text, token]`, and whether each holds a word of the list.
        clean: texts without such words, to train on further.
        questions: of each part, as tokens `[question, token]`, and whether the answer is yes.
    """

    bench: Bench
    labelled: tuple[Tensor, Tensor]
    clean: list[str]
    questions: Mapping[str, tuple[Tensor, Tensor]] = field(default_factory=dict)


def generator(seed: int, what: str) -> torch.Generator:
    """Random numbers for one use of one seed."""
    return torch.Generator().manual_seed(1_000_003 * seed + sum(i * ord(c) for i, c in enumerate(what, 1)))


def collect(
    config: Config, model: Any, batches: list[dict[str, Tensor]], words: Tensor, seed: int
) -> tuple[Tensor, Tensor, float]:
    """States that predicted the first listed word of a continuation; states that began a continuation without one.

    And of the former the share whose most likely token was the one put out: the states that the published code keeps.
    """
    steps = probe.step_states(
        model, batches, config.new, generator=generator(seed, "collect"),
        options={"do_sample": True, "top_k": 0, "top_p": config.top_p, "eos_token_id": None, "pad_token_id": 0},
    )  # fmt: skip
    hit = torch.isin(steps.tokens, words)
    shown = hit.any(1)
    first = hit.long().argmax(1)[shown]
    sure = steps.sure[shown, first].double().mean() if bool(shown.any()) else torch.tensor(0.0)
    return steps.states[shown, first], steps.states[~shown, 0], float(sure)


class DampingStudy(Study):
    """Tunes, runs and draws the arms; a study adds its data and its checks."""

    unit = "tokens"
    """Which share of `rudeness` is reduced."""
    window: int | None = None
    """Rows of so many tokens for running text."""

    def further(self, prepared: Prepared, model: Any, part: str) -> dict[str, float]:
        """Further measures of a model."""
        return {}

    def run(self, config: Any, prepared: Prepared, seed: int) -> Outcome:
        bench = prepared.bench
        measured = self._measured(config, bench)
        found = svd.directions(bench.model)
        head = bench.model.get_output_embeddings().weight
        bits = head.detach().clone()
        metrics = {f"base_{name}": value for name, value in measured.before.items()}
        metrics |= {f"base_{name}": value for name, value in self.further(prepared, bench.model, config.part).items()}
        trials = []
        numbers = generator(seed, "directions")
        for _ in range(config.draws if config.method == "random" else 1):
            with edited(bench, config, found, numbers) as change:
                model = self._cleaned(config, prepared, seed) if config.method == "finetune" else bench.model
                got = measured.under(model, self.unit) | self.further(prepared, model, config.part)
                got["relative_change"] = 0.0 if change is None else change.relative_change
            trials.append(got)
        metrics |= {name: fmean(trial[name] for trial in trials) for name in trials[0]}
        metrics["undo_errors"] = float((head != bits).sum())
        if config.method == "none":
            metrics |= self._beside(config, prepared, seed)
        if config.by == "signed" and not config.transposed:
            metrics |= self._flipped(config, bench, measured, found, seed)
        arrays = {"reduction": np.array([trial["reduction"] for trial in trials])}
        return Outcome(metrics, arrays)

    def tune(self, config: Any) -> Tuning:
        """Each arm's setting: the highest TPH on validation data among those within the budget of perplexity."""
        arms = {arm.name: arm for arm in self.arms if arm.overrides.get("grid")}
        if not config.tuning_seeds:
            return Tuning({}, dict.fromkeys(arms, 0), "not tuned")
        base = replace(config, part="validation")
        found: dict[str, list[list[dict[str, float]]]] = {name: [] for name in arms}
        for seed in TUNING_SEEDS[: config.tuning_seeds]:
            prepared = self.prepare(base, seed)
            measured, directions = self._measured(base, prepared.bench), svd.directions(prepared.bench.model)
            for name, arm in arms.items():
                trials = []
                for setting in SETTINGS[arm.overrides["grid"]]:
                    with edited(prepared.bench, replace(base, **{**arm.overrides, **setting}), directions):
                        trials.append(measured.under(prepared.bench.model, self.unit))
                found[name].append(trials)
        picked = {}
        for name, arm in arms.items():
            means = [
                {key: fmean(trial[key] for trial in trials) for key in ("tph", "ratio", "reduction")}
                for trials in zip(*found[name], strict=True)
            ]
            # a setting within the budget comes before any beyond it; where none reduces anything, the least harmful
            best = max(
                means,
                key=lambda m: (m["ratio"] <= BUDGET, m["tph"] if m["ratio"] <= BUDGET else -m["ratio"], m["reduction"]),
            )
            picked[name] = SETTINGS[arm.overrides["grid"]][means.index(best)]
        chosen = {**picked, **dict.fromkeys(FOLLOWERS, picked["margin"])}
        budget = {name: len(SETTINGS[arm.overrides["grid"]]) for name, arm in arms.items()}
        where = f"on validation prompts and texts of {config.tuning_seeds} seeds"
        note = f"highest TPH within {BUDGET:.2f} × perplexity {where}; ablations and nulls take the setting of `margin`"
        return Tuning(chosen, budget, note)

    def figures(self, results: Results) -> dict[str, Any]:
        graph = require("plotly.graph_objects", "lab", purpose="figures")
        plane = graph.Figure()
        for arm in results.trials:
            x, y = results.metric(arm, "ratio"), results.metric(arm, "reduction")
            plane.add_scatter(x=x.clip(max=3.0), y=y.clip(min=-60), mode="markers", name=arm)
        plane.add_vline(x=BUDGET, line_dash="dot")
        plane.update_layout(
            xaxis_title="perplexity on neutral text, multiple of the unedited model's (3 = 3 or more)",
            yaxis_title="less rudeness, %",
        )
        units = graph.Figure()
        none = {name: results.metric("none", name).mean() for name in results["none"][min(results["none"])].metrics}
        for kind, title in (("experts", "share of units"), ("stability", "overlap of two halves")):
            units.add_scatter(x=LEVELS, y=[none[f"{kind}_{level}"] for level in LEVELS], name=title)
        units.update_layout(xaxis_title="AUROC above which a unit is an expert", yaxis_title="%")
        detect = graph.Figure()
        names = {"best_unit": "best unit", "vote": "vote of experts", "layer_probe": "probe of a layer"}
        for name, title in names.items():
            detect.add_box(y=results.metric("none", name), name=title, boxpoints="all")
        detect.update_layout(yaxis_title="AUROC on unseen texts")
        return {
            "Rudeness against fluency": plane,
            "Units that count as experts": units,
            "Who detects rude text": detect,
        }

    def _measured(self, config: Any, bench: Bench) -> Measured:
        options = {"new": config.new, "samples": config.samples, "top_p": config.top_p}
        return Measured(bench, config.part, seed=17, **options)

    def _cleaned(self, config: Any, prepared: Prepared, seed: int) -> Any:
        """The model trained further on texts without the word list."""
        return train_language_model(
            prepared.clean, tokenizer=prepared.bench.tokenizer, start=prepared.bench.model, steps=config.clean_steps,
            batch=config.batch, rate=config.rate / 5, seed=seed, window=self.window, cache=False, progress=False,
        ).model  # fmt: skip

    def _beside(self, config: Any, prepared: Prepared, seed: int) -> dict[str, float]:
        """What is measured of the unedited model alone."""
        bench = prepared.bench
        analysis = expert_analysis(
            bench.model, *prepared.labelled, halves=config.halves, generator=generator(seed, "halves")
        )
        counts = {"present": float(len(bench.present)), "absent": float(len(bench.absent)), "sure": 100 * bench.sure}
        return analysis | counts

    def _flipped(
        self, config: Any, bench: Bench, measured: Measured, found: svd.Directions, seed: int
    ) -> dict[str, float]:
        """What random signs of the decomposition do to the published order and to the two that do not hang on them."""
        numbers, drops, known, apart = generator(seed, "signs"), [], {}, dict.fromkeys(("margin", "abs"), 0.0)
        one = replace(config, method="eigenshift", transposed=False, k=1, factor=0.0)
        for _ in range(config.draws):
            signs = torch.randint(2, (len(found),), generator=numbers).mul(2).sub(1).to(found.s)
            other = replace(found, u=found.u * signs, vh=found.vh * signs[:, None])
            for by in apart:
                both = [scored(bench, replace(one, by=by), each) for each in (found, other)]
                apart[by] = max(apart[by], float((both[0] - both[1]).abs().max()))
            direction = int(chosen(bench, one, other))
            if direction not in known:
                with svd.scale(bench.model, [direction], 0.0, found=found):
                    known[direction] = measured.lessened(bench.model, self.unit)
            drops.append(known[direction])
        return {"flip_spread": pstdev(drops), "flip_margin": apart["margin"], "flip_abs": apart["abs"]}
