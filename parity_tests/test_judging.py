"""Judging: a picture's record against the methods themselves, the files that records are kept in, and their views."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

pytest.importorskip("pycocotools")
from pycocotools import mask as coco_mask

from prm import InputError
from prm.accelerated import Proposals, SegmentationSettings, Segmenter
from prm.accelerated.networks import network
from prm.eval.datasets import draw_scene
from prm.eval.datasets.base import Instances, Sample
from prm.eval.judging.answers import ABLATED, BOX_MASKS, BOX_SOURCES, GALLERIES, TRUE_MASKS, _without_rivals
from prm.eval.judging.evaluators import classification, figures_of, proposals, protocols
from prm.eval.judging.picture import _confusion, _on_truth, judge_picture
from prm.eval.judging.record import (
    ANSWER,
    Detections,
    Record,
    Truth,
    failures_of,
    image_record_of,
    response_record_of,
)
from prm.eval.judging.run import load_records, records, run_folder
from prm.eval.judging.short import short_view
from prm.eval.metrics import (
    average_best_overlap,
    coco_average_precision,
    image_record,
    inside_fractions,
    mean_average_precision,
    mean_iou,
)  # fmt: skip
from prm.eval.metrics.coco import CocoPredictions, CocoTruths

CLASSES = ("disc", "square", "triangle", "star", "cross")
SETTINGS = SegmentationSettings(class_threshold=0.3, peak_threshold=0.2, max_peaks=12, beta_area=3.0, alpha=2.0)


def scene(k: int, void: bool = False, masks: bool = True) -> Sample:
    drawn = draw_scene(5, k, size=64)
    blank = np.zeros(drawn.masks.shape[1:], bool)
    blank[:7] = void
    truth = Instances(drawn.masks & ~blank, drawn.labels, void=blank if void else None)
    return Sample(f"{k}.png", tuple(sorted(set(drawn.labels.tolist()))), lambda: drawn.image,
                  read_instances=(lambda: truth) if masks else None)  # fmt: skip


def propose(sample: Sample) -> Proposals:
    """Rectangles, and the truth moved a little."""
    rng = np.random.default_rng(len(sample.name))
    masks = np.zeros((30, *sample.image.shape[:2]), bool)
    for mask in masks:
        (y, x), (h, w) = rng.integers(0, 50, 2), rng.integers(4, 40, 2)
        mask[y : y + h, x : x + w] = True
    if sample.masks is not None:
        masks = np.concatenate([masks, np.roll(sample.masks, 3, axis=1)])
    return Proposals.from_masks(torch.from_numpy(masks))


@pytest.fixture(scope="module")
def segmenter():
    torch.manual_seed(0)
    model = network("smallnet", len(CLASSES), widths=(8, 12), pools=2).eval()
    return Segmenter(model, [0.5] * 3, [0.25] * 3, settings=SETTINGS)


@pytest.fixture(scope="module")
def found(segmenter):
    samples = [scene(k, void=k == 1) for k in range(4)]
    return samples, [judge_picture(segmenter, len(CLASSES), (s, propose(s), 0.0)) for s in samples]


def test_the_answer_is_the_segmenters(segmenter, found):
    for sample, one in zip(*found):
        answer = segmenter([sample.image], [propose(sample)])[0]
        mine = one.answers[ANSWER]
        assert [i.label for i in answer.instances] == mine.labels.tolist() and len(mine.labels)
        assert [i.score for i in answer.instances] == pytest.approx(mine.scores.tolist(), rel=1e-6)
        masks = np.concatenate([i.mask.masks().numpy() for i in answer.instances])
        common = (masks[:, None] & sample.masks[None]).sum(axis=(2, 3))
        np.testing.assert_array_equal(mine.common, common)
        np.testing.assert_array_equal(mine.areas, masks.sum(axis=(1, 2)))
        if sample.void is not None:
            np.testing.assert_array_equal(mine.void, (masks & sample.void).sum(axis=(1, 2)))
        np.testing.assert_allclose(one.scores, answer.scores.double().numpy(), rtol=1e-6)


def test_leaving_a_term_out_is_a_weight_of_zero(segmenter, found):
    # Without the instance-aware and the class-aware term Eq. 6 has alpha = 0 and beta = 0.
    for name, settings in (("instance", replace(SETTINGS, alpha=0.0)), ("class", replace(SETTINGS, beta_area=0.0))):
        other = Segmenter.__new__(Segmenter)
        other.__dict__ |= segmenter.__dict__ | {"settings": settings}
        for sample, one in zip(*found):
            mine = judge_picture(other, len(CLASSES), (sample, propose(sample), 0.0)).answers[ANSWER]
            ablated = one.answers[f"prm: without the {name}-aware term"]
            np.testing.assert_array_equal(mine.common, ablated.common)
            np.testing.assert_allclose(mine.scores, ablated.scores)
    boundary = "prm: without the boundary-aware term"
    assert any(len(s.answers[boundary].scores) and (s.answers[boundary].scores != s.answers[ANSWER].scores[0]).all()
               for s in found[1])  # fmt: skip


def test_every_row_of_the_tables_is_there_and_the_truth_is_found_where_it_is_in_the_gallery(found):
    wanted = {ANSWER, *ABLATED, *(f"{s}: {g}" for s in (*BOX_SOURCES, TRUE_MASKS, "prm") for g in GALLERIES)}
    wanted |= {f"{s}: {m}" for s in BOX_SOURCES for m in BOX_MASKS}
    for sample, one in zip(*found):
        assert set(one.answers) == wanted
        for gallery in GALLERIES[1:]:
            record = image_record_of(one, f"{TRUE_MASKS}: {gallery}")
            np.testing.assert_array_equal(np.diag(record.ious), 1.0)
        assert one.answers["ground truth: rectangle"].labels.tolist() == sample.mask_labels.tolist()
        for mine in one.answers.values():
            assert mine.common.shape == (len(mine.labels), len(sample.masks)) and len(mine.scores) == len(mine.labels)
            assert (mine.common.sum(axis=1) <= mine.areas).all() and (mine.void <= mine.areas).all()


def test_figures_are_those_of_the_metrics_on_the_masks_themselves(segmenter, found):
    samples, one = found
    figures = figures_of(one, CLASSES, samples=0)
    plainly, ignored, predictions, known, truths = [], [], [], [], []
    for sample, s in zip(samples, one):
        instances = segmenter([sample.image], [propose(sample)])[0].instances
        masks = np.concatenate([i.mask.masks().numpy() for i in instances])
        given = masks, [i.label for i in instances], [i.score for i in instances], sample.masks, sample.mask_labels
        plainly.append(image_record(*given))
        ignored.append(image_record(*given, void=sample.void, void_rule="ignore"))
        predictions.append(CocoPredictions(s.masks, given[1], given[2]))
        truths.append(CocoTruths(s.truth.masks, sample.mask_labels))
        cleared = s.masks_known if sample.void is not None else s.masks
        known.append(CocoPredictions(cleared, given[1], given[2]))
        if sample.void is not None:
            assert not (coco_mask.decode(cleared).transpose(2, 0, 1).astype(bool) & sample.void).any()
    mine = figures["instances"][ANSWER]
    for name, some in (("instances", plainly), ("void_ignored", ignored)):
        mine = figures[name][ANSWER] if name == "instances" else figures[name]
        expected = mean_average_precision(some, num_classes=len(CLASSES))
        assert [mine[f"mAP^r_{t}"] for t in (0.25, 0.5, 0.75)] == pytest.approx(expected.mean.tolist())
        assert mine["ABO"] == pytest.approx(average_best_overlap(some, num_classes=len(CLASSES)))
    wise = coco_average_precision(known, truths, CLASSES, "wise")
    assert figures["wise"]["AP25"] == pytest.approx(wise["AP25"], nan_ok=True)
    coco = coco_average_precision(predictions, truths, CLASSES)
    assert figures["coco"]["AP50"] == pytest.approx(coco["AP50"])
    assert figures["segmentation"]["mIoU"] == pytest.approx(mean_iou(sum(s.confusion for s in one))[1])
    assert sum(figures["failures"]["instances"].values()) == sum(len(s.masks) for s in samples)
    assert {o for s in one for o in failures_of(s).outcomes} <= set(figures["failures"]["instances"])


def test_pixels_are_counted_once_and_void_not_at_all(found):
    for sample, one in zip(*found):
        known = np.count_nonzero(~sample.void) if sample.void is not None else one.size[0] * one.size[1]
        assert one.confusion.sum() == known
        truth = np.zeros(one.size, int)
        for mask, label in zip(sample.masks, sample.mask_labels):
            truth[mask] = label + 1
        if sample.void is not None:
            truth[sample.void] = 255
        expected = np.bincount(truth[truth != 255], minlength=len(CLASSES) + 1)
        np.testing.assert_array_equal(one.confusion.sum(axis=1), expected)


def test_quality_is_the_maps_mass_inside(segmenter, found):
    for sample, one in zip(*found):
        prms = segmenter.look(sample.image).prms.numpy()
        np.testing.assert_allclose(one.quality["q"], inside_fractions(prms, sample.masks), rtol=1e-6)
        dropped = inside_fractions(prms, sample.masks, sample.void, "drop")
        np.testing.assert_allclose(response_record_of(one, known=True).q, dropped, rtol=1e-6)
        assert len(one.quality["labels"]) == len(prms) > 0


class Pictures:
    """A data set that remembers which of its pictures were asked for."""

    def __init__(self, count: int):
        self.count, self.asked = count, []

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, k: int) -> Sample:
        self.asked.append(k)
        return scene(k, void=k == 1, masks=k != 2)


def plain(one) -> dict:
    """A record without its times, for comparison."""
    fields = {name: value for name, value in vars(one).items() if name != "seconds"}
    answers = {method: vars(found) for method, found in one.answers.items()}
    return fields | {"truth": one.truth and vars(one.truth), "answers": answers}


def test_finished_pictures_are_kept_and_damaged_ones_made_again(segmenter, tmp_path):
    pictures = Pictures(4)
    records(segmenter, pictures, len(CLASSES), propose, tmp_path)
    first = [plain(s) for s in load_records(tmp_path, 4)]
    assert first[2]["truth"] is None and not first[2]["answers"] and first[0]["truth"] is not None
    (tmp_path / "000001.npz").write_bytes((tmp_path / "000001.npz").read_bytes()[:900])
    (tmp_path / "000003.npz").unlink()
    pictures.asked.clear()
    ticks = []
    records(segmenter, pictures, len(CLASSES), propose, tmp_path, tick=lambda: ticks.append(1))
    assert pictures.asked == [1, 3] and len(ticks) == 4
    for before, after in zip(first, (plain(s) for s in load_records(tmp_path, 4))):
        np.testing.assert_equal(after, before)
    (tmp_path / "000000.npz").unlink()
    with pytest.raises(InputError, match=r"000000\.npz: missing or damaged"):
        list(load_records(tmp_path, 4))


def test_two_shares_make_what_one_process_makes(segmenter, tmp_path):
    for k in (1, 0):
        records(segmenter, Pictures(3), len(CLASSES), propose, tmp_path / "two", (k, 2))
    records(segmenter, Pictures(3), len(CLASSES), propose, tmp_path / "one")
    one, two = (list(load_records(tmp_path / name, 3)) for name in ("one", "two"))
    for a, b in zip(one, two):
        np.testing.assert_equal(plain(a), plain(b))
    assert _without_times(figures_of(one, CLASSES, 20)) == _without_times(figures_of(two, CLASSES, 20))


def _without_times(figures: dict) -> dict:
    return {name: value for name, value in figures.items() if name != "seconds_per_picture"}


def test_an_interruption_loses_no_finished_picture(segmenter, tmp_path):
    class Broken(Pictures):
        def __getitem__(self, k):
            if k == 2:
                raise KeyboardInterrupt
            return super().__getitem__(k)

    with pytest.raises(KeyboardInterrupt):
        records(segmenter, Broken(4), len(CLASSES), propose, tmp_path)
    kept = sorted(path.name for path in tmp_path.iterdir())
    assert kept[0] == "000000.npz" and "000003.npz" not in kept and not [name for name in kept if name.endswith("tmp")]
    pictures = Pictures(4)
    records(segmenter, pictures, len(CLASSES), propose, tmp_path)
    assert 0 not in pictures.asked and len(list(load_records(tmp_path, 4))) == 4


def test_other_settings_are_another_folder(tmp_path):
    a, b = run_folder(tmp_path, {"alpha": 1}), run_folder(tmp_path, {"alpha": 2})
    assert a != b and a == run_folder(tmp_path, {"alpha": 1}) and (a / "run.json").is_file()


def test_without_masks_there_is_no_walk_and_the_same_localization(segmenter, found, tmp_path):
    records(segmenter, Pictures(4), len(CLASSES), None, tmp_path)
    for one, full in zip(load_records(tmp_path, 4), found[1]):
        assert one.truth is None and not one.answers and not one.quality
        np.testing.assert_array_equal(one.points, full.points)
        np.testing.assert_array_equal(one.scores, full.scores)
    figures = figures_of(list(load_records(tmp_path, 4)), CLASSES, samples=0)
    assert {"classification", "localization"} <= set(figures) and "instances" not in figures


def test_without_a_network_the_upper_bounds_are_left(tmp_path):
    records(None, Pictures(4), len(CLASSES), propose, tmp_path)
    figures = figures_of(list(load_records(tmp_path, 4)), CLASSES, samples=0)
    names = {f"{s}: {g}" for s in ("ground truth", TRUE_MASKS) for g in GALLERIES}
    assert set(figures["instances"]) == names | {f"ground truth: {m}" for m in BOX_MASKS}
    assert "classification" not in figures and figures["instances"]["ground truth: truth"]["ABO"] > 0.5
    assert figures["proposals"]["ABO"] == figures["instances"][f"{TRUE_MASKS}: proposals"]["ABO"]


def test_the_short_view_counts_what_was_done(segmenter, tmp_path):
    ticks = []
    records(segmenter, Pictures(4), len(CLASSES), propose, tmp_path / "own", tick=lambda: ticks.append(1), tables=False)
    records(segmenter, Pictures(4), len(CLASSES), propose, tmp_path / "all")
    own, whole = (list(load_records(tmp_path / name, 4)) for name in ("own", "all"))
    assert all(set(one.answers) <= {ANSWER} and not one.quality for one in own)
    views = [short_view(figures_of(some, CLASSES, 0)) for some in (own, whole)]
    assert len(ticks) == views[0]["images"] == 4
    assert views[0]["true_instances"] == sum(len(one.truth.labels) for one in own if one.truth)
    assert set(views[0]["seconds_per_image"]) == {"proposals", "forward", "peaks", "walk", "retrieval", "judging"}
    for view in views:
        del view["seconds_per_image"]
    assert views[0] == views[1]
    # The peaks that the instances stand for, looked up in the masks.
    samples = [scene(k, void=k == 1) for k in (0, 1, 3)]
    answers = [(sample, segmenter([sample.image], [propose(sample)])[0]) for sample in samples]
    hits = [sample.masks[sample.mask_labels == i.label, round(i.peak[0]), round(i.peak[1])].any()
            for sample, answer in answers for i in answer.instances]  # fmt: skip
    assert views[0]["peaks_inside_an_instance"] == pytest.approx(np.mean(hits))
    assert views[0]["peaks"] == sum(answer.peaks for _, answer in answers)


# ---- single pictures, worked by hand


def codes(*masks) -> list[dict]:
    """COCO's codes, as records keep them, of masks (H, W)."""
    found = [coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8)) for mask in masks]
    return [{"size": code["size"], "counts": code["counts"].decode()} for code in found]


