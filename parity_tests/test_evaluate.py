"""Evaluation, the watershed beside it, and the search for the settings of Eq. 6."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from prm.accelerated import Proposals, SegmentationSettings, Segmenter
from prm.accelerated.networks import network
from prm.eval.datasets.base import Sample
from prm.eval.judging.evaluate import (
    WatershedSettings,
    evaluate,
    evaluate_watershed,
    tune_watershed,
    watershed_regions,
)
from prm.eval.tuning.search import gather, search


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


@pytest.fixture(scope="module")
def problem():
    """A random network, two pictures and, for each, proposals that hold the truth among others."""
    torch.manual_seed(3)
    segmenter = Segmenter(
        network("smallnet", 1, widths=(8, 8), pools=1).eval(), [0.5] * 3, [0.25] * 3,
        settings=SegmentationSettings(class_threshold=0.0, max_peaks=40),
    )  # fmt: skip
    samples = [discs((20, 20), (44, 40)), discs((30, 20), (12, 50), radius=6)]
    rng = np.random.default_rng(0)

    def propose(sample):
        shifted = [np.roll(m, tuple(rng.integers(-4, 5, 2)), (0, 1)) for m in sample.masks for _ in range(4)]
        return Proposals.from_masks(torch.from_numpy(np.array([*shifted, *sample.masks])))

    known = {id(s): propose(s) for s in samples}
    return segmenter, samples, lambda sample: known[id(sample)]


def test_figures_of_the_search_are_those_of_the_evaluation(problem):
    segmenter, samples, propose = problem
    grid = {"alpha": (0.5, 3.0), "beta_area": (0.0, 50.0), "bias": (0.95, 2.0), "peak_threshold": (0.2, 0.6)}
    found = search(gather(segmenter, samples, propose, grid), segmenter.settings, grid)
    chosen, rows = found.settings, found.rows()
    assert len(rows) == 16
    for row in rows[::5]:
        setting = {name: row[name] for name in grid}
        segmenter.settings = replace(segmenter.settings, **setting)
        figures = evaluate(segmenter, samples, ["disc"], propose)
        assert figures["mAP^r_0.5"] == pytest.approx(row["mAP^r"], abs=1e-12)
    assert max(row["mAP^r"] for row in rows) == next(
        row["mAP^r"] for row in rows if all(row[name] == getattr(chosen, name) for name in grid)
    )


def test_evaluation_counts_what_it_did(problem):
    segmenter, samples, propose = problem
    ticks = []
    figures = evaluate(segmenter, samples, ["disc"], propose, lambda: ticks.append(1))
    assert len(ticks) == figures["images"] == 2
    assert figures["true_instances"] == 4
    assert set(figures["seconds_per_image"]) == {"proposals", "forward", "peaks", "walk", "retrieval"}
    assert 0 <= figures["peaks_inside_an_instance"] <= 1
