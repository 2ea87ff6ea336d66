"""BBBC038, the nuclei of the 2018 Data Science Bowl (stage 1, training part), as a zip file or an unpacked folder.

    stage1_train/<id>/images/<id>.png    8-bit RGBA, of many sizes: bright nuclei on dark ground, or stained tissue
    stage1_train/<id>/masks/*.png        one file a nucleus, 0 or 255

There are no image-level labels and every picture shows nuclei, so whole pictures teach a classifier nothing. Training
uses `Tiles`: small cuts that are labelled "contains a nucleus" or "contains none". That one bit a tile is all that is
ever derived from the masks for training; where in the tile a nucleus lies, and how many there are, is not kept.
"""

import hashlib
import io
import os
import re
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from prm import InputError

from .base import Sample, check_split, existing, read_picture

CLASS_NAMES = ("nucleus",)
POSITIVE_SHARE = 0.25  # see `tile_label`
_FILE = re.compile(r"(?:^|/)(?P<id>[^/]+)/(?P<kind>images|masks)/[^/]+\.png$")


def looks_like(path: Path, split: str | None = None) -> bool:
    """Whether `path` is a zip file, or a folder that is or holds stage1_train."""
    if path.is_file():
        return zipfile.is_zipfile(path)
    return (path / "stage1_train").is_dir() or any(path.glob("*/images/*.png"))


def in_split(identifier: str, split: str | None) -> bool:
    """Whether a picture belongs to "train" (about three quarters), "val" (a quarter) or None (everything).

    Decided by a hash of the identifier alone, so it never depends on which other pictures are present.
    """
    validation = hashlib.sha256(identifier.encode()).digest()[0] < 64
    return split is None or validation == (split == "val")


class BBBC038:
    """Whole pictures with one mask a nucleus (label 0, "nucleus"), ordered by identifier. `tiles` is for training.

    Arguments:
        path: the zip file, or the unpacked folder (`stage1_train` or the folder around it).
        split: "train", "val" or None; see `in_split`.
        class_names: None or ("nucleus",).
        report: what to do with masks that have no picture; by default they are passed over.

    Raises: `prm.InputError` if the layout is not found or a file is broken.
    """

    class_names = CLASS_NAMES

    def __init__(self, path, split: str | None = None, class_names: Sequence[str] | None = None, report=None):
        check_split(path, split, ("train", "val"))
        if class_names is not None and tuple(class_names) != CLASS_NAMES:
            raise InputError(f"{path}: has the one class 'nucleus'; the classifier knows {', '.join(class_names)}")
        self._files = _Files(existing(path))
        self._images: dict[str, str] = {}
        self._masks: dict[str, list[str]] = {}
        for name in self._files.names():
            match = _FILE.search(name)
            if match is None or name.startswith("__MACOSX") or not in_split(match["id"], split):
                continue
            if match["kind"] == "images":
                self._images[match["id"]] = name
            else:
                self._masks.setdefault(match["id"], []).append(name)
        self._ids = sorted(self._images)
        if not self._ids:
            wanted = "stage1_train/<id>/images/<id>.png"
            raise InputError(f"{path}: no picture {wanted} found" + (f" for split {split!r}" if split else ""))
        for identifier in sorted(set(self._masks) - set(self._images)) if report is not None else ():
            where = self._files.where(self._masks[identifier][0])
            report(InputError(f"{where}: mask of a picture that is missing; unpack or download the set again"))

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, index: int) -> Sample:
        identifier = self._ids[index]
        name = self._images[identifier]

        def read() -> np.ndarray:
            return read_picture(self._files.read(name), self._files.where(name))

        def read_instances() -> tuple[np.ndarray, np.ndarray]:
            masks = np.zeros((len(self._masks.get(identifier, ())), *read().shape[:2]), dtype=bool)
            for mask, (top, left, cut) in zip(masks, self.nuclei(index, masks.shape[1:])):
                mask[top : top + cut.shape[0], left : left + cut.shape[1]] = cut
            return masks, np.zeros(len(masks), dtype=np.int64)

        # A mask file exists for every nucleus: the label needs no mask to be opened.
        labels = (0,) if self._masks.get(identifier) else ()
        return Sample(name=identifier, labels=labels, read=read, read_instances=read_instances)

    def nuclei(self, index: int, shape: tuple[int, int]) -> Iterator[tuple[int, int, np.ndarray]]:
        """Each nucleus of picture `index` as (top, left, cut): its bool mask cut to its bounding box.

        `shape` is the picture's (H, W); a mask of another size raises `prm.InputError`.
        """
        for name in self._masks.get(self._ids[index], ()):
            mask = _read_mask(self._files, name)
            if (mask.height, mask.width) != tuple(shape):
                found, expected = f"{mask.height}x{mask.width}", f"{shape[0]}x{shape[1]}"
                raise InputError(f"{self._files.where(name)}: mask is {found} but its picture is {expected}")
            box = mask.getbbox() or (0, 0, 0, 0)
            yield box[1], box[0], np.asarray(mask.crop(box)) > 0

    def tiles(self, size: int = 64, stride: int | None = None, seed: int = 0, limit: int | None = None) -> "Tiles":
        """The pictures cut into labelled tiles; see `tile_arrays`."""
        return tile_arrays(self, size=size, stride=stride, seed=seed, limit=limit)


