"""Eq. 1-3 of the oracle against cases worked out by hand."""

import subprocess
import sys

import numpy as np
import pytest

from prm import InputError
from prm.reference import peak_stimulation as ps

# Two separate maxima of window 3: 9 at (0, 0) and 7 at (2, 2). Sorted: 0 1 2 3 4 5 6 7 9, lower median 4, mean 37 / 9.
TWO_PEAKS = np.array([[9.0, 1.0, 2.0], [3.0, 0.0, 4.0], [5.0, 6.0, 7.0]])[None, None]


def positions(result):
    return [tuple(row[2:]) for row in result.peaks.tolist()]


def test_two_peaks_scores_kernel_and_rows():
    result = ps.forward(TWO_PEAKS)
    assert result.peaks.dtype == np.int64
    assert result.peaks.tolist() == [[0, 0, 0, 0], [0, 0, 2, 2]]
    assert result.scores.tolist() == [[8.0]]  # (9 + 7) / 2
    assert result.G[0, 0].tolist() == [[1, 0, 0], [0, 0, 0], [0, 0, 1]]


def test_gradient_has_the_factor_one_over_the_number_of_peaks():
    result = ps.forward(TWO_PEAKS)
    # dL/ds = 3 over N = 2 peaks: 1.5 each
    assert ps.backward([[3.0]], result)[0, 0].tolist() == [[1.5, 0, 0], [0, 0, 0], [0, 0, 1.5]]


@pytest.mark.parametrize(
    ("threshold", "expected"),
    [
        (None, [(0, 0), (2, 2)]),
        ("median", [(0, 0), (2, 2)]),  # both >= 4
        ("mean", [(0, 0), (2, 2)]),  # both >= 37 / 9
        ("max", [(0, 0)]),  # only 9 >= 9
        (7.0, [(0, 0), (2, 2)]),  # >= , not >
        (7.5, [(0, 0)]),
        (9.5, [(0, 0)]),  # none passes: the first maximum
        (np.inf, [(0, 0)]),
    ],
)
def test_every_kind_of_threshold(threshold, expected):
    assert positions(ps.forward(TWO_PEAKS, threshold=threshold)) == expected


def test_mean_and_median_are_different_thresholds():
    # peaks 10, 2, 1 at columns 0, 2, 4; sorted 0 0 1 2 10: lower median 1, mean 13 / 5 = 2.6
    row = np.array([10.0, 0.0, 2.0, 0.0, 1.0]).reshape(1, 1, 1, 5)
    assert positions(ps.forward(row, threshold="median")) == [(0, 0), (0, 2), (0, 4)]
    assert positions(ps.forward(row, threshold="mean")) == [(0, 0)]


def test_the_mean_is_rounded_to_the_dtype_in_which_maps_are_compared():
    # The sum 1.1250000125 over 9 is 0.125000001389, a little above the peak 0.125; in float32 it is 0.125 itself.
    row = np.zeros((1, 1, 1, 9))
    row[..., 0], row[..., 4], row[..., 8] = 1, 0.125, 0.125e-7
    for dtype, score in ((np.float32, 0.5625), (np.float64, 1.0)):
        assert ps.forward(row.astype(dtype), threshold="mean").scores.item() == score
    half = row.astype(np.float16)  # 0.125e-7 is 0 in it: the mean is 0.125 exactly
    assert ps.forward(half, threshold="mean").scores.item() == 0.5625


def test_median_of_an_even_count_is_the_lower_one():
    # sorted 0 1 2 4: index (4 - 1) // 2 = 1 holds 1; the mean of the middle two would be 1.5
    assert ps.threshold_value(np.array([4.0, 0.0, 1.0, 2.0]), "median") == 1.0
    # sorted 0 1 1.5 4, so 1: the peak 1 at column 3 stays; the mean of the middle two, 1.25, would drop it
    row = np.array([4.0, 1.5, 0.0, 1.0]).reshape(1, 1, 1, 4)
    assert positions(ps.forward(row)) == [(0, 0), (0, 3)]


def test_fallback_is_one_peak_and_a_finite_score_and_gradient():
    result = ps.forward(-TWO_PEAKS, threshold=1.0)  # maximum of the negated map is 0 at (1, 1)
    assert positions(result) == [(1, 1)]
    assert result.scores.tolist() == [[0.0]]
    assert ps.backward([[2.0]], result)[0, 0, 1, 1] == 2.0


def test_constant_map_has_one_peak_in_its_first_corner():
    for value in (-3.0, 0.0, 0.1):
        for threshold in ("median", "mean", "max", None):
            result = ps.forward(np.full((1, 1, 4, 5), value), threshold=threshold)
            assert positions(result) == [(0, 0)]
            assert result.scores.tolist() == [[value]]


