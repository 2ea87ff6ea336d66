"""Pseudo labels as `prm label` writes them: masks for the pictures of another data set, which stay where they are.

    labels/source.json        the data set and how it was labelled; each picture's size and SHA-256
    labels/labels.json        the labels as COCO annotations with run-length codes, for any tool
    labels/pictures/N.npz     of each picture the proposals that its labels may be drawn from, and their probabilities
    labels/seeds.json         the seeds, in pixels and as shares of the picture's sides
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np

from prm import InputError
from prm.files import atomic_write, reason

from .base import Instances, Sample, class_indices, existing, read_picture, refuse
from .coco import AnnotationFile

FORMAT = "prm-labels-1"
SOURCE, LABELS, PICTURES, SEEDS = "source.json", "labels.json", "pictures", "seeds.json"


@dataclass(frozen=True, eq=False)
class Drawable:
    """The a labels of one picture, each with the proposals that it may be drawn from.

    seeds : (a, 3) int64, rows (row, column, class index + 1)
    scores : (a,) float64, the best one's objectness, or an instance's score
    best : (a,) int64, which of the n masks
    starts, ends, offsets : the masks as runs, see `prm.accelerated.Proposals`
    law : (a + 1,) int64, where each label's candidates begin in the two that follow
    candidates : (t,) int64, which masks; probabilities : (t,) float64, 1 together for each label
    found : how many seeds there were, those that no proposal holds with them
    """

    seeds: np.ndarray
    scores: np.ndarray
    best: np.ndarray
    starts: np.ndarray
    ends: np.ndarray
    offsets: np.ndarray
    law: np.ndarray
    candidates: np.ndarray
    probabilities: np.ndarray
    found: np.ndarray

    def drawn(self, draw: np.random.Generator) -> np.ndarray:
        """(a,) int64: a mask for each label, by its law."""
        chosen = self.best.copy()
        for k, u in enumerate(draw.random(len(chosen))):
            own = slice(self.law[k], self.law[k + 1])
            at = np.searchsorted(self.probabilities[own].cumsum(), u, side="right")
            chosen[k] = self.candidates[own][min(at, self.law[k + 1] - self.law[k] - 1)]
        return chosen

    def masks(self, which: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """(k, H, W) bool, of these masks."""
        masks = np.zeros((len(which), size[0] * size[1]), bool)
        for mask, k in zip(masks, which):
            for run in range(self.offsets[k], self.offsets[k + 1]):
                mask[self.starts[run] : self.ends[run]] = True
        return masks.reshape(-1, *size)


@dataclass(frozen=True, eq=False)
class Labelled:
    """A labelled picture: its name, (H, W), `hash_of` its pixels, image-level labels, and its pseudo labels."""

    name: str
    size: tuple[int, int]
    sha256: str
    labels: tuple[int, ...]
    drawable: Drawable


def save_labels(path: Path, one: Labelled) -> None:
    """Write the file whole or not at all; InputError where it cannot be written."""
    page = json.dumps({key: value for key, value in vars(one).items() if key != "drawable"})
    atomic_write(path, lambda file: np.savez_compressed(file, page=page, **vars(one.drawable)))


def load_labels(path: Path) -> Labelled | None:
    """What a file holds; None where there is none or it is damaged."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        page = json.loads(str(arrays.pop("page")))
        return Labelled(page["name"], tuple(page["size"]), page["sha256"], tuple(page["labels"]), Drawable(**arrays))
    except Exception:  # whatever a damaged archive makes NumPy trip over
        return None


def picture_file(folder: Path, number: int) -> Path:
    return folder / PICTURES / f"{number:06d}.npz"


def hash_of(image: np.ndarray) -> str:
    """SHA-256 of a picture's pixels, which a copy in another format keeps where that loses nothing."""
    return hashlib.sha256(repr(image.shape).encode() + image.tobytes()).hexdigest()


def looks_like(path: Path, split: str | None = None) -> bool:
    return (path / SOURCE).is_file()


