"""Which of the paper's claims the runs of a data set bear out."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

from scipy import stats

from ..judging.answers import ABLATED, BOX_MASKS, GALLERIES
from ..judging.evaluators import THRESHOLDS
from ..judging.record import ANSWER
from .tables import AGGREGATIONS, Runs, Table, value


@dataclass(frozen=True)
class Claim:
    """One of the paper's claims, and what the runs say: holds, does not hold, or not decided."""

    table: str
    text: str
    verdict: str
    difference: str


def claims(runs: Runs) -> list[Claim]:
    """The paper's claims, each judged by the differences between runs of one seed, of the first backbone.

    It holds (or does not hold) if the 95 % interval of the mean difference, by Student's t over the seeds, lies above
    (below) zero; otherwise, and with fewer than two seeds, it is not decided. Without peak stimulation there is nothing
    to judge.
    """
    found, runs = [], runs.first
    if not runs.of("peak"):
        return found

    def claim(table: str, text: str, better: tuple, worse: tuple, other: str = "peak") -> None:
        found.append(_judged(table, text, runs, better, worse, other))

    for aggregation, name in list(AGGREGATIONS.items())[:-1]:
        if not runs.of(aggregation):
            continue
        if all("localization" in run for run in runs.all):
            localized = ("localization", "18", "mAP")
            claim("Table 1", f"peak stimulation localizes better than {name}", localized, localized, other=aggregation)
        if runs.masked:
            quality, answer = ("quality", "greedy", "mAP"), ("instances", ANSWER, "mAP^r_0.5")
            claim("Table 2", f"peak stimulation gives better PRMs than {name}", quality, quality, other=aggregation)
            claim("Table 5", f"peak stimulation segments better than {name}", answer, answer, other=aggregation)
    if not runs.masked:
        return found
    for without in ABLATED:
        claim("Table 5", without.replace("prm: without the", "the") + " helps", ("instances", ANSWER, "mAP^r_0.5"),
              ("instances", without, "mAP^r_0.5"))  # fmt: skip
    other = "average" if runs.of("average") else "peak"
    for metric in (*(f"mAP^r_{t}" for t in THRESHOLDS), "ABO"):
        best = max((f"CAM: {m}" for m in (*BOX_MASKS, GALLERIES[0])), key=lambda n: _mean(runs.of(other), n, metric))
        claim("Table 4", f"PRM is above the best of CAM's boxes ({best.split(': ')[1]}), {metric}",
              ("instances", ANSWER, metric), ("instances", best, metric), other=other)  # fmt: skip
    for upper, lower in (("truth", "proposals and truth"), ("proposals and truth", "proposals")):
        claim("Table 6", f"PRM retrieves better from the gallery '{upper}' than from '{lower}'",
              ("instances", f"prm: {upper}", "mAP^r_0.75"), ("instances", f"prm: {lower}", "mAP^r_0.75"))
    return found


def claims_table(runs: Runs) -> Table:
    rows = [(c.table, c.text, c.verdict, c.difference) for c in claims(runs)]
    note = ("Points of the mean difference between runs of one seed, and its 95 % interval by Student's t over the "
            "seeds; not decided where that holds zero, or with fewer than two seeds.")  # fmt: skip
    columns = tuple(("", name) for name in ("", "claim", "verdict", "difference"))
    return Table(f"The paper's claims, here: {runs.label}", columns, rows, [note])


def _judged(table: str, text: str, runs: Runs, better: tuple, worse: tuple, other: str) -> Claim:
    mine, theirs = _by_seed(runs.of("peak")), _by_seed(runs.of(other))
    seeds = sorted(mine.keys() & theirs.keys())
    pairs = [(value(mine[seed], *better), value(theirs[seed], *worse)) for seed in seeds]
    points = [100 * (a - b) for a, b in pairs if a is not None and b is not None]
    if len(points) < 2:
        return Claim(table, text, "not decided", f"{points[0]:+.1f}, one seed" if points else "undefined")
    mean = statistics.mean(points)
    reach = stats.t.ppf(0.975, len(points) - 1) * statistics.stdev(points) / len(points) ** 0.5
    verdict = "holds" if mean - reach > 0 else "does not hold" if mean + reach < 0 else "not decided"
    return Claim(table, text, verdict, f"{mean:+.1f} ({mean - reach:+.1f} to {mean + reach:+.1f}, {len(points)} seeds)")


def _by_seed(runs: list[dict]) -> dict:
    return {run["run"]["seed"]: run for run in runs}


def _mean(runs: list[dict], method: str, metric: str) -> float:
    values = [value(run, "instances", method, metric) for run in runs]
    return -1.0 if None in values else statistics.mean(values)
