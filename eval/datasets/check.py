"""Is a data set whole? Reads everything that its lists name and gathers all that is wrong.

Looked for, in every format: pictures, annotations and masks that are missing or cannot be decoded, sizes that do not
agree, unknown classes, masks without a pixel or of a class that the picture's labels do not have, boxes outside of the
picture, names listed twice; and what a format adds by its own `flaws(index)`.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from prm import InputError

from . import open_dataset
from .base import Sample, existing


@dataclass
class Check:
    """What `check_dataset` found."""

    problems: list[str] = field(default_factory=list)
    """One line each: file, what is wrong, what to do; in the order of the data set."""
    counts: Counter = field(default_factory=Counter)
    """Of "pictures", "pictures with masks", "instances", "crowds", "boxes", "difficult boxes"."""
    labels: Counter = field(default_factory=Counter)
    """Class name -> pictures that have it as a label."""
    difficult: Counter = field(default_factory=Counter)
    """Class name -> pictures in which it is difficult."""

    def summary(self) -> list[str]:
        """Lines of text: the counts, then one line a class that occurs."""
        counts = ", ".join(f"{self.counts[what]} {what}" for what in _COUNTED)
        names = [name for name in self.labels if self.labels[name] or self.difficult[name]]
        width = max(map(len, names), default=0)
        rows = [f"{name:{width}}  {self.labels[name]:6d} pictures" for name in names]
        more = [f", difficult in {self.difficult[name]} more" if self.difficult[name] else "" for name in names]
        return [counts, *(row + end for row, end in zip(rows, more)), f"{len(self.problems)} problems"]


_COUNTED = ("pictures", "pictures with masks", "instances", "crowds", "boxes", "difficult boxes")


def check_dataset(
    path,
    split: str | None = None,
    format: str | None = None,
    tick: Callable[[int, int], None] = lambda done, total: None,
) -> Check:
    """Opens the data set at `path` and reads all of it; arguments as those of `open_dataset`.

    tick: called with (pictures done, pictures in all) after every picture.
    Time: every picture and mask is decoded, one at a time; memory: those of one picture.

    Raises: `prm.InputError` if there is nothing at `path`. All else is a line of `problems`; a data set that cannot be
    opened at all has one line and no pictures.
    """
    path, result = existing(path), Check()
    problems: dict[str, None] = {}  # a file that many pictures share is one problem

    def note(problem) -> None:
        problems.setdefault(str(problem))

    try:
        dataset = open_dataset(path, split, format, report=note)
    except InputError as error:
        note(error)
        dataset = ()
    else:
        result.labels.update(dict.fromkeys(dataset.class_names, 0))
    seen: set[str] = set()
    for index in range(len(dataset)):
        _check_sample(dataset, index, seen, note, result)
        tick(index + 1, len(dataset))
    result.problems = list(problems)
    return result


def _check_sample(dataset, index: int, seen: set[str], note, result: Check) -> None:
    """One picture: counts into `result`, problems to `note`."""

    def attempt(read: Callable):
        try:
            return read()
        except InputError as error:
            note(error)
            return None

    result.counts["pictures"] += 1
    sample = attempt(lambda: dataset[index])
    if sample is None:  # its labels cannot be known; its other files are looked at nevertheless
        sample = dataset.unlabelled(index)
    else:
        result.labels.update(dataset.class_names[c] for c in sample.labels)
        result.difficult.update(dataset.class_names[c] for c in sample.difficult)
        if attempt(lambda: sample.masks) is not None:
            _check_masks(sample, dataset.class_names, note)
    if sample.name in seen:
        note(f"{sample.name}: is listed twice; keep one of the lines")
    seen.add(sample.name)
    image = attempt(lambda: sample.image)
    if attempt(lambda: sample.masks) is not None:
        crowds = 0 if sample.crowd is None else len(sample.crowd[0])
        result.counts.update({"pictures with masks": 1, "instances": len(sample.masks), "crowds": crowds})
    if attempt(lambda: sample.boxes) is not None:
        result.counts.update({"boxes": len(sample.boxes), "difficult boxes": int(sample.box_difficult.sum())})
        if image is not None:
            _check_boxes(sample, dataset.class_names, note)
    if image is not None and hasattr(dataset, "flaws"):
        for problem in attempt(lambda: dataset.flaws(index)) or ():
            note(problem)


def _check_masks(sample: Sample, class_names, note) -> None:
    for k in np.flatnonzero(~sample.masks.any(axis=(1, 2))):
        note(f"{sample.name}: instance {k + 1} ({class_names[sample.mask_labels[k]]}) has no pixel; remove it")
    for label in sorted({*sample.mask_labels.tolist()} - {*sample.labels, *sample.difficult}):
        note(f"{sample.name}: has a mask of {class_names[label]} but not that label; correct one of the two")


def _check_boxes(sample: Sample, class_names, note) -> None:
    height, width = sample.image.shape[:2]
    for k, (x0, y0, x1, y1) in enumerate(sample.boxes):
        # Half a pixel is the width of a pixel's own border: boxes with fractions may end on it.
        if not (-0.5 <= x0 <= x1 <= width - 0.5 and -0.5 <= y0 <= y1 <= height - 0.5):
            box = f"box {k + 1} ({class_names[sample.box_labels[k]]}: columns {x0:g} to {x1:g}, rows {y0:g} to {y1:g})"
            note(f"{sample.name}: {box} is empty or reaches out of the {height}x{width} picture; correct it")
