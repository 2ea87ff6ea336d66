"""What every student is: a network that learns masks and classes, and answers with instances."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn

from ..retrieval import Proposals

Example = tuple[Tensor, dict[str, Tensor]]
"""A picture as one step of training sees it, and what is to be learnt of it."""


@dataclass(frozen=True, eq=False)
class Found:
    """A student's answer for one picture, by falling score.

    masks : d of them at the picture's size; labels : (d,) int64 class indices; scores : (d,) float64 in [0, 1]
    """

    masks: Proposals
    labels: np.ndarray
    scores: np.ndarray


class Student(nn.Module, ABC):
    """A network for `num_classes` classes, made by `num_classes` and keyword options that JSON can hold."""

    num_classes: int

    def prepare(self, image: np.ndarray, masks: np.ndarray, labels: np.ndarray) -> Any:
        """What `example` needs of a labelled picture, and what is kept between epochs where the labels stay the same.

        image : (H, W, 3) uint8; masks : (a, H, W) bool; labels : (a,) int64 class indices
        """
        return image, masks, labels

    @abstractmethod
    def example(self, prepared: Any, draw: np.random.Generator) -> Example:
        """One augmented example of what `prepare` made. All that is random comes from `draw`."""

    @abstractmethod
    def losses(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        """The terms of the loss of a batch, in training mode, on the parameters' device; their sum is the loss."""

    @abstractmethod
    def answer(self, image: np.ndarray) -> Found:
        """The instances of a picture (H, W, 3) uint8, in evaluation mode."""

    @abstractmethod
    def groups(self, lr: float, weight_decay: float) -> list[dict[str, Any]]:
        """The trained parameters as an optimiser's groups, each with its own lr and weight_decay."""
