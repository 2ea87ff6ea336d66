"""Generated proposals kept on disk, found again by the picture's content and the settings."""

import hashlib
import zipfile
import zlib
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from prm.accelerated.retrieval import Proposals
from prm.files import atomic_write

from .grouping import VERSION, GroupingSettings, check, generate

_FORMAT = 1
_ARRAYS = ("starts", "ends", "offsets")


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
    proposals = _load(path)
    if proposals is None or (proposals.height, proposals.width) != image.shape[:2] or len(proposals) > limit:
        proposals = generate(image, limit, settings)
        _save(path, proposals)
    return proposals


def _key(image: np.ndarray, limit: int, settings: GroupingSettings) -> str:
    """SHA-256 over all that decides about the answer."""
    what = (_FORMAT, VERSION, image.shape, str(image.dtype), limit, sorted(asdict(settings).items()))
    digest = hashlib.sha256(repr(what).encode())
    digest.update(np.ascontiguousarray(image))
    return digest.hexdigest()


def _load(path: Path) -> Proposals | None:
    """The proposals in a file, or None if there is none or it does not hold any."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            height, width = (int(side) for side in stored["shape"])
            arrays = [torch.from_numpy(stored[name].astype(np.int64)) for name in _ARRAYS]
        return Proposals(height, width, *arrays)
    except (OSError, ValueError, KeyError, EOFError, TypeError, zipfile.BadZipFile, zlib.error):
        return None


def _save(path: Path, proposals: Proposals) -> None:
    # Positions fit 32 bits in all but giant pictures.
    dtype = np.uint32 if proposals.height * proposals.width < 1 << 32 else np.int64
    arrays = {name: getattr(proposals, name).cpu().numpy().astype(dtype) for name in _ARRAYS}
    size = np.array([proposals.height, proposals.width])
    atomic_write(path, lambda file: np.savez_compressed(file, shape=size, **arrays))
