"""A student for crowded small objects, such as nuclei: where there is one, how deep inside it, and then a watershed.

A U-Net says of every pixel whether it lies in an object, how deep (the distance to the object's edge as a share of its
greatest), and of several classes which one. Maxima of the depth tell apart objects that touch. Our own: no paper's.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from scipy import ndimage
from skimage.morphology import local_maxima, reconstruction
from skimage.segmentation import watershed
from torch import Tensor, nn
from torch.nn import functional as F

from prm import InputError

from ..retrieval import Proposals
from ..views import turn, turn_back
from .base import Example, Found, Student

FAINT = 8.0  # added to a picture's standard deviation, 0..255: an empty one is not blown up


class Cells(Student):
    """Options:

    widths : channels at the picture's own size, at a half, a quarter ...
    crop : side of the square that a step sees, pixels
    scale : a crop shows the picture at up to this factor of its size, or at least at 1 / that
    views : so many turned pictures are averaged in an answer: 1, 2, 4 or 8
    foreground : a pixel lies in an object above this probability
    depth : a maximum of the depth rises at least so high above the pass to a higher one
    least : an object has more pixels than that
    tile : large pictures are answered in squares of this side, so that memory stays bounded; with the same answer
    """

    def __init__(
        self, num_classes: int, widths: Sequence[int] = (16, 32, 64, 96), crop: int = 160, scale: float = 1.6,
        views: int = 8, foreground: float = 0.6, depth: float = 0.1, least: int = 30, tile: int = 1024,
    ):  # fmt: skip
        super().__init__()
        self.stride = 2 ** (len(widths) - 1)
        if len(widths) < 2 or min(widths) < 1:
            raise InputError(f"cells: widths {list(widths)} must be two or more numbers of channels")
        if crop % self.stride or tile % self.stride or min(crop, tile) < self.stride:
            raise InputError(f"cells: crop {crop} and tile {tile} must be multiples of {self.stride}")
        if not scale >= 1 or views not in (1, 2, 4, 8):
            raise InputError(f"cells: scale {scale} must be 1 or more, and views {views} must be 1, 2, 4 or 8")
        self.num_classes, self.crop, self.scale, self.views, self.tile = num_classes, crop, scale, views, tile
        self.foreground, self.depth, self.least = foreground, depth, least
        self.unet = _Unet(list(widths), 2 + (num_classes if num_classes > 1 else 0))

    def prepare(self, image: np.ndarray, masks: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The picture, and (H, W, 2) uint8: class + 1 (0: nothing), and depth times 255. Small objects lie on top."""
        if len(labels) and labels.max() > 254:
            raise InputError(f"cells: class {labels.max()}; this student tells 255 classes apart")
        known = np.zeros((*image.shape[:2], 2), np.uint8)
        owner = np.zeros(image.shape[:2], np.int32)
        for k in np.argsort([-mask.sum() for mask in masks], kind="stable"):
            owner[masks[k]] = k + 1
        for k, box in enumerate(ndimage.find_objects(owner, max_label=len(masks))):
            if box is not None:
                inside = owner[box] == k + 1
                deep = ndimage.distance_transform_edt(np.pad(inside, 1))[1:-1, 1:-1]
                known[box][inside] = np.stack([np.full_like(deep, labels[k] + 1), 255 * deep / deep.max()], -1)[inside]
        return image, known

    def example(self, prepared: tuple[np.ndarray, np.ndarray], draw: np.random.Generator) -> Example:
        """A square of a picture, scaled, mirrored and turned; what lies outside of the picture is not learnt."""
        image, known = prepared
        mean, spread = image.mean(), image.std() + FAINT
        side = round(self.crop / self.scale ** draw.uniform(-1, 1))
        first = [int(draw.integers(min(0, have - side), max(0, have - side) + 1)) for have in image.shape[:2]]
        part = tuple(slice(max(0, a), a + side) for a in first)
        room = [(max(0, -a), max(0, a + side - have)) for a, have in zip(first, image.shape[:2])]
        values = (image[part].astype(np.float32) - mean) / spread
        stack = np.concatenate([values, known[part], np.ones((*values.shape[:2], 1))], axis=2, dtype=np.float32)
        square = torch.from_numpy(np.pad(stack, (*room, (0, 0)))).permute(2, 0, 1)[None]
        pixels = F.interpolate(square[:, :3], (self.crop, self.crop), mode="bilinear", antialias=True)
        exact = F.interpolate(square[:, 3:], (self.crop, self.crop), mode="nearest-exact")
        both = turn(torch.cat([pixels, exact], dim=1), int(draw.integers(8)))[0]
        return both[:3].contiguous(), {"classes": both[3].long(), "depth": both[4] / 255, "inside": both[5]}

    def losses(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        """Cross-entropy of the foreground, twice the smooth L1 of the depth, objects weighted threefold, and of several
        classes their cross-entropy in objects."""
        device = next(self.parameters()).device
        images = torch.stack([image for image, _ in examples]).to(device).contiguous(memory_format=torch.channels_last)
        classes, depth, inside = (
            torch.stack([target[name] for _, target in examples]).to(device) for name in ("classes", "depth", "inside")
        )
        found, there = self.unet(images).float(), (classes > 0).float()
        count = inside.sum().clamp(min=1)
        foreground = F.binary_cross_entropy_with_logits(found[:, 0], there, inside, reduction="sum") / count
        error = F.smooth_l1_loss(found[:, 1].sigmoid(), depth, reduction="none") * (1 + 2 * there) * inside
        terms = {"foreground": foreground, "depth": 2 * error.sum() / count}
        if self.num_classes > 1:
            wrong = F.cross_entropy(found[:, 2:], classes - 1, ignore_index=-1, reduction="sum")
            terms["class"] = wrong / (there * inside).sum().clamp(min=1)
        return terms

    @torch.no_grad()
    def answer(self, image: np.ndarray) -> Found:
        """The objects of a picture; confidence is the mean probability of the foreground, times the class's."""
        maps = self.maps(image)
        regions = self.split(maps[0].numpy(), maps[1].numpy())
        count = int(regions.max(initial=0))
        index = np.arange(1, count + 1)
        scores = ndimage.mean(maps[0].numpy(), regions, index) if count else np.zeros(0)
        labels = np.zeros(count, np.int64)
        if self.num_classes > 1 and count:
            kinds = np.stack([ndimage.mean(kind, regions, index) for kind in maps[2:].numpy()], axis=1)
            labels, scores = kinds.argmax(axis=1), scores * kinds.max(axis=1)
        order = np.argsort(-np.asarray(scores), kind="stable")
        masks = _regions(regions, count).select(torch.from_numpy(order))
        return Found(masks, labels[order], np.asarray(scores, np.float64)[order].clip(0, 1))

    def maps(self, image: np.ndarray) -> Tensor:
        """(2, H, W) or (2 + C, H, W) float32 on the CPU: foreground, depth, and of several classes their shares."""
        height, width = image.shape[:2]
        device, mean, spread = next(self.parameters()).device, image.mean(), image.std() + FAINT
        # So that every tile and every turned view is halved at the same places.
        image = np.pad(image, [(0, -side % self.stride) for side in (height, width)] + [(0, 0)], mode="edge")
        maps = torch.zeros(self.unet.last.out_channels, *image.shape[:2])
        margin = 8 * self.stride
        for top in range(0, height, self.tile):
            for left in range(0, width, self.tile):
                up, back = min(top, margin), min(left, margin)
                part = image[top - up : top + self.tile + margin, left - back : left + self.tile + margin]
                x = torch.from_numpy(((part - mean) / spread).astype(np.float32)).permute(2, 0, 1)[None]
                found = self._averaged(x.to(device))[0, :, up : up + self.tile, back : back + self.tile].cpu()
                maps[:, top : top + self.tile, left : left + self.tile] = found
        return maps[:, :height, :width]

    def _averaged(self, x: Tensor) -> Tensor:
        """The probabilities of pictures (N, 3, H, W), averaged over views."""
        total = torch.zeros(())
        for k in range(self.views):
            found = self.unet(turn(x, k).contiguous(memory_format=torch.channels_last))
            shares = torch.cat([found[:, :2].sigmoid(), found[:, 2:].softmax(dim=1)], dim=1)
            total = total.to(x) + turn_back(shares, k)
        return total / self.views

    def split(self, foreground: np.ndarray, depth: np.ndarray) -> np.ndarray:
        """(H, W) int32, 0 or an object's number from 1 on, of the two maps."""
        there = foreground > self.foreground
        deep = np.where(there, ndimage.gaussian_filter(depth, 1), 0).astype(np.float32)
        # Maxima of what is left of hills lowered by `depth`: scikit-image's h_maxima counts tops of one height twice.
        lowered = reconstruction(deep - self.depth, deep)
        summits, _ = ndimage.label(local_maxima(lowered) & there, np.ones((3, 3)))
        regions = watershed(-deep, summits, mask=there)
        sizes = np.bincount(regions.ravel())
        kept = sizes > self.least
        kept[0] = False
        return (np.cumsum(kept) * kept).astype(np.int32)[regions]

    def groups(self, lr: float, weight_decay: float) -> list[dict[str, Any]]:
        return [{"params": list(self.parameters()), "lr": lr, "weight_decay": weight_decay}]


def _regions(regions: np.ndarray, count: int) -> Proposals:
    """The regions 1 .. count of a label image (H, W), as masks."""
    flat = regions.ravel()
    edges = np.flatnonzero(np.diff(flat, prepend=-1, append=-1))
    starts, ends = edges[:-1], edges[1:]
    owner = flat[starts]
    order = np.argsort(owner, kind="stable")[(owner == 0).sum() :]
    offsets = np.concatenate([[0], np.cumsum(np.bincount(owner[owner > 0], minlength=count + 1)[1:])])
    runs = (torch.from_numpy(array.astype(np.int64)) for array in (starts[order], ends[order], offsets))
    return Proposals(*regions.shape, *runs)


class _Unet(nn.Module):
    """Two convolutions of 3 x 3 at each size, down by maxima and up again beside what was there.

    An answer depends on pixels less than 8 strides of the smallest size away.
    """

    def __init__(self, widths: list[int], out: int):
        super().__init__()
        self.down = nn.ModuleList(_twice(a, b) for a, b in zip([3, *widths], widths))
        self.up = nn.ModuleList(_twice(a + b, a) for a, b in pairwise(widths))
        self.last = nn.Conv2d(widths[0], out, 1)

    def forward(self, x: Tensor) -> Tensor:
        beside: list[Tensor] = []
        for k, layer in enumerate(self.down):
            x = layer(F.max_pool2d(x, 2) if k else x)
            beside.append(x)
        for layer, skip in zip(reversed(self.up), reversed(beside[:-1])):
            x = layer(torch.cat([skip, F.interpolate(x, scale_factor=2)], dim=1))
        return self.last(x)


def _twice(channels: int, out: int) -> nn.Sequential:
    parts: list[nn.Module] = []
    for a in (channels, out):
        parts += [nn.Conv2d(a, out, 3, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU(inplace=True)]
    return nn.Sequential(*parts)
