"""Windows, and what truncation drops at their ends: never other PRMs, or never further off than each one's bound."""

from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from prm.accelerated import PeakBackprop, Segmenter
from prm.accelerated.checkpoint import SHIPPED, load_checkpoint
from prm.accelerated.peak_backprop.plan import Plan
from prm.accelerated.peak_backprop.prepared import Prepared, Workspace
from prm.accelerated.peak_backprop.visits import Visits
from prm.parity_tests.strategies import cnns
from prm.parity_tests.tolerances import NETWORK, assert_close
from prm.parity_tests.walks import assert_walks_agree, pictures
from prm.parity_tests.zoo import Model, SmallCnn, conv

F64 = torch.float64
DEEP = ["downsampling", "residual", "strided", "residual"]
EPSILONS = (1e-4, 1e-3, 1e-2, 1e-1)
# Sums in float64 and float32: the bound is of what is dropped, not of what is rounded.
ROUNDING = {F64: 1e-12, torch.float32: 3e-6}


def peaks_all_over(shape, upsample=1, seed=0):
    """Peaks (9, 4) on maps of `shape` (N, C, h, w): every second one a corner or the centre, the others the middles of
    the edges; images take turns, two peaks each."""
    N, C, h, w = shape
    rng = np.random.default_rng(seed)
    rows, columns = ([0, n * upsample // 2, n * upsample - 1] for n in (h, w))
    places = [(i, j) for i in rows for j in columns]
    return torch.tensor([(k // 2 % N, int(rng.integers(C)), *place) for k, place in enumerate(places)])


# ---- exact


def assert_whole_maps_give(found, module, images, peaks, upsample=1, signed=False):
    whole = PeakBackprop(module, upsample, signed, windows=False).prepare(images).prms(peaks)
    assert_close(found.prms, whole.prms, F64, "windows against whole maps", NETWORK)
    assert_close(found.leaked, whole.leaked, F64, "leaked", NETWORK)


@settings(max_examples=25)
@given(case=cnns(), side=st.integers(14, 26), other=st.integers(14, 26))
def test_windows_are_whole_maps_are_the_oracle(device, case, side, other):
    case = replace(case, size=(side, other), images=2)
    module, images = case.module().to(device), case.pictures().to(device)
    peaks = peaks_all_over(module(images).shape, case.upsample, case.seed)[::2]
    found = assert_walks_agree(module, images, peaks, case.upsample, case.signed)
    assert_whole_maps_give(found, module, images, peaks.to(device), case.upsample, case.signed)


@pytest.mark.parametrize("blocks", ["residual max concat strided dilated", "strided padded max_ceil max_dilated"])
def test_windows_that_are_small_parts_of_a_map(blocks, device):
    module, images = SmallCnn(blocks.split(), 6).double().to(device), pictures(70, 90).to(device)
    peaks = peaks_all_over(module(images).shape).to(device)
    assert_whole_maps_give(PeakBackprop(module).prepare(images).prms(peaks), module, images, peaks)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, F64])
def test_the_argmax_of_a_wide_map_is_found_in_every_dtype(device, dtype):
    image = torch.randn(1, 3, 5, 700, generator=torch.Generator().manual_seed(0)).to(device, dtype)
    run = PeakBackprop(torch.nn.Sequential(torch.nn.MaxPool2d(3, 2, 1)).eval()).prepare(image)
    peaks = torch.tensor([(0, c, i, j) for c in range(3) for i in range(3) for j in (0, 31, 200, 349)])
    found = run.prms(peaks.to(device)).prms
    for prm, peak in zip(found, peaks.tolist()):
        (place,) = prm.nonzero().tolist()
        assert image[0, peak[1], place[0], place[1]] == run.maps[tuple(peak)]


@pytest.mark.parametrize("dtype", [F64, torch.float32])
def test_pooling_right_behind_a_sum(dtype, device):
    """What is pooled is positive, but not all of the sum is: where neither summand is positive nothing may be."""
    a, b, h = (conv(1, c, 1, bias=False) for c in (1, 1, 2))
    for layer, weight in ((a, 1.0), (b, 2.0), (h, 1.0)):
        torch.nn.init.constant_(layer.weight, weight)
    summed = Model(lambda m, x: m.h(F.max_pool2d(m.a(x) + m.b(x), 2)), a=a, b=b, h=h).eval().to(device, dtype)
    image = torch.tensor([[[[-3.0, 1.0, 2.0, -9.0], [0.5, -4.0, -1e30, 3.0]]]], dtype=dtype, device=device)
    assert_walks_agree(summed, image, [(0, 0, 0, 0), (0, 1, 0, 1)])


def test_inside_and_outside_of_inference_mode(device):
    walker, image = PeakBackprop(SmallCnn(DEEP, 0).to(device)), torch.randn(1, 3, 64, 64, device=device)
    peaks = torch.tensor([(0, 1, 1, 1), (0, 2, 0, 0)], device=device)
    outside = walker.prepare(image).prms(peaks).prms
    with torch.inference_mode():
        run = walker.prepare(image.clone())
        assert_close(run.prms(peaks[:1]).prms, outside[:1], torch.float32, "inside", NETWORK)
    assert_close(run.prms(peaks).prms, outside, torch.float32, "prepared inside, walked outside", NETWORK)
    assert_close(walker.prepare(image).prms(peaks).prms, outside, torch.float32, "outside again", NETWORK)


@pytest.mark.parametrize(
    ("rows", "allowed", "kept"),
    [([0.5, 0.125], 0.25, [0.5, 0]), ([0.5, 0.125], 0.5625, [0, 0]), ([0.25, 0.0625, 0.0625], 1.0, [0, 0, 0]),
     ([0.25, 0.125, 0.25], 0.25, [0, 0.125, 0]), ([0.25, 0.125, 0.25], 0.375, [0, 0, 0]), ([0.0, 0.0], 0.1, [0, 0]),
     ([0.125, 0.25, 0.5, 0.0625], 0.0, [0.125, 0.25, 0.5, 0.0625])],
)  # fmt: skip
@pytest.mark.parametrize("count", [1, 2])
def test_where_the_ends_of_a_window_meet_all_is_dropped(rows, allowed, kept, count):
    P = torch.tensor(rows, dtype=F64).reshape(1, 1, -1, 1).expand(count, 1, -1, 1)
    left, dropped = Visits.whole(P.clone(), np.zeros(count, np.int64)).truncated(allowed)
    assert left.on_whole((1, len(rows), 1)).values.flatten(1).tolist() == count * [kept]
    assert dropped.tolist() == count * [sum(rows) - sum(kept)]


@given(case=cnns(), memory=st.sampled_from([1, 3000, 40_000, 1 << 40]))
def test_any_memory_gives_the_same(device, case, memory):
    module, images = case.module().to(device), case.pictures().to(device)
    peaks = torch.from_numpy(case.positions(module(images).shape)).to(device)
    answers = [
        PeakBackprop(module, case.upsample, max_memory=m).prepare(images).prms(peaks) for m in (None, memory)
    ]
    assert_close(answers[1].prms, answers[0].prms, F64, "PRMs", NETWORK)


def test_fewer_peaks_go_together_with_less_memory(device, monkeypatch):
    together = []
    pick = Visits.pick
    monkeypatch.setattr(Visits, "pick", lambda self, which, shape: together.append(which) or pick(self, which, shape))
    walker = PeakBackprop(SmallCnn(DEEP, 0).to(device), max_memory=1 << 15)
    run = walker.prepare(torch.randn(1, 3, 64, 64, device=device))
    run.prms(peaks_all_over(run.maps.shape).to(device))
    assert together and all(part.stop - part.start < 9 for part in together)


# ---- memory and streams


def test_memory_goes_from_pass_to_pass_on_a_cpu_alone():
    workspace = Workspace()

    def place(device):
        """Where a pass's map lies; the pass is forgotten."""
        prepared = Prepared(workspace)
        return prepared.empty((1, 2, 9, 8), torch.empty(1, 2, 9, 8, device=device)).untyped_storage()

    first = place("cpu").data_ptr()
    assert place("cpu").data_ptr() == first
    assert len(workspace._free) == 1
    place("meta")  # as on a GPU: what streams may still read is torch's to give away
    assert not workspace._free


def test_all_walks_of_a_pass_run_on_its_stream(monkeypatch):
    """What another stream asks for waits for it, and is waited for: with streams that only write down what happens."""
    done = []

    class Fake:
        def __init__(self, name):
            self.name = name

        def wait_stream(self, other):
            done.append(f"{self.name} waits for {other.name}")

    class Streams:
        current = Fake("first")

        def current_stream(self, device):
            return self.current

        @contextmanager
        def stream(self, stream):
            before, self.current = self.current, stream
            yield
            self.current = before

    streams, records = Streams(), []
    monkeypatch.setattr(torch, "get_device_module", lambda device: streams)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: records.append((tensor, stream.name)))
    back = Plan.back
    monkeypatch.setattr(Plan, "back", lambda *given: done.append(f"walk on {streams.current.name}") or back(*given))
    run = PeakBackprop(torch.nn.Conv2d(3, 2, 3)).prepare(torch.rand(1, 3, 9, 8))
    peaks = torch.tensor([[0, 1, 2, 3]])
    expected = run.prms(peaks)
    assert done == ["walk on first"] and not records
    streams.current = Fake("second")
    found = run.prms(peaks)
    assert done[1:] == ["first waits for second", "walk on first", "second waits for first"]
    assert [name for _, name in records] == ["first", *4 * ["second"]]
    assert records[0][0].tolist() == peaks.tolist() and records[1][0] is found.prms
    assert torch.equal(found.prms, expected.prms) and streams.current.name == "second"


# ---- truncated


def truncations(module, images, peaks, upsample=1):
    """The exact answer and one for each epsilon, after what must hold for each and between them."""
    exact = PeakBackprop(module, upsample).prepare(images).prms(peaks)
    assert not exact.bound.any()
    slack, found = ROUNDING[exact.prms.dtype], []
    for epsilon in EPSILONS:
        one = PeakBackprop(module, upsample, epsilon=epsilon).prepare(images).prms(peaks)
        error = (one.prms - exact.prms).abs().sum((1, 2)).double()
        assert (error <= one.bound + slack).all(), (error, one.bound)
        # at most epsilon of the mass was dropped, so the rest arrived or leaked
        arrived = 1 - one.leaked
        assert (one.bound * arrived <= 2 * epsilon + slack)[arrived > 1e-6].all()
        assert (one.leaked <= exact.leaked + slack).all()
        found.append(one)
    # A larger epsilon keeps nothing that a smaller one drops.
    for smaller, larger in zip([exact, *found], found):
        assert (larger.bound >= smaller.bound - slack).all()
        assert not ((larger.prms > 0) & (smaller.prms == 0)).any()
    return exact, found


@settings(max_examples=25)
@given(case=cnns(), side=st.integers(14, 40), other=st.integers(14, 40))
def test_no_error_is_above_its_bound(device, case, side, other):
    case = replace(case, size=(side, other), images=2)
    module, images = case.module().to(device), case.pictures().to(device)
    peaks = peaks_all_over(module(images).shape, case.upsample, case.seed)[::2]
    truncations(module, images, peaks.to(device), case.upsample)


def test_truncation_of_random_networks_drops_something(device):
    module, images = SmallCnn([*DEEP, *DEEP], 0).to(device), pictures(80, 80).float().to(device)
    peaks = peaks_all_over(module(images).shape).to(device)
    exact, found = truncations(module, images, peaks)
    assert (found[-1].bound > 1e-3).all()
    assert (found[-1].prms > 0).sum() < 0.9 * (exact.prms > 0).sum()


def nuclei(seed=0, side=144):
    """A picture of bright discs on a dark ground, (side, side, 3) uint8."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:side, :side]
    light = np.full((side, side), 12.0)
    for _ in range(14):
        (i, j), radius = rng.uniform(8, side - 8, 2), rng.uniform(5, 9)
        light = np.maximum(light, 150 / (1 + np.exp(np.hypot(rows - i, columns - j) - radius)))
    return np.repeat((light + rng.normal(0, 4, light.shape)).clip(0, 255).astype(np.uint8)[..., None], 3, axis=2)


def test_truncation_of_a_trained_network(device):
    segmenter = Segmenter.from_checkpoint(load_checkpoint(SHIPPED), str(device), max_peaks=12)
    picture = nuclei()
    peaks = segmenter.find_peaks(segmenter.respond([picture])).peaks
    assert len(peaks) == 12
    images = segmenter.network_input(picture)
    model = load_checkpoint(SHIPPED).model().eval().to(device)
    exact, found = truncations(model, images, peaks, segmenter.settings.upsample)
    assert (found[-1].bound > 1e-2).all()
    assert (found[1].prms > 0).sum() < 0.9 * (exact.prms > 0).sum()
