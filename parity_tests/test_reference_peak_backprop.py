"""Eq. 4-5 of the oracle, layer kind by layer kind, against cases worked out by hand. Arrays are (C, H, W)."""

import numpy as np
import pytest

from prm.reference import peak_backprop as eq


def near(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-14)


def kernel(*rows):
    """One output channel, one input channel."""
    return np.array(rows, float)[None, None]


def image(*rows):
    return np.array(rows, float)[None]


# ---- start, shift, the map


def test_start_is_one_at_the_peak():
    P = eq.start((1, 0, 2), (2, 2, 3))
    assert P[1].tolist() == [[0, 0, 1], [0, 0, 0]]
    assert P.sum() == 1


def test_start_on_an_enlarged_map_spreads_bilinearly():
    # 2 x 3 enlarged by 2: row 1 of 4 is source 1/3; column 3 of 6 is source 2 * 3 / 5 = 1.2
    P = eq.start((0, 1, 3), (1, 2, 3), upsample=2)
    near(P[0], [[0, 2 / 3 * 0.8, 2 / 3 * 0.2], [0, 1 / 3 * 0.8, 1 / 3 * 0.2]])
    near(eq.start((0, 3, 5), (1, 2, 3), upsample=2)[0], [[0, 0, 0], [0, 0, 1]])


def test_start_on_an_enlarged_map_of_one_row():
    near(eq.start((0, 1, 1), (1, 1, 2), upsample=2)[0], [[2 / 3, 1 / 3]])


def test_start_outside_the_map_is_refused():
    for peak in ((2, 0, 0), (0, 2, 0), (0, 0, -1)):
        with pytest.raises(ValueError, match="outside"):
            eq.start(peak, (2, 2, 2))


def test_shift_lifts_negative_input_only():
    assert eq.shift([[[1.0, 3.0]]]).tolist() == [[[1.0, 3.0]]]  # not 0, 2
    assert eq.shift([[[-2.0, 3.0]], [[0.0, 1.0]]]).tolist() == [[[0.0, 5.0]], [[2.0, 3.0]]]  # one minimum, all channels


def test_map_sums_over_channels_to_one_or_is_empty():
    R, empty = eq.peak_response_map(np.array([[[0.1, 0.2]], [[0.1, 0.0]]]))
    near(R, [[0.5, 0.5]])
    assert not empty
    R, empty = eq.peak_response_map(np.zeros((3, 2, 2)))
    assert empty
    assert R.tolist() == [[0, 0], [0, 0]]


# ---- convolution


def test_convolution_by_hand():
    # products U W+ = 1*1, 2*0 (W = -5), 3*2, 4*1: Z = 1 + 6 + 4 = 11
    P_U = eq.conv2d(image([22]), image([1, 2], [3, 4]), kernel([1, -5], [2, 1]))
    near(P_U[0], [[2, 0], [12, 8]])  # 22 * (1, 0, 6, 4) / 11


def test_overlapping_windows_add_up():
    # windows (1, 3) and (3, 1), W = (1, 1), P = (8, 4): 8 (1, 3) / 4 and 4 (3, 1) / 4
    near(eq.conv2d(image([8, 4]), image([1, 3, 1]), kernel([1, 1]))[0], [[2, 6 + 3, 1]])


def test_the_kernel_is_not_flipped():
    near(eq.conv2d(image([1, 0]), image([1, 1, 1]), kernel([3, 1]))[0], [[0.75, 0.25, 0]])


def test_sums_run_over_input_and_output_channels():
    # U = (1, 2) at one position; W_0 = (1, 1): Z = 3; W_1 = (3, -1): Z = 3
    U, W = np.array([[[1.0]], [[2.0]]]), np.array([[1.0, 1.0], [3.0, -1.0]]).reshape(2, 2, 1, 1)
    P = np.array([[[3.0]], [[6.0]]])
    near(eq.conv2d(P, U, W), [[[1 + 6]], [[2 + 0]]])


def test_padding_receives_nothing_and_its_share_goes_inside():
    # output 0 sees (pad, 1), output 2 sees (2, pad): all of their P goes to the one real position
    near(eq.conv2d(image([1, 3, 5]), image([1, 2]), kernel([1, 1]), padding=(0, 1))[0], [[1 + 1, 2 + 5]])


def test_padding_by_sides():
    # left 1 only: outputs see (pad, 1), (1, 2)
    near(eq.conv2d(image([1, 3]), image([1, 2]), kernel([1, 1]), padding=(1, 0, 0, 0))[0], [[1 + 1, 2]])
    # bottom 1 only, on a column
    near(eq.conv2d(image([3], [5]), image([1], [2]), kernel([1], [1]), padding=(0, 0, 0, 1))[0], [[1], [2 + 5]])


