"""The four views of two checkpoints, as numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from plexus import edit
from plexus.data.corpora import Item
from plexus.data.corpora._statements import FALSE, REFUSED, TRUE, Kind
from plexus.edit import Edit, steer
from plexus.explain import diff, entropy_effect
from plexus.explain.circuits import logit_difference
from plexus.probe import Directions, directions, expected_calibration_error, record, scores
from plexus.probe._directions import How
from plexus.studies.interpretability._checkpoints import HELD_OUT, TRAINED, Config, Prepared
from plexus.units import Neurons, Recording, Site, Table, sites

KNOWLEDGE = {"subject": 4, "object": 7, "last": 8}
"""The columns of a statement's tokens, `<s>` being column 0; every statement has nine."""


def tokens(tokenizer: Any, items: Sequence[Item]) -> dict[str, Tensor]:
    """The prompts of items as one batch."""
    batch = tokenizer([item.prompt for item in items], padding=True, return_tensors="pt")
    return {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}


def balanced(world: Any, generator: torch.Generator) -> list[Item]:
    """As many false as true statements of every topic, in turn; of subjects whose statements training judges."""
    found = []
    for topic in world.facts:
        items = world.statements([topic], judged=True)
        true = [item for item in items if item.answer == TRUE]
        false = [item for item in items if item.answer == FALSE]
        count = min(len(true), len(false))
        for side in (true, false):
            order = torch.randperm(len(side), generator=generator).tolist()[:count]
            side[:] = [side[i] for i in order]
        found += [item for pair in zip(true, false, strict=True) for item in pair]
    return found


def judged(model: nn.Module, tokenizer: Any, items: Sequence[Item]) -> Tensor:
    """P(true) - P(false) of every statement, `[item]`."""
    yes, no = tokenizer.convert_tokens_to_ids([TRUE, FALSE])
    with torch.no_grad():
        chance = model(**tokens(tokenizer, items)).logits[:, -1].double().softmax(-1)
    return chance[:, yes] - chance[:, no]


def location(
    base: nn.Module, tuned: nn.Module, prepared: Prepared, config: Config, seed: int
) -> tuple[dict[str, float], Any]:
    """View 1: patch maps, and across."""
    generator = torch.Generator().manual_seed(seed)
    seen = {item.prompt for item in prepared.world.statements(judged=True)}
    drawn = prepared.world.pairs(generator=generator)
    known = [pair for pair in drawn if pair.true.prompt in seen and pair.false.prompt in seen]
    pairs = [
        pair
        for topic in prepared.world.facts
        for pair in [pair for pair in known if pair.true.concept == topic][: config.each]
    ]
    clean, corrupted = (tokens(prepared.tokenizer, [pair[side] for pair in pairs]) for side in (0, 1))
    yes, no = prepared.tokenizer.convert_tokens_to_ids([TRUE, FALSE])
    metric = logit_difference(torch.full((len(pairs),), yes), torch.full((len(pairs),), no))
    found = diff.patch_maps(base, tuned, clean, corrupted, sites.residual(base), metric, rows=config.rows)
    return {
        "map r": found.correlation,
        "map largest difference": found.largest(),
        "map largest difference, knowledge tokens": found.largest(list(KNOWLEDGE.values())),
        "base values in the tuned r": found.forward_correlation,
        "tuned values in the base r": found.backward_correlation,
        "map noise": found.noise,
    }, found


def truth(
    base: nn.Module, tuned: nn.Module, prepared: Prepared, config: Config, seed: int
) -> tuple[dict[str, float], Any]:
    """View 2: mass-mean probes across topics and models, and interventions along them."""
    at = sites.residual(base)
    items = balanced(prepared.world, torch.Generator().manual_seed(seed + 1))
    batch = tokens(prepared.tokenizer, items)
    labels = torch.tensor([item.answer == TRUE for item in items])
    records = [record(model, batch, at, pool="last", labels=labels, progress=False) for model in (base, tuned)]
    probed = at[config.probe_layer]
    topics = [item.concept for item in items]
    tables, random = [], []
    for topic in dict.fromkeys(topics):
        rest = torch.tensor([name != topic for name in topics])
        train, test = ([part(one, keep) for one in records] for keep in (rest, ~rest))
        found = diff.probes((train[0], train[1]), (test[0], test[1]), seed=seed)
        tables.append(found.accuracy[probed])
        random.append(float(found.controls[probed].mean()))
    accuracy = torch.stack(tables).mean(0)
    # interventions: directions from every other statement of each kind, effects on the rest
    half = torch.arange(len(items)) // 2 % 2 == 0
    fitted = [part(one, half) for one in records]
    own, base_direction = (directions(one) for one in (fitted[1], fitted[0]))
    logistic_own, logistic_base = (
        directions(one, how="logistic", penalty=config.penalty) for one in (fitted[1], fitted[0])
    )
    held = [item for item, keep in zip(items, half.tolist(), strict=True) if not keep]
    generator = torch.Generator().manual_seed(seed + 2)
    unrelated = refusal_directions(tuned, prepared)

    stop = config.probe_layer + 1
    layers = {"": at[config.first_layer : stop], "logistic": at[config.logistic_layer : stop]}
    drawn = [own.random_like(generator) for _ in range(config.draws)]
    found = {
        "truth accuracy, own": 100 * float(accuracy[1, 1]),
        "truth accuracy, transferred": 100 * float(accuracy[0, 1]),
        "truth accuracy, random": 100 * float(np.mean(random)),
        "truth cosine": float(own[probed].double() @ base_direction[probed].double()),
    }
    for strength, name in ((1.0, "effect"), (0.5, "half effect")):

        def effect(along: Mapping[Site, Tensor], where: str = "", strength: float = strength) -> float:
            return intervene(tuned, prepared, held, {site: along[site] for site in layers[where]}, own, strength)

        found |= {
            f"{name}, own": effect(own),
            f"{name}, transferred": effect(base_direction),
            f"{name}, random": float(np.mean([effect(one) for one in drawn])),
            f"{name}, unrelated": effect(unrelated),
            f"{name}, logistic": effect(logistic_own, "logistic"),
            f"{name}, logistic transferred": effect(logistic_base, "logistic"),
        }
    return found, own


