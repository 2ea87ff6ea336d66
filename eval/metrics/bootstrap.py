"""The bootstrap: how far a figure of merit would move on another set of images of the same kind.

A sample of a set of N images holds N images drawn with replacement, so each occurs 0, 1, 2, ... times. It is handed on
as these counts, the weights. A metric given weights answers as for the set in which image i occurs weights[i] times,
the copies side by side in the place of the one.
"""

import warnings
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from prm import InputError


class Interval(NamedTuple):
    """A percentile interval; numbers, or arrays of the statistic's shape."""

    low: float | np.ndarray
    high: float | np.ndarray
    samples: np.ndarray
    """(samples, ...) float64, the statistic of every sample; NaN where it is undefined."""
    undefined: int | np.ndarray
    """In how many samples it is undefined; `low` and `high` are over the others, NaN if there are none."""


def bootstrap(
    statistic: Callable[[np.ndarray], float | np.ndarray],
    images: int,
    samples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Percentile interval of a statistic over samples of the images; the same every time for one seed.

    Arguments:
        statistic: takes weights, (images,) int64 with sum `images`, and returns a number or an array of fixed shape.
        images: N, the size of the set and of each sample.
        level: the share of the samples between `low` and `high`, in (0, 1).

    Raises: `prm.InputError` for no images, no samples or another level.
    """
    if images < 1 or samples < 1:
        raise InputError(f"{images} images and {samples} samples; the bootstrap needs at least one of each")
    if not 0 < level < 1:
        raise InputError(f"level {level} must lie between 0 and 1, such as 0.95")
    rng = np.random.default_rng(seed)
    draws = (np.bincount(rng.integers(0, images, images), minlength=images) for _ in range(samples))
    values = np.array([statistic(weights) for weights in draws], dtype=np.float64)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "All-NaN slice")
        low, high = np.nanquantile(values, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return Interval(low, high, values, np.isnan(values).sum(axis=0))


def checked_weights(weights, images: int) -> np.ndarray:
    """(images,) int64: how often each image occurs, once if `weights` is None.

    Raises: `prm.InputError` unless there is one whole number from 0 on for each image.
    """
    if weights is None:
        return np.ones(images, dtype=np.int64)
    weights = np.asarray(weights)
    if weights.shape != (images,):
        raise InputError(f"weights have shape {weights.shape}; there must be one for each of the {images} images")
    if images and (weights.dtype.kind not in "iu" or weights.min() < 0):
        raise InputError("weights must be whole numbers from 0 on: how often each image occurs")
    return weights.astype(np.int64)
