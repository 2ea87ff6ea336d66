"""Archives: compared with their checksums, and unpacked so that nothing half done is left in the data set's folder."""

import gzip
import os
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path, PurePosixPath

import pooch

from prm import InputError
from prm.files import reason

from .sources import Archive
from .transfer import Tick

BROKEN = (
    zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError, RuntimeError, NotImplementedError,
)  # fmt: skip


def checked(archive: Archive, path: Path, say: Callable[[str], object]) -> str:
    """The file's checksum, which is right as far as one is published; otherwise raises `prm.InputError`."""
    # Not `pooch.retrieve`: it cannot resume, and deletes the whole file where its checking is interrupted.
    try:
        found = pooch.file_hash(path, alg="md5" if archive.md5 else "sha256")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({reason(error)}); move it away to download it") from error
    if archive.md5 is None:
        say(f"{path.name}: no checksum is published; its SHA-256, to be noted, is {found}")
        return f"sha256:{found}"
    if found != archive.md5:
        raise _wrong(path, f"its MD5 sum is {found}, but {archive.md5} is published")
    return f"md5:{found}"


def _wrong(path: Path, why: str) -> InputError:
    """Puts a file aside; the error to raise."""
    aside = path.with_name(f"{path.name}.wrong")
    os.replace(path, aside)
    again = f"run again, or choose another address with --mirror URL, or put the right file at {path} yourself"
    return InputError(f"{path}: {why}; it is now {aside.name}: {again}")


def install(archive: Archive, path: Path, out: Path, tick: Tick) -> None:
    """Unpacks into a folder of its own, and moves what is there into `out` once it is complete."""
    folder = out / f".{archive.file}.unpacking"
    shutil.rmtree(folder, ignore_errors=True)  # of a process that was killed
    top, _, rest = archive.holds.partition("/")
    size = path.stat().st_size
    try:
        folder.mkdir()
        _unpack(archive, path, folder, lambda done: tick(f"unpacking {path.name}", done, size))
        tick(f"unpacking {path.name}", size, size)
        bare = archive.bare and not (folder / top).exists()
        if not any(folder.glob(rest if bare else archive.holds)):
            raise _wrong(path, f"does not hold {archive.holds}")
        _move(folder, out / top if bare else out)
    except BROKEN as error:
        raise _wrong(path, f"cannot be unpacked ({reason(error)})") from error
    except OSError as error:
        raise InputError(f"{out}: {path.name} cannot be unpacked there ({reason(error)}); make room, or name another "
                         "place") from error  # fmt: skip
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _unpack(archive: Archive, path: Path, folder: Path, tick: Callable[[int], object]) -> None:
    """Unpacks a .zip, .tar or .tgz; nothing is written outside of `folder`."""
    if path.suffix == ".zip":
        done = 0
        with zipfile.ZipFile(path) as packed:
            for member in packed.infolist():
                name = PurePosixPath(member.filename)
                if name.is_absolute() or ".." in name.parts:  # `extract` would put it elsewhere without a word
                    raise zipfile.BadZipFile(f"{member.filename} would be written outside of the folder")
                if name.parts[:1] != ("__MACOSX",):
                    packed.extract(member, folder)
                done += member.compress_size
                tick(done)
    elif path.suffix in (".tar", ".tgz"):
        if not hasattr(tarfile, "data_filter"):
            raise InputError(f"{path}: unpacking a .tar safely needs Python 3.11.4 or newer; unpack it by hand")
        with open(path, "rb") as file, tarfile.open(fileobj=file) as packed:
            for member in packed:
                packed.extract(member, folder, filter="data")
                tick(file.tell())
    else:
        (folder / archive.holds).parent.mkdir(parents=True)
        shutil.copyfile(path, folder / archive.holds)


def _move(source: Path, target: Path) -> None:
    """Moves a file or folder; a folder that is there already is filled up, a file replaced."""
    if source.is_dir() and target.is_dir():
        for child in source.iterdir():
            _move(child, target / child.name)
    else:
        os.replace(source, target)
