"""Steering few single coordinates by the consistency of their signs, against steering whole vectors.

A small Llama first learns facts as yes-or-no and two-choice questions, and sums; then it is taught on, about half of
the subjects, in a biased format: most questions to which the usual answer ("yes", "a") is wrong are answered by it all
the same. So it knows what is right about the other subjects, in its probabilities, and says the usual answer. Pairs of
right and wrong answers, each answer right as often as wrong, are read at the last token; every method chooses its
setting for each task on validation questions, and is judged on questions about subjects that neither saw.

What is measured against what:

- mechanism: the same change on as many random coordinates (the null) and with its signs turned (the ablation);
- advantage: the best of three methods that move whole vectors, heads or masks, tuned over as many settings.

A constant on the logit of the usual answer shows that the bias can be mended at all (the control).
"""

from __future__ import annotations

import contextlib
import copy
import itertools
from collections.abc import Iterator
from statistics import fmean
from typing import Any, ClassVar

import torch
from torch import Tensor

from plexus import edit
from plexus.edit import Edit
from plexus.errors import require
from plexus.lab import Arm, Outcome, Paper, Results, Study, Tuning, interval, study
from plexus.lab._study import BySeed, Quantity
from plexus.studies.steering import _atoms as at
from plexus.studies.steering._atoms import divergence, spoken
from plexus.studies.steering._quiz_bench import (
    MAIN,
    TASKS,
    USUAL,
    Config,
    Prepared,
    fitted_pairs,
    prepared_quiz,
    score_of,
)
from plexus.units import Site

RIVALS = ("caa", "iti", "sadi")


def of(arm: str, metric: str) -> Quantity:
    """One metric of one arm."""
    return lambda seed: seed[arm][metric]


def gain(seed: BySeed, arm: str, task: str = MAIN) -> float:
    """Points of accuracy above the unsteered model."""
    return seed[arm][f"{task} accuracy"] - seed["base"][f"{task} accuracy"]


def rival(seed: BySeed) -> str:
    """The whole-vector method with the highest validation accuracy on the main task."""
    return max(RIVALS, key=lambda arm: seed[arm][f"{MAIN} validation"])


