"""PASCAL VOC and SBD: what was written in the official layouts comes back, and every damage is one clear line."""

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
from scipy import io

from prm import InputError
from prm.eval.datasets import draw_scene, open_dataset
from prm.eval.datasets.voc import CLASS_NAMES
from prm.parity_tests import miniatures
from prm.parity_tests.miniatures import STAND_INS, put_lists, put_sbd, put_voc, write_sbd, write_voc


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    return write_voc(tmp_path_factory.mktemp("voc"), pictures=4, size=64)


@pytest.fixture
def root(written, tmp_path) -> Path:
    """A copy that may be damaged: VOC2012 in VOCdevkit."""
    return Path(shutil.copytree(written.parent, tmp_path / "VOCdevkit")) / "VOC2012"


@pytest.fixture(scope="module")
def sbd(tmp_path_factory) -> Path:
    return write_sbd(tmp_path_factory.mktemp("sbd"), pictures=3, size=64)


def names(*numbers: int) -> list[str]:
    return [f"2008_{number:06d}" for number in numbers]


def change(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))


# ---- layouts and splits


def test_the_classes_are_the_official_ones():
    assert CLASS_NAMES == miniatures.VOC_CLASSES == tuple(sorted(CLASS_NAMES)) and len(CLASS_NAMES) == 20


@pytest.mark.parametrize("up", [0, 1, 2])
def test_any_folder_around_is_enough(written, up):
    path = [written, *written.parents][up]
    data = open_dataset(path, "val")
    assert data.class_names == CLASS_NAMES and [s.name for s in data] == names(2, 4, 6, 8)


def test_splits_are_the_official_lists(written):
    sets = {
        "train": [1, 3, 5, 7], "val": [2, 4, 6, 8], "trainval": range(1, 9), None: range(1, 9),
        "seg-train": [1, 3, 5], "seg-val": [2, 4, 6], "seg-trainval": range(1, 7),
    }  # fmt: skip
    for split, numbers in sets.items():
        assert [s.name for s in open_dataset(written, split)] == names(*numbers), split
    with pytest.raises(InputError) as error:
        open_dataset(written, "test")
    offered = "'trainval', 'train', 'val', 'seg-trainval', 'seg-train', 'seg-val'"
    assert str(error.value) == f"{written}: split is 'test'; choose {offered}, or none for everything"


def test_the_order_is_that_of_the_list(root):
    (root / "ImageSets/Main/val.txt").write_text("2008_000006\n2008_000002\n\n")
    assert [s.name for s in open_dataset(root, "val")] == names(6, 2)


def test_everything_of_2007_has_its_test_pictures(tmp_path):
    root = write_voc(tmp_path, 2007, pictures=2, size=48)
    assert [s.name for s in open_dataset(root, "test")] == ["000003", "000006"]
    everything = open_dataset(tmp_path)
    assert [s.name for s in everything] == ["000001", "000002", "000004", "000005", "000003", "000006"]
    assert [s.name for s in open_dataset(tmp_path, "seg-test")] == ["000003"]
    assert all(s.boxes is not None for s in everything)


def test_two_years_are_named(tmp_path):
    write_voc(tmp_path, 2007, pictures=1, size=48)
    write_voc(tmp_path, 2012, pictures=1, size=48)
    for path in (tmp_path, tmp_path / "VOCdevkit"):
        with pytest.raises(InputError, match=r"more than one year; name one of .*VOC2007, .*VOC2012$"):
            open_dataset(path, "train")
    assert len(open_dataset(tmp_path / "VOCdevkit" / "VOC2007", "train")) == 1


def test_several_data_sets_in_one_folder_are_named(tmp_path):
    write_voc(tmp_path, pictures=2, size=48)
    write_sbd(tmp_path, pictures=1, size=48)
    with pytest.raises(InputError, match=r"holds several data sets \(voc, sbd\); name the folder of one of them"):
        open_dataset(tmp_path)
    assert type(open_dataset(tmp_path, format="sbd")).__name__ == "SbdDataset"


def test_pickles_and_forgets_what_it_read(written):
    data = open_dataset(written, "seg-val")
    first = [(s.labels, s.masks.sum()) for s in data]
    again = pickle.loads(pickle.dumps(data))
    assert not again._annotations and data._annotations
    assert [(s.labels, s.masks.sum()) for s in again] == first


