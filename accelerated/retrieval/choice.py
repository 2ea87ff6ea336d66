"""Algorithm 1, lines 8-13: from a picture's Peak Response Maps and its proposals to instances.

The sums of Eq. 6 do not depend on its weights and cost most: `fit` makes them once, `choose` asks them many times.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from prm.settings import SegmentationSettings

from ..stages import Walked
from .masks import Proposals
from .runs import run_sums
from .scores import Prepared, background, best, prepare, score, terms
from .suppress import suppression


@dataclass(frozen=True, eq=False)
class Fit:
    """Stage 4: how P Peak Response Maps lie on K proposals, whatever the weights of Eq. 6.

    proposals : K masks at the picture's own size
    masks : the same at the maps' size
    allowed : (K,) bool, whether the area lies inside the limits
    sums : (P, K, 3) float64: R over S, R over contour(S), and Q over S with the settings' bias
    maps : (n, h, w) response maps of the n classes that have a peak
    of : (P,) int64, each peak's row of `maps`
    """

    proposals: Proposals
    masks: Proposals
    allowed: Tensor
    sums: Tensor
    maps: Tensor
    of: Tensor

    def to(self, device: torch.device | str) -> Fit:
        """The same on another device."""
        return Fit(*(getattr(self, f.name).to(device) for f in fields(self)))

    def over_background(self, bias: float) -> Tensor:
        """(n, K) float64: Q over S for each class, with another bias."""
        masks = self.masks
        Q = background(self.maps, range(len(self.maps)), (masks.height, masks.width), bias)
        return run_sums(Q.flatten(1).float(), masks.starts, masks.ends, masks.offsets)


@dataclass(frozen=True, eq=False)
class Choice:
    """Stage 5: k instances that suppression leaves, by falling score.

    peaks : (k,) int64, which of the picture's peaks
    proposals : (k,) int64, which of its proposals
    scores : (k,) float64, Eq. 6
    suppressed : for each, the peaks whose instances it suppressed
    """

    peaks: Tensor
    proposals: Tensor
    scores: Tensor
    suppressed: tuple[tuple[int, ...], ...] = ()


def fit(
    walked: Walked, proposals: Proposals, settings: SegmentationSettings, ready: Prepared | None = None
) -> Fit:  # fmt: skip
    """The sums of Eq. 6 of every peak with every proposal of its picture: Algorithm 1, line 8 without the weights.

    ready: what `retrieval.prepare` makes of the proposals for the settings and the maps' size; None: made here.
    """
    s, size = settings, (walked.prms.shape[1], walked.prms.shape[2])
    if not len(walked.peaks):  # nothing to fit: no contour is drawn
        none = torch.zeros(len(proposals), dtype=torch.bool, device=walked.prms.device)
        sums = walked.prms.new_zeros(0, len(proposals), 3, dtype=torch.float64)
        return Fit(proposals, proposals, none, sums, walked.maps[:0], walked.peaks[:, 0])
    if ready is None:
        ready = prepare(proposals.to(walked.prms.device), size, s.contour, s.min_area, s.max_area)
    classes, of = walked.peaks[:, 0].unique(return_inverse=True)
    sums = terms(walked.prms, ready, background(walked.maps, classes, size, s.bias), of)
    return Fit(proposals, ready.masks, ready.allowed, sums, walked.maps[classes], of)


def choose(
    walked: Walked, fitted: Fit, settings: SegmentationSettings, keep: tuple[float, float, float] = (1, 1, 1)
) -> Choice:
    """The best proposal of each peak by Eq. 6, then non-maximum suppression: Algorithm 1, lines 8-13.

    settings: those that `fitted` was made with. keep: factors of the instance-aware, the boundary-aware and the
    class-aware term; 0 leaves one out.
    """
    s, device = settings, fitted.sums.device
    if not len(walked.peaks) or not bool(fitted.allowed.any()):
        none = torch.zeros(0, dtype=torch.int64, device=device)
        return Choice(none, none, none.double())
    sums = fitted.sums * torch.tensor(keep, dtype=torch.float64, device=device)
    values = score(sums, s.alpha, s.beta_area / (fitted.masks.height * fitted.masks.width))
    choice = best(values, fitted.allowed)
    value = values.gather(1, choice[:, None])[:, 0]
    rivals = fitted.proposals.select(choice.to(fitted.proposals.device)).ious() >= s.nms
    left = suppression(rivals, value, walked.peaks[:, 0], walked.peaks[:, 1:], s.nms_per_class)
    kept = torch.tensor(list(left), dtype=torch.int64, device=device)
    return Choice(kept, choice[kept], value[kept], tuple(map(tuple, left.values())))
