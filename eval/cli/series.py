"""`prm eval train`: every aggregation with every seed, under the same settings."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from .shared import Json, make_folder, out_console, write_figures


def train_command(
    context: typer.Context,
    data: Annotated[Path, typer.Option("--data", metavar="PATH", help="The data set to train on.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FOLDER", help="Networks go to FOLDER/AGGREGATION-SEED.")],
    aggregation: Annotated[
        list[str] | None,
        typer.Option(help="peak, average, max, lse or wildcat; may be repeated. Default: all five."),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Train with the seeds 0, 1, ... so many.")] = 3,
    jobs: Annotated[int, typer.Option(min=1, help="Trainings at a time.")] = 1,
    json_file: Json = None,
) -> None:
    """Train a network with each aggregation and seed, as the paper's Tables 1, 2 and 5 compare them. All options of
    `prm train` are given after --, the same for every run:

        prm eval train --data D --out RUNS --seeds 3 -- --network resnet50 --weights imagenet --epochs 20

    Finished runs are found and not repeated, interrupted ones go on. Exit code 1 if a run fails; the others are done.
    """
    from prm.accelerated.aggregation import AGGREGATIONS

    from ..experiments.series import series

    started = time.perf_counter()
    make_folder(out)
    rows = series(data, out, aggregation or list(AGGREGATIONS), range(seeds), context.args, jobs=jobs,
                  report=out_console.print)  # fmt: skip
    write_figures(json_file, {"runs": rows}, started)
    if any(row["state"] == "failed" for row in rows):
        raise typer.Exit(1)
