"""Run-length encoded masks on a CPU: the loops behind the operators of `runs.py`, compiled by numba.

Masks come as NumPy arrays in the form of `Proposals`, int64: starts, ends (R,), offsets (K + 1,). Nothing is rounded
but the float64 sums, and these are added in an order that depends on nothing but the mask.
"""

import numpy as np
from numba import njit


def compiled(function):
    """`function`, compiled when it is first called, and kept on disk where numba finds a folder that it may write."""
    try:
        return njit(cache=True, nogil=True)(function)
    except RuntimeError:  # no such folder
        return njit(nogil=True)(function)


# ---- sums of maps over masks


@compiled
def cumulate(maps, totals):
    """Cumulative sums of maps (n, L), side by side: row i of totals (L + 1, n) float64 sums up the first i values."""
    totals[0] = 0.0
    for i in range(maps.shape[1]):
        for m in range(len(maps)):
            totals[i + 1, m] = totals[i, m] + maps[m, i]


@compiled
def add_runs(totals, starts, ends, offsets, sums):
    """Sums (n, K) float64 over K masks of the n maps that `totals` is the cumulative sums of."""
    maps = totals.shape[1]
    added = np.empty(maps)
    for k in range(len(offsets) - 1):
        added[:] = 0.0
        for r in range(offsets[k], offsets[k + 1]):
            start, end = starts[r], ends[r]
            for m in range(maps):
                added[m] += totals[end, m] - totals[start, m]
        for m in range(maps):
            sums[m, k] = added[m]


# ---- lists of intervals: (n, 2), first and one past last place, sorted and apart


@compiled
def _grown(intervals, needed):
    """`intervals` if it has `needed` rows, else a longer copy."""
    if needed <= len(intervals):
        return intervals
    longer = np.empty((max(needed, 2 * len(intervals)), 2), np.int64)
    for n in range(len(intervals)):
        longer[n, 0], longer[n, 1] = intervals[n, 0], intervals[n, 1]
    return longer


@compiled
def _append(out, first, count, low, high):
    """Put [low, high) behind the intervals first .. count - 1, or make the last of them longer; the new count."""
    if count > first and out[count - 1, 1] == low:
        out[count - 1, 1] = high
        return count
    out[count, 0], out[count, 1] = low, high
    return count + 1


@compiled
def _unite(a, b, out):
    """Union of two lists -> its length; `out` has room for both."""
    i = j = count = 0
    while i < len(a) or j < len(b):
        if j == len(b) or (i < len(a) and a[i, 0] <= b[j, 0]):
            low, high = a[i, 0], a[i, 1]
            i += 1
        else:
            low, high = b[j, 0], b[j, 1]
            j += 1
        if count > 0 and low <= out[count - 1, 1]:
            out[count - 1, 1] = max(out[count - 1, 1], high)
        else:
            out[count, 0], out[count, 1] = low, high
            count += 1
    return count


@compiled
def _intersect(a, b, out):
    """Intersection of two lists -> its length; `out` has room for both. Intervals with high <= low count as empty."""
    i = j = count = 0
    while i < len(a) and j < len(b):
        low, high = max(a[i, 0], b[j, 0]), min(a[i, 1], b[j, 1])
        if low < high:
            out[count, 0], out[count, 1] = low, high
            count += 1
        if a[i, 1] <= b[j, 1]:
            i += 1
        else:
            j += 1
    return count


@compiled
def _append_difference(out, first, count, a, b, base):
    """Put a minus b, which lies in a, behind the intervals first .. count - 1, `base` places further; the new count."""
    j = 0
    for i in range(len(a)):
        low, high = a[i, 0], a[i, 1]
        while j < len(b) and b[j, 0] < high:
            if low < b[j, 0]:
                count = _append(out, first, count, base + low, base + b[j, 0])
            low = b[j, 1]
            j += 1
        if low < high:
            count = _append(out, first, count, base + low, base + high)
    return count


# ---- masks to masks


@compiled
def _rows(starts, ends, width):
    """One mask's runs, at least one, cut at row ends.

    -> top, its first row; begin (rows + 1,); pieces (n, 2) columns, those of row top + y being begin[y] ..
    begin[y + 1] - 1, apart from each other.
    """
    top = starts[0] // width
    rows = (ends[-1] - 1) // width + 1 - top
    begin = np.zeros(rows + 1, np.int64)
    pieces = np.empty((len(starts) + rows, 2), np.int64)
    count = row = 0
    for r in range(len(starts)):
        start = starts[r]
        while start < ends[r]:
            to = start // width - top
            while row < to:
                row += 1
                begin[row] = count
            edge = (top + row) * width
            end = min(ends[r], edge + width)
            count = _append(pieces, begin[row], count, start - edge, end - edge)
            start = end
    begin[rows] = count
    return top, begin, pieces[:count]


