"""Eqs. 4-5, a layer kind at a time: the operators of a convolution, and a rule for every kind of layer.

A rule knows which inputs P goes to, what to keep of the forward pass, and how P goes back. `tracing.py` finds the rules
of a network and strings them along its graph; `windows.py` says where P is.

Through convolutions that follow each other P goes as G = P / U_hat: the U_hat that Eq. 4 multiplies by and the 1 / Z of
the layer below belong to the image, so they become one ratio map, U_hat / Z, that all peaks share.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from .windows import (
    Computed,
    Shared,
    SharedMaps,
    Span,
    Visits,
    empty,
    launched,
    padded,
    placed,
    product,
    rows,
    times,
    window,
    windows,
)  # fmt: skip

TINY = 1e-7  # of max(U_hat) * sum(W+_o): below it Z is rounding noise, and what came from above leaks
# How matrices are multiplied on the walk through a convolution: in full float32, or rounded to TF32 or bfloat16, with
# sums in float32. A device without TF32 takes full float32 for it.
PRECISIONS = ("ieee", "tf32", "bf16")
# A position's channels next to each other: CPUs want convolutions so, and tensor cores the rows of a matrix.
LAYOUT = torch.channels_last
TAPS = 25  # most positions of a max pooling's window that are added one after the other


# --------------------------------------------------------------------------------------------------- the operators


def _in_float32(values: Tensor) -> bool:
    """With AMX, oneDNN's strided bfloat16 convolutions give garbage (pytorch issue 169688): on the CPU that dtype is
    computed in float32 and rounded."""
    return values.dtype == torch.bfloat16 and values.device.type == "cpu"


def walked_ratio(
    U: Tensor, weight: Tensor, floor: Tensor, above: Tensor | None,
    stride: list[int], padding: list[int], dilation: list[int], groups: int, out: Tensor,
) -> Tensor:  # fmt: skip
    """Into out (N, C_out, p, q): above / Z of Eq. 5, Z = conv(U, weight) for non-negative U (N, C_in, i, j) and weight.

    U and out may be parts of larger maps. above like out, or None for 1: what P is multiplied by on its way from the
    layer above. The answer, bool like out, says where Z leaks: where it is not above floor (N, C_out) it is rounding
    noise, and what out holds there means nothing.
    """
    if _in_float32(U):
        wide, above = out.float(), above if above is None else above.float()
        leaks = walked_ratio(U.float(), weight.float(), floor, above, stride, padding, dilation, groups, wide)
        out.copy_(wide)
        return torch.empty_like(out, dtype=torch.bool).copy_(leaks)
    # Z must be exactly 0 where all its products are; cuDNN may pick Winograd or FFT algorithms, which round.
    with torch.backends.cudnn.flags(enabled=False):
        Z = F.conv2d(U, weight, None, stride, padding, dilation, groups)
    leaks = torch.le(Z, floor[:, :, None, None], out=torch.empty_like(out, dtype=torch.bool))
    if above is None:
        torch.reciprocal(Z, out=out)
    else:
        torch.div(above, Z, out=out)
    return leaks


walk_ratio = torch.library.custom_op("prm::walk_ratio", walked_ratio, mutates_args=["out"])


@walk_ratio.register_fake
def _(U, weight, floor, above, stride, padding, dilation, groups, out):
    return torch.empty_like(out, dtype=torch.bool)


def walked_conv2d(
    G: Tensor, image: Tensor, origin: Tensor, ratio: Tensor, turned: Tensor,
    stride: list[int], padding: list[int], dilation: list[int], groups: int, to: Tensor, size: list[int],
    precision: str = "ieee",
) -> Tensor:  # fmt: skip
    """Eq. 4 without its U_hat, for K peaks: convT(G * ratio, W+) on given windows of the map below.

    G (K, C_out, h, w), windows that begin at origin (K, 2) of the map above; ratio (N, C_out, p, q) of image[k];
    turned (C_in, C_out / groups, i, j): W+ as `turn` gives it. The answer (K, C_in, *size) holds windows that begin
    at `to` (K, 2) of the map below. image, origin and to: int64, on the host or on the device. With ratio = 1 / Z and
    G = P, the answer times U_hat is P(U).

    precision: of the matrix products, see PRECISIONS.
    """
    if _in_float32(G):
        maps = (G.float(), image, origin, ratio.float(), turned.float())
        return walked_conv2d(*maps, stride, padding, dilation, groups, to, size).to(G.dtype)
    where = (Shared(ratio),), image.cpu().numpy(), origin.cpu().numpy()
    # Where the answer begins in all that a window reaches.
    offset = to.cpu().numpy() - (where[2] * np.array(stride) - np.array(padding))
    with _multiplied_in(precision):
        if stride == [1, 1]:
            # On a CPU the plain convolution is the faster of the two, and the only fast one for small windows.
            margin = np.array([d * (k - 1) for d, k in zip(dilation, turned.shape[2:])])
            q = times(G, *where, offset - margin, tuple((margin + size).tolist()))
            q, turned = _halved(precision, q, turned)
            return F.conv2d(q, turned, None, 1, 0, dilation, groups).to(G.dtype, memory_format=LAYOUT)
        q, turned = _halved(precision, times(G, *where), turned)
        if turned.shape[2:] == (1, 1):
            q = F.conv2d(q, turned, None, 1, 0, 1, groups).to(G.dtype, memory_format=LAYOUT)
            return _spread(q, stride, offset, tuple(size))
        if groups == 1 and stride[0] == stride[1] and len(turned) * stride[0] ** 2 <= 16 and dilation == [1, 1]:
            reached = _by_phases(q, turned, stride[0])
        else:
            reached = F.conv_transpose2d(q, turn(turned, groups), None, stride, 0, 0, groups, dilation)
    return placed(reached, offset, tuple(size)).to(G.dtype, memory_format=LAYOUT)


walk_conv2d = torch.library.custom_op("prm::walk_conv2d", walked_conv2d, mutates_args=())


@walk_conv2d.register_fake
def _(G, image, origin, ratio, turned, stride, padding, dilation, groups, to, size, precision="ieee"):
    return torch.empty((G.shape[0], turned.shape[0], *size), dtype=G.dtype, device=G.device, memory_format=LAYOUT)


def _multiplied_in(precision: str):
    """1 / Z is exact to float32: with TF32, which cuDNN may take unasked, transitions out of a position do not sum to
    1."""
    cudnn = torch.backends.cudnn
    return cudnn.flags(
        cudnn.enabled, cudnn.benchmark, deterministic=cudnn.deterministic, allow_tf32=precision == "tf32"
    )


def _halved(precision: str, *matrices: Tensor) -> tuple[Tensor, ...]:
    """Matrices rounded to bfloat16 if so they are multiplied; held in float32 on a CPU, see `_in_float32`."""
    if precision != "bf16":
        return matrices
    halved = [m.to(torch.bfloat16) for m in matrices]
    return tuple(m.float() if _in_float32(m) else m for m in halved)


def walked_max_pool(
    values: Tensor, image: Tensor, origin: Tensor, indices: Tensor, columns: int,
    kernel: list[int], stride: list[int], padding: list[int], dilation: list[int], to: Tensor, size: list[int],
) -> Tensor:  # fmt: skip
    """P through a max pooling: values (K, C, h, w), windows that begin at origin (K, 2) of the pooled map, go to their
    argmax, indices (N, C, p, q) int64 of image[k]: places, in row-major order, of a map below that has so many columns.

    The answer (K, C, *size) holds windows that begin at `to` (K, 2) of the map below. image, origin and to: int64, on
    the host or on the device.
    """
    K, C, h, w = values.shape
    image, origin, to = (n.to(values.device)[..., None, None, None] for n in (image, origin, to))
    row, col = (origin[:, i] + torch.arange(n, device=values.device).reshape(s) for i, n, s in
                ((0, h, (-1, 1)), (1, w, (1, -1))))  # fmt: skip
    channel = torch.arange(C, device=values.device)[:, None, None]
    place = indices[image, channel, row, col]
    row, col = place // columns - to[:, 0], place % columns - to[:, 1]
    inside = (row >= 0) & (row < size[0]) & (col >= 0) & (col < size[1])
    where = torch.where(inside, row * size[1] + col, 0).flatten(2)
    below = values.new_zeros(K, C, size[0] * size[1])
    below.scatter_add_(2, where, torch.where(inside, values, 0).flatten(2))
    return below.unflatten(2, tuple(size)).contiguous(memory_format=LAYOUT)


walk_max_pool = torch.library.custom_op("prm::walk_max_pool", walked_max_pool, mutates_args=())


@walk_max_pool.register_fake
def _(values, image, origin, indices, columns, kernel, stride, padding, dilation, to, size):
    shape = (*values.shape[:2], *size)
    return torch.empty(shape, dtype=values.dtype, device=values.device, memory_format=LAYOUT)


def turn(weight: Tensor, groups: int) -> Tensor:
    """A kernel (C_out, C_in / groups, i, j) turned round, (C_in, C_out / groups, i, j), and the other way.

    Where the stride is 1, convT with the one is conv with the other.
    """
    split = weight.flip(2, 3).unflatten(0, (groups, -1)).transpose(1, 2)
    return split.flatten(0, 1).contiguous(memory_format=LAYOUT)


def _spread(values: Tensor, stride: list[int], offset: np.ndarray, size: tuple[int, int]) -> Tensor:
    """Windows of `size` whose row stride * i - offset holds row i of values (K, C, h, w), columns alike; else 0."""
    out = empty((*values.shape[:2], *size), values).zero_()
    for k, start in enumerate(offset.tolist()):
        first = [max(-(-o // s), 0) for o, s in zip(start, stride)]
        last = [min(-(-(o + length) // s), have) for o, s, length, have in zip(start, stride, size, values.shape[2:])]
        some = values[(k, slice(None), *(slice(f, max(f, n)) for f, n in zip(first, last)))]
        begin = [f * s - o for f, s, o in zip(first, stride, start)]
        out[k, :, begin[0] :: stride[0], begin[1] :: stride[1]][:, : some.shape[1], : some.shape[2]] = some
    return out


def _by_phases(q: Tensor, turned: Tensor, stride: int) -> Tensor:
    """convT(q, W+) with a stride as one convolution without: each phase of the rows and columns of the answer is a
    channel of its own. Faster where the answer has few channels, as the image has.

    Row s j + f of the answer is the sum over t of q's row j - t times the kernel's row f + s t.
    """
    taps = [-(-k // stride) for k in turned.shape[2:]]
    short = [t * stride - k for t, k in zip(taps, turned.shape[2:])]
    into, out = turned.shape[:2]
    # Turned round, the rows that are missing to full taps come first, and phases run from last to first.
    kernel = F.pad(turned, (short[1], 0, short[0], 0)).reshape(into, out, taps[0], stride, taps[1], stride)
    kernel = kernel.flip(3, 5).permute(0, 3, 5, 1, 2, 4).reshape(into * stride * stride, out, *taps)
    phases = F.conv2d(q, kernel.contiguous(memory_format=LAYOUT), padding=[t - 1 for t in taps])
    return F.pixel_shuffle(phases, stride)


def reach(visits: Visits, stride, padding, dilation, kernel, shape) -> tuple[np.ndarray, np.ndarray]:
    """First and one past last row and column that visits read through a sliding window, of a map of `shape` (H, W)."""
    stride, padding, shape = np.array(stride), np.array(padding), np.array(shape)
    first = visits.first * stride - padding
    last = (visits.last - 1) * stride - padding + np.array(dilation) * (np.array(kernel) - 1) + 1
    # Where only padding is read nothing arrives, but a window is never empty.
    first = first.clip(0, shape - 1)
    return first, np.maximum(last.clip(max=shape), first + 1)


# ------------------------------------------------------------------------------------------------------- the rules


class Rule:
    """How P passes one call. `parents` are the inputs that P goes to; the base class passes it on unchanged.

    `executes`: whether the forward pass runs the model's own code; the other rules compute from their parents alone.
    `local`: whether `back` takes windows; the other rules are handed whole maps.
    `factored`: whether it takes visits with shared factors; the other rules are handed P itself.
    `grows`: whether the windows below reach further than those above, so that it pays to truncate them before.
    """

    executes = True
    local = True
    factored = True
    grows = False

    def __init__(self, *parents: fx.Node):
        self.parents = parents

    def forward(self, execute: Callable[[], Any], *U: Tensor) -> tuple[Any, State]:
        """The call's value and what the walk back needs, from the parents' values U; `execute` is the model's code."""
        return execute(), State()

    def back(self, visits: Visits, state: State) -> tuple[list[Visits], Tensor | None]:
        """Visits of each parent, and the mass (K,) that leaked, or None if this layer passes everything on."""
        return [visits], None


