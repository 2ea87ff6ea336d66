"""Where the grouping keeps its regions: one table for those of a source, and the sums that the ranking needs."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numba import njit

# Columns of a table of regions, one int64 row each. A region is where low <= rank < high, or low2 <= rank < high2; it
# lies in the rows top .. bottom - 1 and the columns left .. right - 1. Its hash is the sum of its pixels' random keys:
# it finds equal masks without making any, and a union's hash is the sum of its parts'.
LOW, HIGH, AREA, TOP, LEFT, BOTTOM, RIGHT, HASH, LOW2, HIGH2 = range(10)
# Columns of a region's sums, float64: pixel sides of its border inside the picture, edge strength along it, and the
# three colours of its pixels.
LENGTH, STRENGTH, COLOUR = range(3)
# Compiled functions of other modules hold these numbers too, and their caches on disk do not see a change here: it
# needs an edit there as well.


@dataclass(frozen=True, eq=False)
class Layer:
    """Regions of one source, `regions` (n, 10) with their `sums` (n, 5).

    The ranks are run-length encoded in row-major order: starts (r + 1,), the last one h * w, and ranks (r,).
    """

    starts: np.ndarray
    ranks: np.ndarray
    regions: np.ndarray
    sums: np.ndarray

    @classmethod
    def of(cls, rank_map, regions, sums) -> "Layer":
        flat = rank_map.ravel()
        starts = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1, [flat.size]])
        return cls(starts, flat[starts[:-1]], regions, sums)


class Picture(NamedTuple):
    """What regions are measured on: colours (h, w, 3) float32, smooth Lab; edges (h, w) float32; keys (h, w) int64."""

    colours: np.ndarray
    edges: np.ndarray
    keys: np.ndarray


@njit(cache=True)
def describe(labels, count, colours, edges, keys):
    """Each label's row of the region table, and its sums."""
    table = np.zeros((count, 10), np.int64)
    table[:, TOP] = labels.shape[0]
    table[:, LEFT] = labels.shape[1]
    sums = np.zeros((count, 5), np.float64)
    for k in range(count):
        table[k, LOW] = k
        table[k, HIGH] = k + 1
    for i in range(labels.shape[0]):
        for j in range(labels.shape[1]):
            k = labels[i, j]
            table[k, AREA] += 1
            table[k, TOP] = min(table[k, TOP], i)
            table[k, LEFT] = min(table[k, LEFT], j)
            table[k, BOTTOM] = max(table[k, BOTTOM], i + 1)
            table[k, RIGHT] = max(table[k, RIGHT], j + 1)
            table[k, HASH] += keys[i, j]
            for c in range(3):
                sums[k, COLOUR + c] += colours[i, j, c]
            for di, dj in ((0, 1), (1, 0)):
                if i + di < labels.shape[0] and j + dj < labels.shape[1] and labels[i + di, j + dj] != k:
                    step = max(edges[i, j], edges[i + di, j + dj])
                    for side in (k, labels[i + di, j + dj]):
                        sums[side, LENGTH] += 1
                        sums[side, STRENGTH] += step
    return table, sums
