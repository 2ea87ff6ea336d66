"""A series of trainings: every aggregation with every seed, skipped where finished, gone on with where interrupted."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from prm import InputError
from prm.accelerated.checkpoint import load_checkpoint, save_checkpoint
from prm.eval.cli.training import asked
from prm.eval.datasets import make_synthetic
from prm.eval.experiments.series import series as series_of
from prm.parity_tests.command import Here

TINY = ["--network-options", '{"widths": [4, 6], "pools": 2, "depth": 1}', "--size", "48", "--batch-size", "4"]
OPTIONS = [*TINY, "--epochs", "1"]


def series(data, out, aggregations, seeds, options=(), **more):
    return series_of(data, out, aggregations, seeds, options, asked, **more)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    return make_synthetic(tmp_path_factory.mktemp("series") / "scenes", train=8, val=4, size=48)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


@pytest.fixture(scope="module")
def trained(scenes):
    """A finished series of two aggregations: its folder, rows and lines."""
    out, lines = scenes.parent / "runs", []
    rows = series(scenes, out, ["average", "peak"], [3], [*OPTIONS, "--val"], jobs=2, report=lines.append)
    return out, rows, lines


def again(trained, scenes, options, aggregations=("average", "peak")):
    lines = []
    return series(scenes, trained[0], aggregations, [3], options, report=lines.append), lines


def test_every_run_is_trained_by_the_command(trained, scenes):
    out, rows, lines = trained
    assert [(row["aggregation"], row["seed"], row["state"]) for row in rows] == [
        ("average", 3, "trained"), ("peak", 3, "trained")
    ]  # fmt: skip
    for row in rows:
        place = out / f"{row['aggregation']}-3"
        checkpoint = load_checkpoint(place)
        log = json.loads((place / "log.jsonl").read_text())
        assert checkpoint.aggregation["name"] == row["aggregation"] and checkpoint.training["seed"] == 3
        assert checkpoint.training["command"] == row["command"]
        assert row["command"].startswith(f"prm train --data {scenes} --out {place} --resume ")
        assert (row["epochs"], row["loss"]) == (1, log["loss"])
        assert row["mean_average_precision"] == log["mean_average_precision"]
        assert row["training_seconds"] == round(log["seconds"], 1)
    assert sorted(line.split(":")[0].split()[1] for line in lines) == ["average-3", "peak-3"]
    assert [line.split()[0] for line in lines] == ["1/2", "2/2"] and all("cls mAP" in line for line in lines)


def test_finished_runs_are_not_started_again(trained, scenes, monkeypatch):
    out, rows, _ = trained
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    monkeypatch.setattr(subprocess, "Popen", None)  # a start would raise
    # The same experiment, typed in another order, with a default said, other spaces, and on more workers.
    typed = ["--val", "--epochs=1", *TINY[2:], TINY[0], TINY[1].replace(" ", ""), "--jitter", "1.25", "--workers", "2"]
    for options in ([*OPTIONS, "--val"], typed):
        found, lines = again(trained, scenes, options)
        assert [row | {"command": ""} for row in found] == [row | {"state": "found", "command": ""} for row in rows]
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()} == before
    assert [line.split(":")[0] for line in lines] == ["1/2 average-3", "2/2 peak-3"]
    assert all("finished before" in line for line in lines)


def test_another_start_is_refused_where_a_run_is_and_taken_where_none_is(trained, scenes, tmp_path, monkeypatch):
    """A start gives its features and its input's mean and std; the classifier is the run's own."""
    monkeypatch.setattr(subprocess, "Popen", Here)
    start = load_checkpoint(trained[0] / "peak-3")
    start.input["mean"] = [0.4, 0.5, 0.6]
    save_checkpoint(start, tmp_path / "start.json")
    still = ["--weights", str(tmp_path / "start.json"), "--lr-features", "0", "--lr-classifier", "0"]
    rows, lines = again(trained, scenes, [*OPTIONS, *still], ["average", "max"])
    assert [row["state"] for row in rows] == ["failed", "trained"]
    assert "cannot resume, input was {'mean': [0.5, 0.5, 0.5]} and is now" in rows[0]["error"]
    assert "loss" not in rows[0] and rows[0]["error"] in lines[0]
    assert load_checkpoint(trained[0] / "average-3").input["mean"] == [0.5] * 3
    found = load_checkpoint(trained[0] / "max-3")
    for name, tensor in start.state.items():
        if "running" not in name and "num_batches" not in name:  # which follow the batches
            same = bool((found.state[name] == tensor).all())
            assert same != name.startswith("classifier"), name
    assert (found.input["mean"], found.input["std"]) == ([0.4, 0.5, 0.6], [0.25] * 3)
    assert found.training["start"] == str(tmp_path / "start.json")


def test_a_mistyped_option_is_one_line(scenes, tmp_path, monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", Here)
    (row,) = series(scenes, tmp_path, ["max"], [0], ["--epoch", "1"], report=lambda line: None)
    assert row["state"] == "failed" and "--epoch" in row["error"] and "\n" not in row["error"]


ENDS = {
    "killed": ("os.kill(os.getpid(), 9)", "ended by signal 9"),
    "silent": ("os._exit(3)", "ended with code 3"),
    "broken": ("1 / 0", "ZeroDivisionError"),
}


@pytest.mark.skipif(os.name != "posix", reason="a signal ends the process")
@pytest.mark.parametrize("case", ENDS)
def test_how_a_run_ended(case, scenes, tmp_path, monkeypatch):
    code, said = ENDS[case]
    command, start = [sys.executable, "-c", f"import os; {code}"], subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda _, **options: start(command, **options))
    (row,) = series(scenes, tmp_path, ["peak"], [0], OPTIONS)
    assert row["state"] == "failed" and row["error"].startswith(said)


INTERRUPTED = """
import sys
from prm.eval.cli.training import asked
from prm.eval.experiments.series import series
series(sys.argv[1], sys.argv[2], ["average", "max"], [0], sys.argv[3:], asked, jobs=1)
"""


@pytest.mark.skipif(os.name != "posix", reason="Ctrl-C is sent as a signal")
def test_an_interruption_ends_the_children_and_the_next_call_goes_on(scenes, tmp_path, monkeypatch):
    options = [*TINY, "--epochs", "12"]
    command = [sys.executable, "-c", INTERRUPTED, str(scenes), str(tmp_path), *options]
    page = tmp_path / "average-0" / "checkpoint.json"
    # Whoever runs the tests in the background may have told its processes to pass Ctrl-C over.
    heed = lambda: signal.signal(signal.SIGINT, signal.default_int_handler)  # noqa: E731
    run = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=heed)
    try:
        until = time.monotonic() + 60
        while not page.is_file() and run.poll() is None and time.monotonic() < until:
            time.sleep(0.05)
        run.send_signal(signal.SIGINT)  # to the parent alone, not to its children as a terminal does
        _, said = run.communicate(timeout=40)
    finally:
        run.kill()
    assert "KeyboardInterrupt" in said
    reached = load_checkpoint(tmp_path / "average-0").epoch
    assert 1 <= reached < 12 and not (tmp_path / "max-0").exists()
    time.sleep(1)
    assert load_checkpoint(tmp_path / "average-0").epoch == reached  # nobody trains on
    rows = json.loads("[" + ",".join((tmp_path / "average-0" / "log.jsonl").read_text().splitlines()) + "]")
    monkeypatch.setattr(subprocess, "Popen", Here)
    done = series(scenes, tmp_path, ["average"], [0], options, report=lambda line: None)
    assert done[0]["state"] == "trained" and done[0]["epochs"] == 12
    log = [json.loads(line) for line in (tmp_path / "average-0" / "log.jsonl").read_text().splitlines()]
    assert log[:reached] == rows[:reached] and len(log) == 12


REFUSED = {
    "unknown": ({"aggregations": ["mean"]}, "unknown aggregation 'mean'; known: peak"),
    "no aggregation": ({"aggregations": []}, "needs an aggregation"),
    "no seed": ({"seeds": []}, "seeds >= 0"),
    "negative seed": ({"seeds": [0, -1]}, r"seeds >= 0, not \['peak'\] and \[0, -1\]"),
    "no job": ({"jobs": 0}, "jobs must be >= 1, not 0"),
    "own option": ({"options": ["--seed", "3"]}, "--seed: a series sets"),
    "own option with =": ({"options": ["--out=x"]}, "--out=x: a series sets"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(case, scenes, tmp_path):
    changes, message = REFUSED[case]
    with pytest.raises(InputError, match=message) as caught:
        series(**({"data": scenes, "out": tmp_path / "runs", "aggregations": ["peak"], "seeds": [0]} | changes))
    assert "\n" not in str(caught.value) and not (tmp_path / "runs").exists()


def test_a_file_where_a_run_should_go(scenes, tmp_path):
    (tmp_path / "peak-0").write_text("")
    with pytest.raises(InputError, match="peak-0: cannot be a training's folder"):
        series(scenes, tmp_path, ["peak"], [0], OPTIONS)
