"""`prm eval` and `prm eval tables` are two views of one pass: the same answer for the same options, whichever."""

import inspect
import json
from dataclasses import fields, replace

import pytest
import torch

from prm.accelerated.checkpoint import load_checkpoint, random_checkpoint, save_checkpoint
from prm.eval.cli import judging
from prm.eval.judging.record import ANSWER
from prm.eval.pictures.images import read_image
from prm.eval.proposals import proposals_for
from prm.eval.proposals.formats import authors_json
from prm.parity_tests.command import done
from prm.settings import AnswerSettings, SegmentationSettings

OTHERWISE = {
    "size": 48, "longest": 40, "window": 5, "threshold": "max", "upsample": 2, "class_threshold": 0.9,
    "peak_threshold": 0.9, "peak_minimum": 0.2, "max_peaks": 2, "alpha": 2.5, "beta_area": 0.0, "bias": 1.5,
    "contour": 3, "min_area": 0.05, "max_area": 0.1, "epsilon": 0.95, "nms": 0.05, "nms_per_class": True,
    "signed": True, "precision": "tf32", "image_threshold": 0.5, "top": 1, "choice": "fit",
    "nms_nested": 0.2, "choose_again": True, "views": 8, "scales": "0.75", "min_score": 1.3,
}  # fmt: skip
"""Another value of every setting than the checkpoint's."""
FIT = {"weight_mass": 0.5, "weight_response": 2, "weight_objectness": 0, "weight_inside": 3, "weight_on_contour": 1,
       "seed_pixel": "require", "smooth": 0.1}  # fmt: skip
OPTIONS = {
    **{name: [f"--{name.replace('_', '-')}", value] for name, value in OTHERWISE.items()},
    "nms_per_class": ["--nms-per-class"], "signed": ["--signed"], "choose_again": ["--choose-again"],
    **{name: ["--choice", "fit", f"--{name.replace('_', '-')}", value] for name, value in FIT.items()},
    "every": ["--every", 2], "limit": ["--limit", 20], "split": ["--split", "train"], "device": ["--device", "cpu"],
    "classes": ["--classes", "disc,star"],
    "proposals": ["--proposals", "others"], "cache": ["--cache", "elsewhere"], "work": ["--work", "kept"],
}  # fmt: skip
NEUTRAL = {"precision", "device", "cache", "work", "image_threshold"}
"""What changes nothing on a CPU, or where classes do not exclude each other."""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("judge")
    done("data", "make-synthetic", "scenes", "--train", 2, "--val", 3, "--size", 64, cwd=root)
    names = json.loads((root / "scenes" / "synthetic.json").read_text())["class_names"]
    torch.manual_seed(0)
    checkpoint = random_checkpoint("smallnet", names, widths=(8, 12), pools=2, depth=1)
    checkpoint.segmentation = {"class_threshold": 0.3, "peak_threshold": 0.2, "max_peaks": 8}
    save_checkpoint(checkpoint, root / "net" / "checkpoint.json")
    (root / "others").mkdir()
    for picture in (root / "scenes" / "val").glob("*.png"):
        authors_json.write(root / "others" / f"{picture.stem}.json", proposals_for(read_image(picture), None, 15))
    return root


def both(place, name, *options) -> tuple[dict, dict]:
    """The figures of the short and of the long view that say how good the answer is."""
    common = ["--data", "scenes", "-c", "net", *(() if "--cache" in options else ("--cache", "cache")), *options]
    done("eval", *common, "--json", f"{name}.json", cwd=place)
    work = () if "--work" in options else ("--work", f"{name}-kept")
    done("eval", "tables", *common, *work, "-o", f"{name}-tables", "--bootstrap", 0, cwd=place)
    short = json.loads((place / f"{name}.json").read_text())["rows"]["prm"]
    page = json.loads((place / f"{name}-tables" / "net.json").read_text())
    own = page["instances"][ANSWER]
    names = [*(f"mAP^r_{t}" for t in (0.25, 0.5, 0.75)), "ABO", "true_instances", "predicted_instances"]
    long = {"classification_mAP": page["classification"]["mAP"], "images": page["pictures"]}
    long |= {name: own[name] for name in names}
    return {k: short[k] for k in long}, long


@pytest.fixture(scope="module")
def usual(place):
    short, long = both(place, "usual")
    assert short == long and short["predicted_instances"] and short["ABO"] > 0
    return short


@pytest.mark.parametrize("name", OPTIONS)
def test_both_views_agree_in_every_option_that_they_share(name, place, usual):
    short, long = both(place, name, *OPTIONS[name])
    assert short == long
    assert (short == usual) == (name in NEUTRAL), "the option did nothing"


def test_every_shared_option_is_here():
    commands = [set(inspect.signature(one).parameters) for one in (judging.evaluate_command, judging.tables_command)]
    assert {f.name for f in fields(SegmentationSettings)} <= commands[0] & commands[1]
    students = {f.name for f in fields(AnswerSettings)} - {"min_score"}  # in test_students.py
    assert commands[0] & commands[1] - {"data", "checkpoint", "weights", "json_file"} - students == set(OPTIONS)


def test_the_papers_tables_choose_by_eq_6_whatever_the_checkpoint_does(place, usual):
    checkpoint = load_checkpoint(place / "net")
    own = {"choice": "fit", "nms_nested": 0.2, "choose_again": True, "min_score": 0.9, "views": 2, "scales": "0.75"}
    fitted = replace(checkpoint, segmentation=checkpoint.segmentation | own)
    save_checkpoint(fitted, place / "fitted" / "checkpoint.json")
    common = ["--data", "scenes", "-c", "fitted", "--cache", "cache"]
    done("eval", *common, "--json", "fitted.json", cwd=place)
    done("eval", "tables", *common, "-o", "fitted-tables", "--bootstrap", 0, cwd=place)
    page = json.loads((place / "fitted-tables" / "fitted.json").read_text())
    assert page["run"]["settings"]["choice"] == "eq6" and page["instances"][ANSWER]["ABO"] == usual["ABO"]
    assert json.loads((place / "fitted.json").read_text())["rows"]["prm"]["ABO"] != usual["ABO"]
