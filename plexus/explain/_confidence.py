"""Whether an edit changes a language model's confidence directly, or through the scale of the final normalisation.

With h the residual stream before the final norm, N(h) = γ h / s(h) and s the root mean square (of a LayerNorm the
standard deviation, about the mean):

    total    H[softmax(W N(h'))] - H[softmax(W N(h))]            h' under the edit
    direct   the same with h' divided by s(h): the scale that the model had without the edit
    share    1 - direct / total                                  how much of the change the scale carries

Source: Stolfo et al. 2024.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from plexus.edit import Edit
from plexus.errors import RangeError, SiteError, UnsupportedError
from plexus.explain._measure import check_draws, check_edit, check_model
from plexus.explain.controls._matched import matched_random
from plexus.explain.controls._null import Null, null
from plexus.probe._batches import each_batch, run
from plexus.probe._quiet import quiet
from plexus.units import Scores, Site, Visit, attach
from plexus.units._paths import find_module, walk


@dataclass(frozen=True)
class EntropyEffect:
    """What an edit does to the entropy of the next token, with and without the final norm's scale.

    Attributes:
        before: mean entropy of the model as it is, in nats.
        total: mean change under the edit.
        direct: mean change under the edit with the scale held at what it was.
        controls: of matched random units, `[control, 2]`: total and direct.
    """

    before: float
    total: float
    direct: float
    controls: Tensor

    @property
    def through_scale(self) -> float:
        """The part of the change that goes through the scale, in nats."""
        return self.total - self.direct

    @property
    def null(self) -> Null:
        """Where the change through the scale stands among those of random units."""
        return null(self.through_scale, self.controls[:, 0] - self.controls[:, 1])

    def __str__(self) -> str:
        found = self.null
        return (
            f"entropy {self.before:.3f} nats; edited {self.total:+.4f}, with the scale held {self.direct:+.4f}: "
            f"through the scale {self.through_scale:+.4f}, random units {found.low:+.4f} … {found.high:+.4f}, "
            f"p {found.p:.3g}"
        )


def entropy_effect(
    model: nn.Module,
    edit: Edit,
    batches: Any,
    n_random: int = 20,
    seed: int = 0,
    *,
    norm: Site | None = None,
    match: Scores | None = None,
    last_only: bool = False,
) -> EntropyEffect:
    """Measure what an edit does to the entropy of the next token, and how much of it the final norm's scale carries.

    Args:
        model: a causal language model of transformers.
        edit: a value; for candidates of entropy neurons their mean: `edit.replace(chosen, means)`.
        batches: token batches, mappings with `input_ids`; padding is left out of the means.
        n_random: the same edit on so many sets of random units.
        seed: of their draw.
        norm: the final normalisation as a site on its *input*; told from the model where left out.
        match: a score in which the random units are to be alike, for instance `probe.scores.output_norm(model)`.
        last_only: read the entropy at the last token only.

    Raises:
        UnsupportedError: the final norm is neither an RMSNorm nor a LayerNorm.
        SiteError: it cannot be told.

    Examples:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> from plexus import edit, probe
        >>> config = LlamaConfig(vocab_size=20, hidden_size=8, intermediate_size=16, num_hidden_layers=1,
        ...                      num_attention_heads=2)
        >>> model = LlamaForCausalLM(config)
        >>> chosen = probe.scores.entropy_neurons(model, 2)
        >>> found = entropy_effect(model, edit.scale(chosen, 1.0), {"input_ids": torch.tensor([[1, 2, 3]])}, n_random=2)
        >>> found.total, found.direct
        (0.0, 0.0)
    """
    check_model(model)
    check_edit(edit, "entropy_effect(model, edit.scale(chosen, 0.0), batches)")
    check_draws(n_random, seed)
    site = _final_norm(model) if norm is None else norm
    kept = list(each_batch(batches))
    generator = torch.Generator().manual_seed(int(seed))
    edits = [edit, *(matched_random(edit, generator, match=match) for _ in range(n_random))]
    with quiet(model):
        scales: list[Tensor] = []
        plain = 0.0
        rows = 0
        for batch in kept:
            look = _Scale(site, find_module(model, site.path))
            with attach(model, [look]):
                entropy = _entropy(run(model, batch, None, None), batch, last_only)
            scales.append(look.seen())
            plain += float(entropy.sum())
            rows += len(entropy)
        if not rows:
            raise RangeError("there is no token to read the entropy at")
        found = []
        for one in edits:
            sums = [0.0, 0.0]
            for batch, scale in zip(kept, scales, strict=True):
                with one.on(model):
                    sums[0] += float(_entropy(run(model, batch, None, None), batch, last_only).sum())
                    hold = _Scale(site, find_module(model, site.path), scale)
                    with attach(model, [hold, hold.after]):
                        sums[1] += float(_entropy(run(model, batch, None, None), batch, last_only).sum())
            found.append([(value - plain) / rows for value in sums])
    return EntropyEffect(plain / rows, found[0][0], found[0][1], torch.tensor(found[1:], dtype=torch.float64))


class _Scale:
    """Notes the scale of what enters a norm; with one given, its partner `after` makes the norm's output use it."""

    records = True

    def __init__(self, site: Site, module: nn.Module, held: Tensor | None = None) -> None:
        self.site = site
        kind = type(module).__name__
        if "RMSNorm" in kind:
            self.centred = False
        elif "LayerNorm" in kind:
            self.centred = True
        else:
            raise UnsupportedError("the final norm has no scale to hold", given=kind, expected="RMSNorm or LayerNorm")
        self.epsilon = float(
            next((v for n in ("eps", "variance_epsilon") if (v := getattr(module, n, None)) is not None), 1e-6)
        )
        bias: Any = getattr(module, "bias", None)
        self.bias = bias if isinstance(bias, Tensor) else None
        self.now: Tensor | None = None
        self.after = _Rescale(self, held)

    def __call__(self, values: Tensor, visit: Visit) -> None:
        x = values.detach().float()
        x = x - x.mean(-1, keepdim=True) if self.centred else x
        self.now = (x.square().mean(-1, keepdim=True) + self.epsilon).sqrt()

    def seen(self) -> Tensor:
        assert self.now is not None
        return self.now


