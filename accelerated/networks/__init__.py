"""Classifiers in fully convolutional form: images (N, 3, H, W) to class response maps (N, num_classes, h, w)."""

from .convert import fully_convolutional
from .small import SmallNet, smallnet
from .vision import resnet18, resnet50, vgg16
from .weights import PRETRAINED, load_pretrained

NETWORKS = {"smallnet": smallnet, "resnet18": resnet18, "resnet50": resnet50, "vgg16": vgg16}

__all__ = [
    "NETWORKS", "PRETRAINED", "SmallNet", "fully_convolutional", "load_pretrained", "network", "resnet18", "resnet50",
    "smallnet", "vgg16",
]  # fmt: skip


def network(name: str, num_classes: int, **options):
    """The network called `name`, one of NETWORKS, with random weights. ValueError for any other name."""
    if name not in NETWORKS:
        raise ValueError(f"unknown network {name!r}; known: {', '.join(NETWORKS)}")
    return NETWORKS[name](num_classes, **options)