def test_a_tie_goes_to_the_first_position_in_the_window():
    # the equal neighbour of (0, 1) and of (1, 0) comes earlier or later: only (0, 1) is a peak; (2, 3) is out of reach
    m = np.array([[0.0, 5, 0, 0], [5, 0, 0, 0], [0, 0, 0, 5]])[None, None]
    assert positions(ps.forward(m)) == [(0, 1), (2, 3)]


def test_plateau_keeps_positions_without_an_earlier_equal_neighbour_only():
    # a row of five equal values: every one but the first has an equal neighbour before it
    assert positions(ps.forward(np.ones((1, 1, 1, 5)))) == [(0, 0)]


def test_window_five_joins_what_window_three_separates():
    row = np.array([1.0, 0.0, 3.0, 0.0, 2.0]).reshape(1, 1, 1, 5)
    assert positions(ps.forward(row, window=3)) == [(0, 0), (0, 2), (0, 4)]
    assert positions(ps.forward(row, window=5)) == [(0, 2)]
    assert positions(ps.forward(row.reshape(1, 1, 5, 1), window=5)) == [(2, 0)]


def test_negative_maps_have_peaks_at_the_border():
    # all negative: a border padded by zeros would hide them
    assert positions(ps.forward(np.array([[-1.0, -3.0], [-2.0, -4.0]])[None, None])) == [(0, 0)]


def test_enlargement_by_two_by_hand():
    # H = 2 -> 4: source row i * 1 / 3
    assert ps.enlarge([[0.0], [3.0]], 2).tolist() == [[0.0, 0.0], [1.0, 1.0], [2.0, 2.0], [3.0, 3.0]]
    # W = 3 -> 6: source column 2 j / 5 = 0, .4, .8, 1.2, 1.6, 2 of (0, 5, 0): 0 2 4, 5 - .2 * 5 = 4, 2, 0
    np.testing.assert_allclose(ps.enlarge([[0.0, 5.0, 0.0]], 2)[0], [0, 2, 4, 4, 2, 0], rtol=0, atol=1e-15)
    assert ps.enlarge([[2.0, 4.0]], 1).tolist() == [[2.0, 4.0]]


def test_enlargement_keeps_a_constant_exactly():
    assert (ps.enlarge(np.full((3, 5), 0.1), 8) == 0.1).all()


def test_peak_on_the_enlarged_map_and_its_gradient():
    # columns (0, 5, 0) -> (0, 2, 4, 4, 2, 0) to rounding; a slight slope, (0, 5, 1): column 3 is 5 - .2 * 4 = 4.2
    row = np.array([0.0, 5.0, 1.0]).reshape(1, 1, 1, 3)
    result = ps.forward(row, upsample=2)
    # H = 1 -> two equal rows, the first holds the peak
    assert result.peaks.tolist() == [[0, 0, 0, 3]]
    assert result.G.shape == (1, 1, 2, 6)
    assert result.scores[0, 0] == pytest.approx(4.2, abs=1e-14)
    # dL/ds = 10 at source column 6 / 5: 0.8 * 10 to column 1, 0.2 * 10 to column 2
    np.testing.assert_allclose(ps.backward([[10.0]], result), [[[[0.0, 8.0, 2.0]]]], rtol=0, atol=1e-14)


def test_gradient_through_the_enlargement_over_rows():
    # column (0, 3) -> rows 0 1 2 3 of the one column doubled: peak (3, 0) is source row 1 alone
    result = ps.forward(np.array([0.0, 3.0]).reshape(1, 1, 2, 1), upsample=2)
    assert positions(result) == [(3, 0)]
    assert ps.backward([[6.0]], result)[0, 0].tolist() == [[0.0], [6.0]]
    # and the transpose itself: row 1 of four is 2/3 of row 0, 1/3 of row 1
    D = np.zeros((4, 2))
    D[1, 0] = 3.0
    np.testing.assert_allclose(ps.enlarge_transposed(D, 2, (2, 1)), [[2.0], [1.0]], atol=1e-15)


def test_gaussian_kernel_is_cut_off_at_the_border_and_normalised():
    # one peak in the corner of (2, 1, 0): weights 1, e^-1/2, e^-2 with sigma 1
    a, b = 0.6065306597126334, 0.1353352832366127
    result = ps.forward(np.array([2.0, 1.0, 0.0]).reshape(1, 1, 1, 3), f=("gaussian", 1.0))
    np.testing.assert_allclose(result.G[0, 0, 0], [1.0, a, b], rtol=1e-15)
    # (2 + 1 * 0.6065306597) / 1.7418659429 = 1.4964013
    assert result.scores[0, 0] == pytest.approx(2.6065306597126334 / 1.7418659429492461, rel=1e-14)
    np.testing.assert_allclose(
        ps.backward([[1.0]], result)[0, 0, 0], [0.574096993, 0.348207428, 0.077695579], rtol=0, atol=1e-9
    )