@dataclass(frozen=True)
class Tiles:
    """Square tiles in memory: arrays for a training loop, and at the same time a dataset of `Sample` without masks."""

    images: np.ndarray
    """(N, size, size, 3) uint8, RGB."""
    positive: np.ndarray
    """(N,) bool: the tile contains a nucleus."""
    names: tuple[str, ...]
    """"<id>@<row>,<column>" of the tile's top left pixel."""
    left_out: int
    """How many tiles were neither clearly positive nor clearly negative."""

    class_names = CLASS_NAMES

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Sample:
        labels = (0,) if self.positive[index] else ()
        return Sample(name=self.names[index], labels=labels, read=lambda: self.images[index])


def tile_arrays(
    dataset: BBBC038, size: int = 64, stride: int | None = None, seed: int = 0, limit: int | None = None
) -> Tiles:
    """Cuts every picture into tiles and labels each with one bit, by `tile_label`; undecided tiles are left out.

    Tiles start at multiples of `stride` (default: `size`, no overlap); the last of a row or column is moved inwards to
    end at the border. Pictures smaller than a tile are skipped. With `limit`, that many tiles are drawn from all at
    random by `seed`; the order stays by picture, then row, then column. Memory: all pictures while cutting, and
    3·size² bytes for each tile kept.

    Raises: `prm.InputError` for sizes below 1 or if no tile is left.
    """
    stride = size if stride is None else stride
    if size < 1 or stride < 1 or (limit is not None and limit < 1):
        raise InputError(f"tile size {size}, stride {stride}, limit {limit}: each must be at least 1")
    images, positive, names, left_out = [], [], [], 0
    for index in range(len(dataset)):
        sample = dataset[index]
        picture = sample.image
        height, width = picture.shape[:2]
        rows, columns = _starts(height, size, stride), _starts(width, size, stride)
        overlaps = _overlaps(dataset.nuclei(index, (height, width)), rows, columns, size)
        for i, row in enumerate(rows):
            for j, column in enumerate(columns):
                label = tile_label(overlaps[i][j], size * size)
                if label is None:
                    left_out += 1
                    continue
                images.append(picture[row : row + size, column : column + size])
                positive.append(label)
                names.append(f"{sample.name}@{row},{column}")
    if not images:
        raise InputError(f"no labelled tile of {size}x{size} in {len(dataset)} pictures; choose a smaller tile size")
    keep = np.arange(len(images))
    if limit is not None and limit < len(keep):
        keep = np.sort(np.random.default_rng(seed).choice(len(keep), limit, replace=False))
    return Tiles(
        images=np.stack([images[k] for k in keep]),
        positive=np.array(positive)[keep],
        names=tuple(names[k] for k in keep),
        left_out=left_out,
    )


