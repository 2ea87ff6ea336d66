"""Instance segmentation: mAP^r (average precision of masks, by overlap) and ABO (average best overlap).

Masks are needed one image at a time: `image_record` boils an image down to its overlap matrix, and the records of all
images then go to `mean_average_precision` and `average_best_overlap`.

The overlap of masks A and B is |A and B| / |A or B|, and 0 if both are empty.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from prm import InputError

from .classification import average_precision, defined_mean

MATCHINGS = ("voc", "best_free")


@dataclass(frozen=True)
class ImageRecord:
    """What the metrics need of one image with K predicted and G true instances."""

    ious: np.ndarray
    """(K, G) float64 overlaps."""
    labels: np.ndarray
    """(K,) int64 classes of the predictions."""
    scores: np.ndarray
    """(K,) float64, finite."""
    true_labels: np.ndarray
    """(G,) int64 classes of the ground truth."""


@dataclass(frozen=True)
class InstanceResult:
    """Average precision for T overlap thresholds and C classes."""

    thresholds: tuple[float, ...]
    ap: np.ndarray
    """(T, C) float64 in 0..1; NaN for a class without ground truth."""
    mean: np.ndarray
    """(T,) float64, mean over the classes with ground truth; NaN if there are none."""
    positives: np.ndarray
    """(C,) int64, the number of true instances."""


def image_record(
    masks, labels, scores, true_masks, true_labels, void: np.ndarray | None = None, void_rule: str = "count"
) -> ImageRecord:
    """The record of one image; masks as in `image_ious`.

    Raises: `prm.InputError` for numbers of masks, labels and scores that differ, scores that are not finite or labels
    that are negative.
    """
    ious = image_ious(masks, true_masks, void, void_rule)
    labels, true_labels = _labels(labels, "labels"), _labels(true_labels, "true labels")
    scores = np.asarray(scores, dtype=np.float64).reshape(-1)
    if not len(labels) == len(scores) == ious.shape[0]:
        raise InputError(f"{ious.shape[0]} masks, {len(labels)} labels, {len(scores)} scores; one each per prediction")
    if len(true_labels) != ious.shape[1]:
        raise InputError(f"{ious.shape[1]} true masks but {len(true_labels)} true labels; one each per instance")
    if not np.all(np.isfinite(scores)):
        k = int(np.flatnonzero(~np.isfinite(scores))[0])
        raise InputError(f"score of prediction {k} is {scores[k]}; scores must be finite")
    return ImageRecord(ious, labels, scores, true_labels)


def image_ious(masks, true_masks, void: np.ndarray | None = None, void_rule: str = "count") -> np.ndarray:
    """Overlap of every predicted with every true mask of one image.

    Arguments:
        masks, true_masks: (K, H, W) and (G, H, W) bool, or lists of COCO run-length codes ({"size", "counts"}).
        void: (H, W) bool, pixels that belong to no annotated class, or None.
        void_rule: "count" leaves predictions as they are, so void pixels enlarge the union; "ignore" clears void
            pixels from the predictions first.

    Returns: (K, G) float64 in 0..1.
    Raises: `prm.InputError` for masks of different sizes or an unknown rule.
    """
    if void_rule not in ("count", "ignore"):
        raise InputError(f"void rule {void_rule!r} is not known; choose 'count' or 'ignore'")
    if len(masks) == 0 or len(true_masks) == 0:
        return np.zeros((len(masks), len(true_masks)))
    sizes = {"masks": _size(masks), "true masks": _size(true_masks)}
    if void is not None:
        sizes["void"] = np.shape(void)
    if len(set(sizes.values())) > 1:
        found = ", ".join(f"{name} {size}" for name, size in sizes.items())
        raise InputError(f"sizes differ in one image: {found}; all must have the size of the image")
    clear_void = void is not None and void_rule == "ignore"
    if isinstance(masks[0], dict) and isinstance(true_masks[0], dict) and not clear_void:
        from pycocotools import mask as coco

        return coco.iou(list(masks), list(true_masks), [0] * len(true_masks))
    masks, true_masks = _as_arrays(masks), _as_arrays(true_masks)
    if clear_void:
        masks = masks & ~np.asarray(void, dtype=bool)
    # One row a pixel: the pixels of a prediction then select whole rows, which is quick for small and large masks.
    pixels = np.ascontiguousarray(true_masks.reshape(len(true_masks), -1).T)
    common = np.stack([np.count_nonzero(pixels[mask.reshape(-1)], axis=0) for mask in masks])
    area, true_area = np.count_nonzero(masks, axis=(1, 2)), np.count_nonzero(true_masks, axis=(1, 2))
    union = area[:, None] + true_area[None, :] - common
    return common / np.maximum(union, 1)


def mean_average_precision(
    records: Iterable[ImageRecord],
    thresholds: Sequence[float] = (0.25, 0.5, 0.75),
    num_classes: int | None = None,
    matching: str = "voc",
    ap: str = "area",
) -> InstanceResult:
    """mAP^r: per class over the whole set, detections in order of score are hits or misses; then the mean over classes.

    Arguments:
        records: one per image, in a fixed order: among equal scores the earlier image, then the earlier detection,
            ranks first. Images without ground truth count, all their detections are misses.
        thresholds: a hit overlaps by at least this much, each in (0, 1].
        num_classes: C; None takes the largest label met, plus one.
        matching: which true instance of its class a detection is compared with.
            "voc": the one it overlaps most (the first, if several); a miss if an earlier detection has taken it.
            "best_free": the one it overlaps most among those not taken yet (the last, if several), as COCO does.
        ap: "area", "voc07" or "coco101"; see `average_precision`. ("ranked" is for classifiers, which find everything.)

    Raises: `prm.InputError` for an unknown option, a threshold outside (0, 1], or a label that is not below C.
    """
    records, thresholds = list(records), tuple(float(t) for t in thresholds)
    if matching not in MATCHINGS:
        raise InputError(f"matching {matching!r} is not known; choose one of {', '.join(MATCHINGS)}")
    if ap not in ("area", "voc07", "coco101"):
        raise InputError(f"average precision {ap!r} is not for instances; choose 'area', 'voc07' or 'coco101'")
    if not all(0 < t <= 1 for t in thresholds):
        raise InputError(f"overlap thresholds {thresholds} must lie above 0 and not above 1")
    num_classes = _num_classes(records, num_classes)
    result = np.full((len(thresholds), num_classes), np.nan)
    positives = np.zeros(num_classes, dtype=np.int64)
    for c in range(num_classes):
        cuts = [_of_class(record, c) for record in records]
        scores = np.concatenate([scores for scores, _ in cuts]) if cuts else np.zeros(0)
        positives[c] = sum(ious.shape[1] for _, ious in cuts)
        order = np.argsort(-scores, kind="stable")
        for t, threshold in enumerate(thresholds):
            hits = [_match(ious, threshold, matching) for _, ious in cuts]
            hits = np.concatenate(hits)[order] if cuts else np.zeros(0, dtype=bool)
            result[t, c] = average_precision(hits, int(positives[c]), ap)
    return InstanceResult(thresholds, result, np.array([defined_mean(row) for row in result]), positives)


def average_best_overlap(
    records: Iterable[ImageRecord], average: str = "instances", same_class: bool = True, num_classes: int | None = None
) -> float:
    """ABO: the best overlap of every true instance with any prediction of its image (0 if there is none), averaged.

    A prediction may be the best for several instances; scores are not used.

    Arguments:
        average: "instances", the mean over all true instances; or "class_mean", first over those of each class.
        same_class: only predictions of the instance's own class count; False takes predictions of any class.
        num_classes: as in `mean_average_precision`; checks the labels.

    Returns: a number in 0..1; NaN if there is no true instance.
    Raises: `prm.InputError` for an unknown option or a label that is not below `num_classes`.
    """
    records = list(records)
    if average not in ("instances", "class_mean"):
        raise InputError(f"average {average!r} is not known; choose 'instances' or 'class_mean'")
    num_classes = _num_classes(records, num_classes)
    best, labels = [np.zeros(0)], [np.zeros(0, dtype=np.int64)]
    for record in records:
        allowed = record.labels[:, None] == record.true_labels[None, :] if same_class else True
        best.append(np.where(allowed, record.ious, 0.0).max(axis=0, initial=0.0))
        labels.append(record.true_labels)
    best, labels = np.concatenate(best), np.concatenate(labels)
    if average == "instances":
        return defined_mean(best)
    return defined_mean([defined_mean(best[labels == c]) for c in range(num_classes)])


def _match(ious: np.ndarray, threshold: float, matching: str) -> np.ndarray:
    """(K,) bool hits of one image and class; rows of `ious` (K, G) in order of score."""
    hits, taken = np.zeros(len(ious), dtype=bool), np.zeros(ious.shape[1], dtype=bool)
    for k, row in enumerate(ious if ious.shape[1] else ()):
        if matching == "voc":
            g = int(np.argmax(row))
            hits[k] = row[g] >= threshold and not taken[g]
        else:
            free = np.where(taken, -1.0, row)
            g = len(free) - 1 - int(np.argmax(free[::-1]))
            hits[k] = free[g] >= threshold
        taken[g] |= hits[k]
    return hits


def _of_class(record: ImageRecord, c: int) -> tuple[np.ndarray, np.ndarray]:
    """The scores and overlaps of class c in one image, best score first."""
    mine = np.flatnonzero(record.labels == c)
    mine = mine[np.argsort(-record.scores[mine], kind="stable")]
    return record.scores[mine], record.ious[np.ix_(mine, record.true_labels == c)]


def _num_classes(records: list[ImageRecord], num_classes: int | None) -> int:
    largest = max((int(max(r.labels.max(initial=-1), r.true_labels.max(initial=-1))) for r in records), default=-1)
    if num_classes is not None and largest >= num_classes:
        raise InputError(f"label {largest} met but there are {num_classes} classes, counted from 0; check the labels")
    return largest + 1 if num_classes is None else num_classes


def _labels(labels, name: str) -> np.ndarray:
    labels = np.asarray(labels).reshape(-1)
    if labels.size and (labels.dtype.kind not in "iu" or labels.min() < 0):
        raise InputError(f"{name} must be class indices, whole numbers from 0 on; found {labels.dtype} {labels.min()}")
    return labels.astype(np.int64)


def _size(masks) -> tuple[int, int]:
    """The (H, W) that all masks, arrays or COCO run-length codes, of one image have."""
    sizes = {tuple(mask["size"]) if isinstance(mask, dict) else np.shape(mask) for mask in masks}
    if len(sizes) > 1 or len(min(sizes)) != 2:
        raise InputError(f"masks of one image have shapes {sorted(sizes)}; each must be (height, width) of the image")
    return sizes.pop()


def _as_arrays(masks) -> np.ndarray:
    """(K, H, W) bool of masks or of COCO run-length codes."""
    if isinstance(masks[0], dict):
        # Imported late: masks as arrays are compared without pycocotools.
        from pycocotools import mask as coco

        masks = coco.decode(list(masks)).transpose(2, 0, 1)
    return np.asarray(masks, dtype=bool)
