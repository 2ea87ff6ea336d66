"""What the five stages of Algorithm 1 hand on, each a frozen result; `segmenter.py` makes them."""

from __future__ import annotations

from dataclasses import dataclass, field, fields

import numpy as np
import torch
from torch import Tensor

from .peak_backprop import PreparedWalk
from .retrieval import Proposals, background, run_sums


@dataclass(frozen=True, eq=False)
class Responses:
    """Stage 1: what a network answers to N pictures whose inputs have one size.

    run : the forward pass, ready for the walk back
    sizes : (H, W) of each picture
    maps : (N, C, h, w) class response maps
    scores : (N, C) class scores before the sigmoid
    peaks : (K, 4) int64, rows (image, class, row, column) on the enlarged maps: every valid peak of Eq. 1
    response : (K,) its response, at least float32
    strongest : (K,) the strongest response of its class in its picture
    share : (K,) the one over the other; where even the strongest is not positive, a share means nothing: 1 for the
        first strongest peak of the class and 0 for the others
    """

    run: PreparedWalk
    sizes: tuple[tuple[int, int], ...]
    maps: Tensor
    scores: Tensor
    peaks: Tensor
    response: Tensor
    strongest: Tensor
    share: Tensor


@dataclass(frozen=True, eq=False)
class Peaks:
    """Stage 2: P peaks to walk from, Algorithm 1, lines 3-5; rows as in `Responses`.

    peaks : (P, 4) int64
    response, share : (P,)
    """

    peaks: Tensor
    response: Tensor
    share: Tensor


@dataclass(frozen=True, eq=False)
class Walked:
    """Stage 3: one picture's P peaks with their Peak Response Maps; peaks whose map is empty are left out.

    size : (H, W) of the picture
    maps : (C, h, w) class response maps
    scores : (C,) class scores before the sigmoid
    peaks : (P, 3) int64, rows (class, row, column) on the enlarged maps
    response, share : (P,)
    positions : (P, 2) float64 row and column in the picture, pixel centres at integers
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


@dataclass(frozen=True, eq=False)
class Fit:
    """Stage 4: how P Peak Response Maps lie on K proposals, whatever the weights of Eq. 6.

    proposals : K masks at the picture's own size
    masks : the same at the maps' size
    allowed : (K,) bool, whether the area lies inside the limits
    sums : (P, K, 3) float64: R over S, R over contour(S), and Q over S with the settings' bias
    maps : (n, h, w) response maps of the n classes that have a peak
    of : (P,) int64, each peak's row of `maps`
    """

    proposals: Proposals
    masks: Proposals
    allowed: Tensor
    sums: Tensor
    maps: Tensor
    of: Tensor

    def to(self, device: torch.device | str) -> Fit:
        """The same on another device."""
        return Fit(*(getattr(self, f.name).to(device) for f in fields(self)))

    def over_background(self, bias: float) -> Tensor:
        """(n, K) float64: Q over S for each class, with another bias."""
        masks = self.masks
        Q = background(self.maps, range(len(self.maps)), (masks.height, masks.width), bias)
        return run_sums(Q.flatten(1).float(), masks.starts, masks.ends, masks.offsets)


@dataclass(frozen=True, eq=False)
class Choice:
    """Stage 5: k instances that suppression leaves, by falling score.

    peaks : (k,) int64, which of the picture's peaks
    proposals : (k,) int64, which of its proposals
    scores : (k,) float64, Eq. 6
    suppressed : for each, the peaks whose instances it suppressed
    """

    peaks: Tensor
    proposals: Tensor
    scores: Tensor
    suppressed: tuple[tuple[int, ...], ...] = ()


@dataclass(frozen=True, eq=False)
class Answer:
    """All stages of one picture.

    seconds : time by stage: forward, peaks, walk, retrieval; what a batch shares is shared evenly
    """

    walked: Walked
    fitted: Fit
    choice: Choice
    seconds: dict[str, float]


@dataclass(frozen=True, eq=False)
class Instance:
    """One segmented instance.

    label : class index
    mask : one run-length encoded mask at the picture's own size
    score : Eq. 6
    confidence : sigmoid of the class's score
    peak : (row, column) in the picture's coordinates, pixel centres at integers
    prm : (H, W), network input size, sum 1; the PRMs of suppressed instances are merged in
    proposal : index among the proposals handed in
    terms : the three sums of Eq. 6 before weighting: R over S, R over contour(S), Q over S
    """

    label: int
    mask: Proposals
    score: float
    confidence: float
    peak: tuple[float, float]
    prm: Tensor
    proposal: int
    terms: tuple[float, float, float]


@dataclass(frozen=True, eq=False)
class Segmentation:
    """The answer for one picture: instances by falling score, none being a valid answer.

    size : (H, W) of the picture
    maps : (C, h, w) class response maps
    scores : (C,) class scores before the sigmoid
    peaks : number of peaks that were walked back
    leaked : (peaks,) mass that each walk lost
    bound : (peaks,) most by which each PRM may differ from the exact one in L1; 0 with epsilon = 0
    seconds : as in `Answer`
    """

    size: tuple[int, int]
    maps: Tensor
    scores: Tensor
    instances: list[Instance]
    peaks: int = 0
    leaked: Tensor | None = None
    bound: Tensor | None = None
    seconds: dict[str, float] = field(default_factory=dict)