def test_gaussians_of_two_peaks_add_up():
    # peaks at columns 0 and 2, distance 2: G = 1 + e^-2, 2 e^-1/2, 1 + e^-2
    result = ps.forward(np.array([2.0, 0.0, 2.0]).reshape(1, 1, 1, 3), f=("gaussian", 1.0))
    np.testing.assert_allclose(result.G[0, 0, 0], [1.1353352832366127, 1.2130613194252668, 1.1353352832366127])


def test_any_sampling_function_with_rows_before_columns():
    # f = 1 at the peak, 2 one row below it, 0 elsewhere
    def f(dx, dy):
        return 1.0 * ((dx == 0) & (dy == 0)) + 2.0 * ((dx == 1) & (dy == 0))

    result = ps.forward(np.array([[6.0, 0.0], [3.0, 1.0]])[None, None], f=f)
    assert result.G[0, 0].tolist() == [[1, 0], [2, 0]]
    assert result.scores.tolist() == [[4.0]]  # (6 + 2 * 3) / 3


def test_images_and_classes_are_apart_and_rows_in_order():
    M = np.zeros((2, 2, 1, 3))
    M[0, 0, 0] = [1, 0, 2]
    M[0, 1, 0] = [0, 4, 0]
    M[1, 0, 0] = [0, 1, 5]
    M[1, 1, 0] = [6, 0, 6]
    result = ps.forward(M)
    expected = [[0, 0, 0, 0], [0, 0, 0, 2], [0, 1, 0, 1], [1, 0, 0, 2], [1, 1, 0, 0], [1, 1, 0, 2]]
    assert result.peaks.tolist() == expected
    assert result.scores.tolist() == [[1.5, 4.0], [5.0, 6.0]]
    grad = ps.backward([[2.0, 1.0], [1.0, 0.0]], result)
    assert grad[:, :, 0].tolist() == [[[1, 0, 1], [0, 1, 0]], [[0, 0, 1], [0, 0, 0]]]


def test_number_is_rounded_to_the_dtype_of_the_map():
    # 0.1 in float32 is 0.100000001490116, in float64 0.1: a float32 map of 0.1 passes its own threshold in either
    # direction only because the number is rounded first; 0.3 in float16 is 0.30004883
    row = np.array([1.0, 0.0, 0.3], np.float16).reshape(1, 1, 1, 3)
    assert positions(ps.forward(row, threshold=0.30004)) == [(0, 0), (0, 2)]
    assert positions(ps.forward(row.astype(np.float64), threshold=0.3001)) == [(0, 0)]
    down = np.array([1.0, 0.0, 0.7], np.float32).reshape(1, 1, 1, 3)  # 0.7 in float32 is 0.69999999
    assert positions(ps.forward(down, threshold=0.7)) == [(0, 0), (0, 2)]


def test_non_finite_map_is_named():
    M = np.zeros((2, 3, 2, 2))
    M[1, 2, 0, 1] = np.nan
    with pytest.raises(InputError, match="image 1, class 2"):
        ps.forward(M)
    M[1, 2, 0, 1] = np.inf
    with pytest.raises(InputError, match="image 1, class 2"):
        ps.forward(M)


@pytest.mark.parametrize(
    "bad",
    [
        {"window": 1},
        {"window": 4},
        {"upsample": 0},
        {"threshold": "mode"},
        {"threshold": np.nan},
        {"threshold": 1j},
        {"threshold": b"2"},
        {"threshold": np.True_},
        {"f": "delta"},
        {"f": ("gaussian", 0.0)},
        {"f": lambda dx, dy: 0.0 * dx * dy},
        {"f": lambda dx, dy: 1.0 - 2.0 * (dx + dy > 0)},
    ],
)
def test_bad_arguments_are_refused(bad):
    with pytest.raises(InputError):
        ps.forward(np.zeros((1, 1, 3, 3)), **bad)


def test_bad_shapes_are_refused():
    for shape in ((3, 3), (1, 1, 0, 3)):
        with pytest.raises(InputError):
            ps.forward(np.zeros(shape))
    with pytest.raises(InputError):
        ps.backward(np.zeros((1, 2)), ps.forward(TWO_PEAKS))


def test_no_images_no_peaks():
    result = ps.forward(np.zeros((0, 3, 2, 2)))
    assert result.peaks.shape == (0, 4)
    assert result.scores.shape == (0, 3)


def test_the_oracle_does_not_import_torch():
    code = "import sys, prm, prm.reference; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
