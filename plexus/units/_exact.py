"""Weights that can be changed exactly, and the reasons why some cannot.

Reading and steering act on values and work on any module. An edit of the weights themselves needs the numbers that the
module computes with, as one floating-point parameter of its own: 4- and 8-bit weights are rounded to a grid that the
edit would leave, offloaded weights are not here, an adapter's weights are a sum of two parts, fused experts share one
tensor, and a tied weight would change in two places.
"""

from __future__ import annotations

from torch import nn

from plexus.errors import DtypeError, UnsupportedError
from plexus.units._paths import walk

__all__ = ["exact_weights", "fused_experts", "why_not_exact"]

# what quantising libraries call the tensors and attributes that stand in for a weight
_PACKED = ("qweight", "weight_packed", "W_q", "qzeros", "quant_state")


def exact_weights(
    module: nn.Module,
    name: str = "weight",
    *,
    model: nn.Module | None = None,
    purpose: str = "an edit of weights",
) -> nn.Parameter:
    """The parameter `name` of a module, if an edit may write into it and mean exactly what it says.

    Args:
        module: the layer whose parameter it is.
        name: its name in the module.
        model: the model around it; with it, tied weights (one parameter in two places) are refused too.
        purpose: what the caller is about to do, for the message.

    Raises:
        UnsupportedError: the weights are quantised, offloaded, adapted, fused, computed from others, tied or absent.

    Examples:
        >>> layer = nn.Linear(3, 2)
        >>> exact_weights(layer) is layer.weight
        True
        >>> tied = nn.Sequential(layer, nn.ReLU(), layer)
        >>> exact_weights(layer, model=tied)
        Traceback (most recent call last):
            ...
        plexus.errors.UnsupportedError: an edit of weights is not exact on this Linear: its weight is used in several...
          to mend: keep it as an edit of values: plexus.edit's verbs act on any module
    """
    if not isinstance(module, nn.Module):
        raise DtypeError("weights belong to a torch module", given=type(module).__name__, expected="torch.nn.Module")
    reason = why_not_exact(module, name, model=model)
    if reason is not None:
        raise UnsupportedError(
            f"{purpose} is not exact on this {type(module).__name__}: {reason}",
            mend="keep it as an edit of values: plexus.edit's verbs act on any module",
        )
    return module._parameters[name]  # type: ignore[return-value]


def why_not_exact(module: nn.Module, name: str = "weight", *, model: nn.Module | None = None) -> str | None:
    """Why an edit of a parameter would not be exact, in words; None if it is."""
    if _adapted(module):
        return "it has an adapter; merge that first (PEFT: merge_and_unload)"
    packed = [other for other in _PACKED if hasattr(module, other)]
    parameter = module._parameters.get(name)
    if parameter is None:
        if packed:
            return f"its weights are quantised ({packed[0]})"
        if getattr(module, name, None) is not None:
            return f"its {name} is computed from other parameters"
        return f"it has no {name}"
    if nn.parameter.is_lazy(parameter):
        return f"its {name} has no shape yet"
    kind = type(parameter)
    if packed or kind.__module__.startswith(("bitsandbytes", "torchao", "hqq", "quanto", "optimum")):
        return f"its {name} is quantised ({kind.__name__}, {_dtype(parameter)})"
    if not parameter.is_floating_point() or parameter.element_size() < 2:
        return f"its {name} is stored as {_dtype(parameter)}"
    if parameter.is_meta:
        return f"its {name} is offloaded and not in memory; load the model without offloading"
    if fused_experts(module) and parameter.dim() == 3:
        return f"its {name} holds all experts in one tensor"
    if model is not None:
        places = [
            f"{path}.{key}" if path else key
            for path, part in walk(model)
            for key, value in part._parameters.items()
            if value is parameter
        ]
        if len(places) > 1:
            return f"its {name} is used in several places ({', '.join(places)})"
    return None


def fused_experts(module: nn.Module) -> bool:
    """Whether a module holds the weights of all experts of a mixture as one tensor each, `[expert, out, in]`.

    Examples:
        >>> fused_experts(nn.Linear(3, 2))
        False
    """
    thick = [value for value in module._parameters.values() if value is not None and value.dim() == 3]
    if isinstance(module, nn.modules.conv._ConvNd) or not thick:
        return False
    counts = {int(value.shape[0]) for value in thick}
    named = "expert" in type(module).__name__.lower()
    stated = getattr(module, "num_experts", None)
    return len(counts) == 1 and (named or stated in counts)


def _adapted(module: nn.Module) -> bool:
    return isinstance(module._modules.get("base_layer"), nn.Module) or any(
        key.startswith("lora_") for key in (*module._modules, *module._parameters)
    )


def _dtype(parameter: nn.Parameter) -> str:
    return str(parameter.dtype).removeprefix("torch.")
