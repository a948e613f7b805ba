"""Neurons that set a language model's confidence rather than its answer.

With w_u the output weights of hidden unit u of the last MLP and e_v the unembedding of token v:

    norm           ‖w_u‖
    LogitVar_u     Var_v[ cos(w_u, e_v) ]          (or of w_u·e_v itself)

An entropy neuron writes much (large norm) into directions that hardly favour any token (small variance): what it does
to the logits goes through the scale of the final normalisation. Candidates are the units of the smallest variance
among those in the top share of norms.

Source: Stolfo et al. 2024; Du et al. 2025 (a quarter of the norms, ten units, variance of the cosine).
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn

from plexus.errors import RangeError, ShapeError, UnknownNameError, UnsupportedError
from plexus.units import Neurons, Scores, Site, fingerprint, sites
from plexus.units._paths import find_module


def output_norm(model: nn.Module, at: Site | None = None) -> Scores:
    """The length of what each hidden unit of an MLP writes per unit of activity, `‖w_u‖`.

    Args:
        model: a language model.
        at: the MLP, as a site of `sites.mlp(model)`; the last one where left out.

    Raises:
        UnsupportedError: a packed or foreign down-projection.

    Examples:
        >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> _ = nn.init.ones_(model[2].weight)
        >>> output_norm(model)[Site("2", at="input")]
        tensor([1.4142, 1.4142, 1.4142])
    """
    site, rows = _output_rows(model, at)
    return Scores({site: rows.norm(dim=1)}, None, "norm of the output weights", fingerprint(model))


def logit_variance(
    model: nn.Module,
    at: Site | None = None,
    *,
    of: Literal["cosine", "logits"] = "cosine",
    unembedding: Tensor | None = None,
) -> Scores:
    """How unevenly each hidden unit of an MLP writes on the tokens: the variance over the vocabulary.

    Args:
        model: a language model of transformers, or any with `unembedding` given.
        at: the MLP; the last one where left out.
        of: the "cosine" between output weights and unembedding, or the "logits" w_u·e_v themselves, which grow with the
            norms.
        unembedding: `[token, width]`; that of `model.get_output_embeddings()` where left out.

    Raises:
        UnsupportedError: the model has no unembedding, or a packed one.
        ShapeError: output weights and unembedding have different widths.

    Examples:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
        >>> _ = model[2].weight.data.copy_(torch.tensor([[1.0, 2.0], [0.0, 2.0]]))
        >>> logit_variance(model, unembedding=torch.eye(2))[Site("2", at="input")]
        tensor([0.5000, 0.0000])
    """
    if of not in ("cosine", "logits"):
        raise UnknownNameError.among("kind of variance", str(of), ("cosine", "logits"))
    site, rows = _output_rows(model, at)
    tokens = _unembedding(model) if unembedding is None else unembedding.detach().float().cpu()
    if tokens.dim() != 2 or tokens.shape[1] != rows.shape[1]:
        raise ShapeError(
            "the unembedding does not fit the output weights",
            given=tuple(tokens.shape),
            expected=f"[token, {rows.shape[1]}]",
        )
    if of == "cosine":
        rows, tokens = (nn.functional.normalize(part, dim=1) for part in (rows, tokens))
    return Scores({site: (rows @ tokens.T).var(1)}, None, f"variance of the {of} over tokens", fingerprint(model))


def entropy_neurons(
    model: nn.Module,
    k: int = 10,
    *,
    top_norm: float = 0.25,
    at: Site | None = None,
    of: Literal["cosine", "logits"] = "cosine",
    unembedding: Tensor | None = None,
) -> Neurons:
    """The candidates for entropy neurons: of the units with the largest output norm, those of the smallest variance.

    They are candidates by their weights alone. Whether they act on confidence through the final normalisation is what
    `plexus.explain.entropy_effect` measures.

    Args:
        model: a language model.
        k: how many.
        top_norm: the share of the units, by norm, that they are chosen from.
        at, of, unembedding: as in `logit_variance`.

    Raises:
        RangeError: a share outside (0, 1], or fewer units in it than `k`.

    Examples:
        >>> model = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> _ = model[2].weight.data.copy_(torch.tensor([[1.0, 2.0, 0.1, 3.0], [0.0, 2.0, 0.1, 0.0]]))
        >>> chosen = entropy_neurons(model, 1, top_norm=0.5, unembedding=torch.eye(2))
        >>> chosen.indices(chosen.sites[0])
        tensor([1])
    """
    if not 0 < top_norm <= 1:
        raise RangeError("a share of norms lies in (0, 1]", given=top_norm)
    norms = output_norm(model, at)
    site = norms.sites[0]
    size = norms.sizes[site]
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= math.ceil(top_norm * size):
        raise RangeError(
            "too few units have a large norm", given=f"k={k}", expected=f"1 … {math.ceil(top_norm * size)} of {size}"
        )
    large = norms.top(top_norm).mask(site)
    variance = logit_variance(model, at, of=of, unembedding=unembedding)[site]
    order = torch.where(large, variance, torch.inf).argsort(stable=True)[:k]
    return Neurons.of({site: size}, {site: order.tolist()}, norms.model)


def _output_rows(model: nn.Module, at: Site | None) -> tuple[Site, Tensor]:
    """The output weights of the hidden units of an MLP, `[unit, width]`."""
    site = sites.mlp(model)[-1] if at is None else at
    layer: Any = find_module(model, site.path)
    weight = getattr(layer, "weight", None)
    if not isinstance(weight, Tensor) or weight.dim() != 2 or not weight.is_floating_point():
        raise UnsupportedError(
            "the output weights of this MLP cannot be read", given=f"{type(layer).__name__} at {site}"
        )
    rows = weight.detach().float().cpu()
    return site, rows if type(layer).__name__ == "Conv1D" else rows.T


def _unembedding(model: nn.Module) -> Tensor:
    found: Any = getattr(model, "get_output_embeddings", lambda: None)()
    weight = getattr(found, "weight", None)
    if not isinstance(weight, Tensor) or not weight.is_floating_point():
        raise UnsupportedError(
            "this model shows no unembedding", given=type(model).__name__, mend="pass unembedding=, [token, width]"
        )
    return weight.detach().float().cpu()
