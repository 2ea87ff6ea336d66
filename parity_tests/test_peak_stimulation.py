"""Eqs. 1-3: the fast operators against the oracle, peaks exactly, scores and gradients to tolerance."""

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from prm.accelerated import PeakStimulation, peak_stimulation
from prm.accelerated.peak_stimulation import _listed, capacity, pooled
from prm.parity_tests.strategies import MAP_KINDS, has_near_ties, maps
from prm.parity_tests.tolerances import POOLING, POOLING_GRADIENT, as_array, assert_close, assert_equal
from prm.reference import peak_stimulation as oracle

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
# A number that no dtype holds and one that maps do hold, so that both sides of >= are met.
THRESHOLDS = ("median", "mean", "max", 0.3, -0.25, None)


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


def assert_parity(M, window=3, threshold="median", upsample=1):
    """Peaks, scores and the gradient of the function, and the module's scores, against the oracle."""
    wanted = expected(M, window, threshold, upsample)
    M = M.clone(memory_format=torch.preserve_format) if M.is_contiguous() else M
    M = M.detach().requires_grad_()
    scores, peaks = peak_stimulation(M, window, threshold, upsample)
    assert peaks.dtype == torch.int64
    assert scores.dtype == (torch.float64 if M.dtype == torch.float64 else torch.float32)
    assert scores.device == peaks.device == M.device
    assert_equal(peaks, wanted.peaks, "peaks")
    assert_close(scores, wanted.scores, M.dtype, "scores", POOLING)

    weights = torch.linspace(-2, 3, scores.numel(), dtype=scores.dtype, device=M.device).reshape(scores.shape)
    (grad,) = torch.autograd.grad(scores, M, weights)
    assert (grad.dtype, grad.shape) == (M.dtype, M.shape)
    assert_close(grad, oracle.backward(as_array(weights), wanted), M.dtype, "gradient", POOLING_GRADIENT)
    module = PeakStimulation(window, threshold, upsample)(M)
    assert torch.equal(module, scores)


# ---- against the oracle


@pytest.mark.parametrize("threshold", THRESHOLDS)
@pytest.mark.parametrize("window", [3, 5, 7])
@given(data=st.data())
@settings(max_examples=30)
def test_peaks_scores_and_gradient(threshold, window, data, device):
    M = data.draw(maps(data.draw(st.sampled_from(DTYPES))))
    assert_parity(M.to(device), window, threshold)


@pytest.mark.parametrize("threshold", THRESHOLDS)
@pytest.mark.parametrize("window", [3, 5, 7])
@pytest.mark.parametrize("upsample", [2, 3, 4])
@given(data=st.data())
@settings(max_examples=8)
def test_enlarged_maps(threshold, window, upsample, data, device):
    M = data.draw(maps(data.draw(st.sampled_from(DTYPES)), kinds=("fine", "fine", "constant", "coarse"), max_side=6))
    # Fractions of an enlargement are rounded: only exact ties, and those of constant maps, have one right answer.
    assume(not near_ties(M, window, threshold, upsample))
    assert_parity(M.to(device), window, threshold, upsample)


@pytest.mark.parametrize("size", [(3, 3), (3, 11), (11, 3), (1, 11)])
@pytest.mark.parametrize("kind", ["plateaus", "coarse"])
def test_ties_on_enlarged_maps(size, kind, device):
    # 3 * 3 - 1 = 8 and 3 * 11 - 1 = 32: the fractions are exact in binary, so ties stay ties whoever computes them
    for seed in range(4):
        rng = np.random.default_rng(seed)
        eighths = 8 * rng.integers(0, 2, (2, 2, *size)) if kind == "plateaus" else rng.integers(-4, 5, (2, 2, *size))
        M = torch.from_numpy(eighths / 8)
        for window in (3, 5):
            for threshold in ("median", "max", None):
                assert_parity(M.to(device), window, threshold, 3)
                assert_parity(M.to(device, torch.float32), window, threshold, 3)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (2, 2)])
