"""A second choice among proposals beside Eq. 6: a log-linear score with few, named weights, in float64.

Not the paper's. Eq. 6 adds a share of R to a count of pixels, with weights that are the same for every size of thing,
and asks nothing of the proposal itself. Here the factors are multiplied, each with an exponent:

    L(R, S) = sum over the terms t of w_t * log(max(t, 1e-6))

Symbols as in `scores.py`; o in [0, 1] is the proposal's objectness, which comes with it.
"""

import numpy as np
from scipy.ndimage import gaussian_filter

from .scores import contour, resize_nearest

TERMS = ("mass", "response", "objectness", "inside", "contour")  # the order of terms and of their weights
LEAST = 1e-6  # of a term, before its logarithm is taken
SEED_PIXEL = ("free", "prefer", "require")


def smoothed(R, smooth) -> np.ndarray:
    """R (H, W) through a Gaussian of `smooth` times its shorter side, cut off at 4 standard deviations and mirrored at
    the border, so that its sum stays. smooth = 0: R itself."""
    R = np.asarray(R, np.float64)
    return gaussian_filter(R, smooth * min(R.shape), mode="reflect", truncate=4.0) if smooth > 0 else R


def fit_terms(R, S, N, Q, objectness, width=5, smooth=0.0) -> tuple[float, float, float, float, float]:
    """The terms of L for a PRM R and a proposal S of at least one pixel, all (H, W), in the order of `TERMS`.

    mass: the sum of R over S, R `smoothed`; response: the mean of N over S; objectness: o; inside: the share of S that
    is not background Q; contour: the sum of R over the contour of S, `width` pixels wide.
    """
    R, S, N, Q = np.asarray(R, np.float64), np.asarray(S, bool), np.asarray(N, np.float64), np.asarray(Q, bool)
    if not R.shape == S.shape == N.shape == Q.shape:
        raise ValueError(f"R {R.shape}, S {S.shape}, N {N.shape} and Q {Q.shape} must have one shape")
    if not S.any():
        raise ValueError("S has no pixel")
    mass, on_contour = smoothed(R, smooth)[S].sum(), R[contour(S, width)].sum()
    return float(mass), float(N[S].mean()), float(objectness), 1 - float(Q[S].mean()), float(on_contour)


def fit_score(terms, weights) -> float:
    """L from its five terms; weights >= 0 in the order of `TERMS`, at least one of them > 0."""
    weights = np.asarray(weights, np.float64)
    if weights.shape != (len(TERMS),) or not (weights >= 0).all() or not weights.any():
        raise ValueError(f"weights must be {len(TERMS)} numbers >= 0, at least one of them > 0, not {weights.tolist()}")
    return float(weights @ np.log(np.maximum(terms, LEAST)))


def ranked_fit(
    R, proposals, N, Q, objectness, weights, width=5, area=(2e-5, 0.85), seed_pixel="free", smooth=0.0
) -> list:  # fmt: skip
    """The candidates of one peak -> (index, L, terms) of each, the highest L first.

    objectness: one number a proposal. Sizes, areas and ties as in `ranked_proposals`; a proposal without a pixel
    at R's size is passed over. seed_pixel: "require" leaves only proposals that hold R's strongest pixel, the first in
    row-major order, "prefer" does where there is one, "free" asks nothing of it. With "require" and a
    weight of objectness alone this is the assignment of WISE (Laradji et al., BMVC 2019): o itself is then compared.
    """
    if seed_pixel not in SEED_PIXEL:
        raise ValueError(f"seed_pixel must be {', '.join(SEED_PIXEL)}, not {seed_pixel!r}")
    seed = np.unravel_index(np.argmax(R), np.shape(R))
    candidates = []
    for index, (S, o) in enumerate(zip(proposals, objectness, strict=True)):
        at_R = resize_nearest(S, np.shape(R))
        if area[0] <= np.count_nonzero(S) / S.size < area[1] and at_R.any():
            candidates.append((index, at_R, o))
    holding = [one for one in candidates if one[1][seed]]
    if seed_pixel == "require" or (seed_pixel == "prefer" and holding):
        candidates = holding
    found = []
    for index, S, o in candidates:
        terms = fit_terms(R, S, N, Q, o, width, smooth)
        L = fit_score(terms, weights)
        value = o if np.count_nonzero(weights) == 1 and weights[TERMS.index("objectness")] else L
        found.append((value, index, L, terms))
    return [one[1:] for one in sorted(found, key=lambda one: -one[0])]


def best_fit(
    R, proposals, N, Q, objectness, weights, width=5, area=(2e-5, 0.85), seed_pixel="free", smooth=0.0
):  # fmt: skip
    """The first of `ranked_fit`, or None."""
    ranked = ranked_fit(R, proposals, N, Q, objectness, weights, width, area, seed_pixel, smooth)
    return next(iter(ranked), None)


def confident_score(confidence, L, weights) -> float:
    """An instance's score: its class's confidence times the terms' weighted geometric mean, exp(L / sum of weights)."""
    return float(confidence * np.exp(L / np.sum(weights)))
