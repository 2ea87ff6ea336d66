"""What several commands share: options, output, and checks before the work."""

from __future__ import annotations

import functools
import json
import math
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

import prm
from prm import InputError
from prm.files import atomic_write, json_bytes, reason
from prm.settings import AnswerSettings

console = Console(stderr=True, highlight=False)
out_console = Console(highlight=False, markup=False, soft_wrap=True)

LOG_EVERY = 15.0
"""Seconds between lines about the progress, where no terminal shows a bar."""
Json = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the figures to FILE.")]
Device = Annotated[str, typer.Option(help='Where to compute: "cpu", "cuda", "cuda:1", ...')]
Model = Annotated[
    Path | None,
    typer.Option("--model", "-m", "--checkpoint", "-c", metavar="NAME|PATH",
                 help="nuclei, the student for microscopy that comes with prm (default), or nuclei-prm, the network "
                 "that it learnt from (default of commands that need response maps); efficientnet_lite0, 1 or 2 "
                 "for photographs; a classifier of torchvision's by its name there; timm/NAME; hf/NAME, Hugging "
                 "Face's; or what `prm train` or `prm student train` wrote, a folder or .json."),
]  # fmt: skip
Classes = Annotated[
    str | None,
    typer.Option(metavar="WORD,WORD", help="What to look for, as cat,dog,bottle; default: all that the network knows."),
]
Weights = Annotated[
    Path | None, typer.Option(metavar="FILE", help="A .pth or .safetensors file of weights for the network named.")
]
Cache = Annotated[Path | None, typer.Option(metavar="FOLDER", help="Keep generated proposals here, to be found again.")]
Limit = Annotated[int, typer.Option(min=1, metavar="N", help="Most proposals generated for a picture.")]
DataOption = Annotated[
    Path, typer.Option("--data", metavar="PATH",
                       help="A data set: VOC, SBD, COCO, any COCO-format JSON, BBBC038, drawn scenes, a folder with "
                       "labels.csv or instances.json, or one of folders, one a class.")
]  # fmt: skip
Proposals = Annotated[
    Path | None,
    typer.Option(metavar="PATH", help="Proposals made by others: a file or folder of MCG, COB, DeepMask ... Default: "
                 "generated here."),
]  # fmt: skip

def open_segmenter(
    name: Path | None, device: str, weights: Path | None = None, classes: str | None = None,
    among: Callable[[], Sequence[str]] | None = None, answers: dict | None = None, **overrides,
):  # fmt: skip
    """The segmenter of the network or student of that name, and its checkpoint.

    answers: settings of a student's answers that were given; None where a command needs maps, which students lack.
    overrides: settings of Algorithm 1 that were given.
    """
    from prm.accelerated import Segmenter
    from prm.accelerated.pretrained import open_model
    from prm.accelerated.students.checkpoint import student_page

    # Without a name: the student that comes with prm; the classifier behind it where maps are needed.
    name = name or Path("nuclei" if answers is not None else "nuclei-prm")
    if (page := student_page(name)) is not None:
        return _open_student(page, device, weights, words_of(classes), answers, overrides)
    if answers:
        raise InputError(f"{_flags(answers)}: for students, as prm student train makes them")
    checkpoint, device = open_model(name, weights, words_of(classes), among), usable_device(device)
    try:
        return Segmenter.from_checkpoint(checkpoint, device, **overrides), checkpoint
    except (InputError, ValueError) as error:
        raise InputError(f"{name}: {error}") from error


def _open_student(page: Path, device: str, weights, words, answers: dict | None, overrides: dict):
    from prm.accelerated.students.checkpoint import load_student
    from prm.accelerated.students.segmenter import StudentSegmenter

    if answers is None:
        raise InputError(f"{page}: a student, which has no response maps; name a network, as nuclei-prm")
    if weights is not None:
        raise InputError(f"{weights}: weights are for a network by name; a student has its own")
    shared = {name: overrides.pop(name) for name in ("min_score",) if name in overrides}
    if overrides:
        raise InputError(f"{_flags(overrides)}: of Algorithm 1, which a student does not run; leave it out, or name a "
                         "network, as --model nuclei-prm")  # fmt: skip
    found, settings = load_student(page), AnswerSettings(**answers, **shared)
    return StudentSegmenter(found.model().to(usable_device(device)), found.class_names, settings, words), found


def _flags(given: dict) -> str:
    return ", ".join(f"--{name.replace('_', '-')}" for name in given)


