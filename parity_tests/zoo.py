"""The zoo: every small network that tests share, once, with what it is there for.

`BLOCKS` are what random networks are built of, `LAYERS` a network a kind of layer. The families of classifiers that
people use are in `architectures`.
"""

import operator

import torch
import torch.nn.functional as F
from torch import fx, nn

# ---- how a network is written and drawn


class Model(nn.Module):
    """A network whose forward pass is the function given: f(its layers, image)."""

    def __init__(self, f, **layers):
        super().__init__()
        self.f = f
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x):
        return self.f(self, x)


def model(f, seed=0, **layers):
    return randomise(Model(f, **layers).double(), seed)


def randomise(module, seed):
    """Random parameters and statistics, gamma of either sign, in evaluation mode."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.running_mean.normal_(0, 0.3, generator=draw)
                part.running_var.uniform_(0.5, 2.0, generator=draw)
                part.weight.normal_(0, 1, generator=draw)
                part.bias.normal_(0, 0.3, generator=draw)
            elif isinstance(part, (nn.Conv2d, nn.Linear)):
                part.weight.normal_(0, (2 / part.weight[0].numel()) ** 0.5, generator=draw)
                if part.bias is not None:
                    part.bias.normal_(0, 0.2, generator=draw)
    return module.eval()


def stochastic_depth(input, p, mode, training=True):
    """Leaves out a branch of whole images at random; nothing in evaluation mode. torchvision's, for where it is not."""
    if not training or p == 0.0:
        return input
    kept = (torch.rand(input.shape[0], device=input.device) >= p).to(input.dtype).view(-1, 1, 1, 1)
    return input * kept / (1 - p)


fx.wrap("stochastic_depth")  # as its users' files do

# ---- blocks of random networks: c channels -> c channels

CHANNELS = 4
conv, avg = nn.Conv2d, nn.AvgPool2d


def three(c_in, c_out=None, **options):
    return conv(c_in, c_out or c_in, **{"kernel_size": 3, "padding": 1, **options})


def plain(c, **options):
    return Model(lambda m, x: F.relu(m.conv(x)), conv=three(c, **options))


def in_place_sum(m, x):
    """As in torchvision's ResNet."""
    out = m.norm(m.conv(x))
    out += x
    return F.relu(out)


def halved(m, x):
    """The channels part and meet again."""
    a, b = x.chunk(2, 1)
    return torch.cat([F.relu(m.conv(a)), b], 1)


def gated(m, x):
    """Squeeze and excite."""
    return x * torch.sigmoid(m.excite(F.relu(m.squeeze(F.adaptive_avg_pool2d(x, 1)))))


def padded(c, layer):
    """More zeros on some sides than on others, around values of both signs, and a stride."""
    return Model(lambda m, x: F.relu(m.conv(F.pad(m.before(x), (2, 1, 1, 2)))), before=conv(c, c, 1), conv=layer)


def separable(c, norm=None):
    """Depthwise and pointwise, as in MobileNet; in v2's form, with a norm, with a shortcut."""

    def f(m, x):
        out = m.pointwise(F.relu6(m.depthwise(x)))
        return F.relu(out) if m.norm is None else x + m.norm(out)

    return Model(f, norm=norm, depthwise=three(c, groups=c), pointwise=conv(c, c, 1))


def dense(c, norm=nn.Identity):
    """Every layer sees what all before it found; each batch norm comes before its convolution and stays apart."""

    def f(m, x):
        found = [x]
        for norm, layer in zip(m.norms, m.layers):
            found.append(layer(F.relu(norm(torch.cat(found, 1)))))
        return F.relu(m.transition(torch.cat(found, 1)))

    layers, norms = ([kind(c + 2 * i) for i in range(2)] for kind in (lambda wide: three(wide, 2), norm))
    return Model(f, layers=nn.ModuleList(layers), norms=nn.ModuleList(norms), transition=conv(c + 4, c, 1))


def inception(m, x):
    """Four branches, one of them a pooling."""
    last = m.pooled(F.max_pool2d(x, 3, stride=1, padding=1))
    return torch.cat([F.relu(b) for b in (m.one(x), m.three(x), m.five(x), last)], dim=1)


def downsampling(c, norm=nn.BatchNorm2d):
    """A residual block whose shortcut is a strided 1x1 convolution."""
    return Model(
        lambda m, x: F.relu(m.norms[0](m.conv(x)) + m.norms[1](m.shortcut(x))),
        conv=conv(c, c, 3, 2, 1), shortcut=conv(c, c, 1, 2), norms=nn.ModuleList(norm(c) for _ in range(2)),
    )  # fmt: skip


