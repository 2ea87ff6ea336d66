"""The students by name, each imported when it is asked for: torchvision's detection takes a second."""

from __future__ import annotations

from .base import Student

STUDENTS = ("mask_rcnn", "cells")


def student(name: str, num_classes: int, **options) -> Student:
    """The student called `name` with random weights. Raises ValueError for any other name, TypeError and InputError for
    options that it does not have or that cannot be."""
    if name == "mask_rcnn":
        from .mask_rcnn import MaskRCNN

        return MaskRCNN(num_classes, **options)
    if name == "cells":
        from .cells import Cells

        return Cells(num_classes, **options)
    raise ValueError(f"unknown student {name!r}; known: {', '.join(STUDENTS)}")
