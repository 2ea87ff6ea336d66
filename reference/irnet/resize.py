"""Bilinear enlargement and reduction, corners not aligned: pixel centres stand at halves."""

import numpy as np


def bilinear(x, size, ratio=None) -> np.ndarray:
    """x (..., h, w) at another size (H, W): (..., H, W).

    The place of pixel k is ratio (k + 1/2) - 1/2 in x, not before its first pixel and not behind its last; ratio:
    (rows, columns), None for h / H and w / W.
    """
    x = np.asarray(x, np.float64)
    for axis, (length, k) in enumerate(zip(size, (-2, -1))):
        have = x.shape[k]
        step = have / length if ratio is None else ratio[axis]
        at = (step * (np.arange(length) + 0.5) - 0.5).clip(0, have - 1)
        first = np.floor(at).astype(np.int64)
        second, share = np.minimum(first + 1, have - 1), at - first
        share = share[:, None] if k == -2 else share
        x = (1 - share) * x.take(first, k) + share * x.take(second, k)
    return x
