"""The proposal files that came with the authors' demo: JSON, one list entry a mask.

Each entry is {"data": base64, "shape": [H, W]}; the data are little-endian uint32 pairs (start, length), the runs of
the mask flattened in row-major order. Positions count from 1: in the files that came with the demo no run starts at 0,
some end on position H * W, and runs begin at the left edge where start mod W = 1.
"""

import base64
import binascii
import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

from prm import InputError
from prm.accelerated.retrieval import Proposals

from .entries import by


def read(path: str | Path, shape: Sequence[int] | None = None) -> Proposals:
    """Read a picture's proposals. `shape`: (H, W) that the masks must have; needed only for a file without any mask.

    Raises InputError, naming the file and the entry, for anything that is not such a file.
    """
    path = Path(path)
    try:
        entries = json.loads(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"{path}: is not JSON: {error}") from error
    if not isinstance(entries, list):
        raise InputError(f"{path}: must hold a list of masks, not a JSON {type(entries).__name__}")
    size = None if shape is None else (int(shape[0]), int(shape[1]))
    decoded = []
    for number, entry in enumerate(entries):
        where = f"{path}, entry {number}"
        entry_size = _size(entry, where)
        if size is not None and entry_size != size:
            raise InputError(f"{where}: mask of {by(entry_size)}, where {by(size)} was expected")
        size = entry_size
        decoded.append(_runs(entry, size, where))
    if size is None:
        raise InputError(f"{path}: holds no mask, so the picture's size is unknown")
    runs = np.concatenate([np.zeros((0, 2), np.int64), *decoded])
    offsets = np.cumsum([0] + [len(mask) for mask in decoded])
    return Proposals(
        *size, torch.from_numpy(runs[:, 0].copy()), torch.from_numpy(runs[:, 1].copy()), torch.from_numpy(offsets)
    )


def write(path: str | Path, proposals: Proposals) -> None:
    """Write proposals so that `read` gives them back. Pictures of 2^32 pixels and more do not fit the format."""
    if proposals.height * proposals.width >= 1 << 32:
        raise InputError(f"{path}: a picture of {proposals.height} x {proposals.width} does not fit 32-bit positions")
    starts, ends, offsets = (array.cpu().numpy() for array in (proposals.starts, proposals.ends, proposals.offsets))
    pairs = np.stack([starts + 1, ends - starts], 1).astype("<u4")
    entries = [
        {"data": base64.b64encode(pairs[a:b].tobytes()).decode(), "shape": [proposals.height, proposals.width]}
        for a, b in pairwise(offsets)
    ]
    Path(path).write_text(json.dumps(entries))


def _size(entry: object, where: str) -> tuple[int, int]:
    """An entry's (H, W)."""
    if not isinstance(entry, dict) or not {"data", "shape"} <= set(entry):
        raise InputError(f"{where}: must be an object with 'data' and 'shape' (COCO's results have 'image_id' instead)")
    size = entry["shape"]
    if not (isinstance(size, list) and len(size) == 2 and all(type(side) is int and side > 0 for side in size)):
        raise InputError(f"{where}: shape must be [height, width], two positive integers, not {json.dumps(size)[:60]}")
    return size[0], size[1]


def _runs(entry: dict, size: tuple[int, int], where: str) -> np.ndarray:
    """An entry's runs, (R, 2) int64: first and one past last position."""
    try:
        raw = base64.b64decode(entry["data"], validate=True)
    except (TypeError, ValueError, binascii.Error) as error:
        raise InputError(f"{where}: data is not base64: {error}") from error
    if len(raw) % 8:
        raise InputError(f"{where}: {len(raw)} bytes of data, not a whole number of (start, length) pairs of uint32")
    runs = np.frombuffer(raw, "<u4").reshape(-1, 2).astype(np.int64)
    runs[:, 0] -= 1
    runs[:, 1] += runs[:, 0]
    if (runs[:, 0] < 0).any():
        raise InputError(f"{where}: a run starts at 0, but positions count from 1")
    if (runs[:, 1] > size[0] * size[1]).any():
        raise InputError(
            f"{where}: a run ends at position {runs[:, 1].max()}, outside {by(size)} = {size[0] * size[1]} pixels"
        )
    if (runs[:, 0] >= runs[:, 1]).any() or (runs[1:, 0] < runs[:-1, 1]).any():
        raise InputError(f"{where}: runs must not be empty, out of order or overlapping")
    return runs
