"""Downloads of the public data sets: `fetch` gets, checks and unpacks the archives, in the layout that loaders read.

    voc2012, voc2007    OUT/VOCdevkit/VOC2012/..., OUT/VOCdevkit/VOC2007/...
    coco2014, coco2017  OUT/annotations/instances_*.json, OUT/train2014/..., OUT/val2014/...
    sbd                 OUT/benchmark_RELEASE/dataset/{img,cls,inst}/..., and train_noval.txt beside them
    bbbc038             OUT/stage1_train/<id>/{images,masks}/...

An archive FILE is downloaded to OUT/FILE.partial. A cut connection, Ctrl-C or a killed process costs nothing: the next
attempt, or the next run, asks the server for the rest only. OUT/FILE.partial.json notes which version of the file on
the server the bytes belong to; where that has changed, the download begins anew. The whole file is then compared with
the checksum that is published for it (for most, only an MD5 sum is). For BBBC038 none is: there the length that the
server states and the CRC of every file in the archive are checked, and the SHA-256 is told, to be noted. An archive
is unpacked into a folder of its own and moved into place when all of it is there; OUT/fetched.json notes what has been
unpacked, so that a second run does nothing.
"""

import json
import os
import shutil
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from prm import InputError
from prm.files import atomic_write, reason

from .sources import SOURCES, Archive
from .transfer import ATTEMPTS, Tick, download, partial_files
from .unpack import checked, install

__all__ = ["ATTEMPTS", "SOURCES", "STAMP", "Archive", "download", "fetch"]

STAMP = "fetched.json"


def fetch(
    name: str,
    out: str | os.PathLike,
    mirror: str | None = None,
    tick: Tick = lambda *_: None,
    parts: Iterable[str] | None = None,
    keep: bool = False,
    say: Callable[[str], object] = print,
    pause: Callable[[float], object] = time.sleep,
) -> Path:
    """Download, check and unpack a data set; what is there already is left alone.

    Arguments:
        name: a key of `SOURCES`.
        out: the folder to fill; made if missing. Several data sets may share one.
        mirror: http(s) address of a folder that holds the archives, by their file names, instead of the official one.
        tick: called as tick(what, done, total), in bytes of the archive: `what` is its name, and "unpacking <name>".
        parts: keys of `SOURCES[name]`; None for all.
        keep: keep the archives. By default each is deleted once it is unpacked, as keeping it takes the disk space
            twice. An archive that was in `out` before, put there by hand, is used if its checksum is right, and is
            never deleted.
        say: called with a line of text now and then.
        pause: called with the seconds to wait before another attempt.

    Returns: `out` as a `Path`.
    Raises: `prm.InputError` for an unknown name or part, too little disk space, an address that does not answer, a
        wrong checksum (the file is then renamed to FILE.wrong) or an archive that cannot be unpacked.
    """
    archives = _chosen(name, parts)
    if mirror is not None and not mirror.startswith(("http://", "https://")):
        raise InputError(f"mirror {mirror!r}: must begin with http:// or https://; put files from elsewhere into {out}")
    out = Path(out).expanduser()
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{out}: cannot be made the data folder ({reason(error)}); name another place") from error
    done = _read_stamp(out)
    todo = [archive for archive in archives if archive.file not in done or not any(out.glob(archive.holds))]
    _check_room(name, todo, out, keep, say)
    for archive in todo:
        url = archive.url if mirror is None else f"{mirror.rstrip('/')}/{archive.file}"
        path = out / archive.file
        found = path.exists()
        if not found:
            download(url, path, None if archive.rounded else archive.size, tick, pause)
        done[archive.file] = {"bytes": path.stat().st_size, "checksum": checked(archive, path, say)}
        install(archive, path, out, tick)
        atomic_write(out / STAMP, json.dumps(done, indent=1).encode())
        for leftover in partial_files(path):
            leftover.unlink(missing_ok=True)
        if found:
            say(f"{path}: was there before and is kept; it is no longer needed")
        elif not keep:
            path.unlink()
    return out


def _chosen(name: str, parts: Iterable[str] | None) -> list[Archive]:
    if name not in SOURCES:
        raise InputError(f"data set {name!r} is not known; choose one of {', '.join(SOURCES)}")
    known = SOURCES[name]
    parts = list(known) if parts is None else list(dict.fromkeys(parts))
    for part in parts:
        if part not in known:
            raise InputError(f"{name} has no part {part!r}; choose from {', '.join(known)}")
    return [known[part] for part in parts]


def _read_stamp(out: Path) -> dict[str, dict]:
    """File name -> what is known of the archive that was unpacked from it."""
    path = out / STAMP
    try:
        done = json.loads(path.read_bytes()) if path.exists() else {}
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({reason(error)}); delete it to fetch everything anew") from error
    if not isinstance(done, dict):
        raise InputError(f"{path}: is not a JSON object; delete it to fetch everything anew")
    return done


def _check_room(name: str, archives: list[Archive], out: Path, keep: bool, say: Callable[[str], object]) -> None:
    """Says how much disk space is needed, and raises `prm.InputError` where there is less."""
    if not archives:
        return
    used = most = missing = 0
    for archive in archives:
        path = out / archive.file
        there = next((place.stat().st_size for place in (path, partial_files(path)[0]) if place.exists()), 0)
        load = 0 if path.exists() else max(archive.size - there, 0)
        missing += load
        used += load + archive.unpacked
        most = max(most, used)
        used -= 0 if keep or path.exists() else archive.size
    free = shutil.disk_usage(out).free
    needed = f"{name}: {_amount(missing)} to download, {_amount(most)} of disk space needed in {out}"
    if free < most:
        raise InputError(f"{needed}, but only {_amount(free)} is free; make room, name another place or fewer parts")
    say(needed)


def _amount(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"
