"""The figures of the paper's tables: worked by hand, by COCO's own code, and by `literal_metrics` on random cases."""

import contextlib
import io
import math
from itertools import pairwise, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prm import InputError
from prm.eval.metrics import (
    CocoPredictions,
    CocoTruths,
    ImageRecord,
    ResponseRecord,
    average_best_overlap,
    best_overlaps,
    bootstrap,
    classification_map,
    coco_average_precision,
    confusion,
    failure_counts,
    failures,
    image_record,
    inside_fractions,
    localization_map,
    mean_average_precision,
    mean_iou,
    merge_instances,
    pixel_counts,
    quality_by_crowding,
    quality_by_size,
    ranked_detections,
    ranked_points,
    ranked_responses,
    response_map_quality,
    response_record,
    strongest_points,
)
from prm.parity_tests import literal_metrics as literal
from prm.parity_tests.literal_metrics import cocos_own, codes, strips

EXACT = {"rtol": 0, "atol": 1e-12}
CLASSES = 3
METHODS = ("area", "voc07", "coco101")
VARIANTS = ("greedy", "independent", "per_image")
NAN = math.nan


# ------------------------------------------------------------------------- random cases


@st.composite
def image_sets(draw, most=4):
    """Images as `literal_metrics` takes them; shares and scores of few values, so that they tie and meet thresholds."""
    images = []
    for _ in range(draw(st.integers(0, most))):
        count, true = draw(st.integers(0, 6)), draw(st.integers(0, 4))
        eighths = st.lists(st.integers(0, 8), min_size=count * true, max_size=count * true)
        labels = st.integers(0, CLASSES - 1)
        images.append({
            "values": (np.array(draw(eighths), float).reshape(count, true) / 8).tolist(),
            "labels": draw(st.lists(labels, min_size=count, max_size=count)),
            "scores": [s / 4 for s in draw(st.lists(st.integers(-1, 3), min_size=count, max_size=count))],
            "true_labels": draw(st.lists(labels, min_size=true, max_size=true)),
            "true_areas": draw(st.lists(st.integers(0, 10), min_size=true, max_size=true)),
            "image_area": 10,
            "background": [b / 4 for b in draw(st.lists(st.integers(0, 4), min_size=count, max_size=count))],
        })  # fmt: skip
    return images


def some_weights(images: list):
    """None, or how often each of the images occurs."""
    counts = st.lists(st.integers(0, 3), min_size=len(images), max_size=len(images))
    return st.none() | counts.map(lambda w: np.array(w, np.int64))


def records(images: list) -> list[ImageRecord]:
    return [ImageRecord(*_arrays(image)) for image in images]


def response_records(images: list) -> list[ResponseRecord]:
    return [
        ResponseRecord(
            *_arrays(image), np.array(image["true_areas"], np.int64), image["image_area"], np.array(image["background"])
        )
        for image in images
    ]


def _arrays(image: dict):
    shape = len(image["labels"]), len(image["true_labels"])
    labels, true_labels = np.array(image["labels"], np.int64), np.array(image["true_labels"], np.int64)
    return np.array(image["values"], float).reshape(shape), labels, np.array(image["scores"], float), true_labels


def as_set(mask: np.ndarray) -> set:
    return set(zip(*(axis.tolist() for axis in np.nonzero(mask))))


def rectangles(rng, count: int, side: int) -> np.ndarray:
    """(count, side, side) bool; overlapping rectangles, now and then an empty one."""
    masks = np.zeros((count, side, side), bool)
    for mask in masks:
        top, left = rng.integers(0, side, 2)
        mask[top : top + rng.integers(0, side), left : left + rng.integers(0, side)] = True
    return masks


# ------------------------------------------------------------------------- mAP^r by hand


# What `test_metrics` leaves: predicted spans, labels, scores; true spans, labels; how AP is taken; AP of each class.
INSTANCES_BY_HAND = {
    # Two instances, both found first: precision 1 throughout.
    "all found": ([(0, 5), (10, 20)], [0, 0], [0.9, 0.8], [(0, 5), (10, 20)], [0, 0], "area", [1]),
    # Tied: the one listed first ranks first; the miss is first, so precision is 1/2 at the hit.
    "a tie in one image": ([(9, 12), (0, 5)], [0, 0], [0.5, 0.5], [(0, 5)], [0], "area", [1 / 2]),
    # Empty on empty overlaps by 0: a miss first (1/2 at the hit), and the empty instance is never found: 1/2 / 2.
    "empty masks": ([(0, 0), (4, 8)], [0, 0], [0.9, 0.8], [(0, 0), (4, 8)], [0, 0], "area", [1 / 4]),
    # The right mask with the wrong class finds nothing.
    "the wrong class": ([(0, 5)], [1], [0.9], [(0, 5)], [0], "area", [0, NAN]),
    "no detection at all": ([], [], [], [(0, 5), (5, 9)], [0, 1], "area", [0, 0]),
    # One of 3 found first, recall 1/3: levels 0, .1, .2, .3 of 11; levels 0 to 0.33 of 101.
    "voc07": ([(0, 5)], [0], [0.9], [(0, 5), (5, 9), (9, 12)], [0] * 3, "voc07", [4 / 11]),
    "coco101": ([(0, 5)], [0], [0.9], [(0, 5), (5, 9), (9, 12)], [0] * 3, "coco101", [34 / 101]),
}


@pytest.mark.parametrize("case", INSTANCES_BY_HAND)
def test_instances_by_hand(case):
    spans, labels, scores, true, true_labels, ap, expected = INSTANCES_BY_HAND[case]
    made = image_record(strips(*spans), np.array(labels, int), scores, strips(*true), np.array(true_labels, int))
    result = mean_average_precision([made], [0.5], num_classes=len(expected), ap=ap)
    np.testing.assert_allclose(result.ap[0], expected, **EXACT)


# ------------------------------------------------------------------------- mAP^r and ABO, random


@given(st.data())
def test_instances_to_the_letter(data):
    """Every matching and average, for a set and for samples of it."""
    images = data.draw(image_sets())
    weights = data.draw(some_weights(images))
    thresholds, copies = [0.25, 0.5, 0.75], literal.repeated(images, weights)
    for matching, method in product(("voc", "best_free"), METHODS):
        result = mean_average_precision(records(images), thresholds, CLASSES, matching, method, weights)
        expected = [
            [literal.instances(copies, c, threshold, matching, method) for c in range(CLASSES)]
            for threshold in thresholds
        ]
        np.testing.assert_allclose(result.ap, expected, **EXACT)
        np.testing.assert_allclose(result.mean, [literal.mean(row) for row in expected], **EXACT)
        assert result.positives.tolist() == [literal.count_true(copies, c) for c in range(CLASSES)]


