"""Segment proposals: the built-in generator on drawn pictures, and the cache."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage as ndi

from prm import InputError
from prm.accelerated.retrieval import Proposals
from prm.eval.proposals import cache
from prm.eval.proposals.grouping import GroupingSettings, generate, layers, ranking, rated
from prm.eval.proposals.grouping.hierarchies import hierarchies
from prm.eval.proposals.grouping.level_sets import level_sets
from prm.eval.proposals.grouping.objectness import objectness
from prm.eval.proposals.grouping.superpixels import superpixels

# The least work; for tests that are not about quality.
QUICK = GroupingSettings(scales=(60.0,), similarities=((1, 1, 1, 1, 0),), levels=4, candidates=200)


def discs(shape, centres, radii):
    """One mask a disc, (n, H, W)."""
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    return np.stack([(rows - r) ** 2 + (columns - c) ** 2 <= radius**2 for (r, c), radius in zip(centres, radii)])


def best_overlaps(truth, proposals):
    """For each true mask the best IoU of any proposal."""
    return Proposals.from_masks(torch.from_numpy(truth)).ious(proposals).max(1).values.numpy()


def cells():
    """A dark picture with noise and 36 bright blobs, some of them touching."""
    rng = np.random.default_rng(0)
    centres = [(20 + 36 * i + 4 * (j % 2), 20 + 36 * j) for i in range(6) for j in range(6)]
    truth = discs((220, 220), centres, rng.integers(7, 18, len(centres)))
    light = 20 + sum(mask * brightness for mask, brightness in zip(truth, rng.integers(50, 150, len(truth))))
    grey = ndi.gaussian_filter(light.astype(float), 1) + rng.normal(0, 3, light.shape)
    return np.repeat(np.clip(grey, 0, 255).astype(np.uint8)[..., None], 3, 2), truth


def coloured_things():
    """Three things of two colours each on a striped ground: no single superpixel is a whole thing."""
    truth = discs((150, 200), [(40, 45), (100, 120), (45, 155)], [25, 35, 18])
    rows = np.mgrid[:150, :200][0]
    picture = np.where(((rows // 6) % 2 == 0)[..., None], (90, 120, 90), (80, 110, 80))
    for mask, top, bottom in zip(
        truth, ((200, 60, 60), (70, 70, 200), (210, 200, 60)), ((150, 30, 30), (40, 40, 150), (160, 150, 30))
    ):
        centre = rows[mask].mean()
        picture[mask & (rows < centre)], picture[mask & (rows >= centre)] = top, bottom
    noise = np.random.default_rng(0).normal(0, 4, picture.shape)
    return np.clip(picture + noise, 0, 255).astype(np.uint8), truth


def same(a, b):
    return (a.height, a.width) == (b.height, b.width) and all(
        torch.equal(getattr(a, name), getattr(b, name)) for name in ("starts", "ends", "offsets", "objectness")
    )


# ---- generator


def test_cells_are_found():
    image, truth = cells()
    overlaps = best_overlaps(truth, generate(image, 300))
    assert (overlaps >= 0.5).mean() >= 0.95 and overlaps.mean() >= 0.8


def test_things_of_several_parts_are_found_early():
    image, truth = coloured_things()
    assert (best_overlaps(truth, generate(image, 100)) >= 0.8).all()


def test_every_mask_once_each_time_the_same_and_a_smaller_limit_gives_the_beginning():
    image, _ = coloured_things()
    whole, again, few = generate(image, 500), generate(image, 500), generate(image, 40)
    assert same(whole, again) and same(whole.select(range(40)), few)
    masks = whole.masks().flatten(1).numpy()
    assert masks.any(1).all() and len(np.unique(masks, axis=0)) == len(masks)


@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from(["black", "white", "noise", "step"]))
@settings(max_examples=25)
def test_any_picture_will_do(height, width, kind):
    image = np.zeros((height, width, 3), np.uint8)
    if kind == "white":
        image[:] = 255
    elif kind == "noise":
        image[:] = np.random.default_rng(0).integers(0, 256, image.shape)
    elif kind == "step":
        image[:, width // 2 :] = 200
    proposals = generate(image, 50, QUICK)
    assert (proposals.height, proposals.width) == (height, width)
    assert 1 <= len(proposals) <= 50
    assert (proposals.areas() > 0).all()


def test_a_constant_picture_has_one_region():
    proposals = generate(np.full((30, 50, 3), 128, np.uint8))
    assert proposals.areas().tolist() == [1500]


def test_large_pictures_are_worked_on_small():
    image, truth = coloured_things()
    large = np.ascontiguousarray(image.repeat(4, 0).repeat(4, 1))
    proposals = generate(large, 100, GroupingSettings(max_side=200))
    assert (proposals.height, proposals.width) == (600, 800)
    assert (best_overlaps(truth.repeat(4, 1).repeat(4, 2), proposals) >= 0.75).all()


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((4, 4, 3), np.float32),
        np.zeros((0, 4, 3), np.uint8),
        [[1, 2, 3]],
    ],
)
def test_other_arrays_are_refused(image):
    with pytest.raises(InputError, match="proposals"):
        generate(image)
    with pytest.raises(InputError, match="proposals"):
        cache.proposals_for(image, None)


def test_bad_limits_and_settings_are_refused():
    with pytest.raises(InputError, match="limit 0"):
        generate(np.zeros((4, 4, 3), np.uint8), 0)
    for wrong in ({"levels": 0}, {"unions": -1}, {"similarities": ((1, 1),)}, {"duplicates": ((0.5,),)}):
        with pytest.raises(InputError, match="settings"):
            GroupingSettings(**wrong)


def test_superpixels_of_two_halves():
    feature = np.zeros((4, 6, 3), np.float32)
    feature[:, 3:] = 50
    ((labels, count),) = superpixels(feature, (10.0,), 2)
    assert count == 2
    assert labels.tolist() == [[0, 0, 0, 1, 1, 1]] * 4


@given(st.integers(0, 2**32 - 1), st.integers(0, 12))
@settings(max_examples=10, deadline=None)
def test_regions_are_what_their_tables_say(seed, unions):
    """Area, box, hash and sums of every region of every source, unions included, against its mask."""
    rng = np.random.default_rng(seed)
    colours = rng.integers(0, 4, (4, 5, 3)).repeat(6, 0).repeat(5, 1).astype(np.float32) * 20
    picture = layers.Picture(colours, rng.random((24, 25), np.float32), rng.integers(0, 1 << 40, (24, 25)))
    chosen = GroupingSettings(
        scales=(30.0,), similarities=((1, 1, 1, 1, 1),), levels=3, unions=unions, min_superpixel=4, min_area=1
    )
    for layer in level_sets(picture, chosen) + hierarchies(colours, colours / 100, picture, chosen):
        of = np.zeros(len(layer.regions), np.int64)
        starts, ends, offsets = (torch.from_numpy(a) for a in ranking._runs([layer], of, layer.regions, 25))
        for mask, row, sums in zip(Proposals(24, 25, starts, ends, offsets).masks().numpy(), layer.regions, layer.sums):
            rows, columns = np.nonzero(mask)
            box = [rows.min(), columns.min(), rows.max() + 1, columns.max() + 1]
            assert row[[layers.TOP, layers.LEFT, layers.BOTTOM, layers.RIGHT]].tolist() == box
            assert row[layers.AREA] == mask.sum() and row[layers.HASH] == picture.keys[mask].sum()
            assert sums[layers.COLOUR :] == pytest.approx(colours[mask].sum(0), rel=1e-5)
            sides = [
                np.maximum(picture.edges[one], picture.edges[other])[mask[one] != mask[other]]
                for one, other in ((np.s_[:, 1:], np.s_[:, :-1]), (np.s_[1:], np.s_[:-1]))
            ]
            steps = np.concatenate(sides)
            assert sums[layers.LENGTH] == len(steps)
            assert sums[layers.STRENGTH] == pytest.approx(steps.sum(dtype=np.float64), abs=1e-4)


def test_neighbours_of_a_late_merge_are_proposed_together():
    # Three bars side by side: the outer ones alike, and each in one piece. One hierarchy joins the middle one with one
    # side only; the union with the other side is there as well.
    image = np.full((40, 60, 3), 30, np.uint8)
    for left, colour in ((15, (200, 40, 40)), (25, (180, 120, 40)), (35, (40, 60, 220))):
        image[10:30, left : left + 10] = colour
    truth = np.zeros((2, 40, 60), bool)
    truth[0, 10:30, 15:35] = truth[1, 10:30, 25:45] = True
    one = dict(scales=(60.0,), similarities=((1, 1, 1, 1, 0),), levels=1, candidates=500)
    assert (best_overlaps(truth, generate(image, 500, GroupingSettings(**one))) >= 0.95).all()
    assert best_overlaps(truth, generate(image, 500, GroupingSettings(**one, unions=0))).min() < 0.8


# ---- cache


def test_cache(tmp_path, monkeypatch):
    image = coloured_things()[0]
    folder = tmp_path / "new" / "cache"
    expected = generate(image, 50, QUICK)
    assert same(cache.proposals_for(image, None, 50, QUICK), expected)
    assert not folder.exists()
    assert same(cache.proposals_for(image, folder, 50, QUICK), expected)
    (stored,) = folder.iterdir()

    # Whatever would be wrong to hand out is made anew.
    calls = []
    monkeypatch.setattr(cache, "generate", lambda *a: calls.append(a) or generate(*a))
    assert same(cache.proposals_for(image, folder, 50, QUICK), expected) and len(calls) == 0
    whole = stored.read_bytes()
    for damage in (b"", whole[: len(whole) // 2], b"no archive", whole[:200] + bytes(200) + whole[400:]):
        stored.write_bytes(damage)
        assert same(cache.proposals_for(image, folder, 50, QUICK), expected)
        assert stored.read_bytes() == whole
    assert len(calls) == 4 and list(folder.iterdir()) == [stored]


def test_a_cache_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="cannot be written"):
        cache.proposals_for(np.zeros((4, 4, 3), np.uint8), tmp_path / "file", 5, QUICK)


def test_cache_tells_apart(tmp_path):
    # The same bytes in another shape, other bytes, another limit, other settings.
    image = np.random.default_rng(0).integers(0, 256, (8, 6, 3), dtype=np.uint8)
    other = image.copy()
    other[0, 0, 0] ^= 1
    for picture in (image, image.reshape(6, 8, 3), other):
        proposals = cache.proposals_for(picture, tmp_path, 10, QUICK)
        assert (proposals.height, proposals.width) == picture.shape[:2]
    cache.proposals_for(image, tmp_path, 5, QUICK)
    cache.proposals_for(image, tmp_path, 10)
    assert len(list(tmp_path.iterdir())) == 5
    cache.proposals_for(np.asfortranarray(image), tmp_path, 10)
    assert len(list(tmp_path.iterdir())) == 5


# ---- objectness


def literal_objectness(image, mask, place):
    """As the module's page says it, with dense masks."""
    ring = ndi.binary_dilation(mask, np.ones((9, 9), bool)) & ~mask
    if not mask.any() or not ring.any():
        return 0.0
    inside, around = image[mask].astype(float), image[ring].astype(float)
    deviation = np.sqrt(inside.var(0).sum() + around.var(0).sum())
    contrast = np.linalg.norm(inside.mean(0) - around.mean(0)) / (5 + deviation)
    sides = (mask[1:] != mask[:-1]).sum() + (mask[:, 1:] != mask[:, :-1]).sum()
    x = contrast * min(1, 64 * mask.sum() / (np.pi * sides**2)) * np.log(20) / np.log(20 + place)
    return x / (1 + x)


