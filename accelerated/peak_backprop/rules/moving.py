"""Layers that move, copy or scale what they are given, and norms: P follows its element."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from ..visits import Visits
from .rule import Rule, State, summed_to, transposed


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
        below = transposed(self.apply, (len(visits.values), *state.shape), visits.values)
        return [Visits.whole(below, visits.image)], None


class Reshape(Selection):
    """Flatten, reshape, squeeze, unsqueeze: the elements keep their order within an image."""

    def __init__(self, source):
        super().__init__(source, lambda t: t)

    def back(self, visits, state):
        return [Visits.whole(visits.values.reshape(len(visits.values), *state.shape), visits.image)], None


class Scaling(Rule):
    """A factor, a gate, an added constant: P goes to the one operand, summed over the axes that it was repeated on."""

    def forward(self, execute, U):
        return execute(), State(shape=tuple(U.shape[1:]))

    def back(self, visits, state):
        return [summed_to(visits, state, state.shape)], None


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
