"""Units of languages before and after alignment, among languages that are related by construction.

A small Llama learns English-like sentences and four ciphers of them with orders of words of their own: the fourth
shares half of its words with the second, the fifth is rare. It also learns questions about facts; names and answers are
the same in every language, English is told all facts, the others a quarter. Then the model learns preferences between
answers in the second and third language: the better answer is the one that it gives itself in English.

Units are found in questions with the model's own answers, the same questions in every language and none that alignment
teaches: how often each gate is open, by language. What a language loses without them is read on other questions.

What is measured against what:

- control: gates that are planted, each to open by the words of one language, must be found;
- mechanism: units without the magnitude term (λ = 0), and random units of the same layers, as many for each language;
- advantage: units by the difference of their means and by average precision, as many for each language;
- alignment: better and worse drawn by a coin, as many further steps on the old texts alone, which also shows by how
  much the counts of kinds scatter; imitation of the better answers beside preferences, and in their place.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import torch

from plexus.data import corpora
from plexus.data.corpora._languages import LANGUAGES
from plexus.lab import Arm, Paper, interval, study
from plexus.lab.models import train_language_model
from plexus.studies.language._alignment import answered, pairs
from plexus.studies.language._language_bench import Bench
from plexus.studies.language._language_study import (
    ALIGNERS,
    ASKED_OF_ALL,
    FINDERS,
    Config,
    LanguageStudy,
    Prepared,
    gained,
    generator,
    of,
)

PAPER = Paper(
    "How does Alignment Enhance LLMs' Multilingual Capabilities? A Language Neurons Perspective",
    "Shimao Zhang, Zhejian Lai, Xiang Liu, Shuaijie She, Xiao Liu, Yeyun Gong, Shujian Huang, Jiajun Chen",
    2026,
    arxiv="2505.21505",
    venue="AAAI",
    code="https://github.com/NJUNLP/Language-Neurons-Alignment",
)
ALIGNED = ("l2", "l3")


@study
class AlignmentLanguageNeurons(LanguageStudy):
    """Language units by entropy with a magnitude term, and what alignment does to them."""

    paper: ClassVar[Paper] = PAPER
    claim = (
        "Scoring units by the entropy of their activation over languages with a magnitude term, its weight searched, "
        "finds cleaner language units than entropy alone; alignment lowers specific and raises related units, also "
        "those of languages outside the training."
    )
    refuted_by = "Units without the magnitude term, or random ones, tie the losses to the languages as well."
    fidelity = "B"
    scale_line = (
        "3-layer Llama of width 64 with 1,152 gates on generated sentences in one language and four ciphers of it, "
        "instead of LLaMA-2 7B and others on ten real languages; 60 steps of alignment on about 240 questions"
    )
    data = ("tongues (generated)",)
    deviations = (
        "6 % of the units are chosen instead of 1 %, which would be 12 units for five languages.",
        "λ is searched geometrically from 0.02 to 32, to 2 %, in at most 12 values, instead of evenly in [0, 0.2] to "
        "0.001: a small model's gates are open about half of the time instead of rarely. The published range is an "
        "arm. In earlier runs the search was even and ended at 2, which it met in three of ten seeds. Where even 32 "
        "lets no chosen unit serve all languages the search ends there; that a wider one would choose the same units "
        "is a check.",
        "Gates are counted over questions with the model's own answers, the mark at the beginning left out, instead "
        "of over the answers alone: an answer is one name, the same in every language. The answers alone are an arm, "
        "and so are the model's own continuations of sentences, which were counted in earlier runs.",
        "D is read on whole questions with their right answers, other ones than those in which units are found, of "
        "facts that a language was not told; English was told all. In earlier runs it was read on sentences, which "
        "are now a measure beside, without a bar.",
        "That no chosen unit serves all languages and that at most 12 values of λ are tried hold by how the search is "
        "built: they are reported. Checks of that were replaced by planted units, and by whether silencing the units "
        "of a language hurts it more than the others.",
        "The arm with λ = 0 keeps what serves one language alone, and orders it without the magnitude term; in "
        "earlier runs it took what serves a language among others, too, which is now an arm of its own.",
        "Names of two words stay whole in languages of another order of words; in earlier runs that order parted them.",
        "Alignment is by answers to questions alone, 60 steps instead of 300, without a translation task; a worse "
        "answer is drawn where the model's own agrees with English. Texts of the first training come along in each "
        "step: without them so small a model forgets what it knew, English questions included. Imitation beside or in "
        "the place of preferences is an arm.",
        "Words are tokens, so that counts per token and per word are the same.",
        "Specific units are compared at equal numbers per language; D leaves out languages in which the method finds "
        "none, in every arm. Nothing is tuned, neither in the method, whose search looks at no loss, nor in the "
        "rivals, which have no weight to search.",
    )
    scales: ClassVar[dict[str, dict[str, Any]]] = {
        "smoke": {
            "layers": 3, "hidden": 32, "intermediate": 96, "steps": 40, "batch": 32, "texts": 600, "entities": 6,
            "prompts": 20, "tests": 10, "draws": 1, "align_steps": 4, "align_batch": 8, "percentile": 0.9,
        },
        "full": {},
        "paper": {
            "layers": 6, "hidden": 192, "intermediate": 768, "steps": 6000, "texts": 60000, "prompts": 500,
            "tests": 300, "share": 0.01, "align_steps": 300, "align_rate": 3e-4,
        },
    }  # fmt: skip
    arms = (
        *FINDERS,
        Arm("own answers alone", how="elsewhere", on="own", role="ablation",
            note="gates counted in the model's answer alone"),
        Arm("on sentences", how="elsewhere", on="sentences", new=8, role="ablation",
            note="units found in the model's own continuations of sentences"),
        *ALIGNERS,
    )  # fmt: skip
    checks = (
        *ASKED_OF_ALL,
        interval("questions in English, %", of("aligned", "base_l1"), role="sanity", at_least=95.0),
        interval(
            "units of the two related languages alone, above 3 × the mean of other pairs",
            lambda seed: seed["method"]["pair"] - 3 * seed["method"]["other_pairs"],
            role="mechanism",
            at_least=0.0,
        ),
        interval("aligned languages gain, points", gained(ALIGNED), role="mechanism", at_least=5.0),
        interval(
            "aligned languages gain above shuffled preferences and further training, points",
            lambda seed: gained(ALIGNED)(seed) - max(gained(ALIGNED, arm)(seed) for arm in ("shuffled", "further")),
            role="mechanism",
            at_least=0.0,
        ),
        interval(
            "change of specific less change of related units",
            of("aligned", "specific_minus_related"),
            role="mechanism",
            at_most=0.0,
        ),
        interval(
            "the same, beside as many further steps on the old texts",
            lambda seed: seed["aligned"]["specific_minus_related"] - seed["further"]["specific_minus_related"],
            role="mechanism",
            at_most=0.0,
        ),
        interval(
            "the untrained related language gains above the untrained rare one, points",
            lambda seed: seed["aligned"]["gain_l4"] - seed["aligned"]["gain_l5"],
            role="mechanism",
            at_least=2.0,
        ),
    )

    def prepare(self, config: Config, seed: int) -> Prepared:
        numbers = generator(seed, "tongues")
        languages = [replace(language, facts=config.facts) for language in LANGUAGES]
        world = corpora.tongues(languages, entities=config.entities, generator=numbers)
        learnt: list[str] = []
        for name, share in zip(world.names, config.mixture, strict=True):
            count = config.texts * share // 100
            told = world.items(name, told=True)
            learnt += world.sentences(name, count, generator=numbers)
            learnt += [told[i].text for i in torch.randint(len(told), (count,), generator=numbers).tolist()]
        words = [name for cipher in world.ciphers.values() for name in cipher.words.values()]
        tokenizer = corpora.word_tokenizer(learnt, extra=words)
        made = train_language_model(
            learnt, tokenizer=tokenizer, layers=config.layers, hidden=config.hidden, heads=config.heads,
            intermediate=config.intermediate, steps=config.steps, batch=config.batch, rate=config.rate, seed=seed,
            cache=False, progress=False,
        )  # fmt: skip
        facts = list(world.world.facts)
        taught = {facts[i] for i in torch.randperm(len(facts), generator=numbers)[: len(facts) // 2].tolist()}

        def half(name: str, inside: bool, told: bool | None) -> list[corpora.Item]:
            return [item for item in world.items(name, told=told) if ((item.concept, item.subject) in taught) == inside]

        def unknown(name: str, inside: bool) -> list[corpora.Item]:
            return half(name, inside, None if name == world.names[0] else False)

        # units are looked for in the same questions of every language, none of which is ever taught by alignment
        asked_of_all = {name: half(name, False, None) for name in world.names}
        drawn = torch.randperm(len(asked_of_all[world.names[0]]), generator=numbers)[: config.prompts].tolist()
        prompts = {name: [items[i].prompt for i in drawn] for name, items in asked_of_all.items()}
        validation, tests = {}, {}
        for name in world.names:
            items = unknown(name, True)  # of the other half, which alignment teaches only later
            drawn = torch.randperm(len(items), generator=numbers)[: 2 * config.tests].tolist()
            validation[name], tests[name] = ([items[i].text for i in drawn[part::2]] for part in range(2))
        fresh = {name: world.sentences(name, config.prompts, generator=numbers) for name in world.names}
        bench = Bench(
            made.model,
            tokenizer,
            prompts,
            validation,
            tests,
            {name: world.sentences(name, config.tests, generator=numbers) for name in world.names},
            {name: [" ".join(text.split()[:3]) for text in texts] for name, texts in fresh.items()},
        )
        asked = [item for name in ALIGNED for item in unknown(name, True)]
        english = {(item.concept, item.subject, item.template): item.prompt for item in world.items(world.names[0])}
        around = {name: sorted({a for (kind, _), a in world.world.facts.items() if kind == name})
                  for name in world.world.relations}  # fmt: skip
        preferences = pairs(
            made.model,
            tokenizer,
            asked,
            answered(made.model, tokenizer, [english[item.concept, item.subject, item.template] for item in asked]),
            [around[item.concept] for item in asked],
            generator=numbers,
        )
        questions = {name: unknown(name, False) for name in world.names}
        return Prepared(bench, ("l2", "l4"), preferences, learnt, questions)
