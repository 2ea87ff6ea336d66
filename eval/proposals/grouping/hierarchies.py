"""Hierarchical grouping: neighbouring superpixels are merged, the most similar first, and each region is a proposal."""

import numpy as np
import scipy.ndimage as ndi
from numba import njit

from .layers import AREA, BOTTOM, HASH, HIGH, HIGH2, LEFT, LENGTH, LOW, LOW2, RIGHT, STRENGTH, TOP, Layer, describe
from .superpixels import superpixels

_COLOUR_BINS, _ORIENTATIONS, _MAGNITUDES = 25, 8, 8
_LEAST_SHARE = 0.2  # of two regions in a union: the smaller one's area over the larger one's
_HISTOGRAM = 3 * (_COLOUR_BINS + _ORIENTATIONS * _MAGNITUDES)


def hierarchies(lab, hsv, picture, settings) -> list[Layer]:
    """Every region of every hierarchy: two colour spaces, several superpixel scales, several similarity measures."""
    layers = []
    for colours, bins in (
        (lab, _bins(lab, (0, -60, -60), (100, 60, 60))),
        (hsv * 100, _bins(hsv, (0, 0, 0), (1, 1, 1))),
    ):
        gradients = _gradient_bins(colours)
        smooth = ndi.gaussian_filter(colours, (0.8, 0.8, 0))
        for labels, count in superpixels(smooth, settings.scales, settings.min_superpixel):
            histograms = _histograms(labels.ravel(), count, bins.reshape(-1, 3), gradients.reshape(-1, 3))
            described = describe(labels, count, *picture)
            borders = _borders(labels, count, picture.edges)
            for weights in settings.similarities:
                merging = np.array(weights, np.float32), float(labels.size), settings.unions
                layers.append(_grow(labels, histograms, described, borders, merging))
    return layers


def _bins(colours, low, high) -> np.ndarray:
    """Colour bin of each value, (h, w, 3) uint8."""
    low, high = np.float32(low), np.float32(high)
    return np.clip((colours - low) / (high - low) * _COLOUR_BINS, 0, _COLOUR_BINS - 1).astype(np.uint8)


def _gradient_bins(colours) -> np.ndarray:
    """Bin of direction and size of each channel's gradient, (h, w, 3) uint8."""
    down = ndi.gaussian_filter(colours, (1, 1, 0), order=(1, 0, 0))
    right = ndi.gaussian_filter(colours, (1, 1, 0), order=(0, 1, 0))
    direction = ((np.arctan2(down, right) / (2 * np.pi) + 0.5) * _ORIENTATIONS).astype(np.int64) % _ORIENTATIONS
    # Most gradients are small: equal steps of the square root.
    size = np.minimum(np.sqrt(np.hypot(down, right) / 20) * _MAGNITUDES, _MAGNITUDES - 1).astype(np.int64)
    return (direction * _MAGNITUDES + size).astype(np.uint8)


@njit(cache=True)
def _histograms(labels, count, bins, gradients):
    """(count, _HISTOGRAM) float32: each region's colour histogram, then its texture histogram, each with sum 1."""
    out = np.zeros((count, _HISTOGRAM), np.float32)
    size = np.zeros(count, np.float32)
    for x in range(len(labels)):
        size[labels[x]] += 3
        for c in range(3):
            out[labels[x], c * _COLOUR_BINS + bins[x, c]] += 1
            out[labels[x], 3 * _COLOUR_BINS + c * _ORIENTATIONS * _MAGNITUDES + gradients[x, c]] += 1
    return out / size.reshape(-1, 1)


