"""Layers that move, copy or scale what they are given, and norms: P follows its element."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from ..visits import Visits
from .rule import Rule, mass, summed_to, transposed


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
        return out, ()

    def back(self, visits, kept):
        below = transposed(self.apply, (len(visits.values), *kept.below[0]), visits.values)
        return [Visits.whole(below, visits.image)], None


class Padding(Selection):
    """A pad that no layer takes in: copies of positions add up where they came from, what lies on a constant leaks."""

    def back(self, visits, kept):
        below, _ = super().back(visits, kept)
        return below, mass((visits.values * kept.once("constant", lambda: self._is_constant(visits.values, kept)),))

    def _is_constant(self, like: Tensor, kept) -> Tensor:
        """Where it does not matter what is padded."""
        some = like.new_zeros(1, *kept.below[0])
        return self.apply(some) == self.apply(some + 1)


class Reshape(Selection):
    """Flatten, reshape, squeeze, unsqueeze: the elements keep their order within an image."""

    def __init__(self, source):
        super().__init__(source, lambda t: t)

    def back(self, visits, kept):
        return [Visits.whole(visits.values.reshape(len(visits.values), *kept.below[0]), visits.image)], None


class Scaling(Rule):
    """A factor, a gate, an added constant: P goes to the one operand, summed over the axes that it was repeated on."""

    def back(self, visits, kept):
        return [summed_to(visits, kept.below[0], kept.above)], None


class GatedUnit(Scaling):
    """A product of two whole maps of which one, the gate, comes from an activation (gated linear units)."""

    def forward(self, execute, U):
        out = execute()
        if out.shape != U.shape:
            raise NotImplementedError(
                f"a product of maps {tuple(U.shape)} and {tuple(out.shape)}: which of them is the gate cannot be told"
            )
        return out, ()


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
        return execute(), ()


class FoldedNorm(Rule):
    """A batch norm that its convolution has already applied."""

    executes = False

    def forward(self, execute, U):
        return U, ()
