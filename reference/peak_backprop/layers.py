"""Eq. 4-5 of section 3.3 (Zhou et al., CVPR 2018): the walk back, one function a layer kind, in float64.

Symbols: U a layer's input, V its output, P(.) the probability that the walker visits a position. One image: feature
maps are (C, H, W), vectors (F,). Every function takes P(V) (and U where the answer depends on it) and returns P(U), of
U's shape. P >= 0 and the mass sum(P) never grows; what a layer cannot pass on is leaked. The functions of layers that
can leak take `return_leak=True` and then return (P(U), leaked mass); the leak is summed from P(V), not a difference.

Pairs are (height, width). Padding is a number, a pair, or (left, right, top, bottom) where the sides differ.
"""

from typing import Any

import numpy as np
from numba import njit

from ..peak_stimulation import source
from .arithmetic import (
    bin_of,
    check_size,
    convolve,
    convolve_transposed,
    interpolation_weights,
    pair,
    part_of,
    pool_windows,
    ratio_of,
    sides,
    sum_to,
)

# A transition out of (p, q) exists when Z_pq exceeds this share of the largest Z that the layer could have: "Z > 0"
# for arithmetic that rounds, 1e-7 being about the rounding of float32.
TINY = 1e-7


def start(position, map_shape, upsample=1):
    """The walker's start: P (C, H, W) = 1 at the peak (class, row, column) of the class response maps.

    For a peak found on the map enlarged by `upsample` (row and column in enlarged coordinates): the bare bilinear
    weights of that position over its source positions, at most four. Eq. 5 is not applied to the enlargement.
    Row and column may also lie between positions of the map itself (upsample 1): the same weights.
    """
    c, row, column = position
    C, H, W = map_shape
    if not (0 <= c < C and 0 <= row <= upsample * H - 1 and 0 <= column <= upsample * W - 1):
        raise ValueError(f"peak {(c, row, column)} lies outside maps of shape {map_shape} enlarged by {upsample}")
    P = np.zeros(map_shape)
    for i, in_row in _sources(row, H, upsample):
        for j, in_column in _sources(column, W, upsample):
            P[int(c), i, j] += in_row * in_column
    return P


def _sources(position, size, upsample):
    """The two positions on the axis of the map that one of the enlarged axis lies between, and their weights."""
    if upsample == 1:
        a, t = int(position), position - int(position)
        return (a, 1.0 - t), (min(a + 1, size - 1), t)
    a, b, t = (array[int(position)] for array in source(size, upsample))
    return (a, 1.0 - t), (b, t)


def peak_response_map(P):
    """The map R (H, W) from P (C, H, W) at the image: summed over channels, then to sum 1 -> (R, empty).

    A total of zero gives an all-zero R and empty = True.
    """
    R = np.asarray(P, np.float64).sum(axis=0)
    total = R.sum()
    return (R / total, False) if total > 0 else (np.zeros_like(R), True)


def shift(U):
    """U_hat of Eq. 5 = U - min(0, min U), the minimum over all channels and positions of the one image."""
    U = np.asarray(U, np.float64)
    return U - min(0.0, U.min())


# ---- Eq. 4-5: weighted layers


def conv2d(P, U, W, stride=1, padding=0, dilation=1, groups=1, signed=False, return_leak=False):
    """Eq. 4-5: P(U) = U_hat * convT(P(V) / Z, W+), Z = conv(U_hat, W+), W+ = max(W, 0); the bias takes no part.

    P (O, Hv, Wv), U (C, Hu, Wu), W (O, C / groups, kh, kw) -> P(U) (C, Hu, Wu). 1 / Z_pq is the paper's normalisation:
    the transitions out of each output position sum to 1 over all input positions and channels. Where Z_pq <= tiny_o
    = 1e-7 * max(U_hat) * sum(W+_o) there is no transition and P(V_pq) leaks.
    signed: Z = conv(U+, W+) + conv(U-, W-), P(U) = U+ convT(P/Z, W+) + U- convT(P/Z, W-), no shift; X- = min(X, 0).
    """
    P, U, W = np.asarray(P, np.float64), np.asarray(U, np.float64), np.asarray(W)
    geometry = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    parts = [(np.maximum(U, 0.0), +1), (np.minimum(U, 0.0), -1)] if signed else [(shift(U), +1)]
    Z, tiny = np.zeros(P.shape), np.zeros(P.shape[0])
    for part, sign in parts:
        Z_part = convolve(part, W, part_of_W=sign, **geometry)
        if Z_part.shape != P.shape:
            raise ValueError(f"P has shape {P.shape}, this convolution's output {Z_part.shape}")
        Z += Z_part
        tiny += TINY * np.abs(part).max() * np.array([np.abs(part_of(W_o, sign)).sum() for W_o in W])
    ratio, leaked = ratio_of(P, Z, tiny[:, None, None])
    P_U = sum(part * convolve_transposed(ratio, W, U.shape, part_of_W=sign, **geometry) for part, sign in parts)
    return (P_U, leaked) if return_leak else P_U


