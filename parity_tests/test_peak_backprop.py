"""Eqs. 4-5: the fast walk against the oracle's, layer kind by layer kind and on random networks."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from prm.accelerated import PeakBackprop
from prm.accelerated.peak_backprop.operators import turn
from prm.parity_tests.architectures import StochasticDepth, stochastic_depth
from prm.parity_tests.convert import to_reference
from prm.parity_tests.strategies import BLOCKS, SmallCnn, randomise
from prm.parity_tests.tolerances import NETWORK, assert_close
from prm.reference.network import forward, walk

torch.fx.wrap("stochastic_depth")  # as its users' files do


class Model(nn.Module):
    """A model whose forward pass is the function given: f(its layers, image)."""

    def __init__(self, f, **layers):
        super().__init__()
        self.f = f
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x):
        return self.f(self, x)


def model(f, seed=0, **layers):
    return randomise(Model(f, **layers).double(), seed)


def pictures(*size, count=2, seed=0):
    return torch.randn(count, 3, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def some_peaks(maps, seed=0, count=4, upsample=1):
    """The four corners of the first map, and random positions of random maps, in no order."""
    N, C, h, w = maps.shape
    h, w = h * upsample, w * upsample
    corners = [(0, 0, i, j) for i in (0, h - 1) for j in (0, w - 1)]
    rng = np.random.default_rng(seed)
    anywhere = [tuple(int(rng.integers(n)) for n in (N, C, h, w)) for _ in range(count)]
    return torch.tensor([anywhere[0], *corners, *anywhere[1:]])


def assert_walks_agree(module, images, peaks=None, upsample=1, signed=False):
    """Maps, PRMs, leaked mass and empty flags of the fast path against the oracle's, and what both must satisfy."""
    dtype, device = images.dtype, images.device
    run = PeakBackprop(module, upsample=upsample, signed=signed).prepare(images)
    with torch.no_grad():
        assert_close(run.maps, module(images.clone()), dtype, "maps against the model's own", NETWORK)
    peaks = some_peaks(run.maps, upsample=upsample) if peaks is None else torch.as_tensor(peaks)
    found = run.prms(peaks.to(device))
    network = to_reference(module)
    activations = [forward(network, image.detach().cpu().double().numpy()) for image in images]
    for k, (n, *peak) in enumerate(peaks.tolist()):
        expected = walk(network, activations[n], peak, upsample, signed)
        assert_close(found.prms[k], expected.prm, dtype, f"PRM of peak {(n, *peak)}", NETWORK)
        assert abs(float(found.leaked[k]) - expected.leaked) <= NETWORK[dtype], f"leaked, peak {(n, *peak)}"
        assert bool(found.empty[k]) == expected.empty
        total = float(found.prms[k].sum())
        assert total == 0 if expected.empty else abs(total - 1) < NETWORK[dtype]
    return found


# ---- one layer kind at a time

conv, avg = nn.Conv2d, nn.AvgPool2d


def inside(f, c=None, h=None, **layers):
    """A model of what is to be tested, f (its layers, map), between two convolutions."""
    return model(lambda m, x: m.h(f(m, m.c(x))), c=c or conv(3, 4, 3), **layers, h=h or conv(4, 2, 1))


def signs(norm):
    """Weights of either sign."""
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1.0, -0.5, 2.0, 0.0]))
        norm.bias.copy_(torch.tensor([0.5, 1.0, -1.0, 2.0]))
    return norm


