"""`prm eval report`: one HTML file that needs nothing beside it, the same as JSON, whoever computed it."""

import base64
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("pycocotools")
from prm import InputError
from prm.accelerated.checkpoint import random_checkpoint, save_checkpoint
from prm.eval.cli.judging import report_command
from prm.eval.datasets import make_synthetic
from prm.eval.experiments import plots
from prm.eval.experiments.report import FAILURES, MADE, SUCCESS, as_json, parts
from prm.eval.experiments.report_page import page
from prm.eval.experiments.tables import by_data, read_runs

ODD = '<b>&"x'
"""What the class "disc" is called here."""
OPTIONS = {"every": 1, "bootstrap": 20, "class_threshold": 0.0, "limit": 60}
PICTURES = 6


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A data set of six pictures in a folder with an odd name, and two random networks."""
    root = tmp_path_factory.mktemp("report")
    scenes = make_synthetic(root / "scenes", train=1, val=PICTURES, size=48)
    data = root / "a <i>&amp; 'b"
    shutil.copytree(scenes / "val", data)
    names = json.loads((scenes / "synthetic.json").read_text())["class_names"]
    table = (data / "labels.csv").read_text().replace("disc", "DISC")
    lines = [line.split(",") for line in table.splitlines()]
    quoted = ['"' + field.replace("DISC", ODD).replace('"', '""') + '"' for line in lines for field in line]
    width = len(lines[0])
    rows = (",".join(quoted[k : k + width]) for k in range(0, len(quoted), width))
    (data / "labels.csv").write_text("\n".join(rows) + "\n")
    instances = json.loads((data / "instances.json").read_text())
    names = [ODD if name == "disc" else name for name in names]
    (data / "classes.txt").write_text("".join(f"{name}\n" for name in names))
    for category in instances["categories"]:
        category["name"] = ODD if category["name"] == "disc" else category["name"]
    (data / "instances.json").write_text(json.dumps(instances))
    for name, aggregation in (("peak-0", "peak"), ("average-0", "average")):
        made = random_checkpoint("smallnet", names, seed=len(name), widths=[8, 8], pools=1)
        made.input["size"], made.aggregation["name"] = 48, aggregation
        made.training = {"seed": 0, "command": f"prm train --note '{ODD}'"}
        save_checkpoint(made, root / name / "checkpoint.json")
    return root


@pytest.fixture(scope="module")
def data(place) -> Path:
    return place / "a <i>&amp; 'b"


@pytest.fixture(scope="module")
def made(place, data) -> Path:
    """The folder of a finished report."""
    out = place / "out"
    report_command(data=data, split="all", checkpoint=[place / "peak-0", place / "average-0"], out=out, **OPTIONS)
    return out


class Page(HTMLParser):
    """Checks that elements nest, and gathers ids, links, pictures, headings, the cells of each table, and words."""

    VOID = ("meta", "img", "br")

    def __init__(self, text: str):
        super().__init__()
        self.open, self.ids, self.links, self.pictures, self.headings, self.tables = [], [], [], [], [], []
        self.tags, self.words, self.attributes = set(), "", []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        assert len(found) == len(attributes), (tag, attributes)
        self.tags.add(tag)
        self.attributes += [(tag, name, value) for name, value in attributes]
        self.ids += [found["id"]] if "id" in found else []
        if tag == "img":
            self.pictures.append((found["src"], found["alt"]))
        if tag == "a":
            self.links.append(found["href"])
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")
            assert tag == "td" or found["scope"] in ("row", "col", "colgroup")
        if tag in ("h1", "h2", "h3"):
            self.headings.append((tag, ""))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, words):
        self.words += words
        if "td" in self.open or "th" in self.open:
            self.tables[-1][-1][-1] += words
        for level in {"h1", "h2", "h3"} & set(self.open):
            self.headings[-1] = level, self.headings[-1][1] + words


@pytest.fixture(scope="module")
def read(made) -> Page:
    return Page((made / "report.html").read_text("utf-8"))


def plain(text: str) -> str:
    """As the page writes it: the r of mAP^r is raised there."""
    return text.replace("AP^r_", "APr ").replace("AP^r", "APr ").replace("  ", " ")


def test_one_file_that_needs_no_network(made, read):
    text = (made / "report.html").read_text("utf-8")
    assert text.startswith('<!DOCTYPE html>\n<html lang="en">') and "<title>" in text
    assert not read.tags & {"script", "link", "iframe", "object", "base"}
    assert "url(" not in text and "@import" not in text
    assert all(target.startswith("#") and target[1:] in read.ids for target in read.links) and read.links
    assert len(set(read.ids)) == len(read.ids)
    for source, alt in read.pictures:
        head, _, content = source.partition(";base64,")
        content = base64.b64decode(content, validate=True)
        assert alt.strip()
        if head == "data:image/jpeg":
            width, height = Image.open(io.BytesIO(content)).size
            assert max(width, height) <= 480
        else:
            assert head == "data:image/svg+xml" and b"<text" in content
            assert ElementTree.fromstring(content).tag.endswith("svg")
    assert not [value for _, name, value in read.attributes if name in ("src", "href") and "//" in value.split(",")[0]]
    assert len(text) < 10_000_000


def test_every_section_and_table_is_there_with_the_figures_of_the_json(made, read):
    found = json.loads((made / "report.json").read_text())
    (data,) = found["data"]
    titles = [title for level, title in read.headings if level == "h2"]
    assert titles == [
        "The paper’s claims", "The paper’s tables", "Figure 6: quality of Peak Response Maps",  # noqa: RUF001
        "Precision and recall of the masks", "Failures by category", "Successes and failures in pictures",
        "More measures", "Settings and training",
    ]  # fmt: skip
    for number in range(1, 7):
        assert any(table["title"].startswith(f"Table {number}.") for table in data["tables"])
    shown = [[[" ".join(cell.split()) for cell in row] for row in table] for table in read.tables]
    for table in (*data["tables"], *found["made"]["timing"]):
        rows = [[" ".join(plain(cell).split()) for cell in row] for row in table["rows"]]
        assert any(some[-len(rows) :] == rows for some in shown), table["title"]
        assert all(len(row) == len(table["columns"]) for row in rows)
    runs = [json.loads((made / f"{name}.json").read_text()) for name in ("peak-0", "average-0")]
    for run, same in zip(runs, data["runs"]):
        assert {name: value for name, value in run.items() if name not in MADE} == same
        assert run["command"].startswith("prm") and run["seconds"] > 0
    answer = runs[0]["instances"]["prm: proposals"]
    table_4 = next(table for table in data["tables"] if table["title"].startswith("Table 4"))
    assert table_4["rows"][-1][-1].startswith(f"{100 * answer['ABO']:.1f} [")
    assert len([claim for claim in data["claims"] if claim["verdict"] == "not decided"]) == len(data["claims"]) > 5


def test_odd_names_are_words_and_not_markup(made, read):
    assert "b" in read.tags and "i" not in read.tags  # <b> is the page's own, for names of pictures
    assert ODD in read.words and "a <i>&amp; 'b" in read.words
    text = (made / "report.html").read_text("utf-8")
    assert ODD not in text and "<i>" not in text
    curves = [base64.b64decode(source.split(",")[1]) for source, alt in read.pictures if alt.startswith(ODD)]
    assert len(curves) == 1 and b"&lt;b&gt;&amp;" in curves[0]


def test_the_gallery_shows_the_pictures_with_most_of_each_failure(made, read):
    found = json.loads((made / "report.json").read_text())
    gallery, (data,) = found["data"][0]["gallery"], found["data"]
    counts = data["runs"][0]["failures"]["instances"]
    assert set(gallery) - {SUCCESS} == {name for name in FAILURES if counts[name]}
    assert set(gallery), "a random network that fails nowhere makes this test void"
    for category in set(gallery) - {SUCCESS}:
        numbers = [case["outcomes"][category] for case in gallery[category]]
        assert numbers == sorted(numbers, reverse=True) and min(numbers) >= 1
        if len(numbers) < PICTURES:  # then all of them are there
            assert sum(numbers) == counts[category]
    tiles = [alt for source, alt in read.pictures if "jpeg" in source]
    assert len(tiles) == 3 * sum(map(len, gallery.values()))
    for case in (case for cases in gallery.values() for case in cases):
        assert {f"{case['name']}: {what}" for what in ("truth", "Peak Response Maps", "found")} <= set(tiles)


def test_runs_judged_before_make_a_report_without_pictures(made, tmp_path):
    files = [made / "peak-0.json", made / "average-0.json"]
    report_command(runs=files, out=tmp_path)
    before, after = (json.loads((folder / "report.json").read_text())["data"][0] for folder in (made, tmp_path))
    assert after.pop("gallery") == {} and before.pop("gallery") and after == before
    read = Page((tmp_path / "report.html").read_text("utf-8"))
    assert read.pictures and not any("jpeg" in source for source, _ in read.pictures)
    assert "Successes and failures in pictures" not in read.words


def test_without_a_network_there_are_the_upper_bounds(data, tmp_path):
    report_command(data=data, split="all", out=tmp_path, **OPTIONS)
    read = Page((tmp_path / "report.html").read_text("utf-8"))
    titles = [title for level, title in read.headings if level == "h2"]
    assert titles == ["The paper’s tables", "More measures", "Settings and training"]  # noqa: RUF001
    found = json.loads((tmp_path / "report.json").read_text())["data"][0]
    assert found["claims"] == [] and found["gallery"] == {} and not read.pictures
    reach = next(table for table in found["tables"] if table["title"].startswith("How much of the truth"))
    assert reach["rows"][0][2] == f"{100 * found['runs'][0]['proposals']['ABO']:.1f}"


def test_two_data_sets_stand_apart(made, tmp_path):
    other = json.loads((made / "peak-0.json").read_text())
    other["run"]["data"] = "other"
    (tmp_path / "other.json").write_text(json.dumps(other))
    found = parts(by_data(read_runs([made / "peak-0.json", tmp_path / "other.json"])), [])
    titles = [title for level, title in Page(page(found, "prm").decode()).headings if level == "h2"]
    assert len(titles) == len(set(titles)) == 2 * 7
    assert [part["data"] for part in json.loads(as_json(found, "prm"))["data"]] == [
        f"a <i>&amp; 'b, all, {PICTURES} pictures", f"other, all, {PICTURES} pictures"
    ]  # fmt: skip


def test_what_is_refused(place, data, tmp_path):
    with pytest.raises(InputError, match="nothing to report on"):
        report_command(out=tmp_path / "out")
    (tmp_path / "report").mkdir()
    with pytest.raises(InputError, match="is called 'report'"):
        report_command(data=data, checkpoint=[tmp_path / "report"], out=tmp_path / "out")
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(InputError, match=r"run\.json: not the figures of a run"):
        report_command(runs=[tmp_path / "run.json"], out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


# ---- interrupted, and shared by processes


def command(*words, launcher=()) -> list[str]:
    options = [part for name, value in OPTIONS.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    return [sys.executable, *launcher, "-m", "prm.eval.cli", "eval", *map(str, words), *options]


ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


def comparable(file: Path) -> dict:
    """A report, or the figures of a run, without what says how long it took and by which command."""
    found = json.loads(file.read_text())
    return {name: value for name, value in found.items() if name not in ("made", *MADE)}


@pytest.mark.skipif(os.name != "posix", reason="Ctrl-C is sent as a signal")
def test_an_interruption_keeps_finished_pictures_and_the_answer_is_the_same(place, data, made, tmp_path):
    networks = "-c", place / "peak-0", "-c", place / "average-0"
    words = "report", "--data", data, "--split", "all", *networks, "-o", tmp_path
    # To save time one of the two networks has been judged, as if an earlier run had been interrupted between them.
    judged = min(path.parent for path in made.rglob("*.npz"))
    shutil.copytree(judged, tmp_path / judged.relative_to(made))
    before = set(tmp_path.rglob("*.npz"))
    # Whoever runs the tests in the background may have told its processes to pass Ctrl-C over.
    heed = lambda: signal.signal(signal.SIGINT, signal.default_int_handler)  # noqa: E731
    run = subprocess.Popen(command(*words), stderr=subprocess.PIPE, env=ENVIRONMENT, preexec_fn=heed)
    try:
        until = time.monotonic() + 150
        while not (begun := set(tmp_path.rglob("*.npz")) - before) and run.poll() is None and time.monotonic() < until:
            time.sleep(0.01)
        run.send_signal(signal.SIGINT)
        run.communicate(timeout=60)
    finally:
        run.kill()
    assert run.returncode == 130 and begun and not (tmp_path / "report.json").exists()
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npz")}
    assert PICTURES < len(kept) < 2 * PICTURES
    report_command(data=data, split="all", checkpoint=[place / "peak-0", place / "average-0"], out=tmp_path, **OPTIONS)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert comparable(tmp_path / "report.json") == comparable(made / "report.json")
    assert not list(tmp_path.rglob(".*.tmp"))


def test_processes_of_torchrun_share_the_pictures_and_give_the_same_answer(place, data, made, tmp_path):
    words = ["tables", "--data", data, "--split", "all", "-c", place / "peak-0"]
    launcher = "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"
    call = command(*words, "-o", tmp_path, launcher=launcher)
    run = subprocess.Popen(call, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=ENVIRONMENT,
                           start_new_session=True)  # fmt: skip
    try:
        said, _ = run.communicate(timeout=200)
    finally:
        if run.poll() is None:
            os.killpg(run.pid, signal.SIGKILL)  # the processes that it started, too
    assert run.returncode == 0, said
    assert comparable(tmp_path / "peak-0.json") == comparable(made / "peak-0.json")
    assert said.count("**Table 4.") == 1  # said once, by the first


# ---- drawings


def test_tiles_paint_masks_where_they_are():
    image = np.full((60, 90, 3), 200, np.uint8)
    masks = np.zeros((2, 60, 90), bool)
    masks[0, 10:30, 10:30] = masks[1, 35:55, 50:80] = True
    tints = [(255, 0, 0), (0, 0, 255)]
    truth = np.asarray(Image.open(io.BytesIO(plots.truth_tile(image, masks, tints, np.array([True, False])))))
    answer = np.asarray(Image.open(io.BytesIO(plots.answer_tile(image, masks, tints))))
    assert truth.shape == answer.shape == (240, 360, 3)  # enlarged by a whole factor
    inside, other, outside = (80, 80), (180, 260), (220, 40)
    filled, hollow, around = (truth[point].astype(int) for point in (inside, other, outside))
    assert filled[0] - filled[2] > 100 and abs(hollow - 200).max() < 12 and abs(around - 200).max() < 12
    edge = truth[140, 260].astype(int)
    assert edge[2] - edge[0] > 100
    red, blue, grey = (answer[point].astype(int) for point in (inside, other, outside))
    assert red[0] - red[2] > 100 and blue[2] - blue[0] > 100 and np.ptp(grey) < 12


def test_responses_are_drawn_over_the_dark_picture():
    prms = np.zeros((1, 20, 30))
    prms[0, 10, 15] = 1
    tile = plots.responses_tile(np.full((60, 90, 3), 200, np.uint8), prms, [(255, 0, 0)], np.array([[10.0, 10.0]]))
    tile = np.asarray(Image.open(io.BytesIO(tile))).astype(int)
    assert tile[126, 186, 0] > 200 and tile[126, 186, 2] < 90  # the map
    assert tile[42, 42].min() > 200  # the peak
    assert abs(tile[200, 20] - 60).max() < 10


def test_a_large_picture_is_reduced_and_a_group_without_maps_is_left_out():
    wide = plots.answer_tile(np.zeros((300, 1200, 3), np.uint8), np.zeros((0, 300, 1200), bool), [])
    assert Image.open(io.BytesIO(wide)).size == (plots.LONGEST, 90)
    empty = {"maps": 0, "inside": None, "background": None, "quartiles": [None] * 3}
    full = {"maps": 3, "inside": 0.5, "background": 0.25, "quartiles": [0.4, 0.5, 0.6]}
    drawn = plots.quality_plot([[full, empty]], ["1", "2-5"], "objects", {"1": 78.0, "2-5": "words"})
    assert b"n = 3" in drawn and b"n = 0" in drawn
    assert drawn == plots.quality_plot([[full, empty]], ["1", "2-5"], "objects", {"1": 78.0, "2-5": "words"})
    plots.quality_plot([[empty, empty]], ["1", "2-5"], "objects", {})
    plots.curve_plot("$x_{", "AP -", [{"recall": [None], "precision": [0.0]}])  # no mathematics, and nothing to find
