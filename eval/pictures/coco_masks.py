"""COCO's segmentations, polygons or run-length codes, as codes that pycocotools may be trusted with.

pycocotools looks at nothing. It walks along a polygon's outline in steps of a fifth of a pixel, with 32 bits a
coordinate, wherever that leads: far from the picture it takes all memory, or ends the process. Of a run-length code
that ends too soon it hands out what the memory held before.
"""

from collections.abc import Sequence

import numpy as np
from numba import njit
from pycocotools import mask as coco

FAR = 1 << 20
"""Pixels: a polygon that reaches farther, or whose outline is longer, is cut to the picture before it is drawn."""


def encoded(segmentation: object, shape: Sequence[int]) -> dict:
    """A segmentation as pycocotools decodes it: {"size": [H, W], "counts": bytes}.

    segmentation: a list of polygons, each x, y, x, y, ... in a list or an array of float64; or an object with "size"
        and "counts", text or a list of runs. Polygons may reach out of the picture; a list of none covers nothing.
    shape: the picture's (H, W).

    Raises ValueError, in one line that does not name the place: not a segmentation, a corner that is no finite number,
    runs that are not those of H x W pixels.
    """
    if isinstance(segmentation, list):
        return _of_polygons(segmentation, shape)
    if not isinstance(segmentation, dict) or not {"size", "counts"} <= set(segmentation):
        raise ValueError("segmentation must be an object with 'size' and 'counts', or a list of polygons")
    size, counts = segmentation["size"], segmentation["counts"]
    if not isinstance(size, list):
        raise ValueError("size must be [height, width]")
    if tuple(size) != tuple(shape):
        sizes = ", but the picture is ".join(" x ".join(map(str, sides)) for sides in (size, shape))
        raise ValueError(f"of {sizes} (height x width)")
    height, width = map(int, shape)
    if isinstance(counts, list):
        if not all(type(n) in (int, float) and 0 <= n <= height * width and n == int(n) for n in counts):
            raise ValueError(f"counts must be runs of 0 to {height * width} pixels, in whole numbers")
        code, total = {"size": [height, width], "counts": [int(n) for n in counts]}, int(sum(counts))
    elif isinstance(counts, str) and counts.isascii():
        code = {"size": [height, width], "counts": counts.encode()}
        total = _total(np.frombuffer(code["counts"], np.uint8))
    else:
        raise ValueError("counts must be the run-length code as text, or a list of runs")
    if total != height * width:
        covered = f"covers {total}" if total >= 0 else "is not one"
        raise ValueError(f"the run-length code is damaged: it {covered} of {height} x {width} pixels")
    return coco.frPyObjects(code, height, width) if isinstance(counts, list) else code


def _of_polygons(polygons: list, shape: Sequence[int]) -> dict:
    height, width = map(int, shape)
    parts = [_cut_to_picture(_corners(polygon), height, width).ravel() for polygon in polygons]
    parts = [part for part in parts if len(part) >= 6]
    if not parts:
        return coco.encode(np.zeros((height, width), np.uint8, order="F"))
    return coco.merge(coco.frPyObjects(parts, height, width))


def _corners(polygon: object) -> np.ndarray:
    """(N, 2) float64 x, y, N >= 3."""
    # pycocotools takes four numbers for a box, and drops an x without a y.
    if not isinstance(polygon, list | np.ndarray) or len(polygon) < 6 or len(polygon) % 2:
        raise ValueError("a polygon must be a list of at least three points, x and y each")
    if isinstance(polygon, list) and not all(type(n) in (int, float) for n in polygon):
        raise ValueError("a polygon holds something that is no number")
    try:
        corners = np.array(polygon, dtype=np.float64).reshape(-1)
    except OverflowError:
        corners = np.array([np.inf])
    if not np.isfinite(corners).all():
        raise ValueError("a polygon holds a coordinate that is not finite")
    return corners.reshape(-1, 2)


def _cut_to_picture(points: np.ndarray, height: int, width: int) -> np.ndarray:
    """The same polygon, (N, 2), unless it leads `FAR`: then what of it lies in the picture and a pixel around.

    The frame runs outside of the picture, so that what is drawn along it covers no pixel.
    """
    points = np.clip(points, -1e300, 1e300)  # beyond, differences are not finite
    outline = np.abs(np.diff(points, axis=0, append=points[:1])).max(axis=1).sum()
    if max(outline, np.abs(points).max()) <= FAR:
        return points
    for axis, side in ((0, width), (1, height)):
        points = _cut(_cut(points, axis, -1.0, 1), axis, side + 1.0, -1)
    return points


def _cut(points: np.ndarray, axis: int, limit: float, sign: int) -> np.ndarray:
    """The part of a polygon, (N, 2), where sign * coordinate >= sign * limit (Sutherland and Hodgman 1974)."""
    inside = sign * points[:, axis] >= sign * limit
    kept = []
    for k in range(len(points)):
        if inside[k - 1] != inside[k]:
            # From the end that is kept: the other may be so far that nothing is left of this one beside it.
            near, far = (points[k], points[k - 1]) if inside[k] else (points[k - 1], points[k])
            crossing = near + (far - near) * ((limit - near[axis]) / (far[axis] - near[axis]))
            crossing[axis] = limit
            kept.append(crossing)
        if inside[k]:
            kept.append(points[k])
    return np.array(kept, dtype=np.float64).reshape(-1, 2)


@njit(cache=True)
def _total(code):
    """How many pixels a compressed run-length code describes; -1 if it is none.

    A number is written in groups of 5 bits, the lowest first, each as a character from '0' on; bit 5 tells that more
    follow, and bit 4 of the last group is the sign. From the fourth number on, each is the difference to the one two
    before it.
    """
    total, number, shift = 0, 0, 0
    last, before, count = 0, 0, 0
    for character in code:
        group = np.int64(character) - 48
        if group < 0 or group > 63 or shift > 30:
            return -1
        number |= (group & 31) << shift
        shift += 5
        if group & 32 == 0:
            if group & 16:
                number -= 1 << shift
            if count > 2:
                number += before
            if number < 0:
                return -1
            total, before, last = total + number, last, number
            number, shift, count = 0, 0, count + 1
    return total if shift == 0 else -1
