"""Downloads of data sets, against a server on this machine that cuts, lies, changes its files or is not there."""

import contextlib
import dataclasses
import hashlib
import io
import json
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urlsplit

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("pooch")
from prm import InputError
from prm.eval.datasets.bbbc038 import BBBC038
from prm.eval.datasets.fetch import ATTEMPTS, SOURCES, STAMP, Archive, download, fetch

CONTENT = np.random.default_rng(0).bytes(300_000)
MODIFIED = "Mon, 01 Jan 2018 00:00:00 GMT"
ALL = [(name, part, archive) for name, parts in SOURCES.items() for part, archive in parts.items()]


# ---- a server that misbehaves as it is told


class Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.etag: str | None = '"1"'
        self.modified: str | None = MODIFIED
        self.cuts: list[int] = []  # most bytes of the next answers; after them, whole answers
        self.ranges = True  # heeds Range
        self.heeds_if_range = True
        self.statuses: list[int] = []  # of the next answers
        self.length = "true"  # or "none", or a number to state instead
        self.shift = 0  # how far beside the asked one a 206 answer begins
        self.headers: dict[str, str] = {}
        self.hold_after: int | None = None  # bytes, then wait for `go`
        self.go = threading.Event()
        self.log: list[SimpleNamespace] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    @property
    def ranges_asked(self) -> list[str | None]:
        return [entry.range for entry in self.log]

    @property
    def sent(self) -> int:
        return sum(entry.sent for entry in self.log)


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_GET(self):
        server, asked = self.server, self.headers
        entry = SimpleNamespace(
            path=self.path, range=asked["Range"], if_range=asked["If-Range"], accepts=asked["Accept-Encoding"],
            status=None, sent=0,
        )  # fmt: skip
        server.log.append(entry)
        content = server.files.get(self.path.rsplit("/", 1)[1])
        fails = server.statuses.pop(0) if server.statuses else (404 if content is None else None)
        if fails:
            entry.status = fails
            self.send_error(fails)
            return
        start, status = 0, 200
        fresh = entry.if_range in (None, server.etag, server.modified) or not server.heeds_if_range
        if entry.range and server.ranges and fresh:
            start, status = int(entry.range.removeprefix("bytes=").removesuffix("-")), 206
            if start >= len(content):
                status = 416
        entry.status = status
        self.send_response(status)
        body = b"" if status == 416 else content[start:]
        if status != 200:
            place = f"{start + server.shift}-{len(content) - 1}" if status == 206 else "*"
            self.send_header("Content-Range", f"bytes {place}/{len(content)}")
        if server.length != "none":
            self.send_header("Content-Length", str(len(body)) if server.length == "true" else server.length)
        for name, value in {"ETag": server.etag, "Last-Modified": server.modified, **server.headers}.items():
            if value is not None:
                self.send_header(name, value)
        self.end_headers()
        body = (body[: server.cuts.pop(0)] if server.cuts else body)[: server.hold_after]
        entry.sent += len(body)
        self.wfile.write(body)
        if server.hold_after is not None:
            server.go.wait(30)


@contextlib.contextmanager
def serving():
    running = Server()
    threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield running
    finally:
        running.go.set()
        running.shutdown()
        running.server_close()


@pytest.fixture
def server():
    with serving() as running:
        yield running


@pytest.fixture
def pauses():
    return []


@pytest.fixture
def got(server, tmp_path, pauses):
    """Downloads CONTENT, or what the server has for it, as DIR/data.bin; returns the bytes."""
    server.files["data.bin"] = CONTENT

    def run(**options) -> bytes:
        path = tmp_path / "data.bin"
        download(f"{server.address}/data.bin", path, **{"size": len(CONTENT), "pause": pauses.append, **options})
        assert [entry.name for entry in tmp_path.iterdir()] == ["data.bin"]  # no leftovers
        return path.read_bytes()

    return run


# ---- the table of sources


