"""Where branches of a network join: residual additions and concatenations."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from ..shared import Computed, Shared, Span, product, rows
from ..visits import Visits
from ..windows import times
from .rule import Rule, handed_on, summed_to


class Addition(Rule):
    """Residual addition: P splits in proportion to the summands' positive parts, equally where none is positive."""

    def __init__(self, a, b, alpha=1):
        super().__init__(a, b)
        self.alpha = alpha

    def forward(self, execute, a, b):
        out = execute()
        return out, (a, b if self.alpha == 1 else self.alpha * b, out)

    def back(self, visits, kept):
        (a, b, out), prepared, factors = kept.tensors, kept.prepared, visits.factors
        # If P comes with the sum as a factor, it is 0 wherever that is not positive, and so where neither summand is.
        if a.dim() == 4 and a.shape == b.shape and prepared.plain(out) in factors:
            plus = prepared.positive(a), prepared.positive(b)
            share = partial(self._share, factors, plus)
            quotient = kept.once(factors, lambda: Computed(prepared.empty(a.shape, a), share))
            return [visits.with_(visits.values, (quotient, x)) for x in plus], None
        visits = visits.dense()
        to_a = times(visits.values, (kept.once("share", lambda: self._first(a, b)),), visits.image, visits.origin)
        # The rest, not a second product, so that nothing is lost to rounding.
        shares = [to_a, visits.values - to_a]
        return [summed_to(visits.with_(share), below, kept.above) for share, below in zip(shares, kept.below)], None

    @staticmethod
    def _first(a: Tensor, b: Tensor) -> Shared:
        """The share of the first summand."""
        a, b = (U.clamp(min=0) for U in (a, b))
        total = a + b
        return Shared(torch.where(total > 0, a / total, 0.5))

    @staticmethod
    def _share(factors, plus, some: slice, span: Span, out: Tensor) -> None:
        """Into out: the factors' product over the sum of the positive parts; 0 where both are 0."""
        total = plus[0].region(some, span) + plus[1].region(some, span)
        above = product(factors, some, span)
        assert above is not None  # the sum itself is among the factors
        torch.div(above, total, out=out).masked_fill_(total == 0, 0)


class Summation(Rule):
    """A sum over axes: an addition of the slices along them, P split in proportion to their positive parts."""

    local = factored = False

    def __init__(self, source, axes):
        super().__init__(source)
        self.axes = axes

    def forward(self, execute, U):
        return execute(), (U,)

    def back(self, visits, kept):
        (U,) = kept.tensors
        axes = tuple(axis % U.dim() for axis in self.axes)
        if 0 in axes:
            raise NotImplementedError("a sum mixes the images of a batch")
        share = rows(kept.once("share", lambda: self._shares(U, axes)), visits.image)
        shape = [1 if axis in axes else side for axis, side in enumerate((len(visits.values), *kept.below[0]))]
        return [Visits.whole(visits.values.reshape(shape) * share, visits.image)], None

    @staticmethod
    def _shares(U: Tensor, axes: tuple[int, ...]) -> Tensor:
        """Each element's share of its sum; equal ones where none is positive."""
        positive = U.clamp(min=0)
        whole = positive.sum(axes, keepdim=True)
        return torch.where(whole > 0, positive / whole, whole.numel() / positive.numel())


class Concatenation(Rule):
    """Each input takes its slice."""

    def __init__(self, sources, dim):
        super().__init__(*sources)
        self.dim, self.local = dim, dim == 1

    def forward(self, execute, *U):
        out = execute()
        if self.dim % out.dim() == 0:
            raise NotImplementedError("a concatenation mixes the images of a batch")
        return out, (*U, out)

    def back(self, visits, kept):
        (*parts, out), plain = kept.tensors, kept.prepared.plain
        factored = self.dim == 1 and plain(out) in visits.factors
        visits = handed_on(visits, plain(out), plain(out)) if factored else visits.dense()
        P = visits.values.split([U.shape[self.dim] for U in parts], dim=self.dim)
        if self.dim != 1:
            return [Visits.whole(part, visits.image) for part in P], None
        return [visits.with_(part, (plain(U),) if factored else ()) for part, U in zip(P, parts)], None
