"""Segment proposals without any training: hierarchical grouping of superpixels, and level sets of brightness.

After the idea of Selective Search (Uijlings et al., IJCV 2013) on the superpixels of Felzenszwalb and Huttenlocher (IJCV
2004): neighbouring regions are merged greedily, the most similar pair first, and each region on the way is a proposal.
Several superpixel scales, colour spaces and similarity measures make for variety. Blobs on an even ground, cells above all,
are found more exactly as connected components of a thresholded picture, so those are proposals as well.

Every source of regions is a `_Layer`: a map that gives each pixel an integer, and regions as intervals of these integers. A
region's mask is made only once it is chosen.
"""

from dataclasses import dataclass

import numpy as np
import scipy.ndimage as ndi
import torch
from numba import njit
from skimage.color import rgb2hsv, rgb2lab
from skimage.transform import resize

from prm import InputError
from prm.accelerated.retrieval import Proposals

# Raised whenever the same settings give other proposals than before; part of the cache's key.
VERSION = 1

_COLOUR_BINS, _ORIENTATIONS, _MAGNITUDES = 25, 8, 8
_HISTOGRAM = 3 * (_COLOUR_BINS + _ORIENTATIONS * _MAGNITUDES)


@dataclass(frozen=True)
class GroupingSettings:
    """max_side: pixels; larger pictures are worked on at this size, and the masks scaled back.

    scales: of the superpixels; a larger one starts from larger regions. min_superpixel: their least area, pixels.
    levels: thresholds per picture and polarity for the level sets. min_area: of a proposal, pixels at the working size.
    duplicate: of two proposals with at least this IoU the later one is ranked behind all others.
    """

    max_side: int = 512
    scales: tuple[float, ...] = (40.0, 120.0)
    min_superpixel: int = 20
    levels: int = 16
    min_area: int = 20
    duplicate: float = 0.85
    candidates: int = 20000
    similarities: tuple[tuple[float, ...], ...] = ((1, 1, 1, 1, 0), (0, 1, 1, 1, 0), (1, 1, 1, 1, 2))


@dataclass(frozen=True, eq=False)
class _Layer:
    """Regions of one source.

    ranks: (h, w) int32. regions: (n, 8) int64 rows low, high, area, top, left, bottom, right, hash; the region is where
    low <= ranks < high, inside the box top .. bottom - 1, left .. right - 1. contrast: (n,) mean step along the border.
    """

    ranks: np.ndarray
    regions: np.ndarray
    contrast: np.ndarray


LOW, HIGH, AREA, TOP, LEFT, BOTTOM, RIGHT, HASH = range(8)


def generate(image: np.ndarray, limit: int = 1000, settings: GroupingSettings | None = None) -> Proposals:
    """Segment proposals for a picture, the most promising first.

    image: (H, W, 3) uint8, RGB. limit: at most so many proposals; a smaller limit gives the beginning of the same list, as
    far as near-duplicates allow. Returns masks of H x W. The same picture and settings give the same proposals. Raises
    InputError for any other array.
    """
    settings = settings or GroupingSettings()
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        what = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
        raise InputError(f"proposals need an (H, W, 3) uint8 picture, not {what}")
    if image.size == 0 or limit < 1:
        raise InputError(
            f"proposals: picture {image.shape[0]} x {image.shape[1]}, limit {limit}; all must be at least 1"
        )
    small = _working_image(image, settings.max_side)
    lab, hsv = rgb2lab(small).astype(np.float32), rgb2hsv(small).astype(np.float32)
    lab_smooth = ndi.gaussian_filter(lab, (1, 1, 0))
    edges = _edge_strength(lab_smooth)
    keys = np.random.default_rng(0).integers(-(1 << 62), 1 << 62, small.shape[:2])
    layers = _level_sets(lab_smooth[..., 0], edges, keys, settings)
    layers += _hierarchies(lab, hsv, edges, keys, settings)
    chosen = _rank(layers, limit, small.shape[:2], settings)
    return chosen.resized(*image.shape[:2])


