"""Class maps spread by a random walk that boundaries hold back.

Symbols: V maps; B (h, w) boundary; a_ij affinity, see `pixel_pairs`; A symmetric with A_ii = 1; T transition matrix.
"""

import numpy as np

from .pixel_pairs import affinity, offsets


def transition(boundary, radius=5, beta=10) -> np.ndarray:
    """T (hw, hw), cells row-major: A^beta (every entry) with its rows scaled to sum 1; A_ij = a_ij for pairs nearer
    than `radius`, else 0."""
    B = np.asarray(boundary, np.float64)
    h, w = B.shape
    index, A = np.arange(h * w).reshape(h, w), np.eye(h * w)
    for dy, dx in offsets(radius):
        rows, columns = np.arange(0, h - dy), np.arange(max(0, -dx), w - max(0, dx))
        if rows.size and columns.size:
            i, j = index[rows[:, None], columns], index[rows[:, None] + dy, columns + dx]
            A[i, j] = A[j, i] = affinity(B, (dy, dx), rows, columns)
    powered = A**beta
    return powered / powered.sum(axis=1, keepdims=True)


def walk(maps, boundary, radius=5, beta=10, log2_steps=8) -> np.ndarray:
    """T^(2^log2_steps) (V (1 - B)): maps V (..., h, w) after so many steps, as T squared so often. ValueError for maps
    that are not of the boundary's size."""
    V, B = np.asarray(maps, np.float64), np.asarray(boundary, np.float64)
    if B.ndim != 2 or V.shape[-2:] != B.shape:
        raise ValueError(f"maps {V.shape} and boundary {B.shape}: (..., h, w) and (h, w)")
    T = transition(B, radius, beta)
    for _ in range(log2_steps):
        T = T @ T
    return ((V * (1 - B)).reshape(-1, B.size) @ T.T).reshape(V.shape)
