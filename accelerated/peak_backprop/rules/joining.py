"""Where branches of a network join: residual additions and concatenations."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from ..shared import Computed, Shared, Span, product
from ..visits import Visits
from ..windows import times
from .rule import Rule, State, handed_on, summed_to


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
        return [summed_to(visits.with_(share), state, shape) for share, shape in zip(shares, shapes)], None

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
        visits = handed_on(visits, whole, whole) if kept else visits.dense()
        parts = visits.values.split(state.shape, dim=self.dim)
        if self.dim != 1:
            return [Visits.whole(part, visits.image) for part in parts], None
        return [visits.with_(p, (state.maps.plain(U),) if kept else ()) for p, U in zip(parts, state.values)], None
