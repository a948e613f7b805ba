"""Following units through a traced module: who makes them, what carries them, who reads them.

From the site the units are followed back through what keeps them apart (activations, batch norms, pools after a
convolution, a product of two branches) to the layers that make them, and forward to the layers that read them. What
mixes units, adds a residual or hands them out of the model ends the search with the reason.
"""

from __future__ import annotations

import operator
import re
from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from plexus.edit.prune._cuts import check_plain, layer_kind, refusal, width_in, width_out
from plexus.errors import UnsupportedError
from plexus.nn import Sequential, Stateful
from plexus.nn.neurons._layer import NeuronLayer
from plexus.units import Site

__all__ = ["Chain", "Outside", "follow"]

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_POOLS = tuple(
    getattr(nn, f"{kind}Pool{n}d") for kind in ("Max", "Avg", "AdaptiveMax", "AdaptiveAvg", "LP") for n in (1, 2, 3)
)
_SPACE = (*_POOLS, nn.Upsample, nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d, nn.ReflectionPad2d, nn.ReplicationPad2d)
_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout, nn.Identity)
_MIXING = (nn.MultiheadAttention, nn.GLU, nn.Softmax, nn.Softmax2d, nn.LogSoftmax, nn.Softmin, nn.PReLU)
_ELEMENTWISE = frozenset(
    (
        *("relu", "relu_", "relu6", "gelu", "silu", "mish", "elu", "elu_", "selu", "celu", "leaky_relu", "leaky_relu_"),
        *("hardtanh", "hardswish", "hardsigmoid", "sigmoid", "logsigmoid", "tanh", "softplus", "softsign"),
        *("tanhshrink", "square", "abs", "exp", "sqrt", "neg", "clamp", "clamp_min", "clamp_max"),
        *("contiguous", "clone", "float", "double", "to", "type_as"),
    )
)
_RANDOM = frozenset(("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout"))
_ARITHMETIC = (operator.add, operator.sub, operator.mul, operator.truediv, operator.pow, torch.add, torch.mul)
_AS_IS = ("to", "type_as", "float", "double", "contiguous", "clone")
_SHAPE_ONLY = {"size", "dim", "numel"}


class Outside(UnsupportedError):
    """The units come from or go to beyond the module that was traced; a larger one may show where."""


@dataclass
class Chain:
    """The layers that share a set of units, by their names in the model.

    Attributes:
        producers: layers that make the units.
        carriers: modules between with numbers of their own per unit.
        consumers: layers that read them → how many numbers of each unit they read (more than 1 after a flatten).
        arrives: consumer → what it reads of a unit that is 0 at the site, `[unit]`.
    """

    units: int = 0
    producers: dict[str, nn.Module] = field(default_factory=dict)
    carriers: dict[str, nn.Module] = field(default_factory=dict)
    consumers: dict[str, int] = field(default_factory=dict)
    arrives: dict[str, Tensor] = field(default_factory=dict)


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return super().is_leaf_module(m, module_qualified_name) or isinstance(m, Stateful)


def follow(scope: nn.Module, prefix: str, site: Site) -> Chain:
    """The chain of the units at a site, as seen inside `scope`, whose name in the model is `prefix`.

    Raises:
        Outside: the units come from or go to beyond the scope, or it cannot be traced.
        UnsupportedError: something between mixes units or has no exact removal.
    """
    if type(scope) is Sequential:  # its layers in a row; those with a state hand it past the others
        scope = nn.Sequential(OrderedDict(scope._modules))
    try:
        graph = _Tracer().trace(scope)
    except Exception as error:  # whatever the model's own code raises when it meets a symbolic value
        raise Outside(
            f"the forward pass cannot be followed: {type(error).__name__}: {error}".splitlines()[0]
        ) from error
    return _Walk(graph, dict(scope.named_modules()), prefix, site).run()