@given(st.data())
def test_weights_equal_explicit_repetition(data):
    """Bit for bit, for ties inside an image and between images, and along the whole curve."""
    images = data.draw(image_sets())
    weights = data.draw(some_weights(images).filter(lambda w: w is not None))
    once = ranked_detections(records(images), num_classes=CLASSES)
    copies = ranked_detections(records(literal.repeated(images, weights)), num_classes=CLASSES)
    for method in METHODS:
        np.testing.assert_array_equal(once.average_precision(method, weights), copies.average_precision(method))
        np.testing.assert_array_equal(
            once.mean_average_precision(method, weights), copies.mean_average_precision(method)
        )
    for c in range(CLASSES):
        for sampled, explicit in zip(once.precision_recall(c, 1, weights), copies.precision_recall(c, 1)):
            np.testing.assert_array_equal(sampled, explicit)


def test_copies_of_an_image_keep_their_detections_together():
    """Tied detections, a hit and a miss, of an image drawn twice: hit, miss, hit, miss; not hit, hit, miss, miss."""
    made = [ImageRecord(np.array([[1.0], [0.0]]), np.zeros(2, int), np.full(2, 0.5), np.zeros(1, int))]
    result = mean_average_precision(made, [0.5], weights=[2])
    assert result.ap[0, 0] == pytest.approx((1 + 2 / 3) / 2, abs=1e-12)
    assert result.positives.tolist() == [2]


def test_curves_by_hand():
    """Hit, repeat, hit of 4 instances."""
    ious = np.array([[0.9, 0, 0, 0], [0.8, 0, 0, 0], [0, 0.6, 0, 0]])
    made = [ImageRecord(ious, np.zeros(3, int), np.array([0.9, 0.8, 0.7]), np.zeros(4, int))]
    curve = ranked_detections(made, [0.5], num_classes=2).precision_recall(0)
    np.testing.assert_allclose(curve.precision, [1, 1 / 2, 2 / 3], **EXACT)
    np.testing.assert_allclose(curve.recall, [1 / 4, 1 / 4, 2 / 4], **EXACT)
    assert curve.scores.tolist() == [0.9, 0.8, 0.7]
    assert ranked_detections(made, [0.5], num_classes=2).precision_recall(1).recall.shape == (0,)
    # The same detections where there is nothing to find.
    made = [ImageRecord(ious[:, :0], np.zeros(3, int), np.array([0.9, 0.8, 0.7]), np.zeros(0, int))]
    assert np.isnan(ranked_detections(made, [0.5]).precision_recall(0).recall).all()


@given(st.data())
def test_average_best_overlap_to_the_letter(data):
    images = data.draw(image_sets())
    weights = data.draw(some_weights(images))
    copies, made = literal.repeated(images, weights), records(images)
    for same_class in (True, False):
        for average in ("instances", "class_mean"):
            np.testing.assert_allclose(
                average_best_overlap(made, average, same_class, CLASSES, weights),
                literal.abo(copies, average, same_class),
                **EXACT,
            )
        best = literal.best_overlaps(copies, same_class)
        np.testing.assert_allclose(
            best_overlaps(made, same_class, CLASSES).per_class(weights),
            [literal.mean([value for k, value in best if k == c]) for c in range(CLASSES)],
            **EXACT,
        )


def test_counts_of_pixels_are_the_same_from_codes():
    rng = np.random.default_rng(1)
    masks, true = rectangles(rng, 6, 30), rectangles(rng, 5, 30)
    expected = [len(as_set(a) & as_set(b)) for a in masks for b in true]
    for counts in (
        pixel_counts(masks, true),
        pixel_counts(codes(masks), codes(true)),
        pixel_counts(masks, codes(true)),
    ):
        assert counts[0].ravel().tolist() == expected
        assert [c.tolist() for c in counts[1:]] == [masks.sum((1, 2)).tolist(), true.sum((1, 2)).tolist()]
    for none in (masks[:0], []):
        common, areas, true_areas = pixel_counts(none, true)
        assert common.shape == (0, 5) and areas.shape == (0,) and true_areas.tolist() == true.sum((1, 2)).tolist()
    assert pixel_counts(codes(masks), [])[0].shape == (6, 0)


def test_counts_of_hundreds_of_codes():
    """A crowded image: more codes than a byte can count."""
    masks = np.zeros((300, 20, 20), bool)
    masks.reshape(300, -1)[np.arange(300), np.arange(300)] = True
    common, areas, true_areas = pixel_counts(codes(masks), codes(masks))
    np.testing.assert_array_equal(common, np.eye(300))
    assert areas.tolist() == true_areas.tolist() == [1] * 300


# ------------------------------------------------------------------------- classification, localization


@st.composite
def scored_images(draw):
    """Images with scores, points, boxes and flags for `literal_metrics`."""
    images = []
    for _ in range(draw(st.integers(0, 5))):
        boxes = draw(st.lists(st.tuples(*[st.integers(0, 12)] * 4), max_size=4))
        images.append({
            "scores": [s / 4 for s in draw(st.lists(st.integers(0, 4), min_size=CLASSES, max_size=CLASSES))],
            "points": draw(st.lists(st.tuples(*[st.integers(0, 14)] * 2), min_size=CLASSES, max_size=CLASSES)),
            "boxes": [(min(a, c), min(b, d), max(a, c), max(b, d)) for a, b, c, d in boxes],
            "box_labels": [draw(st.integers(0, CLASSES - 1)) for _ in boxes],
            "difficult": [draw(st.booleans()) for _ in boxes],
            "labels": draw(st.lists(st.integers(0, 1), min_size=CLASSES, max_size=CLASSES)),
            "doubtful": draw(st.lists(st.booleans(), min_size=CLASSES, max_size=CLASSES)),
        })  # fmt: skip
    return images


def stacked(images: list, name: str, *shape) -> np.ndarray:
    return np.array([image[name] for image in images]).reshape(len(images), CLASSES, *shape)


@given(st.data())
def test_classification_to_the_letter(data):
    images = data.draw(scored_images())
    weights = data.draw(some_weights(images))
    for method in (*METHODS, "ranked"):
        result = classification_map(
            stacked(images, "scores"), stacked(images, "labels"), stacked(images, "doubtful"), method, weights
        )
        copies = [image | {"difficult": image["doubtful"]} for image in literal.repeated(images, weights)]
        expected = [literal.classification(copies, c, method) for c in range(CLASSES)]
        np.testing.assert_allclose(result.ap, expected, **EXACT)
        np.testing.assert_allclose(result.mean, literal.mean(expected), **EXACT)
    positives = [sum(i["labels"][c] and not i["doubtful"][c] for i in copies) for c in range(CLASSES)]
    assert result.positives.tolist() == positives


