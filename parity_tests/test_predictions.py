"""`prm eval --predictions`: instances in files, ours and others', judged as a network's are."""

import csv
import json

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("pycocotools")
import tifffile
from pycocotools import mask as coco_mask

from prm.eval.datasets import open_dataset
from prm.parity_tests.command import done, error

TINY = ["--network-options", '{"widths": [8, 8], "pools": 2, "depth": 1}', "--size", "64", "--batch-size", "4"]
FIGURES = ("mAP^r_0.25", "mAP^r_0.5", "mAP^r_0.75", "ABO", "true_instances", "predicted_instances", "per_class")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Drawn scenes, a network that has hardly learnt, and what it finds in them."""
    root = tmp_path_factory.mktemp("predictions")
    done("data", "make-synthetic", "scenes", "--train", 4, "--val", 4, "--size", 64, cwd=root)
    done("train", "--data", "scenes", "-o", "net", "--epochs", 1, *TINY, cwd=root)
    found = ("-c", "net", "--limit", 50, "--class-threshold", 0)
    done("segment", "scenes/val", "-o", "answers", *found, cwd=root)
    done("eval", "--data", "scenes", *found, "--json", "network.json", cwd=root)
    return root


def judged(place, predictions, *more):
    done("eval", "--data", "scenes", "--predictions", predictions, "--json", "now.json", *more, cwd=place)
    page = json.loads((place / "now.json").read_text())
    (row,) = page["rows"].values()
    return {name: row[name] for name in FIGURES}, page


def test_what_prm_segment_wrote_is_judged_as_the_network(place):
    expected = json.loads((place / "network.json").read_text())["rows"]["prm"]
    found, page = judged(place, "answers")
    assert found == {name: expected[name] for name in FIGURES} and page["left_out"] == {}
    assert found == judged(place, "answers/instances.json")[0]
    assert found["predicted_instances"] > 0


def truth(place):
    """The true instances as COCO results without names: (entries, label images, table)."""
    entries, images, rows = [], {}, []
    scenes = open_dataset(place / "scenes", split="val")
    for k in range(len(scenes)):
        one = scenes[k]
        labels = np.zeros(one.image.shape[:2], np.uint8)
        for number, (mask, label) in enumerate(zip(one.masks, one.mask_labels.tolist()), start=1):
            code = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
            code = {"size": code["size"], "counts": code["counts"].decode()}
            entries.append({"image_id": one.name, "category_id": label + 1, "segmentation": code, "score": 0.5})
            labels[mask] = 10 * number
            rows.append([one.name, 10 * number, scenes.class_names[label], 0.5])
        images[one.name.rpartition(".")[0]] = labels
    return entries, images, rows


def test_results_of_others_by_picture_and_category(place, tmp_path):
    entries, *_ = truth(place)
    (tmp_path / "results.json").write_text(json.dumps(entries))
    found, _ = judged(place, tmp_path / "results.json")
    assert found["mAP^r_0.75"] == found["ABO"] == 1
    # one picture of four, and a class that is not asked for
    some = [one for one in entries if one["image_id"] == entries[0]["image_id"]]
    some[0] = some[0] | {"category": "zebra"}
    (tmp_path / "results.json").write_text(json.dumps(some))
    found, page = judged(place, tmp_path / "results.json")
    assert found["predicted_instances"] == len(some) - 1 and page["left_out"] == {"zebra": 1} and found["ABO"] < 1
    found, page = judged(place, tmp_path / "results.json", "--classes", "disc,star")
    assert list(found["per_class"]) == ["disc", "star"]


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_label_images_with_a_table(suffix, place, tmp_path):
    _, images, rows = truth(place)
    for name, labels in images.items():
        if suffix == ".png":
            Image.fromarray(labels).save(tmp_path / f"{name}.png")
        else:
            tifffile.imwrite(tmp_path / f"{name}.tif", labels.astype(np.uint32))
    with open(tmp_path / "instances.csv", "w", newline="") as file:
        csv.writer(file).writerows([["picture", "label", "class", "score"], *rows])
    found, _ = judged(place, tmp_path)
    assert found["mAP^r_0.5"] == 1  # drawn shapes may cover each other: ABO is not
    with open(tmp_path / "instances.csv", "w", newline="") as file:
        csv.writer(file).writerows([["picture", "label", "class", "score"], *rows[1:]])
    text = error("eval", "--data", "scenes", "--predictions", tmp_path, cwd=place)
    assert "instances.csv: has no row for label 10 of" in text


def test_bad_input_is_one_line(place, tmp_path):
    def said(*options):
        return error("eval", "--data", "scenes", "--predictions", *options, cwd=place)

    assert "no such file or folder of predictions" in said("nothing")
    assert "leave out --model, --cache" in said("answers", "-c", "net", "--cache", "kept")
    assert "holds neither COCO results (.json) nor label images" in said(tmp_path)
    assert "the data set has no class 'zebra'; it has disc" in said("answers", "--classes", "zebra")
    Image.fromarray(np.ones((64, 64), np.uint8)).save(tmp_path / "val_00000.png")
    assert "label images say no class, and the data set has 5; put an instances.csv" in said(tmp_path)
    entries, *_ = truth(place)
    small = {"size": [3, 3], "counts": "9"}
    for change, text in [({"image_id": "other"}, "says nothing of the data set's 4 pictures, such as val_00000.png"),
                         ({"score": None}, "have no score"), ({"segmentation": small}, "3 x 3")]:  # fmt: skip
        file = tmp_path / "bad.json"
        file.write_text(json.dumps([entries[0] | change]))
        assert text in said(file)
    (tmp_path / "bad.json").write_text("[{]")
    assert "bad.json: is not a list of COCO results" in said(tmp_path / "bad.json")
