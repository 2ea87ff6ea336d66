"""Quality of Peak Response Maps: the share of a map's sum that lies inside an instance.

q(R, G) = sum(R over G) / sum(R), 0 for a map without any response. A map is good if its largest q with an instance of
its class exceeds 0.5. What a second good map on one instance counts, and what there was to find, the paper does not
say, so there are three readings, and a number means little without the reading's name:

    greedy       in order of score, the first good map of an instance is a hit and later ones are misses; to be found
                 are all instances; the default
    independent  every good map is a hit; to be found are the hits, so only false maps lower the figure
    per_image    the strongest map of each image and class is judged alone; to be found are the images with the class
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from prm import InputError

from .classification import defined_mean
from .masks import as_arrays, class_labels, common_size, finite_scores, one_each
from .ranking import Ranking, by_class, class_count, match, ranking

VARIANTS = ("greedy", "independent", "per_image")
GROUPS = ((1, 1), (2, 5), (6, None))
BINS = (0.0, 0.01, 0.03, 0.1, 0.3, 1.0)


@dataclass(frozen=True, eq=False)
class ResponseRecord:
    """What the metrics need of one image with K Peak Response Maps and G true instances."""

    q: np.ndarray
    """(K, G) float64, the share of each map inside each instance."""
    labels: np.ndarray
    """(K,) int64 classes of the maps."""
    scores: np.ndarray
    """(K,) float64, finite: the responses of the peaks."""
    true_labels: np.ndarray
    """(G,) int64 classes of the ground truth."""
    true_areas: np.ndarray
    """(G,) int64, pixels of each instance."""
    image_area: int
    """Pixels of the image."""
    background: np.ndarray
    """(K,) float64, the share of each map outside every instance and void pixel."""


@dataclass(frozen=True, eq=False)
class QualityResult:
    """Average precision of the maps of C classes."""

    ap: np.ndarray
    """(C,) float64 in 0..1; NaN for a class without anything to find."""
    mean: float
    """Mean of `ap` over the other classes; NaN if there are none."""
    positives: np.ndarray
    """(C,) int64, how many there were to find: instances, hits or images, as the variant has it."""


@dataclass(frozen=True, eq=False)
class QualityGroup:
    """The maps of one group of images or instances. All of its figures but the counts are NaN where it has no maps."""

    low: float
    high: float | None
    """The group's bounds; None is without bound."""
    images: int
    """How many images: with so many objects; or with a map on an instance of such a size."""
    maps: int
    """How many maps."""
    inside: float
    """Mean over the maps of the share inside the best instance of the class."""
    deviation: float
    """Standard deviation of the same (divided by the number of maps)."""
    quartiles: np.ndarray
    """(3,) the same at 25, 50 and 75 % of the maps."""
    background: float
    """Mean over the maps of the share outside every instance."""


def inside_fractions(prms, masks, void=None, void_rule: str = "keep") -> np.ndarray:
    """q of every map with every mask of one image.

    Arguments:
        prms: (K, H, W) finite numbers from 0 on.
        masks: (G, H, W) bool, or a list of COCO run-length codes.
        void: (H, W) bool, pixels of which nobody says what they are, or None.
        void_rule: "keep" counts void pixels in the sum of R, as the formula is written; "drop" in neither sum.

    Returns: (K, G) float64 in 0..1 but for rounding; 0 for a map whose sum is 0.
    Raises: `prm.InputError` for sizes that differ, negative or non-finite responses, or an unknown rule.
    """
    if void_rule not in ("keep", "drop"):
        raise InputError(f"void rule {void_rule!r} is not known; choose 'keep' or 'drop'")
    prms = np.asarray(prms)
    common_size(prms=prms, masks=masks, void=None if void is None else np.asarray(void)[None])
    if len(prms) == 0 or len(masks) == 0:
        return np.zeros((len(prms), len(masks)))
    if not (np.isfinite(prms).all() and prms.min() >= 0):
        raise InputError("a Peak Response Map holds a negative or non-finite number; responses are 0 or more")
    counted = np.ones(prms.shape[1:], dtype=bool)
    if void is not None and void_rule == "drop":
        counted = ~np.asarray(void, dtype=bool)
    total = prms.sum(axis=(1, 2), where=counted, dtype=np.float64)[:, None]
    inside = np.stack([prms[:, mask & counted].sum(axis=1, dtype=np.float64) for mask in as_arrays(masks)], axis=1)
    return np.divide(inside, total, out=np.zeros_like(inside), where=total > 0)