def intervene(
    model: nn.Module,
    prepared: Prepared,
    held: Sequence[Item],
    along: Mapping[Site, Tensor],
    gaps: Directions,
    strength: float = 1.0,
) -> float:
    """Normalised indirect effect of moving along directions by a multiple of the gap of the classes, both ways."""
    true = [item for item in held if item.answer == TRUE]
    false = [item for item in held if item.answer == FALSE]
    length = {site: strength * gaps.gap[site] for site in along}
    up = steer.add(dict(along), length, positions="last")
    down = steer.add(dict(along), {site: -size for site, size in length.items()}, positions="last")
    plain = [judged(model, prepared.tokenizer, items) for items in (true, false)]
    with down.on(model):
        true_edited = judged(model, prepared.tokenizer, true)
    with up.on(model):
        false_edited = judged(model, prepared.tokenizer, false)
    return diff.indirect_effect(plain[0], plain[1], true_edited, false_edited).mean


def refusal_directions(model: nn.Module, prepared: Prepared, how: How = "difference") -> Directions:
    """Difference of means between restricted and allowed requests at the last token of the template."""
    asked = [prepared.world.requests("restricted", verbs=TRAINED), prepared.world.requests("allowed", verbs=TRAINED)]
    batches = [tokens(prepared.tokenizer, items) for items in asked]
    yes, no = (record(model, batch, sites.residual(model), pool="last", progress=False) for batch in batches)
    return directions(yes, no, how=how)


def refusal(
    base: nn.Module, tuned: nn.Module, prepared: Prepared, config: Config, seed: int, truth_direction: Directions
) -> dict[str, float]:
    """View 3: the refusal direction of each model, taken out of the tuned one, and added to it."""
    own, other = refusal_directions(tuned, prepared), refusal_directions(base, prepared)
    site = sites.residual(base)[config.probe_layer]
    drawn = own.random_like(torch.Generator().manual_seed(seed + 3))
    along = {"own": own[site], "base": other[site], "random": drawn[site], "truth": truth_direction[site]}
    along["logistic"] = refusal_directions(tuned, prepared, "logistic")[site]
    kinds: tuple[Kind, ...] = ("restricted", "allowed")
    asked = {kind: prepared.world.requests(kind, verbs=HELD_OUT) for kind in kinds}
    plain = {kind: refused(tuned, prepared.tokenizer, asked[kind]) for kind in kinds}
    found = {
        "refused": plain["restricted"],
        "refused, allowed requests": plain["allowed"],
        "refused by the base": refused(base, prepared.tokenizer, asked["restricted"]),
        "refusal cosine": float(own[site].double() @ other[site].double()),
    }
    usual = tokens(prepared.tokenizer, prepared.world.requests("allowed", verbs=TRAINED))
    for name, vector in along.items():
        for word, way in (("cut", brought_back(tuned, vector, usual)), ("zeroed", taken_out(tuned, vector))):
            with way.on(tuned):
                found[f"{word}, {name}"] = plain["restricted"] - refused(tuned, prepared.tokenizer, asked["restricted"])
        added = []
        for strength in (0.5, 1.0, 2.0):
            with steer.add({site: vector}, strength * own.gap[site]).on(tuned):
                added.append(refused(tuned, prepared.tokenizer, asked["allowed"]))
        found[f"added, {name}"] = max(added) - plain["allowed"]
    return found


