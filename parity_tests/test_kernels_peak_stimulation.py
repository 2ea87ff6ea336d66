"""The kernels of peak pooling, in every configuration: peaks exactly as the oracle's, scores and gradient to tolerance.

They run on a GPU (--device cuda), or, where TRITON_INTERPRET=1, step by step on the CPU.
"""

import numpy as np
import pytest
import torch

from prm.accelerated import PeakStimulation, peak_stimulation
from prm.accelerated.peak_stimulation import pooled, pooled_backward
from prm.parity_tests.kernel_lane import assert_row, launched, launching
from prm.parity_tests.test_peak_stimulation import arguments, expected, near_ties
from prm.parity_tests.tolerances import POOLING, POOLING_GRADIENT, as_array, assert_close, assert_equal
from prm.reference import peak_stimulation as oracle

pytestmark = pytest.mark.usefixtures("where_kernels_run")

FORWARD = ("find_peaks", "list_peaks")
KERNELS = {"peak_stimulation.forward": {*FORWARD}, "peak_stimulation.backward": {"scatter_shares", "spread_shares"}}


def assert_agrees(M, window=3, threshold="median", upsample=1):
    """Peaks, scores and gradient against the oracle, and that the kernels made them."""
    wanted = expected(M, window, threshold, upsample)
    M = M.detach().requires_grad_()
    with launched(*FORWARD):
        scores, peaks = peak_stimulation(M, window, threshold, upsample)
    weights = torch.linspace(-2, 3, scores.numel(), device=M.device).reshape(scores.shape)
    with launched("scatter_shares" if upsample == 1 else "spread_shares"):
        (grad,) = torch.autograd.grad(scores, M, weights)
    assert scores.dtype == torch.float32 and grad.dtype == M.dtype
    assert_equal(peaks, wanted.peaks, "peaks")
    assert_close(scores, wanted.scores, M.dtype, "scores", POOLING)
    assert_close(grad, oracle.backward(as_array(weights), wanted), M.dtype, "gradient", POOLING_GRADIENT)


def fine_maps(shape, seed=0):
    """(N, C, H, W) float32 no two of whose values on one map are equal, in steps of 1/8."""
    rng = np.random.default_rng(seed)
    N, C, H, W = shape
    steps = np.stack([rng.permutation(H * W) for _ in range(N * C)]) - H * W // 2
    return torch.from_numpy(steps.reshape(shape) / 8).float()


# ---- against the oracle


@pytest.mark.parametrize(
    ("name", "dtype", "choice"),
    [("peak_stimulation.forward", "float32", "small"), ("peak_stimulation.forward", "bfloat16", "small"),
     ("peak_stimulation.forward", "float16", "default"), ("peak_stimulation.backward", "float32", "small"),
     ("peak_stimulation.backward", "float16", "default")],
)  # fmt: skip
def test_rows_of_the_conformance_table(name, dtype, choice, request):
    with launching.using(choice):
        assert_row(request, name, dtype, KERNELS[name], 8)


@pytest.mark.parametrize(
    ("size", "threshold", "dtype"),
    [((53, 40), "mean", torch.float32), ((53, 40), "median", torch.bfloat16), ((53, 40), "median", torch.float16),
     ((1, 40), "median", torch.float32), ((40, 1), "max", torch.float32)],
)  # fmt: skip
def test_several_blocks(size, threshold, dtype, configuration, device):
    M = fine_maps((1, 1, *size)).remainder(32).sub(16)
    assert_agrees(M.to(device, dtype), 7 if 1 in size else 3, threshold)


def test_several_blocks_of_peaks(configuration, device):
    M = fine_maps((1, 1, 50, 60))
    assert len(expected(M, 3, None).peaks) > 256
    assert_agrees(M.to(device), 3, None)


def test_several_blocks_and_tiles_of_enlarged_maps(configuration, device):
    # 34 x 66 positions from 17 x 33: more than one block, and two by three tiles of the gradient
    draws = (fine_maps((1, 1, 17, 33), seed) for seed in range(99))
    M = next(M for M in draws if not near_ties(M, 3, None, 2))
    assert len(expected(M, 3, None, 2).peaks) > 32
    assert_agrees(M.to(device), 3, None, 2)


def test_one_map_again_and_again(configuration, device):
    assert_agrees(fine_maps((1, 1, 5, 4)).to(device).expand(2, 2, -1, -1))


