"""What all peaks of a batch share: what one forward pass learned, and the memory that it lies in."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

import torch
from torch import Tensor

from .shared import Shared, empty


class Workspace:
    """Memory of a CPU that the computed maps of one forward pass leave for those of the next: touching new memory takes
    the system longer than it takes to write the map."""

    def __init__(self):
        self._free: list[Tensor] = []
        self._lock = Lock()

    def take(self, like: Tensor, count: int) -> Tensor:
        """Memory for `count` numbers of the type of `like`, uninitialised, (>= count,)."""
        with self._lock:
            fits = [t for t in self._free if t.dtype == like.dtype and count <= len(t) <= 2 * count]
            if not fits:
                return like.new_empty(count)
            best = min(fits, key=len)
            self._free = [t for t in self._free if t is not best]
            return best

    def give(self, memory: list[Tensor]) -> None:
        """Keep what a forward pass had, and no more: what an earlier one had and this one did not need is let go."""
        with self._lock:
            self._free = memory


class Prepared:
    """What the tensors of one forward pass are to the walks back: their minima, and the maps that P is multiplied by.

    One object for each tensor and use: equal factors are the same object.
    """

    def __init__(self, workspace: Workspace):
        self._kept: dict[tuple[int, str], tuple[Tensor, Any]] = {}
        self._workspace = workspace
        self._memory: list[Tensor] = []

    def __del__(self):
        self._workspace.give(self._memory)

    def empty(self, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """An uninitialised map of `shape` (N, C, H, W), laid out as `like` is, until the pass is forgotten."""
        # Elsewhere a stream may still use what the host has forgotten: torch keeps that memory, and knows streams.
        if like.device.type != "cpu":
            return empty(shape, like)
        self._memory.append(self._workspace.take(like, math.prod(shape)))
        return empty(shape, like, self._memory[-1])

    def _once(self, U: Tensor, use: str, make: Callable[[], Any]) -> Any:
        if (id(U), use) not in self._kept:
            self._kept[id(U), use] = U, make()  # with the tensor, so that its id is not given to another
        return self._kept[id(U), use][1]

    def survey(self, tensors: Iterable[Tensor]) -> None:
        """`least` of many tensors, for which the host waits once."""
        different = list({id(U): U for U in tensors}.values())
        if different:
            for U, least in zip(different, torch.stack([self._lowest(U) for U in different]).tolist()):
                self._kept.setdefault((id(U), "least"), (U, least))

    def _lowest(self, U: Tensor) -> Tensor:
        """`least`, (N,), where U is."""
        # Not flatten(1), which copies maps whose channels lie last.
        return self._once(U, "lowest", lambda: U.amin(dim=tuple(range(1, U.dim()))).clamp(max=0))

    def least(self, U: Tensor) -> list[float]:
        """min(0, min U) of each image."""
        return self._once(U, "least", lambda: self._lowest(U).tolist())

    def most(self, U: Tensor) -> Tensor:
        """max U_hat of each image, (N,)."""
        return self._once(U, "most", lambda: U.amax(dim=tuple(range(1, U.dim()))) - self._lowest(U))

    def plain(self, U: Tensor) -> Shared:
        """The tensor itself."""
        return self._once(U, "plain", lambda: Shared(U))

    def hat(self, U: Tensor) -> Shared:
        """U_hat = U - min(0, min U), the minimum over each image: U itself wherever a ReLU came before."""
        if not any(self.least(U)):
            return self.plain(U)
        least = self._lowest(U).reshape(-1, *[1] * (U.dim() - 1))
        return self._once(U, "hat", lambda: Shared(U, lambda values, some: values - least[some]))

    def positive(self, U: Tensor) -> Shared:
        """max(U, 0)."""
        if not any(self.least(U)):
            return self.plain(U)
        return self._once(U, "positive", lambda: Shared(U, lambda values, _: values.clamp(min=0)))

    def negative(self, U: Tensor) -> Shared:
        """min(U, 0)."""
        return self._once(U, "negative", lambda: Shared(U, lambda values, _: values.clamp(max=0)))


@dataclass(frozen=True)
class Kept:
    """What a forward pass leaves of one call for the walks back through it.

    tensors : what the call's rule keeps, the image axis first: the values of its parents, then others
    below : shapes of the parents' values, without the image axis
    above : shape of the call's value, likewise
    prepared : what all calls of the pass share
    """

    tensors: tuple[Tensor, ...]
    below: tuple[tuple[int, ...], ...]
    above: tuple[int, ...]
    prepared: Prepared
    _made: dict[Hashable, Any] = field(default_factory=dict)

    def once(self, use: Hashable, make: Callable[[], Any]) -> Any:
        """What `make` gives: made when a walk first needs it, and the same for all peaks."""
        if use not in self._made:
            self._made[use] = make()
        return self._made[use]
