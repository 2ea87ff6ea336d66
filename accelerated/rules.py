"""Eqs. 4-5, a layer kind at a time: the operators of a convolution, and a rule for every kind of layer.

A rule knows which inputs P goes to, what to keep of the forward pass, and how P goes back. `tracing.py` finds the rules
of a network and strings them along its graph.

P is zero outside a peak's receptive field, so each peak carries only the window of every map that its field reaches:
`Visits`. Windows of one layer have one size; where that reaches the map's own, they become the whole map.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

TINY = 1e-7  # of max(U_hat) * sum(W+_o): below it Z is rounding noise, and what came from above leaks


# --------------------------------------------------------------------------------------------------------- windows


@dataclass
class Visits:
    """P of K peaks on windows of one layer's map: `P` (K, C, h, w), zero wherever a window reaches over the border.

    `origin` (K, 2) int64 on the host: row and column of each window's first element. `image` (K,): each peak's image.
    Tensors without rows and columns, (K, F), have no window: their `origin` is zero.
    """

    P: Tensor
    origin: Tensor
    image: Tensor

    def with_(self, P: Tensor, origin: Tensor | None = None) -> Visits:
        return Visits(P, self.origin if origin is None else origin, self.image)

    def of(self, maps: Tensor) -> Tensor:
        """Each peak's window of per-image maps (N, C, H, W): (K, C, h, w), or (1, C, H, W) to broadcast."""
        if maps.dim() != 4 or (self.P.shape[2:] == maps.shape[2:] and not self.origin.any()):
            return _rows(maps, self.image)
        out = maps.new_zeros((len(self.P), maps.shape[1], *self.P.shape[2:]))
        for k, (n, origin) in enumerate(zip(self.image.tolist(), self.origin.tolist())):
            cuts = [_overlap(o, h, have) for o, h, have in zip(origin, self.P.shape[2:], maps.shape[2:])]
            out[(k, slice(None), *(here for here, _ in cuts))] = maps[(n, slice(None), *(there for _, there in cuts))]
        return out

    def moved(self, origin: Tensor, size: tuple[int, int]) -> Visits:
        """The same visits on other windows; what lies outside of these is dropped."""
        out = self.P.new_zeros((*self.P.shape[:2], *size))
        offsets = (origin - self.origin).tolist()
        for k, offset in enumerate(offsets):
            cuts = [_overlap(o, length, have) for o, length, have in zip(offset, size, self.P.shape[2:])]
            out[(k, slice(None), *(here for here, _ in cuts))] = self.P[(k, slice(None), *(there for _, there in cuts))]
        return Visits(out, origin, self.image)

    def on(self, height: int, width: int, whole: tuple[bool, bool] = (False, False)) -> Visits:
        """Windows no longer than the map along either axis, and the whole axis where `whole` says so."""
        if self.P.dim() != 4:
            return self
        have, full = self.P.shape[2:], (height, width)
        whole = [w or h >= f for w, h, f in zip(whole, have, full)]
        size = tuple(f if w else h for w, h, f in zip(whole, have, full))
        origin = self.origin * torch.tensor([0 if w else 1 for w in whole])
        return self if size == have and torch.equal(origin, self.origin) else self.moved(origin, size)

    def __add__(self, other: Visits) -> Visits:
        """The sum of two contributions to one tensor, on windows that hold both."""
        if self.P.shape == other.P.shape and torch.equal(self.origin, other.origin):
            return self.with_(self.P + other.P)
        origin = torch.minimum(self.origin, other.origin)
        ends = (v.origin + torch.tensor(v.P.shape[2:]) for v in (self, other))
        size = tuple((torch.maximum(*ends) - origin).amax(dim=0).tolist())
        out = self.moved(origin, size)
        out.P += other.moved(origin, size).P
        return out


