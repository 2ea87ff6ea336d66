"""What is compared: the functions of the oracle that an implementation offers, each with generated cases.

Numbers of a case are exact in the dtype that is tested, so that peaks, masks and choices have one right answer whatever
the arithmetic. A case prints as a few lines that repeat it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from hypothesis import assume
from hypothesis import strategies as st

from prm.parity_tests import edges, tolerances
from prm.parity_tests.strategies import LAYOUTS, MAP_KINDS, exact_maps, has_near_ties
from prm.reference import peak_backprop, peak_stimulation
from prm.reference.peak_backprop import interpolation_weights, layers, pooled_size
from prm.reference.retrieval import Instance, confident_score, fit_score, fit_terms, resize_nearest

# NumPy has no bfloat16: such values travel in float32.
NUMPY = {"float64": np.float64, "float32": np.float32, "bfloat16": np.float32, "float16": np.float16}


@dataclass(frozen=True)
class Operator:
    """One function and how it is compared.

    name: dotted, as in prm.reference. equation: where the paper has it. cases: dtype -> strategy of the arguments,
    float arrays in float64. answer: (implementation, arguments) -> named arrays; integers and truth values are compared
    exactly. tolerance: dtype -> share of the largest magnitude. calls: the torch operators that must have run. edges:
    dtype -> arguments that are compared whatever chance draws. work: arguments -> how many steps a case takes, of a
    function whose cases differ much in that.
    """

    name: str
    equation: str
    cases: Callable[[torch.dtype], st.SearchStrategy[dict]]
    answer: Callable[[Any, dict], Mapping[str, Any]]
    tolerance: Mapping[torch.dtype, float]
    calls: tuple[str, ...] = ()
    edges: Callable[[torch.dtype], list[dict]] = lambda dtype: []
    work: Callable[[dict], int] = lambda arguments: 0


@dataclass(frozen=True)
class Case:
    """The arguments of one call, float arrays in float64, and how the implementation finds them laid out in memory."""

    operator: str
    arguments: Mapping[str, Any]
    layout: str = "contiguous"

    def typed(self, dtype: str) -> dict[str, Any]:
        """The arguments with float arrays in `dtype`, laid out."""
        return {key: _typed(value, NUMPY[dtype], self.layout) for key, value in self.arguments.items()}

    def __str__(self):
        with np.printoptions(threshold=sys.maxsize, linewidth=10**6, floatmode="unique"):
            arguments = " ".join(repr(dict(self.arguments)).split())
        return (
            f"from numpy import array\nfrom prm.parity_tests.operators import Case\n"
            f'case = Case("{self.operator}", {arguments}, "{self.layout}")'
        )


def cases(operator: Operator, dtype: str) -> st.SearchStrategy[Case]:
    """Cases of an operator whose numbers are exact in `dtype`."""
    arguments = operator.cases(getattr(torch, dtype))
    return st.builds(Case, st.just(operator.name), arguments, st.sampled_from(LAYOUTS))


def _typed(value, dtype, layout):
    if isinstance(value, list):
        return [_typed(v, dtype, layout) for v in value]
    if not isinstance(value, np.ndarray):
        return value
    if value.dtype != np.float64:
        return value.copy()  # an implementation may write on what it is given
    value = value.astype(dtype)
    if layout == "channels_last" and value.ndim >= 3:
        return np.moveaxis(np.ascontiguousarray(np.moveaxis(value, -3, -1)), -1, -3)
    if layout == "strided" and value.ndim:
        wide = np.full((*value.shape[:-1], 2 * value.shape[-1] + 1), 99.0, dtype)
        wide[..., 1::2] = value
        return wide[..., 1::2]
    return value


# ---- numbers: multiples of 1/8 are exact in every dtype, their sums of a few in most

PLAIN = ("rectified", "both signs", "few levels", "negative", "zeros")
SIGNS = (*PLAIN, "faint", "faint")  # twice: few of them come near the bound of a leak


def features(rng, shape, kind):
    """Values of a layer's input: as after a ReLU or with both signs, with exact ties, all alike, or some so faint that
    what they excite alone lies to either side of the bound of a leak."""
    U = rng.integers(-16, 17, shape) / 8.0
    if kind == "faint":
        exponents = np.where(rng.random(shape) < 0.8, rng.integers(18, 29, shape), 0)
        return np.abs(U) * 2.0**-exponents
    if kind == "rectified":
        return np.maximum(U, 0.0)
    if kind == "few levels":
        return np.sign(U)
    if kind == "negative":
        return -np.abs(U)
    return np.zeros(shape) if kind == "zeros" else U


def weights(rng, shape):
    """Weights of both signs; now and then a filter that nothing excites, or one whose weights are all very small."""
    W = rng.integers(-8, 9, shape) / 8.0
    silent, small = rng.random(shape[0]) < 0.2, rng.random(shape[0]) < 0.2
    W[silent] = -np.abs(W[silent])
    W[small] *= 2.0**-30
    return W


def decided(name, arguments):
    """Whether no Z lies so near the bound of its leak that rounding decides: a lower and a higher one leak the same."""
    answers = []
    for factor in (0.8, 1.25):
        with mock.patch.object(layers, "TINY", factor * layers.TINY):
            answers.append(getattr(peak_backprop, name)(**arguments, return_leak=True)[1])
    return answers[0] == answers[1]


def visits(rng, shape):
    """P(V): non-negative, much of it zero, or at one position alone."""
    P = rng.integers(0, 9, shape) / 64.0 * (rng.random(shape) < 0.6)
    if P.size and rng.random() < 0.3:
        P = np.zeros(shape)
        P.flat[rng.integers(P.size)] = 1.0
    return P


def randoms():
    return st.integers(0, 2**31).map(np.random.default_rng)


def pairs(low, high):
    return st.tuples(st.integers(low, high), st.integers(low, high))


# ---- Eq. 1-3


@st.composite
def maps_to_pool(draw, dtype):
    focus = draw(st.sampled_from(["anything", "anything", "anything", "median", "rounding", "no images"]))
    window, upsample = draw(st.sampled_from([3, 5, 7])), draw(st.sampled_from([1, 1, 2, 3, 8]))
    threshold = draw(st.sampled_from(["median", "mean", "max", None, 0.3, -0.25, 1e6]))
    # Fractions of an enlargement are rounded: there only maps without near ties have one right answer.
    kinds = MAP_KINDS if upsample == 1 else ("fine", "fine", "constant", "coarse")
    M = draw(exact_maps(dtype, kinds, max_side=9 if upsample < 3 else 5))
    if focus == "median":  # a row of even length, where a peak may be the lower median and none the upper one
        window, threshold, upsample = 3, "median", 1
        M = draw(randoms()).permuted(np.tile(np.arange(8.0), (1, 3, 1, 1)), axis=3)
    elif focus == "no images":
        M = M[:0]
    elif focus == "rounding":  # a threshold that rounds to the value of a peak in the maps' dtype, not in a wider one
        upsample, peaks = 1, M[peak_stimulation.find_peaks(M, window)]
        level = float(draw(randoms()).choice(peaks))
        threshold = level + abs(level) * torch.finfo(dtype).eps / 4
    arguments = {"M": M, "window": window, "threshold": threshold, "upsample": upsample}
    if upsample > 1 and len(M):
        size = tuple(upsample * n for n in M.shape[2:])
        E = F.interpolate(torch.from_numpy(M), size, mode="bilinear", align_corners=True).numpy()
        levels = [peak_stimulation.threshold_value(m, rounded(threshold, dtype)) for m in E.reshape(-1, *E.shape[2:])]
        assume(not has_near_ties(E, window, levels))
    return arguments


@st.composite
def maps_and_gradients(draw, dtype):
    arguments = draw(maps_to_pool(dtype))
    grad_scores = draw(randoms()).integers(-8, 9, arguments["M"].shape[:2]) / 8.0
    return {"grad_scores": grad_scores, **arguments}


def rounded(threshold, dtype):
    """A threshold as the maps' dtype holds it: the oracle computes in float64 and cannot know."""
    return float(torch.tensor(threshold, dtype=dtype)) if isinstance(threshold, float) else threshold


