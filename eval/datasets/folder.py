"""A folder of pictures with a table of image-level labels: the format for your own data.

    pictures/labels.csv      header `file,labels` or `file,labels,difficult`, one line a picture
    pictures/classes.txt     optional: one class name a line, fixes the order of the classes
    pictures/instances.json  optional, evaluation only: instance masks in COCO's annotation format (RLE or polygons)

`file` is relative to the folder. Several labels are separated by `;` or, if the field holds no `;`, by spaces (so a
name with a space is written `traffic light;`). No label at all is a picture without any of the classes. `difficult`
lists classes that training should neither count as present nor as absent. Splits are subfolders of this very layout,
`train/` and `val/`.
"""

import csv
import json
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from prm import InputError

from .base import Sample, check_split, existing, read_picture


def looks_like(path: Path, split: str | None = None) -> bool:
    """Whether `path` (or its subfolder for `split`) holds a labels.csv."""
    if (path / "synthetic.json").is_file():
        return False
    return (path / "labels.csv").is_file() or (split is not None and (path / split / "labels.csv").is_file())


class FolderDataset:
    """Pictures and labels.csv; see the module's text for the layout.

    Arguments:
        path: the folder.
        split: None for the folder itself, or the name of the subfolder to read instead.
        class_names: the classes, in order, of a trained classifier; None takes classes.txt, or else the sorted names.

    Raises: `prm.InputError` for a table, class list, picture file or annotation that cannot be used.
    """

    def __init__(self, path, split: str | None = None, class_names: Sequence[str] | None = None):
        check_split(split)
        self.path = existing(path)
        if split is not None:
            whole = self.path
            self.path = self.path / split
            if not (self.path / "labels.csv").is_file():
                hint = "; for the folder itself say --split all" if (whole / "labels.csv").is_file() else ""
                raise InputError(f"{path}: has no split {split!r}; {self.path / 'labels.csv'} is missing{hint}")
        table = self.path / "labels.csv"
        rows = _read_table(table)
        if class_names is None:
            class_names = _read_classes(self.path / "classes.txt")
        if class_names is None:
            class_names = sorted({name for _, _, *names in rows for group in names for name in group})
            if not class_names:
                raise InputError(f"{table}: no picture has a label; add labels, or name the classes in classes.txt")
        self.class_names = tuple(class_names)
        self._rows = [self._resolve(table, *row) for row in rows]

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Sample:
        file, labels, difficult = self._rows[index]
        return Sample(
            name=file,
            labels=labels,
            difficult=difficult,
            read=lambda: read_picture(self.path / file),
            read_instances=lambda: self._read_instances(file),
        )

    def _resolve(self, table: Path, line: int, file: str, labels: list[str], difficult: list[str]):
        """One row with names replaced by class indices, after checking that its picture exists."""
        where = f"{table} line {line}"
        if not (self.path / file).is_file():
            raise InputError(f"{where}: picture {self.path / file} does not exist; correct the name or remove the line")
        for name in [*labels, *difficult]:
            if name not in self.class_names:
                raise InputError(f"{where}: unknown class {name!r}; known classes: {', '.join(self.class_names)}")
        both = set(labels) & set(difficult)
        if both:
            raise InputError(f"{where}: {min(both)!r} is in both 'labels' and 'difficult'; keep it in one of them")
        return file, *(tuple(sorted({self.class_names.index(n) for n in names})) for names in (labels, difficult))

    def _read_instances(self, file: str) -> tuple[np.ndarray, np.ndarray] | None:
        if self._annotations is None:
            return None
        if file not in self._annotations:
            raise InputError(f"{self.path / 'instances.json'}: no entry in 'images' for {file}; add it")
        return self._annotations[file](self.class_names)

    @cached_property
    def _annotations(self) -> dict | None:
        # Opened at the first request for a mask and not before: training works with the file absent.
        path = self.path / "instances.json"
        return _read_coco(path) if path.is_file() else None


