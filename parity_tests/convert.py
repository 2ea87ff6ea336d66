"""A torch module in evaluation mode -> the oracle's network as plain data (`prm.reference.network`), by torch.fx.

Written for the tests and independent of the fast path's own tracing, so that neither can hide the other's mistake.
Torch counts axes with the batch in front, the oracle without: axis 1 here is axis 0 there.
"""

import inspect
import operator
from dataclasses import dataclass
from types import FunctionType

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


def _symbolic(values):
    """Whether anything in the nested values stands for a tensor of the network or its size."""
    if isinstance(values, dict):
        values = list(values.values())
    if isinstance(values, (tuple, list)):
        return any(_symbolic(v) for v in values)
    return isinstance(values, (_Ref, _Shape, _Dim, _Computed, FunctionType))


def _array(tensor):
    if tensor is None:
        return None
    tensor = tensor.detach().cpu()
    return (tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.double()).numpy().copy()


def _pair(value):
    return (value, value) if isinstance(value, int) else tuple(value)


class _Conversion:
    def __init__(self, traced):
        self.traced, self.nodes, self.env = traced, [], {}
        self.modules = dict(traced.named_modules())
        for node in traced.graph.nodes:
            self.where = f"{node.target} ({node.name})"
            self.path = {"placeholder": node.name, "call_module": node.target}.get(node.op)
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

    def emit(self, op, inputs, **params):
        """A node, named after the module that is visited, if any."""
        name = self.path or f"{op}_{len(self.nodes)}"
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
            return self.emit("input", ())
        if node.op == "get_attr":
            return operator.attrgetter(node.target)(self.traced)
        if node.op == "call_module":
            return self.layer(self.modules[node.target], args[0])
        if not _symbolic((args, kwargs)):  # parameters and numbers among themselves
            function = node.target if node.op == "call_function" else getattr(type(args[0]), node.target)
            with torch.no_grad():
                return function(*args, **kwargs)
        if getattr(node.target, "__name__", "") == "stochastic_depth":
            x, p, _, *training = args
            return _dropout(self, x, p, *training, **kwargs)
        table = FUNCTIONS if node.op == "call_function" else METHODS
        if node.target not in table:
            self.refuse("no counterpart")
        return table[node.target](self, *args, **kwargs)

    def layer(self, module, x):
        """A module's function, called with its attributes of the same names."""
        if type(module) not in MODULES:
            self.refuse(f"module {type(module).__name__} has no counterpart")
        function = MODULES[type(module)]
        names = getattr(function, "names", inspect.signature(function).parameters)
        given = {name: getattr(module, name) for name in names if hasattr(module, name)}
        if getattr(module, "padding_mode", "zeros") != "zeros":
            rows, columns = _pair(module.padding)
            x = _copies(self, x, (columns, columns, rows, rows), module.padding_mode)
            given["padding"] = 0
        if isinstance(module, nn.InstanceNorm2d):
            given["use_input_stats"] = not module.track_running_stats
        if isinstance(module, nn.ConstantPad2d):
            given["pad"] = module.padding
        return function(self, x, **given)

    def axis(self, dim):
        """Torch's axis, with the batch in front, as the oracle's."""
        if dim == 0:
            self.refuse("an operation along the batch axis")
        return dim - 1 if dim > 0 else dim


# ---- layers: functions as torch calls them, the conversion first


