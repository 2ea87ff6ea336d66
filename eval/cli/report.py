"""`prm eval report`: one HTML file about runs, and the same as JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from prm import InputError
from prm.files import atomic_write

from .paper import (
    Bootstrap,
    Data,
    Name,
    Networks,
    Proposals,
    RunFiles,
    Split,
    Step,
    Work,
    judge_all,
)
from .shared import (
    Cache,
    ClassThreshold,
    Device,
    InputSize,
    Limit,
    command_line,
    given,
    make_folder,
    out_console,
    progress_bar,
)

Out = Annotated[
    Path, typer.Option("--out", "-o", metavar="FOLDER", help="Where report.html, report.json and a JSON file a run go.")
]


def report_command(
    runs: RunFiles = None, data: Data = None, split: Split = "val", name: Name = None, checkpoint: Networks = None,
    out: Out = Path("prm-report"), work: Work = None, proposals: Proposals = None, limit: Limit = 1000,
    cache: Cache = None, every: Step = 1, class_threshold: ClassThreshold = None, size: InputSize = None,
    bootstrap: Bootstrap = 500, device: Device = "cpu",
) -> None:  # fmt: skip
    """One HTML file, which needs no network to be read, with the tables of `prm eval tables`, Figure 6, curves of
    precision and recall, pictures of successes and failures, and the settings; and the same as JSON.

    Networks are judged with --data and --checkpoint, or taken from the files of earlier runs, which then show no
    pictures. Interrupted, it goes on where it was; under torchrun the pictures are split over the processes.
    """
    if any(path.stem == "report" for path in checkpoint or []):
        raise InputError("a checkpoint is called 'report': its file would be report.json itself; rename it")
    judged = judge_all(data, split, name, checkpoint, out, work, proposals, limit, cache, every, bootstrap, device,
                       given(class_threshold=class_threshold, size=size))  # fmt: skip
    if judged is None:
        return
    files = [*(runs or []), *(path for path, _ in judged)]
    if not files:
        raise InputError("nothing to report on: give --data and --checkpoint, or the files of earlier runs")
    from ..experiments.report import as_json, parts
    from ..experiments.report_page import page
    from ..experiments.tables import by_data, read_runs

    groups = by_data(read_runs(files))
    make_folder(out)
    with progress_bar() as progress:
        task = progress.add_task("pictures of failures", total=None, visible=False)
        found = parts(groups, [run for _, run in judged],
                      lambda total: progress.update(task, advance=1, total=total, visible=True))  # fmt: skip
    atomic_write(out / "report.json", as_json(found, command_line()))
    atomic_write(out / "report.html", page(found, command_line()))
    out_console.print(str(out / "report.html"))
