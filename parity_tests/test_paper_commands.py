"""The commands of docs/paper.md for VOC and COCO, each on a miniature in the official layout."""

import json
import shutil
from subprocess import Popen

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from prm.eval.datasets import open_dataset
from prm.parity_tests.command import Here, done, run
from prm.parity_tests.documents import ROOT, blocks, commands
from prm.parity_tests.miniatures import write_coco, write_voc
from prm.parity_tests.test_cli import TINY

VOC = "data/VOCdevkit/VOC2012"
OPTIONS = ("--", *TINY, "--epochs", 1)
SERIES = ("--aggregation", "average", "--aggregation", "peak", "--seeds", 1)


@pytest.fixture(scope="module", autouse=True)
def trained_here():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("subprocess.Popen", Here)
        yield


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """VOC 2012 and COCO 2014 in small, and for VOC two networks and proposals as MCG's files have them."""
    root = tmp_path_factory.mktemp("paper")
    write_voc(root / "data", 2012, pictures=5, size=80)
    write_coco(root / "coco", 2014, pictures=3, size=80)
    done("eval", "train", "--data", VOC, "--out", "voc", *SERIES, "--json", "voc.json", *OPTIONS, cwd=root)
    mcg = root / "mcg"
    mcg.mkdir()
    sets = [open_dataset(root / VOC, split) for split in ("val", "train")]
    for k, sample in enumerate(dataset[i] for dataset in sets for i in range(len(dataset))):
        height, width = sample.image.shape[:2]
        rows, columns = np.indices((height, width)) // 16
        superpixels = (rows * 5 + columns + 1).astype(np.uint16)
        labels = np.empty((20, 1), object)
        rng = np.random.default_rng(k)
        for i in range(20):
            labels[i, 0] = np.unique(rng.integers(1, superpixels.max() + 1, (1, 6))).astype(np.uint16)
        savemat(mcg / f"{sample.name}.mat", {"superpixels": superpixels, "labels": labels,
                                              "scores": rng.random((20, 1))})  # fmt: skip
    return root


def test_the_data_sets_are_whole(place):
    for path in (VOC, "coco"):
        assert "0 problems" in done("data", "check", path, cwd=place)
    broken = place / "broken"
    write_voc(broken, 2012, pictures=2, size=80)
    (broken / "VOCdevkit" / "VOC2012" / "JPEGImages" / "2008_000001.jpg").unlink()
    told = run("data", "check", "broken", "--json", "broken.json", cwd=place)
    assert told.returncode == 1 and "2008_000001.jpg" in told.stdout
    assert len(json.loads((place / "broken.json").read_text())["problems"]) == 1


def test_a_series_is_trained_once(place):
    rows = json.loads((place / "voc.json").read_text())["runs"]
    assert [(row["aggregation"], row["state"]) for row in rows] == [("average", "trained"), ("peak", "trained")]
    again = done("eval", "train", "--data", VOC, "--out", "voc", *SERIES, "--json", "again.json", *OPTIONS, cwd=place)
    rows = json.loads((place / "again.json").read_text())["runs"]
    assert [row["state"] for row in rows] == ["found", "found"] and "finished before" in again
    refused = run("eval", "train", "--data", "coco", "--out", "voc", "--", "--seed", 3, cwd=place)
    assert refused.returncode == 2 and "--seed" in refused.stderr


def test_settings_are_chosen_on_the_training_pictures_with_masks(place):
    done("tune", "--data", VOC, "--split", "seg-train", "-c", "voc/peak-0", "--limit", 60,
         "--alpha", "0.8,3", "--beta-area", "2,20", "--json", "tuned.json", cwd=place)  # fmt: skip
    page = json.loads((place / "voc" / "peak-0" / "checkpoint.json").read_text())
    assert page["segmentation"]["alpha"] in (0.8, 3.0) and page["segmentation"]["beta_area"] in (2.0, 20.0)


def test_table_1_on_val_and_all_others_on_the_pictures_with_masks(place):
    both = ("-c", "voc/average-0", "-c", "voc/peak-0", "--proposals", "mcg", "--bootstrap", 20)
    one = done("eval", "tables", "--data", VOC, "--split", "val", *both, "--out", "t1", cwd=place)
    rest = done("eval", "tables", "--data", VOC, "--split", "seg-val", *both, "--out", "t2",
                "--name", "VOC in small", "--json", "claims.json", cwd=place)  # fmt: skip
    assert "Table 1" in one and "VOC2012, val, 5 pictures" in one
    alone = done("eval", "tables", "--data", VOC, "--split", "val", *both, "--no-masks", "--out", "t0", cwd=place)
    first = one[: one.index("**Table 2")].replace(", 4 with masks", "")
    assert alone.startswith(first.rstrip()) and "Table 2" not in alone and ", 4 with masks" in one
    for title in ("Table 2", "Table 3", "Table 4", "Table 5", "Table 6", "Figure 6", "Per class", "poster of WISE"):
        assert title in rest
    assert "VOC in small, seg-val, 4 pictures" in rest
    assert (place / "t2" / "tables.md").read_text().rstrip() == rest.rstrip()
    figures = json.loads((place / "t2" / "peak-0.json").read_text())
    assert figures["void_ignored"] is not None and figures["run"]["proposals"]["files"] == "mcg"
    assert figures["proposals"]["per_picture"] == 20
    (found,) = json.loads((place / "claims.json").read_text())["claims"]
    assert {claim["verdict"] for claim in found["claims"]} == {"not decided"}
    # From the files alone the same tables.
    assert done("eval", "tables", "t2/average-0.json", "t2/peak-0.json", cwd=place) == rest