def _working_image(image: np.ndarray, max_side: int) -> np.ndarray:
    """The picture as (h, w, 3) float32 in 0 .. 1, its longer side at most max_side."""
    factor = max_side / max(image.shape[:2])
    if factor >= 1:
        return image.astype(np.float32) / 255
    shape = [max(1, round(side * factor)) for side in image.shape[:2]]
    return resize(image, shape, anti_aliasing=True).astype(np.float32)


def _edge_strength(lab: np.ndarray) -> np.ndarray:
    """Length of the colour gradient, (h, w) float32."""
    square = ndi.sobel(lab, 0, mode="nearest") ** 2 + ndi.sobel(lab, 1, mode="nearest") ** 2
    return np.sqrt(square.sum(2)) / 8


# ---- level sets


def _level_sets(lightness, edges, keys, settings) -> list[_Layer]:
    """Connected components above and below thresholds: of the picture, and of what stands out from its surroundings."""
    ground = ndi.gaussian_filter(lightness, max(lightness.shape) / 16)
    layers = []
    for channel in (lightness, lightness - ground):
        low, high = np.percentile(channel, (0.5, 99.5))
        for level in np.linspace(low, high, settings.levels + 2)[1:-1]:
            for foreground in (channel > level, channel <= level):
                labels = ndi.label(foreground)[0].astype(np.int32)
                table, contrast = _table(labels, labels.max() + 1, edges, keys)
                # Label 0 is the ground.
                keep = (table[:, AREA] >= settings.min_area) & (table[:, LOW] > 0)
                if keep.any():
                    layers.append(_Layer(labels, table[keep], contrast[keep]))
    return layers


def _table(labels, count, edges, keys) -> tuple[np.ndarray, np.ndarray]:
    """A layer's regions and their contrasts, one region for each label 0 .. count - 1."""
    table, length, strength = _describe(labels, count, edges, keys)
    return table, strength / np.maximum(length, 1)


@njit(cache=True)
def _describe(labels, count, edges, keys):
    """Every label's row of the region table, the length of its border in pixel sides, and the sum of `edges` along it."""
    table = np.zeros((count, 8), np.int64)
    table[:, 3] = labels.shape[0]
    table[:, 4] = labels.shape[1]
    length = np.zeros(count, np.float64)
    strength = np.zeros(count, np.float64)
    for k in range(count):
        table[k, 0] = k
        table[k, 1] = k + 1
    for i in range(labels.shape[0]):
        for j in range(labels.shape[1]):
            k = labels[i, j]
            table[k, 2] += 1
            table[k, 3] = min(table[k, 3], i)
            table[k, 4] = min(table[k, 4], j)
            table[k, 5] = max(table[k, 5], i + 1)
            table[k, 6] = max(table[k, 6], j + 1)
            table[k, 7] += keys[i, j]
            for di, dj in ((0, 1), (1, 0)):
                if i + di < labels.shape[0] and j + dj < labels.shape[1] and labels[i + di, j + dj] != k:
                    step = max(edges[i, j], edges[i + di, j + dj])
                    for side in (k, labels[i + di, j + dj]):
                        length[side] += 1
                        strength[side] += step
    return table, length, strength


# ---- superpixels


def _superpixels(feature, scales, min_size) -> list[tuple[np.ndarray, int]]:
    """Label maps (h, w) int32 with their counts, one for each scale, after Felzenszwalb and Huttenlocher."""
    height, width = feature.shape[:2]
    place = np.arange(height * width).reshape(height, width)
    first, second, weight = [], [], []
    for a, b in (
        (np.s_[:, :-1], np.s_[:, 1:]),
        (np.s_[:-1], np.s_[1:]),
        (np.s_[:-1, :-1], np.s_[1:, 1:]),
        (np.s_[:-1, 1:], np.s_[1:, :-1]),
    ):
        first.append(place[a].ravel())
        second.append(place[b].ravel())
        weight.append(np.sqrt(((feature[a] - feature[b]) ** 2).sum(2)).ravel())
    first, second, weight = (np.concatenate(parts) for parts in (first, second, weight))
    # 16 bit are fine enough, and sort in linear time.
    order = np.argsort(np.minimum(weight * 512, 65535).astype(np.uint16), kind="stable")
    first, second, weight = first[order], second[order], weight[order]
    maps = []
    for scale in scales:
        labels, count = _felzenszwalb(first, second, weight, height * width, scale, min_size)
        maps.append((labels.reshape(height, width), count))
    return maps


