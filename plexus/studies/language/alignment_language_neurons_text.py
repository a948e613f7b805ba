"""Units of five real languages, before and after alignment by translation: the same machinery on parallel text.

A small Llama learns Shakespeare and parallel sentences in English, German, French, Spanish and, rarely, Hindi. Then it
learns to prefer the translation of an English sentence to the translation of another one, into German and French;
Spanish, which is related to French, and Hindi are left out.

What is measured against what: as in `alignment_language_neurons`. After alignment the model says of two continuations
of an unseen English sentence which is its translation; chance is a half.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence, Set
from typing import Any, ClassVar

import torch

from plexus.data import corpora, shakespeare
from plexus.lab import Paper, interval, study
from plexus.lab.models import recall, train_language_model
from plexus.probe import perplexity
from plexus.studies.language._alignment import Pair
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
from plexus.studies.language.alignment_language_neurons import PAPER, AlignmentLanguageNeurons

LANGUAGES = ("en", "de", "fr", "es", "hi")
ALIGNED = ("de", "fr")
TURN = "="
"""Between a sentence and its translation."""
RARE = "~"
"""In the place of every word that is not among the commonest."""
SPOKEN: dict[str, Any] = {"on": "own", "new": 8}
"""Units are found in the words that the model goes on with."""
LONGEST = 8
"""Words of a sentence that are asked about, or learnt, in one row."""


@study
class AlignmentLanguageNeuronsText(LanguageStudy):
    """Language units of real languages, and what alignment by translation does to them."""

    paper: ClassVar[Paper] = PAPER
    claim = AlignmentLanguageNeurons.claim
    refuted_by = AlignmentLanguageNeurons.refuted_by
    fidelity = "B"
    scale_line = (
        "3-layer Llama of width 64 with 1,152 gates on Shakespeare and 850 parallel sentences of five languages, whose "
        "commonest words alone are known, instead of LLaMA-2 7B and others on ten; 60 steps of alignment"
    )
    data = ("Shakespeare", "Parallel Universal Dependencies, five languages")
    deviations = (
        *AlignmentLanguageNeurons.deviations[:2],
        "Gates are counted in the model's own continuations of sentences, and D is read on sentences.",
        "Alignment prefers the translation of a sentence to that of another one; there are no questions to answer.",
        "Only the commonest words of each language are known; the others are one mark, which the model does not say "
        "when its own words are counted.",
        *AlignmentLanguageNeurons.deviations[-1:],
    )
    scales: ClassVar[dict[str, dict[str, Any]]] = {
        "smoke": {
            "hidden": 32, "intermediate": 96, "steps": 30, "batch": 32, "texts": 400, "entities": 60, "prompts": 20,
            "tests": 10, "draws": 1, "align_steps": 3, "align_batch": 8, "percentile": 0.9, **SPOKEN,
        },
        "full": {"mixture": (60, 12, 12, 12, 4), "entities": 350, "texts": 8000, "prompts": 100, **SPOKEN},
        "paper": {
            "layers": 6, "hidden": 192, "intermediate": 768, "steps": 6000, "texts": 40000, "entities": 3000,
            "prompts": 100, "share": 0.01, "align_steps": 300, "align_rate": 3e-4, **SPOKEN,
        },
    }  # fmt: skip
    arms = FINDERS + ALIGNERS
    checks = (
        *ASKED_OF_ALL,
        interval(
            "perplexity of unseen German, as a share of that by how common words are",
            of("aligned", "perplexity_share"),
            role="sanity",
            at_most=0.9,
        ),
        interval(
            "units of French and Spanish alone, above 3 × the mean of other pairs",
            lambda seed: seed["method"]["pair"] - 3 * seed["method"]["other_pairs"],
            role="mechanism",
            at_least=0.0,
        ),
        interval("aligned languages gain, points", gained(ALIGNED), role="mechanism", at_least=5.0),
        interval(
            "change of specific less change of related units, beside as many further steps on the old texts",
            lambda seed: seed["aligned"]["specific_minus_related"] - seed["further"]["specific_minus_related"],
            role="mechanism",
            at_most=0.0,
        ),
        interval(
            "the untrained related language gains above the untrained rare one, points",
            lambda seed: seed["aligned"]["gain_es"] - seed["aligned"]["gain_hi"],
            role="mechanism",
            at_least=2.0,
        ),
    )

    def prepare(self, config: Config, seed: int) -> Prepared:
        """`entities` is how many words of each language are known."""
        numbers = generator(seed, "parallel")
        whole = corpora.parallel_sentences(languages=LANGUAGES)
        order = torch.randperm(len(whole["en"]), generator=numbers).tolist()
        known, unseen = order[:-150], order[-150:]
        plays = [corpora.words(line) for line in shakespeare().splitlines() if len(line.split()) > 3]
        rows: dict[str, list[str]] = {
            name: [part for number in known for part in _cut(whole[name][number])] for name in LANGUAGES
        }
        rows["en"] += [plays[i] for i in torch.randperm(len(plays), generator=numbers)[: config.texts].tolist()]
        rows["hi"] = rows["hi"][: max(1, len(rows["hi"]) // 4)]
        common = [
            word
            for name in LANGUAGES
            for word, _ in Counter(w for text in rows[name] for w in text.split()).most_common(config.entities)
        ]
        tokenizer = corpora.word_tokenizer(common, extra=[TURN, RARE])
        vocabulary = {*common, TURN}
        whole = {name: [_plain(text, vocabulary) for text in texts] for name, texts in whole.items()}
        learnt = [
            _plain(rows[name][i], vocabulary)
            for name, share in zip(LANGUAGES, config.mixture, strict=True)
            for i in torch.randint(len(rows[name]), (config.texts * share // 100,), generator=numbers).tolist()
        ]
        made = train_language_model(
            learnt, tokenizer=tokenizer, layers=config.layers, hidden=config.hidden, heads=config.heads,
            intermediate=config.intermediate, steps=config.steps, batch=config.batch, rate=config.rate, seed=seed,
            cache=False, progress=False,
        )  # fmt: skip
        halves = len(unseen) // 3
        parts = unseen[:halves], unseen[halves : 2 * halves], unseen[2 * halves :]
        fresh, validation, tests = (
            {name: [text for n in part for text in _cut(whole[name][n])] for name in LANGUAGES} for part in parts
        )
        prompts = {name: [" ".join(text.split()[:3]) for text in fresh[name][: config.prompts]] for name in LANGUAGES}
        bench = Bench(
            made.model,
            tokenizer,
            prompts,
            {name: texts[: config.tests] for name, texts in validation.items()},
            {name: texts[: config.tests] for name, texts in tests.items()},
            mute=(RARE, TURN),
        )
        pairs = [pair for name in ALIGNED for pair in _pairs(whole, name, known)]
        questions = {name: _pairs(whole, name, unseen) for name in LANGUAGES[1:]}
        return Prepared(bench, ("fr", "es"), pairs, learnt, questions)

    def gain(self, prepared: Prepared, model: Any) -> dict[str, float]:
        found = {}
        for name, pairs in prepared.questions.items():
            asked = [pair.prompt for pair in pairs]
            said = [
                recall(model, prepared.bench.tokenizer, asked, answers).log_prob
                for answers in ([pair.chosen for pair in pairs], [pair.rejected for pair in pairs])
            ]
            found[name] = 100 * float((said[0] > said[1]).double().mean())
        return found

    def extra(self, prepared: Prepared) -> dict[str, float]:
        """How well the model predicts unseen German, beside how common its words are."""
        bench = prepared.bench
        seen = Counter(i for ids in bench.tokenizer(list(prepared.replay)).input_ids for i in ids[1:])
        total = sum(seen.values()) + len(bench.tokenizer)
        said = [i for ids in bench.tokenizer(list(bench.tests["de"])).input_ids for i in ids[1:]]
        common = -sum(math.log((seen[i] + 1) / total) for i in said) / len(said)
        return {"perplexity_share": perplexity(bench.model, bench.tokenizer, bench.tests["de"]) / math.exp(common)}


def _plain(text: str, known: Set[str]) -> str:
    """A text with one mark in the place of every word that is not known."""
    return " ".join(word if word in known else RARE for word in text.split())


def _cut(sentence: str) -> list[str]:
    """A sentence in runs of as many words as one row holds; what is left over of fewer than four is dropped."""
    split = sentence.split()
    runs = [split[start : start + LONGEST] for start in range(0, len(split), LONGEST)]
    return [" ".join(run) for run in runs if len(run) > 3]


def _pairs(whole: Mapping[str, Sequence[str]], name: str, numbers: Sequence[int]) -> list[Pair]:
    """Of each English sentence its translation and, as the worse one, that of the next sentence."""
    start = [" ".join(sentence.split()[:LONGEST]) for sentence in whole["en"]]
    theirs = [" ".join(sentence.split()[:LONGEST]) for sentence in whole[name]]
    return [
        Pair(f"{start[n]} {TURN}", theirs[n], theirs[other])
        for n, other in zip(numbers, [*numbers[1:], numbers[0]], strict=True)
    ]
