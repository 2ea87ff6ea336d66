"""The files of VOC's that its loader and SBD's read: lists of pictures, class numbers, XML, palette pictures."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from PIL import Image

from prm import InputError
from prm.files import reason

from ..base import BACKGROUND, VOID, class_indices, read_names

CLASS_NAMES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip


@dataclass(frozen=True)
class AnnotatedObject:
    """What an XML file says of one object."""

    name: str
    box: tuple[float, float, float, float]
    """x0, y0, x1, y1, counted from 0."""
    difficult: bool
    truncated: bool


@dataclass(frozen=True)
class Annotation:
    """What an XML file says of a picture."""

    size: tuple[int, int] | None
    """(height, width) as stated."""
    objects: list[AnnotatedObject]


def first_words(file: Path) -> list[str]:
    """The first word of every line; lists of some years have a second column."""
    return [line.split()[0] for line in read_names(file)]


def renumbered(own: tuple[str, ...], class_names: Sequence[str] | None, where) -> tuple[tuple[str, ...], np.ndarray]:
    """(class names to use, (256,) int16 from the data set's class numbers to class index + 1; -1: no such class)."""
    class_names = own if class_names is None else tuple(class_names)
    index = class_indices(own, class_names, where)
    codes = np.full(256, -1, dtype=np.int16)
    codes[[BACKGROUND, VOID]] = BACKGROUND, VOID
    codes[1 : len(own) + 1] = [index[name] + 1 for name in own]
    return class_names, codes


def coded_classes(classes: np.ndarray, codes: np.ndarray, file: Path) -> np.ndarray:
    """A map of class numbers through the table of `renumbered`."""
    coded = codes[classes]
    if (coded < 0).any():
        raise InputError(f"{file}: has the unknown class number {classes[coded < 0][0]}; correct the masks")
    return coded


def read_annotation(file: Path) -> Annotation:
    """An XML file of VOC's."""
    try:
        tree = ElementTree.fromstring(file.read_bytes())
    except (ElementTree.ParseError, ValueError, OSError) as error:
        raise InputError(f"{file}: cannot be read as XML ({reason(error)}); unpack the data set again") from None
    size = tree.find("size")
    if size is not None:
        size = tuple(int(_number(size, tag, file, "size")) for tag in ("height", "width"))
    objects = []
    for k, entry in enumerate(tree.findall("object"), 1):  # parts of objects lie deeper and are not found
        name, box = (entry.findtext("name") or "").strip(), entry.find("bndbox")
        if not name or box is None:
            raise InputError(f"{file}: object {k} has no {'bndbox' if name else 'name'}; add it or remove the object")
        corners = (_number(box, tag, file, f"object {k}") - 1 for tag in ("xmin", "ymin", "xmax", "ymax"))
        flags = (bool(_number(entry, tag, file, f"object {k}", 0)) for tag in ("difficult", "truncated"))
        objects.append(AnnotatedObject(name, tuple(corners), *flags))
    return Annotation(size, objects)


def _number(parent: ElementTree.Element, tag: str, file: Path, where: str, default: float | None = None) -> float:
    """The number in a child element; without `default` the element has to be there."""
    text = parent.findtext(tag)
    if text is None and default is not None:
        return default
    try:
        value = float(text)
        if math.isfinite(value):
            return value
    except (TypeError, ValueError):
        pass
    raise InputError(f"{file}: {where} has {tag} {text!r}, which is not a number; correct it") from None


def read_map(file: Path) -> np.ndarray:
    """(H, W) uint8 numbers of a palette (or grey) picture."""
    try:
        with Image.open(file) as picture:
            if picture.mode not in ("P", "L"):
                raise InputError(f"{file}: is {picture.mode}, not a picture with a palette; unpack the masks again")
            return np.array(picture)
    except FileNotFoundError:
        raise InputError(f"{file}: is missing; unpack the data set again") from None
    except (OSError, SyntaxError, ValueError) as error:
        raise InputError(f"{file}: mask cannot be read ({reason(error)}); unpack the data set again") from None


def class_counts(objects: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """(256, 254) pixels of each object number on each class number from 1 on; void and background left out."""
    pairs = objects.astype(np.int64) * 256 + classes
    counts = np.bincount(pairs.ravel(), minlength=256 * 256).reshape(256, 256)[:, 1:VOID].copy()
    counts[[BACKGROUND, VOID]] = 0
    return counts
