"""COCO's average precision and recall of instance masks, computed by COCO's own code (pycocotools)."""

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from prm import InputError

from .masks import class_labels, common_size, finite_scores, one_each

PROTOCOLS = ("coco", "coco25", "wise")
WISE_MIN_SCORE = 0.5


@dataclass(frozen=True, eq=False)
class CocoPredictions:
    """The K predicted instances of one image."""

    masks: Sequence[dict]
    """K COCO run-length codes: {"size": [H, W], "counts": bytes or str}."""
    labels: Sequence[int]
    """(K,) classes from 0 on."""
    scores: Sequence[float]
    """(K,) finite."""


@dataclass(frozen=True, eq=False)
class CocoTruths:
    """The G true instances of one image."""

    masks: Sequence[dict]
    """G COCO run-length codes."""
    labels: Sequence[int]
    """(G,) classes from 0 on."""
    crowd: Sequence[bool] | None = None
    """(G,) whether it is a region of many objects, which may be found any number of times or not at all; None: no."""
    areas: Sequence[float] | None = None
    """(G,) the annotated areas in pixels, which decide on small, medium and large; None: the masks' own."""


def coco_average_precision(
    predictions: Sequence[CocoPredictions],
    truths: Sequence[CocoTruths],
    class_names: Sequence[str],
    protocol: str = "coco",
) -> dict:
    """COCO's figures over a set of images; each in 0..1, NaN where it is undefined (COCO's own code says -1).

    Arguments:
        predictions, truths: one each per image, in a fixed order: among equal scores the earlier image, then the
            earlier detection, ranks first. At most 100 detections of an image and class count.
        class_names: C names, all different.
        protocol: "coco"; "coco25", the same at overlaps of 0.25, 0.5 and 0.75; or "wise", that of WISE (Laradji et al.,
            2019): these overlaps, detections with a score below 0.5 and images without ground truth left out. Void
            pixels are for the caller to clear from the predictions.

    Returns: "coco": AP (mean over overlaps 0.5, 0.55, ..., 0.95), AP50, AP75, APs, APm, APl (instances up to 32^2, up
    to 96^2 and more pixels), AR1, AR10, AR100 (recall of so many detections an image and class), ARs, ARm, ARl.
    "coco25", "wise": AP25, AP50, AP75. All: "per_class": {name: AP ("coco" only) and AP at single overlaps}.
    Raises: `prm.InputError` for numbers, labels, scores or codes that do not fit, or an unknown protocol.
    """
    if protocol not in PROTOCOLS:
        raise InputError(f"protocol {protocol!r} is not known; choose one of {', '.join(PROTOCOLS)}")
    if len(predictions) != len(truths):
        raise InputError(f"predictions of {len(predictions)} images but truths of {len(truths)}; one each per image")
    if len(set(class_names)) != len(class_names):
        raise InputError("two classes have the same name; class names must differ")
    found, true, images = [], [], []
    for image, (predicted, truth) in enumerate(zip(predictions, truths), start=1):
        try:
            some, others, size = _entries(image, predicted, truth, len(class_names))
        except InputError as error:
            raise InputError(f"image {image - 1}: {error}") from error
        if protocol == "wise" and not others:
            continue
        images.append({"id": image, "height": size[0], "width": size[1]})
        found += [entry for entry in some if protocol != "wise" or entry["score"] >= WISE_MIN_SCORE]
        true += others
    evaluation = _evaluated(images, true, found, len(class_names), protocol)
    precision, recall = evaluation.eval["precision"], evaluation.eval["recall"]
    overlaps = evaluation.params.iouThrs
    singles = {f"AP{round(100 * t)}": t for t in ((0.5, 0.75) if protocol == "coco" else overlaps)}

    def ap(at=None, area=0, c=slice(None)):
        rows = slice(None) if at is None else int(np.argmin(np.abs(overlaps - at)))
        return _mean(precision[rows][..., c, area, -1])

    result = {"AP": ap()} if protocol == "coco" else {}
    result |= {name: ap(t) for name, t in singles.items()}
    if protocol == "coco":
        result |= {f"AP{letter}": ap(area=area) for area, letter in enumerate("sml", start=1)}
        result |= {f"AR{most}": _mean(recall[:, :, 0, m]) for m, most in enumerate(evaluation.params.maxDets)}
        result |= {f"AR{letter}": _mean(recall[:, :, area, -1]) for area, letter in enumerate("sml", start=1)}
    whole = {"AP": None} if protocol == "coco" else {}
    result["per_class"] = {
        label: {name: ap(t, c=c) for name, t in (whole | singles).items()} for c, label in enumerate(class_names)
    }
    return result


def _mean(values: np.ndarray) -> float:
    """Mean of the defined values (-1 is undefined); NaN if there are none."""
    defined = values[values > -1]
    return float(defined.mean()) if defined.size else float("nan")


def _entries(image: int, predicted: CocoPredictions, truth: CocoTruths, num_classes: int):
    """One image's predictions and truths as COCO writes annotations, but for their ids, and the image's size."""
    from pycocotools import mask as coco

    labels = class_labels(predicted.labels, "labels")
    true_labels, scores = class_labels(truth.labels, "true labels"), finite_scores(predicted.scores)
    one_each(len(predicted.masks), labels, scores, len(truth.masks), true_labels)
    for label in (*labels, *true_labels):
        if label >= num_classes:
            raise InputError(f"label {label} met but there are {num_classes} classes, counted from 0; check the labels")
    for code in (*predicted.masks, *truth.masks):
        if not isinstance(code, dict) or not isinstance(code.get("counts"), bytes | str):
            raise InputError("a mask is no COCO run-length code with counts as bytes or text; encode it first")
    size = common_size(masks=predicted.masks, true_masks=truth.masks) or (0, 0)
    count = len(true_labels)
    crowd = np.zeros(count, dtype=bool) if truth.crowd is None else np.asarray(truth.crowd, dtype=bool).reshape(-1)
    areas = [coco.area(code) for code in truth.masks] if truth.areas is None else truth.areas
    if not len(crowd) == len(areas) == count:
        raise InputError(f"{count} true masks, {len(crowd)} crowd flags, {len(areas)} areas; one each per instance")
    found = [
        {"image_id": image, "category_id": int(c), "segmentation": dict(code), "area": float(coco.area(code)),
         "score": float(score)}
        for code, c, score in zip(predicted.masks, labels, scores)
    ]  # fmt: skip
    true = [
        {"image_id": image, "category_id": int(c), "segmentation": dict(code), "area": float(area),
         "iscrowd": int(many)}
        for code, c, area, many in zip(truth.masks, true_labels, areas, crowd)
    ]  # fmt: skip
    return found, true, size


def _evaluated(images: list, true: list, found: list, num_classes: int, protocol: str):
    """pycocotools' COCOeval after its work; what it prints is dropped."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    categories = [{"id": c, "name": str(c)} for c in range(num_classes)]
    with contextlib.redirect_stdout(io.StringIO()):
        sides = []
        for annotations in (true, found):
            side = COCO()
            # Counted from 1: the evaluation writes 0 for "matched with nothing".
            numbered = [annotation | {"id": number} for number, annotation in enumerate(annotations, start=1)]
            side.dataset = {"images": images, "categories": categories, "annotations": numbered}
            side.createIndex()
            sides.append(side)
        evaluation = COCOeval(*sides, "segm")
        if protocol != "coco":
            evaluation.params.iouThrs = np.array([0.25, 0.5, 0.75])
            evaluation.params.maxDets = [100]
            evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10]], ["all"]
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation
