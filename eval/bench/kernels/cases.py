"""The cases of `prm bench kernels`, as data: what the kernels meet where peaks are found, walked from and retrieved.

Every case also has a reduced form, the same structure in a size that an interpreter gets through, and there are a few
samples of each kernel for compilation. Geometry comes from real walks of VGG16 and ResNet-50; a test keeps it so.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache, partial
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prm.accelerated import PeakBackprop, network, retrieval, rules, windows
from prm.accelerated.networks.resnet import Bottleneck
from prm.accelerated.networks.small import smallnet
from prm.accelerated.peak_stimulation import pooled, pooled_backward

from ..competitors import autograd_walk
from ..inputs import make_proposals, picture, random_peaks, random_walk

PEAKS = (1, 8, 32, 128)
FLOATS = ("float32", "float64", "bfloat16", "float16")
PRECISIONS = (("float32", "ieee"), ("float32", "tf32"), ("float32", "bf16"), ("bfloat16", "ieee"))

# Convolutions of a network at 448 x 448 that a walk from a central peak passes, the widest windows of each:
# (C_in, C_out, kernel, stride, padding, side of the map above, of its window, of the window below, how far that begins
# after the first position that the window above reaches).
CONVOLUTIONS = {
    "resnet50": (
        (2048, 20, 1, 1, 0, 14, 2, 2, 0), (512, 2048, 1, 1, 0, 14, 6, 6, 0), (512, 512, 3, 1, 1, 14, 4, 6, 0),
        (2048, 512, 1, 1, 0, 14, 6, 6, 0), (512, 512, 3, 2, 1, 14, 6, 14, 0), (1024, 512, 1, 1, 0, 28, 14, 14, 0),
        (1024, 2048, 1, 2, 0, 14, 6, 12, 0), (256, 1024, 1, 1, 0, 28, 24, 24, 0), (256, 256, 3, 1, 1, 28, 24, 24, 1),
        (1024, 256, 1, 1, 0, 28, 24, 24, 0), (256, 256, 3, 2, 1, 28, 24, 48, 0), (512, 256, 1, 1, 0, 56, 48, 48, 0),
        (512, 1024, 1, 2, 0, 28, 24, 48, 0), (128, 512, 1, 1, 0, 56, 56, 56, 0), (128, 128, 3, 1, 1, 56, 56, 56, 1),
        (512, 128, 1, 1, 0, 56, 56, 56, 0), (128, 128, 3, 2, 1, 56, 56, 112, 1), (256, 128, 1, 1, 0, 112, 112, 112, 0),
        (256, 512, 1, 2, 0, 56, 56, 112, 0), (64, 256, 1, 1, 0, 112, 112, 112, 0), (64, 64, 3, 1, 1, 112, 112, 112, 1),
        (256, 64, 1, 1, 0, 112, 112, 112, 0), (64, 64, 1, 1, 0, 112, 112, 112, 0), (3, 64, 7, 2, 3, 224, 224, 448, 3),
    ),
    "vgg16": (
        (512, 20, 1, 1, 0, 14, 2, 2, 0), (512, 512, 3, 1, 1, 28, 8, 10, 0), (512, 512, 3, 1, 1, 56, 24, 24, 0),
        (256, 512, 3, 1, 1, 56, 24, 28, 0), (256, 256, 3, 1, 1, 112, 56, 56, 0), (128, 256, 3, 1, 1, 112, 56, 64, 0),
        (128, 128, 3, 1, 1, 224, 128, 128, 0), (64, 128, 3, 1, 1, 224, 128, 128, 0),
        (64, 64, 3, 1, 1, 448, 256, 256, 0), (3, 64, 3, 1, 1, 448, 256, 256, 0),
    ),
}  # fmt: skip
# Max poolings of the same walks: (channels, kernel, stride, padding, side of the pooled map, of its window, of the
# window below, where that begins as above).
POOLINGS = {
    "resnet50": ((64, 3, 2, 1, 112, 112, 224, 1),),
    "vgg16": (
        (512, 2, 2, 0, 14, 2, 4, 0), (512, 2, 2, 0, 28, 10, 20, 0), (256, 2, 2, 0, 56, 28, 56, 0),
        (128, 2, 2, 0, 112, 64, 128, 0), (64, 2, 2, 0, 224, 128, 256, 0),
    ),
}  # fmt: skip
# Products with shared maps and sums of windows, of the same walks: (channels, side of the map, of the window, of the
# window that is written, where that begins inside of the other, maps to multiply by, whether it is added to).
WINDOWS = {
    "resnet50": (
        (2048, 14, 4, 6, -1, 1, True), (1024, 28, 20, 24, -2, 1, True), (1024, 28, 24, 24, 0, 1, False),
        (1024, 28, 24, 24, 0, 0, True), (1024, 28, 20, 20, -1, 0, False), (512, 56, 48, 56, -7, 1, True),
        (512, 56, 56, 56, 0, 1, False), (512, 56, 56, 56, 0, 0, True), (256, 112, 112, 112, 0, 0, True),
        (256, 112, 112, 112, 0, 1, False), (64, 112, 112, 112, 0, 0, True), (3, 448, 448, 448, 0, 1, False),
    ),
    "vgg16": ((3, 448, 256, 256, 0, 1, False), (1, 448, 256, 448, -134, 0, False)),
}  # fmt: skip


@dataclass(frozen=True)
class Work:
    """What no implementation can do without: bytes read or written, and multiplications and additions of matrices."""

    bytes: float
    operations: float = 0.0
    unit: str = "ieee"
    """How the matrices may be multiplied: ieee, tf32 or bf16."""


class Case:
    """One thing to measure. Each field of a subclass is part of what makes the case.

    inputs(device) : what is handed to the functions below, which answer with a tuple of tensors
    run(*inputs) : by the operators, the kernels where they are registered
    plain(*inputs) : torch's own code, without any operator between; None if it is not to be compiled
    """

    kernels: ClassVar[tuple[str, ...]]
    group: ClassVar[str]
    precision = "ieee"
    plain = None

    @property
    def name(self) -> str:
        return f"{self.group} {self.size} {self.dtype}" + (f" {self.precision}" if self.precision != "ieee" else "")

    @property
    def tolerance(self) -> float:
        """Most by which answers may differ, as a share of the largest."""
        halves = self.dtype in ("bfloat16", "float16") or self.precision == "bf16"
        return 2e-2 if halves else 2e-3 if self.precision == "tf32" else 2e-5

    @property
    def worth_compiling(self) -> bool:
        """Whether torch.compile is measured too, which takes long: for one number of peaks and one precision."""
        return getattr(self, "peaks", 32) == 32 and self.precision == "ieee" and self.dtype == "float32"

    def answers(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """What of a run's answer is compared."""
        return tensors

    def others(self, *inputs) -> dict:
        """Further ways to the same answer, by name: functions without arguments."""
        return {}

    def _dtype(self) -> torch.dtype:
        return getattr(torch, self.dtype)

    def _random(self, device, *shape: int) -> Tensor:
        """Numbers in [0.25, 1.25): a seed for each shape, so that they are the same every time."""
        generator = torch.Generator(device).manual_seed(sum(shape))
        made = 0.25 + torch.rand(shape, generator=generator, device=device)
        return made.to(self._dtype(), memory_format=rules.LAYOUT if len(shape) == 4 else torch.contiguous_format)