@given(st.data())
def test_localization_to_the_letter(data):
    images = data.draw(scored_images())
    weights = data.draw(some_weights(images))
    tolerance, drop = data.draw(st.sampled_from([0, 1, 2.5])), data.draw(st.booleans())
    least, method = data.draw(st.sampled_from([None, 0.5])), data.draw(st.sampled_from(METHODS))
    columns = [[image[name] for image in images] for name in ("boxes", "box_labels", "difficult")]
    inputs = stacked(images, "scores"), stacked(images, "points", 2), *columns
    result = localization_map(*inputs, tolerance, drop, least, method, weights)
    copies = literal.repeated(images, weights)
    expected = [literal.localization(copies, c, tolerance, drop, least, method) for c in range(CLASSES)]
    np.testing.assert_allclose(result.ap, [ap for ap, _ in expected], **EXACT)
    np.testing.assert_allclose(result.mean, literal.mean([ap for ap, _ in expected]), **EXACT)
    assert result.positives.tolist() == [positives for _, positives in expected]
    if method == "area" and drop and least is None:
        # A point cannot make more of an image than its score does.
        present = np.array([[c in i["box_labels"] for c in range(CLASSES)] for i in images]).reshape(-1, CLASSES)
        only = [{c for c in range(CLASSES) if {d for k, d in zip(i["box_labels"], i["difficult"]) if k == c} == {True}}
                for i in images]  # fmt: skip
        doubtful = np.array([[c in some for c in range(CLASSES)] for some in only]).reshape(-1, CLASSES)
        whole = classification_map(inputs[0], present, doubtful, weights=weights).ap
        assert not (result.ap > whole + 1e-12).any()


@pytest.mark.parametrize(
    ("point", "options", "expected"),
    [
        # The box is 10..19 by 30..39. Enlarged by 18: -8..37 by 12..57, all bounds inside.
        ((37, 57), {}, 1),
        ((38, 57), {}, 0),
        ((37, 58), {}, 0),
        ((0, 12), {}, 1),
        ((0, 11), {}, 0),
        ((19, 30), {"tolerance": 0}, 1),
        ((20, 30), {"tolerance": 0}, 0),
        ((19, 29), {"tolerance": 0}, 0),
    ],
)
def test_where_a_point_hits(point, options, expected):
    result = localization_map([[0.5]], [[point]], [[(10, 30, 19, 39)]], [[0]], **options)
    assert result.ap.tolist() == [expected]
    assert result.positives.tolist() == [1]


def test_localization_by_hand():
    """Class 0, best first: a hit (image 1), a miss (image 0), an image without it (2). Class 1 only in image 2."""
    boxes, labels = [[(0, 0, 5, 5)], [(0, 0, 5, 5), (9, 9, 9, 9)], [(50, 50, 60, 60)]], [[0], [0, 0], [1]]
    scores = np.array([[0.6, 0.9], [0.9, 0.8], [0.1, 0.7]])
    points = np.array([[(40, 0), (0, 0)], [(9, 9), (0, 0)], [(0, 0), (55, 55)]])
    result = localization_map(scores, points, boxes, labels, tolerance=0)
    # Class 0: 1 of 2 found at precision 1. Class 1: found at rank 3 of 3.
    np.testing.assert_allclose(result.ap, [1 / 2, 1 / 3], **EXACT)
    # Image 1's boxes of class 0 difficult: dropped, so that the miss of image 0 is all there is.
    hard = [[False], [True, True], [False]]
    result = localization_map(scores, points, boxes, labels, hard, tolerance=0)
    np.testing.assert_allclose(result.ap, [0, 1 / 3], **EXACT)
    assert result.positives.tolist() == [1, 1]
    # One difficult box among others accepts the point all the same.
    hard[1] = [False, True]
    assert localization_map(scores, points, boxes, labels, hard, tolerance=0).ap[0] == 1 / 2
    # Below 0.7, class 0 has one detection left, class 1 all three.
    result = localization_map(scores, points, boxes, labels, tolerance=0, min_score=0.7)
    np.testing.assert_allclose(result.ap, [1 / 2, 1 / 3], **EXACT)
    assert len(ranked_points(scores, points, boxes, labels, min_score=0.7).classes[0].scores) == 1


def test_the_strongest_point_is_the_first_in_row_major_order():
    maps = np.zeros((2, 3, 4))
    maps[0, 1, 3] = maps[0, 2, 0] = 1
    assert strongest_points(maps).tolist() == [[3, 1], [0, 0]]


# ------------------------------------------------------------------------- Peak Response Maps


@given(st.integers(0, 2**32 - 1), st.sampled_from(["keep", "drop"]))
def test_shares_to_the_letter(seed, rule):
    rng = np.random.default_rng(seed)
    prms = rng.random((3, 5, 7)) * (rng.random((3, 5, 7)) < 0.6)
    prms[rng.integers(0, 3)] *= rng.integers(0, 2)
    masks, void = rng.random((4, 5, 7)) < rng.random((4, 1, 1)), rng.random((5, 7)) < 0.3
    maps = [{pixel: float(prm[pixel]) for pixel in as_set(np.ones((5, 7)))} for prm in prms]
    sets, outside = [as_set(mask) for mask in masks], as_set(~masks.any(axis=0) & ~void)
    expected = [[literal.inside(m, some, as_set(void), rule == "drop") for some in sets] for m in maps]
    np.testing.assert_allclose(inside_fractions(prms, masks, void, rule), expected, **EXACT)
    record = response_record(prms, [0, 1, 0], [1, 2, 3], masks, [0, 1, 1, 2], void, rule)
    np.testing.assert_array_equal(record.q, inside_fractions(prms, masks, void, rule))
    expected = [literal.inside(m, outside, as_set(void), rule == "drop") for m in maps]
    np.testing.assert_allclose(record.background, expected, **EXACT)
    assert record.true_areas.tolist() == [len(some) for some in sets] and record.image_area == 35


