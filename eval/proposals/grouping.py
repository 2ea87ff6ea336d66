"""Segment proposals without any training: hierarchical grouping of superpixels, and level sets of brightness.

After the idea of Selective Search (Uijlings et al., IJCV 2013) on the superpixels of Felzenszwalb and Huttenlocher
(IJCV 2004): neighbouring regions are merged greedily, the most similar pair first, and each region on the way is a
proposal. Several superpixel scales, colour spaces and similarity measures make for variety. Late in the grouping two
neighbours are a proposal also where each is merged with something else (the idea of combinatorial grouping,
Arbelaez et al., CVPR 2014). Blobs on an even ground, cells above all, are found more exactly as connected components
of a thresholded picture: those are proposals too.

Every source of regions is a `_Layer`: a map that gives each pixel an integer, its rank, and regions as intervals of
ranks. A region's mask is made only once it is a serious candidate.

Nothing here is learned from masks. The few numbers of the ranking were set by hand, to be good on every second of 100
COCO photographs with masks; `quality` measures what comes out, on the other half.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import scipy.ndimage as ndi
import torch
from numba import njit
from skimage.color import rgb2hsv, rgb2lab
from skimage.transform import resize

from prm import InputError
from prm.accelerated.inputs import is_giant, reduced
from prm.accelerated.retrieval import Proposals

# Raised whenever the same settings give other proposals than before; part of the cache's key. (It was not when giant
# pictures, of more than 2048 pixels, came to be reduced in 8 bits.)
VERSION = 2

_COLOUR_BINS, _ORIENTATIONS, _MAGNITUDES = 25, 8, 8
_LEAST_SHARE = 0.2  # of two regions in a union: the smaller one's area over the larger one's
_UNION = 0.5  # factor of a union's promise: it is a thing less often than a region that the grouping made
_HISTOGRAM = 3 * (_COLOUR_BINS + _ORIENTATIONS * _MAGNITUDES)


@dataclass(frozen=True)
class GroupingSettings:
    """What `generate` may be told; sizes are in pixels of the working picture.

    max_side: larger pictures are worked on at this size, and the masks scaled back.
    scales: of the superpixels; a larger one starts from larger regions. min_superpixel: their least area.
    similarities: one hierarchy each; weights of colour, texture, smallness, filling and weak border.
    unions: in the last so many merges of a hierarchy, the merged region together with each of its neighbours.
    levels: thresholds for the level sets. min_area: of a proposal.
    candidates: so many regions are compared with each other. duplicates: pairs of an IoU and a factor; what overlaps a
    more promising region by at least this IoU has its promise multiplied by the factor.
    """

    max_side: int = 512
    scales: tuple[float, ...] = (40.0, 120.0)
    min_superpixel: int = 20
    similarities: tuple[tuple[float, ...], ...] = ((1, 1, 1, 1, 0), (0, 1, 1, 1, 0), (1, 1, 1, 1, 2))
    unions: int = 100
    levels: int = 24
    min_area: int = 20
    candidates: int = 10000
    duplicates: tuple[tuple[float, float], ...] = ((0.4, 0.5), (0.5, 0.5), (0.65, 0.05), (0.85, 0.1))

    def __post_init__(self):
        least = min(self.max_side, self.min_superpixel, self.levels, self.min_area, self.candidates)
        if least < 1 or self.unions < 0 or not self.scales or not self.similarities:
            raise InputError("grouping settings: sizes and counts must be at least 1 (unions: 0 or more)")
        if any(len(weights) != 5 for weights in self.similarities) or any(len(pair) != 2 for pair in self.duplicates):
            raise InputError("grouping settings: similarities are five weights each, duplicates an IoU and a factor")


# Columns of a table of regions, one int64 row each. A region is where low <= rank < high, or low2 <= rank < high2; it
# lies in the rows top .. bottom - 1 and the columns left .. right - 1. Its hash is the sum of its pixels' random keys:
# it finds equal masks without making any, and a union's hash is the sum of its parts'.
LOW, HIGH, AREA, TOP, LEFT, BOTTOM, RIGHT, HASH, LOW2, HIGH2 = range(10)
# Columns of a region's sums, float64: pixel sides of its border inside the picture, edge strength along it, and the
# three colours of its pixels.
LENGTH, STRENGTH, COLOUR = range(3)


@dataclass(frozen=True, eq=False)
class _Layer:
    """Regions of one source, `regions` (n, 10) with their `sums` (n, 5).

    The ranks are run-length encoded in row-major order: starts (r + 1,), the last one h * w, and ranks (r,).
    """

    starts: np.ndarray
    ranks: np.ndarray
    regions: np.ndarray
    sums: np.ndarray

    @classmethod
    def of(cls, rank_map, regions, sums) -> "_Layer":
        flat = rank_map.ravel()
        starts = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1, [flat.size]])
        return cls(starts, flat[starts[:-1]], regions, sums)


class _Picture(NamedTuple):
    """What regions are measured on: colours (h, w, 3) float32, smooth Lab; edges (h, w) float32; keys (h, w) int64."""

    colours: np.ndarray
    edges: np.ndarray
    keys: np.ndarray


def generate(image: np.ndarray, limit: int = 1000, settings: GroupingSettings | None = None) -> Proposals:
    """Segment proposals for a picture, the most promising first.

    image: (H, W, 3) uint8, RGB. limit: at most so many proposals; up to settings.candidates, a smaller limit gives
    the beginning of the same list. Returns masks of H x W. The same picture and settings give the same proposals.
    Raises InputError for any other array.
    """
    check(image, limit)
    settings = settings or GroupingSettings()
    small = _working_image(image, settings.max_side)
    lab, hsv = rgb2lab(small).astype(np.float32), rgb2hsv(small).astype(np.float32)
    smooth = ndi.gaussian_filter(lab, (1, 1, 0))
    keys = np.random.default_rng(0).integers(-(1 << 62), 1 << 62, small.shape[:2])
    picture = _Picture(smooth, _edge_strength(smooth), keys)
    layers = _level_sets(picture, settings) + _hierarchies(lab, hsv, picture, settings)
    chosen = _rank(layers, limit, picture, settings)
    return chosen.resized(*image.shape[:2])


def check(image: np.ndarray, limit: int) -> None:
    """Raise InputError unless `generate` can work on this."""
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        what = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
        raise InputError(f"proposals need an (H, W, 3) uint8 picture, not {what}")
    if image.size == 0 or limit < 1:
        raise InputError(
            f"proposals: picture {image.shape[0]} x {image.shape[1]}, limit {limit}; all must be at least 1"
        )


def _working_image(image: np.ndarray, max_side: int) -> np.ndarray:
    """The picture as (h, w, 3) float32 in 0 .. 1, its longer side at most max_side.

    A giant one is reduced in 8 bits first: float64 would take 25 times its memory.
    """
    factor = max_side / max(image.shape[:2])
    if factor >= 1:
        return image.astype(np.float32) / 255
    height, width = (max(1, round(side * factor)) for side in image.shape[:2])
    shape = height, width
    if is_giant(image, shape):
        return reduced(image, shape).astype(np.float32) / 255
    return resize(image, shape, anti_aliasing=True).astype(np.float32)


def _edge_strength(lab: np.ndarray) -> np.ndarray:
    """Length of the colour gradient, (h, w) float32."""
    square = ndi.sobel(lab, 0, mode="nearest") ** 2 + ndi.sobel(lab, 1, mode="nearest") ** 2
    return np.sqrt(square.sum(2)) / 8


# ---- level sets


def _level_sets(picture, settings) -> list[_Layer]:
    """Connected components above and below thresholds: of the picture, and of what stands out from its surroundings."""
    lightness = picture.colours[..., 0]
    ground = ndi.gaussian_filter(lightness, max(lightness.shape) / 16)
    layers = []
    for channel in (lightness, lightness - ground):
        low, high = np.percentile(channel, (0.5, 99.5))
        for level in np.linspace(low, high, settings.levels + 2)[1:-1]:
            for foreground in (channel > level, channel <= level):
                labels = ndi.label(foreground)[0].astype(np.int32)
                table, sums = _describe(labels, labels.max() + 1, *picture)
                # Label 0 is the ground.
                keep = (table[:, AREA] >= settings.min_area) & (table[:, LOW] > 0)
                if keep.any():
                    layers.append(_Layer.of(labels, table[keep], sums[keep]))
    return layers


@njit(cache=True)
def _describe(labels, count, colours, edges, keys):
    """Each label's row of the region table, and its sums."""
    table = np.zeros((count, 10), np.int64)
    table[:, TOP] = labels.shape[0]
    table[:, LEFT] = labels.shape[1]
    sums = np.zeros((count, 5), np.float64)
    for k in range(count):
        table[k, LOW] = k
        table[k, HIGH] = k + 1
    for i in range(labels.shape[0]):
        for j in range(labels.shape[1]):
            k = labels[i, j]
            table[k, AREA] += 1
            table[k, TOP] = min(table[k, TOP], i)
            table[k, LEFT] = min(table[k, LEFT], j)
            table[k, BOTTOM] = max(table[k, BOTTOM], i + 1)
            table[k, RIGHT] = max(table[k, RIGHT], j + 1)
            table[k, HASH] += keys[i, j]
            for c in range(3):
                sums[k, COLOUR + c] += colours[i, j, c]
            for di, dj in ((0, 1), (1, 0)):
                if i + di < labels.shape[0] and j + dj < labels.shape[1] and labels[i + di, j + dj] != k:
                    step = max(edges[i, j], edges[i + di, j + dj])
                    for side in (k, labels[i + di, j + dj]):
                        sums[side, LENGTH] += 1
                        sums[side, STRENGTH] += step
    return table, sums


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


