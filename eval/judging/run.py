"""One pass over a data set: a record a picture, in files, in order, by several processes; and the figures of the run.

Finished pictures are kept, so that an interrupted run goes on where it was; what waits and what is held does not grow
with their number.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import prm
from prm import InputError
from prm.accelerated import SegmentationSettings, Segmenter
from prm.accelerated.checkpoint import Checkpoint
from prm.accelerated.students.checkpoint import StudentCheckpoint
from prm.accelerated.students.segmenter import StudentSegmenter, wants_proposals
from prm.files import atomic_write
from prm.settings import AnswerSettings

from ..pictures.pipeline import in_order, threads
from ..proposals import Source
from .evaluators import figures_of
from .picture import judge_picture
from .record import Record, load_record, save_record

VERSION = 2  # raised whenever the same picture and settings give another record


@dataclass(frozen=True, eq=False)
class Judged:
    """A run: its figures (JSON), and the folder of its records, which hold them picture by picture."""

    figures: dict
    folder: Path
    samples: Sequence
    segmenter: Segmenter | StudentSegmenter | None
    checkpoint: Checkpoint | StudentCheckpoint | None
    source: Source | None


def judge(
    segmenter: Segmenter | StudentSegmenter | None,
    checkpoint: Checkpoint | StudentCheckpoint | None,
    samples: Sequence,
    class_names: Sequence[str],
    data: dict,
    source: Source | None,
    work: Path,
    bootstrap: int = 500,
    tick: Callable[[], None] = lambda: None,
    tables: bool = True,
) -> Judged | None:
    """Judge every picture, unless that has been done, and sum up; None in all but the first process of a torchrun.

    segmenter, checkpoint: None for what needs no network: the upper bounds. source: None for what needs no mask.
    data: {"data": its name, "split", ...}, whatever says which pictures these are; "path" stays out of the figures.
    work: where records are kept.
    bootstrap: samples behind the intervals; 0 for none.
    tables: also what Tables 1 to 6 show beside the method's own answer.
    """
    proposals = None if source is None else source.description()
    page = {"data": data, "classes": list(class_names), "proposals": proposals, "tables": tables}
    if source is not None and source.path is not None:
        page["files"] = str(source.path.resolve())
    if segmenter is not None:
        page["network"] = fingerprint(checkpoint, segmenter.settings)
    folder = run_folder(work, page)
    rank, processes = share_of_processes()
    propose = None if source is None or not wants_proposals(segmenter) else source()
    records(segmenter, samples, len(class_names), propose, folder, (rank, processes), tick, tables)
    wait_for_all(processes)
    if rank:
        return None
    run = {name: value for name, value in data.items() if name != "path"}
    run |= {"class_names": list(class_names), "proposals": proposals, "version": prm.__version__}
    run |= {"network": None, "aggregation": None, "seed": None}
    if segmenter is not None:
        run |= {
            "network": _network_name(origin(checkpoint).get("network") or checkpoint.student),
            "aggregation": origin(checkpoint).get("aggregation", {}).get("name"),
            "seed": checkpoint.training.get("seed", 0),
            "settings": asdict(segmenter.settings),
            "training": checkpoint.training,
        }
    if isinstance(checkpoint, StudentCheckpoint):
        run["student"] = {"learnt_from": checkpoint.learnt_from, "refined": segmenter.settings.refine}
    found = figures_of(list(load_records(folder, len(samples))), class_names, bootstrap)
    return Judged({"run": run} | found, folder, samples, segmenter, checkpoint, source)


def records(
    segmenter: Segmenter | StudentSegmenter | None,
    samples: Sequence,
    num_classes: int,
    propose: Callable | None,
    folder: Path,
    share: tuple[int, int] = (0, 1),
    tick: Callable[[], None] = lambda: None,
    tables: bool = True,
) -> None:
    """Judge all pictures of a data set, or one process's share of them; what `folder` holds already is not done again.

    propose: sample -> Proposals; called one picture ahead, in another thread. None leaves masks alone. share: (k, n),
    every n-th picture from the k-th on. tick: called after every picture. Raises InputError for what cannot be read or
    written.
    """
    numbers = range(share[0], len(samples), share[1])
    missing = [k for k in numbers if load_record(_file(folder, k)) is None]
    for _ in range(len(numbers) - len(missing)):
        tick()
    with threads(1) as (before,):
        prepared = in_order(before, partial(_prepare, propose), (samples[k] for k in missing))
        for k, one in zip(missing, prepared):
            save_record(_file(folder, k), judge_picture(segmenter, num_classes, one, tables))
            tick()


def load_records(folder: Path, count: int) -> Iterator[Record]:
    """The records of all pictures, in the data set's order; InputError where one is missing."""
    for k in range(count):
        found = load_record(_file(folder, k))
        if found is None:
            raise InputError(f"{_file(folder, k)}: missing or damaged; run the evaluation again, it fills the gap")
        yield found


def _prepare(propose: Callable | None, sample) -> tuple:
    """The sample with its picture and annotation read, its proposals (None where no mask is to be judged), and the
    seconds that they took."""
    began = time.perf_counter()
    _ = sample.image, sample.boxes  # read when first asked for: here, and not while the walk waits
    proposals = None if propose is None or sample.masks is None else propose(sample)
    return sample, proposals, time.perf_counter() - began


# ---- which run this is


def run_folder(work: Path, description: dict) -> Path:
    """Where the records of one run are kept: a folder named by what decides about them, with a `run.json` that says it.

    description: JSON; everything that the answers depend on.
    """
    page = json.dumps({"version": VERSION} | description, sort_keys=True, indent=1)
    folder = work / hashlib.sha256(page.encode()).hexdigest()[:16]
    if not (folder / "run.json").exists():
        atomic_write(folder / "run.json", page.encode())
    return folder


def fingerprint(checkpoint: Checkpoint | StudentCheckpoint, settings: SegmentationSettings | AnswerSettings) -> dict:
    """What a network's answers depend on: its settings and input, and a hash of all its parameters."""
    digest = hashlib.sha256()
    for name, tensor in sorted(checkpoint.state.items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    seen = {"input": getattr(checkpoint, "input", None)}  # a student's are among its options
    return {"parameters": digest.hexdigest(), "settings": asdict(settings), **origin(checkpoint), **seen}


def origin(checkpoint: Checkpoint | StudentCheckpoint) -> dict:
    """What a checkpoint is, without its weights."""
    names = ("student",) if isinstance(checkpoint, StudentCheckpoint) else ("network", "aggregation")
    return {name: getattr(checkpoint, name) for name in names}


def _file(folder: Path, number: int) -> Path:
    return folder / f"{number:06d}.npz"


def _network_name(network: dict) -> str:
    """Name and options in few words, such as "smallnet (widths 16-32, pools 3)": networks of a table are told apart."""
    options = ", ".join(
        f"{name} {'-'.join(map(str, value)) if isinstance(value, list) else value}"
        for name, value in network.get("options", {}).items()
    )
    return network["name"] + (f" ({options})" if options else "")


# ---- several processes


def share_of_processes() -> tuple[int, int]:
    """(rank, number of processes) as torchrun sets them; (0, 1) without it."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def wait_for_all(processes: int) -> None:
    """Returns once every process of a torchrun has come here."""
    if processes > 1:
        from datetime import timedelta

        import torch.distributed as dist

        if not dist.is_initialized():
            dist.init_process_group("gloo", timeout=timedelta(days=7))
        dist.barrier()
