"""Instances that anybody predicted, from files, judged as a network's are: COCO's results, or label images.

    answers/                        what `prm segment` wrote: its instances.json is read
    results.json, or a folder of    COCO's results: image_id or file_name, segmentation, score, and category_id or the
                                    name of the category as "category"
    labels/NAME.png, .tif           label images: every number above 0 is an instance. Their classes and scores are in
                                    an instances.csv there, or in the folder around, with the columns picture, label,
                                    class and score; without one the data set must have a single class, and all scores
                                    are 1

A picture is found by its file name, or by COCO's image_id. One of which nothing is said has no instances.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePath

import numpy as np

from prm import InputError
from prm.accelerated import Proposals
from prm.files import reason

from ..proposals.formats.coco_json import CocoResults
from ..proposals.formats.entries import stem, tails
from ..proposals.formats.png import read_label_image
from .evaluators import figures_of, instances, pictures
from .picture import of_predictions
from .short import short_view

SUFFIXES = (".png", ".tif", ".tiff")
Read = Callable[[str, tuple[int, int]], "tuple[Proposals, list[str], np.ndarray] | None"]
"""(a picture's name, its (H, W)) to masks, class names and scores (K,); None where nothing is said of it."""


def judge_predictions(
    samples: Sequence, class_names: Sequence[str], path: Path, categories: Mapping[int, str],
    tick: Callable[[], None] = lambda: None,
) -> tuple[dict, Counter]:
    """(the figures of `short.short_view`, how many instances of each unknown class were left out).

    categories: names of classes by `category_id`, for results that do not say them. Raises InputError for files that
    cannot be read, masks of another size than their picture, and where nothing is said of any picture of the data set.
    """
    read = _reader(path, categories, class_names)
    records, unknown, named = [], Counter(), 0
    for k in range(len(samples)):
        sample = samples[k]
        size = sample.image.shape[:2]
        found = read(sample.name, size)
        named += found is not None
        masks, names, scores = found or (Proposals.empty(*size), [], np.zeros(0))
        known = [k for k, name in enumerate(names) if name in class_names]
        unknown.update(name for name in names if name not in class_names)
        labels = np.array([class_names.index(names[k]) for k in known], np.int64)
        records.append(of_predictions(sample, len(class_names), (masks.select(known), labels, scores[known])))
        tick()
    if not named:
        raise InputError(f"{path}: says nothing of the data set's {len(samples)} pictures, such as {samples[0].name}")
    return short_view(figures_of(records, class_names, 0, (pictures, instances))), unknown


def _reader(path: Path, categories: Mapping[int, str], class_names: Sequence[str]) -> Read:
    if not path.exists():
        raise InputError(f"{path}: no such file or folder of predictions")
    if path.is_file():
        return _Results([path], categories)
    if (path / "instances.json").is_file():
        return _Results([path / "instances.json"], categories)
    files = sorted(path.glob("*.json"))
    if files:
        return _Results(files, categories)
    return _LabelImages(path, class_names)


class _Results:
    """COCO's results, in one file or several."""

    def __init__(self, files: Sequence[Path], categories: Mapping[int, str]):
        self.results, self.categories = CocoResults(files), categories

    def __call__(self, name, size):
        if not self.results.holds(name):
            return None
        masks, scores, entries = self.results.instances(name, size)
        if scores is None:
            raise InputError(f"{self.results.files[0]}: its entries have no score; results have one each")
        return masks, [self._class_of(entry) for entry in entries], scores

    def _class_of(self, entry: dict) -> str:
        named = entry.get("category")
        return named if isinstance(named, str) else self.categories.get(entry.get("category_id"), "no name")


class _LabelImages:
    """A label image a picture, and perhaps a table of what the labels are."""

    def __init__(self, path: Path, class_names: Sequence[str]):
        self.files = {file.stem: file for file in sorted(path.iterdir()) if file.suffix.lower() in SUFFIXES}
        if not self.files:
            raise InputError(f"{path}: holds neither COCO results (.json) nor label images ({', '.join(SUFFIXES)})")
        tables = (folder / "instances.csv" for folder in (path, path.parent))
        table = next((file for file in tables if file.is_file()), None)
        self.rows = None if table is None else _table(table)
        if table is None and len(class_names) > 1:
            raise InputError(
                f"{path}: label images say no class, and the data set has {len(class_names)}; put an instances.csv "
                "with picture,label,class,score beside them, or give COCO results"
            )
        self.table, self.only = table, class_names[0]

    def __call__(self, name, size):
        file = self.files.get(PurePath(stem(name)).name)
        if file is None:
            return None
        masks, numbers = read_label_image(file, size)
        if self.rows is None:
            return masks, [self.only] * len(numbers), np.ones(len(numbers))
        rows = next((self.rows[key] for key in tails(name) if key in self.rows), {})
        missing = [number for number in numbers if number not in rows]
        if missing:
            raise InputError(f"{self.table}: has no row for label {missing[0]} of {file}")
        told = [rows[number] for number in numbers]
        return masks, [named for named, _ in told], np.array([score for _, score in told], np.float64)


def _table(path: Path) -> dict[str, dict[int, tuple[str, float]]]:
    """Of each picture, by every `tails` of its name: label -> (class, score)."""
    found: dict[str, dict[int, tuple[str, float]]] = {}
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            for row in csv.DictReader(file):
                for key in tails(row["picture"]):
                    found.setdefault(key, {})[int(row["label"])] = row["class"], float(row["score"])
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        raise InputError(f"{path}: no table of picture, label, class and score ({reason(error)})") from error
    return found
