"""What the dimensions of a module's tensors mean, when nobody says so.

Our own modules declare `axes`. Torch's layers are known by type. What has no axes of its own — an activation, a
dropout, a container — takes them from its surroundings: inside a `Sequential` from the layer before it, else from the
layers of the nearest enclosing module, provided these agree. What stays ambiguous is an error that asks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import nn

from plexus.errors import SiteError
from plexus.units._exact import fused_experts
from plexus.units._routing import ROUTED, expert_around

__all__ = ["default_axes", "known_axes"]

_LAST, _TIME_FIRST = "b ... u", "t b ... u"
_IMAGE = {1: "b u x", 2: "b u y x", 3: "b u z y x"}
_BY_DIMENSION = (
    "Conv{}d",
    "ConvTranspose{}d",
    "MaxPool{}d",
    "AvgPool{}d",
    "AdaptiveAvgPool{}d",
    "AdaptiveMaxPool{}d",
    "LPPool{}d",
    "FractionalMaxPool{}d",
    "InstanceNorm{}d",
    "Dropout{}d",
    "ZeroPad{}d",
    "ReflectionPad{}d",
    "ReplicationPad{}d",
    "ConstantPad{}d",
)
_SPATIAL: dict[type[nn.Module], str] = {
    getattr(nn, name.format(n)): axes
    for name in _BY_DIMENSION
    for n, axes in _IMAGE.items()
    if hasattr(nn, name.format(n))
}
_SPATIAL |= {
    nn.BatchNorm1d: "b u ...",
    nn.BatchNorm2d: _IMAGE[2],
    nn.BatchNorm3d: _IMAGE[3],
    nn.GroupNorm: "b u ...",
    nn.SyncBatchNorm: "b u ...",
    nn.Upsample: "b u ...",
    nn.PixelShuffle: _IMAGE[2],
}
_CHANNEL_LAST = (nn.Linear, nn.Bilinear, nn.LayerNorm, nn.RMSNorm, nn.Embedding, nn.EmbeddingBag)
_ELEMENTWISE = (nn.Identity, nn.Dropout, nn.AlphaDropout)


def default_axes(named: Mapping[str, nn.Module], path: str, at: str = "output") -> str:
    """The axes of what the module at `path` puts out or takes in; `named` holds the modules of the model by name.

    Raises:
        SiteError: they cannot be told.

    Examples:
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4, 2))
        >>> [default_axes(dict(net.named_modules()), name) for name in ("1", "2", "3")]
        ['b u y x', 'b u', 'b ... u']
    """
    module, chain = named[path], _ancestors(named, path)
    own = known_axes(module)
    if own in (None, _LAST) and (expert_around(named, path) is not None or fused_experts(module)):
        return ROUTED
    if own is not None:
        return _time_first(own, chain)
    if at == "output" and _flattens(module):
        return "b u"
    if chain:
        before = _before(chain[-1], path.rpartition(".")[2])
        if before is not None:
            return _time_first(before, chain)
    for scope in (module, *reversed(chain)):
        found = set(_inside(scope))
        if len(found) == 1:
            return _time_first(found.pop(), chain)
        if found:
            raise SiteError(
                f"the axes of {path or 'the model'!r} cannot be told",
                given=f"a {type(module).__name__} among layers of axes {', '.join(repr(a) for a in sorted(found))}",
                mend="say what its dimensions mean, e.g. axes='b u y x' for channels or 'b ... u' for features",
            )
    return _LAST


def known_axes(module: nn.Module) -> str | None:
    """The axes that the module declares or its type has; None if it has none of its own."""
    declared = getattr(module, "axes", None)
    if isinstance(declared, str):
        return declared
    if isinstance(module, nn.RNNBase | nn.MultiheadAttention):
        return "b t u" if module.batch_first else "t b u"
    if isinstance(module, nn.RNNCellBase):
        return "b u"
    if isinstance(module, nn.TransformerEncoderLayer | nn.TransformerDecoderLayer):
        return known_axes(module.self_attn)
    if isinstance(module, nn.TransformerEncoder | nn.TransformerDecoder):
        return known_axes(module.layers[0])
    if isinstance(module, nn.Transformer):
        return "b t u" if module.batch_first else "t b u"
    for kind in type(module).__mro__:
        if kind in _SPATIAL:
            return _SPATIAL[kind]
    if isinstance(module, _CHANNEL_LAST) or _is_transposed_linear(module):
        return _LAST
    return None


def _is_transposed_linear(module: nn.Module) -> bool:
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf")


def _time_first(axes: str, chain: list[nn.Module]) -> str:
    """Position-wise layers see time first inside a time-first module; beside one, they may see either.

    There they get the axes of two dimensions, which have one meaning; a tensor of three then is an error that asks.
    """
    if axes != _LAST:
        return axes
    for scope in reversed(chain):
        outer = known_axes(scope)
        if outer is not None:
            return _TIME_FIRST if outer.startswith("t b") else axes
        if _folds_time(scope):
            return axes
    beside = chain[0].modules() if chain else ()
    return "b u" if any((known_axes(module) or "").startswith("t b") for module in beside) else axes


def _folds_time(module: nn.Module) -> bool:
    """Whether the module runs its stateless layers with time folded into the batch, and publishes the fold."""
    return isinstance(module, nn.Sequential) and hasattr(module, "initial_state")


def _before(parent: nn.Module, name: str) -> str | None:
    """The axes of the nearest layer before `name` in a Sequential whose layers in between keep the dimensions."""
    if not isinstance(parent, nn.Sequential):
        return None
    names = list(parent._modules)
    for earlier in reversed(names[: names.index(name)]):
        module = parent._modules[earlier]
        if module is None:
            continue
        if isinstance(module, nn.Flatten):
            return "b u" if _flattens(module) else None
        axes = known_axes(module)
        if axes is not None:
            return axes.removeprefix("t ") if _folds_time(parent) else axes
        if not _keeps(module):
            return None
    return None


def _flattens(module: nn.Module) -> bool:
    return isinstance(module, nn.Flatten) and (module.start_dim, module.end_dim) == (1, -1)


def _keeps(module: nn.Module) -> bool:
    activation = type(module).__module__ == "torch.nn.modules.activation"
    return isinstance(module, _ELEMENTWISE) or (activation and not isinstance(module, nn.MultiheadAttention))


def _inside(scope: nn.Module) -> Iterator[str]:
    """The layouts of the layers in a module: what stands beside channels (norms, pools) follows the convolutions."""
    for module in scope.modules():
        axes = known_axes(module) if module is not scope else None
        if axes is not None:
            yield _LAST if axes in (_TIME_FIRST, "b t u", "b u") else axes


def _ancestors(named: Mapping[str, nn.Module], path: str) -> list[nn.Module]:
    """The modules above the one at `path`, the model first."""
    names = path.split(".") if path else []
    return [named[".".join(names[:depth])] for depth in range(len(names))]
