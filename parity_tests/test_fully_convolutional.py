"""Any classifier made fully convolutional: ways to write its head, what is kept of it, and what is refused."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from prm.accelerated import fully_convolutional
from prm.parity_tests.checks import refused
from prm.parity_tests.tolerances import NETWORK, assert_close
from prm.parity_tests.walks import pictures
from prm.parity_tests.zoo import Model, conv, model, three


def pooled(pool, channels=6, joined=None):
    """A body, a pooling and flattening written as code, and a linear layer."""
    return model(
        lambda m, x: m.fc(pool(F.relu(m.norm(m.conv(x))))), conv=conv(3, channels, 3, 2, 1),
        norm=nn.BatchNorm2d(channels), fc=nn.Linear(joined or channels, 5),
    )  # fmt: skip


def overwritten(x):
    x.sub_(0.5)
    F.relu_(x)
    return F.adaptive_avg_pool2d(x, 1).flatten(1)


def chain(*layers):
    """nn.Sequential in float64, its weights random."""
    return model(lambda m, x: m.body(x), seed=2, body=nn.Sequential(*layers)).body


def sequential():
    body = [three(3, 6), nn.BatchNorm2d(6), nn.ReLU(inplace=True), nn.MaxPool2d(2)]
    return chain(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(), nn.Linear(6, 5))


class OwnLinear(nn.Linear):
    """Of a library's own: torch.fx looks into it."""

    def forward(self, x):
        return F.linear(x, self.weight, bias=self.bias)


