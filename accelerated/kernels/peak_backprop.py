"""The walk back (Eqs. 4-5) on GPUs: the normaliser's ratio map, the walk through a convolution, and what lies between.

Both convolutions are matrix products whose left matrix is never written down (implicit GEMM): its rows are positions of
maps, its columns channels at one tap of the kernel, and a tile of it is gathered as it is needed. Maps are taken in any
layout; where a position's channels lie next to each other, as `operators.LAYOUT` has them, loads are wide. P on windows
comes with a row of numbers for each peak:

    windows (K, 5) int32: image; first row and column of the peak's window; those of where the answer begins

Maps are cast to float32 as soon as they are loaded, and sums are kept in float32. Sizes that change from picture to
picture are not specialised: each would be compiled for again, in the middle of a walk. That windows lie inside of their
maps, and images are there, is for the caller to see to.
"""

from __future__ import annotations

from math import gcd, prod

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..peak_backprop import operators, windows
from .launching import CONFIGURATIONS, INTERPRETED, TORCH, chosen, expect, launch, register, short

COMPUTED = (torch.float32, torch.bfloat16)
FLOATS = (*COMPUTED, torch.float64)  # the last by torch's code
FACTORS = 2  # shared maps that one launch multiplies by
# The interpreter multiplies bfloat16 matrices wrongly; float32 holds the same numbers.
EMULATED = tl.constexpr(INTERPRETED)


# ------------------------------------------------------------------------------------------------- matrix products


@triton.jit
def _multiply_add(a, b, sums, PRECISION: tl.constexpr):
    """sums + a @ b for float32 tiles, of which "bf16" takes the upper halves."""
    if PRECISION != "bf16":
        sums = tl.dot(a, b, sums, input_precision=PRECISION)
    elif EMULATED:
        a, b = a.to(tl.bfloat16).to(tl.float32), b.to(tl.bfloat16).to(tl.float32)
        sums = tl.dot(a, b, sums, input_precision="ieee")
    else:
        sums = tl.dot(a.to(tl.bfloat16), b.to(tl.bfloat16), sums)
    return sums


