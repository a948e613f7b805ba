"""Learning delays: how their bumps sharpen, and which parameters are delays.

    σ(e) = max(σ_end, σ_0 (σ_end / σ_0)^(e / E))          after e epochs, reached at e = E

Source: Hammouamri, Khalfaoui-Hassani & Masquelier 2024: σ_end = 0.23, E a quarter of the training, delays learnt a
hundred times faster than weights. Widths in steps.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from plexus.errors import RangeError, UnsupportedError
from plexus.nn.synapses._delay_kernel import SHARP, DelayKernel

__all__ = ["DelayAnneal", "delay_parameters", "weight_parameters"]


def delay_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The learnt delays of a model: a group for the optimizer, with a rate about a hundred times that of the weights.

    `plexus.nn.project_after_step(optimizer, model)` keeps them in their range.

    Examples:
        >>> from torch.optim import Adam
        >>> from plexus.nn.synapses import DelayedLinear
        >>> model = nn.Sequential(DelayedLinear(4, 3, 5), nn.Linear(3, 2))
        >>> _ = Adam([{"params": weight_parameters(model), "lr": 1e-3}, {"params": delay_parameters(model), "lr": 0.1}])
        >>> len(weight_parameters(model)), len(delay_parameters(model))
        (3, 1)
    """
    layers = (module for module in model.modules() if isinstance(module, DelayKernel))
    return list(dict.fromkeys(layer.stored_delay for layer in layers if layer.learn))


def weight_parameters(model: nn.Module) -> list[nn.Parameter]:
    """All parameters that learn and are not delays."""
    delays = {id(module.stored_delay) for module in model.modules() if isinstance(module, DelayKernel)}
    return [p for p in model.parameters() if p.requires_grad and id(p) not in delays]


class DelayAnneal:
    """`anneal = DelayAnneal(model, epochs=10)`, then `anneal.step()` after each epoch: σ falls geometrically to `end`.

    Args:
        model: any module that holds layers with learnable delays; each starts at the width it has.
        epochs: after how many steps the end is reached. The paper takes a quarter of the training; the rest of it is
            for weights and delays to settle under sharp kernels.
        end: the last width, in steps.

    Raises:
        RangeError: `epochs` or `end` is not positive. UnsupportedError: the model has no such layer.

    Examples:
        >>> from plexus.nn.synapses import DelayedLinear
        >>> layer = DelayedLinear(4, 3, max_delay=12)
        >>> anneal = DelayAnneal(layer, epochs=2)
        >>> widths = [layer.sigma]
        >>> for epoch in range(3):
        ...     anneal.step()
        ...     widths.append(round(layer.sigma, 3))
        >>> widths
        [6.0, 1.175, 0.23, 0.23]
    """

    def __init__(self, model: nn.Module, epochs: int, *, end: float = SHARP) -> None:
        if epochs < 1 or not end > 0:
            raise RangeError("annealing needs epochs and a last width", given=(epochs, end), expected="both positive")
        self.layers = [module for module in model.modules() if isinstance(module, DelayKernel)]
        if not self.layers:
            raise UnsupportedError("the model has no layer with learnable delays", given=type(model).__name__)
        self.epochs, self.end, self.epoch = epochs, float(end), 0
        self.starts = [layer.sigma for layer in self.layers]

    def step(self) -> None:
        """An epoch is over."""
        self.epoch += 1
        self._apply()

    def _apply(self) -> None:
        done = min(self.epoch / self.epochs, 1.0)
        for layer, start in zip(self.layers, self.starts, strict=True):
            if start > self.end:  # a kernel that is sharper already stays as it is
                layer.set_sigma(start * (self.end / start) ** done)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"epoch": self.epoch, "epochs": self.epochs, "end": self.end, "starts": list(self.starts)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.epoch, self.epochs, self.end = state["epoch"], state["epochs"], state["end"]
        self.starts = list(state["starts"])
        self._apply()
