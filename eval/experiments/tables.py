"""Tables 1 to 6 and Figure 6 of the paper from the JSON files that runs leave behind, with its own numbers beside.

A run is one network on one data set (see `summary`). Runs of one data set make one set of tables; those that differ in
the seed alone are averaged.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from prm import InputError
from prm.files import reason

from ..judging.answers import BOX_MASKS, BOX_SOURCES, GALLERIES, TRUE_MASKS
from ..judging.evaluators import THRESHOLDS
from ..judging.record import ANSWER
from ..judging.short import shown
from .paper import (
    PAPER_1,
    PAPER_2,
    PAPER_3,
    PAPER_4,
    PAPER_5,
    PAPER_6,
    PAPER_FIGURE_6,
    VOC_CLASSES,
    WISE_POSTER,
    WITHOUT_PEAKS,
)

AGGREGATIONS = {
    "average": "global average pooling (CAM)", "max": "global max pooling (DeepMIL)", "lse": "log-sum-exp",
    "wildcat": "global max-min pooling (WILDCAT)", "peak": "peak stimulation",
}  # fmt: skip

@dataclass(frozen=True)
class Table:
    """One table: a heading, columns, rows of text, and remarks below it."""

    title: str
    columns: tuple[tuple[str, str], ...]
    """(group, name): whose figures they are, "paper..." or "here...", or ""; columns of one group stand together."""
    rows: list[tuple[str, ...]]
    notes: list[str] = field(default_factory=list)

    def headings(self) -> tuple[str, ...]:
        """Each column on one line; of groups that begin alike only the first says its text after the colon."""
        lines, seen = [], set()
        for group, name in self.columns:
            whose = group.split(":")[0]
            before = group if group not in seen else whose
            seen.add(group)
            lines.append(f"{before}{', ' if ':' in group else ': '}{name}" if group and name else before or name)
        return tuple(lines)

    def markdown(self) -> str:
        lines = [f"**{self.title}**", ""]
        lines += ["| " + " | ".join(row) + " |" for row in (self.headings(), ("---",) * len(self.columns), *self.rows)]
        return "\n".join([*lines, *(f"\n{note}" for note in self.notes)])


@dataclass(frozen=True)
class Runs:
    """The runs of one data set and split."""

    label: str
    all: list[dict]

    def of(self, aggregation: str) -> list[dict]:
        return [run for run in self.all if run["run"]["aggregation"] == aggregation]

    @property
    def main(self) -> list[dict]:
        """Those with peak stimulation; where there are none, all."""
        return self.of("peak") or self.all

    @property
    def first(self) -> Runs:
        """Those of the first backbone: all tables but Table 5 show one."""
        network = self.all[0]["run"]["network"]
        return Runs(self.label, [run for run in self.all if run["run"]["network"] == network])

    @property
    def masked(self) -> bool:
        return all("quality" in run for run in self.all)


def read_runs(files: Sequence[Path]) -> list[dict]:
    """The figures of runs; raises InputError for a file that holds none."""
    runs = []
    for file in files:
        try:
            page = json.loads(Path(file).read_text())
            if "made" in page:  # a report's own JSON, which stands beside the runs' in one folder
                continue
            _ = page["pictures"], [page["run"][key] for key in ("aggregation", "network", "seed", "data", "split")]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{file}: not the figures of a run of `prm eval tables` ({reason(error)})") from error
        runs.append(page)
    return runs


def label_of(run: dict) -> str:
    """What a run was judged on."""
    made, masked = run["run"], run.get("pictures_with_masks", 0)
    label = f"{made['data']}, {made['split']}, {run['pictures']} pictures"
    return label + (f", {masked} with masks" if masked not in (0, run["pictures"]) else "")


def by_data(runs: Sequence[dict]) -> list[Runs]:
    """The runs of each data set and split, in the order of their first run; those without masks stand apart.

    Runs without a network are left out beside others. Raises InputError for two runs that would count as two seeds but
    have the same one.
    """
    groups: dict[str, list[dict]] = {}
    for run in runs:
        groups.setdefault(label_of(run), []).append(run)
    found = []
    for label, some in groups.items():
        some = [run for run in some if run["run"]["network"] is not None] or some
        kinds = [tuple(run["run"][key] for key in ("aggregation", "network", "seed")) for run in some]
        twice = [kind for k, kind in enumerate(kinds) if kind in kinds[:k]]
        masked = [run for run in some if "quality" in run]
        if masked and len(masked) < len(some):
            found += by_data(masked) + by_data([run for run in some if "quality" not in run])
        elif twice:
            raise InputError(f"{label}: two runs of {twice[0][0]}, {twice[0][1]}, seed {twice[0][2]}; name one of them")
        else:
            found.append(Runs(label, some))
    return found


def tables(runs: Runs) -> list[Table]:
    """Every table of the paper that these runs can answer."""
    others = runs.first
    made = [_table_1(others)] if any("classification" in run for run in runs.all) else []
    if not runs.masked and all("instances" in run for run in runs.all):
        return [*made, _table_4(others), _table_6(others)]  # what needs no network
    if runs.masked:
        made += [_table_2(others), _table_3(others), _table_4(others), _table_5(runs), _table_6(others)]
        made += [_figure_6(others), _per_class(others)]
    return made


# ---- the tables


def _table_1(runs: Runs) -> Table:
    rows = [("DeepMIL", "max"), ("WSLoc", None), ("WILDCAT", "wildcat"), ("SPN", None),
            ("without peak stimulation", "average"), (None, "lse"), ("full approach", "peak")]  # fmt: skip
    values = []
    for theirs, ours in rows:
        name = " / ".join(filter(None, (theirs, AGGREGATIONS.get(ours))))
        here = [cell(runs.of(ours), "localization", tolerance, "mAP") for tolerance in ("18", "0")]
        here.append(cell(runs.of(ours), "classification", "mAP"))
        values.append((name, *_paper(PAPER_1.get(theirs, (None, None))), *here))
    columns = (("", "pointwise localization, mAP"), *_grouped("paper", ("VOC 2012 val", "COCO 2014 val")),
               *_here(runs, ("18 px tolerance", "no tolerance", "classification mAP")))  # fmt: skip
    return Table("Table 1. Pointwise localization", columns, values, _remarks(runs))


def _table_2(runs: Runs) -> Table:
    variants = ("greedy", "independent", "per_image")
    values = []
    for aggregation, name in AGGREGATIONS.items():
        here = [cell(runs.of(aggregation), "quality", variant, "mAP") for variant in variants]
        values.append((name, *_paper((PAPER_2.get(aggregation),)), *here))
    columns = (("", "quality of the Peak Response Maps, mAP"), *_grouped("paper", ("VOC 2012 seg val",)),
               *_here(runs, ("each instance once", "each map alone", "strongest of a picture and class")))  # fmt: skip
    return Table("Table 2. Response aggregation and the quality of PRMs", columns, values,
                 ["The paper does not say which of the three readings is its own.", *_remarks(runs)])  # fmt: skip


def _table_3(runs: Runs) -> Table:
    values = [(name, *_paper((value,)), "") for name, value in PAPER_3.items() if name != "PRM"]
    for aggregation, name in AGGREGATIONS.items():
        paper = PAPER_3["PRM"] if aggregation == "peak" else None
        values.append((f"PRM, {name}", *_paper((paper,)), cell(runs.of(aggregation), "segmentation", "mIoU")))
    columns = (("", "semantic segmentation, mean IoU"), *_grouped("paper", ("VOC 2012 seg val",)),
               *_grouped("here", (runs.label,)))  # fmt: skip
    return Table("Table 3. Weakly supervised semantic segmentation", columns, values, _remarks(runs))


def _table_4(runs: Runs) -> Table:
    metrics = (*(f"mAP^r_{t}" for t in THRESHOLDS), "ABO")
    ours = [f"{s}: {m}" for s in BOX_SOURCES for m in (*BOX_MASKS, GALLERIES[0])]
    names = [*ours[:3], *(n for n in PAPER_4 if n.startswith("MELM")), *ours[3:6],
             *(n for n in PAPER_4 if n.startswith("SPN")), *ours[6:], ANSWER]  # fmt: skip
    values = []
    for name in names:
        some = (runs.of("average") or runs.main) if name.startswith("CAM") else runs.main
        here = [cell(some, "instances", name, metric) for metric in metrics]
        values.append((name, *_paper(PAPER_4.get(name, (None,) * 4)), *here))
    columns = (("", "instance segmentation"), *_grouped("paper: VOC 2012 seg val", metrics), *_here(runs, metrics))
    notes = ["Void pixels stay in the predictions; ground-truth boxes all score 1, in the annotation's order."]
    if runs.of("average") and runs.of("peak"):
        notes.append("CAM's boxes come from the networks with global average pooling, all else of ours from those with "
                     "peak stimulation.")  # fmt: skip
    return Table("Table 4. Weakly supervised instance segmentation", columns, values, notes + _remarks(runs))


def _table_5(runs: Runs) -> Table:
    networks = list(dict.fromkeys(run["run"]["network"] for run in runs.all))
    values = []
    for name, paper in PAPER_5.items():
        cells = []
        for network in networks:
            some = [run for run in (runs.of("average") if name == WITHOUT_PEAKS else runs.main)
                    if run["run"]["network"] == network]  # fmt: skip
            method = ANSWER if name == WITHOUT_PEAKS else name
            cells.append(cell(some, "instances", method, "mAP^r_0.5"))
        values.append((name.replace(ANSWER, "prm: all of it"), *_paper((*paper, None)[:2]), *cells))
    columns = (("", "ablation, mAP^r at 0.5"), *_grouped("paper: VOC 2012 seg val", ("ResNet50", "VGG16")),
               *_here(runs, networks))  # fmt: skip
    return Table("Table 5. Ablation", columns, values,
                 ["Without peak stimulation: trained with global average pooling. The weights of the terms that are "
                  "left are not chosen anew.", *_remarks(runs)])  # fmt: skip


def _table_6(runs: Runs) -> Table:
    sources = (TRUE_MASKS, *BOX_SOURCES, "prm")
    values = []
    for gallery in GALLERIES:
        paper = _paper(PAPER_6[gallery])
        cells = []
        for source in sources:
            some = (runs.of("average") or runs.main) if source == "CAM" else runs.main
            cells.append(cell(some, "instances", f"{source}: {gallery}", "mAP^r_0.75"))
        values.append((gallery, *paper, *cells))
    theirs, ours = ("GT mask", "GT box", "SPN", "PRM"), (TRUE_MASKS, "true boxes", "CAM boxes", "peak boxes", "PRM")
    columns = (("", "gallery, mAP^r at 0.75"), *_grouped("paper: VOC 2012 seg val", theirs), *_here(runs, ours))
    return Table("Table 6. Upper bounds: what is retrieved from which gallery", columns, values, _remarks(runs))


def _figure_6(runs: Runs) -> Table:
    values = []
    for k, group in enumerate(runs.main[0]["crowding"]):
        low, high = group["low"], group["high"]
        name = str(low) if low == high else f"{low}-{high}" if high is not None else f"{low} and more"
        some = [run["crowding"][k] for run in runs.main]
        paper = PAPER_FIGURE_6.get(name)
        values.append((f"{name} objects", f"{paper:.0f}" if isinstance(paper, float) else paper or "",
                       shown([g["inside"] for g in some]), shown([g["background"] for g in some]),
                       str(group["images"])))  # fmt: skip
    for k, group in enumerate(runs.main[0]["size"]):
        some = [run["size"][k] for run in runs.main]
        values.append((f"instance of {100 * group['low']:g}-{100 * group['high']:g} % of the picture", "",
                       shown([g["inside"] for g in some]), shown([g["background"] for g in some]),
                       str(group["images"])))  # fmt: skip
    columns = (("", "share of a PRM inside its instance"), *_grouped("paper", ("VOC 2012 seg val",)),
               *_here(runs, ("inside", "on the background")), ("", "pictures"))  # fmt: skip
    return Table("Figure 6. Quality of PRMs by crowding and size", columns, values, _remarks(runs))


def _per_class(runs: Runs) -> Table:
    classes = list(runs.main[0]["instances"][ANSWER]["per_class"]["AP^r_0.5"])
    here = [cell(runs.main, "instances", ANSWER, "per_class", "AP^r_0.5", name) for name in classes]
    values = [(f"PRM, here: {runs.label}", *here, cell(runs.main, "instances", ANSWER, "mAP^r_0.5"))]
    title, columns = "Per class, AP^r at 0.5", tuple(("", name) for name in ("", *classes, "mean"))
    if tuple(classes) != VOC_CLASSES:
        note = "WISE's poster has such a table for the 20 classes of VOC 2012; these are others."
        return Table(title, columns, values, [note, *_remarks(runs)])
    poster = [(f"{name}, poster of WISE: VOC 2012 seg val", *_paper(row)) for name, row in WISE_POSTER.items()]
    note = ("The poster's rows follow WISE's protocol: COCO's matching and 101 recall levels, no void pixels in the "
            "predictions, scores of at least 0.5.")  # fmt: skip
    return Table(title, columns, [*poster, *values], [note, *_remarks(runs)])


# ---- cells


def value(run: dict, *path: str) -> float | None:
    """One figure of a run, None where it has none."""
    for key in path:
        run = (run or {}).get(key)
    return run


def cell(runs: Sequence[dict], *path: str) -> str:
    """A figure over runs, percent: mean and standard deviation, or of a single run with its interval over pictures."""
    if any(value(run, *path[:-1]) is None for run in runs):  # such runs have no such figure at all
        return ""
    found = [value(run, *path) for run in runs]
    if len(found) != 1 or found[0] is None:
        return shown(found)
    around = value(runs[0], *path[:-1])
    low, high = around.get("intervals", {}).get(path[-1]) or around.get("interval") or (None, None)
    return shown(found) + (f" [{100 * low:.1f}, {100 * high:.1f}]" if low is not None else "")


def _grouped(group: str, names: Sequence[str]) -> tuple[tuple[str, str], ...]:
    return tuple((group, name) for name in names)


def _here(runs: Runs, names: Sequence[str]) -> tuple[tuple[str, str], ...]:
    return _grouped(f"here: {runs.label}", names)


def _paper(values: Sequence[float | None]) -> tuple[str, ...]:
    return tuple("" if one is None else f"{one:.1f}" for one in values)


def _remarks(runs: Runs) -> list[str]:
    missing = ["No run with peak stimulation: its rows show the networks that there are."]
    missing = missing if runs.masked and not runs.of("peak") else []
    counts = sorted({len(runs.of(a)) for a in (None, *AGGREGATIONS) if runs.of(a)})
    if counts == [1]:
        return ["Percent. One run each; in brackets the 95 % interval over pictures (bootstrap).", *missing]
    text = f"Percent. Mean and standard deviation of {' or '.join(map(str, [n for n in counts if n > 1]))} runs"
    alone = "; where there is one run, the 95 % interval over pictures (bootstrap)" if 1 in counts else ""
    return [text + alone + ".", *missing]
