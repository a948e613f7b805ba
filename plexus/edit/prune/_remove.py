"""Units removed for good: the rows that make them, the columns that read them, and what carries them between.

A unit that is 0 adds nothing to what the next layer reads, so with its column gone the model does the same:

    W x  =  W[:, kept] x[kept]        where x = 0 elsewhere

What a silenced unit has become by then is not always 0 (a sigmoid makes 1/2 of it, a batch norm its offset); then it
is a constant c, and W[:, gone] c goes into the bias of the layer that reads it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from plexus.edit._checkpoint import holder
from plexus.edit.prune._chain import Chain, Outside, follow
from plexus.edit.prune._cuts import Cuts, check_plain, layer_kind, refusal
from plexus.edit.prune._hold import Widths, fit
from plexus.edit.prune._transformer import cut_heads, cut_hidden
from plexus.errors import DtypeError, RangeError, ShapeError, UnsupportedError
from plexus.units import Neurons, Site, fingerprint
from plexus.units._dispatch import running
from plexus.units._exact import why_not_exact
from plexus.units._paths import find_module, refuse_out_of_reach, walk
from plexus.units._rows import counted

__all__ = ["Removed", "outgoing", "remove"]


@dataclass(frozen=True)
class Removed:
    """What `remove` took out.

    Attributes:
        sizes: per site how many units it had and has.
        parameters: how many parameters the model had and has.
        config: what changed in the configuration: name → (old, new).
        kept: per site the indices, in the model before, of the units that are left.
    """

    sizes: Mapping[Site, tuple[int, int]]
    parameters: tuple[int, int]
    config: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)
    kept: Mapping[Site, Tensor] = field(default_factory=dict, repr=False, compare=False)

    def __repr__(self) -> str:
        gone = sum(before - after for before, after in self.sizes.values())
        before, after = self.parameters
        lines = [
            f"removed {counted(gone, 'unit')} at {counted(len(self.sizes), 'site')}: "
            f"{before:,} → {after:,} parameters ({(after - before) / before:+.1%})"
        ]
        lines += [f"  {site}: {had} → {has}" for site, (had, has) in list(self.sizes.items())[:12]]
        lines += [f"  … and {len(self.sizes) - 12} sites more"] if len(self.sizes) > 12 else []
        lines += [f"  config.{name}: {old} → {new}" for name, (old, new) in self.config.items()]
        return "\n".join(lines)


def remove(model: nn.Module, neurons: Neurons, *, anyway: bool = False) -> Removed:
    """Remove units for good, so that the smaller model does what the model does with these units silenced (set to 0).

    Knows chains of layers in any module that can be traced (linear layers and convolutions with activations, batch
    norms, pools, a flatten or a product of two branches between them, our layers of neurons), and the hidden units and
    heads of the usual families of Hugging Face models (`sites.mlp`, `sites.heads`): of a gated MLP gate, up and down go
    together, of grouped heads whole groups or as many query heads of each. There the configuration changes along, and
    `save_pretrained` then `from_pretrained` gives the same model. All is worked out before anything is changed.

    Batch norms count as in evaluation mode. Parameters become new ones, so make an optimiser afterwards. Sites count
    units anew in the smaller model; `Removed.kept` says which are left.

    Args:
        model: changed in place; `copy.deepcopy` it first to keep both.
        neurons: the units to remove.
        anyway: also if the set was made for a model of another fingerprint.

    Raises:
        UnsupportedError: not exactly possible, with the reason: a residual, a norm over units, shared or quantised
            weights, an adapter, widths that the architecture cannot hold.
        RangeError: there is nothing to remove, or nothing would be left.
        ShapeError: the set has another number of units than the site.

    Examples:
        >>> from plexus import edit
        >>> from plexus.units import sites
        >>> net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> (hidden,) = sites.mlp(net)
        >>> weak = Neurons.of({hidden: 8}, {hidden: [1, 4, 5]})
        >>> x = torch.rand(5, 3)
        >>> with edit.scale(net, weak, 0.0):
        ...     silenced = net(x)
        >>> edit.prune.remove(net, weak)
        removed 3 units at 1 site: 50 → 32 parameters (-36.0%)
          2 (input) [b ... u]: 8 → 5
        >>> torch.allclose(net(x), silenced, atol=1e-6), net[0]
        (True, Linear(in_features=3, out_features=5, bias=True))
    """
    _check(model, neurons, anyway)
    chosen = [site for site in neurons.sites if neurons.counts[site]]
    named, cuts = dict(walk(model)), Cuts()
    widths: dict[str, dict[Site, tuple[int, ...]]] = {}
    keeps: dict[Site, Tensor] = {}
    for site in chosen:
        keep = ~neurons.mask(site)
        if not bool(keep.any()):
            raise RangeError(f"no unit would be left at site {site}", mend="keep at least one, or remove the layer")
        if site.call is not None or site.leaf not in (None, 0) or site.part is not None:
            raise refusal(
                site, "it is one call, one tensor or one part of several", "name the layer that reads the units"
            )
        find_module(model, site.path)
        around = holder(named, site.path)
        if around is not None:
            _cut_in_family(cuts, named, site, keep, widths.setdefault(around, {}))
        else:
            _cut_chain(cuts, named, site, keep)
        keeps[site] = keep
    changed: dict[str, tuple[Any, Any]] = {}
    for around, left in widths.items():
        changed |= fit(named[around], f"{around}." if around else "", cuts, _one_width(left), left)
    _check_own(model, named, cuts, chosen[0])
    before = sum(p.numel() for p in model.parameters())
    cuts.apply(named.__getitem__)
    after = sum(p.numel() for p in model.parameters())
    sizes = {site: (len(keep), int(keep.sum())) for site, keep in keeps.items()}
    return Removed(sizes, (before, after), changed, {site: keep.nonzero().squeeze(1) for site, keep in keeps.items()})


def _check(model: nn.Module, neurons: Neurons, anyway: bool) -> None:
    if not isinstance(model, nn.Module):
        raise DtypeError("units are removed from a torch module", given=type(model).__name__)
    if not isinstance(neurons, Neurons):
        raise DtypeError("removing needs a set of units", given=type(neurons).__name__, expected="Neurons")
    if not len(neurons):
        raise RangeError("there are no units to remove", given=repr(neurons))
    if neurons.model is not None and not anyway and fingerprint(model) != neurons.model:
        raise UnsupportedError(
            "the set was made for another model",
            given=fingerprint(model),
            expected=neurons.model,
            mend="remove(model, neurons, anyway=True) if the sites mean the same there",
        )
    refuse_out_of_reach(model)
    members = set(model.modules())
    if any(members & set(engine.model.modules()) for engine in running):
        raise UnsupportedError("the model has edits or recorders attached", mend="leave their `with` first")


def _cut_in_family(
    cuts: Cuts, named: Mapping[str, nn.Module], site: Site, keep: Tensor, left: dict[Site, tuple[int, ...]]
) -> None:
    if site.at != "input":
        raise refusal(
            site,
            "in a transformer hidden units and heads are named where they are read",
            "the input of the down- or output projection: sites.mlp(model), sites.heads(model)",
        )
    if site.has_features:
        heads = cut_heads(cuts, named, site, keep)
        if heads is None:
            raise refusal(site, "no attention of a known build reads there")
        left[site] = heads
    elif cut_hidden(cuts, named, site, keep):
        left[site] = (int(keep.sum()),)
    else:
        raise refusal(site, "no MLP of a known build reads there")


def _one_width(left: Mapping[Site, tuple[int, ...]]) -> Widths:
    """The one width that a configuration can hold."""
    hidden = {site: width[0] for site, width in left.items() if len(width) == 1}
    heads = {site: width for site, width in left.items() if len(width) == 3}
    for what, found in (("hidden units", hidden), ("heads (query, key)", heads)):
        if len(set(found.values())) > 1:
            raise UnsupportedError(
                f"the configuration holds one number of {what} for all layers",
                given=", ".join(f"{site.path}: {width}" for site, width in list(found.items())[:4]),
                mend="as many of every layer: prune.equal_width(scores, k), prune.whole_groups(scores, k, groups)",
            )
    width = next(iter(heads.values()), (None, None, None))
    return Widths(next(iter(hidden.values()), None), *width)


def _cut_chain(cuts: Cuts, named: Mapping[str, nn.Module], site: Site, keep: Tensor) -> None:
    """Note the removal of units of a chain of layers."""
    if site.has_features:
        raise refusal(site, "heads are removed from Hugging Face models only")
    if _torch_transformer(named, site, keep, cuts):
        return
    chain = _chain(named, site)
    block, rest = divmod(len(keep), chain.units)
    if rest:
        raise ShapeError(
            f"the set does not fit site {site}", given=f"{len(keep)} units", expected=f"{chain.units} units"
        )
    if bool((keep.reshape(-1, block) != keep.reshape(-1, block)[:, :1]).any()):
        raise refusal(site, f"{block} numbers belong to each channel", "remove all numbers of a channel together")
    units = keep.reshape(-1, block)[:, 0]
    for path, producer in chain.producers.items():
        check_plain(site, path, producer)
        cuts.outputs(site, path, producer, units)
    for path, carrier in chain.carriers.items():
        _cut_carrier(cuts, site, path, carrier, units)
    for path, width in chain.consumers.items():
        consumer = named[path]
        check_plain(site, path, consumer)
        _shift(cuts, site, path, consumer, units, chain.arrives[path], width)
        cuts.inputs(site, path, consumer, units.repeat_interleave(width))


def _chain(named: Mapping[str, nn.Module], site: Site) -> Chain:
    """The chain in the smallest module around the site that holds all of it."""
    parts = site.path.split(".") if site.path else []
    outside: Outside | None = None
    for depth in reversed(range(len(parts))):
        scope = ".".join(parts[:depth])
        if isinstance(named[scope], nn.ModuleList | nn.ModuleDict):
            continue
        try:
            return follow(named[scope], scope, site)
        except Outside as error:
            outside = error
    reason = "it is the whole model" if outside is None else outside.what
    raise refusal(site, reason) from outside


def _torch_transformer(named: Mapping[str, nn.Module], site: Site, keep: Tensor, cuts: Cuts) -> bool:
    """Torch's own transformer layers run as one fused call, so their MLP is known by name."""
    parent = named[site.path.rpartition(".")[0]] if site.path else None
    if not isinstance(parent, nn.TransformerEncoderLayer | nn.TransformerDecoderLayer):
        return False
    if site.at != "input" or not site.path.endswith("linear2"):
        raise refusal(site, "its units are named where they are read", "the input of linear2: sites.mlp(model)")
    return cut_hidden(cuts, named, site, keep)


