"""From class maps, displacements and boundaries to labels: seeds to train on, and instances.

Symbols: M class maps (C, h, w) on the grid of a quarter of the picture, or at its size; B boundary; D displacement; V
maps of one class and one instance each. A map of labels holds 0 for background, class + 1, 255 for ignored.
"""

import numpy as np
from scipy import ndimage

from .centroids import centroids, instances
from .pixel_pairs import IGNORED
from .random_walk import walk
from .resize import bilinear


def cam_merge(responses, size, label) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Class maps of several scales as one: (keys (n,), maps (n, h, w), maps (n, H, W)), of the n labelled classes.

    responses: for each scale (2, C, hs, ws) before the ReLU, [1] of the mirrored picture; size: (H, W) of the picture;
    label: (C,) 0 or 1. Each scale's two maps are added after the ReLU, the second mirrored back, brought to
    (ceil(H / 4), ceil(W / 4)) and to (H, W) rounded up to whole 16, cropped, and summed; each class is divided by its
    maximum + 1e-5 on that grid.
    """
    keys = np.flatnonzero(np.asarray(label))
    quarter, whole = tuple(-(-side // 4) for side in size), tuple(16 * -(-side // 16) for side in size)
    coarse, fine = np.zeros((len(keys), *quarter)), np.zeros((len(keys), *size))
    for one in responses:
        seen = np.maximum(np.asarray(one, np.float64), 0)
        both = (seen[0] + seen[1][..., ::-1])[keys]
        coarse += bilinear(both, quarter)
        fine += bilinear(both, whole)[:, : size[0], : size[1]]
    return keys, _of_own_maximum(coarse), _of_own_maximum(fine)


def _of_own_maximum(maps):
    return maps / (maps.max((1, 2), keepdims=True, initial=0) + 1e-5)


def seed_index(cam, threshold) -> np.ndarray:
    """Where each labelled class is strongest: (H, W), 0 where all of cam (n, H, W) are below the threshold or at it,
    else 1 + the first of the strongest."""
    cam = np.asarray(cam)
    ground = np.full((1, *cam.shape[1:]), threshold, cam.dtype)
    return np.concatenate([ground, cam]).argmax(0)


def seed_merge(foreground, background) -> np.ndarray:
    """Labels of two maps of labels, of a high and a low threshold: the first where it names a class, background where
    the second names none, else ignored."""
    foreground, background = np.asarray(foreground), np.asarray(background)
    return np.where(foreground > 0, foreground, np.where(background == 0, 0, IGNORED))


def merge_views(logits, displacements, size) -> tuple[np.ndarray, np.ndarray]:
    """Boundary (h, w) and displacement (2, h, w) of a picture of `size` (H, W), h = ceil(H / 4).

    logits: (2, p, p) and displacements: (2, 2, p, p), [1] of the mirrored picture, of pictures padded below and on the
    right. Both are cropped, then the mirrored one is mirrored back; logits are averaged; the displacement is the
    first's.
    """
    h, w = (-(-side // 4) for side in size)
    z = np.asarray(logits, np.float64)[:, :h, :w]
    merged = (z[0] + z[1][:, ::-1]) / 2
    return 1 / (1 + np.exp(-merged)), np.asarray(displacements, np.float64)[0, :, :h, :w]


def detect(score_maps, regions, classes, min_area) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Instances: scores (m,), masks (m, H, W) bool, classes (m,).

    score_maps: (n, H, W); regions: (n, H, W) bool; classes: (n,). A region's 4-connected parts are an instance each,
    by region, then by their first pixel; the score is the map's maximum in it, or 0 where it has fewer than min_area
    pixels.
    """
    scores, masks, found = [], [], []
    for own, region, label in zip(np.asarray(score_maps), np.asarray(regions), classes):
        parts, count = ndimage.label(region)
        for k in range(1, count + 1):
            mask = parts == k
            scores.append(own[mask].max() if mask.sum() >= min_area else 0.0)
            masks.append(mask)
            found.append(label)
    shape = np.shape(regions)[1:]
    return np.array(scores, np.float64), np.array(masks, bool).reshape(-1, *shape), np.array(found, np.int64)


def labels(cam, keys, boundary, displacement, size, background=0.25, min_area=None):
    """Instances and the map of classes of a picture: ((scores, masks, classes), (H, W) of 0 and class + 1).

    cam: (n, h, w) maps of the labelled classes, keys: (n,) those; boundary: (h, w); displacement: (2, h, w); size:
    (H, W); background: what a map has to exceed, as a share of the greatest; min_area: pixels, None for 0.01 H W.
    Without a label, and where every map is 0, there is no instance, and the map of classes is 0.
    """
    M, (H, W) = np.asarray(cam, np.float64), size
    centres = instances(np.rint(centroids(displacement)), displacement)
    count = centres.max() + 1
    V = np.stack([M * (centres == k) for k in range(count)], axis=1).reshape(-1, *M.shape[1:])
    least = 0.01 * H * W if min_area is None else min_area
    classes = np.repeat(np.asarray(keys, np.int64), count)
    found = _spread(V, boundary, size)
    if found is None:
        empty = np.zeros(0), np.zeros((0, H, W), bool), np.zeros(0, np.int64)
        return empty, np.zeros((H, W), np.int64)
    winner = seed_index(found, background)
    instances_found = detect(found, [winner == k + 1 for k in range(len(V))], classes, least)
    names = np.concatenate([[0], np.asarray(keys, np.int64) + 1])
    return instances_found, names[seed_index(_spread(M, boundary, size), background)]


def _spread(V, boundary, size):
    """Maps after the walk at the picture's size, as shares of the greatest of all; None where all are 0."""
    if not V.any():
        return None
    h, w = V.shape[1:]
    large = bilinear(walk(V, boundary), (4 * h, 4 * w), (0.25, 0.25))[:, : size[0], : size[1]]
    return large / large.max() if large.max() > 0 else None
