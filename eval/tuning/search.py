"""Choosing the weights of Eq. 6, the thresholds of peaks and classes, and that of the suppression, by a full search.

The costly parts (forward pass, walks, the sums of Eq. 6) are done once a picture, by `gather`; a setting then costs a
weighted sum, an argmax and a suppression, and `search` tries thousands in seconds. `gather` holds 16 bytes for every
peak and proposal of a picture, and the proposals' runs, however many settings are tried.

Three figures can be maximised: mAP^r, ABO, and a proxy that needs image-level labels and no mask. The proxy of a
picture is the information, in nats, that the masks of its instances hold about their own Peak Response Maps:

    sum over the instances of w * A * log(A / a)   /   sum over all peaks of w

A is the share of the PRM inside the instance's mask, a the mask's share of the picture, so A = a is what a mask laid
anywhere would hold; w is the peak's response as a share of its class's strongest. Instances and peaks of classes that
the picture is not labelled with count 0. A mask that is too small loses A, one that is too large gains a, and an
instance that is missing or suppressed adds nothing. The data set's proxy is the mean over its pictures.

Of some twenty such figures (the PRM's energy inside or on the contour less what the area lets expect, the share of the
response map that the masks cover, the picture's contrast along the contour or its evenness inside, and products of
these) this one ordered settings most as mAP^r and ABO do, on drawn scenes and on nuclei alike; most of the others do
well on one and fail on the other. `Search.agreement` says how well it does on pictures with masks. It cannot tell
duplicates from instances, so by the proxy alone the suppression and the class threshold stay as they are.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from numba import njit
from scipy.stats import spearmanr

from prm import InputError
from prm.accelerated import Proposals, SegmentationSettings, Segmenter
from prm.accelerated.segmenter import fit
from prm.accelerated.stages import Fit

from ..datasets import Sample
from ..pipeline import in_order, threads

WEIGHTS = ("alpha", "beta_area", "bias")
CUTS = ("peak_threshold", "class_threshold", "nms")
GRID = {
    "alpha": (0.4, 0.8, 1.5, 3.0, 6.0),
    "beta_area": (0.0, 2.0, 10.0, 30.0, 100.0, 300.0, 1000.0),
    "bias": (0.95, 1.5, 2.5, 4.0),
    "peak_threshold": (0.05, 0.1, 0.2, 0.3, 0.5, 0.7),
    "class_threshold": (0.1, 0.3, 0.5, 0.7),
    "nms": (0.2, 0.3, 0.5, 0.7),
}
"""What is tried, by the name of the setting; the present value of each is tried, too."""
FIXED = ("class_threshold", "nms")
"""What the proxy cannot judge."""
OBJECTIVES = {"map": "mAP^r", "abo": "ABO", "proxy": "proxy"}
"""What can be maximised: its name on the command line, and as a figure."""
POINT = 0.01
"""Settings whose figure is so little below the best are as good; of the proxy, this share of it."""


@dataclass(frozen=True, eq=False)
class Picture:
    """What the search needs of one picture with P peaks, K proposals and G true instances, for any weights.

    labels : (P,) int64 class of each peak; peaks are in order of (class, row, column)
    share : (P,) response as a share of the class's strongest
    rules : which peaks pass a class threshold, or an absolute peak threshold: (class_threshold, peak_minimum) -> (P,)
    fitted : the sums of Eq. 6 of each peak with each proposal, on the CPU
    inside, contour : (P, K) float64, of these R over S and R over contour(S)
    present : (P,) bool, whether the picture is labelled with the peak's class
    truth, true_labels : G true masks and (G,) their classes; None where there are none to compare with
    """

    labels: np.ndarray
    share: np.ndarray
    rules: dict[tuple, np.ndarray]
    fitted: Fit
    inside: np.ndarray
    contour: np.ndarray
    present: np.ndarray
    truth: Proposals | None
    true_labels: np.ndarray | None

    @cached_property
    def weight(self) -> np.ndarray:
        """(P,) each peak's part in the proxy; their sum is 1, or 0 where no peak is of a class that is present."""
        weight = self.share.astype(np.float64) * self.present
        return weight / max(weight.sum(), np.finfo(np.float64).tiny)


