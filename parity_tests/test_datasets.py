"""Datasets: the same every time, labels apart from masks, the tile rule, and one clear line for every bad input."""

import json
import os
import pickle
import shutil
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from prm import InputError
from prm.eval import datasets
from prm.eval.datasets import bbbc038, draw_scene, make_synthetic, open_dataset
from prm.eval.datasets.check import check_dataset


@pytest.fixture(scope="module")
def scenes(tmp_path_factory) -> Path:
    return make_synthetic(tmp_path_factory.mktemp("drawn") / "scenes", train=12, val=4, seed=3, size=64)


def same(a, b) -> bool:
    """Whether two datasets hold the same samples in the same order."""
    return len(a) == len(b) and a.class_names == b.class_names and all(
        (x.name, x.labels, x.difficult) == (y.name, y.labels, y.difficult)
        and np.array_equal(x.image, y.image) and np.array_equal(x.masks, y.masks)
        for x, y in zip(a, b)
    )  # fmt: skip


# ---- drawn scenes


def test_a_scene_depends_on_seed_split_and_index_only():
    first, again = draw_scene(5, 7, 64), draw_scene(5, 7, 64)
    np.testing.assert_array_equal(first.image, again.image)
    np.testing.assert_array_equal(first.masks, again.masks)
    for other in (draw_scene(6, 7, 64), draw_scene(5, 8, 64), draw_scene(5, 7, 64, "val")):
        assert not np.array_equal(first.image, other.image)


def test_a_larger_set_starts_with_the_smaller_one(scenes, tmp_path):
    smaller = open_dataset(make_synthetic(tmp_path / "s", train=3, val=1, seed=3, size=64), "train")
    larger = open_dataset(scenes, "train")
    for a, b in zip(smaller, larger):
        assert (a.name, a.labels) == (b.name, b.labels)
        np.testing.assert_array_equal(a.image, b.image)


def test_scenes_make_sense():
    scenes = [draw_scene(0, index, 96) for index in range(60)]
    for scene in scenes:
        assert scene.image.shape == (96, 96, 3) and scene.image.dtype == np.uint8
        assert 1 <= len(scene.masks) <= 6 and scene.masks.dtype == bool
        assert scene.masks.sum(axis=0).max() <= 1  # visible parts are disjoint
        assert scene.masks.sum(axis=(1, 2)).min() >= 60
        assert len(np.unique(scene.labels)) <= 3
    presence = [np.mean([c in scene.labels for scene in scenes]) for c in range(5)]
    assert 0.2 < min(presence) and max(presence) < 0.6


def test_the_class_does_not_show_in_the_colour():
    """Over many scenes the mean colour of every class is the same, within the spread of its 100 or so instances."""
    scenes = [draw_scene(1, index, 64) for index in range(150)]
    means = []
    for c in range(5):
        colours = [s.image[m].mean(axis=0) for s in scenes for m, label in zip(s.masks, s.labels) if label == c]
        means.append(np.mean(colours, axis=0))
    assert np.ptp(means, axis=0).max() < 30


def test_written_scenes_read_back(scenes):
    train, val, both = (open_dataset(scenes, split) for split in ("train", "val", None))
    assert (len(train), len(val), len(both)) == (12, 4, 16)
    assert [s.name for s in both] == [s.name for s in train] + [s.name for s in val]
    assert both[-1].name == val[3].name == "val_00003.png"
    drawn = draw_scene(3, 2, 64, "val")
    np.testing.assert_array_equal(val[2].image, drawn.image)
    np.testing.assert_array_equal(val[2].masks, drawn.masks)
    np.testing.assert_array_equal(val[2].mask_labels, drawn.labels)
    assert val[2].labels == tuple(np.unique(drawn.labels))
    assert same(open_dataset(scenes / "val"), val)  # a split is a folder dataset of its own


def test_training_needs_no_mask_file(scenes, tmp_path):
    copy = tmp_path / "scenes"
    shutil.copytree(scenes, copy)
    (copy / "train" / "instances.json").unlink()
    (copy / "val" / "instances.json").write_text("not json")
    expected = [(s.image.sum(), s.labels) for s in open_dataset(scenes)]
    assert [(s.image.sum(), s.labels) for s in open_dataset(copy)] == expected
    assert open_dataset(copy, "train")[0].masks is None
    assert open_dataset(copy, "train")[0].mask_labels is None
    with pytest.raises(InputError, match=r"instances.json: not COCO instance annotations"):
        _ = open_dataset(copy, "val")[0].masks


