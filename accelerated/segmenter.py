"""Algorithm 1 (Zhou et al. 2018, section 3.4): pictures and their segment proposals to instances.

Class response maps -> peaks -> Peak Response Maps -> scored proposals (Eq. 6) -> non-maximum suppression. Proposals are
handed in; this module makes none.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prm import InputError

from .aggregation import aggregation
from .checkpoint import Checkpoint
from .inputs import to_input
from .peak_backprop import PeakBackprop, PreparedWalk
from .peak_stimulation import enlarge, peak_stimulation
from .retrieval import Proposals, background, best, nms, prepare, score, terms

MIN_SIDE = 32  # least rows and columns of the network's input


@dataclass(frozen=True)
class SegmentationSettings:
    """Settings of Algorithm 1; a checkpoint carries its own.

    size : network input size as the shorter side in pixels, or None for the picture's own size
    longest : most pixels of the longer side; the picture is scaled down to it
    window, threshold, upsample : peaks, as for `peak_stimulation`
    class_threshold : a class takes part if sigmoid(s) >= this
    peak_threshold : a peak takes part if its response >= this share of its class's strongest peak
    peak_minimum : if given, a peak passes if its response > this, instead of by its share (the released code's 30)
    max_peaks : most peaks of a picture, the strongest by share of their class's strongest
    alpha, beta_area, bias : Eq. 6; beta is stated per image area, beta = beta_area / (H * W)
    contour : side of the square of the morphological gradient, pixels at network input size
    min_area, max_area : limits of a proposal's share of the picture
    epsilon : most of a walker's mass that the walk back may drop, see `PeakBackprop`
    nms, nms_per_class : mask IoU from which the weaker instance is suppressed; within its class only, or across all
    """

    size: int | None = None
    longest: int = 1333
    window: int = 3
    threshold: str | float | None = "median"
    upsample: int = 1
    class_threshold: float = 0.5
    peak_threshold: float = 0.3
    peak_minimum: float | None = None
    max_peaks: int = 300
    alpha: float = 0.8
    beta_area: float = 2.0
    bias: float = 0.95
    contour: int = 5
    min_area: float = 2e-5
    max_area: float = 0.85
    epsilon: float = 0.0
    nms: float = 0.3
    nms_per_class: bool = False

    def __post_init__(self):
        whole = {"longest": 1, "window": 3, "upsample": 1, "max_peaks": 1, "contour": 1} | (
            {"size": 1} if self.size else {}
        )
        for name, least in whole.items():
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                raise InputError(f"segmentation setting {name} must be an integer >= {least}, not {value!r}")
        for name in ("window", "contour"):
            if getattr(self, name) % 2 == 0:
                raise InputError(f"segmentation setting {name} must be an odd integer, not {getattr(self, name)}")
        numbers = ("class_threshold", "peak_threshold", "alpha", "beta_area", "bias", "min_area", "max_area", "nms",
                   "epsilon")  # fmt: skip
        for name in (*numbers, *(() if self.peak_minimum is None else ("peak_minimum",))):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or value != value:
                raise InputError(f"segmentation setting {name} must be a number, not {value!r}")
        if not 0 <= self.epsilon < 1:
            raise InputError(f"segmentation setting epsilon must be at least 0 and less than 1, not {self.epsilon!r}")


@dataclass(frozen=True, eq=False)
class Instance:
    """One segmented instance.

    label : class index
    mask : one run-length encoded mask at the picture's own size
    score : Eq. 6
    confidence : sigmoid of the class's score
    peak : (row, column) in the picture's coordinates, pixel centres at integers
    prm : (H, W), network input size, sum 1; the PRMs of suppressed instances are merged in
    proposal : index among the proposals handed in
    terms : the three sums of Eq. 6 before weighting: R over S, R over contour(S), Q over S
    """

    label: int
    mask: Proposals
    score: float
    confidence: float
    peak: tuple[float, float]
    prm: Tensor
    proposal: int
    terms: tuple[float, float, float]


@dataclass(frozen=True, eq=False)
class Segmentation:
    """The answer for one picture: instances by falling score, none being a valid answer.

    size : (H, W) of the picture
    maps : (C, h, w) class response maps
    scores : (C,) class scores before the sigmoid
    peaks : number of peaks that were walked back
    leaked : (peaks,) mass that each walk lost
    bound : (peaks,) most by which each PRM may differ from the exact one in L1; 0 with epsilon = 0
    seconds : time by stage: forward, peaks, walk, retrieval; the forward pass of a batch is shared evenly
    """

    size: tuple[int, int]
    maps: Tensor
    scores: Tensor
    instances: list[Instance]
    peaks: int = 0
    leaked: Tensor | None = None
    bound: Tensor | None = None
    seconds: dict[str, float] = field(default_factory=dict)


class Segmenter:
    """Algorithm 1 for pictures of any sizes.

    Parameters
    ----------
    model : classifier that maps network inputs (N, 3, H, W) to class response maps
    mean, std, contrast : how a picture becomes network input, see `to_input`
    settings : SegmentationSettings
    device : where to compute
    aggregate : the aggregation (N, C, H, W) -> (N, C) that the classifier was trained with; None is peak stimulation
        with the settings' own window, threshold and upsample
    """

    def __init__(
        self, model: nn.Module, mean: Sequence[float], std: Sequence[float], contrast: bool = False,
        settings: SegmentationSettings | None = None, device: str = "cpu", aggregate: nn.Module | None = None,
    ):  # fmt: skip
        self.settings = settings or SegmentationSettings()
        self.mean, self.std, self.contrast, self.device = list(mean), list(std), contrast, device
        self.aggregate = aggregate
        self.walk = PeakBackprop(model.to(device), upsample=self.settings.upsample, epsilon=self.settings.epsilon)

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint, device: str = "cpu", **overrides) -> Segmenter:
        """A segmenter with the checkpoint's network and settings; `overrides` replace single settings."""
        given, pool = checkpoint.input, checkpoint.aggregation
        try:
            settings = SegmentationSettings(**(checkpoint.segmentation | overrides))
            aggregate = None if pool["name"] == "peak" else aggregation(pool["name"], **pool.get("options", {}))
        except (TypeError, ValueError) as error:
            raise InputError(f"checkpoint: a setting cannot be used ({error})") from None
        contrast = given.get("contrast", False)
        return cls(checkpoint.model(), given["mean"], given["std"], contrast, settings, device, aggregate)

    def input_size(self, height: int, width: int) -> tuple[int, int]:
        """Size of the network's input for a picture."""
        factor = 1.0 if self.settings.size is None else self.settings.size / min(height, width)
        factor = min(factor, self.settings.longest / max(height, width))
        # A side of a few pixels is enlarged for itself: no network's stride leaves anything of it.
        return tuple(max(MIN_SIDE, round(factor * side)) for side in (height, width))

    @torch.no_grad()
    def __call__(self, images: Sequence[np.ndarray], proposals: Sequence[Proposals]) -> list[Segmentation]:
        """Segment pictures (H, W, 3) uint8, each with its own proposals at its own size.

        Pictures whose network inputs have one size share a forward pass. Raises InputError where proposals are not of
        their picture's size, and ValueError for non-finite class response maps.
        """
        for image, own in zip(images, proposals, strict=True):
            if (own.height, own.width) != image.shape[:2]:
                raise InputError(
                    f"proposals are for {own.height} x {own.width}, the picture is {image.shape[0]} x {image.shape[1]}"
                )
        groups: dict[tuple[int, int], list[int]] = {}
        for i, image in enumerate(images):
            groups.setdefault(self.input_size(*image.shape[:2]), []).append(i)
        answers: dict[int, Segmentation] = {}
        for size, members in groups.items():
            started = time.perf_counter()
            run = self.prepare([images[i] for i in members], size, members)
            forward = (time.perf_counter() - started) / len(members)
            for n, i in enumerate(members):
                answers[i] = self._segment(run, n, images[i].shape[:2], proposals[i], {"forward": forward})
        return [answers[i] for i in range(len(images))]

    def prepare(
        self, images: Sequence[np.ndarray], size: tuple[int, int], numbers: Sequence[int] | None = None
    ) -> PreparedWalk:
        """One forward pass of pictures (H, W, 3) uint8 as network inputs of `size`; `numbers` name them in errors."""
        return self.walk.prepare(torch.cat([self._input(image, size) for image in images]).to(self.device), numbers)

    def _input(self, image: np.ndarray, size: tuple[int, int]) -> Tensor:
        tensor = to_input(image, self.mean, self.std, self.contrast)[None]
        if tensor.shape[2:] == size:
            return tensor
        return F.interpolate(tensor, size, mode="bilinear", align_corners=False, antialias=True)

    def _segment(
        self, run: PreparedWalk, n: int, size: tuple[int, int], proposals: Proposals, seconds: dict[str, float]
    ) -> Segmentation:
        maps = run.maps[n]
        with _timed(seconds, "peaks"):
            scores, peaks, _ = self.peaks(maps)
        with _timed(seconds, "walk"):
            rows = torch.cat([torch.full_like(peaks[:, :1], n), peaks], dim=1)
            walked = run.prms(rows)
        with _timed(seconds, "retrieval"):
            instances = self._retrieve(maps, scores, peaks, walked.prms, walked.empty, size, proposals)
        return Segmentation(
            tuple(size), maps.cpu(), scores.cpu(), instances, len(peaks), walked.leaked.cpu(), walked.bound.cpu(),
            seconds,
        )  # fmt: skip

    def peaks(self, maps: Tensor, settings: SegmentationSettings | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Algorithm 1, lines 3-5, on one picture's class response maps (C, h, w).

        Returns the class scores (C,), the peaks to walk from (K, 3), rows (class, row, column) on the enlarged maps,
        and their responses as shares (K,) of their class's strongest (1 for the one peak of a class that has none > 0).
        """
        s = settings or self.settings
        scores, peaks = peak_stimulation(maps[None], s.window, s.threshold, s.upsample)
        scores = scores[0] if self.aggregate is None else self.aggregate(maps[None])[0]
        c, row, col = peaks[:, 1:].unbind(1)
        value = enlarge(maps.to(torch.promote_types(maps.dtype, torch.float32)), s.upsample)[c, row, col]
        strongest = torch.full_like(scores, float("-inf")).scatter_reduce(0, c, value, "amax")[c]
        # Where even the strongest response is not positive, a share of it means nothing: only the first such passes.
        index = torch.arange(len(c), device=c.device)
        first = torch.full_like(scores, len(c), dtype=torch.int64)
        first = first.scatter_reduce(0, c, index.where(value == strongest, len(c)), "amin")[c]
        if s.peak_minimum is not None:
            passes = value > s.peak_minimum
        else:
            passes = torch.where(strongest > 0, value >= s.peak_threshold * strongest, index == first)
        passes &= scores.sigmoid()[c] >= s.class_threshold
        share = torch.where(strongest > 0, value / strongest, torch.where(index == first, 1.0, 0.0).to(value.dtype))
        kept = passes.nonzero()[:, 0]
        if len(kept) > s.max_peaks:
            kept = kept[share[kept].argsort(descending=True, stable=True)[: s.max_peaks]].sort().values
        return scores, peaks[kept, 1:], share[kept]

    def _retrieve(self, maps, scores, peaks, prms, empty, size, proposals: Proposals) -> list[Instance]:
        """Best proposal of each PRM by Eq. 6, then suppression: Algorithm 1, lines 6-13."""
        s, (H, W) = self.settings, prms.shape[1:]
        peaks, prms = peaks[~empty], prms[~empty]
        if not len(peaks) or not len(proposals):
            return []
        ready = prepare(proposals.to(self.device), (H, W), s.contour, s.min_area, s.max_area)
        classes, of = peaks[:, 0].unique(return_inverse=True)
        sums = terms(prms, ready, background(maps, classes, (H, W), s.bias), of)
        values = score(sums, s.alpha, s.beta_area / (H * W))
        choice = best(values, ready.allowed)
        if int(choice[0]) < 0:
            return []
        value = values.gather(1, choice[:, None])[:, 0]
        chosen = proposals.select(choice.cpu())
        kept, merged = nms(chosen, value, peaks[:, 0], peaks[:, 1:], prms, s.nms, s.nms_per_class)
        instances = []
        for k, prm in zip(kept.tolist(), merged):
            label, *peak = peaks[k].tolist()
            instances.append(Instance(
                label=label, mask=chosen.select([k]), score=float(value[k]), confidence=float(scores[label].sigmoid()),
                peak=self.position(peak, maps.shape[1:], size), prm=prm.cpu(), proposal=int(choice[k]),
                terms=tuple(sums[k, choice[k]].tolist()),
            ))  # fmt: skip
        return instances

    def position(self, peak: Sequence[int], map_size: Sequence[int], size: Sequence[int]) -> tuple[float, float]:
        """Where a peak (row, column) of the enlarged maps lies in a picture of `size`, pixel centres at integers.

        (i + 0.5) * H_image / H_map - 0.5, i the fractional row on the un-enlarged map; columns alike.
        """
        f = self.settings.upsample
        on_map = [i * (m - 1) / max(f * m - 1, 1) for i, m in zip(peak, map_size)]
        return tuple((i + 0.5) * full / m - 0.5 for i, m, full in zip(on_map, map_size, size))


@contextmanager
def _timed(seconds: dict[str, float], stage: str):
    started = time.perf_counter()
    yield
    seconds[stage] = time.perf_counter() - started
