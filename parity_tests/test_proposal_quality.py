"""How proposals are judged: recall and best overlap against their number, by hand; and the generator on photographs."""

import json
import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prm import InputError
from prm.accelerated.retrieval import Proposals
from prm.eval.proposals.grouping import generate
from prm.eval.proposals.quality import (
    felzenszwalb_segments,
    half_indices,
    proposal_quality,
    quality_figure,
    quality_table,
    slic_segments,
)


def sample(masks, name="picture"):
    return SimpleNamespace(name=name, image=np.zeros((*masks.shape[1:], 3), np.uint8), masks=masks)


def box(shape, top, left, bottom, right):
    mask = np.zeros(shape, bool)
    mask[top:bottom, left:right] = True
    return mask


def encoded(masks):
    return Proposals.from_masks(torch.from_numpy(np.stack(masks)))


def found_here(sample, limit):
    return generate(sample.image, limit)


def test_by_hand():
    # A small instance (100 pixels), one of exactly 32 x 32 (medium), one of exactly 96 x 96 (large).
    shape = (200, 200)
    truth = np.stack([box(shape, 0, 0, 10, 10), box(shape, 20, 20, 52, 52), box(shape, 100, 100, 196, 196)])
    # IoU with the small one 0, 0.5, 0.5; with the medium one 0, 0, 0.75; with the large one 1.
    found = [truth[2], box(shape, 0, 0, 10, 5), box(shape, 20, 20, 52, 44)]
    ticks = []
    answer = proposal_quality(
        [sample(truth), sample(truth[:0])],
        lambda sample, limit: encoded(found[:limit]),
        counts=(1, 2, 3, 9),
        tick=lambda: ticks.append(1),
    )
    assert len(ticks) == answer["pictures"] == 2 and answer["proposals"] == 3
    sizes = answer["sizes"]
    assert [sizes[name]["instances"] for name in ("all", "small", "medium", "large")] == [3, 1, 1, 1]
    assert sizes["small"]["ABO"] == [0, 0.5, 0.5, 0.5]
    assert sizes["small"]["recall_0.5"] == [0, 1, 1, 1] and sizes["small"]["recall_0.7"] == [0, 0, 0, 0]
    assert sizes["medium"]["ABO"] == [0, 0, 0.75, 0.75] and sizes["medium"]["recall_0.7"] == [0, 0, 1, 1]
    assert sizes["large"]["ABO"] == [1, 1, 1, 1]
    assert sizes["all"]["ABO"] == [0.3333, 0.5, 0.75, 0.75]
    assert answer["seconds"].keys() == {"cpu", "wall"}
    assert json.loads(json.dumps(answer)) == answer


def test_nothing_found_and_sizes_without_instances():
    truth = box((20, 20), 0, 0, 5, 5)[None]
    answer = proposal_quality([sample(truth)], lambda sample, limit: Proposals.empty(20, 20), counts=(5,))
    assert answer["sizes"]["all"]["ABO"] == [0] and answer["proposals"] == 0
    assert answer["sizes"]["large"] == {"instances": 0, "ABO": None, "recall_0.5": None, "recall_0.7": None}
    assert "-" in quality_table({"nothing": answer})


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=20)
def test_more_proposals_are_never_worse_and_recall_agrees_with_dense_masks(seed):
    rng = np.random.default_rng(seed)
    truth, found = rng.random((3, 6, 7)) < 0.4, rng.random((9, 6, 7)) < 0.4
    truth[:, 0, 0] = True
    answer = proposal_quality([sample(truth)], lambda sample, limit: encoded(found), counts=(1, 4, 9))["sizes"]["all"]
    shared = (truth[:, None] & found[None]).sum((2, 3))
    iou = shared / (truth[:, None] | found[None]).sum((2, 3))
    best = np.stack([iou[:, :n].max(1) for n in (1, 4, 9)], 1)
    assert answer["ABO"] == best.mean(0).round(4).tolist() == sorted(answer["ABO"])
    assert answer["recall_0.5"] == (best >= 0.5).mean(0).round(4).tolist()


def test_halves():
    assert list(half_indices(5, "even")) == [0, 2, 4]
    assert list(half_indices(5, "odd")) == [1, 3]
    assert list(half_indices(2, None)) == [0, 1]
    with pytest.raises(InputError, match="half is 'third'"):
        half_indices(5, "third")