def _borders(labels, count, edges) -> np.ndarray:
    """Pairs of neighbouring regions with pixel sides and sum of `edges` along their common border, (m, 4) float64."""
    keys, steps = [], []
    for one, next_to in ((np.s_[:, :-1], np.s_[:, 1:]), (np.s_[:-1], np.s_[1:])):
        a, b = labels[one].astype(np.int64), labels[next_to].astype(np.int64)
        differ = a != b
        keys.append((np.minimum(a, b) * count + np.maximum(a, b))[differ])
        steps.append(np.maximum(edges[one], edges[next_to])[differ])
    pair, which = np.unique(np.concatenate(keys), return_inverse=True)
    length, strength = np.bincount(which), np.bincount(which, np.concatenate(steps))
    return np.stack([pair // count, pair % count, length, strength], 1).astype(np.float64)


def _grow(labels, histograms, described, borders, merging) -> Layer:
    """Merge the most similar neighbours until one region is left; all regions on the way, and unions of neighbours."""
    nodes, sums, children, neighbours = _merge(histograms, *described, borders, *merging)
    rank = _leaf_ranks(nodes, children, len(histograms))
    unions, their_sums = _unions(nodes, sums, neighbours)
    return Layer.of(rank[labels], np.concatenate([nodes, unions]), np.concatenate([sums, their_sums]))


def _unions(nodes, sums, neighbours) -> tuple[np.ndarray, np.ndarray]:
    """Regions of two neighbouring nodes each, and their sums; neighbours (m, 4) like `_borders`.

    Not where one of the two is so small beside the other that the union is hardly another region.
    """
    areas = nodes[neighbours[:, :2].astype(np.int64), AREA]
    neighbours = neighbours[areas.min(1) >= _LEAST_SHARE * areas.max(1)]
    first, second = neighbours[:, 0].astype(np.int64), neighbours[:, 1].astype(np.int64)
    a, b = nodes[first], nodes[second]
    both = a + b  # area and hash
    both[:, (LOW, HIGH)], both[:, (LOW2, HIGH2)] = a[:, (LOW, HIGH)], b[:, (LOW, HIGH)]
    both[:, (TOP, LEFT)] = np.minimum(a, b)[:, (TOP, LEFT)]
    both[:, (BOTTOM, RIGHT)] = np.maximum(a, b)[:, (BOTTOM, RIGHT)]
    added = sums[first] + sums[second]
    added[:, (LENGTH, STRENGTH)] -= 2 * neighbours[:, 2:]
    return both, added


@njit(cache=True)
def _merge(histograms, table, described, borders, weights, picture, last):
    """Greedy merging: region table and sums of all 2 n - 1 nodes, and each node's children.

    Also the neighbours that the nodes of the `last` merges had when they came about, (m, 4) like `borders`.
    """
    leaves = len(table)
    total = 2 * leaves - 1
    nodes = np.zeros((total, table.shape[1]), np.int64)
    nodes[:leaves] = table
    sums = np.zeros((total, described.shape[1]))
    sums[:leaves] = described
    hist = np.zeros((total, histograms.shape[1]), np.float32)
    hist[:leaves] = histograms
    children = np.full((total, 2), -1, np.int64)
    pairs = borders.copy()
    likeness = np.zeros(len(pairs), np.float32)
    for e in range(len(pairs)):
        likeness[e] = _similarity(nodes, hist, int(pairs[e, 0]), int(pairs[e, 1]), pairs[e], weights, picture)
    seen = np.full(total, -1, np.int64)
    alive = len(pairs)
    # A node has at most so many neighbours as merges are left.
    neighbours = np.empty((last * (last + 1) // 2, 4))
    met = 0
    for t in range(leaves, total):
        e = np.argmax(likeness[:alive])
        a, b = int(pairs[e, 0]), int(pairs[e, 1])
        children[t, 0], children[t, 1] = a, b
        _join(nodes, hist, a, b, t)
        sums[t] = sums[a] + sums[b]
        sums[t, LENGTH] -= 2 * pairs[e, 2]
        sums[t, STRENGTH] -= 2 * pairs[e, 3]
        alive = _redirect(pairs, likeness, alive, seen, a, b, t)
        for e in range(alive):
            if pairs[e, 1] == t:
                other = int(pairs[e, 0])
                seen[other] = -1
                likeness[e] = _similarity(nodes, hist, other, t, pairs[e], weights, picture)
                if t >= total - last:
                    neighbours[met] = pairs[e]
                    met += 1
    return nodes, sums, children, neighbours[:met]


@njit(cache=True)
def _join(nodes, hist, a, b, t):
    """Make region t of the regions a and b."""
    share = np.float32(nodes[a, AREA] / (nodes[a, AREA] + nodes[b, AREA]))
    hist[t] = share * hist[a] + (1 - share) * hist[b]
    for column in (AREA, HASH):
        nodes[t, column] = nodes[a, column] + nodes[b, column]
    for column in (TOP, LEFT):
        nodes[t, column] = min(nodes[a, column], nodes[b, column])
    for column in (BOTTOM, RIGHT):
        nodes[t, column] = max(nodes[a, column], nodes[b, column])


@njit(cache=True)
def _redirect(pairs, likeness, alive, seen, a, b, t):
    """Borders of a and b become borders of t; two with a common neighbour become one. Returns how many are left.

    `pairs` and `likeness` are rewritten in place; seen[k] is left at the place of the border between k and t.
    """
    kept = 0
    for e in range(alive):
        u, v = int(pairs[e, 0]), int(pairs[e, 1])
        of_u, of_v = u == a or u == b, v == a or v == b
        if of_u and of_v:
            continue
        if of_u or of_v:
            other = v if of_u else u
            if seen[other] >= 0:
                pairs[seen[other], 2:] += pairs[e, 2:]
                continue
            seen[other] = kept
            u, v = other, t
        pairs[kept, 2:] = pairs[e, 2:]
        pairs[kept, 0], pairs[kept, 1] = u, v
        likeness[kept] = likeness[e]
        kept += 1
    return kept


@njit(cache=True)
def _similarity(nodes, hist, a, b, border, weights, picture):
    """Weighted sum: likeness in colour, in texture, smallness, filling each other's gaps, weakness of the border."""
    colour, texture = np.float32(0), np.float32(0)
    split = 3 * _COLOUR_BINS
    if weights[0] > 0:
        for k in range(split):
            colour += min(hist[a, k], hist[b, k])
    if weights[1] > 0:
        for k in range(split, hist.shape[1]):
            texture += min(hist[a, k], hist[b, k])
    together = nodes[a, AREA] + nodes[b, AREA]
    box = (max(nodes[a, BOTTOM], nodes[b, BOTTOM]) - min(nodes[a, TOP], nodes[b, TOP])) * (
        max(nodes[a, RIGHT], nodes[b, RIGHT]) - min(nodes[a, LEFT], nodes[b, LEFT])
    )
    small, fill = 1 - together / picture, 1 - (box - together) / picture
    weak = 1 / (1 + border[3] / border[2] / 5)
    return weights[0] * colour + weights[1] * texture + weights[2] * small + weights[3] * fill + weights[4] * weak


@njit(cache=True)
def _leaf_ranks(nodes, children, leaves):
    """Number the leaves so that every node's are consecutive; sets low and high in `nodes`, returns leaf -> number."""
    count = np.ones(len(nodes), np.int64)
    for t in range(leaves, len(nodes)):
        count[t] = count[children[t, 0]] + count[children[t, 1]]
    nodes[-1, LOW] = 0
    for t in range(len(nodes) - 1, -1, -1):
        nodes[t, HIGH] = nodes[t, LOW] + count[t]
        if t >= leaves:
            nodes[children[t, 0], LOW] = nodes[t, LOW]
            nodes[children[t, 1], LOW] = nodes[t, LOW] + count[children[t, 0]]
    return nodes[:leaves, LOW].astype(np.int32)
