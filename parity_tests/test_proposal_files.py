"""Proposals from others' files: each format in the structure of its own writers, read back mask by mask."""

import base64
import json
import os
import shutil
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

pytest.importorskip("pycocotools")
from pycocotools import mask as coco_mask

from prm import InputError
from prm.accelerated import Segmenter
from prm.accelerated.checkpoint import random_checkpoint
from prm.accelerated.retrieval import Proposals
from prm.eval.proposals import open_proposals
from prm.eval.proposals.formats import authors_json, npz
from prm.eval.segment import segment_files

h5py = pytest.importorskip("h5py", reason="needs h5py, which reads MATLAB's files of version 7.3")

ROWS, COLUMNS = 5, 7
SHAPE = (ROWS, COLUMNS)


# ---- writers, each after the program whose files it imitates


def cell(items, shape=None):
    """A MATLAB cell array, K x 1 unless `shape` says otherwise."""
    items = list(items)
    array = np.empty(len(items), object)
    for k, item in enumerate(items):
        array[k] = np.asarray(item)
    return array.reshape(shape or (len(items), 1))


def save_v5(path, variables):
    scipy.io.savemat(path, variables, do_compression="superpixels" in variables)


def save_v73(path, variables):
    """As MATLAB's save(..., '-v7.3'): axes reversed, cells as references, the shape in the place of an empty array."""

    def put(group, name, value, file):
        if isinstance(value, dict):
            stored = group.create_group(name)
            stored.attrs["MATLAB_class"] = np.bytes_("struct")
            for field, item in value.items():
                put(stored, field, item, file)
            return stored
        value = np.atleast_2d(value)
        if value.dtype.kind == "U":
            value = np.array([[ord(character) for character in value.flat[0]]], np.uint16)
        kind = {"O": "cell", "b": "logical", "f": "double"}.get(value.dtype.kind, value.dtype.name)
        if value.size == 0:
            stored = group.create_dataset(name, data=np.array(value.shape, np.uint64))
            stored.attrs["MATLAB_empty"] = np.uint8(1)
        elif kind == "cell":
            stored = group.create_dataset(name, value.shape[::-1], h5py.ref_dtype)
            for place in np.ndindex(value.shape):
                refs = file.require_group("#refs#")
                stored[place[::-1]] = put(refs, str(len(refs)), value[place], file).ref
        else:
            stored = group.create_dataset(name, data=(value.astype(np.uint8) if kind == "logical" else value).T)
        stored.attrs["MATLAB_class"] = np.bytes_(kind)
        return stored

    with h5py.File(path, "w", userblock_size=512) as file:
        for name, value in variables.items():
            put(file, name, value, file)
    with open(path, "r+b") as file:
        file.write(b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(124) + b"\x00\x02IM")


def mcg(label_map, lists, scores=None):
    """The four variables that MCG's im2mcg_all.m saves; labels are doubles, each cell a row."""
    variables = {"superpixels": label_map.astype(np.uint16), "labels": cell(np.array(i, float)[None] for i in lists)}
    if scores is not None:
        variables |= {"scores": np.array(scores, float)[:, None], "bboxes": np.ones((len(lists), 4))}
    return variables


def result(mask, image_id=42, score=None, **more):
    """An entry of COCO's results, as DeepMask's evalPerImage.lua writes it."""
    code = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    entry = {"category_id": 1, "image_id": image_id} | ({} if score is None else {"score": score})
    return entry | {"segmentation": {"size": list(mask.shape), "counts": code["counts"].decode()}} | more


def save_pngs(folder, masks):
    folder.mkdir()
    for k, mask in enumerate(masks):
        Image.fromarray(mask.astype(np.uint8) * 255).save(folder / f"mask{k}.png")


def partition(masks):
    """A label map whose regions make up all the masks, (H, W) from 1, and each mask's list of regions."""
    signature = np.packbits(masks.reshape(len(masks), -1), axis=0).T
    _, first, labels = np.unique(signature, axis=0, return_index=True, return_inverse=True)
    inside = masks.reshape(len(masks), -1)[:, first]
    return labels.reshape(masks.shape[1:]) + 1, [np.flatnonzero(row) + 1 for row in inside]


