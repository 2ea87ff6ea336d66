"""WISE (Laradji et al., BMVC 2019): peaks to seeds, seeds to pseudo masks, masks refined, on run-length proposals.

A seed is a pixel with a class, the strongest of a peak's map. Each seed takes one class-agnostic proposal that holds
it, for training a network of instances; at test time that network's masks may snap to proposals again. Classes count
from 0, and stand in maps and seeds as class + 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from prm import InputError

from .peak_stimulation import enlarge
from .retrieval import Proposals
from .retrieval.log_linear import holding

REFINE_BEST = 100
"""How many proposals of a picture are eligible for `refine` where no threshold is given."""


def seed_map(peaks: Tensor, maps: Tensor, size: tuple[int, int] | None = None) -> Tensor:
    """Where the seeds of a picture lie: (H, W) int64, class + 1 at a seed and 0 elsewhere.

    peaks : (K, 3) int64, rows (class, row, column), in that order
    maps : (K, h, w) >= 0, of each peak: Peak Response Maps, or `gradient_maps`
    size : (H, W) of the picture; None is that of the maps

    A peak's seed is the pixel of its map's maximum, the first in row-major order, and lies where that pixel's centre
    does in the picture. Of two peaks that end on one pixel the later one stays. A map of zeros gives no seed.
    """
    if maps.ndim != 3 or len(maps) != len(peaks):
        raise InputError(f"seed_map: {len(peaks)} peaks and maps {tuple(maps.shape)}; one map (h, w) a peak is needed")
    H, W = size or (maps.shape[1], maps.shape[2])
    some = maps.flatten(1).any(1)
    rows, columns = strongest_pixels(maps[some], (H, W)).unbind(1)
    last = torch.full((H * W,), -1, dtype=torch.int64, device=maps.device)
    last.scatter_reduce_(0, rows * W + columns, torch.arange(len(rows), device=maps.device), "amax")
    labels = peaks[some, 0] + 1
    taken = last >= 0
    return torch.zeros_like(last).masked_scatter(taken, labels[last[taken]]).view(H, W)


def strongest_pixels(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Where in a picture of `size` each map's first maximum lies: (K, h, w) -> (K, 2) int64 rows and columns."""
    (h, w), (H, W) = maps.shape[1:], size
    at = maps.flatten(1).argmax(1)
    return torch.stack([(2 * (at // w) + 1) * H // (2 * h), (2 * (at % w) + 1) * W // (2 * w)], dim=1)


def seeds_of(seed_map: Tensor) -> Tensor:
    """The seeds of a `seed_map`, (s, 3) int64 rows (row, column, class + 1), row-major."""
    rows, columns = seed_map.nonzero(as_tuple=True)
    return torch.stack([rows, columns, seed_map[rows, columns]], dim=1)


def gradient_maps(model: nn.Module, inputs: Tensor, peaks: Tensor, upsample: int = 1) -> Tensor:
    """What the released code of WISE takes for a peak's map, (K, H, W): relu of the sum over channels of the plain
    gradient of the response at the peak.

    model : a classifier in evaluation mode; inputs : (1, 3, H, W); peaks : (K, 3), rows (class, row, column) on the
    response maps enlarged by `upsample`.
    """
    with torch.enable_grad():
        inputs = inputs.detach().requires_grad_()
        maps = enlarge(model(inputs), upsample)[0]
        found = [torch.autograd.grad(maps[tuple(peak)], inputs, retain_graph=True)[0][0] for peak in peaks.tolist()]
    return torch.stack(found).sum(1).relu() if found else inputs.new_zeros(0, *inputs.shape[2:])


@dataclass(frozen=True, eq=False)
class Assigned:
    """The pseudo labels of a picture's seeds; seeds that no proposal holds are left out.

    seeds : (a,) int64, which of the seeds; labels : (a,) int64, class + 1
    proposals : (a,) int64, the first of highest objectness that holds the seed; scores : (a,) float64, its objectness
    probabilities : (a, n) float64, of drawing each proposal instead, 0 for those that do not hold the seed
    """

    seeds: Tensor
    labels: Tensor
    proposals: Tensor
    scores: Tensor
    probabilities: Tensor


def assign(proposals: Proposals, seeds: Tensor) -> Assigned:
    """One proposal for each seed, of n with objectness; seeds : (s, 3) int64 rows (row, column, class + 1).

    Raises InputError for proposals without objectness and for seeds outside of their picture.
    """
    if proposals.objectness is None:
        raise InputError("assign: proposals without objectness; give them one, or generate proposals")
    rows, columns, labels = seeds.unbind(1)
    if len(seeds) and not bool(((seeds[:, :2] >= 0) & (seeds[:, :2] < seeds.new_tensor(
        [proposals.height, proposals.width]))).all()):  # fmt: skip
        raise InputError(f"assign: a seed lies outside of the picture, {proposals.height} x {proposals.width}")
    holds = holding(proposals, rows * proposals.width + columns)
    kept = holds.any(1).nonzero()[:, 0]
    holds, objectness = holds[kept], proposals.objectness.double()
    if not len(kept):
        none = labels[:0]
        return Assigned(none, none, none, objectness[:0], holds.double())
    ranked = objectness.masked_fill(~holds, -torch.inf)
    best = ranked.argmax(1)
    weights = objectness.where(holds, 0.0)
    weights = torch.where(weights.sum(1, keepdim=True) > 0, weights, holds.double())
    return Assigned(kept, labels[kept], best, objectness[best], weights / weights.sum(1, keepdim=True))


def drawn(probabilities: Tensor, u: Tensor) -> Tensor:
    """The proposals (a,) that u (a,) in [0, 1) draw by the law of each seed, (a, n): the first k for which the
    probabilities up to k sum to more than u; the last that has any where rounding leaves no such k."""
    if not len(probabilities):
        return u.long()
    k = torch.searchsorted(probabilities.cumsum(1), u.double()[:, None], right=True)[:, 0]
    last = probabilities.shape[1] - 1 - (probabilities > 0).flip(1).to(torch.uint8).argmax(1)
    return torch.minimum(k, last)


def refine(detections: Proposals, proposals: Proposals, threshold: float | None = None) -> Proposals:
    """Masks of a network, each replaced by the eligible proposal of highest IoU with it, the first such.

    Eligible are proposals of an objectness above the threshold (poster: 0.75); None: the `REFINE_BEST` best, less
    those that tie with the next. Without an eligible one, and where all IoUs are 0, a mask stays.
    """
    if proposals.objectness is None:
        raise InputError("refine: proposals without objectness; give them one, or generate proposals")
    objectness = proposals.objectness
    if threshold is None:
        beyond = objectness.sort(descending=True).values[REFINE_BEST : REFINE_BEST + 1]
        threshold = float(beyond) if len(beyond) else -1.0
    eligible = proposals.select((objectness > threshold).nonzero()[:, 0])
    if not len(eligible) or not len(detections):
        return detections
    ious = detections.ious(eligible)
    own = torch.arange(len(detections), device=ious.device)
    both = Proposals.concatenate([detections, eligible])
    return both.select(torch.where(ious.any(1), ious.argmax(1) + len(detections), own))
