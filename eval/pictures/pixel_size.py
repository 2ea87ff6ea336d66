"""How large a pixel is, where a TIFF says so: OME's and ImageJ's metadata, and plain TIFFs in pixels per centimetre."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

MICROMETRES = {
    "nm": 1e-3, "um": 1.0, "µm": 1.0, "μm": 1.0, "\\u00b5m": 1.0, "micron": 1.0, "microns": 1.0, "micrometer": 1.0,
    "micrometre": 1.0, "mm": 1e3, "cm": 1e4, "m": 1e6,
}  # fmt: skip
CENTIMETRE = 3
"""The unit of a plain TIFF's resolution that is taken; 2 is the inch, which printers' dots are counted in."""


def pixel_size(path: Path) -> tuple[float, float] | None:
    """(height, width) of a pixel in micrometres; None where the file does not say, or is no TIFF."""
    try:
        import tifffile

        with tifffile.TiffFile(path) as tiff:
            found = _of_ome(tiff) if tiff.is_ome else _of_resolution(tiff)
    except Exception:  # whatever damaged tags make a reader trip over: then nobody says
        return None
    return found if found is not None and min(found) > 0 and max(found) < 1e9 else None


def _of_ome(tiff) -> tuple[float, float] | None:
    pixels = next(e for e in ElementTree.fromstring(tiff.ome_metadata).iter() if e.tag.rpartition("}")[2] == "Pixels")
    sides = []
    for axis in "YX":
        unit = MICROMETRES.get(pixels.get(f"PhysicalSize{axis}Unit", "µm").lower())
        size = pixels.get(f"PhysicalSize{axis}")
        if size is None or unit is None:
            return None
        sides.append(float(size) * unit)
    return sides[0], sides[1]


def _of_resolution(tiff) -> tuple[float, float] | None:
    """From pixels per unit."""
    tags = tiff.pages[0].tags
    if tiff.is_imagej:
        unit = MICROMETRES.get(str((tiff.imagej_metadata or {}).get("unit", "")).lower())
    else:
        unit = MICROMETRES["cm"] if tags["ResolutionUnit"].value == CENTIMETRE else None
    if unit is None:
        return None
    (rows, of_row), (columns, of_column) = tags["YResolution"].value, tags["XResolution"].value
    return unit * of_row / rows, unit * of_column / columns
