"""`prm eval tables`: the paper's experiments on any data set."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated

import typer

from prm import InputError
from prm.files import atomic_write

from .shared import (
    Cache,
    ClassThreshold,
    Device,
    Every,
    InputSize,
    Json,
    Limit,
    Proposals,
    command_line,
    given,
    make_folder,
    open_segmenter,
    out_console,
    progress_bar,
    write_figures,
)

RunFiles = Annotated[
    list[Path] | None, typer.Argument(metavar="[RUN.json...]", help="Runs judged before: the files in their --out.")
]
Data = Annotated[Path | None, typer.Option("--data", metavar="PATH", help="A data set, to judge networks on it now.")]
Split = Annotated[str, typer.Option(help="Which part of it: val, seg-val (VOC's masks), ..., or 'all'.")]
Name = Annotated[str | None, typer.Option(help="What to call the data set in the tables; default: its file name.")]
Networks = Annotated[
    list[Path] | None,
    typer.Option("--checkpoint", "-c", metavar="PATH",
                 help="A trained network; repeat for several: other aggregations, other seeds."),
]  # fmt: skip
Out = Annotated[
    Path, typer.Option("--out", "-o", metavar="FOLDER", help="Where the answers go: a JSON file a run, tables.md.")
]
Work = Annotated[
    Path | None,
    typer.Option(metavar="FOLDER", help="Where finished pictures are kept; default: OUT/studies. An interrupted run "
                 "goes on from there."),
]  # fmt: skip
Step = Annotated[int, typer.Option(min=1, help="Take every n-th picture only.")]
Masks = Annotated[bool, typer.Option(help="Without masks: Table 1 alone, from forward passes and boxes.")]
Bootstrap = Annotated[int, typer.Option(min=0, help="Samples of pictures behind each interval; 0 for no intervals.")]


def tables_command(
    runs: RunFiles = None, data: Data = None, split: Split = "val", name: Name = None, checkpoint: Networks = None,
    out: Out = Path("prm-tables"), work: Work = None, proposals: Proposals = None, limit: Limit = 1000,
    cache: Cache = None, every: Step = 1, class_threshold: ClassThreshold = None, size: InputSize = None,
    bootstrap: Bootstrap = 500, masks: Masks = True, device: Device = "cpu", json_file: Json = None,
) -> None:  # fmt: skip
    """Tables 1 to 6 and Figure 6 of the paper, its own numbers beside those of your networks on your data; and which of
    its claims your runs bear out.

    Networks are judged with --data and --checkpoint, or taken from the files of earlier runs; --data alone gives the
    rows that need no network. Under torchrun the pictures are split over the processes, with the same answer.
    """
    started = time.perf_counter()
    judged = judge_all(data, split, name, checkpoint, out, work, proposals, limit, cache, every, bootstrap, device,
                       given(class_threshold=class_threshold, size=size), masks)  # fmt: skip
    if judged is None:
        return
    text, found = _tables([*(runs or []), *(path for path, _ in judged)])
    if judged:
        atomic_write(out / "tables.md", text.encode())
    write_figures(json_file, {"claims": found}, started)
    out_console.print(text)


def judge_all(
    data, split, name, checkpoints, out, work, proposals, limit, cache, every, bootstrap, device, overrides, masks=True
):
    """(file, run) of each checkpoint judged now; None in all but the first process of a torchrun."""
    from ..datasets import open_dataset
    from ..judging.judge import judge
    from ..proposals import Source

    if data is None:
        if checkpoints:
            raise InputError("judging a network needs --data PATH")
        return []
    make_folder(out)
    source = Source(proposals, limit, cache) if masks else None
    if masks:
        source()  # what cannot be opened is said before the work
    judged = []
    with progress_bar() as progress:
        for path, stem in zip(checkpoints or [None], _stems(checkpoints or [Path("bounds")])):
            segmenter, trained = (None, None) if path is None else open_segmenter(path, device, **overrides)
            names = trained.class_names if trained else None
            dataset = open_dataset(data, split=None if split == "all" else split, class_names=names)
            samples = Every(dataset, every)
            about = {"data": name or data.name, "split": split, "every": every, "path": str(data.resolve()),
                     "pictures": len(samples)}  # fmt: skip
            task = progress.add_task(stem, total=len(samples))
            run = judge(segmenter, trained, samples, dataset.class_names, about, source, work or out / "studies",
                        bootstrap, lambda task=task: progress.advance(task))  # fmt: skip
            if run is None:
                continue
            file, spent = out / f"{stem}.json", sum(run.figures["seconds_per_picture"].values()) * len(samples)
            page = {"command": command_line(), "seconds": round(spent, 2)} | run.figures
            atomic_write(file, (json.dumps(page, indent=1, allow_nan=False) + "\n").encode())
            judged.append((file, run))
    return judged or None


def _stems(checkpoints: list[Path]) -> list[str]:
    """A name for each checkpoint's file: that of its folder or .json; of several alike with the folder around it."""
    stems = [path.stem if path.suffix == ".json" else path.resolve().name for path in checkpoints]
    folders = [path.resolve().parent.name for path in checkpoints]
    stems = [f"{f}-{stem}" if stems.count(stem) > 1 else stem for f, stem in zip(folders, stems)]
    twice = {stem for stem in stems if stems.count(stem) > 1}
    if twice:
        raise InputError(f"two checkpoints are called {min(twice)!r}: their files would be the same; rename one folder")
    return stems


def _tables(files: list[Path]) -> tuple[str, list[dict]]:
    """All tables as Markdown, and the claims of every data set as JSON."""
    from ..experiments.claims import claims, claims_table
    from ..experiments.tables import by_data, read_runs, tables

    if not files:
        raise InputError("nothing to make tables of: give --data and --checkpoint, or the files of earlier runs")
    parts, found = [], []
    for runs in by_data(read_runs(files)):
        made = [*tables(runs), *([claims_table(runs)] if claims(runs) else [])]
        parts += [f"# {runs.label}", *(table.markdown() for table in made)]
        found.append({"data": runs.label, "claims": [vars(claim) for claim in claims(runs)]})
    return "\n\n".join(parts) + "\n", found
