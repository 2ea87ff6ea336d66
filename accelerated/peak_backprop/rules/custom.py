"""Rules of the user's, for modules that have none."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..shared import rows
from ..visits import Visits
from .rule import Rule, mass


class Registered(Rule):
    """A rule of the user's, for a module at `path`; checked, since whatever it returns would look like an answer."""

    local = factored = False

    def __init__(self, sources, function: Callable, module: nn.Module, path: str):
        super().__init__(*sources)
        self.function, self.module, self.path = function, module, path

    def _wrong(self, what: str) -> str:
        return f"the rule registered for {type(self.module).__name__} at {self.path!r} {what}"

    def forward(self, execute, *U):
        before = [u._version for u in U if not u.is_inference()]
        out = execute()
        if before != [u._version for u in U if not u.is_inference()]:
            raise ValueError(self._wrong("cannot be used: the module overwrites its input"))
        if not isinstance(out, Tensor) or out.shape[:1] != U[0].shape[:1]:
            raise ValueError(self._wrong("cannot be used: the module must return one tensor with a row for each image"))
        return out, U

    def back(self, visits, kept):
        P = visits.values
        U = [rows(u, visits.image).expand(len(P), *u.shape[1:]) for u in kept.tensors]
        entered = mass((P,))
        below = self.function(self.module, P, *U)
        below = tuple(below) if isinstance(below, (tuple, list)) else (below,)
        if len(below) != len(U):
            raise ValueError(self._wrong(f"must return {len(U)} tensors, one for each input, not {len(below)}"))
        for part, u in zip(below, U):
            if not isinstance(part, Tensor) or part.shape != u.shape:
                found = tuple(part.shape) if isinstance(part, Tensor) else type(part).__name__
                wanted = tuple(u.shape)
                raise ValueError(self._wrong(f"must return a tensor of its input's shape {wanted}, not {found}"))
            if not bool((part >= 0).all()):
                raise ValueError(self._wrong("returned visits that are negative or not a number"))
        left = mass(below)
        rounding = torch.finfo(P.dtype).eps ** 0.5
        if bool((left > entered * (1 + rounding)).any()):
            k = int((left - entered).argmax())
            raise ValueError(self._wrong(f"made mass grow, from {float(entered[k]):.6g} to {float(left[k]):.6g}"))
        leaked = (entered - left).clamp(min=0)
        return [Visits.whole(part.to(P.dtype), visits.image) for part in below], leaked


REGISTERED: dict[type[nn.Module], Callable] = {}


def register_rule(*types: type[nn.Module]) -> Callable[[Callable], Callable]:
    """Decorator: the function below it is the rule of these types of module and of their subclasses.

    It is called as f(module, P, *U) and returns P(U):

    module : the module, in evaluation mode
    P : (K, ...) visits of the module's output, one row a peak; float32, float64 or bfloat16, the dtype of U
    U : values of the module's inputs that depend on the image, (K, ...) each, in the order of its arguments
    P(U) : a tensor of U's shape, or a tuple with one for each of several inputs; >= 0, and together no more than P.
        What of P they do not hold is counted as leaked. Linear in P, or the `bound` of truncated PRMs does not hold.

    The module is then run as it is and not looked into. Register before PeakBackprop and fully_convolutional see the
    model. A registered rule comes before a built-in one, and a second one for the same type replaces the first. Raises
    TypeError for what is no type of module. During the walk a ValueError names the module whose rule returns something
    of another shape, negative visits, or more mass than came in.
    """
    for t in types:
        if not (isinstance(t, type) and issubclass(t, nn.Module)):
            raise TypeError(f"register_rule takes types of nn.Module, not {t!r}")
    if not types:
        raise TypeError("register_rule needs the type of module that the rule is for")

    def keep(function: Callable) -> Callable:
        REGISTERED.update(dict.fromkeys(types, function))
        return function

    return keep


def registered(module: nn.Module) -> Callable | None:
    """The rule registered for the module's type or the nearest of its base types, or None."""
    return next((REGISTERED[t] for t in type(module).__mro__ if t in REGISTERED), None)
