"""Peak Response Mapping by another road: every layer a sparse matrix."""

from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np
from scipy import ndimage, sparse


def blend(a, b, t, size):
    """The matrix that takes 1 - t of element a and t of element b, a row for each triple."""
    i = np.arange(len(a))
    return sparse.csr_array(
        (np.concatenate([1 - t, t]), (np.concatenate([i, i]), np.concatenate([a, b]))), shape=(len(a), size)
    )


def enlargement(size, factor):
    """Positions a, b and the share t of b for each position of an axis enlarged with aligned corners."""
    last = max(factor * size - 1, 1)
    a, r = np.divmod(np.arange(factor * size) * (size - 1), last)
    return a, np.minimum(a + 1, size - 1), r / last


def enlarge(M, factor):
    """M enlarged bilinearly, in the form that keeps a constant map exactly constant."""
    for axis in (-2, -1):
        a, b, t = enlargement(M.shape[axis], factor)
        low, high = M.take(a, axis), M.take(b, axis)
        M = low + (t[:, None] if axis == -2 else t) * (high - low)
    return M


@dataclass
class Stimulation:
    """What the forward pass of peak stimulation answers."""

    scores: np.ndarray
    peaks: np.ndarray
    shape: tuple
    upsample: int


def stimulate(M, window, threshold, upsample):
    """Eq. 1-2: the peaks of the class response maps and the mean of their values."""
    if isinstance(threshold, (int, float)):
        threshold = float(np.asarray(threshold, M.dtype))
    E = enlarge(M.astype(float), upsample)
    half = window // 2
    square = np.ones((1, 1, window, window), bool)
    earlier = square.copy()
    earlier[..., half, half:] = earlier[..., half + 1 :, :] = False
    E_window = ndimage.maximum_filter(E, footprint=square, mode="constant", cval=-np.inf)
    E_earlier = ndimage.maximum_filter(E, footprint=earlier, mode="constant", cval=-np.inf)
    flat = E.reshape(*E.shape[:2], -1)
    levels = {
        None: lambda: -np.inf,
        "median": lambda: np.sort(flat)[..., (flat.shape[-1] - 1) // 2],
        "mean": lambda: flat.mean(-1),
        "max": lambda: flat.max(-1),
    }
    level = levels.get(threshold, lambda: threshold)()
    level = np.broadcast_to(level, E.shape[:2])[..., None, None]
    G = (E == E_window) & (E > E_earlier) & (E >= level)
    alone = ~G.any((2, 3))
    first = np.zeros(flat.shape, bool)
    np.put_along_axis(first, flat.argmax(-1)[..., None], True, -1)
    G = np.where(alone[..., None, None], first.reshape(E.shape), G)
    return Stimulation((E * G).sum((2, 3)) / G.sum((2, 3)), np.argwhere(G), M.shape, upsample)


def stimulate_backward(grad_scores, result):
    """Eq. 3: the gradient of the scores, through the transpose of the enlargement."""
    N, C, H, W = result.shape
    f = result.upsample
    G = np.zeros((N, C, f * H, f * W))
    G[tuple(result.peaks.T)] = 1
    D = G * (grad_scores / G.sum((2, 3)))[..., None, None]
    rows, columns = (blend(*enlargement(n, f), n) for n in (H, W))
    return np.array([[rows.T @ D_c @ columns for D_c in D_n] for D_n in D]).reshape(result.shape)


def pair(value):
    """(rows, columns) of a pair or of one number."""
    return tuple(value) if isinstance(value, (tuple, list)) else (value, value)


def borders(padding):
    """Padding as ((top, bottom), (left, right))."""
    if isinstance(padding, (tuple, list)) and len(padding) == 4:
        left, right, top, bottom = padding
        return (top, bottom), (left, right)
    rows, columns = pair(padding)
    return (rows, rows), (columns, columns)


def windows(shape, kernel, stride, padding, dilation=1, ceil_mode=False, out=None):
    """Flat positions (taps, p, q) that the windows cover; -1 stands for a position outside the map."""
    axes = []
    for axis, (size, k, s, d, (before, after)) in enumerate(
        zip(shape, pair(kernel), pair(stride), pair(dilation), borders(padding))
    ):
        span = size + before + after - d * (k - 1) - 1
        n = (-(-span // s) if ceil_mode else span // s) + 1
        if ceil_mode and (n - 1) * s >= size + before:
            n -= 1
        n = n if out is None else out[axis]
        at = np.arange(n) * s - before + np.arange(k)[:, None] * d
        axes.append(np.where((at >= 0) & (at < size), at, -1))
    return grid(*axes, shape[1])


def grid(rows, columns, width):
    """Flat positions (taps, p, q) of the positions (taps, p) and (taps, q) on both axes; -1 stays outside."""
    rows, columns = rows[:, None, :, None], columns[None, :, None, :]
    at = np.where((rows >= 0) & (columns >= 0), rows * width + columns, -1)
    return at.reshape(-1, *at.shape[2:])


def selection(at, size):
    """The matrix that picks element at[k] into row k; nothing where at[k] is -1."""
    at = at.ravel()
    inside = np.flatnonzero(at >= 0)
    return sparse.csr_array((np.ones(len(inside)), (inside, at[inside])), shape=(len(at), size))


def eye(n):
    return selection(np.arange(n), n)


def walk(P, parts):
    """Eq. 4-5 for a layer V = sum of A @ U over the parts (U >= 0, A >= 0, total weight of each row's filter)."""
    P = P.astype(float).ravel()
    Z = sum(A @ U for U, A, _ in parts)
    flows = Z > 1e-7 * sum(U.max() * total for U, _, total in parts)
    Y = np.divide(P, Z, out=np.zeros_like(P), where=flows)
    return sum(U * (A.T @ Y) for U, A, _ in parts), P[~flows].sum()


def shifted(U):
    """U_hat as a vector."""
    U = U.astype(float).ravel()
    return U - min(0, U.min())


def convolution(W, shape, stride=1, padding=0, dilation=1, groups=1, out=None):
    """The matrix of a convolution of maps of this shape, and how many positions its output has."""
    O, C, *kernel = W.shape
    at = windows(shape[1:], kernel, stride, padding, dilation, out=out)
    mixing = sparse.block_diag([part.reshape(O // groups, -1) for part in np.split(W, groups)])
    n = at[0].size
    return sparse.kron(mixing, eye(n)) @ sparse.kron(eye(shape[0]), selection(at, shape[1] * shape[2])), n


def conv2d(P, U, W, stride=1, padding=0, dilation=1, groups=1, signed=False, return_leak=True):
    W, vector = W.astype(float), U.astype(float).ravel()
    inputs = [(np.maximum(vector, 0), 1), (np.maximum(-vector, 0), -1)] if signed else [(shifted(U), 1)]
    parts = []
    for u, sign in inputs:
        part = np.maximum(sign * W, 0)
        A, n = convolution(part, U.shape, stride, padding, dilation, groups, P.shape[1:])
        parts.append((u, A, np.repeat(part.sum((1, 2, 3)), n)))
    P_U, leaked = walk(P, parts)
    return P_U.reshape(U.shape), leaked


def through(P, U, A, total):
    """The walk through one matrix; P(U) and what leaked."""
    P_U, leaked = walk(P, [(shifted(U), A, total)])
    return P_U.reshape(U.shape), leaked


def linear(P, U, W, return_leak=True):
    W = np.maximum(W.astype(float), 0)
    n = U.size // U.shape[-1]
    return through(P, U, sparse.kron(eye(n), W, format="csr"), np.tile(W.sum(1), n))


def average(at, shape, divisor=None):
    """The matrix that averages windows of each channel alone."""
    C, H, W = shape
    taps, *out = at.shape
    if divisor is None:
        divisor = (at >= 0).sum(0)
    n = at[0].size
    total = sparse.kron(np.ones((1, taps)), eye(n)) @ selection(at, H * W)
    return sparse.kron(eye(C), sparse.diags(1 / np.broadcast_to(divisor, out).ravel()) @ total, format="csr")


def average_pooling(shape, kernel, stride=None, padding=0, ceil_mode=False, count_include_pad=True,
                    divisor_override=None, out=None):
    """The matrix of an average pooling, the total weight of each row and the size of its output."""
    stride = kernel if stride is None else stride
    at = windows(shape[1:], kernel, stride, padding, 1, ceil_mode, out)
    count = (at >= 0).sum(0)
    if count_include_pad:
        padded = [size + sum(border) for size, border in zip(shape[1:], borders(padding))]
        count = (windows(padded, kernel, stride, 0, out=count.shape) >= 0).sum(0)
    divisor = divisor_override or count
    return average(at, shape, divisor), np.tile((count / divisor).ravel(), shape[0]), count.shape


def avg_pool2d(P, U, kernel, stride=None, padding=0, ceil_mode=False, count_include_pad=True, divisor_override=None,
               return_leak=True):
    A, total, _ = average_pooling(
        U.shape, kernel, stride, padding, ceil_mode, count_include_pad, divisor_override, P.shape[1:])
    return through(P, U, A, total)


def bins(shape, out):
    """Flat positions (taps, p, q) of the bins of adaptive pooling."""
    axes = []
    for m, n in zip(shape, out):
        p = np.arange(n)
        begin, end = p * m // n, -(-(p + 1) * m // n)
        at = begin + np.arange(max(end - begin))[:, None]
        axes.append(np.where(at < end, at, -1))
    return grid(*axes, shape[1])


def adaptive_avg_pool2d(P, U, return_leak=True):
    return through(P, U, average(bins(U.shape[1:], P.shape[1:]), U.shape), 1)


def averaging(shape, axes):
    """The matrix of a mean over axes."""
    A = np.ones((1, 1))
    for axis, n in enumerate(shape):
        A = sparse.kron(A, np.full((1, n), 1 / n) if axis in axes else eye(n), format="csr")
    return A


def mean(P, U, axes=(1, 2), return_leak=True):
    return through(P, U, averaging(U.shape, [axis % U.ndim for axis in axes]), 1)


def resampling(n, m, mode, align_corners=False, scale=None):
    """The matrix that interpolates an axis of n positions at m."""
    p = np.arange(m)
    if mode == "bilinear":
        if align_corners:
            x = p * (n - 1) / max(m - 1, 1)
        else:
            x = np.maximum((p + 0.5) * (n / m if scale is None else 1 / scale) - 0.5, 0)
        a = np.minimum(x.astype(int), n - 1)
        return blend(a, np.minimum(a + 1, n - 1), x - a, n)
    if scale is None:
        at = p * n // m if mode == "nearest" else (2 * p + 1) * n // (2 * m)
    else:
        at = ((p + (0 if mode == "nearest" else 0.5)) / scale).astype(int)
    return selection(np.minimum(at, n - 1), n)


def interpolation(shape, out, mode, align_corners=False, scale=None):
    """The matrix of an interpolation of maps of this shape."""
    A = eye(shape[0])
    for n, m, factor in zip(shape[1:], out, scale or (None, None)):
        A = sparse.kron(A, resampling(n, m, mode, align_corners, factor), format="csr")
    return A


def interpolate(P, U, mode, align_corners=False, scale=None, return_leak=True):
    return through(P, U, interpolation(U.shape, P.shape[1:], mode, align_corners, scale), 1)


def winners(U, at):
    """The matrix that picks the first maximum of every window of every channel."""
    C, H, W = U.shape
    # The last column is what position -1 finds: the padding.
    padded = np.concatenate([U.reshape(C, -1).astype(float), np.full((C, 1), -np.inf)], 1)
    first = padded[:, at].argmax(1)
    best = np.take_along_axis(at[None], first[:, None], 1)[:, 0]
    channel = np.arange(C)[:, None, None]
    return selection(np.where(best >= 0, channel * H * W + best, -1), U.size)


def max_pooling(shape, kernel, stride=None, padding=0, dilation=1, ceil_mode=False, out=None):
    return windows(shape[1:], kernel, kernel if stride is None else stride, padding, dilation, ceil_mode, out)


def to_winners(P, U, at):
    return (winners(U, at).T @ P.astype(float).ravel()).reshape(U.shape)


def max_pool2d(P, U, kernel, stride=None, padding=0, dilation=1, ceil_mode=False):
    return to_winners(P, U, max_pooling(U.shape, kernel, stride, padding, dilation, ceil_mode, P.shape[1:]))


def adaptive_max_pool2d(P, U):
    return to_winners(P, U, bins(U.shape[1:], P.shape[1:]))


def returned(P, at, shape):
    """P(U) of a layer that only picks, V = U.ravel()[at]; at is -1 where V takes nothing from U."""
    return (selection(at, int(np.prod(shape))).T @ P.astype(float).ravel()).reshape(shape)


def indices(shape):
    return np.arange(int(np.prod(shape))).reshape(shape)


def multiply(P, shape):
    return returned(P, np.broadcast_to(indices(shape), P.shape), shape)


def reshape(P, shape):
    return returned(P, indices(shape), tuple(shape))


def permute(P, axes):
    shape = [P.shape[axes.index(k)] for k in range(P.ndim)]
    return returned(P, indices(shape).transpose(axes), shape)


def slice_axis(P, shape, axis, start=None, stop=None, step=None):
    at = np.moveaxis(np.moveaxis(indices(shape), axis, 0)[start:stop:step], 0, axis)
    return returned(P, at, shape)


def concatenate(P, shapes, axis):
    return np.split(P, np.cumsum([shape[axis] for shape in shapes])[:-1], axis)


def add(P, summands, constant=()):
    taking = np.array([i not in constant for i in range(len(summands))])[:, None]
    positive = np.array([np.broadcast_to(np.maximum(U, 0), P.shape).ravel() for U in summands], float) * taking
    positive = np.where(positive.any(0), positive, taking)
    total = positive.sum(0)
    shares = np.divide(positive, total, out=np.zeros_like(positive), where=total > 0)
    return [multiply(P * share.reshape(P.shape), U.shape) for share, U in zip(shares, summands)]


def unchanged(P):
    return P


ACTIVATIONS = {
    "relu": lambda U: np.maximum(U, 0),
    "relu6": lambda U: np.clip(U, 0, 6),
    "leaky_relu": lambda U, slope=0.01: np.where(U > 0, U, slope * U),
    "sigmoid": lambda U: 1 / (1 + np.exp(-U)),
    "identity": lambda U: U,
    "dropout": lambda U: U,
}
GATES = ("sigmoid", "hard_sigmoid", "hardsigmoid", "softmax")


def conv_params(params):
    return {key: params[key] for key in ("stride", "padding", "dilation", "groups") if key in params}


def applied(A, U, out):
    return (A @ U.ravel()).reshape(out)


def scales(factor, shape):
    return None if factor is None else pair(factor)


def chunk_slice(size, chunks, index):
    step = -(-size // chunks)
    return index * step, min((index + 1) * step, size)


def forward_conv2d(U, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    at = windows(U.shape[1:], weight.shape[2:], stride, padding, dilation)
    A, _ = convolution(weight.astype(float), U.shape, stride, padding, dilation, groups)
    V = applied(A, U, (len(weight), *at.shape[1:]))
    return V if bias is None else V + bias[:, None, None]


def forward_batch_norm(U, mean, var, weight=None, bias=None, eps=1e-5):
    column = (-1, *[1] * (U.ndim - 1))
    V = (U - mean.reshape(column)) / np.sqrt(var.reshape(column) + eps)
    V = V if weight is None else V * weight.reshape(column)
    return V if bias is None else V + bias.reshape(column)


def forward_max_pool2d(U, **params):
    at = max_pooling(U.shape, **params)
    return (winners(U, at) @ U.ravel()).reshape(len(U), *at.shape[1:])


def forward_avg_pool2d(U, **params):
    A, _, out = average_pooling(U.shape, **params)
    return applied(A, U, (len(U), *out))


def forward_adaptive_avg_pool2d(U, size):
    size = [n if m is None else m for m, n in zip(pair(size), U.shape[1:])]
    return applied(average(bins(U.shape[1:], size), U.shape), U, (len(U), *size))


def forward_mean(U, axes=(1, 2), keepdims=False):
    return U.mean(tuple(axes), keepdims=keepdims)


def forward_interpolate(U, mode, align_corners=False, size=None, scale=None):
    scale = None if scale is None else pair(scale)
    out = pair(size) if scale is None else [int(n * s) for n, s in zip(U.shape[1:], scale)]
    return applied(interpolation(U.shape, out, mode, align_corners, scale), U, (len(U), *out))


def forward_chunk(U, axis, chunks, index):
    return np.take(U, np.arange(*chunk_slice(U.shape[axis], chunks, index)), axis)


def forward_zero_pad(U, padding):
    return np.pad(U, [(0, 0), *borders(padding)])


FORWARD = {
    **ACTIVATIONS,
    "conv2d": forward_conv2d,
    "batch_norm": forward_batch_norm,
    "max_pool2d": forward_max_pool2d,
    "avg_pool2d": forward_avg_pool2d,
    "adaptive_avg_pool2d": forward_adaptive_avg_pool2d,
    "mean": forward_mean,
    "interpolate": forward_interpolate,
    "add": np.add,
    "multiply": np.multiply,
    "concatenate": lambda *Us, axis=0: np.concatenate(Us, axis),
    "chunk": forward_chunk,
    "zero_pad": forward_zero_pad,
}


def run_network(network, image):
    """The value of every node."""
    values = {}
    for node in network.nodes:
        inputs = [values[name] for name in node.inputs]
        values[node.name] = image.astype(float) if node.op == "input" else FORWARD[node.op](*inputs, **node.params)
    return values


@dataclass
class Response:
    prm: np.ndarray
    leaked: float
    empty: bool


def walk_network(network, activations, peak, upsample=1, signed=False):
    """Eq. 4-5 from one peak to the image."""
    nodes = {node.name: node for node in network.nodes}
    readers = {name: [node for node in network.nodes for source in node.inputs if source == name] for name in nodes}

    def behind(name, *ops):
        """The node that really computes this value: past identities, dropouts and nodes of these ops."""
        while nodes[name].op in ("identity", "dropout", *ops):
            name = nodes[name].inputs[0]
        return nodes[name]

    def folded(node):
        """A convolution's weights after a batch norm that alone reads it."""
        name = node.name
        while len(readers[name]) == 1 and name != network.output:
            reader = readers[name][0]
            if reader.op == "batch_norm":
                gain = 1 / np.sqrt(reader.params["var"].astype(float) + reader.params.get("eps", 1e-5))
                if reader.params.get("weight") is not None:
                    gain = gain * reader.params["weight"]
                return node.params["weight"] * gain[:, None, None, None]
            if reader.op not in ("identity", "dropout"):
                break
            name = reader.name
        return node.params["weight"]

    def unpadded(node):
        """The input and padding of a convolution or average pooling, zero paddings before it merged."""
        name = node.inputs[0]
        (top, bottom), (left, right) = borders(node.params.get("padding", 0))
        padding = np.array([left, right, top, bottom])
        source = name
        while nodes[source].op in ("identity", "dropout", "zero_pad"):
            if nodes[source].op == "zero_pad":
                padding = padding + nodes[source].params["padding"]
                name = nodes[source].inputs[0]
            source = nodes[source].inputs[0]
        return name, padding.tolist()

    def handed(node, P):
        """(input, P of it) for each input of a node, and what leaked."""
        Us, params, leak = [activations[name] for name in node.inputs], node.params, 0.0
        U = Us[0]
        names = list(node.inputs)
        if node.op == "conv2d":
            name, padding = unpadded(node)
            names = [name]
            P_U, leak = conv2d(P, activations[name], folded(node), **{**conv_params(params), "padding": padding},
                               signed=signed and behind(name).op == "input")
            return [(name, P_U)], leak
        if node.op == "avg_pool2d":
            name, padding = unpadded(node)
            P_U, leak = avg_pool2d(P, activations[name], **{**params, "padding": padding})
            return [(name, P_U)], leak
        if node.op == "adaptive_avg_pool2d":
            P_U, leak = adaptive_avg_pool2d(P, U)
            return [(names[0], P_U)], leak
        if node.op == "mean":
            P_U, leak = mean(P, U, params.get("axes", (1, 2)))
            return [(names[0], P_U)], leak
        if node.op == "interpolate":
            scale = params.get("scale")
            P_U, leak = interpolate(P, U, params["mode"], params.get("align_corners", False),
                                    None if scale is None else pair(scale))
            return [(names[0], P_U)], leak
        if node.op == "max_pool2d":
            return [(names[0], max_pool2d(P, U, **params))], 0
        if node.op == "add":
            return list(zip(names, add(P, Us))), 0
        if node.op == "concatenate":
            return list(zip(names, concatenate(P, [U.shape for U in Us], params.get("axis", 0)))), 0
        if node.op == "chunk":
            axis = params["axis"]
            start, stop = chunk_slice(U.shape[axis], params["chunks"], params["index"])
            return [(names[0], slice_axis(P, U.shape, axis, start, stop))], 0
        if node.op == "zero_pad":
            at = np.pad(indices(U.shape), [(0, 0), *borders(params["padding"])], constant_values=-1)
            return [(names[0], returned(P, at, U.shape))], 0
        if node.op == "multiply":
            gates = [behind(name).op in GATES for name in names]
            kept = gates.index(False) if any(gates) else [U.shape == P.shape for U in Us].index(True)
            return [(names[kept], multiply(P, Us[kept].shape))], 0
        return [(names[0], P)], 0

    C, h, w = activations[network.output].shape
    label, row, column = peak
    lines = [blend(*enlargement(n, upsample), n)[[i]].toarray() for n, i in ((h, row), (w, column))]
    start = np.zeros((C, h, w))
    start[label] = lines[0].T @ lines[1]
    mass, leaked = {network.output: start}, 0.0
    for node in reversed(network.nodes):
        if node.op == "input":
            P_image = mass.get(node.name, np.zeros_like(activations[node.name]))
        elif node.name in mass:
            shares, leak = handed(node, mass[node.name])
            leaked += leak
            for name, P in shares:
                mass[name] = mass.get(name, 0) + P
    total = P_image.sum()
    return Response(P_image.sum(0) / (total or 1), leaked, bool(total == 0))


def contour(S, width):
    """The dilation without the erosion; the image's edge alone makes none."""
    square = np.ones((width, width), bool)
    return ndimage.binary_dilation(S, square) & ~ndimage.binary_erosion(S, square, border_value=1)


def background(M, shape, bias):
    """Where the class's own map, scaled to [0, 1] and enlarged, is below a share of its mean."""
    M = M.astype(float)
    low, high = M.min(), M.max()
    if low == high:
        return np.zeros(shape, bool)
    rows, columns = (resampling(n, m, "bilinear") for n, m in zip(M.shape, shape))
    R = rows @ ((M - low) / (high - low)) @ columns.T
    return bias * R.mean() > R


def resize_nearest(S, shape):
    rows, columns = (resampling(n, m, "nearest-exact") for n, m in zip(S.shape, shape))
    return rows @ S.astype(float) @ columns.T > 0


def terms(R, S, Q, width):
    """The three sums of Eq. 6: instance, boundary, class-aware."""
    return float(R[S].sum()), float(R[contour(S, width)].sum()), float((Q & S).sum())


def score(R, S, Q, alpha, beta, width):
    instance, boundary, class_aware = terms(R, S, Q, width)
    return alpha * instance + boundary - beta * class_aware


def best_proposal(R, proposals, Q, alpha, beta, width, area):
    best = None
    for j, S in enumerate(proposals):
        if area[0] <= S.mean() < area[1]:
            S = resize_nearest(S, R.shape)
            s = score(R, S, Q, alpha, beta, width)
            if best is None or s > best[1]:
                best = j, s, terms(R, S, Q, width)
    return best


def overlap(A, B):
    union = (A | B).sum()
    return (A & B).sum() / union if union else 0.0


def nms(instances, threshold, per_class):
    """Suppression: the dropped hand their maps to the first kept one that they overlap."""
    kept = []
    for one in sorted(instances, key=lambda one: (-one.score, one.label, *one.peak)):
        for group in kept:
            if (not per_class or group[0].label == one.label) and overlap(group[0].mask, one.mask) >= threshold:
                group.append(one)
                break
        else:
            kept.append([one])
    return [group[0] if len(group) == 1 else merged(group) for group in kept]


def merged(group):
    total = sum(one.prm.astype(float) for one in group)
    return replace(group[0], prm=total / total.sum())


port = SimpleNamespace(
    peak_stimulation=SimpleNamespace(forward=stimulate, backward=stimulate_backward),
    peak_backprop=SimpleNamespace(add=add, concatenate=concatenate, slice_axis=slice_axis, multiply=multiply, reshape=reshape, permute=permute, batch_norm=unchanged, activation=unchanged, conv2d=conv2d, max_pool2d=max_pool2d, adaptive_max_pool2d=adaptive_max_pool2d, linear=linear, avg_pool2d=avg_pool2d, adaptive_avg_pool2d=adaptive_avg_pool2d, mean=mean, interpolate=interpolate),
    retrieval=SimpleNamespace(contour=contour, background=background, score=score, terms=terms, resize_nearest=resize_nearest, best_proposal=best_proposal, nms=nms),
    network=SimpleNamespace(forward=run_network, walk=walk_network),
)
