"""What the stages of Algorithm 1 that ask the network hand on, each a frozen result; `segmenter.py` makes them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from .peak_backprop import PreparedWalk
from .views import Views


@dataclass(frozen=True, eq=False)
class Responses:
    """Stage 1: what a network answers to N pictures whose inputs have one size.

    run : the forward pass, ready for the walk back, or several
    sizes : (H, W) of each picture
    maps : (N, C, h, w) class response maps
    scores : (N, C) class scores before the sigmoid; where the network's classes exclude each other, see `Classes`
    presence : (N, C) what `image_threshold` is compared with, see `Classes.presence`
    peaks : (K, 4) int64, rows (image, class, row, column) on the enlarged maps: every valid peak of Eq. 1
    response : (K,) its response, at least float32
    strongest : (K,) the strongest response of its class in its picture
    share : (K,) the one over the other; where even the strongest is not positive, a share means nothing: 1 for the
        first strongest peak of the class and 0 for the others
    """

    run: PreparedWalk | Views
    sizes: tuple[tuple[int, int], ...]
    maps: Tensor
    scores: Tensor
    presence: Tensor
    peaks: Tensor
    response: Tensor
    strongest: Tensor
    share: Tensor


@dataclass(frozen=True, eq=False)
class Peaks:
    """Stage 2: P peaks to walk from, Algorithm 1, lines 3-5; rows as in `Responses`.

    peaks : (P, 4) int64
    starts : (P,) int64, the network's class that the walk starts at: the peak's own, unless that is a group
    response, share : (P,)
    positions : (P, 2) float64 row and column in the picture, pixel centres at integers
    """

    peaks: Tensor
    starts: Tensor
    response: Tensor
    share: Tensor
    positions: np.ndarray


@dataclass(frozen=True, eq=False)
class Walked:
    """Stage 3: one picture's P peaks with their Peak Response Maps; peaks whose map is empty are left out.

    size : (H, W) of the picture
    maps : (C, h, w) class response maps
    scores : (C,) class scores before the sigmoid
    peaks : (P, 3) int64, rows (class, row, column) on the enlarged maps
    response, share, positions : as in `Peaks`
    prms : (P, H', W'), network input size, each with sum 1
    leaked, bound : (n,) float64 of all n peaks walked, see `PeakResponseMaps`
    """

    size: tuple[int, int]
    maps: Tensor
    scores: Tensor
    peaks: Tensor
    response: Tensor
    share: Tensor
    positions: np.ndarray
    prms: Tensor
    leaked: Tensor
    bound: Tensor