def test_writing_scenes_again_changes_nothing(scenes, tmp_path):
    before = (scenes / "synthetic.json").stat().st_mtime_ns
    make_synthetic(scenes, train=12, val=4, seed=3, size=64)
    assert (scenes / "synthetic.json").stat().st_mtime_ns == before
    with pytest.raises(InputError, match="already exists and is not this set"):
        make_synthetic(scenes, train=13, val=4, seed=3, size=64)
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match="already exists"):
        make_synthetic(tmp_path)
    with pytest.raises(InputError, match="counts >= 1"):
        make_synthetic(tmp_path / "new", train=0)


def test_damaged_scenes_are_refused(scenes, tmp_path):
    copy = tmp_path / "scenes"
    shutil.copytree(scenes, copy)
    table = copy / "val" / "labels.csv"
    table.write_text("\n".join(table.read_text().splitlines()[:-1]))
    with pytest.raises(InputError, match=r"holds 3 scenes, synthetic.json says 4"):
        open_dataset(copy, "val")
    (copy / "synthetic.json").write_text("{}")
    with pytest.raises(InputError, match="not the record of a drawn set"):
        open_dataset(copy)


# ---- a folder with labels.csv


def write_folder(path: Path, table: str, pictures=("a.png", "b.png"), classes: str | None = None) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    for k, name in enumerate(pictures):
        Image.new("RGB", (6, 4), (10 * k, 20, 30)).save(path / name)
    (path / "labels.csv").write_text(table, encoding="utf-8")
    if classes is not None:
        (path / "classes.txt").write_text(classes, encoding="utf-8")
    return path


def test_folder_labels(tmp_path):
    data = open_dataset(write_folder(tmp_path, "file,labels,difficult\na.png,dog cat,\nb.png,,cat\n"))
    assert data.class_names == ("cat", "dog")
    assert [(s.name, s.labels, s.difficult) for s in data] == [("a.png", (0, 1), ()), ("b.png", (), (0,))]
    assert data[1].image.shape == (4, 6, 3) and data[1].image[0, 0].tolist() == [10, 20, 30]
    assert data[0].masks is None


def test_folder_accepts_what_spreadsheets_write(tmp_path):
    """A byte order mark, Windows line ends, spaces, blank lines, quotes, short lines, names with spaces before `;`."""
    table = '\ufefffile,labels\r\n"a.png" , "traffic light; cat"\r\n\r\nb.png\r\n'
    data = open_dataset(write_folder(tmp_path, table.replace(' , "', ',"')))
    assert data.class_names == ("cat", "traffic light")
    assert [s.labels for s in data] == [(0, 1), ()]


def test_the_order_of_classes(tmp_path):
    folder = write_folder(tmp_path, "file,labels\na.png,dog\nb.png,cat\n", classes="dog\n\ncat\nowl\n")
    assert open_dataset(folder).class_names == ("dog", "cat", "owl")
    given = open_dataset(folder, class_names=["owl", "cat", "dog"])
    assert given.class_names == ("owl", "cat", "dog")
    assert [s.labels for s in given] == [(2,), (1,)]


