"""The families of classifiers that people use, small: every kind of layer and every idiom, few channels and blocks.

Each is written from the structure in its paper, as a classifier (N, 3, H, W) -> logits (N, 5) with the family's head.
"""

import torch
import torch.nn.functional as F
from torch import fx, nn

from prm.parity_tests.strategies import randomise

CLASSES = 5


def family(name, seed=0):
    """The named family's classifier in float64, all its parameters random, in evaluation mode."""
    model = {**FAMILIES, **REFUSED}[name]().double()
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():  # layer scales, norms and tokens, of either sign
        for parameter in model.parameters():
            parameter.normal_(0, 0.5, generator=draw)
    return randomise(model, seed)


def conv_norm(c_in, c_out, k=3, stride=1, groups=1, act=nn.ReLU):
    layers = [nn.Conv2d(c_in, c_out, k, stride, k // 2, groups=groups, bias=False), nn.BatchNorm2d(c_out)]
    return nn.Sequential(*layers, *([act(inplace=True)] if act else []))


# ---- without branches


class AlexNet(nn.Module):
    """With the local response norm of the paper; 6 x 6 positions are flattened."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 6, 5, stride=2, padding=2), nn.ReLU(inplace=True), nn.LocalResponseNorm(5, k=2.0),
            nn.MaxPool2d(3, 2), nn.Conv2d(6, 8, 5, padding=2, groups=2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2),
        )  # fmt: skip
        self.avgpool = nn.AdaptiveAvgPool2d((6, 6))
        self.classifier = nn.Sequential(
            nn.Dropout(), nn.Linear(8 * 36, 7), nn.ReLU(inplace=True), nn.Dropout(), nn.Linear(7, CLASSES)
        )

    def forward(self, x):
        x = F.local_response_norm(self.features(x), 3)
        return self.classifier(torch.flatten(self.avgpool(x), 1))


class Vgg(nn.Module):
    def __init__(self, norm):
        super().__init__()
        layers, c_in = [], 3
        for c in (6, "M", 8, 8, "M"):
            if c == "M":
                layers.append(nn.MaxPool2d(2, 2))
                continue
            norms = [nn.BatchNorm2d(c)] if norm else []
            layers += [nn.Conv2d(c_in, c, 3, padding=1), *norms, nn.ReLU(inplace=True)]
            c_in = c
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d((7, 7))
        self.classifier = nn.Sequential(
            nn.Linear(8 * 49, 7), nn.ReLU(True), nn.Dropout(), nn.Linear(7, 7), nn.ReLU(True), nn.Dropout(),
            nn.Linear(7, CLASSES),
        )  # fmt: skip

    def forward(self, x):
        x = self.avgpool(self.features(x))
        return self.classifier(x.view(x.size(0), -1))


# ---- residual


class BasicBlock(nn.Module):
    """One ReLU module works in place in two spots."""

    def __init__(self, c_in, c, stride, **unused):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(c_in, c, 3, stride, 1, bias=False), nn.BatchNorm2d(c)
        self.conv2, self.bn2 = nn.Conv2d(c, c, 3, 1, 1, bias=False), nn.BatchNorm2d(c)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = conv_norm(c_in, c, 1, stride, act=None) if stride > 1 or c_in != c else None

    def forward(self, x):
        identity = x
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        return self.relu(out)


class Bottleneck(nn.Module):
    def __init__(self, c_in, c, stride, groups=1, width=4):
        super().__init__()
        self.a, self.b = conv_norm(c_in, width, 1), conv_norm(width, width, 3, stride, groups)
        self.c = conv_norm(width, c, 1, act=None)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = conv_norm(c_in, c, 1, stride, act=None) if stride > 1 or c_in != c else None

    def forward(self, x):
        out = self.c(self.b(self.a(x)))
        out += x if self.downsample is None else self.downsample(x)
        return self.relu(out)


class ResNet(nn.Module):
    def __init__(self, block, **options):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 7, stride=2, padding=3, bias=False), nn.BatchNorm2d(8)
        self.relu, self.maxpool = nn.ReLU(inplace=True), nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = nn.Sequential(block(8, 8, 1, **options), block(8, 8, 1, **options))
        self.layer2 = nn.Sequential(block(8, 12, 2, **options))
        self.avgpool, self.fc = nn.AdaptiveAvgPool2d((1, 1)), nn.Linear(12, CLASSES)

    def forward(self, x):
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        return self.fc(torch.flatten(self.avgpool(self.layer2(self.layer1(x))), 1))


class StandardizedConv2d(nn.Conv2d):
    """Its weight is normalised anew in every forward pass."""

    def forward(self, x):
        w = self.weight
        mean, var = w.mean((1, 2, 3), keepdim=True), w.var((1, 2, 3), keepdim=True, unbiased=False)
        w = (w - mean) / torch.sqrt(var + 1e-5)
        return F.conv2d(x, w, self.bias, self.stride, self.padding, self.dilation, self.groups)


class PreActivation(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(2, c), nn.InstanceNorm2d(c, affine=True)
        self.conv1, self.conv2 = (StandardizedConv2d(c, c, 3, padding=1, bias=False) for _ in range(2))
        self.scale = nn.Parameter(torch.zeros(()))

    def forward(self, x):
        out = self.conv1(F.relu(self.norm1(x), inplace=True))
        out = self.conv2(F.relu(self.norm2(out)))
        return x + out * self.scale


class BigTransfer(nn.Module):
    """Pre-activation ResNet with group norm and standardised weights; its classifier is a convolution."""

    def __init__(self):
        super().__init__()
        self.root = nn.Sequential(
            StandardizedConv2d(3, 6, 7, stride=4, padding=3, bias=False), nn.ConstantPad2d(1, 0), nn.AvgPool2d(3, 1)
        )
        self.body = nn.Sequential(PreActivation(6), PreActivation(6))
        self.head = nn.Sequential(nn.GroupNorm(3, 6), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1))
        self.conv = nn.Conv2d(6, CLASSES, 1)

    def forward(self, x):
        x = self.conv(self.head(self.body(self.root(x))))
        return x[:, :, 0, 0]


class SqueezeExcite(nn.Module):
    def __init__(self, c, squeeze, scale_activation):
        super().__init__()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc1, self.fc2 = nn.Conv2d(c, squeeze, 1), nn.Conv2d(squeeze, c, 1)
        self.activation, self.scale_activation = nn.ReLU(), scale_activation()

    def forward(self, x):
        scale = self.scale_activation(self.fc2(self.activation(self.fc1(self.avgpool(x)))))
        return scale * x


class SeLayer(nn.Module):
    """Linear layers, views of sizes read from the map, and expand_as."""

    def __init__(self, c):
        super().__init__()
        self.fc = nn.Sequential(nn.Linear(c, 2, bias=False), nn.ReLU(inplace=True), nn.Linear(2, c), nn.Sigmoid())

    def forward(self, x):
        b, c, _, _ = x.size()
        y = self.fc(F.adaptive_avg_pool2d(x, 1).view(b, c)).view(b, c, 1, 1)
        return x * y.expand_as(x)


class RegNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = conv_norm(3, 6, 3, 2)
        self.proj = conv_norm(6, 8, 1, 2, act=None)
        self.f = nn.Sequential(
            conv_norm(6, 8, 1), conv_norm(8, 8, 3, 2, groups=2), SeLayer(8), conv_norm(8, 8, 1, act=None)
        )
        self.activation = nn.ReLU(inplace=True)
        self.avgpool, self.fc = nn.AdaptiveAvgPool2d((1, 1)), nn.Linear(8, CLASSES)

    def forward(self, x):
        x = self.stem(x)
        x = self.activation(self.proj(x) + self.f(x))
        return self.fc(self.avgpool(x).flatten(start_dim=1))


# ---- branches that are joined


class DenseLayer(nn.Module):
    """Takes the list of all maps before it."""

    def __init__(self, c_in, growth):
        super().__init__()
        self.norm1, self.relu1, self.conv1 = nn.BatchNorm2d(c_in), nn.ReLU(inplace=True), nn.Conv2d(c_in, 6, 1)
        self.norm2, self.relu2 = nn.BatchNorm2d(6), nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(6, growth, 3, padding=1, bias=False)
        self.drop_rate = 0.2

    def forward(self, maps):
        x = self.conv1(self.relu1(self.norm1(torch.cat(maps, 1))))
        x = self.conv2(self.relu2(self.norm2(x)))
        return F.dropout(x, p=self.drop_rate, training=self.training)


class DenseBlock(nn.ModuleDict):
    def __init__(self, c_in, growth, count):
        super().__init__({f"layer{i}": DenseLayer(c_in + i * growth, growth) for i in range(count)})

    def forward(self, x):
        maps = [x]
        for layer in self.values():
            maps.append(layer(maps))
        return torch.cat(maps, 1)


class DenseNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Sequential()
        for name, part in {
            "conv0": nn.Conv2d(3, 4, 7, stride=2, padding=3, bias=False), "norm0": nn.BatchNorm2d(4),
            "relu0": nn.ReLU(inplace=True), "pool0": nn.MaxPool2d(3, stride=2, padding=1),
            "block1": DenseBlock(4, 2, 2), "transition1": nn.Sequential(
                nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.Conv2d(8, 4, 1, bias=False), nn.AvgPool2d(2, 2)),
            "block2": DenseBlock(4, 3, 2), "norm5": nn.BatchNorm2d(10),
        }.items():  # fmt: skip
            self.features.add_module(name, part)
        self.classifier = nn.Linear(10, CLASSES)

    def forward(self, x):
        out = F.relu(self.features(x), inplace=True)
        out = F.adaptive_avg_pool2d(out, (1, 1))
        return self.classifier(torch.flatten(out, 1))


class BasicConv2d(nn.Module):
    def __init__(self, c_in, c_out, **options):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(c_in, c_out, bias=False, **options), nn.BatchNorm2d(c_out, eps=0.001)

    def forward(self, x):
        return F.relu(self.bn(self.conv(x)), inplace=True)


class Inception(nn.Module):
    def __init__(self, c_in):
        super().__init__()
        self.branch1 = BasicConv2d(c_in, 3, kernel_size=1)
        self.branch2 = nn.Sequential(BasicConv2d(c_in, 2, kernel_size=1), BasicConv2d(2, 3, kernel_size=3, padding=1))
        self.branch3 = nn.Sequential(
            nn.MaxPool2d(3, stride=1, padding=1, ceil_mode=True), BasicConv2d(c_in, 2, kernel_size=1)
        )

    def forward(self, x):
        return torch.cat([branch(x) for branch in (self.branch1, self.branch2, self.branch3)], 1)


class Auxiliary(nn.Module):
    """A second classifier halfway, for training alone."""

    def __init__(self, c_in):
        super().__init__()
        self.conv, self.fc = BasicConv2d(c_in, 4, kernel_size=1), nn.Linear(4 * 16, CLASSES)

    def forward(self, x):
        return self.fc(torch.flatten(self.conv(F.adaptive_avg_pool2d(x, (4, 4))), 1))


class GoogLeNet(nn.Module):
    """With the input's normalisation undone channel by channel."""

    def __init__(self):
        super().__init__()
        self.transform_input = True
        self.conv1 = BasicConv2d(3, 6, kernel_size=7, stride=2, padding=3)
        self.maxpool = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        self.inception3, self.inception4, self.aux = Inception(6), Inception(8), Auxiliary(8)
        self.avgpool, self.dropout, self.fc = nn.AdaptiveAvgPool2d((1, 1)), nn.Dropout(0.2), nn.Linear(8, CLASSES)

    def forward(self, x):
        if self.transform_input:
            r = torch.unsqueeze(x[:, 0], 1) * (0.229 / 0.5) + (0.485 - 0.5) / 0.5
            g = torch.unsqueeze(x[:, 1], 1) * (0.224 / 0.5) + (0.456 - 0.5) / 0.5
            b = torch.unsqueeze(x[:, 2], 1) * (0.225 / 0.5) + (0.406 - 0.5) / 0.5
            x = torch.cat((r, g, b), 1)
        x = self.inception3(self.maxpool(self.conv1(x)))
        aux = self.aux(x) if self.training else None
        x = self.inception4(x)
        x = self.fc(self.dropout(torch.flatten(self.avgpool(x), 1)))
        return (x, aux) if self.training else x


class InceptionV3(nn.Module):
    """Asymmetric kernels, lists of lists that are joined, pooling branches written as functions."""

    def __init__(self):
        super().__init__()
        self.stem = BasicConv2d(3, 6, kernel_size=3, stride=2)
        self.one = BasicConv2d(6, 3, kernel_size=1)
        self.seven = nn.Sequential(
            BasicConv2d(6, 3, kernel_size=(1, 7), padding=(0, 3)), BasicConv2d(3, 3, kernel_size=(7, 1), padding=(3, 0))
        )
        self.pool = BasicConv2d(6, 2, kernel_size=1)
        self.reduce = BasicConv2d(8, 4, kernel_size=3, stride=2)
        self.aux = Auxiliary(8)
        self.split1 = BasicConv2d(12, 4, kernel_size=1)
        self.split2a, self.split2b = (
            BasicConv2d(4, 2, kernel_size=(1, 3), padding=(0, 1)), BasicConv2d(4, 2, kernel_size=(3, 1), padding=(1, 0))
        )  # fmt: skip
        self.avgpool, self.fc = nn.AdaptiveAvgPool2d((1, 1)), nn.Linear(8, CLASSES)

    def forward(self, x):
        x = self.stem(x)
        pooled = self.pool(F.avg_pool2d(x, kernel_size=3, stride=1, padding=1))
        x = torch.cat([self.one(x), self.seven(x), pooled], 1)
        aux = self.aux(x) if self.training else None
        x = torch.cat([self.reduce(x), F.max_pool2d(x, kernel_size=3, stride=2)], 1)
        y = self.split1(x)
        y = [y, torch.cat([self.split2a(y), self.split2b(y)], 1)]
        x = torch.cat(y, 1)
        x = torch.flatten(F.dropout(self.avgpool(x), training=self.training), 1)
        x = self.fc(x)
        return (x, aux) if self.training else x


class Fire(nn.Module):
    def __init__(self, c_in, squeeze, expand):
        super().__init__()
        self.squeeze, self.squeeze_activation = nn.Conv2d(c_in, squeeze, 1), nn.ReLU(inplace=True)
        self.expand1x1, self.expand1x1_activation = nn.Conv2d(squeeze, expand, 1), nn.ReLU(inplace=True)
        self.expand3x3 = nn.Conv2d(squeeze, expand, 3, padding=1)
        self.expand3x3_activation = nn.ReLU(inplace=True)

    def forward(self, x):
        x = self.squeeze_activation(self.squeeze(x))
        return torch.cat(
            [self.expand1x1_activation(self.expand1x1(x)), self.expand3x3_activation(self.expand3x3(x))], 1
        )


class SqueezeNet(nn.Module):
    """Its classifier is a convolution, before the pooling."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 6, 7, stride=2), nn.ReLU(inplace=True), nn.MaxPool2d(3, stride=2, ceil_mode=True),
            Fire(6, 3, 4), nn.MaxPool2d(3, stride=2, ceil_mode=True), Fire(8, 3, 4),
        )  # fmt: skip
        self.classifier = nn.Sequential(
            nn.Dropout(p=0.5), nn.Conv2d(8, CLASSES, 1), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d((1, 1))
        )

    def forward(self, x):
        return torch.flatten(self.classifier(self.features(x)), 1)


class ShuffleUnit(nn.Module):
    def __init__(self, c_in, c, stride):
        super().__init__()
        self.stride, half = stride, c // 2
        self.branch1 = nn.Sequential(
            conv_norm(c_in, c_in, 3, 2, c_in, act=None), conv_norm(c_in, half, 1)
        ) if stride > 1 else None  # fmt: skip
        self.branch2 = nn.Sequential(
            conv_norm(c_in if stride > 1 else half, half, 1), conv_norm(half, half, 3, stride, half, act=None),
            conv_norm(half, half, 1),
        )  # fmt: skip

    def forward(self, x):
        if self.stride == 1:
            x1, x2 = x.chunk(2, dim=1)
            out = torch.cat((x1, self.branch2(x2)), dim=1)
        else:
            out = torch.cat((self.branch1(x), self.branch2(x)), dim=1)
        n, channels, height, width = out.size()
        out = out.view(n, 2, channels // 2, height, width)
        out = torch.transpose(out, 1, 2).contiguous()
        return out.view(n, channels, height, width)


class ShuffleNetV2(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.maxpool = conv_norm(3, 6, 3, 2), nn.MaxPool2d(3, stride=2, padding=1)
        self.stage2 = nn.Sequential(ShuffleUnit(6, 8, 2), ShuffleUnit(8, 8, 1))
        self.conv5, self.fc = conv_norm(8, 10, 1), nn.Linear(10, CLASSES)

    def forward(self, x):
        x = self.conv5(self.stage2(self.maxpool(self.conv1(x))))
        return self.fc(x.mean([2, 3]))


# ---- mobile


class InvertedResidual(nn.Module):
    def __init__(self, c_in, c, stride, act=nn.ReLU6, gate=None):
        super().__init__()
        self.use_res_connect = stride == 1 and c_in == c
        wide = 2 * c_in
        self.conv = nn.Sequential(
            conv_norm(c_in, wide, 1, act=act), conv_norm(wide, wide, 3, stride, wide, act=act),
            *([SqueezeExcite(wide, 2, gate)] if gate else []), conv_norm(wide, c, 1, act=None),
        )  # fmt: skip

    def forward(self, x):
        return x + self.conv(x) if self.use_res_connect else self.conv(x)


class MobileNetV2(nn.Module):
    """The mean over one axis and then the other."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            conv_norm(3, 6, 3, 2, act=nn.ReLU6), InvertedResidual(6, 6, 1), InvertedResidual(6, 8, 2),
            InvertedResidual(8, 8, 1), conv_norm(8, 10, 1, act=nn.ReLU6),
        )  # fmt: skip
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(10, CLASSES))

    def forward(self, x):
        return self.classifier(self.features(x).mean(3).mean(2))