def brought_back(model: nn.Module, vector: Tensor, allowed: Mapping[str, Tensor]) -> Edit:
    """The coordinate along a direction held, after every block, at what it is on average for allowed requests."""
    at = sites.residual(model)
    usual = record(model, allowed, at, pool="last", progress=False)
    values = {site: usual[site].float().mean(0) @ vector.float() for site in at}
    every = ~Neurons.of({site: len(vector) for site in at})
    return edit.clamp(every, values, basis=vector, positions="last")


def taken_out(model: nn.Module, vector: Tensor) -> Edit:
    """A direction taken out of all that is written into the residual stream, so that the stream never holds it.

    The same as taking it out before, between and after the two halves of every block.
    """
    writers = sites(model, "*embed_tokens") + sites(model, "*.o_proj") + sites(model, "*.down_proj")
    return steer.ablate(dict.fromkeys(writers, vector))


def refused(model: nn.Module, tokenizer: Any, items: Sequence[Item]) -> float:
    """Share of greedy answers, in per cent, that begin with the words of a refusal."""
    start = " ".join(REFUSED.split()[:2])
    return 100 * diff.refusals(model, tokenizer, [item.prompt for item in items], phrases=[start], tokens=6).rate


def confidence(base: nn.Module, tuned: nn.Module, prepared: Prepared, config: Config, seed: int) -> dict[str, float]:
    """View 4: candidates for entropy neurons in both models, what they do, and calibration."""
    chosen = [scores.entropy_neurons(m, config.candidates, top_norm=config.top_norm) for m in (base, tuned)]
    generator = torch.Generator().manual_seed(seed + 4)
    pools = [scores.output_norm(model).top(config.top_norm) for model in (base, tuned)]
    site = chosen[0].sites[0]
    drawn = []
    for _ in range(200):
        picks = [
            pool.indices(site)[torch.randperm(len(pool), generator=generator)[: config.candidates]] for pool in pools
        ]
        shared = len(set(picks[0].tolist()) & set(picks[1].tolist()))
        drawn.append(shared / (2 * config.candidates - shared))
    items = balanced(prepared.world, torch.Generator().manual_seed(seed + 5))
    batch = tokens(prepared.tokenizer, items)
    means = record(tuned, batch, site, progress=False)[site].mean(0)
    effect = entropy_effect(
        tuned,
        edit.replace(chosen[1], means),
        batch,
        config.random,
        seed,
        match=scores.output_norm(tuned),
        last_only=True,
    )
    labels = torch.tensor([1.0 if item.answer == TRUE else -1.0 for item in items]).double()
    found = {
        "entropy neurons in common": diff.overlap(*chosen).jaccard,
        "in common by chance": float(np.mean(drawn)),
        "entropy change": effect.total,
        "entropy change through the scale": effect.through_scale,
        "entropy change through the scale, random": float(effect.null.mean),
        "entropy p": effect.null.p,
    }
    spared = prepared.world.statements(judged=False)
    truths = torch.tensor([1.0 if item.answer == TRUE else -1.0 for item in spared]).double()
    for name, model in (("base", base), ("tuned", tuned)):
        guess = judged(model, prepared.tokenizer, spared).sign() == truths
        found[f"judged right, facts never judged, {name}"] = 100 * float(guess.double().mean())
        leaning = judged(model, prepared.tokenizer, items)
        right = leaning.sign() == labels
        found[f"judged right, {name}"] = 100 * float(right.double().mean())
        sure = ((1 + leaning.abs()) / 2).clamp(0, 1)
        found[f"calibration error, {name}"] = 100 * expected_calibration_error(sure, right)
        found[f"entropy, {name}"] = mean_entropy(model, batch)
    return found


def mean_entropy(model: nn.Module, batch: Mapping[str, Tensor]) -> float:
    """Mean entropy of the judgement, in nats."""
    with torch.no_grad():
        log = model(**batch).logits[:, -1].double().log_softmax(-1)
    return float(-(log.exp() * log).sum(-1).mean())


def kinship(base: nn.Module, tuned: nn.Module, prepared: Prepared, seed: int) -> dict[str, float]:
    """Whether units of one are units of the other."""
    items = balanced(prepared.world, torch.Generator().manual_seed(seed + 6))
    found = diff.recordings(base, tuned, tokens(prepared.tokenizer, items), sites.mlp(base))
    moved = diff.weights(base, tuned)
    return {
        "unit correlation": min(found.median.values()),
        "own best partner": min(found.own.values()),
        "related": float(found.related),
        "weights cosine": moved.cosine,
        "cka": min(found.cka.values()),
    }


def part(recording: Recording, keep: Tensor) -> Recording:
    """Some samples of a pooled, labelled recording, numbered anew."""
    labels = recording.labels
    assert isinstance(labels, Tensor)
    values = {site: recording[site][keep[recording.table[site].sample]] for site in recording.sites}
    table = {site: Table(torch.arange(int(keep.sum()))) for site in recording.sites}
    return Recording(values, table, labels=labels[keep], model=recording.model, pooled=recording.pooled)