def save_as(kind, folder, name, masks, scores=None):
    """The masks, (K, H, W) bool, of the picture `name` in a format; returns the path."""
    folder.mkdir(exist_ok=True)
    paths = {"prm": ".json", "coco": ".json", "png": "", "npz": ".npz"}
    path = folder / f"{name}{paths.get(kind, '.mat')}"
    scores = scores if scores is not None else np.linspace(1, 0, len(masks))
    if kind == "prm":
        authors_json.write(path, Proposals.from_masks(torch.from_numpy(masks)))
    elif kind == "coco":
        path.write_text(json.dumps([result(mask, name, score) for mask, score in zip(masks, scores)]))
    elif kind == "png":
        save_pngs(path, masks)
    elif kind == "npz":
        npz.write(path, Proposals.from_masks(torch.from_numpy(masks)))
    elif kind == "labels":
        save_v5(path, mcg(*partition(masks), scores))
    elif kind == "labels-v73":
        save_v73(path, {"proposals": mcg(*partition(masks), scores), "ucm2": np.ones((3, 3))})
    elif kind == "masks":
        save_v5(path, {"masks": masks.transpose(1, 2, 0), "scores": np.array(scores)[:, None]})
    elif kind == "masks-v73":
        save_v73(path, {"masks": masks.transpose(1, 2, 0), "scores": np.array(scores)[:, None]})
    elif kind == "maskmat":
        save_v5(path, {"maskmat": cell(mask.astype(np.uint8) for mask in masks)})
    return path


KINDS = ("prm", "coco", "png", "npz", "labels", "labels-v73", "masks", "masks-v73", "maskmat")


def some_masks(seed=0, count=6, shape=SHAPE):
    masks = np.random.default_rng(seed).random((count, *shape)) < 0.4
    masks[1], masks[2] = False, True
    return masks


def read(path, shape=SHAPE, name="a", image_id=None, **options):
    """Masks (K, H, W) and scores."""
    proposals, scores = open_proposals(path, **options)(name, shape, image_id)
    assert isinstance(proposals, Proposals) and (proposals.height, proposals.width) == tuple(shape)
    assert scores is None or (scores.dtype == np.float64 and scores.shape == (len(proposals),))
    return proposals.masks().numpy(), scores


def refused(path, *words, shape=SHAPE, name="a", **options):
    with pytest.raises(InputError) as caught:
        read(path, shape, name, **options)
    line = str(caught.value)
    assert "\n" not in line and all(word in line for word in words), line


# ---- every format


@pytest.mark.parametrize("kind", KINDS)
def test_there_and_back(tmp_path, kind):
    masks = some_masks()
    path = save_as(kind, tmp_path / "proposals", "a", masks)
    for place in (tmp_path / "proposals", path if kind != "png" else path.parent):
        got, scores = read(place, name="some/where/a.jpg")
        assert (got == masks).all()
        assert scores is None if kind in ("prm", "png", "npz", "maskmat") else (scores == np.linspace(1, 0, 6)).all()
        assert (read(place, limit=4)[0] == masks[:4]).all() and (read(place, limit=99)[0] == masks).all()
    refused(path.parent, "5 x 7", "7 x 5", path.name, shape=(7, 5))
    if kind != "coco":
        refused(path.parent, "no proposals for b.jpg", "proposals/b.json", name="b.jpg")
        assert open_proposals(path.parent).one_picture is False


@pytest.mark.parametrize("kind", ["coco", "labels", "labels-v73", "masks"])
def test_the_limit_goes_by_score_and_is_stable(tmp_path, kind):
    masks, scores = some_masks(3), np.array([0.1, 0.7, -2, 0.7, 3, 0.1])
    save_as(kind, tmp_path, "a", masks, scores)
    for limit, order in ((1, [4]), (4, [4, 1, 3, 0]), (6, [4, 1, 3, 0, 5, 2]), (None, range(6))):
        got, found = read(tmp_path, limit=limit)
        assert (got == masks[list(order)]).all() and (found == scores[list(order)]).all()


@pytest.mark.parametrize("kind", set(KINDS) - {"prm", "coco", "png"})
def test_a_name_without_a_suffix_is_told_by_its_content(tmp_path, kind):
    path = save_as(kind, tmp_path, "a", some_masks())
    path.rename(tmp_path / "file")
    assert (read(tmp_path / "file")[0] == some_masks()).all()
    assert (read(tmp_path / "file", format="npz" if kind == "npz" else "mat")[0] == some_masks()).all()


def test_what_cannot_be_told_is_refused(tmp_path):
    (tmp_path / "file").write_bytes(b"\x00\x01\x02")
    refused(tmp_path / "file", "file", "'coco'", "'mat'", "'prm'", "'png'", "'npz'")
    refused(tmp_path / "file", "'pdf'", "'mat'", format="pdf")
    refused(tmp_path / "nothing", "nothing", "no such")
    refused(tmp_path, "limit", limit=0)
    refused(tmp_path, "no .json", format="coco")
    for kind in ("prm", "masks"):
        save_as(kind, tmp_path / "both", "a", some_masks())
    refused(tmp_path / "both", "a.json and a.mat", "'mat'")
    assert (read(tmp_path / "both", format="mat")[0] == some_masks()).all()


# ---- whose file it is


