"""Regions of even brightness: connected components of a thresholded picture, which show blobs such as cells."""

import numpy as np
import scipy.ndimage as ndi

from .layers import AREA, LOW, Layer, Picture, describe


def level_sets(picture: Picture, settings) -> list[Layer]:
    """Connected components above and below thresholds: of the picture, and of what stands out from its surroundings."""
    lightness = picture.colours[..., 0]
    ground = ndi.gaussian_filter(lightness, max(lightness.shape) / 16)
    layers = []
    for channel in (lightness, lightness - ground):
        low, high = np.percentile(channel, (0.5, 99.5))
        for level in np.linspace(low, high, settings.levels + 2)[1:-1]:
            for foreground in (channel > level, channel <= level):
                labels = ndi.label(foreground)[0].astype(np.int32)
                table, sums = describe(labels, labels.max() + 1, *picture)
                # Label 0 is the ground.
                keep = (table[:, AREA] >= settings.min_area) & (table[:, LOW] > 0)
                if keep.any():
                    layers.append(Layer.of(labels, table[keep], sums[keep]))
    return layers
