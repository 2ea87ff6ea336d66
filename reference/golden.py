"""Golden vectors: small cases of every equation with the oracle's answers, as files for ports that speak no Python.

`golden.md` describes the files and every function in them; `write` puts it beside them. `check` holds an implementation
against such a folder.
"""

import inspect
import io
import json
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np

from prm import InputError
from prm.files import atomic_write, reason

from . import check_answers, network, peak_backprop, peak_stimulation, retrieval

ORACLE = SimpleNamespace(
    peak_stimulation=peak_stimulation, peak_backprop=peak_backprop, retrieval=retrieval, network=network
)
HERE = Path(__file__).parent


@dataclass(frozen=True)
class Case:
    """One call: the function's dotted name in `prm.reference`, the edge it covers, its arguments by name."""

    name: str
    function: str
    sentence: str
    arguments: dict


class Result(NamedTuple):
    """One array of one case: state is "right", "wrong" or "absent" (there is no such function); text says what it is.

    key: where the expected array lies in answers.npz. text: one line, empty where the state is "right".
    """

    case: str
    key: str
    state: str
    text: str


# ---- what a function answers: (get, name, arguments) -> the answers by name; get(dotted name) is the function


def _answers(*names, **always):
    """The function's result under these names; `always` are arguments that no port has."""

    def run(get, name, arguments):
        result = get(name)(**arguments, **always)
        return dict(zip(names, result if len(names) > 1 else (result,)))

    return run


def _parts(get, name, arguments):
    return {f"P_U_{i}": part for i, part in enumerate(get(name)(**arguments))}


def _forward(get, name, arguments):
    result = get(name)(**arguments)
    return {key: getattr(result, key, None) for key in ("scores", "peaks", "G")}


def _backward(get, name, arguments):
    arguments = dict(arguments)
    grad_scores = arguments.pop("grad_scores")
    return {"grad_M": get(name)(grad_scores=grad_scores, result=get("peak_stimulation.forward")(**arguments))}


def _best_proposal(get, name, arguments):
    best = get(name)(**{**arguments, "proposals": list(arguments["proposals"])})
    return dict(zip(("index", "score", "terms"), best or (-1, 0.0, (0.0, 0.0, 0.0))))


def _nms(get, name, arguments):
    a = dict(arguments)
    columns = zip(*(a.pop(key) for key in ("labels", "scores", "peaks", "masks", "prms")))
    instances = [
        retrieval.Instance(int(label), mask, float(score), 0.5, tuple(peak.tolist()), prm, k, (0.0, 0.0, 0.0))
        for k, (label, score, peak, mask, prm) in enumerate(columns)
    ]
    kept = get(name)(instances=instances, **a)
    return {"kept": np.array([one.proposal for one in kept], np.int64), "prms": np.array([one.prm for one in kept])}


def _maps(get, name, arguments):
    return {"maps": get(name)(**arguments)[arguments["network"].output]}


def _walk(get, name, arguments):
    a = dict(arguments)
    activations = get("network.forward")(network=a["network"], image=a.pop("image"))
    walk = get(name)(**a, activations=activations)
    return {key: getattr(walk, key, None) for key in ("P", "prm", "arrived", "leaked", "empty")}


def _segment(get, name, arguments):
    found = get(name)(**arguments)
    columns = {
        "labels": [one.label for one in found], "chosen": [one.proposal for one in found],
        "scores": [one.score for one in found], "confidences": [one.confidence for one in found],
        "positions": [one.peak for one in found], "terms": [one.terms for one in found],
        "prms": [one.prm for one in found],
    }  # fmt: skip
    return {key: np.array(column) for key, column in columns.items()}


_leaking = _answers("P_U", "leaked", return_leak=True)
_alone = _answers("P_U")

# In porting order: function -> (equation, what it answers).
FUNCTIONS = {
    "peak_stimulation.enlarge": ("Eq. 1-3", _answers("enlarged")),
    "peak_stimulation.forward": ("Eq. 1-2", _forward),
    "peak_stimulation.backward": ("Eq. 3", _backward),
    "peak_backprop.start": ("Eq. 5", _answers("P")),
    "peak_backprop.shift": ("Eq. 4-5", _answers("U_hat")),
    "peak_backprop.conv2d": ("Eq. 4-5", _leaking),
    "peak_backprop.linear": ("Eq. 4-5", _leaking),
    "peak_backprop.fold_batch_norm": ("Eq. 4-5", _answers("folded_W", "folded_bias")),
    "peak_backprop.batch_norm": ("Eq. 5", _alone),
    "peak_backprop.normalization": ("Eq. 5", _alone),
    "peak_backprop.activation": ("Eq. 5", _alone),
    "peak_backprop.max_pool2d": ("Eq. 5", _alone),
    "peak_backprop.adaptive_max_pool2d": ("Eq. 5", _alone),
    "peak_backprop.avg_pool2d": ("Eq. 4-5", _leaking),
    "peak_backprop.adaptive_avg_pool2d": ("Eq. 4-5", _leaking),
    "peak_backprop.mean": ("Eq. 4-5", _leaking),
    "peak_backprop.interpolate": ("Eq. 4-5", _leaking),
    "peak_backprop.add": ("Eq. 5", _parts),
    "peak_backprop.concatenate": ("Eq. 5", _parts),
    "peak_backprop.slice_axis": ("Eq. 5", _alone),
    "peak_backprop.multiply": ("Eq. 5", _alone),
    "peak_backprop.reshape": ("Eq. 5", _alone),
    "peak_backprop.expand": ("Eq. 5", _alone),
    "peak_backprop.permute": ("Eq. 5", _alone),
    "peak_backprop.transpose": ("Eq. 5", _alone),
    "peak_backprop.peak_response_map": ("Eq. 5", _answers("R", "empty")),
    "network.forward": ("Eq. 4-5", _maps),
    "network.walk": ("Eq. 4-5", _walk),
    "retrieval.contour": ("Eq. 6", _answers("S_hat")),
    "retrieval.background": ("Eq. 6", _answers("Q")),
    "retrieval.terms": ("Eq. 6", _answers("instance", "boundary", "class_aware")),
    "retrieval.score": ("Eq. 6", _answers("score")),
    "retrieval.resize_nearest": ("Eq. 6", _answers("resized")),
    "retrieval.image_position": ("Algorithm 1", _answers("row", "column")),
    "retrieval.overlap": ("Algorithm 1", _answers("iou")),
    "retrieval.select_classes": ("Algorithm 1", lambda *a: _integers(_answers("classes")(*a))),
    "retrieval.select_peaks": ("Algorithm 1", lambda *a: _integers(_answers("indices")(*a))),
    "retrieval.best_proposal": ("Algorithm 1", _best_proposal),
    "retrieval.nms": ("Algorithm 1", _nms),
    "retrieval.segment": ("Algorithm 1", _segment),
}


