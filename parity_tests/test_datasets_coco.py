"""COCO: what was written in the official layouts comes back, and every damage is one clear line."""

import json
import os
import pickle
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from prm import InputError
from prm.eval.datasets import draw_scene, open_dataset
from prm.eval.datasets.check import check_dataset
from prm.parity_tests.miniatures import (
    COCO_CATEGORIES,
    STAND_INS,
    coco_annotation,
    put_coco,
    tight_boxes,
    write_coco,
)

NAMES = tuple(COCO_CATEGORIES)


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    return write_coco(tmp_path_factory.mktemp("coco"), pictures=4, size=64)


@pytest.fixture
def folder(written, tmp_path) -> Path:
    """A copy that may be damaged."""
    return Path(shutil.copytree(written, tmp_path / "coco"))


def files(*numbers: int) -> list[str]:
    return [f"{number:012d}.jpg" for number in numbers]


def edited(path: Path, change) -> Path:
    """Applies `change` to the content of a JSON file."""
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    return path


# ---- layouts and splits


def test_the_classes_are_ordered_by_id(written, folder):
    edited(folder / "annotations/instances_val2017.json", lambda content: content["categories"].reverse())
    assert open_dataset(folder, "val").class_names == NAMES
    data = open_dataset(written, "val")
    assert data.class_names == NAMES and len(NAMES) == 80 and NAMES[0] == "person" and NAMES[79] == "toothbrush"


def test_splits(written, folder):
    assert [s.name for s in open_dataset(written, "train")] == files(1, 3, 5, 7)
    assert [s.name for s in open_dataset(written, "val2017")] == files(2, 4, 6, 8)
    assert [s.name for s in open_dataset(written)] == files(1, 3, 5, 7, 2, 4, 6, 8)
    with pytest.raises(InputError) as error:
        open_dataset(written, "test")
    offered = "'train', 'train2017', 'val', 'val2017'"
    assert str(error.value) == f"{written}: split is 'test'; choose {offered}, or none for everything"
    # a part that somebody cut out of val: its pictures are val's, and "everything" does not hold them twice
    annotations = folder / "annotations"
    shutil.copy(annotations / "instances_val2017.json", annotations / "instances_minival2017.json")
    edited(annotations / "instances_minival2017.json", lambda content: content["images"].reverse())
    data = open_dataset(folder, "minival")
    assert [s.name for s in data] == files(8, 6, 4, 2) and data[0].image.shape == (64, 64, 3)
    assert [s.name for s in open_dataset(folder)] == files(8, 6, 4, 2, 1, 3, 5, 7)


def test_several_years(written, tmp_path):
    for year in (2014, 2017):
        write_coco(tmp_path, year, pictures=1, size=48)
    with pytest.raises(InputError, match="has split 'val' of several years; choose 'val2014' or 'val2017'"):
        open_dataset(tmp_path, "val")
    with pytest.raises(InputError, match="has several years"):
        open_dataset(tmp_path)
    (sample,) = open_dataset(tmp_path, "val2014")
    assert sample.name == "COCO_val2014_000000000002.jpg" and sample.image.shape == (48, 48, 3)


@pytest.mark.parametrize("place", ["images/val2017", "images", "val2017/nested"])
def test_where_pictures_may_lie(folder, place):
    (folder / "val2017").rename(folder / "old")
    (folder / place).parent.mkdir(parents=True, exist_ok=True)
    (folder / "old").rename(folder / place)
    if place.endswith("nested"):  # file names may have folders

        def nest(content):
            for entry in content["images"]:
                entry["file_name"] = "nested/" + entry["file_name"]

        edited(folder / "annotations/instances_val2017.json", nest)
    assert open_dataset(folder, "val")[3].image.shape == (64, 64, 3)


@pytest.mark.parametrize("place", [".", "images", "labels"])
def test_a_json_file_by_itself(folder, tmp_path, place):
    own = tmp_path / "mine"
    shutil.copytree(folder / "val2017", own / place)
    shutil.copy(folder / "annotations/instances_val2017.json", own / "labels.json")
    data = open_dataset(own / "labels.json")
    assert [s.name for s in data] == files(2, 4, 6, 8) and data[0].image.shape == (64, 64, 3)
    with pytest.raises(InputError, match=r"labels.json: split is 'val'; it has none"):
        open_dataset(own / "labels.json", "val")


def test_an_official_file_named_by_itself(written):
    data = open_dataset(written / "annotations" / "instances_val2017.json")
    assert data[1].image.shape == (64, 64, 3) and len(data[1].masks) > 0


