"""Peak Response Mapping by another road: every layer is a sparse matrix.

An independent implementation in NumPy and SciPy, written from parity_tests/PORTING.md and reference/golden.md. It shares
no code with the oracle and does not need torch; it shows that both pages suffice to pass

    prm parity run --implementation prm.parity_tests.scipy_port:port

and is an example of an object with functions on arrays. It is written to be read, not to be fast.

A layer is a matrix A with V = A @ U, maps being raveled. There are two families:

- layers that mix (convolution, averages, interpolation): P(U) = U_hat * A+^T (P(V) / A+ U_hat), Eq. 4-5;
- layers that pick elements (max pooling, slices, padding, repetition): P(U) = A^T P(V).

All is computed in float64, whatever the dtype of the arguments.
"""

from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np
from scipy import ndimage, sparse

# Matrices


def matrix(at, size, weights=1.0):
    """A with (A @ U)[k] = sum over t of weights[t, k] * U[at[t, k]], U having `size` elements; nothing where at < 0."""
    at = np.reshape(at, (len(at), -1))
    rows = np.broadcast_to(np.arange(at.shape[1]), at.shape)
    weights = np.broadcast_to(weights, at.shape)
    taken = at >= 0
    return sparse.csr_array((weights[taken], (rows[taken], at[taken])), shape=(at.shape[1], size))


def identity(n):
    """The n x n identity."""
    return matrix([np.arange(n)], n)


def kron(*factors):
    """The Kronecker product: each factor acts on an axis of its own."""
    product = sparse.csr_array(np.ones((1, 1)))
    for factor in factors:
        product = sparse.kron(product, factor, format="csr")
    return product


def indices(shape):
    """Positions in the raveled array, in its shape."""
    return np.arange(np.prod(shape, dtype=int)).reshape(shape)


# Geometry: which elements every output position sees


def pair(value):
    """(rows, columns) of a pair or of one number for both."""
    return tuple(value) if isinstance(value, (tuple, list)) else (value, value)


def borders(padding):
    """Padding as ((top, bottom), (left, right))."""
    if isinstance(padding, (tuple, list)) and len(padding) == 4:
        left, right, top, bottom = padding
        return (top, bottom), (left, right)
    rows, columns = pair(padding)
    return (rows, rows), (columns, columns)


def grid(rows, columns, shape):
    """Flat positions (taps, p, q) in a map of two axes' positions (taps, p) and (taps, q); -1 outside the map."""
    (H, W), rows, columns = shape, rows[:, None, :, None], columns[None, :, None, :]
    inside = (rows >= 0) & (rows < H) & (columns >= 0) & (columns < W)
    at = np.where(inside, rows * W + columns, -1)
    return at.reshape(-1, *at.shape[2:])


