"""Kernels of peak pooling (Eqs. 1-3): two launches forward, one back; the host never waits for the device.

Below, `maps` counts the N * C maps in row-major order, H x W is a map as it is stored, and EH x EW its enlargement by
`upsample`, which is never written: its values are interpolated wherever one is read. A position of an enlarged map is
row * EW + column, int32; offsets that span several maps are int64.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..peak_stimulation import (
    KINDS,
    _peak_stimulation,
    _peak_stimulation_backward,
    capacity,
    pooled,
    pooled_backward,
    source_positions,
)
from . import launching

FORWARD, BACKWARD = "prm::peak_stimulation", "prm::peak_stimulation_backward"
# Passes of eight bits, the highest first, until the rest of the float32 is zero for every number of the dtype.
PASSES = {torch.float32: 4, torch.float16: 3, torch.bfloat16: 2}
LITTLE = 256  # positions that fit into one block of two warps: of a larger one most threads would have nothing to do
POSITIONS = 2**31 - 2**16  # a block that begins in a map of fewer positions ends within int32


# ---- Eqs. 1-2: values of a map, maybe enlarged


@triton.jit
def _values(source, rows, columns, inside, ENLARGED: tl.constexpr):
    """The map's float32 values at (rows, columns), -inf where not `inside`. source: as `find_peaks` gathers it.

    Interpolated rows first, a + t (b - a), in the order and with the roundings of `enlarge`.
    """
    maps, row_stride, column_stride, H, W, below, t, EH = source
    if ENLARGED:
        i, j = tl.load(below + rows, mask=inside, other=0), tl.load(below + EH + columns, mask=inside, other=0)
        down, right = tl.load(t + rows, mask=inside, other=0), tl.load(t + EH + columns, mask=inside, other=0)
        above, under = i * row_stride, tl.minimum(i + 1, H - 1) * row_stride
        left, beyond = j * column_stride, tl.minimum(j + 1, W - 1) * column_stride
        # Made float32 before anything is computed: the half precisions are for storing alone.
        a = tl.load(maps + above + left, mask=inside, other=0).to(tl.float32)
        b = tl.load(maps + above + beyond, mask=inside, other=0).to(tl.float32)
        a += down * (tl.load(maps + under + left, mask=inside, other=0).to(tl.float32) - a)
        b += down * (tl.load(maps + under + beyond, mask=inside, other=0).to(tl.float32) - b)
        values = a + right * (b - a)
    else:
        values = tl.load(maps + rows * row_stride + columns * column_stride, mask=inside, other=0).to(tl.float32)
    return tl.where(inside, values, float("-inf"))


@triton.jit
def _block(source, start, size, EW, BLOCK: tl.constexpr, ENLARGED: tl.constexpr):
    """Positions start .. start + BLOCK - 1, which of them are on the map, their values."""
    positions = start + tl.arange(0, BLOCK)
    inside = positions < size
    return positions, inside, _values(source, positions // EW, positions % EW, inside, ENLARGED)


# ---- thresholds


@triton.jit
def _mean(total, count):
    """total / count of a float64 and an int32, in float32.

    Without float64's division, a routine that registers are spilled for: float32's reciprocal, made twice as long by a
    step of Newton's, and the remainder divided once more leave an error of some 2^-52.
    """
    n = count.to(tl.float64)
    inverse = (1.0 / count.to(tl.float32)).to(tl.float64)
    inverse *= 2.0 - n * inverse
    quotient = total * inverse
    return (quotient + (total - quotient * n) * inverse).to(tl.float32)


@triton.jit
def _survey(source, size, EW, BLOCK: tl.constexpr, ENLARGED: tl.constexpr, WITH_MEAN: tl.constexpr):
    """Whether all values are finite, the largest one, its first position, and the mean (0 if not asked for)."""
    finite = tl.full((BLOCK,), 1, tl.int1)
    largest = tl.full((BLOCK,), float("-inf"), tl.float32)
    first = tl.zeros((BLOCK,), tl.int32)
    total = tl.full((), 0, tl.float64)
    for start in range(0, size, BLOCK):
        positions, inside, values = _block(source, start, size, EW, BLOCK, ENLARGED)
        finite = finite & ((tl.abs(values) < float("inf")) | (positions >= size))
        # Each lane meets its positions in rising order: only what is larger replaces its first maximum.
        first = tl.where(values > largest, positions, first)
        largest = tl.maximum(values, largest)
        if WITH_MEAN:
            total += tl.sum(tl.where(inside, values, 0.0).to(tl.float64), axis=0)
    top = tl.max(largest, axis=0)
    first = tl.min(tl.where(largest == top, first, size), axis=0)
    return tl.min(finite.to(tl.int32), axis=0) == 1, top, first, _mean(total, size)


@triton.jit
def _lower_median(source, size, EW, BLOCK: tl.constexpr, ENLARGED: tl.constexpr, PASSES: tl.constexpr):
    """A number that sorted value (size - 1) // 2 and all above it reach, and no value below it does.

    By radix selection: each pass finds eight more bits, from a histogram of those of the values that agree so far.
    """
    rank = (size - 1) // 2  # among the keys that begin with the bits found
    found, mask = tl.full((), 0, tl.uint32), tl.full((), 0, tl.uint32)
    for step in range(PASSES):
        shift = 24 - 8 * step
        counts = tl.zeros((256,), tl.int32)
        for start in range(0, size, BLOCK):
            _, inside, values = _block(source, start, size, EW, BLOCK, ENLARGED)
            bits = values.to(tl.uint32, bitcast=True)
            # Keys are ordered as the numbers are: the sign turned round, and the whole of a negative number.
            keys = tl.where(bits >= 0x80000000, bits ^ 0xFFFFFFFF, bits ^ 0x80000000)
            digits = ((keys >> shift) & 255).to(tl.int32)
            counts += tl.histogram(digits, 256, mask=inside & ((keys & mask) == found))
        upto = tl.cumsum(counts, axis=0)
        digit = tl.sum((upto <= rank).to(tl.int32), axis=0)
        rank -= tl.sum(tl.where(tl.arange(0, 256) < digit, counts, 0), axis=0)
        found = found | (digit.to(tl.uint32) << shift)
        mask = mask | (tl.full((), 255, tl.uint32) << shift)
    # Bits that no pass looked at: a negative median comes out a little less than it is, with no value in between.
    bits = tl.where(found >= 0x80000000, found ^ 0x80000000, found ^ 0xFFFFFFFF)
    return bits.to(tl.float32, bitcast=True)


# ---- Eqs. 1-2: the kernels


@triton.jit
def find_peaks(
    maps,  # (N, C, H, W) float32, bfloat16 or float16, any strides
    below,  # (EH + EW,) int32: the stored row at or before each enlarged row, then the same of columns; if ENLARGED
    t,  # (EH + EW,) float32: the share of the row, or column, after it; if ENLARGED
    scores,  # (N * C,) float32, written: NaN for a map that holds a non-finite value
    counts,  # (N * C,) int32, written: valid peaks of each map
    slots,  # (N * C, capacity) int32, written: positions of a map's valid peaks, rising
    level,  # the threshold if KIND is "constant"
    image_stride, class_stride, row_stride, column_stride, C, H, W, EH, EW, window, capacity,
    KIND: tl.constexpr, PASSES: tl.constexpr, ENLARGED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Valid peaks and score of map n * C + c, one program a map, in sweeps over blocks of BLOCK positions.

    Bytes: H W values once from memory, then from the cache (1 + PASSES if median + window^2 sweeps); 8 + 4 a peak back.
    """
    map_index = tl.program_id(0)
    n, c = (map_index // C).to(tl.int64), (map_index % C).to(tl.int64)
    source = (maps + n * image_stride + c * class_stride, row_stride, column_stride, H, W, below, t, EH)
    size = EH * EW
    finite, top, first, mean = _survey(source, size, EW, BLOCK, ENLARGED, KIND == "mean")
    if KIND == "median":
        level = _lower_median(source, size, EW, BLOCK, ENLARGED, PASSES)
    elif KIND == "mean":
        level = mean
    elif KIND == "max":
        level = top
    # The map's first maximum is a peak; where not even that one passes, it alone is valid, so no score is 0 / 0.
    last = tl.where(top < level, first, size)
    # No value reaches a NaN: a map with a non-finite value has no peaks.
    level = tl.where(finite, tl.minimum(level, top), float("nan"))

    slots += map_index.to(tl.int64) * capacity
    count, total = 0, tl.full((), 0, tl.float64)  # in float64 no sum of float32s leaves the range
    # An interpolation holds twice as many numbers: of half as many positions they fit into the same registers.
    SWEPT: tl.constexpr = BLOCK // 2 if ENLARGED else BLOCK
    for start in range(0, size, SWEPT):
        positions, inside, values = _block(source, start, size, EW, SWEPT, ENLARGED)
        valid = inside & (values >= level) & (positions <= last)
        valid = _is_peak(source, positions, valid, values, EH, EW, window, ENLARGED)
        taken = valid.to(tl.int32)
        tl.store(slots + count + tl.cumsum(taken, axis=0) - 1, positions, mask=valid)
        count += tl.sum(taken, axis=0)
        total += tl.sum(tl.where(valid, values, 0.0).to(tl.float64), axis=0)
    score = tl.where(count > 0, _mean(total, tl.maximum(count, 1)), float("nan"))
    tl.store(scores + map_index, score)
    tl.store(counts + map_index, count)


@triton.jit
def _is_peak(source, positions, asked, values, EH, EW, window, ENLARGED: tl.constexpr):
    """Which of the positions that are `asked` about are peaks: every earlier position of the window is less and every
    later one no more; the border clips the window.
    """
    rows, columns, reach = positions // EW, positions % EW, window // 2
    peak = asked
    for down in range(-reach, reach + 1):
        i = rows + down
        read = asked & (i >= 0) & (i < EH)
        for right in range(-reach, reach + 1):
            j = columns + right
            near = _values(source, i, j, read & (j >= 0) & (j < EW), ENLARGED)
            # Written as one comparison each: a NaN is neither, and no map with one has peaks.
            earlier = down * window + right < 0
            peak = peak & tl.where(earlier, near < values, near <= values)
    return peak


@triton.jit
def list_peaks(
    counts,  # (N * C,) int32: valid peaks of each map
    slots,  # (N * C, capacity) int32: their positions
    peaks,  # (N * C * capacity, 4) int64, the first `total` rows written: (image, class, row, column), row-major order
    total,  # () int32, written: the sum of counts
    maps, C, EW, capacity,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Gathers the peaks of one map, one program a map, at the sum of the counts before it.

    Bytes: 4 a map before it (from the cache), 4 a peak read, 32 a peak written.
    """
    map_index = tl.program_id(0)
    lanes = tl.arange(0, BLOCK)
    before = tl.zeros((BLOCK,), tl.int64)
    for start in range(0, map_index, BLOCK):
        before += tl.load(counts + start + lanes, mask=start + lanes < map_index, other=0).to(tl.int64)
    offset, count = tl.sum(before, axis=0), tl.load(counts + map_index)
    tl.store(total, (offset + count).to(tl.int32), mask=map_index == maps - 1)

    slots += map_index.to(tl.int64) * capacity
    n, c = (map_index // C).to(tl.int64), (map_index % C).to(tl.int64)
    for start in range(0, count, BLOCK):
        k = start + lanes
        positions = tl.load(slots + k, mask=k < count, other=0)
        row = peaks + (offset + k) * 4
        tl.store(row, n, mask=k < count)
        tl.store(row + 1, c, mask=k < count)
        tl.store(row + 2, (positions // EW).to(tl.int64), mask=k < count)
        tl.store(row + 3, (positions % EW).to(tl.int64), mask=k < count)


# ---- Eq. 3


@triton.jit
def _first_row(peaks, count, C, map_index):
    """The first of the `count` sorted rows (n, c, row, column) whose map n * C + c is not before map_index."""
    low, high = 0, count
    while low < high:
        middle = low + (high - low) // 2
        row = peaks + middle.to(tl.int64) * 4
        before = tl.load(row) * C + tl.load(row + 1) < map_index
        low, high = tl.where(before, middle + 1, low), tl.where(before, high, middle)
    return low


@triton.jit
def _segment(grad_scores, peaks, count, C, map_index):
    """A map's rows of the list of peaks, from (included) and to (excluded), and each one's share: NaN without peaks."""
    rows = tl.load(count)
    begin = _first_row(peaks, rows, C, map_index)
    end = _first_row(peaks, rows, C, map_index + 1)
    share = tl.math.div_rn(tl.load(grad_scores + map_index), tl.maximum(end - begin, 1).to(tl.float32))
    return begin, end, tl.where(end > begin, share, float("nan"))


@triton.jit
def scatter_shares(
    grad_scores,  # (N * C,) float32
    peaks,  # (rows, 4) int64 (image, class, row, column), row-major order
    count,  # () int32: rows beyond it mean nothing
    grad,  # (N * C, H * W) float32, zeros: NaN is written to maps without peaks
    C, H, W,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Equal shares of a score's gradient to its map's peaks, one program a map, without enlargement.

    Zeros come from the launch before: within one, a thread's share could be overtaken by another's zero.
    Bytes: 16 a step of the search, 16 a peak read, 4 a peak written.
    """
    map_index = tl.program_id(0)
    grad += map_index.to(tl.int64) * H * W
    begin, end, share = _segment(grad_scores, peaks, count, C, map_index)
    lanes = tl.arange(0, BLOCK)
    shares = tl.zeros((BLOCK,), tl.float32) + share
    if begin == end:
        for start in range(0, H * W, BLOCK):
            tl.store(grad + start + lanes, shares, mask=start + lanes < H * W)
    for start in range(begin, end, BLOCK):
        k = start + lanes
        row = peaks + k.to(tl.int64) * 4
        i, j = tl.load(row + 2, mask=k < end, other=0), tl.load(row + 3, mask=k < end, other=0)
        tl.store(grad + i * W + j, shares, mask=k < end)


@triton.jit
def _weights(below, t, index, near, size, used):
    """Weight of each stored row (or column) of `near` in each enlarged one of `index`, one of them for every peak."""
    i = tl.load(below + index, mask=used, other=0)
    after = tl.load(t + index, mask=used, other=0.0)
    weights = tl.where(near == i, 1 - after, 0.0) + tl.where(near == tl.minimum(i + 1, size - 1), after, 0.0)
    return tl.where(used, weights, 0.0)


@triton.jit
def spread_shares(
    grad_scores,  # (N * C,) float32
    peaks,  # (rows, 4) int64 (image, class, enlarged row, enlarged column), row-major order
    count,  # () int32: rows beyond it mean nothing
    below,  # (EH + EW,) int32: the stored row at or before each enlarged row, then the same of columns
    t,  # (EH + EW,) float32: the share of the row, or column, after it
    grad,  # (N * C, H, W) float32, written
    C, H, W, EH,
    BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr, BLOCK_PEAKS: tl.constexpr,
):  # fmt: skip
    """The transpose of the enlargement, one program a map and tile of BLOCK_ROWS x BLOCK_COLUMNS stored positions.

    grad = share * sum over the map's peaks p of R[p, i] Q[p, j], R and Q the weights of stored row i and column j in
    p's row and column: a product of matrices, whose order of summation is the same every time.
    Bytes: 4 H W written; 32 a step of the search and a peak read, for every tile.
    """
    map_index = tl.program_id(0)
    rows = tl.program_id(1) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    columns = tl.program_id(2) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    begin, end, share = _segment(grad_scores, peaks, count, C, map_index)
    sums = tl.zeros((BLOCK_ROWS, BLOCK_COLUMNS), tl.float32)
    for start in range(begin, end, BLOCK_PEAKS):
        k = start + tl.arange(0, BLOCK_PEAKS)
        row, used = peaks + k.to(tl.int64) * 4, k < end
        i, j = tl.load(row + 2, mask=used, other=0), tl.load(row + 3, mask=used, other=0)
        # (BLOCK_ROWS, BLOCK_PEAKS) times (BLOCK_PEAKS, BLOCK_COLUMNS)
        R = _weights(below, t, i[None, :], rows[:, None], H, used[None, :])
        Q = _weights(below + EH, t + EH, j[:, None], columns[None, :], W, used[:, None])
        sums = tl.dot(R, Q, sums, input_precision="ieee")
    offsets = map_index.to(tl.int64) * H * W + rows[:, None].to(tl.int64) * W + columns[None, :]
    # A share that is not finite stays where peaks are; without peaks it is NaN everywhere.
    shares = tl.where((sums == 0) & (begin < end), 0.0, share * sums)
    tl.store(grad + offsets, shares, mask=(rows[:, None] < H) & (columns[None, :] < W))


# ---- launchers


def case(shape, dtype: torch.dtype, upsample: int, pooling: str = "") -> str:
    """What `launching.chosen` is asked about: maps of `shape` (N, C, H, W); pooling: window and kind, if forward."""
    return f"{'x'.join(map(str, shape[1:]))} {pooling}upsample {upsample} {launching.short(dtype)}"


def pool(M: Tensor, window: int, kind: str, value: float, upsample: int) -> tuple[Tensor, Tensor, Tensor]:
    """prm::peak_stimulation by `find_peaks` and `list_peaks`; float64 maps by torch's code."""
    launching.expect(FORWARD, M.device, M=(M, (*PASSES, torch.float64), (None,) * 4))
    N, C, H, W = M.shape
    _check_sizes(FORWARD, N * C, H, W, upsample)
    if kind not in KINDS or window < 3 or window % 2 == 0:
        raise ValueError(f"{FORWARD}: kind must be one of {KINDS} and window odd and >= 3, "
                         f"not {kind!r} and {window}")  # fmt: skip
    about = case(M.shape, M.dtype, upsample, f"window {window} {kind} ")
    choices = {kernel: launching.chosen(kernel, about, M.device) for kernel in ("find_peaks", "list_peaks")}
    if M.dtype == torch.float64 or launching.TORCH in choices.values():
        return pooled(M, window, kind, value, upsample)
    find, gather = (launching.CONFIGURATIONS[kernel][choice] for kernel, choice in choices.items())
    level = float(torch.tensor(value, dtype=M.dtype, device="cpu")) if kind == "constant" else float("-inf")
    return _pool(M, window, "constant" if kind == "none" else kind, level, upsample, find, gather)


def _pool(M, window, kind, level, upsample, find, gather):
    """level: a constant threshold, rounded to the maps' dtype; find, gather: the two kernels' configurations."""
    N, C, H, W = M.shape
    EH, EW = upsample * H, upsample * W
    most = capacity(EH, EW, window)
    if N * C * most >= 2**31:
        raise ValueError(f"{FORWARD}: {tuple(M.shape)} maps can hold more peaks than an int32 counts")
    if (H - 1) * M.stride(2) + (W - 1) * M.stride(3) >= POSITIONS:
        M = M.contiguous()  # offsets within a map are int32
    if EH * EW <= LITTLE:
        find = {**find, "BLOCK": min(find["BLOCK"], LITTLE), "num_warps": 2}
    scores, counts = M.new_empty((N, C), dtype=torch.float32), M.new_empty((N * C,), dtype=torch.int32)
    slots, peaks = counts.new_empty((N * C, most)), counts.new_empty((N * C * most, 4), dtype=torch.int64)
    total = (counts.new_empty if N * C else counts.new_zeros)(())
    below, t = _tables(H, W, upsample, M.device) if upsample > 1 else (counts, scores)  # not read unless enlarged
    launching.launch(
        find_peaks, (N * C,), M, below, t, scores, counts, slots, level,
        *M.stride(), C, H, W, EH, EW, window, most,
        KIND=kind, PASSES=4 if upsample > 1 else PASSES[M.dtype], ENLARGED=upsample > 1,
        # A fused multiply-add would round an interpolated value once where torch's code rounds twice.
        enable_fp_fusion=False, **find,
    )  # fmt: skip
    launching.launch(list_peaks, (N * C,), counts, slots, peaks, total, N * C, C, EW, most, **gather)
    return scores, peaks, total


def pool_backward(
    grad_scores: Tensor, peaks: Tensor, count: Tensor, height: int, width: int, upsample: int
) -> Tensor:
    """prm::peak_stimulation_backward by `scatter_shares`, or `spread_shares` if enlarged; float64 by torch's code."""
    launching.expect(
        BACKWARD, grad_scores.device, grad_scores=(grad_scores, (torch.float32, torch.float64), (None, None)),
        peaks=(peaks, (torch.int64,), (None, 4)), count=(count, (torch.int32,), ()),
    )  # fmt: skip
    N, C = grad_scores.shape
    _check_sizes(BACKWARD, N * C, height, width, upsample)
    kernel = scatter_shares if upsample == 1 else spread_shares
    about = case((N, C, height, width), grad_scores.dtype, upsample)
    choice = launching.chosen(kernel.__name__, about, grad_scores.device)
    if grad_scores.dtype == torch.float64 or choice == launching.TORCH:
        return pooled_backward(grad_scores, peaks, count, height, width, upsample)

    blocks = launching.CONFIGURATIONS[kernel.__name__][choice]
    given = grad_scores.contiguous(), peaks.contiguous(), count
    if upsample == 1:
        grad = grad_scores.new_zeros((N, C, height, width))
        launching.launch(scatter_shares, (N * C,), *given, grad, C, height, width, **blocks)
        return grad
    grad = grad_scores.new_empty((N, C, height, width))
    tables = _tables(height, width, upsample, grad.device)
    tiles = triton.cdiv(height, blocks["BLOCK_ROWS"]), triton.cdiv(width, blocks["BLOCK_COLUMNS"])
    launching.launch(
        spread_shares, (N * C, *tiles), *given, *tables, grad, C, height, width, upsample * height, **blocks
    )
    return grad


def _check_sizes(operator, maps, height, width, upsample):
    """Positions of one map and the number of maps are int32 in the kernels."""
    if min(height, width, upsample) < 1 or upsample**2 * height * width >= POSITIONS or maps >= 2**31:
        raise ValueError(f"{operator}: {maps} maps of {height} x {width}, enlarged by {upsample}, cannot be pooled: "
                         f"a map has 1 to {POSITIONS - 1} positions")  # fmt: skip


def _tables(height: int, width: int, upsample: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """`source_positions` of rows, then of columns, as the kernels read them: below int32 and t float32."""
    # Memory that a CUDA graph is captured with belongs to the graph.
    capturing = device.type == "cuda" and torch.cuda.is_current_stream_capturing()
    return (_kept_tables.__wrapped__ if capturing else _kept_tables)(height, width, upsample, device)


@lru_cache(maxsize=16)
def _kept_tables(height: int, width: int, upsample: int, device: torch.device) -> tuple[Tensor, Tensor]:
    rows, columns = (source_positions(size, upsample, device) for size in (height, width))
    return torch.cat([rows[0], columns[0]]).int(), torch.cat([rows[2], columns[2]]).float()


launching.register(_peak_stimulation, pool)
launching.register(_peak_stimulation_backward, pool_backward)