def test_pictures_of_one_name_in_several_folders(tmp_path):
    for k, folder in enumerate(("cats", "dogs")):
        (tmp_path / "p").mkdir(exist_ok=True)
        save_as("prm", tmp_path / "p" / folder, "1.5x", some_masks(k))
    assert (read(tmp_path / "p", name="val/cats/1.5x.jpg")[0] == some_masks(0)).all()
    assert (read(tmp_path / "p", name="/data/dogs/1.5x.PNG")[0] == some_masks(1)).all()
    assert (read(tmp_path / "p", name="dogs/1.5x")[0] == some_masks(1)).all()
    refused(tmp_path / "p", "p/1.5x.json", "a folder of PNGs", name="1.5x")
    refused(tmp_path / "p", "no proposals", name="/")


def test_coco_pictures_under_their_longer_and_shorter_names(tmp_path):
    for name in ("COCO_val2014_000000000042", "000000000043"):
        save_as("masks", tmp_path, name, some_masks())
    assert len(read(tmp_path, name="val2017/000000000042.jpg")[0]) == 6
    assert len(read(tmp_path, name="COCO_train2014_000000000043.jpg")[0]) == 6
    refused(tmp_path, f"{tmp_path}/000000000044.json", name="000000000044.jpg")


def test_a_picture_among_its_proposals_is_none_of_them(tmp_path):
    save_as("prm", tmp_path, "a", some_masks())
    Image.new("L", SHAPE[::-1]).save(tmp_path / "a.png")
    Image.new("L", SHAPE[::-1]).save(tmp_path / "b.png")
    assert len(read(tmp_path, name=str(tmp_path / "a.png"))[0]) == 6
    assert len(read(tmp_path, name="a")[0]) == 6
    refused(tmp_path, "no proposals", name=str(tmp_path / "b.png"))
    assert len(read(tmp_path, name="b")[0]) == 0


# ---- the authors' files


def entry(pairs, shape=(3, 4)):
    return {"data": base64.b64encode(np.array(pairs, "<u4").tobytes()).decode(), "shape": list(shape)}