def response_record(
    prms, labels, scores, true_masks, true_labels, void=None, void_rule: str = "keep"
) -> ResponseRecord:
    """The record of one image; prms (K, H, W), true_masks, void and its rule as in `inside_fractions`.

    Raises: `prm.InputError` as there, and as `image_record`.
    """
    prms = np.asarray(prms)
    if prms.ndim != 3:
        raise InputError(f"Peak Response Maps have shape {prms.shape}; they must be (maps, height, width)")
    labels, true_labels = class_labels(labels, "labels"), class_labels(true_labels, "true labels")
    scores = finite_scores(scores)
    one_each(len(prms), labels, scores, len(true_masks), true_labels)
    q = inside_fractions(prms, true_masks, void, void_rule)
    true_masks = as_arrays(true_masks, prms.shape[1:])
    outside = ~true_masks.any(axis=0)
    if void is not None:
        outside &= ~np.asarray(void, dtype=bool)
    background = inside_fractions(prms, outside[None], void, void_rule)[:, 0]
    areas = np.count_nonzero(true_masks, axis=(1, 2))
    return ResponseRecord(q, labels, scores, true_labels, areas, outside.size, background)


def response_map_quality(
    records: Iterable[ResponseRecord],
    variant: str = "greedy",
    threshold: float = 0.5,
    num_classes: int | None = None,
    ap: str = "area",
    weights=None,
) -> QualityResult:
    """Average precision of the maps of each class, and their mean.

    Arguments:
        records: one per image, in a fixed order: among equal scores the earlier image, then the earlier map, ranks
            first. The instance of a map is the one of its class with the largest q (the first, if several).
        variant: "greedy", "independent" or "per_image"; see the module's text.
        threshold: a good map has a larger q than this, in [0, 1).
        num_classes: C; None takes the largest label met, plus one.
        ap: "area", "voc07" or "coco101"; see `average_precision`.
        weights: (N,) whole numbers from 0 on, how often each image occurs; see `bootstrap`. None is once.

    Raises: `prm.InputError` for an unknown option, another threshold, a label that is not below C, or bad weights.
    """
    ranked = ranked_responses(records, variant, threshold, num_classes)
    result = ranked.average_precision(ap, weights)[0]
    return QualityResult(result, defined_mean(result), ranked.positives(weights))


def ranked_responses(
    records: Iterable[ResponseRecord],
    variant: str = "greedy",
    threshold: float = 0.5,
    num_classes: int | None = None,
) -> Ranking:
    """The ranked lists behind `response_map_quality`, to be weighted often or drawn; arguments as there."""
    records = list(records)
    if variant not in VARIANTS:
        raise InputError(f"variant {variant!r} is not known; choose one of {', '.join(VARIANTS)}")
    if not 0 <= threshold < 1:
        raise InputError(f"threshold {threshold} must be 0 or more and below 1")
    num_classes = class_count((labels for r in records for labels in (r.labels, r.true_labels)), num_classes)
    return ranking(_judged(records, variant, threshold), (float(threshold),), len(records), num_classes)


