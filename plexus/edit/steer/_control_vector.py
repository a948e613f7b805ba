"""Steering files that llama.cpp reads: control vectors in the GGUF format.

    general.architecture         "controlvector"
    controlvector.model_hint     the type of model, e.g. "llama"
    controlvector.layer_count    how many directions there are
    direction.N                  float32 [width]: what is added to the residual stream after block N, N = 1, 2 …

Blocks count from 0 and block 0 has no direction: llama.cpp refuses one. That is also how repeng writes and reads these
files. What is added is the vector as it lies in the file, at every token, times a scale given on loading.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from plexus.edit._edit import Edit
from plexus.edit._step import Step
from plexus.edit._verbs import make
from plexus.errors import DtypeError, FormatError, RangeError, ShapeError, UnknownNameError, UnsupportedError, require
from plexus.units import Neurons, Site, fingerprint, sites
from plexus.units._files import atomically
from plexus.units._paths import unwrap

__all__ = ["read_gguf", "write_gguf"]

ARCHITECTURE = "controlvector"
_NAME = re.compile(r"direction\.(\d+)")


def write_gguf(edit: Edit, path: str | os.PathLike[str], model: nn.Module) -> Path:
    """Write an edit that adds to the residual stream as a control vector.

    Args:
        edit: made by `steer.add` or `edit.add` at `sites.residual(model)`, at all tokens; several additions sum up.
        path: of the file; the ending is .gguf by custom.
        model: whose blocks the sites are.

    Raises:
        UnsupportedError: the edit does more than add constants after blocks 1, 2, …
        RangeError: it adds nothing.
        MissingExtraError: the package gguf is absent.
        UnwritableError: the place cannot be written.

    Examples:
        >>> import tempfile
        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> from plexus.edit import steer
        >>> model = GPT2LMHeadModel(GPT2Config(vocab_size=9, n_embd=4, n_layer=2, n_head=2))
        >>> push = steer.add({sites.residual(model)[1]: torch.ones(4)}, 3.0)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     steer.read_gguf(steer.write_gguf(push, f"{folder}/push.gguf", model), model)
        Edit: add 4 units at 1 site
    """
    if not isinstance(edit, Edit):
        raise DtypeError("a control vector is made of an edit", given=type(edit).__name__)
    gguf = require("gguf", "llm", purpose="GGUF files")
    edit._check_model(model, anyway=False)
    blocks = {site.path: place for place, site in enumerate(sites.residual(model))}
    vectors: dict[int, Tensor] = {}
    for step in edit.steps:
        for site, added in _constants(step).items():
            if site.path not in blocks or site.at != "output" or site.call is not None or site.part is not None:
                raise _refusal(f"site {site} is not the residual stream after a block")
            place = blocks[site.path]
            if place == 0:
                raise _refusal("there is no direction of block 0: llama.cpp begins with block 1")
            vectors[place] = vectors.get(place, torch.zeros_like(added)) + added
    if not vectors:
        raise RangeError("this edit adds nothing", given=repr(edit))
    hint = str(getattr(getattr(unwrap(model), "config", None), "model_type", type(unwrap(model)).__name__))

    def write(target: Path) -> None:
        writer = gguf.GGUFWriter(target, ARCHITECTURE)
        writer.add_string(f"{ARCHITECTURE}.model_hint", hint)
        writer.add_uint32(f"{ARCHITECTURE}.layer_count", len(vectors))
        for place in sorted(vectors):
            writer.add_tensor(f"direction.{place}", vectors[place].to(torch.float32).contiguous().cpu().numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()

    return atomically(path, write)


def read_gguf(path: str | os.PathLike[str], model: nn.Module, *, scale: float = 1.0) -> Edit:
    """Read a control vector, ours, llama.cpp's or repeng's, as an edit of a model.

    Args:
        path: of the file.
        model: whose residual stream it steers.
        scale: what its vectors are multiplied with.

    Raises:
        UnknownNameError: there is no such file.
        FormatError: it is no control vector, or is damaged.
        ShapeError: it has directions for blocks that the model lacks, or of another width.
        MissingExtraError: the package gguf is absent.

    Examples:
        >>> import tempfile
        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> from plexus.edit import steer
        >>> model = GPT2LMHeadModel(GPT2Config(vocab_size=9, n_embd=4, n_layer=2, n_head=2))
        >>> push = steer.add({sites.residual(model)[1]: torch.tensor([0.0, 0.0, 1.0, 0.0])}, 3.0)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     back = steer.read_gguf(steer.write_gguf(push, f"{folder}/push.gguf", model), model, scale=-1.0)
        >>> next(iter(back.steps[0].numbers["amount"].values.values()))
        tensor([-0., -0., -3., -0.])
    """
    gguf = require("gguf", "llm", purpose="GGUF files")
    if not Path(path).is_file():
        raise UnknownNameError(f"there is no control vector {str(path)!r}")
    try:
        reader = gguf.GGUFReader(path)
        architecture = _text(reader, "general.architecture")
        found = {tensor.name: np.array(tensor.data) for tensor in reader.tensors}
    except (ValueError, IndexError, KeyError, AttributeError, TypeError, OverflowError, UnicodeDecodeError) as error:
        raise FormatError("this GGUF file cannot be read", given=f"{path}: {error}") from error
    if architecture != ARCHITECTURE:
        raise FormatError("this GGUF file is no control vector", given=architecture, expected=ARCHITECTURE)
    residual = sites.residual(model)
    amounts: dict[Site, Tensor] = {}
    sizes: dict[Site, int] = {}
    for name, data in found.items():
        match = _NAME.fullmatch(name)
        if match is None or int(match[1]) == 0 or data.dtype != np.float32 or data.ndim != 1:
            raise FormatError(
                "this control vector holds what is no direction",
                given=f"{name} {data.dtype} {data.shape}",
                expected="direction.N, N = 1, 2 …, float32 [width]",
            )
        place = int(match[1])
        if place >= len(residual):
            raise ShapeError("the model has fewer blocks than this control vector", given=name, expected=len(residual))
        width = residual._known(residual[place]).units
        if width is not None and len(data) != width:
            raise ShapeError("the control vector is made for another width", given=len(data), expected=width)
        if not np.isfinite(data).all():
            raise FormatError("this control vector holds a NaN or an infinite number", given=name)
        amounts[residual[place]] = scale * torch.from_numpy(data)
        sizes[residual[place]] = len(data)
    if not amounts:
        raise FormatError("this control vector has no direction", given=path)
    return make("add", ~Neurons.of(sizes, model=fingerprint(model)), {"amount": amounts}, "all", None)


def _constants(step: Step) -> dict[Site, Tensor]:
    """What a step adds at each site, `[unit]`."""
    if step.name != "add" or "amount" not in step.numbers or step.positions != "all":
        raise _refusal(f"it does more than add the same at every token ({step.name}, {step.positions} tokens)")
    out = {}
    for action in step.actions():
        site, mask = action.site, step.neurons.mask(action.site)
        amount = step.numbers["amount"].of(site, mask).detach().cpu()
        if step.basis is not None:
            basis = step.basis[site].detach().to(amount) * mask
            out[site] = amount.expand(len(basis)) @ basis
        elif amount.dim() > 1:
            raise _refusal(f"units of site {site} are vectors")
        else:
            out[site] = torch.where(mask, amount, torch.zeros_like(amount))
    return out


def _text(reader: Any, key: str) -> str:
    field = reader.get_field(key)
    return "" if field is None else bytes(field.parts[-1]).decode("utf-8")


def _refusal(reason: str) -> UnsupportedError:
    return UnsupportedError(
        f"this edit is no control vector: {reason}", mend="edit.save keeps any edit; edit.bake writes it into weights"
    )
