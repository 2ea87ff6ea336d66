"""The rule of every operator on the walk back: (P(V), node, [U, ...]) -> ([P(U), ...], leaked mass), by the equations
of `peak_backprop`."""

from .. import peak_backprop as eq
from .operators import ACTIVATIONS, NORMS, UNCHANGED, chunk_bounds


def _conv2d_rule(P, node, U):
    params = dict(node.params)
    W, bias, fold = params.pop("weight"), params.pop("bias", None), params.pop("fold", None)
    if fold is not None:
        eps = fold.get("eps", 1e-5)
        W, _ = eq.fold_batch_norm(W, bias, fold.get("weight"), fold.get("bias"), fold["mean"], fold["var"], eps)
    P_U, leaked = eq.conv2d(P, U[0], W, **params, return_leak=True)
    return [P_U], leaked


def _linear_rule(P, node, U):
    P_U, leaked = eq.linear(P, U[0], node.params["weight"], return_leak=True)
    return [P_U], leaked


def _avg_pool2d_rule(P, node, U):
    P_U, leaked = eq.avg_pool2d(P, U[0], **node.params, return_leak=True)
    return [P_U], leaked


def _adaptive_avg_pool2d_rule(P, node, U):
    P_U, leaked = eq.adaptive_avg_pool2d(P, U[0], return_leak=True)
    return [P_U], leaked


def _mean_rule(P, node, U):
    P_U, leaked = eq.mean(P, U[0], return_leak=True, axes=node.params.get("axes", (1, 2)))
    return [P_U], leaked


def _interpolate_rule(P, node, U):
    options = {key: node.params[key] for key in ("align_corners", "scale") if key in node.params}
    P_U, leaked = eq.interpolate(P, U[0], node.params.get("mode", "nearest"), **options, return_leak=True)
    return [P_U], leaked


def _pad_rule(P, node, U):
    P_U, leaked = eq.pad(P, U[0].shape, node.params["padding"], node.params.get("mode", "constant"), return_leak=True)
    return [P_U], leaked


def _gate_rule(P, node, U):
    taker = node.params["taker"]
    shares = [None, None]
    shares[taker] = eq.multiply(P, U[taker].shape)
    return shares, 0.0


def _slice_rule(P, node, U):
    return [eq.slice_axis(P, U[0].shape, **node.params)], 0.0


def _chunk_rule(P, node, U):
    axis = node.params["axis"]
    bounds = chunk_bounds(U[0].shape[axis], node.params["chunks"], node.params["index"])
    return [eq.slice_axis(P, U[0].shape, axis, *bounds)], 0.0


RULES = {
    **dict.fromkeys(ACTIVATIONS, lambda P, node, U: ([eq.activation(P)], 0.0)),
    **dict.fromkeys(UNCHANGED, lambda P, node, U: ([eq.activation(P)], 0.0)),
    **dict.fromkeys(NORMS, lambda P, node, U: ([eq.normalization(P)], 0.0)),
    "batch_norm": lambda P, node, U: ([eq.batch_norm(P)], 0.0),
    "conv2d": _conv2d_rule,
    "linear": _linear_rule,
    "max_pool2d": lambda P, node, U: ([eq.max_pool2d(P, U[0], **node.params)], 0.0),
    "adaptive_max_pool2d": lambda P, node, U: ([eq.adaptive_max_pool2d(P, U[0])], 0.0),
    "avg_pool2d": _avg_pool2d_rule,
    "adaptive_avg_pool2d": _adaptive_avg_pool2d_rule,
    "mean": _mean_rule,
    "interpolate": _interpolate_rule,
    "sum": lambda P, node, U: ([eq.summation(P, U[0], node.params["axes"])], 0.0),
    **dict.fromkeys(("zero_pad", "pad"), _pad_rule),
    "add": lambda P, node, U: (eq.add(P, U, **node.params), 0.0),
    "multiply": _gate_rule,
    "divide": _gate_rule,
    "subtract": _gate_rule,
    "concatenate": lambda P, node, U: (eq.concatenate(P, [u.shape for u in U], node.params.get("axis", 0)), 0.0),
    "slice": _slice_rule,
    "chunk": _chunk_rule,
    "flatten": lambda P, node, U: ([eq.flatten(P, U[0].shape)], 0.0),
    **dict.fromkeys(("reshape", "squeeze", "unsqueeze"), lambda P, node, U: ([eq.reshape(P, U[0].shape)], 0.0)),
    "expand": lambda P, node, U: ([eq.expand(P, U[0].shape)], 0.0),
    "permute": lambda P, node, U: ([eq.permute(P, node.params["axes"])], 0.0),
    "transpose": lambda P, node, U: ([eq.transpose(P, node.params["axes"])], 0.0),
}