def test_folder_splits_are_subfolders(tmp_path):
    write_folder(tmp_path / "val", "file,labels\na.png,dog\n", pictures=("a.png",))
    assert len(open_dataset(tmp_path, "val")) == 1
    with pytest.raises(InputError, match="has no split 'pets'; choose 'val'"):
        open_dataset(tmp_path, "pets")
    write_folder(tmp_path, "file,labels\na.png,dog\n")
    with pytest.raises(InputError, match="has no split 'train'"):
        open_dataset(tmp_path, "train")


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("", "labels.csv: is empty"),
        ("file,labels\n", "lists no picture"),
        ("a.png,dog\n", "line 1: header is 'a.png,dog'; expected a column for the picture"),
        ("file,labels;more\n", "header 'file,labels;more' has ';' and ',';"),
        ("file,labels,labels\n", "a column has no name, or another's"),
        ("file,\na.png,dog\n", "a column has no name"),
        ("file,image\na.png,b.png\n", "header is 'file,image'; expected"),
        ("file\na.png\n", "header is 'file'; expected"),
        ("file,cat,dog\na.png,1,2\n", "line 2 has '2' in column dog; expected"),
        ("file,cat,dog\na.png,1\n", "line 2 has 2 columns; give each class a 0 or 1"),
        ("file,labels,area\na.png,dog,17\n", "line 2 has 'dog' in column labels; expected"),
        ("file,labels\na.png,dog\nc.png,cat\n", "line 3: picture .*c.png does not exist"),
        ("file,labels\na.png,dog\nb.png,dog\na.png,\n", "line 4: a.png is already listed on line 2"),
        ("file,labels\na.png,dog,cat\n", "line 2: expected 'file,labels', found 'a.png,dog,cat'"),
        ("file,labels\n,dog\n", "line 2: expected"),
        ("file,labels,difficult\na.png,dog,dog\n", "line 2: 'dog' is in both"),
        ("file,labels\na.png,\n", "no picture has a label"),
    ],
)
def test_bad_tables(tmp_path, table, message):
    with pytest.raises(InputError, match=message) as error:
        open_dataset(write_folder(tmp_path, table))
    assert "\n" not in str(error.value)


def test_unknown_classes(tmp_path):
    folder = write_folder(tmp_path, "file,labels\na.png,cat\nb.png,cow\n", classes="cat\ndog\n")
    with pytest.raises(InputError, match="line 3: unknown class 'cow'; known classes: cat, dog"):
        open_dataset(folder)
    with pytest.raises(InputError, match="line 2: unknown class 'cat'; known classes: horse, cow"):
        open_dataset(folder, class_names=["horse", "cow"])


def test_bad_class_lists_and_encodings(tmp_path):
    folder = write_folder(tmp_path, "file,labels\na.png,cat\n", classes="cat\ncat\n")
    with pytest.raises(InputError, match=r"classes.txt: class 'cat' is listed twice"):
        open_dataset(folder)
    (folder / "classes.txt").write_text("\n")
    with pytest.raises(InputError, match=r"classes.txt: is empty"):
        open_dataset(folder)
    for content, words in ((b"\x81", "neither UTF-8 nor Windows-1252"), (b"\0", "no text of a known encoding")):
        (folder / "labels.csv").write_bytes(b"file,labels\na.png," + content)
        with pytest.raises(InputError, match=words):
            open_dataset(folder)


TABLES = {
    "semicolons": "Image;Tags\na.png;dog, cat\nb.png;traffic light;\n".replace("light;\n", "light\n"),
    "tabs": "filename\tclasses\na.png\tdog;cat\nb.png\t\n",
    "a column a class": "dog,image_name,cat\n1,a.png,1\n0,b.png,0.0\n",
    "a column a class, semicolons": "path;cat;dog\na.png;1;1\nb.png;0;0\n",
    "backslashes": "file,label\n.\\a.png,cat dog\nb.png,\n",
}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
@pytest.mark.parametrize("table", TABLES)
def test_tables_as_people_have_them(tmp_path, table, encoding):
    folder = write_folder(tmp_path, "")
    text = TABLES[table].replace("traffic light", "").replace("cat", "Löwe")
    (folder / "labels.csv").write_bytes(text.replace("\n", "\r\n").encode(encoding))
    data = open_dataset(folder)
    assert sorted(data.class_names) == ["Löwe", "dog"]
    assert [sorted(data.class_names[k] for k in sample.labels) for sample in data] == [["Löwe", "dog"], []]
    assert all(sample.image.shape == (4, 6, 3) for sample in data)


def test_a_picture_called_1_is_no_label(tmp_path):
    folder = write_folder(tmp_path, "file,dog\na.png,1\n1,0\n")
    (folder / "b.png").rename(folder / "1")
    assert [sample.labels for sample in open_dataset(folder)] == [(0,), ()]


def test_columns_keep_their_order(tmp_path):
    table = "file,zebra,ant\na.png,0,1\nb.png,1,0\n"
    assert open_dataset(write_folder(tmp_path, table)).class_names == ("zebra", "ant")


