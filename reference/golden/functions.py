"""Every function of the oracle that a port has: its equation, how a case calls it, and what it answers.

How: (get, name, arguments) -> the answers by name; get(dotted name) is the function.
"""

import inspect
from types import SimpleNamespace

import numpy as np

from .. import network, peak_backprop, peak_stimulation, pseudo_labels, retrieval

ORACLE = SimpleNamespace(
    peak_stimulation=peak_stimulation, peak_backprop=peak_backprop, retrieval=retrieval, network=network,
    pseudo_labels=pseudo_labels,
)  # fmt: skip


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


def _best_fit(get, name, arguments):
    best = get(name)(**{**arguments, "proposals": list(arguments["proposals"])})
    return dict(zip(("index", "L", "terms"), best or (-1, 0.0, (0.0,) * 5)))


def _nms(get, name, arguments):
    a = dict(arguments)
    columns = zip(*(a.pop(key) for key in ("labels", "scores", "peaks", "masks", "prms")))
    instances = [
        retrieval.Instance(int(label), mask, float(score), 0.5, tuple(peak.tolist()), prm, k, (0.0, 0.0, 0.0))
        for k, (label, score, peak, mask, prm) in enumerate(columns)
    ]
    kept = get(name)(instances=instances, **a)
    return {"kept": np.array([one.proposal for one in kept], np.int64), "prms": np.array([one.prm for one in kept])}


def _assign(get, name, arguments):
    found = list(get(name)(**arguments))
    columns = dict(zip(("seed", "proposal", "score", "label"), zip(*(one[:4] for one in found))))
    integers = {key: np.array(columns.get(key, ()), np.int64) for key in ("seed", "proposal", "label")}
    law = np.array([one[4] for one in found], np.float64).reshape(len(found), len(arguments["masks"]))
    return integers | {"score": np.array(columns.get("score", ()), np.float64), "probabilities": law}


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
    "peak_backprop.summation": ("Eq. 5", _alone),
    "peak_backprop.pad": ("Eq. 5", _leaking),
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
    "retrieval.enlarged_response": ("Eq. 6", _answers("N")),
    "retrieval.background": ("Eq. 6", _answers("Q")),
    "retrieval.terms": ("Eq. 6", _answers("instance", "boundary", "class_aware")),
    "retrieval.score": ("Eq. 6", _answers("score")),
    "retrieval.resize_nearest": ("Eq. 6", _answers("resized")),
    "retrieval.image_position": ("Algorithm 1", _answers("row", "column")),
    "retrieval.overlap": ("Algorithm 1", _answers("iou")),
    "retrieval.select_classes": ("Algorithm 1", lambda *a: _integers(_answers("classes")(*a))),
    "retrieval.select_peaks": ("Algorithm 1", lambda *a: _integers(_answers("indices")(*a))),
    "retrieval.best_proposal": ("Algorithm 1", _best_proposal),
    "retrieval.smoothed": ("second choice", _answers("smoothed")),
    "retrieval.fit_terms": ("second choice", _answers("mass", "response", "objectness", "inside", "contour")),
    "retrieval.fit_score": ("second choice", _answers("L")),
    "retrieval.best_fit": ("second choice", _best_fit),
    "retrieval.confident_score": ("second choice", _answers("score")),
    "retrieval.nms": ("Algorithm 1", _nms),
    "retrieval.segment": ("Algorithm 1", _segment),
    "pseudo_labels.class_loss": ("WISE", _answers("loss")),
    "pseudo_labels.seed_map": ("WISE", _answers("seed_map")),
    "pseudo_labels.seeds_of": ("WISE", _answers("seeds")),
    "pseudo_labels.record": ("WISE", _answers("x", "y")),
    "pseudo_labels.pixel": ("WISE", _answers("row", "column")),
    "pseudo_labels.probabilities": ("WISE", _answers("probabilities")),
    "pseudo_labels.drawn": ("WISE", _answers("proposal")),
    "pseudo_labels.assign": ("WISE", _assign),
    "pseudo_labels.box": ("WISE", _answers("x", "y", "width", "height")),
    "pseudo_labels.refine": ("WISE", _answers("refined")),
}


def _integers(answers):
    """Lists of indices, which NumPy would take for floats where they are empty."""
    return {key: np.asarray(value, np.int64) for key, value in answers.items()}


def defaults(function) -> dict:
    """The function's optional arguments, by the names that the files have always given them."""
    parameters = inspect.signature(lookup(ORACLE, function)).parameters.values()
    found = {p.name: p.default for p in parameters if p.default is not p.empty and p.name != "return_leak"}
    for written, today in getattr(lookup(ORACLE, function), "formerly", {}).items():
        found[written] = found.pop(today) if isinstance(today, str) else [found.pop(name) for name in today]
    return found


class Absent(Exception):
    """An implementation has no such function."""


def lookup(implementation, dotted):
    """The function of that dotted name. Raises Absent."""
    for name in dotted.split("."):
        if not hasattr(implementation, name):
            raise Absent(f"there is no {dotted}")
        implementation = getattr(implementation, name)
    return implementation
