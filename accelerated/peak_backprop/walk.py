"""Peak back-propagation, Eqs. 4-5 (Zhou et al. 2018, section 3.3), through any CNN that torch.fx can trace.

A walker starts at a peak and walks down the network; P is the probability of its visits. Through a convolution

    P(U) = U_hat * convT(P(V) / Z, W+),    Z = conv(U_hat, W+),    U_hat = U - min(0, min U),    W+ = max(W, 0)

and every other layer has a rule in `rules` too. P is linear in what came from above, so all peaks of all images of a
batch go down in one pass and share U_hat and Z, which are computed once per image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from prm.settings import PRECISIONS

from ..inputs import tensor_of
from ..peak_stimulation import check_finite, source_positions
from .operators import LAYOUT
from .plan import Plan
from .shared import launched
from .streams import Stream
from .tracing import FIRST, AtEachSize, Untraceable, make_plan
from .visits import Visits
from .windows import windows

CACHE = 16 * 2**20  # bytes of maps that go down together on a CPU: more no longer fit what it keeps close
MEMORY = 512 * 2**20  # the same on other devices
PLANS = 2  # sizes whose plans are kept, where each size needs its own: a plan holds the folded weights


@dataclass(frozen=True)
class PeakResponseMaps:
    """Peak Response Maps of K peaks and their account.

    prms : (K, H, W), each summing to 1, or all zero where `empty`
    leaked : (K,) float64, share of the walker's mass that layers could not pass on; the rest arrived at the image, or
        was dropped where `epsilon` allows it
    empty : (K,) bool, nothing arrived
    bound : (K,) float64, most by which the PRM may differ from the exact one in L1, rounding apart: 0 without `epsilon`
    """

    prms: Tensor
    leaked: Tensor
    empty: Tensor
    bound: Tensor


class PreparedWalk:
    """One forward pass of a batch and what the walk back needs of it; `maps` (N, C, h, w) are its response maps.

    Part of it is computed when peaks first need it: leave the images as they are, and walk in one thread at a time.
    """

    def __init__(self, walk: PeakBackprop, images: Tensor, numbers: Sequence[int] | None):
        on_cpu = images.device.type == "cpu"
        self._walk, self._upsample = walk, walk.upsample
        self._memory = walk.max_memory or (CACHE if on_cpu else MEMORY)
        self.image_shape = tuple(images.shape)
        self._plan = walk.plan_for(images.shape[2:])
        self.maps, self._kept = self._plan.forward(images.contiguous(memory_format=LAYOUT))
        if self.maps.dim() != 4 or self.maps.shape[0] != images.shape[0]:
            raise ValueError(
                f"the model's output must be class response maps (N, C, h, w), not {tuple(self.maps.shape)}; "
                "fully_convolutional(model) removes global pooling and turns linear layers into 1x1 convolutions"
            )
        check_finite(self.maps, numbers)
        self._stream = Stream(self.maps.device)

    @torch.inference_mode(False)
    @torch.no_grad()
    def prms(self, peaks: Tensor) -> PeakResponseMaps:
        """Walk down from K peaks.

        Parameters
        ----------
        peaks : (K, 4) int64, tensor or array, rows (image, class, row, column) on the maps enlarged by `upsample`;
            or float64, where rows and columns lie between positions

        Raises ValueError for a peak outside the maps.
        """
        peaks = tensor_of(peaks).reshape(-1, 4)
        peaks = peaks.to(self.maps.device, torch.float64 if peaks.is_floating_point() else torch.int64)
        return PeakResponseMaps(*self._stream.run(self._walked, peaks))

    def _walked(self, peaks: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The fields of PeakResponseMaps."""
        self._check(peaks)
        H, W = self.image_shape[-2:]
        # At least float32: what bfloat16 rounds of a sum of thousands of pixels would show.
        dtype = torch.promote_types(self.maps.dtype, torch.float32)
        prms = self.maps.new_zeros((len(peaks), H, W), dtype=dtype)
        lost = torch.zeros(2, len(peaks), dtype=torch.float64, device=self.maps.device)
        # Neighbours go down together: they share the most of what is cut off at the border.
        order = np.lexsort(peaks.cpu().numpy()[:, [3, 2, 0]].T)

        def arrive(some, visits: Visits, losses: Tensor) -> None:
            visits = visits.with_(visits.P.sum(dim=1, keepdim=True, dtype=dtype), ())
            if launched(visits.values):
                prms[torch.from_numpy(order[some])] = visits.on_whole((1, H, W)).values[:, 0]
            else:
                for i, k in enumerate(order[some].tolist()):
                    prms[(k, *visits.span(i))] = visits.values[i, 0]
            lost[:, torch.from_numpy(order[some])] = losses

        if len(peaks):
            start = self._start(peaks[torch.from_numpy(order)])
            start = start if self._walk.windows else start.on_whole(tuple(self.maps.shape[1:]))
            self._plan.back(start, self._kept, arrive, self._memory, self._walk.epsilon)
        total = prms.sum(dim=(1, 2), keepdim=True)
        empty = ~(total.flatten() > 0)
        prms = torch.where(total > 0, prms / total, 0)
        leaked, dropped = lost
        # Of the exact total, arrived + e, the share e is missing here, e <= dropped: that much was not added, and the
        # rest was divided by too small a total; each changes the PRM by e / (arrived + e) in L1.
        arrived = total.flatten().double()
        bound = torch.where(dropped > 0, 2 * dropped / (arrived + dropped), 0)
        return prms, leaked, empty, bound

    def _check(self, peaks: Tensor) -> None:
        N, C, h, w = self.maps.shape
        size = torch.tensor([N, C, h * self._upsample, w * self._upsample], device=peaks.device)
        outside = ((peaks < 0) | (peaks > size - 1)).any(dim=1).nonzero()
        if len(outside):
            raise ValueError(
                f"peak {peaks[outside[0, 0]].tolist()} (image, class, row, column) lies outside maps of {size.tolist()}"
            )

    def _start(self, peaks: Tensor) -> Visits:
        """P at the top: 1 at the peak, or its bilinear weights over 2 x 2 positions if it was on an enlarged map."""
        _, C, h, w = self.maps.shape
        n, c = peaks[:, :2].cpu().long().unbind(1)
        (top, below, down), (left, right, over) = (
            _sources(at, size, self._upsample) for at, size in zip(peaks[:, 2:].cpu().unbind(1), (h, w))
        )
        first, last = torch.stack([top, left], dim=1).numpy(), torch.stack([below, right], dim=1).numpy() + 1
        origin, size = windows(first, last, (h, w))
        P, k = torch.zeros(len(peaks), C, *size, dtype=torch.float64), torch.arange(len(peaks))
        o_row, o_col = torch.from_numpy(origin).unbind(1)
        for i, weight_i in ((top, 1 - down), (below, down)):
            for j, weight_j in ((left, 1 - over), (right, over)):
                P[k, c, i - o_row, j - o_col] += weight_i * weight_j
        return Visits(P.to(self.maps), first, last, origin, n.numpy())


