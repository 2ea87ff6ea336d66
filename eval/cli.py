"""The command `prm`: data, training, segmentation, evaluation, parity. Every subcommand has its own --help."""

from __future__ import annotations

import itertools
import json
import math
import shlex
import sys
import time
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

import prm
from prm import InputError
from prm.files import atomic_write, reason

app = typer.Typer(
    no_args_is_help=True, add_completion=False, rich_markup_mode="rich", pretty_exceptions_enable=False,
    help="Peak Response Mapping: instance masks from a classifier that was trained with image-level labels only.",
)  # fmt: skip
data_app = typer.Typer(no_args_is_help=True, help="Make and look at data sets.")
bench_app = typer.Typer(no_args_is_help=True, help="Measure time and memory.")
parity_app = typer.Typer(
    no_args_is_help=True,
    help="Compare an implementation, on any hardware, with the oracle; golden vectors. Guide: parity_tests/PORTING.md.",
)
app.add_typer(data_app, name="data")
app.add_typer(bench_app, name="bench")
app.add_typer(parity_app, name="parity")

console = Console(stderr=True, highlight=False)
out_console = Console(highlight=False, markup=False, soft_wrap=True)

Json = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the figures to FILE.")]
Device = Annotated[str, typer.Option(help='Where to compute: "cpu", "cuda", "cuda:1", ...')]
CheckpointOption = Annotated[
    Path | None,
    typer.Option("--checkpoint", "-c", metavar="PATH",
                 help="Folder or .json written by `prm train`; default: the nuclei network that comes with prm."),
]  # fmt: skip
Cache = Annotated[Path | None, typer.Option(metavar="FOLDER", help="Keep generated proposals here, to be found again.")]
Limit = Annotated[int, typer.Option(min=1, metavar="N", help="Most proposals generated for a picture.")]
DataOption = Annotated[
    Path, typer.Option("--data", metavar="PATH",
                       help="A data set: a synthetic one, BBBC038 (.zip or folder), or a folder with labels.csv.")
]  # fmt: skip


def main() -> None:
    """Run the command line: exit code 0 when the work was done, 2 on bad input with one line of what and where."""
    try:
        app()
    except InputError as error:
        _fail(str(error))
    except (KeyboardInterrupt, BrokenPipeError):
        sys.exit(130)
    except OSError as error:
        _fail(f"{error.filename or 'a file'}: {reason(error)}")


def _fail(message: str) -> None:
    print(f"prm: error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(2)


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False) -> None:
    if version:
        print(prm.__version__)
        raise typer.Exit


# -------------------------------------------------------------------------------------------------------------- data


@data_app.command("make-synthetic")
def make_synthetic_command(
    out: Annotated[Path, typer.Argument(help="Folder to write; made if missing.")],
    train: Annotated[int, typer.Option(min=1, help="Pictures to train on.")] = 600,
    val: Annotated[int, typer.Option(min=1, help="Pictures to judge on.")] = 200,
    seed: Annotated[int, typer.Option(min=0, help="The same seed draws the same scenes.")] = 0,
    size: Annotated[int, typer.Option(min=48, help="Side of a picture, pixels.")] = 128,
    json_file: Json = None,
) -> None:
    """Draw scenes of textured shapes of five classes, with labels for training and masks for evaluation only."""
    from .datasets import make_synthetic

    started = time.perf_counter()
    make_synthetic(out, train=train, val=val, seed=seed, size=size)
    _write_figures(json_file, {"train": train, "val": val, "seed": seed, "size": size}, started)
    out_console.print(f"{train} + {val} scenes in {out}")


# ------------------------------------------------------------------------------------------------------------- train


