"""`prm tune`: the full search against Algorithm 1 in one go and against the metrics, its grid, and its command."""

import json
import re
from copy import copy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy.stats import rankdata

from prm import InputError
from prm.accelerated import Proposals, SegmentationSettings, Segmenter
from prm.accelerated.checkpoint import load_checkpoint, random_checkpoint, save_checkpoint
from prm.accelerated.networks import network
from prm.eval.datasets import make_synthetic
from prm.eval.datasets.base import Sample
from prm.eval.metrics import average_best_overlap, image_record, mean_average_precision
from prm.eval.metrics.instances import ImageRecord
from prm.eval.tuning import search as tuning
from prm.eval.tuning.gather import gather
from prm.eval.tuning.grid import CUTS, GRID, WEIGHTS, full_grid, searched
from prm.eval.tuning.search import halves, search
from prm.eval.tuning.worth import _best, _kept, _mean_average_precision, _passing, _wanted, worth
from prm.parity_tests import command

SMALL = {
    "alpha": (0.5, 3.0), "beta_area": (0.0, 40.0), "bias": (0.95, 2.0), "peak_threshold": (0.2, 0.6),
    "class_threshold": (0.45, 0.5), "nms": (0.3, 0.6),
}  # fmt: skip


def blobs(seed: int, size: int = 48, classes: int = 3) -> Sample:
    """A picture of coloured discs on noise; the label table leaves the last class out."""
    rng = np.random.default_rng(seed)
    rows, cols = np.mgrid[:size, :size]
    labels = np.sort(rng.integers(0, classes, 4))
    masks = np.array([(rows - r) ** 2 + (cols - c) ** 2 <= 36 for r, c in rng.integers(8, size - 8, (4, 2))])
    image = rng.integers(0, 60, (size, size, 3), dtype=np.uint8)
    for mask, label in zip(masks, labels):
        image[mask, label] = 220
    present = tuple(int(c) for c in np.unique(labels) if c < classes - 1)
    return Sample(f"blobs {seed}", present, lambda: image, read_instances=lambda: (masks, labels))


@pytest.fixture(scope="module")
def problem():
    """A random network, five pictures and proposals for each: the truth moved about, and squares."""
    torch.manual_seed(5)
    segmenter = Segmenter(
        network("smallnet", 3, widths=(8, 8), pools=1).eval(), [0.5] * 3, [0.25] * 3,
        settings=SegmentationSettings(class_threshold=0.48, max_peaks=12, nms_per_class=True, size=64),
    )  # fmt: skip
    samples = [blobs(k) for k in range(5)]
    known = {}
    for k, sample in enumerate(samples):
        rng = np.random.default_rng(100 + k)
        moved = [np.roll(m, tuple(rng.integers(-3, 4, 2)), (0, 1)) for m in sample.masks for _ in range(4)]
        squares = np.zeros((10, 48, 48), bool)
        for square, (r, c, side) in zip(squares, rng.integers((0, 0, 4), (40, 40, 20), (10, 3))):
            square[r : r + side, c : c + side] = True
        made = Proposals.from_masks(torch.from_numpy(np.array([*moved, *squares])))
        known[sample.image.tobytes()] = replace(made, objectness=torch.from_numpy(rng.random(len(made))))
    return segmenter, samples, lambda sample: known[sample.image.tobytes()]


@pytest.fixture(scope="module")
def pictures(problem):
    return gather(*problem, SMALL)


def with_settings(segmenter: Segmenter, settings: SegmentationSettings) -> Segmenter:
    other = copy(segmenter)
    other.settings = settings
    return other


def record(answer, sample):
    """The metrics' record of one picture's answer, from its dense masks."""
    masks = Proposals.concatenate([Proposals.empty(*answer.size), *(one.mask for one in answer.instances)]).masks()
    labels, scores = ([getattr(one, name) for one in answer.instances] for name in ("label", "score"))
    return image_record(masks.numpy(), labels, scores, sample.masks, sample.mask_labels)


