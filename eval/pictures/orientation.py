"""EXIF orientation: what a file says of it, and the same turn for masks and boxes of the pixels as they are stored."""

import os

import numpy as np
from PIL import Image

_ORIENTATION, _TIFF_WIDTH, _TIFF_HEIGHT = 0x0112, 256, 257
# From stored to upright: whether rows are reversed, whether columns are, and whether the two are then exchanged.
_TURNS = {
    1: (False, False, False), 2: (False, True, False), 3: (True, True, False), 4: (True, False, False),
    5: (False, False, True), 6: (True, False, True), 7: (True, True, True), 8: (False, True, True),
}  # fmt: skip


def stored(path: str | os.PathLike) -> tuple[int, tuple[int, int]] | None:
    """(orientation 1 .. 8, (H, W) of the pixels before it is applied) by a picture's header; 1 is upright, or unsaid.

    None where the file cannot be read: `read_image` says why.
    """
    try:
        with Image.open(path) as image:
            orientation = image.getexif().get(_ORIENTATION, 1)
            width, height = image.size
            if image.format == "TIFF":  # whose `size` is upright already in newer releases of Pillow
                width, height = image.tag_v2[_TIFF_WIDTH], image.tag_v2[_TIFF_HEIGHT]
            return orientation if orientation in _TURNS else 1, (height, width)
    except Exception:  # decoders raise whatever a damaged header makes them trip over
        return None


def turned(masks: np.ndarray, orientation: int) -> np.ndarray:
    """(..., H, W) of the stored picture -> (..., H', W') of the upright one."""
    rows, columns, exchanged = _TURNS[orientation]
    masks = masks[..., :: -1 if rows else 1, :: -1 if columns else 1]
    return np.ascontiguousarray(masks.swapaxes(-1, -2) if exchanged else masks)


def turned_boxes(boxes: np.ndarray, orientation: int, size: tuple[int, int]) -> np.ndarray:
    """(B, 4) x0, y0, x1, y1, ends inclusive, of the stored picture of `size` (H, W) -> those of the upright one."""
    rows, columns, exchanged = _TURNS[orientation]
    x0, y0, x1, y1 = boxes.T
    if columns:
        x0, x1 = size[1] - 1 - x1, size[1] - 1 - x0
    if rows:
        y0, y1 = size[0] - 1 - y1, size[0] - 1 - y0
    return np.stack([y0, x0, y1, x1] if exchanged else [x0, y0, x1, y1], axis=1)
