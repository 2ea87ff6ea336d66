"""timm's classifiers, "timm/NAME", where that package is installed: fully convolutional, parameter names as there."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from prm import InputError
from prm.files import reason

from .convert import made_convolutional

PREFIX = "timm/"


def timms(name: str, num_classes: int, **options) -> nn.Module:
    """The classifier of timm's with random weights, (N, 3, H, W) to class response maps.

    ValueError, in one line, for a name that timm does not know and where it has no fully convolutional form.
    """
    return made_convolutional(_created(name, num_classes=num_classes, **options))


def timms_config(name: str) -> Any:
    """timm's `PretrainedCfg` of the classifier: mean, std, input_size, num_classes. Raises InputError without one."""
    found = _timm(name).get_pretrained_cfg(name.removeprefix(PREFIX))
    if found is None:
        raise InputError(f"timm knows no pretrained {name.removeprefix(PREFIX)}; `timm.list_pretrained()` lists them")
    return found


def timms_weights(name: str) -> dict[str, Tensor]:
    """The weights by timm's own download. Raises InputError where they cannot be had."""
    try:
        return _created(name, pretrained=True).state_dict()
    except Exception as error:  # whatever a download stumbles over
        why = reason(error)[:200]
        raise InputError(f"{name}: its weights cannot be had ({why}); bring a file: --weights") from error


def _created(name: str, **options) -> nn.Module:
    try:
        return _timm(name).create_model(name.removeprefix(PREFIX), **options)
    except RuntimeError as error:
        raise ValueError(f"timm: {reason(error)}") from error


def _timm(name: str) -> Any:
    try:
        import timm
    except ImportError as error:
        raise InputError(f"{name} needs timm, which cannot be imported ({error}): pip install timm") from error
    return timm
