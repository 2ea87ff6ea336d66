"""Tables and pictures of what `prm bench` measured."""

from __future__ import annotations

import os
from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter, NullLocator, ScalarFormatter
from rich.table import Table

from prm.files import atomic_write

WRONG = "WRONG: no speed"
COLOURS = {
    "ours": "#0072b2", "full": "#56b4e9", "autograd": "#d55e00", "autograd-channels-last": "#e69f00",
    "zennit": "#009e73", "dense": "#d55e00", "dense + making": "#e69f00",
}  # fmt: skip


def spread(value: dict | None, factor: float = 1.0, digits: int = 3) -> str:
    """Median (least .. most) of a summary, to so many significant digits."""
    if value is None:
        return "-"
    median, low, high = (_number(factor * value[key], digits) for key in ("median", "min", "max"))
    return f"{median} ({low} .. {high})"


def _number(value: float, digits: int) -> str:
    text = f"{value:.{digits}g}"
    return text if "e" not in text else f"{value:.0f}" if abs(value) >= 1 else f"{value:.1e}"


def _size(size: Sequence[int]) -> str:
    return "x".join(map(str, size))


# ---- tables


def walk_tables(rows: Sequence[dict]) -> list[Table]:
    """Times of the walk beside its competitors, and what a case takes before the walk and in memory."""
    times = Table("network", "size", "peaks", "malloc", "variant", "ms a peak", "... over ours",
                  "ms a peak with preparation", "all s", "... over ours", "L1 to ours",
                  title="Walk: median (least .. most) of the rounds")  # fmt: skip
    for row in rows:
        case = (row["network"], _size(row["size"]), str(row["peaks"]), row["malloc"])
        for one in row["variants"]:
            note = one.get("note") or ("-" if one["name"] == "ours" else _number(one["difference"], 2))
            note += f", bound {one['bound']:.1e}" if "bound" in one else ""
            figures = [WRONG, "", "", "", ""]
            if one["passed"]:
                ours = one["name"] == "ours"
                figures = [
                    spread(one["per_peak"], 1e3), "-" if ours else spread(one.get("ratio")),
                    spread(one["per_peak_prepared"], 1e3), spread(one["all"]),
                    "-" if ours else spread(one.get("ratio_all")),
                ]  # fmt: skip
            times.add_row(*case, one["name"], *figures, note)
            case = ("", "", "", "")
        times.add_section()
    before = Table("network", "size", "peaks", "malloc", "plain forward s", "forward s", "preparation s",
                   "both over plain forward", "MB for one peak", "MB a further peak", "highest MB", "of which before",
                   title="Ours, before the walk and in memory")  # fmt: skip
    for row in rows:
        case, ours = (row["network"], _size(row["size"]), str(row["peaks"]), row["malloc"]), row["variants"][0]
        stages = [WRONG, "", ""]
        if ours["passed"]:
            seconds = ours["seconds"]
            stages = [spread(seconds["forward"]), spread(seconds["preparation"]), spread(ours["ready_over_plain"])]
        memory = (
            "-" if row.get(key) is None else str(row[key]) for key in ("memory_one_peak_mb", "memory_further_peak_mb")
        )
        before.add_row(*case, spread(row["plain_forward"]), *stages, *memory,
                       f"{row['highest_mb']:.0f}", f"{row['held_mb']:.0f}")  # fmt: skip
    return [times, before, _mass_table(rows)]


def _mass_table(rows: Sequence[dict]) -> Table:
    """How far from its middle a PRM's mass lies."""
    shares = list(rows[0]["mass_within"])
    headings = [share if share == "all" else f"{float(share):.6g}" for share in shares]
    table = Table("network", "size", "peaks", *headings,
                  title="A square around the middle holds so much of a PRM if its side is ... pixels")  # fmt: skip
    for row in rows:
        sides = (f"{row['mass_within'][share]:g}" for share in shares)
        table.add_row(row["network"], _size(row["size"]), str(row["peaks"]), *sides)
    return table


