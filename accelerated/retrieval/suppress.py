"""Algorithm 1, lines 10-13: non-maximum suppression, which merges Peak Response Maps."""

from collections.abc import Mapping, Sequence

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
    overlaps, value, label, keys = (t.tolist() for t in (overlap, scores, labels, peaks))
    suppressed: dict[int, list[int]] = {}
    for i in sorted(range(len(value)), key=lambda i: (-value[i], label[i], keys[i])):
        rivals = (k for k in suppressed if overlaps[i][k] and (label[i] == label[k] or not per_class))
        winner = next(rivals, None)
        if winner is None:
            suppressed[i] = []
        else:
            suppressed[winner].append(i)
    return suppressed


def nms(
    masks: Proposals,
    scores: Tensor,
    labels: Tensor,
    peaks: Tensor,
    prms: Tensor,
    iou: float = 0.3,
    per_class: bool = False,
) -> tuple[Tensor, Tensor]:
    """Keep one of the instances that overlap, and give it the Peak Response Maps of those it suppresses.

    masks: n instances' masks. scores (n,) float, labels (n,) int64, peaks (n, 2) row and column, prms (n, H, W).
    Instances are taken by falling score, equal scores by (class, row, column). One whose mask IoU with a kept one is
    >= `iou` is suppressed, by the first such in the order of keeping; with `per_class` only those of its own class
    count.

    Returns kept (k,) int64, in that order, and the kept ones' PRMs (k, H, W), see `merged`. Scores and terms of a kept
    instance stay its own.
    """
    count = len(masks)
    for name, array in (("scores", scores), ("labels", labels), ("peaks", peaks), ("prms", prms)):
        if len(array) != count:
            raise InputError(f"nms: {count} masks but {len(array)} {name}")
    suppressed = suppression(masks.ious() >= iou, scores, labels, peaks, per_class)
    return torch.tensor(list(suppressed), dtype=torch.int64, device=prms.device), merged(prms, suppressed)


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