class _Rescale:
    """Multiplies a norm's output by the scale it used over the scale it is to use."""

    records = False

    def __init__(self, look: _Scale, held: Tensor | None) -> None:
        self.site = Site(look.site.path, look.site.axes)
        self.look, self.held = look, held

    def __call__(self, values: Tensor, visit: Visit) -> Tensor:
        assert self.held is not None
        offset = torch.zeros_like(values) if self.look.bias is None else self.look.bias.detach().to(values)
        return (values - offset) * (self.look.seen() / self.held) + offset


def _final_norm(model: nn.Module) -> Site:
    """The norm that stands last among the direct children of the module that holds the blocks."""
    named = dict(walk(model))
    from plexus.units import sites

    stack = sites.residual(model)[-1].path.rpartition(".")[0].rpartition(".")[0]
    for name in reversed(list(named[stack]._modules)):
        if "norm" in type(named[stack]._modules[name]).__name__.lower():
            return Site(f"{stack}.{name}" if stack else name, "b t u", at="input")
    raise SiteError("the final norm of this model cannot be told", mend="pass norm=Site('…', 'b t u', at='input')")


def _entropy(output: Any, batch: Any, last_only: bool) -> Tensor:
    """The entropy of the next token at every real token, `[row]`."""
    log = output.logits.float().log_softmax(-1)
    entropy: Tensor = -(log.exp() * log).sum(-1)
    mask = batch.get("attention_mask") if hasattr(batch, "get") else None
    real = torch.ones_like(entropy, dtype=torch.bool) if mask is None else mask.bool()
    if last_only:
        place = torch.arange(entropy.shape[1], device=entropy.device)
        real = place == torch.where(real, place, -1).amax(1, keepdim=True)
    return entropy[real].double().cpu()
