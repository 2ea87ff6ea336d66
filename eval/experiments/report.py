"""The report of `prm eval report`: what runs found, as JSON and as one HTML file that needs nothing beside it.

`parts` gathers, for each data set, the paper's claims, its tables and more, Figure 6, precision-recall curves and, of a
run judged now, pictures of successes and of each category of failure, as the paper's Figure 8. `as_json` and
`report_page.page` show the same parts.
"""

from __future__ import annotations

import json
import platform
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field

import numpy as np
import torch
from pycocotools import mask as coco_mask

import prm
from prm.files import json_bytes

from ..judging.evaluators import THRESHOLDS
from ..judging.record import ANSWER, Record, failures_of, image_record_of
from ..judging.run import Judged, load_records
from ..judging.short import shown
from ..metrics.failures import OUTCOMES, VERDICTS
from ..pictures.figures import colour
from . import plots
from .claims import Claim, claims, claims_table
from .paper import PAPER_FIGURE_6
from .tables import AGGREGATIONS, Runs, Table, by_data, cell, tables

SUCCESS = "successes"
FAILURES = ("missed", "merged", "split", "wrong class", "loose")
MEANING = {
    "found": "a prediction of its class overlaps it by half at least (IoU 0.5)",
    "wrong class": "a prediction of another class does",
    "merged": "one prediction covers it together with another instance of its class",
    "split": "two predictions or more lie inside it",
    "loose": "a mask of its class overlaps it, by 0.1 at least and less than half",
    "missed": "none of these: there is no mask for it",
    "hit": "overlaps an instance of its class by half at least, and is the first to do so",
    "duplicate": "overlaps an instance that an earlier prediction has found",
    "false alarm": "overlaps no instance of its class by half",
}
PICTURES = 6
"""Of each category, at most."""
COCO_MEASURES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
MADE = ("command", "seconds", "seconds_per_picture")
"""What may differ between two makings of a run."""
WISE_MEASURES = ("AP25", "AP50", "AP75")


@dataclass(frozen=True)
class Drawing:
    """A plot, SVG, and what it shows in words."""

    svg: bytes
    text: str


@dataclass(frozen=True)
class Case:
    """A picture of the gallery: what became of its instances and predictions, and its tiles as JPEG."""

    name: str
    category: str
    outcomes: dict[str, int]
    verdicts: dict[str, int]
    legend: tuple[tuple[str, tuple[int, int, int]], ...] = ()
    """Classes in the picture, true or predicted, and their colours."""
    tiles: dict[str, bytes] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class Part:
    """All about one data set and split."""

    runs: Runs
    claims: list[Claim]
    claims_table: Table
    tables: list[Table]
    measures: list[Table]
    figure_6: list[Drawing]
    curves: list[Drawing]
    failures: Drawing | None
    gallery: dict[str, list[Case]]
    gallery_of: str
    """The run that the gallery shows."""
    timing: Table


def parts(groups: Sequence[Runs], judged: Sequence[Judged], tick: Callable[[int], None] = lambda total: None) -> list:
    """A `Part` for each group of runs. judged: runs of which pictures can be shown; the first with peak stimulation,
    else the first, is. tick: called with the number of pictures to be drawn after each of them."""
    shown_run = next((one for one in _with_masks(judged) if one.figures["run"]["aggregation"] == "peak"), None)
    shown_run = shown_run or next(_with_masks(judged), None)
    found = []
    for runs in groups:
        mine = shown_run is not None and by_data([shown_run.figures])[0].label == runs.label
        first = runs.first
        masked, known = runs.masked, claims(runs)
        found.append(Part(
            runs, known, claims_table(runs), tables(runs), _measures(first), _figure_6(first) if masked else [],
            _curves(first) if masked else [], _shares(first) if masked else None,
            _gallery(shown_run, tick) if mine else {}, run_name(shown_run.figures) if mine else "", _timing(runs),
        ))  # fmt: skip
    return found


def as_json(found: Sequence[Part], command: str) -> bytes:
    """The parts without their drawings. All that may differ between two makings of one report stands under "made"."""
    data = []
    for part in found:
        runs = [{name: value for name, value in run.items() if name not in MADE} for run in part.runs.all]
        cases = {category: [_case_json(case) for case in cases] for category, cases in part.gallery.items()}
        data.append({
            "data": part.runs.label, "claims": [asdict(claim) for claim in part.claims],
            "tables": [asdict(table) for table in (part.claims_table, *part.tables, *part.measures)],
            "gallery": cases, "runs": runs,
        })  # fmt: skip
    made = {"command": command, "versions": versions(), "timing": [asdict(part.timing) for part in found]}
    return json_bytes({"data": data, "made": made})


def versions() -> dict[str, str]:
    return {"prm": prm.__version__, "torch": torch.__version__, "numpy": np.__version__,
            "Python": platform.python_version()}  # fmt: skip


def _case_json(case: Case) -> dict:
    return {"name": case.name, "outcomes": case.outcomes, "verdicts": case.verdicts}


