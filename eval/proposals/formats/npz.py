"""Proposals as this project keeps them: NumPy's .npz with shape (2,), starts, ends (R,) and offsets (K + 1,)."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from prm import InputError
from prm.accelerated.retrieval import Proposals
from prm.files import atomic_write, reason

from .entries import check_size, checked_scores, first

_ARRAYS = ("starts", "ends", "offsets")


def read(path: Path, shape: Sequence[int], limit: int | None = None) -> tuple[Proposals, np.ndarray | None]:
    """A picture's proposals and their scores, (K,) float64 or None where the file has no `scores`.

    shape: the picture's (H, W). limit: only the first so many, by score where the file has scores. Raises InputError,
    naming the file, for anything else than such a file, and for proposals of another size.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            size = tuple(int(side) for side in stored["shape"])
            arrays = [torch.from_numpy(stored[name].astype(np.int64)) for name in _ARRAYS]
            scores = stored["scores"] if "scores" in stored else None
        check_size(size, shape, str(path))
        proposals = Proposals(*size, *arrays)
    except InputError as error:
        text = str(error)
        raise InputError(text if text.startswith(str(path)) else f"{path}: {text}") from error
    except Exception as error:  # what a damaged archive makes NumPy trip over
        raise InputError(
            f"{path}: cannot be read as proposals ({reason(error)[:200]}); it needs shape, starts, ends and offsets"
        ) from error
    if scores is not None:
        scores = checked_scores(scores, len(proposals), f"{path}, scores")
    order = first(scores, len(proposals), limit)
    return proposals.select(torch.from_numpy(order)), None if scores is None else scores[order]


def write(path: Path, proposals: Proposals) -> None:
    """Write proposals so that `read` gives them back, objectness as scores; the file appears whole or not at all."""
    # Positions fit 32 bits in all but giant pictures.
    dtype = np.uint32 if proposals.height * proposals.width < 1 << 32 else np.int64
    arrays = {name: getattr(proposals, name).cpu().numpy().astype(dtype) for name in _ARRAYS}
    if proposals.objectness is not None:
        arrays["scores"] = proposals.objectness.cpu().numpy()
    size = np.array([proposals.height, proposals.width])
    atomic_write(path, lambda file: np.savez_compressed(file, shape=size, **arrays))
