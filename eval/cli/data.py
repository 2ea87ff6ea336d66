"""`prm data`: make, fetch and check data sets."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from .shared import Json, out_console, write_figures

app = typer.Typer(no_args_is_help=True, help="Make and look at data sets.")


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
