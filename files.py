"""Files written whole or not at all, and how JSON is laid out in them."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Callable
from itertools import pairwise
from typing import BinaryIO

from prm import InputError

WIDTH = 120  # characters a line of JSON


def atomic_write(path: str | os.PathLike, content: bytes | Callable[[BinaryIO], object]) -> None:
    """Write a file whole or not at all; missing parent folders are made.

    content: the bytes, or a function that is handed a file object opened for writing in binary.
    Whatever goes wrong, an older file of that name keeps its content and no temporary file stays behind.
    Raises InputError on an operating system error (disk full, not writable, a folder); other errors pass through.
    """
    path = os.fspath(path)
    write = content if callable(content) else lambda file: file.write(content)
    temporary = None
    try:
        if os.path.isdir(path):
            raise IsADirectoryError(None, "is a folder")
        if os.path.exists(path) and not os.path.isfile(path):  # /dev/stdout, /dev/null, a pipe: must not be replaced
            with open(path, "wb") as file:
                write(file)
            return
        target = os.path.realpath(path)  # a link stays a link
        folder = os.path.dirname(target)
        os.makedirs(folder, exist_ok=True)
        temporary = os.path.join(folder, f".{uuid.uuid4().hex}.tmp")  # not tempfile: its files are private (mode 600)
        with open(temporary, "xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
        temporary = None
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({reason(error)}); name another place or make room") from error
    finally:
        if temporary is not None and os.path.lexists(temporary):
            os.unlink(temporary)


def json_bytes(page: object, allow_nan: bool = False) -> bytes:
    """A page of JSON to be read and compared by people too: what fits on a line of 120 characters stands on one, long
    rows of numbers and words fill such lines.

    Raises ValueError for NaN and infinities unless allow_nan.
    """

    def laid_out(value: object, depth: int, name: str = "") -> str:
        line = name + json.dumps(value, allow_nan=allow_nan)
        if depth + len(line) < WIDTH or not value or not isinstance(value, (dict, list, tuple)):
            return line
        if isinstance(value, dict):
            first, last = "{}"
            named = {json.dumps({key: None})[1:-5]: entry for key, entry in value.items()}
            parts = [laid_out(entry, depth + 1, key) for key, entry in named.items()]
        else:
            first, last = "[]"
            parts = [laid_out(entry, depth + 1) for entry in value]
        lines = parts[:1]
        for before, part in pairwise(parts):
            fits = depth + 1 + len(lines[-1]) + len(part) + 3 <= WIDTH and not {part[-1], before[-1]} & set("]}")
            lines[-1:] = [f"{lines[-1]}, {part}"] if fits else [f"{lines[-1]},", part]
        indent = "\n" + " " * (depth + 1)
        return f"{name}{first}{indent}{indent.join(lines)}\n{' ' * depth}{last}"

    return (laid_out(page, 0) + "\n").encode()


def reason(error: BaseException) -> str:
    """An exception as a few words on one line."""
    return " ".join((getattr(error, "strerror", None) or str(error) or type(error).__name__).split())