def test_the_table_of_sources_is_consistent():
    assert set(SOURCES) == {"voc2012", "voc2007", "coco2014", "coco2017", "sbd", "bbbc038"}
    for name, part, archive in ALL:
        where = f"{name} {part}"
        address = urlsplit(archive.url)
        assert address.scheme in ("http", "https") and address.hostname.count(".") >= 2, where
        assert not address.query and not address.fragment and archive.file == Path(address.path).name, where
        assert archive.file.endswith((".zip", ".tar", ".tgz", ".txt")), where
        assert archive.md5 is None or re.fullmatch("[0-9a-f]{32}", archive.md5), where
        assert 0 < archive.size < 2e10 and archive.size <= archive.unpacked < 4 * archive.size, where
        holds = Path(archive.holds)
        assert len(holds.parts) >= 2 and not holds.is_absolute() and ".." not in holds.parts, where
        # A plain file is put where the name says.
        assert archive.file.endswith((".zip", ".tar", ".tgz")) or not set(archive.holds) & set("*?["), where
        assert archive.md5 is not None or archive.file.endswith(".zip"), f"{where}: nothing would check it"
        if name.startswith(("voc", "coco")):  # the year is in every name
            year = name[-4:]
            assert year in archive.file and year in archive.holds, where
    # several data sets may share a folder
    for key in (lambda a: a.file, lambda a: a.url, lambda a: a.md5, lambda a: a.holds):
        assert len({key(archive) for _, _, archive in ALL}) == len(ALL)


# ---- one download


def test_a_download_in_one_piece(got, server):
    ticks = []
    assert got(tick=lambda *tick: ticks.append(tick)) == CONTENT
    assert server.ranges_asked == [None] and server.sent == len(CONTENT)
    assert ticks[0] == ("data.bin", 0, len(CONTENT)) and ticks[-1] == ("data.bin", len(CONTENT), len(CONTENT))
    assert ticks == sorted(ticks)


def test_cut_again_and_again(got, server, pauses):
    server.cuts = [100_000, 1, 70_000, 90_000]
    assert got() == CONTENT
    assert server.ranges_asked == [None, "bytes=100000-", "bytes=100001-", "bytes=170001-", "bytes=260001-"]
    assert {entry.if_range for entry in server.log[1:]} == {'"1"'}
    assert server.sent == len(CONTENT)  # no byte twice
    assert pauses == [1, 1, 1, 1]


@given(cuts=st.lists(st.integers(0, 20_000), max_size=6), length=st.integers(0, 40_000))
@settings(max_examples=25)
def test_wherever_it_is_cut(tmp_path_factory, cuts, length):
    folder = tmp_path_factory.mktemp("cut")
    with serving() as running:
        running.files["data.bin"], running.cuts = CONTENT[:length], [*cuts]
        try:
            download(f"{running.address}/data.bin", folder / "data.bin", length, pause=lambda _: None)
        except InputError:  # allowed where that many answers in a row brought nothing
            assert "0" * ATTEMPTS in "".join("1" if cut else "0" for cut in cuts)
        else:
            assert (folder / "data.bin").read_bytes() == CONTENT[:length]
        assert running.sent <= length


CUT, AGAIN, UNVERSIONED = {"cuts": [100_000]}, "bytes=100000-", {"etag": None, "modified": None}
# What the server is like, and the Range and If-Range that it is asked for.
SERVERS = {
    "it ignores ranges": ({"ranges": False, "cuts": [200_000]}, [(None, None), ("bytes=200000-", '"1"')]),
    "a weak ETag is no condition": ({"etag": 'W/"1"', **CUT}, [(None, None), (AGAIN, MODIFIED)]),
    "without a version": (UNVERSIONED | CUT, [(None, None), (AGAIN, None)]),
    "another piece than asked for": ({"shift": 7, **CUT}, [(None, None), (AGAIN, '"1"'), (None, None)]),
    # The known size tells that the first answer was cut.
    "without a length": ({"length": "none", **CUT}, [(None, None), (AGAIN, '"1"')]),
    # A tgz must not be unpacked on the way.
    "packed once more": ({"headers": {"Content-Encoding": "gzip"}}, [(None, None)]),
}


@pytest.mark.parametrize("case", SERVERS)
def test_servers_of_every_kind(got, server, case):
    attributes, asked = SERVERS[case]
    vars(server).update(attributes, cuts=[*attributes.get("cuts", ())])
    assert got() == CONTENT
    assert [(entry.range, entry.if_range) for entry in server.log] == asked
    assert {entry.accepts for entry in server.log} == {"identity"}
    resumes = server.ranges and not server.shift
    assert server.sent == len(CONTENT) if resumes else server.log[-1].sent == len(CONTENT)


