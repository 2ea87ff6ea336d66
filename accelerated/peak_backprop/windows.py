"""Which pixels a peak sees: the windows that receptive fields reach, and products and sums on them.

P is zero outside a peak's receptive field, so each peak carries only the window of every map that its field reaches,
cut off at the map's border. Peaks that go down together have windows of one size.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from .shared import Shared, Span, empty, launched

DIGITS = 3  # binary digits of a window's length


def windows(first: np.ndarray, last: np.ndarray, shape) -> tuple[np.ndarray, tuple[int, ...]]:
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
    offset: np.ndarray | None = None, size: tuple[int, ...] | None = None, out: Tensor | None = None,
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
    onto(values, image, origin, offset, factors, out, add=False)
    return out


def placed(values: Tensor, offset: np.ndarray, size: tuple[int, ...]) -> Tensor:
    """Windows of `size` that begin `offset` (K, 2) inside of windows `values` (K, C, h, w), zero beyond them.

    A view where one will do.
    """
    if (offset == offset[0]).all() and (offset[0] >= 0).all() and (offset[0] + size <= values.shape[2:]).all():
        return values[(slice(None), slice(None), *window(offset[0], size))]
    return times(values, (), np.zeros(len(values), np.int64), np.zeros_like(offset), offset, size)


def onto(values, image, origin, offset, factors: tuple[Shared, ...], out: Tensor, add: bool) -> None:
    """`on_windows` of shared maps: in one launch, or a peak at a time from the parts that its window needs."""
    if launched(values):
        maps = [shared.whole(image) for shared in factors]
        image, origin, offset = (torch.from_numpy(n) for n in (image, origin, offset))
        torch.ops.prm.walk_windows(values, image, origin, offset, maps, out, add)
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
    images, origins, offsets = (n.cpu().numpy() for n in (image, origin, offset))
    _peak_by_peak(values, images, origins, offsets, tuple(map(Shared, maps)), out, add)


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
        regions = [shared.region(slice(n, n + 1), span) for shared in factors]
        for region in regions[:-1]:
            product = product * region
        if not regions:
            target.add_(product) if add else target.copy_(product)
        elif add:
            target.addcmul_(product, regions[-1])
        else:
            torch.mul(product, regions[-1], out=target)


def _overlap(offset: int, length: int, have: int) -> Span:
    """Where a window of `length` that begins at `offset` of `have` elements meets them: in the window, and in them."""
    first, last = max(offset, 0), min(offset + length, have)
    last = max(first, last)
    return slice(first - offset, last - offset), slice(first, last)


def padded(values: Tensor, before: list[int], after: list[int]) -> Tensor:
    """Rows and columns of zeros around (N, C, h, w)."""
    return F.pad(values, (before[1], after[1], before[0], after[0])) if any(before) or any(after) else values


def reach(
    first: np.ndarray, last: np.ndarray, stride, padding, dilation, kernel, shape
) -> tuple[np.ndarray, np.ndarray]:
    """First and one past last row and column that what lies from first to last, (K, 2) each, reads through a sliding
    window, of a map of `shape` (H, W)."""
    stride, padding, shape = np.array(stride), np.array(padding), np.array(shape)
    first = first * stride - padding
    last = (last - 1) * stride - padding + np.array(dilation) * (np.array(kernel) - 1) + 1
    # Where only padding is read nothing arrives, but a window is never empty.
    first = first.clip(0, shape - 1)
    return first, np.maximum(last.clip(max=shape), first + 1)
