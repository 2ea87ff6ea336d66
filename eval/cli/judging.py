"""`prm eval`, `prm eval tables`, `prm eval report`, `prm eval compare`: views of one pass over a data set."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from prm import InputError
from prm.files import atomic_write, json_bytes

from .options import answer_options, segmentation_options
from .shared import (
    Cache,
    Classes,
    Device,
    Every,
    Json,
    Limit,
    Model,
    Proposals,
    Weights,
    check_masks,
    command_line,
    console,
    make_folder,
    open_with_data,
    out_console,
    progress_bar,
    words_of,
    write_figures,
)

app = typer.Typer(help="Judge a network on a data set with masks.", invoke_without_command=True)


Data = Annotated[Path | None, typer.Option("--data", metavar="PATH", help="A data set, to judge networks on it now.")]
Split = Annotated[str, typer.Option(help="Which part of it: train, val, seg-val (VOC's masks), ..., or 'all'.")]
Step = Annotated[int, typer.Option(min=1, help="Take every n-th picture only.")]
RunFiles = Annotated[
    list[Path] | None, typer.Argument(metavar="[RUN.json...]", help="Runs judged before: the files in their --out.")
]
Name = Annotated[str | None, typer.Option(help="What to call the data set in the tables; default: its file name.")]
Networks = Annotated[
    list[Path] | None,
    typer.Option("--model", "-m", "--checkpoint", "-c", metavar="NAME|PATH",
                 help="A network as `prm segment` takes it; repeat for several: other aggregations, other seeds."),
]  # fmt: skip
Out = Annotated[
    Path, typer.Option("--out", "-o", metavar="FOLDER", help="Where the answers go, and a JSON file of each run.")
]
Work = Annotated[
    Path | None,
    typer.Option(metavar="FOLDER", help="Where finished pictures are kept; default: OUT/studies. An interrupted run "
                 "goes on from there."),
]  # fmt: skip
Masks = Annotated[bool, typer.Option(help="Without masks: Table 1 alone, from forward passes and boxes.")]
Bootstrap = Annotated[int, typer.Option(min=0, help="Samples of pictures behind each interval; 0 for no intervals.")]


# ---- the short view


@app.callback(invoke_without_command=True)
@answer_options
@segmentation_options
def evaluate_command(
    context: typer.Context, segmentation: dict, answers: dict, data: Data = None, split: Split = "val",
    checkpoint: Model = None, weights: Weights = None, classes: Classes = None,
    baseline: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Beside a watershed, as it comes and tuned on every N-th picture of the "
                     "train split (one class only)."),
    ] = None,
    every: Step = 1, proposals: Proposals = None, limit: Limit = 1000, cache: Cache = None,
    work: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Keep finished pictures here: an interrupted run goes on from there."),
    ] = None,
    predictions: Annotated[
        Path | None,
        typer.Option(metavar="DIR|FILE", help="Judge instances that lie in files, and no network: what `prm segment` "
                     "wrote, COCO results (.json), or a folder of label images (.png, .tif)."),
    ] = None,
    device: Device = "cpu", json_file: Json = None,
) -> None:  # fmt: skip
    """Classification mAP, mAP^r at IoU 0.25 / 0.5 / 0.75 and average best overlap (ABO) of a network on a data set:
    the short view of what `prm eval tables` shows."""
    if context.invoked_subcommand is not None:
        return
    if data is None:
        raise InputError("prm eval needs --data PATH (or a subcommand, see --help)")
    if predictions is not None:
        other = {"--model": checkpoint, "--weights": weights, "--baseline": baseline, "--proposals": proposals,
                 "--cache": cache, "--work": work}  # fmt: skip
        if unused := [name for name, given in other.items() if given]:
            raise InputError(f"--predictions judges what lies in files: leave out {', '.join(unused)}")
        return _of_predictions(data, split, classes, every, predictions, json_file)
    from ..judging.run import origin
    from ..judging.short import short_view
    from ..proposals import Source

    started = time.perf_counter()
    with _kept(work) as folder, progress_bar() as progress:
        opening = {"device": device, "weights": weights, "classes": classes, "answers": answers} | segmentation
        run = _judge(data, split, None, checkpoint, every, Source(proposals, limit, cache), folder, 0, opening,
                     progress, "segmenting", tables=False)  # fmt: skip
        if run is None:
            return
        rows = {"prm": short_view(run.figures)}
        if baseline:
            rows |= _baseline(data, run.samples, baseline, progress)
    trained = run.checkpoint
    figures = {
        "data": data.name,
        "split": split,
        "settings": asdict(run.segmenter.settings),
        "checkpoint": {name: getattr(trained, name) for name in (*origin(trained), "training", "figures")},
        "rows": rows,
    }
    write_figures(json_file, figures, started)
    out_console.print(_figures_table(rows))


def _of_predictions(data, split, classes, every, path: Path, json_file) -> None:
    """The short view of instances that lie in files."""
    from ..datasets import open_dataset
    from ..datasets.subset import OfClasses
    from ..judging.predictions import judge_predictions

    started = time.perf_counter()
    dataset = open_dataset(data, split=None if split == "all" else split)
    categories = getattr(dataset, "categories", dict(enumerate(dataset.class_names, start=1)))
    if (words := words_of(classes)) is not None:
        if unknown := [word for word in words if word not in dataset.class_names]:
            raise InputError(f"the data set has no class {unknown[0]!r}; it has {', '.join(dataset.class_names)}")
        dataset = OfClasses(dataset, words)
    samples = Every(dataset, every)
    check_masks(samples, data, "judging")
    with progress_bar() as progress:
        task = progress.add_task("judging", total=len(samples))
        figures, unknown = judge_predictions(samples, list(dataset.class_names), path, categories,
                                             lambda: progress.advance(task))  # fmt: skip
    if unknown:
        names = ", ".join(f"{name} ({count})" for name, count in unknown.most_common(5))
        console.print(f"left out, of classes that are not judged: {names}")
    rows = {path.name: figures}
    page = {"data": data.name, "split": split, "predictions": path.name, "left_out": dict(unknown), "rows": rows}
    write_figures(json_file, page, started)
    out_console.print(_figures_table(rows))


@contextmanager
def _kept(work: Path | None) -> Iterator[Path]:
    """The folder of a run's records: the one given, or one that goes with the run."""
    from ..judging.run import share_of_processes

    if work is not None:
        make_folder(work)
        yield work
    elif share_of_processes()[1] > 1:
        raise InputError("several processes share the pictures of a run: say where they keep them, with --work FOLDER")
    else:
        with tempfile.TemporaryDirectory(prefix="prm-eval-") as folder:
            yield Path(folder)


