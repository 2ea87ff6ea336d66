"""From a picture to the network's input."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

SAMPLES = 1_000_000  # pixels that the percentiles of a very large picture are taken from


def stretch_contrast(image: np.ndarray, low: float = 0.5, high: float = 99.8) -> np.ndarray:
    """Stretch a picture (H, W, 3) uint8 so that its `low` and `high` percentiles over all channels become 0 and 255.

    Microscopes leave most of the range unused, each differently. A constant picture becomes black.
    """
    values = image.reshape(-1)[:: max(1, image.size // SAMPLES)]
    a, b = np.percentile(values, [low, high])
    table = np.clip((np.arange(256) - a) / max(b - a, 1e-9), 0, 1) if b > a else np.zeros(256)
    return np.rint(255 * table).astype(np.uint8)[image]


def to_input(image: np.ndarray, mean: list[float], std: list[float], contrast: bool = False) -> Tensor:
    """Network input (3, H, W) float32 of a picture (H, W, 3) uint8: stretched if asked, in [0, 1], normalised."""
    pixels = torch.from_numpy(np.ascontiguousarray(stretch_contrast(image) if contrast else image))
    centre, spread = (torch.tensor(values)[:, None, None] for values in (mean, std))
    return (pixels.permute(2, 0, 1).float() / 255 - centre) / spread
