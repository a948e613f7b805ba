"""From what was measured to what to do about it, in words."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from plexus.probe._health import LayerHealth

_VANISHED = 1e-3  # of the largest gradient of any layer
_EXPLODED = 1e3
_FAST = 0.5  # spikes per step
_SOME = 0.1  # share of units that is worth a word


def advise(layers: Sequence[LayerHealth], loss: float | None) -> list[str]:
    """What to say about the layers, the most serious first."""
    return [
        *_not_finite(layers, loss),
        *(text for layer in layers for text in _silent(layer)),
        *(text for layer in layers for text in _saturated(layer)),
        *_gradients(layers),
        *(text for layer in layers for text in _over_time(layer)),
    ]


def _not_finite(layers: Sequence[LayerHealth], loss: float | None) -> Iterator[str]:
    broken = next((layer for layer in layers if not layer.finite), None)
    if broken is not None:
        yield (
            f"layer {broken.name} puts out NaN or infinity, and it is the first that does: "
            "look at its weights and its input, and lower the learning rate"
        )
    elif loss is not None and not math.isfinite(loss):
        yield "the loss is not finite, though every layer is: look at the loss itself"


def _silent(layer: LayerHealth) -> Iterator[str]:
    silent = int(layer.silent.sum())
    if layer.kind == "spiking":
        if silent == layer.units:
            yield f"layer {layer.name} is silent: {_why_silent(layer)}"
        elif silent > _SOME * layer.units:
            yield (
                f"layer {layer.name}: {silent} of {layer.units} units never spike on this batch"
                + ("" if layer.drive is None else f" (its mean input is {layer.drive:.2g} of the threshold)")
                + ("; raise the biases into it" if (layer.drive or 1) <= 0 else "; scale the weights into it up")
                + ", or keep their rates up with homeostasis"
            )
    elif layer.kind == "rectified":
        if silent == layer.units:
            yield (
                f"layer {layer.name} is silent: none of its {layer.units} units is ever above 0 on this batch, so no "
                "gradient passes it; raise the biases into it or initialise it again"
            )
        elif silent > _SOME * layer.units:
            yield (
                f"layer {layer.name}: {silent} of {layer.units} units are never above 0 on this batch and get no "
                "gradient; lower the learning rate, raise their biases, or use a leaky rectifier"
            )
    elif silent == layer.units:
        yield f"layer {layer.name} puts out nothing: all of its {layer.units} units stay at 0 on this batch"


def _why_silent(layer: LayerHealth) -> str:
    if layer.drive is None:
        return "none of its units spikes on this batch; scale the weights into it up, or lower its threshold"
    text = f"its mean input is {layer.drive:.2g} of the threshold"
    if layer.potential is None:
        return text + "; scale the weights into it up, or lower its threshold"
    if layer.potential <= 0:
        return text + " and never lifts it above rest; turn the sign of its input or raise its biases"
    if layer.potential >= 1:
        return text + ", which would reach it; look for a clamp, a refractory time or an inhibition that holds it down"
    factor = math.ceil(15 / layer.potential) / 10
    return (
        f"{text}, and its potential reaches at most {layer.potential:.2g} of it; multiply the weights into it by about "
        f"{factor:g}, or lower the threshold, or lengthen the time constant"
    )


def _saturated(layer: LayerHealth) -> Iterator[str]:
    saturated = int(layer.saturated.sum())
    if layer.kind == "spiking" and layer.rate > _FAST:
        yield (
            f"layer {layer.name} spikes in {layer.rate:.0%} of the steps, so its spikes say little; "
            "scale the weights into it down, raise the threshold, or give it a refractory time"
        )
    elif saturated > _SOME * layer.units:
        yield (
            f"layer {layer.name}: {saturated} of {layer.units} units are at their limit nearly always and pass hardly "
            "any gradient; scale the weights into it down, or normalise its input"
        )


def _gradients(layers: Sequence[LayerHealth]) -> Iterator[str]:
    measured = [layer for layer in layers if layer.gradient is not None]
    if not measured:
        return
    broken = [layer for layer in measured if not math.isfinite(layer.gradient or 0.0)]
    if broken:
        yield f"the gradient at layer {broken[-1].name} is NaN or infinite; clip it, or lower the scale of the weights"
        return
    largest = max(measured, key=lambda layer: layer.gradient or 0.0)
    if not largest.gradient:
        yield "no gradient reaches any layer: the loss does not depend on them here"
        return
    for layer in measured:
        if layer.gradient == 0:
            yield f"no gradient reaches layer {layer.name}, so what feeds it cannot learn{_dead_end(layer, layers)}"
    before = layers[: layers.index(largest)]
    faint = [(layer.gradient / largest.gradient, layer) for layer in before if layer.gradient]
    faint = sorted(((share, layer) for share, layer in faint if share < _VANISHED), key=lambda pair: pair[0])
    if faint:
        share, worst = faint[0]
        others = f", and {len(faint) - 1} more get less than {_VANISHED:g} of it" if len(faint) > 1 else ""
        cure = "use a wider surrogate or a" if worst.kind == "spiking" else "use a"
        yield (
            f"the gradient vanishes: layer {worst.name} gets {share:.1g} of what layer {largest.name} gets{others}; "
            f"{cure} larger initial scale, normalise, or add a shortcut"
        )
    last = measured[-1]
    if last.gradient and largest.gradient / last.gradient > _EXPLODED:
        yield (
            f"the gradient explodes: layer {largest.name} gets {largest.gradient / last.gradient:.1g} times what layer "
            f"{last.name} gets; clip it, or lower the scale of the weights"
        )


def _dead_end(layer: LayerHealth, layers: Sequence[LayerHealth]) -> str:
    later = layers[layers.index(layer) + 1 :]
    blocked = next((other for other in later if bool(other.silent.all())), None)
    return f": it ends at the silent layer {blocked.name}" if blocked is not None else ""


def _over_time(layer: LayerHealth) -> Iterator[str]:
    over = layer.gradient_over_time
    if over is None or len(over) < 5 or not bool(over.isfinite().all()) or float(over.max()) == 0:
        return
    share = float(over[0]) / float(over.max())
    if share < _VANISHED and int(over.argmax()) > len(over) // 2:
        reached = int((over >= _VANISHED * over.max()).nonzero()[0])
        yield (
            f"at layer {layer.name} the gradient fades over time: the first step gets {share:.1g} of the largest, and "
            f"it reaches back to step {reached} of {len(over)}; lengthen the time constants, or read out earlier"
        )
    if float(over[-1]) > 0 and float(over[0]) / float(over[-1]) > _EXPLODED:
        yield (
            f"at layer {layer.name} the gradient grows backwards in time, {float(over[0] / over[-1]):.1g}-fold over "
            f"{len(over)} steps; clip it, detach the reset, or lower the recurrent weights"
        )
