"""What a setting is worth, for thousands of settings in seconds.

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
well on one and fail on the other. `search.Search.agreement` says how well it does on pictures with masks. It cannot
tell duplicates from instances, so by the proxy alone the suppression and the class threshold stay as they are.

Every peak counts with its first choice: what `choose_again` adds afterwards, and what `min_score` leaves out, makes no
difference here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numba import njit

from prm import InputError
from prm.accelerated import SegmentationSettings
from prm.accelerated.retrieval import all_terms, best_fit, candidates, log_linear, rivals

from .gather import Picture
from .grid import OBJECTIVES


@dataclass(frozen=True, eq=False)
class Choices:
    """A picture's best proposals under each of W tuples of weights, U proposals in all.

    at : (W, P) int32 index into the U proposals; of a peak that has none, any
    values : (W, P) float64, the instances' scores; -inf where a peak has no proposal
    overlaps : (U, U) float64, of the proposals with each other
    nested : (U, U) bool, whether by their share of the smaller alone one drops the other
    true_overlaps : (U, G) float64, with the true instances
    information : (P, U) float64, each peak's part of the proxy
    """

    at: np.ndarray
    values: np.ndarray
    overlaps: np.ndarray
    nested: np.ndarray
    true_overlaps: np.ndarray
    information: np.ndarray


def _choices(picture: Picture, weights: Sequence[tuple], settings: SegmentationSettings) -> Choices | None:
    """None where the picture has no peak, or no proposal that is allowed."""
    fitted = picture.fitted
    if not len(picture.labels) or not fitted.allowed.any():
        return None
    area = fitted.masks.height * fitted.masks.width
    choices, values = (_by_fit if settings.choice == "fit" else _by_eq6)(picture, weights, settings)
    chosen, at = np.unique(choices, return_inverse=True)
    some = fitted.proposals.select(torch.from_numpy(chosen))
    fraction = fitted.masks.areas().numpy()[chosen] / area
    inside = picture.inside[:, chosen]
    with np.errstate(divide="ignore", invalid="ignore"):
        information = np.where((inside > 0) & (fraction > 0), inside * np.log(inside / fraction), 0)
    return Choices(
        at.reshape(choices.shape).astype(np.int32), values, some.ious().numpy(),
        rivals(some, some, np.inf, settings.nms_nested).numpy(),
        np.zeros((len(chosen), 0)) if picture.truth is None else some.ious(picture.truth).numpy(),
        information * picture.weight[:, None],
    )  # fmt: skip


def _by_eq6(picture: Picture, weights: Sequence[tuple], settings) -> tuple[np.ndarray, np.ndarray]:
    """Each peak's proposal and score under every (alpha, beta_area, bias), (W, P) each."""
    fitted, allowed = picture.fitted, picture.fitted.allowed.numpy()
    choices = np.empty((len(weights), len(picture.labels)), np.int64)
    values = np.empty(choices.shape)
    area, of = fitted.masks.height * fitted.masks.width, fitted.of.numpy()
    by_bias = {bias: fitted.over_background(bias).numpy() for bias in {bias for _, _, bias in weights}}
    for k, (alpha, beta_area, bias) in enumerate(weights):
        _best(picture.inside, picture.contour, by_bias[bias], of, allowed, alpha, beta_area / area, choices[k],
              values[k])  # fmt: skip
    return choices, values


def _by_fit(picture: Picture, weights: Sequence[tuple], settings) -> tuple[np.ndarray, np.ndarray]:
    """As `_by_eq6`, under every tuple of the second choice's weights; -inf for a peak without a candidate."""
    fitted, found = picture.fitted, picture.fitted.factors
    sums = torch.from_numpy(np.stack([picture.inside, picture.contour], axis=2))
    terms = all_terms(found, sums, fitted.over_background(settings.bias)[fitted.of], fitted.of)
    may = candidates(found, fitted.allowed, settings.seed_pixel)
    choices, values = [], []
    for tried in weights:
        choice = best_fit(terms, may, tried)
        at = choice.clamp(min=0)
        L = log_linear(terms.gather(1, at[:, None, None].expand(-1, 1, terms.shape[2]))[:, 0], tried)
        value = torch.from_numpy(picture.confidence) * (L / sum(tried)).exp()
        choices.append(at.numpy())
        values.append(torch.where(choice >= 0, value, -torch.inf).numpy())
    return np.array(choices), np.array(values)


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
def _kept(order, at, labels, overlaps, nested, passes, nms, per_class, kept):
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
                too_much = overlaps[at[p], at[k]] >= nms[t] or nested[at[p], at[k]]
                if too_much and (labels[p] == labels[k] or not per_class):
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
    weights: Sequence[tuple],
    cuts: Sequence[SegmentationSettings],
    iou: float = 0.5,
    tick: Callable[[], None] = lambda: None,
) -> dict[str, np.ndarray]:
    """The figures of every one of W tuples of weights with every one of T `cuts`, (W, T) float64 each.

    weights: each as `grid.WEIGHTS` names them for the settings' choice. cuts: settings of which the thresholds and the
    suppression count. iou: the overlap from which mAP^r has a hit.
    tick: called after every tuple. Returns "mAP^r", "ABO" (only where all pictures have masks) and "proxy".
    """
    masks = all(picture.truth is not None for picture in pictures)
    nms = np.array([cut.nms for cut in cuts])
    choices = [_choices(picture, weights, cuts[0]) for picture in pictures]
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
            passes = passes & np.isfinite(c.values[w])
            _kept(order, at, picture.labels, c.overlaps, c.nested, passes, nms, cuts[0].nms_per_class, kept[:, mine])
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