def _hierarchies(lab, hsv, picture, settings) -> list[_Layer]:
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
            described = _describe(labels, count, *picture)
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


def _grow(labels, histograms, described, borders, merging) -> _Layer:
    """Merge the most similar neighbours until one region is left; all regions on the way, and unions of neighbours."""
    nodes, sums, children, neighbours = _merge(histograms, *described, borders, *merging)
    rank = _leaf_ranks(nodes, children, len(histograms))
    unions, their_sums = _unions(nodes, sums, neighbours)
    return _Layer.of(rank[labels], np.concatenate([nodes, unions]), np.concatenate([sums, their_sums]))


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


# ---- choice


def _rank(layers, limit, picture, settings) -> Proposals:
    """The `limit` most promising regions, each once.

    What resembles a more promising region loses promise: a small limit is spent on variety.
    """
    shape = picture.edges.shape
    table = np.concatenate([layer.regions for layer in layers])
    sums = np.concatenate([layer.sums for layer in layers])
    layer = np.repeat(np.arange(len(layers)), [len(one.regions) for one in layers])
    fit = np.flatnonzero(table[:, AREA] >= min(settings.min_area, shape[0] * shape[1]))
    fit = fit[np.unique(table[fit, HASH], return_index=True)[1]]
    table, layer = table[fit], layer[fit]
    promise = _promise(table, sums[fit], picture)
    order = np.lexsort((fit, -promise))[: max(settings.candidates, limit)]
    table, promise = table[order], promise[order]
    starts, ends, offsets = _runs(layers, layer[order], table, shape[1])
    for iou, factor in settings.duplicates:
        promise[_near_duplicates(starts, ends, offsets, table, iou)] *= factor
    chosen = np.argsort(-promise, kind="stable")[:limit]
    proposals = Proposals(*shape, *(torch.from_numpy(array) for array in (starts, ends, offsets)))
    return proposals.select(torch.from_numpy(chosen))


