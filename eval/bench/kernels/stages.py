"""Cases of whole stages: peak pooling, Eqs. 1-3; a whole walk, Eqs. 4-5; retrieval, Eq. 6."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import ClassVar

import torch
from torch import Tensor, nn

from prm.accelerated import PeakBackprop, network, retrieval
from prm.accelerated.networks.resnet50 import Bottleneck
from prm.accelerated.networks.small import smallnet
from prm.accelerated.peak_stimulation import pooled, pooled_backward

from ..competitors import autograd_walk
from ..inputs import make_proposals, picture, random_peaks, random_walk
from .case import Case, Work, fewer

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
        maps = torch.randn(self.shape, generator=generator, device=device).to(self.torch_dtype)
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
        return Work(2 * N * C * H * W * self.torch_dtype.itemsize)


# ---- Eqs. 4-5


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
        return replace(self, network=network, height=16, width=24 if wide else 16, peaks=fewer(self.peaks))

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
        return maps.to(device, self.torch_dtype), masks.starts, masks.ends, masks.offsets

    def run(self, *inputs):
        return (torch.ops.prm.run_sums(*inputs),)

    def plain(self, *inputs):
        return (retrieval.sums_over_runs(*inputs),)

    def others(self, maps, *_) -> dict:
        dense = _masks(self.masks, self.height, self.picture_width).to(maps.device).masks().flatten(1).to(maps.dtype)
        return {"dense matrix product": lambda: maps.mm(dense.T)}

    def work(self) -> Work:
        masks = _masks(self.masks, self.height, self.picture_width)
        maps = self.maps * self.height * self.picture_width * self.torch_dtype.itemsize
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
        scores = torch.rand(self.maps, self.masks, generator=generator, device=device).to(self.torch_dtype)
        return scores, torch.rand(self.masks, generator=generator, device=device) < 0.9

    def run(self, *inputs):
        return (torch.ops.prm.best_proposal(*inputs),)

    def plain(self, *inputs):
        return (retrieval.first_maximum(*inputs),)

    def work(self) -> Work:
        return Work(8 * self.maps * (self.masks + 1) + self.masks)
