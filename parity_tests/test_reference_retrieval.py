"""Eq. 6, suppression and Algorithm 1 of the oracle against cases worked out by hand."""

import numpy as np
import pytest

from prm import InputError
from prm.reference import retrieval as rt
from prm.reference.retrieval import Instance


def mask(*rows):
    return np.array([[c == "#" for c in row] for row in rows])


def test_contour_of_an_inner_square():
    # dilation by 3 x 3 is rows and columns 1..5 of 7, erosion leaves the centre (3, 3)
    S = mask(".......", ".......", "..###..", "..###..", "..###..", ".......", ".......")
    expected = mask(".......", ".#####.", ".#####.", ".##.##.", ".#####.", ".#####.", ".......")
    assert (rt.contour(S, 3) == expected).all()


def test_the_image_edge_makes_no_contour():
    # the left half: the contour runs along its one inner edge, two pixels to each side for width 5
    S = mask("####....", "####....", "####....")
    assert (rt.contour(S) == mask("..####..", "..####..", "..####..")).all()
    assert not rt.contour(np.ones((4, 4), bool)).any()
    assert not rt.contour(np.zeros((4, 4), bool)).any()
    assert not rt.contour(S, 1).any()
    with pytest.raises(ValueError, match="odd"):
        rt.contour(S, 4)


def test_background_by_hand():
    # scaled (2, 6) -> (0, 1); enlarged to 4: positions -.25 (cut to 0), .25, .75, 1.25 (cut to 1): 0 .25 .75 1, mean .5
    assert rt.background([[2.0, 6.0]], (1, 4), 0.95).tolist() == [[True, True, False, False]]  # < .475
    assert rt.background([[2.0, 6.0]], (1, 4), 0.5).tolist() == [[True, False, False, False]]  # .25 < .25 is false
    assert rt.background([[2.0, 6.0]], (2, 4), 1.6).tolist() == [[True, True, True, False]] * 2  # < .8


def test_background_takes_the_mean_of_the_enlarged_map():
    # (0, 1, 0) enlarged to 4: positions -.125 (cut to 0), .625, 1.375, 2.125 (cut to 2): 0 .625 .625 0, mean .3125; the
    # mean before, 1/3, would make 2 * 1/3 of the bound and all four background
    assert rt.background([[0.0, 1.0, 0.0]], (1, 4), 2.0).tolist() == [[True, False, False, True]]


def test_background_of_a_constant_map_is_empty():
    assert not rt.background(np.full((2, 2), 3.0), (4, 4), 0.95).any()


def test_background_refuses_nan():
    with pytest.raises(ValueError, match="non-finite"):
        rt.background([[0.0, np.nan]], (2, 2), 1.0)


# S is the first column of 3; with width 3 its contour is columns 0 and 1
R = np.array([[0.25, 0.125, 0.0], [0.25, 0.125, 0.25]])
S = mask("#..", "#..")
Q = mask("#.#", "..#")


def test_terms_and_score():
    # R * S = .5; R * S_hat = .5 + .25 = .75; Q * S = 1
    assert rt.terms(R, S, Q, 3) == (0.5, 0.75, 1.0)
    assert rt.score(R, S, Q, alpha=0.5, beta=0.125, width=3) == 0.875  # .25 + .75 - .125
    with pytest.raises(ValueError, match="one shape"):
        rt.score(R, S.T, Q, 1, 1)


def test_resize_takes_pixel_centres():
    # 2 -> 4 doubles; 4 -> 2: centres at 1 and 3 fall in pixels 1 and 3; 3 -> 2: 0.75, 2.25 -> 0 and 2
    assert rt.resize_nearest(np.array([[1, 2]]), (2, 4)).tolist() == [[1, 1, 2, 2]] * 2
    assert rt.resize_nearest(np.array([[1, 2, 3, 4]]), (1, 2)).tolist() == [[2, 4]]
    assert rt.resize_nearest(np.array([[1], [2], [3]]), (2, 1)).tolist() == [[1], [3]]


