"""Class response maps and Peak Response Maps averaged over views of one picture. An option, not the paper's.

A view is the picture at one of several sizes, turned: number k of up to eight is mirrored left and right if k is odd,
then up and down if k // 2 is odd, then transposed if k // 4 is odd. All are laid back on the first view's grids.
"""

import numpy as np

from .network import as_network, forward, walk
from .peak_backprop import interpolation_weights

VIEWS = (1, 2, 4, 8)


def turned(x, k) -> np.ndarray:
    """x (..., H, W) as view k shows it."""
    x = x[..., ::-1] if k & 1 else x
    x = x[..., ::-1, :] if k & 2 else x
    return np.swapaxes(x, -1, -2) if k & 4 else x


def turned_back(x, k) -> np.ndarray:
    """What `turned` made, as it was."""
    x = np.swapaxes(x, -1, -2) if k & 4 else x
    x = x[..., ::-1, :] if k & 2 else x
    return x[..., ::-1] if k & 1 else x


def place_in_view(place, shape, scaled_shape, k) -> tuple[float, float]:
    """Where (row, column) on the first view's map of `shape` (h, w) lies on the map of view k of another size.

    scaled_shape: of that map, turned back. A place's share of the map stays, pixel centres at integers: (i + 0.5) * h'
    / h - 0.5, and not beyond the centres of the border.
    """
    at = [(i + 0.5) * other / size - 0.5 for i, size, other in zip(place, shape, scaled_shape)]
    row, column = (min(max(i, 0.0), other - 1.0) for i, other in zip(at, scaled_shape))
    column = scaled_shape[1] - 1 - column if k & 1 else column
    row = scaled_shape[0] - 1 - row if k & 2 else row
    return (column, row) if k & 4 else (row, column)


def resized(x, shape) -> np.ndarray:
    """x (..., h, w) at `shape` (H, W), bilinear, corners not aligned."""
    rows, columns = (interpolation_weights(size, out, "bilinear") for size, out in zip(x.shape[-2:], shape))
    return rows @ x @ columns.T if x.shape[-2:] != tuple(shape) else x


def look(network, images, views=1) -> list[tuple[int, dict]]:
    """Every view's number and activations. images: the picture (C, H, W) at one size or more; views: 1, 2, 4 or 8."""
    if views not in VIEWS:
        raise ValueError(f"views must be 1, 2, 4 or 8, not {views!r}")
    return [(k, forward(network, turned(np.asarray(image), k))) for image in images for k in range(views)]


def mean_maps(network, seen) -> np.ndarray:
    """The class response maps (C, h, w) of what `look` saw: the mean over the views, at the first one's size."""
    maps = [turned_back(activations[as_network(network).output], k) for k, activations in seen]
    return np.mean([resized(M, maps[0].shape[1:]) for M in maps], axis=0)


def mean_prm(network, seen, peak, shape, upsample=1, signed=False) -> tuple[np.ndarray, bool]:
    """The Peak Response Map (H, W) = `shape` of a peak (class, row, column) of the mean maps enlarged by `upsample`.

    Each view walks from where the peak lies in it; its map at another size is brought to `shape` and to sum 1, so that
    views count alike, and the sum over views is divided by its total -> (R, whether it is empty).
    """
    c, *at = peak
    maps = [turned_back(activations[as_network(network).output], k) for k, activations in seen]
    sizes = maps[0].shape[1:]
    place = [row * (size - 1) / max(upsample * size - 1, 1) for row, size in zip(at, sizes)]
    total = np.zeros(shape)
    for (k, activations), M in zip(seen, maps):
        found = walk(network, activations, (c, *place_in_view(place, sizes, M.shape[1:], k)), signed=signed)
        if not found.empty:
            R = resized(turned_back(found.prm, k), shape)
            total += R / R.sum()
    return (total / total.sum(), False) if total.any() else (total, True)
