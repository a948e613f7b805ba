"""Four views of what fine-tuning changed, on tiny language models that judge statements and answer requests.

A base model learns facts in six topics, judges statements true or false, and grants every request, those about
restricted things too. Fine-tuning on a fifth of the steps teaches it to refuse the restricted ones. The two are
compared in where the knowledge sits (patch maps, and maps across the models), in the direction of truth (probes across
held-out topics, and interventions), in the direction of refusal, and in the units that could set the confidence.

Each view stands beside two other pairs of models: fine-tuning of the same length that teaches no refusals, and a model
of the same build trained apart, on the same text from other weights. Two tiny models that learn one text may well put
the same things at the same places, so what a view says of kinship is the difference to the stranger.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np

from plexus.errors import require
from plexus.lab import TUNING_SEEDS, Arm, Outcome, Paper, Results, Study, Tuning, exact, interval, study, wins
from plexus.lab._study import BySeed, Quantity
from plexus.studies.interpretability import _checkpoints, _post_training
from plexus.studies.interpretability._checkpoints import Config, Prepared

PENALTIES = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""Of the logistic direction; the last makes it the mean difference, nearly."""

METHOD, ABLATION, STRANGER, SELF = "refusals", "no refusals", "trained apart", "itself"


def of(metric: str, arm: str = METHOD) -> Quantity:
    """A metric of an arm."""
    return lambda seed: seed[arm][metric]


def gap(metric: str, other: str, arm: str = METHOD) -> Quantity:
    """One metric of an arm less another."""
    return lambda seed: seed[arm][metric] - seed[arm][other]


def beside(metric: str, rival: str) -> Quantity:
    """A metric of the fine-tuned model less that of a rival arm."""
    return lambda seed: seed[METHOD][metric] - seed[rival][metric]


def share_of_own(seed: BySeed) -> float:
    """The effect of the base's direction of truth over that of the model's own."""
    return seed[METHOD]["effect, transferred"] / max(seed[METHOD]["effect, own"], 0.05)