def _integers(answers):
    """Lists of indices, which NumPy would take for floats where they are empty."""
    return {key: np.asarray(value, np.int64) for key, value in answers.items()}


# ---- the cases


def numbers(seed, *shape, low=-16, high=16) -> np.ndarray:
    """Multiples of 1/8 (exact in every floating dtype) from low / 8 to high / 8, by a generator that never changes."""
    values, state = [], seed
    for _ in range(int(np.prod(shape))):
        state = (1103515245 * state + 12345) % 2**31
        values.append(low + (state >> 16) % (high - low + 1))
    return np.array(values, np.float64).reshape(shape) / 8


def visits(seed, *shape) -> np.ndarray:
    """P(V): multiples of 1/8 in [0, 1]."""
    return numbers(seed, *shape, low=0, high=8)


def array(text) -> np.ndarray:
    """Rows apart by "/", numbers by spaces -> (rows, columns)."""
    return np.array([[float(number) for number in row.split()] for row in text.split("/")])


def mask(text) -> np.ndarray:
    """Rows apart by spaces, "#" for True -> bool (rows, columns)."""
    return np.array([[pixel == "#" for pixel in row] for row in text.split()])


def cases() -> Iterator[Case]:
    """All cases, in porting order. Nothing in them is random."""
    for function in FUNCTIONS:
        module, short = function.split(".")
        short = f"network_{short}" if module == "network" else short
        for name, sentence, arguments in CASES[function]:
            yield Case(f"{short}_{name}" if name else short, function, sentence, _complete(function, arguments))


def _complete(function, arguments):
    """The arguments with those that have a default in the oracle written out: a port needs no defaults."""
    source = "peak_stimulation.forward" if function == "peak_stimulation.backward" else function
    return {**arguments, **{key: value for key, value in defaults(source).items() if key not in arguments}}


def defaults(function) -> dict:
    """The function's optional arguments, by the names that the files have always given them."""
    parameters = inspect.signature(_lookup(ORACLE, function)).parameters.values()
    found = {p.name: p.default for p in parameters if p.default is not p.empty and p.name != "return_leak"}
    for written, today in getattr(_lookup(ORACLE, function), "formerly", {}).items():
        found[written] = found.pop(today) if isinstance(today, str) else [found.pop(name) for name in today]
    return found


ROW = array("2 0 3 4 3 1")  # sorted 0 1 2 3 3 4: lower median 2, mean 13/6
TWO = array("1 0 0 0 / 0 0 0 0 / 0 0 0 3")
UNEVEN = array("0 1 0.5 / 2 0.25 0 / 0.5 3 1.25")
TIES = numbers(3, 1, 2, 5, 6, low=0, high=2)


def _m(*maps):
    """Maps (H, W) -> M (1, C, H, W)."""
    return np.array(maps)[None]


