"""Which of all sources' regions are proposals, and in what order: promise, and variety among the first."""

import numpy as np
import torch
from numba import njit

from prm.accelerated.retrieval import Proposals

from .layers import AREA, BOTTOM, COLOUR, HASH, HIGH, HIGH2, LEFT, LENGTH, LOW, LOW2, RIGHT, STRENGTH, TOP

_UNION = 0.5  # factor of a union's promise: it is a thing less often than a region that the grouping made


def rank(layers, limit, picture, settings) -> Proposals:
    """The `limit` most promising regions, each once.

    What resembles a more promising region loses promise: a small limit is spent on variety.
    """
    shape = picture.edges.shape
    table = np.concatenate([layer.regions for layer in layers])
    sums = np.concatenate([layer.sums for layer in layers])
    layer = np.repeat(np.arange(len(layers)), [len(one.regions) for one in layers])
    fit = np.flatnonzero(table[:, AREA] >= min(settings.min_area, shape[0] * shape[1]))
    fit = fit[np.unique(table[fit, HASH], return_index=True)[1]]
    table, layer = table[fit], layer[fit]
    promise = _promise(table, sums[fit], picture)
    order = np.lexsort((fit, -promise))[: max(settings.candidates, limit)]
    table, promise = table[order], promise[order]
    starts, ends, offsets = _runs(layers, layer[order], table, shape[1])
    for iou, factor in settings.duplicates:
        promise[_near_duplicates(starts, ends, offsets, table, iou)] *= factor
    chosen = np.argsort(-promise, kind="stable")[:limit]
    proposals = Proposals(*shape, *(torch.from_numpy(array) for array in (starts, ends, offsets)))
    return proposals.select(torch.from_numpy(chosen))


def _promise(table, sums, picture) -> np.ndarray:
    """(n,) float64: rises with the edges along a region's border, the colours' difference, compactness and size."""
    area = table[:, AREA]
    filling = area / ((table[:, BOTTOM] - table[:, TOP]) * (table[:, RIGHT] - table[:, LEFT]))
    contrast = sums[:, STRENGTH] / np.maximum(sums[:, LENGTH], 1)
    promise = np.sqrt(contrast * _colour_distance(table, sums, picture.colours)) * filling * area**0.3
    return np.where(table[:, HIGH2] > 0, _UNION * promise, promise)


def _colour_distance(table, sums, colours) -> np.ndarray:
    """How far a region's mean colour is from that of the rest of its box, 15 % wider on each side, (n,) float64."""
    # Sums over boxes from running totals over rows and columns.
    totals = np.zeros((colours.shape[0] + 1, colours.shape[1] + 1, 3))
    totals[1:, 1:] = colours.cumsum(0, dtype=np.float64).cumsum(1)
    more = 2 + 0.15 * (table[:, (BOTTOM, RIGHT)] - table[:, (TOP, LEFT)])
    top, left = np.maximum(table[:, (TOP, LEFT)] - more, 0).astype(np.int64).T
    bottom, right = np.minimum(table[:, (BOTTOM, RIGHT)] + more, colours.shape[:2]).astype(np.int64).T
    box = totals[bottom, right] - totals[top, right] - totals[bottom, left] + totals[top, left]
    area, inside = table[:, AREA, None], sums[:, COLOUR:]
    rest = np.maximum(((bottom - top) * (right - left))[:, None] - area, 1)
    return np.sqrt(((inside / area - (box - inside) / rest) ** 2).sum(1))


def _runs(layers, layer, table, width) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Run-length encode regions: starts, ends, offsets as in `Proposals`."""
    parts = [_region_runs(layers[k].starts, layers[k].ranks, region, width) for k, region in zip(layer, table)]
    offsets = np.cumsum([0] + [len(part) for part in parts])
    starts, ends = np.concatenate([np.zeros((0, 2), np.int64), *parts]).T.copy()
    return starts, ends, offsets


@njit(cache=True)
def _region_runs(starts, ranks, region, width):
    """A region's runs, (R, 2): first and one past last position."""
    low, high, low2, high2 = region[LOW], region[HIGH], region[LOW2], region[HIGH2]
    top, bottom = region[TOP], region[BOTTOM]
    first = np.searchsorted(starts, top * width, side="right") - 1
    last = np.searchsorted(starts, bottom * width)
    out = np.empty((last - first, 2), np.int64)
    count = 0
    for r in range(first, last):
        if low <= ranks[r] < high or low2 <= ranks[r] < high2:
            if count > 0 and out[count - 1, 1] == starts[r]:
                out[count - 1, 1] = starts[r + 1]
            else:
                out[count, 0], out[count, 1] = starts[r], starts[r + 1]
                count += 1
    return out[:count].copy()


@njit(cache=True)
def _near_duplicates(starts, ends, offsets, table, iou):
    """Which masks overlap an earlier one, that is itself no near-duplicate, by at least `iou`."""
    repeated = np.zeros(len(table), np.bool_)
    for k in range(len(table)):
        for j in range(k):
            small, large = min(table[k, AREA], table[j, AREA]), max(table[k, AREA], table[j, AREA])
            if repeated[j] or small < iou * large:
                continue
            high = min(table[k, BOTTOM], table[j, BOTTOM]) - max(table[k, TOP], table[j, TOP])
            wide = min(table[k, RIGHT], table[j, RIGHT]) - max(table[k, LEFT], table[j, LEFT])
            need = iou / (1 + iou) * (small + large)
            if high <= 0 or wide <= 0 or high * wide < need:
                continue
            if _shared(starts, ends, offsets[k], offsets[k + 1], offsets[j], offsets[j + 1]) >= need:
                repeated[k] = True
                break
    return repeated


@njit(cache=True)
def _shared(starts, ends, k, k_end, j, j_end):
    """Pixels common to two masks, from their runs."""
    shared = 0
    while k < k_end and j < j_end:
        shared += max(0, min(ends[k], ends[j]) - max(starts[k], starts[j]))
        if ends[k] < ends[j]:
            k += 1
        else:
            j += 1
    return shared
