"""A network as plain data, its forward pass, and the walk of Eq. 4-5 back through it, for one image, in float64.

A network is a sequence of nodes in the order of their computation: one `input` node, every other node after its inputs,
the last node the output (or `Network.output`). The output (C, H, W) is the stack of class response maps. Arrays have no
batch axis: feature maps (C, H, W), vectors (F,). Axes in parameters count from 0 = channel, or from the end.

| op | inputs | params |
|----|--------|--------|
| input | - | - |
| constant | - | value (a leading axis of 1, the batch's, is dropped where it is one too many), learned=False |
| conv2d | x | weight, bias=None, stride=1, padding=0, dilation=1, groups=1 |
| linear | x | weight, bias=None |
| batch_norm | x | mean, var, weight=None, bias=None, eps=1e-5 |
| layer_norm | x | axes=1 (how many of the last), weight=None, bias=None, eps=1e-5 |
| group_norm | x | groups, weight=None, bias=None, eps=1e-5 |
| instance_norm | x | mean=None, var=None (None: the image's own), weight=None, bias=None, eps=1e-5 |
| local_response_norm | x | size, alpha=1e-4, beta=0.75, k=1.0 |
| an activation, see ACTIVATIONS | x | slope, alpha, ... |
| softmax | x | axis |
| identity, dropout | x | - |
| zero_pad | x | padding (left, right, top, bottom) |
| max_pool2d | x | kernel, stride=None, padding=0, dilation=1, ceil_mode=False |
| avg_pool2d | x | kernel, stride=None, padding=0, ceil_mode=False, count_include_pad=True, divisor_override=None |
| adaptive_max_pool2d, adaptive_avg_pool2d | x | size (each entry a number, or None: keep) |
| mean | x | axes=(1, 2), keepdims=False |
| interpolate | x | mode, align_corners=False, size or scale |
| add, subtract, multiply, divide | x, y | - |
| concatenate | x, y, ... | axis=0 |
| slice | x | axis, start=None, stop=None, step=None |
| chunk | x | axis, chunks, index |
| flatten | x | start=0, end=-1 |
| reshape | x | shape |
| squeeze, unsqueeze | x | axis |
| expand | x | shape (-1: keep) |
| permute | x | axes |
| transpose | x | axes: the two that change places |

An entry of `size` and `shape` may be a pair (node name, axis): the size of that node's array along that axis.
A `learned` constant is a parameter of the network: as a factor it may have either sign, a number must be positive.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import sqrt

import numpy as np
from scipy.special import erf, expit, softmax

from . import peak_backprop as eq


@dataclass(frozen=True)
class Node:
    """One operation: its name, the operator, the names of its inputs, its parameters (NumPy arrays and numbers)."""

    name: str
    op: str
    inputs: tuple[str, ...] = ()
    params: Mapping = field(default_factory=dict)


@dataclass(frozen=True)
class Network:
    """Nodes in order and the name of the one that is the output."""

    nodes: tuple[Node, ...]
    output: str


@dataclass(frozen=True)
class Walk:
    """Where the walker ended. start mass = arrived + leaked.

    prm (H, W): the Peak Response Map, sum 1, or all zero when `empty`; P (C, H, W): the visits of the image, not
    divided; arrived = sum(P); leaked: what layers could not pass on; account: node -> (mass that entered, that leaked).
    """

    prm: np.ndarray
    empty: bool
    P: np.ndarray
    arrived: float
    leaked: float
    account: dict[str, tuple[float, float]]


def as_network(network) -> Network:
    """A Network from one, or from a sequence of nodes or of dicts with a node's fields. Checks names and rules.

    ValueError: names that repeat or come late, or not exactly one input. NotImplementedError: an unknown operator.
    """
    if not isinstance(network, Network):
        nodes = tuple(node if isinstance(node, Node) else Node(**node) for node in network)
        network = Network(nodes, nodes[-1].name)
    seen: set[str] = set()
    for node in network.nodes:
        if node.name in seen or not set(node.inputs) <= seen:
            raise ValueError(f"node {node.name!r} repeats a name or comes before one of its inputs {node.inputs}")
        seen.add(node.name)
        if node.op not in FORWARD and node.op not in ("input", "constant"):
            raise NotImplementedError(f"operator {node.op!r} of node {node.name!r} has no rule")
    if [node.op for node in network.nodes].count("input") != 1 or network.output not in seen:
        raise ValueError("a network has exactly one input node and an output that is one of its nodes")
    return network


# ---- forward


def forward(network, image) -> dict[str, np.ndarray]:
    """The values of all nodes for one image (C, H, W), by node name, float64. Nothing is computed in place."""
    network = as_network(network)
    plan(network)
    constants = _constants(network)
    values = dict(constants)
    for node in network.nodes:
        if node.op == "input":
            values[node.name] = np.array(image, np.float64)
        elif node.name not in constants:
            values[node.name] = _apply(node, values, constants)
    return values


def _constants(network):
    """The values of the nodes that no image changes: constants and what is computed from them alone."""
    values = {}
    for node in network.nodes:
        if node.op == "constant":
            values[node.name] = np.array(node.params["value"], np.float64)
        elif node.inputs and all(name in values for name in node.inputs):
            values[node.name] = _apply(node, values, values)
    return values


def _learned(network, constants):
    """The constants that are parameters of the network or computed from some."""
    names: set[str] = set()
    for node in network.nodes:
        if node.name in constants and (node.params.get("learned") or names & set(node.inputs)):
            names.add(node.name)
    return names


def _apply(node, values, constants):
    params = dict(node.params)
    for key in {"size", "shape"} & params.keys():
        params[key] = _sizes(params[key], values)
    return np.asarray(FORWARD[node.op](*_inputs(node, values, constants), **params), np.float64)


def _inputs(node, values, constants):
    """The node's input arrays; a constant with one axis more than the others loses that axis, the batch's."""
    ndim = max((values[name].ndim for name in node.inputs if name not in constants), default=np.inf)
    arrays = [values[name] for name in node.inputs]
    return [
        U[0] if name in constants and U.ndim == ndim + 1 and U.shape[0] == 1 else U
        for name, U in zip(node.inputs, arrays)
    ]


def _sizes(entries, values):
    if not isinstance(entries, Sequence):
        return entries
    return tuple(values[e[0]].shape[e[1]] if isinstance(e, (tuple, list)) else e for e in entries)


def _batch_norm(U, mean, var, weight=None, bias=None, eps=1e-5):
    shape = (-1,) + (1,) * (U.ndim - 1)
    V = (U - np.reshape(mean, shape)) / np.sqrt(np.reshape(np.asarray(var, np.float64), shape) + eps)
    return _affine(V, weight, bias, 0)


def _affine(V, weight, bias, axis):
    """V * weight + bias, both counted along `axis`; or along all the last axes if `axis` is None."""
    shape = None if axis is None else tuple(-1 if a == axis else 1 for a in range(V.ndim))
    weight, bias = (p if p is None or shape is None else np.reshape(p, shape) for p in (weight, bias))
    V = V if weight is None else V * weight
    return V if bias is None else V + bias


def _layer_norm(U, axes=1, weight=None, bias=None, eps=1e-5):
    over = tuple(range(-axes, 0))
    V = (U - U.mean(axis=over, keepdims=True)) / np.sqrt(U.var(axis=over, keepdims=True) + eps)
    return _affine(V, weight, bias, None)


def _group_norm(U, groups, weight=None, bias=None, eps=1e-5):
    V = U.reshape(groups, -1)
    V = (V - V.mean(axis=1, keepdims=True)) / np.sqrt(V.var(axis=1, keepdims=True) + eps)
    return _affine(V.reshape(U.shape), weight, bias, 0)


def _instance_norm(U, mean=None, var=None, weight=None, bias=None, eps=1e-5):
    if mean is None:
        return _group_norm(U, U.shape[0], weight, bias, eps)
    return _batch_norm(U, mean, var, weight, bias, eps)


def _local_response_norm(U, size, alpha=1e-4, beta=0.75, k=1.0):
    mean = np.zeros(U.shape)  # of the squares of `size` channels around, those outside being zero
    for c in range(U.shape[0]):
        mean[c] = np.sum(U[max(0, c - size // 2) : c + (size - 1) // 2 + 1] ** 2, axis=0) / size
    return U / (k + alpha * mean) ** beta


def _zero_pad(U, padding):
    left, right, top, bottom = eq.sides(padding)
    return np.pad(U, ((0, 0), (top, bottom), (left, right)))


def _pool_size(U, kernel, stride, padding, dilation, ceil_mode):
    left, right, top, bottom = eq.sides(padding)
    kernel, stride, dilation = eq.pair(kernel), eq.pair(stride), eq.pair(dilation)
    return (
        eq.pooled_size(U.shape[1], kernel[0], stride[0], top, bottom, dilation[0], ceil_mode),
        eq.pooled_size(U.shape[2], kernel[1], stride[1], left, right, dilation[1], ceil_mode),
    )


def _max_pool2d(U, kernel, stride=None, padding=0, dilation=1, ceil_mode=False):
    kernel, dilation = eq.pair(kernel), eq.pair(dilation)
    stride = kernel if stride is None else eq.pair(stride)
    left, _, top, _ = eq.sides(padding)
    size = _pool_size(U, kernel, stride, padding, dilation, ceil_mode)
    V = np.full((U.shape[0], *size), -np.inf)
    for p, q, a, b in np.ndindex(*size, *kernel):
        i, j = p * stride[0] - top + a * dilation[0], q * stride[1] - left + b * dilation[1]
        if 0 <= i < U.shape[1] and 0 <= j < U.shape[2]:
            V[:, p, q] = np.maximum(V[:, p, q], U[:, i, j])
    return V


def _avg_pool2d(U, kernel, stride=None, padding=0, ceil_mode=False, count_include_pad=True, divisor_override=None):
    kernel = eq.pair(kernel)
    stride = kernel if stride is None else eq.pair(stride)
    left, right, top, bottom = eq.sides(padding)
    size = _pool_size(U, kernel, stride, padding, 1, ceil_mode)
    rows = eq.pool_windows(size[0], U.shape[1], kernel[0], stride[0], top, bottom)
    columns = eq.pool_windows(size[1], U.shape[2], kernel[1], stride[1], left, right)
    V = np.zeros((U.shape[0], *size))
    for p, (i0, i1, full_rows) in enumerate(rows):
        for q, (j0, j1, full_columns) in enumerate(columns):
            count = full_rows * full_columns if count_include_pad else (i1 - i0) * (j1 - j0)
            V[:, p, q] = U[:, i0:i1, j0:j1].sum(axis=(1, 2)) / (divisor_override or count)
    return V


def _adaptive(reduce):
    def pool(U, size):
        size = eq.pair(size)
        out = [U.shape[axis + 1] if size[axis] is None else size[axis] for axis in (0, 1)]
        V = np.zeros((U.shape[0], *out))
        for p, q in np.ndindex(*out):
            (i0, i1), (j0, j1) = eq.bin_of(p, U.shape[1], out[0]), eq.bin_of(q, U.shape[2], out[1])
            V[:, p, q] = reduce(U[:, i0:i1, j0:j1], axis=(1, 2))
        return V

    return pool


def _interpolate(U, mode="nearest", align_corners=False, size=None, scale=None):
    scale = (None, None) if scale is None else eq.pair(scale)
    if size is None:
        size = tuple(int(np.floor(n * factor)) for n, factor in zip(U.shape[1:], scale))
    rows, columns = (
        eq.interpolation_weights(n, out, mode, align_corners, factor)
        for n, out, factor in zip(U.shape[1:], eq.pair(size), scale)
    )
    return rows @ U @ columns.T


def _chunk_bounds(size, chunks, index):
    width = -(-size // chunks)
    return index * width, min((index + 1) * width, size)


def _slice(U, axis, start=None, stop=None, step=None):
    where = [slice(None)] * U.ndim
    where[axis] = slice(start, stop, step)
    return U[tuple(where)]


def _chunk(U, axis, chunks, index):
    return _slice(U, axis, *_chunk_bounds(U.shape[axis], chunks, index))


def _flatten(U, start=0, end=-1):
    start, end = start % U.ndim, end % U.ndim
    return U.reshape(*U.shape[:start], -1, *U.shape[end + 1 :])


def _expand(U, shape):
    return np.broadcast_to(U, [have if want == -1 else want for have, want in zip(U.shape, shape, strict=True)])


def _gelu(U, approximate="none"):
    if approximate == "tanh":
        return 0.5 * U * (1.0 + np.tanh(sqrt(2.0 / np.pi) * (U + 0.044715 * U**3)))
    return 0.5 * U * (1.0 + erf(U / sqrt(2.0)))


def _softplus(U, beta=1.0, threshold=20.0):
    return np.where(beta * U > threshold, U, np.logaddexp(0.0, beta * U) / beta)


def _elu(U, alpha=1.0, scale=1.0):
    return scale * np.where(U > 0, U, alpha * np.expm1(np.minimum(U, 0.0)))


SELU = {"alpha": 1.6732632423543772848170429916717, "scale": 1.0507009873554804934193349852946}

# Elementwise, each with the rule "P unchanged".
ACTIVATIONS = {
    "relu": lambda U: np.maximum(U, 0.0),
    "relu6": lambda U: np.clip(U, 0.0, 6.0),
    "hardtanh": lambda U, min_val=-1.0, max_val=1.0: np.clip(U, min_val, max_val),
    "leaky_relu": lambda U, slope=0.01: np.where(U > 0, U, slope * U),
    "prelu": lambda U, weight: np.where(U > 0, U, np.reshape(weight, (-1,) + (1,) * (U.ndim - 1)) * U),
    "elu": _elu,
    "selu": lambda U: _elu(U, **SELU),
    "celu": lambda U, alpha=1.0: np.where(U > 0, U, alpha * np.expm1(np.minimum(U, 0.0) / alpha)),
    "gelu": _gelu,
    "silu": lambda U: U * expit(U),
    "mish": lambda U: U * np.tanh(_softplus(U)),
    "sigmoid": expit,
    "tanh": np.tanh,
    "erf": erf,
    "hardsigmoid": lambda U: np.clip(U + 3.0, 0.0, 6.0) / 6.0,
    "hardswish": lambda U: U * np.clip(U + 3.0, 0.0, 6.0) / 6.0,
    "softplus": _softplus,
    "logsigmoid": lambda U: -np.logaddexp(0.0, -U),
}
GATES = ("sigmoid", "hardsigmoid", "softmax")
UNCHANGED = {"identity": lambda U: U, "dropout": lambda U: U}
# Each with the rule "P unchanged", for the reason given at `peak_backprop.normalization`.
NORMS = {
    "layer_norm": _layer_norm,
    "group_norm": _group_norm,
    "instance_norm": _instance_norm,
    "local_response_norm": _local_response_norm,
}
SHAPES = {
    "flatten": _flatten,
    "reshape": lambda U, shape: U.reshape(shape),
    "squeeze": lambda U, axis: np.squeeze(U, axis),
    "unsqueeze": lambda U, axis: np.expand_dims(U, axis),
    "expand": _expand,
    "permute": lambda U, axes: U.transpose(axes),
    "transpose": lambda U, axes: np.swapaxes(U, *axes),
    "slice": _slice,
    "chunk": _chunk,
}

FORWARD = {
    **ACTIVATIONS,
    **UNCHANGED,
    **NORMS,
    **SHAPES,
    "softmax": lambda U, axis: softmax(U, axis=axis),
    "conv2d": lambda U, weight, **rest: eq.convolve(U, weight, **rest),
    "linear": lambda U, weight, bias=None: U @ np.asarray(weight, np.float64).T + (0.0 if bias is None else bias),
    "batch_norm": _batch_norm,
    "zero_pad": _zero_pad,
    "max_pool2d": _max_pool2d,
    "avg_pool2d": _avg_pool2d,
    "adaptive_max_pool2d": _adaptive(np.max),
    "adaptive_avg_pool2d": _adaptive(np.mean),
    "mean": lambda U, axes=(1, 2), keepdims=False: U.mean(axis=axes, keepdims=keepdims),
    "interpolate": _interpolate,
    "add": np.add,
    "subtract": np.subtract,
    "multiply": np.multiply,
    "divide": np.divide,
    "concatenate": lambda *U, axis=0: np.concatenate(U, axis=axis),
}


# ---- the walk


def walk(network, activations, peak, upsample=1, signed=False) -> Walk:
    """Eq. 4-5 through the whole network, from the peak (class, row, column) of the output to the image.

    activations: from `forward`. upsample: the enlargement on which the peak was found; its row and column are then
    enlarged coordinates. signed: the sign-split rule of `peak_backprop.conv2d` for the convolutions that see the image.
    Contributions of several consumers to one tensor are added.
    """
    network = as_network(network)
    constants = _constants(network)
    steps = plan(network, activations)
    inputs_side = _near_input(network, constants) if signed else set()
    mass = {network.output: eq.start(peak, activations[network.output].shape, upsample)}
    account = {}
    for node in reversed(steps):
        if node.op == "input":
            continue
        P = mass.pop(node.name)
        U = _inputs(node, activations, constants)
        if node.op == "conv2d" and node.inputs[0] in inputs_side:
            node = replace(node, params={**node.params, "signed": True})
        shares, leaked = RULES[node.op](P, node, U)
        for name, share in zip(node.inputs, shares):
            if share is None:
                continue
            if name in constants:
                leaked += float(share.sum())  # a concatenated constant: the walker ends there
            else:
                mass[name] = mass.get(name, 0.0) + share
        account[node.name] = (float(P.sum()), leaked)
    (P_image,) = mass.values()  # every other node has passed its own on
    R, empty = eq.peak_response_map(P_image)
    return Walk(R, empty, P_image, float(P_image.sum()), sum(leak for _, leak in account.values()), account)


def plan(network, activations=None) -> list[Node]:
    """The nodes that the walker can visit, in order, rewritten for it. Refuses what has no rule: operator and node.

    Zero pads are merged into the convolution or average pool after them, batch norms hung on their convolution, and
    every multiplication knows which operand P goes to (where only shapes tell, when `activations` are given).
    """
    network = as_network(network)
    constants = _constants(network)
    nodes = _live({node.name: node for node in network.nodes}, network.output, lambda node: node.inputs)
    nodes = _fold_batch_norms(nodes, network.output)
    nodes = {node.name: _merge_zero_padding(node, nodes) for node in nodes.values()}
    learned = _learned(network, constants)
    nodes = {node.name: _choose_takers(node, nodes, constants, learned, activations) for node in nodes.values()}
    visited = _live(nodes, network.output, lambda node: _takes_mass(node, constants))
    for node in visited.values():
        _check_rule(node)
    if activations is not None and "input" not in [node.op for node in visited.values()]:
        raise ValueError(f"no walk leads from the output {network.output!r} to the image")
    return list(visited.values())


def _live(nodes, output, inputs_of):
    """The nodes that `output` is reached from, going along inputs_of(node), in the network's order."""
    reached = {output}
    for node in reversed(nodes.values()):
        if node.name in reached:
            reached.update(inputs_of(node))
    return {name: node for name, node in nodes.items() if name in reached}


