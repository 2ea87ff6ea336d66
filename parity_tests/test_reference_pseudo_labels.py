"""The oracle of WISE against numbers worked out by hand, and the properties that its formulas have."""

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from prm.reference import pseudo_labels as wise


def mask(text):
    return np.array([[c == "#" for c in row] for row in text.split()])


LEFT, RIGHT, ALL = mask("##.. ##.. ...."), mask("...# ...# ...."), mask("#### #### ####")
SQUARES = np.stack([LEFT, RIGHT, ALL])


# ---- by hand


def test_the_loss_of_classes():
    # sigmoid(log 3) = 3/4: -log(3/4), -log(1/2); -log(1 - 3/4), -log(1/2)
    scores = [[math.log(3), 0.0], [math.log(3), 0.0]]
    wanted = (math.log(4 / 3) + math.log(2) + math.log(4) + math.log(2)) / 4
    assert wise.class_loss(scores, [[1, 0], [0, 1]]) == pytest.approx(wanted, rel=1e-15)
    assert wise.class_loss([[-800.0, 800.0]], [[1, 0]]) == 800
    with pytest.raises(ValueError, match=r"scores \(1, 2\) and labels \(2, 1\)"):
        wise.class_loss([[0.0, 0.0]], [[0], [1]])


def test_seeds_are_the_strongest_pixels_and_later_peaks_overwrite():
    maps = np.zeros((5, 2, 3))
    maps[0, 1, 2] = 1
    maps[1, 0, 0] = maps[1, 1, 1] = 0.5  # the first of equal ones
    maps[2, 1, 2] = 0.25  # ends where the first did
    maps[3, 0, 2] = 1  # maps[4] has nothing: no seed
    found = wise.seed_map([(0, 0, 0), (0, 1, 1), (3, 0, 0), (7, 0, 0), (9, 0, 0)], maps)
    assert found.tolist() == [[1, 0, 8], [0, 0, 4]] and found.dtype == np.int64
    assert wise.seeds_of(found).tolist() == [[0, 0, 1], [0, 2, 8], [1, 2, 4]]
    assert wise.seed_map(np.zeros((0, 3)), np.zeros((0, 2, 3))).tolist() == [[0] * 3] * 2
    with pytest.raises(ValueError, match="1 peaks and maps"):
        wise.seed_map([(0, 0, 0)], maps)
    with pytest.raises(ValueError, match=">= 0"):
        wise.seed_map([(0, 0, 0)], -maps[:1])


def test_a_seed_lies_in_the_picture_where_its_pixel_is():
    maps = np.zeros((1, 2, 3))
    maps[0, 1, 2] = 1
    # floor(1.5 * 5 / 2) = 3, floor(2.5 * 3 / 3) = 2; in a smaller one floor(1.5 * 1 / 2) = 0, floor(2.5 * 2 / 3) = 1
    assert np.argwhere(wise.seed_map([(0, 0, 0)], maps, (5, 3))).tolist() == [[3, 2]]
    assert np.argwhere(wise.seed_map([(0, 0, 0)], maps, (1, 2))).tolist() == [[0, 1]]


def test_records_come_back_as_the_pixels_they_were():
    assert wise.record((3, 7), (4, 14)) == (0.5, 0.75)
    assert wise.pixel((0.5, 0.75), (4, 14)) == (3, 7)
    # 2.5 and 3.5: halves to even; 0.99 of 4 would be pixel 4
    assert wise.pixel((2.5 / 8, 3.5 / 8), (8, 8)) == (4, 2)
    assert wise.pixel((0.99, 0.99), (4, 4)) == (3, 3)
    for side in range(1, 700):
        assert [wise.pixel((c / side, c / side), (side, side)) for c in range(side)] == [(c, c) for c in range(side)]


def test_labels_of_seeds_by_hand():
    seeds = [(1, 1, 5), (0, 3, 1), (2, 3, 2), (1, 2, 2)]
    found = wise.assign(SQUARES, [0.5, 0.25, 0.25], seeds)
    assert [one[:4] for one in found] == [(0, 0, 0.5, 5), (1, 1, 0.25, 1), (2, 2, 0.25, 2), (3, 2, 0.25, 2)]
    laws = [one[4].tolist() for one in found]
    assert laws == [[0.5 / 0.75, 0, 0.25 / 0.75], [0, 0.5, 0.5], [0, 0, 1], [0, 0, 1]]
    # A seed that nobody holds is dropped; nobody to hold it, or nothing to hold: no label, no error.
    assert [one[0] for one in wise.assign(SQUARES[:2], [0, 0], [(2, 0, 1), (0, 0, 1)])] == [1]
    assert wise.assign(SQUARES[:0], [], seeds) == [] == wise.assign(SQUARES, [1, 1, 1], np.zeros((0, 3)))
    # A sum of 0: uniform over those that hold it.
    assert wise.assign(SQUARES, [0, 1, 0], [(0, 0, 1)])[0][4].tolist() == [0.5, 0, 0.5]
    with pytest.raises(ValueError, match="3 masks but 2 objectness"):
        wise.assign(SQUARES, [1, 1], seeds)


