"""Eq. 6 and the suppression of Algorithm 1: from Peak Response Maps to proposals, on run-length encoded masks.

Score(R, S) = alpha * sum(R over S) + sum(R over contour(S)) - beta * sum(Q over S)

R is a Peak Response Map with sum 1, S a proposal's mask, Q the background mask of R's class. A mask of H * W pixels has
some fifty runs, so the sum of a map over a mask is taken from the map's cumulative sum at the ends of the runs: no
array of P x K x H x W or K x H x W numbers ever exists. Everything that needs only the picture's proposals is done
once by `prepare`.

beta in this module is the literal factor of Eq. 6, which multiplies a pixel count. The setting that users see is
stated per image area, so that it carries over between sizes: beta = beta_area / (H * W), H x W the size of R.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from prm import InputError

# Bounds the working memory of every function here: numbers (of 8 bytes) in one temporary array, and in one that a CPU's
# cache should hold.
_CHUNK = 1 << 21
_CACHE = 1 << 18


# ---- masks as runs


@dataclass(frozen=True, eq=False)
class Proposals:
    """K run-length encoded masks of one picture of `height` x `width` pixels.

    starts, ends: (R,) int64, first and one past last position of each run in the row-major flattened mask. A run may
        go on over the end of a row. Within a mask runs are in order and do not overlap.
    offsets: (K + 1,) int64; mask k has the runs offsets[k] .. offsets[k + 1] - 1. A mask may be empty, K may be 0.

    Raises InputError if the arrays do not describe such masks.
    """

    height: int
    width: int
    starts: Tensor
    ends: Tensor
    offsets: Tensor

    def __post_init__(self):
        if self.height < 1 or self.width < 1:
            raise InputError(f"proposals: picture size {self.height} x {self.width}; both sides must be at least 1")
        for name in ("starts", "ends", "offsets"):
            array = getattr(self, name)
            if array.ndim != 1 or array.dtype != torch.int64:
                raise InputError(f"proposals: {name} must be 1-d int64, not {array.ndim}-d {array.dtype}")
        if len(self.starts) != len(self.ends) or len(self.offsets) == 0:
            raise InputError("proposals: starts and ends must have one length, offsets at least one entry")
        fenced = self.offsets[0] == 0
        fenced &= (self.offsets[-1] == len(self.starts)) & (self.offsets.diff() >= 0).all()
        if not fenced:
            raise InputError(f"proposals: offsets must rise from 0 to the {len(self.starts)} runs")
        starts, ends = _keyed(self)
        valid = (self.starts >= 0) & (self.starts < self.ends) & (self.ends <= self.height * self.width)
        if not (valid.all() & (starts[1:] >= ends[:-1]).all()):
            raise InputError(
                f"proposals: runs must be non-empty, inside {self.height} x {self.width} and in order without overlap"
            )

    @classmethod
    def from_masks(cls, masks: Tensor) -> "Proposals":
        """Encode dense masks, (K, H, W) bool."""
        if masks.ndim != 3 or masks.dtype != torch.bool:
            raise InputError(f"masks must be (K, H, W) bool, not {tuple(masks.shape)} {masks.dtype}")
        count, height, width = masks.shape
        step = max(1, 4 * _CHUNK // max(1, height * width))
        parts = [_encode(masks[first : first + step]) for first in range(0, count, step)]
        return cls.concatenate(parts) if parts else cls.empty(height, width, masks.device)

    @classmethod
    def empty(cls, height: int, width: int, device: torch.device | str = "cpu") -> "Proposals":
        """No masks at all (K = 0)."""
        none = torch.zeros(0, dtype=torch.int64, device=device)
        return cls(height, width, none, none, torch.zeros(1, dtype=torch.int64, device=device))

    @classmethod
    def concatenate(cls, parts: "Sequence[Proposals]") -> "Proposals":
        """The masks of all parts, in order; the parts must be of one picture size. At least one part."""
        if not parts:
            raise InputError("proposals: nothing to concatenate")
        if len({(part.height, part.width) for part in parts}) > 1:
            raise InputError("proposals: masks of different picture sizes cannot be concatenated")
        counts = torch.cat([part.offsets.diff() for part in parts])
        starts = torch.cat([part.starts for part in parts])
        ends = torch.cat([part.ends for part in parts])
        return cls(parts[0].height, parts[0].width, starts, ends, _offsets(counts))

    @property
    def device(self) -> torch.device:
        return self.starts.device

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __repr__(self) -> str:
        return f"Proposals({len(self)} masks of {self.height} x {self.width}, {len(self.starts)} runs)"

    def to(self, device: torch.device | str) -> "Proposals":
        """The same masks on another device."""
        return Proposals(self.height, self.width, self.starts.to(device), self.ends.to(device), self.offsets.to(device))

    def select(self, indices: Tensor | Sequence[int]) -> "Proposals":
        """The masks `indices`, (k,) integers in 0 .. K - 1, in that order; repetitions are allowed."""
        indices = _indices(indices, len(self), "proposal", self.device)
        counts = self.offsets.diff()[indices]
        offsets = _offsets(counts)
        # Run r of chosen mask j is run (r - offsets[j]) of mask indices[j].
        shift = self.offsets[indices] - offsets[:-1]
        runs = torch.arange(int(offsets[-1]), device=self.device) + torch.repeat_interleave(shift, counts)
        return Proposals(self.height, self.width, self.starts[runs], self.ends[runs], offsets)

    def masks(self, indices: Tensor | Sequence[int] | None = None) -> Tensor:
        """Dense masks (k, H, W) bool, of all proposals or of `indices`."""
        chosen = self if indices is None else self.select(indices)
        count, size = len(chosen), self.height * self.width
        # +1 where a run begins, -1 where it ends; the row's extra cell takes the ends at the last pixel.
        edges = torch.zeros(count * (size + 1), dtype=torch.int8, device=self.device)
        one = torch.ones(len(chosen.starts), dtype=torch.int8, device=self.device)
        starts, ends = _keyed(chosen)
        edges.index_add_(0, starts, one).index_add_(0, ends, -one)
        inside = edges.view(count, size + 1).cumsum(1, dtype=torch.int8)[:, :size]
        return inside.bool().view(count, self.height, self.width)

    def areas(self) -> Tensor:
        """Pixels in each mask, (K,) int64."""
        return _offsets(self.ends - self.starts)[self.offsets].diff()

    def resized(self, height: int, width: int) -> "Proposals":
        """The masks at another size, nearest by pixel centres.

        Row i is the old row floor((i + 1/2) * H / height), columns alike; taken from integers, so nothing is rounded.
        """
        if height < 1 or width < 1:
            raise InputError(f"proposals cannot be resized to {height} x {width}")
        if (height, width) == (self.height, self.width):
            return self
        parts = [_resized(self.select(chunk), height, width) for chunk in self._chunks(fan_out=4)]
        return Proposals.concatenate(parts) if parts else Proposals.empty(height, width, self.device)

    def contours(self, width: int = 5) -> "Proposals":
        """Morphological gradient of every mask, dilation minus erosion with a square of odd side `width` >= 1.

        Outside the picture neither dilation nor erosion sees anything, so the picture's edge alone makes no contour.
        """
        if width < 1 or width % 2 == 0:
            raise InputError(f"contour width must be odd and at least 1, not {width}")
        parts = [_contours(self.select(chunk), width // 2) for chunk in self._chunks(fan_out=2 * width)]
        return Proposals.concatenate(parts) if parts else self

    def ious(self, other: "Proposals | None" = None) -> Tensor:
        """Intersection over union of every mask with every mask of `other` (default: with each other), (K, K2) float64.

        Two empty masks have IoU 0.
        """
        other = self if other is None else other
        if (self.height, self.width) != (other.height, other.width):
            raise InputError(
                f"masks of {self.height} x {self.width} and of {other.height} x {other.width} cannot be compared"
            )
        inter = torch.zeros(len(self), len(other), dtype=torch.float64, device=self.device)
        step = max(1, _CHUNK // max(1, len(other.starts)))
        for first in range(0, len(self), step):
            rows = torch.arange(first, min(first + step, len(self)), device=self.device)
            inter[rows] = _intersections(self.select(rows), other).double()
        union = self.areas()[:, None] + other.areas()[None, :] - inter
        return inter / union.clamp(min=1)

    def _chunks(self, fan_out: int) -> Iterator[Tensor]:
        """Consecutive groups of masks, of about so many runs that `fan_out` copies of them stay in the memory bound."""
        step = max(1, _CHUNK * len(self) // max(1, fan_out * len(self.starts)))
        for first in range(0, len(self), step):
            yield torch.arange(first, min(first + step, len(self)), device=self.device)


def _offsets(counts: Tensor) -> Tensor:
    """Running totals with a leading 0: (n,) -> (n + 1,)."""
    return F.pad(counts.cumsum(0), (1, 0))


def _indices(indices: Tensor | Sequence[int], count: int, what: str, device: torch.device) -> Tensor:
    """`indices` as (k,) int64 on `device`, each in 0 .. count - 1."""
    indices = torch.as_tensor(indices, device=device)
    if indices.numel() == 0:
        return indices.reshape(0).long()
    if indices.ndim != 1 or indices.is_floating_point() or indices.dtype == torch.bool:
        raise InputError(f"{what} indices must be a list of integers")
    if bool((indices < 0).any() | (indices >= count).any()):
        raise InputError(f"{what} index out of range: {int(indices.min())} .. {int(indices.max())} of {count}")
    return indices.long()


def _encode(masks: Tensor) -> Proposals:
    """Runs of a few dense masks: they begin and end where neighbouring values differ."""
    count, height, width = masks.shape
    framed = F.pad(masks.reshape(count, height * width), (1, 1))
    mask, edge = torch.nonzero(framed[:, 1:] != framed[:, :-1], as_tuple=True)
    counts = torch.bincount(mask[0::2], minlength=count)
    return Proposals(height, width, edge[0::2].contiguous(), edge[1::2].contiguous(), _offsets(counts))


# ---- operations on runs
#
# Masks of one picture are laid one after the other on a line, with one free place between them: position x of mask k
# has the key k * (H * W + 1) + x. So one sorted list of intervals holds all masks, and intervals of two masks never
# touch.


def _keyed(proposals: Proposals) -> tuple[Tensor, Tensor]:
    """Keys at which the runs begin and end, (R,) each."""
    bases = torch.arange(len(proposals), device=proposals.device) * (proposals.height * proposals.width + 1)
    bases = torch.repeat_interleave(bases, proposals.offsets.diff())
    return proposals.starts + bases, proposals.ends + bases


def _from_keys(starts: Tensor, ends: Tensor, count: int, height: int, width: int) -> Proposals:
    """Inverse of `_keyed`, for sorted intervals."""
    stride = height * width + 1
    mask = torch.div(starts, stride, rounding_mode="floor")
    offsets = _offsets(torch.bincount(mask, minlength=count))
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
    counts = _offsets(real.long())[offsets + torch.arange(count + 1, device=proposals.device)].diff()
    return Proposals(proposals.height, proposals.width, starts[real], ends[real], _offsets(counts))


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
    return item, torch.arange(len(item), device=counts.device) - _offsets(counts)[item]


def _resized(proposals: Proposals, height: int, width: int) -> Proposals:
    """`Proposals.resized` for a few masks."""
    device = proposals.device
    # The old row and column under each new pixel's centre; both rise, so a run of old columns is a run of new ones.
    from_row = (2 * torch.arange(height, device=device) + 1) * proposals.height // (2 * height)
    from_column = (2 * torch.arange(width, device=device) + 1) * proposals.width // (2 * width)
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
    starts, ends = _keyed(some)
    before = _offsets(ends - starts)
    base = torch.arange(len(some), device=some.device)[:, None] * stride

    def pixels_before(key: Tensor) -> Tensor:
        begun = torch.searchsorted(starts, key)
        cut_off = (F.pad(ends, (1, 0))[begun] - key).clamp(min=0)
        return before[begun] - cut_off

    shared = pixels_before(base + others.ends) - pixels_before(base + others.starts)
    return F.pad(shared.cumsum(1), (1, 0))[:, others.offsets].diff(dim=1)


# ---- sums of maps over masks


@torch.library.custom_op("prm::run_sums", mutates_args=())
def run_sums(maps: Tensor, starts: Tensor, ends: Tensor, offsets: Tensor) -> Tensor:
    """Sum of each map over each mask's runs: maps (P, L) float, runs as in `Proposals` -> (P, K) float64.

    A run's sum is the difference of the map's float64 cumulative sum at its two ends. Each mask's runs are added in
    order and apart from the others: equal masks have equal sums, wherever they stand.
    """
    sums = maps.new_zeros(len(maps), len(offsets) - 1, dtype=torch.float64)
    if sums.numel() == 0 or len(starts) == 0:
        return sums
    length, counts = maps.shape[1] + 1, offsets.diff()
    # A few maps at a time: on a CPU as many as its cache holds, and always in the same memory.
    step = max(1, (_CACHE if maps.device.type == "cpu" else _CHUNK) // (length + len(starts)))
    step = min(step, len(maps))
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


@run_sums.register_fake
def _(maps, starts, ends, offsets):
    return maps.new_empty(maps.shape[0], offsets.shape[0] - 1, dtype=torch.float64)


# ---- Eq. 6


def background(maps: Tensor, classes: Tensor | Sequence[int], shape: tuple[int, int], bias: float) -> Tensor:
    """Q of Eq. 6: where a class's response is weak, (n, H, W) bool for the n entries of `classes`.

    maps: (C, h, w), one image's class response maps M, un-enlarged. Each is scaled to [0, 1] by its own minimum and
    maximum, enlarged bilinearly to `shape` = (H, W) (corners not aligned), and Q = 1 where that is < bias * its mean.
    A constant map has Q = 0 everywhere. Computed in float64. Raises InputError for non-finite maps.
    """
    if maps.ndim != 3 or not maps.is_floating_point():
        raise InputError(f"class response maps must be (C, h, w) float, not {tuple(maps.shape)} {maps.dtype}")
    maps = maps[_indices(classes, len(maps), "class", maps.device)].double()
    if not maps.isfinite().all():
        raise InputError("class response maps hold a value that is not finite")
    if len(maps) == 0:
        return maps.new_zeros(0, *shape, dtype=torch.bool)
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    scaled = (maps - low) / torch.where(high > low, high - low, 1)
    scaled = F.interpolate(scaled[None], size=tuple(shape), mode="bilinear", align_corners=False)[0]
    return scaled < bias * scaled.mean((1, 2), keepdim=True)


@dataclass(frozen=True, eq=False)
class Prepared:
    """One picture's proposals, ready for Eq. 6 at the size of R.

    masks, contours: K masks each, H x W. allowed: (K,) bool, whether the area fraction lies inside the limits.
    """

    masks: Proposals
    contours: Proposals
    allowed: Tensor

    def to(self, device: torch.device | str) -> "Prepared":
        return Prepared(self.masks.to(device), self.contours.to(device), self.allowed.to(device))


def prepare(
    proposals: Proposals, shape: tuple[int, int], width: int = 5, min_area: float = 2e-5, max_area: float = 0.85
) -> Prepared:
    """What Eq. 6 needs of a picture's proposals, once for all its peaks.

    shape: (H, W), the size of R; masks of another size are resized to it. width: of the contour, in pixels at that
    size.
    min_area, max_area: a proposal takes part if min_area <= its share of its own picture < max_area.
    """
    masks = proposals.resized(*shape)
    fraction = proposals.areas().double() / (proposals.height * proposals.width)
    return Prepared(masks, masks.contours(width), (fraction >= min_area) & (fraction < max_area))


def terms(prms: Tensor, prepared: Prepared, background: Tensor, classes: Tensor | Sequence[int]) -> Tensor:
    """The three sums of Eq. 6 before they are weighted, (P, K, 3) float64: R over S, R over contour(S), Q over S.

    prms: (P, H, W) float, each with sum 1. background: (n, H, W), Q of n classes. classes: (P,) integers, for each
    map the row of `background` that is its class's Q. Proposals outside the area limits are summed too: `best` passes
    them over.
    """
    masks, contours = prepared.masks, prepared.contours
    shape = (masks.height, masks.width)
    if prms.ndim != 3 or tuple(prms.shape[1:]) != shape or not prms.is_floating_point():
        raise InputError(f"PRMs must be (P, {shape[0]}, {shape[1]}) float, not {tuple(prms.shape)} {prms.dtype}")
    if background.ndim != 3 or tuple(background.shape[1:]) != shape:
        raise InputError(f"background must be (n, {shape[0]}, {shape[1]}), not {tuple(background.shape)}")
    classes = _indices(classes, len(background), "background", prms.device)
    if len(classes) != len(prms):
        raise InputError(f"{len(prms)} PRMs but {len(classes)} classes")
    # Masks and contours in one list, so that each PRM is summed up once. float32 holds the 0 and 1 of Q exactly.
    both = Proposals.concatenate([masks, contours])
    over_both = run_sums(prms.flatten(1), both.starts, both.ends, both.offsets)
    over_mask, over_contour = over_both.tensor_split([len(masks)], dim=1)
    over_background = run_sums(background.flatten(1).float(), masks.starts, masks.ends, masks.offsets)[classes]
    sums = torch.stack([over_mask, over_contour, over_background], dim=2)
    if not sums.isfinite().all():
        raise InputError("a PRM holds a value that is not finite")
    return sums


def score(terms: Tensor, alpha: float, beta: float) -> Tensor:
    """Eq. 6 from its three terms, (..., 3) -> (...); beta is literal, beta_area / (H * W)."""
    return alpha * terms[..., 0] + terms[..., 1] - beta * terms[..., 2]


def best(scores: Tensor, allowed: Tensor) -> Tensor:
    """Each PRM's best proposal: scores (P, K), allowed (K,) bool -> (P,) int64, the first maximum.

    -1 where no proposal is allowed.
    """
    if scores.ndim != 2 or allowed.shape != scores.shape[1:]:
        raise InputError(f"scores {tuple(scores.shape)} and allowed {tuple(allowed.shape)} do not fit each other")
    if scores.shape[1] == 0:
        return torch.full((len(scores),), -1, dtype=torch.int64, device=scores.device)
    choice = scores.masked_fill(~allowed, -torch.inf).argmax(1)
    return torch.where(allowed.any(), choice, -1)


# ---- Algorithm 1: non-maximum suppression


def suppression(
    overlap: Tensor, scores: Tensor, labels: Tensor, peaks: Tensor, per_class: bool = False
) -> dict[int, list[int]]:
    """Which of n instances are kept, in the order of keeping, and which each of them suppresses; see `nms`.

    overlap: (n, n) bool, whether two masks overlap too much.
    """
    overlaps, value, label, keys = (t.tolist() for t in (overlap, scores, labels, peaks))
    suppressed: dict[int, list[int]] = {}
    for i in sorted(range(len(value)), key=lambda i: (-value[i], label[i], keys[i])):
        rivals = (k for k in suppressed if overlaps[i][k] and (label[i] == label[k] or not per_class))
        winner = next(rivals, None)
        if winner is None:
            suppressed[i] = []
        else:
            suppressed[winner].append(i)
    return suppressed


def nms(
    masks: Proposals,
    scores: Tensor,
    labels: Tensor,
    peaks: Tensor,
    prms: Tensor,
    iou: float = 0.3,
    per_class: bool = False,
) -> tuple[Tensor, Tensor]:
    """Keep one of the instances that overlap, and give it the Peak Response Maps of those it suppresses.

    masks: n instances' masks. scores (n,) float, labels (n,) int64, peaks (n, 2) row and column, prms (n, H, W).
    Instances are taken by falling score, equal scores by (class, row, column). One whose mask IoU with a kept one is
    >= `iou` is suppressed, by the first such in the order of keeping; with `per_class` only those of its own class
    count.

    Returns kept (k,) int64, in that order, and the kept ones' PRMs (k, H, W): each plus those it suppressed, divided
    by its total again. Scores and terms of a kept instance stay its own.
    """
    count = len(masks)
    for name, array in (("scores", scores), ("labels", labels), ("peaks", peaks), ("prms", prms)):
        if len(array) != count:
            raise InputError(f"nms: {count} masks but {len(array)} {name}")
    suppressed = suppression(masks.ious() >= iou, scores, labels, peaks, per_class)
    kept = torch.tensor(list(suppressed), dtype=torch.int64, device=prms.device)
    merged = prms[kept]
    for row, losers in enumerate(suppressed.values()):
        if losers:
            total = prms[[kept[row].item(), *losers]].sum(0)
            merged[row] = total / total.sum().clamp(min=torch.finfo(total.dtype).tiny)
    return kept, merged
