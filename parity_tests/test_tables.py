"""The paper's tables from runs, and its claims judged: on runs made up here, whose figures are known. And the tables
of docs/results.md are what the commands make of the committed figures."""

import json
from pathlib import Path

import pytest

from prm import InputError
from prm.eval.experiments.claims import claims
from prm.eval.experiments.paper import PAPER_1, PAPER_2, PAPER_4, PAPER_5, PAPER_6, VOC_CLASSES, WISE_POSTER
from prm.eval.experiments.tables import by_data, cell, read_runs, tables
from prm.eval.judging.answers import ABLATED, BOX_MASKS, BOX_SOURCES, GALLERIES, TRUE_MASKS
from prm.eval.judging.record import ANSWER
from prm.eval.judging.short import comparison, shown

ROOT = Path(__file__).parent.parent

THRESHOLDS = ("0.25", "0.5", "0.75")
METHODS = [ANSWER, *ABLATED, *(f"{s}: {g}" for s in (*BOX_SOURCES, TRUE_MASKS, "prm") for g in GALLERIES),
           *(f"{s}: {m}" for s in BOX_SOURCES for m in BOX_MASKS)]  # fmt: skip


def run(aggregation: str, seed: int, value: float, network="smallnet", classes=("a", "b"), **methods) -> dict:
    """A run all of whose figures are `value`, but for those of `methods`."""
    one = {"mAP": value, "interval": [value - 0.1, value + 0.1], "per_class": dict.fromkeys(classes, value)}
    instances = {}
    for method in METHODS:
        v = methods.get(method, value)
        names = [*(f"mAP^r_{t}" for t in THRESHOLDS), "ABO"]
        per_class = {f"AP^r_{t}": dict.fromkeys(classes, v) for t in THRESHOLDS}
        instances[method] = dict.fromkeys(names, v) | {"per_class": per_class}
        instances[method]["intervals"] = {name: [v - 0.1, v + 0.1] for name in names}
    group = {"inside": value, "background": 1 - value, "images": 4, "maps": 9}
    return {
        "run": {"data": "d", "split": "val", "network": network, "aggregation": aggregation, "seed": seed},
        "pictures": 10, "classification": one, "localization": {"18": one, "0": one},
        "quality": dict.fromkeys(("greedy", "independent", "per_image"), one),
        "segmentation": {"mIoU": value, "interval": [value, value]}, "instances": instances,
        "crowding": [group | {"low": 1, "high": 1}, group | {"low": 2, "high": 5}, group | {"low": 6, "high": None}],
        "size": [group | {"low": 0.0, "high": 0.1}, group | {"low": 0.1, "high": 1.0}],
    }  # fmt: skip


def rows_of(runs: list[dict], title: str) -> dict[str, tuple[str, ...]]:
    (data,) = by_data(runs)
    (table,) = [table for table in tables(data) if table.title.startswith(title)]
    assert all(len(row) == len(table.columns) for row in table.rows)
    return {row[0]: row[1:] for row in table.rows}


RUNS = [run(a, s, v + s / 100) for a, v in (("average", 0.4), ("max", 0.5), ("peak", 0.6)) for s in (0, 1, 2)]


def test_a_cell_is_a_mean_with_its_spread_or_one_run_with_its_interval():
    assert shown([0.1, 0.2, 0.3]) == "20.0 ± 10.0" and shown([0.123]) == "12.3" and shown([0.1, None]) == "-"
    assert cell(RUNS[:1], "classification", "mAP") == "40.0 [30.0, 50.0]"
    assert cell(RUNS[:3], "classification", "mAP") == "41.0 ± 1.0"
    assert cell(RUNS[:1], "instances", ANSWER, "ABO") == "40.0 [30.0, 50.0]"
    assert cell(RUNS[:1], "nothing", "mAP") == "" == cell([], "classification", "mAP")


def test_every_table_has_the_papers_numbers_and_ours_in_their_rows():
    first = rows_of(RUNS, "Table 1")
    assert first["full approach / peak stimulation"] == ("85.5", "57.5", *3 * ("61.0 ± 1.0",))
    assert first["WSLoc"] == ("79.7", "49.2", "", "", "")
    assert first["without peak stimulation / global average pooling (CAM)"][2] == "41.0 ± 1.0"
    assert rows_of(RUNS, "Table 2")["global max pooling (DeepMIL)"] == ("60.9", *3 * ("51.0 ± 1.0",))
    assert rows_of(RUNS, "Table 3")["PRM, peak stimulation"] == ("53.4", "61.0 ± 1.0")
    fourth = rows_of(RUNS, "Table 4")
    assert fourth[ANSWER] == ("44.3", "26.8", "9.0", "37.6", *4 * ("61.0 ± 1.0",))
    assert fourth["CAM: ellipse"][4:] == 4 * ("41.0 ± 1.0",)  # from the networks with average pooling
    assert fourth["peaks: rectangle"] == (*4 * ("",), *4 * ("61.0 ± 1.0",))
    assert fourth["MELM: proposals"] == ("36.9", "22.9", "8.4", "32.9", *4 * ("",))
    fifth = rows_of(RUNS, "Table 5")
    assert fifth["prm: all of it"] == ("26.8", "22.0", "61.0 ± 1.0")
    assert fifth["prm: without peak stimulation"] == ("22.8", "11.9", "41.0 ± 1.0")
    assert [fifth[name][0] for name in ABLATED] == ["13.3", "24.3", "16.5"]
    sixth = rows_of(RUNS, "Table 6")
    assert sixth["truth"] == ("100.0", "93.0", "50.0", "73.3", "61.0 ± 1.0", "61.0 ± 1.0", "41.0 ± 1.0",
                              "61.0 ± 1.0", "61.0 ± 1.0")  # fmt: skip
    figure = rows_of(RUNS, "Figure 6")
    assert figure["2-5 objects"] == ("67", "61.0 ± 1.0", "39.0 ± 1.0", "4")
    assert rows_of(RUNS, "Per class")["PRM, here: d, val, 10 pictures"] == 3 * ("61.0 ± 1.0",)