def _sources(at: Tensor, size: int, factor: int) -> tuple[Tensor, Tensor, Tensor]:
    """`source_positions` of some places, or of places (float64) between them."""
    if not at.is_floating_point():
        below, above, t = source_positions(size, factor)
        return below[at], above[at], t[at]
    at = at * (size - 1) / max(factor * size - 1, 1)
    below = at.long()
    return below, (below + 1).clamp(max=size - 1), at - below


class PeakBackprop:
    """Peak back-propagation (Eqs. 4-5) for a classifier that maps (N, 3, H, W) to class response maps (N, C, h, w).

    The model is traced once, in evaluation mode, and left untouched; its weights are read here, so build a new
    PeakBackprop after training them further. Which architectures pass, and how each operator is treated, is told in
    docs/architectures.md. For a module that has no rule, write one:

    >>> @register_rule(MyModule)                          # doctest: +SKIP
    ... def _(module, P, *U):  # P (K, ...): the visits of its output, one row a peak; U: its inputs' values, likewise
    ...     return P(U)        # one tensor, or a tuple with one for each input

    Parameters
    ----------
    model : nn.Module
        Batch norm must be in evaluation mode. float16 is refused: the ratios of Eq. 5 leave its range.
    upsample : int
        Factor by which the maps were enlarged when the peaks were found.
    signed : bool
        Let negative inputs walk through negative weights instead of shifting them to zero (meant for input layers that
        see both signs): Z = conv(U+, W+) + conv(U-, W-).
    max_memory : int
        Bytes that the maps of the peaks in one pass may take; more peaks take more passes, and one peak goes at least.
        None: 16 MiB on a CPU, which keeps them in its cache, 512 MiB on other devices.
    windows : bool
        False: every peak carries whole maps, but for what `epsilon` cuts. The same PRMs, slower: to check the windows.
    epsilon : float
        Most of a walker's mass that may be dropped, at the ends of windows, to make them smaller; `bound` of the answer
        says how far each PRM may then be from the exact one. 0, the default: nothing is dropped.
    precision : "ieee", "tf32" or "bf16"
        How a GPU multiplies P by W+: in full float32, or rounded to TF32 or bfloat16 for its matrix units, with sums in
        float32. Ratio maps are made in full float32 always. A device that has no TF32 takes "ieee" for it.

    Raises
    ------
    NotImplementedError
        An operator that P would have to pass has no rule; the message names the operator, its place and what to do.
    ValueError
        A batch norm in training mode, a float16 model, or code that torch.fx cannot trace (with file and line).

    Examples
    --------
    >>> walk = PeakBackprop(model)                        # doctest: +SKIP
    >>> run = walk.prepare(images)                        # doctest: +SKIP
    >>> scores, peaks = peak_stimulation(run.maps)        # doctest: +SKIP
    >>> run.prms(peaks).prms                              # doctest: +SKIP
    """

    def __init__(
        self, model: nn.Module, upsample: int = 1, signed: bool = False, max_memory: int | None = None,
        windows: bool = True, epsilon: float = 0.0, precision: str = "ieee",
    ):  # fmt: skip
        if not isinstance(upsample, int) or isinstance(upsample, bool) or upsample < 1:
            raise ValueError(f"upsample must be an integer >= 1, not {upsample!r}")
        if max_memory is not None and max_memory < 1:
            raise ValueError(f"max_memory must be a positive number of bytes, not {max_memory!r}")
        if not 0 <= epsilon < 1:
            raise ValueError(f"epsilon must be at least 0 and less than 1, not {epsilon!r}")
        if precision not in PRECISIONS:
            raise ValueError(f"precision must be {', '.join(map(repr, PRECISIONS))}, not {precision!r}")
        self.upsample, self.max_memory, self.windows, self.epsilon = upsample, max_memory, windows, epsilon
        self.model, self._signed, self._precision = model, signed, precision
        self._sized, self._plans = self._followed(model)
        # glibc gives large blocks back to the system, and each walk would ask for them again; the first of nearly 32
        # MiB that is freed teaches it to keep smaller ones.
        torch.empty(31 * 2**20, dtype=torch.uint8)

    def _followed(self, model: nn.Module) -> tuple[AtEachSize | None, dict[tuple[int, ...], Plan]]:
        """The model, if it has to be traced for each size of its input, and its first plan."""
        if not isinstance(model, AtEachSize):
            try:
                return None, {(): make_plan(model, self._signed, self._precision)}
            except Untraceable as error:
                try:
                    model = AtEachSize(model)
                except Untraceable:
                    raise error from None  # what torch.fx says of the code itself
        return model, {FIRST: make_plan(model.at(FIRST), self._signed, self._precision)}

    @property
    def channels(self) -> int | None:
        """How many channels the images have, where the model tells."""
        return next(iter(self._plans.values())).channels

    def plan_for(self, size: Sequence[int]) -> Plan:
        """The plan for images (N, channels, *size): one for all sizes, where the model's code does not look at them."""
        key = tuple(size) if self._sized is not None else ()
        if self._sized is not None and key not in self._plans:
            plan = make_plan(self._sized.at(key), self._signed, self._precision)
            self._plans = dict([*self._plans.items(), (key, plan)][-PLANS:])
        return self._plans[key]

    @torch.inference_mode(False)
    @torch.no_grad()
    def prepare(self, images: Tensor, numbers: Sequence[int] | None = None) -> PreparedWalk:
        """One forward pass of images (N, channels, H, W): `.maps` are class response maps, `.prms(peaks)` walks.

        `numbers` are the images' names in the ValueError about a non-finite map; None counts from 0.
        """
        if images.dim() != 4 or not images.is_floating_point():
            raise ValueError(f"images must be a floating (N, channels, H, W), not {images.dtype} {tuple(images.shape)}")
        return PreparedWalk(self, images, numbers)

    def __call__(self, images: Tensor, peaks: Tensor) -> Tensor:
        """Peak Response Maps (K, H, W) of peaks (K, 4) in images (N, channels, H, W)."""
        return self.prepare(images).prms(peaks).prms
