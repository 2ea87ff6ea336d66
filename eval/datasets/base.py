"""What every dataset here hands out: `Sample`, and the few helpers that two loaders share."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from prm import InputError


@dataclass(frozen=True)
class Sample:
    """One picture with its image-level labels; pixels and masks are read when first asked for.

    A dataset makes a fresh `Sample` at every access, so what a sample has read is freed with it.
    """

    name: str
    """Unique in its dataset: the file as the label table writes it, or the picture's identifier."""
    labels: tuple[int, ...]
    """Class indices present in the picture, ascending."""
    read: Callable[[], np.ndarray]
    """Reads the picture: (H, W, 3) uint8, RGB."""
    difficult: tuple[int, ...] = ()
    """Class indices of which nobody says whether they are present; never also in `labels`."""
    read_instances: Callable[[], tuple[np.ndarray, np.ndarray] | None] | None = None
    """Reads the ground truth (masks, mask labels); None, or an answer of None, where there is none. Evaluation only."""

    @cached_property
    def image(self) -> np.ndarray:
        """(H, W, 3) uint8, RGB."""
        return self.read()

    @cached_property
    def _instances(self) -> tuple[np.ndarray, np.ndarray] | None:
        found = self.read_instances() if self.read_instances is not None else None
        if found is not None and found[0].shape[1:] != self.image.shape[:2]:
            sizes = " but the picture is ".join(f"{h}x{w}" for h, w in (found[0].shape[1:], self.image.shape[:2]))
            raise InputError(f"{self.name}: its masks are {sizes}; correct the annotations (height x width)")
        return found

    @property
    def masks(self) -> np.ndarray | None:
        """(K, H, W) bool, one mask an instance; None where the dataset has no masks."""
        return None if self._instances is None else self._instances[0]

    @property
    def mask_labels(self) -> np.ndarray | None:
        """(K,) int64 class indices of `masks`; None where the dataset has no masks."""
        return None if self._instances is None else self._instances[1]


class Stretched:
    """A dataset whose pictures have their contrast stretched, each as a whole, as the segmenter does it."""

    def __init__(self, dataset):
        self.dataset, self.class_names = dataset, dataset.class_names

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Sample:
        from prm.accelerated.inputs import stretch_contrast

        sample = self.dataset[index]
        return replace(sample, read=lambda: stretch_contrast(sample.read()))

    def __getattr__(self, name: str):
        if name == "dataset":  # asked for before it is set, as unpickling does
            raise AttributeError(name)
        return getattr(self.dataset, name)


def read_picture(source, name: str | None = None) -> np.ndarray:
    """(H, W, 3) uint8 from a path, a binary file or bytes; bad pictures raise `prm.InputError`."""
    # Imported late: listing a dataset and its labels needs no picture reader.
    from ..images import read_image

    return read_image(source) if name is None else read_image(source, name)


def existing(path) -> Path:
    """`path` as a `Path`; raises `prm.InputError` where nothing is there."""
    path = Path(path).expanduser()
    if not path.exists():
        raise InputError(f"{path}: no such file or folder; check the path to the dataset")
    return path


def check_split(split: str | None) -> None:
    """Raises `prm.InputError` unless `split` is "train", "val" or None (everything)."""
    if split not in (None, "train", "val"):
        raise InputError(f"split is {split!r}; choose 'train', 'val', or none for everything")
