"""The costly part of the search, once a picture: forward pass, walks, and the sums of Eq. 6."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from prm.accelerated import Proposals, SegmentationSettings, Segmenter
from prm.accelerated.retrieval import Fit, fit

from ..datasets import Sample
from ..pictures.pipeline import in_order, threads
from .grid import GRID


@dataclass(frozen=True, eq=False)
class Picture:
    """What the search needs of one picture with P peaks, K proposals and G true instances, for any weights.

    labels : (P,) int64 class of each peak; peaks are in order of (class, row, column)
    share : (P,) response as a share of the class's strongest
    rules : which peaks pass a class threshold, or an absolute peak threshold: (class_threshold, peak_minimum) -> (P,)
    fitted : the sums of Eq. 6 of each peak with each proposal, on the CPU
    inside, contour : (P, K) float64, of these R over S and R over contour(S)
    confidence : (P,) float64, probability of each peak's class
    present : (P,) bool, whether the picture is labelled with the peak's class
    truth, true_labels : G true masks and (G,) their classes; None where there are none to compare with
    """

    labels: np.ndarray
    share: np.ndarray
    rules: dict[tuple, np.ndarray]
    fitted: Fit
    inside: np.ndarray
    contour: np.ndarray
    confidence: np.ndarray
    present: np.ndarray
    truth: Proposals | None
    true_labels: np.ndarray | None

    @cached_property
    def weight(self) -> np.ndarray:
        """(P,) each peak's part in the proxy; their sum is 1, or 0 where no peak is of a class that is present."""
        weight = self.share.astype(np.float64) * self.present
        return weight / max(weight.sum(), np.finfo(np.float64).tiny)


def gather(
    segmenter: Segmenter,
    samples: Iterable,
    propose: Callable[[Sample], Proposals],
    grid: dict[str, Sequence[float]] = GRID,
    tick: Callable[[], None] = lambda: None,
) -> list[Picture]:
    """Each picture's part of the search.

    samples: objects with .image, .labels, .masks (G, H, W) bool or None, .mask_labels. propose: a picture's segment
    proposals; called one picture ahead, in another thread. grid: what will be tried of the peak and class thresholds.
    tick: called after every picture.
    """
    base = segmenter.settings
    lowest = min(base.peak_threshold, *grid.get("peak_threshold", ()))
    confident = {base.class_threshold, *grid.get("class_threshold", ())}
    rules = [replace(base, peak_minimum=None, peak_threshold=lowest, class_threshold=c) for c in sorted(confident)]
    rules += [base] if base.peak_minimum is not None else []
    pictures = []
    with threads(1) as (before,):
        for sample, proposals in in_order(before, lambda sample: (sample, propose(sample)), samples):
            pictures.append(_picture(segmenter, sample, proposals, rules))
            tick()
    return pictures


def _picture(segmenter: Segmenter, sample, proposals: Proposals, rules: Sequence[SegmentationSettings]) -> Picture:
    responses = segmenter.respond([sample.image])
    (found,) = segmenter.walk(responses, segmenter.find_peaks(responses, *rules))
    passing = {}
    for rule in rules:
        peaks = segmenter.find_peaks(responses, rule).peaks[:, 1:]
        passes = (found.peaks[:, None] == peaks[None]).all(2).any(1)
        passing[rule.class_threshold, rule.peak_minimum] = passes.cpu().numpy()
    fitted = fit(found, proposals, segmenter.settings).to("cpu")
    inside, contour, _ = (part.copy() for part in np.moveaxis(fitted.sums.numpy(), 2, 0))
    confidence = found.scores.double().sigmoid()[found.peaks[:, 0]].cpu().numpy()
    # Of Q, which depends on the bias, the maps are kept.
    fitted = replace(fitted, sums=fitted.sums.new_empty(0))
    labels = found.peaks[:, 0].cpu().numpy()
    return Picture(
        labels=labels, share=found.share.cpu().numpy(), rules=passing, fitted=fitted, inside=inside, contour=contour,
        confidence=confidence,
        present=np.isin(labels, sample.labels),
        truth=None if sample.masks is None else Proposals.from_masks(sample.masks),
        true_labels=sample.mask_labels,
    )  # fmt: skip
