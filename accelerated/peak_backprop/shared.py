"""The maps that belong to an image and not to a peak: computed where windows lie, once for all peaks."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

BAND = 1 << 20  # numbers that are computed at once for a shared map: what a CPU's cache holds
TILES = 8  # along the longer side of a map, of which those are computed that windows touch
Span = tuple[slice, ...]  # rows and columns
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # Triton's kernels answer for tensors of the CPU, slowly


def launched(values: Tensor) -> bool:
    """Whether an operator costs a launch, as on GPUs: then all windows and whole maps go at once. On a CPU they go one
    by one and tile by tile, through its cache."""
    return values.device.type != "cpu" or INTERPRETED


class Shared:
    """A map of each image (N, C, H, W): a tensor, or a `part` of it that is taken where it is read.

    `part` (values, which images they are of) -> values, elementwise.
    """

    def __init__(self, tensor: Tensor, part: Callable[[Tensor, slice], Tensor] | None = None):
        self.tensor, self.part = tensor, part
        self._whole: Tensor | None = None

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

    `fill` (which images, rows and columns, out) writes a region into out (n, C, h, w); tensor (N, C, H, W), as yet
    uninitialised.
    """

    def __init__(self, tensor: Tensor, fill: Callable[[slice, Span, Tensor], Any]):
        super().__init__(tensor)
        (N, _, *sides), self._fill = tensor.shape, fill
        self._everything = tuple(slice(0, s) for s in sides)
        self._tile = max(sides) if launched(tensor) else max(8, -(-max(sides) // TILES))
        self._done = np.zeros((N, *(-(-s // self._tile) for s in sides)), bool)

    def region(self, some: slice, span: Span) -> Tensor:
        tiles = tuple(slice(s.start // self._tile, -(-s.stop // self._tile)) for s in span)
        if not self._done[(some, *tiles)].all():
            if launched(self.tensor):
                self._compute(some, self._everything, super().region(some, self._everything))
            else:
                self._by_tiles(some, tiles)
            self._done[(some, *tiles)] = True
        return super().region(some, span)

    def touch(self, image: np.ndarray, span: Callable[[int], Span]) -> None:
        """Compute what peaks on windows read: peak k that of image[k] of (K,), at span(k)."""
        if launched(self.tensor):
            self.whole(image)
        else:
            for k, n in enumerate(image.tolist()):
                self.region(slice(n, n + 1), span(k))

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
            for rectangle in _rectangles(~self._done[n][tiles]):
                rows, cols = (slice(s.start + t.start, s.stop + t.start) for s, t in zip(rectangle, tiles))
                self._by_bands(slice(n, n + 1), rows, cols)

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


def product(factors: tuple[Shared, ...], some: slice, span: Span) -> Tensor | None:
    """The product of shared maps on a region, (n, C, h, w); None for none."""
    values = None
    for shared in factors:
        region = shared.region(some, span)
        values = region if values is None else values * region
    return values


def empty(shape: tuple[int, ...], like: Tensor, memory: Tensor | None = None) -> Tensor:
    """An uninitialised tensor of `shape` (N, C, H, W), laid out as `like` is, in the memory given or in new memory."""
    N, C, H, W = shape
    memory = like.new_empty(N * C * H * W) if memory is None else memory
    strides = (C * H * W, 1, W * C, C) if like.stride(1) == 1 else (C * H * W, H * W, W, 1)
    return memory.as_strided((N, C, H, W), strides)