@pytest.mark.parametrize("seed", range(40))
def test_objectness_is_what_its_page_says(seed):
    rng = np.random.default_rng(seed)
    height, width = rng.integers(1, 24, 2)
    image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    masks = rng.random((6, height, width)) < rng.choice([0, 0.1, 0.5, 0.9, 1])
    masks[::2] = ndi.binary_opening(masks[::2], np.ones((1, 2, 2), bool))
    found = objectness(image, Proposals.from_masks(torch.from_numpy(masks))).numpy()
    assert found == pytest.approx([literal_objectness(image, mask, k) for k, mask in enumerate(masks)], abs=1e-9)


def test_a_disc_on_even_ground_is_more_a_thing_than_its_half_or_its_surroundings():
    rows, columns = np.mgrid[:60, :80]
    disc = (rows - 30) ** 2 + (columns - 40) ** 2 < 15**2
    image = np.where(disc[..., None], (200, 120, 40), (60, 60, 60)).astype(np.uint8)
    lattice = disc & ((rows + columns) % 3 > 0)
    masks = np.stack([disc & (rows < 30), disc, lattice, (abs(rows - 30) < 25) & (abs(columns - 40) < 35), disc])
    found = objectness(image, Proposals.from_masks(torch.from_numpy(masks))).tolist()
    # of two that are the same the earlier one is a little more: who made them thought so
    assert max(found) == found[1] > found[4] > max(found[0], found[2], found[3])


