"""Run-length encoded masks: `Proposals`.

A mask of H * W pixels has some hundred runs. Contours, other sizes, intersections of masks and sums of maps over masks
are computed from the runs, by the operators of `runs.py`: no array of K x H x W numbers is made.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from prm import InputError

from ..inputs import tensor_of

# Bounds the working memory of every function of this room: numbers (of 8 bytes) in one temporary array.
CHUNK = 1 << 21


@dataclass(frozen=True, eq=False)
class Proposals:
    """K run-length encoded masks of one picture of `height` x `width` pixels.

    starts, ends: (R,) int64, first and one past last position of each run in the row-major flattened mask. A run may
        go on over the end of a row. Within a mask runs are in order and do not overlap.
    offsets: (K + 1,) int64; mask k has the runs offsets[k] .. offsets[k + 1] - 1. A mask may be empty, K may be 0.
    objectness: (K,) float64 in [0, 1], how likely each is a thing, by whoever made them; None where that is not known.

    Raises InputError if the arrays do not describe such masks.
    """

    height: int
    width: int
    starts: Tensor
    ends: Tensor
    offsets: Tensor
    objectness: Tensor | None = None

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
        valid = (self.starts >= 0) & (self.starts < self.ends) & (self.ends <= self.height * self.width)
        in_order = F.pad(self.starts[1:] >= self.ends[:-1], (1, 1), value=True)
        in_order[self.offsets] = True  # where a mask begins, what comes before is another one's
        if not (valid.all() & in_order.all()):
            raise InputError(
                f"proposals: runs must be non-empty, inside {self.height} x {self.width} and in order without overlap"
            )
        if self.objectness is not None and self.objectness.shape != (len(self),):
            raise InputError(f"proposals: objectness {tuple(self.objectness.shape)} for {len(self)} masks")
        if self.objectness is not None and not ((self.objectness >= 0) & (self.objectness <= 1)).all():
            raise InputError("proposals: objectness must lie in 0 .. 1")

    @classmethod
    def from_masks(cls, masks: Tensor | np.ndarray) -> "Proposals":
        """Encode dense masks, (K, H, W) bool."""
        masks = tensor_of(masks)
        if masks.ndim != 3 or masks.dtype != torch.bool:
            raise InputError(f"masks must be (K, H, W) bool, not {tuple(masks.shape)} {masks.dtype}")
        count, height, width = masks.shape
        step = max(1, 4 * CHUNK // max(1, height * width))
        parts = [_encode(masks[first : first + step]) for first in range(0, count, step)]
        return cls.concatenate(parts) if parts else cls.empty(height, width, masks.device)

    @classmethod
    def empty(cls, height: int, width: int, device: torch.device | str = "cpu") -> "Proposals":
        """No masks at all (K = 0)."""
        return cls(height, width, *(torch.zeros(n, dtype=torch.int64, device=device) for n in (0, 0, 1)))

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
        known = [part.objectness for part in parts if part.objectness is not None]
        objectness = torch.cat(known) if len(known) == len(parts) else None
        return cls(parts[0].height, parts[0].width, starts, ends, offsets_of(counts), objectness)

    @property
    def device(self) -> torch.device:
        return self.starts.device

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __repr__(self) -> str:
        return f"Proposals({len(self)} masks of {self.height} x {self.width}, {len(self.starts)} runs)"

    def to(self, device: torch.device | str) -> "Proposals":
        """The same masks on another device."""
        names = ["starts", "ends", "offsets"] + (["objectness"] if self.objectness is not None else [])
        return replace(self, **{name: getattr(self, name).to(device) for name in names})

    def select(self, indices: Tensor | Sequence[int]) -> "Proposals":
        """The masks `indices`, (k,) integers in 0 .. K - 1, in that order; repetitions are allowed."""
        indices = checked_indices(indices, len(self), "proposal", self.device)
        counts = self.offsets.diff()[indices]
        offsets = offsets_of(counts)
        # Run r of chosen mask j is run (r - offsets[j]) of mask indices[j].
        shift = self.offsets[indices] - offsets[:-1]
        runs = torch.arange(int(offsets[-1]), device=self.device) + torch.repeat_interleave(shift, counts)
        objectness = None if self.objectness is None else self.objectness[indices]
        return Proposals(self.height, self.width, self.starts[runs], self.ends[runs], offsets, objectness)

    def masks(self, indices: Tensor | Sequence[int] | None = None) -> Tensor:
        """Dense masks (k, H, W) bool, of all proposals or of `indices`."""
        chosen = self if indices is None else self.select(indices)
        count, size = len(chosen), self.height * self.width
        # +1 where a run begins, -1 where it ends; the row's extra cell takes the ends at the last pixel.
        edges = torch.zeros(count * (size + 1), dtype=torch.int8, device=self.device)
        one = torch.ones(len(chosen.starts), dtype=torch.int8, device=self.device)
        starts, ends = keyed(chosen)
        edges.index_add_(0, starts, one).index_add_(0, ends, -one)
        inside = edges.view(count, size + 1).cumsum(1, dtype=torch.int8)[:, :size]
        return inside.bool().view(count, self.height, self.width)

    def areas(self) -> Tensor:
        """Pixels in each mask, (K,) int64."""
        return offsets_of(self.ends - self.starts)[self.offsets].diff()

    def resized(self, height: int, width: int) -> "Proposals":
        """The masks at another size, nearest by pixel centres.

        Row i is the old row floor((i + 1/2) * H / height), columns alike; taken from integers, so nothing is rounded.
        """
        if height < 1 or width < 1:
            raise InputError(f"proposals cannot be resized to {height} x {width}")
        if (height, width) == (self.height, self.width):
            return self
        runs = torch.ops.prm.run_resize(self.starts, self.ends, self.offsets, self.height, self.width, height, width)
        return replace(Proposals(height, width, *runs), objectness=self.objectness)

    def contours(self, width: int = 5) -> "Proposals":
        """Morphological gradient of every mask, dilation minus erosion with a square of odd side `width` >= 1.

        Outside the picture neither dilation nor erosion sees anything, so the picture's edge alone makes no contour.
        """
        if width < 1 or width % 2 == 0:
            raise InputError(f"contour width must be odd and at least 1, not {width}")
        runs = torch.ops.prm.run_contours(self.starts, self.ends, self.offsets, self.height, self.width, width // 2)
        return Proposals(self.height, self.width, *runs)

    def ious(self, other: "Proposals | None" = None) -> Tensor:
        """Intersection over union of every mask with every mask of `other` (default: with each other), (K, K2) float64.

        Two empty masks have IoU 0.
        """
        other = self if other is None else other
        shared = self.intersections(other).double()
        union = self.areas()[:, None] + other.areas()[None, :] - shared
        return shared / union.clamp(min=1)

    def intersections(self, other: "Proposals") -> Tensor:
        """How many pixels every mask shares with every mask of `other`, (K, K2) int64."""
        if (self.height, self.width) != (other.height, other.width):
            raise InputError(
                f"masks of {self.height} x {self.width} and of {other.height} x {other.width} cannot be compared"
            )
        masks, others = ((part.starts, part.ends, part.offsets) for part in (self, other))
        return torch.ops.prm.run_intersections(*masks, *others, self.height * self.width)

    def chunks(self, fan_out: int) -> Iterator[Tensor]:
        """Consecutive groups of masks, of about so many runs that `fan_out` copies of them stay in the memory bound."""
        step = max(1, CHUNK * len(self) // max(1, fan_out * len(self.starts)))
        for first in range(0, len(self), step):
            yield torch.arange(first, min(first + step, len(self)), device=self.device)


def offsets_of(counts: Tensor) -> Tensor:
    """Running totals with a leading 0: (n,) -> (n + 1,)."""
    return F.pad(counts.cumsum(0), (1, 0))


def checked_indices(indices: Tensor | Sequence[int], count: int, what: str, device: torch.device) -> Tensor:
    """`indices` as (k,) int64 on `device`, each in 0 .. count - 1."""
    indices = tensor_of(indices).to(device)
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
    return Proposals(height, width, edge[0::2].contiguous(), edge[1::2].contiguous(), offsets_of(counts))


# Masks of one picture are laid one after the other on a line, with one free place between them: position x of mask k
# has the key k * (H * W + 1) + x. So one sorted list of intervals holds all masks, and intervals of two masks never
# touch.


def keyed(proposals: Proposals) -> tuple[Tensor, Tensor]:
    """Keys at which the runs begin and end, (R,) each."""
    bases = torch.arange(len(proposals), device=proposals.device) * (proposals.height * proposals.width + 1)
    bases = torch.repeat_interleave(bases, proposals.offsets.diff())
    return proposals.starts + bases, proposals.ends + bases
