"""`prm segment`: masks for pictures."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from .shared import (
    Alpha,
    BetaArea,
    Bias,
    Cache,
    CheckpointOption,
    ClassThreshold,
    Device,
    Epsilon,
    InputSize,
    Json,
    Limit,
    MaxPeaks,
    Nms,
    PeakMinimum,
    PeakThreshold,
    command_line,
    given,
    make_folder,
    open_segmenter,
    out_console,
    progress_bar,
    write_figures,
)


def segment(
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...|FOLDER", help="Pictures, or folders of pictures.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FOLDER", help="Where the answers go.")] = Path("prm-out"),
    checkpoint: CheckpointOption = None,
    proposals: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            help="Proposals in the PRM authors' JSON format: a file for a single picture, or a "
            "folder with NAME.json for NAME.jpg. Default: generated here.",
        ),
    ] = None,
    limit: Limit = 1000,
    cache: Cache = None,
    class_threshold: ClassThreshold = None,
    peak_threshold: PeakThreshold = None,
    peak_minimum: PeakMinimum = None,
    max_peaks: MaxPeaks = None,
    alpha: Alpha = None,
    beta_area: BetaArea = None,
    bias: Bias = None,
    nms: Nms = None,
    epsilon: Epsilon = None,
    size: InputSize = None,
    device: Device = "cpu",
    json_file: Json = None,
) -> None:
    """Find and mask every instance: for each picture NAME.overlay.png and NAME.panel.png, for all of them
    instances.json (COCO results format) and index.html, a gallery that opens from disk.

    Thresholds and weights not given here are the checkpoint's. A picture that cannot be read is reported at the end and
    the others are done; the exit code is then 2.
    """  # fmt: skip
    from ..pictures.images import find_images
    from ..segment import segment_files

    started = time.perf_counter()
    overrides = given(
        class_threshold=class_threshold, peak_threshold=peak_threshold, peak_minimum=peak_minimum,
        max_peaks=max_peaks, alpha=alpha, beta_area=beta_area, bias=bias, nms=nms, epsilon=epsilon,
        size=size,
    )  # fmt: skip
    segmenter, found = open_segmenter(checkpoint, device, **overrides)
    files = find_images(images)
    make_folder(out)
    with progress_bar() as progress:
        task = progress.add_task("segmenting", total=len(files), info="")
        answers = segment_files(
            segmenter, found.class_names, files, out, proposals, limit, cache, command_line(),
            lambda name: progress.update(task, advance=1, info=name),
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
