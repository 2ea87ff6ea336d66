"""A data set's classes as a network names them, where it knows only some."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from .base import VOID, Boxes, Instances, Sample


class OfClasses:
    """A dataset with the classes `class_names` alone, in this order; everything of other classes is left out of its
    labels, instances and boxes, and is background in its semantic maps. All pictures stay."""

    def __init__(self, dataset, class_names: Sequence[str]):
        self.dataset, self.class_names = dataset, tuple(class_names)
        # Index in the data set -> index here; -1 for what is left out. VOID stays.
        self._index = np.array([self._place(name) for name in dataset.class_names], np.int64)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Sample:
        one = self.dataset[index]
        labels, difficult = (
            tuple(sorted(self._of(np.array(some, np.int64))[0].tolist())) for some in (one.labels, one.difficult)
        )
        return replace(one, labels=labels, difficult=difficult, read_instances=lambda: self._instances(one),
                       read_boxes=lambda: self._boxes(one))  # fmt: skip

    def _place(self, name: str) -> int:
        return self.class_names.index(name) if name in self.class_names else -1

    def _of(self, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Labels here, and (K,) bool which of the labels these are."""
        found = self._index[labels] if len(labels) else labels
        return found[found >= 0], found >= 0

    def _instances(self, one: Sample) -> Instances | None:
        if one.masks is None:
            return None
        labels, kept = self._of(one.mask_labels)
        semantic, crowd = one.semantic, one.crowd
        if semantic is not None:
            table = np.concatenate([[0], self._index + 1])
            semantic = np.where(semantic == VOID, VOID, table[np.where(semantic == VOID, 0, semantic)])
        if crowd is not None:
            crowd_labels, crowd_kept = self._of(crowd[1])
            crowd = crowd[0][crowd_kept], crowd_labels
        areas = None if one.areas is None else one.areas[kept]
        return Instances(one.masks[kept], labels, areas, one.void, semantic, crowd)

    def _boxes(self, one: Sample) -> Boxes | None:
        if one.boxes is None:
            return None
        labels, kept = self._of(one.box_labels)
        truncated = None if one.box_truncated is None else one.box_truncated[kept]
        return Boxes(one.boxes[kept], labels, one.box_difficult[kept], truncated)
