"""Eq. 6 and suppression on run-length encoded masks: equal to the oracle on dense ones, and to cases worked by hand."""

import os
import subprocess
import sys
from contextlib import ExitStack, contextmanager

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prm import InputError
from prm.accelerated import retrieval as fast
from prm.accelerated.retrieval import Proposals, loops, runs, scores
from prm.accelerated.retrieval import masks as run_masks
from prm.parity_tests.tolerances import assert_close, assert_equal
from prm.reference import retrieval as oracle

SIDES = st.integers(1, 12)
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # the kernels for GPUs answer on the CPU, slowly


@st.composite
def mask_stacks(draw, min_count=0, max_count=5, shape=None):
    """(K, H, W) bool: from empty to full masks, one-pixel-wide pictures among them."""
    height, width = shape or (draw(SIDES), draw(SIDES))
    count = draw(st.integers(min_count, max_count))
    rng = np.random.default_rng(draw(st.integers(0, 2**31)))
    share = rng.choice([0, 0.1, 0.5, 0.9, 1], (count, 1, 1))
    return rng.random((count, height, width)) < share


def encoded(masks, device):
    return Proposals.from_masks(torch.from_numpy(masks).to(device))


OPERATORS = runs.run_sums, runs.run_contours, runs.run_resize, runs.run_intersections


@contextmanager
def torch_code():
    """The operators' torch code, on a CPU as well."""
    with ExitStack() as stack:
        for operator in OPERATORS:
            stack.enter_context(operator.set_kernel_enabled("cpu", False))
        yield


@pytest.fixture
def three_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def exact_prm(rng, shape):
    """A map of multiples of 1/1024 with sum 1: every sum over it is exact."""
    counts = np.bincount(rng.integers(0, shape[0] * shape[1], 1024), minlength=shape[0] * shape[1])
    return counts.reshape(shape) / 1024


# ---- masks as runs


@given(mask_stacks())
def test_encoding_and_areas(device, masks):
    runs = encoded(masks, device)
    assert len(runs) == len(masks)
    assert_equal(runs.masks(), masks, "masks")
    assert_equal(runs.areas(), masks.sum((1, 2)), "areas")
    backwards = list(range(len(masks)))[::-1]
    assert_equal(runs.masks(backwards), masks[::-1], "selected masks")
    twice = Proposals.concatenate([runs, runs.select(backwards)])
    assert_equal(twice.masks(), np.concatenate([masks, masks[::-1]]), "concatenated masks")


def test_answers_of_many_more_runs_than_the_masks(device):
    masks = np.zeros((2, 60, 60), bool)
    masks[0, ::6, ::6], masks[1, 0, ::2] = True, True
    contours = np.array([oracle.contour(mask, 3) for mask in masks])
    assert_equal(encoded(masks, device).contours(3).masks(), contours, "contours")
    enlarged = np.array([oracle.resize_nearest(mask, (300, 60)) for mask in masks])
    assert_equal(encoded(masks, device).resized(300, 60).masks(), enlarged, "resized masks")


@given(st.data(), SIDES, SIDES)
def test_ious(device, data, height, width):
    some = data.draw(mask_stacks(shape=(height, width)))
    others = data.draw(mask_stacks(shape=(height, width)))
    expected = np.array([[oracle.overlap(a, b) for b in others] for a in some]).reshape(len(some), len(others))
    assert_close(encoded(some, device).ious(encoded(others, device)), expected, torch.float64, "IoU")


def everything(masks, others, maps, width, shape):
    """All that is computed from runs: starts, ends, offsets of contours and resized masks; intersections; sums."""
    resized, contours = masks.resized(*shape), masks.contours(width)
    made = [part for whole in (contours, resized) for part in (whole.starts, whole.ends, whole.offsets)]
    return [*made, masks.ious(), masks.ious(others), run_sums(maps, masks)]


def in_pieces(masks, rng):
    """The same masks, some of their runs cut in two that touch."""
    cuts = [(int(s), int(rng.integers(s, e)), int(e)) for s, e in zip(masks.starts, masks.ends)]
    parts = [[(s, c), (c, e)] if s < c else [(s, e)] for s, c, e in cuts]
    counts = [sum(map(len, parts[a:b])) for a, b in zip(masks.offsets, masks.offsets[1:])]
    starts, ends = torch.tensor([run for part in parts for run in part], dtype=torch.int64).reshape(-1, 2).T
    return Proposals(masks.height, masks.width, starts, ends, torch.tensor([0, *np.cumsum(counts)], dtype=torch.int64))


