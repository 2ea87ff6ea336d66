"""What every dataset here hands out: `Sample`, and the few helpers that the loaders share."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, NoReturn

import numpy as np

from prm import InputError
from prm.files import reason

BACKGROUND, VOID = 0, 255
"""Values of a semantic map that stand for no class and for nobody's pixel; every other value is class index + 1."""


class Instances(NamedTuple):
    """The pixels that a picture's annotation names. What the data set does not have is None."""

    masks: np.ndarray
    """(K, H, W) bool, one mask an instance."""
    labels: np.ndarray
    """(K,) int64 class indices."""
    areas: np.ndarray | None = None
    """(K,) float64 areas in pixels as annotated, which may differ from the number of pixels in the mask."""
    void: np.ndarray | None = None
    """(H, W) bool, pixels that the annotators left to no class, not even to the background."""
    semantic: np.ndarray | None = None
    """(H, W) int16 map of classes: `BACKGROUND`, class index + 1, or `VOID`."""
    crowd: tuple[np.ndarray, np.ndarray] | None = None
    """(Kc, H, W) bool regions of uncounted objects, and their (Kc,) int64 class indices."""


class Boxes(NamedTuple):
    """The boxes that a picture's annotation names."""

    boxes: np.ndarray
    """(B, 4) float64 x0, y0, x1, y1 in pixels counted from 0, both ends inclusive: a one-pixel box has x0 = x1."""
    labels: np.ndarray
    """(B,) int64 class indices."""
    difficult: np.ndarray
    """(B,) bool, boxes that count neither as found nor as missed."""
    truncated: np.ndarray | None = None
    """(B,) bool, boxes of objects that reach beyond what is visible; None where nobody noted it."""


@dataclass(frozen=True)
class Sample:
    """One picture with its image-level labels; pixels, masks and boxes are read when first asked for.

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
    read_instances: Callable[[], Instances | tuple[np.ndarray, np.ndarray] | None] | None = None
    """Reads the ground truth, `Instances` or just (masks, labels); None, or an answer of None, where there is none."""
    read_boxes: Callable[[], Boxes | None] | None = None
    """Reads the boxes; None, or an answer of None, where there are none. Evaluation only, as `read_instances`."""

    @cached_property
    def image(self) -> np.ndarray:
        """(H, W, 3) uint8, RGB."""
        return self.read()

    @cached_property
    def _instances(self) -> Instances | None:
        found = self.read_instances() if self.read_instances is not None else None
        if found is not None and found[0].shape[1:] != self.image.shape[:2]:
            sizes = " but the picture is ".join(f"{h}x{w}" for h, w in (found[0].shape[1:], self.image.shape[:2]))
            raise InputError(f"{self.name}: its masks are {sizes}; correct the annotations (height x width)")
        return None if found is None else Instances(*found)

    @cached_property
    def _boxes(self) -> Boxes | None:
        found = self.read_boxes() if self.read_boxes is not None else None
        if found is None and self._instances is not None:
            # An instance without a pixel has no box.
            shown = self.masks.any(axis=(1, 2))
            labels = self.mask_labels[shown]
            return Boxes(tight_boxes(self.masks[shown]), labels, np.zeros(len(labels), dtype=bool))
        return found

    @property
    def masks(self) -> np.ndarray | None:
        """(K, H, W) bool, one mask an instance, crowds left out; None where the dataset has no masks."""
        return None if self._instances is None else self._instances.masks

    @property
    def mask_labels(self) -> np.ndarray | None:
        """(K,) int64 class indices of `masks`; None where the dataset has no masks."""
        return None if self._instances is None else self._instances.labels

    @property
    def areas(self) -> np.ndarray | None:
        """(K,) float64 annotated areas of `masks` in pixels; None where the format has none."""
        return None if self._instances is None else self._instances.areas

    @property
    def void(self) -> np.ndarray | None:
        """(H, W) bool, pixels of no annotated class, not even background; None where the format has none."""
        return None if self._instances is None else self._instances.void

    @property
    def semantic(self) -> np.ndarray | None:
        """(H, W) int16: 0 background, class index + 1, 255 void; None where the dataset has no map of its own."""
        return None if self._instances is None else self._instances.semantic

    @property
    def crowd(self) -> tuple[np.ndarray, np.ndarray] | None:
        """((Kc, H, W) bool regions, (Kc,) int64 class indices); None where the format knows no crowds."""
        return None if self._instances is None else self._instances.crowd

    @property
    def boxes(self) -> np.ndarray | None:
        """(B, 4) float64 x0, y0, x1, y1 in pixels from 0, both ends inclusive; None where there is nothing to box.

        Where the dataset has masks and no boxes, the tight boxes of the masks. In general B differs from K.
        """
        return None if self._boxes is None else self._boxes.boxes

    @property
    def box_labels(self) -> np.ndarray | None:
        """(B,) int64 class indices of `boxes`."""
        return None if self._boxes is None else self._boxes.labels

    @property
    def box_difficult(self) -> np.ndarray | None:
        """(B,) bool: objects marked as difficult in VOC, crowds in COCO."""
        return None if self._boxes is None else self._boxes.difficult

    @property
    def box_truncated(self) -> np.ndarray | None:
        """(B,) bool, VOC's mark; None where nobody noted it."""
        return None if self._boxes is None else self._boxes.truncated


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


def refuse(problem: InputError) -> NoReturn:
    """What loaders do with a bad entry of a list by default; `check_dataset` gathers them instead."""
    raise problem


def tight_boxes(masks: np.ndarray) -> np.ndarray:
    """(K, 4) float64 x0, y0, x1, y1, ends inclusive, of (K, H, W) bool masks that have a pixel each."""
    corners = [(x.min(), y.min(), x.max(), y.max()) for y, x in map(np.nonzero, masks)]
    return np.array(corners, dtype=np.float64).reshape(-1, 4)


def read_picture(source, name: str | None = None) -> np.ndarray:
    """(H, W, 3) uint8 from a path, a binary file or bytes; bad pictures raise `prm.InputError`."""
    # Imported late: listing a dataset and its labels needs no picture reader.
    from ..pictures.images import read_image

    return read_image(source) if name is None else read_image(source, name)


def read_names(path: Path) -> list[str]:
    """The lines of a text file that are not blank; raises `prm.InputError` where it cannot be read."""
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (UnicodeDecodeError, OSError) as error:
        raise InputError(f"{path}: cannot be read as UTF-8 text ({reason(error)}); copy the file again") from None


def existing(path) -> Path:
    """`path` as a `Path`; raises `prm.InputError` where nothing is there."""
    path = Path(path).expanduser()
    if not path.exists():
        raise InputError(f"{path}: no such file or folder; check the path to the dataset")
    return path


def check_split(path, split: str | None, offered: Iterable[str]) -> None:
    """Raises `prm.InputError` unless `split` is None (everything) or one of those that the data set offers."""
    offered = list(offered)
    if split is not None and split not in offered:
        choice = ", ".join(map(repr, offered))
        hint = f"choose {choice}, or none for everything" if offered else "it has none: choose none for everything"
        raise InputError(f"{path}: split is {split!r}; {hint}")


def class_indices(names: Iterable[str], class_names: Sequence[str], where) -> dict[str, int]:
    """Name -> index in `class_names`; a name that is not there raises `prm.InputError`, which says `where`."""
    index = {name: k for k, name in enumerate(class_names)}
    names = list(names)
    for name in names:
        if name not in index:
            raise InputError(f"{where}: unknown class {name!r}; known classes: {', '.join(class_names)}")
    return {name: index[name] for name in names}
