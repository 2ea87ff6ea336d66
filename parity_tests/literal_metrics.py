"""The metrics once more, slowly and to the letter, to judge the fast ones by: loops over pixels and detections.

Nothing here is shared with `prm.eval.metrics`. Images are dicts of lists; a mask is a set of pixels. Undefined is NaN.
"""

import contextlib
import io
import math

import numpy as np
import pytest

NAN = float("nan")


def overlap(a: set, b: set) -> float:
    return len(a & b) / len(a | b) if a | b else 0.0


def mean(values) -> float:
    values = [v for v in values if not math.isnan(v)]
    return sum(values) / len(values) if values else NAN


def repeated(images: list, weights) -> list:
    """The set in which every image occurs so often, copies side by side."""
    return images if weights is None else [image for image, n in zip(images, weights) for _ in range(n)]


# ---- average precision


def average_precision(hits: list, positives: int, method: str) -> float:
    if positives == 0:
        return NAN
    points, found = [], 0  # recall and precision after each detection
    for k, hit in enumerate(hits, start=1):
        found += bool(hit)
        points.append((found / positives, found / k))
    best = [max(p for _, p in points[k:]) for k in range(len(points))]
    if method == "area":
        recalls = [0.0] + [r for r, _ in points]
        return sum((recalls[k + 1] - recalls[k]) * best[k] for k in range(len(points)))
    if method == "ranked":
        return sum(p for (_, p), hit in zip(points, hits) if hit) / positives
    levels = [k * 0.1 for k in range(11)] if method == "voc07" else np.linspace(0, 1, 101).tolist()
    return sum(max((p for r, p in points if r >= level), default=0.0) for level in levels) / len(levels)


def by_rank(detections: list) -> list:
    """Detections (score, ...) in the order of a set, best first; the sort is stable."""
    return sorted(detections, key=lambda detection: -detection[0])


def classification(images: list, c: int, method: str) -> float:
    """images: {"scores", "labels", "difficult"}, each a list over the classes."""
    use = [image for image in images if not image["difficult"][c]]
    ranked = by_rank([(image["scores"][c], image["labels"][c]) for image in use])
    return average_precision([label for _, label in ranked], sum(image["labels"][c] for image in use), method)


# ---- instances: {"values", "labels", "scores", "true_labels"}, values[k][g] the overlap


def matched(image: dict, c: int, threshold: float, matching: str) -> list:
    """(score, hit) of the detections of a class in one image, in the order the image lists them."""
    true = [g for g, label in enumerate(image["true_labels"]) if label == c]
    mine = [k for k, label in enumerate(image["labels"]) if label == c]
    taken, hits = set(), {}
    for k in sorted(mine, key=lambda k: -image["scores"][k]):
        wanted = None
        for g in true:
            value = image["values"][k][g]
            if matching == "best_free":
                better = g not in taken and (wanted is None or value >= image["values"][k][wanted])
            else:
                better = wanted is None or value > image["values"][k][wanted]
            wanted = g if better else wanted
        hits[k] = wanted is not None and wanted not in taken and image["values"][k][wanted] >= threshold
        if hits[k]:
            taken.add(wanted)
    return [(image["scores"][k], hits[k]) for k in mine]


def instances(images: list, c: int, threshold: float, matching: str, method: str) -> float:
    ranked = by_rank([one for image in images for one in matched(image, c, threshold, matching)])
    return average_precision([hit for _, hit in ranked], count_true(images, c), method)


def count_true(images: list, c: int) -> int:
    return sum(label == c for image in images for label in image["true_labels"])


def best_overlaps(images: list, same_class: bool) -> list:
    """(class, best overlap) of every true instance."""
    return [
        (c, max([row[g] for row, k in zip(image["values"], image["labels"]) if k == c or not same_class], default=0.0))
        for image in images
        for g, c in enumerate(image["true_labels"])
    ]


def abo(images: list, average: str, same_class: bool) -> float:
    best = best_overlaps(images, same_class)
    if average == "instances":
        return mean([value for _, value in best])
    return mean([mean([value for k, value in best if k == c]) for c in {c for c, _ in best}])


