"""Convolutions, and average poolings that are convolutions with equal weights: Eqs. 4-5."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..operators import LAYOUT, TINY, in_float32, turn
from ..prepared import Kept, Prepared
from ..shared import Computed, Shared, Span, product
from ..visits import Visits
from ..windows import padded, reach, times, windows
from .rule import Rule, mass


@dataclass(frozen=True)
class Weights:
    """Weights of one sign, W+ or W-, (C_out, C_in / groups, i, j): as they are, turned round (`turn`), and the sums of
    their sizes (C_out,)."""

    plain: Tensor
    turned: Tensor
    total: Tensor
    groups: int

    @classmethod
    def of(cls, W: Tensor, groups: int) -> Weights:
        W = W.contiguous(memory_format=LAYOUT)
        return cls(W, turn(W, groups), W.abs().sum(dim=(1, 2, 3)), groups)


class Sliding(Rule, ABC):
    """Eqs. 4-5 for weights that slide over the map: `before`, `after` are the zeros around it, rows and columns."""

    executes = False

    def __init__(self, source, kernel, stride, before, after, dilation, precision):
        super().__init__(source)
        self.kernel, self.stride, self.dilation, self.precision = tuple(kernel), stride, dilation, precision
        self.before, self.after = before, after
        self.grows = self.kernel != (1, 1)

    @abstractmethod
    def weights(self, kept: Kept) -> tuple[Weights, Weights | None]:
        """W+, and W- where negative inputs have walks of their own, else None."""

    def back(self, visits, kept):
        """Eq. 5: P(U) = U_hat * convT(P(V) / Z, W+).

        All peaks of an image share U_hat and the ratio map, 1 / Z times what P(V) comes with. Each peak has its window:
        the part of U that what it visits of V was computed from, beyond which its P(U) is 0.
        """
        (U,), prepared = kept.tensors, kept.prepared
        W_plus, W_minus = self.weights(kept)
        W_minus = W_minus if any(prepared.least(U)) else None
        ratio = self._ratio(visits, U, kept, W_plus, W_minus)
        sliding = self.stride, self.before, self.dilation, self.kernel
        first, last = reach(visits.first, visits.last, *sliding, U.shape[2:])
        to, size = windows(first, last, U.shape[2:])
        image, origin, target = (torch.from_numpy(a) for a in (visits.image, visits.origin, to))

        def walk(U_hat: Shared, W: Weights) -> Visits:
            P_over_U_hat = torch.ops.prm.walk_conv2d(
                visits.values, image, origin, ratio.tensor, W.turned,
                self.stride, self.before, self.dilation, W.groups, target, list(size), self.precision,
            )  # fmt: skip
            return Visits(P_over_U_hat, first, last, to, visits.image, (U_hat,), fresh=True)

        if W_minus is not None:
            plus, minus = walk(prepared.positive(U), W_plus), walk(prepared.negative(U), W_minus)
            P_U = plus.plus(minus, U.shape[1:])
        else:
            P_U = walk(prepared.hat(U), W_plus)
        return [P_U], ratio.leaked(visits)

    def _ratio(self, visits: Visits, U: Tensor, kept: Kept, W_plus: Weights, W_minus: Weights | None) -> Ratio:
        """The ratio map for visits with such factors, computed where these visits read it."""
        prepared, factors = kept.prepared, visits.factors

        def make() -> Ratio:
            if W_minus is None:
                fill = partial(self._over_Z, U, prepared, factors, W_plus)
            else:
                fill = partial(self._over_signed_Z, U, prepared, factors, W_plus, W_minus)
            return Ratio(prepared.empty((len(U), *kept.above), U), fill)

        ratio = kept.once(factors, make)
        ratio.touch(visits.image, visits.span)
        return ratio

    def _over_Z(
        self, U: Tensor, prepared: Prepared, factors: tuple[Shared, ...], W: Weights, some: slice, span: Span,
        out: Tensor,
    ) -> tuple[Tensor, Tensor | None]:  # fmt: skip
        """Into out, a region (n, C, h, w) of some images: the factors over Z; where Z leaks, and the factors."""
        above = product(factors, some, span)
        values, padding = self._below(prepared.hat(U), some, span)
        floor = TINY * prepared.most(U)[some, None] * W.total
        geometry = [self.stride, padding, self.dilation, W.groups]
        return torch.ops.prm.walk_ratio(values, W.plain, floor, above, *geometry, out), above

    def _over_signed_Z(self, U, prepared, factors, W_plus, W_minus, some, span, out):
        """As `_over_Z`, with Z = conv(U+, W+) + conv(U-, W-)."""
        above = product(factors, some, span)
        wide = torch.float32 if in_float32(U) else U.dtype
        Z: Any = 0
        floor: Any = 0
        # As for the operator above.
        with torch.backends.cudnn.flags(enabled=False):
            for part, W in ((prepared.positive(U), W_plus), (prepared.negative(U), W_minus)):
                values, padding = self._below(part, some, span)
                geometry = [self.stride, padding, self.dilation, W.groups]
                Z = Z + F.conv2d(values.to(wide), W.plain.to(wide), None, *geometry)
                most = part.region(some, (slice(None), slice(None))).abs().amax((1, 2, 3))
                floor = floor + TINY * most[:, None] * W.total
        leaks = Z <= floor[:, :, None, None]
        out.copy_((1 if above is None else above) / Z)
        return leaks, above

    def _below(self, shared: Shared, some: slice, span: Span) -> tuple[Tensor, list[int]]:
        """What a region of the output is computed from, and the padding that it still needs."""
        spans, before, after = [], [], []
        reads = [d * (k - 1) + 1 for d, k in zip(self.dilation, self.kernel)]
        for s, stride, pad, read, have in zip(span, self.stride, self.before, reads, shared.tensor.shape[2:]):
            begin, end = s.start * stride - pad, (s.stop - 1) * stride - pad + read
            first, last = min(max(begin, 0), have), min(max(end, 0), have)
            spans.append(slice(first, last))
            before.append(min(max(-begin, 0), end - begin))
            after.append(end - begin - before[-1] - (last - first))
        values = shared.region(some, tuple(spans))
        return (values, before) if before == after else (padded(values, before, after), [0, 0])


class Ratio(Computed):
    """The map that P, or G, is multiplied by on its way into a convolution; what meets Z = 0 there is its `leaks`.

    Its `fill` also gives where Z leaks in the region, and what P comes with there, or None for 1.
    """

    def __init__(self, tensor: Tensor, fill: Callable[[slice, Span, Tensor], tuple[Tensor, Tensor | None]]):
        super().__init__(tensor, fill)
        self.leaks: Tensor | None = None

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


class Convolution(Sliding):
    """A convolution; zero pads before it and a batch norm behind it are already merged in (`pad`, `weight`, `bias`)."""

    def __init__(self, source, weight, bias, stride, padding, dilation, groups, pad, signed, precision):
        left, right, top, bottom = (a + b for a, b in zip(pad, _four_sided(padding, weight, dilation)))
        super().__init__(source, weight.shape[2:], stride, [top, left], [bottom, right], dilation, precision)
        self.weight, self.bias, self.groups = weight, bias, groups
        minus = Weights.of(weight.clamp(max=0), groups) if signed else None
        self._weights = Weights.of(weight.clamp(min=0), groups), minus

    def forward(self, execute, U):
        even = self.before == self.after
        x = U if even else padded(U, self.before, self.after)
        geometry = [self.stride, self.before if even else 0, self.dilation, self.groups]
        if in_float32(U):
            bias = None if self.bias is None else self.bias.float()
            return F.conv2d(x.float(), self.weight.float(), bias, *geometry).to(U.dtype), (U,)
        return F.conv2d(x, self.weight, self.bias, *geometry), (U,)

    def weights(self, kept):
        return self._weights


class AveragePooling(Sliding):
    """A convolution with equal weights, each channel apart. By what the mean is divided makes no difference to P."""

    def __init__(self, source, pool: Callable[[Tensor], Tensor], kernel, stride, padding, pad, precision):
        left, right, top, bottom = pad
        before, after = [top + padding[0], left + padding[1]], [bottom + padding[0], right + padding[1]]
        super().__init__(source, kernel, stride, before, after, [1, 1], precision)
        self.pool = pool

    def forward(self, execute, U):
        return self.pool(U), (U,)

    def weights(self, kept):
        """Ones: how many, and of which dtype, the pass tells."""
        (U,) = kept.tensors
        return kept.once("weights", lambda: Weights.of(U.new_ones((U.shape[1], 1, *self.kernel)), U.shape[1])), None


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
