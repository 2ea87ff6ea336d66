"""From picture files to a folder of answers: overlays, panels, label images, a table, instances.json and a gallery."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np
import torch

from prm import InputError
from prm.accelerated import Proposals, Segmentation, Segmenter
from prm.accelerated.students.segmenter import StudentSegmenter, wants_proposals
from prm.files import reason
from prm.settings import ReadSettings

from .pictures.export import to_coco_results, write_results
from .pictures.figures import overlay, panel, write_png
from .pictures.gallery import Entry, gallery, instance_rows
from .pictures.images import names_of, read_image
from .pictures.labels import label_image, rows_of, write_table, write_tiff
from .pictures.memory import SteadyMemory
from .pictures.pipeline import in_order, threads
from .pictures.pixel_size import pixel_size
from .proposals import open_proposals, proposals_for, read_rated

PRMS = 4  # shown in a panel


@dataclass
class Answers:
    """What `segment_files` did.

    instances : how many were found
    errors : by file name, one line of why the picture could not be used
    notes : by file name, one line of what was taken of a file that holds more than a picture
    without : file names of the pictures in which no class was probable enough
    wall : seconds from the first picture's reading to the last file's writing
    pictures : by file name, {"seconds": by stage, "memory_mb": held by the process once the picture was done, or None}
    """

    instances: int = 0
    wall: float = 0.0
    errors: dict[str, str] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    without: list[str] = field(default_factory=list)
    pictures: dict[str, dict] = field(default_factory=dict)


@dataclass
class _Picture:
    """A picture on its way: each stage adds what the next one needs, and the last one leaves only what is small."""

    file: Path
    name: str
    stem: str
    number: int
    image: np.ndarray | None = None
    proposals: Proposals | None = None
    answer: Segmentation | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    error: str | None = None
    notes: list[str] = field(default_factory=list)
    peaks: int | None = None
    entry: Entry | None = None
    results: list[dict] = field(default_factory=list)
    rows: list[dict] = field(default_factory=list)


def segment_files(
    segmenter: Segmenter | StudentSegmenter,
    class_names: Sequence[str],
    files: Sequence[Path],
    out: Path,
    proposals: Path | None = None,
    limit: int = 1000,
    cache: Path | None = None,
    command: str = "",
    tick: Callable[[str], None] = lambda name: None,
    names: Sequence[str] | None = None,
    reading: ReadSettings | None = None,
    save_prms: bool = False,
) -> Answers:
    """Segment picture files: while one is walked, the next is read and gets its proposals, and the last is drawn.

    The answers are those of one picture after the other, and memory does not grow with their number: at most five
    pictures are under way. Of each are held 3 bytes a pixel, its proposals as runs, and what the network made of it at
    its own size; full masks are made one at a time. Reading takes most beside that, see `read_image` and `to_input`.

    proposals: a file or folder that `open_proposals` reads, all of them; None generates `limit`. tick: called with each
    file name, in the order of `files`, once it is done. names: of the pictures, for instances.json and, without suffix,
    the pictures' own files in `out`; different, with "/" between folders. None: see `names_of`. reading: what
    is taken of each file. save_prms: also NAME.prms.tif, each instance's Peak Response Map; all of a picture's are then
    held until it is drawn.

    A picture that cannot be used is remembered in `errors` and the rest is done; what cannot be written ends the run
    with InputError.
    """
    if cache is not None:
        _check_cache(cache)
    source = _source(proposals, files, limit, cache) if wants_proposals(segmenter) else lambda file, image: None
    names = names_of(files) if names is None else names
    pictures = map(_Picture, files, names, _stems(names), range(1, len(files) + 1))
    answers, entries, results, rows = Answers(), [], [], []
    started, memory = time.perf_counter(), SteadyMemory()
    with threads(2) as (before, after):
        prepared = in_order(before, partial(_prepare, source, reading), pictures)
        walked = map(partial(_walk, segmenter, save_prms), prepared)
        for picture in in_order(after, partial(_finish, out, class_names, save_prms), walked):
            entries.append(picture.entry)
            results += picture.results
            rows += picture.rows
            name = str(picture.file)
            answers.pictures[name] = {"seconds": picture.seconds, "memory_mb": memory()}
            if picture.error is not None:
                answers.errors[name] = picture.error
            elif picture.notes:
                answers.notes[name] = "; ".join(picture.notes)
            answers.without += [name] if picture.peaks == 0 else []
            tick(picture.file.name)
    answers.instances = len(results)
    write_results(out / "instances.json", results)
    write_table(out / "instances.csv", rows)
    settings = {"command": command, "classes": ", ".join(class_names), **asdict(segmenter.settings)}
    gallery(entries, out / "index.html", "Instances from class peak responses", settings)
    answers.wall = time.perf_counter() - started
    return answers


def _prepare(source: Callable, reading: ReadSettings | None, picture: _Picture) -> _Picture:
    with _errors_of(picture):
        with _timed(picture.seconds, "read"):
            picture.image = read_image(picture.file, None, reading, picture.notes.append)
        with _timed(picture.seconds, "proposals"):
            picture.proposals = source(picture.file, picture.image)
    return picture


def _walk(segmenter: Segmenter | StudentSegmenter, all_prms: bool, picture: _Picture) -> _Picture:
    if picture.error is None:
        with _errors_of(picture):
            answer = segmenter([picture.image], [picture.proposals])[0]
            picture.answer = answer if all_prms else _with_maps_of(answer, PRMS)
            picture.peaks = answer.peaks if answer.maps.numel() else None  # a student has none
            picture.seconds |= answer.seconds
    picture.proposals = None
    return picture


def _finish(out: Path, class_names: Sequence[str], save_prms: bool, picture: _Picture) -> _Picture:
    """Write the picture's files; keep what instances.json, the table and the gallery say of it."""
    if picture.error is None:
        overlay_file, panel_file = (out / f"{picture.stem}.{kind}.png" for kind in ("overlay", "panel"))
        with _timed(picture.seconds, "drawing"):
            write_png(overlay_file, overlay(picture.image, picture.answer, class_names))
            write_png(panel_file, panel(picture.image, picture.answer, class_names, PRMS))
            labels = label_image(picture.answer)
            pixel = pixel_size(picture.file)
            write_tiff(out / "labels" / f"{picture.stem}.tif", labels, pixel)
            picture.rows = rows_of(picture.answer, labels, picture.image, picture.name, class_names, pixel)
            if save_prms and picture.answer.instances:
                maps = torch.stack([one.prm for one in picture.answer.instances]).float().numpy()
                write_tiff(out / f"{picture.stem}.prms.tif", maps)
            categories = range(1, len(class_names) + 1)
            picture.results = to_coco_results(picture.answer, picture.number, categories, picture.name, class_names)
        rows = instance_rows(picture.answer, class_names)
        picture.entry = Entry(str(picture.file), panel_file, overlay_file, rows)
    else:
        picture.entry = Entry(str(picture.file), error=picture.error)
    picture.image = picture.answer = None
    return picture