@njit(cache=True)
def _root(parent, x):
    while parent[x] != x:
        parent[x] = parent[parent[x]]
        x = parent[x]
    return x


@njit(cache=True)
def _felzenszwalb(first, second, weight, pixels, scale, min_size):
    """Join along the edges, lightest first, where an edge is no heavier than both regions' inner variation allows."""
    parent = np.arange(pixels)
    size = np.ones(pixels, np.int64)
    limit = np.full(pixels, scale, np.float32)
    for small_only in (False, True):
        for e in range(len(first)):
            a, b = _root(parent, first[e]), _root(parent, second[e])
            if a == b:
                continue
            if small_only:
                join = min(size[a], size[b]) < min_size
            else:
                join = weight[e] <= min(limit[a], limit[b])
            if join:
                parent[b] = a
                size[a] += size[b]
                limit[a] = weight[e] + scale / size[a]
    labels = np.empty(pixels, np.int32)
    number = np.full(pixels, -1, np.int32)
    count = 0
    for x in range(pixels):
        r = _root(parent, x)
        if number[r] < 0:
            number[r] = count
            count += 1
        labels[x] = number[r]
    return labels, count


# ---- hierarchical grouping


def _hierarchies(lab, hsv, edges, keys, settings) -> list[_Layer]:
    """Every region of every hierarchy: two colour spaces, several superpixel scales, several similarity measures."""
    layers = []
    for colours, bins in (
        (lab, _bins(lab, (0, -60, -60), (100, 60, 60))),
        (hsv * 100, _bins(hsv, (0, 0, 0), (1, 1, 1))),
    ):
        gradients = _gradient_bins(colours)
        smooth = ndi.gaussian_filter(colours, (0.8, 0.8, 0))
        for labels, count in _superpixels(smooth, settings.scales, settings.min_superpixel):
            histograms = _histograms(labels.ravel(), count, bins.reshape(-1, 3), gradients.reshape(-1, 3))
            described = _describe(labels, count, edges, keys)
            borders = _borders(labels, count, edges)
            for weights in settings.similarities:
                layers.append(_grow(labels, histograms, described, borders, np.array(weights, np.float32)))
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


def _grow(labels, histograms, described, borders, weights) -> _Layer:
    """Merge the most similar neighbours until one region is left; all regions on the way."""
    table, length, strength = described
    nodes, length, strength, children = _merge(
        histograms, table, length, strength, borders, weights, float(labels.size)
    )
    rank = _leaf_ranks(nodes, children, len(table))
    return _Layer(rank[labels], nodes, strength / np.maximum(length, 1))


