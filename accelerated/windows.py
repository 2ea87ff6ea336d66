"""Where P is: the windows that peaks' receptive fields reach, and the maps of an image that all its peaks share.

P is zero outside a peak's receptive field, so each peak carries only the window of every map that its field reaches,
cut off at the map's border. Peaks that go down together have windows of one size. What P is multiplied by, the
activations and the ratios of Eq. 5, belongs to the image and not to the peak: it is computed where windows lie, once.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from threading import Lock
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

BAND = 1 << 20  # numbers that are computed at once for a shared map: what a CPU's cache holds
DIGITS = 3  # binary digits of a window's length
TILES = 8  # along the longer side of a map, of which those are computed that windows touch
Span = tuple[slice, slice]  # rows and columns
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # Triton's kernels answer for tensors of the CPU, slowly


def launched(values: Tensor) -> bool:
    """Whether an operator costs a launch, as on GPUs: then all windows and whole maps go at once. On a CPU they go one
    by one and tile by tile, through its cache."""
    return values.device.type != "cpu" or INTERPRETED


# ----------------------------------------------------------------------------------------------------- shared maps


class Shared:
    """A map of each image (N, C, H, W): a tensor, or a `part` of it that is taken where it is read.

    `part` (values, which images they are of) -> values, elementwise.
    """

    def __init__(self, tensor: Tensor, part: Callable[[Tensor, slice], Tensor] | None = None):
        self.tensor, self.part, self._whole = tensor, part, None

    def region(self, some: slice, span: Span) -> Tensor:
        """(n, C, h, w) of some images; a view where it can be."""
        view = self.tensor[(some, slice(None), *span)]
        return view if self.part is None else self.part(view, some)

    def rows(self, image: np.ndarray) -> Tensor:
        """The whole maps of images (K,): (K, ...), or (1, ...) to broadcast where there is one image."""
        return rows(self.whole(image), image)

    def whole(self, image: np.ndarray) -> Tensor:
        """The maps of all images, (N, C, H, W), of which those of images (K,) are filled in."""
        if self.part is None:
            return self.tensor
        if self._whole is None:
            self._whole = self.part(self.tensor, slice(None))
        return self._whole


class Computed(Shared):
    """A map that is computed by tiles, each when a window first touches it.

    `fill` (which images, rows and columns, out) writes a region into out (n, C, h, w); shape (N, C, H, W), `like` gives
    dtype and layout.
    """

    def __init__(
        self, shape: tuple[int, ...], like: Tensor, maps: SharedMaps, fill: Callable[[slice, Span, Tensor], Any]
    ):
        super().__init__(empty(shape, like, maps.memory(like.new_empty(0), math.prod(shape))))
        self._fill = fill
        self._everything = tuple(slice(0, s) for s in shape[2:])
        self._tile = max(shape[2:]) if launched(like) else max(8, -(-max(shape[2:]) // TILES))
        self._done = np.zeros((shape[0], *(-(-s // self._tile) for s in shape[2:])), bool)

    def region(self, some: slice, span: Span) -> Tensor:
        tiles = tuple(slice(s.start // self._tile, -(-s.stop // self._tile)) for s in span)
        if not self._done[(some, *tiles)].all():
            if launched(self.tensor):
                self._compute(some, self._everything, super().region(some, self._everything))
            else:
                self._by_tiles(some, tiles)
            self._done[(some, *tiles)] = True
        return super().region(some, span)

    def touch(self, visits: Visits) -> None:
        """Compute what the windows of visits read."""
        if launched(self.tensor):
            self.whole(visits.image)
        else:
            for k, n in enumerate(visits.image.tolist()):
                self.region(slice(n, n + 1), visits.span(k))

    def whole(self, image: np.ndarray) -> Tensor:
        if launched(self.tensor):
            self.region(slice(0, len(self.tensor)), self._everything)  # further images cost less than further launches
        else:
            for n in np.unique(image).tolist():
                self.region(slice(n, n + 1), self._everything)
        return self.tensor

    def _by_tiles(self, some: slice, tiles: Span) -> None:
        """The tiles that are missing, image by image."""
        for n in range(some.start, some.stop):
            for rectangle in _rectangles(~self._done[(n, *tiles)]):
                spans = (slice(s.start + t.start, s.stop + t.start) for s, t in zip(rectangle, tiles))
                self._by_bands(slice(n, n + 1), *spans)

    def _by_bands(self, some: slice, tile_rows: slice, tile_cols: slice) -> None:
        """Band by band, so that what is computed on the way stays in the cache."""
        height, width = self.tensor.shape[2:]
        first, last = tile_rows.start * self._tile, min(tile_rows.stop * self._tile, height)
        cols = slice(tile_cols.start * self._tile, min(tile_cols.stop * self._tile, width))
        step = max(1, BAND // (self.tensor.shape[1] * (cols.stop - cols.start)))
        for top in range(first, last, step):
            span = slice(top, min(top + step, last)), cols
            self._compute(some, span, self.tensor[(some, slice(None), *span)])

    def _compute(self, some: slice, span: Span, out: Tensor) -> None:
        self._fill(some, span, out)


def _rectangles(missing: np.ndarray) -> list[Span]:
    """Rectangles that cover the True cells of a small grid, each once: equal runs of successive rows are joined."""
    found: list[list[slice]] = []
    for i, row in enumerate(missing):
        edges = np.flatnonzero(np.diff(np.concatenate([[False], row, [False]]).astype(np.int8)))
        for first, last in edges.reshape(-1, 2).tolist():
            cols = slice(first, last)
            above = next((r for r in found if r[0].stop == i and r[1] == cols), None)
            if above is None:
                found.append([slice(i, i + 1), cols])
            else:
                above[0] = slice(above[0].start, i + 1)
    return [(r, c) for r, c in found]


def rows(per_image: Tensor, image: np.ndarray) -> Tensor:
    """Each peak's own rows of a per-image tensor; broadcast instead of gathered where there is one image."""
    return per_image if per_image.shape[0] == 1 else per_image[torch.from_numpy(image).to(per_image.device)]