def record(answer: Detections | None = None, truth: Truth | None = None, **more) -> Record:
    """Of a picture of 4 x 10 pixels; only what is given counts."""
    none = np.zeros(0)
    return Record("one", (4, 10), more.pop("present", none), None, None, None, truth=truth,
                  answers={} if answer is None else {ANSWER: answer}, **more)  # fmt: skip


def truth_of(*masks, crowds: int = 0, reachable=()) -> Truth:
    """True instances of class 0, of which the last `crowds` are crowds."""
    areas, single = np.array([mask.sum() for mask in masks], dtype=np.int64), len(masks) - crowds
    return Truth(np.zeros(single, np.int64), areas[:single], codes(*masks), np.zeros(crowds, np.int64),
                 areas.astype(np.float64), np.array(reachable, dtype=np.float64))  # fmt: skip


def columns(first: int, last: int) -> np.ndarray:
    """(4, 10) bool: these columns, both included."""
    mask = np.zeros((4, 10), bool)
    mask[:, first : last + 1] = True
    return mask


def test_void_pixels_are_cleared_from_the_prediction_alone():
    """Ten pixels, four of them void, six in common with the instance of six: 6 / 10, and 6 / 6 without the void."""
    found = Detections(*(np.array(n) for n in ([0], [1.0], [10], [4], [[6]])))
    one = record(found, Truth(np.array([0]), np.array([6]), [], np.zeros(0), np.array([6.0]), np.array([1.0])))
    assert image_record_of(one).ious.tolist() == [[0.6]] and image_record_of(one, void=True).ious.tolist() == [[1.0]]