def _takes_mass(node, constants):
    if "taker" in node.params:
        taker = node.params["taker"]
        return () if taker is None else (node.inputs[taker],)
    return tuple(name for name in node.inputs if name not in constants)


def _check_rule(node):
    where = f"operator {node.op!r} of node {node.name!r}"
    if node.op == "zero_pad":
        raise NotImplementedError(f"{where}: zero padding has a rule only before a convolution or average pool")
    if node.op not in RULES and node.op != "input":
        raise NotImplementedError(f"{where} has no rule for the walk back")
    if node.op == "interpolate" and node.params.get("mode", "nearest") not in ("bilinear", "nearest", "nearest-exact"):
        raise NotImplementedError(f"{where}: mode {node.params['mode']!r} has no rule, its weights may be negative")
    if node.op == "avg_pool2d" and (node.params.get("divisor_override") or 1) < 0:
        raise NotImplementedError(f"{where}: a negative divisor has no rule")


def _fold_batch_norms(nodes, output):
    """Hangs a batch norm's parameters on the convolution that it alone consumes (identity, dropout may lie between)."""
    consumers = [name for node in nodes.values() for name in node.inputs] + [output]
    nodes = dict(nodes)
    for node in list(nodes.values()):
        if node.op != "batch_norm":
            continue
        source = nodes[node.inputs[0]]
        while source.op in UNCHANGED and consumers.count(source.name) == 1:
            source = nodes[source.inputs[0]]
        if source.op == "conv2d" and consumers.count(source.name) == 1:
            nodes[source.name] = replace(source, params={**source.params, "fold": node.params})
    return nodes


