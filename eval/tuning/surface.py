"""A picture of what `prm tune` found: how the figure that it maximised depends on the settings."""

from __future__ import annotations

import os

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from prm.files import atomic_write

from .search import Search

PAIRS = {
    "eq6": (("beta_area", "alpha"), ("beta_area", "bias"), ("peak_threshold", "nms")),
    "fit": (("weight_mass", "weight_response"), ("weight_inside", "weight_on_contour"), ("peak_threshold", "nms")),
}
CURVES = {
    "eq6": ("peak_threshold", "bias", "class_threshold"), "fit": ("peak_threshold", "weight_mass", "weight_response")
}  # fmt: skip
LABELS = {
    "alpha": "alpha", "beta_area": "beta, per picture area", "bias": "bias of the background mask",
    "peak_threshold": "peak threshold, share of the strongest", "class_threshold": "class threshold, probability",
    "nms": "suppression, mask IoU", "weight_mass": "weight of the mass inside",
    "weight_response": "weight of the mean response", "weight_objectness": "weight of objectness",
    "weight_inside": "weight of what is not background", "weight_on_contour": "weight of the mass on the contour",
}  # fmt: skip


def surface(found: Search, path: str | os.PathLike, title: str = "") -> None:
    """Draw the response surface as a PNG: maps over pairs of settings, below them curves over single ones.

    A place of a map, and the full line of a curve, shows the best that the search reached there with any values of all
    other settings; a curve's broken line keeps the others as chosen. A ring marks what was chosen, a cross or a dotted
    line what it was before, where that was tried; values stand at even distances. Raises InputError when the file
    cannot be written.
    """
    figure = Figure(figsize=(13, 7.5), layout="constrained")
    rows = figure.subplots(2, 3)
    low, high = found.figures[found.objective].min(), found.figures[found.objective].max()
    for axes, pair in zip(rows[0], PAIRS[found.settings.choice]):
        image = _map(axes, found, *pair, low * _scale(found), high * _scale(found))
    figure.colorbar(image, ax=rows[0].tolist(), label=_name(found), shrink=0.9)
    for axes, name in zip(rows[1], CURVES[found.settings.choice]):
        _curve(axes, found, name)
    rows[1][-1].legend(frameon=False, fontsize=9)
    if title:
        figure.suptitle(title)
    atomic_write(path, lambda file: figure.savefig(file, format="png", dpi=110))


def _map(axes: Axes, found: Search, across: str, up: str, low: float, high: float):
    names = list(found.grid)
    values = found.profile(across, up) * _scale(found)
    # The profile's axes are in the grid's order.
    values = values.T if names.index(across) < names.index(up) else values
    image = axes.imshow(values, origin="lower", aspect="auto", vmin=low, vmax=high, cmap="viridis")
    for (row, column), value in np.ndenumerate(values):
        ink = "black" if value > (low + high) / 2 else "white"
        axes.text(column, row, _short(value), ha="center", va="center", fontsize=8, color=ink)
    _ticks(axes, found, across, "x")
    _ticks(axes, found, up, "y")
    place = (found.best[names.index(across)], found.best[names.index(up)])
    axes.plot(*place, "o", markersize=26, markerfacecolor="none", markeredgecolor="#d55e00", markeredgewidth=2.5)
    before = _before(found, across), _before(found, up)
    if None not in before:
        axes.plot(before[0] + 0.36, before[1] + 0.3, "x", color="#d55e00", markeredgewidth=2)
    return image


def _curve(axes: Axes, found: Search, name: str) -> None:
    k = list(found.grid).index(name)
    profile = found.profile(name) * _scale(found)
    here = tuple(slice(None) if axis == k else place for axis, place in enumerate(found.best))
    axes.plot(profile, "o-", color="#0072b2", label="best of all others")
    axes.plot(found.figures[found.objective][here] * _scale(found), "s--", color="#56b4e9", markersize=4,
              label="others as chosen")  # fmt: skip
    axes.plot(found.best[k], profile[found.best[k]], "o", markersize=15, markerfacecolor="none",
              markeredgecolor="#d55e00", markeredgewidth=2.5, linestyle="none", label="chosen")  # fmt: skip
    if _before(found, name) is not None:
        axes.axvline(_before(found, name), color="#d55e00", linestyle=":", label="before")
    _ticks(axes, found, name, "x")
    axes.set_ylabel(_name(found))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def _before(found: Search, name: str) -> int | None:
    """Where on its axis a setting's earlier value lies, if it was tried."""
    value = getattr(found.before, name)
    return found.grid[name].index(value) if value in found.grid[name] else None


def _ticks(axes: Axes, found: Search, name: str, side: str) -> None:
    values = found.grid[name]
    axes.set(**{f"{side}ticks": range(len(values)), f"{side}ticklabels": [f"{value:.4g}" for value in values],
                f"{side}label": LABELS[name]})  # fmt: skip


def _scale(found: Search) -> float:
    return 1.0 if found.objective == "proxy" else 100.0


def _name(found: Search) -> str:
    return "proxy, nats" if found.objective == "proxy" else f"{found.objective}, percent".replace("^r", "$^r$")


def _short(value: float) -> str:
    return f"{value:.0f}" if value >= 10 else f"{value:.2g}"