def test_authors_format_by_hand(tmp_path):
    # Positions count from 1: the run (4, 2) of a picture 4 wide is the end of row 0 and the beginning of row 1.
    path = tmp_path / "proposals.json"
    path.write_text(json.dumps([entry([(4, 2), (12, 1)]), entry(np.zeros((0, 2)))]))
    first, second = authors_json.read(path, (3, 4)).masks().tolist()
    assert first == [[False, False, False, True], [True, False, False, False], [False, False, False, True]]
    assert not any(map(any, second))
    authors_json.write(path, Proposals.empty(6, 7))
    assert len(authors_json.read(path, (6, 7))) == 0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        ("{}", "must hold a list"),
        ("[]", "no mask"),
        ("[1]", "entry 0: must be an object"),
        ('[{"data": "", "shape": [3]}]', "entry 0: shape"),
        ('[{"data": "", "shape": [3, true]}]', "entry 0: shape"),
        ('[{"data": "?", "shape": [3, 4]}]', "entry 0: data is not base64"),
        ('[{"data": 7, "shape": [3, 4]}]', "entry 0: data is not base64"),
        ('[{"data": "AAAA", "shape": [3, 4]}]', "entry 0: 3 bytes"),
        (json.dumps([entry([(1, 1)]), entry([(1, 1)], (4, 3))]), "entry 1: mask of 4 x 3"),
        (json.dumps([entry([(0, 2)])]), "entry 0: a run starts at 0"),
        (json.dumps([entry([(1, 1)]), entry([(12, 2)])]), "entry 1: a run ends at position 13"),
        (json.dumps([entry([(4294967295, 4294967295)])]), "entry 0: a run ends"),
        (json.dumps([entry([(2, 0)])]), "entry 0: runs must not be empty"),
        (json.dumps([entry([(5, 1), (1, 2)])]), "out of order"),
        (json.dumps([entry([(1, 3), (3, 2)])]), "overlapping"),
    ],
)
def test_bad_files_of_the_authors(tmp_path, content, message):
    path = tmp_path / "bad.json"
    path.write_text(content)
    with pytest.raises(InputError, match=message) as caught:
        authors_json.read(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


# ---- unions of superpixels


@st.composite
def unions(draw):
    """A label map with numbers of any distance, and lists of the numbers in it."""
    shape = draw(st.tuples(st.integers(1, 9), st.integers(1, 9)))
    numbers = draw(st.lists(st.integers(0, 60_000), min_size=1, max_size=6, unique=True))
    flat = draw(st.lists(st.sampled_from(numbers), min_size=shape[0] * shape[1], max_size=shape[0] * shape[1]))
    within = st.integers(min(flat), max(flat)) | st.sampled_from(flat)
    return np.array(flat).reshape(shape), draw(st.lists(st.lists(within, max_size=8), max_size=7))


@pytest.mark.parametrize("save", [save_v5, save_v73])
@given(case=unions())
def test_unions_are_those_of_ismember(tmp_path, save, case):
    label_map, lists = case
    save(tmp_path / "a.mat", mcg(label_map, lists))
    got, scores = read(tmp_path / "a.mat", label_map.shape)
    assert got.shape == (len(lists), *label_map.shape) and scores is None
    assert all((mask == np.isin(label_map, numbers)).all() for mask, numbers in zip(got, lists))


@pytest.mark.parametrize("save", [save_v5, save_v73])
@given(seed=st.integers(0, 1000), count=st.integers(0, 5), shape=st.tuples(st.integers(1, 6), st.integers(1, 6)))
def test_dense_masks_of_any_number(tmp_path, save, seed, count, shape):
    masks = np.random.default_rng(seed).random((*shape, count)) < 0.5
    stored = masks[..., 0] if count == 1 else masks  # MATLAB drops a last axis of 1
    save(tmp_path / "a.mat", {"masks": stored})
    assert (read(tmp_path / "a.mat", shape)[0] == masks.transpose(2, 0, 1)).all()


def test_structs_and_other_names(tmp_path):
    label_map = np.array([[1, 1, 2], [3, 3, 2]])
    wanted = np.isin(label_map, [1, 3])
    variables = mcg(label_map, [[1, 3]], [0.5])
    plain = {"superpixels": variables["superpixels"], "labels": variables["labels"]}
    cases = {
        "im2prop of COB": {"proposals": variables, "ucm2": np.ones((5, 7)), "times": {"proposals": 1.0}},
        "regions in a struct": {"proposals": {"boxes": np.ones((1, 4)), "scores": np.array([0.5]), "regions": plain}},
        "Endres and Hoiem": {"superpixels": plain["superpixels"], "ranked_regions": plain["labels"]},
        "with masks, too": variables | {"masks": np.zeros((2, 3))},
        "columns in a row": plain | {"labels": cell([[[1], [3]]], (1, 1))},
    }
    for (name, content), save in product(cases.items(), (save_v5, save_v73)):
        save(tmp_path / "a.mat", content)
        got, scores = read(tmp_path / "a.mat", (2, 3))
        assert (got == wanted[None]).all(), name
        assert scores is None if name in ("Endres and Hoiem", "columns in a row") else scores == [0.5], name


def test_axes_of_masks_that_stand_first(tmp_path):
    save_v5(tmp_path / "a.mat", {"maskmat": some_masks()})
    assert (read(tmp_path / "a.mat")[0] == some_masks()).all()


# ---- Selective Search


@pytest.mark.parametrize("save", [save_v5, save_v73])
def test_hierarchies_by_hand(tmp_path, save):
    """Four regions side by side, merged ((1 2) (3 4)) and (((1 2) 3) 4); what is merged last is ranked first."""
    label_map = np.array([[1, 2, 3, 4]])
    hierarchies = [[5, 5, 6, 6, 7, 7], [5, 5, 6, 7, 6, 7]]
    save(tmp_path / "a.mat", {"blobIndIm": label_map.astype(float), "blobBoxes": np.ones((4, 4)),
                              "hierarchy": cell(np.array(h, float)[:, None] for h in hierarchies)})  # fmt: skip
    wanted = ["1111", "1111", "0011", "1110", "1100", "1100", "0001", "0010", "0100", "1000"]
    got, scores = read(tmp_path / "a.mat", (1, 4))
    assert ["".join(map(str, row)) for row in got[:, 0].astype(int)] == wanted and scores is None
    assert len(read(tmp_path / "a.mat", (1, 4), limit=3)[0]) == 3


def test_hierarchies_that_are_none(tmp_path):
    label_map = np.array([[1.0, 2, 3]])
    save_v5(tmp_path / "a.mat", {"blobIndIm": np.ones((2, 2)), "hierarchy": np.zeros((0, 0))})
    assert read(tmp_path / "a.mat", (2, 2))[0].all()  # a single region
    for parents, word in (
        ([4, 4, 4], "exactly two"), ([4, 4, 5, 1], "no hierarchy"), ([4, 4, 9, 5], "no hierarchy"),
        ([4], "no hierarchy"), ([4, 4, 5, 4.5], "whole"), ([4, 4, 5, np.nan], "whole"),
    ):  # fmt: skip
        save_v5(tmp_path / "a.mat", {"blobIndIm": label_map, "hierarchy": cell([parents])})
        refused(tmp_path / "a.mat", "hierarchy{1}", word, shape=(1, 3))


# ---- COCO's results


@pytest.fixture
def deepmask(tmp_path):
    """Three files of two pictures each, as DeepMask's: image ids 1 .. 6, four proposals each, scores not in order."""
    (tmp_path / "jsons").mkdir()
    for number, file in enumerate(("props-1-2", "props-3-4", "props-5-10")):
        entries = [
            result(some_masks(image_id, 4)[k], image_id, score)
            for image_id in (2 * number + 1, 2 * number + 2)
            for k, score in enumerate((0.2, 0.9, 0.2, 1e-3))
        ]
        (tmp_path / "jsons" / f"{file}.json").write_text(json.dumps(entries, indent=number or None))
    return tmp_path / "jsons"


def test_many_pictures_in_several_files(deepmask):
    reader = open_proposals(deepmask, limit=3)
    for image_id in (4, 1, 6, 5, 2, 3, 1):
        digits = f"{image_id:012}"
        for name, number in ((f"{digits}.jpg", None), ("x.jpg", image_id), (f"val/COCO_val2014_{digits}.jpg", None)):
            proposals, scores = reader(name, SHAPE, number)
            assert (proposals.masks().numpy() == some_masks(image_id, 4)[[1, 0, 2]]).all()
            assert scores.tolist() == [0.9, 0.2, 0.2]
    refused(deepmask, "no proposals for 000000000007.jpg", "image_id 7", "3 files", name="000000000007.jpg")
    refused(deepmask, "image_id 'x'", "annotation", name="x.jpg")
    refused(deepmask, "image_id 9", name="x.jpg", image_id=9)


def test_a_file_is_not_opened_before_it_is_needed(deepmask):
    (deepmask / "props-5-10.json").write_text("[{")
    reader = open_proposals(deepmask)
    for image_id in (3, 1, 4, 2):
        assert len(reader("", SHAPE, image_id)[0]) == 4
    with pytest.raises(InputError, match="props-5-10"):
        reader("", SHAPE, 5)


def test_entries_of_one_picture_in_two_files(deepmask):
    shutil.copy(deepmask / "props-1-2.json", deepmask / "props-11-12.json")
    reader = open_proposals(deepmask)
    assert len(reader("", SHAPE, 1)[0]) == 4
    for image_id, words in ((99, "no proposals"), (1, "both hold entries")):  # once all files are known
        with pytest.raises(InputError, match=words):
            reader("", SHAPE, image_id)


def test_entries_of_a_picture_need_not_follow_each_other(tmp_path):
    masks = some_masks()
    entries = [result(mask, 1 + k % 2, 1 - k / 10, note='} , {"[') for k, mask in enumerate(masks)]
    (tmp_path / "a.json").write_text("\n" + json.dumps(entries, indent=1) + "\n")
    for image_id in (1, 2):
        assert (read(tmp_path / "a.json", image_id=image_id)[0] == masks[image_id - 1 :: 2]).all()


def test_what_a_picture_is_called(tmp_path):
    masks = some_masks()
    ids = {"2007_000032": 2007000032, "000005": 5, "ümlaut.x": 17, "b": 18}
    table = {"images": [{"id": 17, "file_name": "ümlaut.x.jpg"}, {"id": 18, "file_name": "val/b.jpg"}]}
    (tmp_path / "instances.json").write_text(json.dumps(table))
    entries = [result(mask, image_id) for mask, image_id in zip(masks, ids.values())]
    (tmp_path / "p.json").write_text(json.dumps(entries))
    for k, name in enumerate(ids):
        got, scores = read(tmp_path / "p.json", name=f"/x/{name}.jpg", annotations=tmp_path / "instances.json")
        assert (got == masks[k : k + 1]).all() and scores is None
    refused(tmp_path / "p.json", "no proposals for b.jpg", name="b.jpg")
    # Ids as text, and names beside ids that count the pictures of a run, as this project writes them.
    (tmp_path / "p.json").write_text(json.dumps([result(masks[0], "2007_000032"), result(masks[1], "cat.1")]))
    assert (read(tmp_path / "p.json", name="2007_000032.jpg")[0] == masks[:1]).all()
    assert (read(tmp_path / "p.json", name="cat.1")[0] == masks[1:2]).all()
    named = [result(masks[0], 1, file_name="2.jpg"), result(masks[1], 2, file_name="ümlaut.png")]
    for text in (json.dumps(named), json.dumps(named, ensure_ascii=False)):
        (tmp_path / "p.json").write_bytes(b"\xef\xbb\xbf" + text.encode())
        assert (read(tmp_path / "p.json", name="2.jpg")[0] == masks[:1]).all()
        assert (read(tmp_path / "p.json", name="ümlaut.jpg")[0] == masks[1:2]).all()
    # Of two that differ in their folders only, neither is taken for the other.
    named = [result(masks[0], 1, file_name="a/x.png"), result(masks[1], 2, file_name="b/x.png")]
    (tmp_path / "p.json").write_text(json.dumps(named))
    for k, name in enumerate(("run/a/x.png", "/data/b/x.png")):
        assert (read(tmp_path / "p.json", name=name)[0] == masks[k : k + 1]).all()
    refused(tmp_path / "p.json", "no proposals for c/x.png", name="c/x.png")
    table = {"images": [{"id": 1, "file_name": "a/x.png"}, {"id": 2, "file_name": "b/x.png"}]}
    (tmp_path / "instances.json").write_text(json.dumps(table))
    (tmp_path / "p.json").write_text(json.dumps([result(masks[0], 1), result(masks[1], 2)]))
    for k, name in enumerate(("a/x.png", "/data/b/x.png")):
        got, _ = read(tmp_path / "p.json", name=name, annotations=tmp_path / "instances.json")
        assert (got == masks[k : k + 1]).all()
    refused(tmp_path / "p.json", "no proposals for x.png", name="x.png", annotations=tmp_path / "instances.json")
    for bad in ("[]", "{}", '{"images": [{"id": 1}]}', '{"images": [{"id": null, "file_name": "a"}]}', "{"):
        (tmp_path / "instances.json").write_text(bad)
        refused(tmp_path / "p.json", "instances.json", "images", annotations=tmp_path / "instances.json")


def test_segmentations_of_each_kind(tmp_path):
    """Runs of a picture of 2 x 3, column by column: 1 outside, 3 inside, 2 outside; and the same as polygons."""
    wanted = np.array([[0, 1, 0], [1, 1, 0]], bool)
    compressed = result(wanted, 1)["segmentation"]
    polygons = [[0, 1, 1, 1, 1, 2, 0, 2], [1, 0, 2, 0, 2, 2, 1, 2]]
    for code in (compressed, {"size": [2, 3], "counts": [1, 3, 2]}, polygons):
        (tmp_path / "a.json").write_text(json.dumps([{"image_id": 1.0, "segmentation": code}]))
        assert (read(tmp_path / "a.json", (2, 3), image_id=1)[0][0] == wanted).all()


@given(code=st.text(st.characters(min_codepoint=1, max_codepoint=127), max_size=12))
def test_any_text_is_decoded_or_refused(tmp_path, code):
    entry = {"image_id": 1, "segmentation": {"size": [2, 3], "counts": code}}
    (tmp_path / "a.json").write_text(json.dumps([entry]))
    try:
        mask = read(tmp_path / "a.json", (2, 3), image_id=1)[0][0]
    except InputError as error:
        assert "damaged" in str(error)
    else:
        assert mask.sum() == coco_mask.area({"size": [2, 3], "counts": code.encode()})


RUNS = {"size": [5, 7], "counts": [35]}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"image_id": 1}', ["begin with '['"]),
        ('{"images": [], "annotations": []}', ["begin with '['"]),
        ('[{"image_id": 1}, 2]', ["entry 1", "'image_id'"]),
        ('[{"image_id": true}]', ["entry 0", "image_id"]),
        ('[{"image_id": 1.5}]', ["entry 0", "image_id"]),
        ('[{"image_id": 1e999}]', ["entry 0", "image_id"]),
        ('[{"image_id": [1]}]', ["entry 0", "image_id"]),
        ('[{"image_id": 1} {"image_id": 1}]', ["after entry 0"]),
        ('[{"image_id": 1}, ', ["not a list of COCO results"]),
        ('[{"image_id": 1, "s": ' + 30_000 * "[", ["not a list of COCO results"]),
        ([{}], ["entry 0", "'size' and 'counts'"]),
        ([{"bbox": [0, 0, 2, 2], "score": 1}], ["entry 0", "box only"]),
        ([{"segmentation": RUNS}, {"segmentation": None}], ["entry 1", "'size' and 'counts'"]),
        ([{"segmentation": {"size": [7, 5], "counts": [35]}}], ["entry 0", "7 x 5", "5 x 7"]),
        ([{"segmentation": {"size": 35, "counts": [35]}}], ["entry 0", "size"]),
        ([{"segmentation": {"size": [5, 7], "counts": [34]}}], ["entry 0", "damaged"]),
        ([{"segmentation": {"size": [5, 7], "counts": [36, -1]}}], ["entry 0", "counts"]),
        ([{"segmentation": {"size": [5, 7], "counts": [34.5, 0.5]}}], ["entry 0", "counts"]),
        ([{"segmentation": {"size": [5, 7], "counts": "ü"}}], ["entry 0", "counts"]),
        ([{"segmentation": {"size": [5, 7], "counts": ""}}], ["entry 0", "damaged"]),
        ([{"segmentation": [[1, 1, 2, 2]]}], ["entry 0", "three points"]),
        ([{"segmentation": [[1, 1, 2, 2, 3, "4"]]}], ["entry 0", "no number"]),
        ([{"segmentation": [1, 1, 2, 2, 3, 4]}], ["entry 0", "three points"]),
        ([{"segmentation": RUNS, "score": 1}, {"segmentation": RUNS}], ["score 1"]),
        ([{"segmentation": RUNS, "score": "high"}], ["scores"]),
        ([{"segmentation": RUNS, "score": float("nan")}], ["score 0", "finite"]),
    ],
)
def test_bad_coco_results(tmp_path, content, words):
    path = tmp_path / "bad.json"
    if not isinstance(content, str):
        content = json.dumps([{"image_id": 1} | entry for entry in content])
    path.write_text(content)
    refused(path, "bad.json", *words, image_id=1)


