"""Damping the singular directions of an output layer on which states load before a rude word: the controlled arm.

A small Llama learns sentences in which an angry cue brings rude words about, and questions whether a rude word stands
in a walk; so writing rude words and noticing them are two skills, and an edit may damage one without the other. From
sampled continuations come the states that predicted a rude word and those that began a continuation without one; every
arm edits the same model, and its continuations of unseen angry prompts meet the same random numbers.

Rudeness is the share of *tokens* from the word list: after an angry cue nearly every continuation of twenty tokens
holds one, so the share of continuations, which is measured too, moves late. The list takes the place of a classifier.

What is measured against what:

- mechanism: as many random directions (the null, a mean over draws), and the published projection V h in the place of
  Vᵀ h (the ablation);
- advantage: a bias on the logits of the word list, which needs the same list and no decomposition; and for the form
  that needs no list, the three ways to scale units that detect.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from plexus.data import corpora
from plexus.lab import Paper, exact, interval, study
from plexus.lab._study import Quantity
from plexus.lab.models import train_language_model
from plexus.probe import scores
from plexus.studies.steering._damping import Bench
from plexus.studies.steering._damping_study import (
    ARMS,
    ASKED_OF_ALL,
    Config,
    DampingStudy,
    Prepared,
    above_nulls,
    collect,
    generator,
    of,
)
from plexus.studies.steering._experts import responses

PAPER = Paper(
    "Redefining Experts: Interpretable Decomposition of Language Models for Toxicity Mitigation",
    "Zuhair Hasan Shaik, Abdullah Mazhar, Aseem Srivastava, Md Shad Akhtar",
    2025,
    arxiv="2509.16660",
    venue="NeurIPS",
    code="https://github.com/flamenlp/EigenShift",
)


def lost(arm: str) -> Quantity:
    """Points of detection accuracy lost."""
    return lambda seed: seed[arm]["base_detection"] - seed[arm]["detection"]


@study
class EigenShift(DampingStudy):
    """Less rudeness by damping a few singular directions of the output layer."""

    paper: ClassVar[Paper] = PAPER
    claim = (
        "Shrinking the few singular directions of the output layer on which hidden states load before a toxic token "
        "cuts toxicity at little cost of fluency, where silencing the units that detect it destroys the model."
    )
    refuted_by = "As many random directions, or the projection with V in the place of Vᵀ, cut toxicity as much."
    fidelity = "B"
    scale_line = (
        "2-layer Llama of width 64 and 259 words on generated sentences instead of LLaMA-2 7B; 40 prompts with "
        "4 continuations of 20 tokens instead of 5,000 with 25"
    )
    data = ("rude world (generated)",)
    deviations = (
        "The word list itself says what is rude; there is no external classifier and no saliency, so the responsible "
        "token is known.",
        "States are collected from sampled continuations, not greedy ones, and kept where the most likely token is "
        "another one: here no single rude word is ever the most likely. How many would be kept is measured (`sure`).",
        "Rudeness is the share of tokens, because nearly every continuation holds a rude word; the share of "
        "continuations and of prompts with one among their continuations are measured beside it.",
        "Directions are ranked by their part in the margin of the word list, by the level of that part (`push`) or by "
        "|Δ|/σ; the published order, which hangs on the signs of the decomposition, and the published projection V h "
        "are arms.",
        "Units are scored on the sentences: a concept that is a list of words is easy for single units to detect, so "
        "that a layer's probe can hardly be better here.",
        "Perplexity is that of neutral sentences of the same world instead of Wikipedia's.",
        "States come from prompts of angry and of calm turns alike, so that those without a rude word are nearly all "
        "of calm ones; and tokens are sampled from the whole distribution, not from its upper 95 %.",
        "As many of the largest singular values are to be beaten by a point: where one direction is damped, both "
        "orders may choose the same, and a bar of 0 would be met by that. In earlier runs the bar was 0, and the three "
        "ways to scale units took the first of their settings where none of them reduced anything.",
        "Forty seeds: in one of ten, the signs of the decomposition let the published projection damp the right "
        "direction too, which makes ten seeds a draw between 'undecided' and 'holds' (76 points, 57 to 96, and for ten "
        "others 75, 56 to 94; bar 60). Bars are unchanged, the seeds are new.",
    )
    seeds = 40
    Config = Config
    scales: ClassVar[dict[str, dict[str, Any]]] = {
        "smoke": {
            "layers": 1, "hidden": 32, "steps": 20, "batch": 16, "texts": 600, "clean_steps": 2, "collected": 120,
            "labelled": 120, "prompts": 8, "samples": 2, "new": 8, "neutral": 16, "draws": 3, "halves": 1,
            "tuning_seeds": 0,
        },
        "full": {},
        "paper": {"layers": 4, "hidden": 256, "steps": 4000, "texts": 60000, "prompts": 512, "samples": 25},
    }  # fmt: skip
    arms = ARMS
    checks = (
        *ASKED_OF_ALL,
        interval("rude tokens after angry cues, unedited, %", of("none", "base_tokens"), role="sanity", at_least=20.0),
        interval("accuracy on the questions, unedited, %", of("none", "base_detection"), role="sanity", at_least=90.0),
        interval("less rudeness by a bias on the list, %", of("logit bias", "reduction"), role="control", at_least=50),
        interval(
            "points of rudeness cut, above the larger of as many random directions and the published projection",
            above_nulls,
            role="mechanism",
            primary=True,
            at_least=60.0,
        ),
        interval("less rudeness, %", of("margin", "reduction"), role="mechanism", at_least=70.0),
        interval("ranked by level: less rudeness, %", of("push", "reduction"), role="mechanism", at_least=70.0),
        interval("without a list: less rudeness, %", of("abs", "reduction"), role="mechanism", at_least=70.0),
        interval("one random direction: less, %", of("random, one", "reduction"), role="mechanism", at_most=10),
        interval(
            "published projection: distance from no effect, %",
            lambda seed: abs(seed["published"]["reduction"]),
            role="mechanism",
            at_most=15.0,
        ),
        interval(
            "published order, one direction: spread over random signs, points",
            of("signed", "flip_spread"),
            role="mechanism",
            at_least=20.0,
        ),
        exact("the margin's scores: change over random signs", of("signed", "flip_margin"), role="sanity", margin=0),
        interval("every detector silenced: detection lost, points", lost("det-0, all"), role="mechanism", at_least=15),
        interval("directions damped: detection lost, points", lost("margin"), role="mechanism", at_most=2.0),
    )  # fmt: skip

    def prepare(self, config: Config, seed: int) -> Prepared:
        numbers = generator(seed, "world")
        world = corpora.rude_world(generator=numbers)
        sentences = world.sentences(config.texts * 2 // 3, generator=numbers)
        learnt = [*sentences, *world.questions(config.texts // 3, generator=numbers)]
        tokenizer = corpora.word_tokenizer(learnt, extra=world.words)
        made = train_language_model(
            learnt, tokenizer=tokenizer, layers=config.layers, hidden=config.hidden, heads=config.heads,
            steps=config.steps, batch=config.batch, rate=config.rate, seed=seed, cache=False, progress=False,
        )  # fmt: skip
        words = torch.tensor(tokenizer.convert_tokens_to_ids(list(world.rude)))

        def tokens(texts: list[str]) -> Tensor:
            return tokenizer(texts, return_tensors="pt").input_ids  # type: ignore[no-any-return]

        mixed = tokens([item.prompt for item in world.sentences(config.collected, generator=numbers)])
        batch = {"input_ids": mixed, "attention_mask": torch.ones_like(mixed)}
        present, absent, sure = collect(config, made.model, [batch], words, seed)
        labelled = tokens([item.text for item in world.sentences(config.labelled, generator=numbers)])
        shown = torch.isin(labelled, words).any(1)
        units = scores.auroc(responses(made.model, labelled, shown))
        prompts, neutral, questions = {}, {}, {}
        for part in ("validation", "test"):
            angry = world.sentences(config.prompts, angry=1.0, generator=numbers)
            calm = world.sentences(config.neutral, angry=0.0, clean=True, generator=numbers)
            asked = world.questions(config.neutral, generator=numbers)
            prompts[part] = tokens([item.prompt for item in angry])
            neutral[part] = tokens([item.text for item in calm])
            questions[part] = tokens([q.prompt for q in asked]), torch.tensor([q.answer == "yes" for q in asked])
        clean = [*world.sentences(config.texts // 6, clean=True, generator=numbers), *learnt[len(sentences) :]]
        bench = Bench(
            made.model, tokenizer, words, present, absent, units, sure, prompts, neutral, prompts["test"].shape[1]
        )
        return Prepared(bench, (labelled, shown), [item.text for item in clean], questions)

    def further(self, prepared: Prepared, model: Any, part: str) -> dict[str, float]:
        """Accuracy on the questions, in per cent: by the larger logit of the two answers, and by the largest of all."""
        tokens, truth = prepared.questions[part]
        yes, no = prepared.bench.tokenizer.convert_tokens_to_ids(["yes", "no"])
        with torch.no_grad():
            logits = model(input_ids=tokens, use_cache=False).logits[:, -1]
        said, answer = logits[:, yes] > logits[:, no], torch.where(truth, yes, no)
        return {
            "detection": 100 * float((said == truth).double().mean()),
            "detection_open": 100 * float((logits.argmax(1) == answer).double().mean()),
        }
