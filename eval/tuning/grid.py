"""What is searched: the settings' names, the values that are tried of each, and the figures that can be maximised."""

from __future__ import annotations

import math
from collections.abc import Sequence

from prm import InputError
from prm.settings import SegmentationSettings

WEIGHTS = {
    "eq6": ("alpha", "beta_area", "bias"),
    "fit": tuple(f"weight_{name}" for name in ("mass", "response", "objectness", "inside", "on_contour")),
}
"""The weights of each way to choose a proposal."""
CUTS = ("peak_threshold", "class_threshold", "nms")
GRID = {
    "alpha": (0.4, 0.8, 1.5, 3.0, 6.0),
    "beta_area": (0.0, 2.0, 10.0, 30.0, 100.0, 300.0, 1000.0),
    "bias": (0.95, 1.5, 2.5, 4.0),
    "weight_mass": (0.0, 0.1, 0.3, 1.0, 2.0),
    "weight_response": (0.0, 0.1, 0.3, 1.0, 2.0, 4.0),
    "weight_objectness": (1.0,),  # only the weights' ratios matter
    "weight_inside": (0.0, 0.3, 1.0),
    "weight_on_contour": (0.0, 0.2, 0.5),
    "peak_threshold": (0.05, 0.1, 0.2, 0.3, 0.5, 0.7),
    "class_threshold": (0.1, 0.3, 0.5, 0.7),
    "nms": (0.2, 0.3, 0.5, 0.7),
}
"""What is tried, by the name of the setting; the present value of each is tried, too."""
FIXED = ("class_threshold", "nms")
"""What the proxy cannot judge."""
OBJECTIVES = {"map": "mAP^r", "abo": "ABO", "proxy": "proxy"}
"""What can be maximised: its name on the command line, and as a figure."""


def searched(choice: str) -> tuple[str, ...]:
    """What is searched where proposals are chosen by this: the weights first."""
    return (*WEIGHTS[choice], *CUTS)


def full_grid(
    settings: SegmentationSettings, given: dict[str, Sequence[float]] | None = None, objective: str = "mAP^r"
) -> dict[str, tuple]:
    """What is tried: of `searched`, `GRID` with the present value of each; of those in `given` these values alone.

    For the proxy, what it cannot judge keeps its present value unless it is given.
    Raises InputError for an unknown name, no value at all, and values that the setting cannot have.
    """
    given, names = dict(given or {}), searched(settings.choice)
    for name, values in given.items():
        if name not in names:
            raise InputError(f"setting {name!r} is not searched with {settings.choice}; known are {', '.join(names)}")
        least, most = (0, 1) if name in CUTS else (0, math.inf)
        wrong = [value for value in values if not (least <= value <= most and math.isfinite(value))]
        if not values or wrong:
            span = "from 0 to 1" if name in CUTS else "0 or more"
            raise InputError(f"{name}: {wrong[0] if wrong else 'no value'} cannot be tried; give numbers {span}")
    for name in names:
        values = () if objective == "proxy" and name in FIXED else GRID[name]
        given.setdefault(name, (*values, getattr(settings, name)))
    if settings.choice == "fit" and not any(max(given[name]) > 0 for name in WEIGHTS["fit"]):
        raise InputError("all weights are 0; give one of them a number above")
    return {name: tuple(sorted(set(given[name]))) for name in names}
