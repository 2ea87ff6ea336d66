"""WISE (Laradji et al., BMVC 2019): a classifier's peaks as seeds, seeds as pseudo masks, masks refined, in float64.

A seed is a pixel with a class. Each seed takes one class-agnostic proposal that holds it; these pseudo masks train a
network of instances, and at test time its masks may snap to proposals again.

Symbols: I picture; G a map of how much each pixel speaks for one peak (PRM's, or the relu of the channels' summed
gradient); g a seed; m_k proposals (H, W) bool with objectness o_k in [0, 1]; S_g = {k: m_k holds g}. Classes count
from 0, and stand in maps and seeds as class + 1.
"""

import numpy as np


def class_loss(scores, labels) -> float:
    """Multi-label soft-margin loss of scores (N, C) and labels (N, C) of 0 and 1: the mean over pictures and classes of
    -y log sigmoid(s) - (1 - y) log(1 - sigmoid(s))."""
    s, y = np.asarray(scores, np.float64), np.asarray(labels, np.float64)
    if s.shape != y.shape or s.ndim != 2:
        raise ValueError(f"scores {s.shape} and labels {y.shape} must both be (N, C)")
    # log(1 + exp(-s)) without overflow; 1 - sigmoid(s) = sigmoid(-s).
    return float(np.mean(y * np.logaddexp(0, -s) + (1 - y) * np.logaddexp(0, s)))


def seed_map(peaks, prms, size=None) -> np.ndarray:
    """Where the seeds of a picture lie: (H, W) int64, class + 1 at a seed and 0 elsewhere.

    peaks: (K, 3) rows (class, row, column), in that order; prms: (K, h, w) >= 0, G of each; size: (H, W) of the
    picture, None for that of G. A peak's seed is the pixel of G's maximum, the first in row-major order. Peaks are
    written one after the other: of two that end on one pixel the later one stays. A map of zeros gives no seed.
    """
    peaks, prms = np.asarray(peaks, np.int64).reshape(-1, 3), np.asarray(prms, np.float64)
    if prms.ndim != 3 or len(prms) != len(peaks):
        raise ValueError(f"{len(peaks)} peaks and maps {prms.shape}: one map (h, w) a peak is needed")
    if (prms < 0).any():
        raise ValueError("maps must be >= 0")
    h, w = prms.shape[1:]
    H, W = (h, w) if size is None else size
    seeds = np.zeros((H, W), np.int64)
    for (label, _, _), G in zip(peaks, prms):
        if G.any():
            row, column = np.unravel_index(np.argmax(G), G.shape)
            # Pixel centres: floor((row + 1/2) H / h), from integers.
            seeds[(2 * row + 1) * H // (2 * h), (2 * column + 1) * W // (2 * w)] = label + 1
    return seeds


def seeds_of(seed_map) -> np.ndarray:
    """The seeds of a `seed_map`, (s, 3) int64 rows (row, column, class + 1), row-major."""
    seed_map = np.asarray(seed_map)
    rows, columns = np.nonzero(seed_map)
    return np.stack([rows, columns, seed_map[rows, columns]], axis=1).astype(np.int64)


def record(seed, size) -> tuple[float, float]:
    """A seed pixel (row, column) of a picture (H, W) as WISE's files hold it: (x, y) = (column / W, row / H)."""
    return seed[1] / size[1], seed[0] / size[0]


def pixel(record, size) -> tuple[int, int]:
    """The pixel (row, column) of a record (x, y) in a picture (H, W): round(y H), round(x W), to the nearest, halves to
    even; a record just below 1 stays inside."""
    x, y = record
    return min(round(y * size[0]), size[0] - 1), min(round(x * size[1]), size[1] - 1)


def probabilities(holding, objectness) -> np.ndarray:
    """Pr(k) = o_k / sum of o over S_g of each proposal, (n,): the law by which noisy labels are drawn, 0 outside S_g.

    holding: (n,) bool, whether k is in S_g. Uniform over S_g where the sum is 0; all 0 where S_g is empty.
    """
    holding = np.asarray(holding, bool)
    weights = np.where(holding, np.asarray(objectness, np.float64), 0.0)
    if weights.sum() == 0:
        weights = holding.astype(np.float64)
    return weights / max(weights.sum(), np.finfo(np.float64).tiny)


def drawn(probabilities, u) -> int:
    """The proposal that u in [0, 1) draws: the first k with Pr(0) + ... + Pr(k) > u.

    Where rounding leaves the sum at or below u, the last that has a probability.
    """
    reached = np.flatnonzero(np.cumsum(probabilities) > u)
    return int(reached[0]) if len(reached) else int(np.flatnonzero(probabilities)[-1])


def assign(masks, objectness, seeds) -> list:
    """The pseudo label of each seed g that a proposal covers -> (seed, proposal, score, class + 1, probabilities (n,)).

    masks: (n, H, W) bool; objectness: (n,); seeds: (s, 3) rows (row, column, class + 1). The proposal is the first of
    highest objectness in S_g, the score its objectness. A seed whose S_g is empty is dropped.
    """
    masks, o = np.asarray(masks, bool), np.asarray(objectness, np.float64)
    if len(masks) != len(o):
        raise ValueError(f"{len(masks)} masks but {len(o)} objectness values")
    found = []
    for g, (row, column, label) in enumerate(np.asarray(seeds, np.int64).reshape(-1, 3)):
        holding = np.array([bool(m[row, column]) for m in masks], bool)
        if holding.any():
            k = int(np.argmax(np.where(holding, o, -np.inf)))
            found.append((g, k, float(o[k]), int(label), probabilities(holding, o)))
    return found


def box(mask) -> tuple[int, int, int, int]:
    """The tight box (x, y, width, height) of a mask (H, W) of at least one pixel, as COCO has it."""
    rows, columns = np.nonzero(mask)
    x, y = int(columns.min()), int(rows.min())
    return x, y, int(columns.max()) - x + 1, int(rows.max()) - y + 1


def refine(detections, masks, objectness, threshold=0.75) -> np.ndarray:
    """Masks (d, H, W) bool of a network, each replaced by the eligible proposal of highest IoU with it, the first such.

    Eligible: o_k > threshold. Without one, and where all IoUs are 0, the mask stays.
    """
    refined, masks = np.array(detections, bool), np.asarray(masks, bool)
    if refined.ndim != 3 or (len(masks) and masks.shape[1:] != refined.shape[1:]):
        raise ValueError(f"detections {refined.shape} and masks {masks.shape} must be (., H, W) of one picture")
    eligible = np.flatnonzero(np.asarray(objectness, np.float64) > threshold)
    for i, d in enumerate(refined.copy()):
        ious = [(masks[k] & d).sum() / max((masks[k] | d).sum(), 1) for k in eligible]
        if max(ious, default=0.0) > 0:
            refined[i] = masks[eligible[int(np.argmax(ious))]]
    return refined
