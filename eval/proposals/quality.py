"""How good proposals are, whatever is chosen among them later: recall and best overlap against their number.

For every instance of the ground truth the best IoU of any of the first n proposals of its picture is taken, no matter
the class. Recall at a threshold is the share of the instances whose best IoU reaches it; ABO (average best overlap) is
the mean of the best IoU over all instances, not over pictures. Sizes are COCO's: an instance is small below 32 x 32
pixels of its own mask, large from 96 x 96 on.

Beside it, two generators to compare with: the segments of well-known superpixel methods at several scales.
"""

import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from scipy.stats import spearmanr
from skimage.segmentation import felzenszwalb, slic

from prm import InputError
from prm.accelerated.inputs import tensor_of
from prm.accelerated.retrieval import Proposals
from prm.files import atomic_write

from ..datasets.base import Sample

COUNTS = (10, 50, 100, 200, 500, 1000, 2000)
RANKED = (10, 50, 200)
"""Of the proposals by falling objectness."""
RECALL_AT = (0.5, 0.7)
# Lower and upper bound of an instance's area, in pixels.
SIZES = {"all": (0, np.inf), "small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, np.inf)}
# Of the two baselines, coarse to fine.
_FELZENSZWALB_SCALES = (1600, 800, 400, 200, 100, 50, 25)
_SLIC_SEGMENTS = (8, 16, 32, 64, 128, 256, 512, 1024)


def half_indices(count: int, half: str | None) -> range:
    """Every second of `count` pictures: "even" 0, 2, 4 .., "odd" 1, 3, 5 .., None all.

    Settings are chosen on one half and judged on the other. Raises InputError for any other `half`.
    """
    if half not in (None, "even", "odd"):
        raise InputError(f"half is {half!r}; choose 'even' or 'odd', or none for every picture")
    return range(count) if half is None else range(half == "odd", count, 2)


def proposal_quality(
    samples: Iterable[Sample],
    propose: Callable[[Sample, int], Proposals],
    counts: Sequence[int] = COUNTS,
    tick: Callable[[], None] = lambda: None,
) -> dict:
    """Recall and ABO of the first n proposals, for each n of `counts`.

    samples: with masks, (K, H, W) bool; their areas decide about the size. propose(sample, limit): at most `limit`
    proposals of the picture's size, best first; called once a picture with the greatest of `counts`. A picture with
    fewer proposals than n keeps what it has. tick: called after each picture.

    Returns a dictionary for `json`: counts; pictures; proposals (mean number per picture); seconds, the median per
    picture, as "cpu" (of this process) and "wall"; sizes, for each name in `SIZES` "instances" (their number), "ABO"
    and "recall_0.5", "recall_0.7", lists as long as `counts`, or None where there is no instance of that size; and
    "objectness", where all proposals have one: how well it ranks them, see `_ranking`.
    Raises InputError for counts that do not rise from at least 1, no pictures, a picture without masks, and proposals
    of another size.
    """
    counts = list(counts)
    if not counts or counts[0] < 1 or any(a >= b for a, b in pairwise(counts)):
        raise InputError(f"numbers of proposals {counts}; they must rise, the first at least 1")
    best, areas, numbers, cpu, wall, ranked, correlations = [], [], [], [], [], [], []
    for sample in samples:
        height, width = sample.image.shape[:2]  # read before the time is taken
        if sample.masks is None:
            raise InputError(f"{sample.name}: has no instance masks to judge proposals by")
        begin = time.process_time(), time.perf_counter()
        proposals = propose(sample, counts[-1])
        cpu.append(time.process_time() - begin[0])
        wall.append(time.perf_counter() - begin[1])
        if (proposals.height, proposals.width) != (height, width):
            size = f"{proposals.height} x {proposals.width}"
            raise InputError(f"{sample.name}: proposals of {size} for a picture of {height} x {width}")
        numbers.append(len(proposals))
        masks = tensor_of(sample.masks)
        overlaps = Proposals.from_masks(masks).ious(proposals)
        best.append(_best_of_first(overlaps, counts))
        areas.append(masks.sum((1, 2)).numpy())
        if proposals.objectness is not None and len(masks) and len(proposals):
            correlations.append(_correlation(overlaps, proposals.objectness))
            order = proposals.objectness.argsort(descending=True, stable=True)
            ranked.append(_best_of_first(overlaps[:, order], RANKED))
        tick()
    if not numbers:
        raise InputError("no pictures to judge proposals by")
    overlap, area = np.concatenate(best), np.concatenate(areas)
    return {
        "counts": counts,
        "pictures": len(numbers),
        "proposals": statistics.mean(numbers),
        "seconds": {"cpu": statistics.median(cpu), "wall": statistics.median(wall)},
        "sizes": {name: _summary(overlap[(low <= area) & (area < high)]) for name, (low, high) in SIZES.items()},
    } | ({"objectness": _ranking(np.concatenate(ranked), correlations)} if ranked else {})


def _best_of_first(overlaps: torch.Tensor, counts: Sequence[int]) -> np.ndarray:
    """Each instance's best IoU with the first n proposals, (G, len(counts)) float64, from those with all, (G, K)."""
    instances, proposals = overlaps.shape
    best = np.zeros((instances, len(counts)))
    if instances and proposals:
        best[:] = overlaps.cummax(1).values.numpy()[:, [min(n, proposals) - 1 for n in counts]]
    return best


def _correlation(overlaps: torch.Tensor, objectness: torch.Tensor) -> float:
    """Spearman's rank correlation of a picture's objectness (K,) with each proposal's best of the IoUs (G, K)."""
    best = overlaps.amax(0).numpy()
    varied = np.ptp(best) > 0 and np.ptp(objectness.numpy()) > 0
    return float(spearmanr(objectness, best).statistic) if varied else 0.0


def _ranking(overlap: np.ndarray, correlations: Sequence[float]) -> dict:
    """How well objectness ranks: of the first n of `RANKED` by falling objectness the recall at IoU 0.5, and the mean
    over pictures of its rank correlation with the proposals' best IoU."""
    recall = (overlap >= 0.5).mean(0).round(4).tolist()
    return {"counts": list(RANKED), "recall_0.5": recall, "rank_correlation": round(float(np.mean(correlations)), 4)}


def _summary(overlap: np.ndarray) -> dict:
    """Of the instances of one size: overlap (K, len(counts))."""
    count = len(overlap)
    measures = {"ABO": overlap} | {f"recall_{at}": overlap >= at for at in RECALL_AT}
    return {"instances": count} | {
        name: values.mean(0).round(4).tolist() if count else None for name, values in measures.items()
    }


# ---- generators to compare with


def felzenszwalb_segments(image: np.ndarray, limit: int) -> Proposals:
    """The segments of Felzenszwalb and Huttenlocher at seven scales, coarse to fine, each once, the largest first.

    image: (H, W, 3) uint8. At most `limit` masks.
    """
    maps = (felzenszwalb(image, scale=scale, sigma=0.8, min_size=20) for scale in _FELZENSZWALB_SCALES)
    return _segments(maps, image.shape[:2], limit)


def slic_segments(image: np.ndarray, limit: int) -> Proposals:
    """SLIC superpixels, 8 to 1024 of them, few and large ones first. As `felzenszwalb_segments`."""
    maps = (slic(image, n_segments=n, compactness=10, start_label=0) for n in _SLIC_SEGMENTS)
    return _segments(maps, image.shape[:2], limit)


def _segments(maps: Iterable[np.ndarray], shape: tuple[int, int], limit: int) -> Proposals:
    """The segments of several label maps, map by map, in each the largest first; a mask that was there is left out."""
    seen, parts = set(), []
    for labels in maps:
        flat = labels.ravel()
        starts = np.concatenate([[0], np.flatnonzero(np.diff(flat)) + 1])
        ends = np.append(starts[1:], flat.size)
        area = np.bincount(flat)
        order = np.argsort(flat[starts], kind="stable")
        bounds = np.searchsorted(flat[starts][order], np.arange(len(area) + 1))
        for label in np.argsort(-area, kind="stable"):
            runs = order[bounds[label] : bounds[label + 1]]
            key = starts[runs].tobytes() + ends[runs].tobytes()
            if len(runs) and key not in seen:
                seen.add(key)
                parts.append((starts[runs], ends[runs]))
        if len(parts) >= limit:
            break
    parts = parts[:limit]
    offsets = np.cumsum([0] + [len(starts) for starts, _ in parts])
    starts, ends = (np.concatenate(side) for side in zip(*parts))
    return Proposals(*shape, *(torch.from_numpy(array.astype(np.int64)) for array in (starts, ends, offsets)))


# ---- to look at


def quality_table(rows: dict[str, dict]) -> str:
    """`proposal_quality` of several generators as lines of text, one block for each size.

    rows: generator's name -> its answer; all with the same counts. ABO, then recall at 0.5, against the number.
    """
    counts = next(iter(rows.values()))["counts"]
    width = max(len(name) for name in rows)
    lines = []
    for size in SIZES:
        instances = next(iter(rows.values()))["sizes"][size]["instances"]
        for measure in ("ABO", *(f"recall_{at}" for at in RECALL_AT)):
            title = f"{measure}, {size} ({instances})"
            lines.append(f"{title:<{width + 18}}" + "".join(f"{n:>7}" for n in counts))
            for name, row in rows.items():
                values = row["sizes"][size][measure]
                cells = "".join(f"{value:7.3f}" for value in values) if values else "      -" * len(counts)
                lines.append(f"  {name:<{width + 16}}" + cells)
    for name, row in rows.items():
        seconds = row["seconds"]
        if "objectness" in row:
            found = row["objectness"]
            recalls = ", ".join(f"{value:.3f} of {n}" for n, value in zip(found["counts"], found["recall_0.5"]))
            lines.append(f"{name}: recall_0.5 by falling objectness {recalls}; "
                         f"rank correlation with the best IoU {found['rank_correlation']:.2f}")  # fmt: skip
        lines.append(
            f"{name}: {row['proposals']:.0f} proposals a picture, {seconds['cpu']:.2f} s of the processor "
            f"and {seconds['wall']:.2f} s by the clock (medians)"
        )
    return "\n".join(lines)


def quality_figure(rows: dict[str, dict], path: str | Path) -> None:
    """Draw ABO and recall at IoU 0.5 against the number of proposals into a PNG, one column for each size.

    rows: as in `quality_table`. Raises InputError if the file cannot be written.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.2 * len(SIZES), 6), layout="constrained")
    axes = figure.subplots(2, len(SIZES), sharex=True, sharey=True)
    for line, measure in zip(axes, ("ABO", "recall_0.5")):
        for axis, size in zip(line, SIZES):
            for name, row in rows.items():
                if row["sizes"][size][measure] is not None:
                    axis.plot(row["counts"], row["sizes"][size][measure], marker=".", label=name)
            axis.set(xscale="log", ylim=(0, 1))
            axis.grid(alpha=0.3)
        line[0].set_ylabel(measure.replace("_", " at IoU "))
    for axis, size in zip(axes[0], SIZES):
        axis.set_title(f"{size} ({next(iter(rows.values()))['sizes'][size]['instances']})")
    for axis in axes[1]:
        axis.set_xlabel("proposals")
    axes[0][0].legend(fontsize="small")
    atomic_write(path, lambda file: figure.savefig(file, format="png", dpi=110))
