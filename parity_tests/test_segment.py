"""`prm segment` on many pictures: answers as of one after the other, a line a bad picture, flat memory, clean ends."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("pycocotools")
from prm import InputError
from prm.accelerated import Segmenter
from prm.accelerated.checkpoint import random_checkpoint, save_checkpoint
from prm.eval import segment
from prm.eval.pictures.export import to_coco_results, write_results
from prm.eval.pictures.figures import overlay, panel, write_png
from prm.eval.pictures.images import read_image
from prm.eval.pictures.labels import label_image, rows_of, write_table, write_tiff
from prm.eval.pictures.pipeline import in_order, threads
from prm.eval.proposals import open_proposals, proposals_for
from prm.parity_tests.command import done, run

LIMIT = 60
STAGES = {"read", "proposals", "forward", "peaks", "walk", "retrieval", "drawing"}


def draw(path: Path, seed: int) -> Path:
    """A picture of bright rectangles on noise, of its own size."""
    rng = np.random.default_rng(seed)
    height, width = rng.integers(40, 90, 2)
    pixels = rng.integers(0, 60, (height, width, 3), dtype=np.uint8)
    for _ in range(3):
        row, column = rng.integers(0, height - 12), rng.integers(0, width - 12)
        pixels[row : row + rng.integers(8, 30), column : column + 12] = rng.integers(120, 255, 3)
    Image.fromarray(pixels).save(path)
    return path


def network(**settings):
    checkpoint = random_checkpoint("smallnet", ["thing", "other"], widths=(8, 8), pools=2, depth=1)
    checkpoint.segmentation = {"class_threshold": 0.0, "max_peaks": 10, **settings}
    return checkpoint


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A network, and a folder of seven pictures of which the fourth is damaged."""
    root = tmp_path_factory.mktemp("segment")
    save_checkpoint(network(), root / "net")
    (root / "pictures").mkdir()
    for k in range(7):
        draw(root / "pictures" / f"{k}.png", k)
    bad = root / "pictures" / "3.png"
    bad.write_bytes(bad.read_bytes()[:700])
    return root


@pytest.fixture
def segmenter():
    return Segmenter.from_checkpoint(network())


def files_of(folder: Path) -> list[Path]:
    return sorted((folder / "pictures").iterdir())


def one_after_the_other(segmenter, names, files, out: Path) -> None:
    results, rows = [], []
    for number, file in enumerate(files, start=1):
        try:
            image = read_image(file)
        except InputError:
            continue
        answer = segmenter([image], [proposals_for(image, None, LIMIT)])[0]
        write_png(out / f"{file.stem}.overlay.png", overlay(image, answer, names))
        write_png(out / f"{file.stem}.panel.png", panel(image, answer, names))
        write_tiff(out / "labels" / f"{file.stem}.tif", labels := label_image(answer))
        rows += rows_of(answer, labels, image, file.name, names)
        results += to_coco_results(answer, number, range(1, len(names) + 1), file.name, names)
    write_results(out / "instances.json", results)
    write_table(out / "instances.csv", rows)


# ---- the answers


@pytest.mark.parametrize("cache", [None, "cache"])
def test_the_answers_are_those_of_one_picture_after_the_other(place, tmp_path, segmenter, cache):
    serial, out, ticks = tmp_path / "serial", tmp_path / "out", []
    files, names = files_of(place), ["thing", "other"]
    one_after_the_other(segmenter, names, files, serial)
    for _ in range(2):  # the second time, the cache is warm
        answers = segment.segment_files(
            segmenter, names, files, out, limit=LIMIT, cache=cache and tmp_path / cache, tick=ticks.append
        )
    expected = {p.relative_to(serial).as_posix(): p.read_bytes() for p in serial.rglob("*.*")}
    assert {
        p.relative_to(out).as_posix(): p.read_bytes() for p in out.rglob("*.*") if p.name != "index.html"
    } == expected
    assert len(expected) == 3 * 6 + 2
    assert ticks == 2 * [file.name for file in files] and list(answers.pictures) == [str(file) for file in files]
    assert answers.instances == len(json.loads(expected["instances.json"])) > 0
    (text,) = answers.errors.values()
    assert text.startswith(f"{files[3]}: is damaged") and "\n" not in text
    page = (out / "index.html").read_text()
    assert [page.index(f"<h2>{file}") for file in files] == sorted(page.index(f"<h2>{file}") for file in files)


