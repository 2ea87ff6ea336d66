"""Algorithm 1, lines 10-13: non-maximum suppression, which merges Peak Response Maps."""

import heapq
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from prm import InputError

from .masks import Proposals


def suppression(
    overlap: Tensor, scores: Tensor, labels: Tensor, peaks: Tensor, per_class: bool = False
) -> dict[int, list[int]]:
    """Which of n instances are kept, in the order of keeping, and which each of them suppresses; see `nms`.

    overlap: (n, n) bool, whether two masks overlap too much.
    """
    rows = overlap.cpu().numpy()
    kept = assigned(range(len(rows)), len(rows), scores, labels, peaks, rows.__getitem__, per_class)
    return {i: one.suppressed for i, one in kept.items()}


@dataclass
class Kept:
    """What `assigned` gives a peak: its mask, the score, and the peaks that have none because of it."""

    mask: int
    score: float
    suppressed: list[int]


def assigned(
    choices: Sequence[int],
    masks: int,
    scores: Tensor,
    labels: Tensor,
    peaks: Tensor,
    drops: Callable[[int], np.ndarray],
    per_class: bool = False,
    another: Callable[[int, np.ndarray], tuple[int, float] | None] = lambda peak, free: None,
) -> dict[int, Kept]:
    """Which of P peaks get a mask, in the order of keeping; see `nms`.

    choices : (P,) each peak's best of so many `masks`; scores, labels, peaks : of the peaks, as for `nms`
    drops : tells of a mask that is kept which masks it drops, (masks,) bool
    another : what a peak chooses, and the score, of the masks that are free, (masks,) bool; None where none is left
    """
    value, label, keys = (t.tolist() for t in (scores, labels, peaks))
    waiting = [(-value[p], label[p], keys[p], p, int(k)) for p, k in enumerate(choices)]
    heapq.heapify(waiting)
    kept: dict[int, Kept] = {}
    # For each class, or for all: the kept peak that dropped a mask first, -1 for a mask that is free.
    dropped: dict[int | None, np.ndarray] = defaultdict(lambda: np.full(masks, -1))
    lost = []
    while waiting:
        negative, of, key, p, mask = heapq.heappop(waiting)
        by = dropped[of if per_class else None]
        if by[mask] < 0:
            kept[p] = Kept(mask, -negative, [])
            by[drops(mask) & (by < 0)] = p
        elif (found := another(p, by < 0)) is not None:
            heapq.heappush(waiting, (-found[1], of, key, p, found[0]))
        else:
            lost.append(p)
    for p in lost:
        kept[dropped[label[p] if per_class else None][choices[p]]].suppressed.append(p)
    return kept


def nms(
    masks: Proposals,
    scores: Tensor,
    labels: Tensor,
    peaks: Tensor,
    prms: Tensor,
    iou: float = 0.3,
    per_class: bool = False,
    nested: float | None = None,
    again: bool = False,
) -> tuple[Tensor, Tensor]:
    """Keep one of the instances that overlap, and give it the Peak Response Maps of those it suppresses.

    masks: n instances' masks. scores (n,) float, labels (n,) int64, peaks (n, 2) row and column, prms (n, H, W).
    Instances are taken by falling score, equal scores by (class, row, column). One whose mask IoU with a kept one is
    >= `iou` is suppressed, by the first such in the order of keeping; with `per_class` only those of its own class
    count. nested: suppressed too where this share of the smaller of two masks lies in the other. again: instances of
    one class and peak are that peak's choices, see `SegmentationSettings.choose_again`.

    Returns kept (k,) int64, in that order, and the kept ones' PRMs (k, H, W), see `merged`. Scores and terms of a kept
    instance stay its own.
    """
    count = len(masks)
    for name, array in (("scores", scores), ("labels", labels), ("peaks", peaks), ("prms", prms)):
        if len(array) != count:
            raise InputError(f"nms: {count} masks but {len(array)} {name}")
    value, rows = scores.tolist(), rivals(masks, masks, iou, nested).cpu().numpy()
    of_peak: dict[object, list[int]] = defaultdict(list)
    for i, peak in enumerate(zip(labels.tolist(), *peaks.T.tolist())):
        of_peak[peak if again else i].append(i)
    choices = [sorted(own, key=lambda i: -value[i]) for own in of_peak.values()]
    first = [own[0] for own in choices]

    def another(peak: int, free: np.ndarray) -> tuple[int, float] | None:
        return next(((i, value[i]) for i in choices[peak] if free[i]), None)

    ordered = scores[first], labels[first], peaks[first]
    kept = assigned(first, count, *ordered, rows.__getitem__, per_class, another)
    suppressed = {one.mask: [first[p] for p in one.suppressed] for one in kept.values()}
    return torch.tensor(list(suppressed), dtype=torch.int64, device=prms.device), merged(prms, suppressed)


def rivals(masks: Proposals, others: Proposals, iou: float, nested: float | None = None) -> Tensor:
    """Whether each mask overlaps each of `others` too much, (K, K2) bool: by IoU, or by its share of the smaller."""
    shared, areas, theirs = masks.intersections(others).double(), masks.areas()[:, None], others.areas()
    too_much = shared / (areas + theirs - shared).clamp(min=1) >= iou
    if nested is not None:
        too_much |= shared / torch.minimum(areas, theirs).clamp(min=1) >= nested
    return too_much


def merged(prms: Tensor, suppressed: Mapping[int, Sequence[int]]) -> Tensor:
    """The kept ones' PRMs (k, H, W), of prms (n, H, W) and what `suppression` tells: each plus those it suppressed,
    divided by its total again."""
    kept = prms[torch.tensor(list(suppressed), dtype=torch.int64, device=prms.device)]
    for total, losers in zip(kept, suppressed.values()):
        if losers:
            for loser in losers:
                total += prms[loser]
            total /= total.sum().clamp(min=torch.finfo(total.dtype).tiny)
    return kept
