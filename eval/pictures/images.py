"""Pictures from disk: whatever a stranger's folder holds becomes an array or one clear error."""

import io
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from prm import InputError
from prm.files import reason
from prm.settings import ReadSettings

from .decoding import composed, decode, told_channels
from .tiff import BEGINNINGS, read_tiff

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")


def read_image(
    source: str | os.PathLike | bytes | BinaryIO,
    name: str | None = None,
    settings: ReadSettings | None = None,
    note: Callable[[str], None] = lambda line: None,
) -> np.ndarray:
    """A picture, upright, as an (H, W, 3) uint8 RGB array.

    source: a path, the bytes of a file, or a file object opened for reading in binary.
    name: what error messages call the picture; the path by default.
    settings: which page and which channels; by default the first frame, and for TIFF see `tiff.read_tiff`.
    note: told in one line what was taken of a file that holds more than one picture, or channels.

    - EXIF and TIFF orientation are applied; colour profiles are not.
    - Grey with more than 8 bits, and floating point, are stretched from the picture's own [min, max] to 0..255, because
      microscopes write 12-bit data into 16-bit files; NaN and -inf become 0, +inf 255, a constant picture is black.
      (Colour with 16 bits a channel keeps the high byte.)
    - Transparency is composited on white; a fully opaque alpha channel is dropped.

    Memory: the file's own decoder aside, at most 12 bytes a pixel, which is 4 times the answer; for TIFF see there.

    Raises InputError: missing, a folder, unreadable, empty, not a picture, damaged or truncated, above MAX_PIXELS; a
    page or channel that is not there; a TIFF of which the settings leave open what to take.
    """
    settings = settings or ReadSettings()
    if isinstance(source, str | os.PathLike):
        name = name or os.fspath(source)
        if os.path.isdir(source):
            raise InputError(f"{name}: is a folder, not a picture; name a file")
        try:
            file = open(source, "rb")
        except (OSError, ValueError) as error:  # ValueError: a NUL character in the path
            raise InputError(f"{name}: cannot be read ({reason(error)}); check the path") from error
        with file:
            return _read(file, name, settings, note)
    name = name or str(getattr(source, "name", "picture"))
    data = source if isinstance(source, bytes | bytearray | memoryview) else source.read()
    if isinstance(data, str):
        raise InputError(f"{name}: is opened as text; open it in binary mode ('rb')")
    return _read(io.BytesIO(data), name, settings, note)


def _read(file: BinaryIO, name: str, settings: ReadSettings, note: Callable[[str], None]) -> np.ndarray:
    try:
        beginning = file.read(4)
    except OSError as error:
        raise InputError(f"{name}: cannot be read ({reason(error)}); check the path") from error
    if not beginning:
        raise InputError(f"{name}: is empty (0 bytes); copy the file again")
    if beginning in BEGINNINGS:
        return read_tiff(file, name, settings, note)
    page, channels = settings.page or "0", settings.channel_numbers
    if not page.isdecimal():
        raise InputError(f"{name}: is no TIFF with axes; --page {page} must be a number")
    picture = decode(file, name, int(page), note)
    if channels is None:
        return picture
    if max(channels) > 2:
        raise InputError(f"{name}: has channels 0 to 2 (red, green, blue), and no channel {max(channels)} (--channels)")
    note(f"{name}: took {told_channels(channels)}")
    return composed([picture[..., k] for k in channels])


def find_images(
    paths: str | os.PathLike | Iterable[str | os.PathLike], recursive: bool = False, but: Path | None = None
) -> list[Path]:
    """Pictures named on a command line: files as given, each folder replaced by the pictures inside, sorted.

    recursive: also those in a folder's subfolders, however deep; links to folders are not followed, and folders whose
    name starts with a dot are left out. but: a folder that is not gone into, such as that of the answers.
    A picture inside a folder is a file with a suffix of SUFFIXES, in either case, whose name does not start with a dot.
    A file that is named twice is there once.
    Raises InputError: a path is missing or unreadable, or a folder holds no picture.
    """
    found: dict[str, Path] = {}
    for path in [paths] if isinstance(paths, str | os.PathLike) else paths:
        path = Path(path)
        try:
            if path.is_dir():
                inside = sorted(_inside(path, recursive, but))
            else:
                path.stat()
                inside = [path]
        except (OSError, ValueError) as error:
            raise InputError(f"{path}: cannot be read ({reason(error)}); check the path") from error
        if not inside:
            where = "in it and its subfolders" if recursive else "not in subfolders, as --recursive does"
            raise InputError(f"{path}: no picture in this folder (looked for {' '.join(SUFFIXES)}, {where})")
        for file in inside:
            found.setdefault(os.path.abspath(file), file)
    return list(found.values())


def _inside(folder: Path, recursive: bool, but: Path | None) -> Iterator[Path]:
    """The pictures of a folder; see `find_images`."""
    for entry in folder.iterdir():
        if entry.name[0] == ".":
            continue
        if entry.suffix.lower() in SUFFIXES and entry.is_file():
            yield entry
        elif recursive and entry.is_dir() and not entry.is_symlink():
            if but is None or os.path.abspath(entry) != os.path.abspath(but):
                yield from _inside(entry, recursive, but)


def names_of(files: Sequence[Path], folders: Iterable[str | os.PathLike] = ()) -> list[str]:
    """What to call each picture of a run: different names, as "a/x.png", with "/" on every system.

    A picture is called by its path inside the innermost of `folders` that holds it, or else by its file name. Where
    two would be called the same, all get one more of the folders above, as often as it takes.
    """
    parts = [Path(os.path.abspath(file)).parts[1:] for file in files]
    roots = [Path(os.path.abspath(folder)).parts[1:] for folder in folders]
    around = (max((len(r) for r in roots if p[: len(r)] == r != p), default=len(p) - 1) for p in parts)
    own, names = [len(p) - n for p, n in zip(parts, around)], []
    for more in range(max(map(len, parts), default=0)):
        names = ["/".join(p[-(n + more) :]) for p, n in zip(parts, own)]
        if len(set(names)) == len(names):
            break
    return names
