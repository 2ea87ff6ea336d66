"""Proposals as PNGs: a folder with one binary mask a proposal, or label maps.

In a label map 0 is no proposal and every other number is one, in rising order; a palette's colours do not count, only
its indices. In a folder, taken in the order of the file names' numbers, a picture with at most one number besides 0 is
one mask (perhaps an empty one), any other is a label map.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from prm import InputError
from prm.accelerated.retrieval import Proposals
from prm.files import reason

from .entries import check_size, natural
from .regions import from_labels


def read(path: Path, shape: Sequence[int], limit: int | None = None) -> Proposals:
    """The proposals of a label map, or of a folder's PNGs, of (H, W) = `shape`; only the first `limit` of them.

    Raises InputError: no PNG, a damaged or coloured one, another size.
    """
    if not path.is_dir():
        return _masks(path, shape, limit)
    files = sorted((file for file in path.iterdir() if file.suffix.lower() == ".png"), key=natural)
    if not files:
        raise InputError(f"{path}: holds no PNG; a folder of proposals has one binary PNG for each")
    parts = [Proposals.empty(*shape)]
    for file in files:
        if limit is not None and limit <= 0:
            break
        parts.append(_masks(file, shape, limit, least=1))
        limit = None if limit is None else limit - len(parts[-1])
    return Proposals.concatenate(parts)


def read_label_image(path: Path, shape: Sequence[int]) -> tuple[Proposals, list[int]]:
    """A mask for each number above 0 of a label image, and these numbers, rising.

    Raises InputError: a damaged file or one in colours, another size than (H, W) = `shape`.
    """
    values, lists = _numbers(path, shape)
    return from_labels(values, lists, lambda k: str(path)), [int(number) for (number,) in lists]


def _masks(path: Path, shape: Sequence[int], limit: int | None, least: int = 0) -> Proposals:
    """A PNG's masks, one for each number above 0; `least`: so many at any rate, empty where there is no number."""
    values, lists = _numbers(path, shape)
    lists += [np.array([], np.int64)] * (least - len(lists))
    return from_labels(values, lists[:limit], lambda k: str(path))


def _numbers(path: Path, shape: Sequence[int]) -> tuple[np.ndarray, list[np.ndarray]]:
    """(H, W) int64, and each number above 0 in it, rising, as `from_labels` takes it."""
    values = _read(path)
    check_size(values.shape, shape, str(path))
    return values, [np.array([number]) for number in np.unique(values[values > 0])]


def _read(path: Path) -> np.ndarray:
    """(H, W) int64."""
    try:
        with Image.open(path) as image:
            values = np.asarray(image)
    except Exception as error:  # decoders raise whatever a damaged file makes them trip over
        raise InputError(f"{path}: cannot be read as a label image ({reason(error)})") from error
    if values.ndim == 3 and values.shape[2] == 3 and (values == values[..., :1]).all():
        values = values[..., 0]
    if values.ndim != 2:
        raise InputError(f"{path}: is a picture in colours, where one number a pixel was expected: a mask or label map")
    return values.astype(np.int64)
