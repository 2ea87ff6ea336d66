"""A small network for small data: 3x3 convolutions with batch norm, trained from nothing in minutes on a CPU."""

from __future__ import annotations

from torch import Tensor, nn


class SmallNet(nn.Module):
    """(N, 3, H, W) to class response maps (N, num_classes, h, w).

    Parameters
    ----------
    widths : channels of each stage; a stage is `depth` 3x3 convolutions with batch norm and ReLU
    pools : how many of the stages, from the first, end in a 2x2 max pooling; the stride is 2 ** pools
    depth : convolutions a stage
    smooth : odd side of an average pooling of the features before the classifier, in map positions; 1 is none. It draws
        the peak from an object's rim to its middle.
    """

    def __init__(
        self, num_classes: int, widths: tuple[int, ...] = (16, 32, 64, 64), pools: int = 2, depth: int = 2,
        smooth: int = 1,
    ):  # fmt: skip
        super().__init__()
        if not widths or smooth % 2 == 0:
            raise ValueError(f"SmallNet needs at least one width and an odd smooth, not {widths} and {smooth}")
        layers, channels = [], 3
        for i, width in enumerate(widths):
            for _ in range(depth):
                layers += [
                    nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True),
                ]  # fmt: skip
                channels = width
            if i < pools:
                layers.append(nn.MaxPool2d(2))
        if smooth > 1:
            layers.append(nn.AvgPool2d(smooth, stride=1, padding=smooth // 2, count_include_pad=False))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Conv2d(channels, num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x))


def smallnet(num_classes: int, **options) -> SmallNet:
    """SmallNet with random weights; options as for the class."""
    options = {k: tuple(v) if isinstance(v, list) else v for k, v in options.items()}
    return SmallNet(num_classes, **options)