def test_opening_reads_no_annotation(root):
    for file in (root / "Annotations").iterdir():
        file.write_text("<broken")
    data = open_dataset(root, "val")
    assert len(data) == 4
    with pytest.raises(InputError, match=r"Annotations/2008_000002.xml: cannot be read as XML"):
        _ = data[0]


# ---- what a sample says


def test_a_sample_says_what_was_drawn(written):
    """Picture 6 has a difficult object and is in the segmentation lists; the last of a split, 8, is not."""
    data = open_dataset(written, "val")
    for at, index in enumerate((1, 3, 5, 7)):
        scene, sample = draw_scene(0, index, 64, "val"), data[at]
        kinds = np.array([CLASS_NAMES.index(STAND_INS[label]) for label in scene.labels])
        doubtful = np.zeros(len(kinds), dtype=bool)
        doubtful[-1] = index % 3 == 2
        np.testing.assert_array_equal(sample.box_labels, kinds)
        np.testing.assert_array_equal(sample.boxes, miniatures.tight_boxes(scene.masks))
        np.testing.assert_array_equal(sample.box_difficult, doubtful)
        assert not sample.box_truncated.any() and sample.boxes.dtype == np.float64
        assert sample.labels == tuple(np.unique(kinds[~doubtful]))
        assert sample.difficult == tuple(np.setdiff1d(kinds[doubtful], kinds[~doubtful]))
        assert np.abs(sample.image.astype(float) - scene.image).mean() < 12  # JPEG
        assert sample.areas is None and sample.crowd is None
        if at == 3:
            assert sample.masks is None and sample.mask_labels is None and sample.void is None
            continue
        labels, void = miniatures._with_void(scene)
        np.testing.assert_array_equal(sample.masks, [(labels == k + 1) & ~void for k in range(len(kinds))])
        np.testing.assert_array_equal(sample.mask_labels, kinds)
        np.testing.assert_array_equal(sample.void, void)
        expected = np.where(void, 255, np.array([0, *(kinds + 1)])[labels])
        np.testing.assert_array_equal(sample.semantic, expected)


def test_labels_agree_with_the_official_class_lists(written, root):
    """The lists beside the XML files say the same; without XML, or without both, labels come from what is left."""
    by_xml = [(s.labels, s.difficult) for s in open_dataset(written, "trainval")]
    assert any(difficult for _, difficult in by_xml)
    shutil.rmtree(root / "Annotations")
    data = open_dataset(root, "trainval")
    assert [(s.labels, s.difficult) for s in data] == by_xml
    np.testing.assert_array_equal(data[0].boxes, miniatures.tight_boxes(data[0].masks))  # boxes are the masks', then
    assert data[7].boxes is None
    for file in (root / "ImageSets/Main").glob("*_*.txt"):
        file.unlink()
    data = open_dataset(root, "trainval")
    for at, (labels, difficult) in enumerate(by_xml[:6]):
        assert (data[at].labels, data[at].difficult) == (tuple(sorted(labels + difficult)), ())
    with pytest.raises(InputError, match=r"Annotations/2008_000008.xml: is missing, and no .*<class>_<split>.txt has"):
        _ = data[7]


def test_test_pictures_without_annotations_are_difficult(root):
    (root / "ImageSets/Main/test.txt").write_text("2008_000099\n")
    Image.new("RGB", (9, 7)).save(root / "JPEGImages/2008_000099.jpg")
    (sample,) = open_dataset(root, "test")
    assert sample.labels == () and sample.difficult == tuple(range(20))
    assert sample.boxes is None and sample.masks is None and sample.image.shape == (7, 9, 3)
    assert len(open_dataset(root)) == 8  # "everything" is what has annotations


