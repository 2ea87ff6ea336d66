"""Choosing the weights of Eq. 6, the thresholds of peaks and classes, and that of the suppression, by a full search.

The costly parts (forward pass, walks, the sums of Eq. 6) are done once a picture, by `gather`; a setting then costs a
weighted sum, an argmax and a suppression, and `search` tries thousands in seconds. `gather` holds 16 bytes for every
peak and proposal of a picture, and the proposals' runs, however many settings are tried. What is maximised: `worth`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.stats import spearmanr

from prm import InputError
from prm.accelerated import SegmentationSettings

from .gather import Picture
from .grid import CUTS, OBJECTIVES, WEIGHTS, searched
from .worth import worth

POINT = 0.01
"""Settings whose figure is so little below the best are as good; of the proxy, this share of it."""


@dataclass(frozen=True, eq=False)
class Search:
    """All that was tried: `grid` by name, the weights first, and each figure as an array with an axis a name.

    objective : the figure that was maximised
    best : the chosen setting's place on each axis
    settings : the chosen settings
    before, present : the settings as they were, and their figures
    """

    grid: dict[str, tuple[float, ...]]
    figures: dict[str, np.ndarray]
    objective: str
    best: tuple[int, ...]
    settings: SegmentationSettings
    before: SegmentationSettings
    present: dict[str, float]

    @property
    def chosen(self) -> dict[str, float]:
        """The chosen value of each setting."""
        return {name: values[k] for (name, values), k in zip(self.grid.items(), self.best)}

    @property
    def reached(self) -> dict[str, float]:
        """The chosen settings' figures."""
        return {name: float(array[self.best]) for name, array in self.figures.items()}

    def profile(self, *names: str) -> np.ndarray:
        """The objective over one or two settings, each time with the best of all others: an axis a name."""
        others = tuple(k for k, name in enumerate(self.grid) if name not in names)
        return self.figures[self.objective].max(axis=others)

    def as_good(self) -> tuple[int, dict[str, tuple[float, float]]]:
        """How flat the optimum is: how many settings lie within a point of the best, and the span of each value."""
        best = self.reached[self.objective]
        good = self.figures[self.objective] >= best - POINT * (best if self.objective == "proxy" else 1)
        spans = {}
        for name, values, places in zip(self.grid, self.grid.values(), np.nonzero(good)):
            spans[name] = values[places.min()], values[places.max()]
        return int(good.sum()), spans

    def at_edge(self) -> dict[str, int]:
        """Settings that might be better beyond the grid, and where: 0 or -1 for the axis's first or last value.

        Those of which all that is as good as the best has the one value at that end. An axis of one value has no end.
        """
        spans, edges = self.as_good()[1], {}
        for name, values in self.grid.items():
            low, high = spans[name]
            for place in (0, -1):
                if len(values) > 1 and low == high == values[place] and not _is_end(name, low):
                    edges[name] = place
        return edges

    def agreement(self) -> dict[str, float]:
        """Spearman's rank correlation of the proxy with each other figure over all that was tried; {} without masks.

        A figure that is the same for all settings has none.
        """
        varied = {name: array.ravel() for name, array in self.figures.items() if np.ptp(array) > 0}
        proxy = varied.pop("proxy", None)
        return {} if proxy is None else {
            name: float(spearmanr(proxy, array).statistic) for name, array in varied.items()
        }  # fmt: skip

    def rows(self) -> list[dict]:
        """A dict for everything that was tried: the setting and its figures."""
        tried = itertools.product(*self.grid.values())
        figures = zip(*(array.ravel().tolist() for array in self.figures.values()))
        return [dict(zip((*self.grid, *self.figures), (*s, *f))) for s, f in zip(tried, figures)]


def _is_end(name: str, value: float) -> bool:
    """Whether a setting has no sense beyond this value."""
    return value == 0 or (name in CUTS and value == 1)