BLOCKS = {
    "plain": plain,
    # without an activation: the next layer sees both signs
    "bare": lambda c: Model(lambda m, x: m.conv(x), conv=three(c)),
    "strided": lambda c: plain(c, stride=2),
    "dilated": lambda c: plain(c, dilation=2, padding=2),
    "grouped": lambda c: plain(c, groups=2),
    "depthwise": lambda c: plain(c, groups=c),
    "residual": lambda c: Model(in_place_sum, conv=three(c, bias=False), norm=nn.BatchNorm2d(c)),
    "residual_without_norm": lambda c: downsampling(c, nn.Identity),
    "downsampling": downsampling,
    "concat": lambda c: Model(
        lambda m, x: m.join(torch.cat([F.relu(m.one(x)), F.relu(m.three(x))], 1)),
        one=conv(c, c, 1), three=three(c), join=conv(2 * c, c, 1),
    ),
    "branches": lambda c: Model(
        inception, one=conv(c, 1, 1), three=three(c, 1), five=conv(c, 1, 5, 1, 2), pooled=conv(c, c - 3, 1)
    ),
    "dense": dense,
    "dense_norm": lambda c: dense(c, nn.BatchNorm2d),
    "separable": separable,
    "separable_norm": lambda c: separable(c, nn.BatchNorm2d(c)),
    "halves": lambda c: Model(halved, conv=three(c // 2)),
    "folded": lambda c: Model(
        lambda m, x: F.relu(m.norm(m.drop(m.conv(x)))), conv=three(c), drop=nn.Dropout(), norm=nn.BatchNorm2d(c)
    ),
    # a batch norm that no convolution can take in
    "unfolded": lambda c: Model(lambda m, x: m.norm(F.relu(x)), norm=nn.BatchNorm2d(c)),
    "gate": lambda c: Model(gated, squeeze=conv(c, 2, 1), excite=conv(2, c, 1)),
    "padded": lambda c: padded(c, conv(c, c, 3, stride=2)),
    "padded_avg": lambda c: padded(c, avg(3, 2, ceil_mode=True)),
    "max_ceil": lambda c: nn.MaxPool2d(3, 2, 1, ceil_mode=True),
    # Enlarged before: on a map of one pixel its windows would lie in the padding altogether.
    "max_dilated": lambda c: nn.Sequential(nn.Upsample(scale_factor=2), nn.MaxPool2d(2, 1, 1, dilation=2)),
    "max": lambda c: nn.MaxPool2d(2, ceil_mode=True),
    "avg_ceil": lambda c: avg(3, 2, 1, ceil_mode=True, count_include_pad=False),
    "avg": lambda c: avg(3, 1, 1),
    "up": lambda c: nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False),
    "up_nearest": lambda c: nn.Upsample(scale_factor=2),
    "leaky": lambda c: nn.LeakyReLU(0.1),
}  # fmt: skip


class SmallCnn(nn.Module):
    """3 channels -> a stem, the named blocks, a 1x1 classifier of 3 classes; all weights random."""

    def __init__(self, blocks, seed):
        super().__init__()
        self.blocks = tuple(blocks)
        self.stem = three(3, CHANNELS)
        self.body = nn.Sequential(*(BLOCKS[name](CHANNELS) for name in blocks))
        self.head = conv(CHANNELS, 3, 1)
        randomise(self, seed)

    def forward(self, x):
        return self.head(self.body(F.relu(self.stem(x))))


# ---- one layer kind at a time

def inside(f, c=None, h=None, **layers):
    """A model of what is to be tested, f (its layers, map), between two convolutions."""
    return model(lambda m, x: m.h(f(m, m.c(x))), c=c or conv(3, 4, 3), **layers, h=h or conv(4, 2, 1))


def split_attention(m, y):
    """As in ResNeSt: branches weighted by a softmax over them, and added up."""
    N, H, W = y.size(0), y.size(2), y.size(3)
    z = F.relu(m.k(y)).reshape(N, 2, 2, H, W)
    weights = m.a(z.sum(1).mean((2, 3), True)).reshape(N, 2, 2, 1, 1)
    return (z * torch.softmax(weights, 1)).sum(1)


def signs(norm):
    """Weights of either sign."""
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1.0, -0.5, 2.0, 0.0]))
        norm.bias.copy_(torch.tensor([0.5, 1.0, -1.0, 2.0]))
    return norm


def parameter(*values):
    return nn.Parameter(torch.tensor(values))


