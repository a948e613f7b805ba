"""The networks of `spiking_step`, the same for all contenders: weight layers here, neurons from whoever competes."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

CASES = ("feed-forward", "recurrent", "convolutional")
SHAPES = {"feed-forward": (100, 128, 700), "recurrent": (100, 128, 700), "convolutional": (25, 64, 2, 34, 34)}
CLASSES = {"feed-forward": 20, "recurrent": 20, "convolutional": 10}


def layers(
    case: str,
    neuron: Callable[[tuple[int, ...]], nn.Module],
    recurrent: Callable[[int], nn.Module],
    linear: type[nn.Linear] = nn.Linear,
) -> list[nn.Module]:
    """700–512–512–20, its hidden layers recurrent or not, or 12c5–pool–32c5–pool–10; neurons after every weight."""
    if case == "convolutional":
        return [
            nn.Conv2d(2, 12, 5), neuron((12, 30, 30)), nn.AvgPool2d(2),
            nn.Conv2d(12, 32, 5), neuron((32, 11, 11)), nn.AvgPool2d(2),
            nn.Flatten(), linear(800, 10), neuron((10,)),
        ]  # fmt: skip
    hidden = recurrent if case == "recurrent" else lambda size: neuron((size,))
    return [linear(700, 512), hidden(512), linear(512, 512), hidden(512), linear(512, 20), neuron((20,))]


class Folded(nn.Module):
    """Weight layers over time and batch at once, neurons over time: what each peer's manual calls the fast way."""

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(modules)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            if getattr(layer, "over_time", False):
                x = layer(x)
            else:
                x = layer(x.flatten(0, 1)).unflatten(0, x.shape[:2])
        return x


class Nothing(nn.Module):
    """No neuron: what remains is weight layers, loss and optimiser."""

    over_time = True

    def forward(self, x: Tensor) -> Tensor:
        return x


class _Products(torch.autograd.Function):
    """The products of a recurrent layer and nothing else: one per step each way, one for the weight's gradient."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor) -> Tensor:
        out = torch.empty_like(x)
        z = torch.zeros_like(x[0])
        for t in range(len(x)):
            z = torch.addmm(x[t], z, weight.T, out=out[t])
        ctx.save_for_backward(out, weight)
        return out

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor]:
        out, weight = ctx.saved_tensors
        delta = torch.empty_like(grad)
        delta[-1] = grad[-1]
        for t in reversed(range(len(grad) - 1)):
            torch.addmm(grad[t], delta[t + 1], weight, out=delta[t])
        return delta, delta[1:].flatten(0, 1).T @ out[:-1].flatten(0, 1)


class RecurrentNothing(nn.Module):
    """A recurrent layer without its neurons."""

    over_time = True

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(size, size) * 0.2 / size**0.5)

    def forward(self, x: Tensor) -> Tensor:
        return _Products.apply(x, self.weight)


def training_step(net: nn.Module, case: str) -> Callable[[], object]:
    """One step of training on a fixed batch: forward, cross-entropy of spike counts, backward, Adam."""
    generator = torch.Generator(torch.get_default_device()).manual_seed(0)
    shape = SHAPES[case]
    x = (torch.rand(shape, generator=generator) < 0.05).float()
    labels = torch.randint(CLASSES[case], shape[1:2], generator=generator)
    optimiser = torch.optim.Adam(net.parameters(), lr=1e-4)

    def step() -> None:
        optimiser.zero_grad()
        nn.functional.cross_entropy(net(x).sum(0), labels).backward()
        optimiser.step()

    return step