# ---- PNGs and our own files


def test_pngs_of_several_kinds(tmp_path):
    numbers = np.array([[0, 1, 1], [300, 300, 7]], np.uint16)
    folder = tmp_path / "p" / "a"
    folder.mkdir(parents=True)
    Image.fromarray(numbers).save(folder / "m9.png")
    Image.fromarray(numbers > 5).save(folder / "m10.png")
    Image.fromarray(np.zeros((2, 3, 3), np.uint8)).save(folder / "m11.png")
    palette = Image.fromarray((numbers > 5).astype(np.uint8), "P")
    palette.putpalette([200, 200, 200, 100, 100, 100])
    palette.save(folder / "m12.PNG")
    wanted = np.array([numbers == 1, numbers == 7, numbers == 300, numbers > 5, numbers < 0, numbers > 5])
    for limit in (None, 2, 3, 5):
        assert (read(tmp_path / "p", (2, 3), limit=limit)[0] == wanted[:limit]).all()
    Image.fromarray(numbers).save(tmp_path / "p" / "b.png")
    assert (read(tmp_path / "p", (2, 3), "b")[0] == wanted[:3]).all()
    assert (read(tmp_path / "p" / "b.png", (2, 3))[0] == wanted[:3]).all()
    Image.fromarray(np.zeros((2, 3), np.uint8)).save(tmp_path / "p" / "c.png")
    assert len(read(tmp_path / "p", (2, 3), "c")[0]) == 0
    Image.fromarray(np.arange(18, dtype=np.uint8).reshape(2, 3, 3)).save(folder / "m13.png")
    refused(tmp_path / "p", "m13.png", "colours", shape=(2, 3))
    (folder / "m13.png").write_bytes((folder / "m9.png").read_bytes()[:40])
    refused(tmp_path / "p", "m13.png", "cannot be read", shape=(2, 3))
    (tmp_path / "p" / "d").mkdir()
    refused(tmp_path / "p", "d", "no PNG", name="d")