def _overlap(offset: int, length: int, have: int) -> tuple[slice, slice]:
    """Where a window of `length` that begins at `offset` of `have` elements meets them: in the window, and in them."""
    first, last = max(offset, 0), min(offset + length, have)
    last = max(first, last)
    return slice(first - offset, last - offset), slice(first, last)


# --------------------------------------------------------------------------------------------------- the operators


def _in_float32(values: Tensor) -> bool:
    """With AMX, oneDNN's strided bfloat16 convolutions give garbage (pytorch issue 169688): on the CPU that dtype is
    computed in float32 and rounded."""
    return values.dtype == torch.bfloat16 and values.device.type == "cpu"


@torch.library.custom_op("prm::walk_normalizer", mutates_args=())
def _walk_normalizer(
    U: Tensor, weight: Tensor, stride: list[int], padding: list[int], dilation: list[int], groups: int
) -> Tensor:
    """1 / Z of Eq. 5, (N, C_out, p, q), Z = conv(U, weight) for non-negative U and weight; 0 where Z leaks."""
    if _in_float32(U):
        return _walk_normalizer(U.float(), weight.float(), stride, padding, dilation, groups).to(U.dtype)
    # Z must be exactly 0 where all its products are; cuDNN may pick Winograd or FFT algorithms, which round.
    with torch.backends.cudnn.flags(enabled=False):
        Z = F.conv2d(U, weight, None, stride, padding, dilation, groups)
    floor = TINY * U.amax(dim=(1, 2, 3))[:, None, None, None] * weight.sum(dim=(1, 2, 3))[None, :, None, None]
    return torch.where(floor < Z, 1 / Z, 0)


@_walk_normalizer.register_fake
def _(U, weight, stride, padding, dilation, groups):
    return torch.empty_like(F.conv2d(U, weight, None, stride, padding, dilation, groups))


@torch.library.custom_op("prm::walk_conv2d", mutates_args=())
def _walk_conv2d(
    P: Tensor, image: Tensor, origin: Tensor, above: Tensor, below: Tensor, weight: Tensor,
    stride: list[int], padding: list[int], dilation: list[int], groups: int,
) -> Tensor:  # fmt: skip
    """Eq. 4 for K peaks: below * convT(P * above, weight), on the windows of the maps below that P's windows read.

    P (K, C_out, h, w), windows whose first elements lie at origin (K, 2) int64, on the host, of the maps above; image
    (K,) int64 into the first axis of above (N, C_out, p, q) and below (N, C_in, i, j). With above = 1 / Z and below =
    U_hat this is P(U). The answer's windows are `windows_below`'s.
    """
    if _in_float32(P):
        maps = (P.float(), image, origin, above.float(), below.float(), weight.float())
        return _walk_conv2d(*maps, stride, padding, dilation, groups).to(P.dtype)
    visits = Visits(P, origin, image)
    _, whole = windows_below(P.shape, above.shape, below.shape, weight.shape, stride, dilation)
    q = P * visits.of(above)
    cudnn = torch.backends.cudnn
    # 1 / Z is exact to float32: with TF32 here the transitions out of a position would not sum to 1.
    with cudnn.flags(cudnn.enabled, cudnn.benchmark, deterministic=cudnn.deterministic, allow_tf32=False):
        whole_map = P.shape[2:] == above.shape[2:] and not origin.any()
        if whole_map:
            size = (len(P), *below.shape[1:])
            reached = torch.nn.grad.conv2d_input(size, weight, q, stride, padding, dilation, groups)
        else:
            reached = F.conv_transpose2d(q, weight, None, stride, 0, 0, groups, dilation)
    if whole_map:
        out = Visits(reached, 0 * origin, image)
    else:
        start = origin * torch.tensor(stride) - torch.tensor(padding)
        out = Visits(reached, start, image).on(*below.shape[2:], whole=whole)
    return out.P * out.of(below)


@_walk_conv2d.register_fake
def _(P, image, origin, above, below, weight, stride, padding, dilation, groups):
    size, _ = windows_below(P.shape, above.shape, below.shape, weight.shape, stride, dilation)
    return P.new_empty((P.shape[0], below.shape[1], *size))


