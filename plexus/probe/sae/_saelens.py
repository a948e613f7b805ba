"""Autoencoders on disk in SAELens' format: a folder with `cfg.json` and `sae_weights.safetensors`.

    weights   W_enc [unit, feature], W_dec [feature, unit], b_dec [unit], and by architecture
              standard, topk: b_enc;  jumprelu: b_enc, threshold;  gated: b_gate, r_mag, b_mag   [feature]
    cfg.json  architecture, d_in, d_sae, k, apply_b_dec_to_input, normalize_activations, reshape_activations, metadata

The format keeps no scale of its input: "expected_average_only_in" means that the rows are to be scaled before, or that
the scale was folded into the weights, and SAELens itself does nothing about it when an autoencoder runs. Written
autoencoders have their scale folded in. Files from before version 6 name some fields differently and are read too.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from plexus.errors import FormatError, UnsupportedError
from plexus.probe.sae._autoencoder import Activation, Design, Normalise, SparseAutoencoder
from plexus.units import Site
from plexus.units._files import atomically

__all__ = ["load", "save"]

CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
FORMAT = "6.0.0"  # the version of SAELens whose fields are written

_ARCHITECTURES: dict[str, Activation] = {
    "standard": "relu",
    "topk": "top-k",
    "jumprelu": "jump-relu",
    "gated": "gated",
}
_SCALINGS: dict[str, Normalise] = {
    "none": "none",
    "expected_average_only_in": "none",
    "layer_norm": "layer-norm",
    "constant_norm_rescale": "constant-norm",
}
_NAMES = {
    "W_enc": "encoder",
    "W_dec": "decoder",
    "b_dec": "decoder_bias",
    "b_enc": "encoder_bias",
    "b_gate": "gate_bias",
    "r_mag": "magnitude",
    "b_mag": "magnitude_bias",
}


def load(folder: str | os.PathLike[str], *, site: Site | None = None) -> SparseAutoencoder:
    """Read an autoencoder that SAELens or `save` wrote, in float32.

    Args:
        folder: holds `cfg.json` and `sae_weights.safetensors`.
        site: where it belongs in your model; SAELens' files name a hook of TransformerLens instead, which is kept in
            `metadata["hook_name"]`.

    Raises:
        FormatError: a file is missing or damaged, or the weights are not those that the configuration describes.
        UnsupportedError: an architecture or a normalisation that is not read.

    Examples:
        >>> import tempfile
        >>> sae = SparseAutoencoder(3, 6, activation="top-k", k=2)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save(sae, folder)
        ...     again = load(folder)
        >>> torch.equal(again(torch.ones(1, 3)), sae(torch.ones(1, 3)))
        True
    """
    config = _newer(_read_config(Path(folder) / CONFIG))
    stored = _read_weights(Path(folder) / WEIGHTS)
    architecture, scaling = config.get("architecture", "standard"), config.get("normalize_activations") or "none"
    if architecture not in _ARCHITECTURES:
        raise UnsupportedError(
            "an autoencoder of this architecture is not read", given=architecture, expected=", ".join(_ARCHITECTURES)
        )
    if scaling not in _SCALINGS:
        raise UnsupportedError(
            "this normalisation needs statistics that its files do not hold",
            given=scaling,
            expected=", ".join(_SCALINGS),
            mend="fold it into the weights with SAELens first",
        )
    if scaling == "expected_average_only_in":
        warnings.warn(
            "this autoencoder expects rows scaled to norm √units, unless its scale is folded in", stacklevel=2
        )
    try:
        design = Design(
            int(config["d_in"]),
            int(config["d_sae"]),
            _ARCHITECTURES[architecture],
            int(config["k"]) if architecture == "topk" else None,
            pre_bias=bool(config.get("apply_b_dec_to_input", True)),
            unit_norm=False,
            normalise=_SCALINGS[scaling],
        )
    except (KeyError, TypeError, ValueError) as error:
        raise FormatError(
            "this configuration is damaged", given=f"{folder}: {type(error).__name__}: {error}"
        ) from error
    if config.get("rescale_acts_by_decoder_norm") and "W_dec" in stored:
        _fold_norms(stored)
    weights = {_NAMES[name]: value for name, value in stored.items() if name in _NAMES}
    if "threshold" in stored:
        # a threshold below zero lets the rectifier decide, as zero does
        weights["log_threshold"] = stored["threshold"].clamp_min(0.0).log()
    missing = [name for name in design.names if name not in weights]
    if missing:
        names = {ours: theirs for theirs, ours in {**_NAMES, "threshold": "log_threshold"}.items()}
        raise FormatError(
            f"weights of this {architecture} autoencoder are missing",
            given=", ".join(stored),
            expected=", ".join(names[name] for name in missing),
        )
    try:
        sae = SparseAutoencoder.of(design, weights)
    except ValueError as error:
        raise FormatError("the weights do not fit the configuration", given=f"{folder}: {error}") from error
    sae.metadata = dict(config.get("metadata") or {})
    place = sae.metadata.pop("plexus_site", None)
    sae.site = site if site is not None else None if place is None else Site.from_json(place)
    return sae


def save(autoencoder: SparseAutoencoder, folder: str | os.PathLike[str]) -> None:
    """Write an autoencoder in SAELens' format, each file atomically.

    Tied weights are written twice, a missing bias as zeros, the scale of "rms" folded into the weights, and
    "batch-top-k" as the threshold that stands for it.

    Raises:
        UnwritableError: the place cannot be written.
    """
    design, weights = autoencoder.design, {name: value.detach() for name, value in autoencoder.weights.items()}
    scale = autoencoder.scale if design.normalise == "rms" else torch.ones_like(autoencoder.scale)
    decoder = weights["decoder"]
    tensors = {
        "W_enc": (decoder.T if design.tied else weights["encoder"]) / scale,
        "W_dec": decoder * scale,
        "b_dec": weights.get("decoder_bias", torch.zeros_like(decoder[0])) * scale,
    }
    tensors |= {theirs: weights[ours] for theirs, ours in _NAMES.items() if theirs not in tensors and ours in weights}
    if design.activation == "batch-top-k":
        tensors["threshold"] = autoencoder.limit.expand(design.features)
    elif design.activation == "jump-relu":
        tensors["threshold"] = weights["log_threshold"].exp()
    names = {ours: theirs for theirs, ours in _ARCHITECTURES.items()} | {"batch-top-k": "jumprelu"}
    scalings = {ours: theirs for theirs, ours in _SCALINGS.items() if theirs != "expected_average_only_in"}
    config: dict[str, Any] = {
        "architecture": names[design.activation],
        "d_in": design.units,
        "d_sae": design.features,
        "dtype": str(decoder.dtype).removeprefix("torch."),
        "device": "cpu",
        "apply_b_dec_to_input": design.pre_bias,
        "normalize_activations": scalings.get(design.normalise, "none"),
        "reshape_activations": "none",
        "metadata": {"sae_lens_version": FORMAT, **autoencoder.metadata},
    }
    if design.activation == "top-k":
        config["k"] = design.k
    if autoencoder.site is not None:
        config["metadata"]["plexus_site"] = autoencoder.site.to_json()
    plain = {name: value.cpu().contiguous().clone() for name, value in tensors.items()}
    atomically(Path(folder) / WEIGHTS, lambda path: save_file(plain, path))
    text = json.dumps(config, indent=1)
    atomically(Path(folder) / CONFIG, lambda path: _write(path, text))


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FormatError(
            "this folder holds no autoencoder", given=f"{path}: {error}", expected=f"{CONFIG} and {WEIGHTS}"
        ) from error
    if not isinstance(config, dict):
        raise FormatError("this configuration is not an object", given=str(path))
    return config


def _read_weights(path: Path) -> dict[str, Tensor]:
    try:
        return {name: value.float() for name, value in load_file(path).items()}
    except (OSError, SafetensorError) as error:
        raise FormatError("the weights cannot be read: missing or truncated", given=f"{path}: {error}") from error


def _newer(config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of files written before version 6 under their later names."""
    new = dict(config)
    activation = new.get("activation_fn_str", new.get("activation_fn", "relu"))
    options = new.get("activation_fn_kwargs") or {}
    if activation == "topk":
        new["architecture"], new["k"] = "topk", options.get("k", new.get("k"))
    if isinstance(new.get("normalize_activations"), bool):
        new["normalize_activations"] = "expected_average_only_in" if new["normalize_activations"] else "none"
    if new.get("finetuning_scaling_factor"):
        raise UnsupportedError("an autoencoder with a finetuned scale per feature is not read")
    metadata = dict(new.get("metadata") or {})
    for name, old in (("hook_name", "hook_point"), ("model_name", "model_name"), ("hook_layer", "hook_point_layer")):
        for key in (name, old):
            if key in new:
                metadata.setdefault(name, new[key])
    return {**new, "metadata": metadata}


def _fold_norms(stored: dict[str, Tensor]) -> None:
    """Weights that act as if the decoder's directions had norm 1, made so."""
    norms = torch.linalg.vector_norm(stored["W_dec"], dim=-1)
    stored["W_dec"] = stored["W_dec"] / norms[:, None]
    for name in ("W_enc", "b_enc"):
        if name in stored:
            stored[name] = stored[name] * norms
