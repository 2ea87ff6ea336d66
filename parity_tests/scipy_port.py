"""Peak Response Mapping by another road: every layer is a sparse matrix.

An independent implementation in NumPy and SciPy, written from PORTING.md and reference/golden.md alone: no torch, and
none of the oracle's code. It shows that the two pages suffice to pass the conformance suite,

    prm parity run --implementation prm.parity_tests.scipy_port:port

and is an example of an object with functions on arrays; the object, `port`, stands at the end. It is written to be
read, not to be fast. A layer is a matrix A, V = A @ U with maps raveled, of one of two families:

- layers that mix (convolutions, averages, interpolations): P(U) = U_hat * A+^T (P(V) / A+ U_hat), Eq. 4-5;
- layers that pick elements (max pooling, slices, zero padding, repetition): P(U) = A^T P(V).

All is computed in float64, whatever the arguments' dtype.
"""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
from scipy import ndimage, sparse
from scipy.special import log_expit

# ---- Matrices


def matrix(at, size, weights=1.0):
    """A with (A @ U)[k] = sum over t of weights[t, k] * U[at[t, k]], for U of `size`; nothing where `at` is -1."""
    at = np.reshape(at, (len(at), -1))
    rows, weights = (np.broadcast_to(x, at.shape) for x in (np.arange(at.shape[1]), weights))
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


# ---- Geometry: the positions (taps, p, q) of a raveled map that each output position (p, q) sees, -1 outside


def pair(value):
    """(rows, columns) of a pair or of one number for both."""
    return tuple(value) if isinstance(value, (tuple, list)) else (value, value)


def borders(padding):
    """Padding as ((top, bottom), (left, right))."""
    rows, columns, *behind = pair(padding)
    return (tuple(behind), (rows, columns)) if behind else ((rows, rows), (columns, columns))


def grid(rows, columns, shape):
    """What is seen where an axis alone sees the positions (taps, p) and the other (taps, q)."""
    (H, W), rows, columns = shape, rows[:, None, :, None], columns[None, :, None, :]
    at = np.where((rows >= 0) & (rows < H) & (columns >= 0) & (columns < W), rows * W + columns, -1)
    return at.reshape(-1, *at.shape[2:])


