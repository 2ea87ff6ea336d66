"""Tables from the JSON files that runs leave behind."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path

from prm import InputError
from prm.files import reason

COLUMNS = {
    "classification_mAP": "cls mAP", "mAP^r_0.25": "mAP^r 0.25", "mAP^r_0.5": "mAP^r 0.5", "mAP^r_0.75": "mAP^r 0.75",
    "ABO": "ABO",
}  # fmt: skip


def comparison(files: Sequence[Path]) -> str:
    """A Markdown table, in percent, with a row for each kind of run: mean and standard deviation over its runs.

    files: JSON written by `prm eval --json`. A file's name up to its last "-" says its kind: average-0.json and
    average-1.json are two runs of "average". A file that holds baselines too gives each a row of its own.
    Raises InputError for a file that is no such run.
    """
    kinds: dict[str, list[dict]] = {}
    for file in files:
        try:
            rows = json.loads(Path(file).read_text())["rows"]
            rows = {"prm": rows["prm"], **rows}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{file}: not the figures of a run ({reason(error)})") from error
        stem = Path(file).stem
        kind = stem.rpartition("-")[0] or stem
        for name, figures in rows.items():
            kinds.setdefault(kind if len(rows) == 1 else name, []).append(figures)
    lines = ["| | runs | " + " | ".join(COLUMNS.values()) + " |", "|---" * (len(COLUMNS) + 2) + "|"]
    for kind, runs in kinds.items():
        cells = [_cell([run.get(column) for run in runs]) for column in COLUMNS]
        lines.append(f"| {kind} | {len(runs)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(values: list[float | None]) -> str:
    if any(value is None for value in values):
        return "-"
    spread = f" ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * statistics.mean(values):.1f}{spread}"
