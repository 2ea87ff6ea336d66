"""Time and memory: rounds that take every variant in turn, and what is reported of them."""

from __future__ import annotations

import gc
import re
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from ..pictures.memory import trim


@contextmanager
def timed(seconds: dict[str, float], stage: str, device: str = "cpu"):
    """Adds the block's time to seconds[stage]."""
    _wait(device)
    started = time.perf_counter()
    yield
    _wait(device)
    seconds[stage] = seconds.get(stage, 0.0) + time.perf_counter() - started


def _wait(device: str) -> None:
    """The clock is read when the device has done what it was told to."""
    if device != "cpu":
        torch.cuda.synchronize(device)


def interleave(variants: dict[str, Callable[[], dict[str, float]]], rounds: int) -> dict[str, list[dict[str, float]]]:
    """Each variant's seconds by stage, a dict a round. Every round runs each variant, beginning with another one."""
    found = {name: [] for name in variants}
    names = list(variants)
    for k in range(rounds):
        first = k % max(1, len(names))
        for name in names[first:] + names[:first]:
            found[name].append(variants[name]())
    return found


def summary(values: Sequence[float]) -> dict:
    """Median and spread of one number a round."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "rounds": list(values)}


def ratios(others: Sequence[float], ours: Sequence[float]) -> dict:
    """Summary of their time over ours, a round at a time."""
    return summary([other / own for other, own in zip(others, ours)])


def totals(seconds: dict, passed: bool) -> list[dict]:
    """A row a variant: stages, their sum, and its ratio to ours; only names where the answers differ."""
    if not passed:
        return [{"name": name} for name in seconds]
    ours = [sum(r.values()) for r in seconds["ours"]]
    rows = []
    for name, rounds in seconds.items():
        total = [sum(r.values()) for r in rounds]
        stages = {stage: summary([r[stage] for r in rounds]) for stage in rounds[0]}
        rows.append({"name": name, "all": summary(total), "seconds": stages, "ratio": ratios(total, ours)})
    return rows


# ---- memory


def resident() -> int:
    """Bytes of memory that the process holds now, after what is free has gone back."""
    gc.collect()
    trim()
    return _status("VmRSS")


def highest(device: str = "cpu") -> int:
    """Most bytes held since `forget_highest`: resident memory, or the device's own."""
    if device != "cpu":
        return torch.cuda.max_memory_allocated(device)
    return _status("VmHWM")


def forget_highest(device: str = "cpu") -> int:
    """Begins a new measurement of `highest`; returns the bytes held now."""
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    held = resident()
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass  # then the highest since the start stands: of use where each measurement needs more than the last
    return held


def _status(name: str) -> int:
    try:
        found = re.search(rf"{name}:\s*(\d+)", Path("/proc/self/status").read_text())
        return 1024 * int(found[1])
    except OSError:
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def mb(size: float) -> float:
    """Bytes in megabytes of 10^6."""
    return round(size / 1e6, 1)
