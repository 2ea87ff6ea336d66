"""Weights to start from: torchvision's files, from disk or downloaded with a checksum, and networks trained here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from prm import InputError
from prm.files import reason


def load_pretrained(
    model: nn.Module, source: str | Path | dict[str, torch.Tensor],
    renamed: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]] = dict
) -> list[str]:
    """Load weights with torchvision's parameter names into a network of this package.

    A linear layer's weight is reshaped for the convolution that took its place. The classifier is left as initialised
    where the file's has another shape (other classes) or none; every other parameter must be there.

    Parameters
    ----------
    source : path of a .pth or .safetensors file, an http(s) address of a file named ...-<start of its sha256>.pth, or
        what such a file holds
    renamed : what is read, under the network's names, where these are not torchvision's

    Returns the names of parameters left as initialised. Raises InputError for an unreadable file, a download that fails
    or has the wrong checksum, and a file of another network, naming the first parameter that does not fit.
    """
    state = source if isinstance(source, dict) else _read(source)
    source = "these weights" if isinstance(source, dict) else source
    if not isinstance(state, dict) or not all(isinstance(t, torch.Tensor) for t in state.values()):
        raise InputError(f"{source}: not a weight file (it holds no table of named tensors)")
    return _load(model, renamed(state), source)


def load_features(model: nn.Module, state: dict[str, torch.Tensor], source: str | Path) -> list[str]:
    """Load all but the classifier of a network trained here, as the start of another training.

    The classifier is left as initialised even where it would fit, as when the paper's networks start from ImageNet: it
    was trained for other classes or another aggregation. The input must be normalised as that network's was.

    Parameters
    ----------
    state : the trained network's parameters and buffers by name, such as `Checkpoint.state`
    source : where they are from, for messages

    Returns and raises as `load_pretrained`.
    """
    classifier = _classifier_names(model)
    return _load(model, {name: tensor for name, tensor in state.items() if name not in classifier}, source)


def checkpoint_page(source: str | Path) -> Path | None:
    """What `load_checkpoint` takes, where `source` is a checkpoint: its folder, its page or the weights that it names.

    None for anything else, which `load_pretrained` takes. A checkpoint also says how its input was normalised.
    """
    path = Path(source)
    if path.is_dir() or path.suffix == ".json":
        return path
    page = path.with_name(path.name.partition(".weights.")[0] + ".json")
    return page if page.is_file() and path.name in page.read_text(errors="replace") else None


def _load(model: nn.Module, state: dict[str, torch.Tensor], source: str | Path) -> list[str]:
    own = model.state_dict()
    classifier = _classifier_names(model)
    fitting, left = {}, []
    for name, tensor in own.items():
        given = state.get(name)
        if given is not None and given.numel() == tensor.numel() and given.shape[:1] == tensor.shape[:1]:
            fitting[name] = given.reshape(tensor.shape)
        elif name in classifier or name.endswith("num_batches_tracked"):
            left.append(name)
        else:
            found = "is missing" if given is None else f"is {tuple(given.shape)}"
            raise InputError(f"{source}: not weights of this network: {name} {found}, expected {tuple(tensor.shape)}")
    model.load_state_dict(fitting, strict=False)
    return left


def classifier_of(model: nn.Module) -> tuple[str, nn.Conv2d]:
    """The last convolution, whose number of classes the user chooses, and its name."""
    return [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Conv2d)][-1]


def _classifier_names(model: nn.Module) -> set[str]:
    last, _ = classifier_of(model)
    return {f"{last}.weight", f"{last}.bias"}


def _read(source: str | Path) -> dict[str, torch.Tensor]:
    try:
        if str(source).startswith(("http://", "https://")):
            return torch.hub.load_state_dict_from_url(
                str(source), map_location="cpu", check_hash=True, progress=True, weights_only=True
            )
        if not Path(source).is_file():
            raise InputError(f"{source}: no such weight file")
        if Path(source).suffix == ".safetensors":
            return load_file(source)
        return torch.load(source, map_location="cpu", weights_only=True)
    except InputError:
        raise
    except (OSError, RuntimeError, SafetensorError, ValueError, EOFError, KeyError) as error:
        raise InputError(f"{source}: weights cannot be read ({reason(error)[:200]})") from error
    except Exception as error:  # unpickling raises whatever the bytes suggest
        raise InputError(f"{source}: not a weight file ({type(error).__name__})") from error