def test_a_length_that_lies_ends_in_an_error_or_in_the_file(got, server):
    server.length = str(len(CONTENT) + 10)  # nobody knows better: more is asked for, and 416 says that there is none
    assert got(size=None) == CONTENT
    assert server.ranges_asked == [None, f"bytes={len(CONTENT)}-"]


VERSION = {"ETag": '"1"', "Last-Modified": MODIFIED}
# Bytes that an earlier attempt left, its note, the size where it is known, and the answers that the rest takes.
LEFT = {
    "of unknown origin": (b"x" * 1000, None, len(CONTENT), [200]),
    **{f"a broken note, {note}": (b"x" * 1000, note, len(CONTENT), [200])
       for note in ("", "[]", "{}", "null", '{"total": 1')},
    "whole already": (CONTENT, json.dumps({"total": len(CONTENT), **VERSION}), len(CONTENT), []),
    "whole, but nobody said how much there is": (CONTENT, json.dumps({"total": None, **VERSION}), None, [416]),
    "more than the file has": (
        CONTENT + b"more", '{"total": null, "ETag": null, "Last-Modified": null}', len(CONTENT), [416, 200],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", LEFT)
def test_what_an_earlier_attempt_left(got, server, tmp_path, case):
    content, note, size, statuses = LEFT[case]
    (tmp_path / "data.bin.partial").write_bytes(content)
    if note is not None:
        (tmp_path / "data.bin.partial.json").write_text(note)
    assert got(size=size) == CONTENT
    assert [entry.status for entry in server.log] == statuses


def test_without_progress_it_gives_up_and_the_next_run_goes_on(got, server, pauses, tmp_path):
    server.cuts = [100_000, *[0] * ATTEMPTS]
    with pytest.raises(InputError, match=r"gave up after 5 attempts .*100000 bytes are kept in .*--mirror URL"):
        got()
    assert pauses == [1, 2, 4, 8, 16]
    assert (tmp_path / "data.bin.partial").stat().st_size == 100_000
    server.log.clear()
    assert got() == CONTENT
    assert server.ranges_asked == ["bytes=100000-"] and server.sent == len(CONTENT) - 100_000


@pytest.mark.parametrize("cuts", [(200_000, 200_000), (200_000, 100_000)])
def test_a_server_that_ignores_ranges_and_always_cuts_is_given_up(got, server, cuts):
    server.ranges, server.cuts = False, [*cuts] * 25
    with pytest.raises(InputError, match="gave up"):
        got()
    assert len(server.log) == 1 + ATTEMPTS


LATER = {"etag": '"2"', "modified": "Tue, 02 Jan 2018 00:00:00 GMT"}


@pytest.mark.parametrize("heeds_if_range", [True, False])
@pytest.mark.parametrize(
    "version, later, more",
    [({}, LATER, b""), ({"etag": None}, LATER | {"etag": None}, b""), (UNVERSIONED, {}, b"more")],
    ids=["etag", "date", "length"],
)
def test_a_file_that_changes_on_the_server_begins_anew(got, server, heeds_if_range, version, later, more):
    vars(server).update(version, heeds_if_range=heeds_if_range, cuts=[100_000, *[0] * ATTEMPTS])
    size = None if more else len(CONTENT)
    with pytest.raises(InputError, match="gave up"):
        got(size=size)
    vars(server).update(later, files={"data.bin": CONTENT[::-1] + more})
    assert got(size=size) == CONTENT[::-1] + more


def test_a_length_that_is_not_the_files_is_refused_at_once(got, server, tmp_path):
    server.length = "123"
    with pytest.raises(InputError, match=r"offers 123 bytes, but data.bin has 300000: another file; .*--mirror"):
        got()
    assert not (tmp_path / "data.bin.partial").exists()


@pytest.mark.parametrize("status", [403, 404, 410])
def test_a_status_that_stays_is_an_error_at_once(got, server, pauses, status):
    server.statuses = [status]
    with pytest.raises(InputError, match=rf"/data.bin: the server answers {status} .*--mirror URL.*data.bin"):
        got()
    assert len(server.log) == 1 and not pauses


def test_a_status_that_passes_is_tried_again(got, server, pauses):
    server.statuses = [503, 429, 500]
    assert got() == CONTENT
    assert pauses == [2, 4, 8]


def test_a_server_that_is_down(tmp_path, pauses):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{unused.getsockname()[1]}"
    with pytest.raises(InputError, match=r"gave up after 5 attempts .*--mirror URL") as error:
        fetch("bbbc038", tmp_path, mirror=address, say=print, pause=pauses.append)
    assert "\n" not in str(error.value) and pauses == [2, 4, 8, 16]


@pytest.mark.parametrize("url", ["http://", "http://[::1/x", "ftp://127.0.0.1/x"])
def test_an_address_that_is_none(tmp_path, pauses, url):
    with pytest.raises(InputError, match="not a usable address"):
        download(url, tmp_path / "x", pause=pauses.append)
    assert not pauses


def test_a_full_disk_and_room_again(got, server, tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, before[1]))
    try:
        with pytest.raises(InputError, match=r"data.bin.partial: cannot be written \(File too large\); make room"):
            got()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    have = (tmp_path / "data.bin.partial").stat().st_size
    assert 100_000 < have <= 200_000
    server.log.clear()
    assert got() == CONTENT
    assert server.ranges_asked == [f"bytes={have}-"]


# ---- a process that is killed


@pytest.mark.parametrize("kill", [signal.SIGINT, signal.SIGKILL])
def test_a_killed_process_loses_nothing(got, server, tmp_path, kill):
    server.hold_after = 150_000
    code = (
        "import signal, sys; from pathlib import Path; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from prm.eval.datasets.fetch import download\n"
        f"download({server.address + '/data.bin'!r}, Path({os.fspath(tmp_path / 'data.bin')!r}), {len(CONTENT)})"
    )
    child = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, cwd=Path(__file__).parents[2])
    partial = tmp_path / "data.bin.partial"
    ends = time.monotonic() + 60
    while not (partial.exists() and partial.stat().st_size >= 2 << 16):  # 150,000 bytes are two chunks and a bit
        assert child.poll() is None and time.monotonic() < ends, child.communicate()
        time.sleep(0.01)
    child.send_signal(kill)
    errors = child.communicate(timeout=60)[1]
    assert child.returncode != 0 and (kill != signal.SIGINT or b"KeyboardInterrupt" in errors)
    have = partial.stat().st_size
    assert have in (2 << 16, 150_000) and not (tmp_path / "data.bin").exists()

    server.hold_after = None
    server.log.clear()
    assert got() == CONTENT
    assert [(entry.range, entry.status) for entry in server.log] == [(f"bytes={have}-", 206)]
    assert server.sent == len(CONTENT) - have


