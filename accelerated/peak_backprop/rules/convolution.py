"""Convolutions, and average poolings that are convolutions with equal weights: Eqs. 4-5."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from ..operators import LAYOUT, TINY, in_float32, turn
from ..prepared import SharedMaps
from ..shared import Computed, Shared, Span, product
from ..visits import Visits
from ..windows import padded, reach, times, windows
from .rule import Rule, State, mass


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
        if in_float32(U):
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
        wide = torch.float32 if in_float32(U) else U.dtype
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
        return mass((times(visits.values, (Shared(self.leaks),), visits.image, visits.origin),))


class AveragePooling(Convolution):
    """A convolution with equal weights, each channel apart. By what the mean is divided makes no difference to P."""

    def __init__(self, source, pool: Callable[[Tensor], Tensor], kernel, stride, padding, pad):
        super().__init__(source, torch.ones(1, 1, *kernel), None, stride, padding, [1, 1], 1, pad, signed=False)
        self.pool = pool

    def forward(self, execute, U):
        self.groups = U.shape[1]
        self._take_weights(U.new_ones((self.groups, *self.weight.shape[1:])))
        return self.pool(U), State((U,))


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
