"""Networks whose code looks at its maps' sizes: followed at one size at a time, and walked like the oracle walks."""

import copy
import math
from collections import OrderedDict

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from prm.accelerated import PeakBackprop, fully_convolutional
from prm.accelerated.peak_backprop.tracing import AtEachSize
from prm.accelerated.peak_backprop.walk import PLANS
from prm.parity_tests.checks import assert_same_tensors, refused
from prm.parity_tests.tolerances import NETWORK, assert_close
from prm.parity_tests.walks import assert_same_walks, oracle_walks, pictures, some_peaks
from prm.parity_tests.zoo import conv, randomise


class SameConv(nn.Conv2d):
    """TensorFlow's padding: as many zeros as the size asks for, more of them behind than before."""

    def forward(self, x):
        rows, columns = (
            max((math.ceil(n / s) - 1) * s + k - n, 0) for n, s, k in zip(x.shape[-2:], self.stride, self.kernel_size)
        )
        if rows or columns:
            x = F.pad(x, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))
        return F.conv2d(x, self.weight, self.bias, self.stride)


class Classifier(nn.Module):
    """A stride that pads by the size, an assertion, groups of channels by sizes, and answers under names."""

    def __init__(self):
        super().__init__()
        self.stem, self.body = SameConv(3, 8, 3, stride=2), SameConv(8, 8, 3, stride=2)
        self.norm, self.fc, self.factor = nn.BatchNorm2d(8), nn.Linear(8, 5), nn.Parameter(torch.tensor(0.5))

    def forward(self, pixels, labels=None, scores_too=True):
        N, channels, *size = pixels.shape
        if channels != 3 or len(size) != 2:
            raise ValueError("three channels")
        x = F.relu(self.norm(self.stem(pixels)))
        N, C, H, W = x.size()
        assert H > 1 and x.size(dim=3) == W
        x = x.view(N, 2, C // 2, H, W).transpose(1, 2).reshape(N, C, H, W)  # the channels shuffled
        x = F.relu(self.body(x)) * self.factor
        logits = self.fc(F.avg_pool2d(x, x.shape[2:]).flatten(1))
        return OrderedDict(logits=logits, loss=None) if scores_too else logits


def classifier(seed=0):
    return randomise(Classifier().double(), seed)


@pytest.mark.parametrize("size", [(33, 37), (36, 33)])
def test_it_walks_like_the_oracle_at_every_size(size, device):
    made, images = fully_convolutional(classifier()).to(device), pictures(*size).to(device)
    assert isinstance(made, AtEachSize)
    walk = PeakBackprop(made)
    run = walk.prepare(images)
    peaks = some_peaks(run.maps)
    maps, expected = oracle_walks(made.at(size), images, peaks)
    assert_close(run.maps, maps, torch.float64, "maps", NETWORK)
    assert_same_walks(run.prms(peaks.to(device)), expected, torch.float64)
    # one layer behind the mean: the mean response is the logit
    assert_close(made(images).mean((2, 3)), classifier().to(device)(images)["logits"], torch.float64, "logits", NETWORK)


def test_a_run_keeps_its_plan_when_others_come(device):
    walk = PeakBackprop(fully_convolutional(classifier()).to(device))
    images = {side: pictures(side, 40).to(device) for side in (32, 33, 34, 35)}
    runs = {side: walk.prepare(given) for side, given in images.items()}
    assert len(walk._plans) == PLANS
    for side, run in runs.items():
        peaks = some_peaks(run.maps).to(device)
        again = PeakBackprop(fully_convolutional(classifier()).to(device)).prepare(images[side])
        assert torch.equal(run.prms(peaks).prms, again.prms(peaks).prms)


def test_its_parameters_have_the_models_names_and_learn():
    start = classifier()
    made = fully_convolutional(start, num_classes=7)
    assert set(made.state_dict()) == set(start.state_dict())
    assert not any(t.is_meta for t in made.state_dict().values())
    assert made(pictures(33, 37)).shape == (2, 7, 9, 10)
    made.load_state_dict(copy.deepcopy(made.state_dict()))
    before = copy.deepcopy(made)
    made.train()(pictures(33, 37)).sum().backward()
    assert all(p.grad is not None for p in made.parameters())
    with torch.no_grad():
        made.fc.weight.add_(1)
    assert not torch.equal(made.eval()(pictures(33, 37)), before.eval()(pictures(33, 37)))
    assert_same_tensors(start.state_dict(), classifier().state_dict())


def test_a_network_that_gives_maps_needs_no_conversion(device):
    net = randomise(nn.Sequential(SameConv(3, 4, 3, stride=2), nn.ReLU(), conv(4, 2, 1)).double(), 1).to(device)
    run = PeakBackprop(net).prepare(images := pictures(21, 26).to(device))
    assert_close(run.maps, net(images), torch.float64, "maps", NETWORK)
    assert run.maps.shape == (2, 2, 11, 13)


class LooksAtValues(nn.Module):
    def forward(self, x):
        if x.mean() > 0:
            return x
        return -x


def test_what_depends_on_values_is_refused_before_any_work():
    net = nn.Sequential(conv(3, 4, 3), LooksAtValues()).eval()
    refused(lambda: PeakBackprop(net), "if x.mean() > 0", error=ValueError)
    head = nn.Sequential(conv(3, 4, 3), LooksAtValues(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    refused(lambda: fully_convolutional(head), "torch.fx cannot trace Sequential", error=ValueError)


def test_what_no_size_makes_pass_is_refused_before_any_work():
    class Product(Classifier):
        def forward(self, pixels):
            x = self.stem(pixels)
            return self.body(x * self.stem(pixels + 0.5))

    refused(lambda: PeakBackprop(randomise(Product().double(), 0)), "mul", "full maps", error=NotImplementedError)
