"""What `prm bench kernels` measures: the kernels beside torch's own code on one GPU, and what the GPU could do at best.

A case is compared first, and a kernel whose answer is wrong has no speed. Then come rounds, each of which runs every
variant in turn. Without a GPU, a dry run takes every case through Triton's interpreter at a reduced size.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial

from prm import InputError
from prm.files import atomic_write, reason

from ..clock import interleave, ratios, summary
from ..process import machine

PROCESSES = 2
FLUSH = 1 << 30  # bytes written between two measurements: more than any cache holds
LARGE = 1 << 29  # numbers copied, and
SIDE = 8192  # side of the matrices multiplied, to see what the card can do


def wanted(only: str = "") -> list:
    """The cases whose name holds the text. Raises InputError if none does."""
    from .cases import cases

    found = [case for case in cases() if only in case.name]
    if not found:
        groups = ", ".join(dict.fromkeys(case.group for case in cases()))
        raise InputError(f"--only {only}: no case has that in its name; names begin with {groups}")
    return found


# ---- whether answers are the same


def compared(case, inputs: Sequence) -> dict:
    """The kernels' answer beside torch's: launched, difference, tolerance, passed, and `note` if one failed.

    by_torch: the kernels that the record of this card's choices passes over.

    The difference is the largest of any number, as a share of the largest number; whole numbers must be equal.
    """
    from prm.accelerated.kernels import launching

    before = launching.launches.copy()
    row = {"launched": {}, "by_torch": [], "difference": None, "tolerance": case.tolerance, "passed": False, "note": ""}
    try:
        with launching.listening() as choices:
            ours = case.answers(*case.run(*_copies(inputs)))
        row["launched"] = dict(launching.launches - before)
        row["by_torch"] = sorted({kernel for (kernel, _), choice in choices.items() if choice == launching.TORCH})
        with launching.using(launching.TORCH):
            truth = case.answers(*case.run(*_copies(inputs)))
        row["difference"] = max(map(_difference, ours, truth))
    except Exception as error:  # whatever a kernel stumbles over is a row of the table
        return row | {"note": f"{type(error).__name__}: {reason(error)[:200]}"}
    return row | {"passed": row["difference"] <= case.tolerance}


def _copies(inputs: Sequence) -> list:
    """Some operators write into what they are given."""
    import torch

    return [x.clone() if isinstance(x, torch.Tensor) else x for x in inputs]


def _difference(ours, truth) -> float:
    import torch

    if ours.shape != truth.shape or ours.dtype != truth.dtype:
        return float("inf")
    if not truth.is_floating_point():
        return 0.0 if torch.equal(ours, truth) else float("inf")
    if not torch.equal(ours.isfinite(), truth.isfinite()):
        return float("inf")
    ours, truth = (t.nan_to_num(0, 0, 0) for t in (ours, truth))
    largest = float(truth.abs().max()) if truth.numel() else 0.0
    return float((ours - truth).abs().max()) / largest if largest else float(ours.any())


# ---- without a GPU


def dry_run(only: str = "") -> list[dict]:
    """A row for each case: name, size and reduced size, what was launched, and whether the answers were the same.

    In processes of their own, since Triton reads when a kernel is defined whether it is to be interpreted.
    """
    names = [case.name for case in wanted(only)]
    environment = {key: value for key, value in os.environ.items() if key != "PRM_KERNELS"}
    environment |= {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "prm.eval.bench.kernels.bench", only]
    started = [
        subprocess.Popen([*command, str(part)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                         env=environment)
        for part in range(PROCESSES)
    ]  # fmt: skip
    answers = [process.communicate() for process in started]
    rows = [json.loads(line) for found, _ in answers for line in found.splitlines() if line.startswith("{")]
    ends = [(error.strip().splitlines() or ["without a word"])[-1] for _, error in answers]
    return _in_order(names, rows, "; ".join(ends))


def _in_order(names: Sequence[str], rows: Sequence[dict], end: str) -> list[dict]:
    """The rows in the order of the names; a case without a row was not executed, which is a row too."""
    found = {row["name"]: row for row in rows}
    missing = {"passed": False, "launched": {}, "by_torch": [], "difference": None, "kernels": [], "size": "",
               "reduced": "", "note": f"not executed: the process ended with: {end[:200]}"}  # fmt: skip
    return [found.get(name, {"name": name} | missing) for name in names]


def failures(rows: Sequence[dict]) -> list[str]:
    """What is wrong with rows of `dry_run` or `measure`, a line each."""
    lines = []
    for row in rows:
        expected = set(row["kernels"]) - set(row["by_torch"])
        idle = sorted(kernel for kernel in expected if not row["launched"].get(kernel))
        if row["note"] or not row["passed"]:
            lines.append(f"{row['name']}: {row['note'] or 'differs by ' + format(row['difference'], '.1e')}")
        elif idle:
            lines.append(f"{row['name']}: {', '.join(idle)} was not launched")
    return lines


def _dry(only: str, part: int) -> None:
    """Rows of every PROCESSES-th case, a line of JSON each."""
    import torch

    torch.set_num_threads(1)
    for case in wanted(only)[part::PROCESSES]:
        started, small = time.process_time(), case.reduced()
        row = {"name": case.name, "size": case.size, "reduced": small.size, "kernels": case.kernels}
        try:
            row |= compared(small, small.inputs("cpu"))
        except Exception as error:  # as above
            row |= {"launched": {}, "by_torch": [], "difference": None, "passed": False, "note": reason(error)[:200]}
        print(json.dumps(row | {"seconds": round(time.process_time() - started, 2)}), flush=True)


# ---- with one


def measure(only: str = "", device: str = "cuda", rounds: int = 7, record: bool = False, report=print) -> dict:
    """Every case on the GPU: {"machine", "rates", "rounds", "rows", "choices"}; `report` is told each case's name.

    record: also measure each configuration of each kernel; "choices" then says which is the fastest for each case.
    """
    import torch

    chosen = wanted(only)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    clock = Clock(device)
    found = {"machine": describe(device), "rates": rates(device, clock), "rounds": rounds, "rows": [], "choices": {}}
    for case in chosen:
        report(case.name)
        try:
            inputs = case.inputs(device)
        except torch.OutOfMemoryError as error:
            found["rows"].append(_row(case, reason(error)[:200]))
            continue
        found["rows"].append(measure_case(case, inputs, rounds, clock, found["rates"]))
        if record and case.work() is not None:
            merge(found["choices"], fastest(case, inputs, rounds, clock))
        del inputs
        torch.cuda.empty_cache()
    return found


def describe(device: str) -> dict:
    """What the figures depend on."""
    import torch
    import triton

    found = machine(device) | {"triton": triton.__version__, "hip": torch.version.hip}
    if torch.device(device).type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found |= {"gpu_memory_gb": round(properties.total_memory / 1e9, 1), "l2_mb": properties.L2_cache_size / 1e6}
    return found


class Clock:
    """Milliseconds that the GPU spends in a function, beginning with cold caches."""

    def __init__(self, device: str):
        import torch

        self._device = torch.device(device)
        self._flush = torch.empty(FLUSH, dtype=torch.int8, device=device)

    def __call__(self, function: Callable[[], object]) -> float:
        import torch

        with torch.cuda.device(self._device):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            # While the GPU is busy with this, the host hands it what comes next.
            self._flush.zero_()
            begin.record()
            function()
            end.record()
            end.synchronize()
        return begin.elapsed_time(end)


def rates(device: str, clock: Callable) -> dict:
    """What the card does at best: bytes a second of a large copy, operations a second of large matrix products.

    clock : milliseconds of a function
    """
    import torch

    numbers = torch.zeros(2, LARGE, device=device)
    found = {"copy": numbers.nbytes / min(clock(lambda: numbers[0].copy_(numbers[1])) for _ in range(5)) * 1e3}
    held = torch.backends.cuda.matmul.allow_tf32
    for name, dtype in (("ieee", torch.float32), ("tf32", torch.float32), ("bf16", torch.bfloat16)):
        torch.backends.cuda.matmul.allow_tf32 = name == "tf32"
        a = torch.randn(SIDE, SIDE, device=device).to(dtype)
        found[name] = 2 * SIDE**3 / min(clock(lambda a=a: a @ a) for _ in range(5)) * 1e3
    torch.backends.cuda.matmul.allow_tf32 = held
    return found


def measure_case(case, inputs: Sequence, rounds: int, clock: Callable, rates: Mapping[str, float]) -> dict:
    """The row of one case: compared, then timed beside its competitors; milliseconds, a `summary` for each variant."""
    row = _row(case) | compared(case, inputs)
    work = case.work()
    if work is not None:
        row["work"] = asdict(work)
        row["floor_ms"] = 1e3 * max(work.bytes / rates["copy"], work.operations / rates[work.unit])
    if failures([row]):
        return row | {"passed": False}
    functions, notes = variants(case, inputs)
    times = interleave({name: lambda f=f: {"ms": clock(f)} for name, f in functions.items()}, rounds)
    ours = [one["ms"] for one in times["kernels"]]
    for name, found in times.items():
        own = [one["ms"] for one in found]
        row["variants"].append({"name": name, "ms": summary(own), "ratio": ratios(own, ours)})
    return row | {"not_measured": notes}


def _row(case, note: str = "") -> dict:
    """A row that says what the case is, and nothing of how it went but for a note."""
    return {
        "name": case.name, "group": case.group, "size": case.size, "dtype": case.dtype, "precision": case.precision,
        "kernels": list(case.kernels), "launched": {}, "by_torch": [], "difference": None, "passed": False,
        "note": note, "floor_ms": None, "variants": [],
    }  # fmt: skip


def variants(case, inputs: Sequence) -> tuple[dict[str, Callable], dict[str, str]]:
    """Functions that give the case's answer, by name, each run once already; and why others are not among them."""
    import torch

    from prm.accelerated.kernels import launching

    def by_torch():
        with launching.using(launching.TORCH):
            return case.run(*inputs)

    functions = {"kernels": lambda: case.run(*inputs), "torch": by_torch, **case.others(*inputs)}
    if case.plain is not None and case.worth_compiling:
        torch.compiler.reset()
        compiled = torch.compile(case.plain)
        functions["torch.compile"] = lambda: compiled(*inputs)
    warm, notes = {}, {}
    for name, function in functions.items():
        try:
            for _ in range(2):
                function()
            warm[name] = function
        except Exception as error:  # a competitor that fails is none, and the row says so
            notes[name] = f"{type(error).__name__}: {reason(error)[:200]}"
    return warm, notes


