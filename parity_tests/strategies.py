"""Hypothesis strategies: class response maps, and small random networks of every kind of layer."""

import zlib
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from scipy.ndimage import maximum_filter
from torch import nn

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


class Plain(nn.Module):
    """A convolution and a ReLU; options as for nn.Conv2d."""

    def __init__(self, c, **options):
        super().__init__()
        self.conv = nn.Conv2d(c, c, **{"kernel_size": 3, "padding": 1, **options})

    def forward(self, x):
        return F.relu(self.conv(x))


class Bare(nn.Module):
    """A convolution without an activation: the next layer sees both signs."""

    def __init__(self, c):
        super().__init__()
        self.conv = nn.Conv2d(c, c, 3, padding=1)

    def forward(self, x):
        return self.conv(x)


class Residual(nn.Module):
    """As in torchvision's ResNet: the sum is taken in place."""

    def __init__(self, c):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(c, c, 3, padding=1, bias=False), nn.BatchNorm2d(c)

    def forward(self, x):
        out = self.norm(self.conv(x))
        out += x
        return F.relu(out)


class Concat(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.one, self.three = nn.Conv2d(c, c, 1), nn.Conv2d(c, c, 3, padding=1)
        self.join = nn.Conv2d(2 * c, c, 1)

    def forward(self, x):
        return self.join(torch.cat([F.relu(self.one(x)), F.relu(self.three(x))], 1))


class Halves(nn.Module):
    """The channels part and meet again."""

    def __init__(self, c):
        super().__init__()
        self.conv = nn.Conv2d(c // 2, c // 2, 3, padding=1)

    def forward(self, x):
        a, b = x.chunk(2, 1)
        return torch.cat([F.relu(self.conv(a)), b], 1)


class Unfolded(nn.Module):
    """A batch norm that no convolution can take in."""

    def __init__(self, c):
        super().__init__()
        self.norm = nn.BatchNorm2d(c)

    def forward(self, x):
        return self.norm(F.relu(x))


class Folded(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.conv, self.drop, self.norm = nn.Conv2d(c, c, 3, padding=1), nn.Dropout(), nn.BatchNorm2d(c)

    def forward(self, x):
        return F.relu(self.norm(self.drop(self.conv(x))))


class Gate(nn.Module):
    """Squeeze and excite."""

    def __init__(self, c):
        super().__init__()
        self.squeeze, self.excite = nn.Conv2d(c, 2, 1), nn.Conv2d(2, c, 1)

    def forward(self, x):
        return x * torch.sigmoid(self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(x, 1)))))


class Padded(nn.Module):
    """More zeros on some sides than on others, around values of both signs, and a stride."""

    def __init__(self, c, average=False):
        super().__init__()
        self.before = nn.Conv2d(c, c, 1)
        self.conv = nn.AvgPool2d(3, 2, ceil_mode=True) if average else nn.Conv2d(c, c, 3, stride=2)

    def forward(self, x):
        return F.relu(self.conv(F.pad(self.before(x), (2, 1, 1, 2))))


class Separable(nn.Module):
    """Depthwise and pointwise, as in MobileNet; in v2's form with a shortcut."""

    def __init__(self, c, norm=False):
        super().__init__()
        self.norm = nn.BatchNorm2d(c) if norm else None
        self.depthwise, self.pointwise = nn.Conv2d(c, c, 3, padding=1, groups=c), nn.Conv2d(c, c, 1)

    def forward(self, x):
        out = self.pointwise(F.relu6(self.depthwise(x)))
        return F.relu(out) if self.norm is None else x + self.norm(out)


class Dense(nn.Module):
    """Every layer sees what all before it found; each batch norm comes before its convolution and stays apart."""

    def __init__(self, c, norm=False):
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(c + 2 * i, 2, 3, padding=1) for i in range(2))
        self.norms = nn.ModuleList(nn.BatchNorm2d(c + 2 * i) if norm else nn.Identity() for i in range(2))
        self.transition = nn.Conv2d(c + 4, c, 1)

    def forward(self, x):
        found = [x]
        for norm, layer in zip(self.norms, self.layers):
            found.append(layer(F.relu(norm(torch.cat(found, 1)))))
        return F.relu(self.transition(torch.cat(found, 1)))


