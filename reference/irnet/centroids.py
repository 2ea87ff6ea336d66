"""Where the displacements lead: every pixel goes to the centre of its instance, and centres are told apart.

Symbols: D (2, h, w) displacements, row first, in cells of the grid; c(x) where x has come to.
"""

import numpy as np
from scipy import ndimage


def centroids(displacement, steps=300) -> np.ndarray:
    """Follow D from every cell, `steps` times c <- c + D at c, kept on the grid: (2, h, w), not rounded.

    D between cells is bilinear; both components of a step are read at the place before it.
    """
    D = np.asarray(displacement, np.float64)
    if D.ndim != 3 or D.shape[0] != 2:
        raise ValueError(f"displacement {D.shape} must be (2, h, w)")
    h, w = D.shape[1:]
    c = np.indices((h, w)).astype(np.float64)
    for _ in range(steps):
        moved = c + _between(D, c)
        c = np.stack([moved[0].clip(0, h - 1), moved[1].clip(0, w - 1)])
    return c


def _between(D, c):
    """D (2, h, w) at places c (2, ...) of the grid, bilinear."""
    h, w = D.shape[1:]
    top, left = np.floor(c).astype(np.int64)
    below, right = np.minimum(top + 1, h - 1), np.minimum(left + 1, w - 1)
    y, x = c[0] - top, c[1] - left
    return (1 - y) * ((1 - x) * D[:, top, left] + x * D[:, top, right]) + y * (
        (1 - x) * D[:, below, left] + x * D[:, below, right]
    )


def instances(rounded, displacement, threshold=2.5) -> np.ndarray:
    """Which instance each cell belongs to: (h, w) int64, 0..K - 1.

    rounded: (2, h, w) whole numbers, `centroids` to the nearest, halves to even. Centres are the 4-connected parts of
    the cells with |D|_2 < threshold, numbered by their first cell, row-major; a cell belongs to the part that it has
    come to. Cells that came to none are a pool of their own, the first, if there are any; parts that no cell came to
    do not count.
    """
    D, at = np.asarray(displacement, np.float64), np.asarray(rounded).astype(np.int64)
    if at.shape != D.shape or D.ndim != 3 or D.shape[0] != 2:
        raise ValueError(f"places {at.shape} and displacement {D.shape} must both be (2, h, w)")
    parts, _ = ndimage.label(np.hypot(*D) < threshold)
    _, numbers = np.unique(parts[at[0], at[1]], return_inverse=True)
    return numbers.reshape(D.shape[1:]).astype(np.int64)