def test_proposals_of_others_are_rated():
    image = coloured_things()[0]
    made = generate(image, 20, QUICK)
    assert made.objectness.shape == (20,) and 0 < made.objectness.min() < made.objectness.max() < 1
    bare = Proposals(made.height, made.width, made.starts, made.ends, made.offsets)
    assert torch.equal(rated(image, bare).objectness, made.objectness)
    for scores, wanted in (([0.5, 1.0], [0.5, 1.0]), ([-1.0, 3.0], [0.0, 1.0]), ([7.0, 7.0], [1.0, 1.0])):
        assert rated(image, bare.select([0, 1]), np.array(scores)).objectness.tolist() == wanted
    none = bare.select([])
    assert len(rated(image, none, np.zeros(0)).objectness) == len(rated(image, none).objectness) == 0


def test_objectness_stays_with_its_mask():
    bare = Proposals.from_masks(torch.eye(3, dtype=torch.bool)[:, None])
    masks = replace(bare, objectness=torch.tensor([0.1, 0.2, 1]))
    assert masks.select([2, 0]).objectness.tolist() == pytest.approx([1, 0.1])
    assert torch.equal(masks.resized(2, 9).objectness, masks.objectness)
    assert Proposals.concatenate([masks, masks]).objectness.shape == (6,)
    assert Proposals.concatenate([masks, Proposals.from_masks(masks.masks())]).objectness is None
    assert masks.contours(3).objectness is None and torch.equal(masks.to("cpu").objectness, masks.objectness)
    for wrong in (torch.tensor([0.5]), torch.tensor([0, 0.5, 1.1]), torch.tensor([0, 0.5, float("nan")])):
        with pytest.raises(InputError, match="objectness"):
            replace(masks, objectness=wrong)
