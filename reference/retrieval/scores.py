"""Eq. 6 (Zhou et al., CVPR 2018, section 3.4) and the best proposal of a peak, in float64.

Symbols: R (H, W) a Peak Response Map, sum 1; S (H, W) bool, a proposal's mask; S_hat its contour; Q (H, W) bool, the
background mask; N (H, W) a class's response from 0 to 1. H x W is the network's input size. Positions: (row, column).
"""

import numpy as np
from scipy.ndimage import binary_dilation, binary_erosion

from ..peak_backprop import interpolation_weights


def contour(S, width=5) -> np.ndarray:
    """S_hat of Eq. 6: morphological gradient, dilation minus erosion with a square of odd side `width` -> bool (H, W).

    Neither sees anything outside the image, so the image's edge alone makes no contour.
    """
    if width != int(width) or width < 1 or width % 2 == 0:
        raise ValueError(f"the contour's width must be an odd number >= 1, not {width}")
    S, square = np.asarray(S, bool), np.ones((int(width), int(width)), bool)
    return binary_dilation(S, square, border_value=0) & ~binary_erosion(S, square, border_value=1)


def enlarged_response(M, shape) -> np.ndarray:
    """One class's response map M (h, w), not enlarged, from 0 to 1 at `shape` = (H, W) -> float64.

    M is scaled by its own minimum and maximum, then enlarged bilinearly, corners not aligned. A constant map is 1.
    """
    M = np.asarray(M, np.float64)
    if not np.isfinite(M).all():
        raise ValueError("the class response map has a non-finite value")
    if M.max() == M.min():
        return np.ones(shape)
    rows, columns = (interpolation_weights(size, out, "bilinear") for size, out in zip(M.shape, shape))
    return rows @ ((M - M.min()) / (M.max() - M.min())) @ columns.T


def background(M, shape, bias) -> np.ndarray:
    """Q of Eq. 6 from one class's response map M (h, w), not enlarged -> bool `shape` = (H, W).

    Q is where the `enlarged_response` is < bias * its mean. A constant map has no background: Q = 0.
    """
    N = enlarged_response(M, shape)
    return np.zeros(shape, bool) if np.ptp(M) == 0 else N < bias * N.mean()


def terms(R, S, Q, width=5) -> tuple[float, float, float]:
    """The sums of Eq. 6: instance-aware R * S, boundary-aware R * S_hat, class-aware Q * S, without alpha and beta."""
    R, S, Q = np.asarray(R, np.float64), np.asarray(S, bool), np.asarray(Q, bool)
    if not R.shape == S.shape == Q.shape:
        raise ValueError(f"R {R.shape}, S {S.shape} and Q {Q.shape} must have one shape")
    return float((R * S).sum()), float((R * contour(S, width)).sum()), float((Q & S).sum())


def score(R, S, Q, alpha, beta, width=5) -> float:
    """Eq. 6: Score = alpha * R * S + R * S_hat - beta * Q * S, each product summed over the pixels."""
    instance, boundary, class_aware = terms(R, S, Q, width)
    return alpha * instance + boundary - beta * class_aware


def resize_nearest(S, shape) -> np.ndarray:
    """The mask S (h, w) at `shape` (H, W): every pixel centre takes the pixel it falls in, row ((2i + 1) h) // 2H."""
    rows, columns = (((2 * np.arange(out) + 1) * size) // (2 * out) for size, out in zip(S.shape, shape))
    return np.asarray(S)[rows[:, None], columns[None, :]]


def ranked_proposals(R, proposals, Q, alpha, beta, width=5, area=(2e-5, 0.85)) -> list:
    """Lines 8-11 of Algorithm 1 for one peak -> (index, score, terms) of every proposal, the top-ranked first.

    Proposals of another size than R's are resized for the score. Passed over: an area (share of the proposal's own
    pixels) outside [area[0], area[1]). Of equal scores the first proposal is first.
    """
    found = []
    for index, S in enumerate(proposals):
        if area[0] <= np.count_nonzero(S) / S.size < area[1]:
            three = terms(R, resize_nearest(S, R.shape), Q, width)
            found.append((index, alpha * three[0] + three[1] - beta * three[2], three))
    return sorted(found, key=lambda one: -one[1])


def best_proposal(R, proposals, Q, alpha, beta, width=5, area=(2e-5, 0.85)):
    """The first of `ranked_proposals`, or None."""
    return next(iter(ranked_proposals(R, proposals, Q, alpha, beta, width, area)), None)
