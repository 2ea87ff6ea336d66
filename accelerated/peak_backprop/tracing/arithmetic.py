"""Calls of arithmetic to their rules: sums, constant factors, and products of a map with its gate."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

from ..rules import Addition, Scaling
from .calls import ACTIVATION_FUNCTIONS, ACTIVATIONS, AFFINE, ELEMENTWISE, VIEWS, call_name, reduced_axes


def _operands(b, node) -> list[tuple[Any, bool]]:
    """The two operands of a binary call, each with whether it depends on the image."""
    other = node.kwargs.get("other", node.args[1] if len(node.args) > 1 else None)
    return [(o, isinstance(o, fx.Node) and o not in b.constants) for o in (node.args[0], other)]


def add(b, node):
    (x, x_dynamic), (y, y_dynamic) = _operands(b, node)
    # A constant takes no share.
    if not (x_dynamic and y_dynamic):
        return Scaling(x if x_dynamic else y)
    return Addition(x, y, b.value(node.kwargs.get("alpha", 1), node))


def subtract(b, node):
    (x, x_dynamic), (_, y_dynamic) = _operands(b, node)
    if not x_dynamic or y_dynamic:
        raise b.refusal(node, "only a constant may be subtracted")
    return Scaling(x)


def _positive(b, constant) -> bool:
    value = b.constants.get(constant, constant) if isinstance(constant, fx.Node) else constant
    return bool((torch.as_tensor(value) > 0).all())


def divide(b, node):
    (x, x_dynamic), (y, y_dynamic) = _operands(b, node)
    if not x_dynamic or y_dynamic or not _positive(b, y):
        raise b.refusal(node, "only division by a positive constant has a rule")
    return Scaling(x)


def multiply(b, node):
    (x, x_dynamic), (y, y_dynamic) = _operands(b, node)
    if x_dynamic and y_dynamic:
        return Scaling(_gated(b, node, x, y))
    factor = y if x_dynamic else x
    # A learned factor of either sign passes P on unchanged, like gamma of a batch norm that is not folded.
    if not (isinstance(factor, fx.Node) and b.learned(factor)) and not _positive(b, factor):
        raise b.refusal(node, "only multiplication by a positive number, a parameter or a gate has a rule")
    return Scaling(x if x_dynamic else y)


def _gated(b, node, x: fx.Node, y: fx.Node) -> fx.Node:
    """The operand that P goes to: the one that is not the gate."""
    for is_gate in (_is_squashed, _is_broadcast, _has_one_channel):
        x_gate, y_gate = is_gate(b, x), is_gate(b, y)
        if x_gate != y_gate:
            return y if x_gate else x
    # An activation written out, x * g(x): slope 1, like every activation.
    if _elementwise_root(b, y, ()) in (x, _elementwise_root(b, x, AFFINE)):
        return x
    if _elementwise_root(b, x, ()) in (y, _elementwise_root(b, y, AFFINE)):
        return y
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


def _is_squashed(b, node) -> bool:
    while b.passes(node) or call_name(node) in VIEWS:
        node = node.args[0]
    if node.op == "call_module":
        return isinstance(b.layer(node), (nn.Sigmoid, nn.Hardsigmoid, nn.Softmax, nn.Softmax2d))
    names = ("sigmoid", "hardsigmoid", "softmax")
    return call_name(node) in names


def _has_one_channel(b, node) -> bool:
    """Whether the node is a convolution to one channel, or was computed elementwise from one."""
    root = _elementwise_root(b, node, ())
    return b.is_convolution(root) and b.weight(root).shape[0] == 1


def _is_broadcast(b, node) -> bool:
    """Whether every path from the image to this node goes through a global pooling, so that it has one position."""
    if node.op == "placeholder":
        return False
    if call_name(node) in ("size", "dim", "getattr"):
        return True  # a number, not a map
    if isinstance(m := b.layer(node), (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)):
        return m.output_size in (1, (1, 1))
    if node.op == "call_function" and node.target in (F.adaptive_avg_pool2d, F.adaptive_max_pool2d):
        return node.kwargs.get("output_size", node.args[1] if len(node.args) > 1 else None) in (1, (1, 1), [1, 1])
    name = call_name(node)
    if name in ("mean", "amax"):
        axes, source = reduced_axes(node)
        return axes >= {2, 3} or _is_broadcast(b, source)
    if name in ("expand", "expand_as"):
        return _is_broadcast(b, node.args[0])
    inputs = [n for n in node.all_input_nodes if n not in b.constants]
    return bool(inputs) and all(_is_broadcast(b, n) for n in inputs)