def test_shares_by_hand():
    prms = np.array([[[1.0, 2.0, 1.0, 4.0]], [[0.0, 0.0, 0.0, 0.0]]])
    masks = np.array([[[1, 1, 0, 0]], [[0, 0, 0, 0]], [[0, 0, 1, 0]]], bool)
    void = np.array([[0, 0, 0, 1]], bool)
    # 3 of 8, 0, 1 of 8; a map without response has nothing anywhere. With the void's 4 out of the sum: of 4.
    np.testing.assert_array_equal(inside_fractions(prms, masks, void), [[3 / 8, 0, 1 / 8], [0, 0, 0]])
    np.testing.assert_array_equal(inside_fractions(prms, masks, void, "drop"), [[3 / 4, 0, 1 / 4], [0, 0, 0]])
    np.testing.assert_array_equal(inside_fractions(prms, codes(masks)), [[3 / 8, 0, 1 / 8], [0, 0, 0]])
    # Background without void pixels: none is left here, with or without them in the sum.
    assert response_record(prms, [0, 0], [1, 2], masks, [0, 0, 0], void).background.tolist() == [0, 0]
    assert response_record(prms, [0, 0], [1, 2], masks, [0, 0, 0]).background.tolist() == [1 / 2, 0]
    # Nothing true: all is background. No map: nothing at all.
    alone = response_record(prms, [0, 0], [1, 2], [], [])
    assert alone.q.shape == (2, 0) and alone.background.tolist() == [1, 0]
    none = response_record(prms[:0], [], [], masks, [0, 0, 0])
    assert none.q.shape == (0, 3) and none.background.shape == (0,) and none.image_area == 4


@given(st.data())
def test_quality_of_responses_to_the_letter(data):
    images = data.draw(image_sets())
    weights = data.draw(some_weights(images))
    made, copies = response_records(images), literal.repeated(images, weights)
    for variant, threshold, method in product(VARIANTS, (0.0, 0.5), METHODS):
        result = response_map_quality(made, variant, threshold, CLASSES, method, weights)
        expected = [literal.response_quality(copies, c, variant, threshold, method) for c in range(CLASSES)]
        np.testing.assert_allclose(result.ap, [ap for ap, _ in expected], **EXACT)
        np.testing.assert_allclose(result.mean, literal.mean([ap for ap, _ in expected]), **EXACT)
        assert result.positives.tolist() == [positives for _, positives in expected]
        explicit = ranked_responses(response_records(copies), variant, threshold, CLASSES)
        np.testing.assert_array_equal(result.ap, explicit.average_precision(method)[0])


@pytest.mark.parametrize("variant", VARIANTS)
def test_half_of_a_response_is_not_enough(variant):
    for q, expected in ((0.5, 0), (np.nextafter(0.5, 1), 1)):
        one = np.array([[q]]), np.zeros(1, int), np.ones(1), np.zeros(1, int), np.ones(1, int), 4, np.zeros(1)
        result = response_map_quality([ResponseRecord(*one)], variant)
        # Only what is found is there to be found, so nothing found is undefined.
        np.testing.assert_array_equal(result.ap, [NAN if variant == "independent" and not expected else expected])


@pytest.mark.parametrize(
    ("variant", "expected", "positives"),
    [
        # By score: good on instance 0, good on it again, half (not good), good on instance 1; 3 instances.
        # Greedy: hit, miss, miss, hit: (1 + 2/4) / 3.
        ("greedy", (1 + 2 / 4) / 3, 3),
        # Hit, hit, miss, hit; the 3 hits are to be found: (1 + 1 + 3/4) / 3.
        ("independent", (1 + 1 + 3 / 4) / 3, 3),
        # The first alone, of one image.
        ("per_image", 1, 1),
    ],
)
def test_quality_of_responses_by_hand(variant, expected, positives):
    q = np.array([[0.9, 0, 0], [0.8, 0.2, 0], [0.5, 0.5, 0], [0, 0.6, 0]])
    record = ResponseRecord(
        q, np.zeros(4, int), np.array([4.0, 3, 2, 1]), np.zeros(3, int), np.full(3, 5), 100, np.zeros(4)
    )
    result = response_map_quality([record], variant)
    assert result.ap[0] == result.mean == pytest.approx(expected, abs=1e-12)
    assert result.positives.tolist() == [positives]


@given(image_sets(), st.sampled_from(["zero", "drop"]))
def test_groups_to_the_letter(images, absent):
    bounds = ((1, 1), (2, 3), (4, None))
    groups = quality_by_crowding(response_records(images), bounds, absent)
    for (low, high), group in zip(bounds, groups):
        _same_group(group, literal.crowding(images, low, high, absent), low, high)
    bins = (0, 0.1, 0.5, 1)
    groups = quality_by_size(response_records(images), bins)
    for (low, high), group in zip(pairwise(bins), groups, strict=True):
        _same_group(group, literal.sizes(images, low, high, high == 1), low, high)


def _same_group(group, expected, low, high):
    images, shares, outside = expected
    assert (group.low, group.high, group.images, group.maps) == (low, high, images, len(shares))
    mean = literal.mean(shares)
    np.testing.assert_allclose(group.inside, mean, **EXACT)
    np.testing.assert_allclose(group.background, literal.mean(outside), **EXACT)
    deviation = math.sqrt(sum((s - mean) ** 2 for s in shares) / len(shares)) if shares else NAN
    np.testing.assert_allclose(group.deviation, deviation, **EXACT)
    # Interpolated linearly between the sorted shares.
    shares = sorted(shares)
    at = [q * (len(shares) - 1) for q in (0.25, 0.5, 0.75)]
    quartiles = [
        shares[math.floor(a)] + (a - math.floor(a)) * (shares[math.ceil(a)] - shares[math.floor(a)]) if shares else NAN
        for a in at
    ]
    np.testing.assert_allclose(group.quartiles, quartiles, **EXACT)


# ------------------------------------------------------------------------- semantic segmentation


# (prediction, truth) of every image, intersection over union of background and two classes.
SEMANTIC_BY_HAND = {
    # Background: the same 2 pixels. Class 1: 1 common of 1 and 2. Class 2: 1 common of 2 and 1.
    "plain": ([([0, 1, 2, 0, 2], [0, 1, 1, 0, 2])], [2 / 2, 1 / 2, 1 / 2]),
    # The void pixel is not counted at all, whatever is predicted there.
    "void": ([([0, 1, 2, 2], [0, 1, 255, 2])], [1, 1, 1]),
    # A void prediction is background: 1 common of 2; class 1: 0 of 1.
    "predicted void": ([([0, 255, 2], [0, 1, 2])], [1 / 2, 0, 1]),
    # Class 2 is predicted but never true: 0, and it counts. Background: 1 common of 1 and 2.
    "only predicted": ([([0, 1, 2], [0, 1, 0])], [1 / 2, 1, 0]),
    # Class 2 is neither: undefined.
    "neither": ([([0, 1, 1], [0, 1, 1])], [1, 1, NAN]),
    # Pooled: class 1 has 1 + 3 common pixels of 4 + 3, not the mean of 1/4 and 3/3.
    "pooled": ([([0, 0, 0, 1], [1, 1, 1, 1]), ([1, 1, 1, 0], [1, 1, 1, 0])], [1 / 4, 4 / 7, NAN]),
    "all void": ([([0, 1], [255, 255])], [NAN, NAN, NAN]),
    "no pixels": ([([], [])], [NAN, NAN, NAN]),
}