@contextmanager
def _errors_of(picture: _Picture) -> Iterator[None]:
    """Remember an error that is the picture's own: nothing that one picture does may cost the others."""
    try:
        yield
    # ValueError: response maps that are not finite.
    except (InputError, ValueError, MemoryError, RuntimeError) as error:
        # "allocate" is torch's word for memory that is not there.
        if type(error) is RuntimeError and "allocate" not in str(error):
            raise
        text = reason(error)
        picture.error = text if text.startswith(str(picture.file)) else f"{picture.file}: {text}"


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    seconds[stage] = time.perf_counter() - started


def _with_maps_of(answer: Segmentation, count: int) -> Segmentation:
    """The answer with the Peak Response Maps of its first instances only.

    The others are large, and would be kept while the next picture is walked. Clones: all are views of one array.
    """
    empty = torch.zeros(0, 0)
    instances = [replace(one, prm=one.prm.clone() if k < count else empty) for k, one in enumerate(answer.instances)]
    return replace(answer, instances=instances)


def _check_cache(cache: Path) -> None:
    """A cache that cannot be used ends the run: it would fail with every picture."""
    try:
        cache.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{cache}: cannot be used as the cache ({reason(error)}); name another folder") from error


def _source(proposals: Path | None, files: Sequence[Path], limit: int, cache: Path | None):
    """The function from (file, picture) to its proposals."""
    if proposals is None:
        return lambda file, image: proposals_for(image, cache, limit)
    reader = open_proposals(proposals)
    if reader.one_picture and len(files) > 1:
        raise InputError(
            f"{proposals}: one file of proposals, but {len(files)} pictures; give a folder with NAME.json each"
        )
    return lambda file, image: read_rated(reader, str(file), image)


def _stems(names: Sequence[str]) -> list[str]:
    """What each picture's files begin with, unlike all others: a.png and a.jpg become a and a-2."""
    taken: set[str] = set()
    stems = []
    for name in map(PurePosixPath, names):
        own = stem = (name.parent / name.stem).as_posix()
        k = 1
        while stem.casefold() in taken:  # some file systems take A and a for one
            k += 1
            stem = f"{own}-{k}"
        taken.add(stem.casefold())
        stems.append(stem)
    return stems