def linear(P, U, W, return_leak=False):
    """Eq. 4-5 for a fully connected layer, a convolution without positions: P(U) = U_hat * (W+^T (P(V) / (W+ U_hat))).

    P (..., O), U (..., F), W (O, F); leading axes are positions. Leak as in `conv2d`.
    """
    P, U_hat, W_plus = np.asarray(P, np.float64), shift(U), np.maximum(np.asarray(W, np.float64), 0.0)
    ratio, leaked = ratio_of(P, U_hat @ W_plus.T, TINY * U_hat.max() * W_plus.sum(axis=1))
    P_U = U_hat * (ratio @ W_plus)
    return (P_U, leaked) if return_leak else P_U


def fold_batch_norm(W, bias, gamma, beta, mean, var, eps=1e-5):
    """Batch norm after a convolution as one convolution -> (W', bias'): W'_o = gamma_o / sigma_o * W_o.

    sigma = sqrt(var + eps), bias' = (bias - mean) * gamma / sigma + beta. W+ is taken of W', after this. None as bias
    or beta is 0, as gamma 1.
    """
    W = np.asarray(W, np.float64)
    scale = (1.0 if gamma is None else np.asarray(gamma, np.float64)) / np.sqrt(np.asarray(var, np.float64) + eps)
    offset = (0.0 if bias is None else np.asarray(bias, np.float64)) - np.asarray(mean, np.float64)
    return W * scale.reshape(-1, 1, 1, 1), offset * scale + (0.0 if beta is None else np.asarray(beta, np.float64))


def batch_norm(P):
    """Batch norm that is not folded into a convolution: P unchanged, per channel, also where gamma <= 0."""
    return np.array(P, np.float64)


def normalization(P):
    """Layer, group, instance and local response norm: P unchanged, as for batch norm that is not folded.

    With sigma held constant, V_c = gamma_c / sigma * sum_d (delta_cd - 1/n) U_d + beta_c is linear in the n elements
    that are normalised together. For gamma_c > 0 only the diagonal of it is positive, so that Eq. 4-5 send all of
    P(V_c) to U_c. Where gamma_c <= 0 this is an approximation. Local response norm divides each element by a number
    > 0: with that held constant it is diagonal and positive.
    """
    return np.array(P, np.float64)


def activation(P):
    """ReLU, GELU and other activations, powers above 0, dropout, identity, a positive or a learned factor, an added
    constant: P unchanged, slope 1."""
    return np.array(P, np.float64)


# ---- pooling


def max_pool2d(P, U, kernel, stride=None, padding=0, dilation=1, ceil_mode=False):
    """P(V) goes to the argmax of its window, the first maximum in row-major order, also when it is 0. Nothing leaks.

    Windows that share an argmax add up. Padded positions are -inf. P (C, Hv, Wv), U (C, Hu, Wu).
    """
    P, U = np.array(P, np.float64), np.array(U, np.float64)
    kernel, dilation = pair(kernel), pair(dilation)
    stride = kernel if stride is None else pair(stride)
    check_size(P, U, kernel, stride, sides(padding), dilation, ceil_mode)
    left, _, top, _ = sides(padding)
    P_U = np.zeros(U.shape)
    _max_walk(P, U, kernel, stride, (top, left), dilation, P_U)
    return P_U


@njit(cache=True)
def _max_walk(P, U, kernel, stride, padding, dilation, P_U):
    C, H, W = U.shape
    for c in range(C):
        for p in range(P.shape[1]):
            for q in range(P.shape[2]):
                best_i, best_j = -1, -1
                for a in range(kernel[0]):
                    i = p * stride[0] - padding[0] + a * dilation[0]
                    for b in range(kernel[1]):
                        j = q * stride[1] - padding[1] + b * dilation[1]
                        inside = 0 <= i < H and 0 <= j < W
                        if inside and (best_i < 0 or U[c, i, j] > U[c, best_i, best_j]):
                            best_i, best_j = i, j
                if best_i < 0:
                    raise ValueError("a window of the max pooling lies in the padding altogether")
                P_U[c, best_i, best_j] += P[c, p, q]