@triton.jit(do_not_specialize=["K", "h", "w", "H", "W"])
def walk_conv2d(
    G,  # (K, groups * C_out, h, w): P, or P / U_hat, on windows of the map above
    ratio,  # (N, groups * C_out, p, q): what it is multiplied by
    turned,  # (groups * C_in, C_out, KERNEL_H, KERNEL_W): W+ turned round
    windows,  # (K, 5): image, window of the map above, answer's window of the map below
    out,  # (K, groups * C_in, H, W): windows of the map below
    K, C_out, h, w, C_in, H, W,
    G_k, G_c, G_y, G_x, ratio_n, ratio_c, ratio_y, ratio_x,
    turned_i, turned_o, turned_y, turned_x, out_k, out_c, out_y, out_x,
    KERNEL_H: tl.constexpr, KERNEL_W: tl.constexpr, STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr,
    PADDING_H: tl.constexpr, PADDING_W: tl.constexpr, DILATION_H: tl.constexpr, DILATION_W: tl.constexpr,
    STEP_H: tl.constexpr, STEP_W: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Eq. 4 without its U_hat: out = convT(G * ratio, W+), a tile of positions x channels of the map below.

    Row Y of the map below lies under row (Y + padding - dilation i) / stride of the map above, for those taps i of the
    kernel that leave no remainder. Which these are depends on f = (Y + padding) mod stride alone, so a program takes
    positions of one f (and of columns alike): every STEP-th tap, from the first that fits. With stride 1 that is all.

    Of memory it reads G and ratio once for each tile of channels, W+ once for each tile of positions, and writes out.
    The ratio map of an image is shared by its peaks and stays in the cache.
    """
    tiles_n = tl.cdiv(C_in, BLOCK_N)
    tile_m, tile_n = tl.program_id(0) // tiles_n, tl.program_id(0) % tiles_n
    f_row, f_col = tl.program_id(1) // STRIDE_W, tl.program_id(1) % STRIDE_W
    group = tl.program_id(2)

    # Positions (k, u, v): row u of those of peak k's window that have this f.
    rows_f, cols_f = tl.cdiv(H, STRIDE_H), tl.cdiv(W, STRIDE_W)
    m = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    k, u, v = m // (rows_f * cols_f), m // cols_f % rows_f, m % cols_f
    real = k < K
    k = tl.where(real, k, 0)
    image, top, left = tl.load(windows + 5 * k), tl.load(windows + 5 * k + 1), tl.load(windows + 5 * k + 2)
    to_row, to_col = tl.load(windows + 5 * k + 3), tl.load(windows + 5 * k + 4)
    # Y + padding is not negative, f - it may be: the remainder of a negative number is negative.
    y = ((f_row - to_row - PADDING_H) % STRIDE_H + STRIDE_H) % STRIDE_H + STRIDE_H * u
    x = ((f_col - to_col - PADDING_W) % STRIDE_W + STRIDE_W) % STRIDE_W + STRIDE_W * v
    real = real & (y < H) & (x < W)
    # The row of G's window that lies over (y, x) where tap i is f / dilation.
    row = (to_row + y + PADDING_H - f_row) // STRIDE_H - top
    col = (to_col + x + PADDING_W - f_col) // STRIDE_W - left

    first_i, first_j = KERNEL_H, KERNEL_W
    for tap in tl.static_range(KERNEL_H - 1, -1, -1):
        first_i = tl.where((f_row - tap * DILATION_H) % STRIDE_H == 0, tap, first_i)
    for tap in tl.static_range(KERNEL_W - 1, -1, -1):
        first_j = tl.where((f_col - tap * DILATION_W) % STRIDE_W == 0, tap, first_j)
    taps_i, taps_j = tl.cdiv(KERNEL_H - first_i, STEP_H), tl.cdiv(KERNEL_W - first_j, STEP_W)

    n = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    o = tl.arange(0, BLOCK_K)
    G += k.to(tl.int64)[:, None] * G_k + group * C_out * G_c
    ratio += image.to(tl.int64)[:, None] * ratio_n + group * C_out * ratio_c
    turned += (group * C_in + n[None, :]) * turned_i
    blocks = tl.cdiv(C_out, BLOCK_K)
    sums = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for step in range(0, taps_i * taps_j * blocks):
        i, j = first_i + step // blocks // taps_j * STEP_H, first_j + step // blocks % taps_j * STEP_W
        channel = step % blocks * BLOCK_K + o
        # Exact divisions, of numbers that may be negative.
        r, c = row + (f_row - i * DILATION_H) // STRIDE_H, col + (f_col - j * DILATION_W) // STRIDE_W
        inside = (real & (r >= 0) & (r < h) & (c >= 0) & (c < w))[:, None] & (channel < C_out)[None, :]
        q = tl.load(G + channel[None, :] * G_c + (r * G_y + c * G_x)[:, None], mask=inside, other=0.0).to(tl.float32)
        at = channel[None, :] * ratio_c + ((r + top) * ratio_y + (c + left) * ratio_x)[:, None]
        q *= tl.load(ratio + at, mask=inside, other=0.0).to(tl.float32)
        kernel = turned + channel[:, None] * turned_o + (KERNEL_H - 1 - i) * turned_y + (KERNEL_W - 1 - j) * turned_x
        held = (channel < C_out)[:, None] & (n < C_in)[None, :]
        sums = _multiply_add(q, tl.load(kernel, mask=held, other=0.0).to(tl.float32), sums, PRECISION)
    out += k.to(tl.int64)[:, None] * out_k + (group * C_in + n[None, :]) * out_c + (y * out_y + x * out_x)[:, None]
    tl.store(out, sums.to(out.dtype.element_ty), mask=real[:, None] & (n < C_in)[None, :])


@triton.jit(do_not_specialize=["N", "H", "W", "h", "w"])
def walk_ratio(
    U,  # (N, groups * C_in, H, W): U_hat, non-negative
    weight,  # (groups * C_out, C_in, KERNEL_H, KERNEL_W): W+
    floor,  # (N, groups * C_out): the least Z that does not leak, contiguous
    above,  # (N, groups * C_out, h, w): the numerator, or None for 1
    out,  # (N, groups * C_out, h, w): the ratio
    leaks,  # (N, groups * C_out, h, w) int8: whether Z leaks, as out lies
    N, C_in, H, W, C_out, h, w,
    U_n, U_c, U_y, U_x, weight_o, weight_i, weight_y, weight_x,
    above_n, above_c, above_y, above_x, out_n, out_c, out_y, out_x, leaks_n, leaks_c, leaks_y, leaks_x,
    KERNEL_H: tl.constexpr, KERNEL_W: tl.constexpr, STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr,
    PADDING_H: tl.constexpr, PADDING_W: tl.constexpr, DILATION_H: tl.constexpr, DILATION_W: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """The ratio map of Eq. 5, above / Z with Z = conv(U_hat, W+), and where Z <= floor, a tile of positions x channels.

    Always in full float32: with rounded products the transitions out of a position would not sum to 1, and Z is exactly
    0 where all its products are. Reads U once for each tile of channels, W+ once for each tile of positions, above
    once; writes the ratio and one byte beside it.
    """
    tiles_n = tl.cdiv(C_out, BLOCK_N)
    tile_m, tile_n = tl.program_id(0) // tiles_n, tl.program_id(0) % tiles_n
    group = tl.program_id(1)
    m = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    image, y, x = m // (h * w), m // w % h, m % w
    real = image < N
    image = tl.where(real, image, 0)
    n = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    within = tl.arange(0, BLOCK_K)
    U += image.to(tl.int64)[:, None] * U_n + group * C_in * U_c
    weight += (group * C_out + n[None, :]) * weight_o
    blocks = tl.cdiv(C_in, BLOCK_K)
    Z = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for step in range(0, KERNEL_H * KERNEL_W * blocks):
        i, j = step // blocks // KERNEL_W, step // blocks % KERNEL_W
        channel = step % blocks * BLOCK_K + within
        r, c = y * STRIDE_H - PADDING_H + i * DILATION_H, x * STRIDE_W - PADDING_W + j * DILATION_W
        inside = (real & (r >= 0) & (r < H) & (c >= 0) & (c < W))[:, None] & (channel < C_in)[None, :]
        a = tl.load(U + channel[None, :] * U_c + (r * U_y + c * U_x)[:, None], mask=inside, other=0.0)
        held = (channel < C_in)[:, None] & (n < C_out)[None, :]
        b = tl.load(weight + channel[:, None] * weight_i + i * weight_y + j * weight_x, mask=held, other=0.0)
        Z = tl.dot(a.to(tl.float32), b.to(tl.float32), Z, input_precision="ieee")

    real = real[:, None] & (n < C_out)[None, :]
    channel = group * C_out + n[None, :]
    image = image.to(tl.int64)[:, None]
    least = tl.load(floor + image * (tl.num_programs(1) * C_out) + channel, mask=real, other=0.0).to(tl.float32)
    leaking = Z <= least
    if above is None:
        numerator = 1.0
    else:
        at = image * above_n + channel * above_c + (y * above_y + x * above_x)[:, None]
        numerator = tl.load(above + at, mask=real, other=0.0).to(tl.float32)
    quotient = tl.where(leaking, 0.0, numerator / tl.where(leaking, 1.0, Z))
    at = image * out_n + channel * out_c + (y * out_y + x * out_x)[:, None]
    tl.store(out + at, quotient.to(out.dtype.element_ty), mask=real)
    at = image * leaks_n + channel * leaks_c + (y * leaks_y + x * leaks_x)[:, None]
    tl.store(leaks + at, leaking.to(tl.int8), mask=real)


# ------------------------------------------------------------------------------------------ what lies between them


@triton.jit
def _tile(K, C, H, W, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """A program's positions (k, y, x) of (K, C, H, W), which of them there are, and its channels (1, BLOCK_N)."""
    tiles_n = tl.cdiv(C, BLOCK_N)
    m = tl.program_id(0) // tiles_n * BLOCK_M + tl.arange(0, BLOCK_M)
    channel = (tl.program_id(0) % tiles_n * BLOCK_N + tl.arange(0, BLOCK_N))[None, :]
    k, y, x = m // (H * W), m // W % H, m % W
    return tl.where(k < K, k, 0), y, x, k < K, channel


@triton.jit(do_not_specialize=["K", "h", "w", "H", "W"])
def walk_windows(
    values,  # (K, C, h, w): P on windows
    first,  # (N, C, p, q): a shared map, or None
    second,  # (N, C, p, q): another one, or None
    windows,  # (K, 5): image, window of values in the maps; where out begins inside of it
    out,  # (K, C, H, W): other windows, set or added to
    K, C, h, w, H, W,
    values_k, values_c, values_y, values_x, first_n, first_c, first_y, first_x,
    second_n, second_c, second_y, second_x, out_k, out_c, out_y, out_x,
    ADD: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """out = or += values * first * second where out's window meets that of values, a tile of positions x channels.

    Where they do not meet, out is set to 0, or left as it is. Every number is read once and written once.
    """
    k, y, x, real, channel = _tile(K, C, H, W, BLOCK_M, BLOCK_N)
    r, c = y + tl.load(windows + 5 * k + 3), x + tl.load(windows + 5 * k + 4)
    inside = (real & (r >= 0) & (r < h) & (c >= 0) & (c < w))[:, None] & (channel < C)
    top, left = r + tl.load(windows + 5 * k + 1), c + tl.load(windows + 5 * k + 2)
    peak = k.to(tl.int64)[:, None]
    at = peak * values_k + channel * values_c + (r * values_y + c * values_x)[:, None]
    product = tl.load(values + at, mask=inside, other=0.0).to(tl.float32)
    image = tl.load(windows + 5 * k).to(tl.int64)[:, None]
    if first is not None:
        at = image * first_n + channel * first_c + (top * first_y + left * first_x)[:, None]
        product *= tl.load(first + at, mask=inside, other=0.0).to(tl.float32)
    if second is not None:
        at = image * second_n + channel * second_c + (top * second_y + left * second_x)[:, None]
        product *= tl.load(second + at, mask=inside, other=0.0).to(tl.float32)
    real = real[:, None] & (channel < C)
    out += peak * out_k + channel * out_c + (y * out_y + x * out_x)[:, None]
    if ADD:
        product += tl.load(out, mask=real, other=0.0).to(tl.float32)
    tl.store(out, product.to(out.dtype.element_ty), mask=real)


@triton.jit(do_not_specialize=["K", "h", "w", "H", "W", "columns"])
def walk_max_pool(
    values,  # (K, C, h, w): P on windows of the pooled map
    indices,  # (N, C, p, q) int64: the argmax of each window, its place in a map of (rows, columns)
    windows,  # (K, 5): image, window of the pooled map, answer's window of the map below
    out,  # (K, C, H, W): windows of the map below
    K, C, h, w, H, W, columns,
    values_k, values_c, values_y, values_x, indices_n, indices_c, indices_y, indices_x, out_k, out_c, out_y, out_x,
    KERNEL_H: tl.constexpr, KERNEL_W: tl.constexpr, STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr,
    PADDING_H: tl.constexpr, PADDING_W: tl.constexpr, DILATION_H: tl.constexpr, DILATION_W: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """out at a position = the values of those pooling windows whose argmax it is, a tile of positions x channels.

    Each position looks at the at most KERNEL_H x KERNEL_W windows that it lies in, so nothing is added by two programs
    and the order of the additions is fixed. Neighbours read the same values and indices, from the cache.
    """
    k, y, x, real, channel = _tile(K, C, H, W, BLOCK_M, BLOCK_N)
    top, left = tl.load(windows + 5 * k + 1), tl.load(windows + 5 * k + 2)
    row, col = y + tl.load(windows + 5 * k + 3), x + tl.load(windows + 5 * k + 4)
    values += k.to(tl.int64)[:, None] * values_k + channel * values_c
    indices += tl.load(windows + 5 * k).to(tl.int64)[:, None] * indices_n + channel * indices_c
    found = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for tap in range(0, KERNEL_H * KERNEL_W):
        over_y = row + PADDING_H - tap // KERNEL_W * DILATION_H
        over_x = col + PADDING_W - tap % KERNEL_W * DILATION_W
        # No window of the map above lies where these are negative, and G's lies inside of it.
        fits = (over_y >= 0) & (over_x >= 0) & (over_y % STRIDE_H == 0) & (over_x % STRIDE_W == 0)
        r, c = over_y // STRIDE_H - top, over_x // STRIDE_W - left
        inside = (real & fits & (r >= 0) & (r < h) & (c >= 0) & (c < w))[:, None] & (channel < C)
        at = ((r + top) * indices_y + (c + left) * indices_x)[:, None]
        mine = tl.load(indices + at, mask=inside, other=-1) == (row * columns + col)[:, None]
        value = tl.load(values + (r * values_y + c * values_x)[:, None], mask=inside, other=0.0).to(tl.float32)
        found += tl.where(mine, value, 0.0)
    out += k.to(tl.int64)[:, None] * out_k + channel * out_c + (y * out_y + x * out_x)[:, None]
    tl.store(out, found.to(out.dtype.element_ty), mask=real[:, None] & (channel < C))


# ------------------------------------------------------------------------------------------------------- launchers


def _table(operator: str, K: int, device: torch.device, image: Tensor, here: Tensor, there: Tensor) -> Tensor:
    """The kernels' `windows`, (K, 5) int32. What already lies on the device stays there."""
    expect(
        operator, image.device, image=(image, (torch.int64,), (K,)), origin=(here, (torch.int64,), (K, 2)),
        **{"to or offset": (there, (torch.int64,), (K, 2))},
    )  # fmt: skip
    return torch.cat([image[:, None], here, there], dim=1).to(device, torch.int32, non_blocking=True)


def _blocks(kernel: str, name: str, positions: int, channels: int) -> tuple[int, dict[str, int]]:
    """How many tiles of positions x channels there are, and the named configuration."""
    configuration = CONFIGURATIONS[kernel][name]
    tiles = triton.cdiv(positions, configuration["BLOCK_M"]) * triton.cdiv(channels, configuration["BLOCK_N"])
    return tiles, configuration


def _geometry(kernel, stride, padding, dilation) -> dict[str, int]:
    named = {"KERNEL": kernel, "STRIDE": stride, "PADDING": padding, "DILATION": dilation}
    return {f"{name}_{axis}": value for name, pair in named.items() for axis, value in zip("HW", pair)}


def _empty(shape: tuple[int, ...], like: Tensor) -> Tensor:
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=operators.LAYOUT)


def _expect(operator: str, of: Tensor, /, **tensors: tuple[Tensor, tuple[torch.dtype, ...], tuple]) -> None:
    """`expect`, and the reason why float16 is refused."""
    if of.dtype == torch.float16:
        raise ValueError(f"{operator} does not compute in float16: the ratio maps of Eq. 5 leave its range")
    expect(operator, of.device, **tensors)


def _by_torch(values: Tensor, *others: Tensor, positions: int = 0, extent: int = 0) -> bool:
    """Whether there is nothing to launch, or nothing that could be: kernels compute in float32, and numbers of
    `positions`, and offsets within one peak's or image's part of tensors and of the answer (`extent`), are int32."""
    extents = (sum((n - 1) * s for n, s in zip(t.shape[1:], t.stride()[1:])) for t in (values, *others))
    large = max(positions, extent, *extents) >= 2**31 - 2**16
    return values.dtype == torch.float64 or 0 in (values.numel(), positions) or large


def _about(number: int) -> str:
    """A number's power of two, for names of cases: neighbours share what was measured."""
    return f"~{1 << max(0, number - 1).bit_length()}"


def conv2d(
    G: Tensor, image: Tensor, origin: Tensor, ratio: Tensor, turned: Tensor,
    stride: list[int], padding: list[int], dilation: list[int], groups: int, to: Tensor, size: list[int],
    precision: str = "ieee",
) -> Tensor:  # fmt: skip
    """Launcher of `prm::walk_conv2d`, see there. precision "tf32" counts where the device has it."""
    name, any4 = "prm::walk_conv2d", (None,) * 4
    _expect(name, G, G=(G, FLOATS, any4), turned=(turned, (G.dtype,), any4), ratio=(ratio, (G.dtype,), any4))
    (K, channels, h, w), (C_out, *kernel) = G.shape, turned.shape[1:]
    C_in = len(turned) // groups
    _expect(
        name, G, G=(G, FLOATS, (K, groups * C_out, h, w)), ratio=(ratio, (G.dtype,), (None, channels, None, None)),
        turned=(turned, (G.dtype,), (groups * C_in, C_out, *kernel)),
    )  # fmt: skip
    table = _table(name, K, G.device, image, origin, to)
    arguments = (G, image, origin, ratio, turned, stride, padding, dilation, groups, to, size, precision)
    if _by_torch(G, ratio, positions=K * prod(size), extent=len(turned) * prod(size)):
        return operators.walked_conv2d(*arguments)
    positions = K * prod(-(-n // s) for n, s in zip(size, stride))
    precision = _precision(G, precision)
    shape = f"{channels}>{len(turned)} {kernel[0]}x{kernel[1]}/{stride[0]} {_about(positions)} positions"
    name = chosen("walk_conv2d", f"{shape} {short(G.dtype)} {precision}", G.device, _default(precision, C_in, C_out))
    if name == TORCH:
        return operators.walked_conv2d(*arguments)
    out = _empty((K, len(turned), *size), G)
    tiles, configuration = _blocks("walk_conv2d", name, positions, C_in)
    step = {f"STEP_{axis}": s // gcd(s, d) for axis, s, d in zip("HW", stride, dilation)}
    launch(
        walk_conv2d, (tiles, prod(stride), groups),
        G, ratio, turned, table, out, K, C_out, h, w, C_in, *size,
        *G.stride(), *ratio.stride(), *turned.stride(), *out.stride(), **_geometry(kernel, stride, padding, dilation),
        **step, PRECISION=precision, **configuration,
    )  # fmt: skip
    return out


def _default(precision: str, C_in: int, C_out: int) -> str:
    """What runs where nothing was measured. Of a tile's products a depthwise convolution needs one in a thousand."""
    if C_in == C_out == 1:
        return TORCH
    return "default" if precision == "ieee" else "matrix units"


def _precision(maps: Tensor, wanted: str) -> str:
    """How matrices are multiplied: bfloat16 maps are exact in "bf16", and some of AMD's GPUs have no "tf32"."""
    if maps.dtype == torch.bfloat16:
        return "bf16"
    return "ieee" if wanted == "tf32" and not has_tf32(maps.device) else wanted


def has_tf32(device: torch.device) -> bool:
    """Whether the device multiplies matrices in TF32: NVIDIA's since Ampere, and of AMD's gfx942 alone."""
    if device.type != "cuda":
        return not INTERPRETED
    if torch.version.hip:
        return torch.cuda.get_device_properties(device).gcnArchName.startswith("gfx942")
    return torch.cuda.get_device_capability(device) >= (8, 0)


def ratio(
    U: Tensor, weight: Tensor, floor: Tensor, above: Tensor | None,
    stride: list[int], padding: list[int], dilation: list[int], groups: int, out: Tensor,
) -> Tensor:  # fmt: skip
    """Launcher of `prm::walk_ratio`, see there."""
    _expect("prm::walk_ratio", U, U=(U, FLOATS, (None,) * 4), weight=(weight, (U.dtype,), (None,) * 4))
    (N, _, H, W), (channels, C_in, *kernel) = U.shape, weight.shape
    h, w = (
        (n + 2 * p - d * (k - 1) - 1) // s + 1 for n, p, d, k, s in zip((H, W), padding, dilation, kernel, stride)
    )
    of_out = ((U.dtype,), (N, channels, h, w))
    _expect(
        "prm::walk_ratio", U, U=(U, FLOATS, (N, groups * C_in, H, W)), floor=(floor, FLOATS, (N, channels)),
        out=(out, *of_out), above=(out if above is None else above, *of_out),
    )  # fmt: skip
    arguments = (U, weight, floor, above, stride, padding, dilation, groups, out)
    if _by_torch(U, out, *(() if above is None else (above,)), positions=N * h * w):
        return operators.walked_ratio(*arguments)
    shape = f"{groups * C_in}>{channels} {kernel[0]}x{kernel[1]}/{stride[0]} {_about(N * h * w)} positions"
    default = _default("ieee", C_in, channels // groups)
    name = chosen("walk_ratio", f"{shape} {short(U.dtype)}", U.device, default)
    if name == TORCH:
        return operators.walked_ratio(*arguments)
    leaks = torch.empty_like(out, dtype=torch.bool)
    tiles, configuration = _blocks("walk_ratio", name, N * h * w, channels // groups)
    launch(
        walk_ratio, (tiles, groups),
        U, weight, floor.contiguous(), above, out, leaks.view(torch.int8), N, C_in, H, W, channels // groups, h, w,
        *U.stride(), *weight.stride(), *(out if above is None else above).stride(), *out.stride(), *leaks.stride(),
        **_geometry(kernel, stride, padding, dilation), **configuration,
    )  # fmt: skip
    return leaks


def on_windows(
    values: Tensor, image: Tensor, origin: Tensor, offset: Tensor, maps: list[Tensor], out: Tensor, add: bool
) -> None:
    """Launcher of `prm::walk_windows`, see there. A launch multiplies by two maps; more take more launches."""
    _expect("prm::walk_windows", values, values=(values, FLOATS, (None,) * 4))
    K, C, h, w = values.shape
    _expect(
        "prm::walk_windows", values, out=(out, (values.dtype,), (K, C, None, None)),
        **{f"maps[{i}]": (m, (values.dtype, torch.bool), (None, C, None, None)) for i, m in enumerate(maps)},
    )  # fmt: skip
    table = _table("prm::walk_windows", K, values.device, image, origin, offset)
    H, W = out.shape[2:]
    if _by_torch(values, out, *maps, positions=K * H * W):
        return windows.on_windows(values, image, origin, offset, maps, out, add)
    shape = f"{C} channels {len(maps)} maps {_about(K * H * W)} positions"
    name = chosen("walk_windows", f"{shape} {short(values.dtype)}", values.device)
    if name == TORCH:
        return windows.on_windows(values, image, origin, offset, maps, out, add)
    if len(maps) > FACTORS:
        product = torch.empty_like(values)
        on_windows(values, image, origin, torch.zeros_like(offset), maps[:FACTORS], product, False)
        return on_windows(product, image, origin, offset, maps[FACTORS:], out, add)
    first, second = (*maps, None, None)[:FACTORS]
    tiles, configuration = _blocks("walk_windows", name, K * H * W, C)
    launch(
        walk_windows, (tiles,), values, first, second, table, out,
        K, C, h, w, H, W, *values.stride(), *(values if first is None else first).stride(),
        *(values if second is None else second).stride(), *out.stride(), ADD=add, **configuration,
    )  # fmt: skip


def max_pool(
    values: Tensor, image: Tensor, origin: Tensor, indices: Tensor, columns: int,
    kernel: list[int], stride: list[int], padding: list[int], dilation: list[int], to: Tensor, size: list[int],
) -> Tensor:  # fmt: skip
    """Launcher of `prm::walk_max_pool`, see there."""
    _expect("prm::walk_max_pool", values, values=(values, FLOATS, (None,) * 4))
    K, C, h, w = values.shape
    _expect("prm::walk_max_pool", values, indices=(indices, (torch.int64,), (None, C, None, None)))
    table = _table("prm::walk_max_pool", K, values.device, image, origin, to)
    arguments = (values, image, origin, indices, columns, kernel, stride, padding, dilation, to, size)
    if _by_torch(values, indices, positions=K * prod(size), extent=C * prod(size)):
        return operators.walked_max_pool(*arguments)
    shape = f"{C} channels {kernel[0]}x{kernel[1]}/{stride[0]} {_about(K * prod(size))} positions"
    name = chosen("walk_max_pool", f"{shape} {short(values.dtype)}", values.device)
    if name == TORCH:
        return operators.walked_max_pool(*arguments)
    out = _empty((K, C, *size), values)
    tiles, configuration = _blocks("walk_max_pool", name, K * prod(size), C)
    launch(
        walk_max_pool, (tiles,), values, indices, table, out,
        K, C, h, w, *size, columns, *values.stride(), *indices.stride(), *out.stride(),
        **_geometry(kernel, stride, padding, dilation), **configuration,
    )  # fmt: skip
    return out


for _operator, _launcher in (
    (operators.walk_conv2d, conv2d), (operators.walk_ratio, ratio), (windows.walk_windows, on_windows),
    (operators.walk_max_pool, max_pool),
):  # fmt: skip
    register(_operator, _launcher)