def test_stride():
    # windows at columns 0, 2: (1, 1) and (1, 3)
    near(eq.conv2d(image([2, 4]), image([1, 1, 1, 3, 9]), kernel([1, 1]), stride=2)[0], [[1, 1, 1, 3, 0]])
    # of rows only
    near(eq.conv2d(image([2], [4]), image([1], [7], [1]), kernel([1]), stride=(2, 1))[0], [[2], [0], [4]])


def test_dilation():
    # the one window sees columns 0 and 2: 1 and 3 of 4
    near(eq.conv2d(image([8]), image([1, 100, 3]), kernel([1, 1]), dilation=2)[0], [[2, 0, 6]])


def test_groups():
    # two groups of one channel each: no mass crosses
    U, W = np.array([[[1.0, 1.0]], [[1.0, 3.0]]]), np.array([[1.0, 3.0], [1.0, 1.0]]).reshape(2, 1, 1, 2)
    near(eq.conv2d(np.array([[[4.0]], [[8.0]]]), U, W, groups=2), [[[1, 3]], [[2, 6]]])


def test_input_below_zero_is_shifted_in_the_first_layer():
    # U_hat = (-1, 1, 3) + 1 = (0, 2, 4): 6 * (0, 2, 4) / 6
    near(eq.conv2d(image([6]), image([-1, 1, 3]), kernel([1, 1, 1]))[0], [[0, 2, 4]])
    # padding stays 0 and is not lifted: window (pad, 0 -> 1) with W = (1, 1)
    near(eq.conv2d(image([6, 0]), image([0, -1]), kernel([1, 1]), padding=(1, 0, 0, 0))[0], [[6, 0]])


def test_signed_rule():
    # U+ = (0, 4), U- = (-1, 0), W+ = (0, 1), W- = (-2, 0): Z = 4 + 2 = 6; shares 2 / 6 and 4 / 6
    near(eq.conv2d(image([6]), image([-1, 4]), kernel([-2, 1]), signed=True)[0], [[2, 4]])
    # negative input under a positive weight takes nothing, all goes to the other
    near(eq.conv2d(image([6]), image([-1, 4]), kernel([2, 1]), signed=True)[0], [[0, 6]])
    # the same as the plain rule for U >= 0: 6 * (1, 0) / 1
    near(eq.conv2d(image([6]), image([1, 4]), kernel([1, -1]), signed=True)[0], [[6, 0]])


def test_leak_where_nothing_excites():
    # window 0 sees (0, 0): its 5 leak; window 1 sees (0, 2): its 3 arrive
    P_U, leaked = eq.conv2d(image([5, 3]), image([0, 0, 2]), kernel([1, 1]), return_leak=True)
    near(P_U[0], [[0, 0, 3]])
    assert leaked == 5
    # only negative weights
    P_U, leaked = eq.conv2d(image([7]), image([1, 1]), kernel([-1, -1]), return_leak=True)
    assert (P_U.sum(), leaked) == (0, 7)


def test_tiny_is_relative_to_the_largest_input_and_the_weights():
    # Z of window 0 is 1e-8 <= 1e-7 * 1 * 1: leaks; at 1e-6 it does not
    leaks = eq.conv2d(image([1, 0]), image([1e-8, 1]), kernel([1]), return_leak=True)
    flows = eq.conv2d(image([1, 0]), image([1e-6, 1]), kernel([1]), return_leak=True)
    assert (leaks[0].sum(), leaks[1]) == (0, 1)
    assert (flows[0].sum(), flows[1]) == (1, 0)
    # the scale of U and W plays no part
    small = eq.conv2d(image([1, 0]), image([1e-26, 1e-20]), kernel([1e-20]), return_leak=True)
    near(small[0][0], [[1, 0]])
    assert small[1] == 0


def test_mass_of_a_convolution_arrives_or_leaks():
    rng = np.random.default_rng(0)
    U, W, P = np.maximum(rng.normal(size=(4, 6, 5)) - 1, 0), rng.normal(size=(6, 2, 3, 3)), rng.random((6, 3, 3))
    U[:, :3] = 0
    P_U, leaked = eq.conv2d(P, U, W, stride=2, padding=1, groups=2, return_leak=True)
    assert 0 < leaked < P.sum()
    assert P_U.sum() + leaked == pytest.approx(P.sum(), rel=1e-13)
    assert (P_U >= 0).all()


