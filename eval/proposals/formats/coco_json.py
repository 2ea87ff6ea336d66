"""Proposals in COCO's results format, as DeepMask and SharpMask write it: a list over many pictures.

Each entry has an image_id, a segmentation (run-length encoded, compressed or not; polygons are read too) and mostly a
score. A file of DeepMask's holds 500 pictures with 1000 entries each, some 100 MB, and a folder many such files: a file
is gone through once, when a picture is looked for that no file before it holds, and only the places of each picture's
entries are kept. The entries are read from there when they are wanted.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path, PurePath

import numpy as np
from pycocotools import mask as coco_mask

from prm import InputError
from prm.accelerated.retrieval import Proposals
from prm.files import reason

from ...pictures.coco_masks import encoded
from .entries import Key, checked_scores, first, natural, stem, tails
from .regions import from_dense

# Where to find entries of one picture that follow each other: first and one past last byte, number of the first entry.
Span = tuple[int, int, int]
_BETWEEN = re.compile(r"\s*([\],])\s*")


class CocoResults:
    """The proposals of many pictures, in one file or several.

    files: taken in natural order; all proposals of a picture are in one of them.
    names: pictures' ids by their file names, as `image_ids` reads them.
    limit: only the first so many of a picture's proposals, by score where there are scores.

    A picture is looked for by the id handed to the call. Without one, by the first of these that a file knows: the file
    name that some writers (this project's, for one) add to each entry; the id in `names`; the number in its name, which
    is 42 for COCO_val2014_000000000042.jpg and 000000000042.jpg, and 2007000032 for 2007_000032.jpg.
    """

    one_picture = False

    def __init__(self, files: Sequence[Path], names: dict[str, Key] | None = None, limit: int | None = None):
        self.files, self.names, self.limit = sorted(files, key=natural), names or {}, limit
        self._indices: dict[Path, tuple[dict[Key, list[Span]], dict[str, Key]]] = {}

    def __call__(
        self, name: str, shape: Sequence[int], image_id: Key | None = None
    ) -> tuple[Proposals, np.ndarray | None]:
        """A picture's proposals and their scores, (K,) float64 or None. shape: (H, W), which the masks must have.

        Raises InputError: no entry of that picture, entries in two files, a damaged file or entry, another size.
        """
        proposals, scores, _ = self.instances(name, shape, image_id)
        return proposals, scores

    def holds(self, name: str, image_id: Key | None = None) -> bool:
        """Whether any file has an entry of the picture."""
        return any(self._key(name, image_id, self._index(file)) is not None for file in self.files)

    def instances(
        self, name: str, shape: Sequence[int], image_id: Key | None = None
    ) -> tuple[Proposals, np.ndarray | None, list[dict]]:
        """As the call, and the entries themselves, one a mask."""
        file, spans = self._find(name, image_id)
        entries = list(_entries(file, spans))
        found = [entry.get("score") for _, entry in entries]
        scores = None
        if any(score is not None for score in found):
            scores = checked_scores(found, len(found), f"{file}, picture {name}")
        order = first(scores, len(entries), self.limit)
        codes = [_code(entry, shape, f"{file}, entry {number}") for number, entry in (entries[k] for k in order)]
        proposals = from_dense(shape, len(codes), lambda part: coco_mask.decode(codes[part]))
        return proposals, None if scores is None else scores[order], [entries[k][1] for k in order]

    def _find(self, name: str, image_id: Key | None) -> tuple[Path, list[Span]]:
        for file in self.files:
            key = self._key(name, image_id, self._index(file))
            if key is None:
                continue
            for other, index in self._indices.items():
                if other != file and self._key(name, image_id, index) is not None:
                    raise InputError(f"{other} and {file.name} both hold entries of {name}; name one of them")
            return file, self._indices[file][0][key]
        tried = [key for key in self._keys(name, image_id, {}) if key is not None]
        files = str(self.files[0]) if len(self.files) == 1 else f"{self.files[0].parent} ({len(self.files)} files)"
        raise InputError(
            f"{files}: no proposals for {name}: no entry with image_id {' or '.join(map(repr, tried))}; "
            "check that the file is this data set's, or name an annotation file whose images table tells the ids"
        )

    def _index(self, file: Path) -> tuple[dict[Key, list[Span]], dict[str, Key]]:
        if file not in self._indices:
            self._indices[file] = _index(file)
        return self._indices[file]

    def _key(self, name, image_id, index) -> Key | None:
        spans, names = index
        return next((key for key in self._keys(name, image_id, names) if key in spans), None)

    def _keys(self, name, image_id, names) -> list[Key | None]:
        """What the picture may be called, the surest first."""
        if image_id is not None:
            return [_as_key(image_id)]
        by_name = (next((known[t] for t in tails(name) if t in known), None) for known in (names, self.names))
        return [*by_name, _as_key(name)]


def image_ids(path: str | Path) -> dict[str, Key]:
    """The ids in a COCO annotation file's images table, by file name without suffix: with its folders, and without them
    where no other picture is called the same.

    Raises InputError where the file has no such table.
    """
    try:
        images = json.loads(Path(path).read_bytes())["images"]
        known = {_called(image["file_name"]): _as_key(image["id"]) for image in images}
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {reason(error)}") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(
            f"{path}: is no annotation file: it needs 'images', a list of objects with 'id' and 'file_name'"
        ) from error
    short = {name: PurePath(name).name for name in known}
    count = Counter(short.values())
    return {short[name]: key for name, key in known.items() if count[short[name]] == 1} | known


def _called(file_name: str) -> str:
    """A picture's name with all of its folders and without suffix, as the first of its `tails`."""
    return next(tails(file_name), file_name)


def _as_key(image_id: object) -> Key:
    """An image_id as it is compared: a number, also where it is written as text or as a picture's name.

    Raises TypeError for anything else than whole numbers and text.
    """
    if isinstance(image_id, str):
        short = PurePath(stem(image_id)).name
        digits = re.fullmatch(r"(?:COCO_\w+_)?(\d+)", short) or re.fullmatch(r"(\d{4}_\d{6})", short)
        return int(digits[1].replace("_", "")) if digits else short
    if isinstance(image_id, bool) or not isinstance(image_id, int | float | np.integer) or image_id != int(image_id):
        raise TypeError(f"image_id {image_id!r}")
    return int(image_id)


# ---- the files


def _index(path: Path) -> tuple[dict[Key, list[Span]], dict[str, Key]]:
    """Where each picture's entries are, and the ids by file name for entries that hold one."""
    try:
        # One character a byte, whatever the text: so positions in it are places in the file.
        text = path.read_bytes().decode("latin-1")
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {reason(error)}") from error
    spans: dict[Key, list[Span]] = {}
    names: dict[str, Key] = {}
    try:
        for key, group in groupby(_walk(text, names), key=lambda place: place[0]):
            places = list(group)
            spans.setdefault(key, []).append((places[0][1], places[-1][2], places[0][3]))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: is not a list of COCO results: {reason(error)}") from error
    return spans, names


def _walk(text: str, names: dict[str, Key]) -> Iterator[tuple[Key, int, int, int]]:
    """Each entry's picture, first and one past last position, and number; fills `names`."""
    decode, number, plain = json.JSONDecoder().raw_decode, 0, text.isascii()
    opening = re.compile(r"(?:\xef\xbb\xbf)?\s*\[\s*").match(text)
    if opening is None:
        raise ValueError("it must begin with '[' (an annotation file is none, and must not lie among them)")
    place, sign = opening.end(), text[opening.end() :][:1]
    while sign != "]":
        entry, end = decode(text, place)
        if not plain:
            entry = json.loads(text[place:end].encode("latin-1"))
        if not isinstance(entry, dict) or "image_id" not in entry:
            raise ValueError(f"entry {number} must be an object with 'image_id', 'segmentation' and mostly 'score'")
        try:
            key = _as_key(entry["image_id"])
        except (TypeError, OverflowError) as error:
            raise ValueError(f"entry {number}: image_id must be a whole number or text") from error
        if isinstance(entry.get("file_name"), str):
            names[_called(entry["file_name"])] = key
        yield key, place, end, number
        between = _BETWEEN.match(text, end)
        if between is None:
            raise ValueError(f"it ends, or is damaged, after entry {number} (byte {end})")
        sign, place, number = between[1], between.end(), number + 1


def _entries(path: Path, spans: Sequence[Span]) -> Iterator[tuple[int, dict]]:
    """A picture's entries, each with its number in the file."""
    try:
        with open(path, "rb") as file:
            for start, end, number in spans:
                file.seek(start)
                yield from enumerate(json.loads(b"[%b]" % file.read(end - start)), start=number)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {reason(error)}") from error
    except ValueError as error:
        raise InputError(f"{path}: has changed while it was in use: {reason(error)}") from error


# ---- the masks


def _code(entry: dict, shape: Sequence[int], where: str) -> dict:
    """An entry's mask as pycocotools decodes it: {"size": [H, W], "counts": bytes}."""
    code = entry.get("segmentation")
    if code is None and "bbox" in entry:
        raise InputError(f"{where}: has a box only, and a mask cannot be made of it; get the file with segmentations")
    try:
        return encoded(code, shape)
    except ValueError as error:
        raise InputError(f"{where}: {reason(error)}") from None
