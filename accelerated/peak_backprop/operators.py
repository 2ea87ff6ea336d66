"""The operators of the walk back (Eqs. 4-5): declared once, with torch code that serves every device.

Through convolutions that follow each other P goes as G = P / U_hat: the U_hat that Eq. 4 multiplies by and the 1 / Z of
the layer below belong to the image, so they become one ratio map, U_hat / Z, that all peaks share.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from .shared import Shared, empty
from .windows import placed, times

TINY = 1e-7  # of max(U_hat) * sum(W+_o): below it Z is rounding noise, and what came from above leaks
# A position's channels next to each other: CPUs want convolutions so, and tensor cores the rows of a matrix.
LAYOUT = torch.channels_last


def in_float32(values: Tensor) -> bool:
    """With AMX, oneDNN's strided bfloat16 convolutions give garbage (pytorch issue 169688): on the CPU that dtype is
    computed in float32 and rounded."""
    return values.dtype == torch.bfloat16 and values.device.type == "cpu"


def walked_ratio(
    U: Tensor, weight: Tensor, floor: Tensor, above: Tensor | None,
    stride: list[int], padding: list[int], dilation: list[int], groups: int, out: Tensor,
) -> Tensor:  # fmt: skip
    """Into out (N, C_out, p, q): above / Z of Eq. 5, Z = conv(U, weight) for non-negative U (N, C_in, i, j) and weight.

    U and out may be parts of larger maps. above like out, or None for 1: what P is multiplied by on its way from the
    layer above. The answer, bool like out, says where Z leaks: where it is not above floor (N, C_out) it is rounding
    noise, and what out holds there means nothing.
    """
    if in_float32(U):
        wide, above = out.float(), above if above is None else above.float()
        leaks = walked_ratio(U.float(), weight.float(), floor, above, stride, padding, dilation, groups, wide)
        out.copy_(wide)
        return torch.empty_like(out, dtype=torch.bool).copy_(leaks)
    # Z must be exactly 0 where all its products are; cuDNN may pick Winograd or FFT algorithms, which round.
    with torch.backends.cudnn.flags(enabled=False):
        Z = F.conv2d(U, weight, None, stride, padding, dilation, groups)
    leaks = torch.le(Z, floor[:, :, None, None], out=torch.empty_like(out, dtype=torch.bool))
    if above is None:
        torch.reciprocal(Z, out=out)
    else:
        torch.div(above, Z, out=out)
    return leaks


walk_ratio = torch.library.custom_op("prm::walk_ratio", walked_ratio, mutates_args=["out"])


@walk_ratio.register_fake
def _(U, weight, floor, above, stride, padding, dilation, groups, out):
    return torch.empty_like(out, dtype=torch.bool)


def walked_conv2d(
    G: Tensor, image: Tensor, origin: Tensor, ratio: Tensor, turned: Tensor,
    stride: list[int], padding: list[int], dilation: list[int], groups: int, to: Tensor, size: list[int],
    precision: str = "ieee",
) -> Tensor:  # fmt: skip
    """Eq. 4 without its U_hat, for K peaks: convT(G * ratio, W+) on given windows of the map below.

    G (K, C_out, h, w), windows that begin at origin (K, 2) of the map above; ratio (N, C_out, p, q) of image[k];
    turned (C_in, C_out / groups, i, j): W+ as `turn` gives it. The answer (K, C_in, *size) holds windows that begin
    at `to` (K, 2) of the map below. image, origin and to: int64, on the host or on the device. With ratio = 1 / Z and
    G = P, the answer times U_hat is P(U).

    precision: of the matrix products, one of prm.settings.PRECISIONS.
    """
    if in_float32(G):
        maps = (G.float(), image, origin, ratio.float(), turned.float())
        return walked_conv2d(*maps, stride, padding, dilation, groups, to, size).to(G.dtype)
    where = (Shared(ratio),), image.cpu().numpy(), origin.cpu().numpy()
    # Where the answer begins in all that a window reaches.
    offset = to.cpu().numpy() - (where[2] * np.array(stride) - np.array(padding))
    with _multiplied_in(precision):
        if stride == [1, 1]:
            # On a CPU the plain convolution is the faster of the two, and the only fast one for small windows.
            margin = np.array([d * (k - 1) for d, k in zip(dilation, turned.shape[2:])])
            q = times(G, *where, offset - margin, tuple((margin + size).tolist()))
            q, turned = _halved(precision, q, turned)
            return F.conv2d(q, turned, None, 1, 0, dilation, groups).to(G.dtype, memory_format=LAYOUT)
        q, turned = _halved(precision, times(G, *where), turned)
        if turned.shape[2:] == (1, 1):
            q = F.conv2d(q, turned, None, 1, 0, 1, groups).to(G.dtype, memory_format=LAYOUT)
            return _spread(q, stride, offset, tuple(size))
        if groups == 1 and stride[0] == stride[1] and len(turned) * stride[0] ** 2 <= 16 and dilation == [1, 1]:
            reached = _by_phases(q, turned, stride[0])
        else:
            reached = F.conv_transpose2d(q, turn(turned, groups), None, stride, 0, 0, groups, dilation)
    return placed(reached, offset, tuple(size)).to(G.dtype, memory_format=LAYOUT)


walk_conv2d = torch.library.custom_op("prm::walk_conv2d", walked_conv2d, mutates_args=())


@walk_conv2d.register_fake
def _(G, image, origin, ratio, turned, stride, padding, dilation, groups, to, size, precision="ieee"):
    return torch.empty((G.shape[0], turned.shape[0], *size), dtype=G.dtype, device=G.device, memory_format=LAYOUT)


def _multiplied_in(precision: str):
    """1 / Z is exact to float32: with TF32, which cuDNN may take unasked, transitions out of a position do not sum to
    1."""
    cudnn = torch.backends.cudnn
    return cudnn.flags(
        cudnn.enabled, cudnn.benchmark, deterministic=cudnn.deterministic, allow_tf32=precision == "tf32"
    )


def _halved(precision: str, *matrices: Tensor) -> tuple[Tensor, ...]:
    """Matrices rounded to bfloat16 if so they are multiplied; held in float32 on a CPU, see `in_float32`."""
    if precision != "bf16":
        return matrices
    halved = [m.to(torch.bfloat16) for m in matrices]
    return tuple(m.float() if in_float32(m) else m for m in halved)


def walked_max_pool(
    values: Tensor, image: Tensor, origin: Tensor, indices: Tensor, columns: int,
    kernel: list[int], stride: list[int], padding: list[int], dilation: list[int], to: Tensor, size: list[int],
) -> Tensor:  # fmt: skip
    """P through a max pooling: values (K, C, h, w), windows that begin at origin (K, 2) of the pooled map, go to their
    argmax, indices (N, C, p, q) int64 of image[k]: places, in row-major order, of a map below that has so many columns.

    The answer (K, C, *size) holds windows that begin at `to` (K, 2) of the map below. image, origin and to: int64, on
    the host or on the device.
    """
    K, C, h, w = values.shape
    image, origin, to = (n.to(values.device)[..., None, None, None] for n in (image, origin, to))
    row, col = (origin[:, i] + torch.arange(n, device=values.device).reshape(s) for i, n, s in
                ((0, h, (-1, 1)), (1, w, (1, -1))))  # fmt: skip
    channel = torch.arange(C, device=values.device)[:, None, None]
    place = indices[image, channel, row, col]
    row, col = place // columns - to[:, 0], place % columns - to[:, 1]
    inside = (row >= 0) & (row < size[0]) & (col >= 0) & (col < size[1])
    where = torch.where(inside, row * size[1] + col, 0).flatten(2)
    below = values.new_zeros(K, C, size[0] * size[1])
    below.scatter_add_(2, where, torch.where(inside, values, 0).flatten(2))
    return below.unflatten(2, tuple(size)).contiguous(memory_format=LAYOUT)


walk_max_pool = torch.library.custom_op("prm::walk_max_pool", walked_max_pool, mutates_args=())


@walk_max_pool.register_fake
def _(values, image, origin, indices, columns, kernel, stride, padding, dilation, to, size):
    shape = (*values.shape[:2], *size)
    return torch.empty(shape, dtype=values.dtype, device=values.device, memory_format=LAYOUT)


def turn(weight: Tensor, groups: int) -> Tensor:
    """A kernel (C_out, C_in / groups, i, j) turned round, (C_in, C_out / groups, i, j), and the other way.

    Where the stride is 1, convT with the one is conv with the other.
    """
    split = weight.flip(2, 3).unflatten(0, (groups, -1)).transpose(1, 2)
    return split.flatten(0, 1).contiguous(memory_format=LAYOUT)


def _spread(values: Tensor, stride: list[int], offset: np.ndarray, size: tuple[int, ...]) -> Tensor:
    """Windows of `size` whose row stride * i - offset holds row i of values (K, C, h, w), columns alike; else 0."""
    out = empty((*values.shape[:2], *size), values).zero_()
    for k, start in enumerate(offset.tolist()):
        first = [max(-(-o // s), 0) for o, s in zip(start, stride)]
        last = [min(-(-(o + length) // s), have) for o, s, length, have in zip(start, stride, size, values.shape[2:])]
        rows, cols = (slice(f, max(f, n)) for f, n in zip(first, last))
        some = values[k, :, rows, cols]
        begin = [f * s - o for f, s, o in zip(first, stride, start)]
        out[k, :, begin[0] :: stride[0], begin[1] :: stride[1]][:, : some.shape[1], : some.shape[2]] = some
    return out


def _by_phases(q: Tensor, turned: Tensor, stride: int) -> Tensor:
    """convT(q, W+) with a stride as one convolution without: each phase of the rows and columns of the answer is a
    channel of its own. Faster where the answer has few channels, as the image has.

    Row s j + f of the answer is the sum over t of q's row j - t times the kernel's row f + s t.
    """
    taps = [-(-k // stride) for k in turned.shape[2:]]
    short = [t * stride - k for t, k in zip(taps, turned.shape[2:])]
    into, out = turned.shape[:2]
    # Turned round, the rows that are missing to full taps come first, and phases run from last to first.
    kernel = F.pad(turned, (short[1], 0, short[0], 0)).reshape(into, out, taps[0], stride, taps[1], stride)
    kernel = kernel.flip(3, 5).permute(0, 3, 5, 1, 2, 4).reshape(into * stride * stride, out, *taps)
    phases = F.conv2d(q, kernel.contiguous(memory_format=LAYOUT), padding=[t - 1 for t in taps])
    return F.pixel_shuffle(phases, stride)