def test_p_of_another_shape_is_refused():
    with pytest.raises(ValueError, match="shape"):
        eq.conv2d(image([1, 1]), image([1, 1]), kernel([1, 1]))


def test_linear_by_hand():
    # W+ = (1, 0, 2), (0, 0, 1) on U = (1, 5, 2): Z = 5, 2; P = 10, 4: (2, 0, 8) + (0, 0, 4)
    W = np.array([[1.0, -3.0, 2.0], [-1.0, 0.0, 1.0]])
    near(eq.linear([10.0, 4.0], [1.0, 5.0, 2.0], W), [2, 0, 12])
    P_U, leaked = eq.linear([10.0, 4.0], [1.0, 5.0, 0.0], W, return_leak=True)
    near(P_U, [10, 0, 0])
    assert leaked == 4
    near(eq.linear([3.0], [-1.0, 0.0, 1.0], np.ones((1, 3))), [0, 1, 2])  # shifted


# ---- batch norm


def test_batch_norm_is_folded_before_the_positive_part():
    # gamma / sigma = -2 / sqrt(3 + 1) = -1: W' = (-1, 1); all of P goes to the second input, not the first
    W, bias = eq.fold_batch_norm(kernel([1, -1]), [3.0], gamma=[-2.0], beta=[5.0], mean=[1.0], var=[3.0], eps=1.0)
    assert W.tolist() == [[[[-1, 1]]]]
    assert bias.tolist() == [3.0]  # (3 - 1) * -1 + 5
    near(eq.conv2d(image([4]), image([1, 1]), W)[0], [[0, 4]])


def test_batch_norm_alone_changes_nothing():
    assert eq.batch_norm([[[1.0, 2.0]]]).tolist() == [[[1.0, 2.0]]]


def test_other_norms_change_nothing():
    assert eq.normalization([[[1.0, 2.0]]]).tolist() == [[[1.0, 2.0]]]


def test_a_norm_is_linear_and_its_positive_part_the_diagonal():
    # why: layer norm of 3 elements with sigma held at 2, gamma = (4, 2, 6): gamma_c / sigma (delta_cd - 1/3)
    W = np.array([4.0, 2.0, 6.0])[:, None] / 2 * (np.eye(3) - 1 / 3)
    P = np.array([0.5, 0.2, 0.3])
    near(eq.linear(P, [3.0, 1.0, 2.0], W), eq.normalization(P))


# ---- pooling


def test_max_pool_first_maximum_and_shared_argmax():
    # windows (2, 5), (5, 5), (5, 0): argmax column 1, 1 (the first of two), 2
    near(eq.max_pool2d(image([1, 2, 4]), image([2, 5, 5, 0]), (1, 2), stride=1)[0], [[0, 3, 4, 0]])


def test_max_pool_ties_are_row_major_also_at_zero():
    near(eq.max_pool2d(image([3]), image([0, 0], [0, 0]), 2)[0], [[3, 0], [0, 0]])
    near(eq.max_pool2d(image([3]), image([0, 4], [4, 0]), 2)[0], [[0, 3], [0, 0]])


def test_max_pool_padding_is_minus_infinity():
    near(eq.max_pool2d(image([1, 2]), image([-3, -1, -2]), (1, 3), stride=2, padding=(0, 1))[0], [[0, 3, 0]])


def test_max_pool_dilation_and_ceil_mode():
    near(eq.max_pool2d(image([6]), image([1, 9, 2]), (1, 2), stride=1, dilation=(1, 2))[0], [[0, 0, 6]])
    near(eq.max_pool2d(image([1, 2]), image([5, 3, 4]), (1, 2), stride=2, ceil_mode=True)[0], [[1, 0, 2]])
    with pytest.raises(ValueError, match="shape"):
        eq.max_pool2d(image([1, 2]), image([5, 3, 4]), (1, 2), stride=2)


def test_adaptive_max_pool_bins_overlap():
    # 3 -> 2: bins 0:2 and 1:3
    near(eq.adaptive_max_pool2d(image([1, 2]), image([4, 5, 5]))[0], [[0, 3, 0]])


def test_avg_pool_splits_in_proportion_to_the_input():
    near(eq.avg_pool2d(image([8]), image([1, 3], [0, 4]), 2)[0], [[1, 3], [0, 4]])
    # shift: (-1, 1) -> (0, 2)
    near(eq.avg_pool2d(image([8]), image([-1, 1]), (1, 2))[0], [[0, 8]])
    # per channel
    U = np.array([[[1.0, 1.0]], [[0.0, 2.0]]])
    near(eq.avg_pool2d(np.array([[[2.0]], [[4.0]]]), U, (1, 2)), [[[1, 1]], [[0, 4]]])


