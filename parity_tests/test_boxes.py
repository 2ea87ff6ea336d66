"""The baselines of Table 4: boxes from response maps, and masks from boxes."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prm.accelerated import Proposals
from prm.eval.judging.boxes import (
    best_overlapping,
    cam_boxes,
    ellipses,
    enlarged,
    instance_boxes,
    peak_boxes,
    rectangles,
)

SIZE = (9, 11)


@st.composite
def boxes(draw):
    x0, y0 = draw(st.integers(-3, 12)), draw(st.integers(-3, 10))
    return x0, y0, x0 + draw(st.integers(-1, 12)), y0 + draw(st.integers(-1, 10))


@given(st.lists(boxes(), max_size=4))
def test_masks_from_boxes_as_the_formulas_say(some):
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    filled, inscribed = rectangles(np.array(some), *SIZE), ellipses(np.array(some), *SIZE)
    assert len(filled) == len(inscribed) == len(some)
    for (x0, y0, x1, y1), rectangle, ellipse in zip(some, filled.masks().numpy(), inscribed.masks().numpy()):
        inside = (x >= x0) & (x <= x1) & (y >= y0) & (y <= y1)
        np.testing.assert_array_equal(rectangle, inside)
        # In whole numbers, doubled: (2x - 2cx)^2 h^2 + (2y - 2cy)^2 w^2 <= w^2 h^2.
        w, h = x1 - x0 + 1, y1 - y0 + 1
        form = (2 * x - x0 - x1) ** 2 * h**2 + (2 * y - y0 - y1) ** 2 * w**2 <= w**2 * h**2
        np.testing.assert_array_equal(ellipse, form & inside)


def test_the_box_of_an_empty_instance_holds_nothing():
    masks = np.zeros((2, *SIZE), bool)
    masks[1, 2:5, 3:4] = True
    found = instance_boxes(masks)
    assert found.tolist() == [[0, 0, -1, -1], [3, 2, 3, 4]]
    assert rectangles(found, *SIZE).areas().tolist() == [0, 3]


def test_cam_takes_the_largest_part_of_what_reaches_a_fifth_of_the_maximum():
    maps = np.zeros((3, 8, 10), np.float32)
    maps[0, 1, 1] = 10.0  # the maximum, alone
    maps[0, 4:7, 5:9] = 2.0  # exactly a fifth: the largest part
    maps[0, 4:7, 2] = 1.9
    maps[1, 3, 3] = 5.0  # of a class that is not found
    maps[2] = -4.0
    maps[2, 2, 6] = -1.0  # no positive maximum: its pixel alone
    found, labels, scores = cam_boxes(maps, np.array([0.0, -3.0, 2.0]), 0.5)
    assert found.tolist() == [[5, 4, 8, 6], [6, 2, 6, 2]] and labels.tolist() == [0, 2]
    assert scores == pytest.approx([0.5, 1 / (1 + np.exp(-2.0))])


def test_cam_takes_the_first_of_equal_parts_with_four_neighbours():
    maps = np.zeros((1, 4, 6), np.float32)
    maps[0, 0, 4:6] = maps[0, 1, 2:4] = 1.0  # touch at a corner only
    assert cam_boxes(maps, np.array([9.0]), 0.5)[0].tolist() == [[4, 0, 5, 0]]


def test_a_peak_takes_the_part_that_holds_it():
    maps = np.zeros((2, 6, 9), np.float32)
    maps[1, 1:3, 1:3] = 4.0
    maps[1, 1, 1] = 6.0
    maps[1, 4, 6:9] = [1.0, 3.0, 1.6]
    peaks = torch.tensor([[1, 0, 0], [1, 1, 1]])  # on a smaller map
    response, positions = torch.tensor([6.0, 3.0]), np.array([[1.2, 0.8], [4.4, 7.3]])
    found = SimpleNamespace(peaks=peaks, positions=positions, response=response)
    got, labels, scores = peak_boxes(maps, found)
    assert got.tolist() == [[1, 1, 2, 2], [7, 4, 8, 4]] and labels.tolist() == [1, 1] and scores.tolist() == [6, 3]


def test_maps_are_enlarged_by_pixel_centres():
    row = enlarged(torch.tensor([[[0.0, 4.0]]]), (1, 4))[0, 0]
    assert row.tolist() == [0.0, 1.0, 3.0, 4.0]


def test_the_first_of_the_best_overlapping():
    masks = torch.zeros(3, 4, 4, dtype=torch.bool)
    masks[0, :2], masks[1, :1], masks[2, 1:2] = True, True, True
    gallery = Proposals.from_masks(masks)
    asked = rectangles(np.array([[0, 0, 3, 1], [0, 0, 3, 3]]), 4, 4)
    assert best_overlapping(asked, gallery).areas().tolist() == [8, 8]
    halves = best_overlapping(Proposals.from_masks(masks[:1]), gallery.select([1, 2]))
    assert halves.starts.tolist() == [0]  # both halves overlap by 1/2
    assert len(best_overlapping(asked, Proposals.empty(4, 4))) == 0
    assert len(best_overlapping(Proposals.empty(4, 4), gallery)) == 0