@compiled
def _contour(starts, ends, height, width, reach, out, first):
    """Contour of one mask, of at least one run, written behind the runs 0 .. first - 1 of `out` -> out, grown; count.

    A row of the dilation is the union of the rows within reach, each widened by `reach`. A row of the erosion is the
    intersection of those that the picture has, each narrowed by `reach` but at the picture's edge.
    """
    top, begin, pieces = _rows(starts, ends, width)
    bottom, count = top + len(begin) - 1, first
    wide, narrow = np.empty_like(pieces), np.empty_like(pieces)
    for n in range(len(pieces)):
        left, right = pieces[n, 0], pieces[n, 1]
        wide[n, 0], wide[n, 1] = max(left - reach, 0), min(right + reach, width)
        narrow[n, 0], narrow[n, 1] = left + reach if left > 0 else 0, right - reach if right < width else width
    lists = np.empty((3, len(pieces) + 1, 2), np.int64)
    dilated, eroded, spare = lists[0], lists[1], lists[2]
    for y in range(max(0, top - reach), min(height, bottom + reach)):
        above, below = max(0, y - reach), min(height, y + reach + 1)
        n = 0
        for z in range(max(above, top) - top, min(below, bottom) - top):
            n = _unite(dilated[:n], wide[begin[z] : begin[z + 1]], spare)
            dilated, spare = spare, dilated
        eroded[0, 0], eroded[0, 1] = 0, width
        m = 1 if top <= above and below <= bottom else 0
        for z in range(above - top, below - top):
            if m == 0:
                break
            m = _intersect(eroded[:m], narrow[begin[z] : begin[z + 1]], spare)
            eroded, spare = spare, eroded
        out = _grown(out, count + n + m)
        count = _append_difference(out, first, count, dilated[:n], eroded[:m], y * width)
    return out, count


@compiled
def contours(starts, ends, offsets, height, width, reach):
    """Dilation minus erosion by a square of side 2 * reach + 1 -> the runs (n, 2); how many each mask has."""
    out = np.empty((2 * len(starts) + 16, 2), np.int64)
    counts = np.zeros(len(offsets) - 1, np.int64)
    total = 0
    for k in range(len(offsets) - 1):
        begin, end = offsets[k], offsets[k + 1]
        if begin < end:
            out, count = _contour(starts[begin:end], ends[begin:end], height, width, reach, out, total)
            counts[k], total = count - total, count
    return out[:total], counts


@compiled
def resized(starts, ends, offsets, width, old_rows, rows, columns, new_width):
    """Nearest resizing -> the runs (n, 2); how many each mask has.

    old_rows: the old row of each new one, rising. rows, columns: at c the number of new ones whose old one is < c.
    """
    out = np.empty((2 * len(starts) + 16, 2), np.int64)
    counts = np.zeros(len(offsets) - 1, np.int64)
    total = 0
    for k in range(len(offsets) - 1):
        run, stop, count = offsets[k], offsets[k + 1], total
        if run == stop:
            continue
        for row in range(rows[starts[run] // width], rows[(ends[stop - 1] - 1) // width + 1]):
            edge = old_rows[row] * width
            while ends[run] <= edge:
                run += 1
            r = run
            while r < stop and starts[r] < edge + width:
                left, right = columns[max(starts[r] - edge, 0)], columns[min(ends[r] - edge, width)]
                if left < right:
                    out = _grown(out, count + 1)
                    count = _append(out, total, count, row * new_width + left, row * new_width + right)
                r += 1
        counts[k], total = count - total, count
    return out[:total], counts


# ---- pairs of masks


@compiled
def _shared(starts, ends, r, stop, other_starts, other_ends, s, other_stop):
    """Pixels that two masks share: their runs r .. stop - 1 and s .. other_stop - 1."""
    if r == stop or s == other_stop or starts[r] >= other_ends[other_stop - 1] or other_starts[s] >= ends[stop - 1]:
        return 0
    pixels = 0
    while r < stop and s < other_stop:
        if ends[r] <= other_starts[s]:
            r += 1
        elif other_ends[s] <= starts[r]:
            s += 1
        elif ends[r] <= other_ends[s]:
            pixels += ends[r] - max(starts[r], other_starts[s])
            r += 1
        else:
            pixels += other_ends[s] - max(starts[r], other_starts[s])
            s += 1
    return pixels


@compiled
def intersections(starts, ends, offsets, other_starts, other_ends, other_offsets, same, shared):
    """Pixels that each mask shares with each of the others, shared (K, K2) int64.

    same: whether the others are the masks themselves. Then a row begins at the diagonal, and is its column as well.
    """
    for k in range(len(offsets) - 1):
        r, stop = offsets[k], offsets[k + 1]
        for j in range(k if same else 0, len(other_offsets) - 1):
            s, other_stop = other_offsets[j], other_offsets[j + 1]
            shared[k, j] = _shared(starts, ends, r, stop, other_starts, other_ends, s, other_stop)
            if same:
                shared[j, k] = shared[k, j]