def gather(
    segmenter: Segmenter,
    samples: Iterable,
    propose: Callable[[Sample], Proposals],
    grid: dict[str, Sequence[float]] = GRID,
    tick: Callable[[], None] = lambda: None,
) -> list[Picture]:
    """Each picture's part of the search.

    samples: objects with .image, .labels, .masks (G, H, W) bool or None, .mask_labels. propose: a picture's segment
    proposals; called one picture ahead, in another thread. grid: what will be tried of the peak and class thresholds.
    tick: called after every picture.
    """
    base = segmenter.settings
    lowest = min(base.peak_threshold, *grid.get("peak_threshold", ()))
    confident = {base.class_threshold, *grid.get("class_threshold", ())}
    rules = [replace(base, peak_minimum=None, peak_threshold=lowest, class_threshold=c) for c in sorted(confident)]
    rules += [base] if base.peak_minimum is not None else []
    pictures = []
    with threads(1) as (before,):
        for sample, proposals in in_order(before, lambda sample: (sample, propose(sample)), samples):
            pictures.append(_picture(segmenter, sample, proposals, rules))
            tick()
    return pictures


def _picture(segmenter: Segmenter, sample, proposals: Proposals, rules: Sequence[SegmentationSettings]) -> Picture:
    responses = segmenter.respond([sample.image])
    (found,) = segmenter.walk(responses, segmenter.find_peaks(responses, *rules))
    passing = {}
    for rule in rules:
        peaks = segmenter.find_peaks(responses, rule).peaks[:, 1:]
        passes = (found.peaks[:, None] == peaks[None]).all(2).any(1)
        passing[rule.class_threshold, rule.peak_minimum] = passes.cpu().numpy()
    fitted = fit(found, proposals, segmenter.settings).to("cpu")
    inside, contour, _ = (part.copy() for part in np.moveaxis(fitted.sums.numpy(), 2, 0))
    # Of Q, which depends on the bias, the maps are kept.
    fitted = replace(fitted, sums=fitted.sums.new_empty(0))
    labels = found.peaks[:, 0].cpu().numpy()
    return Picture(
        labels=labels, share=found.share.cpu().numpy(), rules=passing, fitted=fitted, inside=inside, contour=contour,
        present=np.isin(labels, sample.labels),
        truth=None if sample.masks is None else Proposals.from_masks(sample.masks),
        true_labels=sample.mask_labels,
    )  # fmt: skip


# ------------------------------------------------------------------------------------------- what a setting is worth


@dataclass(frozen=True, eq=False)
class Choices:
    """A picture's best proposals under each of W triples of weights, U proposals in all.

    at : (W, P) int32 index into the U proposals
    values : (W, P) float64, Eq. 6
    overlaps : (U, U) float64, of the proposals with each other
    true_overlaps : (U, G) float64, with the true instances
    information : (P, U) float64, each peak's part of the proxy
    """

    at: np.ndarray
    values: np.ndarray
    overlaps: np.ndarray
    true_overlaps: np.ndarray
    information: np.ndarray


def _choices(picture: Picture, weights: Sequence[tuple[float, float, float]]) -> Choices | None:
    """None where the picture has no peak, or no proposal that is allowed."""
    fitted, allowed = picture.fitted, picture.fitted.allowed.numpy()
    if not len(picture.labels) or not allowed.any():
        return None
    choices = np.empty((len(weights), len(picture.labels)), np.int64)
    values = np.empty(choices.shape)
    area, of = fitted.masks.height * fitted.masks.width, fitted.of.numpy()
    by_bias = {bias: fitted.over_background(bias).numpy() for bias in {bias for _, _, bias in weights}}
    for k, (alpha, beta_area, bias) in enumerate(weights):
        _best(picture.inside, picture.contour, by_bias[bias], of, allowed, alpha, beta_area / area, choices[k],
              values[k])  # fmt: skip
    chosen, at = np.unique(choices, return_inverse=True)
    some = fitted.proposals.select(torch.from_numpy(chosen))
    fraction = fitted.masks.areas().numpy()[chosen] / area
    inside = picture.inside[:, chosen]
    with np.errstate(divide="ignore", invalid="ignore"):
        information = np.where((inside > 0) & (fraction > 0), inside * np.log(inside / fraction), 0)
    return Choices(
        at.reshape(choices.shape).astype(np.int32), values, some.ious().numpy(),
        np.zeros((len(chosen), 0)) if picture.truth is None else some.ious(picture.truth).numpy(),
        information * picture.weight[:, None],
    )  # fmt: skip