def test_class_names_renumber(written):
    order = ("background", *reversed(CLASS_NAMES))
    own, other = open_dataset(written, "seg-val"), open_dataset(written, "seg-val", class_names=order)
    assert other.class_names == order
    for a, b in zip(own, other):
        assert [CLASS_NAMES[c] for c in a.labels] == [order[c] for c in reversed(b.labels)]
        assert [CLASS_NAMES[c] for c in a.difficult] == [order[c] for c in reversed(b.difficult)]
        for mine, its in ((a.mask_labels, b.mask_labels), (a.box_labels, b.box_labels)):
            assert [CLASS_NAMES[c] for c in mine] == [order[c] for c in its]
        shown = (a.semantic > 0) & (a.semantic < 255)
        np.testing.assert_array_equal(b.semantic[shown], 22 - a.semantic[shown])
        np.testing.assert_array_equal(b.semantic[~shown], a.semantic[~shown])
    with pytest.raises(InputError, match="unknown class 'aeroplane'; known classes: person, dog"):
        open_dataset(written, class_names=("person", "dog"))


def test_xml_as_found_in_the_wild(root):
    """Numbers with fractions, boxes that reach outside, flags that are absent; object parts are no objects."""
    (root / "Annotations/2008_000002.xml").write_text(
        "<annotation><object><name>person</name><truncated>1</truncated>"
        "<part><name>head</name><bndbox><xmin>1</xmin></bndbox></part>"
        "<bndbox><xmax>45.70012</xmax><xmin>0</xmin><ymin>2.5</ymin><ymax>900</ymax></bndbox></object></annotation>"
    )
    sample = open_dataset(root, "val")[0]
    np.testing.assert_allclose(sample.boxes, [[-1, 1.5, 44.70012, 899]])
    assert sample.labels == (CLASS_NAMES.index("person"),) and sample.difficult == ()
    assert sample.box_difficult.tolist() == [False] and sample.box_truncated.tolist() == [True]


def test_a_picture_without_objects(root):
    (root / "Annotations/2008_000008.xml").write_text("<annotation></annotation>")
    sample = open_dataset(root, "val")[3]
    assert sample.labels == sample.difficult == () and sample.boxes.shape == (0, 4) and len(sample.box_labels) == 0


OBJECT = "<annotation><object>{}</object></annotation>"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("<annotation>", r"2008_000002.xml: cannot be read as XML \(no element found"),
        (OBJECT.format("<bndbox/>"), r"2008_000002.xml: object 1 has no name; add it or remove the object"),
        (OBJECT.format("<name>dog</name>"), r"2008_000002.xml: object 1 has no bndbox"),
        (OBJECT.format("<name>dog</name><bndbox><xmin>1</xmin></bndbox>"), "object 1 has ymin None, which is not"),
        (OBJECT.format("<name>dog</name><bndbox><xmin>a</xmin></bndbox>"), "object 1 has xmin 'a', which is not"),
        (OBJECT.format("<name>dog</name><bndbox><xmin>nan</xmin></bndbox>"), "object 1 has xmin 'nan', which is not"),
        ("<annotation><size><width>3</width></size></annotation>", r"xml: size has height None, which is not a number"),
    ],
)
def test_malformed_annotations(root, content, message):
    (root / "Annotations/2008_000002.xml").write_text(content)
    with pytest.raises(InputError, match=message) as error:
        _ = open_dataset(root, "val")[0]
    assert "\n" not in str(error.value)


def test_unknown_classes_and_flags(root):
    change(root / "Annotations/2008_000002.xml", "<name>dog", "<name>wolf")
    with pytest.raises(InputError, match=r"2008_000002.xml: unknown class 'wolf'; known classes: aeroplane, "):
        _ = open_dataset(root, "val")[0]
    shutil.rmtree(root / "Annotations")
    change(root / "ImageSets/Main/dog_val.txt", "2008_000004  1", "2008_000004 yes")
    with pytest.raises(InputError, match=r"dog_val.txt line 2: expected .* 1, 0 or -1, found '2008_000004 yes'"):
        _ = open_dataset(root, "val")[0]


