"""`prm label`: pseudo labels for a student."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from prm import InputError
from prm.settings import LabelSettings

from .options import segmentation_options, settings_options
from .shared import (
    Cache,
    Classes,
    DataOption,
    Device,
    Every,
    Json,
    Limit,
    Model,
    Proposals,
    Weights,
    check_one_of,
    command_line,
    console,
    make_folder,
    open_with_data,
    out_console,
    progress_bar,
    write_figures,
)

PRESETS = ("released",)
RELEASED = {"upsample": 8, "class_threshold": 0.5, "peak_minimum": 30.0}
"""Settings of the released code of WISE: maps enlarged by 8, scores >= 0, responses > 30."""


@settings_options("given", LabelSettings, "Labels")
@segmentation_options
def label(
    given: dict,
    segmentation: dict,
    data: DataOption,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FOLDER", help="Where the labels go.")],
    model: Model = None,
    split: Annotated[str, typer.Option(help="Which part of the data set to label; 'all' for everything.")] = "train",
    every: Annotated[int, typer.Option(min=1, help="Take every n-th picture only.")] = 1,
    preset: Annotated[
        str | None,
        typer.Option(metavar="released", help="Settings of WISE's released code: --upsample 8 --peak-minimum 30 "
                     "--ungated --maps gradient, scores of 0 or more."),
    ] = None,
    seeds: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Take the seeds from a file, as seeds.json, and run no network."),
    ] = None,
    weights: Weights = None,
    classes: Classes = None,
    proposals: Proposals = None,
    limit: Limit = 1000,
    cache: Cache = None,
    drawings: Annotated[int, typer.Option(min=0, metavar="N", help="Most pictures on the page.")] = 60,
    device: Device = "cpu",
    json_file: Json = None,
) -> None:  # fmt: skip
    """Make pseudo labels, masks that a student is trained on, of a data set's image-level labels.

    Each peak of a class that a picture is labelled with gives a seed, its strongest pixel, and each seed takes one
    proposal that holds it (--method wise); or the labels are the instances that Algorithm 1 finds (--method prm), or
    those that a student finds, for a further round (--method student).

    Leaves labels.json (COCO), seeds.json, pictures/ (what sampled labels are drawn from), source.json and index.html in
    --out, which `prm student train --data` reads. No picture is copied. An interrupted run goes on; under torchrun the
    pictures are split over the processes. A picture that cannot be used is left out, and the exit code is then 2.
    """
    from prm.accelerated.students.segmenter import wants_proposals

    from ..label import label_dataset, read_seeds
    from ..proposals import Source

    started = time.perf_counter()
    check_one_of("--preset", [preset] if preset else [], PRESETS)
    if preset:
        given, segmentation = {"ungated": True, "maps": "gradient"} | given, RELEASED | segmentation
    settings = LabelSettings(**given)
    if seeds is not None and (settings.method != "wise" or model is not None):
        raise InputError("--seeds is for --method wise and takes the place of a network: leave out --method or --model")
    make_folder(out)
    source = Source(proposals, limit, cache)
    propose = source()
    about = {"data": _place(data, out), "split": None if split == "all" else split, "every": every,
             "labels": asdict(settings), "proposals": source.description(), "command": command_line()}  # fmt: skip
    answers = {} if settings.method == "student" else None
    segmenter, found, dataset = _opened(model, data, split, device, seeds, weights, classes, segmentation, answers)
    if settings.method == "student" and wants_proposals(segmenter):
        raise InputError("--method student needs a student: name its folder with --model")
    if segmenter is not None:
        from ..judging.run import fingerprint

        about["network"] = fingerprint(found, segmenter.settings)
    samples, errors = Every(dataset, every), []
    with progress_bar() as progress:
        task = progress.add_task("labelling", total=len(samples))
        summary = label_dataset(
            segmenter, samples, dataset.class_names, propose, out, about, settings,
            None if seeds is None else read_seeds(seeds), drawings, lambda: progress.advance(task), errors.append,
        )  # fmt: skip
    for line in errors:
        console.print(f"prm: error: {line}", soft_wrap=True)
    if summary is not None:
        _report(summary, out)
        figures = {"pictures": summary.pictures, "seeds": summary.seeds, "labels": dict(summary.labels),
                   "pairs": summary.pairs, "pairs_without_seed": summary.without_seed, "failed": summary.missing}
        write_figures(json_file, figures, started)  # fmt: skip
    if errors:
        raise typer.Exit(2)


def _opened(model, data, split, device, seeds, weights, classes, segmentation, answers):
    """Segmenter, checkpoint and data set; with seeds from a file the data set alone."""
    if seeds is None:
        return open_with_data(model, data, split, device, weights=weights, classes=classes, answers=answers,
                              **segmentation)  # fmt: skip
    from ..datasets import open_dataset

    return None, None, open_dataset(data, split=None if split == "all" else split)


def _place(data: Path, out: Path) -> str:
    """The data set's path: relative where it lies below the labels, so that both can be moved together."""
    data, out = data.expanduser().resolve(), out.expanduser().resolve()
    return data.relative_to(out).as_posix() if data.is_relative_to(out) else str(data)


def _report(summary, out: Path) -> None:
    labels = sum(summary.labels.values())
    out_console.print(f"{labels} labels of {summary.seeds} seeds in {summary.pictures} pictures: {out / 'index.html'}")
    named = [f"{name} {count}" for name, count in summary.labels.most_common() if count]
    out_console.print(f"by class: {', '.join(named) or 'none'}")
    if absent := [name for name, count in summary.labels.items() if not count]:
        console.print(f"prm: note: no label of {', '.join(absent)}: no student can learn these", soft_wrap=True)
    if summary.pairs:
        share = 100 * summary.without_seed / summary.pairs
        out_console.print(f"{summary.without_seed} of {summary.pairs} labelled classes ({share:.1f} %) have no label")
