"""WISE's student (stage 2): torchvision's Mask R-CNN with a feature pyramid, on ResNet-50 or EfficientNet-Lite."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection import MaskRCNN as Detector
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import paste_masks_in_image
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign, masks_to_boxes
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool
from torchvision.transforms.v2 import functional as colours

from prm import InputError

from ..inputs import scaled, to_input
from ..networks.efficientnet_lite import VARIANTS, EfficientNetLite, efficientnet_lite
from ..networks.resnet50 import ResNet50
from ..networks.weights import load_pretrained
from ..pretrained import MEAN, STD, released
from ..retrieval import Proposals
from .base import Example, Found, Student

BACKBONES = ("resnet50", *VARIANTS)
WIDE = 1024  # features of a region
PASTED = 2**26
"""Most pixels of masks that are whole at a time."""


class MaskRCNN(Student):
    """Losses of unit weights: objectness and box of the region proposals; class, box and mask of the regions.

    Options:

    backbone : one of BACKBONES; its batch norm is fixed, as are its layers down to a quarter of the picture's size
    short : the picture's shorter side becomes this, pixels; the longer at most 5/3 of it
    multi_scale : in training one of these instead, drawn each time; none: `short`
    rois : regions of a picture that a step classifies
    anchor : side of the smallest anchor, pixels of the scaled picture; none: a 25th of `short`, so 32 at 800
    channels : of the pyramid and the mask head
    score : answers of a lower confidence are left out
    flip : mirror left and right at random
    jitter : brightness, contrast and saturation change by up to this share, the hue by a quarter of it
    """

    def __init__(
        self, num_classes: int, backbone: str = "efficientnet_lite0", short: int = 256,
        multi_scale: Sequence[int] | None = None, rois: int = 64, anchor: int | None = None, channels: int = 256,
        score: float = 0.05, flip: bool = True, jitter: float = 0.2,
    ):  # fmt: skip
        super().__init__()
        if backbone not in BACKBONES:
            raise InputError(f"mask_rcnn: backbone {backbone!r} is none of {', '.join(BACKBONES)}")
        shorts = [short, *(multi_scale or ())]
        if min(shorts) < 32 or rois < 1 or channels < 1 or not 0 <= score < 1 or not 0 <= jitter < 1:
            raise InputError(
                f"mask_rcnn: short and multi_scale {shorts} must be 32 or more, rois {rois} and channels {channels} 1 "
                f"or more, score {score} and jitter {jitter} from 0 to less than 1"
            )
        self.num_classes, self.backbone, self.short, self.flip, self.jitter = num_classes, backbone, short, flip, jitter
        self.shorts = list(multi_scale or [short])
        smallest = anchor or round(short / 25)
        mean, std = (MEAN, STD) if backbone == "resnet50" else ([127 / 255] * 3, [128 / 255] * 3)
        self.detector = Detector(
            _Pyramid(backbone, channels), image_mean=list(mean), image_std=list(std),
            rpn_anchor_generator=AnchorGenerator(tuple((smallest * 2**k,) for k in range(5)), ((0.5, 1.0, 2.0),) * 5),
            box_roi_pool=_pool(7, smallest), mask_roi_pool=_pool(14, smallest),
            box_head=TwoMLPHead(channels * 7**2, WIDE), box_predictor=FastRCNNPredictor(WIDE, num_classes + 1),
            mask_head=MaskRCNNHeads(channels, (channels,) * 4, 1),
            mask_predictor=MaskRCNNPredictor(channels, channels, num_classes + 1),
            box_batch_size_per_image=rois, box_score_thresh=score, _skip_resize=True,
        )  # fmt: skip
        # torchvision's start grows as classes become fewer, and so large a first mask loss drowns the others.
        nn.init.normal_(self.detector.roi_heads.mask_predictor.mask_fcn_logits.weight, std=0.001)
        self._freeze()

    def _freeze(self) -> None:
        trunk = self.detector.backbone.trunk
        for parameter in trunk[0].parameters():
            parameter.requires_grad_(False)
        for module in trunk.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.requires_grad_(False)

    def train(self, mode: bool = True) -> MaskRCNN:
        super().train(mode)
        self.detector.backbone.trunk.eval()
        return self

    def start_from_imagenet(self, weights: str | Path | None = None) -> None:
        """Load ImageNet's weights into the backbone: the network's own, or a file of such. Errors as for `released`."""
        given, whole = released(self.backbone, weights), _network(self.backbone)
        load_pretrained(whole, given.source, given.renamed)
        self.detector.backbone.trunk.load_state_dict(_stages(whole).state_dict())

    def example(self, prepared: Any, draw: np.random.Generator) -> Example:
        """A picture, scaled, mirrored and coloured, and its boxes (x0, y0, x1, y1), labels from 1 on, and masks."""
        image, masks, labels = prepared
        x = self._input(image, int(self.shorts[draw.integers(len(self.shorts))]))
        inside = torch.from_numpy(np.ascontiguousarray(masks, np.uint8))
        if len(masks):
            inside = F.interpolate(inside[None], x.shape[1:], mode="nearest-exact")[0]
        else:  # which no resizing takes
            inside = inside.new_zeros(0, *x.shape[1:])
        if self.flip and draw.random() < 0.5:
            x, inside = x.flip(2), inside.flip(2)
        if self.jitter:
            x = self._coloured(x, draw)
        kept = inside.bool().flatten(1).any(1)
        inside = inside[kept]
        boxes = masks_to_boxes(inside) + torch.tensor([0.0, 0.0, 1.0, 1.0])  # half-open: a pixel has an area
        return x, {"boxes": boxes.view(-1, 4), "labels": torch.from_numpy(labels)[kept] + 1, "masks": inside}

    def _input(self, image: np.ndarray, short: int) -> Tensor:
        """(3, h, w) in [0, 1]."""
        size = scaled(image.shape[:2], short, longest=round(short * 5 / 3), least=1)
        return to_input(image, [0.0] * 3, [1.0] * 3, size=size)

    def _coloured(self, x: Tensor, draw: np.random.Generator) -> Tensor:
        for change in (colours.adjust_brightness, colours.adjust_contrast, colours.adjust_saturation):
            x = change(x, 1 + self.jitter * draw.uniform(-1, 1))
        return colours.adjust_hue(x, self.jitter / 4 * draw.uniform(-1, 1))

    def losses(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        device = next(self.parameters()).device
        images = [image.to(device) for image, _ in examples]
        targets = [{name: value.to(device) for name, value in target.items()} for _, target in examples]
        return self.detector(images, targets)

    @torch.no_grad()
    def answer(self, image: np.ndarray) -> Found:
        x = self._input(image, self.short).to(next(self.parameters()).device)
        # The detector's own way to an answer would scale the picture again.
        prepare, size = self.detector.transform, [(x.shape[1], x.shape[2])]
        seen = prepare.batch_images([prepare.normalize(x)], prepare.size_divisible)
        features = self.detector.backbone(seen)
        regions, _ = self.detector.rpn(ImageList(seen, size), features)
        (found,), _ = self.detector.roi_heads(features, regions, size)
        height, width = image.shape[:2]
        ratio = found["boxes"].new_tensor([width / x.shape[2], height / x.shape[1]] * 2)
        masks = _pasted(found["masks"], found["boxes"] * ratio, height, width)
        return Found(masks, (found["labels"] - 1).cpu().numpy(), found["scores"].double().cpu().numpy())

    def groups(self, lr: float, weight_decay: float) -> list[dict[str, Any]]:
        """Biases learn twice as fast and do not decay."""
        trained = [(name, p) for name, p in self.named_parameters() if p.requires_grad]
        biases = [p for name, p in trained if name.endswith("bias")]
        weights = [p for name, p in trained if not name.endswith("bias")]
        return [{"params": weights, "lr": lr, "weight_decay": weight_decay},
                {"params": biases, "lr": 2 * lr, "weight_decay": 0.0}]  # fmt: skip


def _pool(side: int, smallest: float) -> MultiScaleRoIAlign:
    """Regions to (side, side); one of seven smallest anchors is read at stride 16, as the published 224 of 32."""
    levels = ("0", "1", "2", "3")
    pool = MultiScaleRoIAlign(levels, side, 2, canonical_scale=round(7 * smallest), canonical_level=4)
    # It keeps the strides that it makes out at its first batch, and padding can mislead it: so they are shown to it.
    maps = {level: torch.zeros(1, 1, 64 >> k, 64 >> k) for k, level in enumerate(levels)}
    pool(maps, [torch.zeros(1, 4)], [(256, 256)])
    return pool


def _pasted(masks: Tensor, boxes: Tensor, height: int, width: int) -> Proposals:
    """Masks (d, 1, 28, 28) in their boxes at the picture's size, where they reach a half."""
    step, parts = max(1, PASTED // (height * width)), [Proposals.empty(height, width)]
    for first in range(0, len(masks), step):
        own = slice(first, first + step)
        whole = paste_masks_in_image(masks[own].float(), boxes[own], (height, width))
        parts.append(Proposals.from_masks(whole[:, 0].cpu() >= 0.5))
    return Proposals.concatenate(parts)


class _Pyramid(nn.Module):
    """Features at strides 4, 8, 16, 32 and 64, each of `out_channels`."""

    def __init__(self, name: str, channels: int):
        super().__init__()
        self.trunk, self.out_channels = _stages(_network(name)), channels
        with torch.no_grad():
            widths = [y.shape[1] for y in self._climb(torch.zeros(1, 3, 64, 64))]
        # EfficientNet-Lite's stages end without an activation, in values of tens that no convolution could start from.
        norm = None if name == "resnet50" else partial(nn.GroupNorm, math.gcd(channels, 32))
        self.pyramid = FeaturePyramidNetwork(widths, channels, LastLevelMaxPool(), norm)

    def _climb(self, x: Tensor) -> list[Tensor]:
        found = []
        for stage in self.trunk:
            x = stage(x)
            found.append(x)
        return found

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return self.pyramid(OrderedDict((str(k), y) for k, y in enumerate(self._climb(x))))


def _network(name: str) -> ResNet50 | EfficientNetLite:
    """A classifier of ImageNet's classes with random weights, its batch norm as in use."""
    return (ResNet50(1000) if name == "resnet50" else efficientnet_lite(name, 1000)).eval()


def _stages(net: ResNet50 | EfficientNetLite) -> nn.ModuleList:
    """Its layers in four parts, which end at strides 4, 8, 16 and 32."""
    if isinstance(net, ResNet50):
        first = nn.Sequential(net.conv1, net.bn1, net.relu, net.maxpool, net.layer1)
        return nn.ModuleList([first, net.layer2, net.layer3, net.layer4])
    parts: list[list[nn.Module]] = [[net.stem]]
    stride = 2
    for block in net.blocks:
        halves = any(isinstance(m, nn.Conv2d) and m.stride == (2, 2) for m in block.modules())
        stride *= 2 if halves else 1
        if halves and stride > 4:
            parts.append([])
        parts[-1].append(block)
    return nn.ModuleList(nn.Sequential(*part) for part in parts)
