"""How likely a proposal is a thing, from the picture alone: what differs from its surroundings and has a plain outline.

Nothing is learned from masks. For a proposal S, of A pixels, whose outline has L pixel sides inside the picture:

    contrast    t = |mean colour in S - mean colour in the ring| / (5 + sqrt(the variances' sum)), colours 0..255, the
                ring being what a dilation by a square of RING pixels adds to S; variances summed over the channels
    compactness c = 4 pi A / (pi / 4 * L)^2, at most 1: pi / 4 * L is the length of a circle's outline
    rank        r = log(20) / log(20 + place), place counting from 0 in the order that the proposals came in
    objectness  o = x / (1 + x), x = t * c * r
"""

import numpy as np
import torch
from numba import njit

from prm.accelerated.retrieval import Proposals

RING = 9
_NOISE = 5.0  # levels of 255 by which what is even may differ
_FIRST = 20.0  # so many first places count nearly the same


def objectness(image: np.ndarray, proposals: Proposals) -> torch.Tensor:
    """(K,) float64 in [0, 1) for proposals of a picture (H, W, 3) of 0..255; 0 for an empty one and for the whole."""
    totals = np.zeros((image.shape[0] * image.shape[1] + 1, 4))
    pixels = image.reshape(-1, 3).astype(np.float64)
    totals[1:, :3], totals[1:, 3] = pixels.cumsum(0), (pixels**2).sum(1).cumsum()
    ring = proposals.contours(RING)
    runs = (array.numpy() for part in (proposals, ring) for array in (part.starts, part.ends, part.offsets))
    contrast, compactness = _measured(totals, *runs, image.shape[1])
    x = contrast * compactness * np.log(_FIRST) / np.log(_FIRST + np.arange(len(proposals)))
    return torch.from_numpy(x / (1 + x))


@njit(cache=True)
def _measured(totals, starts, ends, offsets, ring_starts, ring_ends, ring_offsets, width):
    """Contrast and compactness of each mask, (K,) float64 each, from running totals of colours and their squares."""
    count, size = len(offsets) - 1, len(totals) - 1
    contrast, compactness = np.zeros(count), np.zeros(count)
    for k in range(count):
        first, last = offsets[k], offsets[k + 1]
        inside, ring = np.zeros(4), np.zeros(4)
        area = around = 0
        for r in range(first, last):
            inside += totals[ends[r]] - totals[starts[r]]
            area += ends[r] - starts[r]
        r = first
        for c in range(ring_offsets[k], ring_offsets[k + 1]):
            # The contour's run without the mask.
            at = ring_starts[c]
            while at < ring_ends[c]:
                while r < last and ends[r] <= at:
                    r += 1
                if r < last and starts[r] <= at:
                    at = ends[r]
                    continue
                stop = min(ring_ends[c], starts[r]) if r < last else ring_ends[c]
                ring += totals[stop] - totals[at]
                around += stop - at
                at = stop
        if area == 0 or around == 0:
            continue
        square, variance = 0.0, 0.0
        for side, pixels in ((inside, area), (ring, around)):
            variance += side[3] / pixels
            for c in range(3):
                variance -= (side[c] / pixels) ** 2
        for c in range(3):
            square += (inside[c] / area - ring[c] / around) ** 2
        contrast[k] = np.sqrt(square) / (_NOISE + np.sqrt(max(variance, 0.0)))
        sides = _sides(starts[first:last], ends[first:last], width, size)
        compactness[k] = min(1.0, 64 * area / (np.pi * sides**2))
    return contrast, compactness


@njit(cache=True)
def _sides(starts, ends, width, size):
    """Pixel sides between a mask and what is not of it, inside the picture."""
    sides, other = 0, 0
    for r in range(len(starts)):
        start, end = starts[r], ends[r]
        # Left and right: both ends of the run, but for those on the picture's border.
        sides += (start % width != 0) + (end % width != 0)
        # What the run has of the first row has nothing above, of the last row nothing below.
        sides += 2 * (end - start) - max(0, min(end, width) - start) - max(0, end - max(start, size - width))
        while other < len(starts) and ends[other] <= start - width:
            other += 1
        near = other
        while near < len(starts) and starts[near] < end - width:
            sides -= 2 * (min(end - width, ends[near]) - max(start - width, starts[near]))
            near += 1
    return sides
