"""The operators on runs behind `Proposals`: contours, other sizes, intersections, sums of maps over masks.

Each operator is declared once, with torch code that runs on every device. On a CPU the loops of `loops.py` answer
instead. Masks are given and returned as starts, ends, offsets, in the form of `Proposals`; what is returned has runs
that do not touch each other, and shares no memory with what was given.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from prm import InputError

from . import loops
from .masks import CHUNK, Proposals, keyed, offsets_of

# Maps that are summed up side by side: the cumulative sums at a run's end fill one line of a CPU's cache.
_MAPS = 8


@torch.library.custom_op("prm::run_contours", mutates_args=())
def run_contours(
    starts: Tensor, ends: Tensor, offsets: Tensor, height: int, width: int, reach: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Morphological gradients with a square of side 2 * reach + 1 of masks of height x width."""
    masks = Proposals(height, width, starts, ends, offsets)
    parts = [_contours(masks.select(chunk), reach) for chunk in masks.chunks(fan_out=4 * reach + 2)]
    return _joined(parts, height, width, starts.device)


@torch.library.custom_op("prm::run_resize", mutates_args=())
def run_resize(
    starts: Tensor, ends: Tensor, offsets: Tensor, height: int, width: int, new_height: int, new_width: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Masks of height x width at new_height x new_width, nearest by pixel centres."""
    masks = Proposals(height, width, starts, ends, offsets)
    parts = [_resized(masks.select(chunk), new_height, new_width) for chunk in masks.chunks(fan_out=4)]
    return _joined(parts, new_height, new_width, starts.device)


@run_contours.register_fake
@run_resize.register_fake
def _(starts, ends, offsets, *sizes):
    runs = torch.library.get_ctx().new_dynamic_size()
    return starts.new_empty(runs), starts.new_empty(runs), torch.empty_like(offsets)


@torch.library.custom_op("prm::run_intersections", mutates_args=())
def run_intersections(
    starts: Tensor, ends: Tensor, offsets: Tensor, other_starts: Tensor, other_ends: Tensor, other_offsets: Tensor,
    size: int,
) -> Tensor:  # fmt: skip
    """Pixels that each of K masks of `size` pixels shares with each of K2 others: (K, K2) int64."""
    masks = Proposals(1, size, starts, ends, offsets)
    others = Proposals(1, size, other_starts, other_ends, other_offsets)
    shared = starts.new_zeros(len(masks), len(others))
    step = max(1, CHUNK // max(1, len(other_starts)))
    for first in range(0, len(masks), step):
        rows = torch.arange(first, min(first + step, len(masks)), device=starts.device)
        shared[rows] = _intersections(masks.select(rows), others)
    return shared


@run_intersections.register_fake
def _(starts, ends, offsets, other_starts, other_ends, other_offsets, size):
    return starts.new_empty(offsets.shape[0] - 1, other_offsets.shape[0] - 1)


def sums_over_runs(maps: Tensor, starts: Tensor, ends: Tensor, offsets: Tensor) -> Tensor:
    """Sum of each map over each mask's runs: maps (P, L) float, runs as in `Proposals` -> (P, K) float64.

    A run's sum is the difference of the map's float64 cumulative sum at its two ends. Each mask's runs are added in
    order and apart from the others: equal masks have equal sums, wherever they stand.
    """
    sums = maps.new_zeros(len(maps), len(offsets) - 1, dtype=torch.float64)
    if sums.numel() == 0 or len(starts) == 0:
        return sums
    length, counts = maps.shape[1] + 1, offsets.diff()
    # A few maps at a time, always in the same memory.
    step = min(len(maps), max(1, CHUNK // (length + len(starts))))
    totals = maps.new_zeros(step, length, dtype=torch.float64)
    for first in range(0, len(maps), step):
        some = maps[first : first + step]
        torch.cumsum(some, 1, dtype=torch.float64, out=totals[: len(some), 1:])
        row = torch.arange(len(some), device=maps.device)[:, None] * length
        runs = totals.view(-1).index_select(0, (row + ends).view(-1))
        runs -= totals.view(-1).index_select(0, (row + starts).view(-1))
        added = torch.segment_reduce(runs, "sum", lengths=counts.repeat(len(some)), axis=0, unsafe=True)
        sums[first : first + step] = added.view(len(some), -1)
    return sums


# The function keeps its own name: a GPU's kernel gives way to it where it is the faster one.
run_sums = torch.library.custom_op("prm::run_sums", sums_over_runs, mutates_args=())


@run_sums.register_fake
def _(maps, starts, ends, offsets):
    return maps.new_empty(maps.shape[0], offsets.shape[0] - 1, dtype=torch.float64)


# ---- in torch, for any device


def _from_keys(starts: Tensor, ends: Tensor, count: int, height: int, width: int) -> Proposals:
    """Inverse of `keyed`, for sorted intervals."""
    stride = height * width + 1
    mask = torch.div(starts, stride, rounding_mode="floor")
    offsets = offsets_of(torch.bincount(mask, minlength=count))
    return Proposals(height, width, starts - mask * stride, ends - mask * stride, offsets)


def _union(starts: Tensor, ends: Tensor) -> tuple[Tensor, Tensor]:
    """Disjoint sorted intervals that cover the same places; intervals that touch become one."""
    if len(starts) == 0:
        return starts, ends
    starts, order = starts.sort()
    reach = ends[order].cummax(0).values
    fresh = F.pad(starts[1:] > reach[:-1], (1, 0), value=True)
    last = F.pad(fresh[1:], (0, 1), value=True)
    return starts[fresh], reach[last]


def _complement(proposals: Proposals) -> Proposals:
    """The gaps: before, between and after the runs of each mask."""
    count, size = len(proposals), proposals.height * proposals.width
    offsets, mask = proposals.offsets, torch.arange(count, device=proposals.device)
    # A mask with n runs has n + 1 gaps, so run r of mask k lies between the gaps r + k and r + k + 1.
    gap = torch.arange(len(proposals.starts), device=proposals.device) + torch.repeat_interleave(mask, offsets.diff())
    starts = torch.zeros(len(gap) + count, dtype=torch.int64, device=proposals.device)
    ends = torch.full_like(starts, size)
    starts[gap + 1], ends[gap] = proposals.ends, proposals.starts
    real = starts < ends
    counts = offsets_of(real.long())[offsets + torch.arange(count + 1, device=proposals.device)].diff()
    return Proposals(proposals.height, proposals.width, starts[real], ends[real], offsets_of(counts))


def _dilated(proposals: Proposals, reach: int) -> tuple[Tensor, Tensor]:
    """Keys of the masks dilated by a square of side 2 * reach + 1, as disjoint sorted intervals that do not touch."""
    height, width = proposals.height, proposals.width
    size = height * width
    mask = torch.repeat_interleave(torch.arange(len(proposals), device=proposals.device), proposals.offsets.diff())
    # Along the rows, a run grows at both ends as far as its row goes; where it passes a row's end it needs nothing.
    starts = proposals.starts - (proposals.starts % width).clamp(max=reach)
    ends = proposals.ends + (width - 1 - (proposals.ends - 1) % width).clamp(max=reach)
    # Across the rows, it is repeated d rows further; what leaves the picture is cut off.
    shifts = width * torch.arange(-min(reach, height), min(reach, height) + 1, device=proposals.device)[:, None]
    starts, ends = (starts + shifts).clamp(min=0), (ends + shifts).clamp(max=size)
    base = (mask * (size + 1)).expand_as(starts)
    real = starts < ends
    return _union((starts + base)[real], (ends + base)[real])


def _contours(proposals: Proposals, reach: int) -> Proposals:
    """dilation(S) minus erosion(S): what is within reach of the mask and, as well, of its complement."""
    inner, outer = _dilated(proposals, reach), _dilated(_complement(proposals), reach)
    # Sweep along the line: +1 where an interval of either list begins, -1 where one ends; both lists cover depth 2.
    keys, order = torch.cat([inner[0], outer[0], inner[1], outer[1]]).sort()
    steps = torch.ones_like(keys)
    steps[order >= len(keys) // 2] = -1
    both = (steps.cumsum(0)[:-1] == 2) & (keys[:-1] < keys[1:])
    return _from_keys(keys[:-1][both], keys[1:][both], len(proposals), proposals.height, proposals.width)


def _split_rows(proposals: Proposals) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Runs cut at row ends: their mask, row, first column and one past the last column."""
    width = proposals.width
    top = torch.div(proposals.starts, width, rounding_mode="floor")
    rows = torch.div(proposals.ends - 1, width, rounding_mode="floor") - top + 1
    mask = torch.repeat_interleave(torch.arange(len(proposals), device=proposals.device), proposals.offsets.diff())
    piece, within = _repeat(rows)
    row = top[piece] + within
    left = (proposals.starts[piece] - row * width).clamp(min=0)
    right = (proposals.ends[piece] - row * width).clamp(max=width)
    return mask[piece], row, left, right


def _repeat(counts: Tensor) -> tuple[Tensor, Tensor]:
    """For items to be repeated `counts` times: of each copy, the item and the number of the copy."""
    item = torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts)
    return item, torch.arange(len(item), device=counts.device) - offsets_of(counts)[item]


