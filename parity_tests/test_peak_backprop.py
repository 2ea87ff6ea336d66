"""Eqs. 4-5: the fast walk against the oracle's, layer kind by layer kind; what is left alone, and what is refused."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from prm.accelerated import PeakBackprop
from prm.accelerated.peak_backprop.operators import turn
from prm.parity_tests.checks import refused
from prm.parity_tests.tolerances import NETWORK, assert_close
from prm.parity_tests.walks import assert_walks_agree, pictures, some_peaks
from prm.parity_tests.zoo import LAYERS, Model, SmallCnn, avg, conv, inside, model, stochastic_depth, three

torch.fx.wrap("stochastic_depth")  # as its users' files do

# ---- one layer kind at a time


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("size", [(9, 11), (12, 7)])
def test_every_layer_kind_walks_like_the_oracle(kind, size, device):
    assert_walks_agree(copy.deepcopy(LAYERS[kind]).to(device), pictures(*size).to(device))


@pytest.mark.parametrize("side", [5, 6, 9])
def test_branches_shifted_against_each_other(side, device):
    # two branches pad opposite sides, so that the union of their windows is as large as a map of 5 and begins elsewhere
    m = model(lambda m, x: (lambda y: m.a(F.pad(y, (2, 0, 2, 0))) + m.b(F.pad(y, (0, 2, 0, 2))))(F.relu(m.c(x))),
              c=three(3, 4), a=conv(4, 3, 3), b=conv(4, 3, 3))  # fmt: skip
    every = [(0, c, i, j) for c in range(3) for i in range(side) for j in range(side)]
    assert_walks_agree(m.to(device), pictures(side, side).to(device), every)


# ---- leaks, empty maps, signs


def test_leaks_and_empty_maps(device):
    # a bias makes outputs positive where nothing excites them: there the walker ends
    c, h = conv(1, 1, 1), conv(1, 1, (1, 2))
    for layer in (c, h):
        nn.init.constant_(layer.weight, 1.0)
        nn.init.constant_(layer.bias, 1.0)
    module = nn.Sequential(c, h).double().eval().to(device)
    images = torch.tensor([[[[0.0, 3.0, 0.0, 0.0]]]], dtype=torch.float64, device=device)
    found = assert_walks_agree(module, images, [(0, 0, 0, 0), (0, 0, 0, 1), (0, 0, 0, 2)])
    assert found.empty.tolist() == [False, False, True]
    assert_close(found.leaked, [0.2, 0.2, 1.0], torch.float64, "leaked")
    assert float(found.prms[2].abs().sum()) == 0


SIGNED = {
    "groups and stride": model(
        lambda m, x: m.h(F.relu(m.c((x - 0.1) / 0.3))), c=conv(3, 6, 3, 2, 1, groups=3), h=conv(6, 2, 1)
    ),
    **{
        type(norm).__name__: model(lambda m, x: m.h(F.relu(m.c(m.n(x)))), n=norm, c=conv(3, 6, 3), h=conv(6, 2, 1))
        for norm in (nn.InstanceNorm2d(3), nn.GroupNorm(1, 3), nn.LocalResponseNorm(2), nn.LayerNorm((3, 9, 8)))
    },
    # only the layers that see the image: an inner one that sees both signs shifts its input as ever
    "inner layer": inside(lambda m, y: F.leaky_relu(y), h=conv(4, 3, 3)),
}


@pytest.mark.parametrize("kind", SIGNED)
def test_signed_switch(kind, device):
    assert_walks_agree(copy.deepcopy(SIGNED[kind]).to(device), pictures(9, 8).to(device), signed=True)


@pytest.mark.parametrize("divisor", [None, 2])
@pytest.mark.parametrize("include", [True, False])
@pytest.mark.parametrize("ceil", [True, False])
@pytest.mark.parametrize(("pad", "padding"), [((2, 1, 1, 2), 0), ((1, 0, 0, 1), 1), ((0, 0, 0, 0), 1)])
def test_what_leaks_from_an_average_over_padding(pad, padding, ceil, include, divisor, device):
    """A zero pad counts as the average's own padding does: in the sum of weights that small sums are compared with."""
    m = Model(lambda m, x: F.avg_pool2d(F.pad(x, pad), 3, 2, padding, ceil, include, divisor)).eval()
    image = torch.zeros(8, 1, 7, 8, dtype=torch.float64, device=device)
    image[:, 0, 3, 3] = 1
    for corner in ((0, 0), (0, 7), (6, 0), (6, 7)):
        image[:, 0, *corner] = 1e-7 * torch.tensor([0.5, 1.5, 2.5, 3.5, 5, 7, 8.5, 11], device=device)
    peaks = [(n, 0, i, j) for n in range(8) for i in (0, -1) for j in (0, -1)]
    _, _, h, w = m(image).shape
    assert_walks_agree(m, image, [(n, c, i % h, j % w) for n, c, i, j in peaks])