@dataclass
class State:
    """What a rule kept: tensors whose first axis is the image, and shapes; `lazy` is filled when first walked."""

    values: tuple[Tensor, ...] = ()
    shape: tuple[int, ...] = ()
    lazy: dict = field(default_factory=dict)
    out: tuple[int, ...] = ()
    """Shape of the call's value, without the image axis."""
    value: Tensor | None = None
    """The call's value, where P may come with it as a factor."""
    maps: SharedMaps | None = None
    """The shared maps of this forward pass."""


class Convolution(Rule):
    """Eqs. 4-5. A zero pad before it and a batch norm behind it are already merged in (`pad`, `weight`, `bias`)."""

    executes = False
    precision = "ieee"

    def __init__(self, source, weight, bias, stride, padding, dilation, groups, pad, signed):
        super().__init__(source)
        self.weight, self.bias, self.signed = weight, bias, signed
        self.stride, self.dilation, self.groups = stride, dilation, groups
        left, right, top, bottom = (a + b for a, b in zip(pad, _four_sided(padding, weight, dilation)))
        self.before, self.after = [top, left], [bottom, right]
        self.grows = tuple(weight.shape[2:]) != (1, 1)
        self._take_weights(weight)

    def _take_weights(self, weight: Tensor) -> None:
        """W+ both ways round, and W- where negative inputs have walks of their own."""
        self.positive = weight.clamp(min=0).contiguous(memory_format=LAYOUT)
        self.negative = weight.clamp(max=0) if self.signed else None
        self.turned = turn(self.positive, self.groups)
        self.most = self.positive.sum(dim=(1, 2, 3))

    def forward(self, execute, U):
        even = self.before == self.after
        x = U if even else padded(U, self.before, self.after)
        geometry = [self.stride, self.before if even else 0, self.dilation, self.groups]
        if _in_float32(U):
            bias = None if self.bias is None else self.bias.float()
            return F.conv2d(x.float(), self.weight.float(), bias, *geometry).to(U.dtype), State((U,))
        return F.conv2d(x, self.weight, self.bias, *geometry), State((U,))

    def back(self, visits, state):
        (U,), maps, factors = state.values, state.maps, visits.factors
        signed = self.signed and any(maps.least(U))
        if factors not in state.lazy:
            fill = partial(self._signed_ratio if signed else self._ratio, U, maps, factors)
            state.lazy[factors] = Ratio((len(U), *state.out), U, maps, fill)
        ratio = state.lazy[factors]
        ratio.touch(visits)
        first, last = reach(visits, self.stride, self.before, self.dilation, self.weight.shape[2:], U.shape[2:])
        to, size = windows(first, last, U.shape[2:])
        image, origin, target = (torch.from_numpy(a) for a in (visits.image, visits.origin, to))
        geometry = [self.stride, self.before, self.dilation, self.groups]

        def walk(turned: Tensor, U: Shared) -> Visits:
            G = torch.ops.prm.walk_conv2d(
                visits.values, image, origin, ratio.tensor, turned, *geometry, target, list(size), self.precision
            )
            return Visits(G, first, last, to, visits.image, (U,), fresh=True)

        leaked = ratio.leaked(visits)
        if not signed:
            return [walk(self.turned, maps.hat(U))], leaked
        plus, minus = walk(self.turned, maps.positive(U)), walk(turn(self.negative, self.groups), maps.negative(U))
        return [plus.plus(minus, U.shape[1:])], leaked

    def _ratio(
        self, U: Tensor, maps: SharedMaps, factors: tuple[Shared, ...], some: slice, span: Span, out: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Into out, a region (n, C, h, w) of some images: the factors over Z; where Z leaks, and the factors."""
        above = product(factors, some, span)
        values, padding = self._below(maps.hat(U), some, span)
        floor = TINY * maps.most(U)[some, None] * self.most
        geometry = [self.stride, padding, self.dilation, self.groups]
        return torch.ops.prm.walk_ratio(values, self.positive, floor, above, *geometry, out), above

    def _signed_ratio(self, U, maps, factors, some, span, out):
        """As `_ratio`, with Z = conv(U+, W+) + conv(U-, W-)."""
        above = product(factors, some, span)
        parts = [(maps.positive(U), self.positive), (maps.negative(U), self.negative)]
        wide = torch.float32 if _in_float32(U) else U.dtype
        Z = floor = 0
        # As for the operator above.
        with torch.backends.cudnn.flags(enabled=False):
            for part, weight in parts:
                values, padding = self._below(part, some, span)
                Z = Z + F.conv2d(
                    values.to(wide), weight.to(wide), None, self.stride, padding, self.dilation, self.groups
                )
                most = part.region(some, (slice(None), slice(None))).abs().amax((1, 2, 3))
                floor = floor + TINY * most[:, None] * weight.abs().sum((1, 2, 3))
        leaks = Z <= floor[:, :, None, None]
        out.copy_((1 if above is None else above) / Z)
        return leaks, above

    def _below(self, shared: Shared, some: slice, span: Span) -> tuple[Tensor, list[int]]:
        """What a region of the output is computed from, and the padding that it still needs."""
        spans, before, after = [], [], []
        reads = [d * (k - 1) + 1 for d, k in zip(self.dilation, self.weight.shape[2:])]
        for s, stride, pad, read, have in zip(span, self.stride, self.before, reads, shared.tensor.shape[2:]):
            begin, end = s.start * stride - pad, (s.stop - 1) * stride - pad + read
            first, last = min(max(begin, 0), have), min(max(end, 0), have)
            spans.append(slice(first, last))
            before.append(min(max(-begin, 0), end - begin))
            after.append(end - begin - before[-1] - (last - first))
        values = shared.region(some, tuple(spans))
        return (values, before) if before == after else (padded(values, before, after), [0, 0])


class Ratio(Computed):
    """The map that P, or G, is multiplied by on its way into a convolution; what meets Z = 0 there is its `leaks`."""

    def __init__(self, shape, like, maps, fill: Callable[[slice, Span, Tensor], tuple[Tensor, Tensor | None]]):
        super().__init__(shape, like, maps, fill)
        self.leaks = None

    def _compute(self, some, span, out):
        leaks, above = self._fill(some, span, out)
        if bool(leaks.any()):
            out.masked_fill_(leaks, 0)
            if self.leaks is None:
                self.leaks = torch.zeros_like(self.tensor)
            self.leaks[(some, slice(None), *span)] = leaks if above is None else above * leaks

    def leaked(self, visits: Visits) -> Tensor | None:
        """Mass (K,) of P where Z leaks; None where it leaks nowhere, which is the usual case."""
        if self.leaks is None:
            return None
        return _mass((times(visits.values, (Shared(self.leaks),), visits.image, visits.origin),))


class AveragePooling(Convolution):
    """A convolution with equal weights, each channel apart. By what the mean is divided makes no difference to P."""

    def __init__(self, source, pool: Callable[[Tensor], Tensor], kernel, stride, padding, pad):
        super().__init__(source, torch.ones(1, 1, *kernel), None, stride, padding, [1, 1], 1, pad, signed=False)
        self.pool = pool

    def forward(self, execute, U):
        self.groups = U.shape[1]
        self._take_weights(U.new_ones((self.groups, *self.weight.shape[1:])))
        return self.pool(U), State((U,))


class FixedWeights(Rule):
    """Adaptive average pooling, interpolation, mean over (H, W): fixed weights >= 0, given as the function `apply`
    (U, (rows, columns) of V) to V. `weights`: from U, the sum of each output's weights, of V's shape; None: 1."""

    factored = False

    def __init__(self, source, apply: Callable[[Tensor, tuple[int, ...]], Tensor], weights=None):
        super().__init__(source)
        self.apply, self.weights = apply, weights

    def forward(self, execute, U):
        return execute(), State((U,))

    def back(self, visits, state):
        (U,) = state.values
        apply = lambda U: self.apply(U, state.out[1:])  # noqa: E731
        if not state.lazy:
            U_hat = _shifted(state)
            Z = apply(U_hat)
            most = U_hat.flatten(1).amax(dim=1).reshape(-1, *[1] * (Z.dim() - 1))
            floor = TINY * most if self.weights is None else TINY * most * self.weights(U_hat)
            state.lazy["inverse"] = torch.where(Z > floor, 1 / Z, 0)
            if U.dim() == 4 and len(state.out) == 3:
                state.lazy["axes"] = _axes(apply, U)
        inverse = Shared(state.lazy["inverse"])
        leaked = _mass((times(visits.values, (Shared(inverse.tensor == 0),), visits.image, visits.origin),))
        q = visits.with_(times(visits.values, (inverse,), visits.image, visits.origin))
        if "axes" in state.lazy:
            return [_along_axes(q, state.lazy["axes"], state.maps.hat(U))], leaked
        below = _transposed(apply, (len(q.values), *U.shape[1:]), q.on_whole(state.out).values)
        return [Visits.whole(below * rows(_shifted(state), visits.image), visits.image)], leaked


def _axes(apply: Callable[[Tensor], Tensor], U: Tensor) -> tuple[Tensor, Tensor]:
    """The weights of a linear function that treats rows and columns apart, as a matrix (out, in) for each: V = R U C^T.

    Found by asking: an image of one row of ones gives that row's column of R, times what a row of C sums to.
    """
    one = U.new_ones(1, 1, *U.shape[2:]).to(torch.promote_types(U.dtype, torch.float32))
    sums, found = apply(one)[0, 0], []
    # Where most is summed: other places may see padding alone.
    at = divmod(int(sums.argmax()), sums.shape[1])
    for axis in (2, 3):
        answers = []
        for i in range(U.shape[axis]):
            line = torch.zeros_like(one)
            line.narrow(axis, i, 1).fill_(1)
            answers.append(apply(line)[0, 0].select(3 - axis, at[3 - axis]))
        found.append(torch.stack(answers, dim=1))
    return found[0] / sums[at], found[1]


def _along_axes(q: Visits, axes: tuple[Tensor, Tensor], U: Shared) -> Visits:
    """R^T q C for each peak, on the windows of the map below that q's windows have weights on."""
    first, last, (K, C) = np.empty_like(q.first), np.empty_like(q.last), q.values.shape[:2]
    for axis, weights in enumerate(axes):
        for k in range(K):
            used = weights[q.first[k, axis] : q.last[k, axis]].any(dim=0).nonzero()
            first[k, axis], last[k, axis] = (int(used[0]), int(used[-1]) + 1) if len(used) else (0, 1)
    to, size = windows(first, last, U.tensor.shape[2:])
    below = empty((K, C, *size), q.values)
    for k in range(K):
        R, W = (weights[(s, t)] for weights, s, t in zip(axes, q.span(k), window(to[k], size)))
        below[k] = R.T @ q.values[k].to(R.dtype) @ W
    return Visits(below, first, last, to, q.image, (U,), fresh=True)


class Linear(Rule):
    """A linear layer over the last axis: Eqs. 4-5 without a neighbourhood."""

    local = factored = False

    def __init__(self, source, weight):
        super().__init__(source)
        self.positive = weight.clamp(min=0)

    def forward(self, execute, U):
        return execute(), State((U,))

    def back(self, visits, state):
        if not state.lazy:
            U_hat = _shifted(state)
            Z = U_hat @ self.positive.T
            floor = TINY * U_hat.flatten(1).amax(dim=1).reshape(-1, *[1] * (Z.dim() - 1)) * self.positive.sum(dim=1)
            state.lazy = {"inverse": torch.where(floor < Z, 1 / Z, 0), "U_hat": U_hat}
        inverse, U_hat = (rows(t, visits.image) for t in state.lazy.values())
        below = (visits.values * inverse) @ self.positive * U_hat
        return [Visits.whole(below, visits.image)], _mass((visits.values * (inverse == 0),))


class Selection(Rule):
    """Slice, chunk, split, permute: every output element is one input element, so P follows it and is 0 elsewhere."""

    local = factored = False

    def __init__(self, source, apply: Callable[[Tensor], Tensor]):
        super().__init__(source)
        self.apply = apply

    def forward(self, execute, U):
        out = execute()
        if out.shape[0] != U.shape[0]:
            raise NotImplementedError(
                f"an operator mixes the images of a batch: {tuple(U.shape)} to {tuple(out.shape)}"
            )
        return out, State(shape=tuple(U.shape[1:]))

    def back(self, visits, state):
        below = _transposed(self.apply, (len(visits.values), *state.shape), visits.values)
        return [Visits.whole(below, visits.image)], None


class Reshape(Selection):
    """Flatten, reshape, squeeze, unsqueeze: the elements keep their order within an image."""

    def __init__(self, source):
        super().__init__(source, lambda t: t)

    def back(self, visits, state):
        return [Visits.whole(visits.values.reshape(len(visits.values), *state.shape), visits.image)], None


class MaxPool(Rule):
    """P goes to the window's argmax, the first maximum in row-major order; windows that share it add up.

    `geometry`: (kernel, stride, padding, dilation), two numbers each; None for adaptive pooling.
    """

    executes = False

    def __init__(self, source, pool: Callable[[Tensor], tuple[Tensor, Tensor]], geometry=None):
        super().__init__(source)
        self.pool, self.geometry = pool, geometry
        self.local = self.grows = geometry is not None and geometry[0][0] * geometry[0][1] <= TAPS

    def forward(self, execute, U):
        out, indices = self.pool(U)
        return out, State((U, indices), value=out)

    def back(self, visits, state):
        (U, indices), maps = state.values, state.maps
        # The argmax holds the pooled value, so a factor that is the pooled map becomes the map itself.
        visits = _handed_on(visits, maps.plain(state.value), maps.plain(U))
        if not self.local:
            visits = visits.dense()
            below = visits.values.new_zeros((len(visits.values), U.shape[1], U.shape[2] * U.shape[3]))
            where = rows(indices, visits.image).expand_as(visits.values).flatten(2)
            below.scatter_add_(2, where, visits.values.flatten(2))
            return [Visits.whole(below.unflatten(2, tuple(U.shape[2:])), visits.image)], None
        kernel, *sliding = self.geometry
        first, last = reach(visits, *sliding, kernel, U.shape[2:])
        to, size = windows(first, last, U.shape[2:])
        if launched(visits.values):
            image, origin, target = (torch.from_numpy(a) for a in (visits.image, visits.origin, to))
            geometry = (U.shape[3], *map(list, self.geometry))
            below = torch.ops.prm.walk_max_pool(visits.values, image, origin, indices, *geometry, target, list(size))
        else:
            below = self._by_taps(visits, state, to, size)
        return [Visits(below, first, last, to, visits.image, visits.factors, fresh=True)], None

    def _by_taps(self, visits: Visits, state: State, to: np.ndarray, size: tuple[int, int]) -> Tensor:
        """Each position of the pooling's window in turn: to it goes what has its argmax there."""
        (U, indices), (kernel, stride, padding, dilation) = state.values, self.geometry
        K, C, h, w = visits.values.shape
        spans = [(n - 1) * s + d * (k - 1) + 1 for n, s, d, k in zip((h, w), stride, dilation, kernel)]
        below = empty((K, C, *spans), visits.values).zero_()
        if "place" not in state.lazy:
            wide = U.to(torch.promote_types(U.dtype, torch.float32))  # bfloat16 holds no place beyond 256
            state.lazy["place"] = Computed(indices.shape, wide, state.maps, partial(self._places, indices, U.shape))
        for tap in np.ndindex(*kernel):
            if tap not in state.lazy:
                place = float(dilation[0] * tap[0] * U.shape[3] + dilation[1] * tap[1])
                meets = partial(self._meets, state.lazy["place"], place)
                state.lazy[tap] = Computed(indices.shape, U, state.maps, meets)
            # Rows and columns of the map below that the tap visits, one for each of the windows'.
            begins, lengths = (d * t for d, t in zip(dilation, tap)), ((n - 1) * s + 1 for n, s in zip((h, w), stride))
            rows_, cols = (slice(b, b + length, s) for b, length, s in zip(begins, lengths, stride))
            for k, n in enumerate(visits.image.tolist()):
                meets = state.lazy[tap].region(slice(n, n + 1), visits.span(k))
                below[k : k + 1, :, rows_, cols].addcmul_(visits.values[k : k + 1], meets)
        begin = visits.origin * np.array(stride) - np.array(padding)
        return placed(below, to - begin, size)

    def _places(self, indices: Tensor, shape, some: slice, span: Span, out: Tensor) -> None:
        """Into out: how far after its window's first position each argmax of a region lies, in row-major order."""
        _, stride, padding, _ = self.geometry
        row, col = (
            torch.arange(s.start, s.stop, device=indices.device) * stride[i] - padding[i] for i, s in enumerate(span)
        )
        out.copy_(indices[(some, slice(None), *span)] - (row[:, None] * shape[3] + col))

    @staticmethod
    def _meets(places: Computed, place: float, some: slice, span: Span, out: Tensor) -> None:
        """Into out: 1 where a region's argmax lies at this place of its window, else 0."""
        out.copy_(places.region(some, span) == place)


class Addition(Rule):
    """Residual addition: P splits in proportion to the summands' positive parts, equally where none is positive."""

    def __init__(self, a, b, alpha=1):
        super().__init__(a, b)
        self.alpha = alpha

    def forward(self, execute, a, b):
        out = execute()
        return out, State((a, b if self.alpha == 1 else self.alpha * b), value=out)

    def back(self, visits, state):
        (a, b), maps = state.values, state.maps
        # If P comes with the sum as a factor, it is 0 wherever that is not positive, and so where neither summand is.
        if a.dim() == 4 and a.shape == b.shape and maps.plain(state.value) in visits.factors:
            plus, factors = (maps.positive(a), maps.positive(b)), visits.factors
            if factors not in state.lazy:
                state.lazy[factors] = Computed(a.shape, a, maps, partial(self._share, factors, plus))
            return [visits.with_(visits.values, (state.lazy[factors], x)) for x in plus], None
        visits = visits.dense()
        if "share" not in state.lazy:
            a, b = (v.clamp(min=0) for v in state.values)
            total = a + b
            state.lazy["share"] = Shared(torch.where(total > 0, a / total, 0.5))
        to_a = times(visits.values, (state.lazy["share"],), visits.image, visits.origin)
        # The rest, not a second product, so that nothing is lost to rounding.
        shares = [to_a, visits.values - to_a]
        shapes = [tuple(U.shape[1:]) for U in state.values]
        return [_summed_to(visits.with_(share), state, shape) for share, shape in zip(shares, shapes)], None

    @staticmethod
    def _share(factors, plus, some: slice, span: Span, out: Tensor) -> None:
        """Into out: the factors' product over the sum of the positive parts; 0 where both are 0."""
        total = plus[0].region(some, span) + plus[1].region(some, span)
        torch.div(product(factors, some, span), total, out=out).masked_fill_(total == 0, 0)


class Concatenation(Rule):
    """Each input takes its slice."""

    def __init__(self, sources, dim):
        super().__init__(*sources)
        self.dim, self.local = dim, dim == 1

    def forward(self, execute, *U):
        out = execute()
        if self.dim % out.dim() == 0:
            raise NotImplementedError("a concatenation mixes the images of a batch")
        return out, State(U, shape=tuple(u.shape[self.dim] for u in U), value=out)

    def back(self, visits, state):
        whole = state.maps.plain(state.value)
        kept = self.dim == 1 and whole in visits.factors
        visits = _handed_on(visits, whole, whole) if kept else visits.dense()
        parts = visits.values.split(state.shape, dim=self.dim)
        if self.dim != 1:
            return [Visits.whole(part, visits.image) for part in parts], None
        return [visits.with_(p, (state.maps.plain(U),) if kept else ()) for p, U in zip(parts, state.values)], None


class Scaling(Rule):
    """A factor, a gate, an added constant: P goes to the one operand, summed over the axes that it was repeated on."""

    def forward(self, execute, U):
        return execute(), State(shape=tuple(U.shape[1:]))

    def back(self, visits, state):
        return [_summed_to(visits, state, state.shape)], None


class Expansion(Scaling):
    """Copies of a tensor along axes of length 1: what they hold adds up."""

    local = False


class Norm(Rule):
    """Layer, group, instance and local response norm pass P on unchanged, as batch norm that is not folded.

    With the statistics held constant such a norm is linear, with the weights gamma_c / sigma (delta_cd - 1/n), of which
    only the diagonal is positive where gamma_c > 0; elsewhere it is an approximation. `axes`: how many of the last axes
    are normalised together.
    """

    def __init__(self, source, axes: int = 1):
        super().__init__(source)
        self.axes = axes

    def forward(self, execute, U):
        if self.axes >= U.dim():
            raise NotImplementedError("a layer norm mixes the images of a batch")
        return execute(), State()


class FoldedNorm(Rule):
    """A batch norm that its convolution has already applied."""

    executes = False

    def forward(self, execute, U):
        return U, State()


class Registered(Rule):
    """A rule of the user's, for a module at `path`; checked, since whatever it returns would look like an answer."""

    local = factored = False

    def __init__(self, sources, function: Callable, module: nn.Module, path: str):
        super().__init__(*sources)
        self.function, self.module, self.path = function, module, path

    def _wrong(self, what: str) -> str:
        return f"the rule registered for {type(self.module).__name__} at {self.path!r} {what}"

    def forward(self, execute, *U):
        before = [u._version for u in U if not u.is_inference()]
        out = execute()
        if before != [u._version for u in U if not u.is_inference()]:
            raise ValueError(self._wrong("cannot be used: the module overwrites its input"))
        if not isinstance(out, Tensor) or out.shape[:1] != U[0].shape[:1]:
            raise ValueError(self._wrong("cannot be used: the module must return one tensor with a row for each image"))
        return out, State(U)

    def back(self, visits, state):
        P = visits.values
        U = [rows(u, visits.image).expand(len(P), *u.shape[1:]) for u in state.values]
        entered = _mass((P,))
        below = self.function(self.module, P, *U)
        below = tuple(below) if isinstance(below, (tuple, list)) else (below,)
        if len(below) != len(U):
            raise ValueError(self._wrong(f"must return {len(U)} tensors, one for each input, not {len(below)}"))
        for part, u in zip(below, U):
            if not isinstance(part, Tensor) or part.shape != u.shape:
                found = tuple(part.shape) if isinstance(part, Tensor) else type(part).__name__
                wanted = tuple(u.shape)
                raise ValueError(self._wrong(f"must return a tensor of its input's shape {wanted}, not {found}"))
            if not bool((part >= 0).all()):
                raise ValueError(self._wrong("returned visits that are negative or not a number"))
        left = _mass(below)
        rounding = torch.finfo(P.dtype).eps ** 0.5
        if bool((left > entered * (1 + rounding)).any()):
            k = int((left - entered).argmax())
            raise ValueError(self._wrong(f"made mass grow, from {float(entered[k]):.6g} to {float(left[k]):.6g}"))
        leaked = (entered - left).clamp(min=0)
        return [Visits.whole(part.to(P.dtype), visits.image) for part in below], leaked


REGISTERED: dict[type[nn.Module], Callable] = {}


def register_rule(*types: type[nn.Module]) -> Callable[[Callable], Callable]:
    """Decorator: the function below it is the rule of these types of module and of their subclasses.

    It is called as f(module, P, *U) and returns P(U):

    module : the module, in evaluation mode
    P : (K, ...) visits of the module's output, one row a peak; float32, float64 or bfloat16, the dtype of U
    U : values of the module's inputs that depend on the image, (K, ...) each, in the order of its arguments
    P(U) : a tensor of U's shape, or a tuple with one for each of several inputs; >= 0, and together no more than P.
        What of P they do not hold is counted as leaked. Linear in P, or the `bound` of truncated PRMs does not hold.

    The module is then run as it is and not looked into. Register before PeakBackprop and fully_convolutional see the
    model. A registered rule comes before a built-in one, and a second one for the same type replaces the first. Raises
    TypeError for what is no type of module. During the walk a ValueError names the module whose rule returns something
    of another shape, negative visits, or more mass than came in.
    """
    for t in types:
        if not (isinstance(t, type) and issubclass(t, nn.Module)):
            raise TypeError(f"register_rule takes types of nn.Module, not {t!r}")
    if not types:
        raise TypeError("register_rule needs the type of module that the rule is for")

    def keep(function: Callable) -> Callable:
        REGISTERED.update(dict.fromkeys(types, function))
        return function

    return keep


def registered(module: nn.Module) -> Callable | None:
    """The rule registered for the module's type or the nearest of its base types, or None."""
    return next((REGISTERED[t] for t in type(module).__mro__ if t in REGISTERED), None)


def _mass(parts) -> Tensor:
    """Sum (K,) of each peak's visits, float64."""
    return sum(P.flatten(1).sum(dim=1, dtype=torch.float64) for P in parts)


def _summed_to(visits: Visits, state: State, shape: tuple[int, ...]) -> Visits:
    """Visits of an operand of `shape` that was repeated to the output's shape; windows only where it was not."""
    if shape == state.out:
        return visits
    whole = visits.on_whole(state.out)
    return Visits.whole(whole.values.sum_to_size(len(whole.values), *shape), whole.image)


def _handed_on(visits: Visits, out: Shared, source: Shared) -> Visits:
    """The visits with the factor `out` become `source`, the other factors multiplied in; P itself if they lack it."""
    if out not in visits.factors:
        return visits.dense()
    others = tuple(f for f in visits.factors if f is not out)
    return visits.with_(visits.times(others), (source,), visits.fresh or bool(others))


def _shifted(state: State) -> Tensor:
    """U_hat of the layer's input, all images."""
    (U,) = state.values
    least = state.maps.least(U)
    return U - U.new_tensor(least).reshape(-1, *[1] * (U.dim() - 1)) if any(least) else U


def _transposed(linear: Callable[[Tensor], Tensor], shape: tuple[int, ...], y: Tensor) -> Tensor:
    """The transpose of a linear function of a tensor of `shape`, applied to y."""
    with torch.enable_grad():
        x = y.new_zeros(shape, requires_grad=True)
        return torch.autograd.grad(linear(x), x, y)[0]


def _four_sided(padding, weight: Tensor, dilation) -> tuple[int, int, int, int]:
    """(left, right, top, bottom) of a convolution's padding argument; "same" puts the odd one right and below."""
    if padding == "valid":
        return 0, 0, 0, 0
    if padding == "same":
        total = [d * (k - 1) for d, k in zip(dilation, weight.shape[-2:])]
        (top, left) = (t // 2 for t in total)
        return left, total[1] - left, top, total[0] - top
    (h, w) = padding
    return w, w, h, h