def test_pickles(written):
    data = open_dataset(written, "val")
    again = pickle.loads(pickle.dumps(data))
    assert [(s.name, s.labels, s.masks.sum()) for s in again] == [(s.name, s.labels, s.masks.sum()) for s in data]


# ---- what a sample says


def test_a_sample_says_what_was_drawn(written):
    """Runs come back exactly, polygons nearly; the last instance of picture 6 (index 5) is a crowd."""
    for sample, index in zip(open_dataset(written, "val"), (1, 3, 5, 7)):
        scene = draw_scene(0, index, 64, "val")
        kinds = np.array([NAMES.index(STAND_INS[label]) for label in scene.labels])
        crowd = np.zeros(len(kinds), dtype=bool)
        crowd[-1] = index % 3 == 2
        np.testing.assert_array_equal(sample.mask_labels, kinds[~crowd])
        np.testing.assert_array_equal(sample.areas, scene.masks[~crowd].sum(axis=(1, 2)))
        np.testing.assert_array_equal(sample.boxes, tight_boxes(scene.masks))
        np.testing.assert_array_equal(sample.box_labels, kinds)
        np.testing.assert_array_equal(sample.box_difficult, crowd)
        np.testing.assert_array_equal(sample.crowd[0], scene.masks[crowd])
        np.testing.assert_array_equal(sample.crowd[1], kinds[crowd])
        assert sample.labels == tuple(np.unique(kinds[~crowd]))
        assert sample.difficult == tuple(np.setdiff1d(kinds[crowd], kinds[~crowd]))
        for k, (found, drawn) in enumerate(zip(sample.masks, scene.masks)):
            differ = np.count_nonzero(found != drawn)
            assert differ == 0 if k % 2 else differ < 0.1 * drawn.sum(), (index, k)
        assert sample.void is None and sample.semantic is None


def test_class_names_renumber(written, folder):
    order = ("owl", *reversed(STAND_INS))
    own, other = open_dataset(written, "val"), open_dataset(written, "val", class_names=order)
    for a, b in zip(own, other):
        assert {NAMES[c] for c in a.labels} == {order[c] for c in b.labels}
        assert {NAMES[c] for c in a.difficult} == {order[c] for c in b.difficult}
        for mine, its in ((a.mask_labels, b.mask_labels), (a.box_labels, b.box_labels), (a.crowd[1], b.crowd[1])):
            assert [NAMES[c] for c in mine] == [order[c] for c in its]
    with pytest.raises(InputError, match=r"instances_val2017.json: unknown class 'bottle'; known classes: person"):
        open_dataset(folder, "val", class_names=("person",))


def test_boxes_are_continuous_in_coco(folder):
    """x, y, w, h -> w pixels from x on; nothing is rounded, and what is thinner than a pixel becomes one pixel."""

    def change(content):
        first, second = (entry for entry in content["annotations"][:2])
        first["bbox"], second["bbox"] = [10.5, 20, 30.25, 4], [3, 4, 0.5, 0]

    edited(folder / "annotations/instances_val2017.json", change)
    np.testing.assert_array_equal(open_dataset(folder, "val")[0].boxes[:2], [[10.5, 20, 39.75, 23], [3, 4, 3, 4]])


def test_files_without_boxes_masks_or_areas(folder):
    file = folder / "annotations/instances_val2017.json"
    whole = open_dataset(folder, "val")[2]

    def drop(key):
        def change(content):
            for entry in content["annotations"]:
                entry.pop(key)

        edited(file, change)

    drop("bbox")
    np.testing.assert_array_equal(open_dataset(folder, "val")[2].boxes, whole.boxes)  # the masks'
    drop("area")
    assert open_dataset(folder, "val")[0].areas is None
    shutil.copy(file, folder / "kept.json")
    edited(file, lambda content: content["annotations"][0].pop("segmentation"))
    with pytest.raises(InputError, match=r"000000000002.jpg: segmentation 0 cannot be decoded"):
        _ = open_dataset(folder, "val")[0].masks
    shutil.copy(folder / "kept.json", file)
    drop("segmentation")
    assert open_dataset(folder, "val")[0].masks is None


def test_boxes_need_no_mask(folder):
    """Boxes are read without a mask being decoded, nor the picture."""

    def break_masks(content):
        for entry in content["annotations"]:
            entry["segmentation"] = {"size": [1, 1], "counts": "?"}

    edited(folder / "annotations/instances_val2017.json", break_masks)
    shutil.rmtree(folder / "val2017")
    sample = open_dataset(folder, "val")[0]
    assert len(sample.boxes) == 3
    with pytest.raises(InputError, match="segmentation 0 cannot be decoded"):
        _ = sample.masks
    with pytest.raises(InputError, match=r"picture 000000000002.jpg is in none of .*val2017, "):
        _ = sample.image


