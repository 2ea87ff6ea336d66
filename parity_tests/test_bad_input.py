"""Bad input through the command: one clear line, exit code 2, nothing lost; odd but valid pictures work."""

import io
import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from prm.accelerated.checkpoint import random_checkpoint, save_checkpoint
from prm.eval.pictures.images import read_image
from prm.eval.proposals import proposals_for
from prm.eval.proposals.formats import authors_json
from prm.parity_tests.command import run

TINY = ["--network-options", '{"widths": [4, 4]}', "--size", "32", "--epochs", "1"]
PICTURE = np.random.default_rng(0).integers(0, 60, (48, 64, 3), dtype=np.uint8)
PICTURE[10:30, 10:30], PICTURE[28:44, 40:60] = 200, (200, 90, 40)


def errors(result: subprocess.CompletedProcess) -> list[str]:
    """The error lines of a run that failed as it should; whatever came before them is progress."""
    assert result.returncode == 2, result
    assert "Traceback" not in result.stderr, result.stderr
    lines = [line for line in result.stderr.splitlines() if line.startswith("prm: error: ")]
    assert lines and result.stderr.splitlines()[-len(lines) :] == lines, result.stderr
    return lines


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder of everything that the cases name: networks, pictures, data sets, proposals, all tiny."""
    root = tmp_path_factory.mktemp("bad")
    _networks(root)
    good = root / "good.png"
    Image.fromarray(PICTURE).save(good)
    (root / "empty").mkdir()
    (root / "file").write_text("a file")
    _datasets(root, good)
    _proposals(root, good)
    return root


def _networks(root: Path) -> None:
    checkpoint = random_checkpoint("smallnet", ["thing"], widths=(8, 8), pools=2, depth=1)
    checkpoint.segmentation = {"class_threshold": 0.0, "max_peaks": 10}
    save_checkpoint(checkpoint, root / "net" / "checkpoint.json")
    for name in ("damaged", "misfit", "other-network", "setting", "window"):
        shutil.copytree(root / "net", root / name)
    for name, change in (
        ("misfit", {"class_names": ["thing", "other"]}),
        ("other-network", {"network": {"name": "alexnet", "options": {}}}),
        ("setting", {"segmentation": {"no_such_setting": 1}}),
        ("window", {"segmentation": {"window": 4}}),
    ):
        page = root / name / "checkpoint.json"
        page.write_text(json.dumps(json.loads(page.read_text()) | change))
    (weights,) = (root / "damaged").glob("*.safetensors")
    data = bytearray(weights.read_bytes())
    data[-5] ^= 1
    weights.write_bytes(data)
    (root / "random.json").write_text('{"answer": 42}')
    torch.save({"weight": torch.zeros(3)}, root / "foreign.pth")


def _datasets(root: Path, good: Path) -> None:
    for name, table, classes in (
        ("things", "file,labels\na.png,thing\nb.png,\n", "thing\n"),
        ("pets", "file,labels\na.png,cat\nb.png,dog\n", None),
        ("classes-lack", "file,labels\na.png,thing\nb.png,dog\n", "thing\n"),
        ("picture-missing", "file,labels\na.png,thing\nc.png,\n", "thing\n"),
        ("picture-broken", "file,labels\na.png,thing\nb.png,\n", "thing\n"),
    ):
        for split in ("train", "val"):
            folder = root / name / split
            folder.mkdir(parents=True)
            (folder / "labels.csv").write_text(table)
            for file in ("a.png", "b.png"):
                shutil.copy(good, folder / file)
            if classes:
                (folder / "classes.txt").write_text(classes)
            if name == "picture-broken":
                (folder / "b.png").write_text("broken")
    mask = np.zeros((48, 64), np.uint8)
    mask[10:30, 10:30] = 255
    for k in range(12):  # so many that both splits have some
        for kind, image in (("images", Image.open(good)), ("masks", Image.fromarray(mask))):
            (root / "nuclei" / "stage1_train" / f"n{k}" / kind).mkdir(parents=True)
            image.save(root / "nuclei" / "stage1_train" / f"n{k}" / kind / f"n{k}.png")


def _proposals(root: Path, good: Path) -> None:
    pictures, proposals = root / "pictures", root / "proposals"
    pictures.mkdir(), proposals.mkdir()
    for name in ("whole", "broken", "other-size", "missing", "no-list"):
        shutil.copy(good, pictures / f"{name}.png")
    image = read_image(good)
    authors_json.write(proposals / "whole.json", proposals_for(image, None, 20))
    authors_json.write(proposals / "other-size.json", proposals_for(image[:20], None, 20))
    (proposals / "broken.json").write_text('[{"data": ')
    (proposals / "no-list.json").write_text("{}")
    (proposals / "no-shape.json").write_text('[{"runs": 1}]')


# --------------------------------------------------------------------------------------- runs that end with one line

# name: (arguments, what the line must say)
CASES = {
    "picture missing": (["segment", "nowhere.png", "-c", "net"], ["nowhere.png", "No such file"]),
    "folder without pictures": (["segment", "empty", "-c", "net"], ["empty", "no picture"]),
    "checkpoint missing": (["segment", "good.png", "-c", "nowhere"], ["nowhere", "no such checkpoint"]),
    "checkpoint is other JSON": (["segment", "good.png", "-c", "random.json"], ["random.json", "not a checkpoint"]),
    "checkpoint is torch's": (["segment", "good.png", "-c", "foreign.pth"], ["foreign.pth", "not a checkpoint"]),
    "weights damaged": (["segment", "good.png", "-c", "damaged"], ["damaged/checkpoint.weights", "SHA-256"]),
    "weights do not fit": (["segment", "good.png", "-c", "misfit"], ["misfit", "do not fit"]),
    "checkpoint of unknown network": (["segment", "good.png", "-c", "other-network"], ["other-network", "alexnet"]),
    "checkpoint with unknown setting": (["segment", "good.png", "-c", "setting"], ["setting", "no_such_setting"]),
    "checkpoint with bad setting": (["segment", "good.png", "-c", "window", "-o", "o1"], ["window", "odd integer"]),
    "one file of proposals for many": (
        ["segment", "pictures", "-c", "net", "--proposals", "proposals/whole.json"], ["one file", "folder"],
    ),
    "no proposals there": (["segment", "good.png", "-c", "net", "--proposals", "nowhere"], ["nowhere", "no such"]),
    "proposals without shape": (
        ["segment", "good.png", "-c", "net", "--proposals", "proposals/no-shape.json"], ["no-shape.json", "'shape'"],
    ),
    "out is a file": (["segment", "good.png", "-c", "net", "-o", "file"], ["file", "output folder"]),
    "out below a file": (["segment", "good.png", "-c", "net", "-o", "file/below"], ["file/below", "output folder"]),
    "cache is a file": (["segment", "good.png", "-c", "net", "-o", "o3", "--cache", "file"], ["file", "cache"]),
    "weight is not a number": (["segment", "good.png", "-c", "net", "--alpha", "nan"], ["--alpha", "nan"]),
    "no such device": (
        ["segment", "good.png", "-c", "net", "--device", "abacus" if torch.cuda.is_available() else "cuda"],
        ["device", "--device cpu"],
    ),
    "eval of no data set": (["eval", "--data", "empty", "-c", "net"], ["empty", "labels.csv"]),
    "eval of an unknown split": (["eval", "--data", "things", "-c", "net", "--split", "test"], ["'test'", "'val'"]),
    "eval of other classes": (
        ["eval", "--data", "pets", "-c", "net"], ["pets/val/labels.csv line 2", "unknown class 'cat'", "thing"],
    ),
    "eval of a broken picture": (["eval", "--data", "picture-broken", "-c", "net"], ["picture-broken/val/b.png"]),
    "tune without masks": (["tune", "--data", "things", "-c", "net"], ["things", "masks"]),
    "compare of no run": (["eval", "compare", "random.json"], ["random.json", "not the figures"]),
    "train with a class not in classes.txt": (
        ["train", "--data", "classes-lack", "-o", "t1", *TINY], ["labels.csv line 3", "'dog'", "thing"],
    ),
    "train without a listed picture": (
        ["train", "--data", "picture-missing", "-o", "t1", *TINY], ["labels.csv line 3", "c.png"],
    ),
    "train on a broken picture": (
        ["train", "--data", "picture-broken", "-o", "t2", *TINY], ["picture-broken/train/b.png"],
    ),
    "options that are no JSON": (
        ["train", "--data", "things", "-o", "t1", "--network-options", "deep"], ["--network-options", "deep", "JSON"],
    ),
    "unknown network": (["train", "--data", "things", "-o", "t1", "--network", "lenet"], ["lenet", "smallnet"]),
    "unknown aggregation": (["train", "--data", "things", "-o", "t1", "--aggregation", "sum"], ["sum", "wildcat"]),
    "network too deep for the crop": (
        ["train", "--data", "things", "-o", "t1", "--size", "16", "--network-options", '{"widths": [4, 4, 4, 4, 4], '
         '"pools": 5}'], ["16 pixels", "too small"],
    ),
    "tiles of a labelled set": (["train", "--data", "things", "-o", "t1", "--tile", "16"], ["--tile", "BBBC038"]),
    "no tiles of BBBC038": (["train", "--data", "nuclei", "-o", "t1"], ["nuclei", "--tile"]),
    "train into a file": (["train", "--data", "things", "-o", "file", *TINY], ["file", "output folder"]),
    "out holds a checkpoint": (["train", "--data", "things", "-o", "net", *TINY], ["net", "--resume"]),
}  # fmt: skip
# What the parser itself refuses, in its own words: (arguments, option that it must name).
USAGE = {
    "unknown option": (["segment", "good.png", "--frobnicate"], "--frobnicate"),
    "no picture named": (["segment"], "IMAGE"),
    "overlap above 1": (["segment", "good.png", "--nms", "2"], "--nms"),
    "overlap not a number": (["segment", "good.png", "--nms", "nan"], "--nms"),
    "probability below 0": (["segment", "good.png", "--class-threshold", "-0.5"], "--class-threshold"),
    "size too small": (["segment", "good.png", "--size", "10"], "--size"),
    "negative momentum": (["train", "--data", "things", "-o", "t1", "--momentum", "-1"], "--momentum"),
}


@pytest.fixture(scope="module")
def kept(place):
    """The folder of all cases; none of them may change what was there, or leave anything of a refused training."""
    before = content(place / "net")
    yield place
    assert content(place / "net") == before and (place / "file").read_text() == "a file"
    assert not (place / "t1").exists() and not list(place.glob("t2/*"))


@pytest.mark.parametrize("case", CASES)
def test_one_line(kept, case):
    (line,) = errors(run(*CASES[case][0], cwd=kept))
    for word in CASES[case][1]:
        assert word in line


@pytest.mark.parametrize("case", USAGE)
def test_usage(kept, case):
    result = run(*USAGE[case][0], cwd=kept)
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert USAGE[case][1] in result.stderr


# ------------------------------------------------------------------------------------------- bad pictures among good


@pytest.fixture(scope="module")
def mixed(place):
    """A run over a folder of bad pictures with a good one among them."""
    folder = place / "mixed"
    folder.mkdir()
    whole = (place / "good.png").read_bytes()
    (folder / "truncated.png").write_bytes(whole[: len(whole) // 2])
    (folder / "zero-byte.png").write_bytes(b"")
    (folder / "text.jpg").write_text("this is no picture")
    Image.fromarray(PICTURE).save(folder / "truncated.jpg")
    os.truncate(folder / "truncated.jpg", (folder / "truncated.jpg").stat().st_size // 2)
    (folder / "no-header.tif").write_bytes(b"II*\0" + bytes(40))
    (folder / "w.png").write_bytes(whole)
    return run("segment", folder, "-c", "net", "-o", "mixed-out", "--json", "mixed.json", cwd=place)


BAD = {"truncated.png": "truncated", "zero-byte.png": "0 bytes", "text.jpg": "not a picture",
       "truncated.jpg": "truncated", "no-header.tif": "not a picture"}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_picture_is_reported(mixed, place, name):
    lines = [line for line in errors(mixed) if name in line]
    assert len(lines) == 1 and BAD[name] in lines[0]
    assert name in (place / "mixed-out" / "index.html").read_text()
    assert not list((place / "mixed-out").glob(f"{Path(name).stem}*.png"))


def test_the_good_picture_among_bad_ones_is_done(mixed, place):
    assert len(errors(mixed)) == len(BAD)
    out = place / "mixed-out"
    assert sorted(p.name for p in out.iterdir()) == [
        "index.html", "instances.csv", "instances.json", "labels", "w.overlay.png", "w.panel.png"]  # fmt: skip
    found = json.loads((out / "instances.json").read_text())
    assert found and {instance["file_name"] for instance in found} == {"w.png"}
    figures = json.loads((place / "mixed.json").read_text())
    assert figures["pictures"] == 1 + len(BAD) and len(figures["failed"]) == len(BAD)


@pytest.fixture(scope="module")
def proposed(place):
    """A run over pictures whose proposals are bad, with a good one among them."""
    return run("segment", "pictures", "-c", "net", "--proposals", "proposals", "-o", "proposed", cwd=place)


@pytest.mark.parametrize("name, words", [
    ("broken", "is not JSON"), ("other-size", "20 x 64"), ("missing", "No such file"), ("no-list", "list of masks"),
])
def test_bad_proposals_are_reported(proposed, name, words):
    (line,) = (line for line in errors(proposed) if f"proposals/{name}.json" in line)
    assert words in line and f"pictures/{name}.png" in line


def test_the_good_proposals_among_bad_ones_are_used(proposed, place):
    assert len(errors(proposed)) == 4
    assert (place / "proposed" / "whole.overlay.png").exists()
    assert json.loads((place / "proposed" / "instances.json").read_text())


# ------------------------------------------------------------------------------------------ odd pictures that are fine


def _odd(folder: Path) -> None:
    image, deep = Image.fromarray(PICTURE), PICTURE[..., 0].astype(np.uint16) * 16 + 200
    alpha = np.dstack([PICTURE, np.full((48, 64), 255, np.uint8)])
    alpha[:, :20, 3] = 0
    Image.fromarray(deep).save(folder / "deep.png")
    Image.fromarray(deep).save(folder / "deep-tiff.tif")
    Image.fromarray(PICTURE[..., 0]).save(folder / "grey.png")
    Image.fromarray(alpha).save(folder / "alpha.png")
    image.convert("CMYK").save(folder / "cmyk.jpg")
    image.convert("P").save(folder / "palette.gif")
    Image.new("RGB", (1, 1), (9, 99, 200)).save(folder / "pixel.png")
    Image.new("RGB", (64, 48)).save(folder / "black.png")
    Image.fromarray(np.tile(PICTURE, (1, 313, 1))[:, :20_000]).save(folder / "wide.png")
    Image.new("RGB", (20_000, 1), "red").save(folder / "line.png")
    image.save(folder / "ü [b] #1 %41.PNG")


ODD = {"deep": (48, 64), "deep-tiff": (48, 64), "grey": (48, 64), "alpha": (48, 64), "cmyk": (48, 64),
       "palette": (48, 64), "pixel": (1, 1), "black": (48, 64), "wide": (48, 20_000), "line": (1, 20_000),
       "ü [b] #1 %41": (48, 64)}  # fmt: skip


@pytest.fixture(scope="module")
def odd(place):
    folder = place / "odd"
    folder.mkdir()
    _odd(folder)
    return run("segment", folder, "-c", "net", "-o", "odd-out", cwd=place)


@pytest.mark.parametrize("name", ODD)
def test_odd_picture_works(odd, place, name):
    assert odd.returncode == 0 and "Traceback" not in odd.stderr and "error" not in odd.stderr, odd
    for kind in ("overlay", "panel"):
        with Image.open(place / "odd-out" / f"{name}.{kind}.png") as image:
            image.load()
            assert min(image.size) >= 80 and max(image.size) <= 1700
    found = json.loads((place / "odd-out" / "instances.json").read_text())
    own = [i for i in found if Path(i["file_name"]).stem == name]
    # Nothing can be segmented in a picture of one pixel or one colour.
    assert own or name in ("pixel", "black", "line")
    assert all(i["segmentation"]["size"] == list(ODD[name]) for i in own)


# ------------------------------------------------------------------------------------------------------- a full disk


def test_full_disk(place):
    """What fits is whole, what does not fit is not there, and there is one line."""
    disk = place / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no permission to mount a small disk")
    try:
        result = run("segment", "pictures", "-c", "net", "-o", disk / "out", cwd=place)
        (line,) = errors(result)
        assert str(disk) in line and "No space left" in line
        for file in (disk / "out").rglob("*.*"):
            assert file.suffix in (".png", ".tif")  # no temporary file, and no page of a run that was cut short
            Image.open(io.BytesIO(file.read_bytes())).load()  # a TIFF that Pillow opens itself stays mapped
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_figures_onto_a_full_disk_lose_nothing_else(place):
    (line,) = errors(run("segment", "good.png", "-c", "net", "-o", "kept", "--json", "/dev/full", cwd=place))
    assert "/dev/full" in line and "No space left" in line
    assert {p.name for p in (place / "kept").iterdir()} == {
        "good.overlay.png", "good.panel.png", "index.html", "instances.csv", "instances.json", "labels",
    }  # fmt: skip
