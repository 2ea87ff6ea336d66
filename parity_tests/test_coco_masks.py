"""COCO's segmentations: pycocotools draws what it always drew, and what would end the process is cut or refused."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

pytest.importorskip("pycocotools")
from pycocotools import mask as coco

from prm.eval.pictures import coco_masks
from prm.eval.pictures.coco_masks import encoded


def drawn(polygons, shape):
    return coco.decode(encoded(polygons, shape)).astype(bool)


@st.composite
def polygons(draw, reach):
    """((H, W), corners (N, 2)) with corners up to `reach` pixels out of the picture, hundredths of a pixel apart."""
    shape = draw(st.integers(1, 12)), draw(st.integers(1, 12))
    count, seed = draw(st.integers(3, 7)), draw(st.integers(0, 2**31))
    rng = np.random.default_rng(seed)
    return shape, np.round(rng.uniform(-reach, reach + 12, (count, 2)), draw(st.sampled_from([0, 2])))


@given(polygons(reach=200))
def test_pycocotools_draws_what_does_not_lead_far(case):
    shape, corners = case
    expected = coco.merge(coco.frPyObjects([corners.ravel()], *shape))
    assert encoded([corners.ravel().tolist()], shape) == expected


def distance(corners, shape):
    """(H, W): how far each pixel's centre is from the outline; in COCO's coordinates centres are at halves."""
    y, x = np.indices(shape) + 0.5
    p = np.stack([x, y], axis=-1)[:, :, None]
    a, b = corners, np.roll(corners, -1, axis=0)
    along = ((p - a) * (b - a)).sum(-1) / np.maximum(((b - a) ** 2).sum(-1), 1e-30)
    return np.linalg.norm(p - (a + np.clip(along, 0, 1)[..., None] * (b - a)), axis=-1).min(axis=-1)


@given(polygons(reach=200))
def test_a_polygon_that_is_cut_covers_what_it_covered(case):
    """But for pixels whose centre an edge passes so closely that rounding to fifths of a pixel decides."""
    shape, corners = case
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(coco_masks, "FAR", 0)
        cut = drawn([corners.ravel()], shape)
    whole = coco.decode(coco.merge(coco.frPyObjects([corners.ravel()], *shape))).astype(bool)
    clear = distance(corners, shape) > 0.3
    np.testing.assert_array_equal(cut[clear], whole[clear])


def test_whole_coordinates_are_cut_exactly(monkeypatch):
    """Edges along rows, columns and diagonals: every pixel."""
    shapes = ([-9, -3, 30, -3, 30, 2, -9, 2], [-20, 4, 4, -20, 28, 4, 4, 28], [2, 2, 30, 30, 2, 30], [3, 1, 5, 1, 5, 4])
    whole = [drawn([corners], (8, 10)) for corners in shapes]
    monkeypatch.setattr(coco_masks, "FAR", 0)
    for corners, expected in zip(shapes, whole):
        np.testing.assert_array_equal(drawn([corners], (8, 10)), expected)
    assert all(mask.any() for mask in whole) and whole[0].sum() == 2 * 10


@pytest.mark.parametrize("far", [1e7, 1e9, 1e18, 1e300, 1.7e308])
def test_polygons_that_lead_far(far):
    """By hand, in a picture of 4 rows and 6 columns."""
    everything, right, band = np.ones((4, 6), bool), np.zeros((4, 6), bool), np.zeros((4, 6), bool)
    right[:, 2:], band[1:3] = True, True
    np.testing.assert_array_equal(drawn([[-far, -far, far, -far, far, far, -far, far]], (4, 6)), everything)
    np.testing.assert_array_equal(drawn([[2, -far, far, -far, far, far, 2, far]], (4, 6)), right)
    np.testing.assert_array_equal(drawn([[-far, 1, far, 1, far, 3, -far, 3]], (4, 6)), band)
    np.testing.assert_array_equal(drawn([[-5, 1, far, 1, -5, 3]], (4, 6)), band)
    below_the_diagonal = drawn([[0, 0, 20, 20, 0, 20]], (4, 6))
    np.testing.assert_array_equal(drawn([[0, 0, far, far, 0, far]], (4, 6)), below_the_diagonal)
    for beside in ([far, far, far, 0, far / 2, far], [-9, -far, -9, far, -8, 0]):
        assert not drawn([beside], (4, 6)).any()
    np.testing.assert_array_equal(drawn([[-9, -far, -9, far, -8, 0], [0, 1, 9, 1, 9, 3, 0, 3]], (4, 6)), band)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 10**400])
def test_corners_that_are_not_finite(bad):
    for polygon in ([1, 1, bad, 1, 3, 3], [1, 1, 3, 1, 3, bad]):
        with pytest.raises(ValueError, match="holds a coordinate that is not finite"):
            encoded([[0, 0, 1, 0, 1, 1], polygon], (4, 6))


@given(seed=st.integers(0, 1000), shape=st.tuples(st.integers(1, 40), st.integers(1, 40)), density=st.floats(0, 1))
def test_a_code_describes_as_many_pixels_as_the_picture_has(seed, shape, density):
    mask = np.random.default_rng(seed).random(shape) < density
    code = coco.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"]
    assert coco_masks._total(np.frombuffer(code, np.uint8)) == mask.size
    for length in range(len(code)):
        assert coco_masks._total(np.frombuffer(code[:length], np.uint8)) < mask.size or mask.size == 0


# ---- what used to end the process

KILLERS = {"NaN": True, "Infinity": True, "1e300": False, "1e9": False, "-1e9": False, "null": True}
"""A coordinate as JSON has it, and whether it is refused; else the polygon is cut."""


def child(code: str, folder: Path) -> list[str]:
    """The lines of a Python program that must end of its own."""
    result = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, env=os.environ)
    assert result.returncode == 0 and not result.stderr, result
    return result.stdout.splitlines()


def polygon(number: str) -> str:
    """Six of the pixels of a picture of 4 rows and 6 columns: rows 1 and 2, left or right of column 3."""
    return f"[[3, 1, {number}, 1, {number}, 3, 3, 3]]"


def test_a_data_set_is_checked_to_its_end(tmp_path):
    images, annotations = [], []
    for key, number in enumerate(KILLERS):
        Image.new("RGB", (6, 4)).save(tmp_path / f"{key}.png")
        images.append({"id": key, "file_name": f"{key}.png", "height": 4, "width": 6})
        entry = f'{{"id": {70 + key}, "image_id": {key}, "category_id": 1, "segmentation": {polygon(number)}}}'
        annotations.append(entry)
    categories = '[{"id": 1, "name": "dog"}]'
    content = f'"images": {json.dumps(images)}, "categories": {categories}, "annotations": [{", ".join(annotations)}]'
    (tmp_path / "all.json").write_text(f"{{{content}}}")
    code = "from prm.eval.datasets.check import check_dataset; print(*check_dataset('all.json').problems, sep='\\n')"
    expected = [
        f"all.json: {key}.png: segmentation 0 cannot be decoded (a polygon holds a coordinate that is not finite); "
        f"correct annotation {70 + key}"
        for key, number in enumerate(KILLERS) if KILLERS[number]
    ]  # fmt: skip
    assert [line for line in child(code, tmp_path) if "segmentation" in line] == expected


def test_proposals_are_cut_or_refused(tmp_path):
    for k, number in enumerate(KILLERS):
        entries = ", ".join(f'{{"image_id": 1, "segmentation": {code}}}' for code in ("[]", polygon(number)))
        (tmp_path / f"{k}.json").write_text(f"[{entries}]")
    code = f"""
from prm import InputError
from prm.eval.proposals import open_proposals
for k in range({len(KILLERS)}):
    try:
        print(open_proposals(f"{{k}}.json", "coco")("1.png", (4, 6))[0].masks().sum((1, 2)).tolist())
    except InputError as error:
        print(error)
"""
    for k, (line, refused) in enumerate(zip(child(code, tmp_path), KILLERS.values(), strict=True)):
        assert line.startswith(f"{k}.json, entry 1: a polygon holds ") if refused else line == "[0, 6]"
