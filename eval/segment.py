"""From picture files to a folder of answers: overlays, panels, instances.json and a gallery."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from prm import InputError
from prm.accelerated import Proposals, Segmentation, Segmenter
from prm.files import reason

from .pictures.export import to_coco_results, write_results
from .pictures.figures import Entry, gallery, instance_rows, overlay, panel, write_png
from .pictures.images import read_image
from .pictures.memory import SteadyMemory
from .pictures.pipeline import in_order, threads
from .proposals import open_proposals, proposals_for

PRMS = 4  # shown in a panel


@dataclass
class Answers:
    """What `segment_files` did.

    instances : how many were found
    errors : by file name, one line of why the picture could not be used
    wall : seconds from the first picture's reading to the last file's writing
    pictures : by file name, {"seconds": by stage, "memory_mb": held by the process once the picture was done, or None}
    """

    instances: int = 0
    wall: float = 0.0
    errors: dict[str, str] = field(default_factory=dict)
    pictures: dict[str, dict] = field(default_factory=dict)


@dataclass
class _Picture:
    """A picture on its way: each stage adds what the next one needs, and the last one leaves only what is small."""

    file: Path
    stem: str
    number: int
    image: np.ndarray | None = None
    proposals: Proposals | None = None
    answer: Segmentation | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    error: str | None = None
    entry: Entry | None = None
    results: list[dict] = field(default_factory=list)


def segment_files(
    segmenter: Segmenter,
    class_names: Sequence[str],
    files: Sequence[Path],
    out: Path,
    proposals: Path | None = None,
    limit: int = 1000,
    cache: Path | None = None,
    command: str = "",
    tick: Callable[[str], None] = lambda name: None,
) -> Answers:
    """Segment picture files: while one is walked, the next is read and gets its proposals, and the last is drawn.

    The answers are those of one picture after the other, and memory does not grow with their number.

    proposals: a file or folder that `open_proposals` reads, all of them; None generates `limit`. tick: called with each
    picture's name, in the order of `files`, once it is done.

    A picture that cannot be used is remembered in `errors` and the rest is done; what cannot be written ends the run
    with InputError.
    """
    if cache is not None:
        _check_cache(cache)
    source = _source(proposals, files, limit, cache)
    pictures = (_Picture(file, stem, k) for k, (file, stem) in enumerate(zip(files, _stems(files)), start=1))
    answers, entries, results = Answers(), [], []
    started, memory = time.perf_counter(), SteadyMemory()
    with threads(2) as (before, after):
        prepared = in_order(before, partial(_prepare, source), pictures)
        walked = map(partial(_walk, segmenter), prepared)
        for picture in in_order(after, partial(_finish, out, class_names), walked):
            entries.append(picture.entry)
            results += picture.results
            name = str(picture.file)
            answers.pictures[name] = {"seconds": picture.seconds, "memory_mb": memory()}
            if picture.error is not None:
                answers.errors[name] = picture.error
            tick(picture.file.name)
    answers.instances = len(results)
    write_results(out / "instances.json", results)
    settings = {"command": command, "classes": ", ".join(class_names), **asdict(segmenter.settings)}
    gallery(entries, out / "index.html", "Instances from class peak responses", settings)
    answers.wall = time.perf_counter() - started
    return answers


def _prepare(source: Callable, picture: _Picture) -> _Picture:
    with _errors_of(picture):
        with _timed(picture.seconds, "read"):
            picture.image = read_image(picture.file)
        with _timed(picture.seconds, "proposals"):
            picture.proposals = source(picture.file, picture.image)
    return picture


def _walk(segmenter: Segmenter, picture: _Picture) -> _Picture:
    if picture.error is None:
        with _errors_of(picture):
            answer = segmenter([picture.image], [picture.proposals])[0]
            picture.answer = _with_maps_of(answer, PRMS)
            picture.seconds |= answer.seconds
    picture.proposals = None
    return picture


def _finish(out: Path, class_names: Sequence[str], picture: _Picture) -> _Picture:
    """Write the picture's files; keep what instances.json and the gallery say of it."""
    if picture.error is None:
        overlay_file, panel_file = (out / f"{picture.stem}.{kind}.png" for kind in ("overlay", "panel"))
        with _timed(picture.seconds, "drawing"):
            write_png(overlay_file, overlay(picture.image, picture.answer, class_names))
            write_png(panel_file, panel(picture.image, picture.answer, class_names, PRMS))
            categories = range(1, len(class_names) + 1)
            picture.results = to_coco_results(picture.answer, picture.number, categories, picture.file.name)
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
    return lambda file, image: reader(str(file), image.shape[:2])[0]


def _stems(files: Sequence[Path]) -> list[str]:
    """A name for each picture's files, unlike all others: a.png and a.jpg become a and a-2."""
    taken: set[str] = set()
    stems = []
    for file in files:
        stem, k = file.stem, 1
        while stem in taken:
            k += 1
            stem = f"{file.stem}-{k}"
        taken.add(stem)
        stems.append(stem)
    return stems