class _PostTrainingViews(Study):
    """What both variants share."""

    paper = Paper(
        "How Post-Training Reshapes LLMs: A Mechanistic View on Knowledge, Truthfulness, Refusal, and Confidence",
        "Hongzhe Du, Weikai Li, Min Cai, Karim Saraipour, Zimin Zhang, Himabindu Lakkaraju, Yizhou Sun, Shichang Zhang",
        2025,
        arxiv="2504.02904",
        venue="COLM 2025",
        code="https://github.com/HZD01/post-training-mechanistic-analysis",
    )
    claim = (
        "Fine-tuning leaves the places of knowledge and the direction of truth as they were and makes a new direction "
        "of refusal; entropy neurons stay the same ones."
    )
    refuted_by = (
        "A model trained apart has as similar a patch map; the base's direction of truth does less than 0.7 of what "
        "the model's own does; the base's direction cuts refusals as the model's own does."
    )
    fidelity = "B"
    deviations = (
        "Models are trained to judge, so prompts need no examples and no question: the judgement follows the full "
        "stop, and truth is probed and moved there alone; the paper also takes the token before.",
        "In place of a logistic regression along the mass-mean direction stands the threshold halfway of the means.",
        "Refusal is cut by bringing the coordinate back to its mean over allowed requests. Setting it to zero, as "
        "published, is measured and shown too: in a small model zero lies between both kinds, and may refuse all.",
        "Moving by the whole gap carries nearly all across whatever the direction; so the comparison with the logistic "
        "direction, which gets the same length, is made at half of it.",
        "Fine-tuning repeats some judged statements, as 60 steps on requests alone would unlearn judging; three in "
        "four of its requests are allowed ones, so that granting is what the model does by default.",
        "The stranger and the refusal-free fine-tuning are arms of ours, and so is the causal test of entropy neurons.",
        "No stage of preferences follows the fine-tuning.",
        "Truth is read and moved on statements that training judges; how often the base is right about facts that it "
        "never judged (about 82 %) is measured and shown.",
    )
    Config = Config
    arms = (
        Arm(METHOD, compare="refusals", role="method", note="the base and what refusals make of it"),
        Arm(ABLATION, compare="no refusals", role="ablation", note="as long a fine-tuning that grants every request"),
        Arm(STRANGER, compare="apart", role="null", note="a model of other weights, trained on the same text"),
        Arm(SELF, compare="base", role="reference", note="the base and itself: what no change looks like"),
    )
    checks = (
        interval("statements judged right by the base, %", of("judged right, base"), role="sanity", at_least=85.0),
        interval("and by the fine-tuned model, %", of("judged right, tuned"), role="sanity", at_least=85.0),
        interval("restricted requests refused, %", of("refused"), role="sanity", at_least=75.0),
        interval("allowed requests refused, %", of("refused, allowed requests"), role="sanity", at_most=15.0),
        exact("the base and itself: map r", of("map r", SELF), center=1.0, margin=1e-6, role="sanity"),
        interval("effect of patching a run with itself", of("map noise"), role="sanity", at_most=1e-3),
        wins("the stranger's units are told from the base's", lambda s: 1 - s[STRANGER]["related"], 9, 10,
             role="control", at_least=1.0),
        wins("the fine-tuned model's units are recognised", of("related"), 9, 10, role="control", at_least=1.0),
        interval("map r with the base, less that of the stranger", beside("map r", STRANGER), role="mechanism",
                 primary=True, at_least=0.1),
        interval("map r with the base", of("map r"), role="mechanism", at_least=0.95),
        interval("points of truth accuracy lost in transfer", gap("truth accuracy, own", "truth accuracy, transferred"),
                 role="mechanism", at_most=5.0),
        interval("effect of the base's direction of truth over the own", share_of_own, role="mechanism", at_least=0.7),
        interval("effect of a random direction on truth", of("effect, random"), role="mechanism", at_most=0.1),
        interval("refusals cut by the own direction, points", of("cut, own"), role="mechanism", at_least=60.0),
        interval("refusals cut by the base's direction, points", of("cut, base"), role="mechanism", at_most=30.0),
        interval("cosine of truth less cosine of refusal, base to fine-tuned", gap("truth cosine", "refusal cosine"),
                 role="mechanism", at_least=0.3),
        interval("refusal cosine without refusals, less with them",
                 lambda s: s[ABLATION]["refusal cosine"] - s[METHOD]["refusal cosine"], role="mechanism", at_least=0.0),
        interval("entropy neurons in common (IoU)", of("entropy neurons in common"), role="mechanism", at_least=0.5),
        interval("the same, less what large norms share by chance",
                 gap("entropy neurons in common", "in common by chance"), role="mechanism", at_least=0.1),
        interval("at half the gap: effect of the transferred mean difference less that of the transferred logistic",
                 gap("half effect, transferred", "half effect, logistic transferred"), role="advantage", primary=True,
                 at_least=0.0),
        interval("the same at the whole gap", gap("effect, transferred", "effect, logistic transferred"),
                 role="advantage", at_least=0.0),
        interval("refusals cut by the mean difference less by the logistic", gap("cut, own", "cut, logistic"),
                 role="advantage", at_least=1.0),
    )  # fmt: skip

    def prepare(self, config: Config, seed: int) -> Prepared:
        return _checkpoints.prepare(config, seed)

    def tune(self, config: Config) -> Tuning:
        seeds = TUNING_SEEDS[: config.tuning_seeds]
        made = [(seed, _checkpoints.prepare(config, seed, only=(METHOD,))) for seed in seeds]
        mean, logistic = np.zeros(config.layers - 1), np.zeros((config.layers - 1, len(PENALTIES)))
        for layer, (column, penalty) in itertools.product(range(config.layers - 1), enumerate(PENALTIES)):
            here = replace(config, first_layer=layer, logistic_layer=layer, penalty=penalty)
            for seed, prepared in made:
                models = prepared.models
                metrics, _ = _post_training.truth(models["base"], models["refusals"], prepared, here, seed)
                logistic[layer, column] += metrics["half effect, logistic"] - metrics["half effect, random"]
                mean[layer] += metrics["half effect, own"] - metrics["half effect, random"]
        layer, column = np.unravel_index(logistic.argmax(), logistic.shape)
        chosen = {"first_layer": int(mean.argmax()), "logistic_layer": int(layer), "penalty": PENALTIES[int(column)]}
        return Tuning(
            {arm.name: chosen for arm in self.arms},
            {arm.name: logistic.size for arm in self.arms},
            "the first layer of the interventions on truth, and the penalty of the logistic direction, by their effect "
            f"at half the gap less that of random directions on {len(seeds)} seeds: {len(mean)} settings of the mean "
            f"difference, which has no penalty, {logistic.size} of the logistic direction",
        )

    def run(self, config: Config, prepared: Prepared, seed: int) -> Outcome:
        base, tuned = prepared.models["base"], prepared.models[config.compare]
        metrics, maps = _post_training.location(base, tuned, prepared, config, seed)
        more, direction = _post_training.truth(base, tuned, prepared, config, seed)
        metrics |= more
        metrics |= _post_training.refusal(base, tuned, prepared, config, seed, direction)
        metrics |= _post_training.confidence(base, tuned, prepared, config, seed)
        metrics |= _post_training.kinship(base, tuned, prepared, seed)
        arrays = {name: getattr(maps, name).grid().numpy() for name in ("base", "tuned", "forward", "backward")}
        return Outcome({name: float(value) for name, value in metrics.items()}, arrays)

    def figures(self, results: Results) -> dict[str, Any]:
        graph = require("plotly.graph_objects", "lab", purpose="figures")
        subplots = require("plotly.subplots", "lab", purpose="figures")
        titles = ("base", "fine-tuned", "base values in it", "a stranger")
        maps = subplots.make_subplots(rows=1, cols=4, subplot_titles=titles, shared_yaxes=True)
        names = ["<s>", "the", "kind", "of", "subject", "is", "a", "object", "."]
        for column, (arm, part) in enumerate(
            ((METHOD, "base"), (METHOD, "tuned"), (METHOD, "forward"), (STRANGER, "tuned")), 1
        ):
            mean = np.mean([outcome.arrays[part] for outcome in results[arm].values()], axis=0)
            heat = graph.Heatmap(z=mean.tolist(), x=names, zmin=-1, zmax=1, colorscale="RdBu", showscale=column == 4)
            maps.add_trace(heat, row=1, col=column)
        maps.update_yaxes(title_text="layer", col=1)
        effects = graph.Figure()
        for arm in (METHOD, STRANGER):
            kinds = ("own", "transferred", "random", "unrelated", "logistic transferred")
            values = [results.metric(arm, f"effect, {kind}") for kind in kinds]
            effects.add_bar(x=list(kinds), y=[float(v.mean()) for v in values], name=arm,
                            error_y={"type": "data", "array": [float(v.std()) for v in values]})  # fmt: skip
        effects.update_layout(yaxis_title="normalised indirect effect on truth", barmode="group")
        cuts = graph.Figure()
        words = {"cut": "cut, to the usual coordinate", "zeroed": "cut, to zero", "added": "added to allowed requests"}
        for what, word in words.items():
            kinds = ("own", "base", "random", "truth")
            y = [float(results.metric(METHOD, f"{what}, {kind}").mean()) for kind in kinds]
            cuts.add_bar(x=list(kinds), y=y, name=word)
        cuts.update_layout(yaxis_title="points", barmode="group", xaxis_title="direction")
        return {
            "Where a patch from the true statement restores the judgement": maps,
            "What moving along a direction does to truth": effects,
            "What a direction does to refusals of the fine-tuned model": cuts,
        }