class MobileNetV3(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            conv_norm(3, 6, 3, 2, act=nn.Hardswish), InvertedResidual(6, 6, 1, nn.ReLU, nn.Hardsigmoid),
            InvertedResidual(6, 8, 2, nn.Hardswish, nn.Hardsigmoid), conv_norm(8, 10, 1, act=nn.Hardswish),
        )  # fmt: skip
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(
            nn.Linear(10, 8), nn.Hardswish(inplace=True), nn.Dropout(p=0.2, inplace=True), nn.Linear(8, CLASSES)
        )

    def forward(self, x):
        return self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))


def stochastic_depth(input, p, mode, training=True):
    """Leaves out a branch of whole images at random; nothing in evaluation mode."""
    if not training or p == 0.0:
        return input
    kept = (torch.rand(input.shape[0], device=input.device) >= p).to(input.dtype).view(-1, 1, 1, 1)
    return input * kept / (1 - p)


fx.wrap("stochastic_depth")


class StochasticDepth(nn.Module):
    def __init__(self, p):
        super().__init__()
        self.p, self.mode = p, "row"

    def forward(self, x):
        return stochastic_depth(x, self.p, self.mode, self.training)


class MBConv(nn.Module):
    """Squeeze and excite with the mean, SiLU in both forms, and the sum taken in place."""

    def __init__(self, c):
        super().__init__()
        self.expand, self.depthwise = conv_norm(c, 2 * c, 1, act=nn.SiLU), conv_norm(2 * c, 2 * c, 3, 1, 2 * c, nn.SiLU)
        self.reduce_conv, self.expand_conv = nn.Conv2d(2 * c, 2, 1), nn.Conv2d(2, 2 * c, 1)
        self.project, self.stochastic_depth = conv_norm(2 * c, c, 1, act=None), StochasticDepth(0.1)

    def forward(self, x):
        y = self.depthwise(self.expand(x))
        gate = self.expand_conv(F.silu(self.reduce_conv(y.mean((2, 3), keepdim=True))))
        result = self.stochastic_depth(self.project(y * gate.sigmoid()))
        result += x
        return result


class EfficientNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            conv_norm(3, 6, 3, 2, act=nn.SiLU), MBConv(6), MBConv(6), conv_norm(6, 8, 3, 2, act=nn.SiLU)
        )
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(nn.Dropout(p=0.2, inplace=True), nn.Linear(8, CLASSES))

    def forward(self, x):
        return self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))


# ---- with layer norm


class Permute(nn.Module):
    def __init__(self, *dims):
        super().__init__()
        self.dims = dims

    def forward(self, x):
        return torch.permute(x, self.dims)


class LayerNorm2d(nn.LayerNorm):
    def forward(self, x):
        x = F.layer_norm(x.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias, self.eps)
        return x.permute(0, 3, 1, 2)


class ConvNextBlock(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.block = nn.Sequential(
            nn.Conv2d(c, c, 7, padding=3, groups=c), Permute(0, 2, 3, 1), nn.LayerNorm(c, eps=1e-6),
            nn.Linear(c, 2 * c), nn.GELU(), nn.Linear(2 * c, c), Permute(0, 3, 1, 2),
        )  # fmt: skip
        self.layer_scale = nn.Parameter(torch.ones(c, 1, 1))
        self.stochastic_depth = StochasticDepth(0.1)

    def forward(self, x):
        result = self.layer_scale * self.block(x)
        result = self.stochastic_depth(result)
        result += x
        return result


class ConvNext(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            nn.Sequential(nn.Conv2d(3, 6, 4, stride=4), LayerNorm2d(6)),
            nn.Sequential(ConvNextBlock(6), ConvNextBlock(6)),
            nn.Sequential(LayerNorm2d(6), nn.Conv2d(6, 8, 2, stride=2)),
        )
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(LayerNorm2d(8), nn.Flatten(1), nn.Linear(8, CLASSES))

    def forward(self, x):
        return self.classifier(self.avgpool(self.features(x)))


class WrittenOutNorm(nn.Module):
    """Layer norm over the channels as plain arithmetic: it divides by, and subtracts, what depends on the image."""

    def __init__(self, c):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(c)), nn.Parameter(torch.zeros(c))

    def forward(self, x):
        mean = x.mean(1, keepdim=True)
        var = (x - mean).pow(2).mean(1, keepdim=True)
        x = (x - mean) / torch.sqrt(var + 1e-6)
        return self.weight[:, None, None] * x + self.bias[:, None, None]


