"""How good are the answers? One pass over a data set's pictures: classification, mAP^r, ABO, and the time it took."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from scipy import ndimage
from skimage.filters import threshold_otsu
from skimage.measure import label
from skimage.segmentation import watershed

from prm.accelerated import Proposals, Segmentation, Segmenter

from ..datasets import Sample
from ..metrics import average_best_overlap, classification_map, mean_average_precision
from ..metrics.instances import ImageRecord
from ..pipeline import in_order, threads

THRESHOLDS = (0.25, 0.5, 0.75)


def instance_figures(records: list, class_names: Sequence[str]) -> dict:
    """mAP^r at 0.25, 0.5 and 0.75 (mean and per class), ABO, and counts, from `image_record`s."""
    result = mean_average_precision(records, THRESHOLDS, num_classes=len(class_names))
    return {
        **{f"mAP^r_{t}": _number(mean) for t, mean in zip(THRESHOLDS, result.mean)},
        "ABO": _number(average_best_overlap(records, num_classes=len(class_names))),
        "per_class": {
            name: {f"AP^r_{t}": _number(result.ap[i, c]) for i, t in enumerate(THRESHOLDS)}
            for c, name in enumerate(class_names)
        },
        "true_instances": int(result.positives.sum()),
        "predicted_instances": int(sum(len(r.scores) for r in records)),
    }


def _number(x: float) -> float | None:
    return float(x) if np.isfinite(x) else None


def evaluate(
    segmenter: Segmenter,
    samples: Sequence,
    class_names: Sequence[str],
    propose: Callable[[Sample], Proposals],
    tick: Callable[[], None] = lambda: None,
) -> dict:
    """Figures of a segmenter on pictures with labels, and with masks where the data set has them.

    samples: objects with .image, .labels, .difficult, .masks (K, H, W) bool or None, .mask_labels.
    propose: a picture's segment proposals; called one picture ahead, in another thread.
    tick: called after every picture.
    """
    records, scores, labels, difficult, inside, peaks, seconds = [], [], [], [], [], 0, {}
    with threads(1) as (before,):
        for sample, proposals, spent in in_order(before, partial(_prepare, propose), samples):
            answer = segmenter([sample.image], [proposals])[0]
            for stage, one in {"proposals": spent, **answer.seconds}.items():
                seconds[stage] = seconds.get(stage, 0.0) + one
            scores.append(answer.scores.double().numpy())
            labels.append(np.isin(np.arange(len(class_names)), sample.labels))
            difficult.append(np.isin(np.arange(len(class_names)), sample.difficult))
            peaks += answer.peaks
            if sample.masks is not None:
                records.append(record(answer, sample))
                inside += [_hits(i, sample) for i in answer.instances]
            tick()
    figures = {
        "images": len(labels),
        "classification_mAP": _number(classification_map(np.array(scores), np.array(labels), np.array(difficult)).mean),
        "peaks": peaks,
        "seconds_per_image": {stage: s / max(len(labels), 1) for stage, s in seconds.items()},
    }
    if records:
        figures |= instance_figures(records, class_names)
        figures["peaks_inside_an_instance"] = float(np.mean(inside)) if inside else None
    return figures


def _prepare(propose: Callable[[Sample], Proposals], sample) -> tuple:
    """The sample with its picture and masks read, its proposals, and the seconds that picture and proposals took."""
    started = time.perf_counter()
    proposals = propose(sample)
    spent = time.perf_counter() - started
    _ = sample.masks  # read when first asked for: here, and not while the walk waits
    return sample, proposals, spent


def record(answer: Segmentation, sample):
    """The metrics' record of one picture's answer."""
    masks = [i.mask for i in answer.instances] or [Proposals.empty(*answer.size)]
    labels, scores = [i.label for i in answer.instances], [i.score for i in answer.instances]
    # From runs: crowded pictures hold hundreds of masks.
    ious = Proposals.concatenate(masks).ious(Proposals.from_masks(torch.from_numpy(sample.masks)))
    return ImageRecord(
        ious.double().numpy(), np.array(labels, dtype=np.int64), np.array(scores, dtype=np.float64), sample.mask_labels
    )


def _hits(instance, sample) -> bool:
    """Whether the instance's peak lies on a true instance of its class."""
    row, col = (int(np.clip(round(p), 0, n - 1)) for p, n in zip(instance.peak, sample.masks.shape[1:]))
    return bool(sample.masks[sample.mask_labels == instance.label, row, col].any())