# ---- Eqs. 1-3


@dataclass(frozen=True)
class PeakPooling(Case):
    """Scores and peaks of maps (N, C, H, W), window 3, and the gradient back."""

    shape: tuple[int, int, int, int]
    upsample: int
    dtype: str
    kind: str = "median"
    group: ClassVar[str] = "peak pooling"

    @property
    def kernels(self) -> tuple[str, ...]:
        return "find_peaks", "list_peaks", "scatter_shares" if self.upsample == 1 else "spread_shares"

    @property
    def size(self) -> str:
        return "x".join(map(str, self.shape)) + (f" enlarged by {self.upsample}" if self.upsample > 1 else "")

    def reduced(self) -> PeakPooling:
        N, C, H, _ = self.shape
        side = min(H, 6 if self.upsample > 1 else 8 + H // 16)
        return replace(self, shape=(min(N, 2), 2 + C // 40, side, side + 1), upsample=min(self.upsample, 3))

    def inputs(self, device) -> tuple:
        generator = torch.Generator(device).manual_seed(0)
        N, C = self.shape[:2]
        maps = torch.randn(self.shape, generator=generator, device=device).to(self._dtype())
        return maps, torch.randn(N, C, generator=generator, device=device)

    def run(self, maps, grad_scores):
        return self._both(torch.ops.prm.peak_stimulation, torch.ops.prm.peak_stimulation_backward, maps, grad_scores)

    def plain(self, maps, grad_scores):
        return self._both(pooled, pooled_backward, maps, grad_scores)

    def _both(self, forward, backward, maps, grad_scores):
        scores, peaks, count = forward(maps, 3, self.kind, 0.25, self.upsample)
        grad = backward(grad_scores.to(scores.dtype), peaks, count, *maps.shape[2:], self.upsample)
        return scores, peaks, count, grad.to(maps.dtype)

    def answers(self, scores, peaks, count, grad) -> tuple[Tensor, ...]:
        return scores, peaks[: int(count)], count, grad

    def work(self) -> Work:
        N, C, H, W = self.shape
        return Work(2 * N * C * H * W * torch.finfo(self._dtype()).bits / 8)


# ---- Eqs. 4-5, a layer at a time


def _narrow(channels: int) -> int:
    """Few channels, of which more are more."""
    return channels if channels <= 3 else max(4, channels // 64)


def _short(side: int) -> int:
    return min(side, 5 + side // 112)


def _side(part: int, whole: int, short: int) -> int:
    """A part of a short side that is what the part was of the whole."""
    return short if part == whole else min(short, max(2, part * short // whole))


class OnWindows(Case):
    """A case with windows (K, side, side) of a map that one image's peaks share, spread over the map at random."""

    def _places(self) -> tuple[Tensor, Tensor]:
        """image (K,) and origin (K, 2) on the host, as the walk hands them over."""
        room = self.map_side - self.window
        generator = torch.Generator().manual_seed(self.peaks)
        origin = torch.randint(0, room + 1, (self.peaks, 2), generator=generator)
        return torch.zeros(self.peaks, dtype=torch.int64), origin

    def _below(self, origin: Tensor) -> Tensor:
        """Where the windows of the map below begin, (K, 2), that those of a sliding window at origin reach."""
        last = self.map_side * self.stride - self.below
        return (origin * self.stride - self.padding + self.begin).clamp(0, last)


@dataclass(frozen=True)
class WalkConvolution(OnWindows):
    """P through a convolution, on the windows of some peaks; the fields of CONVOLUTIONS."""

    channels_in: int
    channels_out: int
    kernel: int
    stride: int
    padding: int
    map_side: int
    window: int
    below: int
    begin: int
    peaks: int
    dtype: str
    precision: str = "ieee"
    groups: int = 1
    kernels: ClassVar[tuple[str, ...]] = ("walk_conv2d",)
    group: ClassVar[str] = "walk_conv2d"

    @property
    def size(self) -> str:
        taps = f"{self.kernel}x{self.kernel}/{self.stride}"
        shape = f"{self.window}x{self.window} to {self.below}x{self.below}"
        return f"{self.channels_out} to {self.channels_in}, {taps}, {shape}, {self.peaks} peaks"

    def reduced(self) -> WalkConvolution:
        side = _short(self.map_side)
        window = _side(self.window, self.map_side, side)
        whole = self.below == self.map_side * self.stride
        below = side * self.stride if whole else min(side * self.stride, (window - 1) * self.stride + self.kernel)
        return replace(
            self, channels_in=_narrow(self.channels_in), channels_out=_narrow(self.channels_out), map_side=side,
            window=window, below=below, peaks=_fewer(self.peaks),
        )  # fmt: skip

    def inputs(self, device) -> tuple:
        K, p, s = self.peaks, self.map_side, self.stride
        image, origin = self._places()
        G = self._random(device, K, self.channels_out, self.window, self.window)
        ratio = self._random(device, 1, self.channels_out, p, p)
        turned = self._random(device, self.channels_in, self.channels_out // self.groups, self.kernel, self.kernel)
        geometry = [s, s], [self.padding] * 2, [1, 1], self.groups
        return G, image, origin, ratio, turned, *geometry, self._below(origin), [self.below] * 2, self.precision

    def run(self, *inputs):
        return (torch.ops.prm.walk_conv2d(*inputs),)

    def plain(self, *inputs):
        return (rules.walked_conv2d(*inputs),)

    def work(self) -> Work:
        K, bytes_each = self.peaks, torch.finfo(self._dtype()).bits / 8
        above, below = K * self.window**2, K * self.below**2
        taps = self.kernel**2 * self.channels_in * self.channels_out // self.groups
        maps = above * self.channels_out + below * self.channels_in
        shared = min(self.map_side**2, above) * self.channels_out + taps
        # Every tap of each position above, or, of each position below, the share that fits the stride.
        products = taps * min(above, below / self.stride**2)
        unit = "bf16" if self.dtype == "bfloat16" else self.precision
        return Work((maps + shared) * bytes_each, 2 * products, unit)


@dataclass(frozen=True)
class WalkRatio(Case):
    """The ratio map of a convolution, for a whole image."""

    channels_in: int
    channels_out: int
    kernel: int
    stride: int
    padding: int
    map_side: int
    dtype: str
    above: bool = True
    kernels: ClassVar[tuple[str, ...]] = ("walk_ratio",)
    group: ClassVar[str] = "walk_ratio"

    @property
    def size(self) -> str:
        taps = f"{self.kernel}x{self.kernel}/{self.stride}"
        return f"{self.channels_in} to {self.channels_out}, {taps}, {self.map_side}x{self.map_side}"

    def reduced(self) -> WalkRatio:
        return replace(
            self, channels_in=_narrow(self.channels_in), channels_out=_narrow(self.channels_out),
            map_side=_short(self.map_side),
        )  # fmt: skip

    def inputs(self, device) -> tuple:
        p, below = self.map_side, self.map_side * self.stride
        U = self._random(device, 1, self.channels_in, below, below)
        U[..., : below // 3, : below // 3] = 0  # as behind a ReLU: Z leaks here
        weight = self._random(device, self.channels_out, self.channels_in, self.kernel, self.kernel)
        floor = rules.TINY * U.amax().float() * weight.float().sum((1, 2, 3))[None]
        above = self._random(device, 1, self.channels_out, p, p) if self.above else None
        geometry = [self.stride] * 2, [self.padding] * 2, [1, 1], 1
        out = windows.empty((1, self.channels_out, p, p), U)
        return U, weight, floor, above, *geometry, out

    def run(self, *inputs):
        return inputs[-1], torch.ops.prm.walk_ratio(*inputs)

    def plain(self, *inputs):
        return inputs[-1], rules.walked_ratio(*inputs)

    def answers(self, out, leaks) -> tuple[Tensor, ...]:
        return out.masked_fill(leaks, 0), leaks

    def work(self) -> Work:
        p, below, bytes_each = self.map_side**2, (self.map_side * self.stride) ** 2, torch.finfo(self._dtype()).bits / 8
        taps = self.kernel**2 * self.channels_in * self.channels_out
        maps = below * self.channels_in + (2 if self.above else 1) * p * self.channels_out + taps
        return Work(maps * bytes_each + p * self.channels_out, 2 * taps * p)


@dataclass(frozen=True)
class WalkWindows(OnWindows):
    """Windows times shared maps onto other windows; the fields of WINDOWS."""

    channels: int
    map_side: int
    window: int
    out: int
    begin: int
    maps: int
    add: bool
    peaks: int
    dtype: str
    kernels: ClassVar[tuple[str, ...]] = ("walk_windows",)
    group: ClassVar[str] = "walk_windows"

    @property
    def size(self) -> str:
        what = f"times {self.maps}" * bool(self.maps) + (" added to" if self.add else " to")
        return f"{self.channels} channels, {self.window}x{self.window} {what} {self.out}x{self.out}, {self.peaks} peaks"

    def reduced(self) -> WalkWindows:
        side = _short(self.map_side)
        window, out = (_side(part, self.map_side, side) for part in (self.window, self.out))
        return replace(self, channels=_narrow(self.channels), map_side=side, window=window, out=out,
                       begin=max(self.begin, window - out), peaks=_fewer(self.peaks))  # fmt: skip

    def inputs(self, device) -> tuple:
        K, C, p = self.peaks, self.channels, self.map_side
        image, origin = self._places()
        values = self._random(device, K, C, self.window, self.window)
        maps = [self._random(device, 1, C, p, p) for _ in range(self.maps)]
        out = self._random(device, K, C, self.out, self.out)
        return values, image, origin, torch.full((K, 2), self.begin), maps, out, self.add

    def run(self, *inputs):
        torch.ops.prm.walk_windows(*inputs)
        return (inputs[-2],)

    def plain(self, *inputs):
        windows.on_windows(*inputs)
        return (inputs[-2],)

    def work(self) -> Work:
        held, written = (self.peaks * self.channels * side**2 for side in (self.window, self.out))
        maps = self.maps * self.channels * min(self.map_side**2, self.peaks * self.window**2)
        return Work((held + (1 + self.add) * written + maps) * torch.finfo(self._dtype()).bits / 8)


@dataclass(frozen=True)
class WalkMaxPool(OnWindows):
    """P through a max pooling; the fields of POOLINGS."""

    channels: int
    kernel: int
    stride: int
    padding: int
    map_side: int
    window: int
    below: int
    begin: int
    peaks: int
    dtype: str
    kernels: ClassVar[tuple[str, ...]] = ("walk_max_pool",)
    group: ClassVar[str] = "walk_max_pool"

    @property
    def size(self) -> str:
        taps = f"{self.kernel}x{self.kernel}/{self.stride}"
        shape = f"{self.window}x{self.window} to {self.below}x{self.below}"
        return f"{self.channels} channels, {taps}, {shape}, {self.peaks} peaks"

    def reduced(self) -> WalkMaxPool:
        side = _short(self.map_side)
        window = _side(self.window, self.map_side, side)
        return replace(self, channels=_narrow(self.channels), map_side=side, window=window,
                       below=min(window, side) * self.stride, peaks=_fewer(self.peaks))  # fmt: skip

    def inputs(self, device) -> tuple:
        p, s = self.map_side, self.stride
        image, origin = self._places()
        generator = torch.Generator(device).manual_seed(0)
        U = torch.rand(1, self.channels, p * s, p * s, generator=generator, device=device)
        indices = F.max_pool2d(U, self.kernel, s, self.padding, return_indices=True)[1]
        values = self._random(device, self.peaks, self.channels, self.window, self.window)
        geometry = [self.kernel] * 2, [s, s], [self.padding] * 2, [1, 1]
        indices = indices.contiguous(memory_format=rules.LAYOUT)
        return values, image, origin, indices, p * s, *geometry, self._below(origin), [self.below] * 2

    def run(self, *inputs):
        return (torch.ops.prm.walk_max_pool(*inputs),)

    def plain(self, *inputs):
        return (rules.walked_max_pool(*inputs),)

    def work(self) -> Work:
        held, written = (self.peaks * self.channels * side**2 for side in (self.window, self.below))
        indices = 8 * self.channels * min(self.map_side**2, self.peaks * self.window**2)
        return Work((held + written) * torch.finfo(self._dtype()).bits / 8 + indices)


# ---- the whole walk


@dataclass(frozen=True)
class Walk(Case):
    """An image's forward pass, what its walk prepares, and the walk from some peaks."""

    network: str
    height: int
    width: int
    peaks: int
    precision: str = "ieee"
    dtype: ClassVar[str] = "float32"
    worth_compiling: ClassVar[bool] = False
    kernels: ClassVar[tuple[str, ...]] = ("walk_conv2d", "walk_ratio", "walk_windows", "walk_max_pool")
    group: ClassVar[str] = "walk"

    @property
    def size(self) -> str:
        return f"{self.network} {self.height}x{self.width}, {self.peaks} peaks"

    @property
    def tolerance(self) -> float:
        """Of a PRM's largest value: what one layer rounds, the next ones magnify."""
        return {"ieee": 1e-3, "tf32": 2e-2, "bf16": 2e-1}[self.precision]

    def reduced(self) -> Walk:
        network = {"resnet50": "residual", "vgg16": "plain"}[self.network]
        wide = self.height != self.width
        return replace(self, network=network, height=16, width=24 if wide else 16, peaks=_fewer(self.peaks))

    def inputs(self, device) -> tuple:
        model = _model(self.network).to(device)
        images = picture(self.height, self.width).to(device)
        with torch.no_grad():
            peaks = random_peaks(model(images).shape, self.peaks)
        return PeakBackprop(model, precision=self.precision), images, peaks, model

    def run(self, walk, images, peaks, model):
        return (walk.prepare(images).prms(peaks).prms,)

    def others(self, walk, images, peaks, model) -> dict:
        slow = autograd_walk(model)
        return {"autograd, a peak at a time": lambda: slow.prepare(images).prms(peaks)}

    def work(self) -> None:
        return None


def _model(name: str) -> nn.Module:
    torch.manual_seed(0)
    if name == "plain":
        return smallnet(3, widths=(6, 8, 8), pools=2, depth=1).eval()
    if name == "residual":
        beside = nn.Sequential(nn.Conv2d(8, 16, 1, 2, bias=False), nn.BatchNorm2d(16))
        stem = nn.Conv2d(3, 8, 7, stride=2, padding=3), nn.ReLU(inplace=True), nn.MaxPool2d(3, stride=2, padding=1)
        return nn.Sequential(*stem, Bottleneck(8, 4, 2, beside), nn.Conv2d(16, 3, 1)).eval()
    return network(name, 20).eval()


# ---- Eq. 6


@dataclass(frozen=True)
class RunSums(Case):
    """Sums of PRMs over run-length encoded masks of a picture."""

    maps: int
    masks: int
    height: int = 375
    picture_width: int = 500
    dtype: str = "float32"
    kernels: ClassVar[tuple[str, ...]] = ("run_sums",)
    group: ClassVar[str] = "run_sums"

    @property
    def size(self) -> str:
        return f"{self.maps} maps, {self.masks} masks of {self.height}x{self.picture_width}"

    def reduced(self) -> RunSums:
        return replace(self, maps=2 + self.maps // 64, masks=4 + self.masks // 400, height=24, picture_width=32)

    def inputs(self, device) -> tuple:
        masks = _masks(self.masks, self.height, self.picture_width).to(device)
        maps = random_walk(self.maps, self.height, self.picture_width).prms.flatten(1)
        return maps.to(device, self._dtype()), masks.starts, masks.ends, masks.offsets

    def run(self, *inputs):
        return (torch.ops.prm.run_sums(*inputs),)

    def plain(self, *inputs):
        return (retrieval.sums_over_runs(*inputs),)

    def others(self, maps, *_) -> dict:
        dense = _masks(self.masks, self.height, self.picture_width).to(maps.device).masks().flatten(1).to(maps.dtype)
        return {"dense matrix product": lambda: maps.mm(dense.T)}

    def work(self) -> Work:
        masks = _masks(self.masks, self.height, self.picture_width)
        maps = self.maps * self.height * self.picture_width * torch.finfo(self._dtype()).bits / 8
        return Work(maps + 16 * len(masks.starts) + 8 * self.maps * self.masks)


@cache
def _masks(number: int, height: int, width: int) -> retrieval.Proposals:
    return make_proposals(number, height, width)


@dataclass(frozen=True)
class BestProposal(Case):
    """Each PRM's best proposal by its scores, float64 as Eq. 6 has them."""

    maps: int
    masks: int
    dtype: str = "float64"
    kernels: ClassVar[tuple[str, ...]] = ("best_proposal",)
    group: ClassVar[str] = "best_proposal"

    @property
    def size(self) -> str:
        return f"{self.maps} maps, {self.masks} masks"

    @property
    def worth_compiling(self) -> bool:
        return True

    def reduced(self) -> BestProposal:
        return replace(self, maps=2 + self.maps // 64, masks=4 + self.masks // 100)

    def inputs(self, device) -> tuple:
        generator = torch.Generator(device).manual_seed(0)
        scores = torch.rand(self.maps, self.masks, generator=generator, device=device).to(self._dtype())
        return scores, torch.rand(self.masks, generator=generator, device=device) < 0.9

    def run(self, *inputs):
        return (torch.ops.prm.best_proposal(*inputs),)

    def plain(self, *inputs):
        return (retrieval.first_maximum(*inputs),)

    def work(self) -> Work:
        return Work(8 * self.maps * (self.masks + 1) + self.masks)


# ---- the lists


def _fewer(peaks: int) -> int:
    return PEAKS.index(peaks) + 1


@cache
def cases() -> tuple[Case, ...]:
    """All cases of the bench, each once."""
    found: dict[str, Case] = {}
    for group in (_pooling, _convolutions, _between, _walks, _retrieval):
        for case in group():
            found.setdefault(case.name, case)
    return tuple(found.values())


def _pooling():
    for dtype in ("float32", "bfloat16", "float16"):
        yield PeakPooling((16, 20, 14, 14), 8, dtype)
        for shape in ((16, 20, 112, 112), (16, 80, 112, 112), (4, 80, 448, 448)):
            yield PeakPooling(shape, 1, dtype)


def _convolutions():
    for geometry in (geometry for listed in CONVOLUTIONS.values() for geometry in listed):
        for dtype in ("float32", "bfloat16"):
            yield WalkRatio(*geometry[:6], dtype)
        for peaks in PEAKS:
            for dtype, precision in PRECISIONS:
                yield WalkConvolution(*geometry, peaks, dtype, precision)


def _between():
    for dtype in ("float32", "bfloat16"):
        for peaks in PEAKS:
            for listed, make in ((WINDOWS, WalkWindows), (POOLINGS, WalkMaxPool)):
                yield from (make(*geometry, peaks, dtype) for part in listed.values() for geometry in part)


def _walks():
    for name in ("resnet50", "vgg16"):
        for size in ((448, 448), (800, 1333)):
            yield from (Walk(name, *size, peaks) for peaks in PEAKS[:3])
        yield from (Walk(name, 448, 448, 32, precision) for precision in ("tf32", "bf16"))


def _retrieval():
    for maps, masks in ((32, 200), (32, 2000), (256, 2000)):
        yield from (make(maps, masks) for make in (RunSums, BestProposal))


def samples() -> tuple[Case, ...]:
    """What is compiled: one case for each kernel, dtype, precision and form of code, of few bytes."""
    pool = partial(PeakPooling, (16, 20, 14, 14))
    three, one, first, widest = ((256, 256, 3, 1, 1, 28, 24, 24, 1), (1024, 256, 1, 1, 0, 28, 24, 24, 0),
                                 (3, 64, 7, 2, 3, 56, 16, 32, 3), (64, 64, 2, 2, 0, 28, 8, 16, 0))  # fmt: skip
    return (
        *(pool(upsample, dtype) for upsample in (1, 8) for dtype in ("float32", "bfloat16", "float16")),
        *(pool(1, "float32", kind) for kind in ("mean", "max", "constant")),
        *(PeakPooling((4, 20, 112, 112), 1, dtype) for dtype in ("float32", "bfloat16", "float16")),
        *(WalkConvolution(*three, 8, dtype, precision) for dtype, precision in PRECISIONS),
        *(WalkConvolution(*geometry, 8, "float32") for geometry in (one, first)),
        WalkConvolution(*widest, 8, "float32", groups=64),  # average pooling
        *(WalkRatio(*three[:6], dtype) for dtype in ("float32", "bfloat16")),
        WalkRatio(*first[:6], "float32", above=False),
        *(WalkWindows(256, 28, 16, 20, -2, maps, add, 8, dtype)
          for maps, add, dtype in ((0, True, "float32"), (2, False, "float32"), (1, False, "bfloat16"))),
        *(WalkMaxPool(*geometry, 8, dtype) for geometry, dtype in
          (((64, 3, 2, 1, 28, 16, 32, 1), "float32"), ((64, 2, 2, 0, 28, 16, 32, 0), "bfloat16"))),
        *(RunSums(8, 16, 24, 32, dtype) for dtype in FLOATS), *(BestProposal(8, 16, dtype) for dtype in FLOATS),
    )  # fmt: skip