def test_upper_bounds_and_recall_need_no_network(place):
    bounds = done("eval", "tables", "--data", "coco", "--split", "val", "--out", "bounds", "--limit", 50,
                  "--bootstrap", 20, cwd=place)  # fmt: skip
    assert "Table 4" in bounds and "Table 5" not in bounds and "not decided" not in bounds
    figures = json.loads((place / "bounds" / "bounds.json").read_text())
    assert figures["instances"]["true masks: truth"]["ABO"] == 1.0 and figures["run"]["network"] is None
    quality = done("eval", "proposals", "--data", VOC, "--split", "seg-val", "--proposals", "mcg",
                   "--no-baselines", "--limit", 20, "--plot", "quality.png", "--json", "quality.json",
                   cwd=place)  # fmt: skip
    assert "ABO" in quality and Image.open(place / "quality.png").width > 400
    rows = json.loads((place / "quality.json").read_text())["rows"]
    assert set(rows) == {"generated", "mcg"} and rows["mcg"]["proposals"] <= 20


def test_bad_input_is_one_line(place):
    for arguments, words in (
        (("eval", "tables"), "nothing to make tables of"),
        (("eval", "tables", "-c", "voc/peak-0"), "--data"),
        (("eval", "tables", "quality.json"), "not the figures of a run"),
        (("eval", "tables", "--data", "data", "--split", "vall"), "seg-val"),
        (("eval", "tables", "--data", "data", "-c", "voc/peak-0", "-c", "voc/../voc/peak-0"), "'voc-peak-0'"),
        (("eval", "tables", "--data", "data", "--split", "val", "--proposals", "nowhere"), "nowhere"),
        (("eval", "proposals", "--data", "data", "--split", "val", "--half", "third"), "even"),
    ):
        told = run(*arguments, cwd=place)
        assert told.returncode == 2 and words in told.stderr and told.stderr.strip().count("\n") == 0, told


SMALL = {"--network": "smallnet", "--size": "64", "--epochs": "1", "--batch-size": "4", "--workers": "0",
         "--seeds": "1", "--device": "cpu", "--proposals": "mcg"}  # fmt: skip


def in_small(words):
    """A command line of the page with the miniature's values for those that a whole data set needs."""
    words = [SMALL.get(before, word) for before, word in zip(["", *words], words)]
    if "--weights" in words:
        at = words.index("--weights")
        words[at : at + 2] = TINY[:2]
    return [*words, "--bootstrap", "20"] if words[1] in ("tables", "report") else words


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize("data", ["voc", "coco"])
def test_the_pages_own_commands(place, tmp_path, data):
    (block,) = [one for one in blocks(ROOT / "docs" / "paper.md") if f"--out runs/{data}" in one]
    for name in SERIES[1:4:2]:  # what the shell's patterns find once the series is trained
        (tmp_path / "runs" / data / f"{name}-0").mkdir(parents=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("subprocess.Popen", Popen)  # of the shell that reads the page
        fetch, *found = commands(block, tmp_path)
    assert fetch[:3] == ["prm", "data", "fetch"]
    for words in found:
        two = SERIES[:4] if "train" in words else ()  # of the five aggregations
        at = words.index("--data")
        done(*in_small([*words[1:at], *two, *words[at:]]), cwd=place)
    table = (place / f"{data}-val" / "tables.md").read_text()
    assert "Table 1" in table and "Table 2" not in table
    if data == "voc":
        page = (place / "voc-seg" / "report.html").read_text()
        assert all(f"Table {n}" in page for n in range(1, 7))


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_the_commands_of_wise(place, tmp_path):
    """Labels, a student that learns them, its figures, refined too: as on the page, with a small student."""
    (block,) = [one for one in blocks(ROOT / "docs" / "paper.md") if "prm student train" in one]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("subprocess.Popen", Popen)
        found = commands(block, tmp_path)
    assert [words[1] for words in found] == ["label", "student", "eval", "eval"]
    for words in found:
        words = ["voc/peak-0" if word == "runs/voc/peak-0" else word for word in in_small(words)]
        if words[1] == "student":
            words[words.index("poster")] = "small"
            words += ["--student-options", '{"short": 64, "channels": 16, "rois": 8}', "--steps", "2"]
            words += ["--weights", "random"]
        told = done(*words[1:], cwd=place)
    assert "mAP^r 0.5" in told and (place / "voc-labels" / "labels.json").is_file()
    rows = [json.loads(line) for line in (place / "voc-student" / "log.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] == 2 and "mAP^r_0.5" in rows[-1]
