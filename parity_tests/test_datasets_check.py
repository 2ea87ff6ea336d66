"""The check of a data set: silent about whole ones, and every damage of every format is named, all at once."""

import csv
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from prm import InputError
from prm.eval.datasets import make_synthetic, open_dataset
from prm.eval.datasets.check import check_dataset
from prm.parity_tests.miniatures import write_coco, write_sbd, write_voc
from prm.parity_tests.test_datasets import write_nuclei, zipped

JSON = "annotations/instances_val2017.json"


def write_nuclei_zip(folder: Path) -> Path:
    pictures = {"one": (16, 24, [(2, 6, 5, 9), (9, 11, 3, 11)]), "two": (16, 8, [(1, 3, 1, 3)])}
    return zipped(write_nuclei(folder / "loose", pictures), folder / "nuclei.zip")


def scenes(folder: Path) -> Path:
    return make_synthetic(folder / "scenes", train=3, val=3, size=64)


WRITERS = {
    "folder": lambda folder: scenes(folder) / "val",
    "synthetic": scenes,
    "voc": lambda folder: write_voc(folder, pictures=4, size=64),
    "sbd": lambda folder: write_sbd(folder, pictures=3, size=64),
    "coco": lambda folder: write_coco(folder, pictures=4, size=64),
    "bbbc038": write_nuclei_zip,
}


