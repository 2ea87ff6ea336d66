"""The baselines of Table 4: boxes from ground truth or response maps, and masks made from boxes.

A box is x0, y0, x1, y1 in pixels of the picture counted from 0, both ends inside it.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

from prm.accelerated import Proposals
from prm.accelerated.stages import Walked

from ..datasets.base import tight_boxes

CAM_SHARE = 0.2  # of the map's maximum, as CAM's authors cut (Zhou et al. 2016)
PEAK_SHARE = 0.5  # of the peak's own response: a lower cut joins neighbouring peaks

# ---- boxes


def instance_boxes(masks: np.ndarray) -> np.ndarray:
    """(K, 4) int64 boxes around masks (K, H, W) bool; the box of an empty mask holds nothing either: 0, 0, -1, -1."""
    boxes = np.full((len(masks), 4), [0, 0, -1, -1], dtype=np.int64)
    shown = masks.any(axis=(1, 2))
    boxes[shown] = tight_boxes(masks[shown])
    return boxes


def enlarged(response: Tensor, size: tuple[int, int]) -> np.ndarray:
    """Class response maps (C, h, w) at the picture's size (C, H, W): bilinear, corners not aligned."""
    return F.interpolate(response[None].float(), size, mode="bilinear", align_corners=False)[0].cpu().numpy()


def cam_boxes(maps: np.ndarray, scores: np.ndarray, least: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """CAM's rule: for each class with a probability of at least `least`, the box around the largest connected
    component (4 neighbours, the first of equals) of what reaches CAM_SHARE of the map's maximum.

    maps: (C, H, W) at the picture's size. scores: (C,) before the sigmoid. Where a maximum is not positive, its pixels
    alone are taken. Returns boxes (B, 4), labels (B,), and the probabilities as scores (B,).
    """
    probability = 1 / (1 + np.exp(-np.asarray(scores, dtype=np.float64)))
    labels = np.flatnonzero(probability >= least)
    boxes = np.zeros((len(labels), 4), dtype=np.int64)
    for box, c in zip(boxes, labels):
        top = maps[c].max()
        parts, count = ndimage.label(maps[c] >= (CAM_SHARE * top if top > 0 else top))
        largest = 1 + np.argmax(np.bincount(parts.ravel(), minlength=count + 1)[1:])
        box[:] = tight_boxes((parts == largest)[None])[0]
    return boxes, labels, probability[labels]


def peak_boxes(maps: np.ndarray, found: Walked) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """CAM's rule for each peak: the box around the connected component that holds it, of what reaches PEAK_SHARE of
    the response there.

    maps: (C, H, W) at the picture's size. Returns boxes (B, 4), labels (B,), and the peaks' responses as scores (B,).
    """
    labels, positions = found.peaks[:, 0].cpu().numpy(), np.rint(found.positions).astype(np.int64)
    positions = positions.clip(0, np.array(maps.shape[1:]) - 1)
    boxes = np.zeros((len(labels), 4), dtype=np.int64)
    for box, c, (row, column) in zip(boxes, labels, positions):
        top = maps[c, row, column]
        parts, _ = ndimage.label(maps[c] >= (PEAK_SHARE * top if top > 0 else top))
        box[:] = tight_boxes((parts == parts[row, column])[None])[0]
    return boxes, labels, found.response.double().cpu().numpy()


# ---- masks from boxes


def rectangles(boxes: np.ndarray, height: int, width: int) -> Proposals:
    """The boxes, filled."""
    return _filled(boxes, height, width, lambda rows, x0, y0, x1, y1: (np.full(len(rows), x0), np.full(len(rows), x1)))


def ellipses(boxes: np.ndarray, height: int, width: int) -> Proposals:
    """The ellipses inscribed in the boxes: ((x - cx) / (w / 2))^2 + ((y - cy) / (h / 2))^2 <= 1 at pixel centres."""

    def interval(rows, x0, y0, x1, y1):
        middle, a, b = (x0 + x1) / 2, (x1 - x0 + 1) / 2, (y1 - y0 + 1) / 2
        reach = a * np.sqrt(1 - ((rows - (y0 + y1) / 2) / b) ** 2)
        # A pixel centre exactly on the ellipse belongs to it, whatever the square root's last bit.
        return np.ceil(middle - reach - 1e-9).astype(np.int64), np.floor(middle + reach + 1e-9).astype(np.int64)

    return _filled(boxes, height, width, interval)


def _filled(boxes: np.ndarray, height: int, width: int, interval) -> Proposals:
    """Masks of shapes whose rows are intervals: interval(rows, x0, y0, x1, y1) -> first and last columns."""
    starts, ends, counts = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)], [0]
    for x0, y0, x1, y1 in np.asarray(boxes, dtype=np.int64).reshape(-1, 4).tolist():
        rows = np.arange(max(y0, 0), min(y1, height - 1) + 1)
        left, right = interval(rows, x0, y0, x1, y1)
        left, right = np.maximum(left, 0), np.minimum(right, width - 1)
        some = left <= right
        starts.append((rows * width + left)[some])
        ends.append((rows * width + right + 1)[some])
        counts.append(int(some.sum()))
    arrays = np.concatenate(starts), np.concatenate(ends), np.cumsum(counts)
    return Proposals(height, width, *(torch.from_numpy(a.astype(np.int64)) for a in arrays))


def best_overlapping(masks: Proposals, gallery: Proposals) -> Proposals:
    """For each mask the gallery's one of highest IoU (the first of equals); for a gallery of none, no masks."""
    if not len(gallery):
        return gallery
    return gallery.select(masks.ious(gallery).argmax(dim=1)) if len(masks) else masks