def test_damaged_masks(root):
    objects, classes = root / "SegmentationObject/2008_000002.png", root / "SegmentationClass/2008_000002.png"

    def masks():
        return open_dataset(root, "seg-val")[0].masks

    whole = classes.read_bytes()
    semantic = np.array(Image.open(classes))
    Image.fromarray(np.where(semantic == semantic.max(where=semantic < 255, initial=0), 0, semantic)).save(classes)
    with pytest.raises(InputError, match=r"SegmentationObject/2008_000002.png: object \d has no class in Segmentation"):
        masks()
    Image.fromarray(np.where(semantic == 0, 77, semantic).astype(np.uint8)).save(classes)
    with pytest.raises(InputError, match=r"SegmentationClass/2008_000002.png: has the unknown class number 77"):
        masks()
    Image.fromarray(semantic[:-1]).save(classes)
    with pytest.raises(InputError, match=r"is 64x64 but 63x64 in SegmentationClass"):
        masks()
    Image.fromarray(semantic).convert("RGB").save(classes)
    with pytest.raises(InputError, match=r"SegmentationClass/2008_000002.png: is RGB, not a picture with a palette"):
        masks()
    classes.write_bytes(whole[:200])
    with pytest.raises(InputError, match=r"SegmentationClass/2008_000002.png: mask cannot be read"):
        masks()
    classes.unlink()
    with pytest.raises(InputError, match=r"SegmentationClass/2008_000002.png: is missing"):
        masks()
    objects.unlink()
    with pytest.raises(InputError, match=r"SegmentationObject/2008_000002.png: is missing, but the segmentation lists"):
        _ = open_dataset(root, "val")[0].masks
    shutil.rmtree(root / "SegmentationObject")  # not unpacked at all: then there are none
    assert open_dataset(root, "val")[0].masks is None


def test_the_class_of_an_object_is_that_of_most_of_its_pixels(root):
    classes = root / "SegmentationClass/2008_000002.png"
    before = open_dataset(root, "seg-val")[0]
    semantic = np.array(Image.open(classes))
    row, column = np.argwhere(before.masks[0])[0]
    semantic[row, column] = 1
    Image.fromarray(semantic).save(classes)
    after = open_dataset(root, "seg-val")[0]
    np.testing.assert_array_equal(after.mask_labels, before.mask_labels)
    assert after.semantic[row, column] == 1


def test_a_folder_without_lists(root):
    """Its pictures are those with masks, labels come from XML or masks, and a tool's class list is heeded."""
    expected = [(s.name, sorted(s.labels + s.difficult)) for s in open_dataset(root, "seg-trainval")]
    shutil.rmtree(root / "ImageSets")
    shutil.rmtree(root / "Annotations")
    data = open_dataset(root)
    assert [(s.name, list(s.labels)) for s in data] == expected and data.class_names == CLASS_NAMES
    with pytest.raises(InputError, match="split is 'val'; it has none: choose none for everything"):
        open_dataset(root, "val")
    spelled = [name.replace("tv", "TV/").replace("potted", "potted ") for name in CLASS_NAMES]
    (root / "class_names.txt").write_text("\n".join(["_background_", *spelled]))
    assert open_dataset(root).class_names == CLASS_NAMES
    (root / "class_names.txt").write_text("\n".join(["_background_", *(f"thing {k}" for k in range(15))]))
    assert open_dataset(root)[0].labels == data[0].labels
    assert open_dataset(root).class_names[14] == "thing 14"
    (root / "class_names.txt").write_text("_background_\nthing\n")
    with pytest.raises(InputError, match="has the unknown class number"):
        _ = open_dataset(root)[0]


# ---- SBD


@pytest.mark.parametrize("up", [0, 1, 2])
def test_sbd(sbd, up):
    data = open_dataset([sbd, *sbd.parents][up], "val")
    assert data.class_names == CLASS_NAMES and [s.name for s in data] == names(2, 4, 6)
    for sample, index in zip(data, (1, 3, 5)):
        scene = draw_scene(0, index, 64, "val")
        kinds = np.array([CLASS_NAMES.index(STAND_INS[label]) for label in scene.labels])
        np.testing.assert_array_equal(sample.masks, scene.masks)
        np.testing.assert_array_equal(sample.mask_labels, kinds)
        np.testing.assert_array_equal(sample.boxes, miniatures.tight_boxes(scene.masks))
        np.testing.assert_array_equal(sample.semantic, (scene.masks * (kinds + 1)[:, None, None]).sum(axis=0))
        assert sample.labels == tuple(np.unique(kinds)) and sample.void is None and not sample.box_difficult.any()