def test_pictures_of_one_name_in_subfolders(place, tmp_path):
    """Each is found, has its own name in instances.json and its own files, and is found again there as proposals."""
    pictures, out = tmp_path / "pictures", tmp_path / "pictures" / "out"
    for k, name in enumerate(("a/x.png", "b/x.png", "b/x.bmp", "a-x.png", "out/old.png")):
        (pictures / name).parent.mkdir(parents=True, exist_ok=True)
        draw(pictures / name, k)
    done("segment", "-c", place / "net", "--limit", LIMIT, "-r", ".", "-o", "out", cwd=pictures)
    drawn = {f"{stem}.{kind}.png" for stem in ("a-x", "a/x", "b/x", "b/x-2") for kind in ("overlay", "panel")}
    files = {p.relative_to(out).as_posix() for p in out.rglob("*.*")}
    drawn_labels = {f"labels/{stem}.tif" for stem in ("a-x", "a/x", "b/x", "b/x-2")}
    assert files == drawn | drawn_labels | {"instances.json", "instances.csv", "index.html", "old.png"}
    page = (out / "index.html").read_text()
    assert all(f'src="{name}"' in page for name in drawn)
    found = json.loads((out / "instances.json").read_text())
    names = ["a/x.png", "a-x.png", "b/x.bmp", "b/x.png"]
    assert {one["image_id"]: one["file_name"] for one in found} == dict(enumerate(names, start=1))
    reader = open_proposals(out / "instances.json")
    for name in names[:2]:
        with Image.open(pictures / name) as picture:
            masks, scores = reader(str(pictures / name), picture.size[::-1])
        own = [one["score"] for one in found if one["file_name"] == name]
        assert scores.tolist() == own and len(masks) == len(own)


def test_figures_by_picture(place, tmp_path, segmenter):
    answers = segment.segment_files(segmenter, ["thing", "other"], files_of(place), tmp_path, limit=LIMIT)
    for number, picture in enumerate(answers.pictures.values()):
        stages = set(picture["seconds"])
        assert stages == (STAGES if number != 3 else set()) and min(picture["seconds"].values(), default=0) >= 0
        if sys.platform == "linux":
            assert 10 < picture["memory_mb"] < 1e5
    busy = sum(sum(picture["seconds"].values()) for picture in answers.pictures.values())
    assert busy / 3 < answers.wall  # three threads


def test_an_error_of_a_later_stage_is_the_pictures_own(place, tmp_path, segmenter, monkeypatch):
    """Whatever stage it happens in, one line for that picture and the others are done."""
    made, calls = segmenter.__class__.__call__, []

    def sometimes(self, images, proposals):
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory:\nyou tried to allocate 1 byte")
        return made(self, images, proposals)

    monkeypatch.setattr(Segmenter, "__call__", sometimes)
    files = files_of(place)
    answers = segment.segment_files(segmenter, ["thing", "other"], files, tmp_path, limit=LIMIT)
    assert list(answers.errors) == [str(files[1]), str(files[3])] and "allocate" in answers.errors[str(files[1])]
    assert len(list(tmp_path.glob("*.panel.png"))) == 5


# ---- errors that end the run


@pytest.mark.parametrize("stage", ["read_image", "overlay"])
def test_a_mistake_in_a_thread_is_raised_once_and_no_thread_stays(place, tmp_path, segmenter, monkeypatch, stage):
    calls = []

    def broken(*_):
        calls.append(1)
        raise ZeroDivisionError(f"call {len(calls)}")

    monkeypatch.setattr(segment, stage, broken)
    before = threading.active_count()
    with pytest.raises(ZeroDivisionError, match="call 1"):
        segment.segment_files(segmenter, ["thing", "other"], files_of(place), tmp_path, limit=LIMIT)
    assert threading.active_count() == before and len(calls) <= 3
    assert not list(tmp_path.glob("instances.json"))


def test_what_cannot_be_written_ends_the_run(place, tmp_path, segmenter):
    (tmp_path / "2.overlay.png").mkdir()
    with pytest.raises(InputError, match=r"2\.overlay\.png"):
        segment.segment_files(segmenter, ["thing", "other"], files_of(place), tmp_path, limit=LIMIT)
    assert not list(tmp_path.glob("*.tmp"))


# ---- the threads themselves


def test_in_order_holds_its_bound_and_its_order():
    begun, ended = [], []

    def items():
        for k in range(9):
            assert threading.current_thread() is threading.main_thread()
            begun.append(k)
            yield k

    with ThreadPoolExecutor(1) as pool:
        for k in in_order(pool, lambda k: (time.sleep(0.01 * (k % 2)), k)[1], items(), waiting=2):
            ended.append(k)
            assert len(begun) - len(ended) <= 2
    assert ended == begun == list(range(9))


def test_in_order_raises_an_error_at_its_turn():
    got = []
    with threads(1) as (pool,), pytest.raises(ZeroDivisionError):
        for x in in_order(pool, lambda k: 6 / k, [3, 2, 0, 1]):
            got.append(x)
    assert got == [2, 3]


# ---- memory and interruption, each in a process of its own

