"""What every rule has: which inputs P goes to, what to keep of the forward pass, and how P goes back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from ..prepared import SharedMaps
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

    def forward(self, execute: Callable[[], Any], *U: Tensor) -> tuple[Any, State]:
        """The call's value and what the walk back needs, from the parents' values U; `execute` is the model's code."""
        return execute(), State()

    def back(self, visits: Visits, state: State) -> tuple[list[Visits], Tensor | None]:
        """Visits of each parent, and the mass (K,) that leaked, or None if this layer passes everything on."""
        return [visits], None


@dataclass
class State:
    """What a rule kept: tensors whose first axis is the image, and shapes; `lazy` is filled when first walked."""

    values: tuple[Tensor, ...] = ()
    shape: tuple[int, ...] = ()
    lazy: dict = field(default_factory=dict)
    out: tuple[int, ...] = ()
    """Shape of the call's value, without the image axis."""
    value: Tensor | None = None
    """The call's value, where P may come with it as a factor."""
    maps: SharedMaps | None = None
    """The shared maps of this forward pass."""


def mass(parts) -> Tensor:
    """Sum (K,) of each peak's visits, float64."""
    return sum(P.flatten(1).sum(dim=1, dtype=torch.float64) for P in parts)


def summed_to(visits: Visits, state: State, shape: tuple[int, ...]) -> Visits:
    """Visits of an operand of `shape` that was repeated to the output's shape; windows only where it was not."""
    if shape == state.out:
        return visits
    whole = visits.on_whole(state.out)
    return Visits.whole(whole.values.sum_to_size(len(whole.values), *shape), whole.image)


def handed_on(visits: Visits, out: Shared, source: Shared) -> Visits:
    """The visits with the factor `out` become `source`, the other factors multiplied in; P itself if they lack it."""
    if out not in visits.factors:
        return visits.dense()
    others = tuple(f for f in visits.factors if f is not out)
    return visits.with_(visits.times(others), (source,), visits.fresh or bool(others))


def shifted(state: State) -> Tensor:
    """U_hat of the layer's input, all images."""
    (U,) = state.values
    least = state.maps.least(U)
    return U - U.new_tensor(least).reshape(-1, *[1] * (U.dim() - 1)) if any(least) else U


def transposed(linear: Callable[[Tensor], Tensor], shape: tuple[int, ...], y: Tensor) -> Tensor:
    """The transpose of a linear function of a tensor of `shape`, applied to y."""
    with torch.enable_grad():
        x = y.new_zeros(shape, requires_grad=True)
        return torch.autograd.grad(linear(x), x, y)[0]
