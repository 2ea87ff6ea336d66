"""SBD (Hariharan et al., ICCV 2011), which adds instance masks to VOC's pictures; its layout is in the room's text."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from prm import InputError
from prm.files import reason

from ..base import Instances, Sample, check_split, existing, read_picture, refuse
from .files import CLASS_NAMES, first_words, renumbered


def looks_like(path: Path, split: str | None = None) -> bool:
    """Whether `path` is SBD's folder `dataset`, or one or two levels around it."""
    return find_root(path) is not None


class SbdDataset:
    """SBD: "train", "val", "train_noval" (where its list was added), None for train and val; all have masks.

    Arguments as those of `VocDataset`; `path` is the folder `dataset`, benchmark_RELEASE, or the folder around it.
    Raises: `prm.InputError` for layouts and files that cannot be used, also later, when a sample is read.
    """

    def __init__(self, path, split: str | None = None, class_names: Sequence[str] | None = None, report=refuse):
        path = existing(path)
        root = find_root(path)
        if root is None:
            raise InputError(f"{path}: no SBD here; name the folder with img, cls, inst, train.txt and val.txt")
        self.path = root
        self.class_names, self._codes = renumbered(CLASS_NAMES, class_names, self.path)
        lists = {part: self.path / f"{part}.txt" for part in ("train", "val", "train_noval")}
        check_split(self.path, split, [part for part, file in lists.items() if file.is_file()])
        parts = ("train", "val") if split is None else (split,)
        self._names = [name for part in parts for name in first_words(lists[part])]
        self._labels: dict[str, tuple[int, ...]] = {}

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> Sample:
        name = self._names[index]
        if name not in self._labels:
            _, categories = _numbers(self.path, name)
            self._labels[name] = tuple(sorted({*(self._codes[categories].astype(int) - 1).tolist()}))
        return replace(self.unlabelled(index), labels=self._labels[name])

    def unlabelled(self, index: int) -> Sample:
        """The sample without its labels, for a picture whose annotation cannot be read."""
        name = self._names[index]
        return Sample(
            name=name,
            labels=(),
            read=lambda: read_picture(self.path / "img" / f"{name}.jpg"),
            read_instances=lambda: read_instances(self.path, name, self._codes),
        )

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_labels": {}}


def find_root(path: Path) -> Path | None:
    """The folder `dataset` of SBD that `path` may mean."""
    for root in (path, path / "dataset", path / "benchmark_RELEASE" / "dataset"):
        if (root / "inst").is_dir() and (root / "img").is_dir() and (root / "train.txt").is_file():
            return root
    return None


def find_beside(root: Path) -> Path | None:
    """SBD in VOC<year>, in VOCdevkit or beside it, there also in a folder named SBD or sbd."""
    for around in (root, root.parent, root.parent.parent):
        for place in (around, around / "SBD", around / "sbd"):
            found = find_root(place)
            if found is not None:
                return found
    return None


def _numbers(root: Path, name: str, kind: str = "inst") -> tuple[np.ndarray, np.ndarray]:
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


def read_instances(root: Path, name: str, codes: np.ndarray) -> Instances:
    pixels, categories = _numbers(root, name)
    classes, _ = _numbers(root, name, "cls")
    return Instances(
        masks=pixels == np.arange(1, len(categories) + 1)[:, None, None],
        labels=codes[categories].astype(np.int64) - 1,
        semantic=codes[classes],
    )