def test_bad_npz(tmp_path):
    good = {"shape": np.array(SHAPE), "starts": np.array([0, 9]), "ends": np.array([4, 10]), "offsets": [0, 1, 2]}
    for change, words in (
        ({"scores": [1, 5]}, None), ({"scores": [1]}, ["1 scores for 2"]), ({"shape": [7, 5]}, ["7 x 5"]),
        ({"ends": [4, 99]}, ["runs must be"]), ({"starts": ["x", "y"]}, ["cannot be read"]),
        ({"starts": np.array([None])}, ["cannot be read"]), ({"shape": 3}, ["cannot be read"]),
    ):  # fmt: skip
        np.savez(tmp_path / "a.npz", **(good | change))
        if words is None:
            assert read(tmp_path / "a.npz", limit=1)[1].tolist() == [5]
        else:
            refused(tmp_path, "a.npz", *words)
    np.savez(tmp_path / "a.npz", masks=some_masks())
    refused(tmp_path, "a.npz", "starts, ends and offsets")


# ---- damaged files


@pytest.mark.parametrize("save", [save_v5, save_v73])
@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({}, ["nothing"]),
        ({"ucm2": np.ones((3, 3))}, ["ucm2", "'superpixels'"]),
        ({"boxes": np.ones((3, 4)), "images": cell(["a"])}, ["boxes only"]),
        ({"blobIndIm": np.ones(SHAPE), "blobBoxes": np.ones((3, 4))}, ["boxes only"]),
        (mcg(np.ones((7, 5)), [[1]]), ["label map", "7 x 5", "5 x 7"]),
        (mcg(np.ones(SHAPE), [[1], [1, 2]]), ["labels{2}", "region 2", "1 to 1"]),
        (mcg(np.ones(SHAPE), [[0]]), ["labels{1}", "region 0"]),
        (mcg(np.ones(SHAPE), [[1], [1.5]]), ["labels{2}", "1.5", "whole"]),
        (mcg(np.ones(SHAPE), [[np.nan]]), ["labels{1}", "whole"]),
        (mcg(np.ones(SHAPE), [[1]], [1, 2]), ["2 scores for 1"]),
        (mcg(np.ones(SHAPE), [[1]], [np.inf]), ["score 0", "finite"]),
        (mcg(np.ones(SHAPE), [[1]]) | {"superpixels": np.full(SHAPE, 0.5)}, ["label map", "0.5"]),
        (mcg(np.ones(SHAPE), [[1]]) | {"superpixels": {"a": 1.0}}, ["label map", "struct"]),
        (mcg(np.ones(SHAPE), [[1]]) | {"labels": cell([cell([1.0])])}, ["labels{1}", "cell array"]),
        (mcg(np.ones(SHAPE), [[1]]) | {"labels": np.ones((3, 3))}, ["'superpixels' with 'labels'"]),
        ({"masks": np.ones((7, 5, 3))}, ["masks", "7 x 5"]),
        ({"masks": np.ones((5, 7, 2, 2))}, ["masks", "5 x 7 x 2 x 2"]),
        ({"maskmat": cell([np.ones(SHAPE), np.ones((7, 5))])}, ["maskmat{2}", "7 x 5"]),
        ({"maskmat": cell([np.ones(SHAPE), cell([1.0])])}, ["maskmat{2}", "cell array"]),
    ],
)
def test_bad_matlab_files(tmp_path, save, content, words):
    save(tmp_path / "bad.mat", content)
    refused(tmp_path / "bad.mat", "bad.mat", *words)