def comparisons(arguments):
    return arguments["M"].size * (arguments["upsample"] * arguments["window"]) ** 2


def pooled(implementation, arguments):
    result = implementation.peak_stimulation.forward(**arguments)
    return {"peaks": _integers(result.peaks), "scores": result.scores}


def pooled_backward(implementation, arguments):
    arguments = dict(arguments)
    grad_scores = arguments.pop("grad_scores")
    result = implementation.peak_stimulation.forward(**arguments)
    return {"gradient": implementation.peak_stimulation.backward(grad_scores, result)}


def _integers(values):
    array = np.asarray(values)
    if array.dtype.kind not in "iu":
        raise TypeError(f"integers expected, not {array.dtype}")
    return array.astype(np.int64)


# ---- Eq. 4-5


@st.composite
def convolutions(draw, dtype):
    rng, groups = draw(randoms()), draw(st.integers(1, 3))
    C, O = groups * draw(st.integers(1, 3)), groups * draw(st.integers(1, 3))
    kernel, stride, dilation = draw(pairs(1, 3)), draw(pairs(1, 3)), draw(pairs(1, 2))
    padding = draw(st.one_of(st.integers(0, 2), pairs(0, 2), st.tuples(*[st.integers(0, 2)] * 4)))
    left, right, top, bottom = peak_backprop.sides(padding)
    spans = [d * (k - 1) + 1 for k, d in zip(kernel, dilation)]
    size = [draw(st.integers(max(1, span - pads), 8)) for span, pads in zip(spans, (top + bottom, left + right))]
    out = [
        (n + pads - span) // s + 1 for n, pads, span, s in zip(size, (top + bottom, left + right), spans, stride)
    ]
    U = features(rng, (C, *size), draw(st.sampled_from(SIGNS)))
    geometry = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    signed = draw(st.sampled_from([False, False, True]))
    W = weights(rng, (O, C // groups, *kernel))
    return {"P": visits(rng, (O, *out)), "U": U, "W": W, **geometry, "signed": signed}


@st.composite
def linears(draw, dtype):
    rng, out, into = draw(randoms()), draw(st.integers(1, 5)), draw(st.integers(1, 6))
    lead = draw(st.sampled_from([(), (3,), (2, 3)]))
    U = features(rng, (*lead, into), draw(st.sampled_from(SIGNS)))
    return {"P": visits(rng, (*lead, out)), "U": U, "W": weights(rng, (out, into))}


@st.composite
def poolings(draw, dtype, average):
    rng, kernel, stride = draw(randoms()), draw(pairs(1, 3)), draw(st.one_of(st.none(), pairs(1, 3)))
    padding = tuple(draw(st.integers(0, k // 2)) for k in kernel)
    dilation = (1, 1) if average else draw(pairs(1, 2))
    ceil_mode = draw(st.booleans())
    spans = [d * (k - 1) + 1 for k, d in zip(kernel, dilation)]
    size = [draw(st.integers(max(1, span - 2 * p), 8)) for span, p in zip(spans, padding)]
    axes = list(zip(size, kernel, stride or kernel, padding, dilation))
    out = [pooled_size(n, k, s, p, p, d, ceil_mode) for n, k, s, p, d in axes]
    # A window that lies in the padding altogether has no maximum.
    inside = [
        any(0 <= q * s - p + a * d < n for a in range(k)) for (n, k, s, p, d), o in zip(axes, out) for q in range(o)
    ]
    assume(all(inside))
    U = features(rng, (draw(st.integers(1, 2)), *size), draw(st.sampled_from(SIGNS)))
    arguments = {"P": visits(rng, (len(U), *out)), "U": U, "kernel": kernel, "stride": stride, "padding": padding}
    if not average:
        return {**arguments, "dilation": dilation, "ceil_mode": ceil_mode}
    divisor = draw(st.sampled_from([None, 1, 64]))
    return {**arguments, "ceil_mode": ceil_mode, "count_include_pad": draw(st.booleans()), "divisor_override": divisor}


@st.composite
def adaptive_poolings(draw, dtype):
    rng, size, out = draw(randoms()), draw(pairs(1, 8)), draw(pairs(1, 6))
    U = features(rng, (draw(st.integers(1, 2)), *size), draw(st.sampled_from(SIGNS)))
    return {"P": visits(rng, (len(U), *out)), "U": U}


@st.composite
def means(draw, dtype):
    rng, axes = draw(randoms()), draw(st.sampled_from([(1, 2), (1, 2), (1,), (2,)]))
    U = features(rng, (draw(st.integers(1, 4)), *draw(pairs(1, 7))), draw(st.sampled_from(SIGNS)))
    keep = draw(st.booleans())
    out = tuple(1 if a in axes else n for a, n in enumerate(U.shape) if keep or a not in axes)
    return {"P": visits(rng, out), "U": U, "axes": axes}


@st.composite
def interpolations(draw, dtype):
    # Nothing faint: the rounding of a fraction next to 0 would outweigh it.
    rng, size = draw(randoms()), draw(pairs(1, 6))
    U = features(rng, (draw(st.integers(1, 2)), *size), draw(st.sampled_from(PLAIN)))
    mode = draw(st.sampled_from(["bilinear", "bilinear", "nearest", "nearest-exact"]))
    align_corners = mode == "bilinear" and draw(st.booleans())
    scale = None if align_corners else draw(st.sampled_from([None, (2.0, 2.0), (1.5, 2.5), (1.0, 3.0), (0.5, 2.0)]))
    out = draw(pairs(1, 8)) if scale is None else tuple(int(n * factor) for n, factor in zip(size, scale))
    assume(min(out) > 0)
    options = {"mode": mode, "align_corners": align_corners, "scale": scale}
    # A weight that is zero only by rounding decides whether a position leaks.
    for n, o, factor in zip(size, out, scale or (None, None)):
        A = interpolation_weights(n, o, mode, align_corners, factor)
        assume(not ((A > 0) & (A < 1e-6)).any())
    return {"P": visits(rng, (len(U), *out)), "U": U, **options}


@st.composite
def sums(draw, dtype):
    axes = draw(st.sampled_from([(0,), (1,), (0, 2), (1, 2)]))
    rng, shape = draw(randoms()), (draw(st.integers(1, 4)), *draw(pairs(1, 5)))
    keep = draw(st.booleans())
    out = tuple(1 if a in axes else n for a, n in enumerate(shape) if keep or a not in axes)
    return {"P": visits(rng, out), "U": features(rng, shape, draw(st.sampled_from(SIGNS))), "axes": axes}


@st.composite
def pads(draw, dtype):
    shape = (draw(st.integers(1, 3)), *draw(pairs(2, 5)))
    mode = draw(st.sampled_from(["constant", "constant", *COPIES]))
    most = 3 if mode in ("constant", "replicate") else 1  # the others need as much of the map
    left, right, top, bottom = (draw(st.integers(0, most)) for _ in range(4))
    out = (shape[0], shape[1] + top + bottom, shape[2] + left + right)
    return {"P": visits(draw(randoms()), out), "shape": shape, "padding": (left, right, top, bottom), "mode": mode}


COPIES = ("reflect", "replicate", "circular")


@st.composite
def additions(draw, dtype):
    rng, (C, H, W) = draw(randoms()), (draw(st.integers(1, 3)), *draw(pairs(1, 5)))
    second = draw(st.sampled_from([(C, H, W), (C, H, W), (C, 1, 1), (1, H, W)]))
    summands = [features(rng, shape, draw(st.sampled_from(SIGNS))) for shape in ((C, H, W), second)]
    constant = draw(st.sampled_from([(), (), (), (0,), (1,)]))
    return {"P": visits(rng, (C, H, W)), "summands": summands, "constant": constant}


@st.composite
def concatenations(draw, dtype):
    rng, axis = draw(randoms()), draw(st.integers(0, 2))
    common = [draw(st.integers(1, 4)) for _ in range(3)]
    lengths = draw(st.lists(st.integers(1, 4), min_size=2, max_size=4))
    shapes = [tuple(length if a == axis else n for a, n in enumerate(common)) for length in lengths]
    common[axis] = sum(lengths)
    return {"P": visits(rng, tuple(common)), "shapes": shapes, "axis": axis}


@st.composite
def slices(draw, dtype):
    rng, shape, axis = draw(randoms()), tuple(draw(st.integers(1, 5)) for _ in range(3)), draw(st.integers(0, 2))
    start, stop = draw(st.one_of(st.none(), st.integers(-3, 3))), draw(st.one_of(st.none(), st.integers(-3, 5)))
    step = draw(st.sampled_from([None, 1, 2, 3]))
    length = len(range(shape[axis])[slice(start, stop, step)])
    assume(length)
    out = tuple(length if a == axis else n for a, n in enumerate(shape))
    return {"P": visits(rng, out), "shape": shape, "axis": axis, "start": start, "stop": stop, "step": step}


@st.composite
def gated(draw, dtype):
    shape = (draw(st.integers(1, 3)), *draw(pairs(1, 5)))
    taker = tuple(1 if n and draw(st.booleans()) else n for n in shape) if draw(st.booleans()) else shape
    return {"P": visits(draw(randoms()), shape), "shape": taker}


@st.composite
def reshapes(draw, dtype):
    shape = (draw(st.integers(1, 3)), *draw(pairs(1, 4)))
    flat = draw(st.sampled_from([(shape[0] * shape[1] * shape[2],), (shape[0], shape[1] * shape[2]), shape[::-1]]))
    return {"P": visits(draw(randoms()), flat), "shape": shape}


@st.composite
def permutations(draw, dtype):
    shape = (draw(st.integers(1, 3)), *draw(pairs(1, 4)))
    return {"P": visits(draw(randoms()), shape), "axes": tuple(draw(st.permutations(range(3))))}


@st.composite
def transpositions(draw, dtype):
    shape = (draw(st.integers(1, 3)), *draw(pairs(1, 4)))
    return {"P": visits(draw(randoms()), shape), "axes": tuple(draw(st.permutations(range(3))))[:2]}


@st.composite
def unchanged(draw, dtype):
    return {"P": visits(draw(randoms()), (draw(st.integers(1, 3)), *draw(pairs(1, 4))))}


def walked(function, leaks=False):
    """P(U), and the leaked mass of the layers that can leak."""

    def answer(implementation, arguments):
        call = getattr(implementation.peak_backprop, function)
        if not leaks:
            return {"P(U)": call(**arguments)}
        P_U, leaked = call(**arguments, return_leak=True)
        return {"P(U)": P_U, "leaked": leaked}

    return answer


def added(implementation, arguments):
    return {f"P(U_{i})": P for i, P in enumerate(implementation.peak_backprop.add(**arguments))}


def concatenated(implementation, arguments):
    return {f"P(U_{i})": P for i, P in enumerate(implementation.peak_backprop.concatenate(**arguments))}


# ---- Eq. 6


def masks(rng, shape):
    """A mask: noise from empty to full, or a rectangle that may touch the border."""
    if rng.random() < 0.5:
        return rng.random(shape) < rng.choice([0, 0.1, 0.5, 0.9, 1])
    S = np.zeros(shape, bool)
    (top, bottom), (left, right) = (np.sort(rng.integers(0, n + 1, 2)) for n in shape)
    S[top:bottom, left:right] = True
    return S


def response(rng, shape):
    """A PRM of multiples of 1/1024 with sum 1: every sum over it is exact."""
    counts = np.bincount(rng.integers(0, shape[0] * shape[1], 1024), minlength=shape[0] * shape[1])
    return counts.reshape(shape) / 1024.0


@st.composite
def contours(draw, dtype):
    S = masks(draw(randoms()), draw(pairs(1, 12)))
    return {"S": S, "width": draw(st.sampled_from([1, 3, 5, 9, 99]))}


@st.composite
def backgrounds(draw, dtype):
    M = draw(exact_maps(dtype, ("coarse", "fine", "constant", "negative", "plateaus")))[0, 0]
    shape, bias = draw(pairs(1, 16)), draw(st.sampled_from([0.5, 0.95, 1.0, 1.5]))
    if M.max() > M.min():
        scaled = (M - M.min()) / (M.max() - M.min())
        rows, columns = (interpolation_weights(n, out, "bilinear") for n, out in zip(M.shape, shape))
        enlarged = rows @ scaled @ columns.T
        assume(np.abs(enlarged - bias * enlarged.mean()).min() > 1e-4)
    return {"M": M, "shape": shape, "bias": bias}


@st.composite
def scored(draw, dtype):
    rng, shape = draw(randoms()), draw(pairs(1, 10))
    arguments = {"R": response(rng, shape), "S": masks(rng, shape), "Q": rng.random(shape) < 0.5}
    factors = {"alpha": draw(st.sampled_from([0.0, 0.5, 2.0])), "beta": draw(st.sampled_from([0.0, 0.125, 1.0]))}
    return {**arguments, **factors, "width": draw(st.sampled_from([3, 5]))}


@st.composite
def resized(draw, dtype):
    return {"S": masks(draw(randoms()), draw(pairs(1, 9))), "shape": draw(pairs(1, 12))}


@st.composite
def ranked(draw, dtype):
    arguments = draw(scored(dtype))
    rng, shape = draw(randoms()), arguments["R"].shape
    size = draw(st.sampled_from([shape, (7, 5)]))
    arguments["proposals"] = [masks(rng, size) for _ in range(draw(st.integers(0, 5)))]
    arguments["proposals"] += arguments["proposals"][:2]  # equal scores: the first wins
    del arguments["S"]
    return {**arguments, "area": draw(st.sampled_from([(2e-5, 0.85), (0.0, 1.1), (0.25, 0.5)]))}


@st.composite
def fitted(draw, dtype):
    """Cases whose best proposal no rounding decides: two of almost the same L are the same mask, or there are none."""
    case = draw(ranked(dtype))
    rng, shape = draw(randoms()), case["R"].shape
    count = len(case["proposals"])
    objectness = draw(st.sampled_from([1, 1, 0])) * rng.integers(0, 9, max(count - 2, count // 2)) / 8
    objectness = np.concatenate([objectness, objectness[:2]])  # as `ranked` repeats proposals
    weights = [float(w) for w in rng.choice([0, 0.5, 1, 2], 5)]
    weights = weights if any(weights) else draw(st.sampled_from([[0.0, 0.0, 1.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0, 0.0]]))
    case = {key: case[key] for key in ("R", "proposals", "Q", "width", "area")} | {
        "N": rng.integers(0, 9, shape) / 8, "objectness": objectness, "weights": weights,
        "seed_pixel": draw(st.sampled_from(["free", "prefer", "require"])),
        "smooth": draw(st.sampled_from([0.0, 0.25, 2.0])),
    }  # fmt: skip
    known: dict[float, bytes] = {}
    for S, o in zip(case["proposals"], objectness):
        S = resize_nearest(S, shape)
        if S.any():
            given = (case[key] for key in ("N", "Q"))
            L = fit_score(fit_terms(case["R"], S, *given, o, case["width"], case["smooth"]), weights)
            key = S.tobytes() + np.float64(o).tobytes()
            assume(all(other == key or abs(L - near) > 1e-4 for near, other in known.items()))
            known[L] = key
    return case


@st.composite
def responses(draw, dtype):
    M = draw(exact_maps(dtype, ("coarse", "fine", "constant", "negative", "plateaus")))[0, 0]
    return {"M": M, "shape": draw(pairs(1, 16))}


@st.composite
def suppressed(draw, dtype):
    rng, shape = draw(randoms()), draw(pairs(2, 6))
    # Crowded: three peaks of one class, and few masks, so that a peak has several choices, and loses some.
    crowded = draw(st.booleans())
    count = int(rng.integers(5, 11)) if crowded else draw(st.integers(0, 7))
    classes, places, different = (1, 1, 4) if crowded else (3, 3, count)
    some = [masks(rng, shape) for _ in range(different)]
    arrays = {
        "masks": np.array([some[i % different] for i in rng.permutation(count)], bool).reshape(count, *shape),
        "scores": rng.integers(0, 4, count) / 4.0,
        "labels": rng.integers(0, classes, count),
        "peaks": np.stack([rng.integers(0, places, count), rng.integers(0, 3, count)], axis=1),
        "prms": np.array([response(rng, shape) for _ in range(count)]).reshape(count, *shape),
    }
    options = {"nested": draw(st.sampled_from([None, None, 0.6, 1.0])), "again": draw(st.booleans())}
    return {
        **arrays, "threshold": draw(st.sampled_from([0.25, 0.3, 0.5])), "per_class": draw(st.booleans()), **options,
    }  # fmt: skip


def weighed(implementation, arguments):
    terms = {key: arguments[key] for key in ("R", "S", "Q", "width")}
    score = implementation.retrieval.score(**arguments)
    return {"terms": np.array([float(term) for term in implementation.retrieval.terms(**terms)]), "score": score}


def chosen(implementation, arguments):
    best = implementation.retrieval.best_proposal(**arguments)
    index, score, terms = (-1, 0.0, (0.0, 0.0, 0.0)) if best is None else best  # -1: none may be chosen
    return {"index": _integers(index), "score": score, "terms": np.array([float(term) for term in terms])}


def fit(implementation, arguments):
    best = implementation.retrieval.best_fit(**arguments)
    index, L, terms = (-1, 0.0, (0.0,) * 5) if best is None else best
    # Near 1 a logarithm has no relative precision.
    score = confident_score(1.0, L, arguments["weights"])
    return {"index": _integers(index), "score": score, "terms": np.array([float(term) for term in terms])}


def instances(arguments):
    """The instances that a case of `suppressed` describes; each one's proposal is its place in the list."""
    arrays = (arguments[key] for key in ("labels", "masks", "scores", "peaks", "prms"))
    return [
        Instance(int(label), mask, float(score), 0.5, tuple(float(p) for p in peak), prm, k, (0.0, 0.0, 0.0))
        for k, (label, mask, score, peak, prm) in enumerate(zip(*arrays))
    ]


def kept(implementation, arguments):
    options = {key: arguments[key] for key in ("threshold", "per_class", "nested", "again")}
    left = implementation.retrieval.nms(instances(arguments), **options)
    prms = np.array([one.prm for one in left], np.float64)
    return {"kept": np.array([one.proposal for one in left], np.int64), "prms": prms}


def dense(function):
    return lambda implementation, arguments: {
        "mask": _truths(getattr(implementation.retrieval, function)(**arguments))
    }


def _truths(mask):
    array = np.asarray(mask)
    if array.dtype != bool:
        raise TypeError(f"truth values expected, not {array.dtype}")
    return array


# ---- WISE


@st.composite
def classified(draw, dtype):
    rng, shape = draw(randoms()), draw(pairs(1, 4))
    scores, labels = rng.integers(-40, 41, shape) / 8.0, rng.integers(0, 2, shape)
    scores[0, 0], labels[0, 0] = 5, 0  # where all are right the loss is a logarithm of nearly 1, without digits
    return {"scores": scores, "labels": labels}


@st.composite
def peaks_with_maps(draw, dtype):
    """Few values, so that ties are common, and few peaks more than pixels, so that they meet."""
    rng, (h, w), count = draw(randoms()), draw(pairs(1, 5)), draw(st.integers(0, 6))
    peaks = np.stack([np.sort(rng.integers(0, 4, count)), np.arange(count), rng.integers(0, 9, count)], axis=1)
    maps = rng.integers(0, 4, (count, h, w)) / 4.0 * rng.choice([0, 1, 1], (count, 1, 1))
    return {"peaks": peaks, "prms": maps, "size": draw(st.sampled_from([(h, w), (2 * h, 3 * w), (1, 4), (7, 2)]))}


@st.composite
def seeded(draw, dtype):
    rng, size = draw(randoms()), draw(pairs(1, 6))
    count, n = draw(st.integers(0, 5)), draw(st.integers(0, 6))
    proposals = np.array([masks(rng, size) for _ in range(n)], bool).reshape(n, *size)
    seeds = np.stack([*(rng.integers(0, side, count) for side in size), rng.integers(1, 4, count)], axis=1)
    return {"masks": proposals, "objectness": rng.integers(0, 5, n) / 4.0 * rng.choice([0, 1, 1]), "seeds": seeds}


@st.composite
def detected(draw, dtype):
    case, rng = draw(seeded(dtype)), draw(randoms())
    found = [masks(rng, case["masks"].shape[1:]) for _ in range(draw(st.integers(0, 4)))]
    detections = np.array(found, bool).reshape(-1, *case["masks"].shape[1:])
    return {"detections": detections, "masks": case["masks"], "objectness": case["objectness"],
            "threshold": draw(st.sampled_from([0.75, 0.5, 0.0]))}  # fmt: skip


def assigned(implementation, arguments):
    """What each covered seed is given, and what three numbers draw by its law."""
    found = implementation.pseudo_labels.assign(**arguments)
    n, us = len(arguments["masks"]), (0.0, 0.3, 0.99)
    law = np.array([one[4] for one in found], np.float64).reshape(len(found), n)
    # A number at the very edge of two proposals is decided by rounding.
    near = np.abs(law.cumsum(1)[:, :-1, None] - us)
    clear = [u for u, by in zip(us, near.transpose(2, 0, 1)) if not ((by > 0) & (by < 1e-6)).any()]
    draws = [[implementation.pseudo_labels.drawn(one, u) for u in clear] for one in law]
    columns = {name: np.array([int(one[i]) for one in found], np.int64)
               for i, name in ((0, "seed"), (1, "proposal"), (3, "label"))}  # fmt: skip
    scores = np.array([float(one[2]) for one in found])
    return columns | {"score": scores, "probabilities": law, "drawn": np.array(draws, np.int64)}


# ---- the table, in the order of a port

EXACT = {torch.float64: 0.0, torch.float32: 0.0}
WALK = ("prm::walk_ratio", "prm::walk_conv2d")
_POOL = ("prm::peak_stimulation",)
_POOL_BACKWARD = (*_POOL, "prm::peak_stimulation_backward")
_CONTOURS, _RESIZE = ("prm::run_contours",), ("prm::run_resize",)
_TERMS = ("prm::run_sums", *_CONTOURS)


def _max_poolings(dtype):
    return poolings(dtype, average=False)


def _avg_poolings(dtype):
    return poolings(dtype, average=True)


def _walk(name, strategy, leaks=False, calls=(), answer=None, equation="Eq. 4-5", table=None, **more):
    table = table or (tolerances.WALK if leaks else tolerances.OPERATOR)
    clear = (lambda dtype: strategy(dtype).filter(lambda arguments: decided(name, arguments))) if leaks else strategy
    return Operator(f"peak_backprop.{name}", equation, clear, answer or walked(name, leaks), table, calls, **more)


OPERATORS = {
    operator.name: operator
    for operator in (
        Operator(
            "peak_stimulation.forward", "Eq. 1-2", maps_to_pool, pooled, tolerances.POOLING, _POOL, edges.maps_to_pool,
            comparisons,
        ),
        Operator(
            "peak_stimulation.backward", "Eq. 3", maps_and_gradients, pooled_backward, tolerances.POOLING_GRADIENT,
            _POOL_BACKWARD, edges.maps_and_gradients, comparisons,
        ),
        _walk("conv2d", convolutions, leaks=True, calls=WALK),
        _walk("linear", linears, leaks=True),
        _walk("avg_pool2d", _avg_poolings, leaks=True, calls=WALK, edges=edges.averages),
        _walk("adaptive_avg_pool2d", adaptive_poolings, leaks=True),
        _walk("mean", means, leaks=True),
        _walk("interpolate", interpolations, leaks=True),
        _walk("max_pool2d", _max_poolings, equation="section 3.3", table=tolerances.WALK),
        _walk("adaptive_max_pool2d", adaptive_poolings, equation="section 3.3"),
        _walk("add", additions, answer=added, equation="-"),
        _walk("summation", sums, equation="-"),
        _walk("pad", pads, leaks=True, equation="-", table=tolerances.WALK),
        _walk("concatenate", concatenations, answer=concatenated, equation="-"),
        _walk("slice_axis", slices, equation="-"),
        _walk("multiply", gated, equation="-"),
        _walk("reshape", reshapes, equation="-"),
        _walk("expand", gated, equation="-"),
        _walk("permute", permutations, equation="-"),
        _walk("transpose", transpositions, equation="-"),
        _walk("batch_norm", unchanged, equation="-"),
        _walk("normalization", unchanged, equation="-"),
        _walk("activation", unchanged, equation="section 3.3"),
        Operator("retrieval.contour", "Eq. 6", contours, dense("contour"), EXACT, _CONTOURS),
        Operator("retrieval.background", "Eq. 6", backgrounds, dense("background"), EXACT),
        Operator("retrieval.score", "Eq. 6", scored, weighed, tolerances.OPERATOR, _TERMS),
        Operator("retrieval.resize_nearest", "Eq. 6", resized, dense("resize_nearest"), EXACT, _RESIZE),
        Operator("retrieval.best_proposal", "Algorithm 1", ranked, chosen, tolerances.OPERATOR, _TERMS),
        Operator("retrieval.enlarged_response", "second choice", responses,
                 lambda port, arguments: {"N": port.retrieval.enlarged_response(**arguments)}, tolerances.OPERATOR),
        Operator("retrieval.best_fit", "second choice", fitted, fit, tolerances.OPERATOR, ("prm::run_sums",)),
        Operator("retrieval.nms", "Algorithm 1", suppressed, kept, tolerances.OPERATOR, ("prm::run_intersections",)),
        Operator("pseudo_labels.class_loss", "WISE", classified,
                 lambda port, arguments: {"loss": port.pseudo_labels.class_loss(**arguments)}, tolerances.OPERATOR),
        Operator("pseudo_labels.seed_map", "WISE", peaks_with_maps,
                 lambda port, arguments: {"seeds": _integers(port.pseudo_labels.seed_map(**arguments))}, EXACT),
        Operator("pseudo_labels.assign", "WISE", seeded, assigned, tolerances.OPERATOR),
        Operator("pseudo_labels.refine", "WISE", detected,
                 lambda port, arguments: {"masks": _truths(port.pseudo_labels.refine(**arguments))}, EXACT,
                 ("prm::run_intersections",)),
    )
}  # fmt: skip