def test_position_in_the_image():
    # (i + .5) * 8 / 4 - .5: 0 -> .5, 3 -> 6.5; columns * 12 / 4: 1 -> 4
    assert rt.image_position((0, 1), (4, 4), (8, 12)) == (0.5, 4.0)
    assert rt.image_position((3, 1), (4, 4), (8, 12)) == (6.5, 4.0)
    # enlarged by 2, row 7 of 8 is row 3, column 0 is column 0: 0.5 * 3 - .5 = 1; a map of one row stays at the centre
    assert rt.image_position((7, 0), (4, 4), (8, 12), upsample=2) == (6.5, 1.0)
    assert rt.image_position((1, 0), (1, 4), (9, 4), upsample=2) == (4.0, 0.0)


def instance(label, S, score, prm, peak=(0.0, 0.0)):
    return Instance(label, S, score, 0.9, peak, np.array(prm), 0, (0.1, 0.2, 0.3))


A, B, C = mask("###......."), mask("..###....."), mask(".....#####")


def test_nms_suppresses_and_merges():
    # IoU(A, A) = 1; the lower score goes, its PRM is added: ([1, 0] + [0, 1]) / 2
    high, low = instance(1, A, 2.0, [[1.0, 0.0]]), instance(2, A, 1.0, [[0.0, 1.0]])
    (kept,) = rt.nms([low, high])
    assert (kept.label, kept.score, kept.terms) == (1, 2.0, (0.1, 0.2, 0.3))
    assert kept.prm.tolist() == [[0.5, 0.5]]
    assert high.prm.tolist() == [[1.0, 0.0]]  # the argument stays as it was
    assert [one.label for one in rt.nms([low, high], per_class=True)] == [1, 2]


def test_nms_merges_three_with_equal_weight():
    maps = [[[1.0, 0.0, 0.0]], [[0.0, 1.0, 0.0]], [[0.0, 0.0, 1.0]]]
    (kept,) = rt.nms([instance(k, A, 3.0 - k, m) for k, m in enumerate(maps)])
    np.testing.assert_allclose(kept.prm, [[1 / 3, 1 / 3, 1 / 3]], rtol=1e-15)


def test_nms_threshold_is_reached_at_equality():
    # masks of 3 and 10 pixels, the first inside: IoU = 3 / 10 exactly the threshold
    big = instance(0, mask("##########"), 2.0, [[1.0]])
    assert len(rt.nms([big, instance(0, A, 1.0, [[1.0]])])) == 1
    assert len(rt.nms([big, instance(0, mask("##........"), 1.0, [[1.0]])])) == 2
    # A and B share 1 of 5 pixels
    assert len(rt.nms([instance(0, A, 2.0, [[1.0]]), instance(0, B, 1.0, [[1.0]])])) == 2


def test_nms_compares_with_kept_instances_only():
    # x suppresses y (IoU 2 / 4); z overlaps y (3 / 4) but x by 1 / 5: z stays
    x, y, z = mask("###......."), mask(".###......"), mask("..###.....")
    kept = rt.nms([instance(k, s, 3.0 - k, [[1.0]]) for k, s in enumerate((x, y, z))])
    assert [one.label for one in kept] == [0, 2]


def test_nms_of_masks_inside_masks():
    # three pixels inside ten: IoU 0.3, share of the smaller 1; A and B share 1 pixel of 3, an empty mask none
    big, small = instance(0, mask("##########"), 2.0, [[1.0, 0.0]]), instance(1, A, 1.0, [[0.0, 1.0]])
    assert len(rt.nms([big, small], threshold=0.5)) == 2
    (kept,) = rt.nms([big, small], threshold=0.5, nested=1.0)
    assert kept.prm.tolist() == [[0.5, 0.5]]
    assert len(rt.nms([big, small], threshold=0.5, nested=1.0, per_class=True)) == 2
    assert len(rt.nms([instance(0, A, 2.0, [[1.0]]), instance(1, B, 1.0, [[1.0]])], nested=0.34)) == 2
    assert len(rt.nms([instance(0, A, 2.0, [[1.0]]), instance(1, B, 1.0, [[1.0]])], nested=0.33)) == 1
    assert len(rt.nms([big, instance(0, mask(".........."), 1.0, [[1.0]])], nested=0.0)) == 1