@pytest.mark.parametrize("upsample", [1, 3])
def test_smallest_maps(dtype, size, upsample, device):
    M = torch.arange(2 * 3 * size[0] * size[1]).reshape(2, 3, *size).remainder(7).to(device, dtype)
    assert_parity(M, 7, "median", upsample)


def test_the_released_codes_setting(device):
    # enlarged by 8, as in the authors' demo
    draw = torch.Generator().manual_seed(0)
    M = torch.randperm(2 * 2 * 49, generator=draw).reshape(2, 2, 7, 7).double().div(8)
    assert not near_ties(M, 3, "median", 8)
    assert_parity(M.to(device), 3, "median", 8)


def test_a_constant_threshold_is_rounded_to_the_maps_dtype(device):
    for dtype in DTYPES:
        M = torch.zeros(1, 1, 5, 5, dtype=dtype, device=device)
        M[0, 0, 0, 0], M[0, 0, 4, 4] = 0.3, 1.0
        # float16's 0.3 is less than 0.3: unrounded, the first peak would be lost
        assert peak_stimulation(M, threshold=0.3)[1].tolist() == [[0, 0, 0, 0], [0, 0, 4, 4]]
        assert_parity(M, 3, 0.3)


def test_a_mean_is_rounded_once_to_the_dtype_in_which_maps_are_compared(device):
    M = torch.zeros(1, 1, 1, 9, device=device)
    M[..., 0], M[..., 4], M[..., 8] = 1, 0.125, 0.125e-7
    for dtype in DTYPES:
        score = 1 if dtype == torch.float64 else 0.5625
        assert peak_stimulation(M.to(dtype), threshold="mean")[0].item() == score
        assert_parity(M.to(dtype), 3, "mean")


def test_an_unreachable_threshold_keeps_the_first_maximum(device):
    M = torch.zeros(1, 2, 5, 5, dtype=torch.float64)
    M[0, 0, 1, 3] = M[0, 0, 4, 0] = 2
    M[0, 1] = -3
    for threshold in (1e6, 1e60, float("inf")):
        scores, peaks = peak_stimulation(M.to(device), threshold=threshold)
        assert peaks.tolist() == [[0, 0, 1, 3], [0, 1, 0, 0]]
        assert scores.tolist() == [[2, -3]]
    assert_parity(M.to(device, torch.float32), 3, 1e60)


def test_the_lower_median_decides(device):
    M = torch.tensor([[[[4.0, 0.0, 2.0, 1.5, 3.0, 0.0, 0.5, 0.25, 5.0, 4.5]]]], device=device)
    # sorted 0 0 .25 .5 1.5 2 3 4 4.5 5: index 4 is 1.5, not the mean of 1.5 and 2; 0.5 is a peak below it
    assert peak_stimulation(M)[1][:, 3].tolist() == [0, 2, 4, 8]
    assert 6 in peak_stimulation(M, threshold=None)[1][:, 3].tolist()


def test_no_pictures(device):
    scores, peaks = peak_stimulation(torch.zeros(0, 3, 4, 5, device=device))
    assert scores.shape == (0, 3)
    assert peaks.shape == (0, 4)


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


def test_the_gradient_carries_one_over_n(device):
    M = torch.zeros(1, 1, 5, 5, dtype=torch.float64, device=device)
    M[0, 0, 0, 0], M[0, 0, 0, 4], M[0, 0, 4, 0], M[0, 0, 4, 4] = 1, 2, 3, 4
    M.requires_grad_()
    scores, peaks = peak_stimulation(M, threshold=1.0)
    assert len(peaks) == 4
    assert scores.item() == 2.5
    (grad,) = torch.autograd.grad(scores.sum() * 2, M)
    assert_equal(grad.nonzero()[:, 2:], peaks[:, 2:], "where the gradient goes")
    assert set(grad[grad != 0].tolist()) == {0.5}


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