def test_a_proposal_reaches_what_it_overlaps_by_the_threshold():
    one = record(truth=truth_of(*3 * [columns(0, 1)], reachable=[0.5, 0.7, 0.4]))
    figures = proposals([one], ("thing",), 0)["proposals"]
    assert figures["recall_0.5"] == pytest.approx(2 / 3) and figures["recall_0.7"] == pytest.approx(1 / 3)


def test_doubtful_labels_are_neither_present_nor_absent():
    """The picture in doubt has the highest score: counted as absent it would halve the precision."""
    sample = Sample("doubt", (0,), lambda: np.zeros((4, 4, 3), np.uint8), difficult=(2,))
    assert judge_picture(None, 3, (sample, None, 0.0)).present.tolist() == [1, 0, -1]
    scores, present = (2.0, 1.0, 0.0), (-1, 1, 0)
    some = [record(scores=np.array([s]), present=np.array([p], np.int8)) for s, p in zip(scores, present)]
    assert classification(some, ("thing",), 0)["classification"]["mAP"] == 1.0


def test_crowds_are_no_background():
    """Four pixels: an object found, a crowd where an object is seen, nothing, and an object in the crowd, missed."""
    truth = Instances(np.array([[[1, 0, 0, 1]]], bool), np.array([0]),
                      crowd=(np.array([[[0, 1, 0, 1]]], bool), np.array([1])))  # fmt: skip
    sample = Sample("crowd", (0,), lambda: np.zeros((1, 4, 3), np.uint8), read_instances=lambda: truth)
    seen = np.array([[[1, 1, 0, 0]]], bool)
    found = _confusion((None, np.array([0]), np.array([1.0])), seen, sample, 2)
    assert found.tolist() == [[1, 0, 0], [1, 1, 0], [0, 0, 0]]  # truth by prediction, background first


