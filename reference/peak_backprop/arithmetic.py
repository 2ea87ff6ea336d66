"""The arithmetic underneath Eq. 4-5: convolution and its transpose, windows, weights of interpolation, sizes."""

import numpy as np


def convolve(U, W, bias=None, stride=1, padding=0, dilation=1, groups=1, part_of_W=0):
    """V_opq = sum over (c, a, b) of W_ocab U_c,(p s - pad + a d),(q s - pad + b d) -> (O, Hv, Wv).

    part_of_W: 0 takes W, +1 its positive part W+, -1 its negative part W-. One plain matrix product over channels per
    kernel tap (a, b): nothing is copied but one tap's weights, and a sum of zero products is exactly zero.
    """
    stride, dilation = pair(stride), pair(dilation)
    padded = _pad(np.asarray(U, np.float64), sides(padding))
    O, per_group, kh, kw = W.shape
    if padded.shape[0] != per_group * groups or O % groups:
        raise ValueError(f"weight {W.shape} with {groups} groups does not fit an input of {padded.shape[0]} channels")
    Hv, Wv = (_size(n, k, s, d) for n, k, s, d in zip(padded.shape[1:], (kh, kw), stride, dilation))
    if Hv < 1 or Wv < 1:
        raise ValueError(f"kernel {(kh, kw)} is larger than the padded input {padded.shape[1:]}")
    V = np.zeros((groups, O // groups, Hv * Wv))
    for a, b in np.ndindex(kh, kw):
        seen = _tap(padded, a, b, stride, dilation, Hv, Wv).reshape(groups, per_group, Hv * Wv)
        V += part_of(W[:, :, a, b], part_of_W).reshape(groups, O // groups, per_group) @ seen
    V = V.reshape(O, Hv, Wv)
    return V if bias is None else V + np.asarray(bias, np.float64)[:, None, None]


def convolve_transposed(D, W, shape, stride=1, padding=0, dilation=1, groups=1, part_of_W=0):
    """The transpose of `convolve`: D (O, Hv, Wv) -> `shape` = (C, Hu, Wu); what falls on padding is dropped."""
    stride, dilation = pair(stride), pair(dilation)
    left, right, top, bottom = sides(padding)
    C, H, width = shape
    O, per_group, kh, kw = W.shape
    D = np.asarray(D, np.float64)
    Hv, Wv = D.shape[1:]
    padded = np.zeros((C, top + H + bottom, left + width + right))
    rows = D.reshape(groups, O // groups, Hv * Wv)
    for a, b in np.ndindex(kh, kw):
        tap = part_of(W[:, :, a, b], part_of_W).reshape(groups, O // groups, per_group)
        _tap(padded, a, b, stride, dilation, Hv, Wv)[...] += (tap.transpose(0, 2, 1) @ rows).reshape(C, Hv, Wv)
    return padded[:, top : top + H, left : left + width].copy()


def _tap(padded, a, b, stride, dilation, Hv, Wv):
    """The view of the padded input that kernel position (a, b) sees from every output position."""
    i, j = a * dilation[0], b * dilation[1]
    return padded[:, i : i + (Hv - 1) * stride[0] + 1 : stride[0], j : j + (Wv - 1) * stride[1] + 1 : stride[1]]


def part_of(W, sign):
    W = np.asarray(W, np.float64)
    return W if sign == 0 else np.maximum(W, 0.0) if sign > 0 else np.minimum(W, 0.0)


def ratio_of(P, Z, tiny):
    """P / Z, 0 where Z <= tiny, and the mass that is lost there."""
    flows = Z > tiny
    return np.where(flows, P / np.where(flows, Z, 1.0), 0.0), float(P[~flows].sum())


def pool_windows(out, size, kernel, stride, before, after):
    """Per output position the window's (first, end, count) on an axis: first:end inside the map, count with padding.

    A window that reaches past the padded end (ceil mode) counts only what lies within the padding.
    """
    windows = []
    for p in range(out):
        first = p * stride - before
        end = min(first + kernel, size + after)
        windows.append((max(first, 0), max(min(end, size), 0), end - first))
    return windows


def bin_of(p, size, out):
    """Adaptive pooling's bin p of `out` over an axis of `size`: floor(p size / out) to ceil((p + 1) size / out)."""
    return p * size // out, -((-(p + 1) * size) // out)


def interpolation_weights(size, out, mode, align_corners=False, scale=None):
    """A (out, size): row p holds the weights of output position p over the axis; each row sums to 1."""
    if mode not in ("bilinear", "nearest", "nearest-exact"):
        raise NotImplementedError(f"interpolation mode {mode!r} has no rule: its weights may be negative")
    A = np.zeros((out, size))
    step = size / out if scale is None else 1.0 / scale
    for p in range(out):
        if mode == "bilinear":
            x = p * (size - 1) / max(out - 1, 1) if align_corners else max((p + 0.5) * step - 0.5, 0.0)
            a = min(int(x), size - 1)
            A[p, a] += 1.0 - (x - a)
            A[p, min(a + 1, size - 1)] += x - a
        else:
            centre = 0.5 if mode == "nearest-exact" else 0.0
            # whole numbers where the step is the quotient of the sizes: the floor of p * size / out must not round
            x = int((2 * p + 2 * centre) * size) // (2 * out) if scale is None else int((p + centre) * step)
            A[p, min(x, size - 1)] = 1.0
    return A


def sum_to(P, shape):
    """Undo a broadcast: sum P over the axes that an array of this shape was repeated on."""
    P = P.sum(axis=tuple(range(P.ndim - len(shape))))
    repeated = tuple(axis for axis, size in enumerate(shape) if size == 1 and P.shape[axis] != 1)
    return P.sum(axis=repeated, keepdims=True)


def pair(value):
    """A number or a pair -> (height, width)."""
    if np.ndim(value) == 0:
        return (value, value)
    return tuple(value) if len(value) == 2 else (value[0], value[0])


def sides(padding):
    """A number, (height, width) or (left, right, top, bottom) -> (left, right, top, bottom)."""
    if np.ndim(padding) == 1 and len(padding) == 4:
        return tuple(int(side) for side in padding)
    height, width = pair(padding)
    return (int(width), int(width), int(height), int(height))


def _pad(U, padding):
    left, right, top, bottom = padding
    return np.pad(U, ((0, 0), (top, bottom), (left, right)))


def _size(size, kernel, stride, dilation):
    return (size - dilation * (kernel - 1) - 1) // stride + 1


def pooled_size(size, kernel, stride, before, after, dilation=1, ceil_mode=False):
    """Output size of a pooling axis; in ceil mode a last window that would start in the padding behind is left out."""
    span = size + before + after - dilation * (kernel - 1) - 1
    if not ceil_mode:
        return span // stride + 1
    out = -(-span // stride) + 1
    return out - 1 if (out - 1) * stride >= size + before else out


def check_size(P, U, kernel, stride, padding, dilation, ceil_mode):
    left, right, top, bottom = padding
    for axis, before, after in ((1, top, bottom), (2, left, right)):
        k, s, d = kernel[axis - 1], stride[axis - 1], dilation[axis - 1]
        out = pooled_size(U.shape[axis], k, s, before, after, d, ceil_mode)
        # In ceil mode zeros that were merged into the padding may hold one window more than padding alone would.
        if P.shape[0] != U.shape[0] or not out <= P.shape[axis] <= out + bool(ceil_mode):
            raise ValueError(f"P has shape {P.shape}; pooling {U.shape} by {kernel}, stride {stride}, gives size {out}")
