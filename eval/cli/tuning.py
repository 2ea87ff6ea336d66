"""`prm tune`: choose the settings of Eq. 6 and the peak threshold on pictures with masks."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Annotated

import typer

from .shared import (
    Cache,
    CheckpointOption,
    DataOption,
    Device,
    Every,
    Json,
    Limit,
    check_masks,
    open_segmenter,
    out_console,
    progress_bar,
    write_figures,
)


def tune(
    data: DataOption,
    split: Annotated[str, typer.Option(help="Which part of the data set to choose on.")] = "train",
    checkpoint: CheckpointOption = None,
    every: Annotated[int, typer.Option(min=1, help="Take every n-th picture only.")] = 1,
    limit: Limit = 1000,
    cache: Cache = None,
    device: Device = "cpu",
    write: Annotated[bool, typer.Option(help="Write the chosen setting into the checkpoint.")] = True,
    json_file: Json = None,
) -> None:
    """Choose alpha, beta, bias of Eq. 6 and the peak threshold: the best mAP^r at IoU 0.5 of a full search, on pictures
    with masks. Judge the result on other pictures than these.
    """  # fmt: skip
    from prm.accelerated.checkpoint import save_checkpoint

    from ..datasets import open_dataset
    from ..proposals import proposals_for
    from ..tuning import GRID
    from ..tuning import tune as search

    started = time.perf_counter()
    segmenter, found = open_segmenter(checkpoint, device)
    samples = Every(open_dataset(data, split=None if split == "all" else split, class_names=found.class_names), every)
    check_masks(samples, data, "tuning")
    with progress_bar() as progress:
        task = progress.add_task("caching the sums of Eq. 6", total=len(samples))
        chosen, rows = search(segmenter, samples, lambda image: proposals_for(image, cache, limit),
                              tick=lambda: progress.advance(task))  # fmt: skip
    best = max(row["mAP^r"] for row in rows)
    setting = {name: getattr(chosen, name) for name in GRID}
    write_figures(json_file, {"pictures": len(samples), "chosen": setting, "mAP^r_0.5": best, "tried": rows}, started)
    if write and checkpoint is not None:  # the network that comes along stays as it is
        page = checkpoint / "checkpoint.json" if checkpoint.is_dir() else checkpoint
        save_checkpoint(replace(found, segmentation=found.segmentation | setting), page)
    out_console.print(f"mAP^r at 0.5 on {len(samples)} pictures: {100 * best:.1f} with {setting}")
