"""Proposals as unions of the regions of a label map, or as dense masks, made into runs.

MCG, COB and Selective Search describe a proposal by the numbers of the superpixels that it is made of. The label map
is run-length encoded once; a proposal's runs are those of its superpixels, joined where they touch.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numba import njit

from prm import InputError
from prm.accelerated.retrieval import CHUNK, Proposals


def from_labels(label_map: np.ndarray, lists: Sequence[np.ndarray], where: Callable[[int], str]) -> Proposals:
    """Union k of the regions whose numbers `lists[k]` holds: a pixel is inside where its number is one of them.

    label_map: (H, W) integers. lists: arrays of whole numbers of any shape, which may be empty. where: what errors
    call list k. A number within the map's range that no pixel has adds nothing, as with MATLAB's `ismember`; raises
    InputError for one outside that range, which tells a wrong map or numbers that count from elsewhere.
    """
    members = [whole(numbers, lambda k=k: where(k)).ravel() for k, numbers in enumerate(lists)]
    low, high = label_map.min(), label_map.max()
    for k, numbers in enumerate(members):
        outside = (numbers < low) | (numbers > high)
        if outside.any():
            raise InputError(
                f"{where(k)}: names region {numbers[outside.argmax()]}, but the label map holds {low} to {high}"
            )
    flat = label_map.ravel()
    bounds = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1, [flat.size]])
    present, labels = np.unique(flat[bounds[:-1]], return_inverse=True)
    inside, space, parts = np.zeros(len(present), bool), np.empty((len(labels), 2), np.int64), []
    for numbers in members:
        chosen = np.searchsorted(present, numbers)
        chosen = chosen[present[chosen] == numbers]
        inside[chosen] = True
        parts.append(space[: _union(bounds, labels, inside, space)].copy())
        inside[chosen] = False
    return from_runs(label_map.shape, parts)


@njit(cache=True)
def _union(bounds, labels, inside, out):
    """Writes the runs of the regions `inside` to `out` (R, 2), first and one past last position; returns how many."""
    count = 0
    for r in range(len(labels)):
        if inside[labels[r]]:
            if count > 0 and out[count - 1, 1] == bounds[r]:
                out[count - 1, 1] = bounds[r + 1]
            else:
                out[count, 0], out[count, 1] = bounds[r], bounds[r + 1]
                count += 1
    return count


def from_runs(shape: Sequence[int], parts: Sequence[np.ndarray]) -> Proposals:
    """Masks of `shape` = (H, W) from each one's runs, (R, 2) int64."""
    starts, ends = np.concatenate([np.zeros((0, 2), np.int64), *parts]).T.copy()
    offsets = np.cumsum([0] + [len(part) for part in parts])
    return Proposals(int(shape[0]), int(shape[1]), *(torch.from_numpy(array) for array in (starts, ends, offsets)))


def from_dense(shape: Sequence[int], count: int, some: Callable[[slice], np.ndarray]) -> Proposals:
    """Encode dense masks a few at a time: `some(slice)` hands out the slice's n masks as (H, W, n), nonzero inside."""
    # So few that they stay in a CPU's cache on the way from columns to rows.
    parts, step = [Proposals.empty(*shape)], max(1, CHUNK // (shape[0] * shape[1]))
    for start in range(0, count, step):
        masks = some(slice(start, min(start + step, count))).transpose(2, 0, 1)
        parts.append(Proposals.from_masks(torch.from_numpy(np.not_equal(masks, 0, order="C"))))
    return Proposals.concatenate(parts)


def hierarchy_lists(leaves: int, hierarchies: Sequence[np.ndarray], where: Callable[[int], str]) -> list[np.ndarray]:
    """The base regions (int64 numbers from 1) of every region of Selective Search's hierarchies over one label map.

    hierarchies: vectors of parents; entry i - 1 is the number of the region that region i is merged into. 1 .. leaves
    are the base regions, and every number above is made of two lower ones. The last number has no entry: it is the
    top. Numbers start from 1, as in MATLAB; a parent of 0 is none.

    Selective Search ranks regions from the top of each hierarchy downwards (and shuffles that at random, which is left
    out): all hierarchies' tops, then what was merged before, and so on; the base regions, which all hierarchies share,
    come last.
    """
    ranked = []
    for h, parents in enumerate(hierarchies):
        parents = whole(parents, lambda h=h: where(h)).ravel()
        total = len(parents) + 1 if len(parents) else leaves
        number = np.arange(1, len(parents) + 1)
        rising = (parents == 0) | ((parents > np.maximum(number, leaves)) & (parents <= total))
        if total < leaves or not rising.all():
            raise InputError(f"{where(h)}: is no hierarchy over the label map's {leaves} regions")
        children = [np.flatnonzero(parents == i) for i in range(leaves + 1, total + 1)]
        if any(len(two) != 2 for two in children):
            raise InputError(f"{where(h)}: a region is not merged of exactly two")
        nodes = [np.array([i]) for i in range(1, leaves + 1)]
        for a, b in children:
            nodes.append(np.concatenate([nodes[a], nodes[b]]))
        ranked += [(total - i, h, nodes[i]) for i in range(leaves, total)]
    merged = [numbers for *_, numbers in sorted(ranked, key=lambda entry: entry[:2])]
    return merged + [np.array([i]) for i in range(leaves, 0, -1)]


def whole(values: np.ndarray, where: Callable[[], str]) -> np.ndarray:
    """Numbers as int64, in their shape; raises InputError unless they are whole. MATLAB's numbers are doubles."""
    if values.dtype.kind not in "biuf":
        raise InputError(f"{where()}: holds {values.dtype} where numbers were expected")
    with np.errstate(invalid="ignore"):
        numbers = values.astype(np.int64)
    if (numbers != values).any():
        raise InputError(f"{where()}: holds {values[numbers != values][0]}, which is not a whole number")
    return numbers