@study
class PostTrainingViews(_PostTrainingViews):
    """See what fine-tuning changed: knowledge, truth, refusal, confidence."""

    name = "post-training-views"
    scale_line = (
        "Four layers of width 48 on a made-up corpus of 300 statements and 128 requests; the paper: 7 to 13 billion "
        "weights, 1,496 cities and more, 128 harmful and 128 harmless instructions."
    )
    data = ("statements and requests (made up)",)
    deviations = (
        *_PostTrainingViews.deviations,
        "Thirty seeds: the difference of the maps' correlations was 0.25 (0.13 to 0.36, bar 0.1) in a first confirming "
        "run of ten and 0.14 (0.05 to 0.23) over ten others, as how alike a stranger's map is varies from pair to pair "
        "of models; thirty gave 0.12 (0.07 to 0.17). In those runs the logistic direction kept one penalty, and the "
        "transferred mean difference did 0.12 (0.08 to 0.15) more than it; here its penalty is tuned, and equal cuts "
        "of refusals no longer meet their bar. Other bars are unchanged, the thirty seeds are new.",
    )
    seeds = 30
    scales: ClassVar = {
        "smoke": {
            "subjects": 4, "objects": 2, "things": 4, "layers": 2, "hidden": 32, "steps": 15, "each": 1,
            "candidates": 4, "random": 2, "tuning_seeds": 1,
        },
        "full": {},
        "paper": {"subjects": 24, "objects": 6, "things": 24, "layers": 6, "hidden": 192, "steps": 3000, "rate": 3e-3},
    }  # fmt: skip


@study
class PostTrainingViewsTruth(_PostTrainingViews):
    """See what fine-tuning changed, on facts of the world."""

    name = "post-training-views-truth"
    scale_line = (
        "Four layers of width 48 and 12 facts of each topic, drawn again for every seed; the paper: 7 to 13 billion "
        "weights, whole data sets of up to 1,500 statements."
    )
    data = ("cities, animals, elements, inventors, Spanish words (truth/*.csv from PLEXUS_DATA)", "requests (made up)")
    scales: ClassVar = {
        "smoke": {
            "facts": "files", "subjects": 4, "objects": 2, "things": 4, "layers": 2, "hidden": 32, "steps": 15,
            "each": 1, "candidates": 4, "random": 2, "tuning_seeds": 1,
        },
        "full": {"facts": "files"},
    }  # fmt: skip
