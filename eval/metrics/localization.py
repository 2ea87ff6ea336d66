"""Pointwise localization: does the strongest response of a class lie on an object of the class?

Every image is one detection of every class, scored by the classifier. It is a hit if the class is present and the point
lies in one of its boxes. A miss leaves the image's positive unfound, so the mAP cannot exceed the classifier's own.
"""

from collections.abc import Sequence

import numpy as np

from prm import InputError

from .classification import ClassificationResult, defined_mean
from .masks import class_labels
from .ranking import ClassRanking, Ranking

TOLERANCE = 18.0
"""Pixels of the original image by which boxes are enlarged: the convention of Oquab et al. (CVPR 2015) and after."""


def strongest_points(maps) -> np.ndarray:
    """(C, 2) int64, x and y of the maximum of each of C response maps (C, H, W); the first in row-major order."""
    maps = np.asarray(maps)
    if maps.ndim != 3 or 0 in maps.shape[1:]:
        raise InputError(f"response maps have shape {maps.shape}; they must be (classes, height, width)")
    y, x = np.divmod(maps.reshape(len(maps), -1).argmax(axis=1), maps.shape[2])
    return np.stack([x, y], axis=1)


def localization_map(
    scores,
    points,
    boxes: Sequence,
    box_labels: Sequence,
    box_difficult: Sequence | None = None,
    tolerance: float = TOLERANCE,
    drop_difficult: bool = True,
    min_score: float | None = None,
    method: str = "area",
    weights=None,
) -> ClassificationResult:
    """Average precision per class of classifying an image and pointing at an object of the class, and their mean.

    Arguments:
        scores: (N, C) finite, confidence in each class. Among equal scores the earlier image ranks first.
        points: (N, C, 2) x and y of the strongest response of each class, in pixels of the image, counted from 0.
        boxes: for each image (B, 4): x0, y0, x1, y1, both ends inside, counted from 0 (VOC's files count from 1).
        box_labels: for each image (B,) classes from 0 on.
        box_difficult: for each image (B,) bool, or None for none. Count crowd regions as difficult.
        tolerance: a point hits a box if x0 - tolerance <= x <= x1 + tolerance and y likewise. 0: inside the box.
        drop_difficult: an image is left out for a class of which it has difficult boxes only. False counts it like
            any other. In both cases a point on a difficult box is a hit where the image counts.
        min_score: lower scores are no detections; None keeps all.
        method: "area", "voc07" or "coco101"; see `average_precision`.
        weights: (N,) whole numbers from 0 on, how often each image occurs; see `bootstrap`. None is once.

    Returns: `positives` counts images that hold the class, not objects.
    Raises: `prm.InputError` for shapes that do not fit, numbers that are not finite, or a label not below C.
    """
    ranked = ranked_points(scores, points, boxes, box_labels, box_difficult, tolerance, drop_difficult, min_score)
    ap = ranked.average_precision(method, weights)[0]
    return ClassificationResult(ap, defined_mean(ap), ranked.positives(weights))


def ranked_points(
    scores,
    points,
    boxes: Sequence,
    box_labels: Sequence,
    box_difficult: Sequence | None = None,
    tolerance: float = TOLERANCE,
    drop_difficult: bool = True,
    min_score: float | None = None,
) -> Ranking:
    """The ranked lists behind `localization_map`, to be weighted often or drawn as curves; arguments as there."""
    scores, points = np.asarray(scores, dtype=np.float64), np.asarray(points, dtype=np.float64)
    if scores.ndim != 2 or points.shape != (*scores.shape, 2):
        found = f"{scores.shape} and {points.shape}"
        raise InputError(f"scores and points have shapes {found}; they must be (images, classes) and the same with 2")
    if not (np.isfinite(scores).all() and np.isfinite(points).all()):
        image, c = np.argwhere(~np.isfinite(scores) | ~np.isfinite(points).all(axis=2))[0]
        raise InputError(f"score or point of image {image} for class {c} is not a finite number")
    if not (np.isfinite(tolerance) and tolerance >= 0):
        raise InputError(f"tolerance {tolerance} must be a number of pixels, 0 or more")
    image, label, box, difficult = _all_boxes(boxes, box_labels, box_difficult, *scores.shape)
    point = points[image, label]
    inside = ((box[:, :2] - tolerance <= point) & (point <= box[:, 2:] + tolerance)).all(axis=1)
    present, plain, hit = (np.zeros(scores.shape, dtype=bool) for _ in range(3))
    present[image, label] = True
    plain[image[~difficult], label[~difficult]] = True
    hit[image[inside], label[inside]] = True
    positive = plain if drop_difficult else present
    listed = positive | ~present
    if min_score is not None:
        listed &= scores >= min_score
    lists = []
    for c in range(scores.shape[1]):
        mine = np.flatnonzero(listed[:, c])
        lists.append(ClassRanking.of(scores[mine, c], mine, hit[None, mine, c], positive[:, c].astype(np.int64)))
    return Ranking((float(tolerance),), len(scores), tuple(lists))


def _all_boxes(boxes, box_labels, box_difficult, images: int, classes: int):
    """Image (B,), class (B,), box (B, 4) and difficult (B,) of the boxes of all images, in one list."""
    if box_difficult is None:
        box_difficult = [np.zeros(len(labels), dtype=bool) for labels in box_labels]
    if not len(boxes) == len(box_labels) == len(box_difficult) == images:
        counts = f"{len(boxes)}, {len(box_labels)}, {len(box_difficult)}"
        raise InputError(f"boxes, box labels, difficult flags of {counts} images but scores of {images}; as many each")
    parts = [(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros((0, 4)), np.zeros(0, bool))]
    for i, (box, labels, difficult) in enumerate(zip(boxes, box_labels, box_difficult)):
        box, labels = np.asarray(box, dtype=np.float64), class_labels(labels, f"box labels of image {i}")
        box = box.reshape(-1, 4) if box.size == 0 else box
        difficult = np.asarray(difficult, dtype=bool).reshape(-1)
        if box.shape != (len(labels), 4) or len(difficult) != len(labels):
            shapes = f"boxes {box.shape}, {len(labels)} labels, {len(difficult)} difficult flags"
            raise InputError(f"image {i} has {shapes}; one label and flag for each box of x0, y0, x1, y1")
        if labels.max(initial=-1) >= classes:
            raise InputError(f"image {i} has a box of class {labels.max()} but there are {classes}, counted from 0")
        if not (box[:, :2] <= box[:, 2:]).all():  # also where a number is NaN
            k = int(np.flatnonzero(~(box[:, :2] <= box[:, 2:]).all(axis=1))[0])
            raise InputError(f"box {k} of image {i} is {box[k].tolist()}; it must be x0, y0, x1, y1 in order")
        parts.append((np.full(len(labels), i), labels, box, difficult))
    return tuple(np.concatenate(column) for column in zip(*parts))
