"""The families of classifiers that people use, small: images (N, 3, H, W) -> logits (N, 5).

torchvision's own classes wherever it has the family: with few channels and blocks where they take them as arguments,
and `thinned` where not. What it lacks is written from the structure in its paper.
"""

import torch
import torch.nn.functional as F
from torch import nn

from prm.parity_tests.zoo import Model, avg, conv, randomise

CLASSES = 5


def family(name, seed=0):
    """The named family's classifier in float64, all its parameters random, in evaluation mode; needs torchvision."""
    from torchvision import models

    classifier = {**FAMILIES, **REFUSED}[name](models).double()
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():  # layer scales, norms and tokens, of either sign
        for parameter in classifier.parameters():
            parameter.normal_(0, 0.5, generator=draw)
    return randomise(classifier, seed)


def thinned(build, *args, by=16, **options):
    """A classifier of torchvision's whose widths are fixed, with a `by`-th of the channels in every layer."""

    def n(channels):
        return channels if channels == 3 else channels // by

    def thin(part):
        for name, child in part.named_children():
            setattr(part, name, thin(child))
        if isinstance(part, nn.Conv2d):
            geometry = (part.kernel_size, part.stride, part.padding, part.dilation, part.groups, part.bias is not None)
            return conv(n(part.in_channels), n(part.out_channels), *geometry)
        if isinstance(part, nn.Linear):
            return nn.Linear(n(part.in_features), n(part.out_features))
        return nn.BatchNorm2d(n(part.num_features), part.eps) if isinstance(part, nn.BatchNorm2d) else part

    with torch.device("meta"):  # without memory for the wide one
        wide = build(*args, num_classes=by * CLASSES, **options)
    return thin(wide)


def vgg(models, norm):
    return thinned(models.VGG, models.vgg.make_layers([64, "M", 128, 512, "M"], norm))


def resnet(models, block="Bottleneck", **options):
    return thinned(models.ResNet, getattr(models.resnet, block), [2, 1, 1, 1], **options)


class StandardizedConv2d(nn.Conv2d):
    """Its weight is normalised anew in every forward pass."""

    def forward(self, x):
        w = self.weight
        mean, var = w.mean((1, 2, 3), keepdim=True), w.var((1, 2, 3), keepdim=True, unbiased=False)
        w = (w - mean) / torch.sqrt(var + 1e-5)
        return F.conv2d(x, w, self.bias, self.stride, self.padding, self.dilation, self.groups)


def pre_activation(c):
    def f(m, x):
        out = m.conv1(F.relu(m.norm1(x), inplace=True))
        return x + m.conv2(F.relu(m.norm2(out))) * m.scale

    convs = {f"conv{i}": StandardizedConv2d(c, c, 3, padding=1, bias=False) for i in (1, 2)}
    norms = {"norm1": nn.GroupNorm(2, c), "norm2": nn.InstanceNorm2d(c, affine=True)}
    return Model(f, **norms, **convs, scale=nn.Parameter(torch.zeros(())))


def big_transfer(models):
    """Pre-activation ResNet with group norm and standardised weights; its classifier is a convolution."""
    root = nn.Sequential(
        StandardizedConv2d(3, 6, 7, stride=4, padding=3, bias=False), nn.ConstantPad2d(1, 0), avg(3, 1)
    )
    body = nn.Sequential(pre_activation(6), pre_activation(6))
    head = nn.Sequential(nn.GroupNorm(3, 6), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1))
    return Model(
        lambda m, x: m.conv(m.head(m.body(m.root(x))))[:, :, 0, 0], root=root, body=body, head=head,
        conv=conv(6, CLASSES, 1),
    )  # fmt: skip


class LayerNorm2d(nn.LayerNorm):
    def forward(self, x):
        x = F.layer_norm(x.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias, self.eps)
        return x.permute(0, 3, 1, 2)


class WrittenOutNorm(nn.Module):
    """Layer norm over the channels as plain arithmetic."""

    def __init__(self, c):
        super().__init__()

    def forward(self, x):
        x = x - x.mean(1, keepdim=True)
        return x / torch.sqrt(x.pow(2).mean(1, keepdim=True) + 1e-6)


