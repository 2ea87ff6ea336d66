"""Max pooling: P goes to the argmax."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor

from ..prepared import Kept
from ..shared import Computed, Span, empty, launched, rows
from ..visits import Visits
from ..windows import placed, reach, windows
from .rule import Rule, handed_on

TAPS = 25  # most positions of a max pooling's window that are added one after the other


class MaxPool(Rule):
    """P goes to the window's argmax, the first maximum in row-major order; windows that share it add up.

    `geometry`: (kernel, stride, padding, dilation), two numbers each; None for adaptive pooling.
    """

    executes = False

    def __init__(self, source, pool: Callable[[Tensor], tuple[Tensor, Tensor]], geometry=None):
        super().__init__(source)
        self.pool, self.geometry = pool, geometry
        self.local = self.grows = geometry is not None and geometry[0][0] * geometry[0][1] <= TAPS

    def forward(self, execute, U):
        out, indices = self.pool(U)
        return out, (U, indices, out)

    def back(self, visits, kept):
        (U, indices, out), prepared = kept.tensors, kept.prepared
        # The argmax holds the pooled value, so a factor that is the pooled map becomes the map itself.
        visits = handed_on(visits, prepared.plain(out), prepared.plain(U))
        if not self.local:
            visits = visits.dense()
            below = visits.values.new_zeros((len(visits.values), U.shape[1], U.shape[2] * U.shape[3]))
            where = rows(indices, visits.image).expand_as(visits.values).flatten(2)
            below.scatter_add_(2, where, visits.values.flatten(2))
            return [Visits.whole(below.unflatten(2, tuple(U.shape[2:])), visits.image)], None
        kernel, stride, padding, dilation = self.geometry
        first, last = reach(visits.first, visits.last, stride, padding, dilation, kernel, U.shape[2:])
        to, size = windows(first, last, U.shape[2:])
        if launched(visits.values):
            image, origin, target = (torch.from_numpy(a) for a in (visits.image, visits.origin, to))
            geometry = (U.shape[3], *map(list, self.geometry))
            below = torch.ops.prm.walk_max_pool(visits.values, image, origin, indices, *geometry, target, list(size))
        else:
            below = self._by_taps(visits, kept, to, size)
        return [Visits(below, first, last, to, visits.image, visits.factors, fresh=True)], None

    def _by_taps(self, visits: Visits, kept: Kept, to: np.ndarray, size: tuple[int, ...]) -> Tensor:
        """Each position of the pooling's window in turn: to it goes what has its argmax there."""
        kernel, stride, padding, dilation = self.geometry
        K, C, h, w = visits.values.shape
        spans = [(n - 1) * s + d * (k - 1) + 1 for n, s, d, k in zip((h, w), stride, dilation, kernel)]
        below = empty((K, C, *spans), visits.values).zero_()
        for tap in np.ndindex(*kernel):
            hits = kept.once(tap, partial(self._hits, kept, tap))
            # Rows and columns of the map below that the tap visits, one for each of the windows'.
            begins, lengths = (d * t for d, t in zip(dilation, tap)), ((n - 1) * s + 1 for n, s in zip((h, w), stride))
            rows_, cols = (slice(b, b + length, s) for b, length, s in zip(begins, lengths, stride))
            for k, n in enumerate(visits.image.tolist()):
                meets = hits.region(slice(n, n + 1), visits.span(k))
                below[k : k + 1, :, rows_, cols].addcmul_(visits.values[k : k + 1], meets)
        begin = visits.origin * np.array(stride) - np.array(padding)
        return placed(below, to - begin, size)

    def _hits(self, kept: Kept, tap: tuple[int, int]) -> Computed:
        """1 where the argmax lies at this position of the window, else 0."""
        (U, indices, _), (_, _, _, dilation) = kept.tensors, self.geometry
        place = float(dilation[0] * tap[0] * U.shape[3] + dilation[1] * tap[1])
        places = kept.once("place", partial(self._place, kept))
        return Computed(kept.prepared.empty(indices.shape, U), partial(self._meets, places, place))

    def _place(self, kept: Kept) -> Computed:
        """How far after its window's first position each argmax lies, in row-major order."""
        U, indices, _ = kept.tensors
        wide = U.to(torch.promote_types(U.dtype, torch.float32))  # bfloat16 holds no place beyond 256
        return Computed(kept.prepared.empty(indices.shape, wide), partial(self._places, indices, U.shape))

    def _places(self, indices: Tensor, shape, some: slice, span: Span, out: Tensor) -> None:
        """Into out: the places of a region."""
        _, stride, padding, _ = self.geometry
        row, col = (
            torch.arange(s.start, s.stop, device=indices.device) * stride[i] - padding[i] for i, s in enumerate(span)
        )
        out.copy_(indices[(some, slice(None), *span)] - (row[:, None] * shape[3] + col))

    @staticmethod
    def _meets(places: Computed, place: float, some: slice, span: Span, out: Tensor) -> None:
        """Into out: where a region's places are this one."""
        out.copy_(places.region(some, span) == place)
