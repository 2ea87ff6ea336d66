"""Peak stimulation, Eq. 1-3 of section 3.2 (Zhou et al., CVPR 2018), in float64.

Symbols: M (N, C, H, W) class response maps; G the sampling kernel, of M's enlarged size; s (N, C) the scores; r the
window. A position is (row, column): the paper's x and i count rows, its y and j columns. No unit but M's own.
"""

from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real

import numpy as np
from numba import njit

from prm import InputError


@dataclass(frozen=True)
class Stimulation:
    """What `forward` answers and `backward` needs.

    scores (N, C); peaks (K, 4) int64 rows (image, class, row, column) of the valid peaks, row-major order, in enlarged
    coordinates; G (N, C, fH, fW), Eq. 1; shape (N, C, H, W) of the map before its enlargement by the factor `upsample`.
    """

    scores: np.ndarray
    peaks: np.ndarray
    G: np.ndarray
    shape: tuple[int, int, int, int]
    upsample: int


def forward(M, window=3, threshold="median", f="dirac", upsample=1) -> Stimulation:
    """Eq. 1 and 2: peaks, sampling kernel and scores of the maps M (N, C, H, W).

    threshold: "median", "mean" (of the float64 sum, rounded once to the dtype in which maps are compared: float32 for
    M of 16 or 32 bits, else float64), "max", a number (rounded to M's dtype first), or None. f: see
    `sampling_function`. For a dtype that NumPy lacks, such as bfloat16, hand in M as float32 and a rounded number.
    Raises InputError for a shape, window, threshold or factor that cannot be used, and for a non-finite map.
    """
    M = np.asarray(M)
    threshold = _round_to(M.dtype, threshold)
    f = sampling_function(f)
    _check(M, window, upsample)
    E = enlarge(M, upsample)
    compared = np.dtype(np.float32 if M.dtype in (np.float16, np.float32) else np.float64)
    peaks = valid_peaks(E, find_peaks(E, window), threshold, compared)
    G = sampling_kernel(peaks, E.shape, f)
    return Stimulation(scores(E, G), peaks, G, M.shape, int(upsample))


def backward(grad_scores, result: Stimulation) -> np.ndarray:
    """Eq. 3: dL/dM^c = dL/ds^c * G^c / sum(G^c), for the delta the paper's 1 / N^c * dL/ds^c * G^c.

    grad_scores (N, C) = dL/ds -> (N, C, H, W), the un-enlarged shape. The peaks' positions are constants here.
    """
    grad_scores = np.asarray(grad_scores, np.float64)
    if grad_scores.shape != result.scores.shape:
        raise InputError(f"grad_scores has shape {grad_scores.shape}, the scores have {result.scores.shape}")
    delta = np.zeros(result.G.shape)
    for n, c in np.ndindex(grad_scores.shape):
        delta[n, c] = grad_scores[n, c] * result.G[n, c] / result.G[n, c].sum()
    return enlarge_transposed(delta, result.upsample, result.shape[2:])