def _merge_zero_padding(node, nodes):
    """A convolution or average pool after zero pads reads what the pads read, their widths added to its padding."""
    if node.op not in ("conv2d", "avg_pool2d"):
        return node
    padding = np.array(eq.sides(node.params.get("padding", 0)))
    name, merged = node.inputs[0], node
    while nodes[name].op in ("zero_pad", *UNCHANGED):
        source = nodes[name]
        name = source.inputs[0]
        if source.op == "zero_pad":
            widths = eq.sides(source.params["padding"])
            if min(widths) < 0:
                raise NotImplementedError(f"operator 'zero_pad' of node {source.name!r}: negative padding has no rule")
            padding = padding + widths
            params = {**node.params, "padding": tuple(int(side) for side in padding)}
            merged = replace(node, inputs=(name,), params=params)
    return merged


def _choose_takers(node, nodes, constants, learned, activations):
    """The node with what its rule must know of its operands: which are constants, or which one takes P."""
    if node.name in constants:
        return node
    if node.op == "add":
        constant = tuple(i for i, name in enumerate(node.inputs) if name in constants)
        return replace(node, params={**node.params, "constant": constant})
    if node.op in ("multiply", "divide", "subtract"):
        return replace(node, params={**node.params, "taker": _taker(node, nodes, constants, learned, activations)})
    return node