def _promise(table, sums, picture) -> np.ndarray:
    """(n,) float64: rises with the edges along a region's border, the colours' difference, compactness and size."""
    area = table[:, AREA]
    filling = area / ((table[:, BOTTOM] - table[:, TOP]) * (table[:, RIGHT] - table[:, LEFT]))
    contrast = sums[:, STRENGTH] / np.maximum(sums[:, LENGTH], 1)
    promise = np.sqrt(contrast * _colour_distance(table, sums, picture.colours)) * filling * area**0.3
    return np.where(table[:, HIGH2] > 0, _UNION * promise, promise)


def _colour_distance(table, sums, colours) -> np.ndarray:
    """How far a region's mean colour is from that of the rest of its box, 15 % wider on each side, (n,) float64."""
    # Sums over boxes from running totals over rows and columns.
    totals = np.zeros((colours.shape[0] + 1, colours.shape[1] + 1, 3))
    totals[1:, 1:] = colours.cumsum(0, dtype=np.float64).cumsum(1)
    more = 2 + 0.15 * (table[:, (BOTTOM, RIGHT)] - table[:, (TOP, LEFT)])
    top, left = np.maximum(table[:, (TOP, LEFT)] - more, 0).astype(np.int64).T
    bottom, right = np.minimum(table[:, (BOTTOM, RIGHT)] + more, colours.shape[:2]).astype(np.int64).T
    box = totals[bottom, right] - totals[top, right] - totals[bottom, left] + totals[top, left]
    area, inside = table[:, AREA, None], sums[:, COLOUR:]
    rest = np.maximum(((bottom - top) * (right - left))[:, None] - area, 1)
    return np.sqrt(((inside / area - (box - inside) / rest) ** 2).sum(1))


