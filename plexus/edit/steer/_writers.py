"""An addition to the residual stream, moved to the layer that writes last into it, where it can be a bias."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from plexus.edit._edit import Edit
from plexus.edit._numbers import Numbers
from plexus.edit._step import Step
from plexus.errors import SiteError, UnsupportedError
from plexus.probe import record
from plexus.units import Neurons, Site, sites

__all__ = ["at_writers"]


def at_writers(model: nn.Module, edit: Edit, example: Any) -> Edit:
    """The same additions at the outputs of the MLPs' down-projections instead of those of their blocks.

    In most transformers a block ends with `h + down(…)`, and adding to its output is adding to that of `down`: a bias,
    which `edit.bake` can write. Where something stands between, as a norm after the MLP, the two differ; so both are
    run on an example and compared.

    Args:
        model: a transformer whose blocks and MLPs are recognised.
        edit: additions at `sites.residual(model)`.
        example: a batch to run, as in `probe.record`.

    Raises:
        UnsupportedError: the edit does more than add, or something stands between the two places.
        SiteError: a site is not the stream after a block, or its block has no MLP.

    Examples:
        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> from plexus.edit import bake, steer
        >>> model = GPT2LMHeadModel(GPT2Config(vocab_size=9, n_embd=4, n_layer=2, n_head=2))
        >>> push = steer.add({sites.residual(model)[1]: torch.ones(4)}, 3.0)
        >>> bake(model, steer.at_writers(model, push, {"input_ids": torch.tensor([[1, 2]])})).parameters
        ('transformer.h.1.mlp.c_proj.bias',)
    """
    writers = _writers(model)
    moved = Edit(tuple(_moved(step, writers) for step in edit.steps))
    after = sites.residual(model)[-1]
    found: list[Mapping[Site, Tensor]] = []
    for one in (edit, moved):
        with one.on(model):
            found.append(record(model, example, sites.residual(model)).values)
    for site in found[0]:
        scale = float(found[0][site].abs().max())
        if not torch.allclose(found[0][site], found[1][site], atol=1e-4 * scale, rtol=0):
            raise UnsupportedError(
                "the down-projection does not write straight into the residual stream",
                given=f"the stream differs at {site}" + (" only" if site == after else ""),
                mend="keep the edit at the blocks: edit.save, and `with edit.on(model)`",
            )
    return moved


def _writers(model: nn.Module) -> dict[str, Site]:
    """The output of the last down-projection of each block, by the block's path."""
    down = [site.path for site in sites.mlp(model)]
    out = {}
    for block in sites.residual(model):
        inside = [path for path in down if path.startswith(f"{block.path}.")]
        if inside:
            out[block.path] = Site(inside[-1], block.axes)
    return out


def _moved(step: Step, writers: Mapping[str, Site]) -> Step:
    if step.name != "add" or "amount" not in step.numbers:
        raise UnsupportedError("only additions are moved from a block to the layer that writes last", given=step.name)
    to = {}
    for site in step.neurons.sites:
        if site.path not in writers or site.at != "output" or site.part is not None or site.call is not None:
            raise SiteError(
                "this is not the residual stream after a block with an MLP",
                given=str(site),
                mend="use sites.residual(model)",
            )
        to[site] = writers[site.path]
    neurons = Neurons({to[site]: step.neurons.mask(site) for site in step.neurons.sites}, step.neurons.model)
    amount = step.numbers["amount"]
    numbers = {"amount": Numbers({to[site]: value for site, value in amount.values.items()}, amount.compact)}
    basis = None if step.basis is None else {to[site]: rows for site, rows in step.basis.items()}
    return replace(step, neurons=neurons, numbers=numbers, basis=basis)