# ---- pointwise localization: {"scores", "points", "boxes": [(x0, y0, x1, y1)], "box_labels", "difficult"}


def localization(images: list, c: int, tolerance: float, drop_difficult: bool, min_score, method: str):
    """Average precision and number of positives."""
    detections, positives = [], 0
    for image in images:
        boxes = [(b, d) for b, k, d in zip(image["boxes"], image["box_labels"], image["difficult"]) if k == c]
        if drop_difficult and boxes and all(d for _, d in boxes):
            continue
        positives += bool(boxes)
        if min_score is not None and image["scores"][c] < min_score:
            continue
        x, y = image["points"][c]
        hit = any(
            x0 - tolerance <= x <= x1 + tolerance and y0 - tolerance <= y <= y1 + tolerance
            for (x0, y0, x1, y1), _ in boxes
        )
        detections.append((image["scores"][c], hit))
    return average_precision([hit for _, hit in by_rank(detections)], positives, method), positives


# ---- Peak Response Maps


def inside(response: dict, mask: set, void: set, drop: bool) -> float:
    """The share of a response {pixel: number} inside a mask."""
    counted = {pixel: r for pixel, r in response.items() if not (drop and pixel in void)}
    total = math.fsum(counted.values())
    return math.fsum(r for pixel, r in counted.items() if pixel in mask) / total if total else 0.0


def response_quality(images: list, c: int, variant: str, threshold: float, method: str):
    """Average precision and number of positives; images as for `instances`, values[k][g] the share inside."""
    detections, positives = [], 0
    for image in images:
        true = [g for g, label in enumerate(image["true_labels"]) if label == c]
        mine = sorted((k for k, label in enumerate(image["labels"]) if label == c), key=lambda k: -image["scores"][k])
        if variant == "per_image":
            mine = mine[:1]
            positives += bool(true)
        elif variant == "greedy":
            positives += len(true)
        taken = set()
        for k in mine:
            q = max((image["values"][k][g] for g in true), default=0.0)
            hit = q > threshold
            if hit and variant == "greedy":
                instance = next(g for g in true if image["values"][k][g] == q)
                hit = instance not in taken
                taken.add(instance)
            elif hit and variant == "independent":
                positives += 1
            detections.append((image["scores"][k], hit))
    return average_precision([hit for _, hit in by_rank(detections)], positives, method), positives


def best_responses(image: dict) -> list:
    """(share inside, instance or None) of every map, with the instances of its class."""
    answer = []
    for row, label in zip(image["values"], image["labels"]):
        best, instance = 0.0, None
        for g, c in enumerate(image["true_labels"]):
            if c == label and (instance is None or row[g] > best):
                best, instance = row[g], g
        answer.append((best, instance))
    return answer


def crowding(images: list, low: int, high, absent: str):
    """Number of images, the maps' shares inside and in the background, for images with low to high objects."""
    count, shares, outside = 0, [], []
    for image in images:
        objects = len(image["true_labels"])
        if objects < low or (high is not None and objects > high):
            continue
        count += 1
        for k, (best, _) in enumerate(best_responses(image)):
            if absent == "zero" or image["labels"][k] in image["true_labels"]:
                shares.append(best)
                outside.append(image["background"][k])
    return count, shares, outside


def sizes(images: list, low: float, high: float, last: bool):
    """The same for maps on instances with a share of the image in [low, high), or [low, high] for the last."""
    count, shares, outside = 0, [], []
    for image in images:
        before = len(shares)
        for k, (best, instance) in enumerate(best_responses(image)):
            if instance is None or best == 0:
                continue
            share = image["true_areas"][instance] / image["image_area"]
            if low <= share < high or (last and share == high):
                shares.append(best)
                outside.append(image["background"][k])
        count += len(shares) > before
    return count, shares, outside


# ---- semantic segmentation: maps are {pixel: number}