@njit(cache=True)
def _best(inside, contour, over_background, of, allowed, alpha, beta, choice, value):
    """The first maximum of Eq. 6 for every peak, with the roundings of `retrieval.score`."""
    for p in range(inside.shape[0]):
        choice[p] = -1
        for k in range(inside.shape[1]):
            if allowed[k]:
                score = alpha * inside[p, k] + contour[p, k] - beta * over_background[of[p], k]
                if choice[p] < 0 or score > value[p]:
                    choice[p], value[p] = k, score


@njit(cache=True)
def _kept(order, at, labels, overlaps, passes, nms, per_class, kept):
    """Marks in `kept` (T, P) the instances that T thresholds leave: `retrieval.suppression` many times over.

    order: (P,) peaks by falling score. passes: (T, P) bool. nms: (T,).
    """
    left = np.empty(len(order), np.int64)
    for t in range(len(nms)):
        count = 0
        for p in order:
            if not passes[t, p]:
                continue
            free = True
            for k in left[:count]:
                if overlaps[at[p], at[k]] >= nms[t] and (labels[p] == labels[k] or not per_class):
                    free = False
                    break
            if free:
                left[count] = p
                count += 1
                kept[t, p] = True


@njit(cache=True)
def _wanted(at, labels, overlaps, true_labels, iou, first, wanted):
    """For each peak the true instance of its class that it overlaps most, numbered from `first`; -1 if by too little.

    That is all that mAP^r with the matching "voc" needs: of those that want one true instance, the first has it.
    """
    for p in range(len(labels)):
        best, wanted[p] = 0.0, -1
        for g in range(len(true_labels)):
            if labels[p] == true_labels[g] and overlaps[at[p], g] > best:
                best, wanted[p] = overlaps[at[p], g], first + g
        if best < iou:
            wanted[p] = -1


@njit(cache=True)
def _best_overlaps(at, labels, overlaps, true_labels, kept, totals):
    """Adds to `totals` (T,) every true instance's best overlap with an instance of its class."""
    for t in range(len(kept)):
        left = np.flatnonzero(kept[t])
        for g in range(len(true_labels)):
            best = 0.0
            for p in left:
                if labels[p] == true_labels[g] and overlaps[at[p], g] > best:
                    best = overlaps[at[p], g]
            totals[t] += best


@njit(cache=True)
def _mean_average_precision(labels, wanted, kept, positives, true):
    """(T,) mAP^r of N detections, best first, with `average_precision`'s method "area".

    labels, wanted: (N,). kept: (T, N) bool. positives: (C,) true instances of each class, `true` in all.
    """
    result = np.empty(len(kept))
    precision, of = np.empty(true), np.empty(true, np.int64)
    for t in range(len(kept)):
        taken, rank = np.zeros(true, np.bool_), np.zeros(len(positives), np.int64)
        found, hits = np.zeros(len(positives), np.int64), 0
        for n in np.flatnonzero(kept[t]):
            c = labels[n]
            rank[c] += 1
            if wanted[n] >= 0 and not taken[wanted[n]]:
                taken[wanted[n]] = True
                found[c] += 1
                precision[hits], of[hits] = found[c] / rank[c], c
                hits += 1
        # The best precision at a hit or any later one: only hits can have it.
        best, total = np.zeros(len(positives)), np.zeros(len(positives))
        for h in range(hits - 1, -1, -1):
            c = of[h]
            best[c] = max(best[c], precision[h])
            total[c] += best[c]
        result[t] = (total[positives > 0] / positives[positives > 0]).mean()
    return result