@given(st.data(), SIDES, SIDES, SIDES, SIDES, st.sampled_from([1, 3, 5, 99]), st.integers(0, 10))
def test_loops_and_torch_code_agree(data, height, width, new_height, new_width, square, count):
    some, others = (data.draw(mask_stacks(shape=(height, width))) for _ in range(2))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**31)))
    maps = torch.from_numpy(rng.random((count, height * width)))
    for masks in (encoded(some, "cpu"), in_pieces(encoded(some, "cpu"), rng)):
        arguments = masks, encoded(others, "cpu"), maps, square, (new_height, new_width)
        found = everything(*arguments)
        with torch_code():
            expected = everything(*arguments)
        for mine, theirs in zip(found[:-1], expected[:-1]):
            assert_equal(mine, theirs, "runs and overlaps")
        assert_close(found[-1], expected[-1].numpy(), torch.float64, "sums")


@pytest.mark.parametrize("code", [ExitStack, torch_code])
def test_chunks_and_threads_change_nothing(device, monkeypatch, three_threads, code):
    rng = np.random.default_rng(0)
    masks = encoded(rng.random((64, 35, 43)) < 0.5, device)
    maps = torch.rand(20, 35 * 43, device=device, dtype=torch.float64)
    with code():
        whole = everything(masks, masks.select([5, 0]), maps, 3, (40, 31))
        torch.set_num_threads(1)
        several = ((run_masks, "CHUNK", 3000), (runs, "CHUNK", 3000), (runs, "_MAPS", 3), (scores, "CHUNK", 3000))
        for module, name, value in several:
            monkeypatch.setattr(module, name, value)
        for part, expected in zip(everything(masks, masks.select([5, 0]), maps, 3, (40, 31)), whole):
            assert_equal(part, expected, "in chunks")


def test_kernels_compile_where_nothing_can_be_kept():
    space = {}
    exec("def successor(x):\n    return x + 1\n", space)  # no file, so no folder beside it
    with pytest.raises(RuntimeError, match="cannot cache"):
        loops.njit(cache=True)(space["successor"])
    assert loops.compiled(space["successor"])(1) == 2


def test_no_proposals(device):
    none = Proposals.empty(4, 6, device)
    one = encoded(np.ones((1, 4, 6), bool), device)
    assert none.masks().shape == (0, 4, 6) and len(none.contours()) == len(none.resized(8, 3)) == 0
    assert none.ious().shape == (0, 0) and one.ious(none).shape == (1, 0) and none.ious(one).shape == (0, 1)
    prepared = fast.prepare(none, (4, 6))
    terms = fast.terms(torch.rand(2, 4, 6, device=device), prepared, torch.zeros(1, 4, 6, device=device), [0, 0])
    assert terms.shape == (2, 0, 3)
    assert fast.best(fast.score(terms, 1, 1), prepared.allowed).tolist() == [-1, -1]
    empty = torch.zeros(0, device=device)
    kept, merged = fast.nms(none, empty, empty.long(), empty.reshape(0, 2), torch.zeros(0, 4, 6, device=device))
    assert kept.shape == (0,) and merged.shape == (0, 4, 6)


@pytest.mark.parametrize(
    ("starts", "ends", "offsets"),
    [
        ([0], [0], [0, 1]),  # an empty run
        ([5], [13], [0, 1]),  # past the picture
        ([-1], [2], [0, 1]),
        ([4, 0], [6, 2], [0, 2]),  # out of order
        ([0, 1], [3, 4], [0, 2]),  # overlapping
        ([0], [1], [0, 2]),  # runs that are not there
        ([0], [1], [1, 1]),
        ([0, 1], [1], [0, 1]),
    ],
)
def test_impossible_runs_are_refused(starts, ends, offsets):
    with pytest.raises(InputError):
        Proposals(3, 4, *(torch.tensor(values, dtype=torch.int64) for values in (starts, ends, offsets)))


