"""From the studies of all pictures to the figures of one run: JSON that the tables and the report are made of.

Every share is in 0..1. An undefined figure (no such class, no masks) is None.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ..metrics import (
    CocoPredictions,
    CocoTruths,
    ImageRecord,
    ResponseRecord,
    best_overlaps,
    bootstrap,
    classification_map,
    coco_average_precision,
    failure_counts,
    failures,
    mean_iou,
    quality_by_crowding,
    quality_by_size,
    ranked_detections,
    ranked_points,
    ranked_responses,
)
from ..metrics.classification import defined_mean
from .experiment import ANSWER, Study

THRESHOLDS = (0.25, 0.5, 0.75)
TOLERANCES = (18.0, 0.0)
CURVE_POINTS = 200


def summary(studies: Sequence[Study], class_names: Sequence[str], samples: int = 500) -> dict:
    """All figures of a run, without a network those of the ground truth and the proposals alone.

    samples: of the bootstrap behind each interval (95 %, over pictures); 0 for no intervals.

    Besides what Tables 1 to 6 and Figure 6 show of one network: COCO's and WISE's protocols, failures by category,
    precision-recall curves at an overlap of 0.5, and how much of the truth the proposals reach at all.
    """
    figures = {"pictures": len(studies), "seconds_per_picture": _mean_seconds(studies)}
    with_network = all(s.scores is not None for s in studies)
    boxed = [s for s in studies if s.boxes is not None]
    masked = [s for s in studies if s.truth is not None]
    if with_network:
        figures["classification"] = _classification(studies, class_names, samples)
    if with_network and boxed:
        figures["localization"] = {f"{t:g}": _localization(boxed, class_names, t, samples) for t in TOLERANCES}
    if masked:
        figures["pictures_with_masks"] = len(masked)
        figures["proposals"] = _proposals(masked)
        figures["instances"] = {m: _instances(masked, m, class_names, samples) for m in masked[0].answers}
    if not (with_network and masked):
        return figures
    return figures | {
        "quality": _quality(masked, class_names, samples),
        "crowding": _groups(quality_by_crowding([response_record_of(s) for s in masked])),
        "size": _groups(quality_by_size([response_record_of(s) for s in masked])),
        "segmentation": _segmentation(masked, class_names, samples),
        "void_ignored": _instances(masked, ANSWER, class_names, samples, void=True) if _has_void(masked) else None,
        "coco": _coco(masked, class_names, "coco"),
        "wise": _coco(masked, class_names, "wise"),
        "failures": _failures(masked),
        "curves": _curves(masked, class_names),
    }


def image_record_of(one: Study, method: str = ANSWER, void: bool = False) -> ImageRecord:
    """The record for mAP^r and ABO. void: clear void pixels from the predictions first."""
    found, truth = one.answers[method], one.truth
    areas = found.areas - found.void if void else found.areas
    union = areas[:, None] + truth.areas[None, :] - found.common
    return ImageRecord(found.common / np.maximum(union, 1), found.labels, found.scores, truth.labels)


def response_record_of(one: Study, known: bool = False) -> ResponseRecord:
    """The record for the maps' quality. known: with void pixels left out of both sums."""
    fields = dict(one.quality)
    without_void = fields.pop("known")
    return ResponseRecord(**fields | ({"q": without_void} if known else {}))


def failures_of(one: Study):
    """What became of each true instance and each prediction; see `metrics.failures`."""
    found, truth = one.answers[ANSWER], one.truth
    return failures(found.common, found.areas, found.labels, found.scores, truth.areas, truth.labels)


# ---- the parts


def _classification(studies, class_names, samples) -> dict:
    scores, present = np.stack([s.scores for s in studies]), np.stack([s.present for s in studies])
    given = scores, present == 1, present == -1
    found = classification_map(*given)
    interval = _interval(lambda w: classification_map(*given, weights=w).mean, len(studies), samples)
    return {"mAP": _number(found.mean), "interval": interval, "per_class": _per_class(found.ap, class_names)}


