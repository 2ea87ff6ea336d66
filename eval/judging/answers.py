"""The rows of Tables 4 to 6 for one picture: what each method answers, as masks, labels (K,) and scores (K,)."""

from __future__ import annotations

import numpy as np
import torch

from prm.accelerated import Proposals, SegmentationSettings
from prm.accelerated.retrieval import Choice, Fit, choose, fit, suppression
from prm.accelerated.stages import Walked

from .boxes import best_overlapping, cam_boxes, ellipses, instance_boxes, peak_boxes, rectangles

ABLATED = {
    "prm: without the instance-aware term": (0, 1, 1),
    "prm: without the boundary-aware term": (1, 0, 1),
    "prm: without the class-aware term": (1, 1, 0),
}
GALLERIES = ("proposals", "proposals and truth", "truth")
TRUE_MASKS = "true masks"
BOX_SOURCES = ("ground truth", "CAM", "peaks")
BOX_MASKS = ("rectangle", "ellipse")


def chosen(found: Walked, fitted: Fit, choice: Choice) -> tuple[Proposals, np.ndarray, np.ndarray]:
    """What the last stage of Algorithm 1 left."""
    labels = found.peaks[choice.peaks, 0].cpu().numpy()
    return fitted.proposals.select(choice.proposals.cpu()), labels, choice.scores.cpu().numpy()


def of_truth(sample, truth: Proposals, galleries: dict[str, Proposals]) -> dict[str, tuple]:
    """The rows of Tables 4 and 6 that need no network."""
    labels, ones = sample.mask_labels, np.ones(len(truth))
    nearest = {f"{TRUE_MASKS}: {name}": _nearest(truth, gallery, labels, ones) for name, gallery in galleries.items()}
    return nearest | _of_boxes(BOX_SOURCES[0], (instance_boxes(sample.masks), labels, ones), galleries)


def of_network(settings: SegmentationSettings, found: Walked, fitted: Fit, maps, scores, galleries) -> dict[str, tuple]:
    """The other rows of Tables 4 to 6 but the method's own answer, of which `fitted` is.

    maps: (C, H, W) class response maps at the picture's size.
    """
    answers = {name: chosen(found, fitted, choose(found, fitted, settings, keep)) for name, keep in ABLATED.items()}
    for name in GALLERIES[1:]:
        other = fit(found, galleries[name], settings)
        answers[f"prm: {name}"] = chosen(found, other, choose(found, other, settings))
    size = maps.shape[1:]
    answers |= _of_boxes(BOX_SOURCES[1], cam_boxes(maps, scores, settings.class_threshold), galleries)
    return answers | _of_boxes(BOX_SOURCES[2], _without_rivals(*peak_boxes(maps, found), settings, *size), galleries)


def _of_boxes(source: str, given: tuple, galleries: dict[str, Proposals]) -> dict[str, tuple]:
    """Every mask that is made from boxes; given: boxes (B, 4), labels (B,), scores (B,)."""
    boxes, labels, scores = given
    size = next((gallery.height, gallery.width) for gallery in galleries.values())
    filled = rectangles(boxes, *size)
    answers = dict(zip(BOX_MASKS, ((filled, labels, scores), (ellipses(boxes, *size), labels, scores))))
    answers |= {name: _nearest(filled, gallery, labels, scores) for name, gallery in galleries.items()}
    return {f"{source}: {name}": answer for name, answer in answers.items()}


def _nearest(masks: Proposals, gallery: Proposals, labels: np.ndarray, scores: np.ndarray) -> tuple:
    """The gallery's masks of highest IoU instead of the masks; a gallery of none has nothing to offer."""
    some = slice(None) if len(gallery) else slice(0)
    return best_overlapping(masks, gallery), labels[some], scores[some]


def _without_rivals(boxes, labels, scores, settings: SegmentationSettings, height: int, width: int) -> tuple:
    """Peaks of one object give one box twice: of boxes of one class that overlap, the strongest stays."""
    overlap = rectangles(boxes, height, width).ious() >= settings.nms
    corners = torch.from_numpy(np.asarray(boxes)[:, :2])
    left = list(suppression(overlap, torch.from_numpy(scores), torch.from_numpy(labels), corners, per_class=True))
    return boxes[left], labels[left], scores[left]
