"""VGG16 (Simonyan and Zisserman 2015) as a fully convolutional classifier; parameter names as in torchvision."""

from __future__ import annotations

from torch import Tensor, nn

CHANNELS = (64, 64, "pool", 128, 128, "pool", 256, 256, 256, "pool", 512, 512, 512, "pool", 512, 512, 512, "pool")


class VGG16(nn.Module):
    """Features of VGG16 and a convolutional classifier: (N, 3, H, W) to class response maps (N, num_classes, h, w).

    head="conv" (default, the paper's): a 1x1 classifier on the features, stride 32.
    head="fc": the fully connected layers as 7x7 (padding 3) and 1x1 convolutions (section 3.1), so that their
    pretrained weights serve; one response per feature position.
    """

    def __init__(self, num_classes: int, head: str = "conv"):
        super().__init__()
        if head not in ("conv", "fc"):
            raise ValueError(f'head must be "conv" or "fc", not {head!r}')
        self.features = _features()
        if head == "conv":
            self.classifier = nn.Conv2d(512, num_classes, 1)
        else:
            self.classifier = nn.Sequential(
                nn.Conv2d(512, 4096, 7, padding=3), nn.ReLU(inplace=True), nn.Dropout(),
                nn.Conv2d(4096, 4096, 1), nn.ReLU(inplace=True), nn.Dropout(),
                nn.Conv2d(4096, num_classes, 1),
            )  # fmt: skip
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x))


def _features() -> nn.Sequential:
    layers, channels = [], 3
    for width in CHANNELS:
        if width == "pool":
            layers.append(nn.MaxPool2d(2, 2))
        else:
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(inplace=True)]
            channels = width
    return nn.Sequential(*layers)


def vgg16(num_classes: int, head: str = "conv") -> VGG16:
    """VGG16 with random weights."""
    return VGG16(num_classes, head)