def test_a_second_backbone_is_a_column_of_table_5_and_nowhere_else():
    more = RUNS + [run("peak", s, 0.9, network="deep") for s in (0, 1, 2)]
    assert rows_of(more, "Table 5")["prm: all of it"][2:] == ("61.0 ± 1.0", "90.0 ± 0.0")
    assert rows_of(more, "Table 5")["prm: without peak stimulation"][2:] == ("41.0 ± 1.0", "")
    assert rows_of(more, "Table 1") == rows_of(RUNS, "Table 1")


def test_wises_poster_stands_beside_the_classes_of_voc_only():
    voc = rows_of([run("peak", 0, 0.5, classes=VOC_CLASSES)], "Per class")
    assert len(voc) == 4 and voc["WISE+Refine, poster of WISE: VOC 2012 seg val"][-1] == "41.7"
    assert len(rows_of(RUNS, "Per class")) == 1
    for name, row in WISE_POSTER.items():  # the poster's own means are those of its rows
        assert sum(row[:-1]) / 20 == pytest.approx(row[-1], abs=0.06), name


def test_the_papers_numbers_agree_with_each_other():
    text = "26.8% to 13.3%, by 2.5%"  # section 4.3 on the terms
    (full, vgg), instance, boundary, _ = (PAPER_5[name] for name in (ANSWER, *ABLATED))
    assert text == f"{full}% to {instance[0]}%, by {full - boundary[0]:.1f}%" and vgg == 22.0
    assert PAPER_4[ANSWER][1] == full and PAPER_4[ANSWER][2] == PAPER_6["proposals"][3] == 9.0
    assert PAPER_4["ground truth: proposals"][2] == PAPER_6["proposals"][1]
    assert PAPER_4["SPN: proposals"][2] == PAPER_6["proposals"][2]
    assert max(PAPER_2.values()) == PAPER_2["peak"] and max(v[0] for v in PAPER_1.values()) == 85.5


def verdict(runs, table: str, text: str):
    (data,) = by_data(runs)
    (one,) = [c for c in claims(data) if c.table == table and text in c.text]
    return one


def test_claims_are_judged_seed_by_seed():
    steady = verdict(RUNS, "Table 1", "than global average pooling")
    assert steady.verdict == "holds" and steady.difference == "+20.0 (+20.0 to +20.0, 3 seeds)"
    turned = [run(a, s, v) for a, v in (("average", 0.7), ("peak", 0.6)) for s in (0, 1, 2)]
    assert verdict(turned, "Table 2", "than global average pooling").verdict == "does not hold"
    noisy = [run("average", s, 0.5) for s in (0, 1, 2)] + [run("peak", s, v) for s, v in enumerate((0.5, 0.8, 0.4))]
    one = verdict(noisy, "Table 5", "than global average pooling")
    # Differences 0, 30, -10: mean 20/3, deviation 20.8, and Student's t with 2 degrees of freedom is 4.303.
    assert one.verdict == "not decided" and one.difference == "+6.7 (-45.0 to +58.4, 3 seeds)"
    assert verdict(RUNS[6:7] + RUNS[:1], "Table 1", "than global average").verdict == "not decided"


def test_claims_about_terms_boxes_and_galleries():
    methods = {"prm: truth": 0.9, "prm: proposals and truth": 0.7, "prm: without the class-aware term": 0.65}
    runs = [run("peak", s, 0.6, **methods) for s in (0, 1)] + [run("average", s, 0.3) for s in (0, 1)]
    assert verdict(runs, "Table 5", "class-aware term helps").verdict == "does not hold"
    assert verdict(runs, "Table 5", "instance-aware term helps").verdict == "not decided"  # no difference at all
    assert verdict(runs, "Table 6", "'truth' than").verdict == "holds"
    assert verdict(runs, "Table 4", "ABO").verdict == "holds"