def test_sbd_splits(sbd, tmp_path):
    assert [s.name for s in open_dataset(sbd)] == names(1, 3, 5, 2, 4, 6)
    with pytest.raises(InputError, match="split is 'train_noval'; choose 'train', 'val', or none"):
        open_dataset(sbd, "train_noval")
    copy = Path(shutil.copytree(sbd, tmp_path / "dataset"))
    (copy / "train_noval.txt").write_text("2008_000004\n2008_000003\n")
    data = open_dataset(copy, "train_noval", format="sbd")
    assert [s.name for s in data] == names(4, 3)
    assert [s.labels for s in pickle.loads(pickle.dumps(data))] == [s.labels for s in data]


def test_damaged_sbd(sbd, tmp_path):
    copy = Path(shutil.copytree(sbd, tmp_path / "dataset"))
    file = copy / "inst" / "2008_000001.mat"
    pixels = np.ones((4, 4), np.uint8)
    for content, message in [
        ({"GTcls": 1}, r"inst/2008_000001.mat: not a GTinst of SBD \('GTinst'\)"),
        ({"GTinst": {"Segmentation": pixels, "Categories": [[21.0]]}}, "a class number is not between 1 and 20"),
        ({"GTinst": {"Segmentation": 2 * pixels, "Categories": [[3.0]]}}, "Segmentation has pixels of no known class"),
    ]:
        io.savemat(file, content)
        with pytest.raises(InputError, match=message):
            _ = open_dataset(copy)[0]
    file.write_bytes(b"MATLAB 5.0 MAT-file, cut short")
    with pytest.raises(InputError, match=r"2008_000001.mat: not a GTinst of SBD \("):
        _ = open_dataset(copy)[0]
    file.unlink()
    with pytest.raises(InputError, match=r"inst/2008_000001.mat: is missing"):
        _ = open_dataset(copy)[0]
    (copy / "val.txt").unlink()
    with pytest.raises(InputError, match=r"val.txt: cannot be read"):
        open_dataset(copy)


def test_train_aug(tmp_path):
    """VOC's seg-train and all of SBD less VOC's seg-val; SBD is used for that split only."""
    root = write_voc(tmp_path, pictures=4, size=48)  # seg-train 1 3 5, seg-val 2 4 6; 7 and 8 have no masks
    with pytest.raises(InputError, match="split is 'train_aug'"):
        open_dataset(root, "train_aug")
    write_sbd(tmp_path / "SBD", pictures=4, size=48)  # train 1 3 5 7, val 2 4 6 8
    data = open_dataset(root, "train_aug")
    assert [s.name for s in data] == names(1, 3, 5, 7, 8)
    assert data[0].void is not None and data[3].void is None
    np.testing.assert_array_equal(data[3].masks, draw_scene(0, 6, 48, "train").masks)
    assert data[3].labels == open_dataset(root, "train")[3].labels and open_dataset(root, "train")[3].masks is None
    listed = "/JPEGImages/2008_000007.jpg /SegmentationClassAug/2008_000007.png\n2008_000001\n"
    (root / "ImageSets/Segmentation/trainaug.txt").write_text(listed)
    assert [s.name for s in open_dataset(root, "train_aug")] == names(7, 1)
    shutil.rmtree(tmp_path / "SBD")
    assert [s.masks is None for s in open_dataset(root, "train_aug")] == [True, False]


def test_what_either_map_leaves_void_is_nobodys(tmp_path):
    put_voc(tmp_path / "VOC2012", "one", np.zeros((1, 4, 3), np.uint8), ["cat", "dog"], [[0, 0, 1, 0], [2, 0, 3, 0]],
            [False, False], np.array([[1, 1, 2, 2]]), np.zeros((1, 4), bool))  # fmt: skip
    put_lists(tmp_path / "VOC2012" / "ImageSets" / "Segmentation", {"train": ["one"], "val": []})
    for kind, column in (("SegmentationClass", 1), ("SegmentationObject", 2)):
        file = tmp_path / "VOC2012" / kind / "one.png"
        codes = np.array(Image.open(file))
        codes[0, column] = 255
        Image.fromarray(codes).save(file)
    (sample,) = open_dataset(tmp_path / "VOC2012", "seg-train")
    assert sample.masks.tolist() == [[[True, False, False, False]], [[False, False, False, True]]]
    assert sample.void.tolist() == [[False, True, True, False]]


# ---- properties


