"""Eq. 6: from Peak Response Maps to proposals, on run-length encoded masks.

Score(R, S) = alpha * sum(R over S) + sum(R over contour(S)) - beta * sum(Q over S)

R is a Peak Response Map with sum 1, S a proposal's mask, Q the background mask of R's class. The sum of a map over a
mask is taken from the map's cumulative sum at the ends of the mask's runs: no array of P x K x H x W or K x H x W
numbers ever exists. Everything that needs only the picture's proposals is done once by `prepare`.

beta in this module is the literal factor of Eq. 6, which multiplies a pixel count. The setting that users see is
stated per image area, so that it carries over between sizes: beta = beta_area / (H * W), H x W the size of R.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from prm import InputError

from .masks import CHUNK, Proposals, checked_indices
from .runs import run_sums


def enlarged_response(maps: Tensor, shape: tuple[int, int]) -> Tensor:
    """Classes' responses from 0 to 1: maps (n, h, w), un-enlarged -> (n, H, W) float64 at `shape`.

    Each is scaled by its own minimum and maximum, then enlarged bilinearly (corners not aligned); a constant one is 1.
    """
    maps = maps.double()
    if len(maps) == 0:
        return maps.new_zeros(0, *shape)
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    scaled = torch.where(high > low, (maps - low) / torch.where(high > low, high - low, 1), 1)
    return F.interpolate(scaled[None], size=tuple(shape), mode="bilinear", align_corners=False)[0]


def background(maps: Tensor, classes: Tensor | Sequence[int], shape: tuple[int, int], bias: float) -> Tensor:
    """Q of Eq. 6: where a class's response is weak, (n, H, W) bool for the n entries of `classes`.

    maps: (C, h, w), one image's class response maps M, un-enlarged. Q = 1 where the `enlarged_response` of `shape` =
    (H, W) is < bias * its mean. A constant map has Q = 0 everywhere. Raises InputError for non-finite maps.
    """
    if maps.ndim != 3 or not maps.is_floating_point():
        raise InputError(f"class response maps must be (C, h, w) float, not {tuple(maps.shape)} {maps.dtype}")
    maps = maps[checked_indices(classes, len(maps), "class", maps.device)].double()
    if not maps.isfinite().all():
        raise InputError("class response maps hold a value that is not finite")
    varied = maps.amax((1, 2), keepdim=True) > maps.amin((1, 2), keepdim=True)
    Q = maps.new_empty(len(maps), *shape, dtype=torch.bool)
    some = max(1, CHUNK // (shape[0] * shape[1]))
    for part, varies, out in zip(maps.split(some), varied.split(some), Q.split(some)):
        N = enlarged_response(part, shape)
        torch.logical_and(N < bias * N.mean((1, 2), keepdim=True), varies, out=out)
    return Q


@dataclass(frozen=True, eq=False)
class Prepared:
    """One picture's proposals, ready for Eq. 6 at the size of R.

    masks, contours: K masks each, H x W. allowed: (K,) bool, whether the area fraction lies inside the limits.
    """

    masks: Proposals
    contours: Proposals
    allowed: Tensor

    def to(self, device: torch.device | str) -> "Prepared":
        return Prepared(self.masks.to(device), self.contours.to(device), self.allowed.to(device))


def prepare(
    proposals: Proposals, shape: tuple[int, int], width: int = 5, min_area: float = 2e-5, max_area: float = 0.85
) -> Prepared:
    """What Eq. 6 needs of a picture's proposals, once for all its peaks.

    shape: (H, W), the size of R; masks of another size are resized to it. width: of the contour, in pixels at that
    size.
    min_area, max_area: a proposal takes part if min_area <= its share of its own picture < max_area.
    """
    masks = proposals.resized(*shape)
    fraction = proposals.areas().double() / (proposals.height * proposals.width)
    return Prepared(masks, masks.contours(width), (fraction >= min_area) & (fraction < max_area))


def terms(prms: Tensor, prepared: Prepared, background: Tensor, classes: Tensor | Sequence[int]) -> Tensor:
    """The three sums of Eq. 6 before they are weighted, (P, K, 3) float64: R over S, R over contour(S), Q over S.

    prms: (P, H, W) float, each with sum 1. background: (n, H, W), Q of n classes. classes: (P,) integers, for each
    map the row of `background` that is its class's Q. Proposals outside the area limits are summed too: `best` passes
    them over.
    """
    masks, contours = prepared.masks, prepared.contours
    shape = (masks.height, masks.width)
    if prms.ndim != 3 or tuple(prms.shape[1:]) != shape or not prms.is_floating_point():
        raise InputError(f"PRMs must be (P, {shape[0]}, {shape[1]}) float, not {tuple(prms.shape)} {prms.dtype}")
    if background.ndim != 3 or tuple(background.shape[1:]) != shape:
        raise InputError(f"background must be (n, {shape[0]}, {shape[1]}), not {tuple(background.shape)}")
    classes = checked_indices(classes, len(background), "background", prms.device)
    if len(classes) != len(prms):
        raise InputError(f"{len(prms)} PRMs but {len(classes)} classes")
    # Masks and contours in one list, so that each PRM is summed up once.
    starts, ends = torch.cat([masks.starts, contours.starts]), torch.cat([masks.ends, contours.ends])
    offsets = torch.cat([masks.offsets, contours.offsets[1:] + len(masks.starts)])
    some = max(1, CHUNK // (shape[0] * shape[1]))
    # float32 holds the 0 and 1 of Q exactly.
    over_background = torch.cat([
        run_sums(Q.flatten(1).float(), masks.starts, masks.ends, masks.offsets) for Q in background.split(some)
    ])  # fmt: skip
    sums = torch.empty(len(prms), len(masks), 3, dtype=torch.float64, device=prms.device)
    some = max(1, CHUNK // max(1, len(offsets)))
    for R, c, S in zip(prms.split(some), classes.split(some), sums.split(some)):
        over_both = run_sums(R.flatten(1), starts, ends, offsets)
        if over_both.numel() and not all(bound.isfinite() for bound in over_both.aminmax()):
            raise InputError("a PRM holds a value that is not finite")
        S[..., 0], S[..., 1] = over_both.tensor_split([len(masks)], dim=1)
        S[..., 2] = over_background[c]
    return sums


def score(terms: Tensor, alpha: float, beta: float) -> Tensor:
    """Eq. 6 from its three terms, (..., 3) -> (...); beta is literal, beta_area / (H * W)."""
    return alpha * terms[..., 0] + terms[..., 1] - beta * terms[..., 2]


def first_maximum(scores: Tensor, allowed: Tensor) -> Tensor:
    """Each row's first maximum where `allowed`: scores (P, K) float, allowed (K,) bool -> (P,) int64, or -1 for none.

    A NaN counts as the greatest value, as in torch.argmax; one that is not allowed counts as minus infinity.
    """
    if scores.shape[1] == 0:
        return torch.full((len(scores),), -1, dtype=torch.int64, device=scores.device)
    choice = scores.masked_fill(~allowed, -torch.inf).argmax(1)
    return torch.where(allowed.any(), choice, -1)


# The function keeps its own name: a GPU's kernel gives way to it where it is the faster one.
best_proposal = torch.library.custom_op("prm::best_proposal", first_maximum, mutates_args=())


@best_proposal.register_fake
def _(scores, allowed):
    return scores.new_empty(scores.shape[0], dtype=torch.int64)


def best(scores: Tensor, allowed: Tensor) -> Tensor:
    """Each PRM's best proposal: scores (P, K), allowed (K,) bool -> (P,) int64, the first maximum.

    -1 where no proposal is allowed.
    """
    if scores.ndim != 2 or allowed.shape != scores.shape[1:]:
        raise InputError(f"scores {tuple(scores.shape)} and allowed {tuple(allowed.shape)} do not fit each other")
    return best_proposal(scores, allowed)
