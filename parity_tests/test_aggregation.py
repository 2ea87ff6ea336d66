"""The other aggregations (Tables 1, 2 and 5): values worked out by hand, gradients, ties."""

import math

import pytest
import torch

from prm.accelerated import PeakStimulation, aggregation
from prm.accelerated.aggregation import AGGREGATIONS
from prm.parity_tests.checks import refused
from prm.parity_tests.tolerances import assert_close

# name -> options under which every branch of the formula is taken
SETTINGS = [
    ("peak", {}),
    ("average", {}),
    ("max", {}),
    ("lse", {}),
    ("lse", {"q": 2.5}),
    ("wildcat", {}),
    ("wildcat", {"highest": 3, "lowest": 2, "alpha": 0.7}),
    ("wildcat", {"highest": 4, "lowest": 1, "alpha": 0}),
    ("wildcat", {"highest": 1, "lowest": 0.5, "alpha": -0.3}),
]


def one(*values, device="cpu"):
    """A single class response map (1, 1, 2, W) of double precision, its two rows one after the other."""
    return torch.tensor(values, dtype=torch.float64, device=device).reshape(1, 1, 2, -1)


def grad(module, M):
    M = M.clone().requires_grad_()
    return torch.autograd.grad(module(M).sum(), M)[0].flatten().tolist()


def test_every_aggregation_has_a_setting():
    assert {name for name, _ in SETTINGS} == set(AGGREGATIONS)
    assert type(aggregation("peak", window=5)) is PeakStimulation
    assert aggregation("peak", window=5).window == 5


@pytest.mark.parametrize(("name", "options"), SETTINGS)
def test_gradcheck(name, options, device):
    M = torch.randperm(2 * 3 * 12, generator=torch.Generator().manual_seed(0)).reshape(2, 3, 3, 4).double().div(16)
    module = aggregation(name, **options)
    assert torch.autograd.gradcheck(module, M.to(device).requires_grad_())


@pytest.mark.parametrize(("name", "options"), SETTINGS)
def test_shape_dtype_and_independence_of_images_and_classes(name, options, device):
    M = torch.randperm(2 * 3 * 12, generator=torch.Generator().manual_seed(1)).reshape(2, 3, 3, 4).float().div(8)
    M = M.to(device)
    module = aggregation(name, **options)
    scores = module(M)
    assert (scores.shape, scores.dtype, scores.device) == ((2, 3), torch.float32, M.device)
    for n in range(2):
        for c in range(3):
            assert torch.equal(module(M[n : n + 1, c : c + 1])[0, 0], scores[n, c])
    flipped = module(M.contiguous(memory_format=torch.channels_last))
    assert_close(flipped, scores, torch.float32, "scores of channels-last maps")


@pytest.mark.parametrize(("name", "options"), SETTINGS)
def test_a_constant_map_scores_its_constant(name, options, device):
    module = aggregation(name, **options)
    alpha = options.get("alpha", 0.7) if name == "wildcat" else None
    factor = 1 if not alpha else (1 + alpha) / 2
    for value in (-3.0, 0.0, 40.0):
        M = torch.full((1, 1, 4, 5), value, dtype=torch.float64, device=device)
        assert module(M).item() == pytest.approx(factor * value, rel=1e-12, abs=1e-12)


# ---- by hand


def test_average(device):
    M = one(1, 2, 3, 6, device=device)
    assert aggregation("average")(M).item() == 3
    assert grad(aggregation("average"), M) == [0.25] * 4


def test_max_and_its_ties(device):
    M = one(1, 5, 2, 5, device=device)
    assert aggregation("max")(M).item() == 5
    assert grad(aggregation("max"), M) == [0, 1, 0, 0]  # the first maximum alone


def test_log_sum_exp(device):
    # (1/2) log((e^0 + e^(2 log 3)) / 2) = (1/2) log((1 + 9) / 2)
    M = torch.tensor([0.0, math.log(3)], dtype=torch.float64, device=device).reshape(1, 1, 1, 2)
    module = aggregation("lse", q=2)
    assert module(M).item() == pytest.approx(math.log(5) / 2, rel=1e-14)
    assert grad(module, M) == pytest.approx([0.1, 0.9], rel=1e-14)  # softmax of q M
    assert aggregation("lse").q == 10


def test_log_sum_exp_does_not_overflow(device):
    M = torch.full((1, 1, 3, 3), 200.0, device=device)
    assert aggregation("lse")(M).item() == pytest.approx(200, rel=1e-6)
    assert aggregation("lse")(-M).item() == pytest.approx(-200, rel=1e-6)


def test_wildcat_counts(device):
    M = one(4, -1, 3, 0, 2, -5, device=device)
    module = aggregation("wildcat", highest=3, lowest=2, alpha=0.5)
    # top 4 3 2: 3; lowest -5 -1: -3; (3 - 1.5) / 2
    assert module(M).item() == 0.75
    # 1/2 * 1/3 at each of the highest, 1/2 * 1/2 * 1/2 at each of the lowest
    assert grad(module, M) == pytest.approx([1 / 6, 1 / 8, 1 / 6, 0, 1 / 6, 1 / 8])


def test_wildcat_without_the_lowest_is_not_divided(device):
    assert aggregation("wildcat", highest=2, lowest=2, alpha=0)(one(4, -1, 3, 0, device=device)).item() == 3.5


@pytest.mark.parametrize(
    ("share", "positions", "count"),
    [(0.2, 20, 4), (0.2, 4, 1), (0.2, 2, 1), (0.3, 12, 4), (1.0, 6, 6), (0.01, 6, 1), (1, 6, 1), (9, 6, 6)],
)
def test_wildcat_shares_are_rounded_and_at_least_one(share, positions, count, device):
    M = torch.arange(positions, 0, -1, dtype=torch.float64, device=device).reshape(1, 1, 2, -1)
    got = aggregation("wildcat", highest=share, alpha=0)(M).item()
    assert got == M.flatten()[:count].mean().item()


def test_wildcat_ties_go_by_first_index(device):
    M = one(1, 1, 1, 0, 0, 0, device=device)
    module = aggregation("wildcat", highest=2, lowest=2, alpha=1)
    assert grad(module, M) == [0.25, 0.25, 0, 0.25, 0.25, 0]
    assert grad(module, torch.zeros_like(M)) == [0.5, 0.5, 0, 0, 0, 0]  # both ends take the first two


@pytest.mark.parametrize("name", ["average", "max", "lse", "wildcat", "peak"])
def test_a_non_finite_map_is_noticed(name, device):
    M = torch.zeros(1, 2, 4, 4, device=device)
    M[0, 1, 2, 2] = float("nan")
    scores = aggregation(name)(M)[0].tolist()
    assert scores[0] == 0
    assert math.isnan(scores[1])


# ---- what is refused


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("median", {}, "unknown aggregation 'median'.*wildcat"),
        ("lse", {"q": 0}, "q must be > 0"),
        ("lse", {"q": float("nan")}, "q must be > 0"),
        ("wildcat", {"highest": 0}, "highest"),
        ("wildcat", {"lowest": 0.0}, "lowest"),
        ("wildcat", {"lowest": 1.5}, "lowest"),
        ("wildcat", {"highest": -2}, "highest"),
        ("peak", {"window": 4}, "window"),
    ],
)
def test_bad_options(name, options, message):
    refused(lambda: aggregation(name, **options), match=message, error=ValueError)
