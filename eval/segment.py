"""From picture files to a folder of answers: overlays, panels, instances.json and a gallery."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from prm import InputError
from prm.accelerated import Proposals, Segmenter
from prm.files import reason

from .export import write_instances
from .figures import Entry, gallery, instance_rows, overlay, panel, write_png
from .images import read_image
from .proposals import authors_json, proposals_for


@dataclass
class Answers:
    """What `segment_files` did: instances found, errors and seconds by stage, by file name."""

    instances: int = 0
    errors: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, dict[str, float]] = field(default_factory=dict)


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
    """Segment picture files one after the other, so that memory does not grow with their number.

    proposals: a file of the PRM authors' format for a single picture, or a folder with NAME.json for each NAME.*; None
    generates `limit` of them. A picture that cannot be used is remembered in `errors` and the rest is done; what cannot
    be written ends the run with InputError.
    """
    answers, entries, results = Answers(), [], []
    if cache is not None:
        _check_cache(cache)
    source = _source(proposals, files, limit, cache)
    for number, (file, stem) in enumerate(zip(files, _stems(files)), start=1):
        try:
            image = read_image(file)
            started = time.perf_counter()
            candidates = source(file, image)
            spent = {"proposals": time.perf_counter() - started}
            answer = segmenter([image], [candidates])[0]
        # ValueError: response maps that are not finite. Nothing that one picture does may cost the others.
        except (InputError, ValueError, MemoryError, RuntimeError) as error:
            # "allocate" is torch's word for memory that is not there.
            if type(error) is RuntimeError and "allocate" not in str(error):
                raise
            text = reason(error)
            text = text if text.startswith(str(file)) else f"{file}: {text}"
            answers.errors[str(file)] = text
            entries.append(Entry(name=str(file), error=text))
            tick(file.name)
            continue
        write_png(out / f"{stem}.overlay.png", overlay(image, answer, class_names))
        write_png(out / f"{stem}.panel.png", panel(image, answer, class_names))
        entries.append(Entry(str(file), out / f"{stem}.panel.png", out / f"{stem}.overlay.png",
                             instance_rows(answer, class_names)))  # fmt: skip
        answers.instances += len(answer.instances)
        answers.seconds[str(file)] = spent | answer.seconds
        results.append((_without_maps(answer), number, file.name))
        tick(file.name)
    write_instances(out / "instances.json", results, range(1, len(class_names) + 1))
    settings = {"command": command, "classes": ", ".join(class_names), **asdict(segmenter.settings)}
    gallery(entries, out / "index.html", "Instances from class peak responses", settings)
    return answers


def _without_maps(answer):
    """The answer without its Peak Response Maps, which instances.json does not hold and which are large."""
    empty = torch.zeros(0, 0)
    return replace(answer, maps=empty, instances=[replace(i, prm=empty) for i in answer.instances])


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
    if not proposals.exists():
        raise InputError(f"{proposals}: no such file or folder of proposals")
    if not proposals.is_dir() and len(files) > 1:
        raise InputError(
            f"{proposals}: one file of proposals, but {len(files)} pictures; give a folder with NAME.json each"
        )

    def read(file: Path, image: np.ndarray) -> Proposals:
        path = proposals / f"{file.stem}.json" if proposals.is_dir() else proposals
        return authors_json.read(path, image.shape[:2])

    return read


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