def tile_label(overlaps: Sequence[tuple[int, int]], tile_area: int) -> bool | None:
    """Whether a tile contains a nucleus: True, False, or None for undecided.

    `overlaps` lists (pixels of the nucleus in the tile, pixels of the nucleus in all) for the nuclei that touch the
    tile. True: the tile holds at least a quarter of some nucleus, or, of a nucleus larger than the tile, fills a
    quarter of itself with it. False: no nucleus pixel. None: only slivers of nuclei, which nobody would count.
    """
    if not overlaps:
        return False
    return True if any(inside >= POSITIVE_SHARE * min(area, tile_area) for inside, area in overlaps) else None


def _starts(length: int, size: int, stride: int) -> list[int]:
    """First pixels of the tiles along one side; the last tile ends at the border."""
    if length < size:
        return []
    return sorted({*range(0, length - size, stride), length - size})


def _overlaps(nuclei, rows: list[int], columns: list[int], size: int) -> list[list[list[tuple[int, int]]]]:
    """[i][j] -> (pixels inside, pixels in all) of every nucleus that touches the tile at rows[i], columns[j]."""
    found = [[[] for _ in columns] for _ in rows]
    for top, left, cut in nuclei:
        area = int(np.count_nonzero(cut))
        for i, row in enumerate(rows):
            if row + size <= top or row >= top + cut.shape[0]:
                continue
            band = cut[max(row - top, 0) : row + size - top]
            for j, column in enumerate(columns):
                if column + size <= left or column >= left + cut.shape[1]:
                    continue
                inside = int(np.count_nonzero(band[:, max(column - left, 0) : column + size - left]))
                if inside:
                    found[i][j].append((inside, area))
    return found


def _read_mask(files: "_Files", name: str) -> Image.Image:
    """One mask file as an 8-bit image that is zero off the nucleus."""
    try:
        mask = Image.open(io.BytesIO(files.read(name)))
        # A palette or an alpha channel would make "not zero" mean something else than "nucleus".
        mask.load()
        return mask if mask.mode in ("1", "L") else mask.convert("RGB").convert("L")
    except (OSError, SyntaxError, ValueError) as error:
        raise InputError(f"{files.where(name)}: mask cannot be read ({error}); unpack or download it again") from None


class _Files:
    """The files of a folder or of a zip file, by their '/'-separated names."""

    def __init__(self, path: Path):
        self.path = path
        self.zipped = path.is_file()
        self._open: tuple[int, zipfile.ZipFile] | None = None

    def names(self) -> list[str]:
        """All names, sorted."""
        if self.zipped:
            return sorted(self._zip().namelist())
        # The name of the folder itself is kept in front, so that <id>/images works as well as stage1_train/<id>/images.
        root = self.path / "stage1_train" if (self.path / "stage1_train").is_dir() else self.path
        walk = ((Path(top), files) for top, _, files in os.walk(root))
        return sorted((top / file).relative_to(self.path).as_posix() for top, files in walk for file in files)

    def where(self, name: str) -> str:
        """The place of a file, for messages."""
        return f"{self.path} ({name})" if self.zipped else str(self.path / name)

    def read(self, name: str) -> bytes:
        """The content of a file."""
        try:
            return self._zip().read(name) if self.zipped else (self.path / name).read_bytes()
        except (OSError, KeyError, zipfile.BadZipFile, zlib.error, RuntimeError, NotImplementedError) as error:
            raise InputError(f"{self.where(name)}: cannot be read ({error}); download it again") from None

    def _zip(self) -> zipfile.ZipFile:
        # One handle a process: forked data loaders that share one would move each other's file position.
        if self._open is None or self._open[0] != os.getpid():
            try:
                self._open = os.getpid(), zipfile.ZipFile(self.path)
            except (OSError, zipfile.BadZipFile) as error:
                raise InputError(f"{self.path}: not a readable zip file ({error}); download it again") from None
        return self._open[1]

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_open": None}
