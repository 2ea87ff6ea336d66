"""WISE's table: what students make of a data set, beside the poster's and the network whose peaks they learnt from."""

from __future__ import annotations

from collections.abc import Sequence

from ..judging.evaluators import THRESHOLDS
from ..judging.record import ANSWER
from .paper import PAPER_4, VOC_CLASSES, WISE, WISE_POSTER
from .tables import Runs, Table, cell, label_of

MEASURES = (*(f"mAP^r_{t}" for t in THRESHOLDS), "ABO")
COCO = ("AP25", "AP50", "AP75")
KINDS = ("PRM", "best labels", "best labels, refined", "sampled labels", "sampled labels, refined", "masks",
         "masks, refined")  # fmt: skip
"""Rows: the classifier itself, then students by what they learnt from."""


def wise_tables(runs: Sequence[dict]) -> list[Table]:
    """For each data set that a student was judged on: a table of figures, and one of AP^r at 0.5 by class."""
    made = []
    for label in dict.fromkeys(label_of(run) for run in runs if kind_of(run) != "PRM"):
        own = Runs(label, [run for run in runs if label_of(run) == label])
        by_kind = {kind: [run for run in own.all if kind_of(run) == kind] for kind in KINDS}
        made += [_figures(own, by_kind), _per_class(own, by_kind)]
    return made


def kind_of(run: dict) -> str:
    """Which row a run belongs to."""
    student = run["run"].get("student")
    return "PRM" if student is None else student["learnt_from"] + (", refined" if student["refined"] else "")


def _figures(runs: Runs, by_kind: dict[str, list[dict]]) -> Table:
    columns = [("", "instances"), *(("poster: VOC 2012 seg val", name) for name in MEASURES)]
    columns += [(f"here: {runs.label}", name) for name in (*MEASURES, *(f"COCO {name}" for name in COCO))]
    rows = []
    for kind, some in by_kind.items():
        poster = PAPER_4[ANSWER] if kind == "PRM" else WISE.get(kind)
        if poster is None and not some:
            continue
        printed = ["" if one is None else f"{one:.1f}" for one in poster or (None,) * len(MEASURES)]
        here = [cell(some, "instances", ANSWER, name) for name in MEASURES] if some else [""] * len(MEASURES)
        here += [cell(some, "coco25", name) for name in COCO] if some else [""] * len(COCO)
        rows.append((kind if kind == "PRM" else f"student of {kind}", *printed, *here))
    notes = [
        "Percent. AP^r is VOC's area under the curve, every score counted, void pixels left in the predictions; COCO's "
        "AP has its matching and 101 recall levels at the same overlaps. The poster's figures follow COCO's, with "
        "scores of at least 0.5 and without void pixels; its students drew their labels.",
        f"Seeds: {', '.join(f'{kind} {len(some)}' for kind, some in by_kind.items() if some)}.",
    ]
    return Table("WISE. Students", tuple(columns), rows, notes)


def _per_class(runs: Runs, by_kind: dict[str, list[dict]]) -> Table:
    classes = runs.all[0]["run"]["class_names"]
    here = [(f"{kind}, here", *(cell(some, "instances", ANSWER, "per_class", "AP^r_0.5", name) for name in classes),
             cell(some, "instances", ANSWER, "mAP^r_0.5")) for kind, some in by_kind.items() if some]  # fmt: skip
    poster = [(f"{name}, poster", *(f"{one:.1f}" for one in row)) for name, row in WISE_POSTER.items()]
    rows = [*(poster if tuple(classes) == VOC_CLASSES else []), *here]
    return Table("WISE. Students by class, AP^r at 0.5", tuple(("", name) for name in ("", *classes, "mean")), rows)