# ---- several images and peaks

SIZELESS = {
    "avg pool": avg(2), "avg pool, ceil": avg(3, 2, 1, True), "max pool": nn.MaxPool2d(2), "wide": nn.MaxPool2d(6, 1),
    "adaptive": nn.AdaptiveAvgPool2d(3), "upsample": nn.Upsample(scale_factor=2),
    "mean": Model(lambda m, x: x.mean(2, True)),
    "sum": Model(lambda m, x: x + F.relu(x)), "join": Model(lambda m, x: torch.cat([x, x], 1)),
    "slice": Model(lambda m, x: x[:, 1:].flatten(2)[..., None]),
}  # fmt: skip


@pytest.mark.parametrize("kind", SIZELESS)
def test_what_is_prepared_later_changes_nothing(kind, device):
    draw = torch.Generator().manual_seed(0)
    first, later = torch.randn(2, 2, 9, 8, generator=draw).to(device), torch.randn(1, 5, 7, 11, generator=draw)
    layer = SIZELESS[kind].eval()
    walk = PeakBackprop(layer)
    run = walk.prepare(first)
    peaks = some_peaks(run.maps)
    alone = PeakBackprop(layer).prepare(first).prms(peaks)
    walk.prepare(later.to(device, torch.float64)).prms(torch.tensor([[0, 3, 0, 0]]))
    assert torch.equal(run.prms(peaks).prms, alone.prms)


def test_no_peaks_and_peaks_outside(device):
    run = PeakBackprop(SmallCnn(["plain"], 0).to(device)).prepare(pictures(6, 7).float().to(device))
    none = run.prms(torch.zeros(0, 4, dtype=torch.int64))
    assert none.prms.shape == (0, 6, 7)
    assert none.leaked.shape == none.empty.shape == none.bound.shape == (0,)
    for peak in ((2, 0, 0, 0), (0, 3, 0, 0), (0, 0, 6, 0), (0, 0, 0, -1)):
        with pytest.raises(ValueError, match="outside"):
            run.prms(torch.tensor([peak]))


# ---- the user's model


def test_the_model_is_untouched(device):
    module = SmallCnn(["residual", "folded", "gate"], 7).double().to(device)
    module.body.append(nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU(inplace=True), nn.Dropout()).double().to(device))
    module.body[-1][2].train()  # an odd flag of the user's stays, too
    before = copy.deepcopy(module.state_dict())
    flags = {name: part.training for name, part in module.named_modules()}
    pointers = [p.data_ptr() for p in module.parameters()]
    images = pictures(9, 9).to(device)
    kept = images.clone()
    walk = PeakBackprop(module)
    run = walk.prepare(images)
    peaks = some_peaks(run.maps).to(device)
    first = run.prms(peaks).prms
    assert torch.equal(run.prms(peaks).prms, first) and torch.equal(walk(images, peaks), first)
    assert {name: part.training for name, part in module.named_modules()} == flags
    assert [p.data_ptr() for p in module.parameters()] == pointers
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in module.parameters())
    assert module.body[-1][1].inplace
    assert torch.equal(images, kept)


def test_in_place_on_a_view_is_followed_or_refused(device):
    # what must not happen is other maps than the model's
    def f(m, x):
        y = m.c(x)
        y[:, :2].add_(1)
        return m.d(y)

    m = model(f, c=conv(3, 4, 3, padding=1), d=conv(4, 4, 3, padding=1)).to(device)
    images = pictures(9, 11).to(device)
    try:
        maps = PeakBackprop(m).prepare(images).maps
    except NotImplementedError as error:
        assert "add_" in str(error)
        return
    assert_close(maps, m(images), torch.float64, "maps", NETWORK)


# ---- what is refused, and when


class Untraceable(nn.Module):
    def forward(self, x):
        if x.sum() > 0:  # the line that the message must quote
            return x
        return -x


def refusing(layer):
    return nn.Sequential(conv(3, 4, 3), nn.Sequential(nn.ReLU(), layer), conv(4, 2, 1)).eval()