CASES: dict[str, list[tuple[str, str, dict]]] = {
    "peak_stimulation.enlarge": [
        ("by_3", "Corners stay corners; both axes are interpolated.", dict(M=_m(UNEVEN), factor=3)),
        ("one_row_by_8", "An axis of one position repeats it.", dict(M=_m(array("0 2 1")), factor=8)),
        ("one_column_by_2", "One column: only the rows are interpolated.", dict(M=_m(array("0 / 2 / -1")), factor=2)),
        ("by_1", "Factor 1 changes nothing.", dict(M=numbers(1, 1, 2, 2, 3), factor=1)),
        ("constant", "A constant stays exactly constant, so that ties stay ties.",
         dict(M=_m(np.full((2, 3), 0.7)), factor=3)),
    ],
    "peak_stimulation.forward": [
        ("two_peaks", "Two peaks in corners; the score is their mean.", dict(M=_m(TWO))),
        ("images_and_classes", "Images and classes are apart; rows in order (image, class, row, column).",
         dict(M=numbers(2, 2, 2, 4, 4))),
        ("lower_median", "An even count: the lower of the two middle values is the median.", dict(M=_m(ROW))),
        ("mean", "The mean as threshold drops a peak that the median keeps.", dict(M=_m(ROW), threshold="mean")),
        ("max", "Threshold max: a peak that equals the maximum counts, here two.",
         dict(M=_m(array("5 0 4 0 5")), threshold="max")),
        ("number_reached", "A peak counts at equality with the threshold.", dict(M=_m(ROW), threshold=2.0)),
        ("no_threshold", "Threshold null: every local maximum counts, negative ones too.",
         dict(M=numbers(4, 1, 1, 5, 5), threshold=None)),
        ("unreachable", "No peak reaches the threshold: the first maximum of the map alone counts.",
         dict(M=_m(array("1 0 2 / 0 0 0 / 2 0 1")), threshold=100.0)),
        ("window_3", "Window 3: peaks two apart are two.", dict(M=_m(array("3 0 2 0 0 1")), threshold=None)),
        ("window_5", "Window 5 joins what window 3 separates.",
         dict(M=_m(array("3 0 2 0 0 1")), window=5, threshold=None)),
        ("window_larger_than_map", "The window is clipped at the border.",
         dict(M=numbers(5, 1, 1, 3, 2), window=7, threshold=None)),
        ("tie_in_window", "Of equal neighbours, diagonal ones too, the first in row-major order is the peak.",
         dict(M=_m(array("0 0 2 / 0 2 0 / 0 0 0"), array("1 1 0 / 0 0 0 / 0 3 3")))),
        ("plateaus", "Plateaus: a position is a peak when no equal one comes earlier in its own window.",
         dict(M=TIES, threshold=None)),
        ("plateaus_window_5", "The same plateaus under window 5.", dict(M=TIES, window=5, threshold=None)),
        ("constant", "A constant map has one peak, (0, 0).", dict(M=_m(np.full((3, 3), -0.5), np.zeros((3, 3))))),
        ("one_pixel", "A map of one pixel is its own peak.", dict(M=_m(array("-2")))),
        ("one_column", "A map of one column.", dict(M=_m(array("1 / 3 / 0 / 4")))),
        ("negative_map", "Nothing outside the map takes part: all values negative, peaks at the border.",
         dict(M=_m(array("-1 -2 -3 / -2 -4 -3 / -3 -3 -1")))),
        ("no_images", "No images: no scores, no peaks.", dict(M=np.zeros((0, 2, 3, 3)))),
        ("gaussian", "f is a Gaussian: cut off at the border, sums where two overlap.",
         dict(M=_m(TWO), f=("gaussian", 0.8))),
        ("upsample_3", "Peaks on the map enlarged by 3, in enlarged coordinates.", dict(M=_m(UNEVEN), upsample=3)),
        ("upsample_8_one_row", "Enlarged by 8; with H = 1 all 8 rows are equal and the first holds the peaks.",
         dict(M=_m(array("0 2 0.25 1.5")), upsample=8)),
        ("upsample_2_one_column", "Enlarged by 2 with W = 1.", dict(M=_m(array("0 / 2 / 1.5 / 3")), upsample=2)),
        ("upsample_3_constant", "A constant map, enlarged, still has one peak.",
         dict(M=_m(np.full((2, 2), 0.7)), upsample=3)),
        ("upsample_2_gaussian", "The Gaussian's distances are enlarged positions.",
         dict(M=_m(UNEVEN), f=("gaussian", 1.5), upsample=2)),
    ],
    "peak_stimulation.backward": [
        ("two_peaks", "Every peak gets dL/ds / N.", dict(grad_scores=array("6"), M=_m(TWO))),
        ("images_and_classes", "Each class of each image has its own gradient; negative ones and zero too.",
         dict(grad_scores=array("2 -1 / 0 3"), M=numbers(2, 2, 2, 4, 4))),
        ("unreachable", "The one peak of an unreachable threshold gets the whole gradient.",
         dict(grad_scores=array("2"), M=_m(array("1 0 2 / 0 0 0 / 2 0 1")), threshold=100.0)),
        ("gaussian", "The gradient spreads as f does.",
         dict(grad_scores=array("2"), M=_m(TWO), f=("gaussian", 0.8))),
        ("upsample_3", "Back through the enlargement by its transpose.",
         dict(grad_scores=array("4"), M=_m(UNEVEN), upsample=3)),
        ("upsample_8_one_row", "H = 1: all eight rows go back to the one.",
         dict(grad_scores=array("1"), M=_m(array("0 2 0.25 1.5")), upsample=8)),
    ],
    "peak_backprop.start": [
        ("plain", "One at the peak.", dict(position=[1, 0, 2], map_shape=[2, 2, 3])),
        ("upsample_8", "Four source positions share the start.",
         dict(position=[1, 9, 14], map_shape=[2, 3, 4], upsample=8)),
        ("upsample_8_corner", "The last enlarged position is the last source position.",
         dict(position=[0, 23, 31], map_shape=[1, 3, 4], upsample=8)),
        ("upsample_3_one_row", "H = 1: two source positions.",
         dict(position=[0, 1, 4], map_shape=[1, 1, 3], upsample=3)),
    ],
    "peak_backprop.shift": [
        ("negative", "One minimum over all channels is taken away.", dict(U=np.array([[[-2.0, 3]], [[0, 1]]]))),
        ("positive", "Nothing below zero: nothing is taken away.", dict(U=np.array([[[1.0, 3.0]]]))),
    ],
    "peak_backprop.conv2d": [
        ("by_hand", "One window; a negative weight takes nothing.",
         dict(P=_m(array("22"))[0], U=_m(array("1 2 / 3 4"))[0], W=_m(array("1 -5 / 2 1")))),
        ("plain", "Several channels, overlapping windows.",
         dict(P=visits(1, 3, 3, 3), U=numbers(2, 2, 4, 5, low=0), W=numbers(3, 3, 2, 2, 3))),
        ("strided", "Stride (2, 1): rows and columns differ.",
         dict(P=visits(4, 2, 2, 3), U=numbers(5, 2, 5, 4, low=0), W=numbers(6, 2, 2, 2, 2), stride=[2, 1])),
        ("padded_pair", "Padding (rows, columns) is zero and takes nothing.",
         dict(P=visits(7, 2, 3, 5), U=numbers(8, 1, 3, 3, low=0), W=numbers(9, 2, 1, 3, 3), padding=[1, 2])),
        ("padded_sides", "Padding (left, right, top, bottom), all different.",
         dict(P=visits(10, 1, 4, 5), U=numbers(11, 1, 3, 3, low=0), W=numbers(12, 1, 1, 2, 2, low=0),
              padding=[1, 2, 0, 2])),
        ("dilated", "Dilation (1, 2).",
         dict(P=visits(13, 1, 3, 3), U=numbers(14, 2, 4, 5, low=0), W=numbers(15, 1, 2, 2, 2), dilation=[1, 2])),
        ("grouped", "Two groups: no mass crosses them.",
         dict(P=visits(16, 4, 2, 2), U=numbers(17, 4, 3, 3, low=0), W=numbers(18, 4, 2, 2, 2), groups=2)),
        ("strided_grouped", "Stride, padding, dilation and groups at once.",
         dict(P=visits(19, 2, 2, 3), U=numbers(20, 4, 5, 5, low=0), W=numbers(21, 2, 2, 3, 2), stride=2,
              padding=[1, 1], dilation=[2, 1], groups=2)),
        ("depthwise", "Groups = channels, two filters each.",
         dict(P=visits(22, 4, 2, 2), U=numbers(23, 2, 3, 3, low=0), W=numbers(24, 4, 1, 2, 2), groups=2)),
        ("shift", "Input below zero is lifted by one minimum of all channels; padding stays zero.",
         dict(P=visits(25, 2, 3, 3), U=numbers(26, 2, 3, 3), W=numbers(27, 2, 2, 3, 3), padding=1)),
        ("leak", "What no input excites leaks: zeros under the window, and a filter without a positive weight.",
         dict(P=np.array([[[5.0, 3]], [[7, 1]]]), U=np.array([[[0.0, 0, 2]]]),
              W=np.array([[[[1.0, 1]]], [[[-1, -0.5]]]]))),
        ("leak_bound", "Z of 2^-25 is below 1e-7 * max(U_hat) * sum(W+) and leaks, 2^-22 is above it.",
         dict(P=np.array([[[1.0, 2, 4]]]), U=np.array([[[1.0, 2.0**-25, 2.0**-22]]]), W=np.ones((1, 1, 1, 1)))),
        ("leak_bound_per_filter", "The bound holds sum(W+) of each filter: scaling a filter moves no mass.",
         dict(P=np.array([[[1.0, 2]], [[4, 8]]]), U=np.array([[[1.0, 2.0**-22]]]),
              W=np.array([8.0, 1 / 8]).reshape(2, 1, 1, 1))),
        ("zero_input", "All input zero: everything leaks.",
         dict(P=visits(28, 1, 2, 2), U=np.zeros((1, 2, 2)), W=np.ones((1, 1, 1, 1)))),
        ("signed", "The sign-split rule: negative input under negative weights takes its share, nothing is shifted.",
         dict(P=visits(29, 2, 3, 3), U=numbers(30, 2, 3, 3), W=numbers(31, 2, 2, 2, 2), padding=[0, 1, 0, 1],
              signed=True)),
        ("signed_leak", "Sign-split: input and weights of opposite signs everywhere leak.",
         dict(P=np.array([[[3.0, 1]]]), U=np.array([[[-1.0, -2, 4]]]), W=np.array([[[[2.0, -1]]]]), signed=True)),
    ],
    "peak_backprop.linear": [
        ("vector", "A vector; one output has no positive weight.",
         dict(P=np.array([1.0, 2, 4]), U=np.array([1.0, 2, 0, 3]), W=array("1 2 3 -1 / -1 -1 -2 0 / 2 -3 1 4"))),
        ("shift", "Input below zero is lifted.",
         dict(P=np.array([1.0, 0.5]), U=np.array([-1.0, 1, 3]), W=array("1 1 1 / 0.5 -2 4"))),
        ("positions", "Leading axes are positions; the minimum and the maximum are of the whole array.",
         dict(P=visits(1, 2, 2), U=array("1 2 0 / 0 0 0"), W=array("1 2 -1 / 1 0.5 3"))),
    ],
    "peak_backprop.fold_batch_norm": [
        ("negative_gamma", "A negative gamma turns the signs of a filter before W+ is taken.",
         dict(W=numbers(1, 2, 1, 2, 2), bias=np.array([0.5, -1]), gamma=np.array([2.0, -0.5]),
              beta=np.array([0.25, 1]), mean=np.array([1.0, -2]), var=np.array([4.0, 0.25]))),
        ("without_parameters", "No bias, no gamma, no beta; another eps.",
         dict(W=numbers(2, 2, 1, 1, 2), bias=None, gamma=None, beta=None, mean=np.array([1.0, -2]),
              var=np.array([0.25, 0.0]), eps=0.0625)),
    ],
    "peak_backprop.batch_norm": [("", "On its own it passes P on.", dict(P=visits(1, 2, 2, 2)))],
    "peak_backprop.normalization": [("", "Norms by the image's own statistics pass P on.", dict(P=visits(3, 2, 2, 2)))],
    "peak_backprop.activation": [("", "Activations pass P on, whatever their slope.", dict(P=visits(2, 2, 2, 2)))],
    "peak_backprop.max_pool2d": [
        ("overlapping", "Overlapping windows that share an argmax add up.",
         dict(P=np.array([[[1.0, 2, 4]]]), U=np.array([[[0.0, 5, 1, 5, 2]]]), kernel=[1, 3], stride=1)),
        ("ties", "Ties go to the first in row-major order, also in a window of zeros.",
         dict(P=np.array([[[1.0, 2]]]), U=np.array([[[3.0, 3, 0, 0], [3, 1, 0, 0]]]), kernel=2)),
        ("negative_padded", "Padding is -inf: it never wins, though the map is negative.",
         dict(P=visits(1, 1, 2, 2), U=np.array([[[-1.0, -2], [-3, -4]]]), kernel=2, padding=1)),
        ("dilated", "Dilation (2, 1), stride 1.",
         dict(P=visits(2, 2, 2, 3), U=numbers(3, 2, 4, 4), kernel=[2, 2], stride=1, dilation=[2, 1])),
        ("padded_pair", "Padding (rows, columns) and stride (rows, columns) differ.",
         dict(P=visits(4, 1, 2, 2), U=numbers(5, 1, 3, 3), kernel=2, stride=[1, 2], padding=[0, 1])),
        ("ceil_mode", "Ceil mode: a last, clipped window on each axis.",
         dict(P=visits(6, 2, 2, 3), U=numbers(7, 2, 3, 5), kernel=2, ceil_mode=True)),
        ("ceil_mode_dropped", "Ceil mode: a window that would start in the padding behind is left out.",
         dict(P=visits(8, 1, 2, 2), U=numbers(9, 1, 4, 4), kernel=2, stride=3, padding=1, ceil_mode=True)),
    ],
    "peak_backprop.adaptive_max_pool2d": [
        ("bins_overlap", "5 x 3 to 3 x 2: bins overlap.", dict(P=visits(1, 2, 3, 2), U=numbers(2, 2, 5, 3))),
        ("enlarging", "2 to 3: a bin of one position is used more than once; ties go to the first.",
         dict(P=visits(3, 1, 3, 1), U=np.array([[[0.0, 0], [1, 1]]]))),
    ],
    "peak_backprop.avg_pool2d": [
        ("plain", "In proportion to the input.", dict(P=visits(1, 2, 2, 2), U=numbers(2, 2, 4, 4, low=0), kernel=2)),
        ("overlapping", "Overlapping windows, stride (1, 2), input below zero is shifted.",
         dict(P=visits(3, 1, 2, 2), U=numbers(4, 1, 3, 5), kernel=[2, 3], stride=[1, 2])),
        ("padded", "Padding counts in the divisor, which cancels.",
         dict(P=visits(5, 1, 3, 3), U=numbers(6, 1, 4, 4, low=0), kernel=2, padding=1)),
        ("padded_not_counted", "Padding does not count in the divisor: the same answer.",
         dict(P=visits(5, 1, 3, 3), U=numbers(6, 1, 4, 4, low=0), kernel=2, padding=1, count_include_pad=False)),
        ("ceil_mode", "Ceil mode: the last windows are clipped.",
         dict(P=visits(7, 1, 2, 3), U=numbers(8, 1, 3, 5, low=0), kernel=2, ceil_mode=True)),
        ("divisor_override", "A divisor of one's own cancels too.",
         dict(P=visits(9, 1, 2, 2), U=numbers(10, 1, 4, 4, low=0), kernel=2, divisor_override=3)),
        ("leak", "A window of zeros leaks.",
         dict(P=np.array([[[5.0, 3]]]), U=np.array([[[0.0, 0, 2, 1]]]), kernel=[1, 2])),
    ],
    "peak_backprop.adaptive_avg_pool2d": [
        ("bins_overlap", "5 x 3 to 3 x 2: bins overlap.", dict(P=visits(1, 2, 3, 2), U=numbers(2, 2, 5, 3, low=0))),
        ("leak", "A bin of zeros leaks.", dict(P=np.array([[[5.0, 3]]]), U=np.array([[[0.0, 0, 2, 1]]]))),
    ],
    "peak_backprop.mean": [
        ("", "Every channel's P spreads over its own positions, in proportion to the input.",
         dict(P=np.array([1.0, 2]), U=numbers(1, 2, 2, 3, low=0))),
        ("leak", "A channel of zeros leaks.",
         dict(P=np.array([1.0, 2]), U=np.array([[[0.0, 0]], [[1, 3]]]))),
        ("one_axis", "Over columns alone; P may keep the axis, as here.",
         dict(P=visits(2, 2, 2, 1), U=numbers(3, 2, 2, 3), axes=(2,))),
    ],
    "peak_backprop.interpolate": [
        ("bilinear", "Bilinear by pixel centres, enlarging.", dict(P=visits(1, 1, 4, 5), U=numbers(2, 1, 2, 3, low=0))),
        ("bilinear_corners", "Bilinear, corners aligned.",
         dict(P=visits(3, 1, 4, 5), U=numbers(4, 1, 2, 3, low=0), align_corners=True)),
        ("bilinear_corners_to_one", "Corners aligned to an output of one position: the first.",
         dict(P=visits(5, 1, 1, 2), U=numbers(6, 1, 3, 3, low=1), align_corners=True)),
        ("bilinear_smaller", "Bilinear to a smaller map: positions between the taps get nothing.",
         dict(P=visits(7, 1, 2, 2), U=numbers(8, 1, 5, 5, low=0))),
        ("bilinear_scale", "By scale factors, which give the coordinates: 3 * 1.5 is cut to 4.",
         dict(P=visits(9, 1, 4, 4), U=numbers(10, 1, 3, 3, low=0), scale=[1.5, 1.5])),
        ("nearest", "Nearest, floor(p size / out).",
         dict(P=visits(11, 1, 3, 5), U=numbers(12, 1, 2, 3, low=0), mode="nearest")),
        ("nearest_scale", "Nearest by scale factors.",
         dict(P=visits(13, 1, 4, 4), U=numbers(14, 1, 3, 3, low=0), mode="nearest", scale=[1.5, 1.5])),
        ("nearest_exact", "Nearest by pixel centres.",
         dict(P=visits(15, 1, 3, 2), U=numbers(16, 1, 2, 3, low=0), mode="nearest-exact")),
        ("leak", "What interpolates zeros alone leaks.",
         dict(P=np.array([[[1.0, 2, 4, 8]]]), U=np.array([[[0.0, 2]]]), mode="nearest")),
    ],
    "peak_backprop.add": [
        ("by_sign", "Both positive, one negative, none positive, one zero.",
         dict(P=np.full((1, 1, 4), 6.0), summands=[np.array([[[1.0, 2, -1, 0]]]), np.array([[[2.0, -3, -2, 4]]])])),
        ("broadcast", "A summand of one position: its shares are summed.",
         dict(P=visits(5, 2, 2, 2), summands=[numbers(6, 2, 2, 2), np.array([[[1.0]], [[0.5]]])])),
        ("constant", "A constant takes no share.",
         dict(P=visits(7, 1, 1, 3), summands=[numbers(8, 1, 1, 3), np.full((1, 1, 3), 2.0)], constant=[1])),
    ],
    "peak_backprop.concatenate": [
        ("channels", "Each input takes its channels.", dict(P=visits(1, 3, 2, 2), shapes=[[1, 2, 2], [2, 2, 2]])),
        ("columns", "Along another axis.", dict(P=visits(2, 2, 1, 4), shapes=[[2, 1, 3], [2, 1, 1]], axis=2)),
    ],
    "peak_backprop.slice_axis": [
        ("channels", "Channels that the slice leaves out get zero.",
         dict(P=visits(1, 2, 2, 2), shape=[4, 2, 2], axis=0, start=1, stop=3)),
        ("step", "Every second column.", dict(P=visits(2, 1, 2, 2), shape=[1, 2, 4], axis=2, start=1, step=2)),
        ("from_the_end", "A negative start counts from the end.",
         dict(P=visits(3, 2, 1, 2), shape=[3, 1, 2], axis=0, start=-2)),
    ],
    "peak_backprop.multiply": [
        ("gate", "The gate takes nothing.", dict(P=visits(1, 2, 2, 2), shape=[2, 2, 2])),
        ("broadcast", "The operand was broadcast: its positions are summed.",
         dict(P=visits(2, 2, 2, 2), shape=[2, 1, 1])),
    ],
    "peak_backprop.reshape": [("", "Positions follow in row-major order.", dict(P=visits(1, 8), shape=[2, 2, 2]))],
    "peak_backprop.expand": [("", "What the copies hold adds up.", dict(P=visits(2, 2, 2, 3), shape=[2, 1, 3]))],
    "peak_backprop.transpose": [("", "Two axes change places.", dict(P=visits(3, 2, 2, 3), axes=[0, 2]))],
    "peak_backprop.permute": [("", "Positions follow their axes.", dict(P=visits(1, 3, 2, 4), axes=[1, 0, 2]))],
    "peak_backprop.peak_response_map": [
        ("", "Summed over channels, then to sum 1.", dict(P=visits(1, 3, 3, 3))),
        ("empty", "Nothing arrived: a map of zeros, flagged.", dict(P=np.zeros((2, 2, 2)))),
    ],
}  # fmt: skip


