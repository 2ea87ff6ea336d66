"""Calls that move elements to their rules: concatenations, slices, reshapes, expansions."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from ..plan import execute
from ..rules import Concatenation, Expansion, Padding, Reshape, Selection
from .calls import call_name


def concatenate(b, node):
    sources = node.args[0] if node.args else node.kwargs["tensors"]
    if any(s in b.constants for s in sources):
        raise b.refusal(node, "it concatenates a constant")
    dim = node.kwargs.get("dim", node.kwargs.get("axis", node.args[1] if len(node.args) > 1 else 0))
    return Concatenation(sources, dim)


def _replay(b, node, source) -> Callable[[Tensor], Tensor]:
    """The node's call as a function of its first tensor."""
    env = {**b.constants}
    return lambda t: execute(node, env | {source: t}, b.modules)


def selection(b, node):
    if any(n is not node.args[0] and n not in b.constants for n in node.all_input_nodes):
        raise b.refusal(node, "where it cuts depends on the image's values or size")
    return Selection(node.args[0], _replay(b, node, node.args[0]))


def pad(b, node, *_):
    """Where a convolution or an average pooling takes the pad in, no P comes here."""
    return Padding(node.args[0], _replay(b, node, node.args[0]))


def getitem(b, node):
    parts = node.args[0]
    if call_name(parts) in ("chunk", "split", "tensor_split", "unbind"):
        cut, source = _replay(b, parts, parts.args[0]), parts.args[0]
        return Selection(source, lambda t: cut(t)[node.args[1]])
    return selection(b, node)


def reshape(b, node, *_):
    return Reshape(node.args[0])


def expand(b, node):
    return Expansion(node.args[0])
