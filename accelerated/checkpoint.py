"""Checkpoints: a JSON page that says what the network is and how it was made, and safetensors files with its weights.

The JSON is written last and names the other files, so a write that is cut short leaves the previous checkpoint whole.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from prm import InputError
from prm.files import atomic_write, reason

from .aggregation import aggregation
from .networks import network

FORMAT = "prm-checkpoint-1"
SHIPPED = Path(__file__).parent / "networks" / "nuclei-prm.json"
"""The classifier that comes with the package: nuclei in microscopy, trained from tile labels only."""


@dataclass
class Checkpoint:
    """A trained network and what is needed to use and to go on training it.

    network : {"name": one of NETWORKS, "options": its keyword arguments}
    class_names : one name a class response map
    input : {"mean", "std": per channel, of values in [0, 1]; "size": training crop in pixels}
    aggregation : {"name": one of AGGREGATIONS, "options": its keyword arguments}
    training : settings, seed and command; `epoch` counts the finished ones
    segmentation : settings that `prm segment` takes as its defaults
    classes : {} for answers in the network's own classes, each with its sigmoid; else {"exclusive": whether they
        exclude each other, "groups": name -> indices, for answers in groups of them}
    state, momentum : parameters and buffers by name; the optimiser's momentum by parameter name
    """

    network: dict
    class_names: list[str]
    input: dict
    aggregation: dict
    training: dict = field(default_factory=dict)
    segmentation: dict = field(default_factory=dict)
    figures: dict = field(default_factory=dict)
    classes: dict = field(default_factory=dict)
    epoch: int = 0
    state: dict[str, Tensor] = field(default_factory=dict, repr=False)
    momentum: dict[str, Tensor] = field(default_factory=dict, repr=False)

    def model(self) -> nn.Module:
        """The network with its weights, in evaluation mode. Raises InputError where they do not fit each other."""
        try:
            model = network(self.network["name"], len(self.class_names), **self.network.get("options", {}))
            model.load_state_dict(self.state)
        except InputError:
            raise
        except (ValueError, TypeError, RuntimeError, KeyError) as error:
            raise InputError(
                f"checkpoint of {self.network}: weights and network do not fit ({reason(error)})"
            ) from error
        return model.eval()


def save_checkpoint(checkpoint: Checkpoint, path: Path) -> None:
    """Write `path` (a .json) and the safetensors files that it names, replacing an earlier checkpoint there."""
    page = {k: v for k, v in vars(checkpoint).items() if k not in ("state", "momentum")}
    write_page(path, {"format": FORMAT, **page}, {"weights": checkpoint.state, "momentum": checkpoint.momentum})


def write_page(path: Path, page: dict, files: dict[str, dict[str, Tensor]]) -> None:
    """Write a page (a .json) that names the safetensors files with these tensors, replacing an earlier one there."""
    path = Path(path)
    earlier, named = _files_of(path), {}
    for kind, tensors in files.items():
        if tensors:
            content = save({k: v.detach().cpu().contiguous() for k, v in tensors.items()})
            name = f"{path.stem}.{kind}.{hashlib.sha256(content).hexdigest()[:8]}.safetensors"
            atomic_write(path.parent / name, content)
            named[kind] = {"name": name, "sha256": hashlib.sha256(content).hexdigest()}
    atomic_write(path, (json.dumps({**page, "files": named}, indent=1) + "\n").encode())
    for name in earlier - {f["name"] for f in named.values()}:
        (path.parent / name).unlink(missing_ok=True)


def _files_of(path: Path) -> set[str]:
    """Names of an earlier checkpoint's own files at `path`; none if what lies there is no checkpoint."""
    try:
        names = {Path(f["name"]).name for f in json.loads(path.read_text())["files"].values()}
        # A copied page names the files of the page it was copied from: those are not its own.
        return {name for name in names if name.startswith(f"{path.stem}.")}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return set()


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint: its .json page, or the folder that holds checkpoint.json.

    Raises InputError for a path that is not there, a file that is no checkpoint, and damaged or missing weights.
    """
    path, page, tensors = read_page(path, FORMAT, "prm train")
    try:
        found = Checkpoint(**page, state=tensors["weights"], momentum=tensors.get("momentum", {}))
        _check(found)
        return found
    except InputError:
        raise
    except (TypeError, KeyError, AttributeError, ValueError) as error:
        raise InputError(f"{path}: the checkpoint is incomplete ({reason(error)})") from error


def read_page(path: str | Path, wanted: str, writer: str) -> tuple[Path, dict, dict[str, dict[str, Tensor]]]:
    """Where a page of the format `wanted` lies, what it says, and the tensors of the files that it names.

    path: the page, or the folder that holds it as checkpoint.json; writer: the command that makes one.
    Raises InputError as `load_checkpoint` does.
    """
    path = Path(path)
    path = path / "checkpoint.json" if path.is_dir() else path
    try:
        page = json.loads(path.read_text())
    except FileNotFoundError:
        raise InputError(
            f"{path}: no such checkpoint; `{writer}` writes checkpoint.json into its output folder"
        ) from None
    except (ValueError, OSError) as error:
        raise InputError(f"{path}: not a checkpoint of prm (a .json page written by `{writer}`)") from error
    if not isinstance(page, dict) or page.pop("format", None) != wanted:
        raise InputError(f"{path}: not a checkpoint of prm (its format is not {wanted!r})")
    try:
        files = page.pop("files", {})
        return path, page, {kind: _verified(path.parent / f["name"], f["sha256"]) for kind, f in files.items()}
    except (TypeError, KeyError, AttributeError, ValueError) as error:
        raise InputError(f"{path}: the checkpoint is incomplete ({reason(error)})") from error


def _check(found: Checkpoint) -> None:
    """Raise TypeError, KeyError or ValueError where a field cannot be what it should."""
    wanted = {dict: ("network", "input", "aggregation", "training", "segmentation", "figures", "classes"),
              list: ("class_names",), int: ("epoch",)}  # fmt: skip
    for kind, names in wanted.items():
        for name in names:
            if not isinstance(getattr(found, name), kind):
                raise TypeError(f"{name} is {getattr(found, name)!r}")
    for name in ("mean", "std"):
        if len([float(value) for value in found.input[name]]) != 3:
            raise ValueError(f"input {name} must be three numbers")
    if min(float(value) for value in found.input["std"]) <= 0 or not found.class_names:
        raise ValueError("input std must be > 0 and there must be a class")
    found.network["name"]
    aggregation(found.aggregation["name"], **found.aggregation.get("options", {}))


def _verified(path: Path, sha256: str) -> dict[str, Tensor]:
    try:
        if hashlib.sha256(path.read_bytes()).hexdigest() != sha256:
            raise InputError(f"{path}: damaged (its SHA-256 is not the one its checkpoint names)")
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path}: weights cannot be read ({reason(error)})") from error


def random_checkpoint(name: str, class_names: list[str], seed: int = 0, **options) -> Checkpoint:
    """A network with random weights, for measuring time and memory."""
    torch.manual_seed(seed)
    model = network(name, len(class_names), **options)
    return Checkpoint(
        network={"name": name, "options": options}, class_names=list(class_names),
        input={"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "size": 448},
        aggregation={"name": "peak", "options": {}}, state=model.state_dict(),
    )  # fmt: skip
