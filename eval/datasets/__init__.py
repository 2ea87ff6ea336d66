"""Datasets on disk behind one shape: a sequence of `Sample` with `class_names`, in a fixed order.

`open_dataset` looks at a path and picks the loader; `make_synthetic` writes drawn scenes that need no download.
Image-level labels come from label tables (or, for BBBC038, from tiles); instance masks are read for evaluation only.
"""

from collections.abc import Sequence
from pathlib import Path

from prm import InputError

from . import bbbc038, folder, synthetic
from .base import Sample, Stretched, check_split, existing
from .bbbc038 import BBBC038, Tiles, tile_arrays
from .folder import FolderDataset
from .synthetic import SyntheticDataset, draw_scene, make_synthetic

__all__ = [
    "BBBC038",
    "FolderDataset",
    "Sample",
    "Stretched",
    "SyntheticDataset",
    "Tiles",
    "draw_scene",
    "make_synthetic",
    "open_dataset",
    "tile_arrays",
]

# The order is the order of detection: format name -> (does this path look like it?, loader, what is looked for).
FORMATS = {
    "folder": (folder.looks_like, FolderDataset, "a folder with labels.csv"),
    "synthetic": (synthetic.looks_like, SyntheticDataset, "a folder with synthetic.json"),
    "bbbc038": (bbbc038.looks_like, BBBC038, "a folder or .zip with stage1_train/<id>/images/<id>.png"),
}


def open_dataset(path, split: str | None = None, format: str | None = None, class_names: Sequence[str] | None = None):
    """The dataset at `path`.

    Arguments:
        path: a folder or .zip file.
        split: "train", "val", or None for everything. For format "folder" the splits are its subfolders.
        format: "folder", "synthetic" or "bbbc038"; None looks at the path.
        class_names: class names in the order of a trained classifier; labels then index into them.

    Returns: an object with `class_names`, `len()` and `[i]` -> `Sample`, in a fixed order.
    Raises: `prm.InputError` if nothing is there, the format is not recognised, or the contents are not usable.
    """
    path = existing(path)
    check_split(split)
    if format is not None and format not in FORMATS:
        raise InputError(f"dataset format {format!r} is not known; choose one of {', '.join(FORMATS)}")
    if format is None:
        format = _detect(path, split)
    return FORMATS[format][1](path, split=split, class_names=class_names)


def _detect(path: Path, split: str | None) -> str:
    for name, (looks_like, _, _) in FORMATS.items():
        if looks_like(path, split):
            return name
    parts = [part for part in ("train", "val") if folder.looks_like(path / part)]
    if parts:
        raise InputError(f"{path}: has no labels.csv of its own; choose the split {' or '.join(map(repr, parts))}")
    looked_for = "; ".join(f"{name}: {what}" for name, (_, _, what) in FORMATS.items())
    raise InputError(f"{path}: not a dataset of a known format ({looked_for})")
