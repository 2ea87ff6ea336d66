"""`prm segment`: masks for pictures."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from .options import segmentation_options
from .shared import (
    Cache,
    CheckpointOption,
    Device,
    Json,
    Limit,
    command_line,
    make_folder,
    open_segmenter,
    out_console,
    progress_bar,
    write_figures,
)


@segmentation_options
def segment(
    segmentation: dict,
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...|FOLDER", help="Pictures, or folders of pictures.")],
    recursive: Annotated[bool, typer.Option("--recursive", "-r", help="Look in the folders' subfolders too.")] = False,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FOLDER", help="Where the answers go.")] = Path("prm-out"),
    checkpoint: CheckpointOption = None,
    proposals: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            help="Proposals made by others: a folder with a file for each picture (the PRM authors' JSON, MCG's and "
            "COB's .mat, .npz, PNGs), or one file, of COCO's results or of a single picture. Default: generated here.",
        ),
    ] = None,
    limit: Limit = 1000,
    cache: Cache = None,
    device: Device = "cpu",
    json_file: Json = None,
) -> None:
    """Find and mask every instance: for each picture NAME.overlay.png and NAME.panel.png, for all of them
    instances.json (COCO results format) and index.html, a gallery that opens from disk.

    NAME is the picture's file name, with the subfolder or folder where that tells it from another (a/x, b/x); a second
    one that differs in the suffix only becomes x-2. instances.json calls it so too, with its suffix.

    Thresholds and weights not given here are the checkpoint's. A picture that cannot be read is reported at the end and
    the others are done; the exit code is then 2.
    """  # fmt: skip
    from ..pictures.images import find_images, names_of
    from ..segment import segment_files

    started = time.perf_counter()
    segmenter, found = open_segmenter(checkpoint, device, **segmentation)
    files = find_images(images, recursive, but=out)
    make_folder(out)
    with progress_bar() as progress:
        task = progress.add_task("segmenting", total=len(files), info="")
        answers = segment_files(
            segmenter, found.class_names, files, out, proposals, limit, cache, command_line(),
            lambda name: progress.update(task, advance=1, info=name), names_of(files, images),
        )  # fmt: skip
    figures = {
        "pictures": len(files),
        "instances": answers.instances,
        "wall_seconds": round(answers.wall, 2),
        "pictures_per_second": round(len(files) / answers.wall, 3),
        "failed": answers.errors,
        "by_picture": answers.pictures,
    }
    write_figures(json_file, figures, started)
    out_console.print(
        f"{answers.instances} instances in {len(files) - len(answers.errors)} pictures: {out / 'index.html'}"
    )
    if answers.errors:
        for line in answers.errors.values():
            print(f"prm: error: {line}", file=sys.stderr)
        raise typer.Exit(2)
