"""The kernels of retrieval, in every configuration: equal to the oracle, to sums over dense masks, to torch's choice.

They run on a GPU (--device cuda), or, where TRITON_INTERPRET=1, step by step on the CPU.
"""

import numpy as np
import pytest
import torch
from hypothesis import strategies as st

from prm.accelerated import retrieval as fast
from prm.parity_tests import operators
from prm.parity_tests.conformance import plan
from prm.parity_tests.kernel_lane import assert_row, hold_in_some_configuration, launching
from prm.parity_tests.tolerances import assert_equal

pytestmark = pytest.mark.usefixtures("where_kernels_run")
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
LAYOUTS = ("contiguous", "gaps", "transposed", "one map again and again")


SEEDS = st.integers(0, 2**31)
SIDES = st.sampled_from([1, 2, 3, 7, 13, 16, 25, 40])


def mask(rng, shape):
    """Noise from empty to full, a rectangle, or one run that goes on over the ends of rows."""
    if rng.random() < 0.7:
        return operators.masks(rng, shape)
    S = np.zeros(shape, bool)
    first, last = np.sort(rng.integers(0, S.size + 1, 2))
    S.reshape(-1)[first:last] = True
    return S


def mask_stack(rng, count, shape):
    return np.array([mask(rng, shape) for _ in range(count)], bool).reshape(count, *shape)


def encoded(masks, device):
    return fast.Proposals.from_masks(torch.from_numpy(masks).to(device))


def laid_out(values, layout):
    """(P, L) with other strides, among numbers that must not be read."""
    if layout == "transposed":
        return values.T.contiguous().T
    if layout == "one map again and again":
        return values[:1].expand(len(values), -1)
    if layout == "gaps":
        wide = values.new_full((2 * values.shape[0], 3 * values.shape[1] + 1), torch.nan)
        wide[::2, 1::3] = values
        return wide[::2, 1::3]
    return values


def random_maps(rng, count, length, dtype, device, layout="contiguous"):
    """(P, L) of values that bfloat16 can only round."""
    return laid_out(torch.from_numpy(rng.random((count, length))).to(device, dtype), layout)


def run_sums(maps, masks):
    return torch.ops.prm.run_sums(maps, masks.starts, masks.ends, masks.offsets)


def assert_sums(sums, maps, masks):
    """Within 1e-12 of all that a map holds: that much its cumulative sums may be rounded."""
    values = maps.double().cpu().numpy()
    expected = values @ masks.reshape(len(masks), values.shape[1]).T.astype(np.float64)
    assert sums.dtype == torch.float64 and sums.shape == expected.shape
    error = np.abs(sums.cpu().numpy() - expected)
    allowed = 1e-12 * np.abs(values).sum(1, keepdims=True)
    assert (error <= allowed).all(), f"{error.max()} at {np.unravel_index(error.argmax(), error.shape)}"


ROWS = {"retrieval.score": {"run_sums"}, "retrieval.best_proposal": {"run_sums", "best_proposal"}}


@pytest.mark.parametrize(("name", "dtype"), plan(only=list(ROWS)))
def test_rows_of_the_conformance_table(name, dtype, configuration, request):
    assert_row(request, name, dtype, ROWS[name], 3)


# ---- sums over runs


def test_sums_over_masks(request, device):
    def case(seed, count, maps, height, width, dtype, layout):
        rng = np.random.default_rng(seed)
        masks = mask_stack(rng, count, (height, width))
        values = random_maps(rng, maps, height * width, dtype, device, layout)
        assert_sums(run_sums(values, encoded(masks, device)), values, masks)

    hold_in_some_configuration(
        request, case, seed=SEEDS, count=st.sampled_from([1, 2, 5, 9]), maps=st.integers(1, 3), height=SIDES,
        width=SIDES, dtype=st.sampled_from(DTYPES), layout=st.sampled_from(LAYOUTS),
    )  # fmt: skip