def _taker(node, nodes, constants, learned, activations):
    """Which operand of x * y, x / y, x - y takes P: 0, 1, or None where only shapes tell and none are known yet."""
    where = f"operator {node.op!r} of node {node.name!r}"
    is_constant = [name in constants for name in node.inputs]
    if node.op in ("subtract", "divide") and is_constant != [False, True]:
        raise NotImplementedError(f"{where} has a rule only with a constant as its second operand")
    if any(is_constant):
        taker = is_constant.index(False)
        other = node.inputs[1 - taker]
        either_sign = node.op == "subtract" or (node.op == "multiply" and other in learned)
        if not either_sign and not (constants[other] > 0).all():
            raise NotImplementedError(f"{where} has a rule only for constants that are positive everywhere")
        return taker
    is_gate = [_behind_shapes(name, nodes).op in GATES for name in node.inputs]
    if sum(is_gate) == 1:
        return is_gate.index(False)
    for x, y in ((0, 1), (1, 0)):
        if _is_function_of(node.inputs[y], node.inputs[x], nodes, constants):
            return x
    if activations is None:
        return None
    full = [activations[name].shape == activations[node.name].shape for name in node.inputs]
    if sum(full) != 1:
        raise NotImplementedError(f"{where}: two full-size operands and neither is a gate")
    return full.index(True)


