"""One file over HTTP, gone on with where an attempt before it ended."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import requests
import urllib3

from prm import InputError
from prm.files import atomic_write, reason

CHUNK = 1 << 16  # bytes; about what a killed process loses at most
ATTEMPTS = 5  # in a row without a byte more than ever before
TIMEOUT = 30, 60  # seconds to connect, and between two packets
VERSION = "ETag", "Last-Modified"  # the headers by which a server tells one version of a file from another
TRY_AGAIN = 408, 425, 429, 500, 502, 503, 504  # HTTP statuses that pass
Tick = Callable[[str, int, int], object]


def download(url: str, path: Path, size: int | None = None, tick: Tick = lambda *_: None, pause=time.sleep) -> None:
    """Download `url` to `path`, going on from FILE.partial, attempt after attempt as long as more bytes come.

    size: the file's length in bytes where it is known; a server that offers another length is refused at once.
    tick, pause: as in `fetch`; total is 0 where nobody knows it.
    Raises `prm.InputError` after `ATTEMPTS` attempts without progress, for an HTTP status that will not pass, and
    where the disk is full. What has been received stays in FILE.partial.
    """
    partial, note = partial_files(path)
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


def partial_files(path: Path) -> tuple[Path, Path]:
    """Where the bytes received so far are, and the note of what they belong to."""
    return path.with_name(f"{path.name}.partial"), path.with_name(f"{path.name}.partial.json")


def _length(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _attempt(url: str, path: Path, size: int | None, tick: Tick, by_hand: str) -> bool:
    """One request for what is missing. True: the file is whole. False: begin anew, `.partial` is gone."""
    partial, note = partial_files(path)
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
    partial, note = partial_files(path)
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
