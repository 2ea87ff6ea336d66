"""Label images and the table of instances, read back by others than what wrote them."""

import csv
import json
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("pycocotools")
from pycocotools import mask as coco_mask

from prm.accelerated import Proposals
from prm.accelerated.checkpoint import random_checkpoint, save_checkpoint
from prm.eval.pictures.labels import HEAD, label_image, rows_of, write_table, write_tiff
from prm.parity_tests.command import done, error


def answer_of(*masks, size=(6, 8)):
    """An answer with these masks, ((top, left, bottom, right), ...), by falling score."""
    instances = []
    for k, (top, left, bottom, right) in enumerate(masks):
        mask = np.zeros(size, bool)
        mask[top:bottom, left:right] = True
        instances.append(SimpleNamespace(label=k % 2, mask=Proposals.from_masks(mask[None]), score=1 - k / 8,
                                         confidence=0.75, peak=(top + 0.5, left), name="ab"[k % 2]))  # fmt: skip
    return SimpleNamespace(size=size, instances=instances)


def test_the_higher_score_is_on_top():
    labels = label_image(answer_of((0, 0, 2, 3), (1, 1, 4, 5), (0, 0, 2, 2)))
    expected = np.zeros((6, 8), int)
    expected[1:4, 1:5] = 2
    expected[0:2, 0:3] = 1
    assert labels.dtype == np.uint16 and np.array_equal(labels, expected)
    assert not label_image(answer_of()).any()


def test_more_instances_than_16_bits_count():
    one = answer_of((0, 0, 1, 1)).instances[0]
    many = SimpleNamespace(size=(6, 8), instances=[one] * 65_535 + answer_of((2, 2, 3, 3)).instances)
    labels = label_image(many)
    assert labels.dtype == np.uint32 and labels[2, 2] == 65_536 and labels[0, 0] == 1


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32])
def test_pillow_reads_what_was_written(tmp_path, dtype):
    labels = np.arange(48, dtype=dtype).reshape(6, 8) * 1000
    write_tiff(tmp_path / "deep" / "a.tif", labels)
    with Image.open(tmp_path / "deep" / "a.tif") as picture:
        assert picture.n_frames == 1 and np.array_equal(np.asarray(picture), labels)


def test_the_table(tmp_path):
    """Worked by hand: what is covered wholly has no size, and what is covered in part the rest."""
    answer = answer_of((0, 0, 2, 3), (1, 1, 4, 5), (0, 0, 2, 2))
    image = np.zeros((6, 8, 3), np.uint8)
    image[..., 0], image[0, 0, 1] = 7, 60
    write_table(tmp_path / "t.csv", rows_of(answer, label_image(answer), image, "a,b.png", ["one", 'two "2"']))
    with open(tmp_path / "t.csv", encoding="utf-8", newline="") as file:
        first, second, third = csv.DictReader(file)
    assert tuple(first) == HEAD
    assert (first["picture"], first["label"], first["class"], first["score"]) == ("a,b.png", "1", "one", "1")
    assert (first["area"], first["centroid_row"], first["centroid_column"]) == ("6", "0.5", "1")
    assert [first[name] for name in ("top", "left", "bottom", "right")] == ["0", "0", "2", "3"]
    assert [first[name] for name in ("mean_red", "mean_green", "mean_blue")] == ["7", "10", "0"]
    assert (first["peak_row"], first["peak_column"], first["confidence"]) == ("0.5", "0", "0.75")
    assert (second["class"], second["area"]) == ('two "2"', "10")
    assert (third["label"], third["area"], third["centroid_row"], third["mean_red"]) == ("3", "0", "", "")


def test_the_command(tmp_path):
    checkpoint = random_checkpoint("smallnet", ["thing", "other"], widths=(8, 8), pools=2, depth=1)
    checkpoint.segmentation = {"class_threshold": 0.0, "max_peaks": 6}
    save_checkpoint(checkpoint, tmp_path / "net" / "checkpoint.json")
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "x.png")
    done("segment", "x.png", "-m", "net", "--limit", 40, "--save", "prms", "-o", "out", cwd=tmp_path)
    found = json.loads((tmp_path / "out" / "instances.json").read_text())
    with Image.open(tmp_path / "out" / "labels" / "x.tif") as picture:
        labels = np.asarray(picture)
    for number in range(len(found), 0, -1):  # each shows where none before it does
        own = coco_mask.decode(found[number - 1]["segmentation"]).astype(bool)
        before = [coco_mask.decode(one["segmentation"]).astype(bool) for one in found[: number - 1]]
        assert np.array_equal(labels == number, own & ~np.any([np.zeros_like(own), *before], axis=0))
    with open(tmp_path / "out" / "instances.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["area"]) for row in rows] == [(labels == k).sum() for k in range(1, len(found) + 1)]
    with Image.open(tmp_path / "out" / "x.prms.tif") as stack:
        assert stack.n_frames == len(found) > 1
        for k in range(stack.n_frames):
            stack.seek(k)
            assert np.asarray(stack).sum() == pytest.approx(1, abs=1e-4) and stack.mode == "F"
    assert "--save maps: known are prms" in error("segment", "x.png", "--save", "maps", cwd=tmp_path)