def straight(problem, settings: SegmentationSettings, lowest: float = 0.2, iou: float = 0.5) -> dict[str, float]:
    """The three figures by `Segmenter` and the metrics, picture by picture."""
    segmenter, samples, propose = problem
    other = with_settings(segmenter, settings)
    answers = [other([sample.image], [propose(sample)])[0] for sample in samples]
    records = [record(answer, sample) for answer, sample in zip(answers, samples)]
    proxy = 0.0
    for answer, sample in zip(answers, samples):
        weight = {}
        # The proxy's weights are those of all peaks that the search may take.
        for threshold in (*SMALL["class_threshold"], segmenter.settings.class_threshold):
            loose = replace(settings, peak_threshold=lowest, class_threshold=threshold)
            responses = other.respond([sample.image])
            peaks = other.find_peaks(responses, loose)
            for (_, label, *at), part in zip(peaks.peaks.tolist(), peaks.share.tolist()):
                weight[label, other.position(at, answer.maps.shape[1:], answer.size)] = part * (label in sample.labels)
        for one in answer.instances:
            area = one.mask.resized(*one.prm.shape).areas().item() / one.prm.numel()
            inside = one.terms[0]
            information = inside * np.log(inside / area) if inside > 0 else 0
            proxy += weight[one.label, one.peak] / max(sum(weight.values()), 1e-300) * information / len(samples)
    return {"mAP^r": float(mean_average_precision(records, (iou,)).mean[0]), "ABO": average_best_overlap(records),
            "proxy": proxy}  # fmt: skip


def test_the_full_search_is_algorithm_1_under_each_setting(problem, pictures):
    base = problem[0].settings
    found = search(pictures, base, SMALL)
    rows = found.rows()
    assert len(rows) == 64 and len({row["mAP^r"] for row in rows}) > 10
    for row in rows[::7]:
        wanted = straight(problem, replace(base, **{name: row[name] for name in searched("eq6")}))
        assert {name: row[name] for name in wanted} == pytest.approx(wanted, abs=1e-9), row
    assert found.reached["mAP^r"] == max(row["mAP^r"] for row in rows)
    ranks = rankdata([row["proxy"] for row in rows]), rankdata([row["ABO"] for row in rows])
    assert found.agreement()["ABO"] == pytest.approx(np.corrcoef(*ranks)[0, 1])
    assert found.chosen == {name: getattr(found.settings, name) for name in searched("eq6")}
    assert found.present == pytest.approx(straight(problem, base), abs=1e-9)


FIT = {"weight_mass": (0.0, 0.5), "weight_response": (0.0, 2.0), "weight_objectness": (1.0,),
       "weight_on_contour": (0.0, 0.25), "peak_threshold": (0.2, 0.6), "class_threshold": (0.45, 0.5)}  # fmt: skip


@pytest.mark.parametrize("seed_pixel", ["free", "prefer", "require"])
def test_the_search_for_the_second_choice_too(problem, seed_pixel):
    base = replace(problem[0].settings, choice="fit", seed_pixel=seed_pixel, smooth=0.05)
    asked = with_settings(problem[0], base), *problem[1:]
    found = search(gather(*asked, FIT), base, FIT)
    rows = found.rows()
    assert len(rows) == 32 and len({row["mAP^r"] for row in rows}) > 5
    for row in rows[::3]:
        wanted = straight(asked, replace(base, **{name: row[name] for name in searched("fit")}))
        assert {name: row[name] for name in wanted} == pytest.approx(wanted, abs=1e-9), row
    assert found.settings.choice == "fit" and set(found.chosen) == set(searched("fit"))
    assert set(full_grid(base)) == set(searched("fit"))
    with pytest.raises(InputError, match="alpha"):
        full_grid(base, {"alpha": [1.0]})
    with pytest.raises(InputError, match="all weights are 0"):
        full_grid(base, {name: [0.0] for name in WEIGHTS["fit"]})


@pytest.mark.parametrize(("objective", "iou"), [("ABO", 0.5), ("proxy", 0.5), ("mAP^r", 0.75)])
def test_other_objectives_and_another_overlap(problem, pictures, objective, iou):
    found = search(pictures, problem[0].settings, SMALL, objective, iou)
    assert found.reached[objective] == max(row[objective] for row in found.rows())
    assert found.reached[objective] == pytest.approx(straight(problem, found.settings, iou=iou)[objective], abs=1e-9)