def _judged(records: list[ResponseRecord], variant: str, threshold: float):
    """The entries for `ranking`: image, class, scores (k,), hits (1, k), how many there are to find."""
    for image, record in enumerate(records):
        for c, scores, q in by_class(record.q, record.labels, record.scores, record.true_labels):
            if variant == "greedy":
                # To exceed the threshold is to reach the next number.
                yield image, c, scores, match(q, [np.nextafter(threshold, 1)], "voc"), q.shape[1]
                continue
            hits = (q.max(axis=1, initial=0.0) > threshold)[None]
            if variant == "independent":
                yield image, c, scores, hits, int(hits.sum())
            else:
                yield image, c, scores[:1], hits[:, :1], int(q.shape[1] > 0)


def quality_by_crowding(
    records: Iterable[ResponseRecord], groups: Sequence[tuple[int, int | None]] = GROUPS, absent: str = "zero"
) -> list[QualityGroup]:
    """How the maps fare in images with few and with many objects.

    Arguments:
        groups: the smallest and the largest number of objects, of whatever class, None for no largest.
        absent: a map whose class the image does not hold counts as 0 inside ("zero"), or not at all ("drop").

    Raises: `prm.InputError` for an unknown option.
    """
    if absent not in ("zero", "drop"):
        raise InputError(f"absent {absent!r} is not known; choose 'zero' or 'drop'")
    records, result = list(records), []
    for low, high in groups:
        chosen = [r for r in records if low <= len(r.true_labels) and (high is None or len(r.true_labels) <= high)]
        inside = [_best(r)[0] for r in chosen]
        keep = [np.isin(r.labels, r.true_labels) | (absent == "zero") for r in chosen]
        result.append(_group(low, high, len(chosen), inside, [r.background for r in chosen], keep))
    return result


def quality_by_size(records: Iterable[ResponseRecord], bins: Sequence[float] = BINS) -> list[QualityGroup]:
    """How the maps fare on small and on large instances.

    A map belongs to the instance of its class with the largest q (the first, if several). A map without any response
    inside an instance of its class belongs to none and is left out.

    bins: rising bounds of an instance's share of the image's area; each group holds its lower bound, and the last its
        upper bound, too.
    Raises: `prm.InputError` for bounds that do not rise.
    """
    bins = [float(b) for b in bins]
    if len(bins) < 2 or not all(a < b for a, b in pairwise(bins)):
        raise InputError(f"bins {bins} must be two or more rising shares of the image's area")
    records = list(records)
    shares, inside = [], []
    for record in records:
        q, instance = _best(record)
        share = np.append(record.true_areas / record.image_area, np.nan)
        shares.append(np.where(q > 0, share[instance], np.nan))
        inside.append(q)
    result = []
    for low, high in pairwise(bins):
        keep = [(low <= share) & ((share < high) | ((high == bins[-1]) & (share == high))) for share in shares]
        images = sum(bool(some.any()) for some in keep)
        result.append(_group(low, high, images, inside, [r.background for r in records], keep))
    return result


def _best(record: ResponseRecord) -> tuple[np.ndarray, np.ndarray]:
    """(K,) the largest q of each map with an instance of its class, and (K,) that instance; 0 and -1 for none."""
    if record.q.shape[1] == 0:
        return np.zeros(len(record.q)), np.full(len(record.q), -1)
    q = np.where(record.labels[:, None] == record.true_labels[None, :], record.q, -1.0)
    best = q.max(axis=1)
    return np.maximum(best, 0.0), np.where(best >= 0, q.argmax(axis=1), -1)


def _group(low, high, images: int, insides: list, backgrounds: list, keep: list) -> QualityGroup:
    """A group from one array an image: the maps' shares inside and in the background, and which of them it holds."""
    inside, background = (
        np.concatenate([np.zeros(0), *(values[use] for values, use in zip(arrays, keep))])
        for arrays in (insides, backgrounds)
    )
    some = len(inside) > 0
    return QualityGroup(
        low,
        high,
        images,
        len(inside),
        defined_mean(inside),
        float(inside.std()) if some else float("nan"),
        np.quantile(inside, [0.25, 0.5, 0.75]) if some else np.full(3, np.nan),
        defined_mean(background),
    )
