"""Hugging Face's image classifiers, "hf/NAME", where transformers is installed: fully convolutional, their own names.

NAME is a repository of the hub, such as microsoft/resnet-50, or a folder that `save_pretrained` wrote.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from prm import InputError
from prm.files import reason

from .convert import made_convolutional

PREFIX = "hf/"


def huggingfaces(name: str, num_classes: int) -> nn.Module:
    """The classifier with random weights, (N, 3, H, W) to class response maps.

    InputError where there is none of that name; ValueError, in one line, where it has no fully convolutional form.
    """
    config = huggingfaces_config(name)
    config.num_labels = num_classes
    return made_convolutional(_had(name, lambda transformers, _: _classifiers(transformers).from_config(config)))


def huggingfaces_config(name: str) -> Any:
    """The classifier's configuration: id2label, num_labels. Raises InputError without one."""
    config = _had(name, lambda transformers, source: transformers.AutoConfig.from_pretrained(source))
    if (channels := getattr(config, "num_channels", 3)) != 3:
        raise InputError(f"{name}: reads pictures of {channels} channels, and these have 3 (red, green, blue)")
    return config


def huggingfaces_input(name: str) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of its input by channel, of values in [0, 1]. Raises InputError without them."""
    found = _had(name, lambda transformers, source: transformers.AutoImageProcessor.from_pretrained(source))
    return list(found.image_mean), list(found.image_std)


def huggingfaces_weights(name: str) -> dict[str, Tensor]:
    """Its weights by Hugging Face's own download. Raises InputError where they cannot be had."""
    return _had(name, lambda transformers, source: _classifiers(transformers).from_pretrained(source).state_dict())


def _classifiers(transformers: Any) -> Any:
    return transformers.AutoModelForImageClassification


def _had(name: str, get: Callable[[Any, str], Any]) -> Any:
    try:
        import transformers
    except ImportError as error:
        raise InputError(f"{name} needs transformers, which cannot be imported ({error}): pip install transformers"
                         ) from error  # fmt: skip
    try:
        return get(transformers, name.removeprefix(PREFIX))
    except Exception as error:  # whatever a download, or a network of another kind, stumbles over
        raise InputError(f"{name}: no image classifier of Hugging Face's, or it cannot be had ({reason(error)[:200]})"
                         ) from error  # fmt: skip
