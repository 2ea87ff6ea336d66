"""What callers hand in, as tensors: arrays, and a picture as the network's input."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

SAMPLES = 1_000_000  # pixels that the percentiles of a very large picture are taken from
GIANT = 16  # so many times the pixels that are wanted, and a picture is reduced as it is, without floating point


def stretch_contrast(image: np.ndarray, low: float = 0.5, high: float = 99.8) -> np.ndarray:
    """Stretch a picture (H, W, 3) uint8 so that its `low` and `high` percentiles over all channels become 0 and 255.

    Microscopes leave most of the range unused, each differently. A constant picture becomes black.
    """
    values = image.reshape(-1)[:: max(1, image.size // SAMPLES)]
    a, b = np.percentile(values, [low, high])
    table = np.clip((np.arange(256) - a) / max(b - a, 1e-9), 0, 1) if b > a else np.zeros(256)
    table, stretched = np.rint(255 * table).astype(np.uint8), np.empty(image.shape, np.uint8)
    for row, shown in zip(image, stretched):  # NumPy makes 8 bytes of each index
        shown[:] = table[row]
    return stretched


def scaled(
    size: Sequence[int], shorter: int | None, factor: float = 1.0, longest: float = math.inf, least: int = 1
) -> tuple[int, int]:
    """(H, W) of a picture of `size` (H, W) whose shorter side becomes `shorter` (None: stays) times `factor`.

    longest: most pixels of the longer side; least: of either, each for itself.
    """
    factor *= 1.0 if shorter is None else shorter / min(size)
    factor = min(factor, longest / max(size))
    height, width = (max(least, round(factor * side)) for side in size)
    return height, width


def is_giant(image: np.ndarray, size: tuple[int, int]) -> bool:
    """Whether a picture (H, W, 3) has so many more pixels than `size` that it is reduced in 8 bits, see `GIANT`."""
    return image.shape[0] * image.shape[1] >= GIANT * size[0] * size[1]


def reduced(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A picture (H, W, 3) uint8 at a smaller size (h, w), in 8 bits throughout.

    Block means down to about twice the size, then a triangle filter. Memory: 4 bytes a pixel of the picture.
    """
    return np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR, reducing_gap=2.0))


def tensor_of(values: np.ndarray | Tensor | Sequence) -> Tensor:
    """A tensor to be read, of a caller's array of any strides, byte order and flags; all else as `torch.as_tensor`.

    It shares the array's memory where torch can; a read-only array, of which torch would warn, is copied.
    """
    if isinstance(values, np.ndarray):
        values = np.require(values, values.dtype.newbyteorder("="), ["C", "W"])
    return torch.as_tensor(values)


def to_input(
    image: np.ndarray, mean: list[float], std: list[float], contrast: bool = False, size: tuple[int, int] | None = None
) -> Tensor:
    """Network input (3, h, w) float32 of a picture (H, W, 3) uint8: stretched if asked, in [0, 1], normalised, resized.

    size: (h, w); None is the picture's own. Memory beside the answer, in units of the 8-bit picture (3 H W bytes): 1 if
    it is stretched, and 8 in float32; or, for a picture of at least `GIANT` times as many pixels as `size`, 2 instead
    of the 8, since it is `reduced` first.
    """
    image = stretch_contrast(image) if contrast else image
    if size is not None and is_giant(image, size):
        image = reduced(image, size)
    centre, spread = (torch.tensor(values)[:, None, None] for values in (mean, std))
    pixels = tensor_of(image).permute(2, 0, 1).float().div_(255).sub_(centre).div_(spread)
    if size is not None and pixels.shape[1:] != size:
        pixels = F.interpolate(pixels[None], size, mode="bilinear", align_corners=False, antialias=True)[0]
    return pixels