def windows(shape, kernel, stride=None, padding=0, dilation=1, ceil_mode=False):
    """What the windows of a convolution or pooling see."""
    axes = []
    stride = kernel if stride is None else stride
    for n, k, s, (before, after), d in zip(shape, pair(kernel), pair(stride), borders(padding), pair(dilation)):
        span = n + before + after - d * (k - 1) - 1
        out = (-(-span // s) if ceil_mode else span // s) + 1
        if ceil_mode and (out - 1) * s >= n + before:
            out -= 1
        axes.append(np.arange(out) * s - before + np.arange(k)[:, None] * d)
    return grid(*axes, shape)


def bins(shape, size):
    """What the bins of adaptive pooling see; None in `size` keeps an axis."""
    axes = []
    for m, n in zip(shape, pair(size)):
        n = m if n is None else n
        p = np.arange(n)
        begin, end = p * m // n, -(-(p + 1) * m // n)
        at = begin + np.arange((end - begin).max())[:, None]
        axes.append(np.where(at < end, at, -1))
    return grid(*axes, shape)


def corners(n, factor):
    """For each position of an axis enlarged with aligned corners: its neighbours a and b and the share of b."""
    last = max(factor * n - 1, 1)
    a, r = np.divmod(np.arange(factor * n) * (n - 1), last)
    return a, np.minimum(a + 1, n - 1), r / last


def enlargement(shape, factor):
    """The matrix that enlarges a map with aligned corners."""
    axes = ((n, *corners(n, factor)) for n in shape)
    return kron(*(matrix([a, b], n, [1 - t, t]) for n, a, b, t in axes))


# ---- Layers that mix. Each function gives a layer: the matrix; what the weights of each row's whole filter, part of it
# over the border or not, sum to, positive ones and then the magnitudes of negative ones, for the leak bound; V's shape


def convolution(shape, weight, stride=1, padding=0, dilation=1, groups=1):
    """The filters' matrix times the matrix that lays out what the windows of every channel see."""
    at = windows(shape[1:], weight.shape[2:], stride, padding, dilation)
    filters, n = weight.astype(float).reshape(len(weight), -1), at[0].size
    seen = kron(identity(shape[0]), matrix([at.ravel()], shape[1] * shape[2]))
    A = kron(sparse.block_diag(np.split(filters, groups)), identity(n)) @ seen
    return A, [np.repeat(np.maximum(part, 0).sum(1), n) for part in (filters, -filters)], (len(weight), *at.shape[1:])


def dense(shape, weight):
    """A fully connected layer of the last axis."""
    n = np.prod(shape[:-1], dtype=int)
    return kron(identity(n), weight), [np.tile(np.maximum(weight, 0).sum(1), n)], (*shape[:-1], len(weight))


def average(shape, at, count=None, divisor=None):
    """The sums over what is seen, in each channel alone, divided; `count` positions make a filter."""
    count = (at >= 0).sum(0) if count is None else count
    divisor = np.broadcast_to(divisor or count, count.shape)
    A = kron(identity(shape[0]), matrix(at, shape[1] * shape[2], 1 / divisor.ravel()))
    return A, [np.tile((count / divisor).ravel(), shape[0])], (shape[0], *at.shape[1:])


def pooling(shape, kernel, stride=None, padding=0, ceil_mode=False, count_include_pad=True, divisor_override=None):
    """Average pooling; what reaches past the padding never counts."""
    at = windows(shape[1:], kernel, stride, padding, ceil_mode=ceil_mode)
    if not count_include_pad:
        return average(shape, at, divisor=divisor_override)
    # The padded map as a map of its own; in ceil mode it may have a window more, of padding alone.
    padded = [n + sum(border) for n, border in zip(shape[1:], borders(padding))]
    seen = windows(padded, kernel, stride, ceil_mode=ceil_mode)[:, : at.shape[1], : at.shape[2]]
    return average(shape, at, (seen >= 0).sum(0), divisor_override)


def averaging(shape, axes=(1, 2), keepdims=False):
    """The mean over axes."""
    over = [axis % len(shape) for axis in axes]
    A = kron(*(np.full((1, n), 1 / n) if axis in over else identity(n) for axis, n in enumerate(shape)))
    return A, [1], [1 if axis in over else n for axis, n in enumerate(shape) if keepdims or axis not in over]


def resampling(n, m, mode="bilinear", align_corners=False, scale=None):
    """The matrix that interpolates an axis of n positions at m."""
    p, step = np.arange(m), n / m if scale is None else 1 / scale
    if mode == "bilinear":
        x = p * (n - 1) / max(m - 1, 1) if align_corners else np.maximum((p + 0.5) * step - 0.5, 0)
        a = np.minimum(x.astype(int), n - 1)
        return matrix([a, np.minimum(a + 1, n - 1)], n, [1 - (x - a), x - a])
    halves = 2 * p + (mode == "nearest-exact")  # of a position: without scale all is integer
    at = halves * n // (2 * m) if scale is None else (halves / 2 * step).astype(int)
    return matrix([np.minimum(at, n - 1)], n)


def interpolation(shape, mode, align_corners=False, size=None, scale=None):
    """Interpolation to a size, with the steps of a scale if there is one."""
    scale = pair(scale)
    size = [int(n * s) for n, s in zip(shape[1:], scale)] if size is None else pair(size)
    axes = [resampling(n, m, mode, align_corners, s) for n, m, s in zip(shape[1:], size, scale)]
    return kron(identity(shape[0]), *axes), [1], (shape[0], *size)


def walk(P, U, layer, signed=False):
    """Eq. 4-5 through a layer that mixes: P(U) and the mass that leaked."""
    A, totals, _ = layer
    P, u = P.astype(float).ravel(), U.astype(float).ravel()
    # An entry of A is one weight, never a sum of several: the positive part of A is that of the filters.
    inputs = [(u - min(0, u.min()), A.maximum(0), totals[0])]
    if signed:
        inputs = [(np.maximum(u, 0), A.maximum(0), totals[0]), (np.maximum(-u, 0), (-A).maximum(0), totals[1])]
    Z = sum(A @ u for u, A, _ in inputs)
    flows = Z > 1e-7 * sum(u.max() * total for u, _, total in inputs)
    Y = np.divide(P, Z, out=np.zeros_like(P), where=flows)
    return sum(u * (A.T @ Y) for u, A, _ in inputs).reshape(U.shape), P[~flows].sum()


# ---- Layers that pick, V = U.ravel()[at]; `at` is -1 where V takes nothing from U


def returned(P, at, shape):
    """Back through a layer that picks: each element of U gets the mass of all that picked it."""
    return (matrix([at.ravel()], np.prod(shape, dtype=int)).T @ P.astype(float).ravel()).reshape(shape)


def indices(shape):
    """The raveled positions, in their shape."""
    return np.arange(np.prod(shape, dtype=int)).reshape(shape)


def winners(U, at):
    """The first maximum of what is seen, in every channel."""
    C = len(U)
    # Position -1 finds the column put behind the elements; argmax finds the first of equal values.
    values = np.concatenate([U.reshape(C, -1).astype(float), np.full((C, 1), -np.inf)], 1)
    best = np.take_along_axis(at[None], values[:, at].argmax(1)[:, None], 1)[:, 0]
    return np.where(best < 0, -1, best + np.arange(C)[:, None, None] * U[0].size)


def sliced(shape, axis, start=None, stop=None, step=None):
    """What a slice picks."""
    return np.moveaxis(np.moveaxis(indices(shape), axis, 0)[start:stop:step], 0, axis)


def chunked(shape, axis, chunks, index):
    """What a chunk picks: all are equally long but the last."""
    length = -(-shape[axis] // chunks)
    return sliced(shape, axis, index * length, (index + 1) * length)


def multiply(P, shape):
    """Back through a product with a gate, to the other operand, or through an expansion: what is repeated adds up."""
    return returned(P, np.broadcast_to(indices(shape), P.shape), shape)


def permute(P, axes):
    """Back through a permutation of axes."""
    shape = [P.shape[k] for k in np.argsort(axes)]
    return returned(P, indices(shape).transpose(axes), shape)


def concatenate(P, shapes, axis=0):
    """Back through a concatenation."""
    return np.split(P, np.cumsum([shape[axis] for shape in shapes])[:-1], axis)


def add(P, summands, constant=()):
    """Back through a sum: split by the positive parts, equally where there are none."""
    takes = np.array([[i not in constant] for i in range(len(summands))])
    parts = takes * [np.broadcast_to(np.maximum(U, 0), P.shape).ravel().astype(float) for U in summands]
    parts = np.where(parts.any(0), parts, takes)
    shares = parts / np.maximum(parts.sum(0), np.finfo(float).tiny)
    return [multiply(P * share.reshape(P.shape), U.shape) for share, U in zip(shares, summands)]


def summation(P, U, axes):
    """Back through a sum over axes: the addition of its slices."""
    positive = np.maximum(U, 0).astype(float)
    total = positive.sum(axes, keepdims=True)
    share = np.where(total > 0, positive / np.maximum(total, np.finfo(float).tiny), total.size / U.size)
    return share * P.reshape(total.shape)


def pad(P, shape, padding, return_leak, mode="constant"):
    """Back through a pad: to where each position was copied from; from the constant nowhere."""
    how = {"mode": {"replicate": "edge", "circular": "wrap"}.get(mode, mode)}
    if mode == "constant":
        how = {"mode": "constant", "constant_values": -1}
    at = np.pad(indices(shape), [(0, 0), *borders(padding)], **how)
    return returned(P, at, shape), P[at < 0].sum()


# ---- Networks


def batch_norm(U, mean, var, weight=None, bias=None, eps=1e-5):
    """Batch norm, forward."""
    weight, bias = np.ones_like(mean) if weight is None else weight, np.zeros_like(mean) if bias is None else bias
    mean, var, weight, bias = (x.astype(float)[:, None, None] for x in (mean, var, weight, bias))
    return (U - mean) / np.sqrt(var + eps) * weight + bias


MIXES = {
    "conv2d": lambda shape, weight, bias=None, **geometry: convolution(shape, weight, **geometry),
    "avg_pool2d": pooling,
    "adaptive_avg_pool2d": lambda shape, size: average(shape, bins(shape[1:], size)),
    "mean": averaging,
    "interpolate": interpolation,
}
PICKS = {
    "max_pool2d": lambda U, **geometry: winners(U, windows(U.shape[1:], **geometry)),
    "chunk": lambda U, **which: chunked(U.shape, **which),
    "zero_pad": lambda U, padding: np.pad(indices(U.shape), [(0, 0), *borders(padding)], constant_values=-1),
}
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


def run_network(network, image):
    """The value of every node."""
    values = {}
    for node in network.nodes:
        U, *others = [values[name] for name in node.inputs] or [image.astype(float)]
        if node.op == "input":
            V = U
        elif node.op in MIXES:
            A, _, shape = MIXES[node.op](U.shape, **node.params)
            bias = node.params.get("bias")
            V = (A @ U.ravel()).reshape(shape) + (0 if bias is None else bias[:, None, None])
        elif node.op in PICKS:
            at = PICKS[node.op](U, **node.params)
            V = (matrix([at.ravel()], U.size) @ U.ravel()).reshape(at.shape)
        else:
            V = OTHERS[node.op](U, *others, **node.params)
        values[node.name] = V
    return values


def folded(network, node):
    """The parameters of a node that mixes: a convolution's weight takes up the batch norm that alone reads it."""
    name = node.name
    while node.op == "conv2d" and name != network.output:
        readers = [reader for reader in network.nodes for source in reader.inputs if source == name]
        if len(readers) == 1 and readers[0].op == "batch_norm":
            norm = {"weight": None, "eps": 1e-5, **readers[0].params}
            k = (1 if norm["weight"] is None else norm["weight"]) / np.sqrt(norm["var"] + norm["eps"])
            return {**node.params, "weight": node.params["weight"] * k[:, None, None, None]}
        if len(readers) != 1 or readers[0].op not in ("identity", "dropout"):
            break
        name = readers[0].name
    return node.params


def back(network, values, node, P, signed):
    """What one node hands to its inputs, pairs of name and P(U), and what leaks in it."""
    nodes = {node.name: node for node in network.nodes}
    Us = [values[name] for name in node.inputs]
    if node.op in MIXES:
        A, *rest = MIXES[node.op](Us[0].shape, **folded(network, node))
        source = nodes[node.inputs[0]]
        while node.op in ("conv2d", "avg_pool2d") and source.op in ("zero_pad", "identity", "dropout"):
            U = values[source.inputs[0]]
            if source.op == "zero_pad":  # merged: one matrix after the other, so that the shift sees no zeros of it
                A = A @ matrix([PICKS["zero_pad"](U, **source.params).ravel()], U.size)
            source = nodes[source.inputs[0]]
        signed = signed and node.op == "conv2d" and source.op == "input"
        P_U, leaked = walk(P, values[source.name], (A, *rest), signed)
        return [(source.name, P_U)], leaked
    if node.op in PICKS:
        shares = [returned(P, PICKS[node.op](Us[0], **node.params), Us[0].shape)]
    elif node.op == "add":
        shares = add(P, Us)
    elif node.op == "concatenate":
        shares = concatenate(P, [U.shape for U in Us], **node.params)
    elif node.op == "multiply":
        kept = max((0, 1), key=lambda i: (nodes[node.inputs[i]].op != "sigmoid", Us[i].shape == P.shape))
        return [(node.inputs[kept], multiply(P, Us[kept].shape))], 0.0
    else:
        shares = [P]
    return list(zip(node.inputs, shares)), 0.0


def walk_network(network, activations, peak, upsample=1, signed=False):
    """Eq. 4-5 from a peak to the image."""
    C, h, w = activations[network.output].shape
    label, row, column = peak
    start = np.zeros((C, h, w))
    start[label] = enlargement((h, w), upsample)[[row * upsample * w + column]].toarray().reshape(h, w)
    mass, leaked = {network.output: start}, 0.0
    for node in reversed(network.nodes):
        if node.op == "input":
            arrived = mass.get(node.name, 0 * activations[node.name]).sum(0)
        elif node.name in mass:
            shares, leak = back(network, activations, node, mass[node.name], signed)
            leaked += leak
            for name, P in shares:
                mass[name] = mass.get(name, 0) + P
    total = arrived.sum()
    return SimpleNamespace(prm=arrived / total if total else arrived, leaked=leaked, empty=bool(total == 0))


# ---- Peak stimulation


def enlarge(M, factor):
    """The enlarged maps. Unlike the matrix, this form keeps a constant map exactly constant, on which ties depend."""
    for axis in (-2, -1):
        a, b, t = corners(M.shape[axis], factor)
        low, high = M.take(a, axis), M.take(b, axis)
        M = low + np.expand_dims(t, -3 - axis) * (high - low)
    return M


def stimulate(M, window, threshold, upsample=1, f="dirac"):
    """Eq. 1-2 for the delta: the peaks, and for each map the mean of its peaks' values."""
    if f != "dirac":
        raise NotImplementedError("the delta is the only sampling function")
    E = enlarge(M.astype(float), upsample)
    values = E.reshape(*E.shape[:2], np.prod(E.shape[2:]))
    if threshold == "median":
        level = np.sort(values)[..., (values.shape[-1] - 1) // 2, None, None]
    elif threshold in ("mean", "max"):
        level = getattr(E, threshold)((2, 3), keepdims=True)
        if threshold == "mean" and M.dtype != np.float64:
            level = level.astype(np.float32)
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
    scores = (E * G).sum((2, 3)) / G.sum((2, 3))
    return SimpleNamespace(scores=scores, peaks=np.argwhere(G), shape=M.shape, upsample=upsample)


def stimulate_backward(grad_scores, result):
    """Eq. 3: every peak gets its share, taken back through the transpose of the enlargement."""
    (N, C, H, W), f = result.shape, result.upsample
    G = np.zeros((N, C, f * H, f * W))
    G[tuple(result.peaks.T)] = 1
    D = G * (grad_scores / G.sum((2, 3)))[..., None, None]
    return (D.reshape(N * C, f * H * f * W) @ enlargement((H, W), f)).reshape(N, C, H, W)


# ---- Retrieval


def contour(S, width):
    """The dilation without the erosion; the image's edge alone makes none."""
    square = np.ones((width, width), bool)
    return ndimage.binary_dilation(S, square) & ~ndimage.binary_erosion(S, square, border_value=1)


def enlarged_response(M, shape):
    """A class's map, scaled to [0, 1] and enlarged; 1 if it is constant."""
    M = M.astype(float) - M.min()
    rows, columns = (resampling(n, m) for n, m in zip(M.shape, shape))
    return rows @ (M / M.max()) @ columns.T if M.max() else np.ones(shape)


def background(M, shape, bias):
    """Where it is below a share of its mean; nowhere if the map is constant."""
    N = enlarged_response(M, shape)
    return (N < bias * N.mean()) & (M.min() < M.max())


def resize_nearest(S, shape):
    """The mask in another size."""
    rows, columns = (resampling(n, m, "nearest-exact") for n, m in zip(S.shape, shape))
    return rows @ S.astype(float) @ columns.T > 0


def terms(R, S, Q, width):
    """The three sums of Eq. 6: instance, boundary, class-aware."""
    return R[S].sum(dtype=float), R[contour(S, width)].sum(dtype=float), float((Q & S).sum())


def score(R, S, Q, alpha, beta, width):
    """Eq. 6."""
    return float(np.dot([alpha, 1, -beta], terms(R, S, Q, width)))


def best_proposal(R, proposals, Q, alpha, beta, width, area):
    """The first proposal of the highest score among those of a fitting share of set pixels."""
    fitting = [(j, resize_nearest(S, R.shape)) for j, S in enumerate(proposals) if area[0] <= S.mean() < area[1]]
    scored = [(j, score(R, S, Q, alpha, beta, width), terms(R, S, Q, width)) for j, S in fitting]
    return max(scored, key=lambda one: one[1], default=None)  # max gives the first of equal ones


def smoothed(R, smooth):
    """The map through a Gaussian, as two matrices: each row of them a bell, folded back at the borders."""
    sigma = smooth * min(R.shape)
    if not sigma:
        return R.astype(float)
    reach = np.arange(-int(4 * sigma + 0.5), int(4 * sigma + 0.5) + 1)
    bell = np.exp(-(reach**2) / (2 * sigma**2))
    for axis in (0, 1):
        n = R.shape[axis]
        seen = (np.arange(n) + reach[:, None]) % (2 * n)
        A = matrix(np.minimum(seen, 2 * n - 1 - seen), n, (bell / bell.sum())[:, None])
        R = A @ R if axis == 0 else R @ A.T
    return R


def fit_terms(R, S, N, Q, objectness, width, smooth):
    """The five terms of the log-linear score."""
    R = R.astype(float)
    return smoothed(R, smooth)[S].sum(), N[S].mean(dtype=float), objectness, (~Q)[S].mean(), R[contour(S, width)].sum()


def best_fit(R, proposals, N, Q, objectness, weights, width, area, seed_pixel, smooth):
    """The first proposal of the highest log-linear score."""
    fitting = [(j, resize_nearest(S, R.shape)) for j, S in enumerate(proposals) if area[0] <= S.mean() < area[1]]
    fitting = [(j, S) for j, S in fitting if S.any()]
    held = [(j, S) for j, S in fitting if S.flat[R.argmax()]]
    if seed_pixel == "require" or (held and seed_pixel == "prefer"):
        fitting = held
    scored = [(j, fit_terms(R, S, N, Q, objectness[j], width, smooth)) for j, S in fitting]
    scored = [(j, float(np.dot(weights, np.log(np.maximum(terms, 1e-6)))), terms) for j, terms in scored]
    by_objectness = np.array_equal(np.flatnonzero(weights), [2])
    return max(scored, key=lambda one: one[2][2] if by_objectness else one[1], default=None)


def nms(instances, threshold, per_class, nested=None, again=False):
    """Each peak joins the first kept instance that its best one overlaps, if no choice of it is kept; a group's map is
    the sum of all, scaled. A peak has one choice, or with `again` all instances of its class and place."""
    order = sorted(instances, key=lambda one: (-one.score, one.label, *one.peak))
    peaks = [(one.label, one.peak) if again else n for n, one in enumerate(order)]

    def rivals(one, other):
        both, union = (one.mask & other.mask).sum(), (one.mask | other.mask).sum()
        smaller = min(one.mask.sum(), other.mask.sum())
        return (one.label == other.label or not per_class) and (
            both / max(union, 1) >= threshold or (nested is not None and both / max(smaller, 1) >= nested)
        )

    kept = {}  # a peak's number in the order, by peak
    for n, (peak, one) in enumerate(zip(peaks, order)):
        if peak not in kept and not any(rivals(order[k], one) for k in kept.values()):
            kept[peak] = n
    groups = [[order[k]] for k in kept.values()]
    for peak in dict.fromkeys(peaks):
        if peak not in kept:
            one = order[peaks.index(peak)]
            next(group for group in groups if rivals(group[0], one)).append(one)
    sums = [sum(one.prm.astype(float) for one in group) for group in groups]
    return [replace(group[0], prm=R / R.sum()) if group[1:] else group[0] for group, R in zip(groups, sums)]


# ---- WISE


def class_loss(scores, labels):
    """Cross entropy of sigmoids."""
    towards = np.where(labels == 1, scores, -scores).astype(float)
    return -log_expit(towards).mean()


def seed_map(peaks, prms, size=None):
    """Class + 1 where each map is largest; the last that writes stays."""
    h, w = prms.shape[1:]
    H, W = size or (h, w)
    seeds = np.zeros((H, W), int)
    for (label, _, _), at in zip(peaks[prms.any((1, 2))], prms[prms.any((1, 2))].reshape(-1, h * w).argmax(1)):
        seeds[int((at // w + 0.5) * H / h), int((at % w + 0.5) * W / w)] = label + 1
    return seeds


def assign(masks, objectness, seeds):
    """The best of the masks that hold a seed, and the shares of them all."""
    found = []
    for g, (row, column, label) in enumerate(seeds):
        holds = np.flatnonzero(masks[:, row, column])
        if holds.size:
            o = objectness[holds].astype(float)
            law = np.zeros(len(masks))
            law[holds] = o / o.sum() if o.sum() else 1 / holds.size
            k = max(holds, key=lambda k: (objectness[k], -k))
            found.append((g, k, objectness[k], label, law))
    return found


def drawn(probabilities, u):
    """By the distribution's function, inverted."""
    k = np.searchsorted(np.cumsum(probabilities), u, side="right")
    return min(k, int(np.flatnonzero(probabilities).max()))


def refine(detections, masks, objectness, threshold):
    """The mask that overlaps most, of those that count; each mask itself where none does."""
    able = masks[objectness > threshold].reshape(-1, masks[0].size) if len(masks) else masks.reshape(0, 1)
    if not len(able):
        return detections
    flat = detections.reshape(-1, masks[0].size).astype(float)
    shared = flat @ able.T
    ious = shared / np.maximum(flat.sum(1)[:, None] + able.sum(1) - shared, 1)
    chosen = able[ious.argmax(1)].reshape(detections.shape)
    return np.where(ious.any(1)[:, None, None], chosen, detections)


# ---- The object that is compared


port = SimpleNamespace(
    peak_stimulation=SimpleNamespace(forward=stimulate, backward=stimulate_backward),
    peak_backprop=SimpleNamespace(
        conv2d=lambda P, U, W, signed, return_leak, **geometry: walk(P, U, convolution(U.shape, W, **geometry), signed),
        linear=lambda P, U, W, return_leak: walk(P, U, dense(U.shape, W)),
        avg_pool2d=lambda P, U, return_leak, **geometry: walk(P, U, pooling(U.shape, **geometry)),
        adaptive_avg_pool2d=lambda P, U, return_leak: walk(P, U, average(U.shape, bins(U.shape[1:], P.shape[1:]))),
        mean=lambda P, U, return_leak, axes=(1, 2): walk(P, U, averaging(U.shape, axes)),
        interpolate=lambda P, U, return_leak, **how: walk(P, U, interpolation(U.shape, size=P.shape[1:], **how)),
        max_pool2d=lambda P, U, **geometry: returned(P, PICKS["max_pool2d"](U, **geometry), U.shape),
        adaptive_max_pool2d=lambda P, U: returned(P, winners(U, bins(U.shape[1:], P.shape[1:])), U.shape),
        add=add,
        summation=summation,
        pad=pad,
        concatenate=concatenate,
        slice_axis=lambda P, shape, **which: returned(P, sliced(shape, **which), shape),
        multiply=multiply,
        reshape=lambda P, shape: returned(P, indices(shape), shape),
        expand=multiply,
        permute=permute,
        transpose=lambda P, axes: np.swapaxes(P, *axes),
        batch_norm=lambda P: P,
        normalization=lambda P: P,
        activation=lambda P: P,
    ),
    network=SimpleNamespace(forward=run_network, walk=walk_network),
    retrieval=SimpleNamespace(
        contour=contour,
        enlarged_response=enlarged_response,
        background=background,
        resize_nearest=resize_nearest,
        terms=terms,
        score=score,
        best_proposal=best_proposal,
        smoothed=smoothed,
        fit_terms=fit_terms,
        best_fit=best_fit,
        nms=nms,
    ),
    pseudo_labels=SimpleNamespace(
        class_loss=class_loss, seed_map=seed_map, assign=assign, drawn=drawn, refine=refine
    ),
)