@pytest.mark.parametrize("options", [{}, {"count_include_pad": False}, {"divisor_override": 7}])
def test_avg_pool_divisor_does_not_matter(options):
    # windows (pad, 1), (2, 2), with padding 1 and stride 2
    near(eq.avg_pool2d(image([3, 4]), image([1, 2, 2]), (1, 2), 2, (0, 1), **options)[0], [[3, 2, 2]])


def test_avg_pool_ceil_mode_and_leak():
    # windows (0, 0) leaks its 5, and (2) alone
    P_U, leaked = eq.avg_pool2d(image([5, 3]), image([0, 0, 2]), (1, 2), 2, ceil_mode=True, return_leak=True)
    near(P_U[0], [[0, 0, 3]])
    assert leaked == 5


@pytest.mark.filterwarnings("error")
def test_an_average_of_padding_alone_leaks_without_a_warning():
    # windows (pad), (1), (2), (pad)
    options = {"kernel": 1, "padding": (0, 1), "return_leak": True}
    for divided in ({"count_include_pad": False}, {}, {"count_include_pad": False, "divisor_override": 3}):
        P_U, leaked = eq.avg_pool2d(image([5, 1, 2, 3]), image([1, 2]), **options, **divided)
        near(P_U[0], [[1, 2]])
        near(leaked, 8)


def test_adaptive_avg_pool_and_mean():
    # 3 -> 2: bins (1, 3) and (3, 1)
    near(eq.adaptive_avg_pool2d(image([4, 8]), image([1, 3, 1]))[0], [[1, 3 + 6, 2]])
    near(eq.mean(np.array([8.0]), image([1, 3], [0, 4]))[0], [[1, 3], [0, 4]])
    near(eq.mean(image([4], [8]), image([1, 3], [0, 4]), axes=-1)[0], [[1, 3], [0, 8]])
    near(eq.mean(np.array([4.0, 8.0])[None], image([1, 3], [0, 4]), axes=(2,))[0], [[1, 3], [0, 8]])
    P_U, leaked = eq.mean(np.array([8.0]), image([0, 0]), return_leak=True)
    assert (P_U.sum(), leaked) == (0, 8)


def test_interpolation_nearest():
    # 2 -> 4: both copies go home
    near(eq.interpolate(image([1, 2, 3, 4]), image([5, 7]), "nearest")[0], [[3, 7]])
    # 4 -> 2 by nearest takes columns 0 and 2, by nearest-exact 1 and 3
    near(eq.interpolate(image([1, 2]), image([1, 1, 1, 1]), "nearest")[0], [[1, 0, 2, 0]])
    near(eq.interpolate(image([1, 2]), image([1, 1, 1, 1]), "nearest-exact")[0], [[0, 1, 0, 2]])


def test_interpolation_bilinear():
    # corners aligned, 2 -> 3: weights (1, 0), (.5, .5), (0, 1); U = (1, 3): the middle's Z = 2, shares .25 and .75
    near(eq.interpolate(image([1, 4, 2]), image([1, 3]), "bilinear", align_corners=True)[0], [[1 + 1, 3 + 2]])
    # not aligned, 2 -> 4: columns at 0 (cut), .25, .75, 1 (cut): weights (.75, .25) on (1, 3): .75 of 1.5 = a half
    near(eq.interpolate(image([0, 4, 0, 0]), image([1, 3]), "bilinear")[0], [[2, 2]])
    # a given factor of 4 with 6 columns: column 1 is at 1.5 / 4 - .5 < 0, cut to 0
    near(eq.interpolate(image([0, 4, 0, 0, 0, 0]), image([1, 3]), "bilinear", scale=(1, 4))[0], [[4, 0]])
    # column 3 is at 3.5 / 4 - .5 = .375: Z = .625 * 1 + .375 * 3 = 1.75, shares 5 / 14 and 9 / 14
    near(eq.interpolate(image([0, 0, 0, 14, 0, 0]), image([1, 3]), "bilinear", scale=(1, 4))[0], [[5, 9]])


def test_interpolation_leaks_and_refuses_bicubic():
    P_U, leaked = eq.interpolate(image([1, 2]), image([0, 5]), "nearest", return_leak=True)
    assert (P_U.tolist(), leaked) == ([[[0, 2]]], 1)
    with pytest.raises(NotImplementedError, match="bicubic"):
        eq.interpolate(image([1]), image([1]), "bicubic")


