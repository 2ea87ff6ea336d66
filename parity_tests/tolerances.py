"""How far the fast path may be from the oracle: one table, and the comparison that uses it.

Tolerances are relative to the largest expected magnitude of the array. Peaks, masks, indices and counts have no
tolerance: they are compared exactly.
"""

import numpy as np
import torch

# One equation of the oracle against one operator or layer.
OPERATOR = {torch.float64: 1e-12, torch.float32: 2e-6}
# Layers that can leak, and every layer that a walk in bfloat16 passes: P / Z and the products around it are rounded.
WALK = {**OPERATOR, torch.bfloat16: 2**-6}
# Whole networks: rounding of many layers, and of the ratios P / Z between them.
NETWORK = {torch.float64: 1e-9, torch.float32: 1e-4}
# Peak pooling alone takes the half precisions. It computes in float32; only the gradient is rounded to the map's dtype.
POOLING = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 2e-6, torch.float16: 2e-6}
POOLING_GRADIENT = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 2**-8, torch.float16: 2**-11}


def as_array(values) -> np.ndarray:
    """Tensors of any dtype and device, arrays and numbers -> a float64 array."""
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu().double().numpy()
    return np.asarray(values, np.float64)


def assert_close(actual, expected, dtype, what, table=OPERATOR):
    """Every element within the table's tolerance for `dtype`, NaN only where NaN is expected; else name, index, values.

    `what` names the array in the message.
    """
    actual, expected = as_array(actual), as_array(expected)
    assert actual.shape == expected.shape, f"{what}: shape {actual.shape}, expected {expected.shape}"
    if not expected.size:
        return
    finite = np.isfinite(expected)
    scale = np.abs(expected[finite]).max(initial=0.0)
    allowed = table[dtype] * scale
    same = (actual == expected) | (np.isnan(actual) & np.isnan(expected))
    with np.errstate(invalid="ignore"):
        wrong = ~(same | (finite & (np.abs(actual - expected) <= allowed)))
    if wrong.any():
        error = np.where(wrong, np.nan_to_num(np.abs(actual - expected), nan=np.inf), -1.0)
        index = tuple(int(i) for i in np.unravel_index(np.argmax(error), error.shape))
        raise AssertionError(
            f"{what}: {int(wrong.sum())} of {wrong.size} elements differ by more than {allowed:.3g} ({dtype}); "
            f"worst at {index}: {actual[index]!r}, expected {expected[index]!r}"
        )


def assert_equal(actual, expected, what):
    """Exactly equal: peaks, masks, indices, counts."""
    actual, expected = (v.detach().cpu().numpy() if isinstance(v, torch.Tensor) else v for v in (actual, expected))
    np.testing.assert_array_equal(actual, expected, err_msg=what)
