"""Superpixels after Felzenszwalb and Huttenlocher (IJCV 2004), at several scales from one sorting of the edges."""

import numpy as np
from numba import njit


def superpixels(feature, scales, min_size) -> list[tuple[np.ndarray, int]]:
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