def test_a_peak_whose_instance_is_dropped_chooses_again():
    one = [instance(0, A, 9.0, [[1.0, 0.0, 0.0]], (0.0, 0.0))]
    two = [instance(0, mask(s), 8.0 - k, [[0.0, 1.0, 0.0]], (0.0, 5.0)) for k, s in
           enumerate(("###.......", ".....##...", ".........#"))]  # fmt: skip
    three = [instance(0, mask("##........"), 7.5, [[0.0, 0.0, 1.0]], (0.0, 2.0)),
             instance(0, mask(".....###.."), 6.0, [[0.0, 0.0, 1.0]], (0.0, 2.0))]  # fmt: skip
    kept = rt.nms([*three, *two, *one], again=True)
    # the second peak's second choice, before the third peak's; the third of which both are dropped joins the first
    assert [(k.score, k.prm.tolist()) for k in kept] == [(9.0, [[0.5, 0.0, 0.5]]), (7.0, [[0.0, 1.0, 0.0]])]
    assert len(rt.nms([*three, *two, *one])) == 3  # each for itself: the second peak's third choice stays as well


def test_nms_orders_equal_scores_by_class_row_column():
    ones = [
        instance(1, A, 1.0, [[1.0]], (0.0, 0.0)),
        instance(0, B, 1.0, [[1.0]], (5.0, 1.0)),
        instance(0, C, 1.0, [[1.0]], (5.0, 0.0)),
        instance(0, mask(".........."), 1.0, [[1.0]], (2.0, 9.0)),
    ]
    assert [(one.label, one.peak) for one in rt.nms(ones)] == [(0, (2, 9)), (0, (5, 0)), (0, (5, 1)), (1, (0, 0))]
    assert rt.nms([]) == []


def test_classes_and_peaks_that_count():
    assert rt.select_classes([0.0, -0.1, 2.0]) == [0, 2]  # sigmoid(0) = .5 >= .5
    assert rt.select_classes([0.0, -0.1, 2.0], class_logit=1.0) == [2]
    assert rt.select_classes([1.0, 1.2], class_threshold=0.75) == [1]  # sigmoid 0.731, 0.769
    assert rt.select_peaks([4.0, 2.0, 1.9], 0.5) == [0, 1]  # >= .5 * 4
    assert rt.select_peaks([4.0, 1.25, 1.125]) == [0, 1]  # >= .3 * 4
    assert rt.select_peaks([-3.0, -1.0, -1.0], 0.5) == [1]
    assert rt.select_peaks([0.0, 0.0], 0.5) == [0]
    assert rt.select_peaks([31.0, 30.0, 40.0], peak_minimum=30) == [0, 2]


def test_best_proposal_ties_and_area_limits():
    R = np.array([[0.5, 0.5, 0.0, 0.0]])
    Q = np.zeros((1, 4), bool)
    left, right, most = mask("##.."), mask("..##"), mask("###.")
    found = rt.best_proposal(R, [right, left, left], Q, 1.0, 0.0, 3)
    # left: R * S = 1, contour columns 1, 2 hold .5
    assert found == (1, 1.5, (1.0, 0.5, 0.0))
    # the limits: >= low, < high
    assert rt.best_proposal(R, [left], Q, 1.0, 0.0, 3, area=(0.5, 0.6))[0] == 0
    assert rt.best_proposal(R, [left], Q, 1.0, 0.0, 3, area=(0.51, 0.6)) is None
    assert rt.best_proposal(R, [left], Q, 1.0, 0.0, 3, area=(0.1, 0.5)) is None
    # 3 / 4 is below the default limit of .85, 4 / 4 is not; an empty mask is below 2e-5
    assert rt.best_proposal(R, [mask("####"), mask("...."), most], Q, 1.0, 0.0, 3)[0] == 2
    assert rt.best_proposal(R, [], Q, 1.0, 0.0) is None