@pytest.fixture(scope="module", params=WRITERS)
def whole(request, tmp_path_factory) -> Path:
    return WRITERS[request.param](tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def voc(tmp_path_factory) -> Path:
    return WRITERS["voc"](tmp_path_factory.mktemp("voc"))


def test_whole_data_sets_are_whole(whole):
    """No problem, and counts that agree with the samples themselves."""
    ticks = []
    result = check_dataset(whole, tick=lambda done, total: ticks.append((done, total)))
    samples = list(open_dataset(whole))
    assert result.problems == []
    assert ticks == [(k + 1, len(samples)) for k in range(len(samples))]
    with_masks = [s for s in samples if s.masks is not None]
    assert result.counts == {
        "pictures": len(samples), "pictures with masks": len(with_masks),
        "instances": sum(len(s.masks) for s in with_masks),
        "crowds": sum(len(s.crowd[0]) for s in with_masks if s.crowd is not None),
        "boxes": sum(len(s.boxes) for s in samples),
        "difficult boxes": sum(int(s.box_difficult.sum()) for s in samples),
    }  # fmt: skip
    for c, name in enumerate(open_dataset(whole).class_names):
        assert result.labels[name] == sum(c in s.labels for s in samples)
        assert result.difficult[name] == sum(c in s.difficult for s in samples)


def test_the_summary(voc):
    summary = check_dataset(voc, "seg-val").summary()
    assert summary[0] == "3 pictures, 3 pictures with masks, 10 instances, 0 crowds, 10 boxes, 1 difficult boxes"
    assert summary[-1] == "0 problems" and "sheep" not in " ".join(summary)
    assert "person       0 pictures, difficult in 1 more" in summary


def expect(path: Path, fragments: list[str], **more) -> None:
    """Each fragment is found in one problem of its own, and there is no other."""
    problems = check_dataset(path, **more).problems
    left = list(problems)
    for fragment in fragments:
        hits = [line for line in left if fragment in line]
        assert hits, f"{fragment!r} not in {left}"
        left.remove(hits[0])
    assert not left, left
    assert all("\n" not in line for line in problems)


def test_all_that_is_wrong_with_voc(voc, tmp_path):
    root = Path(shutil.copytree(voc, tmp_path / "VOC2012"))
    xml, pictures, masks = root / "Annotations", root / "JPEGImages", root / "SegmentationClass"
    (pictures / "2008_000001.jpg").unlink()
    (pictures / "2008_000002.jpg").write_bytes(b"\xff\xd8 cut short")
    (xml / "2008_000002.xml").write_text("<annotation>")
    (masks / "2008_000003.png").unlink()
    text = (xml / "2008_000004.xml").read_text()
    (xml / "2008_000004.xml").write_text(text.replace("<width>64", "<width>65").replace("<xmax>", "<xmax>1", 1))
    (xml / "2008_000007.xml").unlink()
    semantic = np.array(Image.open(masks / "2008_000005.png"))
    row, column = np.argwhere((semantic > 0) & (semantic < 255))[0]
    semantic[row, column] = 9
    Image.fromarray(semantic).save(masks / "2008_000005.png")
    (xml / "2008_000008.xml").write_text((xml / "2008_000008.xml").read_text().replace("<name>", "<name>were", 1))
    (root / "ImageSets/Main/trainval.txt").write_text("".join(f"2008_{k:06d}\n" for k in (*range(1, 9), 6)))
    expect(root, [
        "JPEGImages/2008_000001.jpg: cannot be read", "JPEGImages/2008_000002.jpg: is",
        "Annotations/2008_000002.xml: cannot be read as XML", "SegmentationClass/2008_000003.png: is missing",
        "2008_000004.xml: says 64x65, the picture is 64x64", "2008_000004: box 1", "2008_000007.xml: is missing",
        "SegmentationObject/2008_000005.png: object", "2008_000008.xml: unknown class 'were",
        "2008_000006: is listed twice",
    ], split="trainval")  # fmt: skip


def test_a_mask_without_its_label(voc, tmp_path):
    root = Path(shutil.copytree(voc, tmp_path / "VOC2012"))
    file = root / "Annotations/2008_000002.xml"
    file.write_text(file.read_text().replace("<name>dog", "<name>sheep"))
    expect(root, ["2008_000002: has a mask of dog but not that label"], split="val")


def test_all_that_is_wrong_with_sbd(tmp_path):
    root = WRITERS["sbd"](tmp_path)
    (root / "img/2008_000001.jpg").unlink()
    (root / "inst/2008_000001.mat").unlink()
    (root / "cls/2008_000002.mat").write_bytes(b"cut")
    Image.new("RGB", (64, 60)).save(root / "img/2008_000003.jpg")
    expect(root, [
        "img/2008_000001.jpg: cannot be read", "inst/2008_000001.mat: is missing", "cls/2008_000002.mat: not a GTcls",
        "2008_000003: its masks are 64x64 but the picture is 60x64",
    ])  # fmt: skip


def test_all_that_is_wrong_with_coco(tmp_path):
    root = WRITERS["coco"](tmp_path)
    content = json.loads((root / JSON).read_text())
    first, second, third, *_ = content["annotations"]
    first["category_id"] = 12  # left out
    second["segmentation"] = {"size": [64, 64], "counts": [7]}
    third["image_id"] = 99  # left out
    content["images"].append({"id": 10, "file_name": "gone.jpg", "height": 5, "width": 5})
    last = content["annotations"][-1]
    last["segmentation"], last["bbox"] = {"size": [64, 64], "counts": [64 * 64]}, [50, 3, 20, 2]
    (root / JSON).write_text(json.dumps(content))
    expect(root, [
        "key 12 is missing or unknown in annotation 1", "000000000002.jpg: segmentation 0 cannot be decoded",
        "key 99 is missing or unknown in annotation 3", "picture gone.jpg is in none of", "has no pixel; remove it",
        "columns 50 to 69, rows 3 to 4) is empty or reaches out of the 64x64 picture",
    ], split="val")  # fmt: skip
    for entry in content["annotations"]:
        entry.pop("segmentation")
    content["annotations"] = content["annotations"][3:-1]
    content["images"][1]["width"] = 63
    content["images"].pop()
    (root / JSON).write_text(json.dumps(content))
    expect(root, ["000000000004.jpg is 64x63 but the picture is 64x64"], split="val")


def test_all_that_is_wrong_with_a_folder(tmp_path):
    folder = WRITERS["folder"](tmp_path)
    with open(folder / "labels.csv", newline="") as stream:
        header, first, second, third = csv.reader(stream)
    Path(folder / third[0]).write_bytes(b"no picture")
    rows = [header, first, second, third, ["missing.png", "star"], [first[0], "disc"], ["a", "b", "c"]]
    Image.new("RGB", (9, 9)).save(folder / "odd.png")
    rows += [["odd.png", "hexagon"]]
    (folder / "labels.csv").write_text("".join(",".join(row) + "\n" for row in rows))
    content = json.loads((folder / "instances.json").read_text())
    content["images"] = [entry for entry in content["images"] if entry["file_name"] != second[0]]
    (folder / "instances.json").write_text(json.dumps(content))
    lost = {entry["id"] for entry in content["annotations"]} - {
        entry["id"] for entry in content["annotations"] if entry["image_id"] in {e["id"] for e in content["images"]}
    }
    expect(folder, [
        f"{third[0]}: is not a picture", "line 5: picture", f"line 6: {first[0]} is already listed on line 2",
        "line 7: expected", "line 8: unknown class 'hexagon'", f"no entry in 'images' for {second[0]}",
        *(f"in annotation {key})" for key in lost),
    ])  # fmt: skip


def test_what_is_wrong_with_scenes_and_nuclei(tmp_path):
    drawn = scenes(tmp_path)
    table = drawn / "val" / "labels.csv"
    table.write_text("\n".join(table.read_text().splitlines()[:-1]))
    expect(drawn, ["holds 5 scenes, synthetic.json says 6"])
    nuclei = write_nuclei(tmp_path / "nuclei", {"one": (16, 24, [(2, 6, 5, 9)]), "two": (9, 9, [(1, 3, 1, 3)])})
    stage = nuclei / "stage1_train"
    (stage / "two/images/two.png").unlink()
    Image.new("L", (3, 3)).save(stage / "one/masks/0.png")
    orphan = "two/masks/0.png: mask of a picture that is missing"
    expect(nuclei, [orphan, "0.png: mask is 3x3 but its picture is 16x24"])
    Image.new("L", (24, 16)).save(stage / "one/masks/0.png")
    expect(nuclei, [orphan, "one: instance 1 (nucleus) has no pixel"])


def test_what_cannot_be_opened(voc, tmp_path):
    assert check_dataset(tmp_path).counts["pictures"] == 0
    expect(tmp_path, ["not a dataset of a known format"])
    expect(voc, ["split is 'pets'"], split="pets")
    with pytest.raises(InputError, match="no such file or folder"):
        check_dataset(tmp_path / "nothing")


@pytest.mark.skipif("PRM_TEST_DATA" not in os.environ, reason="PRM_TEST_DATA does not name a folder with test data")
@pytest.mark.parametrize(("name", "pictures", "instances"), [("coco_mini", 100, 740), ("voc_annotated", 3, 12)])
def test_real_pictures(name, pictures, instances):
    result = check_dataset(Path(os.environ["PRM_TEST_DATA"]) / name)
    assert result.problems == [] and result.counts["pictures"] == pictures and result.counts["instances"] == instances