# ---- one small network: convolution with batch norm, residual sum, gate, concatenation, both poolings


def _node(name, op, *inputs, **params):
    return network.Node(name, op, inputs, params)


NODES = {
    "small": [
        _node("image", "input"),
        _node("conv1", "conv2d", "image", weight=numbers(1, 3, 2, 3, 3), padding=1),
        _node("norm1", "batch_norm", "conv1", mean=np.array([0.5, -1, 0.25]), var=np.array([4.0, 2, 9]),
              weight=np.array([1.0, -0.5, 2]), bias=np.array([0.25, 0.5, 1]), eps=1e-5),
        _node("relu1", "relu", "norm1"),
        _node("pool1", "max_pool2d", "relu1", kernel=2),
        _node("conv2", "conv2d", "pool1", weight=numbers(2, 3, 3, 1, 1), bias=np.array([0.125, -0.25, 0.5])),
        _node("sum", "add", "conv2", "pool1"),
        _node("relu2", "relu", "sum"),
        _node("squeeze", "mean", "relu2", keepdims=True),
        _node("excite", "conv2d", "squeeze", weight=numbers(3, 3, 3, 1, 1)),
        _node("gate", "sigmoid", "excite"),
        _node("gated", "multiply", "relu2", "gate"),
        _node("both", "concatenate", "gated", "pool1", axis=0),
        _node("pool2", "avg_pool2d", "both", kernel=2, stride=1),
        _node("maps", "conv2d", "pool2", weight=numbers(4, 3, 6, 1, 1), bias=np.array([3.5, 1.0, 0])),
    ],
    # Class 0 reaches the image with a part of its mass, class 1 with none: a filter has no positive weight.
    "silent": [
        _node("image", "input"),
        _node("hidden", "conv2d", "image", weight=np.array([[[[1.0, 1]]], [[[-1, -1]]]])),
        _node("maps", "conv2d", "hidden", weight=np.array([[[[1.0]], [[1]]], [[[-1.0]], [[2]]]])),
    ],
}  # fmt: skip
NETWORKS = {name: network.as_network(nodes) for name, nodes in NODES.items()}
IMAGE = numbers(9, 2, 8, 8)
R = numbers(21, 5, 6, low=0) / 32
S = mask("###... ####.. ####.. .##... ......")
Q = mask("...### ....## #..### ..#### ######")
PROPOSALS = np.array([S, ~S, mask("...... ..##.. ..##.. ...... ......"), np.zeros((5, 6), bool), np.ones((5, 6), bool)])
MASKS = np.array([
    mask("####.... ........"), mask("######## ........"), mask("..##.... ........"), mask("........ ...#####"),
    mask("........ ......##"), mask("####.... ........"), mask("....#### ........"), mask("######## ........"),
])  # fmt: skip
PRMS = np.array([numbers(seed, 2, 4, low=0) for seed in range(8)])
PRMS = PRMS / PRMS.sum(axis=(1, 2), keepdims=True)
INSTANCES = dict(
    labels=np.array([1, 0, 0, 2, 2, 1, 0, 2]), scores=np.array([0.75, 0.5, 0.5, 0.25, 0.25, 1 / 8, 1 / 16, 1 / 32]),
    peaks=array("0 3 / 0 1 / 0 2 / 1 6 / 1 3 / 0 0 / 0 5 / 0 1"), masks=MASKS, prms=PRMS,
)  # fmt: skip
SCENE = np.array([
    mask(4 * "####.... " + 4 * "........ "), mask(4 * "....#### " + 4 * "........ "),
    mask(4 * "........ " + 4 * "####.... "), mask(4 * "........ " + 4 * "....#### "),
    mask("........ .#####.. .#####.. .#####.." + 4 * " ........"),
])  # fmt: skip