def ample(rng, configuration):
    """Masks (K, L) of more than two bands, mask tiles and, in a band, tiles of runs; maps for several units each."""
    size = launching.CONFIGURATIONS["run_sums"][configuration]
    count, length = 2 * size["BLOCK_MASKS"] + 3, 2 * size["BAND"] + size["BLOCK"] + 7
    assert size["BAND"] > 2 * size["BLOCK"]
    most = size["BAND"] // (2 * size["BLOCK_RUNS"])
    long = rng.integers(most // 3, most, (count, 1))  # pixels of a run and of the gap after it
    masks = (np.arange(length) + rng.integers(0, 99, (count, 1))) // long % 2 == 0
    masks[3], masks[-2] = True, False
    return masks[:, None], 3


def test_several_of_everything(device, configuration):
    rng = np.random.default_rng(4)
    masks, count = ample(rng, configuration)
    for dtype in (torch.float32, torch.float64):
        maps = random_maps(rng, count, masks.shape[-1], dtype, device)
        assert_sums(run_sums(maps, encoded(masks, device)), maps, masks)


def test_equal_masks_have_equal_sums_and_so_have_equal_calls(device, configuration):
    rng = np.random.default_rng(5)
    masks, count = ample(rng, configuration)
    places = [0, 1, len(masks) // 2, len(masks) - 1]
    masks[places] = masks[5]
    maps = random_maps(rng, count, masks.shape[-1], torch.float64, device)
    sums = run_sums(maps, encoded(masks, device))
    for place in places:
        assert_equal(sums[:, place], sums[:, 5], "sums over equal masks")
    assert_equal(run_sums(maps, encoded(masks, device)), sums, "sums of a second call")
    alone = run_sums(maps[1:2], encoded(masks[5:6], device))
    assert_equal(alone[0, 0], sums[1, 5], "sum of one map over one mask")


def test_what_lies_outside_of_the_map_counts_nothing(device, configuration):
    length = 2 * launching.CONFIGURATIONS["run_sums"][configuration]["BAND"] + 5
    far = 2**40
    starts = torch.tensor([-far, -5, 40, length - 3, length + 1, -9, length, far], device=device)
    ends = torch.tensor([-far + 9, 3, 60, length + 8, length + 2, length + 9, far, far + 1], device=device)
    offsets = torch.tensor([0, 5, 6, 7, 8], device=device)
    maps = torch.rand(2, length, generator=torch.Generator().manual_seed(0)).to(device)
    masks = np.zeros((4, length), bool)
    masks[0, :3] = masks[0, 40:60] = masks[0, -3:] = masks[1] = True
    assert_sums(torch.ops.prm.run_sums(maps, starts, ends, offsets), maps, masks)


def test_no_maps_no_masks_no_runs_no_pixels(device, configuration):
    some = encoded(np.ones((2, 3, 4), bool), device)
    none, empty = fast.Proposals.empty(3, 4, device), encoded(np.zeros((2, 3, 4), bool), device)
    maps = torch.ones(5, 12, device=device)
    assert run_sums(maps[:0], some).shape == (0, 2)
    assert run_sums(maps, none).shape == (5, 0)
    assert_equal(run_sums(maps, empty), np.zeros((5, 2)), "sums over no pixels")
    assert_equal(run_sums(maps[:, :0], empty), np.zeros((5, 2)), "sums of maps of no pixels")


@pytest.mark.filterwarnings("ignore:invalid value")  # of NumPy, under the interpreter
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_spoils_its_map(device, configuration, value):
    """As in the oracle's sum of R * S, in which every pixel takes part: no mask here meets the pixel."""
    length = 2 * launching.CONFIGURATIONS["run_sums"][configuration]["BAND"]
    masks = np.zeros((3, 1, length), bool)
    masks[0, 0, :5] = masks[1, 0, -5:] = True
    maps = torch.ones(3, length)
    maps[1, length // 2 + 1] = value
    sums = run_sums(maps.to(device), encoded(masks, device))
    assert sums[1].isnan().all()
    assert_equal(sums[[0, 2]], np.array([[5.0, 5.0, 0.0]] * 2), "sums of the other maps")


# ---- best proposal


def test_best_proposals(request, device):
    def case(seed, rows, count, usable, dtype, layout):
        rng = np.random.default_rng(seed)
        # A few of these levels, so that many scores are equal.
        levels = np.array([np.nan, np.inf, -np.inf, 0.75, 0.5, -1.0, 0.0, -0.0])
        kinds = rng.permutation(8)[: rng.integers(1, 9)]
        scores = torch.from_numpy(levels[rng.choice(kinds, (rows, count))]).to(device, dtype)
        scores, allowed = laid_out(scores, layout), torch.from_numpy(rng.random(count) < usable).to(device)
        best = torch.ops.prm.best_proposal(scores, allowed)
        assert best.dtype == torch.int64
        assert_equal(best, fast.first_maximum(scores, allowed), "best proposals")

    hold_in_some_configuration(
        request, case, seed=SEEDS, rows=st.integers(0, 5), count=st.sampled_from([0, 1, 2, 15, 16, 17, 40, 100]),
        usable=st.sampled_from([0.0, 0.05, 0.5, 1.0]), dtype=st.sampled_from(DTYPES), layout=st.sampled_from(LAYOUTS),
    )  # fmt: skip


def test_the_first_of_equals_wins_across_blocks(device, configuration):
    block = launching.CONFIGURATIONS["best_proposal"][configuration]["BLOCK"]
    scores = torch.zeros(4, 3 * block + 5, dtype=torch.float64, device=device)
    allowed = torch.ones(3 * block + 5, dtype=torch.bool, device=device)
    # One lane, two blocks; a later lane of an earlier block; the last element; differences that float32 rounds off.
    scores[0, [3 + block, 3 + 2 * block]] = 1.0
    scores[1, [block + 9, 2 * block + 2]] = 1.0
    scores[2, [0, -1]] = torch.tensor([1.0, 1.0 + 2**-40], dtype=torch.float64, device=device)
    allowed[:2] = False
    assert torch.ops.prm.best_proposal(scores, allowed).tolist() == [block + 3, block + 9, 3 * block + 4, 2]
    allowed[:] = False
    assert torch.ops.prm.best_proposal(scores, allowed).tolist() == [-1] * 4


# ---- how they are called


def test_one_launch_each_and_none_where_torch_is_chosen(device, configuration):
    rng = np.random.default_rng(6)
    masks, maps = encoded(mask_stack(rng, 9, (6, 7)), device), torch.rand(4, 42, device=device)
    scores, allowed = torch.rand(4, 9, device=device), torch.tensor([False] + 8 * [True], device=device)
    before = launching.launches.copy()
    sums = run_sums(maps, masks)
    best = torch.ops.prm.best_proposal(scores, allowed)
    assert launching.launches - before == {"run_sums": 1, "best_proposal": 1}
    with launching.using(launching.TORCH):
        assert torch.allclose(run_sums(maps, masks), sums, rtol=1e-12, atol=1e-12)
        assert_equal(torch.ops.prm.best_proposal(scores, allowed), best, "best proposals")
    assert launching.launches - before == {"run_sums": 1, "best_proposal": 1}


def test_runs_with_gaps_in_memory(device, configuration):
    rng = np.random.default_rng(7)
    dense = mask_stack(rng, 9, (6, 7))
    masks, maps = encoded(dense, device), torch.rand(4, 42, device=device)
    given = [torch.stack([part, -part], 1)[:, 0] for part in (masks.starts, masks.ends, masks.offsets)]
    assert_sums(torch.ops.prm.run_sums(maps, *given), maps, dense)
    scores, allowed = torch.arange(9.0, device=device)[None], torch.arange(9, device=device) < 4
    assert torch.ops.prm.best_proposal(scores, torch.stack([allowed, ~allowed], 1)[:, 0]).tolist() == [3]


def test_bad_arguments_are_named(device):
    maps, places = torch.rand(2, 6, device=device), torch.zeros(1, dtype=torch.int64, device=device)
    offsets = torch.tensor([0, 1], device=device)
    sums, best = torch.ops.prm.run_sums, torch.ops.prm.best_proposal
    for arguments, name in (
        ((maps[0], places, places, offsets), "maps"),
        ((maps.long(), places, places, offsets), "maps"),
        ((maps, places.int(), places, offsets), "starts"),
        ((maps, places, offsets, offsets), "ends"),
        ((maps, places, places, offsets[None]), "offsets"),
        ((maps, places, places, offsets[:0]), "offsets must have at least one entry"),
    ):
        with pytest.raises(ValueError, match=f"run_sums: {name}"):
            sums(*arguments)
    truths = torch.ones(6, dtype=torch.bool, device=device)
    for arguments, name in (
        ((maps[0], truths), "scores"),
        ((maps.long(), truths), "scores"),
        ((maps, truths[:5]), "allowed"),
        ((maps, truths.int()), "allowed"),
    ):
        with pytest.raises(ValueError, match=f"best_proposal: {name}"):
            best(*arguments)


def test_operators_are_proper_ones(device, configuration):
    masks = encoded(mask_stack(np.random.default_rng(8), 3, (4, 5)), device)
    for count in (2, 0):
        maps = torch.rand(count, 20, device=device)
        torch.library.opcheck(torch.ops.prm.run_sums.default, (maps, masks.starts, masks.ends, masks.offsets))
        allowed = torch.tensor([True, False, True], device=device)
        torch.library.opcheck(torch.ops.prm.best_proposal.default, (torch.rand(count, 3, device=device), allowed))