def find_peaks(M, window=3) -> np.ndarray:
    """(N, C, H, W) -> bool of that shape: the local maxima "within a window of size r^2", every one, valid or not.

    A position is a peak when nothing in the window on it, clipped at the border, is larger, and nothing there that
    comes earlier in row-major order is equal. So a constant map has one peak, (0, 0).
    """
    M = np.asarray(M, np.float64)
    is_peak = np.zeros(M.shape, bool)
    for n, c in np.ndindex(M.shape[:2]):
        _local_maxima(np.ascontiguousarray(M[n, c]), window // 2, is_peak[n, c])
    return is_peak


@njit(cache=True)
def _local_maxima(m, reach, is_peak):
    rows, columns = m.shape
    for i in range(rows):
        for j in range(columns):
            peak = True
            for x in range(max(0, i - reach), min(rows, i + reach + 1)):
                for y in range(max(0, j - reach), min(columns, j + reach + 1)):
                    earlier = x < i or (x == i and y < j)
                    if m[x, y] > m[i, j] or (earlier and m[x, y] == m[i, j]):
                        peak = False
            is_peak[i, j] = peak


def threshold_value(m, threshold, compared=np.float64) -> float:
    """What a peak of the map m (H, W) must reach: its lower median, its mean, its maximum, a number, or -inf.

    The mean alone is no value of the map's: it is rounded to `compared`, the dtype in which maps are compared.
    """
    if threshold is None:
        return -np.inf
    if threshold == "median":
        return float(np.sort(m, axis=None)[(m.size - 1) // 2])
    if threshold == "mean":
        return float(np.dtype(compared).type(np.mean(m, dtype=np.float64)))
    if threshold == "max":
        return float(np.max(m))
    return float(threshold)


def valid_peaks(M, is_peak, threshold, compared=np.float64) -> np.ndarray:
    """The N^c peaks of every map that reach its threshold -> (K, 4) int64 rows (n, c, row, column), row-major order.

    Where none does, the map's first maximum is the one valid peak, so that no score is 0 / 0.
    """
    rows = []
    for n, c in np.ndindex(M.shape[:2]):
        m = M[n, c]
        positions = np.argwhere(is_peak[n, c] & (m >= threshold_value(m, threshold, compared)))
        if len(positions) == 0:
            positions = np.array([np.unravel_index(np.argmax(m), m.shape)])
        rows += [(n, c, i, j) for i, j in positions]
    return np.array(rows, np.int64).reshape(-1, 4)


def sampling_function(f) -> Callable:
    """f of Eq. 1: "dirac", ("gaussian", sigma) with sigma in positions, or a callable f(dx, dy) >= 0 with f(0, 0) > 0.

    A callable is handed two int64 arrays that broadcast: dx (fH, 1) = x - i_k in rows, dy (1, fW) = y - j_k in columns.
    """
    if callable(f):
        return f
    if isinstance(f, str) and f == "dirac":
        return lambda dx, dy: ((dx == 0) & (dy == 0)).astype(np.float64)
    if isinstance(f, tuple) and len(f) == 2 and f[0] == "gaussian" and 0 < float(f[1]) < np.inf:
        return lambda dx, dy: np.exp(-(dx**2 + dy**2) / (2.0 * float(f[1]) ** 2))
    raise InputError(f'f must be "dirac", ("gaussian", sigma > 0) or a callable, not {f!r}')


def sampling_kernel(peaks, shape, f) -> np.ndarray:
    """Eq. 1: G^c(x, y) = sum over the valid peaks k of f(x - i_k, y - j_k), cut off at the map's border -> `shape`."""
    if not float(np.asarray(f(np.zeros((1, 1), np.int64), np.zeros((1, 1), np.int64))).squeeze()) > 0:
        raise InputError("f(0, 0) must be > 0")
    G = np.zeros(shape)
    x, y = np.arange(shape[2])[:, None], np.arange(shape[3])[None, :]
    for n, c, i, j in peaks:
        values = np.asarray(f(x - i, y - j), np.float64)
        if not (np.isfinite(values).all() and (values >= 0).all()):
            raise InputError("f must be finite and >= 0 everywhere")
        G[n, c] += values
    return G


def scores(M, G) -> np.ndarray:
    """Eq. 2: s^c = <M^c, G^c> / sum(G^c), for the delta (1 / N^c) * sum over k of M^c(i_k, j_k) -> (N, C)."""
    s = np.zeros(M.shape[:2])
    for n, c in np.ndindex(s.shape):
        s[n, c] = (M[n, c] * G[n, c]).sum() / G[n, c].sum()
    return s


def source(size, factor):
    """Corner-aligned enlargement of an axis: source a[i], a[i] + 1 (at most size - 1) and fraction t[i] of position i.

    i * (size - 1) / (factor * size - 1) as quotient and remainder of integers, so t is exact to one rounding.
    """
    i = np.arange(factor * size)
    last = max(factor * size - 1, 1)
    a, remainder = np.divmod(i * (size - 1), last)
    return a, np.minimum(a + 1, size - 1), remainder / last


def enlarge(M, factor) -> np.ndarray:
    """Bilinear, corners aligned: (..., H, W) -> (..., fH, fW) float64, as a + t (b - a): a constant stays constant."""
    M = np.asarray(M, np.float64)
    a, b, t = source(M.shape[-2], factor)
    M = M[..., a, :] + t[:, None] * (M[..., b, :] - M[..., a, :])
    a, b, t = source(M.shape[-1], factor)
    return M[..., a] + t * (M[..., b] - M[..., a])


def enlarge_transposed(D, factor, shape) -> np.ndarray:
    """The transpose of `enlarge`: a gradient (..., fH, fW) -> (..., H, W), `shape` = (H, W)."""
    D = np.asarray(D, np.float64)
    a, b, t = source(shape[1], factor)
    columns = np.zeros((*D.shape[:-1], shape[1]))
    for k in range(D.shape[-1]):
        columns[..., a[k]] += (1.0 - t[k]) * D[..., k]
        columns[..., b[k]] += t[k] * D[..., k]
    a, b, t = source(shape[0], factor)
    out = np.zeros((*D.shape[:-2], *shape))
    for k in range(D.shape[-2]):
        out[..., a[k], :] += (1.0 - t[k]) * columns[..., k, :]
        out[..., b[k], :] += t[k] * columns[..., k, :]
    return out


def _round_to(dtype, threshold):
    if threshold is None or (isinstance(threshold, str) and threshold in ("median", "mean", "max")):
        return threshold
    if isinstance(threshold, bool) or not isinstance(threshold, Real) or np.isnan(float(threshold)):
        raise InputError(f'threshold must be "median", "mean", "max", a number or None, not {threshold!r}')
    if not np.issubdtype(dtype, np.floating):
        return float(threshold)
    with np.errstate(over="ignore"):
        return float(dtype.type(threshold))


def _check(M, window, upsample):
    if M.ndim != 4 or 0 in M.shape[2:]:
        raise InputError(f"class response maps must be (N, C, H, W) with H, W >= 1, not {M.shape}")
    if isinstance(window, bool) or window != int(window) or window < 3 or window % 2 == 0:
        raise InputError(f"window must be an odd number >= 3, not {window}")
    if isinstance(upsample, bool) or upsample != int(upsample) or upsample < 1:
        raise InputError(f"upsample must be a whole number >= 1, not {upsample}")
    bad = np.argwhere(~np.isfinite(M.astype(np.float64)).all(axis=(2, 3)))
    if len(bad):
        raise InputError(f"the class response map of image {bad[0][0]}, class {bad[0][1]} has a non-finite value")