def test_no_images_and_no_classes(configuration, device):
    for shape in ((0, 3, 4, 5), (2, 0, 4, 5)):
        for upsample in (1, 2):
            M = torch.zeros(shape, device=device, requires_grad=True)
            scores, peaks, count = torch.ops.prm.peak_stimulation(M, 3, "median", 0.0, upsample)
            assert (scores.shape, peaks.shape, int(count)) == (shape[:2], (0, 4), 0)
            (grad,) = torch.autograd.grad(scores.sum(), M)
            assert grad.shape == shape


@pytest.mark.parametrize("configuration_of_lists", ["default", "small"])
def test_lists_of_many_maps(configuration_of_lists, device):
    # more maps than a block of counts; some without peaks, as those of non-finite maps
    from prm.accelerated.kernels.peak_stimulation import list_peaks

    rng, (N, C, capacity, EW) = np.random.default_rng(0), (20, 15, 70, 33)
    counts = rng.choice([0, 1, 2, 5, 70], N * C, p=[0.2, 0.3, 0.3, 0.15, 0.05]).astype(np.int32)
    slots = rng.integers(0, 2000, (N * C, capacity), dtype=np.int32)
    peaks = torch.full((int(counts.sum()) + 1, 4), -7, device=device)
    total = torch.empty((), dtype=torch.int32, device=device)
    given_counts, given_slots = torch.from_numpy(counts).to(device), torch.from_numpy(slots).to(device)
    blocks = launching.CONFIGURATIONS["list_peaks"][configuration_of_lists]
    launching.launch(list_peaks, (N * C,), given_counts, given_slots, peaks, total, N * C, C, EW, capacity, **blocks)
    wanted = [(m // C, m % C, p // EW, p % EW) for m in range(N * C) for p in slots[m, : counts[m]]]
    assert_equal(peaks[:-1], np.array(wanted), "peaks")
    assert peaks[-1].tolist() == [-7] * 4
    assert int(total) == counts.sum()


# ---- values that are not finite


# NumPy, which the interpreter computes with, warns of what is meant here.
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
@pytest.mark.parametrize(("bad", "kind"), [("nan", "median"), ("inf", "mean"), ("-inf", "none"), ("inf", "constant")])
@pytest.mark.parametrize("upsample", [1, 2])
def test_a_non_finite_map_spoils_itself_alone(bad, kind, upsample, configuration, device):
    M = fine_maps((3, 1, 4, 5), 2)
    M[1, 0, 2, 3] = float(bad)
    scores, peaks, count = pooled(M, 3, kind, 0.5, upsample)
    given = M.to(device, copy=True).requires_grad_()
    found, rows, number = torch.ops.prm.peak_stimulation(given, 3, kind, 0.5, upsample)
    assert scores.isnan().tolist() == [[False], [True], [False]]
    assert_close(found, scores, torch.float32, "scores", POOLING)
    assert_equal(rows[: int(number)], peaks[: int(count)], "peaks")
    grads = torch.tensor([[1.0], [2.0], [-3.0]])
    (grad,) = torch.autograd.grad(found, given, grads.to(device))
    wanted = pooled_backward(grads, peaks, count, 4, 5, upsample)
    assert wanted[1].isnan().all()
    assert_close(grad, wanted, torch.float32, "gradient", POOLING_GRADIENT)


@pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered:RuntimeWarning")
def test_an_interpolation_that_overflows_is_not_finite(configuration, device):
    M = torch.zeros(1, 2, 3, 3)
    M[0, 0, 0, 0], M[0, 0, 0, 1] = 3e38, -3e38
    scores, _, count = torch.ops.prm.peak_stimulation(M.to(device), 3, "median", 0.0, 2)
    assert scores.isnan().tolist() == pooled(M, 3, "median", 0.0, 2)[0].isnan().tolist() == [[True, False]]
    assert int(count) == 1


# ---- which code runs


def test_float64_and_torch_launch_nothing(device):
    for dtype, choice in ((torch.float64, "default"), (torch.float32, "torch")):
        for upsample in (1, 2):
            M = fine_maps((1, 2, 4, 5)).to(device, dtype).requires_grad_()
            with launching.using(choice), launched():
                scores = PeakStimulation(upsample=upsample)(M)
                (grad,) = torch.autograd.grad(scores.sum(), M)
            assert scores.dtype == grad.dtype == dtype


@pytest.mark.parametrize("upsample", [1, 3])
def test_two_runs_give_the_same_bits(upsample, configuration, device):
    M = torch.randn(1, 2, 5, 6, generator=torch.Generator().manual_seed(0)).to(device).requires_grad_()
    runs = []
    for _ in range(2):
        scores, peaks = peak_stimulation(M, 3, "mean", upsample)
        (grad,) = torch.autograd.grad(scores, M, torch.full_like(scores, 1 / 3))
        runs.append((scores, peaks, grad))
    assert all(torch.equal(one, other) for one, other in zip(*runs))


@pytest.fixture
def filled_memory():
    """What no kernel writes has one value: rows beyond the count may be compared, as opcheck does."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize(("dtype", "kind", "upsample"), [(torch.float32, "median", 1), (torch.bfloat16, "constant", 2)])
def test_the_operators_are_proper(dtype, kind, upsample, filled_memory, device):
    M = fine_maps((1, 2, 4, 5)).to(device, dtype).requires_grad_()
    torch.library.opcheck(torch.ops.prm.peak_stimulation.default, (M, 3, kind, 0.5, upsample))
    scores, peaks, count = torch.ops.prm.peak_stimulation(M.detach(), 3, kind, 0.5, upsample)
    gradient = torch.ops.prm.peak_stimulation_backward.default
    torch.library.opcheck(gradient, (torch.ones_like(scores), peaks, count, 4, 5, upsample))


# ---- what is refused


@pytest.mark.parametrize(
    ("operator_arguments", "message"),
    [
        ((torch.zeros(3, 4, 4), *arguments("median", 1)), r"M must be .* \(any, any, any, any\)"),
        ((torch.zeros(1, 1, 4, 4, dtype=torch.int64), *arguments("median", 1)), "M must be float32 or"),
        ((torch.zeros(1, 1, 4, 0), *arguments("median", 1)), "maps of 4 x 0"),
        ((torch.zeros(1, 1, 4, 4), *arguments("median", 0)), "enlarged by 0"),
        ((torch.zeros(1, 1, 1, 1).expand(1, 1, 2**16, 2**16), *arguments("median", 1)), "cannot be pooled"),
        ((torch.zeros(1, 1, 1, 1).expand(4, 2**15, 256, 256), *arguments("median", 1)), "more peaks than"),
        ((torch.zeros(1, 1, 4, 4), 4, "median", 0.0, 1), "window odd"),
        ((torch.zeros(1, 1, 4, 4), 3, "medium", 0.0, 1), "kind must be one of"),
    ],
)
def test_bad_maps_and_options(operator_arguments, message, device):
    M, *options = operator_arguments
    if M.dim() == 4:  # maps of one value, expanded, stay so on the device
        M = torch.zeros_like(M[:1, :1, :1, :1], device=device).expand(M.shape)
    with pytest.raises(ValueError, match=message) as caught:
        torch.ops.prm.peak_stimulation(M.to(device), *options)
    assert "\n" not in str(caught.value) and str(caught.value).startswith("prm::peak_stimulation: ")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"grad_scores": torch.zeros(2, 3, 1)}, r"grad_scores must be .* \(any, any\)"),
        ({"grad_scores": torch.zeros(2, 3, dtype=torch.float16)}, "grad_scores must be float32 or float64"),
        ({"peaks": torch.zeros(5, 3, dtype=torch.int64)}, r"peaks must be int64 \(any, 4\)"),
        ({"peaks": torch.zeros(5, 4, dtype=torch.int32)}, r"peaks must be int64"),
        ({"count": torch.zeros(1, dtype=torch.int32)}, r"count must be int32 \(\)"),
        ({"height": 0}, "maps of 0 x 5"),
        ({"upsample": 2**14}, "enlarged by 16384"),
    ],
)
def test_bad_arguments_of_the_gradient(changed, message, device):
    named = {"grad_scores": torch.zeros(2, 3), "peaks": torch.zeros(6, 4, dtype=torch.int64),
             "count": torch.tensor(6, dtype=torch.int32), "height": 4, "width": 5, "upsample": 1}  # fmt: skip
    named |= changed
    named = {name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in named.items()}
    with pytest.raises(ValueError, match=message) as caught:
        torch.ops.prm.peak_stimulation_backward(*named.values())
    assert "\n" not in str(caught.value) and str(caught.value).startswith("prm::peak_stimulation_backward: ")