# ------------------------------------------------------------------------- a classical baseline for blobs


@dataclass(frozen=True)
class WatershedSettings:
    """Otsu's threshold, smoothed by `sigma` pixels and scaled by `factor`; a watershed of the distance transform from
    maxima at least `distance` pixels apart; regions of at most `min_area` pixels left out."""

    sigma: float = 0.0
    factor: float = 1.0
    distance: int = 5
    min_area: int = 10


WATERSHED_GRID = [
    WatershedSettings(sigma, factor, distance, min_area)
    for sigma in (0.0, 1.0, 2.0)
    for factor in (0.6, 0.8, 1.0, 1.2)
    for distance in (3, 6, 10)
    for min_area in (10, 30)
]


def watershed_regions(image: np.ndarray, settings: WatershedSettings) -> tuple[np.ndarray, np.ndarray]:
    """Regions (H, W) int, numbered from 1, and their scores (K,): the mean distance from the ground's grey.

    image: (H, W, 3) uint8. The smaller side of Otsu's threshold is taken for the objects, so that dark cells on a
    light ground are found as well. Nothing here is learned.
    """
    grey = ndimage.gaussian_filter(image.mean(axis=2), settings.sigma)
    if grey.max() <= grey.min():
        return np.zeros(grey.shape, dtype=int), np.zeros(0)
    if (grey > threshold_otsu(grey)).mean() > 0.5:
        grey = 255 - grey
    objects = grey > threshold_otsu(grey) * settings.factor
    depth = ndimage.distance_transform_edt(objects)
    maxima = (depth == ndimage.maximum_filter(depth, 2 * settings.distance + 1)) & objects
    regions = watershed(-depth, label(maxima), mask=objects)
    keep = np.bincount(regions.ravel()) > settings.min_area
    keep[0] = False
    regions = (np.cumsum(keep) * keep)[regions]
    ground = np.median(grey[~objects]) if (~objects).any() else 0.0
    return regions, np.asarray(ndimage.mean(np.abs(grey - ground), regions, np.arange(1, keep.sum() + 1))).reshape(-1)


def evaluate_watershed(samples: Sequence, settings: WatershedSettings) -> dict:
    """mAP^r and ABO of the watershed on pictures with instances of one class."""
    records = []
    for sample in samples:
        regions, scores = watershed_regions(sample.image, settings)
        count = len(scores) + 1
        # A column a true instance: how many of its pixels each region holds.
        common = [np.bincount(regions[mask], minlength=count)[1:] for mask in sample.masks]
        common = np.stack(common, axis=1) if common else np.zeros((len(scores), 0))
        area = np.bincount(regions.ravel(), minlength=count)[1:, None] + sample.masks.sum(axis=(1, 2))[None, :]
        ious = common / np.maximum(area - common, 1)
        records.append(ImageRecord(ious, np.zeros(len(scores), np.int64), scores, sample.mask_labels))
    return instance_figures(records, ["object"])


def tune_watershed(samples: Sequence, tick=lambda: None) -> tuple[WatershedSettings, dict]:
    """The grid's best settings by mAP^r at 0.5 on these pictures, and their figures there."""
    best = max(_tried(samples, tick), key=lambda pair: pair[1]["mAP^r_0.5"])
    return best


def _tried(samples: Sequence, tick) -> Iterator[tuple[WatershedSettings, dict]]:
    for settings in WATERSHED_GRID:
        yield settings, evaluate_watershed(samples, settings)
        tick()
