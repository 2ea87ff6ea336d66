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

import gzip
import json
import os
import shutil
import tarfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import pooch
import requests
import urllib3

from prm import InputError
from prm.files import atomic_write, reason

STAMP = "fetched.json"
CHUNK = 1 << 16  # bytes; about what a killed process loses at most
ATTEMPTS = 5  # in a row without a byte more than ever before
TIMEOUT = 30, 60  # seconds to connect, and between two packets
VERSION = "ETag", "Last-Modified"  # the headers by which a server tells one version of a file from another
TRY_AGAIN = 408, 425, 429, 500, 502, 503, 504  # HTTP statuses that pass
BROKEN = (
    zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError, RuntimeError, NotImplementedError,
)  # fmt: skip
Tick = Callable[[str, int, int], object]


@dataclass(frozen=True)
class Archive:
    """A file to download. One that is neither .zip nor .tar nor .tgz is put at `holds` as it is."""

    url: str
    """The official address."""
    size: int
    """Bytes; to the byte unless `rounded`."""
    md5: str | None
    """32 hexadecimal digits, or None where nobody has published a checksum."""
    unpacked: int
    """Bytes on disk once unpacked: an estimate, rounded up."""
    holds: str
    """A pattern, relative to the data set's folder, that something matches once the archive is unpacked."""
    rounded: bool = False
    """Whether `size` is only known roughly."""
    bare: bool = False
    """Whether the archive may lack the first folder of `holds`, which is then put in front of all that it contains."""

    @property
    def file(self) -> str:
        """The file's name, which it keeps on a mirror and on disk."""
        return self.url.rsplit("/", 1)[1]


_VOC, _COCO = "http://host.robots.ox.ac.uk/pascal/VOC", "http://images.cocodataset.org"
_SBD = "https://www2.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/semantic_contours"

# Data set -> part -> archive. http where the official server has no valid certificate for https: the sum is checked.
SOURCES: dict[str, dict[str, Archive]] = {
    "voc2012": {
        "trainval": Archive(
            f"{_VOC}/voc2012/VOCtrainval_11-May-2012.tar", 1_999_639_040, "6cd6e144f989b92b3379bac3b3de84fd",
            2_100_000_000, "VOCdevkit/VOC2012/SegmentationObject/*.png",
        ),
    },
    "voc2007": {
        "trainval": Archive(
            f"{_VOC}/voc2007/VOCtrainval_06-Nov-2007.tar", 460_032_000, "c52e279531787c972589f7e41ab4ae64",
            500_000_000, "VOCdevkit/VOC2007/ImageSets/Main/trainval.txt",
        ),
        "test": Archive(
            f"{_VOC}/voc2007/VOCtest_06-Nov-2007.tar", 451_020_800, "b6e924de25625d8de591ea690078ad9f",
            500_000_000, "VOCdevkit/VOC2007/ImageSets/Main/test.txt",
        ),
    },
    "coco2014": {
        "annotations": Archive(
            f"{_COCO}/annotations/annotations_trainval2014.zip", 252_872_794, "0a379cfc70b0e71301e0f377548639bd",
            900_000_000, "annotations/instances_val2014.json",
        ),
        "train": Archive(
            f"{_COCO}/zips/train2014.zip", 13_510_573_713, "0da8c0bd3d6becc4dcb32757491aca88",
            13_900_000_000, "train2014/*.jpg",
        ),
        "val": Archive(
            f"{_COCO}/zips/val2014.zip", 6_645_013_297, "a3d79f5ed8d289b7a7554ce06a5782b3",
            6_900_000_000, "val2014/*.jpg",
        ),
    },
    "coco2017": {
        "annotations": Archive(
            f"{_COCO}/annotations/annotations_trainval2017.zip", 252_907_541, "f4bbac642086de4f52a3fdda2de5fa2c",
            900_000_000, "annotations/instances_val2017.json",
        ),
        "train": Archive(
            f"{_COCO}/zips/train2017.zip", 19_336_861_798, "cced6f7f71b7629ddf16f17bbcfab6b2",
            19_800_000_000, "train2017/*.jpg",
        ),
        "val": Archive(
            f"{_COCO}/zips/val2017.zip", 815_585_330, "442b8da7639aecaf257c1dceb8ba8c80",
            850_000_000, "val2017/*.jpg",
        ),
    },
    "sbd": {
        "benchmark": Archive(
            f"{_SBD}/benchmark.tgz", 1_419_539_633, "82b4d87ceb2ed10f6038a1cba92111cb",
            1_800_000_000, "benchmark_RELEASE/dataset/inst/*.mat",
        ),
        "train_noval": Archive(
            "https://www.cs.cornell.edu/~bharathh/train_noval.txt", 67_500, "79bff800c5f0b1ec6b21080a3c066722",
            70_000, "benchmark_RELEASE/dataset/train_noval.txt", rounded=True,
        ),
    },
    "bbbc038": {
        "train": Archive(
            "https://data.broadinstitute.org/bbbc/BBBC038/stage1_train.zip", 83_000_000, None,
            250_000_000, "stage1_train/*/images/*.png", rounded=True, bare=True,
        ),
    },
}  # fmt: skip


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
        done[archive.file] = {"bytes": path.stat().st_size, "checksum": _checked(archive, path, say)}
        _install(archive, path, out, tick)
        atomic_write(out / STAMP, json.dumps(done, indent=1).encode())
        for leftover in _partial(path):
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
        there = next((place.stat().st_size for place in (path, _partial(path)[0]) if place.exists()), 0)
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


# ---- downloading


