"""torchvision's VGG16 and ResNets as fully convolutional classifiers, parameter names as theirs, with random weights.

torchvision is imported with the first such network alone: everything else runs without it.
"""

from __future__ import annotations

from importlib.util import find_spec

from torch import nn

from prm import InputError

from .convert import made_convolutional
from .resnet50 import ResNet50


def resnet18(num_classes: int) -> nn.Module:
    """ResNet-18: (N, 3, H, W) to class response maps (N, num_classes, ceil(H / 32), ceil(W / 32))."""
    return made_convolutional(_models("resnet18").resnet18(num_classes=num_classes))


def resnet50(num_classes: int) -> nn.Module:
    """ResNet-50, its stride in the 3x3 convolutions; maps as resnet18's. Without torchvision: `ResNet50`."""
    if not find_spec("torchvision"):
        return ResNet50(num_classes)
    return made_convolutional(_models("resnet50").resnet50(num_classes=num_classes))


def vgg16(num_classes: int, head: str = "conv") -> nn.Module:
    """VGG16: (N, 3, H, W) to class response maps (N, num_classes, H // 32, W // 32).

    head="conv" (default, the paper's): a 1x1 classifier on the features.
    head="fc": the fully connected layers as 7x7 (padding 3) and 1x1 convolutions (section 3.1), so that their
    pretrained weights serve; one response per feature position.
    """
    if head not in ("conv", "fc"):
        raise ValueError(f'head must be "conv" or "fc", not {head!r}')
    vgg = _models("vgg16").vgg
    features = vgg.make_layers(vgg.cfgs["D"])
    if head == "fc":
        model = made_convolutional(vgg.VGG(features, num_classes, init_weights=False))
    else:
        model = nn.Sequential()
        model.features, model.classifier = features, nn.Conv2d(512, num_classes, 1)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return model


def of_torchvision(name: str) -> bool:
    """Whether torchvision is installed and has a classifier of this name."""
    return bool(find_spec("torchvision")) and name in _models(name).list_models(module=_models(name))


def torchvisions(name: str, num_classes: int, **options) -> nn.Module:
    """Any classifier of torchvision's, (N, 3, H, W) to class response maps; parameter names as there. ValueError, in
    one line, where it has no fully convolutional form."""
    return made_convolutional(_models(name).get_model(name, num_classes=num_classes, **options))


def _models(name: str):
    """The module torchvision.models. Raises InputError where torchvision is not installed."""
    try:
        from torchvision import models
    except ImportError as error:
        raise InputError(
            f"the network {name} needs torchvision, which cannot be imported ({error}); "
            "install it, or take smallnet or resnet50"
        ) from error
    return models
