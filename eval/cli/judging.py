"""`prm eval`: judge a network on a data set."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from prm import InputError

from .shared import (
    Alpha,
    BetaArea,
    Bias,
    Cache,
    CheckpointOption,
    ClassThreshold,
    Device,
    Epsilon,
    Every,
    InputSize,
    Json,
    Limit,
    MaxPeaks,
    PeakThreshold,
    Proposals,
    check_masks,
    given,
    open_segmenter,
    out_console,
    progress_bar,
    write_figures,
)

app = typer.Typer(help="Judge a network on a data set with masks.", invoke_without_command=True)


@app.callback(invoke_without_command=True)
def evaluate_command(
    context: typer.Context,
    data: Annotated[Path | None, typer.Option("--data", metavar="PATH", help="A data set with masks.")] = None,
    split: Annotated[str, typer.Option(help="Which part of it: train, val, or 'all'.")] = "val",
    checkpoint: CheckpointOption = None,
    baseline: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Beside a watershed, as it comes and tuned on every N-th picture of the "
                     "train split (one class only)."),
    ] = None,
    every: Annotated[int, typer.Option(min=1, help="Take every n-th picture only.")] = 1,
    proposals: Proposals = None,
    limit: Limit = 1000,
    cache: Cache = None,
    class_threshold: ClassThreshold = None,
    peak_threshold: PeakThreshold = None,
    max_peaks: MaxPeaks = None,
    alpha: Alpha = None,
    beta_area: BetaArea = None,
    bias: Bias = None,
    epsilon: Epsilon = None,
    size: InputSize = None,
    device: Device = "cpu",
    json_file: Json = None,
) -> None:
    """Classification mAP, mAP^r at IoU 0.25 / 0.5 / 0.75 and average best overlap (ABO) of a network on a data set."""
    if context.invoked_subcommand is not None:
        return
    if data is None:
        raise InputError("prm eval needs --data PATH (or a subcommand, see --help)")
    from ..datasets import open_dataset
    from ..judging.evaluate import evaluate
    from ..proposals import Source

    started = time.perf_counter()
    overrides = given(class_threshold=class_threshold, peak_threshold=peak_threshold, max_peaks=max_peaks, alpha=alpha,
                       beta_area=beta_area, bias=bias, epsilon=epsilon, size=size)  # fmt: skip
    segmenter, trained = open_segmenter(checkpoint, device, **overrides)
    class_names = trained.class_names
    dataset = open_dataset(data, split=None if split == "all" else split, class_names=class_names)
    samples, source = Every(dataset, every), Source(proposals, limit, cache)()
    with progress_bar() as progress:
        task = progress.add_task("segmenting", total=len(samples))
        rows = {"prm": evaluate(segmenter, samples, class_names, source, lambda: progress.advance(task))}
        if baseline:
            rows |= _baseline(data, samples, baseline, progress)
    made = {name: getattr(trained, name) for name in ("network", "aggregation", "training", "figures")}
    figures = {
        "data": data.name,
        "split": split,
        "settings": asdict(segmenter.settings),
        "checkpoint": made,
        "rows": rows,
    }
    write_figures(json_file, figures, started)
    out_console.print(_figures_table(rows))


def _baseline(data: Path, samples, every: int, progress) -> dict:
    from ..datasets import open_dataset
    from ..judging.evaluate import WATERSHED_GRID, WatershedSettings, evaluate_watershed, tune_watershed

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
    table = Table("", "cls mAP", "mAP^r 0.25", "mAP^r 0.5", "mAP^r 0.75", "ABO", "found / true")
    for name, f in rows.items():
        shown = [f.get(k) for k in ("classification_mAP", "mAP^r_0.25", "mAP^r_0.5", "mAP^r_0.75", "ABO")]
        counts = f"{f['predicted_instances']} / {f['true_instances']}" if "ABO" in f else "no masks"
        table.add_row(name, *("-" if x is None or x != x else f"{100 * x:.1f}" for x in shown), counts)
    return table


@app.command("compare")
def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN.json...", help="Files that `prm eval --json` wrote.")],
) -> None:
    """One table from the JSON files of several runs: mean and standard deviation over the seeds of each kind."""
    from ..experiments.tables import comparison

    print(comparison(runs))