def adaptive_max_pool2d(P, U):
    """As `max_pool2d` over the bins of the adaptive pooling whose output has P's size: rows floor(p H / Hv) to ceil."""
    P, U = np.asarray(P, np.float64), np.asarray(U, np.float64)
    P_U = np.zeros(U.shape)
    for c, p, q in np.ndindex(P.shape):
        (i0, i1), (j0, j1) = bin_of(p, U.shape[1], P.shape[1]), bin_of(q, U.shape[2], P.shape[2])
        i, j = np.unravel_index(np.argmax(U[c, i0:i1, j0:j1]), (i1 - i0, j1 - j0))
        P_U[c, i0 + i, j0 + j] += P[c, p, q]
    return P_U


def avg_pool2d(P, U, kernel, stride=None, padding=0, ceil_mode=False, count_include_pad=True, divisor_override=None,
               return_leak=False):  # fmt: skip
    """Average pooling as a convolution per channel with its fixed weights 1 / divisor: Eq. 4-5 without W.

    P(U) = U_hat * sum over the windows of P(V) / divisor / Z. The divisor cancels in P / Z; what remains of it is that
    Z is compared with 1e-7 * max(U_hat) * (the window's weights summed, 1 unless divisor_override says otherwise).
    """
    P, U = np.asarray(P, np.float64), np.asarray(U, np.float64)
    kernel = pair(kernel)
    stride = kernel if stride is None else pair(stride)
    left, right, top, bottom = sides(padding)
    check_size(P, U, kernel, stride, (left, right, top, bottom), (1, 1), ceil_mode)
    rows = pool_windows(P.shape[1], U.shape[1], kernel[0], stride[0], top, bottom)
    columns = pool_windows(P.shape[2], U.shape[2], kernel[1], stride[1], left, right)
    return _average_walk(P, U, rows, columns, count_include_pad, divisor_override, return_leak)


def adaptive_avg_pool2d(P, U, return_leak=False):
    """Adaptive average pooling: average pooling over bins, rows floor(p H / Hv) to ceil((p + 1) H / Hv)."""
    P, U = np.asarray(P, np.float64), np.asarray(U, np.float64)
    rows, columns = (
        [(*bin_of(p, size, out), bin_of(p, size, out)[1] - bin_of(p, size, out)[0]) for p in range(out)]
        for size, out in zip(U.shape[1:], P.shape[1:])
    )
    return _average_walk(P, U, rows, columns, True, None, return_leak)


def mean(P, U, return_leak=False, axes=(1, 2)):
    """Mean over `axes`, (H, W) unless said: Eq. 4-5 with equal weights. P has U's other axes, or these too as 1."""
    U_hat = shift(U)
    Z = U_hat.mean(axis=axes, keepdims=True)
    ratio, leaked = ratio_of(np.asarray(P, np.float64).reshape(Z.shape), Z, TINY * U_hat.max())
    P_U = U_hat * ratio * (Z.size / U_hat.size)
    return (P_U, leaked) if return_leak else P_U


def _average_walk(P, U, rows, columns, count_include_pad, divisor_override, return_leak):
    U_hat, P_U, leaked = shift(U), np.zeros(U.shape), 0.0
    largest = U_hat.max()
    for p, (i0, i1, full_rows) in enumerate(rows):
        for q, (j0, j1, full_columns) in enumerate(columns):
            count = full_rows * full_columns if count_include_pad else (i1 - i0) * (j1 - j0)
            divisor = divisor_override or count or 1  # a window that lies in the padding altogether: nothing flows
            window = U_hat[:, i0:i1, j0:j1]
            Z = window.sum(axis=(1, 2)) / divisor
            ratio, lost = ratio_of(P[:, p, q], Z, TINY * largest * count / divisor)
            P_U[:, i0:i1, j0:j1] += window * (ratio / divisor)[:, None, None]
            leaked += lost
    return (P_U, leaked) if return_leak else P_U


def interpolate(P, U, mode="bilinear", align_corners=False, scale=None, return_leak=False):
    """Interpolation with non-negative weights as a convolution with them: V = A_rows U A_columns^T, per channel.

    mode "bilinear", "nearest" or "nearest-exact" (others raise NotImplementedError); scale: the (height, width) factors
    where the layer was given factors and uses them for its coordinates, else None: the quotient of the sizes.
    """
    P, U_hat = np.asarray(P, np.float64), shift(U)
    scale = (None, None) if scale is None else pair(scale)
    rows = interpolation_weights(U_hat.shape[1], P.shape[1], mode, align_corners, scale[0])
    columns = interpolation_weights(U_hat.shape[2], P.shape[2], mode, align_corners, scale[1])
    ratio, leaked = ratio_of(P, rows @ U_hat @ columns.T, TINY * U_hat.max())
    P_U = U_hat * (rows.T @ ratio @ columns)
    return (P_U, leaked) if return_leak else P_U