def search(
    pictures: Sequence[Picture],
    settings: SegmentationSettings,
    grid: dict[str, Sequence[float]],
    objective: str = "mAP^r",
    iou: float = 0.5,
    steps: int = 0,
    fixed: Collection[str] = (),
    tick: Callable[[], None] = lambda: None,
) -> Search:
    """The setting of the grid with the highest figure; of several, the one that changes least of `settings`.

    pictures: from `gather`, with at least this grid's thresholds. settings: the present ones; what is not in the grid
    stays as it is there, but a peak threshold replaces an absolute one. objective: "mAP^r", "ABO" or "proxy". iou: for
    mAP^r. steps: how often a weight of Eq. 6 of which the best lies `at_edge` gets another value beyond; but not
    those in `fixed`. tick: called after every tuple of weights.
    Raises InputError for no picture, an unknown objective, and for figures of masks where a picture has none.
    """
    if not pictures:
        raise InputError("there is no picture to choose the settings on")
    if objective not in OBJECTIVES.values():
        raise InputError(f"objective {objective!r} is not known; choose {', '.join(OBJECTIVES.values())}")
    if objective != "proxy" and any(picture.truth is None for picture in pictures):
        raise InputError(f"{objective} needs instance masks; without any, choose the proxy")
    present = _worth_of(pictures, settings, iou)
    base = replace(settings, peak_minimum=None)
    weights = WEIGHTS[base.choice]
    grid = {name: tuple(grid.get(name, (getattr(base, name),))) for name in searched(base.choice)}
    cuts = [replace(base, **dict(zip(CUTS, values))) for values in itertools.product(*(grid[name] for name in CUTS))]
    known: dict[tuple, dict[str, np.ndarray]] = {}
    for step in range(steps + 1):
        tuples = list(itertools.product(*(grid[name] for name in weights)))
        new = [one for one in tuples if one not in known]
        figures = worth(pictures, new, cuts, iou, tick)
        known |= {one: {name: array[k] for name, array in figures.items()} for k, one in enumerate(new)}
        shape = [len(values) for values in grid.values()]
        figures = {name: np.array([known[one][name] for one in tuples]).reshape(shape) for name in figures}
        best = _least_changed(figures[objective], grid, base)
        chosen = {name: values[k] for (name, values), k in zip(grid.items(), best)}
        found = Search(grid, figures, objective, best, replace(base, **chosen), settings, present)
        edges = {name: edge for name, edge in found.at_edge().items() if name in weights and name not in fixed}
        if not edges or step == steps:
            return found
        grid = grid | {name: _extended(grid[name], edge) for name, edge in edges.items()}


def _least_changed(figure: np.ndarray, grid: dict[str, tuple], base: SegmentationSettings) -> tuple[int, ...]:
    """The place of the maximum; of equal ones the one with the most values as they were, then the first."""
    places = np.argwhere(figure == figure.max())
    same = [[value == getattr(base, name) for value in values] for name, values in grid.items()]
    kept = sum(np.array(axis)[places[:, k]].astype(int) for k, axis in enumerate(same))
    return tuple(int(k) for k in places[np.argmax(kept)])


def _extended(values: tuple[float, ...], edge: int) -> tuple[float, ...]:
    """One more value beyond the first (edge 0) or the last (-1), as far as the last two lie apart by their ratio."""
    near, next_to_it = (values[0], values[1]) if edge == 0 else (values[-1], values[-2])
    beyond = near * near / next_to_it if next_to_it > 0 else 2 * near
    return (beyond, *values) if edge == 0 else (*values, beyond)


@dataclass(frozen=True, eq=False)
class Half:
    """What one half of the pictures chose, and its figures, and those of the settings as they were, on the other."""

    search: Search
    judged: dict[str, float]
    present: dict[str, float]


def halves(pictures: Sequence[Picture], settings: SegmentationSettings, *arguments, **options) -> list[Half]:
    """`search` on every second picture, judged on the others, and the other way round; arguments as there.

    Raises InputError for fewer than two pictures.
    """
    if len(pictures) < 2:
        raise InputError(f"{len(pictures)} picture cannot be halved; take more of them")
    parts, answers = (pictures[::2], pictures[1::2]), []
    for mine, other in (parts, parts[::-1]):
        found = search(mine, settings, *arguments, **options)
        answers.append(Half(found, *(_worth_of(other, s, options.get("iou", 0.5)) for s in (found.settings, settings))))
    return answers


def _worth_of(pictures: Sequence[Picture], settings: SegmentationSettings, iou: float) -> dict[str, float]:
    """The figures of one setting."""
    figures = worth(pictures, [tuple(getattr(settings, name) for name in WEIGHTS[settings.choice])], [settings], iou)
    return {name: float(array[0, 0]) for name, array in figures.items()}