CASES |= {
    "network.forward": [("", "Class response maps of the small network.", dict(network="small", image=IMAGE))],
    "network.walk": [
        ("first_peak", "From a peak of class 0 to the image.", dict(network="small", image=IMAGE, peak=[0, 1, 1])),
        ("second_peak", "From another class and position.", dict(network="small", image=IMAGE, peak=[2, 0, 2])),
        ("upsample_2", "From a peak of the maps enlarged by 2.",
         dict(network="small", image=IMAGE, peak=[1, 3, 4], upsample=2)),
        ("signed", "The convolution that sees the image splits by sign.",
         dict(network="small", image=IMAGE, peak=[0, 1, 1], signed=True)),
        ("part_leaks", "A part of the mass leaks; the map sums to 1 all the same.",
         dict(network="silent", image=np.array([[[2.0, 1, 0, 0]]]), peak=[0, 0, 1])),
        ("empty", "Everything leaks: an empty map.",
         dict(network="silent", image=np.array([[[2.0, 1, 0, 0]]]), peak=[1, 0, 2])),
    ],
    "retrieval.contour": [
        ("width_3", "Dilation minus erosion with a 3 x 3 square.",
         dict(S=mask("....... ..###.. ..###.. ..###.. .......") , width=3)),
        ("border_width_5", "The image's edge alone makes no contour.",
         dict(S=mask("####.... ####.... ####.... ####.... ........ ........"), width=5)),
        ("full", "A full mask has none.", dict(S=np.ones((3, 4), bool), width=3)),
        ("width_1", "Width 1: none.", dict(S=S, width=1)),
    ],
    "retrieval.background": [
        ("enlarged", "Enlarged by pixel centres, corners not aligned, then compared with bias times the mean.",
         dict(M=UNEVEN, shape=[6, 7], bias=0.95)),
        ("smaller", "To a smaller map; a bias above 1.", dict(M=numbers(1, 5, 5), shape=[3, 4], bias=1.5)),
        ("constant", "A constant map has no background.", dict(M=np.full((2, 2), 3.0), shape=[4, 4], bias=0.95)),
    ],
    "retrieval.terms": [
        ("", "The three sums of Eq. 6.", dict(R=R, S=S, Q=Q, width=3)),
        ("empty_mask", "An empty mask.", dict(R=R, S=np.zeros((5, 6), bool), Q=Q)),
    ],
    "retrieval.score": [("", "Eq. 6.", dict(R=R, S=S, Q=Q, alpha=0.75, beta=0.125, width=3))],
    "retrieval.resize_nearest": [
        ("larger", "3 x 2 to 5 x 7, by pixel centres.", dict(S=mask("#. .# ##"), shape=[5, 7])),
        ("smaller", "5 x 6 to 2 x 3.", dict(S=S, shape=[2, 3])),
    ],
    "retrieval.image_position": [
        ("plain", "Pixel centres of a map position.", dict(position=[1, 2], map_shape=[3, 4], image_shape=[96, 64])),
        ("upsample_8", "A position of the enlarged map, corners aligned.",
         dict(position=[9, 31], map_shape=[3, 4], image_shape=[96, 64], upsample=8)),
        ("one_row", "H = 1: every enlarged row is row 0.",
         dict(position=[1, 4], map_shape=[1, 3], image_shape=[32, 96], upsample=2)),
    ],
    "retrieval.overlap": [
        ("", "Intersection over union.", dict(A=MASKS[0], B=MASKS[1])),
        ("empty", "Two empty masks: 0.", dict(A=np.zeros((2, 2), bool), B=np.zeros((2, 2), bool))),
    ],
    "retrieval.select_classes": [
        ("", "sigmoid(0) = 0.5 reaches 0.5.", dict(s=np.array([1.0, -0.5, 0, -2]))),
        ("by_logit", "The score itself is compared.", dict(s=np.array([1.0, -0.5, 0, -2]), class_logit=-0.5)),
        ("none", "No class is there: sigmoid(1) = 0.731.", dict(s=np.array([1.0, -0.5]), t_class=0.75)),
    ],
    "retrieval.select_peaks": [
        ("", "At least half the strongest, at equality too.", dict(values=np.array([1.0, 4, 2, 1.875]), t_peak=0.5)),
        ("none_positive", "The strongest is not positive: the first strongest alone.",
         dict(values=np.array([-3.0, -1, -2, -1]), t_peak=0.5)),
        ("lower", "At least a quarter of the strongest.",
         dict(values=np.array([1.0, 4, 0.875]), t_peak=0.25)),
        ("by_value", "Above a value of one's own, not at it.",
         dict(values=np.array([1.0, 4, 2]), t_peak=0.5, peak_value=2.0)),
    ],
    "retrieval.best_proposal": [
        ("", "The highest score; empty and full masks are passed over for their areas.",
         dict(R=R, proposals=PROPOSALS, Q=Q, alpha=0.75, beta=0.125, width=3)),
        ("tie", "Of equal scores the first wins.",
         dict(R=R, proposals=PROPOSALS[[2, 0, 0]], Q=Q, alpha=0.75, beta=0.125, width=3)),
        ("other_size", "Proposals of the picture's size are resized to R's.",
         dict(R=R, proposals=SCENE, Q=Q, alpha=0.75, beta=0.125, width=3)),
        ("area", "Other limits: the full mask counts, the small one does not.",
         dict(R=R, proposals=PROPOSALS[[2, 3, 4]], Q=Q, alpha=4.0, beta=0.0078125, area=[0.25, 1.5])),
        ("none", "All are passed over: index -1, the rest zero.",
         dict(R=R, proposals=PROPOSALS[3:], Q=Q, alpha=0.75, beta=0.125, width=3)),
    ],
    "retrieval.nms": [
        ("across_classes", "IoU at the threshold suppresses; equal scores go by class, row, column; PRMs merge.",
         dict(**INSTANCES, threshold=0.5)),
        ("per_class", "Only within a class.", dict(**INSTANCES, threshold=0.5, per_class=True)),
        ("low_threshold", "A dropped instance drops nobody; its PRM goes to the first kept one that overlaps.",
         dict(**INSTANCES, threshold=0.25)),
    ],
    "retrieval.segment": [
        ("", "Algorithm 1 as a whole.",
         dict(network="small", image=IMAGE, proposals=SCENE, alpha=0.75, beta=0.0078125, bias=0.95, t_class=0.5,
              t_peak=0.25, width=3, nms_threshold=0.5)),
    ],
}  # fmt: skip

