"""One network on one data set: its studies, made or found, and the figures of the run with all that they depend on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import prm
from prm.accelerated import Segmenter
from prm.accelerated.checkpoint import Checkpoint

from ..proposals import Source
from .experiment import fingerprint, load_studies, run_folder, share_of_processes, studies, wait_for_all
from .summary import summary


@dataclass(frozen=True, eq=False)
class Judged:
    """A run: its figures (JSON), and the folder of its studies, which hold them picture by picture."""

    figures: dict
    folder: Path
    samples: Sequence
    segmenter: Segmenter | None
    source: Source | None


def judge(
    segmenter: Segmenter | None,
    checkpoint: Checkpoint | None,
    samples: Sequence,
    class_names: Sequence[str],
    data: dict,
    source: Source | None,
    work: Path,
    bootstrap: int = 500,
    tick: Callable[[], None] = lambda: None,
) -> Judged | None:
    """Study every picture, unless that has been done, and sum up; None in all but the first process of a torchrun.

    segmenter, checkpoint: None for what needs no network: the upper bounds. source: None for what needs no mask.
    data: {"data": its name, "split", ...}, whatever says which pictures these are; "path" stays out of the figures.
    work: where studies are kept.
    bootstrap: samples behind the intervals; 0 for none.
    """
    proposals = None if source is None else source.description()
    page = {"data": data, "classes": list(class_names), "proposals": proposals}
    if source is not None and source.path is not None:
        page["files"] = str(source.path.resolve())
    if segmenter is not None:
        page["network"] = fingerprint(checkpoint, segmenter.settings)
    folder = run_folder(work, page)
    rank, processes = share_of_processes()
    studies(segmenter, samples, len(class_names), source and source(), folder, (rank, processes), tick)
    wait_for_all(processes)
    if rank:
        return None
    run = {name: value for name, value in data.items() if name != "path"}
    run |= {"class_names": list(class_names), "proposals": proposals, "version": prm.__version__}
    run |= {"network": None, "aggregation": None, "seed": None}
    if segmenter is not None:
        run |= {
            "network": _network_name(checkpoint.network),
            "aggregation": checkpoint.aggregation["name"],
            "seed": checkpoint.training.get("seed", 0),
            "settings": asdict(segmenter.settings),
            "training": checkpoint.training,
        }
    found = summary(list(load_studies(folder, len(samples))), class_names, bootstrap)
    return Judged({"run": run} | found, folder, samples, segmenter, source)


def _network_name(network: dict) -> str:
    """Name and options in few words, such as "smallnet (widths 16-32, pools 3)": networks of a table are told apart."""
    options = ", ".join(
        f"{name} {'-'.join(map(str, value)) if isinstance(value, list) else value}"
        for name, value in network.get("options", {}).items()
    )
    return network["name"] + (f" ({options})" if options else "")
