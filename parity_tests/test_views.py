"""Maps and PRMs averaged over views: by hand, and what must hold of all eight; `test_segmenter` compares both sides."""

import numpy as np
import pytest
import torch

from prm.accelerated.peak_backprop import PeakBackprop
from prm.accelerated.views import Views, turn, turn_back
from prm.parity_tests.zoo import SmallCnn
from prm.reference import views as oracle
from prm.reference.network import Node
from prm.settings import InputError, SegmentationSettings

POINTWISE = [
    Node("image", "input"), Node("maps", "conv2d", ("image",), {"weight": np.array([1.0, 2.0]).reshape(2, 1, 1, 1)}),
]  # fmt: skip
"""A network whose map is the picture: of every view the same."""


@pytest.fixture
def walk(device):
    return PeakBackprop(SmallCnn(["max", "strided"], 3).to(device), upsample=2)


def test_views_by_hand():
    x = np.arange(6).reshape(1, 2, 3)
    assert oracle.turned(x, 1)[0].tolist() == [[2, 1, 0], [5, 4, 3]]
    assert oracle.turned(x, 2)[0].tolist() == [[3, 4, 5], [0, 1, 2]]
    assert oracle.turned(x, 4)[0].tolist() == [[0, 3], [1, 4], [2, 5]]
    assert oracle.turned(x, 7)[0].tolist() == [[5, 2], [4, 1], [3, 0]]
    views = [oracle.turned(x, k) for k in range(8)]
    assert len({(v.shape, v.tobytes()) for v in map(np.ascontiguousarray, views)}) == 8
    for k, view in enumerate(views):
        np.testing.assert_array_equal(oracle.turned_back(view, k), x)
        assert turn(torch.from_numpy(x), k).tolist() == view.tolist()
        assert turn_back(turn(torch.from_numpy(x), k), k).tolist() == x.tolist()


def test_a_place_goes_along_with_its_view():
    # (0, 2) of 2 x 3 is the upper right corner
    assert [oracle.place_in_view((0, 2), (2, 3), (2, 3), k) for k in (0, 1, 2, 3, 4, 7)] == [
        (0, 2), (0, 0), (1, 2), (1, 0), (2, 0), (0, 1)]  # fmt: skip
    # at twice the size row 0 lies between rows 0 and 1; at half of it, at or above the first
    assert oracle.place_in_view((0, 1), (2, 2), (4, 4), 0) == (0.5, 2.5)
    assert oracle.place_in_view((0, 3), (4, 4), (2, 2), 1) == (0, 0)


def test_means_of_a_map_that_no_view_changes():
    picture = np.arange(1.0, 7.0).reshape(1, 2, 3)
    seen = oracle.look(POINTWISE, [picture], 8)
    np.testing.assert_allclose(oracle.mean_maps(POINTWISE, seen), [picture[0], 2 * picture[0]], rtol=1e-15)
    R, empty = oracle.mean_prm(POINTWISE, seen, (1, 0, 2), (2, 3))
    assert (R.tolist(), empty) == ([[0, 0, 1], [0, 0, 0]], False)
    # Enlarged by 2, row 0 of 4 is row 0, column 3 of 6 lies at 3 * 2 / 5 = 1.2 of the map.
    R, _ = oracle.mean_prm(POINTWISE, seen, (0, 0, 3), (2, 3), upsample=2)
    np.testing.assert_allclose(R, [[0, 0.8, 0.2], [0, 0, 0]], atol=1e-15)
    none = oracle.look(POINTWISE, [0 * picture], 2)
    assert oracle.mean_prm(POINTWISE, none, (0, 1, 1), (2, 3))[1]


def test_a_view_at_another_size_counts_as_much():
    # The second picture is twice as large: its map is halved to the first's, its PRM has four times the pixels.
    small, large = np.ones((1, 1, 2)), np.ones((1, 2, 4)) * 3
    seen = oracle.look(POINTWISE, [small, large])
    assert oracle.mean_maps(POINTWISE, seen)[0].tolist() == [[2, 2]]
    R, _ = oracle.mean_prm(POINTWISE, seen, (0, 0, 0), (1, 2))
    # column 0 lies at 0.5 of the larger map: half of the mass on columns 0 and 1 each, which both are column 0
    assert R.tolist() == [[1, 0]]


@pytest.mark.parametrize("k", range(8))
def test_eight_views_of_a_turned_picture_are_the_same(k, walk, device):
    x = torch.rand(2, 3, 24, 32, generator=torch.Generator().manual_seed(k)).to(device)
    plain, turned = Views(walk, [x], 8), Views(walk, [turn(x, k).contiguous()], 8)
    torch.testing.assert_close(turn_back(turned.maps, k), plain.maps, rtol=1e-5, atol=1e-5)
    h, w = (2 * side for side in plain.maps.shape[2:])
    peaks = torch.tensor([[0, 1, 3, 5], [1, 0, h - 1, 0], [1, 2, 4, w - 2]], device=device)
    places = torch.zeros(h, w, device=device)
    there = peaks.clone()
    for n, (row, column) in enumerate(peaks[:, 2:].tolist()):
        places.zero_()[row, column] = 1
        there[n, 2:] = turn(places, k).nonzero()[0]
    ours, theirs = plain.prms(peaks), turned.prms(there)
    torch.testing.assert_close(turn_back(theirs.prms, k), ours.prms, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(theirs.leaked, ours.leaked, rtol=1e-4, atol=1e-6)
    assert not torch.allclose(walk.prepare(x).prms(peaks).prms, ours.prms, rtol=1e-2)


@pytest.mark.parametrize("bad", [{"views": 3}, {"scales": "1,"}, {"scales": "0"}, {"scales": "x"}, {"scales": "-1"}])
def test_bad_views_are_refused(bad):
    with pytest.raises(InputError, match=next(iter(bad))):
        SegmentationSettings(**bad)
