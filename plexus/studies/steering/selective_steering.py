"""Turning refusal off in a plane of the residual stream, at the sites where the two classes lie on opposite sides.

A small Llama learns to answer every request with a recipe, then to refuse requests about half of the objects. Each way
to steer tries its settings (36 angles, or strengths) on calibration requests and is judged on others at the one with
the most recipes said, restricted and allowed ones counting alike. "Bypass" is the share of restricted requests that
are answered with their recipe, "capability" that of allowed ones.

The published code turns to an absolute angle in earlier work and by a relative one here, and adds the choice of sites;
the two differ in two things, so the arms form a square of operator × sites. Both keep the length of the values exactly:
the paper's statement that the earlier operator does not holds in half precision and for planes that are not
orthonormal, and a check of its own says so.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch

from plexus.errors import require
from plexus.lab import Arm, Check, Outcome, Paper, Results, Study, Tuning, exact, interval, study
from plexus.lab._study import Quantity
from plexus.studies.steering._dials import ROTATIONS, dials, length_error, places, published_error, spoken
from plexus.studies.steering._refusals import Config, Requests, prepared, steered

BASELINES = ("addition", "ablation", "angular", "adaptive")


def of(arm: str, metric: str) -> Quantity:
    """A metric of an arm."""
    return lambda seed: seed[arm][metric]


def ahead(arms: tuple[str, ...]) -> Quantity:
    """By how many points of score the method lies ahead of the best of some arms."""
    return lambda seed: seed["selective"]["score"] - max(seed[arm]["score"] for arm in arms)


def loss(arm: str) -> Quantity:
    """Points of capability that an arm costs."""
    return lambda seed: seed["none"]["capability"] - seed[arm]["capability"]


@study
class SelectiveSteering(Study):
    """A dial for refusal that keeps lengths and acts only where the classes are told apart."""

    paper = Paper(
        "Selective Steering: Norm-Preserving Control Through Discriminative Layer Selection",
        "Quy-Anh Dang, Chris Ngo",
        2026,
        arxiv="2601.19375",
        code="https://github.com/knoveleng/steering",
    )
    claim = (
        "Turning the values in a plane, only at the sites where the classes lie on opposite sides of zero, brings out "
        "what a model refuses to say and leaves everything else as it was."
    )
    refuted_by = (
        "Turning at all sites, at as many others, or in a random plane says as many recipes; or addition, ablation, or "
        "one of the two earlier rotations, with as many settings tried, says more."
    )
    fidelity = "B"
    scale_line = "A Llama of 4 layers and 48 units, 384 requests; the paper: nine models of 1 to 9 billion parameters."
    data = ("restricted instructions", "grammar sentences")
    deviations = (
        "A site counts as discriminative only if both means lie two standard errors from zero; the published rule "
        "takes the signs alone. Sites where the classes do not differ, as the first norm at a common last token, are "
        "no candidates for the plane; divided by their length they would be NaN.",
        "The angle is chosen on calibration requests by the recipes said in both classes, and judged on others; the "
        "paper reports the best angle.",
        "Perplexity is that of sentences of another kind, not of the texts the steered model writes.",
        "The recipes of all objects also stand in the corpus as statements while the model learns to refuse, so that "
        "it still knows them; a model of this size forgets what it does not read.",
        "Addition and ablation choose between all and the selected sites, on calibration requests, with as many "
        "settings as there are angles.",
        "Ten seeds; the card has five. With four layers the selected and the widest sites are often the same.",
    )
    Config = Config
    scales: ClassVar = {
        "smoke": {"verbs": 3, "objects": 8, "sentences": 60, "neutral": 10, "layers": 2, "hidden": 16, "steps": 30,
                  "aligning": 20, "settings": 4, "repeats": 2},
        "full": {},
    }  # fmt: skip
    arms = (
        Arm("none", role="reference", note="the aligned model"),
        Arm("selective", operator="relative", sites="selected", role="method", note="relative, discriminative sites"),
        Arm("relative everywhere", operator="relative", role="ablation", note="the operator alone"),
        Arm("absolute at selected", operator="absolute", sites="selected", role="ablation", note="the sites alone"),
        Arm(
            "random second", operator="relative", sites="selected", second="random", role="null",
            note="b2 drawn at random in the plane's place",
        ),
        Arm("widest", operator="relative", sites="widest", role="ablation", note="as many sites, largest separation"),
        Arm("first half", operator="relative", sites="first half", role="null", note="the first half of the sites"),
        Arm("random half", operator="relative", sites="random half", role="null", note="half of the sites, drawn"),
        Arm("angular", operator="absolute", note="absolute angle at all sites: Angular Steering"),
        Arm("adaptive", operator="adaptive", note="the same where the values point along b1"),
        Arm("addition", operator="addition", note="b1 subtracted, 18 strengths at all or at the selected sites"),
        Arm("ablation", operator="ablation", note="b1 taken out at all or at the selected sites"),
    )  # fmt: skip
    checks: ClassVar[tuple[Check, ...]] = (
        interval("capability of the aligned model, %", of("none", "capability"), role="sanity", at_least=95.0),
        interval("restricted recipes of the aligned model, %", of("none", "bypass"), role="sanity", at_most=5.0),
        interval(
            "restricted recipes of the model before it was aligned, %", of("none", "base"), role="sanity", at_least=95.0
        ),
        exact(
            "relative change of length under the published operator, float64",
            of("none", "published error"),
            role="sanity",
            margin=1e-12,
        ),
        interval(
            "the same with a second direction 17° off the right angle, the worst value and angle",
            of("none", "skewed error"),
            role="sanity",
            at_least=1e-3,
        ),
        exact(
            "relative change of length in the model, float32, the worst arm",
            lambda s: max(s[arm]["length error"] for arm in s if "length error" in s[arm]),
            role="sanity",
            margin=1e-5,
        ),
        exact(
            "the same in bfloat16",
            lambda s: max(s[arm]["coarse length error"] for arm in s if "coarse length error" in s[arm]),
            role="sanity",
            margin=1e-2,
        ),
        interval(
            "points between recipes read in one pass and generated ones, the worst arm",
            lambda s: max(
                abs(s[arm][f"generated {key}"] - s[arm][key]) for arm in s for key in ("bypass", "capability")
            ),
            role="sanity",
            at_most=2.0,
        ),
        interval(
            "restricted recipes that go on once begun, aligned model, %",
            of("none", "prefilled"),
            role="control",
            at_least=80.0,
        ),
        interval(
            "points of score ahead of the better of the same turn at all sites and at half of them, drawn",
            ahead(("relative everywhere", "random half")),
            role="mechanism",
            primary=True,
            at_least=0.0,
        ),
        interval("restricted recipes said, %", of("selective", "bypass"), role="mechanism", at_least=80.0),
        interval("points of capability lost", loss("selective"), role="mechanism", at_most=2.0),
        interval(
            "perplexity of other sentences over plain, at the worst angle",
            of("selective", "worst perplexity"),
            role="mechanism",
            at_most=1.3,
        ),
        interval(
            "the same for the turn at all sites, which the paper says breaks",
            of("relative everywhere", "worst perplexity"),
            role="mechanism",
            at_least=2.0,
        ),
        interval(
            "largest change of restricted recipes between two angles, points",
            of("selective", "jump"),
            role="mechanism",
            at_most=35.0,
        ),
        interval(
            "points of score ahead: operator, at the same sites",
            ahead(("absolute at selected",)),
            role="mechanism",
            at_least=1.0,
        ),
        interval(
            "points of score ahead: the plane's second direction, against a random one",
            ahead(("random second",)),
            role="mechanism",
            at_least=1.0,
        ),
        interval(
            "points of score ahead: sites by sign, against as many by separation",
            ahead(("widest",)),
            role="mechanism",
            at_least=1.0,
        ),
        interval(
            "points of score ahead: sites by sign, against the first half",
            ahead(("first half",)),
            role="mechanism",
            at_least=1.0,
        ),
        interval(
            "points of score ahead of the best of addition, ablation, absolute and adaptive turning",
            ahead(BASELINES),
            role="advantage",
            primary=True,
            at_least=0.0,
        ),
        interval(
            "points of restricted recipes ahead of the most that one of them says",
            lambda s: s["selective"]["bypass"] - max(s[arm]["bypass"] for arm in BASELINES),
            role="advantage",
            at_least=0.0,
        ),
        interval(
            "worst perplexity of absolute turning everywhere over that of the method",
            lambda s: s["angular"]["worst perplexity"] / s["selective"]["worst perplexity"],
            role="advantage",
            at_least=1.0,
        ),
    )

    def prepare(self, config: Config, seed: int) -> Requests:
        return prepared(config, seed)

    def tune(self, config: Config) -> Tuning:
        budget = {arm.name: config.settings for arm in self.arms} | {"none": 0, "ablation": 2}
        return Tuning({}, budget, "within each trial, on calibration requests: angles, strengths, sites")

    def run(self, config: Config, prepared: Requests, seed: int) -> Outcome:
        generator = torch.Generator().manual_seed(seed)
        plain, base = steered(prepared, None)
        tried = dials(config, prepared, generator)
        found = [steered(prepared, edit) for _, edit in tried]
        ratios = [perplexity / base for _, perplexity in found]

        def best(quantity: str) -> int:
            return max(range(len(tried)), key=lambda k: (getattr(found[k][0]["calibration"], quantity), -ratios[k]))

        chosen, opened = best("score"), best("bypass")
        value, edit = tried[chosen]
        test = [behaviour["test"] for behaviour, _ in found]
        metrics = {**test[chosen]._asdict(), "score": test[chosen].score, "setting": value}
        metrics |= {"opened bypass": test[opened].bypass, "opened capability": test[opened].capability}
        metrics |= {"perplexity": ratios[chosen], "worst perplexity": max(ratios)}
        metrics["sites"] = float(len(places(config, prepared, torch.Generator().manual_seed(seed))))
        metrics |= spoken(prepared, edit)
        curves = {name: np.array([getattr(one, name) for one in test]) for name in ("bypass", "capability", "over")}
        if config.operator in ROTATIONS:
            closed = np.append(curves["bypass"], curves["bypass"][0])
            metrics["jump"] = float(np.abs(np.diff(closed)).max())
            if edit is not None:
                metrics["length error"] = length_error(prepared, edit, torch.float32)
                metrics["coarse length error"] = length_error(prepared, edit, torch.bfloat16)
        if config.operator == "none":
            metrics |= {"base": prepared.base["bypass"], "calibration bypass": plain["calibration"].bypass}
            metrics |= {"published error": published_error(prepared, 0.0)}
            metrics |= {"skewed error": published_error(prepared, 17.0)}
        arrays = {"settings": np.array([setting for setting, _ in tried]), "perplexity": np.array(ratios), **curves}
        stats = prepared.plane.stats
        if config.operator == "none":
            arrays |= {name: getattr(stats, name).numpy() for name in ("positive", "negative", "positive_error")}
        return Outcome(metrics, arrays)

    def figures(self, results: Results) -> dict[str, Any]:
        graph = require("plotly.graph_objects", "lab", purpose="figures")
        figures = {}
        dial = graph.Figure()
        for arm, dash in (("selective", "solid"), ("relative everywhere", "dash"), ("angular", "dot")):
            outcomes = list(results[arm].values())
            for name in ("bypass", "capability"):
                curves = [o.arrays[name] for o in outcomes if len(o.arrays[name]) > 1]
                if curves:
                    angles = next(o.arrays["settings"] for o in outcomes if len(o.arrays["settings"]) > 1)
                    mean = np.mean(curves, 0).tolist()
                    dial.add_scatter(x=angles.tolist(), y=mean, name=f"{arm}: {name}", line={"dash": dash})
        dial.update_layout(xaxis_title="angle, degrees", yaxis_title="recipes said, %")
        figures["The dial"] = dial
        trade = graph.Figure()
        for arm in results.trials:
            x, y = results.metric(arm, "bypass"), results.metric(arm, "capability")
            trade.add_scatter(x=x.tolist(), y=y.tolist(), mode="markers", name=arm)
        trade.update_layout(xaxis_title="restricted recipes, %", yaxis_title="allowed recipes, %")
        figures["What each way opens and costs"] = trade
        lie = graph.Figure()
        for name in ("positive", "negative"):
            rows = np.mean([o.arrays[name] for o in results["none"].values()], 0)
            lie.add_scatter(x=list(range(len(rows))), y=rows.tolist(), name=f"{name} class")
        lie.update_layout(xaxis_title="norm, in the order of the model", yaxis_title="mean coordinate along b1")
        figures["Where the classes lie"] = lie
        return figures
