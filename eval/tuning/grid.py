"""What is searched: the settings' names, the values that are tried of each, and the figures that can be maximised."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from prm import InputError
from prm.accelerated import SegmentationSettings

WEIGHTS = ("alpha", "beta_area", "bias")
CUTS = ("peak_threshold", "class_threshold", "nms")
GRID = {
    "alpha": (0.4, 0.8, 1.5, 3.0, 6.0),
    "beta_area": (0.0, 2.0, 10.0, 30.0, 100.0, 300.0, 1000.0),
    "bias": (0.95, 1.5, 2.5, 4.0),
    "peak_threshold": (0.05, 0.1, 0.2, 0.3, 0.5, 0.7),
    "class_threshold": (0.1, 0.3, 0.5, 0.7),
    "nms": (0.2, 0.3, 0.5, 0.7),
}
"""What is tried, by the name of the setting; the present value of each is tried, too."""
FIXED = ("class_threshold", "nms")
"""What the proxy cannot judge."""
OBJECTIVES = {"map": "mAP^r", "abo": "ABO", "proxy": "proxy"}
"""What can be maximised: its name on the command line, and as a figure."""


def full_grid(
    settings: SegmentationSettings, given: dict[str, Sequence[float]] | None = None, objective: str = "mAP^r"
) -> dict[str, tuple]:
    """`GRID` with the present value of each setting; of those in `given` these values and no others.

    For the proxy, what it cannot judge keeps its present value unless it is given.
    Raises InputError for an unknown name, no value at all, and values that the setting cannot have.
    """
    given = dict(given or {})
    for name, values in given.items():
        if name not in GRID:
            raise InputError(f"setting {name!r} is not searched; known are {', '.join(GRID)}")
        least, most = (0, np.inf) if name in WEIGHTS else (0, 1)
        wrong = [value for value in values if not (least <= value <= most and np.isfinite(value))]
        if not values or wrong:
            span = "0 or more" if name in WEIGHTS else "from 0 to 1"
            raise InputError(f"{name}: {wrong[0] if wrong else 'no value'} cannot be tried; give numbers {span}")
    for name in GRID:
        values = () if objective == "proxy" and name in FIXED else GRID[name]
        given.setdefault(name, (*values, getattr(settings, name)))
    return {name: tuple(sorted(set(given[name]))) for name in GRID}