def _cut_carrier(cuts: Cuts, site: Site, path: str, module: nn.Module, keep: Tensor) -> None:
    """Numbers per unit of a batch norm, a PReLU or a layer of neurons."""
    tensors: Any = (*module._parameters.items(), *module._buffers.items())
    for name, tensor in tensors:
        if tensor is not None and tensor.dim() == 1 and len(tensor) == len(keep) and len(keep) > 1:
            cuts.add(site, path, name, 0, keep)
    left = int(keep.sum())
    for name in ("num_features", "num_parameters"):
        if hasattr(module, name):
            cuts.attributes[path, name] = left
    for name in ("units", "sizes"):
        if isinstance(getattr(module, name, None), tuple):
            cuts.attributes[path, name] = (left,)


def _shift(cuts: Cuts, site: Site, path: str, module: nn.Module, keep: Tensor, constant: Tensor, width: int) -> None:
    """What constant units add to a layer goes into its bias."""
    gone = torch.where(keep, torch.zeros_like(constant), constant).repeat_interleave(width)
    if not bool(gone.any()):
        return
    parameter: Any = module.weight
    weight = parameter.detach().double().cpu()
    if layer_kind(module) == "conv":
        padding: Any = module.padding
        if padding == "same" or (padding != "valid" and any(padding)):
            raise refusal(site, f"a silenced unit is a constant, which does not reach into the padding of {path}")
        weight = weight.flatten(2).sum(2)
    elif layer_kind(module) == "transposed":
        weight = weight.T
    shift = weight @ gone
    if getattr(module, "bias", None) is None:
        raise refusal(site, f"a silenced unit is a constant, and {path} has no bias to hold it")
    cuts.shifts[path] = cuts.shifts[path] + shift if path in cuts.shifts else shift


