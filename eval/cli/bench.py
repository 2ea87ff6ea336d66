"""`prm bench`: time and memory."""

from __future__ import annotations

import itertools
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from prm import InputError

from ..bench import COMPETITORS, NETWORKS, PEAK_SIZES, STAGES
from ..bench.process import MALLOC, machine, measure
from .shared import (
    Device,
    Json,
    Limit,
    check_finite,
    check_one_of,
    command_line,
    console,
    out_console,
    print_table,
    usable_device,
    write_figures,
)

app = typer.Typer(no_args_is_help=True, help="Measure time and memory.")

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


@app.command("walk")
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
    started = time.perf_counter()
    if (checkpoint is None) != (not image) or (image and size):
        raise InputError("--checkpoint and --image go together, and without --size: the pictures have theirs")
    pictures = [{"size": _height_width(text)} for text in size or ["448"]]
    if image:
        pictures = [{"size": None, "image": str(file)} for file in image]
    check_one_of("--network", [network], NETWORKS)
    check_one_of("--competitor", competitor or [], COMPETITORS)
    check_one_of("--where", [where], ("random", "corner", "centre"))
    for value in epsilon or []:
        check_finite(epsilon=value)
    _bench_outputs(device, json_file, plot)

    from prm.parity_tests.convert import to_reference

    from ..bench import report, walk
    from ..bench.competitors import zennit_parts

    if "zennit" in (competitor or []):
        zennit_parts()
    common = {"network": network, "where": where, "seed": seed, "device": device, "checkpoint": str(checkpoint or "")}
    versus = {"competitors": competitor or [], "epsilons": epsilon or [], "rounds": rounds,
              "competitor_peaks": competitor_peaks}  # fmt: skip
    with console.status("comparing with the oracle"):
        difference = walk.oracle_difference(network, to_reference, device=device, checkpoint=common["checkpoint"])
    out_console.print(f"L1 to the oracle at 64 x 64: {difference:.1e} (at most {walk.ORACLE:.0e})")
    rows = []
    for name, one, number in _bench_cases(malloc, pictures, peaks or [10]):
        case = common | one | {"peaks": number}
        row = measure("walk", case | versus, name, threads) | {"oracle_difference": difference}
        row |= measure("walk-memory", case, name, threads)
        rows.append(row if difference <= walk.ORACLE else walk.withheld(row))
    _bench_done(json_file, started, device, {"walk": common | versus, "rows": rows}, rows)
    for table in report.walk_tables(rows):
        print_table(table)
    for line in report.growth(rows):
        out_console.print(line)
    if plot is not None:
        report.plot_walk(rows, plot)


@app.command("retrieval")
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
    started, side = time.perf_counter(), _height_width(size)
    _bench_outputs(device, json_file, plot)

    from ..bench import report

    common = {"size": side, "image": str(image or ""), "rounds": rounds, "seed": seed, "making": making,
              "device": device}  # fmt: skip
    rows = []
    for name, number, found in _bench_cases(malloc, proposals or [200, 2000], peaks or [30]):
        rows.append(measure("retrieval", common | {"proposals": number, "peaks": found}, name, threads))
    _bench_done(json_file, started, device, {"retrieval": common, "rows": rows}, rows)
    print_table(report.retrieval_table(rows))
    if plot is not None:
        report.plot_retrieval(rows, plot)


@app.command("peaks")
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
    started, sizes = time.perf_counter(), [_numbers(text, 4, "--size") for text in size or PEAK_SIZES]
    check_one_of("--kind", kind or [], ("smooth", "noise"))
    _bench_outputs(device, json_file)

    from ..bench import report

    common = {"rounds": rounds, "seed": seed, "device": device}
    rows = []
    for name, shape, of in _bench_cases(malloc, sizes, kind or ["smooth", "noise"]):
        rows.append(measure("peaks", common | {"size": shape, "kind": of}, name, threads))
    _bench_done(json_file, started, device, {"peaks": common, "rows": rows}, rows)
    print_table(report.peaks_table(rows))


