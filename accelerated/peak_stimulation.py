"""Peak stimulation, Eqs. 1-3 (Zhou et al. 2018, section 3.2), as an operator of torch for any device.

A peak is the maximum of the window centred on it; a class's score is the mean of its valid peaks (Eq. 2) and the
gradient goes to those peaks in equal shares (Eq. 3). The operator's outputs have shapes that depend on shapes alone, so
that a training step never waits for the device; only the public function cuts the peak list to its length.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

KINDS = ("median", "mean", "max", "constant", "none")


def capacity(height: int, width: int, window: int) -> int:
    """Most peaks that one map of (height, width) can hold: no two lie within each other's window."""
    reach = window // 2 + 1
    return ((height + reach - 1) // reach) * ((width + reach - 1) // reach)


def source_positions(size: int, factor: int, device=None) -> tuple[Tensor, Tensor, Tensor]:
    """Where the rows (or columns) of a map enlarged by `factor` lie on the map itself, corners aligned.

    Row i of factor * size rows lies at i (size - 1) / (factor * size - 1). Integers keep the fractions exact, so that a
    constant map stays constant.

    Returns
    -------
    below, above : (factor * size,) int64
        The two neighbouring source rows, equal at the last one.
    t : (factor * size,) float64
        Share of `above`, in [0, 1).
    """
    i = torch.arange(factor * size, device=device)
    last = max(factor * size - 1, 1)
    below = i * (size - 1) // last
    t = (i * (size - 1) % last).double() / last
    return below, (below + 1).clamp(max=size - 1), t


def enlarge(maps: Tensor, factor: int) -> Tensor:
    """Bilinear enlargement of (..., H, W) by an integer factor, corners aligned, rows first: a + t (b - a)."""
    if factor == 1:
        return maps
    for dim in (-2, -1):
        below, above, t = source_positions(maps.shape[dim], factor, maps.device)
        a, b = maps.index_select(dim, below), maps.index_select(dim, above)
        maps = a + t.to(maps.dtype).reshape((-1, 1) if dim == -2 else (-1,)) * (b - a)
    return maps


def _thresholds(maps: Tensor, kind: str, value: float, dtype: torch.dtype) -> Tensor:
    """(N, C, 1, 1) least value of a valid peak. The median is the lower one: sorted index (HW - 1) // 2."""
    flat = maps.flatten(2)
    if kind == "median":
        level = flat.median(dim=2).values
    elif kind == "mean":
        level = flat.mean(dim=2, dtype=torch.float64).to(maps.dtype)
    elif kind == "max":
        level = flat.amax(dim=2)
    else:
        constant = torch.tensor(value if kind == "constant" else float("-inf"), dtype=dtype, device=maps.device)
        level = constant.to(maps.dtype).expand(flat.shape[:2])
    return level[..., None, None]


def _valid_peaks(maps: Tensor, window: int, kind: str, value: float, dtype: torch.dtype) -> Tensor:
    """(N, C, H, W) bool: the valid peaks. Maps with a non-finite value have none."""
    H, W = maps.shape[-2:]
    position = torch.arange(H * W, device=maps.device).reshape(H, W)
    # max_pool2d pads with -inf and reports the first maximum in row-major order, which is the tie rule of a peak.
    argmax = F.max_pool2d(maps, window, stride=1, padding=window // 2, return_indices=True)[1]
    valid = (argmax == position) & (maps >= _thresholds(maps, kind, value, dtype))
    # A map none of whose peaks passes keeps its first maximum, so that the score is never 0 / 0.
    first = maps.flatten(2).argmax(dim=2)[..., None, None] == position
    valid = torch.where(valid.flatten(2).any(dim=2)[..., None, None], valid, first)
    return valid & maps.isfinite().flatten(2).all(dim=2)[..., None, None]


def pooled(M: Tensor, window: int, kind: str, value: float, upsample: int) -> tuple[Tensor, Tensor, Tensor]:
    """Scores (N, C) in float32 (float64 for float64 maps), peaks (rows, 4) int64, their count () int32; torch's code.

    rows = N * C * `capacity`. Rows beyond the count mean nothing: -1 here, while the kernels leave them unwritten, as
    filling them would be twice the traffic of reading the maps.
    """
    work = M.to(torch.promote_types(M.dtype, torch.float32))
    maps = enlarge(work, upsample)
    valid = _valid_peaks(maps, window, kind, value, M.dtype)
    number = valid.flatten(2).sum(dim=2)
    # A map without a valid peak holds a non-finite value: 0 / 0 makes its score NaN, which stops the training loop.
    # Divided before the sum, which could leave the range of float32 where the mean does not.
    scores = (torch.where(valid, maps, 0).flatten(2) / number[..., None]).sum(dim=2)

    N, C, H, W = maps.shape
    return scores, *_listed(valid, N * C * capacity(H, W, window), wait=M.device.type == "cpu")


def _listed(valid: Tensor, rows: int, wait: bool) -> tuple[Tensor, Tensor]:
    """The True places of (N, C, H, W) in row-major order, (rows, 4) int64 padded with -1, and their count () int32.

    wait: let the host wait for their number, and go through them alone.
    """
    _, C, H, W = valid.shape
    flat = valid.flatten()
    if wait:
        index = flat.nonzero()[:, 0]
        count = torch.tensor(len(index), dtype=torch.int32, device=valid.device)
    else:
        # The k-th goes to row k; everything else to a spare last row.
        index = torch.full((rows + 1,), -1, dtype=torch.int64, device=valid.device)
        index[torch.where(flat, flat.cumsum(0) - 1, rows)] = torch.arange(flat.numel(), device=valid.device)
        index, count = index[:rows], flat.sum().to(torch.int32)
    places = torch.stack([index // (C * H * W), index // (H * W) % C, index // W % H, index % W], dim=1)
    if wait:
        return torch.cat([places, places.new_full((rows - len(places), 4), -1)]), count
    filled = torch.arange(rows, device=valid.device) < count
    return torch.where(filled[:, None], places, -1), count


_peak_stimulation = torch.library.custom_op("prm::peak_stimulation", pooled, mutates_args=())


@_peak_stimulation.register_fake
def _(M, window, kind, value, upsample):
    N, C, H, W = M.shape
    rows = N * C * capacity(upsample * H, upsample * W, window)
    scores = M.new_empty((N, C), dtype=torch.promote_types(M.dtype, torch.float32))
    return scores, M.new_empty((rows, 4), dtype=torch.int64), M.new_empty((), dtype=torch.int32)


def pooled_backward(
    grad_scores: Tensor, peaks: Tensor, count: Tensor, height: int, width: int, upsample: int
) -> Tensor:
    """Eq. 3: dL/dM (N, C, height, width), 1/N^c of dL/ds^c at each valid peak, NaN on maps that have none.

    The count is read on the device; rows of peaks beyond it are not read.
    """
    N, C = grad_scores.shape
    peaks = peaks[: int(count)] if peaks.device.type == "cpu" else peaks
    filled = torch.arange(peaks.shape[0], device=peaks.device) < count
    n, c, row, col = torch.where(filled[:, None], peaks, 0).unbind(1)
    weight = filled.to(grad_scores.dtype)
    number = grad_scores.new_zeros(N * C).index_add_(0, n * C + c, weight).reshape(N, C)
    share = (grad_scores / number)[n, c].where(filled, 0)

    grad = grad_scores.new_zeros(N * C * height * width)
    rows, cols = source_positions(height, upsample, peaks.device), source_positions(width, upsample, peaks.device)
    # The transpose of the enlargement: a peak's share goes to its (at most four) source positions.
    for i, ti in ((rows[0], 1 - rows[2]), (rows[1], rows[2])):
        for j, tj in ((cols[0], 1 - cols[2]), (cols[1], cols[2])):
            position = ((n * C + c) * height + i[row]) * width + j[col]
            grad.index_add_(0, position, share * (ti[row] * tj[col]).to(share.dtype))
    return grad.reshape(N, C, height, width).where(number[..., None, None] > 0, float("nan"))


_peak_stimulation_backward = torch.library.custom_op("prm::peak_stimulation_backward", pooled_backward, mutates_args=())


@_peak_stimulation_backward.register_fake
def _(grad_scores, peaks, count, height, width, upsample):
    return grad_scores.new_empty((*grad_scores.shape, height, width))


def _setup_context(ctx, inputs, output):
    M, _, _, _, ctx.upsample = inputs
    _, peaks, count = output
    ctx.size, ctx.dtype = M.shape[-2:], M.dtype
    ctx.save_for_backward(peaks, count)


def _backward(ctx, grad_scores, _grad_peaks, _grad_count):
    peaks, count = ctx.saved_tensors
    height, width = ctx.size
    grad = torch.ops.prm.peak_stimulation_backward(grad_scores, peaks, count, height, width, ctx.upsample)
    return grad.to(ctx.dtype), None, None, None, None


_peak_stimulation.register_autograd(_backward, setup_context=_setup_context)


def _validated(window: int, threshold: str | float | None, upsample: int) -> tuple[int, str, float, int]:
    """The operator's arguments from the user's, or a ValueError that says what is allowed."""
    if not isinstance(window, int) or window < 3 or window % 2 == 0:
        raise ValueError(f"window is the side of the peak window and must be an odd integer >= 3, not {window!r}")
    if not isinstance(upsample, int) or isinstance(upsample, bool) or upsample < 1:
        raise ValueError(f"upsample must be an integer >= 1, not {upsample!r}")
    if threshold is None:
        return window, "none", 0.0, upsample
    if isinstance(threshold, str):
        if threshold not in ("median", "mean", "max"):
            raise ValueError(f'threshold must be "median", "mean", "max", a number or None, not {threshold!r}')
        return window, threshold, 0.0, upsample
    if isinstance(threshold, bool) or threshold != threshold:
        raise ValueError(f"threshold must be a number, not {threshold!r}")
    return window, "constant", float(threshold), upsample


def _check_maps(M: Tensor) -> None:
    if M.dim() != 4 or not M.is_floating_point() or 0 in M.shape[-2:]:
        raise ValueError(f"class response maps must be a floating (N, C, H, W), not {M.dtype} {tuple(M.shape)}")


def check_finite(M: Tensor, images: Sequence[int] | None = None) -> None:
    """Raise a ValueError that names image and class of the first non-finite map of (N, C, H, W).

    `images`: the caller's numbers of the N images; None counts them from 0.
    """
    bad = (~M.isfinite()).flatten(2).any(dim=2).nonzero()
    if len(bad):
        n, c = bad[0].tolist()
        raise ValueError(f"non-finite class response map: image {n if images is None else images[n]}, class {c}")


def peak_stimulation(
    M: Tensor, window: int = 3, threshold: str | float | None = "median", upsample: int = 1
) -> tuple[Tensor, Tensor]:
    """Class scores and valid peaks of class response maps (Eqs. 1-2); differentiable in M (Eq. 3).

    Parameters
    ----------
    M : (N, C, H, W) float64, float32, bfloat16 or float16
        Class response maps.
    window : odd int >= 3
        Side r of the window whose maximum a peak is; clipped at the border; ties go to the first in row-major order.
    threshold : "median", "mean", "max", a number or None
        Least value of a valid peak, per map. A map none of whose peaks passes keeps its first maximum.
    upsample : int
        Factor by which M is first enlarged (bilinear, corners aligned); peaks are then in enlarged coordinates.

    Returns
    -------
    scores : (N, C), float64 for float64 maps, else float32
    peaks : (K, 4) int64, rows (image, class, row, column) in row-major order

    Raises ValueError for arguments out of range and for a non-finite map, naming its image and class.
    """
    _check_maps(M)
    arguments = _validated(window, threshold, upsample)
    check_finite(M)
    scores, peaks, count = torch.ops.prm.peak_stimulation(M, *arguments)
    return scores, peaks[: int(count)]


class PeakStimulation(nn.Module):
    """Scores (N, C) of class response maps (N, C, H, W): `peak_stimulation` for the training loop.

    Never waits for the device. A map with a non-finite value gives a NaN score and an all-NaN gradient for that map.
    """

    def __init__(self, window: int = 3, threshold: str | float | None = "median", upsample: int = 1):
        super().__init__()
        self.window, self.threshold, self.upsample = window, threshold, upsample
        self._arguments = _validated(window, threshold, upsample)

    def forward(self, M: Tensor) -> Tensor:
        _check_maps(M)
        return torch.ops.prm.peak_stimulation(M, *self._arguments)[0]

    def extra_repr(self) -> str:
        return f"window={self.window}, threshold={self.threshold!r}, upsample={self.upsample}"