# ---- layers that split, gather or move the mass


def add(P, summands, constant=()):
    """Addition: P splits in the proportion of the positive parts, U_i+ / sum_j U_j+; equally where none is positive.

    summands: arrays that broadcast to P's shape, as they were before any in-place operation; constant: indices of those
    that are constants or parameters, which take no share. -> list of P(U_i), summed over the axes of U_i's broadcast.
    """
    P = np.asarray(P, np.float64)
    summands = [np.asarray(U, np.float64) for U in summands]
    takers = [i for i in range(len(summands)) if i not in constant]
    if not takers:
        raise ValueError("an addition of constants only has nowhere to send P")
    positive = {i: np.broadcast_to(np.maximum(summands[i], 0.0), P.shape) for i in takers}
    total = sum(positive.values())
    shares = [np.zeros(U.shape) for U in summands]
    for i in takers:
        share = np.where(total > 0, positive[i] / np.where(total > 0, total, 1.0), 1.0 / len(takers))
        shares[i] = sum_to(P * share, summands[i].shape)
    return shares


def summation(P, U, axes):
    """Sum over axes: an addition of the slices of U along them, P split as in `add`. P has U's other axes, or these
    too as 1."""
    U = np.asarray(U, np.float64)
    axes = tuple(sorted(axis % U.ndim for axis in axes))
    moved = np.moveaxis(U, axes, range(len(axes)))
    slices = moved.reshape(-1, *moved.shape[len(axes) :])
    shares = add(np.asarray(P, np.float64).reshape(slices.shape[1:]), slices)
    return np.moveaxis(np.reshape(shares, moved.shape), range(len(axes)), axes)


def pad(P, shape, padding, mode="constant", return_leak=False):
    """A pad that nothing is merged into: P of each copy goes back to the position that it was copied from.

    padding: (left, right, top, bottom); mode: "constant", a number that comes from nowhere, so that P there leaks, or
    "reflect", "replicate", "circular". shape: U's (C, H, W).
    """
    P, P_U = np.asarray(P, np.float64), np.zeros(shape)
    left, right, top, bottom = sides(padding)
    outside = shape[1] * shape[2]
    position, widths = np.arange(outside).reshape(shape[1:]), ((top, bottom), (left, right))
    how: dict[str, Any] = {"constant_values": outside} if mode == "constant" else {"mode": COPIES[mode]}
    source = np.pad(position, widths, **how)
    for c in range(shape[0]):
        landed = np.bincount(source.ravel(), P[c].ravel(), outside + 1)
        P_U[c] = landed[:outside].reshape(shape[1:])
    leaked = float(P[:, source == outside].sum())
    return (P_U, leaked) if return_leak else P_U


COPIES = {"reflect": "reflect", "replicate": "edge", "circular": "wrap"}  # torch's names: NumPy's


def concatenate(P, shapes, axis=0):
    """Concatenation: each input takes its slice. shapes: the inputs' shapes -> list of P(U_i)."""
    ends = np.cumsum([shape[axis] for shape in shapes])[:-1]
    return [np.array(part) for part in np.split(np.asarray(P, np.float64), ends, axis=axis)]


def slice_axis(P, shape, axis, start=None, stop=None, step=None):
    """Slice, chunk, split: V = U[start:stop:step] along `axis`; P(U) is P(V) there and zero elsewhere. shape: U's."""
    P_U = np.zeros(shape)
    where = [slice(None)] * len(shape)
    where[axis] = slice(start, stop, step)
    P_U[tuple(where)] = P
    return P_U


def multiply(P, shape):
    """Multiplication by a gate, division by a deviation, difference with a mean: P goes to one operand, of the given
    shape, summed over its broadcast axes."""
    return sum_to(np.asarray(P, np.float64), shape)


def reshape(P, shape):
    """Flatten, reshape, squeeze, unsqueeze: positions follow. shape: U's."""
    return np.asarray(P, np.float64).reshape(shape).copy()


flatten = reshape


def expand(P, shape):
    """U repeated along axes of length 1: what its copies hold adds up. shape: U's."""
    return sum_to(np.asarray(P, np.float64), shape)


def permute(P, axes):
    """V = U.transpose(axes): positions follow."""
    return np.asarray(P, np.float64).transpose(np.argsort([a % len(axes) for a in axes])).copy()


def transpose(P, axes):
    """Two axes change places: positions follow."""
    return np.swapaxes(np.asarray(P, np.float64), *axes).copy()
