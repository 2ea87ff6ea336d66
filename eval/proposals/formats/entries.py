"""What the readers of proposal files share: names, sizes, scores, and which entries a limit leaves."""

import re
from collections.abc import Iterator, Sequence
from pathlib import PurePath

import numpy as np

from prm import InputError

from ...pictures.images import SUFFIXES

# A picture's id in its data set.
Key = int | str


def stem(name: str) -> str:
    """A picture's file name, perhaps with folders, without its suffix; an identifier (which may hold dots) as it is."""
    suffix = PurePath(name).suffix
    return name[: -len(suffix)] if suffix.lower() in SUFFIXES else name


def tails(name: str) -> Iterator[str]:
    """A picture's name without suffix: with all of its folders first, then with fewer, then without."""
    parts = [part for part in PurePath(stem(name)).parts if part not in ("/", "\\", "..", ".")]
    for start in range(len(parts)):
        yield "/".join(parts[start:])


def natural(path: PurePath) -> list:
    """A sorting key by which mask9.png comes before mask10.png."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", path.name)]


def by(size: Sequence[int]) -> str:
    return " x ".join(str(side) for side in size)


def check_size(size: Sequence[int], shape: Sequence[int], where: str) -> None:
    """Raises InputError unless `size` is the picture's (H, W)."""
    if tuple(size) != tuple(shape):
        raise InputError(f"{where}: of {by(size)}, but the picture is {by(shape)} (height x width)")


def checked_scores(values: object, count: int, where: str) -> np.ndarray:
    """`values` as (count,) float64; raises InputError unless they are that many finite numbers."""
    try:
        scores = np.asarray(values, dtype=np.float64).ravel()
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(f"{where}: the scores are not all numbers") from error
    if len(scores) != count:
        raise InputError(f"{where}: {len(scores)} scores for {count} proposals")
    if not np.isfinite(scores).all():
        raise InputError(f"{where}: score {int(np.argmin(np.isfinite(scores)))} is missing or not finite")
    return scores


def first(scores: np.ndarray | None, count: int, limit: int | None) -> np.ndarray:
    """Which of `count` entries to read: all in their own order, or the `limit` best by score, equal ones in order.

    Without scores the entries' own order is their rank. Returns int64 indices.
    """
    if limit is None or scores is None:
        return np.arange(count)[:limit]
    return np.argsort(-scores, kind="stable")[:limit]
