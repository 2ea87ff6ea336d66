"""COCO: instance annotations in JSON, as of the 2014 and 2017 sets or as any labelling tool exports them.

    coco/annotations/instances_train2017.json    or instances_minival2014.json, ...: one file a split
    coco/train2017/000000000009.jpg              or coco/images/train2017/..., or train2014/COCO_train2014_0....jpg
    mine/labels.json                             a file of this format by itself: its pictures lie beside it, in
                                                 images/, or in a folder of the file's name less "instances_"

Image-level labels are the categories of a picture's instances. A category that shows only as a crowd (`iscrowd`) is
difficult. Classes are ordered by ascending category id.

COCO's coordinates are continuous: pixel i reaches from i to i + 1, and a `bbox` (x, y, w, h) covers x to x + w. Here
boxes have inclusive ends in whole pixels' positions, so it becomes x0 = x, x1 = x + w - 1 (w pixels, from x on; never
less than one pixel), and the same for y. Nothing is rounded.

Pictures are read upright, as their EXIF orientation says; masks and boxes may be those of the pixels as stored. The
`height` and `width` of a picture that lies on its side tell which, and what is of the stored pixels is turned as they
are. Where they cannot tell (a square picture, or one upside down) it is as with the first picture of the file that
tells, because one tool made them all; where none tells, upright.

`AnnotationFile` is also what reads the instances.json of a `folder` dataset.
"""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from prm import InputError
from prm.files import reason

from ..pictures.decoding import MAX_PIXELS
from ..pictures.orientation import stored, turned, turned_boxes
from .base import Boxes, Instances, Sample, check_split, class_indices, existing, read_picture, refuse, tight_boxes

_FILE = re.compile(r"instances_(?P<split>.+?)(?P<year>\d{4})?\.json")


def looks_like(path: Path, split: str | None = None) -> bool:
    """Whether `path` is a .json file or holds annotations/instances_*.json."""
    return path.suffix.lower() == ".json" if path.is_file() else any(path.glob("annotations/instances_*.json"))


class CocoDataset:
    """Pictures of one annotation file, in its order, or of all those of a folder; see the module's text.

    Arguments:
        path: the folder that holds `annotations`, or one .json file.
        split: for a folder, the part of the file name between "instances_" and the year, as "train", "val" or
            "minival", with the year where there are several ("val2014"). None: all files in the order of their names,
            each picture once. A .json file has no splits.
        class_names: class names in the order of a trained classifier; None takes those of the files.
        report: what to do with a bad entry of an annotation file; by default it is raised.

    Raises: `prm.InputError` for files that are not there or not in this format, and classes the classifier lacks.
    """

    def __init__(self, path, split: str | None = None, class_names: Sequence[str] | None = None, report=refuse):
        self.path = existing(path)
        self._parts = [AnnotationFile(*found, report) for found in _annotation_files(self.path, split)]
        # The first file that lists a picture describes it: minival's pictures, for one, are also val's.
        described = {name: part for part in reversed(range(len(self._parts))) for name in self._parts[part].images}
        self._files = [
            (name, part) for part, file in enumerate(self._parts) for name in file.images if described[name] == part
        ]  # fmt: skip
        if not self._files:
            raise InputError(f"{self.path}: lists no picture; 'images' is empty")
        if class_names is None:
            class_names = self._parts[0].class_names
        self.class_names = tuple(class_names)
        for file in self._parts:
            class_indices(file.used, self.class_names, file.path)

    @property
    def categories(self) -> dict[int, str]:
        """Names of the classes by the ids of the files."""
        return {key: name for file in self._parts for key, name in file.categories.items()}

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Sample:
        name, part = self._files[index]
        file = self._parts[part]
        labels, difficult = file.labels(name, self.class_names)
        return Sample(
            name=name,
            labels=labels,
            difficult=difficult,
            read=lambda: read_picture(file.picture(name)),
            read_instances=lambda: file.instances(name, self.class_names),
            read_boxes=lambda: file.boxes(name, self.class_names),
        )

    def flaws(self, index: int) -> list[str]:
        """Where a picture's size is not as stated; for a file with masks `Sample` itself says so."""
        name, part = self._files[index]
        file = self._parts[part]
        stated, found = file.images[name], read_picture(file.picture(name)).shape[:2]
        if file.has_masks or stated == (found[::-1] if file.turn(name) >= 5 else found):
            return []
        sizes = " but the picture is ".join(f"{h}x{w}" for h, w in (stated, found))
        return [f"{file.path}: {name} is {sizes}; correct the entry (height x width)"]


@dataclass(frozen=True)
class _Entry:
    """One annotation."""

    id: object
    category: str
    crowd: bool
    segmentation: list | dict | None
    box: tuple[float, ...] | None
    area: float | None