class _Walk:
    def __init__(self, graph: fx.Graph, modules: Mapping[str, nn.Module], prefix: str, site: Site) -> None:
        self.graph, self.modules, self.prefix, self.site = graph, modules, prefix, site
        self.calls = Counter(str(node.target) for node in graph.nodes if node.op == "call_module")
        self.chain = Chain()
        self.made: set[fx.Node] = set()  # on the way from the layers that make the units to the site, or to a product

    def run(self) -> Chain:
        start = self._start()
        self._back(start)
        reached = self._ahead(start)
        for node in self.made - {start}:
            stray = [user for user in self._users(node) if user not in self.made and user not in reached]
            if stray or any(self._is_layer(user) for user in self._users(node)):
                raise self._no(f"the values of {node.name} also go another way")
        for node in self.made | reached:
            self._over_places(node)
        if not self.chain.consumers:
            raise self._no("no layer reads them")
        direct = {str(node.target).rpartition(".")[0] for node in self.graph.nodes if node.op == "get_attr"}
        used = [n for n in self._inner(self.chain) if n in direct]
        if used:
            raise self._no(f"the weights of {used[0]} are also used directly")
        return self.chain

    def _inner(self, chain: Chain) -> Iterator[str]:
        cut = len(self.prefix) + 1 if self.prefix else 0
        for path in (*chain.producers, *chain.carriers, *chain.consumers):
            yield path[cut:]

    def _start(self) -> fx.Node:
        own = self.site.path[len(self.prefix) :].lstrip(".")
        nodes: list[fx.Node] = [
            node for node in self.graph.nodes if node.op == "call_module" and str(node.target) == own
        ]
        if not nodes:
            raise Outside(f"the traced pass never calls {self.site.path!r}")
        if len(nodes) > 1:
            raise self._no("the module is called more than once")
        if self.site.at == "output":
            return nodes[0]
        source = nodes[0].args[0] if nodes[0].args else None
        if not isinstance(source, fx.Node):
            raise self._no("the module takes no input by position")
        only: fx.Node = source
        if len(self._users(only)) > 1:
            raise self._no(
                "other modules read the same values, and would lose them too",
                f"name the place before: {source.name}",
            )
        return only

    def _back(self, node: fx.Node) -> None:
        """From values to the layers that make them."""
        if node in self.made:
            return
        self.made.add(node)
        if node.op in ("placeholder", "get_attr"):
            raise Outside("they are an input of the model")
        module = self._module(node)
        if module is not None and layer_kind(module) is not None:
            self._once(node)
            self._ungrouped(node, module)
            if self.chain.units not in (0, width_out(module)):
                raise self._no(f"the branches have unequal widths ({self.chain.units} and {width_out(module)})")
            self.chain.units = width_out(module)
            self.chain.producers[self._path(node)] = module
            return
        for source in self._carried(node):
            self._back(source)

    def _ahead(self, start: fx.Node) -> set[fx.Node]:
        """From values to the layers that read them, with what a silenced unit becomes on the way."""
        constants = {start: torch.zeros(self.chain.units, dtype=torch.float64)}
        flat = {start: self._flat(start)}
        for node in self.graph.nodes:  # in the order of the pass
            sources = [source for source in node.all_input_nodes if source in constants]
            if not sources or node in constants or self._shape_only(node):
                continue
            if node.op == "output":
                raise Outside("they are an output of the model")
            module = self._module(node)
            if module is not None and layer_kind(module) is not None:
                self._once(node)
                self._ungrouped(node, module)
                self._read(self._path(node), module, constants[sources[0]], flat[sources[0]])
                continue
            for other in self._carried(node):
                if other not in constants:
                    self._back(other)
            constants[node] = self._through(node, constants)
            flat[node] = flat[sources[0]] or self._flattens(node)
        return set(constants)

    def _read(self, path: str, module: nn.Module, constant: Tensor, flat: bool) -> None:
        width, units = width_in(module), self.chain.units
        channels = any(layer_kind(producer) == "conv" for producer in self.chain.producers.values())
        if width % units or (width != units and not (flat and channels)):
            raise self._no(f"{path} reads {width} numbers of {units} units, and how is not clear")
        if channels and not flat and layer_kind(module) != "conv":
            raise self._no(f"{path} reads channels of an image as features")
        self.chain.consumers[path] = width // units
        self.chain.arrives[path] = constant

    def _carried(self, node: fx.Node) -> list[fx.Node]:
        """The inputs whose units the values of a node keep, one each; raises where a node mixes units."""
        module = self._module(node)
        given = [argument for argument in (*node.args, *node.kwargs.values()) if isinstance(argument, fx.Node)]
        if module is not None:
            self._module_keeps(node, module)
            return given[:1]
        name = self._name(node)
        if node.target in _ARITHMETIC or name in ("add", "mul", "sub", "div", "pow", "iadd", "imul"):
            if len(given) == 1:
                if node.args and node.args[0] is not given[0] and name in ("truediv", "div", "pow"):
                    raise self._no(f"{node.name} divides by them or raises to their power")
                return given
            if name in ("mul", "imul"):
                return given
            raise self._no(f"they are added to other values ({node.name}: a residual or a sum of branches)")
        if name == "getitem" and self._is_state(given[0]):
            if node.args[1] != 0:
                raise self._no("the state of a layer is used")
            return given[:1]
        shape = [argument for argument in given[1:] if not self._shape_only(argument)]
        if (name in _ELEMENTWISE or name in _RANDOM or self._flattens(node) or self._pools(name)) and not shape:
            return given[:1]
        raise self._no(f"{name} ({node.name}) may mix units or is not known")

    def _module_keeps(self, node: fx.Node, module: nn.Module) -> None:
        kind = type(module)
        if isinstance(module, nn.Linear | nn.modules.conv._ConvNd):  # of another build: quantised, parametrised, …
            check_plain(self.site, self._path(node), module)
        numbers = isinstance(module, (*_BATCH_NORMS, NeuronLayer)) or (
            isinstance(module, nn.PReLU) and module.num_parameters > 1
        )
        if isinstance(module, NeuronLayer):
            odd = [n for n, t in _tensors(module) if t.numel() != 1 and tuple(t.shape) != module.units]
            if odd or len(module.units) != 1:
                raise self._no(f"{kind.__name__} holds {', '.join(odd) or 'units of several dimensions'}")
        if numbers:
            self._once(node)
            self.chain.carriers[self._path(node)] = module
            return
        activation = kind.__module__ in ("torch.nn.modules.activation", "transformers.activations")
        plain = activation and not isinstance(module, _MIXING)
        if plain or isinstance(module, (*_DROPOUTS, *_SPACE, nn.PReLU)) or self._flattens(node):
            return
        raise self._no(f"a {kind.__name__} ({node.target}) mixes units or is not known")

    def _through(self, node: fx.Node, constants: Mapping[fx.Node, Tensor]) -> Tensor:
        """What the value of a silenced unit becomes on its way through one node."""
        module, name = self._module(node), self._name(node)
        carried = self._carried(node)
        constant = next(constants[source] for source in carried if source in constants)
        zero = not bool(constant.any())
        if isinstance(module, NeuronLayer):
            raise self._no(
                f"{node.target} goes on firing without input, so silencing is not removing there",
                f"name what the neurons put out: Site({self._path(node)!r}, 't b u')",
            )
        if isinstance(module, _BATCH_NORMS):
            return _normed(module, constant)
        if isinstance(module, nn.PReLU):
            return torch.where(constant < 0, constant * module.weight.detach().double().cpu(), constant)
        if isinstance(module, _DROPOUTS) or self._flattens(node) or name in ("getitem", *_RANDOM, *_AS_IS):
            return constant
        if isinstance(module, _SPACE) or (module is None and self._pools(name)):
            if not zero and not (isinstance(module, _POOLS) and not getattr(module, "padding", 0)):
                raise self._no(f"a constant does not pass {node.name} unchanged")
            return constant
        if any(source not in constants for source in carried):  # a product with values that are not constant
            if not zero:
                raise self._no(f"{node.name} multiplies a constant by values of another branch")
            return constant
        with torch.no_grad():
            if module is not None:
                out: Tensor = module(constant)  # an activation, element by element
                return out
            args = fx.node.map_arg(node.args, lambda source: constants[source])
            kwargs = fx.node.map_arg(node.kwargs, lambda source: constants[source])
            if node.op == "call_method":
                out = getattr(args[0], name)(*args[1:], **kwargs)
            else:
                out = node.target(*args, **kwargs)  # type: ignore[operator]
            return out

    def _is_layer(self, node: fx.Node) -> bool:
        module = self._module(node)
        return module is not None and layer_kind(module) is not None

    def _flat(self, node: fx.Node) -> bool:
        """Whether the values at a node have been flattened on their way from the layers that made them."""
        if self._flattens(node):
            return True
        module = self._module(node)
        if module is not None and layer_kind(module) is not None:
            return False
        return any(self._flat(source) for source in self._carried(node))

    def _over_places(self, node: fx.Node) -> None:
        """Raise where a pool, a padding or a mean runs over units, as it does where no convolution made places."""
        module, name = self._module(node), self._name(node)
        if isinstance(module, _SPACE) or (module is None and self._pools(name)):
            kind = name if module is None else type(module).__name__
            wanted = int((re.findall(r"(\d)d", kind) or [1])[-1])
        elif module is None and name == "mean":
            kind, wanted = name, 2
        else:
            return
        have = min(self._places(source) for source in self._carried(node))
        if have < wanted or (name == "mean" and have != wanted):
            what = f"convolutions left {have} of them" if have else "no convolution made them"
            raise self._no(f"{node.name} ({kind}) runs over units: it takes {wanted}-d places, and {what}")

    def _places(self, node: fx.Node) -> int:
        """How many dimensions of place the values of a node have behind the units: those of the convolutions."""
        module = self._module(node)
        if module is not None and layer_kind(module) is not None:
            weight: Any = module.weight
            return weight.dim() - 2 if layer_kind(module) == "conv" else 0
        return 0 if self._flattens(node) else min(self._places(source) for source in self._carried(node))

    def _flattens(self, node: fx.Node) -> bool:
        """From channels to features: `[b, u, …]` to `[b, u·…]`."""
        module, args = self._module(node), node.args
        if isinstance(module, nn.Flatten):
            return (module.start_dim, module.end_dim) == (1, -1)
        if module is not None:
            return False
        name = self._name(node)
        if name == "flatten":
            rest = [*args[1:], *node.kwargs.values()]
            return rest == [1] or rest == [1, -1]
        if name in ("view", "reshape"):
            return len(args) == 3 and bool(args[2] == -1 and args[1] != -1)
        if name == "mean":
            dims: Any = args[1] if len(args) > 1 else node.kwargs.get("dim")
            kept = bool(node.kwargs.get("keepdim", len(args) > 2 and args[2]))
            return bool(not kept and isinstance(dims, list | tuple) and sorted(d % 4 for d in dims) == [2, 3])
        return False

    @staticmethod
    def _name(node: fx.Node) -> str:
        return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))

    @staticmethod
    def _pools(name: str) -> bool:
        return "pool" in name and name.startswith(("max", "avg", "adaptive", "lp", "boolean"))

    def _is_state(self, node: fx.Node) -> bool:
        return isinstance(self._module(node), NeuronLayer)

    def _users(self, node: fx.Node) -> list[fx.Node]:
        return [user for user in node.users if not self._shape_only(user)]

    def _shape_only(self, node: fx.Node) -> bool:
        """Whether a node asks for a shape and not for values, or is made of such answers."""
        name = self._name(node)
        if name in _SHAPE_ONLY:
            return True
        if name == "getattr":
            return node.args[1] in ("shape", "dtype", "device", "ndim")
        inputs = node.all_input_nodes
        return name == "getitem" and bool(inputs) and all(self._shape_only(source) for source in inputs)

    def _module(self, node: fx.Node) -> nn.Module | None:
        return self.modules[str(node.target)] if node.op == "call_module" else None

    def _path(self, node: fx.Node) -> str:
        return f"{self.prefix}.{node.target}" if self.prefix else str(node.target)

    def _once(self, node: fx.Node) -> None:
        if self.calls[str(node.target)] > 1:
            raise self._no(f"{node.target} is called more than once")

    def _ungrouped(self, node: fx.Node, module: nn.Module) -> None:
        if getattr(module, "groups", 1) != 1:
            raise self._no(f"{node.target} is a convolution in groups")

    def _no(self, reason: str, mend: str | None = None) -> UnsupportedError:
        return refusal(self.site, reason, mend)


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters()
    yield from module.named_buffers()


def _normed(module: nn.Module, constant: Tensor) -> Tensor:
    """A constant after a batch norm in evaluation mode."""
    norm: Any = module
    out = constant
    if norm.running_mean is not None:
        out = (out - norm.running_mean.double().cpu()) / (norm.running_var.double().cpu() + norm.eps).sqrt()
    elif bool(constant.any()) or norm.affine:
        raise UnsupportedError("a batch norm without running statistics has no constant for a silenced unit")
    if norm.affine:
        out = out * norm.weight.detach().double().cpu() + norm.bias.detach().double().cpu()
    return out