# A network of one convolution, W = (1) and (-1): the maps are the image and its negative.
WEIGHT = np.array([1.0, -1.0]).reshape(2, 1, 1, 1)
NETWORK = [
    {"name": "image", "op": "input"},
    {"name": "maps", "op": "conv2d", "inputs": ("image",), "params": {"weight": WEIGHT}},
]
# Peaks of class 0: 4 at (0, 0), 3 at (0, 4), 1 at (0, 6); its score (4 + 3 + 1) / 3; class 1 scores below 0.
IMAGE = np.array([[[4.0, 0, 0, 0, 3, 0, 1, 0]]])
PROPOSALS = np.array([[[1, 1, 0, 0, 0, 0, 0, 0]], [[0, 0, 0, 1, 1, 1, 0, 0]], [[0, 0, 0, 0, 0, 0, 1, 1]]], bool)
SETTINGS = {"alpha": 1.0, "beta": 0.25, "bias": 1.0, "contour": 3, "class_threshold": 0.75, "peak_threshold": 0.5}


def test_algorithm_one():
    # Q: map / 4 = 1 0 0 0 .75 0 .25 0, mean .25: background where < .25, columns 1 2 3 5 7.
    # Every PRM is its peak's pixel. Peak 4, proposal 0: R * S = 1, contour columns 1, 2: 0, Q * S = 1: 1 - .25.
    # Peak 3 at column 4, proposal 1: 1, contour columns 2 3 5 6: 0, Q * S = 2 (columns 3, 5): 1 - .5.
    # Peak 1 < .5 * 4 does not count.
    first, second = rt.segment(NETWORK, IMAGE, PROPOSALS, **SETTINGS)
    assert (first.label, first.proposal, first.score, first.terms) == (0, 0, 0.75, (1.0, 0.0, 1.0))
    assert (second.label, second.proposal, second.score, second.terms) == (0, 1, 0.5, (1.0, 0.0, 2.0))
    assert (first.peak, second.peak) == ((0, 0), (0, 4))
    assert first.prm.tolist() == [[1, 0, 0, 0, 0, 0, 0, 0]]
    assert (second.mask == PROPOSALS[1]).all()
    assert first.confidence == pytest.approx(1 / (1 + np.exp(-8 / 3)), rel=1e-15)


def test_algorithm_one_with_a_lower_peak_threshold():
    # 1 >= .25 * 4 counts: proposal 2, 1 + 0 (contour columns 5, 6: column 6 holds 1) -> 1 + 1 - .25 * 1 (column 7)
    found = rt.segment(NETWORK, IMAGE, PROPOSALS, **{**SETTINGS, "peak_threshold": 0.25})
    assert [(one.proposal, one.score) for one in found] == [(2, 1.75), (0, 0.75), (1, 0.5)]


def test_earlier_names_of_settings_are_accepted():
    earlier = {"width": 3, "t_class": 0.75, "t_peak": 0.25, "area": (0.2, 0.3), "nms_threshold": 1.0, "per_class": True}
    today = {"contour": 3, "class_threshold": 0.75, "peak_threshold": 0.25, "min_area": 0.2, "max_area": 0.3,
             "nms": 1.0, "nms_per_class": True}  # fmt: skip
    for extra, names in (({"peak_value": 3.0}, {"peak_minimum": 3.0}), ({}, {})):
        found = [[(one.proposal, one.score) for one in rt.segment(
            NETWORK, IMAGE, PROPOSALS, alpha=1.0, beta=0.25, bias=1.0, **given)]
            for given in (earlier | extra, today | names)]  # fmt: skip
        assert found[0] == found[1] != []
    assert rt.select_classes([1.0, 1.2], t_class=0.75) == [1] and rt.select_peaks([4.0, 1.1], t_peak=0.25) == [0, 1]
    with pytest.raises(TypeError, match=r"select_peaks\(\) got peak_threshold and its earlier name t_peak"):
        rt.select_peaks([1.0], peak_threshold=0.5, t_peak=0.5)


def test_absolute_thresholds():
    found = rt.segment(NETWORK, IMAGE, PROPOSALS, **SETTINGS, class_logit=0.0, peak_minimum=3.0)
    assert [one.proposal for one in found] == [0]  # 3 > 3 is false
    assert rt.segment(NETWORK, IMAGE, PROPOSALS, **SETTINGS, class_logit=5.0) == []


def test_proposals_of_the_picture_size_keep_it():
    big = PROPOSALS.repeat(2, axis=1).repeat(2, axis=2)
    first, second = rt.segment(NETWORK, IMAGE, big, **SETTINGS)
    assert (first.score, second.score) == (0.75, 0.5)
    assert second.mask.shape == (2, 16)
    assert second.prm.shape == (1, 8)
    assert second.peak == (0.5, 8.5)  # (0 + .5) * 2 / 1 - .5, (4 + .5) * 16 / 8 - .5