# ---- whole data sets, from tiny archives in the official layout

PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010800000000"
    "3a7e9b550000000a49444154789c63f80f00010101005a1a2d2d0000000049454e44ae426082"
)
VOC2012, VOC2007 = "VOCdevkit/VOC2012", "VOCdevkit/VOC2007"
LAYOUTS = {
    ("voc2012", "trainval"): [
        f"{VOC2012}/{name}"
        for name in ("Annotations/2007_000032.xml", "JPEGImages/2007_000032.jpg", "SegmentationObject/2007_000032.png",
                     "ImageSets/Segmentation/val.txt")
    ],
    ("voc2007", "trainval"): [
        f"{VOC2007}/{name}"
        for name in ("Annotations/000005.xml", "JPEGImages/000005.jpg", "ImageSets/Main/trainval.txt")
    ],
    ("voc2007", "test"): [
        f"{VOC2007}/{name}" for name in ("Annotations/000001.xml", "JPEGImages/000001.jpg", "ImageSets/Main/test.txt")
    ],
    **{
        (f"coco{year}", part): names
        for year in (2014, 2017)
        for part, names in {
            "annotations": [f"annotations/instances_{split}{year}.json" for split in ("train", "val")],
            "train": [f"train{year}/COCO_000000000009.jpg"],
            "val": [f"val{year}/COCO_000000000042.jpg"],
        }.items()
    },
    ("sbd", "benchmark"): [
        f"benchmark_RELEASE/dataset/{name}"
        for name in ("img/2008_000002.jpg", "cls/2008_000002.mat", "inst/2008_000002.mat", "train.txt", "val.txt")
    ],
    ("sbd", "train_noval"): ["benchmark_RELEASE/dataset/train_noval.txt"],
    ("bbbc038", "train"): ["stage1_train/abc/images/abc.png", "stage1_train/abc/masks/m.png"],
}  # fmt: skip


def zipped(members: dict[str, bytes]) -> bytes:
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return held.getvalue()