def growth(rows: Sequence[dict]) -> list[str]:
    """Time per peak of ours at each size over the first size of the same network, number of peaks and allocator."""
    lines, first = [], {}
    for row in rows:
        ours, key = row["variants"][0], (row["network"], row["peaks"], row["malloc"])
        if not ours["passed"]:
            continue
        base, time = first.setdefault(key, (row["size"], ours["per_peak"]["median"]))
        if row["size"] != base:
            ratio = ours["per_peak"]["median"] / time
            lines.append(f"{row['network']}, {row['peaks']} peaks, malloc {row['malloc']}: a peak at "
                         f"{_size(row['size'])} takes {ratio:.2f} times that at {_size(base)}")  # fmt: skip
    return lines


def retrieval_table(rows: Sequence[dict]) -> Table:
    """Eq. 6 and suppression, ours and dense."""
    table = Table("picture", "proposals", "runs a mask", "peaks", "malloc", "variant", "preparation ms", "scores ms",
                  "choice ms", "all ms", "... over ours", "memory MB", "scores differ by",
                  title="Retrieval: median (least .. most) of the rounds")  # fmt: skip
    for row in rows:
        case = (_size(row["size"]), str(row["proposals"]), str(row["runs_per_mask"]), str(row["peaks"]), row["malloc"])
        for one in row["variants"]:
            ours = one["name"] == "ours"
            figures = [WRONG, "", "", "", ""]
            if row["passed"]:
                stages = (spread(one["seconds"][stage], 1e3) for stage in ("preparation", "scores", "choice"))
                figures = [*stages, spread(one["all"], 1e3), "-" if ours else spread(one["ratio"])]
            memory = row["working_memory_mb" if ours else "dense_memory_mb"]
            table.add_row(*case, one["name"], *figures, str(memory), "-" if ours else _number(row["difference"], 2))
            case = ("",) * 5
        table.add_section()
    return table


def peaks_table(rows: Sequence[dict]) -> Table:
    """Peak stimulation, ours and by max pooling."""
    table = Table("maps", "kind", "peaks", "malloc", "variant", "forward ms", "... over ours",
                  "forward and backward ms", "... over ours",
                  title="Peak stimulation: median (least .. most) of the rounds")  # fmt: skip
    for row in rows:
        case = (_size(row["size"]), row["kind"], str(row["found"]), row["malloc"])
        for one in row["variants"]:
            figures = [WRONG, "", "", ""]
            if row["passed"]:
                both = [one[stage] for stage in ("forward", "forward and backward")]
                over = [spread(None if one["name"] == "ours" else s["ratio"]) for s in both]
                figures = [spread(both[0], 1e3), over[0], spread(both[1], 1e3), over[1]]
            table.add_row(*case, one["name"], *figures)
            case = ("",) * 4
        table.add_section()
    return table


def segment_table(rows: Sequence[dict], stages: Sequence[str]) -> Table:
    """Picture to masks, a stage at a time."""
    table = Table("peaks", "proposals", "malloc", "variant", *(f"{stage} s" for stage in stages), "all but proposals s",
                  "... over ours", "peak memory MB",
                  title="Picture to masks: medians; (least .. most) of the rounds")  # fmt: skip
    for row in rows:
        for one in row["variants"]:
            ours = one["name"] == "ours"
            figures = [WRONG, *[""] * (len(stages) + 1)]
            if row["passed"]:
                found = [one["seconds"].get(stage) for stage in stages]
                figures = ["-" if s is None else f"{s['median']:.3f}" for s in found]
                figures += [spread(one["all"]), "-" if ours else spread(one["ratio"])]
            case = (str(row["peaks"]), str(row["proposals"]), row["malloc"])
            table.add_row(*case, one["name"], *figures, f"{row['peak_memory_mb']:.0f}" if ours else "-")
        table.add_section()
    return table


# ---- pictures


