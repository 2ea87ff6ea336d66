"""The kernels of the walk back, in every configuration and precision: as the oracle's Eqs. 4-5 and torch's code."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import strategies as st

from prm.accelerated import PeakBackprop
from prm.accelerated.peak_backprop import operators as rules
from prm.parity_tests import conformance, operators
from prm.parity_tests.kernel_lane import assert_row, by_torch, launched, launching
from prm.parity_tests.kernel_lane import hold_in_some_configuration as hold
from prm.parity_tests.tolerances import WALK, assert_close, assert_equal
from prm.settings import PRECISIONS

pytestmark = pytest.mark.usefixtures("where_kernels_run")
LAYOUTS = ("contiguous", "channels_last", "part")
DRAWN = {"seed": st.integers(0, 2**31), "dtype": st.sampled_from([torch.float32, torch.float32, torch.bfloat16]),
         "layout": st.sampled_from(LAYOUTS)}  # fmt: skip


def laid_out(array, dtype, device, layout):
    """(N, C, h, w) with its channels apart or next to each other, or as a part of larger maps."""
    tensor = torch.from_numpy(np.ascontiguousarray(array)).to(device, dtype)
    if layout == "part":
        wide = tensor.new_full((*tensor.shape[:2], *(2 * n + 3 for n in tensor.shape[2:])), float("nan"))
        part = wide[:, :, 2 : 2 + 2 * tensor.shape[2] : 2, 1 : 1 + tensor.shape[3]]
        return part.copy_(tensor)
    formats = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}
    return tensor.contiguous(memory_format=formats[layout])


def numbers(array):
    return torch.from_numpy(np.asarray(array, np.int64))


ROWS = {
    "peak_backprop.conv2d": ({"walk_ratio", "walk_conv2d", "walk_windows"}, 4),
    "peak_backprop.avg_pool2d": ({"walk_windows"}, 4),
    "peak_backprop.max_pool2d": ({"walk_max_pool"}, 4),
}


@pytest.mark.parametrize(("name", "dtype"), conformance.plan(["float32", "bfloat16"], list(ROWS)))
def test_rows_of_the_conformance_table(name, dtype, configuration, request):
    kernels, share = ROWS[name]
    assert_row(request, name, dtype, kernels, share if dtype == "float32" else 2 * share)


def test_random_networks(request):
    assert_row(request, conformance.NETWORKS, "float32", {"walk_ratio", "walk_conv2d"}, 8)


# ---- against torch's code: what the table does not ask for, as blocks, precisions and layouts


@st.composite
def layers(draw):
    """(stride, padding, dilation, groups), kernel, channels in and out, and the map below."""
    kernel, stride, dilation = (draw(operators.pairs(1, n)) for n in (3, 3, 2))
    padding, groups = draw(operators.pairs(0, 2)), draw(st.sampled_from([1, 1, 2, 3]))
    into, out = groups * draw(st.integers(1, 3)), groups * draw(st.integers(1, 3))
    least = [max(1, d * (k - 1) + 1 - 2 * p) for k, p, d in zip(kernel, padding, dilation)]
    size = [draw(st.integers(n, max(n, 8))) for n in least]
    return (stride, padding, dilation, groups), kernel, into, out, size


# Several tiles of positions, of channels in and of channels out: in small blocks with two groups and the four phases of
# a stride of 2, and in those that ship.
MANY_BLOCKS = {
    "small": (((2, 2), (1, 0), (1, 1), 2), (3, 2), 2 * 20, 2 * 18, (11, 10)),
    "default": (((1, 1), (0, 1), (1, 2), 1), (1, 2), 70, 66, (8, 9)),
}


class Draws:
    """Arguments of the operators. Eighths: no precision rounds a product of three of them."""

    def __init__(self, seed, dtype, device, layout, whole=False):
        self.rng, self.how, self.whole = np.random.default_rng(seed), (dtype, device, layout), whole

    def maps(self, *shape):
        return laid_out(self.rng.integers(0, 9, shape) / 8, *self.how)

    def windows(self, K, shape):
        """Where K windows of a map begin, and their size; `whole`: all of the map."""
        size = np.array(shape) if self.whole else self.rng.integers(1, np.array(shape) + 1)
        return numbers(self.rng.integers(0, shape - size + 1, (K, 2))), size.tolist()

    def images(self, K):
        return numbers(self.rng.integers(0, 2, K))


def above(size, kernel, stride, padding, dilation):
    axes = zip(size, kernel, stride, padding, dilation)
    return [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in axes]


def assert_walked(layer, draws, precision="ieee"):
    (stride, padding, dilation, groups), kernel, into, out, size = layer
    shape, dtype = above(size, kernel, stride, padding, dilation), draws.how[0]
    U, W, over = draws.maps(2, into, *size), draws.maps(out, into // groups, *kernel), draws.maps(2, out, *shape)
    ratio, wanted_ratio = draws.maps(2, out, *shape), draws.maps(2, out, *shape)
    sliding = [list(stride), list(padding), list(dilation), groups]
    given = (U, W, torch.full((2, out), 0.5, dtype=dtype, device=U.device), over, *sliding)
    with launched("walk_ratio"):
        leaks = torch.ops.prm.walk_ratio(*given, ratio)
    assert_equal(leaks, by_torch(torch.ops.prm.walk_ratio, *given, wanted_ratio), "leaks")
    assert_close(ratio[~leaks], wanted_ratio[~leaks], dtype, "ratio", WALK)

    K = 2 if draws.whole else 3
    (origin, window), (to, below) = draws.windows(K, shape), draws.windows(K, size)
    turned = rules.turn(W, groups)
    given = (draws.maps(K, out, *window), draws.images(K), origin, over, turned, *sliding, to, below)
    with launched("walk_conv2d"):
        found = torch.ops.prm.walk_conv2d(*given, precision)
    assert found.is_contiguous(memory_format=rules.LAYOUT)
    assert_close(found, by_torch(torch.ops.prm.walk_conv2d, *given), dtype, "P(U)", WALK)


def assert_pooled(layer, draws):
    (stride, wider, dilation, groups), kernel, _, out, size = layer
    padding, channels, K = [min(p, k // 2) for p, k in zip(wider, kernel)], out // groups, 2 if draws.whole else 3
    size = [n + 2 * (w - p) + 1 for n, w, p in zip(size, wider, padding)]  # no window lies in the padding altogether
    U = torch.from_numpy(draws.rng.integers(0, 4, (2, channels, *size)) / 1.0)  # many ties
    indices = F.max_pool2d(U, kernel, stride, padding, dilation, return_indices=True)[1].to(draws.how[1])
    (origin, window), (to, below) = draws.windows(K, indices.shape[2:]), draws.windows(K, size)
    given = (draws.maps(K, channels, *window), draws.images(K), origin, indices, size[1],
             *map(list, (kernel, stride, padding, dilation)), to, below)  # fmt: skip
    with launched("walk_max_pool"):
        found = torch.ops.prm.walk_max_pool(*given)
    assert_close(found, by_torch(torch.ops.prm.walk_max_pool, *given), draws.how[0], "P(U)", WALK)


def test_walks_through_a_layer(request, device):
    def case(layer, seed, dtype, layout, precision):
        assert_walked(layer, Draws(seed, dtype, device, layout), precision)
        assert_pooled(layer, Draws(seed, dtype, device, layout))

    hold(request, case, 2, layer=layers(), **DRAWN, precision=st.sampled_from(PRECISIONS))


@pytest.mark.parametrize("configuration", MANY_BLOCKS)
def test_several_blocks_and_programs_on_every_axis(configuration, device):
    with launching.using(configuration):
        draws = Draws(3, torch.float32, device, "channels_last", whole=True)
        assert_walked(MANY_BLOCKS[configuration], draws)
        assert_pooled(MANY_BLOCKS[configuration], draws)


def test_windows_times_maps(request, device):
    def case(maps, add, truth, seed, dtype, layout):
        draws = Draws(seed, dtype, device, layout)
        (K, C), shape, want = draws.rng.integers(1, (6, 13)), draws.rng.integers(1, 14, 2), draws.rng.integers(1, 14, 2)
        shared, (origin, have) = [draws.maps(2, C, *shape) for _ in range(maps)], draws.windows(K, shape)
        if truth and maps:
            shared[-1] = shared[-1] > 0.5
        given = (draws.maps(K, C, *have), draws.images(K), origin, numbers(draws.rng.integers(-8, 9, (K, 2))), shared)
        held = draws.rng.integers(0, 9, (K, C, *want)) / 8
        out, wanted = (laid_out(held, *draws.how) for _ in range(2))
        with launched("walk_windows"):
            torch.ops.prm.walk_windows(*given, out, add)
        by_torch(torch.ops.prm.walk_windows, *given, wanted, add)
        assert_close(out, wanted, dtype, "windows", WALK)

    hold(request, case, maps=st.integers(0, 3), add=st.booleans(), truth=st.booleans(), **DRAWN)


# ---- operators


@pytest.mark.parametrize("layout", LAYOUTS)
def test_operators_are_proper_ones(layout, device):
    rng = np.random.default_rng(0)
    G, shared, out = (laid_out(rng.random((2, 3, 4, 5)), torch.float32, device, layout) for _ in range(3))
    image, origin, one, none = torch.tensor([1, 0]), torch.zeros(2, 2, dtype=torch.int64), [1, 1], [0, 0]
    kernel, floor = torch.ones(3, 3, 1, 1, device=device), torch.zeros(2, 3, device=device)
    sliding = (one, none, one, 1)
    check = torch.library.opcheck
    check(torch.ops.prm.walk_ratio.default, (shared, kernel, floor, None, *sliding, out))
    check(torch.ops.prm.walk_conv2d.default, (G, image, origin, shared, kernel, *sliding, origin, [4, 5], "tf32"))
    check(torch.ops.prm.walk_windows.default, (G, image, origin, origin, [shared], out, True))
    indices = torch.zeros(2, 3, 4, 5, dtype=torch.int64, device=device)
    check(torch.ops.prm.walk_max_pool.default, (G, image, origin, indices, 5, one, one, none, one, origin, [4, 5]))


# ---- what is no kernel's


def test_float64_and_the_choice_of_torch_launch_nothing(device):
    image, origin, sliding = torch.zeros(1, dtype=torch.int64), torch.zeros(1, 2, dtype=torch.int64), ([1, 1], [0, 0])
    for dtype, choice in ((torch.float64, "default"), (torch.float32, "torch")):
        maps = [torch.rand(1, 2, 3, 3, dtype=dtype, device=device) for _ in range(3)]
        with launching.using(choice), launched():
            kernel = torch.ones(2, 2, 1, 1, dtype=dtype, device=device)
            torch.ops.prm.walk_conv2d(maps[0], image, origin, maps[1], kernel, *sliding, [1, 1], 1, origin, [3, 3])
            floor = torch.zeros(1, 2, dtype=dtype, device=device)
            torch.ops.prm.walk_ratio(maps[0], kernel, floor, None, *sliding, [1, 1], 1, maps[1])
            torch.ops.prm.walk_windows(maps[0], image, origin, origin, [maps[1]], maps[2], True)
            indices = torch.zeros(1, 2, 3, 3, dtype=torch.int64, device=device)
            pooling = ([1, 1], [1, 1], [0, 0], [1, 1])
            torch.ops.prm.walk_max_pool(maps[0], image, origin, indices, 3, *pooling, origin, [3, 3])


def test_what_int32_cannot_count_is_left_to_torch():
    from prm.accelerated.kernels.peak_backprop import _by_torch

    large, small = (torch.empty(1, 2, side, side, device="meta") for side in (40_000, 4_000))
    assert not _by_torch(small, small, positions=10**6, extent=10**9)
    assert _by_torch(large, positions=1) and _by_torch(small, large, positions=1) and _by_torch(small, positions=2**31)
    assert _by_torch(torch.empty(1, 300, 3_000, 3_000, device="meta")[:, :, ::2], positions=1)
    assert _by_torch(small, positions=1, extent=2**31)


def test_an_answer_that_int32_cannot_count_is_left_to_torch(monkeypatch, device):
    # 2^16 channels of 2^8 x 2^8: in memory once only, as torch's code is not run either
    image, origin, size = torch.zeros(1, dtype=torch.int64), torch.zeros(1, 2, dtype=torch.int64), [2**8, 2**8]
    for name in ("walked_conv2d", "walked_max_pool"):
        monkeypatch.setattr(rules, name, lambda *arguments: torch.zeros(1))
    G, one = torch.ones(1, 1, 1, 1, device=device), [1, 1]
    kernel, many = torch.ones(2**16, 1, 1, 1, device=device), torch.ones(1, 2**16, 1, 1, device=device)
    with launched():
        torch.ops.prm.walk_conv2d(G, image, origin, G, kernel, one, [0, 0], one, 1, origin, size)
        indices = torch.zeros(1, 2**16, 1, 1, dtype=torch.int64, device=device)
        torch.ops.prm.walk_max_pool(many, image, origin, indices, 1, one, one, [0, 0], one, origin, size)


def test_wrong_arguments_are_named(device):
    image, origin, sliding = torch.zeros(1, dtype=torch.int64), torch.zeros(1, 2, dtype=torch.int64), ([1, 1], [0, 0])
    G, kernel = torch.rand(1, 2, 3, 3, device=device), torch.ones(2, 2, 1, 1, device=device)

    def walk(G, ratio, kernel=kernel):
        torch.ops.prm.walk_conv2d(G, image, origin, ratio, kernel, *sliding, [1, 1], 1, origin, [3, 3])

    with pytest.raises(ValueError, match=r"walk_conv2d: ratio must be float32 \(any, any, any, any\).*bfloat16"):
        walk(G, G.bfloat16())
    with pytest.raises(ValueError, match=r"walk_conv2d: G must be .* \(1, 2, 3, 3\)"):
        walk(G[:, :1], G)
    with pytest.raises(ValueError, match=r"walk_conv2d: G must be .* \(any, any, any, any\).*\(2, 3, 3\)"):
        walk(G[0], G)
    with pytest.raises(ValueError, match=r"walk_windows: image must be int64 \(2\) on .*, not int64 \(1,\)"):
        pair, two = torch.cat([G, G]), torch.cat([origin, origin])
        torch.ops.prm.walk_windows(pair, image, two, two, [], torch.zeros_like(pair), False)
    with pytest.raises(ValueError, match=r"walk_ratio: out must be float32 \(1, 2, 3, 3\)"):
        wide = torch.zeros(1, 2, 5, 5, device=device)
        torch.ops.prm.walk_ratio(G, kernel, torch.zeros(1, 2, device=device), None, *sliding, [1, 1], 1, wide)
    with pytest.raises(ValueError, match="float16: the ratio maps"):
        walk(G.half(), G.half(), kernel.half())
    with pytest.raises(ValueError, match=r"walk_max_pool: indices must be int64"):
        pooling = ([1, 1], [1, 1], [0, 0], [1, 1])
        torch.ops.prm.walk_max_pool(G, image, origin, G.int(), 3, *pooling, origin, [3, 3])


def test_two_runs_have_the_same_bits(device):
    net = torch.nn.Sequential(
        torch.nn.Conv2d(3, 6, 3, padding=1), torch.nn.ReLU(), torch.nn.MaxPool2d(3, 2, 1), torch.nn.Conv2d(6, 4, 1)
    ).to(device)  # fmt: skip
    images, peaks = torch.rand(2, 3, 9, 8, device=device), torch.tensor([[0, 1, 2, 2], [1, 3, 0, 1], [0, 0, 4, 3]])
    walk = PeakBackprop(net.eval())
    assert torch.equal(walk(images, peaks), walk(images, peaks))