def _conv2d(self, x, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    if padding == "same":
        spans = [d * (k - 1) for k, d in zip(weight.shape[2:], _pair(dilation))]
        (top, bottom), (left, right) = ((span // 2, span - span // 2) for span in spans)
        padding = (left, right, top, bottom)
    padding = 0 if padding == "valid" else padding
    params = {"stride": _pair(stride), "padding": padding, "dilation": _pair(dilation), "groups": groups}
    return self.emit("conv2d", (x,), weight=_array(weight), bias=_array(bias), **params)


def _linear(self, x, weight, bias=None):
    return self.emit("linear", (x,), weight=_array(weight), bias=_array(bias))


def _statistics(mean, var, weight, bias):
    return {name: _array(value) for name, value in zip(("mean", "var", "weight", "bias"), (mean, var, weight, bias))}


def _batch_norm(self, x, running_mean, running_var, weight=None, bias=None, training=False, momentum=0.1, eps=1e-5):
    if training or running_mean is None:
        self.refuse("batch norm in training mode")
    return self.emit("batch_norm", (x,), **_statistics(running_mean, running_var, weight, bias), eps=eps)


def _layer_norm(self, x, normalized_shape, weight=None, bias=None, eps=1e-5):
    axes = 1 if isinstance(normalized_shape, int) else len(normalized_shape)
    return self.emit("layer_norm", (x,), axes=axes, weight=_array(weight), bias=_array(bias), eps=eps)


def _group_norm(self, x, num_groups, weight=None, bias=None, eps=1e-5):
    return self.emit("group_norm", (x,), groups=num_groups, weight=_array(weight), bias=_array(bias), eps=eps)


def _instance_norm(
    self, x, running_mean=None, running_var=None, weight=None, bias=None, use_input_stats=True, momentum=0.1, eps=1e-5
):
    mean, var = (None, None) if use_input_stats else (running_mean, running_var)
    return self.emit("instance_norm", (x,), **_statistics(mean, var, weight, bias), eps=eps)


def _local_response_norm(self, x, size, alpha=1e-4, beta=0.75, k=1.0):
    return self.emit("local_response_norm", (x,), size=size, alpha=alpha, beta=beta, k=k)


def _windows(kernel_size, stride, padding):
    return {"kernel": _pair(kernel_size), "stride": _pair(stride or kernel_size), "padding": _pair(padding)}


def _max_pool2d(self, x, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False, return_indices=False):
    if return_indices:
        self.refuse("return_indices")
    where = _windows(kernel_size, stride, padding)
    return self.emit("max_pool2d", (x,), **where, dilation=_pair(dilation), ceil_mode=ceil_mode)


def _avg_pool2d(
    self, x, kernel_size, stride=None, padding=0, ceil_mode=False, count_include_pad=True, divisor_override=None
):
    count = {"count_include_pad": count_include_pad, "divisor_override": divisor_override}
    return self.emit("avg_pool2d", (x,), **_windows(kernel_size, stride, padding), ceil_mode=ceil_mode, **count)


def _adaptive(op):
    def convert(self, x, output_size, return_indices=False):
        if return_indices:
            self.refuse("return_indices")
        size = output_size if isinstance(output_size, int) else tuple(_entry(entry) for entry in output_size)
        return self.emit(op, (x,), size=size)

    return convert


def _interpolate(
    self, x, size=None, scale_factor=None, mode="nearest", align_corners=None, recompute_scale_factor=None,
    antialias=False,
):  # fmt: skip
    if antialias or recompute_scale_factor:
        self.refuse("antialias or recompute_scale_factor")
    params = {"mode": mode, "align_corners": bool(align_corners)}
    if size is None:
        return self.emit("interpolate", (x,), **params, scale=scale_factor)
    size = (size, size) if isinstance(size, int) else tuple(size)
    return self.emit("interpolate", (x,), **params, size=tuple(_entry(entry) for entry in size))


def _pad(self, x, pad, mode="constant", value=None):
    padding = (*pad, 0, 0)[:4]
    if mode == "constant" and value:
        return self.emit("pad", (x,), padding=padding, value=value)
    return self.emit("zero_pad", (x,), padding=padding) if mode == "constant" else _copies(self, x, padding, mode)


def _copies(self, x, padding, mode):
    return self.emit("pad", (x,), padding=_sides(padding), mode=mode)


def _sides(padding):
    """A module's padding as (left, right, top, bottom)."""
    return (padding,) * 4 if isinstance(padding, int) else tuple(padding)


def _reflection_pad(self, x, padding):
    return _copies(self, x, padding, "reflect")


def _replication_pad(self, x, padding):
    return _copies(self, x, padding, "replicate")


def _circular_pad(self, x, padding):
    return _copies(self, x, padding, "circular")


def _same(self, x, *args, **kwargs):
    """An operator that returns its input: the same tensor under another name."""
    return x


def _dropout(self, x, p=0.5, training=True, inplace=False):
    if training:
        self.refuse("dropout in training mode")
    return x


def _softmax(self, x, dim=None, **ignored):
    return self.emit("softmax", (x,), axis=self.axis(dim))


def _prelu(self, x, weight):
    return self.emit("prelu", (x,), weight=_array(weight))


def _activation(op, names):
    """names: of torch's parameters, in order; the oracle's are the same, but for the slope."""

    def convert(self, x, *args, inplace=False, **kwargs):
        params = dict(zip(names, args)) | kwargs
        return self.emit(op, (x,), **{{"negative_slope": "slope"}.get(name, name): params[name] for name in params})

    convert.names = names
    return convert


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


def _stack(self, tensors, dim=0):
    return _cat(self, [_unsqueeze(self, x, dim) for x in tensors], dim)


def _power(exponent=None):
    def convert(self, x, given=None):
        return self.emit("power", (x,), exponent=given if exponent is None else exponent)

    return convert


def _chunk(self, x, chunks, dim=0):
    """A function of the part's index; so is what split returns."""
    axis = self.axis(dim)
    return lambda index: self.emit("chunk", (x,), axis=axis, chunks=chunks, index=index % chunks)


def _split(self, x, split_size_or_sections=None, dim=0, split_size=None):
    axis, sizes = self.axis(dim), split_size_or_sections or split_size

    def part(index):
        if index < 0:
            self.refuse("a part counted from the end")
        before, size = (index * sizes, sizes) if isinstance(sizes, int) else (sum(sizes[:index]), sizes[index])
        return self.emit("slice", (x,), axis=axis, start=before, stop=before + size)

    return part


def _getitem(self, x, index):
    if isinstance(x, _Shape):
        return _size(self, _Ref(x.name), index)
    if isinstance(x, (tuple, list)):
        return x[index]
    if isinstance(x, FunctionType):
        return x(index)
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


def _flatten(self, x, start_dim=0, end_dim=-1):
    return self.emit("flatten", (x,), start=self.axis(start_dim), end=self.axis(end_dim))


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
    return self.emit("mean", (x,), axes=_axes(self, dim), keepdims=keepdim)


def _axes(self, dim):
    return tuple(self.axis(d) for d in ((dim,) if isinstance(dim, int) else dim))


def _sum(self, x, dim, keepdim=False):
    return self.emit("sum", (x,), axes=_axes(self, dim), keepdims=keepdim)


def _norm(self, x, p=2, dim=None, keepdim=False):
    if p != 2:
        self.refuse("another norm than the root of the sum of squares")
    return self.emit("norm", (x,), axes=_axes(self, dim), keepdims=keepdim)


# ---- by torch's names

ACTIVATIONS = {
    "relu": (nn.ReLU,), "relu6": (nn.ReLU6,), "silu": (nn.SiLU,), "sigmoid": (nn.Sigmoid,), "tanh": (nn.Tanh,),
    "hardsigmoid": (nn.Hardsigmoid,), "hardswish": (nn.Hardswish,), "mish": (nn.Mish,), "selu": (nn.SELU,),
    "logsigmoid": (nn.LogSigmoid,), "erf": (None,), "leaky_relu": (nn.LeakyReLU, "negative_slope"),
    "elu": (nn.ELU, "alpha"), "celu": (nn.CELU, "alpha"), "hardtanh": (nn.Hardtanh, "min_val", "max_val"),
    "gelu": (nn.GELU, "approximate"), "softplus": (nn.Softplus, "beta", "threshold"),
}  # fmt: skip
_activations = {name: _activation(name, names) for name, (_, *names) in ACTIVATIONS.items()}
_add, _sub = _arithmetic("add", operator.add), _arithmetic("subtract", operator.sub)
_mul, _div = _arithmetic("multiply", operator.mul), _arithmetic("divide", operator.truediv)
_swapaxes = _swapdims = _transpose
_pow, _square, _sqrt, _rsqrt = _power(), _power(2.0), _power(0.5), _power(-0.5)


def _addcmul(self, x, tensor1, tensor2, value=1):
    return _add(self, x, _mul(self, _mul(self, tensor1, tensor2), value))


_adaptive_avg_pool2d, _adaptive_max_pool2d = _adaptive("adaptive_avg_pool2d"), _adaptive("adaptive_max_pool2d")


def _named(*names):
    return {name: globals()[f"_{name}"] for name in names}


# of torch.nn.functional alone: torch's own of the same name take other arguments
LAYERS = _named("conv2d", "linear", "batch_norm", "layer_norm", "group_norm", "instance_norm", "local_response_norm",
                "max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "adaptive_max_pool2d", "interpolate", "pad", "prelu",
                "dropout")  # fmt: skip
# of torch, as methods, and where torch.nn.functional has them
CALLS = _activations | _named("softmax", "add", "sub", "mul", "div", "cat", "chunk", "split", "flatten", "reshape",
                              "permute", "transpose", "swapaxes", "swapdims", "addcmul", "squeeze", "unsqueeze",
                              "mean", "sum", "norm", "stack", "pow", "square", "sqrt", "rsqrt")  # fmt: skip
CALLS |= {f"{name}_": function for name, function in CALLS.items()}
METHODS = {
    **CALLS, **_named("expand", "expand_as", "size"), "view": _reshape, "contiguous": _same, "detach": _same,
    "clone": lambda self, x: self.emit("identity", (x,)),
}  # fmt: skip
FUNCTIONS = {
    **{getattr(F, name): function for name, function in LAYERS.items()},
    **{getattr(owner, name): function for owner in (F, torch) for name, function in CALLS.items()
       if hasattr(owner, name)},
    torch.conv2d: _conv2d, torch.concat: _cat, F.dropout2d: _dropout, getattr: _getattr, operator.getitem: _getitem,
    operator.add: _add, operator.iadd: _add, operator.sub: _sub, operator.mul: _mul, operator.imul: _mul,
    operator.truediv: _div, operator.pow: _pow, operator.floordiv: lambda self, x, y: x // y,
}  # fmt: skip
# a type -> its function, which is called with those of the module's attributes that are named like its parameters
MODULES = {
    nn.Conv2d: _conv2d, nn.Linear: _linear, nn.BatchNorm1d: _batch_norm, nn.BatchNorm2d: _batch_norm,
    nn.LayerNorm: _layer_norm, nn.GroupNorm: _group_norm, nn.InstanceNorm2d: _instance_norm,
    nn.LocalResponseNorm: _local_response_norm, nn.MaxPool2d: _max_pool2d, nn.AvgPool2d: _avg_pool2d,
    nn.AdaptiveAvgPool2d: _adaptive_avg_pool2d, nn.AdaptiveMaxPool2d: _adaptive_max_pool2d,
    nn.Upsample: _interpolate, nn.UpsamplingBilinear2d: _interpolate, nn.UpsamplingNearest2d: _interpolate,
    nn.ZeroPad2d: _pad, nn.ConstantPad2d: _pad, nn.ReflectionPad2d: _reflection_pad,
    nn.ReplicationPad2d: _replication_pad, nn.CircularPad2d: _circular_pad,
    nn.Flatten: _flatten, nn.PReLU: _prelu, nn.Softmax: _softmax,
    nn.Identity: _same, nn.Dropout: _same, nn.Dropout2d: _same,
    **{kind: _activations[name] for name, (kind, *_) in ACTIVATIONS.items()},
}  # fmt: skip