def windows_below(visits, above, below, weight, stride, dilation) -> tuple[list[int], list[bool]]:
    """Size of the windows that windows of shape `visits` read through a convolution, and which axes are whole.

    An axis is whole where the window above was, or where the window below would be as long as the map.
    """
    size, whole = [], []
    for i in (0, 1):
        length = (visits[2 + i] - 1) * stride[i] + dilation[i] * (weight[2 + i] - 1) + 1
        whole.append(visits[2 + i] >= above[2 + i] or length >= below[2 + i])
        size.append(below[2 + i] if whole[i] else length)
    return size, whole


def origin_below(visits: Visits, whole: list[bool], stride, padding) -> Tensor:
    """Where the windows of `windows_below` begin: 0 on whole axes."""
    return (visits.origin * torch.tensor(stride) - torch.tensor(padding)) * torch.tensor([0 if w else 1 for w in whole])


# ------------------------------------------------------------------------------------------------------- the rules


class Rule:
    """How P passes one call. `parents` are the inputs that P goes to; the base class passes it on unchanged.

    `executes`: whether the forward pass runs the model's own code; the other rules compute from their parents alone.
    `local`: whether `back` takes windows; the other rules are handed whole maps.
    """

    executes = True
    local = True

    def __init__(self, *parents: fx.Node):
        self.parents = parents

    def forward(self, execute: Callable[[], Any], *U: Tensor) -> tuple[Any, State]:
        """The call's value and what the walk back needs, from the parents' values U; `execute` is the model's code."""
        return execute(), State()

    def back(self, visits: Visits, state: State, images: slice) -> tuple[list[Visits], Tensor | None]:
        """Visits of each parent, and the mass (K,) that leaked, or None if this layer passes everything on.

        `images` are the images of this pass: those that `visits.image` counts.
        """
        return [visits for _ in self.parents], None


@dataclass
class State:
    """What a rule kept: tensors whose first axis is the image, and shapes; `lazy` is filled when first walked."""

    values: tuple[Tensor, ...] = ()
    shape: tuple[int, ...] = ()
    lazy: tuple[Tensor, ...] = field(default=())
    out: tuple[int, ...] = ()
    """Shape of the call's value, without the image axis."""


def shifted(U: Tensor) -> Tensor:
    """U_hat = U - min(0, min U), the minimum over each image: U itself wherever a ReLU came before."""
    least = U.flatten(1).amin(dim=1)
    return U if bool((least >= 0).all()) else U - least.clamp(max=0).reshape(-1, *[1] * (U.dim() - 1))


def _leaked(visits: Visits, inverse: Tensor) -> Tensor | None:
    """Mass (K,) of P where Z leaks; None where it leaks nowhere, which is the usual case."""
    leaks = inverse == 0
    if not bool(leaks.any()):
        return None
    return (visits.P * visits.of(leaks)).flatten(1).sum(dim=1, dtype=torch.float64)


