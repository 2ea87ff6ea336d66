"""Figures of merit against numbers worked by hand, and against COCO's own code where the definitions coincide."""

import math

import numpy as np
import pytest

from prm import InputError
from prm.eval.metrics import (
    ImageRecord,
    average_best_overlap,
    average_precision,
    classification_map,
    image_ious,
    image_record,
    mean_average_precision,
)
from prm.parity_tests.literal_metrics import cocos_own, strips

EXACT = 1e-12


def record(ious, scores, labels=None, true_labels=None) -> ImageRecord:
    """A record from its overlap matrix; all of class 0 unless told."""
    ious = np.array(ious, dtype=float)
    labels = np.zeros(len(scores), np.int64) if labels is None else np.array(labels, np.int64)
    if true_labels is None:
        true_labels = np.zeros(ious.shape[1], np.int64)
    return ImageRecord(ious, labels, np.array(scores, float), np.array(true_labels, np.int64))


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        # Hits at ranks 1, 3, 4 of 5 positives: precision 1, 2/3, 3/4; the envelope lifts 2/3 to 3/4.
        ("area", (1 + 3 / 4 + 3 / 4) / 5),
        ("ranked", (1 + 2 / 3 + 3 / 4) / 5),
        # Recall 1/5, 2/5, 3/5. Levels 0, .1, .2 have 1; .3, .4, .5 have 3/4; 6 * 0.1 is above 3/5: 0 from there on.
        ("voc07", (3 * 1 + 3 * 3 / 4) / 11),
        # Levels 0.00 to 0.20 have 1, 0.21 to 0.60 have 3/4.
        ("coco101", (21 * 1 + 40 * 3 / 4) / 101),
    ],
)
def test_average_precision_by_hand(method, expected):
    assert average_precision([True, False, True, True], 5, method) == pytest.approx(expected, abs=EXACT)


@pytest.mark.parametrize("found", [3, 6, 7])
def test_voc07_misses_levels_that_are_not_exact_in_floating_point(found):
    """Recall of exactly 3/10, 6/10 or 7/10 does not reach its level k * 0.1; 5/10 does."""
    assert average_precision([True] * found, 10, "voc07") == pytest.approx(found / 11, abs=EXACT)
    assert average_precision([True] * 5, 10, "voc07") == pytest.approx(6 / 11, abs=EXACT)


@pytest.mark.parametrize("method", ["area", "voc07", "coco101", "ranked"])
def test_average_precision_at_the_ends(method):
    assert math.isnan(average_precision([], 0, method))
    assert math.isnan(average_precision([False, False], 0, method))
    assert average_precision([], 3, method) == 0
    assert average_precision([False, False], 3, method) == 0
    assert average_precision([True, True, False], 2, method) == pytest.approx(1, abs=EXACT)


def test_average_precision_refuses():
    with pytest.raises(InputError, match="'f1' is not known; choose one of area"):
        average_precision([True], 1, "f1")
    with pytest.raises(InputError, match="2 hits but only 1 positives"):
        average_precision([True, True], 1)


def test_classification_ties_go_to_the_earlier_image():
    labels = np.array([[0], [1]])
    assert classification_map(np.zeros((2, 1)), labels).mean == pytest.approx(1 / 2, abs=EXACT)
    assert classification_map(np.zeros((2, 1)), labels[::-1]).mean == pytest.approx(1, abs=EXACT)


def test_classification_leaves_out_empty_classes_and_difficult_labels():
    scores = np.array([[0.9, 0.5, 0.1], [0.8, 0.6, 0.2], [0.7, 0.7, 0.3]])
    labels = np.array([[0, 0, 1], [1, 0, 0], [0, 0, 0]])
    result = classification_map(scores, labels)
    np.testing.assert_allclose(result.ap, [1 / 2, np.nan, 1 / 3], atol=EXACT)
    assert result.mean == pytest.approx(5 / 12, abs=EXACT)
    assert result.positives.tolist() == [1, 0, 1]
    difficult = np.array([[1, 0, 1], [0, 0, 0], [0, 0, 0]])
    result = classification_map(scores, labels, difficult)
    np.testing.assert_allclose(result.ap, [1, np.nan, np.nan], atol=EXACT)
    assert math.isnan(classification_map(scores, np.zeros_like(labels)).mean)


@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [
        (np.zeros((2, 1)), np.zeros((1, 2)), "have shapes"),
        (np.array([[0.0], [np.nan]]), np.zeros((2, 1)), "score of image 1 for class 0 is nan"),
        (np.zeros((1, 1)), np.full((1, 1), -1), "labels must be 0 or 1"),
    ],
)
def test_classification_refuses(scores, labels, message):
    with pytest.raises(InputError, match=message):
        classification_map(scores, labels)


