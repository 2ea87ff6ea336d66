"""What a user calls a class: one of the network's classes or a group of them, which may exclude each other.

A network of ImageNet tells 118 breeds of dog apart, and was trained by a softmax. The oracle is `reference/classes.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Classes:
    """The classes of an answer.

    names : one each
    members : of each, the indices of the network's classes that it stands for, rising; none is the network's classes
        themselves
    exclusive : whether the network's classes exclude each other: a class's probability is then the softmax over all of
        them, at the class's strongest peak, summed over its members; else the sigmoid of its score
    """

    names: tuple[str, ...]
    members: tuple[tuple[int, ...], ...] | None = None
    exclusive: bool = False

    @classmethod
    def from_json(cls, names: Sequence[str], page: dict[str, Any]) -> Classes:
        """The classes of a checkpoint with these `class_names` and this `classes`. KeyError, TypeError, ValueError for
        what is none."""
        groups, exclusive = page.get("groups"), bool(page.get("exclusive", False))
        if groups is None:
            return cls(tuple(names), None, exclusive)
        members = tuple(tuple(sorted(int(k) for k in found)) for found in groups.values())
        if not members or any(not found or found[0] < 0 or found[-1] >= len(names) for found in members):
            raise ValueError(f"groups of classes must name some of {len(names)} classes, not {groups}")
        return cls(tuple(groups), members, exclusive)

    def maps(self, maps: Tensor) -> Tensor:
        """(N, G, h, w) class response maps: at every position a class's strongest member; maps (N, C, h, w)."""
        if self.members is None:
            return maps
        # One gather of all members, then a maximum over each class's.
        indices = torch.tensor([k for found in self.members for k in found], device=maps.device)
        grouped = maps.new_full((maps.shape[0], len(self.members), *maps.shape[2:]), float("-inf"))
        owners = self._owners(maps.device)[None, :, None, None].expand(len(maps), -1, *maps.shape[2:])
        return grouped.scatter_reduce(1, owners, maps[:, indices], "amax")

    def scores(self, responses: Tensor) -> Tensor:
        """(N, G) log odds of each class where the network's classes exclude each other.

        responses: (N, G, C) of all of the network's classes at each class's strongest peak. Sums in float64.
        """
        values = responses.double()
        inside = self._inside(values.shape[2]).to(values.device)
        own, others = (values.masked_fill(~part, float("-inf")).logsumexp(2) for part in (inside, ~inside))
        return (own - others).to(responses.dtype)

    def presence(self, maps: Tensor) -> Tensor:
        """(N, G) of exclusive classes: the softmax of their mean response over a picture, as the network was trained;
        of a group its largest; of others 1. maps (N, C, h, w)."""
        if not self.exclusive:
            return maps.new_ones(len(maps), maps.shape[1] if self.members is None else len(self.members))
        shares = maps.mean(dim=(2, 3), keepdim=True).softmax(dim=1)
        return self.maps(shares)[:, :, 0, 0]

    def starts(self, responses: Tensor, labels: Tensor) -> Tensor:
        """(K,) the network's class that the walk from each peak starts at: the member of the peak's class that responds
        most there, the first of equal ones. responses (K, C) of the network's classes; labels (K,)."""
        assert self.members is not None
        most = max(map(len, self.members))
        # Shorter rows repeat their first member, which is found first anyway.
        table = torch.tensor([[*found, *[found[0]] * (most - len(found))] for found in self.members],
                             device=labels.device)[labels]  # fmt: skip
        return table.gather(1, responses.gather(1, table).argmax(dim=1, keepdim=True))[:, 0]

    def _inside(self, count: int) -> Tensor:
        """(G, C) bool: which of the network's `count` classes each class stands for."""
        if self.members is None:
            return torch.eye(count, dtype=torch.bool)
        inside = torch.zeros(len(self.members), count, dtype=torch.bool)
        for row, found in zip(inside, self.members):
            row[list(found)] = True
        return inside

    def _owners(self, device: torch.device) -> Tensor:
        """The class of each member, in the order of `members`."""
        assert self.members is not None
        return torch.tensor([g for g, found in enumerate(self.members) for _ in found], device=device)