def test_an_absolute_peak_threshold_is_judged_as_it_is_and_then_replaced(problem):
    segmenter, samples, propose = problem
    other = with_settings(segmenter, replace(segmenter.settings, peak_minimum=0.01))
    found = search(gather(other, samples, propose, SMALL), other.settings, SMALL)
    records = [record(other([s.image], [propose(s)])[0], s) for s in samples]
    assert found.present["ABO"] == pytest.approx(average_best_overlap(records), abs=1e-12)
    assert found.present["ABO"] > 0 and found.settings.peak_minimum is None
    assert found.settings.peak_threshold in SMALL["peak_threshold"]


@given(st.integers(0, 10**9))
def test_one_wish_a_detection_is_all_that_mean_average_precision_needs(seed):
    """Against the metric itself, on overlaps and scores with many ties."""
    rng = np.random.default_rng(seed)
    C, thresholds = 3, (0.25, 0.5, 0.75)
    records, labels, scores, wishes, true = [], [], [], {t: [] for t in thresholds}, 0
    for _ in range(rng.integers(1, 4)):
        K, G = rng.integers(0, 9), rng.integers(0, 5)
        one = ImageRecord(rng.integers(0, 5, (K, G)) / 4, rng.integers(0, C, K), rng.integers(0, 4, K) / 2.0,
                          rng.integers(0, C, G))  # fmt: skip
        # The metric wants an image's detections as they come; ours are in their order, best first.
        order = np.argsort(-one.scores, kind="stable")
        for t in thresholds:
            wanted = np.empty(K, np.int64)
            _wanted(order, one.labels[order], one.ious, one.true_labels, t, true, wanted)
            wishes[t].append(wanted)
        records.append(one), labels.append(one.labels[order]), scores.append(one.scores[order])
        true += G
    positives = np.bincount(np.concatenate([r.true_labels for r in records]), minlength=C)
    if not true:
        return
    order = np.argsort(-np.concatenate(scores), kind="stable")
    kept = np.ones((1, len(order)), bool)
    for k, t in enumerate(thresholds):
        wanted = np.concatenate(wishes[t])[order]
        value = _mean_average_precision(np.concatenate(labels)[order], wanted, kept, positives, true)[0]
        assert value == pytest.approx(mean_average_precision(records, thresholds, C).mean[k], abs=1e-12)


def test_an_overlap_of_the_threshold_suppresses():
    """Three peaks by falling score; the first two overlap by exactly 0.5, the first and the third by less."""
    overlaps = np.array([[1.0, 0.5, 0.4], [0.5, 1.0, 0.0], [0.4, 0.0, 1.0]])
    kept = np.zeros((3, 3), bool)
    nms = np.array([0.4, 0.5, 0.6])
    nested, every = np.zeros((3, 3), bool), np.ones((3, 3), bool)
    _kept(np.arange(3), np.arange(3), np.zeros(3, int), overlaps, nested, every, nms, False, kept)
    assert kept.tolist() == [[True, False, False], [True, False, True], [True, True, True]]


def test_settings_of_suppression_that_are_not_searched_count(problem):
    segmenter, samples, propose = problem
    for own in ({"nms_nested": 0.3}, {"nms_nested": 0.3, "choose_again": True}, {"nms_per_class": True}):
        other = with_settings(segmenter, replace(segmenter.settings, nms=0.9, **own))
        found = search(gather(other, samples, propose, SMALL), other.settings, {"alpha": [0.5]})
        assert {name: getattr(found.settings, name) for name in own} == own
        first = replace(found.settings, choose_again=False)  # figures are those of first choices
        assert found.reached["ABO"] == pytest.approx(straight(problem, first)["ABO"], abs=1e-9)


def test_of_equal_proposals_the_first_is_chosen():
    """Eq. 6 is 1.5, 2, 2, 3 for the four proposals, of which the last is not allowed."""
    inside, contour = np.array([[0.5, 0.5, 1.0, 2.0]]), np.array([[1.0, 1.5, 1.0, 1.0]])
    choice, value = np.zeros(1, int), np.zeros(1)
    allowed = np.array([1, 1, 1, 0], bool)
    _best(inside, contour, np.zeros((1, 4)), np.zeros(1, int), allowed, 1.0, 0.0, choice, value)
    assert (choice.tolist(), value.tolist()) == ([1], [2.0])


