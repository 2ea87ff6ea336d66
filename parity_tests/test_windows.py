"""Windows, and what truncation drops at their ends: never other PRMs, or never further off than each one's bound."""

from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prm.accelerated import PeakBackprop, Segmenter
from prm.accelerated.checkpoint import SHIPPED, load_checkpoint
from prm.accelerated.networks import resnet18
from prm.accelerated.peak_backprop.plan import Plan
from prm.accelerated.peak_backprop.prepared import Prepared, Workspace
from prm.accelerated.peak_backprop.visits import Visits
from prm.parity_tests.convert import to_reference
from prm.parity_tests.strategies import cnns
from prm.parity_tests.tolerances import NETWORK, assert_close
from prm.reference.network import forward, walk

F64 = torch.float64
EPSILONS = (1e-4, 1e-3, 1e-2, 1e-1)
# Sums in float64 and float32: the bound is of what is dropped, not of what is rounded.
ROUNDING = {F64: 1e-12, torch.float32: 3e-6}


def peaks_all_over(shape, upsample=1, seed=0):
    """Peaks (9, 4) on maps of `shape` (N, C, h, w): corners, middles of the edges, the centre; images take turns."""
    N, C, h, w = shape
    rng = np.random.default_rng(seed)
    rows, columns = ([0, n * upsample // 2, n * upsample - 1] for n in (h, w))
    places = [(i, j) for i in rows for j in columns]
    return torch.tensor([(k % N, int(rng.integers(C)), *place) for k, place in enumerate(places)])


# ---- exact


@settings(max_examples=25)
@given(case=cnns(), side=st.integers(14, 26), other=st.integers(14, 26))
def test_windows_are_whole_maps_are_the_oracle(device, case, side, other):
    case = replace(case, size=(side, other), images=2)
    module, images = case.module().to(device), case.pictures().to(device)
    run = PeakBackprop(module, case.upsample, case.signed).prepare(images)
    peaks = peaks_all_over(run.maps.shape, case.upsample, case.seed)
    found = run.prms(peaks.to(device))
    whole = PeakBackprop(module, case.upsample, case.signed, windows=False).prepare(images).prms(peaks.to(device))
    assert_close(found.prms, whole.prms, F64, "windows against whole maps", NETWORK)
    assert_close(found.leaked, whole.leaked, F64, "leaked", NETWORK)
    network = to_reference(module.cpu())
    activations = [forward(network, image) for image in images.cpu().numpy()]
    for k, (n, *peak) in enumerate(peaks.tolist()):
        truth = walk(network, activations[n], tuple(peak), case.upsample, case.signed)
        assert_close(found.prms[k], truth.prm, F64, f"PRM {k}", NETWORK)
        assert abs(float(found.leaked[k]) - truth.leaked) < 1e-9


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, F64])
def test_the_argmax_of_a_wide_map_is_found_in_every_dtype(device, dtype):
    image = torch.randn(1, 3, 5, 700, generator=torch.Generator().manual_seed(0)).to(device, dtype)
    run = PeakBackprop(torch.nn.Sequential(torch.nn.MaxPool2d(3, 2, 1)).eval()).prepare(image)
    peaks = torch.tensor([(0, c, i, j) for c in range(3) for i in range(3) for j in (0, 31, 200, 349)])
    found = run.prms(peaks.to(device)).prms
    for prm, peak in zip(found, peaks.tolist()):
        (place,) = prm.nonzero().tolist()
        assert image[0, peak[1], place[0], place[1]] == run.maps[tuple(peak)]


def test_pooling_right_behind_a_sum(device):
    """What is pooled is positive, but not all of the sum is: where neither summand is positive nothing may be."""
    a, b, h = (torch.nn.Conv2d(c, o, 1, bias=False).double() for c, o in ((1, 1), (1, 1), (1, 2)))
    for layer, weight in ((a, 1.0), (b, 2.0), (h, 1.0)):
        torch.nn.init.constant_(layer.weight, weight)

    class Summed(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.h, self.pool = a, b, h, torch.nn.MaxPool2d(2)

        def forward(self, x):
            return self.h(self.pool(self.a(x) + self.b(x)))

    image = torch.tensor([[[[-3.0, 1.0, 2.0, -9.0], [0.5, -4.0, -1e30, 3.0]]]], dtype=F64, device=device)
    module = Summed().eval().to(device)
    peaks = torch.tensor([(0, 0, 0, 0), (0, 1, 0, 1)])
    for dtype in (F64, torch.float32):
        found = PeakBackprop(module.to(dtype)).prepare(image.to(dtype)).prms(peaks.to(device))
        network = to_reference(module.double().cpu())
        activations = forward(network, image[0].cpu().numpy())
        for k, (_, *peak) in enumerate(peaks.tolist()):
            assert_close(found.prms[k], walk(network, activations, tuple(peak)).prm, dtype, f"PRM {k}", NETWORK)
        module.to(device)


def test_inside_and_outside_of_inference_mode(device):
    torch.manual_seed(0)
    walker, image = PeakBackprop(resnet18(3).eval().to(device)), torch.randn(1, 3, 64, 64, device=device)
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
    walker = PeakBackprop(resnet18(4).eval().to(device), max_memory=1 << 20)
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
    peaks = peaks_all_over(module(images).shape, case.upsample, case.seed)
    truncations(module, images, peaks.to(device), case.upsample)


def test_truncation_of_random_networks_drops_something(device):
    torch.manual_seed(0)
    module, images = resnet18(4).eval().to(device), torch.randn(2, 3, 160, 160, device=device)
    peaks = peaks_all_over((2, 4, 5, 5)).to(device)
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