# Answers that count, index or decide: no tolerance. Everything else is compared with one.
EXACT = {"peaks", "S_hat", "Q", "resized", "classes", "indices", "index", "kept", "empty", "labels", "chosen"}


# ---- files


def write(folder) -> int:
    """Write cases.json, inputs.npz, answers.npz, README.md and check_answers.py into `folder` -> how many cases.

    Two runs on one machine give equal bytes. Every file is written whole or not at all. Raises InputError where the
    folder cannot be written.
    """
    records, inputs, answers = [], {}, {}
    keys: dict[int, str] = {}  # of arrays that are stored already: cases may share one

    def store(key, value):
        key = keys.setdefault(id(value), key)
        inputs[key] = value
        return key

    owners = [f'"{name}": {json.dumps(_nodes_out(name, one.nodes, store))}' for name, one in NETWORKS.items()]
    for case in cases():
        equation, run = FUNCTIONS[case.function]
        arrays, params = {}, {}
        for argument, value in case.arguments.items():
            key = f"{case.name}.{argument}"
            if isinstance(value, np.ndarray):
                arrays[argument] = store(key, value)
            elif isinstance(value, list) and isinstance(value[0], np.ndarray):
                arrays[argument] = [store(f"{key}_{i}", one) for i, one in enumerate(value)]
            else:
                params[argument] = value
        found, arguments = [], _with_network(case.arguments, NETWORKS)
        for name, value in run(lambda dotted: _lookup(ORACLE, dotted), case.function, arguments).items():
            key, value = f"{case.name}.{name}", _stored(value)
            how = "exact" if name in EXACT else "close"
            found.append({"name": name, "key": key, "shape": value.shape, "dtype": str(value.dtype), "compare": how})
            answers[key] = value
        records.append({
            "name": case.name, "function": case.function, "equation": equation, "sentence": case.sentence,
            "arrays": arrays, "params": params, "answers": found,
        })  # fmt: skip
    networks, lines = ",\n".join(owners), ",\n".join(json.dumps(record) for record in records)
    index = f'{{"format": {check_answers.FORMAT}, "networks": {{\n{networks}\n}}, "cases": [\n{lines}\n]}}\n'
    content = {
        "README.md": (HERE / "golden.md").read_bytes(),
        "check_answers.py": (HERE / "check_answers.py").read_bytes(),
        "inputs.npz": _npz(inputs),
        "answers.npz": _npz(answers),
        "cases.json": index.encode(),
    }
    for name, data in content.items():
        atomic_write(Path(folder) / name, data)
    return len(records)