def test_a_peak_of_the_threshold_passes():
    """With an absolute threshold its rule alone counts."""
    share = np.array([0.25, 0.5, 1.0])
    picture = SimpleNamespace(share=share, rules={(0.5, None): np.array([1, 1, 0], bool), (0.5, 0.1): share < 1})
    base = SegmentationSettings(class_threshold=0.5)
    cuts = [replace(base, peak_threshold=t) for t in (0.25, 0.5, 0.6)] + [replace(base, peak_minimum=0.1)]
    passing = [[True, True, False], [False, True, False], [False, False, False], [True, True, False]]
    assert _passing(picture, cuts).tolist() == passing


def test_pictures_in_which_nothing_can_be_found(problem):
    segmenter, samples, _ = problem
    none = gather(segmenter, samples[:2], lambda sample: Proposals.empty(48, 48), SMALL)
    found = search(none, segmenter.settings, SMALL)
    assert found.reached == {"mAP^r": 0.0, "ABO": 0.0, "proxy": 0.0} and found.agreement() == {}


def test_where_settings_are_equal_what_was_set_stays(problem, pictures):
    """The weights do not matter where nothing can be chosen; the values that are there already win."""
    none = gather(problem[0], problem[1][:2], lambda sample: Proposals.empty(48, 48), SMALL)
    base = replace(problem[0].settings, alpha=3.0, beta_area=40.0, bias=2.0, peak_threshold=0.6)
    assert search(none, base, SMALL).chosen == {
        "alpha": 3.0, "beta_area": 40.0, "bias": 2.0, "peak_threshold": 0.6, "class_threshold": 0.45, "nms": 0.3,
    }  # fmt: skip


# ------------------------------------------------------------------------------------------------------------ the grid


def hill(top: dict[str, float]):
    """Stands for `worth`: a figure that falls with the distance from `top`."""

    def figures(pictures, weights, cuts, iou=0.5, tick=lambda: None):
        far = np.zeros((len(weights), len(cuts)))
        for name, best in top.items():
            if name in WEIGHTS["eq6"]:
                values = np.array([triple[WEIGHTS["eq6"].index(name)] for triple in weights])[:, None]
            else:
                values = np.array([getattr(cut, name) for cut in cuts])[None]
            far = far + np.abs(values - best)
        for _ in weights:
            tick()
        return {"mAP^r": 20 - far, "proxy": -far}

    return figures


def test_a_weight_whose_best_lies_at_the_edge_is_followed(monkeypatch, pictures):
    monkeypatch.setattr(tuning, "worth", hill({"alpha": 12.1, "beta_area": 0.0, "nms": 0.9, "bias": 0.3}))
    grid = {"alpha": (0.75, 1.5, 3.0), "beta_area": (0.0, 5.0), "bias": (0.9, 1.8, 3.6), "nms": (0.3, 0.5)}
    tried = []
    found = search(pictures, SegmentationSettings(), grid, steps=4, tick=lambda: tried.append(1))
    assert found.grid["alpha"] == (0.75, 1.5, 3.0, 6.0, 12.0, 24.0) and found.chosen["alpha"] == 12.0
    assert found.grid["bias"] == pytest.approx((0.1125, 0.225, 0.45, 0.9, 1.8, 3.6))
    assert found.chosen["bias"] == pytest.approx(0.225)
    # No weight below 0; thresholds need other peaks and are only reported.
    assert found.grid["beta_area"] == (0.0, 5.0) and found.at_edge() == {"nms": -1}
    assert len(tried) == 6 * 2 * 6, "no triple of weights is tried twice"


def test_the_search_beyond_the_grid_is_bounded(monkeypatch, pictures):
    monkeypatch.setattr(tuning, "worth", hill({"alpha": 1e6}))
    for steps, last in ((0, 2.0), (3, 16.0)):
        found = search(pictures, SegmentationSettings(), {"alpha": (1.0, 2.0)}, steps=steps)
        assert found.chosen["alpha"] == last and found.at_edge() == {"alpha": -1}
    alone = search(pictures, SegmentationSettings(), {"alpha": (1.0,)}, steps=3)
    assert alone.grid["alpha"] == (1.0,), "one value is what the user wants"
    flat = search(pictures, SegmentationSettings(), {"alpha": (1.0, 1.005)}, steps=3)
    assert flat.grid["alpha"] == (1.0, 1.005) and flat.chosen["alpha"] == 1.005, "where it is flat, it ends"