@app.command()
def train(
    data: DataOption,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FOLDER", help="Where checkpoint, log and curve go.")],
    network: Annotated[str, typer.Option(help="smallnet, resnet18, resnet50 or vgg16.")] = "smallnet",
    network_options: Annotated[
        str, typer.Option(metavar="JSON", help="The network's own options, like '{\"widths\": [16, 32, 64]}'.")
    ] = "{}",
    weights: Annotated[
        str | None,
        typer.Option(metavar="FILE|URL|imagenet", help="Start from torchvision's weights: a file, or downloaded."),
    ] = None,
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
    epochs: Annotated[int, typer.Option(min=1)] = 20,
    batch_size: Annotated[int, typer.Option(min=1)] = 16,
    size: Annotated[int, typer.Option(min=8, help="Side of the training crop, pixels.")] = 448,
    tile: Annotated[
        int | None, typer.Option(min=8, help="BBBC038 only: side of the labelled tiles; sets --size.")
    ] = None,
    tile_stride: Annotated[int | None, typer.Option(min=1, help="Distance of tiles; default: their side.")] = None,
    tile_limit: Annotated[int | None, typer.Option(min=1, help="Draw this many tiles at random.")] = None,
    lr_features: Annotated[float, typer.Option(min=0, help="Learning rate of the features.")] = 0.01,
    lr_classifier: Annotated[float, typer.Option(min=0, help="Learning rate of the classifier.")] = 0.1,
    momentum: Annotated[float, typer.Option(min=0)] = 0.9,
    weight_decay: Annotated[float, typer.Option(min=0)] = 1e-4,
    schedule: Annotated[str, typer.Option(help="cosine or step.")] = "cosine",
    flip: Annotated[bool, typer.Option(help="Mirror left and right at random.")] = True,
    vertical_flip: Annotated[bool, typer.Option(help="Mirror up and down too, as suits microscopes.")] = False,
    jitter: Annotated[float, typer.Option(min=1, help="Scale by a random factor in [1/jitter, jitter].")] = 1.25,
    contrast: Annotated[
        bool, typer.Option(help="Stretch each picture's contrast first, as suits microscopes.")
    ] = False,
    amp: Annotated[bool | None, typer.Option(help="Mixed precision; default: where the device has it.")] = None,
    workers: Annotated[int, typer.Option(min=0, help="Processes that read pictures ahead.")] = 0,
    seed: Annotated[int, typer.Option(min=0)] = 0,
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
    from prm.accelerated.training import TrainingSettings
    from prm.accelerated.training import train as run_training

    started = time.perf_counter()
    _check_finite(lr_features=lr_features, lr_classifier=lr_classifier, momentum=momentum, weight_decay=weight_decay,
                  jitter=jitter)  # fmt: skip
    device = _device(device)
    settings = TrainingSettings(
        epochs=epochs, batch_size=batch_size, size=tile or size, lr_features=lr_features, lr_classifier=lr_classifier,
        momentum=momentum, weight_decay=weight_decay, schedule=schedule, flip=flip, vertical_flip=vertical_flip,
        jitter=jitter, amp=amp, workers=workers, seed=seed,
    )  # fmt: skip
    if (out / "checkpoint.json").exists() and not resume:
        raise InputError(f"{out}: holds a checkpoint already; add --resume to go on with it, or name another folder")
    samples, class_names = _training_data(data, split, contrast, tile, tile_stride, tile_limit, seed)
    options, pool_options = (
        _json(network_options, "--network-options"),
        _json(aggregation_options, "--aggregation-options"),
    )
    torch.manual_seed(seed)
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
    if weights is not None:
        _load_weights(model, network, weights)
    natural = weights is not None or network != "smallnet"
    checkpoint = Checkpoint(
        network={"name": network, "options": options}, class_names=list(class_names),
        input={
            "mean": [0.485, 0.456, 0.406] if natural else [0.5] * 3,
            "std": [0.229, 0.224, 0.225] if natural else [0.25] * 3,
            "size": settings.size, "contrast": contrast,
        },
        aggregation={"name": aggregation, "options": pool_options}, state=model.state_dict(),
        training={"data": data.name, "split": split, "tile": tile, "tile_stride": tile_stride, "tile_limit": tile_limit,
                  "start": weights or "random", "command": _command()},
        segmentation={"upsample": pool_options.get("upsample", 1), "window": pool_options.get("window", 3),
                      "threshold": pool_options.get("threshold", "median")},
    )  # fmt: skip
    watched = _validation(data, val, checkpoint, device) if val else None
    _make_folder(out)
    with _progress() as progress:
        task = progress.add_task("training", total=None)

        def on_step(step, steps, loss, rate):
            progress.update(task, completed=step, total=steps, info=f"loss {loss:.4f}  {rate:.0f} pictures/s")

        def on_epoch(model, rows):
            found = watched(model) if watched else {}
            rows = [*rows[:-1], rows[-1] | found]
            progress.update(task, description=f"epoch {len(rows)}/{epochs}")
            text = "".join(f"  {k} {v:.4f}" for k, v in rows[-1].items() if k in ("loss", "mean_average_precision"))
            progress.console.print(f"epoch {len(rows)}:{text}  ({rows[-1]['seconds']:.1f} s)")
            _curve(rows, out)
            return found

        rows = run_training(checkpoint, samples, out, settings, resume=resume, device=_device(device), on_step=on_step,
                            on_epoch=on_epoch)  # fmt: skip
    figures = {"epochs": len(rows), "loss": rows[-1]["loss"], "training_seconds": sum(r["seconds"] for r in rows)}
    _write_figures(json_file, figures | {"samples": len(samples), "seed": seed, "aggregation": aggregation}, started)
    out_console.print(f"checkpoint in {out / 'checkpoint.json'}, loss {rows[-1]['loss']:.4f}")


def _training_data(data, split, contrast, tile, stride, limit, seed):
    from .datasets import BBBC038, Stretched, open_dataset, tile_arrays

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


def _load_weights(model, network: str, weights: str) -> None:
    from prm.accelerated.networks import PRETRAINED, load_pretrained

    if weights == "imagenet" and network not in PRETRAINED:
        raise InputError(f"there are no ImageNet weights for {network}; known: {', '.join(PRETRAINED)}")
    left = load_pretrained(model, PRETRAINED[network] if weights == "imagenet" else weights)
    console.print(f"left as initialised: {', '.join(left) or 'nothing'}")


def _validation(data, val, checkpoint, device):
    import numpy as np
    import torch

    from prm.accelerated import aggregation
    from prm.accelerated.inputs import to_input

    from .datasets import open_dataset
    from .metrics import classification_map

    dataset = open_dataset(data, split="val", class_names=checkpoint.class_names)
    pool = aggregation(checkpoint.aggregation["name"], **checkpoint.aggregation["options"])
    given, classes = checkpoint.input, np.arange(len(checkpoint.class_names))

    @torch.no_grad()
    def score(model, sample):
        image = to_input(sample.image, given["mean"], given["std"], given["contrast"]).to(_device(device))
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
    from .figures import curve

    curve(rows, out / "curve.png")


# ----------------------------------------------------------------------------------------------------------- segment

ClassThreshold = Annotated[float | None, typer.Option(min=0, max=1, help="Least probability of a class.")]
PeakThreshold = Annotated[
    float | None, typer.Option(min=0, max=1, help="Least response, as a share of the class's strongest peak.")
]
PeakMinimum = Annotated[float | None, typer.Option(help="Least response itself (the released code's 30).")]
MaxPeaks = Annotated[int | None, typer.Option(min=1, help="Most peaks of a picture.")]
Alpha = Annotated[float | None, typer.Option(help="Eq. 6: weight of the response inside a proposal.")]
BetaArea = Annotated[float | None, typer.Option(help="Eq. 6: weight of background inside it, per picture area.")]
Bias = Annotated[float | None, typer.Option(help="Eq. 6: background is below bias x the mean response.")]
InputSize = Annotated[int | None, typer.Option("--size", min=32, help="Network input: the shorter side, pixels.")]
Epsilon = Annotated[
    float | None,
    typer.Option(min=0, max=0.99, help="Let the walk back drop up to this share of each peak, for speed."),
]
Nms = Annotated[
    float | None, typer.Option(min=0, max=1, help="Mask IoU from which the weaker of two instances is dropped.")
]


@app.command()
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
    from .images import find_images
    from .segment import segment_files

    started = time.perf_counter()
    overrides = _given(
        class_threshold=class_threshold, peak_threshold=peak_threshold, peak_minimum=peak_minimum,
        max_peaks=max_peaks, alpha=alpha, beta_area=beta_area, bias=bias, nms=nms, epsilon=epsilon,
        size=size,
    )  # fmt: skip
    segmenter, found = _segmenter(checkpoint, device, **overrides)
    files = find_images(images)
    _make_folder(out)
    with _progress() as progress:
        task = progress.add_task("segmenting", total=len(files), info="")
        answers = segment_files(
            segmenter, found.class_names, files, out, proposals, limit, cache, _command(),
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
    _write_figures(json_file, figures, started)
    out_console.print(
        f"{answers.instances} instances in {len(files) - len(answers.errors)} pictures: {out / 'index.html'}"
    )
    if answers.errors:
        for line in answers.errors.values():
            print(f"prm: error: {line}", file=sys.stderr)
        raise typer.Exit(2)


def _given(**options) -> dict:
    _check_finite(**options)
    return {name: value for name, value in options.items() if value is not None}


def _segmenter(path: Path | None, device: str, **overrides):
    from prm.accelerated import Segmenter
    from prm.accelerated.checkpoint import SHIPPED, load_checkpoint

    checkpoint, device = load_checkpoint(path or SHIPPED), _device(device)
    try:
        return Segmenter.from_checkpoint(checkpoint, device, **overrides), checkpoint
    except (InputError, ValueError) as error:
        raise InputError(f"{path or SHIPPED}: {error}") from error


def _device(name: str) -> str:
    import torch

    try:
        torch.zeros(1, device=name).item()  # read back: "meta" makes tensors, but computes nothing
    except (RuntimeError, AssertionError, ImportError) as error:
        why = reason(error)[:100]
        raise InputError(f"device {name!r} cannot be used here ({why}); use --device cpu") from error
    return name


def _check_finite(**options: float | None) -> None:
    for name, value in options.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise InputError(f"--{name.replace('_', '-')} is {value}; give a number")


def _make_folder(path: Path) -> None:
    """Before the work and not after it: an output that cannot be written must not cost an hour."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{path}: cannot be made the output folder ({reason(error)}); name another place") from error


def _check_masks(samples, data: Path, purpose: str) -> None:
    if samples[0].masks is None:
        raise InputError(f"{data}: has no instance masks (instances.json), without which there is no {purpose}")


# -------------------------------------------------------------------------------------------------------------- eval


eval_app = typer.Typer(help="Judge a network on a data set with masks.", invoke_without_command=True)
app.add_typer(eval_app, name="eval")


@eval_app.callback(invoke_without_command=True)
def evaluate_command(
    context: typer.Context,
    data: Annotated[Path | None, typer.Option("--data", metavar="PATH", help="A data set with masks.")] = None,
    split: Annotated[str, typer.Option(help="Which part of it: train, val, or 'all'.")] = "val",
    checkpoint: CheckpointOption = None,
    baseline: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Beside a watershed, as it comes and tuned on every N-th picture of the "
                     "train split (one class only)."),
    ] = None,
    every: Annotated[int, typer.Option(min=1, help="Take every n-th picture only.")] = 1,
    limit: Limit = 1000,
    cache: Cache = None,
    class_threshold: ClassThreshold = None,
    peak_threshold: PeakThreshold = None,
    max_peaks: MaxPeaks = None,
    alpha: Alpha = None,
    beta_area: BetaArea = None,
    bias: Bias = None,
    epsilon: Epsilon = None,
    size: InputSize = None,
    device: Device = "cpu",
    json_file: Json = None,
) -> None:
    """Classification mAP, mAP^r at IoU 0.25 / 0.5 / 0.75 and average best overlap (ABO) of a network on a data set."""
    if context.invoked_subcommand is not None:
        return
    if data is None:
        raise InputError("prm eval needs --data PATH (or a subcommand, see --help)")
    from .datasets import open_dataset
    from .evaluate import evaluate
    from .proposals import proposals_for

    started = time.perf_counter()
    overrides = _given(class_threshold=class_threshold, peak_threshold=peak_threshold, max_peaks=max_peaks, alpha=alpha,
                       beta_area=beta_area, bias=bias, epsilon=epsilon, size=size)  # fmt: skip
    segmenter, trained = _segmenter(checkpoint, device, **overrides)
    class_names = trained.class_names
    dataset = open_dataset(data, split=None if split == "all" else split, class_names=class_names)
    samples = _Every(dataset, every)
    with _progress() as progress:
        task = progress.add_task("segmenting", total=len(samples))
        rows = {"prm": evaluate(segmenter, samples, class_names, lambda image: proposals_for(image, cache, limit),
                                lambda: progress.advance(task))}  # fmt: skip
        if baseline:
            rows |= _baseline(data, samples, baseline, progress)
    made = {name: getattr(trained, name) for name in ("network", "aggregation", "training", "figures")}
    figures = {
        "data": data.name,
        "split": split,
        "settings": asdict(segmenter.settings),
        "checkpoint": made,
        "rows": rows,
    }
    _write_figures(json_file, figures, started)
    out_console.print(_figures_table(rows))


class _Every:
    """Every n-th picture of a data set, read when asked for."""

    def __init__(self, dataset, n: int):
        self.dataset, self.indices = dataset, range(0, len(dataset), n)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, i: int):
        return self.dataset[self.indices[i]]


def _baseline(data: Path, samples, every: int, progress) -> dict:
    from .datasets import open_dataset
    from .evaluate import WATERSHED_GRID, WatershedSettings, evaluate_watershed, tune_watershed

    training = _Every(open_dataset(data, split="train"), every)
    if len(training.dataset.class_names) != 1:
        raise InputError("--baseline is for data sets of one class: a watershed tells no classes apart")
    _check_masks(training, data, "baseline")
    task = progress.add_task("tuning the watershed", total=len(WATERSHED_GRID))
    # Read once: the grid goes over them many times.
    tuned, on_training = tune_watershed([training[i] for i in range(len(training))], lambda: progress.advance(task))
    before = evaluate_watershed(samples, WatershedSettings())
    after = evaluate_watershed(samples, tuned)
    after |= {"settings": asdict(tuned), "on_training": on_training}
    return {"watershed": before, "watershed, tuned": after}


def _figures_table(rows: dict) -> Table:
    table = Table("", "cls mAP", "mAP^r 0.25", "mAP^r 0.5", "mAP^r 0.75", "ABO", "found / true")
    for name, f in rows.items():
        shown = [f.get(k) for k in ("classification_mAP", "mAP^r_0.25", "mAP^r_0.5", "mAP^r_0.75", "ABO")]
        counts = f"{f['predicted_instances']} / {f['true_instances']}" if "ABO" in f else "no masks"
        table.add_row(name, *("-" if x is None or x != x else f"{100 * x:.1f}" for x in shown), counts)
    return table


@eval_app.command("compare")
def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN.json...", help="Files that `prm eval --json` wrote.")],
) -> None:
    """One table from the JSON files of several runs: mean and standard deviation over the seeds of each kind."""
    from .tables import comparison

    print(comparison(runs))


@app.command()
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

    from .datasets import open_dataset
    from .proposals import proposals_for
    from .tuning import GRID
    from .tuning import tune as search

    started = time.perf_counter()
    segmenter, found = _segmenter(checkpoint, device)
    samples = _Every(open_dataset(data, split=None if split == "all" else split, class_names=found.class_names), every)
    _check_masks(samples, data, "tuning")
    with _progress() as progress:
        task = progress.add_task("caching the sums of Eq. 6", total=len(samples))
        chosen, rows = search(segmenter, samples, lambda image: proposals_for(image, cache, limit),
                              tick=lambda: progress.advance(task))  # fmt: skip
    best = max(row["mAP^r"] for row in rows)
    setting = {name: getattr(chosen, name) for name in GRID}
    _write_figures(json_file, {"pictures": len(samples), "chosen": setting, "mAP^r_0.5": best, "tried": rows}, started)
    if write and checkpoint is not None:  # the network that comes along stays as it is
        page = checkpoint / "checkpoint.json" if checkpoint.is_dir() else checkpoint
        save_checkpoint(replace(found, segmentation=found.segmentation | setting), page)
    out_console.print(f"mAP^r at 0.5 on {len(samples)} pictures: {100 * best:.1f} with {setting}")


# ------------------------------------------------------------------------------------------------------------- bench


Network = Annotated[str, typer.Option(help="resnet50, resnet18, vgg16 or smallnet, with random weights.")]
Rounds = Annotated[
    int, typer.Option("--rounds", "--repeat", min=1, help="Each round runs every variant; medians are reported.")
]
Malloc = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="What glibc does with freed memory: default, tuned (keeps it all), huge (and in large pages), or both: "
        "default and tuned.",
    ),
]
Threads = Annotated[int | None, typer.Option(min=1, metavar="N", help="Default: as many as torch takes.")]
Plot = Annotated[Path | None, typer.Option(metavar="FILE.png", help="Draw how the time grows.")]
Seed = Annotated[int, typer.Option(min=0, help="Of the picture, the peaks and the maps.")]


@bench_app.command("walk")
def bench_walk(
    network: Network = "resnet50",
    size: Annotated[
        list[str] | None, typer.Option(metavar="SIDE|HxW", help="The picture, pixels; may be repeated. Default: 448.")
    ] = None,
    checkpoint: Annotated[
        Path | None, typer.Option("--checkpoint", "-c", help="A trained network instead, on the pictures of --image.")
    ] = None,
    image: Annotated[
        list[Path] | None,
        typer.Option(help="A picture for --checkpoint, walked as by `prm segment`, from its strongest peaks; may be "
                     "repeated."),
    ] = None,
    peaks: Annotated[list[int] | None, typer.Option(min=1, help="How many; may be repeated. Default: 10.")] = None,
    competitor: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="autograd, autograd-channels-last, zennit, or full (ours on whole maps); may "
                     "be repeated."),
    ] = None,
    epsilon: Annotated[
        list[float] | None,
        typer.Option(min=0, help="Beside the exact walk, one that may be so far from it in L1; may be repeated."),
    ] = None,
    competitor_peaks: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Competitors walk the first N peaks only; default: all.")
    ] = None,
    where: Annotated[str, typer.Option(help="Where peaks are: random, corner or centre.")] = "random",
    rounds: Rounds = 5, seed: Seed = 0, malloc: Malloc = "default", threads: Threads = None, device: Device = "cpu",
    plot: Plot = None, json_file: Json = None,
) -> None:  # fmt: skip
    """Peak back-propagation: time per peak beside its competitors, forward and preparation beside a plain forward pass,
    and memory. Answers are compared first, with the oracle (at 64 x 64) and with each other: a wrong one has no speed.
    """  # fmt: skip
    from prm.parity_tests.convert import to_reference

    from . import bench, bench_report
    from .competitors import zennit_parts

    started = time.perf_counter()
    if (checkpoint is None) != (not image) or (image and size):
        raise InputError("--checkpoint and --image go together, and without --size: the pictures have theirs")
    pictures = [{"size": _height_width(text)} for text in size or ["448"]]
    if image:
        pictures = [{"size": None, "image": str(file)} for file in image]
    _one_of("--network", [network], NETWORK_NAMES)
    _one_of("--competitor", competitor or [], bench.COMPETITORS)
    _one_of("--where", [where], ("random", "corner", "centre"))
    for value in epsilon or []:
        _check_finite(epsilon=value)
    if "zennit" in (competitor or []):
        zennit_parts()
    _bench_outputs(device, json_file, plot)
    common = {"network": network, "where": where, "seed": seed, "device": device, "checkpoint": str(checkpoint or "")}
    versus = {"competitors": competitor or [], "epsilons": epsilon or [], "rounds": rounds,
              "competitor_peaks": competitor_peaks}  # fmt: skip
    with console.status("comparing with the oracle"):
        difference = bench.oracle_difference(network, to_reference, device=device, checkpoint=common["checkpoint"])
    out_console.print(f"L1 to the oracle at 64 x 64: {difference:.1e} (at most {bench.ORACLE:.0e})")
    rows = []
    for name, one, number in _bench_cases(bench, malloc, pictures, peaks or [10]):
        case = common | one | {"peaks": number}
        row = bench.measure("walk", case | versus, name, threads) | {"oracle_difference": difference}
        row |= bench.measure("walk-memory", case, name, threads)
        rows.append(row if difference <= bench.ORACLE else bench.withheld(row))
    _bench_done(json_file, started, device, {"walk": common | versus, "rows": rows}, rows)
    for table in bench_report.walk_tables(rows):
        _print_table(table)
    for line in bench_report.growth(rows):
        out_console.print(line)
    if plot is not None:
        bench_report.plot_walk(rows, plot)


@bench_app.command("retrieval")
def bench_retrieval(
    proposals: Annotated[list[int] | None, typer.Option(min=1, help="May be repeated. Default: 200 and 2000.")] = None,
    peaks: Annotated[list[int] | None, typer.Option(min=1, help="May be repeated. Default: 30.")] = None,
    size: Annotated[str, typer.Option(metavar="SIDE|HxW", help="Of the picture, pixels.")] = "375x500",
    image: Annotated[Path | None, typer.Option(help="The picture, scaled to --size; default: a drawn scene.")] = None,
    making: Annotated[bool, typer.Option(help="Also time making the dense masks.")] = True,
    rounds: Rounds = 5, seed: Seed = 0, malloc: Malloc = "default", threads: Threads = None, device: Device = "cpu",
    plot: Plot = None, json_file: Json = None,
) -> None:  # fmt: skip
    """Scoring of proposals (Eq. 6) and suppression, from run-length encoded masks, beside products of dense masks that
    lie in memory already. Scores, choices and kept instances are compared first.
    """  # fmt: skip
    from . import bench, bench_report

    started, side = time.perf_counter(), _height_width(size)
    _bench_outputs(device, json_file, plot)
    common = {"size": side, "image": str(image or ""), "rounds": rounds, "seed": seed, "making": making,
              "device": device}  # fmt: skip
    rows = []
    for name, number, found in _bench_cases(bench, malloc, proposals or [200, 2000], peaks or [30]):
        rows.append(bench.measure("retrieval", common | {"proposals": number, "peaks": found}, name, threads))
    _bench_done(json_file, started, device, {"retrieval": common, "rows": rows}, rows)
    _print_table(bench_report.retrieval_table(rows))
    if plot is not None:
        bench_report.plot_retrieval(rows, plot)


@bench_app.command("peaks")
def bench_peaks(
    size: Annotated[
        list[str] | None,
        typer.Option(metavar="NxCxHxW", help="Of the maps; may be repeated. Default: 16x20x14x14, 16x20x112x112, "
                     "16x80x112x112."),
    ] = None,
    kind: Annotated[list[str] | None, typer.Option(help="smooth or noise; may be repeated. Default: both.")] = None,
    rounds: Rounds = 5, seed: Seed = 0, malloc: Malloc = "default", threads: Threads = None, device: Device = "cpu",
    json_file: Json = None,
) -> None:  # fmt: skip
    """Peak stimulation (Eqs. 1-3), forward and backward, beside the usual max pooling. The peak lists must be equal."""
    from . import bench, bench_report

    started, sizes = time.perf_counter(), [_numbers(text, 4, "--size") for text in size or bench.PEAK_SIZES]
    _one_of("--kind", kind or [], ("smooth", "noise"))
    _bench_outputs(device, json_file)
    common = {"rounds": rounds, "seed": seed, "device": device}
    rows = []
    for name, shape, of in _bench_cases(bench, malloc, sizes, kind or ["smooth", "noise"]):
        rows.append(bench.measure("peaks", common | {"size": shape, "kind": of}, name, threads))
    _bench_done(json_file, started, device, {"peaks": common, "rows": rows}, rows)
    _print_table(bench_report.peaks_table(rows))


@bench_app.command("segment")
def bench_segment(
    network: Network = "resnet50",
    size: Annotated[int, typer.Option(min=32, help="Side of the picture, pixels.")] = 448,
    peaks: Annotated[
        list[int] | None, typer.Option(min=1, help="How many; repeat the option for several. Default: 10 and 30.")
    ] = None,
    image: Annotated[Path | None, typer.Option(help="A picture, scaled to size x size; default: noise.")] = None,
    limit: Limit = 200,
    competitor: Annotated[
        bool, typer.Option("--competitor", help="Beside autograd's walk, a peak at a time, and dense masks.")
    ] = False,
    rounds: Rounds = 3, malloc: Malloc = "default", threads: Threads = None, device: Device = "cpu",
    json_file: Json = None,
) -> None:  # fmt: skip
    """Time of `prm segment` by stage, and its peak memory, for one picture: medians of several runs."""
    from . import bench, bench_report

    started = time.perf_counter()
    _one_of("--network", [network], NETWORK_NAMES)
    _bench_outputs(device, json_file)
    common = {"network": network, "size": size, "image": str(image or ""), "limit": limit, "rounds": rounds,
              "competitor": competitor, "device": device}  # fmt: skip
    rows = []
    for name, number in _bench_cases(bench, malloc, peaks or [10, 30]):
        rows.append(bench.measure("segment", common | {"peaks": number}, name, threads))
    _bench_done(json_file, started, device, {"segment": common, "rows": rows}, rows)
    _print_table(bench_report.segment_table(rows, bench.STAGES))


@bench_app.command("kernels")
def bench_kernels(
    only: Annotated[
        str, typer.Option(metavar="TEXT", help="Only cases, or with --compile-only kernels, with this in their name.")
    ] = "",
    compile_only: Annotated[
        bool, typer.Option("--compile-only", help="Without a GPU: compile every kernel for six GPUs and list what it "
                           "takes; fails where one does not compile or spills.")
    ] = False,
    target: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="With --compile-only: sm_80, sm_90, sm_100, gfx90a, gfx942 or gfx1100; may "
                     "be repeated. Default: all."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Without a GPU: every case at a reduced size through Triton's "
                           "interpreter, compared with torch's code; fails where one differs or launches nothing.")
    ] = False,
    record: Annotated[
        bool, typer.Option("--record", help="Measure every configuration too, and write for this GPU which one is the "
                           "fastest for each case; launchers read that.")
    ] = False,
    readme: Annotated[bool, typer.Option("--readme", help="Print the README's block of GPU figures.")] = False,
    rounds: Rounds = 7,
    device: Device = "cuda",
    json_file: Json = None,
) -> None:  # fmt: skip
    """GPU kernels beside torch's own code, torch.compile and what the card can do at best. Answers are compared first:
    a kernel whose answer is wrong has no speed.
    """
    from . import kernel_bench, kernel_report

    if readme:
        typer.echo(kernel_report.readme_block())
        return
    started = time.perf_counter()
    _check_kernels(device if not (compile_only or dry_run) else None, compile_only and dry_run, json_file)
    if compile_only:
        from .kernel_table import TARGETS, compile_table, kernel_names, spills

        with console.status("compiling"):
            rows = compile_table(target or tuple(TARGETS), kernel_names(only))
        _kernels_done(json_file, started, {"rows": rows}, kernel_report.compiled_table(rows), spills(rows))
    elif dry_run:
        with console.status("interpreting"):
            rows = kernel_bench.dry_run(only)
        _kernels_done(json_file, started, {"rows": rows}, kernel_report.dry_table(rows), kernel_bench.failures(rows))
    else:
        with console.status("measuring") as status:
            found = kernel_bench.measure(only, device, rounds, record, lambda name: status.update(f"measuring {name}"))
        if record:
            kernel_bench.write_choices(found["machine"]["gpu"], found["choices"])
        table, wrong = kernel_report.bench_table(found["rows"]), kernel_bench.failures(found["rows"])
        _kernels_done(json_file, started, found, table, wrong)


def _check_kernels(device: str | None, both: bool, json_file: Path | None) -> None:
    """Said before the work: device, for a measurement, must be a GPU; both: two ways to do without one were given."""
    from importlib.util import find_spec

    if both:
        raise InputError("--compile-only and --dry-run are two things: give one")
    if find_spec("triton") is None:
        raise InputError("the kernels need Triton, which is not installed here: it comes with torch on Linux")
    if device is not None:
        import torch

        usable = device.split(":")[0] == "cuda" and torch.cuda.is_available()
        if not usable:
            raise InputError(f"--device {device}: kernels are measured on a GPU, and torch reaches none there; without "
                             "one, --compile-only compiles them all and --dry-run runs every case, slowly")  # fmt: skip
    _bench_outputs(device or "cpu", json_file)


def _kernels_done(json_file: Path | None, started: float, figures: dict, table: Table, wrong: list[str]) -> None:
    """The file, the table, and what is wrong, which is exit code 1."""
    _write_figures(json_file, figures | {"wrong": wrong}, started)
    _print_table(table)
    for line in wrong:
        out_console.print(line)
    rows = len(figures["rows"])
    out_console.print(f"{rows} rows, {len(wrong)} of them wrong, {time.perf_counter() - started:.0f} s, {_command()}")
    if wrong:
        raise typer.Exit(1)


NETWORK_NAMES = ("smallnet", "resnet18", "resnet50", "vgg16")


def _bench_cases(bench, malloc: str, *options):
    """(allocator, *one of each option) for every combination, with a word on standard error of what is running."""
    _one_of("--malloc", [malloc], (*bench.MALLOC, "both"))
    for name in ("default", "tuned") if malloc == "both" else (malloc,):
        for case in itertools.product(*options):
            with console.status(f"measuring {case}, malloc {name}"):
                yield name, *case


def _bench_outputs(device: str, *files: Path | None) -> None:
    """Said before the work, not after it."""
    _device(device)
    for path in files:
        if path is not None and path.is_dir():
            raise InputError(f"{path}: a folder, where a file should be written")


def _bench_done(json_file: Path | None, started: float, device: str, figures: dict, rows: list[dict]) -> None:
    """What the figures depend on, printed and with them in the file."""
    from . import bench

    found = bench.machine(device)
    figures = {"machine": found, **figures}
    _write_figures(json_file, figures | {"threads": rows[0]["threads"]}, started)
    names = ("cpu", "cores", "memory_gb", "gpu", "python", "torch", "numpy", "numba", "onednn", "instructions", "date")
    out_console.print(", ".join(f"{name} {found[name]}" for name in names if found.get(name) is not None))
    out_console.print(f"threads {rows[0]['threads']}, rounds {rows[0]['rounds']}, {_command()}")


def _print_table(table: Table) -> None:
    """As wide as it is where it goes to a file."""
    Console(highlight=False, width=None if sys.stdout.isatty() else 400).print(table)


def _height_width(text: str) -> list[int]:
    return _numbers(text, 2, "--size", least=32) if "x" in text else 2 * _numbers(text, 1, "--size", least=32)


def _numbers(text: str, count: int, option: str, least: int = 1) -> list[int]:
    parts = text.split("x")
    if len(parts) != count or not all(part.isdecimal() and int(part) >= least for part in parts):
        kind = f"{count} whole numbers with x between them" if count > 1 else "a whole number"
        raise InputError(f"{option} {text}: must be {kind}, at least {least}")
    return [int(part) for part in parts]


def _one_of(option: str, names, known) -> None:
    for name in names:
        if name not in known:
            raise InputError(f"{option} {name}: known are {', '.join(known)}")


# ------------------------------------------------------------------------------------------------------------ parity


@parity_app.command("run")
def parity_run(
    device: Annotated[str, typer.Option(metavar="TYPE", help="Device type whose kernels are compared.")] = "cpu",
    implementation: Annotated[
        str | None,
        typer.Option(metavar="MODULE:OBJECT", help="Compare this object's functions on NumPy arrays instead."),
    ] = None,
    register: Annotated[
        str | None, typer.Option(metavar="MODULE", help="Import this first: it registers kernels for the device.")
    ] = None,
    dtype: Annotated[
        list[str] | None,
        typer.Option(metavar="DTYPE", help="float64, float32, bfloat16 or float16; repeat for several. Default: all."),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help='Compare only what begins so, as "peak_backprop.conv2d"; may be repeated.'),
    ] = None,
    examples: Annotated[int, typer.Option(min=1, help="Generated cases for a function and dtype.")] = 300,
    networks: Annotated[int, typer.Option(min=1, help="Random networks for a dtype.")] = 150,
    json_file: Json = None,
) -> None:
    """Compare with the oracle, function by function and on random networks. Exit code 0: all agree; 1: something does
    not; 2: bad input.
    """  # fmt: skip
    conformance = _conformance()
    started = time.perf_counter()
    if json_file is not None and json_file.is_dir():  # said before the work, not after it
        raise InputError(f"{json_file}: a folder, where the figures should go")
    if register is not None:
        conformance.load(register)
    make, source = _implementation(conformance, implementation, device, register)
    wanted = conformance.plan(dtype or (), only or (), arrays=implementation is not None)
    out_console.print(_PARITY_ROW.format(*_PARITY_COLUMNS))
    rows = []
    for name, kind in wanted:
        count = networks if name == conformance.NETWORKS else examples
        row = conformance.check(name, make(kind), kind, count, source(kind), device)
        error, allowed = f"{row.largest_error:.1e}", f"{row.tolerance:.1e}" if row.tolerance else "exact"
        shown = (row.cases, error, allowed, "pass" if row.passed else "FAIL", f"{row.seconds:.1f}")
        out_console.print(_PARITY_ROW.format(name, row.equation, kind, row.ran, *shown))
        rows.append(row)
    failed = [row for row in rows if not row.passed]
    for row in failed:
        out_console.print(f"\n{row.operator} in {row.dtype}: {row.failure}")
    out_console.print(f"\n{len(rows) - len(failed)} of {len(rows)} rows agree with the oracle")
    figures = {"device": device if implementation is None else None, "implementation": implementation}
    # JSON knows no infinity.
    shown = [asdict(row) | ({} if math.isfinite(row.largest_error) else {"largest_error": None}) for row in rows]
    _write_figures(json_file, figures | {"passed": not failed, "rows": shown}, started)
    if failed:
        raise typer.Exit(1)


_PARITY_COLUMNS = ("function", "paper", "dtype", "ran", "cases", "largest error", "tolerance", "result", "seconds")
_PARITY_ROW = "{:34} {:12} {:9} {:11} {:>6} {:>13} {:>10}  {:6} {:>8}"


def _conformance():
    try:
        from prm.parity_tests import conformance
    except ModuleNotFoundError as error:
        if error.name not in ("hypothesis", "pytest"):
            raise
        raise InputError('prm parity needs hypothesis: pip install "peak-response-maps[parity]"') from error
    return conformance


def _implementation(conformance, name: str | None, device: str, register: str | None):
    """For a dtype: the implementation, and the Python that makes it."""
    load = "from prm.parity_tests.conformance import load\n"
    if name is not None:
        found = conformance.load(name)
        return lambda dtype: found, lambda dtype: f"{load}implementation = load({name!r})"
    _device(device)
    port = conformance.TorchPort
    source = "from prm.parity_tests.torch_port import TorchPort\nimplementation = {!r}"
    source = source if register is None else f"{load}load({register!r})\n{source}"
    return lambda dtype: port(device, dtype), lambda dtype: source.format(port(device, dtype))


@parity_app.command("write-golden")
def parity_write_golden(
    out: Annotated[Path, typer.Argument(metavar="DIR", help="Folder to write; made if missing.")],
) -> None:
    """Write inputs and the oracle's answers for every equation and layer kind, and a page on the files, for
    ports that speak no Python.
    """  # fmt: skip
    from prm.reference import golden

    count = golden.write(out)
    out_console.print(f"{out}: {count} cases; begin with README.md there")


@parity_app.command("check-golden")
def parity_check_golden(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder that `prm parity write-golden` wrote.")],
    implementation: Annotated[
        str | None,
        typer.Option(metavar="MODULE:OBJECT", help="Compute with this object's functions; default: with the oracle."),
    ] = None,
    rtol: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Largest error, as a share of an array's largest magnitude.")
    ] = 1e-9,
    json_file: Json = None,
) -> None:
    """Compute every golden case again and compare with the answers in DIR. Functions that an implementation lacks are
    named, and are not wrong. Exit code 0: nothing is wrong; 1: something is, or nothing is there; 2: bad input. For a
    port's own answers run check_answers.py in DIR.
    """  # fmt: skip
    from prm.reference import golden

    started = time.perf_counter()
    results = golden.check(folder, implementation and _conformance().load(implementation), rtol)
    counts = {state: sum(result.state == state for result in results) for state in ("right", "wrong", "absent")}
    _write_figures(json_file, {"implementation": implementation, "rtol": rtol, **counts}, started)
    for text in dict.fromkeys(result.text for result in results if result.state == "wrong"):
        out_console.print(f"wrong: {text}")
    for text in dict.fromkeys(result.text for result in results if result.state == "absent"):
        out_console.print(f"absent: {text}")
    out_console.print(", ".join(f"{count} {state}" for state, count in counts.items()) + f", of {len(results)} arrays")
    if counts["wrong"] or not counts["right"]:
        raise typer.Exit(1)


# ------------------------------------------------------------------------------------------------------------ shared


def _json(text: str, option: str) -> dict:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise InputError(f"{option} {text!r} is not JSON ({error})") from error
    if not isinstance(value, dict):
        raise InputError(f"{option} must be a JSON object, not {text!r}")
    return value


def _command() -> str:
    return shlex.join(["prm", *sys.argv[1:]])


def _write_figures(path: Path | None, figures: dict, started: float) -> None:
    """The figures of a command, with what is needed to make them again."""
    if path is None:
        return
    import torch

    page = {
        "command": _command(), "version": prm.__version__, "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "seconds": round(time.perf_counter() - started, 2), **figures,
    }  # fmt: skip
    atomic_write(path, (json.dumps(page, indent=1) + "\n").encode())


@contextmanager
def _progress():
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"),
               TimeRemainingColumn(), TextColumn("{task.fields[info]}"))  # fmt: skip
    with _Progress(*columns, console=console) as progress:
        yield progress


class _Progress(Progress):
    def add_task(self, description, **options):
        return super().add_task(description, **({"info": ""} | options))


if __name__ == "__main__":
    main()
