"""Files written whole or not at all."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable
from typing import BinaryIO

from prm import InputError


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


def reason(error: BaseException) -> str:
    """An exception as a few words on one line."""
    return " ".join((getattr(error, "strerror", None) or str(error) or type(error).__name__).split())
