"""A folder a class, as torchvision's ImageFolder reads it: each picture has the one label that its folder is called.

    pets/train/cat/1.jpg     pets/train/dog/west/2.jpg     pets/val/cat/3.jpg

The classes are the subfolders, sorted. Every picture has one label and no other class: what else it shows is not known.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from prm import InputError

from .base import Sample, class_indices, existing, read_picture, refuse

SPLITS = ("train", "val", "valid", "validation", "test")


def looks_like(path: Path, split: str | None = None) -> bool:
    """Whether a folder, or its subfolder for `split`, holds folders with a picture each, and no picture beside them."""
    folder = path / split if split is not None and (path / split).is_dir() else path
    return bool(_pictures_of(folder))


def _pictures_of(folder: Path) -> dict[str, list[Path]]:
    """The pictures of each class; none where that is not what the folder holds."""
    inside = sorted(folder.iterdir()) if folder.is_dir() else []
    found = {entry.name: _pictures(entry, True) for entry in inside if entry.is_dir() and entry.name[0] != "."}
    return found if all(found.values()) and not _pictures(folder, False) else {}


def _pictures(folder: Path, recursive: bool) -> list[Path]:
    from ..pictures.images import find_images

    try:
        return find_images(folder, recursive)
    except InputError:  # there is none
        return []


class ClassFolders:
    """See the module's text. Arguments as for the other datasets; Raises InputError where there is no picture, for a
    split that is not there, and for a class that a trained classifier lacks."""

    def __init__(self, path, split: str | None = None, class_names: Sequence[str] | None = None, report=refuse):
        root = existing(path)
        offered = [name for name in SPLITS if (root / name).is_dir()]
        if split is not None and split not in offered:
            raise InputError(f"{path}: has no split {split!r}; {_offer(offered)}")
        if split is None and offered:
            raise InputError(f"{path}: its folders are {', '.join(offered)}, and no classes; choose one as --split")
        self.path = root if split is None else root / split
        found = _pictures_of(self.path)
        if not found:
            raise InputError(f"{self.path}: has no folders of pictures, one a class")
        self.class_names = tuple(found if class_names is None else class_names)
        index = class_indices(found, self.class_names, self.path)
        self._files = [(file, index[name]) for name, files in found.items() for file in files]

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, k: int) -> Sample:
        file, label = self._files[k]
        return Sample(file.relative_to(self.path).as_posix(), (label,), lambda: read_picture(file))


def _offer(offered: list[str]) -> str:
    return f"choose {' or '.join(map(repr, offered))}" if offered else "for the folder itself say --split all"
