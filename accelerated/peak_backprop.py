"""Peak back-propagation, Eqs. 4-5 (Zhou et al. 2018, section 3.3), through any CNN that torch.fx can trace.

A walker starts at a peak and walks down the network; P is the probability of its visits. Through a convolution

    P(U) = U_hat * convT(P(V) / Z, W+),    Z = conv(U_hat, W+),    U_hat = U - min(0, min U),    W+ = max(W, 0)

and every other layer has a rule in `rules.py` too. P is linear in what came from above, so all peaks of all images of a
batch go down in one pass and share U_hat and Z, which are computed once per image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .peak_stimulation import check_finite, source_positions
from .rules import Visits
from .tracing import Walk, walk_plan

# A pass holds a handful of maps of the largest layer's size for every peak it carries.
MAPS_PER_PEAK = 4


@dataclass(frozen=True)
class PeakResponseMaps:
    """Peak Response Maps of K peaks and their account.

    prms : (K, H, W), each summing to 1, or all zero where `empty`
    leaked : (K,) float64, share of the walker's mass that layers could not pass on; the rest arrived at the image
    empty : (K,) bool, nothing arrived
    bound : (K,) float64, most that an approximation may have changed the PRM in L1; 0 here, the walk being exact
    """

    prms: Tensor
    leaked: Tensor
    empty: Tensor
    bound: Tensor


class PreparedWalk:
    """One forward pass of a batch and what the walk back needs of it; `maps` (N, C, h, w) are its response maps."""

    def __init__(self, plan: Walk, images: Tensor, upsample: int, max_memory: int, numbers: Sequence[int] | None):
        self._plan, self._upsample, self._max_memory = plan, upsample, max_memory
        self._chunk = 1
        self.image_shape = tuple(images.shape)
        self.maps, self._states = plan.forward(images)
        if self.maps.dim() != 4 or self.maps.shape[0] != images.shape[0]:
            raise ValueError(
                f"the model's output must be class response maps (N, C, h, w), not {tuple(self.maps.shape)}; "
                "fully_convolutional(model) removes global pooling and turns linear layers into 1x1 convolutions"
            )
        check_finite(self.maps, numbers)

    @torch.no_grad()
    def prms(self, peaks: Tensor) -> PeakResponseMaps:
        """Walk down from K peaks.

        Parameters
        ----------
        peaks : (K, 4) int64, rows (image, class, row, column) on the maps enlarged by `upsample`

        Raises ValueError for a peak outside the maps.
        """
        peaks = torch.as_tensor(peaks, dtype=torch.int64, device=self.maps.device).reshape(-1, 4)
        self._check(peaks)
        H, W = self.image_shape[-2:]
        # At least float32: what bfloat16 rounds of a sum of thousands of pixels would show.
        dtype = torch.promote_types(self.maps.dtype, torch.float32)
        prms = self.maps.new_zeros((len(peaks), H, W), dtype=dtype)
        leaked = torch.zeros(len(peaks), dtype=torch.float64, device=self.maps.device)
        # Peaks of one image next to each other: most chunks then see one image only and gather nothing.
        waiting = peaks[:, 0].argsort(stable=True)
        while len(waiting):
            rows, waiting = waiting.split([n := min(self._chunk, len(waiting)), len(waiting) - n])
            first, last = int(peaks[rows[0], 0]), int(peaks[rows[-1], 0])
            start = self._start(peaks[rows], first)
            visits, lost, largest = self._plan.back(start, self._states, slice(first, last + 1))
            visits = visits.with_(visits.P.sum(dim=1, keepdim=True, dtype=dtype)).on(H, W, whole=(True, True))
            prms[rows], leaked[rows] = visits.P[:, 0], lost
            # The first peak goes alone and shows how large the windows grow.
            self._chunk = max(1, self._max_memory // (MAPS_PER_PEAK * largest * self.maps.element_size()))
        total = prms.sum(dim=(1, 2), keepdim=True)
        empty = total.flatten() <= 0
        prms = torch.where(total > 0, prms / total, 0)
        return PeakResponseMaps(prms, leaked, empty, torch.zeros_like(leaked))

    def _check(self, peaks: Tensor) -> None:
        N, C, h, w = self.maps.shape
        size = torch.tensor([N, C, h * self._upsample, w * self._upsample], device=peaks.device)
        outside = ((peaks < 0) | (peaks >= size)).any(dim=1).nonzero()
        if len(outside):
            raise ValueError(
                f"peak {peaks[outside[0, 0]].tolist()} (image, class, row, column) lies outside maps of {size.tolist()}"
            )

    def _start(self, peaks: Tensor, first: int) -> Visits:
        """P at the top: 1 at the peak, or its bilinear weights over 2 x 2 positions if it was on an enlarged map."""
        _, C, h, w = self.maps.shape
        n, c, row, col = peaks.unbind(1)
        (top, _, down), (left, _, right) = (source_positions(size, self._upsample, peaks.device) for size in (h, w))
        P = self.maps.new_zeros((len(peaks), C, 1, 1) if self._upsample == 1 else (len(peaks), C, 2, 2))
        k = torch.arange(len(peaks), device=peaks.device)
        for i, weight_i in enumerate((1 - down[row], down[row])[: P.shape[2]]):
            for j, weight_j in enumerate((1 - right[col], right[col])[: P.shape[3]]):
                P[k, c, i, j] = (weight_i * weight_j).to(P.dtype)
        return Visits(P, torch.stack([top[row], left[col]], dim=1).cpu(), n - first).on(h, w)


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
        Bytes that the maps of the peaks in one pass may take; more peaks take more passes.

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

    def __init__(self, model: nn.Module, upsample: int = 1, signed: bool = False, max_memory: int = 512 * 2**20):
        if not isinstance(upsample, int) or isinstance(upsample, bool) or upsample < 1:
            raise ValueError(f"upsample must be an integer >= 1, not {upsample!r}")
        self.upsample, self.max_memory = upsample, max_memory
        self._plan = walk_plan(model, signed)

    @torch.no_grad()
    def prepare(self, images: Tensor, numbers: Sequence[int] | None = None) -> PreparedWalk:
        """One forward pass of images (N, channels, H, W): `.maps` are class response maps, `.prms(peaks)` walks.

        `numbers` are the images' names in the ValueError about a non-finite map; None counts from 0.
        """
        if images.dim() != 4 or not images.is_floating_point():
            raise ValueError(f"images must be a floating (N, channels, H, W), not {images.dtype} {tuple(images.shape)}")
        return PreparedWalk(self._plan, images, self.upsample, self.max_memory, numbers)

    def __call__(self, images: Tensor, peaks: Tensor) -> Tensor:
        """Peak Response Maps (K, H, W) of peaks (K, 4) in images (N, channels, H, W)."""
        return self.prepare(images).prms(peaks).prms