@pytest.mark.parametrize("case", SEMANTIC_BY_HAND)
def test_mean_iou_by_hand(case):
    images, expected = SEMANTIC_BY_HAND[case]
    total = sum(confusion(np.array([p], np.uint8), np.array([t], np.uint8), 2) for p, t in images)
    assert total.shape == (3, 3) and total.dtype == np.int64
    ious, mean = mean_iou(total)
    np.testing.assert_allclose(ious, expected, **EXACT)
    defined = [iou for iou in expected if not math.isnan(iou)]
    np.testing.assert_allclose(mean, sum(defined) / len(defined) if defined else NAN, **EXACT)


def test_rows_are_true_and_columns_predicted():
    """Of class 1's 3 pixels 2 are predicted as background, 1 as class 1; the one of the background as class 1."""
    assert confusion([[0, 0, 1, 1]], [[1, 1, 1, 0]], 1).tolist() == [[0, 1], [2, 1]]


@given(st.integers(0, 2**32 - 1))
def test_semantic_segmentation_to_the_letter(seed):
    """From instances to the figure; a sample's figure is that of its weighted counts."""
    rng = np.random.default_rng(seed)
    pairs, total, weights = [], 0, rng.integers(0, 3, 3)
    for times in weights:
        masks, labels = rectangles(rng, int(rng.integers(0, 5)), 6), rng.integers(0, CLASSES, 5)
        scores = rng.integers(0, 3, len(masks)) / 2
        labels = labels[: len(masks)]
        prediction = merge_instances(masks, labels, scores)
        truth = rng.choice([0, 1, 2, 3, 255], (6, 6))
        pixels = as_set(np.ones((6, 6)))
        expected = literal.merged(pixels, [as_set(m) for m in masks], labels.tolist(), scores.tolist())
        assert {pixel: int(prediction[pixel]) for pixel in pixels} == expected
        if len(masks):
            np.testing.assert_array_equal(merge_instances(codes(masks), labels, scores), prediction)
        prediction[rng.random((6, 6)) < 0.1] = 255
        total = total + times * confusion(prediction, truth, CLASSES)
        pairs += [tuple({p: int(m[p]) for p in pixels} for m in (prediction, truth))] * int(times)
    ious, mean = mean_iou(total)
    expected = literal.semantic(pairs, CLASSES + 1)
    np.testing.assert_allclose(ious, expected, **EXACT)
    np.testing.assert_allclose(mean, literal.mean(expected), **EXACT)


def test_merging_by_hand():
    masks = strips((0, 3), (2, 5), (4, 7), length=8)
    # The second has the highest score; first and third do not meet.
    assert merge_instances(masks, [0, 1, 2], [0.5, 0.9, 0.1])[0].tolist() == [1, 1, 2, 2, 2, 3, 3, 0]
    # All tied: the earlier stays on top.
    assert merge_instances(masks, [0, 1, 2], [0.5] * 3)[0].tolist() == [1, 1, 1, 2, 2, 3, 3, 0]
    assert merge_instances([], [], [], size=(2, 3)).tolist() == [[0] * 3] * 2


# ------------------------------------------------------------------------- COCO


def squares(*places, side=200) -> list[dict]:
    """Codes of rectangles (top, left, height, width)."""
    masks = np.zeros((len(places), side, side), bool)
    for mask, (top, left, height, width) in zip(masks, places):
        mask[top : top + height, left : left + width] = True
    return codes(masks)


SMALL, MEDIUM, LARGE = (0, 0, 10, 10), (20, 20, 50, 50), (80, 80, 100, 100)
OTHER = (120, 0, 10, 10)

# Images of (predicted places, labels, scores, true places, labels, more of the truth); figures.
COCO_BY_HAND = {
    "all found": (
        [([SMALL, MEDIUM, LARGE], [0] * 3, [0.9, 0.8, 0.7], [SMALL, MEDIUM, LARGE], [0] * 3, {})],
        # One detection an image finds 1 of 3, ten find all.
        {"AP": 1, "AP50": 1, "APs": 1, "APm": 1, "APl": 1, "AR1": 1 / 3, "AR10": 1, "ARs": 1},
    ),
    # 62 of 100 pixels: thresholds 0.5, 0.55, 0.6 of ten.
    "three of ten overlaps": (
        [([(0, 0, 31, 20)], [0], [0.9], [(0, 0, 50, 20)], [0], {})],
        {"AP": 0.3, "AP50": 1, "AP75": 0, "AR100": 0.3, "APs": 0.3, "APm": NAN, "APl": NAN},
    ),
    "no detection at all": ([([], [], [], [SMALL], [0], {})], {"AP": 0, "AR100": 0, "APs": 0, "APl": NAN}),
    "nothing true": ([([SMALL], [0], [0.9], [], [], {})], {"AP": NAN, "AR1": NAN}),
    "no image": ([], {"AP": NAN, "AR100": NAN}),
    # Two detections inside a crowd drop out, though they rank first; the real one is all that counts.
    "crowd": (
        [([(80, 80, 40, 40), (130, 130, 40, 40), SMALL], [0] * 3, [0.9, 0.8, 0.7], [LARGE, SMALL], [0, 0],
          {"crowd": [True, False]})],
        {"AP": 1, "AR100": 1, "APl": NAN},
    ),
    # Only a crowd: nothing to be found.
    "only crowd": ([([LARGE], [0], [0.9], [LARGE], [0], {"crowd": [True]})], {"AP": NAN}),
    # Two images, tied: the first image's detection misses, the second's hits at precision 1/2, recall 1/2: levels 0 to
    # 0.5 are 51 of 101.
    "a tie": (
        [([MEDIUM], [0], [0.5], [SMALL], [0], {}), ([SMALL], [0], [0.5], [SMALL], [0], {})], {"AP50": 51 / 101 / 2}
    ),
    "the tie the other way": (
        [([SMALL], [0], [0.5], [SMALL], [0], {}), ([MEDIUM], [0], [0.5], [SMALL], [0], {})], {"AP50": 51 / 101}
    ),
    # A mask of 100 pixels whose annotated area is 2000: medium it is.
    "annotated area": ([([SMALL], [0], [0.9], [SMALL], [0], {"areas": [2000.0]})], {"AP": 1, "APs": NAN, "APm": 1}),
    # Areas 1024 and 9216 belong to both sides.
    "bounds of areas": (
        [([SMALL, OTHER], [0] * 2, [0.9, 0.8], [SMALL, OTHER], [0] * 2, {"areas": [1024, 9216]})],
        {"APs": 1, "APm": 1, "APl": 1},
    ),
    # A large false detection ranks first: it lowers AP (precision 1/2), but not that of small ones.
    "a false detection of another size": (
        [([LARGE, SMALL], [0] * 2, [0.9, 0.8], [SMALL], [0], {})], {"AP": 1 / 2, "APs": 1, "APl": NAN}
    ),
    # An instance without pixels is never found: recall 1/2, levels 0 to 0.5.
    "empty masks": (
        [([SMALL, (0, 0, 0, 0)], [0] * 2, [0.9, 0.8], [SMALL, (0, 0, 0, 0)], [0] * 2, {})],
        {"AP": 51 / 101, "AR100": 1 / 2},
    ),
    # The 101st detection of an image and class does not count.
    "a hundred detections": (
        [([OTHER] * 100 + [SMALL], [0] * 101, [0.9] * 100 + [0.5], [SMALL], [0], {})], {"AP": 0, "AR100": 0}
    ),
    # Class 0 found, class 1 missed, class 2 only predicted.
    "classes": (
        [([SMALL, SMALL], [0, 2], [0.9, 0.8], [SMALL, MEDIUM], [0, 1], {})],
        {"AP": 1 / 2, "per_class": {"a": {"AP": 1, "AP50": 1, "AP75": 1}, "b": {"AP": 0, "AP50": 0, "AP75": 0},
                                    "c": {"AP": NAN, "AP50": NAN, "AP75": NAN}}},
    ),
}  # fmt: skip