# ---- addition and the rest


def test_addition_splits_by_positive_parts():
    # (1, -2) and (3, 5): 8 as 1 : 3, 6 as 0 : 5
    a, b = eq.add([8.0, 6.0], [[1.0, -2.0], [3.0, 5.0]])
    assert (a.tolist(), b.tolist()) == ([2, 0], [6, 6])


def test_addition_splits_equally_where_nothing_is_positive():
    a, b = eq.add([8.0, 6.0], [[-1.0, 0.0], [-3.0, 0.0]])
    assert (a.tolist(), b.tolist()) == ([4, 3], [4, 3])


def test_addition_constant_takes_no_share():
    a, b = eq.add([8.0, 6.0], [[1.0, -1.0], [3.0, 5.0]], constant=(1,))
    assert (a.tolist(), b.tolist()) == ([8, 6], [0, 0])
    with pytest.raises(ValueError, match="constants"):
        eq.add([1.0], [[1.0]], constant=(0,))


def test_addition_of_a_broadcast_summand():
    # (1, 3) over two columns and (1; 1): column 0 splits 4 as 1 : 1, column 1 splits 8 as 3 : 1
    a, b = eq.add(image([4, 8]), [image([1, 3]), image([1])])
    assert (a.tolist(), b.tolist()) == ([[[2, 6]]], [[[4]]])
    _, vector = eq.add(image([4, 8]), [image([1, 3]), [1.0, 1.0]])
    assert vector.tolist() == [2, 2]


def test_concatenation_and_slices():
    a, b = eq.concatenate(np.array([[[1.0]], [[2.0]], [[3.0]]]), [(1, 1, 1), (2, 1, 1)])
    assert (a.ravel().tolist(), b.ravel().tolist()) == ([1], [2, 3])
    assert eq.slice_axis([2.0, 3.0], (5,), 0, 1, 4, 2).tolist() == [0, 2, 0, 3, 0]
    assert eq.slice_axis(image([7]), (1, 1, 3), -1, 2)[0].tolist() == [[0, 0, 7]]


def test_gate_takes_nothing():
    assert eq.multiply(image([1, 2]), (1, 1, 2)).tolist() == [[[1, 2]]]
    assert eq.multiply(image([1, 2]), (1, 1, 1)).tolist() == [[[3]]]  # broadcast against a full-size gate


def test_a_sum_splits_like_an_addition():
    U = np.array([[[1.0, -1.0]], [[3.0, -2.0]]])
    near(eq.summation([[[4.0, 4.0]]], U, (0,)), [[[1, 2]], [[3, 2]]])  # equally where nothing is positive
    near(eq.summation([4.0, 6.0], U, (1, -1)), [[[4, 0]], [[6, 0]]])


def test_a_pad_gives_back_what_its_copies_hold():
    P = np.arange(1.0, 6.0).reshape(1, 1, 5)
    for mode, expected in [("reflect", [2, 1 + 3 + 5, 4]), ("replicate", [1 + 2, 3, 4 + 5]), ("circular", [7, 3, 5])]:
        near(eq.pad(P, (1, 1, 3), (1, 1, 0, 0), mode), [[expected]])
    P_U, leaked = eq.pad(P, (1, 1, 3), (1, 1, 0, 0), return_leak=True)
    near(P_U, [[[2, 3, 4]]])
    assert leaked == 6


def test_positions_follow_reshape_and_permute():
    P = np.arange(6.0)
    assert eq.flatten(P, (1, 2, 3)).tolist() == [[[0, 1, 2], [3, 4, 5]]]
    # V = U.transpose(1, 2, 0) is (2, 3, 1); back to (1, 2, 3)
    assert eq.permute(P.reshape(2, 3, 1), (1, 2, 0)).tolist() == [[[0, 1, 2], [3, 4, 5]]]
    assert eq.permute(P.reshape(1, 3, 2), (0, -1, -2)).tolist() == [[[0, 2, 4], [1, 3, 5]]]
    assert eq.transpose(P.reshape(1, 3, 2), (1, -1)).tolist() == [[[0, 2, 4], [1, 3, 5]]]


def test_copies_of_a_repeated_tensor_add_up():
    assert eq.expand(image([1, 2], [3, 4]), (1, 1, 2)).tolist() == [[[4, 6]]]
    assert eq.expand(image([1, 2], [3, 4]), (1, 2, 1)).tolist() == [[[3], [7]]]
