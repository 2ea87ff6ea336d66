"""Overlays, panels, galleries and exports: pictures of any size with any number of instances, pages and files."""

import json
import math
import os
from html.parser import HTMLParser
from types import SimpleNamespace
from urllib.parse import unquote_to_bytes

import numpy as np
import pytest
import torch
from PIL import Image

from prm import InputError
from prm.eval.pictures import figures
from prm.eval.pictures.curve import curve
from prm.eval.pictures.figures import overlay, panel, write_png
from prm.eval.pictures.gallery import Entry, gallery, instance_rows

pytest.importorskip("pycocotools")
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from prm.eval.pictures.export import to_coco_results, write_results

NAMES = ["cell", "a class whose name is far too long for any picture, really", "überraschung <b>"]


def made_up(height: int, width: int, count: int, seed: int = 0):
    """A picture of noise and a segmentation with `count` boxes in it."""
    rng = np.random.default_rng(seed)
    instances = []
    for k in range(count):
        row, col = int(rng.integers(height)), int(rng.integers(width))
        mask = torch.zeros(1, height, width, dtype=torch.bool)
        up, left = height // 9, width // 9
        mask[0, max(0, row - up) : row + up + 1, max(0, col - left) : col + left + 1] = True
        instances.append(SimpleNamespace(
            label=k % 3, mask=SimpleNamespace(masks=lambda mask=mask: mask), score=1 - k / 200, confidence=7.5 + k,
            peak=(float(row), float(col)), prm=torch.rand(32, 32) / 512, proposal=k, terms=(0.1, 0.2, -0.3)))
    image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    return image, SimpleNamespace(size=(height, width), maps=torch.randn(3, 7, 7), instances=instances)


@pytest.mark.parametrize("count", [0, 1, 24, 150])
@pytest.mark.parametrize("height, width", [(1, 1), (1, 3000), (3000, 2), (48, 64), (480, 640), (900, 2000)])
def test_overlay_and_panel_of_any_size_and_count(height, width, count):
    if count == 150 and height * width > 10**6:
        count = 30  # a crowd all the same
    image, segmentation = made_up(height, width, count)
    before = image.copy()
    drawn, steps = overlay(image, segmentation, NAMES), panel(image, segmentation, NAMES)
    np.testing.assert_array_equal(image, before)
    for picture in (drawn, steps):
        assert picture.dtype == np.uint8 and picture.ndim == 3 and picture.shape[2] == 3
    assert max(drawn.shape[:2]) <= figures.LONGEST + 26 and min(drawn.shape[:2]) >= figures.ROOM
    if max(height, width) <= 640:
        assert min(drawn.shape[:2]) >= figures.SHORTEST
    assert steps.shape[1] == figures.PANEL_WIDTH


def test_overlay_shows_mask_peak_and_label_where_they_are():
    image, segmentation = made_up(400, 500, 0)
    image[:] = 100
    mask = torch.zeros(1, 400, 500, dtype=torch.bool)
    mask[0, 100:300, 200:400] = True
    segmentation.instances = [SimpleNamespace(label=0, mask=SimpleNamespace(masks=lambda: mask), score=0.5,
                                              confidence=1.0, peak=(250.0, 300.0))]
    drawn = overlay(image, segmentation, NAMES).astype(int)
    changed = (drawn != 100).any(axis=2)
    assert changed[100:300, 200:400].all() and not changed[301:].any() and not changed[:, 401:].any()
    tint = np.rint(0.62 * 100 + 0.38 * np.array(figures.colour(0)))
    assert np.abs(drawn[200, 300] - tint).max() <= 1  # inside
    assert (drawn[299, 300] == figures.colour(0)).all()  # the outline
    assert np.abs(drawn[250, 300] - figures.colour(0)).max() <= 1 and drawn[246, 300].min() > 220  # core and white ring
    label = drawn[70:100, 200:300].reshape(-1, 3)
    assert (label == figures.colour(0)).all(axis=1).any() and (label.max(axis=1) < 60).any()  # dark words on the colour


def test_labels_stay_inside_and_apart():
    font = figures._font(14)
    for canvas, count in (((300, 300), 12), ((200, 1600), 12), ((640, 480), 24)):
        rng = np.random.default_rng(count)
        peaks = [(x * canvas[0], y * canvas[1]) for x, y in rng.random((count, 2))]
        boxes = [(x - 20, y - 20, x + 20, y + 20) for x, y in peaks]
        labels = figures._places(["person 0.87"] * count, font, peaks, boxes, canvas, crowded=False)
        for k, a in enumerate(labels):
            assert a.left >= 0 and a.top >= 0 and a.left + a.width <= canvas[0] and a.top + a.height <= canvas[1]
            for b in labels[:k]:
                assert (a.left + a.width <= b.left or b.left + b.width <= a.left
                        or a.top + a.height <= b.top or b.top + b.height <= a.top)


def test_long_names_are_cut_to_fit_and_keep_the_score():
    font = figures._font(14)
    text = figures._fitted(f"{NAMES[1]} 0.87", font, 150)
    assert font.getlength(text) <= 150 and text.endswith("0.87") and "…" in text


def test_colours_are_distinct():
    assert len({figures.colour(k) for k in range(150)}) == 150


def test_not_finite_maps_and_unknown_labels_are_drawn():
    image, segmentation = made_up(40, 40, 3)
    segmentation.maps[0, 0, 0] = math.nan
    segmentation.instances[1].score = math.nan
    panel(image, segmentation, []), overlay(image, segmentation, [])
    segmentation.maps[:] = math.nan
    panel(image, segmentation, NAMES)