def coco_figures(images: list, protocol: str = "coco") -> dict:
    """`coco_average_precision` of images as above, classes a, b, c."""
    predictions = [CocoPredictions(squares(*places), labels, scores) for places, labels, scores, *_ in images]
    truths = [CocoTruths(squares(*places), labels, **more) for *_, places, labels, more in images]
    return coco_average_precision(predictions, truths, ["a", "b", "c"], protocol)


@pytest.mark.parametrize("case", COCO_BY_HAND)
def test_coco_by_hand(case):
    images, expected = COCO_BY_HAND[case]
    result = coco_figures(images)
    assert list(result) == [
        "AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl", "per_class"
    ]  # fmt: skip
    for name, value in expected.items():
        if name != "per_class":
            np.testing.assert_allclose(result[name], value, rtol=0, atol=1e-9, err_msg=name)
            continue
        for label, figures in value.items():
            assert list(result["per_class"][label]) == list(figures)
            np.testing.assert_allclose(list(result["per_class"][label].values()), list(figures.values()), atol=1e-9)


def test_wise_by_hand():
    """Score 0.49 is no detection, 0.5 is; an image without truth does not count; 30 of 100 pixels reach 0.25."""
    images = [
        ([SMALL], [0], [0.49], [SMALL], [0], {}),
        ([(0, 0, 30, 10)], [1], [0.5], [(0, 0, 100, 10)], [1], {}),
        ([LARGE], [1], [0.9], [], [], {}),
    ]
    result = coco_figures(images, "wise")
    assert list(result) == ["AP25", "AP50", "AP75", "per_class"]
    np.testing.assert_allclose([result["AP25"], result["AP50"]], [1 / 2, 0], atol=1e-9)
    assert result["per_class"]["b"] == {"AP25": pytest.approx(1, abs=1e-9), "AP50": 0, "AP75": 0}
    # COCO's own, at these overlaps: 0.49 counts, and so does what is found in an image without truth.
    plain = coco_figures(images, "coco25")
    assert plain["per_class"]["a"]["AP50"] == pytest.approx(1, abs=1e-9)
    assert plain["per_class"]["b"]["AP25"] == pytest.approx(1 / 2, abs=1e-9)
    assert math.isnan(result["per_class"]["c"]["AP25"])


@settings(max_examples=12)
@given(st.integers(0, 2**32 - 1))
def test_coco_to_the_letter(seed):
    rng = np.random.default_rng(seed)
    images = []
    for _ in range(3):
        count = int(rng.integers(0, 4))
        true = rectangles(rng, count, 44)
        # Three shifted copies and two at random, so that some match.
        found = np.concatenate([np.roll(true, rng.integers(0, 3, 2), (1, 2)), true, rectangles(rng, 2, 44)])
        true_labels = rng.integers(0, 2, count)
        areas = np.where(rng.random(count) < 0.5, true.sum((1, 2)), rng.choice([900, 1024, 5000, 9216, 20000], count))
        images.append({
            "masks": [as_set(m) for m in found],
            "labels": np.concatenate([true_labels, true_labels, rng.integers(0, 2, 2)]).tolist(),
            "scores": (rng.integers(0, 6, len(found)) / 5).tolist(),
            "true_masks": [as_set(m) for m in true],
            "true_labels": true_labels.tolist(),
            "crowd": (rng.random(count) < 0.25).tolist(),
            "areas": areas.tolist(),
            "codes": (codes(found), codes(true)),
        })  # fmt: skip
    predictions = [CocoPredictions(image["codes"][0], image["labels"], image["scores"]) for image in images]
    truths = [CocoTruths(i["codes"][1], i["true_labels"], i["crowd"], i["areas"]) for i in images]
    result = coco_average_precision(predictions, truths, ["a", "b"])
    expected = literal.coco(images, 2)
    assert set(expected) == set(result) - {"per_class"}
    for name, value in expected.items():
        np.testing.assert_allclose(result[name], value, rtol=0, atol=1e-9, err_msg=name)
    result = coco_average_precision(predictions, truths, ["a", "b"], "wise")
    for name, value in literal.wise(images, 2).items():
        np.testing.assert_allclose(result[name], value, rtol=0, atol=1e-9, err_msg=name)


def test_coco_says_what_its_own_summary_says():
    """The twelve numbers as pycocotools sums them up itself."""
    images = [image for case in ("all found", "crowd", "classes", "annotated area") for image in COCO_BY_HAND[case][0]]
    evaluation = cocos_own(
        [(squares(*places), labels, scores, squares(*true), *rest) for places, labels, scores, true, *rest in images],
        200, 3,
    )  # fmt: skip
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.summarize()
    result = coco_figures(images)
    result.pop("per_class")
    np.testing.assert_array_equal(np.nan_to_num(list(result.values()), nan=-1), evaluation.stats)


# ------------------------------------------------------------------------- the bootstrap


