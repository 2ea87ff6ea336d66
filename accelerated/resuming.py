"""What trainings share: going on where one stopped, with the same settings only; errors of reading processes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader

from prm import InputError

IDLE = ("command", "workers")
"""How the command was typed and on how many workers makes no difference to the result."""


def check_same(page: Path, wanted: Any, found: Any, names: Sequence[str]) -> None:
    """Raise InputError unless these fields of two checkpoints say the same; `page` is where `found` lies."""
    for name in names:
        ours, theirs = getattr(wanted, name), getattr(found, name)
        if name == "training":
            ours, theirs = ({k: v for k, v in d.items() if k not in IDLE} for d in (ours, theirs))
        ours = json.loads(json.dumps(ours))
        if isinstance(theirs, dict):
            # What one of them lacks counts as none: a setting that came later, at none, changes nothing.
            other = sorted(k for k in {*ours, *theirs} if ours.get(k) != theirs.get(k))
            ours, theirs = ({k: d.get(k) for k in other} for d in (ours, theirs))
        if ours != theirs:
            raise InputError(f"{page}: cannot resume, {name} was {theirs} and is now {ours}; use another output folder")


def logged(path: Path) -> list[dict]:
    """The rows of a log; InputError where it cannot be read."""
    try:
        return [json.loads(line) for line in path.read_text().splitlines()]
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: the log to go on with cannot be read; name another output folder") from error


def plain_errors(loader: DataLoader) -> Iterator:
    """The loader's batches; a reading process hands on an InputError inside its whole traceback."""
    try:
        yield from loader
    except InputError as error:
        raise InputError(str(error).rpartition("prm.InputError: ")[2].strip()) from None