def test_refuses_the_wrong_picture():
    image, segmentation = made_up(40, 50, 1)
    for draw in (overlay, panel):
        with pytest.raises(InputError, match=r"\(40, 50\).*\(50, 40\)"):
            draw(image.swapaxes(0, 1), segmentation, NAMES)


def test_curve(tmp_path):
    rows = [{"epoch": k, "loss": 1 / k} for k in range(1, 6)]
    curve(rows, tmp_path / "loss.png")
    rows[2]["mean_average_precision"] = 0.4
    rows.append({"epoch": 6, "loss": math.nan, "mean_average_precision": 0.5})
    curve(rows, tmp_path / "both.png")
    assert all(Image.open(tmp_path / name).size == (1050, 600) for name in ("loss.png", "both.png"))
    with pytest.raises(InputError, match=r"none\.png: no row"):
        curve([{"epoch": 1}], tmp_path / "none.png")
    assert sorted(os.listdir(tmp_path)) == ["both.png", "loss.png"]


class Page(HTMLParser):
    """Checks that elements nest, and gathers links and words."""

    def __init__(self, text: str):
        super().__init__()
        self.open, self.links, self.words, self.tags = [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.links += [value for key, value in attributes if key in ("href", "src")]
        if tag not in ("meta", "img", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


NASTY = ['a "quoted" \'name\'', "<script>alert(1)</script>", "50% #1?x=1&y", "name:with:colons",
         "überraschung 细胞", " a  b "]


def test_gallery_links_resolve_and_nothing_is_unescaped(tmp_path):
    image, segmentation = made_up(20, 30, 12)
    entries = []
    for k, name in enumerate(NASTY):
        safe = name.replace("/", "_")
        paths = [tmp_path / "out put #%" / f"{safe}-{kind}.png" for kind in ("panel", "overlay")]
        for path in paths:
            write_png(path, image)
        entries.append(Entry(name, *paths, instances=instance_rows(segmentation, NAMES)[: 3 * k]))
    entries.append(Entry("<i>broken", error="<i>broken & 'bad': is empty"))
    gallery(entries, tmp_path / "index.html", "Title & <b>", {"model <x>": "a&b", "alpha": 0.5})
    text = (tmp_path / "index.html").read_text("utf-8")
    page = Page(text)
    assert len(page.links) == 4 * len(NASTY) and page.tags.count("script") == 1 and "i" not in page.tags
    for link in page.links:
        assert "://" not in link and not link.startswith("/")
        assert os.path.isfile(os.path.join(os.fsencode(tmp_path), unquote_to_bytes(link)))
    words = "".join(page.words)
    for word in (*NASTY, entries[-1].error, "Title & <b>", "model <x>", "a&b", "überraschung <b>", "1 failed"):
        assert word in words
    assert "http" not in text


def test_empty_gallery_and_names_that_are_no_unicode(tmp_path):
    name = os.fsdecode(b"\xff.png")
    gallery([Entry(name, panel=tmp_path / name)], tmp_path / "index.html", "t", {})
    assert Page((tmp_path / "index.html").read_text("utf-8")).links == ["%FF.png"] * 2
    gallery([], tmp_path / "index.html", "t", {})
    assert "0 pictures" in (tmp_path / "index.html").read_text()


@pytest.mark.filterwarnings("ignore::DeprecationWarning:pycocotools")
def test_load_res_round_trip_equals_the_masks(tmp_path):
    pictures = [(made_up(37, 53, 4)[1], 11, "a.png"), (made_up(20, 20, 0)[1], 12, "b.png"),
                (made_up(9, 7, 2)[1], 13, "c #.png")]
    path = tmp_path / "instances.json"
    written = [one for answer, number, name in pictures for one in to_coco_results(answer, number, [1, 18, 90], name)]
    write_results(path, written)
    assert json.loads(path.read_text()) == written
    truth = COCO()
    truth.dataset = {"images": [{"id": i} for i in (11, 12, 13)], "categories": [{"id": i} for i in (1, 18, 90)],
                     "annotations": []}
    truth.createIndex()
    loaded = truth.loadRes(str(path))
    for segmentation, image_id, file_name in pictures:
        found = loaded.loadAnns(loaded.getAnnIds(imgIds=[image_id]))
        assert len(found) == len(segmentation.instances)
        for result, instance in zip(found, segmentation.instances):
            mask = instance.mask.masks()[0].numpy()
            np.testing.assert_array_equal(coco_mask.decode(result["segmentation"]).astype(bool), mask)
            rows, cols = np.nonzero(mask)
            assert result["bbox"] == [cols.min(), rows.min(), np.ptp(cols) + 1, np.ptp(rows) + 1]
            assert result["category_id"] == [1, 18, 90][instance.label] and result["file_name"] == file_name
            assert result["peak"] == list(instance.peak) and result["terms"] == list(instance.terms)
            assert (result["score"], result["confidence"]) == (instance.score, instance.confidence)


def test_results_without_a_number_stay_json(tmp_path):
    _, segmentation = made_up(5, 5, 2)
    segmentation.instances[0].score, segmentation.instances[1].terms = -math.inf, (math.nan, 1.0, math.inf)
    first, second = to_coco_results(segmentation, 1, [1, 2, 3], "x.png")
    assert first["score"] < -1e200 and second["terms"] == [None, 1.0, None]
    write_results(tmp_path / "x.json", [])
    assert json.loads((tmp_path / "x.json").read_text()) == []
