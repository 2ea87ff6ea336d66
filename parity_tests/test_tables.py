"""The README's tables are what the commands make of the committed figures."""

import json
from pathlib import Path

import pytest

from prm import InputError
from prm.eval.tables import comparison

ROOT = Path(__file__).parent.parent


def run(path, **figures):
    path.write_text(json.dumps({"rows": {"prm": figures}}))
    return path


def test_mean_and_standard_deviation_of_each_kind(tmp_path):
    shared = {"mAP^r_0.25": 0.5, "mAP^r_0.75": 0.0, "ABO": 0.25}
    files = [
        run(tmp_path / "peak-0.json", classification_mAP=0.9, **{"mAP^r_0.5": 0.1}, **shared),
        run(tmp_path / "peak-1.json", classification_mAP=0.8, **{"mAP^r_0.5": 0.2}, **shared),
        run(tmp_path / "average-0.json", classification_mAP=None, **{"mAP^r_0.5": 0.3}, **shared),
    ]
    assert comparison(files).splitlines() == [
        "| | runs | cls mAP | mAP^r 0.25 | mAP^r 0.5 | mAP^r 0.75 | ABO |",
        "|---|---|---|---|---|---|---|",
        # Of 0.9 and 0.8 the sample standard deviation is 0.1 / sqrt(2) = 0.0707.
        "| peak | 2 | 85.0 ± 7.1 | 50.0 ± 0.0 | 15.0 ± 7.1 | 0.0 ± 0.0 | 25.0 ± 0.0 |",
        "| average | 1 | - | 50.0 | 30.0 | 0.0 | 25.0 |",
    ]


def test_a_file_that_is_no_run_is_named(tmp_path):
    (tmp_path / "x.json").write_text("[]")
    with pytest.raises(InputError, match=r"x\.json"):
        comparison([tmp_path / "x.json"])


def test_the_readme_holds_the_committed_runs():
    files = sorted((ROOT / "eval" / "results" / "synthetic").glob("*.json"))
    assert len(files) == 6
    nuclei = ROOT / "eval" / "results" / "nuclei" / "eval.json"
    for table in (comparison(files), comparison([nuclei])):
        assert table in (ROOT / "README.md").read_text()


def test_every_committed_run_says_how_it_was_made():
    for file in (ROOT / "eval" / "results").rglob("*.json"):
        page = json.loads(file.read_text())
        assert page["command"].startswith("prm ") and page["seconds"] > 0, file
    for file in (ROOT / "eval" / "results" / "synthetic").glob("*.json"):
        made = json.loads(file.read_text())["checkpoint"]
        assert str(made["training"]["seed"]) == file.stem[-1]
        assert made["training"]["command"].startswith("prm train ") and made["figures"]["training_seconds"] > 0