def test_a_folder_a_class(tmp_path):
    for place in ("train/dog/x/1.png", "train/cat/2.png", "train/cat/3.png", "val/dog/4.png"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (6, 4), (10, 20, 30)).save(tmp_path / place)
    data = open_dataset(tmp_path, "train")
    assert data.class_names == ("cat", "dog")
    assert [(s.name, s.labels) for s in data] == [("cat/2.png", (0,)), ("cat/3.png", (0,)), ("dog/x/1.png", (1,))]
    assert data[0].image.shape == (4, 6, 3) and data[0].masks is None
    assert len(open_dataset(tmp_path / "train")) == 3
    assert open_dataset(tmp_path, "val", class_names=["dog", "cat"])[0].labels == (0,)
    for wrong, words in ((None, "its folders are train, val"), ("test", "no split 'test'; choose 'train' or 'val'")):
        with pytest.raises(InputError, match=words):
            open_dataset(tmp_path, wrong)
    with pytest.raises(InputError, match="unknown class 'cat'; known classes: dog"):
        open_dataset(tmp_path, "train", class_names=["dog"])
    (tmp_path / "train" / "empty").mkdir()  # nor is a folder one of classes where pictures lie beside
    with pytest.raises(InputError, match="not a dataset of a known format"):
        open_dataset(tmp_path / "train")


def coco(segmentation, name: str = "dog", **more) -> dict:
    return {
        "images": [{"id": 9, "file_name": "a.png", "height": 4, "width": 6}],
        "categories": [{"id": 5, "name": name}],
        "annotations": [{"id": 1, "image_id": 9, "category_id": 5, "segmentation": segmentation} | more],
    }


@pytest.mark.parametrize(
    "segmentation",
    [
        pytest.param([[1, 1, 3, 1, 3, 3, 1, 3]], id="polygon"),
        pytest.param({"size": [4, 6], "counts": [5, 2, 2, 2, 13]}, id="runs"),
        pytest.param({"size": [4, 6], "counts": "5220;"}, id="code"),  # the same runs as COCO's text
    ],
)
def test_folder_masks(tmp_path, segmentation):
    """The same 2x2 pixels in each of COCO's three ways; runs go down the columns."""
    folder = write_folder(tmp_path, "file,labels\na.png,dog\n")
    (folder / "instances.json").write_text(json.dumps(coco(segmentation)))
    sample = open_dataset(folder, class_names=["cat", "dog"])[0]
    expected = np.zeros((1, 4, 6), bool)
    expected[0, 1:3, 1:3] = True
    np.testing.assert_array_equal(sample.masks, expected)
    assert sample.mask_labels.tolist() == [1] and sample.mask_labels.dtype == np.int64


def test_crowds_are_no_instances(tmp_path):
    folder = write_folder(tmp_path, "file,labels\na.png,dog\nb.png,\n")
    (folder / "instances.json").write_text(json.dumps(coco({"size": [4, 6], "counts": [24]}, iscrowd=1)))
    assert open_dataset(folder)[0].masks.shape == (0, 4, 6)
    with pytest.raises(InputError, match=r"no entry in 'images' for b.png"):
        _ = open_dataset(folder)[1].masks


def of_instances(folder: Path, annotations: list[dict], pictures=("b.png", "a.png", "c.png")) -> Path:
    """A folder without labels.csv: instances.json alone says what the pictures show."""
    write_folder(folder, "", pictures)
    (folder / "labels.csv").unlink()
    (folder / "instances.json").write_text(json.dumps({
        "images": [{"id": k, "file_name": name, "height": 4, "width": 6} for k, name in enumerate(pictures)],
        "categories": [{"id": 7, "name": "dog"}, {"id": 3, "name": "traffic light"}, {"id": 5, "name": "cat"}],
        "annotations": [{"id": k, "bbox": [1, 1, 2, 2]} | entry for k, entry in enumerate(annotations)],
    }))  # fmt: skip
    return folder


SQUARE = {"size": [4, 6], "counts": [5, 2, 2, 2, 13]}