def _with_masks(judged: Sequence[Judged]) -> Iterator[Judged]:
    return (one for one in judged if "quality" in one.figures)


# ---- tables beside the paper's


def _measures(runs: Runs) -> list[Table]:
    """What a run knows beyond the paper's tables; those of the failures first."""
    here = f"here: {runs.label}"
    made = []
    if runs.masked:
        for kind, names, what in (("instances", OUTCOMES, "true instances"), ("predictions", VERDICTS, "predictions")):
            counts = [run["failures"][kind] for run in runs.main]
            rows = [(name, MEANING[name], f"{np.mean([some[name] for some in counts]):.0f}",
                     shown([_share(some, name) for some in counts])) for name in names]  # fmt: skip
            columns = (("", kind), ("", "what it means"), (here, what), (here, "share, %"))
            made.append(Table(f"What became of the {what}", columns, rows, [_of_main(runs)]))
    if all("proposals" in run for run in runs.all):
        made.append(_proposals(runs, here))
    if runs.masked:
        names = (("coco", "COCO's measures", COCO_MEASURES), ("wise", "The protocol of WISE", WISE_MEASURES))
        for key, title, measures in names:
            note = "WISE counts detections with a score of 0.5 and more only." if key == "wise" else \
                "AP over overlaps 0.5 to 0.95; AR: recall of so many detections a class and picture; s, m, l: small " \
                "(to 32 x 32 pixels), medium (to 96 x 96) and large instances."  # fmt: skip
            rows = [(name, *(cell(runs.of(a), key, measure) for measure in measures))
                    for a, name in AGGREGATIONS.items() if runs.of(a)]  # fmt: skip
            made.append(Table(title, (("", "mask AP, percent"), *((here, m) for m in measures)), rows, [note]))
        if all(run.get("void_ignored") for run in runs.main):
            made.append(_void(runs, here))
    return made


def _share(counts: dict[str, int], name: str) -> float | None:
    return counts[name] / sum(counts.values()) if sum(counts.values()) else None


def _of_main(runs: Runs) -> str:
    count = len(runs.main)
    which = AGGREGATIONS.get(runs.main[0]["run"]["aggregation"], "no network")
    return f"One run: {which}." if count == 1 else f"Means over {count} runs: {which}."


def _proposals(runs: Runs, here: str) -> Table:
    measures = {"ABO": "average best overlap", "recall_0.5": "recall at 0.5", "recall_0.7": "recall at 0.7"}
    sources = {json.dumps(run["run"]["proposals"], sort_keys=True): run for run in reversed(runs.all)}
    rows = [(", ".join(f"{name} {text}" for name, text in run["run"]["proposals"].items()),
             f"{run['proposals']['per_picture']:.0f}", *(shown([run["proposals"][m]]) for m in measures))
            for run in sources.values()]  # fmt: skip
    columns = (("", "proposals"), (here, "a picture"), *((here, name) for name in measures.values()))
    note = "Percent of the true instances. What no proposal comes near, no network can retrieve: the bound of all rows."
    return Table("How much of the truth the proposals reach", columns, rows, [note])


def _void(runs: Runs, here: str) -> Table:
    metrics = (*(f"mAP^r_{t}" for t in THRESHOLDS), "ABO")
    ways = {"void pixels stay in the predictions": ("instances", ANSWER),
            "void pixels cleared from the predictions": ("void_ignored",)}  # fmt: skip
    rows = [(name, *(cell(runs.main, *path, metric) for metric in metrics)) for name, path in ways.items()]
    columns = (("", "instance segmentation"), *((here, metric) for metric in metrics))
    return Table("Void pixels", columns, rows, ["Void: pixels that the annotators left to nobody.", _of_main(runs)])


def _timing(runs: Runs) -> Table:
    stages = list(dict.fromkeys(stage for run in runs.all for stage in run["seconds_per_picture"]))
    rows = [(run_name(run), *(f"{run['seconds_per_picture'].get(stage, 0):.3f}" for stage in stages))
            for run in runs.all]  # fmt: skip
    columns = (("", "seconds a picture"), *(("", stage) for stage in stages))
    return Table("Time", columns, rows, ["Wall clock, whatever else the machine did; kept pictures as first made."])


def run_name(run: dict, seed: bool = True) -> str:
    made = run["run"]
    if made["network"] is None:
        return "no network"
    aggregation = AGGREGATIONS.get(made["aggregation"], made["aggregation"])
    return f"{made['network']}, {aggregation}" + (f", seed {made['seed']}" if seed else "")


# ---- plots


def _figure_6(runs: Runs) -> list[Drawing]:
    crowding, size = ([run[key] for run in runs.main] for key in ("crowding", "size"))
    objects = [_range(group) for group in crowding[0]]
    shares = [f"{100 * group['low']:g}–{100 * group['high']:g} %" for group in size[0]]  # noqa: RUF001
    words = "Share of a Peak Response Map that lies inside its instance, and on the background,"
    return [
        Drawing(plots.quality_plot(crowding, objects, "objects in the picture", PAPER_FIGURE_6),
                f"{words} against the number of objects in the picture."),
        Drawing(plots.quality_plot(size, shares, "instance's share of the picture", {}),
                f"{words} against the size of the instance."),
    ]  # fmt: skip


