"""Cases of Eqs. 4-5, a layer of a walk at a time."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from prm.accelerated.peak_backprop import operators, windows

from .case import Case, Work, fewer


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
            window=window, below=below, peaks=fewer(self.peaks),
        )  # fmt: skip

    def inputs(self, device) -> tuple:
        K, p, s = self.peaks, self.map_side, self.stride
        image, origin = self._places()
        G = self.random(device, K, self.channels_out, self.window, self.window)
        ratio = self.random(device, 1, self.channels_out, p, p)
        turned = self.random(device, self.channels_in, self.channels_out // self.groups, self.kernel, self.kernel)
        geometry = [s, s], [self.padding] * 2, [1, 1], self.groups
        return G, image, origin, ratio, turned, *geometry, self._below(origin), [self.below] * 2, self.precision

    def run(self, *inputs):
        return (torch.ops.prm.walk_conv2d(*inputs),)

    def plain(self, *inputs):
        return (operators.walked_conv2d(*inputs),)

    def work(self) -> Work:
        K, bytes_each = self.peaks, self.torch_dtype.itemsize
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
        U = self.random(device, 1, self.channels_in, below, below)
        U[..., : below // 3, : below // 3] = 0  # as behind a ReLU: Z leaks here
        weight = self.random(device, self.channels_out, self.channels_in, self.kernel, self.kernel)
        floor = operators.TINY * U.amax().float() * weight.float().sum((1, 2, 3))[None]
        above = self.random(device, 1, self.channels_out, p, p) if self.above else None
        geometry = [self.stride] * 2, [self.padding] * 2, [1, 1], 1
        out = windows.empty((1, self.channels_out, p, p), U)
        return U, weight, floor, above, *geometry, out

    def run(self, *inputs):
        return inputs[-1], torch.ops.prm.walk_ratio(*inputs)

    def plain(self, *inputs):
        return inputs[-1], operators.walked_ratio(*inputs)

    def answers(self, out, leaks) -> tuple[Tensor, ...]:
        return out.masked_fill(leaks, 0), leaks

    def work(self) -> Work:
        p, below, bytes_each = self.map_side**2, (self.map_side * self.stride) ** 2, self.torch_dtype.itemsize
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
                       begin=max(self.begin, window - out), peaks=fewer(self.peaks))  # fmt: skip

    def inputs(self, device) -> tuple:
        K, C, p = self.peaks, self.channels, self.map_side
        image, origin = self._places()
        values = self.random(device, K, C, self.window, self.window)
        maps = [self.random(device, 1, C, p, p) for _ in range(self.maps)]
        out = self.random(device, K, C, self.out, self.out)
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
        return Work((held + (1 + self.add) * written + maps) * self.torch_dtype.itemsize)


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
                       below=min(window, side) * self.stride, peaks=fewer(self.peaks))  # fmt: skip

    def inputs(self, device) -> tuple:
        p, s = self.map_side, self.stride
        image, origin = self._places()
        generator = torch.Generator(device).manual_seed(0)
        U = torch.rand(1, self.channels, p * s, p * s, generator=generator, device=device)
        indices = F.max_pool2d(U, self.kernel, s, self.padding, return_indices=True)[1]
        values = self.random(device, self.peaks, self.channels, self.window, self.window)
        geometry = [self.kernel] * 2, [s, s], [self.padding] * 2, [1, 1]
        indices = indices.contiguous(memory_format=operators.LAYOUT)
        return values, image, origin, indices, p * s, *geometry, self._below(origin), [self.below] * 2

    def run(self, *inputs):
        return (torch.ops.prm.walk_max_pool(*inputs),)

    def plain(self, *inputs):
        return (operators.walked_max_pool(*inputs),)

    def work(self) -> Work:
        held, written = (self.peaks * self.channels * side**2 for side in (self.window, self.below))
        indices = 8 * self.channels * min(self.map_side**2, self.peaks * self.window**2)
        return Work((held + written) * self.torch_dtype.itemsize + indices)
