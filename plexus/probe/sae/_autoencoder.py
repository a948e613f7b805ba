"""A sparse autoencoder: units written as a sparse sum of directions.

    y = (n(x) - b_dec) W_enc + b_enc       drive of the features; without pre-bias, b_dec is not subtracted
    z = activation(y) ≥ 0                  see `_activations`
    x̂ = n⁻¹(z W_dec + b_dec)               W_dec = W_encᵀ where the weights are tied

n scales the input: by a number kept with the weights ("rms"), or row by row to zero mean and unit deviation
("layer-norm") or to norm √units ("constant-norm"); n⁻¹ undoes it. A gated autoencoder (Rajamanoharan et al. 2024a)
decides and measures apart, both from one encoder: z = H(y_gate) max(y_mag, 0).

Everything below works with any number of leading axes, so that many autoencoders are one batched product.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from plexus.errors import DtypeError, RangeError, ShapeError, SiteError, UnknownNameError, UnsupportedError
from plexus.probe.sae._activations import batch_top_k, jump_relu, top_k
from plexus.units import Neurons, Site

__all__ = ["Design", "SparseAutoencoder", "decode", "encode", "normalise", "start_weights"]

Activation = Literal["relu", "top-k", "batch-top-k", "jump-relu", "gated"]
Normalise = Literal["none", "rms", "layer-norm", "constant-norm"]
ACTIVATIONS: tuple[Activation, ...] = ("relu", "top-k", "batch-top-k", "jump-relu", "gated")
NORMALISE: tuple[Normalise, ...] = ("none", "rms", "layer-norm", "constant-norm")
Weights = Mapping[str, Tensor]


@dataclass(frozen=True)
class Design:
    """How an autoencoder is built; `SparseAutoencoder` explains the fields."""

    units: int
    features: int
    activation: Activation = "relu"
    k: int | None = None
    tied: bool = False
    decoder_bias: bool = True
    pre_bias: bool = True
    unit_norm: bool = True
    normalise: Normalise = "none"
    width: float = 0.2

    def __post_init__(self) -> None:
        for name, known in (("activation", ACTIVATIONS), ("normalise", NORMALISE)):
            if getattr(self, name) not in known:
                raise UnknownNameError.among(f"`{name}` of an autoencoder", str(getattr(self, name)), known)
        for name in ("units", "features"):
            size = getattr(self, name)
            if isinstance(size, bool) or not isinstance(size, int) or size < 1:
                raise RangeError(f"`{name}` is a count", given=size, expected="a positive int")
        by_count = self.activation in ("top-k", "batch-top-k")
        if by_count != (self.k is not None):
            raise RangeError(f"activation {self.activation!r} and k do not go together", given=f"k={self.k}")
        if self.k is not None and not 1 <= self.k <= self.features:
            raise RangeError("k is a count of active features", given=self.k, expected=f"1 to {self.features}")
        if not self.width > 0:
            raise RangeError("the width around the threshold is positive", given=self.width)

    @property
    def names(self) -> tuple[str, ...]:
        """The weights that an autoencoder of this design has."""
        bias = ("gate_bias", "magnitude", "magnitude_bias") if self.activation == "gated" else ("encoder_bias",)
        return (
            *(() if self.tied else ("encoder",)),
            *bias,
            "decoder",
            *(("decoder_bias",) if self.decoder_bias else ()),
            *(("log_threshold",) if self.activation == "jump-relu" else ()),
        )


def start_weights(design: Design, generator: torch.Generator, members: int | None = None) -> dict[str, Tensor]:
    """Weights to begin with: random directions of norm 1 (Xavier-uniform when tied and free), encoder = decoderᵀ."""
    lead = () if members is None else (members,)
    shape = (*lead, design.features, design.units)
    if design.tied and not design.unit_norm:
        bound = (6.0 / (design.features + design.units)) ** 0.5
        decoder = (2 * torch.rand(shape, generator=generator, device=generator.device).cpu() - 1) * bound
    else:
        decoder = torch.randn(shape, generator=generator, device=generator.device).cpu()
        decoder = nn.functional.normalize(decoder, dim=-1)
    features, units = torch.zeros(*lead, design.features), torch.zeros(*lead, design.units)
    start = {
        "encoder": decoder.mT.clone(memory_format=torch.contiguous_format),
        "encoder_bias": features,
        "gate_bias": features.clone(),
        "magnitude": features.clone(),
        "magnitude_bias": features.clone(),
        "decoder": decoder,
        "decoder_bias": units,
        "log_threshold": torch.full_like(features, 0.01).log(),
    }
    return {name: start[name] for name in design.names}


class Scaling(NamedTuple):
    """How rows were normalised, so that it can be undone: x = n(x) · by + shift."""

    by: Tensor | float
    shift: Tensor | float


def normalise(design: Design, scale: Tensor | float, x: Tensor) -> tuple[Tensor, Scaling]:
    """The rows of `x` scaled, and how."""
    if design.normalise == "rms":
        return x / scale, Scaling(scale, 0.0)
    if design.normalise == "layer-norm":
        mean = x.mean(-1, keepdim=True)
        spread = (x - mean).std(-1, keepdim=True)
        # the way back leaves the small number out, as the published format does
        return (x - mean) / (spread + 1e-5), Scaling(spread, mean)
    if design.normalise == "constant-norm":
        by = torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp_min(1e-12) / design.units**0.5
        return x / by, Scaling(by, 0.0)
    return x, Scaling(1.0, 0.0)


def drives(design: Design, weights: Weights, x: Tensor) -> Tensor:
    """The drive of each feature, `[…, row, feature]`, from normalised rows."""
    if design.pre_bias and design.decoder_bias:
        x = x - weights["decoder_bias"].unsqueeze(-2)
    encoder = weights["decoder"].mT if design.tied else weights["encoder"]
    bias = weights["gate_bias" if design.activation == "gated" else "encoder_bias"]
    return x @ encoder + bias.unsqueeze(-2)


def encode(design: Design, weights: Weights, x: Tensor, *, limit: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Drive and activity of the features, `[…, row, feature]` each, from normalised rows.

    `limit` is the threshold that stands for batch-top-k outside training; None takes the largest of the batch.
    """
    drive = drives(design, weights, x)
    if design.activation == "top-k":
        return drive, top_k(drive, design.k or 1)
    if design.activation == "batch-top-k":
        return drive, batch_top_k(drive, design.k or 1) if limit is None else drive.relu() * (drive > limit)
    if design.activation == "jump-relu":
        return drive, jump_relu(drive, weights["log_threshold"].exp().unsqueeze(-2), design.width)
    if design.activation == "gated":
        bare = drive - weights["gate_bias"].unsqueeze(-2)
        measured = bare * weights["magnitude"].exp().unsqueeze(-2) + weights["magnitude_bias"].unsqueeze(-2)
        return drive, measured.relu() * (drive > 0)
    return drive, drive.relu()


