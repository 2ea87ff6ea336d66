"""What a call of a traced graph is: kinds of layers and functions, names, sizes, axes."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

VIEWS = ("getitem", "chunk", "split", "tensor_split", "unbind", "narrow", "view", "reshape", "flatten", "unflatten",
         "squeeze", "unsqueeze", "permute", "transpose", "expand", "expand_as", "contiguous",
         "detach")  # fmt: skip
ACTIVATIONS = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish,
    nn.Sigmoid, nn.LogSigmoid, nn.Tanh, nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid, nn.Softplus, nn.Softsign,
)  # fmt: skip
ACTIVATION_FUNCTIONS = (
    F.relu, torch.relu, F.relu6, F.leaky_relu, F.prelu, F.rrelu, F.elu, F.celu, F.selu, F.gelu, F.silu, F.mish,
    F.sigmoid, torch.sigmoid, F.logsigmoid, F.tanh, torch.tanh, F.hardtanh, F.hardswish, F.hardsigmoid, F.softplus,
    F.softsign,
)  # fmt: skip
NORMS = (nn.LayerNorm, nn.GroupNorm, nn.InstanceNorm2d, nn.LocalResponseNorm)
NORM_FUNCTIONS = (F.layer_norm, F.group_norm, F.instance_norm, F.local_response_norm)
PADS = (nn.ConstantPad2d, nn.ReflectionPad2d, nn.ReplicationPad2d, nn.CircularPad2d)
AFFINE = ("add", "mul", "truediv", "div", "sub")
ELEMENTWISE = ("erf", "exp", "log1p", "clamp", "pow", "square", "sqrt", "rsqrt", "relu", "sigmoid", "tanh")
ROOTS = ("norm", "linalg_norm", "linalg_vector_norm")
REDUCTIONS = ("mean", "amax", "sum", "var", "std", *ROOTS)
DEVIATIONS = ("sqrt", "std", *ROOTS)
"""What a norm that is written out divides by is one of these, or a power, of what was averaged over some axes."""
DROPOUTS = (F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout)
UNREAD = object()  # default of an argument that a rule does not look at


def call_name(node: fx.Node) -> str:
    """The name of the function or method that a node calls; "" for modules, whatever their place is called."""
    if node.op == "call_function":
        return getattr(node.target, "__name__", "")
    return str(node.target) if node.op == "call_method" else ""


def path_of(node: fx.Node) -> str:
    """Where in the model the module lies that a node calls, or the tensor that it reads."""
    return str(node.target)


def source_of(node: fx.Node) -> fx.Node:
    """A call's first argument, the tensor that it works on."""
    first: Any = node.args[0]  # to torch.fx whatever a graph can hold
    return first


def argument(node: fx.Node, position: int, name: str, default: Any = None) -> Any:
    """A call's argument, however it is given."""
    return node.kwargs.get(name, node.args[position] if len(node.args) > position else default)


def is_size(node: fx.Node) -> bool:
    """Whether a node reads a tensor's size or computes with it, and no values."""
    if node.op == "call_method":
        return node.target in ("size", "dim")
    if node.target is getattr:
        return node.args[1] in ("shape", "ndim")
    inputs = node.all_input_nodes
    return node.op == "call_function" and bool(inputs) and all(is_size(n) for n in inputs)


def dims_of(call: fx.Node) -> list[int]:
    """The axes that one reducing call names."""
    dims = argument(call, _first_option(call), "dim", ())
    return [dims] if isinstance(dims, int) else list(dims) if isinstance(dims, (tuple, list)) else []


def keeps_axes(call: fx.Node) -> bool:
    """Whether a reducing call leaves the axes that it reduces, at length 1."""
    return argument(call, _first_option(call) + 1, "keepdim") is True


def _first_option(call: fx.Node) -> int:
    """Where a reducing call's axes stand: before them, a norm is told which norm it is."""
    return 2 if call_name(call) in ROOTS else 1


def reduced_axes(node: fx.Node) -> tuple[set[int], fx.Node]:
    """The axes of a map (N, C, H, W) that `mean` or `amax` calls reduce, one after another perhaps, and that map."""
    name, calls = call_name(node), list[fx.Node]()
    while call_name(node) == name:
        calls.insert(0, node)
        node = source_of(node)
    left, axes = [0, 1, 2, 3], set()
    for call in calls:
        over = {left[d] for d in dims_of(call) if -len(left) <= d < len(left)}
        axes |= over
        if not keeps_axes(call):
            left = [axis for axis in left if axis not in over]
    return axes, node


def pair(value) -> list[int]:
    return [value, value] if isinstance(value, int) else [value[0], value[-1]]