class Workspace:
    """Memory that the computed maps of one forward pass leave for those of the next: touching new memory takes the
    system longer than it takes to write the map."""

    def __init__(self):
        self._free: list[Tensor] = []
        self._lock = Lock()

    def take(self, like: Tensor, count: int) -> Tensor:
        """Memory for `count` numbers of the type and device of `like`, uninitialised, (>= count,)."""
        same = lambda t: t.dtype == like.dtype and t.device == like.device  # noqa: E731
        with self._lock:
            fits = [t for t in self._free if same(t) and count <= len(t) <= 2 * count]
            if not fits:
                return like.new_empty(count)
            best = min(fits, key=len)
            self._free = [t for t in self._free if t is not best]
            return best

    def give(self, memory: list[Tensor]) -> None:
        """Keep what a forward pass had, and no more: what an earlier one had and this one did not need is let go."""
        with self._lock:
            self._free = memory


class SharedMaps:
    """The shared maps of one forward pass, one object for each tensor and use: equal factors are the same object."""

    def __init__(self, workspace: Workspace):
        self._kept: dict[tuple[int, str], object] = {}
        self._workspace, self._memory = workspace, []

    def __del__(self):
        self._workspace.give(self._memory)

    def memory(self, like: Tensor, count: int) -> Tensor:
        """Memory for a map of `count` numbers, until the pass is forgotten."""
        self._memory.append(self._workspace.take(like, count))
        return self._memory[-1]

    def _once(self, U: Tensor, use: str, make: Callable[[], object]):
        if (id(U), use) not in self._kept:
            self._kept[id(U), use] = U, make()  # with the tensor, so that its id is not given to another
        return self._kept[id(U), use][1]

    def survey(self, tensors: Iterable[Tensor]) -> None:
        """`least` of many tensors, for which the host waits once."""
        different = list({id(U): U for U in tensors}.values())
        if different:
            for U, least in zip(different, torch.stack([self._lowest(U) for U in different]).tolist()):
                self._once(U, "least", lambda least=least: least)

    def _lowest(self, U: Tensor) -> Tensor:
        """`least`, (N,), where U is."""
        # Not flatten(1), which copies maps whose channels lie last.
        return self._once(U, "lowest", lambda: U.amin(dim=tuple(range(1, U.dim()))).clamp(max=0))

    def least(self, U: Tensor) -> list[float]:
        """min(0, min U) of each image."""
        return self._once(U, "least", lambda: self._lowest(U).tolist())

    def most(self, U: Tensor) -> Tensor:
        """max U_hat of each image, (N,)."""
        return self._once(U, "most", lambda: U.amax(dim=tuple(range(1, U.dim()))) - self._lowest(U))

    def plain(self, U: Tensor) -> Shared:
        """The tensor itself."""
        return self._once(U, "plain", lambda: Shared(U))

    def hat(self, U: Tensor) -> Shared:
        """U_hat = U - min(0, min U), the minimum over each image: U itself wherever a ReLU came before."""
        if not any(self.least(U)):
            return self.plain(U)
        least = self._lowest(U).reshape(-1, *[1] * (U.dim() - 1))
        return self._once(U, "hat", lambda: Shared(U, lambda values, some: values - least[some]))

    def positive(self, U: Tensor) -> Shared:
        """max(U, 0)."""
        if not any(self.least(U)):
            return self.plain(U)
        return self._once(U, "positive", lambda: Shared(U, lambda values, _: values.clamp(min=0)))

    def negative(self, U: Tensor) -> Shared:
        """min(U, 0)."""
        return self._once(U, "negative", lambda: Shared(U, lambda values, _: values.clamp(max=0)))


