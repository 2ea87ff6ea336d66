"""Many trainings under the same settings: every aggregation with every seed, each in a process of its own."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from prm import InputError
from prm.accelerated.aggregation import AGGREGATIONS
from prm.accelerated.checkpoint import load_checkpoint
from prm.files import reason

OWN = ("--data", "--out", "-o", "--aggregation", "--seed", "--resume", "--json")
"""Options of `prm train` that a series sets itself."""
OUTPUT = "output.txt"
"""File in a run's folder with what its training said."""


@dataclass(frozen=True)
class Run:
    """One training of a series."""

    aggregation: str
    seed: int
    out: Path
    arguments: tuple[str, ...]
    """Of the command `prm`."""

    @property
    def name(self) -> str:
        return self.out.name


def series(
    data: Path,
    out: Path,
    aggregations: Sequence[str],
    seeds: Sequence[int],
    options: Sequence[str],
    asked: Callable[[Sequence[str]], object],
    *,
    jobs: int = 1,
    report: Callable[[str], None] = print,
) -> list[dict]:
    """Train every aggregation with every seed under the same options, into `out`/AGGREGATION-SEED.

    A run is `prm train --resume` in a process of its own, so one that was interrupted goes on after its last whole
    epoch, and one that was made with other settings is refused. A run that was finished and asked for the same is not
    started again. A run that fails is reported, and the others are done. Ctrl-C ends the running ones.

    Parameters
    ----------
    options : of `prm train`, the same for every run: ["--epochs", "8", "--size", "128"]; not those in `OWN`
    asked : what a command line of `prm train` asks for, to compare a finished run's with one to be made
    jobs : runs at a time; more than one share the processor's cores, unless OMP_NUM_THREADS says otherwise
    report : called with one line when a run has ended, or was found to be finished

    Returns a row a run, seed by seed: aggregation, seed, state ("trained", "found" or "failed"), command; of a run that
    did not fail also epochs, loss, training_seconds and, where `--val` is among the options, mean_average_precision, of
    the last epoch; of one that failed, error. Raises InputError for an aggregation that is not known, a negative seed,
    no run at all, jobs below 1 and an option in `OWN`.
    """
    runs = _planned(data, out, aggregations, seeds, options)
    if jobs < 1:
        raise InputError(f"jobs must be >= 1, not {jobs}")
    ended: dict[Run, dict] = {}

    def end(run: Run, state: str, error: str = "") -> None:
        row = {"aggregation": run.aggregation, "seed": run.seed, "state": state, "command": _command(run)}
        ended[run] = row | ({"error": error} if error else _figures(run))
        report(f"{len(ended)}/{len(runs)} {run.name}: {_line(ended[run])}")

    waiting: list[Run] = []
    for run in runs:
        if _finished(run, asked):
            end(run, "found")
        else:
            waiting.append(run)
    running: dict[Run, subprocess.Popen] = {}
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                run = waiting.pop(0)
                running[run] = _start(run, jobs)
            time.sleep(0.1)
            for run in [run for run, process in running.items() if process.poll() is not None]:
                code = running.pop(run).returncode
                if code:
                    end(run, "failed", _reason(run, code))
                else:
                    end(run, "trained")
    finally:
        # What a terminal sends to all of its processes may have ended them already.
        for process in running.values():
            process.terminate()
        for process in running.values():
            process.wait()
    return [ended[run] for run in runs]


def _planned(data, out, aggregations, seeds, options) -> list[Run]:
    """All runs, seed by seed: whoever stops a series early has some seeds of every aggregation."""
    for name in aggregations:
        if name not in AGGREGATIONS:
            raise InputError(f"unknown aggregation {name!r}; known: {', '.join(AGGREGATIONS)}")
    for option in options:
        if option.partition("=")[0] in OWN:
            raise InputError(f"{option}: a series sets {', '.join(OWN)} itself; leave it out")
    if any(seed < 0 for seed in seeds) or not seeds or not aggregations:
        raise InputError(f"a series needs an aggregation and seeds >= 0, not {list(aggregations)} and {list(seeds)}")
    runs = []
    for seed in dict.fromkeys(seeds):
        for name in dict.fromkeys(aggregations):
            place = Path(out) / f"{name}-{seed}"
            arguments = ("train", "--data", str(data), "--out", str(place), "--resume", "--aggregation", name,
                         "--seed", str(seed), *options)  # fmt: skip
            runs.append(Run(name, seed, place, arguments))
    return runs


def _command(run: Run) -> str:
    return shlex.join(["prm", *run.arguments])


def _finished(run: Run, asked: Callable[[Sequence[str]], object]) -> bool:
    """Whether the run's folder holds the last epoch of what is asked for; in doubt `prm train --resume` decides."""
    try:
        found = load_checkpoint(run.out)
        made = shlex.split(found.training.get("command", ""))[1:]
        return found.epoch == found.training.get("epochs") and asked(made) == asked(run.arguments)
    except (InputError, ValueError):
        return False


def _start(run: Run, jobs: int) -> subprocess.Popen:
    environment = os.environ | {"COLUMNS": "400"}  # an error's line stays one
    if jobs > 1:
        environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // jobs)))
    command = [sys.executable, "-m", "prm.eval.cli", *run.arguments]
    try:
        run.out.mkdir(parents=True, exist_ok=True)
        with open(run.out / OUTPUT, "wb") as said:
            return subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=said, stderr=subprocess.STDOUT, env=environment
            )
    except OSError as error:
        raise InputError(f"{run.out}: cannot be a training's folder ({reason(error)}); name another place") from error


def _reason(run: Run, code: int) -> str:
    """The last line that a failed training said, or how it ended."""
    if code < 0:
        return f"ended by signal {-code}"
    lines = (run.out / OUTPUT).read_text(errors="replace").splitlines()
    # A mistyped option is answered in a box.
    said = [line.strip(" │") for line in lines if line.strip(" │╰╯─╭╮")]
    return said[-1].removeprefix("prm: error: ") if said else f"ended with code {code}"


def _figures(run: Run) -> dict:
    """Of the last epoch of a finished run."""
    found = load_checkpoint(run.out)
    row = json.loads((run.out / "log.jsonl").read_text().splitlines()[-1])
    return {"epochs": found.epoch, **found.figures} | {
        key: row[key] for key in ("mean_average_precision",) if key in row
    }


def _line(row: dict) -> str:
    if row["state"] == "failed":
        return f"failed: {row['error']}"
    precision = f", cls mAP {100 * row['mean_average_precision']:.1f}" if "mean_average_precision" in row else ""
    end = "finished before" if row["state"] == "found" else f"{row['training_seconds']:.0f} s"
    return f"{row['epochs']} epochs, loss {row['loss']:.4f}{precision}, {end}"
