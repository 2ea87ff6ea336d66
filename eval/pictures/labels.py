"""Instances as people in microscopy keep them: a label image a picture, and one table of measurements.

ImageJ, CellProfiler and QuPath open both. Where instances overlap the one with the higher score is on top, and the
table measures what the label image shows.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from prm.files import atomic_write

MEASURED = ("label", "area", "centroid", "bbox", "perimeter", "eccentricity", "intensity_mean")
COLUMNS = {
    "area": "area", "centroid-0": "centroid_row", "centroid-1": "centroid_column", "bbox-0": "top", "bbox-1": "left",
    "bbox-2": "bottom", "bbox-3": "right", "perimeter": "perimeter", "eccentricity": "eccentricity",
    "intensity_mean-0": "mean_red", "intensity_mean-1": "mean_green", "intensity_mean-2": "mean_blue",
}  # fmt: skip
"""scikit-image's names -> the table's. Pixels; boxes are half-open; intensities of the picture in 8 bits."""
HEAD = ("picture", "label", "class", "score", "confidence", "peak_row", "peak_column", *COLUMNS.values())
PHYSICAL = ("pixel_height_um", "pixel_width_um", "area_um2", "perimeter_um")
"""Further columns, where any picture says how large its pixels are."""
ROUND = 1.01
"""Times the other side that a pixel's longer side may have, for a perimeter in micrometres."""


def label_image(answer) -> np.ndarray:
    """(H, W): 0 where nothing is, else the number of the instance, from 1 in the order of `answer.instances`.

    uint16, or uint32 for more than 65,535.
    """
    instances = answer.instances
    labels = np.zeros(answer.size, np.uint16 if len(instances) <= np.iinfo(np.uint16).max else np.uint32)
    flat = labels.reshape(-1)
    for number in range(len(instances), 0, -1):  # the first has the highest score
        mask = instances[number - 1].mask
        for start, end in zip(mask.starts.tolist(), mask.ends.tolist(), strict=True):
            flat[start:end] = number
    return labels


def rows_of(
    answer, labels: np.ndarray, image: np.ndarray, picture: str, class_names: Sequence[str],
    pixel: tuple[float, float] | None = None,
) -> list[dict]:  # fmt: skip
    """A row of HEAD for each instance; what others cover wholly has area 0 and no other measurement.

    labels: `label_image(answer)`; image: (H, W, 3) uint8; picture: what it is called; pixel: its (height, width) in
    micrometres, for the columns of PHYSICAL.
    """
    from skimage.measure import regionprops_table

    found = regionprops_table(labels, image, properties=MEASURED)
    shown = {int(label): k for k, label in enumerate(found["label"])}
    rows = []
    for number, one in enumerate(answer.instances, start=1):
        row = {"picture": picture, "label": number, "class": class_names[one.label], "score": _short(one.score),
               "confidence": _short(one.confidence), "peak_row": _short(one.peak[0]),
               "peak_column": _short(one.peak[1]), "area": 0}  # fmt: skip
        if number in shown:
            row |= {name: _short(found[theirs][shown[number]]) for theirs, name in COLUMNS.items()}
        if pixel is not None:
            row |= _physical(row, *pixel)
        rows.append(row)
    return rows


def _physical(row: dict, height: float, width: float) -> dict:
    """The columns of PHYSICAL; no perimeter of what was measured with pixels that are not square."""
    measures = [height, width, row["area"] * height * width]
    if "perimeter" in row and max(height, width) <= ROUND * min(height, width):
        measures.append(row["perimeter"] * (height + width) / 2)
    return {name: _short(value) for name, value in zip(PHYSICAL, measures)}


def write_tiff(path: Path, pages: np.ndarray, pixel: tuple[float, float] | None = None) -> None:
    """A TIFF of (H, W), or (K, H, W) a page each, as it is: what reads any TIFF reads this.

    pixel: its (height, width) in micrometres. InputError where it cannot be written.
    """
    import tifffile

    # In memory first: NumPy writes to a copy of a file's descriptor, which stays open where the disk is full.
    content = io.BytesIO()
    resolution = {}
    if pixel is not None:
        resolution = {"resolution": (1e4 / pixel[1], 1e4 / pixel[0]), "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(content, pages, photometric="minisblack", **resolution)
    atomic_write(path, content.getvalue())


def write_table(path: str | os.PathLike, rows: Sequence[dict]) -> None:
    """Comma-separated, UTF-8, the columns' names first. InputError where it cannot be written."""
    text = io.StringIO()
    physical = PHYSICAL if any(PHYSICAL[0] in row for row in rows) else ()
    writer = csv.DictWriter(text, (*HEAD, *physical), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    atomic_write(path, text.getvalue().encode())


def _short(value) -> int | float:
    """A number with six digits; whole ones as they are."""
    value = float(value)
    return int(value) if value.is_integer() and abs(value) < 1e15 else float(f"{value:.6g}")