def convnext_paper(norm=LayerNorm2d):
    """The authors' form: channels last by permute, gamma of length C, mean and layer norm of vectors at the end."""

    def f(m, x):
        x = m.stem(x)
        y = m.dwconv(x).permute(0, 2, 3, 1)
        y = m.pwconv2(m.act(m.pwconv1(m.norm(y))))
        y = (m.gamma * y).permute(0, 3, 1, 2)
        return m.head(m.last_norm((x + y).mean([-2, -1])))

    return Model(
        f, stem=nn.Sequential(conv(3, 6, 4, stride=4), norm(6)), dwconv=conv(6, 6, 7, padding=3, groups=6),
        norm=nn.LayerNorm(6), pwconv1=nn.Linear(6, 12), act=nn.GELU(), pwconv2=nn.Linear(12, 6),
        gamma=nn.Parameter(torch.ones(6)), last_norm=nn.LayerNorm(6), head=nn.Linear(6, CLASSES),
    )  # fmt: skip


def mobilenet_v3(models):
    config = models.mobilenetv3.InvertedResidualConfig
    blocks = [config(8, 3, 16, 8, True, "RE", 1, 1, 1), config(8, 3, 16, 16, True, "HS", 2, 1, 1)]
    return models.MobileNetV3(blocks, last_channel=8, num_classes=CLASSES)


def efficientnet(models):
    """v1's blocks, and one of v2's."""
    kinds = models.efficientnet
    blocks = [kinds.MBConvConfig(2, 3, 1, 8, 8, 2), kinds.FusedMBConvConfig(2, 3, 2, 8, 8, 1)]
    return models.EfficientNet(blocks, 0.2, 0.1, CLASSES, last_channel=8)


def convnext(models):
    blocks = [models.convnext.CNBlockConfig(6, 8, 2), models.convnext.CNBlockConfig(8, None, 1)]
    return models.ConvNeXt(blocks, 0.1, num_classes=CLASSES)


def regnet(models):
    blocks = models.regnet.BlockParams([1, 1], [6, 8], [3, 4], [1.0, 1.0], [2, 1], se_ratio=0.25)
    return models.RegNet(blocks, CLASSES, stem_width=6)


FAMILIES = {
    "AlexNet": lambda models: thinned(models.AlexNet),
    "VGG": lambda models: vgg(models, False),
    "VGG with batch norm": lambda models: vgg(models, True),
    "ResNet-18, -34": lambda models: resnet(models, "BasicBlock"),
    "ResNet-50, -101, -152": resnet,
    "ResNeXt": lambda models: resnet(models, groups=2, width_per_group=32),
    "Wide ResNet": lambda models: resnet(models, width_per_group=128),
    "ResNet v2 with group norm (BiT)": big_transfer,
    "RegNet": regnet,
    "DenseNet": lambda models: models.DenseNet(2, (2, 2), 4, 3, 0.2, CLASSES),
    "GoogLeNet": lambda models: thinned(models.GoogLeNet, by=8, transform_input=True, init_weights=False),
    "Inception v3": lambda models: thinned(models.Inception3, init_weights=False),
    "SqueezeNet": lambda models: thinned(models.SqueezeNet, by=8),
    "ShuffleNet v2": lambda models: models.ShuffleNetV2([2, 1, 1], [6, 8, 10, 12, 14], CLASSES),
    "MobileNet v2": lambda models: models.MobileNetV2(CLASSES, 0.25, [[1, 16, 1, 1], [2, 24, 2, 2]], 2),
    "MobileNet v3": mobilenet_v3,
    "EfficientNet": efficientnet,
    "ConvNeXt": convnext,
    "ConvNeXt, the authors' form": lambda models: convnext_paper(),
    "ConvNeXt, norm written out": lambda models: convnext_paper(WrittenOutNorm),
}
REFUSED = {
    "ViT": lambda models: models.VisionTransformer(32, 8, 1, 2, 8, 16, num_classes=CLASSES),
}