MANY = """
import json, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from prm.accelerated import Segmenter
from prm.accelerated.checkpoint import load_checkpoint
from prm.eval.pictures.memory import SteadyMemory
from prm.eval.segment import segment_files

network, pictures, out = map(Path, sys.argv[1:])
segment, kept = Segmenter.__call__, []

def leaky(self, images, proposals):
    answers = segment(self, images, proposals)
    kept.extend(one.prm.clone() for answer in answers for one in answer.instances)
    return answers

def trimmed(self, call=SteadyMemory.__call__):
    self._least = 0  # it is time
    return call(self)

SteadyMemory.__call__ = trimmed  # what is in use, without what is kept for the next picture
segmenter = Segmenter.from_checkpoint(load_checkpoint(network), size=384)
for call in (segment, leaky):
    Segmenter.__call__ = call
    answers = segment_files(segmenter, ["thing", "other"], sorted(pictures.iterdir()), out, limit=30)
    print(json.dumps([picture["memory_mb"] for picture in answers.pictures.values()]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read from /proc")
def test_memory_is_flat_and_a_leak_would_be_seen(place, tmp_path):
    """Growth in MB from the second quarter of many pictures to the last: within noise, unless PRMs are kept."""
    (tmp_path / "pictures").mkdir()
    for k in range(24):
        draw(tmp_path / "pictures" / f"{k:02d}.png", k)

    arguments = [place / "net", tmp_path / "pictures", tmp_path / "out"]
    ended = subprocess.run([sys.executable, "-c", MANY, *map(str, arguments)], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    runs = map(json.loads, ended.stdout.splitlines())
    flat, leak = (median(memory[18:]) - median(memory[6:12]) for memory in runs)
    assert flat < 15 and leak > 30, (flat, leak)


@pytest.mark.skipif(os.name != "posix", reason="Ctrl-C is sent as a signal")
def test_an_interruption_ends_soon_and_leaves_whole_files(place, tmp_path):
    pictures, out = tmp_path / "pictures", tmp_path / "out"
    pictures.mkdir()
    for k in range(100):
        draw(pictures / f"{k:03d}.png", k)
    prm = str(Path(sys.executable).with_name("prm"))
    command = [prm, "segment", str(pictures), "-c", str(place / "net"), "-o", str(out)]
    # Whoever runs the tests in the background may have told its processes to pass Ctrl-C over.
    heed = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=heed)
    try:
        until = time.monotonic() + 60
        while len(list(out.glob("*.panel.png"))) < 3 and process.poll() is None and time.monotonic() < until:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=40)
    finally:
        process.kill()
    assert process.returncode == 130 and "Traceback" not in said
    written = sorted(p.name for p in out.iterdir() if p.is_file())
    assert 6 <= len(written) < 200 and all(name.endswith((".overlay.png", ".panel.png")) for name in written)
    for name in written:
        Image.open(out / name).load()


def test_the_command_says_what_it_took_of_a_file(place, tmp_path):
    tifffile = pytest.importorskip("tifffile")
    with Image.open(place / "pictures" / "0.png") as picture:
        values = np.moveaxis(np.array(picture), 2, 0).astype(np.float64)
    (tmp_path / "pictures").mkdir()
    for name, axes in (("stack", "ZYX"), ("cells", "CYX")):
        stack, file = values if axes == "ZYX" else values[:2], tmp_path / "pictures" / f"{name}.tif"
        tifffile.imwrite(file, stack, photometric="minisblack", metadata={"axes": axes})
    told = run("segment", "pictures", "-c", place / "net", "--limit", LIMIT, "--json", "figures.json", "--page", 1,
               cwd=tmp_path)  # fmt: skip
    note = f"pictures/stack.tif: axes ZYX {values.shape}: took Z 1 of 3"
    assert told.returncode == 2 and f"prm: note: {note}\n" in told.stderr, told.stderr
    assert told.stderr.count("prm: error: ") == 1 and "pictures/cells.tif: axes CYX" in told.stderr
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["notes"] == {"pictures/stack.tif": note} and list(figures["failed"]) == ["pictures/cells.tif"]


def test_the_command_says_time_and_memory(place, tmp_path):
    told = run("segment", "pictures", "-c", "net", "-o", tmp_path, "--limit", LIMIT,
               "--json", tmp_path / "figures.json", cwd=place)  # fmt: skip
    assert told.returncode == 2 and told.stderr.count("prm: error: ") == 1 and "3.png: is damaged" in told.stderr
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["pictures_per_second"] == pytest.approx(7 / figures["wall_seconds"], rel=0.1)
    assert set(figures["by_picture"]["pictures/0.png"]["seconds"]) == STAGES
    assert "memory_mb" in figures["by_picture"]["pictures/3.png"] and list(figures["failed"]) == ["pictures/3.png"]
