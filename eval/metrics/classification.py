"""Average precision: of a ranked list of hits and misses, and of a multi-label classifier.

Four definitions are in use and differ by points, so each is named:

    area      area under the precision-recall curve with precision made monotone (PASCAL VOC from 2010); the default
    voc07     mean of the best precision at recall 0, 0.1, ..., 1 (PASCAL VOC until 2009)
    coco101   the same at recall 0, 0.01, ..., 1 (COCO)
    ranked    mean of the precision at every positive, not made monotone (information retrieval, WILDCAT)
"""

from dataclasses import dataclass

import numpy as np

from prm import InputError

from .bootstrap import checked_weights

METHODS = ("area", "voc07", "coco101", "ranked")


@dataclass(frozen=True)
class ClassificationResult:
    """Average precision of every class, and their mean."""

    ap: np.ndarray
    """(C,) float64 in 0..1; NaN for a class without positives."""
    mean: float
    """Mean of `ap` over the classes with positives; NaN if there are none."""
    positives: np.ndarray
    """(C,) int64, the number of positive images."""


def average_precision(hits, positives: int, method: str = "area") -> float:
    """Average precision of a ranked list.

    Arguments:
        hits: (N,) bool, best-scored detection first: whether it is right.
        positives: how many there were to find (found or not).
        method: "area", "voc07", "coco101" or "ranked"; see the module's text.

    Returns: a number in 0..1; NaN if there was nothing to find, whatever was detected.
    Raises: `prm.InputError` for an unknown method, or more hits than positives.
    """
    hits = np.asarray(hits, dtype=bool)
    if method not in METHODS:
        raise InputError(f"average precision {method!r} is not known; choose one of {', '.join(METHODS)}")
    if hits.sum() > positives:
        raise InputError(f"{hits.sum()} hits but only {positives} positives; each positive can be found once")
    if positives == 0:
        return float("nan")
    found = np.cumsum(hits)
    precision = found / np.arange(1, len(hits) + 1)
    if method == "ranked":
        return float(precision[hits].sum() / positives)
    # The best precision at this recall or any higher one.
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    if method == "area":
        # Recall rises by 1 / positives at every hit and nowhere else.
        return float(envelope[hits].sum() / positives)
    # Levels and recall are compared as floats: level 3 * 0.1 is 0.30000000000000004, so recall 3/10 does not reach it.
    levels = np.arange(11) * 0.1 if method == "voc07" else np.linspace(0, 1, 101)
    first = np.searchsorted(found / positives, levels, side="left")
    return float(np.append(envelope, 0.0)[first].mean())


def classification_map(scores, labels, difficult=None, method: str = "area", weights=None) -> ClassificationResult:
    """Average precision per class of image-level scores, and their mean (mAP).

    Arguments:
        scores: (N, C) finite numbers, higher is more likely present. Among equal scores the earlier image ranks first.
        labels: (N, C) bool or 0/1: the class is present.
        difficult: (N, C) bool or None: left out, neither positive nor negative.
        method: as in `average_precision`.
        weights: (N,) whole numbers from 0 on, how often each image occurs; see `bootstrap`. None is once.

    Raises: `prm.InputError` for shapes that differ, scores that are not finite, labels other than 0 and 1, bad weights.
    """
    scores, labels = np.asarray(scores, dtype=np.float64), np.asarray(labels)
    difficult = np.zeros(labels.shape, dtype=bool) if difficult is None else np.asarray(difficult, dtype=bool)
    if scores.ndim != 2 or scores.shape != labels.shape or scores.shape != difficult.shape:
        shapes = f"{scores.shape}, {labels.shape}, {difficult.shape}"
        raise InputError(f"scores, labels, difficult have shapes {shapes}; each must be (images, classes)")
    if not np.all(np.isfinite(scores)):
        image, c = np.argwhere(~np.isfinite(scores))[0]
        raise InputError(f"score of image {image} for class {c} is {scores[image, c]}; scores must be finite")
    if not np.all((labels == 0) | (labels == 1)):
        raise InputError("labels must be 0 or 1; give doubtful ones in 'difficult'")
    labels = labels.astype(bool)
    times = checked_weights(weights, len(labels))
    ap = np.full(labels.shape[1], np.nan)
    for c in range(len(ap)):
        order = np.argsort(-scores[:, c], kind="stable")
        order = order[~difficult[order, c]]
        hits = np.repeat(labels[order, c], times[order])
        ap[c] = average_precision(hits, int(hits.sum()), method)
    return ClassificationResult(ap=ap, mean=defined_mean(ap), positives=times @ (labels & ~difficult))


def defined_mean(values) -> float:
    """Mean of the values that are not NaN; NaN if none is."""
    values = np.asarray(values, dtype=np.float64)
    values = values[~np.isnan(values)]
    return float(values.mean()) if values.size else float("nan")
