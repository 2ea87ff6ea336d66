"""`prm eval proposals`: how much of the truth do proposals reach?"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from prm import InputError

from .shared import Cache, Every, Json, check_masks, out_console, progress_bar, write_figures


def proposals_command(
    data: Annotated[Path, typer.Option("--data", metavar="PATH", help="A data set with masks.")],
    split: Annotated[str, typer.Option(help="Which part of it; 'all' for everything.")] = "val",
    half: Annotated[
        str | None, typer.Option(help="Every second picture only: even (the first, third, ...) or odd.")
    ] = None,
    every: Annotated[int, typer.Option(min=1, help="Take every n-th picture only.")] = 1,
    proposals: Annotated[
        list[Path] | None,
        typer.Option(metavar="PATH", help="Proposals made by others to measure too; may be repeated."),
    ] = None,
    baselines: Annotated[bool, typer.Option(help="Plain felzenszwalb and SLIC segments beside.")] = True,
    limit: Annotated[int, typer.Option(min=1, metavar="N", help="Most proposals of a picture.")] = 2000,
    cache: Cache = None,
    plot: Annotated[Path | None, typer.Option(metavar="FILE.png", help="Draw recall and overlap by number.")] = None,
    json_file: Json = None,
) -> None:
    """Recall at IoU 0.5 and 0.7 and average best overlap (ABO) of segment proposals against their number, for all
    instances and for small, medium and large ones; and the time a picture takes.
    """
    from ..datasets import open_dataset
    from ..proposals import open_proposals, proposals_for, read_rated
    from ..proposals.quality import (
        COUNTS,
        felzenszwalb_segments,
        half_indices,
        proposal_quality,
        quality_figure,
        quality_table,
        slic_segments,
    )

    started = time.perf_counter()
    dataset = Every(open_dataset(data, split=None if split == "all" else split), every)
    chosen = half_indices(len(dataset), half)
    if not chosen:
        raise InputError(f"{data}: no picture is left with --every {every} and --half {half}")
    check_masks(dataset, data, "quality of proposals")
    counts = [n for n in COUNTS if n <= limit] or [limit]
    sources = {"generated": lambda sample, limit: proposals_for(sample.image, cache, limit)}
    if baselines:
        sources["felzenszwalb"] = lambda sample, limit: felzenszwalb_segments(sample.image, limit)
        sources["slic"] = lambda sample, limit: slic_segments(sample.image, limit)
    for path in proposals or []:
        reader = open_proposals(path, limit=counts[-1])
        sources[path.name] = lambda sample, _, reader=reader: read_rated(reader, sample.name, sample.image)
    rows = {}
    with progress_bar() as progress:
        for name, propose in sources.items():
            task = progress.add_task(name, total=len(chosen))
            samples = (dataset[i] for i in chosen)  # anew for each: what a sample has read is freed with it
            rows[name] = proposal_quality(samples, propose, counts, lambda task=task: progress.advance(task))
    if plot is not None:
        quality_figure(rows, plot)
    write_figures(json_file, {"data": data.name, "split": split, "half": half, "every": every, "rows": rows}, started)
    out_console.print(quality_table(rows))
