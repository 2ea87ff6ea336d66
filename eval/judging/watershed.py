"""A classical baseline for blobs, judged as a network is: Otsu's threshold and a watershed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from skimage.filters import threshold_otsu
from skimage.measure import label
from skimage.segmentation import watershed

from ..metrics import ImageRecord
from .evaluators import instance_figures
from .short import instance_view


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
    return instance_view(instance_figures(records, ["object"]))


def tune_watershed(samples: Sequence, tick=lambda: None) -> tuple[WatershedSettings, dict]:
    """The grid's best settings by mAP^r at 0.5 on these pictures, and their figures there."""
    return max(_tried(samples, tick), key=lambda pair: pair[1]["mAP^r_0.5"])


def _tried(samples: Sequence, tick) -> Iterator[tuple[WatershedSettings, dict]]:
    for settings in WATERSHED_GRID:
        yield settings, evaluate_watershed(samples, settings)
        tick()