def _behind_shapes(name, nodes):
    while nodes[name].op in (*UNCHANGED, *SHAPES):
        name = nodes[name].inputs[0]
    return nodes[name]


def _is_function_of(gate, x, nodes, constants):
    """Whether `gate` is an activation of x written out: x * g(x), with constants added and multiplied anywhere."""
    roots = {x}
    while (x := _elementwise_source(x, nodes, constants, UNCHANGED)) is not None:
        roots.add(x)
    activations_passed = 0
    while gate is not None and not (gate in roots and activations_passed):
        activations_passed += nodes[gate].op in ACTIVATIONS
        gate = _elementwise_source(gate, nodes, constants, {**UNCHANGED, **ACTIVATIONS})
    return gate is not None


def _elementwise_source(name, nodes, constants, ops):
    """The one input that the node is an elementwise function of, by `ops` and arithmetic with constants, or None."""
    node = nodes[name]
    dynamic = [i for i in node.inputs if i not in constants]
    arithmetic = node.op in ("add", "subtract", "multiply", "divide")
    return dynamic[0] if len(dynamic) == 1 and (node.op in ops or arithmetic) else None


def _near_input(network, constants):
    """The nodes that hold the image itself, normalised, padded, cut or moved, but not yet mixed by weights."""
    moves = (*UNCHANGED, *SHAPES, *NORMS, "zero_pad", "concatenate", "batch_norm")
    near: set[str] = set()
    for node in network.nodes:
        dynamic = [name for name in node.inputs if name not in constants]
        arithmetic = node.op in ("add", "subtract", "multiply", "divide") and len(dynamic) == 1
        if node.op == "input" or (dynamic and set(dynamic) <= near and (node.op in moves or arithmetic)):
            near.add(node.name)
    return near


# ---- rules: (P(V), node, [U, ...]) -> ([P(U), ...], leaked mass), by the equations of peak_backprop


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


def _gate_rule(P, node, U):
    taker = node.params["taker"]
    shares = [None, None]
    shares[taker] = eq.multiply(P, U[taker].shape)
    return shares, 0.0


def _slice_rule(P, node, U):
    return [eq.slice_axis(P, U[0].shape, **node.params)], 0.0


def _chunk_rule(P, node, U):
    axis = node.params["axis"]
    bounds = _chunk_bounds(U[0].shape[axis], node.params["chunks"], node.params["index"])
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