class Convolution(Rule):
    """Eqs. 4-5. A zero pad before it and a batch norm behind it are already merged in (`pad`, `weight`, `bias`)."""

    executes = False

    def __init__(self, source, weight, bias, stride, padding, dilation, groups, pad, signed):
        super().__init__(source)
        self.weight, self.bias, self.signed = weight, bias, signed
        self.stride, self.dilation, self.groups = stride, dilation, groups
        left, right, top, bottom = (a + b for a, b in zip(pad, _four_sided(padding, weight, dilation)))
        # Uneven padding is applied to U_hat itself, where the padded positions hold 0 and are cut off again.
        even = left == right and top == bottom
        self.padding = [top, left] if even else [0, 0]
        self.pad = None if even else (left, right, top, bottom)
        self.positive, self.negative = weight.clamp(min=0), weight.clamp(max=0) if signed else None

    def _padded(self, U: Tensor) -> Tensor:
        return U if self.pad is None else F.pad(U, self.pad)

    def forward(self, execute, U):
        geometry = [self.stride, self.padding, self.dilation, self.groups]
        if _in_float32(U):
            bias = None if self.bias is None else self.bias.float()
            V = F.conv2d(self._padded(U).float(), self.weight.float(), bias, *geometry).to(U.dtype)
        else:
            V = F.conv2d(self._padded(U), self.weight, self.bias, *geometry)
        return V, State((U,))

    def _prepare(self, U: Tensor) -> tuple[Tensor, ...]:
        """1 / Z, and U_hat or the two signs of U."""
        geometry = [self.stride, self.padding, self.dilation, self.groups]
        if not self.signed or bool((U >= 0).all()):
            U_hat = self._padded(shifted(U))
            return torch.ops.prm.walk_normalizer(U_hat, self.positive, *geometry), U_hat
        plus, minus = self._padded(U.clamp(min=0)), self._padded(U.clamp(max=0))
        parts = [(plus, self.positive), (minus, self.negative)]
        if _in_float32(U):
            parts = [(part.float(), weight.float()) for part, weight in parts]
        with torch.backends.cudnn.flags(enabled=False):  # as for the operator above
            Z = sum(F.conv2d(part, weight, None, *geometry) for part, weight in parts)
        sums = [part.abs().amax((1, 2, 3))[:, None] * weight.abs().sum((1, 2, 3)) for part, weight in parts]
        floor = TINY * (sums[0] + sums[1])[:, :, None, None]
        return torch.where(floor < Z, 1 / Z, 0).to(U.dtype), plus, minus

    def back(self, visits, state, images):
        if not state.lazy:
            state.lazy = self._prepare(state.values[0])
        inverse, *signs = (t[images] for t in state.lazy)
        geometry = [self.stride, self.padding, self.dilation, self.groups]
        P = sum(
            torch.ops.prm.walk_conv2d(visits.P, visits.image, visits.origin, inverse, U, weight, *geometry)
            for U, weight in zip(signs, (self.positive, self.negative))
        )
        _, whole = windows_below(
            visits.P.shape, inverse.shape, signs[0].shape, self.weight.shape, self.stride, self.dilation
        )
        below = visits.with_(P, origin_below(visits, whole, self.stride, self.padding))
        if self.pad is not None:
            (H, W), (left, _, top, _) = state.values[0].shape[2:], self.pad
            below = below.with_(P, below.origin - torch.tensor([top, left])).on(H, W, whole=tuple(whole))
        return [below], _leaked(visits, inverse)


class AveragePooling(Convolution):
    """A convolution with equal weights, each channel apart. By what the mean is divided makes no difference to P."""

    def __init__(self, source, pool: Callable[[Tensor], Tensor], kernel, stride, padding, pad):
        super().__init__(source, torch.ones(1, 1, *kernel), None, stride, padding, [1, 1], 1, pad, signed=False)
        self.pool = pool

    def forward(self, execute, U):
        self.groups = U.shape[1]
        self.positive = U.new_ones((self.groups, *self.weight.shape[1:]))
        return self.pool(U), State((U,))


class FixedWeights(Rule):
    """Adaptive average pooling, interpolation, mean over (H, W): fixed weights >= 0, given as the function `apply`
    (U, (rows, columns) of V) to V. `weights`: from U, the sum of each output's weights, of V's shape; None: 1."""

    local = False

    def __init__(self, source, apply: Callable[[Tensor, tuple[int, ...]], Tensor], weights=None):
        super().__init__(source)
        self.apply, self.weights = apply, weights

    def forward(self, execute, U):
        return execute(), State((U,))

    def back(self, visits, state, images):
        apply = lambda U: self.apply(U, state.out[1:])  # noqa: E731
        if not state.lazy:
            U_hat = shifted(state.values[0])
            Z = apply(U_hat)
            most = U_hat.flatten(1).amax(dim=1).reshape(-1, *[1] * (Z.dim() - 1))
            floor = TINY * most if self.weights is None else TINY * most * self.weights(U_hat)
            state.lazy = (torch.where(Z > floor, 1 / Z, 0), U_hat)
        inverse, U_hat = (t[images] for t in state.lazy)
        q = visits.P * _rows(inverse, visits.image)
        below = _transposed(apply, (len(q), *U_hat.shape[1:]), q) * _rows(U_hat, visits.image)
        return [visits.with_(below)], _leaked(visits, inverse)