def _stored(value):
    """float64, int64, or uint8 for bool: little endian, C order."""
    value = np.asarray(value)
    dtype = "|u1" if value.dtype in (bool, np.uint8) else "<i8" if value.dtype.kind in "iu" else "<f8"
    return np.array(value, dtype, order="C")


def _npz(arrays):
    """An npz file as bytes: stored, in order, with fixed dates, which NumPy's own does not promise."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for key, value in arrays.items():
            data = io.BytesIO()
            np.lib.format.write_array(data, _stored(value), version=(1, 0))
            entry = zipfile.ZipInfo(f"{key}.npy", (1980, 1, 1, 0, 0, 0))
            entry.create_system, entry.external_attr = 3, 0o644 << 16
            archive.writestr(entry, data.getvalue())
    return file.getvalue()


def _nodes_out(owner, nodes, store):
    """Nodes as JSON; an array becomes {"array": key}."""
    return [
        {"name": node.name, "op": node.op, "inputs": node.inputs, "params": {
            name: {"array": store(f"{owner}.{node.name}.{name}", value)} if isinstance(value, np.ndarray) else value
            for name, value in node.params.items()
        }} for node in nodes
    ]  # fmt: skip


# ---- check


class _Absent(Exception):
    pass


def _lookup(implementation, dotted):
    for name in dotted.split("."):
        if not hasattr(implementation, name):
            raise _Absent(f"there is no {dotted}")
        implementation = getattr(implementation, name)
    return implementation


def check(folder, implementation=None, rtol=1e-9) -> list[Result]:
    """Recompute every case of the folder by `implementation` and compare with the answers there.

    implementation: an object with the oracle's layout, `.peak_stimulation.forward(...)` and so on (default: the
    oracle). It is handed NumPy arrays and answers what NumPy can take for arrays. A function that it lacks, or that
    raises NotImplementedError, is "absent"; one that raises anything else is "wrong". rtol: share of the largest
    expected magnitude of an array, for what is not compared exactly. Raises InputError where the folder cannot be read.
    """
    implementation = ORACLE if implementation is None else implementation
    try:
        records, expected = check_answers.load_cases(folder)
        inputs = check_answers.read_arrays(Path(folder) / "inputs.npz")
    except ValueError as error:
        raise InputError(reason(error)) from error
    try:
        networks = _networks(json.loads((Path(folder) / "cases.json").read_text("utf-8")), inputs)
        calls = [(record, _arguments(record, inputs, networks)) for record in records]
    except (LookupError, ValueError, TypeError, AttributeError, NotImplementedError) as error:
        raise InputError(f"{folder}: cases.json and inputs.npz do not fit each other ({error!r})") from error
    results = []
    for record, arguments in calls:
        results += _check_case(record, arguments, expected, implementation, rtol)
    return results


def _check_case(record, arguments, expected, implementation, rtol):
    name, function = record["name"], record["function"]
    keys = [answer["key"] for answer in record["answers"]]
    try:
        answers = FUNCTIONS[function][1](lambda dotted: _lookup(implementation, dotted), function, arguments)
        given = {f"{name}.{key}": np.asarray(value) for key, value in answers.items() if value is not None}
    except (_Absent, NotImplementedError) as error:
        return [Result(name, key, "absent", f"{function}: {reason(error)}") for key in keys]
    except (Exception, SystemExit) as error:  # whatever a port raises: the other cases still count
        text = f"{function} raised {type(error).__name__}: {reason(error)}. {record['sentence']}"
        return [Result(name, key, "wrong", text) for key in keys]
    # What only the oracle's results hold beside the answer may be left out.
    absent = {f"{name}.{key}" for key in ("G", "P", "arrived") if answers.get(key, 0) is None}
    rows = check_answers.compare([record], expected, given, rtol)
    states = ["absent" if row.key in absent else "wrong" if row.fault else "right" for row in rows]
    return [Result(name, row.key, state, row.fault) for row, state in zip(rows, states)]


def _networks(content, inputs):
    networks = {}
    for name, nodes in content["networks"].items():
        for node in nodes:
            node["params"] = {
                key: inputs[value["array"]] if isinstance(value, dict) else _tuples(value)
                for key, value in node["params"].items()
            }
        networks[name] = network.as_network(nodes)
    return networks


def _arguments(record, inputs, networks):
    """The call's arguments from the files: uint8 arrays are masks, JSON lists tuples."""
    def read(key):
        value = inputs[key]  # a copy: cases share arrays, and an implementation may write on what it is given
        return value.astype(bool) if value.dtype == np.uint8 else value.copy()

    arguments = {name: _tuples(value) for name, value in record["params"].items()}
    for name, key in record["arrays"].items():
        arguments[name] = [read(one) for one in key] if isinstance(key, list) else read(key)
    return _with_network(arguments, networks)


def _with_network(arguments, networks):
    """The name of a network replaced by the network."""
    return {**arguments, "network": networks[arguments["network"]]} if "network" in arguments else arguments


def _tuples(value):
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