def decode(design: Design, weights: Weights, z: Tensor, *, bias: bool = True) -> Tensor:
    """The normalised rows that the activity stands for."""
    out = z @ weights["decoder"]
    return out + weights["decoder_bias"].unsqueeze(-2) if bias and design.decoder_bias else out


class SparseAutoencoder(nn.Module):
    """`x_hat = SparseAutoencoder(units, features)(x)`, x `[…, unit]`, computed in float32 and given back in its dtype.

    Args:
        units: size of the rows.
        features: size of the dictionary.
        activation: "relu", "top-k", "batch-top-k", "jump-relu" or "gated".
        k: how many features a row (on average over a batch, for "batch-top-k") may have.
        tied: the encoder is the decoder transposed.
        decoder_bias: whether the reconstruction has a bias.
        pre_bias: whether that bias is taken off the input first.
        unit_norm: whether `fit` keeps every decoder direction at norm 1.
        normalise: scale the input: "none", "rms" (one number, kept), "layer-norm" or "constant-norm" (row by row).
        width: of the rectangle through which thresholds learn, "jump-relu" only.
        generator: where the weights are drawn (default: one of seed 0).

    Attributes:
        site: where it was trained, if known.
        scale: buffer `[]`, what "rms" divides by.
        limit: buffer `[]`, the threshold of "batch-top-k" outside training.
        metadata: what a file told about it beside its design.

    Raises:
        RangeError, UnknownNameError: the sizes or names have no meaning together.

    Examples:
        >>> sae = SparseAutoencoder(4, 16, activation="top-k", k=2, generator=torch.Generator().manual_seed(0))
        >>> z = sae.encode(torch.ones(3, 4))
        >>> tuple(z.shape), int((z > 0).sum(-1).max())
        ((3, 16), 2)
        >>> torch.equal(sae(torch.ones(3, 4)), sae.decode(z))
        True
    """

    scale: Tensor
    limit: Tensor
    decoder: nn.Parameter

    def __init__(
        self,
        units: int,
        features: int,
        *,
        activation: Activation = "relu",
        k: int | None = None,
        tied: bool = False,
        decoder_bias: bool = True,
        pre_bias: bool = True,
        unit_norm: bool = True,
        normalise: Normalise = "none",
        width: float = 0.2,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.design = Design(
            units, features, activation, k, tied, decoder_bias, pre_bias and decoder_bias, unit_norm, normalise, width
        )
        generator = torch.Generator().manual_seed(0) if generator is None else generator
        for name, value in start_weights(self.design, generator).items():
            self.register_parameter(name, nn.Parameter(value))
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("limit", torch.zeros(()))
        self.site: Site | None = None
        self.metadata: dict[str, Any] = {}

    @classmethod
    def of(cls, design: Design, weights: Weights) -> SparseAutoencoder:
        """The autoencoder of a design with given weights (copied).

        Raises:
            ShapeError: the weights are not those of the design.
        """
        sae = cls(**{name: getattr(design, name) for name in Design.__dataclass_fields__})
        with torch.no_grad():
            for name, parameter in sae.named_parameters():
                if name not in weights or weights[name].shape != parameter.shape:
                    given = tuple(weights[name].shape) if name in weights else "nothing"
                    raise ShapeError(f"the weight {name!r} does not fit", given=given, expected=tuple(parameter.shape))
                parameter.copy_(weights[name])
        return sae

    @property
    def weights(self) -> dict[str, Tensor]:
        """The parameters by name."""
        return dict(self.named_parameters())

    @property
    def units(self) -> int:
        """How many units it reads."""
        return self.design.units

    @property
    def features(self) -> int:
        """The size of the dictionary."""
        return self.design.features

    def encode(self, x: Tensor) -> Tensor:
        """The activity of the features, `[…, unit]` to `[…, feature]`.

        Raises:
            ShapeError: the last axis is not the units.
        """
        rows, _ = self._rows(x)
        z = self._encode(rows)
        return z.reshape(*x.shape[:-1], self.features).to(_floating(x.dtype))

    def decode(self, z: Tensor) -> Tensor:
        """The units that the activity `[…, feature]` stands for.

        Raises:
            UnsupportedError: the design normalises row by row, so activity alone does not say how to undo it.
        """
        if self.design.normalise not in ("none", "rms"):
            raise UnsupportedError(
                "activity alone does not say how its row was normalised", mend="call the autoencoder on the rows"
            )
        if z.dim() == 0 or z.shape[-1] != self.features:
            raise ShapeError(
                "the last axis is not the features", given=tuple(z.shape), expected=f"[…, {self.features}]"
            )
        rows = decode(self.design, self.weights, z.reshape(-1, self.features).to(self.decoder.dtype))
        rows = rows * self.scale if self.design.normalise == "rms" else rows
        return rows.reshape(*z.shape[:-1], self.units).to(z.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """The reconstruction of `x` `[…, unit]`, in its shape and dtype."""
        return self.reconstruct(x, self.encode(x))

    def reconstruct(self, x: Tensor, z: Tensor) -> Tensor:
        """The rows that the activity `z` `[…, feature]` stands for, scaled as the rows `x` were."""
        _, scaling = self._rows(x)
        out = decode(self.design, self.weights, z.reshape(-1, self.features).to(self.decoder.dtype))
        return (out * scaling.by + scaling.shift).reshape(x.shape).to(_floating(x.dtype))

    def directions(self, features: Neurons | Tensor | list[int] | int) -> Tensor:
        """What each of some features adds to the units, `[feature, unit]`: directions for the `basis=` of an edit.

        Args:
            features: indices, or a set of units at `feature_site` (as `Scores` of an encoded recording give them).

        Raises:
            SiteError: the set does not cover the features of this autoencoder.
            RangeError: an index is not a feature.

        Examples:
            >>> sae = SparseAutoencoder(3, 5)
            >>> sae.directions([0, 4]).shape
            torch.Size([2, 3])
        """
        if isinstance(features, Neurons):
            if self.feature_site not in features.sites or features.sizes[self.feature_site] != self.features:
                raise SiteError(
                    "this set does not hold features of this autoencoder",
                    given=", ".join(map(str, features.sites)),
                    expected=str(self.feature_site),
                )
            index = features.indices(self.feature_site)
        else:
            index = torch.as_tensor(features).reshape(-1)
            if index.dtype == torch.bool or index.is_floating_point():
                raise DtypeError("features are named by their indices", given=str(index.dtype))
            if len(index) and not 0 <= int(index.min()) <= int(index.max()) < self.features:
                raise RangeError(
                    "there is no such feature", given=index.tolist()[:6], expected=f"0 to {self.features - 1}"
                )
        rows = self.decoder.detach()[index.to(self.decoder.device)]
        return rows * self.scale if self.design.normalise == "rms" else rows

    @property
    def feature_site(self) -> Site:
        """Where the features live as units: the site's path with `.sae` behind it."""
        path = self.site.path if self.site is not None else ""
        return Site(f"{path}.sae" if path else "sae", "b ... u")

    def extra_repr(self) -> str:
        design = self.design
        marks = [f"{design.units} units, {design.features} features, {design.activation}"]
        marks += [f"k={design.k}"] if design.k is not None else []
        marks += [name for name in ("tied", "unit_norm") if getattr(design, name)]
        return ", ".join(marks)

    def _rows(self, x: Tensor) -> tuple[Tensor, Scaling]:
        if x.dim() == 0 or x.shape[-1] != self.units:
            raise ShapeError("the last axis is not the units", given=tuple(x.shape), expected=f"[…, {self.units}]")
        return normalise(self.design, self.scale, x.reshape(-1, self.units).to(self.decoder.dtype))

    def _encode(self, rows: Tensor) -> Tensor:
        return encode(self.design, self.weights, rows, limit=self.limit)[1]


def _floating(dtype: torch.dtype) -> torch.dtype:
    return dtype if dtype.is_floating_point else torch.float32