class AnnotationFile:
    """COCO instance annotations, read once and kept by picture.

    path: the .json file. folders: where its pictures may lie. report: what to do with an entry that cannot be used; by
    default it is raised.
    Raises: `prm.InputError` where the file as a whole is not of this format.
    """

    def __init__(self, path: Path, folders: Sequence[Path], report: Callable[[InputError], None] = refuse):
        self.path, self._folders = path, folders
        self._headers: dict[str, tuple[int, tuple[int, int]]] = {}
        try:
            content = json.loads(path.read_bytes())
            categories = {entry["id"]: entry["name"] for entry in content["categories"]}
            listed = {entry["id"]: _size(entry) for entry in content["images"]}
            annotations = content["annotations"]
            self.categories: dict[int, str] = categories
            self.class_names = tuple(categories[key] for key in sorted(categories))
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError, OSError) as error:
            raise _unusable(path, error) from None
        if len(set(self.class_names)) < len(self.class_names):
            raise InputError(f"{path}: two entries of 'categories' have the same name; rename one of them")
        self.images: dict[str, tuple[int, int]] = {}
        self._entries: dict[str, list[_Entry]] = {}
        for name, *size in listed.values():
            if name in self.images:
                report(InputError(f"{path}: {name} is listed twice in 'images'; keep one of the entries"))
            self.images[name] = tuple(size)
            self._entries[name] = []
        for entry in annotations:
            try:
                self._entries[listed[entry["image_id"]][0]].append(_entry(entry, categories))
            except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
                report(_unusable(path, error, entry))
        self.used = sorted({entry.category for entries in self._entries.values() for entry in entries})
        """Names of the categories that annotations have."""
        # A file of boxes alone has no masks to offer; where there is nothing at all, "no instance" is an answer.
        self.has_masks = not annotations or any(e.segmentation for es in self._entries.values() for e in es)

    def named(self, name: str) -> tuple[list[str], list[str]]:
        """(names of the categories of the instances of picture `name`, of those that show only in crowds), sorted."""
        entries = self._entries[name]
        present = {entry.category for entry in entries if not entry.crowd}
        return sorted(present), sorted({entry.category for entry in entries} - present)

    def labels(self, name: str, class_names: Sequence[str]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """(class indices of the instances of picture `name`, of what shows only in crowds), both ascending."""
        index = [class_indices(names, class_names, f"{self.path}: {name}") for names in self.named(name)]
        return tuple(sorted(index[0].values())), tuple(sorted(index[1].values()))

    def instances(self, name: str, class_names: Sequence[str]) -> Instances | None:
        """The instances and crowds of picture `name`, upright; None where the file describes boxes alone."""
        if not self.has_masks:
            return None
        entries = self._entries[name]
        index = class_indices((entry.category for entry in entries), class_names, f"{self.path}: {name}")
        masks = np.zeros((len(entries), *self.images[name]), dtype=bool)
        for k in range(len(entries)):
            masks[k] = self._mask(name, k)
        masks = turned(masks, self.turn(name))
        labels = np.array([index[entry.category] for entry in entries], dtype=np.int64)
        crowd = np.array([entry.crowd for entry in entries], dtype=bool)
        areas = [entry.area for entry in entries if not entry.crowd]
        return Instances(
            masks=masks[~crowd],
            labels=labels[~crowd],
            areas=None if None in areas else np.array(areas, dtype=np.float64),
            crowd=(masks[crowd], labels[crowd]),
        )

    def boxes(self, name: str, class_names: Sequence[str]) -> Boxes:
        """The boxes of picture `name`, upright, as the annotations follow; where `bbox` is missing, the mask's."""
        entries = self._entries[name]
        index = class_indices((entry.category for entry in entries), class_names, f"{self.path}: {name}")
        found = []
        for k, entry in enumerate(entries):
            if entry.box is not None:
                x, y, width, height = entry.box
                found.append((x, y, x + max(width - 1, 0), y + max(height - 1, 0), k))
            elif (mask := self._mask(name, k)).any():
                found.append((*tight_boxes(mask[None])[0], k))
        rows = np.array(found, dtype=np.float64).reshape(-1, 5)
        kept = [entries[int(k)] for k in rows[:, 4]]
        return Boxes(
            boxes=turned_boxes(rows[:, :4], self.turn(name), self.images[name]),
            labels=np.array([index[entry.category] for entry in kept], dtype=np.int64),
            difficult=np.array([entry.crowd for entry in kept], dtype=bool),
        )

    def picture(self, name: str) -> Path:
        """The picture's file."""
        for folder in self._folders:
            if (folder / name).is_file():
                return folder / name
        looked = ", ".join(dict.fromkeys(str(folder) for folder in self._folders))
        raise InputError(f"{self.path}: picture {name} is in none of {looked}; put it there or remove its entry")

    def turn(self, name: str) -> int:
        """The EXIF orientation by which masks and boxes of picture `name` are turned; 1 where they are upright already.

        A picture that is not there or cannot be read counts as upright: whoever reads it is told.
        """
        orientation, size = self._stored(name)
        if orientation == 1:
            return 1
        stated, upright = self.images[name], size[::-1] if orientation >= 5 else size
        if orientation >= 5 and stated not in (size, upright):
            sizes = "{}x{}, but the picture is {}x{} as stored and {}x{} upright".format(*stated, *size, *upright)
            what = f"{name} is {sizes} (EXIF orientation {orientation})"
            raise InputError(f"{self.path}: {what}; correct the entry (height x width)")
        as_stored = stated == size if size != upright else self._as_stored
        return orientation if as_stored else 1

    @cached_property
    def _as_stored(self) -> bool:
        """Whether the first picture whose size tells has masks of its pixels as stored."""
        for name, stated in self.images.items():
            orientation, size = self._stored(name)
            if orientation >= 5 and size[0] != size[1] and stated in (size, size[::-1]):
                return stated == size
        return False

    def _stored(self, name: str) -> tuple[int, tuple[int, int]]:
        """Looked at once a picture: masks and boxes both ask, and of a PNG the whole file has to be decoded."""
        if name not in self._headers:
            try:
                self._headers[name] = stored(self.picture(name)) or (1, self.images[name])
            except InputError:
                self._headers[name] = 1, self.images[name]
        return self._headers[name]

    def _mask(self, name: str, k: int) -> np.ndarray:
        """(H, W) bool mask of annotation `k` of picture `name`, of the size that the file states."""
        # Imported late: labels and boxes need no pycocotools.
        from pycocotools import mask as coco

        from ..pictures.coco_masks import encoded

        entry = self._entries[name][k]
        try:
            return coco.decode(encoded(entry.segmentation, self.images[name])).astype(bool)
        except ValueError as error:
            correct = "it" if entry.id is None else f"annotation {entry.id}"
            detail = f"segmentation {k} cannot be decoded ({reason(error)}); correct {correct}"
            raise InputError(f"{self.path}: {name}: {detail}") from None


def _size(entry: dict) -> tuple[str, int, int]:
    """(file name, height, width) of an entry of "images"."""
    name, height, width = entry["file_name"], int(entry["height"]), int(entry["width"])
    if not isinstance(name, str) or height < 1 or width < 1 or height * width > MAX_PIXELS:
        raise ValueError(f"'images' lists {name!r} as {height}x{width}, which no picture is")
    return name, height, width


def _entry(entry: dict, categories: dict) -> _Entry:
    box, area, segmentation = entry.get("bbox"), entry.get("area"), entry.get("segmentation") or None
    if isinstance(segmentation, list):
        # A quarter of the memory of lists: the official training set has millions of corners.
        segmentation = [np.array(polygon, dtype=np.float64) for polygon in segmentation]
    if box is not None and len(box) != 4:
        raise ValueError(f"'bbox' has {len(box)} numbers, not 4")
    box = None if box is None else tuple(map(float, box))
    area = None if area is None else float(area)
    if not np.isfinite([*(box or ()), area or 0.0]).all():
        raise ValueError("'bbox' or 'area' is not finite")
    return _Entry(
        id=entry.get("id"),
        category=categories[entry["category_id"]],
        crowd=bool(entry.get("iscrowd", 0)),
        segmentation=segmentation,
        box=box,
        area=area,
    )


def _unusable(path: Path, error: Exception, entry=None) -> InputError:
    detail = f"key {error} is missing or unknown" if isinstance(error, KeyError) else reason(error)
    what = f" in annotation {entry.get('id')}" if isinstance(entry, dict) else ""
    return InputError(f"{path}: not COCO instance annotations ({detail}{what}); correct or remove the file")


def _annotation_files(path: Path, split: str | None) -> list[tuple[Path, list[Path]]]:
    """The annotation files of a split, each with the folders its pictures may lie in."""
    if path.is_file():
        check_split(path, split, ())
        stem = path.stem.removeprefix("instances_")
        # The last two serve a file named out of the annotations folder of the official layout.
        around = path.parent.parent
        places = [path.parent, path.parent / "images", path.parent / stem, around / stem, around / "images" / stem]
        return [(path, places)]
    found = {}
    for file in sorted(path.glob("annotations/instances_*.json")):
        match = _FILE.fullmatch(file.name)
        years = [match["year"]] if match["year"] else []
        # Parts that others cut out of the official ones, as minival2014, have their pictures where those have them.
        stems = [match["split"] + "".join(years), *(f"{official}{year}" for year in years for official in _OFFICIAL)]
        found[file] = match, [path / top / stem for stem in stems for top in ("", "images")] + [path / "images", path]
    if not found:
        raise InputError(f"{path}: has no annotations/instances_<split><year>.json; check the path to the dataset")
    names: dict[str, list[Path]] = {}  # "val" -> files, and "val2014" -> the one
    for file, (match, _) in found.items():
        for name in dict.fromkeys((match["split"], match["split"] + (match["year"] or ""))):
            names.setdefault(name, []).append(file)
    if split is None:
        years = {match["year"] for match, _ in found.values()}
        if len(years) > 1:
            listed = ", ".join(file.name for file in found)
            raise InputError(f"{path}: has several years ({listed}); choose one of its splits, as '{max(names)}'")
        return [(file, places) for file, (_, places) in found.items()]
    check_split(path, split, sorted(names))
    if len(names[split]) > 1:
        longer = " or ".join(repr(found[f][0]["split"] + (found[f][0]["year"] or "")) for f in names[split])
        raise InputError(f"{path}: has split {split!r} of several years; choose {longer}")
    return [(file, found[file][1]) for file in names[split]]


_OFFICIAL = ("val", "train")
