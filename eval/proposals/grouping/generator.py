"""From a picture to its proposals: the sources of regions, and the choice among them."""

from dataclasses import dataclass, replace

import numpy as np
import scipy.ndimage as ndi
import torch
from skimage.color import rgb2hsv, rgb2lab
from skimage.transform import resize

from prm import InputError
from prm.accelerated.inputs import is_giant, reduced
from prm.accelerated.retrieval import Proposals

from .hierarchies import hierarchies
from .layers import Picture
from .level_sets import level_sets
from .objectness import objectness
from .ranking import rank

# Raised whenever the same settings give other proposals than before; part of the cache's key. (It was not when giant
# pictures, of more than 2048 pixels, came to be reduced in 8 bits.)
VERSION = 2


@dataclass(frozen=True)
class GroupingSettings:
    """What `generate` may be told; sizes are in pixels of the working picture.

    max_side: larger pictures are worked on at this size, and the masks scaled back.
    scales: of the superpixels; a larger one starts from larger regions. min_superpixel: their least area.
    similarities: one hierarchy each; weights of colour, texture, smallness, filling and weak border.
    unions: in the last so many merges of a hierarchy, the merged region together with each of its neighbours.
    levels: thresholds for the level sets. min_area: of a proposal.
    candidates: so many regions are compared with each other. duplicates: pairs of an IoU and a factor; what overlaps a
    more promising region by at least this IoU has its promise multiplied by the factor.
    """

    max_side: int = 512
    scales: tuple[float, ...] = (40.0, 120.0)
    min_superpixel: int = 20
    similarities: tuple[tuple[float, ...], ...] = ((1, 1, 1, 1, 0), (0, 1, 1, 1, 0), (1, 1, 1, 1, 2))
    unions: int = 100
    levels: int = 24
    min_area: int = 20
    candidates: int = 10000
    duplicates: tuple[tuple[float, float], ...] = ((0.4, 0.5), (0.5, 0.5), (0.65, 0.05), (0.85, 0.1))

    def __post_init__(self):
        least = min(self.max_side, self.min_superpixel, self.levels, self.min_area, self.candidates)
        if least < 1 or self.unions < 0 or not self.scales or not self.similarities:
            raise InputError("grouping settings: sizes and counts must be at least 1 (unions: 0 or more)")
        if any(len(weights) != 5 for weights in self.similarities) or any(len(pair) != 2 for pair in self.duplicates):
            raise InputError("grouping settings: similarities are five weights each, duplicates an IoU and a factor")


def generate(image: np.ndarray, limit: int = 1000, settings: GroupingSettings | None = None) -> Proposals:
    """Segment proposals for a picture, the most promising first.

    image: (H, W, 3) uint8, RGB. limit: at most so many proposals; up to settings.candidates, a smaller limit gives
    the beginning of the same list. Returns masks of H x W with their `objectness`. The same picture and settings give
    the same proposals.
    Raises InputError for any other array.
    """
    check(image, limit)
    settings = settings or GroupingSettings()
    small = _working_image(image, settings.max_side)
    lab, hsv = rgb2lab(small).astype(np.float32), rgb2hsv(small).astype(np.float32)
    smooth = ndi.gaussian_filter(lab, (1, 1, 0))
    keys = np.random.default_rng(0).integers(-(1 << 62), 1 << 62, small.shape[:2])
    picture = Picture(smooth, _edge_strength(smooth), keys)
    layers = level_sets(picture, settings) + hierarchies(lab, hsv, picture, settings)
    chosen = rank(layers, limit, picture, settings)
    return replace(chosen, objectness=objectness(255 * small, chosen)).resized(*image.shape[:2])


def rated(image: np.ndarray, proposals: Proposals, scores: np.ndarray | None = None) -> Proposals:
    """Proposals that others made, with an objectness: their own scores (K,), or else what `objectness` measures.

    Scores that do not all lie in 0..1 are scaled from their least and greatest to 0 and 1; all equal ones to 1.
    """
    if scores is None:
        small = _working_image(image, GroupingSettings.max_side)
        return replace(proposals, objectness=objectness(255 * small, proposals.resized(*small.shape[:2])))
    known = torch.from_numpy(np.asarray(scores, np.float64))
    if len(known) and not (known.min() >= 0 and known.max() <= 1):
        span = known.max() - known.min()
        known = (known - known.min()) / span if span > 0 else torch.ones_like(known)
    return replace(proposals, objectness=known)


def check(image: np.ndarray, limit: int) -> None:
    """Raise InputError unless `generate` can work on this."""
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        what = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
        raise InputError(f"proposals need an (H, W, 3) uint8 picture, not {what}")
    if image.size == 0 or limit < 1:
        raise InputError(
            f"proposals: picture {image.shape[0]} x {image.shape[1]}, limit {limit}; all must be at least 1"
        )


def _working_image(image: np.ndarray, max_side: int) -> np.ndarray:
    """The picture as (h, w, 3) float32 in 0 .. 1, its longer side at most max_side.

    A giant one is reduced in 8 bits first: float64 would take 25 times its memory.
    """
    factor = max_side / max(image.shape[:2])
    if factor >= 1:
        return image.astype(np.float32) / 255
    height, width = (max(1, round(side * factor)) for side in image.shape[:2])
    shape = height, width
    if is_giant(image, shape):
        return reduced(image, shape).astype(np.float32) / 255
    return resize(image, shape, anti_aliasing=True).astype(np.float32)


def _edge_strength(lab: np.ndarray) -> np.ndarray:
    """Length of the colour gradient, (h, w) float32."""
    square = ndi.sobel(lab, 0, mode="nearest") ** 2 + ndi.sobel(lab, 1, mode="nearest") ** 2
    return np.sqrt(square.sum(2)) / 8
