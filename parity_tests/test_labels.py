"""Label images and the table of instances, read back by others than what wrote them."""

import csv
import json
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("pycocotools")
import tifffile
from pycocotools import mask as coco_mask

from prm.accelerated import Proposals
from prm.accelerated.checkpoint import random_checkpoint, save_checkpoint
from prm.eval.pictures.labels import HEAD, PHYSICAL, label_image, rows_of, write_table, write_tiff
from prm.eval.pictures.pixel_size import pixel_size
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


SIZES = {
    "OME": ({"ome": True, "metadata": {
        "axes": "YX", "PhysicalSizeX": 250, "PhysicalSizeXUnit": "nm", "PhysicalSizeY": 0.5, "PhysicalSizeYUnit": "µm"
    }}, (0.5, 0.25)),
    "OME, no size": ({"ome": True, "metadata": {"axes": "YX"}}, None),
    "OME, a unit of no length": ({"ome": True, "metadata": {
        "axes": "YX", "PhysicalSizeX": 2, "PhysicalSizeXUnit": "pixel", "PhysicalSizeY": 2, "PhysicalSizeYUnit": "pixel"
    }}, None),
    "ImageJ": ({"imagej": True, "resolution": (4, 2), "metadata": {"unit": "um"}}, (0.5, 0.25)),
    "ImageJ, no unit": ({"imagej": True, "resolution": (4, 2), "metadata": {}}, None),
    "plain": ({"resolution": (4e4, 2e4), "resolutionunit": "CENTIMETER"}, (0.5, 0.25)),
    "dots per inch": ({"resolution": (300, 300), "resolutionunit": "INCH"}, None),
    "nothing": ({}, None),
}  # fmt: skip


@pytest.mark.parametrize("kind", SIZES)
def test_how_large_a_pixel_is(kind, tmp_path):
    given, expected = SIZES[kind]
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((6, 8), np.uint16), **given)
    found = pixel_size(tmp_path / "a.tif")
    assert found == (None if expected is None else pytest.approx(expected, rel=1e-5))


def test_a_file_that_says_no_size(tmp_path):
    (tmp_path / "a.tif").write_bytes(b"II*\0garbage")
    Image.new("L", (3, 3)).save(tmp_path / "a.png")
    assert pixel_size(tmp_path / "a.tif") is pixel_size(tmp_path / "a.png") is pixel_size(tmp_path / "none") is None


def test_sizes_in_micrometres(tmp_path):
    answer, image = answer_of((1, 1, 4, 5), (1, 1, 2, 2)), np.zeros((6, 8, 3), np.uint8)
    labels = label_image(answer)
    shown, hidden = rows_of(answer, labels, image, "a.tif", ["one", "two"], (0.5, 0.5))
    assert [shown[name] for name in PHYSICAL] == [0.5, 0.5, 3, shown["perimeter"] / 2]
    assert hidden["area_um2"] == 0 and "perimeter_um" not in hidden
    oblong, _ = rows_of(answer, labels, image, "b.tif", ["one", "two"], (0.5, 0.25))
    assert oblong["area_um2"] == 1.5 and "perimeter_um" not in oblong
    write_table(tmp_path / "t.csv", [shown, hidden, *rows_of(answer, labels, image, "c.tif", ["one", "two"])])
    rows = list(csv.DictReader((tmp_path / "t.csv").open()))
    assert list(rows[0]) == [*HEAD, *PHYSICAL] and [row["area_um2"] for row in rows] == ["3", "0", "", ""]
    write_tiff(tmp_path / "labels.tif", labels, (0.5, 0.25))
    assert pixel_size(tmp_path / "labels.tif") == pytest.approx((0.5, 0.25), rel=1e-5)


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
