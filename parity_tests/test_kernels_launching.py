"""How kernels are launched: which configuration, inside compiled graphs, and without ever waiting for the device."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from prm.accelerated import PeakStimulation
from prm.parity_tests.kernel_lane import launched, launching

FORWARD = ("find_peaks", "list_peaks")
WAITS = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select", "_unique2", "repeat_interleave")


# ---- the choice


def test_who_decides(monkeypatch):
    cpu, card = torch.device("cpu"), torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a card")
    record = {"a card": {"walk_conv2d": {"measured": "wide", "lost": "torch"}}}
    monkeypatch.setattr(launching, "_record", lambda: record)
    choice = lambda case, device=card: launching.chosen("walk_conv2d", case, device)  # noqa: E731
    assert (choice("measured"), choice("lost"), choice("another")) == ("wide", "torch", "default")
    assert choice("measured", cpu) == "default"
    assert launching.chosen("walk_conv2d", "another", card, "matrix units") == "matrix units"
    monkeypatch.setenv("PRM_KERNELS", "torch")
    assert choice("measured") == "torch"
    with launching.using("small"):
        assert choice("measured") == "small"
        with launching.using("few", "walk_conv2d"), launching.using("wide", "walk_ratio"):
            assert choice("measured") == "few"
    assert choice("measured") == "torch"


def test_a_choice_that_nothing_has_is_named(monkeypatch):
    monkeypatch.setenv("PRM_KERNELS", "fastest")
    with pytest.raises(ValueError, match="run_sums has no configuration 'fastest'; known are default, small, torch"):
        launching.chosen("run_sums", "any", torch.device("cpu"))


def test_every_configuration_has_the_same_parameters():
    for kernel, named in launching.CONFIGURATIONS.items():
        parameters = {name: set(values) for name, values in named.items()}
        assert all(found == parameters["default"] for found in parameters.values()), kernel


# ---- graphs


def windows(device):
    """Arguments of the walk's operators for two peaks, the windows' numbers on the device."""
    image, origin = torch.tensor([0, 1], device=device), torch.tensor([[0, 1], [1, 0]], device=device)
    shared = torch.rand(2, 3, 6, 6, device=device) + 0.5
    return torch.rand(2, 3, 4, 4, device=device), image, origin, shared


def walk(values, image, origin, shared, kernel, floor):
    """Every operator of the walk, one after the other."""
    sliding = ([1, 1], [1, 1], [1, 1])
    ratio, out = torch.empty_like(shared), torch.zeros_like(values)
    leaks = torch.ops.prm.walk_ratio(shared, kernel, floor, shared, *sliding, 1, ratio)
    G = torch.ops.prm.walk_conv2d(values, image, origin, ratio, kernel, *sliding, 1, origin, [4, 4], "ieee")
    torch.ops.prm.walk_windows(G, image, origin, origin - origin, [shared], out, True)
    indices = torch.arange(36, device=values.device).reshape(6, 6).expand(2, 3, 6, 6)
    return torch.ops.prm.walk_max_pool(out, image, origin, indices, 6, [1, 1], *sliding[:1], [0, 0], [1, 1], origin,
                                       [4, 4]), leaks  # fmt: skip


def retrieve(maps, starts, ends, offsets, allowed):
    return torch.ops.prm.best_proposal(torch.ops.prm.run_sums(maps, starts, ends, offsets), allowed)


def walk_arguments(device):
    kernel = torch.rand(3, 3, 3, 3, device=device).contiguous(memory_format=torch.channels_last)
    return *windows(device), kernel, torch.zeros(2, 3, device=device)


def retrieval_arguments(device):
    runs = [[0, 5, 9], [3, 7, 20], [0, 2, 3]]
    return torch.rand(4, 20, device=device), *(torch.tensor(r, device=device) for r in (*runs, [True, True]))


WALK = ("walk_ratio", "walk_conv2d", "walk_windows", "walk_max_pool")
RETRIEVAL = ("run_sums", "best_proposal")


@pytest.mark.usefixtures("where_kernels_run")
@pytest.mark.parametrize("upsample", [1, 2])
def test_training_compiles_without_a_break(upsample, device):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1), PeakStimulation(upsample=upsample))
    net, images = net.to(device), torch.randn(2, 3, 9, 9, device=device)
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    gradients = []
    for model in (net, compiled):
        net.zero_grad()
        with launched(*FORWARD, "scatter_shares" if upsample == 1 else "spread_shares"):
            model(images).sum().backward()
        gradients.append(net[0].weight.grad.clone())
    assert torch.equal(*gradients)
    assert gradients[0].any()


@pytest.mark.usefixtures("where_kernels_run")
@pytest.mark.parametrize(
    ("function", "arguments", "kernels"), [(walk, walk_arguments, WALK), (retrieve, retrieval_arguments, RETRIEVAL)]
)
def test_operators_compile_without_a_break(function, arguments, kernels, device):
    arguments = arguments(device)
    eager = function(*arguments)
    with launched(*kernels):
        compiled = torch.compile(function, fullgraph=True, backend="aot_eager")(*arguments)
    torch.testing.assert_close(compiled, eager, rtol=0, atol=0)


class NothingWaits(TorchDispatchMode):
    """Raises where the host would wait for the answer of an operator. On a card CUDA itself is asked to, too."""

    def __enter__(self):
        if torch.cuda.is_available():
            torch.cuda.set_sync_debug_mode("error")
        return super().__enter__()

    def __exit__(self, *error):
        if torch.cuda.is_available():
            torch.cuda.set_sync_debug_mode("default")
        return super().__exit__(*error)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        if name in WAITS:
            raise AssertionError(f"{name} makes the host wait")
        return function(*args, **(kwargs or {}))


@pytest.mark.usefixtures("where_kernels_run")
def test_launchers_do_not_wait_for_the_device(device):
    from prm.accelerated.kernels import peak_backprop, peak_stimulation, retrieval

    M = torch.rand(2, 3, 7, 8, device=device)
    values, image, origin, shared, kernel, floor = walk_arguments(device)
    indices, sliding = torch.zeros(2, 3, 6, 6, dtype=torch.int64, device=device), ([1, 1], [1, 1], [1, 1])
    maps, starts, ends, offsets, allowed = retrieval_arguments(device)
    with NothingWaits():
        for upsample in (1, 2):
            scores, peaks, count = peak_stimulation.pool(M, 3, "median", 0.0, upsample)
            peak_stimulation.pool_backward(scores, peaks, count, 7, 8, upsample)
        peak_backprop.ratio(shared, kernel, floor, shared, *sliding, 1, torch.empty_like(shared))
        peak_backprop.conv2d(values, image, origin, shared, kernel, *sliding, 1, origin, [4, 4])
        peak_backprop.on_windows(values, image, origin, origin, [shared], torch.zeros_like(values), True)
        peak_backprop.max_pool(values, image, origin, indices, 6, [1, 1], [1, 1], [0, 0], [1, 1], origin, [4, 4])
        sums = retrieval.launch_run_sums(maps, starts, ends, offsets)
        retrieval.launch_best_proposal(sums, allowed)
    with pytest.raises(AssertionError, match="_local_scalar_dense"), NothingWaits():
        M.sum().item()


def pool(M):
    scores, peaks, count = torch.ops.prm.peak_stimulation(M, 3, "median", 0.0, 1)
    enlarged = torch.ops.prm.peak_stimulation(M, 3, "median", 0.0, 2)
    return scores, count, *(
        torch.ops.prm.peak_stimulation_backward(s, rows, n, *M.shape[2:], upsample)
        for upsample, (s, rows, n) in ((1, (scores, peaks, count)), (2, enlarged))
    )


@pytest.mark.parametrize(
    ("function", "arguments"),
    [(pool, lambda device: (torch.rand(2, 3, 7, 8, device=device),)), (walk, walk_arguments),
     (retrieve, retrieval_arguments)],
)  # fmt: skip
def test_cuda_graphs(function, arguments, device):
    if device.type != "cuda":
        pytest.skip("needs a card")
    arguments = arguments(device)
    eager = function(*arguments)  # compiles, too
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = function(*arguments)
    graph.replay()
    torch.cuda.synchronize()
    torch.testing.assert_close(captured, eager, rtol=0, atol=0)