def tarred(members: dict[str, bytes], mode: str = "w", more=()) -> bytes:
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode=mode) as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        for member in more:
            archive.addfile(member)
    return held.getvalue()


def packed(archive: Archive, members: dict[str, bytes]) -> bytes:
    if archive.file.endswith(".zip"):
        return zipped(members)
    if archive.file.endswith(".txt"):
        return next(iter(members.values()))
    return tarred(members, "w:gz" if archive.file.endswith(".tgz") else "w")


@pytest.fixture
def publish(server, monkeypatch):
    """Puts archives, by default in the official layout, on the server and their sizes and sums into the table, in place
    of the official ones."""

    def put(name: str, part: str, content: bytes | None = None) -> Archive:
        archive = SOURCES[name][part]
        content = packed(archive, members_of(name, part)) if content is None else content
        server.files[archive.file] = content
        md5 = archive.md5 and hashlib.md5(content).hexdigest()
        tiny = dataclasses.replace(archive, md5=md5, size=len(content), unpacked=2 * len(content))
        monkeypatch.setitem(SOURCES, name, {**SOURCES[name], part: tiny})
        return tiny

    return put


@pytest.fixture
def run(server, tmp_path, pauses):
    """fetch() from the server into tmp_path / "data"; returns the folder."""

    def call(name: str, **options) -> Path:
        given = {"mirror": f"{server.address}/some/folder/", "say": lambda _: None, "pause": pauses.append, **options}
        return fetch(name, tmp_path / "data", **given)

    return call


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def members_of(name: str, part: str) -> dict[str, bytes]:
    return {path: PNG if path.endswith("png") else f"{part} {path}\n".encode() for path in LAYOUTS[name, part]}


@pytest.mark.parametrize("name", SOURCES)
def test_the_official_layout(name, server, publish, run):
    expected = {}
    for part in SOURCES[name]:
        publish(name, part)
        expected |= members_of(name, part)
    said = []
    folder = run(name, say=said.append)
    stamp = json.loads((folder / STAMP).read_text())
    assert files(folder) == {**expected, STAMP: (folder / STAMP).read_bytes()}  # nothing else, no hidden leftover
    assert sorted(entry.path for entry in server.log) == sorted(
        f"/some/folder/{archive.file}" for archive in SOURCES[name].values()
    )
    for archive in SOURCES[name].values():
        content = server.files[archive.file]
        kind = "sha256" if archive.md5 is None else "md5"
        digest = hashlib.new(kind, content).hexdigest()
        assert stamp[archive.file] == {"bytes": len(content), "checksum": f"{kind}:{digest}"}
        assert (archive.md5 is None) == any(digest in line for line in said)
    server.log.clear()
    assert run(name) == folder and not server.log  # a second run does nothing
    shutil.rmtree(folder / Path(LAYOUTS[name, next(iter(SOURCES[name]))][0]).parts[0])
    run(name)
    assert server.log  # a stamp alone is no data set
    server.log.clear()
    (folder / STAMP).unlink()
    run(name)
    assert len(server.log) == len(SOURCES[name])  # nor is a folder of unknown origin


def test_two_data_sets_share_a_folder(publish, run):
    expected = {}
    for name in ("voc2012", "voc2007", "coco2014", "coco2017"):
        for part in SOURCES[name]:
            publish(name, part)
            expected |= members_of(name, part)
        folder = run(name)
    found = files(folder)
    assert {path: found[path] for path in expected} == expected and len(found) == len(expected) + 1


@pytest.mark.parametrize("top", ["stage1_train/", ""])
def test_bbbc038_with_and_without_its_first_folder(publish, run, top):
    members = {"abc/images/abc.png": PNG, "abc/masks/m.png": PNG}
    content = {f"{top}{path}": png for path, png in members.items()}
    publish("bbbc038", "train", zipped({**content, "__MACOSX/abc/._m.png": b"x"}))
    folder = run("bbbc038")
    assert set(files(folder)) == {f"stage1_train/{path}" for path in members} | {STAMP}
    assert [sample.name for sample in BBBC038(folder)] == ["abc"]


def test_parts(server, publish, run):
    publish("coco2014", "val")
    publish("coco2014", "train")
    folder = run("coco2014", parts=["val"])
    assert not (folder / "train2014").exists() and len(server.log) == 1
    run("coco2014", parts=["train", "val", "train"])
    assert (folder / "train2014").exists() and len(server.log) == 2