def test_bootstrap_of_a_mean():
    """Draws with replacement: the sample means' own quantiles, deterministic, near the normal interval."""
    values = np.random.default_rng(3).normal(size=200)

    def mean(weights):
        assert weights.sum() == 200 and weights.min() >= 0 and weights.dtype == np.int64
        return weights @ values / 200

    interval = bootstrap(mean, 200, samples=2000, seed=1)
    assert interval.samples.shape == (2000,) and interval.undefined == 0
    error = values.std() / math.sqrt(200)
    np.testing.assert_allclose(
        [interval.low, interval.high], values.mean() + 1.96 * error * np.array([-1, 1]), atol=0.02
    )
    assert interval.low == np.quantile(interval.samples, 0.025)
    np.testing.assert_array_equal(bootstrap(mean, 200, samples=2000, seed=1).samples, interval.samples)
    assert bootstrap(mean, 200, samples=2000, seed=2).low != interval.low
    narrow = bootstrap(mean, 200, samples=2000, seed=1, level=0.5)
    assert interval.low < narrow.low < narrow.high < interval.high


def test_bootstrap_where_the_statistic_is_undefined():
    """Of 2 images one is drawn not at all in every fourth sample; of the third statistic nothing is defined."""

    def statistic(weights):
        return np.array([weights[0], weights[1] if weights[1] else NAN, NAN])

    interval = bootstrap(statistic, 2, samples=400)
    assert interval.samples.shape == (400, 3)
    assert interval.undefined[0] == 0 and interval.undefined[2] == 400
    assert 60 < interval.undefined[1] < 140
    assert interval.undefined[1] == (interval.samples[:, 0] == 2).sum()
    np.testing.assert_array_equal(interval.low, [0, 1, NAN])
    np.testing.assert_array_equal(interval.high, [2, 2, NAN])


def test_bootstrap_of_an_average_precision_is_that_of_explicit_samples():
    rng = np.random.default_rng(5)
    made = []
    for _ in range(12):
        count, true = rng.integers(0, 6, 2)
        made.append(ImageRecord(rng.random((count, true)), rng.integers(0, 2, count), rng.integers(0, 3, count) / 2,
                                rng.integers(0, 2, true)))  # fmt: skip
    ranked = ranked_detections(made, num_classes=2)
    quick = bootstrap(lambda w: ranked.mean_average_precision(weights=w), 12, samples=30)
    slow = bootstrap(lambda w: mean_average_precision(np.repeat(made, w), num_classes=2).mean, 12, samples=30)
    np.testing.assert_array_equal(quick.samples, slow.samples)
    assert np.ptp(quick.samples[:, 1]) > 0.05


# ------------------------------------------------------------------------- failures


# Predicted spans, labels, scores; true spans, labels; outcomes; verdicts.
FAILURES_BY_HAND = {
    # 0.8 repeats what 0.9 has found.
    "a duplicate": ([(0, 4), (0, 5)], [0, 0], [0.9, 0.8], [(0, 4)], [0], ["found"], ["hit", "duplicate"]),
    "missed": ([], [], [], [(0, 4)], [0], ["missed"], []),
    # 1 of 20: below 0.1.
    "next to missed": ([(3, 4)], [0], [0.9], [(0, 20)], [0], ["missed"], ["false alarm"]),
    # 2 of 20: loose.
    "loose": ([(3, 5)], [0], [0.9], [(0, 20)], [0], ["loose"], ["false alarm"]),
    # One mask over three instances of which none is half of it.
    "merged": ([(0, 12)], [0], [0.9], [(0, 4), (4, 8), (8, 12)], [0] * 3, ["merged"] * 3, ["false alarm"]),
    # It is a good mask of the first, and has the second in it.
    "merged into a found one": ([(0, 10)], [0], [0.9], [(0, 8), (8, 10)], [0, 0], ["found", "merged"], ["hit"]),
    # Over an instance of its own and one of another class: nothing is merged.
    "not merged": ([(0, 12)], [0], [0.9], [(0, 4), (4, 12)], [0, 1], ["loose", "wrong class"], ["false alarm"]),
    # Two pieces, each less than half.
    "split": ([(0, 4), (6, 10)], [0, 0], [0.9, 0.8], [(0, 10)], [0], ["split"], ["false alarm"] * 2),
    # Pieces with just half of their pixels inside.
    "pieces half outside": ([(2, 6), (12, 16)], [0, 0], [0.9, 0.8], [(4, 14)], [0], ["split"], ["false alarm"] * 2),
    # One piece is enough of it: found, the other is a false alarm.
    "found, and a piece": ([(0, 6), (6, 10)], [0, 0], [0.9, 0.8], [(0, 10)], [0], ["found"], ["hit", "false alarm"]),
    "wrong class": ([(0, 4)], [1], [0.9], [(0, 4)], [0], ["wrong class"], ["false alarm"]),
    # An empty instance, an empty prediction.
    "empty": ([(0, 0)], [0], [0.9], [(0, 0)], [0], ["missed"], ["false alarm"]),
    # Empty predictions lie in nothing, and nothing covers an empty instance.
    "empty pieces": ([(0, 0), (5, 5)], [0, 0], [0.9, 0.8], [(0, 9)], [0], ["missed"], ["false alarm"] * 2),
    "nothing to merge": ([(0, 4)], [0], [0.9], [(0, 4), (0, 0)], [0, 0], ["found", "missed"], ["hit"]),
    "only false alarms": ([(0, 4)], [0], [0.9], [], [], [], ["false alarm"]),
}  # fmt: skip


@pytest.mark.parametrize("case", FAILURES_BY_HAND)
def test_failures_by_hand(case):
    spans, labels, scores, true, true_labels, outcomes, verdicts = FAILURES_BY_HAND[case]
    common, areas, true_areas = pixel_counts(strips(*spans), strips(*true))
    result = failures(common, areas, np.array(labels, int), scores, true_areas, np.array(true_labels, int))
    assert result.outcomes.tolist() == outcomes
    assert result.verdicts.tolist() == verdicts
    counts = failure_counts([result, result])
    assert {name: n for name, n in counts[0].items() if n} == {name: 2 * outcomes.count(name) for name in outcomes}
    assert {name: n for name, n in counts[1].items() if n} == {name: 2 * verdicts.count(name) for name in verdicts}


@settings(max_examples=150)
@given(st.integers(0, 2**32 - 1))
def test_failures_to_the_letter(seed):
    """Short strips, so that every rule is met; the hits are those of mAP^r."""
    rng = np.random.default_rng(seed)
    spans = [sorted(rng.integers(0, 21, 2)) for _ in range(rng.integers(0, 9))]
    count = int(rng.integers(0, len(spans) + 1))
    masks, true = strips(*spans[:count]), strips(*spans[count:])
    labels, true_labels = rng.integers(0, 2, len(masks)), rng.integers(0, 2, len(true))
    scores = rng.integers(0, 3, len(masks)) / 2
    common, areas, true_areas = pixel_counts(masks, true)
    result = failures(common, areas, labels, scores, true_areas, true_labels)
    outcomes, verdicts = literal.failures(
        [as_set(m) for m in masks], labels.tolist(), scores.tolist(), [as_set(m) for m in true], true_labels.tolist(),
        0.5, 0.1,
    )  # fmt: skip
    assert result.outcomes.tolist() == outcomes
    assert result.verdicts.tolist() == verdicts
    ranked = ranked_detections([image_record(masks, labels, scores, true, true_labels)], [0.5])
    assert (result.verdicts == "hit").sum() == sum(int(one.hits.sum()) for one in ranked.classes)
    assert (result.outcomes == "found").sum() == (result.verdicts == "hit").sum()


