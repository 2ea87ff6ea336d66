"""Photographs that a dependency brings along, for a first try on a machine without a network."""

from __future__ import annotations

from pathlib import Path

from skimage import data

from ..pictures.figures import write_png

PHOTOGRAPHS = {
    "astronaut": data.astronaut, "cat": data.chelsea, "coffee": data.coffee, "rocket": data.rocket,
    "motorcycle": lambda: data.stereo_motorcycle()[0],
}  # fmt: skip
"""Of scikit-image's pictures those in colour of things that ImageNet has, and that are in its package."""


def write_photographs(folder: Path) -> list[str]:
    """Write NAME.png of each into the folder, which is made if missing; their file names. InputError where it cannot
    be written."""
    for name, read in PHOTOGRAPHS.items():
        write_png(folder / f"{name}.png", read())
    return [f"{name}.png" for name in PHOTOGRAPHS]
