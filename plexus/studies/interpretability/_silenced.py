"""What a Llama says next while units of its projections are silent, for many sets of units.

    h0    = e + A_1(e)                                embeddings and first attention: no unit of an MLP has a part in it
    h_l   = h_l-1 + d_l ⊙ W_down (s_l ⊙ act(W_gate n(h_l-1)) ⊙ W_up n(h_l-1)),   0/1 masks d_l and s_l
    next  = softmax(W_out n(h_L)) at the last token

Silencing the output of a gate or an up projection, or the product that the down projection reads, silences one hidden
unit (`act(0) = 0`): one mask s_l holds all three. The state before the first down projection is computed once for all
sets, the last layer at the last token alone, and prompts of one length together, without padding. The numbers are those
of `edit.scale(units, 0.0).on(model)`, up to rounding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from plexus.edit import Edit
from plexus.explain import EffectMatrix, effect_matrix
from plexus.explain.controls import matched_random
from plexus.studies.interpretability._relations import Config, Questions
from plexus.units import Neurons

TOGETHER = 512
"""Prompts in one pass, counted once for each set of units."""


class _Part(NamedTuple):
    """Prompts of one length, up to the first down projection."""

    places: Tensor  # of the prompts among all             [prompt]
    hidden: Tensor  # after the first attention            [prompt, token, width]
    product: Tensor  # hidden units of the first MLP       [prompt, token, unit]
    turn: tuple[Tensor, Tensor]  # of the rotary positions, [1, token, part of a head]


class Silencing:
    """`Silencing(model, batches)([units, …])` gives log-probabilities of the next word, `[set, prompt, word]`.

    Args:
        model: a Llama in evaluation mode, as many key heads as query heads.
        batches: prompts, padded anywhere.
        rows: bool, which of the prompts; all where left out.
    """

    def __init__(self, model: Any, batches: Sequence[Mapping[str, Tensor]], rows: Tensor | None = None) -> None:
        prompts = [
            ids[mask.bool()]
            for batch in batches
            for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
        ]
        if rows is not None:
            prompts = [prompt for prompt, kept in zip(prompts, rows.tolist(), strict=True) if kept]
        self.model, self.layers, self.count = model, list(model.model.layers), len(prompts)
        lengths = torch.tensor([len(prompt) for prompt in prompts])
        with torch.no_grad():
            self.parts = [
                self._start(torch.stack([prompts[place] for place in places.tolist()]), places)
                for length in lengths.unique()
                for places in (lengths == length).nonzero()[:, 0].split(TOGETHER)
            ]

    @torch.no_grad()
    def __call__(self, sets: Sequence[Neurons]) -> Tensor:
        inside, out = self._masks(sets)
        found = torch.empty(len(sets), self.count, self.model.lm_head.out_features)
        for part in self.parts:
            step = max(1, TOGETHER // len(part.places))
            for at in range(0, len(sets), step):
                here = slice(at, at + step)
                found[here, part.places] = self._said(part, [m[here] for m in inside], [m[here] for m in out])
        return found

    def _start(self, tokens: Tensor, places: Tensor) -> _Part:
        core, first = self.model.model, self.layers[0]
        hidden = core.embed_tokens(tokens)
        turn = core.rotary_emb(hidden, position_ids=torch.arange(tokens.shape[1])[None])
        hidden = hidden + attended(first.self_attn, first.input_layernorm(hidden), turn)
        if len(self.layers) == 1:
            hidden = hidden[:, -1:]
        return _Part(places, hidden, product(first, hidden), turn)

    def _said(self, part: _Part, inside: list[Tensor], out: list[Tensor]) -> Tensor:
        hidden, units = part.hidden[None], part.product[None]
        for number, layer in enumerate(self.layers):
            if number:
                last = number == len(self.layers) - 1
                flat = hidden.flatten(0, 1)
                seen = attended(layer.self_attn, layer.input_layernorm(flat), part.turn, last=last)
                hidden = (flat[:, -1:] if last else flat).add(seen).unflatten(0, hidden.shape[:2])
                units = product(layer, hidden)
            hidden = hidden + out[number] * layer.mlp.down_proj(units * inside[number])
        logits: Tensor = self.model.lm_head(self.model.model.norm(hidden[:, :, -1]))
        return logits.float().log_softmax(-1)

    def _masks(self, sets: Sequence[Neurons]) -> tuple[list[Tensor], list[Tensor]]:
        """For each layer 0 where a hidden unit, and where a coordinate of the output, is silent; 1 elsewhere."""
        mlps = [layer.mlp for layer in self.layers]
        inside = [torch.ones(len(sets), 1, 1, mlp.down_proj.in_features) for mlp in mlps]
        out = [torch.ones(len(sets), 1, 1, mlp.down_proj.out_features) for mlp in mlps]
        names = {f"model.layers.{number}.mlp": number for number in range(len(mlps))}
        for place, units in enumerate(sets):
            for site in units.sites:
                owner, _, part = site.path.rpartition(".")
                table = out if part == "down_proj" and site.at == "output" else inside
                table[names[owner]][place, 0, 0, units.indices(site)] = 0.0
        return inside, out


def attended(attention: Any, states: Tensor, turn: tuple[Tensor, Tensor], *, last: bool = False) -> Tensor:
    """What causal attention adds, `[prompt, token, width]`; with `last` for the last token alone."""

    def heads(projection: nn.Module, of: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        split = projection(of).unflatten(-1, (-1, attention.head_dim)).transpose(1, 2)
        one, two = split.chunk(2, -1)
        return split * cos[:, None] + torch.cat([-two, one], -1) * sin[:, None]

    cos, sin = turn
    ends = slice(-1, None) if last else slice(None)
    query = heads(attention.q_proj, states[:, ends], cos[:, ends], sin[:, ends])
    key = heads(attention.k_proj, states, cos, sin)
    value = attention.v_proj(states).unflatten(-1, (-1, attention.head_dim)).transpose(1, 2)
    mixed = nn.functional.scaled_dot_product_attention(query, key, value, is_causal=not last, scale=attention.scaling)
    added: Tensor = attention.o_proj(mixed.transpose(1, 2).flatten(2))
    return added


def product(layer: Any, hidden: Tensor) -> Tensor:
    """What the down projection of a layer reads."""
    states = layer.post_attention_layernorm(hidden)
    units: Tensor = layer.mlp.act_fn(layer.mlp.gate_proj(states)) * layer.mlp.up_proj(states)
    return units


def known_facts(test: Questions, silencing: Silencing) -> Tensor:
    """The items that the untouched model answers; all items of a relation of which it answers none."""
    known = test.brings(silencing([Neurons({})]))["accuracy"][0] > 0
    for number in range(len(test.names)):
        here = test.labels == number
        if not bool((known & here).any()):
            known = known | here
    return known


def asked(
    config: Config,
    silencing: Silencing,
    test: Questions,
    units: Mapping[str, Neurons],
    seed: int,
    *,
    keep: Tensor | None = None,
    held: Mapping[str, Edit] | None = None,
) -> dict[str, EffectMatrix]:
    """What silencing the units of each relation, and as many random ones at each site, does to each relation's facts.

    Args:
        config: how many random sets.
        silencing: of the model, for the prompts of the test.
        test: what is asked.
        units: of each relation.
        seed: of the random sets.
        keep: items that take part; the facts that the model knows where left out.
        held: edits that take the place of silencing.
    """
    keep = known_facts(test, silencing) if keep is None else keep
    if held is not None:
        return effect_matrix(
            silencing.model, held, test, test.labels, test.names, keep=keep, n_random=config.controls, seed=seed,
            exclude=False,
        )  # fmt: skip
    draw, members = torch.Generator().manual_seed(seed), torch.where(keep, test.labels, -1)
    random = [matched_random(one, draw, exclude=False) for one in units.values() for _ in range(config.controls)]
    found = test.brings(silencing([Neurons({}), *units.values(), *random]))
    matrices = {}
    for name, values in found.items():
        change = values[1:].double() - values[0].double()
        by_group = torch.stack([change[:, members == group].mean(1) for group in range(len(test.names))], 1)
        controls = by_group[len(units) :].unflatten(0, (len(units), config.controls))
        matrices[name] = EffectMatrix(name, tuple(units), tuple(test.names), change[: len(units)], members, controls)
    return matrices


def worst_single(model: Any, test: Questions, units: Mapping[str, Neurons], known: Tensor) -> float:
    """The largest part of its known facts that a relation loses by one of its units alone."""
    worst = 0.0
    for number, name in enumerate(test.names):
        rows, one = known & (test.labels == number), units[name]
        alone = [Neurons.of(one.sizes, {site: [unit]}, one.model) for site, unit in one]
        silencing, answers = Silencing(model, test.batches, rows), test.answers[rows]
        right = silencing([Neurons({})]).argmax(-1) == answers
        wrong = silencing(alone).argmax(-1) != answers
        worst = max(worst, float((right & wrong).double().mean(1).max()))
    return worst
