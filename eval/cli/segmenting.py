"""`prm segment`: masks for pictures."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from prm import InputError
from prm.settings import ReadSettings

from .options import answer_options, reading_options, segmentation_options
from .shared import (
    Cache,
    Classes,
    Device,
    Json,
    Limit,
    Model,
    Weights,
    check_one_of,
    check_proposals,
    command_line,
    console,
    make_folder,
    open_segmenter,
    out_console,
    progress_bar,
    write_figures,
)

Images = Annotated[
    list[Path],
    typer.Argument(metavar="IMAGE...|FOLDER",
                   help="Pictures, or folders of pictures: BMP, GIF, JPEG, PGM, PNG, PPM, TIFF, WebP."),
]  # fmt: skip
Recursive = Annotated[bool, typer.Option("--recursive", "-r", help="Look in the folders' subfolders too.")]
Out = Annotated[Path, typer.Option("--out", "-o", metavar="FOLDER", help="Where the answers go.")]
SAVED = ("prms",)
Save = Annotated[
    list[str] | None,
    typer.Option(metavar="prms", help="Also keep NAME.prms.tif: each instance's Peak Response Map, float32, a page."),
]
Proposals = Annotated[
    Path | None,
    typer.Option(metavar="PATH",
                 help="Proposals made by others, all of which are used: a folder that has for each picture NAME.json "
                 "(as the PRM authors write it), NAME.mat (MCG, COB), NAME.npz, NAME.png (a label map) or a folder "
                 "NAME of PNGs (masks); COCO's results, one file or a folder of them, with file_name or a picture's "
                 "number as image_id; or the file of a single picture. Default: generated here."),
]  # fmt: skip


@reading_options
@answer_options
@segmentation_options
def segment(
    segmentation: dict,
    answers: dict,
    reading: dict,
    images: Images,
    recursive: Recursive = False,
    out: Out = Path("prm-out"),
    model: Model = None,
    weights: Weights = None,
    classes: Classes = None,
    proposals: Proposals = None,
    limit: Limit = 1000,
    cache: Cache = None,
    save: Save = None,
    device: Device = "cpu",
    json_file: Json = None,
) -> None:
    """Find and mask every instance: for each picture NAME.overlay.png, NAME.panel.png and labels/NAME.tif (0, or an
    instance's number, the highest score on top); for all of them instances.json (COCO results format), instances.csv
    (a row each, with sizes, shapes and colours) and index.html, a gallery that opens from disk.

    NAME is the picture's path inside the folder given, or else its file name, without suffix. Where two would be alike,
    the folders around them come before (a/x, b/x); of two that differ in the suffix only, the second is x-2. file_name
    in instances.json is the same, with the suffix.

    Settings of Algorithm 1 that are not given here are the checkpoint's. A picture that cannot be used is reported at
    the end and the others are done; the exit code is then 2. Of a file that holds more than a picture, a line at the
    end says what was taken.
    """  # fmt: skip
    from prm.accelerated.students.segmenter import StudentSegmenter

    from ..pictures.images import find_images, names_of
    from ..segment import segment_files

    started, settings = time.perf_counter(), ReadSettings(**reading)
    check_one_of("--save", save or (), SAVED)
    if model is None:
        console.print("network: nuclei, for microscopy; for photographs: --model efficientnet_lite0 (see --help)")
    segmenter, _ = open_segmenter(model, device, weights, classes, answers=answers, **segmentation)
    check_proposals(segmenter, proposals)
    if save and isinstance(segmenter, StudentSegmenter):
        raise InputError("--save prms: a student has no Peak Response Maps; name a network, as --model nuclei-prm")
    files = find_images(images, recursive, but=out)
    make_folder(out)
    with progress_bar() as progress:
        task = progress.add_task("segmenting", total=len(files), info="")
        found = segment_files(
            segmenter, segmenter.classes.names, files, out, proposals, limit, cache, command_line(),
            lambda name: progress.update(task, advance=1, info=name), names_of(files, images),
            settings, "prms" in (save or ()),
        )  # fmt: skip
    figures = {
        "pictures": len(files),
        "instances": found.instances,
        "wall_seconds": round(found.wall, 2),
        "pictures_per_second": round(len(files) / found.wall, 3),
        "failed": found.errors,
        "notes": found.notes,
        "by_picture": found.pictures,
    }
    write_figures(json_file, figures, started)
    out_console.print(
        f"{found.instances} instances in {len(files) - len(found.errors)} pictures: {out / 'index.html'}"
    )
    if found.without:
        some = ", ".join(found.without[:3]) + (", ..." if len(found.without) > 3 else "")
        count = f"{len(found.without)} of {len(files)} pictures"
        hint = "(--class-threshold, --image-threshold)"
        print(f"prm: note: no class is probable enough in {count}: {some} {hint}", file=sys.stderr)
    for line in found.notes.values():
        print(f"prm: note: {line}", file=sys.stderr)
    if found.errors:
        for line in found.errors.values():
            print(f"prm: error: {line}", file=sys.stderr)
        raise typer.Exit(2)