@pytest.mark.parametrize(
    "options, message",
    [
        ({"name": "voc2013"}, r"data set 'voc2013' is not known; choose one of voc2012, voc2007, coco2014"),
        ({"name": "coco2014", "parts": ["test"]}, r"coco2014 has no part 'test'; choose from annotations, train, val"),
        ({"name": "sbd", "mirror": "/mnt/mirror"}, r"mirror '/mnt/mirror': must begin with http"),
    ],
)
def test_bad_requests(run, tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        run(**options)
    assert not (tmp_path / "data").exists()


def test_ticks_tell_of_both_halves(publish, run):
    sizes = {}
    for part in SOURCES["voc2007"]:
        archive = publish("voc2007", part)
        sizes |= {archive.file: archive.size, f"unpacking {archive.file}": archive.size}
    ticks = []
    run("voc2007", tick=lambda *tick: ticks.append(tick))
    assert {what: total for what, _, total in ticks} == sizes
    assert all(0 <= done <= total for _, done, total in ticks)
    assert {what: done for what, done, _ in ticks} == sizes  # the last tick of each says that it is complete


# ---- checksums, and archives that are there already


def test_a_wrong_file_is_put_aside_and_the_next_run_gets_the_right_one(server, publish, run, tmp_path):
    archive = publish("voc2012", "trainval")
    right = server.files[archive.file]
    wrong = server.files[archive.file] = bytes(len(right))
    sums = [hashlib.md5(content).hexdigest() for content in (wrong, right)]
    with pytest.raises(InputError, match=rf"MD5 sum is {sums[0]}, but {sums[1]} is published; .*\.tar\.wrong"):
        run("voc2012")
    folder = tmp_path / "data"
    assert set(files(folder)) == {f"{archive.file}.wrong"}
    server.files[archive.file] = right
    run("voc2012")
    assert (folder / "VOCdevkit/VOC2012/JPEGImages/2007_000032.jpg").exists()


def test_an_archive_put_there_by_hand(server, publish, run, tmp_path):
    archive = publish("voc2012", "trainval")
    path = tmp_path / "data" / archive.file
    path.parent.mkdir()
    path.write_bytes(b"another file")
    with pytest.raises(InputError, match="is published"):
        run("voc2012")
    path.write_bytes(server.files[archive.file])
    path.with_name(f"{path.name}.partial").write_bytes(b"of an attempt that was given up")
    said = []
    folder = run("voc2012", say=said.append)
    assert not server.log and (folder / "VOCdevkit").is_dir()
    assert path.exists() and "is kept" in said[-1]  # what somebody brought is not deleted
    assert not path.with_name(f"{path.name}.partial").exists()


@pytest.mark.parametrize("keep", [True, False])
def test_archives_are_kept_where_that_is_asked_for(publish, run, keep):
    archive = publish("coco2017", "val")
    folder = run("coco2017", parts=["val"], keep=keep)
    assert (folder / archive.file).exists() == keep


def test_a_broken_stamp(publish, run, tmp_path):
    publish("coco2017", "val")
    (tmp_path / "data").mkdir()
    for text in ("{", "[]"):
        (tmp_path / "data" / STAMP).write_text(text)
        with pytest.raises(InputError, match=r"fetched.json: .*delete it"):
            run("coco2017", parts=["val"])


# ---- disk space


@pytest.mark.parametrize("keep, needed", [(False, "39.0 GB"), (True, "59.0 GB")])
def test_too_little_disk_space_is_told_first(server, run, monkeypatch, tmp_path, keep, needed):
    parts = SOURCES["coco2014"].items()
    ten = {part: dataclasses.replace(archive, size=10**10, unpacked=10**10) for part, archive in parts}
    monkeypatch.setitem(SOURCES, "coco2014", ten)
    (tmp_path / "data").mkdir()
    with open(tmp_path / "data" / "train2014.zip.partial", "wb") as partial:
        partial.truncate(10**9)  # sparse: takes no space
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=38 * 10**9))
    with pytest.raises(InputError, match=rf"29.0 GB to download, {needed} of disk space needed in .* 38.0 GB is free"):
        run("coco2014", keep=keep)
    assert not server.log