# ------------------------------------------------------------------------- bad input


def localized(**change):
    good = {"scores": [[0.5]], "points": [[(0, 0)]], "boxes": [[(0, 0, 1, 1)]], "box_labels": [[0]]}
    return localization_map(**(good | change))


def coco_of(masks=None, truths=None, class_names="a", protocol="coco"):
    truths = [CocoTruths([], [])] if truths is None else truths
    predictions = [CocoPredictions(squares(SMALL) if masks is None else masks, [0], [1.0])]
    return coco_average_precision(predictions, truths, class_names, protocol)


def weighted(metric, weights):
    made = [ImageRecord(np.ones((1, 1)), np.zeros(1, int), np.ones(1), np.zeros(1, int))]
    return metric(made, weights=weights)


WEIGHTED = (
    mean_average_precision,
    average_best_overlap,
    lambda made, weights: ranked_detections(made).precision_recall(0, weights=weights),
    lambda made, weights: classification_map(np.ones((1, 1)), np.ones((1, 1), int), weights=weights),
)
BAD_WEIGHTS = (([1, 2], "one for each of the 1 images"), ([-1], "numbers from 0 on"), ([0.5], "numbers from 0 on"))
ONE, TWO = strips((0, 1)), strips((0, 1), length=2)
BAD_INPUT = [
    *((lambda metric=metric, weights=weights: weighted(metric, weights), words)
      for metric, (weights, words) in product(WEIGHTED, BAD_WEIGHTS)),
    (lambda: localized(points=[[(0, 0, 0)]]), "have shapes"),
    (lambda: localized(scores=[[NAN]]), "image 0 for class 0 is not a finite number"),
    (lambda: localized(points=[[(0, math.inf)]]), "image 0 for class 0 is not a finite number"),
    (lambda: localized(boxes=[]), "of 0, 1, 1 images but scores of 1"),
    (lambda: localized(boxes=[[(0, 0, 1)]]), "one label and flag for each box"),
    (lambda: localized(box_labels=[[1]]), "a box of class 1 but there are 1"),
    (lambda: localized(box_labels=[[-1]]), "box labels of image 0 must be class indices"),
    (lambda: localized(boxes=[[(3, 0, 2, 1)]]), "box 0 of image 0"),
    (lambda: localized(boxes=[[(3, 0, NAN, 1)]]), "box 0 of image 0"),
    (lambda: localized(tolerance=-1), "tolerance -1"),
    (lambda: localized(method="ranked"), "'ranked' is not for instances"),
    (lambda: strongest_points(np.zeros((2, 3))), "must be"),
    (lambda: inside_fractions(np.full((1, 1, 2), -1.0), TWO), "negative or non-finite"),
    (lambda: inside_fractions(np.full((1, 1, 2), NAN), TWO), "negative or non-finite"),
    (lambda: inside_fractions(np.ones((1, 1, 3)), TWO), r"prms \(1, 3\), masks \(1, 2\)"),
    (lambda: inside_fractions(np.ones((1, 1, 3)), [], void_rule="ignore"), "choose 'keep' or 'drop'"),
    (lambda: response_record(np.ones((1, 2)), [0], [1], [], []), r"must be \(maps, height, width\)"),
    (lambda: response_record(np.ones((1, 1, 2)), [0], [1], [], [0]), "0 true masks but 1 true labels"),
    (lambda: response_record(np.ones((1, 1, 2)), [0], [NAN], [], []), "scores must be finite"),
    (lambda: response_map_quality([], "first"), "variant 'first' is not known"),
    (lambda: response_map_quality([], threshold=1), "threshold 1 must be"),
    (lambda: quality_by_crowding([], absent="keep"), "absent 'keep' is not known"),
    (lambda: quality_by_size([], [0, 0]), "rising shares"),
    (lambda: merge_instances([], [], []), "no masks to tell the size"),
    (lambda: merge_instances(ONE, [0], [1], size=(2, 2)), r"masks are \(1, 20\) but the image is"),
    (lambda: merge_instances(ONE, [0, 1], [1]), "1 masks, 2 labels, 1 scores"),
    (lambda: confusion([[0]], [[0, 1]], 2), "they must be of one size"),
    (lambda: confusion([[3]], [[0]], 2), "prediction holds 3"),
    (lambda: confusion([[0]], [[-1]], 2), "truth holds -1"),
    (lambda: confusion([[0.0]], [[0]], 2), "prediction holds float64"),
    (lambda: confusion([[0]], [[0]], 300), "void is 255, which is also"),
    (lambda: mean_iou(np.zeros((2, 3))), "must be a square"),
    (lambda: coco_of(protocol="voc"), "protocol 'voc' is not known"),
    (lambda: coco_of(truths=[]), "predictions of 1 images but truths of 0"),
    (lambda: coco_of(class_names=["a", "a"]), "must differ"),
    (lambda: coco_of(class_names=[]), "label 0 met but there are 0 classes"),
    (lambda: coco_of([np.zeros((2, 2))]), "image 0: a mask is no COCO run-length code"),
    (lambda: coco_of([{"size": [2, 2], "counts": [4]}]), "is no COCO run-length"),
    (lambda: coco_of([]), "image 0: 0 masks, 1 labels, 1 scores"),
    (lambda: coco_of(truths=[CocoTruths([], [0])]), "0 true masks but 1 true labels"),
    (lambda: coco_of(truths=[CocoTruths([], [], crowd=[True])]), "0 true masks, 1 crowd flags, 0 areas"),
    (lambda: bootstrap(np.sum, 0, 3), "0 images and 3 samples"),
    (lambda: bootstrap(np.sum, 4, 0), "at least one"),
    (lambda: bootstrap(np.sum, 4, 3, level=1.0), "level 1.0 must lie"),
    (lambda: failures([[1]], [1], [], [1.0], [1], [0]), "1 masks, 0 labels, 1 scores"),
    (lambda: failures([[1]], [1], [0], [1.0], [1], [0], threshold=0.05), "must be 0 < loose <= threshold <= 1"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "words"), BAD_INPUT)
def test_bad_input(call, words):
    with pytest.raises(InputError, match=words):
        call()