def open_with_data(name: Path | None, data: Path, split: str, device: str, **options):
    """A network and a data set that it is judged on: segmenter, checkpoint, dataset with the segmenter's classes.

    A network of ImageNet looks for those classes of the data set that it knows, and the others are left out, as are
    those that --classes does not name.
    """
    from ..datasets import open_dataset
    from ..datasets.subset import OfClasses

    @functools.cache
    def opened(class_names=None):
        return open_dataset(data, split=None if split == "all" else split, class_names=class_names)

    segmenter, found = open_segmenter(name, device, among=lambda: opened().class_names, **options)
    names = segmenter.classes.names
    return segmenter, found, opened(names) if segmenter.classes.members is None else OfClasses(opened(), names)


def words_of(option: str | None) -> list[str] | None:
    """The words of --classes. Raises InputError where there is none."""
    if option is None:
        return None
    words = [word.strip() for word in option.split(",") if word.strip()]
    if not words:
        raise InputError("--classes names no class; give words as cat,dog")
    return words


def usable_device(name: str) -> str:
    import torch

    try:
        torch.zeros(1, device=name).item()  # read back: "meta" makes tensors, but computes nothing
    except (RuntimeError, AssertionError, ImportError) as error:
        why = reason(error)[:100]
        raise InputError(f"device {name!r} cannot be used here ({why}); use --device cpu") from error
    return name


def check_finite(**options: float | None) -> None:
    for name, value in options.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise InputError(f"--{name.replace('_', '-')} is {value}; give a number")


def make_folder(path: Path) -> None:
    """Before the work and not after it: an output that cannot be written must not cost an hour."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{path}: cannot be made the output folder ({reason(error)}); name another place") from error


def check_masks(samples, data: Path, purpose: str) -> None:
    if samples[0].masks is None:
        raise InputError(f"{data}: has no instance masks (instances.json), without which there is no {purpose}")


def check_proposals(segmenter, proposals: Path | None) -> None:
    """Raise InputError for proposals that nothing would look at."""
    from prm.accelerated.students.segmenter import wants_proposals

    if proposals is not None and not wants_proposals(segmenter):
        raise InputError("--proposals: a student answers without; add --refine, which lets its masks snap to them")


class Every:
    """Every n-th picture of a data set, read when asked for."""

    def __init__(self, dataset, n: int):
        self.dataset, self.indices = dataset, range(0, len(dataset), n)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, i: int):
        return self.dataset[self.indices[i]]


def print_table(table: Table) -> None:
    """As wide as it is where it goes to a file."""
    Console(highlight=False, width=None if sys.stdout.isatty() else 400).print(table)


def check_one_of(option: str, names, known) -> None:
    for name in names:
        if name not in known:
            raise InputError(f"{option} {name}: known are {', '.join(known)}")


def json_option(text: str, option: str) -> dict:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise InputError(f"{option} {text!r} is not JSON ({error})") from error
    if not isinstance(value, dict):
        raise InputError(f"{option} must be a JSON object, not {text!r}")
    return value


def command_line() -> str:
    return shlex.join(["prm", *sys.argv[1:]])


def write_figures(path: Path | None, figures: dict, started: float) -> None:
    """The figures of a command, with what is needed to make them again."""
    if path is None:
        return
    import torch

    page = {
        "command": command_line(), "version": prm.__version__, "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "seconds": round(time.perf_counter() - started, 2), **figures,
    }  # fmt: skip
    atomic_write(path, json_bytes(page, allow_nan=True))


@contextmanager
def progress_bar():
    """How far the work is, and how long it may still take: a bar in a terminal, else a line now and then."""
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"),
               TimeRemainingColumn(), TextColumn("{task.fields[info]}"))  # fmt: skip
    kind = _Progress if console.is_terminal else _Log
    # Pictures may take long each: what an estimate is made from must not lie within the last half minute alone.
    with kind(*columns, console=console, speed_estimate_period=300) as progress:
        yield progress


class _Progress(Progress):
    def add_task(self, description, **options):
        return super().add_task(description, **({"info": ""} | options))


class _Log(_Progress):
    """Lines for a file, at most one every `LOG_EVERY` seconds, the first after that time."""

    def __init__(self, *columns, **options):
        super().__init__(*columns, disable=True, **options)
        self._said = time.monotonic()

    def update(self, task_id, **changes):
        super().update(task_id, **changes)
        self._say(task_id)

    def advance(self, task_id, advance=1):
        super().advance(task_id, advance)
        self._say(task_id)

    def _say(self, task_id) -> None:
        task = self._tasks[task_id]
        if time.monotonic() - self._said < LOG_EVERY or not task.total:
            return
        self._said = time.monotonic()
        left = f", about {_duration(task.time_remaining)} left" if task.time_remaining else ""
        done = f"{task.description}: {task.completed:g} of {task.total:g}"
        self.console.print(f"{done}{left}  {task.fields['info']}".rstrip(), soft_wrap=True)


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