def download(url: str, path: Path, size: int | None = None, tick: Tick = lambda *_: None, pause=time.sleep) -> None:
    """Download `url` to `path`, going on from FILE.partial, attempt after attempt as long as more bytes come.

    size: the file's length in bytes where it is known; a server that offers another length is refused at once.
    tick, pause: as in `fetch`; total is 0 where nobody knows it.
    Raises `prm.InputError` after `ATTEMPTS` attempts without progress, for an HTTP status that will not pass, and
    where the disk is full. What has been received stays in FILE.partial.
    """
    partial, note = _partial(path)
    most, failures = _length(partial), 0
    by_hand = f"choose another address with --mirror URL, or put the file at {path} yourself"
    while True:
        try:
            if _attempt(url, path, size, tick, by_hand):
                break
            why = "the file on the server keeps changing"
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
            why = reason(error)
            if isinstance(error, ValueError):  # the address itself: nothing that passes
                raise InputError(f"{url}: not a usable address ({why}); {by_hand}") from error
        have = _length(partial)
        failures = 0 if have > most else failures + 1
        most = max(have, most)
        if failures == ATTEMPTS:
            kept = f"{have} bytes are kept in {partial}: run the same command again to go on"
            raise InputError(f"{url}: gave up after {failures} attempts ({why}); {kept}, {by_hand}")
        pause(2**failures)
    os.replace(partial, path)
    note.unlink(missing_ok=True)


def _partial(path: Path) -> tuple[Path, Path]:
    """Where the bytes received so far are, and the note of what they belong to."""
    return path.with_name(f"{path.name}.partial"), path.with_name(f"{path.name}.partial.json")


def _length(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _attempt(url: str, path: Path, size: int | None, tick: Tick, by_hand: str) -> bool:
    """One request for what is missing. True: the file is whole. False: begin anew, `.partial` is gone."""
    partial, note = _partial(path)
    try:
        noted = json.loads(note.read_bytes())
        known, have = {key: noted[key] for key in ("total", *VERSION)}, _length(partial)
    except (OSError, ValueError, KeyError, TypeError):  # without the note nobody can say what the bytes belong to
        known, have = {}, 0
    if have and have == known["total"]:
        return True
    headers = {"Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
        headers.update({"If-Range": known[key]} if (key := _validator(known)) else {})
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as response:
        first, total = _offered(response)
        if response.status_code in (206, 416) and have:
            same = all(known[key] in (None, response.headers.get(key, known[key])) for key in VERSION)
            if response.status_code == 416 and same and total == have:
                return True
            if response.status_code == 416 or not same or first != have or known["total"] not in (None, total):
                partial.unlink()
                return False
        elif response.status_code in TRY_AGAIN:
            raise requests.HTTPError(f"the server answers {response.status_code} {response.reason}")
        elif response.status_code != 200:
            raise InputError(f"{url}: the server answers {response.status_code} {response.reason}; {by_hand}")
        if size is not None and total not in (None, size):
            raise InputError(f"{url}: offers {total} bytes, but {path.name} has {size}: another file; {by_hand}")
        return _receive(response, path, size if total is None else total, tick)


def _validator(known: dict) -> str | None:
    """The header to send as If-Range: a strong ETag, or else the date (RFC 9110, section 13.1.5)."""
    if known["ETag"] and not known["ETag"].startswith("W/"):
        return "ETag"
    return "Last-Modified" if known["Last-Modified"] else None


def _offered(response: requests.Response) -> tuple[int, int | None]:
    """By its headers, the first byte of an answer and the length of the whole file (None where it is not said)."""
    if response.status_code in (206, 416):
        span, _, total = response.headers.get("Content-Range", "").removeprefix("bytes ").partition("/")
        first = span.partition("-")[0]
        return int(first) if first.isdecimal() else -1, int(total) if total.isdecimal() else None
    length = response.headers.get("Content-Length", "")
    return 0, int(length) if length.isdecimal() else None


def _receive(response: requests.Response, path: Path, total: int | None, tick: Tick) -> bool:
    """Writes the body of a 200 or 206 answer; True, or `requests.ConnectionError` where it ends too early."""
    partial, note = _partial(path)
    chunks = response.raw.stream(CHUNK, decode_content=False)  # as it is: a .tgz is often sent "Content-Encoding: gzip"
    try:
        with open(partial, "ab" if response.status_code == 206 else "wb") as file:
            if response.status_code == 200:
                # After the old bytes are gone: killed in between, they must not pass for bytes of this version.
                version = {key: response.headers.get(key) for key in VERSION}
                atomic_write(note, json.dumps({"total": total, **version}).encode())
            done = file.tell()
            tick(path.name, done, total or 0)
            while chunk := _next(chunks):
                file.write(chunk)
                done += len(chunk)
                tick(path.name, done, total or 0)
    except requests.RequestException:
        raise
    except OSError as error:
        again = "make room and run the same command again, it goes on from there"
        raise InputError(f"{partial}: cannot be written ({reason(error)}); {again}") from error
    if total is not None and done < total:
        raise requests.ConnectionError(f"the answer ended after {done} of {total} bytes")
    return True


def _next(chunks) -> bytes | None:
    """The next bytes of an answer, or None; whatever goes wrong on the way is no error of the disk."""
    try:
        return next(chunks, None)
    except (urllib3.exceptions.HTTPError, OSError) as error:
        raise requests.ConnectionError(reason(error)) from error


# ---- checking and unpacking


def _checked(archive: Archive, path: Path, say: Callable[[str], object]) -> str:
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


def _install(archive: Archive, path: Path, out: Path, tick: Tick) -> None:
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
