"""The settings of each way to steer, and what turning one does to lengths and to generated text."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from plexus.edit import Edit, steer
from plexus.probe import coherence
from plexus.studies.steering._refusals import ALLOWED, RESTRICTED, Config, Requests
from plexus.units import Site, Visit, attach

ROTATIONS = ("relative", "absolute", "adaptive")


def places(config: Config, requests: Requests, generator: torch.Generator) -> tuple[Site, ...]:
    """The sites of an arm; none where no site is discriminative."""
    every = requests.plane.stats.sites
    if config.sites == "all":
        return every
    chosen = requests.plane.discriminative_sites()
    if config.sites == "selected":
        return chosen
    if config.sites == "widest":
        return requests.plane.widest_sites(max(1, len(chosen)))
    half = len(every) // 2
    if config.sites == "first half":
        return every[:half]
    return tuple(every[i] for i in sorted(torch.randperm(len(every), generator=generator)[:half].tolist()))


def dials(config: Config, requests: Requests, generator: torch.Generator) -> list[tuple[float, Edit | None]]:
    """Every setting that an arm tries, and its edit.

    A setting is an angle in degrees; of an addition, a strength in mean lengths of the values; of an ablation, the
    number of sites.
    """
    sites = places(config, requests, generator)
    if config.operator == "none" or not sites:
        return [(0.0, None)]
    plane = requests.plane
    if config.operator in ("ablation", "addition"):  # they choose their sites as well, between all and the selected
        kinds = dict.fromkeys((sites, plane.discriminative_sites() or sites))
        directions = [plane.direction.at(*kind) for kind in kinds]
        if config.operator == "ablation":
            return [(float(len(direction)), steer.ablate(direction)) for direction in directions]
        length, each = float(plane.stats.norm.mean()), config.settings // len(directions)
        strengths = [-config.reach * (k + 1) / each for k in range(each)]
        return [(s, steer.add(direction, s * length)) for direction in directions for s in strengths]
    second = None
    if config.second == "random":
        draw = torch.randn(plane.b2.shape, generator=generator)
        second = steer.plane(torch.stack([plane.b1, draw]))[1]
    angles = [360 * k / config.settings for k in range(config.settings)]
    mode: Any = config.operator
    return [(angle, plane.rotate(angle, sites=sites, mode=mode, second=second)) for angle in angles]


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