def test_how_flat_the_optimum_is(monkeypatch, pictures):
    monkeypatch.setattr(tuning, "worth", hill({"alpha": 2.0}))
    alpha = (1.0, 1.992, 1.995, 2.0, 2.009, 2.02, 4.0)
    found = search(pictures, SegmentationSettings(), {"alpha": alpha, "nms": (0.3, 0.5)})
    count, spans = found.as_good()
    assert count == 8 and spans["alpha"] == (1.992, 2.009) and spans["nms"] == (0.3, 0.5) and not found.at_edge()
    assert found.profile("alpha").tolist() == pytest.approx([20 - abs(a - 2) for a in alpha])
    assert found.profile("alpha", "nms").shape == (7, 2)


def test_the_grid_holds_what_is_set_unless_values_are_given():
    grid = full_grid(SegmentationSettings(alpha=0.77), {"bias": [2.0, 1.0, 2.0]})
    assert 0.77 in grid["alpha"] and set(GRID["alpha"]) < set(grid["alpha"]) and grid["bias"] == (1.0, 2.0)
    assert tuple(grid) == searched("eq6") == (*WEIGHTS["eq6"], *CUTS)
    assert all(v == tuple(sorted(v)) for v in grid.values())
    grid = full_grid(SegmentationSettings(nms=0.4), {"class_threshold": [0.2, 0.4]}, "proxy")
    assert grid["nms"] == (0.4,) and grid["class_threshold"] == (0.2, 0.4) and len(grid["peak_threshold"]) > 1


@pytest.mark.parametrize(
    ("given", "words"),
    [({"alpha": []}, "alpha: no value"), ({"alpha": [-1.0]}, "alpha: -1.0 .* 0 or more"), ({"size": [3]}, "'size'"),
     ({"nms": [0.3, 1.5]}, "nms: 1.5 .* from 0 to 1"), ({"bias": [float("nan")]}, "bias: nan")],
)  # fmt: skip
def test_values_that_cannot_be_tried(given, words):
    with pytest.raises(InputError, match=words):
        full_grid(SegmentationSettings(), given)


def test_questions_that_have_no_answer(problem, pictures):
    base = problem[0].settings
    with pytest.raises(InputError, match="'iou' is not known"):
        search(pictures, base, SMALL, "iou")
    with pytest.raises(InputError, match="no picture"):
        search([], base, SMALL)
    with pytest.raises(InputError, match="halved"):
        halves(pictures[:1], base, SMALL)
    bare = gather(problem[0], [replace(s, read_instances=None) for s in problem[1]], problem[2], SMALL)
    with pytest.raises(InputError, match="needs instance masks"):
        search(bare, base, SMALL)
    same = search(bare, base, SMALL, "proxy")
    assert same.reached == {"proxy": search(pictures, base, SMALL, "proxy").reached["proxy"]}
    assert same.agreement() == {}
    empty = [replace(s, read_instances=lambda: (np.zeros((0, 48, 48), bool), np.zeros(0, int))) for s in problem[1]]
    with pytest.raises(InputError, match="true instance"):
        search(gather(*problem[:1], empty, problem[2], SMALL), base, SMALL)


def test_halves_are_judged_on_each_other(problem, pictures):
    base = problem[0].settings
    one, two = halves(pictures, base, SMALL, "ABO")
    for half, mine, other in ((one, pictures[::2], pictures[1::2]), (two, pictures[1::2], pictures[::2])):
        assert half.search.chosen == search(mine, base, SMALL, "ABO").chosen
        s = half.search.settings
        again = worth(other, [(s.alpha, s.beta_area, s.bias)], [s])
        assert half.judged == {name: value.item() for name, value in again.items()}
        again = worth(other, [(base.alpha, base.beta_area, base.bias)], [base])
        assert half.present == {name: value.item() for name, value in again.items()}