def bilinear(x, corners=False, **size):
    return F.interpolate(x, mode="bilinear", align_corners=corners, **size)


def overwritten(act):
    def f(m, x):
        y = m.c(x)
        out = act(m, y)
        return m.d(out) + y

    return model(f, c=three(3, 4), d=three(4), relu=nn.ReLU(inplace=True))


def functions(m, x):
    """Nothing but functions and methods, and one layer called twice."""

    def convolved(layer, x, **options):
        return F.conv2d(x, layer.weight, layer.bias, **options)

    x = convolved(m.a, x, stride=2).relu_()
    y = torch.add(F.relu(convolved(m.b, x, padding=1)), x)
    y = torch.relu(convolved(m.b, y, padding=1)).add(y)
    return convolved(m.c, torch.cat((y, F.avg_pool2d(F.dropout(y, training=m.training), 3, 1, 1)), dim=1))


class Plus(nn.Sequential):
    def forward(self, x):
        return super().forward(x) + x


def excited(m, y):
    """Squeeze and excitation as published: sizes are read from the map."""
    gate = torch.sigmoid(m.e(F.relu(m.s(y.mean((2, 3))))))
    return y * gate.view(y.size(0), y.size(1), 1, 1)


LAYERS = {
    "stride": inside(lambda m, y: F.relu(y), conv(3, 4, 3, 2), conv(4, 2, 2)),
    "strided shortcut": inside(
        lambda m, y: F.relu(m.a(y) + m.b(y)), a=conv(4, 4, 3, 2, 1), b=conv(4, 4, 1, 2), h=conv(4, 2, 3, padding=1)
    ),
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
    "functional norm": inside(
        lambda m, y: F.relu(F.batch_norm(y, m.b.running_mean, m.b.running_var, m.b.weight, m.b.bias)),
        b=nn.BatchNorm2d(4),
    ),
    # two consumers of the convolution: its norm stays apart
    "shared convolution": inside(lambda m, y: m.b(y) + y, b=nn.BatchNorm2d(4)),
    "module called twice": model(
        lambda m, x: m.b(m.c(F.relu(m.b(m.c(x))))), c=conv(3, 3, 3, padding=1), b=nn.BatchNorm2d(3)
    ),
    "max pool": inside(lambda m, y: F.max_pool2d(y, 3, 2, 1, 1, True)),
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
        c=conv(3, 4, 3), e=conv(4, 4, 2), n=nn.BatchNorm2d(4), h=conv(4, 2, 1),
        d=Model(lambda m, x: stochastic_depth(x, 0.5, "row", m.training)),
    ),
    "learned factors of either sign": inside(
        lambda m, y: m.s * y * m.t.view(1, -1, 1, 1), h=conv(4, 2, 2), s=nn.Parameter(torch.tensor(-0.5)),
        t=parameter(1.0, -2.0, 0.0, 0.5),
    ),
    "a factor and a constant at once": inside(
        lambda m, y: torch.addcmul(m.t, m.s, y, value=0.5) + torch.addcmul(y, y, tensor2=m.s), h=conv(4, 2, 2),
        s=parameter([[0.5]], [[1.0]], [[2.0]], [[0.25]]), t=parameter([[0.5]], [[-1.0]], [[0.0]], [[0.25]]),
    ),
    "a factor that repeats": inside(
        lambda m, y: m.s * y + m.s, conv(3, 1, 3), conv(4, 2, 2), s=parameter([[0.5]], [[-1.0]], [[2.0]], [[0.25]])
    ),
    "unsqueeze, squeeze, transpose": inside(
        lambda m, y: torch.squeeze(torch.swapdims(y.unsqueeze(2).transpose(2, 3).swapaxes(2, 3), 3, 3), 2),
        h=conv(4, 2, 2),
    ),
    "channels taken apart": model(
        lambda m, x: m.c(torch.cat([x[:, 2].unsqueeze(1), x[:, -3][:, None], torch.unsqueeze(x[:, 1], 1)], 1)),
        c=conv(3, 2, 3),
    ),
    "pads of every mode": inside(
        lambda m, y: m.d(F.pad(m.k(m.b(m.a(y))), (1, 2, 0, 1), mode="replicate")), h=conv(4, 2, 2),
        a=nn.ReflectionPad2d((2, 0, 1, 1)), b=nn.ReplicationPad2d(1), k=nn.CircularPad2d((1, 0, 0, 1)),
        d=conv(4, 4, 3, padding=(1, 2), padding_mode="reflect"),
    ),
    # the second reader cannot take the pad in, and a maximum may lie on its zeros
    "zero pad, max pool": inside(
        lambda m, y: (lambda z: F.max_pool2d(z, 2) + m.k(z))(F.pad(y - 1, (0, 1, 2, 0))), k=conv(4, 4, 2, 2)
    ),
    "pad of minus infinity, max pool": inside(
        lambda m, y: F.max_pool2d(m.p(F.max_pool2d(F.pad(y, (1, 0, 1, 2), value=float("-inf")), 2)), 2),
        p=nn.ConstantPad2d((1, 0, 2, 3), 0.5), h=conv(4, 2, 2),
    ),
    "sum of a stack": inside(
        lambda m, y: (torch.stack([y, m.k(y), -1 + y], 1) * torch.softmax(m.w, 0)[None, :, None, None, None]).sum(1),
        k=three(4), h=conv(4, 2, 2), w=parameter(1.0, -1.0, 0.5),
    ),
    "split attention": inside(split_attention, a=conv(2, 4, 1), k=three(4), h=conv(2, 2, 2)),
    "sum over rows": inside(lambda m, y: torch.sum(y, (2, 3), keepdim=True)),
    "gated linear unit": inside(
        lambda m, y: m.a(y) * F.relu(m.b(y)) + m.act(m.k(y)).permute(0, 2, 3, 1).permute(0, 3, 1, 2) * m.d(y),
        **{name: conv(4, 4, 1) for name in "abkd"}, act=nn.GELU(), h=conv(4, 2, 2),
    ),
    "squared ReLU": inside(lambda m, y: 0.5 * F.relu(y) ** 2 + torch.square(F.relu(y)).pow(1.5), h=conv(4, 2, 2)),
    "a norm written out": inside(
        lambda m, y: (lambda z: z / torch.sqrt(z.pow(2).mean(1, keepdim=True) + 1e-6))(y - y.mean(1, keepdim=True)),
        h=conv(4, 2, 2),
    ),
    "a norm written out, its root a factor": inside(
        lambda m, y: (y - y.mean((2, 3), keepdim=True)) * torch.rsqrt(y.square().mean((2, 3), keepdim=True) + 1e-6),
        h=conv(4, 2, 2),
    ),
    "pooling less the map": inside(lambda m, y: y + (m.p(y) - y), p=avg(3, 1, 1)),
    "global response norm": inside(
        lambda m, y: (lambda g: y + m.w * (y * (g / (g.mean(1, keepdim=True) + 1e-6))))(
            y.norm(p=2, dim=(2, 3), keepdim=True)
        ),
        h=conv(4, 2, 2), w=parameter([[0.5]], [[-1.0]], [[2.0]], [[0.25]]),
    ),
    "one row": inside(lambda m, y: torch.cat([y, y[..., 1, :].unsqueeze(-2)], 2)),
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
    "activations": inside(
        lambda m, y: F.leaky_relu(m.a(y), 0.2) + F.hardswish(y), h=conv(4, 2, 2),
        a=nn.Sequential(nn.Hardtanh(), nn.Softplus(beta=2.0), nn.ELU()),
    ),
    "pools, enlarged in between": inside(
        lambda m, y: m.p(y), conv(3, 4, (3, 2), (1, 2), (2, 1)), p=nn.Sequential(
            nn.MaxPool2d(2, 1, 1, dilation=2), avg(3, 2, 1, ceil_mode=True, count_include_pad=False),
            nn.Upsample(scale_factor=2.5), avg(2, 1, divisor_override=3), nn.AdaptiveMaxPool2d((4, None)),
        ),
    ),
    "flattened": inside(
        lambda m, y: m.l(m.p(y).flatten(1)).view(y.size(0), 4, 1, 1), p=nn.AdaptiveAvgPool2d(3), l=nn.Linear(36, 4)
    ),
    # pre-activation networks: the shortcut adds what the activation has overwritten
    "overwritten by a module": overwritten(lambda m, y: m.relu(y)),
    "overwritten by a function": overwritten(lambda m, y: F.relu(y, inplace=True)),
    "overwritten by a method": overwritten(lambda m, y: y.relu_()),
    "in place after a sum in place": inside(
        lambda m, y: (lambda y: m.b(F.relu_(operator.iadd(m.b(y), y))))(m.r(y)), b=three(4), r=nn.ReLU(inplace=True)
    ),
    "functions": model(functions, a=conv(3, 4, 3, 2), b=three(4), c=conv(8, 3, 1)),
    "nested": inside(lambda m, y: m.p(y), p=nn.Sequential(Plus(Plus(three(4), nn.ReLU()), nn.Dropout()))),
}  # fmt: skip
