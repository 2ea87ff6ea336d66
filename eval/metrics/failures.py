"""What went wrong with each true instance and each prediction of an image, for a report's table of failures.

Rules compare pixel counts: the overlap of a prediction and an instance is their intersection over union; a prediction
covers an instance if at least half of the instance's pixels lie in it, and lies in an instance if at least half of its
own pixels do.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from prm import InputError

from .masks import class_labels, finite_scores, one_each

OUTCOMES = ("found", "wrong class", "merged", "split", "loose", "missed")
VERDICTS = ("hit", "duplicate", "false alarm")


@dataclass(frozen=True, eq=False)
class Failures:
    """The outcome of G true instances and the verdict on K predictions of one image."""

    outcomes: np.ndarray
    """(G,) text, each of `OUTCOMES`."""
    verdicts: np.ndarray
    """(K,) text, each of `VERDICTS`."""
    wanted: np.ndarray
    """(K,) int64, the instance of its class that each prediction overlaps most (the first, if several); -1 for none."""


def failures(
    common, areas, labels, scores, true_areas, true_labels, threshold: float = 0.5, loose: float = 0.1
) -> Failures:
    """Sort the true instances and the predictions of one image, each into exactly one category.

    Predictions, by falling score (the earlier first), each with the instance of its class that it overlaps most:
        hit           the overlap is at least `threshold`, and no earlier hit has taken the instance
        duplicate     the overlap is at least `threshold`, but an earlier hit has taken it
        false alarm   anything else
    True instances, by the first rule that fits:
        found         a hit has taken it
        wrong class   a prediction of another class overlaps it by at least `threshold`
        merged        a prediction of its class covers it and at least one more instance of the class
        split         at least two predictions of its class lie in it
        loose         a prediction of its class overlaps it by at least `loose`
        missed        anything else

    Arguments:
        common: (K, G) pixels in common, as `pixel_counts` returns them with areas (K,) and true_areas (G,).
        labels, scores: (K,) of the predictions. true_labels: (G,).
        threshold, loose: overlaps, 0 < loose <= threshold <= 1.

    Raises: `prm.InputError` for numbers that do not fit or other thresholds.
    """
    labels, true_labels = class_labels(labels, "labels"), class_labels(true_labels, "true labels")
    scores = finite_scores(scores)
    areas, true_areas = np.asarray(areas, dtype=np.int64), np.asarray(true_areas, dtype=np.int64)
    common = np.asarray(common, dtype=np.int64).reshape(len(areas), len(true_areas))
    one_each(len(areas), labels, scores, len(true_areas), true_labels)
    if not 0 < loose <= threshold <= 1:
        raise InputError(f"loose {loose} and threshold {threshold} must be 0 < loose <= threshold <= 1")
    ious = common / np.maximum(areas[:, None] + true_areas[None, :] - common, 1)
    same = labels[:, None] == true_labels[None, :]
    verdicts, wanted, taken = _verdicts(np.where(same, ious, -1.0), scores, threshold)
    covers = same & (2 * common >= true_areas) & (true_areas > 0)
    inside = same & (2 * common >= areas[:, None]) & (areas > 0)[:, None]
    outcomes = np.select(
        [
            taken,
            (~same & (ious >= threshold)).any(axis=0),
            (covers & (covers.sum(axis=1) >= 2)[:, None]).any(axis=0),
            inside.sum(axis=0) >= 2,
            (same & (ious >= loose)).any(axis=0),
        ],
        OUTCOMES[:-1],
        OUTCOMES[-1],
    )
    return Failures(outcomes, verdicts, wanted)


def _verdicts(ious: np.ndarray, scores: np.ndarray, threshold: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Verdicts (K,), wanted instances (K,) and which instances are taken (G,); `ious` is -1 for another class."""
    count, instances = ious.shape
    verdicts, wanted = np.full(count, "false alarm"), np.full(count, -1)
    taken = np.zeros(instances, dtype=bool)
    if instances == 0:
        return verdicts, wanted, taken
    best = ious.max(axis=1)
    wanted = np.where(best >= 0, ious.argmax(axis=1), -1)
    for k in np.argsort(-scores, kind="stable"):
        if best[k] >= threshold:
            verdicts[k] = "duplicate" if taken[wanted[k]] else "hit"
            taken[wanted[k]] = True
    return verdicts, wanted, taken


def failure_counts(images: Iterable[Failures]) -> tuple[dict[str, int], dict[str, int]]:
    """How many true instances of each outcome and predictions of each verdict there are in a set; 0 where none."""
    images = list(images)
    outcomes = Counter(outcome for image in images for outcome in image.outcomes.tolist())
    verdicts = Counter(verdict for image in images for verdict in image.verdicts.tolist())
    return {name: outcomes[name] for name in OUTCOMES}, {name: verdicts[name] for name in VERDICTS}
