"""Hypothesis strategies: class response maps, and small random networks of every kind of layer."""

import numpy as np
import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from scipy.ndimage import maximum_filter
from torch import nn

# ---- class response maps

LAYOUTS = ("contiguous", "channels_last", "strided")
MAP_KINDS = ("coarse", "fine", "constant", "negative", "plateaus")


@st.composite
def maps(draw, dtype, kinds=MAP_KINDS, max_side=9, max_images=2, max_classes=3):
    """(N, C, H, W) of `dtype`: multiples of 1/8, exact in every dtype, with ties unless the kind is "fine".

    One-pixel and one-row maps are included, and layouts that are not contiguous.
    """
    N, C = draw(st.integers(1, max_images)), draw(st.integers(1, max_classes))
    H, W = draw(st.sampled_from([(1, 1), (1, max_side), (max_side, 1), (0, 0), (0, 0), (0, 0)]))
    H, W = H or draw(st.integers(2, max_side)), W or draw(st.integers(2, max_side))
    kind, layout, seed = draw(st.sampled_from(kinds)), draw(st.sampled_from(LAYOUTS)), draw(st.integers(0, 2**31))
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
    M = torch.from_numpy(np.array(eighths)).to(torch.float64).div(8).to(dtype)
    if layout == "channels_last":
        return M.contiguous(memory_format=torch.channels_last)
    if layout == "strided":
        wide = torch.full((N, C, H, 2 * W + 1), 99.0, dtype=dtype)
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
    """Zeros on two sides only, and a stride."""

    def __init__(self, c):
        super().__init__()
        self.conv = nn.Conv2d(c, c, 3, stride=2)

    def forward(self, x):
        return F.relu(self.conv(F.pad(x, (2, 1, 1, 2))))


CHANNELS = 4
BLOCKS = {
    "plain": Plain,
    "bare": Bare,
    "strided": lambda c: Plain(c, stride=2),
    "dilated": lambda c: Plain(c, dilation=2, padding=2),
    "grouped": lambda c: Plain(c, groups=2),
    "depthwise": lambda c: Plain(c, groups=c),
    "residual": Residual,
    "concat": Concat,
    "halves": Halves,
    "folded": Folded,
    "unfolded": Unfolded,
    "gate": Gate,
    "padded": Padded,
    "max_ceil": lambda c: nn.MaxPool2d(3, 2, 1, ceil_mode=True),
    "max_dilated": lambda c: nn.MaxPool2d(2, 1, 1, dilation=2),
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


@st.composite
def networks(draw, max_blocks=4):
    """(SmallCnn, images (2, 3, H, W)) in float64."""
    blocks = draw(st.lists(st.sampled_from(sorted(BLOCKS)), min_size=1, max_size=max_blocks))
    seed = draw(st.integers(0, 2**31))
    H, W = draw(st.integers(5, 13)), draw(st.integers(5, 13))
    images = torch.randn(2, 3, H, W, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return SmallCnn(blocks, seed).double(), images
