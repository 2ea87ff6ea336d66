"""A trained student in a segmenter's place: pictures to instances, without peaks, with proposals only to refine."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from prm import InputError
from prm.settings import AnswerSettings

from ..classes import Classes
from ..pseudo_labels import refine
from ..retrieval import Proposals
from ..segmenter import Instance, Segmentation
from .base import Found, Student


class StudentSegmenter:
    """Answers as `prm.accelerated.Segmenter` does; an instance's score is its confidence, and it has no PRM.

    student : in evaluation mode; class_names : one each
    words : names of the classes that answers are kept of; None: all
    """

    def __init__(
        self, student: Student, class_names: Sequence[str], settings: AnswerSettings | None = None,
        words: Sequence[str] | None = None,
    ):  # fmt: skip
        self.student, self.settings = student, settings or AnswerSettings()
        if unknown := [word for word in words or () if word not in class_names]:
            raise InputError(f"the student knows no class {unknown[0]!r}; it knows {', '.join(class_names)}")
        self.classes = Classes(tuple(words or class_names))
        self._place = np.array([self.classes.names.index(n) if n in self.classes.names else -1 for n in class_names])

    def find(self, image: np.ndarray, proposals: Proposals | None = None) -> Found:
        """The instances of a picture (H, W, 3) uint8 by falling score; proposals, with objectness, are to refine."""
        found = self.student.answer(image)
        labels = self._place[found.labels]
        kept = np.flatnonzero((labels >= 0) & (found.scores >= (self.settings.min_score or 0.0)))
        masks = found.masks.select(torch.from_numpy(kept))
        if self.settings.refine:
            if proposals is None:
                raise InputError("to refine masks needs proposals")
            masks = refine(masks, proposals, self.settings.refine_minimum)
        return Found(masks, labels[kept], found.scores[kept])

    def __call__(self, images: Sequence[np.ndarray], proposals: Sequence[Proposals | None]) -> list[Segmentation]:
        """Segment pictures (H, W, 3) uint8, each with its own proposals, or None where nothing is refined."""
        return [self._segmentation(image, own) for image, own in zip(images, proposals, strict=True)]

    def _segmentation(self, image: np.ndarray, proposals: Proposals | None) -> Segmentation:
        started = time.perf_counter()
        found = self.find(image, proposals)
        instances = [
            Instance(int(label), found.masks.select([k]), float(score), float(score), middle(found.masks, k),
                     torch.zeros(0, 0), -1, (0.0, 0.0, 0.0), self.classes.names[label])
            for k, (label, score) in enumerate(zip(found.labels, found.scores))
        ]  # fmt: skip
        size, count = (image.shape[0], image.shape[1]), len(self.classes.names)
        seconds = {"student": time.perf_counter() - started}
        maps, scores = torch.zeros(count, 0, 0), torch.zeros(count)
        return Segmentation(size, maps, scores, instances, seconds=seconds)


def wants_proposals(segmenter: Any) -> bool:
    """Whether a segmenter needs proposals: a student answers without, unless its masks are refined."""
    return not isinstance(segmenter, StudentSegmenter) or segmenter.settings.refine


def middle(masks: Proposals, k: int) -> tuple[float, float]:
    """(row, column) of the middle one of a mask's pixels, row-major."""
    runs = slice(int(masks.offsets[k]), int(masks.offsets[k + 1]))
    starts, lengths = masks.starts[runs], masks.ends[runs] - masks.starts[runs]
    total = lengths.cumsum(0)
    wanted = int(total[-1]) // 2
    at = int(torch.searchsorted(total, wanted, right=True))
    row, column = divmod(int(starts[at]) + wanted - int(total[at] - lengths[at]), masks.width)
    return float(row), float(column)