@pytest.mark.parametrize("masks", [{"segmentation": SQUARE}, {}], ids=["masks", "boxes"])
def test_labels_follow_from_instances(tmp_path, masks):
    """a.png shows two dogs and a traffic light, b.png a crowd of cats and a dog, c.png nothing."""
    shown = [(1, 7, 0), (1, 3, 0), (1, 7, 0), (0, 5, 1), (0, 7, 0), (1, 7, 1)]
    of_instances(tmp_path / "pets" / "val", [
        {"image_id": image, "category_id": category, "iscrowd": crowd} | masks for image, category, crowd in shown
    ])  # fmt: skip
    data = open_dataset(tmp_path / "pets" / "val")
    assert data.class_names == ("traffic light", "cat", "dog")
    rows = [("b.png", (2,), (1,)), ("a.png", (0, 2), ()), ("c.png", (), ())]
    assert [(s.name, s.labels, s.difficult) for s in data] == rows
    assert [len(s.boxes) for s in data] == [2, 4, 0] and data[1].image.shape == (4, 6, 3)
    assert [None if s.masks is None else len(s.masks) for s in data] == ([1, 3, 0] if masks else [None] * 3)
    assert check_dataset(tmp_path / "pets" / "val").problems == []
    # the same as a split of the folder above, in a pickle, in other orders of the classes, and beside a table
    split = open_dataset(tmp_path / "pets", "val")
    assert [s.labels for s in pickle.loads(pickle.dumps(split))] == [s.labels for s in data]
    given = open_dataset(tmp_path / "pets", "val", class_names=["dog", "cat", "owl", "traffic light"])
    assert [(s.labels, s.difficult) for s in given] == [((0,), (1,)), ((0, 3), ()), ((), ())]
    with pytest.raises(InputError, match=r"pets: has no labels of its own; choose the split 'val'"):
        open_dataset(tmp_path / "pets")
    (tmp_path / "pets" / "val" / "classes.txt").write_text("dog\ncat\ntraffic light\n")
    assert [s.labels for s in open_dataset(tmp_path / "pets", "val")] == [(0,), (0, 2), ()]
    (tmp_path / "pets" / "val" / "labels.csv").write_text("file,labels\na.png,cat\n")
    assert [(s.name, s.labels) for s in open_dataset(tmp_path / "pets", "val")] == [("a.png", (1,))]