def merged(pixels: set, masks: list, labels: list, scores: list) -> dict:
    answer = {}
    for pixel in pixels:
        over = [k for k, mask in enumerate(masks) if pixel in mask]
        top = max((scores[k] for k in over), default=None)
        answer[pixel] = next((labels[k] + 1 for k in over if scores[k] == top), 0)
    return answer


def semantic(pairs: list, classes: int, void: int = 255) -> list:
    """Intersection over union of each of `classes` values over (prediction, truth) maps."""
    answer = []
    for c in range(classes):
        common = union = 0
        for prediction, truth in pairs:
            for pixel, t in truth.items():
                p = 0 if prediction[pixel] == void else prediction[pixel]
                if t != void:
                    common += p == c and t == c
                    union += p == c or t == c
        answer.append(common / union if union else NAN)
    return answer


# ---- COCO: {"masks", "labels", "scores", "true_masks", "true_labels", "crowd", "areas"}


def coco_cell(images: list, c: int, threshold: float, smallest: float, largest: float, most: int):
    """Average precision (101 levels) and the recall reached, for one class, overlap, range of areas and limit."""
    detections, positives, found = [], 0, 0
    for image in images:
        true = [g for g, label in enumerate(image["true_labels"]) if label == c]
        ignored = {g for g in true if image["crowd"][g] or not smallest <= image["areas"][g] <= largest}
        positives += len(true) - len(ignored)
        mine = sorted((k for k, label in enumerate(image["labels"]) if label == c), key=lambda k: -image["scores"][k])
        taken = set()
        for k in mine[:most]:
            mask = image["masks"][k]
            wanted = None
            # Real ones first; ignored ones only where no real one fits.
            for some in ([g for g in true if g not in ignored], [g for g in true if g in ignored]):
                at_least = threshold
                for g in some if wanted is None else ():
                    crowd = image["crowd"][g]
                    common = len(mask & image["true_masks"][g])
                    value = common / len(mask if crowd else mask | image["true_masks"][g]) if common else 0.0
                    if (g not in taken or crowd) and value >= at_least:
                        wanted, at_least = g, value
            if wanted is None and not smallest <= len(mask) <= largest:
                continue
            if wanted is not None:
                taken.add(wanted)
                if wanted in ignored:
                    continue
            found += wanted is not None
            detections.append((image["scores"][k], wanted is not None))
    ap = average_precision([hit for _, hit in by_rank(detections)], positives, "coco101")
    return ap, found / positives if positives else NAN


def coco(images: list, classes: int) -> dict:
    """The twelve numbers."""
    ranges = {"": (0, 1e10), "s": (0, 32**2), "m": (32**2, 96**2), "l": (96**2, 1e10)}
    overlaps = np.linspace(0.5, 0.95, 10).tolist()
    cells = {
        (c, t, name, most): coco_cell(images, c, overlaps[t], *ranges[name], most)
        for c in range(classes)
        for t in range(10)
        for name in ranges
        for most in (1, 10, 100)
    }

    def over(what, name="", most=100, thresholds=range(10)):
        return mean([cells[c, t, name, most][what] for c in range(classes) for t in thresholds])

    return {
        **{"AP": over(0), "AP50": over(0, thresholds=[0]), "AP75": over(0, thresholds=[5])},
        **{f"AP{name}": over(0, name) for name in "sml"},
        **{f"AR{most}": over(1, most=most) for most in (1, 10, 100)},
        **{f"AR{name}": over(1, name) for name in "sml"},
    }


def wise(images: list, classes: int) -> dict:
    """WISE's three: images without truth and scores below 0.5 left out."""
    kept = []
    for image in images:
        good = [k for k, score in enumerate(image["scores"]) if score >= 0.5]
        if image["true_labels"]:
            kept.append(image | {name: [image[name][k] for k in good] for name in ("masks", "labels", "scores")})
    return {
        f"AP{round(100 * t)}": mean([coco_cell(kept, c, t, 0, 1e10, 100)[0] for c in range(classes)])
        for t in (0.25, 0.5, 0.75)
    }


# ---- failures


