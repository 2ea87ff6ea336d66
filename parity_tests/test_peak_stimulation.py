"""Eqs. 1-3 beside the rows of the conformance table: gradients, values that are not finite, what the operators are."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prm.accelerated import PeakStimulation, peak_stimulation
from prm.accelerated.peak_stimulation import _listed, capacity, pooled
from prm.parity_tests.strategies import MAP_KINDS, has_near_ties, maps
from prm.parity_tests.tolerances import POOLING, POOLING_GRADIENT, as_array, assert_close, assert_equal
from prm.reference import peak_stimulation as oracle

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def rounded(threshold, dtype):
    """A constant threshold as the dtype holds it; NumPy has no bfloat16, so the oracle is handed the rounded number."""
    return float(torch.tensor(threshold, dtype=dtype)) if isinstance(threshold, float) else threshold


def expected(M, window=3, threshold="median", upsample=1):
    """The oracle's answer, from the maps' exact values, in the dtype in which they are compared."""
    compared = np.float64 if M.dtype == torch.float64 else np.float32
    return oracle.forward(as_array(M).astype(compared), window, rounded(threshold, M.dtype), upsample=upsample)


def near_ties(M, window, threshold, upsample):
    E = oracle.enlarge(as_array(M), upsample)
    levels = [oracle.threshold_value(m, rounded(threshold, M.dtype)) for m in E.reshape(-1, *E.shape[2:])]
    return has_near_ties(E, window, levels)


@pytest.mark.parametrize("threshold", [1e60, float("inf")])
def test_a_threshold_beyond_all_numbers_keeps_the_first_maximum(threshold, device):
    M = torch.zeros(1, 2, 5, 5, device=device)
    M[0, 0, 1, 3] = M[0, 0, 4, 0] = 2
    M[0, 1] = -3
    for dtype in DTYPES:
        scores, peaks = peak_stimulation(M.to(dtype), threshold=threshold)
        assert peaks.tolist() == [[0, 0, 1, 3], [0, 1, 0, 0]]
        assert scores.tolist() == [[2, -3]]


# ---- Eq. 3


@pytest.mark.parametrize("threshold", ["median", "mean", "max", 0.0, None])
@pytest.mark.parametrize("upsample", [1, 2, 3])
def test_gradcheck(threshold, upsample, device):
    draws = (torch.randperm(40, generator=torch.Generator().manual_seed(seed)) for seed in range(99))
    draws = (draw.reshape(1, 2, 4, 5).double().sub(20).div(8) for draw in draws)
    # A finite difference must not move a peak.
    M = next(M for M in draws if not near_ties(M, 3, threshold, upsample)).to(device)
    module = PeakStimulation(3, threshold, upsample)
    assert torch.autograd.gradcheck(module, M.requires_grad_())
    assert torch.equal(module(M), peak_stimulation(M, 3, threshold, upsample)[0])


# ---- values that are not finite


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("upsample", [1, 2])
@pytest.mark.parametrize("threshold", ["median", "mean", "max", 0.3, None])
def test_a_non_finite_map_spoils_itself_alone(bad, dtype, upsample, threshold, device):
    draw = torch.Generator().manual_seed(2)
    M = torch.randperm(2 * 3 * 20, generator=draw).reshape(2, 3, 4, 5).sub(60).div(8).to(dtype)
    clean = expected(M, 3, threshold, upsample)
    grads = torch.linspace(1, 2, 6).reshape(2, 3)
    clean_grad = oracle.backward(grads.numpy(), clean)
    spoilt = M.clone()
    spoilt[1, 0, 2, 3] = bad
    spoilt = spoilt.to(device).requires_grad_()
    scores = PeakStimulation(3, threshold, upsample)(spoilt)
    (grad,) = torch.autograd.grad(scores, spoilt, grads.to(scores))
    wanted = clean.scores.copy()
    wanted[1, 0], clean_grad[1, 0] = np.nan, np.nan
    assert_close(scores, wanted, dtype, "scores", POOLING)
    assert_close(grad, clean_grad, dtype, "gradient", POOLING_GRADIENT)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_the_function_names_image_and_class(bad, device):
    M = torch.zeros(3, 4, 5, 5, device=device)
    M[1, 2, 3, 3] = M[2, 0, 0, 0] = bad
    with pytest.raises(ValueError, match=r"image 1, class 2") as caught:
        peak_stimulation(M)
    assert "\n" not in str(caught.value)


# ---- the operators


def arguments(threshold, upsample):
    kind = "none" if threshold is None else threshold if isinstance(threshold, str) else "constant"
    return 3, kind, threshold if isinstance(threshold, float) else 0.0, upsample


@pytest.fixture
def filled_memory():
    """What is not written has one value: opcheck compares runs with each other, rows beyond the count included."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("threshold", ["median", 0.3, None])
