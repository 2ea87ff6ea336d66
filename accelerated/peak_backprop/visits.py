"""P of the peaks that go down together, each on its own window of a layer's map."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .shared import Shared, Span, empty
from .windows import onto, placed, times, window, windows


@dataclass
class Visits:
    """P of K peaks on windows of one layer's map: `values` times the product of the shared `factors`.

    values : (K, C, h, w); tensors without rows and columns, (K, F), have no windows
    first, last : (K, 2) int64, row and column of the first and one past the last element that may be visited; values
        are zero elsewhere
    origin : (K, 2) int64, of each window's first element; windows lie inside the map
    image : (K,) int64, each peak's image
    fresh : nobody else holds `values`, so they may be overwritten
    """

    values: Tensor
    first: np.ndarray
    last: np.ndarray
    origin: np.ndarray
    image: np.ndarray
    factors: tuple[Shared, ...] = ()
    fresh: bool = False

    @classmethod
    def whole(cls, P: Tensor, image: np.ndarray) -> Visits:
        """P (K, ...) on whole maps."""
        zero = np.zeros((len(P), 2), np.int64)
        size = P.shape[2:] if P.dim() == 4 else (0, 0)
        return cls(P, zero, zero + np.array(size), zero, image)

    def with_(self, values: Tensor, factors: tuple[Shared, ...] | None = None, fresh: bool = False) -> Visits:
        """The same windows with other values."""
        factors = self.factors if factors is None else factors
        return Visits(values, self.first, self.last, self.origin, self.image, factors, fresh)

    @property
    def size(self) -> tuple[int, ...]:
        return tuple(self.values.shape[-2:])

    @property
    def P(self) -> Tensor:
        """Probabilities, (K, C, h, w)."""
        return self.times(self.factors)

    def dense(self) -> Visits:
        """The same without factors."""
        return self.with_(self.P, (), self.fresh or bool(self.factors)) if self.factors else self

    def times(self, factors: tuple[Shared, ...], overwrite: bool = False) -> Tensor:
        """values times shared maps; `overwrite`: in the same memory."""
        if not factors:
            return self.values
        return times(self.values, factors, self.image, self.origin, out=self.values if overwrite else None)

    def span(self, k: int) -> Span:
        """Peak k's window of the map."""
        return window(self.origin[k], self.size)

    def pick(self, which: slice, shape: tuple[int, ...]) -> Visits:
        """Some of the peaks, on windows no larger than they need; `shape` (C, H, W) of the map."""
        first, last, origin, image = (part[which] for part in (self.first, self.last, self.origin, self.image))
        some = Visits(self.values[which], first, last, origin, image, self.factors)
        if self.values.dim() != 4:
            return some
        origin, size = windows(some.first, some.last, shape[1:])
        return some.moved(origin, size)

    def moved(self, origin: np.ndarray, size: tuple[int, ...]) -> Visits:
        """The same visits on other windows, which hold first to last."""
        if size == self.size and np.array_equal(origin, self.origin):
            return self
        values = placed(self.values, origin - self.origin, size)
        return Visits(values, self.first, self.last, origin, self.image, self.factors, self.fresh)

    def on_whole(self, shape: tuple[int, ...]) -> Visits:
        """P on whole maps of `shape` (C, H, W), without factors."""
        if self.values.dim() != 4 or len(shape) != 3:
            return self.dense()
        dense = self.dense().moved(np.zeros_like(self.origin), tuple(shape[1:]))
        return Visits.whole(dense.values, self.image)

    def truncated(self, allowed: float) -> tuple[Visits, Tensor]:
        """Windows without the rows and columns at their four ends that hold at most `allowed` of P, at each end,
        and the mass (K,) float64 that was dropped.

        With less P everywhere, or more allowed, nothing is kept that otherwise would not be: where the ends meet, all
        of P is dropped.
        """
        mass = self.P.sum(dim=1).double().cpu().numpy()
        first, last, inside = self.first.copy(), self.last.copy(), np.ones(mass.shape, bool)
        gone = np.zeros(len(mass), bool)
        for axis in (0, 1):
            along, n = mass.sum(axis=2 - axis), mass.shape[1 + axis]
            begin = (along.cumsum(axis=1) <= allowed).sum(axis=1)
            end = n - (along[:, ::-1].cumsum(axis=1) <= allowed).sum(axis=1)
            gone |= begin >= end
            begin, end = begin.clip(max=n - 1), end.clip(min=1)
            first[:, axis] = np.maximum(first[:, axis], self.origin[:, axis] + begin)
            # A window is never empty.
            last[:, axis] = np.minimum(last[:, axis], self.origin[:, axis] + end).clip(min=first[:, axis] + 1)
            place = self.origin[:, axis, None] + np.arange(n)
            within = (first[:, axis, None] <= place) & (place < last[:, axis, None])
            inside &= within[:, :, None] if axis == 0 else within[:, None, :]
        inside[gone] = False
        dropped = torch.from_numpy(np.where(inside, 0, mass).sum(axis=(1, 2))).to(self.values.device)
        if not gone.any() and np.array_equal(first, self.first) and np.array_equal(last, self.last):
            return self, dropped
        size = tuple((last - first).max(axis=0).tolist())
        if len(mass) == 1 and not gone[0]:
            values = placed(self.values, first - self.origin, size)
            return Visits(values, first, last, first, self.image, self.factors, self.fresh), dropped
        origin = np.minimum(first, self.origin + np.array(self.size) - size)
        values = empty((*self.values.shape[:2], *size), self.values).zero_()
        for k in np.flatnonzero(~gone).tolist():
            length = last[k] - first[k]
            here, there = (window(first[k] - o[k], length) for o in (origin, self.origin))
            values[k][(slice(None), *here)] = self.values[k][(slice(None), *there)]
        return Visits(values, first, last, origin, self.image, self.factors, fresh=True), dropped

    def plus(self, other: Visits, shape: tuple[int, ...]) -> Visits:
        """The sum of two contributions to one tensor of `shape`, on windows that hold both. Neither is used again."""
        common = tuple(f for f in self.factors if f in other.factors)
        a, b = (self, other) if self.values.numel() >= other.values.numel() else (other, self)
        more, rest = (tuple(f for f in v.factors if f not in common) for v in (a, b))
        values = a.times(more, overwrite=a.fresh)
        if values.dim() != 4:
            return a.with_(values + b.times(rest), common)
        first, last = np.minimum(a.first, b.first), np.maximum(a.last, b.last)
        origin, size = windows(first, last, shape[1:])
        if size != a.size or not np.array_equal(origin, a.origin):
            values = placed(values, origin - a.origin, size)
        elif not (a.fresh or more):
            values = values.clone()
        onto(b.values, b.image, b.origin, origin - b.origin, rest, values, add=True)
        return Visits(values, first, last, origin, self.image, common, fresh=True)
