"""`prm data`: make, fetch and check data sets."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from .shared import Json, out_console, progress_bar, write_figures

app = typer.Typer(no_args_is_help=True, help="Make, fetch and check data sets.")


@app.command("make-synthetic")
def make_synthetic_command(
    out: Annotated[Path, typer.Argument(help="Folder to write; made if missing.")],
    train: Annotated[int, typer.Option(min=1, help="Pictures to train on.")] = 600,
    val: Annotated[int, typer.Option(min=1, help="Pictures to judge on.")] = 200,
    seed: Annotated[int, typer.Option(min=0, help="The same seed draws the same scenes.")] = 0,
    size: Annotated[int, typer.Option(min=48, help="Side of a picture, pixels.")] = 128,
    json_file: Json = None,
) -> None:
    """Draw scenes of textured shapes of five classes, with labels for training and masks for evaluation only."""
    from ..datasets import make_synthetic

    started = time.perf_counter()
    make_synthetic(out, train=train, val=val, seed=seed, size=size)
    write_figures(json_file, {"train": train, "val": val, "seed": seed, "size": size}, started)
    out_console.print(f"{train} + {val} scenes in {out}")


@app.command("photographs")
def photographs_command(
    out: Annotated[Path, typer.Argument(help="Folder to write; made if missing.")], json_file: Json = None
) -> None:
    """Write the photographs that come along with scikit-image, to try things on: nothing is downloaded."""
    from ..datasets.photographs import write_photographs

    started = time.perf_counter()
    names = write_photographs(out)
    write_figures(json_file, {"folder": str(out), "pictures": names}, started)
    out_console.print(f"{len(names)} photographs in {out}")


@app.command("fetch")
def fetch_command(
    name: Annotated[str, typer.Argument(help="voc2012, voc2007, coco2014, coco2017, sbd or bbbc038.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FOLDER", help="Where the data set goes.")],
    parts: Annotated[
        str | None, typer.Option(metavar="PART,...", help="Only these, such as annotations,val; default: all.")
    ] = None,
    mirror: Annotated[
        str | None, typer.Option(metavar="URL", help="A folder with the archives, instead of the official addresses.")
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the archives too: twice the room.")] = False,
    json_file: Json = None,
) -> None:
    """Download a data set and unpack it in its official layout. Checksums are checked; what an interruption leaves is
    gone on with by the same command.
    """
    from ..datasets.fetch import fetch

    started = time.perf_counter()
    tasks: dict[str, int] = {}
    with progress_bar() as progress:

        def tick(what: str, done: int, total: int) -> None:
            task = tasks.setdefault(what, len(tasks))
            if task == len(progress.tasks):
                progress.add_task(what)
            progress.update(task, completed=done >> 20, total=total >> 20, info="MB")

        chosen = None if parts is None else [part.strip() for part in parts.split(",")]
        where = fetch(name, out, mirror, tick, chosen, keep, progress.console.print)
    write_figures(json_file, {"name": name, "folder": str(where), "parts": chosen}, started)
    out_console.print(f"{name} in {where}")


@app.command("check")
def check_command(
    path: Annotated[Path, typer.Argument(help="The data set.")],
    split: Annotated[str, typer.Option(help="Only this part of it; 'all' for everything.")] = "all",
    json_file: Json = None,
) -> None:
    """Read all of a data set and tell what is missing or broken, a line a file. Exit code 1 if anything is."""
    from ..datasets.check import check_dataset

    started = time.perf_counter()
    with progress_bar() as progress:
        task = progress.add_task("reading", total=None)
        found = check_dataset(path, None if split == "all" else split,
                              tick=lambda done, total: progress.update(task, completed=done, total=total))  # fmt: skip
    for line in [*found.problems, *found.summary()]:
        out_console.print(line)
    figures = {"problems": found.problems, "counts": found.counts, "labels": found.labels, "difficult": found.difficult}
    write_figures(json_file, figures, started)
    if found.problems:
        raise typer.Exit(1)