def worth(
    pictures: Sequence[Picture],
    weights: Sequence[tuple[float, float, float]],
    cuts: Sequence[SegmentationSettings],
    iou: float = 0.5,
    tick: Callable[[], None] = lambda: None,
) -> dict[str, np.ndarray]:
    """The figures of every one of W triples (alpha, beta_area, bias) with every one of T `cuts`, (W, T) float64 each.

    cuts: settings of which the thresholds and the suppression count. iou: the overlap from which mAP^r has a hit.
    tick: called after every triple. Returns "mAP^r", "ABO" (only where all pictures have masks) and "proxy".
    """
    masks = all(picture.truth is not None for picture in pictures)
    nms = np.array([cut.nms for cut in cuts])
    choices = [_choices(picture, weights) for picture in pictures]
    live = [(picture, c, _passing(picture, cuts)) for picture, c in zip(pictures, choices) if c is not None]
    true_labels = np.concatenate([np.zeros(0, np.int64), *(p.true_labels for p in pictures)]) if masks else ()
    labels = np.concatenate([np.zeros(0, np.int64), *(p.labels for p, _, _ in live)])
    positives = np.bincount(true_labels, minlength=labels.max(initial=-1) + 1) if masks else None
    figures = {name: np.empty((len(weights), len(cuts))) for name in (OBJECTIVES.values() if masks else ("proxy",))}
    for w in range(len(weights)):
        wanted, kept = np.full(len(labels), -1), np.zeros((len(cuts), len(labels)), bool)
        best, information, start, first = np.zeros(len(cuts)), np.zeros(len(cuts)), 0, 0
        for picture, c, passes in live:
            at, mine = c.at[w], slice(start, start + len(picture.labels))
            order = np.argsort(-c.values[w], kind="stable")
            _kept(order, at, picture.labels, c.overlaps, passes, nms, cuts[0].nms_per_class, kept[:, mine])
            information += kept[:, mine] @ c.information[np.arange(len(at)), at]
            if masks:
                truth = picture.labels, c.true_overlaps, picture.true_labels
                _wanted(at, *truth, iou, first, wanted[mine])
                _best_overlaps(at, *truth, kept[:, mine], best)
                first += len(picture.true_labels)
            start = mine.stop
        figures["proxy"][w] = information / max(len(pictures), 1)
        if masks and len(true_labels):
            order = np.argsort(-np.concatenate([np.zeros(0), *(c.values[w] for _, c, _ in live)]), kind="stable")
            figures["ABO"][w] = best / len(true_labels)
            figures["mAP^r"][w] = _mean_average_precision(labels[order], wanted[order], kept[:, order], positives,
                                                          len(true_labels))  # fmt: skip
        tick()
    if masks and not len(true_labels):
        raise InputError("no picture holds a true instance: there is nothing to choose the settings by")
    return figures


def _passing(picture: Picture, cuts: Sequence[SegmentationSettings]) -> np.ndarray:
    """(T, P) bool, which peaks take part."""
    # With an absolute threshold, its rule has applied it.
    return np.array([
        picture.rules[cut.class_threshold, cut.peak_minimum]
        & ((picture.share >= cut.peak_threshold) | (cut.peak_minimum is not None))
        for cut in cuts
    ])  # fmt: skip


# ----------------------------------------------------------------------------------------------------- the search


