"""The kernels of the walk back, in every configuration and precision, against the oracle's Eqs. 4-5."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import assume
from hypothesis import strategies as st

from prm.accelerated import PeakBackprop
from prm.accelerated.peak_backprop import operators as rules
from prm.accelerated.peak_backprop.visits import Visits
from prm.accelerated.peak_backprop.windows import reach, windows
from prm.parity_tests import conformance, operators
from prm.parity_tests.kernel_lane import hold_in_some_configuration as hold
from prm.parity_tests.kernel_lane import launched, launching
from prm.parity_tests.strategies import cnns
from prm.parity_tests.tolerances import WALK, as_array, assert_close, assert_equal
from prm.parity_tests.torch_port import TorchPort
from prm.reference import peak_backprop as oracle

pytestmark = pytest.mark.usefixtures("where_kernels_run")
BFLOAT16 = {torch.float32: WALK[torch.bfloat16]}  # float32 maps whose products are rounded
LAYOUTS = ("contiguous", "channels_last", "part")


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


# ---- through convolutions


@st.composite
def geometries(draw, side=8, channels=3):
    """Sizes of a convolution: (stride, padding, dilation), its kernel, groups, channels in and out, the map below."""
    pair = lambda low, high: (draw(st.integers(low, high)), draw(st.integers(low, high)))  # noqa: E731
    kernel, stride, padding, dilation = pair(1, 3), pair(1, 3), pair(0, 2), pair(1, 2)
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    into, out = groups * draw(st.integers(1, channels)), groups * draw(st.integers(1, channels))
    least = [max(1, d * (k - 1) + 1 - 2 * p) for k, p, d in zip(kernel, padding, dilation)]
    size = [draw(st.integers(n, max(n, side))) for n in least]
    return (stride, padding, dilation), kernel, groups, into, out, tuple(size)


# Several tiles of positions, of channels in and of channels out: in small blocks with two groups and the four phases of
# a stride of 2, and in those that ship.
MANY_BLOCKS = {
    "small": (((2, 2), (1, 0), (1, 1)), (3, 2), 2, 2 * 20, 2 * 18, (11, 10)),
    "default": (((1, 1), (0, 1), (1, 2)), (1, 2), 1, 70, 66, (8, 9)),
}


def walked(geometry, seed, dtype, device, layout, precision="ieee", peaks=None):
    """P(U) of some peaks of two images, by the operators and by the oracle, and their leaked mass, alike."""
    (stride, padding, dilation), kernel, groups, into, out, size = geometry
    rng = np.random.default_rng(seed)
    U = np.stack([operators.features(rng, (into, *size), kind) for kind in ("rectified", "few levels")]).clip(min=0)
    W = operators.weights(rng, (out, into // groups, *kernel))
    W_plus = laid_out(W.clip(min=0), dtype, device, "channels_last")
    U_hat = laid_out(U, dtype, device, layout)
    shape = [
        (n + 2 * p - d * (k - 1) - 1) // s + 1 for n, p, d, k, s in zip(size, padding, dilation, kernel, stride)
    ]
    sliding = [list(stride), list(padding), list(dilation), groups]
    ratio = laid_out(np.zeros((2, out, *shape)), dtype, device, layout)
    floor = rules.TINY * U_hat.float().amax((1, 2, 3))[:, None] * W_plus.float().sum((1, 2, 3))
    with launched("walk_ratio"):
        leaks = torch.ops.prm.walk_ratio(U_hat, W_plus, floor.to(dtype), None, *sliding, ratio)
    ratio.masked_fill_(leaks, 0)

    # Windows that visits of any extent lie in, and all that they reach below.
    K = rng.integers(1, 3) if peaks is None else peaks
    image = rng.integers(0, 2, K)
    first = np.stack([rng.integers(0, n, K) for n in shape], axis=1)
    last = np.stack([rng.integers(f + 1, n + 1) for f, n in zip(first.T, shape)], axis=1)
    if peaks is not None:
        first, last = np.zeros_like(first), np.tile(shape, (K, 1))
    origin, window = windows(first, last, shape)
    P = np.zeros((K, out, *shape))
    for k in range(K):
        inside = (slice(None), *(slice(a, b) for a, b in zip(first[k], last[k])))
        P[(k, *inside)] = operators.visits(rng, P[(k, *inside)].shape)
    on_window = np.stack([P[k][:, o[0] : o[0] + window[0], o[1] : o[1] + window[1]] for k, o in enumerate(origin)])
    G = laid_out(on_window, dtype, device, layout)
    visits = Visits(G, first, last, origin, image)
    reached = reach(visits.first, visits.last, stride, padding, dilation, kernel, size)
    to, below = windows(*reached, size)
    turned = rules.turn(W_plus, groups)
    with launched("walk_conv2d"):
        found = torch.ops.prm.walk_conv2d(
            G, *map(numbers, (image, origin)), ratio, turned, *sliding, numbers(to), list(below), precision
        )
    assert found.is_contiguous(memory_format=rules.LAYOUT)
    found = Visits(found, *reached, to, image).on_whole((into, *size)).values * U_hat[numbers(image).to(device)]
    leaked = (visits.on_whole((out, *shape)).values * leaks[numbers(image).to(device)]).sum((1, 2, 3))
    wanted = [
        oracle.conv2d(as_array(p), as_array(u), as_array(W_plus), stride, padding, dilation, groups, return_leak=True)
        for p, u in zip(P, U_hat[numbers(image).to(device)])
    ]
    return found, np.stack([w[0] for w in wanted]), leaked, np.array([w[1] for w in wanted])


def assert_walked(geometry, seed, dtype, device, layout, precision="ieee", peaks=None):
    found, wanted, leaked, wanted_leak = walked(geometry, seed, dtype, device, layout, precision, peaks)
    assert_close(found, wanted, dtype, "P(U)", BFLOAT16 if precision == "bf16" else WALK)
    assert_close(leaked, wanted_leak, dtype, "leaked", WALK)


@pytest.mark.parametrize(
    ("dtype", "precision", "share"),
    [(torch.float32, "ieee", 1), (torch.float32, "tf32", 8), (torch.float32, "bf16", 6), (torch.bfloat16, "ieee", 5)],
)
def test_walk_through_a_convolution(dtype, precision, share, request, device):
    if precision == "tf32" and device.type == "cuda":
        pytest.skip("rounds on a card: see the test below")

    def case(geometry, seed, layout):
        assert_walked(geometry, seed, dtype, device, layout, precision)

    hold(request, case, share, geometry=geometries(), seed=st.integers(0, 2**31), layout=st.sampled_from(LAYOUTS))


@pytest.mark.parametrize("configuration", MANY_BLOCKS)
def test_several_blocks_and_programs_on_every_axis(configuration, device):
    with launching.using(configuration):
        assert_walked(MANY_BLOCKS[configuration], 3, torch.float32, device, "channels_last", peaks=2)


def test_tf32_is_close(device):
    if device.type != "cuda":
        pytest.skip("the interpreter does not round to TF32")
    for seed, geometry in enumerate(MANY_BLOCKS.values()):
        found, wanted, _, _ = walked(geometry, seed, torch.float32, device, "channels_last", "tf32", peaks=3)
        assert_close(found, wanted, torch.float32, "P(U)", {torch.float32: 2**-10})


def test_the_ratio_has_what_is_above_over_Z(request, device):
    def case(geometry, seed, dtype, layout):
        (stride, padding, dilation), kernel, groups, into, out, size = geometry
        rng = np.random.default_rng(seed)
        U = laid_out(operators.features(rng, (2, into, *size), "rectified"), dtype, device, layout)
        W = laid_out(operators.weights(rng, (out, into // groups, *kernel)).clip(min=0), dtype, device, "contiguous")
        Z = np.stack([oracle.convolve(as_array(u), as_array(W), None, stride, padding, dilation, groups) for u in U])
        above = laid_out(operators.features(rng, Z.shape, "rectified"), dtype, device, layout)
        ratio, floor = torch.full_like(above, float("nan")), torch.full((2, out), 0.5, dtype=dtype, device=device)
        sliding = (list(stride), list(padding), list(dilation), groups)
        leaks = torch.ops.prm.walk_ratio(U, W, floor, above, *sliding, ratio)
        assert_equal(leaks, Z <= 0.5, "leaks")
        flows = Z > 0.5
        assert_close(as_array(ratio)[flows], as_array(above)[flows] / Z[flows], dtype, "ratio", WALK)

    dtypes, layouts = st.sampled_from([torch.float32, torch.bfloat16]), st.sampled_from(LAYOUTS)
    hold(request, case, geometry=geometries(), seed=st.integers(0, 2**31), dtype=dtypes, layout=layouts)


# ---- between them


def test_windows_times_maps(request, device):
    def case(seed, maps, add, dtype, layout, truth):
        rng = np.random.default_rng(seed)
        N, K, C = rng.integers(1, 4), rng.integers(1, 6), rng.integers(1, 13)
        (p, q), have, want = rng.integers(1, 14, 2), rng.integers(1, 14, 2), rng.integers(1, 14, 2)
        have = np.minimum(have, (p, q))
        image, offset = rng.integers(0, N, K), rng.integers(-8, 9, (K, 2))
        origin = np.stack([rng.integers(0, n - h + 1, K) for n, h in zip((p, q), have)], axis=1)
        shared = [rng.integers(0, 9, (N, C, p, q)) / 8 for _ in range(maps)]
        values, held = rng.integers(0, 9, (K, C, *have)) / 8, rng.integers(0, 9, (K, C, *want)) / 8
        tensors = [laid_out(m, dtype, device, layout) for m in shared]
        if truth and maps:
            shared[-1] = (shared[-1] > 0.5).astype(float)
            tensors[-1] = tensors[-1] > 0.5
        wanted = held.copy() if add else np.zeros_like(held)
        for k, (i, j) in enumerate(offset):
            product = values[k].copy()
            for m in shared:
                product *= m[image[k], :, origin[k, 0] : origin[k, 0] + have[0], origin[k, 1] : origin[k, 1] + have[1]]
            for y in range(max(0, -i), min(want[0], have[0] - i)):
                for x in range(max(0, -j), min(want[1], have[1] - j)):
                    wanted[k, :, y, x] += product[:, y + i, x + j]
        out = laid_out(held, dtype, device, layout)
        with launched("walk_windows"):
            torch.ops.prm.walk_windows(
                laid_out(values, dtype, device, layout), *map(numbers, (image, origin, offset)), tensors, out, add
            )
        assert_close(out, wanted, dtype, "windows", WALK)

    hold(
        request, case, seed=st.integers(0, 2**31), maps=st.integers(0, 3), add=st.booleans(), truth=st.booleans(),
        dtype=st.sampled_from([torch.float32, torch.bfloat16]), layout=st.sampled_from(LAYOUTS),
    )  # fmt: skip


@st.composite
def poolings(draw):
    kernel = draw(operators.pairs(1, 3))
    stride, dilation = draw(operators.pairs(1, 4)), draw(operators.pairs(1, 2))
    padding = tuple(draw(st.integers(0, k // 2)) for k in kernel)
    least = [max(1, d * (k - 1) + 1 - 2 * p) for k, p, d in zip(kernel, padding, dilation)]
    size = tuple(draw(st.integers(n, max(n, 9))) for n in least)
    inside = [
        max(0, -(-(p - i * s) // d)) * d + i * s - p < n
        for n, k, s, p, d in zip(size, kernel, stride, padding, dilation)
        for i in range((n + 2 * p - d * (k - 1) - 1) // s + 1)
    ]
    assume(all(inside))  # a window that lies in the padding altogether has no maximum
    return kernel, stride, padding, dilation, draw(st.integers(1, 11)), size


def assert_pooled(pooling, seed, dtype, device, layout):
    kernel, stride, padding, dilation, C, size = pooling
    rng = np.random.default_rng(seed)
    U = rng.integers(-2, 3, (2, C, *size)) / 2.0  # many ties
    pooled, indices = torch.nn.functional.max_pool2d(
        torch.from_numpy(U), kernel, stride, padding, dilation, return_indices=True
    )
    shape, K = pooled.shape[2:], 4
    image, (origin, window) = rng.integers(0, 2, K), windows(*_some_windows(rng, shape, K), shape)
    P = rng.integers(0, 9, (K, C, *window)) / 8
    first, last = origin, origin + np.array(window)
    values = laid_out(P, dtype, device, layout)
    reached = reach(first, last, stride, padding, dilation, kernel, size)
    to, below = windows(*reached, size)
    with launched("walk_max_pool"):
        found = torch.ops.prm.walk_max_pool(
            values, *map(numbers, (image, origin)), indices.to(device), size[1],
            *map(list, (kernel, stride, padding, dilation)), numbers(to), list(below),
        )  # fmt: skip
    found = Visits(found, *reached, to, image).on_whole((C, *size)).values
    for k, n in enumerate(image):
        whole = np.zeros((C, *shape))
        whole[:, first[k, 0] : last[k, 0], first[k, 1] : last[k, 1]] = P[k]
        wanted = oracle.max_pool2d(whole, U[n], kernel, stride, padding, dilation)
        assert_close(found[k], wanted, dtype, f"P(U) of peak {k}", WALK)


def _some_windows(rng, shape, K):
    first = np.stack([rng.integers(0, n, K) for n in shape], axis=1)
    return first, np.stack([rng.integers(f + 1, n + 1) for f, n in zip(first.T, shape)], axis=1)


def test_walk_through_max_pooling(request, device):
    def case(pooling, seed, dtype, layout):
        assert_pooled(pooling, seed, dtype, device, layout)

    dtypes, layouts = st.sampled_from([torch.float32, torch.bfloat16]), st.sampled_from(LAYOUTS)
    hold(request, case, pooling=poolings(), seed=st.integers(0, 2**31), dtype=dtypes, layout=layouts)


@pytest.mark.parametrize(("configuration", "channels"), [("small", 11), ("default", 70)])
def test_max_pooling_over_several_blocks_on_every_axis(configuration, channels, device):
    with launching.using(configuration):
        assert_pooled(((3, 3), (2, 2), (1, 1), (1, 1), channels, (9, 8)), 1, torch.float32, device, "channels_last")


# ---- whole networks


def test_random_networks(request, device):
    port = TorchPort(device.type, "float32")

    def decided(network):
        gap = conformance.NEAR["float32"]
        return not conformance.has_near_choices(*conformance.activations_of(network, "float32"), gap)

    def case(network):
        before = launching.launches.copy()
        conformance.compare(network, port, "float32")
        # The classifier at the top is a convolution in all of them.
        assert {"walk_ratio", "walk_conv2d"} <= set(launching.launches - before)

    hold(request, case, 8, network=cnns().filter(decided))


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