# ---- which configuration is the fastest


def fastest(case, inputs: Sequence, rounds: int, clock: Callable) -> dict[str, dict[str, str]]:
    """kernel -> case -> the configuration, or "torch", that takes the least time, of those that answer rightly."""
    from prm.accelerated.kernels import launching

    with launching.listening() as choices:
        case.run(*_copies(inputs))
    found: dict[str, dict[str, str]] = {}
    for kernel, name in sorted(choices):
        functions = {}
        for choice in (*launching.CONFIGURATIONS[kernel], launching.TORCH):
            with launching.using(choice, kernel):
                if compared(case, inputs)["passed"]:
                    functions[choice] = partial(_timed, choice, kernel, case, inputs, clock)
        times = interleave(functions, rounds)
        if times:
            milliseconds = {choice: [one["ms"] for one in own] for choice, own in times.items()}
            found.setdefault(kernel, {})[name] = least(milliseconds)
    return found


def _timed(choice: str, kernel: str, case, inputs: Sequence, clock: Callable) -> dict[str, float]:
    from prm.accelerated.kernels import launching

    with launching.using(choice, kernel):
        return {"ms": clock(lambda: case.run(*inputs))}


def least(times: Mapping[str, Sequence[float]]) -> str:
    """The choice with the smallest median; "default" where it takes at most 2 % longer."""
    medians = {choice: summary(own)["median"] for choice, own in times.items()}
    best = min(medians, key=medians.get)
    return "default" if medians.get("default", float("inf")) <= 1.02 * medians[best] else best


def merge(choices: dict, more: Mapping[str, Mapping[str, str]]) -> None:
    """Put kernel -> case -> choice into choices, over what they say of the same cases."""
    for kernel, found in more.items():
        choices[kernel] = {**choices.get(kernel, {}), **found}


def write_choices(card: str, choices: Mapping[str, Mapping[str, str]], path=None) -> None:
    """Put one card's choices into the record that launchers read; other cards and other cases keep theirs."""
    from prm.accelerated.kernels import launching

    path = launching.RECORD if path is None else path
    held = json.loads(path.read_text()) if path.exists() else {}
    merge(held.setdefault(card, {}), choices)
    atomic_write(path, (json.dumps(held, indent=1, sort_keys=True) + "\n").encode())
    launching._record.cache_clear()


if __name__ == "__main__":
    _dry(sys.argv[1], int(sys.argv[2]))