# --------------------------------------------------------------------------------------------------------- windows


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
    def size(self) -> tuple[int, int]:
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
        parts = (self.values, self.first, self.last, self.origin, self.image)
        some = Visits(*(part[which] for part in parts), self.factors)
        if self.values.dim() != 4:
            return some
        origin, size = windows(some.first, some.last, shape[1:])
        return some.moved(origin, size)

    def moved(self, origin: np.ndarray, size: tuple[int, int]) -> Visits:
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
            values[(k, slice(None), *here)] = self.values[(k, slice(None), *there)]
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
        _onto(b.values, b.image, b.origin, origin - b.origin, rest, values, add=True)
        return Visits(values, first, last, origin, self.image, common, fresh=True)


def windows(first: np.ndarray, last: np.ndarray, shape) -> tuple[np.ndarray, tuple[int, int]]:
    """Windows of one size, inside a map of `shape` (H, W), that hold first to last of each peak: origins and size."""
    size = np.array([min(_rounded(n), whole) for n, whole in zip((last - first).max(axis=0).tolist(), shape)])
    return np.minimum(first, np.array(shape) - size), tuple(size.tolist())


def _rounded(length: int) -> int:
    """The next number with few binary digits: a convolution of a new size has to be prepared, which may take longer
    than the convolution."""
    step = 1 << max(0, length.bit_length() - DIGITS)
    return -(-length // step) * step


def window(origin: np.ndarray, size) -> Span:
    """Rows and columns of a window."""
    return tuple(slice(o, o + s) for o, s in zip(origin.tolist(), size))


def times(
    values: Tensor, factors: tuple[Shared, ...], image: np.ndarray, origin: np.ndarray,
    offset: np.ndarray | None = None, size: tuple[int, int] | None = None, out: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """values (K, C, h, w) times each peak's window of shared maps, into `out`; (K, F) times each peak's row.

    Given `offset` and `size`, on windows that begin `offset` (K, 2) inside of those of values, zero beyond them.
    """
    if values.dim() != 4:
        for shared in factors:
            values = values * shared.rows(image)
        return values
    offset = np.zeros_like(origin) if offset is None else offset
    out = empty((*values.shape[:2], *(size or values.shape[2:])), values) if out is None else out
    _onto(values, image, origin, offset, factors, out, add=False)
    return out


def placed(values: Tensor, offset: np.ndarray, size: tuple[int, int]) -> Tensor:
    """Windows of `size` that begin `offset` (K, 2) inside of windows `values` (K, C, h, w), zero beyond them.

    A view where one will do.
    """
    if (offset == offset[0]).all() and (offset[0] >= 0).all() and (offset[0] + size <= values.shape[2:]).all():
        return values[(slice(None), slice(None), *window(offset[0], size))]
    return times(values, (), np.zeros(len(values), np.int64), np.zeros_like(offset), offset, size)


def _onto(values, image, origin, offset, factors: tuple[Shared, ...], out: Tensor, add: bool) -> None:
    """`on_windows` of shared maps: in one launch, or a peak at a time from the parts that its window needs."""
    if launched(values):
        numbers = (torch.from_numpy(n) for n in (image, origin, offset))
        torch.ops.prm.walk_windows(values, *numbers, [shared.whole(image) for shared in factors], out, add)
    else:
        _peak_by_peak(values, image, origin, offset, factors, out, add)


def on_windows(
    values: Tensor, image: Tensor, origin: Tensor, offset: Tensor, maps: list[Tensor], out: Tensor, add: bool
) -> None:
    """out = values (K, C, h, w) times each peak's windows of maps (N, C, p, q), on other windows; or out += that.

    The windows of values begin at origin (K, 2) of the maps of image (K,), those of out (K, C, H, W) begin `offset`
    (K, 2) inside of them. Where they do not meet, out is set to 0, or stays as it is if added to. image, origin and
    offset: int64, on the host or on the device.
    """
    numbers = (n.cpu().numpy() for n in (image, origin, offset))
    _peak_by_peak(values, *numbers, tuple(map(Shared, maps)), out, add)


walk_windows = torch.library.custom_op("prm::walk_windows", on_windows, mutates_args=["out"])


@walk_windows.register_fake
def _(values, image, origin, offset, maps, out, add):
    pass


def _peak_by_peak(values, image, origin, offset, factors: tuple[Shared, ...], out: Tensor, add: bool) -> None:
    have = values.shape[2:]
    if not add and (out.shape[2:] != have or offset.any()):
        out.zero_()
    for k, n in enumerate(image.tolist()):
        cuts = [_overlap(o, s, h) for o, s, h in zip(offset[k].tolist(), out.shape[2:], have)]
        here, there = ((slice(k, k + 1), slice(None), *(cut[i] for cut in cuts)) for i in (0, 1))
        span = tuple(slice(o + cut.start, o + cut.stop) for o, (_, cut) in zip(origin[k].tolist(), cuts))
        product, target = values[there], out[here]
        *others, last = [shared.region(slice(n, n + 1), span) for shared in factors] or [None]
        for region in others:
            product = product * region
        if last is None:
            target.add_(product) if add else target.copy_(product)
        elif add:
            target.addcmul_(product, last)
        else:
            torch.mul(product, last, out=target)


def empty(shape: tuple[int, ...], like: Tensor, memory: Tensor | None = None) -> Tensor:
    """An uninitialised tensor of `shape` (N, C, H, W), laid out as `like` is, in the memory given or in new memory."""
    N, C, H, W = shape
    memory = like.new_empty(N * C * H * W) if memory is None else memory
    strides = (C * H * W, 1, W * C, C) if like.stride(1) == 1 else (C * H * W, H * W, W, 1)
    return memory.as_strided((N, C, H, W), strides)


def _overlap(offset: int, length: int, have: int) -> Span:
    """Where a window of `length` that begins at `offset` of `have` elements meets them: in the window, and in them."""
    first, last = max(offset, 0), min(offset + length, have)
    last = max(first, last)
    return slice(first - offset, last - offset), slice(first, last)


def product(factors: tuple[Shared, ...], some: slice, span: Span) -> Tensor | None:
    """The product of shared maps on a region, (n, C, h, w); None for none."""
    values = None
    for shared in factors:
        region = shared.region(some, span)
        values = region if values is None else values * region
    return values


def padded(values: Tensor, before: list[int], after: list[int]) -> Tensor:
    """Rows and columns of zeros around (N, C, h, w)."""
    return F.pad(values, (before[1], after[1], before[0], after[0])) if any(before) or any(after) else values
