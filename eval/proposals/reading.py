"""Proposals that others made, from files: which format a path holds, and which file is a picture's."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Protocol

import numpy as np

from prm import InputError
from prm.accelerated.retrieval import Proposals
from prm.files import reason

from .formats import authors_json, mat, npz, png
from .formats.entries import Key, stem, tails

# By format: what its files' names end with, and what it is.
FORMATS = {
    "prm": (".json", "JSON as the PRM authors write it"),
    "coco": (".json", "COCO's results as JSON: DeepMask, SharpMask"),
    "mat": (".mat", "MATLAB: MCG, COB, Selective Search with its regions"),
    "npz": (".npz", "as this project keeps generated proposals"),
    "png": (".png", "PNGs, binary masks or label maps"),
}
# What files begin with; MATLAB's before version 5 tell themselves by their name only.
_BEGINNINGS = {b"MATLAB ": "mat", b"\x89HDF": "mat", b"PK\3\4": "npz", b"\x89PNG": "png"}


class Reader(Protocol):
    """What `open_proposals` returns. one_picture: whether all calls read the same file."""

    one_picture: bool

    def __call__(
        self, name: str, shape: Sequence[int], image_id: Key | None = None
    ) -> tuple[Proposals, np.ndarray | None]:
        """A picture's proposals and their scores, (K,) float64, or None where the format or the file has none.

        name: the picture's file name, perhaps with folders, or its identifier. shape: its (H, W). image_id: its id in
        the data set, which only COCO's results ask for. Raises InputError: nothing there for this picture, a damaged
        file, proposals of another size.
        """


def open_proposals(
    path: str | Path, format: str | None = None, limit: int | None = None, annotations: str | Path | None = None
) -> Reader:
    """A reader of the proposals at `path`.

    path: a file of one picture's proposals; or a file of COCO's results, or a folder of such files (see
        `CocoResults`), for many pictures; or a folder that for each picture NAME.* has NAME.json, NAME.mat, NAME.npz,
        a folder NAME of PNGs, or NAME.png, where NAME may begin with folders of the picture's own path.
    format: a key of FORMATS; None finds out, by the file's name or else its content.
    limit: only the first so many of each picture's proposals: the best by score (equal ones in the file's order),
        where there are scores. None: all, in the file's order.
    annotations: a COCO annotation file whose images table tells pictures' ids by name.

    Raises InputError: nothing there, a format that is unknown or cannot be told.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise InputError(f"{path}: no such file or folder of proposals")
    if format is not None and format not in FORMATS:
        raise InputError(f"proposal format {format!r} is not known; {_known()}")
    if limit is not None and limit < 1:
        raise InputError(f"limit on proposals is {limit}; it must be at least 1")
    if not path.is_dir():
        return _reader(path, format, limit, annotations)
    files = sorted(path.glob("*.json"))
    if format == "coco" and not files:
        raise InputError(f"{path}: holds no .json of COCO's results")
    if format == "coco" or (format is None and _of_coco(files)):
        return _coco_results(files, limit, annotations)
    return _Folder(path, format, limit, annotations)


def _reader(file: Path, format: str | None, limit: int | None, annotations: str | Path | None) -> Reader:
    format = format or _format_of(file)
    return _coco_results([file], limit, annotations) if format == "coco" else _File(file, format, limit)


def _coco_results(files: Sequence[Path], limit: int | None, annotations: str | Path | None) -> Reader:
    # Imported late: benches generate their proposals, on machines without pycocotools.
    from .formats.coco_json import CocoResults, image_ids

    return CocoResults(files, None if annotations is None else image_ids(annotations), limit)


@dataclass(frozen=True)
class _File:
    """One picture's file; also the folder of its PNGs."""

    path: Path
    format: str
    limit: int | None
    one_picture = True

    def __call__(self, name, shape, image_id=None):
        shape = (int(shape[0]), int(shape[1]))
        if self.format == "mat":
            return mat.read(self.path, shape, self.limit)
        if self.format == "npz":
            return npz.read(self.path, shape, self.limit)
        if self.format == "png":
            return png.read(self.path, shape, self.limit), None
        proposals = authors_json.read(self.path, shape)
        return (proposals if self.limit is None else proposals.select(range(len(proposals))[: self.limit])), None


@dataclass(frozen=True)
class _Folder:
    """A folder with a file, or a folder of PNGs, for each picture."""

    path: Path
    format: str | None
    limit: int | None
    annotations: str | Path | None
    one_picture = False

    def __call__(self, name, shape, image_id=None):
        file = self._find(name)
        format = "png" if file.is_dir() else self.format
        return _reader(file, format, self.limit, self.annotations)(name, shape, image_id)

    def _find(self, name: str) -> Path:
        wanted = [FORMATS[self.format][0]] if self.format else [".json", ".mat", ".npz", ".png"]
        for own in _names(name):
            found = [self.path / f"{own}{suffix}" for suffix in wanted]
            # A picture that lies among its proposals is none of them.
            found = [file for file in found if file.is_file() and not (Path(name).exists() and file.samefile(name))]
            if ".png" in wanted and (self.path / own).is_dir():
                found.append(self.path / own)
            # A label map that lies beside another file may be anything; the others are proposals for certain.
            found = [file for file in found if file.suffix != ".png" or file.is_dir()] or found
            if len(found) > 1:
                both = " and ".join(file.name for file in found)
                raise InputError(f"{self.path}: {both} may both be proposals for {name}; name the format: {_known()}")
            if found:
                return found[0]
        also = ", ".join([*wanted[1:], *(["a folder of PNGs"] if ".png" in wanted else [])])
        raise InputError(
            f"{self.path / PurePath(stem(name)).name}{wanted[0]}: No such file: no proposals for {name}"
            + (f" (looked for {also}, too)" if also else "")
        )


def _names(name: str) -> Iterator[str]:
    """What a picture's proposals may be called: its `tails`.

    COCO's pictures have longer names in the data sets of 2014 and 2015 than later, and proposals carry either.
    """
    short = None
    for short in tails(name):
        yield short
    digits = re.fullmatch(r"(?:COCO_\w+_)?(\d{12})", short or "")
    if digits:
        for prefix in ("", "COCO_train2014_", "COCO_val2014_", "COCO_test2014_", "COCO_test2015_"):
            yield prefix + digits[1]


def _format_of(path: Path) -> str:
    """A file's format, by its name or else by its beginning."""
    try:
        with open(path, "rb") as file:
            head = file.read(1 << 12)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {reason(error)}") from error
    by_name = next((name for name, (suffix, _) in FORMATS.items() if suffix == path.suffix.lower()), None)
    by_content = next((name for start, name in _BEGINNINGS.items() if head.startswith(start)), None)
    if by_name == "prm" or (by_name is None and head.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] in (b"[", b"{")):
        return "coco" if re.search(rb'"(image_id|segmentation|images|annotations)"', head) else "prm"
    if by_name is None and by_content is None:
        raise InputError(f"{path}: is no file of proposals that can be told; {_known()}")
    return by_name or by_content


def _of_coco(files: Sequence[Path]) -> bool:
    """Whether a folder's JSON is COCO's: as the first file is that is no empty list."""
    told = (_format_of(file) for file in files if file.is_file() and file.stat().st_size > 8)
    return next(told, "prm") == "coco"


def _known() -> str:
    return "known are " + ", ".join(f"'{name}' ({what})" for name, (_, what) in FORMATS.items())