@app.command("segment")
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
    started = time.perf_counter()
    check_one_of("--network", [network], NETWORKS)
    _bench_outputs(device, json_file)

    from ..bench import report

    common = {"network": network, "size": size, "image": str(image or ""), "limit": limit, "rounds": rounds,
              "competitor": competitor, "device": device}  # fmt: skip
    rows = []
    for name, number in _bench_cases(malloc, peaks or [10, 30]):
        rows.append(measure("segment", common | {"peaks": number}, name, threads))
    _bench_done(json_file, started, device, {"segment": common, "rows": rows}, rows)
    print_table(report.segment_table(rows, STAGES))


@app.command("kernels")
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
    readme: Annotated[bool, typer.Option("--readme", help="Print docs/results.md's block of GPU figures.")] = False,
    rounds: Rounds = 7,
    device: Device = "cuda",
    json_file: Json = None,
) -> None:  # fmt: skip
    """GPU kernels beside torch's own code, torch.compile and what the card can do at best. Answers are compared first:
    a kernel whose answer is wrong has no speed.
    """
    from ..bench.kernels import report

    if readme:
        typer.echo(report.readme_block())
        return
    started = time.perf_counter()
    _check_kernels(device if not (compile_only or dry_run) else None, compile_only and dry_run, json_file)

    from ..bench.kernels import bench

    if compile_only:
        from ..bench.kernels.table import TARGETS, compile_table, kernel_names, spills

        with console.status("compiling"):
            rows = compile_table(target or tuple(TARGETS), kernel_names(only))
        _kernels_done(json_file, started, {"rows": rows}, report.compiled_table(rows), spills(rows))
    elif dry_run:
        with console.status("interpreting"):
            rows = bench.dry_run(only)
        _kernels_done(json_file, started, {"rows": rows}, report.dry_table(rows), bench.failures(rows))
    else:
        with console.status("measuring") as status:
            found = bench.measure(only, device, rounds, record, lambda name: status.update(f"measuring {name}"))
        if record:
            bench.write_choices(found["machine"]["gpu"], found["choices"])
        table, wrong = report.bench_table(found["rows"]), bench.failures(found["rows"])
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
    write_figures(json_file, figures | {"wrong": wrong}, started)
    print_table(table)
    for line in wrong:
        out_console.print(line)
    rows = len(figures["rows"])
    spent = time.perf_counter() - started
    out_console.print(f"{rows} rows, {len(wrong)} of them wrong, {spent:.0f} s, {command_line()}")
    if wrong:
        raise typer.Exit(1)


def _bench_cases(malloc: str, *options):
    """(allocator, *one of each option) for every combination, with a word on standard error of what is running."""
    check_one_of("--malloc", [malloc], (*MALLOC, "both"))
    for name in ("default", "tuned") if malloc == "both" else (malloc,):
        for case in itertools.product(*options):
            with console.status(f"measuring {case}, malloc {name}"):
                yield name, *case


def _bench_outputs(device: str, *files: Path | None) -> None:
    """Said before the work, not after it."""
    usable_device(device)
    for path in files:
        if path is not None and path.is_dir():
            raise InputError(f"{path}: a folder, where a file should be written")


def _bench_done(json_file: Path | None, started: float, device: str, figures: dict, rows: list[dict]) -> None:
    """What the figures depend on, printed and with them in the file."""
    found = machine(device)
    figures = {"machine": found, **figures}
    write_figures(json_file, figures | {"threads": rows[0]["threads"]}, started)
    names = ("cpu", "cores", "memory_gb", "gpu", "python", "torch", "numpy", "numba", "onednn", "instructions", "date")
    out_console.print(", ".join(f"{name} {found[name]}" for name in names if found.get(name) is not None))
    out_console.print(f"threads {rows[0]['threads']}, rounds {rows[0]['rounds']}, {command_line()}")


def _height_width(text: str) -> list[int]:
    return _numbers(text, 2, "--size", least=32) if "x" in text else 2 * _numbers(text, 1, "--size", least=32)


def _numbers(text: str, count: int, option: str, least: int = 1) -> list[int]:
    parts = text.split("x")
    if len(parts) != count or not all(part.isdecimal() and int(part) >= least for part in parts):
        kind = f"{count} whole numbers with x between them" if count > 1 else "a whole number"
        raise InputError(f"{option} {text}: must be {kind}, at least {least}")
    return [int(part) for part in parts]
