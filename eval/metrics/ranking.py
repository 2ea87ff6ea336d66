"""Ranked lists: the detections of each class over a whole set, best first, each with the image it comes from.

Whether a detection is a hit depends on its own image alone, so it is found once. The average precision of the set, and
of every sample of its images (see `bootstrap`), then follows from the lists.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from prm import InputError

from .bootstrap import checked_weights
from .classification import average_precision, defined_mean

METHODS = ("area", "voc07", "coco101")
MATCHINGS = ("voc", "best_free")


class PrecisionRecall(NamedTuple):
    """A curve with one point for each of D detections, best first."""

    precision: np.ndarray
    """(D,) float64, not made monotone."""
    recall: np.ndarray
    """(D,) float64; NaN if there was nothing to find."""
    scores: np.ndarray
    """(D,) float64."""


@dataclass(frozen=True, eq=False)
class ClassRanking:
    """D detections of one class in N images, best score first; equal scores by image, then as the image lists them."""

    scores: np.ndarray
    """(D,) float64, falling."""
    images: np.ndarray
    """(D,) int64, the image of each detection."""
    hits: np.ndarray
    """(T, D) bool, for T thresholds."""
    positives: np.ndarray
    """(N,) int64, how many there are to find in each image."""

    @classmethod
    def of(cls, scores: np.ndarray, images: np.ndarray, hits: np.ndarray, positives: np.ndarray) -> "ClassRanking":
        """The same arrays with the detections by rising image, and those of an image in any order."""
        order = np.argsort(-scores, kind="stable")
        return cls(scores[order], images[order], hits[:, order], positives)

    def sampled(self, weights: np.ndarray | None) -> tuple[np.ndarray | slice, int]:
        """The detections as indices into the list, and the number of positives, where images occur `weights` times."""
        if weights is None:
            return slice(None), int(self.positives.sum())
        starts, lengths = self._blocks
        sizes = lengths * weights[self.images[starts]]
        block = np.repeat(np.arange(len(starts)), sizes)
        within = np.arange(len(block)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        return starts[block] + within % lengths[block], int(weights @ self.positives)

    @cached_property
    def _blocks(self) -> tuple[np.ndarray, np.ndarray]:
        """Starts and lengths of the stretches of one score in one image.

        They are what is repeated: two copies of an image with tied detections a, b rank as a, b, a, b.
        """
        new = np.ones(len(self.scores), dtype=bool)
        new[1:] = (self.scores[1:] != self.scores[:-1]) | (self.images[1:] != self.images[:-1])
        starts = np.flatnonzero(new)
        return starts, np.diff(np.append(starts, len(new)))


@dataclass(frozen=True, eq=False)
class Ranking:
    """The ranked lists of C classes in N images, their hits judged at T thresholds.

    `weights` of the methods, (N,) whole numbers from 0 on, tell how often each image occurs; None is once.
    """

    thresholds: tuple[float, ...]
    images: int
    """N."""
    classes: tuple[ClassRanking, ...]

    def positives(self, weights=None) -> np.ndarray:
        """(C,) int64, how many there were to find."""
        weights = checked_weights(weights, self.images)
        return np.array([weights @ one.positives for one in self.classes], dtype=np.int64)

    def average_precision(self, ap: str = "area", weights=None) -> np.ndarray:
        """(T, C) float64 in 0..1, NaN for a class without positives; `ap` as in `classification.average_precision`.

        Raises: `prm.InputError` for "ranked", which is for classifiers: they find everything; and for bad weights.
        """
        if ap not in METHODS:
            raise InputError(f"average precision {ap!r} is not for instances; choose 'area', 'voc07' or 'coco101'")
        weights = None if weights is None else checked_weights(weights, self.images)
        result = np.full((len(self.thresholds), len(self.classes)), np.nan)
        for c, one in enumerate(self.classes):
            chosen, positives = one.sampled(weights)
            result[:, c] = [average_precision(hits[chosen], positives, ap) for hits in one.hits]
        return result

    def mean_average_precision(self, ap: str = "area", weights=None) -> np.ndarray:
        """(T,) float64, the mean over the classes with positives; NaN if there are none."""
        return np.array([defined_mean(row) for row in self.average_precision(ap, weights)])

    def precision_recall(self, label: int, threshold: int = 0, weights=None) -> PrecisionRecall:
        """The curve of one class at the threshold of that index."""
        one = self.classes[label]
        chosen, positives = one.sampled(None if weights is None else checked_weights(weights, self.images))
        found = np.cumsum(one.hits[threshold][chosen])
        recall = found / positives if positives else np.full(len(found), np.nan)
        return PrecisionRecall(found / np.arange(1, len(found) + 1), recall, one.scores[chosen])


def ranking(
    entries: Iterable[tuple[int, int, np.ndarray, np.ndarray, int]],
    thresholds: Sequence[float],
    images: int,
    num_classes: int,
) -> Ranking:
    """The lists of a set from what its images hold.

    entries: an image's index, rising; a class; its detections' scores (K,), in order of rank, and hits (T, K); and how
    many there are to find. Image and class come together once at most; pairs with nothing at all may be left out.
    """
    parts: list[tuple[list[np.ndarray], ...]] = [([], [], []) for _ in range(num_classes)]
    positives = np.zeros((num_classes, images), dtype=np.int64)
    for image, c, scores, hits, count in entries:
        for part, value in zip(parts[c], (scores, np.full(len(scores), image), hits)):
            part.append(value)
        positives[c, image] = count
    empty = np.zeros(0), np.zeros(0, dtype=np.int64), np.zeros((len(thresholds), 0), dtype=bool)
    classes = []
    for lists, found in zip(parts, positives):
        scores, where, hits = (np.concatenate([none, *part], axis=-1) for none, part in zip(empty, lists))
        classes.append(ClassRanking.of(scores, where, hits, found))
    return Ranking(tuple(thresholds), images, tuple(classes))


def by_class(
    values: np.ndarray, labels: np.ndarray, scores: np.ndarray, true_labels: np.ndarray
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Each class met in one image, its detections' scores (k,), best first, and their rows of `values` (k, g).

    values: (K, G), one row a detection, one column a true instance.
    """
    for c in np.union1d(labels, true_labels):
        mine = np.flatnonzero(labels == c)
        mine = mine[np.argsort(-scores[mine], kind="stable")]
        yield int(c), scores[mine], values[np.ix_(mine, true_labels == c)]