def test_drawing_follows_the_law():
    law = [0, 0.25, 0.25, 0, 0.5]
    assert [wise.drawn(law, u) for u in (0, 0.2499, 0.25, 0.4999, 0.5, 0.9999)] == [1, 1, 2, 2, 4, 4]
    thirds = [0.1] * 10 + [0.0]  # sums to 0.9999999999999999
    assert wise.drawn(thirds, 1 - 2**-53) == 9


def test_box_by_hand():
    assert wise.box(RIGHT) == (3, 0, 1, 2) and wise.box(ALL) == (0, 0, 4, 3) and wise.box(LEFT) == (0, 0, 2, 2)


def test_refining_by_hand():
    near_left, far = mask("#... ##.. ...."), mask(".... .... ..#.")
    refined = wise.refine([near_left, far], SQUARES, [0.8, 0.8, 0.75])  # 0.75 itself is not eligible
    assert (refined == [LEFT, far]).all()  # IoU 3/4; the other meets none of the eligible: it stays
    assert (wise.refine([far], SQUARES, [0.8, 0.8, 0.76]) == [ALL]).all()
    assert (wise.refine([far], SQUARES, [0.1, 0.1, 0.1]) == [far]).all()
    assert (wise.refine([far], SQUARES, [0.1, 0.1, 0.2], threshold=0.1) == [ALL]).all()
    # Equal IoUs: the first.
    halves = [mask("##.. #..."), mask("##.. .#..")]
    assert (wise.refine([mask("##.. ....")], halves[::-1], [1, 1]) == halves[1:]).all()
    assert wise.refine(SQUARES[:0], SQUARES, [1, 1, 1]).shape == (0, 3, 4)
    assert (wise.refine(SQUARES, SQUARES[:0], []) == SQUARES).all()
    with pytest.raises(ValueError, match="of one picture"):
        wise.refine(SQUARES, np.ones((1, 2, 2), bool), [1])


# ---- properties


@st.composite
def pictures(draw):
    """Proposals, their objectness and seeds of a small picture; ties, empty and equal masks are common."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    size, n, s = rng.integers(1, 7, 2), draw(st.integers(0, 7)), draw(st.integers(0, 5))
    masks = rng.random((n, *size)) < rng.choice([0, 0.2, 0.6, 1], (n, 1, 1))
    if n > 2:
        masks[1] = masks[0]
    seeds = np.stack([rng.integers(0, size[0], s), rng.integers(0, size[1], s), rng.integers(1, 4, s)], axis=1)
    return masks, rng.integers(0, 5, n) / 4, seeds, rng


@given(pictures())
def test_a_seed_lies_in_its_label(case):
    masks, objectness, seeds, _ = case
    for g, k, score, label, law in wise.assign(masks, objectness, seeds):
        row, column, of = seeds[g]
        assert masks[k, row, column] and score == objectness[k] and label == of
        assert law.sum() == pytest.approx(1) and not law[~masks[:, row, column]].any()
        assert all(masks[wise.drawn(law, u), row, column] for u in (0.0, 0.3, 0.999999))


@given(pictures())
def test_what_a_seed_does_not_ask_for_changes_nothing(case):
    masks, objectness, seeds, rng = case
    assume(len(seeds))
    missing = rng.random(masks.shape[1:]) < 0.7
    missing[tuple(seeds[:, :2].T)] = False
    before = wise.assign(masks, objectness, seeds)
    after = wise.assign([*masks, missing], [*objectness, 1], seeds)
    assert [one[:4] for one in before] == [one[:4] for one in after]
    assert all((a[4][:-1] == b[4]).all() and a[4][-1] == 0 for a, b in zip(after, before))
    # Nor, for the best label, one of lower objectness that holds every seed.
    lower = wise.assign([*masks, np.ones_like(missing)], [*objectness, -1], seeds)
    assert [one[:4] for one in before] == [one[:4] for one in lower if one[1] < len(masks)]


@given(pictures())
def test_an_order_of_proposals_means_nothing_but_in_ties(case):
    masks, objectness, seeds, rng = case
    order = rng.permutation(len(masks))
    ours, theirs = wise.assign(masks, objectness, seeds), wise.assign(masks[order], objectness[order], seeds)
    assert [(a[0], a[2], a[3]) for a in ours] == [(b[0], b[2], b[3]) for b in theirs]
    for a, b in zip(ours, theirs):
        np.testing.assert_allclose(a[4][order], b[4], rtol=1e-15)


@given(pictures(), st.sampled_from([0.5, 0.25]))
def test_a_common_factor_leaves_the_law(case, factor):
    masks, objectness, seeds, _ = case
    ours, theirs = wise.assign(masks, objectness, seeds), wise.assign(masks, factor * objectness, seeds)
    assert all((a[4] == b[4]).all() for a, b in zip(ours, theirs))


@given(pictures())
def test_refining_twice_is_refining_once(case):
    masks, objectness, _, rng = case
    detections = rng.random((3, *masks.shape[1:])) < 0.5
    once = wise.refine(detections, masks, objectness, 0.5)
    assert (wise.refine(once, masks, objectness, 0.5) == once).all()
    eligible = masks[objectness > 0.5]
    assert (wise.refine(eligible, masks, objectness, 0.5) == eligible).all()