def _baseline(data: Path, samples, every: int, progress) -> dict:
    from ..datasets import open_dataset
    from ..judging.watershed import WATERSHED_GRID, WatershedSettings, evaluate_watershed, tune_watershed

    training = Every(open_dataset(data, split="train"), every)
    if len(training.dataset.class_names) != 1:
        raise InputError("--baseline is for data sets of one class: a watershed tells no classes apart")
    check_masks(training, data, "baseline")
    task = progress.add_task("tuning the watershed", total=len(WATERSHED_GRID))
    # Read once: the grid goes over them many times.
    tuned, on_training = tune_watershed([training[i] for i in range(len(training))], lambda: progress.advance(task))
    before = evaluate_watershed(samples, WatershedSettings())
    after = evaluate_watershed(samples, tuned)
    after |= {"settings": asdict(tuned), "on_training": on_training}
    return {"watershed": before, "watershed, tuned": after}


def _figures_table(rows: dict) -> Table:
    from ..judging.short import COLUMNS

    table = Table("", *COLUMNS.values(), "found / true")
    for name, f in rows.items():
        shown = [f.get(column) for column in COLUMNS]
        counts = f"{f['predicted_instances']} / {f['true_instances']}" if "ABO" in f else "no masks"
        table.add_row(name, *("-" if x is None else f"{100 * x:.1f}" for x in shown), counts)
    return table


@app.command("compare")
def compare(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN.json...", help="Files of `prm eval --json`, or runs of `eval tables`.")
    ],
) -> None:
    """One table from the JSON files of several runs: mean and standard deviation over the seeds of each kind."""
    from ..judging.short import comparison

    print(comparison(runs))


# ---- one pass


def _judge(data, split, name, checkpoint, every, source, work, bootstrap, opening, progress, title,
           tables=True):  # fmt: skip
    """One network on one data set: a `Judged`, or None in all but the first process of a torchrun.

    checkpoint: None is the network that comes with prm; False is none at all. source: None leaves masks alone.
    opening: how `open_segmenter` opens it.
    """
    from ..datasets import open_dataset
    from ..judging.run import judge

    if checkpoint is False:
        segmenter, trained = None, None
        dataset = open_dataset(data, split=None if split == "all" else split)
    else:
        segmenter, trained, dataset = open_with_data(checkpoint, data, split, **opening)
    samples = Every(dataset, every)
    about = {"data": name or data.name, "split": split, "every": every, "path": str(data.resolve()),
             "pictures": len(samples)}  # fmt: skip
    task = progress.add_task(title, total=len(samples))
    return judge(segmenter, trained, samples, dataset.class_names, about, source, work, bootstrap,
                 lambda: progress.advance(task), tables)  # fmt: skip