@pytest.mark.parametrize("upsample", [1, 2])
def test_peak_stimulation_is_a_proper_operator(dtype, threshold, upsample, filled_memory, device):
    M = torch.randperm(2 * 2 * 20).reshape(2, 2, 4, 5).div(8).to(device, dtype).requires_grad_()
    torch.library.opcheck(torch.ops.prm.peak_stimulation.default, (M, *arguments(threshold, upsample)))


@pytest.mark.parametrize("upsample", [1, 2])
def test_its_backward_is_a_proper_operator(upsample, device):
    M = torch.randperm(2 * 2 * 20).reshape(2, 2, 4, 5).div(8).to(device)
    scores, peaks, count = torch.ops.prm.peak_stimulation(M, *arguments("median", upsample))
    operator = torch.ops.prm.peak_stimulation_backward.default
    torch.library.opcheck(operator, (torch.ones_like(scores), peaks, count, 4, 5, upsample))


@pytest.mark.parametrize("window", [3, 5, 7])
@pytest.mark.parametrize("size", [(1, 1), (4, 4), (5, 7), (8, 9), (1, 6)])
def test_the_list_holds_every_peak_that_the_window_allows(window, size, device):
    # a lattice of equal maxima as close as the window lets them be, over a ground below them
    M = torch.zeros(2, 3, *size, device=device)
    reach = window // 2 + 1
    M[..., ::reach, ::reach] = 1
    bound = 2 * 3 * capacity(*size, window)
    _, rows, count = torch.ops.prm.peak_stimulation(M, window, "none", 0.0, 1)
    assert rows.shape == (bound, 4)
    assert (count.dtype, count.shape, int(count)) == (torch.int32, (), bound)
    assert_equal(rows, oracle.forward(as_array(M), window, None).peaks, "peaks")


@given(maps(torch.float32, kinds=MAP_KINDS[:5]), st.sampled_from([3, 5, 7]), st.integers(1, 3))
@settings(max_examples=60)
def test_the_list_is_padded_with_minus_one(M, window, upsample):
    # torch's code: a kernel leaves rows beyond the count unwritten
    _, rows, count = pooled(M, window, "median", 0.0, upsample)
    N, C, H, W = M.shape
    assert len(rows) == N * C * capacity(upsample * H, upsample * W, window)
    assert N * C <= int(count) <= len(rows)
    assert (rows[: int(count)] >= 0).all()
    assert (rows[int(count) :] == -1).all()
    keys = [tuple(row) for row in rows[: int(count)].tolist()]
    assert keys == sorted(set(keys))


# ---- what is refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 4}, "window.*odd"),
        ({"window": 1}, "window"),
        ({"window": -3}, "window"),
        ({"window": 3.0}, "window"),
        ({"upsample": 0}, "upsample"),
        ({"upsample": 1.5}, "upsample"),
        ({"threshold": "medium"}, "threshold"),
        ({"threshold": float("nan")}, "threshold"),
    ],
)
def test_bad_options(options, message):
    for refuses in (lambda: PeakStimulation(**options), lambda: peak_stimulation(torch.zeros(1, 1, 4, 4), **options)):
        with pytest.raises(ValueError, match=message) as caught:
            refuses()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "M",
    [
        torch.zeros(3, 4, 4),
        torch.zeros(1, 1, 0, 4),
        torch.zeros(1, 1, 4, 0),
        torch.zeros(1, 1, 4, 4, dtype=torch.int64),
        torch.zeros(1, 1, 4, 4, dtype=torch.complex64),
    ],
)
def test_bad_maps(M):
    for refuses in (lambda: PeakStimulation()(M), lambda: peak_stimulation(M)):
        with pytest.raises(ValueError, match=r"\(N, C, H, W\)"):
            refuses()


@pytest.mark.parametrize("share", [0.0, 0.1, 1.0])
def test_the_list_of_peaks_is_the_same_whether_the_host_waits_or_not(share, device):
    valid = (torch.rand(2, 3, 7, 5, generator=torch.Generator().manual_seed(0)) < share).to(device)
    (waited, number), (static, same) = (_listed(valid, 2 * 3 * 7 * 5, wait) for wait in (True, False))
    assert_equal(waited, static, "peaks")
    assert number.dtype == same.dtype == torch.int32 and int(number) == int(same) == int(valid.sum())
    assert_equal(static[: int(same)], valid.nonzero(), "places")