def test_bad_arguments_are_refused():
    one = Proposals.from_masks(torch.ones(1, 3, 4, dtype=torch.bool))
    with pytest.raises(InputError, match="bool"):
        Proposals.from_masks(torch.ones(1, 3, 4))
    with pytest.raises(InputError, match="out of range"):
        one.select([1])
    with pytest.raises(InputError, match="odd"):
        one.contours(4)
    with pytest.raises(InputError, match="compared"):
        one.ious(Proposals.empty(4, 3))
    with pytest.raises(InputError, match="PRMs must be"):
        fast.terms(torch.rand(1, 4, 3), fast.prepare(one, (3, 4)), torch.zeros(1, 3, 4), [0])
    with pytest.raises(InputError, match="not finite"):
        fast.terms(torch.full((1, 3, 4), torch.nan), fast.prepare(one, (3, 4)), torch.zeros(1, 3, 4), [0])
    with pytest.raises(InputError, match="not finite"):
        fast.background(torch.full((1, 3, 4), torch.inf), [0], (3, 4), 1.0)


# ---- sums over masks


def run_sums(maps, runs):
    return torch.ops.prm.run_sums(maps, runs.starts, runs.ends, runs.offsets)


@pytest.mark.skipif(INTERPRETED, reason="kernels for GPUs do not check it: the host would wait for the device")
def test_runs_outside_of_the_map_are_refused():
    with pytest.raises(InputError, match="do not hold"):
        run_sums(torch.rand(1, 11), Proposals.from_masks(torch.ones(1, 3, 4, dtype=torch.bool)))


@given(mask_stacks(), st.sampled_from([torch.float32, torch.float64]), st.integers(0, 4))
def test_run_sums(device, masks, dtype, count):
    rng = np.random.default_rng(0)
    maps = rng.random((count, masks[0].size if len(masks) else 6)).astype(np.float32)
    expected = maps.astype(np.float64) @ masks.reshape(len(masks), -1).T if len(masks) else np.zeros((count, 0))
    sums = run_sums(torch.from_numpy(maps).to(device, dtype), encoded(masks, device))
    # The sums are float64 whatever the maps are.
    assert_close(sums, expected, torch.float64, "sums over runs")


def test_equal_masks_have_equal_sums(device):
    # Rounding must not decide between equal proposals: the first one is to win.
    rng = np.random.default_rng(1)
    masks = (rng.random((40, 30, 30)) < 0.5)[[0, *range(1, 39), 0]]
    sums = run_sums(torch.rand(5, 900, device=device), encoded(masks, device))
    assert_equal(sums[:, 0], sums[:, -1], "first and last mask")


def test_a_sum_depends_on_its_map_and_mask_alone(device):
    rng = np.random.default_rng(3)
    masks, maps = encoded(rng.random((7, 30, 30)) < 0.5, device), torch.rand(19, 900, device=device)
    alone = [run_sums(one[None], masks.select([k])) for one in maps for k in range(7)]
    assert_equal(run_sums(maps, masks), torch.cat(alone).view(19, 7), "sums")


@pytest.mark.parametrize("code", [ExitStack, torch_code])
def test_operators_are_proper_ones(device, code):
    masks = np.random.default_rng(2).random((3, 4, 5)) < 0.5
    masks[1] = False
    one = encoded(masks, device)
    given = one.starts, one.ends, one.offsets
    with code():
        for maps in (torch.rand(2, 20, device=device), torch.rand(0, 20, device=device)):
            torch.library.opcheck(torch.ops.prm.run_sums.default, (maps, *given))
        torch.library.opcheck(torch.ops.prm.run_contours.default, (*given, 4, 5, 1))
        torch.library.opcheck(torch.ops.prm.run_resize.default, (*given, 4, 5, 3, 7))
        torch.library.opcheck(torch.ops.prm.run_intersections.default, (*given, *given, 20))


MEMORY = """
import resource, torch
from prm.accelerated import retrieval

def peak(P, K, H, W):
    rows = torch.arange(57)[:, None]
    top, left = torch.randint(0, H - 57, (K,)), torch.randint(0, W - 60, (K,))
    starts = ((top + rows) * W + left + (rows % 7)).T.reshape(-1)
    masks = retrieval.Proposals(H, W, starts, starts + 50, torch.arange(K + 1) * 57)
    prms, Q = torch.full((P, H, W), 1 / (H * W)), torch.ones(3, H, W, dtype=torch.bool)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    ready = retrieval.prepare(masks, (H, W))
    terms = retrieval.terms(prms, ready, Q, torch.arange(P) % 3)
    retrieval.best(retrieval.score(terms, 1.0, 1.0), ready.allowed)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - before / 1024 - P * K * 24 / 2**20

peak(2, 3, 80, 80)
print(peak(300, 5000, 375, 500))
"""