def _read_table(path: Path) -> list[tuple[int, str, list[str], list[str]]]:
    """The rows of labels.csv as (line number, file, label names, difficult names)."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as stream:
            reader = csv.reader(stream)
            lines = [(reader.line_num, [field.strip() for field in row]) for row in reader]
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; write one with the header 'file,labels'") from None
    except (UnicodeDecodeError, csv.Error, OSError) as error:
        raise InputError(f"{path}: cannot be read as UTF-8 comma-separated text ({error})") from None
    lines = [(number, fields) for number, fields in lines if any(fields)]
    if not lines:
        raise InputError(f"{path}: is empty; write the header 'file,labels' and one line a picture")
    number, header = lines[0]
    if header not in (["file", "labels"], ["file", "labels", "difficult"]):
        raise InputError(f"{path} line {number}: header is {','.join(header)!r}; expected 'file,labels[,difficult]'")
    if len(lines) == 1:
        raise InputError(f"{path}: lists no picture; add one line a picture below the header")
    rows, seen = [], {}
    for number, fields in lines[1:]:
        # A line without the last comma is a picture without labels (or without difficult classes).
        if len(fields) > len(header) or not fields[0]:
            raise InputError(f"{path} line {number}: expected {','.join(header)!r}, found {','.join(fields)!r}")
        file, labels, difficult = [*fields, "", ""][:3]
        if file in seen:
            raise InputError(f"{path} line {number}: {file} is already listed on line {seen[file]}; keep one of them")
        seen[file] = number
        rows.append((number, file, _names(labels), _names(difficult)))
    return rows


def _names(field: str) -> list[str]:
    """The class names in one field: separated by `;`, or by white space if there is no `;`."""
    return [name.strip() for name in re.split(";" if ";" in field else r"\s+", field) if name.strip()]


def _read_classes(path: Path) -> list[str] | None:
    """The names in classes.txt, or None where there is no such file."""
    if not path.is_file():
        return None
    try:
        names = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (UnicodeDecodeError, OSError) as error:
        raise InputError(f"{path}: cannot be read as UTF-8 text ({error})") from None
    if not names:
        raise InputError(f"{path}: is empty; write one class name a line, or remove the file")
    twice = [name for i, name in enumerate(names) if name in names[:i]]
    if twice:
        raise InputError(f"{path}: class {twice[0]!r} is listed twice; keep one of them")
    return names


def _read_coco(path: Path) -> dict:
    """File name -> function(class_names) -> ((K, H, W) bool masks, (K,) int64 labels), from COCO annotations.

    Crowd regions (`iscrowd` = 1) cover an unknown number of objects and are left out.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        categories = {entry["id"]: entry["name"] for entry in content["categories"]}
        images = {entry["id"]: (entry["file_name"], entry["height"], entry["width"]) for entry in content["images"]}
        of_image: dict = {key: [] for key in images}
        for entry in content["annotations"]:
            if not entry.get("iscrowd", 0):
                of_image[entry["image_id"]].append((categories[entry["category_id"]], entry["segmentation"]))
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        detail = f"key {error} is missing or unknown" if isinstance(error, KeyError) else error
        raise InputError(f"{path}: not COCO instance annotations ({detail}); correct or remove the file") from None

    def reader(key):
        file, height, width = images[key]
        return lambda class_names: _decode(f"{path}: {file}", of_image[key], height, width, class_names)

    return {images[key][0]: reader(key) for key in images}


def _decode(where: str, entries: list, height: int, width: int, class_names: Sequence[str]):
    """(masks, labels) of one picture; `entries` are (category name, COCO segmentation)."""
    from pycocotools import mask as coco

    masks = np.zeros((len(entries), height, width), dtype=bool)
    labels = np.zeros(len(entries), dtype=np.int64)
    for k, (name, segmentation) in enumerate(entries):
        if name not in class_names:
            raise InputError(f"{where}: unknown class {name!r}; known classes: {', '.join(class_names)}")
        labels[k] = class_names.index(name)
        try:
            # Polygons (a list) and uncompressed runs (counts as a list) become compressed run-length codes first.
            if isinstance(segmentation, list) or isinstance(segmentation["counts"], list):
                segmentation = coco.frPyObjects(segmentation, height, width)
            if isinstance(segmentation, list):
                segmentation = coco.merge(segmentation)
            masks[k] = coco.decode(segmentation)
        except Exception as error:  # pycocotools raises bare Exception, TypeError and ValueError alike
            raise InputError(f"{where}: segmentation {k} cannot be decoded ({error}); correct it") from None
    return masks, labels