def match(values: np.ndarray, thresholds: Sequence[float], matching: str) -> np.ndarray:
    """(T, K) bool hits of one image and class; rows of `values` (K, G) in order of score, a hit >= its threshold > 0.

    matching: "voc" or "best_free", see `instances.mean_average_precision`.
    """
    least = np.asarray(thresholds, dtype=np.float64)
    hits = np.zeros((len(least), len(values)), dtype=bool)
    if not values.size:
        return hits
    best = values.max(axis=1)
    if matching == "voc":
        wanted = values.argmax(axis=1)
        for hit, threshold in zip(hits, least):
            enough = np.flatnonzero(best >= threshold)
            # Of the detections that want one true instance, the first has it.
            hit[enough[np.unique(wanted[enough], return_index=True)[1]]] = True
        return hits
    rows = np.arange(len(least))
    taken = np.zeros((len(least), values.shape[1]), dtype=bool)
    for k in np.flatnonzero(best >= least.min(initial=np.inf)):
        free = np.where(taken, -1.0, values[k])
        last = values.shape[1] - 1 - free[:, ::-1].argmax(axis=1)
        hits[:, k] = free[rows, last] >= least
        taken[rows, last] |= hits[:, k]
    return hits


def class_count(labels: Iterable[np.ndarray], num_classes: int | None) -> int:
    """`num_classes`, or the largest label met plus one; raises `prm.InputError` for a label that is not below it."""
    largest = max((int(some.max(initial=-1)) for some in labels), default=-1)
    if num_classes is not None and largest >= num_classes:
        raise InputError(f"label {largest} met but there are {num_classes} classes, counted from 0; check the labels")
    return largest + 1 if num_classes is None else num_classes
