"""A torch module in evaluation mode -> the oracle's network as plain data (`prm.reference.network`), by torch.fx.

Written for the tests and independent of the fast path's own tracing, so that neither can hide the other's mistake.
Torch counts axes with the batch in front, the oracle without: axis 1 here is axis 0 there.
"""

import operator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import fx, nn

from prm.reference.network import SHAPES, Network, Node


def to_reference(module: nn.Module) -> Network:
    """The network that `module` computes in evaluation mode, parameters copied; the module itself is left untouched.

    Raises NotImplementedError naming the operator and where it is, for whatever has no counterpart; ValueError for a
    module in training mode.
    """
    if any(part.training for part in module.modules()):
        raise ValueError("the module is in training mode, call .eval() first")
    return _Conversion(fx.symbolic_trace(module)).network


@dataclass(frozen=True)
class _Ref:
    """A tensor of the network, by its node's name."""

    name: str


@dataclass(frozen=True)
class _Shape:
    """x.shape."""

    name: str


class _Computed:
    """A number computed from sizes; a reshape can work it out from the other axes."""


@dataclass(frozen=True)
class _Dim:
    """x.shape[axis] in the oracle's axes; None is the batch."""

    name: str
    axis: int | None

    def __mul__(self, other):
        return _Computed()

    __floordiv__ = __rmul__ = __mul__


@dataclass(frozen=True)
class _Parts:
    """What chunk and split return: the parts are taken out by index."""

    name: str
    axis: int
    chunks: int | None = None
    sizes: Any = None


def _symbolic(values):
    """Whether anything in the nested values stands for a tensor of the network or its size."""
    if isinstance(values, dict):
        values = list(values.values())
    if isinstance(values, (tuple, list)):
        return any(_symbolic(v) for v in values)
    return isinstance(values, (_Ref, _Shape, _Dim, _Computed, _Parts))


def _array(tensor):
    if tensor is None:
        return None
    tensor = tensor.detach().cpu()
    return (tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.double()).numpy().copy()


def _pair(value):
    return (value, value) if isinstance(value, int) else tuple(value)


class _Conversion:
    def __init__(self, traced):
        self.traced, self.nodes, self.env, self.where = traced, [], {}, ""
        self.modules = dict(traced.named_modules())
        for node in traced.graph.nodes:
            self.where = f"{node.target} ({node.name})"
            if node.op == "output":
                output = self.tensor(self.value(node.args[0]))
            else:
                self.env[node] = self.visit(node)
                if self.is_in_place(node):
                    self.overwrite(node)
        self.network = Network(tuple(self.nodes), output)

    def refuse(self, why):
        raise NotImplementedError(f"{self.where}: {why}")

    # ---- the graph's values

    def value(self, argument):
        return fx.node.map_aggregate(argument, lambda a: self.env[a] if isinstance(a, fx.Node) else a)

    def tensor(self, value):
        """The name of the node that holds a value; tensors and numbers become constants."""
        if isinstance(value, _Ref):
            return value.name
        if isinstance(value, torch.Tensor):
            return self.emit("constant", (), value=_array(value), learned=True).name
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return self.emit("constant", (), value=np.float64(value)).name
        return self.refuse(f"{value!r} is no tensor")

    def emit(self, op, inputs, name=None, **params):
        name = name or f"{op}_{len(self.nodes)}"
        taken = [node.name for node in self.nodes]
        calls = sum(other == name or other.startswith(name + "#") for other in taken)
        name = f"{name}#{calls + 1}" if calls else name
        self.nodes.append(Node(name, op, tuple(self.tensor(i) for i in inputs), params))
        return _Ref(name)

    def is_in_place(self, node):
        if node.op == "call_module":
            dropout = isinstance(self.modules[node.target], nn.Dropout)
            return bool(getattr(self.modules[node.target], "inplace", False)) and not dropout
        if node.op == "call_method" and node.target.endswith("_") and not node.target.endswith("__"):
            return True
        return bool(node.kwargs.get("inplace", False)) and node.target is not F.dropout

    def overwrite(self, node):
        """After an in-place operation every name of the old tensor stands for the new one."""
        old = self.env[node.all_input_nodes[0]]
        if {n.name: n for n in self.nodes}[old.name].op in SHAPES:
            self.refuse("an in-place operation on a view")
        new = self.env[node]
        self.env = {key: new if isinstance(value, _Ref) and value == old else value for key, value in self.env.items()}

    # ---- one graph node

    def visit(self, node):
        args, kwargs = self.value(node.args), self.value(dict(node.kwargs))
        if node.op == "placeholder":
            return self.emit("input", (), name=node.name)
        if node.op == "get_attr":
            value = self.traced
            for part in node.target.split("."):
                value = getattr(value, part)
            return value
        if node.op == "call_module":
            module = self.modules[node.target]
            if type(module) not in MODULES:
                self.refuse(f"module {type(module).__name__} has no counterpart")
            return MODULES[type(module)](self, module, node.target, args[0])
        if not _symbolic((args, kwargs)):  # parameters and numbers among themselves
            with torch.no_grad():
                return (
                    node.target(*args, **kwargs)
                    if node.op == "call_function"
                    else getattr(args[0], node.target)(*args[1:], **kwargs)
                )
        if getattr(node.target, "__name__", "") == "stochastic_depth":
            return _stochastic_depth(self, *args, **kwargs)
        table = FUNCTIONS if node.op == "call_function" else METHODS
        if node.target not in table:
            self.refuse("no counterpart")
        return table[node.target](self, *args, **kwargs)

    def axis(self, dim):
        """Torch's axis, with the batch in front, as the oracle's."""
        if dim == 0:
            self.refuse("an operation along the batch axis")
        return dim - 1 if dim > 0 else dim