class PseudoLabels:
    """A folder of pseudo labels; see the module's text. Pictures without any label are left out.

    Arguments:
        path: the folder.
        split: None or "train": it has no parts.
        class_names: the classes, in order, of a network; None takes those of the labels.
        pictures: where the pictures are now: their data set, or a folder in which they lie under their names. None
            takes the place where they were when they were labelled.
        open_source: called with that data set's path and split, opens it.

    Raises: `prm.InputError` for a folder that is not whole, or whose pictures cannot be found.
    """

    def __init__(
        self, path, split: str | None = None, class_names: Sequence[str] | None = None, report=refuse,
        pictures: Path | None = None, *, open_source: Callable,
    ):  # fmt: skip
        self.path = existing(path)
        if split not in (None, "train"):
            raise InputError(f"{path}: labels have no split {split!r}; choose 'train', or 'all' for everything")
        self.page = read_page(self.path / SOURCE)
        if self.page.get("pictures") is None:
            raise InputError(f"{path}: is not finished; run prm label again with the same options, it goes on")
        self._annotations = AnnotationFile(self.path / LABELS, [], report)
        self.class_names = tuple(class_names or self.page["class_names"])
        class_indices(self.page["class_names"], self.class_names, self.path / SOURCE)
        self._listed = [one for one in self.page["pictures"] if one["classes"]]
        if not self._listed:
            raise InputError(f"{path}: no picture has a label; look at what prm label printed, or lower its thresholds")
        self._pictures, self._open = pictures, open_source

    def __len__(self) -> int:
        return len(self._listed)

    @property
    def labelled_classes(self) -> set[str]:
        return {name for one in self._listed for name in one["classes"]}

    def __getitem__(self, index: int) -> Sample:
        one = self._listed[index]
        names = class_indices(one["classes"], self.class_names, self.path / SOURCE)
        return Sample(
            name=one["name"], labels=tuple(sorted(names.values())), read=partial(self._read, one),
            read_instances=lambda: self._annotations.instances(one["name"], self.class_names),
        )  # fmt: skip

    def sampled(self, index: int, draw: np.random.Generator) -> Instances:
        """The labels of a picture, each drawn from the proposals that hold its seed."""
        one = self._listed[index]
        file = picture_file(self.path, one["number"])
        found = load_labels(file)
        if found is None:
            raise InputError(f"{file}: missing or damaged; run prm label again, it fills the gap")
        masks = found.drawable.masks(found.drawable.drawn(draw), found.size)
        names = [self.page["class_names"][k] for k in found.drawable.seeds[:, 2] - 1]
        return Instances(masks, np.array([self.class_names.index(name) for name in names], np.int64))

    def _read(self, one: dict) -> np.ndarray:
        moved = self._pictures / one["name"] if self._pictures is not None else None
        image = read_picture(moved) if moved is not None and moved.is_file() else self._sample(one).image
        if hash_of(image) != one["sha256"]:
            raise InputError(
                f"{one['name']}: is not the picture that was labelled ({self.path}); name the place of the right one "
                "with --pictures DIR, or label again"
            )
        return image

    def _sample(self, one: dict) -> Sample:
        """The picture in its own data set: where it was, or else by its name."""
        number = one["number"]
        if number < len(self._source) and (sample := self._source[number]).name == one["name"]:
            return sample
        if one["name"] not in self._numbers:
            raise InputError(f"{self._place}: has no picture {one['name']}; name the pictures' place: --pictures DIR")
        return self._source[self._numbers[one["name"]]]

    @property
    def _place(self) -> Path:
        return self._pictures or self.path / self.page["data"]

    @cached_property
    def _source(self):
        try:
            return self._open(self._place, self.page["split"])
        except InputError as error:
            raise InputError(f"{error}; {self.path} labels pictures there: name their place, --pictures DIR") from error

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {self._source[k].name: k for k in range(len(self._source))}


def read_page(path: Path) -> dict:
    """What source.json says; InputError where it is not one."""
    try:
        page = json.loads(path.read_bytes())
        if page["format_of_labels"] != FORMAT:
            raise ValueError(f"its format is not {FORMAT}")
        return page
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not a page of pseudo labels ({reason(error)}); prm label writes one") from error
