"""A training curve."""

import os
from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from prm import InputError
from prm.files import atomic_write


def curve(log_rows: Sequence[Mapping], path: str | os.PathLike) -> None:
    """Draw a training curve as a PNG: loss against epoch, and mean average precision where the rows have it.

    log_rows: one dict an epoch (or several) with "epoch", "loss" and, in any of them, "mean_average_precision" in 0..1.
    Raises InputError when no row has an epoch and a loss, or the file cannot be written.
    """
    losses, precision = _points(log_rows, "loss"), _points(log_rows, "mean_average_precision")
    if not losses:
        raise InputError(f"{path}: no row of the training log has an epoch and a loss; train for one epoch at least")
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot(xlabel="epoch", ylabel="training loss")
    marker = "o" if len(losses) <= 40 else None
    lines = axes.plot(*zip(*losses), color="#0072b2", marker=marker, markersize=4, label="training loss")
    if precision:
        right = axes.twinx()
        right.set(ylabel="mean average precision", ylim=(0, 1))
        right.spines["top"].set_visible(False)
        lines += right.plot(*zip(*precision), color="#d55e00", marker="s", markersize=4, label="mean average precision")
        axes.legend(handles=lines, frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
    axes.grid(alpha=0.25)
    axes.spines["top"].set_visible(False)
    axes.spines["right"].set_visible(bool(precision))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    atomic_write(path, lambda file: figure.savefig(file, format="png", dpi=150))


def _points(rows: Sequence[Mapping], key: str) -> list[tuple[float, float]]:
    """(epoch, value) of the rows that have both."""
    return [(row["epoch"], row[key]) for row in rows if row.get("epoch") is not None and row.get(key) is not None]