def test_crowds_are_not_to_be_found():
    """One instance, found, and a crowd, in which another is seen: neither missed nor wrong."""
    truth = truth_of(columns(0, 2), columns(5, 9), crowds=1)
    found = Detections(*(np.array(n) for n in ([0, 0], [0.9, 0.8], [12, 8], [0, 0], [[12], [0]])))
    one = record(found, truth, masks=codes(columns(0, 2), columns(6, 7)), quality={"q": np.zeros(0)})
    assert protocols([one], ("thing",), 0)["coco"]["AP50"] == pytest.approx(1.0)


def test_boxes_have_rivals_in_their_own_class_only():
    boxes = np.array([[0, 0, 3, 3], [0, 0, 3, 3], [0, 0, 3, 3], [5, 0, 9, 3]])
    labels, scores = np.array([0, 1, 0, 0]), np.array([0.5, 0.7, 0.9, 0.6])
    left, classes, values = _without_rivals(boxes, labels, scores, SETTINGS, 4, 10)
    assert left.tolist() == boxes[[2, 1, 3]].tolist() and values.tolist() == [0.9, 0.7, 0.6]
    assert classes.tolist() == [0, 1, 0]


def test_a_peak_counts_inside_an_instance_of_its_own_class():
    """Instances of class 0 on the left and of class 1 on the right; peaks of class 0 on either, of class 1 on none."""
    truth = Instances(np.array([columns(0, 3), columns(6, 9)]), np.array([0, 1]))
    sample = Sample("peaks", (0, 1), lambda: np.zeros((4, 10, 3), np.uint8), read_instances=lambda: truth)
    found = SimpleNamespace(peaks=torch.tensor([[0, 0, 0], [0, 0, 0], [1, 0, 0]]),
                            positions=np.array([[1.0, 2.0], [1.0, 7.0], [3.0, 5.0]]))  # fmt: skip
    assert _on_truth(found, SimpleNamespace(peaks=torch.tensor([0, 1, 2])), sample).tolist() == [True, False, False]
    assert _on_truth(found, SimpleNamespace(peaks=torch.tensor([1, 0])), sample).tolist() == [False, True]
