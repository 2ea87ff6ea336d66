"""`prm parity`: an implementation against the oracle, and golden vectors."""

from __future__ import annotations

import math
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from prm import InputError

from .shared import Json, out_console, usable_device, write_figures

app = typer.Typer(
    no_args_is_help=True,
    help="Compare an implementation, on any hardware, with the oracle; golden vectors. Guide: parity_tests/PORTING.md.",
)


@app.command("run")
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
    write_figures(json_file, figures | {"passed": not failed, "rows": shown}, started)
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
    usable_device(device)
    port = conformance.TorchPort
    source = "from prm.parity_tests.torch_port import TorchPort\nimplementation = {!r}"
    source = source if register is None else f"{load}load({register!r})\n{source}"
    return lambda dtype: port(device, dtype), lambda dtype: source.format(port(device, dtype))


@app.command("write-golden")
def parity_write_golden(
    out: Annotated[Path, typer.Argument(metavar="DIR", help="Folder to write; made if missing.")],
) -> None:
    """Write inputs and the oracle's answers for every equation and layer kind, and a page on the files, for
    ports that speak no Python.
    """  # fmt: skip
    from prm.reference import golden

    count = golden.write(out)
    out_console.print(f"{out}: {count} cases; begin with README.md there")


@app.command("check-golden")
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
    write_figures(json_file, {"implementation": implementation, "rtol": rtol, **counts}, started)
    for text in dict.fromkeys(result.text for result in results if result.state == "wrong"):
        out_console.print(f"wrong: {text}")
    for text in dict.fromkeys(result.text for result in results if result.state == "absent"):
        out_console.print(f"absent: {text}")
    out_console.print(", ".join(f"{count} {state}" for state, count in counts.items()) + f", of {len(results)} arrays")
    if counts["wrong"] or not counts["right"]:
        raise typer.Exit(1)