def _judge_all(data, split, name, checkpoints, out, work, proposals, limit, cache, every, bootstrap, opening,
               segmentation, answers=None, masks=True):  # fmt: skip
    """(file, run) of each checkpoint judged now; None in all but the first process of a torchrun.

    segmentation: settings given for networks; answers: those for students, None where there must be none.
    """
    from prm.accelerated.students.checkpoint import student_page

    from ..proposals import Source

    if data is None:
        if checkpoints:
            raise InputError("judging a network needs --data PATH")
        return []
    make_folder(out)
    if "choice" not in segmentation:  # the paper's tables are about its own rules
        others = {"nms_nested": None, "choose_again": False, "min_score": None, "views": 1, "scales": None}
        segmentation = {"choice": "eq6", **others} | segmentation
    source = Source(proposals, limit, cache) if masks else None
    if masks:
        source()  # what cannot be opened is said before the work
    judged = []
    with progress_bar() as progress:
        for path, stem in zip(checkpoints or [False], _stems(checkpoints or [Path("bounds")])):
            student = bool(path) and student_page(path) is not None
            own = {"answers": answers} | opening if student else opening | segmentation
            run = _judge(data, split, name, path, every, source, work or out / "studies", bootstrap, own, progress,
                         stem)  # fmt: skip
            if run is None:
                continue
            file, spent = out / f"{stem}.json", sum(run.figures["seconds_per_picture"].values()) * len(run.samples)
            page = {"command": command_line(), "seconds": round(spent, 2)} | run.figures
            atomic_write(file, json_bytes(page))
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


# ---- the paper's tables


@answer_options
@segmentation_options
def tables_command(
    segmentation: dict, answers: dict, runs: RunFiles = None, data: Data = None, split: Split = "val",
    name: Name = None, checkpoint: Networks = None, weights: Weights = None, classes: Classes = None,
    out: Out = Path("prm-tables"), work: Work = None, proposals: Proposals = None, limit: Limit = 1000,
    cache: Cache = None, every: Step = 1, bootstrap: Bootstrap = 500, masks: Masks = True, device: Device = "cpu",
    json_file: Json = None,
) -> None:  # fmt: skip
    """Tables 1 to 6 and Figure 6 of the paper, its own numbers beside those of your networks on your data; and which of
    its claims your runs bear out.

    Networks are judged with --data and --checkpoint, or taken from the files of earlier runs; --data alone gives the
    rows that need no network. Of students, WISE's table: name the classifier and its students in one command.
    Proposals are chosen by Eq. 6, as in the paper, unless --choice says otherwise. Under torchrun the pictures are
    split over the processes, with the same answer.
    """
    started = time.perf_counter()
    opening = {"device": device, "weights": weights, "classes": classes}
    judged = _judge_all(data, split, name, checkpoint, out, work, proposals, limit, cache, every, bootstrap, opening,
                        segmentation, answers, masks)  # fmt: skip
    if judged is None:
        return
    text, found = _tables([*(runs or []), *(path for path, _ in judged)])
    if judged:
        atomic_write(out / "tables.md", text.encode())
    write_figures(json_file, {"claims": found}, started)
    out_console.print(text)


def _tables(files: list[Path]) -> tuple[str, list[dict]]:
    """All tables as Markdown, and the claims of every data set as JSON."""
    from ..experiments.claims import claims, claims_table
    from ..experiments.tables import by_data, read_runs, tables
    from ..experiments.wise import kind_of, wise_tables

    if not files:
        raise InputError("nothing to make tables of: give --data and --checkpoint, or the files of earlier runs")
    parts, found = [], []
    read = read_runs(files)
    for runs in by_data([run for run in read if kind_of(run) == "PRM"]):
        made = [*tables(runs), *([claims_table(runs)] if claims(runs) else [])]
        parts += [f"# {runs.label}", *(table.markdown() for table in made)]
        found.append({"data": runs.label, "claims": [vars(claim) for claim in claims(runs)]})
    parts += [table.markdown() for table in wise_tables(read)]
    return "\n\n".join(parts) + "\n", found


@segmentation_options
def report_command(
    segmentation: dict, runs: RunFiles = None, data: Data = None, split: Split = "val", name: Name = None,
    checkpoint: Networks = None, weights: Weights = None, classes: Classes = None, out: Out = Path("prm-report"),
    work: Work = None, proposals: Proposals = None,
    limit: Limit = 1000, cache: Cache = None, every: Step = 1, bootstrap: Bootstrap = 500, device: Device = "cpu",
) -> None:  # fmt: skip
    """One HTML file, which needs no network to be read, with the tables of `prm eval tables`, Figure 6, curves of
    precision and recall, pictures of successes and failures, and the settings; and the same as JSON.

    Networks are judged with --data and --checkpoint, or taken from the files of earlier runs, which then show no
    pictures. Interrupted, it goes on where it was; under torchrun the pictures are split over the processes.
    """
    if any(path.stem == "report" for path in checkpoint or []):
        raise InputError("a checkpoint is called 'report': its file would be report.json itself; rename it")
    judged = _judge_all(data, split, name, checkpoint, out, work, proposals, limit, cache, every, bootstrap,
                        {"device": device, "weights": weights, "classes": classes}, segmentation)  # fmt: skip
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


app.command("tables")(tables_command)
app.command("report")(report_command)