def _old_positions(height: int, width: int, new_height: int, new_width: int, device) -> tuple[Tensor, Tensor]:
    """The old row under the centre of each new one, and columns alike; both rise, so runs remain runs."""
    rows, columns = torch.arange(new_height, device=device), torch.arange(new_width, device=device)
    return (2 * rows + 1) * height // (2 * new_height), (2 * columns + 1) * width // (2 * new_width)


def _resized(proposals: Proposals, height: int, width: int) -> Proposals:
    """Nearest resizing of a few masks."""
    device = proposals.device
    from_row, from_column = _old_positions(proposals.height, proposals.width, height, width, device)
    mask, row, left, right = _split_rows(proposals)
    left, right = torch.searchsorted(from_column, left), torch.searchsorted(from_column, right)
    first = torch.searchsorted(from_row, row)
    copies = torch.searchsorted(from_row, row, right=True) - first
    piece, within = _repeat(torch.where(left < right, copies, 0))
    base = mask[piece] * (height * width + 1) + (first[piece] + within) * width
    starts, ends = _union(base + left[piece], base + right[piece])
    return _from_keys(starts, ends, len(proposals), height, width)


def _intersections(some: Proposals, others: Proposals) -> Tensor:
    """Pixels that each pair of masks shares, (len(some), len(others)) int64.

    n(x), the number of a mask's pixels before position x, follows from the runs before x; a run [s, e) of the other
    mask shares n(e) - n(s) pixels with it.
    """
    stride = some.height * some.width + 1
    starts, ends = keyed(some)
    before = offsets_of(ends - starts)
    base = torch.arange(len(some), device=some.device)[:, None] * stride

    def pixels_before(key: Tensor) -> Tensor:
        begun = torch.searchsorted(starts, key)
        cut_off = (F.pad(ends, (1, 0))[begun] - key).clamp(min=0)
        return before[begun] - cut_off

    shared = pixels_before(base + others.ends) - pixels_before(base + others.starts)
    return F.pad(shared.cumsum(1), (1, 0))[:, others.offsets].diff(dim=1)


