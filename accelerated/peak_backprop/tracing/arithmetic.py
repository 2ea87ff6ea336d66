"""Calls of arithmetic to their rules: sums, constant factors, products of a map with its gate, norms written out."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

from ..rules import Addition, GatedUnit, Rule, Scaling, Summation
from .calls import (
    ACTIVATION_FUNCTIONS,
    ACTIVATIONS,
    AFFINE,
    DEVIATIONS,
    ELEMENTWISE,
    REDUCTIONS,
    VIEWS,
    argument,
    call_name,
    dims_of,
    keeps_axes,
    reduced_axes,
    source_of,
)


def _operands(b, node) -> list[tuple[Any, bool]]:
    """The two operands of a binary call, each with whether it depends on the image."""
    given = node.args[0], argument(node, 1, "other")
    return [(o, isinstance(o, fx.Node) and o not in b.constants) for o in given]


def add(b, node):
    (x, x_dynamic), (y, y_dynamic) = _operands(b, node)
    # A constant takes no share.
    if not (x_dynamic and y_dynamic):
        return Scaling(x if x_dynamic else y)
    return Addition(x, y, b.value(node.kwargs.get("alpha", 1), node))


def subtract(b, node):
    (x, x_dynamic), (y, y_dynamic) = _operands(b, node)
    if not x_dynamic or (y_dynamic and not (_is_mean_of(b, x, y) or _is_mean_of(b, y, x))):
        raise b.refusal(node, "only a constant, or a map's mean from that map or the reverse, may be subtracted")
    return Scaling(x)


def _is_mean_of(b, mean, x) -> bool:
    """Whether `mean` averages x itself, over axes or windows; identity and repetition may lie between."""
    while b.passes(mean) or call_name(mean) in ("expand", "expand_as"):
        mean = source_of(mean)
    averages = isinstance(b.layer(mean), (nn.AvgPool2d, nn.AdaptiveAvgPool2d))
    averages |= call_name(mean) in ("mean", "avg_pool2d", "adaptive_avg_pool2d")
    return averages and source_of(mean) is x


def total(b, node):
    """A sum over axes."""
    dims = dims_of(node)
    if not dims or 0 in dims:
        raise b.refusal(node, "it sums over the batch too, or its axes cannot be read from the model")
    return Summation(node.args[0], dims)


def power(b, node):
    (x, x_dynamic), _ = _operands(b, node)
    exponent = _exponent(b, node)
    if not x_dynamic or not isinstance(exponent, int | float) or exponent <= 0:
        raise b.refusal(node, "only powers above 0 have a rule")
    return Rule(x)


def _exponent(b, node) -> Any:
    return b.value(argument(node, 1, "exponent"), node)


def _positive(b, constant) -> bool:
    value = b.constants.get(constant, constant) if isinstance(constant, fx.Node) else constant
    return bool((torch.as_tensor(value) > 0).all())


def divide(b, node):
    (x, x_dynamic), (y, y_dynamic) = _operands(b, node)
    positive = _is_deviation(b, y) if y_dynamic else _positive(b, y)
    if not x_dynamic or not positive:
        raise b.refusal(node, "only division by a positive constant, or by a norm's deviation, has a rule")
    return Scaling(x)


def _is_deviation(b, node: fx.Node) -> bool:
    """Whether the node is a root or a norm of what was averaged over axes, positive constants added: never negative."""
    rooted = False
    while node.op != "placeholder":
        name, inputs = call_name(node), [n for n in node.all_input_nodes if n not in b.constants]
        rooted |= name in DEVIATIONS or (name == "pow" and _exponent(b, node) == 0.5)
        if name in REDUCTIONS:
            return rooted and keeps_axes(node)
        if name == "add":
            (added,) = [o for o, dynamic in _operands(b, node) if not dynamic] or [-1]
            if not _positive(b, added):
                return False
        elif name not in (*DEVIATIONS, "pow", "clamp"):
            return False
        (node,) = inputs
    return False


def multiply(b, node):
    (x, x_dynamic), (y, y_dynamic) = _operands(b, node)
    if x_dynamic and y_dynamic:
        return _gated(b, node, x, y)
    factor = y if x_dynamic else x
    # A learned factor of either sign passes P on unchanged, like gamma of a batch norm that is not folded.
    if not (isinstance(factor, fx.Node) and b.learned(factor)) and not _positive(b, factor):
        raise b.refusal(node, "only multiplication by a positive number, a parameter or a gate has a rule")
    return Scaling(x if x_dynamic else y)


def _gated(b, node, x: fx.Node, y: fx.Node) -> Rule:
    """P goes to the operand that is not the gate."""
    for is_gate in (_is_squashed, _is_broadcast, _has_one_channel):
        x_gate, y_gate = is_gate(b, x), is_gate(b, y)
        if x_gate != y_gate:
            return Scaling(y if x_gate else x)
    # An activation written out, x * g(x): slope 1, like every activation.
    if _elementwise_root(b, y, ()) in (x, _elementwise_root(b, x, AFFINE)):
        return Scaling(x)
    if _elementwise_root(b, x, ()) in (y, _elementwise_root(b, y, AFFINE)):
        return Scaling(y)
    x_gate, y_gate = _is_activated(b, x), _is_activated(b, y)
    if x_gate != y_gate:
        return GatedUnit(y if x_gate else x)
    raise b.refusal(node, "both operands are full maps and neither is a sigmoid, hard-sigmoid or softmax gate")


def _elementwise_root(b, node: fx.Node, only: tuple[str, ...]) -> fx.Node:
    """The tensor that `node` was computed from by elementwise steps, each with one input that depends on the image."""
    while node.op != "placeholder":
        inputs = [n for n in node.all_input_nodes if n not in b.constants]
        name = call_name(node)
        known = name in AFFINE or (not only and (name in ELEMENTWISE or _is_activation(b, node)))
        if len(inputs) != 1 or not known:
            return node
        (node,) = inputs
    return node


def _is_activation(b, node) -> bool:
    return isinstance(b.layer(node), ACTIVATIONS) or node.target in ACTIVATION_FUNCTIONS


def _behind_views(b, node: fx.Node) -> fx.Node:
    while b.passes(node) or call_name(node) in VIEWS:
        node = source_of(node)
    return node


def _is_activated(b, node) -> bool:
    return _is_activation(b, _behind_views(b, node))


def _is_squashed(b, node) -> bool:
    node = _behind_views(b, node)
    if node.op == "call_module":
        return isinstance(b.layer(node), (nn.Sigmoid, nn.Hardsigmoid, nn.Softmax, nn.Softmax2d))
    names = ("sigmoid", "hardsigmoid", "softmax")
    return call_name(node) in names


def _has_one_channel(b, node) -> bool:
    """Whether the node is a convolution to one channel, or was computed elementwise from one."""
    root = _elementwise_root(b, node, ())
    return b.is_convolution(root) and b.weight(root).shape[0] == 1


def _is_broadcast(b, node) -> bool:
    """Whether every path from the image to this node goes through a global pooling, or a reduction that leaves an axis
    of length 1: it is repeated where it meets a map."""
    if node.op == "placeholder":
        return False
    if call_name(node) in ("size", "dim", "getattr"):
        return True  # a number, not a map
    if isinstance(m := b.layer(node), (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)):
        return m.output_size in (1, (1, 1))
    if node.op == "call_function" and node.target in (F.adaptive_avg_pool2d, F.adaptive_max_pool2d):
        return argument(node, 1, "output_size") in (1, (1, 1), [1, 1])
    name = call_name(node)
    if name in REDUCTIONS:
        axes, source = reduced_axes(node)
        return axes >= {2, 3} or keeps_axes(node) or _is_broadcast(b, source)
    if name in ("expand", "expand_as"):
        return _is_broadcast(b, node.args[0])
    inputs = [n for n in node.all_input_nodes if n not in b.constants]
    return bool(inputs) and all(_is_broadcast(b, n) for n in inputs)