def _runs(layers, layer, table, width) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Run-length encode regions: starts, ends, offsets as in `Proposals`."""
    parts = [_region_runs(layers[k].starts, layers[k].ranks, region, width) for k, region in zip(layer, table)]
    offsets = np.cumsum([0] + [len(part) for part in parts])
    starts, ends = np.concatenate([np.zeros((0, 2), np.int64), *parts]).T.copy()
    return starts, ends, offsets


@njit(cache=True)
def _region_runs(starts, ranks, region, width):
    """A region's runs, (R, 2): first and one past last position."""
    low, high, low2, high2 = region[LOW], region[HIGH], region[LOW2], region[HIGH2]
    top, bottom = region[TOP], region[BOTTOM]
    first = np.searchsorted(starts, top * width, side="right") - 1
    last = np.searchsorted(starts, bottom * width)
    out = np.empty((last - first, 2), np.int64)
    count = 0
    for r in range(first, last):
        if low <= ranks[r] < high or low2 <= ranks[r] < high2:
            if count > 0 and out[count - 1, 1] == starts[r]:
                out[count - 1, 1] = starts[r + 1]
            else:
                out[count, 0], out[count, 1] = starts[r], starts[r + 1]
                count += 1
    return out[:count].copy()


@njit(cache=True)
def _near_duplicates(starts, ends, offsets, table, iou):
    """Which masks overlap an earlier one, that is itself no near-duplicate, by at least `iou`."""
    repeated = np.zeros(len(table), np.bool_)
    for k in range(len(table)):
        for j in range(k):
            small, large = min(table[k, AREA], table[j, AREA]), max(table[k, AREA], table[j, AREA])
            if repeated[j] or small < iou * large:
                continue
            high = min(table[k, BOTTOM], table[j, BOTTOM]) - max(table[k, TOP], table[j, TOP])
            wide = min(table[k, RIGHT], table[j, RIGHT]) - max(table[k, LEFT], table[j, LEFT])
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