def test_overlaps_by_hand():
    """4 of 10 pixels in common; empty masks overlap nothing, not even each other."""
    predicted, true = strips((0, 7), (0, 0)), strips((3, 10), (15, 20), (0, 0))
    np.testing.assert_array_equal(image_ious(predicted, true), [[4 / 10, 0, 0], [0, 0, 0]])
    assert image_ious(predicted, true[:0]).shape == (2, 0)
    assert image_ious([], true).shape == (0, 3)


def test_void_pixels_count_or_are_cleared():
    void = np.zeros((1, 20), bool)
    void[0, 10:] = True
    predicted, true = strips((0, 20)), strips((0, 10))
    assert image_ious(predicted, true, void)[0, 0] == 1 / 2
    assert image_ious(predicted, true, void, "ignore")[0, 0] == 1


def test_run_length_codes_overlap_like_arrays():
    coco = pytest.importorskip("pycocotools.mask", reason="pycocotools is not installed")
    rng = np.random.default_rng(0)
    masks = rng.random((7, 13, 17)) < rng.random((7, 1, 1))
    masks[2] = False
    codes = [coco.encode(np.asfortranarray(mask, np.uint8)) for mask in masks]
    void = rng.random((13, 17)) < 0.2
    expected = image_ious(masks[:4], masks[2:])
    np.testing.assert_array_equal(image_ious(codes[:4], codes[2:]), expected)
    np.testing.assert_array_equal(image_ious(codes[:4], masks[2:]), expected)
    np.testing.assert_array_equal(
        image_ious(codes[:4], codes[2:], void, "ignore"), image_ious(masks[:4], masks[2:], void, "ignore")
    )


def test_a_second_detection_of_one_instance_is_a_miss():
    """Hits: 0.9 and 0.7 of two instances; 0.8 repeats the first."""
    records = [record([[0.9, 0], [0.8, 0], [0, 0.6]], [0.9, 0.8, 0.7])]
    result = mean_average_precision(records, [0.5])
    assert result.ap[0, 0] == pytest.approx((1 + 2 / 3) / 2, abs=EXACT)
    assert result.positives.tolist() == [2]


def test_matching_rules_differ_on_overlapping_instances():
    """Both detections overlap instance 0 most, the second could also take instance 1."""
    records = [record([[0.6, 0.3], [0.5, 0.4]], [0.9, 0.8])]
    assert mean_average_precision(records, [0.25], matching="voc").mean[0] == pytest.approx(1 / 2, abs=EXACT)
    assert mean_average_precision(records, [0.25], matching="best_free").mean[0] == pytest.approx(1, abs=EXACT)


def test_equal_overlaps_take_the_first_instance_or_the_last():
    """The first detection ties. voc: takes 0, so that the second, which wants 0, misses. best_free: takes 1."""
    records = [record([[0.5, 0.5], [0.6, 0.0]], [0.9, 0.8])]
    assert mean_average_precision(records, [0.4], matching="voc").mean[0] == pytest.approx(1 / 2, abs=EXACT)
    assert mean_average_precision(records, [0.4], matching="best_free").mean[0] == pytest.approx(1, abs=EXACT)


@pytest.mark.parametrize("matching", ["voc", "best_free"])
def test_an_overlap_equal_to_the_threshold_is_a_hit(matching):
    records = [record([[0.5]], [1.0])]
    assert mean_average_precision(records, [0.5, 0.51], matching=matching).mean.tolist() == [1, 0]


def test_equal_scores_rank_the_earlier_image_first():
    miss, hit = record([[0.0]], [0.5]), record([[1.0]], [0.5])
    assert mean_average_precision([hit, miss], [0.5]).mean[0] == pytest.approx(1 / 2, abs=EXACT)
    assert mean_average_precision([miss, hit], [0.5]).mean[0] == pytest.approx(1 / 4, abs=EXACT)


def test_an_image_without_instances_counts_its_detections_as_misses():
    empty, hit = record(np.zeros((1, 0)), [0.9]), record([[1.0]], [0.5])
    assert mean_average_precision([empty, hit], [0.5]).mean[0] == pytest.approx(1 / 2, abs=EXACT)


def test_classes_without_instances_are_left_out_and_missed_classes_are_zero():
    """Class 0 found, class 1 only detected, class 2 only true, class 3 neither."""
    records = [record([[1.0, 0.0], [0.0, 0.9]], [0.9, 0.8], labels=[0, 1], true_labels=[0, 2])]
    result = mean_average_precision(records, [0.5], num_classes=4)
    np.testing.assert_array_equal(result.ap, [[1, np.nan, 0, np.nan]])
    assert result.mean[0] == 1 / 2
    assert mean_average_precision(records, [0.5]).ap.shape == (1, 3)


def test_nothing_anywhere_is_undefined():
    assert np.isnan(mean_average_precision([]).mean).all()
    assert math.isnan(average_best_overlap([]))
    only_detected = [record(np.zeros((1, 0)), [0.9])]
    assert np.isnan(mean_average_precision(only_detected).mean).all()
    assert math.isnan(average_best_overlap(only_detected))
    assert math.isnan(average_best_overlap(only_detected, average="class_mean"))


