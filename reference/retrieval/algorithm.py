"""Algorithm 1 (Zhou et al., CVPR 2018, section 3.4): from a picture to its instances, and non-maximum suppression.

Symbols as in `scores.py`; positions are (row, column).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import wraps

import numpy as np
from scipy.special import expit

from .. import classes, peak_stimulation
from .. import views as views_of
from .log_linear import confident_score, ranked_fit
from .scores import background, enlarged_response, ranked_proposals, resize_nearest, terms


@dataclass(frozen=True)
class Instance:
    """One segmented instance. mask is the proposal at its own, the picture's size; prm is at the network's input's.

    label: the class; score: Eq. 6, or `confident_score` of the second choice; confidence: the class's sigmoid(s^c);
    peak: (row, column) in the picture, pixels;
    proposal: index of the proposal; terms: the three sums of Eq. 6 without alpha and beta.
    """

    label: int
    mask: np.ndarray
    score: float
    confidence: float
    peak: tuple[float, float]
    prm: np.ndarray
    proposal: int
    terms: tuple[float, float, float]


def image_position(position, map_shape, image_shape, upsample=1) -> tuple[float, float]:
    """A peak's (row, column) on the map, enlarged by `upsample`, in image pixels: (i + 0.5) * H_image / H_map - 0.5.

    i is the fractional row on the un-enlarged map: row * (H_map - 1) / (upsample * H_map - 1). Columns alike.
    """
    i = [p * (size - 1) / max(upsample * size - 1, 1) for p, size in zip(position, map_shape)]
    return tuple((k + 0.5) * image / size - 0.5 for k, image, size in zip(i, image_shape, map_shape))


# ---- non-maximum suppression


def overlap(A, B) -> float:
    """Intersection over union of two masks; 0 for two empty ones."""
    union = np.count_nonzero(A | B)
    return np.count_nonzero(A & B) / union if union else 0.0


def share_of_smaller(A, B) -> float:
    """Intersection of two masks over the area of the smaller; 0 if one is empty."""
    smaller = int(min(np.count_nonzero(A), np.count_nonzero(B)))
    return np.count_nonzero(A & B) / smaller if smaller else 0.0


def nms(instances: Sequence[Instance], threshold=0.3, per_class=False, nested=None, again=False) -> list[Instance]:
    """Line 13 of Algorithm 1: from the highest score on, drop what overlaps a kept instance by IoU >= threshold.

    Equal scores go by (class, row, column). Across classes, or only within a class. The PRM of a dropped instance is
    added to that of the one that dropped it, the first kept one that overlaps; at the end the sum is divided by its
    total. Everything else of the kept instance, its three terms too, stays its own.

    Two options, not the paper's. nested: drop as well what shares this share of the smaller of two masks with a kept
    instance. again: a peak may choose again: instances of one class and peak are its choices, the best first; the first
    one that is not dropped is kept and those after it are passed over; if all are dropped, the PRM goes to the instance
    that dropped the first.
    """
    kept: list[Instance] = []
    maps: list[list[np.ndarray]] = []
    dropped: dict[object, tuple[int, np.ndarray]] = {}
    for number, one in enumerate(sorted(instances, key=lambda one: (-one.score, one.label, *one.peak))):
        peak = (one.label, *one.peak) if again else number
        if again and peak in {(other.label, *other.peak) for other in kept}:
            continue
        for k, other in enumerate(kept):
            inside = nested is not None and share_of_smaller(one.mask, other.mask) >= nested
            too_much = inside or overlap(one.mask, other.mask) >= threshold
            if too_much and (not per_class or one.label == other.label):
                dropped.setdefault(peak, (k, one.prm))
                break
        else:
            dropped.pop(peak, None)
            kept.append(one)
            maps.append([one.prm])
    for k, prm in dropped.values():
        maps[k].append(prm)
    sums = [sum(prms[1:], prms[0]) for prms in maps]
    return [
        one if len(prms) == 1 else replace(one, prm=total / total.sum()) for one, prms, total in zip(kept, maps, sums)
    ]


# ---- Algorithm 1


def _formerly(**names) -> Callable:
    """Let a function take its arguments by earlier names too: earlier="today's", or a tuple where one gave several."""

    def decorate(function):
        @wraps(function)
        def called(*args, **arguments):
            for earlier in names.keys() & arguments.keys():
                value, today = arguments.pop(earlier), names[earlier]
                given = {today: value} if isinstance(today, str) else dict(zip(today, value, strict=True))
                if twice := given.keys() & arguments.keys():
                    raise TypeError(f"{function.__name__}() got {min(twice)} and its earlier name {earlier}")
                arguments |= given
            return function(*args, **arguments)

        called.formerly = names  # type: ignore[attr-defined]  # a function may carry what it likes
        return called

    return decorate


@_formerly(t_class="class_threshold")
def select_classes(s, class_threshold=0.5, class_logit=None) -> list[int]:
    """The classes of an image: sigmoid(s^c) >= class_threshold, or, where class_logit is given, s^c >= class_logit."""
    s = np.asarray(s, np.float64)
    return np.flatnonzero(s >= class_logit if class_logit is not None else expit(s) >= class_threshold).tolist()


@_formerly(t_peak="peak_threshold", peak_value="peak_minimum")
def select_peaks(values, peak_threshold=0.3, peak_minimum=None) -> list[int]:
    """Indices of the peaks of one class that count, from their values M (k,) in row-major order.

    M >= peak_threshold * m, m the strongest; if m <= 0 only the (first) strongest. With peak_minimum: M > peak_minimum
    instead.
    """
    values = np.asarray(values, np.float64)
    if peak_minimum is not None:
        return np.flatnonzero(values > peak_minimum).tolist()
    if values.max() <= 0:
        return [int(values.argmax())]
    return np.flatnonzero(values >= peak_threshold * values.max()).tolist()


_suppressed = nms  # `segment` has a setting of that name


@_formerly(
    t_class="class_threshold", t_peak="peak_threshold", peak_value="peak_minimum", width="contour",
    area=("min_area", "max_area"), nms_threshold="nms", per_class="nms_per_class",
)  # fmt: skip
def segment(
    network, image, proposals, *, alpha=0.8, beta=1e-5, bias=0.95, class_threshold=0.5, peak_threshold=0.3, window=3,
    threshold="median", upsample=1, contour=5, min_area=2e-5, max_area=0.85, class_logit=None, peak_minimum=None,
    nms=0.3, nms_per_class=False, signed=False, groups=None, exclusive=False, image_threshold=0.0, top=None,
    choice="eq6", weights=None, objectness=None, seed_pixel="free", smooth=0.0, nms_nested=None, choose_again=False,
    views=1, scaled=(), min_score=None,
) -> list[Instance]:  # fmt: skip
    """Algorithm 1: the instances in an image (C, H, W), for a network as plain data and proposals (J, h, w) bool.

    alpha, beta, bias, contour (the width of S_hat): Eq. 6, beta per pixel of R; class_threshold, class_logit: see
    `select_classes`; peak_threshold, peak_minimum: `select_peaks` (the authors' code: class_logit=0, peak_minimum=30);
    window, threshold, upsample: peak finding; min_area, max_area: `best_proposal`; nms, nms_per_class: `nms`.
    groups: classes as tuples of the network's, exclusive: whether these exclude each other, image_threshold: the least
    `presence` then, top: most classes; see `reference/classes.py`.
    choice: "eq6", or "fit", the second choice: weights, seed_pixel and smooth as in `best_fit`, objectness (J,), which
    None makes 1 for all. nms_nested, choose_again: `nested` and `again` of `nms`.
    views, scaled: maps and PRMs are the mean over so many turned views of the image, and of the same picture at other
    sizes (C, h, w); see `reference/views.py`. min_score: the least score of an instance, asked at the end.
    Ordered by score. No class, no peak, no proposal, an empty PRM: an empty list. Non-finite maps: InputError.
    """
    image, proposals = np.asarray(image, np.float64), [np.asarray(S, bool) for S in proposals]
    if choice not in ("eq6", "fit"):
        raise ValueError(f"choice must be eq6 or fit, not {choice!r}")
    objectness = np.ones(len(proposals)) if objectness is None else objectness
    seen = views_of.look(network, [image, *scaled], views)  # line 2
    network_maps = views_of.mean_maps(network, seen)
    groups = groups or [(c,) for c in range(len(network_maps))]
    M = classes.group_maps(network_maps, groups)
    stimulated = peak_stimulation.forward(M[None], window, threshold, upsample=upsample)
    enlarged, all_enlarged = (peak_stimulation.enlarge(maps, upsample) for maps in (M, network_maps))
    scores, instances, area = stimulated.scores[0], [], (min_area, max_area)
    if exclusive:
        strongest = [np.unravel_index(one.argmax(), one.shape) for one in enlarged]
        scores = [classes.exclusive_score(all_enlarged, *of) for of in zip(groups, strongest)]
    chosen = select_classes(scores, class_threshold, class_logit)
    if exclusive:
        chosen = [c for c in chosen if classes.presence(network_maps, groups[c]) >= image_threshold]
    for c in classes.most_probable(chosen, scores, top):  # lines 3-5
        peaks = [(row, column) for _, k, row, column in stimulated.peaks.tolist() if k == c]
        values = [enlarged[c, row, column] for row, column in peaks]
        N, Q = enlarged_response(M[c], image.shape[1:]), background(M[c], image.shape[1:], bias)
        confidence = float(expit(scores[c]))
        for k in select_peaks(values, peak_threshold, peak_minimum):  # line 6
            start = classes.first_member(all_enlarged, groups[c], peaks[k])
            R, empty = views_of.mean_prm(network, seen, (start, *peaks[k]), image.shape[1:], upsample, signed)  # line 7
            if empty:
                continue
            if choice == "fit":
                how = (contour, area, seed_pixel, smooth)
                ranked = ranked_fit(R, proposals, N, Q, objectness, weights, *how)
            else:
                ranked = ranked_proposals(R, proposals, Q, alpha, beta, contour, area)
            for index, value, _ in ranked if choose_again else ranked[:1]:
                mask, S = proposals[index], resize_nearest(proposals[index], R.shape)
                at = image_position(peaks[k], M.shape[1:], mask.shape, upsample)
                value = confident_score(confidence, value, weights) if choice == "fit" else value
                three = terms(R, S, Q, contour)
                instances.append(Instance(c, mask, value, confidence, at, R, index, three))
    kept = _suppressed(instances, nms, nms_per_class, nms_nested, choose_again)  # line 13
    return [one for one in kept if min_score is None or one.score >= min_score]