@dataclass(frozen=True, eq=False)
class Search:
    """All that was tried: `grid` by name, the weights first, and each figure as an array with an axis a name.

    objective : the figure that was maximised
    best : the chosen setting's place on each axis
    settings : the chosen settings
    before, present : the settings as they were, and their figures
    """

    grid: dict[str, tuple[float, ...]]
    figures: dict[str, np.ndarray]
    objective: str
    best: tuple[int, ...]
    settings: SegmentationSettings
    before: SegmentationSettings
    present: dict[str, float]

    @property
    def chosen(self) -> dict[str, float]:
        """The chosen value of each setting."""
        return {name: values[k] for (name, values), k in zip(self.grid.items(), self.best)}

    @property
    def reached(self) -> dict[str, float]:
        """The chosen settings' figures."""
        return {name: float(array[self.best]) for name, array in self.figures.items()}

    def profile(self, *names: str) -> np.ndarray:
        """The objective over one or two settings, each time with the best of all others: an axis a name."""
        others = tuple(k for k, name in enumerate(self.grid) if name not in names)
        return self.figures[self.objective].max(axis=others)

    def as_good(self) -> tuple[int, dict[str, tuple[float, float]]]:
        """How flat the optimum is: how many settings lie within a point of the best, and the span of each value."""
        best = self.reached[self.objective]
        good = self.figures[self.objective] >= best - POINT * (best if self.objective == "proxy" else 1)
        spans = {}
        for name, values, places in zip(self.grid, self.grid.values(), np.nonzero(good)):
            spans[name] = values[places.min()], values[places.max()]
        return int(good.sum()), spans

    def at_edge(self) -> dict[str, int]:
        """Settings that might be better beyond the grid, and where: 0 or -1 for the axis's first or last value.

        Those of which all that is as good as the best has the one value at that end. An axis of one value has no end.
        """
        spans, edges = self.as_good()[1], {}
        for name, values in self.grid.items():
            low, high = spans[name]
            for place in (0, -1):
                if len(values) > 1 and low == high == values[place] and not _is_end(name, low):
                    edges[name] = place
        return edges

    def agreement(self) -> dict[str, float]:
        """Spearman's rank correlation of the proxy with each other figure over all that was tried; {} without masks.

        A figure that is the same for all settings has none.
        """
        varied = {name: array.ravel() for name, array in self.figures.items() if np.ptp(array) > 0}
        proxy = varied.pop("proxy", None)
        return {} if proxy is None else {
            name: float(spearmanr(proxy, array).statistic) for name, array in varied.items()
        }  # fmt: skip

    def rows(self) -> list[dict]:
        """A dict for everything that was tried: the setting and its figures."""
        tried = itertools.product(*self.grid.values())
        figures = zip(*(array.ravel().tolist() for array in self.figures.values()))
        return [dict(zip((*self.grid, *self.figures), (*s, *f))) for s, f in zip(tried, figures)]


def _is_end(name: str, value: float) -> bool:
    """Whether a setting has no sense beyond this value."""
    return value == 0 or (name in CUTS and value == 1)


def full_grid(
    settings: SegmentationSettings, given: dict[str, Sequence[float]] | None = None, objective: str = "mAP^r"
) -> dict[str, tuple]:
    """`GRID` with the present value of each setting; of those in `given` these values and no others.

    For the proxy, what it cannot judge keeps its present value unless it is given.
    Raises InputError for an unknown name, no value at all, and values that the setting cannot have.
    """
    given = dict(given or {})
    for name, values in given.items():
        if name not in GRID:
            raise InputError(f"setting {name!r} is not searched; known are {', '.join(GRID)}")
        least, most = (0, np.inf) if name in WEIGHTS else (0, 1)
        wrong = [value for value in values if not (least <= value <= most and np.isfinite(value))]
        if not values or wrong:
            span = "0 or more" if name in WEIGHTS else "from 0 to 1"
            raise InputError(f"{name}: {wrong[0] if wrong else 'no value'} cannot be tried; give numbers {span}")
    for name in GRID:
        values = () if objective == "proxy" and name in FIXED else GRID[name]
        given.setdefault(name, (*values, getattr(settings, name)))
    return {name: tuple(sorted(set(given[name]))) for name in GRID}