def test_average_best_overlap_by_hand():
    """Class 0: best 0.6 and 0 (no prediction in its image); class 1: only 0.1 by its own class, 0.7 by any."""
    records = [
        record([[0.6, 0.7], [0.9, 0.1]], [0.1, 0.2], labels=[0, 1], true_labels=[0, 1]),
        record(np.zeros((0, 1)), [], true_labels=[0]),
    ]
    assert average_best_overlap(records) == pytest.approx((0.6 + 0.1 + 0) / 3, abs=EXACT)
    assert average_best_overlap(records, average="class_mean") == pytest.approx((0.3 + 0.1) / 2, abs=EXACT)
    assert average_best_overlap(records, same_class=False) == pytest.approx((0.9 + 0.7 + 0) / 3, abs=EXACT)


def test_one_prediction_may_be_the_best_for_several_instances():
    assert average_best_overlap([record([[0.4, 0.5]], [1.0])]) == pytest.approx(0.45, abs=EXACT)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"masks": strips((0, 3), length=19)}, r"sizes differ in one image: masks \(1, 19\), true masks \(1, 20\)"),
        ({"masks": [[[1, 0]], [[1, 0, 0]]]}, "masks of one image have shapes"),
        ({"labels": [0, 0]}, "1 masks, 2 labels, 1 scores"),
        ({"scores": [np.nan]}, "score of prediction 0 is nan"),
        ({"labels": [-1]}, "labels must be class indices"),
        ({"labels": [0.5]}, "labels must be class indices"),
        ({"true_labels": []}, "1 true masks but 0 true labels"),
        ({"void": np.zeros((2, 2), bool)}, r"void \(2, 2\)"),
        ({"void_rule": "drop"}, "void rule 'drop' is not known"),
    ],
)
def test_records_refuse(arguments, message):
    good = {
        "masks": strips((0, 3)), "labels": [0], "scores": [1.0], "true_masks": strips((0, 3)), "true_labels": [0]
    }  # fmt: skip
    assert image_record(**good).ious.tolist() == [[1]]
    with pytest.raises(InputError, match=message):
        image_record(**(good | arguments))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"matching": "hungarian"}, "matching 'hungarian' is not known"),
        ({"ap": "ranked"}, "'ranked' is not for instances"),
        ({"thresholds": [0.0]}, "must lie above 0"),
        ({"num_classes": 1}, "label 2 met but there are 1 classes"),
    ],
)
def test_mean_average_precision_refuses(options, message):
    with pytest.raises(InputError, match=message):
        mean_average_precision([record([[1.0]], [1.0], labels=[2], true_labels=[2])], **options)
    with pytest.raises(InputError, match="average 'median' is not known"):
        average_best_overlap([], average="median")


@pytest.mark.parametrize("seed", range(4))
def test_agrees_with_cocos_own_evaluation(seed):
    """Rule "best_free" with "coco101" is COCO's definition: no crowd, all areas, fewer detections than its limit."""
    pytest.importorskip("pycocotools", reason="pycocotools is not installed")
    rng = np.random.default_rng(seed)
    images = [_random_image(rng) for _ in range(6)]
    thresholds = [0.25, 0.5, 0.75]
    records = [image_record(*image) for image in images]
    result = mean_average_precision(records, thresholds, num_classes=3, matching="best_free", ap="coco101")
    np.testing.assert_allclose(result.ap, _coco_ap(images, thresholds, 3), atol=1e-9)
    assert (result.ap[0] > 0.05).any()  # the cases are not all misses


def _random_image(rng):
    """Overlapping rectangles of 3 classes, and predictions that are shifted copies of them, with tied scores."""
    count = int(rng.integers(0, 6))
    true = np.zeros((count, 24, 24), bool)
    predicted = np.zeros((2 * count + 1, 24, 24), bool)
    for k, mask in enumerate([*true, *predicted]):
        top, left = rng.integers(0, 12, 2)
        if k >= count and k < 3 * count:
            rows, columns = np.nonzero(true[(k - count) % count])
            top, left = rows[0] + rng.integers(0, 3), columns[0] + rng.integers(0, 3)
        mask[top : top + rng.integers(6, 11), left : left + rng.integers(6, 11)] = True
    true_labels = rng.integers(0, 3, count)
    labels = np.concatenate([true_labels, true_labels, rng.integers(0, 3, 1)])
    return predicted, labels, rng.integers(0, 8, len(predicted)) / 8, true, true_labels


def _coco_ap(images, thresholds, num_classes) -> np.ndarray:
    """(T, C) average precision by pycocotools' COCOeval, NaN for its -1."""
    evaluation = cocos_own(images, 24, num_classes, thresholds)
    precision = evaluation.eval["precision"][:, :, :, 0, -1]  # thresholds, recall levels, classes; all areas
    ap = precision.mean(axis=1)
    return np.where(ap < 0, np.nan, ap)
