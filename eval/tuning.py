"""Choosing alpha, beta, bias of Eq. 6 and the peak threshold on pictures with masks, by a full search.

The costly parts (forward pass, walks, the sums of Eq. 6) are done once a picture; a combination then costs a weighted
sum, an argmax and a suppression.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from prm import InputError
from prm.accelerated import Proposals, SegmentationSettings, Segmenter
from prm.accelerated.retrieval import background, best, prepare, score, suppression, terms

from .metrics import mean_average_precision
from .metrics.instances import ImageRecord

GRID = {
    "alpha": (0.4, 0.8, 1.5, 3.0, 6.0),
    "beta_area": (0.0, 2.0, 10.0, 30.0, 100.0, 300.0, 1000.0),
    "bias": (0.95, 1.5, 2.5, 4.0),
    "peak_threshold": (0.1, 0.2, 0.3, 0.5),
}


@dataclass(frozen=True, eq=False)
class _Cached:
    """One picture: its peaks (class, row, column), their share of the strongest, sums by bias, and overlaps."""

    peaks: torch.Tensor
    share: torch.Tensor
    sums: dict[float, torch.Tensor]
    allowed: torch.Tensor
    proposals: Proposals
    area: int
    ious: np.ndarray
    true_labels: np.ndarray


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
    cached = []
    for sample in samples:
        cached.append(_cache(segmenter, loose, sample, propose, grid["bias"]))
        tick()
    settings = [dict(zip(grid, values)) for values in itertools.product(*grid.values())]
    # Picture by picture: one matrix of overlaps then serves all settings.
    if not any(len(picture.true_labels) for picture in cached):
        raise InputError("no picture holds a true instance: there is nothing to choose the settings by")
    records = [_records(picture, [replace(base, **s) for s in settings]) for picture in cached]
    rows = [
        {**setting, "mAP^r": float(mean_average_precision([r[k] for r in records], (threshold,)).mean[0])}
        for k, setting in enumerate(settings)
    ]
    winner = max(rows, key=lambda row: row["mAP^r"])
    return replace(base, **{name: winner[name] for name in grid}), rows


def _cache(segmenter: Segmenter, settings: SegmentationSettings, sample, propose, biases) -> _Cached:
    size = segmenter.input_size(*sample.image.shape[:2])
    run, proposals = segmenter.prepare([sample.image], size), propose(sample.image)
    _, peaks, share = segmenter.peaks(run.maps[0], settings)
    walked = run.prms(torch.cat([torch.zeros_like(peaks[:, :1]), peaks], dim=1))
    peaks, share, prms = (t[~walked.empty] for t in (peaks, share, walked.prms))
    ready = prepare(proposals, size, settings.contour, settings.min_area, settings.max_area)
    classes, of = peaks[:, 0].unique(return_inverse=True)
    sums = {b: terms(prms, ready, background(run.maps[0], classes, size, b), of) for b in biases}
    ious = proposals.ious(Proposals.from_masks(torch.from_numpy(sample.masks))).double().numpy()
    return _Cached(peaks, share, sums, ready.allowed, proposals, size[0] * size[1], ious, sample.mask_labels)


def _records(picture: _Cached, settings: Sequence[SegmentationSettings]) -> list[ImageRecord]:
    """The metrics' record of one picture under each setting: Algorithm 1 from its cached sums."""
    if not len(picture.peaks) or not picture.allowed.any():
        none = ImageRecord(picture.ious[:0], np.zeros(0, np.int64), np.zeros(0), picture.true_labels)
        return [none] * len(settings)
    scores = [score(picture.sums[s.bias], s.alpha, s.beta_area / picture.area) for s in settings]
    choices = torch.stack([best(values, picture.allowed) for values in scores])
    chosen, index = choices.unique(return_inverse=True)
    overlaps = picture.proposals.select(chosen).ious()
    records = []
    for s, values, choice, at in zip(settings, scores, choices, index):
        passes = (picture.share >= s.peak_threshold).nonzero()[:, 0]
        value, peaks, at = values[passes, choice[passes]], picture.peaks[passes], at[passes]
        kept = list(suppression(overlaps[at][:, at] >= s.nms, value, peaks[:, 0], peaks[:, 1:], s.nms_per_class))
        ious, labels = picture.ious[choice[passes][kept].numpy()], peaks[kept, 0].numpy()
        records.append(ImageRecord(ious, labels, value[kept].numpy(), picture.true_labels))
    return records