def test_claims_compare_one_backbone_as_the_tables_do():
    runs = [run("peak", s, 0.6) for s in (0, 1)] + [run("average", s, 0.2, network="deep") for s in (0, 1)]
    runs += [run("average", s, 0.7) for s in (0, 1)] + [run("peak", s, 0.9, network="deep") for s in (0, 1)]
    assert verdict(runs, "Table 1", "than global average pooling").verdict == "does not hold"
    assert rows_of(runs, "Table 1")["without peak stimulation / global average pooling (CAM)"][2] == "70.0 ± 0.0"


def test_runs_of_other_kinds_do_not_empty_the_tables():
    bounds = run(None, None, 0.9, network=None)
    del bounds["quality"], bounds["classification"], bounds["localization"]
    assert rows_of([*RUNS, bounds], "Table 4") == rows_of(RUNS, "Table 4") == rows_of([bounds, *RUNS], "Table 4")
    kept = ("run", "pictures", "classification", "localization")
    unmasked = {name: part for name, part in run("lse", 0, 0.3).items() if name in kept}
    with_masks, without = by_data([unmasked, *RUNS])
    assert len(tables(with_masks)) == 8 and [t.title[:7] for t in tables(without)] == ["Table 1"]
    (alone,) = by_data([bounds])
    assert [table.title[:7] for table in tables(alone)] == ["Table 4", "Table 6"]


def test_one_seed_counts_once():
    with pytest.raises(InputError, match="two runs of peak, smallnet, seed 1"):
        by_data([*RUNS, run("peak", 1, 0.5)])


def test_the_number_of_pictures_with_masks_is_said():
    some = [one | {"pictures_with_masks": 4} for one in RUNS]
    assert by_data(some)[0].label == "d, val, 10 pictures, 4 with masks"


def test_runs_without_masks_have_table_1_alone():
    localized = {k: v for k, v in RUNS[6].items() if k in ("run", "pictures", "classification", "localization")}
    (data,) = by_data([localized])
    assert [table.title[:7] for table in tables(data)] == ["Table 1"]
    assert {c.table for c in claims(data)} <= {"Table 1"}


def test_files_of_other_kinds_are_refused(tmp_path):
    for name, text in (("a", "{"), ("b", "[]"), ("c", json.dumps({"run": {}})), ("d", '{"rows": {}}')):
        path = tmp_path / f"{name}.json"
        path.write_text(text)
        with pytest.raises(InputError, match=rf"{name}\.json: not the figures of a run"):
            read_runs([path])
    with pytest.raises(InputError, match="not the figures of a run"):
        read_runs([Path("nowhere.json")])


def test_a_report_beside_the_runs_is_passed_over(tmp_path):
    (tmp_path / "report.json").write_text('{"data": [], "made": {}}')
    (tmp_path / "run.json").write_text(json.dumps(RUNS[0]))
    assert read_runs([tmp_path / "report.json", tmp_path / "run.json"]) == [RUNS[0]]


def test_two_data_sets_are_told_apart(tmp_path):
    other = run("peak", 0, 0.5)
    other["run"]["data"] = "e"
    path = tmp_path / "run.json"
    path.write_text(json.dumps(other))
    labels = [runs.label for runs in by_data([RUNS[0], *read_runs([path])])]
    assert labels == ["d, val, 10 pictures", "e, val, 10 pictures"]


# ---- `prm eval compare`, and the committed files


def figures_file(path, **figures):
    path.write_text(json.dumps({"rows": {"prm": figures}}))
    return path


def test_mean_and_standard_deviation_of_each_kind(tmp_path):
    shared = {"mAP^r_0.25": 0.5, "mAP^r_0.75": 0.0, "ABO": 0.25}
    files = [
        figures_file(tmp_path / "peak-0.json", classification_mAP=0.9, **{"mAP^r_0.5": 0.1}, **shared),
        figures_file(tmp_path / "peak-1.json", classification_mAP=0.8, **{"mAP^r_0.5": 0.2}, **shared),
        figures_file(tmp_path / "average-0.json", classification_mAP=None, **{"mAP^r_0.5": 0.3}, **shared),
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


def test_the_page_of_results_holds_the_committed_runs():
    files = sorted((ROOT / "eval" / "results" / "synthetic").glob("*.json"))
    assert len(files) == 6
    nuclei = ROOT / "eval" / "results" / "nuclei" / "eval.json"
    for table in (comparison(files), comparison([nuclei])):
        assert table in (ROOT / "docs" / "results.md").read_text()


def test_every_committed_run_says_how_it_was_made():
    for file in (ROOT / "eval" / "results").rglob("*.json"):
        page = json.loads(file.read_text())
        assert page["command"].startswith(("prm ", "python -m prm.")) and page["seconds"] > 0, file
    for file in (ROOT / "eval" / "results" / "synthetic").glob("*.json"):
        made = json.loads(file.read_text())["checkpoint"]
        assert str(made["training"]["seed"]) == file.stem[-1]
        assert made["training"]["command"].startswith("prm train ") and made["figures"]["training_seconds"] > 0