def test_what_is_there_already_needs_no_room(publish, run, tmp_path, monkeypatch, server):
    archive = publish("coco2017", "val")
    monkeypatch.setitem(SOURCES, "coco2017", {"val": dataclasses.replace(archive, unpacked=10**9)})
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / archive.file).write_bytes(server.files[archive.file])
    said = []
    run("coco2017", say=said.append)
    assert "0.0 MB to download, 1.0 GB of disk space" in said[0]


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be made the data folder"):
        fetch("sbd", tmp_path / "file" / "data")


# ---- unpacking


def link(kind: bytes, name: str, target: str) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


INSIDE = {"VOCdevkit/VOC2012/SegmentationObject/a.png": PNG}
UNSAFE = {
    "a tar with ..": ("voc2012", "trainval", lambda: tarred({**INSIDE, "../../out.txt": b"x"})),
    "a tar with a link": ("voc2012", "trainval", lambda: tarred(INSIDE, more=[link(tarfile.SYMTYPE, "a", "../../x")])),
    "a hard link": ("voc2012", "trainval", lambda: tarred(INSIDE, more=[link(tarfile.LNKTYPE, "a", "../../x")])),
    "a device": ("voc2012", "trainval", lambda: tarred(INSIDE, more=[link(tarfile.CHRTYPE, "a", "")])),
    "a zip with ..": ("bbbc038", "train", lambda: zipped({"stage1_train/a/images/a.png": PNG, "../../out.txt": b"x"})),
    "an absolute zip": ("bbbc038", "train", lambda: zipped({"stage1_train/a/images/a.png": PNG, "/tmp/out.txt": b"x"})),
    "not a zip": ("bbbc038", "train", lambda: b"<html>please log in</html>"),
    "a cut zip": ("bbbc038", "train", lambda: zipped({"stage1_train/a/images/a.png": PNG})[:-10]),
    "another zip": ("bbbc038", "train", lambda: zipped({"holiday/beach.jpg": PNG})),
    "an empty file": ("bbbc038", "train", lambda: b""),
    "a cut tgz": ("sbd", "benchmark", lambda: tarred(members_of("sbd", "benchmark"), "w:gz")[:-100]),
}


@pytest.mark.parametrize("case", UNSAFE)
def test_archives_that_are_unsafe_or_broken(case, publish, run, tmp_path):
    name, part, make = UNSAFE[case]
    archive = publish(name, part, make())
    with pytest.raises(InputError, match=r"(cannot be unpacked|does not hold).*\.wrong") as error:
        run(name, parts=[part])
    assert "\n" not in str(error.value)
    assert set(files(tmp_path)) == {f"data/{archive.file}.wrong"}  # neither inside nor outside, and no stamp
    assert not any(path.is_symlink() for path in tmp_path.rglob("*"))


def test_a_flipped_bit_is_found_where_no_checksum_is_published(publish, run):
    content = bytearray(zipped({"stage1_train/a/images/a.png": np.random.default_rng(1).bytes(5000)}))
    content[2000] ^= 1
    publish("bbbc038", "train", bytes(content))
    with pytest.raises(InputError, match=r"cannot be unpacked .*CRC"):
        run("bbbc038")


def test_an_interrupted_unpacking_never_looks_complete(server, publish, run, tmp_path):
    many = {f"val2017/{i:012}.jpg": CONTENT[1000 * i : 1000 * i + 1000] for i in range(20)}
    archive = publish("coco2017", "val", zipped(many))

    def stop(what, done, total):
        if what.startswith("unpacking") and done > total / 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run("coco2017", parts=["val"], tick=stop)
    folder = tmp_path / "data"
    assert set(files(folder)) == {archive.file}
    # what a killed process leaves behind does not get in the way, and is not taken over
    stale = folder / f".{archive.file}.unpacking"
    (stale / "val2017").mkdir(parents=True)
    (stale / "val2017/old.jpg").write_bytes(b"half")
    server.log.clear()
    run("coco2017", parts=["val"])
    assert not server.log and not stale.exists()
    assert set(files(folder)) == {*many, archive.file, STAMP}


def test_something_in_the_way(publish, run, tmp_path):
    publish("coco2017", "val")
    (tmp_path / "data").mkdir()
    (tmp_path / "data/val2017").write_text("a file")
    with pytest.raises(InputError, match=r"val2017.zip cannot be unpacked there"):
        run("coco2017", parts=["val"])
