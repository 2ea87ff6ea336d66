"""The command line end to end, in miniature: data, training, evaluation, tuning, segmentation, comparison, help."""

import json
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

import pytest
import typer

import prm
from prm.accelerated.checkpoint import load_checkpoint
from prm.eval.cli import app, shared
from prm.eval.tuning.grid import searched
from prm.parity_tests.command import done, run

COCO = pytest.importorskip("pycocotools.coco").COCO

TINY = ["--network-options", '{"widths": [8, 8], "pools": 2, "depth": 1}', "--size", "64", "--batch-size", "4"]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with drawn scenes and a network that was trained on them for two epochs."""
    root = tmp_path_factory.mktemp("story")
    done("data", "make-synthetic", "scenes", "--train", 12, "--val", 4, "--size", 64, "--json", "made.json", cwd=root)
    done("train", "--data", "scenes", "-o", "net", "--epochs", 2, "--val", *TINY, "--json", "trained.json", cwd=root)
    return root


def test_data(place):
    assert json.loads((place / "made.json").read_text())["train"] == 12
    assert len(list((place / "scenes" / "train").glob("*.png"))) == 12


def test_train(place):
    checkpoint = load_checkpoint(place / "net")
    assert checkpoint.epoch == 2 and len(checkpoint.class_names) == 5 and checkpoint.training["data"] == "scenes"
    rows = [json.loads(line) for line in (place / "net" / "log.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2] and all("mean_average_precision" in row for row in rows)
    assert (place / "net" / "curve.png").read_bytes().startswith(b"\x89PNG")
    figures = json.loads((place / "trained.json").read_text())
    assert figures["epochs"] == 2 and figures["command"].startswith("prm train --data scenes") and figures["seed"] == 0


def test_large_pictures_are_scaled_for_training_and_so_they_are_segmented(place):
    start = ["train", "--data", "scenes", *TINY[:2], "--size", 16, "--epochs", 1]
    assert "--resize 16 scales" in run(*start, "-o", "crops", cwd=place).stderr
    assert "--resize" not in run(*start, "-o", "scaled", "--resize", 16, "--val", cwd=place).stderr
    sizes = [load_checkpoint(place / net).segmentation.get("size") for net in ("crops", "scaled")]
    assert sizes == [None, 16]


def test_resume(place):
    """A finished run has nothing left to do; with other settings, the number of epochs among them, it is refused."""
    before = {p.name: p.read_bytes() for p in (place / "net").iterdir()}
    start = ["train", "--data", "scenes", "-o", "net", *TINY]
    done(*start, "--epochs", 2, "--resume", cwd=place)
    refused = run(*start, "--epochs", 3, "--resume", cwd=place)
    assert refused.returncode == 2 and "Traceback" not in refused.stderr
    assert "net/checkpoint.json: cannot resume" in refused.stderr.splitlines()[-1]
    assert {p.name: p.read_bytes() for p in (place / "net").iterdir()} == before


def test_eval_and_compare(place):
    out = done("eval", "--data", "scenes", "-c", "net", "--limit", 50, "--json", "peak-0.json", cwd=place)
    assert "mAP^r 0.5" in out and "prm" in out
    figures = json.loads((place / "peak-0.json").read_text())
    row = figures["rows"]["prm"]
    assert row["images"] == 4 and row["true_instances"] > 0 and 0 <= row["classification_mAP"] <= 1
    assert {"command", "seconds", "torch", "settings", "checkpoint"} <= set(figures)
    row["classification_mAP"] = 0.5
    (place / "peak-1.json").write_text(json.dumps(figures))
    table = done("eval", "compare", "peak-0.json", "peak-1.json", cwd=place)
    assert re.search(r"^\| peak \| 2 \|", table, re.MULTILINE) and "mAP^r 0.5" in table


def test_tune(place):
    before = load_checkpoint(place / "net").segmentation
    done("tune", "--data", "scenes", "-c", "net", "--every", 4, "--limit", 50, "--json", "tuned.json", cwd=place)
    figures = json.loads((place / "tuned.json").read_text())
    assert figures["pictures"] == 3 and set(figures["chosen"]) == set(searched("eq6"))
    after = load_checkpoint(place / "net")
    assert after.segmentation == before | figures["chosen"] | {"choice": "eq6"} and after.epoch == 2


def test_segment(place):
    done("segment", "scenes/val", "scenes/train/train_00000.png", "-c", "net", "-o", "answers", "--class-threshold", 0,
         "--cache", "cache", "--limit", 50, "--json", "segmented.json", cwd=place)  # fmt: skip
    out = place / "answers"
    links = set(re.findall(r'(?:href|src)="([^"]+)"', (out / "index.html").read_text()))
    assert len(links) == 2 * 5 and all((out / unquote(link)).is_file() for link in links)
    truth = COCO()
    truth.dataset = {"images": [{"id": k, "height": 64, "width": 64} for k in range(1, 6)],
                     "categories": [{"id": k} for k in range(1, 6)],
                     "annotations": []}  # fmt: skip
    truth.createIndex()
    found = truth.loadRes(str(out / "instances.json"))
    figures = json.loads((place / "segmented.json").read_text())
    assert len(found.getAnnIds()) == figures["instances"] > 0
    assert found.annToMask(found.loadAnns(found.getAnnIds())[0]).shape == (64, 64)
    assert figures["pictures"] == 5 and not figures["failed"] and len(list((place / "cache").iterdir())) == 5


def commands(command=None, path=()):
    """(words, click command) of the command line and everything below it."""
    command = command or typer.main.get_command(app)
    yield path, command
    for name, inner in getattr(command, "commands", {}).items():
        yield from commands(inner, (*path, name))


@pytest.mark.parametrize("path, command", [pytest.param(p, c, id=" ".join(("prm", *p))) for p, c in commands()])
def test_help(tmp_path, path, command):
    text = done(*path, "--help", cwd=tmp_path)
    for parameter in command.params:
        if parameter.param_type_name == "option":
            assert all(option in text for option in parameter.opts)
    for name in getattr(command, "commands", {}):
        assert name in text


def test_the_installed_command(tmp_path):
    command = Path(sys.executable).with_name("prm")
    told = subprocess.run([command, "--version"], capture_output=True, text=True, cwd=tmp_path)
    assert (told.returncode, told.stdout.strip()) == (0, prm.__version__)
    told = subprocess.run([command, "eval", "--data", "nowhere"], capture_output=True, text=True, cwd=tmp_path)
    assert told.returncode == 2 and told.stdout == "" and "prm: error: nowhere: no such file" in told.stderr


# ---- progress


def test_progress_is_a_plain_log_where_no_terminal_is(monkeypatch, capsys):
    now = iter(range(0, 1000, 10))  # seconds, at every look
    monkeypatch.setattr(shared.time, "monotonic", lambda: next(now))
    with shared.progress_bar() as progress:
        task = progress.add_task("segmenting", total=4)
        for name in ("a.png", "b.png", "c.png", "d.png"):
            progress.update(task, advance=1, info=name)
        other = progress.add_task("training", total=None)  # of no known end
        progress.advance(other)
    said = capsys.readouterr().err.splitlines()
    assert said[0].startswith("segmenting: 2 of 4, about ") and said[0].endswith("left  b.png")
    assert said[-1] == "segmenting: 4 of 4  d.png" and len(said) == 2
    assert [shared._duration(s) for s in (0.6, 59, 61, 7322)] == ["1 s", "59 s", "1 min 1 s", "2 h 2 min"]