def test_a_picture_without_annotations(folder):
    edited(folder / "annotations/instances_val2017.json", lambda content: content["annotations"].clear())
    sample = open_dataset(folder, "val")[0]
    assert sample.labels == sample.difficult == ()
    assert sample.masks.shape == (0, 64, 64) and sample.boxes.shape == (0, 4) and len(sample.areas) == 0


# ---- damage


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("images"), "key 'images' is missing or unknown"),
        (lambda c: c["images"][0].pop("height"), "key 'height' is missing or unknown"),
        (lambda c: c["images"].clear(), r"val2017.json: not COCO .*key 2 is missing or unknown in annotation 1\)"),
        (lambda c: (c["images"].clear(), c["annotations"].clear()), "lists no picture"),
        (lambda c: c["annotations"][1].update(category_id=12), "key 12 is missing or unknown in annotation 2"),
        (lambda c: c["annotations"][1].update(bbox=[1, 2]), "'bbox' has 2 numbers, not 4 in annotation 2"),
        (lambda c: c["annotations"][1].update(bbox=[1, 2, float("nan"), 4]), "is not finite in annotation 2"),
        (lambda c: c["annotations"][1].update(area=float("inf")), "is not finite in annotation 2"),
        (lambda c: c["annotations"][1].update(segmentation=[[10**400] * 6]), "too large .*in annotation 2"),
        (lambda c: c["images"][1].update(width=10**8, height=10**8), "lists '000000000004.jpg' as 1000"),
        (lambda c: c["images"][1].update(width=-5), "lists '000000000004.jpg' as 64x-5, which no picture is"),
        (lambda c: c["images"][1].update(width=float("inf")), "cannot convert float infinity"),
        (lambda c: c["images"][1].update(file_name=4), "lists 4 as 64x64"),
        (lambda c: c["categories"][1].update(name="person"), "two entries of 'categories' have the same name"),
        (lambda c: c["images"].append(c["images"][0] | {"id": 77}), "000000000002.jpg is listed twice"),
    ],
)
def test_files_that_are_refused(folder, change, message):
    edited(folder / "annotations/instances_val2017.json", change)
    with pytest.raises(InputError, match=message) as error:
        open_dataset(folder, "val")
    assert "\n" not in str(error.value)


def test_files_that_are_no_json(folder):
    file = folder / "annotations/instances_val2017.json"
    file.write_text("{")
    with pytest.raises(InputError, match=r"instances_val2017.json: not COCO instance annotations \(Expecting"):
        open_dataset(folder, "val")
    file.write_bytes(b"\xff\xfe\xff")
    with pytest.raises(InputError, match=r"instances_val2017.json: not COCO instance annotations"):
        open_dataset(folder, "val")
    with pytest.raises(InputError, match=r"has no annotations/instances_<split><year>.json"):
        open_dataset(folder / "val2017", format="coco")


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ([[1, 2, 3, 4]], "a polygon must be a list of at least three points"),  # pycocotools would read a box
        ([[]], "a polygon must be a list of at least three points"),
        ({"size": [64, 63], "counts": [64 * 63]}, "of 64 x 63, but the picture is 64 x 64"),
        # what runs leave open pycocotools would fill with whatever memory holds
        ({"size": [64, 64], "counts": [10]}, "it covers 10 of 64 x 64 pixels"),
        ({"size": [64, 64], "counts": [0, 4090]}, "it covers 4090 of 64 x 64 pixels"),
        ({"size": [64, 64], "counts": "05"}, "it covers 5 of 64 x 64 pixels"),
        ({"counts": [64 * 64]}, "'size'"),
        ({"size": [64, 64], "counts": ["a"]}, "counts must be runs of 0 to 4096 pixels"),
        ({"size": [64, 64], "counts": [-5, 64 * 64 + 5]}, "counts must be runs of 0 to 4096 pixels"),
        ({"size": [64, 64], "counts": 5}, "counts must be the run-length code as text, or a list of runs"),
        ({"size": [64, 64], "counts": [0, 5000]}, "counts must be runs of 0 to 4096 pixels"),
        ({"size": [64, 64], "counts": "0P"}, "it is not one of 64 x 64 pixels"),  # ends within a number
    ],
)
def test_masks_that_are_refused(folder, segmentation, message):
    file = folder / "annotations/instances_val2017.json"
    edited(file, lambda content: content["annotations"][0].update(segmentation=segmentation))
    where = r"000000000002.jpg: segmentation 0 cannot be decoded \("
    with pytest.raises(InputError, match=rf"{where}.*{message}.*\); correct annotation 1$"):
        _ = open_dataset(folder, "val")[0].masks