def _localization(studies, class_names, tolerance, samples) -> dict:
    ranked = ranked_points(
        np.stack([s.scores for s in studies]), np.stack([s.points for s in studies]), [s.boxes for s in studies],
        [s.box_labels for s in studies], [s.box_difficult for s in studies], tolerance,
    )  # fmt: skip
    return _ranked(ranked, class_names, len(studies), samples)


def _quality(studies, class_names, samples) -> dict:
    def judged(variant: str, known: bool = False) -> dict:
        records = [response_record_of(s, known) for s in studies]
        return _ranked(ranked_responses(records, variant, num_classes=len(class_names)), class_names, len(studies),
                       samples)  # fmt: skip

    figures = {variant: judged(variant) for variant in ("greedy", "independent", "per_image")}
    return figures | ({"greedy, void dropped": judged("greedy", True)} if _has_void(studies) else {})


def _ranked(ranked, class_names, images: int, samples: int) -> dict:
    ap = ranked.average_precision()[0]
    interval = _interval(lambda w: ranked.mean_average_precision(weights=w)[0], images, samples)
    return {"mAP": _number(defined_mean(ap)), "interval": interval, "per_class": _per_class(ap, class_names)}


def _segmentation(studies, class_names, samples) -> dict:
    matrices = np.stack([s.confusion for s in studies])
    per_class, mean = mean_iou(matrices.sum(axis=0))
    interval = _interval(lambda w: mean_iou(np.tensordot(w, matrices, 1))[1], len(studies), samples)
    return {"mIoU": _number(mean), "interval": interval,
            "per_class": _per_class(per_class, ("background", *class_names))}  # fmt: skip


def _instances(studies, method, class_names, samples, void: bool = False) -> dict:
    records = [image_record_of(s, method, void) for s in studies]
    ranked = ranked_detections(records, THRESHOLDS, len(class_names))
    overlaps = best_overlaps(records, num_classes=len(class_names))
    ap = ranked.average_precision()
    low, high = np.full((2, len(THRESHOLDS) + 1), np.nan)
    if samples:
        low, high, *_ = bootstrap(lambda w: np.append(ranked.mean_average_precision(weights=w),
                                                      overlaps.mean(weights=w)), len(studies), samples)  # fmt: skip
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


def _coco(studies, class_names, protocol) -> dict:
    predictions, truths = [], []
    for s in studies:
        found, truth = s.answers[ANSWER], s.truth
        masks = s.masks if protocol == "coco" or s.masks_known is None else s.masks_known
        predictions.append(CocoPredictions(masks, found.labels, found.scores))
        labels = np.concatenate([truth.labels, truth.crowd_labels])
        crowd = np.arange(len(labels)) >= len(truth.labels)
        truths.append(CocoTruths(truth.masks, labels, crowd, truth.annotated_areas))
    return _plain(coco_average_precision(predictions, truths, class_names, protocol))


def _failures(studies) -> dict:
    instances, predictions = failure_counts([failures_of(s) for s in studies])
    return {"instances": instances, "predictions": predictions}


def _curves(studies, class_names) -> dict:
    ranked = ranked_detections([image_record_of(s) for s in studies], (0.5,), len(class_names))
    curves = {}
    for c, name in enumerate(class_names):
        curve = ranked.precision_recall(c)
        some = np.unique(np.linspace(0, max(len(curve.scores) - 1, 0), CURVE_POINTS).astype(int))[: len(curve.scores)]
        curves[name] = {"recall": curve.recall[some].tolist(), "precision": curve.precision[some].tolist()}
    return _plain(curves)


def _proposals(studies) -> dict:
    best = np.concatenate([s.truth.reachable for s in studies])
    return _plain({
        "per_picture": float(np.mean([s.proposals for s in studies])),
        "ABO": defined_mean(best),
        **{f"recall_{t}": defined_mean(best >= t) for t in (0.5, 0.7)},
    })  # fmt: skip


def _groups(groups) -> list[dict]:
    return [_plain(vars(group)) for group in groups]


def _mean_seconds(studies) -> dict:
    stages = {stage for s in studies for stage in s.seconds}
    return {stage: float(np.mean([s.seconds.get(stage, 0.0) for s in studies])) for stage in sorted(stages)}


def _has_void(studies) -> bool:
    return any(found.void.any() for s in studies for found in s.answers.values())


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
