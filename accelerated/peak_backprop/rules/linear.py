"""Linear layers, and what else is linear with fixed weights >= 0: adaptive pooling, interpolation, means. Eqs. 4-5."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ..operators import TINY
from ..shared import Shared, empty, rows
from ..visits import Visits
from ..windows import times, window, windows
from .rule import Rule, mass, shifted, transposed


class FixedWeights(Rule):
    """Adaptive average pooling, interpolation, mean over (H, W): fixed weights >= 0, given as the function `apply`
    (U, (rows, columns) of V) to V. `weights`: from U, the sum of each output's weights, of V's shape; None: 1."""

    factored = False

    def __init__(self, source, apply: Callable[[Tensor, tuple[int, ...]], Tensor], weights=None):
        super().__init__(source)
        self.apply, self.weights = apply, weights

    def forward(self, execute, U):
        return execute(), (U,)

    def back(self, visits, kept):
        (U,), prepared = kept.tensors, kept.prepared
        apply = lambda U: self.apply(U, kept.above[1:])  # noqa: E731
        inverse = kept.once("1 / Z", lambda: self._inverse(shifted(U, prepared), apply))
        leaked = mass((times(visits.values, (Shared(inverse == 0),), visits.image, visits.origin),))
        q = visits.with_(times(visits.values, (Shared(inverse),), visits.image, visits.origin))
        if U.dim() == 4 and len(kept.above) == 3:
            return [_along_axes(q, kept.once("axes", lambda: _axes(apply, U)), prepared.hat(U))], leaked
        below = transposed(apply, (len(q.values), *U.shape[1:]), q.on_whole(kept.above).values)
        return [Visits.whole(below * rows(shifted(U, prepared), visits.image), visits.image)], leaked

    def _inverse(self, U_hat: Tensor, apply: Callable[[Tensor], Tensor]) -> Tensor:
        """1 / Z of Eq. 5, 0 where Z leaks."""
        Z = apply(U_hat)
        most = U_hat.flatten(1).amax(dim=1).reshape(-1, *[1] * (Z.dim() - 1))
        floor = TINY * most if self.weights is None else TINY * most * self.weights(U_hat)
        return torch.where(Z > floor, 1 / Z, 0)


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
        return execute(), (U,)

    def back(self, visits, kept):
        (U,) = kept.tensors
        shared = kept.once("U_hat", lambda: shifted(U, kept.prepared))
        U_hat, inverse = (rows(t, visits.image) for t in (shared, kept.once("1 / Z", lambda: self._inverse(shared))))
        below = (visits.values * inverse) @ self.positive * U_hat
        return [Visits.whole(below, visits.image)], mass((visits.values * (inverse == 0),))

    def _inverse(self, U_hat: Tensor) -> Tensor:
        """1 / Z of Eq. 5, 0 where Z leaks."""
        Z = U_hat @ self.positive.T
        floor = TINY * U_hat.flatten(1).amax(dim=1).reshape(-1, *[1] * (Z.dim() - 1)) * self.positive.sum(dim=1)
        return torch.where(floor < Z, 1 / Z, 0)
