"""Datasets on disk behind one shape: a sequence of `Sample` with `class_names`, in a fixed order.

`open_dataset` looks at a path and picks the loader; `make_synthetic` writes drawn scenes that need no download; `check`
reads every file of a data set and reports what is wrong. Image-level labels come from label tables and annotations (for
BBBC038 from tiles); masks and boxes are read for evaluation only.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from prm import InputError

from . import bbbc038, class_folders, coco, folder, pseudo_labels, synthetic, voc
from .base import Boxes, Instances, Sample, Stretched, existing, refuse
from .bbbc038 import BBBC038, Tiles, tile_arrays
from .class_folders import ClassFolders
from .coco import CocoDataset
from .folder import FolderDataset
from .pseudo_labels import PseudoLabels
from .synthetic import SyntheticDataset, draw_scene, make_synthetic
from .voc import SbdDataset, VocDataset

__all__ = [
    "BBBC038",
    "Boxes",
    "ClassFolders",
    "CocoDataset",
    "FolderDataset",
    "Instances",
    "PseudoLabels",
    "Sample",
    "SbdDataset",
    "Stretched",
    "SyntheticDataset",
    "Tiles",
    "VocDataset",
    "draw_scene",
    "make_synthetic",
    "open_dataset",
    "open_labels",
    "tile_arrays",
]

# The order is the order of detection: format name -> (does this path look like it?, loader, what is looked for).
FORMATS = {
    "folder": (folder.looks_like, FolderDataset, "a folder with labels.csv or instances.json"),
    "labels": (pseudo_labels.looks_like, lambda *own, **named: open_labels(*own, **named), "a folder of prm label's"),
    "synthetic": (synthetic.looks_like, SyntheticDataset, "a folder with synthetic.json"),
    "voc": (voc.looks_like, VocDataset, "VOCdevkit, or VOC<year> with JPEGImages and ImageSets"),
    "sbd": (voc.looks_like_sbd, SbdDataset, "benchmark_RELEASE, or its dataset/ with img, cls and inst"),
    "coco": (coco.looks_like, CocoDataset, "a folder with annotations/instances_*.json, or such a .json"),
    "bbbc038": (bbbc038.looks_like, BBBC038, "a folder or .zip with stage1_train/<id>/images/<id>.png"),
    "classes": (class_folders.looks_like, ClassFolders, "a folder of pictures for each class"),
}


def open_dataset(
    path,
    split: str | None = None,
    format: str | None = None,
    class_names: Sequence[str] | None = None,
    report: Callable[[InputError], object] = refuse,
):
    """The dataset at `path`.

    Arguments:
        path: a folder, .json or .zip file.
        split: the part to open, as the data set names it, or None for everything. "train" and "val" are known to
            folders (which have splits of the user's naming, as subfolders), drawn scenes, VOC, SBD, COCO and BBBC038.
        format: "labels", "folder", "synthetic", "voc", "sbd", "coco", "bbbc038" or "classes"; None looks at the path.
        class_names: class names in the order of a trained classifier; labels then index into them.
        report: called with every bad entry of the data set's lists, which is then left out; by default it is raised.

    Returns: an object with `class_names`, `len()` and `[i]` -> `Sample`, in a fixed order. It can be pickled.
    Raises: `prm.InputError` if nothing is there, the format is not recognised, the data set does not have the split,
        or the contents are not usable.
    """
    path = existing(path)
    if format is not None and format not in FORMATS:
        raise InputError(f"dataset format {format!r} is not known; choose one of {', '.join(FORMATS)}")
    if format is None:
        format = _detect(path, split)
    return FORMATS[format][1](path, split=split, class_names=class_names, report=report)


def open_labels(path, *args, **options) -> PseudoLabels:
    """The pseudo labels that `prm label` wrote at `path`; arguments and errors as for `PseudoLabels`."""
    return PseudoLabels(path, *args, open_source=open_dataset, **options)


def _detect(path: Path, split: str | None) -> str:
    looks = {name: looks_like for name, (looks_like, _, _) in FORMATS.items()}
    folders_of_pictures = looks.pop("classes")  # as other data sets hold them, too
    found = [name for name, looks_like in looks.items() if looks_like(path, split)]
    if found and (len(found) == 1 or found[0] in _OWN):
        return found[0]
    if found:
        raise InputError(f"{path}: holds several data sets ({', '.join(found)}); name the folder of one of them")
    parts = folder.splits(path) if path.is_dir() else []
    if not parts and folders_of_pictures(path, split):
        return "classes"
    if parts and split is not None:
        raise InputError(f"{path}: has no split {split!r}; choose {' or '.join(map(repr, parts))}")
    if parts:
        raise InputError(f"{path}: has no labels of its own; choose the split {' or '.join(map(repr, parts))}")
    looked_for = "; ".join(f"{name}: {what}" for name, (_, _, what) in FORMATS.items())
    raise InputError(f"{path}: not a dataset of a known format ({looked_for})")


_OWN = ("labels", "folder", "synthetic")  # their marks are clear, whatever else lies beside