def _joined(parts: Sequence[Proposals], height: int, width: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """starts, ends, offsets of all parts' masks."""
    whole = Proposals.concatenate(parts) if parts else Proposals.empty(height, width, device)
    return whole.starts, whole.ends, whole.offsets


# ---- the operators on a CPU


def _arrays(*tensors: Tensor) -> list[np.ndarray]:
    """The tensors' own memory, or a copy where it has gaps: the loops are compiled for arrays without."""
    return [tensor.detach().contiguous().numpy() for tensor in tensors]


def _masks(runs: np.ndarray, counts: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
    """starts, ends, offsets of masks that have `counts` of the runs (n, 2) each."""
    starts, ends = (torch.from_numpy(column.copy()) for column in runs.T)
    return starts, ends, offsets_of(torch.from_numpy(counts))


@run_contours.register_kernel("cpu")
def _(starts, ends, offsets, height, width, reach):
    return _masks(*loops.contours(*_arrays(starts, ends, offsets), height, width, reach))


@run_resize.register_kernel("cpu")
def _(starts, ends, offsets, height, width, new_height, new_width):
    old_rows, old_columns = _arrays(*_old_positions(height, width, new_height, new_width, starts.device))
    rows = np.searchsorted(old_rows, np.arange(height + 1))
    columns = np.searchsorted(old_columns, np.arange(width + 1))
    tables = old_rows, rows, columns
    return _masks(*loops.resized(*_arrays(starts, ends, offsets), width, *tables, new_width))


@run_intersections.register_kernel("cpu")
def _(starts, ends, offsets, other_starts, other_ends, other_offsets, size):
    masks, others = (starts, ends, offsets), (other_starts, other_ends, other_offsets)
    same = all(a.is_set_to(b) for a, b in zip(masks, others))
    shared = np.empty((len(offsets) - 1, len(other_offsets) - 1), np.int64)
    loops.intersections(*_arrays(*masks), *_arrays(*others), same, shared)
    return torch.from_numpy(shared)


@run_sums.register_kernel("cpu")
def _(maps, starts, ends, offsets):
    # Two types of numbers are compiled for; these hold all others exactly.
    (values,) = _arrays(maps if maps.dtype in (torch.float32, torch.float64) else maps.float())
    runs = _arrays(starts, ends, offsets)
    count, length = len(values), values.shape[1] + 1
    if len(starts) and not 0 <= runs[0].min() <= runs[1].max() < length:
        raise InputError(f"runs that maps of {length - 1} values do not hold")  # the loops do not look
    sums = np.empty((count, len(offsets) - 1))
    step = max(1, min(count, _MAPS, 2 * CHUNK // length))
    space = np.empty(length * step)
    for first in range(0, count, step):
        some = values[first : first + step]
        totals = space[: length * len(some)].reshape(length, len(some))
        loops.cumulate(some, totals)
        loops.add_runs(totals, *runs, sums[first : first + step])
    return torch.from_numpy(sums)