# --------------------------------------------------------------------------------------------------------- the command


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """Drawn scenes, with masks and without, and a network that has learned nothing."""
    root = tmp_path_factory.mktemp("tuning")
    make_synthetic(root / "scenes", train=4, val=1, size=64)
    names = (root / "scenes" / "train" / "classes.txt").read_text().split()
    (root / "bare").mkdir()
    for file in (root / "scenes" / "train").iterdir():
        if file.name != "instances.json":
            (root / "bare" / file.name).write_bytes(file.read_bytes())
    checkpoint = random_checkpoint("smallnet", names, widths=(8, 8), pools=2, depth=1)
    checkpoint.segmentation = {"max_peaks": 8, "class_threshold": 0.3, "peak_minimum": -5.0}
    checkpoint.figures = {"loss": 0.5}
    save_checkpoint(checkpoint, root / "net" / "checkpoint.json")
    return root


FEW = ["--alpha", "0.4,0.8", "--beta-area", "2,30", "--bias", "0.95", "--peak-threshold", "0.2,0.5",
       "--class-threshold", "0.3,0.5", "--nms", "0.3", "--limit", "40"]  # fmt: skip


def words_of(place: Path, *arguments):
    """`prm tune` of the network, the names of what is in `place` as paths."""
    paths = {path.name: path for path in place.iterdir()}
    return ["tune", "-c", place / "net", *(paths.get(word, word) for word in arguments)]


def test_the_command_writes_the_setting_and_how_it_was_chosen(place, tmp_path):
    before = load_checkpoint(place / "net")
    files = ["--json", tmp_path / "new" / "tuned.json", "--plot", tmp_path / "surface.png"]
    others = ["--nms-nested", 0.6, "--threshold", "none"]
    printed = command.done(*words_of(place, "--data", "scenes", *FEW, "--halves", *files, *others))
    page = json.loads((tmp_path / "new" / "tuned.json").read_text())
    assert page["pictures"] == 4 and page["tried"] >= 16 and len(page["halves"]) == 2
    assert page["figures"]["mAP^r"] >= 0 and set(page["proxy_rank_correlation"]) <= {"mAP^r", "ABO"}
    after = load_checkpoint(place / "net")
    kept = {name: value for name, value in before.segmentation.items() if name != "peak_minimum"}
    assert after.segmentation == kept | page["chosen"] | {"choice": "eq6", "nms_nested": 0.6, "threshold": None}
    assert after.figures["loss"] == 0.5
    assert after.figures["tuning"] == {
        "objective": "map", "iou": 0.5, "data": "scenes", "split": "train", "every": 1, "pictures": 4,
        "present": page["present_figures"], "chosen": page["figures"]}  # fmt: skip
    assert all(torch.equal(after.state[name], value) for name, value in before.state.items())
    with Image.open(tmp_path / "surface.png") as picture:
        assert picture.width > 1000 and np.asarray(picture.convert("L")).std() > 10
    assert "pictures 1, 3, 5" in printed and "mAP^r" in printed


def test_the_command_without_masks(place, tmp_path):
    page = (place / "net" / "checkpoint.json").read_bytes()
    json_file = tmp_path / "tuned.json"
    words = words_of(place, "--data", "bare", "--split", "all", "--objective", "proxy", *FEW, "--no-write")
    printed = command.done(*words, "--against-defaults", "--json", json_file)
    assert "proxy" in printed and "mAP^r" not in printed
    assert (place / "net" / "checkpoint.json").read_bytes() == page
    figures = json.loads(json_file.read_text())
    assert figures["present"] == {name: getattr(SegmentationSettings(), name) for name in searched("eq6")}
    assert set(figures["figures"]) == {"proxy"} and figures["figures"]["proxy"] > 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(["--data", "bare", "--split", "all"], "bare: has no instance masks .*proxy needs none"),
     (["--data", "scenes", "--objective", "iou"], "--objective iou: known are map, abo, proxy"),
     (["--data", "scenes", "--alpha", ","], "alpha: no value"),
     (["--data", "scenes", "--nms", "0.3;0.5"], "--nms '0.3;0.5': give numbers"),
     (["--data", "scenes", "--every", "9", "--halves", *FEW], "1 picture cannot be halved")],
)  # fmt: skip
def test_the_command_on_bad_input(place, arguments, words):
    page = (place / "net" / "checkpoint.json").read_bytes()
    assert re.search(words, command.error(*words_of(place, *arguments)))
    assert (place / "net" / "checkpoint.json").read_bytes() == page