@njit(cache=True)
def _merge(histograms, table, length, strength, borders, weights, picture):
    """Greedy merging. Returns the region table, border lengths and strengths of all 2 n - 1 nodes, and their children."""
    leaves = len(table)
    total = 2 * leaves - 1
    nodes = np.zeros((total, 8), np.int64)
    nodes[:leaves] = table
    hist = np.zeros((total, histograms.shape[1]), np.float32)
    hist[:leaves] = histograms
    around = np.zeros(total)
    around[:leaves] = length
    steps = np.zeros(total)
    steps[:leaves] = strength
    children = np.full((total, 2), -1, np.int64)
    pairs = borders.copy()
    likeness = np.zeros(len(pairs), np.float32)
    for e in range(len(pairs)):
        likeness[e] = _similarity(nodes, hist, int(pairs[e, 0]), int(pairs[e, 1]), pairs[e], weights, picture)
    seen = np.full(total, -1, np.int64)
    alive = len(pairs)
    for t in range(leaves, total):
        e = np.argmax(likeness[:alive])
        a, b = int(pairs[e, 0]), int(pairs[e, 1])
        children[t, 0], children[t, 1] = a, b
        share = np.float32(nodes[a, 2] / (nodes[a, 2] + nodes[b, 2]))
        hist[t] = share * hist[a] + (1 - share) * hist[b]
        nodes[t, 2], nodes[t, 7] = nodes[a, 2] + nodes[b, 2], nodes[a, 7] + nodes[b, 7]
        nodes[t, 3], nodes[t, 4] = min(nodes[a, 3], nodes[b, 3]), min(nodes[a, 4], nodes[b, 4])
        nodes[t, 5], nodes[t, 6] = max(nodes[a, 5], nodes[b, 5]), max(nodes[a, 6], nodes[b, 6])
        around[t] = around[a] + around[b] - 2 * pairs[e, 2]
        steps[t] = steps[a] + steps[b] - 2 * pairs[e, 3]
        # Borders of a and b become borders of t; the two borders with a common neighbour become one.
        kept = 0
        for e in range(alive):
            u, v = int(pairs[e, 0]), int(pairs[e, 1])
            of_u, of_v = u == a or u == b, v == a or v == b
            if of_u and of_v:
                continue
            if of_u or of_v:
                other = v if of_u else u
                if seen[other] >= 0:
                    pairs[seen[other], 2] += pairs[e, 2]
                    pairs[seen[other], 3] += pairs[e, 3]
                    continue
                seen[other] = kept
                u, v = other, t
            pairs[kept, 0], pairs[kept, 1], pairs[kept, 2], pairs[kept, 3] = u, v, pairs[e, 2], pairs[e, 3]
            likeness[kept] = likeness[e]
            kept += 1
        alive = kept
        for e in range(alive):
            if pairs[e, 1] == t:
                other = int(pairs[e, 0])
                seen[other] = -1
                likeness[e] = _similarity(nodes, hist, other, t, pairs[e], weights, picture)
    return nodes, around, steps, children


@njit(cache=True)
def _similarity(nodes, hist, a, b, border, weights, picture):
    """Weighted sum of the likeness in colour and in texture, of smallness, of filling each other's gaps, of weak border."""
    colour, texture = np.float32(0), np.float32(0)
    split = 3 * _COLOUR_BINS
    if weights[0] > 0:
        for k in range(split):
            colour += min(hist[a, k], hist[b, k])
    if weights[1] > 0:
        for k in range(split, hist.shape[1]):
            texture += min(hist[a, k], hist[b, k])
    together = nodes[a, 2] + nodes[b, 2]
    box = (max(nodes[a, 5], nodes[b, 5]) - min(nodes[a, 3], nodes[b, 3])) * (
        max(nodes[a, 6], nodes[b, 6]) - min(nodes[a, 4], nodes[b, 4])
    )
    small, fill = 1 - together / picture, 1 - (box - together) / picture
    weak = 1 / (1 + border[3] / border[2] / 5)
    return weights[0] * colour + weights[1] * texture + weights[2] * small + weights[3] * fill + weights[4] * weak


@njit(cache=True)
def _leaf_ranks(nodes, children, leaves):
    """Number the leaves so that every node's are consecutive; writes low and high into `nodes`, returns leaf -> number."""
    count = np.ones(len(nodes), np.int64)
    for t in range(leaves, len(nodes)):
        count[t] = count[children[t, 0]] + count[children[t, 1]]
    nodes[-1, 0] = 0
    for t in range(len(nodes) - 1, -1, -1):
        nodes[t, 1] = nodes[t, 0] + count[t]
        if t >= leaves:
            nodes[children[t, 0], 0] = nodes[t, 0]
            nodes[children[t, 1], 0] = nodes[t, 0] + count[children[t, 0]]
    return nodes[:leaves, 0].astype(np.int32)