def test_a_picture_of_another_size(folder):
    Image.new("RGB", (60, 64)).save(folder / "val2017/000000000002.jpg")
    with pytest.raises(InputError, match="its masks are 64x64 but the picture is 64x60"):
        _ = open_dataset(folder, "val")[0].masks


# ---- pictures that are stored on their side or upside down

UPRIGHT = np.zeros((40, 32), bool)
UPRIGHT[5:15, 20:30] = True  # ten rows from row 5 on, ten columns from column 20 on
BOX = [20, 5, 29, 14]
STORED = {1: UPRIGHT, 3: UPRIGHT[::-1, ::-1], 6: np.rot90(UPRIGHT)}
"""By EXIF orientation: what a camera writes that was held upside down, or on its side (6: turn it clockwise)."""


def photograph(folder: Path, name: str, orientation: int, upright: np.ndarray | None = None) -> None:
    """A JPEG of `UPRIGHT` (or another), white on black."""
    pixels = STORED[orientation] if upright is None else np.rot90(upright, {1: 0, 3: 2, 6: 1}[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels.astype(np.uint8) * 255).save(folder / name, exif=exif, quality=95)


def annotated(folder: Path, pictures: list[tuple[str, np.ndarray]], as_folder: bool = False, keep=("segmentation",)):
    """Writes the annotations of pictures with one mask each, of the size that is to be stated; opens the set."""
    images, annotations = [], []
    for key, (name, mask) in enumerate(pictures):
        images.append({"id": key, "file_name": name, "height": mask.shape[0], "width": mask.shape[1]})
        for crowd in (False, True):
            entry = coco_annotation(mask, 18, "numbers", crowd)
            entry = {key: value for key, value in entry.items() if key not in ("bbox", "segmentation") or key in keep}
            annotations.append({"id": 2 * key + crowd, "image_id": key} | entry)
    file = folder / ("instances.json" if as_folder else "any.json")
    put_coco(file, images, annotations)
    return open_dataset(folder if as_folder else file)


def is_upright(sample, upright=UPRIGHT, box=BOX) -> bool:
    assert ((sample.image[..., 0] > 127) == upright).all()
    (mask,), (crowd,) = sample.masks, sample.crowd[0]
    return (mask == upright).all() and (crowd == upright).all() and sample.boxes.tolist() == [box, box]


@pytest.mark.parametrize("as_folder", [False, True])
@pytest.mark.parametrize("keep", [("segmentation", "bbox"), ("segmentation",)], ids=["boxes", "no boxes"])
@pytest.mark.parametrize("mask", [UPRIGHT, STORED[6]], ids=["upright", "stored"])
def test_the_stated_size_tells_whether_masks_are_upright(tmp_path, mask, keep, as_folder):
    photograph(tmp_path, "side.jpg", 6)
    (sample,) = annotated(tmp_path, [("side.jpg", mask)], as_folder, keep)
    assert sample.image.shape == (40, 32, 3) and is_upright(sample)


@pytest.mark.parametrize("as_folder", [False, True])
@pytest.mark.parametrize("stored", [None, False, True])
def test_where_sizes_do_not_tell_another_picture_does(tmp_path, stored, as_folder):
    """One upside down and one that is square, alone and after others of which the first on its side tells."""
    square, small = UPRIGHT[:32], STORED[6][:16]
    photograph(tmp_path, "down.jpg", 3)
    photograph(tmp_path, "square.jpg", 6, square)
    photograph(tmp_path, "plain.jpg", 1)
    photograph(tmp_path, "first.jpg", 6)
    photograph(tmp_path, "other.jpg", 6)
    pictures = [("down.jpg", STORED[3] if stored else UPRIGHT), ("square.jpg", np.rot90(square) if stored else square)]
    if stored is not None:
        pictures += [("plain.jpg", UPRIGHT), ("missing.jpg", small)]
        pictures += [("first.jpg", STORED[6] if stored else UPRIGHT), ("other.jpg", UPRIGHT if stored else STORED[6])]
    if as_folder:  # which looks for all of its pictures
        pictures = [picture for picture in pictures if picture[0] != "missing.jpg"]
    data = annotated(tmp_path, pictures, as_folder)
    assert is_upright(data[0]) and is_upright(data[1], square)
    if stored is not None:
        assert is_upright(data[2]) and is_upright(data[len(data) - 2]) and is_upright(data[len(data) - 1])


@pytest.mark.parametrize("keep", [("segmentation",), ("bbox",)])
def test_a_size_that_the_picture_has_in_no_way(tmp_path, keep):
    photograph(tmp_path, "side.jpg", 6)
    (sample,) = annotated(tmp_path, [("side.jpg", UPRIGHT[:39])], keep=keep)
    sizes = "39x32, but the picture is 32x40 as stored and 40x32 upright (EXIF orientation 6)"
    line = f"{tmp_path / 'any.json'}: side.jpg is {sizes}; correct the entry (height x width)"
    with pytest.raises(InputError) as error:
        _ = sample.boxes
    assert str(error.value) == line and check_dataset(tmp_path / "any.json").problems == [line]


def test_boxes_alone_are_turned(tmp_path):
    photograph(tmp_path, "side.jpg", 6)
    (sample,) = annotated(tmp_path, [("side.jpg", STORED[6])], keep=("bbox",))
    assert sample.masks is None and sample.boxes.tolist() == [BOX, BOX]
    assert check_dataset(tmp_path / "any.json").problems == []


# ---- property


@st.composite
def instances(draw):
    """(masks (K, H, W), class names, crowd (K,), kinds of code): rectangles where they are to be polygons."""
    height, width, count = draw(st.integers(1, 12)), draw(st.integers(1, 12)), draw(st.integers(0, 4))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    masks, kinds = rng.random((count, height, width)) < rng.random((count, 1, 1)), []
    for mask in masks:
        kinds.append(("polygon", "code", "numbers")[rng.integers(3)])
        if kinds[-1] == "polygon":
            mask[:] = False
            top, left = rng.integers(0, height), rng.integers(0, width)
            mask[top : rng.integers(top, height) + 1, left : rng.integers(left, width) + 1] = True
    return masks, [NAMES[k] for k in rng.integers(0, 80, count)], rng.random(count) < 0.4, kinds


@settings(max_examples=40, deadline=None)
@given(instances())
def test_what_is_written_comes_back(case):
    masks, names, crowd, kinds = case
    entries = []
    for k, (mask, name, kind) in enumerate(zip(masks, names, kinds)):
        entry = coco_annotation(mask, int(COCO_CATEGORIES[name]), "code" if kind == "polygon" else kind, bool(crowd[k]))
        if kind == "polygon":  # a rectangle's corners, exactly
            x0, y0, x1, y1 = tight_boxes(mask[None])[0]
            entry["segmentation"] = [[x0, y0, x1 + 1, y0, x1 + 1, y1 + 1, x0, y1 + 1]]
        entries.append({"id": k + 1, "image_id": 7} | entry)
    with tempfile.TemporaryDirectory() as folder:
        height, width = masks.shape[1:]
        file = Path(folder) / "any.json"
        put_coco(file, [{"id": 7, "file_name": "one.png", "height": height, "width": width}], entries)
        Image.new("RGB", (width, height)).save(Path(folder) / "one.png")
        (sample,) = open_dataset(file)
        numbers = np.array([NAMES.index(name) for name in names], dtype=int)
        np.testing.assert_array_equal(sample.masks, masks[~crowd])
        np.testing.assert_array_equal(sample.mask_labels, numbers[~crowd])
        np.testing.assert_array_equal(sample.crowd[0], masks[crowd])
        np.testing.assert_array_equal(sample.areas, masks[~crowd].sum(axis=(1, 2)))
        assert sample.labels == tuple(np.unique(numbers[~crowd]))
        assert sample.difficult == tuple(np.setdiff1d(numbers[crowd], numbers[~crowd]))
        np.testing.assert_array_equal(sample.box_difficult, crowd)
        shown = masks.any(axis=(1, 2))
        np.testing.assert_array_equal(sample.boxes[shown], np.array(tight_boxes(masks[shown])).reshape(-1, 4))


# ---- real pictures


@pytest.mark.skipif("PRM_TEST_DATA" not in os.environ, reason="PRM_TEST_DATA does not name a folder with test data")
def test_real_pictures():
    data = open_dataset(Path(os.environ["PRM_TEST_DATA"]) / "coco_mini", "train")
    assert len(data) == 100 and data.class_names == NAMES
    assert sum(len(s.boxes) for s in data) == 746 and sum(s.box_difficult.sum() for s in data) == 6
    for sample in (data[k] for k in range(0, 100, 10)):
        assert set(sample.mask_labels) == set(sample.labels)
        np.testing.assert_array_equal(sample.boxes[~sample.box_difficult], tight_boxes(sample.masks))
        np.testing.assert_array_equal(sample.areas, sample.masks.sum(axis=(1, 2)))