def shuffled(y):
    n, c, h, w = y.shape
    return y.view(n, 2, c // 2, h, w).transpose(1, 2).contiguous().view(n, c, h, w)


def parameter(*values):
    return nn.Parameter(torch.tensor(values))


def bilinear(x, corners=False, **size):
    return F.interpolate(x, mode="bilinear", align_corners=corners, **size)


def excited(m, y):
    """Squeeze and excitation as published: sizes are read from the map."""
    gate = torch.sigmoid(m.e(F.relu(m.s(y.mean((2, 3))))))
    return y * gate.view(y.size(0), y.size(1), 1, 1)


LAYERS = {
    "stride": inside(lambda m, y: F.relu(y), conv(3, 4, 3, 2), conv(4, 2, 2)),
    "dilation": inside(lambda m, y: F.relu(y), conv(3, 4, (3, 2), 1, 2, 2)),
    "groups": inside(lambda m, y: m.g(y), g=conv(4, 8, 3, 2, 1, 2, 4), h=conv(8, 2, 1)),
    "padding same, even kernel": inside(
        lambda m, y: F.relu(y), conv(3, 4, (4, 2), padding="same"), conv(4, 2, 2, padding="same")
    ),
    "zero pad": model(lambda m, x: m.c(F.pad(x, (2, 0, 0, 1))), c=conv(3, 2, 3)),
    "zero pads, module": model(
        lambda m, x: m.c(m.q(m.p(x))), p=nn.ZeroPad2d((0, 1, 2, 0)), q=nn.ZeroPad2d(1), c=conv(3, 2, 3, padding=1)
    ),
    # a zero pad is merged also where an identity stands between it and its convolution
    "zero pad, dropout": model(
        lambda m, x: m.c(m.d(m.p(x))), p=nn.ZeroPad2d((1, 0, 2, 0)), d=nn.Dropout(), c=conv(3, 2, 3)
    ),
    "folded norm": inside(lambda m, y: F.relu(m.b(y)), b=nn.BatchNorm2d(4)),
    "functional norm": inside(
        lambda m, y: F.relu(F.batch_norm(y, m.b.running_mean, m.b.running_var, m.b.weight, m.b.bias)),
        b=nn.BatchNorm2d(4),
    ),
    # two consumers of the convolution: its norm stays apart
    "shared convolution": inside(lambda m, y: m.b(y) + y, b=nn.BatchNorm2d(4)),
    "unfolded norm": inside(lambda m, y: m.b(F.relu(y)), b=nn.BatchNorm2d(4)),
    "module called twice": model(
        lambda m, x: m.b(m.c(F.relu(m.b(m.c(x))))), c=conv(3, 3, 3, padding=1), b=nn.BatchNorm2d(3)
    ),
    "max pool": inside(lambda m, y: F.max_pool2d(y, 3, 2, 1, 1, True)),
    "max pool, dilated": inside(lambda m, y: m.p(y), p=nn.MaxPool2d(2, 1, 1, 2)),
    "max pool of zeros": inside(lambda m, y: F.max_pool2d(F.relu(y - 2), 2)),
    "adaptive max pool": inside(lambda m, y: F.adaptive_max_pool2d(y, (3, 4))),
    "avg pool": inside(lambda m, y: m.p(y), p=avg(3, 2, 1, True, False)),
    "zero pad, avg pool": inside(lambda m, y: m.p(F.pad(y, (0, 1, 2, 0))), p=avg(2, 2, ceil_mode=True)),
    "adaptive avg pool": inside(lambda m, y: F.adaptive_avg_pool2d(y, (3, 4))),
    "mean": inside(lambda m, y: y.mean((-1, 2), keepdim=True)),
    "bilinear": inside(lambda m, y: bilinear(y, scale_factor=2), conv(3, 4, 3, 2)),
    "bilinear, corners": inside(lambda m, y: bilinear(y, True, size=(9, 8)), conv(3, 4, 3, 2)),
    "nearest": inside(lambda m, y: F.interpolate(y, size=(9, 5)), conv(3, 4, 3, 2)),
    # sizes read from another tensor, as in every feature pyramid
    "interpolate to a shape": model(
        lambda m, x: m.h(bilinear(m.c(x), size=x.shape[-2:])), c=conv(3, 4, 3, 2), h=conv(4, 2, 1)
    ),
    "interpolate to sizes": model(
        lambda m, x: m.h(F.interpolate(m.c(x), size=(x.shape[2], x.size(3)))), c=conv(3, 4, 3, 2), h=conv(4, 2, 1)
    ),
    "addition": inside(lambda m, y: m.d(y) + y, d=conv(4, 4, 3, padding=1)),
    "broadcast addition": inside(lambda m, y: y + F.adaptive_avg_pool2d(y, 1)),
    "normalised input": model(
        lambda m, x: m.c((x - m.mean) / 0.2 * 2 + 1), c=conv(3, 2, 3), mean=parameter([[[0.1]], [[0.2]], [[0.3]]])
    ),
    "concatenation along rows": inside(lambda m, y: torch.cat([y, F.relu(y)], 2), h=conv(4, 2, 3)),
    "split": inside(lambda m, y: y.split([3, 1], 1)[0], h=conv(3, 2, 1)),
    "slices": inside(lambda m, y: y[:, 1:, ::2, :-1], h=conv(3, 2, 1)),
    "linear, channels last": model(
        lambda m, x: m.h(m.c(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2), c=conv(3, 4, 3), h=nn.Linear(4, 2)
    ),
    "sigmoid gate": inside(lambda m, y: y * torch.sigmoid(m.g(y)), g=conv(4, 4, 1)),
    "gate behind dropout": inside(lambda m, y: y * m.d(torch.sigmoid(m.g(y))), g=conv(4, 4, 1), d=nn.Dropout()),
    "broadcast gate of one channel": inside(lambda m, y: y * F.relu(m.g(y)), g=conv(4, 1, 1)),
    "squeeze and excite": inside(excited, s=nn.Linear(4, 2), e=nn.Linear(2, 4)),
    "swish written out": inside(lambda m, y: y * torch.sigmoid(y)),
    "mish written out": inside(lambda m, y: y * torch.tanh(F.softplus(y))),
    "hard swish written out": inside(lambda m, y: y * F.relu6(y + 3) / 6),
    "layer norm, channels last": inside(
        lambda m, y: F.relu(m.n(y.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)), n=nn.LayerNorm(4)
    ),
    "functional layer norm of whole maps": inside(lambda m, y: F.layer_norm(y, y.shape[1:]), h=conv(4, 2, 3)),
    "layer norm over the last axis, its length a weight's": inside(
        lambda m, y: F.layer_norm(y.transpose(1, -1), m.w.shape, m.w).transpose(1, -1), w=parameter(1.0, -2.0, 0.5, 0.0)
    ),
    "group norm": inside(lambda m, y: F.relu(m.n(y)), h=conv(4, 2, 2), n=signs(nn.GroupNorm(2, 4))),
    "functional group norm": inside(
        lambda m, y: F.group_norm(y, 2, m.n.weight), h=conv(4, 2, 2), n=signs(nn.GroupNorm(2, 4))
    ),
    "instance norm": inside(lambda m, y: F.relu(m.n(y)), h=conv(4, 2, 2), n=nn.InstanceNorm2d(4)),
    "instance norm with statistics": inside(
        lambda m, y: F.relu(m.n(y)), h=conv(4, 2, 2),
        n=signs(nn.InstanceNorm2d(4, affine=True, track_running_stats=True)),
    ),
    "functional instance norm": inside(lambda m, y: F.instance_norm(y), h=conv(4, 2, 2)),
    "local response norm": inside(
        lambda m, y: F.local_response_norm(m.n(F.relu(y)), 3, alpha=0.5), conv(3, 6, 3), conv(6, 2, 2),
        n=nn.LocalResponseNorm(4, alpha=2.0, beta=0.5, k=1.5),
    ),
    # a batch norm and a zero pad are merged through it
    "stochastic depth": model(
        lambda m, x: (lambda y: m.h(m.e(m.d(F.pad(y, (1, 0, 1, 0)))) + y))(m.n(m.d(m.c(x)))),
        c=conv(3, 4, 3), e=conv(4, 4, 2), d=StochasticDepth(0.5), n=nn.BatchNorm2d(4), h=conv(4, 2, 1),
    ),
    "learned factors of either sign": inside(
        lambda m, y: m.s * y * m.t.view(1, -1, 1, 1), h=conv(4, 2, 2), s=nn.Parameter(torch.tensor(-0.5)),
        t=parameter(1.0, -2.0, 0.0, 0.5),
    ),
    "a factor that repeats": inside(
        lambda m, y: m.s * y + m.s, conv(3, 1, 3), conv(4, 2, 2), s=nn.Parameter(torch.randn(4, 1, 1))
    ),
    "unsqueeze, squeeze, transpose": inside(
        lambda m, y: torch.squeeze(y.unsqueeze(2).transpose(2, 3).transpose(2, 3), 2), h=conv(4, 2, 2)
    ),
    "channels taken apart": model(
        lambda m, x: m.c(torch.cat([x[:, 2].unsqueeze(1), x[:, -3][:, None], torch.unsqueeze(x[:, 1], 1)], 1)),
        c=conv(3, 2, 3),
    ),
    "one row": inside(lambda m, y: torch.cat([y, y[..., 1, :].unsqueeze(-2)], 2)),
    "channel shuffle": inside(lambda m, y: shuffled(y), h=conv(4, 2, 2)),
    "pooling pyramid": inside(
        lambda m, y: torch.cat([y, F.adaptive_avg_pool2d(y, 1).expand_as(y)], 1), h=conv(8, 2, 1)
    ),
    "expand to sizes": inside(lambda m, y: y.mean(3, keepdim=True).expand(-1, -1, y.size(2), 5), h=conv(4, 2, 2)),
    "mean over rows, then columns": inside(lambda m, y: y * F.relu(y.mean(3, True).mean(2, True))),
    "gate by means of the last axis": inside(lambda m, y: y * F.relu(y.mean(-1).mean(-1))[:, :, None, None]),
    "mean over one axis": inside(lambda m, y: y.mean(3, keepdim=True)),
    "adaptive avg pool to a size read": model(
        lambda m, x: m.h(F.adaptive_avg_pool2d(m.c(x), m.d(x).shape[-2:])),
        c=conv(3, 4, 3), d=conv(3, 1, 5), h=conv(4, 2, 1),
    ),
    "gate with expand_as": inside(
        lambda m, y: y * torch.sigmoid(m.e(y.mean((2, 3)))).unsqueeze(-1).unsqueeze(-1).expand_as(y), e=nn.Linear(4, 4)
    ),
    "gelu and silu": inside(
        lambda m, y: F.silu(m.d(F.gelu(y, approximate="tanh"))), h=conv(4, 2, 2), d=conv(4, 4, 1)
    ),
    # a module's own name is no function's
    "modules called squeeze, mean and add": model(
        lambda m, x: (lambda y: m.add(torch.sigmoid(y) * m.squeeze(m.mean(y))))(m.c(x)),
        c=conv(3, 4, 3), squeeze=conv(4, 4, 1), mean=avg(3, 1, 1), add=conv(4, 2, 1),
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("size", [(9, 11), (12, 7)])
def test_every_layer_kind_walks_like_the_oracle(kind, size, device):
    assert_walks_agree(copy.deepcopy(LAYERS[kind]).to(device), pictures(*size).to(device))


@pytest.mark.parametrize("block", sorted(BLOCKS))
def test_every_block_in_float32(block, device):
    # float64 rounds finely enough to compare closely; float32 is what users run
    module = SmallCnn([block, "plain"], 1).to(device)
    assert_walks_agree(module, pictures(8, 9).float().to(device))


def test_several_consumers_add_up(device):
    m = model(lambda m, x: (lambda y: m.h(torch.cat([m.a(y), m.b(y), y], 1)))(F.relu(m.c(x))),
              c=conv(3, 4, 3), a=conv(4, 4, 3, padding=1), b=conv(4, 4, 5, padding=2), h=conv(12, 2, 1))  # fmt: skip
    assert_walks_agree(m.to(device), pictures(10, 9).to(device))


@pytest.mark.parametrize("side", [5, 6, 9])
def test_branches_shifted_against_each_other(side, device):
    # two branches pad opposite sides, so that the union of their windows is as large as a map of 5 and begins elsewhere
    m = model(lambda m, x: (lambda y: m.a(F.pad(y, (2, 0, 2, 0))) + m.b(F.pad(y, (0, 2, 0, 2))))(F.relu(m.c(x))),
              c=conv(3, 4, 3, padding=1), a=conv(4, 3, 3), b=conv(4, 3, 3))  # fmt: skip
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


def test_leak_account_is_the_share_that_did_not_arrive(device):
    module = SmallCnn(["unfolded", "bare", "strided"], 3).double().to(device)
    with torch.no_grad():
        module.body[1].conv.weight[0] = -module.body[1].conv.weight[0].abs()  # a channel that nothing excites
    found = assert_walks_agree(module, pictures(9, 9).to(device))
    assert float(found.leaked.max()) > 0.01
    assert ((found.leaked >= 0) & (found.leaked <= 1 + 1e-9)).all()


SIGNED = {
    **{blocks: SmallCnn(blocks.split(), 2).double() for blocks in ("plain", "strided", "padded", "grouped gate")},
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


@pytest.mark.parametrize("size", [(16, 24), (8, 8)])
def test_peaks_found_on_enlarged_maps(size, device):
    module = SmallCnn(["strided", "max", "plain"], 4).double().to(device)
    assert_walks_agree(module, pictures(*size).to(device), upsample=8)


def test_enlarged_map_of_one_row(device):
    m = model(lambda m, x: m.c(x), c=conv(3, 2, (4, 3)))
    assert_walks_agree(m.to(device), pictures(4, 9).to(device), upsample=8)


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


def test_many_peaks_in_one_pass_equal_one_at_a_time(device):
    module = SmallCnn(["residual", "max", "concat", "gate"], 5).double().to(device)
    images = pictures(13, 12, count=3).to(device)
    together = PeakBackprop(module).prepare(images)
    peaks = some_peaks(together.maps, count=12).to(device)
    peaks = torch.cat([peaks, peaks[:2]])  # a peak may come twice
    found = together.prms(peaks)
    for k, peak in enumerate(peaks):
        alone = PeakBackprop(module).prepare(images[peak[0]][None])
        one = alone.prms(torch.tensor([0, *peak[1:].tolist()]))
        assert_close(found.prms[k], one.prms[0], torch.float64, f"PRM {k}")
        assert abs(float(found.leaked[k] - one.leaked[0])) < 1e-12
    assert_close(PeakBackprop(module)(images, peaks), found.prms, torch.float64, "one call")


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


# ---- windows

DEEP = ["residual", "max", "concat", "strided", "dilated", "up", "halves"]


@pytest.mark.parametrize(
    "blocks", [DEEP[:2], DEEP[:5], ["padded", "max_ceil", "max_dilated"], ["strided", "strided", "residual"], DEEP]
)
def test_windows_change_nothing(blocks, device):
    module = SmallCnn(blocks, 6).double().to(device)
    images = pictures(70, 90).to(device)
    run = PeakBackprop(module).prepare(images)
    peaks = some_peaks(run.maps, count=8).to(device)
    windowed = run.prms(peaks)
    whole = PeakBackprop(module, windows=False).prepare(images).prms(peaks)
    assert_close(windowed.prms, whole.prms, torch.float64, "windows against whole maps")
    assert_close(windowed.leaked, whole.leaked, torch.float64, "leaked")


def test_nothing_outside_the_receptive_field(device):
    # 3x3, 3x3 stride 2, max pool 2, 1x1: an output position sees 10 rows and columns, from 4 i - 3 on
    m = model(lambda m, x: m.h(F.max_pool2d(F.relu(m.d(F.relu(m.c(x)))), 2)),
              c=conv(3, 4, 3, padding=1), d=conv(4, 4, 3, 2, 1), h=conv(4, 2, 1))  # fmt: skip
    run = PeakBackprop(m.to(device)).prepare(pictures(64, 48).to(device))
    peaks = torch.tensor([[0, 0, 7, 5], [1, 1, 0, 0], [0, 1, 15, 11]])
    found = run.prms(peaks.to(device)).prms.cpu()
    for prm, (_, _, i, j) in zip(found, peaks.tolist()):
        rows, columns = torch.nonzero(prm, as_tuple=True)
        assert len(rows)
        for axis, k in ((rows, i), (columns, j)):
            assert 4 * k - 2 <= int(axis.min())
            assert int(axis.max()) <= 4 * k + 4


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
    run.prms(some_peaks(run.maps).to(device))
    assert {name: part.training for name, part in module.named_modules()} == flags
    assert [p.data_ptr() for p in module.parameters()] == pointers
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in module.parameters())
    assert module.body[-1][1].inplace
    assert torch.equal(images, kept)


def test_in_place_activations_overwrite_no_stored_input(device):
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.relu = conv(3, 4, 3), conv(4, 4, 3, padding=1), nn.ReLU(inplace=True)

        def forward(self, x):
            x = self.relu(self.a(x))
            y = self.b(x)
            y += x
            return self.b(F.relu_(y))

    module = randomise(Block().double(), 1).to(device)
    images = pictures(9, 9).to(device)
    assert_walks_agree(module, images)
    run = PeakBackprop(module).prepare(images)
    first = run.prms(some_peaks(run.maps).to(device)).prms
    assert torch.equal(first, run.prms(some_peaks(run.maps).to(device)).prms)  # and walking twice gives the same


@pytest.mark.parametrize("how", ["module", "function", "method"])
def test_later_readers_of_an_overwritten_tensor_read_the_new_values(how, device):
    # pre-activation networks: the shortcut adds what the activation has overwritten
    relu = nn.ReLU(inplace=True)
    act = {
        "module": lambda m, y: m.relu(y),
        "function": lambda m, y: F.relu(y, inplace=True),
        "method": lambda m, y: y.relu_(),
    }[how]

    def f(m, x):
        y = m.c(x)
        out = act(m, y)
        return m.d(out) + y

    m = model(f, c=conv(3, 4, 3, padding=1), d=conv(4, 4, 3, padding=1), relu=relu)
    assert_walks_agree(m.to(device), pictures(9, 11).to(device))


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
    "matrix product": (
        between(lambda a, b: a @ b.transpose(2, 3)), rf"matmul.*the type of the module that calls it {GIVE_A_RULE}",
    ),
    "negative divisor": (inside(lambda m, y: y / m.s, s=nn.Parameter(torch.tensor(-2.0))), "div.*positive"),
    "bicubic": (refusing(nn.Upsample(scale_factor=2, mode="bicubic")), r"Upsample at '1\.1'.*bicubic"),
    "functional bicubic": (
        inside(lambda m, y: F.interpolate(y, scale_factor=2, mode="bicubic")), "interpolate.*bicubic",
    ),
    "reflect padding": (refusing(conv(4, 4, 3, padding=1, padding_mode="reflect")), r"Conv2d at '1\.1'.*reflect"),
    "reflection pad": (refusing(nn.ReflectionPad2d(1)), r"ReflectionPad2d at '1\.1'"),
    "pad before no convolution": (
        refusing(nn.Sequential(nn.ZeroPad2d(1), nn.MaxPool2d(2))), r"ZeroPad2d at '1\.1\.0'",
    ),
    "two full maps": (between(lambda a, b: a * b), "mul.*full"),
    "negative factor": (inside(lambda m, y: y * -2.0), "mul.*positive"),
    "negative factor, a tensor": (between(lambda a, b: a + b * torch.tensor(-1.0)), "mul.*positive"),
    "difference": (between(lambda a, b: a - b), "sub"),
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
    with pytest.raises(error, match=message) as caught:
        PeakBackprop(module)
    assert not ran
    assert "\n" not in str(caught.value)


def test_a_layer_norm_that_turns_out_to_mix_images_is_refused():
    m = model(lambda m, x: F.layer_norm(m.c(x), (2, 2, 7, 7)), c=conv(3, 2, 3))
    with pytest.raises(NotImplementedError, match="images of a batch"):
        PeakBackprop(m).prepare(pictures(9, 9))


def test_outputs_that_are_no_maps_are_refused():
    classifier = nn.Sequential(conv(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)).eval()
    with pytest.raises(ValueError, match="fully_convolutional"):
        PeakBackprop(classifier).prepare(torch.rand(1, 3, 9, 9))
    with pytest.raises(ValueError, match=r"\(N, channels, H, W\)"):
        PeakBackprop(SmallCnn(["plain"], 0)).prepare(torch.rand(3, 9, 9))


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


def test_non_finite_maps_are_named():
    images = torch.rand(3, 3, 9, 9)
    images[1, 0, 4, 4] = float("nan")
    with pytest.raises(ValueError, match=r"image 1.*class 0"):
        PeakBackprop(SmallCnn(["plain"], 0)).prepare(images)


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