def test_labels_that_do_not_follow(tmp_path):
    folder = of_instances(tmp_path / "x", [{"image_id": 0, "category_id": 7}])
    with pytest.raises(InputError, match=r"instances.json: unknown class 'dog'; known classes: cat"):
        open_dataset(folder, class_names=["cat"])
    (folder / "a.png").unlink()
    with pytest.raises(InputError, match=r"instances.json: picture .*a.png does not exist; correct the name or remove"):
        open_dataset(folder)
    (folder / "instances.json").write_text('[{"image_id": 1}]')  # results, not annotations
    with pytest.raises(InputError, match=r"instances.json: not COCO instance annotations"):
        open_dataset(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "not COCO instance annotations"),
        ({"images": []}, "key 'categories' is missing"),
        (coco([], category_id=6), "key 6 is missing or unknown"),
        (coco({"size": [4, 6], "counts": [24]}, name="cow"), "a.png: unknown class 'cow'; known classes: dog"),
        (coco({"size": [4, 6]}), "segmentation 0 cannot be decoded"),
        (coco({"size": [5, 6], "counts": [30]}), "segmentation 0 cannot be decoded"),
        (coco(7), "segmentation 0 cannot be decoded"),
    ],
)
def test_bad_masks(tmp_path, content, message):
    folder = write_folder(tmp_path, "file,labels\na.png,dog\n")
    (folder / "instances.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=message):
        _ = open_dataset(folder)[0].masks


# ---- BBBC038


def write_nuclei(root: Path, pictures: dict[str, tuple[int, int, list]]) -> Path:
    """The official layout; each picture is (height, width, [(top, bottom, left, right) of every nucleus])."""
    for identifier, (height, width, nuclei) in pictures.items():
        folder = root / "stage1_train" / identifier
        (folder / "images").mkdir(parents=True)
        (folder / "masks").mkdir()
        rng = np.random.default_rng(len(identifier))
        image = rng.integers(0, 256, (height, width, 4), dtype=np.uint8)
        image[..., 3] = 255
        Image.fromarray(image).save(folder / "images" / f"{identifier}.png")
        for k, (top, bottom, left, right) in enumerate(nuclei):
            mask = np.zeros((height, width), np.uint8)
            mask[top:bottom, left:right] = 255
            Image.fromarray(mask).save(folder / "masks" / f"{k}.png")
    return root


def zipped(root: Path, target: Path) -> Path:
    with zipfile.ZipFile(target, "w") as archive:
        for path in sorted(root.rglob("*.png"), reverse=True):
            archive.write(path, path.relative_to(root))
    return target


@pytest.fixture
def nuclei(tmp_path) -> Path:
    """One 16x24 picture, six 8x8 tiles: nuclei A (4x4) and B (2x8), a sliver of each in another tile; one plain one."""
    return write_nuclei(tmp_path / "data", {
        "one": (16, 24, [(2, 6, 5, 9), (9, 11, 3, 11)]),
        "plain": (16, 8, []),
    })  # fmt: skip


def test_tile_labels(nuclei):
    """A lies 12/16 in tile (0, 0) and 4/16 in (0, 8); B lies 10/16 in (8, 0) and 6/16 in (8, 8); (.., 16) is empty."""
    tiles = open_dataset(nuclei).tiles(8)
    found = dict(zip(tiles.names, tiles.positive.tolist()))
    assert found == {
        "one@0,0": True, "one@0,8": True, "one@0,16": False,
        "one@8,0": True, "one@8,8": True, "one@8,16": False,
        "plain@0,0": False, "plain@8,0": False,
    }  # fmt: skip
    assert tiles.left_out == 0
    assert tiles.images.shape == (8, 8, 8, 3) and tiles.images.dtype == np.uint8
    np.testing.assert_array_equal(tiles.images[1], open_dataset(nuclei)[0].image[0:8, 8:16])
    assert [s.labels for s in tiles][:3] == [(0,), (0,), ()]
    assert all(s.masks is None for s in tiles)
    assert tiles[0].name == "one@0,0" and tiles.class_names == ("nucleus",)


def test_the_tile_rule():
    assert bbbc038.tile_label([], 64) is False
    assert bbbc038.tile_label([(3, 16)], 64) is None
    assert bbbc038.tile_label([(4, 16)], 64) is True
    assert bbbc038.tile_label([(3, 16), (1, 1)], 64) is True
    assert bbbc038.tile_label([(16, 1000)], 64) is True  # a nucleus larger than the tile fills a quarter of it
    assert bbbc038.tile_label([(15, 1000)], 64) is None


def test_undecided_tiles_are_left_out(tmp_path):
    root = write_nuclei(tmp_path, {"x": (8, 16, [(0, 4, 0, 9)])})  # 4 of its 36 pixels in the second tile
    tiles = open_dataset(root).tiles(8)
    assert tiles.names == ("x@0,0",) and tiles.left_out == 1


def test_tiles_reach_the_border_for_any_size_and_stride(nuclei):
    data = open_dataset(nuclei)
    for size, stride in [(5, 5), (5, 3), (7, None), (16, 4), (1, 1)]:
        tiles = data.tiles(size, stride)
        starts = {tuple(map(int, name.split("@")[1].split(","))) for name in tiles.names if name.startswith("plain")}
        assert max(starts, default=(16 - size, 8 - size)) == (16 - size, 8 - size)
        assert tiles.images.shape[1:] == (size, size, 3)
    assert {name.split("@")[0] for name in data.tiles(16).names} == {"one"}  # "plain" is only 8 wide: skipped
    with pytest.raises(InputError, match="no labelled tile of 17x17"):
        data.tiles(17)
    with pytest.raises(InputError, match="must be at least 1"):
        data.tiles(8, stride=0)


def test_a_limited_draw_is_fixed_by_its_seed(nuclei):
    data = open_dataset(nuclei)
    everything = data.tiles(4)
    few, again, other = data.tiles(4, seed=1, limit=9), data.tiles(4, seed=1, limit=9), data.tiles(4, seed=2, limit=9)
    assert few.names == again.names and few.names != other.names and len(few) == 9
    at = [everything.names.index(name) for name in few.names]
    assert at == sorted(at)
    np.testing.assert_array_equal(few.images, everything.images[at])
    np.testing.assert_array_equal(few.positive, everything.positive[at])


def test_pictures_and_masks(nuclei):
    data = open_dataset(nuclei)
    assert [s.name for s in data] == ["one", "plain"]
    assert [s.labels for s in data] == [(0,), ()]
    assert data[0].image.shape == (16, 24, 3) and data[0].image.dtype == np.uint8
    masks = data[0].masks
    assert masks.shape == (2, 16, 24) and masks.dtype == bool and masks.sum() == 32 and masks[0, 2:6, 5:9].all()
    assert data[0].mask_labels.tolist() == [0, 0]
    assert data[1].masks.shape == (0, 16, 8)


def test_zip_and_folder_hold_the_same(nuclei, tmp_path):
    folder = open_dataset(nuclei)
    assert same(folder, open_dataset(zipped(nuclei, tmp_path / "a.zip")))
    assert same(folder, open_dataset(nuclei / "stage1_train"))
    bare = zipped(nuclei / "stage1_train", tmp_path / "b.zip")  # some copies have no top folder
    assert same(folder, pickle.loads(pickle.dumps(open_dataset(bare))))


def test_splits_are_fixed_by_the_identifier():
    names = [f"picture {k}" for k in range(400)]
    validation = [name for name in names if bbbc038.in_split(name, "val")]
    assert 70 < len(validation) < 130
    assert all(bbbc038.in_split(n, "train") != bbbc038.in_split(n, "val") and bbbc038.in_split(n, None) for n in names)


def test_broken_nuclei(nuclei, tmp_path):
    with pytest.raises(InputError, match="has the one class 'nucleus'; the classifier knows cat, dog"):
        open_dataset(nuclei, class_names=["cat", "dog"])
    mask = nuclei / "stage1_train" / "one" / "masks" / "0.png"
    Image.new("L", (3, 3)).save(mask)
    with pytest.raises(InputError, match=r"0.png: mask is 3x3 but its picture is 16x24"):
        _ = open_dataset(nuclei)[0].masks
    mask.write_bytes(b"not a picture")
    with pytest.raises(InputError, match=r"0.png: mask cannot be read"):
        _ = open_dataset(nuclei)[0].masks
    archive = zipped(nuclei, tmp_path / "a.zip")
    content = archive.read_bytes()
    at = content.index(b"stage1_train/one/images/one.png") + 60
    archive.write_bytes(content[:at] + bytes(40) + content[at + 40 :])
    with pytest.raises(InputError, match=r"a.zip \(stage1_train/one/images/one.png\)"):
        _ = open_dataset(archive)[0].image
    archive.write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match=r"a.zip"):
        open_dataset(archive, format="bbbc038")
    with zipfile.ZipFile(tmp_path / "c.zip", "w") as other:
        other.writestr("readme.txt", "hello")
    with pytest.raises(InputError, match="no picture stage1_train"):
        open_dataset(tmp_path / "c.zip")


