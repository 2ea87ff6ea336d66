"""Hypothesis strategies: class response maps, and small random networks of every kind of layer."""

import zlib
from dataclasses import dataclass

import numpy as np
import torch
from hypothesis import strategies as st
from scipy.ndimage import maximum_filter

from prm.parity_tests.zoo import BLOCKS, SmallCnn

# ---- class response maps

LAYOUTS = ("contiguous", "channels_last", "strided")
MAP_KINDS = ("coarse", "fine", "constant", "negative", "plateaus", "largest", "smallest")


@st.composite
def exact_maps(draw, dtype, kinds=MAP_KINDS, max_side=9, max_images=2, max_classes=3):
    """(N, C, H, W) float64 of numbers that `dtype` holds exactly, with ties unless the kind is "fine".

    Multiples of 1/8, or numbers near the dtype's largest or smallest. One-pixel and one-row maps are included.
    """
    N, C = draw(st.integers(1, max_images)), draw(st.integers(1, max_classes))
    # Drawn from a list: integers would mostly be the smallest. A row of even length tells the lower median apart.
    sides = [n for n in (2, 3, 4, 5, 6, 8, 9) if n <= max_side]
    H, W = draw(st.sampled_from([(1, 1), (1, 0), (1, 0), (0, 1), (0, 0), (0, 0), (0, 0), (0, 0)]))
    H, W = H or draw(st.sampled_from(sides)), W or draw(st.sampled_from(sides))
    kind, seed = draw(st.sampled_from(kinds)), draw(st.integers(0, 2**31))
    rng = np.random.default_rng(seed)
    if kind == "constant":
        eighths = np.broadcast_to(rng.integers(-40, 40, (N, C, 1, 1)), (N, C, H, W))
    elif kind == "fine":  # no two positions of a map are equal
        eighths = np.stack([rng.permutation(H * W) for _ in range(N * C)]).reshape(N, C, H, W) - H * W // 2
    elif kind == "negative":
        eighths = -rng.integers(1, 9, (N, C, H, W))
    elif kind == "plateaus":
        eighths = 8 * rng.integers(0, 2, (N, C, H, W))
    else:
        eighths = rng.integers(-8, 9, (N, C, H, W))
    unit, limits = 0.125, torch.finfo(dtype)
    if kind == "largest":  # in float64 with room for a sum: the oracle's own arithmetic ends there
        unit = limits.max / (1024 if dtype == torch.float64 else 8)
    elif kind == "smallest":  # down to a quarter of the smallest normal number, still exact to 20 bits in float32
        unit = limits.tiny / 4
    return torch.from_numpy(eighths * unit).to(dtype).double().numpy()


@st.composite
def maps(draw, dtype, kinds=MAP_KINDS, max_side=9, max_images=2, max_classes=3):
    """`exact_maps` as a tensor of `dtype`, also in layouts that are not contiguous."""
    M = torch.from_numpy(draw(exact_maps(dtype, kinds, max_side, max_images, max_classes))).to(dtype)
    layout = draw(st.sampled_from(LAYOUTS))
    if layout == "channels_last":
        return M.contiguous(memory_format=torch.channels_last)
    if layout == "strided":
        wide = torch.full((*M.shape[:3], 2 * M.shape[3] + 1), 99.0, dtype=dtype)
        wide[..., 1::2] = M
        return wide[..., 1::2]
    return M


def has_near_ties(E, window, levels, gap=1e-4):
    """Whether rounding could change the peaks of the enlarged maps E (N, C, fH, fW), float64, or which are valid.

    levels (N, C): the thresholds. Two positions of one window closer than `gap` of which one may be its maximum, a
    peak that close to its threshold, or two peaks that close to the map's maximum. Constant maps are exact anywhere.
    """
    reach = window // 2
    for m, level in zip(E.reshape(-1, *E.shape[2:]), np.ravel(levels)):
        if m.max() == m.min():
            continue
        top = maximum_filter(m, window, mode="constant", cval=-np.inf)
        peaks = []
        for i, j in np.argwhere(m >= top - gap):
            around = m[max(0, i - reach) : i + reach + 1, max(0, j - reach) : j + reach + 1]
            if np.count_nonzero(around >= top[i, j] - gap) > 1:
                return True
            peaks.append(m[i, j])
        peaks = np.sort(peaks)
        if len(peaks) > 1 and peaks[-1] - peaks[-2] < gap:
            return True
        if any(abs(value - level) < gap and value != m.max() for value in peaks):
            return True
        if level != m.max() and abs(level - m.max()) < gap:
            return True
    return False


# ---- small networks


@dataclass(frozen=True)
class Cnn:
    """A random network, its images and its peaks, by a handful of numbers: what is printed is enough to repeat it."""

    blocks: tuple[str, ...]
    seed: int
    size: tuple[int, int]
    images: int = 1
    peaks: int = 1
    upsample: int = 1
    signed: bool = False

    def __str__(self):
        return f"from prm.parity_tests.strategies import Cnn\ncase = {self!r}"

    def module(self, dtype=torch.float64):
        # Small seeds are drawn again and again: what else was drawn makes other weights of them.
        return SmallCnn(self.blocks, zlib.crc32(repr(self).encode())).to(dtype)

    def pictures(self, dtype=torch.float64):
        """(images, 3, *size) of both signs, numbers that `dtype` holds exactly."""
        draw = torch.Generator().manual_seed(self.seed)
        return torch.randn(self.images, 3, *self.size, dtype=torch.float64, generator=draw).to(dtype)

    def positions(self, shape):
        """(peaks, 4) int64 on maps of `shape` (N, C, h, w): a corner, an opposite one, and others anywhere."""
        N, C, h, w = shape[0], shape[1], shape[2] * self.upsample, shape[3] * self.upsample
        rng = np.random.default_rng(self.seed)
        anywhere = [[int(rng.integers(n)) for n in (N, C, h, w)] for _ in range(self.peaks)]
        corners = [[N - 1, 0, 0, 0], [0, C - 1, h - 1, w - 1]] if self.peaks > 2 else []
        return np.array((corners + anywhere)[: self.peaks], np.int64)


@st.composite
def cnns(draw, max_blocks=4):
    """Random networks of every kind of block, with one to three images and one to five peaks."""
    blocks = draw(st.lists(st.sampled_from(sorted(BLOCKS)), min_size=1, max_size=max_blocks))
    size = draw(st.integers(5, 13)), draw(st.integers(5, 13))
    numbers = {"images": draw(st.integers(1, 3)), "peaks": draw(st.integers(1, 5))}
    options = {"upsample": draw(st.sampled_from([1, 1, 2, 8])), "signed": draw(st.sampled_from([False, False, True]))}
    return Cnn(tuple(blocks), draw(st.integers(0, 2**31)), size, **numbers, **options)
