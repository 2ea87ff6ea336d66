"""The second choice among proposals, beside Eq. 6 and not the paper's: a log-linear score with few, named weights.

L(R, S) = sum over the terms t of w_t * log(max(t, 1e-6))

Terms of a Peak Response Map R and a proposal S: the mass of R inside S, the mean over S of the class's response from 0
to 1, S's objectness, the share of S that is not background Q, the mass of R on the contour of S. `fit` makes them once
from what Eq. 6 is made of, and a search asks them many times, as it does the sums of Eq. 6.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from prm.settings import SegmentationSettings

from .masks import CHUNK, Proposals, keyed
from .runs import run_sums
from .scores import best

LEAST = 1e-6  # of a term, before its logarithm is taken
WEIGHTS = ("mass", "response", "objectness", "inside", "on_contour")
"""The settings that hold the terms' weights are called weight_ and these, in the order of the terms."""


@dataclass(frozen=True, eq=False)
class Factors:
    """What the second choice needs of P Peak Response Maps and K proposals beside the sums of Eq. 6.

    mass : (P, K) float64, smoothed R over S
    response : (n, K) float64, mean over S of the response of each of n classes
    objectness : (K,) float64
    area : (K,) int64, pixels at the size of R; one of none is never chosen
    holds : (P, K) bool, whether S holds the strongest pixel of R
    """

    mass: Tensor
    response: Tensor
    objectness: Tensor
    area: Tensor
    holds: Tensor

    def to(self, device: torch.device | str) -> Factors:
        return Factors(*(getattr(self, f.name).to(device) for f in fields(self)))


def factors(prms: Tensor, N: Tensor, masks: Proposals, sums: Tensor, smooth: float) -> Factors:
    """prms: (P, H, W); N: (n, H, W), the `enlarged_response` of their classes; masks: H x W; sums: those of Eq. 6."""
    area, runs = masks.areas(), (masks.starts, masks.ends, masks.offsets)
    mass = sums[..., 0]
    if smooth > 0:
        some = max(1, CHUNK // (masks.height * masks.width))
        mass = torch.cat([run_sums(smoothed(R, smooth).flatten(1), *runs) for R in prms.split(some)])
    response = run_sums(N.flatten(1), *runs) / area.clamp(min=1)
    objectness = torch.ones(len(masks), dtype=torch.float64, device=area.device)
    if masks.objectness is not None:
        objectness = masks.objectness.to(objectness)
    return Factors(mass, response, objectness, area, holding(masks, prms.flatten(1).argmax(1)))


def smoothed(prms: Tensor, smooth: float) -> Tensor:
    """PRMs (P, H, W) through a Gaussian of `smooth` times the shorter side, cut off at 4 standard deviations.

    Mirrored at the border, so that sums stay.
    """
    sigma = smooth * min(prms.shape[1:])
    reach = int(4 * sigma + 0.5)
    kernel = torch.arange(-reach, reach + 1, dtype=torch.float64).div(sigma).square().mul(-0.5).exp()
    kernel = (kernel / kernel.sum()).to(prms)
    for axis in (1, 2):
        # The mirror may be wider than the map, which F.pad refuses.
        at = torch.from_numpy(np.pad(np.arange(prms.shape[axis]), reach, mode="symmetric")).to(prms.device)
        shape = (1, 1, -1, 1) if axis == 1 else (1, 1, 1, -1)
        prms = F.conv2d(prms.index_select(axis, at)[:, None], kernel.view(shape))[:, 0]
    return prms


def holding(masks: Proposals, positions: Tensor) -> Tensor:
    """Whether each mask holds each of the positions, (P,) row-major: (P, K) bool."""
    starts, ends = keyed(masks)
    bases = torch.arange(len(masks), device=masks.device) * (masks.height * masks.width + 1)
    keys = bases[None] + positions[:, None]
    # Runs of all masks lie on one line and never touch: up to a key as many begin as end, or one more inside.
    begun, ended = (torch.searchsorted(side, keys, right=True) for side in (starts, ends))
    return begun > ended


def log_linear(terms: Tensor, weights: Sequence[float]) -> Tensor:
    """L from its terms: (..., 5) float64 -> (...)."""
    L = terms.new_zeros(terms.shape[:-1])
    # Not a matrix product, which rounds equal rows differently.
    for term, weight in zip(terms.unbind(-1), weights):
        if weight:
            L += weight * term.clamp(min=LEAST).log()
    return L


def all_terms(found: Factors, sums: Tensor, over_background: Tensor, of: Tensor) -> Tensor:
    """The terms of every peak with every proposal, (P, K, 5).

    sums: those of Eq. 6; over_background: (P, K), Q over S; of: (P,) the row of `response` of each peak.
    """
    inside = 1 - over_background / found.area.clamp(min=1)
    objectness = found.objectness.expand_as(found.mass)
    return torch.stack([found.mass, found.response[of], objectness, inside, sums[..., 1]], dim=2)


def candidates(found: Factors, allowed: Tensor, seed_pixel: str) -> Tensor:
    """Which proposals may be chosen for which peak, (P, K) bool; seed_pixel as in the settings."""
    may = (allowed & (found.area > 0)).expand_as(found.holds)
    if seed_pixel == "free":
        return may
    holding_too = may & found.holds
    if seed_pixel == "require":
        return holding_too
    return torch.where(holding_too.any(1, keepdim=True), holding_too, may)


def ranked(terms: Tensor, may: Tensor, weights: Sequence[float]) -> Tensor:
    """What a peak chooses by, of terms (P, K, 5) and candidates (P, K): (P, K), -inf for what is no candidate.

    L; but objectness that alone has a weight is compared itself: that is the assignment of WISE, and logarithms may
    coincide.
    """
    alone = weights[2] > 0 and sum(w > 0 for w in weights) == 1
    return (terms[..., 2] if alone else log_linear(terms, weights)).masked_fill(~may, -torch.inf)


def best_fit(terms: Tensor, may: Tensor, weights: Sequence[float]) -> Tensor:
    """The first of the best of each peak, arguments as for `ranked`: (P,) int64, -1 for none."""
    return torch.where(may.any(1), best(ranked(terms, may, weights), may.any(0)), -1)


def weights_of(settings: SegmentationSettings) -> list[float]:
    return [getattr(settings, f"weight_{name}") for name in WEIGHTS]