class Linear(Rule):
    """A linear layer over the last axis: Eqs. 4-5 without a neighbourhood."""

    local = False

    def __init__(self, source, weight):
        super().__init__(source)
        self.positive = weight.clamp(min=0)

    def forward(self, execute, U):
        return execute(), State((U,))

    def back(self, visits, state, images):
        if not state.lazy:
            U_hat = shifted(state.values[0])
            Z = U_hat @ self.positive.T
            floor = TINY * U_hat.flatten(1).amax(dim=1).reshape(-1, *[1] * (Z.dim() - 1)) * self.positive.sum(dim=1)
            state.lazy = (torch.where(floor < Z, 1 / Z, 0), U_hat)
        inverse, U_hat = (t[images] for t in state.lazy)
        below = (visits.P * _rows(inverse, visits.image)) @ self.positive * _rows(U_hat, visits.image)
        leaks = (visits.P * _rows(inverse == 0, visits.image)).flatten(1).sum(dim=1, dtype=torch.float64)
        return [visits.with_(below)], leaks


class Selection(Rule):
    """Slice, chunk, split, permute: every output element is one input element, so P follows it and is 0 elsewhere."""

    local = False

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

    def back(self, visits, state, images):
        return [visits.with_(_transposed(self.apply, (len(visits.P), *state.shape), visits.P))], None


class Reshape(Selection):
    """Flatten, reshape, squeeze, unsqueeze: the elements keep their order within an image."""

    def __init__(self, source):
        super().__init__(source, lambda t: t)

    def back(self, visits, state, images):
        return [visits.with_(visits.P.reshape(len(visits.P), *state.shape))], None


