"""VOC of one year; the room's text tells its layout, its splits and where labels come from."""

import re
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np

from prm import InputError

from ..base import (
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
from . import sbd
from .files import (
    CLASS_NAMES,
    Annotation,
    class_counts,
    coded_classes,
    first_words,
    read_annotation,
    read_map,
    renumbered,
)

_PARTS = ("trainval", "train", "val", "test")


def looks_like(path: Path, split: str | None = None) -> bool:
    """Whether `path` is VOC<year>, or VOCdevkit or a folder around it."""
    return bool(_roots(path))


class VocDataset:
    """VOC of one year, in the order of the official lists; see the room's text for splits and labels.

    Boxes are the XML file's less 1 (it counts pixels from 1), not rounded and not cut at the border. Instance masks
    are None for pictures outside the segmentation sets. An object's class is that of most of its pixels. XML files are
    read when a picture is asked for, once a process.

    Arguments:
        path: VOCdevkit/VOC<year>, VOCdevkit or a folder around it, if it holds one year.
        split: one of the room's text, as far as the lists are there; None: Main's trainval, and its test where that
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
        self.class_names, self._codes = renumbered(own, class_names, self.path)
        beside = sbd.find_beside(self.path)
        check_split(self.path, split, self._offered(beside))
        self._sbd = beside if split == "train_aug" else None  # other splits do not depend on what lies beside them
        self._names = self._names_of(split)
        self._annotations: dict[str, Annotation | None] = {}
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
            counts = class_counts(*self._maps(name))
            for k in np.flatnonzero(np.count_nonzero(counts, axis=1) > 1):
                classes = " and ".join(str(c + 1) for c in np.flatnonzero(counts[k]))
                found.append(f"{self._mask_file(name)}: object {k} lies on classes {classes}; correct the masks")
        return found

    def _offered(self, beside: Path | None) -> list[str]:
        complete = beside is not None and {"seg-train", "seg-val"} <= set(self._lists)
        return [*self._lists, *(["train_aug"] if complete and "train_aug" not in self._lists else [])]

    def _names_of(self, split: str | None) -> list[str]:
        if split is None:
            return self._everything()
        if split != "train_aug":
            return first_words(self._lists[split])
        if split in self._lists:  # copies of this list name files, or pairs of files
            return [Path(word).stem for word in first_words(self._lists[split])]
        names = {*first_words(self._lists["seg-train"])}
        names.update(*(first_words(self._sbd / f"{part}.txt") for part in ("train", "val")))
        return sorted(names - {*first_words(self._lists["seg-val"])})

    def _everything(self) -> list[str]:
        if not self._lists:
            return sorted(file.stem for file in (self.path / "SegmentationObject").glob("*.png"))
        names: dict[str, None] = {}
        kind = "" if any(part in self._lists for part in _PARTS) else "seg-"
        for part in _PARTS:
            listed = first_words(self._lists[kind + part]) if kind + part in self._lists else []
            if part != "test" or (listed and self._xml(listed[0]).is_file()):
                names.update(dict.fromkeys(listed))
        return list(names)

    def _xml(self, name: str) -> Path:
        return self.path / "Annotations" / f"{name}.xml"

    def _mask_file(self, name: str) -> Path:
        return self.path / "SegmentationObject" / f"{name}.png"

    def _annotation(self, name: str) -> Annotation | None:
        if name not in self._annotations:
            file = self._xml(name)
            self._annotations[name] = read_annotation(file) if file.is_file() else None
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
            sure = {*np.unique(coded_classes(read_map(semantic), self._codes, semantic)).tolist()} - {BACKGROUND, VOID}
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
        return {name for file in lists for name in first_words(file)}

    @cached_property
    def _segmented(self) -> set[str]:
        """Pictures that must have masks, if there are masks at all."""
        if not (self.path / "SegmentationObject").is_dir():
            return set()
        lists = [self._lists[f"seg-{part}"] for part in _PARTS[:3] if f"seg-{part}" in self._lists]
        return {name for file in lists for name in first_words(file)}

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
                return sbd.read_instances(self._sbd, name, self._codes)
            if name in self._segmented:
                raise InputError(f"{file}: is missing, but the segmentation lists name it; unpack the data set again")
            return None
        objects, classes = self._maps(name)
        semantic = coded_classes(classes, self._codes, file.parent.parent / "SegmentationClass" / file.name)
        counts = class_counts(objects, classes)
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
        objects, classes = (read_map(file.parent.parent / f"Segmentation{kind}" / file.name) for kind in _MAPS)
        if objects.shape != classes.shape:
            sizes = " but ".join(f"{h}x{w}" for h, w in (objects.shape, classes.shape))
            raise InputError(f"{file}: is {sizes} in SegmentationClass (height x width); correct one of the two")
        return objects, classes


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


def _tool_classes(root: Path) -> tuple[str, ...]:
    """The classes by class_names.txt, in VOC's own spelling where the letters agree; without the file, VOC's."""
    file = root / "class_names.txt"
    if not file.is_file():
        return CLASS_NAMES
    spelling = {name: name for name in CLASS_NAMES}
    names = [spelling.get(re.sub("[^a-z]", "", name.lower()), name) for name in read_names(file)]
    return tuple(names[1:] if names and names[0].strip("_") == "background" else names)
