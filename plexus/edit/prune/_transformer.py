"""The hidden units and heads of the usual families of transformers: which rows and columns of which layers they are.

Hidden units are the input of the down-projection; of a gated MLP unit j is row j of both gate and up, also where the
two are one layer. Heads are slices of the input of the output projection. With grouped queries each of G keys and
values serves R = H / G query heads in a row; what is left must again be G' groups of R' each.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from plexus.edit.prune._cuts import Cuts, check_plain, refusal, width_in, width_out
from plexus.units import Site

__all__ = ["cut_heads", "cut_hidden", "is_down", "is_head_site"]

Named = Mapping[str, nn.Module]

# what the hidden units are made by → the down-projection beside it
_MLPS: tuple[tuple[tuple[str, ...], str], ...] = (
    (("gate_proj", "up_proj"), "down_proj"),
    (("gate_up_proj",), "down_proj"),
    (("up_proj",), "down_proj"),
    (("c_fc",), "c_proj"),
    (("dense_h_to_4h",), "dense_4h_to_h"),
    (("fc_in",), "fc_out"),
    (("wi_0", "wi_1"), "wo"),
    (("wi",), "wo"),
    (("intermediate.dense",), "output.dense"),
    (("ffn",), "ffn_output"),
    (("w1", "w3"), "w2"),
    (("fc1",), "fc2"),
    (("lin1",), "lin2"),
    (("linear1",), "linear2"),
)
# query, key, value (or the layer that makes all three) → the output projection beside it
_ATTENTIONS: tuple[tuple[tuple[str, ...], str], ...] = (
    (("q_proj", "k_proj", "v_proj"), "o_proj"),
    (("q_proj", "k_proj", "v_proj"), "out_proj"),
    (("qkv_proj",), "o_proj"),
    (("query_key_value",), "dense"),
    (("c_attn",), "c_proj"),
    (("q", "k", "v"), "o"),
    (("query", "key", "value"), "dense"),
    (("self.query", "self.key", "self.value"), "output.dense"),
    (("attention.query", "attention.key", "attention.value"), "output.dense"),
    (("q_lin", "k_lin", "v_lin"), "out_lin"),
)


def is_head_site(site: Site) -> bool:
    """Whether the units of a site are vectors: heads."""
    return site.has_features


def is_down(named: Named, path: str) -> bool:
    """Whether a layer reads the hidden units of an MLP of a known build."""
    return any(
        path.split(".")[-own.count(".") - 1 :] == own.split(".")
        and all(path.removesuffix(own) + maker in named for maker in makers)
        for makers, own in _MLPS
    )


def cut_hidden(cuts: Cuts, named: Named, site: Site, keep: Tensor) -> bool:
    """Note the removal of hidden units of an MLP; false if no MLP of a known build stands there."""
    found = _beside(named, site, _MLPS)
    if found is None:
        return False
    makers, down = found
    units = len(keep)
    if width_in(down) != units:
        raise refusal(site, f"its layer reads {width_in(down)} numbers and the set has {units} units")
    for path, module in makers.items():
        if width_out(module) == units:
            cuts.outputs(site, path, module, keep)
        elif width_out(module) == 2 * units and len(makers) == 1:
            cuts.outputs(site, path, module, keep.repeat(2))
        else:
            raise refusal(site, f"{path} puts out {width_out(module)} numbers for {units} units")
    cuts.inputs(site, site.path, down, keep)
    return True


def cut_heads(cuts: Cuts, named: Named, site: Site, keep: Tensor) -> tuple[int, int, int] | None:
    """Note the removal of heads.

    Returns:
        How many query heads and how many keys and values are left, and the features of a head; None if no attention of
        a known build stands there.
    """
    found = _beside(named, site, _ATTENTIONS)
    if found is None:
        return None
    makers, out = found
    heads = len(keep)
    features, rest = divmod(width_in(out), heads)
    if rest:
        raise refusal(site, f"its layer reads {width_in(out)} numbers, which are not {heads} heads")
    groups = _groups(site, makers, heads, features)
    kept = _kept_groups(site, keep, groups)
    per_key = {"query": _spread(keep, features), "key": _spread(kept, features)}
    if len(makers) == 3:
        for (path, module), what in zip(makers.items(), ("query", "key", "key"), strict=True):
            cuts.outputs(site, path, module, per_key[what])
    else:
        ((path, module),) = makers.items()
        if path.endswith("query_key_value"):  # query, key and value of each head side by side
            rows = _spread(keep, 3 * features)
        else:
            rows = torch.cat([per_key["query"], per_key["key"], per_key["key"]])
        cuts.outputs(site, path, module, rows)
    cuts.inputs(site, site.path, out, per_key["query"])
    return int(keep.sum()), int(kept.sum()), features


def _groups(site: Site, makers: Mapping[str, nn.Module], heads: int, features: int) -> int:
    """How many keys and values serve the query heads."""
    widths = [width_out(module) for module in makers.values()]
    if len(widths) == 1:
        keys, odd = divmod(widths[0] - heads * features, 2 * features)
    else:
        keys, odd = divmod(widths[1], features)
        odd = odd or widths[1] != widths[2] or widths[0] != heads * features
    if odd or keys < 1 or heads % keys:
        raise refusal(
            site, f"{', '.join(map(str, widths))} numbers for {heads} heads of {features} cannot be told apart"
        )
    if keys != heads and next(iter(makers)).endswith("query_key_value"):
        raise refusal(site, "grouped heads in one query_key_value layer have no one order")
    return keys


def _kept_groups(site: Site, keep: Tensor, groups: int) -> Tensor:
    """Which keys and values stay; each must keep as many query heads as the others."""
    left = keep.reshape(groups, -1).sum(1)
    if len(left[left > 0].unique()) > 1:
        raise refusal(
            site,
            f"the keys would serve unequally many query heads ({', '.join(map(str, left.tolist()))})",
            "remove whole groups, or as many query heads of each: prune.whole_groups(scores, k, groups)",
        )
    return left > 0


def _spread(keep: Tensor, features: int) -> Tensor:
    return keep.repeat_interleave(features)


def _beside(named: Named, site: Site, table: Any) -> tuple[dict[str, nn.Module], nn.Module] | None:
    """The layers that make what the layer of a site reads, by the names that stand beside it."""
    for makers, own in table:
        if site.path != own and not site.path.endswith(f".{own}"):
            continue
        stem = site.path.removesuffix(own)
        found = {stem + maker: named[stem + maker] for maker in makers if stem + maker in named}
        if len(found) == len(makers):
            for path, module in (*found.items(), (site.path, named[site.path])):
                check_plain(site, path, module)
            return found, named[site.path]
    return None