ONE_POSITION = {
    "sequential": sequential(),
    "sequential max": chain(conv(3, 6, 2), nn.AdaptiveMaxPool2d((1, 1)), nn.Flatten(1), nn.Linear(6, 5)),
    "mean": pooled(lambda x: x.mean((2, 3))),
    "mean, axes from the end": pooled(lambda x: torch.mean(x, dim=[-2, -1])),
    "mean, kept axes": pooled(lambda x: x.mean((2, 3), keepdim=True).flatten(1)),
    "function and squeeze": pooled(lambda x: F.adaptive_avg_pool2d(x, 1).squeeze(-1).squeeze(-1)),
    "function and reshape": pooled(lambda x: F.adaptive_avg_pool2d(x, (1, 1)).reshape(x.shape[0], -1)),
    "two linear layers": chain(
        conv(3, 6, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 7), nn.ReLU(),
        nn.Linear(7, 5),
    ),
    "mean of a mean": pooled(lambda x: x.mean(3).mean(2)),
    "mean of a mean, axes from the end": pooled(lambda x: x.mean(-1).mean(-1)),
    "mean of a mean, kept axes": pooled(lambda x: x.mean(2, True).mean(3, True).flatten(1)),
    "mean of flattened positions": pooled(lambda x: x.flatten(2).mean(-1)),
    "pooling of the whole size": pooled(lambda x: F.avg_pool2d(x, x.size()[2:]).view(-1, 6)),
    "the only position taken": pooled(lambda x: F.adaptive_avg_pool2d(x, 1)[:, :, 0, 0]),
    "view to sizes": pooled(lambda x: x.mean((2, 3)).view(x.shape[:2])),
    "two poolings joined": pooled(lambda x: torch.cat([x.mean((2, 3)), x.amax((2, 3))], 1), joined=12),
    # a gate's pooling is not the last one, whatever stands after it
    "pooling of a gate": pooled(lambda x: F.adaptive_avg_pool2d(x * x.mean((2, 3), True).sigmoid(), 1).flatten(1)),
    "norms of vectors": chain(
        conv(3, 6, 3, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LayerNorm(6), nn.Linear(6, 7),
        nn.BatchNorm1d(7), nn.PReLU(7), nn.Linear(7, 5), nn.LogSoftmax(1),
    ),
    "a norm of vectors as a function": pooled(lambda x: F.layer_norm(x.mean((2, 3)), (6,), eps=1e-6)),
    "channels last": pooled(lambda x: F.relu(x).permute(0, 2, 3, 1).mean((1, 2))),
    "a convolution after the pooling": chain(
        conv(3, 6, 3, 2, 1), nn.AdaptiveAvgPool2d(1), conv(6, 7, 1), nn.Hardswish(), conv(7, 5, 1), nn.Flatten()
    ),
    "a convolution before the pooling": chain(
        conv(3, 6, 3, 2, 1), nn.ReLU(), conv(6, 5, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    ),
    "in-place calls whose result nobody reads": pooled(overwritten),
    "linear layers as functions": chain(
        conv(3, 6, 3, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), OwnLinear(6, 7, bias=False), nn.ReLU(),
        OwnLinear(7, 5),
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", ONE_POSITION)
def test_the_only_position_holds_the_logits(kind, device):
    classifier, side = ONE_POSITION[kind].to(device), 2 if kind.startswith("sequential") else 1
    images, large = (pictures(n, n).to(device) for n in (side, 2 * side + 32))
    maps = fully_convolutional(classifier)(images)
    assert maps.shape == (2, 5, 1, 1)
    assert_close(maps[:, :, 0, 0], classifier(images), torch.float64, "responses against logits", NETWORK)
    larger = fully_convolutional(classifier)(large)
    assert larger.shape[:2] == (2, 5)
    assert min(larger.shape[2:]) > 1


def test_a_linear_layer_as_a_function_keeps_its_names_and_becomes_another():
    classifier = nn.Sequential(conv(3, 6, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), OwnLinear(6, 5)).double()
    made = fully_convolutional(classifier)
    assert list(made.state_dict()) == list(classifier.state_dict())
    assert fully_convolutional(classifier, 3)(torch.rand(1, 3, 4, 4, dtype=torch.float64)).shape == (1, 3, 4, 4)
    assert type(classifier[3]) is OwnLinear


@pytest.mark.parametrize("track", [True, False])
@pytest.mark.parametrize("affine", [True, False])
def test_a_batch_norm_of_vectors_keeps_its_numbers_and_options(track, affine):
    norm = nn.BatchNorm1d(6, eps=0.1, momentum=0.3, affine=affine, track_running_stats=track)
    layers = [conv(3, 6, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), norm, nn.Linear(6, 2)]
    (made,) = (
        part for part in fully_convolutional(nn.Sequential(*layers).double()).modules()
        if isinstance(part, nn.BatchNorm2d)
    )  # fmt: skip
    assert (made.eps, made.momentum, made.affine, made.track_running_stats) == (0.1, 0.3, affine, track)
    for name, tensor in norm.state_dict().items():
        assert torch.equal(made.state_dict()[name], tensor)
        assert made.state_dict()[name].dtype == tensor.dtype


def branching(m, x):
    x = m.conv(x)
    return m.fc(x.mean((2, 3))) if x.sum() > 0 else x


def head(*layers, side=1):
    return nn.Sequential(conv(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(side), *layers)


NO_CLASSIFIER = {
    "features": (head(nn.Flatten()), "no linear layer"),
    "control flow": (
        Model(branching, conv=conv(3, 6, 3), fc=nn.Linear(6, 5)), r"torch\.fx cannot trace Model"
    ),
    "no pooling": (nn.Sequential(conv(3, 4, 1), nn.Flatten(), nn.Linear(16, 2)), "no global pooling"),
    "a gate's pooling alone": (pooled(lambda x: (x * x.mean((2, 3), True)).flatten(1)), "no global pooling"),
    "a pooling that keeps an axis": (
        nn.Sequential(nn.AdaptiveAvgPool2d((None, 1)), nn.Flatten(), nn.Linear(12, 2)), "no global pooling"
    ),
    "features not flattened": (head(nn.Linear(1, 2)), "Linear at '4'.*not flattened"),
    "features in two groups": (
        pooled(lambda x: x.mean((2, 3)).view(-1, 2, 3).amax(1), joined=3), r"view \(view\).*more than flatten"
    ),
    "one channel": (pooled(lambda x: x.mean((2, 3), True)[:, 0].flatten(1), joined=1), "getitem.*more than"),
    "a part of the map": (pooled(lambda x: x.mean((2, 3), True)[:, :, :1, 0].flatten(1)), "getitem.*more than"),
    "mean of one axis": (pooled(lambda x: x.mean(3).flatten(1)), "no global pooling"),
    "group norm of vectors": (head(nn.Flatten(), nn.GroupNorm(2, 4), nn.Linear(4, 2)), "GroupNorm at '5'.*positions"),
    "layer norm of positions": (head(nn.LayerNorm((4, 1, 1)), nn.Flatten(), nn.Linear(4, 2)), "LayerNorm.*positions"),
    "softmax over what is last": (head(nn.Flatten(), nn.Linear(4, 2), nn.Softmax(-1)), "Softmax at '6'.*no form"),
    "a running sum": (pooled(lambda x: x.mean((2, 3)).cumsum(1)), r"cumsum \(cumsum\).*no form for maps"),
    "a convolution of 2 x 2 positions": (head(conv(4, 4, 2), nn.Flatten(), nn.Linear(4, 2), side=2), "2 x 2"),
    "features that are no 3 x 3 positions": (head(nn.Flatten(), nn.Linear(35, 2), side=3), "35 features.*3 x 3"),
    "two outputs": (
        Model(lambda m, x: 2 * (m.fc(m.conv(x).mean((2, 3))),), conv=conv(3, 6, 3), fc=nn.Linear(6, 5)),
        "more than one tensor",
    ),
    "a parameter in the head": (
        Model(
            lambda m, x: m.fc(m.conv(x).mean((2, 3)) * m.scale), conv=conv(3, 6, 3), fc=nn.Linear(6, 5),
            scale=nn.Parameter(torch.ones(6)),
        ),
        r"mul \(mul\), after its global pooling",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", NO_CLASSIFIER)
def test_what_is_no_classifier_is_refused_in_one_line(kind):
    classifier, message = NO_CLASSIFIER[kind]
    refused(lambda: fully_convolutional(classifier), match=message, error=ValueError)
