"""Choosing alpha, beta, bias of Eq. 6 and the peak threshold on pictures with masks, by a full search.

The costly parts (forward pass, walks, the sums of Eq. 6) are done once a picture; a combination then costs a weighted
sum, an argmax and a suppression.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch

from prm import InputError
from prm.accelerated import Proposals, SegmentationSettings, Segmenter

from .algorithm1 import choose_all, fit, walk
from .metrics import mean_average_precision
from .metrics.instances import ImageRecord

GRID = {
    "alpha": (0.4, 0.8, 1.5, 3.0, 6.0),
    "beta_area": (0.0, 2.0, 10.0, 30.0, 100.0, 300.0, 1000.0),
    "bias": (0.95, 1.5, 2.5, 4.0),
    "peak_threshold": (0.1, 0.2, 0.3, 0.5),
}


def tune(
    segmenter: Segmenter,
    samples: Sequence,
    propose: Callable[[np.ndarray], Proposals],
    grid: dict[str, tuple] = GRID,
    threshold: float = 0.5,
    tick: Callable[[], None] = lambda: None,
) -> tuple[SegmentationSettings, list[dict]]:
    """The settings of the grid with the highest mAP^r at `threshold`, and the table of all that were tried.

    samples: pictures with masks; use others than those that the result is judged on. tick: called after every picture.
    """
    # A share of the strongest peak is what is searched, so an absolute threshold gives way to it.
    base = replace(segmenter.settings, peak_minimum=None)
    loose = replace(base, peak_threshold=min(grid["peak_threshold"]))
    settings = [dict(zip(grid, values)) for values in itertools.product(*grid.values())]
    records = []
    for sample in samples:
        found, proposals = walk(segmenter, sample.image, loose), propose(sample.image)
        choices = choose_all(found, fit(found, proposals, loose, grid["bias"]), [replace(base, **s) for s in settings])
        ious = proposals.ious(Proposals.from_masks(torch.from_numpy(sample.masks))).double().numpy()
        records.append([ImageRecord(ious[c.proposals], c.labels, c.scores, sample.mask_labels) for c in choices])
        tick()
    if not any(len(pictures[0].true_labels) for pictures in records):
        raise InputError("no picture holds a true instance: there is nothing to choose the settings by")
    rows = [
        {**setting, "mAP^r": float(mean_average_precision([r[k] for r in records], (threshold,)).mean[0])}
        for k, setting in enumerate(settings)
    ]
    winner = max(rows, key=lambda row: row["mAP^r"])
    return replace(base, **{name: winner[name] for name in grid}), rows
