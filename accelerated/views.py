"""Class response maps and Peak Response Maps averaged over views of the pictures: an option, not the paper's.

A view is a picture at one of several sizes, turned: number k of up to eight is mirrored left and right if k is odd,
then up and down if k // 2 is odd, then transposed if k // 4 is odd. All are laid back on the first view's grids.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .peak_backprop import PeakBackprop, PeakResponseMaps


class Views:
    """One forward pass a view, with what `PreparedWalk` offers: `maps` (N, C, h, w), their mean, and `prms`.

    inputs : the batch at each of its sizes, (N, channels, H, W); all maps come at the size of the first one's
    turned : how many turned views of each: 1, 2, 4 or 8
    numbers : as for `PeakBackprop.prepare`
    """

    def __init__(
        self, walk: PeakBackprop, inputs: Sequence[Tensor], turned: int = 1, numbers: Sequence[int] | None = None
    ):
        self._size, self._upsample = inputs[0].shape[2:], walk.upsample
        self._runs = [(k, walk.prepare(turn(x, k), numbers)) for x in inputs for k in range(turned)]
        maps = [turn_back(run.maps, k) for k, run in self._runs]
        self._map_sizes = [M.shape[2:] for M in maps]
        self.maps = torch.stack([_resized(M, self._map_sizes[0]) for M in maps]).mean(0)

    def prms(self, peaks: Tensor) -> PeakResponseMaps:
        """Walk down in every view from K peaks of the mean maps, rows as for `PreparedWalk.prms`.

        Each view's PRM, brought to the first one's size and to sum 1, counts alike; their sum is divided by its total.
        `leaked` and `bound` are means over the views.
        """
        found = []
        for (k, run), size in zip(self._runs, self._map_sizes):
            one = run.prms(torch.cat([peaks[:, :2].double(), self._in_view(peaks[:, 2:], size, k)], dim=1))
            found.append((_scaled(_resized(turn_back(one.prms, k)[:, None], self._size)[:, 0]), one.leaked, one.bound))
        prms, leaked, bound = (torch.stack(parts) for parts in zip(*found))
        total = prms.sum(0)
        return PeakResponseMaps(_scaled(total), leaked.mean(0), ~total.flatten(1).any(1), bound.mean(0))

    def _in_view(self, places: Tensor, size: torch.Size, k: int) -> Tensor:
        """Where places (K, 2) on the enlarged mean maps lie on a view's enlarged maps, `size` being its maps' own."""
        at = []
        for i, mine, other, mirrored in zip(places.double().unbind(1), self._map_sizes[0], size, (k & 2, k & 1)):
            last, others = self._upsample * mine - 1, self._upsample * other - 1
            if mine != other:
                i = ((i * (mine - 1) / max(last, 1) + 0.5) * other / mine - 0.5).clamp(0, other - 1)
                i = i * others / max(other - 1, 1)
            at.append(others - i if mirrored else i)
        return torch.stack(at[::-1] if k & 4 else at, dim=1)


def turn(x: Tensor, k: int) -> Tensor:
    """x (..., H, W) as view k shows it."""
    x = x.flip(-1) if k & 1 else x
    x = x.flip(-2) if k & 2 else x
    return x.transpose(-1, -2) if k & 4 else x


def turn_back(x: Tensor, k: int) -> Tensor:
    """What `turn` made, as it was."""
    x = x.transpose(-1, -2) if k & 4 else x
    x = x.flip(-2) if k & 2 else x
    return x.flip(-1) if k & 1 else x


def _resized(x: Tensor, size: torch.Size) -> Tensor:
    return x if x.shape[2:] == size else F.interpolate(x, size, mode="bilinear", align_corners=False)


def _scaled(prms: Tensor) -> Tensor:
    """Maps (K, H, W) to sum 1 each, empty ones as they are."""
    total = prms.sum((1, 2), keepdim=True)
    return torch.where(total > 0, prms / total, 0)