@st.composite
def annotated(draw):
    """A picture's (labels (H, W) with k + 1 on object k, void, class names, boxes, difficult)."""
    height, width, count = draw(st.integers(1, 12)), draw(st.integers(1, 12)), draw(st.integers(0, 4))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    labels = rng.integers(0, count + 1, (height, width))
    void = rng.random((height, width)) < draw(st.sampled_from([0.0, 0.3, 1.0]))
    kinds = [CLASS_NAMES[k] for k in rng.integers(0, 20, count)]
    corners = np.sort(rng.integers(0, 12, (count, 2, 2)), axis=1).reshape(-1, 4)
    return labels, void, kinds, corners, (rng.random(count) < 0.5).tolist()


@settings(max_examples=25, deadline=None)
@given(annotated())
def test_what_is_written_comes_back(case):
    labels, void, kinds, boxes, difficult = case
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "VOC2012"
        image = np.zeros((*labels.shape, 3), np.uint8)
        put_voc(root, "one", image, kinds, boxes.tolist(), difficult, labels, void)
        put_lists(root / "ImageSets" / "Segmentation", {"train": ["one"], "val": []})
        sample = open_dataset(root, "seg-train")[0]
        numbers = np.array([CLASS_NAMES.index(kind) for kind in kinds], dtype=int)
        np.testing.assert_array_equal(sample.boxes, boxes.reshape(-1, 4))
        np.testing.assert_array_equal(sample.box_labels, numbers)
        assert sample.box_difficult.tolist() == difficult
        sure = {int(n) for n, d in zip(numbers, difficult) if not d}
        assert sample.labels == tuple(sorted(sure))
        assert sample.difficult == tuple(sorted({*numbers.tolist()} - sure))
        shown = [k for k in range(len(kinds)) if ((labels == k + 1) & ~void).any()]
        assert [m.tolist() for m in sample.masks] == [((labels == k + 1) & ~void).tolist() for k in shown]
        np.testing.assert_array_equal(sample.mask_labels, numbers[shown])
        np.testing.assert_array_equal(sample.void, void)
        np.testing.assert_array_equal(sample.semantic, np.where(void, 255, np.array([0, *(numbers + 1)])[labels]))


@settings(max_examples=25, deadline=None)
@given(annotated())
def test_what_is_written_for_sbd_comes_back(case):
    labels, _, kinds, _, _ = case
    masks = labels == np.arange(1, len(kinds) + 1)[:, None, None]
    with tempfile.TemporaryDirectory() as folder:
        put_sbd(Path(folder), "one", np.zeros((*labels.shape, 3), np.uint8), masks, kinds)
        put_lists(Path(folder), {"train": ["one"], "val": []}, joined=False)
        (sample,) = open_dataset(folder)
        numbers = np.array([CLASS_NAMES.index(kind) for kind in kinds], dtype=int)
        np.testing.assert_array_equal(sample.masks, masks)
        np.testing.assert_array_equal(sample.mask_labels, numbers)
        np.testing.assert_array_equal(sample.semantic, np.array([0, *(numbers + 1)])[labels])
        assert sample.labels == tuple(np.unique(numbers))
        assert len(sample.boxes) == sum(mask.any() for mask in masks)


# ---- real pictures


@pytest.mark.skipif("PRM_TEST_DATA" not in os.environ, reason="PRM_TEST_DATA does not name a folder with test data")
def test_real_pictures():
    data = open_dataset(Path(os.environ["PRM_TEST_DATA"]) / "voc_annotated")
    assert [s.name for s in data] == ["2011_000003", "2011_000006", "2011_000025"]
    assert data.class_names == CLASS_NAMES
    bottle, bus, car, chair, person, sofa = map(CLASS_NAMES.index, ("bottle", "bus", "car", "chair", "person", "sofa"))
    assert [s.mask_labels.tolist() for s in data] == [
        [person, person, bottle], [person, person, person, chair, person, sofa], [bus, bus, car]
    ]  # fmt: skip
    assert [s.labels for s in data] == [(bottle, person), (chair, person, sofa), (bus, car)]
    assert [s.image.shape for s in data] == [(338, 500, 3), (375, 500, 3), (375, 500, 3)]
    assert data[0].masks.sum(axis=(1, 2)).tolist() == [15662, 17218, 873] and data[0].void.sum() == 9460
