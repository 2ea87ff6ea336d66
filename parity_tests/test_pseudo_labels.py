"""WISE's fast path beyond what the conformance table compares: whole lists of draws, gradients, defaults, bad input."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from prm import InputError
from prm.accelerated import Proposals
from prm.accelerated.peak_stimulation import enlarge
from prm.accelerated.pseudo_labels import assign, drawn, gradient_maps, refine, seed_map, seeds_of
from prm.parity_tests.zoo import SmallCnn
from prm.reference import pseudo_labels as oracle


def rated(masks, objectness, device="cpu"):
    return replace(Proposals.from_masks(torch.as_tensor(masks)), objectness=torch.as_tensor(objectness)).to(device)


def test_a_crowded_picture_against_the_oracle(device):
    rng = np.random.default_rng(0)
    masks = np.zeros((150, 40, 50), bool)
    for m in masks:
        (top, left), (high, wide) = rng.integers(0, 35, 2), rng.integers(1, 20, 2)
        m[top : top + high, left : left + wide] = True
    objectness = rng.integers(0, 40, 150) / 40
    peaks = np.stack([np.sort(rng.integers(0, 3, 60)), rng.integers(0, 5, 60), rng.integers(0, 5, 60)], axis=1)
    maps = rng.random((60, 20, 30)).round(2)
    found = seed_map(torch.as_tensor(peaks).to(device), torch.as_tensor(maps).to(device), (40, 50))
    wanted = oracle.seed_map(peaks, maps, (40, 50))
    assert found.tolist() == wanted.tolist()
    seeds = seeds_of(found)
    assert seeds.tolist() == oracle.seeds_of(wanted).tolist() and len(seeds) > 50
    ours, theirs = assign(rated(masks, objectness, device), seeds), oracle.assign(masks, objectness, seeds.cpu())
    assert len(theirs) > 40
    columns = (ours.seeds, ours.proposals, ours.scores, ours.labels)
    assert list(zip(*(column.tolist() for column in columns))) == [one[:4] for one in theirs]
    np.testing.assert_allclose(ours.probabilities.cpu(), [one[4] for one in theirs], rtol=1e-14)
    u = torch.rand(len(theirs), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    got = drawn(ours.probabilities, u.to(device)).tolist()
    assert got == [oracle.drawn(one[4], float(v)) for one, v in zip(theirs, u)]
    assert len(set(got) - set(ours.proposals.tolist())) > 10  # not just the best


def test_no_seed_no_proposal_no_label(device):
    none, seeds = Proposals.empty(3, 4, device), torch.zeros(0, 3, dtype=torch.int64, device=device)
    none = replace(none, objectness=torch.zeros(0, device=device))
    assert seed_map(seeds, torch.zeros(0, 3, 4, device=device)).sum() == 0
    for proposals in (none, rated(np.ones((2, 3, 4), bool), [0.5, 1.0], device)):
        found = assign(proposals, seeds)
        assert len(found.seeds) == 0 and found.probabilities.shape == (0, len(proposals))
        assert drawn(found.probabilities, torch.zeros(0, device=device)).tolist() == []
    assert len(assign(none, seeds.new_tensor([[1, 1, 1]])).seeds) == 0
    assert len(refine(none, none)) == 0


def test_the_best_hundred_are_eligible_where_no_threshold_is_given():
    columns = np.eye(120, dtype=bool)[:, None]  # a column each
    both = columns[5] | columns[100]
    best = torch.arange(120, 0, -1) / 120.0
    found = Proposals.from_masks(torch.as_tensor(np.stack([both, columns[99] | columns[100], columns[100]])))
    # Of two that overlap equally 100, the 101st, does not count; alone it stays as it was.
    wanted = torch.as_tensor(columns[[5, 99, 100]])
    assert torch.equal(refine(found, rated(columns, best)).masks(), wanted)
    # What ties with the 101st does not count either.
    best[90:110] = best[100]
    refined = refine(found, rated(columns, best)).masks()
    assert torch.equal(refined[0], wanted[0]) and torch.equal(refined[1], found.masks()[1])
    assert len(refine(found, rated(columns, best), threshold=0.0).masks()[1].nonzero()) == 1
    few = rated(columns[:3], [0.0, 0.0, 0.0])
    assert torch.equal(refine(few, few).masks(), few.masks())


def test_gradient_maps_by_hand():
    class Net(nn.Module):
        def forward(self, x):
            return torch.stack([(x[:, 0] * x[:, 1]).sum((1, 2), keepdim=True), -x[:, 0].sum((1, 2), keepdim=True)], 1)

    picture = torch.arange(1.0, 9.0).view(1, 2, 2, 2)
    # d(sum of x0 x1) = x1, x0: their sum; of the other class the gradient is -1, which the relu cuts off.
    found = gradient_maps(Net(), picture, torch.tensor([[0, 0, 0], [1, 0, 0]]))
    assert found.tolist() == [[[6, 8], [10, 12]], [[0, 0], [0, 0]]]
    assert gradient_maps(Net(), picture, torch.zeros(0, 3, dtype=torch.int64)).shape == (0, 2, 2)


def test_gradient_maps_of_an_enlarged_map_against_differences():
    torch.manual_seed(0)
    net, picture = SmallCnn(["max", "strided"], 3).double().eval(), torch.rand(1, 3, 12, 12, dtype=torch.float64)
    peak = torch.tensor([[1, 2, 3]])
    found = gradient_maps(net, picture, peak, upsample=2)[0]
    for at in ((0, 5, 5), (1, 3, 8), (2, 7, 2)):
        some = torch.zeros_like(picture)
        some[0, :, at[1], at[2]] = 1e-6
        with torch.no_grad():
            up, down = (enlarge(net(picture + s * some), 2)[0, 1, 2, 3] for s in (1, -1))
        assert found[at[1], at[2]] == pytest.approx(max(float(up - down) / 2e-6, 0), abs=1e-7)


def test_bad_input_is_one_line():
    masks, seeds = Proposals.from_masks(torch.ones(1, 3, 4, dtype=torch.bool)), torch.tensor([[0, 4, 1]])
    for call in (lambda: assign(masks, seeds[:0]), lambda: refine(masks, masks)):
        with pytest.raises(InputError, match="without objectness; give them one"):
            call()
    with pytest.raises(InputError, match="a seed lies outside of the picture, 3 x 4"):
        assign(replace(masks, objectness=torch.ones(1)), seeds)
    with pytest.raises(InputError, match="1 peaks and maps"):
        seed_map(torch.zeros(1, 3, dtype=torch.int64), torch.zeros(2, 3, 4))
