"""The two heads of IRNet's network on a backbone's features: boundary logits and displacements, of one picture.

Symbols: x1..x5 features at strides 4, 4, 8, 16, 16. A block: a 1x1 convolution without bias, group norm, bilinear
enlargement, ReLU, and a crop at the bottom and on the right.
"""

import numpy as np

from .resize import bilinear

EPS = 1e-5
BOUNDARY = ((4, 1), (4, 1), (4, 2), (4, 4), (4, 4))  # groups and enlargement of each block
DISPLACEMENT = ((8, 1), (16, 1), (16, 1), (16, 2), (16, 2), (16, 2), (16, 1))


def heads(W, x, mean=(0, 0)) -> tuple[np.ndarray, np.ndarray]:
    """Boundary logit (h, w) and displacement (2, h, w), row first, less `mean`, on the grid of x2.

    W: arrays by name: boundary.1 .. boundary.5 and displacement.1 .. displacement.7, each with .conv (O, I), .scale
    (O,) and .shift (O,); boundary.out.conv (1, O), boundary.out.bias (1,), displacement.out.conv (2, O).
    x: five arrays (C, h, w). ValueError where an array is missing.
    """
    if len(x) != 5:
        raise ValueError(f"{len(x)} features; heads take x1 .. x5")
    x = [np.asarray(one, np.float64) for one in x]
    try:
        edges = [block(W, f"boundary.{k + 1}", x[k], *BOUNDARY[k], x[1].shape[1:]) for k in range(5)]
        bias = np.reshape(W["boundary.out.bias"], (1, 1, 1))
        logit = _convolved(W["boundary.out.conv"], np.concatenate(edges)) + bias
        sizes = [x[0].shape[1:], x[1].shape[1:], *[x[2].shape[1:]] * 3]
        parts = [block(W, f"displacement.{k + 1}", x[k], *DISPLACEMENT[k], sizes[k]) for k in range(5)]
        deep = block(W, "displacement.6", np.concatenate(parts[2:]), *DISPLACEMENT[5], x[1].shape[1:])
        both = block(W, "displacement.7", np.concatenate([*parts[:2], deep]), *DISPLACEMENT[6], x[1].shape[1:])
        moved = _convolved(W["displacement.out.conv"], both)
    except KeyError as error:
        raise ValueError(f"the weights have no {error}") from None
    return logit[0], moved - np.asarray(mean, np.float64).reshape(2, 1, 1)


def block(W, name, x, groups, factor, size) -> np.ndarray:
    """One block on x (C, h, w), cropped to `size`: (O, *size)."""
    y = _convolved(W[f"{name}.conv"], x)
    y = _normalised(y, groups) * np.reshape(W[f"{name}.scale"], (-1, 1, 1)) + np.reshape(W[f"{name}.shift"], (-1, 1, 1))
    y = bilinear(y, (factor * y.shape[1], factor * y.shape[2]))
    return np.maximum(y, 0)[:, : size[0], : size[1]]


def _convolved(weight, x):
    return np.tensordot(np.asarray(weight, np.float64), x, 1)


def _normalised(y, groups):
    """Each group of channels to mean 0 and variance 1 over its channels and pixels."""
    parts = y.reshape(groups, -1)
    return ((parts - parts.mean(1, keepdims=True)) / np.sqrt(parts.var(1, keepdims=True) + EPS)).reshape(y.shape)