@pytest.mark.parametrize("kind", ["prm", "coco", "npz", "labels", "labels-v73", "masks"])
def test_truncated_files(tmp_path, kind):
    path = save_as(kind, tmp_path, "a", some_masks())
    whole = path.read_bytes()
    for share in (0, 0.02, 0.3, 0.5, 0.8, 0.97):
        path.write_bytes(whole[: int(share * len(whole))])
        refused(path, path.name)
    path.write_bytes(whole)
    assert len(read(path)[0]) == 6


def test_a_file_that_must_not_be_read(tmp_path):
    for name in ("a.json", "a.mat", "a.npz"):
        (tmp_path / name).mkdir()
    refused(tmp_path, "no proposals for a")
    for kind in ("prm", "coco", "npz", "labels"):
        path = save_as(kind, tmp_path / kind, "a", some_masks())
        reader = open_proposals(path)
        path.unlink()
        with pytest.raises(InputError, match=path.name):
            reader("a", SHAPE)


# ---- in use


def test_segment_with_each_format(tmp_path):
    """The same instances whatever file the proposals come from; a single file of results serves many pictures."""
    rng = np.random.default_rng(0)
    files, masks = [], {}
    (tmp_path / "pictures").mkdir()
    for name in ("p1", "p2"):
        files.append(tmp_path / "pictures" / f"{name}.png")
        Image.fromarray(rng.integers(0, 256, (40, 48, 3), dtype=np.uint8)).save(files[-1])
        masks[name] = np.zeros((8, 40, 48), bool)
        for mask in masks[name]:
            row, column = rng.integers(0, 30, 2)
            mask[row : row + rng.integers(4, 20), column : column + 12] = True
    checkpoint = random_checkpoint("smallnet", ["thing", "other"], widths=(8, 8), pools=2, depth=1)
    checkpoint.segmentation = {"class_threshold": 0.0, "max_peaks": 10}
    segmenter, found = Segmenter.from_checkpoint(checkpoint), {}
    for kind in ("prm", "labels", "png"):
        for name in masks:
            save_as(kind, tmp_path / kind, name, masks[name])
    (tmp_path / "coco").write_text(json.dumps([result(mask, name) for name in masks for mask in masks[name]]))
    for kind in ("prm", "labels", "png", "coco"):
        out = tmp_path / f"out-{kind}"
        answers = segment_files(segmenter, ["thing", "other"], files, out, proposals=tmp_path / kind)
        assert not answers.errors and answers.instances > 0
        found[kind] = (out / "instances.json").read_text()
    assert len(set(found.values())) == 1
    with pytest.raises(InputError, match="one file of proposals"):
        segment_files(segmenter, ["thing", "other"], files, out, proposals=tmp_path / "prm" / "p1.json")


@pytest.mark.skipif("PRM_TEST_DATA" not in os.environ, reason="needs real MCG proposals; set PRM_TEST_DATA")
def test_real_proposals_in_every_format(tmp_path):
    found = {}
    for path in sorted((Path(os.environ["PRM_TEST_DATA"]) / "voc_samples").glob("*.json")):
        with Image.open(path.with_suffix(".jpg")) as picture:
            found[path.stem] = read(path.parent, picture.size[::-1], f"{path.stem}.jpg")[0]
        assert len(found[path.stem]) == 200 and found[path.stem].any((1, 2)).all()
    assert len(found) == 5
    masks = found["sample4"]
    for kind in KINDS:
        save_as(kind, tmp_path / kind, "sample4", masks)
        assert (read(tmp_path / kind, masks.shape[1:], "sample4.jpg")[0] == masks).all(), kind
