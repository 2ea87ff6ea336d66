"""The short view of a run: what `prm eval` shows, and a table of several runs."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path

from prm import InputError
from prm.files import reason

from .evaluators import THRESHOLDS
from .record import ANSWER

COLUMNS = {"classification_mAP": "cls mAP", **{f"mAP^r_{t}": f"mAP^r {t}" for t in THRESHOLDS}, "ABO": "ABO"}
"""Figures of the short view that tables show, and their headings."""


def short_view(figures: dict) -> dict:
    """The classification, the masks and the time of a run, out of all its figures (see `evaluators`)."""
    short = {
        "images": figures["pictures"],
        "classification_mAP": figures.get("classification", {}).get("mAP"),
        "peaks": figures.get("peaks", {}).get("walked", 0),
        "seconds_per_image": figures["seconds_per_picture"],
    }
    if ANSWER not in figures.get("instances", {}):
        return short
    return short | instance_view(figures["instances"][ANSWER]) | {
        "peaks_inside_an_instance": figures.get("peaks", {}).get("on_truth"),
    }  # fmt: skip


def instance_view(figures: dict) -> dict:
    """mAP^r, ABO and counts of one answer, with AP^r by class, out of `evaluators.instance_figures`."""
    levels = [f"AP^r_{t}" for t in THRESHOLDS]
    classes = figures["per_class"][levels[0]]
    return {
        **{name: figures[name] for name in (*(f"m{level}" for level in levels), "ABO")},
        "per_class": {name: {level: figures["per_class"][level][name] for level in levels} for name in classes},
        **{name: figures[name] for name in ("true_instances", "predicted_instances")},
    }


def comparison(files: Sequence[Path]) -> str:
    """A Markdown table, in percent, with a row for each kind of run: mean and standard deviation over its runs.

    files: JSON written by `prm eval --json`, or a run's by `prm eval tables`. A file's name up to its last "-" says its
    kind: average-0.json and average-1.json are two runs of "average". A file that holds baselines too gives each a row
    of its own. Raises InputError for a file that is no such run.
    """
    kinds: dict[str, list[dict]] = {}
    for file in files:
        rows = _rows(file)
        stem = Path(file).stem
        kind = stem.rpartition("-")[0] or stem
        for name, figures in rows.items():
            kinds.setdefault(kind if len(rows) == 1 else name, []).append(figures)
    lines = ["| | runs | " + " | ".join(COLUMNS.values()) + " |", "|---" * (len(COLUMNS) + 2) + "|"]
    for kind, runs in kinds.items():
        cells = [shown([run.get(column) for run in runs]) for column in COLUMNS]
        lines.append(f"| {kind} | {len(runs)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _rows(file: Path) -> dict[str, dict]:
    """The short views in a file, by method; the network's own first."""
    try:
        page = json.loads(Path(file).read_text())
        if "rows" not in page and "instances" in page:
            return {"prm": short_view(page)}
        return {"prm": page["rows"]["prm"], **page["rows"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{file}: not the figures of a run ({reason(error)})") from error


def shown(values: Sequence[float | None]) -> str:
    """A figure over runs in percent: one value, or mean and standard deviation; - where one is undefined."""
    if not values:
        return ""
    if any(one is None for one in values):
        return "-"
    spread = f" ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * statistics.mean(values):.1f}{spread}"