def test_memory_of_thousands_of_proposals():
    environment = {**os.environ, "TRITON_INTERPRET": "0"}  # interpreted kernels would take hours
    run = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stderr
    assert float(run.stdout) < 100, f"{run.stdout} MB"  # beside the PRMs and the answer


# ---- Eq. 6


@given(
    hnp.arrays(np.int8, st.tuples(st.just(3), st.integers(1, 6), st.integers(1, 6)), elements=st.integers(-9, 9)),
    SIDES,
    SIDES,
    st.sampled_from([0.5, 0.95, 1.3]),
)
def test_background(device, maps, height, width, bias):
    classes = [2, 0, 2]
    M = torch.from_numpy(maps.astype(np.float32)).to(device)
    Q = fast.background(M, classes, (height, width), bias)
    for c, mine in zip(classes, Q.cpu().numpy()):
        # Where rounding decides about "<", the two need not agree.
        lower, upper = (oracle.background(maps[c], (height, width), bias * f) for f in (1 - 1e-9, 1 + 1e-9))
        sure = lower == upper
        assert_equal(mine[sure], lower[sure], "background")


@given(st.data(), SIDES, SIDES, st.sampled_from([1, 3, 5]))
def test_terms_score_and_best(device, data, height, width, contour_width):
    masks = data.draw(mask_stacks(min_count=1, shape=(height, width)))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**31)))
    classes, Q = [1, 0, 1], rng.random((2, height, width)) < 0.5
    R = np.stack([exact_prm(rng, (height, width)) for _ in classes])
    prepared = fast.prepare(encoded(masks, device), (height, width), contour_width)
    terms = fast.terms(
        torch.from_numpy(R).float().to(device), prepared, torch.from_numpy(Q).to(device), torch.tensor(classes)
    )
    expected = [[oracle.terms(r, mask, Q[c], contour_width) for mask in masks] for r, c in zip(R, classes)]
    assert_equal(terms, np.array(expected), "terms")  # exact: multiples of 1/1024
    # alpha and beta are powers of two, so that the oracle's sums and ties are exact as well.
    score = fast.score(terms, alpha=0.5, beta=2**-7)
    for k, (r, c) in enumerate(zip(R, classes)):
        assert score[k].tolist() == [oracle.score(r, mask, Q[c], 0.5, 2**-7, contour_width) for mask in masks]
    best = fast.best(score, prepared.allowed).tolist()
    for k, (r, c) in enumerate(zip(R, classes)):
        found = oracle.best_proposal(r, masks, Q[c], 0.5, 2**-7, contour_width)
        assert best[k] == (-1 if found is None else found[0])


def test_score_by_hand(device):
    # S is the first column of 3; with width 3 its contour is columns 0 and 1.
    R = torch.tensor([[[0.25, 0.125, 0.0], [0.25, 0.125, 0.25]]], device=device)
    S = np.array([[[1, 0, 0], [1, 0, 0]], [[1, 1, 1], [1, 1, 1]]], bool)
    Q = torch.tensor([[[1, 0, 1], [0, 0, 1]]], dtype=torch.bool, device=device)
    prepared = fast.prepare(encoded(S, device), (2, 3), width=3)
    assert prepared.allowed.tolist() == [True, False]  # the second covers more than 0.85 of the picture
    terms = fast.terms(R, prepared, Q, [0])
    assert terms.tolist() == [[[0.5, 0.75, 1.0], [1.0, 0.0, 3.0]]]
    score = fast.score(terms, alpha=0.5, beta=0.125)
    assert score.tolist() == [[0.875, 0.125]]  # .25 + .75 - .125 and .5 + 0 - .375
    assert fast.best(score, prepared.allowed).tolist() == [0]


def test_best_is_the_first_maximum_that_is_allowed(device):
    score = torch.tensor([[3.0, 2.0, 2.0], [-1.0, -3.0, -2.0]], device=device)
    allowed = torch.tensor([False, True, True], device=device)
    assert fast.best(score, allowed).tolist() == [1, 2]
    assert fast.best(score, torch.zeros_like(allowed)).tolist() == [-1, -1]


