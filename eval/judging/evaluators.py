"""Evaluators: from the records of all pictures to the figures of one run, JSON that tables and the report are made of.

Each takes records in, with the class names and the number of bootstrap samples behind its intervals (95 %, over
pictures; 0 for none), and hands figures out: an empty dict where the records lack what it needs. Every share is in
0..1. An undefined figure (no such class, no masks) is None.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ..metrics import (
    CocoPredictions,
    CocoTruths,
    ImageRecord,
    best_overlaps,
    bootstrap,
    classification_map,
    coco_average_precision,
    failure_counts,
    mean_iou,
    quality_by_crowding,
    quality_by_size,
    ranked_detections,
    ranked_points,
    ranked_responses,
)
from ..metrics.classification import defined_mean
from ..metrics.coco import PROTOCOLS
from .record import ANSWER, Record, failures_of, image_record_of, response_record_of

THRESHOLDS = (0.25, 0.5, 0.75)
TOLERANCES = (18.0, 0.0)
CURVE_POINTS = 200
Evaluator = Callable[[Sequence[Record], Sequence[str], int], dict]


def figures_of(
    records: Sequence[Record], class_names: Sequence[str], samples: int = 500,
    evaluators: Sequence[Evaluator] | None = None,
) -> dict:  # fmt: skip
    """What all evaluators, or those given, make of the records."""
    figures = {}
    for evaluate in EVALUATORS if evaluators is None else evaluators:
        figures |= evaluate(records, class_names, samples)
    return figures


def _masked(records: Sequence[Record]) -> list[Record]:
    return [one for one in records if one.truth is not None]


def _studied(records: Sequence[Record]) -> list[Record]:
    """Those with masks, of a run with a network that was judged for the tables."""
    return [one for one in _masked(records) if one.quality]


# ---- the evaluators


def pictures(records, class_names, samples) -> dict:
    """How many there are, and the mean seconds of a picture by stage."""
    stages = {stage for one in records for stage in one.seconds}
    seconds = {s: float(np.mean([one.seconds.get(s, 0.0) for one in records])) for s in sorted(stages)}
    counted = {"pictures_with_masks": len(_masked(records))} if _masked(records) else {}
    return {"pictures": len(records), "seconds_per_picture": seconds} | counted


def classification(records, class_names, samples) -> dict:
    """mAP of the class scores."""
    if any(one.scores is None for one in records):
        return {}
    scores, present = np.stack([one.scores for one in records]), np.stack([one.present for one in records])
    given = scores, present == 1, present == -1
    found = classification_map(*given)
    interval = _interval(lambda w: classification_map(*given, weights=w).mean, len(records), samples)
    figures = {"mAP": _number(found.mean), "interval": interval, "per_class": _per_class(found.ap, class_names)}
    return {"classification": figures}


def localization(records, class_names, samples) -> dict:
    """Table 1: pointwise localization, by tolerance in pixels."""
    boxed = [one for one in records if one.boxes is not None]
    if not boxed or any(one.points is None for one in records):
        return {}

    def judged(tolerance: float) -> dict:
        ranked = ranked_points(
            np.stack([one.scores for one in boxed]), np.stack([one.points for one in boxed]),
            [one.boxes for one in boxed], [one.box_labels for one in boxed], [one.box_difficult for one in boxed],
            tolerance,
        )  # fmt: skip
        return _ranked(ranked, class_names, len(boxed), samples)

    return {"localization": {f"{tolerance:g}": judged(tolerance) for tolerance in TOLERANCES}}


def proposals(records, class_names, samples) -> dict:
    """How much of the truth the proposals reach at all."""
    masked = _masked(records)
    if not masked:
        return {}
    best = np.concatenate([one.truth.reachable for one in masked])
    return {"proposals": _plain({
        "per_picture": float(np.mean([one.proposals for one in masked])),
        "ABO": defined_mean(best),
        **{f"recall_{t}": defined_mean(best >= t) for t in (0.5, 0.7)},
    })}  # fmt: skip


def instances(records, class_names, samples) -> dict:
    """Tables 4 to 6: mAP^r and ABO of every method's answer."""
    masked = _masked(records)
    if not masked:
        return {}
    by_method = {method: instance_figures([image_record_of(one, method) for one in masked], class_names, samples)
                 for method in masked[0].answers}  # fmt: skip
    return {"instances": by_method}


def instance_figures(records: Sequence[ImageRecord], class_names: Sequence[str], samples: int = 0) -> dict:
    """mAP^r at 0.25, 0.5 and 0.75 (mean and per class), ABO, and counts, of one answer a picture."""
    ranked = ranked_detections(records, THRESHOLDS, len(class_names))
    overlaps = best_overlaps(records, num_classes=len(class_names))
    ap = ranked.average_precision()
    low, high = np.full((2, len(THRESHOLDS) + 1), np.nan)
    if samples:
        low, high, *_ = bootstrap(lambda w: np.append(ranked.mean_average_precision(weights=w),
                                                      overlaps.mean(weights=w)), len(records), samples)  # fmt: skip
    names = [*(f"mAP^r_{t}" for t in THRESHOLDS), "ABO"]
    values = [*(defined_mean(row) for row in ap), overlaps.mean()]
    per_class = {f"AP^r_{t}": row for t, row in zip(THRESHOLDS, ap)} | {"ABO": overlaps.per_class()}
    return {
        **{name: _number(value) for name, value in zip(names, values)},
        "intervals": {name: [_number(a), _number(b)] for name, a, b in zip(names, low, high)},
        "per_class": {name: _per_class(row, class_names) for name, row in per_class.items()},
        "true_instances": int(ranked.positives().sum()),
        "predicted_instances": int(sum(len(r.scores) for r in records)),
    }