def _check_own(model: nn.Module, named: Mapping[str, nn.Module], cuts: Cuts, site: Site) -> None:
    """Each parameter that changes belongs to one module alone."""
    for path, name in cuts.touched():
        if named[path]._parameters.get(name) is not None:
            reason = why_not_exact(named[path], name, model=model)
            if reason is not None:
                raise refusal(site, f"of {path}: {reason}")


def outgoing(model: nn.Module, site: Site, units: int) -> Tensor | None:
    """The norm of the weights that read each unit of a site, `[unit]`, over all layers that do; None if not found."""
    named = dict(walk(model))
    module = named[site.path]
    readers = {site.path: 1}
    if site.at != "input" or layer_kind(module) is None:
        try:
            if holder(named, site.path) is not None or site.has_features:
                return None
            readers = _chain(named, site).consumers
        except UnsupportedError:
            return None
    total = torch.zeros(units, dtype=torch.float64)
    for path, width in readers.items():
        weight: Any = named[path].weight
        square = weight.detach().double().cpu().square()
        square = square.sum(1) if layer_kind(named[path]) == "transposed" else square.transpose(0, 1).flatten(1).sum(1)
        if len(square) == units * width:
            total += square.reshape(units, width).sum(1)
        elif len(square) % units == 0:  # heads
            total += square.reshape(units, -1).sum(1)
        else:
            return None
    return total.sqrt()