def test_empty_results_are_lists():
    assert rt.segment(NETWORK, IMAGE, [], **SETTINGS) == []
    assert rt.segment(NETWORK, IMAGE, PROPOSALS, **{**SETTINGS, "class_threshold": 0.99}) == []
    # class 1 is above its limit but W+ = 0 there: the PRM is empty, so no instance
    assert rt.segment(NETWORK, -IMAGE, PROPOSALS, **{**SETTINGS, "class_threshold": 0.6}) == []


def test_non_finite_maps_are_named():
    with pytest.raises(InputError, match="image 0, class 0"):
        rt.segment(NETWORK, np.full((1, 1, 8), np.nan), PROPOSALS, **SETTINGS)


def test_terms_of_the_second_choice_by_hand():
    R = np.array([[0.5, 0.25], [0.25, 0.0]])
    S, N, Q = np.array([[1, 0], [1, 0]], bool), np.array([[1.0, 0.5], [0.25, 0.0]]), np.array([[0, 0], [1, 1]], bool)
    terms = rt.fit_terms(R, S, N, Q, 0.375, width=3)
    assert terms == (0.75, 0.625, 0.375, 0.5, 1.0)  # a contour of 3 x 3 is all of it
    assert rt.fit_score(terms, [1, 0, 2, 0, 0]) == pytest.approx(np.log(0.75) + 2 * np.log(0.375))
    assert rt.fit_score((0.0, 1, 1, 1, 1), [1, 0, 0, 0, 0]) == np.log(1e-6)
    assert rt.confident_score(0.5, np.log(0.25), [1, 0, 1, 0, 0]) == pytest.approx(0.25)
    for weights in ([0] * 5, [1, -1, 1, 1, 1], [1, 1], [np.nan, 1, 1, 1, 1]):
        with pytest.raises(ValueError, match="weights"):
            rt.fit_score(terms, weights)


def test_the_second_choice_is_that_of_wise():
    R = np.zeros((4, 4))
    R[1, 2] = R[2, 1] = 0.5  # the first maximum is (1, 2)
    holds = np.ones((3, 4, 4), bool)
    holds[1, 0], holds[2, 3] = False, False
    misses = np.ones((4, 4), bool)
    misses[1, 2] = False
    masks, objectness = [misses, *holds], [1.0, 0.5, 0.7, 0.7]
    how = dict(N=R, Q=R > 1, weights=[0, 0, 3, 0, 0], area=(0, 2))
    assert rt.best_fit(R, masks, objectness=objectness, seed_pixel="require", **how)[0] == 2
    assert rt.best_fit(R, masks, objectness=objectness, **how)[0] == 0
    # what is below the least term is compared all the same, and as it is
    assert rt.best_fit(R, masks, objectness=[0, 1e-9, 2e-9, 0], seed_pixel="require", **how)[0] == 2
    assert rt.best_fit(R, masks[:1], objectness=[1.0], seed_pixel="require", **how) is None
    assert rt.best_fit(R, masks[:1], objectness=[1.0], seed_pixel="prefer", **how)[0] == 0
    with pytest.raises(ValueError, match="seed_pixel"):
        rt.best_fit(R, masks, objectness=objectness, seed_pixel="maybe", **how)


def test_smoothing_keeps_the_mass():
    R = np.random.default_rng(0).random((5, 9))
    R /= R.sum()
    for smooth in (0.05, 0.3, 2.0):
        assert rt.smoothed(R, smooth).sum() == pytest.approx(1)
    peak = np.zeros((10, 30))
    peak[5, 15] = 1
    bell = rt.smoothed(peak, 0.1)  # of the shorter side: one pixel
    assert bell[5, 15] / bell[5, 16] == pytest.approx(np.exp(0.5)) == pytest.approx(bell[5, 15] / bell[6, 15])
    assert rt.smoothed(R, 5.0) == pytest.approx(np.full((5, 9), 1 / 45), rel=0.05)
    assert (rt.smoothed(R, 0) == R).all()
