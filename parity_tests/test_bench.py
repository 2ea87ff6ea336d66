"""`prm bench`: its competitors give the oracle's answers, it runs end to end, and what is wrong has no speed."""

import importlib.util
import json
import sys

import numpy as np
import pytest
import torch
from torch import nn

from prm import InputError
from prm.accelerated import PeakBackprop, SegmentationSettings, peak_backprop
from prm.accelerated.networks import smallnet
from prm.accelerated.networks.resnet50 import ResNet50
from prm.accelerated.retrieval import Proposals, choice, choose, fit
from prm.eval.bench import STAGES, clock, competitors, inputs, report, retrieval, walk
from prm.eval.bench import peaks as bench_peaks
from prm.eval.bench.__main__ import MEASURES
from prm.eval.cli import bench as bench_cli
from prm.parity_tests import command
from prm.parity_tests.convert import to_reference
from prm.reference import network as oracle
from prm.reference import peak_stimulation as eq_peaks
from prm.reference import retrieval as eq

needs_zennit = pytest.mark.skipif(importlib.util.find_spec("zennit") is None, reason="the extra bench is not installed")


def plain_network():
    return smallnet(3, widths=(6, 8, 8), pools=2, depth=1)


def residual_network():
    """ResNet's own blocks, but few: strides, additions with a convolution beside."""
    net = ResNet50(3)
    net.layer1, net.layer2, net.layer3, net.layer4 = net.layer1[:1], net.layer2[:1], nn.Identity(), nn.Identity()
    net.fc = nn.Conv2d(512, 3, 1)
    return net