def windows(shape, kernel, stride, padding=0, dilation=1, ceil_mode=False):
    """Flat positions (taps, p, q) that the windows of a convolution or pooling cover."""
    axes = []
    for n, k, s, (before, after), d in zip(shape, pair(kernel), pair(stride), borders(padding), pair(dilation)):
        span = n + before + after - d * (k - 1) - 1
        out = span // s + 1
        if ceil_mode:
            out = -(-span // s) + 1
            out -= (out - 1) * s >= n + before
        axes.append(np.arange(out) * s - before + np.arange(k)[:, None] * d)
    return grid(*axes, shape)


def bins(shape, size):
    """Flat positions (taps, p, q) that the bins of adaptive pooling cover; an entry None of `size` keeps the axis."""
    axes = []
    for m, n in zip(shape, pair(size)):
        p = np.arange(n or m)
        begin, end = p * m // len(p), -(-(p + 1) * m // len(p))
        at = begin + np.arange((end - begin).max())[:, None]
        axes.append(np.where(at < end, at, -1))
    return grid(*axes, shape)


# Layers that mix: each function gives the matrix, the weight of each row's whole filter (the positive part, then the
# magnitude of the negative one), which sets the leak bound, and the shape of V


def walk(P, U, layer, signed=False):
    """Eq. 4-5 through a layer that mixes: P(U) and the mass that leaked."""
    A, totals, _ = layer
    P, u = P.astype(float).ravel(), U.astype(float).ravel()
    # An entry of A is one weight, never a sum of several, so A's positive part is that of the filters.
    inputs = [(u - min(0, u.min()), A.maximum(0), totals[0])]
    if signed:
        inputs = [(np.maximum(u, 0), A.maximum(0), totals[0]), (np.maximum(-u, 0), (-A).maximum(0), totals[1])]
    Z = sum(A @ u for u, A, _ in inputs)
    flows = Z > 1e-7 * sum(u.max() * total for u, _, total in inputs)
    Y = np.divide(P, Z, out=np.zeros_like(P), where=flows)
    return sum(u * (A.T @ Y) for u, A, _ in inputs).reshape(U.shape), P[~flows].sum()


def convolution(shape, weight, stride=1, padding=0, dilation=1, groups=1):
    """The filters' matrix times the matrix that lays out the windows of every channel."""
    at = windows(shape[1:], weight.shape[2:], stride, padding, dilation)
    filters = weight.astype(float).reshape(len(weight), -1)
    mixing = sparse.block_diag(np.split(filters, groups))
    A = kron(mixing, identity(at[0].size)) @ kron(identity(shape[0]), matrix(at.reshape(1, -1), shape[1] * shape[2]))
    totals = [np.repeat(np.maximum(part, 0).sum(1), at[0].size) for part in (filters, -filters)]
    return A, totals, (len(weight), *at.shape[1:])


def dense(shape, weight):
    """A fully connected layer on the last axis."""
    n = np.prod(shape[:-1], dtype=int)
    return kron(identity(n), weight), [np.tile(np.maximum(weight, 0).sum(1), n)], (*shape[:-1], len(weight))


def average(shape, at, count, divisor):
    """The windows of every channel, summed and divided; `count` positions of each would count without a border."""
    A = kron(identity(shape[0]), matrix(at, shape[1] * shape[2], 1 / np.ravel(divisor)))
    return A, [np.tile(np.ravel(count / divisor), shape[0])], (shape[0], *at.shape[1:])


def average_pooling(
    shape, kernel, stride=None, padding=0, ceil_mode=False, count_include_pad=True, divisor_override=None
):
    """Average pooling; what reaches past the padding never counts."""
    stride = kernel if stride is None else stride
    at = windows(shape[1:], kernel, stride, padding, ceil_mode=ceil_mode)
    count = (at >= 0).sum(0)
    if count_include_pad:
        # Windows over the padded map itself; one position more or less behind it changes none of these.
        axes = [n + sum(border) for n, border in zip(shape[1:], borders(padding))]
        count = (windows(axes, kernel, stride, ceil_mode=ceil_mode) >= 0).sum(0)[: at.shape[1], : at.shape[2]]
    return average(shape, at, count, divisor_override or count)


def adaptive_average(shape, size):
    """Adaptive average pooling."""
    at = bins(shape[1:], size)
    count = (at >= 0).sum(0)
    return average(shape, at, count, count)


def averaging(shape, axes=(1, 2), keepdims=False):
    """The mean over axes."""
    over = [axis % len(shape) for axis in axes]
    A = kron(*(np.full((1, n), 1 / n) if axis in over else identity(n) for axis, n in enumerate(shape)))
    return A, [1], [1 if axis in over else n for axis, n in enumerate(shape) if keepdims or axis not in over]


def resampling(n, m, mode, align_corners=False, scale=None):
    """The matrix that interpolates an axis of n positions at m."""
    p, step = np.arange(m), n / m if scale is None else 1 / scale
    if mode == "bilinear":
        x = p * (n - 1) / max(m - 1, 1) if align_corners else np.maximum((p + 0.5) * step - 0.5, 0)
        a = np.minimum(x.astype(int), n - 1)
        return matrix([a, np.minimum(a + 1, n - 1)], n, [1 - (x - a), x - a])
    # In halves of a position, so that integers do where no scale is given.
    halves = 2 * p + (mode == "nearest-exact")
    at = halves * n // (2 * m) if scale is None else (halves / 2 * step).astype(int)
    return matrix([np.minimum(at, n - 1)], n)


def interpolation(shape, mode, align_corners=False, size=None, scale=None):
    """Interpolation to a size, with the steps of a scale if there is one."""
    scale = pair(scale)
    out = [int(n * s) for n, s in zip(shape[1:], scale)] if size is None else pair(size)
    axes = [resampling(n, m, mode, align_corners, s) for n, m, s in zip(shape[1:], out, scale)]
    return kron(identity(shape[0]), *axes), [1], (shape[0], *out)


def conv2d(P, U, W, stride=1, padding=0, dilation=1, groups=1, signed=False, return_leak=True):
    """Back through a convolution."""
    return walk(P, U, convolution(U.shape, W, stride, padding, dilation, groups), signed)


def linear(P, U, W, return_leak=True):
    """Back through a fully connected layer."""
    return walk(P, U, dense(U.shape, W))


def avg_pool2d(P, U, return_leak=True, **geometry):
    """Back through average pooling."""
    return walk(P, U, average_pooling(U.shape, **geometry))


def adaptive_avg_pool2d(P, U, return_leak=True):
    """Back through adaptive average pooling."""
    return walk(P, U, adaptive_average(U.shape, P.shape[1:]))


def mean(P, U, axes=(1, 2), return_leak=True):
    """Back through a mean."""
    return walk(P, U, averaging(U.shape, axes))


def interpolate(P, U, mode, align_corners=False, scale=None, return_leak=True):
    """Back through an interpolation."""
    return walk(P, U, interpolation(U.shape, mode, align_corners, P.shape[1:], scale))


# Layers that pick: V = U.ravel()[at], and at is -1 where V takes nothing from U


def returned(P, at, shape):
    """Back through a layer that picks: every position gets the mass of those that it was picked for."""
    return (matrix([np.ravel(at)], np.prod(shape, dtype=int)).T @ P.astype(float).ravel()).reshape(shape)


def winners(U, at):
    """The position of the first maximum of every window of every channel."""
    C = len(U)
    # Position -1, outside, finds the column that is put behind the elements; argmax gives the first of equal values.
    values = np.concatenate([U.reshape(C, -1).astype(float), np.full((C, 1), -np.inf)], 1)
    best = np.take_along_axis(at[None], values[:, at].argmax(1)[:, None], 1)[:, 0]
    return np.where(best < 0, -1, best + np.arange(C)[:, None, None] * U[0].size)


def pooled(U, kernel, stride=None, padding=0, dilation=1, ceil_mode=False):
    """What max pooling picks."""
    return winners(U, windows(U.shape[1:], kernel, kernel if stride is None else stride, padding, dilation, ceil_mode))


def sliced(U, axis, start=None, stop=None, step=None):
    """What a slice picks."""
    return np.moveaxis(np.moveaxis(indices(U.shape), axis, 0)[start:stop:step], 0, axis)


def chunked(U, axis, chunks, index):
    """What one of several chunks picks; all are equally long but the last."""
    length = -(-U.shape[axis] // chunks)
    return sliced(U, axis, index * length, (index + 1) * length)


def padded(U, padding):
    """What zero padding picks."""
    return np.pad(indices(U.shape), [(0, 0), *borders(padding)], constant_values=-1)


def max_pool2d(P, U, **geometry):
    """Back through max pooling."""
    return returned(P, pooled(U, **geometry), U.shape)


def adaptive_max_pool2d(P, U):
    """Back through adaptive max pooling."""
    return returned(P, winners(U, bins(U.shape[1:], P.shape[1:])), U.shape)


def slice_axis(P, shape, axis, start=None, stop=None, step=None):
    """Back through a slice."""
    return returned(P, sliced(np.empty(shape), axis, start, stop, step), shape)


def multiply(P, shape):
    """Back through a product with a gate: to the other factor, which may have been repeated."""
    return returned(P, np.broadcast_to(indices(shape), P.shape), shape)


def reshape(P, shape):
    """Back through a reshape."""
    return returned(P, indices(shape), shape)


def permute(P, axes):
    """Back through a permutation of axes."""
    shape = [P.shape[list(axes).index(axis)] for axis in range(P.ndim)]
    return returned(P, indices(shape).transpose(axes), shape)


def concatenate(P, shapes, axis=0):
    """Back through a concatenation."""
    return np.split(P, np.cumsum([shape[axis] for shape in shapes])[:-1], axis)


def add(P, summands, constant=()):
    """Back through a sum: split by the positive parts, equally where there are none."""
    takes = np.array([[i not in constant] for i in range(len(summands))])
    parts = np.stack([np.broadcast_to(np.maximum(U, 0), P.shape).ravel() for U in summands]).astype(float) * takes
    parts = np.where(parts.any(0), parts, takes)
    total = parts.sum(0)
    shares = np.divide(parts, total, out=np.zeros_like(parts), where=total > 0)
    return [multiply(P * share.reshape(P.shape), U.shape) for share, U in zip(shares, summands)]


def unchanged(P):
    """Back through an activation or a batch norm that is not folded."""
    return P


# Networks


def batch_norm(U, mean, var, weight=None, bias=None, eps=1e-5):
    """The forward pass of batch norm."""
    mean, var, weight, bias = (
        default if x is None else x.astype(float)[:, None, None] for x, default in zip((mean, var, weight, bias), (0, 1, 1, 0))
    )
    return (U - mean) / np.sqrt(var + eps) * weight + bias


MIXES = {
    "conv2d": convolution,
    "avg_pool2d": average_pooling,
    "adaptive_avg_pool2d": adaptive_average,
    "mean": averaging,
    "interpolate": interpolation,
}
PICKS = {"max_pool2d": pooled, "chunk": chunked, "zero_pad": padded}
OTHERS = {
    "add": np.add,
    "multiply": np.multiply,
    "concatenate": lambda *Us, axis=0: np.concatenate(Us, axis),
    "batch_norm": batch_norm,
    "relu": lambda U: np.maximum(U, 0),
    "relu6": lambda U: np.clip(U, 0, 6),
    "leaky_relu": lambda U, slope: np.where(U > 0, U, slope * U),
    "sigmoid": lambda U: 1 / (1 + np.exp(-U)),
    "identity": lambda U: U,
    "dropout": lambda U: U,
}


def mixing_layer(node, shape, **changes):
    """The layer of a node that mixes; its bias takes no part."""
    params = {name: value for name, value in {**node.params, **changes}.items() if name != "bias"}
    return MIXES[node.op](shape, **params)


def forward(network, image):
    """The value of every node."""
    values = {}
    for node in network.nodes:
        Us = [values[name] for name in node.inputs]
        if node.op == "input":
            V = image.astype(float)
        elif node.op in MIXES:
            A, _, shape = mixing_layer(node, Us[0].shape)
            V = (A @ Us[0].ravel()).reshape(shape)
            if node.params.get("bias") is not None:
                V = V + node.params["bias"][:, None, None]
        elif node.op in PICKS:
            at = PICKS[node.op](Us[0], **node.params)
            V = (matrix([at.ravel()], Us[0].size) @ Us[0].ravel()).reshape(at.shape)
        else:
            V = OTHERS[node.op](*Us, **node.params)
        values[node.name] = V
    return values


def folded_weight(network, node):
    """A convolution's weight, with the batch norm in it that alone reads the convolution."""
    weight, name = node.params["weight"].astype(float), node.name
    while name != network.output:
        readers = [reader for reader in network.nodes for source in reader.inputs if source == name]
        if len(readers) != 1 or readers[0].op not in ("identity", "dropout", "batch_norm"):
            break
        (reader,) = readers
        if reader.op == "batch_norm":
            gamma = reader.params.get("weight")
            k = (1 if gamma is None else gamma) / np.sqrt(reader.params["var"] + reader.params.get("eps", 1e-5))
            return weight * k[:, None, None, None]
        name = reader.name
    return weight


def back_through_mix(network, values, node, P, signed):
    """The input that gets mass from a node that mixes, what it gets, and what leaked."""
    nodes = {node.name: node for node in network.nodes}
    changes = {"weight": folded_weight(network, node)} if node.op == "conv2d" else {}
    (source,) = node.inputs
    A, totals, shape = mixing_layer(node, values[source].shape, **changes)
    while node.op in ("conv2d", "avg_pool2d") and nodes[source].op in ("identity", "dropout", "zero_pad"):
        before = nodes[source]
        (source,) = before.inputs
        if before.op == "zero_pad":
            # Merged into the layer: one matrix after the other, so that the shift does not see the zeros.
            A = A @ matrix([padded(values[source], **before.params).ravel()], values[source].size)
    signed = signed and node.op == "conv2d" and nodes[source].op == "input"
    P_U, leaked = walk(P, values[source], (A, totals, shape), signed)
    return source, P_U, leaked


def back(network, values, node, P):
    """What each input gets from a node that does not mix."""
    Us = [values[name] for name in node.inputs]
    if node.op in PICKS:
        return [returned(P, PICKS[node.op](Us[0], **node.params), Us[0].shape)]
    if node.op == "add":
        return add(P, Us)
    if node.op == "concatenate":
        return concatenate(P, [U.shape for U in Us], **node.params)
    if node.op == "multiply":
        ops = {node.name: node.op for node in network.nodes}
        kept = max((0, 1), key=lambda i: (ops[node.inputs[i]] != "sigmoid", Us[i].shape == P.shape))
        return [multiply(P, U.shape) if i == kept else np.zeros(U.shape) for i, U in enumerate(Us)]
    return [P]


@dataclass
class Response:
    """A Peak Response Map, the mass that leaked on the way, and whether none arrived."""

    prm: np.ndarray
    leaked: float
    empty: bool


def walk_network(network, activations, peak, upsample=1, signed=False):
    """Eq. 4-5 from a peak to the image."""
    C, h, w = activations[network.output].shape
    label, row, column = peak
    start = np.zeros((C, h * w))
    start[label] = enlargement((h, w), upsample)[[row * upsample * w + column]].toarray()
    mass, leaked = {network.output: start.reshape(C, h, w)}, 0.0
    for node in reversed(network.nodes):
        P = mass.get(node.name)
        if P is None or node.op == "input":
            continue
        if node.op in MIXES:
            source, P_U, leak = back_through_mix(network, activations, node, P, signed)
            leaked, shares = leaked + leak, [(source, P_U)]
        else:
            shares = zip(node.inputs, back(network, activations, node, P))
        for name, P_U in shares:
            mass[name] = mass.get(name, 0) + P_U
    image = next(node.name for node in network.nodes if node.op == "input")
    P = mass.get(image, np.zeros(activations[image].shape)).sum(0)
    total = P.sum()
    return Response(P / total if total else P, leaked, bool(total == 0))


# Peak stimulation


@dataclass
class Stimulation:
    """What the forward pass answers, and what the backward pass needs to know of it."""

    scores: np.ndarray
    peaks: np.ndarray
    shape: tuple
    upsample: int


def corners(n, factor):
    """For each position of an axis enlarged with aligned corners: its neighbours a and b and the share of b."""
    last = factor * n - 1
    a, r = np.divmod(np.arange(factor * n) * (n - 1), max(last, 1))
    return a, np.minimum(a + 1, n - 1), r / max(last, 1)


def enlargement(shape, factor):
    """The matrix that enlarges a map."""
    axes = ((n, *corners(n, factor)) for n in shape)
    return kron(*(matrix([a, b], n, [1 - t, t]) for n, a, b, t in axes))


def enlarge(M, factor):
    """The enlarged maps. The matrix would round; in this form a constant map stays constant, on which ties depend."""
    for axis in (-2, -1):
        a, b, t = corners(M.shape[axis], factor)
        low, high = M.take(a, axis), M.take(b, axis)
        M = low + np.expand_dims(t, -3 - axis) * (high - low)
    return M


LEVELS = {
    "median": lambda values: np.sort(values)[..., (values.shape[-1] - 1) // 2],
    "mean": lambda values: values.mean(-1),
    "max": lambda values: values.max(-1),
}


def stimulate(M, window=3, threshold="median", upsample=1):
    """Eq. 1-2: the peaks, and for each map the mean of its peaks' values."""
    E = enlarge(M.astype(float), upsample)
    values = E.reshape(*E.shape[:2], -1)
    if isinstance(threshold, str):
        level = LEVELS[threshold](values)[..., None, None]
    else:
        level = -np.inf if threshold is None else float(M.dtype.type(threshold))
    square = np.ones((1, 1, window, window), bool)
    earlier = (np.arange(square.size) < square.size // 2).reshape(square.shape)
    largest, largest_before = (
        ndimage.maximum_filter(E, footprint=part, mode="constant", cval=-np.inf) for part in (square, earlier)
    )
    G = (E >= largest) & (E > largest_before) & (E >= level)
    first = np.arange(values.shape[-1]) == values.argmax(-1)[..., None]
    G = np.where(G.any((2, 3), keepdims=True), G, first.reshape(E.shape))
    return Stimulation((E * G).sum((2, 3)) / G.sum((2, 3)), np.argwhere(G), M.shape, upsample)


def stimulate_backward(grad_scores, result):
    """Eq. 3: every peak gets its share, taken back through the transpose of the enlargement."""
    N, C, H, W = result.shape
    f = result.upsample
    G = np.zeros((N, C, f * H, f * W))
    G[tuple(result.peaks.T)] = 1
    D = G * (grad_scores / G.sum((2, 3)))[..., None, None]
    return (D.reshape(N * C, f * H * f * W) @ enlargement((H, W), f)).reshape(N, C, H, W)


# Retrieval


def contour(S, width):
    """The dilation without the erosion; the image's edge alone makes none."""
    square = np.ones((width, width), bool)
    return ndimage.binary_dilation(S, square) & ~ndimage.binary_erosion(S, square, border_value=1)


def background(M, shape, bias):
    """Where the map of a class, scaled to [0, 1] and enlarged, is below a share of its mean."""
    M = M.astype(float)
    if M.min() == M.max():
        return np.zeros(shape, bool)
    rows, columns = (resampling(n, m, "bilinear") for n, m in zip(M.shape, shape))
    R = rows @ ((M - M.min()) / (M.max() - M.min())) @ columns.T
    return bias * R.mean() > R


def resize_nearest(S, shape):
    """The mask in another size."""
    rows, columns = (resampling(n, m, "nearest-exact") for n, m in zip(S.shape, shape))
    return rows @ S.astype(float) @ columns.T > 0


def terms(R, S, Q, width):
    """The three sums of Eq. 6: instance, boundary, class-aware."""
    return R[S].sum(dtype=float), R[contour(S, width)].sum(dtype=float), float((Q & S).sum())


def score(R, S, Q, alpha, beta, width):
    """Eq. 6."""
    instance, boundary, class_aware = terms(R, S, Q, width)
    return alpha * instance + boundary - beta * class_aware


def best_proposal(R, proposals, Q, alpha, beta, width, area):
    """The first proposal of the highest score among those of a fitting share of set pixels."""
    best = None
    for j, S in enumerate(proposals):
        if area[0] <= S.mean() < area[1]:
            S = resize_nearest(S, R.shape)
            scored = score(R, S, Q, alpha, beta, width)
            if best is None or scored > best[1]:
                best = j, scored, terms(R, S, Q, width)
    return best


def overlap(A, B):
    """Intersection over union; 0 for two empty masks."""
    return (A & B).sum() / max((A | B).sum(), 1)


def nms(instances, threshold, per_class):
    """Suppression: each instance joins the first kept one that it overlaps, or is kept."""
    groups = []
    for one in sorted(instances, key=lambda one: (-one.score, one.label, *one.peak)):
        for group in groups:
            if group[0].label == one.label or not per_class:
                if overlap(group[0].mask, one.mask) >= threshold:
                    group.append(one)
                    break
        else:
            groups.append([one])
    return [merged(group) for group in groups]


def merged(group):
    """The first of a group, with the maps of all if there are others."""
    total = sum(one.prm.astype(float) for one in group)
    return group[0] if len(group) == 1 else replace(group[0], prm=total / total.sum())


port = SimpleNamespace(
    peak_stimulation=SimpleNamespace(forward=stimulate, backward=stimulate_backward),
    peak_backprop=SimpleNamespace(
        conv2d=conv2d,
        linear=linear,
        avg_pool2d=avg_pool2d,
        adaptive_avg_pool2d=adaptive_avg_pool2d,
        mean=mean,
        interpolate=interpolate,
        max_pool2d=max_pool2d,
        adaptive_max_pool2d=adaptive_max_pool2d,
        add=add,
        concatenate=concatenate,
        slice_axis=slice_axis,
        multiply=multiply,
        reshape=reshape,
        permute=permute,
        batch_norm=unchanged,
        activation=unchanged,
    ),
    network=SimpleNamespace(forward=forward, walk=walk_network),
    retrieval=SimpleNamespace(
        contour=contour,
        background=background,
        resize_nearest=resize_nearest,
        terms=terms,
        score=score,
        best_proposal=best_proposal,
        nms=nms,
    ),
)
