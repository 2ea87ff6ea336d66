"""Tables of what `prm bench kernels` found, and the block of GPU figures in docs/results.md."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from ..report import WRONG, spread

BEGIN, END = "<!-- gpu figures: made by prm bench kernels --readme -->", "<!-- end -->"
RESULTS = Path(__file__).parents[2] / "results" / "kernels"
NONE_YET = (
    "No GPU figure exists yet: nothing here has been timed on a GPU. `prm bench kernels --device cuda --json "
    "eval/results/kernels/CARD.json` makes them, parity first; `prm bench kernels --readme` prints this block."
)


def compiled_table(rows: Sequence[dict]) -> Table:
    """Registers, stack and spills of every kernel on every target."""
    table = Table("kernel", "dtype", "precision", "form", "configuration", "target", "registers", "stack bytes",
                  "spill bytes", "shared bytes", "note",
                  title="Compiled without a GPU: per thread; shared memory per program")  # fmt: skip
    keys = ("kernel", "dtype", "precision", "form", "configuration")
    before = None
    for row in rows:
        label = tuple(row[key] for key in keys)
        numbers = (row[key] for key in ("registers", "stack_bytes", "spill_bytes", "shared_bytes"))
        cells = ["-" if n is None else str(n) for n in numbers]
        table.add_row(*(label if label != before else [""] * len(keys)), row["target"], *cells, row["note"])
        before = label
    return table


def dry_table(rows: Sequence[dict]) -> Table:
    """Every case, its full and its reduced size, and how far the interpreted kernels were from torch's code."""
    table = Table("case", "reduced to", "launches", "differs by", "", title="Dry run: interpreted at the reduced size")
    for row in rows:
        launched = ", ".join(f"{name} {number}" for name, number in row["launched"].items())
        difference = "-" if row["difference"] is None else f"{row['difference']:.1e}"
        table.add_row(row["name"], row["reduced"], launched, difference, "" if row["passed"] else "FAILED")
    return table


def bench_table(rows: Sequence[dict]) -> Table:
    """Times of the kernels beside their competitors, and beside what the card could do at best."""
    table = Table("case", "differs by", "variant", "ms", "... over the kernels", "floor ms", "floor / time",
                  title="Kernels: median (least .. most) of the rounds")  # fmt: skip
    for row in rows:
        case = (row["name"], "-" if row["difference"] is None else f"{row['difference']:.1e}")
        if not row["passed"]:
            table.add_row(*case, WRONG, row["note"])
        for one in row["variants"]:
            floor = row["floor_ms"] if one["name"] == "kernels" else None
            share = ["-", "-"] if floor is None else [f"{floor:.3g}", f"{floor / one['ms']['median']:.2f}"]
            table.add_row(*case, one["name"], spread(one["ms"]), spread(one["ratio"]), *share)
            case = ("", "")
        table.add_section()
    return table


# ---- the block of docs/results.md


def readme_block(folder: Path = RESULTS) -> str:
    """The text between BEGIN and END, with both: made from every JSON file in the folder."""
    pages = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    body = "\n\n".join(_card(page) for page in pages) if pages else NONE_YET
    return f"{BEGIN}\n{body}\n{END}"


def _card(page: dict) -> str:
    """One card's figures: whole walks one by one, the operators of each kernel together."""
    found, rows = page["machine"], page["rows"]
    made = f"{found['date'][:10]}, torch {found['torch']}, triton {found['triton']}, `{page['command']}`"
    lines = [
        f"**{found['gpu']}** ({made}); milliseconds, medians, and the ratio of the two in each round:", "",
        "| | kernels | torch's code on the same card | ratio | share of what the card can do |",
        "|---|---|---|---|---|",
    ]  # fmt: skip
    groups = dict.fromkeys(row["group"] for row in rows)
    for group in groups:
        own = [row for row in rows if row["group"] == group]
        right = [row for row in own if row["passed"]]
        wrong = len(own) - len(right)
        lines += map(_single, right) if group == "walk" else [_together(group, right)] if right else []
        lines += [f"| {group}: {wrong} of {len(own)} cases wrong, no speed | | | | |"] if wrong else []
    return "\n".join(lines)


def _variant(row: dict, name: str) -> dict | None:
    return next((one for one in row["variants"] if one["name"] == name), None)


def _single(row: dict) -> str:
    ours, torch_ = _variant(row, "kernels"), _variant(row, "torch")
    figures = [_median(ours["ms"]), _median(torch_ and torch_["ms"]), _median(torch_ and torch_["ratio"])]
    return f"| {row['name']} | {' | '.join(figures)} | |"


def _median(found: dict | None) -> str:
    return "-" if found is None else f"{found['median']:.3g}"


def _together(group: str, rows: Sequence[dict]) -> str:
    """Medians over the cases of a group, with the least and the most."""
    over = [one["ratio"]["median"] for row in rows if (one := _variant(row, "torch"))]
    shares = [row["floor_ms"] / _variant(row, "kernels")["ms"]["median"] for row in rows if row["floor_ms"]]
    return f"| {group}, {len(rows)} cases | | | {_range(over)} | {_range(shares)} |"


def _range(values: Sequence[float]) -> str:
    if not values:
        return "-"
    return f"{statistics.median(values):.2g} ({min(values):.2g} .. {max(values):.2g})"