class MaxPool(Rule):
    """P goes to the window's argmax, the first maximum in row-major order; windows that share it add up.

    `geometry`: (kernel, stride, padding, dilation), two numbers each; None for adaptive pooling.
    """

    executes = False

    def __init__(self, source, pool: Callable[[Tensor], tuple[Tensor, Tensor]], geometry=None):
        super().__init__(source)
        self.pool, self.geometry, self.local = pool, geometry, geometry is not None

    def forward(self, execute, U):
        out, indices = self.pool(U)
        return out, State((indices,), tuple(U.shape[1:]))

    def back(self, visits, state, images):
        indices = state.values[0][images]
        C, H, W = state.shape
        kernel, stride, padding, dilation = self.geometry or ((H, W), (1, 1), (0, 0), (1, 1))
        size, whole = windows_below(visits.P.shape, indices.shape, (1, C, H, W), (1, 1, *kernel), stride, dilation)
        origin = origin_below(visits, whole, stride, padding)
        rows, cols = (o[:, None, None, None].to(indices.device) for o in origin.unbind(1))
        # Positions of the argmax within the window below; beyond the border P is 0 and any position will do.
        indices = visits.of(indices)
        place = (indices // W - rows).clamp(0, size[0] - 1) * size[1] + (indices % W - cols).clamp(0, size[1] - 1)
        P = visits.P.flatten(2)
        below = P.new_zeros((len(P), C, size[0] * size[1])).scatter_add_(2, place.expand_as(visits.P).flatten(2), P)
        return [visits.with_(below.reshape(len(P), C, *size), origin)], None


class Addition(Rule):
    """Residual addition: P splits in proportion to the summands' positive parts, equally where none is positive."""

    def __init__(self, a, b, alpha=1):
        super().__init__(a, b)
        self.alpha = alpha

    def forward(self, execute, a, b):
        return execute(), State((a, b if self.alpha == 1 else self.alpha * b))

    def back(self, visits, state, images):
        if not state.lazy:
            a, b = (v.clamp(min=0) for v in state.values)
            total = a + b
            state.lazy = (torch.where(total > 0, a / total, 0.5),)
        to_a = visits.P * visits.of(state.lazy[0][images])
        # The rest, not a second product, so that nothing is lost to rounding.
        shares = [to_a, visits.P - to_a]
        shapes = [tuple(U.shape[1:]) for U in state.values]
        return [_summed_to(visits.with_(share), state, shape) for share, shape in zip(shares, shapes)], None


class Concatenation(Rule):
    """Each input takes its slice."""

    def __init__(self, sources, dim):
        super().__init__(*sources)
        self.dim, self.local = dim, dim == 1

    def forward(self, execute, *U):
        out = execute()
        if self.dim % out.dim() == 0:
            raise NotImplementedError("a concatenation mixes the images of a batch")
        return out, State(shape=tuple(u.shape[self.dim] for u in U))

    def back(self, visits, state, images):
        return [visits.with_(part) for part in visits.P.split(state.shape, dim=self.dim)], None


class Scaling(Rule):
    """A factor, a gate, an added constant: P goes to the one operand, summed over the axes that it was repeated on."""

    def forward(self, execute, U):
        return execute(), State(shape=tuple(U.shape[1:]))

    def back(self, visits, state, images):
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

    local = False

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

    def back(self, visits, state, images):
        U = [_rows(u[images], visits.image).expand(len(visits.P), *u.shape[1:]) for u in state.values]
        entered = _mass((visits.P,))
        below = self.function(self.module, visits.P, *U)
        below = tuple(below) if isinstance(below, (tuple, list)) else (below,)
        if len(below) != len(U):
            raise ValueError(self._wrong(f"must return {len(U)} tensors, one for each input, not {len(below)}"))
        for P, u in zip(below, U):
            if not isinstance(P, Tensor) or P.shape != u.shape:
                found = tuple(P.shape) if isinstance(P, Tensor) else type(P).__name__
                wanted = tuple(u.shape)
                raise ValueError(self._wrong(f"must return a tensor of its input's shape {wanted}, not {found}"))
            if not bool((P >= 0).all()):
                raise ValueError(self._wrong("returned visits that are negative or not a number"))
        left = _mass(below)
        rounding = torch.finfo(visits.P.dtype).eps ** 0.5
        if bool((left > entered * (1 + rounding)).any()):
            k = int((left - entered).argmax())
            raise ValueError(self._wrong(f"made mass grow, from {float(entered[k]):.6g} to {float(left[k]):.6g}"))
        leaked = (entered - left).clamp(min=0)
        return [visits.with_(P.to(visits.P.dtype)) for P in below], leaked


REGISTERED: dict[type[nn.Module], Callable] = {}


def register_rule(*types: type[nn.Module]) -> Callable[[Callable], Callable]:
    """Decorator: the function below it is the rule of these types of module and of their subclasses.

    It is called as f(module, P, *U) and returns P(U):

    module : the module, in evaluation mode
    P : (K, ...) visits of the module's output, one row a peak; float32, float64 or bfloat16, the dtype of U
    U : values of the module's inputs that depend on the image, (K, ...) each, in the order of its arguments
    P(U) : a tensor of U's shape, or a tuple with one for each of several inputs; >= 0, and together no more than P.
        What of P they do not hold is counted as leaked.

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
    if len(state.out) == 3:
        visits = visits.on(*state.out[1:], whole=(True, True))
    return visits.with_(visits.P.sum_to_size(len(visits.P), *shape))


def _rows(per_image: Tensor, image: Tensor) -> Tensor:
    """Each peak's own rows of a per-image tensor; broadcast instead of gathered where there is one image."""
    return per_image if per_image.shape[0] == 1 else per_image[image]


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
