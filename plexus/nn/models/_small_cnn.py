"""A convolutional classifier for small images.

conv 3×3 → ReLU → conv 3×3 → ReLU → max-pool 2 → linear → ReLU → linear
"""

from __future__ import annotations

from torch import Tensor, nn

from plexus.errors import RangeError, ShapeError


class SmallCNN(nn.Module):
    """Two convolutions, one pooling, two linear layers; logits `[batch, class]` from images `[batch, channel, y, x]`.

    Args:
        size: height and width of the images.
        classes: number of logits.
        in_channels: of the images.
        channels: of the two convolutions.
        hidden: units of the layer before the logits.
        pool: side of the pooling window.

    Raises:
        RangeError: a size that is not positive, or a window larger than the image. ShapeError: other images.

    Examples:
        >>> import torch
        >>> SmallCNN(8, 10)(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        size: int,
        classes: int,
        *,
        in_channels: int = 1,
        channels: tuple[int, int] = (16, 32),
        hidden: int = 128,
        pool: int = 2,
    ) -> None:
        super().__init__()
        numbers = (size, classes, in_channels, *channels, hidden, pool)
        if min(numbers) < 1 or pool > size:
            raise RangeError("sizes of the network", given=numbers, expected="positive, and a window within the image")
        self.shape = (in_channels, size, size)
        self.conv1 = nn.Conv2d(in_channels, channels[0], 3, padding=1)
        self.conv2 = nn.Conv2d(channels[0], channels[1], 3, padding=1)
        self.pool = nn.MaxPool2d(pool)
        self.hidden = nn.Linear(channels[1] * (size // pool) ** 2, hidden)
        self.out = nn.Linear(hidden, classes)

    def forward(self, x: Tensor) -> Tensor:
        if tuple(x.shape[1:]) != self.shape:
            raise ShapeError("images of another shape", given=tuple(x.shape), expected=("batch", *self.shape))
        x = self.pool(self.conv2(self.conv1(x).relu()).relu())
        logits: Tensor = self.out(self.hidden(x.flatten(1)).relu())
        return logits