def _range(group: dict) -> str:
    low, high = group["low"], group["high"]
    return str(low) if low == high else f"{low} and more" if high is None else f"{low}-{high}"


def _curves(runs: Runs) -> list[Drawing]:
    found = []
    for name in runs.main[0]["curves"]:
        ap = cell(runs.main, "instances", ANSWER, "per_class", "AP^r_0.5", name)
        curves = [run["curves"][name] for run in runs.main]
        found.append(Drawing(plots.curve_plot(name, f"AP {ap}", curves), f"{name}: AP {ap}"))
    return found


def _shares(runs: Runs) -> Drawing:
    counts = [run["failures"]["instances"] for run in runs.main]
    shares = {name: float(np.mean([_share(some, name) or 0.0 for some in counts])) for name in OUTCOMES}
    words = ", ".join(f"{name} {100 * share:.1f} %" for name, share in shares.items())
    return Drawing(plots.shares_plot(shares, FAILURES), f"What became of the true instances: {words}.")


# ---- the gallery


def _gallery(judged: Judged, tick: Callable[[int], None]) -> dict[str, list[Case]]:
    """Pictures of successes and of each category of failure; none of a category that does not occur."""
    chosen = _chosen(load_records(judged.folder, len(judged.samples)))
    names = judged.figures["run"]["class_names"]
    several = {k: one for some in chosen.values() for k, one in some}
    common = {}
    for k, one in several.items():
        common[k] = _common_tiles(judged, judged.samples[k].image, one)
        tick(len(several))
    return {category: [_case(category, judged.samples[k].image, one, names, common[k]) for k, one in some]
            for category, some in chosen.items() if some}  # fmt: skip


def _chosen(records: Iterator[Record]) -> dict[str, list[tuple[int, Record]]]:
    """For each category the (number, record) of its pictures, the best or worst first; equal ones in their order.

    Successes: by the share of hits among instances and predictions (F1), then most instances, then overlap. Failures:
    most instances of the category, then their share of the picture's.
    """
    found = {category: [] for category in (SUCCESS, *FAILURES)}
    for k, one in enumerate(records):
        if one.truth is None or not len(one.truth.labels):
            continue
        judged, overlaps = failures_of(one), image_record_of(one).ious
        objects, hits = len(judged.outcomes), int((judged.verdicts == "hit").sum())
        counts = Counter(judged.outcomes.tolist())
        keys = {name: (-counts[name], -counts[name] / objects, k) for name in FAILURES if counts[name]}
        if hits:
            keys[SUCCESS] = (-2 * hits / (objects + len(judged.verdicts)), -objects, -overlaps.max(axis=0).mean(), k)
        for category, key in keys.items():
            found[category] = sorted([*found[category], (key, k, one)], key=lambda entry: entry[0])[:PICTURES]
    return {category: [(k, one) for _, k, one in some] for category, some in found.items()}


def _common_tiles(judged: Judged, image: np.ndarray, one: Record) -> dict[str, bytes]:
    """The tiles that show the same whatever the category: the maps of all peaks, and the answer."""
    found, labels = judged.segmenter.look(image), one.answers[ANSWER].labels
    tints = [colour(c) for c in found.peaks[:, 0].tolist()]
    return {
        "Peak Response Maps": plots.responses_tile(image, found.prms.cpu().numpy(), tints, found.positions),
        "found": plots.answer_tile(image, _masks(one.masks, image), [colour(c) for c in labels]),
    }


def _case(category: str, image: np.ndarray, one: Record, names: Sequence[str], common: dict[str, bytes]) -> Case:
    judged, true_labels = failures_of(one), one.truth.labels
    masks = _masks(one.truth.masks[: len(true_labels)], image)
    truth = plots.truth_tile(image, masks, [colour(c) for c in true_labels], judged.outcomes == category)
    classes = np.union1d(true_labels, one.answers[ANSWER].labels).tolist()
    outcomes, verdicts = Counter(judged.outcomes.tolist()), Counter(judged.verdicts.tolist())
    return Case(
        one.name, category, {name: outcomes[name] for name in OUTCOMES if outcomes[name]},
        {name: verdicts[name] for name in VERDICTS if verdicts[name]},
        tuple((names[c], colour(c)) for c in classes), {"truth": truth, **common},
    )  # fmt: skip


def _masks(codes: Sequence[dict], image: np.ndarray) -> np.ndarray:
    """(K, H, W) bool."""
    if not codes:
        return np.zeros((0, *image.shape[:2]), dtype=bool)
    return coco_mask.decode(list(codes)).transpose(2, 0, 1).astype(bool)