@pytest.mark.parametrize("counts", [(), (0, 5), (5, 5), (10, 5)])
def test_bad_counts_are_refused(counts):
    with pytest.raises(InputError, match="numbers of proposals"):
        proposal_quality([], found_here, counts)


def test_what_cannot_be_judged_is_refused():
    truth = box((20, 20), 0, 0, 5, 5)[None]
    with pytest.raises(InputError, match="no pictures"):
        proposal_quality([], found_here)
    bare = SimpleNamespace(name="bare", image=np.zeros((20, 20, 3), np.uint8), masks=None)
    with pytest.raises(InputError, match="bare: has no instance masks"):
        proposal_quality([bare], found_here)
    with pytest.raises(InputError, match="picture: proposals of 20 x 19"):
        proposal_quality([sample(truth)], lambda sample, limit: Proposals.empty(20, 19))


@pytest.mark.parametrize("segments", [felzenszwalb_segments, slic_segments])
def test_baselines(segments):
    image = np.full((60, 80, 3), 40, np.uint8)
    image[10:40, 20:60] = (200, 180, 30)
    whole = segments(image, 300)
    masks = whole.masks().flatten(1).numpy()
    assert masks.any(1).all() and len(np.unique(masks, axis=0)) == len(masks) <= 300
    truth = encoded([box((60, 80), 10, 20, 40, 60)])
    assert truth.ious(whole).max() > (0.7 if segments is felzenszwalb_segments else 0.2)
    few = segments(image, 2)
    assert len(few) == 2 and torch.equal(few.starts, whole.select([0, 1]).starts)


def test_table_and_figure(tmp_path):
    truth = box((20, 20), 0, 0, 5, 5)[None]
    rows = {
        name: proposal_quality([sample(truth)], lambda sample, limit: encoded([truth[0]]), counts=(1, 10))
        for name in ("one", "the other")
    }
    text = quality_table(rows)
    assert "ABO, small (1)" in text and text.count("the other") == 13
    quality_figure(rows, tmp_path / "quality.png")
    assert (tmp_path / "quality.png").read_bytes().startswith(b"\x89PNG")
    (tmp_path / "file").touch()
    with pytest.raises(InputError):
        quality_figure(rows, tmp_path / "file" / "quality.png")


@pytest.mark.skipif("PRM_TEST_DATA" not in os.environ, reason="needs photographs with masks; set PRM_TEST_DATA")
def test_photographs():
    """On three photographs of the odd half: a loose bound, to notice when the generator breaks."""
    from prm.eval.datasets import open_dataset

    dataset = open_dataset(Path(os.environ["PRM_TEST_DATA"]) / "coco_mini", split="train")
    samples = (dataset[i] for i in list(half_indices(len(dataset), "odd"))[:3])
    answer = proposal_quality(samples, found_here, counts=(200, 1000))
    assert answer["sizes"]["all"]["ABO"][1] >= 0.4


def test_how_well_objectness_ranks():
    shape = (40, 40)
    truth = np.stack([box(shape, 0, 0, 10, 10), box(shape, 20, 20, 30, 30)])
    found = replace(encoded([box(shape, 30, 0, 40, 10)] * 9 + [truth[0], box(shape, 15, 20, 25, 30), truth[1]]),
                    objectness=torch.tensor([0.6] * 9 + [0.9, 0.5, 0.1], dtype=torch.float64))  # fmt: skip
    answer = proposal_quality([sample(truth)], lambda *_: found, counts=(12,))
    # of the first ten by objectness one is right, and the wrong ones come before the one that is half right
    assert answer["objectness"]["counts"] == [10, 50, 200] and answer["objectness"]["recall_0.5"] == [0.5, 1.0, 1.0]
    assert -0.5 < answer["objectness"]["rank_correlation"] < 0.5
    assert "by falling objectness 0.500 of 10, 1.000 of 50" in quality_table({"mine": answer})
    right = replace(found, objectness=found.ious(encoded(truth)).amax(1))
    assert proposal_quality([sample(truth)], lambda *_: right, (12,))["objectness"]["rank_correlation"] == 1.0
    unknown = replace(found, objectness=None)
    assert "objectness" not in proposal_quality([sample(truth)], lambda *_: unknown, counts=(12,))
