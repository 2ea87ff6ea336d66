"""Cases that chance would leave out: every row that has some compares them before what is generated."""

import numpy as np
import torch


def maps_to_pool(dtype: torch.dtype) -> list[dict]:
    """Arguments of `peak_stimulation.forward` with one right answer in `dtype`: an enlargement of 3 or 11 rows by 3 has
    exact fractions."""
    rng, eps = np.random.default_rng(0), torch.finfo(dtype).eps
    found = []

    def add(M, threshold, upsample=1):
        found.append({"M": np.asarray(M, float), "window": 3, "threshold": threshold, "upsample": upsample})

    # The lower median of eight values is a peak, the upper one is none; so of negative ones, and in their last bits.
    ranks = np.array([3.0, 2, 7, 5, 6, 4, 0, 1])
    add(np.stack([ranks, ranks - 8, 2 * eps * ranks + 2, 2 * eps * ranks - 3])[None, :, None], "median")
    # Above a peak as the float64 sum has it; rounded to float32 the very peak.
    row = np.zeros((1, 1, 1, 9))
    row[..., [0, 4, 8]] = 1, 0.125, 2.0**-24
    add(row, "mean")
    if dtype in (torch.float64, torch.float32):  # beside 2**27 float32 would lose the -1s, and with them the last peak
        M = np.zeros((1, 1, 3, 43))
        M[0, 0, 1] = M[0, 0, 2, :21] = -1
        M[0, 0, 0, 0], M[0, 0, 2, 42] = 2.0**27, (2.0**27 - 64) / 128
        add(M, "mean")
    # Rounded, the threshold is the first peak's value.
    M = np.zeros((1, 1, 5, 5))
    M[0, 0, 0, 0], M[0, 0, 4, 4] = 0.75, 1.0
    add(M, 0.75 + 0.75 * eps / 4)
    # No peak passes: the first of equal maxima is the one.
    M = np.zeros((1, 2, 3, 3))
    M[0, 0, 0, 2] = M[0, 0, 2, 0] = M[0, 0, 2, 2] = 2
    for upsample, size in ((1, (3, 11)), (3, (3, 3))):
        add(M, 1e6, upsample)
        for threshold in ("median", -0.0, "max"):  # zeros of either sign are equal
            add(rng.choice([-0.0, 0.0, -1.0], (1, 1, *size)), threshold, upsample)
    for threshold in ("median", "max", None):
        add(rng.integers(0, 2, (1, 1, 3, 3)), threshold, 3)
        add(rng.integers(-4, 5, (1, 1, 1, 11)) / 8, threshold, 3)
    add(np.zeros((0, 2, 4, 5)), "median", 2)
    return found


def maps_and_gradients(dtype: torch.dtype) -> list[dict]:
    """The same with gradients of the scores."""
    found = []
    for arguments in maps_to_pool(dtype):
        N, C = arguments["M"].shape[:2]
        found.append({"grad_scores": np.arange(N * C).reshape(N, C) / 8 - 0.5, **arguments})
    return found


def averages(dtype: torch.dtype) -> list[dict]:
    """Arguments of `peak_backprop.avg_pool2d` whose last window is weak, but not so weak that it leaks: with a divisor
    of its own the bound of a leak is less, by as much as the window's weights sum to."""
    U = np.zeros((1, 3, 4))
    U[0, 0, 0], U[0, 2, 3] = 1, 2.0**-19
    P = np.array([[[0.5, 0], [0, 0.5]]])
    geometry = {"kernel": (2, 2), "stride": (2, 2), "padding": (0, 0), "ceil_mode": True}
    return [{"P": P, "U": U, **geometry, "count_include_pad": True, "divisor_override": 64}]
