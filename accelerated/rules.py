"""Eqs. 4-5, a layer kind at a time: the operators of a convolution, and a rule for every kind of layer.

A rule knows which inputs P goes to, what to keep of the forward pass, and how P goes back. `tracing.py` finds the rules
of a network and strings them along its graph.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional as F

TINY = 1e-7  # of max(U_hat) * sum(W+_o): below it Z is rounding noise, and what came from above leaks


# --------------------------------------------------------------------------------------------------- the operators


@torch.library.custom_op("prm::walk_normalizer", mutates_args=())
def _walk_normalizer(
    U: Tensor, weight: Tensor, stride: list[int], padding: list[int], dilation: list[int], groups: int
) -> Tensor:
    """1 / Z of Eq. 5, (N, C_out, p, q), Z = conv(U, weight) for non-negative U and weight; 0 where Z leaks."""
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
    P: Tensor, image: Tensor, above: Tensor, below: Tensor, weight: Tensor,
    stride: list[int], padding: list[int], dilation: list[int], groups: int,
) -> Tensor:  # fmt: skip
    """Eq. 4 for K peaks: below[image] * convT(P * above[image], weight), (K, C_in, i, j).

    P (K, C_out, p, q); image (K,) int64 into the first axis of above (N, C_out, p, q) and below (N, C_in, i, j).
    With above = 1 / Z and below = U_hat this is P(U).
    """
    shape = (P.shape[0], *below.shape[1:])
    walked = torch.nn.grad.conv2d_input(shape, weight, P * _of(above, image), stride, padding, dilation, groups)
    return walked * _of(below, image)


@_walk_conv2d.register_fake
def _(P, image, above, below, weight, stride, padding, dilation, groups):
    return P.new_empty((P.shape[0], *below.shape[1:]))


def _of(per_image: Tensor, image: Tensor) -> Tensor:
    """Each peak's own rows of a per-image tensor; broadcast instead of gathered where there is one image."""
    return per_image if per_image.shape[0] == 1 else per_image[image]


# ------------------------------------------------------------------------------------------------------- the rules


class Rule:
    """How P passes one call. `parents` are the inputs that P goes to; the base class passes it on unchanged.

    `executes`: whether the forward pass runs the model's own code; the other rules compute from their parents alone.
    """

    executes = True

    def __init__(self, *parents: fx.Node):
        self.parents = parents

    def forward(self, execute: Callable[[], Any], *U: Tensor) -> tuple[Any, State]:
        """The call's value and what the walk back needs, from the parents' values U; `execute` is the model's code."""
        return execute(), State()

    def back(self, P: Tensor, state: State, images: slice, image: Tensor) -> tuple[list[Tensor], Tensor | None]:
        """P for each parent, and the mass (K,) that leaked, or None if this layer passes everything on."""
        return [P for _ in self.parents], None


@dataclass
class State:
    """What a rule kept: tensors whose first axis is the image, and shapes; `lazy` is filled when first walked."""

    values: tuple[Tensor, ...] = ()
    shape: tuple[int, ...] = ()
    lazy: tuple[Tensor, ...] = field(default=())

    @property
    def numel(self) -> int:
        """Elements of the largest kept tensor, per image."""
        return max((v[:1].numel() for v in self.values), default=0)


def shifted(U: Tensor) -> Tensor:
    """U_hat = U - min(0, min U), the minimum over each image: U itself wherever a ReLU came before."""
    least = U.flatten(1).amin(dim=1)
    return U if bool((least >= 0).all()) else U - least.clamp(max=0).reshape(-1, *[1] * (U.dim() - 1))


def _leaked(P: Tensor, inverse: Tensor, image: Tensor) -> Tensor | None:
    """Mass (K,) of P where Z leaks; None where it leaks nowhere, which is the usual case."""
    leaks = inverse == 0
    if not bool(leaks.any()):
        return None
    return (P * _of(leaks, image)).flatten(1).sum(dim=1, dtype=torch.float64)


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
        return F.conv2d(self._padded(U), self.weight, self.bias, *geometry), State((U,))

    def _prepare(self, U: Tensor) -> tuple[Tensor, ...]:
        """1 / Z, and U_hat or the two signs of U."""
        geometry = [self.stride, self.padding, self.dilation, self.groups]
        if not self.signed or bool((U >= 0).all()):
            U_hat = self._padded(shifted(U))
            return torch.ops.prm.walk_normalizer(U_hat, self.positive, *geometry), U_hat
        plus, minus = self._padded(U.clamp(min=0)), self._padded(U.clamp(max=0))
        # One normaliser for both signs: each group sees U+ beside -U-, weighted by W+ beside -W-.
        grouped = [half.unflatten(1, (self.groups, -1)) for half in (plus, -minus)]
        weight = torch.cat([self.positive, -self.negative], dim=1)
        inverse = torch.ops.prm.walk_normalizer(torch.cat(grouped, dim=2).flatten(1, 2), weight, *geometry)
        return inverse, plus, minus

    def back(self, P, state, images, image):
        if not state.lazy:
            state.lazy = self._prepare(state.values[0])
        inverse = state.lazy[0][images]
        below = 0
        for U, weight in zip(state.lazy[1:], (self.positive, self.negative)):
            below = below + torch.ops.prm.walk_conv2d(
                P, image, inverse, U[images], weight, self.stride, self.padding, self.dilation, self.groups
            )
        if self.pad is not None:
            below = F.pad(below, [-p for p in self.pad])
        return [below], _leaked(P, inverse, image)


