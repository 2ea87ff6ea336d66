"""`prm tune`: choose the settings of Eq. 6, the thresholds and the suppression on pictures that are kept for it."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from prm import InputError
from prm.settings import SegmentationSettings, meanings

from ..tuning.grid import searched
from .options import settings_options
from .shared import (
    Cache,
    DataOption,
    Device,
    Every,
    Json,
    Limit,
    Model,
    Proposals,
    check_masks,
    check_one_of,
    make_folder,
    open_with_data,
    out_console,
    print_table,
    progress_bar,
    write_figures,
)

MEANINGS = meanings(SegmentationSettings)


def _values(name: str):
    text = f"What to try, exactly these values: {MEANINGS[name]}."
    return Annotated[str | None, typer.Option(metavar="A,B,...", help=text)]


SEARCHED = {"peak_minimum", *searched("eq6"), *searched("fit")}


@settings_options("opening", SegmentationSettings, "Not searched: used instead, and written, too", SEARCHED)
def tune(
    data: DataOption,
    split: Annotated[str, typer.Option(help="Which part of it to choose on: train, val, or 'all'.")] = "train",
    checkpoint: Model = None,
    objective: Annotated[
        str,
        typer.Option(metavar="NAME", help="What to maximise: map (mAP^r), abo, or proxy, which needs no masks: how "
                     "much each mask tells about its Peak Response Map, beyond what its area lets expect. Over all "
                     "settings of Eq. 6, the proxy's rank correlation with mAP^r was 0.9 on drawn scenes, 0.7 on "
                     "nuclei. Of the weights of --choice fit it says nothing: without masks keep those that you have. "
                     "It cannot judge class threshold and suppression, which stay as they are."),
    ] = "map",
    iou: Annotated[float, typer.Option(min=0.01, max=1, help="Overlap from which mAP^r has a hit.")] = 0.5,
    halves: Annotated[
        bool,
        typer.Option(help="Also tell what the choice is worth on other pictures: choose on every second picture, judge "
                     "on the others, and the other way round."),
    ] = False,
    against_defaults: Annotated[
        bool,
        typer.Option("--against-defaults", help="Start from prm's defaults and compare with them, not with what the "
                     "checkpoint holds, which may have been tuned before."),
    ] = False,
    *,
    opening: dict,
    alpha: _values("alpha") = None,
    beta_area: _values("beta_area") = None,
    bias: _values("bias") = None,
    weight_mass: _values("weight_mass") = None,
    weight_response: _values("weight_response") = None,
    weight_objectness: _values("weight_objectness") = None,
    weight_inside: _values("weight_inside") = None,
    weight_on_contour: _values("weight_on_contour") = None,
    peak_threshold: _values("peak_threshold") = None,
    class_threshold: _values("class_threshold") = None,
    nms: _values("nms") = None,
    extend: Annotated[
        int,
        typer.Option(min=0, metavar="N", help="At most so many further values of alpha, beta and bias, while all that "
                     "is within a point of the best lies at the edge of what was tried."),
    ] = 3,
    every: Annotated[int, typer.Option(min=1, help="Take every n-th picture only.")] = 1,
    proposals: Proposals = None,
    limit: Limit = 1000,
    cache: Cache = None,
    device: Device = "cpu",
    write: Annotated[bool, typer.Option(help="Write the chosen setting into the checkpoint.")] = True,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE.png", help="Draw the figure that was maximised over the settings.")
    ] = None,
    json_file: Json = None,
) -> None:
    """Choose alpha, beta and bias of Eq. 6, or the weights of the second choice, the peak and class thresholds and the
    suppression by a full search, and write them into the checkpoint. Judge the result on other pictures than these;
    --halves does so by itself. Figures are those of every peak's first choice, without what --choose-again adds.
    """  # fmt: skip
    from ..proposals import Source
    from ..tuning import search as tuning
    from ..tuning.gather import gather
    from ..tuning.grid import OBJECTIVES, WEIGHTS, full_grid

    started = time.perf_counter()
    check_one_of("--objective", [objective], OBJECTIVES)
    given = {"alpha": alpha, "beta_area": beta_area, "bias": bias, "weight_mass": weight_mass,
             "weight_response": weight_response, "weight_objectness": weight_objectness,
             "weight_inside": weight_inside, "weight_on_contour": weight_on_contour,
             "peak_threshold": peak_threshold, "class_threshold": class_threshold, "nms": nms}  # fmt: skip
    given = {name: _numbers(name, text) for name, text in given.items() if text is not None}
    for file in (plot, json_file):
        if file is not None:
            make_folder(file.parent)
    segmenter, found, dataset = open_with_data(checkpoint, data, split, device, **opening)
    if against_defaults:
        names = ("peak_minimum", *searched(segmenter.settings.choice))
        usual = {name: getattr(SegmentationSettings(), name) for name in names}
        segmenter.settings = replace(segmenter.settings, **usual)
    grid = full_grid(segmenter.settings, given, OBJECTIVES[objective])
    source = Source(proposals, limit, cache)()
    samples = Every(dataset, every)
    if objective != "proxy":
        check_masks(samples, data, f"tuning by --objective {objective} (proxy needs none)")
    with progress_bar() as progress:
        task = progress.add_task("gathering the pictures' sums", total=len(samples))
        pictures = gather(segmenter, samples, source, grid, lambda: progress.advance(task))
        gathered = time.perf_counter()
        tuples = math.prod(len(grid[name]) for name in WEIGHTS[segmenter.settings.choice])
        task = progress.add_task("searching", total=tuples)
        how = (segmenter.settings, grid, OBJECTIVES[objective], iou, extend, tuple(given))
        result = tuning.search(pictures, *how, tick=lambda: _tick(progress, task))
        sought = time.perf_counter()
        other = tuning.halves(pictures, *how, tick=lambda: _tick(progress, task)) if halves else []
    basis = {"objective": objective, "iou": iou, "data": data.name, "split": split, "every": every,
             "pictures": len(pictures)}  # fmt: skip
    if plot is not None:
        from ..tuning.surface import surface

        surface(result, plot, f"{len(pictures)} pictures of {data.name}, {split}")
    seconds = {"gathering": round(gathered - started, 2), "search": round(sought - gathered, 2)}
    write_figures(json_file, basis | {"seconds_of": seconds} | _figures(result, other, segmenter.settings), started)
    print_table(_settings_table(result, segmenter.settings))
    out_console.print(_remarks(result, seconds))
    if halves:
        print_table(_halves_table(other))
    if write and checkpoint is not None and checkpoint.exists():
        _write(checkpoint, found, result, opening, basis)
    elif write:
        out_console.print("Not written: what others trained stays as it is; name a checkpoint of yours with -c.")


def _tick(progress, task) -> None:
    """One step on; where the grid was extended, or is searched again, the end moves."""
    one = next(t for t in progress.tasks if t.id == task)
    progress.update(task, advance=1, total=max(one.total, one.completed + 1))


def _numbers(name: str, text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise InputError(
            f"--{name.replace('_', '-')} {text!r}: give numbers with commas between them, as in 0.4,0.8"
        ) from None


def _write(path: Path, found, result, opening: dict, basis: dict) -> None:
    """The setting, and how it was chosen, into the checkpoint."""
    from prm.accelerated.checkpoint import save_checkpoint

    page = path / "checkpoint.json" if path.is_dir() else path
    # A peak threshold has taken the place of an absolute one.
    kept = {name: value for name, value in found.segmentation.items() if name != "peak_minimum"}
    kept |= opening | {"choice": result.settings.choice}
    chosen = basis | {"present": result.present, "chosen": result.reached}
    save_checkpoint(
        replace(found, segmentation=kept | result.chosen, figures=found.figures | {"tuning": chosen}), page
    )
    out_console.print(f"Written into {page}.")


def _figures(result, other: list, settings) -> dict:
    count, spans = result.as_good()
    present = {name: getattr(settings, name) for name in result.grid}
    return {
        "chosen": result.chosen, "figures": result.reached, "present": present, "present_figures": result.present,
        "tried": result.figures["proxy"].size, "grid": result.grid,
        "within_a_point": {"settings": count, "from_to": spans}, "at_edge": list(result.at_edge()),
        "proxy_rank_correlation": result.agreement(),
        "profiles": {name: result.profile(name).tolist() for name in result.grid},
        "halves": [
            {"chosen": half.search.chosen, "chosen_on": half.search.reached, "judged": half.judged,
             "present": half.present, "proxy_rank_correlation": half.search.agreement()}
            for half in other
        ],
    }  # fmt: skip


def _shown(figure: str, value: float) -> str:
    return f"{value:.3f}" if figure == "proxy" else f"{100 * value:.1f}"


def _settings_table(result, settings) -> Table:
    table = Table("", *result.grid, *result.present)
    present = [getattr(settings, name) for name in result.grid]
    for name, values, figures in (("before", present, result.present),
                                  ("chosen", result.chosen.values(), result.reached)):  # fmt: skip
        table.add_row(name, *(f"{value:.4g}" for value in values), *(_shown(f, value) for f, value in figures.items()))
    return table


def _remarks(result, seconds: dict) -> str:
    """How long it took, how flat the optimum is, and what lies at the edge."""
    count, spans = result.as_good()
    ranges = ", ".join(f"{name} {low:.4g}" + (f" to {high:.4g}" if high > low else "")
                       for name, (low, high) in spans.items())  # fmt: skip
    within = "within 1 % of" if result.objective == "proxy" else "within a point of"
    size = result.figures[result.objective].size
    lines = [f"{size} settings in {seconds['search']:.1f} s, after {seconds['gathering']:.1f} s for the pictures.",
             f"{count} of them {within} the best {result.objective}: {ranges}."]  # fmt: skip
    lines += [f"{name}: all of these lie at the edge of what was tried; try values beyond {result.chosen[name]:.4g} "
              f"with --{name.replace('_', '-')}." for name in result.at_edge()]  # fmt: skip
    agreement = ", ".join(f"{value:.2f} with {name}" for name, value in result.agreement().items())
    return "\n".join(lines + ([f"Rank correlation of the proxy over all of them: {agreement}."] if agreement else []))


def _halves_table(other: list) -> Table:
    """What the other half's choice is worth on each half, beside the settings as they were."""
    names = list(other[0].judged)
    table = Table("chosen on", "judged on", *(f"{name}: before, chosen, gain" for name in names))
    parts = ("pictures 1, 3, 5 ...", "pictures 2, 4, 6 ...")
    rows = [(*sides, half.present, half.judged) for sides, half in zip((parts, parts[::-1]), other)]
    mean = [{name: sum(row[k][name] for row in rows) / 2 for name in names} for k in (2, 3)]
    for one, another, before, after in (*rows, ("mean", "", *mean)):
        cells = (f"{_shown(n, before[n])}  {_shown(n, after[n])}  {'+' if after[n] >= before[n] else '-'}"
                 f"{_shown(n, abs(after[n] - before[n]))}" for n in names)  # fmt: skip
        table.add_row(one, another, *cells)
    return table
