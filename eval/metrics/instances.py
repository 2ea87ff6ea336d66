"""Instance segmentation: mAP^r (average precision of masks, by overlap) and ABO (average best overlap).

Masks are needed one image at a time: `image_record` boils an image down to its overlap matrix, and the records of all
images then go to `mean_average_precision` and `average_best_overlap`.

The overlap of masks A and B is |A and B| / |A or B|, and 0 if both are empty.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from prm import InputError

from .bootstrap import checked_weights
from .classification import defined_mean
from .masks import as_arrays, class_labels, common_size, finite_scores, one_each, pixel_counts
from .ranking import MATCHINGS, Ranking, by_class, class_count, match, ranking


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
    labels, true_labels = class_labels(labels, "labels"), class_labels(true_labels, "true labels")
    scores = finite_scores(scores)
    one_each(ious.shape[0], labels, scores, ious.shape[1], true_labels)
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
    size = common_size(masks=masks, true_masks=true_masks, void=None if void is None else np.asarray(void)[None])
    if void is not None and void_rule == "ignore":
        masks = as_arrays(masks, size) & ~np.asarray(void, dtype=bool)
    common, area, true_area = pixel_counts(masks, true_masks)
    return common / np.maximum(area[:, None] + true_area[None, :] - common, 1)


def mean_average_precision(
    records: Iterable[ImageRecord],
    thresholds: Sequence[float] = (0.25, 0.5, 0.75),
    num_classes: int | None = None,
    matching: str = "voc",
    ap: str = "area",
    weights=None,
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
        weights: (N,) whole numbers from 0 on, how often each image occurs; see `bootstrap`. None is once.

    Raises: `prm.InputError` for an unknown option, a threshold outside (0, 1], a label that is not below C, or weights
    that are not one for each image.
    """
    ranked = ranked_detections(records, thresholds, num_classes, matching)
    result = ranked.average_precision(ap, weights)
    mean = np.array([defined_mean(row) for row in result])
    return InstanceResult(ranked.thresholds, result, mean, ranked.positives(weights))


def ranked_detections(
    records: Iterable[ImageRecord],
    thresholds: Sequence[float] = (0.25, 0.5, 0.75),
    num_classes: int | None = None,
    matching: str = "voc",
) -> Ranking:
    """The ranked lists behind `mean_average_precision`, to be weighted often or drawn as curves; arguments as there."""
    records, thresholds = list(records), tuple(float(t) for t in thresholds)
    if matching not in MATCHINGS:
        raise InputError(f"matching {matching!r} is not known; choose one of {', '.join(MATCHINGS)}")
    if not all(0 < t <= 1 for t in thresholds):
        raise InputError(f"overlap thresholds {thresholds} must lie above 0 and not above 1")
    num_classes = class_count((labels for r in records for labels in (r.labels, r.true_labels)), num_classes)
    entries = (
        (image, c, scores, match(ious, thresholds, matching), ious.shape[1])
        for image, r in enumerate(records)
        for c, scores, ious in by_class(r.ious, r.labels, r.scores, r.true_labels)
    )
    return ranking(entries, thresholds, len(records), num_classes)


@dataclass(frozen=True, eq=False)
class BestOverlaps:
    """The best overlap of each of G true instances in N images with a prediction."""

    best: np.ndarray
    """(G,) float64 in 0..1; 0 where there is no prediction."""
    labels: np.ndarray
    """(G,) int64 classes, below `num_classes`."""
    images: np.ndarray
    """(G,) int64, the image of each."""
    count: int
    """N."""
    num_classes: int

    def per_class(self, weights=None) -> np.ndarray:
        """(C,) float64, the mean over the true instances of each class; NaN where there are none.

        weights: (N,) whole numbers from 0 on, how often each image occurs; None is once.
        """
        best, labels = self._sampled(weights)
        return np.array([defined_mean(best[labels == c]) for c in range(self.num_classes)])

    def mean(self, average: str = "instances", weights=None) -> float:
        """ABO; `average` and the answer as in `average_best_overlap`, `weights` as in `per_class`."""
        if average not in ("instances", "class_mean"):
            raise InputError(f"average {average!r} is not known; choose 'instances' or 'class_mean'")
        return defined_mean(self._sampled(weights)[0] if average == "instances" else self.per_class(weights))

    def _sampled(self, weights) -> tuple[np.ndarray, np.ndarray]:
        times = checked_weights(weights, self.count)[self.images]
        return np.repeat(self.best, times), np.repeat(self.labels, times)


def best_overlaps(
    records: Iterable[ImageRecord], same_class: bool = True, num_classes: int | None = None
) -> BestOverlaps:
    """What `average_best_overlap` averages; arguments as there."""
    records = list(records)
    num_classes = class_count((labels for r in records for labels in (r.labels, r.true_labels)), num_classes)
    best, labels, images = [np.zeros(0)], [np.zeros(0, dtype=np.int64)], [np.zeros(0, dtype=np.int64)]
    for image, record in enumerate(records):
        allowed = record.labels[:, None] == record.true_labels[None, :] if same_class else True
        best.append(np.where(allowed, record.ious, 0.0).max(axis=0, initial=0.0))
        labels.append(record.true_labels)
        images.append(np.full(len(record.true_labels), image))
    return BestOverlaps(
        np.concatenate(best), np.concatenate(labels), np.concatenate(images), len(records), num_classes
    )


def average_best_overlap(
    records: Iterable[ImageRecord],
    average: str = "instances",
    same_class: bool = True,
    num_classes: int | None = None,
    weights=None,
) -> float:
    """ABO: the best overlap of every true instance with any prediction of its image (0 if there is none), averaged.

    A prediction may be the best for several instances; scores are not used.

    Arguments:
        average: "instances", the mean over all true instances; or "class_mean", first over those of each class.
        same_class: only predictions of the instance's own class count; False takes predictions of any class.
        num_classes: as in `mean_average_precision`; checks the labels.
        weights: (N,) whole numbers from 0 on, how often each image occurs; None is once.

    Returns: a number in 0..1; NaN if there is no true instance.
    Raises: `prm.InputError` for an unknown option, a label that is not below `num_classes`, or bad weights.
    """
    return best_overlaps(records, same_class, num_classes).mean(average, weights)