def search(
    pictures: Sequence[Picture],
    settings: SegmentationSettings,
    grid: dict[str, Sequence[float]],
    objective: str = "mAP^r",
    iou: float = 0.5,
    steps: int = 0,
    fixed: Collection[str] = (),
    tick: Callable[[], None] = lambda: None,
) -> Search:
    """The setting of the grid with the highest figure; of several, the one that changes least of `settings`.

    pictures: from `gather`, with at least this grid's thresholds. settings: the present ones; what is not in the grid
    stays as it is there, but a peak threshold replaces an absolute one. objective: "mAP^r", "ABO" or "proxy". iou: for
    mAP^r. steps: how often a weight of Eq. 6 of which the best lies `at_edge` gets another value beyond; but not
    those in `fixed`. tick: called after every triple of weights.
    Raises InputError for no picture, an unknown objective, and for figures of masks where a picture has none.
    """
    if not pictures:
        raise InputError("there is no picture to choose the settings on")
    if objective not in OBJECTIVES.values():
        raise InputError(f"objective {objective!r} is not known; choose {', '.join(OBJECTIVES.values())}")
    if objective != "proxy" and any(picture.truth is None for picture in pictures):
        raise InputError(f"{objective} needs instance masks; without any, choose the proxy")
    present = _worth_of(pictures, settings, iou)
    base = replace(settings, peak_minimum=None)
    grid = {name: tuple(grid.get(name, (getattr(base, name),))) for name in (*WEIGHTS, *CUTS)}
    cuts = [replace(base, **dict(zip(CUTS, values))) for values in itertools.product(*(grid[name] for name in CUTS))]
    known: dict[tuple, dict[str, np.ndarray]] = {}
    for step in range(steps + 1):
        triples = list(itertools.product(*(grid[name] for name in WEIGHTS)))
        new = [triple for triple in triples if triple not in known]
        figures = worth(pictures, new, cuts, iou, tick)
        known |= {triple: {name: array[k] for name, array in figures.items()} for k, triple in enumerate(new)}
        shape = [len(values) for values in grid.values()]
        figures = {name: np.array([known[triple][name] for triple in triples]).reshape(shape) for name in figures}
        best = _least_changed(figures[objective], grid, base)
        chosen = {name: values[k] for (name, values), k in zip(grid.items(), best)}
        found = Search(grid, figures, objective, best, replace(base, **chosen), settings, present)
        edges = {name: edge for name, edge in found.at_edge().items() if name in WEIGHTS and name not in fixed}
        if not edges or step == steps:
            return found
        grid = grid | {name: _extended(grid[name], edge) for name, edge in edges.items()}


def _least_changed(figure: np.ndarray, grid: dict[str, tuple], base: SegmentationSettings) -> tuple[int, ...]:
    """The place of the maximum; of equal ones the one with the most values as they were, then the first."""
    places = np.argwhere(figure == figure.max())
    same = [[value == getattr(base, name) for value in values] for name, values in grid.items()]
    kept = sum(np.array(axis)[places[:, k]].astype(int) for k, axis in enumerate(same))
    return tuple(int(k) for k in places[np.argmax(kept)])


def _extended(values: tuple[float, ...], edge: int) -> tuple[float, ...]:
    """One more value beyond the first (edge 0) or the last (-1), as far as the last two lie apart by their ratio."""
    near, next_to_it = (values[0], values[1]) if edge == 0 else (values[-1], values[-2])
    beyond = near * near / next_to_it if next_to_it > 0 else 2 * near
    return (beyond, *values) if edge == 0 else (*values, beyond)


@dataclass(frozen=True, eq=False)
class Half:
    """What one half of the pictures chose, and its figures, and those of the settings as they were, on the other."""

    search: Search
    judged: dict[str, float]
    present: dict[str, float]


def halves(pictures: Sequence[Picture], settings: SegmentationSettings, *arguments, **options) -> list[Half]:
    """`search` on every second picture, judged on the others, and the other way round; arguments as there.

    Raises InputError for fewer than two pictures.
    """
    if len(pictures) < 2:
        raise InputError(f"{len(pictures)} picture cannot be halved; take more of them")
    parts, answers = (pictures[::2], pictures[1::2]), []
    for mine, other in (parts, parts[::-1]):
        found = search(mine, settings, *arguments, **options)
        answers.append(Half(found, *(_worth_of(other, s, options.get("iou", 0.5)) for s in (found.settings, settings))))
    return answers


def _worth_of(pictures: Sequence[Picture], settings: SegmentationSettings, iou: float) -> dict[str, float]:
    """The figures of one setting."""
    figures = worth(pictures, [tuple(getattr(settings, name) for name in WEIGHTS)], [settings], iou)
    return {name: float(array[0, 0]) for name, array in figures.items()}
