"""What every operator computes, of arrays without a batch axis, in float64."""

from math import sqrt

import numpy as np
from scipy.special import erf, expit, softmax

from .. import peak_backprop as eq


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


def _pad(U, padding, mode="constant", value=0.0):
    left, right, top, bottom = eq.sides(padding)
    how = {"constant_values": value} if mode == "constant" else {}
    return np.pad(U, ((0, 0), (top, bottom), (left, right)), eq.COPIES.get(mode, mode), **how)


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


def chunk_bounds(size, chunks, index):
    width = -(-size // chunks)
    return index * width, min((index + 1) * width, size)


def _slice(U, axis, start=None, stop=None, step=None):
    where = [slice(None)] * U.ndim
    where[axis] = slice(start, stop, step)
    return U[tuple(where)]


def _chunk(U, axis, chunks, index):
    return _slice(U, axis, *chunk_bounds(U.shape[axis], chunks, index))


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
    "power": lambda U, exponent: U**exponent,
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
    **dict.fromkeys(("zero_pad", "pad"), _pad),
    "max_pool2d": _max_pool2d,
    "avg_pool2d": _avg_pool2d,
    "adaptive_max_pool2d": _adaptive(np.max),
    "adaptive_avg_pool2d": _adaptive(np.mean),
    "mean": lambda U, axes=(1, 2), keepdims=False: U.mean(axis=axes, keepdims=keepdims),
    "sum": lambda U, axes, keepdims=False: U.sum(axis=axes, keepdims=keepdims),
    "norm": lambda U, axes, keepdims=False: np.sqrt((U * U).sum(axis=axes, keepdims=keepdims)),
    "interpolate": _interpolate,
    "add": np.add,
    "subtract": np.subtract,
    "multiply": np.multiply,
    "divide": np.divide,
    "concatenate": lambda *U, axis=0: np.concatenate(U, axis=axis),
}
