"""The other ways from class response maps to scores (Tables 1, 2 and 5), behind PeakStimulation's interface.

Each takes (N, C, H, W) and returns (N, C): global average pooling (CAM), global max pooling (DeepMIL), log-sum-exp,
and WILDCAT's mean of the highest and lowest responses.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .peak_stimulation import PeakStimulation


class GlobalAverage(nn.Module):
    """Mean over all positions (CAM, Zhou et al. 2016)."""

    def forward(self, M: Tensor) -> Tensor:
        return M.flatten(2).mean(dim=2)


class GlobalMax(nn.Module):
    """The first maximum in row-major order, which alone gets the gradient (DeepMIL, Oquab et al. 2015)."""

    def forward(self, M: Tensor) -> Tensor:
        flat = M.flatten(2)
        return flat.gather(2, flat.argmax(dim=2, keepdim=True)).squeeze(2)


class LogSumExp(nn.Module):
    """(1/q) log mean exp(q M): between the mean (q -> 0) and the maximum (q -> infinity)."""

    def __init__(self, q: float = 10.0):
        super().__init__()
        if not q > 0:
            raise ValueError(f"q must be > 0, not {q!r}")
        self.q = q

    def forward(self, M: Tensor) -> Tensor:
        flat = M.flatten(2)
        return (torch.logsumexp(self.q * flat, dim=2) - math.log(flat.shape[2])) / self.q


class Wildcat(nn.Module):
    """(mean of the k+ highest + alpha * mean of the k- lowest) / 2 (WILDCAT, Durand et al. 2017).

    `highest` and `lowest` are counts (int) or shares of the positions (float, rounded, at least 1). With alpha = 0 the
    mean of the highest stands alone, undivided. Equal responses are taken by first index.
    """

    def __init__(self, highest: int | float = 0.2, lowest: int | float = 0.2, alpha: float = 0.7):
        super().__init__()
        for name, k in (("highest", highest), ("lowest", lowest)):
            if (isinstance(k, int) and k < 1) or (isinstance(k, float) and not 0 < k <= 1):
                raise ValueError(f"{name} must be a count >= 1 or a share in (0, 1], not {k!r}")
        self.highest, self.lowest, self.alpha = highest, lowest, alpha

    @staticmethod
    def _count(k: int | float, positions: int) -> int:
        return min(k if isinstance(k, int) else max(1, round(k * positions)), positions)

    def forward(self, M: Tensor) -> Tensor:
        flat = M.flatten(2)
        positions = flat.shape[2]
        top = flat.sort(dim=2, descending=True, stable=True).values[..., : self._count(self.highest, positions)]
        if self.alpha == 0:
            return top.mean(dim=2)
        bottom = flat.sort(dim=2, stable=True).values[..., : self._count(self.lowest, positions)]
        return (top.mean(dim=2) + self.alpha * bottom.mean(dim=2)) / 2


AGGREGATIONS = {
    "peak": PeakStimulation,
    "average": GlobalAverage,
    "max": GlobalMax,
    "lse": LogSumExp,
    "wildcat": Wildcat,
}


def aggregation(name: str, **options) -> nn.Module:
    """The aggregation called `name`: "peak", "average", "max", "lse" or "wildcat". ValueError for any other name."""
    if name not in AGGREGATIONS:
        raise ValueError(f"unknown aggregation {name!r}; known: {', '.join(AGGREGATIONS)}")
    return AGGREGATIONS[name](**options)
