"""Pictures to instances in three lines of Python: a network by name, proposals made on the way."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import overload

import numpy as np
from PIL import Image

from prm import InputError
from prm.accelerated import Proposals, Segmentation
from prm.accelerated import Segmenter as Algorithm1
from prm.accelerated.pretrained import open_model
from prm.accelerated.students.checkpoint import load_student, student_page
from prm.accelerated.students.segmenter import StudentSegmenter, wants_proposals
from prm.settings import AnswerSettings

from .pictures.decoding import composed, to_rgb
from .pictures.images import read_image
from .proposals import proposals_for, rated

Picture = np.ndarray | Image.Image | str | Path


class Segmenter:
    """Algorithm 1 with generated proposals, or a student, which needs none: `prm.Segmenter`.

    from prm import Segmenter
    segmenter = Segmenter.from_pretrained("efficientnet_lite0")
    answer = segmenter(picture)

    Parameters
    ----------
    algorithm : takes pictures and proposals; a student takes None for those where nothing is refined
    limit : most proposals generated for a picture
    """

    def __init__(self, algorithm: Algorithm1 | StudentSegmenter, limit: int = 1000):
        self.algorithm, self.limit = algorithm, limit

    @classmethod
    def from_pretrained(
        cls, name: str | Path | None = None, *, classes: Sequence[str] | None = None,
        weights: str | Path | None = None, device: str = "cpu", limit: int = 1000, **settings,
    ) -> Segmenter:  # fmt: skip
        """Of a network by its name, or of what `prm train` or `prm student train` wrote; None is the nuclei student.

        name, weights, classes : as for `prm.accelerated.pretrained.open_model`; a student has its own weights
        settings : single settings of Algorithm 1, see `prm.settings.SegmentationSettings`; of a student those of
            `prm.settings.AnswerSettings`

        Raises InputError as `open_model` does, and for a setting that there is not or cannot be.
        """
        if weights is None and (page := student_page(name or "nuclei")) is not None:
            found = load_student(page)
            try:
                answers = AnswerSettings(**settings)
            except TypeError as error:
                raise InputError(f"{name or 'nuclei'}: a student has no such setting ({error})") from None
            return cls(StudentSegmenter(found.model().to(device), found.class_names, answers, classes), limit)
        algorithm = Algorithm1.from_checkpoint(open_model(name, weights, classes), device, **settings)
        return cls(algorithm, limit)

    @property
    def class_names(self) -> tuple[str, ...]:
        """What an instance's `label` counts."""
        return self.algorithm.classes.names

    @overload
    def __call__(self, pictures: Picture, proposals: Proposals | None = None) -> Segmentation: ...

    @overload
    def __call__(
        self, pictures: list[Picture] | tuple[Picture, ...], proposals: Sequence[Proposals] | None = None
    ) -> list[Segmentation]: ...

    def __call__(self, pictures, proposals=None):
        """The answer for one picture, or a list of answers for a list of pictures.

        pictures : (H, W, 3) or (H, W) uint8 arrays, PIL's images as their pixels lie, or files, which are read upright
        proposals : those of each picture at its own size; None generates them. Without an objectness they get the
            generator's where the choice needs one

        Raises InputError for what is no picture, and for proposals of another size.
        """
        if isinstance(pictures, np.ndarray | Image.Image | str | Path):
            return self([pictures], None if proposals is None else [proposals])[0]
        arrays = [_array(picture) for picture in pictures]
        if not wants_proposals(self.algorithm):
            proposals = [None] * len(arrays)
        elif proposals is None:
            proposals = [proposals_for(array, None, self.limit) for array in arrays]
        elif isinstance(self.algorithm, StudentSegmenter) or self.algorithm.settings.choice == "fit":
            proposals = [one if one.objectness is not None else rated(array, one)
                         for array, one in zip(arrays, proposals, strict=True)]  # fmt: skip
        return self.algorithm(arrays, proposals)


def _array(picture: Picture) -> np.ndarray:
    """(H, W, 3) uint8."""
    if isinstance(picture, str | Path):
        return read_image(picture)
    if isinstance(picture, Image.Image):
        return to_rgb(picture)
    if not isinstance(picture, np.ndarray) or picture.dtype != np.uint8 or picture.ndim not in (2, 3):
        what = f"{picture.dtype} {picture.shape}" if isinstance(picture, np.ndarray) else type(picture).__name__
        raise InputError(f"a picture must be a (H, W, 3) or (H, W) array of uint8, an image or a file, not {what}")
    if picture.ndim == 2:
        return composed([picture])
    if picture.shape[2] != 3:
        raise InputError(f"a picture must have 3 channels, not {picture.shape[2]}; take picture[:, :, :3]")
    return picture
