"""Generated proposals kept on disk, found again by the picture's content and the settings."""

import hashlib
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch

from prm import InputError
from prm.accelerated.retrieval import Proposals

from .formats import npz
from .grouping import VERSION, GroupingSettings, check, generate

_FORMAT = 2


def proposals_for(
    image: np.ndarray,
    cache_dir: str | Path | None,
    limit: int = 1000,
    settings: GroupingSettings | None = None,
) -> Proposals:
    """`grouping.generate(image, limit, settings)`, from `cache_dir` where it was made before; None: no cache.

    The directory is made if it is missing. A file there that is damaged, or of another picture's size, is made anew.
    Several processes may share the directory: a file appears whole or not at all. Raises InputError as
    `generate` does, and if the directory cannot be written.
    """
    check(image, limit)
    settings = settings or GroupingSettings()
    if cache_dir is None:
        return generate(image, limit, settings)
    path = Path(cache_dir) / f"{_key(image, limit, settings)}.npz"
    proposals = _load(path, image.shape[:2])
    if proposals is None or len(proposals) > limit:
        proposals = generate(image, limit, settings)
        npz.write(path, proposals)
    return proposals


def _key(image: np.ndarray, limit: int, settings: GroupingSettings) -> str:
    """SHA-256 over all that decides about the answer."""
    what = (_FORMAT, VERSION, image.shape, str(image.dtype), limit, sorted(asdict(settings).items()))
    digest = hashlib.sha256(repr(what).encode())
    digest.update(np.ascontiguousarray(image))
    return digest.hexdigest()


def _load(path: Path, shape: tuple[int, int]) -> Proposals | None:
    """The proposals in a file, or None if there is none or it does not hold any of this picture's size."""
    try:
        proposals, objectness = npz.read(path, shape)
        return None if objectness is None else replace(proposals, objectness=torch.from_numpy(objectness))
    except InputError:
        return None
