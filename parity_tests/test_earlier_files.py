"""Files that an earlier version wrote, in `data/`: a checkpoint, golden answers, an evaluation and instances.

They are read as they were, and what they say is found again. Made by `prm data make-synthetic scenes --train 24 --val 4
--size 64`, `prm train --epochs 60` on it, `prm eval` and `prm segment` with --limit 30, and `prm parity write-golden`.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from prm.accelerated.checkpoint import load_checkpoint
from prm.parity_tests.command import done
from prm.reference import golden

DATA = Path(__file__).parent / "data"


def test_a_checkpoint():
    found = load_checkpoint(DATA)
    assert (found.epoch, found.class_names) == (60, ["disc", "square", "triangle", "star", "cross"])
    assert (found.network["name"], found.aggregation) == ("smallnet", {"name": "peak", "options": {}})
    assert found.input == {"mean": [0.5] * 3, "std": [0.25] * 3, "size": 64, "contrast": False}
    assert found.segmentation == {"upsample": 1, "window": 3, "threshold": "median"}
    assert found.training["lr_classifier"] == 0.1 and found.training["samples"] == 24
    assert found.figures["loss"] == pytest.approx(0.6100273728370667, abs=1e-12)
    assert found.state["classifier.bias"].tolist() == pytest.approx(
        [-0.7853010892868042, -0.3053774833679199, -0.37849465012550354, -0.5844739079475403, -0.45419248938560486]
    )
    totals = {"features.0.weight": -0.5506052578566596, "features.5.running_var": 1.440674938261509}
    assert {name: float(found.state[name].double().sum()) for name in totals} == pytest.approx(totals)
    assert float(found.momentum["features.4.weight"].double().sum()) == pytest.approx(-2.2957295298110694)
    with torch.no_grad():
        maps = found.model()(torch.linspace(-1, 1, 3 * 64 * 64).reshape(1, 3, 64, 64))
    assert maps.shape == (1, 5, 16, 16)


def test_golden_answers():
    rows = golden.check(DATA / "golden")
    assert len(rows) == 12 and {(row.state, row.text) for row in rows} == {("right", "")}
    with np.load(DATA / "golden" / "answers.npz") as answers:
        assert answers["forward_two_peaks.peaks"].tolist() == [[0, 0, 0, 0], [0, 0, 2, 3]]
        assert answers["conv2d_leak_bound.P_U"].tolist() == [[[1, 0, 4]]]
        assert float(answers["network_walk_part_leaks.leaked"]) == pytest.approx(1 / 3)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    root = tmp_path_factory.mktemp("earlier")
    done("data", "make-synthetic", "scenes", "--train", 1, "--val", 4, "--size", 64, cwd=root)
    return root


def test_an_evaluation(scenes):
    earlier = json.loads((DATA / "eval.json").read_text())
    done("eval", "--data", "scenes", "-c", DATA, "--limit", 30, "--json", "now.json", cwd=scenes)
    now = json.loads((scenes / "now.json").read_text())
    assert now["settings"] | earlier["settings"] == now["settings"] and now["checkpoint"] == earlier["checkpoint"]
    found, row = (file["rows"]["prm"] for file in (now, earlier))
    assert row.pop("seconds_per_image") and row.pop("per_class") == found["per_class"]
    assert {name: found[name] for name in row} == pytest.approx(row)
    table = done("eval", "compare", DATA / "eval.json", "now.json", cwd=scenes)
    assert "91.7" in table and "0.9" in table


def test_instances(scenes):
    earlier = json.loads((DATA / "instances.json").read_text())
    pictures = [scenes / "scenes" / "val" / f"val_0000{k}.png" for k in (0, 3)]
    done("segment", *pictures, "-c", DATA, "--limit", 30, "-o", "out", cwd=scenes)
    now = json.loads((scenes / "out" / "instances.json").read_text())
    assert len(earlier) == len(now) == 9
    numbers = ("score", "confidence", "terms", "peak")
    for one, other in zip(now, earlier):
        for name in numbers:
            assert one.pop(name) == pytest.approx(other.pop(name), rel=1e-5)
        assert one == other | {"category": one["category"]}  # came later
