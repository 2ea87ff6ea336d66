"""Rules that users register: what they are handed, what they may answer, and when they come first."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from prm.accelerated import PeakBackprop, fully_convolutional, register_rule
from prm.accelerated.peak_backprop.rules import custom
from prm.parity_tests.architectures import LayerNorm2d, WrittenOutNorm, convnext_paper
from prm.parity_tests.checks import refused
from prm.parity_tests.tolerances import NETWORK, assert_close
from prm.parity_tests.walks import pictures, some_peaks
from prm.parity_tests.zoo import Model, conv, model, randomise, three


@pytest.fixture(autouse=True)
def registry(monkeypatch):
    """Rules that a test registers are gone after it."""
    monkeypatch.setattr(custom, "REGISTERED", {})


class Merge(nn.Module):
    """Adds, in a way that torch.fx cannot trace."""

    def forward(self, a, b):
        if float(a.sum()) == 0.25:
            return b
        return a + b


def merging(device):
    parts = {"a": three(3, 4), "b": three(4), "c": conv(4, 2, 3, 2)}
    plain = model(lambda m, x: (lambda y: m.c(m.b(y) + y))(F.relu(m.a(x))), **parts)
    return plain.to(device), model(lambda m, x: (lambda y: m.c(m.m(m.b(y), y)))(F.relu(m.a(x))), **parts, m=Merge())


def test_a_registered_rule_with_two_inputs(device):
    plain, merged = merging(device)
    images = pictures(11, 13).to(device)
    with pytest.raises(ValueError, match="trace"):
        PeakBackprop(merged)
    seen = []

    @register_rule(Merge)
    def rule(module, P, *U):
        assert isinstance(module, Merge)
        seen.append(tuple(P.shape))
        assert all(u.shape == P.shape for u in U)
        a, b = (u.clamp(min=0) for u in U)
        to_a = P * torch.where(a + b > 0, a / (a + b), 0.5)
        return to_a, P - to_a

    assert callable(rule)  # the function itself comes back
    for max_memory in (1, 2**29):
        runs = [PeakBackprop(m.to(device), max_memory=max_memory).prepare(images) for m in (plain, merged)]
        expected, found = (run.prms(some_peaks(run.maps).to(device)) for run in runs)
        assert_close(found.prms, expected.prms, torch.float64, "PRMs")
        assert_close(found.leaked + 1, expected.leaked + 1, torch.float64, "leaked")
    assert (1, 4, 11, 13) in seen  # whole maps, one row a peak, in passes of one peak and of several
    assert max(shape[0] for shape in seen) > 1


def test_a_registered_rule_survives_fully_convolutional(device):
    class Standardised(WrittenOutNorm):
        def forward(self, x):
            deviation, mean = torch.std_mean(x, 1, keepdim=True, correction=0)
            return (x - mean) / torch.sqrt(deviation**2 + 1e-6)

    paper = randomise(convnext_paper(Standardised).double(), 1).to(device)
    with pytest.raises(NotImplementedError, match="only division"):
        PeakBackprop(fully_convolutional(paper))
    register_rule(Standardised)(lambda module, P, U: P)
    same = randomise(convnext_paper(lambda c: LayerNorm2d(c, eps=1e-6)).double(), 1).to(device)
    images = pictures(33, 37).to(device)
    runs = [PeakBackprop(fully_convolutional(m)).prepare(images) for m in (paper, same)]
    peaks = some_peaks(runs[0].maps).to(device)
    assert_close(runs[0].prms(peaks).prms, runs[1].prms(peaks).prms, torch.float64, "PRMs", NETWORK)


def positive(net):
    """Weights of 1 and no bias: nothing leaks of itself."""
    for name, parameter in net.named_parameters():
        nn.init.constant_(parameter, float(name.endswith("weight")))
    return net.eval()


def test_a_registered_rule_sees_the_tensors_among_the_arguments(device):
    class Resize(nn.Module):
        def forward(self, x, size, weight=None, twice=None):
            return F.interpolate(x, size=size) * weight + twice

    @register_rule(Resize)
    def _(module, P, *U):
        assert [tuple(u.shape[1:]) for u in U] == [(4, 6, 7), (4, 12, 14)]
        return F.avg_pool2d(P, 2) * 2, P / 4

    net = model(
        lambda m, x: (lambda y: m.c(m.r(F.max_pool2d(y, 2), size=y.shape[2:], weight=m.w, twice=y)))(m.a(x)),
        a=conv(3, 4, 1), r=Resize(), c=conv(4, 2, 1), w=nn.Parameter(torch.tensor(2.0)),
    ).to(device)  # fmt: skip
    run = PeakBackprop(net).prepare(pictures(12, 14).to(device))
    assert_close(run.maps, net(pictures(12, 14).to(device)), torch.float64, "maps", NETWORK)
    found = run.prms(some_peaks(run.maps).to(device))
    assert ((found.leaked > 0.24) & (found.leaked <= 1)).all()


def test_what_a_registered_rule_does_not_pass_on_leaks(device):
    # It comes before the built-in rule and holds for subclasses, and a second one replaces the first.
    class Half(nn.ReLU):
        pass

    net = positive(nn.Sequential(conv(3, 4, 1), Half(), conv(4, 2, 1))).double().to(device)
    images = torch.ones(1, 3, 5, 5, dtype=torch.float64, device=device)
    for share in (0.5, 0.25):
        register_rule(nn.ReLU)(lambda module, P, U, share=share: share * P)
        found = PeakBackprop(net).prepare(images).prms(torch.tensor([[0, 1, 2, 2]]))
        assert float(found.leaked[0]) == pytest.approx(1 - share)
        assert float(found.prms.sum()) == pytest.approx(1)
    register_rule(Half)(lambda module, P, U: P)  # the nearest type counts
    assert float(PeakBackprop(net).prepare(images).prms(torch.tensor([[0, 1, 2, 2]])).leaked[0]) < 1e-12


def test_a_registered_rule_comes_before_what_is_merged(device):
    # The batch norm behind a convolution, and the pad before it, are then steps of their own.
    calls = []

    @register_rule(nn.BatchNorm2d, nn.ZeroPad2d)
    def _(module, P, U):
        calls.append(type(module))
        return P if isinstance(module, nn.BatchNorm2d) else P[:, :, 1:-1, 1:-1]

    net = nn.Sequential(nn.ZeroPad2d(1), conv(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), conv(4, 2, 1))
    randomise(net.double(), 0).to(device)
    run = PeakBackprop(net).prepare(pictures(7, 8).to(device))
    assert_close(run.maps, net(pictures(7, 8).to(device)), torch.float64, "maps", NETWORK)
    run.prms(torch.tensor([[0, 0, 3, 3]]))
    assert calls == [nn.BatchNorm2d, nn.ZeroPad2d]


WRONG = {
    "shape": (lambda module, P, U: P[:, :, 1:], r"shape \(1, 4, 5, 5\), not \(1, 4, 4, 5\)"),
    "no tensor": (lambda module, P, U: None, "not NoneType"),
    "two answers": (lambda module, P, U: (P, P), "1 tensors.*not 2"),
    "negative": (lambda module, P, U: -P, "negative"),
    "not a number": (lambda module, P, U: P * float("nan"), "negative or not a number"),
    "growing": (lambda module, P, U: 2 * P, "made mass grow, from 1 to 2"),
    "infinite": (lambda module, P, U: P.masked_fill(P > 0, float("inf")), "made mass grow"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_answer_of_a_registered_rule_is_named(kind, device):
    function, message = WRONG[kind]
    register_rule(nn.Tanh)(function)
    net = positive(nn.Sequential(nn.Sequential(conv(3, 4, 1), nn.Tanh()), conv(4, 2, 1))).to(device)
    run = PeakBackprop(net).prepare(torch.rand(1, 3, 5, 5, device=device))
    refused(lambda: run.prms(torch.tensor([[0, 1, 2, 2]])), match=rf"Tanh at '0\.1'.*{message}", error=ValueError)


@pytest.mark.parametrize(
    ("f", "message"),
    [
        (lambda x: (x, x), "one tensor"),
        (lambda x: x.mean(0, keepdim=True), "a row for each image"),
        (lambda x: x.mul_(2), "overwrites its input"),
    ],
)
def test_modules_that_no_rule_can_stand_for(f, message):
    register_rule(Model)(lambda module, P, U: P)
    walk = PeakBackprop(nn.Sequential(conv(3, 2, 1), Model(lambda m, x: f(x))).eval())
    with pytest.raises(ValueError, match=f"Model at '1'.*{message}"):
        walk.prepare(torch.rand(2, 3, 5, 5))


def test_register_rule_takes_types_of_modules():
    for wrong in (nn.ReLU(), torch.relu, int, lambda module, P, U: P):
        with pytest.raises(TypeError, match=r"types of nn\.Module"):
            register_rule(wrong)
    with pytest.raises(TypeError, match="needs the type"):
        register_rule()