# ---- which format


def test_what_is_no_dataset(tmp_path, scenes):
    with pytest.raises(InputError, match="no such file or folder"):
        open_dataset(tmp_path / "nothing")
    with pytest.raises(InputError, match=r"not a dataset of a known format .*labels.csv.*synthetic.json.*stage1_train"):
        open_dataset(tmp_path)
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(InputError, match="not a dataset of a known format"):
        open_dataset(tmp_path / "a.txt")
    with pytest.raises(InputError, match="format 'pets' is not known; choose one of folder, labels, synthetic"):
        open_dataset(scenes, format="pets")
    with pytest.raises(InputError, match="split is 'test'"):
        open_dataset(scenes, "test")
    with pytest.raises(InputError, match=r"has no synthetic.json"):
        open_dataset(tmp_path, format="synthetic")
    with pytest.raises(InputError, match=r"labels.csv: no such file"):
        open_dataset(tmp_path, format="folder")


def test_the_public_names():
    assert all(hasattr(datasets, name) for name in datasets.__all__)


@pytest.mark.skipif("PRM_TEST_DATA" not in os.environ, reason="PRM_TEST_DATA does not name a folder with test data")
def test_real_nuclei():
    start = time.perf_counter()
    data = open_dataset(Path(os.environ["PRM_TEST_DATA"]) / "bbbc038_stage1_train.zip", "val")
    assert 0.2 * 531 < len(data) < 0.35 * 531
    sample = data[0]
    assert sample.image.shape[2] == 3 and sample.masks.shape[1:] == sample.image.shape[:2]
    assert (sample.masks.sum(axis=(1, 2)) > 0).all() and sample.labels == (0,)
    data._ids = data._ids[::8]  # a part is enough here
    tiles = data.tiles(64)
    assert 0.2 < tiles.positive.mean() < 0.95
    assert time.perf_counter() - start < 30
