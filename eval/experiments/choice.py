"""The ways to choose a peak's proposal, on nuclei: the files in eval/results/choice/ and docs/results.md#choice.

python -m prm.eval.experiments.choice DATA SPLIT EVERY [--views]: the three networks that eval/results/nuclei.sh has
trained and tuned, on every so many pictures of DATA, BBBC038's stage 1 training set (.zip or folder). A picture is
walked once for all rules that find the same peaks. Run from the root; then prm eval compare
eval/results/choice/SPLIT-*.json.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

import prm
from prm.accelerated import Segmenter
from prm.accelerated.checkpoint import load_checkpoint
from prm.accelerated.retrieval import Proposals, choose, fit
from prm.files import atomic_write, json_bytes

from ..datasets import open_dataset
from ..judging.evaluators import instance_figures
from ..metrics import ImageRecord
from ..proposals import proposals_for

OUT, TUNED, RUNS = Path("eval/results/choice"), Path("eval/results/nuclei"), Path("runs/nuclei")
WEIGHTS = ("mass", "response", "objectness", "inside", "on_contour")
NO_WEIGHTS = {f"weight_{name}": 0.0 for name in WEIGHTS}
WITHOUT = {"choose_again": False, "nms_nested": None}
PAPER = {"choice": "eq6", "threshold": "median"} | WITHOUT


def rules(run: int, views: bool) -> dict[str, dict]:
    """Name of a row -> what it changes of the network's tuned settings."""
    chosen = {name: json.loads((TUNED / f"tune-{name}-{run}.json").read_text())["chosen"] for name in ("eq6", "proxy")}
    found = {
        "Eq. 6, tuned": PAPER | chosen["eq6"],
        "Eq. 6, tuned, with the levers": {"choice": "eq6", **chosen["eq6"]},
        "WISE": NO_WEIGHTS | {"weight_objectness": 1.0, "seed_pixel": "require"} | WITHOUT,
        "objectness alone": NO_WEIGHTS | {"weight_objectness": 1.0},
        "prm": {},
        "by the proxy": chosen["proxy"],
        "only with the strongest pixel": {"seed_pixel": "require"},
        "without the mass inside": {"weight_mass": 0.0},
        "without the mass on the contour": {"weight_on_contour": 0.0},
        "without objectness": {"weight_objectness": 0.0, "weight_mass": 1.0, "weight_response": 1.0},
        "without another choice": WITHOUT,
        "without the rule of nested masks": {"nms_nested": None},
        "without peaks below the median": {"threshold": "median"},
        "without faint classes": {"class_threshold": 0.5},
        "with a least score of 0.2": {"min_score": 0.2},
        "with maps enlarged by 2": {"upsample": 2},
    }
    return found | ({"with two views": {"views": 2}, "with eight views": {"views": 8}} if views else {})


def judged(network: Path, data: Path, split: str, every: int, by_name: dict[str, dict]) -> tuple[dict, list]:
    """Every rule's figures, and of each picture (name, true instances, found ones, mean best overlap) as tuned."""
    records: dict[str, list] = {name: [] for name in by_name}
    pictures = []
    for look in sorted({looking(changes) for changes in by_name.values()}, key=str):
        mine = {name: changes for name, changes in by_name.items() if looking(changes) == look}
        segmenter = Segmenter.from_checkpoint(load_checkpoint(network), **dict(look))
        dataset = open_dataset(data, split=split, class_names=segmenter.classes.names)
        for sample in (dataset[i] for i in range(0, len(dataset), every)):
            proposals, truth = proposals_for(sample.image, RUNS / "proposals", 1000), Proposals.from_masks(sample.masks)
            ious, responses, walked, fitted = proposals.ious(truth).numpy(), segmenter.respond([sample.image]), {}, {}
            for name, changes in mine.items():
                s = replace(segmenter.settings, **changes)
                found_by = s.peak_threshold, s.class_threshold
                if found_by not in walked:
                    walked[found_by] = segmenter.walk(responses, segmenter.find_peaks(responses, s))[0]
                one, by = walked[found_by], (*found_by, s.choice, s.bias)
                if by not in fitted:
                    fitted[by] = fit(one, proposals, s)
                choice = choose(one, fitted[by], s)
                labels = one.peaks[choice.peaks, 0].numpy()
                record = ImageRecord(ious[choice.proposals], labels, choice.scores.numpy(), sample.mask_labels)
                records[name].append(record)
                if not changes:
                    best = record.ious.max(axis=0, initial=0)
                    pictures.append([sample.name, len(truth), len(labels), round(float(best.mean()), 3)])
        print(f"{network}: {', '.join(mine)}", file=sys.stderr, flush=True)
    return {name: instance_figures(found, dataset.class_names) for name, found in records.items()}, pictures


def looking(changes: dict) -> tuple:
    """What decides which maps and valid peaks there are."""
    return tuple((name, changes[name]) for name in ("threshold", "upsample", "views") if name in changes)


def main(data: str, split: str, every: str, *more: str) -> None:
    OUT.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    for run in range(3):
        started, file = time.perf_counter(), OUT / f"{split}-{run}.json"
        if not file.exists():
            by_name = rules(run, "--views" in more)
            rows, pictures = judged(RUNS / str(run), Path(data), split, int(every), by_name)
            for name, figures in rows.items():
                figures["settings"], figures["images"] = by_name[name], len(pictures)
            ordered = sorted(pictures, key=lambda one: -np.nan_to_num(one[3]))
            about = {
                "command": " ".join(("python -m prm.eval.experiments.choice", data, split, every, *more)),
                "version": prm.__version__, "torch": torch.__version__, "threads": torch.get_num_threads(),
                "seconds": round(time.perf_counter() - started, 2), "data": Path(data).name, "split": split,
            }  # fmt: skip
            atomic_write(file, json_bytes(about | {"every": int(every), "rows": rows, "pictures": ordered}))


if __name__ == "__main__":
    main(*sys.argv[1:])