# ---- layers: name is the module's path, None for a function


def _conv2d(self, x, weight, bias=None, stride=1, padding=0, dilation=1, groups=1, name=None):
    if padding == "same":
        spans = [d * (k - 1) for k, d in zip(weight.shape[2:], _pair(dilation))]
        (top, bottom), (left, right) = ((span // 2, span - span // 2) for span in spans)
        padding = (left, right, top, bottom)
    padding = 0 if padding == "valid" else padding
    params = {"stride": _pair(stride), "padding": padding, "dilation": _pair(dilation), "groups": groups}
    return self.emit("conv2d", (x,), name, weight=_array(weight), bias=_array(bias), **params)


def _conv2d_module(self, m, name, x):
    if m.padding_mode != "zeros":
        self.refuse(f"padding mode {m.padding_mode!r}")
    return _conv2d(self, x, m.weight, m.bias, m.stride, m.padding, m.dilation, m.groups, name)


def _linear(self, x, weight, bias=None, name=None):
    return self.emit("linear", (x,), name, weight=_array(weight), bias=_array(bias))


def _batch_norm(self, x, mean, var, weight=None, bias=None, training=False, momentum=0.1, eps=1e-5, name=None):
    if training or mean is None:
        self.refuse("batch norm in training mode")
    arrays = {"mean": _array(mean), "var": _array(var), "weight": _array(weight), "bias": _array(bias)}
    return self.emit("batch_norm", (x,), name, **arrays, eps=eps)


def _batch_norm_module(self, m, name, x):
    return _batch_norm(self, x, m.running_mean, m.running_var, m.weight, m.bias, eps=m.eps, name=name)


def _layer_norm(self, x, normalized_shape, weight=None, bias=None, eps=1e-5, name=None):
    axes = 1 if isinstance(normalized_shape, int) else len(normalized_shape)
    return self.emit("layer_norm", (x,), name, axes=axes, weight=_array(weight), bias=_array(bias), eps=eps)


def _group_norm(self, x, num_groups, weight=None, bias=None, eps=1e-5, name=None):
    return self.emit("group_norm", (x,), name, groups=num_groups, weight=_array(weight), bias=_array(bias), eps=eps)


def _instance_norm(
    self, x, running_mean=None, running_var=None, weight=None, bias=None, use_input_stats=True, momentum=0.1, eps=1e-5,
    name=None,
):  # fmt: skip
    mean, var = (None, None) if use_input_stats else (running_mean, running_var)
    arrays = {"mean": _array(mean), "var": _array(var), "weight": _array(weight), "bias": _array(bias)}
    return self.emit("instance_norm", (x,), name, **arrays, eps=eps)


def _instance_norm_module(self, m, name, x):
    statistics = (m.running_mean, m.running_var)
    return _instance_norm(self, x, *statistics, m.weight, m.bias, not m.track_running_stats, eps=m.eps, name=name)


def _local_response_norm(self, x, size, alpha=1e-4, beta=0.75, k=1.0, name=None):
    return self.emit("local_response_norm", (x,), name, size=size, alpha=alpha, beta=beta, k=k)


def _max_pool2d(
    self, x, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False, return_indices=False, name=None
):
    if return_indices:
        self.refuse("return_indices")
    params = {"kernel": _pair(kernel_size), "stride": _pair(stride or kernel_size), "padding": _pair(padding)}
    return self.emit("max_pool2d", (x,), name, **params, dilation=_pair(dilation), ceil_mode=ceil_mode)


def _max_pool2d_module(self, m, name, x):
    return _max_pool2d(self, x, m.kernel_size, m.stride, m.padding, m.dilation, m.ceil_mode, m.return_indices, name)


def _avg_pool2d(
    self, x, kernel_size, stride=None, padding=0, ceil_mode=False, count_include_pad=True, divisor_override=None,
    name=None,
):  # fmt: skip
    params = {"kernel": _pair(kernel_size), "stride": _pair(stride or kernel_size), "padding": _pair(padding)}
    count = {"count_include_pad": count_include_pad, "divisor_override": divisor_override}
    return self.emit("avg_pool2d", (x,), name, **params, ceil_mode=ceil_mode, **count)


def _avg_pool2d_module(self, m, name, x):
    count = (m.count_include_pad, m.divisor_override)
    return _avg_pool2d(self, x, m.kernel_size, m.stride, m.padding, m.ceil_mode, *count, name)


def _adaptive(op):
    def convert(self, x, output_size, return_indices=False, name=None):
        if return_indices:
            self.refuse("return_indices")
        size = output_size if isinstance(output_size, int) else tuple(_entry(entry) for entry in output_size)
        return self.emit(op, (x,), name, size=size)

    return convert


def _interpolate(
    self, x, size=None, scale_factor=None, mode="nearest", align_corners=None, recompute_scale_factor=None,
    antialias=False, name=None,
):  # fmt: skip
    if antialias:
        self.refuse("antialias")
    params = {"mode": mode, "align_corners": bool(align_corners)}
    if size is not None:
        size = (size, size) if isinstance(size, int) else tuple(size)
        return self.emit("interpolate", (x,), name, **params, size=tuple(_entry(entry) for entry in size))
    if recompute_scale_factor:
        self.refuse("recompute_scale_factor")
    return self.emit("interpolate", (x,), name, **params, scale=scale_factor)


def _upsample_module(self, m, name, x):
    return _interpolate(self, x, m.size, m.scale_factor, m.mode, m.align_corners, m.recompute_scale_factor, name=name)


def _zero_pad(self, x, pad, mode="constant", value=None, name=None):
    if mode != "constant" or value:
        self.refuse("padding that is not zeros")
    pad = (*pad, 0, 0)[:4] if len(pad) == 2 else tuple(pad)
    return self.emit("zero_pad", (x,), name, padding=pad)


def _same(self, x, *args, **kwargs):
    """An operator that returns its input: the same tensor under another name."""
    return x


def _dropout(self, x, p=0.5, training=True, inplace=False):
    if training:
        self.refuse("dropout in training mode")
    return x


def _stochastic_depth(self, x, p, mode, training=True):
    return _dropout(self, x, p, training)


def _activation(op, *names, **fixed):
    """names: the oracle's parameter for each of torch's positional ones, given by name as (torch's, oracle's) too."""

    def convert(self, x, *args, inplace=False, name=None, **kwargs):
        params = {**fixed, **dict(zip([ours for _, ours in names], args))}
        params |= {ours: kwargs[theirs] for theirs, ours in names if theirs in kwargs}
        return self.emit(op, (x,), name, **params)

    return convert


def _activation_module(function, *attributes):
    return lambda self, m, name, x: function(self, x, **{key: getattr(m, key) for key in attributes}, name=name)


def _prelu(self, x, weight, name=None):
    return self.emit("prelu", (x,), name, weight=_array(weight))


def _softmax(self, x, dim=None, name=None, **ignored):
    return self.emit("softmax", (x,), name, axis=self.axis(dim))


relu, relu6, silu = _activation("relu"), _activation("relu6"), _activation("silu")
sigmoid, tanh, hardsigmoid = _activation("sigmoid"), _activation("tanh"), _activation("hardsigmoid")
hardswish, mish, selu, erf = _activation("hardswish"), _activation("mish"), _activation("selu"), _activation("erf")
leaky_relu = _activation("leaky_relu", ("negative_slope", "slope"))
elu, celu = _activation("elu", ("alpha", "alpha")), _activation("celu", ("alpha", "alpha"))
hardtanh = _activation("hardtanh", ("min_val", "min_val"), ("max_val", "max_val"))
gelu = _activation("gelu", ("approximate", "approximate"))
softplus = _activation("softplus", ("beta", "beta"), ("threshold", "threshold"))
logsigmoid = _activation("logsigmoid")

# ---- arithmetic and shapes


def _arithmetic(op, python):
    def convert(self, x, y, *, alpha=1, out=None, rounding_mode=None):
        if alpha != 1 or rounding_mode is not None:
            self.refuse("alpha or rounding_mode")
        if not isinstance(x, _Ref) and not isinstance(y, _Ref):
            return python(x, y)  # of sizes
        return self.emit(op, (x, y))

    return convert


def _cat(self, tensors, dim=0):
    return self.emit("concatenate", tensors, axis=self.axis(dim))


def _chunk(self, x, chunks, dim=0):
    return _Parts(x.name, self.axis(dim), chunks=chunks)


def _split(self, x, split_size_or_sections=None, dim=0, split_size=None):
    return _Parts(x.name, self.axis(dim), sizes=split_size_or_sections or split_size)


def _getitem(self, x, index):
    if isinstance(x, _Shape):
        return _size(self, _Ref(x.name), index)
    if isinstance(x, (tuple, list)):
        return x[index]
    if isinstance(x, _Parts):
        return _part(self, x, index)
    index = index if isinstance(index, tuple) else (index,)
    if any(not isinstance(i, (slice, int, type(None), type(Ellipsis))) for i in index):
        self.refuse(f"indexing by {index}")
    cuts = [i for i in index if i is not None]
    taken = []
    for position, i in enumerate(cuts):
        after_dots = Ellipsis in cuts[:position]
        axis = position - len(cuts) if after_dots else position - 1
        if i is Ellipsis or i == slice(None):
            continue
        if axis == -1 and not after_dots:
            self.refuse("slicing the batch")
        if isinstance(i, int):
            taken.append(axis)
            i = slice(i, i + 1 or None)
        x = self.emit("slice", (x,), axis=axis, start=i.start, stop=i.stop, step=i.step)
    # Neither axes before the dots nor those behind them, which count from the end, may move those still to go.
    for axis in sorted((a for a in taken if a >= 0), reverse=True) + sorted(a for a in taken if a < 0):
        x = self.emit("squeeze", (x,), axis=axis)
    fresh = [i for i in index if not isinstance(i, int)]
    if None in fresh and Ellipsis in fresh:
        self.refuse(f"indexing by {index}")
    for position, i in enumerate(fresh):
        if i is None:
            x = self.emit("unsqueeze", (x,), axis=self.axis(position))
    return x


def _part(self, parts, index):
    x = _Ref(parts.name)
    if parts.chunks is not None:
        if index < 0:
            index += parts.chunks
        return self.emit("chunk", (x,), axis=parts.axis, chunks=parts.chunks, index=index)
    if index < 0:
        self.refuse("a part counted from the end")
    sizes = parts.sizes
    start = index * sizes if isinstance(sizes, int) else sum(sizes[:index])
    stop = start + (sizes if isinstance(sizes, int) else sizes[index])
    return self.emit("slice", (x,), axis=parts.axis, start=start, stop=stop)


def _getattr(self, x, name):
    if name != "shape" or not isinstance(x, _Ref):
        self.refuse(f"attribute {name!r}")
    return _Shape(x.name)


def _size(self, x, dim=None):
    if dim is None:
        return _Shape(x.name)
    if isinstance(dim, slice):  # of a feature map (N, C, H, W)
        return tuple(_size(self, x, axis) for axis in range(4)[dim])
    return _Dim(x.name, None if dim == 0 else self.axis(dim))


def _entry(value):
    if isinstance(value, _Computed):
        return -1
    return (value.name, value.axis) if isinstance(value, _Dim) else value


def _squeeze(self, x, dim=None):
    if dim is None:
        self.refuse("a squeeze of every axis, the batch's perhaps among them")
    for axis in (dim,) if isinstance(dim, int) else sorted(dim, key=lambda d: (d < 0, abs(d)), reverse=True):
        x = self.emit("squeeze", (x,), axis=self.axis(axis))
    return x


def _unsqueeze(self, x, dim):
    return self.emit("unsqueeze", (x,), axis=self.axis(dim))


def _transpose(self, x, dim0, dim1):
    return self.emit("transpose", (x,), axes=(self.axis(dim0), self.axis(dim1)))


def _expand(self, x, *shape):
    _, *rest = shape[0] if len(shape) == 1 else shape
    return self.emit("expand", (x,), shape=tuple(_entry(entry) for entry in rest))


def _expand_as(self, x, other):
    return self.emit("expand", (x,), shape=tuple((other.name, axis) for axis in range(3)))  # a map's


def _flatten(self, x, start_dim=0, end_dim=-1, name=None):
    return self.emit("flatten", (x,), name, start=self.axis(start_dim), end=self.axis(end_dim))


def _reshape(self, x, *shape):
    shape = tuple(shape[0]) if len(shape) == 1 and isinstance(shape[0], (tuple, list)) else shape
    batch, *rest = shape
    if not (batch in (-1, 1) or (isinstance(batch, _Dim) and batch.axis is None)):
        self.refuse(f"a reshape to {shape} that does not keep the batch axis in front")
    if [_entry(entry) for entry in (batch, *rest)].count(-1) > 1:
        self.refuse(f"a reshape to {shape}")
    return self.emit("reshape", (x,), shape=tuple(_entry(entry) for entry in rest))


def _permute(self, x, *dims):
    dims = tuple(dims[0]) if isinstance(dims[0], (tuple, list)) else dims
    if dims[0] != 0:
        self.refuse("a permutation that moves the batch axis")
    return self.emit("permute", (x,), axes=tuple(self.axis(dim) for dim in dims[1:]))


def _mean(self, x, dim=None, keepdim=False, **ignored):
    if dim is None:
        self.refuse("a mean over everything, the batch too")
    axes = tuple(self.axis(d) for d in ((dim,) if isinstance(dim, int) else dim))
    return self.emit("mean", (x,), axes=axes, keepdims=keepdim)


add, sub = _arithmetic("add", operator.add), _arithmetic("subtract", operator.sub)
mul, div = _arithmetic("multiply", operator.mul), _arithmetic("divide", operator.truediv)
adaptive_avg, adaptive_max = _adaptive("adaptive_avg_pool2d"), _adaptive("adaptive_max_pool2d")

MODULES = {
    nn.Conv2d: _conv2d_module,
    nn.Linear: lambda self, m, name, x: _linear(self, x, m.weight, m.bias, name),
    nn.BatchNorm2d: _batch_norm_module,
    nn.BatchNorm1d: _batch_norm_module,
    nn.LayerNorm: lambda self, m, name, x: _layer_norm(self, x, m.normalized_shape, m.weight, m.bias, m.eps, name),
    nn.GroupNorm: lambda self, m, name, x: _group_norm(self, x, m.num_groups, m.weight, m.bias, m.eps, name),
    nn.InstanceNorm2d: _instance_norm_module,
    nn.LocalResponseNorm: lambda self, m, name, x: _local_response_norm(self, x, m.size, m.alpha, m.beta, m.k, name),
    nn.MaxPool2d: _max_pool2d_module,
    nn.AvgPool2d: _avg_pool2d_module,
    nn.AdaptiveAvgPool2d: lambda self, m, name, x: adaptive_avg(self, x, m.output_size, name=name),
    nn.AdaptiveMaxPool2d: lambda self, m, name, x: adaptive_max(self, x, m.output_size, m.return_indices, name),
    nn.Upsample: _upsample_module,
    nn.UpsamplingBilinear2d: _upsample_module,
    nn.UpsamplingNearest2d: _upsample_module,
    nn.ZeroPad2d: lambda self, m, name, x: _zero_pad(self, x, m.padding, name=name),
    nn.ConstantPad2d: lambda self, m, name, x: _zero_pad(self, x, m.padding, value=m.value, name=name),
    nn.Flatten: lambda self, m, name, x: _flatten(self, x, m.start_dim, m.end_dim, name),
    nn.Identity: lambda self, m, name, x: x,
    nn.Dropout: lambda self, m, name, x: x,
    nn.Dropout2d: lambda self, m, name, x: x,
    nn.ReLU: _activation_module(relu),
    nn.ReLU6: _activation_module(relu6),
    nn.SiLU: _activation_module(silu),
    nn.Sigmoid: _activation_module(sigmoid),
    nn.Tanh: _activation_module(tanh),
    nn.Hardsigmoid: _activation_module(hardsigmoid),
    nn.Hardswish: _activation_module(hardswish),
    nn.Mish: _activation_module(mish),
    nn.SELU: _activation_module(selu),
    nn.LogSigmoid: _activation_module(logsigmoid),
    nn.LeakyReLU: _activation_module(leaky_relu, "negative_slope"),
    nn.ELU: _activation_module(elu, "alpha"),
    nn.CELU: _activation_module(celu, "alpha"),
    nn.Hardtanh: _activation_module(hardtanh, "min_val", "max_val"),
    nn.GELU: _activation_module(gelu, "approximate"),
    nn.Softplus: _activation_module(softplus, "beta", "threshold"),
    nn.PReLU: lambda self, m, name, x: _prelu(self, x, m.weight, name),
    nn.Softmax: lambda self, m, name, x: _softmax(self, x, m.dim, name),
}

FUNCTIONS = {
    F.conv2d: _conv2d,
    torch.conv2d: _conv2d,
    F.linear: _linear,
    F.batch_norm: _batch_norm,
    F.layer_norm: _layer_norm,
    F.group_norm: _group_norm,
    F.instance_norm: _instance_norm,
    F.local_response_norm: _local_response_norm,
    F.max_pool2d: _max_pool2d,
    F.max_pool2d_with_indices: _max_pool2d,
    torch.max_pool2d: _max_pool2d,
    F.avg_pool2d: _avg_pool2d,
    F.adaptive_avg_pool2d: adaptive_avg,
    F.adaptive_max_pool2d: adaptive_max,
    F.interpolate: _interpolate,
    F.pad: _zero_pad,
    F.dropout: _dropout,
    F.dropout2d: _dropout,
    F.softmax: _softmax,
    torch.softmax: _softmax,
    F.relu: relu,
    torch.relu: relu,
    torch.relu_: relu,
    F.relu6: relu6,
    F.silu: silu,
    F.sigmoid: sigmoid,
    torch.sigmoid: sigmoid,
    F.tanh: tanh,
    torch.tanh: tanh,
    F.hardsigmoid: hardsigmoid,
    F.hardswish: hardswish,
    F.mish: mish,
    F.selu: selu,
    torch.erf: erf,
    F.logsigmoid: logsigmoid,
    F.leaky_relu: leaky_relu,
    F.elu: elu,
    F.celu: celu,
    F.hardtanh: hardtanh,
    F.gelu: gelu,
    F.softplus: softplus,
    F.prelu: _prelu,
    operator.add: add,
    operator.iadd: add,
    torch.add: add,
    operator.sub: sub,
    torch.sub: sub,
    operator.mul: mul,
    operator.imul: mul,
    torch.mul: mul,
    operator.truediv: div,
    torch.div: div,
    operator.floordiv: lambda self, x, y: x // y,
    torch.cat: _cat,
    torch.concat: _cat,
    torch.chunk: _chunk,
    torch.split: _split,
    torch.flatten: _flatten,
    torch.reshape: _reshape,
    torch.permute: _permute,
    torch.transpose: _transpose,
    torch.squeeze: _squeeze,
    torch.unsqueeze: _unsqueeze,
    torch.mean: _mean,
    operator.getitem: _getitem,
    getattr: _getattr,
}

METHODS = {
    "relu": relu,
    "relu_": relu,
    "sigmoid": sigmoid,
    "sigmoid_": sigmoid,
    "tanh": tanh,
    "softmax": _softmax,
    "add": add,
    "add_": add,
    "sub": sub,
    "mul": mul,
    "mul_": mul,
    "div": div,
    "chunk": _chunk,
    "split": _split,
    "flatten": _flatten,
    "view": _reshape,
    "reshape": _reshape,
    "permute": _permute,
    "transpose": _transpose,
    "squeeze": _squeeze,
    "unsqueeze": _unsqueeze,
    "expand": _expand,
    "expand_as": _expand_as,
    "mean": _mean,
    "size": _size,
    "contiguous": _same,
    "clone": lambda self, x: self.emit("identity", (x,)),
    "detach": _same,
}