class Branches(nn.Module):
    """Four branches, one of them a pooling, as in Inception."""

    def __init__(self, c):
        super().__init__()
        self.one, self.three, self.five = nn.Conv2d(c, 1, 1), nn.Conv2d(c, 1, 3, padding=1), nn.Conv2d(c, 1, 5, 1, 2)
        self.pooled = nn.Conv2d(c, c - 3, 1)

    def forward(self, x):
        last = self.pooled(F.max_pool2d(x, 3, stride=1, padding=1))
        return torch.cat([F.relu(b) for b in (self.one(x), self.three(x), self.five(x), last)], dim=1)


class Downsampling(nn.Module):
    """A residual block whose shortcut is a strided 1x1 convolution."""

    def __init__(self, c, norm=True):
        super().__init__()
        self.conv, self.shortcut = nn.Conv2d(c, c, 3, 2, 1), nn.Conv2d(c, c, 1, 2)
        self.norms = nn.ModuleList(nn.BatchNorm2d(c) if norm else nn.Identity() for _ in range(2))

    def forward(self, x):
        return F.relu(self.norms[0](self.conv(x)) + self.norms[1](self.shortcut(x)))


CHANNELS = 4
BLOCKS = {
    "plain": Plain,
    "bare": Bare,
    "strided": lambda c: Plain(c, stride=2),
    "dilated": lambda c: Plain(c, dilation=2, padding=2),
    "grouped": lambda c: Plain(c, groups=2),
    "depthwise": lambda c: Plain(c, groups=c),
    "residual": Residual,
    "residual_without_norm": lambda c: Downsampling(c, norm=False),
    "downsampling": Downsampling,
    "concat": Concat,
    "branches": Branches,
    "dense": Dense,
    "dense_norm": lambda c: Dense(c, norm=True),
    "separable": Separable,
    "separable_norm": lambda c: Separable(c, norm=True),
    "halves": Halves,
    "folded": Folded,
    "unfolded": Unfolded,
    "gate": Gate,
    "padded": Padded,
    "padded_avg": lambda c: Padded(c, average=True),
    "max_ceil": lambda c: nn.MaxPool2d(3, 2, 1, ceil_mode=True),
    # Enlarged before: on a map of one pixel its windows would lie in the padding altogether.
    "max_dilated": lambda c: nn.Sequential(nn.Upsample(scale_factor=2), nn.MaxPool2d(2, 1, 1, dilation=2)),
    "max": lambda c: nn.MaxPool2d(2, ceil_mode=True),
    "avg_ceil": lambda c: nn.AvgPool2d(3, 2, 1, ceil_mode=True, count_include_pad=False),
    "avg": lambda c: nn.AvgPool2d(3, 1, 1),
    "up": lambda c: nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False),
    "up_nearest": lambda c: nn.Upsample(scale_factor=2),
    "leaky": lambda c: nn.LeakyReLU(0.1),
}


class SmallCnn(nn.Module):
    """3 channels -> a stem, the named blocks, a 1x1 classifier of 3 classes; all weights random."""

    def __init__(self, blocks, seed):
        super().__init__()
        self.blocks = tuple(blocks)
        self.stem = nn.Conv2d(3, CHANNELS, 3, padding=1)
        self.body = nn.Sequential(*(BLOCKS[name](CHANNELS) for name in blocks))
        self.head = nn.Conv2d(CHANNELS, 3, 1)
        randomise(self, seed)

    def forward(self, x):
        return self.head(self.body(F.relu(self.stem(x))))


def randomise(module, seed):
    """Random parameters and statistics, gamma of either sign, in evaluation mode."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.running_mean.normal_(0, 0.3, generator=draw)
                part.running_var.uniform_(0.5, 2.0, generator=draw)
                part.weight.normal_(0, 1, generator=draw)
                part.bias.normal_(0, 0.3, generator=draw)
            elif isinstance(part, (nn.Conv2d, nn.Linear)):
                part.weight.normal_(0, (2 / part.weight[0].numel()) ** 0.5, generator=draw)
                if part.bias is not None:
                    part.bias.normal_(0, 0.2, generator=draw)
    return module.eval()


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