def between(f):
    """f of two maps, each of a convolution of its own."""
    return model(lambda m, x: f(m.c(x), m.d(x)), c=conv(3, 4, 3), d=conv(3, 4, 3))


GIVE_A_RULE = r"a rule with prm\.accelerated\.register_rule"
# What is refused, and the message; refused for the lack of a rule, but for those that name another error.
REFUSED = {
    "training-mode norm": (nn.Sequential(conv(3, 4, 3), nn.BatchNorm2d(4)), r"'1'.*eval", ValueError),
    "norm without statistics": (
        nn.Sequential(conv(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)).eval(), "'1'", ValueError,
    ),
    "transposed convolution": (
        refusing(nn.ConvTranspose2d(4, 4, 2)), rf"ConvTranspose2d at '1\.1'.*give its type {GIVE_A_RULE}",
    ),
    "layer norm of the whole batch": (inside(lambda m, y: F.layer_norm(y, y.shape)), "layer_norm.*axes"),
    "stochastic depth in training": (
        inside(lambda m, y: stochastic_depth(y, 0.5, "row", True)), "stochastic_depth.*training",
    ),
    "attention": (
        inside(lambda m, y: F.scaled_dot_product_attention(y, y, y)), "scaled_dot_product_attention.*fixed weights",
    ),
    "attention, module": (
        inside(lambda m, y: m.a(*3 * [y.flatten(2)])[0], a=nn.MultiheadAttention(4, 2)),
        "MultiheadAttention at 'a'.*fixed weights",
    ),
    "matrix product": (
        between(lambda a, b: a @ b.transpose(2, 3)), rf"matmul.*the type of the module that calls it {GIVE_A_RULE}",
    ),
    "negative divisor": (inside(lambda m, y: y / m.s, s=nn.Parameter(torch.tensor(-2.0))), "div.*positive"),
    "bicubic": (refusing(nn.Upsample(scale_factor=2, mode="bicubic")), r"Upsample at '1\.1'.*bicubic"),
    "functional bicubic": (
        inside(lambda m, y: F.interpolate(y, scale_factor=2, mode="bicubic")), "interpolate.*bicubic",
    ),
    "two full maps": (between(lambda a, b: a * b), "mul.*full"),
    "two activated maps": (between(lambda a, b: F.relu(a) * F.gelu(b)), "mul.*full"),
    "negative factor": (inside(lambda m, y: y * -2.0), "mul.*positive"),
    "negative factor, a tensor": (between(lambda a, b: a + b * torch.tensor(-1.0)), "mul.*positive"),
    "difference": (between(lambda a, b: a - b), "sub"),
    "difference with another map's mean": (between(lambda a, b: a - b.mean(1, keepdim=True)), "sub.*mean"),
    "division by a mean": (inside(lambda m, y: y / y.mean(1, keepdim=True)), "div.*deviation"),
    "division by a root less something": (
        inside(lambda m, y: y / (torch.sqrt(y.square().mean(1, keepdim=True)) + -1)), "div.*deviation",
    ),
    "division by a map's own root": (inside(lambda m, y: y / torch.sqrt(y * y + 1)), "div.*deviation"),
    "negative power": (inside(lambda m, y: F.relu(y) ** -1), "pow.*above 0"),
    "sum of everything": (inside(lambda m, y: y * 1 + y.sum()), "sum.*batch"),
    "constant minus map": (inside(lambda m, y: 1 - y), "sub"),
    "exponential": (inside(lambda m, y: torch.exp(y)), "exp"),
    "mean over channels": (inside(lambda m, y: y.mean(1, keepdim=True), h=conv(1, 2, 1)), "mean"),
    "control flow": (
        nn.Sequential(conv(3, 4, 3), Untraceable()).eval(), r"test_peak_backprop\.py:\d+: if x\.sum\(\) > 0",
        ValueError,
    ),
    "float16": (SmallCnn(["plain"], 0).half(), "float16", ValueError),
    "two outputs": (model(lambda m, x: (m.c(x), m.c(x)), c=conv(3, 4, 3)), "one tensor"),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_what_has_no_rule_is_refused_before_any_forward_pass(kind):
    module, message, error = (*REFUSED[kind], NotImplementedError)[:3]
    ran = []

    def note(part, arguments):
        if type(arguments[0]) is torch.Tensor:  # and not a symbol of the trace
            ran.append(part)

    for part in module.modules():
        part.register_forward_pre_hook(note)
    refused(lambda: PeakBackprop(module), match=message, error=error)
    assert not ran


AT_THE_PICTURE = {
    "two maps that mix up which is the gate": (
        inside(lambda m, y: F.relu(y) * y[:, :, :1]), pictures(9, 9), "which of them is the gate",
    ),
    "a layer norm that turns out to mix images": (
        model(lambda m, x: F.layer_norm(m.c(x), (2, 2, 7, 7)), c=conv(3, 2, 3)), pictures(9, 9), "images of a batch",
    ),
    "no maps": (
        nn.Sequential(conv(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)).eval(),
        torch.rand(1, 3, 9, 9), "fully_convolutional",
    ),
    "no batch": (SmallCnn(["plain"], 0), torch.rand(3, 9, 9), r"\(N, channels, H, W\)"),
    "not a number": (SmallCnn(["plain"], 0), torch.rand(3, 3, 9, 9).index_fill_(0, torch.tensor(1), float("nan")),
                     "image 1.*class 0"),
}  # fmt: skip


@pytest.mark.parametrize("kind", AT_THE_PICTURE)
def test_what_only_a_picture_tells_is_refused(kind):
    module, images, message = AT_THE_PICTURE[kind]
    error = NotImplementedError if "mix" in kind else ValueError
    refused(lambda: PeakBackprop(module).prepare(images), match=message, error=error)


@pytest.mark.parametrize(
    ("option", "values", "message"),
    [("upsample", (0, 1.5, True), "upsample must be an integer >= 1"),
     ("max_memory", (0, -1), "max_memory must be a positive number of bytes"),
     ("epsilon", (-0.1, 1.0, float("nan")), "epsilon must be at least 0 and less than 1"),
     ("precision", ("fp8", None), "precision must be 'ieee', 'tf32', 'bf16', not ")],
)  # fmt: skip
def test_options_out_of_range_are_refused(option, values, message):
    for value in values:
        with pytest.raises(ValueError, match=message):
            PeakBackprop(SmallCnn(["plain"], 0), **{option: value})


# ---- the operators


@pytest.mark.parametrize("with_above", [False, True])
def test_ratio_is_a_proper_operator(with_above, device):
    draw = torch.Generator().manual_seed(0)
    U, W = torch.rand(2, 4, 7, 8, generator=draw).to(device), torch.rand(6, 2, 3, 3, generator=draw).to(device)
    above = torch.rand(2, 6, 4, 4, generator=draw).to(device) if with_above else None
    out = torch.empty(2, 6, 4, 4, device=device)
    arguments = (U, W, torch.ones(2, 6, device=device), above, [2, 1], [1, 0], [1, 2], 2, out)
    torch.library.opcheck(torch.ops.prm.walk_ratio.default, arguments)


@pytest.mark.parametrize(("to", "size"), [([[-1, 0]] * 3, (7, 7)), ([[0, 0], [5, 2], [9, 4]], (5, 6))])
@pytest.mark.parametrize("groups", [1, 2])
def test_walk_through_a_convolution_is_a_proper_operator(to, size, groups, device):
    draw = torch.Generator().manual_seed(0)
    ratio, W = torch.rand(2, 6, 21, 22, generator=draw).to(device), torch.rand(6, 2, 3, 3, generator=draw).to(device)
    image, origin, to = torch.tensor([0, 1, 1]), torch.tensor([[0, 0], [3, 2], [5, 3]]), torch.tensor(to)
    G = torch.rand(3, 6, 3, 4, generator=draw).to(device)
    geometry = ([2, 2], [1, 0], [1, 1], groups)
    arguments = (G, image, origin, ratio, turn(W, groups), *geometry, to, size)
    torch.library.opcheck(torch.ops.prm.walk_conv2d.default, arguments)
    # the same on whole maps: what lies in the windows, and nothing else arrives there
    found = torch.ops.prm.walk_conv2d(*arguments)
    for k in range(3):
        (i, j), (a, b) = origin[k].tolist(), to[k].tolist()
        whole = torch.zeros(1, 6, 21, 22, device=device)
        whole[0, :, i : i + 3, j : j + 4] = G[k] * ratio[image[k], :, i : i + 3, j : j + 4]
        below = F.pad(F.conv_transpose2d(whole, W, None, 2, 0, 0, groups), (9, 9, 9, 9))  # its first row is row -1
        expected = below[0, :, a + 10 : a + 10 + size[0], b + 9 : b + 9 + size[1]]
        assert_close(found[k], expected, torch.float32, f"window of peak {k}")