def failures(masks: list, labels: list, scores: list, true: list, true_labels: list, threshold: float, loose: float):
    """Outcomes of the true instances and verdicts on the predictions, from sets of pixels."""
    taken, verdicts = set(), [""] * len(masks)
    for k in sorted(range(len(masks)), key=lambda k: -scores[k]):
        mine = [g for g, c in enumerate(true_labels) if c == labels[k]]
        best = max((overlap(masks[k], true[g]) for g in mine), default=-1)
        wanted = next((g for g in mine if overlap(masks[k], true[g]) == best), None)
        if best < threshold:
            verdicts[k] = "false alarm"
        else:
            verdicts[k] = "duplicate" if wanted in taken else "hit"
            taken.add(wanted)

    def covered(k):
        mine = [g for g, c in enumerate(true_labels) if c == labels[k] and true[g]]
        return [g for g in mine if len(masks[k] & true[g]) >= len(true[g]) / 2]

    outcomes = []
    for g, mask in enumerate(true):
        own = [k for k, c in enumerate(labels) if c == true_labels[g]]
        others = [k for k, c in enumerate(labels) if c != true_labels[g]]
        if g in taken:
            outcomes.append("found")
        elif any(overlap(masks[k], mask) >= threshold for k in others):
            outcomes.append("wrong class")
        elif any(g in covered(k) and len(covered(k)) > 1 for k in own):
            outcomes.append("merged")
        elif sum(bool(masks[k]) and len(masks[k] & mask) >= len(masks[k]) / 2 for k in own) > 1:
            outcomes.append("split")
        elif any(overlap(masks[k], mask) >= loose for k in own):
            outcomes.append("loose")
        else:
            outcomes.append("missed")
    return outcomes, verdicts


# ---- what several tests make their cases of


def strips(*spans, length=20) -> np.ndarray:
    """(K, 1, length) masks of one row, each set in its span [first, end)."""
    masks = np.zeros((len(spans), 1, length), bool)
    for mask, (first, end) in zip(masks, spans):
        mask[0, first:end] = True
    return masks


def codes(masks) -> list[dict]:
    """Masks (K, H, W) as COCO encodes them."""
    coco = pytest.importorskip("pycocotools.mask", reason="pycocotools is not installed")
    return [coco.encode(np.asfortranarray(mask, np.uint8)) for mask in masks]


def cocos_own(images, side: int, num_classes: int, thresholds=None):
    """pycocotools' COCOeval, accumulated, of images (masks, labels, scores, true masks, true labels, more).

    Masks as codes or arrays of side x side. more: "crowd" flags and "areas" of the true ones, where they are given.
    """
    pytest.importorskip("pycocotools", reason="pycocotools is not installed")
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval
    from pycocotools.mask import area

    def entries(image, masks, labels, **more):
        encoded = masks if isinstance(masks, list) else codes(masks)
        return [
            {"image_id": image, "category_id": int(c), "segmentation": code, "area": float(area(code)), "iscrowd": 0}
            | {name: float(values[k]) for name, values in more.items()}
            for k, (code, c) in enumerate(zip(encoded, labels))
        ]

    true, found = [], []
    for number, (masks, labels, scores, true_masks, true_labels, *rest) in enumerate(images, start=1):
        more = {{"crowd": "iscrowd", "areas": "area"}[name]: v for part in rest for name, v in part.items()}
        true += entries(number, true_masks, true_labels, **more)
        found += entries(number, masks, labels, score=scores)
    sides = COCO(), COCO()
    with contextlib.redirect_stdout(io.StringIO()):
        for coco, annotations in zip(sides, (true, found)):
            coco.dataset = {
                "images": [{"id": n + 1, "height": side, "width": side} for n in range(len(images))],
                "categories": [{"id": c, "name": str(c)} for c in range(num_classes)],
                "annotations": [entry | {"id": n} for n, entry in enumerate(annotations, start=1)],
            }
            coco.createIndex()
        evaluation = COCOeval(*sides, "segm")
        if thresholds is not None:
            evaluation.params.iouThrs = np.array(thresholds)
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation
