"""PASCAL VOC (2007 to 2012), and SBD, which adds instance masks to VOC's pictures.

    VOCdevkit/VOC2012/JPEGImages/<name>.jpg                       the pictures
    VOCdevkit/VOC2012/Annotations/<name>.xml                      classes, boxes, "difficult" and "truncated"
    VOCdevkit/VOC2012/SegmentationObject|SegmentationClass/*.png  of some: palette pictures, 0 background, 255 void
    VOCdevkit/VOC2012/ImageSets/Main/<split>.txt                  "train", "val", "trainval", "test"
    VOCdevkit/VOC2012/ImageSets/Main/<class>_<split>.txt          labels again: 1, -1, 0 for nothing but difficult
    VOCdevkit/VOC2012/ImageSets/Segmentation/<split>.txt          "seg-train", "seg-val", "seg-trainval", "seg-test"

    benchmark_RELEASE/dataset/img/<name>.jpg                      SBD (Hariharan et al., ICCV 2011): the pictures
    benchmark_RELEASE/dataset/inst|cls/<name>.mat                 instances and classes of every pixel, no void
    benchmark_RELEASE/dataset/train.txt, val.txt                  not VOC's: some of "train" are in VOC 2012 val;
    benchmark_RELEASE/dataset/train_noval.txt                     a separate download from SBD's page, without those

Image-level labels are the object names in the XML file; a class whose objects are all difficult is difficult. Where
there is no XML they come from the class lists, or else from SegmentationClass. A picture of a test list with none of
these (VOC 2012 keeps its test annotations) has all classes difficult: nobody says what is in it.

"train_aug" is the set that most work on VOC 2012 segmentation trains on: seg-train and all of SBD, less seg-val, 10582
pictures. It is read from ImageSets/Segmentation/train_aug.txt (or trainaug.txt) or, where SBD lies beside or around
VOCdevkit, put together in the order of names; masks that VOC does not have then come from SBD.

A folder with JPEGImages and SegmentationObject but without lists is taken, too: its pictures are those with masks. If
labelling tools left a class_names.txt there, it says what the numbers in the masks mean.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from PIL import Image

from prm import InputError
from prm.files import reason

from .base import (
    BACKGROUND,
    VOID,
    Boxes,
    Instances,
    Sample,
    check_split,
    class_indices,
    existing,
    read_names,
    read_picture,
    refuse,
)

CLASS_NAMES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip

_PARTS = ("trainval", "train", "val", "test")


def looks_like(path: Path, split: str | None = None) -> bool:
    """Whether `path` is VOC<year>, or VOCdevkit or a folder around it."""
    return bool(_roots(path))


def looks_like_sbd(path: Path, split: str | None = None) -> bool:
    """Whether `path` is SBD's folder `dataset`, or one or two levels around it."""
    return _sbd_root(path) is not None


class VocDataset:
    """VOC of one year, in the order of the official lists; see the module's text for splits and labels.

    Boxes are the XML file's less 1 (it counts pixels from 1), not rounded and not cut at the border. Instance masks
    are None for pictures outside the segmentation sets. An object's class is that of most of its pixels. XML files are
    read when a picture is asked for, once a process.

    Arguments:
        path: VOCdevkit/VOC<year>, VOCdevkit or a folder around it, if it holds one year.
        split: one of the module's text, as far as the lists are there; None: Main's trainval, and its test where that
            has XML. Without Main the segmentation lists take its place; without any list, all pictures with masks.
        class_names: class names in the order of a trained classifier; all of the data set's must be among them.
        report: has no use here (nothing is read ahead); all loaders take it.

    Raises: `prm.InputError` for layouts and files that cannot be used, also later, when a sample is read.
    """

    def __init__(self, path, split: str | None = None, class_names: Sequence[str] | None = None, report=refuse):
        path = existing(path)
        roots = _roots(path)
        if len(roots) > 1:
            years = ", ".join(str(root) for root in roots)
            raise InputError(f"{path}: holds more than one year; name one of {years}")
        if not roots:
            raise InputError(f"{path}: no VOC<year> folder with JPEGImages here; name VOCdevkit/VOC2012, for one")
        self.path = roots[0]
        self._lists = _lists(self.path)
        own = CLASS_NAMES if self._lists else _tool_classes(self.path)
        self.class_names, self._codes = _renumbered(own, class_names, self.path)
        sbd = _sbd_beside(self.path)
        check_split(self.path, split, self._offered(sbd))
        self._sbd = sbd if split == "train_aug" else None  # other splits do not depend on what lies beside them
        self._names = self._names_of(split)
        self._annotations: dict[str, _Annotation | None] = {}
        if not self._names:
            raise InputError(f"{self.path}: no picture is listed or has masks; unpack the data set again")

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> Sample:
        labels, difficult = self._labels(self._names[index])
        return replace(self.unlabelled(index), labels=labels, difficult=difficult)

    def unlabelled(self, index: int) -> Sample:
        """The sample without its labels, for a picture whose annotation cannot be read."""
        name = self._names[index]
        return Sample(
            name=name,
            labels=(),
            read=lambda: read_picture(self.path / "JPEGImages" / f"{name}.jpg"),
            read_instances=lambda: self._instances(name),
            read_boxes=lambda: self._boxes(name),
        )

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_annotations": {}}

    def flaws(self, index: int) -> list[str]:
        """What is wrong although every file can be read: XML missing, a wrong size in it, objects of two classes."""
        name, found = self._names[index], []
        annotation, file = self._annotation(name), self._xml(name)
        if annotation is None and file.parent.is_dir() and name not in self._test:
            found.append(f"{file}: is missing; unpack the data set again")
        height, width = self.unlabelled(index).image.shape[:2]
        if annotation is not None and annotation.size not in (None, (height, width)):
            stated = "x".join(map(str, annotation.size))
            found.append(f"{file}: says {stated}, the picture is {height}x{width} (height x width); correct it")
        if self._mask_file(name).is_file():
            counts = _class_counts(*self._maps(name))
            for k in np.flatnonzero(np.count_nonzero(counts, axis=1) > 1):
                classes = " and ".join(str(c + 1) for c in np.flatnonzero(counts[k]))
                found.append(f"{self._mask_file(name)}: object {k} lies on classes {classes}; correct the masks")
        return found

    def _offered(self, sbd: Path | None) -> list[str]:
        complete = sbd is not None and {"seg-train", "seg-val"} <= set(self._lists)
        return [*self._lists, *(["train_aug"] if complete and "train_aug" not in self._lists else [])]

    def _names_of(self, split: str | None) -> list[str]:
        if split is None:
            return self._everything()
        if split != "train_aug":
            return _first_words(self._lists[split])
        if split in self._lists:  # copies of this list name files, or pairs of files
            return [Path(word).stem for word in _first_words(self._lists[split])]
        names = {*_first_words(self._lists["seg-train"])}
        names.update(*(_first_words(self._sbd / f"{part}.txt") for part in ("train", "val")))
        return sorted(names - {*_first_words(self._lists["seg-val"])})

    def _everything(self) -> list[str]:
        if not self._lists:
            return sorted(file.stem for file in (self.path / "SegmentationObject").glob("*.png"))
        names: dict[str, None] = {}
        kind = "" if any(part in self._lists for part in _PARTS) else "seg-"
        for part in _PARTS:
            listed = _first_words(self._lists[kind + part]) if kind + part in self._lists else []
            if part != "test" or (listed and self._xml(listed[0]).is_file()):
                names.update(dict.fromkeys(listed))
        return list(names)

    def _xml(self, name: str) -> Path:
        return self.path / "Annotations" / f"{name}.xml"

    def _mask_file(self, name: str) -> Path:
        return self.path / "SegmentationObject" / f"{name}.png"

    def _annotation(self, name: str) -> "_Annotation | None":
        if name not in self._annotations:
            file = self._xml(name)
            self._annotations[name] = _read_annotation(file) if file.is_file() else None
        return self._annotations[name]

    def _labels(self, name: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """(classes present, classes of which nobody says so), from the first of the sources that is there."""
        annotation, semantic = self._annotation(name), self.path / "SegmentationClass" / f"{name}.png"
        if annotation is not None:
            index = class_indices((o.name for o in annotation.objects), self.class_names, self._xml(name))
            sure = {index[entry.name] for entry in annotation.objects if not entry.difficult}
            doubtful = set(index.values()) - sure
        elif name in self._flags:
            index = {kind: self.class_names.index(kind) for kind in CLASS_NAMES}
            sure, doubtful = ({index[c] for c, flag in self._flags[name].items() if flag == f} for f in ("1", "0"))
        elif semantic.is_file():
            sure = {*np.unique(_coded(_read_map(semantic), self._codes, semantic)).tolist()} - {BACKGROUND, VOID}
            sure, doubtful = {code - 1 for code in sure}, set()
        elif name in self._test:
            sure, doubtful = set(), set(range(len(self.class_names)))
        else:
            lists = self.path / "ImageSets" / "Main" / "<class>_<split>.txt"
            raise InputError(f"{self._xml(name)}: is missing, and no {lists} has the picture; unpack the set again")
        return tuple(sorted(sure)), tuple(sorted(doubtful))

    @cached_property
    def _flags(self) -> dict[str, dict[str, str]]:
        """Picture -> class -> "1", "0" or "-1", of the class lists; opened only where an XML file is missing."""
        flags: dict[str, dict[str, str]] = {}
        for kind in CLASS_NAMES:
            for part in _PARTS:
                file = self.path / "ImageSets" / "Main" / f"{kind}_{part}.txt"
                for number, line in enumerate(read_names(file) if file.is_file() else (), 1):
                    words = line.split()
                    if len(words) != 2 or words[1] not in ("1", "0", "-1"):
                        raise InputError(f"{file} line {number}: expected a picture and 1, 0 or -1, found {line!r}")
                    flags.setdefault(words[0], {})[kind] = words[1]
        return flags

    @cached_property
    def _test(self) -> set[str]:
        """Pictures that need have no annotation."""
        lists = [self._lists[split] for split in ("test", "seg-test") if split in self._lists]
        return {name for file in lists for name in _first_words(file)}

    @cached_property
    def _segmented(self) -> set[str]:
        """Pictures that must have masks, if there are masks at all."""
        if not (self.path / "SegmentationObject").is_dir():
            return set()
        lists = [self._lists[f"seg-{part}"] for part in _PARTS[:3] if f"seg-{part}" in self._lists]
        return {name for file in lists for name in _first_words(file)}

    def _boxes(self, name: str) -> Boxes | None:
        annotation = self._annotation(name)
        if annotation is None:
            return None
        objects = annotation.objects
        index = class_indices((entry.name for entry in objects), self.class_names, self._xml(name))
        return Boxes(
            boxes=np.array([entry.box for entry in objects], dtype=np.float64).reshape(-1, 4),
            labels=np.array([index[entry.name] for entry in objects], dtype=np.int64),
            difficult=np.array([entry.difficult for entry in objects], dtype=bool),
            truncated=np.array([entry.truncated for entry in objects], dtype=bool),
        )

    def _instances(self, name: str) -> Instances | None:
        file = self._mask_file(name)
        if not file.is_file():
            if self._sbd is not None and (self._sbd / "inst" / f"{name}.mat").is_file():
                return _sbd_instances(self._sbd, name, self._codes)
            if name in self._segmented:
                raise InputError(f"{file}: is missing, but the segmentation lists name it; unpack the data set again")
            return None
        objects, classes = self._maps(name)
        semantic = _coded(classes, self._codes, file.parent.parent / "SegmentationClass" / file.name)
        counts = _class_counts(objects, classes)
        numbers = [k for k in np.unique(objects) if k not in (BACKGROUND, VOID)]
        for k in numbers:
            if not counts[k].any():
                raise InputError(f"{file}: object {k} has no class in SegmentationClass; correct one of the two")
        void = (objects == VOID) | (classes == VOID)
        return Instances(
            masks=(objects == np.array(numbers, dtype=np.uint8)[:, None, None]) & ~void,
            labels=self._codes[counts[numbers].argmax(axis=1) + 1].astype(np.int64) - 1,
            void=void,
            semantic=np.where(void, VOID, semantic).astype(np.int16),
        )

    def _maps(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """(H, W) uint8 numbers of objects and of classes."""
        file = self._mask_file(name)
        objects, classes = (_read_map(file.parent.parent / f"Segmentation{kind}" / file.name) for kind in _MAPS)
        if objects.shape != classes.shape:
            sizes = " but ".join(f"{h}x{w}" for h, w in (objects.shape, classes.shape))
            raise InputError(f"{file}: is {sizes} in SegmentationClass (height x width); correct one of the two")
        return objects, classes


class SbdDataset:
    """SBD: "train", "val", "train_noval" (where its list was added), None for train and val; all have masks.

    Arguments as those of `VocDataset`; `path` is the folder `dataset`, benchmark_RELEASE, or the folder around it.
    Raises: `prm.InputError` for layouts and files that cannot be used, also later, when a sample is read.
    """

    def __init__(self, path, split: str | None = None, class_names: Sequence[str] | None = None, report=refuse):
        path = existing(path)
        root = _sbd_root(path)
        if root is None:
            raise InputError(f"{path}: no SBD here; name the folder with img, cls, inst, train.txt and val.txt")
        self.path = root
        self.class_names, self._codes = _renumbered(CLASS_NAMES, class_names, self.path)
        lists = {part: self.path / f"{part}.txt" for part in ("train", "val", "train_noval")}
        check_split(self.path, split, [part for part, file in lists.items() if file.is_file()])
        parts = ("train", "val") if split is None else (split,)
        self._names = [name for part in parts for name in _first_words(lists[part])]
        self._labels: dict[str, tuple[int, ...]] = {}

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> Sample:
        name = self._names[index]
        if name not in self._labels:
            _, categories = _sbd_numbers(self.path, name)
            self._labels[name] = tuple(sorted({*(self._codes[categories].astype(int) - 1).tolist()}))
        return replace(self.unlabelled(index), labels=self._labels[name])

    def unlabelled(self, index: int) -> Sample:
        """The sample without its labels, for a picture whose annotation cannot be read."""
        name = self._names[index]
        return Sample(
            name=name,
            labels=(),
            read=lambda: read_picture(self.path / "img" / f"{name}.jpg"),
            read_instances=lambda: _sbd_instances(self.path, name, self._codes),
        )

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_labels": {}}


@dataclass(frozen=True)
class _Object:
    name: str
    box: tuple[float, float, float, float]
    """x0, y0, x1, y1, counted from 0."""
    difficult: bool
    truncated: bool


@dataclass(frozen=True)
class _Annotation:
    size: tuple[int, int] | None
    """(height, width) as stated."""
    objects: list[_Object]


_MAPS = ("Object", "Class")


def _roots(path: Path) -> list[Path]:
    """The VOC<year> folders that `path` may mean."""
    if not path.is_dir():
        return []
    if _is_root(path):
        return [path]
    found = {root for pattern in ("VOC????", "VOCdevkit/VOC????", "*/VOCdevkit/VOC????") for root in path.glob(pattern)}
    return sorted(filter(_is_root, found))


def _is_root(path: Path) -> bool:
    return (path / "JPEGImages").is_dir() and any(
        (path / part).is_dir() for part in ("ImageSets/Main", "ImageSets/Segmentation", "SegmentationObject")
    )


def _lists(root: Path) -> dict[str, Path]:
    """Split -> list of its pictures, for those that are there."""
    found = {part: root / "ImageSets" / "Main" / f"{part}.txt" for part in _PARTS}
    segmentation = root / "ImageSets" / "Segmentation"
    found |= {f"seg-{part}": segmentation / f"{part}.txt" for part in _PARTS}
    spellings = [segmentation / name for name in ("train_aug.txt", "trainaug.txt")]
    found["train_aug"] = next((file for file in spellings if file.is_file()), spellings[0])
    return {split: file for split, file in found.items() if file.is_file()}


def _first_words(file: Path) -> list[str]:
    """The first word of every line; lists of some years have a second column."""
    return [line.split()[0] for line in read_names(file)]


def _tool_classes(root: Path) -> tuple[str, ...]:
    """The classes by class_names.txt, in VOC's own spelling where the letters agree; without the file, VOC's."""
    file = root / "class_names.txt"
    if not file.is_file():
        return CLASS_NAMES
    spelling = {name: name for name in CLASS_NAMES}
    names = [spelling.get(re.sub("[^a-z]", "", name.lower()), name) for name in read_names(file)]
    return tuple(names[1:] if names and names[0].strip("_") == "background" else names)


def _renumbered(own: tuple[str, ...], class_names: Sequence[str] | None, where) -> tuple[tuple[str, ...], np.ndarray]:
    """(class names to use, (256,) int16 from the data set's class numbers to class index + 1; -1: no such class)."""
    class_names = own if class_names is None else tuple(class_names)
    index = class_indices(own, class_names, where)
    codes = np.full(256, -1, dtype=np.int16)
    codes[[BACKGROUND, VOID]] = BACKGROUND, VOID
    codes[1 : len(own) + 1] = [index[name] + 1 for name in own]
    return class_names, codes


def _coded(classes: np.ndarray, codes: np.ndarray, file: Path) -> np.ndarray:
    """A map of class numbers through the table of `_renumbered`."""
    coded = codes[classes]
    if (coded < 0).any():
        raise InputError(f"{file}: has the unknown class number {classes[coded < 0][0]}; correct the masks")
    return coded


def _read_annotation(file: Path) -> _Annotation:
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
        objects.append(_Object(name, tuple(corners), *flags))
    return _Annotation(size, objects)


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


def _read_map(file: Path) -> np.ndarray:
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


def _class_counts(objects: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """(256, 254) pixels of each object number on each class number from 1 on; void and background left out."""
    pairs = objects.astype(np.int64) * 256 + classes
    counts = np.bincount(pairs.ravel(), minlength=256 * 256).reshape(256, 256)[:, 1:VOID].copy()
    counts[[BACKGROUND, VOID]] = 0
    return counts


def _sbd_root(path: Path) -> Path | None:
    """The folder `dataset` of SBD that `path` may mean."""
    for root in (path, path / "dataset", path / "benchmark_RELEASE" / "dataset"):
        if (root / "inst").is_dir() and (root / "img").is_dir() and (root / "train.txt").is_file():
            return root
    return None


def _sbd_beside(root: Path) -> Path | None:
    """SBD in VOC<year>, in VOCdevkit or beside it, there also in a folder named SBD or sbd."""
    for around in (root, root.parent, root.parent.parent):
        for place in (around, around / "SBD", around / "sbd"):
            found = _sbd_root(place)
            if found is not None:
                return found
    return None


def _sbd_numbers(root: Path, name: str, kind: str = "inst") -> tuple[np.ndarray, np.ndarray]:
    """((H, W) numbers of the pixels, class numbers of the instances, or present) of inst/ or cls/<name>.mat."""
    from scipy.io import loadmat

    file = root / kind / f"{name}.mat"
    struct, field = ("GTinst", "Categories") if kind == "inst" else ("GTcls", "CategoriesPresent")
    try:
        with open(file, "rb") as stream:
            content = loadmat(stream)[struct]
        pixels, categories = (np.asarray(content[key][0, 0]) for key in ("Segmentation", field))
        categories = categories.astype(np.int64).ravel()
        if pixels.ndim != 2:
            raise ValueError("Segmentation is not an array of two dimensions")
        if ((categories < 1) | (categories > len(CLASS_NAMES))).any():
            raise ValueError("a class number is not between 1 and 20")
        if pixels.max(initial=0) > (len(categories) if kind == "inst" else len(CLASS_NAMES)):
            raise ValueError("Segmentation has pixels of no known class")
        return pixels, categories
    except FileNotFoundError:
        raise InputError(f"{file}: is missing; unpack the data set again") from None
    except Exception as error:  # the reader of MATLAB files trips over damage in many ways
        raise InputError(f"{file}: not a {struct} of SBD ({reason(error)}); unpack the data set again") from None


def _sbd_instances(root: Path, name: str, codes: np.ndarray) -> Instances:
    pixels, categories = _sbd_numbers(root, name)
    classes, _ = _sbd_numbers(root, name, "cls")
    return Instances(
        masks=pixels == np.arange(1, len(categories) + 1)[:, None, None],
        labels=codes[categories].astype(np.int64) - 1,
        semantic=codes[classes],
    )
