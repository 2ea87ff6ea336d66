"""Peak Response Mapping by another road: every layer a sparse matrix."""

from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
from scipy import ndimage, sparse


def blend(a, b, t, size):
    """The matrix that takes 1 - t of element a and t of element b, a row for each triple."""
    i = np.arange(len(a))
    return sparse.csr_array(
        (np.concatenate([1 - t, t]), (np.concatenate([i, i]), np.concatenate([a, b]))), shape=(len(a), size)
    )


def enlargement(size, factor):
    """Positions a, b and the share t of b for each position of an axis enlarged with aligned corners."""
    last = max(factor * size - 1, 1)
    a, r = np.divmod(np.arange(factor * size) * (size - 1), last)
    return a, np.minimum(a + 1, size - 1), r / last


def enlarge(M, factor):
    """M enlarged bilinearly, in the form that keeps a constant map exactly constant."""
    for axis in (-2, -1):
        a, b, t = enlargement(M.shape[axis], factor)
        low, high = M.take(a, axis), M.take(b, axis)
        M = low + (t[:, None] if axis == -2 else t) * (high - low)
    return M


@dataclass
class Stimulation:
    """What the forward pass of peak stimulation answers."""

    scores: np.ndarray
    peaks: np.ndarray
    shape: tuple
    upsample: int


def stimulate(M, window, threshold, upsample):
    """Eq. 1-2: the peaks of the class response maps and the mean of their values."""
    if isinstance(threshold, (int, float)):
        threshold = float(np.asarray(threshold, M.dtype))
    E = enlarge(M.astype(float), upsample)
    half = window // 2
    square = np.ones((1, 1, window, window), bool)
    earlier = square.copy()
    earlier[..., half, half:] = earlier[..., half + 1 :, :] = False
    E_window = ndimage.maximum_filter(E, footprint=square, mode="constant", cval=-np.inf)
    E_earlier = ndimage.maximum_filter(E, footprint=earlier, mode="constant", cval=-np.inf)
    flat = E.reshape(*E.shape[:2], -1)
    levels = {
        None: lambda: -np.inf,
        "median": lambda: np.sort(flat)[..., (flat.shape[-1] - 1) // 2],
        "mean": lambda: flat.mean(-1),
        "max": lambda: flat.max(-1),
    }
    level = levels.get(threshold, lambda: threshold)()
    level = np.broadcast_to(level, E.shape[:2])[..., None, None]
    G = (E == E_window) & (E > E_earlier) & (E >= level)
    alone = ~G.any((2, 3))
    first = np.zeros(flat.shape, bool)
    np.put_along_axis(first, flat.argmax(-1)[..., None], True, -1)
    G = np.where(alone[..., None, None], first.reshape(E.shape), G)
    return Stimulation((E * G).sum((2, 3)) / G.sum((2, 3)), np.argwhere(G), M.shape, upsample)


def stimulate_backward(grad_scores, result):
    """Eq. 3: the gradient of the scores, through the transpose of the enlargement."""
    N, C, H, W = result.shape
    f = result.upsample
    G = np.zeros((N, C, f * H, f * W))
    G[tuple(result.peaks.T)] = 1
    D = G * (grad_scores / G.sum((2, 3)))[..., None, None]
    rows, columns = (blend(*enlargement(n, f), n) for n in (H, W))
    return np.array([[rows.T @ D_c @ columns for D_c in D_n] for D_n in D]).reshape(result.shape)


port = SimpleNamespace(
    peak_stimulation=SimpleNamespace(forward=stimulate, backward=stimulate_backward),
    peak_backprop=SimpleNamespace(),
    retrieval=SimpleNamespace(),
    network=SimpleNamespace(),
)
