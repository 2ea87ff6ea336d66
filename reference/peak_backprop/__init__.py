"""Peak back-propagation, Eq. 4-5 of section 3.3 (Zhou et al., CVPR 2018): `layers` has a function a layer kind, and
`arithmetic` what they are computed with."""

from .arithmetic import (  # fmt: skip
    bin_of,
    convolve,
    convolve_transposed,
    interpolation_weights,
    pair,
    pool_windows,
    pooled_size,
    sides,
    sum_to,
)
from .layers import (  # fmt: skip
    COPIES,
    activation,
    adaptive_avg_pool2d,
    adaptive_max_pool2d,
    add,
    avg_pool2d,
    batch_norm,
    concatenate,
    conv2d,
    expand,
    flatten,
    fold_batch_norm,
    interpolate,
    linear,
    max_pool2d,
    mean,
    multiply,
    normalization,
    pad,
    peak_response_map,
    permute,
    reshape,
    shift,
    slice_axis,
    start,
    summation,
    transpose,
)

__all__ = [
    "COPIES", "activation", "adaptive_avg_pool2d", "adaptive_max_pool2d", "add", "avg_pool2d", "batch_norm",
    "bin_of", "concatenate", "conv2d", "convolve", "convolve_transposed", "expand", "flatten", "fold_batch_norm",
    "interpolate", "interpolation_weights", "linear", "max_pool2d", "mean", "multiply", "normalization", "pad",
    "pair", "peak_response_map", "permute", "pool_windows", "pooled_size", "reshape", "shift", "sides",
    "slice_axis", "start", "sum_to", "summation", "transpose",
]  # fmt: skip
