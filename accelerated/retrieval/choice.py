"""Algorithm 1, lines 8-13: from a picture's Peak Response Maps and its proposals to instances.

The sums of Eq. 6, and the factors of the second choice, do not depend on the weights and cost most: `fit` makes them
once, `choose` asks them many times.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor

from prm.settings import SegmentationSettings

from ..stages import Walked
from .log_linear import Factors, all_terms, candidates, factors, log_linear, ranked, weights_of
from .masks import Proposals
from .runs import run_sums
from .scores import Prepared, background, best, enlarged_response, prepare, score, terms
from .suppress import Kept, assigned, rivals


@dataclass(frozen=True, eq=False)
class Fit:
    """Stage 4: how P Peak Response Maps lie on K proposals, whatever the weights of Eq. 6.

    proposals : K masks at the picture's own size
    masks : the same at the maps' size
    allowed : (K,) bool, whether the area lies inside the limits
    sums : (P, K, 3) float64: R over S, R over contour(S), and Q over S with the settings' bias
    maps : (n, h, w) response maps of the n classes that have a peak
    of : (P,) int64, each peak's row of `maps`
    factors : what else the second choice needs; None where the settings choose by Eq. 6
    """

    proposals: Proposals
    masks: Proposals
    allowed: Tensor
    sums: Tensor
    maps: Tensor
    of: Tensor
    factors: Factors | None = None

    def to(self, device: torch.device | str) -> Fit:
        """The same on another device."""
        parts = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{name: part.to(device) for name, part in parts.items() if part is not None})

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
    scores : (k,) float64, Eq. 6; of the second choice the class's confidence times exp(L / sum of weights)
    suppressed : for each, the peaks whose instances it suppressed
    """

    peaks: Tensor
    proposals: Tensor
    scores: Tensor
    suppressed: tuple[tuple[int, ...], ...] = ()


def fit(
    walked: Walked, proposals: Proposals, settings: SegmentationSettings, ready: Prepared | None = None
) -> Fit:  # fmt: skip
    """What every peak's choice among the proposals of its picture is made by: Algorithm 1, line 8 without the weights.

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
    maps, masks = walked.maps[classes], ready.masks
    sums = terms(walked.prms, ready, background(walked.maps, classes, size, s.bias), of)
    others = None
    if s.choice == "fit":
        others = factors(walked.prms, enlarged_response(maps, size), masks, sums, s.smooth)
    return Fit(proposals, masks, ready.allowed, sums, maps, of, others)


def choose(
    walked: Walked, fitted: Fit, settings: SegmentationSettings, keep: tuple[float, float, float] = (1, 1, 1)
) -> Choice:
    """The best proposal of each peak, by Eq. 6 or the second choice, then suppression: Algorithm 1, lines 8-13.

    With `choose_again` a peak whose proposal is suppressed takes its best one that is not, if there is one.
    settings: those that `fitted` was made with. keep: factors of the instance-aware, the boundary-aware and the
    class-aware term; 0 leaves one out. In the second choice they multiply the weights of mass, contour and inside.
    """
    s, proposals, device = settings, fitted.proposals, fitted.sums.device
    none = torch.zeros(0, dtype=torch.int64, device=device)
    if not len(walked.peaks) or not bool(fitted.allowed.any()):
        return Choice(none, none, none.double())
    ranks, scored = (_by_fit if s.choice == "fit" else _by_eq6)(walked, fitted, s, keep)
    candidate = ranks > -torch.inf
    with_one = candidate.any(1).nonzero()[:, 0]
    first, peaks = best(ranks[with_one], candidate.any(0)), walked.peaks[with_one]
    ordered = scored(with_one, first), peaks[:, 0], peaks[:, 1:]

    def another(peak: int, free: np.ndarray) -> tuple[int, float] | None:
        p = with_one[peak : peak + 1]
        row = ranks[p].masked_fill(~torch.from_numpy(free).to(device), -torch.inf)
        k = best(row, candidate.any(0))
        return (int(k), float(scored(p, k))) if row[0, k] > -torch.inf else None

    kept = _again(proposals, first, ordered, another, s) if s.choose_again else _once(proposals, first, ordered, s)
    if s.min_score is not None:
        kept = {p: one for p, one in kept.items() if one.score >= s.min_score}
    masks = none.new_tensor([one.mask for one in kept.values()])
    scores = none.new_tensor([one.score for one in kept.values()], dtype=torch.float64)
    suppressed = tuple(tuple(with_one[one.suppressed].tolist()) for one in kept.values())
    return Choice(with_one[list(kept)], masks, scores, suppressed)


Ordered = tuple[Tensor, Tensor, Tensor]
"""Scores, classes and positions of peaks: by these they are taken in order."""


def _once(proposals: Proposals, first: Tensor, ordered: Ordered, s: SegmentationSettings) -> dict[int, Kept]:
    """What suppression leaves of the first choices, which alone are compared."""
    chosen = proposals.select(first.to(proposals.device))
    rows = rivals(chosen, chosen, s.nms, s.nms_nested).cpu().numpy()
    kept = assigned(range(len(rows)), len(rows), *ordered, rows.__getitem__, s.nms_per_class)
    return {p: replace(one, mask=int(first[p])) for p, one in kept.items()}


def _again(proposals: Proposals, first: Tensor, ordered: Ordered, another, s) -> dict[int, Kept]:
    """As `_once`, where a peak may choose `another` of all proposals: each kept one is compared with all, no others."""

    def drops(k: int) -> np.ndarray:
        return rivals(proposals.select([k]), proposals, s.nms, s.nms_nested)[0].cpu().numpy()

    return assigned(first.tolist(), len(proposals), *ordered, drops, s.nms_per_class, another)


def _by_eq6(walked: Walked, fitted: Fit, s: SegmentationSettings, keep) -> tuple[Tensor, Callable]:
    """What every peak ranks the proposals by, (P, K), -inf for what it may not choose; and the scores of some."""
    sums = fitted.sums * torch.tensor(keep, dtype=torch.float64, device=fitted.sums.device)
    values = score(sums, s.alpha, s.beta_area / (fitted.masks.height * fitted.masks.width))
    return values.masked_fill(~fitted.allowed, -torch.inf), lambda peaks, chosen: values[peaks, chosen]


def _by_fit(walked: Walked, fitted: Fit, s: SegmentationSettings, keep) -> tuple[Tensor, Callable]:
    """As `_by_eq6`: by the second choice."""
    assert fitted.factors is not None
    terms = all_terms(fitted.factors, fitted.sums, fitted.sums[..., 2], fitted.of)
    weights = [w * k for w, k in zip(weights_of(s), (keep[0], 1, 1, keep[2], keep[1]))]
    confidence = walked.scores.double().sigmoid()[walked.peaks[:, 0]]

    def scored(peaks: Tensor, chosen: Tensor) -> Tensor:
        return confidence[peaks] * (log_linear(terms[peaks, chosen], weights) / (sum(weights) or 1)).exp()

    return ranked(terms, candidates(fitted.factors, fitted.allowed, s.seed_pixel), weights), scored
