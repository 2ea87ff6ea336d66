"""The classical baseline beside a network."""

import numpy as np
import pytest

from prm.eval.datasets.base import Sample
from prm.eval.judging.watershed import WatershedSettings, evaluate_watershed, tune_watershed, watershed_regions


def discs(*centres, radius=8, size=64, dark=False):
    """A picture of bright discs on a dark ground (or the other way round), and their masks."""
    rows, cols = np.mgrid[:size, :size]
    masks = np.array([(rows - r) ** 2 + (cols - c) ** 2 <= radius**2 for r, c in centres])
    grey = np.where(masks.any(axis=0), 200, 20).astype(np.uint8)
    image = np.repeat((255 - grey if dark else grey)[:, :, None], 3, axis=2)
    labels = np.zeros(len(masks), dtype=np.int64)
    return Sample(name="discs", labels=(0,), read=lambda: image, read_instances=lambda: (masks, labels))


@pytest.mark.parametrize("dark", [False, True])
def test_watershed_finds_discs_that_touch_on_either_ground(dark):
    sample = discs((20, 20), (20, 34), (48, 40), dark=dark)
    regions, scores = watershed_regions(sample.image, WatershedSettings(distance=4))
    assert regions.max() == len(scores) == 3 and set(np.unique(regions)) == {0, 1, 2, 3}
    figures = evaluate_watershed([sample], WatershedSettings(distance=4))
    assert figures["mAP^r_0.5"] == 1.0 and figures["ABO"] > 0.9


def test_watershed_of_an_even_picture_finds_nothing():
    regions, scores = watershed_regions(np.full((8, 9, 3), 7, np.uint8), WatershedSettings())
    assert regions.shape == (8, 9) and not regions.any() and len(scores) == 0


def test_tuned_watershed_is_never_worse_on_its_own_pictures():
    samples = [discs((20, 20), (20, 34)), discs((30, 30), radius=12)]
    settings, figures = tune_watershed(samples)
    assert figures["mAP^r_0.5"] >= evaluate_watershed(samples, WatershedSettings())["mAP^r_0.5"]
    assert evaluate_watershed(samples, settings) == figures