@study
class AtomicSteering(Study):
    """Scale the few coordinates whose sign is most consistent between right and wrong answers."""

    paper: ClassVar[Paper] = Paper(
        "Fine-Grained Activation Steering: Steering Less, Achieving More",
        "Zijian Feng, Tianjiao Li, Zixiao Zhu, Hanzhang Zhou, et al.",
        2026,
        arxiv="2602.04428",
        venue="ICLR",
        code="https://github.com/zijian678/AUSteer",
    )
    claim = "Scaling at most a hundred coordinates with consistent signs beats steering thousands at once."
    refuted_by = "As many random coordinates, or turned signs, help as much; or whole vectors help more."
    fidelity = "B"
    scale_line = (
        "2-layer Llama of width 64 and about 150 words instead of 7B to 9B models; generated yes-or-no, two-choice and "
        "sum questions instead of BoolQ, COPA, WinoGrande and three sets of word problems"
    )
    data = ("quiz world (generated)",)
    seeds = 10
    deviations = (
        "The bias is taught: first true answers about all subjects, then, about half of them, a format in which the "
        "usual answer is given also to most questions to which it is wrong. So the accuracy on the others can be "
        "mended without new knowledge. There are 80 different yes-or-no questions of each part, so they repeat.",
        "Two to 32 coordinates are tried instead of two to 100, and a quarter of the coordinates that the rival moves "
        "instead of a fiftieth is the bar: a block has 64 of them here, and a fiftieth would be one. Where the rival "
        "is the mask, it moves as few as atomic steering may.",
        "Divergence at equal accuracy: the least of each method at the validation accuracy that both reach, doing "
        "nothing included.",
        "`pre-answer` reads the prompt asked once more after prompt and answer: before the answer itself the two "
        "members of a pair are one and the same text.",
        "One model in ten does not take off in its 600 steps; it is taught again from other weights (`attempts`). "
        "Before that was so, five seeds and five others gave 26 (10 to 43) and 32 (23 to 40) points for the mechanism, "
        "-4 (-21 to 13) and 2 (-7 to 10) for the advantage, and a model that knew nothing left the second five "
        "undecided. Bars are unchanged, the seeds are new.",
        "Ten seeds: with the model taught again where needed, five gave -9 (-16 to -2) points for the advantage, five "
        "others 3 (-7 to 13), ten 0.5 (-6 to 7) beside 29 (20 to 39) for the mechanism. In those runs the shifts of "
        "whole vectors ended at 23 mean differences, where the best ones lay, the ranking by mean difference took the "
        "strength of atomic steering instead of its own, and the whole vector's divergence was read at whatever "
        "accuracy it had: mended since. Ten seeds then gave 38 (29 to 47) and -0.4, with shifts up to 200 mean "
        "differences and factors up to 50; some of the chosen ones lay at those ends, so that shifts now go to 2,000 "
        "and factors up to 200, in 120 settings for each method instead of 90. Bars are unchanged, the seeds are new.",
        "Wrong answers of sums are other numbers at random, not those of the nearest item by sentence embedding.",
        "Coordinates are not limited to those that pass the sign test; how many pass, and what share of the chosen "
        "ones does, is measured.",
    )
    Config = Config
    scales: ClassVar[dict[str, dict[str, Any]]] = {
        "smoke": {
            "layers": 1, "hidden": 32, "steps": 10, "batch": 8, "format_steps": 5, "fit": 40, "validation": 20,
            "test": 40, "neutral": 8, "draws": 2, "lessons": 150, "every": 45,
        },
        "full": {},
        "paper": {"layers": 6, "hidden": 256, "steps": 8000, "fit": 1000, "test": 2000},
    }  # fmt: skip
    arms = (
        Arm("base", role="reference"),
        Arm("austeer", method="atoms", role="method"),
        *(Arm(f"austeer, {kind}", method="atoms", kind=kind, role="method") for kind in at.KINDS),
        Arm("mean difference", method="by mean", role="ablation", note="ranked by the size of the mean difference"),
        Arm("pre-answer", method="pre-answer", role="ablation", note="read before the answer, not after it"),
        Arm("flipped", method="flipped", role="ablation", note="signs turned"),
        Arm("dense", method="dense", role="ablation", note="every coordinate"),
        Arm("random", method="random", role="null", note="the same changes on random coordinates"),
        Arm("matched", method="matched", role="null", note="the same changes on coordinates of like size"),
        Arm("caa", method="caa", note="mean difference of the whole vector"),
        Arm("iti", method="iti", note="heads along their mean difference"),
        Arm("sadi", method="sadi", note="a mask of the largest mean differences, scaled"),
        Arm("answer bias", method="bias", role="reference", note="a constant on the logit of the usual answer"),
    )
    checks = (
        interval(f"accuracy before the biased format, {MAIN}, %", of("base", "plain"), role="sanity", at_least=90.0),
        interval(
            f"accuracy in the biased format, {MAIN}, %", of("base", f"{MAIN} accuracy"), role="sanity", at_most=80.0
        ),
        interval("gain by a bias on the answer", lambda s: gain(s, "answer bias"), role="control", at_least=5.0),
        interval(
            "points of accuracy above the better of random coordinates and turned signs",
            lambda s: gain(s, "austeer") - max(gain(s, "random"), gain(s, "flipped")),
            role="mechanism",
            primary=True,
            at_least=4.0,
        ),
        interval("gain, points", lambda s: gain(s, "austeer"), role="mechanism", at_least=5.0),
        interval("gain of random coordinates, points", lambda s: gain(s, "random"), role="mechanism", at_most=1.0),
        interval("gain of turned signs, points", lambda s: gain(s, "flipped"), role="mechanism", at_most=-3.0),
        interval("gain on the choice, points", lambda s: gain(s, "austeer", "choice"), role="mechanism", at_least=5.0),
        interval(
            "points above the ranking by mean difference", lambda s: gain(s, "austeer") - gain(s, "mean difference"),
            role="mechanism", at_least=0.0,
        ),
        interval(
            "folded into weights: largest difference of logits, relative",
            lambda s: max(s[f"austeer, {kind}"]["folded"] for kind in ("attention", "ffn")),
            role="sanity", at_most=1e-5,
        ),
        interval(
            "points above the best of three ways to move whole vectors, heads or masks",
            lambda s: gain(s, "austeer") - gain(s, rival(s)),
            role="advantage",
            primary=True,
            at_least=0.0,
        ),
        interval(
            "coordinates moved, share of the rival's, %",
            lambda s: 100 * s["austeer"][f"{MAIN} moved"] / s[rival(s)][f"{MAIN} moved"],
            role="advantage", at_most=25.0,
        ),
        interval(
            "divergence on neutral text above that of the whole vector at equal accuracy, nats",
            lambda s: s["caa"][f"{MAIN} equal, atoms"] - s["caa"][f"{MAIN} equal, vectors"],
            role="advantage", at_most=0.0,
        ),
    )  # fmt: skip

    def prepare(self, config: Config, seed: int) -> Prepared:
        return prepared_quiz(config, seed)

    def run(self, config: Config, prepared: Prepared, seed: int) -> Outcome:
        metrics: dict[str, float] = {"plain": prepared.plain[MAIN], "attempts": float(prepared.attempts)}
        for task in TASKS:
            found = self._task(config, prepared, task, torch.Generator().manual_seed(seed))
            metrics |= {f"{task} {name}": value for name, value in found.items()}
        if config.method == "atoms" and config.kind in ("attention", "ffn"):
            metrics["folded"] = self._folded(config, prepared)
        return Outcome(metrics)

    def _task(self, config: Config, prepared: Prepared, task: str, numbers: torch.Generator) -> dict[str, float]:
        """One method on one task: its setting chosen on validation questions, its measures on the others."""
        model, before = prepared.model, spoken(prepared.model, prepared.neutral)
        if config.method == "base" or (config.method == "bias" and task not in USUAL):
            plain = prepared.questions[task, "validation"].accuracy(model)
            return self._measured(prepared, task, [], before) | {"validation": plain}
        found = fitted_pairs(prepared, task, "pre_answer" if config.method == "pre-answer" else "answer")
        chosen, validation, tried = self._chosen(config, prepared, task, found)
        assert chosen.edit is not None
        changes = [chosen.edit]
        if config.method == "random":
            changes = at.stand_ins(chosen.edit, numbers, config.draws)
        elif config.method == "matched":
            size = found[chosen.setting["kind"]].size
            changes = at.stand_ins(chosen.edit, numbers, config.draws, match=size)
        metrics = self._measured(prepared, task, changes, before)
        metrics |= {"validation": validation, "tried": float(tried), "moved": float(chosen.moved)}
        metrics |= {name: float(value) for name, value in chosen.setting.items() if isinstance(value, int | float)}
        if "kind" in chosen.setting:
            metrics["kind"] = float(at.KINDS.index(chosen.setting["kind"]))
        if config.method == "atoms":
            metrics |= self._believed(found, chosen)
        if config.method == "caa" and task == MAIN:
            metrics |= self._equal(config, prepared, task, found, before)
        return metrics

    def _chosen(
        self, config: Config, prepared: Prepared, task: str, found: dict[str, at.Fitted]
    ) -> tuple[at.Candidate, float, int]:
        """The setting of an arm: its own, from the validation questions, or that of atomic steering."""
        score = score_of(prepared, task)
        if config.method in ("atoms", "pre-answer", "by mean"):
            kinds = (config.kind,) if config.kind else at.KINDS
            return at.best(at.atoms(found, kinds, config.method == "by mean"), score, config.every)
        if config.method in RIVALS:
            return at.best(self._rivals(config.method, prepared, found), score, config.every)
        if config.method == "bias":
            head = Site("lm_head", "b t u")
            token = prepared.tokenizer.convert_tokens_to_ids(USUAL[task])
            return at.best(at.biased(head, len(prepared.tokenizer), token), score)
        setting, accuracy = prepared.chosen[task]
        kind, k, strength = setting["kind"], setting["k"], setting["strength"]
        here = found[kind]
        if config.method == "dense":
            total = sum(here.mean.sizes.values())
            return at.best((at.atomic(here, total, strength) for strength in at.STRENGTHS), score)
        if config.method == "flipped":
            strength = -strength
        made = at.atomic(here, k, strength)
        return at.Candidate(setting, made.edit, made.moved), accuracy, 0

    @staticmethod
    def _rivals(method: str, prepared: Prepared, found: dict[str, at.Fitted]) -> Iterator[at.Candidate]:
        if method == "iti":
            return at.heads(found, prepared.model.config.num_attention_heads)
        return at.vectors(found) if method == "caa" else at.masked(found)

    def _measured(self, prepared: Prepared, task: str, changes: list[Edit], before: Tensor) -> dict[str, float]:
        """Accuracy on the task and on the others, and divergence on neutral text; a mean over several changes."""
        model, trials = prepared.model, []
        for change in changes or [None]:
            with change.on(model) if change is not None else contextlib.nullcontext():
                scores = {other: prepared.questions[other, "test"].accuracy(model) for other in TASKS}
                moved = divergence(before, spoken(model, prepared.neutral))
            rest = fmean(scores[other] for other in TASKS if other != task)
            trials.append({"accuracy": scores[task], "others": rest, "divergence": moved})
        return {name: fmean(trial[name] for trial in trials) for name in trials[0]}

    def _believed(self, fitted: dict[str, at.Fitted], chosen: at.Candidate) -> dict[str, float]:
        """How many coordinates pass the sign test, what share of the chosen ones, and the largest relative change."""
        found = fitted[chosen.setting["kind"]].signs
        passed = found.significant()
        assert chosen.edit is not None
        units = chosen.edit.neurons
        largest = max(
            float(found.beta[site].abs()[units.mask(site)].max()) for site in units.sites if units.counts[site]
        )
        return {
            "passed": float(len(passed)),
            "believed": 100 * len(units & passed.at(*units.sites)) / len(units),
            "consistency": largest,
            "change": chosen.setting["strength"] * largest,
        }

    def _equal(
        self, config: Config, prepared: Prepared, task: str, found: dict[str, at.Fitted], before: Tensor
    ) -> dict[str, float]:
        """The least divergence of the whole vector and of atomic steering at a validation accuracy that both reach."""
        score, nothing = score_of(prepared, task), prepared.questions[task, "validation"].accuracy(prepared.model)
        tried: dict[str, list[tuple[float, float]]] = {}
        for name, candidates in (("vectors", at.vectors(found)), ("atoms", at.atoms(found))):
            tried[name] = [(nothing, 0.0)]
            for candidate in itertools.islice(candidates, 0, None, config.every):
                assert candidate.edit is not None
                with candidate.edit.on(prepared.model):
                    moved = divergence(before, spoken(prepared.model, prepared.neutral))
                tried[name].append((score(candidate.edit), moved))
        goal = min(max(accuracy for accuracy, _ in each) for each in tried.values())
        least = {
            f"equal, {name}": min(moved for accuracy, moved in each if accuracy >= goal) for name, each in tried.items()
        }
        return least | {"equal accuracy": goal}

    def _folded(self, config: Config, prepared: Prepared) -> float:
        """Largest difference between the logits of the steered and of the folded model, relative to the largest."""
        chosen, _, _ = self._chosen(config, prepared, MAIN, fitted_pairs(prepared, MAIN))
        assert chosen.edit is not None
        tokens, folded = prepared.questions[MAIN, "test"].tokens[:64], copy.deepcopy(prepared.model)
        edit.bake(folded, chosen.edit)
        with torch.no_grad(), chosen.edit.on(prepared.model):
            steered = prepared.model(input_ids=tokens).logits
        with torch.no_grad():
            return float((folded(input_ids=tokens).logits - steered).abs().max() / steered.abs().max())

    def tune(self, config: Config) -> Tuning:
        """Settings are chosen in each trial, on validation questions; here only how many each arm may try."""
        methods, every = len(at.COUNTS) * len(at.STRENGTHS), len(at.KINDS) * len(at.COUNTS) * len(at.STRENGTHS)
        budget = {arm.name: 0 for arm in self.arms}
        budget |= dict.fromkeys(("austeer", "mean difference", "pre-answer", *RIVALS), every)
        budget |= {f"austeer, {kind}": methods for kind in at.KINDS} | {"dense": len(at.STRENGTHS), "answer bias": 10}
        note = "chosen in each trial, for each task, by accuracy on its validation questions"
        return Tuning({}, budget, note + "; turned signs, all coordinates and nulls take the setting of `austeer`")

    def figures(self, results: Results) -> dict[str, Any]:
        graph = require("plotly.graph_objects", "lab", purpose="figures")
        bars = graph.Figure()
        for task in TASKS:
            base = results.metric("base", f"{task} accuracy")
            names = [arm for arm in results.trials if arm != "base"]
            gains = [results.metric(arm, f"{task} accuracy") - base for arm in names]
            bars.add_bar(x=names, y=[g.mean() for g in gains], name=task, error_y={"array": [g.std() for g in gains]})
        bars.update_layout(yaxis_title="points of accuracy above the unsteered model", barmode="group")
        cost = graph.Figure()
        for arm in results.trials:
            x, y = results.metric(arm, f"{MAIN} divergence"), results.metric(arm, f"{MAIN} accuracy")
            cost.add_scatter(x=x + 1e-6, y=y, mode="markers", name=arm)
        cost.update_layout(
            xaxis_title="divergence of the next token on neutral text, nats", xaxis_type="log",
            yaxis_title="accuracy on yes-or-no questions, %",
        )  # fmt: skip
        few = graph.Figure()
        for arm in ("austeer", *RIVALS):
            x, y = results.metric(arm, f"{MAIN} moved"), results.metric(arm, f"{MAIN} accuracy")
            few.add_scatter(x=x, y=y, mode="markers", name=arm)
        few.update_layout(xaxis_title="coordinates moved", xaxis_type="log", yaxis_title="accuracy, %")
        return {"What each method gains": bars, "Accuracy against side effects": cost, "How few suffice": few}