def trained(net):
    """Batch norms as training leaves them, with gains of either sign, in evaluation mode."""
    generator = torch.Generator().manual_seed(1)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low in ((module.weight, -0.3), (module.bias, -0.5), (module.running_mean, -0.5)):
                tensor.data.uniform_(low, 1, generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
    return net.eval()


NETWORKS = {"plain": plain_network, "residual": residual_network}


@pytest.fixture(params=NETWORKS)
def net(request):
    torch.manual_seed(3)
    return trained(NETWORKS[request.param]()).double()


def image_and_peaks(net, upsample=1, seed=0):
    image = inputs.picture(40, 56, seed).double()
    with torch.no_grad():
        maps = net(image)
    shape = [*maps.shape[:2], *(upsample * side for side in maps.shape[2:])]
    return image, inputs.random_peaks(shape, 4, seed=seed)


def oracle_prms(net, image, peaks, **options):
    plain = to_reference(net)
    values = oracle.forward(plain, image[0].numpy())
    return np.array([oracle.walk(plain, values, tuple(peak[1:]), **options).prm for peak in peaks.tolist()])


# ---- the competitors are right


@pytest.mark.parametrize("upsample", [1, 3])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
def test_autograd_is_the_oracle(net, layout, upsample):
    image, peaks = image_and_peaks(net, upsample)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    run = competitors.autograd_walk(net, upsample, layout).prepare(image)
    with torch.no_grad():
        torch.testing.assert_close(run.maps, net(image), rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(
        run.prms(peaks).prms.numpy(), oracle_prms(net, image, peaks, upsample=upsample), rtol=0, atol=1e-12
    )
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_autograd_is_ours_in_float32(net):
    net = net.float()
    image, peaks = image_and_peaks(net.double())
    net, image = net.float(), image.float()
    ours = PeakBackprop(net).prepare(image).prms(peaks).prms
    theirs = competitors.autograd_walk(net).prepare(image).prms(peaks).prms
    assert float((ours - theirs).abs().sum(dim=(1, 2)).max()) <= walk.EXACT


def test_folded(net):
    image, _ = image_and_peaks(net)
    folded = competitors.folded(net)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    with torch.no_grad():
        torch.testing.assert_close(folded(image), net(image), rtol=1e-10, atol=1e-10)


def test_autograd_refuses_what_it_does_not_know():
    with pytest.raises(InputError, match="knows no"):
        competitors.autograd_walk(nn.Sequential(nn.Conv2d(3, 2, 1), nn.Sigmoid()))


@needs_zennit
def test_zennit_is_the_signed_walk_where_nothing_is_added():
    torch.manual_seed(3)
    net = trained(plain_network()).double()
    image, peaks = image_and_peaks(net)
    assert not competitors.adds(net) and competitors.adds(residual_network())
    found = competitors.zennit_walk(net).prepare(image).prms(peaks).prms
    difference = np.abs(found.numpy() - oracle_prms(net, image, peaks, signed=True)).sum(axis=(1, 2))
    assert difference.max() <= walk.OTHER_Z


def test_without_zennit(monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "zennit"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "zennit", None)
    with pytest.raises(InputError, match=r'pip install .*"\.\[bench\]"'):
        competitors.zennit_walk(plain_network())
    assert command.error("bench", "walk", "--competitor", "zennit").startswith("the competitor zennit needs")


def test_dense_retrieval_is_the_oracle():
    H, W, K = 21, 34, 70
    walked, settings = inputs.random_walk(4, H, W), SegmentationSettings()
    masks = torch.nn.functional.avg_pool2d(torch.rand(K, H, W), 7, 1, 3) > 0.5
    masks[3] = True
    proposals = Proposals.from_masks(masks)
    dense = competitors.DenseRetrieval(proposals, (H, W), settings)
    found = dense.scores(walked, settings)
    Q = [eq.background(walked.maps[c].numpy(), (H, W), 0.95) for c in walked.peaks[:, 0].tolist()]
    truth = [[eq.score(R.numpy(), S.numpy(), q, 0.8, 2 / (H * W)) for S in masks] for R, q in zip(walked.prms, Q)]
    np.testing.assert_allclose(found.numpy(), truth, rtol=0, atol=1e-6)
    theirs, ours = dense.choose(walked, found, settings), choose(walked, fit(walked, proposals, settings), settings)
    assert not dense.allowed[3] and torch.equal(theirs.peaks, ours.peaks)
    assert torch.equal(theirs.proposals, ours.proposals) and theirs.suppressed == ours.suppressed
    torch.testing.assert_close(theirs.scores.double(), ours.scores, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ["smooth", "noise"])
def test_pooled_peaks_are_the_oracles(kind):
    maps = torch.randn(2, 3, 11, 14, dtype=torch.float64)
    if kind == "smooth":
        maps = torch.nn.functional.interpolate(maps, (33, 42), mode="bicubic")
    maps.requires_grad_()
    scores, peaks = competitors.pooled_peaks(maps)
    truth = eq_peaks.forward(maps.detach().numpy())
    np.testing.assert_array_equal(peaks.numpy(), truth.peaks)
    np.testing.assert_allclose(scores.detach().numpy(), truth.scores, rtol=1e-12)
    scores.sum().backward()
    np.testing.assert_allclose(maps.grad.numpy(), eq_peaks.backward(np.ones((2, 3)), truth), rtol=1e-12)


# ---- what is wrong has no speed


def numbers_of(row):
    """The names of all figures in a row's variants."""
    return {key for one in row["variants"] for key in one} - {"name", "peaks", "passed", "difference", "tolerance"}


def walk_row(**options):
    arguments = {"network": "smallnet", "size": (48, 64), "peaks": 3, "rounds": 2} | options
    return walk.measure_walk(**arguments) | {"malloc": "default"}


def test_a_right_walk_has_a_speed():
    row = walk_row(competitors=("autograd", "autograd-channels-last"), competitor_peaks=2)
    assert [(one["name"], one["peaks"], one["passed"]) for one in row["variants"]] == [
        ("ours", 3, True), ("autograd", 2, True), ("autograd-channels-last", 2, True),
    ]  # fmt: skip
    ours, theirs, _ = row["variants"]
    expected = np.median(np.divide(theirs["per_peak"]["rounds"], ours["per_peak"]["rounds"]))
    assert theirs["ratio"]["median"] == pytest.approx(expected) and len(theirs["ratio"]["rounds"]) == 2
    assert theirs["per_peak"]["min"] <= theirs["per_peak"]["median"] <= theirs["per_peak"]["max"]


def test_a_wrong_walk_has_none(monkeypatch):
    right = peak_backprop.PreparedWalk.prms

    def wrong(self, peaks):
        found = right(self, peaks)
        return type(found)(found.prms.flip(1), *(getattr(found, key) for key in list(vars(found))[1:]))

    monkeypatch.setattr(peak_backprop.PreparedWalk, "prms", wrong)
    row = walk_row(competitors=("autograd",))
    assert [one["passed"] for one in row["variants"]] == [False, False] and not numbers_of(row)
    text = printed(report.walk_tables([row])[0])
    assert text.count(report.WRONG) == 2 and not report.growth([row])


def test_a_walk_that_is_not_the_oracles_has_none():
    row = walk.withheld(walk_row(competitors=("autograd",)))
    assert not numbers_of(row) and printed(*report.walk_tables([row])).count(report.WRONG) == 3


def test_wrong_retrieval_and_wrong_peaks_have_none(monkeypatch):
    score, pooled = choice.score, bench_peaks.pooled_peaks
    monkeypatch.setattr(choice, "score", lambda sums, alpha, beta: score(sums, alpha, 2 * beta))
    monkeypatch.setattr(bench_peaks, "pooled_peaks", lambda maps: (lambda s, p: (s, p[1:]))(*pooled(maps)))
    for row, table, variants in (
        (retrieval.measure_retrieval(12, 3, (60, 80), rounds=1), report.retrieval_table, 3),
        (bench_peaks.measure_peaks((2, 3, 14, 14), rounds=1), report.peaks_table, 2),
    ):
        assert not row["passed"] and not numbers_of(row)
        assert printed(table([row | {"malloc": "default"}])).count(report.WRONG) == variants


def printed(*tables):
    from rich.console import Console

    console = Console(width=400, record=True, file=open("/dev/null", "w"))
    for table in tables:
        console.print(table)
    return console.export_text()


def test_rounds_run_every_variant_in_turn():
    order = []
    variants = {name: lambda name=name: order.append(name) or {"stage": float(len(order))} for name in "abc"}
    found = clock.interleave(variants, 3)
    assert "".join(order) == "abcbcacab" and [r["stage"] for r in found["a"]] == [1, 6, 8]
    assert clock.ratios([4, 9, 2], [2, 3, 2]) == {"median": 2, "min": 1, "max": 3, "rounds": [2, 3, 1]}


# ---- the commands


@pytest.fixture
def here(monkeypatch):
    """Measures in this process: what a new one would give, without its start of seconds."""

    def measure(kind, arguments, malloc, threads):
        torch.set_num_threads(threads)
        return json.loads(json.dumps(MEASURES[kind](**json.loads(json.dumps(arguments))))) | {"malloc": malloc}

    before = torch.get_num_threads()
    monkeypatch.setattr(bench_cli, "measure", measure)
    yield
    torch.set_num_threads(before)


def bench_command(*arguments, tmp_path):
    """Figures of a run of `prm bench` with one thread, and what it printed."""
    file = tmp_path / "figures.json"
    printed = command.done("bench", *arguments, "--threads", 1, "--json", file)
    page = json.loads(file.read_text())
    assert {"machine", "rows", "command", "threads", "torch"} <= set(page) and page["threads"] == 1
    assert {"cpu", "cores", "memory_gb", "python", "numpy", "malloc", "date", "onednn"} <= set(page["machine"])
    assert page["machine"]["cpu"] in printed and "WRONG" not in printed
    return page["rows"], printed


def test_walk_command(here, tmp_path):
    rows, out = bench_command(
        "walk", "--network", "smallnet", "--size", 32, "--size", "40x48", "--peaks", 4, "--competitor", "autograd",
        "--rounds", 2, "--where", "centre", "--plot", tmp_path / "walk.png", tmp_path=tmp_path,
    )  # fmt: skip
    assert [row["size"] for row in rows] == [[32, 32], [40, 48]]
    assert all(one["passed"] and len(one["per_peak"]["rounds"]) == 2 for row in rows for one in row["variants"])
    assert all(row["highest_mb"] > 0 and row["memory_further_peak_mb"] is not None for row in rows)
    assert "L1 to the oracle" in out and "a peak at 40x48 takes" in out
    assert (tmp_path / "walk.png").read_bytes().startswith(b"\x89PNG")


def test_retrieval_command(tmp_path):
    rows, out = bench_command(
        "retrieval", "--proposals", 12, "--peaks", 3, "--size", "60x80", "--rounds", 2, "--malloc", "tuned", "--plot",
        tmp_path / "retrieval.png", tmp_path=tmp_path,
    )  # fmt: skip
    assert [row["malloc"] for row in rows] == ["tuned"] and rows[0]["runs_per_mask"] > 1 and rows[0]["passed"]
    assert [one["name"] for one in rows[0]["variants"]] == ["ours", "dense", "dense + making"] and "12" in out
    assert (tmp_path / "retrieval.png").read_bytes().startswith(b"\x89PNG")


def test_peaks_command(here, tmp_path):
    rows, _ = bench_command("peaks", "--size", "2x3x14x14", "--kind", "noise", "--rounds", 2, tmp_path=tmp_path)
    assert rows[0]["passed"] and {"forward", "forward and backward"} <= set(rows[0]["variants"][1])


def test_segment_command(here, tmp_path):
    rows, out = bench_command(
        "segment", "--network", "smallnet", "--size", 48, "--peaks", 3, "--limit", 12, "--rounds", 1, "--competitor",
        tmp_path=tmp_path,
    )  # fmt: skip
    assert rows[0]["passed"] and [one["name"] for one in rows[0]["variants"]] == ["ours", "published"]
    assert set(rows[0]["seconds"]) == set(STAGES) and rows[0]["peak_memory_mb"] > 0 and "published" in out


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("walk", "--size", "448x"), "--size 448x"),
        (("walk", "--size", "20"), "at least 32"),
        (("walk", "--competitor", "nobody"), "--competitor nobody: known are autograd"),
        (("walk", "--network", "nothing"), "--network nothing: known are smallnet"),
        (("walk", "--where", "left"), "--where left: known are random"),
        (("peaks", "--size", "3x4"), "4 whole numbers"),
        (("peaks", "--kind", "rough"), "--kind rough"),
        (("peaks", "--malloc", "mine"), "--malloc mine: known are default"),
        (("retrieval", "--image", "missing.png", "--threads", "1"), "missing.png"),
        (("retrieval", "--json", "/"), "/: a folder"),
    ],
)
def test_bad_input(arguments, message):
    assert message in command.error("bench", *arguments)
