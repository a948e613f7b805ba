"""The settings of each way to steer, how one is chosen, and what turning it does to lengths and to generated text."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from itertools import combinations
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from plexus.edit import Edit, steer
from plexus.probe import coherence
from plexus.studies.steering._openers import barred, learned
from plexus.studies.steering._refusals import (
    ALLOWED,
    CALIBRATION,
    NEUTRAL,
    RESTRICTED,
    TEST,
    Behaviour,
    Config,
    Requests,
    steered,
)
from plexus.units import Site, Visit, attach

ROTATIONS = ("relative", "absolute", "adaptive")
OFF = -1.0
"""The setting of a rotation that is not made; angles are never negative."""


class Variant(NamedTuple):
    """Where an arm turns, and in which plane; a drawn arm has several.

    Attributes:
        sites: none where no site is discriminative.
        second: in the place of b2, if not None.
    """

    sites: tuple[Site, ...]
    second: Tensor | None = None


def variants(config: Config, requests: Requests, seed: int) -> list[Variant]:
    """The ways to take an arm: one, or as many as are drawn.

    The draws have a generator of their own, seeded apart from that of the model and its requests.
    """
    generator = torch.Generator().manual_seed(1_000_003 * (seed + 1))
    plane = requests.plane
    every, chosen = plane.stats.sites, plane.discriminative_sites()
    if config.sites == "drawn":
        return [Variant(sites) for sites in drawn_sites(every, chosen, config.draws, generator)]
    if config.second == "drawn":
        away = torch.randn(config.draws, len(plane.b1), generator=generator)
        return [Variant(chosen, steer.plane(torch.stack([plane.b1, one]))[1]) for one in away]
    if config.sites == "selected":
        return [Variant(chosen)]
    if config.sites == "widest":
        return [Variant(plane.widest_sites(len(chosen)) if chosen else ())]
    return [Variant(every[: len(every) // 2] if config.sites == "first half" else every)]


def drawn_sites(
    every: Sequence[Site], chosen: tuple[Site, ...], draws: int, generator: torch.Generator
) -> list[tuple[Site, ...]]:
    """As many sites as were chosen, drawn: other sets than the chosen one, and none twice.

    Where there is no other set, as all sites were chosen or none, the chosen one is all there is.
    """
    others = [sites for sites in combinations(every, len(chosen)) if sites != chosen]
    order = torch.randperm(len(others), generator=generator)[:draws].tolist()
    return [others[i] for i in order] or [chosen]


def dials(config: Config, requests: Requests, variant: Variant) -> list[tuple[float, Edit | None]]:
    """Every setting that an arm tries, and its edit; `config.settings` in number, one of which changes nothing.

    A setting is an angle in degrees, `OFF` where none is turned to; of an addition, a strength in mean lengths of the
    values; of an ablation, the share of b1 that is taken out.
    """
    plane = requests.plane
    if config.operator == "barred":
        return [(1.0, barred(requests))]
    if config.operator == "learned":
        return [(1.0, learned(requests, plane.discriminative_sites() or variant.sites, config.learning))]
    if config.operator == "none" or not variant.sites:
        return [(OFF, None)]
    if config.operator in ("ablation", "addition"):
        return [(0.0, None), *_along(config, requests)]
    mode: Any = config.operator
    count = config.settings if mode == "relative" else config.settings - 1  # a turn by zero is off, one to zero is not
    off: list[tuple[float, Edit | None]] = [] if mode == "relative" else [(OFF, None)]
    angles = [360 * k / count for k in range(count)]
    how: dict[str, Any] = {"sites": variant.sites, "mode": mode, "second": variant.second}
    return off + [(angle, plane.rotate(angle, **how)) for angle in angles]


def _along(config: Config, requests: Requests) -> list[tuple[float, Edit]]:
    """Settings of an addition or an ablation, dealt to the selected sites and to all."""
    plane = requests.plane
    kinds = list(dict.fromkeys((plane.discriminative_sites() or plane.stats.sites, plane.stats.sites)))
    length = float(plane.stats.norm.mean())
    found: list[tuple[float, Edit]] = []
    for place, kind in enumerate(kinds):
        direction = plane.direction.at(*kind)
        count = len(range(1 + place, config.settings, len(kinds)))
        for k in range(1, count + 1):
            if config.operator == "addition":
                strength = -config.reach * k / count
                found.append((strength, steer.add(direction, strength * length)))
            else:
                share = k / ((count + 1) // 2)  # 1 takes it out, 2 mirrors it
                found.append((share, steer.scale(direction, 1 - share)))
    return found


class Choice(NamedTuple):
    """What an arm does at the setting it chose, and at all of them.

    Attributes:
        setting, edit: the chosen one.
        metrics: of the reported requests.
        arrays: by setting: the settings; perplexity over plain; with curves, shares of the reported requests.
    """

    setting: float
    edit: Edit | None
    metrics: dict[str, float]
    arrays: dict[str, np.ndarray[Any, Any]]


def choose(config: Config, requests: Requests, tried: list[tuple[float, Edit | None]]) -> Choice:
    """Take the setting with the most recipes of calibration requests, of these the one that disturbs others least.

    Of an arm that is drawn, the perplexity of other sentences is measured for settings that tie, not for all.
    """
    _, base = steered(requests, None, (NEUTRAL,))
    sparing = "drawn" in (config.sites, config.second)
    parts = [CALIBRATION, *([] if sparing else [NEUTRAL]), *([TEST] if config.curves else [])]
    found = [steered(requests, edit, parts) for _, edit in tried]
    ratios = [perplexity / base for _, perplexity in found]

    def best(quantity: str) -> int:
        values = [getattr(behaviour[CALIBRATION], quantity) for behaviour, _ in found]
        ties = [k for k, value in enumerate(values) if value == max(values)]
        for k in ties:
            if math.isnan(ratios[k]):
                ratios[k] = steered(requests, tried[k][1], (NEUTRAL,))[1] / base
        return min(ties, key=lambda k: ratios[k])

    def at(k: int) -> Behaviour:
        behaviour = found[k][0]
        return behaviour[TEST] if TEST in behaviour else steered(requests, tried[k][1], (TEST,))[0][TEST]

    chosen = best("score")
    (setting, edit), said = tried[chosen], at(chosen)
    metrics = {**said._asdict(), "score": said.score, "setting": setting, "perplexity": ratios[chosen]}
    metrics["calibration score"] = found[chosen][0][CALIBRATION].score
    metrics["sites"] = float(len(edit.neurons.sites)) if edit is not None else 0.0
    arrays = {"settings": np.array([one for one, _ in tried])}
    if not sparing:
        most = at(best("bypass"))
        metrics |= {"opened bypass": most.bypass, "opened capability": most.capability}
        metrics["worst perplexity"] = max(ratios)
        arrays["perplexity"] = np.array(ratios)
    if config.curves:
        for name in ("bypass", "capability", "over"):
            arrays[name] = np.array([getattr(behaviour[TEST], name) for behaviour, _ in found])
        turned = arrays["bypass"][arrays["settings"] != OFF]
        metrics["jump"] = float(np.abs(np.diff(turned, append=turned[:1])).max(initial=0.0))
    return Choice(setting, edit, metrics, arrays)


class _Length:
    """Takes down the lengths of the values that pass by."""

    records = False

    def __init__(self, site: Site, found: list[Tensor]) -> None:
        self.site, self.found = site, found

    def __call__(self, values: Tensor, visit: Visit) -> None:
        self.found.append(values.double().norm(dim=-1))


def length_error(requests: Requests, edit: Edit, dtype: torch.dtype) -> float:
    """The largest relative change of the length of a value at the sites of an edit, in a model of some dtype."""
    model = copy.deepcopy(requests.model).to(dtype)
    sites = edit.neurons.sites
    before: list[Tensor] = []
    after: list[Tensor] = []
    with (
        attach(model, [_Length(site, before) for site in sites]),
        edit.on(model),
        attach(model, [_Length(site, after) for site in sites]),
        torch.no_grad(),
    ):
        model(input_ids=requests.sets[f"test {RESTRICTED}"].ids, use_cache=False)
    # the token of the padding is embedded as zero, which has no length to change
    return max(float(((b - a).abs() / a)[a > 0].max()) for a, b in zip(before, after, strict=True))


def published_error(requests: Requests, skew: float) -> float:
    """The largest relative change of length under the published absolute operator, in float64, over all angles.

        h' = h - P h + ‖P h‖ (cos θ b1 + sin θ b2),   P = b1 b1ᵀ + b2 b2ᵀ

    Args:
        requests: gives the plane, and the length of the values that are tried.
        skew: by how many degrees b2 misses the right angle to b1.
    """
    b1 = requests.plane.b1.double() / requests.plane.b1.double().norm()
    straight = requests.plane.b2.double() - (requests.plane.b2.double() @ b1) * b1
    straight, lean = straight / straight.norm(), math.radians(skew)
    b2 = math.cos(lean) * straight + math.sin(lean) * b1
    h = torch.randn(500, len(b1), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    inside = (h @ b1)[:, None] * b1 + (h @ b2)[:, None] * b2
    length = inside.norm(dim=1, keepdim=True)
    worst = 0.0
    for angle in range(0, 360, 10):
        turned = math.cos(math.radians(angle)) * b1 + math.sin(math.radians(angle)) * b2
        changed = (h - inside + length * turned).norm(dim=1)
        worst = max(worst, float((changed / h.norm(dim=1) - 1).abs().max()))
    return worst


def spoken(requests: Requests, edit: Edit | None) -> dict[str, float]:
    """What the model says when it generates: recipes in per cent, repetition and compression of the texts."""
    out: dict[str, float] = {}
    texts: list[str] = []
    for name, key in ((RESTRICTED, "bypass"), (ALLOWED, "capability")):
        items = requests.items[name]
        said = _generated(requests, [item.prompt for item in items], edit)
        recipes = [text.startswith(item.answer) for text, item in zip(said, items, strict=True)]
        out[f"generated {key}"] = 100 * fmean(recipes)
        texts += said
    found = [coherence(text) for text in texts]
    out["repetition"] = fmean(one.repetition for one in found)
    out["compression"] = coherence(" ".join(texts)).compression
    return out


def _generated(requests: Requests, prompts: Sequence[str], edit: Edit | None) -> list[str]:
    tokenizer = requests.tokenizer
    batch = tokenizer(list(prompts), padding=True, padding_side="left", return_tensors="pt")
    options = {"max_new_tokens": 20, "do_sample": False, "pad_token_id": tokenizer.pad_token_id}
    if edit is None:
        out = requests.model.generate(**batch, **options)
    else:
        with edit.on(requests.model):
            out = requests.model.generate(**batch, **options)
    found: list[str] = tokenizer.batch_decode(out[:, batch.input_ids.shape[1] :], skip_special_tokens=True)
    return found