class FixedWeights(Rule):
    """Average pooling, interpolation, mean over (H, W): a convolution with fixed weights >= 0, given as the function
    `apply` from U to V. `scale` is the sum of one output's weights."""

    executes = False

    def __init__(self, source, apply: Callable[[Tensor], Tensor], scale: float = 1.0):
        super().__init__(source)
        self.apply, self.scale = apply, scale

    def forward(self, execute, U):
        return self.apply(U), State((U,))

    def back(self, P, state, images, image):
        if not state.lazy:
            U_hat = shifted(state.values[0])
            Z = self.apply(U_hat)
            most = U_hat.flatten(1).amax(dim=1).reshape(-1, *[1] * (Z.dim() - 1))
            state.lazy = (torch.where(Z > TINY * self.scale * most, 1 / Z, 0), U_hat)
        inverse, U_hat = (t[images] for t in state.lazy)
        below = _transposed(self.apply, (len(P), *U_hat.shape[1:]), P * _of(inverse, image))
        return [below * _of(U_hat, image)], _leaked(P, inverse, image)


class Linear(Rule):
    """A linear layer over the last axis: Eqs. 4-5 without a neighbourhood."""

    def __init__(self, source, weight):
        super().__init__(source)
        self.positive = weight.clamp(min=0)

    def forward(self, execute, U):
        return execute(), State((U,))

    def back(self, P, state, images, image):
        if not state.lazy:
            U_hat = shifted(state.values[0])
            Z = U_hat @ self.positive.T
            floor = TINY * U_hat.flatten(1).amax(dim=1).reshape(-1, *[1] * (Z.dim() - 1)) * self.positive.sum(dim=1)
            state.lazy = (torch.where(floor < Z, 1 / Z, 0), U_hat)
        inverse, U_hat = (t[images] for t in state.lazy)
        return [(P * _of(inverse, image)) @ self.positive * _of(U_hat, image)], _leaked(P, inverse, image)


class Selection(Rule):
    """Slice, chunk, split, permute: every output element is one input element, so P follows it and is 0 elsewhere."""

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

    def back(self, P, state, images, image):
        return [_transposed(self.apply, (len(P), *state.shape), P)], None


class Reshape(Selection):
    """Flatten, reshape, squeeze, unsqueeze: the elements keep their order within an image."""

    def __init__(self, source):
        super().__init__(source, lambda t: t)

    def back(self, P, state, images, image):
        return [P.reshape(len(P), *state.shape)], None


class MaxPool(Rule):
    """P goes to the window's argmax, the first maximum in row-major order; windows that share it add up."""

    executes = False

    def __init__(self, source, pool: Callable[[Tensor], tuple[Tensor, Tensor]]):
        super().__init__(source)
        self.pool = pool

    def forward(self, execute, U):
        out, indices = self.pool(U)
        return out, State((indices,), tuple(U.shape[1:]))

    def back(self, P, state, images, image):
        indices = _of(state.values[0][images], image).flatten(2).expand(len(P), -1, -1)
        C, H, W = state.shape
        below = P.new_zeros((len(P), C, H * W)).scatter_add_(2, indices, P.flatten(2))
        return [below.reshape(len(P), C, H, W)], None


class Addition(Rule):
    """Residual addition: P splits in proportion to the summands' positive parts, equally where none is positive."""

    def __init__(self, a, b, alpha=1):
        super().__init__(a, b)
        self.alpha = alpha

    def forward(self, execute, a, b):
        return execute(), State((a, b if self.alpha == 1 else self.alpha * b))

    def back(self, P, state, images, image):
        if not state.lazy:
            a, b = (v.clamp(min=0) for v in state.values)
            total = a + b
            state.lazy = (torch.where(total > 0, a / total, 0.5),)
        to_a = P * _of(state.lazy[0][images], image)
        # The rest, not a second product, so that nothing is lost to rounding.
        shares = [to_a, P - to_a]
        return [s.sum_to_size(len(P), *v.shape[1:]) for s, v in zip(shares, state.values)], None


class Concatenation(Rule):
    """Each input takes its slice."""

    def __init__(self, sources, dim):
        super().__init__(*sources)
        self.dim = dim

    def forward(self, execute, *U):
        out = execute()
        if self.dim % out.dim() == 0:
            raise NotImplementedError("a concatenation mixes the images of a batch")
        return out, State(shape=tuple(u.shape[self.dim] for u in U))

    def back(self, P, state, images, image):
        return list(P.split(state.shape, dim=self.dim)), None


class FoldedNorm(Rule):
    """A batch norm that its convolution has already applied."""

    executes = False

    def forward(self, execute, U):
        return U, State()


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