def peaks(records, class_names, samples) -> dict:
    """How many were walked back from, and the share of the instances' peaks that lie on an instance of the class."""
    masked = [one for one in _masked(records) if one.on_truth is not None]
    if not masked:
        return {}
    return {"peaks": {
        "walked": sum(one.peaks for one in masked),
        "on_truth": _number(defined_mean(np.concatenate([one.on_truth for one in masked]))),
    }}  # fmt: skip


def quality(records, class_names, samples) -> dict:
    """Table 2 and Figure 6: the quality of the Peak Response Maps, also by crowding and size."""
    studied = _studied(records)
    if not studied:
        return {}

    def judged(variant: str, known: bool = False) -> dict:
        some = [response_record_of(one, known) for one in studied]
        ranked = ranked_responses(some, variant, num_classes=len(class_names))
        return _ranked(ranked, class_names, len(studied), samples)

    figures = {variant: judged(variant) for variant in ("greedy", "independent", "per_image")}
    figures |= {"greedy, void dropped": judged("greedy", True)} if _has_void(studied) else {}
    some = [response_record_of(one) for one in studied]
    return {"quality": figures, "crowding": _groups(quality_by_crowding(some)), "size": _groups(quality_by_size(some))}


def segmentation(records, class_names, samples) -> dict:
    """Table 3: mean IoU of the classes' pixels."""
    studied = _studied(records)
    if not studied:
        return {}
    matrices = np.stack([one.confusion for one in studied])
    per_class, mean = mean_iou(matrices.sum(axis=0))
    interval = _interval(lambda w: mean_iou(np.tensordot(w, matrices, 1))[1], len(studied), samples)
    return {"segmentation": {"mIoU": _number(mean), "interval": interval,
                             "per_class": _per_class(per_class, ("background", *class_names))}}  # fmt: skip


def void_ignored(records, class_names, samples) -> dict:
    """The own answer with void pixels cleared from the predictions; None where there are none."""
    studied = _studied(records)
    if not studied:
        return {}
    cleared = [image_record_of(one, void=True) for one in studied]
    return {"void_ignored": instance_figures(cleared, class_names, samples) if _has_void(studied) else None}


def protocols(records, class_names, samples) -> dict:
    """The own answer by COCO's protocol, at WISE's overlaps too, and by WISE's."""
    masked = _masked(records)
    # A student has masks and no maps.
    studied = _studied(records) or (masked if any(one.masks for one in masked) else [])
    return {name: _coco(studied, class_names, name) for name in PROTOCOLS} if studied else {}


def _coco(records, class_names, protocol) -> dict:
    predictions, truths = [], []
    for one in records:
        found, truth = one.answers[ANSWER], one.truth
        masks = one.masks if protocol != "wise" or one.masks_known is None else one.masks_known
        predictions.append(CocoPredictions(masks, found.labels, found.scores))
        labels = np.concatenate([truth.labels, truth.crowd_labels])
        crowd = np.arange(len(labels)) >= len(truth.labels)
        truths.append(CocoTruths(truth.masks, labels, crowd, truth.annotated_areas))
    return _plain(coco_average_precision(predictions, truths, class_names, protocol))


def failures(records, class_names, samples) -> dict:
    """What became of the true instances and of the predictions, by category."""
    studied = _studied(records)
    if not studied:
        return {}
    instances, predictions = failure_counts([failures_of(one) for one in studied])
    return {"failures": {"instances": instances, "predictions": predictions}}


def curves(records, class_names, samples) -> dict:
    """Precision and recall of the own answer at an overlap of 0.5."""
    studied = _studied(records)
    if not studied:
        return {}
    ranked = ranked_detections([image_record_of(one) for one in studied], (0.5,), len(class_names))
    found = {}
    for c, name in enumerate(class_names):
        curve = ranked.precision_recall(c)
        some = np.unique(np.linspace(0, max(len(curve.scores) - 1, 0), CURVE_POINTS).astype(int))[: len(curve.scores)]
        found[name] = {"recall": curve.recall[some].tolist(), "precision": curve.precision[some].tolist()}
    return {"curves": _plain(found)}


EVALUATORS: tuple[Evaluator, ...] = (
    pictures, classification, localization, proposals, instances, peaks, quality, segmentation, void_ignored,
    protocols, failures, curves,
)  # fmt: skip


def _ranked(ranked, class_names, images: int, samples: int) -> dict:
    ap = ranked.average_precision()[0]
    interval = _interval(lambda w: ranked.mean_average_precision(weights=w)[0], images, samples)
    return {"mAP": _number(defined_mean(ap)), "interval": interval, "per_class": _per_class(ap, class_names)}


def _groups(groups) -> list[dict]:
    return [_plain(vars(group)) for group in groups]


def _has_void(records) -> bool:
    return any(found.void.any() for one in records for found in one.answers.values())


# ---- numbers


def _interval(statistic: Callable, images: int, samples: int) -> list[float | None]:
    if not samples:
        return [None, None]
    found = bootstrap(statistic, images, samples)
    return [_number(found.low), _number(found.high)]


def _per_class(values, class_names) -> dict[str, float | None]:
    return {name: _number(value) for name, value in zip(class_names, values)}


def _number(value) -> float | None:
    return float(value) if np.isfinite(value) else None


def _plain(value):
    """As JSON can hold it: NaN and infinities become None, arrays lists."""
    if isinstance(value, dict):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [_plain(one) for one in value]
    if isinstance(value, float | np.floating):
        return _number(value)
    return value.item() if isinstance(value, np.generic) else value