def test_area_limits(device):
    # Of 10 pixels: 0, 1, 5, 9; from 0.1 on, below 0.9.
    masks = np.arange(10).reshape(1, 2, 5) < np.array([0, 1, 5, 9]).reshape(4, 1, 1)
    prepared = fast.prepare(encoded(masks, device), (2, 5), min_area=0.1, max_area=0.9)
    assert prepared.allowed.tolist() == [False, True, True, False]


# ---- suppression


def test_nms_by_hand(device):
    # Two pixels of four each: 0 and 1 share one (IoU 1/3), 2 stands apart; 1 scores highest.
    masks = np.array([[[1, 1, 0, 0, 0]], [[0, 1, 1, 0, 0]], [[0, 0, 0, 1, 1]]], bool)
    prms = torch.eye(3, 5, device=device)[:, None]
    scores, labels = torch.tensor([1.0, 2.0, 1.0]), torch.tensor([0, 1, 0])
    peaks = torch.tensor([[0, 0], [0, 1], [0, 3]])
    runs = encoded(masks, device)
    kept, merged = fast.nms(runs, scores, labels, peaks, prms)
    assert kept.tolist() == [1, 2]
    assert merged[:, 0].tolist() == [[0.5, 0.5, 0, 0, 0], [0, 0, 1, 0, 0]]
    assert fast.nms(runs, scores, labels, peaks, prms, per_class=True)[0].tolist() == [1, 0, 2]
    assert fast.nms(runs, scores, labels, peaks, prms, iou=0.34)[0].tolist() == [1, 0, 2]


def test_nms_with_another_choice_by_hand(device):
    # Peak 0 has the first mask; the first choice of peak 1 lies inside it, its second does not. IoU 1/3, share 1.
    masks = np.array([[[1, 1, 1, 0, 0]], [[0, 1, 0, 0, 0]], [[0, 0, 0, 1, 1]]], bool)
    prms = torch.eye(2, 5, device=device)[[0, 1, 1], None]
    scores, labels, peaks = torch.tensor([3.0, 2.0, 1.0]), torch.zeros(3).long(), torch.tensor([[0, 0], [0, 1], [0, 1]])
    arguments = encoded(masks, device), scores, labels, peaks, prms
    assert fast.nms(*arguments, iou=0.5)[0].tolist() == [0, 1, 2]
    assert fast.nms(*arguments, iou=0.5, again=True)[0].tolist() == [0, 1]
    kept, merged = fast.nms(*arguments, iou=0.5, nested=1.0, again=True)
    assert (kept.tolist(), merged[:, 0, :2].tolist()) == ([0, 2], [[1, 0], [0, 1]])
    everywhere = encoded(np.ones((3, 1, 5), bool), device), *arguments[1:]
    kept, merged = fast.nms(*everywhere, again=True)
    assert (kept.tolist(), merged[:, 0, :2].tolist()) == ([0], [[0.5, 0.5]])


def test_a_lost_map_goes_to_what_dropped_the_first_choice(device):
    # Peaks 0 and 1 stand apart; peak 2 would have the mask of peak 0, then that of peak 1.
    masks = np.array([[[1, 1, 0, 0]], [[0, 0, 1, 1]], [[1, 1, 0, 0]], [[0, 0, 1, 1]]], bool)
    prms = torch.eye(3, 4, device=device)[[0, 1, 2, 2], None]
    peaks = torch.tensor([[0, 0], [0, 1], [0, 2], [0, 2]])
    scores = torch.tensor([4.0, 3.0, 2.0, 1.0])
    kept, merged = fast.nms(encoded(masks, device), scores, torch.zeros(4).long(), peaks, prms, again=True)
    assert (kept.tolist(), merged[:, 0, :3].tolist()) == ([0, 1], [[0.5, 0, 0.5], [0, 1, 0]])


def test_nms_threshold_is_inclusive(device):
    masks = np.array([[[1, 1, 1, 1, 0]], [[1, 1, 0, 0, 0]]], bool)  # IoU 1/2
    arguments = torch.tensor([2.0, 1.0]), torch.zeros(2).long(), torch.zeros(2, 2), torch.ones(2, 1, 5, device=device)
    assert len(fast.nms(encoded(masks, device), *arguments, iou=0.5)[0]) == 1
    assert len(fast.nms(encoded(masks, device), *arguments, iou=0.5000001)[0]) == 2
