"""What every rule has: which inputs P goes to, what to keep of the forward pass, and how P goes back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from ..prepared import Kept, Prepared
from ..shared import Shared
from ..visits import Visits


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

    def forward(self, execute: Callable[[], Any], *U: Tensor) -> tuple[Any, tuple[Tensor, ...]]:
        """The call's value and the tensors to keep for the walk back, from the parents' values U.

        `execute` is the model's code. A rule stays as it was made: what a forward pass learns is the pass's own.
        """
        return execute(), ()

    def back(self, visits: Visits, kept: Kept) -> tuple[list[Visits], Tensor | None]:
        """Visits of each parent, and the mass (K,) that leaked, or None if this layer passes everything on."""
        return [visits], None


def mass(parts) -> Tensor:
    """Sum (K,) of each peak's visits, float64."""
    return sum(P.flatten(1).sum(dim=1, dtype=torch.float64) for P in parts)


def summed_to(visits: Visits, shape: tuple[int, ...], repeated: tuple[int, ...]) -> Visits:
    """Visits of an operand of `shape` that was repeated to another; windows only where it was not."""
    if shape == repeated:
        return visits
    whole = visits.on_whole(repeated)
    return Visits.whole(whole.values.sum_to_size(len(whole.values), *shape), whole.image)


def handed_on(visits: Visits, out: Shared, source: Shared) -> Visits:
    """The visits with the factor `out` become `source`, the other factors multiplied in; P itself if they lack it."""
    if out not in visits.factors:
        return visits.dense()
    others = tuple(f for f in visits.factors if f is not out)
    return visits.with_(visits.times(others), (source,), visits.fresh or bool(others))


def shifted(U: Tensor, prepared: Prepared) -> Tensor:
    """U_hat of a layer's input, all images."""
    least = prepared.least(U)
    return U - U.new_tensor(least).reshape(-1, *[1] * (U.dim() - 1)) if any(least) else U


def transposed(linear: Callable[[Tensor], Tensor], shape: tuple[int, ...], y: Tensor) -> Tensor:
    """The transpose of a linear function of a tensor of `shape`, applied to y."""
    with torch.enable_grad():
        x = y.new_zeros(shape, requires_grad=True)
        return torch.autograd.grad(linear(x), x, y)[0]