class ConvNextPaper(nn.Module):
    """The authors' form: channels last by permute, gamma of length C, mean and layer norm of vectors at the end."""

    def __init__(self, norm=LayerNorm2d):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 4, stride=4), norm(6))
        self.dwconv, self.norm = nn.Conv2d(6, 6, 7, padding=3, groups=6), nn.LayerNorm(6)
        self.pwconv1, self.act, self.pwconv2 = nn.Linear(6, 12), nn.GELU(), nn.Linear(12, 6)
        self.gamma = nn.Parameter(torch.ones(6))
        self.last_norm, self.head = nn.LayerNorm(6), nn.Linear(6, CLASSES)

    def forward(self, x):
        x = self.stem(x)
        y = self.dwconv(x).permute(0, 2, 3, 1)
        y = self.pwconv2(self.act(self.pwconv1(self.norm(y))))
        y = (self.gamma * y).permute(0, 3, 1, 2)
        return self.head(self.last_norm((x + y).mean([-2, -1])))


class VisionTransformer(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv_proj = nn.Conv2d(3, 8, 8, stride=8)
        self.class_token, self.position = nn.Parameter(torch.zeros(1, 1, 8)), nn.Parameter(torch.zeros(1, 17, 8))
        self.norm1, self.norm2, self.last_norm = nn.LayerNorm(8), nn.LayerNorm(8), nn.LayerNorm(8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x):
        x = self.conv_proj(x)
        n, c, _, _ = x.shape
        x = x.reshape(n, c, -1).permute(0, 2, 1)
        x = torch.cat([self.class_token.expand(n, -1, -1), x], dim=1) + self.position
        y = self.norm1(x)
        y, _ = self.attention(y, y, y, need_weights=False)
        x = x + y
        x = x + self.mlp(self.norm2(x))
        return self.head(self.last_norm(x)[:, 0])


FAMILIES = {
    "AlexNet": AlexNet,
    "VGG": lambda: Vgg(norm=False),
    "VGG with batch norm": lambda: Vgg(norm=True),
    "ResNet-18, -34": lambda: ResNet(BasicBlock),
    "ResNet-50, -101, -152": lambda: ResNet(Bottleneck),
    "ResNeXt": lambda: ResNet(Bottleneck, groups=2),
    "Wide ResNet": lambda: ResNet(Bottleneck, width=12),
    "ResNet v2 with group norm (BiT)": BigTransfer,
    "RegNet": RegNet,
    "DenseNet": DenseNet,
    "GoogLeNet": GoogLeNet,
    "Inception v3": InceptionV3,
    "SqueezeNet": SqueezeNet,
    "ShuffleNet v2": ShuffleNetV2,
    "MobileNet v2": MobileNetV2,
    "MobileNet v3": MobileNetV3,
    "EfficientNet": EfficientNet,
    "ConvNeXt": ConvNext,
    "ConvNeXt, the authors' form": ConvNextPaper,
}
REFUSED = {
    "ConvNeXt, norm written out": lambda: ConvNextPaper(WrittenOutNorm),
    "ViT": VisionTransformer,
}