# ---- choice


def _rank(layers, limit, shape, settings) -> Proposals:
    """The `limit` regions of strongest contrast, without repetitions; near-duplicates come last."""
    table = np.concatenate([layer.regions for layer in layers])
    contrast = np.concatenate([layer.contrast for layer in layers])
    layer = np.repeat(np.arange(len(layers)), [len(one.regions) for one in layers])
    fit = np.flatnonzero(table[:, AREA] >= min(settings.min_area, shape[0] * shape[1]))
    fit = fit[np.unique(table[fit, HASH], return_index=True)[1]]
    order = fit[np.lexsort((fit, -contrast[fit]))][: settings.candidates]
    starts, ends, offsets = _runs(layers, layer[order], table[order])
    repeated = _near_duplicates(starts, ends, offsets, table[order], settings.duplicate)
    order = np.concatenate([np.flatnonzero(~repeated), np.flatnonzero(repeated)])[:limit]
    proposals = Proposals(*shape, *(torch.from_numpy(array) for array in (starts, ends, offsets)))
    return proposals.select(torch.from_numpy(order))


def _runs(layers, layer, table) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Run-length encode regions: starts, ends, offsets as in `Proposals`."""
    counts = np.zeros(len(table), np.int64)
    for k in range(len(table)):
        counts[k] = _region_runs(layers[layer[k]].ranks, table[k], None, None)
    offsets = np.concatenate([[0], np.cumsum(counts)])
    starts, ends = np.empty(offsets[-1], np.int64), np.empty(offsets[-1], np.int64)
    for k in range(len(table)):
        part = slice(offsets[k], offsets[k + 1])
        _region_runs(layers[layer[k]].ranks, table[k], starts[part], ends[part])
    return starts, ends, offsets


@njit(cache=True)
def _region_runs(ranks, region, starts, ends):
    """Number of a region's runs; writes them too if given arrays."""
    low, high, _, top, left, bottom, right, _ = region
    width = ranks.shape[1]
    count, end = 0, -1
    for i in range(top, bottom):
        inside = False
        for j in range(left, right):
            here = low <= ranks[i, j] < high
            if here and not inside:
                # A run that starts where the last one ended, on the row before, goes on.
                if end != i * width + j:
                    if starts is not None:
                        starts[count] = i * width + j
                    count += 1
            if inside and not here:
                end = i * width + j
                if ends is not None:
                    ends[count - 1] = end
            inside = here
        if inside:
            end = i * width + right
            if ends is not None:
                ends[count - 1] = end
    return count


@njit(cache=True)
def _near_duplicates(starts, ends, offsets, table, iou):
    """Which masks overlap an earlier one, that is itself no near-duplicate, by at least `iou`."""
    repeated = np.zeros(len(table), np.bool_)
    for k in range(len(table)):
        for j in range(k):
            small, large = min(table[k, 2], table[j, 2]), max(table[k, 2], table[j, 2])
            if repeated[j] or small < iou * large:
                continue
            high = min(table[k, 5], table[j, 5]) - max(table[k, 3], table[j, 3])
            wide = min(table[k, 6], table[j, 6]) - max(table[k, 4], table[j, 4])
            need = iou / (1 + iou) * (small + large)
            if high <= 0 or wide <= 0 or high * wide < need:
                continue
            if _shared(starts, ends, offsets[k], offsets[k + 1], offsets[j], offsets[j + 1]) >= need:
                repeated[k] = True
                break
    return repeated


@njit(cache=True)
def _shared(starts, ends, k, k_end, j, j_end):
    """Pixels common to two masks, from their runs."""
    shared = 0
    while k < k_end and j < j_end:
        shared += max(0, min(ends[k], ends[j]) - max(starts[k], starts[j]))
        if ends[k] < ends[j]:
            k += 1
        else:
            j += 1
    return shared