def plot_walk(rows: Sequence[dict], path: str | os.PathLike) -> None:
    """Time per peak against the picture's area, and against the number of peaks where there are several."""
    most, first = max(row["peaks"] for row in rows), rows[0]["size"]
    points = [(row, one) for row in rows for one in row["variants"] if one["passed"]]
    by_peaks = [(row, one) for row, one in points if row["size"] == first]
    two = len({row["peaks"] for row in rows}) > 1
    figure = Figure(figsize=(11 if two else 6, 4.5), layout="constrained")
    panels = figure.subplots(1, 2 if two else 1, squeeze=False)[0]
    area = lambda row: row["size"][0] * row["size"][1] / 1e6  # noqa: E731
    _lines(panels[0], [(row, one) for row, one in points if row["peaks"] == most], area)
    panels[0].set(xlabel="picture, megapixels", title=f"{most} peaks")
    if two:
        _lines(panels[1], by_peaks, lambda row: row["peaks"])
        panels[1].set(xlabel="peaks", title=f"{_size(first)} pixels")
    _finish(figure, panels, "walk, ms a peak", path)


def _lines(axes, points, x) -> None:
    """One line with its spread for each (network, malloc, variant)."""
    several = {len({row[key] for row, _ in points}) > 1 for key in ("network", "malloc")}
    lines: dict[tuple, list] = {}
    for row, one in points:
        lines.setdefault((row["network"], row["malloc"], one["name"]), []).append((x(row), one["per_peak"]))
    for (network, malloc, name), found in lines.items():
        label = f"{network}, {malloc}: {name}" if True in several else name
        style = {"vgg16": "--"}.get(network, "-")
        _line(axes, found, label, COLOURS.get(name), style, "s" if malloc != "default" else "o")


def _line(axes, found, label: str, colour: str | None, style: str = "-", marker: str = "o") -> None:
    found = sorted(found, key=lambda point: point[0])
    place, middle = [x for x, _ in found], [1e3 * s["median"] for _, s in found]
    sides = [[1e3 * abs(s[key] - s["median"]) for _, s in found] for key in ("min", "max")]
    axes.errorbar(place, middle, sides, label=label, color=colour, ls=style, marker=marker, ms=4, capsize=2)


def plot_retrieval(rows: Sequence[dict], path: str | os.PathLike) -> None:
    """Time against the number of proposals; a line for each variant and number of peaks."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes, lines = figure.add_subplot(), {}
    for row in rows:
        for one in row["variants"] if row["passed"] else []:
            lines.setdefault((one["name"], row["peaks"], row["malloc"]), []).append((row["proposals"], one["all"]))
    peaks = sorted({key[1] for key in lines})
    for (name, number, malloc), found in lines.items():
        label = f"{name}, {number} peaks" + ("" if malloc == "default" else f", malloc {malloc}")
        style = ("-", "--", ":", "-.")[peaks.index(number) % 4]
        _line(axes, found, label, COLOURS.get(name), style, "s" if malloc != "default" else "o")
    axes.set(xlabel="proposals", title=f"{_size(rows[0]['size'])} pixels")
    _finish(figure, (axes,), "time for a picture, ms", path)


def _finish(figure: Figure, panels, ylabel: str, path) -> None:
    for axes in panels:
        axes.set(xscale="log", yscale="log", ylabel=ylabel)
        ticks = sorted({x for line in axes.lines for x in line.get_xdata()})
        axes.set_xticks(ticks, [f"{x:.4g}" for x in ticks])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(ScalarFormatter())
        axes.yaxis.set_minor_formatter(LogFormatter(labelOnlyBase=False, minor_thresholds=(2, 0.5)))
        axes.grid(alpha=0.25, which="both")
        axes.spines[["top", "right"]].set_visible(False)
        if axes.lines:
            axes.legend(frameon=False, fontsize=8)
    atomic_write(path, lambda file: figure.savefig(file, format="png", dpi=150))
