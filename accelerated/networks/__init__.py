"""Classifiers in fully convolutional form: images (N, 3, H, W) to class response maps (N, num_classes, h, w)."""

from functools import partial

from .convert import fully_convolutional
from .efficientnet_lite import VARIANTS, efficientnet_lite
from .huggingface import PREFIX as HUGGING_FACE
from .huggingface import huggingfaces
from .small import SmallNet, smallnet
from .timm_models import PREFIX as TIMM
from .timm_models import timms
from .vision import of_torchvision, resnet18, resnet50, torchvisions, vgg16
from .weights import load_pretrained

NETWORKS = {"smallnet": smallnet, "resnet18": resnet18, "resnet50": resnet50, "vgg16": vgg16}
NETWORKS |= {name: partial(efficientnet_lite, name) for name in VARIANTS}

__all__ = [
    "NETWORKS", "SmallNet", "fully_convolutional", "load_pretrained", "network", "resnet18", "resnet50",
    "smallnet", "vgg16",
]  # fmt: skip


def network(name: str, num_classes: int, **options):
    """The network called `name` with random weights: one of NETWORKS, any classifier of torchvision's by its name
    there, timm/NAME, or hf/NAME of Hugging Face's. ValueError for any other name, and for a classifier that has no
    fully convolutional form."""
    if name in NETWORKS:
        return NETWORKS[name](num_classes, **options)
    if name.startswith(TIMM):
        return timms(name, num_classes, **options)
    if name.startswith(HUGGING_FACE):
        return huggingfaces(name, num_classes, **options)
    if not of_torchvision(name):
        known = f"{', '.join(NETWORKS)}, torchvision's classifiers, timm/NAME and hf/NAME"
        raise ValueError(f"unknown network {name!r}; known: {known}")
    return torchvisions(name, num_classes, **options)
